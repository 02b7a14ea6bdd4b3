//! The choice of the dumps from which a cluster is restored (consistency.md §11).
//!
//! ```text
//!   the coordinator's last durable state --+
//!   the headers of all dumps found --------+-> choose -> per dump: used, surpassed, or refused with a reason
//!                                                        per group: a dump for each shard, or LOST
//!                                                          -> foundings (unless a loss is not accepted)
//! ```
//!
//! A dump counts if the last durable view of its group names the process that wrote the dump as primary or secondary.
//! If that view names no process any more, the view before it decides. A process that was removed earlier lacks the
//! writes acknowledged since, and a candidate's copy is incomplete. Among the dumps that count, the one with the
//! highest (view, write) is used, for each shard separately. Every acknowledged write is in all of them. If no dump of
//! a group counts, the group is LOST, even if an older dump exists: outdated values presented as current ones are worse
//! than none.

use std::iter;

use kv_protocol::limits::MAX_ANCESTORS;
use kv_protocol::{ClusterId, GroupId, Member, Peer, SequenceNumber, ShardId, View, ViewVersion};

use crate::cluster::{DurableState, Founding};
use crate::dump::{DumpHeader, DumpedShard};
use crate::mutations::{self, Mutation};

mod rebuild;
#[cfg(test)]
mod tests;

pub use rebuild::{Certainty, RebuildError, Rebuilt, rebuild};

/// The verdict on one dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At least one shard is restored from it.
    Used,
    /// The dump counts, but for every shard another dump that counts is as new or newer.
    Surpassed,
    /// The dump does not count.
    Refused(Refusal),
}

/// The reason why a dump does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The dump belongs to another cluster, or to this one before its last restore.
    #[error(
        "it belongs to cluster {theirs}, but the coordinator's state belongs to cluster {ours}"
    )]
    OtherCluster {
        /// The cluster of the state.
        ours: ClusterId,
        /// The cluster of the dump.
        theirs: ClusterId,
    },
    /// The keys of the dump have other places, because only one of dump and cluster has hash tags.
    #[error("{}", if *theirs {
        "its cluster has hash tags (--hash-tags), but the restored cluster has none"
    } else {
        "its cluster has no hash tags, but the restored cluster has (--hash-tags)"
    })]
    OtherHashTags {
        /// True if the dump is of a cluster with hash tags.
        theirs: bool,
    },
    /// The number of shards of the dump differs from that of the cluster.
    #[error("it has {theirs} shards, but the cluster has {ours}")]
    OtherShards {
        /// The number of shards of the cluster.
        ours: u16,
        /// The number of shards of the dump.
        theirs: u16,
    },
    /// The cluster does not have the group of the dump.
    #[error("it belongs to group {group}, which the cluster does not have")]
    NoSuchGroup {
        /// The group that the dump names.
        group: GroupId,
    },
    /// The last view of the group does not name the writer of the dump.
    #[error("its writer {writer} was removed from group {group}, in view {last} or earlier")]
    Removed {
        /// The process that wrote the dump.
        writer: Member,
        /// The group of the dump.
        group: GroupId,
        /// The last view of the group.
        last: ViewVersion,
    },
    /// The last view of the group names the writer of the dump as candidate.
    #[error("its writer {writer} was only the candidate of group {group} in the last view {last}")]
    Candidate {
        /// The process that wrote the dump.
        writer: Member,
        /// The group of the dump.
        group: GroupId,
        /// The last view of the group.
        last: ViewVersion,
    },
}

/// The reason why no choice is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChooseError {
    /// A dump names a newer view than the state, so the state is outdated and later views may name other holders.
    #[error(
        "the dump of {writer} names view {theirs} of group {group}, but the coordinator's state has only view \
         {ours}: a later state was stored; restore with that state"
    )]
    OldState {
        /// The process that wrote the dump.
        writer: Member,
        /// The group of the dump.
        group: GroupId,
        /// The newest view in the state.
        ours: ViewVersion,
        /// The view in the dump.
        theirs: ViewVersion,
    },
}

/// The error that groups are LOST although the operator has not accepted their loss.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no dump of a holder is left for {} (the first is group {}); find the missing dumps, or accept the loss",
    count(.groups),
    .groups.first().map_or(0, |group| group.0)
)]
pub struct LossRefused {
    /// The groups that are LOST.
    pub groups: Vec<GroupId>,
}

fn count(groups: &[GroupId]) -> String {
    if groups.len() == 1 { "1 group".to_owned() } else { format!("{} groups", groups.len()) }
}

/// The permission to restore a cluster without some of its groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// Every group must be restored.
    #[default]
    Refused,
    /// Groups that are LOST stay LOST.
    Accepted,
}

/// The index of a dump in the list passed to [`choose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpNumber(pub usize);

/// The source of a shard's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The dump that contains the shard.
    pub dump: DumpNumber,
    /// The last write of the shard in the dump; the next write gets the following number.
    pub last: SequenceNumber,
}

/// The plan for one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// The group to which the plan applies.
    pub group: GroupId,
    /// The version above which the views of the group continue.
    pub above: ViewVersion,
    /// The source of each shard; `None` if the group is LOST.
    pub sources: Option<Vec<Source>>,
}

/// The plan of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The cluster that is restored; the new cluster gets another id.
    pub cluster: ClusterId,
    /// The ancestors of the new cluster: the restored one, followed by its ancestors.
    pub ancestors: Vec<ClusterId>,
    /// The plan of each group, by group.
    pub groups: Vec<GroupPlan>,
    /// The verdict on each dump, in the order of the list passed to [`choose`].
    pub verdicts: Vec<Verdict>,
}

