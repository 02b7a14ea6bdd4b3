//! The orderly stop of all servers and of one.

use kv_protocol::control_message::OrderFailure;

use super::*;

#[test]
fn no_server_dumps_before_all_have_drained_or_exits_before_all_have_dumped() {
    let mut world = World::serving(4);
    world.stop();
    world.stop();
    assert_eq!(world.cluster.state(), ClusterState::Stopping);
    assert_eq!(world.ordered(), world.ids().iter().map(|&id| (id, "DRAIN")).collect::<Vec<_>>());
    for id in world.ids() {
        assert!(world.ordered().iter().all(|(_, name)| *name == "DRAIN"));
        world.report(id, Ok(0));
    }
    let dumps = world.ordered();
    assert_eq!(dumps.len(), 8);
    for (id, name) in dumps {
        assert!(name.starts_with("DUMP"), "{name} before all servers have dumped");
        world.report(id, Ok(3));
    }
    let leave = world.ids().iter().map(|&id| (id, "SHUTDOWN")).collect::<Vec<_>>();
    assert_eq!(world.ordered(), leave);
    world.report_all();
    for id in world.ids() {
        let link = World::link(id);
        world.cluster.on_link_lost(world.now, link, id, &mut world.effects);
        world.exit(id);
    }
    let phases = [StopPhase::Drain, StopPhase::Dump, StopPhase::Shutdown].map(Effect::Stopping);
    let mut expected = phases.to_vec();
    expected.push(Effect::Stopped(StopOutcome::default()));
    assert_eq!(world.take(), expected, "the exit of a leaving server is not reported");
    assert_eq!(world.cluster.next_timeout(), None);
}

fn kills(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Kill { .. })).count()
}

#[test]
fn a_silent_server_is_killed_and_named_once_others_have_dumped_all_its_groups() {
    let mut world = World::serving(3);
    let (mute, alive) = (ServerId(1), [ServerId(0), ServerId(2)]);
    world.stop();
    for id in alive {
        world.report(id, Ok(0));
    }
    world.pass(Duration::from_millis(4_900), &alive);
    assert_eq!(world.ordered(), [(mute, "DRAIN")], "its timeout has not passed");
    world.pass(Duration::from_millis(100), &alive);
    world.orders.retain(|(to, _)| to.server != mute);
    world.pass(TIMEOUT, &alive);
    assert_eq!(kills(&world.take()), 0, "it may hold the only copy of its data");
    world.report(ServerId(0), Ok(0));
    world.report(ServerId(0), Ok(0));
    assert_eq!(kills(&world.take()), 0, "group 1 is not dumped yet");
    world.report(ServerId(2), Ok(0));
    world.report(ServerId(2), Ok(0));
    let reason = KillReason::Unanswered("DUMP-PRIMARY and DUMP-SECONDARY");
    let kill = Effect::Kill { member: world.cluster.member(mute), reason };
    assert!(world.take().contains(&kill));
    world.exit(mute);
    world.report_all();
    for id in alive {
        world.exit(id);
    }
    let effects = world.take();
    let (undrained, killed) = (vec![mute], vec![mute]);
    let expected = StopOutcome { undrained, killed, ..StopOutcome::default() };
    assert_eq!(stopped(&effects), Some(&expected));
}

#[test]
fn a_silent_server_that_may_hold_the_only_copy_is_left_to_the_operator() {
    let mut world = World::serving(3);
    let (dead, mute, alive) = (ServerId(2), ServerId(1), ServerId(0));
    world.stop();
    world.exit(dead);
    world.report(alive, Ok(0));
    world.orders.clear();
    world.pass(TIMEOUT, &[alive]);
    assert_eq!(
        world.ordered(),
        [
            (alive, "DUMP-PRIMARY"),
            (alive, "DUMP-SECONDARY"),
            (mute, "DUMP-PRIMARY"),
            (mute, "DUMP-SECONDARY"),
        ]
    );
    world.report(alive, Ok(0));
    world.report(alive, Ok(0));
    world.pass(Duration::from_secs(120), &[alive]);
    let effects = world.take();
    assert_eq!(kills(&effects), 0, "{effects:?}");
    let why = StopWait::Silent(GroupId(1));
    let member = world.cluster.member(mute);
    let told = effects.iter().filter(|e| **e == Effect::StopWaits { member, why }).count();
    assert_eq!(told, 1, "{effects:?}");
    assert!(world.cluster.next_timeout().is_none_or(|next| next > world.now));
    let alarms = world.cluster.status(world.now, &[]).alarms;
    assert!(alarms.iter().any(|alarm| alarm.text.contains("only copy of group 1")), "{alarms:?}");
    world.cluster.on_stop_now(world.now, &mut world.effects);
    let effects = world.take();
    assert_eq!(kills(&effects), 1, "the operator forced the stop: {effects:?}");
    world.exit(mute);
    world.orders.retain(|(to, _)| to.server != mute);
    world.report_all();
    world.exit(alive);
    assert_eq!(stopped(&world.take()).unwrap().undumped, [GroupId(1)]);
}

