//! Silence, votes, complaints, and second faults.

use super::*;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(0);

fn kills(effects: &[Effect]) -> Vec<ServerId> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Kill { member, .. } => Some(member.server),
            _ => None,
        })
        .collect()
}

#[test]
fn a_silent_server_that_others_receive_keeps_its_place() {
    let mut world = World::serving(3);
    world.pass(SILENCE * 10, &[B, C]);
    assert_eq!(world.view(1), (Some(1), Some(2), 1));
    assert_eq!(world.view(0), (Some(0), Some(1), 1));
    assert!(kills(&world.take()).is_empty());
}

#[test]
fn a_server_silent_to_all_is_replaced_in_its_views_and_then_killed() {
    let mut world = World::serving(3);
    world.unheard = vec![A];
    world.pass(SILENCE * 2, &[B, C]);
    assert_eq!(world.view(1), (Some(2), None, 2));
    assert_eq!(world.view(0), (Some(0), None, 2));
    assert_eq!(kills(&world.take())[..1], [A], "only now");
}

#[test]
fn a_server_is_kept_by_reports_that_are_one_heartbeat_interval_old() {
    let mut world = World::serving(3);
    // All processes were suspended, and A resumes last. B and C report what their shards observed before the
    // suspension.
    world.silences = BTreeMap::from([((B, A), 300), ((C, A), 300)]);
    world.pass(SILENCE * 2, &[B, C]);
    assert_eq!(world.view(1), (Some(1), Some(2), 1));
}

#[test]
fn a_hung_primary_is_replaced_as_fast_when_its_secondary_complains_first() {
    let mut world = World::serving(3);
    world.unheard = vec![A];
    let start = world.now;
    // A lease lasts as long as the coordinator's failure timeout. So B may report a complaint just before A counts as
    // silent. Then A is probed, although it cannot respond.
    world.watch(SILENCE - Duration::from_millis(10));
    world.beat(B);
    world.beat(C);
    world.cluster.on_timeout(world.now, &mut world.effects);
    assert!(world.ordered().contains(&(A, "PROBE")), "{:?}", world.orders);
    while world.view(1) != (Some(2), None, 2) {
        world.pass(Duration::from_millis(50), &[B, C]);
        assert!(world.now.since(start) < SILENCE + Duration::from_millis(300), "too late");
    }
}

#[test]
fn a_delayed_heartbeat_is_no_vote_so_the_member_that_stays_must_respond_first() {
    let mut world = World::serving(3);
    world.unheard = vec![A];
    // The coordinator is paused just before the silence of A becomes too long. After the pause it considers A
    // silent, and reads heartbeats of B, which is dead by now.
    world.watch(SILENCE / 2);
    world.beat(B);
    world.beat(C);
    world.watch(SILENCE / 2 - Duration::from_millis(10));
    world.now = world.now + SILENCE * 2;
    world.cluster.on_timeout(world.now, &mut world.effects);
    assert!(world.ordered().contains(&(B, "PROBE")), "{:?}", world.orders);
    for _ in 0..3 {
        world.now = world.now + Duration::from_millis(1);
        world.beat(B);
        world.beat(C);
    }
    assert_eq!(world.view(1), (Some(1), Some(2), 1), "B has not responded");
    world.unheard.clear();
    world.beat(A);
    world.exit(B);
    assert_eq!(world.view(1), (Some(1), None, 2), "A has all that B had");
}

#[test]
fn each_group_probes_its_own_members() {
    let mut world = World::serving(3);
    // B does not receive messages of A; C does.
    world.unheard = vec![A];
    for _ in 0..20 {
        world.now = world.now + Duration::from_millis(50);
        world.beat(B);
        world.unheard.clear();
        world.beat(C);
        world.unheard = vec![A];
        world.cluster.on_timeout(world.now, &mut world.effects);
        world.respond_to_probes(&[B, C]);
    }
    assert_eq!(world.view(1), (Some(2), None, 2));
    assert_eq!(world.view(0), (Some(0), Some(1), 1));
    assert!(kills(&world.take()).is_empty(), "a view names it");
}

#[test]
fn when_both_members_are_silent_neither_is_judged() {
    let mut world = World::serving(3);
    world.unheard = vec![A, B];
    world.pass(SILENCE * 10, &[C]);
    assert_eq!(world.view(1), (Some(1), Some(2), 1));
}

#[test]
fn a_sole_holder_is_unreachable_and_neither_killed_nor_lost_while_it_is_silent() {
    let mut world = World::serving(3);
    world.exit(A);
    world.run(&[B, C]);
    assert_eq!(world.view(1), (Some(2), None, 2));
    world.unheard = vec![B];
    world.take();
    world.pass(SILENCE * 20, &[C]);
    assert_eq!(world.view(1), (Some(2), None, 2));
    assert!(kills(&world.take()).is_empty());
    let status = world.cluster.status(world.now, &[]);
    assert_eq!(status.groups[1].condition, kv_protocol::status::GroupCondition::Unreachable);
    world.exit(B);
    assert_eq!(world.view(1), (None, None, 3), "by proof alone");
    let status = world.cluster.status(world.now, &[]);
    assert_eq!(status.groups[1].condition, kv_protocol::status::GroupCondition::Lost);
    world.run(&[A, B, C]);
    world.run(&[A, B, C]);
    assert_eq!(world.view(1), (None, None, 3), "and it stays so");
}

