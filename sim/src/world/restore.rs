//! The restore of a stopped cluster, with a new cluster id, new processes, and the data of the dumps.
//!
//! ```text
//!   Idle -> Stopping -> Down: no coordinator runs -> Restoring: new processes load dumps -> Idle
//!                        ^                              | the start has failed
//!                        +------------------------------+
//! ```
//!
//! Every dump that a process ever left is considered. This includes dumps of processes that were removed later, dumps
//! of earlier clusters, and dumps that a crash has cut short.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::cluster::{DurableState, Origin};
use kv_core::dump::{Dump, DumpHeader};
use kv_core::restore::{self, Loss, Plan};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::map::Map;

use super::*;
use crate::dump::{DumpFile, Job, load};
use crate::invariants::stops;

/// The operator, which stops and restores the cluster.
#[derive(Debug, Default)]
pub struct Operator {
    phase: Phase,
    files: Vec<DumpFile>,
    /// The dumps in progress, by process and number.
    jobs: BTreeMap<(usize, u64), Job>,
    numbered: u64,
    /// The processes that received a stop signal or have reached the orphan timeout.
    told: Vec<usize>,
    /// Those of them that leave without orders.
    leaving: Vec<usize>,
    /// The dumps of leaving processes that wait for a retry.
    waiting: Vec<(usize, ReplicaRole)>,
    /// Complete dumps, by writer and group.
    complete: BTreeSet<(Member, GroupId)>,
    /// True if the operator forced the stop, which may lose data.
    insists: bool,
    /// The groups that were LOST when a restored cluster was founded, because no dump of them counts, by cluster.
    given_up: BTreeSet<(ClusterId, GroupId)>,
    /// The durable state of the cluster to be restored.
    durable: Option<DurableState>,
    source: Option<Source>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Stopping,
    Down,
    Restoring,
}

/// The data that the first processes of a restored cluster load.
#[derive(Debug)]
struct Source {
    plan: Plan,
    dumps: Vec<(Dump, Vec<Option<ContentDigest>>)>,
}

