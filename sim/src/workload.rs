//! The clients' operations: a few hot keys and many cold ones. A key is retired before its history gets too
//! long to check.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kv_history::object::ObjectEntry;
use kv_protocol::client_message::Condition;
use kv_protocol::ids::GroupId;
use kv_protocol::placement::Placement;

use crate::client::{Client, DEADLINE, Seen};
use crate::object::ObjectAsk;
use kv_history::{Asked, Entry, Returned, Value};
use kv_testkit::random::Random;

mod commands;
mod objects;

pub use objects::{KINDS, ObjectHistory, Objects};

/// The number of hot slots. They get half of all operations, or less if many are in flight.
const HOT_SLOTS: usize = 6;
/// The number of all other slots.
const COLD_SLOTS: usize = 6_000;
/// The number of operations after which a slot takes another key.
const OPERATIONS_A_KEY: usize = 220;
/// The maximum number of operations in flight on a hot key. Concurrent operations may have executed in any order, and
/// the checker must try every order.
const IN_FLIGHT_A_KEY: usize = 9;
/// The weight of a write in doubt in the number of operations on its key. The write may be executed at any later time,
/// so it makes the history expensive to check.
const OPERATIONS_A_DOUBT: usize = 40;
/// The reciprocal of the probability that a value is long enough to be sent in fragments.
const LARGE_ONE_IN: u64 = 1_500;
/// The length of these values.
const LARGE_BYTES: usize = 150 << 10;
/// The probability, per mille, that a write has a deadline of at most 1.5 ms.
const IMPATIENT_PER_MILLE: u64 = 21;
/// The longest delay after which a client begins to settle a write in doubt, in nanoseconds.
const SETTLED_WITHIN: u64 = 2_000_000_000;
/// The longest extra delay of a write's connection, in nanoseconds.
const LATE_MOST: u64 = 4_000_000_000;
/// The number of operations in a wave. About half of them go to cold keys, and about half of the cold keys get at least
/// one.
const OPERATIONS_A_WAVE: usize = 9_000;

/// The prevailing operation of a wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wave {
    /// Short values are written.
    Fills,
    /// The short values are deleted, and a few long ones are written.
    Empties,
}

/// The keys in use, and their histories.
#[derive(Debug)]
pub struct Workload {
    slots: Vec<Slot>,
    /// The history, by key.
    pub histories: BTreeMap<Vec<u8>, Vec<Entry>>,
    /// The newest version in any response, by key.
    pub newest: BTreeMap<Vec<u8>, u64>,
    next_value: Value,
    /// The number of operations so far, if they come in waves.
    waves: Option<usize>,
    /// The remaining operations of the final check.
    last: VecDeque<(Vec<u8>, Asked)>,
    /// The remaining reads of objects of the final check.
    last_of_objects: Vec<ObjectAsk>,
    /// The objects in use.
    pub objects: Objects,
}

/// Returns the bytes of a value: its number, its length if there is room, and padding that depends on the number.
fn whole_value(value: Value, length: usize) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    bytes.resize(length, filling_of(value));
    if let Some(place) = bytes.get_mut(LENGTH_AT) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    bytes
}

/// The position of a value's length in its bytes, if the value is long enough.
const LENGTH_AT: std::ops::Range<usize> = 8..8 + size_of::<usize>();

/// Returns the number of a value; `None` if the bytes are not those of one value.
pub fn value_of(bytes: &[u8]) -> Option<Value> {
    let value = Value::from_le_bytes(*bytes.first_chunk()?);
    (*bytes == *whole_value(value, bytes.len())).then_some(value)
}

fn filling_of(value: Value) -> u8 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// A slot of the workload: a sequence of keys, of which one at a time is in use.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The number of earlier keys of this slot.
    generation: u64,
    /// The number of operations on the key so far.
    used: usize,
    /// The number of operations in flight.
    in_flight: usize,
}

/// The slot of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotId {
    /// A key that is a register.
    Register(usize),
    /// An object.
    Object(usize),
    /// None, in the final check.
    None,
}

/// An operation to begin.
#[derive(Debug)]
pub struct Plan {
    /// The slot of the key or object.
    pub slot: SlotId,
    /// The key.
    pub key: Vec<u8>,
    /// The newest version of the key in any response.
    pub floor: u64,
    /// The requested operation on a register. For an operation on an object: a read, or any write.
    pub asked: Asked,
    /// The requested operation on an object.
    pub object: Option<Box<ObjectAsk>>,
    /// The condition of the operation.
    pub condition: Condition,
    /// The whole value to write.
    pub value: Vec<u8>,
    /// The time after which the client gives the operation up, in nanoseconds.
    pub timeout: u64,
    /// The way in which the client settles the write if it ends in doubt.
    pub settling: Settling,
}

