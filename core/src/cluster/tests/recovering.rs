//! The crash of one server, from step 0 to step 5.

use kv_protocol::control_message::OrderFailure;

use super::*;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(0);

#[test]
fn a_recovery_ends_with_every_group_at_home_and_gives_the_orders_of_the_original_system() {
    let mut world = World::serving(3);
    let dead = world.cluster.member(A);
    world.exit(A);
    assert_eq!(world.view(1), (Some(2), None, 2), "group A: B alone");
    assert_eq!(world.view(0), (Some(0), None, 2), "group C: C alone");
    assert_eq!(world.view(2), (Some(2), Some(0), 1), "group B: unchanged");
    let orders = world.run(&[A, B, C]);
    let expected = [
        (C, "DROP-SECONDARY"),
        (B, "TAKE-OVER"),
        (C, "UPDATE-SECONDARY"),
        (B, "UPDATE-PRIMARY"),
        (C, "SET-SECONDARY"),
        (B, "SET-SECONDARY"),
        (A, "SET-SECONDARY"),
        (B, "SWITCH-PRIMARY"),
    ];
    let steps: Vec<_> = orders.iter().filter(|(_, name)| *name != "EXITED").copied().collect();
    assert_eq!(steps, expected);
    assert!(orders.contains(&(B, "EXITED")), "B gets the proof of A's death");
    assert!(world.cluster.is_whole());
    assert_eq!(world.copies(), [2, 2, 2]);
    assert_ne!(world.cluster.member(A), dead);
    assert_eq!(world.view(1), (Some(1), Some(2), 5));
    assert_eq!(world.view(0), (Some(0), Some(1), 4));
}

#[test]
fn proofs_of_death_do_not_accumulate_while_no_order_arrives() {
    let mut world = World::serving(3);
    let (primary, first) = (world.cluster.member(C), world.cluster.member(A));
    world.cluster.on_orders_lost(primary);
    for _ in 0..5 {
        let dead = world.cluster.member(A);
        world.exit(A);
        while world.cluster.member(A) == dead || world.cluster.started(A).is_none() {
            world.run(&[A, B, C]);
        }
    }
    world.cluster.on_orders_connected(primary, &mut world.effects);
    let proofs: Vec<_> = world
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Order { to, order } if *to == primary => Some(order.kind),
            _ => None,
        })
        .filter(|kind| matches!(kind, OrderKind::Exited(_)))
        .collect();
    assert_eq!(proofs, [OrderKind::Exited(first)], "the only process that it may have followed");
}

#[test]
fn the_steps_are_shown_in_order() {
    let mut world = World::serving(3);
    let mut shown = Vec::new();
    let mut note = |world: &World| {
        let step = world.cluster.recovery_step(A);
        if shown.last() != Some(&step) {
            shown.push(step);
        }
    };
    world.keeps_stores = true;
    world.exit(A);
    for _ in 0..40 {
        note(&world);
        world.store();
        world.collect();
        note(&world);
        let spawned = world.effects.iter().find_map(|effect| match effect {
            Effect::Spawn { member } => Some(*member),
            _ => None,
        });
        world.effects.clear();
        if let Some(member) = spawned {
            world.start_as(member);
            world.collect();
            note(&world);
        }
        for id in [A, B, C] {
            if world.cluster.started(id).is_some() && !world.cluster.has_exited(id) {
                world.beat(id);
            }
        }
        if let Some((to, order)) = world.orders.pop() {
            let report = Report { id: order.id, view: order.view_version(), outcome: Ok(1) };
            let _ = world.cluster.on_report(world.now, to, report, &mut world.effects);
            world.collect();
        }
    }
    note(&world);
    assert_eq!(shown.first(), Some(&Some(0)));
    assert_eq!(shown.last(), Some(&None));
    assert!(shown.is_sorted_by_key(|step| step.unwrap_or(9)), "{shown:?}");
    for step in [1, 2, 3, 5] {
        assert!(shown.contains(&Some(step)), "{shown:?}");
    }
}

#[test]
fn no_view_is_sent_before_it_is_durable() {
    let mut world = World::serving(3);
    world.keeps_stores = true;
    world.exit(A);
    assert!(world.ordered().iter().all(|(_, name)| *name == "EXITED"));
    assert_eq!(world.cluster.map().views[1].version, ViewVersion(1));
    world.store();
    assert!(world.ordered().contains(&(B, "TAKE-OVER")));
    assert_eq!(world.cluster.map().views[1].version, ViewVersion(2));
}

