//! Messages between the coordinator and a server, on two connections. Each side dials one of them.
//!
//! ```text
//!   server -> coordinator's servers port        coordinator -> server's coord_port
//!   CHALLENGE, PROOF            <->             CHALLENGE, PROOF            <->
//!   STARTED (three bound ports) ->              ORDERS-HELLO (epoch, process)  ->
//!                  <- ADMITTED | REFUSED                   <- ORDERS-WELCOME | REFUSED
//!   HEARTBEAT every 100 ms      ->              views: SET-SECONDARY, TAKE-OVER, ...  ->
//!            <- CLUSTER-MAP, when it is newer   PROBE, EXITED, DRAIN, DUMP-PRIMARY,
//!   DRAIN-REQUEST on SIGTERM    ->              DUMP-SECONDARY, FLUSH, SHUTDOWN    ->
//!                                               SETTINGS first, and on every change  ->
//!                                                 <- REPORT (order id, view, outcome)
//! ```
//!
//! All frames carry a checksum. A repeated order gets the same report. FLUSH gets none: heartbeats show its progress.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::client_message::ReplicaRole;
use crate::codec::{Reader, Writer, length_u16};
use crate::error::DecodeError;
use crate::eviction::Eviction;
use crate::frame::{Checksum, write_frame};
use crate::ids::{
    ClusterId, Epoch, GroupId, Incarnation, Member, OrderId, PidNamespace, SequenceNumber, ShardId,
    ViewVersion,
};
use crate::key::Seal;
use crate::limits::{MAX_DUMP_DIRECTORY_BYTES, MAX_HEARTBEAT_REPLICAS};
use crate::map::{Map, read_address, read_epoch, write_address, write_epoch};
use crate::view::{View, read_member, read_view, write_member, write_view};

/// Opcodes of connections between coordinator and servers.
pub mod opcode {
    /// A server's first frame after the handshake.
    pub const STARTED: u8 = 0x80;
    /// The acceptance of a server by the coordinator.
    pub const ADMITTED: u8 = 0x81;
    /// The rejection of the connection by either side; a close follows.
    pub const REFUSED: u8 = 0x82;
    /// The state of a server.
    pub const HEARTBEAT: u8 = 0x83;
    /// A server's request for an orderly stop.
    pub const DRAIN_REQUEST: u8 = 0x84;
    /// The coordinator's newest map, for clients that cannot reach the coordinator.
    pub const CLUSTER_MAP: u8 = 0x85;
    /// The coordinator's first frame after the handshake.
    pub const ORDERS_HELLO: u8 = 0x90;
    /// The acceptance of the coordinator's orders by a server.
    pub const ORDERS_WELCOME: u8 = 0x91;
    /// The order to install a view as its primary and to connect to its secondary.
    pub const SET_SECONDARY: u8 = 0x92;
    /// The order to reject new writes and to commit pending ones.
    pub const DRAIN: u8 = 0x93;
    /// The order to dump the primary table.
    pub const DUMP_PRIMARY: u8 = 0x94;
    /// The order to dump the secondary table.
    pub const DUMP_SECONDARY: u8 = 0x95;
    /// The order to exit.
    pub const SHUTDOWN: u8 = 0x96;
    /// The order to a secondary to become the primary in place of the old one.
    pub const TAKE_OVER: u8 = 0x97;
    /// The order to continue as primary without the other holder.
    pub const DROP_SECONDARY: u8 = 0x98;
    /// The order to copy the table to the group's home primary, as its primary table.
    pub const UPDATE_PRIMARY: u8 = 0x99;
    /// The order to copy the table to the group's home secondary, as its secondary table.
    pub const UPDATE_SECONDARY: u8 = 0x9a;
    /// The order to hand the group over to its home primary and to become its secondary.
    pub const SWITCH_PRIMARY: u8 = 0x9b;
    /// The order to drop the copy, because the receiver is no longer a holder.
    pub const LEAVE: u8 = 0x9c;
    /// The order to report at once, as proof that orders are received.
    pub const PROBE: u8 = 0x9d;
    /// The proof that a process has ended.
    pub const EXITED: u8 = 0x9e;
    /// The outcome of an order.
    pub const REPORT: u8 = 0x9f;
    /// The directory for all dumps that are ordered later.
    pub const DUMP_TO: u8 = 0xa0;
    /// The settings that may change while a server runs.
    pub const SETTINGS: u8 = 0xa1;
    /// The order to remove all keys of a group.
    pub const FLUSH: u8 = 0xa2;
}

