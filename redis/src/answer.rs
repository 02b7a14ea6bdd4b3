//! The response to an [`Ask`](crate::ask::Ask), as the commands see it.

use kv_protocol::client_message::{Response, Status};
use kv_protocol::ids::{SequenceNumber, WallTime};
use kv_protocol::update::UpdateResult;

use crate::error::{self, Error};

/// A definite response of the store. Its status is OK, NOT_FOUND, CONFLICT, NOT_A_NUMBER or OVERFLOW; every other status
/// becomes an error before the command sees it. A PART counts as OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The status.
    pub status: Status,
    /// The version of the entry or of the write.
    pub version: SequenceNumber,
    /// The value, if there is one: that which was read, or the result of an update.
    pub value: Option<&'a [u8]>,
    /// The length of the whole value of which `value` is a part.
    pub whole: u32,
    /// The deadline of the entry, if the request asked for it.
    pub deadline: Option<WallTime>,
    /// The number of replicas that hold a write; 0 for a read.
    pub copies: u8,
}

impl<'a> Answer<'a> {
    /// Creates an answer from a response. `is_read` is true for a GET or SCAN.
    ///
    /// # Errors
    /// If no command has use for the status.
    pub fn of(response: &Response<'a>, is_read: bool) -> Result<Answer<'a>, Error> {
        let Response { status, version, value, whole, deadline, copies, .. } = *response;
        let (status, whole) = match status {
            Status::Part => (Status::Ok, whole),
            Status::Ok
            | Status::NotFound
            | Status::Conflict
            | Status::NotANumber
            | Status::Overflow => (status, u32::try_from(value.len()).unwrap_or(u32::MAX)),
            other => return Err(error::of_status(other, value)),
        };
        let has_value = response.has_value || (is_read && status == Status::Ok);
        Ok(Answer { status, version, value: has_value.then_some(value), whole, deadline, copies })
    }

    /// Returns whether the status is OK.
    pub fn is_done(&self) -> bool {
        self.status == Status::Ok
    }

    /// Returns the results of a request with several updates; empty if the request failed.
    pub fn results(&self) -> Vec<UpdateResult<'a>> {
        match (self.status, self.value) {
            (Status::Ok, Some(value)) => UpdateResult::read_all(value).unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}
