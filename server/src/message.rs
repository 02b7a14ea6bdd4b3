//! Messages from other threads to an executor, its replies, and the pieces of dumps.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use kv_core::dump::DumpedShard;
use kv_core::replica::NoFullCopy;
use kv_core::session::LoggedRecord;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{GroupId, Member, OrderId, SequenceNumber, ShardId, ViewVersion, WallTime};
use kv_protocol::view::View;
use kv_shard::{DumpedEntries, LoadPiece, Port};

use crate::admission::Permit;

/// A message from another thread to an executor.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    /// A connection that requested this shard.
    Connection(HandedOver),
    /// The order to install a view. `other` is the address at which the other holder accepts streams, if it is known.
    /// The shard replies only to report a failure.
    Install { order: OrderId, view: View, other: Option<SocketAddr>, replies: Replies },
    /// A probe, to which the shard replies unless it is frozen.
    Probe { order: OrderId, replies: Replies },
    /// The proof that a process is dead.
    Exited { member: Member },
    /// The order to accept no new writes.
    Drain,
    /// The order to remove the entries of a group. The reports of the shard show the progress.
    Flush { order: OrderId, group: GroupId, view: ViewVersion },
    /// The order to freeze the shard, and then to send the table of this role, piece by piece.
    Dump { role: ReplicaRole, pieces: Sender<DumpPiece> },
    /// The order to fill the empty table of this group, piece by piece, and to report the outcome to `done`.
    Load { group: GroupId, pieces: Receiver<LoadPiece>, done: Sender<Result<(), String>> },
}

/// A shard's reply to an order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ShardReply {
    /// The shard cannot install the view, for this reason.
    Refused { order: OrderId, shard: ShardId, reason: String },
    /// The shard has received a probe.
    Probed { order: OrderId, shard: ShardId },
}

/// The channel for replies to the orders thread.
#[derive(Clone, Debug)]
pub(crate) struct Replies {
    sender: Sender<ShardReply>,
    bell: Arc<OwnedFd>,
}

impl Replies {
    /// Creates a channel for replies. Each reply signals the eventfd `bell`.
    pub(crate) fn new(sender: Sender<ShardReply>, bell: Arc<OwnedFd>) -> Replies {
        Replies { sender, bell }
    }

    /// Sends a reply without blocking. If the channel is full, the reply is dropped, and the coordinator repeats the
    /// order.
    pub(crate) fn send(&self, reply: ShardReply) {
        if self.sender.try_send(reply).is_ok() {
            // The write fails only if the eventfd is signalled already.
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
    }
}

/// A socket that is handed over to another executor.
#[derive(Debug)]
pub(crate) struct HandedOver {
    pub(crate) socket: OwnedFd,
    pub(crate) port: Port,
    /// The bytes received on it so far.
    pub(crate) received: Vec<u8>,
    pub(crate) permit: Permit,
}

/// A part of a long value or response, for a dump.
#[derive(Debug)]
pub(crate) struct DumpedPart {
    pub(crate) item: LongItem,
    /// The bytes, which directly follow those of the previous part.
    pub(crate) bytes: Vec<u8>,
    /// True if the value or response ends with these bytes.
    pub(crate) is_last: bool,
}

/// An item of a dump whose value or response is sent in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LongItem {
    /// An entry, without its value.
    Entry { key: Vec<u8>, deadline: Option<WallTime>, version: SequenceNumber },
    /// A completion record, without the rest of its response.
    Record(LoggedRecord),
}

/// A part of a shard's table, for a dump.
#[derive(Debug)]
pub(crate) enum DumpPiece {
    /// The first piece: the state of the frozen shard, or the error that it has no full copy to dump.
    Shard(Result<DumpedShard, NoFullCopy>),
    /// Some entries.
    Entries(DumpedEntries),
    /// A part of an entry or record that is too long for one piece. The parts of an item are sent one after the other.
    Part(DumpedPart),
    /// Completion records, each with the rest of its response. They follow the entries.
    Records(Vec<(LoggedRecord, Vec<u8>)>),
    /// The last piece.
    End,
}