/// A server's first message after the handshake. It identifies the process and contains its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The cluster for which the server was started.
    pub cluster: ClusterId,
    /// The server's place and incarnation, which the coordinator passed to the process at its
    /// start.
    pub member: Member,
    /// The process id of the server on its host.
    pub pid: u32,
    /// The start time of that process, in clock ticks since the boot of its host (`/proc/<pid>/stat`, field 22). The
    /// pid and the start time identify the process even after the pid is reused.
    pub start_time: u64,
    /// The PID namespace of that process id.
    #[serde(default)]
    pub namespace: PidNamespace,
    /// The number of shards it runs.
    pub shards: u16,
    /// The address at which other processes reach it.
    pub address: IpAddr,
    /// Its port for clients.
    pub clients_port: u16,
    /// Its port for other servers.
    pub servers_port: u16,
    /// Its port for the coordinator's orders.
    pub coord_port: u16,
    /// The highest epoch of a coordinator that the server has accepted.
    pub epoch: Epoch,
}

impl Started {
    /// Appends the frame.
    pub fn write(&self, seal: &Seal, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::STARTED, |body| {
            let start = body.len();
            body.put_u128(self.cluster.0);
            write_member(body, self.member);
            body.put_u32(self.pid);
            body.put_u64(self.start_time);
            body.put_u64(self.namespace.0);
            body.put_u16(self.shards);
            write_address(body, Some(SocketAddr::new(self.address, 0)));
            body.put_u16(self.clients_port);
            body.put_u16(self.servers_port);
            body.put_u16(self.coord_port);
            write_epoch(body, self.epoch);
            seal.close(body, start);
        });
    }

    /// Reads a STARTED from its frame's body.
    ///
    /// # Errors
    /// If the sender does not have the key of this handshake, or the message is malformed.
    pub fn read(body: &[u8], seal: &Seal) -> Result<Started, DecodeError> {
        let mut reader = Reader::new(seal.open(body)?);
        let started = Started {
            cluster: ClusterId(reader.u128("cluster id")?),
            member: read_member(&mut reader)?,
            pid: reader.u32("pid")?,
            start_time: reader.u64("start time")?,
            namespace: PidNamespace(reader.u64("PID namespace")?),
            shards: reader.u16("shard count")?,
            address: read_address(&mut reader)?
                .ok_or(DecodeError::BadValue { field: "address family", value: 0 })?
                .ip(),
            clients_port: port(&mut reader)?,
            servers_port: port(&mut reader)?,
            coord_port: port(&mut reader)?,
            epoch: read_epoch(&mut reader)?,
        };
        reader.finish()?;
        Ok(started)
    }
}

fn port(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    match reader.u16("port")? {
        0 => Err(DecodeError::BadValue { field: "port", value: 0 }),
        port => Ok(port),
    }
}

/// The state of a replica under its installed view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum ReplicaState {
    /// Neither a holder nor a candidate: the view does not name this member.
    Out = 0,
    /// Applies the primary's writes.
    Secondary = 1,
    /// Has an incomplete copy.
    Candidate = 2,
    /// Primary; serves after its own grace, or after a proof of death of the old primary.
    InGrace = 3,
    /// Primary of a hand-over view; serves once the old primary has sent all its writes.
    TakingOver = 4,
    /// Primary; serves.
    Active = 5,
    /// Primary; serves, and the candidate of its view holds a complete copy.
    CaughtUp = 6,
    /// Primary; serves, and the candidate of its view has failed.
    CopyFailed = 7,
    /// Former primary; sends the rest of its log to the new primary.
    HandingOver = 8,
}

impl ReplicaState {
    /// Returns the state with this number.
    pub fn from_wire(number: u8) -> Option<ReplicaState> {
        Some(match number {
            0 => ReplicaState::Out,
            1 => ReplicaState::Secondary,
            2 => ReplicaState::Candidate,
            3 => ReplicaState::InGrace,
            4 => ReplicaState::TakingOver,
            5 => ReplicaState::Active,
            6 => ReplicaState::CaughtUp,
            7 => ReplicaState::CopyFailed,
            8 => ReplicaState::HandingOver,
            _ => return None,
        })
    }

    /// Returns whether the replica is the primary of its view, serving or not.
    pub fn is_primary(self) -> bool {
        self.is_active() || matches!(self, ReplicaState::InGrace | ReplicaState::TakingOver)
    }

    /// Returns whether the replica is the primary of its view and serves.
    pub fn is_active(self) -> bool {
        use ReplicaState::{Active, CaughtUp, CopyFailed};
        matches!(self, Active | CaughtUp | CopyFailed)
    }

    /// Returns the role under which the status counts the replica's entries; `None` if the replica has no complete
    /// copy.
    pub fn role(self) -> Option<ReplicaRole> {
        match self {
            ReplicaState::Out | ReplicaState::Candidate => None,
            ReplicaState::Secondary | ReplicaState::HandingOver => Some(ReplicaRole::Secondary),
            _ => Some(ReplicaRole::Primary),
        }
    }
}

