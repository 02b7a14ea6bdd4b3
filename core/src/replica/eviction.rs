//! Eviction: the removal of entries by the primary to make room for writes, if the cluster has a policy for it
//! (`--eviction`).
//!
//! ```text
//!   limit            | used bytes
//!   - - - - - - - -  |  a write that finds no room: BUSY, and removals until it fits
//!       headroom     |  end of a wake-up: UPKEEP (removals) -> log -> committed: the memory is free
//!   - - - - - - - -  |
//!                    |  nothing is removed
//! ```
//!
//! Only the primary chooses entries, and their removal is a write. So all replicas have the same entries. Memory is free
//! once the removal is committed. The headroom is the memory that writes use meanwhile, so most writes fit at once.
//!
//! - `lfu`: the least frequently used of a few random entries. The frequencies are in a sketch
//!   ([`FrequencySketch`](crate::frequency::FrequencySketch)), which a primary has from the time at which its table is
//!   half full. A new primary begins with no frequencies.
//! - `ttl`: the entries with the nearest deadlines. Entries without a deadline stay.
//!
//! One write with removals is in flight at a time, and it removes a bounded number of entries.

use std::time::Duration;

use kv_protocol::Eviction;
use kv_protocol::ids::{SequenceNumber, Time, WallTime};
use kv_protocol::limits::BATCH_TARGET_BYTES;
use kv_protocol::placement::Digest;

use super::pending::More;
use super::{Replica, Responses, Role};
use crate::frequency::FrequencySketch;
use crate::hash::{HashSecret, mix};
use crate::mutations::{self, Mutation};
use crate::table::{Room, Table, TableHash};

/// The maximum number of entries that one write removes. Their choice and their commit take about 200 microseconds.
const REMOVALS_MAX: usize = 256;
/// The number of entries of which the least frequently used one is removed.
const SAMPLE: usize = 16;
/// For each removed entry, the number of entries whose deadlines are compared.
const COMPARED_PER_REMOVAL: usize = 8;
/// The maximum number of entries whose deadlines are compared for one write.
const COMPARED_MAX: usize = 1_024;
/// The headroom as a divisor of the limit.
const HEADROOM_DIVISOR: u64 = 64;
const HEADROOM_MIN: u64 = 64 << 10;
/// The headroom is never more than this part of the limit, as a divisor.
const HEADROOM_MOST_DIVISOR: u64 = 8;
/// The interval at which a learned capacity is raised by the headroom.
const CAPACITY_RAISED_EVERY: Duration = Duration::from_secs(10);
/// The time for which removals continue for a write that found no room and was not repeated.
const WANTED_LASTS: Duration = Duration::from_secs(1);
/// The interval of removals outside of wake-ups with other work.
const EVICTION_INTERVAL: Duration = Duration::from_millis(1);
/// The part of the limit (as a divisor) from which on frequencies are counted.
const COUNTED_FROM: u64 = 2;

/// The lengths of an entry, or the total lengths of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) deadline: Option<WallTime>,
}

impl Lengths {
    fn bytes(self) -> usize {
        self.key + self.value
    }
}

/// The result of an eviction for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evicted {
    /// This is the room after all that can be done.
    ForRoom(Room),
    /// Entries were or are being removed: the write must be repeated.
    Soon,
}

/// The numbers of entries that a primary has removed by itself since the start of its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemovalCounts {
    /// The number of entries that were removed to make room.
    pub evicted: u64,
    /// The number of entries that were removed because they had expired.
    pub expired: u64,
}

/// A write that found no room.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    lengths: Lengths,
    until: Time,
}

/// The bytes in use at which a write found no room although they were below the limit: the free memory was in gaps of
/// other sizes. Below this level, writes find room. Each further write without room lowers the level, until so much
/// memory is in gaps that compaction turns them into free chunks.
#[derive(Clone, Copy, Debug)]
struct Capacity {
    bytes: u64,
    /// The time at which the level was lowered or raised.
    since: Time,
}

/// The state of evictions.
#[derive(Debug)]
pub(super) struct Evictions {
    policy: Eviction,
    sketch: Option<Box<FrequencySketch>>,
    /// The state of the pseudo-random numbers (SplitMix64).
    random: u64,
    /// The last write that evicts entries.
    logged: SequenceNumber,
    /// The time of the last step.
    stepped: Option<Time>,
    /// The largest write that found no room.
    wanted: Option<Wanted>,
    /// The learned capacity, if it is less than the limit.
    capacity: Option<Capacity>,
    evicted: u64,
}

