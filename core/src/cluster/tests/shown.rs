//! Displayed state: the history of recoveries, alarms, and the progress of a copy.

use kv_protocol::control_message::CrowdReport;
use kv_protocol::status::{AlarmKind, CopyStatus};

use super::*;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(0);

impl World {
    fn alarms(&self) -> Vec<(AlarmKind, u64)> {
        let status = self.cluster.status(self.now, &[]);
        status.alarms.iter().map(|alarm| (alarm.kind, alarm.age_ms)).collect()
    }
}

#[test]
fn the_history_of_a_recovery_has_the_start_and_duration_of_each_step() {
    let mut world = World::serving(3);
    world.run(&[A, B, C]);
    assert!(world.cluster.status(world.now, &[]).servers[1].recoveries.is_empty());
    let began = world.now;
    world.exit(A);
    world.run(&[A, B, C]);
    world.pass(Duration::from_secs(3), &[A, B, C]);
    let status = world.cluster.status(world.now, &[]);
    let [recovery] = &status.servers[1].recoveries[..] else { panic!("{status:?}") };
    let ago = u64::try_from(world.now.since(began).as_millis()).unwrap();
    assert_eq!(recovery.began_ms_ago, ago);
    let took = recovery.took_ms.expect("it is over");
    assert!(took > 0 && took < 500, "{took}");
    let steps: Vec<u8> = recovery.steps.iter().map(|step| step.step).collect();
    assert_eq!(steps.first(), Some(&0));
    assert_eq!(steps.last(), Some(&5));
    assert!(steps.is_sorted(), "{steps:?}");
    let sum: u64 = recovery.steps.iter().map(|step| step.took_ms.unwrap()).sum();
    assert_eq!(sum, took, "one step begins where the other ends");
    let others = [&status.servers[0], &status.servers[2]];
    assert!(others.iter().all(|server| server.recoveries.is_empty()), "only A was away");
}

#[test]
fn the_history_outlives_the_processes_of_its_place_and_is_bounded() {
    let mut world = World::serving(3);
    for _ in 0..6 {
        world.exit(A);
        world.run(&[A, B, C]);
        assert!(world.cluster.is_whole());
    }
    let status = world.cluster.status(world.now, &[]);
    assert_eq!(status.servers[1].recoveries.len(), 4);
    assert!(status.servers[1].recoveries.is_sorted_by_key(|recovery| recovery.began_ms_ago));
}

#[test]
fn a_group_without_a_holder_is_an_alarm_with_its_age() {
    let mut world = World::serving(3);
    assert!(world.alarms().is_empty());
    world.exit(A);
    world.exit(B);
    world.pass(Duration::from_secs(2), &[C]);
    let lost: Vec<_> = world.alarms().into_iter().filter(|a| a.0 == AlarmKind::Lost).collect();
    assert_eq!(lost, [(AlarmKind::Lost, 2_000)], "only A and B held group A");
}

#[test]
fn a_silent_server_that_others_receive_is_an_alarm_until_it_reports() {
    let mut world = World::serving(3);
    world.pass(Duration::from_secs(1), &[A, B, C]);
    world.pass(Duration::from_secs(3), &[B, C]);
    let kinds: Vec<_> = world.alarms().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(
        kinds,
        [AlarmKind::KeptThoughSilent],
        "A is kept: both its neighbours receive its messages"
    );
    world.pass(Duration::from_secs(1), &[A, B, C]);
    assert!(world.alarms().is_empty());
}

#[test]
fn a_server_with_a_hung_thread_is_an_alarm_until_the_thread_continues() {
    let mut world = World::serving(3);
    for (stood_ms, expected) in [(900, vec![AlarmKind::Stuck]), (0, vec![])] {
        let heartbeat = Heartbeat { stood_ms, ..world.heartbeat(A) };
        let taken =
            world.cluster.on_heartbeat(world.now, World::link(A), A, heartbeat, &mut world.effects);
        taken.unwrap();
        let kinds: Vec<_> = world.alarms().into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, expected);
    }
}

