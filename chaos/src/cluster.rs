//! A cluster of a coordinator and servers in a separate directory.
//!
//! ```text
//!   start          coord -C file --dir DIR --daemon; waits until every group is whole
//!   wait_whole     polls `coord status --json`
//!   stop           SIGTERM; waits until the coordinator has exited, and no server is left
//!   drop           every remaining process of the directory is killed
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kv_protocol::Member;
use kv_protocol::placement::Placement;
use kv_protocol::status::{ClusterStatus, GroupCondition};
use kv_testkit::coord::{Coord, free_ports, is_home, is_whole, spawn};
use kv_testkit::process::{self, Signal};
use kv_testkit::wait_for;

use crate::network::Network;

/// The timeout of a start, and of the recovery after a fault. A machine with two busy cores needs seconds for them.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The timeout of an orderly stop, including its dumps.
const STOP_LIMIT: Duration = Duration::from_secs(180);
/// The time for which the status must satisfy a condition before a wait for this condition ends. A recent fault may not
/// be detected yet.
const STEADY: Duration = Duration::from_secs(1);
/// The interval between two status requests.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The executables.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) coord: PathBuf,
    pub(crate) server: PathBuf,
    /// The program `chaos` itself.
    pub(crate) chaos: PathBuf,
}

impl Programs {
    /// Finds the executables in `directory`. If it is `None`, they must be in the directory of this program.
    pub(crate) fn find(directory: Option<&Path>) -> anyhow::Result<Programs> {
        let chaos = std::env::current_exe().context("find the directory of this program")?;
        let beside = match directory {
            Some(directory) => std::path::absolute(directory)?,
            None => chaos.parent().unwrap_or(Path::new(".")).to_owned(),
        };
        let programs =
            Programs { coord: beside.join("coord"), server: beside.join("server"), chaos };
        for program in [&programs.coord, &programs.server] {
            if !program.is_file() {
                bail!(
                    "cannot find {}; build it (cargo build --bins, with the same profile), or set \
                     --programs",
                    program.display()
                );
            }
        }
        Ok(programs)
    }
}

/// The parameters of a cluster's start.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) servers: u16,
    pub(crate) shards: u16,
    /// True if keys are placed by their hash tags.
    pub(crate) hash_tags: bool,
    /// Further arguments of `coord`.
    pub(crate) flags: Vec<String>,
    /// The server on another host, if any, with its host as a cluster file names it.
    pub(crate) remote: Option<(u16, String)>,
}

impl Setting {
    /// Creates a setting with all servers on this machine and without flags.
    pub(crate) fn plain(servers: u16, shards: u16) -> Setting {
        Setting { servers, shards, hash_tags: false, flags: Vec::new(), remote: None }
    }

    /// Returns the contents of the cluster file.
    fn file(&self) -> String {
        let host = |id| match &self.remote {
            Some((remote, host)) if *remote == id => host,
            _ => "localhost",
        };
        let lines: String = (0..self.servers).map(|id| format!("{} 0 0 0\n", host(id))).collect();
        format!("{}\n{lines}", self.servers)
    }
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) setting: Setting,
    /// The host at which clients reach the cluster.
    pub(crate) host: String,
    start: Coord,
    begun: Instant,
    coord: Child,
}

impl Cluster {
    /// Starts a cluster in a directory and waits until every group is whole. With `--accept-loss`, waits only until the
    /// cluster [is settled](is_settled). With a network, each server runs in its own namespace.
    pub(crate) fn start(
        programs: &Programs,
        dir: &Path,
        setting: &Setting,
        network: Option<&Network>,
    ) -> anyhow::Result<Cluster> {
        let dir = std::path::absolute(dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Coord::write_file(&dir, &setting.file())?;
        // The ports are chosen here, because a restarted coordinator must have the same ports.
        let [clients_port, servers_port] = free_ports().context("find a free port")?;
        let mut flags = setting.flags.clone();
        if setting.hash_tags {
            flags.push("--hash-tags".into());
        }
        let (server, host) = match network {
            Some(network) => (network.write_wrapper(&dir, &programs.server)?, network.hub()),
            None => (programs.server.clone(), "127.0.0.1".to_owned()),
        };
        if network.is_some() {
            flags.splice(0..0, ["--advertise".into(), host.clone()]);
        }
        let start = Coord {
            program: programs.coord.clone(),
            server: Some(server),
            clients_port,
            servers_port,
            shards: setting.shards,
            flags,
        };
        let begun = Instant::now();
        let coord = start_again(&start, &dir, &[])?;
        let mut cluster = Cluster { dir, setting: setting.clone(), host, start, begun, coord };
        // A cluster restored without some of its groups never becomes whole.
        match cluster.setting.flags.iter().any(|flag| flag == "--accept-loss") {
            true => cluster.wait_status("after the start", is_settled)?,
            false => cluster.wait_whole("after the start")?,
        };
        Ok(cluster)
    }

    /// Returns the time since the cluster's start.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns the path of the coordinator's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("coord.log")
    }

    /// Returns the coordinator's address for clients.
    pub(crate) fn endpoint(&self) -> String {
        format!("{}:{}", self.host, self.start.clients_port)
    }

    pub(crate) fn placement(&self) -> Placement {
        Placement::new(self.setting.servers, self.setting.shards)
            .with_hash_tags(self.setting.hash_tags)
    }

