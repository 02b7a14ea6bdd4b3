//! Expiry: by the primary's clock, through the log, and never visible again.

use kv_protocol::update::{Action, Expiry, Precondition, Update};

use super::*;
use crate::replica::expiry;

const WALL: u64 = 1_800_000_000_000;
const SECOND: Duration = Duration::from_secs(1);

impl Pair {
    /// Creates a connected pair with a wall clock.
    fn with_wall() -> Pair {
        let mut pair = Pair::new();
        pair.set_wall(WALL);
        pair
    }

    fn set_wall(&mut self, millis: u64) {
        self.primary.note_wall(self.now, WallTime::from_millis(millis));
        self.secondary.note_wall(self.now, WallTime::from_millis(millis));
    }

    /// Advances the time and performs the timed work of both replicas.
    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.settle();
        for _ in 0..8 {
            self.primary.on_timeout(self.now, &mut self.inbox);
            self.secondary.on_timeout(self.now, &mut self.inbox);
            self.settle();
            self.now = self.now + Duration::from_millis(1);
        }
        // Keeps the lease.
        self.settle();
    }

    fn put_for(&mut self, key: &[u8], value: &[u8], millis: u64) -> Given {
        let put = Update { expiry: Expiry::After(millis), ..Update::new(Action::Put(value)) };
        self.updated(key, &[put])
    }

    fn deadline_of(&mut self, key: &[u8]) -> Option<u64> {
        let part = Part { with_deadline: true, all_or_nothing: true, ..Part::new(0, 0) };
        let id = self.request(key, Operation::GetPart(part));
        self.given(id).unwrap().deadline.map(WallTime::millis)
    }
}

#[test]
fn an_entry_expires_at_both_holders_at_its_deadline() {
    let mut pair = Pair::with_wall();
    pair.put_for(b"k", b"v", 5_000);
    pair.put(b"stays", b"v");
    pair.settle();
    assert_eq!(pair.deadline_of(b"k"), Some(WALL + 5_000));
    pair.pass(4 * SECOND);
    assert_eq!(pair.get(b"k").value, b"v");
    pair.pass(2 * SECOND);
    assert_eq!(contents(&pair.primary).len(), 1);
    assert_eq!(contents(&pair.secondary).len(), 1);
    assert_eq!(pair.get(b"k").status, Status::NotFound);
    assert_eq!(pair.primary.content(), pair.secondary.content());
}

#[test]
fn a_read_of_an_expired_entry_gets_not_found_only_once_its_removal_is_committed() {
    let mut pair = Pair::with_wall();
    pair.put_for(b"k", b"v", 200);
    pair.now = pair.now + Duration::from_millis(250);
    let first = pair.request(b"k", Operation::Get);
    let second = pair.request(b"k", Operation::Get);
    assert_eq!((pair.status(first), pair.status(second)), (None, None));
    assert_eq!(contents(&pair.primary).len(), 1, "the removal is not committed");
    pair.settle();
    assert_eq!(pair.status(first), Some(Status::NotFound));
    assert_eq!(pair.status(second), Some(Status::NotFound));
    assert_eq!(contents(&pair.secondary).len(), 0);
}

#[test]
fn writes_treat_an_expired_entry_as_absent_and_remove_it_if_they_show_that() {
    for (action, condition, status) in [
        (Action::Delete, Precondition::None, Status::NotFound),
        (Action::Put(b"w"), Precondition::Present, Status::Conflict),
        (Action::SetExpiry, Precondition::None, Status::NotFound),
        (Action::Check, Precondition::None, Status::NotFound),
        (Action::Check, Precondition::Absent, Status::Ok),
    ] {
        let mut pair = Pair::with_wall();
        pair.put_for(b"k", b"v", 200);
        pair.now = pair.now + Duration::from_millis(250);
        let given = pair.updated(b"k", &[Update { condition, ..Update::new(action) }]);
        assert_eq!(given.status, status, "{action:?} {condition:?}");
        assert_eq!(contents(&pair.primary).len(), 0, "{action:?} {condition:?}");
        assert_eq!(contents(&pair.secondary).len(), 0, "{action:?} {condition:?}");
    }
    let mut pair = Pair::with_wall();
    pair.put_for(b"k", b"41", 200);
    pair.now = pair.now + Duration::from_millis(250);
    assert_eq!(pair.updated(b"k", &[Update::new(Action::Add(1))]).value, b"1");
    assert_eq!(pair.deadline_of(b"k"), None, "the new entry has no deadline");
    let id = {
        pair.put_for(b"d", b"v", 200);
        pair.now = pair.now + Duration::from_millis(250);
        pair.delete(b"d")
    };
    pair.settle();
    assert_eq!(pair.status(id), Some(Status::NotFound));
    assert_eq!(contents(&pair.secondary).len(), 1);
    let absent = pair.put_if(b"d", b"w", Condition::IfAbsent);
    pair.settle();
    assert_eq!(pair.status(absent), Some(Status::Ok));
}

