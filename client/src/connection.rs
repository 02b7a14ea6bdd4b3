//! One non-blocking socket: bytes out, frames in. What they mean is the engine's.
//!
//! ```text
//!   connect -> Opening --WELCOME--> Open       HELLO waits in `output` from the first moment
//! ```

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use kv_protocol::client_message::{GROUPS_OF_A_SERVER, Hello, Question, SessionStart};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClientId, ClusterId, GroupId, Member, SequenceNumber, ShardId};
use kv_protocol::limits::MAX_ANSWER_BODY;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

use crate::landing::Inflow;
use crate::operation::{OpId, Operations};
use crate::output::Output;
use crate::poller::Poller;
use crate::statistics::Traffic;
use crate::table::Table;

/// Bytes that there is room for when a socket is read: at least, and, where a long answer is on its
/// way, at most.
const MIN_ROOM: usize = 16 << 10;
const MAX_ROOM: usize = 1 << 20;
/// How often a socket is read in one turn: one server must not keep the others waiting.
pub(crate) const MAX_READS: usize = 32;
/// Most requests of one connection that wait for an answer, those counted that their callers have
/// given up; more, and the connection is given up.
pub(crate) const MAX_OUTSTANDING: usize = 2 * crate::options::MAX_IN_FLIGHT;

/// What a connection is for. Requests of different client ids need different connections: the
/// client id of a hello names the sessions of everything that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Requests to one shard's executor.
    Shard { member: Member, address: SocketAddr, shard: ShardId, client: ClientId },
    /// The map, from a coordinator or a server.
    Map { address: SocketAddr },
}

/// It is looked for with each operation. Process and shard tell almost all targets apart: there are
/// seldom two client ids.
impl Hash for Target {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match *self {
            Target::Shard { member, shard, .. } => {
                state.write_u64(member.incarnation.0 ^ u64::from(shard.0) << 48);
            }
            Target::Map { address } => address.hash(state),
        }
    }
}

impl Target {
    pub(crate) fn address(&self) -> SocketAddr {
        match *self {
            Target::Shard { address, .. } | Target::Map { address } => address,
        }
    }

    /// Whether it is for this client id's requests.
    pub(crate) fn is_of(&self, id: ClientId) -> bool {
        matches!(*self, Target::Shard { client, .. } if client == id)
    }
}

/// What a read of a socket has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// There may be more.
    Some,
    /// All there was.
    Last,
    /// The other side has closed.
    End,
}

/// Why a socket cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("no memory for {bytes} bytes of an answer")]
    NoMemory { bytes: usize },
    #[error(transparent)]
    System(io::Error),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) target: Target,
    token: u64,
    socket: OwnedFd,
    input: FrameBuffer,
    /// The long value that comes, if it goes past the buffer.
    pub(crate) inflow: Option<Inflow>,
    pub(crate) output: Output,
    /// Whether the poller tells when it can be written to.
    wants_write: bool,
    /// Whether the other side has said WELCOME.
    pub(crate) is_open: bool,
    /// The places in the log at which sessions may begin, by the WELCOME.
    pub(crate) starts: [SessionStart; GROUPS_OF_A_SERVER],
    pub(crate) opened_at: Instant,
    /// When bytes last came.
    pub(crate) heard_at: Instant,
    /// Bytes, and responses to requests.
    pub(crate) bytes_received: u64,
    pub(crate) responses: u64,
    /// Operations that are sent once it is open.
    pub(crate) backlog: VecDeque<OpId>,
    /// Requests sent and not answered, by their ids.
    pub(crate) outstanding: Table<OpId>,
    /// Whether its client id has no session any more, so that nothing new will be put on it.
    pub(crate) is_retired: bool,
}

impl Connection {
    /// The place in the log at which a session in this group may begin if its first write is sent here.
    pub(crate) fn session_start(&self, group: GroupId) -> SequenceNumber {
        let start = self.starts.iter().find(|start| start.group == group);
        start.map_or(SequenceNumber::ZERO, |start| start.committed)
    }

