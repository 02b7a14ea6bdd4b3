//! The results of updates.

use kv_protocol::client_message::Status;
use kv_protocol::ids::{SequenceNumber, WallTime};
use kv_protocol::update::{Expiry, Precondition, UpdateResult};

use crate::completion::Reply;

/// The result of one update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// The version of the entry after the update. If the update changed nothing, the version that it found; zero if the
    /// key does not exist.
    pub version: SequenceNumber,
    /// The number of replicas that hold the write: 2, or 1 while the key's group is degraded.
    pub copies: u8,
    /// The value that the update returns, the sum or the length as a decimal text; `None` if there is none.
    pub value: Option<Vec<u8>>,
    /// The deadline of the entry after the update, if it has one and the update returns the value.
    pub deadline: Option<WallTime>,
}

impl Updated {
    /// Converts the reply to an [`crate::Op::Update`] with one update.
    pub fn of(reply: Reply<'_>) -> Updated {
        let Reply { version, copies, deadline, value, has_value, .. } = reply;
        Updated { version, copies, value: has_value.then(|| value.to_vec()), deadline }
    }
}

/// The result of a batch: several updates that were executed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The version of the changed entries. If the batch changed nothing, the version that the first update found.
    pub version: SequenceNumber,
    /// The number of replicas that hold the write: 2, or 1 while the group of the keys is degraded.
    pub copies: u8,
    /// The result of each update, in order.
    pub results: Vec<BatchResult>,
}

/// The result of one update of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchResult {
    /// The outcome: OK, NOT_FOUND, or for an optional update the status with which it was skipped.
    pub status: Status,
    /// The value that the update returns, the sum or the length as a decimal text; `None` if there is none.
    pub value: Option<Vec<u8>>,
    /// The deadline of the entry after the update, if it has one and the update returns the value.
    pub deadline: Option<WallTime>,
}

impl Batch {
    /// Converts the reply to an [`crate::Op::Update`] with `count` updates.
    pub fn of(reply: Reply<'_>, count: usize) -> Batch {
        let Reply { version, copies, deadline, value, has_value, .. } = reply;
        let results = match count {
            0 | 1 => {
                let value = has_value.then(|| value.to_vec());
                vec![BatchResult { status: Status::Ok, value, deadline }]
            }
            // The engine has checked the results.
            _ => UpdateResult::read_all(value)
                .unwrap_or_default()
                .iter()
                .map(|&UpdateResult { status, value, deadline }| BatchResult {
                    status,
                    value: value.map(<[u8]>::to_vec),
                    deadline,
                })
                .collect(),
        };
        Batch { version, copies, results }
    }
}

/// A value with the deadline of its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiring {
    /// The value.
    pub bytes: Vec<u8>,
    /// The entry's version.
    pub version: SequenceNumber,
    /// The time at which the entry expires, by the wall clock of its primary; `None` if it does not expire.
    pub deadline: Option<WallTime>,
}

impl Expiring {
    pub(crate) fn of(reply: Reply<'_>) -> Expiring {
        let Reply { value, version, deadline, .. } = reply;
        Expiring { bytes: value.to_vec(), version, deadline }
    }
}

/// The settings of [`crate::Client::put_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOptions<'a> {
    /// The condition of the put (default: none).
    pub condition: Precondition<'a>,
    /// The deadline of the entry (default: none).
    pub expiry: Expiry,
    /// True if the result has the value before the put (default: false).
    pub returns_old_value: bool,
}

impl Default for PutOptions<'_> {
    fn default() -> Self {
        let (condition, expiry) = (Precondition::None, Expiry::Never);
        PutOptions { condition, expiry, returns_old_value: false }
    }
}
