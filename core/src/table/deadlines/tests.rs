use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;

use kv_protocol::ids::SequenceNumber;
use proptest::prelude::*;

use super::*;
use crate::arena::HeapChunks;
use crate::table::tests::{hash_of, numbered_key, small_table};
use crate::table::{CompactionBudget, Pin, Pressure, Staged};

/// A time in the middle of the range, at which a unit of the far wheel begins.
const START: u64 = 1_700_000 << UNIT_BITS;
const DAY: u64 = 24 * 3_600_000;
const YEAR: u64 = 365 * DAY;

fn time(millis: u64) -> WallTime {
    WallTime::from_millis(millis)
}

impl Table {
    /// Asserts that the lists have exactly the linked entries with a deadline, and that the positions, links and
    /// occupancy bits agree.
    fn check_deadlines(&self) {
        let Table { arena, directory, deadlines, .. } = self;
        let mut linked = HashSet::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            cursor = directory.walk(arena, from, usize::MAX, |handle| {
                // SAFETY: the handle of a linked entry.
                if unsafe { entry::deadline(arena, handle) }.is_some() {
                    assert!(linked.insert(handle));
                }
                ControlFlow::Continue(())
            });
        }
        assert_eq!(deadlines.len, linked.len());
        let listed = deadlines.check(arena);
        assert!(linked == listed, "{} are linked, {} are listed", linked.len(), listed.len());
    }
}

impl Deadlines {
    fn check(&self, arena: &Arena) -> HashSet<Handle> {
        assert!(self.near <= self.now.next() && self.far <= self.near.unit().next());
        let mut seen = HashSet::new();
        let Some(slots) = self.slots.as_deref() else { return seen };
        for list in 0..LISTS {
            let is_occupied = match list {
                DUE => slots.heads[DUE].is_some(),
                0..NEAR_SLOTS => slots.near[list / 64] >> (list % 64) & 1 == 1,
                _ => slots.far[list / 64 - NEAR_WORDS] >> (list % 64) & 1 == 1,
            };
            assert_eq!(slots.heads[list].is_some(), is_occupied, "list {list}");
            let Some(head) = slots.heads[list] else { continue };
            let mut at = head;
            loop {
                assert!(seen.insert(at), "an entry is in two lists");
                let own = trailer(arena, at);
                if list != DUE {
                    assert_eq!(usize::from(own.slot()), list);
                    let latest = WheelTime(own.deadline().millis() + self.offset);
                    assert!(latest >= self.near, "an entry is late");
                }
                let next = own.next.unwrap();
                assert_eq!(trailer(arena, next).prev, Some(at));
                at = next;
                if at == head {
                    break;
                }
            }
        }
        for (word, &bits) in slots.near.iter().enumerate() {
            assert_eq!(slots.near_words >> word & 1 == 1, bits != 0);
        }
        for (level, &bits) in slots.far.iter().enumerate() {
            assert_eq!(slots.far_levels >> level & 1 == 1, bits != 0);
        }
        seen
    }
}

/// A table with numbered keys.
struct Numbered {
    table: Table,
    version: u64,
}

impl Numbered {
    fn new() -> Numbered {
        Numbered { table: small_table(), version: 0 }
    }

    fn put(&mut self, number: u64, deadline: Option<u64>) {
        self.version += 1;
        let key = numbered_key(number);
        let version = SequenceNumber(self.version);
        self.table.put(hash_of(&key), &key, b"value", deadline.map(time), version).unwrap();
    }

    fn remove(&mut self, number: u64) {
        let key = numbered_key(number);
        self.table.remove(hash_of(&key), &key).unwrap();
    }

    fn advance(&mut self, now: u64) {
        while self.table.advance_deadlines(time(now), 1_000) {}
    }

    /// Returns the numbers of all entries that are due after the wheel has advanced.
    fn due(&mut self, now: u64) -> Vec<u64> {
        self.advance(now);
        let mut due = Vec::new();
        let is_more = self.table.for_due(time(now), usize::MAX, |entry| {
            assert!(entry.deadline.unwrap() <= time(now), "an entry is reported early");
            due.push(u64::from_le_bytes(entry.key[..8].try_into().unwrap()));
        });
        assert!(!is_more);
        due.sort_unstable();
        due
    }
}

#[derive(Clone, Copy, Debug)]
enum Deadline {
    None,
    Past(u64),
    Ahead(u64),
    At(u64),
}

