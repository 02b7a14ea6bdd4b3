//! The operations of one thread of a phase. The driver draws the next operation of a connection, and checks its result.

use anyhow::Context as _;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::{Control, Done};
use crate::keyspace::Keyspace;
use crate::model::{Floor, Model};
use crate::tally::Tally;
use crate::value::{Stamp, Values};

/// The number of other keys that are tried for a write if the drawn key has a write in flight.
const REDRAWS: u32 = 8;

/// The work of a phase.
#[derive(Debug)]
pub(crate) enum Work {
    /// Writes every key once. Each list has a counter of the keys that were drawn from it.
    Fill(Vec<AtomicU64>),
    /// Reads with this probability, and writes otherwise.
    Mix(f64),
}

/// State shared by all threads of all phases.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) keys: Keyspace,
    pub(crate) values: Values,
    /// The model of all writes, with `--verify`.
    pub(crate) model: Option<Model>,
    pub(crate) run: u32,
}

/// The operations of one connection.
#[derive(Debug)]
pub(crate) struct Lane {
    /// The index of the list from which the connection's keys are drawn.
    list: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    is_open: bool,
    start_ns: u64,
    key: u32,
    /// The stamp, if the operation is a write.
    stamp: Option<Stamp>,
    floor: Floor,
}

impl Lane {
    /// Creates a lane with at most `depth` operations in flight.
    pub(crate) fn new(list: usize, depth: u32) -> Lane {
        let idle =
            Slot { is_open: false, start_ns: 0, key: 0, stamp: None, floor: Floor::default() };
        let slots = vec![idle; depth as usize];
        Lane { list, slots, free: (0..depth).rev().collect() }
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// An operation to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The operation's slot in the lane.
    pub(crate) slot: u32,
    pub(crate) key: &'a [u8],
    /// The value, if the operation is a write.
    pub(crate) value: Option<&'a [u8]>,
}

/// The result of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<'a> {
    /// A successful operation, with the value that was read; empty for a write.
    Done(&'a [u8]),
    /// A successful write that only one server holds.
    SingleCopy,
    /// A read of a key that does not exist.
    Missing,
    /// A response of the echo server, which carries no value.
    Echoed,
    /// The error in the response.
    Failed(&'a str),
}

/// The state of one thread's operations. See the module.
#[derive(Debug)]
pub(crate) struct Driver<'a> {
    shared: &'a Shared,
    work: &'a Work,
    pub(crate) control: &'a Control,
    done: &'a Done,
    random: Xoshiro256PlusPlus,
    pub(crate) tally: Tally,
    writes: u32,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'a> Driver<'a> {
    /// Creates the driver of thread number `thread`.
    pub(crate) fn new(
        shared: &'a Shared,
        work: &'a Work,
        control: &'a Control,
        thread: usize,
        seed: u64,
    ) -> Driver<'a> {
        Driver {
            shared,
            work,
            control,
            done: control.done_by(thread),
            random: Xoshiro256PlusPlus::seed_from_u64(crate::value::mix(seed) ^ thread as u64),
            tally: Tally::new(),
            writes: 0,
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Returns whether this phase writes every key once.
    pub(crate) fn is_fill(&self) -> bool {
        matches!(self.work, Work::Fill(_))
    }

    /// Returns whether this phase writes every key once, and all keys of all lists have been drawn.
    pub(crate) fn is_filled(&self) -> bool {
        let Work::Fill(drawn) = self.work else { return false };
        let mut lists = drawn.iter().zip(&self.shared.keys.lists);
        lists.all(|(drawn, list)| drawn.load(Ordering::Relaxed) >= list.len())
    }

    /// Begins the next operation of a lane that has room. Returns `None` when no more operations may begin: in this
    /// phase, or in a fill on lanes of this list.
    pub(crate) fn begin(
        &mut self,
        lane: &mut Lane,
        start_ns: u64,
        now_ns: u64,
    ) -> Option<Request<'_>> {
        if !self.control.admit(now_ns) {
            return None;
        }
        let list = &self.shared.keys.lists[lane.list];
        let (mut key, wants_write) = match self.work {
            Work::Fill(drawn) => {
                let place = drawn[lane.list].fetch_add(1, Ordering::Relaxed);
                if place >= list.len() {
                    return None;
                }
                (list.key(place), true)
            }
            Work::Mix(reads) => {
                let is_write = *reads < 1.0 && !self.random.random_bool(*reads);
                (list.key(list.distribution.draw(&mut self.random)), is_write)
            }
        };
        let mut stamp = wants_write.then(|| self.stamp(key)).flatten();
        for _ in 0..REDRAWS {
            // If no drawn key can be written now, the operation becomes a read.
            if stamp.is_some() || !wants_write {
                break;
            }
            key = list.key(list.distribution.draw(&mut self.random));
            stamp = self.stamp(key);
        }
        let floor = self.shared.model.as_ref().map(|model| model.floor(key)).unwrap_or_default();
        let slot = lane.free.pop().expect("a lane with room");
        lane.slots[slot as usize] = Slot { is_open: true, start_ns, key, stamp, floor };
        self.shared.keys.write(key, &mut self.key);
        if let Some(stamp) = stamp {
            self.shared.values.write(key, stamp, &mut self.value);
        }
        let value = stamp.map(|_| self.value.as_slice());
        Some(Request { slot, key: &self.key, value })
    }

    /// Returns the stamp of the key's next write, or `None` if the model does not allow a write of this key now.
    fn stamp(&mut self, key: u32) -> Option<Stamp> {
        if let Some(model) = &self.shared.model {
            return model.begin_write(key);
        }
        self.writes = self.writes.wrapping_add(1);
        Some(Stamp { run: self.shared.run, number: self.writes })
    }

    /// Records the end of an operation, and checks its result.
    ///
    /// # Errors
    /// The response is to a slot without an operation in flight.
    pub(crate) fn end(
        &mut self,
        lane: &mut Lane,
        slot: u32,
        outcome: Outcome<'_>,
        now_ns: u64,
    ) -> anyhow::Result<()> {
        let place = lane.slots.get_mut(slot as usize).filter(|place| place.is_open);
        let place = place.with_context(|| {
            format!("a response arrived for slot {slot}, which has no operation in flight")
        })?;
        place.is_open = false;
        let Slot { start_ns, key, stamp, floor, .. } = *place;
        lane.free.push(slot);
        self.done.bump();
        let control = self.control;
        if (control.warm_ns..control.end_ns).contains(&now_ns) && start_ns >= control.warm_ns {
            self.tally.completed += 1;
            self.tally.last_ns = self.tally.last_ns.max(now_ns);
        }
        if (control.warm_ns..control.end_ns).contains(&start_ns) {
            let latencies =
                if stamp.is_some() { &mut self.tally.writes } else { &mut self.tally.reads };
            latencies.record(now_ns.saturating_sub(start_ns));
        }
        match (outcome, stamp) {
            (Outcome::Failed(why), _) => self.failed(key, why),
            (Outcome::Echoed, _) => {}
            (Outcome::Done(_) | Outcome::SingleCopy | Outcome::Missing, Some(stamp)) => {
                self.tally.single_copies += u64::from(outcome == Outcome::SingleCopy);
                if let Some(model) = &self.shared.model {
                    model.acknowledge(key, stamp);
                }
            }
            (Outcome::Done(value), None) => self.check(key, floor, Some(value)),
            (Outcome::Missing | Outcome::SingleCopy, None) => {
                self.tally.missing += 1;
                self.check(key, floor, None);
            }
        }
        Ok(())
    }

    fn failed(&mut self, key: u32, why: &str) {
        self.tally.failed += 1;
        if self.tally.first_failure.is_none() {
            self.tally.first_failure = Some(format!("key {}: {why}", self.name(key)));
        }
    }

    fn check(&mut self, key: u32, floor: Floor, value: Option<&[u8]>) {
        let Some(model) = &self.shared.model else { return };
        let checked = model.check(&self.shared.values, key, floor, value);
        if let Err(why) = checked {
            self.tally.mismatched += 1;
            if self.tally.first_mismatch.is_none() {
                self.tally.first_mismatch =
                    Some(format!("key {} was read as {why}", self.name(key)));
            }
        }
    }

    fn name(&self, key: u32) -> String {
        let mut name = Vec::new();
        self.shared.keys.write(key, &mut name);
        String::from_utf8_lossy(&name).into_owned()
    }
}