#[test]
fn a_replacement_that_dies_in_any_step_is_replaced_again() {
    // For each step, A's new process ends before the report on this order arrives.
    for last in ["UPDATE-SECONDARY", "UPDATE-PRIMARY", "SET-SECONDARY", "SWITCH-PRIMARY"] {
        let mut world = World::serving(3);
        world.exit(A);
        let mut killed = false;
        for _ in 0..200 {
            world.now = world.now + Duration::from_millis(20);
            world.collect();
            for effect in std::mem::take(&mut world.effects) {
                if let Effect::Spawn { member } = effect {
                    world.start_as(member);
                }
            }
            world.collect();
            for id in [A, B, C] {
                if world.cluster.started(id).is_some() && !world.cluster.has_exited(id) {
                    world.beat(id);
                }
            }
            world.collect();
            if let Some(at) =
                world.orders.iter().position(|(to, _)| !world.cluster.has_exited(to.server))
            {
                let (to, order) = world.orders.remove(at);
                let is_a = world
                    .cluster
                    .views()
                    .iter()
                    .any(|view| view.other() == Some(world.cluster.member(A)));
                if !killed && order.name() == last && is_a {
                    killed = true;
                    world.exit(A);
                    continue;
                }
                let report = Report { id: order.id, view: order.view_version(), outcome: Ok(1) };
                let _ = world.cluster.on_report(world.now, to, report, &mut world.effects);
            }
            world.cluster.on_timeout(world.now, &mut world.effects);
        }
        assert!(killed, "{last}");
        assert!(world.cluster.is_whole(), "{last}: {:?}", world.cluster.views());
    }
}

#[test]
fn failing_replacements_are_retried_with_growing_back_off_and_an_alarm() {
    let mut world = World::serving(3);
    world.exit(A);
    let mut spawned = Vec::new();
    let mut alarms = 0;
    for _ in 0..3_000 {
        world.now = world.now + Duration::from_millis(10);
        for id in [B, C] {
            world.beat(id);
        }
        world.cluster.on_timeout(world.now, &mut world.effects);
        world.collect();
        for effect in std::mem::take(&mut world.effects) {
            match effect {
                Effect::Spawn { member } => {
                    spawned.push(world.now);
                    world.cluster.on_exited(world.now, member, &mut world.effects);
                }
                Effect::KeepsFailing { server } if server == A => alarms += 1,
                _ => {}
            }
        }
    }
    let pauses: Vec<_> = spawned.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(pauses.len() > 6 && pauses[pauses.len() - 1] <= Duration::from_millis(10_100));
    assert_eq!(alarms, 1);
}

#[test]
fn a_process_is_not_replaced_for_the_failures_of_the_processes_before_it() {
    let mut world = World::serving(3);
    world.exit(A);
    for _ in 0..3 {
        let is_spawned = |effect: &Effect| matches!(effect, Effect::Spawn { .. });
        while !world.take().iter().any(is_spawned) {
            world.pass(Duration::from_millis(50), &[B, C]);
        }
        world.exit(A);
    }
    let mut failures = 0;
    for _ in 0..1_000 {
        world.now = world.now + Duration::from_millis(20);
        world.collect();
        for effect in std::mem::take(&mut world.effects) {
            match effect {
                Effect::Spawn { member } => world.start_as(member),
                Effect::Kill { member, .. } => panic!("{member} is killed"),
                _ => {}
            }
        }
        for id in [A, B, C] {
            if world.cluster.started(id).is_some() && !world.cluster.has_exited(id) {
                world.beat(id);
            }
        }
        world.collect();
        for (to, order) in std::mem::take(&mut world.orders) {
            let is_update = order.name().starts_with("UPDATE-");
            let outcome = match is_update && failures < 2 {
                true => Err(OrderFailure {
                    reason: "the candidate was lost".to_owned(),
                    is_no_copy: false,
                }),
                false => Ok(1),
            };
            failures += u32::from(outcome.is_err());
            let report = Report { id: order.id, view: order.view_version(), outcome };
            let _ = world.cluster.on_report(world.now, to, report, &mut world.effects);
        }
        world.cluster.on_timeout(world.now, &mut world.effects);
    }
    assert_eq!(failures, 2, "one in each group");
    assert!(world.cluster.is_whole(), "{:?}", world.cluster.views());
}

#[test]
fn after_a_coordinator_crash_at_any_moment_its_successor_completes_the_recovery() {
    for stores_before_death in 0..8 {
        let mut world = World::serving(3);
        world.keeps_stores = true;
        world.exit(A);
        for _ in 0..stores_before_death {
            world.store();
            world.collect();
            world.keeps_stores = true;
            for effect in std::mem::take(&mut world.effects) {
                if let Effect::Spawn { member } = effect {
                    world.start_as(member);
                }
            }
            for (to, order) in std::mem::take(&mut world.orders) {
                let report = Report { id: order.id, view: order.view_version(), outcome: Ok(1) };
                let _ = world.cluster.on_report(world.now, to, report, &mut world.effects);
            }
            for id in [A, B, C] {
                if world.cluster.started(id).is_some() && !world.cluster.has_exited(id) {
                    world.beat(id);
                }
            }
            world.collect();
        }
        world.restart();
        // Live processes reconnect; the exit of the others is proven again.
        let members: Vec<_> = [A, B, C].map(|id| world.cluster.member(id)).into();
        for member in members {
            let alive = world.cluster.durable().servers[usize::from(member.server.0)].started;
            let Some(started) = alive else { continue };
            if started.member.server == A && world.first_a == Some(started.member) {
                world.cluster.on_exited(world.now, member, &mut world.effects);
            } else {
                world.start_as(member);
            }
        }
        world.run(&[A, B, C]);
        world.run(&[A, B, C]);
        assert!(world.cluster.is_whole(), "{stores_before_death}: {:?}", world.cluster.views());
        assert_eq!(world.cluster.durable().epoch.number, 2);
    }
}

