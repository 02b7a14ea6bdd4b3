//! The start of the ring, failure detection, and the resulting orders and maps.

use kv_protocol::control_message::ViewOrder;

use super::*;

#[test]
fn rings_of_three_to_seven_connect_every_server_to_its_successor() {
    for servers in 3..=7 {
        let mut world = World::new(servers);
        for id in world.ids() {
            assert!(world.orders.is_empty(), "no order before the last has started");
            world.start(id);
        }
        for (to, order) in world.orders.clone() {
            let OrderKind::View(ViewOrder { view, other, .. }) = order.kind else {
                panic!("{} at the start", order.name());
            };
            let successor = to.server.successor(servers);
            assert_eq!(view.group, to.server.home_group());
            assert_eq!(view.version, ViewVersion(1));
            assert_eq!(view.primary, Some(to));
            assert_eq!(view.secondary(), Some(world.cluster.member(successor)));
            assert_eq!(order.name(), "SET-SECONDARY");
            assert_eq!(other.unwrap().port(), 4_000 + successor.0);
        }
        assert_eq!(world.orders.len(), usize::from(servers));
        assert_eq!(world.cluster.state(), ClusterState::Starting);
        world.report_all();
        assert_eq!(world.take().last(), Some(&Effect::Serving));
        assert_eq!(world.cluster.state(), ClusterState::Serving);
        assert_eq!(world.copies(), vec![2; usize::from(servers)]);
    }
}

#[test]
fn the_map_names_servers_only_once_they_have_started() {
    let mut world = World::new(3);
    world.start(ServerId(1));
    let map = world.cluster.map();
    assert_eq!(map.servers[0].clients, None);
    assert_eq!(map.servers[0].incarnation, Incarnation(0));
    assert_eq!(map.servers[1].clients.unwrap().port(), 3_001);
    assert_eq!(map.servers[1].state, ServerState::Up);
    assert!(map.views.iter().all(|view| view.version == ViewVersion(0) && view.primary.is_none()));
}

#[test]
fn clients_get_no_map_before_every_holder_has_its_first_view() {
    let mut world = World::new(3);
    for id in world.ids() {
        world.start(id);
    }
    let is_hidden =
        |world: &World| world.cluster.map().views.iter().all(|view| view.version == ViewVersion(0));
    world.report(ServerId(0), Ok(0));
    world.report(ServerId(1), Ok(0));
    // A coordinator that takes over now continues the start. The death of a server still fails the start, because
    // there is no data to lose yet.
    world.restart();
    for id in world.ids() {
        world.start(id);
    }
    assert!(is_hidden(&world) && !world.cluster.has_served());
    world.keeps_stores = true;
    world.report_all();
    assert!(is_hidden(&world), "`has_served` stays durable");
    world.store();
    assert!(world.take().contains(&Effect::Serving));
    assert!(!is_hidden(&world));
}

#[test]
fn reports_of_unknown_processes_are_rejected_with_a_reason() {
    let mut world = World::serving(3);
    let started = world.started(ServerId(1));
    let no_one = Member { server: ServerId(3), ..started.member };
    let by_hand = Member { incarnation: Incarnation(1), ..started.member };
    for (wrong, words) in [
        (Started { cluster: ClusterId(8), ..started }, "this is cluster"),
        (Started { member: no_one, ..started }, "no server 3 in a ring of 3"),
        (Started { member: by_hand, ..started }, "not started by this coordinator"),
        (Started { shards: 4, ..started }, "runs with --shards 4, the cluster with --shards 2"),
        (Started { clients_port: 1, ..started }, "already reported another process id"),
        (
            Started { epoch: Epoch { number: 2, boot: BootId(1) }, ..started },
            "a coordinator of epoch 2",
        ),
    ] {
        let before = format!("{:?}", world.cluster);
        let refused = world
            .cluster
            .on_started(world.now, LinkId(77), &wrong, &mut world.effects)
            .unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
        assert_eq!(format!("{:?}", world.cluster), before, "{words}: a refusal changes nothing");
    }
}

