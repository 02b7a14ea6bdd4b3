//! What clients do: a few hot keys, many cold ones; no key lives long enough to make its history too
//! long to check.

use std::collections::BTreeMap;

use kv_protocol::client_message::Condition;

use crate::client::Seen;
use crate::history::{Asked, Entry, Value};
use crate::random::Random;

/// Keys that half of all operations go to.
const HOT_SLOTS: usize = 6;
/// All others.
const COLD_SLOTS: usize = 6_000;
/// After so many operations a slot takes another key.
const OPERATIONS_A_KEY: usize = 220;
/// One value in so many is long enough to travel in fragments.
const LARGE_ONE_IN: u64 = 1_500;
const LARGE_BYTES: usize = 150 << 10;

/// The keys in use, and what was seen of them.
#[derive(Debug)]
pub struct Workload {
    /// By slot: how many keys it has had, and how many operations its key has seen.
    slots: Vec<(u64, usize)>,
    /// By key.
    pub histories: BTreeMap<Vec<u8>, Vec<Entry>>,
    next_value: Value,
}

/// An operation to begin.
#[derive(Debug)]
pub struct Plan {
    /// Its slot.
    pub slot: usize,
    /// Its key.
    pub key: Vec<u8>,
}

impl Workload {
    /// Nothing done yet.
    pub fn new() -> Workload {
        Workload {
            slots: vec![(0, 0); HOT_SLOTS + COLD_SLOTS],
            histories: BTreeMap::new(),
            next_value: 1,
        }
    }

    /// The key of the next operation.
    pub fn plan(&mut self, random: &mut Random) -> Plan {
        let slot = match random.per_mille(500) {
            true => random.index(HOT_SLOTS),
            false => HOT_SLOTS + random.index(COLD_SLOTS),
        };
        let (generation, used) = &mut self.slots[slot];
        *used += 1;
        if *used > OPERATIONS_A_KEY {
            (*generation, *used) = (*generation + 1, 1);
        }
        Plan { slot, key: format!("{slot}.{generation}").into_bytes() }
    }

    /// What is asked of it, by someone who has seen this of it.
    pub fn ask(&mut self, random: &mut Random, seen: Option<&Seen>) -> (Asked, Condition, Vec<u8>) {
        let kind = random.below(100);
        if kind < 40 {
            return (Asked::Read, Condition::Always, Vec::new());
        }
        if kind < 55 {
            return (Asked::Delete, Condition::Always, Vec::new());
        }
        let new = self.next_value;
        self.next_value += 1;
        let mut value = new.to_le_bytes().to_vec();
        let length = match random.below(LARGE_ONE_IN) {
            0 => LARGE_BYTES,
            1..=900 => usize::try_from(random.between(200, 900)).expect("it is small"),
            _ => usize::try_from(random.between(8, 64)).expect("it is small"),
        };
        value.resize(length, 7);
        match seen {
            Some(Some((version, old))) if kind < 75 => {
                (Asked::Swap { old: Some(*old), new }, Condition::IfVersion(*version), value)
            }
            Some(None) if kind < 75 => (Asked::Swap { old: None, new }, Condition::IfAbsent, value),
            _ => (Asked::Write(new), Condition::Always, value),
        }
    }

    /// Notes what one operation came to.
    pub fn note(&mut self, key: Vec<u8>, entry: Entry) {
        self.histories.entry(key).or_default().push(entry);
    }
}

impl Default for Workload {
    fn default() -> Workload {
        Workload::new()
    }
}
