//! Operations on objects: numbers, texts, entries with deadlines, conditional writes, and families of keys of one shard
//! ([`kv_history::object`]). Separate client processes execute them, and scan all keys meanwhile.
//!
//! ```text
//!   hand       a thread: chooses an operation, executes it, records it
//!   scanner    a thread: scans and counts
//!   kinds      the kinds of operations in the report
//!   verdict    the checks of the objects and the scans of a round
//! ```

pub(crate) mod hand;
pub(crate) mod kinds;
pub(crate) mod scanner;
pub(crate) mod verdict;

use std::time::{SystemTime, UNIX_EPOCH};

use kv_history::object::ObjectRecord;
use kv_protocol::placement::Placement;
use kv_testkit::objects::{Class, keys_of};
use kv_testkit::random::Random;
use serde::{Deserialize, Serialize};

use crate::keys::KeyAge;
use scanner::ScanRecord;

/// The largest difference between the wall clock of a server and that of a client, in milliseconds. All processes of a
/// machine share one clock. The margin allows for the rounding of both, and for the time for which a server reckons from
/// one reading.
pub(crate) const CLOCK_MARGIN_MS: i64 = 10;

/// The classes of the objects in use.
const SLOTS: [Class; 8] = [
    Class::Counter,
    Class::Float,
    Class::Text,
    Class::Item,
    Class::Expiring,
    Class::Family,
    Class::Expiring,
    Class::Family,
];
/// The time after which a slot takes another object.
const PERIOD_NS: i64 = 2_500_000_000;
/// The number of past objects of a slot that may be read again.
const BACK: u64 = 12;

/// One line of the history of a client process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    Object(ObjectRecord),
    Scan(ScanRecord),
}

/// Chooses the keys of a random object among those that are in use, or no longer in use, at the time `now_ns`.
fn choose(
    placement: Placement,
    random: &mut Random,
    now_ns: i64,
    age: KeyAge,
) -> (Class, Vec<Vec<u8>>) {
    let at = random.index(SLOTS.len());
    let back = match age {
        KeyAge::Current => 0,
        KeyAge::Past => random.between(1, BACK),
    };
    let generation = u64::try_from(now_ns / PERIOD_NS).unwrap_or(0).saturating_sub(back);
    (SLOTS[at], keys_of(placement, SLOTS[at], at, generation))
}

/// Returns the wall time in milliseconds.
pub(crate) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
