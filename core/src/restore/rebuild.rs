//! Reconstruction of a lost coordinator state from the dumps.
//!
//! Each dump names its writer, the newest view that the writer had installed, and the writer's role in that view.
//! For each group, the dumps with the newest view count. The primary of a later view would have been one of the two
//! holders of this view, and would have installed the later one. So if the dumps of both holders exist and neither
//! names a later view, no write is missing. If there is only one dump, the other holder may have continued without
//! its writer. The group is then [`Certainty::Doubtful`].

use kv_protocol::limits::{MAX_SERVERS, MIN_SERVERS};
use kv_protocol::{ClusterId, Epoch, GroupId, Incarnation, Member, Peer, View, ViewVersion};

use crate::cluster::{DurableServer, DurableState};
use crate::dump::{DumpHeader, HeldAs};

/// The certainty that no write of a group is missing in its dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// The dumps of both last holders exist.
    Sure,
    /// Only one holder's dump exists; the other holder may have acknowledged later writes.
    Doubtful,
    /// No dump of a holder exists.
    Lost,
}

/// A reconstructed state, and the certainty for each group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// The state. Everything that [`super::choose`] uses is reconstructed, but its list of servers names no real
    /// processes.
    pub state: DurableState,
    /// The certainty for each group, by group.
    pub groups: Vec<Certainty>,
}

/// The reason why no state can be reconstructed from the dumps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// There is no complete dump.
    #[error("there is no complete dump; check the directories that were given")]
    NoDump,
    /// The dumps belong to several clusters.
    #[error("there are dumps of several clusters ({}); move those of one cluster to a separate directory",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    SeveralClusters(Vec<ClusterId>),
    /// The dumps disagree on the number of shards.
    #[error("the dumps disagree: some have {0} shards, others {1}; use dumps of one cluster")]
    SeveralShardCounts(u16, u16),
    /// The dumps disagree on hash tags.
    #[error(
        "the dumps disagree: some are of a cluster with hash tags, others of one without; use dumps of one cluster"
    )]
    HashTagsInSome,
    /// A dump belongs to a group that the target ring does not have.
    #[error(
        "the dump of {writer} belongs to group {group}, but the cluster file names only {servers} servers; \
         use the cluster file of that cluster"
    )]
    OtherRing {
        /// The process that wrote the dump.
        writer: Member,
        /// The group of the dump.
        group: GroupId,
        /// The number of servers of the ring.
        servers: u16,
    },
}

/// Reconstructs the last state from the dumps of one cluster with this number of servers.
///
/// # Errors
/// [`RebuildError`] if there is no dump, if the dumps disagree on the cluster or how it places keys, or if one
/// belongs to a group that a ring of `servers` does not have.
///
/// # Panics
/// If `servers` is not between 3 and 1,024.
pub fn rebuild(dumps: &[DumpHeader], servers: u16) -> Result<Rebuilt, RebuildError> {
    assert!(
        (MIN_SERVERS..=MAX_SERVERS).contains(&servers),
        "the caller has checked the number of servers"
    );
    let first = dumps.first().ok_or(RebuildError::NoDump)?.origin;
    let mut clusters: Vec<ClusterId> = dumps.iter().map(|dump| dump.origin.cluster).collect();
    clusters.sort_unstable();
    clusters.dedup();
    if clusters.len() > 1 {
        return Err(RebuildError::SeveralClusters(clusters));
    }
    if let Some(other) = dumps.iter().find(|dump| dump.origin.shards != first.shards) {
        return Err(RebuildError::SeveralShardCounts(first.shards, other.origin.shards));
    }
    if dumps.iter().any(|dump| dump.origin.hash_tags != first.hash_tags) {
        return Err(RebuildError::HashTagsInSome);
    }
    if let Some(other) = dumps.iter().find(|dump| dump.origin.group.0 >= servers) {
        let (writer, group) = (other.origin.writer, other.origin.group);
        return Err(RebuildError::OtherRing { writer, group, servers });
    }
    let (views, groups): (Vec<View>, Vec<Certainty>) =
        (0..servers).map(|group| view_of(dumps, GroupId(group))).unzip();
    // The views of a LOST group continue above every view that a process can have received.
    let highest = views.iter().map(|view| view.version).max().unwrap_or_default();
    let above = |view: &View| match view.primary {
        Some(_) => *view,
        None => View { version: ViewVersion(highest.0 + 1), ..*view },
    };
    let state = DurableState {
        cluster: first.cluster,
        ancestors: Vec::new(),
        epoch: Epoch::default(),
        shards: first.shards,
        hash_tags: first.hash_tags,
        has_served: true,
        servers: vec![DurableServer { incarnation: Incarnation(1), started: None }; servers.into()],
        views: views.iter().map(above).collect(),
        foundings: Vec::new(),
        last_holders: Vec::new(),
        is_stopping: true,
        recovering: None,
        moving: Vec::new(),
    };
    Ok(Rebuilt { state, groups })
}