/// The way in which a client settles a write in doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settling {
    /// The delay of the first RESOLVE, in nanoseconds. It is sent earlier if a later operation of the client waits
    /// for it.
    pub after: u64,
    /// True if the RESOLVE uses another connection, so that it may overtake the write.
    pub overtakes: bool,
    /// The extra delay of the write's connection, in nanoseconds.
    pub lag: u64,
}

impl Workload {
    /// Creates a workload. With waves, many short values are written, then most are deleted, and so on.
    pub fn new(has_waves: bool, objects: Objects) -> Workload {
        Workload {
            slots: vec![Slot::default(); HOT_SLOTS + COLD_SLOTS],
            histories: BTreeMap::new(),
            newest: BTreeMap::new(),
            next_value: 1,
            waves: has_waves.then_some(0),
            last: VecDeque::new(),
            last_of_objects: Vec::new(),
            objects,
        }
    }

    /// Returns the next operation of a client.
    pub fn plan(&mut self, random: &mut Random, now: u64, client: &Client) -> Plan {
        let (seen, only_reads) = (&client.seen, client.is_reader);
        let next_value = &mut self.next_value;
        let object = self.objects.plan(random, now, &client.known, only_reads, next_value);
        if let Some((at, ask)) = object {
            let settled = Workload::timeout(random);
            return Plan::of_object(SlotId::Object(at), ask, settled);
        }
        let (at, key) = self.take_slot(random);
        let floor = self.newest.get(&key).copied().unwrap_or(0);
        let (asked, condition, value) = match only_reads {
            true => (Asked::Read, Condition::Always, Vec::new()),
            false => self.ask(random, at < HOT_SLOTS, seen.get(&key)),
        };
        let (timeout, settling) = match asked {
            Asked::Read => (DEADLINE, Settling::default()),
            _ => Workload::timeout(random),
        };
        let slot = SlotId::Register(at);
        Plan { slot, key, floor, asked, object: None, condition, value, timeout, settling }
    }

    /// Chooses a slot for an operation on a register. Returns its key too.
    fn take_slot(&mut self, random: &mut Random) -> (usize, Vec<u8>) {
        let hot = random.index(HOT_SLOTS);
        let at = match random.per_mille(500) && self.slots[hot].in_flight < IN_FLIGHT_A_KEY {
            true => hot,
            false => HOT_SLOTS + random.index(COLD_SLOTS),
        };
        let slot = &mut self.slots[at];
        slot.used += 1;
        slot.in_flight += 1;
        if slot.used > OPERATIONS_A_KEY {
            *slot = Slot { generation: slot.generation + 1, used: 1, in_flight: 1 };
        }
        (at, format!("{at}.{}", slot.generation).into_bytes())
    }

    /// Returns the time for which a client waits for a write, and the way in which it settles the write
    /// afterwards.
    fn timeout(random: &mut Random) -> (u64, Settling) {
        let timeout = match random.below(1_000) {
            0..IMPATIENT_PER_MILLE => random.between(100_000, 1_500_000),
            _ => DEADLINE,
        };
        let after = if random.per_mille(500) { 0 } else { random.between(0, SETTLED_WITHIN) };
        let lag = match random.below(5) {
            _ if timeout == DEADLINE => 0,
            0 => random.between(500_000, 20_000_000),
            1 => random.between(20_000_000, LATE_MOST),
            _ => 0,
        };
        (timeout, Settling { after, overtakes: lag > 0 || random.per_mille(500), lag })
    }

    /// Counts an operation, and returns its wave; `None` if operations do not come in waves.
    fn wave(&mut self) -> Option<Wave> {
        let operations = self.waves.as_mut()?;
        *operations += 1;
        let fills = (*operations / OPERATIONS_A_WAVE).is_multiple_of(2);
        Some(if fills { Wave::Fills } else { Wave::Empties })
    }

    /// Chooses an operation on a key, given the last version and value of the key that the client has seen.
    fn ask(
        &mut self,
        random: &mut Random,
        is_hot: bool,
        seen: Option<&Seen>,
    ) -> (Asked, Condition, Vec<u8>) {
        let kind = random.below(100);
        let wave = self.wave();
        let (reads, deletes) = match wave {
            None => (40, 55),
            Some(Wave::Fills) => (20, 25),
            Some(Wave::Empties) => (20, 85),
        };
        if kind < reads {
            return (Asked::Read, Condition::Always, Vec::new());
        }
        if kind < deletes {
            return (Asked::Delete, Condition::Always, Vec::new());
        }
        let new = self.next_value;
        self.next_value += 1;
        let length = match random.below(LARGE_ONE_IN) {
            0 => LARGE_BYTES,
            // The value is long enough to be sent directly from the table.
            _ if wave.is_some() && is_hot && random.per_mille(150) => {
                usize::try_from(random.between(4_200, 9_000)).expect("a short length")
            }
            _ if wave == Some(Wave::Empties) => {
                usize::try_from(random.between(1_100, 2_600)).expect("a short length")
            }
            1..=900 => usize::try_from(random.between(200, 900)).expect("a short length"),
            _ => usize::try_from(random.between(8, 64)).expect("a short length"),
        };
        let value = whole_value(new, length);
        match seen {
            Some(Some((version, old))) if kind < 75 => {
                (Asked::Swap { old: Some(*old), new }, Condition::IfVersion(*version), value)
            }
            Some(None) if kind < 75 => (Asked::Swap { old: None, new }, Condition::IfAbsent, value),
            _ => (Asked::Write(new), Condition::Always, value),
        }
    }

