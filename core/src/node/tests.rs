use kv_protocol::ids::{BootId, Incarnation, SequenceNumber, ServerId};
use kv_protocol::view::Peer;

use super::*;

const ME: Member = Member { server: ServerId(1), incarnation: Incarnation(11) };
const OTHER: Member = Member { server: ServerId(2), incarnation: Incarnation(22) };
const EPOCH: Epoch = Epoch { number: 1, boot: BootId(1) };

fn node() -> Node {
    let mut node = Node::new(NodeConfig { cluster: ClusterId(7), me: ME, shards: 2 });
    node.on_orders_hello(&hello(EPOCH.number, EPOCH.boot.0)).unwrap();
    node
}

fn hello(number: u64, boot: u64) -> OrdersHello {
    let epoch = Epoch { number, boot: BootId(boot) };
    OrdersHello { cluster: ClusterId(7), epoch, to: ME }
}

/// Returns the id of the n-th order of the first coordinator.
fn number(n: u64) -> OrderId {
    OrderId(OrderId::first_of(EPOCH).0 - 1 + n)
}

fn order(id: u64, purpose: ViewPurpose, version: u64) -> Order {
    let view = View {
        group: GroupId(1),
        version: ViewVersion(version),
        primary: Some(ME),
        peer: Peer::Candidate(OTHER),
        handover: false,
    };
    Order { id: number(id), kind: OrderKind::View(ViewOrder { purpose, view, other: None }) }
}

fn replica(shard: u16, version: u64, state: ReplicaState) -> ReplicaReport {
    ReplicaReport {
        group: GroupId(1),
        shard: ShardId(shard),
        state,
        view: ViewVersion(version),
        last: SequenceNumber(1),
        committed: SequenceNumber(1),
        entries: 10,
        bytes: 1,
        connected: true,
        silent_ms: 0,
        following: Default::default(),
        longest_gap_ms: 0,
        used_bytes: 0,
        content_bytes: 0,
        copied: 0,
        copied_bytes: 0,
        flush: Default::default(),
    }
}

impl Node {
    /// Records a report of the shard's replica; returns the effects.
    fn say(&mut self, shard: u16, version: u64, state: ReplicaState) -> Vec<NodeEffect> {
        let mut sink = Vec::new();
        self.on_shard(ShardId(shard), vec![replica(shard, version, state)], &mut sink);
        sink
    }

    fn give(&mut self, order: Order) -> Vec<NodeEffect> {
        let mut sink = Vec::new();
        self.on_order(order, &mut sink);
        sink
    }
}

fn done(id: u64, version: u64, entries: u64) -> NodeEffect {
    let outcome = Ok(entries);
    NodeEffect::Report(Report { id: number(id), view: ViewVersion(version), outcome })
}

fn is_failure(effects: &[NodeEffect]) -> bool {
    matches!(effects, [NodeEffect::Report(Report { outcome: Err(_), .. })])
}

#[test]
fn a_candidate_is_reported_as_updated_when_every_shard_has_caught_up_under_that_view() {
    let mut node = node();
    let effects = node.give(order(1, ViewPurpose::UpdatePrimary, 3));
    assert!(matches!(effects[..], [NodeEffect::Install { .. }]));
    assert!(node.say(0, 3, ReplicaState::CaughtUp).is_empty());
    assert!(node.say(1, 2, ReplicaState::CaughtUp).is_empty(), "a report of the previous view");
    assert!(node.say(1, 3, ReplicaState::Active).is_empty());
    assert_eq!(node.say(1, 3, ReplicaState::CaughtUp), [done(1, 3, 20)]);
    assert!(node.say(1, 3, ReplicaState::CaughtUp).is_empty(), "once");
}

#[test]
fn a_candidate_lost_by_one_shard_fails_the_order() {
    let mut node = node();
    node.give(order(1, ViewPurpose::UpdateSecondary, 3));
    node.say(0, 3, ReplicaState::CaughtUp);
    assert!(is_failure(&node.say(1, 3, ReplicaState::CopyFailed)));
}

#[test]
fn an_order_carried_out_before_it_arrived_is_reported_at_once() {
    let mut node = node();
    node.say(0, 3, ReplicaState::Active);
    node.say(1, 3, ReplicaState::Active);
    let effects = node.give(order(1, ViewPurpose::TakeOver, 3));
    assert_eq!(effects[1..], [done(1, 3, 20)]);
}

