//! How operations end, and what comes back from the pipelined interface.

use std::cell::RefCell;
use std::ops::ControlFlow;

use kv_protocol::ids::SequenceNumber;

use crate::error::Error;
use crate::landing::{Landed, LongValue};
use crate::operation::{Notify, OpId};

/// A successful operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The value read, or the part of it that was asked for; empty for everything but a get or verify.
    pub value: Vec<u8>,
    /// The length of the whole value.
    pub length: usize,
    /// The entry's version; of a delete, the number of the delete itself.
    pub version: SequenceNumber,
    /// How many tables hold the write; zero for what is no write.
    pub copies: u8,
}

/// As [`Outcome`], with the value where it was received.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The value read, or the part of it that was asked for; empty for everything but a get or verify.
    pub value: &'a [u8],
    /// The length of the whole value.
    pub length: usize,
    /// Where the value is, if that is memory of its own.
    pub(crate) landed: Option<&'a Landed>,
    /// The entry's version; of a delete, the number of the delete itself.
    pub version: SequenceNumber,
    /// How many tables hold the write; zero for what is no write.
    pub copies: u8,
}

impl Outcome {
    pub(crate) fn answered(&self) -> Answered<'_> {
        let Outcome { ref value, length, version, copies } = *self;
        Answered { value, length, landed: None, version, copies }
    }
}

impl Answered<'_> {
    /// A write that was done.
    pub(crate) fn of_write(version: SequenceNumber, copies: u8) -> Answered<'static> {
        Answered { value: &[], length: 0, landed: None, version, copies }
    }

    /// The memory of the value, where the operation asked for one of its own ([`crate::Landing::Memory`]) and the value
    /// is long. It is there once. The value stays readable where it is only while the memory lives.
    pub fn take_memory(self) -> Option<LongValue> {
        self.landed.and_then(RefCell::take)
    }
}

impl From<Answered<'_>> for Outcome {
    fn from(answered: Answered<'_>) -> Outcome {
        let Answered { value, length, version, copies, .. } = answered;
        Outcome { value: value.to_vec(), length, version, copies }
    }
}

/// The end of an operation that was submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's, as given to [`crate::Client::submit`].
    pub tag: u64,
    /// How it ended.
    pub result: Result<Outcome, Error>,
}

/// Who hears of the end of a submitted operation, by its tag, with the value where it was received; a break
/// says that it is enough for now.
pub trait OnEnd: FnMut(u64, Result<Answered<'_>, Error>) -> ControlFlow<()> {}

impl<F: FnMut(u64, Result<Answered<'_>, Error>) -> ControlFlow<()>> OnEnd for F {}

/// Why [`crate::Client::submit`] took nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many operations, or as many bytes, are in flight as may be: collect completions first.
    #[error(
        "{operations} operations with {bytes} bytes are in flight or not collected; poll, take completions, then submit it again"
    )]
    Full {
        /// Submitted and not collected.
        operations: usize,
        /// Of keys and values submitted and not ended.
        bytes: usize,
    },
    /// The operation can never be done.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// Who hears of the ends of operations as they happen, with values where they were received.
pub(crate) trait Ends {
    fn end(&mut self, id: OpId, notify: Notify, result: Result<Answered<'_>, Error>);

    /// Whether nothing more should be read from the servers in this turn.
    fn is_enough(&self) -> bool {
        false
    }
}
