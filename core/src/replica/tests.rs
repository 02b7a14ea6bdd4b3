//! Both ends of one shard, joined by the very bytes that would travel.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_protocol::client_message::{Condition, Operation, Request, Status, WriteHeader};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{
    ClientId, ClusterId, Incarnation, RequestId, RequestSeq, ServerId, ViewVersion,
};
use kv_protocol::limits::{
    BEACON_INTERVAL, FRAGMENT_BYTES, MAX_PEER_BODY, MAX_PENDING_WRITES, SESSION_IDLE,
};
use kv_protocol::peer_message::{BatchReader, BatchWriter, PeerHello, PeerRefusalReason};
use kv_protocol::placement::Digest;
use kv_protocol::view::Peer;
use proptest::prelude::*;

use super::*;
use crate::arena::HeapChunks;

const ALICE: ClientId = ClientId(0xa11ce);
const CONNECTION: ConnectionId = ConnectionId(1);
const CLUSTER: ClusterId = ClusterId(9);

/// An answer that was given, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    status: Status,
    copies: u8,
    version: SequenceNumber,
    value: Vec<u8>,
}

#[derive(Default)]
struct Inbox(BTreeMap<u64, Given>);

impl Answers for Inbox {
    fn answer(&mut self, to: ConnectionId, answer: &Answer<'_>) {
        assert_eq!(to, CONNECTION);
        let given = Given {
            status: answer.status,
            copies: answer.copies,
            version: answer.version,
            value: answer.value.to_vec(),
        };
        assert_eq!(self.0.insert(answer.id.0, given), None, "answered twice: {:?}", answer.id);
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
    let config = ReplicaConfig {
        me: member(server),
        group: GroupId(0),
        shard: ShardId(0),
        // One server and one shard: every key belongs here.
        placement: Placement::new(1, 1),
        memory_limit,
        hash_secret: HashSecret::new(u64::from(server)),
    };
    Replica::new(config, Box::new(HeapChunks::default()))
}

impl Pair {
    /// Connected, in view 1.
    fn new() -> Pair {
        let mut pair = Pair::apart(None);
        pair.connect();
        pair
    }

    /// In view 1, no stream yet.
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
        pair.primary.install(view(1), &mut pair.inbox).unwrap();
        pair
    }

    fn connect(&mut self) {
        let hello = self.primary.peer_hello(CLUSTER).unwrap();
        let welcome = self.secondary.on_peer_hello(&hello, &mut self.inbox).unwrap();
        self.primary.on_peer_welcome(&welcome, &mut self.inbox).unwrap();
        self.connected = true;
    }

    fn disconnect(&mut self) {
        self.primary.on_stream_down();
        self.secondary.on_stream_down();
        self.connected = false;
    }

    /// One batch from the primary, as bytes; empty when there is nothing to say.
    fn pump(&mut self) -> (Vec<u8>, Pumped) {
        let mut batch = BatchWriter::new();
        let pumped = self.primary.pump(self.now, &mut batch);
        let mut bytes = Vec::new();
        batch.finish(&mut bytes);
        (bytes, pumped)
    }

    /// Carries everything the primary has to say; the secondary's ack stays behind.
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

    /// Carries the secondary's ack, if it owes one; without a stream it is lost.
    fn ack(&mut self) {
        if let Some(ack) = self.secondary.take_ack()
            && self.connected
        {
            self.primary
                .on_peer_message(self.now, &PeerMessage::Ack(ack), &mut self.inbox)
                .unwrap();
        }
    }

