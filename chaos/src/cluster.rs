//! A coordinator and its servers in a directory of their own.
//!
//! ```text
//!   start          coord -C file --dir DIR --daemon, until every group is whole
//!   wait_whole     polls `coord status --json`
//!   stop           SIGTERM, exit code 0, no process left
//!   drop           every process left in the directory is killed
//! ```

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kv_protocol::Member;
use kv_protocol::placement::Placement;
use kv_protocol::status::{ClusterState, ClusterStatus, GroupCondition};

use crate::network::Network;
use crate::process::{self, Signal, wait_for};

/// The timeout of a start, and of the recovery after a fault. A machine with two busy cores takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// The timeout of an orderly stop, dumps included.
const STOP_LIMIT: Duration = Duration::from_secs(180);
/// The time for which every group must have been whole: a recent fault may not have been detected yet.
const STEADY: Duration = Duration::from_secs(1);
/// The interval between two status requests.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The executables.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) coord: PathBuf,
    pub(crate) server: PathBuf,
    /// This program.
    pub(crate) chaos: PathBuf,
}

impl Programs {
    /// Finds the executables in this directory, or beside this program.
    pub(crate) fn find(directory: Option<&Path>) -> anyhow::Result<Programs> {
        let chaos = std::env::current_exe().context("find this program's own directory")?;
        let beside = match directory {
            Some(directory) => std::path::absolute(directory)?,
            None => chaos.parent().unwrap_or(Path::new(".")).to_owned(),
        };
        let programs =
            Programs { coord: beside.join("coord"), server: beside.join("server"), chaos };
        for program in [&programs.coord, &programs.server] {
            if !program.is_file() {
                bail!(
                    "there is no {}; build it (cargo build --bins, with the same profile), or give \
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
    /// Further arguments of `coord`.
    pub(crate) flags: Vec<String>,
    /// A server on another host, with the host as a cluster file names it.
    pub(crate) remote: Option<(u16, String)>,
}

impl Setting {
    /// Creates a setting with servers on this machine, and no flags.
    pub(crate) fn plain(servers: u16, shards: u16) -> Setting {
        Setting { servers, shards, flags: Vec::new(), remote: None }
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
    pub(crate) clients_port: u16,
    /// The host at which it is reached.
    pub(crate) host: String,
    programs: Programs,
    arguments: Vec<String>,
    begun: Instant,
    coord: Child,
}

impl Cluster {
    /// Starts a cluster in a directory and waits until it serves.
    pub(crate) fn start(
        programs: &Programs,
        dir: &Path,
        setting: &Setting,
        network: Option<&Network>,
    ) -> anyhow::Result<Cluster> {
        let dir = std::path::absolute(dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let file = dir.join("cluster.txt");
        fs::write(&file, setting.file()).with_context(|| format!("write {}", file.display()))?;
        // A restarted coordinator must have the same ports.
        let (clients_port, servers_port) = free_ports()?;
        let shown = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> = ["--daemon".into(), "-C".into(), shown(&file)].into();
        arguments.extend(["-c".into(), clients_port.to_string()]);
        arguments.extend(["-s".into(), servers_port.to_string()]);
        arguments.extend(["--dir".into(), shown(&dir)]);
        arguments.extend(["-l".into(), shown(&dir.join("coord.log"))]);
        arguments.extend(["--shards".into(), setting.shards.to_string()]);
        let (binary, host) = match network {
            Some(network) => (network.write_wrapper(&dir, &programs.server)?, network.hub()),
            None => (programs.server.clone(), "127.0.0.1".to_owned()),
        };
        arguments.extend(["--server-binary".into(), shown(&binary)]);
        if network.is_some() {
            arguments.extend(["--advertise".into(), host.clone()]);
        }
        arguments.extend(setting.flags.iter().cloned());
        let begun = Instant::now();
        let coord = spawn(&programs.coord, &arguments, &dir)?;
        let (programs, setting) = (programs.clone(), setting.clone());
        let mut cluster =
            Cluster { dir, setting, clients_port, host, programs, arguments, begun, coord };
        // A cluster restored without some of its groups never becomes whole.
        match cluster.setting.flags.iter().any(|flag| flag == "--accept-loss") {
            true => cluster.wait_status("after the start", is_settled)?,
            false => cluster.wait_whole("after the start")?,
        };
        Ok(cluster)
    }

    /// Returns the time since its start.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns the path of the coordinator's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("coord.log")
    }

    /// Returns the coordinator's address for clients.
    pub(crate) fn endpoint(&self) -> String {
        format!("{}:{}", self.host, self.clients_port)
    }

    pub(crate) fn placement(&self) -> Placement {
        Placement::new(self.setting.servers, self.setting.shards)
    }

    /// Returns the status that `coord status --json` reports.
    pub(crate) fn status(&self) -> anyhow::Result<ClusterStatus> {
        let port = self.clients_port.to_string();
        let output = Command::new(&self.programs.coord)
            .args(["status", "-h", &self.host, "-p", &port, "--json"])
            .stdin(Stdio::null())
            .output()
            .context("run coord status")?;
        // Exit codes 3 and 4 mean that the cluster is not whole.
        if !matches!(output.status.code(), Some(0 | 3 | 4)) {
            bail!("coord status: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("read what coord status --json says")
    }

    /// Returns the pid of the process at a place of the ring.
    pub(crate) fn server_pid(&self, id: u16) -> anyhow::Result<u32> {
        let status = self.status()?;
        let server = status.servers.get(usize::from(id)).context("there is no such server")?;
        server.pid.with_context(|| format!("server {id} has not started"))
    }

    /// Returns the process at a place of the ring, as views name it.
    pub(crate) fn member(&self, id: u16) -> anyhow::Result<Member> {
        let status = self.status()?;
        let server = status.servers.get(usize::from(id)).context("there is no such server")?;
        let incarnation = server.incarnation.context("a server has not started")?;
        Ok(Member { server: server.id, incarnation })
    }

    /// Waits until every group has been home with two replicas, without any recovery, for a while. Returns the
    /// time until that began.
    pub(crate) fn wait_whole(&mut self, when: &str) -> anyhow::Result<Duration> {
        self.wait_status(when, is_whole)
    }

    /// Waits until the status satisfies `wanted` without interruption for [`STEADY`]. Returns the time until that began.
    pub(crate) fn wait_status(
        &mut self,
        when: &str,
        wanted: impl Fn(&ClusterStatus) -> bool,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut since = None;
        loop {
            if let Some(status) = self.coord.try_wait().context("wait for coord")? {
                bail!("coord ended ({status}) {when}; see {}", self.log().display());
            }
            let last = match self.status() {
                Ok(status) if wanted(&status) => {
                    let since = *since.get_or_insert(Instant::now());
                    if since.elapsed() >= STEADY {
                        return Ok(since.duration_since(start));
                    }
                    "as wanted, but not for long enough".into()
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
            if start.elapsed() > PATIENCE {
                bail!(
                    "{when} the cluster did not come back within {PATIENCE:?}; the last status: {last}"
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
        self.coord = spawn(&self.programs.coord, &self.arguments, &self.dir)?;
        Ok(())
    }

    /// Starts the coordinator after all processes have exited, with further flags that name the source.
    pub(crate) fn revive(&mut self, flags: &[String]) -> anyhow::Result<()> {
        let arguments = [&self.arguments[..], flags].concat();
        self.coord = spawn(&self.programs.coord, &arguments, &self.dir)?;
        Ok(())
    }

    /// Returns whether the coordinator is still running.
    pub(crate) fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.coord.try_wait().context("wait for coord")?.is_none())
    }

    /// Stops the cluster in order.
    pub(crate) fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        process::signal(self.coord_pid(), Signal::TERM);
        self.await_end()
    }

    /// Waits for the coordinator to exit by itself, and checks that no server is left.
    pub(crate) fn await_end(&mut self) -> anyhow::Result<ExitStatus> {
        let coord = &mut self.coord;
        let ended = wait_for("coord to end", STOP_LIMIT, || coord.try_wait().ok().flatten())?;
        let left = process::servers_in(&self.dir);
        if !left.is_empty() {
            bail!("servers {left:?} (pid, place) outlived their coordinator, which stopped them");
        }
        Ok(ended)
    }
}

/// Returns whether every group is home with two replicas, and no recovery is in progress.
pub(crate) fn is_whole(status: &ClusterStatus) -> bool {
    status.state == ClusterState::Serving
        && is_settled(status)
        && !status.groups.iter().any(is_lost)
}

/// Returns whether every group that is not LOST is home with two replicas, and no recovery is in progress.
pub(crate) fn is_settled(status: &ClusterStatus) -> bool {
    status.servers.iter().all(|server| server.recovery_step.is_none())
        && status.groups.iter().all(|group| {
            is_lost(group)
                || group.condition == GroupCondition::Whole
                    && group.primary.is_some_and(|member| member.server.0 == group.group.0)
        })
}

fn is_lost(group: &kv_protocol::status::GroupStatus) -> bool {
    group.condition == GroupCondition::Lost
}

/// Returns two ports that are unused at this moment.
fn free_ports() -> anyhow::Result<(u16, u16)> {
    let bind = || TcpListener::bind("0.0.0.0:0").context("find a free port");
    let (one, other) = (bind()?, bind()?);
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}

fn spawn(program: &Path, arguments: &[String], dir: &Path) -> anyhow::Result<Child> {
    let said = fs::OpenOptions::new().create(true).append(true).open(dir.join("coord.err"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
    // SAFETY: prctl takes integers and is safe to call between fork and exec. If this program is killed, the
    // coordinator stops its servers in order.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.spawn().with_context(|| format!("start {}", program.display()))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.coord.kill();
        let _ = self.coord.wait();
        process::end_all_in(&self.dir);
    }
}
