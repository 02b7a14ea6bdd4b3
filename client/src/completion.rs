//! The results of operations, and the completions of the pipelined interface.

use std::cell::RefCell;
use std::ops::ControlFlow;

use kv_protocol::ids::{SequenceNumber, WallTime};

use crate::doubt::Settled;
use crate::error::Error;
use crate::landing::{Landed, LongValue};
use crate::operation::{Notify, OpId};
use crate::scan::ScanProgress;

/// The result of a successful operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The value, or the requested part of it. For updates see [`Reply::value`]. Empty for other operations.
    pub value: Vec<u8>,
    /// True if there is a value, which may be empty; see [`Reply::has_value`].
    pub has_value: bool,
    /// The length of the whole value.
    pub length: usize,
    /// The deadline of the entry; see [`Reply::deadline`].
    pub deadline: Option<WallTime>,
    /// The entry's version. For a delete: the sequence number of the delete itself.
    pub version: SequenceNumber,
    /// The number of replicas that hold the write; zero for other operations.
    pub copies: u8,
    /// The progress of a scan.
    pub scan: Option<ScanProgress>,
}

/// A result like [`Outcome`], with the value borrowed from the memory into which it was received.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// For a get or a verify: the value, or the requested part of it. For one update: the value that it returns, the
    /// sum or the length as a decimal text. For several updates: their encoded results
    /// ([`crate::update::UpdateResult`]). For a scan: an encoded page ([`crate::Page::of`]). Empty for other
    /// operations.
    pub value: &'a [u8],
    /// True if there is a value, which may be empty. False for an update that returns no value, or found none.
    pub has_value: bool,
    /// The length of the whole value.
    pub length: usize,
    /// The deadline of the entry, if it has one and the operation requests it.
    pub deadline: Option<WallTime>,
    /// The separate memory that holds the value; `None` if the value is in the receive buffer. The cell is empty if the
    /// value is in the caller's memory, or if the separate memory was taken.
    pub(crate) landed: Option<&'a Landed>,
    /// The entry's version. For a delete: the sequence number of the delete itself.
    pub version: SequenceNumber,
    /// The number of replicas that hold the write; zero for other operations.
    pub copies: u8,
    /// The progress of a scan.
    pub scan: Option<ScanProgress>,
}

impl Outcome {
    /// Returns the result with a borrowed value.
    pub fn reply(&self) -> Reply<'_> {
        let Outcome { ref value, has_value, length, deadline, version, copies, scan } = *self;
        Reply { value, has_value, length, deadline, landed: None, version, copies, scan }
    }
}

impl Reply<'_> {
    /// Creates the result of a settled write.
    pub(crate) fn of_settled(settled: &Settled) -> Reply<'_> {
        let Settled { version, copies, ref value, deadline } = *settled;
        let (has_value, value) = (value.is_some(), value.as_deref().unwrap_or(&[]));
        let length = value.len();
        Reply { value, has_value, length, deadline, landed: None, version, copies, scan: None }
    }

    /// Takes the separate memory of a long value ([`crate::Landing::Memory`]). Returns `None` if the value is not in
    /// separate memory, or if the memory was taken before. The borrowed value is readable only while that memory
    /// exists.
    pub fn take_memory(self) -> Option<LongValue> {
        self.landed.and_then(RefCell::take)
    }
}

impl From<Reply<'_>> for Outcome {
    fn from(reply: Reply<'_>) -> Outcome {
        let Reply { value, has_value, length, deadline, version, copies, scan, .. } = reply;
        Outcome { value: value.to_vec(), has_value, length, deadline, version, copies, scan }
    }
}

/// The completion of a submitted operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The tag that the caller passed to [`crate::Client::submit`].
    pub tag: u64,
    /// The result of the operation.
    pub result: Result<Outcome, Error>,
}

/// A function that receives each completion: its tag and its result, with the value borrowed from the receive buffer.
/// If it returns a break, the poll reads nothing more from the servers.
pub trait OnEnd: FnMut(u64, Result<Reply<'_>, Error>) -> ControlFlow<()> {}

impl<F: FnMut(u64, Result<Reply<'_>, Error>) -> ControlFlow<()>> OnEnd for F {}

/// The error of [`crate::Client::submit`]; the operation was not submitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The maximum number of operations or bytes is in flight. The caller has to collect completions first.
    #[error(
        "{operations} operations with {bytes} bytes are in flight or not collected; poll for completions, then submit the operation again"
    )]
    Full {
        /// The number of operations submitted and not collected.
        operations: usize,
        /// The number of bytes of keys and values in flight.
        bytes: usize,
    },
    /// The operation is invalid, there is no memory for it, or the program has interrupted the client.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// A receiver of the results of operations as they end, with values borrowed from their receive buffers.
pub(crate) trait Ends {
    fn end(&mut self, id: OpId, notify: Notify, result: Result<Reply<'_>, Error>);

    /// Returns whether this turn should stop reading from the servers.
    fn is_enough(&self) -> bool {
        false
    }
}