    /// Carries everything both ways.
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
        target.on_request(self.now, CONNECTION, ALICE, &request, &mut self.inbox);
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
        self.given(id).expect("reads are answered at once")
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
    WriteHeader { seq: RequestSeq(seq), first_incomplete, condition }
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

#[test]
fn a_write_is_answered_only_when_both_tables_have_it() {
    let mut pair = Pair::new();
    let put = pair.put(b"k", b"v");
    assert_eq!(pair.given(put), None);
    pair.deliver();
    assert_eq!(contents(&pair.secondary).len(), 1);
    assert_eq!(pair.given(put), None, "answered before the ack");
    pair.ack();
    let given = pair.given(put).unwrap();
    assert_eq!((given.status, given.copies, given.version.0), (Status::Ok, 2, 1));
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn reads_see_only_what_is_committed() {
    let mut pair = Pair::new();
    pair.put(b"k", b"old");
    pair.settle();
    pair.put(b"k", b"new");
    pair.deliver();
    assert_eq!(pair.get(b"k").value, b"old");
    pair.ack();
    assert_eq!(pair.get(b"k").value, b"new");
    assert_eq!(pair.get(b"other").status, Status::NotFound);
}

#[test]
fn conditions_are_decided_against_pending_writes() {
    let mut pair = Pair::new();
    pair.put(b"k", b"1");
    let wins = pair.put_if(b"k", b"2", Condition::IfVersion(SequenceNumber(1)));
    let loses = pair.put_if(b"k", b"3", Condition::IfVersion(SequenceNumber(1)));
    pair.delete(b"k");
    let absent = pair.put_if(b"k", b"4", Condition::IfAbsent);
    let present = pair.put_if(b"k", b"5", Condition::IfAbsent);
    pair.delete(b"k");
    let nothing_left = pair.delete(b"k");
    assert_eq!(pair.inbox.0.len(), 0, "even a refused condition waits for the writes before it");
    pair.settle();
    assert_eq!(pair.status(wins), Some(Status::Ok));
    let conflict = pair.given(loses).unwrap();
    assert_eq!((conflict.status, conflict.version.0), (Status::Conflict, 2));
    assert_eq!(pair.status(absent), Some(Status::Ok));
    assert_eq!(pair.status(present), Some(Status::Conflict));
    assert_eq!(pair.status(nothing_left), Some(Status::NotFound));
    assert_eq!(contents(&pair.primary).len(), 0);
    assert_eq!(contents(&pair.secondary).len(), 0);
}

#[test]
fn a_retried_write_is_executed_once_and_gets_its_first_answer() {
    let mut pair = Pair::new();
    let write = Operation::Put(header(1, Condition::IfAbsent), b"v");
    pair.request_as(1, b"k", write);
    // The first connection breaks; the retry of a pending write waits for it.
    pair.request_as(2, b"k", write);
    assert_eq!(pair.inbox.0.len(), 0);
    pair.settle();
    assert_eq!(pair.given(1), None, "the latest asker is answered");
    let first = pair.given(2).unwrap();
    assert_eq!(first.status, Status::Ok);
    // Executed again, it would find the key present.
    pair.request_as(3, b"k", write);
    assert_eq!(pair.given(3), Some(first));
    assert_eq!(pair.primary.report().unwrap().last, SequenceNumber(1));
}

#[test]
fn an_expired_write_is_not_executed() {
    let mut pair = Pair::new();
    let late = WriteHeader { first_incomplete: RequestSeq(5), ..header(5, Condition::Always) };
    pair.request_as(1, b"k", Operation::Put(late, b"v"));
    assert_eq!(pair.status(1), Some(Status::SessionExpired));
    assert_eq!(pair.primary.report().unwrap().last, SequenceNumber::ZERO);
}

#[test]
fn what_was_not_acked_is_sent_again_on_the_next_stream() {
    let mut pair = Pair::apart(None);
    let before = pair.put(b"a", b"1");
    pair.connect();
    let lost = pair.put(b"b", b"2");
    pair.pump(); // sent, and lost with the connection
    pair.disconnect();
    let applied = pair.put(b"c", b"3");
    pair.connect();
    pair.deliver(); // applied, but the ack is lost
    pair.disconnect();
    assert_eq!(pair.inbox.0.len(), 0);
    pair.connect();
    // The welcome says what is applied; that is an ack.
    for id in [before, lost, applied] {
        assert_eq!(pair.status(id), Some(Status::Ok));
    }
    assert_eq!(pair.secondary.report().unwrap().last, SequenceNumber(3));
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn a_repeated_prepare_is_acked_and_not_applied() {
    let mut pair = Pair::new();
    pair.put(b"k", b"1");
    let (first, _) = pair.pump();
    pair.receive_at_secondary(&first);
    pair.put(b"k", b"2");
    pair.settle();
    pair.receive_at_secondary(&first);
    assert_eq!(contents(&pair.secondary)[&b"k"[..]], (b"2".to_vec(), 2));
    assert_eq!(pair.secondary.take_ack().unwrap().sn, SequenceNumber(2));
}

#[test]
fn a_gap_in_the_stream_is_refused() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.pump(); // lost, though the stream goes on
    pair.put(b"b", b"2");
    let (bytes, _) = pair.pump();
    let frame = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    let message = BatchReader::new(frame.body).unwrap().next().unwrap().unwrap();
    let got = pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox);
    let (expected, found) = (SequenceNumber(1), SequenceNumber(2));
    assert_eq!(got, Err(StreamError::Gap { expected, got: found }));
    assert_eq!(contents(&pair.secondary).len(), 0);
}

#[test]
fn an_ack_of_what_was_never_sent_is_refused() {
    let mut pair = Pair::new();
    let put = pair.put(b"a", b"1");
    let ack = kv_protocol::peer_message::Ack {
        view: ViewVersion(1),
        sn: SequenceNumber(1),
        echo: pair.now,
    };
    let got = pair.primary.on_peer_message(pair.now, &PeerMessage::Ack(ack), &mut pair.inbox);
    assert!(matches!(got, Err(StreamError::Impossible { .. })), "{got:?}");
    assert_eq!(pair.given(put), None);
}

#[test]
fn messages_of_another_view_are_refused() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    let (old, _) = pair.pump();
    pair.primary.install(view(2), &mut pair.inbox).unwrap();
    pair.connect();
    let frame = split_frame(&old, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    for message in BatchReader::new(frame.body).unwrap() {
        let got = pair.secondary.on_peer_message(pair.now, &message.unwrap(), &mut pair.inbox);
        assert!(matches!(got, Err(StreamError::View { .. })), "{got:?}");
    }
    pair.settle();
    assert_eq!(contents(&pair.secondary).len(), 1, "sent again under the new view");
}

#[test]
fn a_large_value_travels_in_fragments_with_beacons_between() {
    let mut pair = Pair::new();
    let value: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let put = pair.put(b"big", &value);
    let mut beacons = 0;
    loop {
        let (bytes, pumped) = pair.pump();
        let frame = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
        for message in BatchReader::new(frame.body).unwrap() {
            let message = message.unwrap();
            match &message {
                PeerMessage::Prepare(prepare) => assert!(prepare.value.len() <= FRAGMENT_BYTES),
                PeerMessage::Fragment(fragment) => assert!(fragment.bytes.len() <= FRAGMENT_BYTES),
                PeerMessage::Beacon(_) => beacons += 1,
                PeerMessage::Ack(_) => panic!("a primary does not ack"),
            }
            pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox).unwrap();
        }
        pair.ack();
        if pumped == Pumped::Done {
            break;
        }
        pair.now = pair.now + BEACON_INTERVAL;
    }
    assert!(beacons > 10, "only {beacons} beacons");
    assert_eq!(pair.status(put), Some(Status::Ok));
    assert_eq!(pair.get(b"big").value, value);
    let id = pair.request(b"big", Operation::Verify(ReplicaRole::Secondary));
    assert_eq!(pair.given(id).unwrap().value, value);
}

