//! The copy to a candidate while writes continue.

use kv_protocol::limits::CANDIDATE_TIMEOUT;

use super::group::{Group, named, view_of};
use super::*;

/// Creates a group in which replica 1 is the only holder, with `count` entries whose values have 100 bytes.
fn lone_group(count: u32) -> Group {
    let mut group = Group::new();
    for n in 0..count {
        group.put(0, &n.to_be_bytes(), &[7; 100]);
        group.settle();
    }
    group.lose_the_primary();
    group
}

fn add_candidate(group: &mut Group) {
    group.install(1, view_of(3, 1, Peer::Candidate(named(2))));
}

fn assert_equal_copies(group: &Group) {
    assert_eq!(contents(&group.replicas[1]), contents(&group.replicas[2]));
    assert_eq!(group.replicas[1].content(), group.replicas[2].content());
}

#[test]
fn a_candidate_gets_entries_and_completion_records() {
    let mut group = lone_group(3_000);
    add_candidate(&mut group);
    group.settle();
    assert_eq!(group.state(1), ReplicaState::CaughtUp);
    assert_eq!(group.state(2), ReplicaState::Candidate);
    assert_equal_copies(&group);
    let records = |at: usize| group.replicas[at].completion_records(0..usize::MAX).count();
    assert_eq!(records(1), records(2));
    assert_ne!(records(2), 0);
}

#[test]
fn a_long_session_continues_at_a_candidate_that_has_only_its_newest_write() {
    let mut group = lone_group(3);
    // Since this client's session began, other sessions have expired. This client has written after the expiry.
    group.replicas[1].sessions.raise_horizon(SequenceNumber(2));
    add_candidate(&mut group);
    group.keep_stream(1);
    // The newest write confirms that the client has completed all earlier ones, so their records are dropped before
    // the copy.
    let newest =
        |seq| WriteHeader { first_incomplete: RequestSeq(seq), ..header(seq, Condition::Always) };
    let live = group.ask(1, b"k", Operation::Put(newest(4), b"v"));
    group.settle();
    assert_eq!(group.status(live), Some(Status::Ok));
    group.install(1, view_of(4, 1, Peer::Secondary(named(2))));
    group.settle();
    group.silent.push(1);
    group.install(2, view_of(5, 2, Peer::None));
    group.replicas[2].on_exited(group.now, named(1));
    let next = group.ask(2, b"k", Operation::Put(newest(5), b"w"));
    assert_eq!(group.status(next), Some(Status::Ok));
}

#[test]
fn an_empty_shard_catches_up_too() {
    let mut group = lone_group(0);
    add_candidate(&mut group);
    group.settle();
    assert_eq!(group.state(1), ReplicaState::CaughtUp);
}

#[test]
fn writes_wait_for_the_candidate_from_its_first_message_and_report_one_copy() {
    let mut group = lone_group(10);
    add_candidate(&mut group);
    group.settle();
    group.silent.push(2);
    let put = group.put(1, b"k", b"v");
    group.settle();
    assert_eq!(group.status(put), None);
    group.silent.pop();
    group.settle();
    assert_eq!(group.given(put).map(|given| (given.status, given.copies)), Some((Status::Ok, 1)));
}

#[test]
fn a_write_in_the_same_wake_up_as_the_welcome_is_sent_after_copy_start() {
    let mut group = lone_group(10);
    add_candidate(&mut group);
    group.keep_stream(1);
    let put = group.put(1, b"k", b"v");
    group.settle();
    assert_eq!(group.state(1), ReplicaState::CaughtUp);
    assert_eq!(group.status(put), Some(Status::Ok));
    assert_equal_copies(&group);
}

