//! The sockets of an engine, each with its requests in the kernel.
//!
//! A slot is reused only when all its requests have completed. So a completion always belongs to the socket in the
//! slot, and a descriptor is closed after its last request has completed.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;
use kv_shard::{DialTarget, LogLimit, Port};

use super::ring::SlotId;
use crate::admission::Permit;

/// The socket in a slot.
pub(super) enum Socket {
    Listener(Listener),
    Dialling(Dialling),
    Connection(Connection),
}

/// One of the requests that accept connections of a port, each for one connection at a time.
pub(super) struct Listener {
    pub(super) fd: Rc<OwnedFd>,
    pub(super) port: Port,
    /// The time at which accepting connections resumes after a failure.
    pub(super) resume_at: Option<Time>,
    /// The rate limit of log lines, shared by all listeners of the port.
    pub(super) log: Rc<RefCell<LogLimit>>,
}

/// A socket that is being connected.
pub(super) struct Dialling {
    pub(super) fd: OwnedFd,
    pub(super) target: DialTarget,
    pub(super) deadline: Time,
    pub(super) stage: Stage,
}

/// The progress of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Connecting, within its deadline.
    Connecting,
    /// Abandoned: two completions are outstanding, of the connect and of its cancellation.
    GivenUp,
    /// Abandoned: one of the two completions is outstanding.
    Ending,
}

/// A socket with a connection, or a closed connection whose last requests are still ending.
pub(super) struct Connection {
    pub(super) fd: OwnedFd,
    pub(super) port: Port,
    pub(super) permit: Option<Permit>,
    /// The connection's id; `None` once it is closed.
    pub(super) id: Option<ConnectionId>,
    pub(super) receiving: Receiving,
    /// True if the current or last receive returned bytes.
    pub(super) was_fed: bool,
    /// True if it carries the stream of a group, which is served first.
    pub(super) is_stream: bool,
    pub(super) is_sending: bool,
    pub(super) is_shut: bool,
    /// Cancellations in progress.
    pub(super) cancels: u8,
}

/// The receive in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Not receiving.
    Nothing,
    /// One receive into a separate buffer. It is used for the hello, after which another shard may adopt the
    /// connection. At the servers' port it is used until the handshake of a stream is complete.
    Hello,
    /// A multishot receive of all bytes.
    All,
    /// Not receiving, as no buffer was free: the connection waits for `Net::feed`.
    Hungry,
    /// The rest of a long frame, directly into its buffer.
    Frame,
    /// `Hello` or `All` that is being cancelled; bytes that still arrive are processed.
    Ending,
}

/// The class of a completion. Classes are served in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Streams between servers, and dials: all of them, in every turn.
    Streams,
    /// Connections at the servers' port that carry no stream yet: a few in every turn.
    Knocking,
    /// Clients: for a limited time in every turn.
    Clients,
}

impl Connection {
    /// Returns whether no request of the connection is in the kernel.
    pub(super) fn is_quiet(&self) -> bool {
        let is_receiving = !matches!(self.receiving, Receiving::Nothing | Receiving::Hungry);
        !is_receiving && !self.is_sending && self.cancels == 0
    }
}

/// All sockets of an engine.
#[derive(Default)]
pub(super) struct Sockets {
    slots: Vec<Option<Socket>>,
    free: Vec<u32>,
}

impl Sockets {
    /// Inserts a socket into a free slot.
    pub(super) fn insert(&mut self, socket: Socket) -> SlotId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("descriptors are bounded far below")
        });
        self.slots[slot as usize] = Some(socket);
        SlotId(slot)
    }

    /// Removes a socket whose requests have all completed.
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

    /// Returns the class of a completion of this slot.
    pub(super) fn class(&mut self, slot: SlotId) -> Class {
        match self.get(slot) {
            Some(Socket::Dialling(_)) => Class::Streams,
            Some(Socket::Connection(connection)) if connection.is_stream => Class::Streams,
            Some(Socket::Connection(Connection { port: Port::Servers, .. })) => Class::Knocking,
            Some(Socket::Listener(Listener { port: Port::Servers, .. })) => Class::Knocking,
            Some(Socket::Connection(_) | Socket::Listener(_)) | None => Class::Clients,
        }
    }

    /// Returns all sockets, with their slots.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Socket)> {
        let places = (0u32..).map(SlotId);
        places.zip(&mut self.slots).filter_map(|(slot, socket)| Some((slot, socket.as_mut()?)))
    }
}