#[test]
fn a_large_value_cut_by_a_reconnect_arrives_whole() {
    let mut pair = Pair::new();
    let value = vec![7; 3_000_000];
    pair.put(b"big", &value);
    let (bytes, pumped) = pair.pump();
    assert_eq!(pumped, Pumped::More);
    pair.receive_at_secondary(&bytes);
    pair.disconnect();
    pair.connect();
    pair.settle();
    assert_eq!(contents(&pair.secondary), contents(&pair.primary));
    assert_eq!(pair.get(b"big").value, value);
}

#[test]
fn beacons_flow_when_idle_and_only_then() {
    let mut pair = Pair::new();
    let first = pair.primary.next_timeout().unwrap();
    assert!(first <= pair.now, "a new stream says something at once");
    pair.settle();
    assert_eq!(pair.primary.next_timeout(), Some(pair.now + BEACON_INTERVAL));
    assert_eq!(pair.pump().0, Vec::<u8>::new());
    pair.now = pair.now + BEACON_INTERVAL;
    assert_ne!(pair.pump().0, Vec::<u8>::new());
}

#[test]
fn a_draining_primary_commits_what_is_pending_and_takes_no_more() {
    let mut pair = Pair::new();
    let pending = pair.put(b"a", b"1");
    pair.primary.drain();
    assert!(!pair.primary.is_drained());
    let late = pair.put(b"b", b"2");
    assert_eq!(pair.status(late), Some(Status::Unavailable));
    pair.settle();
    assert!(pair.primary.is_drained());
    assert_eq!(pair.status(pending), Some(Status::Ok));
    assert_eq!(pair.get(b"a").value, b"1", "reads go on");
}

