//! One verdict per server: the suspect of a complaint, and faults.

use super::*;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(0);
const ALL: [ServerId; 3] = [A, B, C];

fn faults(world: &World) -> usize {
    let told = world.seen.iter().chain(&world.effects);
    told.filter(|effect| matches!(effect, Effect::DoubleFault { .. })).count()
}

fn has_killed(world: &World) -> bool {
    let mut told = world.seen.iter().chain(&world.effects);
    told.any(|effect| matches!(effect, Effect::Kill { .. }))
}

/// Returns a serving cluster that stops at a second fault.
fn serving(servers: u16) -> World {
    let mut world = World::serving(servers);
    world.cluster.config.on_double_fault = DoubleFault::Shutdown;
    world.take();
    world
}

#[test]
fn a_hung_server_is_the_only_suspect_and_its_partners_stay_even_if_it_responds() {
    for responses in [false, true] {
        let mut world = serving(3);
        let before = world.cluster.member(A);
        world.unheard = vec![A];
        let others = if responses { &ALL[..] } else { &[B, C] };
        for _ in 0..12 {
            world.now = world.now + Duration::from_millis(50);
            ALL.into_iter().for_each(|id| world.beat(id));
            world.respond_to_probes(others);
            assert_eq!(world.cluster.member(A), before);
            assert!(world.cluster.views()[0].primary == Some(world.cluster.member(C)));
            let (primary, other, _) = world.view(1);
            assert!(primary == Some(2) || other == Some(2), "B stays");
        }
        assert_eq!(world.view(1).0, Some(2), "{responses}");
        assert_eq!(world.cluster.views()[0].secondary(), None, "{responses}");
        assert_eq!(world.view(2), (Some(2), Some(0), 1), "no group of A's");
        // The process resumes, and comes back as the same incarnation.
        world.unheard.clear();
        for _ in 0..4 {
            world.run(&ALL);
        }
        assert!(world.cluster.is_whole(), "{:?}", world.cluster.views());
        assert_eq!(world.cluster.member(A), before);
        assert!(!has_killed(&world) && faults(&world) == 0);
        assert_eq!(world.cluster.durable().recovering, None, "it was no fault");
    }
}

#[test]
fn late_messages_at_another_partner_are_evidence_before_it_complains() {
    let mut world = serving(3);
    // B, the secondary of A's own group, is the first to report a complaint. C has received nothing from A for
    // longer than a vote tolerates.
    world.silences = BTreeMap::from([((B, A), 630), ((C, A), 400)]);
    [C, A, B].into_iter().for_each(|id| world.beat(id));
    assert_eq!(world.ordered(), [(B, "PROBE")], "the primary is the suspect");
}

#[test]
fn a_server_that_was_judged_in_one_group_is_the_suspect_in_the_other() {
    let mut world = serving(3);
    world.silences = BTreeMap::from([((C, A), 900), ((B, A), 400)]);
    for _ in 0..6 {
        world.now = world.now + Duration::from_millis(50);
        [B, A, C].into_iter().for_each(|id| world.beat(id));
        world.respond_to_probes(&ALL);
    }
    assert_ne!(world.cluster.views()[0].secondary(), Some(world.cluster.member(A)));
    // Group 0 now has only one holder, so no complaint can come from it.
    world.silences = BTreeMap::from([((B, A), 900)]);
    world.orders.clear();
    ALL.into_iter().for_each(|id| world.beat(id));
    assert!(world.ordered().contains(&(B, "PROBE")), "{:?}", world.orders);
    assert!(!world.ordered().contains(&(A, "PROBE")));
}

#[test]
fn a_server_that_complains_of_a_partner_that_others_receive_well_is_the_suspect() {
    // A reports a complaint about B. C receives messages from B, and B receives messages from A.
    let mut world = serving(3);
    world.silences = BTreeMap::from([((A, B), 900)]);
    [C, B, A].into_iter().for_each(|id| world.beat(id));
    assert_eq!(world.ordered(), [(B, "PROBE")]);
    world.pass(Duration::from_millis(300), &ALL);
    assert_eq!(world.view(1).0, Some(2), "B takes over");
    assert_eq!(faults(&world), 0);
    // The secondary reports the same complaint: the primary stays.
    let mut world = serving(3);
    world.silences = BTreeMap::from([((B, A), 900)]);
    world.pass(Duration::from_millis(300), &ALL);
    assert_eq!(world.view(1).0, Some(1));
}

