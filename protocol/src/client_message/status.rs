//! The outcome of a request.

use std::fmt;

use crate::codec::Reader;
use crate::error::DecodeError;

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Status {
    /// Success.
    Ok = 0,
    /// The key does not exist.
    NotFound = 1,
    /// The condition of the write does not hold; nothing was changed.
    Conflict = 2,
    /// This server does not serve the key: fetch the map and retry.
    WrongView = 3,
    /// The group cannot be served at the moment: retry.
    Unavailable = 4,
    /// No holder of the group is left.
    Lost = 5,
    /// The key or the value is longer than allowed.
    TooBig = 6,
    /// The memory limit is reached; the write was not executed.
    OutOfSpace = 7,
    /// Too many connections, sessions or writes in flight; nothing was executed.
    Busy = 8,
    /// The server no longer has a record that shows whether this write was executed.
    SessionExpired = 9,
    /// The fields of the request contradict each other; nothing was executed.
    Invalid = 10,
    /// The opcode or the protocol version is not supported on this connection.
    Unsupported = 11,
    /// Another write of the session already has this number, because two processes use one client id. Nothing
    /// was executed.
    SessionMismatch = 12,
    /// A RESOLVE has settled this write: it was not executed and never will be.
    NotDone = 13,
    /// Success, with the requested part of the value, which may be empty. The length of the whole value precedes
    /// the part.
    Part = 14,
    /// The value is no number of the kind that the update adds to; nothing was changed.
    NotANumber = 15,
    /// The sum is outside the range of its kind of number; nothing was changed.
    Overflow = 16,
    /// The keys of the request are not all of one shard; nothing was changed.
    CrossShard = 17,
}

impl Status {
    /// Returns the status with this number.
    pub fn from_wire(number: u8) -> Option<Status> {
        Some(match number {
            0 => Status::Ok,
            1 => Status::NotFound,
            2 => Status::Conflict,
            3 => Status::WrongView,
            4 => Status::Unavailable,
            5 => Status::Lost,
            6 => Status::TooBig,
            7 => Status::OutOfSpace,
            8 => Status::Busy,
            9 => Status::SessionExpired,
            10 => Status::Invalid,
            11 => Status::Unsupported,
            12 => Status::SessionMismatch,
            13 => Status::NotDone,
            14 => Status::Part,
            15 => Status::NotANumber,
            16 => Status::Overflow,
            17 => Status::CrossShard,
            _ => return None,
        })
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Status, DecodeError> {
        let number = reader.u8("status")?;
        Status::from_wire(number)
            .ok_or(DecodeError::BadValue { field: "status", value: number.into() })
    }
}

/// Writes the name of the status in docs/protocol.md, such as `WRONG_VIEW`.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Ok => "OK",
            Status::NotFound => "NOT_FOUND",
            Status::Conflict => "CONFLICT",
            Status::WrongView => "WRONG_VIEW",
            Status::Unavailable => "UNAVAILABLE",
            Status::Lost => "LOST",
            Status::TooBig => "TOO_BIG",
            Status::OutOfSpace => "OUT_OF_SPACE",
            Status::Busy => "BUSY",
            Status::SessionExpired => "SESSION_EXPIRED",
            Status::Invalid => "INVALID",
            Status::Unsupported => "UNSUPPORTED",
            Status::SessionMismatch => "SESSION_MISMATCH",
            Status::NotDone => "NOT_DONE",
            Status::Part => "PART",
            Status::NotANumber => "NOT_A_NUMBER",
            Status::Overflow => "OVERFLOW",
            Status::CrossShard => "CROSS_SHARD",
        })
    }
}
