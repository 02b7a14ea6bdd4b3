//! The sockets of an engine, each with the requests that the kernel has of it.
//!
//! A slot is used again only when every request of it has completed: so a completion always belongs to
//! the socket that is there, and a descriptor is closed behind its last request.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::{GroupId, Time};

use super::ring::SlotId;
use crate::log_limit::LogLimit;
use crate::net::listener::Port;
use crate::stats::Permit;

/// What stands in a slot.
pub(super) enum Socket {
    Listener(Listener),
    Dialling(Dialling),
    Connection(Connection),
}

/// One of the requests by which connections of a port are accepted, each one at a time.
pub(super) struct Listener {
    pub(super) fd: Rc<OwnedFd>,
    pub(super) port: Port,
    /// When to go on accepting, after a failure.
    pub(super) resume_at: Option<Time>,
    /// Shared by all of the port.
    pub(super) log: Rc<RefCell<LogLimit>>,
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
    /// Whether bytes came by the receive that stands or stood last.
    pub(super) was_fed: bool,
    /// Whether it carries the stream of a group: it is served first.
    pub(super) is_stream: bool,
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
    /// What comes next, into a buffer of its own: the hello, after which another shard may go on, and all that comes to
    /// the servers' port before the hello of a stream was taken.
    Hello,
    /// Whatever comes.
    All,
    /// Nothing, as no buffer was free: it waits in the queue of those that are to be fed.
    Hungry,
    /// The rest of a long frame, straight into its buffer.
    Frame,
    /// As `Hello` and `All`, but to be ended; what still comes is taken.
    Ending,
}

/// Whose work something is, in the order in which it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Of the streams between servers: all of it, in every turn.
    Streams,
    /// Of those who knock at the servers' port: a few in every turn.
    Knocking,
    /// Of clients: for a while in every turn.
    Clients,
}

impl Connection {
    /// Whether the kernel has no request of it.
    pub(super) fn is_quiet(&self) -> bool {
        let is_receiving = !matches!(self.receiving, Receiving::Nothing | Receiving::Hungry);
        !is_receiving && !self.is_sending && self.cancels == 0
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

    /// Whose work a completion of this slot is.
    pub(super) fn class(&mut self, slot: SlotId) -> Class {
        match self.get(slot) {
            Some(Socket::Dialling(_)) => Class::Streams,
            Some(Socket::Connection(connection)) if connection.is_stream => Class::Streams,
            Some(Socket::Connection(Connection { port: Port::Servers, .. })) => Class::Knocking,
            Some(Socket::Listener(Listener { port: Port::Servers, .. })) => Class::Knocking,
            Some(Socket::Connection(_) | Socket::Listener(_)) | None => Class::Clients,
        }
    }

    /// All that stand, with their places.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Socket)> {
        let places = (0u32..).map(SlotId);
        places.zip(&mut self.slots).filter_map(|(slot, socket)| Some((slot, socket.as_mut()?)))
    }
}
