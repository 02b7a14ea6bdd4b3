//! Invariants of a coordinator under random inputs in random order.

use proptest::prelude::*;

use super::*;

/// A random input.
#[derive(Clone, Copy, Debug)]
enum Input {
    Beat(u16),
    Exit(u16),
    LinkLost(u16),
    Start(u16),
    Report(usize, bool),
    Store,
    StoreFails,
    Pass(u64),
    Unheard(u16),
    Heard,
    OrdersLost(u16),
    Restart,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => (0u16..4).prop_map(Input::Beat),
        1 => (0u16..4).prop_map(Input::Exit),
        1 => (0u16..4).prop_map(Input::LinkLost),
        3 => (0u16..4).prop_map(Input::Start),
        6 => (any::<usize>(), prop::bool::weighted(0.9)).prop_map(|(n, ok)| Input::Report(n, ok)),
        5 => Just(Input::Store),
        2 => Just(Input::StoreFails),
        3 => (1u64..400).prop_map(Input::Pass),
        1 => (0u16..4).prop_map(Input::Unheard),
        1 => Just(Input::Heard),
        1 => (0u16..4).prop_map(Input::OrdersLost),
        1 => Just(Input::Restart),
    ]
}

/// Checks every effect before it is carried out.
fn check(world: &mut World, highest: &mut [View]) {
    let durable = world.cluster.durable().clone();
    for effect in &world.effects {
        match effect {
            Effect::Order { order, .. } => {
                if let Some(view) = order.view() {
                    let known = &durable.views[usize::from(view.group.0)];
                    assert_eq!(view, known, "an order for a view that is not durable");
                }
            }
            Effect::Kill { member, .. } => {
                assert!(!durable.names(*member), "{member} is killed although a view names it");
            }
            _ => {}
        }
    }
    for (view, highest) in durable.views.iter().zip(highest) {
        assert!(view.version >= highest.version, "a version went back");
        let same = view.version == highest.version;
        assert!(!same || view == highest, "one version, two views");
        let was_lost = highest.version.0 > 0 && highest.primary.is_none();
        assert!(!was_lost || view == highest, "a lost group came back");
        *highest = *view;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn view_versions_only_grow_orders_follow_durable_views_and_no_holder_is_killed(
        inputs in prop::collection::vec(input(), 1..300)
    ) {
        let mut world = World::serving(4);
        world.keeps_stores = true;
        let mut highest = world.cluster.views().to_vec();
        for input in inputs {
            world.give(input);
            check(&mut world, &mut highest);
            world.collect();
            world.effects.clear();
        }
    }
}

impl World {
    fn give(&mut self, input: Input) {
        let sink = &mut self.effects;
        match input {
            Input::Beat(n) => {
                let id = ServerId(n);
                let beat = self.heartbeat(id);
                let sink = &mut self.effects;
                let _ = self.cluster.on_heartbeat(self.now, World::link(id), id, beat, sink);
            }
            Input::Exit(n) => {
                let member = self.cluster.member(ServerId(n));
                self.cluster.on_exited(self.now, member, sink);
            }
            Input::LinkLost(n) => {
                self.cluster.on_link_lost(self.now, World::link(ServerId(n)), ServerId(n), sink);
            }
            Input::Start(n) => {
                let started = self.started(ServerId(n));
                let link = World::link(ServerId(n));
                let sink = &mut self.effects;
                if self.cluster.on_started(self.now, link, &started, sink).is_ok() {
                    self.cluster.on_orders_connected(started.member, sink);
                }
            }
            Input::Report(n, is_ok) if !self.orders.is_empty() => {
                let (to, order) = self.orders.remove(n % self.orders.len());
                let view = order.view_version();
                let outcome = if is_ok { Ok(1) } else { Err("no".to_owned().into()) };
                let report = Report { id: order.id, view, outcome };
                let _ = self.cluster.on_report(self.now, to, report, sink);
            }
            Input::Report(..) => {}
            Input::Store => drop(self.store()),
            Input::StoreFails => {
                if let Some((number, _)) = self.stores.pop_front() {
                    self.cluster.on_store_failed(self.now, number, "no space", sink);
                }
            }
            Input::Pass(millis) => {
                self.now = self.now + Duration::from_millis(millis);
                self.cluster.on_timeout(self.now, sink);
            }
            Input::Unheard(n) => self.unheard.push(ServerId(n)),
            Input::Heard => self.unheard.clear(),
            Input::OrdersLost(n) => self.cluster.on_orders_lost(self.cluster.member(ServerId(n))),
            Input::Restart => self.restart(),
        }
    }
}