/// The progress of a follower: of the secondary or candidate of a primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Following {
    /// No known problem.
    #[default]
    KeepsUp = 0,
    /// Streams to the follower are established, but each ends without any progress.
    NoProgress = 1,
    /// The follower has no memory for the next write.
    OutOfMemory = 2,
}

impl Following {
    /// Returns the state with this number.
    pub fn from_wire(number: u8) -> Option<Following> {
        Some(match number {
            0 => Following::KeepsUp,
            1 => Following::NoProgress,
            2 => Following::OutOfMemory,
            _ => return None,
        })
    }

    /// Returns whether the follower must be removed from its group.
    pub fn has_failed(self) -> bool {
        self != Following::KeepsUp
    }
}

impl std::fmt::Display for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Following::KeepsUp => "it keeps up",
            Following::NoProgress => "each of its streams ends without progress",
            Following::OutOfMemory => "it has no memory for the next write",
        })
    }
}

/// The progress of the last flush of a replica, under its current role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// The id of the FLUSH order; zero if there was none.
    pub id: OrderId,
    /// The number of entries that were removed; all of these removals are committed.
    pub removed: u64,
    /// True if every entry that existed at the beginning has been removed.
    pub is_done: bool,
}

/// The report on one replica in a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// The group of the replica.
    pub group: GroupId,
    /// The shard of the replica.
    pub shard: ShardId,
    /// The state of the replica.
    pub state: ReplicaState,
    /// The version of the installed view.
    pub view: ViewVersion,
    /// The last write assigned (primary) or applied (secondary, candidate).
    pub last: SequenceNumber,
    /// The last write committed. At a secondary: the last write applied.
    pub committed: SequenceNumber,
    /// The number of entries in its table.
    pub entries: u64,
    /// The memory of its table, in bytes: whole chunks.
    pub bytes: u64,
    /// The part of `bytes` that entries and slots use.
    pub used_bytes: u64,
    /// True if the stream between this replica and the other holder is up.
    pub connected: bool,
    /// Milliseconds since the last message from the other holder of the view; before the first message, since the
    /// installation of the view. A handshake is not counted as a message.
    pub silent_ms: u32,
    /// The progress of the follower. A primary reports that of its secondary or candidate; a secondary or
    /// candidate reports its own.
    pub following: Following,
    /// The longest time without a message from the other holder since its first message under this view, in
    /// milliseconds. It includes the current silence.
    pub longest_gap_ms: u32,
    /// The bytes of the keys and values in its table.
    pub content_bytes: u64,
    /// At a primary with a candidate: the number of entries sent to the candidate so far. The total
    /// is about [`ReplicaReport::entries`].
    pub copied: u64,
    /// At a primary with a candidate: the bytes of keys and values sent to the candidate so far.
    /// The total is about [`ReplicaReport::content_bytes`].
    pub copied_bytes: u64,
    /// The progress of the last flush that this replica has begun as the primary.
    pub flush: FlushReport,
}

/// The address with the most client connections to a server. The server reports it while too few connections are left
/// for other addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrowdReport {
    /// The address; for IPv6 its /64 network.
    pub address: IpAddr,
    /// The number of connections from this address.
    pub connections: u32,
    /// The number of idle connections, from all addresses, that the server has closed since its start to make room for
    /// others.
    pub closed: u64,
}

/// The state of a server, sent every 100 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The reporting process.
    pub incarnation: Incarnation,
    /// The highest epoch of a coordinator that the server has accepted.
    pub epoch: Epoch,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// The limit on the memory of its tables, in bytes; 0 means no limit.
    pub memory_limit: u64,
    /// The memory of its client connections, in bytes.
    pub connection_bytes: u64,
    /// The limit on the memory of its client connections, in bytes.
    pub connection_limit: u64,
    /// The number of open client connections.
    pub clients: u32,
    /// The number of requests served since its start.
    pub requests: u64,
    /// The number of frames, connections and maps rejected since its start, because they were invalid or a limit was
    /// reached.
    pub refused: u64,
    /// The number of writes rejected with OUT_OF_SPACE since its start.
    pub out_of_space: u64,
    /// The number of entries evicted since its start to make room, as far as it decided their removal as a primary.
    pub evicted: u64,
    /// The number of entries removed since its start because they had expired, as far as it decided their removal as a
    /// primary.
    pub expired: u64,
    /// The time for which one of its threads has been hung, in milliseconds; 0 if no thread is hung. Only the sole
    /// holder of a group reports this; any other server exits.
    pub stood_ms: u32,
    /// The progress of its dumps.
    pub dumped: DumpedBytes,
    /// The address whose connections leave too little room for others, or would do so if the server did not close idle
    /// ones; `None` if there is none.
    pub crowd: Option<CrowdReport>,
    /// The reports on its replicas.
    pub replicas: Vec<ReplicaReport>,
}