impl Operator {
    /// Returns whether the cluster is neither being stopped nor restored.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Returns whether the cluster is being stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.phase == Phase::Stopping
    }

    /// Returns whether no coordinator may be started.
    pub fn is_down(&self) -> bool {
        self.phase == Phase::Down
    }

    /// Returns whether the restored cluster has not served yet.
    pub fn is_restoring(&self) -> bool {
        self.phase == Phase::Restoring
    }

    pub(super) fn note_stopping(&mut self) {
        self.phase = Phase::Stopping;
    }

    /// Registers a dump in progress, and returns its number.
    pub(super) fn begin(&mut self, process: usize, job: Job) -> u64 {
        self.numbered += 1;
        self.jobs.insert((process, self.numbered), job);
        self.numbered
    }

    pub(super) fn job(&mut self, process: usize, number: u64) -> Option<&mut Job> {
        self.jobs.get_mut(&(process, number))
    }

    pub(super) fn take_job(&mut self, process: usize, number: u64) -> Option<Job> {
        self.jobs.remove(&(process, number))
    }

    pub(super) fn take_jobs(&mut self, process: usize) -> Vec<Job> {
        let of_process = (process, 0)..=(process, u64::MAX);
        let keys: Vec<_> = self.jobs.range(of_process).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.jobs.remove(key)).collect()
    }

    pub(super) fn keep(&mut self, file: DumpFile) {
        self.files.push(file);
    }

    pub(super) fn tell(&mut self, process: usize) {
        self.told.push(process);
    }

    /// Returns whether a process received a stop signal or has reached the orphan timeout.
    pub fn told(&self, process: usize) -> bool {
        self.told.contains(&process)
    }

    pub(super) fn leave(&mut self, process: usize) {
        self.leaving.push(process);
    }

    /// Returns whether a process leaves by itself.
    pub(super) fn leaves(&self, process: usize) -> bool {
        self.leaving.contains(&process)
    }

    /// Returns whether a process that leaves by itself has completed all its dumps.
    pub(super) fn has_left(&self, process: usize) -> bool {
        let of_process = (process, 0)..=(process, u64::MAX);
        self.leaving.contains(&process)
            && self.jobs.range(of_process).next().is_none()
            && self.waiting.iter().all(|(waits, _)| *waits != process)
    }

    /// Records a failed dump of a process that leaves by itself, for a retry.
    pub(super) fn wait(&mut self, process: usize, role: ReplicaRole) {
        self.waiting.push((process, role));
    }

    pub(super) fn wait_no_more(&mut self, process: usize, role: ReplicaRole) {
        self.waiting.retain(|waits| *waits != (process, role));
    }

    pub(super) fn note_complete(&mut self, writer: Member, group: GroupId) {
        self.complete.insert((writer, group));
    }

    /// Returns whether a process has left a complete dump of a group.
    pub fn has_complete(&self, writer: Member, group: GroupId) -> bool {
        self.complete.contains(&(writer, group))
    }

    pub(super) fn insist(&mut self) {
        self.insists = true;
    }

    /// Returns whether a cluster was founded with this group LOST, because no dump of the group counts.
    pub fn has_given_up(&self, cluster: ClusterId, group: GroupId) -> bool {
        self.given_up.contains(&(cluster, group))
    }

    /// Returns whether the stop was forced.
    pub fn insists(&self) -> bool {
        self.insists
    }

    /// Returns whether a valid dump of this cluster has all writes of a shard up to `last`.
    pub fn has_dump(&self, cluster: ClusterId, group: GroupId, shard: usize, last: u64) -> bool {
        let has_it = |dump: Dump| {
            let origin = &dump.header.origin;
            let mut lines = dump.header.shards.iter();
            origin.cluster == cluster
                && origin.group == group
                && lines.any(|line| usize::from(line.shard.0) == shard && line.last.0 >= last)
        };
        self.files.iter().rev().filter_map(|file| Dump::parse(&file.text).ok()).any(has_it)
    }

    /// Returns every valid dump, with the digests of its writer's contents.
    fn dumps(&self) -> Vec<(Dump, Vec<Option<ContentDigest>>)> {
        let read = |file: &DumpFile| Some((Dump::parse(&file.text).ok()?, file.contents.clone()));
        self.files.iter().filter_map(read).collect()
    }
}

impl World {
    /// Handles the exit of the coordinator after a stop or a failed start.
    pub(super) fn on_stopped(&mut self, term: u64) {
        if term != self.coordinator.term || self.operator.is_idle() || self.operator.is_down() {
            return;
        }
        self.kill_coordinator();
        self.operator.phase = Phase::Down;
        let delay = self.random.between(50_000_000, 500_000_000);
        self.after(delay, Happening::Restore);
    }

    /// Handles the start of another coordinator. The operator repeats its stop request, because the previous
    /// coordinator may have crashed before it stored the stop.
    pub(super) fn on_coordinator_restarted(&mut self) {
        match self.operator.phase {
            Phase::Stopping => self.after(200_000_000, Happening::Stop),
            Phase::Restoring => self.on_serving(),
            Phase::Idle | Phase::Down => {}
        }
    }

    /// Ends the restore once the restored cluster serves.
    pub(super) fn on_serving(&mut self) {
        let serves = self.coordinator.cluster.as_ref().is_some_and(|c| c.has_served());
        if self.operator.is_restoring() && serves {
            self.operator.phase = Phase::Idle;
            self.operator.insists = false;
            (self.operator.durable, self.operator.source) = (None, None);
        }
    }

