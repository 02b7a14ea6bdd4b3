//! The sockets of an executor: connections of the simulated network, by number and by the shard's id.

use std::collections::BTreeMap;

use kv_core::replica::ConnectionId;
use kv_shard::{DialTarget, Port};

use super::tap::Tap;
use crate::network::ConnectionNumber;

/// The number of bytes per millisecond that a slow reader takes.
const SLOW_BYTES_A_MS: u64 = 200;
/// The capacity in bytes of the socket buffer of a reader that is not fast.
const BUFFER_BYTES: u64 = 3 << 10;
/// The time for which a full socket of a slow reader stays blocked, in nanoseconds.
const DRAINED_AFTER: u64 = 20_000_000;

/// The way in which the other end of a connection reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Takes all bytes at once.
    Fast,
    /// Takes a few bytes at a time.
    Slow,
    /// Takes nothing; only the socket's buffer accepts bytes until it is full.
    Never,
}

/// One socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) number: ConnectionNumber,
    pub(super) port: Port,
    pub(super) tap: Tap,
    /// True if the sending direction is shut down.
    pub(super) is_shut: bool,
    reader: Reader,
    buffer: Buffer,
}

/// The buffer of a socket whose other end does not read at once.
#[derive(Debug, Default)]
struct Buffer {
    filled: u64,
    looked_at: u64,
    /// The time at which a full socket has room again.
    blocked_until: Option<u64>,
}

impl Socket {
    /// Creates the socket of a connection.
    fn new(number: ConnectionNumber, port: Port, reader: Reader) -> Socket {
        let (tap, buffer) = (Tap::new(port), Buffer::default());
        Socket { number, port, tap, is_shut: false, reader, buffer }
    }

    /// Returns the way in which the other end reads.
    pub(super) fn reader(&self) -> Reader {
        self.reader
    }

    /// Returns whether the socket accepts no bytes now.
    pub(super) fn is_blocked(&self) -> bool {
        self.buffer.blocked_until.is_some()
    }

    /// Offers bytes to the socket, and returns the number of bytes that it accepts. If it does not accept all, it
    /// is blocked.
    pub(super) fn offer(&mut self, true_now: u64, bytes: usize) -> usize {
        let buffer = &mut self.buffer;
        let drained = match self.reader {
            Reader::Fast => return bytes,
            Reader::Slow => (true_now - buffer.looked_at) / 1_000_000 * SLOW_BYTES_A_MS,
            Reader::Never => 0,
        };
        buffer.filled = buffer.filled.saturating_sub(drained);
        buffer.looked_at = true_now;
        let taken = (BUFFER_BYTES.saturating_sub(buffer.filled)).min(bytes as u64);
        buffer.filled += taken;
        if taken < bytes as u64 {
            let is_slow = self.reader == Reader::Slow;
            buffer.blocked_until = Some(if is_slow { true_now + DRAINED_AFTER } else { u64::MAX });
        }
        usize::try_from(taken).expect("the socket accepts at most the offered bytes")
    }
}

/// All sockets of an executor.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: BTreeMap<ConnectionId, Socket>,
    ids: BTreeMap<ConnectionNumber, ConnectionId>,
    /// The connections whose other ends do not read at once.
    slow: Vec<ConnectionId>,
    /// The number of connections of clients.
    clients: usize,
}

impl Sockets {
    /// Adds the socket of the shard's connection `id`.
    pub(super) fn open(
        &mut self,
        id: ConnectionId,
        number: ConnectionNumber,
        port: Port,
        reader: Reader,
    ) {
        self.add(id, Socket::new(number, port, reader));
    }

    /// Adds the socket of a connection that the shard dialled.
    pub(super) fn open_dialled(
        &mut self,
        id: ConnectionId,
        number: ConnectionNumber,
        target: DialTarget,
    ) {
        let mut socket = Socket::new(number, target.port(), Reader::Fast);
        if matches!(target, DialTarget::Link(_)) {
            socket.tap = Tap::Other;
        }
        self.add(id, socket);
    }

    fn add(&mut self, id: ConnectionId, socket: Socket) {
        let (port, reader) = (socket.port, socket.reader);
        self.ids.insert(socket.number, id);
        self.open.insert(id, socket);
        self.clients += usize::from(port != Port::Servers);
        if reader != Reader::Fast {
            self.slow.push(id);
        }
    }

    /// Returns the id of a connection; `None` if it is closed.
    pub(super) fn id(&self, number: ConnectionNumber) -> Option<ConnectionId> {
        self.ids.get(&number).copied()
    }

    /// Returns the number of a connection.
    pub(super) fn number(&self, id: ConnectionId) -> Option<ConnectionNumber> {
        self.open.get(&id).map(|socket| socket.number)
    }

    /// Returns a socket.
    pub(super) fn get(&mut self, id: ConnectionId) -> Option<&mut Socket> {
        self.open.get_mut(&id)
    }

    /// Returns a socket, to inspect it.
    pub(super) fn look_up(&self, id: ConnectionId) -> Option<&Socket> {
        self.open.get(&id)
    }

    /// Removes a socket that is closed from this side, or handed over.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Socket> {
        let socket = self.open.remove(&id)?;
        self.ids.remove(&socket.number);
        self.slow.retain(|slow| *slow != id);
        self.clients -= usize::from(socket.port != Port::Servers);
        Some(socket)
    }

    /// Returns the number of open connections of clients.
    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    /// Returns the ids of all open connections.
    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.open.keys().copied()
    }

    /// Unblocks the sockets that have room again, and returns their ids.
    pub(super) fn drained(&mut self, true_now: u64) -> Vec<ConnectionId> {
        let mut drained = Vec::new();
        for id in &self.slow {
            let Some(socket) = self.open.get_mut(id) else { continue };
            if socket.buffer.blocked_until.take_if(|until| *until <= true_now).is_some() {
                drained.push(*id);
            }
        }
        drained
    }

    /// Returns the next time at which a blocked socket has room again.
    pub(super) fn next_drained(&self) -> Option<u64> {
        let slow = self.slow.iter().filter_map(|id| self.open.get(id));
        slow.filter_map(|socket| socket.buffer.blocked_until).min()
    }
}