impl Evictions {
    pub(super) fn new(secret: HashSecret) -> Evictions {
        Evictions {
            policy: Eviction::None,
            sketch: None,
            random: secret.of_key(Digest([0; 16]), b"eviction").0,
            logged: SequenceNumber::ZERO,
            stepped: None,
            wanted: None,
            capacity: None,
            evicted: 0,
        }
    }

    /// Records that the log of the replica was replaced.
    pub(super) fn note_new_log(&mut self) {
        (self.logged, self.wanted) = (SequenceNumber::ZERO, None);
    }

    /// Records that a write has found room, so that nothing more is evicted for it.
    #[inline]
    pub(super) fn note_fits(&mut self, lengths: Lengths) {
        if let Some(wanted) = self.wanted
            && lengths.bytes() >= wanted.lengths.bytes()
        {
            self.wanted = None;
        }
    }

    /// Returns whether the free memory of the table is in gaps.
    pub(super) fn is_fragmented(&self) -> bool {
        self.capacity.is_some()
    }

    /// Returns the memory of the sketch, which is a part of the memory limit.
    pub(super) fn heap_bytes(&self) -> u64 {
        self.sketch.as_ref().map_or(0, |sketch| sketch.heap_bytes() as u64)
    }

    fn next_random(&mut self) -> TableHash {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        TableHash(mix(self.random))
    }

    /// Forgets a write that was not repeated, and raises the learned capacity.
    fn forget_past(&mut self, now: Time, limit: u64) {
        self.wanted = self.wanted.filter(|wanted| wanted.until > now);
        if let Some(capacity) = &mut self.capacity
            && now.since(capacity.since) >= CAPACITY_RAISED_EVERY
        {
            *capacity = Capacity { bytes: capacity.bytes + headroom(limit), since: now };
        }
        self.capacity = self.capacity.filter(|capacity| capacity.bytes < limit);
    }
}

impl Replica {
    /// Sets the policy of eviction.
    pub fn set_eviction(&mut self, policy: Eviction) {
        if self.evictions.policy != policy {
            self.evictions.policy = policy;
            self.evictions.sketch = None;
            self.evictions.capacity = None;
        }
    }

    /// Counts a use of a key by a read that found it, or by a write. Does nothing unless frequencies are needed.
    #[inline]
    pub fn note_use(&mut self, hash: TableHash) {
        if let Some(sketch) = &mut self.evictions.sketch {
            sketch.count(hash.bits());
        }
    }

    /// Returns the numbers of entries that this replica has removed by itself.
    pub fn removal_counts(&self) -> RemovalCounts {
        RemovalCounts { evicted: self.evictions.evicted, expired: self.upkeep.expired }
    }

    /// Returns whether entries are evicted at the memory limit.
    pub(super) fn evicts(&self) -> bool {
        self.evictions.policy != Eviction::None
    }

    /// Evicts entries if the memory in use is close to the limit, within the bounds of one step. The caller must call
    /// this function at the end of every wake-up, before [`Replica::pump`].
    #[inline]
    pub fn keep_headroom(&mut self, now: Time, responses: &mut impl Responses) {
        if self.evicts() {
            self.evict_excess(now, responses);
        }
    }

    /// Returns the time of the next eviction that is due without a write; `None` if nothing is to be evicted.
    pub(super) fn next_eviction(&self) -> Option<Time> {
        if !self.evicts() || !self.may_evict() || self.excess() == 0 || !self.has_evictable() {
            return None;
        }
        Some(self.evictions.stepped.map_or(Time::default(), |last| last + EVICTION_INTERVAL))
    }

    #[inline(never)]
    fn evict_excess(&mut self, now: Time, responses: &mut impl Responses) {
        let Some(limit) = self.memory_for_entries() else { return };
        self.evictions.forget_past(now, limit);
        self.keep_sketch();
        if mutations::is_open(Mutation::EvictedBySecondary)
            && matches!(self.role, Role::Secondary(_))
        {
            return self.drop_excess();
        }
        self.evict_step(now, responses);
    }