#[test]
fn a_repeated_order_gets_the_same_report() {
    let mut node = node();
    let probe = Order { id: number(4), kind: OrderKind::Exited(OTHER) };
    let first = node.give(probe);
    assert_eq!(first[0], NodeEffect::Exited { member: OTHER });
    assert_eq!(node.give(probe), [first[1].clone()]);
}

#[test]
fn a_probe_is_reported_when_every_shard_has_echoed_it() {
    let mut node = node();
    node.give(Order { id: number(4), kind: OrderKind::Probe });
    let mut sink = Vec::new();
    node.on_probed(number(4), ShardId(1), &mut sink);
    node.on_probed(number(4), ShardId(1), &mut sink);
    assert!(sink.is_empty());
    node.on_probed(number(4), ShardId(0), &mut sink);
    assert_eq!(sink, [done(4, 0, 0)]);
}

#[test]
fn a_newer_view_ends_an_order() {
    let mut node = node();
    node.give(order(1, ViewPurpose::UpdatePrimary, 3));
    assert!(is_failure(&node.say(0, 4, ReplicaState::Out)));
    node.give(order(2, ViewPurpose::UpdatePrimary, 5));
    let effects = node.give(order(3, ViewPurpose::DropSecondary, 6));
    assert!(is_failure(&effects[1..]), "{effects:?}");
}

#[test]
fn an_older_or_conflicting_coordinator_is_rejected_and_a_newer_one_starts_afresh() {
    let mut node = node();
    let fifth = hello(5, 1);
    node.on_orders_hello(&fifth).unwrap();
    let id = OrderId::first_of(fifth.epoch);
    node.give(Order { id, ..order(1, ViewPurpose::UpdatePrimary, 3) });
    assert!(node.has_running());
    assert!(matches!(node.on_orders_hello(&hello(4, 1)), Err(HelloRefused::OldEpoch { .. })));
    assert!(matches!(node.on_orders_hello(&hello(5, 2)), Err(HelloRefused::OldEpoch { .. })));
    node.on_orders_hello(&hello(5, 1)).unwrap();
    assert!(node.has_running());
    node.on_orders_hello(&hello(6, 9)).unwrap();
    assert!(!node.has_running());
    let forged = node.on_orders_hello(&hello(u64::MAX, 1));
    assert!(matches!(forged, Err(HelloRefused::ImpossibleEpoch { .. })));
    node.on_orders_hello(&hello(7, 1)).expect("the server still accepts the next coordinator");
    let stranger = OrdersHello { to: OTHER, ..hello(7, 1) };
    assert!(matches!(node.on_orders_hello(&stranger), Err(HelloRefused::OtherMember { .. })));
    let stranger = OrdersHello { cluster: ClusterId(8), ..hello(7, 1) };
    assert!(matches!(node.on_orders_hello(&stranger), Err(HelloRefused::OtherCluster { .. })));
}

#[test]
fn orders_of_an_earlier_coordinator_are_void_once_a_later_one_is_followed() {
    let mut node = node();
    node.give(Order { id: number(1), kind: OrderKind::Probe });
    let later = hello(2, 2);
    node.on_orders_hello(&later).unwrap();
    // A delayed order of the first coordinator arrives.
    assert!(node.give(order(1, ViewPurpose::UpdatePrimary, 3)).is_empty());
    // The echo of its probe does not count for the probe of the later coordinator.
    let probe = OrderId::first_of(later.epoch);
    node.give(Order { id: probe, kind: OrderKind::Probe });
    let mut sink = Vec::new();
    for shard in 0..2 {
        node.on_probed(number(1), ShardId(shard), &mut sink);
    }
    assert!(sink.is_empty());
    assert!(node.has_running());
}

#[test]
fn orders_in_progress_are_bounded() {
    let mut node = node();
    for id in 0..MAX_RUNNING as u64 {
        node.give(Order { id: number(id), kind: OrderKind::Probe });
    }
    let late = Order { id: number(1_000), kind: OrderKind::Probe };
    assert!(is_failure(&node.give(late)));
}
