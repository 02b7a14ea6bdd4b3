//! Copies that violate the protocol. The candidate ends the stream and never serves the received content.

use kv_protocol::copy_message::{CopyEnd, CopyEntry, CopyFragment, CopyRecord, CopyStart};
use kv_protocol::peer_message::{CompletionRecord, Effect, PeerMessage, Prepare};

use super::group::{named, view_of};
use super::*;

const VIEW: ViewVersion = ViewVersion(1);
const START: SequenceNumber = SequenceNumber(50);

/// A candidate of group 0 in a ring of three servers, connected to its primary.
struct Candidate {
    replica: Replica,
    now: Time,
    inbox: Inbox,
}

impl Candidate {
    fn new() -> Candidate {
        let (now, mut inbox) = (Time::from_nanos(1_000_000_000), Inbox::default());
        let config = ReplicaConfig { placement: Placement::new(3, 1), ..replica(2, None).config };
        let mut replica = Replica::new(config, Box::new(HeapChunks::default()));
        let view = view_of(VIEW.0, 1, Peer::Candidate(named(2)));
        replica.install(now, view, &mut inbox).unwrap();
        let shard = ShardId(0);
        let (from, to) = (named(1), named(2));
        let hello = PeerHello { cluster: CLUSTER, from, to, shard, shards: 1, view };
        replica.on_peer_hello(now, &hello, &mut inbox).unwrap();
        Candidate { replica, now, inbox }
    }

    fn take(&mut self, message: &PeerMessage<'_>) -> Result<(), StreamError> {
        self.replica.on_peer_message(self.now, message, &mut self.inbox)
    }

    /// Asserts that the candidate serves no client and that no view can make it a holder.
    fn assert_serves_nothing(&mut self, what: &str) {
        self.replica.on_stream_down(self.now, &mut self.inbox);
        for view in [view_of(2, 2, Peer::None), view_of(2, 1, Peer::Secondary(named(2)))] {
            let got = self.replica.install(self.now, view, &mut self.inbox);
            assert!(matches!(got, Err(InstallError::NotForMe { .. })), "{what}: {got:?}");
        }
        let key = key_of(0);
        let (id, view, digest) = (RequestId(1), VIEW, Digest::of(&key));
        let request = Request { id, view, digest, key: &key, operation: Operation::Get };
        let hash = self.replica.hash_of(request.digest, request.key);
        self.replica.on_request(self.now, (CONNECTION, ALICE), &request, hash, &mut self.inbox);
        assert_eq!(self.inbox.0[&1].status, Status::WrongView, "{what}");
        assert_eq!(self.replica.state(), ReplicaState::Candidate, "{what}");
    }
}

/// Returns a key of this group.
fn key_of(group: u16) -> Vec<u8> {
    let belongs = |key: &String| Placement::new(3, 1).locate(key.as_bytes()).0 == GroupId(group);
    let key = (0..).map(|n| format!("key-{n}")).find(belongs);
    key.expect("every group has keys").into_bytes()
}

fn start() -> PeerMessage<'static> {
    PeerMessage::CopyStart(CopyStart { view: VIEW, sn: START, forgotten: SequenceNumber::ZERO })
}

fn end(sn: u64) -> PeerMessage<'static> {
    PeerMessage::CopyEnd(CopyEnd { view: VIEW, sn: SequenceNumber(sn) })
}

fn entry<'a>(key: &'a [u8], value: &'a [u8], version: u64) -> CopyEntry<'a> {
    CopyEntry {
        view: VIEW,
        committed: START,
        version: SequenceNumber(version),
        digest: Digest::of(key),
        key,
        deadline: None,
        value_length: u32::try_from(value.len()).unwrap(),
        value,
    }
}

fn record() -> PeerMessage<'static> {
    let completion = CompletionRecord {
        client: ALICE,
        seq: RequestSeq(1),
        first_incomplete: RequestSeq(1),
        status: Status::Ok,
        version: SequenceNumber(5),
        request: Default::default(),
    };
    let (sn, response) = (SequenceNumber(5), &[][..]);
    PeerMessage::CopyRecord(CopyRecord {
        view: VIEW,
        sn,
        record: completion,
        response_length: 0,
        response,
    })
}