#[test]
fn a_silent_server_is_down_and_its_groups_have_one_copy() {
    let mut world = World::serving(3);
    world.pass(SILENCE, &[ServerId(0), ServerId(2)]);
    assert_eq!(world.take(), [world.down(ServerId(1), DownCause::Silent)]);
    assert_eq!(world.state(ServerId(1)), ServerState::Down);
    assert_eq!(world.copies(), [1, 1, 2]);
    assert_eq!(world.cluster.state(), ClusterState::Degraded);
}

#[test]
fn a_silent_server_is_up_again_when_it_reports() {
    let mut world = World::serving(3);
    world.pass(SILENCE, &[ServerId(0), ServerId(2)]);
    world.take();
    world.beat(ServerId(1));
    let member = world.cluster.member(ServerId(1));
    assert_eq!(world.take(), [Effect::Back { member }]);
    assert_eq!(world.cluster.state(), ClusterState::Serving);
}

#[test]
fn a_repeated_started_does_not_replace_the_link_of_a_reporting_server() {
    let mut world = World::serving(3);
    let id = ServerId(2);
    let started = world.started(id);
    let refused = world.cluster.on_started(world.now, LinkId(50), &started, &mut world.effects);
    assert!(matches!(refused, Err(StartedRefused::Linked { .. })), "{refused:?}");
    world.beat(id);
    assert_eq!(world.take(), []);
}

#[test]
fn the_end_of_a_link_is_detected_at_once_and_that_of_a_replaced_link_is_ignored() {
    let mut world = World::serving(3);
    let id = ServerId(2);
    let started = world.started(id);
    world.pass(SILENCE, &[ServerId(0), ServerId(1)]);
    assert_eq!(world.state(id), ServerState::Down);
    world.cluster.on_started(world.now, LinkId(50), &started, &mut world.effects).unwrap();
    world.take();
    world.cluster.on_link_lost(world.now, World::link(id), id, &mut world.effects);
    assert_eq!(world.take(), []);
    world.cluster.on_link_lost(world.now, LinkId(50), id, &mut world.effects);
    assert_eq!(world.take(), [world.down(id, DownCause::LinkLost)]);
}

#[test]
fn an_exited_process_stays_down_whatever_messages_arrive_in_its_name() {
    let mut world = World::serving(3);
    world.keeps_stores = true; // So no other process takes its place.
    let id = ServerId(0);
    world.cluster.on_link_lost(world.now, World::link(id), id, &mut world.effects);
    world.exit(id);
    world.exit(id);
    let down = [world.down(id, DownCause::LinkLost), world.down(id, DownCause::Exited)];
    assert_eq!(world.take(), down);
    let refused =
        world.cluster.on_started(world.now, LinkId(9), &world.started(id), &mut world.effects);
    assert!(matches!(refused, Err(StartedRefused::Exited { .. })));
    let beat = world.heartbeat(id);
    let ignored =
        world.cluster.on_heartbeat(world.now, World::link(id), id, beat, &mut world.effects);
    assert_eq!(ignored, Err(Ignored::OldLink));
    assert_eq!(world.state(id), ServerState::Down);
}

