//! Fault injection, preferably while a write is in flight.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kv_protocol::Member;
use kv_testkit::process::{self, Signal};
use kv_testkit::random::Random;

use crate::clock::now_ns;
use crate::cluster::Cluster;
use crate::faults::{Double, Far, Fault, Two, Way};
use crate::limits;
use crate::load::Load;
use crate::network::{End, Network};
use crate::steps::{Steps, Told};

/// The maximum time for which the injector waits for a write in flight.
const AIM: Duration = Duration::from_millis(100);
/// The range of the durations of hangs, in milliseconds. A hang is longer than the grace (625 ms), and often so long
/// that the server is replaced.
const HANG_MS: (u64, u64) = (700, 2_500);
/// The range of the durations of cuts, in milliseconds.
const CUT_MS: (u64, u64) = (800, 4_000);
/// The timeout for each expected event in the log, such as a step of a recovery.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval between two reads of the log.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// A fault that was injected.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    /// The name of the fault in the table.
    pub(crate) name: String,
    pub(crate) victim: u16,
    /// The time of the fault, by the clock of the history. If the fault consists of two strikes, it is the time of the
    /// first. For the kill of a replacement, it is the time of that kill.
    pub(crate) time_ns: i64,
    /// The time at which the injection began, at or shortly before the first strike.
    pub(crate) began_ns: i64,
    /// The groups of the victim. If only the coordinator was struck, or for an ordinary day: all groups.
    pub(crate) groups: Vec<u16>,
    /// The longest stall that the fault may cause.
    pub(crate) limit: Duration,
    /// The time until which clients were cut off from the victim while the other processes still reached it. `None` if
    /// they were not cut off.
    pub(crate) apart_until_ns: Option<i64>,
    /// The time until which requests may fail because the cluster was stopped or had no room. `None` if none may fail.
    pub(crate) away_until_ns: Option<i64>,
}

/// The injector of faults into one cluster.
pub(crate) struct Striker<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) load: &'a Load,
    pub(crate) network: Option<&'a Network>,
    pub(crate) random: &'a mut Random,
    steps: Steps,
    /// The time for which no recovery was possible during this fault.
    helpless: Duration,
}