/// The bytes of keys and values in the two dumps of a server: of the current attempt or, if there is none, of the last
/// one. The start of an attempt resets them to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DumpedBytes {
    /// The bytes of the primary table's dump.
    pub primary: u64,
    /// The bytes of the secondary table's dump.
    pub secondary: u64,
}

impl Heartbeat {
    fn write(&self, body: &mut Vec<u8>) {
        body.put_u64(self.incarnation.0);
        write_epoch(body, self.epoch);
        body.put_u64(self.resident_bytes);
        body.put_u64(self.memory_limit);
        body.put_u64(self.connection_bytes);
        body.put_u64(self.connection_limit);
        body.put_u32(self.clients);
        body.put_u64(self.requests);
        body.put_u64(self.refused);
        body.put_u64(self.out_of_space);
        body.put_u64(self.evicted);
        body.put_u64(self.expired);
        body.put_u32(self.stood_ms);
        body.put_u64(self.dumped.primary);
        body.put_u64(self.dumped.secondary);
        let address = self.crowd.map(|crowd| SocketAddr::new(crowd.address, 0));
        write_address(body, address);
        body.put_u32(self.crowd.map_or(0, |crowd| crowd.connections));
        body.put_u64(self.crowd.map_or(0, |crowd| crowd.closed));
        body.put_u16(length_u16(self.replicas.len(), "heartbeat"));
        for replica in &self.replicas {
            body.put_u16(replica.group.0);
            body.put_u16(replica.shard.0);
            body.put_u8(replica.state as u8);
            body.put_u8(replica.connected.into());
            body.put_u64(replica.view.0);
            body.put_u64(replica.last.0);
            body.put_u64(replica.committed.0);
            body.put_u64(replica.entries);
            body.put_u64(replica.bytes);
            body.put_u64(replica.used_bytes);
            body.put_u32(replica.silent_ms);
            body.put_u8(replica.following as u8);
            body.put_u32(replica.longest_gap_ms);
            body.put_u64(replica.content_bytes);
            body.put_u64(replica.copied);
            body.put_u64(replica.copied_bytes);
            body.put_u64(replica.flush.id.0);
            body.put_u64(replica.flush.removed);
            body.put_u8(replica.flush.is_done.into());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Heartbeat, DecodeError> {
        let incarnation = Incarnation(reader.u64("incarnation")?);
        let epoch = read_epoch(reader)?;
        let resident_bytes = reader.u64("resident bytes")?;
        let memory_limit = reader.u64("memory limit")?;
        let connection_bytes = reader.u64("connection bytes")?;
        let connection_limit = reader.u64("connection limit")?;
        let clients = reader.u32("client count")?;
        let requests = reader.u64("request count")?;
        let refused = reader.u64("refused count")?;
        let out_of_space = reader.u64("count of writes without room")?;
        let evicted = reader.u64("count of evicted entries")?;
        let expired = reader.u64("count of expired entries")?;
        let stood_ms = reader.u32("time hung")?;
        let dumped = DumpedBytes {
            primary: reader.u64("bytes dumped of the primary table")?,
            secondary: reader.u64("bytes dumped of the secondary table")?,
        };
        let address = read_address(reader)?;
        let (connections, closed) = (reader.u32("crowd")?, reader.u64("closed count")?);
        let crowd = address.map(|at| CrowdReport { address: at.ip(), connections, closed });
        let count = reader.u16("replica count")?;
        if usize::from(count) > MAX_HEARTBEAT_REPLICAS {
            return Err(DecodeError::BadValue { field: "replica count", value: count.into() });
        }
        let mut replicas = Vec::new();
        for _ in 0..count {
            let group = GroupId(reader.u16("group")?);
            let shard = ShardId(reader.u16("shard")?);
            let state = reader.u8("replica state")?;
            let state = ReplicaState::from_wire(state)
                .ok_or(DecodeError::BadValue { field: "replica state", value: state.into() })?;
            let connected = reader.u8("connected")? != 0;
            replicas.push(ReplicaReport {
                group,
                shard,
                state,
                connected,
                view: ViewVersion(reader.u64("view version")?),
                last: SequenceNumber(reader.u64("last sn")?),
                committed: SequenceNumber(reader.u64("committed sn")?),
                entries: reader.u64("entries")?,
                bytes: reader.u64("bytes")?,
                used_bytes: reader.u64("used bytes")?,
                silent_ms: reader.u32("silence")?,
                following: read_following(reader)?,
                longest_gap_ms: reader.u32("longest gap")?,
                content_bytes: reader.u64("content bytes")?,
                copied: reader.u64("copied")?,
                copied_bytes: reader.u64("copied bytes")?,
                flush: FlushReport {
                    id: OrderId(reader.u64("flush")?),
                    removed: reader.u64("removed entries")?,
                    is_done: reader.u8("end of the flush")? != 0,
                },
            });
        }
        Ok(Heartbeat {
            incarnation,
            epoch,
            resident_bytes,
            memory_limit,
            connection_bytes,
            connection_limit,
            clients,
            requests,
            refused,
            out_of_space,
            evicted,
            expired,
            stood_ms,
            dumped,
            crowd,
            replicas,
        })
    }
}

fn read_following(reader: &mut Reader<'_>) -> Result<Following, DecodeError> {
    let number = reader.u8("following")?;
    Following::from_wire(number)
        .ok_or(DecodeError::BadValue { field: "following", value: number.into() })
}

/// A message from an admitted server to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// The state of the server, every 100 ms.
    Heartbeat(Heartbeat),
    /// A request for an orderly stop, after the server received a stop signal.
    DrainRequest,
}

impl ServerMessage {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        let opcode = match self {
            ServerMessage::Heartbeat(_) => opcode::HEARTBEAT,
            ServerMessage::DrainRequest => opcode::DRAIN_REQUEST,
        };
        write_frame(output, Checksum::Crc32c, opcode, |body| match self {
            ServerMessage::Heartbeat(heartbeat) => heartbeat.write(body),
            ServerMessage::DrainRequest => {}
        });
    }