    /// Plans the final check for the groups that `is_served` accepts. In every used shard, a key is deleted and a new
    /// one is written. Then every key ever used is read.
    pub fn look_back(&mut self, placement: Placement, is_served: impl Fn(GroupId) -> bool) {
        let place = |key: &[u8]| placement.locate(key);
        let used = || self.histories.keys().filter(|key| is_served(place(key).0));
        let mut places = BTreeSet::new();
        for key in used().filter(|key| places.insert(place(key))) {
            self.last.push_back((key.clone(), Asked::Delete));
        }
        let new = (0..).map(|number| format!("last.{number}").into_bytes());
        for key in new.filter(|key| places.remove(&place(key))).take(self.last.len()) {
            self.last.push_back((key, Asked::Write(self.next_value)));
            self.next_value += 1;
        }
        let written: Vec<Vec<u8>> = self.last.iter().map(|(key, _)| key.clone()).collect();
        let keys: BTreeSet<Vec<u8>> = used().cloned().chain(written).collect();
        self.last.extend(keys.into_iter().map(|key| (key, Asked::Read)));
        self.last_of_objects = self.objects.last_reads(|key| is_served(place(key).0));
    }

    /// Returns whether the final check has operations left.
    pub fn has_more(&self) -> bool {
        !self.last.is_empty() || !self.last_of_objects.is_empty()
    }

    /// Returns the next operation of the final check.
    pub fn plan_last(&mut self) -> Option<Plan> {
        if let Some(read) = self.last_of_objects.pop() {
            return Some(Plan::of_object(SlotId::None, read, (DEADLINE, Settling::default())));
        }
        let (key, asked) = self.last.pop_front()?;
        let floor = self.newest.get(&key).copied().unwrap_or(0);
        let value = match asked {
            Asked::Write(value) => whole_value(value, size_of::<Value>()),
            _ => Vec::new(),
        };
        let (condition, settling) = (Condition::Always, Settling::default());
        let (slot, object, timeout) = (SlotId::None, None, DEADLINE);
        Some(Plan { slot, key, floor, asked, object, condition, value, timeout, settling })
    }

    /// Records a version of a key in a response.
    pub fn note_version(&mut self, key: &[u8], version: u64) {
        match self.newest.get_mut(key) {
            Some(newest) => *newest = (*newest).max(version),
            None => drop(self.newest.insert(key.to_vec(), version)),
        }
    }

    /// Records the end of an operation of a slot, with its entry in the history, if it has one.
    pub fn note(&mut self, slot: SlotId, key: Vec<u8>, entry: Option<Entry>) {
        if let SlotId::Register(at) = slot {
            let slot = &mut self.slots[at];
            slot.in_flight = slot.in_flight.saturating_sub(1);
            let is_in_doubt = |entry: &Entry| entry.returned == Returned::InDoubt;
            if entry.is_some_and(|entry| is_in_doubt(&entry) && entry.asked != Asked::Read) {
                slot.used += OPERATIONS_A_DOUBT;
            }
        }
        let Some(entry) = entry else { return };
        self.histories.entry(key).or_default().push(entry);
    }

    /// Records the end of an operation on an object, with its entry in the history, if it has one.
    pub fn note_object(&mut self, slot: SlotId, ask: &ObjectAsk, entry: Option<ObjectEntry>) {
        let slot = match slot {
            SlotId::Object(at) => Some(at),
            SlotId::Register(_) | SlotId::None => None,
        };
        self.objects.note(slot, ask, entry);
    }
}

impl Plan {
    /// Creates the plan of an operation on an object, with its timeout and the way in which it is settled.
    fn of_object(slot: SlotId, ask: ObjectAsk, (timeout, settling): (u64, Settling)) -> Plan {
        let is_read = ask.is_read;
        Plan {
            slot,
            key: ask.key().to_vec(),
            floor: 0,
            asked: if is_read { Asked::Read } else { Asked::Write(0) },
            object: Some(Box::new(ask)),
            condition: Condition::Always,
            value: Vec::new(),
            timeout: if is_read { DEADLINE } else { timeout },
            settling: if is_read { Settling::default() } else { settling },
        }
    }
}
