//! Tests of both ends of one shard, which exchange encoded bytes.

mod catch_up;
mod ending;
mod evicting;
mod expiring;
mod failover;
mod flushing;
mod following;
mod group;
mod hand_over;
mod hostile_copy;
mod in_doubt;
mod limits;
mod model;
mod narrow;
mod scanning;
mod stream;
mod updates;
mod writes;

use std::collections::BTreeMap;
use std::time::Duration;

use kv_protocol::client_message::{
    Condition, Operation, Part, ReplicaRole, Request, Status, WriteHeader,
};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{
    ClientId, ClusterId, Incarnation, RequestId, RequestSeq, ServerId, ViewVersion, WallTime,
};
use kv_protocol::limits::{
    BEACON_INTERVAL, FRAGMENT_BYTES, MAX_PEER_BODY, MAX_PENDING_WRITES, MAX_RETAINED_BYTES,
    MAX_SESSIONS, MAX_VALUE_BYTES, SESSION_IDLE, SESSIONS_FORGOTTEN_AT_ONCE,
};
use kv_protocol::peer_message::{Ack, BatchReader, PeerHello, PeerRefusalReason};
use kv_protocol::placement::Digest;
use kv_protocol::view::Peer;
use proptest::prelude::*;

use super::*;
use crate::arena::HeapChunks;

const ALICE: ClientId = ClientId(0xa11ce);
const CONNECTION: ConnectionId = ConnectionId(1);
const CLUSTER: ClusterId = ClusterId(9);

/// An owned copy of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    status: Status,
    copies: u8,
    version: SequenceNumber,
    value: Vec<u8>,
    whole: u32,
    has_value: bool,
    deadline: Option<WallTime>,
}

#[derive(Default)]
struct Inbox(BTreeMap<u64, Given>);

impl Responses for Inbox {
    fn respond(&mut self, to: ConnectionId, response: &Response<'_>) {
        assert_eq!(to, CONNECTION);
        let given = Given {
            status: response.status,
            copies: response.copies,
            version: response.version,
            value: response.value.to_vec(),
            whole: response.whole,
            has_value: response.has_value,
            deadline: response.deadline,
        };
        assert_eq!(self.0.insert(response.id.0, given), None, "two responses to {:?}", response.id);
    }
}

/// A primary and a secondary, a wire between them, and one client.
struct Pair {
    primary: Replica,
    secondary: Replica,
    inbox: Inbox,
    now: Time,
    requests: u64,
    seq: u64,
    connected: bool,
}

fn member(server: u16) -> Member {
    Member { server: ServerId(server), incarnation: Incarnation(100 + u64::from(server)) }
}

fn view(version: u64) -> View {
    View {
        group: GroupId(0),
        version: ViewVersion(version),
        primary: Some(member(0)),
        peer: Peer::Secondary(member(1)),
        handover: false,
    }
}

fn replica(server: u16, memory_limit: Option<u64>) -> Replica {
    // There is one server and one shard, so every key belongs to this replica.
    replica_in(Placement::new(1, 1), server, memory_limit)
}

/// Creates the replica of group 0 and shard 0.
fn replica_in(placement: Placement, server: u16, memory_limit: Option<u64>) -> Replica {
    replica_at(placement, ShardId(0), server, memory_limit)
}

/// Creates the replica of group 0 and this shard.
fn replica_at(
    placement: Placement,
    shard: ShardId,
    server: u16,
    memory_limit: Option<u64>,
) -> Replica {
    let config = ReplicaConfig {
        me: member(server),
        group: GroupId(0),
        shard,
        placement,
        memory_limit,
        session_idle: SESSION_IDLE,
        hash_secret: HashSecret::new(1),
        failure_timeout: kv_protocol::FailureTimeout::DEFAULT,
    };
    Replica::new(config, Box::new(HeapChunks::default()))
}

impl Pair {
    /// Creates a connected pair in view 1, with a lease.
    fn new() -> Pair {
        let mut pair = Pair::apart(None);
        pair.connect();
        pair.settle();
        pair
    }

    /// Creates a pair in view 1 without a stream.
    fn apart(memory_limit: Option<u64>) -> Pair {
        let mut pair = Pair {
            primary: replica(0, memory_limit),
            secondary: replica(1, memory_limit),
            inbox: Inbox::default(),
            now: Time::from_nanos(1_000_000_000),
            requests: 0,
            seq: 0,
            connected: false,
        };
        pair.primary.install(pair.now, view(1), &mut pair.inbox).unwrap();
        pair
    }

