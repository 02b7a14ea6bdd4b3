//! A Redis client: pipelines of commands at any server, and their replies in order.
//!
//! ```text
//!   commands -> bytes, cut at any place -> a server's clients port -> replies, one for each command, in order
//!
//!   a definite reply          the result enters the history of its keys, with those of native clients
//!   TRYAGAIN, OOM, ...        nothing was done
//!   outcome unknown           in doubt; the server ends the connection
//!   the connection ends       writes without a reply are in doubt; the client connects to another server
//! ```
//!
//! Besides the keys of the workload, a client has keys of its own ([`own`]).

use std::collections::{BTreeMap, VecDeque};

use kv_testkit::objects::Known;
use kv_testkit::resp::Replies;

use crate::network::ConnectionNumber;
use crate::object::ObjectAsk;
use crate::workload::SlotId;
use kv_history::{Asked, Value};

pub mod command;
pub mod own;

use command::Command;
use own::{OwnCommand, OwnKeys};

/// The maximum number of commands without a reply.
pub const DEPTH_MAX: usize = 8;

/// A Redis client.
#[derive(Debug)]
pub struct RedisClient {
    /// The connection, if there is one.
    pub connection: Option<ConnectionNumber>,
    /// The number of commands that the client keeps without a reply.
    pub depth: usize,
    /// The commands without a reply, in the order of their bytes.
    pub queue: VecDeque<Sent>,
    /// The bytes that are not sent yet.
    pub unsent: Vec<u8>,
    /// The number of bytes of all commands of this connection.
    pub planned: u64,
    /// The received bytes.
    pub replies: Replies,
    /// The time since which the first command waits at most, without times in which its server could not work.
    pub waits_since: u64,
    /// True if no further commands are sent on this connection.
    pub is_shut: bool,
    /// True if a reply has announced that the server ends the connection.
    pub is_ending: bool,
    /// The keys that no other client uses; `None` in runs in which entries disappear.
    pub own: Option<OwnKeys>,
    /// The value that was last read, by key of a register.
    pub seen: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The value that was last read, by key of an object.
    pub known: BTreeMap<Vec<u8>, Known>,
    /// The process number in the history; a new one after every operation in doubt.
    pub process: u32,
}

/// A command without a reply.
#[derive(Debug)]
pub struct Sent {
    /// The number of bytes of the connection up to the end of the command.
    pub end: u64,
    /// The time at which the client chose the command.
    pub start: u64,
    /// The command.
    pub asked: AskedOf,
}

/// The operation that a command stands for.
#[derive(Debug)]
pub enum AskedOf {
    /// An operation on a register.
    Register {
        /// The slot of the key.
        slot: SlotId,
        /// The key.
        key: Vec<u8>,
        /// The operation.
        asked: Asked,
    },
    /// An operation on an object.
    Object {
        /// The slot of the object.
        slot: SlotId,
        /// The operation.
        ask: ObjectAsk,
        /// The command.
        command: Command,
    },
    /// An MGET: each key is read by itself.
    Reads {
        /// The slot of the object.
        slot: SlotId,
        /// The reads.
        asks: Vec<ObjectAsk>,
        /// The same reads as commands.
        commands: Vec<Command>,
    },
    /// A command on a key of the client's own.
    Own(OwnCommand),
}

/// A command to send.
#[derive(Debug)]
pub struct Planned {
    /// The arguments.
    pub args: Vec<Vec<u8>>,
    /// The operation.
    pub asked: AskedOf,
}

impl RedisClient {
    /// Creates a client without a connection.
    pub fn new(number: usize, depth: usize, own: Option<OwnKeys>) -> RedisClient {
        let process = u32::try_from(number).expect("clients are few") + FIRST_PROCESS;
        RedisClient {
            connection: None,
            depth,
            queue: VecDeque::new(),
            unsent: Vec::new(),
            planned: 0,
            replies: Replies::default(),
            waits_since: 0,
            is_shut: false,
            is_ending: false,
            own,
            seen: BTreeMap::new(),
            known: BTreeMap::new(),
            process: process << 16,
        }
    }

    /// Returns the number of bytes of this connection that were sent.
    pub fn sent(&self) -> u64 {
        self.planned - self.unsent.len() as u64
    }

    /// Appends a command to the bytes to send.
    pub fn begin(&mut self, now: u64, planned: Planned) {
        if self.queue.is_empty() {
            self.waits_since = now;
        }
        let bytes = kv_testkit::resp::command(planned.args.iter().map(Vec::as_slice));
        self.planned += bytes.len() as u64;
        self.unsent.extend(bytes);
        self.queue.push_back(Sent { end: self.planned, start: now, asked: planned.asked });
    }

    /// Forgets the connection. Returns the commands without a reply, each with whether all of its bytes were sent.
    pub fn disconnect(&mut self) -> Vec<(Sent, bool)> {
        let sent = self.sent();
        let lost = std::mem::take(&mut self.queue).into_iter();
        let lost = lost.map(|command| {
            let is_sent = command.end <= sent;
            (command, is_sent)
        });
        let lost = lost.collect();
        self.connection = None;
        self.own.iter_mut().for_each(OwnKeys::end_transaction);
        self.unsent.clear();
        (self.planned, self.is_shut, self.is_ending) = (0, false, false);
        self.replies = Replies::default();
        lost
    }

    /// Returns whether the client has begun a transaction and must end it.
    pub fn is_in_transaction(&self) -> bool {
        self.own.as_ref().is_some_and(OwnKeys::is_in_transaction)
    }

    /// Returns whether a key is one of the client's own.
    pub fn owns(&self, key: &[u8]) -> bool {
        self.own.as_ref().is_some_and(|own| own.has_used(key))
    }

    /// Records a value of a register's key.
    pub fn note_seen(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        match value {
            Some(value) => drop(self.seen.insert(key.to_vec(), value)),
            None => drop(self.seen.remove(key)),
        }
    }

    /// Returns the value of a register's key that was last read, with its number.
    pub fn seen_value(&self, key: &[u8]) -> Option<(Value, &[u8])> {
        let bytes = self.seen.get(key)?;
        Some((crate::workload::value_of(bytes)?, bytes))
    }
}

/// The first number of a Redis client in the numbers of processes. Native clients have lower ones.
const FIRST_PROCESS: u32 = 1_000;
