//! One cluster, from its start to its verdict.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use kv_history::{Operation, Operations, Reason};
use kv_protocol::GroupId;
use kv_testkit::random::Random;

use crate::abilities::Abilities;
use crate::bulk::Bulk;
use crate::cluster::{Cluster, Programs, Setting, is_settled};
use crate::doubles::Shown;
use crate::faults::{Double, Fault, Policy, Turns};
use crate::load::{Load, Strength};
use crate::network::Network;
use crate::noticed;
use crate::ordinary::writes::Beside;
use crate::ordinary::{self, Days};
use crate::restored::{self, Restored};
use crate::strike::{Striker, Struck};
use crate::verdict::{self, Counts, Ends, Remains};

/// The load of every round.
pub(crate) const STRENGTH: Strength = Strength { workers: 4, of_objects: 2, threads: 2, rate: 50 };
/// The data of every round. It is large enough that a copy takes a while.
pub(crate) const BULK: Bulk = Bulk { count: 6_000, value_bytes: 4 << 10 };
/// The time for which the load runs before the first fault and after the last one.
pub(crate) const WARM: Duration = Duration::from_millis(800);

/// The purpose of a round.
#[derive(Clone, Debug)]
pub(crate) enum Aim {
    /// This number of single faults, one after the other. The cluster must survive each of them.
    One(u32),
    /// A server, and one of its neighbours during the recovery of the first, are killed.
    Two(Double),
    /// Ordinary days.
    Ordinary(Days),
}

/// The parameters of a round.
#[derive(Debug)]
pub(crate) struct Round<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) dir: PathBuf,
    pub(crate) servers: u16,
    pub(crate) shards: u16,
    pub(crate) hash_tags: bool,
    pub(crate) aim: Aim,
    pub(crate) possible: &'a [Fault],
    pub(crate) abilities: Abilities,
    pub(crate) network: Option<&'a Network>,
    pub(crate) seed: u64,
    /// The time after which no further fault is injected.
    pub(crate) until: Option<Instant>,
}

/// The result of a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) servers: u16,
    pub(crate) dir: PathBuf,
    pub(crate) struck: Vec<Struck>,
    pub(crate) counts: Counts,
    /// The number of operations that were not served, or whose result is unknown, although they should have been
    /// served.
    pub(crate) not_carried_through: u64,
    /// True if the events of the round were ordinary days.
    pub(crate) is_ordinary: bool,
    /// The results of the double fault; `None` for other rounds.
    pub(crate) shown: Option<Shown>,
    pub(crate) failures: Vec<String>,
    pub(crate) took: Duration,
}

