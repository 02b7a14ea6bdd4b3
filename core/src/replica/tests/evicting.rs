//! Eviction: by the primary, through the log, and only at the memory limit.

use kv_protocol::Eviction;
use kv_protocol::update::{Action, Expiry, Update};

use super::*;

const LIMIT: u64 = 1 << 20;
const VALUE: [u8; 1_000] = [7; 1_000];
/// More entries than a table within the limit has.
const MANY: usize = 3_000;

impl Pair {
    /// Creates a connected pair with this policy.
    fn evicting(policy: Eviction, limit: u64) -> Pair {
        let mut pair = Pair::apart(Some(limit));
        pair.connect();
        for replica in [&mut pair.primary, &mut pair.secondary] {
            replica.set_eviction(policy);
            replica.note_wall(pair.now, WallTime::from_millis(1_800_000_000_000));
        }
        pair.settle();
        pair
    }

    /// Ends a wake-up, and begins the next one.
    fn wake_up(&mut self) {
        self.primary.on_timeout(self.now, &mut self.inbox);
        self.secondary.on_timeout(self.now, &mut self.inbox);
        self.primary.keep_headroom(self.now, &mut self.inbox);
        self.secondary.keep_headroom(self.now, &mut self.inbox);
        self.settle();
        self.now = self.now + Duration::from_micros(100);
    }

    /// Puts a value in a wake-up of its own, and returns the status of the response.
    fn put_in_turn(&mut self, key: &str, value: &[u8]) -> Status {
        let put = self.put(key.as_bytes(), value);
        self.wake_up();
        self.status(put).unwrap()
    }

    /// Puts a value, and repeats the put while it is rejected with BUSY. Returns the last status and the number of
    /// rejections.
    fn put_with_retries(&mut self, key: &str, value: &[u8]) -> (Status, usize) {
        for busy in 0..10_000 {
            match self.put_in_turn(key, value) {
                Status::Busy => {}
                status => return (status, busy),
            }
        }
        let table = &self.primary.table;
        let (used, reserved) = (table.used_bytes(), table.reserved_bytes());
        panic!(
            "the write never found room: {used} used, {reserved} reserved, {} entries, {} excess, {:?}, room {:?} {:?}",
            table.len(),
            self.primary.excess(),
            self.primary.evictions,
            table.room(self.primary.memory_for_entries().unwrap(), 8, value.len(), None),
            table.wants_compaction(crate::table::Pressure::Short),
        );
    }

    fn put_until(&mut self, key: &str, deadline_after: u64) -> Status {
        let expiry = Expiry::After(deadline_after);
        let put = Update { expiry, ..Update::new(Action::Put(&VALUE)) };
        let id = self.update(key.as_bytes(), &[put]);
        self.wake_up();
        self.status(id).unwrap()
    }

    /// Counts a use of a key, as a shard does for a read that finds it.
    fn use_key(&mut self, key: &str) -> bool {
        let hash = self.primary.hash_of(Digest::of(key.as_bytes()), key.as_bytes());
        let is_found = self.get(key.as_bytes()).status == Status::Ok;
        if is_found {
            self.primary.note_use(hash);
        }
        is_found
    }
}

#[test]
fn far_beyond_the_limit_every_write_succeeds_and_both_copies_are_equal() {
    let mut pair = Pair::evicting(Eviction::Lfu, LIMIT);
    for n in 0..MANY {
        assert_eq!(pair.put_in_turn(&format!("key-{n}"), &VALUE), Status::Ok, "write {n}");
        assert!(pair.primary.table.used_bytes() as u64 <= LIMIT);
    }
    let kept = contents(&pair.primary).len();
    assert!((800..1_000).contains(&kept), "{kept} entries of 1,000 bytes in a MiB");
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
    let RemovalCounts { evicted, expired } = pair.primary.removal_counts();
    assert_eq!((evicted, expired), ((MANY - kept) as u64, 0));
    assert_eq!(pair.secondary.removal_counts(), RemovalCounts::default());
}

#[test]
fn frequently_used_keys_stay() {
    let mut pair = Pair::evicting(Eviction::Lfu, LIMIT);
    let hot = |n: usize| format!("hot-{}", n % 100);
    for n in 0..MANY {
        if n < 100 {
            assert_eq!(pair.put_in_turn(&hot(n), &VALUE), Status::Ok);
        }
        // Frequencies are counted once the table is half full.
        assert!(
            !(100..=1_000).contains(&n) || pair.use_key(&hot(n)),
            "a key was evicted too early"
        );
        pair.use_key(&hot(n));
        pair.use_key(&hot(n * 7));
        assert_eq!(pair.put_in_turn(&format!("cold-{n}"), &VALUE), Status::Ok);
    }
    let left = (0..100).filter(|&n| pair.get(hot(n).as_bytes()).status == Status::Ok).count();
    assert!(left >= 98, "{left} of 100 keys are left");
}