    /// Kills all remaining processes, chooses the dumps to use, and founds the restored cluster.
    pub(super) fn restore(&mut self) {
        for process in 0..self.processes.len() {
            self.kill(process);
        }
        let disk = &mut self.coordinator.disk;
        let durable = self
            .operator
            .durable
            .get_or_insert_with(|| disk.take().expect("a stopped cluster has stored its stop"));
        let durable = durable.clone();
        let dumps = self.operator.dumps();
        let headers: Vec<DumpHeader> = dumps.iter().map(|(dump, _)| dump.header.clone()).collect();
        let plan = match restore::choose(&durable, &headers) {
            Ok(plan) => plan,
            Err(error) => {
                self.violation.get_or_insert(Violation::new(5, error.to_string()));
                return;
            }
        };
        self.note_plan(&plan, &headers);
        let parsed: Vec<Dump> = dumps.iter().map(|(dump, _)| dump.clone()).collect();
        self.check(|checks, world| {
            stops::restored_has_all(checks, world, &durable, &parsed, &plan)
        });
        self.counts.restored += 1;
        self.counts.lost_by_restore += plan.lost().count() as u64;
        let foundings = plan.foundings(Loss::Accepted).expect("a loss is accepted");
        let origin = Origin { foundings, ancestors: plan.ancestors.clone() };
        let cluster = ClusterId(self.cluster().0 + 1);
        self.operator.given_up.extend(plan.lost().map(|group| (cluster, group)));
        self.operator.source = Some(Source { plan, dumps });
        self.operator.phase = Phase::Restoring;
        let now = self.clock_of(self.coordinator_host());
        let mut effects = Vec::new();
        self.coordinator.restore(cluster, origin, now, &mut effects);
        self.carry_out(effects);
        self.strike_a_restore();
    }

    fn note_plan(&mut self, plan: &Plan, headers: &[DumpHeader]) {
        for (header, verdict) in headers.iter().zip(&plan.verdicts) {
            let about = About::Group(header.origin.group);
            if header.origin.cluster == plan.cluster {
                let writer = header.origin.writer;
                self.trace.note(self.now, about, format_args!("dump of {writer}: {verdict:?}"));
            }
        }
        for plan in &plan.groups {
            self.trace.note(self.now, About::Group(plan.group), format_args!("{plan:?}"));
        }
    }

    /// Loads the data that the plan assigns to a process. Does nothing unless a restored cluster is being founded.
    pub(super) fn load(&mut self, process: usize) {
        let is_founding = self.coordinator.cluster.as_ref().is_none_or(|c| c.is_founding());
        if !self.operator.is_restoring() || !is_founding {
            return;
        }
        let Some(source) = &self.operator.source else { return };
        let mut result = Ok(());
        for (number, executor) in self.processes[process].shards.iter_mut().enumerate() {
            let (shard, service) = (shard_id(number), &mut executor.shard.service);
            for group in [service.identity.primary_group(), service.identity.secondary_group()] {
                let Some(from) = source.plan.source(group, shard) else { continue };
                let (dump, contents) = &source.dumps[from.dump.0];
                load(service, group, from.last, dump);
                let dumped = contents.get(number).copied().flatten();
                let replica = service.replica(group).expect("the replica was loaded");
                result = result.and_then(|()| stops::restored_equals_dump(replica, dumped));
            }
        }
        self.check(|_, _| result);
    }

    /// Delivers the map to a client. If the map is of an unrelated cluster, the client starts over.
    pub(super) fn on_map(&mut self, client: usize, map: Map) {
        let known = self.clients[client].map.as_ref().map(|map| map.cluster);
        if known.is_some_and(|known| map.ancestors.contains(&known)) {
            // The new cluster has the data and the sessions of the previous one, so operations in flight continue
            // in it.
            self.clients[client].follow(self.now);
        } else if known.is_some_and(|known| known != map.cluster) {
            let mut wishes = Vec::new();
            self.clients[client].enter(&mut wishes);
            self.grant(client, wishes);
        }
        self.clients[client].on_map(self.now, map);
        self.wake_client(client);
    }
}
