//! One non-blocking socket: bytes out, frames in. What they mean is the engine's.
//!
//! ```text
//!   connect -> Opening --WELCOME--> Open       HELLO waits in `output` from the first moment
//! ```

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use kv_protocol::client_message::{Hello, Question};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClientId, ClusterId, Member, RequestId, ShardId};
use kv_protocol::limits::MAX_ANSWER_BODY;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::operation::OpId;
use crate::poller::Poller;

/// Bytes taken from a socket at once.
pub(crate) const RECEIVE_BYTES: usize = 64 << 10;
/// How often a socket is read in one turn: one server must not keep the others waiting.
const MAX_READS: usize = 32;
/// Most requests of one connection that wait for an answer, those counted that their callers have
/// given up; more, and the connection is given up.
pub(crate) const MAX_OUTSTANDING: usize = 2 * crate::options::MAX_IN_FLIGHT;
/// Output that is sent without waiting for the next turn.
pub(crate) const EAGER_BYTES: usize = 64 << 10;

/// What a connection is for. Requests of different client ids need different connections: the
/// client id of a hello names the sessions of everything that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// Requests to one shard's executor.
    Shard { member: Member, address: SocketAddr, shard: ShardId, client: ClientId },
    /// The map, from a coordinator or a server.
    Map { address: SocketAddr },
}

impl Target {
    fn address(&self) -> SocketAddr {
        match *self {
            Target::Shard { address, .. } | Target::Map { address } => address,
        }
    }

    /// Whether it is for this client id's requests.
    pub(crate) fn is_of(&self, id: ClientId) -> bool {
        matches!(*self, Target::Shard { client, .. } if client == id)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) target: Target,
    token: u64,
    socket: OwnedFd,
    input: FrameBuffer,
    pub(crate) output: Vec<u8>,
    /// Bytes at the front of `output` that the kernel has taken.
    sent: usize,
    /// Whether the poller tells when it can be written to.
    wants_write: bool,
    /// Whether the other side has said WELCOME.
    pub(crate) is_open: bool,
    pub(crate) opened_at: Instant,
    /// When bytes last came.
    pub(crate) heard_at: Instant,
    /// Operations that are sent once it is open.
    pub(crate) backlog: VecDeque<OpId>,
    /// Requests sent and not answered.
    pub(crate) outstanding: HashMap<RequestId, OpId>,
    /// Whether its client id has no session any more, so that nothing new will be put on it.
    pub(crate) is_retired: bool,
}

impl Connection {
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
        let mut output = Vec::new();
        hello.write(&mut output);
        if matches!(target, Target::Map { .. }) {
            Question::Map.write(&mut output);
        }
        Ok(Connection {
            target,
            token,
            socket,
            input: FrameBuffer::new(FrameRules::unchecked(MAX_ANSWER_BODY)),
            output,
            sent: 0,
            wants_write: true,
            is_open: false,
            opened_at: now,
            heard_at: now,
            backlog: VecDeque::new(),
            outstanding: HashMap::new(),
            is_retired: false,
        })
    }

    /// The hello of a connection to `target`.
    pub(crate) fn hello(target: &Target, cluster: Option<ClusterId>, own: ClientId) -> Hello {
        let (client, shard) = match *target {
            Target::Shard { client, shard, .. } => (client, shard),
            Target::Map { .. } => (own, ShardId(0)),
        };
        Hello { cluster: cluster.unwrap_or_default(), client, shard }
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

    /// Whether nobody needs it any more.
    pub(crate) fn is_done(&self) -> bool {
        self.is_retired && self.backlog.is_empty() && self.outstanding.is_empty()
    }

    /// Gives the kernel as much of the output as it takes.
    pub(crate) fn flush(&mut self, poller: &Poller) -> io::Result<()> {
        while self.sent < self.output.len() {
            match net::send(&self.socket, &self.output[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                // A connect that has not ended: NOTCONN; the poller will tell.
                Err(Errno::AGAIN | Errno::NOTCONN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let is_done = self.sent == self.output.len();
        if is_done {
            self.output.clear();
            self.output.shrink_to(4 * EAGER_BYTES);
            self.sent = 0;
        }
        if self.wants_write == is_done {
            poller.change(self.socket.as_fd(), self.token, !is_done)?;
            self.wants_write = !is_done;
        }
        Ok(())
    }

    /// Whether output waits that the poller will not tell about.
    pub(crate) fn needs_flush(&self) -> bool {
        !self.output.is_empty() && !self.wants_write
    }

    /// The error that a connect, or anything later, ended with.
    pub(crate) fn check_connect(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.socket)??)
    }

    /// Takes what has arrived into the frame buffer, handing it on in portions so that a flood is
    /// judged as it comes. `Ok(false)`: the other side has closed.
    pub(crate) fn receive(
        &mut self,
        scratch: &mut [u8],
        now: Instant,
        mut on_bytes: impl FnMut(&mut Connection) -> Result<(), String>,
    ) -> Result<bool, String> {
        for _ in 0..MAX_READS {
            match net::recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Ok(false),
                Ok((_, count)) => {
                    self.heard_at = now;
                    self.input.extend(&scratch[..count]);
                    on_bytes(self)?;
                    if count < scratch.len() {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(io::Error::from(error).to_string()),
            }
        }
        Ok(true)
    }

    /// Under which it is registered with the poller.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// The received frames.
    pub(crate) fn input(&mut self) -> &mut FrameBuffer {
        &mut self.input
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