#[test]
fn two_servers_hung_at_the_same_time_do_not_cost_a_third_its_place() {
    let mut world = serving(5);
    let (x, y) = (ServerId(1), ServerId(2));
    // Neither of the two hung servers reports a complaint; the other holders of their groups do.
    let hears_not = |who: u16, whom: u16| ((ServerId(who), ServerId(whom)), 900);
    world.silences = BTreeMap::from([hears_not(0, 1), hears_not(3, 2)]);
    world.silences.extend([((x, y), 500), ((y, x), 500)]);
    let all = world.ids();
    for _ in 0..12 {
        world.now = world.now + Duration::from_millis(50);
        all.iter().for_each(|id| world.beat(*id));
        world.respond_to_probes(&[ServerId(0), ServerId(3), ServerId(4)]);
    }
    assert_eq!(world.view(0).0, Some(0));
    assert_eq!(world.view(2).0, Some(3));
    assert_eq!(world.view(1), (Some(1), Some(2), 1), "no live member could take the group");
    assert_eq!(faults(&world), 0);
}

#[test]
fn a_slow_server_and_a_dead_one_are_one_fault_and_two_once_the_slow_one_dies() {
    let mut world = serving(5);
    let (slow, dead) = (ServerId(1), ServerId(3));
    world.unheard = vec![slow];
    let all = world.ids();
    world.pass(SILENCE, &all);
    assert_eq!(world.view(1).0, Some(2), "it was removed");
    world.exit(dead);
    assert_eq!(faults(&world), 0, "one of them is alive");
    assert_eq!(world.cluster.durable().recovering, Some(dead));
    world.exit(slow);
    assert_eq!(faults(&world), 1);
}

#[test]
fn the_death_of_the_last_holder_is_a_second_fault_even_if_the_other_was_only_slow() {
    let mut world = serving(3);
    world.unheard = vec![A];
    world.pass(SILENCE, &ALL);
    assert_eq!(world.cluster.views()[1].secondary(), None);
    world.exit(B);
    assert_eq!(world.view(1).0, None, "it is LOST");
    let second = Effect::DoubleFault { first: A, second: B };
    assert!(
        world.effects.contains(&second),
        "the remaining data must be dumped: {:?}",
        world.effects
    );
}

#[test]
fn a_secondary_that_cannot_follow_is_removed_while_it_reports_and_retried_after_a_back_off() {
    let mut world = serving(3);
    world.following = BTreeMap::from([(B, Following::OutOfMemory)]);
    let start = world.now;
    while world.view(1) == (Some(1), Some(2), 1) {
        world.pass(Duration::from_millis(50), &ALL);
        assert!(world.now.since(start) < Duration::from_millis(500), "too late");
    }
    let removed = world.now;
    let told = |effect: &Effect| matches!(effect, Effect::CannotFollow { server: B, .. });
    assert!(world.effects.iter().any(told), "{:?}", world.effects);
    assert_eq!(world.view(1), (Some(1), None, 2));
    let alarms = world.cluster.status(world.now, &[]).alarms;
    assert!(alarms.iter().any(|alarm| alarm.text.contains("no memory")), "{alarms:?}");
    world.following.clear();
    while world.view(1).1.is_none() {
        world.pass(Duration::from_millis(50), &ALL);
    }
    assert!(world.now.since(removed) >= Duration::from_secs(1), "not at once");
    for _ in 0..3 {
        world.run(&ALL);
    }
    assert!(world.cluster.is_whole() && faults(&world) == 0 && !has_killed(&world));
    assert!(world.cluster.status(world.now, &[]).alarms.is_empty());
}

#[test]
fn a_secondary_that_follows_again_before_its_primary_responds_stays() {
    let mut world = serving(3);
    world.following = BTreeMap::from([(B, Following::OutOfMemory)]);
    ALL.into_iter().for_each(|id| world.beat(id));
    assert_eq!(world.ordered(), [(A, "PROBE")]);
    world.following.clear();
    world.pass(SILENCE, &ALL);
    assert_eq!(world.view(1), (Some(1), Some(2), 1));
}
