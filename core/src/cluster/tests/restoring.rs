//! Restored clusters, and stops that must not lose data.

use super::*;

const ABOVE: ViewVersion = ViewVersion(40);

/// Returns the origin of a cluster that was restored from two others.
fn origin(foundings: Vec<Founding>) -> Origin {
    Origin { foundings, ancestors: vec![ClusterId(8), ClusterId(7)] }
}

/// Returns a cluster of three that is being restored; group 1 is LOST.
fn restored() -> World {
    let mut world = World::new(3);
    let mut effects = Vec::new();
    let founding = |group| Founding { above: ABOVE, is_lost: group == 1 };
    let foundings = (0..3).map(founding).collect();
    world.cluster = Cluster::found_restored(at(0), config(3, 1), origin(foundings), &mut effects);
    world.effects = effects;
    world.stores.clear();
    world.collect();
    world
}

fn serving() -> World {
    let mut world = restored();
    for id in world.ids() {
        assert!(world.cluster.is_founding(), "every process spawned so far loads a dump");
        world.start(id);
    }
    world.report_all();
    world
}

#[test]
fn views_of_a_restored_cluster_continue_above_earlier_ones_and_lost_groups_stay_lost() {
    let mut world = serving();
    assert!(!world.cluster.is_founding());
    assert_eq!(world.take().last(), Some(&Effect::Serving));
    assert_eq!(world.view(0), (Some(0), Some(1), 41));
    assert_eq!(world.cluster.map().ancestors, [ClusterId(8), ClusterId(7)]);
    assert_eq!(world.view(1), (None, None, 41));
    assert_eq!(world.view(2), (Some(2), Some(0), 41));
    world.run(&[ServerId(0), ServerId(1), ServerId(2)]);
    assert_eq!(world.view(1), (None, None, 41), "no server gets the group empty");
}

#[test]
fn after_a_coordinator_crash_during_a_restore_its_successor_continues_it() {
    let mut world = restored();
    world.start(ServerId(0));
    world.restart();
    assert!(world.cluster.is_founding());
    world.start(ServerId(0));
    for id in [ServerId(1), ServerId(2)] {
        world.start(id);
    }
    assert_eq!(world.view(0), (Some(0), Some(1), 41));
    assert_eq!(world.view(1), (None, None, 41));
}

#[test]
fn a_cluster_that_has_lost_every_group_starts_and_reports_it() {
    let mut world = World::new(3);
    let lost = Founding { above: ABOVE, is_lost: true };
    let mut effects = Vec::new();
    world.cluster =
        Cluster::found_restored(at(0), config(3, 1), origin(vec![lost; 3]), &mut effects);
    (world.effects, world.stores) = (effects, VecDeque::new());
    world.collect();
    for id in world.ids() {
        world.start(id);
    }
    assert_eq!(world.take().last(), Some(&Effect::Serving));
}

#[test]
fn a_fault_long_after_another_is_no_double_fault_even_if_a_group_is_lost() {
    let mut world = serving();
    world.take();
    let all = world.ids();
    for id in [ServerId(0), ServerId(2)] {
        world.run(&all);
        world.exit(id);
        world.run(&all);
        world.run(&all);
    }
    assert!(!world.seen.iter().any(|effect| matches!(effect, Effect::DoubleFault { .. })));
    assert_eq!(world.view(0).0, Some(0), "it came home");
}

#[test]
fn a_dumping_server_gets_no_view_orders() {
    let mut world = World::serving(4);
    let id = ServerId(2);
    let link = World::link(id);
    world.exit(ServerId(1));
    world.cluster.on_drain_request(world.now, link, id, &mut world.effects).unwrap();
    // The leaving server is a last holder. No server carries out orders that carry views.
    let alive = [ServerId(0), id, ServerId(3)];
    world.pass(LEAVE_TIMEOUT + Duration::from_secs(1), &alive);
    world.orders.retain(|(_, order)| order.kind == OrderKind::Drain);
    world.report(id, Ok(0));
    world.exit(ServerId(3));
    let orders: Vec<_> =
        world.ordered().into_iter().filter(|(to, name)| *to == id && *name != "EXITED").collect();
    assert_eq!(orders, [(id, "DUMP-PRIMARY"), (id, "DUMP-SECONDARY")]);
    assert_eq!(world.view(2), (Some(2), None, 3), "although the view is durable");
}

#[test]
fn after_a_coordinator_crash_during_a_stop_its_successor_continues_the_stop() {
    let mut world = World::serving(3);
    world.stop();
    for _phase in 0..2 {
        world.report_all();
    }
    let leave = |name| world_ids().map(|id| (id, name)).collect::<Vec<_>>();
    assert_eq!(world.ordered(), leave("SHUTDOWN"));
    let views = world.cluster.views().to_vec();
    world.restart();
    for id in world.ids() {
        world.exit(id);
    }
    world.pass(TIMEOUT * 2, &[]);
    assert!(stopped(&world.take()).is_some(), "the stop continues");
    assert_eq!(world.cluster.views(), views, "no group changes its holders or is given up");
}

fn world_ids() -> impl Iterator<Item = ServerId> {
    (0..3).map(ServerId)
}