impl Deadline {
    fn at(self, now: u64) -> Option<WallTime> {
        match self {
            Deadline::None => None,
            Deadline::Past(by) => Some(time(now.saturating_sub(by))),
            Deadline::Ahead(by) => Some(time(now + by)),
            Deadline::At(millis) => Some(time(millis)),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u16, value_len: usize, deadline: Deadline },
    Stage { key: u16, value_len: usize, deadline: Deadline },
    Commit { which: prop::sample::Index },
    CommitRemoval { which: prop::sample::Index },
    Discard { which: prop::sample::Index },
    Remove { key: u16 },
    Pin { key: u16 },
    Unpin { which: prop::sample::Index },
    Forward(u64),
    Backward(u64),
    Advance { budget: usize },
    VisitDue { max: usize },
    ExpireDue { max: usize },
    Settle,
    Compact { steps: usize },
    Clear,
}

fn span() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0u64..5,
        3 => 0u64..3_000,
        2 => 0u64..200_000,
        2 => 0u64..30 * DAY,
        1 => 0u64..5_000 * YEAR,
    ]
}

fn deadline() -> impl Strategy<Value = Deadline> {
    prop_oneof![
        3 => Just(Deadline::None),
        2 => span().prop_map(Deadline::Past),
        12 => span().prop_map(Deadline::Ahead),
        1 => Just(Deadline::At(0)),
        1 => Just(Deadline::At(u64::MAX)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<prop::sample::Index>;
    let key = || 0u16..200;
    let value_len = || prop_oneof![6 => 0usize..200, 1 => 200usize..4_000];
    let entry = || (key(), value_len(), deadline());
    let put = |(key, value_len, deadline)| Step::Put { key, value_len, deadline };
    let stage = |(key, value_len, deadline)| Step::Stage { key, value_len, deadline };
    prop_oneof![
        60 => entry().prop_map(put),
        20 => entry().prop_map(stage),
        15 => which().prop_map(|which| Step::Commit { which }),
        2 => which().prop_map(|which| Step::CommitRemoval { which }),
        3 => which().prop_map(|which| Step::Discard { which }),
        20 => key().prop_map(|key| Step::Remove { key }),
        5 => key().prop_map(|key| Step::Pin { key }),
        4 => which().prop_map(|which| Step::Unpin { which }),
        12 => span().prop_map(Step::Forward),
        4 => span().prop_map(Step::Backward),
        12 => (0usize..20).prop_map(|budget| Step::Advance { budget }),
        5 => (0usize..20).prop_map(|max| Step::VisitDue { max }),
        5 => (0usize..20).prop_map(|max| Step::ExpireDue { max }),
        6 => Just(Step::Settle),
        10 => (1usize..20).prop_map(|steps| Step::Compact { steps }),
        1 => Just(Step::Clear),
    ]
}

/// A small budget, so that a pass takes many steps with other operations between them.
const SMALL_STEP: CompactionBudget =
    CompactionBudget { entries: 8, bytes: 4 << 10, slots: 64, chunks: 3 };

struct ModelStaged {
    staged: Staged,
    key: u16,
    value: Vec<u8>,
    deadline: Option<WallTime>,
}

/// The table under test, the wall clock, and the expected deadlines.
struct Model {
    table: Table,
    now: u64,
    entries: BTreeMap<u16, Option<WallTime>>,
    staged: Vec<ModelStaged>,
    pins: Vec<Pin>,
    version: u64,
}

impl Model {
    fn new() -> Model {
        let (entries, staged, pins) = (BTreeMap::new(), Vec::new(), Vec::new());
        Model { table: small_table(), now: START, entries, staged, pins, version: 0 }
    }

    fn now(&self) -> WallTime {
        time(self.now)
    }

    fn version(&mut self) -> SequenceNumber {
        self.version += 1;
        SequenceNumber(self.version)
    }

    fn is_due(&self, key: u16) -> bool {
        self.entries[&key].is_some_and(|deadline| deadline <= self.now())
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Put { key, value_len, deadline } => {
                let (deadline, version) = (deadline.at(self.now), self.version());
                let bytes = key.to_le_bytes();
                let value = vec![7; value_len];
                self.table.put(hash_of(&bytes), &bytes, &value, deadline, version).unwrap();
                self.entries.insert(key, deadline);
            }
            Step::Stage { key, value_len, deadline } => {
                let (bytes, deadline) = (key.to_le_bytes(), deadline.at(self.now));
                let hash = hash_of(&bytes);
                let mut staged = self.table.stage(hash, &bytes, value_len, deadline).unwrap();
                let value = vec![9; value_len];
                self.table.staged_append(&mut staged, &value[..value_len / 2]);
                self.staged.push(ModelStaged { staged, key, value, deadline });
            }
            Step::Commit { which } => self.commit(which),
            Step::CommitRemoval { which } => {
                if let Some(item) = self.take(which) {
                    self.table.commit_removal(item.staged);
                    self.entries.remove(&item.key);
                }
            }
            Step::Discard { which } => {
                if let Some(item) = self.take(which) {
                    self.table.discard(item.staged);
                }
            }
            Step::Remove { key } => self.remove(key),
            Step::Pin { key } => {
                let bytes = key.to_le_bytes();
                self.pins.extend(self.table.pin(hash_of(&bytes), &bytes));
            }
            Step::Unpin { which } => {
                if !self.pins.is_empty() {
                    let pin = self.pins.swap_remove(which.index(self.pins.len()));
                    self.table.unpin(pin);
                }
            }
            Step::Forward(by) => self.now = time(self.now + by).millis(),
            Step::Backward(by) => self.now = self.now.saturating_sub(by),
            Step::Advance { budget } => {
                self.advance(budget);
            }
            Step::VisitDue { max } => {
                self.visit_due(max);
            }
            Step::ExpireDue { max } => {
                for key in self.visit_due(max) {
                    self.remove(key);
                }
            }
            Step::Settle => self.settle(),
            Step::Compact { steps } => {
                for _ in 0..steps {
                    self.table.compact_step(Pressure::Short, SMALL_STEP);
                }
            }
            Step::Clear => {
                self.table.clear();
                self.entries.clear();
                self.staged.clear();
                assert_eq!(self.table.reserved_bytes(), 0);
            }
        }
    }

    fn take(&mut self, which: prop::sample::Index) -> Option<ModelStaged> {
        match self.staged.len() {
            0 => None,
            len => Some(self.staged.swap_remove(which.index(len))),
        }
    }

    fn commit(&mut self, which: prop::sample::Index) {
        let Some(mut item) = self.take(which) else { return };
        assert_eq!(self.table.staged_deadline(&item.staged), item.deadline);
        self.table.staged_append(&mut item.staged, &item.value[item.value.len() / 2..]);
        let version = self.version();
        self.table.commit(item.staged, version);
        self.entries.insert(item.key, item.deadline);
    }

    fn remove(&mut self, key: u16) {
        let bytes = key.to_le_bytes();
        let removed = self.table.remove(hash_of(&bytes), &bytes);
        assert_eq!(removed.is_some(), self.entries.remove(&key).is_some());
    }

    fn advance(&mut self, budget: usize) -> bool {
        let before = self.table.deadlines.moves;
        let is_more = self.table.advance_deadlines(self.now(), budget);
        let moves = self.table.deadlines.moves - before;
        assert!(moves <= budget && (moves == budget || !is_more), "{moves} of {budget}");
        is_more
    }

    fn visit_due(&mut self, max: usize) -> BTreeSet<u16> {
        let (now, mut due, mut visits) = (self.now(), BTreeSet::new(), 0);
        self.table.for_due(now, max, |entry| {
            visits += 1;
            assert!(due.insert(u16::from_le_bytes(entry.key.try_into().unwrap())));
        });
        assert!(visits <= max);
        assert!(due.iter().all(|&key| self.is_due(key)), "an entry is reported early");
        due
    }

    /// Checks that every due entry is reported, in calls of any size.
    fn settle(&mut self) {
        while self.advance(7) {}
        let expected: BTreeSet<u16> =
            self.entries.keys().copied().filter(|&key| self.is_due(key)).collect();
        let mut in_parts = BTreeSet::new();
        for _ in 0..=self.table.expiring_len() / 3 {
            in_parts.extend(self.visit_due(3));
        }
        assert_eq!(in_parts, expected);
        assert_eq!(self.visit_due(usize::MAX), expected);
        let next = self.table.next_deadline_work();
        if expected.is_empty() {
            assert_eq!(next.is_some(), self.table.expiring_len() > 0);
            let earliest = self.entries.values().flatten().min();
            assert!(next.is_none_or(|next| next > self.now() && next <= *earliest.unwrap()));
        } else {
            assert!(next.unwrap() <= self.now());
        }
    }

    fn check(&self) {
        self.table.check_deadlines();
        assert_eq!(self.table.recount(), self.table.digest());
        assert_eq!(self.table.expiring_len(), self.entries.values().flatten().count());
        for (key, deadline) in &self.entries {
            let bytes = key.to_le_bytes();
            let entry = self.table.get(hash_of(&bytes), &bytes).unwrap();
            assert_eq!(entry.deadline, *deadline);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_entry_is_due_at_its_deadline_and_not_before_however_the_clock_is_set(
        steps in prop::collection::vec(step(), 1..500),
    ) {
        let mut model = Model::new();
        for (number, step) in steps.iter().enumerate() {
            model.apply(step);
            if number % 25 == 0 {
                model.check();
            }
        }
        model.settle();
        model.check();
        model.now = WallTime::MAX.millis();
        model.settle();
        for key in model.visit_due(usize::MAX) {
            model.remove(key);
        }
        prop_assert_eq!(model.table.expiring_len(), 0);
        prop_assert_eq!(model.table.next_deadline_work(), None);
        model.check();
    }

    #[test]
    fn a_caller_that_wakes_only_when_there_is_work_finds_every_entry_in_time(
        spans in prop::collection::vec(span(), 1..100),
    ) {
        let mut numbered = Numbered::new();
        numbered.advance(START);
        for (number, span) in (0..).zip(&spans) {
            numbered.put(number, Some(START + 1 + span));
        }
        let (mut now, mut wakes) = (START, 0);
        while let Some(next) = numbered.table.next_deadline_work() {
            prop_assert!(next.millis() > now);
            now = next.millis();
            wakes += 1;
            for number in numbered.due(now) {
                let span = spans[usize::try_from(number).unwrap()];
                prop_assert_eq!(now, time(START + 1 + span).millis());
                numbered.remove(number);
            }
        }
        prop_assert!(wakes <= spans.len() * (LEVELS + 1), "{} wakes", wakes);
        prop_assert_eq!(numbered.table.len(), 0);
    }
}

#[test]
fn a_deadline_takes_exactly_16_bytes() {
    for content in 0..=96 {
        let used = [None, Some(time(START))].map(|deadline| {
            let mut table = small_table();
            let key = vec![1; content / 3];
            let value = vec![2; content - key.len()];
            table.put(hash_of(b""), b"first, for the slots", b"", None, SequenceNumber(1)).unwrap();
            let before = table.used_bytes();
            let with = table.reserved_bytes_with(key.len(), value.len(), deadline);
            table.put(hash_of(&key), &key, &value, deadline, SequenceNumber(2)).unwrap();
            let beyond = with.checked_sub(table.reserved_bytes());
            assert!(beyond.is_some_and(|beyond| beyond < 512), "{beyond:?}");
            table.used_bytes() - before
        });
        assert_eq!(used[1], used[0] + 16, "{content} bytes of content");
    }
}

#[test]
fn a_table_without_deadlines_has_no_wheel() {
    let mut numbered = Numbered::new();
    numbered.put(1, None);
    numbered.advance(START);
    let before = numbered.table.reserved_bytes();
    assert_eq!(numbered.table.deadlines.heap_bytes(), 0);
    numbered.put(1, Some(START));
    let wheel_bytes = numbered.table.reserved_bytes() - before;
    assert!((1..12 << 10).contains(&wheel_bytes), "{wheel_bytes} bytes");
}

#[test]
fn the_digest_includes_the_deadline() {
    let digest = |deadline| {
        let mut numbered = Numbered::new();
        numbered.put(1, deadline);
        assert_eq!(numbered.table.digest(), numbered.table.recount());
        numbered.table.digest()
    };
    let digests = [None, Some(0), Some(1), Some(START), Some(START + 1), Some(u64::MAX)];
    let distinct: HashSet<u64> = digests.into_iter().map(digest).collect();
    assert_eq!(distinct.len(), digests.len());
    assert_eq!(digest(Some(1)), digest(Some(1)));
}

#[test]
fn an_entry_whose_deadline_has_passed_is_due_at_once() {
    let mut numbered = Numbered::new();
    numbered.advance(START);
    numbered.put(1, Some(START));
    numbered.put(2, Some(START + 1));
    let mut due = 0;
    numbered.table.for_due(time(START), 10, |_| due += 1);
    assert_eq!(due, 1, "without an advance");
    assert_eq!(numbered.due(START), [1]);
    assert_eq!(numbered.due(START + 1), [1, 2]);
}

#[test]
fn no_advance_moves_more_than_its_budget_after_a_jump_of_the_clock() {
    for jump in [1, 5_000, DAY, 1_000 * YEAR] {
        let mut numbered = Numbered::new();
        numbered.advance(START);
        for number in 0..10_000 {
            numbered.put(number, Some(START + 1 + number * jump / 10_000));
        }
        let now = time(START + 1 + jump);
        let mut calls = 0;
        loop {
            let before = numbered.table.deadlines.moves;
            let is_more = numbered.table.advance_deadlines(now, 100);
            assert!(numbered.table.deadlines.moves - before <= 100);
            calls += 1;
            if !is_more {
                break;
            }
        }
        assert!(calls <= 100 * (LEVELS + 1), "{calls} calls");
        assert_eq!(numbered.due(now.millis()).len(), 10_000);
        numbered.table.check_deadlines();
    }
}

#[test]
fn a_clock_that_goes_back_delays_entries_and_loses_none() {
    let mut numbered = Numbered::new();
    numbered.advance(START);
    for number in 0..1_000 {
        numbered.put(number, Some(START + 1 + number));
    }
    assert_eq!(numbered.due(START + 500).len(), 500);
    let back = START - DAY;
    assert_eq!(numbered.due(back).len(), 0);
    numbered.put(5_000, Some(back + 10));
    assert_eq!(numbered.due(back + 9).len(), 0);
    assert_eq!(numbered.due(back + 10), [5_000]);
    // The entries that were due are in the wheel again, so they do not hide the others.
    assert_eq!(numbered.table.next_deadline_work(), Some(time(back + 10)));
    numbered.remove(5_000);
    assert!(numbered.table.next_deadline_work().unwrap() > time(back + 10));
    assert_eq!(numbered.due(START).len(), 0);
    assert_eq!(numbered.due(START + 501).len(), 501);
    assert_eq!(numbered.due(START + 2_000).len(), 1_000);
    numbered.table.check_deadlines();
}

#[test]
fn early_entries_do_not_hide_due_ones_beyond_one_pass_of_small_calls() {
    let mut numbered = Numbered::new();
    numbered.advance(START);
    (0..100).for_each(|number| numbered.put(number, Some(START + DAY)));
    assert_eq!(numbered.due(START + DAY).len(), 100);
    numbered.put(1_000, Some(START));
    let mut due = 0;
    for _ in 0..11 {
        numbered.table.for_due(time(START), 10, |_| due += 1);
    }
    assert!(due > 0);
    assert_eq!(numbered.due(START), [1_000]);
}

#[test]
fn lists_follow_entries_that_compaction_moves() {
    let mut numbered =
        Numbered { table: Table::new(Box::new(HeapChunks::new(256 << 10))), version: 0 };
    numbered.advance(START);
    // Groups of 16 entries share a deadline, and every list between them has one entry.
    let deadline =
        |number: u64| START + if number.is_multiple_of(2) { number / 32 } else { 40_000 * number };
    for number in 0..60_000 {
        numbered.put(number, (!number.is_multiple_of(3)).then(|| deadline(number)));
    }
    numbered.advance(START + 100);
    for number in (0..60_000).filter(|number| number % 9 != 1) {
        numbered.remove(number);
    }
    numbered.table.check_deadlines();
    while numbered.table.compact_step(Pressure::Short, SMALL_STEP) {}
    let moved = numbered.table.compaction_counts().moved_bytes;
    assert!(moved > 100_000, "{moved} bytes were moved");
    numbered.table.check_deadlines();
    assert_eq!(numbered.table.digest(), numbered.table.recount());
    assert_eq!(numbered.due(START + 60_000 * 40_000).len(), numbered.table.len());
}

#[test]
fn a_removed_entry_leaves_the_wheel_even_while_it_is_pinned() {
    let mut numbered = Numbered::new();
    numbered.advance(START);
    numbered.put(1, Some(START));
    let key = numbered_key(1);
    let pin = numbered.table.pin(hash_of(&key), &key).unwrap();
    numbered.remove(1);
    assert_eq!((numbered.table.expiring_len(), numbered.due(START).len()), (0, 0));
    assert_eq!(numbered.table.pinned_value(&pin).unwrap(), b"value");
    numbered.table.unpin(pin);
    assert_eq!(numbered.table.used_bytes(), {
        let mut other = Numbered::new();
        other.put(1, None);
        other.remove(1);
        other.table.used_bytes()
    });
}