#[test]
fn a_machine_paused_during_a_stop_kills_no_server() {
    // In each stage all processes are paused for longer than any deadline, and the coordinator resumes first.
    for reports in 0..4 {
        let mut world = World::serving(3);
        world.stop();
        for _ in 0..reports {
            world.report_all();
        }
        for _pause in 0..3 {
            world.now = world.now + Duration::from_secs(34);
            world.cluster.on_timeout(world.now, &mut world.effects);
            world.watch(Duration::from_millis(300));
            assert_eq!(kills(&world.take()), 0, "after {reports} reports of each server");
            world.pass(Duration::from_secs(1), &world.ids());
        }
        world.report_all();
        assert_eq!(kills(&world.take()), 0);
    }
}

#[test]
fn a_live_server_that_cannot_drain_is_dumped_nevertheless() {
    let mut world = World::serving(3);
    let ids = world.ids();
    world.stop();
    world.report(ServerId(0), Ok(0));
    world.report(ServerId(1), Ok(0));
    world.pass(TIMEOUT, &ids);
    world.orders.retain(|(_, order)| order.kind != OrderKind::Drain);
    assert_eq!(world.ordered().len(), 6);
    for _dump in 0..3 {
        world.report_all();
    }
    for id in ids {
        world.exit(id);
    }
    let effects = world.take();
    let expected = StopOutcome { undrained: vec![ServerId(2)], ..StopOutcome::default() };
    assert_eq!(stopped(&effects), Some(&expected));
}

#[test]
fn a_failed_dump_is_ordered_again_before_any_server_is_told_to_exit() {
    let mut world = World::serving(3);
    let ids = world.ids();
    world.stop();
    world.report_all();
    world.report(ServerId(1), Err("no space left".to_owned()));
    world.report_all();
    let failed = world.take().into_iter().find(|e| matches!(e, Effect::OrderFailed { .. }));
    assert!(matches!(failed, Some(Effect::OrderFailed { again: true, .. })), "{failed:?}");
    assert_eq!(
        world.ordered(),
        [],
        "the retry waits for its back-off, and no server exits meanwhile"
    );
    let due = world.now + DUMP_RETRY_PAUSE;
    assert!(world.cluster.next_timeout().is_some_and(|next| next <= due));
    world.pass(DUMP_RETRY_PAUSE, &ids);
    assert_eq!(world.ordered(), [(ServerId(1), "DUMP-PRIMARY")]);
    world.report_all();
    let leave = ids.iter().map(|&id| (id, "SHUTDOWN")).collect::<Vec<_>>();
    assert_eq!(world.ordered(), leave);
    world.report_all();
    ids.iter().for_each(|&id| world.exit(id));
    assert_eq!(stopped(&world.take()), Some(&StopOutcome::default()));
}

fn full() -> Result<u64, String> {
    Err("no space left".to_owned())
}

/// Begins a stop in which every table is dumped except the primary table of server 1.
fn world_with_a_full_disk() -> World {
    let mut world = World::serving(3);
    world.stop();
    world.report_all();
    world.report(ServerId(1), full());
    world.report_all();
    world
}