    /// Reads a message from its frame.
    pub fn read(opcode: u8, body: &[u8]) -> Result<ServerMessage, DecodeError> {
        let mut reader = Reader::new(body);
        let message = match opcode {
            opcode::HEARTBEAT => ServerMessage::Heartbeat(Heartbeat::read(&mut reader)?),
            opcode::DRAIN_REQUEST => ServerMessage::DrainRequest,
            opcode => {
                let supported = "HEARTBEAT, DRAIN-REQUEST";
                return Err(DecodeError::UnknownOpcode { opcode, supported });
            }
        };
        reader.finish()?;
        Ok(message)
    }
}

/// The coordinator's response to [`Started`], and the rejection of a connection by either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The server is admitted.
    Admitted {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// The connection is rejected; a close follows.
    Refused {
        /// The reason as text.
        reason: String,
    },
}

impl Admission {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        match self {
            Admission::Admitted { epoch } => {
                write_frame(output, Checksum::Crc32c, opcode::ADMITTED, |body| {
                    write_epoch(body, *epoch);
                });
            }
            Admission::Refused { reason } => {
                write_frame(output, Checksum::Crc32c, opcode::REFUSED, |body| {
                    body.put_bytes(reason.as_bytes());
                });
            }
        }
    }

    /// Reads an admission from its frame.
    pub fn read(opcode: u8, body: &[u8]) -> Result<Admission, DecodeError> {
        match opcode {
            opcode::ADMITTED => {
                let mut reader = Reader::new(body);
                let epoch = read_epoch(&mut reader)?;
                reader.finish()?;
                Ok(Admission::Admitted { epoch })
            }
            opcode::REFUSED => {
                Ok(Admission::Refused { reason: String::from_utf8_lossy(body).into_owned() })
            }
            opcode => Err(DecodeError::UnknownOpcode { opcode, supported: "ADMITTED, REFUSED" }),
        }
    }
}

/// Appends a CLUSTER-MAP. The coordinator responds to a heartbeat with it if its map is newer than the last one it
/// sent on this connection.
pub fn write_cluster_map(output: &mut Vec<u8>, map: &Map) {
    write_frame(output, Checksum::Crc32c, opcode::CLUSTER_MAP, |body| map.write(body));
}

/// Reads the map from a frame that the coordinator sent to an admitted server.
pub fn read_cluster_map(opcode: u8, body: &[u8]) -> Result<Map, DecodeError> {
    if opcode != opcode::CLUSTER_MAP {
        return Err(DecodeError::UnknownOpcode { opcode, supported: "CLUSTER-MAP" });
    }
    Map::read_all(body)
}

/// The coordinator's first frame at a server's coord_port after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrdersHello {
    /// The cluster.
    pub cluster: ClusterId,
    /// The coordinator's epoch. A server rejects an epoch lower than the highest one that it has
    /// accepted.
    pub epoch: Epoch,
    /// The process to which the orders are addressed.
    pub to: Member,
}

impl OrdersHello {
    /// Appends the frame.
    pub fn write(&self, seal: &Seal, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::ORDERS_HELLO, |body| {
            let start = body.len();
            body.put_u128(self.cluster.0);
            write_epoch(body, self.epoch);
            write_member(body, self.to);
            seal.close(body, start);
        });
    }

    /// Reads a hello from its frame's body.
    ///
    /// # Errors
    /// If the sender does not have the key of this handshake, or the message is malformed.
    pub fn read(body: &[u8], seal: &Seal) -> Result<OrdersHello, DecodeError> {
        let mut reader = Reader::new(seal.open(body)?);
        let hello = OrdersHello {
            cluster: ClusterId(reader.u128("cluster id")?),
            epoch: read_epoch(&mut reader)?,
            to: read_member(&mut reader)?,
        };
        reader.finish()?;
        Ok(hello)
    }
}