#[test]
fn a_restarted_coordinator_judges_no_server_before_all_had_time_to_come_back() {
    let mut world = World::serving(3);
    world.restart();
    world.unheard = vec![A];
    for id in [B, C] {
        world.start_as(world.cluster.member(id));
    }
    let end = world.now + kv_protocol::limits::GRACE;
    while world.now < end {
        world.now = world.now + Duration::from_millis(20);
        world.beat(B);
        world.beat(C);
        world.cluster.on_timeout(world.now, &mut world.effects);
        world.collect();
        assert_eq!(world.view(1), (Some(1), Some(2), 1));
    }
    world.run(&[B, C]);
    world.run(&[B, C]);
    assert_eq!(world.view(1), (Some(2), None, 2));
}

#[test]
fn a_restarted_coordinator_decides_nothing_before_every_live_server_has_reported() {
    let mut world = World::serving(3);
    world.restart();
    // A's death is proven at once, but the views at B and C are not known yet.
    world.exit(A);
    world.start_as(world.cluster.member(B));
    world.beat(B);
    world.collect();
    assert_eq!(world.view(1), (Some(1), Some(2), 1));
    world.start_as(world.cluster.member(C));
    world.beat(C);
    world.collect();
    assert_eq!(world.view(1), (Some(2), None, 2));
}

#[test]
fn a_restarted_coordinator_does_not_wait_forever_for_a_silent_server() {
    let mut world = World::serving(4);
    world.restart();
    world.exit(A);
    for id in [B, C] {
        world.start_as(world.cluster.member(id));
    }
    world.run(&[B, C]);
    assert_eq!(world.view(1), (Some(1), Some(2), 1));
    world.pass(kv_protocol::limits::GRACE + SILENCE, &[B, C]);
    assert_eq!(world.view(1).0, Some(2));
}

#[test]
fn a_restarted_coordinator_uses_no_process_that_an_earlier_one_may_have_killed() {
    let mut world = World::serving(3);
    world.unheard = vec![A];
    world.pass(SILENCE * 2, &[B, C]);
    let old = world.cluster.member(A);
    let kill = Effect::Kill { member: old, reason: KillReason::Replaced };
    assert!(world.take().contains(&kill), "no server receives its messages, and no view names it");
    // The coordinator crashes while its kill of A is pending, and A reconnects. The next coordinator has no record of
    // the kill.
    world.unheard.clear();
    world.restart();
    for id in [A, B, C] {
        world.start_as(world.cluster.member(id));
    }
    world.run(&[A, B, C]);
    assert!(!world.on_disk.as_ref().unwrap().names(old), "the kill may take effect at any time");
    assert!(world.seen.contains(&kill), "it is replaced");
    world.exit(A);
    world.run(&[A, B, C]);
    world.run(&[A, B, C]);
    assert!(world.cluster.is_whole(), "{:?}", world.cluster.views());
    assert_ne!(world.cluster.member(A), old);
}

#[test]
fn a_stored_state_older_than_a_servers_view_ends_the_coordinator_and_changes_nothing() {
    let mut world = World::serving(3);
    let old = world.on_disk.clone();
    world.exit(A);
    world.run(&[B, C]);
    let newer = world.heartbeat(B);
    world.on_disk = old;
    world.restart();
    world.effects.clear();
    world.start_as(world.cluster.member(B));
    let link = World::link(B);
    let known = world.view(1);
    for _ in 0..2 {
        let heartbeat = newer.clone();
        let taken = world.cluster.on_heartbeat(world.now, link, B, heartbeat, &mut world.effects);
        assert_eq!(taken, Err(Ignored::Impossible("a view")));
    }
    world.exit(A);
    world.exit(C);
    world.pass(3 * SILENCE, &[]);
    let told = world.seen.iter().chain(&world.effects);
    let outdated = told.filter(|effect| matches!(effect, Effect::Outdated { server: B, .. }));
    assert_eq!(outdated.count(), 1, "it is reported once");
    assert_eq!(world.view(1), known, "no more decisions are made");
}