impl Plan {
    /// Returns the groups for which no dump counts.
    pub fn lost(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().filter(|plan| plan.sources.is_none()).map(|plan| plan.group)
    }

    /// Returns the source of a group's shard; `None` if the group is LOST.
    pub fn source(&self, group: GroupId, shard: ShardId) -> Option<Source> {
        let sources = self.groups.get(usize::from(group.0))?.sources.as_ref()?;
        sources.get(usize::from(shard.0)).copied()
    }

    /// Returns the founding of each group of the new cluster.
    ///
    /// # Errors
    /// [`LossRefused`] if groups are LOST and their loss is not accepted.
    pub fn foundings(&self, loss: Loss) -> Result<Vec<Founding>, LossRefused> {
        let lost: Vec<GroupId> = self.lost().collect();
        if loss == Loss::Refused && !lost.is_empty() {
            return Err(LossRefused { groups: lost });
        }
        let founding =
            |plan: &GroupPlan| Founding { above: plan.above, is_lost: plan.sources.is_none() };
        Ok(self.groups.iter().map(founding).collect())
    }
}

/// Chooses the dumps to use among complete and unaltered dumps, by the last state that the coordinator stored.
///
/// # Errors
/// [`ChooseError`] if a dump names a newer view than the state, so the state is not the last one.
pub fn choose(durable: &DurableState, dumps: &[DumpHeader]) -> Result<Plan, ChooseError> {
    let mut verdicts = Vec::new();
    for dump in dumps {
        verdicts.push(match judge(durable, dump)? {
            Some(refusal) => Verdict::Refused(refusal),
            None => Verdict::Surpassed,
        });
    }
    let mut groups = Vec::new();
    for view in &durable.views {
        let counts = |at: &usize| {
            dumps[*at].origin.group == view.group && verdicts[*at] == Verdict::Surpassed
        };
        let counting: Vec<usize> = (0..dumps.len()).filter(counts).collect();
        let shards = (0..durable.shards).map(|shard| newest(dumps, &counting, ShardId(shard)));
        let sources: Option<Vec<Source>> = shards.collect();
        groups.push(GroupPlan { group: view.group, above: view.version, sources });
    }
    for source in groups.iter().flat_map(|plan| plan.sources.iter().flatten()) {
        verdicts[source.dump.0] = Verdict::Used;
    }
    let cluster = durable.cluster;
    let known = iter::once(cluster).chain(durable.ancestors.iter().copied());
    Ok(Plan { cluster, ancestors: known.take(MAX_ANCESTORS).collect(), groups, verdicts })
}

/// Returns the reason why a dump does not count; `None` if it counts.
fn judge(durable: &DurableState, dump: &DumpHeader) -> Result<Option<Refusal>, ChooseError> {
    let (ours, origin) = (durable.cluster, &dump.origin);
    let (writer, group) = (origin.writer, origin.group);
    if origin.cluster != ours {
        return Ok(Some(Refusal::OtherCluster { ours, theirs: origin.cluster }));
    }
    if origin.shards != durable.shards {
        let refusal = Refusal::OtherShards { ours: durable.shards, theirs: origin.shards };
        return Ok(Some(refusal));
    }
    if origin.hash_tags != durable.hash_tags {
        return Ok(Some(Refusal::OtherHashTags { theirs: origin.hash_tags }));
    }
    let Some(view) = durable.views.get(usize::from(group.0)) else {
        return Ok(Some(Refusal::NoSuchGroup { group }));
    };
    let newest = dump.shards.iter().map(|shard| shard.view).max().unwrap_or_default();
    if newest > view.version {
        let (ours, theirs) = (view.version, newest);
        return Err(ChooseError::OldState { writer, group, ours, theirs });
    }
    Ok(refusal_by_view(durable, view, writer))
}

/// Returns a refusal unless the last view that names any process names the writer as primary or secondary. Only such a
/// process has every acknowledged write. The newest view that the process had installed may be an older one in which
/// it was a candidate. Its dump counts nevertheless, because only complete copies are dumped.
fn refusal_by_view(durable: &DurableState, view: &View, writer: Member) -> Option<Refusal> {
    let (group, last) = (view.group, view.version);
    let is_holder = durable.holders(group).any(|holder| holder == writer);
    if is_holder || mutations::is_open(Mutation::RestoreFromRemoved) {
        return None;
    }
    Some(match view.peer {
        Peer::Candidate(candidate) if candidate == writer => {
            Refusal::Candidate { writer, group, last }
        }
        _ => Refusal::Removed { writer, group, last },
    })
}

/// Returns the newest dump of a shard among the dumps of its group; the first one if several are equally new.
fn newest(dumps: &[DumpHeader], counting: &[usize], shard: ShardId) -> Option<Source> {
    let line = |at: usize| -> Option<(usize, DumpedShard)> {
        let line = dumps[at].shards.iter().find(|line| line.shard == shard)?;
        Some((at, *line))
    };
    let lines = counting.iter().filter_map(|at| line(*at));
    let newer = |one: (usize, DumpedShard), other: (usize, DumpedShard)| {
        let age = |line: &DumpedShard| (line.view, line.last);
        if age(&other.1) > age(&one.1) { other } else { one }
    };
    let (at, line) = lines.reduce(newer)?;
    Some(Source { dump: DumpNumber(at), last: line.last })
}
