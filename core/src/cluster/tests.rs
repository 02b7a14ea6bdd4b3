//! Whole lives of a cluster, told as inputs and effects.

use std::net::{IpAddr, Ipv4Addr};

use kv_protocol::BootId;
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::status::ClusterState;
use kv_protocol::{SequenceNumber, ShardId};

use super::*;

const SILENCE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);
const CLUSTER: ClusterId = ClusterId(7);

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

/// A cluster, the time, and servers that only do what a test tells them.
struct World {
    cluster: Cluster,
    now: Time,
    effects: Vec<Effect>,
    orders: Vec<(Member, Order)>,
}

impl World {
    fn new(servers: u16) -> World {
        let cluster = Cluster::new(
            at(0),
            ClusterConfig {
                cluster: CLUSTER,
                epoch: Epoch { number: 1, boot: BootId(9) },
                shards: 2,
                incarnations: (0..servers).map(|n| Incarnation(100 + u64::from(n))).collect(),
                silence: SILENCE,
                start_patience: Duration::from_secs(60),
                stop_patience: PATIENCE,
            },
        );
        World { cluster, now: at(0), effects: Vec::new(), orders: Vec::new() }
    }

    fn serving(servers: u16) -> World {
        let mut world = World::new(servers);
        for id in world.ids() {
            world.start(id);
        }
        world.report_all();
        assert_eq!(world.take().last(), Some(&Effect::Serving));
        world
    }

    fn ids(&self) -> Vec<ServerId> {
        (0..self.cluster.count()).map(ServerId).collect()
    }

    fn started(&self, id: ServerId) -> Started {
        Started {
            cluster: CLUSTER,
            member: self.cluster.member(id),
            pid: 1_000 + u32::from(id.0),
            start_time: 5,
            shards: 2,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            clients_port: 3_000 + id.0,
            servers_port: 4_000 + id.0,
            coord_port: 5_000 + id.0,
            epoch: Epoch::default(),
        }
    }

    fn link(id: ServerId) -> LinkId {
        LinkId(u64::from(id.0))
    }

    fn start(&mut self, id: ServerId) {
        let started = self.started(id);
        self.cluster.on_started(self.now, World::link(id), &started, &mut self.effects).unwrap();
        self.cluster.on_orders_connected(started.member, &mut self.effects);
        self.collect();
    }

    /// Moves the orders among the effects to where a test reports on them.
    fn collect(&mut self) {
        let orders = &mut self.orders;
        self.effects.retain(|effect| match effect {
            Effect::Order { to, order } => {
                orders.push((*to, *order));
                false
            }
            _ => true,
        });
    }

    fn take(&mut self) -> Vec<Effect> {
        self.collect();
        std::mem::take(&mut self.effects)
    }

    fn ordered(&mut self) -> Vec<(ServerId, &'static str)> {
        self.collect();
        self.orders.iter().map(|(to, order)| (to.server, order.name())).collect()
    }

    fn report(&mut self, id: ServerId, outcome: Result<u64, String>) {
        self.collect();
        let at = self.orders.iter().position(|(to, _)| to.server == id).expect("an order to it");
        let (member, order) = self.orders.remove(at);
        let report = Report { id: order.id, outcome };
        self.cluster.on_report(self.now, member, report, &mut self.effects).unwrap();
        self.collect();
    }

    /// Everyone does once what was ordered so far.
    fn report_all(&mut self) {
        for (to, _) in std::mem::take(&mut self.ordered()) {
            self.report(to, Ok(0));
        }
    }

    fn heartbeat(&self, id: ServerId) -> Heartbeat {
        Heartbeat {
            incarnation: self.cluster.member(id).incarnation,
            epoch: Epoch::default(),
            resident_bytes: 1,
            clients: 2,
            requests: 3,
            refused: 4,
            replicas: Vec::new(),
        }
    }

    fn beat(&mut self, id: ServerId) {
        let heartbeat = self.heartbeat(id);
        self.cluster
            .on_heartbeat(self.now, World::link(id), id, heartbeat, &mut self.effects)
            .unwrap();
    }