impl<'a> Striker<'a> {
    pub(crate) fn new(
        cluster: &'a mut Cluster,
        load: &'a Load,
        network: Option<&'a Network>,
        random: &'a mut Random,
    ) -> Striker<'a> {
        let steps = Steps::from_now(&cluster.log());
        Striker { cluster, load, network, random, steps, helpless: Duration::ZERO }
    }

    /// Injects one fault into a cluster that is whole. When the function returns, the fault is over, but the
    /// cluster may not be whole yet.
    pub(crate) fn strike(&mut self, fault: Fault) -> anyhow::Result<Struck> {
        let count = self.cluster.setting.servers;
        let victim = u16::try_from(self.random.below(u64::from(count))).expect("a server");
        let pid = self.cluster.server_pid(victim)?;
        let mut name = fault.to_string();
        let mut groups = self.groups_of(victim);
        let mut apart_until_ns = None;
        self.helpless = Duration::ZERO;
        self.steps.news();
        let began_ns = now_ns();
        let time_ns = match fault {
            Fault::Kill => self.hit(&groups, pid, Signal::KILL),
            Fault::Hang => {
                let time = self.hit(&groups, pid, Signal::STOP);
                self.pause(HANG_MS);
                process::signal(pid, Signal::CONT);
                time
            }
            Fault::Replacement(step) => {
                let (time, met) = self.replacement(victim, pid, step)?;
                name = match met {
                    Some(met) => Fault::Replacement(met).to_string(),
                    None => Fault::Kill.to_string(),
                };
                time
            }
            Fault::Coordinator(None) => {
                groups = (0..count).collect();
                self.load.flight.aim(&groups, AIM);
                let time = now_ns();
                self.coordinator_away()?;
                time
            }
            Fault::Coordinator(Some(step)) => {
                let time = self.hit(&groups, pid, Signal::KILL);
                let met = self.await_step(victim, step)?;
                name = Fault::Coordinator(met).to_string();
                self.coordinator_away()?;
                time
            }
            Fault::Cut(far, way) => {
                self.load.flight.aim(&groups, AIM);
                let (time, cut) = (now_ns(), Instant::now());
                self.cut(victim, far, way)?;
                self.pause(CUT_MS);
                self.network()?.heal()?;
                if far == Far::Clients {
                    apart_until_ns = Some(now_ns());
                    // The kernel doubles the time before each retransmission. So after the cut, the retransmission
                    // of dropped packets may take as long again. The next fault begins only afterwards, so that
                    // such delays are not attributed to it.
                    std::thread::sleep(cut.elapsed());
                    self.helpless = cut.elapsed();
                }
                time
            }
            Fault::Two(two) => self.two(two, victim, pid, &groups)?,
        };
        let limit = limits::of(fault) + self.helpless;
        let away_until_ns = None;
        Ok(Struck { name, victim, time_ns, began_ns, groups, limit, apart_until_ns, away_until_ns })
    }

    fn two(&mut self, two: Two, victim: u16, pid: u32, groups: &[u16]) -> anyhow::Result<i64> {
        Ok(match two {
            Two::HangAndKill => {
                let time = self.hit(groups, pid, Signal::STOP);
                self.pause((50, 1_500));
                process::signal(pid, Signal::KILL);
                time
            }
            Two::CutAndHang => {
                self.load.flight.aim(groups, AIM);
                let time = now_ns();
                self.cut(victim, Far::Next, Way::Both)?;
                self.pause((20, 400));
                process::signal(pid, Signal::STOP);
                self.pause(HANG_MS);
                process::signal(pid, Signal::CONT);
                self.network()?.heal()?;
                time
            }
            Two::CutAndKill => {
                self.load.flight.aim(groups, AIM);
                let time = now_ns();
                self.cut(victim, Far::Next, Way::Both)?;
                self.pause((20, 200));
                process::signal(pid, Signal::KILL);
                self.pause((100, 1_500));
                self.network()?.heal()?;
                time
            }
            Two::KillAndCoordinator => {
                let time = self.hit(groups, pid, Signal::KILL);
                self.coordinator_away()?;
                time
            }
        })
    }

    /// Kills a server, and one of its neighbours in a step of the recovery. Returns the fault, both processes, and
    /// whether the recovery was still in progress when the second process died.
    pub(crate) fn strike_two(
        &mut self,
        double: Double,
    ) -> anyhow::Result<(Struck, [Member; 2], bool)> {
        let count = self.cluster.setting.servers;
        let victim = u16::try_from(self.random.below(u64::from(count))).expect("a server");
        let other = if double.next { victim + 1 } else { victim + count - 1 } % count;
        let (pid, other_pid) = (self.cluster.server_pid(victim)?, self.cluster.server_pid(other)?);
        let killed = [self.cluster.member(victim)?, self.cluster.member(other)?];
        let groups = self.groups_of(victim);
        self.steps.news();
        let time_ns = self.hit(&groups, pid, Signal::KILL);
        let met = self.await_step(victim, double.step)?;
        process::signal(other_pid, Signal::KILL);
        let in_time = met.is_some() && !self.was_back_before_down(victim, other)?;
        let name = double.to_string();
        let (began_ns, limit) = (time_ns, limits::AFTER_DEATH);
        let (apart_until_ns, away_until_ns) = (None, None);
        let struck = Struck {
            name,
            victim,
            time_ns,
            began_ns,
            groups,
            limit,
            apart_until_ns,
            away_until_ns,
        };
        Ok((struck, killed, in_time))
    }

    /// Waits until the coordinator has detected the death of server `other`. Returns whether `victim` was back before.
    /// A short recovery may end before the kill takes effect.
    fn was_back_before_down(&mut self, victim: u16, other: u16) -> anyhow::Result<bool> {
        let until = Instant::now() + STEP_TIMEOUT;
        let mut is_back = false;
        while Instant::now() < until {
            for (id, told) in self.steps.news() {
                match told {
                    Told::Back if id == victim => is_back = true,
                    Told::Down if id == other => return Ok(is_back),
                    _ => {}
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!("the coordinator did not log the death of server {other} within {STEP_TIMEOUT:?}")
    }

    /// Kills a server, and in this step of the recovery the process that replaces it. In step 0 the server is suspended
    /// first, and then killed. Returns the time of the last strike, and the step according to the log. The step is
    /// `None` if the recovery was complete before the second kill took effect.
    fn replacement(
        &mut self,
        victim: u16,
        pid: u32,
        step: u8,
    ) -> anyhow::Result<(i64, Option<u8>)> {
        let groups = self.groups_of(victim);
        // In step 0 the old process must still exist, so it is suspended instead of killed.
        let first = if step == 0 { Signal::STOP } else { Signal::KILL };
        let mut time = self.hit(&groups, pid, first);
        let (mut target, mut met) = (pid, None);
        let until = Instant::now() + STEP_TIMEOUT;
        let mut is_due = false;
        while !is_due {
            if Instant::now() > until {
                process::signal(pid, Signal::CONT);
                bail!("step {step} of server {victim} was not logged within {STEP_TIMEOUT:?}");
            }
            for (id, told) in self.steps.news() {
                match told {
                    _ if id != victim => {}
                    Told::Started { pid } => {
                        target = pid;
                        is_due |= step == 1;
                    }
                    Told::Step(now) => {
                        met = Some(now);
                        is_due |= now == step && step != 1 || now > step;
                    }
                    Told::Back => return Ok((time, None)),
                    Told::Down => {}
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if target != pid || step == 0 {
            time = now_ns();
            process::signal(target, Signal::KILL);
        }
        // The step in which the process died is the last one that was logged before its end.
        let until = Instant::now() + STEP_TIMEOUT;
        while Instant::now() < until {
            for (id, told) in self.steps.news() {
                match told {
                    Told::Step(now) if id == victim => met = Some(now),
                    Told::Started { .. } | Told::Down if id == victim => return Ok((time, met)),
                    Told::Back if id == victim => return Ok((time, None)),
                    _ => {}
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!(
            "the death of the replacement of server {victim} was not logged within {STEP_TIMEOUT:?}"
        )
    }

    /// Waits for this step of a server's recovery, or a later one, and returns it. Returns `None` if the recovery is
    /// complete.
    fn await_step(&mut self, victim: u16, step: u8) -> anyhow::Result<Option<u8>> {
        let until = Instant::now() + STEP_TIMEOUT;
        while Instant::now() < until {
            let mut found = None;
            for (id, told) in self.steps.news() {
                match told {
                    Told::Step(now) if id == victim && now >= step => found = Some(Some(now)),
                    Told::Back if id == victim => found = Some(None),
                    _ => {}
                }
            }
            if let Some(found) = found {
                return Ok(found);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!("step {step} of server {victim} was not logged within {STEP_TIMEOUT:?}")
    }

    fn groups_of(&self, server: u16) -> Vec<u16> {
        let count = self.cluster.setting.servers;
        vec![server, (server + count - 1) % count]
    }

    /// Sends a signal once a write to one of these groups is in flight, or after [`AIM`]. Returns the time of the
    /// signal.
    fn hit(&self, groups: &[u16], pid: u32, signal: Signal) -> i64 {
        self.load.flight.aim(groups, AIM);
        let time = now_ns();
        process::signal(pid, signal);
        time
    }

    /// Kills the coordinator, and starts it again after a while.
    fn coordinator_away(&mut self) -> anyhow::Result<()> {
        let killed = Instant::now();
        self.cluster.kill_coordinator()?;
        self.pause((20, 800));
        self.cluster.restart_coordinator()?;
        self.helpless = killed.elapsed();
        Ok(())
    }

    fn pause(&mut self, (low, high): (u64, u64)) {
        std::thread::sleep(Duration::from_millis(self.random.between(low, high)));
    }

    fn network(&self) -> anyhow::Result<&'a Network> {
        self.network.context("cannot cut a link: this cluster has no network")
    }

    fn cut(&self, victim: u16, far: Far, way: Way) -> anyhow::Result<()> {
        let (network, count) = (self.network()?, self.cluster.setting.servers);
        let own = End::Server(victim);
        let ends = match far {
            Far::Next => vec![End::Server((victim + 1) % count)],
            Far::Coordinator => vec![End::Hub],
            Far::Clients => vec![End::Clients],
            Far::Everybody => (0..count)
                .filter(|id| *id != victim)
                .map(End::Server)
                .chain([End::Hub, End::Clients])
                .collect(),
        };
        for end in ends {
            if way != Way::In {
                network.cut(own, end)?;
            }
            if way != Way::Out {
                network.cut(end, own)?;
            }
        }
        Ok(())
    }
}
