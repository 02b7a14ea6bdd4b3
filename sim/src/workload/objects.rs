//! The operations on objects: numbers, texts, conditional writes, entries with deadlines, and families of keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_history::object::{Answer, Change, Lifetime, ObjectEntry, Outcome, Shown, Update};
use kv_protocol::placement::Placement;
use kv_testkit::objects::{Choice, Class, Known, keys_of};
use kv_testkit::random::Random;

use super::Slot;
use crate::clock::wall_millis;
use crate::object::ObjectAsk;

/// The number of objects of each class; the first ones of each are hot.
const OBJECTS_A_CLASS: usize = 8;
/// The number of hot objects of each class.
const HOT_A_CLASS: usize = 2;
/// The number of additional expiring keys, in runs with many of them.
const MANY: usize = 3_000;
/// The maximum number of operations in flight on an object.
const IN_FLIGHT: usize = 6;
/// The number of operations after which a slot takes another object.
const OPERATIONS: usize = 130;
/// The weight of a request in doubt in this number.
const OPERATIONS_A_DOUBT: usize = 40;

/// The classes of objects in use.
const CLASSES: [Class; 5] =
    [Class::Counter, Class::Text, Class::Item, Class::Expiring, Class::Family];

/// The kinds of operations that are counted.
pub const KINDS: [&str; 17] = [
    "add",
    "append",
    "batch",
    "check",
    "copy",
    "delete",
    "expiry observed",
    "failed batch",
    "not executed",
    "put",
    "put with deadline",
    "put with old value",
    "read with deadline",
    "rename",
    "set expiry",
    "set range",
    "take",
];

/// The history of an object.
#[derive(Debug, Default)]
pub struct ObjectHistory {
    /// The keys.
    pub keys: Vec<Vec<u8>>,
    /// The operations.
    pub entries: Vec<ObjectEntry>,
}

/// The object that was chosen for an operation.
pub(super) struct Chosen {
    /// The slot.
    pub(super) at: usize,
    /// The class of the object.
    pub(super) class: Class,
    /// The keys of the object.
    pub(super) keys: Arc<[Vec<u8>]>,
    /// The index of the key of the operation.
    pub(super) key: usize,
}

