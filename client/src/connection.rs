//! One non-blocking socket: bytes out, frames in. The engine interprets the frames.
//!
//! ```text
//!   connect -> Opening --WELCOME--> Open       HELLO is queued in `output` at once
//! ```

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kv_protocol::client_message::{GROUPS_OF_A_SERVER, Hello, Question, SessionStart};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClientId, ClusterId, GroupId, Member, SequenceNumber, ShardId};
use kv_protocol::limits::{MAX_RESPONSE_BODY, PROTOCOL_VERSION_MIN};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, sockopt};

use crate::address::{Address, Place, dial};
use crate::landing::Inflow;
use crate::operation::{OpId, Operations};
use crate::output::Output;
use crate::poller::Poller;
use crate::statistics::Traffic;
use crate::table::Table;

/// The minimum free space in the receive buffer for one read.
const MIN_ROOM: usize = 16 << 10;
/// The maximum free space in the receive buffer for one read. More than the minimum is provided only while a long
/// response is partly received.
const MAX_ROOM: usize = 1 << 20;
/// The maximum number of reads from one socket in a turn, so that one server cannot starve the others.
pub(crate) const MAX_READS: usize = 32;
/// The maximum number of outstanding requests on one connection, including those whose operations have ended. If a
/// connection exceeds it, the connection is closed.
pub(crate) const MAX_OUTSTANDING: usize = 2 * crate::options::MAX_IN_FLIGHT;

/// The purpose of a connection. Requests of different client ids need different connections: the client id in the hello
/// determines the sessions of all requests that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Requests to one shard's executor.
    Shard { member: Member, address: SocketAddr, shard: ShardId, client: ClientId },
    /// The map, from a coordinator or a server.
    Map { place: Place },
}

/// Hashes only the process and the shard of a [`Target::Shard`]. They distinguish almost all targets, because a client
/// rarely uses two client ids at once. The hash is used for operations without a cached route.
impl Hash for Target {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match *self {
            Target::Shard { member, shard, .. } => {
                state.write_u64(member.incarnation.0 ^ u64::from(shard.0) << 48);
            }
            Target::Map { place } => place.hash(state),
        }
    }
}

impl Target {
    /// Returns the peer to connect to.
    pub(crate) fn place(&self) -> Place {
        match *self {
            Target::Shard { member, address, .. } => {
                Place { server: Some(member.server), address: Some(address) }
            }
            Target::Map { place } => place,
        }
    }

    /// Returns whether the connection carries the requests of this client id.
    pub(crate) fn is_of(&self, id: ClientId) -> bool {
        matches!(*self, Target::Shard { client, .. } if client == id)
    }
}

/// The result of a successful read from a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes were received, and more may be available.
    Some,
    /// All available bytes were received.
    Last,
    /// The peer has closed the connection.
    End,
}

/// The reason why a connection cannot receive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("no memory for {bytes} bytes of a response")]
    NoMemory { bytes: usize },
    #[error(transparent)]
    System(io::Error),
}

/// One connection; see the module documentation.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) target: Target,
    /// The address of the peer.
    pub(crate) address: Address,
    token: u64,
    socket: OwnedFd,
    input: FrameBuffer,
    /// The long value that is being received directly into its destination, bypassing the frame buffer.
    pub(crate) inflow: Option<Inflow>,
    pub(crate) output: Output,
    /// True if the poller reports when the socket can be written.
    wants_write: bool,
    /// True if the peer has sent WELCOME.
    pub(crate) is_open: bool,
    /// The positions in the log at which sessions may begin, according to WELCOME.
    pub(crate) starts: [SessionStart; GROUPS_OF_A_SERVER],
    /// The version of the protocol that both sides support, according to WELCOME.
    pub(crate) version: u16,
    pub(crate) opened_at: Instant,
    /// The time at which bytes last arrived.
    pub(crate) heard_at: Instant,
    /// The number of bytes received.
    pub(crate) bytes_received: u64,
    /// The number of responses received.
    pub(crate) responses: u64,
    /// The operations to send once the connection is open.
    pub(crate) backlog: VecDeque<OpId>,
    /// The requests without a response, by request id.
    pub(crate) outstanding: Table<OpId>,
    /// True if no session uses the connection's client id, so that no new operation is assigned to the connection.
    pub(crate) is_retired: bool,
}

impl Connection {
    /// Returns the position in the log at which a session in this group may begin if its first write is sent on this
    /// connection. Returns zero if WELCOME did not name the group.
    pub(crate) fn session_start(&self, group: GroupId) -> SequenceNumber {
        let start = self.starts.iter().find(|start| start.group == group);
        start.map_or(SequenceNumber::ZERO, |start| start.committed)
    }

