//! The program `coord`: its command line, its start, its status.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context as _, ensure};
use kv_protocol::map::ServerState;
use kv_protocol::status::{ClusterState, ClusterStatus, GroupCondition, GroupStatus};

use crate::TIMEOUT;
use crate::process::Signal;
use crate::programs;

/// The parameters of a coordinator's command line.
#[derive(Clone, Debug)]
pub struct Coord {
    /// The coordinator executable.
    pub program: PathBuf,
    /// The server executable. `None` means the one beside the coordinator.
    pub server: Option<PathBuf>,
    /// The port for clients.
    pub clients_port: u16,
    /// The port for servers.
    pub servers_port: u16,
    /// The number of shards.
    pub shards: u16,
    /// Further arguments.
    pub flags: Vec<String>,
}

impl Coord {
    /// Writes the cluster file that coordinators of this directory read.
    pub fn write_file(dir: &Path, text: &str) -> anyhow::Result<()> {
        let file = dir.join("cluster.txt");
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    /// Returns the command line for this directory. If this process is killed, the coordinator gets SIGTERM and stops
    /// its servers.
    pub fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let (clients, servers) = (self.clients_port.to_string(), self.servers_port.to_string());
        command.args(["-c", &clients, "-s", &servers, "--shards", &self.shards.to_string()]);
        if let Some(path) = &self.server {
            command.arg("--server-binary").arg(path);
        }
        command.arg("-C").arg(dir.join("cluster.txt")).arg("--dir").arg(dir);
        command.arg("-l").arg(dir.join("coord.log")).args(&self.flags);
        programs::end_with_this(&mut command, Signal::TERM);
        command
    }

    /// Returns the status that `coord status --json` reports for the coordinator at this address.
    pub fn status(&self, host: &str, clients_port: u16) -> anyhow::Result<ClusterStatus> {
        let mut command = Command::new(&self.program);
        command.args(["status", "-h", host, "-p", &clients_port.to_string(), "--json"]);
        let ended = programs::run(&mut command, "", TIMEOUT)?;
        // Exit codes 3 and 4 mean that the cluster is not whole.
        ensure!(matches!(ended.code, Some(0 | 3 | 4)), "coord status: {}", ended.stderr.trim());
        serde_json::from_str(&ended.stdout)
            .with_context(|| format!("read the output of coord status --json: {}", ended.stdout))
    }
}

/// Starts a coordinator, whose output is appended to `coord.err` in this directory.
pub fn spawn(mut command: Command, dir: &Path) -> anyhow::Result<Child> {
    let said = fs::OpenOptions::new().create(true).append(true).open(dir.join("coord.err"));
    let said = said.context("open coord.err")?;
    command.stdout(said.try_clone()?).stderr(said);
    command.spawn().with_context(|| format!("start {}", command.get_program().display()))
}

/// Returns whether the cluster serves, no server is down or being recovered, and every group is at home with two
/// copies.
pub fn is_whole(status: &ClusterStatus) -> bool {
    status.state == ClusterState::Serving
        && status
            .servers
            .iter()
            .all(|server| server.state == ServerState::Up && server.recovery_step.is_none())
        && status.groups.iter().all(is_home)
}

/// Returns whether a group is at home with two copies.
pub fn is_home(group: &GroupStatus) -> bool {
    group.condition == GroupCondition::Whole
        && group.primary.is_some_and(|member| member.server.0 == group.group.0)
}

/// Returns ports that are unused at this moment.
pub fn free_ports<const N: usize>() -> std::io::Result<[u16; N]> {
    let mut ports = [0; N];
    let mut open = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind("0.0.0.0:0")?;
        *port = listener.local_addr()?.port();
        open.push(listener);
    }
    Ok(ports)
}