    /// Lets time pass, with heartbeats of those named.
    fn pass(&mut self, duration: Duration, alive: &[ServerId]) {
        let end = self.now + duration;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            for &id in alive {
                self.beat(id);
            }
            self.cluster.on_timeout(self.now, &mut self.effects);
        }
        self.collect();
    }

    fn exit(&mut self, id: ServerId) {
        let member = self.cluster.member(id);
        self.cluster.on_exited(self.now, member, &mut self.effects);
        self.collect();
    }

    fn stop(&mut self) {
        self.cluster.on_stop(self.now, &mut self.effects);
        self.collect();
    }

    fn down(&self, id: ServerId, cause: DownCause) -> Effect {
        Effect::Down { member: self.cluster.member(id), cause }
    }

    fn state(&self, id: ServerId) -> ServerState {
        self.cluster.map().servers[usize::from(id.0)].state
    }

    fn copies(&self) -> Vec<u8> {
        self.cluster.status(self.now, &[]).groups.iter().map(|group| group.copies).collect()
    }
}

fn stopped(effects: &[Effect]) -> Option<&StopOutcome> {
    effects.iter().find_map(|effect| match effect {
        Effect::Stopped(outcome) => Some(outcome),
        _ => None,
    })
}

#[test]
fn rings_of_three_to_seven_connect_every_server_to_its_successor() {
    for servers in 3..=7 {
        let mut world = World::new(servers);
        for id in world.ids() {
            assert!(world.orders.is_empty(), "no order before the last has started");
            world.start(id);
        }
        for (to, order) in world.orders.clone() {
            let OrderKind::SetSecondary { view, secondary } = order.kind else {
                panic!("{} at the start", order.name());
            };
            let successor = to.server.successor(servers);
            assert_eq!(view.group, to.server.home_group());
            assert_eq!(view.version, ViewVersion(1));
            assert_eq!(view.primary, Some(to));
            assert_eq!(view.secondary(), Some(world.cluster.member(successor)));
            assert_eq!(secondary.port(), 4_000 + successor.0);
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
fn strangers_are_refused_and_told_why() {
    let mut world = World::serving(3);
    let started = world.started(ServerId(1));
    let no_one = Member { server: ServerId(3), ..started.member };
    let by_hand = Member { incarnation: Incarnation(1), ..started.member };
    for (wrong, words) in [
        (Started { cluster: ClusterId(8), ..started }, "this is cluster"),
        (Started { member: no_one, ..started }, "no server 3 in a ring of 3"),
        (Started { member: by_hand, ..started }, "not started by this coordinator"),
        (Started { shards: 4, ..started }, "runs with --shards 4, the cluster with --shards 2"),
        (Started { clients_port: 1, ..started }, "already reported other ports"),
        (Started { epoch: Epoch { number: 2, boot: BootId(1) }, ..started }, "obeyed epoch 2"),
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
fn a_silent_server_is_up_again_when_it_is_heard() {
    let mut world = World::serving(3);
    world.pass(SILENCE, &[ServerId(0), ServerId(2)]);
    world.take();
    world.beat(ServerId(1));
    let member = world.cluster.member(ServerId(1));
    assert_eq!(world.take(), [Effect::Back { member }]);
    assert_eq!(world.cluster.state(), ClusterState::Serving);
}

#[test]
fn a_repeated_started_takes_no_link_over_from_a_server_that_reports() {
    let mut world = World::serving(3);
    let id = ServerId(2);
    let started = world.started(id);
    let refused = world.cluster.on_started(world.now, LinkId(50), &started, &mut world.effects);
    assert!(matches!(refused, Err(StartedRefused::Linked { .. })), "{refused:?}");
    world.beat(id);
    assert_eq!(world.take(), []);
}

#[test]
fn the_end_of_a_link_is_noticed_at_once_but_not_that_of_a_replaced_one() {
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
fn an_exited_process_stays_down_whatever_is_said_in_its_name() {
    let mut world = World::serving(3);
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
fn nothing_is_learned_from_heartbeats_that_cannot_be() {
    let mut world = World::serving(3);
    let replica = ReplicaReport {
        group: GroupId(0),
        shard: ShardId(0),
        role: ReplicaRole::Primary,
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
        (Heartbeat { incarnation: Incarnation(1), ..good.clone() }, Ignored::OtherIncarnation),
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
fn a_stream_that_is_down_costs_a_copy_only_when_said_twice() {
    let mut world = World::serving(3);
    let mut beat = world.heartbeat(ServerId(0));
    beat.replicas.push(ReplicaReport {
        group: GroupId(0),
        shard: ShardId(0),
        role: ReplicaRole::Primary,
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
fn a_group_is_shown_as_the_first_of_its_holders_that_is_up_reports_it() {
    let mut world = World::serving(3);
    let report = |group, role, entries| ReplicaReport {
        group: GroupId(group),
        shard: ShardId(0),
        role,
        view: ViewVersion(1),
        last: SequenceNumber(0),
        committed: SequenceNumber(0),
        entries,
        bytes: 10 * entries,
        connected: true,
    };
    let beat = |world: &mut World, id: u16, entries: [u64; 2]| {
        let [primary, secondary] = [
            report(id, ReplicaRole::Primary, entries[0]),
            report((id + 2) % 3, ReplicaRole::Secondary, entries[1]),
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
    assert_eq!(shown(&world), (0, 0), "nobody that is up holds it");
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
    let report = Report { id: order.id, outcome: Ok(0) };
    let foreign = Member { incarnation: Incarnation(1), ..member };
    let sink = &mut world.effects;
    let got = world.cluster.on_report(at(0), foreign, report.clone(), sink);
    assert_eq!(got, Err(Ignored::OtherIncarnation));
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
    let patience = Duration::from_secs(60);
    assert_eq!(failures(world.take()), [failed(ServerId(1), StartFailure::NotStarted(patience))]);

    let mut world = World::new(3);
    for id in world.ids() {
        world.start(id);
    }
    world.report(ServerId(0), Ok(0));
    world.report(ServerId(1), Err("no way".into()));
    let reason = StartFailure::OrderFailed { order: "SET-SECONDARY", reason: "no way".into() };
    assert_eq!(failures(world.take()), [failed(ServerId(1), reason)]);
}

#[test]
fn nobody_dumps_before_all_have_drained_and_nobody_leaves_before_all_have_dumped() {
    let mut world = World::serving(4);
    world.stop();
    world.stop();
    assert_eq!(world.cluster.state(), ClusterState::Stopping);
    assert_eq!(world.ordered(), world.ids().iter().map(|&id| (id, "DRAIN")).collect::<Vec<_>>());
    for id in world.ids() {
        assert!(world.ordered().iter().all(|(_, name)| *name == "DRAIN"));
        world.report(id, Ok(0));
    }
    let dumps = world.ordered();
    assert_eq!(dumps.len(), 8);
    for (id, name) in dumps {
        assert!(name.starts_with("DUMP"), "{name} before all have dumped");
        world.report(id, Ok(3));
    }
    let leave = world.ids().iter().map(|&id| (id, "SHUTDOWN")).collect::<Vec<_>>();
    assert_eq!(world.ordered(), leave);
    world.report_all();
    for id in world.ids() {
        let link = World::link(id);
        world.cluster.on_link_lost(world.now, link, id, &mut world.effects);
        world.exit(id);
    }
    let phases = [StopPhase::Drain, StopPhase::Dump, StopPhase::Shutdown].map(Effect::Stopping);
    let mut expected = phases.to_vec();
    expected.push(Effect::Stopped(StopOutcome::default()));
    assert_eq!(world.take(), expected, "and the end of a server that leaves is no news");
    assert_eq!(world.cluster.next_timeout(), None);
}

#[test]
fn a_server_that_answers_nothing_is_killed_and_named_and_its_data_is_in_the_other_dumps() {
    let mut world = World::serving(3);
    let (mute, alive) = (ServerId(1), [ServerId(0), ServerId(2)]);
    world.stop();
    for id in alive {
        world.report(id, Ok(0));
    }
    world.pass(Duration::from_millis(4_900), &alive);
    assert!(!world.take().iter().any(|e| matches!(e, Effect::Kill { .. })));
    world.pass(Duration::from_millis(100), &alive);
    let reason = KillReason::Unanswered("DRAIN");
    let kill = Effect::Kill { member: world.cluster.member(mute), reason };
    assert!(world.take().contains(&kill));
    world.orders.retain(|(to, _)| to.server != mute);
    world.exit(mute);
    for _dump in 0..2 {
        world.report_all();
    }
    for id in alive {
        world.exit(id);
    }
    let effects = world.take();
    let expected = StopOutcome { killed: vec![mute], ..StopOutcome::default() };
    assert_eq!(stopped(&effects), Some(&expected));
}

#[test]
fn a_living_server_that_cannot_drain_is_dumped_nevertheless() {
    let mut world = World::serving(3);
    let ids = world.ids();
    world.stop();
    world.report(ServerId(0), Ok(0));
    world.report(ServerId(1), Ok(0));
    world.pass(PATIENCE, &ids);
    world.orders.retain(|(_, order)| order.kind != OrderKind::Drain);
    assert_eq!(world.ordered().len(), 6);
    for _dump in 0..3 {
        world.report_all();
    }
    for id in ids {
        world.exit(id);
    }
    let effects = world.take();
    let expected = StopOutcome { undrained: vec![ServerId(2)], ..StopOutcome::default() };
    assert_eq!(stopped(&effects), Some(&expected));
}

#[test]
fn a_failed_dump_is_ordered_once_more_before_anyone_is_told_to_exit() {
    let mut world = World::serving(3);
    let ids = world.ids();
    world.stop();
    world.report_all();
    world.report(ServerId(1), Err("no space left".to_owned()));
    world.report_all();
    let failed = world.take().into_iter().find(|e| matches!(e, Effect::OrderFailed { .. }));
    assert!(matches!(failed, Some(Effect::OrderFailed { again: true, .. })), "{failed:?}");
    assert_eq!(world.ordered(), [], "it is given a moment, and nobody exits meanwhile");
    let due = world.now + DUMP_RETRY_PAUSE;
    assert!(world.cluster.next_timeout().is_some_and(|next| next <= due));
    world.pass(DUMP_RETRY_PAUSE, &ids);
    assert_eq!(world.ordered(), [(ServerId(1), "DUMP-PRIMARY")]);
    world.report_all();
    let leave = ids.iter().map(|&id| (id, "SHUTDOWN")).collect::<Vec<_>>();
    assert_eq!(world.ordered(), leave);
    world.report_all();
    ids.iter().for_each(|&id| world.exit(id));
    assert_eq!(stopped(&world.take()), Some(&StopOutcome::default()));
}

#[test]
fn a_dump_that_fails_twice_or_too_late_is_not_ordered_again() {
    let mut world = World::serving(3);
    let ids = world.ids();
    let full = || Err("no space left".to_owned());
    world.stop();
    world.report_all();
    world.report(ServerId(1), full());
    world.report_all();
    world.pass(DUMP_RETRY_PAUSE, &ids);
    world.take();
    world.report(ServerId(1), full());
    let failed = world.take().into_iter().find(|e| matches!(e, Effect::OrderFailed { .. }));
    assert!(matches!(failed, Some(Effect::OrderFailed { again: false, .. })), "{failed:?}");
    assert!(world.ordered().iter().all(|(_, name)| *name == "SHUTDOWN"));

    let mut world = World::serving(3);
    world.stop();
    world.report_all();
    world.pass(PATIENCE - DUMP_RETRY_PAUSE, &ids);
    world.report(ServerId(1), full());
    world.report_all();
    let leave = ids.iter().map(|&id| (id, "SHUTDOWN")).collect::<Vec<_>>();
    assert_eq!(world.ordered(), leave);
}

#[test]
fn a_server_that_leaves_alone_is_told_to_dump_again_too() {
    let mut world = World::serving(3);
    let ids = world.ids();
    let id = ServerId(1);
    let link = World::link(id);
    world.cluster.on_drain_request(world.now, link, id, &mut world.effects).unwrap();
    world.report(id, Ok(0));
    world.report(id, Ok(0));
    world.report(id, Err("no space left".to_owned()));
    assert_eq!(world.ordered(), []);
    world.pass(DUMP_RETRY_PAUSE, &ids);
    assert_eq!(world.ordered(), [(id, "DUMP-SECONDARY")]);
    world.report(id, Ok(0));
    assert_eq!(world.ordered(), [(id, "SHUTDOWN")]);
}

#[test]
fn a_server_that_falls_silent_before_it_is_told_to_dump_again_does_not_hang_the_stop() {
    let mut world = World::serving(3);
    let (mute, alive) = (ServerId(1), [ServerId(0), ServerId(2)]);
    world.stop();
    world.report_all();
    world.report(mute, Err("no space left".to_owned()));
    world.report_all();
    world.pass(PATIENCE, &alive);
    let reason = KillReason::Unanswered("DUMP-PRIMARY");
    let kill = Effect::Kill { member: world.cluster.member(mute), reason };
    assert!(world.take().contains(&kill), "and only what it did not answer is named");
}

#[test]
fn a_server_that_exits_before_it_is_told_to_dump_again_is_not_waited_for() {
    let mut world = World::serving(3);
    let id = ServerId(1);
    let link = World::link(id);
    world.cluster.on_drain_request(world.now, link, id, &mut world.effects).unwrap();
    world.report(id, Ok(0));
    world.report(id, Err("no space left".to_owned()));
    world.exit(id);
    world.orders.clear();
    world.pass(DUMP_RETRY_PAUSE * 2, &[ServerId(0), ServerId(2)]);
    assert_eq!(world.ordered(), []);
    assert!(world.cluster.next_timeout().is_none_or(|next| next > world.now));
}

#[test]
fn groups_that_neither_holder_has_dumped_are_named() {
    let mut world = World::serving(3);
    world.stop();
    world.report_all();
    // Group 0 is at servers 0 and 1: the first cannot dump its primary, the second dies.
    let full = || Err("no space left".to_owned());
    world.report(ServerId(0), full());
    world.exit(ServerId(1));
    world.orders.retain(|(to, _)| to.server != ServerId(1));
    world.report_all();
    world.pass(DUMP_RETRY_PAUSE, &[ServerId(0), ServerId(2)]);
    world.report(ServerId(0), full());
    assert!(world.ordered().iter().all(|(_, name)| *name == "SHUTDOWN"));
    world.exit(ServerId(0));
    world.exit(ServerId(2));
    let effects = world.take();
    assert_eq!(stopped(&effects).unwrap().undumped, [GroupId(0)]);
}

#[test]
fn a_server_with_large_tables_may_dump_longer_while_it_is_heard() {
    let mut world = World::serving(3);
    let ids = world.ids();
    let mut beat = world.heartbeat(ServerId(0));
    beat.replicas.push(ReplicaReport {
        group: GroupId(0),
        shard: ShardId(0),
        role: ReplicaRole::Primary,
        view: ViewVersion(1),
        last: SequenceNumber(0),
        committed: SequenceNumber(0),
        entries: 1,
        bytes: 20 * DUMP_BYTES_PER_SECOND,
        connected: true,
    });
    world.stop();
    world.report_all();
    for _dump in 0..2 {
        for id in [ServerId(1), ServerId(2)] {
            world.report(id, Ok(0));
        }
    }
    let end = world.now + Duration::from_secs(24);
    while world.now < end {
        world.pass(Duration::from_millis(100), &ids[1..]);
        let link = World::link(ServerId(0));
        let beat = beat.clone();
        world.cluster.on_heartbeat(world.now, link, ServerId(0), beat, &mut world.effects).unwrap();
    }
    assert!(!world.take().iter().any(|e| matches!(e, Effect::Kill { .. })));
    world.pass(SILENCE, &ids[1..]);
    let reason = KillReason::Unanswered("DUMP-PRIMARY and DUMP-SECONDARY");
    let kill = Effect::Kill { member: world.cluster.member(ServerId(0)), reason };
    assert!(world.take().contains(&kill), "as soon as it falls silent, its time is over");
}

#[test]
fn an_end_that_is_never_proven_does_not_hang_the_stop() {
    let mut world = World::serving(3);
    world.cluster.on_stop_now(world.now, &mut world.effects);
    let kills = world.take();
    assert_eq!(kills.iter().filter(|e| matches!(e, Effect::Kill { .. })).count(), 3);
    world.exit(ServerId(0));
    world.exit(ServerId(2));
    world.pass(PATIENCE, &[]);
    let effects = world.take();
    let outcome = stopped(&effects).unwrap();
    assert_eq!(outcome.unproven, [ServerId(1)]);
    assert_eq!(outcome.undumped, [GroupId(0), GroupId(1), GroupId(2)]);
}

#[test]
fn a_stop_before_all_have_started_ends_and_misses_no_dump() {
    let mut world = World::new(3);
    world.start(ServerId(0));
    world.stop();
    let effects = world.take();
    let kills =
        effects.iter().filter(|e| matches!(e, Effect::Kill { reason: KillReason::NotStarted, .. }));
    assert_eq!(kills.count(), 2);
    world.exit(ServerId(1));
    world.exit(ServerId(2));
    for _step in 0..3 {
        world.report_all();
    }
    world.exit(ServerId(0));
    let effects = world.take();
    assert_eq!(stopped(&effects), Some(&StopOutcome::default()));
    assert!(!effects.iter().any(|e| matches!(e, Effect::StartFailed { .. })));
}

#[test]
fn a_stop_waits_for_no_order_of_the_start() {
    let mut world = World::new(3);
    for id in world.ids() {
        world.start(id);
    }
    let start_orders = std::mem::take(&mut world.orders);
    world.stop();
    for (member, order) in start_orders {
        let report = Report { id: order.id, outcome: Ok(0) };
        let got = world.cluster.on_report(world.now, member, report, &mut world.effects);
        assert_eq!(got, Err(Ignored::NotOutstanding));
    }
    world.report_all();
    assert_eq!(world.ordered().len(), 6, "DRAIN was all that the dumps waited for");
    // A connection that comes back brings no SET-SECONDARY to a server that dumps.
    let member = world.cluster.member(ServerId(0));
    world.cluster.on_orders_connected(member, &mut world.effects);
    let again = world.ordered().split_off(6);
    assert_eq!(again, [(ServerId(0), "DUMP-PRIMARY"), (ServerId(0), "DUMP-SECONDARY")]);
}

#[test]
fn a_server_that_asks_to_leave_is_led_out_alone_and_the_others_go_on() {
    let mut world = World::serving(3);
    let id = ServerId(1);
    let link = World::link(id);
    world.cluster.on_drain_request(world.now, link, id, &mut world.effects).unwrap();
    world.cluster.on_drain_request(world.now, link, id, &mut world.effects).unwrap();
    assert_eq!(world.ordered(), [(id, "DRAIN")]);
    world.report(id, Ok(0));
    assert_eq!(world.ordered(), [(id, "DUMP-PRIMARY"), (id, "DUMP-SECONDARY")]);
    world.report(id, Ok(1));
    world.report(id, Ok(1));
    assert_eq!(world.ordered(), [(id, "SHUTDOWN")]);
    world.report(id, Ok(0));
    world.exit(id);
    assert_eq!(world.take(), [Effect::Leaving { member: world.cluster.member(id) }]);
    assert_eq!(world.cluster.state(), ClusterState::Degraded);
    assert_eq!(world.copies(), [1, 1, 2]);
}

#[test]
fn a_server_that_leaves_alone_and_cannot_drain_is_still_told_to_exit_in_time() {
    let mut world = World::serving(3);
    let ids = world.ids();
    let id = ServerId(1);
    let link = World::link(id);
    world.cluster.on_drain_request(world.now, link, id, &mut world.effects).unwrap();
    world.pass(Duration::from_secs(2), &ids);
    world.orders.retain(|(_, order)| order.kind != OrderKind::Drain);
    assert_eq!(world.ordered(), [(id, "DUMP-PRIMARY"), (id, "DUMP-SECONDARY")]);
    world.report_all();
    assert_eq!(world.ordered(), [(id, "SHUTDOWN")]);
}