    /// Starts to connect; the hello is on its way as soon as the connection stands.
    pub(crate) fn open(
        target: Target,
        hello: Hello,
        token: u64,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<Connection> {
        let address = target.address();
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
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
            token,
            socket,
            input: FrameBuffer::new(FrameRules::unchecked(MAX_ANSWER_BODY)),
            inflow: None,
            output,
            wants_write: true,
            is_open: false,
            starts: Default::default(),
            opened_at: now,
            heard_at: now,
            bytes_received: 0,
            responses: 0,
            backlog: VecDeque::new(),
            outstanding: Table::default(),
            is_retired: false,
        })
    }

    /// The hello of a connection to `target`.
    pub(crate) fn hello(target: &Target, cluster: Option<ClusterId>, own: ClientId) -> Hello {
        match *target {
            Target::Shard { client, shard, .. } => {
                Hello { cluster: cluster.unwrap_or_default(), client, shard }
            }
            // A response from any cluster is accepted: its map says whether it was restored from the known one.
            Target::Map { .. } => {
                Hello { cluster: ClusterId::default(), client: own, shard: ShardId(0) }
            }
        }
    }

    /// What has to come within the connect timeout. A map's connection lives for one
    /// question, so a welcome is not enough there: its silence would keep everybody from asking
    /// the next.
    pub(crate) fn owes(&self) -> Option<&'static str> {
        match self.target {
            _ if !self.is_open => Some("welcome"),
            Target::Map { .. } => Some("map"),
            Target::Shard { .. } => None,
        }
    }

    /// Returns true if no request is under way on it or waits for it.
    pub(crate) fn is_idle(&self) -> bool {
        let is_for_shard = matches!(self.target, Target::Shard { .. });
        is_for_shard && self.backlog.is_empty() && self.outstanding.len() == 0
    }

    /// Whether nobody needs it any more.
    pub(crate) fn is_done(&self) -> bool {
        self.is_retired && self.is_idle()
    }

    /// Gives the kernel as much of the output as it takes.
    pub(crate) fn flush(&mut self, operations: &mut Operations, poller: &Poller) -> io::Result<()> {
        self.output.flush(&self.socket, operations)?;
        let is_done = self.output.is_empty();
        if self.wants_write == is_done {
            poller.change(self.socket.as_fd(), self.token, !is_done)?;
            self.wants_write = !is_done;
        }
        Ok(())
    }

    /// Whether output is to be flushed without a word of the poller.
    pub(crate) fn is_writable(&self) -> bool {
        !self.wants_write
    }

    /// The error that a connect, or anything later, ended with.
    pub(crate) fn check_connect(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.socket)??)
    }

    /// Takes some of what has arrived into the frame buffer.
    ///
    /// # Errors
    /// [`ReceiveError`]; the connection is of no further use.
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

    /// Judges a read: how many bytes came, and for how many there was room.
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

    /// Returns its counters.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.outstanding.inserted(),
            responses: self.responses,
            bytes_sent: self.output.bytes_sent,
            bytes_received: self.bytes_received,
            heard_at: (self.bytes_received > 0).then_some(self.heard_at),
        }
    }

    /// Under which it is registered with the poller.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// Whether an answer has come in part.
    pub(crate) fn has_partial_input(&self) -> bool {
        self.input.is_partial() || self.inflow.is_some()
    }

    /// Takes the frame buffer out, so that frames can be read while the rest changes.
    pub(crate) fn take_input(&mut self) -> FrameBuffer {
        let empty = FrameBuffer::new(FrameRules::unchecked(MAX_ANSWER_BODY));
        std::mem::replace(&mut self.input, empty)
    }

    /// Puts it back.
    pub(crate) fn restore_input(&mut self, input: FrameBuffer) {
        self.input = input;
    }

    /// Takes it off the poller; the descriptor closes as the connection is dropped.
    pub(crate) fn unregister(&self, poller: &Poller) {
        poller.remove(self.socket.as_fd());
    }
}
