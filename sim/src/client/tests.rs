//! Tests of operations that end without being executed.

use std::net::{Ipv4Addr, SocketAddr};

use kv_protocol::MapRevision;
use kv_protocol::client_message::{Condition, opcode};
use kv_protocol::ids::{ClusterId, Epoch, Incarnation, Member, RequestId, ServerId};
use kv_protocol::map::{MapServer, ServerState};
use kv_protocol::view::Peer;

use super::*;
use crate::workload::{Settling, SlotId};

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// Returns the map of a cluster with one group.
fn map(version: u64, has_primary: bool) -> Map {
    let member = Member { server: ServerId(0), incarnation: Incarnation(1) };
    Map {
        hash_tags: false,
        cluster: ClusterId(1),
        ancestors: Vec::new(),
        epoch: Epoch::default(),
        revision: MapRevision::default(),
        shards: 1,
        servers: vec![MapServer {
            id: member.server,
            incarnation: member.incarnation,
            state: ServerState::Up,
            clients: Some(ADDRESS),
        }],
        views: vec![View {
            group: GroupId(0),
            version: ViewVersion(version),
            primary: has_primary.then_some(member),
            peer: Peer::None,
            handover: false,
        }],
    }
}

fn client(map: Map) -> Client {
    let mut client = Client::new(1);
    client.on_map(0, map);
    client
}

fn begin(client: &mut Client, now: u64, asked: Asked) -> Vec<Wish> {
    let (key, condition, value) = (b"k".to_vec(), Condition::Always, 7u64.to_le_bytes().to_vec());
    let (timeout, settling) = (DEADLINE, Settling::default());
    let (slot, object) = (SlotId::None, None);
    let plan = Plan { slot, key, floor: 0, asked, object, condition, value, timeout, settling };
    client.begin(now, plan);
    let mut wishes = Vec::new();
    client.wake(now, &mut wishes);
    wishes
}

fn response(client: &mut Client, now: u64, id: u64, status: Status) -> Vec<Wish> {
    let (view, version) = (ViewVersion(1), SequenceNumber(0));
    let id = RequestId(id);
    let response = Response {
        id,
        status,
        copies: 0,
        view,
        version,
        value: &[],
        whole: 0,
        has_value: false,
        deadline: None,
    };
    let mut wishes = Vec::new();
    client.on_response(now, 0, &response, &mut wishes);
    wishes
}

fn ends(wishes: &[Wish]) -> Vec<Returned> {
    let end = |wish: &Wish| match wish {
        Wish::Ended(_, responded, _) => Some(*responded),
        _ => None,
    };
    wishes.iter().filter_map(end).collect()
}

fn names(wishes: &[Wish]) -> Vec<ClientId> {
    let name = |wish: &Wish| match wish {
        Wish::Send(_, _, name, ..) => Some(*name),
        _ => None,
    };
    wishes.iter().filter_map(name).collect()
}

#[test]
fn an_operation_on_a_group_without_a_holder_ends_at_once_with_lost() {
    let mut client = client(map(2, false));
    assert_eq!(ends(&begin(&mut client, 1, Asked::Write(7))), [Returned::Lost]);
    assert_eq!(ends(&begin(&mut client, 2, Asked::Read)), [Returned::Lost]);
}

#[test]
fn a_write_that_was_sent_before_its_group_was_lost_is_in_doubt_and_a_read_is_lost() {
    let mut client = client(map(1, true));
    assert_eq!(names(&begin(&mut client, 1, Asked::Write(7))).len(), 1);
    assert_eq!(names(&begin(&mut client, 1, Asked::Read)).len(), 1);
    client.on_map(2, map(2, false));
    let mut wishes = Vec::new();
    client.wake(10, &mut wishes);
    assert!(matches!(wishes[0], Wish::GivenUp(_)));
    assert_eq!(ends(&wishes), [Returned::Lost]);
}

#[test]
fn a_write_that_is_rejected_at_every_attempt_has_no_effect() {
    let mut client = client(map(1, true));
    begin(&mut client, 1, Asked::Write(7));
    response(&mut client, 2, 1, Status::Unavailable);
    let mut wishes = Vec::new();
    client.wake(DEADLINE + 1, &mut wishes);
    assert_eq!(ends(&wishes), [Returned::Refused]);
    begin(&mut client, DEADLINE + 2, Asked::Write(8));
    let refused = response(&mut client, DEADLINE + 3, 2, Status::OutOfSpace);
    assert_eq!(ends(&refused), [Returned::Refused]);
}

#[test]
fn an_expired_session_is_replaced_by_one_under_another_name() {
    let mut client = client(map(1, true));
    let first = names(&begin(&mut client, 1, Asked::Write(7)));
    assert_eq!(ends(&response(&mut client, 2, 1, Status::SessionExpired)), []);
    let mut wishes = Vec::new();
    client.wake(1_000_000_000, &mut wishes);
    let second = names(&wishes);
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first, second);
    assert_eq!(client.fresh_sessions, 1);
}

#[test]
fn a_write_that_was_sent_twice_is_undecided_when_its_session_has_expired() {
    let mut client = client(map(1, true));
    begin(&mut client, 1, Asked::Write(7));
    response(&mut client, 2, 1, Status::WrongView);
    let mut wishes = Vec::new();
    client.wake(1_000_000_000, &mut wishes);
    assert_eq!(names(&wishes).len(), 1);
    let ended = response(&mut client, 1_000_000_001, 1, Status::SessionExpired);
    assert_eq!(ends(&ended), [Returned::Undecided]);
}

/// Returns the opcodes of the requests sent.
fn opcodes(wishes: &[Wish]) -> Vec<u8> {
    let opcode = |wish: &Wish| match wish {
        Wish::Send(.., bytes) => Some(bytes[5]),
        _ => None,
    };
    wishes.iter().filter_map(opcode).collect()
}

#[test]
fn a_write_in_doubt_is_settled_before_the_next_operation_on_its_key_is_sent() {
    let mut client = client(map(1, true));
    begin(&mut client, 1, Asked::Write(7));
    // The client begins to settle the write in doubt at once, and the RESOLVE gets no response.
    let mut wishes = Vec::new();
    client.wake(DEADLINE + 1, &mut wishes);
    assert!(matches!(wishes[..], [Wish::GivenUp(_)]));
    let later = begin(&mut client, DEADLINE + 2, Asked::Read);
    assert_eq!(opcodes(&later), [opcode::RESOLVE]);
    let settled = response(&mut client, DEADLINE + 3, 1, Status::NotDone);
    assert_eq!(ends(&settled), [Returned::Refused]);
    let mut wishes = Vec::new();
    client.wake(DEADLINE + 4, &mut wishes);
    assert_eq!(opcodes(&wishes), [opcode::GET]);
}

#[test]
fn a_sent_write_on_a_group_without_a_holder_stays_in_doubt_and_its_key_is_lost() {
    let mut client = client(map(1, true));
    begin(&mut client, 1, Asked::Write(7));
    client.on_map(2, map(2, false));
    let mut wishes = Vec::new();
    client.wake(10, &mut wishes);
    assert!(matches!(wishes[..], [Wish::GivenUp(_)]));
    assert_eq!(ends(&begin(&mut client, 20, Asked::Read)), [Returned::Lost]);
    assert!(client.waits(|_| false) && !client.waits(|_| true));
    let mut wishes = Vec::new();
    client.end_all(&mut wishes);
    assert_eq!(ends(&wishes), [Returned::InDoubt]);
}