#[test]
fn an_entry_seen_as_expired_stays_away_when_a_server_with_a_slow_clock_takes_over() {
    let mut pair = Pair::with_wall();
    pair.put_for(b"k", b"v", 200);
    pair.secondary.note_wall(pair.now, WallTime::from_millis(WALL - 60_000));
    pair.now = pair.now + Duration::from_millis(250);
    let read = pair.request(b"k", Operation::Get);
    pair.settle();
    assert_eq!(pair.status(read), Some(Status::NotFound));
    let alone =
        View { version: ViewVersion(2), primary: Some(member(1)), peer: Peer::None, ..view(1) };
    pair.secondary.install(pair.now, alone, &mut pair.inbox).unwrap();
    assert_eq!(contents(&pair.secondary).len(), 0);
}

#[test]
fn the_secondary_removes_nothing_by_its_own_clock() {
    let mut pair = Pair::with_wall();
    pair.put_for(b"k", b"v", 200);
    pair.secondary.note_wall(pair.now, WallTime::from_millis(WALL + 60_000));
    pair.secondary.on_timeout(pair.now + SECOND, &mut pair.inbox);
    assert_eq!(contents(&pair.secondary).len(), 1);
}

#[test]
fn deadlines_change_by_their_conditions() {
    let mut pair = Pair::with_wall();
    pair.put(b"k", b"v");
    pair.settle();
    let after = |millis, condition| Update {
        expiry: Expiry::After(millis),
        condition,
        ..Update::new(Action::SetExpiry)
    };
    for (millis, condition, status, deadline) in [
        (9_000, Precondition::HasDeadline, Status::Conflict, None),
        (9_000, Precondition::Later, Status::Conflict, None),
        (9_000, Precondition::NoDeadline, Status::Ok, Some(9_000)),
        (8_000, Precondition::NoDeadline, Status::Conflict, Some(9_000)),
        (8_000, Precondition::Later, Status::Conflict, Some(9_000)),
        (8_000, Precondition::Earlier, Status::Ok, Some(8_000)),
        (9_500, Precondition::Earlier, Status::Conflict, Some(8_000)),
        (9_500, Precondition::HasDeadline, Status::Ok, Some(9_500)),
    ] {
        let given = pair.updated(b"k", &[after(millis, condition)]);
        assert_eq!(given.status, status, "{millis} {condition:?}");
        assert_eq!(pair.deadline_of(b"k"), deadline.map(|millis: u64| WALL + millis));
    }
    let persist = Update { expiry: Expiry::Never, ..Update::new(Action::SetExpiry) };
    assert_eq!(pair.updated(b"k", &[persist]).status, Status::Ok);
    assert_eq!(pair.deadline_of(b"k"), None);
    let past = Update { expiry: Expiry::At(WallTime::from_millis(1)), ..persist };
    assert_eq!(pair.updated(b"k", &[past]).status, Status::Ok);
    assert_eq!(pair.get(b"k").status, Status::NotFound);
    assert_eq!(pair.primary.content(), pair.secondary.content());
}

#[test]
fn many_entries_expire_in_bounded_writes() {
    let mut pair = Pair::with_wall();
    for n in 0..3_000u32 {
        pair.put_for(&n.to_le_bytes(), b"v", 1_000 + u64::from(n % 100));
    }
    pair.pass(SECOND / 2);
    assert_eq!(contents(&pair.primary).len(), 3_000);
    let before = pair.primary.progress().1.0;
    pair.pass(SECOND);
    pair.pass(SECOND / 10);
    assert_eq!(contents(&pair.primary).len(), 0);
    assert_eq!(contents(&pair.secondary).len(), 0);
    let writes = pair.primary.progress().1.0 - before;
    assert!((6..20).contains(&writes), "{writes} writes");
}

#[test]
fn two_writes_that_remove_expired_entries_are_in_flight_and_remove_different_ones() {
    let mut pair = Pair::with_wall();
    for n in 0..3_000u32 {
        pair.put_for(&n.to_le_bytes(), b"v", 1_000);
    }
    pair.settle();
    pair.now = pair.now + 2 * SECOND;
    let in_flight = |pair: &Pair| {
        let (last, committed) = pair.primary.progress();
        last.0 - committed.0
    };
    assert_eq!(in_flight(&pair), 0);
    // The search for expired entries takes several steps.
    for _ in 0..50 {
        pair.now = pair.now + Duration::from_millis(1);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
    }
    assert_eq!(in_flight(&pair), 2, "without an ack");
    pair.settle();
    assert_eq!(in_flight(&pair), 0);
    assert_eq!(contents(&pair.primary).len(), 3_000 - 2 * expiry::REMOVALS_MAX);
    assert_eq!(pair.primary.content(), pair.secondary.content());
}
