//! The write progress of every key in this run, against which reads are checked.
//!
//! ```text
//!   acknowledged <= what a read may return <= issued
//!        ^ when the read was sent                 ^ when its response arrived
//! ```
//!
//! Each key has at most one write in flight, so its writes have an order. After a write with an unknown result, this
//! run does not write the key again, and reads may return that write or the previous one.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::value::{Stamp, Values};

/// The write progress of all keys, shared by all threads of a run. See the module.
#[derive(Debug)]
pub(crate) struct Model {
    /// The numbers of the last acknowledged write and of the last issued write, by key.
    keys: Box<[AtomicU64]>,
    run: u32,
}

/// The last acknowledged write of a key when a read of it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor(u32);

fn halves(word: u64) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation)] // Two halves of one word.
    ((word >> 32) as u32, word as u32)
}

fn word(acknowledged: u32, issued: u32) -> u64 {
    u64::from(acknowledged) << 32 | u64::from(issued)
}

impl Model {
    /// Creates a model for the keys with numbers below `keys`, all without writes.
    pub(crate) fn new(keys: usize, run: u32) -> Model {
        Model { keys: (0..keys).map(|_| AtomicU64::new(0)).collect(), run }
    }

    /// Begins a write. Returns `None` while another write of the key is in flight, and forever after a write with an
    /// unknown result.
    pub(crate) fn begin_write(&self, key: u32) -> Option<Stamp> {
        let entry = &self.keys[key as usize];
        let now = entry.load(Ordering::Relaxed);
        let (acknowledged, issued) = halves(now);
        if acknowledged != issued || issued == u32::MAX {
            return None;
        }
        let next = word(acknowledged, issued + 1);
        let swapped = entry.compare_exchange(now, next, Ordering::Relaxed, Ordering::Relaxed);
        swapped.is_ok().then_some(Stamp { run: self.run, number: issued + 1 })
    }

    /// Records that the write was acknowledged.
    pub(crate) fn acknowledge(&self, key: u32, stamp: Stamp) {
        self.keys[key as usize].store(word(stamp.number, stamp.number), Ordering::Release);
    }

    /// Returns the oldest write that a read sent now may return.
    pub(crate) fn floor(&self, key: u32) -> Floor {
        Floor(halves(self.keys[key as usize].load(Ordering::Acquire)).0)
    }

    /// Checks that a read may return this value, or `None` for an absent key.
    ///
    /// # Errors
    /// The reason why it must not.
    pub(crate) fn check(
        &self,
        values: &Values,
        key: u32,
        floor: Floor,
        value: Option<&[u8]>,
    ) -> Result<(), String> {
        let Some(value) = value else {
            return match floor {
                Floor(0) => Ok(()),
                Floor(number) => Err(format!("nothing, though write {number} was acknowledged")),
            };
        };
        let stamp = values.read(key, value)?;
        let (_, issued) = halves(self.keys[key as usize].load(Ordering::Acquire));
        if stamp.run != self.run {
            return match floor {
                // The value was written by an earlier run, which is allowed before the first write of this run.
                Floor(0) => Ok(()),
                Floor(number) => Err(format!(
                    "a value of another run, though write {number} of this run was acknowledged"
                )),
            };
        }
        if stamp.number < floor.0 {
            return Err(format!("write {}, though {} was acknowledged", stamp.number, floor.0));
        }
        if stamp.number > issued {
            return Err(format!("write {}, though only {issued} were issued", stamp.number));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(values: &Values, key: u32, run: u32, number: u32) -> Vec<u8> {
        let mut value = Vec::new();
        values.write(key, Stamp { run, number }, &mut value);
        value
    }

    #[test]
    fn a_read_must_return_the_write_acknowledged_before_it_or_a_later_one() {
        let (model, values) = (Model::new(2, 7), Values::new(32..=32));
        let first = model.begin_write(1).unwrap();
        model.acknowledge(1, first);
        let floor = model.floor(1);
        let second = model.begin_write(1).unwrap();
        assert_eq!(model.begin_write(1), None, "one write at a time");
        let check = |number| model.check(&values, 1, floor, Some(&value(&values, 1, 7, number)));
        assert_eq!(check(1), Ok(()));
        assert_eq!(check(2), Ok(()), "it may have been done");
        assert!(check(3).is_err(), "it was not written");
        model.acknowledge(1, second);
        let check =
            |number| model.check(&values, 1, model.floor(1), Some(&value(&values, 1, 7, number)));
        assert!(check(1).is_err(), "stale");
        assert_eq!(check(2), Ok(()));
        assert!(model.check(&values, 1, model.floor(1), None).is_err(), "lost");
    }

    #[test]
    fn a_key_without_a_write_in_this_run_may_hold_any_well_formed_value() {
        let (model, values) = (Model::new(2, 7), Values::new(32..=32));
        let floor = model.floor(0);
        assert_eq!(model.check(&values, 0, floor, None), Ok(()));
        assert_eq!(model.check(&values, 0, floor, Some(&value(&values, 0, 3, 9))), Ok(()));
        assert!(model.check(&values, 0, floor, Some(&value(&values, 1, 3, 9))).is_err());
        let stamp = model.begin_write(0).unwrap();
        model.acknowledge(0, stamp);
        let old = value(&values, 0, 3, 9);
        assert!(model.check(&values, 0, model.floor(0), Some(&old)).is_err(), "another run's");
    }
}