/// Appends an ORDERS-WELCOME: the server accepts orders on this connection.
pub fn write_orders_welcome(output: &mut Vec<u8>) {
    write_frame(output, Checksum::Crc32c, opcode::ORDERS_WELCOME, |_| {});
}

/// The purpose of a new view. Each purpose is also the name of the order that carries the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ViewPurpose {
    /// To a primary: replicate to the secondary of this view. Done when every shard serves and its stream is up.
    SetSecondary = opcode::SET_SECONDARY,
    /// To a secondary: become the primary in place of the old one. Done when every shard serves.
    TakeOver = opcode::TAKE_OVER,
    /// To a primary: continue alone. Done when every shard has installed the view.
    DropSecondary = opcode::DROP_SECONDARY,
    /// To a primary: copy to the group's home primary, which is this view's candidate. Done when the candidate has
    /// caught up on every shard.
    UpdatePrimary = opcode::UPDATE_PRIMARY,
    /// To a primary: copy to the group's home secondary, which is this view's candidate. Done when the candidate has
    /// caught up on every shard.
    UpdateSecondary = opcode::UPDATE_SECONDARY,
    /// To a primary: hand over to the primary of this view. Done when every shard has handed over.
    SwitchPrimary = opcode::SWITCH_PRIMARY,
    /// To a holder that was removed: drop the copy. Done when every shard has dropped it.
    Leave = opcode::LEAVE,
}

impl ViewPurpose {
    /// All purposes.
    pub const ALL: [ViewPurpose; 7] = [
        ViewPurpose::SetSecondary,
        ViewPurpose::TakeOver,
        ViewPurpose::DropSecondary,
        ViewPurpose::UpdatePrimary,
        ViewPurpose::UpdateSecondary,
        ViewPurpose::SwitchPrimary,
        ViewPurpose::Leave,
    ];

    /// Returns the name used in logs and the manual.
    pub fn name(self) -> &'static str {
        match self {
            ViewPurpose::SetSecondary => "SET-SECONDARY",
            ViewPurpose::TakeOver => "TAKE-OVER",
            ViewPurpose::DropSecondary => "DROP-SECONDARY",
            ViewPurpose::UpdatePrimary => "UPDATE-PRIMARY",
            ViewPurpose::UpdateSecondary => "UPDATE-SECONDARY",
            ViewPurpose::SwitchPrimary => "SWITCH-PRIMARY",
            ViewPurpose::Leave => "LEAVE",
        }
    }

    /// Returns the names of the order's reports of success and of failure.
    fn report_names(self) -> (&'static str, &'static str) {
        match self {
            ViewPurpose::SetSecondary => ("SECONDARY-SET", "SET-SECONDARY-FAILED"),
            ViewPurpose::TakeOver => ("TAKEN-OVER", "TAKE-OVER-FAILED"),
            ViewPurpose::DropSecondary => ("SECONDARY-DROPPED", "DROP-SECONDARY-FAILED"),
            ViewPurpose::UpdatePrimary => ("UPDATED-PRIMARY", "UPDATE-PRIMARY-FAILED"),
            ViewPurpose::UpdateSecondary => ("UPDATED-SECONDARY", "UPDATE-SECONDARY-FAILED"),
            ViewPurpose::SwitchPrimary => ("PRIMARY-SWITCHED", "SWITCH-PRIMARY-FAILED"),
            ViewPurpose::Leave => ("LEFT", "LEAVE-FAILED"),
        }
    }
}

/// An order that carries a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewOrder {
    /// The purpose of the view.
    pub purpose: ViewPurpose,
    /// The view, durable at the coordinator.
    pub view: View,
    /// The address at which the other holder accepts streams; `None` if there is no other holder, or if the receiver
    /// never dials it.
    pub other: Option<SocketAddr>,
}

/// The content of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// Install this view on every shard.
    View(ViewOrder),
    /// Report at once, as proof of receipt.
    Probe,
    /// Record that this process has ended; the order is the proof.
    Exited(Member),
    /// Reject new writes; done when all pending ones are committed.
    Drain,
    /// Write the primary table to `server_<id>.primary`.
    DumpPrimary,
    /// Write the secondary table to `server_<id>.secondary`.
    DumpSecondary,
    /// Remove all entries of a group, as its primary under the view of this version. No report follows; heartbeats show
    /// the progress of each shard.
    Flush(GroupId, ViewVersion),
    /// Exit. The server sends the report immediately before it exits.
    Shutdown,
}

/// An order, with the id that its report repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The id, which the report repeats.
    pub id: OrderId,
    /// The content.
    pub kind: OrderKind,
}

