//! The operations on objects: numbers, texts, conditional writes, entries with deadlines, and families of keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_history::object::{Answer, Shown};
use kv_history::object::{Change, Guard, KEYS_MAX, Lifetime, ObjectEntry, Outcome, Text, Update};
use kv_protocol::placement::Placement;
use kv_testkit::random::Random;

use super::Slot;
use crate::clock::wall_millis;
use crate::object::{ObjectAsk, PIECE_BYTES, piece};

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

/// The use of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// A number.
    Counter,
    /// A text that grows.
    Text,
    /// A value that is written under conditions.
    Item,
    /// An entry with a deadline.
    Expiring,
    /// Several keys of one shard.
    Family,
}

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

/// The last entry that a client has read of a key.
#[derive(Clone, Debug)]
pub struct Known {
    /// The version.
    pub version: u64,
    /// The value.
    pub value: Text,
}

/// The history of an object.
#[derive(Debug, Default)]
pub struct ObjectHistory {
    /// The keys.
    pub keys: Vec<Vec<u8>>,
    /// The operations.
    pub entries: Vec<ObjectEntry>,
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
            *keys = keys_of(self.placement, class, at, slot.generation);
        }
        let keys = Arc::clone(keys);
        let key = random.index(keys.len());
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
            Answer::InDoubt | Answer::Undecided => return,
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
        (Change::Check, _) => "check",
        (Change::Put(_), _) if matches!(update.lifetime, Lifetime::After(_) | Lifetime::At(_)) => {
            "put with deadline"
        }
        (Change::Put(_), true) => "put with old value",
        (Change::Put(_), false) => "put",
        (Change::Delete, true) => "take",
        (Change::Delete, false) => "delete",
        (Change::Add(_), _) => "add",
        (Change::Append(_), _) => "append",
        (Change::SetRange(..), _) => "set range",
        (Change::Rename(_), _) => "rename",
        (Change::Copy(_), _) => "copy",
        (Change::SetExpiry, _) => "set expiry",
    }
}

/// Returns the keys of an object. Those of a family are in the same shard: they share a hash tag, or are found by trial.
fn keys_of(placement: Placement, class: Class, at: usize, generation: u64) -> Arc<[Vec<u8>]> {
    let name = format!("{class:?}.{at}.{generation}");
    let count = if class == Class::Family { KEYS_MAX } else { 1 };
    if placement.hash_tags() {
        return (0..count).map(|n| format!("{n}{{{name}}}{n}").into_bytes()).collect();
    }
    let first = name.into_bytes();
    let place = placement.locate(&first);
    let others = (0..).map(|n| format!("{class:?}.{at}.{generation}.{n}").into_bytes());
    let others = others.filter(|key| placement.locate(key) == place);
    std::iter::once(first.clone()).chain(others).take(count).collect()
}

/// The choice of the updates of a request.
struct Choice<'a> {
    random: &'a mut Random,
    known: &'a BTreeMap<Vec<u8>, Known>,
    keys: &'a [Vec<u8>],
    now: i64,
    next_value: &'a mut u64,
}