#[test]
fn a_copy_out_of_order_or_of_another_group_ends_the_stream_and_is_never_served() {
    let (key, foreign) = (key_of(0), key_of(1));
    let good = PeerMessage::CopyEntry(entry(&key, b"v", 7));
    let strange = PeerMessage::CopyEntry(entry(&foreign, b"v", 7));
    let half = PeerMessage::CopyEntry(CopyEntry { value_length: 9, ..entry(&key, b"half", 7) });
    let fragment =
        |offset| PeerMessage::CopyFragment(CopyFragment { view: VIEW, offset, bytes: b"rest" });
    let (first, apart) = (fragment(0), fragment(5));
    let PeerMessage::CopyRecord(CopyRecord { record: completion, .. }) = record() else {
        unreachable!()
    };
    let live = PeerMessage::Prepare(Prepare {
        view: VIEW,
        sn: SequenceNumber(START.0 + 2),
        t_send: Time::from_nanos(1),
        effect: Effect::Put,
        record: completion,
        digest: Digest::of(&key),
        key: &key,
        deadline: None,
        response_length: 0,
        response: &[],
        value_length: 1,
        value: b"v",
    });
    let older = PeerMessage::CopyStart(CopyStart {
        view: ViewVersion(0),
        sn: START,
        forgotten: SequenceNumber::ZERO,
    });
    let (start, record) = (start(), record());
    let (early, late) = (end(START.0 - 1), end(START.0 + 1));
    let complete = end(START.0);
    let cases: [(&str, Vec<&PeerMessage<'_>>, StreamError); 15] = [
        ("an entry before COPY-START", vec![&good], StreamError::WrongEnd),
        ("a fragment before COPY-START", vec![&first], StreamError::WrongEnd),
        ("a record before COPY-START", vec![&record], StreamError::WrongEnd),
        ("an end before the start", vec![&complete], StreamError::WrongEnd),
        ("a second start", vec![&start, &good, &start], StreamError::WrongEnd),
        ("an entry after the end", vec![&start, &complete, &good], StreamError::WrongEnd),
        ("a record after the end", vec![&start, &complete, &record], StreamError::WrongEnd),
        ("a second end", vec![&start, &complete, &complete], StreamError::WrongEnd),
        ("a start after the end", vec![&start, &complete, &start], StreamError::WrongEnd),
        (
            "a key of another group",
            vec![&start, &good, &strange],
            StreamError::ForeignKey { sn: SequenceNumber(7) },
        ),
        (
            "a COPY-END before writes that arrived",
            vec![&start, &early],
            StreamError::End { got: SequenceNumber(START.0 - 1), applied: START },
        ),
        (
            "a COPY-END that claims writes that did not arrive",
            vec![&start, &late],
            StreamError::End { got: SequenceNumber(START.0 + 1), applied: START },
        ),
        (
            "a gap in the live writes",
            vec![&start, &live],
            StreamError::Gap {
                expected: SequenceNumber(START.0 + 1),
                got: SequenceNumber(START.0 + 2),
            },
        ),
        (
            "a fragment that does not continue its value",
            vec![&start, &half, &apart],
            StreamError::Fragment { sn: SequenceNumber(7) },
        ),
        ("an older view", vec![&older], StreamError::View { got: ViewVersion(0), installed: VIEW }),
    ];
    for (what, messages, expected) in cases {
        let mut candidate = Candidate::new();
        let (last, before) = messages.split_last().unwrap();
        for message in before {
            candidate.take(message).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        assert_eq!(candidate.take(last), Err(expected), "{what}");
        if !before.contains(&&complete) {
            candidate.assert_serves_nothing(what);
        }
    }
}

#[test]
fn a_copy_that_ends_early_is_never_served() {
    let key = key_of(0);
    let mut candidate = Candidate::new();
    candidate.take(&start()).unwrap();
    candidate.take(&PeerMessage::CopyEntry(entry(&key, b"v", 7))).unwrap();
    candidate.assert_serves_nothing("a stream that ended before COPY-END");
}

#[test]
fn repeated_or_late_copy_messages_never_replace_newer_entries() {
    let key = key_of(0);
    let mut candidate = Candidate::new();
    candidate.take(&start()).unwrap();
    for (value, version) in [(b"new", 7), (b"old", 3), (b"new", 7), (b"oth", 7)] {
        candidate.take(&PeerMessage::CopyEntry(entry(&key, value, version))).unwrap();
        let held = contents(&candidate.replica);
        assert_eq!(held.len(), 1);
        assert_eq!(held[&key], (b"new".to_vec(), 7));
    }
}
