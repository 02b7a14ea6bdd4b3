use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;

use proptest::prelude::*;

use super::*;
use crate::arena::{CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MIN, HeapChunks};

pub(super) fn small_table() -> Table {
    Table::new(Box::new(HeapChunks::new(CHUNK_BYTES_MIN)))
}

/// Mixes a number with the finalizer of SplitMix64, which is good enough as a hash in tests.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

pub(super) fn hash_of(key: &[u8]) -> TableHash {
    let fold = |hash: u64, &byte: &u8| mix(hash ^ u64::from(byte)).wrapping_add(1);
    TableHash(key.iter().fold(key.len() as u64, fold))
}

/// The quality of the hashes in a test. Poor hashes are improbable in practice, but possible.
#[derive(Clone, Copy, Debug)]
pub(super) enum Quality {
    Good,
    FewValues,
    AllZeros,
    AllOnes,
    SameFirstBits,
    SameLastBits,
}

impl Quality {
    pub(super) const ALL: [Quality; 6] = [
        Quality::Good,
        Quality::FewValues,
        Quality::AllZeros,
        Quality::AllOnes,
        Quality::SameFirstBits,
        Quality::SameLastBits,
    ];

    pub(super) fn hash(self, key: &[u8]) -> TableHash {
        let TableHash(good) = hash_of(key);
        TableHash(match self {
            Quality::Good => good,
            Quality::FewValues => (good % 7).wrapping_mul(0x2492_4924_0000_0000),
            Quality::AllZeros => 0,
            Quality::AllOnes => u64::MAX,
            Quality::SameFirstBits => (good >> 20) | 0xABCD_E000_0000_0000,
            Quality::SameLastBits => good & 0xFFC0_0000_0000_0000,
        })
    }
}

pub(super) fn numbered_key(number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_le_bytes());
    key
}

fn put(table: &mut Table, key: &[u8], value: &[u8], version: u64) -> Option<u64> {
    let old = table.put(hash_of(key), key, value, None, SequenceNumber(version));
    old.expect("the heap has memory").map(|version| version.0)
}

/// A small budget, so that a pass takes many steps with other operations between them.
const SMALL_STEP: CompactionBudget =
    CompactionBudget { entries: 8, bytes: 4 << 10, slots: 64, chunks: 3 };

#[derive(Clone, Debug)]
enum Step {
    Put { key: u16, value_len: usize },
    Stage { key: u16, value_len: usize },
    Append { which: prop::sample::Index, bytes: usize },
    Commit { which: prop::sample::Index },
    Discard { which: prop::sample::Index },
    Remove { key: u16 },
    Walk { entries: usize },
    Compact { steps: usize },
    Clear,
}

fn value_len() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..200, 2 => 200usize..4_000, 1 => 60_000usize..200_000]
}

fn step(keys: u16) -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        300 => (0..keys, value_len()).prop_map(|(key, value_len)| Step::Put { key, value_len }),
        80 => (0..keys, value_len()).prop_map(|(key, value_len)| Step::Stage { key, value_len }),
        120 => (which(), value_len()).prop_map(|(which, bytes)| Step::Append { which, bytes }),
        60 => which().prop_map(|which| Step::Commit { which }),
        20 => which().prop_map(|which| Step::Discard { which }),
        150 => (0..keys).prop_map(|key| Step::Remove { key }),
        20 => (1usize..40).prop_map(|entries| Step::Walk { entries }),
        60 => (1usize..20).prop_map(|steps| Step::Compact { steps }),
        1 => Just(Step::Clear),
    ]
}

/// Returns a key whose length depends on its number.
fn model_key(number: u16) -> Vec<u8> {
    let len = match number % 64 {
        0 => usize::from(number % 3) * 20_000,
        short => usize::from(short),
    };
    let mut key = vec![0x5A; len];
    key.extend_from_slice(&number.to_le_bytes());
    key
}

fn model_value(version: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (mix(version) ^ i).to_le_bytes()[0]).collect()
}