#[test]
fn the_entries_with_the_nearest_deadlines_are_evicted_and_others_never() {
    let mut pair = Pair::evicting(Eviction::Ttl, LIMIT / 2);
    for n in 0..100 {
        assert_eq!(pair.put_in_turn(&format!("forever-{n}"), &VALUE), Status::Ok);
    }
    // Later keys have nearer deadlines, all within the ring of exact slots.
    for n in 0..900 {
        assert_eq!(pair.put_until(&format!("key-{n}"), 1_000 - n), Status::Ok, "write {n}");
    }
    let kept: Vec<u64> = contents(&pair.primary)
        .keys()
        .filter_map(|key| std::str::from_utf8(key).unwrap().strip_prefix("key-")?.parse().ok())
        .collect();
    let oldest = (0..900).take_while(|n| kept.contains(n)).count();
    assert!(oldest >= kept.len() - 2, "{} kept, the {oldest} with the last deadlines", kept.len());
    let forever = contents(&pair.primary).keys().filter(|key| key.starts_with(b"forever")).count();
    assert_eq!(forever, 100);
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn far_deadlines_are_evicted_nearest_first_by_a_wide_margin() {
    let mut pair = Pair::evicting(Eviction::Ttl, LIMIT);
    let hour = 3_600_000;
    // Deadlines from one to eleven hours ahead, in a pseudo-random order.
    let hours = |n: u64| 1 + n.wrapping_mul(7_919) % 11;
    for n in 0..3_000 {
        assert_eq!(pair.put_until(&format!("key-{n}"), hours(n) * hour), Status::Ok, "write {n}");
    }
    let kept = contents(&pair.primary);
    let of = |from, to| {
        (0..3_000_u64)
            .filter(|&n| (from..=to).contains(&hours(n)))
            .filter(|n| kept.contains_key(format!("key-{n}").as_bytes()))
            .count()
    };
    let (near, far) = (of(1, 4), of(8, 11));
    assert!(near * 20 < far, "{near} of the nearest deadlines are left, and {far} of the farthest");
}

#[test]
fn without_evictable_entries_a_write_is_out_of_space() {
    for policy in [Eviction::None, Eviction::Ttl] {
        let mut pair = Pair::evicting(policy, LIMIT);
        let refused = (0..MANY).map(|n| pair.put_in_turn(&format!("key-{n}"), &VALUE));
        assert_eq!(refused.last(), Some(Status::OutOfSpace), "{policy}");
        assert_eq!(pair.primary.removal_counts(), RemovalCounts::default());
        assert!(contents(&pair.primary).len() > 900);
        assert_eq!(pair.primary.next_eviction(), None);
    }
}

#[test]
fn a_value_that_exceeds_the_limit_alone_evicts_nothing() {
    let mut pair = Pair::evicting(Eviction::Lfu, 8 << 20);
    for n in 0..MANY {
        assert_eq!(pair.put_in_turn(&format!("key-{n}"), &VALUE), Status::Ok);
    }
    assert_eq!(pair.put_in_turn("huge", &vec![0; 8 << 20]), Status::OutOfSpace);
    assert_eq!(pair.primary.removal_counts().evicted, 0);
}

#[test]
fn a_huge_value_is_busy_until_it_fits() {
    let mut pair = Pair::evicting(Eviction::Lfu, 16 << 20);
    // Keys of one length, so that all entries are of one size class.
    let filled = (10_000..30_000).map(|n| pair.put_with_retries(&format!("key-{n}"), &VALUE).1);
    let busy: Vec<usize> = filled.filter(|busy| *busy > 0).collect();
    assert!(busy.len() < 10, "{busy:?} rejections");
    // One write may wait until so much is evicted that compaction empties a chunk of this small table.
    assert!(busy.iter().all(|busy| *busy < 300), "{busy:?} rejections");
    let (status, busy) = pair.put_with_retries("huge", &vec![1; 8 << 20]);
    assert_eq!(status, Status::Ok);
    assert!((10..300).contains(&busy), "{busy} rejections for 8,000 entries");
    assert_eq!(pair.get(b"huge").value.len(), 8 << 20);
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
    // Afterwards small values fit at once again.
    let again = (30_000..31_000).map(|n| pair.put_with_retries(&format!("key-{n}"), &VALUE).1);
    let busy: usize = again.sum();
    assert!(busy < 20, "{busy} rejections");
}

#[test]
fn values_of_changing_lengths_find_room_through_compaction() {
    let mut pair = Pair::evicting(Eviction::Lfu, 16 << 20);
    let mut busy = 0;
    for n in 0..60_000_usize {
        // The lengths grow in steps, so that freed memory of one length does not suit the next.
        let value = vec![3; 100 + (n / 6_000) * 157 + n * 31 % 97];
        let (status, rejections) = pair.put_with_retries(&format!("key-{n}"), &value);
        assert_eq!(status, Status::Ok, "write {n}");
        busy += rejections;
    }
    assert!(busy < 3_000, "{busy} rejections of 60,000 writes");
    assert_eq!(contents(&pair.primary).len(), contents(&pair.secondary).len());
}

#[test]
fn one_wake_up_removes_a_bounded_number_of_entries() {
    let mut pair = Pair::evicting(Eviction::Lfu, 8 << 20);
    for n in 0..60_000 {
        pair.put_in_turn(&format!("key-{n}"), b"short");
    }
    pair.primary.set_memory_limit(Some(1 << 20));
    let mut before = pair.primary.table.len();
    let mut steps = 0;
    while pair.primary.next_eviction().is_some() {
        pair.wake_up();
        let now = pair.primary.table.len();
        assert!(now < before && before - now <= 256, "{} entries in one wake-up", before - now);
        before = now;
        steps += 1;
    }
    assert!(steps > 10 && pair.primary.table.used_bytes() <= 1 << 20);
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn a_sole_primary_evicts_and_its_writes_fit_at_once() {
    let mut pair = Pair::apart(Some(LIMIT));
    let alone = View { peer: Peer::None, version: ViewVersion(2), ..view(2) };
    pair.primary.install(pair.now, alone, &mut pair.inbox).unwrap();
    pair.primary.set_eviction(Eviction::Lfu);
    for n in 0..MANY {
        let put = pair.put(format!("key-{n}").as_bytes(), &VALUE);
        assert_eq!(pair.status(put), Some(Status::Ok));
        pair.now = pair.now + Duration::from_micros(10);
    }
}

#[test]
fn a_secondary_and_a_draining_primary_evict_nothing() {
    let mut pair = Pair::evicting(Eviction::Lfu, LIMIT);
    for n in 0..900 {
        pair.put_in_turn(&format!("key-{n}"), &VALUE);
    }
    let count = contents(&pair.primary).len();
    for replica in [&mut pair.primary, &mut pair.secondary] {
        replica.set_memory_limit(Some(LIMIT / 2));
    }
    pair.primary.drain();
    pair.wake_up();
    pair.wake_up();
    assert_eq!(contents(&pair.primary).len(), count);
    assert_eq!(contents(&pair.secondary).len(), count);
}

#[test]
fn entries_with_pending_changes_are_not_evicted_twice() {
    let mut pair = Pair::evicting(Eviction::Lfu, 400_000);
    // No ack is delivered: every entry has a pending change, or is being removed once.
    for n in 0..300 {
        pair.put(format!("key-{n}").as_bytes(), &VALUE);
        pair.primary.keep_headroom(pair.now, &mut pair.inbox);
        pair.now = pair.now + Duration::from_micros(10);
    }
    pair.settle();
    for _ in 0..4 {
        pair.wake_up();
    }
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

/// A write is decided from the state before its evictions. If they removed the entry that it depends on, the decision
/// would be wrong.
#[test]
fn a_write_never_depends_on_an_entry_that_it_has_evicted() {
    let mut pair = Pair::apart(Some(16 << 20));
    pair.primary.set_eviction(Eviction::Lfu);
    pair.primary.note_wall(pair.now, WallTime::from_millis(1_800_000_000_000));
    let alone = View { version: ViewVersion(2), peer: Peer::None, ..view(1) };
    pair.primary.install(pair.now, alone, &mut pair.inbox).unwrap();
    let part = vec![1; 7 << 20];
    let put = pair.put(b"k", &part);
    assert_eq!(pair.status(put), Some(Status::Ok), "a sole holder commits at once");
    // Both values together exceed the limit, so the entry itself has to make room.
    for _ in 0..100 {
        let id = pair.update(b"k", &[Update::new(Action::Append(&part))]);
        pair.primary.keep_headroom(pair.now, &mut pair.inbox);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
        pair.now = pair.now + Duration::from_millis(1);
        let given = pair.given(id).unwrap();
        if given.status != Status::Busy {
            assert_eq!(given.status, Status::Ok);
            let is_evicted = pair.primary.removal_counts().evicted > 0;
            assert!(is_evicted, "the entry had to make room");
            assert_eq!(given.value, part.len().to_string().into_bytes());
            return;
        }
    }
    panic!("the write never found room");
}
