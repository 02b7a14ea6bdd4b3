//! Messages between clients and servers, and between clients and the coordinator.
//!
//! ```text
//!   HELLO   ->                 first frame of every connection
//!           <- WELCOME
//!   GET PUT DELETE NOOP VERIFY RESOLVE UPDATE SCAN ->  to a server, any number in flight
//!           <- RESPONSE                      in any order, matched by the request id
//!   MAP     -> <- MAP-RESPONSE               to the coordinator or a server
//!   STATUS  -> <- STATUS-RESPONSE (JSON)     to the coordinator
//!           <- ERROR                       in response to a frame that cannot be served; a close may follow
//! ```

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::frame::{Checksum, write_frame};
use crate::map::Map;

mod hello;
mod part;
mod request;
mod response;
mod scan;
mod status;

pub use hello::{GROUPS_OF_A_SERVER, Hello, SessionStart, Welcome};
pub use part::Part;
pub use request::{
    Condition, Operation, REQUEST_FIXED_BYTES, REQUEST_HEAD_BYTES, ReplicaRole, Request,
    WriteHeader,
};
pub use response::{
    RESPONSE_FIXED_BYTES, RESPONSE_HEAD_BYTES, RESPONSE_HEAD_BYTES_MAX, Response, ResponseHead,
};
pub use scan::{PageWriter, SCAN_PAGE_BYTES, SCAN_VALUE_BYTES_MAX, Scan, ScanItem, ScanPage};
pub use status::Status;

/// Opcodes of clients' connections.
pub mod opcode {
    /// The client's first frame.
    pub const HELLO: u8 = 0x01;
    /// The response to HELLO.
    pub const WELCOME: u8 = 0x02;
    /// The rejection of a frame or connection: a status and a reason.
    pub const ERROR: u8 = 0x03;
    /// The request to read a key.
    pub const GET: u8 = 0x10;
    /// The request to set a key.
    pub const PUT: u8 = 0x11;
    /// The request to remove a key.
    pub const DELETE: u8 = 0x12;
    /// The request without effect, which shows that the key's server responds.
    pub const NOOP: u8 = 0x13;
    /// The request to read a key from the named replica.
    pub const VERIFY: u8 = 0x14;
    /// The response to every [`Request`](super::Request).
    pub const RESPONSE: u8 = 0x15;
    /// The request to settle a write that ended in doubt.
    pub const RESOLVE: u8 = 0x16;
    /// The request for one or several updates of keys of one shard, in protocol version 2.
    pub const UPDATE: u8 = 0x17;
    /// The request for the map.
    pub const MAP: u8 = 0x18;
    /// The map, in response to MAP.
    pub const MAP_RESPONSE: u8 = 0x19;
    /// The request for the status.
    pub const STATUS: u8 = 0x1a;
    /// The status as JSON, in response to STATUS.
    pub const STATUS_RESPONSE: u8 = 0x1b;
    /// The request for a page of the entries of one shard, in protocol version 2.
    pub const SCAN: u8 = 0x1c;

    /// Returns whether a frame of this opcode is a [`Request`](super::Request).
    #[inline]
    pub fn is_request(opcode: u8) -> bool {
        matches!(opcode, GET..=VERIFY | RESOLVE | UPDATE | SCAN)
    }
}

/// The rejection of a hello, a frame or the whole connection, rather than of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// The reason as a status.
    pub status: Status,
    /// The reason as text (UTF-8).
    pub reason: &'a str,
}

impl<'a> Refusal<'a> {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Absent, opcode::ERROR, |body| {
            body.put_u8(self.status as u8);
            body.put_bytes(self.reason.as_bytes());
        });
    }

    /// Reads a rejection from its frame's body. If the reason is not valid UTF-8, a fixed text replaces it.
    pub fn read(body: &'a [u8]) -> Result<Refusal<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let status = Status::read(&mut reader)?;
        let reason = std::str::from_utf8(reader.remainder()).unwrap_or("(reason unreadable)");
        Ok(Refusal { status, reason })
    }
}

/// A request without a body. The coordinator serves MAP and STATUS; a server serves only MAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// A request for the [`Map`].
    Map,
    /// A request for the [`crate::status::ClusterStatus`].
    Status,
}

impl Question {
    /// Appends the frame.
    pub fn write(self, output: &mut Vec<u8>) {
        let opcode = match self {
            Question::Map => opcode::MAP,
            Question::Status => opcode::STATUS,
        };
        write_frame(output, Checksum::Absent, opcode, |_| {});
    }

    /// Reads a request without a body from its frame.
    pub fn read(opcode: u8, body: &[u8]) -> Result<Question, DecodeError> {
        let question = match opcode {
            opcode::MAP => Question::Map,
            opcode::STATUS => Question::Status,
            opcode => {
                return Err(DecodeError::UnknownOpcode { opcode, supported: "MAP, STATUS" });
            }
        };
        Reader::new(body).finish()?;
        Ok(question)
    }
}

/// Appends a MAP-RESPONSE.
pub fn write_map_response(output: &mut Vec<u8>, map: &Map) {
    write_frame(output, Checksum::Absent, opcode::MAP_RESPONSE, |body| map.write(body));
}

/// Reads the map from a MAP-RESPONSE's body.
pub fn read_map_response(body: &[u8]) -> Result<Map, DecodeError> {
    Map::read_all(body)
}

/// Appends a STATUS-RESPONSE; `json` is a [`crate::status::ClusterStatus`].
pub fn write_status_response(output: &mut Vec<u8>, json: &str) {
    write_frame(output, Checksum::Absent, opcode::STATUS_RESPONSE, |body| {
        body.put_bytes(json.as_bytes());
    });
}
