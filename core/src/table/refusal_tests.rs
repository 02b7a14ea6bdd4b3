//! Tables whose allocations may fail at any moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::tests::{Quality, hash_of, numbered_key, walk_all};
use super::*;
use crate::arena::{CHUNK_BYTES_MIN, SwitchedChunks};

/// A table and its expected content. The test can exhaust the memory of the table.
struct Deprived {
    table: Table,
    is_exhausted: Arc<AtomicBool>,
    /// Allocations that fill the rest of the chunks.
    fillers: Vec<(Handle, usize)>,
    quality: Quality,
    entries: HashMap<u64, u64>,
    staged: Vec<(Staged, u64)>,
    version: u64,
    refused: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u64,
    },
    Stage {
        key: u64,
        count: u64,
    },
    Commit {
        which: prop::sample::Index,
        count: usize,
    },
    CommitRemoval {
        which: prop::sample::Index,
    },
    Discard {
        which: prop::sample::Index,
        count: usize,
    },
    Remove {
        key: u64,
        count: u64,
    },
    Compact {
        steps: usize,
    },
    /// From now on no allocation of at least this many bytes succeeds.
    Exhaust {
        from_bytes: usize,
    },
    Supply,
}

fn step(keys: u64) -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    let count = || prop_oneof![4 => 1u64..4, 1 => 1u64..200];
    let place = || prop_oneof![4 => 1usize..4, 1 => 1usize..200];
    let exhausts = prop::sample::select(vec![16usize, 64, 128, 256, 1024]);
    prop_oneof![
        20 => (0..keys).prop_map(|key| Step::Put { key }),
        60 => (0..keys, count()).prop_map(|(key, count)| Step::Stage { key, count }),
        40 => (which(), place()).prop_map(|(which, count)| Step::Commit { which, count }),
        10 => which().prop_map(|which| Step::CommitRemoval { which }),
        10 => (which(), place()).prop_map(|(which, count)| Step::Discard { which, count }),
        20 => (0..keys, count()).prop_map(|(key, count)| Step::Remove { key, count }),
        5 => (1usize..20).prop_map(|steps| Step::Compact { steps }),
        10 => exhausts.prop_map(|from_bytes| Step::Exhaust { from_bytes }),
        10 => Just(Step::Supply),
    ]
}

impl Deprived {
    fn new(quality: Quality) -> Deprived {
        let is_exhausted = Arc::new(AtomicBool::new(false));
        let chunks = SwitchedChunks::new(CHUNK_BYTES_MIN, Arc::clone(&is_exhausted));
        Deprived {
            table: Table::new(Box::new(chunks)),
            is_exhausted,
            fillers: Vec::new(),
            quality,
            entries: HashMap::new(),
            staged: Vec::new(),
            version: 0,
            refused: 0,
        }
    }

    fn hash(&self, key: u64) -> TableHash {
        self.quality.hash(&numbered_key(key))
    }

    fn version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn apply(&mut self, step: Step, keys: u64) {
        match step {
            Step::Put { key } => {
                let (bytes, version) = (numbered_key(key), self.version());
                let value = version.to_le_bytes();
                let put =
                    self.table.put(self.hash(key), &bytes, &value, None, SequenceNumber(version));
                match put {
                    Ok(old) => {
                        assert_eq!(old.map(|old| old.0), self.entries.insert(key, version));
                    }
                    Err(OutOfMemory { .. }) => self.refused += 1,
                }
            }
            Step::Stage { key, count } => {
                (key..key + count).for_each(|key| self.stage(key % keys));
            }
            Step::Commit { which, count } => {
                for _ in 0..count {
                    let staged = self.take(which);
                    self.commit(staged);
                }
            }
            Step::CommitRemoval { which } => {
                if let Some((staged, key)) = self.take(which) {
                    let old = self.table.commit_removal(staged);
                    assert_eq!(old.map(|old| old.0), self.entries.remove(&key));
                }
            }
            Step::Discard { which, count } => {
                for _ in 0..count {
                    if let Some((staged, _)) = self.take(which) {
                        self.table.discard(staged);
                    }
                }
            }
            Step::Remove { key, count } => {
                (key..key + count).for_each(|key| self.remove(key % keys));
            }
            Step::Compact { steps } => {
                for _ in 0..steps {
                    self.table.compact_step(Pressure::Short, CompactionBudget::BACKGROUND);
                }
            }
            Step::Exhaust { from_bytes } => self.exhaust(from_bytes),
            Step::Supply => self.supply(),
        }
    }

    fn stage(&mut self, key: u64) {
        match self.table.stage(self.hash(key), &numbered_key(key), 8, None) {
            Ok(staged) => self.staged.push((staged, key)),
            Err(OutOfMemory { .. }) => self.refused += 1,
        }
    }

    fn take(&mut self, which: prop::sample::Index) -> Option<(Staged, u64)> {
        match self.staged.len() {
            0 => None,
            len => Some(self.staged.swap_remove(which.index(len))),
        }
    }