#[test]
fn a_dump_is_ordered_again_with_growing_back_off_until_it_is_complete() {
    let mut world = world_with_a_full_disk();
    let ids = world.ids();
    let mut pause = DUMP_RETRY_PAUSE;
    for _failure in 0..20 {
        let failed = world.take().into_iter().find(|e| matches!(e, Effect::OrderFailed { .. }));
        assert!(matches!(failed, Some(Effect::OrderFailed { again: true, .. })), "{failed:?}");
        world.pass(pause - Duration::from_millis(100), &ids);
        assert_eq!(world.ordered(), [], "no server gets SHUTDOWN, and the dump is not retried yet");
        world.pass(Duration::from_millis(150), &ids);
        assert_eq!(world.ordered(), [(ServerId(1), "DUMP-PRIMARY")]);
        let alarms = world.cluster.status(world.now, &[]).alarms;
        assert!(alarms[0].text.contains("no space left"), "{alarms:?}");
        assert!(alarms[0].text.contains("--dump-dir"), "{alarms:?}");
        world.report(ServerId(1), full());
        pause = (pause * 2).min(LAST_DUMP_RETRY_PAUSE);
    }
    world.pass(pause, &ids);
    world.report(ServerId(1), Ok(0));
    assert_eq!(world.ordered(), ids.iter().map(|&id| (id, "SHUTDOWN")).collect::<Vec<_>>());
}

#[test]
fn a_forced_stop_gives_up_only_failing_dumps() {
    let mut world = World::serving(3);
    world.stop();
    world.report_all();
    world.report(ServerId(1), full());
    world.report(ServerId(1), Ok(0));
    world.report(ServerId(0), Ok(0));
    world.report(ServerId(0), Ok(0));
    world.take();
    world.cluster.on_stop_now(world.now, &mut world.effects);
    let member = world.cluster.member(ServerId(1));
    let given_up = Effect::GivenUp { member, group: GroupId(1), is_dumped: false };
    assert_eq!(world.take(), [given_up], "server 2 still dumps");
    world.report(ServerId(2), full());
    world.report(ServerId(2), Ok(0));
    world.pass(DUMP_RETRY_PAUSE, &world.ids());
    world.report(ServerId(2), full());
    let member = world.cluster.member(ServerId(2));
    let given_up = Effect::GivenUp { member, group: GroupId(2), is_dumped: true };
    assert!(world.take().contains(&given_up));
    assert!(world.ordered().iter().all(|(_, name)| *name == "SHUTDOWN"));
    world.report_all();
    world.ids().into_iter().for_each(|id| world.exit(id));
    let expected = StopOutcome {
        given_up: vec![(ServerId(1), GroupId(1)), (ServerId(2), GroupId(2))],
        ..StopOutcome::default()
    };
    assert_eq!(stopped(&world.take()), Some(&expected));
}

#[test]
fn another_dump_directory_is_used_at_once() {
    let mut world = world_with_a_full_disk();
    assert_eq!(world.ordered(), []);
    world.cluster.on_dump_again(world.now, &mut world.effects);
    assert_eq!(world.ordered(), [(ServerId(1), "DUMP-PRIMARY")]);
}

#[test]
fn a_stop_does_not_wait_for_a_table_without_a_full_copy() {
    let mut world = World::serving(3);
    world.stop();
    world.report_all();
    world.collect();
    let (member, order) = world.orders.remove(0);
    let none = OrderFailure { reason: "no full copy".to_owned(), is_no_copy: true };
    let report = Report { id: order.id, view: ViewVersion(0), outcome: Err(none) };
    world.cluster.on_report(world.now, member, report, &mut world.effects).unwrap();
    world.report_all();
    world.report_all();
    assert!(world.ordered().iter().all(|(_, name)| *name == "SHUTDOWN"), "{:?}", world.orders);
}

#[test]
fn a_dump_of_a_server_that_no_view_names_is_tried_twice_and_then_skipped() {
    let mut world = World::serving(3);
    let ids = world.ids();
    let away = ServerId(1);
    world.exit(away);
    world.collect();
    let member = world.cluster.member(away);
    assert!(world.take().contains(&Effect::Spawn { member }));
    world.start_as(member);
    world.collect();
    world.orders.clear();
    world.stop();
    world.report_all();
    for _failure in 0..2 {
        while let Some((to, order)) = {
            world.collect();
            world.orders.first().copied()
        } {
            let fails = to.server == away && order.kind == OrderKind::DumpPrimary;
            let is_dump = matches!(order.kind, OrderKind::DumpPrimary | OrderKind::DumpSecondary);
            if !is_dump && order.kind != OrderKind::Drain {
                break;
            }
            world.report(to.server, if fails { full() } else { Ok(0) });
        }
        world.pass(LAST_DUMP_RETRY_PAUSE, &ids);
    }
    assert!(world.ordered().iter().all(|(_, name)| *name == "SHUTDOWN"), "{:?}", world.orders);
    assert_eq!(world.ordered().len(), 3);
}

