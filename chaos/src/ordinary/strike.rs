//! The injection of one event of an ordinary day, and the checks of what must not have changed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_protocol::ServerId;
use kv_protocol::limits::MAX_VALUE_BYTES;
use kv_protocol::status::{AlarmKind, ClusterStatus};
use kv_testkit::process::{self, Signal};
use kv_testkit::random::Random;
use kv_testkit::threads::StandingThread;
use kv_testkit::{key_at, wait_for};

use super::ground::Made;
use super::writes::Beside;
use super::{Day, places};
use crate::clock::now_ns;
use crate::cluster::Cluster;
use crate::limits;
use crate::load::Load;
use crate::measure::floods;
use crate::measure::floods::sender;
use crate::measure::floods::shape::{Kind, Manner, QUICK, Shape};
use crate::strike::Struck;

/// The maximum time for which the injector waits for a write in flight.
const AIM: Duration = Duration::from_millis(100);
/// The range of the durations of suspensions, in milliseconds.
const SUSPEND_MS: (u64, u64) = (100, 4_000);
/// The range of the durations of suspensions that must exceed the grace, in milliseconds.
const SUSPEND_LONG_MS: (u64, u64) = (700, 4_000);
/// The range of the durations of very long suspensions, in milliseconds. They exceed the time for which a stop waits
/// for a silent server.
const NIGHT_MS: (u64, u64) = (34_000, 36_000);
/// The share of suspensions during a stop that are very long, per mille.
const NIGHT_PER_MILLE: u64 = 125;
/// The range of the durations of stalls, in milliseconds.
const STALL_MS: (u64, u64) = (100, 700);
/// The range of the durations for which the disk is frozen, in milliseconds.
const FREEZE_MS: (u64, u64) = (1_000, 2_500);
/// The range of times between two signals in quick succession, in milliseconds.
const APART_MS: (u64, u64) = (0, 60);
/// The range of times from the beginning of a stop or a recovery to the suspension, in milliseconds.
const INTO_MS: (u64, u64) = (0, 300);
/// The range of times from the beginning of a restore to the suspension, in milliseconds. It includes the start of
/// processes.
const INTO_RESTORE_MS: (u64, u64) = (0, 800);
const FLOOD: Duration = Duration::from_millis(1_500);
/// The interval between two searches for servers that have not received SIGTERM yet.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// The timeout for the exit of a server, and for the alarm of a stop whose dumps do not fit.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);

/// The flood that reads values of 16 MiB.
const READERS: Shape =
    Shape { kind: Kind::Get(MAX_VALUE_BYTES), manner: Manner::Closed, connections: 32 };
/// The flood that requests values of 16 MiB and never reads the responses.
const NEVER_READ: Shape =
    Shape { kind: Kind::Get(MAX_VALUE_BYTES), manner: Manner::Unread, connections: 64 };

/// The changes in the cluster that an event may cause.
#[derive(Clone, Debug, PartialEq, Eq)]
enum May {
    /// No view and no process may change.
    Nothing,
    /// These servers may lose their places in groups, and their processes may be replaced.
    Places(Vec<u16>),
    /// Everything may change, because the cluster is stopped and restarted.
    Everything,
}

/// The permitted effects of one injected event.
struct Done {
    may: May,
    /// The longest stall of clients that the event may cause.
    limit: Duration,
    /// True if operations may fail until the event is over.
    is_away: bool,
}

fn may(victim: u16) -> May {
    May::Places(vec![victim])
}

impl Done {
    fn of(may: May, limit: Duration) -> Done {
        Done { may, limit, is_away: false }
    }

    fn away(may: May, lasted: Duration) -> Done {
        Done { may, limit: lasted + limits::AFTER_DEATH, is_away: true }
    }
}

/// The injector of ordinary days into one cluster.
pub(super) struct Striker<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) load: &'a Load,
    pub(super) made: &'a Made,
    pub(super) beside: &'a mut Beside,
    pub(super) random: &'a mut Random,
}

