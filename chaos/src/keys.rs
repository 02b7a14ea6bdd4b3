//! The keys in use: hot keys, which are replaced every few seconds, and cold keys, which are used longer.
//!
//! The keys depend on the time, and all client processes read the same clock. So they use the same keys without
//! communication. A key is retired before its history gets too long to check.

use kv_testkit::random::Random;

const HOT_SLOTS: usize = 8;
const HOT_NS: i64 = 2_000_000_000;
const COLD_SLOTS: usize = 6;
const COLD_NS: i64 = 30_000_000_000;
/// The number of past hot keys of a slot that may be read again.
const BACK: u64 = 60;

/// The choice of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyAge {
    /// A key in use.
    Current,
    /// A key that is no longer written, so its value must not change any more.
    Past,
}

/// Chooses a random key among those that are in use, or no longer in use, at the time `now_ns`.
pub(crate) fn choose(random: &mut Random, now_ns: i64, choice: KeyAge) -> String {
    match choice {
        KeyAge::Current if random.per_mille(150) => {
            format!("c{}.{}", random.index(COLD_SLOTS), now_ns / COLD_NS)
        }
        KeyAge::Current => format!("h{}.{}", random.index(HOT_SLOTS), now_ns / HOT_NS),
        KeyAge::Past => {
            let back = i64::try_from(random.between(1, BACK)).expect("it is small");
            format!("h{}.{}", random.index(HOT_SLOTS), (now_ns / HOT_NS - back).max(0))
        }
    }
}
