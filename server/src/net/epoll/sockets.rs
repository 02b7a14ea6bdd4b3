//! The sockets of an engine, what they are ready for, and whose work each is.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::{GroupId, Time};

use crate::log_limit::LogLimit;
use crate::net::listener::Port;
use crate::net::output::slot_of;
use crate::stats::Permit;

/// A socket on which connections of a port are accepted.
pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    pub(super) port: Port,
    /// Whether there may be connections to accept.
    pub(super) is_ready: bool,
    /// When to go on accepting, after a failure.
    pub(super) resume_at: Option<Time>,
    pub(super) log: LogLimit,
}

impl Listener {
    pub(super) fn new(fd: OwnedFd, port: Port) -> Listener {
        Listener { fd, port, is_ready: true, resume_at: None, log: LogLimit::default() }
    }
}

/// A socket that is being connected.
pub(super) struct Dialling {
    pub(super) number: u32,
    pub(super) fd: OwnedFd,
    pub(super) group: GroupId,
    pub(super) deadline: Time,
    /// Whether it is connected, or has failed.
    pub(super) is_ready: bool,
}

/// A socket with a connection.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    /// Its output has it too, for long values; whichever of the two goes last closes it.
    pub(super) fd: Rc<OwnedFd>,
    pub(super) port: Port,
    pub(super) permit: Option<Permit>,
    /// Whether it carries the stream of a group: it is served first.
    pub(super) is_stream: bool,
    /// Whether there may be bytes, or an end, to receive.
    pub(super) is_readable: bool,
    /// An end or an error lies behind the bytes: it is read until that.
    pub(super) has_ended: bool,
    /// Whether it stands in the queue of those that are received from.
    pub(super) is_queued: bool,
    /// The socket took less than it was offered: until it has room again.
    pub(super) is_blocked: bool,
    pub(super) is_shut: bool,
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        fd: Rc<OwnedFd>,
        port: Port,
        permit: Option<Permit>,
    ) -> Connection {
        Connection {
            id,
            fd,
            port,
            permit,
            is_stream: false,
            is_readable: false,
            has_ended: false,
            is_queued: false,
            is_blocked: false,
            is_shut: false,
        }
    }

    /// Whether it came to the servers' port and carries no stream.
    pub(super) fn is_knocking(&self) -> bool {
        self.port == Port::Servers && !self.is_stream
    }
}

/// All of them, and those that have bytes to receive, in the order in which each part of a turn serves them.
#[derive(Default)]
pub(super) struct Sockets {
    /// By the places of their ids.
    connections: Vec<Option<Connection>>,
    pub(super) listeners: Vec<Listener>,
    /// At most one for each group.
    pub(super) dials: Vec<Dialling>,
    last_dial: u32,
    /// Of the streams between servers: all of it, in every turn.
    pub(super) streams: VecDeque<ConnectionId>,
    /// Of those who knock at the servers' port: a few in every turn.
    pub(super) knocking: VecDeque<ConnectionId>,
    /// Of clients: for a while in every turn.
    pub(super) clients: VecDeque<ConnectionId>,
}

impl Sockets {
    pub(super) fn insert(&mut self, connection: Connection) {
        let place = slot_of(connection.id);
        if place >= self.connections.len() {
            self.connections.resize_with(place + 1, || None);
        }
        self.connections[place] = Some(connection);
    }

    /// A connection, unless it was closed.
    pub(super) fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(slot_of(id))?.as_mut().filter(|connection| connection.id == id)
    }

    /// Takes a connection out.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.connections.get_mut(slot_of(id))?.take_if(|connection| connection.id == id)
    }

    /// Has a connection received from, if there may be something and it is in no queue yet.
    pub(super) fn queue_readable(&mut self, id: ConnectionId) {
        let Some(connection) = self.get(id) else { return };
        if !connection.is_readable || std::mem::replace(&mut connection.is_queued, true) {
            return;
        }
        let (is_stream, is_knocking) = (connection.is_stream, connection.is_knocking());
        let queue = match (is_stream, is_knocking) {
            (true, _) => &mut self.streams,
            (false, true) => &mut self.knocking,
            (false, false) => &mut self.clients,
        };
        queue.push_back(id);
    }

    /// Whether something waits that a turn would serve.
    pub(super) fn have_work(&self) -> bool {
        !self.streams.is_empty()
            || self.have_strangers_or_clients()
            || self.dials.iter().any(|dial| dial.is_ready)
    }

    /// The same without streams and dials.
    pub(super) fn have_strangers_or_clients(&self) -> bool {
        let may_accept = |listener: &Listener| listener.is_ready && listener.resume_at.is_none();
        !self.knocking.is_empty()
            || !self.clients.is_empty()
            || self.listeners.iter().any(may_accept)
    }

    /// The ids of all connections.
    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.connections.iter().flatten().map(|connection| connection.id)
    }

    /// The place that the next listener will have.
    pub(super) fn next_listener(&self) -> u32 {
        u32::try_from(self.listeners.len()).expect("a server has two")
    }

    pub(super) fn add_listener(&mut self, listener: Listener) {
        self.listeners.push(listener);
    }

    /// Notes that there is a connection to accept.
    pub(super) fn note_knock(&mut self, place: u32) {
        if let Some(listener) = self.listeners.get_mut(place as usize) {
            listener.is_ready = true;
        }
    }

    /// Accepts again where the pause after a failure is over.
    pub(super) fn resume_accepting(&mut self, now: Time) {
        for listener in &mut self.listeners {
            listener.resume_at = listener.resume_at.filter(|at| *at > now);
        }
    }

    /// A number for the next dial, of which there is no other.
    pub(super) fn next_dial(&mut self) -> u32 {
        self.last_dial = self.last_dial.wrapping_add(1);
        self.last_dial
    }

    pub(super) fn add_dial(&mut self, dial: Dialling) {
        self.dials.push(dial);
    }

    /// Notes that a dial has ended, well or not.
    pub(super) fn note_dialled(&mut self, number: u32) {
        if let Some(dial) = self.dials.iter_mut().find(|dial| dial.number == number) {
            dial.is_ready = true;
        }
    }

    /// Takes out the dials that have ended.
    pub(super) fn take_dialled(&mut self) -> Vec<Dialling> {
        self.dials.extract_if(.., |dial| dial.is_ready).collect()
    }

    /// Closes the dials that took too long; of which groups they were.
    pub(super) fn give_up_dials(&mut self, now: Time) -> Vec<GroupId> {
        let late = self.dials.extract_if(.., |dial| dial.deadline <= now && !dial.is_ready);
        late.map(|dial| dial.group).collect()
    }
}
