//! The rules of the choice, one per test.

use kv_protocol::{Epoch, Incarnation, ServerId};

use super::*;
use crate::cluster::DurableServer;
use crate::dump::{DumpOrigin, HeldAs};

const CLUSTER: ClusterId = ClusterId(7);
const GROUP: GroupId = GroupId(0);
const SHARDS: u16 = 2;

fn member(server: u16, incarnation: u64) -> Member {
    Member { server: ServerId(server), incarnation: Incarnation(incarnation) }
}

/// Returns the state of a ring of two. Group 0 has this primary and peer; group 1 has no holder left.
fn state(primary: Option<Member>, peer: Peer) -> DurableState {
    let view = |group, primary, peer| View {
        group: GroupId(group),
        version: ViewVersion(9),
        primary,
        peer,
        handover: false,
    };
    DurableState {
        hash_tags: false,
        cluster: CLUSTER,
        ancestors: Vec::new(),
        epoch: Epoch::default(),
        shards: SHARDS,
        has_served: true,
        servers: vec![DurableServer { incarnation: Incarnation(1), started: None }; 2],
        views: vec![view(0, primary, peer), view(1, None, Peer::None)],
        foundings: Vec::new(),
        last_holders: Vec::new(),
        is_stopping: false,
        recovering: None,
        moving: Vec::new(),
    }
}

fn pair() -> DurableState {
    state(Some(member(0, 1)), Peer::Secondary(member(1, 1)))
}

/// Returns a dump of group 0; `shards` are the view and the last write of each shard.
fn dump(writer: Member, shards: [(u64, u64); 2]) -> DumpHeader {
    let (cluster, group) = (CLUSTER, GROUP);
    let origin = DumpOrigin { cluster, writer, group, shards: SHARDS, hash_tags: false };
    let lines = shards.into_iter().zip(0..).map(|((view, last), shard)| DumpedShard {
        shard: ShardId(shard),
        held_as: HeldAs::Secondary,
        view: ViewVersion(view),
        last: SequenceNumber(last),
        forgotten: SequenceNumber::ZERO,
    });
    DumpHeader { origin, shards: lines.collect() }
}

fn sources(plan: &Plan) -> Option<Vec<(usize, u64)>> {
    let sources = plan.groups[0].sources.as_ref()?;
    Some(sources.iter().map(|source| (source.dump.0, source.last.0)).collect())
}

fn refusal(durable: &DurableState, dump: DumpHeader) -> Option<Refusal> {
    let plan = choose(durable, &[dump]).unwrap();
    match plan.verdicts[0] {
        Verdict::Refused(refusal) => {
            assert_eq!(sources(&plan), None, "a rejected dump must not be a source");
            Some(refusal)
        }
        Verdict::Used | Verdict::Surpassed => None,
    }
}

#[test]
fn for_each_shard_the_holders_dump_with_the_highest_view_and_write_is_used() {
    let dumps = [dump(member(0, 1), [(9, 5), (8, 90)]), dump(member(1, 1), [(9, 7), (9, 3)])];
    let plan = choose(&pair(), &dumps).unwrap();
    assert_eq!(sources(&plan), Some(vec![(1, 7), (1, 3)]));
    assert_eq!(plan.verdicts, [Verdict::Surpassed, Verdict::Used]);
    let dumps = [dump(member(0, 1), [(9, 5), (9, 90)]), dump(member(1, 1), [(9, 7), (9, 3)])];
    let plan = choose(&pair(), &dumps).unwrap();
    assert_eq!(sources(&plan), Some(vec![(1, 7), (0, 90)]));
    assert_eq!(plan.verdicts, [Verdict::Used, Verdict::Used]);
}

#[test]
fn a_dump_whose_keys_are_placed_in_another_way_does_not_count() {
    for theirs in [true, false] {
        let mut dump = dump(member(0, 1), [(9, 5), (9, 6)]);
        dump.origin.hash_tags = theirs;
        let durable = DurableState { hash_tags: !theirs, ..pair() };
        assert_eq!(refusal(&durable, dump.clone()), Some(Refusal::OtherHashTags { theirs }));
        let durable = DurableState { hash_tags: theirs, ..pair() };
        assert_eq!(refusal(&durable, dump), None);
    }
}

#[test]
fn the_dump_of_one_holder_is_enough() {
    for holder in [member(0, 1), member(1, 1)] {
        let plan = choose(&pair(), &[dump(holder, [(4, 5), (9, 6)])]).unwrap();
        assert_eq!(sources(&plan), Some(vec![(0, 5), (0, 6)]));
    }
}