#[test]
fn writes_rejected_for_lack_of_space_are_an_alarm_until_none_is_rejected_for_some_time() {
    let mut world = World::serving(3);
    let beat = |world: &mut World, out_of_space| {
        world.now = world.now + Duration::from_millis(100);
        let heartbeat = Heartbeat { out_of_space, memory_limit: 64 << 20, ..world.heartbeat(A) };
        let link = World::link(A);
        world.cluster.on_heartbeat(world.now, link, A, heartbeat, &mut world.effects).unwrap();
        world.alarms().into_iter().map(|(kind, _)| kind).collect::<Vec<_>>()
    };
    assert_eq!(
        beat(&mut world, 5),
        [],
        "the writes may have been rejected long before this coordinator started"
    );
    assert_eq!(beat(&mut world, 6), [AlarmKind::OutOfSpace]);
    let text = world.cluster.status(world.now, &[]).alarms.remove(0).text;
    assert!(text.contains("limit of 64 MiB") && text.contains("6 writes rejected"), "{text}");
    assert!(text.contains("coord set --memory-limit"), "{text}");
    for _ in 0..99 {
        assert_eq!(beat(&mut world, 6), [AlarmKind::OutOfSpace]);
    }
    assert_eq!(beat(&mut world, 6), []);
    assert_eq!(world.cluster.status(world.now, &[]).servers[1].out_of_space, 6);
}

#[test]
fn a_server_that_takes_orders_and_does_not_report_is_an_alarm() {
    let mut world = World::serving(3);
    world.restart();
    for id in [B, C] {
        let started = world.started(id);
        world.start_as(started.member);
    }
    let member = world.cluster.member(A);
    world.cluster.on_orders_connected(member, &mut world.effects);
    let is_raised = |world: &World| world.alarms().iter().any(|a| a.0 == AlarmKind::CannotReport);
    world.pass(Duration::from_secs(2), &[B, C]);
    assert!(!is_raised(&world));
    world.pass(Duration::from_secs(2), &[B, C]);
    assert!(is_raised(&world));
    let started = world.started(A);
    world.cluster.on_started(world.now, World::link(A), &started, &mut world.effects).unwrap();
    world.beat(A);
    assert!(!is_raised(&world));
}

#[test]
fn a_failed_order_is_an_alarm_until_every_group_is_home_again() {
    let mut world = World::serving(3);
    world.exit(A);
    world.collect();
    while world.ordered().iter().find(|(to, _)| *to == C).map(|(_, name)| *name) == Some("EXITED") {
        world.report(C, Ok(0));
    }
    let words = format!("no room {}", "x".repeat(10_000));
    world.report(C, Err(words));
    let status = world.cluster.status(world.now, &[]);
    let [alarm] = &status.alarms[..] else { panic!("{status:?}") };
    assert_eq!((alarm.kind, alarm.server), (AlarmKind::OrderFailed, Some(C)));
    assert!(alarm.text.contains("DROP-SECONDARY: no room"), "{}", alarm.text);
    assert!(alarm.text.len() < 400, "a server's message is truncated: {}", alarm.text);
    world.pass(Duration::from_secs(1), &[B, C]);
    world.run(&[A, B, C]);
    world.run(&[A, B, C]);
    assert!(world.cluster.is_whole());
    assert!(world.alarms().is_empty());
}

#[test]
fn a_copy_is_shown_as_the_sum_of_its_shards_and_never_above_the_table_size() {
    let mut world = World::serving(3);
    world.exit(A);
    let decided = world.cluster.member(A);
    world.start_as(decided);
    world.collect();
    for id in [A, B, C] {
        world.beat(id);
    }
    world.collect();
    assert_eq!(world.view(1), (Some(2), Some(1), 3), "A is candidate of its group");
    assert_eq!(world.cluster.copy_of(GroupId(2)), None, "nothing is copied of group B");
    let mut heartbeat = world.heartbeat(B);
    for report in heartbeat.replicas.iter_mut().filter(|report| report.group == GroupId(1)) {
        (report.entries, report.content_bytes) = (10, 1_000);
        // The second report exceeds the size of the table, because keys were deleted after they had been copied.
        (report.copied, report.copied_bytes) =
            if report.shard == ShardId(0) { (4, 400) } else { (12, 1_200) };
    }
    let link = World::link(B);
    world.cluster.on_heartbeat(world.now, link, B, heartbeat, &mut world.effects).unwrap();
    let copy = CopyStatus { entries: 14, bytes: 1_400, of_entries: 20, of_bytes: 2_000 };
    assert_eq!(world.cluster.copy_of(GroupId(1)), Some(copy));
    assert_eq!(world.cluster.status(world.now, &[]).groups[1].copy, Some(copy));
}