#[test]
fn at_the_memory_limit_writes_are_refused_while_reads_and_deletes_work() {
    let mut pair = Pair::apart(Some(200_000));
    pair.connect();
    let mut stored = 0;
    let refused = loop {
        let put = pair.put(format!("key-{stored}").as_bytes(), &[1; 1_000]);
        pair.settle();
        match pair.status(put).unwrap() {
            Status::Ok => stored += 1,
            status => break status,
        }
        assert!(stored < 1_000, "the limit is not kept");
    };
    assert_eq!(refused, Status::OutOfSpace);
    assert!(stored > 100, "only {stored} entries of 1,000 bytes in 200,000");
    assert_eq!(pair.get(b"key-0").value, [1; 1_000]);
    let delete = pair.delete(b"key-0");
    pair.settle();
    assert_eq!(pair.status(delete), Some(Status::Ok));
    let put = pair.put(b"again", &[1; 900]);
    pair.settle();
    assert_eq!(pair.status(put), Some(Status::Ok));
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn too_many_pending_writes_are_refused_as_busy() {
    let mut pair = Pair::apart(None);
    let mut refused = None;
    for n in 0..100 {
        let put = pair.put(format!("{n}").as_bytes(), &vec![0; 1 << 20]);
        if let Some(status) = pair.status(put) {
            refused = Some((n, status));
            break;
        }
    }
    assert_eq!(refused, Some((63, Status::Busy)), "63 writes of a MiB and a key fit 64 MiB");
}

#[test]
fn an_idle_session_is_forgotten_by_both() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.now = pair.now + SESSION_IDLE + Duration::from_secs(1);
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.settle();
    for replica in [&pair.primary, &pair.secondary] {
        assert_eq!(replica.completion_records(0..usize::MAX).count(), 0);
        assert_eq!(replica.report().unwrap().last, SequenceNumber(2));
    }
}

#[test]
fn idle_sessions_go_as_fast_as_they_came() {
    let mut pair = Pair::new();
    let clients = 2_000u64;
    for client in 0..clients {
        let write = Operation::Put(header(1, Condition::Always), b"v");
        let request = Request {
            id: RequestId(10_000 + client),
            view: ViewVersion(1),
            digest: Digest::of(b"k"),
            key: b"k",
            operation: write,
        };
        let client = ClientId(u128::from(client));
        pair.primary.on_request(pair.now, CONNECTION, client, &request, &mut pair.inbox);
    }
    pair.settle();
    assert_eq!(pair.secondary.session_count(), 2_000);
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    let forgotten_by = pair.now + SESSION_IDLE + SESSION_IDLE / 5;
    while let Some(due) = pair.primary.next_timeout()
        && due <= forgotten_by
    {
        pair.now = pair.now.max(due);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
        pair.settle();
    }
    assert_eq!(pair.primary.session_count(), 0);
    assert_eq!(pair.secondary.session_count(), 0);
}