    /// Makes room for a write that finds none, as far as one step can. The removals continue in later wake-ups.
    #[cold]
    pub(super) fn evict_for(
        &mut self,
        now: Time,
        lengths: Lengths,
        responses: &mut impl Responses,
    ) -> Evicted {
        let Some(limit) = self.memory_for_entries() else { return Evicted::ForRoom(Room::Fits) };
        if !self.table.fits_alone(limit, lengths.key, lengths.value) {
            return Evicted::ForRoom(Room::Full);
        }
        self.evictions.forget_past(now, limit);
        // Another write that was rejected may need more.
        let other = self.evictions.wanted.map(|wanted| wanted.lengths).filter(|other| {
            other.bytes() > lengths.bytes() && self.room(limit, *other) == Room::Full
        });
        let (lengths_wanted, until) = (other.unwrap_or(lengths), now + WANTED_LASTS);
        self.evictions.wanted = Some(Wanted { lengths: lengths_wanted, until });
        if self.room(limit, lengths) == Room::Full && !self.is_evicting() && self.excess() == 0 {
            let used = self.table.used_bytes() as u64;
            self.evictions.capacity = Some(Capacity { bytes: used, since: now });
        }
        let before = self.evictions.logged;
        self.evict_step(now, responses);
        // The write was decided from the state before these removals, and may depend on a removed entry. So it is decided
        // again, even if a sole holder has freed the memory already.
        if self.evictions.logged != before {
            return Evicted::Soon;
        }
        match self.make_room(now, lengths) {
            Room::Full if self.is_evicting() || self.has_evictable() => Evicted::Soon,
            room => Evicted::ForRoom(room),
        }
    }

    /// Returns whether there are entries that the policy may evict.
    fn has_evictable(&self) -> bool {
        match self.evictions.policy {
            Eviction::None => false,
            Eviction::Lfu => self.table.len() + self.table.staged_len() > 0,
            Eviction::Ttl => self.table.expiring_len() > 0,
        }
    }

    /// Returns whether a write with removals is not committed yet.
    pub(super) fn is_evicting(&self) -> bool {
        self.primary().is_some_and(|p| self.evictions.logged > p.sender.log.committed())
    }

    /// Returns whether this replica may decide an eviction now.
    fn may_evict(&self) -> bool {
        let is_active = self.primary().is_some_and(|primary| primary.is_active());
        is_active && !self.draining && !self.frozen && !self.is_evicting()
    }

    /// Creates, enlarges or drops the sketch.
    fn keep_sketch(&mut self) {
        let is_used = self.evictions.policy == Eviction::Lfu && self.primary().is_some();
        let Some(limit) = self.config.memory_limit.filter(|_| is_used) else {
            self.evictions.sketch = None;
            return;
        };
        let keys = self.table.len();
        match &mut self.evictions.sketch {
            Some(sketch) => sketch.grow_for(keys),
            None => {
                let used = self.table.used_bytes() as u64;
                if keys > 0 && used >= limit / COUNTED_FROM {
                    // The number of entries of a full table, if the others are as long.
                    let full = u128::from(limit) * keys as u128 / u128::from(used);
                    let sketch = FrequencySketch::for_keys(usize::try_from(full).unwrap_or(keys));
                    self.evictions.sketch = Some(Box::new(sketch));
                }
            }
        }
    }

    /// Returns the number of bytes to free: what exceeds the capacity less the headroom, and what the largest write that
    /// found no room lacks.
    pub(super) fn excess(&self) -> u64 {
        let Some(limit) = self.memory_for_entries() else { return 0 };
        let used = self.table.used_bytes() as u64;
        let capacity = self.evictions.capacity.map_or(limit, |capacity| capacity.bytes.min(limit));
        let excess = used.saturating_sub(capacity.saturating_sub(headroom(limit)));
        let Some(Wanted { lengths, .. }) = self.evictions.wanted else { return excess };
        match self.room(limit, lengths) {
            Room::Fits | Room::Compacting => excess,
            Room::Full => excess.max((used + lengths.bytes() as u64).saturating_sub(limit)),
        }
    }

    fn room(&self, limit: u64, Lengths { key, value, deadline }: Lengths) -> Room {
        self.table.room(limit, key, value, deadline)
    }