struct ModelStaged {
    staged: Staged,
    key: Vec<u8>,
    value: Vec<u8>,
    filled: usize,
    version: u64,
}

/// The table under test, and an ordinary map with the expected content.
struct Model {
    table: Table,
    quality: Quality,
    entries: HashMap<Vec<u8>, (Vec<u8>, u64)>,
    staged: Vec<ModelStaged>,
    next_version: u64,
    cursor: WalkCursor,
}

impl Model {
    fn new(quality: Quality) -> Model {
        Model {
            table: small_table(),
            quality,
            entries: HashMap::new(),
            staged: Vec::new(),
            next_version: 1,
            cursor: WalkCursor::START,
        }
    }

    fn version(&mut self) -> u64 {
        self.next_version += 1;
        self.next_version
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Put { key, value_len } => {
                let (key, version) = (model_key(key), self.version());
                let value = model_value(version, value_len);
                let hash = self.quality.hash(&key);
                let old =
                    self.table.put(hash, &key, &value, None, SequenceNumber(version)).unwrap();
                let model_old = self.entries.insert(key, (value, version));
                assert_eq!(old.map(|old| old.0), model_old.map(|(_, version)| version));
            }
            Step::Stage { key, value_len } => {
                let (key, version) = (model_key(key), self.version());
                let value = model_value(version, value_len);
                let hash = self.quality.hash(&key);
                let staged = self.table.stage(hash, &key, value_len, None).unwrap();
                self.staged.push(ModelStaged { staged, key, value, filled: 0, version });
            }
            Step::Append { which, bytes } => {
                if self.staged.is_empty() {
                    return;
                }
                let index = which.index(self.staged.len());
                self.append(index, bytes);
            }
            Step::Commit { which } => self.commit(which),
            Step::Discard { which } => {
                if !self.staged.is_empty() {
                    let item = self.staged.swap_remove(which.index(self.staged.len()));
                    self.table.discard(item.staged);
                }
            }
            Step::Remove { key } => {
                let key = model_key(key);
                let old = self.table.remove(self.quality.hash(&key), &key);
                let model_old = self.entries.remove(&key);
                assert_eq!(old.map(|old| old.0), model_old.map(|(_, version)| version));
            }
            Step::Walk { entries } => {
                let budget = WalkBudget { entries, bytes: usize::MAX };
                let model = &self.entries;
                let next = self.table.walk(self.cursor, budget, |entry| {
                    let (value, version) = &model[entry.key];
                    assert_eq!((entry.value, entry.version.0), (&value[..], *version));
                });
                self.cursor = next.unwrap_or_default();
            }
            Step::Compact { steps } => {
                let before = (self.table.digest(), self.table.len(), self.table.used_bytes());
                for _ in 0..steps {
                    self.table.compact_step(Pressure::Short, SMALL_STEP);
                }
                assert_eq!(
                    (self.table.digest(), self.table.len(), self.table.used_bytes()),
                    before
                );
            }
            Step::Clear => {
                self.table.clear();
                self.entries.clear();
                self.staged.clear();
                assert_eq!(self.table.reserved_bytes(), 0);
            }
        }
    }

    fn append(&mut self, index: usize, bytes: usize) {
        let item = &mut self.staged[index];
        let end = item.value.len().min(item.filled + bytes);
        self.table.staged_append(&mut item.staged, &item.value[item.filled..end]);
        item.filled = end;
    }

    fn commit(&mut self, which: prop::sample::Index) {
        if self.staged.is_empty() {
            return;
        }
        let index = which.index(self.staged.len());
        self.append(index, usize::MAX / 2);
        let item = self.staged.swap_remove(index);
        let old = self.table.commit(item.staged, SequenceNumber(item.version));
        let model_old = self.entries.insert(item.key, (item.value, item.version));
        assert_eq!(old.map(|old| old.0), model_old.map(|(_, version)| version));
    }

    fn check(&self, keys: u16) {
        assert_eq!(self.table.len(), self.entries.len());
        assert_eq!(self.table.staged_len(), self.staged.len());
        assert_eq!(self.table.recount(), self.table.digest());
        for key in (0..keys).map(model_key) {
            let hash = self.quality.hash(&key);
            let entry = self.table.get(hash, &key);
            let model = self.entries.get(&key);
            assert_eq!(
                entry.map(|entry| (entry.key, entry.value, entry.version.0)),
                model.map(|(value, version)| (&key[..], &value[..], *version))
            );
            let version = self.table.version_of(hash, &key);
            assert_eq!(version.map(|version| version.0), model.map(|(_, version)| *version));
        }
        for item in &self.staged {
            let (key, value) = self.table.staged_entry(&item.staged);
            assert_eq!((key, value), (&item.key[..], &item.value[..item.filled]));
            let missing = item.value.len() - item.filled;
            assert_eq!(self.table.staged_missing(&item.staged), missing);
        }
        let mut walked = BTreeMap::new();
        walk_all(&self.table, 10, |entry| {
            let twice = walked.insert(entry.key.to_vec(), entry.version.0);
            assert_eq!(twice, None, "an entry was visited twice");
        });
        assert_eq!(walked.len(), self.entries.len());
        assert!(walked.iter().all(|(key, version)| self.entries[key].1 == *version));
        let content = self.entries.iter().map(|(key, (value, _))| key.len() + value.len());
        assert_eq!(self.table.content_bytes(), content.sum::<usize>());
        assert!(self.table.reserved_bytes() >= self.table.used_bytes());
    }
}

