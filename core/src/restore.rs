//! Which dumps a cluster is made of again (consistency.md §6).
//!
//! ```text
//!   the coordinator's last durable state --+
//!   the lines of every dump that is found -+-> choose -> for each dump: used, surpassed, refused and why
//!                                                        for each group: a dump a shard, or LOST
//!                                                          -> foundings (unless a loss is not accepted)
//! ```
//!
//! A dump counts if the last durable view of its group names the very process that wrote it as primary
//! or secondary, or, where that view names nobody any more, the view before did: whoever was removed before has missed what was acknowledged since, and a candidate has
//! not got everything. Of those that count, the one of the highest (view, write) is taken, for each shard
//! by itself; every write that was acknowledged is in all of them. Where none counts the group is LOST,
//! even if another dump of it lies around: old values that look like new ones are worse than none.

use std::iter;

use kv_protocol::limits::MAX_ANCESTORS;
use kv_protocol::{ClusterId, GroupId, Member, Peer, SequenceNumber, ShardId, View, ViewVersion};

use crate::cluster::{DurableState, Founding};
use crate::dump::{DumpHeader, DumpedShard};
use crate::holes::{self, Hole};

mod rebuild;
#[cfg(test)]
mod tests;

pub use rebuild::{Certainty, RebuildError, Rebuilt, rebuild};

/// What becomes of one dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At least one shard is restored from it.
    Used,
    /// It counts, but another one is as new or newer in every shard.
    Surpassed,
    /// It does not count.
    Refused(Refusal),
}

/// Why a dump does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is of another cluster, or of this one before it was restored the last time.
    #[error("it is of cluster {theirs}, the state of cluster {ours}")]
    OtherCluster {
        /// The state's.
        ours: ClusterId,
        /// The dump's.
        theirs: ClusterId,
    },
    /// It has another number of shards than the cluster.
    #[error("it has {theirs} shards, the cluster {ours}")]
    OtherShards {
        /// The cluster's.
        ours: u16,
        /// The dump's.
        theirs: u16,
    },
    /// It is of a group that the cluster does not have.
    #[error("it is of group {group}, which the cluster does not have")]
    NoSuchGroup {
        /// The group.
        group: GroupId,
    },
    /// The last view of the group does not name its writer any more.
    #[error("its writer {writer} was removed from group {group} before view {last}")]
    Removed {
        /// The process that wrote it.
        writer: Member,
        /// The group.
        group: GroupId,
        /// The last view.
        last: ViewVersion,
    },
    /// The last view of the group names its writer as candidate.
    #[error("its writer {writer} was only candidate of group {group} in the last view {last}")]
    Candidate {
        /// The process that wrote it.
        writer: Member,
        /// The group.
        group: GroupId,
        /// The last view.
        last: ViewVersion,
    },
}

/// Why nothing can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChooseError {
    /// A dump knows a view that the state does not: later views may name other holders.
    #[error(
        "the dump of {writer} knows view {theirs} of group {group}, the coordinator's state only view \
         {ours}: this is not its last state; restore with the last one"
    )]
    OldState {
        /// The process that wrote the dump.
        writer: Member,
        /// The group.
        group: GroupId,
        /// The newest view in the state.
        ours: ViewVersion,
        /// The view in the dump.
        theirs: ViewVersion,
    },
}

/// Groups are LOST, and whoever restores has not said that they may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no dump of a holder is left of {} (the first: {}); find the missing dumps, or accept the loss",
    count(.groups),
    .groups.first().map_or(0, |group| group.0)
)]
pub struct LossRefused {
    /// The groups.
    pub groups: Vec<GroupId>,
}

fn count(groups: &[GroupId]) -> String {
    if groups.len() == 1 { "1 group".to_owned() } else { format!("{} groups", groups.len()) }
}

/// Whether a cluster may come back without some of its groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// It may not.
    #[default]
    Refused,
    /// What is LOST stays so.
    Accepted,
}

/// Names a dump by its place in the list that was given to [`choose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpNumber(pub usize);

/// Where a shard comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The dump.
    pub dump: DumpNumber,
    /// The last write in it; the next is one more.
    pub last: SequenceNumber,
}

/// What becomes of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// The group.
    pub group: GroupId,
    /// Its views go on above this version.
    pub above: ViewVersion,
    /// By shard: where it comes from; `None`: the group is LOST.
    pub sources: Option<Vec<Source>>,
}

/// What a cluster is restored from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The cluster that was; the restored one gets another name.
    pub cluster: ClusterId,
    /// The ancestors of the restored one: that cluster, and its own.
    pub ancestors: Vec<ClusterId>,
    /// In group order.
    pub groups: Vec<GroupPlan>,
    /// By dump, in the order they were given.
    pub verdicts: Vec<Verdict>,
}

impl Plan {
    /// Groups of which no dump counts.
    pub fn lost(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().filter(|plan| plan.sources.is_none()).map(|plan| plan.group)
    }

    /// Where a group's shard comes from; `None`: it is LOST.
    pub fn source(&self, group: GroupId, shard: ShardId) -> Option<Source> {
        let sources = self.groups.get(usize::from(group.0))?.sources.as_ref()?;
        sources.get(usize::from(shard.0)).copied()
    }

    /// How the groups of the restored cluster begin.
    ///
    /// # Errors
    /// [`LossRefused`]: groups are LOST, and that is not accepted.
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

/// Chooses among complete and unaltered dumps, by the state that the coordinator stored last.
///
/// # Errors
/// [`ChooseError`]: the state is not the last one.
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

/// Why a dump does not count, if it does not.
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

/// Only whom the last view that names anybody names as primary or secondary has every acknowledged write. Such a process
/// may have been told of an older view only, in which it still was candidate: it was made a holder
/// because its copy was complete, and only complete copies are dumped.
fn refusal_by_view(durable: &DurableState, view: &View, writer: Member) -> Option<Refusal> {
    let (group, last) = (view.group, view.version);
    let is_holder = durable.holders(group).any(|holder| holder == writer);
    if is_holder || holes::is_open(Hole::RestoreFromRemoved) {
        return None;
    }
    Some(match view.peer {
        Peer::Candidate(candidate) if candidate == writer => {
            Refusal::Candidate { writer, group, last }
        }
        _ => Refusal::Removed { writer, group, last },
    })
}

/// Of some dumps of a group the newest in a shard; of equal ones the first.
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
