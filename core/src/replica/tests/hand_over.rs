//! The hand-over to the home primary: from replica 1 to replica 2.

use kv_protocol::limits::GRACE;

use super::group::{Group, named, view_of};
use super::*;

/// Creates a group in which replica 1 is primary and replica 2 its secondary.
fn ready_group() -> Group {
    let mut group = Group::new();
    for n in 0..50u8 {
        group.put(0, &[n], b"v");
    }
    group.settle();
    group.lose_the_primary();
    group.install(1, view_of(3, 1, Peer::Candidate(named(2))));
    group.settle();
    group.install(1, view_of(4, 1, Peer::Secondary(named(2))));
    group.settle();
    group
}

fn handover() -> View {
    View { handover: true, ..view_of(5, 2, Peer::Secondary(named(1))) }
}

#[test]
fn both_holders_take_their_new_roles_whichever_gets_the_view_first() {
    for first in [1, 2] {
        let mut group = ready_group();
        group.install(first, handover());
        // The replica that has not received the view gets it when it sends a message under the older view.
        group.pass(BEACON_INTERVAL);
        assert_eq!(group.state(1), ReplicaState::Secondary);
        assert_eq!(group.state(2), ReplicaState::Active);
        let put = group.put(2, b"k", b"w");
        group.settle();
        let given = group.given(put).map(|given| (given.status, given.copies));
        assert_eq!(given, Some((Status::Ok, 2)));
        assert_eq!(group.get(2, b"k").value, b"w", "the new primary waits for no lease");
        assert_eq!(contents(&group.replicas[1]), contents(&group.replicas[2]));
    }
}

#[test]
fn a_late_beacon_of_the_old_primary_does_not_end_the_stream() {
    let mut group = ready_group();
    group.install(1, handover());
    group.install(2, handover());
    group.keep_stream(1);
    group.carry(1, 2);
    assert_eq!(group.state(2), ReplicaState::Active);
    group.now = group.now + BEACON_INTERVAL;
    assert!(group.carry(1, 2), "a beacon is due");
    group.settle();
    assert_eq!(group.state(1), ReplicaState::Secondary);
}

#[test]
fn pending_writes_are_handed_over_and_retries_get_the_first_response_at_the_new_primary() {
    let mut group = ready_group();
    group.silent.push(2);
    let put = group.put(1, b"k", b"pending");
    group.settle();
    assert_eq!(group.status(put), None);
    group.install(1, handover());
    assert_eq!(group.status(put), Some(Status::WrongView));
    assert_eq!(group.get(1, b"k").status, Status::WrongView);
    group.silent.clear();
    group.settle();
    assert_eq!(group.get(2, b"k").value, b"pending");
    let write = Operation::Put(header(51, Condition::Always), b"pending");
    let retry = group.ask(2, b"k", write);
    assert_eq!(group.given(retry).unwrap().version, SequenceNumber(51));
}

#[test]
fn neither_primary_serves_during_the_hand_over() {
    let mut group = ready_group();
    group.silent.push(2);
    group.install(1, handover());
    group.install(2, handover());
    assert_eq!(group.get(1, &[3]).status, Status::WrongView);
    assert_eq!(group.get(2, &[3]).status, Status::Unavailable);
    group.pass(GRACE * 10);
    assert_eq!(group.get(2, &[3]).status, Status::Unavailable, "never by grace");
}

#[test]
fn the_new_primary_serves_without_handover_when_the_old_one_is_proven_dead() {
    let mut group = ready_group();
    group.silent.push(1);
    group.install(2, handover());
    group.replicas[2].on_exited(group.now, named(1));
    group.install(2, view_of(6, 2, Peer::None));
    assert_eq!(group.get(2, &[3]).value, b"v");
}

#[test]
fn when_the_old_primary_is_removed_the_new_one_waits_out_its_grace() {
    let mut group = ready_group();
    group.silent.push(1);
    group.install(2, handover());
    group.install(2, view_of(6, 2, Peer::None));
    assert_eq!(group.state(2), ReplicaState::InGrace);
    group.pass(GRACE);
    assert_eq!(group.get(2, &[3]).value, b"v");
}

#[test]
fn a_proven_death_stays_known_when_another_death_is_proven() {
    let mut group = ready_group();
    assert_eq!(group.replicas[1].inspect().grace, None, "replica 0, which it acked, is dead");
    // The candidate of replica 1 dies before both have received the hand-over view.
    group.silent.push(2);
    group.replicas[1].on_exited(group.now, named(2));
    group.install(1, handover());
    group.install(1, view_of(6, 1, Peer::None));
    assert_eq!(
        group.state(1),
        ReplicaState::Active,
        "no live member can hold a lease that it granted"
    );
    assert_eq!(group.get(1, &[7]).value, b"v");
}

#[test]
fn when_the_new_primary_dies_the_old_one_takes_the_group_back_with_all_writes() {
    let mut group = ready_group();
    group.silent.push(2);
    group.put(1, b"k", b"pending");
    group.install(1, handover());
    group.install(1, view_of(6, 1, Peer::None));
    assert_eq!(group.get(1, b"k").value, b"pending");
}

#[test]
fn a_handover_that_is_interrupted_repeatedly_completes() {
    let mut group = ready_group();
    for n in 0..20u8 {
        group.put(1, &[200, n], &vec![n; 50_000]);
    }
    group.install(1, handover());
    for _ in 0..5 {
        group.step();
        group.cut(1);
    }
    group.settle();
    assert_eq!(group.state(2), ReplicaState::Active);
    assert_eq!(group.state(1), ReplicaState::Secondary);
    assert_eq!(contents(&group.replicas[1]), contents(&group.replicas[2]));
}
