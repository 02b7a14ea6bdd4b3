//! Places that move to other hosts while the cluster serves.

use kv_protocol::status::AlarmKind;

use super::*;

const C: ServerId = ServerId(0);
const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);

impl World {
    fn replace(&mut self, id: ServerId) -> Result<(), ReplaceRefused> {
        let given = self.cluster.on_replace(self.now, id, &mut self.effects);
        self.collect();
        given
    }

    /// Creates a cluster in which no process receives anything from A, so it is unknown whether A's process has ended.
    fn without_a() -> (World, Member) {
        let mut world = World::serving(3);
        let old = world.cluster.member(A);
        world.unheard = vec![A];
        world.pass(SILENCE * 4, &[B, C]);
        world.run(&[B, C]);
        assert_eq!((world.view(0).1, world.view(1).0), (None, Some(2)), "its groups continue");
        (world, old)
    }

    fn spawned(&mut self) -> Vec<Member> {
        self.seen.append(&mut self.effects);
        let spawned = self.seen.iter().filter_map(|effect| match effect {
            Effect::Spawn { member } => Some(*member),
            _ => None,
        });
        spawned.collect()
    }
}

#[test]
fn a_silent_process_is_replaced_without_proof_when_its_place_moves_to_another_host() {
    let (mut world, old) = World::without_a();
    world.pass(Duration::from_secs(60), &[B, C]);
    assert_eq!(world.spawned(), [], "without proof no process takes its place");
    world.replace(A).unwrap();
    let new = world.cluster.member(A);
    assert_ne!(new, old);
    assert_eq!(world.spawned(), [new]);
    assert!(!world.cluster.is_moving(A), "it has moved");

    world.unheard.clear();
    world.start_as(new);
    world.run(&[A, B, C]);
    world.run(&[A, B, C]);
    assert!(world.cluster.is_whole());
    // The old process reports again and is rejected.
    let started = Started { member: old, pid: 7, ..world.started(A) };
    let refused = world.cluster.on_started(world.now, LinkId(99), &started, &mut world.effects);
    assert!(matches!(refused, Err(StartedRefused::UnknownIncarnation { .. })), "{refused:?}");
}

#[test]
fn a_serving_process_leaves_before_the_move_and_never_dumps() {
    let mut world = World::serving(3);
    let (old, ids) = (world.cluster.member(A), world.ids());
    world.replace(A).unwrap();
    let orders = world.run(&ids);
    assert!(
        orders.contains(&(A, "SWITCH-PRIMARY")) && orders.contains(&(A, "SHUTDOWN")),
        "{orders:?}"
    );
    assert!(orders.iter().all(|(_, name)| !name.starts_with("DUMP")), "{orders:?}");
    assert_eq!(world.cluster.member(A), old, "it has not ended yet");
    world.cluster.on_left(world.now, old, &mut world.effects);
    world.run(&ids);
    world.run(&ids);
    assert_ne!(world.cluster.member(A), old);
    assert!(world.cluster.is_whole());
}

#[test]
fn a_place_is_not_filled_while_a_view_names_its_process() {
    let mut world = World::serving(3);
    let old = world.cluster.member(A);
    world.unheard = vec![A];
    // A is silent, but views still name it.
    world.watch(SILENCE + Duration::from_millis(20));
    world.replace(A).unwrap();
    for _ in 0..40 {
        world.pass(Duration::from_millis(50), &[B, C]);
        let is_named = world.cluster.durable().names(old);
        assert!(!(is_named && world.cluster.member(A) != old), "{:?}", world.cluster.views());
    }
    world.run(&[B, C]);
    assert_ne!(world.cluster.member(A), old);
}

#[test]
fn the_sole_holder_of_a_group_is_not_moved() {
    let mut world = World::serving(3);
    world.exit(A);
    let refused = world.cluster.may_replace(B);
    let sole = Err(ReplaceRefused::SoleHolder { server: B, group: GroupId(1) });
    assert_eq!(refused, sole, "as soon as the death of the other holder is known");
    world.run(&[B, C]);
    let refused = world.cluster.may_replace(B);
    assert_eq!(refused, Err(ReplaceRefused::SoleHolder { server: B, group: GroupId(1) }));
    // If the move is requested nevertheless, the process leaves once another one has a copy.
    let old = world.cluster.member(B);
    world.replace(B).unwrap();
    world.pass(Duration::from_secs(40), &[B, C]);
    assert_eq!((world.view(1).0, world.cluster.member(B)), (Some(2), old));
    assert_eq!(world.replace(ServerId(3)), Err(ReplaceRefused::NoSuchServer(ServerId(3), 3)));
    world.stop();
    assert_eq!(world.replace(A), Err(ReplaceRefused::NotServing));
    assert_eq!(World::new(3).replace(A), Err(ReplaceRefused::NotServing));
}