#[test]
fn a_draining_primary_logs_nothing_of_its_own_either() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.primary.drain();
    pair.now = pair.now + SESSION_IDLE * 2;
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    assert!(pair.primary.is_drained());
    assert_eq!(pair.primary.session_count(), 1);
}

#[test]
fn a_frozen_holder_acknowledges_nothing_after_its_dump_began() {
    for freeze_primary in [true, false] {
        let mut pair = Pair::new();
        let before = pair.put(b"a", b"1");
        pair.settle();
        let pending = pair.put(b"b", b"2");
        let (sent, _) = pair.pump();
        if freeze_primary {
            pair.receive_at_secondary(&sent);
            pair.primary.freeze();
            let ack = PeerMessage::Ack(pair.secondary.take_ack().unwrap());
            let got = pair.primary.on_peer_message(pair.now, &ack, &mut pair.inbox);
            assert_eq!(got, Err(StreamError::Frozen));
            let late = pair.put(b"c", b"3");
            assert_eq!(pair.status(late), Some(Status::Unavailable));
            assert_eq!(pair.pump().0, Vec::<u8>::new());
        } else {
            pair.secondary.freeze();
            let frame = split_frame(&sent, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
            let message = BatchReader::new(frame.body).unwrap().next().unwrap().unwrap();
            let got = pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox);
            assert_eq!(got, Err(StreamError::Frozen));
            let hello = pair.primary.peer_hello(CLUSTER).unwrap();
            let refusal = pair.secondary.on_peer_hello(&hello, &mut pair.inbox).unwrap_err();
            assert_eq!(refusal.reason, PeerRefusalReason::Stopping);
            assert_eq!(contents(&pair.secondary).len(), 1);
        }
        assert_eq!(pair.given(pending), None);
        assert_eq!(contents(&pair.primary).len(), 1);
        assert_eq!(pair.get(b"a").value, b"1", "reads go on");
        assert_eq!(pair.status(before), Some(Status::Ok));
    }
}

#[test]
fn a_fragment_beyond_its_value_is_refused() {
    let mut pair = Pair::new();
    let record = kv_protocol::peer_message::CompletionRecord {
        client: ALICE,
        seq: RequestSeq(1),
        first_incomplete: RequestSeq(1),
        status: Status::Ok,
        version: SequenceNumber(1),
    };
    let prepare = kv_protocol::peer_message::Prepare {
        view: ViewVersion(1),
        sn: SequenceNumber(1),
        t_send: pair.now,
        effect: kv_protocol::peer_message::Effect::Put,
        record,
        digest: Digest::of(b"big"),
        key: b"big",
        value_length: 12,
        value: b"12345",
    };
    let mut take = |message| pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox);
    take(PeerMessage::Prepare(prepare)).unwrap();
    let fragment = |offset, bytes| {
        let (view, sn) = (ViewVersion(1), SequenceNumber(1));
        PeerMessage::Fragment(kv_protocol::peer_message::Fragment { view, sn, offset, bytes })
    };
    let wrong = Err(StreamError::Fragment { sn: SequenceNumber(1) });
    assert_eq!(take(fragment(5, b"12345678")), wrong, "too long");
    assert_eq!(take(fragment(4, b"1234567")), wrong, "not where it should be");
    // The next write before this one is whole: as much a gap as any.
    let next = kv_protocol::peer_message::Prepare { sn: SequenceNumber(2), ..prepare };
    assert!(matches!(take(PeerMessage::Prepare(next)), Err(StreamError::Gap { .. })));
    let again = PeerMessage::Prepare(prepare);
    assert!(matches!(take(again), Err(StreamError::Gap { .. })), "half of it is here already");
    take(fragment(5, b"1234567")).unwrap();
    assert_eq!(contents(&pair.secondary).len(), 1);
}

