//! An administrator who flushes the whole cluster again and again, in some runs. The invariant
//! [`invariants::flushes`] evaluates the flushes at the end of the run.
//!
//! ```text
//!   every few seconds:  the coordinator begins a flush -> every shard is done, or too late, or the coordinator ends
//! ```
//!
//! [`invariants::flushes`]: crate::invariants::flushes

use kv_protocol::ids::ViewVersion;

use super::*;

/// The time of the first flush, in nanoseconds.
const BEGINS: u64 = 1_500_000_000;
/// The interval at which the progress is checked, in nanoseconds.
const LOOK: u64 = 20_000_000;
/// The longest time between two flushes, in nanoseconds.
const LONGEST_INTERVAL: u64 = 6_000_000_000;
/// The time after which a flush is abandoned, in nanoseconds.
const PATIENCE: u64 = 8_000_000_000;

/// The flushes of a run.
#[derive(Debug, Default)]
pub struct Flushes {
    running: Option<Flush>,
    next: u64,
    ended: Vec<Flush>,
}

/// A flush.
#[derive(Debug)]
pub struct Flush {
    /// The time at which it began.
    pub start: u64,
    /// The time at which every shard was done; `None` if it was not completed. Then shards that have begun may still
    /// remove keys.
    pub end: Option<u64>,
    /// The views whose primaries were ordered to remove all keys of a group.
    passes: BTreeSet<(GroupId, ViewVersion)>,
    term: u64,
}

impl Flush {
    /// Returns how often the keys of a group may have been removed.
    pub fn passes(&self, group: GroupId) -> usize {
        self.passes.iter().filter(|(of, _)| *of == group).count()
    }
}

impl Flushes {
    /// Returns all flushes. One that is in progress counts as not completed.
    pub fn all(&self) -> impl Iterator<Item = &Flush> {
        self.ended.iter().chain(&self.running)
    }
}

impl World {
    /// Plans the flushes of a run.
    pub(super) fn plan_flushes(&mut self) {
        if self.config.flushes {
            self.after(BEGINS, Happening::Flush);
        }
    }

    /// Records that a primary was ordered to flush.
    pub(super) fn note_flush_order(&mut self, group: GroupId, view: ViewVersion) {
        if let Some(flush) = &mut self.flushes.running {
            flush.passes.insert((group, view));
        }
    }

    /// Begins a flush, or checks the progress of the one in progress.
    pub(super) fn on_flush(&mut self) {
        if !self.is_healing || self.flushes.running.is_some() {
            self.after(LOOK, Happening::Flush);
        }
        if self.now < self.coordinator.paused_until {
            return;
        }
        match &self.flushes.running {
            Some(_) => self.follow_flush(),
            None if self.now >= self.flushes.next && !self.is_healing => self.begin_flush(),
            None => {}
        }
    }

    fn begin_flush(&mut self) {
        let (start, term) = (self.now, self.coordinator.term);
        let passes = BTreeSet::new();
        self.flushes.running = Some(Flush { start, end: None, passes, term });
        let begun = self.brain(|cluster, now, sink| cluster.on_flush(now, sink));
        if !matches!(begun, Some(Ok(()))) {
            self.flushes.running = None;
        }
    }

    fn follow_flush(&mut self) {
        let Some(flush) = &self.flushes.running else { return };
        let is_same = flush.term == self.coordinator.term;
        let cluster = self.coordinator.cluster.as_ref().filter(|_| is_same);
        let shards = cluster.and_then(|cluster| cluster.flushed_shards());
        let is_done = shards.map(|shards| shards.iter().all(|place| place.is_done));
        if is_done == Some(false) && self.now < flush.start + PATIENCE {
            return;
        }
        let Some(mut flush) = self.flushes.running.take() else { return };
        if is_done == Some(true) {
            flush.end = Some(self.now);
            self.counts.flushes += 1;
            let again = flush.passes.len() > usize::from(self.config.servers);
            self.counts.flushes_resumed += u64::from(again);
        }
        self.flushes.ended.push(flush);
        self.flushes.next = self.now + self.random.between(LOOK, LONGEST_INTERVAL);
        if is_same {
            self.brain(|cluster, _, _| cluster.end_flush());
        }
    }
}