    /// Returns the status that `coord status --json` reports.
    pub(crate) fn status(&self) -> anyhow::Result<ClusterStatus> {
        self.start.status(&self.host, self.start.clients_port)
    }

    /// Returns the pid of the process at a place of the ring.
    pub(crate) fn server_pid(&self, id: u16) -> anyhow::Result<u32> {
        let status = self.status()?;
        let server = status.servers.get(usize::from(id));
        let server = server.with_context(|| format!("the status lists no server {id}"))?;
        server.pid.with_context(|| format!("server {id} has not started"))
    }

    /// Returns the pids of all servers, with their places in the ring. The coordinator need not run.
    pub(crate) fn servers(&self) -> Vec<(u32, u16)> {
        let place = |pid| {
            let arguments = process::arguments(pid);
            let at = arguments.iter().position(|word| ["-S", "--id"].contains(&&word[..]))?;
            Some((pid, arguments.get(at + 1)?.parse().ok()?))
        };
        process::running_in(&self.dir).into_iter().filter_map(place).collect()
    }

    /// Returns the member that runs at a place of the ring: the server id and the incarnation of the process.
    pub(crate) fn member(&self, id: u16) -> anyhow::Result<Member> {
        let status = self.status()?;
        let server = status.servers.get(usize::from(id));
        let server = server.with_context(|| format!("the status lists no server {id}"))?;
        let incarnation = server.incarnation;
        let incarnation = incarnation.with_context(|| format!("server {id} has not started"))?;
        Ok(Member { server: server.id, incarnation })
    }

    /// Waits until every group has had its primary at home and two replicas, without a recovery, for [`STEADY`].
    /// Returns the time until this period began.
    pub(crate) fn wait_whole(&mut self, when: &str) -> anyhow::Result<Duration> {
        self.wait_status(when, is_whole)
    }

    /// Waits until the status has satisfied `wanted` without interruption for [`STEADY`]. Returns the time until this
    /// period began. `when` describes the situation in error messages.
    pub(crate) fn wait_status(
        &mut self,
        when: &str,
        wanted: impl Fn(&ClusterStatus) -> bool,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut since = None;
        loop {
            if let Some(status) = self.coord.try_wait().context("wait for coord")? {
                bail!("{when}: coord ended with {status}; see {}", self.log().display());
            }
            let last = match self.status() {
                Ok(status) if wanted(&status) => {
                    let since = *since.get_or_insert(Instant::now());
                    if since.elapsed() >= STEADY {
                        return Ok(since.duration_since(start));
                    }
                    "as required, but not for long enough".into()
                }
                Ok(status) => {
                    since = None;
                    serde_json::to_string(&status).unwrap_or_default()
                }
                Err(error) => {
                    since = None;
                    format!("{error:#}")
                }
            };
            if start.elapsed() > TIMEOUT {
                bail!(
                    "{when}: the cluster did not reach the required state within {TIMEOUT:?}; last status: {last}"
                );
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Returns the pid of the coordinator.
    pub(crate) fn coord_pid(&self) -> u32 {
        self.coord.id()
    }

    /// Kills the coordinator; the servers continue.
    pub(crate) fn kill_coordinator(&mut self) -> anyhow::Result<()> {
        self.coord.kill().context("kill coord")?;
        self.coord.wait().context("wait for coord")?;
        Ok(())
    }

    /// Starts the coordinator again, with the same command line.
    pub(crate) fn restart_coordinator(&mut self) -> anyhow::Result<()> {
        self.revive(&[])
    }

    /// Starts the coordinator again with additional flags, for example those that name the data to restore.
    pub(crate) fn revive(&mut self, flags: &[String]) -> anyhow::Result<()> {
        self.coord = start_again(&self.start, &self.dir, flags)?;
        Ok(())
    }

    /// Returns whether the coordinator is still running.
    pub(crate) fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.coord.try_wait().context("wait for coord")?.is_none())
    }

    /// Stops the cluster in an orderly way. Returns the exit status of the coordinator.
    pub(crate) fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        process::signal(self.coord_pid(), Signal::TERM);
        self.await_end()
    }

    /// Waits until the coordinator has exited, and checks that no server still runs. Returns the exit status of the
    /// coordinator.
    pub(crate) fn await_end(&mut self) -> anyhow::Result<ExitStatus> {
        let coord = &mut self.coord;
        let ended = wait_for("coord to end", STOP_LIMIT, || coord.try_wait().ok().flatten())?;
        let left = self.servers();
        if !left.is_empty() {
            bail!("servers still run after the exit of their coordinator (pid, place): {left:?}");
        }
        Ok(ended)
    }
}

/// Returns whether every group that is not LOST has its primary at home and two replicas, and no recovery is in
/// progress.
pub(crate) fn is_settled(status: &ClusterStatus) -> bool {
    status.servers.iter().all(|server| server.recovery_step.is_none())
        && status
            .groups
            .iter()
            .all(|group| group.condition == GroupCondition::Lost || is_home(group))
}

/// Starts a coordinator with additional arguments.
fn start_again(start: &Coord, dir: &Path, flags: &[String]) -> anyhow::Result<Child> {
    let mut command = start.command(dir);
    command.arg("--daemon").args(flags).stdin(Stdio::null());
    spawn(command, dir)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.coord.kill();
        let _ = self.coord.wait();
        process::end_all_in(&self.dir);
    }
}