#[test]
fn the_number_of_pending_writes_is_bounded() {
    let mut pair = Pair::apart(None);
    let mut refused = None;
    for n in 0..=MAX_PENDING_WRITES as u64 {
        let write = Operation::Put(header(1, Condition::Always), b"");
        let request = Request {
            id: RequestId(n),
            view: ViewVersion(1),
            digest: Digest::of(b"k"),
            key: b"k",
            operation: write,
        };
        let client = ClientId(u128::from(n));
        pair.primary.on_request(pair.now, CONNECTION, client, &request, &mut pair.inbox);
        refused = refused.or(pair.status(n).map(|status| (n, status)));
    }
    assert_eq!(refused, Some((MAX_PENDING_WRITES as u64, Status::Busy)));
}

#[test]
fn a_new_stream_owes_no_ack_of_the_old_one_and_takes_none_before_it_stands() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.deliver();
    pair.disconnect();
    let ack = kv_protocol::peer_message::Ack {
        view: ViewVersion(1),
        sn: SequenceNumber(1),
        echo: pair.now,
    };
    let got = pair.primary.on_peer_message(pair.now, &PeerMessage::Ack(ack), &mut pair.inbox);
    assert!(matches!(got, Err(StreamError::Impossible { .. })), "{got:?}");
    pair.connect();
    assert_eq!(pair.secondary.take_ack(), None);
}

#[test]
fn a_retry_keeps_its_session_alive() {
    let mut pair = Pair::new();
    let write = Operation::Put(header(1, Condition::Always), b"v");
    pair.request_as(1, b"k", write);
    pair.settle();
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.now = pair.now + SESSION_IDLE / 2;
    pair.request_as(2, b"k", write);
    pair.now = pair.now + SESSION_IDLE / 2 + Duration::from_secs(1);
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    assert_eq!(pair.primary.session_count(), 1);
}

#[test]
fn an_older_view_and_another_view_of_the_same_version_are_refused() {
    let mut pair = Pair::new();
    let hello = pair.primary.peer_hello(CLUSTER).unwrap();
    pair.primary.install(view(2), &mut pair.inbox).unwrap();
    pair.connect();
    let old = pair.secondary.judge_hello(&hello).unwrap_err();
    assert_eq!((old.reason, old.view), (PeerRefusalReason::OldView, Some(view(2))));
    let other = PeerHello { view: View { handover: true, ..view(2) }, ..hello };
    let refusal = pair.secondary.judge_hello(&other).unwrap_err();
    assert_eq!(refusal.reason, PeerRefusalReason::Stranger);
    let at_a_primary = PeerHello { from: member(1), to: member(0), ..hello };
    assert!(pair.primary.judge_hello(&at_a_primary).is_err());
}

#[test]
fn a_stranger_is_refused_before_anything() {
    let mut pair = Pair::new();
    let hello = pair.primary.peer_hello(CLUSTER).unwrap();
    let forged = [
        PeerHello { to: Member { incarnation: Incarnation(0), ..hello.to }, ..hello },
        PeerHello { from: member(2), ..hello },
        PeerHello { shard: ShardId(1), ..hello },
        PeerHello { shards: 2, ..hello },
        PeerHello { view: View { group: GroupId(1), ..hello.view }, ..hello },
        PeerHello { view: View { peer: Peer::None, ..hello.view }, ..hello },
        PeerHello { view: View { version: ViewVersion(0), ..hello.view }, ..hello },
        PeerHello { view: View { version: ViewVersion(u64::MAX), ..hello.view }, ..hello },
    ];
    pair.put(b"k", b"v");
    pair.settle();
    for hello in forged {
        let refusal = pair.secondary.on_peer_hello(&hello, &mut pair.inbox).unwrap_err();
        let old = hello.view.version == ViewVersion(0);
        let expected = if old { PeerRefusalReason::OldView } else { PeerRefusalReason::Stranger };
        assert_eq!(refusal.reason, expected, "{hello:?}");
    }
    assert_eq!(contents(&pair.secondary).len(), 1);
    assert_eq!(pair.secondary.view_version(), ViewVersion(1));
}

