//! The keys in use: hot ones that are followed by others every few seconds, cold ones that live longer.
//!
//! All client processes read the same clock, so they agree on the keys without a word. No key lives long
//! enough to make its history too long to check.

use crate::random::Random;

const HOT_SLOTS: usize = 8;
const HOT_NS: i64 = 2_000_000_000;
const COLD_SLOTS: usize = 6;
const COLD_NS: i64 = 30_000_000_000;
/// How far a look back goes, in hot keys of one slot.
const BACK: u64 = 60;

/// How a key is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// One in use.
    Current,
    /// One that was in use: is it still what it was?
    Past,
}

/// A key at this moment.
pub(crate) fn choose(random: &mut Random, now_ns: i64, choice: Choice) -> String {
    match choice {
        Choice::Current if random.per_mille(150) => {
            format!("c{}.{}", random.index(COLD_SLOTS), now_ns / COLD_NS)
        }
        Choice::Current => format!("h{}.{}", random.index(HOT_SLOTS), now_ns / HOT_NS),
        Choice::Past => {
            let back = i64::try_from(random.between(1, BACK)).expect("it is small");
            format!("h{}.{}", random.index(HOT_SLOTS), (now_ns / HOT_NS - back).max(0))
        }
    }
}