#[test]
fn a_candidate_disconnected_before_it_caught_up_is_dropped_and_not_copied_to_again() {
    let mut group = lone_group(3_000);
    add_candidate(&mut group);
    group.step();
    let put = group.put(1, b"k", b"v");
    assert_eq!(group.status(put), None);
    group.cut(2);
    assert_eq!(group.state(1), ReplicaState::CopyFailed);
    assert_eq!(group.status(put), Some(Status::Ok), "the union is left");
    group.settle();
    assert_eq!(group.state(1), ReplicaState::CopyFailed);
    // A new view names the candidate again. The copy begins with an empty table.
    group.install(1, view_of(4, 1, Peer::Candidate(named(2))));
    group.settle();
    assert_eq!(group.state(1), ReplicaState::CaughtUp);
    assert_equal_copies(&group);
}

#[test]
fn a_candidate_that_falls_silent_before_it_caught_up_is_dropped() {
    let mut group = lone_group(3_000);
    add_candidate(&mut group);
    group.step();
    group.silent.push(2);
    let put = group.put(1, b"k", b"v");
    group.pass(CANDIDATE_TIMEOUT);
    assert_eq!(group.state(1), ReplicaState::CopyFailed);
    assert_eq!(group.status(put), Some(Status::Ok));
}

#[test]
fn a_caught_up_candidate_is_never_dropped_and_reads_need_its_lease() {
    let mut group = lone_group(10);
    add_candidate(&mut group);
    group.settle();
    group.silent.push(2);
    group.cut(2);
    let put = group.put(1, b"k", b"v");
    group.pass(Duration::from_secs(10));
    assert_eq!(group.state(1), ReplicaState::CaughtUp);
    assert_eq!(group.status(put), None);
    assert_eq!(group.get(1, b"k").status, Status::Unavailable);
    group.install(1, view_of(4, 1, Peer::None));
    assert_eq!(group.status(put), Some(Status::Ok));
    assert_eq!(group.get(1, b"k").value, b"v");
}

#[test]
fn a_candidate_that_became_secondary_keeps_its_copy_and_its_lease() {
    let mut group = lone_group(100);
    add_candidate(&mut group);
    group.settle();
    group.install(1, view_of(4, 1, Peer::Secondary(named(2))));
    assert_eq!(group.get(1, &3u32.to_be_bytes()).status, Status::Ok);
    group.settle();
    assert_eq!(group.state(2), ReplicaState::Secondary);
    let put = group.put(1, b"k", b"v");
    group.settle();
    assert_eq!(group.given(put).map(|given| (given.status, given.copies)), Some((Status::Ok, 2)));
    assert_equal_copies(&group);
}

#[test]
fn a_candidate_that_missed_its_promotion_to_secondary_can_take_over() {
    let mut group = lone_group(100);
    add_candidate(&mut group);
    group.settle();
    group.install(1, view_of(4, 1, Peer::Secondary(named(2))));
    group.silent.push(1);
    group.install(2, view_of(5, 2, Peer::None));
    assert_eq!(group.state(2), ReplicaState::InGrace, "it has acked as a candidate");
    group.replicas[2].on_exited(group.now, named(1));
    assert_eq!(group.get(2, &3u32.to_be_bytes()).status, Status::Ok);
}

#[test]
fn a_candidate_with_an_incomplete_copy_takes_over_in_no_view() {
    let mut group = lone_group(3_000);
    add_candidate(&mut group);
    group.step();
    for view in [view_of(4, 2, Peer::None), view_of(4, 1, Peer::Secondary(named(2)))] {
        let got = group.replicas[2].install(group.now, view, &mut group.inbox);
        assert!(matches!(got, Err(InstallError::NotForMe { .. })), "{got:?}");
    }
}

#[test]
fn a_replica_named_candidate_again_starts_empty() {
    let mut group = Group::new();
    group.put(0, b"kept", b"v");
    let gone = group.put(0, b"gone", b"v");
    group.settle();
    assert_eq!(group.status(gone), Some(Status::Ok));
    // Replica 1 is removed while disconnected, and a key is deleted meanwhile.
    group.silent.push(1);
    group.install(0, view_of(2, 0, Peer::None));
    group.delete(0, b"gone");
    group.install(0, view_of(3, 0, Peer::Candidate(named(1))));
    group.silent.clear();
    group.settle();
    assert_eq!(group.state(0), ReplicaState::CaughtUp);
    assert_eq!(contents(&group.replicas[0]), contents(&group.replicas[1]));
    assert_eq!(contents(&group.replicas[1]).len(), 1);
}