/// Returns the newest view that the dumps of a group name, with the holders whose dumps exist, and its certainty.
fn view_of(dumps: &[DumpHeader], group: GroupId) -> (View, Certainty) {
    let newest = |dump: &DumpHeader| dump.shards.iter().map(|shard| shard.view).max();
    let of_group = || dumps.iter().filter(|dump| dump.origin.group == group);
    let version = of_group().filter_map(newest).max().unwrap_or_default();
    let holder = |role: HeldAs| {
        let is_so = |dump: &&DumpHeader| {
            dump.shards.iter().any(|shard| shard.view == version && shard.held_as == role)
        };
        of_group().find(is_so).map(|dump| dump.origin.writer)
    };
    let (primary, secondary) = (holder(HeldAs::Primary), holder(HeldAs::Secondary));
    let (first, second, certainty) = match (primary, secondary) {
        (Some(primary), Some(secondary)) => (Some(primary), Some(secondary), Certainty::Sure),
        (Some(one), None) | (None, Some(one)) => (Some(one), None, Certainty::Doubtful),
        (None, None) => (None, None, Certainty::Lost),
    };
    let peer = second.map_or(Peer::None, Peer::Secondary);
    (View { group, version, primary: first, peer, handover: false }, certainty)
}

#[cfg(test)]
mod tests {
    use kv_protocol::{SequenceNumber, ServerId, ShardId};

    use super::*;
    use crate::dump::{DumpOrigin, DumpedShard};
    use crate::restore::{Verdict, choose};

    fn dump(server: u16, group: u16, held_as: HeldAs, view: u64, last: u64) -> DumpHeader {
        let writer = Member { server: ServerId(server), incarnation: Incarnation(40 + view) };
        let (cluster, group) = (ClusterId(7), GroupId(group));
        let origin = DumpOrigin { cluster, writer, group, shards: 2, hash_tags: false };
        let shard = |shard| DumpedShard {
            shard: ShardId(shard),
            held_as,
            view: ViewVersion(view),
            last: SequenceNumber(last),
            forgotten: SequenceNumber::ZERO,
        };
        DumpHeader { origin, shards: vec![shard(0), shard(1)] }
    }

    #[test]
    fn a_rebuilt_state_has_hash_tags_if_all_dumps_have_them() {
        let mut dumps = [dump(0, 0, HeldAs::Primary, 3, 1), dump(1, 0, HeldAs::Secondary, 3, 1)];
        assert!(!rebuild(&dumps, 3).unwrap().state.hash_tags);
        dumps[1].origin.hash_tags = true;
        assert_eq!(rebuild(&dumps, 3), Err(RebuildError::HashTagsInSome));
        dumps[0].origin.hash_tags = true;
        assert!(rebuild(&dumps, 3).unwrap().state.hash_tags);
    }

    #[test]
    fn a_group_with_the_dumps_of_both_holders_is_sure() {
        use HeldAs::{Primary, Secondary};
        let dumps = [
            dump(0, 0, Primary, 4, 10),
            dump(1, 0, Secondary, 4, 10),
            dump(2, 1, Primary, 6, 5),
            // The writer of this dump was removed earlier and lacks later writes.
            dump(1, 1, Primary, 5, 9),
            dump(0, 2, HeldAs::Candidate, 3, 1),
        ];
        let Rebuilt { state, groups } = rebuild(&dumps, 3).unwrap();
        assert_eq!(groups, [Certainty::Sure, Certainty::Doubtful, Certainty::Lost]);
        let chosen = choose(&state, &dumps).unwrap();
        let used: Vec<bool> = chosen.verdicts.iter().map(|v| *v == Verdict::Used).collect();
        assert_eq!(used, [true, false, true, false, false]);
        assert!(matches!(chosen.verdicts[1], Verdict::Surpassed));
        let lost: Vec<GroupId> = chosen.lost().collect();
        assert_eq!(lost, [GroupId(2)]);
        assert_eq!(
            chosen.groups[2].above,
            ViewVersion(7),
            "above every version that was ever sent"
        );
    }

    #[test]
    fn inconsistent_dumps_yield_no_state() {
        let good = dump(0, 0, HeldAs::Primary, 1, 1);
        assert_eq!(rebuild(&[], 3), Err(RebuildError::NoDump));
        let mut other = good.clone();
        other.origin.cluster = ClusterId(8);
        let both = RebuildError::SeveralClusters(vec![ClusterId(7), ClusterId(8)]);
        assert_eq!(rebuild(&[good.clone(), other], 3), Err(both));
        let mut other = good.clone();
        other.origin.shards = 3;
        let both = Err(RebuildError::SeveralShardCounts(2, 3));
        assert_eq!(rebuild(&[good.clone(), other], 3), both);
        let far = dump(0, 3, HeldAs::Primary, 1, 1);
        assert!(matches!(rebuild(&[good, far], 3), Err(RebuildError::OtherRing { .. })));
    }
}
