//! The sockets of an engine, their readiness, and the queues in which they are served.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;
use kv_shard::{ConnectionTable, DialTarget, LogLimit, Port};

use crate::admission::Permit;

/// The listening socket of a port.
pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    pub(super) port: Port,
    /// True if there may be connections to accept.
    pub(super) is_ready: bool,
    /// The time at which accepting connections resumes after a failure.
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
    pub(super) target: DialTarget,
    pub(super) deadline: Time,
    /// True once it is connected or has failed.
    pub(super) is_ready: bool,
}

/// A connected socket.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) fd: OwnedFd,
    pub(super) port: Port,
    pub(super) permit: Option<Permit>,
    /// True if it carries the stream of a group, which is served first.
    pub(super) is_stream: bool,
    /// True if there may be bytes, or an end, to receive.
    pub(super) is_readable: bool,
    /// True if an end or an error follows the bytes. The socket is then read until that end.
    pub(super) has_ended: bool,
    /// True while it is in a receive queue.
    pub(super) is_queued: bool,
    /// True after a short send, until the socket is writable again.
    pub(super) is_blocked: bool,
    pub(super) is_shut: bool,
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        fd: OwnedFd,
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

    /// Returns whether the connection was accepted on the servers' port and carries no stream yet.
    pub(super) fn is_knocking(&self) -> bool {
        self.port == Port::Servers && !self.is_stream
    }
}

/// All sockets of an engine, and the queues of connections with bytes to receive.
#[derive(Default)]
pub(super) struct Sockets {
    connections: ConnectionTable<Connection>,
    pub(super) listeners: Vec<Listener>,
    /// The dials in progress, at most one for each target.
    pub(super) dials: Vec<Dialling>,
    last_dial: u32,
    /// Streams between servers: all are served in every turn.
    pub(super) streams: VecDeque<ConnectionId>,
    /// Connections on the servers' port without a stream: a few are served in every turn.
    pub(super) knocking: VecDeque<ConnectionId>,
    /// Clients: served for a limited time in every turn.
    pub(super) clients: VecDeque<ConnectionId>,
}

impl Sockets {
    pub(super) fn insert(&mut self, connection: Connection) {
        self.connections.insert(connection.id, connection);
    }

    /// Returns a connection, or `None` if it was closed.
    pub(super) fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(id)
    }

    /// Removes a connection.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.connections.remove(id)
    }

    /// Queues a connection for a receive if it is readable and in no queue yet.
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

    /// Returns whether a turn would have anything to serve.
    pub(super) fn have_work(&self) -> bool {
        !self.streams.is_empty()
            || !self.knocking.is_empty()
            || !self.clients.is_empty()
            || self.may_accept()
            || self.dials.iter().any(|dial| dial.is_ready)
    }

    /// Returns whether a listener has connections to accept.
    pub(super) fn may_accept(&self) -> bool {
        let may_accept = |listener: &Listener| listener.is_ready && listener.resume_at.is_none();
        self.listeners.iter().any(may_accept)
    }

    /// Returns the ids of all connections.
    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.connections.values().map(|connection| connection.id)
    }

    /// Returns the place of the next listener.
    pub(super) fn next_listener(&self) -> u32 {
        u32::try_from(self.listeners.len()).expect("a server has few")
    }

    pub(super) fn add_listener(&mut self, listener: Listener) {
        self.listeners.push(listener);
    }

    /// Records that a listener has connections to accept.
    pub(super) fn note_knock(&mut self, place: u32) {
        if let Some(listener) = self.listeners.get_mut(place as usize) {
            listener.is_ready = true;
        }
    }

    /// Resumes accepting where the pause after a failure is over.
    pub(super) fn resume_accepting(&mut self, now: Time) {
        for listener in &mut self.listeners {
            listener.resume_at = listener.resume_at.filter(|at| *at > now);
        }
    }

    /// Returns the number of the next dial, which no dial in progress has.
    pub(super) fn next_dial(&mut self) -> u32 {
        self.last_dial = self.last_dial.wrapping_add(1);
        self.last_dial
    }

    pub(super) fn add_dial(&mut self, dial: Dialling) {
        self.dials.push(dial);
    }

    /// Records that a dial has ended.
    pub(super) fn note_dialled(&mut self, number: u32) {
        if let Some(dial) = self.dials.iter_mut().find(|dial| dial.number == number) {
            dial.is_ready = true;
        }
    }

    /// Takes the dials that have ended.
    pub(super) fn take_dialled(&mut self) -> Vec<Dialling> {
        self.dials.extract_if(.., |dial| dial.is_ready).collect()
    }

    /// Closes the dials that timed out, and returns their targets.
    pub(super) fn give_up_dials(&mut self, now: Time) -> Vec<DialTarget> {
        let late = self.dials.extract_if(.., |dial| dial.deadline <= now && !dial.is_ready);
        late.map(|dial| dial.target).collect()
    }
}
