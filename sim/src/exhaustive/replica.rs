//! The inputs and effects of a shard in the search, and the observable state of its replica.

use std::time::Duration;

use kv_core::replica::{Inspection, StreamError};
use kv_protocol::client_message::Status;
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{ClusterId, GroupId, Member, Time};
use kv_protocol::limits::MAX_PEER_BODY;
use kv_protocol::peer_message::PeerHello;
use kv_protocol::view::View;

use super::machine::Numbered;
use crate::invariants::Violation;

/// The cluster of every search.
pub const CLUSTER: ClusterId = ClusterId(9);
/// The model-checked group.
pub const GROUP: GroupId = GroupId(0);
/// The number of servers in the ring. A stub stands in for the other group.
pub const SERVERS: u16 = 2;

/// The length of a tick. One tick is longer than the candidate timeout and than the silence that a vote tolerates
/// (250 ms each). Two ticks are longer than a lease (500 ms) and shorter than a grace (625 ms). Three ticks are
/// longer than a grace. So ticks can produce every possible order of the deadlines.
pub const TICK: Duration = Duration::from_millis(300);

/// Returns the reading of all clocks at a tick.
pub fn reading(tick: u8) -> Time {
    Time::from_nanos(1_000_000_000) + TICK * u32::from(tick)
}

/// The number of a frame.
pub type FrameId = u32;

/// An input of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// An order to install a view.
    Install(ViewKey),
    /// A proof of death.
    Exited(Member),
    /// A client's request.
    Ask(Asked),
    /// The requested stream was connected.
    Dialled,
    /// A hello on a new connection.
    Hello(FrameId),
    /// A frame on the current stream.
    Frame(FrameId),
    /// The end of the current stream.
    Closed,
    /// A wake-up for a timer.
    Wake,
}

/// A view as a hash key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewKey(pub View);

impl std::hash::Hash for ViewKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0.version, self.0.primary, self.0.handover).hash(state);
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The number of the write or read.
    pub id: u64,
    /// The key.
    pub key: &'static str,
    /// The operation on the key.
    pub what: What,
}

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A read.
    Get,
    /// A write of a client's session.
    Write {
        /// The client.
        client: u8,
        /// The sequence number in the session.
        seq: u8,
        /// The lowest sequence number that has not ended.
        first_incomplete: u8,
        /// The kind of write.
        kind: Kind,
        /// True if the value is so large that it fills a batch of a copy. Every value identifies its write.
        large: bool,
    },
}

/// The kind of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Sets the value.
    Put,
    /// Sets the value if the key is absent.
    PutIfAbsent,
    /// Deletes the key.
    Delete,
}

/// An effect of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Sends on the current stream.
    Send(FrameId),
    /// Closes the current stream.
    Close,
    /// Accepts the connection on which the hello arrived as the current stream.
    Accept,
    /// Rejects the hello with this frame, and closes that connection.
    Refuse(FrameId),
    /// Connects, with this hello.
    Connect(FrameId),
    /// Responds to a client.
    Response(Given),
    /// Rejects a view.
    NotInstalled(String),
    /// Rejects a message of the stream.
    Misunderstood(StreamError),
    /// Violates an invariant.
    Broken(Violation),
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The request's number.
    pub id: u64,
    /// The status.
    pub status: Status,
    /// The number of copies that the response reports.
    pub copies: u8,
    /// The version in the response.
    pub version: u64,
    /// The write whose value a read returned.
    pub writer: Option<u8>,
}

/// The observable state of a replica.
#[derive(Debug)]
pub struct Sight {
    /// The replica's inspection.
    pub inside: Inspection,
    /// The hello of a stream that the replica requires and that is not connected.
    pub wants: Option<PeerHello>,
    /// The time of the replica's next timer.
    pub due: Option<Time>,
    /// The report for a heartbeat, without counters that only grow.
    pub report: Option<ReplicaReport>,
    /// The time at which the replica last received a message from the other holder.
    pub heard: Option<Time>,
}

/// Frames by number.
pub type Frames = Numbered<Vec<u8>>;

/// Returns the opcode and the body of a frame.
pub fn body_of(bytes: &[u8]) -> (u8, &[u8]) {
    let frame = split_frame(bytes, &FrameRules::checked(MAX_PEER_BODY));
    let frame = frame.expect("it is well formed").expect("it is whole");
    (frame.opcode, frame.body)
}