pub(super) fn walk_all(table: &Table, entries: usize, mut visit: impl FnMut(Entry<'_>)) {
    let budget = WalkBudget { entries, bytes: usize::MAX };
    let mut cursor = Some(WalkCursor::START);
    while let Some(from) = cursor {
        cursor = table.walk(from, budget, &mut visit);
        assert!(cursor.is_none_or(|next| next > from), "a step of a walk makes progress");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_table_behaves_like_a_map_for_any_hashes(
        quality in prop::sample::select(&Quality::ALL[..]),
        steps in prop::collection::vec(step(300), 1..600),
    ) {
        let mut model = Model::new(quality);
        for (number, step) in steps.into_iter().enumerate() {
            model.apply(step);
            if number % 100 == 0 {
                model.check(300);
            }
        }
        model.check(300);
    }

    #[test]
    fn a_walk_visits_every_remaining_entry_exactly_once_while_the_table_changes(
        quality in prop::sample::select(vec![Quality::Good, Quality::FewValues]),
        staying in 0u64..3_000,
        step_entries in 1usize..200,
        added_per_step in 0u64..400,
        removes in any::<bool>(),
    ) {
        let mut table = small_table();
        let key_of = |kind: u8, number: u64| {
            let mut key = numbered_key(number);
            key[15] = kind;
            key
        };
        for number in 0..staying {
            let (stays, goes) = (key_of(0, number), key_of(1, number));
            table.put(quality.hash(&stays), &stays, b"s", None, SequenceNumber(1)).unwrap();
            table.put(quality.hash(&goes), &goes, b"g", None, SequenceNumber(1)).unwrap();
        }
        let mut visits = vec![0; usize::try_from(staying).unwrap()];
        let mut cursor = Some(WalkCursor::START);
        let (mut added, mut removed) = (0, 0);
        while let Some(from) = cursor {
            let budget = WalkBudget { entries: step_entries, bytes: usize::MAX };
            cursor = table.walk(from, budget, |entry| {
                if entry.key[15] == 0 {
                    let number = u64::from_le_bytes(entry.key[..8].try_into().unwrap());
                    visits[usize::try_from(number).unwrap()] += 1;
                }
            });
            for _ in 0..added_per_step.min(20_000 - added) {
                let key = key_of(2, added);
                table.put(quality.hash(&key), &key, b"new", None, SequenceNumber(2)).unwrap();
                added += 1;
            }
            for _ in 0..if removes { added_per_step } else { 0 } {
                let key = key_of(1, removed);
                table.remove(quality.hash(&key), &key);
                removed += 1;
            }
            for _ in 0..5 {
                table.compact_step(Pressure::Short, SMALL_STEP);
            }
        }
        prop_assert!(visits.iter().all(|&visits| visits == 1));
    }
}

#[test]
fn a_table_can_move_to_another_thread() {
    fn assert_send<T: Send>() {}
    assert_send::<Table>();
    assert_send::<Staged>();
}

#[test]
fn an_empty_table_holds_no_memory() {
    let mut table = Table::new(Box::new(HeapChunks::default()));
    assert_eq!((table.reserved_bytes(), table.used_bytes(), table.len()), (0, 0, 0));
    assert_eq!(table.get(hash_of(b"a"), b"a"), None);
    assert_eq!(table.remove(hash_of(b"a"), b"a"), None);
    walk_all(&table, 1, |_| panic!("there is nothing to visit"));
}

#[test]
fn prefetching_does_not_change_results_for_any_hashes() {
    let unknown: Vec<TableHash> = (0..100).map(|n| TableHash(mix(n))).collect();
    small_table().prefetch(&unknown);
    for quality in Quality::ALL {
        let mut table = small_table();
        for n in 0..1_000 {
            let key = numbered_key(n);
            table.put(quality.hash(&key), &key, b"value", None, SequenceNumber(n + 1)).unwrap();
        }
        let before = (table.len(), table.digest(), table.reserved_bytes());
        table.prefetch(&unknown);
        table.prefetch(&[]);
        for n in 0..1_100 {
            table.prefetch(&[quality.hash(&numbered_key(n))]);
        }
        assert_eq!((table.len(), table.digest(), table.reserved_bytes()), before);
        assert_eq!(table.recount(), table.digest());
    }
}

#[test]
fn the_largest_keys_and_values_come_back_and_their_memory_is_returned() {
    let mut table = Table::new(Box::new(HeapChunks::default()));
    let key = vec![7; KEY_BYTES_MAX];
    let value = model_value(1, 16 << 20);
    for version in 1..4 {
        put(&mut table, &key, &value, version);
        put(&mut table, b"", b"", version);
        let entry = table.get(hash_of(&key), &key).unwrap();
        assert!(entry.value == value && entry.key == key && entry.version.0 == version);
        assert_eq!(table.get(hash_of(b""), b"").unwrap().value, b"");
    }
    let waste = table.reserved_bytes() - key.len() - value.len();
    assert!(waste < 3 * CHUNK_BYTES_DEFAULT, "{waste} bytes beyond the entry");
    assert_eq!(table.remove(hash_of(&key), &key), Some(SequenceNumber(3)));
    assert!(table.reserved_bytes() < 2 * CHUNK_BYTES_DEFAULT + (64 << 10));
}

#[test]
fn a_staged_entry_survives_growth_and_is_seen_only_once_committed() {
    let mut table = small_table();
    put(&mut table, b"key", b"old", 1);
    let mut staged = table.stage(hash_of(b"key"), b"key", 6, None).unwrap();
    table.staged_append(&mut staged, b"new");
    for number in 0..20_000 {
        put(&mut table, &numbered_key(number), b"filler", number);
    }
    assert_eq!(table.staged_entry(&staged), (&b"key"[..], &b"new"[..]));
    assert_eq!(table.staged_missing(&staged), 3);
    assert_eq!(table.get(hash_of(b"key"), b"key").unwrap().value, b"old");
    table.staged_append(&mut staged, b"est");
    assert_eq!(table.commit(staged, SequenceNumber(9)), Some(SequenceNumber(1)));
    let entry = table.get(hash_of(b"key"), b"key").unwrap();
    assert_eq!((entry.value, entry.version.0), (&b"newest"[..], 9));
}

#[test]
fn two_staged_writes_of_one_key_replace_each_other_in_order() {
    let mut table = small_table();
    let hash = hash_of(b"k");
    let [mut first, mut second] = [1, 1].map(|len| table.stage(hash, b"k", len, None).unwrap());
    table.staged_append(&mut second, b"2");
    table.staged_append(&mut first, b"1");
    assert_eq!(table.commit(first, SequenceNumber(1)), None);
    assert_eq!(table.commit(second, SequenceNumber(2)), Some(SequenceNumber(1)));
    assert_eq!(table.get(hash, b"k").unwrap().value, b"2");
    assert_eq!((table.len(), table.staged_len()), (1, 0));
}

#[test]
#[should_panic(expected = "before it was cleared")]
fn a_staged_entry_does_not_outlive_a_clear() {
    let mut table = small_table();
    let staged = table.stage(hash_of(b"k"), b"k", 0, None).unwrap();
    table.clear();
    let _newer = table.stage(hash_of(b"k"), b"k", 0, None).unwrap();
    table.commit(staged, SequenceNumber(1));
}

#[test]
#[should_panic(expected = "bytes of a value are missing")]
fn an_incomplete_value_cannot_be_committed() {
    let mut table = small_table();
    let staged = table.stage(hash_of(b"k"), b"k", 1, None).unwrap();
    table.commit(staged, SequenceNumber(1));
}

#[test]
#[should_panic(expected = "do not fit a value")]
fn a_value_cannot_be_appended_beyond_its_length() {
    let mut table = small_table();
    let mut staged = table.stage(hash_of(b"k"), b"k", 3, None).unwrap();
    table.staged_append(&mut staged, b"four");
}

#[test]
fn a_million_small_entries_take_at_most_112_bytes_each_at_every_size() {
    let mut table = Table::new(Box::new(HeapChunks::default()));
    let (mut sum, mut samples) = (0.0, 0);
    for number in 0..1_000_000_u32 {
        put(&mut table, &numbered_key(number.into()), &[1; 64], number.into());
        let len = number + 1;
        if len % 5_000 != 0 {
            continue;
        }
        // A small table may use only a part of its last chunk, so one chunk is subtracted here. Large tables are
        // measured below without this allowance.
        let reserved = table.reserved_bytes();
        assert!(reserved - CHUNK_BYTES_DEFAULT <= 112 * len as usize, "{reserved} for {len}");
        if len >= 500_000 {
            let each = f64::from(u32::try_from(reserved).unwrap()) / f64::from(len);
            assert!(each <= 112.0, "{each:.1} bytes for each of {len} entries");
            sum += each;
            samples += 1;
        }
    }
    let average = sum / f64::from(samples);
    assert!(average <= 109.0, "{average:.1} bytes for an entry on average over a doubling");
}

#[test]
fn no_write_moves_more_slots_than_one_segment_has() {
    let mut table = Table::new(Box::new(HeapChunks::default()));
    let mut moved_before = 0;
    for number in 0..300_000 {
        put(&mut table, &numbered_key(number), b"", number);
        let moved = table.directory.moved_slots();
        assert!(moved - moved_before <= segment::CAPACITY_MAX as u64);
        moved_before = moved;
    }
    assert!(moved_before < 8 * 300_000, "growth moved {moved_before} slots");
    for number in 0..300_000 {
        table.remove(hash_of(&numbered_key(number)), &numbered_key(number));
        let moved = table.directory.moved_slots();
        assert!(moved - moved_before <= 2 * segment::CAPACITY_MAX as u64);
        moved_before = moved;
    }
}

#[test]
fn memory_is_returned_when_entries_are_removed() {
    let mut table = Table::new(Box::new(HeapChunks::default()));
    for number in 0..200_000 {
        put(&mut table, &numbered_key(number), &[1; 64], number);
    }
    let full = table.reserved_bytes();
    for number in 0..200_000 {
        assert!(table.remove(hash_of(&numbered_key(number)), &numbered_key(number)).is_some());
    }
    assert_eq!(table.directory.places(), 1, "the segments have merged");
    assert!(table.used_bytes() < 1024, "{} bytes in use", table.used_bytes());
    let left = table.reserved_bytes();
    assert!(full > 9 * CHUNK_BYTES_DEFAULT && left < 3 * CHUNK_BYTES_DEFAULT, "{full} -> {left}");
}

#[test]
fn thousands_of_equal_hashes_are_kept_apart_by_their_keys() {
    for hash in [TableHash(0), TableHash(u64::MAX), TableHash(0x1234_5678 << 32)] {
        let mut table = small_table();
        for number in 0..5_000 {
            let key = numbered_key(number);
            let old = table.put(hash, &key, &key, None, SequenceNumber(number + 1)).unwrap();
            assert_eq!(old, None);
        }
        assert_eq!(table.directory.places(), 1, "splitting would not help");
        for number in (0..5_000).step_by(7) {
            let key = numbered_key(number);
            assert_eq!(table.get(hash, &key).unwrap().value, key);
            assert_eq!(table.remove(hash, &key), Some(SequenceNumber(number + 1)));
            assert_eq!(table.get(hash, &key), None);
        }
    }
}

#[test]
fn a_table_that_grows_and_shrinks_repeatedly_keeps_every_entry() {
    let cases = [(Quality::Good, 40_000), (Quality::SameLastBits, 20_000)];
    for (quality, keys) in cases.into_iter().chain([(Quality::SameFirstBits, 3_000)]) {
        let (mut table, mut model) = (small_table(), HashMap::new());
        let mut places = Vec::new();
        for phase in 0..6 {
            // Phases of mostly insertions and of mostly removals alternate.
            let removed_sixteenths = if phase % 2 == 0 { 1 } else { 15 };
            for number in 0..keys {
                let (key, version) = (numbered_key(number), phase * keys + number);
                let hash = quality.hash(&key);
                if mix(version) % 16 < removed_sixteenths {
                    let old = table.remove(hash, &key).map(|version| version.0);
                    assert_eq!(old, model.remove(&number));
                } else {
                    let old = table.put(hash, &key, &key, None, SequenceNumber(version)).unwrap();
                    assert_eq!(old.map(|version| version.0), model.insert(number, version));
                }
            }
            for number in 0..keys {
                let key = numbered_key(number);
                let found = table.version_of(quality.hash(&key), &key);
                assert_eq!(found.map(|version| version.0), model.get(&number).copied());
            }
            let mut walked = 0;
            walk_all(&table, 100, |_| walked += 1);
            assert_eq!((walked, table.len()), (model.len(), model.len()), "{quality:?}");
            places.push(table.directory.places());
        }
        if let Quality::Good = quality {
            assert!(places[0] >= 16 && places[1] < places[0], "{places:?}");
        }
    }
}

/// A chunk source with a limited number of chunks.
struct FewChunks(HeapChunks, usize);

// SAFETY: `HeapChunks` fulfils the contract.
unsafe impl ChunkSource for FewChunks {
    fn chunk_bytes(&self) -> usize {
        self.0.chunk_bytes()
    }

    fn allocate(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        self.1 = self.1.checked_sub(1)?;
        self.0.allocate(bytes)
    }

    fn reserve(&mut self) -> Option<NonNull<u8>> {
        self.allocate(self.0.chunk_bytes())
    }

    unsafe fn discard(&mut self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's guarantees hold for the heap.
        unsafe { self.0.discard(at, bytes) };
    }

    unsafe fn release(&mut self, at: NonNull<u8>, bytes: usize) {
        self.1 += 1;
        // SAFETY: the caller's guarantees hold for the heap.
        unsafe { self.0.release(at, bytes) };
    }
}

#[test]
fn without_memory_only_staging_fails() {
    let mut table = Table::new(Box::new(FewChunks(HeapChunks::new(CHUNK_BYTES_MIN), 10)));
    let mut in_flight = std::collections::VecDeque::new();
    let mut number = 0;
    let refused = loop {
        let key = numbered_key(number);
        match table.stage(hash_of(&key), &key, 0, None) {
            Ok(staged) => in_flight.push_back((staged, SequenceNumber(number))),
            Err(refused) => break refused,
        }
        number += 1;
        if in_flight.len() == 64 {
            let (staged, version) = in_flight.pop_front().unwrap();
            table.commit(staged, version);
        }
    };
    assert!(refused.to_string().contains("check the memory limit"), "{refused}");
    assert!(number > 10_000, "{number}");
    for (staged, version) in in_flight {
        assert_eq!(table.commit(staged, version), None, "a commit needs no memory");
    }
    for number in 0..number {
        let key = numbered_key(number);
        assert_eq!(table.remove(hash_of(&key), &key), Some(SequenceNumber(number)));
    }
    put(&mut table, b"after", b"the drought", 1);
}

#[test]
fn a_step_of_a_walk_is_bounded_for_any_budget() {
    let mut table = small_table();
    for number in 0..200_000 {
        put(&mut table, &numbered_key(number), b"", number);
    }
    let budget = WalkBudget { entries: usize::MAX, bytes: usize::MAX };
    let mut visited = 0;
    let next = table.walk(WalkCursor::START, budget, |_| visited += 1);
    assert!(next.is_some());
    assert!(visited <= WALK_SLOTS_MAX + segment::CAPACITY_MAX, "{visited}");
}

#[test]
fn a_pinned_value_outlives_its_replacement_and_is_freed_by_the_last_unpin() {
    let mut table = small_table();
    let (key, value) = (numbered_key(1), vec![7; 3 * CHUNK_BYTES_MIN]);
    let hash = hash_of(&key);
    table.put(hash, &key, &value, None, SequenceNumber(1)).unwrap();
    let held = table.used_bytes();
    let first = table.pin(hash, &key).unwrap();
    let second = table.pin(hash, &key).unwrap();
    assert_eq!(table.pinned_len(), 1);

    table.put(hash, &key, b"new", None, SequenceNumber(2)).unwrap();
    assert_eq!(table.get(hash, &key).unwrap().value, b"new");
    assert_eq!(table.pinned_value(&first).unwrap(), value);
    assert!(table.used_bytes() > held, "a pinned entry counts as used");
    assert_eq!(table.digest(), table.recount(), "and is no content");

    // The key of a pinned entry was overwritten. Pinning the key again pins the newer entry.
    let newer = table.pin(hash, &key).unwrap();
    assert_eq!(table.remove(hash, &key), Some(SequenceNumber(2)));
    assert_eq!(table.pinned_value(&newer).unwrap(), b"new");
    table.unpin(newer);
    table.unpin(first);
    assert_eq!(table.pinned_value(&second).unwrap(), value);
    table.unpin(second);
    assert_eq!(table.pinned_len(), 0);
    assert!(table.used_bytes() < held);
    assert!(table.pin(hash, &key).is_none());
}

#[test]
fn unpinning_an_entry_of_the_table_frees_nothing() {
    let mut table = small_table();
    let key = numbered_key(1);
    let hash = hash_of(&key);
    table.put(hash, &key, &[1; 100], None, SequenceNumber(1)).unwrap();
    let pin = table.pin(hash, &key).unwrap();
    table.unpin(pin);
    assert_eq!(table.get(hash, &key).unwrap().value, [1; 100]);
}

#[test]
fn a_pin_of_a_cleared_table_is_invalid_even_when_its_record_is_reused() {
    let mut table = small_table();
    let key = numbered_key(1);
    let hash = hash_of(&key);
    table.put(hash, &key, &[1; 100], None, SequenceNumber(1)).unwrap();
    let old = table.pin(hash, &key).unwrap();
    table.clear();
    assert!(table.pinned_value(&old).is_none());
    table.put(hash, &key, &[2; 100], None, SequenceNumber(1)).unwrap();
    let new = table.pin(hash, &key).unwrap();
    assert!(table.pinned_value(&old).is_none());
    table.unpin(old);
    assert_eq!(table.pinned_value(&new).unwrap(), [2; 100]);
    table.unpin(new);
}
