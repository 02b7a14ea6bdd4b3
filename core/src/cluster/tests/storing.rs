//! Failed and late stores, and their effects.

use kv_protocol::status::AlarmKind;

use super::*;
use crate::cluster::STORE_AGAIN;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(0);

impl World {
    /// Fails the store in progress.
    fn fail_store(&mut self) {
        self.collect();
        let (number, _) = self.stores.pop_front().expect("a store");
        self.cluster.on_store_failed(self.now, number, "no space", &mut self.effects);
        self.collect();
    }

    fn kinds(&self) -> Vec<AlarmKind> {
        let status = self.cluster.status(self.now, &[]);
        status.alarms.iter().map(|alarm| alarm.kind).collect()
    }

    /// Lets time pass, then delivers a heartbeat of each live server.
    fn tell_time(&mut self, passed: Duration, alive: &[ServerId]) {
        self.now = self.now + passed;
        alive.iter().for_each(|id| self.beat(*id));
        self.cluster.on_timeout(self.now, &mut self.effects);
        self.collect();
    }
}

#[test]
fn a_failed_store_announces_nothing_and_is_retried_after_its_back_off() {
    let mut world = World::serving(3);
    world.keeps_stores = true;
    world.exit(A);
    world.fail_store();
    assert_eq!(world.kinds(), [AlarmKind::StateNotStored]);
    assert!(world.ordered().iter().all(|(_, name)| *name == "EXITED"), "{:?}", world.ordered());
    assert!(world.cluster.next_timeout() <= Some(world.now + STORE_AGAIN));
    world.tell_time(STORE_AGAIN / 2, &[B, C]);
    assert!(world.stores.is_empty(), "it is too early");
    for _ in 0..3 {
        world.tell_time(STORE_AGAIN, &[B, C]);
        assert_eq!(world.stores.len(), 1, "the store is retried");
        world.fail_store();
    }
    world.tell_time(STORE_AGAIN, &[B, C]);
    world.keeps_stores = false;
    world.collect();
    assert_eq!(world.kinds(), []);
    assert!(world.ordered().contains(&(B, "TAKE-OVER")), "{:?}", world.ordered());
    world.run(&[A, B, C]);
    assert!(world.cluster.is_whole());
}

#[test]
fn a_decision_that_was_not_stored_is_made_again_from_current_facts() {
    let mut world = World::serving(3);
    world.keeps_stores = true;
    world.exit(A);
    let decided = |world: &mut World| {
        world.collect();
        let (_, state) = world.stores.front().expect("a store");
        state.views[1]
    };
    assert_eq!(decided(&mut world).primary, Some(world.cluster.member(B)), "B is to take over");
    world.fail_store();
    // B dies before the retry of the store.
    world.exit(B);
    assert!(world.stores.is_empty());
    world.tell_time(STORE_AGAIN, &[C]);
    assert_eq!(decided(&mut world).primary, None, "no dead process takes over");
}

#[test]
fn a_store_that_takes_long_is_an_alarm_until_it_is_done() {
    let mut world = World::serving(3);
    world.keeps_stores = true;
    world.exit(A);
    world.collect();
    let number = world.stores.front().expect("a store").0;
    world.cluster.on_store_late(world.now, number + 1, "another one", &mut world.effects);
    assert_eq!(world.kinds(), []);
    world.cluster.on_store_late(world.now, number, "it takes long", &mut world.effects);
    assert_eq!(world.kinds(), [AlarmKind::StateNotStored]);
    world.keeps_stores = false;
    world.collect();
    assert_eq!(world.kinds(), []);
    for (risk, expected) in
        [(Some("no room".to_owned()), vec![AlarmKind::StateAtRisk]), (None, vec![])]
    {
        world.cluster.note_store_risk(risk);
        assert_eq!(world.kinds(), expected);
    }
}

#[test]
fn data_stored_with_the_state_is_stored_even_without_a_decision() {
    let mut world = World::serving(3);
    world.keeps_stores = true;
    world.cluster.store_again(world.now, &mut world.effects);
    world.fail_store();
    assert!(world.stores.is_empty());
    world.tell_time(STORE_AGAIN, &[A, B, C]);
    assert_eq!(world.stores.len(), 1, "the store is retried");
    // The store in progress may have been written before this change.
    world.cluster.store_again(world.now, &mut world.effects);
    world.store();
    world.collect();
    assert_eq!(world.stores.len(), 1, "once more");
    world.store();
    world.collect();
    assert!(world.stores.is_empty(), "that is all");
}
