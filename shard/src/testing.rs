//! Shared fixtures for tests of the state machines: two shards without sockets that exchange bytes.

use kv_protocol::ClusterKey;
use std::io::IoSlice;
use std::sync::Arc;

use kv_core::arena::{CHUNK_BYTES_MIN, HeapChunks};
use kv_core::hash::HashSecret;
use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{
    Condition, Hello, Operation, Refusal, Request, Response, Status, WriteHeader, opcode,
};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{
    ClientId, ClusterId, GroupId, Incarnation, Member, RequestId, RequestSeq, SequenceNumber,
    ServerId, ShardId, Time, ViewVersion, WallTime,
};
use kv_protocol::key::Nonce;
use kv_protocol::limits::{MAX_RESPONSE_BODY, SESSION_IDLE};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::view::{Peer, View};

use crate::connection_memory::ConnectionMemory;
use crate::handshake::{HelloBounds, Port};
use crate::service::{Identity, Service};
use crate::shard::Shard;

pub(crate) const NOW: Time = Time::from_nanos(1_000_000_000);
pub(crate) const WALL: WallTime = WallTime::from_millis(1_800_000_000_000);
pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(crate) const KEY: ClusterKey = ClusterKey(0x5ec);
pub(crate) const GROUP: GroupId = GroupId(0);

pub(crate) fn member(server: u16) -> Member {
    Member { server: ServerId(server), incarnation: Incarnation(100 + u64::from(server)) }
}

/// Creates the shard of one of three servers with one shard each.
pub(crate) fn shard(server: u16) -> Shard {
    shard_with_memory(server, ConnectionMemory::new(None, None, 2))
}

/// Returns a [`shard`] with this budget for connection memory.
pub(crate) fn shard_with_memory(server: u16, memory: Arc<ConnectionMemory>) -> Shard {
    shard_with(server, memory, Placement::new(3, 1))
}

/// Returns a [`shard`] of a cluster with hash tags.
pub(crate) fn shard_with_hash_tags(server: u16) -> Shard {
    let placement = Placement::new(3, 1).with_hash_tags(true);
    shard_with(server, ConnectionMemory::new(None, None, 2), placement)
}

fn shard_with(server: u16, memory: Arc<ConnectionMemory>, placement: Placement) -> Shard {
    let identity = Identity {
        cluster: CLUSTER,
        key: KEY,
        me: member(server),
        shard: ShardId(0),
        placement,
        failure_timeout: Default::default(),
        session_idle: SESSION_IDLE,
        long_value: crate::LONG_VALUE,
    };
    let chunks = || Box::new(HeapChunks::new(CHUNK_BYTES_MIN)) as _;
    let mut nonce = u128::from(server) << 64;
    let nonces = Box::new(move || {
        nonce += 1;
        Ok(Nonce(nonce))
    });
    let service = Service::new(identity, nonces, memory, HashSecret::new(1), chunks);
    Shard::new(service, HelloBounds::WIDEST)
}

/// Returns the first view of [`GROUP`]: server 0 is primary, server 1 secondary.
pub(crate) fn view() -> View {
    View {
        group: GROUP,
        version: ViewVersion(1),
        primary: Some(member(0)),
        peer: Peer::Secondary(member(1)),
        handover: false,
    }
}

/// Returns a key of [`GROUP`].
pub(crate) fn key() -> &'static [u8] {
    let key = b"key 0";
    assert_eq!(Placement::new(3, 1).locate(key).0, GROUP);
    key
}

pub(crate) fn hello() -> Vec<u8> {
    hello_of(7)
}

/// Returns the hello of the client with this id.
pub(crate) fn hello_of(client: u128) -> Vec<u8> {
    let mut bytes = Vec::new();
    Hello::new(CLUSTER, ClientId(client), ShardId(0)).write(&mut bytes);
    bytes
}

/// Returns the hello of a client that speaks this version of the protocol.
pub(crate) fn hello_of_version(version: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    Hello { version, ..Hello::new(CLUSTER, ClientId(7), ShardId(0)) }.write(&mut bytes);
    bytes
}

pub(crate) fn request(id: u64, key: &[u8], operation: Operation<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (id, view, digest) = (RequestId(id), ViewVersion(0), Digest::of(key));
    Request { id, view, digest, key, operation }.write(&mut bytes);
    bytes
}

/// The header of the first write of a session.
pub(crate) const HEADER: WriteHeader = WriteHeader {
    seq: RequestSeq(1),
    first_incomplete: RequestSeq(1),
    begun: SequenceNumber::ZERO,
    condition: Condition::Always,
};

pub(crate) fn put(seq: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let first_incomplete = RequestSeq(seq.saturating_sub(20).max(1));
    let header = WriteHeader { seq: RequestSeq(seq), first_incomplete, ..HEADER };
    request(seq, key, Operation::Put(header, value))
}

/// Opens a client connection and takes its WELCOME.
pub(crate) fn client(shard: &mut Shard) -> ConnectionId {
    let id = shard.adopt(NOW, Port::Clients, &hello());
    let said = take_output(shard, id);
    assert_eq!(frames(&said), [(opcode::WELCOME, ())].map(|(op, ())| op));
    id
}

/// Takes all output of a connection, including long values.
pub(crate) fn take_output(shard: &mut Shard, id: ConnectionId) -> Vec<u8> {
    take_output_at(NOW, shard, id)
}

