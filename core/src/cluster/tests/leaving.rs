//! Servers that leave while others continue.

use kv_protocol::status::GroupCondition;

use super::*;

fn places(world: &World, group: u16) -> (Option<u16>, Option<u16>) {
    let (primary, other, _) = world.view(group);
    (primary, other)
}

/// Filters the orders for DRAIN, dumps and SHUTDOWN.
fn ends(orders: &[(ServerId, &'static str)]) -> Vec<(ServerId, &'static str)> {
    let is_of_end = |name: &str| name.starts_with("D") && name != "DROP-SECONDARY";
    orders.iter().copied().filter(|(_, name)| is_of_end(name) || *name == "SHUTDOWN").collect()
}

impl World {
    /// Delivers the request to leave of a server that received a stop signal.
    fn ask_to_leave(&mut self, id: ServerId) {
        let link = World::link(id);
        self.cluster.on_drain_request(self.now, link, id, &mut self.effects).unwrap();
        self.collect();
    }

    /// Makes the process of a server exit in an orderly way, with all its data in complete dumps.
    fn leave(&mut self, id: ServerId) {
        let member = self.cluster.member(id);
        self.cluster.on_left(self.now, member, &mut self.effects);
        self.collect();
    }

    fn holders(&self, group: u16) -> Vec<Member> {
        self.cluster.durable().holders(GroupId(group)).collect()
    }

    fn is_stopping(&self) -> bool {
        self.cluster.state() == ClusterState::Stopping
    }
}

#[test]
fn a_server_that_requests_to_leave_hands_its_groups_over_and_is_then_replaced() {
    let mut world = World::serving(3);
    let (id, ids) = (ServerId(1), world.ids());
    let member = world.cluster.member(id);
    world.ask_to_leave(id);
    world.ask_to_leave(id);
    let orders = world.run(&ids);
    assert_eq!(
        places(&world, 0),
        (Some(0), None),
        "the holder that stays has responded and is alone"
    );
    assert_eq!(places(&world, 1), (Some(2), None), "handed over, then dropped");
    assert_eq!(places(&world, 2), (Some(2), Some(0)));
    let hand_over = orders.iter().position(|order| *order == (id, "SWITCH-PRIMARY")).unwrap();
    let leave = orders.iter().rposition(|order| *order == (id, "LEAVE")).unwrap();
    let end = orders.iter().position(|order| *order == (id, "SHUTDOWN")).unwrap();
    assert!(hand_over < leave && leave < end, "{orders:?}");
    assert_eq!(
        ends(&orders),
        [(id, "SHUTDOWN")],
        "its groups have other holders: nothing is dumped"
    );
    world.leave(id);
    let effects = world.take();
    let next = world.cluster.member(id);
    assert!(effects.contains(&Effect::Spawn { member: next }), "{effects:?}");
    let leaving = Effect::Leaving { member, why: LeaveReason::StopSignal };
    assert!(world.seen.contains(&leaving) && next != member);
    assert!(!world.seen.iter().chain(&effects).any(|e| matches!(e, Effect::DoubleFault { .. })));
    assert_eq!(world.cluster.state(), ClusterState::Degraded);
    world.start_as(next);
    world.run(&ids);
    assert_eq!(world.copies(), [2, 2, 2]);
}

#[test]
fn the_member_that_stays_responds_before_the_leaver_is_dropped() {
    let mut world = World::serving(3);
    let (id, ids) = (ServerId(1), world.ids());
    world.ask_to_leave(id);
    // Server 0 reports, but its executors do not respond.
    for _ in 0..40 {
        world.now = world.now + Duration::from_millis(50);
        world.respond_to_probes(&ids[1..]);
        ids.iter().for_each(|&id| world.beat(id));
        world.cluster.on_timeout(world.now, &mut world.effects);
        world.collect();
    }
    assert_eq!(places(&world, 0), (Some(0), Some(1)), "it may have just died");
    world.pass(Duration::from_millis(200), &ids);
    assert_eq!(places(&world, 0), (Some(0), None));
}

#[test]
fn a_leaver_wins_no_inquiry_and_gets_no_group() {
    // The leaver responds to its probe and reports a complaint about the primary. The primary reports one about the
    // leaver.
    let mut world = World::serving(3);
    let (id, ids) = (ServerId(1), world.ids());
    world.unheard = vec![ServerId(0), id];
    world.ask_to_leave(id);
    for _ in 0..60 {
        world.now = world.now + Duration::from_millis(50);
        world.respond_to_probes(&ids[1..]);
        ids.iter().for_each(|&id| world.beat(id));
        world.cluster.on_timeout(world.now, &mut world.effects);
        world.collect();
    }
    assert_eq!(places(&world, 0), (Some(0), Some(1)), "the other holder continues");
    // No server receives messages of server 0, and only the leaver is left to vote.
    let mut world = World::serving(3);
    world.unheard = vec![ServerId(0)];
    world.ask_to_leave(id);
    world.pass(Duration::from_secs(3), &ids[1..]);
    assert_eq!(places(&world, 0), (Some(0), Some(1)), "no member is removed on its report");
    // After the proof of death the leaver is the only holder of the data. It waits for another one.
    world.exit(ServerId(0));
    world.pass(Duration::from_millis(100), &ids[1..]);
    assert_eq!(places(&world, 0), (Some(1), None));
    assert_eq!(ends(&world.ordered()), []);
}

#[test]
fn a_last_holder_waits_for_a_successor_with_a_timeout_in_coordinator_awake_time() {
    let mut world = World::serving(3);
    let (id, alive) = (ServerId(1), [ServerId(1), ServerId(2)]);
    world.exit(ServerId(0));
    world.run(&alive);
    assert_eq!(places(&world, 0), (Some(1), None));
    world.ask_to_leave(id);
    world.run(&alive);
    world.now = world.now + LEAVE_TIMEOUT * 3;
    world.run(&alive);
    assert_eq!(ends(&world.ordered()), [], "time in which the coordinator was suspended");
    // The process that was spawned at place 0 exits, and another one is spawned.
    world.exit(ServerId(0));
    world.run(&alive);
    // A new process takes the place: it gets its copy, and the group is handed over to it.
    let next = world.cluster.member(ServerId(0));
    world.start_as(next);
    let orders = [world.run(&world.ids()), world.run(&world.ids())].concat();
    assert_eq!(ends(&orders), [(id, "SHUTDOWN")], "{orders:?}");
    assert_eq!(places(&world, 0), (Some(0), None));
}

#[test]
fn a_group_whose_last_holder_has_left_in_order_rests_in_its_dump_and_is_not_lost() {
    let mut world = World::serving(3);
    let (id, alive) = (ServerId(1), [ServerId(1), ServerId(2)]);
    let member = world.cluster.member(id);
    world.exit(ServerId(0));
    world.run(&alive);
    world.ask_to_leave(id);
    world.run(&alive);
    world.pass(LEAVE_TIMEOUT, &alive);
    world.pass(Duration::from_millis(300), &alive);
    let orders = world.run(&alive);
    let dumps = [(id, "DRAIN"), (id, "DUMP-SECONDARY"), (id, "SHUTDOWN")];
    assert_eq!(ends(&orders), dumps, "its own group is at server 2");
    world.leave(id);
    assert_eq!(places(&world, 0), (Some(1), None));
    assert_eq!(world.holders(0), [member]);
    let effects = world.take();
    assert!(!effects.iter().any(|e| matches!(e, Effect::DoubleFault { .. })), "{effects:?}");
    // Its place is filled again, and its other group has two copies. No server gets the group.
    let next = world.cluster.member(id);
    assert!(effects.contains(&Effect::Spawn { member: next }) && next != member, "{effects:?}");
    world.start_as(next);
    world.run(&alive);
    assert_eq!(places(&world, 1), (Some(1), Some(2)));
    assert_eq!((places(&world, 0), world.holders(0)), ((Some(1), None), vec![member]));
    let condition = |world: &World| world.cluster.condition(&world.cluster.views()[0]);
    assert_eq!(condition(&world), GroupCondition::Unreachable);
    assert!(!world.cluster.is_whole());
    // Another coordinator, which did not observe the exit, starts from the stored state.
    world.restart();
    for &id in &alive {
        world.start(id);
    }
    world.pass(Duration::from_secs(3), &alive);
    assert_eq!((places(&world, 0), world.holders(0)), ((Some(1), None), vec![member]));
}

#[test]
fn simultaneous_requests_of_all_servers_to_leave_stop_the_cluster_with_dumps() {
    for apart in [0, 20, 60, 150] {
        let mut world = World::serving(3);
        let ids = world.ids();
        for &id in &ids {
            world.ask_to_leave(id);
            world.pass(Duration::from_millis(apart), &ids);
        }
        assert!(world.is_stopping());
        let orders = world.run(&ids);
        let count = |wanted| orders.iter().filter(|(_, name)| *name == wanted).count();
        assert_eq!(["DRAIN", "DUMP-PRIMARY", "DUMP-SECONDARY", "SHUTDOWN"].map(count), [3; 4]);
        for group in 0..3 {
            let home = [Some(group), Some((group + 1) % 3)];
            let (primary, other) = places(&world, group);
            assert!(home.contains(&primary) && (other.is_none() || home.contains(&other)));
            // The first server has not begun to hand over its groups yet.
            assert!(apart > 60 || [primary, other] == home, "{apart} ms apart");
        }
        ids.iter().for_each(|&id| world.leave(id));
        let effects = [world.take(), std::mem::take(&mut world.seen)].concat();
        assert_eq!(stopped(&effects), Some(&StopOutcome::default()), "{apart} ms apart");
    }
}

#[test]
fn of_two_leaving_neighbours_the_second_waits_for_the_successor_of_the_first() {
    let mut world = World::serving(3);
    let (first, second, ids) = (ServerId(1), ServerId(2), world.ids());
    world.ask_to_leave(first);
    world.ask_to_leave(second);
    let orders = world.run(&ids);
    assert_eq!(ends(&orders), [(first, "SHUTDOWN")]);
    assert_eq!(places(&world, 1), (Some(2), None));
    world.leave(first);
    let orders = [world.run(&ids), world.run(&ids)].concat();
    assert_eq!(ends(&orders), [(second, "SHUTDOWN")]);
    assert_eq!(places(&world, 1), (Some(1), None));
    assert!(!world.is_stopping());
}

#[test]
fn exits_after_complete_dumps_without_orders_are_no_faults_and_end_the_cluster_in_order() {
    for last_by_proof in [true, false] {
        let mut world = World::serving(3);
        world.cluster.config.on_double_fault = DoubleFault::Shutdown;
        let members: Vec<Member> = world.ids().iter().map(|&id| world.cluster.member(id)).collect();
        // The servers are silent, and one exit after the other is detected.
        world.watch(SILENCE * 2);
        for id in world.ids() {
            if id == ServerId(2) && last_by_proof {
                world.watch(Duration::from_secs(1));
            }
            world.leave(id);
        }
        let effects = world.take();
        assert!(!effects.iter().any(|e| matches!(e, Effect::DoubleFault { .. })), "{effects:?}");
        assert!(effects.contains(&Effect::AllLeave), "{effects:?}");
        assert!(stopped(&effects).is_some(), "{effects:?}");
        for group in 0..3 {
            let home = [usize::from(group), usize::from((group + 1) % 3)].map(|n| members[n]);
            let holders = world.holders(group);
            assert!(holders.iter().all(|holder| home.contains(holder)), "{holders:?}");
            assert!(!holders.is_empty(), "the dumps of at least one holder count");
        }
    }
}

#[test]
fn a_holder_that_has_left_is_replaced_by_a_live_one_and_both_count_until_then() {
    let mut world = World::serving(3);
    let (left, silent) = (ServerId(0), ServerId(1));
    let both = [left, silent].map(|id| world.cluster.member(id));
    world.pass(SILENCE * 2, &[ServerId(0), ServerId(2)]);
    let version = world.view(0).2;
    // The silent holder was not removed before, because the other holder received its messages.
    assert_eq!(version, 1);
    world.leave(left);
    world.pass(Duration::from_millis(300), &[ServerId(2)]);
    assert_eq!(world.holders(0), both, "the silent holder may be dead, and its copy lost");
    let mut lost = world;
    // The silent holder reports again and continues to serve.
    let mut world = lost_to(&mut lost, |world| world.beat(silent));
    assert_eq!(places(&world, 0), (Some(1), None));
    assert!(world.take().iter().all(|e| !matches!(e, Effect::DoubleFault { .. })));
}

#[test]
fn a_leaver_with_an_unknown_exit_may_have_the_only_copy_while_the_other_holder_is_silent() {
    let mut world = World::serving(3);
    let (leaver, silent) = (ServerId(0), ServerId(1));
    let both = [leaver, silent].map(|id| world.cluster.member(id));
    world.pass(SILENCE * 2, &[leaver, ServerId(2)]);
    world.ask_to_leave(leaver);
    world.exit(leaver);
    world.pass(Duration::from_millis(300), &[ServerId(2)]);
    assert_eq!(world.holders(0), both, "the silent holder may be dead, and the dump the only copy");
    world.beat(silent);
    world.pass(Duration::from_millis(300), &[silent, ServerId(2)]);
    assert_eq!(places(&world, 0).0, Some(1));
}

/// Runs an action on a world, and everything that follows from it. Returns this world and leaves a new one in its
/// place.
fn lost_to(world: &mut World, act: impl FnOnce(&mut World)) -> World {
    act(world);
    world.pass(Duration::from_millis(100), &[ServerId(1), ServerId(2)]);
    std::mem::replace(world, World::new(3))
}

#[test]
fn both_of_two_lost_last_holders_are_stored() {
    let mut world = World::serving(3);
    let both = [ServerId(0), ServerId(1)].map(|id| world.cluster.member(id));
    world.watch(SILENCE * 2);
    world.pass(Duration::from_millis(50), &[ServerId(2)]);
    world.leave(ServerId(0));
    world.exit(ServerId(1));
    world.pass(Duration::from_millis(50), &[ServerId(2)]);
    assert_eq!(
        places(&world, 0),
        (Some(0), Some(1)),
        "the dump of the first holder is complete: the group rests"
    );
    assert_eq!(world.holders(0), both);
}

#[test]
fn a_death_of_a_last_holder_after_a_leave_is_a_second_fault() {
    let mut world = World::serving(3);
    let (id, ids) = (ServerId(1), world.ids());
    world.ask_to_leave(id);
    world.run(&ids);
    world.leave(id);
    world.exit(ServerId(0));
    assert_eq!(places(&world, 0), (None, None));
    let effects = world.take();
    let fault = Effect::DoubleFault { first: id, second: ServerId(0) };
    assert!(effects.contains(&fault), "{effects:?}");
}

#[test]
fn a_server_told_to_stop_before_a_coordinator_restart_repeats_its_request() {
    let mut world = World::serving(3);
    let (id, ids) = (ServerId(1), world.ids());
    world.ask_to_leave(id);
    world.restart();
    for &id in &ids {
        world.start(id);
        world.beat(id);
    }
    world.ask_to_leave(id);
    let orders = world.run(&ids);
    assert_eq!(ends(&orders), [(id, "SHUTDOWN")]);
}

#[test]
fn last_holders_of_a_loss_that_was_not_stored_are_withdrawn_with_it() {
    let mut world = World::serving(3);
    world.cluster.config.on_double_fault = DoubleFault::Isolate;
    let alive = [ServerId(1), ServerId(2)];
    world.exit(ServerId(0));
    world.run(&alive);
    world.keeps_stores = true;
    world.exit(ServerId(1));
    let (number, _) = world.stores.pop_front().expect("the loss of group 0 is stored");
    world.cluster.on_store_failed(world.now, number, "no space", &mut world.effects);
    assert!(!world.cluster.memory.decided.rests(GroupId(0)), "no exit was orderly");
    world.keeps_stores = false;
    world.pass(Duration::from_secs(1), &alive[1..]);
    assert_eq!(places(&world, 0), (None, None));
}