#[test]
fn only_the_first_heartbeat_of_a_server_can_end_a_restarted_coordinator() {
    let mut world = World::serving(3);
    world.restart();
    for id in world.ids() {
        world.start_as(world.cluster.member(id));
        world.beat(id);
    }
    let link = World::link(B);
    let mut forged = world.heartbeat(B);
    forged.replicas[0].view = ViewVersion(u64::MAX);
    let taken = world.cluster.on_heartbeat(world.now, link, B, forged, &mut world.effects);
    assert_eq!(taken, Err(Ignored::Impossible("a view")));
    let told = world.seen.iter().chain(&world.effects);
    let outdated = told.filter(|effect| matches!(effect, Effect::Outdated { .. }));
    assert_eq!(outdated.count(), 0, "its newer views come from this coordinator");
    world.run(&[A, B, C]);
    world.exit(A);
    world.run(&[B, C]);
    assert_eq!(world.view(1).0, Some(2), "it continues to decide");
}

#[test]
fn a_report_counts_only_for_the_view_that_was_ordered() {
    let mut world = World::serving(3);
    world.exit(A);
    world.collect();
    let at = world.orders.iter().position(|(_, order)| order.name() == "TAKE-OVER").unwrap();
    let (to, order) = world.orders.remove(at);
    let view = order.view().unwrap().version;
    let report = |view| Report { id: order.id, view, outcome: Ok(1) };
    let other = report(ViewVersion(view.0 + 1));
    let taken = world.cluster.on_report(world.now, to, other, &mut world.effects);
    assert_eq!(taken, Err(Ignored::NotOutstanding));
    assert_eq!(world.cluster.on_report(world.now, to, report(view), &mut world.effects), Ok(()));
}

#[test]
fn decisions_use_the_facts_known_when_they_can_be_stored() {
    let mut world = World::serving(3);
    world.cluster.config.on_double_fault = DoubleFault::Isolate;
    world.keeps_stores = true;
    // The store of the view after C's end is in progress while B falls silent.
    world.exit(C);
    world.unheard = vec![B];
    world.pass(SILENCE * 3, &[A]);
    // A has responded, so B would be removed. But A dies before this is decided, and B has all data.
    world.exit(A);
    while world.store() {
        world.collect();
    }
    assert_eq!(world.view(1), (Some(2), None, 2));
}

#[test]
fn a_verdict_is_not_kept_for_a_slow_disk_while_its_member_comes_back() {
    let mut world = World::serving(3);
    world.keeps_stores = true;
    // The store of the view after C's end is in progress while B falls silent and comes back.
    world.exit(C);
    world.unheard = vec![B];
    world.pass(SILENCE * 3, &[A]);
    world.unheard.clear();
    world.pass(Duration::from_millis(200), &[A, B]);
    // Now A hangs: to drop B would leave the group to A.
    world.unheard = vec![A];
    world.pass(SILENCE, &[B]);
    world.keeps_stores = false;
    while world.store() {
        world.collect();
    }
    assert_eq!(world.view(1), (Some(1), Some(2), 1), "B reports again");
    world.pass(SILENCE * 2, &[B]);
    assert_eq!(world.view(1), (Some(2), None, 2), "the server that is silent now is removed");
}

#[test]
fn a_restarted_coordinator_recognizes_a_second_fault() {
    for starts_again in [false, true] {
        let mut world = World::serving(3);
        world.exit(A);
        if starts_again {
            world.run(&[B, C]);
            let member = world.cluster.member(A);
            world.start_as(member);
            world.collect();
            assert_eq!(world.view(1).1, Some(1), "A's successor is candidate");
        }
        world.restart();
        world.cluster.config.on_double_fault = DoubleFault::Shutdown;
        for id in [B, C] {
            world.start_as(world.cluster.member(id));
            world.beat(id);
        }
        world.collect();
        world.exit(B);
        world.pass(kv_protocol::limits::GRACE + SILENCE * 2, &[C]);
        let second = Effect::DoubleFault { first: A, second: B };
        assert!(world.take().contains(&second), "{starts_again}: A is not back");
        assert_eq!(world.cluster.state(), ClusterState::Stopping);
    }
}

#[test]
fn a_fault_after_the_restart_of_a_whole_cluster_is_a_first_one() {
    let mut world = World::serving(3);
    world.exit(A);
    for _ in 0..3 {
        world.run(&[A, B, C]);
    }
    assert!(world.cluster.is_whole());
    world.restart();
    world.cluster.config.on_double_fault = DoubleFault::Shutdown;
    for id in [A, C] {
        world.start_as(world.cluster.member(id));
        world.beat(id);
    }
    world.exit(B);
    assert!(!world.take().iter().any(|effect| matches!(effect, Effect::DoubleFault { .. })));
    assert_eq!(world.view(2).1, None);
}
