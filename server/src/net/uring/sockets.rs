//! The sockets of an engine, each with the requests that the kernel has of it.
//!
//! A slot is used again only when every request of it has completed: so a completion always belongs to
//! the socket that is there, and a descriptor is closed behind its last request.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::{GroupId, Time};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::ring::SlotId;
use crate::log_limit::LogLimit;
use crate::net::listener::Port;
use crate::net::output::SendNow;
use crate::stats::Permit;

/// What stands in a slot.
pub(super) enum Socket {
    Listener(Listener),
    Dialling(Dialling),
    Connection(Connection),
}

/// A socket that is accepted from.
pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    pub(super) port: Port,
    /// When to go on accepting, after a failure.
    pub(super) resume_at: Option<Time>,
    pub(super) log: LogLimit,
}

/// A socket that is being connected.
pub(super) struct Dialling {
    pub(super) fd: OwnedFd,
    pub(super) group: GroupId,
    pub(super) deadline: Time,
    pub(super) stage: Stage,
}

/// How far a dial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In time.
    Connecting,
    /// It took too long: two completions are due, its own and that of its cancellation.
    GivenUp,
    /// One of the two is.
    Ending,
}

/// A socket with a connection, or what is left of it while its requests end.
pub(super) struct Connection {
    /// Its output has it too, for long values; whichever of the two goes last closes it.
    pub(super) fd: Rc<OwnedFd>,
    pub(super) port: Port,
    pub(super) permit: Option<Permit>,
    /// `None` once it is closed.
    pub(super) id: Option<ConnectionId>,
    pub(super) receiving: Receiving,
    pub(super) is_sending: bool,
    pub(super) is_shut: bool,
    /// Cancellations under way.
    pub(super) cancels: u8,
}

/// What is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Nothing.
    Nothing,
    /// What comes next, into a buffer of its own: the hello, after which another shard may go on.
    Hello,
    /// Whatever comes.
    All,
    /// The rest of a long frame, straight into its buffer.
    Frame,
    /// As `Hello` and `All`, but to be ended; what still comes is taken.
    Ending,
}

impl SendNow for OwnedFd {
    fn send_now(&self, parts: &[IoSlice<'_>]) -> usize {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(self, parts, &mut SendAncillaryBuffer::default(), flags).unwrap_or(0)
    }
}

impl Connection {
    /// Whether the kernel has no request of it.
    pub(super) fn is_quiet(&self) -> bool {
        self.receiving == Receiving::Nothing && !self.is_sending && self.cancels == 0
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Sockets {
    slots: Vec<Option<Socket>>,
    free: Vec<u32>,
}

impl Sockets {
    /// Finds a slot for a socket.
    pub(super) fn insert(&mut self, socket: Socket) -> SlotId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("descriptors are bounded far below")
        });
        self.slots[slot as usize] = Some(socket);
        SlotId(slot)
    }

    /// Takes a socket out whose requests have all completed.
    pub(super) fn remove(&mut self, slot: SlotId) -> Option<Socket> {
        let socket = self.slots[slot.index()].take();
        if socket.is_some() {
            self.free.push(slot.0);
        }
        socket
    }

    pub(super) fn get(&mut self, slot: SlotId) -> Option<&mut Socket> {
        self.slots.get_mut(slot.index())?.as_mut()
    }

    pub(super) fn connection(&mut self, slot: SlotId) -> Option<&mut Connection> {
        match self.get(slot)? {
            Socket::Connection(connection) => Some(connection),
            Socket::Listener(_) | Socket::Dialling(_) => None,
        }
    }

    /// Whether it is a stream to or from another server.
    pub(super) fn is_peer(&mut self, slot: SlotId) -> bool {
        self.connection(slot).is_some_and(|connection| connection.port == Port::Servers)
    }

    /// All that stand, with their places.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Socket)> {
        let places = (0u32..).map(SlotId);
        places.zip(&mut self.slots).filter_map(|(slot, socket)| Some((slot, socket.as_mut()?)))
    }
}
