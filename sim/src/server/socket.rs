//! The sockets of an executor: connections of the simulated network, by number and by the shard's id.

use std::collections::BTreeMap;

use kv_core::replica::ConnectionId;
use kv_shard::Port;

use super::tap::Tap;
use crate::network::ConnectionNumber;

/// The bytes per millisecond that a slow reader takes, and the most that its socket buffers.
const SLOW_BYTES_A_MS: u64 = 200;
const SLOW_BUFFER: u64 = 3 << 10;
/// The time after which the socket of a slow reader has room again, in nanoseconds.
const DRAINED_AFTER: u64 = 20_000_000;
/// In a run with slow readers, one client connection of this many is one.
const SLOW_ONE_IN: usize = 3;

/// One socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) number: ConnectionNumber,
    pub(super) port: Port,
    pub(super) tap: Tap,
    /// `None` if the other end takes all bytes at once.
    slow: Option<Slow>,
}

/// The buffer of a socket whose other end reads slowly.
#[derive(Debug)]
struct Slow {
    filled: u64,
    looked_at: u64,
    /// The time at which a full socket has room again.
    blocked_until: Option<u64>,
}

impl Socket {
    /// Creates the socket of a connection.
    fn new(number: ConnectionNumber, port: Port, has_slow_readers: bool) -> Socket {
        let is_slow = has_slow_readers && port == Port::Clients && number.0 % SLOW_ONE_IN == 0;
        let slow = is_slow.then_some(Slow { filled: 0, looked_at: 0, blocked_until: None });
        Socket { number, port, tap: Tap::new(port), slow }
    }

    /// Returns whether it takes no bytes now.
    pub(super) fn is_blocked(&self) -> bool {
        self.slow.as_ref().is_some_and(|slow| slow.blocked_until.is_some())
    }

    /// Offers bytes to the socket; returns how many it takes. After a short send it is blocked.
    pub(super) fn offer(&mut self, true_now: u64, bytes: usize) -> usize {
        let Some(slow) = &mut self.slow else { return bytes };
        let drained = (true_now - slow.looked_at) / 1_000_000 * SLOW_BYTES_A_MS;
        slow.filled = slow.filled.saturating_sub(drained);
        slow.looked_at = true_now;
        let taken = (SLOW_BUFFER.saturating_sub(slow.filled)).min(bytes as u64);
        slow.filled += taken;
        if taken < bytes as u64 {
            slow.blocked_until = Some(true_now + DRAINED_AFTER);
        }
        usize::try_from(taken).expect("it is no more than was offered")
    }
}

/// All sockets of an executor.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: BTreeMap<ConnectionId, Socket>,
    ids: BTreeMap<ConnectionNumber, ConnectionId>,
    /// True if the clients of some connections read slowly.
    has_slow_readers: bool,
}

impl Sockets {
    /// Creates an executor's sockets. If it has slow readers, the clients of some connections read slowly.
    pub(super) fn new(has_slow_readers: bool) -> Sockets {
        Sockets { has_slow_readers, ..Sockets::default() }
    }

    /// Adds the socket of the shard's connection `id`.
    pub(super) fn open(&mut self, id: ConnectionId, number: ConnectionNumber, port: Port) {
        self.ids.insert(number, id);
        self.open.insert(id, Socket::new(number, port, self.has_slow_readers));
    }

    /// Returns the id of a connection; `None` if it is closed.
    pub(super) fn id(&self, number: ConnectionNumber) -> Option<ConnectionId> {
        self.ids.get(&number).copied()
    }

    /// Returns a socket.
    pub(super) fn get(&mut self, id: ConnectionId) -> Option<&mut Socket> {
        self.open.get_mut(&id)
    }

    /// Removes a socket that is closed from this side, or handed over.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Socket> {
        let socket = self.open.remove(&id)?;
        self.ids.remove(&socket.number);
        Some(socket)
    }

    /// Returns the ids of all open connections.
    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.open.keys().copied()
    }

    /// Unblocks the sockets that have room again, and returns their ids.
    pub(super) fn drained(&mut self, true_now: u64) -> Vec<ConnectionId> {
        let mut drained = Vec::new();
        if !self.has_slow_readers {
            return drained;
        }
        for (id, socket) in &mut self.open {
            if let Some(slow) = &mut socket.slow
                && slow.blocked_until.take_if(|until| *until <= true_now).is_some()
            {
                drained.push(*id);
            }
        }
        drained
    }

    /// Returns the next time at which a blocked socket has room again.
    pub(super) fn next_drained(&self) -> Option<u64> {
        if !self.has_slow_readers {
            return None;
        }
        self.open.values().filter_map(|socket| socket.slow.as_ref()?.blocked_until).min()
    }
}