/// Ends a wake-up, and takes the bytes that the engine would send next on a connection. Readers are not served.
fn said(now: Time, shard: &mut Shard, id: ConnectionId) -> Vec<u8> {
    shard.finish_wake_up(now);
    let bytes = shard.unsent(id).to_vec();
    shard.handle_sent(now, id, bytes.len());
    bytes
}

/// Sends long values to their readers, like one wake-up. `send` returns the number of bytes that the socket of a
/// connection accepts. Returns whether readers are left.
pub(crate) fn serve_readers(
    shard: &mut Shard,
    now: Time,
    mut send: impl FnMut(ConnectionId, &[IoSlice<'_>]) -> usize,
) -> bool {
    while let Some(transmit) = shard.poll_transmit(now) {
        let sent = send(transmit.id, &transmit.parts);
        shard.handle_transmitted(now, sent);
    }
    shard.has_readers()
}

/// Takes all output of a connection at `now`, including long values.
pub(crate) fn take_output_at(now: Time, shard: &mut Shard, id: ConnectionId) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        serve_readers(shard, now, |_, _| 0);
        let bytes = shard.unsent(id).to_vec();
        if bytes.is_empty() && !shard.has_readers() {
            return all;
        }
        shard.handle_sent(now, id, bytes.len());
        all.extend(bytes);
    }
}

/// Returns the opcodes of complete frames.
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut opcodes = Vec::new();
    while !bytes.is_empty() {
        let rules = FrameRules::unchecked(MAX_RESPONSE_BODY);
        let frame = split_frame(bytes, &rules).unwrap().expect("whole frames");
        opcodes.push(frame.opcode);
        bytes = &bytes[frame.consumed..];
    }
    opcodes
}

/// Returns the request id (`None` for an ERROR), status and text of every frame sent to a client.
pub(crate) fn told(mut bytes: &[u8]) -> Vec<(Option<u64>, Status, String)> {
    let mut told = Vec::new();
    while !bytes.is_empty() {
        let rules = FrameRules::unchecked(MAX_RESPONSE_BODY);
        let frame = split_frame(bytes, &rules).unwrap().expect("whole frames");
        told.push(match frame.opcode {
            opcode::RESPONSE => {
                let Response { id, status, value, .. } = Response::read(frame.body).unwrap();
                (Some(id.0), status, String::from_utf8_lossy(value).into_owned())
            }
            opcode::ERROR => {
                let Refusal { status, reason } = Refusal::read(frame.body).unwrap();
                (None, status, reason.to_owned())
            }
            other => panic!("unexpected opcode {other:#04x} for a client"),
        });
        bytes = &bytes[frame.consumed..];
    }
    told
}

/// The primary and the secondary of [`GROUP`] and the two ends of their stream.
pub(crate) struct Pair {
    pub(crate) primary: Shard,
    pub(crate) secondary: Shard,
    pub(crate) dialled: ConnectionId,
    pub(crate) accepted: ConnectionId,
}

impl Pair {
    /// Creates both shards with the view installed and the stream established.
    pub(crate) fn joined() -> Pair {
        Pair::joined_of([shard(0), shard(1)])
    }

    /// Does the same as [`Pair::joined`], with these shards of servers 0 and 1.
    pub(crate) fn joined_of([mut primary, mut secondary]: [Shard; 2]) -> Pair {
        let address = "127.0.0.1:1".parse().unwrap();
        primary.service.install(NOW, view(), Some(address)).unwrap();
        assert_eq!(primary.due_dials(NOW).len(), 1);
        let dialled = primary.open_dialled(NOW, GROUP);
        let accepted = secondary.adopt(NOW, Port::Servers, &[]);
        let mut pair = Pair { primary, secondary, dialled, accepted };
        pair.exchange();
        assert!(pair.primary.service.reports(NOW).any(|report| report.connected));
        pair
    }

    /// Loses the stream and dials it again.
    pub(crate) fn rejoin(&mut self) {
        self.primary.close(NOW, self.dialled);
        self.secondary.close(NOW, self.accepted);
        self.dialled = self.primary.open_dialled(NOW, GROUP);
        self.accepted = self.secondary.adopt(NOW, Port::Servers, &[]);
    }

    /// Takes the primary's pending messages for the secondary.
    pub(crate) fn said_by_primary(&mut self) -> Vec<u8> {
        said(NOW, &mut self.primary, self.dialled)
    }

    /// Takes the secondary's pending messages for the primary.
    pub(crate) fn said_by_secondary(&mut self) -> Vec<u8> {
        said(NOW, &mut self.secondary, self.accepted)
    }

    /// Moves bytes in both directions until neither side sends more.
    pub(crate) fn exchange(&mut self) {
        self.exchange_at(NOW);
    }

    /// Does the same as [`Pair::exchange`], at `now`.
    pub(crate) fn exchange_at(&mut self, now: Time) {
        loop {
            let there = said(now, &mut self.primary, self.dialled);
            self.secondary.handle_bytes(now, self.accepted, &there);
            let back = said(now, &mut self.secondary, self.accepted);
            self.primary.handle_bytes(now, self.dialled, &back);
            if there.is_empty() && back.is_empty() {
                return;
            }
        }
    }
}
