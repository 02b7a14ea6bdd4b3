//! Operations on objects, for the simulator and the chaos runner: the keys, the choice of updates, and the conversion to
//! requests.
//!
//! An object is one key, or a family of keys of one shard that are used together ([`kv_history::object`]). Its values
//! are decimal numbers, or texts of whole pieces, so a mixture of two values is detected.

use std::collections::BTreeMap;

use kv_history::object::{Change, Guard, KEYS_MAX, Lifetime, Text, Update};
use kv_protocol::placement::Placement;

use crate::random::Random;

mod wire;

pub use wire::{outcome_of, to_wire};

/// The length of a piece of a text.
pub const PIECE_BYTES: usize = 11;

/// Returns the piece with this number.
pub fn piece(number: u64) -> Text {
    format!("{number:010x};").into_bytes().into()
}

/// Returns whether a value is a number, or nothing, and then whole pieces and gaps of their length.
pub fn is_whole(value: &[u8]) -> bool {
    let is_piece = |piece: &[u8]| {
        let digits = piece.strip_suffix(b";").is_some_and(|digits| {
            digits.len() == PIECE_BYTES - 1 && digits.iter().all(u8::is_ascii_hexdigit)
        });
        digits || piece == [0; PIECE_BYTES]
    };
    let pieces = value.rchunks(PIECE_BYTES).take_while(|piece| is_piece(piece)).count();
    let rest = &value[..value.len() - pieces * PIECE_BYTES];
    rest.is_empty() || str::from_utf8(rest).is_ok_and(|text| text.parse::<i64>().is_ok())
}

/// The use of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A number.
    Counter,
    /// A number with a fraction.
    Float,
    /// A text that grows.
    Text,
    /// A value that is written under conditions.
    Item,
    /// An entry with a deadline.
    Expiring,
    /// Several keys of one shard.
    Family,
}

/// The last entry that a client has read of a key.
#[derive(Clone, Debug)]
pub struct Known {
    /// The version.
    pub version: u64,
    /// The value.
    pub value: Text,
}

/// Returns the keys of an object. Those of a family are in the same shard: they share a hash tag, or are found by trial.
pub fn keys_of(placement: Placement, class: Class, at: usize, generation: u64) -> Vec<Vec<u8>> {
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
#[derive(Debug)]
pub struct Choice<'a> {
    /// The source of randomness.
    pub random: &'a mut Random,
    /// The last entries that the client has read.
    pub known: &'a BTreeMap<Vec<u8>, Known>,
    /// The keys of the object.
    pub keys: &'a [Vec<u8>],
    /// The wall time, in milliseconds.
    pub now: i64,
    /// The number of the last value; values are unique.
    pub next_value: &'a mut u64,
}

impl Choice<'_> {
    /// Chooses the updates of a request, the first one of this key.
    pub fn updates(&mut self, class: Class, key: usize) -> Vec<Update> {
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
            (Class::Float, 0..70) => self.add_quarters(),
            (Class::Float, 70..82) => Change::Put(self.number()),
            (Class::Float, 82..90) => Change::Add(1),
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
            Class::Counter | Class::Float | Class::Text => 25,
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

    fn add_quarters(&mut self) -> Change {
        Change::AddQuarters(i32::try_from(self.random.below(40)).expect("a small number") - 15)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_of_two_values_is_not_whole() {
        let two: Vec<u8> = [&piece(7)[..], &piece(8)].concat();
        assert!(is_whole(&two) && is_whole(b"-12") && is_whole(b"") && is_whole(b"120000000001;"));
        assert!(!is_whole(&two[1..]) && !is_whole(&two[..20]) && !is_whole(b"12;"));
    }
}