impl Order {
    /// Returns the name used in logs and the manual.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            OrderKind::View(order) => order.purpose.name(),
            OrderKind::Probe => "PROBE",
            OrderKind::Exited(_) => "EXITED",
            OrderKind::Drain => "DRAIN",
            OrderKind::DumpPrimary => "DUMP-PRIMARY",
            OrderKind::DumpSecondary => "DUMP-SECONDARY",
            OrderKind::Flush(..) => "FLUSH",
            OrderKind::Shutdown => "SHUTDOWN",
        }
    }

    /// Returns the name of the order's report of success or failure.
    pub fn report_name(&self, is_done: bool) -> &'static str {
        let (done, failed) = match &self.kind {
            OrderKind::View(order) => order.purpose.report_names(),
            OrderKind::Probe => ("PROBED", "PROBE-FAILED"),
            OrderKind::Exited(_) => ("EXITED-NOTED", "EXITED-FAILED"),
            OrderKind::Drain => ("DRAINED", "DRAIN-FAILED"),
            OrderKind::DumpPrimary => ("DUMPED-PRIMARY", "DUMP-PRIMARY-FAILED"),
            OrderKind::DumpSecondary => ("DUMPED-SECONDARY", "DUMP-SECONDARY-FAILED"),
            OrderKind::Flush(..) => ("FLUSHED", "FLUSH-FAILED"),
            OrderKind::Shutdown => ("SHUT-DOWN", "SHUTDOWN-FAILED"),
        };
        if is_done { done } else { failed }
    }

    /// Returns the view that the order carries; `None` for an order without one.
    pub fn view(&self) -> Option<&View> {
        match &self.kind {
            OrderKind::View(order) => Some(&order.view),
            _ => None,
        }
    }

    /// Returns the view version for the order's report: the version of the order's view, or 0.
    pub fn view_version(&self) -> ViewVersion {
        self.view().map_or(ViewVersion(0), |view| view.version)
    }

    fn opcode(&self) -> u8 {
        match &self.kind {
            OrderKind::View(order) => order.purpose as u8,
            OrderKind::Probe => opcode::PROBE,
            OrderKind::Exited(_) => opcode::EXITED,
            OrderKind::Drain => opcode::DRAIN,
            OrderKind::DumpPrimary => opcode::DUMP_PRIMARY,
            OrderKind::DumpSecondary => opcode::DUMP_SECONDARY,
            OrderKind::Flush(..) => opcode::FLUSH,
            OrderKind::Shutdown => opcode::SHUTDOWN,
        }
    }

    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, self.opcode(), |body| {
            body.put_u64(self.id.0);
            match &self.kind {
                OrderKind::View(order) => {
                    write_view(body, &order.view);
                    write_address(body, order.other);
                }
                OrderKind::Exited(member) => write_member(body, *member),
                OrderKind::Flush(group, view) => {
                    body.put_u16(group.0);
                    body.put_u64(view.0);
                }
                OrderKind::Probe
                | OrderKind::Drain
                | OrderKind::DumpPrimary
                | OrderKind::DumpSecondary
                | OrderKind::Shutdown => {}
            }
        });
    }

    /// Reads an order from its frame.
    pub fn read(opcode: u8, body: &[u8]) -> Result<Order, DecodeError> {
        let mut reader = Reader::new(body);
        let id = OrderId(reader.u64("order id")?);
        let kind = match opcode {
            opcode::PROBE => OrderKind::Probe,
            opcode::EXITED => OrderKind::Exited(read_member(&mut reader)?),
            opcode::DRAIN => OrderKind::Drain,
            opcode::DUMP_PRIMARY => OrderKind::DumpPrimary,
            opcode::DUMP_SECONDARY => OrderKind::DumpSecondary,
            opcode::FLUSH => {
                let group = GroupId(reader.u16("group")?);
                OrderKind::Flush(group, ViewVersion(reader.u64("view version")?))
            }
            opcode::SHUTDOWN => OrderKind::Shutdown,
            opcode => {
                let mut purposes = ViewPurpose::ALL.into_iter();
                let Some(purpose) = purposes.find(|&purpose| purpose as u8 == opcode) else {
                    let supported = "SET-SECONDARY, TAKE-OVER, DROP-SECONDARY, UPDATE-PRIMARY, \
                                     UPDATE-SECONDARY, SWITCH-PRIMARY, LEAVE, PROBE, EXITED, \
                                     DRAIN, DUMP-PRIMARY, DUMP-SECONDARY, FLUSH, SHUTDOWN";
                    return Err(DecodeError::UnknownOpcode { opcode, supported });
                };
                let view = read_view(&mut reader)?;
                let other = read_address(&mut reader)?;
                OrderKind::View(ViewOrder { purpose, view, other })
            }
        };
        reader.finish()?;
        Ok(Order { id, kind })
    }
}