#[test]
fn large_values_are_copied_in_fragments_also_when_they_change_meanwhile() {
    let mut group = lone_group(10);
    for n in 0..6u8 {
        group.put(1, &[n, n], &vec![n; 400_000]);
    }
    add_candidate(&mut group);
    let mut step = 0u8;
    while group.step() {
        step = step.wrapping_add(1);
        match step % 3 {
            0 if step < 40 => drop(group.put(1, &[step % 6, step % 6], &vec![step; 300_000])),
            1 if step < 40 => drop(group.delete(1, &[step % 6, step % 6])),
            _ => {}
        }
    }
    assert_eq!(group.state(1), ReplicaState::CaughtUp);
    assert_equal_copies(&group);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Checks that both tables are equal at the end of a copy, whatever is written meanwhile.
    #[test]
    fn a_copy_under_any_load_ends_equal(
        before in prop::collection::vec((0u8..60, any::<bool>()), 0..200),
        during in prop::collection::vec((0u8..60, any::<bool>(), 0usize..3), 1..300),
    ) {
        let mut group = lone_group(0);
        for (key, is_put) in before {
            if is_put { group.put(1, &[key], &[key; 900]); } else { group.delete(1, &[key]); }
        }
        add_candidate(&mut group);
        for (key, is_put, steps) in during {
            if is_put { group.put(1, &[key], &[!key; 700]); } else { group.delete(1, &[key]); }
            for _ in 0..steps {
                group.step();
            }
        }
        group.settle();
        prop_assert_eq!(group.state(1), ReplicaState::CaughtUp);
        prop_assert_eq!(contents(&group.replicas[1]), contents(&group.replicas[2]));
        prop_assert_eq!(group.replicas[1].content(), group.replicas[2].content());
    }
}

#[test]
fn the_primary_reports_how_much_of_its_table_it_has_sent() {
    let mut group = lone_group(3_000);
    let report = |group: &Group| group.replicas[1].report(group.now).unwrap();
    assert_eq!((report(&group).copied, report(&group).copied_bytes), (0, 0));
    add_candidate(&mut group);
    let mut last = (0, 0);
    let mut was_on_its_way = false;
    while group.step() {
        let report = report(&group);
        assert_eq!((report.entries, report.content_bytes), (3_000, 3_000 * 104));
        let sent = (report.copied, report.copied_bytes);
        assert!(sent.0 >= last.0 && sent.0 <= 3_000, "{sent:?} after {last:?}");
        assert_eq!(sent.1, sent.0 * 104);
        was_on_its_way |= sent.0 > 0 && sent.0 < 3_000;
        last = sent;
    }
    assert!(was_on_its_way, "the copy took more than one batch");
    assert_eq!(group.state(1), ReplicaState::CaughtUp);
    assert_eq!(last, (3_000, 3_000 * 104), "a candidate that has caught up was sent all entries");
}

#[test]
fn a_value_in_fragments_is_one_entry_of_its_length() {
    let mut group = Group::new();
    group.put(0, b"long", &[7; 3 * FRAGMENT_BYTES + 5]);
    group.settle();
    group.lose_the_primary();
    add_candidate(&mut group);
    let bytes = 4 + 3 * FRAGMENT_BYTES as u64 + 5;
    while group.step() {
        let report = group.replicas[1].report(group.now).unwrap();
        assert!(report.copied <= 1 && report.copied_bytes <= bytes, "{report:?}");
        assert!(report.copied == 0 || report.copied_bytes == bytes, "{report:?}");
    }
    assert_eq!(group.replicas[1].report(group.now).unwrap().copied, 1);
}