#[test]
fn a_server_without_the_view_asks_to_wait_and_the_wrong_role_is_said() {
    let mut pair = Pair::apart(None);
    let early = pair.request(b"k", Operation::Verify(ReplicaRole::Secondary));
    assert_eq!(pair.status(early), Some(Status::Unavailable));
    pair.connect();
    let request = Request {
        id: RequestId(77),
        view: ViewVersion(1),
        digest: Digest::of(b"k"),
        key: b"k",
        operation: Operation::Get,
    };
    pair.secondary.on_request(pair.now, CONNECTION, ALICE, &request, &mut pair.inbox);
    assert_eq!(pair.status(77), Some(Status::WrongView));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, usize),
    Delete(u8),
    PutIfAbsent(u8),
    Deliver,
    Ack,
    Lose,
    Reconnect,
    Retry,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, prop_oneof![0usize..40, 60_000usize..200_000]).prop_map(|(k, n)| Step::Put(k, n)),
        2 => (0u8..6).prop_map(Step::Delete),
        2 => (0u8..6).prop_map(Step::PutIfAbsent),
        3 => Just(Step::Deliver),
        3 => Just(Step::Ack),
        1 => Just(Step::Lose),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Retry),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is lost and sent again: writes take effect once, in order, at both holders, and the
    /// answers are those of one table that executes them one after the other.
    #[test]
    fn losses_and_retries_change_nothing(steps in prop::collection::vec(step(), 1..80)) {
        let mut pair = Pair::new();
        let mut model: BTreeMap<Vec<u8>, (Vec<u8>, u64)> = BTreeMap::new();
        let mut expected = Vec::new();
        let mut sn = 0;
        let mut last_write: Option<(Vec<u8>, Option<Vec<u8>>, WriteHeader)> = None;
        for step in &steps {
            match *step {
                Step::Put(key, _) | Step::Delete(key) | Step::PutIfAbsent(key) => {
                    let absent = !model.contains_key(&vec![key]);
                    let condition = match step {
                        Step::PutIfAbsent(_) => Condition::IfAbsent,
                        _ => Condition::Always,
                    };
                    let header = pair.header(condition);
                    let value = match step {
                        Step::Put(_, length) => Some(vec![key; *length]),
                        Step::PutIfAbsent(_) => Some(vec![key; 3]),
                        _ => None,
                    };
                    let operation = match &value {
                        Some(value) => Operation::Put(header, value),
                        None => Operation::Delete(header),
                    };
                    let id = pair.request(&[key], operation);
                    sn += 1;
                    let status = match step {
                        Step::PutIfAbsent(_) if !absent => Status::Conflict,
                        Step::Delete(_) if absent => Status::NotFound,
                        Step::Delete(_) => { model.remove(&vec![key]); Status::Ok }
                        _ => { model.insert(vec![key], (value.clone().unwrap(), sn)); Status::Ok }
                    };
                    expected.push((id, status));
                    last_write = Some((vec![key], value, header));
                }
                Step::Deliver => pair.deliver(),
                Step::Ack => pair.ack(),
                Step::Lose => pair.disconnect(),
                Step::Reconnect => { pair.disconnect(); pair.connect(); }
                Step::Retry => {
                    if let Some((key, value, header)) = &last_write {
                        let operation = match value {
                            Some(value) => Operation::Put(*header, value),
                            None => Operation::Delete(*header),
                        };
                        // The retry takes over the waiting request.
                        let id = pair.request(key, operation);
                        let (old, status) = *expected.last().unwrap();
                        if pair.given(old).is_none() {
                            expected.pop();
                        }
                        expected.push((id, status));
                    }
                }
            }
        }
        pair.disconnect();
        pair.connect();
        pair.settle();
        pair.settle();
        for (id, status) in expected {
            prop_assert_eq!(pair.status(id), Some(status), "request {}", id);
        }
        prop_assert_eq!(contents(&pair.primary), model.clone());
        prop_assert_eq!(contents(&pair.secondary), model);
        let records = |replica: &Replica| {
            let mut all: Vec<_> = replica.completion_records(0..usize::MAX).map(|r| (r.seq, r.status, r.version)).collect();
            all.sort_by_key(|r| r.0);
            all
        };
        prop_assert_eq!(records(&pair.primary), records(&pair.secondary));
    }
}
