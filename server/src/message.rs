//! What other threads tell an executor, what it sends back for a dump, and what it is sent of one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use kv_core::dump::DumpedShard;
use kv_core::replica::NoFullCopy;
use kv_core::session::LoggedRecord;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{GroupId, Member, OrderId, SequenceNumber, ShardId};
use kv_protocol::view::View;

use crate::net::listener::Port;
use crate::stats::Permit;

/// What other threads tell an executor.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    /// A connection that wants this shard.
    Connection(HandedOver),
    /// Install a view, whose other holder takes streams there; only a failure is told.
    Install { order: OrderId, view: View, other: Option<SocketAddr>, replies: Replies },
    /// Echo this order.
    Probe { order: OrderId, replies: Replies },
    /// A process is proven dead.
    Exited { member: Member },
    /// Take no new writes.
    Drain,
    /// Freeze, then send the table of this role, piece by piece.
    Dump { role: ReplicaRole, pieces: Sender<DumpPiece> },
    /// Fill the empty table of this group, piece by piece; then, or when that cannot be done, say so.
    Load { group: GroupId, pieces: Receiver<LoadPiece>, done: Sender<Result<(), String>> },
}

/// What a shard answers to an order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ShardReply {
    /// It cannot install the view, in words.
    Refused { order: OrderId, shard: ShardId, reason: String },
    /// It has received a probe.
    Probed { order: OrderId, shard: ShardId },
}

/// The way back to the thread of the orders.
#[derive(Clone, Debug)]
pub(crate) struct Replies {
    sender: Sender<ShardReply>,
    bell: Arc<OwnedFd>,
}

impl Replies {
    /// A way that rings this bell.
    pub(crate) fn new(sender: Sender<ShardReply>, bell: Arc<OwnedFd>) -> Replies {
        Replies { sender, bell }
    }

    /// Answers. An executor never waits: where there is no room, the order is repeated by whoever
    /// gave it.
    pub(crate) fn send(&self, reply: ShardReply) {
        if self.sender.try_send(reply).is_ok() {
            // A bell that cannot ring is rung already.
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
    }
}

/// A socket on its way to another executor.
#[derive(Debug)]
pub(crate) struct HandedOver {
    pub(crate) socket: OwnedFd,
    pub(crate) port: Port,
    /// What was received on it so far.
    pub(crate) received: Vec<u8>,
    pub(crate) permit: Permit,
}

/// A part of a shard's table on its way into a dump.
#[derive(Debug)]
pub(crate) enum DumpPiece {
    /// What the shard holds, from its freezing on; or that there must be no dump of it. The first piece.
    Shard(Result<DumpedShard, NoFullCopy>),
    /// Some entries.
    Entries(DumpedEntries),
    /// Completion records; they follow the entries.
    Records(Vec<LoggedRecord>),
    /// The last piece.
    End,
}

/// A part of a dump on its way into a shard's table.
#[derive(Debug)]
pub(crate) enum LoadPiece {
    /// Some entries.
    Entries(DumpedEntries),
    /// Completion records.
    Records(Vec<LoggedRecord>),
    /// The dump was found whole, and this was its last write. The last piece.
    End(DumpedShard),
}

/// Entries one after the other; copied as they are, because turning them into text would hold the
/// executor up.
#[derive(Debug, Default)]
pub(crate) struct DumpedEntries {
    bytes: Vec<u8>,
    lengths: Vec<(usize, usize, SequenceNumber)>,
}

impl DumpedEntries {
    /// Appends an entry.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8], version: SequenceNumber) {
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.lengths.push((key.len(), value.len(), version));
    }

    /// Bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Calls `visit` with key, value and version of each.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8], SequenceNumber)) {
        let mut rest = self.bytes.as_slice();
        for &(key_length, value_length, version) in &self.lengths {
            let (key, after) = rest.split_at(key_length);
            let (value, after) = after.split_at(value_length);
            visit(key, value, version);
            rest = after;
        }
    }
}