#[test]
fn a_server_that_falls_silent_before_it_is_told_to_dump_again_does_not_hang_the_stop() {
    let mut world = World::serving(3);
    let (mute, alive) = (ServerId(1), [ServerId(0), ServerId(2)]);
    world.stop();
    world.report_all();
    world.report(mute, Err("no space left".to_owned()));
    world.report_all();
    world.pass(TIMEOUT, &alive);
    let reason = KillReason::Unanswered("DUMP-PRIMARY");
    let kill = Effect::Kill { member: world.cluster.member(mute), reason };
    assert!(world.take().contains(&kill), "the reason names only the orders without a response");
}

#[test]
fn groups_that_neither_replica_has_dumped_are_named() {
    let mut world = World::serving(3);
    world.stop();
    world.report_all();
    // Servers 0 and 1 hold group 0: server 0 cannot dump its primary table, and server 1 dies.
    world.report(ServerId(0), full());
    world.exit(ServerId(1));
    world.orders.retain(|(to, _)| to.server != ServerId(1));
    world.report_all();
    world.pass(DUMP_RETRY_PAUSE, &[ServerId(0), ServerId(2)]);
    world.report(ServerId(0), full());
    assert_eq!(world.ordered(), [], "its data is only there");
    world.cluster.on_force(world.now, &mut world.effects);
    assert!(world.ordered().iter().all(|(_, name)| *name == "SHUTDOWN"));
    world.exit(ServerId(0));
    world.exit(ServerId(2));
    let effects = world.take();
    let outcome = stopped(&effects).unwrap();
    assert_eq!(outcome.undumped, [GroupId(0)]);
    assert_eq!(outcome.given_up, [(ServerId(0), GroupId(0))]);
}

#[test]
fn a_reporting_server_may_dump_without_a_limit_and_lack_of_progress_is_reported_once() {
    let mut world = World::serving(3);
    let ids = world.ids();
    let slow = ServerId(0);
    world.stop();
    world.report_all();
    for _dump in 0..2 {
        for id in [ServerId(1), ServerId(2)] {
            world.report(id, Ok(0));
        }
    }
    let run = |world: &mut World, seconds: u64, writes: bool| {
        let end = world.now + Duration::from_secs(seconds);
        let mut beat = world.heartbeat(slow);
        let known = world.cluster.server(slow).heartbeat.as_ref();
        beat.dumped = known.map_or_else(DumpedBytes::default, |(_, beat)| beat.dumped);
        while world.now < end {
            world.pass(Duration::from_millis(100), &ids[1..]);
            beat.dumped.primary += u64::from(writes);
            let (link, beat) = (World::link(slow), beat.clone());
            world.cluster.on_heartbeat(world.now, link, slow, beat, &mut world.effects).unwrap();
        }
        world.take()
    };
    world.take();
    let effects = run(&mut world, 300, true);
    assert!(effects.is_empty(), "it makes progress, even if slowly: {effects:?}");
    let effects = run(&mut world, 300, false);
    let member = world.cluster.member(slow);
    assert_eq!(effects, [Effect::StopWaits { member, why: StopWait::NoProgress }]);
    assert_eq!(world.cluster.status(world.now, &[]).alarms.len(), 1);
    let effects = run(&mut world, 10, true);
    assert!(effects.is_empty(), "{effects:?}");
    assert!(world.cluster.status(world.now, &[]).alarms.is_empty());
    world.pass(TIMEOUT, &ids[1..]);
    let reason = KillReason::Unanswered("DUMP-PRIMARY and DUMP-SECONDARY");
    let kill = Effect::Kill { member, reason };
    assert!(world.take().contains(&kill), "it is silent, and others have dumped all its groups");
}

