//! Leases, graces and promotion.

use kv_protocol::limits::{GRACE, LEASE};

use super::group::{Group, named, view_of};
use super::*;

#[test]
fn a_primary_without_acks_stops_serving_reads_when_its_lease_ends() {
    let mut group = Group::new();
    group.put(0, b"k", b"v");
    group.settle();
    group.silent.push(1);
    group.now = group.now + (LEASE - Duration::from_millis(1));
    assert_eq!(group.get(0, b"k").status, Status::Ok);
    group.now = group.now + Duration::from_millis(1);
    assert_eq!(group.get(0, b"k").status, Status::Unavailable);
    group.silent.clear();
    group.settle();
    assert_eq!(group.get(0, b"k").status, Status::Ok, "the next ack renews it");
}

#[test]
fn beacons_keep_the_lease_of_an_idle_primary() {
    let mut group = Group::new();
    group.idle(Duration::from_secs(3));
    assert_eq!(group.get(0, b"k").status, Status::NotFound);
}

#[test]
fn a_promoted_secondary_serves_only_after_its_grace() {
    let mut group = Group::new();
    group.put(0, b"k", b"v");
    group.settle();
    group.silent.push(0);
    group.install(1, view_of(2, 1, Peer::None));
    assert_eq!(group.state(1), ReplicaState::InGrace);
    group.pass(GRACE - Duration::from_millis(1));
    let early = group.put(1, b"k", b"w");
    assert_eq!(group.get(1, b"k").status, Status::Unavailable);
    assert_eq!(group.status(early), Some(Status::Unavailable));
    group.pass(Duration::from_millis(1));
    assert_eq!(group.get(1, b"k").value, b"v");
    let late = group.put(1, b"k", b"w");
    assert_eq!(group.given(late).map(|given| (given.status, given.copies)), Some((Status::Ok, 1)));
}

#[test]
fn the_proven_death_of_the_old_primary_ends_the_grace_at_once() {
    for proof_first in [true, false] {
        let mut group = Group::new();
        group.silent.push(0);
        if proof_first {
            group.replicas[1].on_exited(group.now, named(0));
        }
        group.install(1, view_of(2, 1, Peer::None));
        if !proof_first {
            group.replicas[1].on_exited(group.now, named(0));
        }
        assert_eq!(group.state(1), ReplicaState::Active);
    }
}

#[test]
fn the_death_of_another_process_ends_no_grace() {
    let mut group = Group::new();
    group.silent.push(0);
    group.install(1, view_of(2, 1, Peer::None));
    let other = Member { incarnation: Incarnation(99), ..named(0) };
    group.replicas[1].on_exited(group.now, other);
    assert_eq!(group.state(1), ReplicaState::InGrace);
}

#[test]
fn sequence_numbers_go_on_after_a_promotion() {
    let mut group = Group::new();
    for n in 0..5 {
        group.put(0, &[n], b"v");
    }
    group.settle();
    group.lose_the_primary();
    let next = group.put(1, b"k", b"v");
    assert_eq!(group.given(next).unwrap().version, SequenceNumber(6));
}

#[test]
fn every_write_applied_at_the_promoted_secondary_is_committed() {
    let mut group = Group::new();
    let put = group.put(0, b"k", b"v");
    // The secondary applies the write, but its ack never arrives.
    group.step();
    group.silent.push(0);
    group.lose_the_primary();
    assert_eq!(group.get(1, b"k").value, b"v");
    // The retry gets the first response.
    let write = Operation::Put(header(1, Condition::Always), b"v");
    group.inbox.0.remove(&put);
    let retry = group.ask(1, b"k", write);
    assert_eq!(group.given(retry).unwrap().version, SequenceNumber(1));
}

#[test]
fn a_primary_that_becomes_the_sole_holder_commits_pending_writes() {
    let mut group = Group::new();
    group.silent.push(1);
    let put = group.put(0, b"k", b"v");
    group.settle();
    assert_eq!(group.status(put), None);
    group.install(0, view_of(2, 0, Peer::None));
    assert_eq!(group.given(put).map(|given| (given.status, given.copies)), Some((Status::Ok, 1)));
    group.pass(LEASE * 3);
    assert_eq!(group.get(0, b"k").value, b"v", "a sole primary needs no lease");
}

#[test]
fn a_deposed_primary_gets_the_new_view_from_its_secondary_and_is_wiped() {
    let mut group = Group::new();
    group.put(0, b"k", b"v");
    group.settle();
    group.install(1, view_of(2, 1, Peer::None));
    let put = group.put(0, b"k", b"w");
    group.settle();
    assert_eq!(group.state(0), ReplicaState::Out);
    assert_eq!(group.status(put), Some(Status::WrongView));
    assert_eq!(group.get(0, b"k").status, Status::WrongView);
    assert!(contents(&group.replicas[0]).is_empty());
    group.pass(GRACE);
    assert_eq!(group.get(1, b"k").value, b"v");
}

#[test]
fn an_empty_replica_becomes_a_holder_only_by_the_founding_view() {
    let mut group = Group::new();
    for peer in [Peer::None, Peer::Secondary(named(1))] {
        let view = view_of(2, 2, peer);
        let got = group.replicas[2].install(group.now, view, &mut group.inbox);
        assert!(matches!(got, Err(InstallError::NotForMe { .. })), "{got:?}");
    }
    let as_secondary = view_of(2, 0, Peer::Secondary(named(2)));
    let got = group.replicas[2].install(group.now, as_secondary, &mut group.inbox);
    assert!(matches!(got, Err(InstallError::NotForMe { .. })), "{got:?}");
    assert_eq!(group.get(2, b"k").status, Status::Unavailable);
}

#[test]
fn a_replica_loaded_from_a_dump_continues_where_the_dump_ends() {
    let mut group = Group::new();
    group.replicas[2].load_entry(b"k", b"v", None, SequenceNumber(7)).unwrap();
    group.replicas[2].finish_load(SequenceNumber(9), SequenceNumber::ZERO);
    group.install(2, view_of(5, 2, Peer::None));
    assert_eq!(group.get(2, b"k").value, b"v");
    let put = group.put(2, b"k", b"w");
    assert_eq!(group.given(put).unwrap().version, SequenceNumber(10));
}