#[test]
fn a_silent_sole_holder_is_an_alarm_until_it_reports_or_is_proven_dead() {
    let mut world = World::serving(3);
    world.exit(A);
    world.run(&[B, C]);
    world.pass(SILENCE * 4, &[C]);
    let kinds = |world: &World| -> Vec<_> {
        let alarms = world.alarms().into_iter().map(|(kind, _)| kind);
        alarms.filter(|kind| matches!(kind, AlarmKind::Unreachable | AlarmKind::Lost)).collect()
    };
    assert_eq!(kinds(&world), [AlarmKind::Unreachable], "group A is at B alone");
    world.pass(SILENCE, &[B, C]);
    assert_eq!(kinds(&world), []);
    world.pass(SILENCE * 4, &[C]);
    world.exit(B);
    assert_eq!(kinds(&world), [AlarmKind::Lost]);
}

#[test]
fn two_holders_that_receive_neither_each_other_nor_a_probe_are_an_alarm_until_they_do() {
    let mut world = World::serving(3);
    let hear = |world: &mut World, duration: Duration| {
        let end = world.now + duration;
        while world.now < end {
            world.now = world.now + Duration::from_millis(50);
            for id in [A, B, C] {
                world.beat(id);
            }
            world.cluster.on_timeout(world.now, &mut world.effects);
            world.collect();
        }
    };
    let is_raised = |world: &World| world.alarms().iter().any(|a| a.0 == AlarmKind::Unanswered);
    world.unheard = vec![A, B];
    hear(&mut world, Duration::from_millis(200));
    assert!(!is_raised(&world), "their probes are still in progress");
    hear(&mut world, Duration::from_secs(2));
    assert!(is_raised(&world), "{:?}", world.alarms());
    assert_eq!(world.view(1), (Some(1), Some(2), 1), "no member is judged");
    world.unheard.clear();
    hear(&mut world, Duration::from_millis(100));
    assert!(!is_raised(&world));
}

#[test]
fn a_place_that_cannot_be_filled_is_an_alarm_until_it_is() {
    let mut world = World::serving(3);
    world.exit(A);
    for failure in 1..=4 {
        let expected = if failure > 3 { vec![AlarmKind::KeepsFailing] } else { vec![] };
        let kinds: Vec<_> = world.alarms().into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, expected, "after {} failures", failure - 1);
        let is_spawned = |effect: &Effect| matches!(effect, Effect::Spawn { .. });
        while failure <= 3 && !world.take().iter().any(is_spawned) {
            world.pass(Duration::from_millis(50), &[B, C]);
        }
        world.exit(A);
    }
    world.run(&[A, B, C]);
    world.pass(Duration::from_secs(11), &[B, C]);
    world.run(&[A, B, C]);
    world.run(&[A, B, C]);
    assert!(world.cluster.is_whole(), "{:?}", world.cluster.views());
    assert!(world.alarms().is_empty());
}

#[test]
fn an_address_that_crowds_a_server_is_an_alarm_until_heartbeats_no_longer_report_it() {
    let mut world = World::serving(3);
    let beat = |world: &mut World, crowd| {
        let heartbeat = Heartbeat { crowd, ..world.heartbeat(A) };
        let link = World::link(A);
        world.cluster.on_heartbeat(world.now, link, A, heartbeat, &mut world.effects).unwrap();
    };
    let report = CrowdReport { address: "10.0.0.7".parse().unwrap(), connections: 9, closed: 3 };
    beat(&mut world, Some(report));
    beat(&mut world, Some(CrowdReport { closed: 4, ..report }));
    let alarms = world.cluster.status(world.now, &[]).alarms;
    let [alarm] = &alarms[..] else { panic!("{alarms:?}") };
    assert_eq!((alarm.kind, alarm.server), (AlarmKind::Crowded, Some(A)));
    assert!(alarm.text.contains("10.0.0.7 has 9 of them; 4 idle"), "{}", alarm.text);
    beat(&mut world, None);
    assert!(world.alarms().is_empty());
}