    /// Starts to connect and queues the hello, followed by the request if the target is the map. They are sent as soon
    /// as the connection is established. `path` is the socket to try before the address of the target.
    pub(crate) fn open(
        target: Target,
        path: Option<Arc<Path>>,
        hello: Hello,
        token: u64,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<Connection> {
        let (socket, address) = dial(path, target.place().address)?;
        poller.add(socket.as_fd(), token, true)?;
        let mut first = Vec::new();
        hello.write(&mut first);
        if matches!(target, Target::Map { .. }) {
            Question::Map.write(&mut first);
        }
        let mut output = Output::new(token);
        output.push_bytes(first);
        Ok(Connection {
            target,
            address,
            token,
            socket,
            input: FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY)),
            inflow: None,
            output,
            wants_write: true,
            is_open: false,
            starts: Default::default(),
            version: PROTOCOL_VERSION_MIN,
            opened_at: now,
            heard_at: now,
            bytes_received: 0,
            responses: 0,
            backlog: VecDeque::new(),
            outstanding: Table::default(),
            is_retired: false,
        })
    }

    /// Returns the hello for a connection to `target`.
    pub(crate) fn hello(target: &Target, cluster: Option<ClusterId>, own: ClientId) -> Hello {
        match *target {
            Target::Shard { client, shard, .. } => {
                Hello::new(cluster.unwrap_or_default(), client, shard)
            }
            // A response of any cluster is accepted: its map states whether it was restored from the known one.
            Target::Map { .. } => Hello::new(ClusterId::default(), own, ShardId(0)),
        }
    }

    /// Returns the name of the message that must arrive within the connect timeout, if it is still missing. A
    /// connection for the map must also receive the map in that time: it carries only one request, and a silent peer
    /// would block the next request to the same address.
    pub(crate) fn owes(&self) -> Option<&'static str> {
        match self.target {
            _ if !self.is_open => Some("welcome"),
            Target::Map { .. } => Some("map"),
            Target::Shard { .. } => None,
        }
    }

    /// Returns whether this is a connection to a shard that has no outstanding request and an empty backlog.
    pub(crate) fn is_idle(&self) -> bool {
        let is_for_shard = matches!(self.target, Target::Shard { .. });
        is_for_shard && self.backlog.is_empty() && self.outstanding.len() == 0
    }

    /// Returns whether the connection is retired and idle, so that it can be closed.
    pub(crate) fn is_done(&self) -> bool {
        self.is_retired && self.is_idle()
    }

    /// Sends as much of the output as the kernel accepts.
    pub(crate) fn flush(&mut self, operations: &mut Operations, poller: &Poller) -> io::Result<()> {
        self.output.flush(&self.socket, operations)?;
        let is_done = self.output.is_empty();
        if self.wants_write == is_done {
            poller.change(self.socket.as_fd(), self.token, !is_done)?;
            self.wants_write = !is_done;
        }
        Ok(())
    }

    /// Returns whether output can be sent without waiting for the poller.
    pub(crate) fn is_writable(&self) -> bool {
        !self.wants_write
    }

    /// Returns the pending error of the socket, from the connect or later.
    pub(crate) fn check_connect(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.socket)??)
    }

    /// Receives available bytes into the frame buffer, or straight to the destination of a long value.
    ///
    /// # Errors
    /// There is no memory for the response, or the system call fails; the connection is unusable afterwards.
    pub(crate) fn receive(&mut self, now: Instant) -> Result<Received, ReceiveError> {
        if let Some(inflow) = &mut self.inflow {
            let missing = inflow.missing();
            let received = inflow.fill(|room| {
                let received = net::recv(&self.socket, room, RecvFlags::DONTWAIT);
                received.map(|((received, _), _)| received.len())
            });
            return match received {
                Ok(count) if 0 < count && count < missing => {
                    self.heard_at = now;
                    self.bytes_received += count as u64;
                    Ok(Received::Some)
                }
                received => self.received(received.map(|count| (count, 0)), now),
            };
        }
        let room = self.input.waiting().len().clamp(MIN_ROOM, MAX_ROOM);
        let socket = &self.socket;
        let received = self.input.fill(room, |bytes| {
            let before = bytes.len();
            let free = bytes.capacity() - before;
            let received = net::recv(socket, spare_capacity(bytes), RecvFlags::DONTWAIT);
            received.map(|_| (bytes.len() - before, free))
        });
        let received = received.map_err(|_| ReceiveError::NoMemory { bytes: room })?;
        self.received(received, now)
    }

    /// Converts the result of a read into [`Received`]. A read that does not fill the space has received all available
    /// bytes.
    fn received(
        &mut self,
        received: Result<(usize, usize), Errno>,
        now: Instant,
    ) -> Result<Received, ReceiveError> {
        match received {
            Ok((0, _)) => Ok(Received::End),
            Ok((count, room)) => {
                self.heard_at = now;
                self.bytes_received += count as u64;
                Ok(if count < room { Received::Last } else { Received::Some })
            }
            Err(Errno::INTR) => Ok(Received::Some),
            Err(Errno::AGAIN) => Ok(Received::Last),
            Err(error) => Err(ReceiveError::System(error.into())),
        }
    }

    /// Returns the counters of this connection.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.outstanding.inserted(),
            responses: self.responses,
            bytes_sent: self.output.bytes_sent,
            bytes_received: self.bytes_received,
            heard_at: (self.bytes_received > 0).then_some(self.heard_at),
        }
    }

    /// Returns the token under which the connection is registered with the poller.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// Returns whether a response is partly received.
    pub(crate) fn has_partial_input(&self) -> bool {
        self.input.is_partial() || self.inflow.is_some()
    }

    /// Takes the frame buffer out of the connection, so that frames can be read while the connection changes.
    pub(crate) fn take_input(&mut self) -> FrameBuffer {
        let empty = FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY));
        std::mem::replace(&mut self.input, empty)
    }

    /// Puts the frame buffer back.
    pub(crate) fn restore_input(&mut self, input: FrameBuffer) {
        self.input = input;
    }

    /// Removes the connection from the poller. Dropping the connection closes its descriptor.
    pub(crate) fn unregister(&self, poller: &Poller) {
        poller.remove(self.socket.as_fd());
    }
}