#[test]
fn impossible_heartbeats_change_nothing() {
    let mut world = World::serving(3);
    let replica = ReplicaReport {
        group: GroupId(0),
        shard: ShardId(0),
        state: ReplicaState::Active,
        silent_ms: 0,
        following: Default::default(),
        longest_gap_ms: 0,
        used_bytes: 0,
        content_bytes: 0,
        copied: 0,
        copied_bytes: 0,
        flush: Default::default(),
        view: ViewVersion(1),
        last: SequenceNumber(0),
        committed: SequenceNumber(0),
        entries: 5,
        bytes: 6,
        connected: true,
    };
    let good = Heartbeat { replicas: vec![replica], ..world.heartbeat(ServerId(0)) };
    let with = |replica: ReplicaReport| Heartbeat { replicas: vec![replica], ..good.clone() };
    for (wrong, expected) in [
        (
            Heartbeat { incarnation: Incarnation(1), ..good.clone() },
            Ignored::OtherIncarnation { named: Incarnation(1), current: good.incarnation },
        ),
        (
            Heartbeat { epoch: Epoch { number: 2, boot: BootId(0) }, ..good.clone() },
            Ignored::Impossible("an epoch"),
        ),
        (with(ReplicaReport { group: GroupId(3), ..replica }), Ignored::Impossible("a group")),
        (with(ReplicaReport { shard: ShardId(2), ..replica }), Ignored::Impossible("a shard")),
        (
            with(ReplicaReport { view: ViewVersion(u64::MAX), ..replica }),
            Ignored::Impossible("a view"),
        ),
    ] {
        let link = World::link(ServerId(0));
        let got = world.cluster.on_heartbeat(at(400), link, ServerId(0), wrong, &mut world.effects);
        assert_eq!(got, Err(expected));
    }
    world.pass(SILENCE, &[ServerId(1), ServerId(2)]);
    assert_eq!(world.take(), [world.down(ServerId(0), DownCause::Silent)]);

    let link = World::link(ServerId(0));
    world.cluster.on_heartbeat(world.now, link, ServerId(0), good, &mut world.effects).unwrap();
    let status = world.cluster.status(world.now, &["here".into()]);
    assert_eq!(status.servers[0].primary_entries, 5);
    assert_eq!(status.servers[0].host, "here");
    assert_eq!((status.groups[0].entries, status.groups[0].bytes), (5, 6));
}

#[test]
fn a_broken_stream_reduces_the_copies_only_when_reported_twice() {
    let mut world = World::serving(3);
    let mut beat = world.heartbeat(ServerId(0));
    beat.replicas.clear();
    beat.replicas.push(ReplicaReport {
        group: GroupId(0),
        shard: ShardId(0),
        state: ReplicaState::Active,
        silent_ms: 0,
        following: Default::default(),
        longest_gap_ms: 0,
        used_bytes: 0,
        content_bytes: 0,
        copied: 0,
        copied_bytes: 0,
        flush: Default::default(),
        view: ViewVersion(1),
        last: SequenceNumber(0),
        committed: SequenceNumber(0),
        entries: u64::MAX,
        bytes: u64::MAX,
        connected: false,
    });
    let link = World::link(ServerId(0));
    for copies in [2, 1] {
        let beat = beat.clone();
        world.cluster.on_heartbeat(world.now, link, ServerId(0), beat, &mut world.effects).unwrap();
        assert_eq!(world.copies(), [copies, 2, 2]);
    }
    world.beat(ServerId(0));
    assert_eq!(world.copies(), [2, 2, 2]);
}

#[test]
fn a_group_is_shown_as_reported_by_its_first_holder_that_is_up() {
    let mut world = World::serving(3);
    let report = |group, state, entries| ReplicaReport {
        group: GroupId(group),
        shard: ShardId(0),
        state,
        silent_ms: 0,
        following: Default::default(),
        longest_gap_ms: 0,
        used_bytes: 0,
        content_bytes: 0,
        copied: 0,
        copied_bytes: 0,
        flush: Default::default(),
        view: ViewVersion(1),
        last: SequenceNumber(0),
        committed: SequenceNumber(0),
        entries,
        bytes: 10 * entries,
        connected: true,
    };
    let beat = |world: &mut World, id: u16, entries: [u64; 2]| {
        let [primary, secondary] = [
            report(id, ReplicaState::Active, entries[0]),
            report((id + 2) % 3, ReplicaState::Secondary, entries[1]),
        ];
        let id = ServerId(id);
        let beat = Heartbeat { replicas: vec![primary, secondary], ..world.heartbeat(id) };
        let link = World::link(id);
        world.cluster.on_heartbeat(world.now, link, id, beat, &mut world.effects).unwrap();
    };
    let shown = |world: &World| {
        let group = world.cluster.status(world.now, &[]).groups.swap_remove(0);
        (group.entries, group.bytes)
    };
    beat(&mut world, 0, [5, 9]);
    beat(&mut world, 1, [9, 4]);
    assert_eq!(shown(&world), (5, 50), "the primary's, while it is up");
    world.exit(ServerId(0));
    beat(&mut world, 1, [9, 6]);
    assert_eq!(shown(&world), (6, 60), "then the secondary's");
    world.exit(ServerId(1));
    assert_eq!(shown(&world), (0, 0), "no live server holds it");
}