    fn connect(&mut self) {
        let hello = self.primary.peer_hello(CLUSTER).unwrap();
        let welcome = self.secondary.on_peer_hello(self.now, &hello, &mut self.inbox).unwrap();
        self.primary.on_peer_welcome(self.now, &welcome, &mut self.inbox).unwrap();
        self.connected = true;
    }

    fn disconnect(&mut self) {
        self.primary.on_stream_down(self.now, &mut self.inbox);
        self.secondary.on_stream_down(self.now, &mut self.inbox);
        self.connected = false;
    }

    /// Takes one batch of the primary as bytes; empty if the primary has nothing to send.
    fn pump(&mut self) -> (Vec<u8>, Pumped) {
        let mut bytes = Vec::new();
        let pumped = self.primary.pump(self.now, &mut bytes);
        (bytes, pumped)
    }

    /// Delivers everything that the primary has to send. The secondary's ack is not delivered.
    fn deliver(&mut self) {
        loop {
            let (bytes, pumped) = self.pump();
            self.receive_at_secondary(&bytes);
            if pumped == Pumped::Done {
                return;
            }
        }
    }

    fn receive_at_secondary(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let frame = split_frame(bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
        for message in BatchReader::new(frame.body).unwrap() {
            self.secondary.on_peer_message(self.now, &message.unwrap(), &mut self.inbox).unwrap();
        }
    }

    /// Delivers the secondary's ack if one is due; without a stream it is lost.
    fn ack(&mut self) {
        if let Some(ack) = self.take_ack()
            && self.connected
        {
            self.primary
                .on_peer_message(self.now, &PeerMessage::Ack(ack), &mut self.inbox)
                .unwrap();
        }
    }

    /// Returns the ack that the secondary sends at the end of a wake-up.
    fn take_ack(&mut self) -> Option<Ack> {
        let mut bytes = Vec::new();
        self.secondary.pump(self.now, &mut bytes);
        let frame = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap()?;
        let mut messages = BatchReader::new(frame.body).unwrap();
        match messages.next().unwrap().unwrap() {
            PeerMessage::Ack(ack) => Some(ack),
            other => panic!("unexpected message from the secondary: {other:?}"),
        }
    }

    /// Delivers everything in both directions.
    fn settle(&mut self) {
        self.deliver();
        self.ack();
    }

    fn request(&mut self, key: &[u8], operation: Operation<'_>) -> u64 {
        self.requests += 1;
        self.request_as(self.requests, key, operation);
        self.requests
    }

    fn request_as(&mut self, id: u64, key: &[u8], operation: Operation<'_>) {
        let request = Request {
            id: RequestId(id),
            view: ViewVersion(1),
            digest: Digest::of(key),
            key,
            operation,
        };
        let target = match operation {
            Operation::Verify(ReplicaRole::Secondary) => &mut self.secondary,
            _ => &mut self.primary,
        };
        let hash = target.hash_of(request.digest, request.key);
        target.on_request(self.now, (CONNECTION, ALICE), &request, hash, &mut self.inbox);
    }

    fn header(&mut self, condition: Condition) -> WriteHeader {
        self.seq += 1;
        header(self.seq, condition)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> u64 {
        self.put_if(key, value, Condition::Always)
    }

    fn put_if(&mut self, key: &[u8], value: &[u8], condition: Condition) -> u64 {
        let header = self.header(condition);
        self.request(key, Operation::Put(header, value))
    }

    fn delete(&mut self, key: &[u8]) -> u64 {
        let header = self.header(Condition::Always);
        self.request(key, Operation::Delete(header))
    }

    fn get(&mut self, key: &[u8]) -> Given {
        let id = self.request(key, Operation::Get);
        self.given(id).expect("reads get their response at once")
    }

    fn given(&self, id: u64) -> Option<Given> {
        self.inbox.0.get(&id).cloned()
    }

    fn status(&self, id: u64) -> Option<Status> {
        self.given(id).map(|given| given.status)
    }
}

fn header(seq: u64, condition: Condition) -> WriteHeader {
    let first_incomplete = RequestSeq(seq.saturating_sub(40).max(1));
    WriteHeader { seq: RequestSeq(seq), first_incomplete, begun: SequenceNumber::ZERO, condition }
}

fn contents(replica: &Replica) -> BTreeMap<Vec<u8>, (Vec<u8>, u64)> {
    let mut all = BTreeMap::new();
    let mut cursor = Some(WalkCursor::default());
    while let Some(at) = cursor {
        cursor = replica.walk(at, WalkBudget { entries: 100, bytes: 1 << 20 }, |entry| {
            let value = (entry.value.to_vec(), entry.version.0);
            assert_eq!(all.insert(entry.key.to_vec(), value), None, "walked twice");
        });
    }
    all
}