#[test]
fn the_dump_of_a_removed_process_does_not_count_however_many_writes_it_has() {
    let alone = state(Some(member(1, 1)), Peer::None);
    let removed = dump(member(0, 1), [(9, 900), (9, 900)]);
    let expected = Refusal::Removed { writer: member(0, 1), group: GROUP, last: ViewVersion(9) };
    assert_eq!(refusal(&alone, removed.clone()), Some(expected));
    let holder = dump(member(1, 1), [(8, 1), (8, 1)]);
    let plan = choose(&alone, &[removed, holder]).unwrap();
    assert_eq!(sources(&plan), Some(vec![(1, 1), (1, 1)]));
}

#[test]
fn the_dump_of_an_earlier_process_at_a_holders_place_does_not_count() {
    let earlier = dump(member(0, 77), [(9, 5), (9, 5)]);
    assert!(matches!(refusal(&pair(), earlier), Some(Refusal::Removed { .. })));
}

#[test]
fn the_dump_of_the_candidate_never_counts() {
    let copying = state(Some(member(0, 1)), Peer::Candidate(member(1, 1)));
    let candidate = dump(member(1, 1), [(9, 5), (9, 5)]);
    let expected = Refusal::Candidate { writer: member(1, 1), group: GROUP, last: ViewVersion(9) };
    assert_eq!(refusal(&copying, candidate), Some(expected));
}

#[test]
fn the_dump_of_a_holder_that_missed_its_promotion_counts() {
    let mut untold = dump(member(1, 1), [(8, 5), (8, 5)]);
    untold.shards.iter_mut().for_each(|shard| shard.held_as = HeldAs::Candidate);
    assert_eq!(refusal(&pair(), untold), None);
}

#[test]
fn dumps_of_another_cluster_or_shape_do_not_count() {
    let mut other = dump(member(0, 1), [(9, 5), (9, 5)]);
    other.origin.cluster = ClusterId(8);
    let expected = Refusal::OtherCluster { ours: CLUSTER, theirs: ClusterId(8) };
    assert_eq!(refusal(&pair(), other), Some(expected));
    let mut other = dump(member(0, 1), [(9, 5), (9, 5)]);
    other.origin.shards = 1;
    assert_eq!(refusal(&pair(), other), Some(Refusal::OtherShards { ours: 2, theirs: 1 }));
    let mut other = dump(member(0, 1), [(9, 5), (9, 5)]);
    other.origin.group = GroupId(5);
    assert_eq!(refusal(&pair(), other), Some(Refusal::NoSuchGroup { group: GroupId(5) }));
}

#[test]
fn a_group_without_a_valid_dump_is_lost_and_needs_permission_to_be_left_out() {
    let plan = choose(&pair(), &[]).unwrap();
    let groups = vec![GroupId(0), GroupId(1)];
    assert_eq!(plan.lost().collect::<Vec<_>>(), groups);
    let refused = plan.foundings(Loss::Refused).unwrap_err();
    assert_eq!(refused, LossRefused { groups });
    assert!(refused.to_string().contains("2 groups"), "{refused}");
    assert!(plan.foundings(Loss::Accepted).unwrap().iter().all(|founding| founding.is_lost));
}

#[test]
fn views_continue_above_the_highest_earlier_version() {
    let plan = choose(&pair(), &[dump(member(0, 1), [(4, 5), (4, 5)])]).unwrap();
    let foundings = plan.foundings(Loss::Accepted).unwrap();
    let above = ViewVersion(9);
    let expected = [Founding { above, is_lost: false }, Founding { above, is_lost: true }];
    assert_eq!(foundings, expected);
}

#[test]
fn a_state_that_is_not_the_last_is_rejected() {
    let newer = dump(member(0, 1), [(9, 5), (10, 5)]);
    let expected = ChooseError::OldState {
        writer: member(0, 1),
        group: GROUP,
        ours: ViewVersion(9),
        theirs: ViewVersion(10),
    };
    assert_eq!(choose(&pair(), &[newer]), Err(expected));
}

#[cfg(feature = "mutations")]
#[test]
fn with_the_rule_disabled_the_dump_of_a_removed_member_counts() {
    mutations::open(Mutation::RestoreFromRemoved);
    let alone = state(Some(member(1, 1)), Peer::None);
    let plan = choose(&alone, &[dump(member(0, 1), [(8, 900), (8, 900)])]).unwrap();
    mutations::close();
    assert_eq!(sources(&plan), Some(vec![(0, 900), (0, 900)]));
}

#[test]
fn a_restored_cluster_names_the_earlier_cluster_and_its_latest_ancestors() {
    let mut durable = pair();
    let before: Vec<ClusterId> = (1..=MAX_ANCESTORS as u128).map(ClusterId).collect();
    durable.ancestors.clone_from(&before);
    let plan = choose(&durable, &[]).unwrap();
    assert_eq!(plan.ancestors.len(), MAX_ANCESTORS);
    assert_eq!(plan.ancestors[0], CLUSTER);
    assert_eq!(plan.ancestors[1..], before[..MAX_ANCESTORS - 1]);
}