impl Choice<'_> {
    fn updates(&mut self, class: Class, key: usize) -> Vec<Update> {
        let count = match class {
            Class::Family if self.random.per_mille(700) => 2 + self.random.index(3),
            Class::Family => 1,
            _ if self.random.per_mille(120) => 2,
            _ => 1,
        };
        let mut updates = Vec::new();
        for n in 0..count {
            let key = if n == 0 { key } else { self.random.index(self.keys.len()) };
            let mut update = self.update(class, key);
            update.is_optional = count > 1 && self.random.per_mille(250);
            updates.push(update);
        }
        updates
    }

    fn update(&mut self, class: Class, key: usize) -> Update {
        let change = match (class, self.random.below(100)) {
            (Class::Counter, 0..75) => self.add(),
            (Class::Counter, 75..88) => Change::Put(self.number()),
            (Class::Text, 0..70) => Change::Append(self.piece()),
            (Class::Text, 70..80) => {
                Change::SetRange(self.random.index(6) * PIECE_BYTES, self.piece())
            }
            (Class::Text, 80..90) => Change::Put(self.piece()),
            (Class::Item, 0..70) => Change::Put(self.piece()),
            (Class::Item, 70..78) => Change::Append(self.piece()),
            (Class::Item, 78..84) => Change::Check,
            (Class::Expiring, 0..50) => Change::Put(self.number()),
            (Class::Expiring, 50..78) => Change::SetExpiry,
            (Class::Expiring, 78..90) => self.add(),
            (Class::Family, 0..30) => Change::Put(self.number()),
            (Class::Family, 30..50) => self.add(),
            (Class::Family, 50..55) => Change::Append(self.piece()),
            (Class::Family, 55..70) => Change::Rename(self.another(key)),
            (Class::Family, 70..82) => Change::Copy(self.another(key)),
            (Class::Family, 82..88) => Change::Check,
            _ => Change::Delete,
        };
        let mut update = Update::new(key, change);
        update.returns_value = self.random.per_mille(400);
        let may_expire = match class {
            Class::Expiring => 850,
            Class::Family | Class::Item => 120,
            Class::Counter | Class::Text => 25,
        };
        let keeps = matches!(
            update.change,
            Change::Check | Change::Delete | Change::Rename(_) | Change::Copy(_)
        );
        if update.change == Change::SetExpiry || !keeps && self.random.per_mille(may_expire) {
            update.lifetime = self.lifetime();
        }
        update.guard = self.guard(class, key, update.lifetime);
        update
    }

    fn guard(&mut self, class: Class, key: usize, lifetime: Lifetime) -> Guard {
        let share = match class {
            Class::Item => 700,
            Class::Expiring => 350,
            _ => 150,
        };
        if !self.random.per_mille(share) {
            return Guard::Always;
        }
        let known = self.known.get(&self.keys[key]).cloned();
        let compares = matches!(lifetime, Lifetime::After(_) | Lifetime::At(_));
        match (self.random.below(8), known) {
            (0 | 1, Some(known)) => Guard::Version(known.version),
            (2, Some(known)) => Guard::Value(known.value),
            (3, _) => Guard::NoDeadline,
            (4, _) => Guard::HasDeadline,
            (5, _) if compares => Guard::Later,
            (6, _) if compares => Guard::Earlier,
            (7, _) => Guard::Present,
            _ => Guard::Absent,
        }
    }

    fn lifetime(&mut self) -> Lifetime {
        let signed = |millis: u64| i64::try_from(millis).expect("a short time");
        let millis = match self.random.below(10) {
            0..5 => signed(self.random.between(1, 60)),
            5..8 => signed(self.random.between(60, 1_500)),
            8 => signed(self.random.between(1_500, 6_000)),
            _ => 600_000,
        };
        match self.random.below(10) {
            0 => Lifetime::Never,
            1 => Lifetime::KeepOrAfter(millis),
            2 => Lifetime::At(self.now - millis % 50),
            3..6 => Lifetime::At(self.now + millis),
            _ => Lifetime::After(millis),
        }
    }

    fn add(&mut self) -> Change {
        match self.random.below(60) {
            0 => Change::Add(i64::MAX),
            1 => Change::Add(i64::MIN),
            _ => Change::Add(i64::try_from(self.random.below(15)).expect("a small number") - 5),
        }
    }

    /// Returns a number that no other PUT of the run writes.
    fn number(&mut self) -> Text {
        *self.next_value += 1;
        (*self.next_value * 1_000).to_string().into_bytes().into()
    }

    /// Returns a piece that no other write of the run contains.
    fn piece(&mut self) -> Text {
        *self.next_value += 1;
        piece(*self.next_value)
    }

    fn another(&mut self, key: usize) -> usize {
        let count = self.keys.len();
        (key + 1 + self.random.index(count - 1)) % count
    }
}