/// The objects in use, and their histories.
#[derive(Debug)]
pub struct Objects {
    slots: Vec<(Slot, Arc<[Vec<u8>]>)>,
    placement: Placement,
    /// The probability, per mille, that an operation is one on an object.
    share: u64,
    /// The histories, by the first key of the object.
    pub histories: BTreeMap<Vec<u8>, ObjectHistory>,
    /// The deadlines of entries by the last response about each key, in true wall time.
    deadlines: BTreeMap<Vec<u8>, i64>,
    /// The numbers of completed operations, by kind.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Objects {
    /// Creates objects without history.
    pub fn new(placement: Placement, share: u64, has_many: bool) -> Objects {
        let count = CLASSES.len() * OBJECTS_A_CLASS + if has_many { MANY } else { 0 };
        Objects {
            slots: vec![(Slot::default(), Arc::from([])); count],
            placement,
            share,
            histories: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn class_of(at: usize) -> Class {
        match at < CLASSES.len() * OBJECTS_A_CLASS {
            true => CLASSES[at % CLASSES.len()],
            false => Class::Expiring,
        }
    }

    /// Chooses an operation with some probability. Returns its slot too.
    pub(super) fn plan(
        &mut self,
        random: &mut Random,
        now: u64,
        known: &BTreeMap<Vec<u8>, Known>,
        only_reads: bool,
        next_value: &mut u64,
    ) -> Option<(usize, ObjectAsk)> {
        let Chosen { at, class, keys, key } = self.choose_slot(random)?;
        let is_read = only_reads || random.per_mille(350);
        let ask = match is_read {
            true => ObjectAsk::read(keys, key, class == Class::Expiring || random.per_mille(300)),
            false => {
                let now = wall_millis(now);
                let mut choice = Choice { random, known, keys: &keys, now, next_value };
                let updates = choice.updates(class, key);
                let is_plain = random.per_mille(500);
                ObjectAsk::update(keys, updates, is_plain)
            }
        };
        Some((at, ask))
    }

    /// Chooses the slot of an operation, and a key of its object, with some probability.
    pub(super) fn choose_slot(&mut self, random: &mut Random) -> Option<Chosen> {
        if !random.per_mille(self.share) {
            return None;
        }
        let hot = CLASSES.len() * HOT_A_CLASS;
        let at = match random.per_mille(700) {
            true => random.index(hot),
            false => random.index(self.slots.len()),
        };
        let class = Objects::class_of(at);
        let (slot, keys) = &mut self.slots[at];
        if slot.in_flight >= IN_FLIGHT {
            return None;
        }
        slot.used += 1;
        slot.in_flight += 1;
        if slot.used > OPERATIONS {
            *slot = Slot { generation: slot.generation + 1, used: 1, in_flight: 1 };
        }
        if slot.used == 1 {
            *keys = keys_of(self.placement, class, at, slot.generation).into();
        }
        let keys = Arc::clone(keys);
        let key = random.index(keys.len());
        Some(Chosen { at, class, keys, key })
    }

    /// Returns the reads of the final check: every key of the objects that `is_served` accepts.
    pub(super) fn last_reads(&self, is_served: impl Fn(&[u8]) -> bool) -> Vec<ObjectAsk> {
        let objects = self.histories.iter().filter(|(key, _)| is_served(key));
        let reads = objects.flat_map(|(_, history)| {
            let keys: Arc<[Vec<u8>]> = history.keys.clone().into();
            (0..keys.len()).map(move |key| ObjectAsk::read(Arc::clone(&keys), key, true))
        });
        reads.collect()
    }

    /// Records the end of an operation, with its entry in the history, if it has one.
    pub(super) fn note(
        &mut self,
        slot: Option<usize>,
        ask: &ObjectAsk,
        entry: Option<ObjectEntry>,
    ) {
        let is_in_doubt = entry.as_ref().is_some_and(|entry| entry.answer == Answer::InDoubt);
        if let Some(at) = slot {
            let slot = &mut self.slots[at].0;
            slot.in_flight = slot.in_flight.saturating_sub(1);
            if is_in_doubt && !ask.is_read {
                slot.used += OPERATIONS_A_DOUBT;
            }
        }
        let Some(entry) = entry else { return };
        self.count(ask, &entry);
        let history = self.histories.entry(ask.keys[0].clone()).or_default();
        history.keys = ask.keys.to_vec();
        history.entries.push(entry);
    }

    /// Counts an operation that has ended.
    fn count(&mut self, ask: &ObjectAsk, entry: &ObjectEntry) {
        let shown = match &entry.answer {
            Answer::Shown { updates, .. } => updates,
            Answer::Failed { .. } => return self.add("failed batch"),
            Answer::InDoubt | Answer::Undecided | Answer::Refused(_) => return,
        };
        let is_batch = ask.updates.len() > 1;
        if is_batch {
            self.add("batch");
        }
        for (update, shown) in ask.updates.iter().zip(shown) {
            let is_observed = shown.outcome == Outcome::NotFound;
            let key = &ask.keys[update.key];
            if !is_batch && is_observed && self.deadlines.remove(key).is_some() {
                self.add("expiry observed");
            }
            self.note_deadline(key, update, shown, entry.wall.to);
            if shown.outcome != Outcome::Done {
                self.add("not executed");
            } else if !ask.is_read {
                self.add(name_of(update));
            } else if ask.shows_deadline {
                self.add("read with deadline");
            }
        }
    }

    /// Records the deadline of a key after an update, as far as it is known.
    fn note_deadline(&mut self, key: &[u8], update: &Update, shown: &Shown, ended: i64) {
        let deadline = match (shown.outcome, update.lifetime) {
            _ if shown.deadline.is_some() => shown.deadline,
            (Outcome::Done, Lifetime::After(millis)) => Some(ended.saturating_add(millis)),
            (Outcome::Done, Lifetime::At(time)) => Some(time),
            (Outcome::Done, Lifetime::Never) => None,
            (Outcome::Done, _) if update.change == Change::Delete => None,
            _ => return,
        };
        match deadline {
            Some(deadline) => drop(self.deadlines.insert(key.to_vec(), deadline)),
            None => drop(self.deadlines.remove(key)),
        }
    }

    fn add(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }
}

/// Returns the name under which an update is counted.
fn name_of(update: &Update) -> &'static str {
    match (&update.change, update.returns_value) {
        (Change::Check | Change::CheckPart { .. }, _) => "check",
        (Change::Put(_), _) if matches!(update.lifetime, Lifetime::After(_) | Lifetime::At(_)) => {
            "put with deadline"
        }
        (Change::Put(_), true) => "put with old value",
        (Change::Put(_), false) => "put",
        (Change::Delete, true) => "take",
        (Change::Delete, false) => "delete",
        (Change::Add(_) | Change::AddQuarters(_), _) => "add",
        (Change::Append(_), _) => "append",
        (Change::SetRange(..), _) => "set range",
        (Change::Rename(_), _) => "rename",
        (Change::Copy(_), _) => "copy",
        (Change::SetExpiry, _) => "set expiry",
    }
}