#[test]
fn a_move_outlives_the_coordinator() {
    let mut world = World::serving(3);
    let old = world.cluster.member(A);
    world.unheard = vec![A];
    world.watch(SILENCE + Duration::from_millis(20));
    world.replace(A).unwrap();
    assert_eq!(world.on_disk.as_ref().unwrap().moving, [A]);
    world.restart();
    for id in [B, C] {
        let started = world.started(id);
        world.start_as(started.member);
    }
    world.pass(SILENCE * 10, &[B, C]);
    world.run(&[B, C]);
    assert_ne!(world.cluster.member(A), old);
    assert!(world.on_disk.as_ref().unwrap().moving.is_empty());
}

#[test]
fn a_process_that_could_not_be_killed_is_killed_again_with_back_off_even_if_it_reports() {
    let (mut world, old) = World::without_a();
    let kills = |world: &mut World| {
        let kills = world.effects.extract_if(.., |effect| matches!(effect, Effect::Kill { .. }));
        kills.count()
    };
    world.pass(Duration::from_secs(120), &[B, C]);
    let in_vain = kills(&mut world);
    assert!((5..=10).contains(&in_vain), "{in_vain}");
    assert_eq!(world.cluster.recovery_step(A), Some(0), "its process must end first");

    // The host of A is back, and so is the process. The process was killed once, so it must end before another one
    // takes its place.
    world.unheard.clear();
    let started = world.started(A);
    world.cluster.on_started(world.now, World::link(A), &started, &mut world.effects).unwrap();
    world.pass(Duration::from_secs(60), &[A, B, C]);
    assert!(kills(&mut world) > 0);
    assert_eq!(world.cluster.member(A), old);
}

#[test]
fn a_host_that_does_not_respond_is_an_alarm_with_its_reason_until_it_does() {
    let (mut world, old) = World::without_a();
    let alarm = |world: &World| {
        let status = world.cluster.status(world.now, &[]);
        let mut alarms = status.alarms.into_iter();
        alarms.find(|alarm| alarm.kind == AlarmKind::HostUnreachable).map(|alarm| alarm.text)
    };
    assert_eq!(alarm(&world), None);
    world.cluster.note_host(world.now, old, Some("ssh: connect to host b: No route to host"));
    let text = alarm(&world).unwrap();
    assert!(text.contains("server 1 is silent"), "{text}");
    assert!(text.contains("No route to host") && text.contains("coord replace 1 HOST"), "{text}");
    world.cluster.note_host(world.now, old, None);
    assert_eq!(alarm(&world), None);
    world.cluster.note_host(world.now, old, Some("timed out"));
    world.exit(A);
    assert_eq!(alarm(&world), None, "its exit is a proof of death");
}

#[test]
fn a_move_waits_while_another_holder_is_silent_and_the_process_takes_over_as_usual() {
    let mut world = World::serving(3);
    let ids = world.ids();
    let old = world.cluster.member(A);
    world.replace(A).unwrap();
    // B, which holds group A as well, falls silent before A has left.
    world.unheard = vec![B];
    world.pass(SILENCE * 6, &[A, C]);
    world.run(&[A, C]);
    assert_eq!(world.view(1).0, Some(1), "A serves its group alone: {:?}", world.cluster.views());
    assert_eq!(world.view(1).1, None);
    assert_eq!(world.cluster.member(A), old);
    // B is back and gets its copies; then A leaves.
    world.unheard.clear();
    let started = world.started(B);
    world.cluster.on_started(world.now, World::link(B), &started, &mut world.effects).unwrap();
    for _ in 0..6 {
        world.run(&ids);
        world.pass(Duration::from_millis(500), &ids);
    }
    assert!(world.seen.contains(&Effect::Leaving { member: old, why: LeaveReason::Replaced }));
    world.cluster.on_left(world.now, old, &mut world.effects);
    world.run(&ids);
    assert_ne!(world.cluster.member(A), old);
}