    /// Evicts entries in one write, if none is in flight, and at most once per wake-up.
    fn evict_step(&mut self, now: Time, responses: &mut impl Responses) {
        if !self.may_evict() || self.evictions.stepped == Some(now) {
            return;
        }
        let excess = self.excess();
        if excess == 0 {
            return;
        }
        self.evictions.stepped = Some(now);
        let mut more = Box::<More>::default();
        match self.evictions.policy {
            Eviction::None => {}
            Eviction::Lfu => self.choose_by_frequency(excess, &mut more),
            Eviction::Ttl => self.choose_by_deadline(excess, &mut more),
        };
        let removed = more.changes.len() as u64;
        if let Some(logged) = self.log_removals(more, responses) {
            self.evictions.logged = logged;
            self.evictions.evicted += removed;
        }
    }

    /// Adds the removal of a key, unless a pending write or `more` changes the key already. Returns whether it was
    /// added.
    fn add_eviction(&self, more: &mut More, key: &[u8]) -> bool {
        let digest = Digest::of(key);
        let hash = self.hash_of(digest, key);
        let is_pending = self.primary().is_some_and(|primary| {
            primary.sender.log.newest_change(&self.table, hash, key).is_some()
        });
        // Two keys with one hash are so rare that one of them may stay.
        if is_pending || more.changes.iter().any(|change| change.hash == hash) {
            return false;
        }
        more.remove(digest, hash, key);
        true
    }

    /// Adds the removal of entries that are seldom used, until they free this number of bytes.
    fn choose_by_frequency(&mut self, bytes: u64, more: &mut More) {
        let mut freed = 0;
        // A choice may be in vain, because the entry has a pending change.
        for _ in 0..2 * REMOVALS_MAX {
            if freed >= bytes || is_full(more) {
                break;
            }
            let from = self.evictions.next_random();
            let sketch = self.evictions.sketch.as_deref();
            let rank = |hash| sketch.map_or(0, |sketch| sketch.estimate(hash));
            let Some(entry) = self.table.lowest_from(from, SAMPLE, rank) else { break };
            if self.add_eviction(more, entry.key) {
                freed += Table::entry_bytes(&entry) as u64;
            }
        }
    }

    /// Adds the removal of the entries with the nearest deadlines, until they free this number of bytes.
    fn choose_by_deadline(&mut self, bytes: u64, more: &mut More) {
        let average = (self.table.content_bytes() / self.table.len().max(1)).max(1);
        let needed = usize::try_from(bytes).unwrap_or(usize::MAX) / average + 1;
        let compared = needed.saturating_mul(COMPARED_PER_REMOVAL).clamp(SAMPLE, COMPARED_MAX);
        let mut nearest: Vec<(Option<WallTime>, Box<[u8]>, usize)> = Vec::new();
        let mut key_bytes = 0;
        self.table.nearest_deadlines(compared, |entry| {
            if key_bytes < BATCH_TARGET_BYTES {
                key_bytes += entry.key.len();
                nearest.push((entry.deadline, entry.key.into(), Table::entry_bytes(&entry)));
            }
        });
        nearest.sort_unstable_by_key(|(deadline, ..)| *deadline);
        let mut freed = 0;
        for (_, key, entry_bytes) in nearest {
            if freed >= bytes || is_full(more) {
                break;
            }
            if self.add_eviction(more, &key) {
                freed += entry_bytes as u64;
            }
        }
    }

    /// Evicts entries without a write; only for a mutation.
    fn drop_excess(&mut self) {
        while self.excess() > 0 {
            let from = self.evictions.next_random();
            let Some(entry) = self.table.lowest_from(from, SAMPLE, |_| 0) else { return };
            let key: Box<[u8]> = entry.key.into();
            let hash = self.hash_of(Digest::of(&key), &key);
            self.table.remove(hash, &key);
        }
    }
}

/// Returns the memory that evictions keep free under a limit.
fn headroom(limit: u64) -> u64 {
    (limit / HEADROOM_DIVISOR).max(HEADROOM_MIN).min(limit / HEADROOM_MOST_DIVISOR)
}

/// Returns whether a write has the maximum number of removals.
fn is_full(more: &More) -> bool {
    more.changes.len() >= REMOVALS_MAX || more.encoded.len() >= BATCH_TARGET_BYTES
}
