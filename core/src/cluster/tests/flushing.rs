//! A flush of the whole cluster: orders, progress, failover.

use kv_protocol::control_message::{FlushReport, OrderKind};

use super::*;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(0);

impl World {
    fn flushing() -> World {
        let mut world = World::serving(3);
        world.cluster.on_flush(world.now, &mut world.effects).unwrap();
        world
    }

    /// Returns the receivers of the FLUSH orders since the last call, with their groups.
    fn flush_orders(&mut self) -> Vec<(ServerId, GroupId, OrderId)> {
        self.collect();
        let orders = self.orders.extract_if(.., |(_, order)| order.name() == "FLUSH");
        let orders = orders.map(|(to, order)| match order.kind {
            OrderKind::Flush(group, _) => (to.server, group, order.id),
            other => panic!("{other:?}"),
        });
        orders.collect()
    }

    /// Sends a heartbeat in which every primary of a server reports this progress.
    fn beat_with(&mut self, id: ServerId, flush: FlushReport) {
        let mut heartbeat = self.heartbeat(id);
        for replica in heartbeat.replicas.iter_mut().filter(|r| r.state.is_primary()) {
            replica.flush = flush;
        }
        let now = self.now;
        self.cluster.on_heartbeat(now, World::link(id), id, heartbeat, &mut self.effects).unwrap();
    }

    fn flush_totals(&self) -> (u64, usize) {
        let shards = self.cluster.flushed_shards().unwrap();
        let done = shards.iter().filter(|place| place.is_done).count();
        (shards.iter().map(|place| place.removed).sum(), done)
    }
}

fn progress(id: OrderId, removed: u64, is_done: bool) -> FlushReport {
    FlushReport { id, removed, is_done }
}

#[test]
fn every_primary_gets_the_order_until_it_reports_that_it_has_begun() {
    let mut world = World::flushing();
    let orders = world.flush_orders();
    let id = orders[0].2;
    assert_eq!(orders, [C, A, B].map(|to| (to, GroupId(to.0), id)));
    assert!(id.is_of(world.cluster.config().epoch));
    world.beat_with(A, progress(id, 5, false));
    world.pass(Duration::from_millis(1_100), &[]);
    world.beat_with(A, progress(id, 9, false));
    assert_eq!(world.flush_orders(), [C, B].map(|to| (to, GroupId(to.0), id)), "not A again");
    assert_eq!(world.flush_totals(), (18, 0), "two shards with 9 each");
    for to in [C, A, B] {
        world.beat_with(to, progress(id, 10, true));
    }
    assert_eq!(world.flush_totals(), (60, 6));
    world.cluster.end_flush();
    world.pass(Duration::from_secs(2), &[A, B, C]);
    assert_eq!(world.flush_orders(), []);
}

#[test]
fn reports_of_another_flush_and_of_no_primary_do_not_count() {
    let mut world = World::flushing();
    let id = world.flush_orders()[0].2;
    world.beat_with(A, progress(OrderId(id.0 - 1), 10, true));
    world.beat_with(B, progress(OrderId::default(), 10, true));
    let mut heartbeat = world.heartbeat(C);
    for replica in heartbeat.replicas.iter_mut().filter(|r| !r.state.is_primary()) {
        replica.flush = progress(id, 10, true);
    }
    let now = world.now;
    world.cluster.on_heartbeat(now, World::link(C), C, heartbeat, &mut world.effects).unwrap();
    assert_eq!(world.flush_totals(), (0, 0));
}

#[test]
fn after_a_failover_the_new_primary_gets_the_order_and_the_counts_add_up() {
    let mut world = World::flushing();
    let id = world.flush_orders()[0].2;
    for to in [C, A, B] {
        world.beat_with(to, progress(id, 10, to != A));
    }
    assert_eq!(world.flush_totals(), (60, 4));
    world.exit(A);
    assert_eq!(world.view(1).0, Some(2), "B is the primary of A's group");
    assert_eq!(world.flush_orders(), [(B, GroupId(1), id)]);
    // B is the primary of its own group too, with an equal report.
    world.beat_with(B, progress(id, 10, true));
    assert_eq!(world.flush_totals(), (80, 6), "B has removed the other 20 of A's group");
    let shards = world.cluster.flushed_shards().unwrap();
    let exact = shards.iter().filter(|place| place.is_exact).map(|place| place.group.0);
    assert_eq!(exact.collect::<Vec<_>>(), [0, 0, 2, 2]);
}

#[test]
fn a_flush_needs_a_cluster_that_serves_and_no_other_flush() {
    let mut effects = Vec::new();
    let mut young = World::new(3);
    let refused = young.cluster.on_flush(young.now, &mut effects);
    assert_eq!(refused, Err(FlushRefused::NotServing));
    let mut world = World::flushing();
    assert_eq!(world.cluster.on_flush(world.now, &mut effects), Err(FlushRefused::Running));
    world.cluster.end_flush();
    world.cluster.on_flush(world.now, &mut effects).unwrap();
    world.stop();
    assert!(world.cluster.flushed_shards().is_none(), "the stop ends the flush");
    let refused = world.cluster.on_flush(world.now, &mut effects);
    assert_eq!(refused, Err(FlushRefused::NotServing));
}

#[test]
fn a_shard_that_was_done_must_be_done_at_the_new_primary_too() {
    let mut world = World::flushing();
    let id = world.flush_orders()[0].2;
    let mut heartbeat = world.heartbeat(A);
    for replica in heartbeat.replicas.iter_mut().filter(|r| r.state.is_primary()) {
        replica.flush = progress(id, 10, replica.shard == ShardId(0));
    }
    let now = world.now;
    world.cluster.on_heartbeat(now, World::link(A), A, heartbeat, &mut world.effects).unwrap();
    assert_eq!(world.flush_totals(), (20, 1));
    world.exit(A);
    assert_eq!(world.flush_totals(), (20, 0), "the new primary removes later keys of both shards");
    world.beat_with(B, progress(id, 1, true));
    assert_eq!(world.flush_totals().1, 4, "both shards of two groups");
}