impl Round<'_> {
    /// Runs the round, and calls `told` after each fault.
    pub(crate) fn run(&self, turns: &mut Turns, told: &mut dyn FnMut(&Struck)) -> Outcome {
        let start = Instant::now();
        let mut outcome =
            Outcome { servers: self.servers, dir: self.dir.clone(), ..Outcome::default() };
        if let Err(error) = self.try_run(turns, told, &mut outcome) {
            outcome.failures.push(format!("{error:#}"));
        }
        outcome.took = start.elapsed();
        outcome
    }

    fn try_run(
        &self,
        turns: &mut Turns,
        told: &mut dyn FnMut(&Struck),
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let flags = match &self.aim {
            Aim::Ordinary(days) => {
                outcome.is_ordinary = true;
                return ordinary::round::run(self, days, turns, told, outcome);
            }
            Aim::One(_) => Vec::new(),
            Aim::Two(double) => vec!["--on-double-fault".into(), double.policy.name().into()],
        };
        let hash_tags = self.hash_tags;
        let setting = Setting { hash_tags, flags, ..Setting::plain(self.servers, self.shards) };
        if let Some(network) = self.network {
            network.heal()?;
        }
        let mut cluster = Cluster::start(self.programs, &self.dir, &setting, self.network)?;
        BULK.write(&cluster.endpoint(), |_| {})?;
        let load =
            Load::start(self.programs, &cluster, &cluster.dir, self.network, STRENGTH, self.seed)?;
        std::thread::sleep(WARM);
        match &self.aim {
            Aim::One(faults) => self.one_by_one(*faults, turns, cluster, load, told, outcome),
            Aim::Two(double) => self.two(*double, &mut cluster, load, told, outcome),
            Aim::Ordinary(_) => unreachable!("ordinary days run in separate clusters"),
        }
    }

    /// Injects one fault after the other, each when the cluster is whole again. Then stops the cluster and checks the
    /// results.
    fn one_by_one(
        &self,
        faults: u32,
        turns: &mut Turns,
        mut cluster: Cluster,
        load: Load,
        told: &mut dyn FnMut(&Struck),
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let mut random = Random::new(self.seed);
        for _ in 0..faults {
            if self.until.is_some_and(|until| Instant::now() > until) {
                break;
            }
            let fault = turns.next(self.possible, &mut random);
            let mut striker = Striker::new(&mut cluster, &load, self.network, &mut random);
            let struck = striker.strike(fault).with_context(|| format!("while: {fault}"))?;
            turns.count(fault, &struck.name);
            told(&struck);
            let when = format!("after: {}, server {}", struck.name, struck.victim);
            outcome.struck.push(struck);
            cluster.wait_whole(&when)?;
            std::thread::sleep(Duration::from_millis(random.between(50, 400)));
        }
        std::thread::sleep(WARM);
        self.conclude(cluster, load, &Beside::default(), outcome)
    }

    /// Stops the load, stops the cluster in an orderly way, and checks the results.
    pub(crate) fn conclude(
        &self,
        mut cluster: Cluster,
        load: Load,
        beside: &Beside,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let histories = load.stop(&self.dir)?;
        let ended = cluster.stop()?;
        ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
        let placement = cluster.placement();
        let operations = histories.operations()?;
        if let Some(first) = operations.all().find(|(_, one)| one.error == Some(Reason::Lost)) {
            outcome
                .failures
                .push(format!("a group was LOST although only one server was struck: {first:?}"));
        }
        let left = noticed::not_carried_through(&operations, placement, &outcome.struck);
        outcome.not_carried_through = left.len() as u64;
        if let Some(first) = left.first() {
            outcome.failures.push(format!(
                "{} operations were not served although only one server was struck: {first:?}",
                left.len()
            ));
        }
        let remains = Remains::of_whole(&cluster.dir, placement, &[])?;
        let (restored, age) = (Restored::default(), cluster.age());
        let ends = Ends { remains: &remains, restored: &restored, bulk: BULK, beside, age };
        let (struck, failures) = (&outcome.struck, &mut outcome.failures);
        outcome.counts = verdict::judge(&self.dir, placement, histories, ends, struck, failures)?;
        Ok(())
    }

    /// Kills a server, and one of its neighbours before the recovery of the first is over. Then checks the results that
    /// the policy requires.
    fn two(
        &self,
        double: Double,
        cluster: &mut Cluster,
        load: Load,
        told: &mut dyn FnMut(&Struck),
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let mut random = Random::new(self.seed);
        let mut striker = Striker::new(cluster, &load, self.network, &mut random);
        let (mut struck, killed, in_time) = striker.strike_two(double)?;
        if !in_time {
            struck.name = Fault::Kill.to_string();
        }
        told(&struck);
        let [victim, other] = killed.map(|member| member.server.0);
        outcome.struck.push(struck);
        let placement = cluster.placement();
        let mut restored = Restored::default();
        let (histories, remains) = match double.policy {
            // The second kill came after the recovery. So there were two single faults, one after the other.
            _ if !in_time => {
                cluster.wait_whole("after a second server was killed when the first was back")?;
                let histories = load.stop(&self.dir)?;
                let ended = cluster.stop()?;
                ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
                (histories, Remains::of_whole(&self.dir, placement, &[])?)
            }
            Policy::Shutdown => {
                let ended = cluster.await_end().context("after two servers were killed")?;
                ensure!(
                    !ended.success(),
                    "coord exited with status 0 although a second server died before the first was back"
                );
                let histories = load.stop(&self.dir)?;
                let remains = Remains::of_survivors(&self.dir, placement, &killed)?;
                if self.abilities.restore {
                    restored = restored::read_all(
                        self.programs,
                        self.network,
                        (&self.dir, &cluster.setting),
                        &remains.lost(placement),
                        BULK,
                        &histories,
                    )?;
                }
                (histories, remains)
            }
            Policy::Isolate => {
                cluster.wait_status("after two servers were killed (isolate)", is_settled)?;
                let status = cluster.status()?;
                let lost: Vec<GroupId> = status
                    .groups
                    .iter()
                    .filter(|group| group.condition == kv_protocol::status::GroupCondition::Lost)
                    .map(|group| group.group)
                    .collect();
                // This time is long enough for requests to keys of the lost group.
                std::thread::sleep(3 * WARM);
                let histories = load.stop(&self.dir)?;
                // The exit status of this stop is a failure, because no dump of the lost group is complete.
                cluster.stop()?;
                self.check_isolation(
                    &histories.operations()?,
                    placement,
                    [victim, other],
                    &lost,
                    outcome,
                )?;
                (histories, Remains::of_whole(&self.dir, placement, &lost)?)
            }
        };
        let lost = remains.lost(placement);
        let is_lost = |operation: &Operation| operation.error == Some(Reason::Lost);
        let told = histories.operations()?.all().filter(|(_, one)| is_lost(one)).count();
        outcome.shown = in_time.then_some(Shown {
            policy: double.policy,
            restored: restored.count(),
            lost: lost.len() as u64,
            told: told as u64,
        });
        let both = [victim, other];
        for group in lost {
            let home = [group.0, (group.0 + 1) % self.servers];
            if !home.iter().all(|server| both.contains(server)) {
                outcome.failures.push(format!(
                    "group {group} is lost, although the killed servers {both:?} are not its home"
                ));
            }
        }
        let (beside, age) = (Beside::default(), cluster.age());
        let ends =
            Ends { remains: &remains, restored: &restored, bulk: BULK, beside: &beside, age };
        let (struck, failures) = (&outcome.struck, &mut outcome.failures);
        outcome.counts = verdict::judge(&self.dir, placement, histories, ends, struck, failures)?;
        Ok(())
    }

    /// Checks that groups that neither victim held were served all the time. Requests to every lost group, and only
    /// these, must have got LOST.
    fn check_isolation(
        &self,
        operations: &Operations,
        placement: kv_protocol::placement::Placement,
        both: [u16; 2],
        lost: &[GroupId],
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        let is_far = |group: GroupId| {
            !both.contains(&group.0) && !both.contains(&((group.0 + 1) % self.servers))
        };
        let unserved = noticed::unserved(operations, placement, is_far);
        if !unserved.is_empty() {
            outcome.failures.push(format!("groups of other servers were not served: {unserved:?}"));
        }
        let said: Vec<GroupId> = operations
            .all()
            .filter(|(_, operation)| operation.error == Some(Reason::Lost))
            .map(|(key, _)| placement.locate(key.as_bytes()).0)
            .collect();
        for group in &said {
            if !lost.contains(group) {
                bail!("a request to group {group} got LOST, but the group is not lost");
            }
        }
        for group in lost {
            if !said.contains(group) {
                outcome
                    .failures
                    .push(format!("group {group} is lost, but no request to it got LOST"));
            }
        }
        Ok(())
    }
}