#[test]
fn orders_are_repeated_on_every_new_connection_until_they_are_reported() {
    let mut world = World::new(3);
    for id in world.ids() {
        world.start(id);
    }
    let member = world.cluster.member(ServerId(0));
    let first: Vec<_> = world.orders.iter().filter(|(to, _)| *to == member).copied().collect();
    world.effects.clear();
    world.cluster.on_orders_lost(member);
    world.cluster.on_orders_connected(member, &mut world.effects);
    let again = vec![Effect::Order { to: member, order: first[0].1 }];
    assert_eq!(world.effects, again);
    world.collect();
    world.orders.truncate(3);
    world.report(ServerId(0), Ok(0));
    world.cluster.on_orders_connected(member, &mut world.effects);
    assert_eq!(world.effects, [], "a reported order is not repeated");
}

#[test]
fn late_repeated_and_foreign_reports_change_nothing() {
    let mut world = World::new(3);
    for id in world.ids() {
        world.start(id);
    }
    let (member, order) = world.orders[0];
    let report = Report { id: order.id, view: ViewVersion(1), outcome: Ok(0) };
    let foreign = Member { incarnation: Incarnation(1), ..member };
    let sink = &mut world.effects;
    let got = world.cluster.on_report(at(0), foreign, report.clone(), sink);
    let (named, current) = (foreign.incarnation, member.incarnation);
    assert_eq!(got, Err(Ignored::OtherIncarnation { named, current }));
    let other = world.cluster.member(ServerId(1));
    let got = world.cluster.on_report(at(0), other, report.clone(), sink);
    assert_eq!(got, Err(Ignored::NotOutstanding), "another server's order");
    assert_eq!(world.cluster.on_report(at(0), member, report.clone(), sink), Ok(()));
    let got = world.cluster.on_report(at(0), member, report, sink);
    assert_eq!(got, Err(Ignored::NotOutstanding), "reported twice");
    assert_eq!(world.cluster.state(), ClusterState::Starting);
}

#[test]
fn a_server_that_dies_or_never_reports_fails_the_start_once() {
    let mut world = World::new(3);
    world.start(ServerId(0));
    world.exit(ServerId(1));
    world.exit(ServerId(2));
    let failed = |server, reason| Effect::StartFailed { server, reason };
    let failures = |effects: Vec<Effect>| -> Vec<Effect> {
        effects.into_iter().filter(|e| matches!(e, Effect::StartFailed { .. })).collect()
    };
    assert_eq!(failures(world.take()), [failed(ServerId(1), StartFailure::Exited)]);

    let mut world = World::new(3);
    world.start(ServerId(0));
    world.start(ServerId(2));
    world.pass(Duration::from_secs(60), &[ServerId(0), ServerId(2)]);
    let timeout = Duration::from_secs(60);
    assert_eq!(failures(world.take()), [failed(ServerId(1), StartFailure::NotStarted(timeout))]);

    let mut world = World::new(3);
    for id in world.ids() {
        world.start(id);
    }
    world.report(ServerId(0), Ok(0));
    world.report(ServerId(1), Err("no way".into()));
    let reason = StartFailure::OrderFailed { order: "SET-SECONDARY", reason: "no way".into() };
    assert_eq!(failures(world.take()), [failed(ServerId(1), reason)]);
}