impl Striker<'_> {
    /// Injects one event into a cluster that is whole, and waits until the cluster is whole again. If something changed
    /// that the event may not change, adds a description of the change to `failures`.
    pub(super) fn strike(
        &mut self,
        day: Day,
        failures: &mut Vec<String>,
    ) -> anyhow::Result<Struck> {
        let count = self.cluster.setting.servers;
        let victim = u16::try_from(self.random.below(u64::from(count))).expect("a server");
        let before = self.cluster.status()?;
        let log_begins = fs::metadata(self.cluster.log()).map_or(0, |log| log.len());
        let groups: Vec<u16> = (0..count).collect();
        self.load.flight.aim(&groups, AIM);
        let time_ns = now_ns();
        let done = self.carry_out(day, victim, &before).with_context(|| format!("while: {day}"))?;
        let away_until_ns = done.is_away.then(now_ns);
        self.cluster.wait_whole(&format!("after: {day}, server {victim}"))?;
        let log = fs::read(self.cluster.log()).context("read the coordinator's log")?;
        let log = log.get(usize::try_from(log_begins)?..).unwrap_or_default();
        let after = self.cluster.status()?;
        let wrong = wrong(&done.may, &before, &after, &String::from_utf8_lossy(log));
        failures.extend(wrong.into_iter().map(|what| format!("{day}, server {victim}: {what}")));
        Ok(Struck {
            name: day.to_string(),
            victim,
            time_ns,
            began_ns: time_ns,
            groups,
            limit: done.limit,
            apart_until_ns: None,
            away_until_ns,
        })
    }

    fn carry_out(&mut self, day: Day, victim: u16, before: &ClusterStatus) -> anyhow::Result<Done> {
        let start = Instant::now();
        let pid = before.servers[usize::from(victim)].pid;
        let pid = pid.with_context(|| format!("server {victim} has not started"))?;
        match day {
            Day::Leave => {
                process::signal(pid, Signal::TERM);
                await_end_of(pid)?;
                Ok(Done::of(may(victim), limits::AFTER_DEATH))
            }
            Day::LeaveTwice => {
                process::signal(pid, Signal::TERM);
                self.sleep(INTO_MS);
                process::signal(pid, Signal::TERM);
                await_end_of(pid)?;
                // The shards of the server are frozen during its dump, and no other server takes over before the
                // server has exited.
                Ok(Done::of(may(victim), start.elapsed() + limits::AFTER_DEATH))
            }
            Day::LeaveTwo => {
                let next = (victim + 1) % self.cluster.setting.servers;
                let other = before.servers[usize::from(next)].pid;
                let other = other.with_context(|| format!("server {next} has not started"))?;
                process::signal(pid, Signal::TERM);
                self.sleep(APART_MS);
                process::signal(other, Signal::TERM);
                await_end_of(pid)?;
                await_end_of(other)?;
                Ok(Done::of(May::Places(vec![victim, next]), limits::AFTER_DEATH))
            }
            Day::LeaveAll => {
                self.tell_all_to_stop()?;
                self.revive("--resume", false)?;
                Ok(Done::away(May::Everything, start.elapsed()))
            }
            Day::Suspend => {
                let lasted = self.suspend(SUSPEND_MS);
                Ok(Done::of(May::Nothing, lasted + limits::AFTER_DEATH))
            }
            Day::SuspendRecovery => {
                process::signal(pid, Signal::KILL);
                self.sleep(INTO_MS);
                let lasted = self.suspend(SUSPEND_MS);
                Ok(Done::of(may(victim), lasted + limits::AFTER_DEATH))
            }
            Day::SuspendLeave => {
                process::signal(pid, Signal::TERM);
                self.sleep(INTO_MS);
                let lasted = self.suspend(SUSPEND_MS);
                await_end_of(pid)?;
                Ok(Done::of(may(victim), lasted + limits::AFTER_DEATH))
            }
            Day::SuspendStop => {
                process::signal(self.cluster.coord_pid(), Signal::TERM);
                self.sleep(INTO_MS);
                let is_night = self.random.per_mille(NIGHT_PER_MILLE);
                self.suspend(if is_night { NIGHT_MS } else { SUSPEND_LONG_MS });
                self.await_end()?;
                self.revive("--restore", false)?;
                Ok(Done::away(May::Everything, start.elapsed()))
            }
            Day::SuspendRestore => {
                process::signal(self.cluster.coord_pid(), Signal::TERM);
                self.await_end()?;
                self.revive("--resume", true)?;
                Ok(Done::away(May::Everything, start.elapsed()))
            }
            Day::Stall => {
                let shard = self.random.below(u64::from(self.cluster.setting.shards));
                let stalled = StandingThread::stop(pid, &format!("shard-{shard}"))?;
                ensure!(stalled.is_some(), "this machine does not permit ptrace(2)");
                self.sleep(STALL_MS);
                drop(stalled);
                Ok(Done::of(may(victim), start.elapsed() + limits::AFTER_SILENCE))
            }
            Day::Flood => {
                // The sequence numbers of writes of a flood are not counted.
                let is_possible = |shape: &&Shape| shape.value_bytes().is_none() && !shape.writes();
                let shapes: Vec<&Shape> = QUICK.iter().filter(is_possible).collect();
                let shape = *shapes[self.random.index(shapes.len())];
                self.flood(victim, before, &[shape])?;
                Ok(Done::of(May::Nothing, FLOOD + limits::AFTER_DEATH))
            }
            Day::LongReaders => {
                self.flood(victim, before, &[READERS, NEVER_READ])?;
                Ok(Done::of(May::Nothing, FLOOD + limits::AFTER_DEATH))
            }
            Day::Freeze => {
                let frozen = self.freeze()?;
                self.sleep(INTO_MS);
                // Each connection causes a line in the log, which is on the frozen file system.
                send_garbage(before);
                await_thaw(frozen)?;
                Ok(Done::of(May::Nothing, limits::AFTER_DEATH))
            }
            Day::FreezeKill => {
                let frozen = self.freeze()?;
                self.sleep(INTO_MS);
                process::signal(pid, Signal::KILL);
                await_thaw(frozen)?;
                Ok(Done::of(may(victim), start.elapsed() + limits::AFTER_DEATH))
            }
            Day::FreezeStop => {
                let frozen = self.freeze()?;
                self.sleep(INTO_MS);
                process::signal(self.cluster.coord_pid(), Signal::TERM);
                await_thaw(frozen)?;
                self.await_end()?;
                self.revive("--resume", false)?;
                Ok(Done::away(May::Everything, start.elapsed()))
            }
            Day::FullLeave | Day::FullKill => {
                self.made.fill()?;
                let is_told = day == Day::FullLeave;
                process::signal(pid, if is_told { Signal::TERM } else { Signal::KILL });
                await_end_of(pid)?;
                self.cluster.wait_whole("while the file system is full")?;
                self.made.empty()?;
                Ok(Done::of(may(victim), limits::AFTER_DEATH))
            }
            Day::FullStop => {
                self.stop_when_full()?;
                self.revive("--resume", false)?;
                Ok(Done::away(May::Everything, start.elapsed()))
            }
            Day::FillLimit | Day::FillCgroup => {
                let kills = self.made.oom_kills()?;
                let written = self.beside.fill(self.cluster)?;
                if day == Day::FillCgroup {
                    self.kill_while_full(victim, before)?;
                }
                self.beside.empty(self.cluster, written)?;
                let killed = self.made.oom_kills()? - kills;
                ensure!(killed == 0, "the kernel killed {killed} processes for lack of memory");
                let may = if day == Day::FillCgroup { may(victim) } else { May::Nothing };
                Ok(Done::away(may, start.elapsed()))
            }
        }
    }

    /// Kills a server while memory is full, and waits until the cluster is whole. The copies to the replacement must
    /// not exceed the memory of any server.
    fn kill_while_full(&mut self, victim: u16, before: &ClusterStatus) -> anyhow::Result<()> {
        let pid = before.servers[usize::from(victim)].pid;
        let pid = pid.with_context(|| format!("server {victim} has not started"))?;
        process::signal(pid, Signal::KILL);
        self.cluster.wait_whole("after a server was killed while memory was full")?;
        Ok(())
    }

    /// Sends one SIGTERM to each server, including servers that start meanwhile, until the coordinator has exited too.
    fn tell_all_to_stop(&mut self) -> anyhow::Result<()> {
        let mut told = BTreeSet::new();
        while self.cluster.is_running()? {
            let mut servers = self.cluster.servers();
            while !servers.is_empty() {
                let (pid, _) = servers.swap_remove(self.random.index(servers.len()));
                if told.insert(pid) {
                    process::signal(pid, Signal::TERM);
                    self.sleep(APART_MS);
                }
            }
            std::thread::sleep(TELL_EVERY);
        }
        self.await_end()
    }

    fn await_end(&mut self) -> anyhow::Result<()> {
        let ended = self.cluster.await_end()?;
        ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
        Ok(())
    }

    /// Fills the file system and stops the cluster. Frees the space after the coordinator has raised the alarm that
    /// dumps fail, and waits for the end of the stop.
    fn stop_when_full(&mut self) -> anyhow::Result<()> {
        self.made.fill()?;
        let servers = self.cluster.servers();
        process::signal(self.cluster.coord_pid(), Signal::TERM);
        wait_for("the alarm that dumps fail", NOTICE_LIMIT, || {
            let status = self.cluster.status().ok()?;
            let is_due =
                |alarm: &kv_protocol::status::AlarmStatus| alarm.kind == AlarmKind::OrderFailed;
            status.alarms.iter().any(is_due).then_some(())
        })?;
        self.sleep(SUSPEND_MS);
        let dead = servers.iter().filter(|(pid, _)| !process::is_alive(*pid)).count();
        ensure!(dead == 0, "{dead} servers ended although no dump was complete");
        self.made.empty()?;
        self.await_end()
    }

    /// Restarts the stopped cluster with this flag, and removes the renamed dumps from which it was restored. With
    /// `is_suspended`, suspends all processes during the restart.
    fn revive(&mut self, flag: &str, is_suspended: bool) -> anyhow::Result<()> {
        let mut flags = vec![flag.to_owned()];
        if flag == "--restore" {
            flags.push(self.cluster.dir.display().to_string());
        }
        self.cluster.revive(&flags)?;
        if is_suspended {
            self.sleep(INTO_RESTORE_MS);
            self.suspend(SUSPEND_MS);
        }
        self.cluster.wait_whole(&format!("after the cluster was restarted with {flag}"))?;
        for entry in fs::read_dir(&self.cluster.dir).context("read the cluster's directory")? {
            let path = entry?.path();
            if path.to_string_lossy().contains(".old") {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Suspends every server and the coordinator for a random time in the range `lasts`, in milliseconds. Returns the
    /// length of the suspension.
    fn suspend(&mut self, lasts: (u64, u64)) -> Duration {
        let start = Instant::now();
        let mut pids: Vec<u32> = self.cluster.servers().into_iter().map(|(pid, _)| pid).collect();
        pids.push(self.cluster.coord_pid());
        let first = self.random.index(pids.len());
        pids.rotate_left(first);
        pids.iter().for_each(|pid| process::signal(*pid, Signal::STOP));
        self.sleep(lasts);
        pids.reverse();
        pids.iter().for_each(|pid| process::signal(*pid, Signal::CONT));
        start.elapsed()
    }

    /// Sends floods of these shapes to a server at the same time. If a shape reads a value, writes the value first and
    /// deletes it afterwards.
    fn flood(
        &mut self,
        victim: u16,
        status: &ClusterStatus,
        shapes: &[Shape],
    ) -> anyhow::Result<()> {
        let victim = ServerId(victim);
        let key =
            key_at(self.cluster.placement(), victim.home_group().0, 0, "flooded").into_bytes();
        let bytes = shapes.iter().find_map(Shape::value_bytes);
        if let Some(bytes) = bytes {
            self.beside.put(self.cluster, &key, &vec![7; bytes])?;
        }
        let aim = floods::aim(status, victim, key.clone())?;
        std::thread::scope(|scope| {
            let floods: Vec<_> = shapes
                .iter()
                .map(|shape| (shape, scope.spawn(|| sender::flood(&aim, shape, FLOOD))))
                .collect();
            floods.into_iter().try_for_each(|(shape, flood)| {
                let responses = flood.join().expect("a thread does not panic")?;
                // The first response on each connection is the WELCOME.
                let is_read = shape.manner == Manner::Closed;
                let least = if is_read { shape.connections as u64 } else { 0 };
                ensure!(
                    responses > least || !shape.is_answered(),
                    "{shape}: only {responses} responses arrived"
                );
                Ok(())
            })
        })?;
        if bytes.is_some() {
            self.beside.delete(self.cluster, &key)?;
        }
        Ok(())
    }

    fn freeze(&mut self) -> anyhow::Result<Child> {
        let (low, high) = FREEZE_MS;
        self.made.freeze(Duration::from_millis(self.random.between(low, high)))
    }

    fn sleep(&mut self, (low, high): (u64, u64)) {
        std::thread::sleep(Duration::from_millis(self.random.between(low, high)));
    }
}

/// Waits for a server's exit. It sends no other signal, because a server that receives a second SIGTERM leaves without
/// orders.
fn await_end_of(pid: u32) -> anyhow::Result<()> {
    wait_for("the end of a server", NOTICE_LIMIT, || (!process::is_alive(pid)).then_some(()))
}

fn await_thaw(mut frozen: Child) -> anyhow::Result<()> {
    let ended = frozen.wait().context("wait for fsfreeze")?;
    ensure!(ended.success(), "fsfreeze ended with {ended}");
    Ok(())
}

/// Sends a malformed line to each port of each server. A port that accepts no connection is skipped.
fn send_garbage(status: &ClusterStatus) {
    for server in &status.servers {
        for address in [&server.clients, &server.servers, &server.coord].into_iter().flatten() {
            if let Ok(mut stream) = TcpStream::connect(address) {
                let _ = stream.write_all(b"this is no frame of any protocol\n");
            }
        }
    }
}

/// Describes each change that the event was not allowed to cause. `log` is the part of the coordinator's log that was
/// written during the event.
fn wrong(may: &May, before: &ClusterStatus, after: &ClusterStatus, log: &str) -> Vec<String> {
    let mut wrong: Vec<String> = ["LOST", "a second fault"]
        .into_iter()
        .filter_map(|words| log.lines().find(|line| line.contains(words)))
        .map(|line| format!("the coordinator logged: {line}"))
        .collect();
    let struck = match may {
        May::Everything => return wrong,
        May::Nothing => &[][..],
        May::Places(servers) => servers,
    };
    let is_spared = |server: u16| !struck.contains(&server);
    for (old, new) in before.servers.iter().zip(&after.servers) {
        if is_spared(old.id.0) && old.pid != new.pid {
            wrong.push(format!("server {} was replaced", old.id));
        }
    }
    let count = u16::try_from(before.servers.len()).unwrap_or(u16::MAX);
    for server in places::lost(log, count).into_iter().filter(|server| is_spared(*server)) {
        wrong.push(format!("server {server} lost its place in a group"));
    }
    if *may == May::Nothing {
        for (old, new) in before.groups.iter().zip(&after.groups) {
            if old.view != new.view {
                let (group, old, new) = (old.group, old.view, new.view);
                wrong.push(format!("the view of group {group} changed from {old} to {new}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the status of three servers with these pids, whose groups are in this view.
    fn status(pids: [u32; 3], view: u64) -> ClusterStatus {
        let servers = pids.iter().enumerate().map(|(id, pid)| {
            serde_json::json!({
                "id": id, "host": "localhost", "state": "up", "recovery_step": null,
                "incarnation": null, "pid": pid, "clients": null, "servers": null, "coord": null,
                "primary_entries": 0, "secondary_entries": 0, "table_bytes": 0, "resident_bytes": 0,
                "client_connections": 0, "requests": 0, "refused": 0, "heartbeat_age_ms": null,
            })
        });
        let groups = (0..3).map(|group| {
            serde_json::json!({
                "group": group, "view": view, "primary": null, "secondary": null,
                "candidate": null, "condition": "whole", "copies": 2, "entries": 0, "bytes": 0,
            })
        });
        serde_json::from_value(serde_json::json!({
            "cluster": "0000000000000000000000000000feed",
            "epoch": {"number": 1, "boot": "0000000000000001"}, "state": "serving", "shards": 1,
            "servers": servers.collect::<Vec<_>>(), "groups": groups.collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn a_change_that_an_event_must_not_cause_is_reported() {
        let before = status([1, 2, 3], 1);
        let count =
            |may: &May, after: &ClusterStatus, log: &str| wrong(may, &before, after, log).len();
        let alone = "INFO group 1: view 1 -> 2: server 2 alone\n";
        assert_eq!(count(&May::Nothing, &before, ""), 0);
        assert_eq!(count(&May::Nothing, &status([1, 2, 3], 2), ""), 3);
        assert_eq!(count(&May::Nothing, &status([1, 9, 3], 1), alone), 2);
        let struck = status([1, 9, 3], 2);
        assert_eq!(count(&may(1), &struck, alone), 0);
        assert_eq!(count(&may(2), &struck, alone), 2);
        assert_eq!(count(&May::Places(vec![0, 1]), &status([9, 9, 3], 5), alone), 0);
        assert_eq!(count(&May::Everything, &struck, alone), 0);
        let lost = "WARN group 1 is LOST: no holder is left";
        assert_eq!(count(&May::Everything, &before, lost), 1);
        assert_eq!(count(&may(1), &before, "server 2 failed before …: a second fault"), 1);
    }
}