#[test]
fn an_end_that_is_never_proven_does_not_hang_the_stop() {
    let mut world = World::serving(3);
    world.cluster.on_stop_now(world.now, &mut world.effects);
    let kills = world.take();
    assert_eq!(kills.iter().filter(|e| matches!(e, Effect::Kill { .. })).count(), 3);
    world.exit(ServerId(0));
    world.exit(ServerId(2));
    world.pass(TIMEOUT, &[]);
    let effects = world.take();
    let outcome = stopped(&effects).unwrap();
    assert_eq!(outcome.unproven, [ServerId(1)]);
    assert_eq!(outcome.undumped, [GroupId(0), GroupId(1), GroupId(2)]);
}

#[test]
fn a_stop_before_all_servers_have_started_ends_and_misses_no_dump() {
    let mut world = World::new(3);
    world.start(ServerId(0));
    world.stop();
    let effects = world.take();
    let kills =
        effects.iter().filter(|e| matches!(e, Effect::Kill { reason: KillReason::NotStarted, .. }));
    assert_eq!(kills.count(), 2);
    world.exit(ServerId(1));
    world.exit(ServerId(2));
    for _step in 0..3 {
        world.report_all();
    }
    world.exit(ServerId(0));
    let effects = world.take();
    assert_eq!(stopped(&effects), Some(&StopOutcome::default()));
    assert!(!effects.iter().any(|e| matches!(e, Effect::StartFailed { .. })));
}

#[test]
fn an_orderly_stop_is_not_shown_as_a_recovery() {
    let mut world = World::serving(3);
    world.stop();
    for _order in ["DRAIN", "DUMP-PRIMARY", "DUMP-SECONDARY", "SHUTDOWN"] {
        world.report_all();
    }
    for id in world.ids() {
        let member = world.cluster.member(id);
        world.cluster.on_exited(world.now, member, &mut world.effects);
    }
    assert!(world.effects.contains(&Effect::Stopped(StopOutcome::default())), "all have left");
    assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::Recovery { .. })));
}

#[test]
fn a_stop_waits_for_no_order_of_the_start() {
    let mut world = World::new(3);
    for id in world.ids() {
        world.start(id);
    }
    let start_orders = std::mem::take(&mut world.orders);
    world.stop();
    for (member, order) in start_orders {
        let report = Report { id: order.id, view: ViewVersion(0), outcome: Ok(0) };
        let got = world.cluster.on_report(world.now, member, report, &mut world.effects);
        assert_eq!(got, Err(Ignored::NotOutstanding));
    }
    world.report_all();
    assert_eq!(world.ordered().len(), 6, "the dumps waited only for DRAIN");
    // A re-established connection brings no SET-SECONDARY to a server that is dumping.
    let member = world.cluster.member(ServerId(0));
    world.cluster.on_orders_connected(member, &mut world.effects);
    let again = world.ordered().split_off(6);
    assert_eq!(again, [(ServerId(0), "DUMP-PRIMARY"), (ServerId(0), "DUMP-SECONDARY")]);
}

#[test]
fn a_continued_stop_does_not_wait_for_processes_that_were_never_started() {
    let mut world = World::new(3);
    let ids = world.ids();
    world.start(ids[0]);
    world.stop();
    world.restart();
    // The other two processes have never reported, so their places have new incarnations and no processes.
    world.exit(ids[0]);
    let effects = world.take();
    let outcome = stopped(&effects).expect("the stop waits for no server");
    assert_eq!(outcome.unproven, []);
}

#[test]
fn no_stop_order_is_sent_before_the_stop_is_durable() {
    for is_stored in [false, true] {
        let mut world = World::serving(3);
        world.keeps_stores = true;
        world.stop();
        assert_eq!(world.ordered(), [], "a server that drains or dumps cannot resume serving");
        if is_stored {
            world.store();
            let orders = world.ordered();
            assert_eq!(orders.iter().filter(|(_, name)| *name == "DRAIN").count(), 3, "{orders:?}");
        }
        // The coordinator crashes. If the stop was stored, its successor continues it. Otherwise no process has
        // received an order of the stop.
        world.restart();
        assert_eq!(world.cluster.state() == ClusterState::Stopping, is_stored);
    }
}