/// A report on an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The id of the order.
    pub id: OrderId,
    /// The version of the view that the order carried; 0 for other orders.
    pub view: ViewVersion,
    /// For a successful dump, the number of entries written; for any other successful order, 0. Otherwise the failure.
    pub outcome: Result<u64, OrderFailure>,
}

/// The failure of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderFailure {
    /// The reason as text.
    pub reason: String,
    /// True if the order was a dump of a table of which this server holds no complete copy. The missing dump loses no
    /// data, and a retry would fail again.
    pub is_no_copy: bool,
}

impl From<String> for OrderFailure {
    fn from(reason: String) -> OrderFailure {
        OrderFailure { reason, is_no_copy: false }
    }
}

/// Appends a DUMP-TO. Dumps that are ordered later are written to this directory on the server's host.
pub fn write_dump_directory(output: &mut Vec<u8>, directory: &str) {
    write_frame(output, Checksum::Crc32c, opcode::DUMP_TO, |body| {
        body.put_bytes(directory.as_bytes());
    });
}

/// Reads the directory from the body of a DUMP-TO.
///
/// # Errors
/// If the body is not an absolute path in UTF-8, without NUL, of at most [`MAX_DUMP_DIRECTORY_BYTES`].
pub fn read_dump_directory(body: &[u8]) -> Result<String, DecodeError> {
    let bad = |value: usize| DecodeError::BadValue {
        field: "dump directory",
        value: u64::try_from(value).unwrap_or(u64::MAX),
    };
    if body.len() > MAX_DUMP_DIRECTORY_BYTES {
        return Err(bad(body.len()));
    }
    let text = std::str::from_utf8(body).map_err(|error| bad(error.valid_up_to()))?;
    if !text.starts_with('/') || text.contains('\0') {
        return Err(bad(body.len()));
    }
    Ok(text.to_owned())
}

/// The settings that may change while a server runs. The coordinator sends them when the connection for orders is up,
/// and again on every change. No report follows; heartbeats show the memory limit in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The coordinator's address, to which the server reports from now on.
    pub coordinator: SocketAddr,
    /// The policy of eviction.
    pub eviction: Eviction,
    /// The memory limit of the server's tables in the notation of `--memory-limit`; empty to keep the current limit.
    pub memory_limit: String,
}

impl Settings {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::SETTINGS, |body| {
            write_address(body, Some(self.coordinator));
            body.put_u8(self.eviction as u8);
            body.put_bytes(self.memory_limit.as_bytes());
        });
    }

    /// Reads the settings from their frame's body.
    ///
    /// # Errors
    /// If there is no address, its port is 0 or it is unspecified (`0.0.0.0` or `::`), the policy is unknown,
    /// or the limit is not UTF-8.
    pub fn read(body: &[u8]) -> Result<Settings, DecodeError> {
        let mut reader = Reader::new(body);
        let coordinator = read_address(&mut reader)?
            .filter(|address| address.port() != 0 && !address.ip().is_unspecified())
            .ok_or(DecodeError::BadValue { field: "coordinator's address", value: 0 })?;
        let eviction = reader.u8("eviction")?;
        let eviction = Eviction::from_wire(eviction)
            .ok_or(DecodeError::BadValue { field: "eviction", value: eviction.into() })?;
        let limit = reader.remainder();
        let memory_limit = std::str::from_utf8(limit).map_err(|error| DecodeError::BadValue {
            field: "memory limit",
            value: u64::try_from(error.valid_up_to()).unwrap_or(u64::MAX),
        })?;
        Ok(Settings { coordinator, eviction, memory_limit: memory_limit.to_owned() })
    }
}

impl Report {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::REPORT, |body| {
            body.put_u64(self.id.0);
            body.put_u64(self.view.0);
            match &self.outcome {
                Ok(entries) => {
                    body.put_u8(0);
                    body.put_u64(*entries);
                }
                Err(failure) => {
                    body.put_u8(if failure.is_no_copy { 2 } else { 1 });
                    body.put_bytes(failure.reason.as_bytes());
                }
            }
        });
    }

    /// Reads a report from its frame's body.
    pub fn read(body: &[u8]) -> Result<Report, DecodeError> {
        let mut reader = Reader::new(body);
        let id = OrderId(reader.u64("order id")?);
        let view = ViewVersion(reader.u64("view version")?);
        let outcome = match reader.u8("outcome")? {
            0 => Ok(reader.u64("entries")?),
            code @ (1 | 2) => Err(OrderFailure {
                reason: String::from_utf8_lossy(reader.remainder()).into_owned(),
                is_no_copy: code == 2,
            }),
            other => return Err(DecodeError::BadValue { field: "outcome", value: other.into() }),
        };
        reader.finish()?;
        Ok(Report { id, view, outcome })
    }
}