#[test]
fn of_two_members_that_do_not_receive_each_other_the_primary_stays_if_it_responds() {
    let mut world = World::serving(3);
    // Nothing distinguishes the two: C receives messages of both.
    world.silences = BTreeMap::from([((A, B), 900), ((B, A), 900)]);
    for _ in 0..4 {
        for id in [A, B, C] {
            world.beat(id);
        }
        world.now = world.now + Duration::from_millis(50);
        world.cluster.on_timeout(world.now, &mut world.effects);
    }
    assert_eq!(world.ordered(), [(A, "PROBE")]);
    world.report(A, Ok(0));
    world.pass(Duration::from_millis(100), &[A, B, C]);
    assert_eq!(world.view(1), (Some(1), Some(2), 1), "the complaint may be over by now");
    world.pass(Duration::from_millis(50), &[A, B, C]);
    // B was removed. Because it is alive, it may become a candidate with an empty table.
    assert_eq!(world.view(1), (Some(1), Some(2), 3));
    assert_eq!(world.cluster.views()[1].secondary(), None);
    assert!(world.ordered().contains(&(B, "LEAVE")));
    assert_eq!(world.view(0), (Some(0), Some(1), 1));
    assert!(kills(&world.take()).is_empty(), "a live process is not killed");
}

#[test]
fn a_member_that_resumes_and_responds_does_not_displace_the_other() {
    let mut world = World::serving(3);
    world.silences = BTreeMap::from([((B, A), 900), ((A, B), 500)]);
    for _ in 0..4 {
        for id in [A, B, C] {
            world.beat(id);
        }
        world.now = world.now + Duration::from_millis(50);
        world.cluster.on_timeout(world.now, &mut world.effects);
    }
    assert!(world.ordered().contains(&(A, "PROBE")));
    world.report(A, Ok(0));
    // The stream is up again.
    world.silences.clear();
    world.pass(SILENCE, &[A, B, C]);
    assert_eq!(world.view(1), (Some(1), Some(2), 1));
}

#[test]
fn a_primary_that_does_not_respond_is_replaced_by_a_secondary_that_does() {
    let mut world = World::serving(3);
    world.unheard = vec![A];
    for _ in 0..60 {
        for id in [A, B, C] {
            world.beat(id);
        }
        world.now = world.now + Duration::from_millis(50);
        world.cluster.on_timeout(world.now, &mut world.effects);
        world.collect();
        if let Some(at) = world.orders.iter().position(|(to, _)| to.server != A) {
            let (to, order) = world.orders.remove(at);
            let report = Report { id: order.id, view: ViewVersion(0), outcome: Ok(0) };
            let _ = world.cluster.on_report(world.now, to, report, &mut world.effects);
        }
        if world.view(1).0 == Some(2) {
            return;
        }
    }
    panic!("B never took over: {:?}", world.cluster.views());
}

#[test]
fn a_second_fault_stops_the_cluster_with_dumps_or_isolates_lost_groups() {
    for policy in [DoubleFault::Shutdown, DoubleFault::Isolate] {
        let mut world = World::serving(3);
        world.cluster.config.on_double_fault = policy;
        world.exit(A);
        world.exit(B);
        let seen = world.take();
        assert!(seen.contains(&Effect::DoubleFault { first: A, second: B }), "{seen:?}");
        if policy == DoubleFault::Isolate {
            assert_eq!(world.view(1), (None, None, 3), "both holders of the group are dead");
            assert_eq!(world.view(0), (Some(0), None, 2));
            assert_eq!(world.view(2), (Some(0), None, 2));
            continue;
        }
        assert!(
            seen.contains(&Effect::Stopping(StopPhase::Dump)),
            "the dumps do not wait for a drain: {seen:?}"
        );
        let orders = world.ordered();
        for dump in ["DUMP-PRIMARY", "DUMP-SECONDARY"] {
            assert!(orders.contains(&(C, dump)), "{orders:?}");
        }
    }
}

#[test]
fn the_same_server_dying_again_is_no_second_fault() {
    let mut world = World::serving(3);
    world.cluster.config.on_double_fault = DoubleFault::Shutdown;
    for _ in 0..3 {
        world.exit(A);
        for _ in 0..5 {
            world.run(&[B, C]); // The back-off grows.
        }
        let spawned = world.seen.iter().rev().find_map(|effect| match effect {
            Effect::Spawn { member } => Some(*member),
            _ => None,
        });
        world.start_as(spawned.expect("a new process"));
    }
    assert_eq!(world.cluster.state(), ClusterState::Degraded);
    world.run(&[A, B, C]);
    assert!(world.cluster.is_whole());
}

#[test]
fn outdated_reports_of_an_update_do_not_count_for_a_later_view() {
    let mut world = World::serving(3);
    world.exit(A);
    world.collect();
    let member = world.effects.iter().find_map(|effect| match effect {
        Effect::Spawn { member } => Some(*member),
        _ => None,
    });
    world.report_all();
    world.start_as(member.unwrap());
    world.collect();
    let stale: Vec<_> = std::mem::take(&mut world.orders);
    assert!(stale.iter().any(|(_, order)| order.name() == "UPDATE-PRIMARY"));
    world.exit(A);
    for (to, order) in stale {
        let report = Report { id: order.id, view: order.view_version(), outcome: Ok(1) };
        let got = world.cluster.on_report(world.now, to, report, &mut world.effects);
        assert_eq!(got.is_ok(), order.view().is_none(), "{}", order.name());
    }
    assert_eq!(world.view(1).1, None);
}