    fn commit(&mut self, staged: Option<(Staged, u64)>) {
        let Some((mut staged, key)) = staged else { return };
        let version = self.version();
        self.table.staged_append(&mut staged, &version.to_le_bytes());
        let old = self.table.commit(staged, SequenceNumber(version));
        assert_eq!(old.map(|old| old.0), self.entries.insert(key, version));
    }

    fn commit_all(&mut self) {
        for staged in std::mem::take(&mut self.staged) {
            self.commit(Some(staged));
        }
    }

    fn remove(&mut self, key: u64) {
        let old = self.table.remove(self.hash(key), &numbered_key(key));
        assert_eq!(old.map(|old| old.0), self.entries.remove(&key));
    }

    /// Exhausts the memory for allocations of at least this many bytes.
    fn exhaust(&mut self, from_bytes: usize) {
        self.is_exhausted.store(true, Ordering::Relaxed);
        let sizes = (0..).map(|half| CHUNK_BYTES_MIN >> half);
        for bytes in sizes.take_while(|&bytes| bytes >= from_bytes) {
            while let Some(handle) = self.table.arena.allocate(bytes) {
                self.fillers.push((handle, bytes));
            }
        }
    }

    fn supply(&mut self) {
        self.is_exhausted.store(false, Ordering::Relaxed);
        for (handle, bytes) in self.fillers.drain(..) {
            // SAFETY: the filler was allocated with this size, and nothing refers to it.
            unsafe { self.table.arena.free(handle, bytes) };
        }
    }

    fn check(&self) {
        let Table { arena, directory, staging, .. } = &self.table;
        directory.check(arena, staging);
        assert_eq!(self.table.len(), self.entries.len());
        assert_eq!(self.table.staged_len(), self.staged.len());
        assert_eq!(self.table.recount(), self.table.digest());
        for (&key, &version) in &self.entries {
            let entry = self.table.get(self.hash(key), &numbered_key(key));
            let entry = entry.expect("an entry is lost");
            assert_eq!((entry.version.0, entry.value), (version, &version.to_le_bytes()[..]));
        }
        let mut walked = 0;
        walk_all(&self.table, 10, |_| walked += 1);
        assert_eq!(walked, self.entries.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn allocation_failures_at_any_moment_lose_no_accepted_entry_and_fail_no_commit(
        quality in prop::sample::select(&Quality::ALL[..]),
        keys in prop::sample::select(vec![20u64, 300, 3_000]),
        steps in prop::collection::vec(step(3_000), 1..400),
    ) {
        let mut deprived = Deprived::new(quality);
        for (number, step) in steps.into_iter().enumerate() {
            deprived.apply(step, keys);
            if number % 20 == 0 {
                deprived.check();
            }
        }
        deprived.exhaust(16);
        deprived.commit_all();
        deprived.check();
        deprived.supply();
        for key in 0..keys {
            deprived.remove(key);
        }
        deprived.check();
    }
}

#[test]
fn any_number_of_staged_entries_of_one_segment_is_committed_without_memory() {
    for quality in Quality::ALL {
        for count in [1, 14, 15, 17, 100, 1_000, 6_000] {
            let mut deprived = Deprived::new(quality);
            (0..count).for_each(|key| deprived.stage(key));
            assert_eq!(deprived.refused, 0);
            deprived.check();
            deprived.exhaust(16);
            deprived.commit_all();
            deprived.check();
            assert_eq!(deprived.entries.len() as u64, count);
        }
    }
}

#[test]
fn staged_entries_of_equal_hash_do_not_enlarge_the_directory() {
    let mut deprived = Deprived::new(Quality::AllZeros);
    (0..10_000).for_each(|key| deprived.stage(key));
    assert_eq!(deprived.table.directory.places(), 1);
}

#[test]
fn shrinking_and_merging_keep_the_slots_of_staged_entries() {
    let mut deprived = Deprived::new(Quality::Good);
    for key in 0..20_000 {
        deprived.apply(Step::Put { key }, u64::MAX);
    }
    let places = deprived.table.directory.places();
    (20_000..21_000).for_each(|key| deprived.stage(key));
    (0..20_000).for_each(|key| deprived.remove(key));
    deprived.check();
    assert!(deprived.table.directory.places() < places, "no segments have merged");
    deprived.exhaust(16);
    deprived.commit_all();
    deprived.check();
}

#[test]
fn a_segment_that_was_packed_for_lack_of_memory_is_unpacked_by_the_next_write() {
    // All hashes have the last place of a segment as their home.
    let mut deprived = Deprived::new(Quality::AllOnes);
    (0..10).for_each(|key| deprived.stage(key));
    deprived.exhaust(16);
    deprived.commit_all();
    deprived.check();
    let packed = |deprived: &Deprived| deprived.table.directory.packed();
    assert_eq!(packed(&deprived), 1);
    deprived.remove(3);
    deprived.check();
    deprived.apply(Step::Put { key: 3 }, u64::MAX);
    assert_eq!((deprived.refused, packed(&deprived)), (0, 1), "it has room");
    deprived.check();
    deprived.supply();
    deprived.apply(Step::Put { key: 3 }, u64::MAX);
    assert_eq!((deprived.refused, packed(&deprived)), (0, 0));
    deprived.check();
    assert_eq!(deprived.table.get(hash_of(b"none"), b"none"), None);
}
