//! A search for processes of the old cluster that may still serve, because two clusters must not serve the same keys.
//!
//! Each process in the last state is looked up on its host. If the host cannot be queried, the process counts as
//! possibly serving. In a state, `localhost` means the machine on which the state was written.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kv_protocol::cluster_file::Host;
use kv_protocol::control_message::Started;
use kv_protocol::{ClusterId, Incarnation, Member, ServerId};

use crate::machine::{Boot, Place};
use crate::plan::Plan;
use crate::spawn::adopted;
use crate::spawn::ssh::Ssh;
use crate::store::Record;

/// Returns each host of a cluster once, with the processes that have reported from that host.
pub(crate) fn hosts(record: &Record) -> Vec<(&Host, Vec<Started>)> {
    let mut hosts: Vec<(&Host, Vec<Started>)> = Vec::new();
    for (host, started) in record.processes() {
        match hosts.iter_mut().find(|(known, _)| *known == host) {
            Some((_, processes)) => processes.push(started),
            None => hosts.push((host, vec![started])),
        }
    }
    hosts
}

/// Returns a line for each process of the last state that may still serve.
pub(super) async fn who_may_serve(record: &Record, ssh: &Ssh) -> Vec<String> {
    let mut lines = Vec::new();
    for (host, processes) in hosts(record) {
        let asked_after = || processes.iter().map(name).collect::<Vec<_>>().join(", ");
        if *host == Host::Local {
            match Boot::place(record.place.machine.as_ref()) {
                Place::Here => lines.extend(processes.iter().filter_map(line_here)),
                Place::Past => {}
                Place::Elsewhere => lines.push(format!(
                    "the state was written on another machine, which cannot be checked for {}",
                    asked_after()
                )),
            }
            continue;
        }
        match ssh.living(host, &processes).await {
            Ok(living) => {
                let line = |started: &Started| format!("{} still runs on {host}", name(started));
                lines.extend(living.iter().map(line));
            }
            Err(error) => {
                lines.push(format!("cannot check {host} for {}: {error}", asked_after()));
            }
        }
    }
    lines
}

/// Servers that run, or may run, where a cluster ran whose state is lost.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// Servers that prevent the restore (of this cluster or in its directories), and hosts that cannot be queried.
    pub(super) in_the_way: Vec<String>,
    /// Servers of other clusters whose directories cannot be read. A server forbids core dumps, so only root can read
    /// its working directory.
    pub(super) elsewhere_perhaps: Vec<String>,
}

/// Looks for servers of this cluster on this machine and on the ssh hosts, and for any servers in these directories, in
/// the coordinator's directory, and in the servers' directory on the ssh hosts.
pub(super) async fn who_runs_in(dirs: &[PathBuf], plan: &Plan, cluster: ClusterId) -> Running {
    let name = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let places: Vec<(u64, u64)> =
        dirs.iter().chain([&plan.dir]).filter_map(|dir| name(dir).ok()).collect();
    let mut running = Running::default();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        if !words.contains(&&b"--incarnation"[..]) || !is_of_this_user(&process) {
            continue;
        }
        let line = format!("pid {} on this machine", entry.file_name().to_string_lossy());
        let is_of_cluster = words.contains(&cluster.to_string().as_bytes());
        match name(&process.join("cwd")) {
            _ if is_of_cluster => running.in_the_way.push(line),
            Ok(cwd) if places.contains(&cwd) => running.in_the_way.push(line),
            Ok(_) => {}
            Err(_) => running.elsewhere_perhaps.push(line),
        }
    }
    let mut asked: Vec<&Host> = Vec::new();
    for line in plan.file.servers.iter().filter(|line| line.host != Host::Local) {
        if asked.contains(&&line.host) {
            continue;
        }
        let host = &line.host;
        asked.push(host);
        match plan.ssh.servers_in_directory(host, cluster).await {
            Ok((there, hidden)) => {
                let name = |pid: u32| format!("pid {pid} on {host}");
                running.in_the_way.extend(there.into_iter().map(name));
                running.elsewhere_perhaps.extend(hidden.into_iter().map(name));
            }
            Err(error) => running.in_the_way.push(format!("cannot check {host}: {error}")),
        }
    }
    running
}

/// Returns whether a process belongs to this user; for root, every process does.
fn is_of_this_user(process: &Path) -> bool {
    let own = rustix::process::geteuid();
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let user = user.and_then(|line| line.split_whitespace().next()?.parse::<u32>().ok());
    own.is_root() || user == Some(own.as_raw())
}

fn line_here(started: &Started) -> Option<String> {
    let name = name(started);
    match adopted::open(started) {
        Ok(None) => None,
        Ok(Some(_)) => Some(format!("{name} still runs on this machine")),
        Err(error) => Some(format!("{name} may still run on this machine: {error}")),
    }
}

fn name(started: &Started) -> String {
    format!("server {} (pid {})", started.member.server, started.pid)
}

/// Kills the processes left by a failed restore that never served. They hold only data that they have loaded from
/// dumps, but they may hold ports.
pub(super) async fn end_all(record: &Record, ssh: &Ssh) {
    let of_host = |host: &Host| -> Vec<Member> {
        let places = record.place.hosts.iter().zip(0..).filter(|(its, _)| *its == host);
        places.map(|(_, n)| record.state.member(ServerId(n))).collect()
    };
    if let Err(error) = adopted::end_strays(&of_host(&Host::Local)) {
        tracing::warn!(
            "cannot end the processes of an earlier attempt: {error}; they may hold ports"
        );
    }
    for (n, host) in record.place.hosts.iter().enumerate() {
        if *host == Host::Local || record.place.hosts[..n].contains(host) {
            continue;
        }
        let names: Vec<Incarnation> =
            of_host(host).iter().map(|member| member.incarnation).collect();
        if let Err(error) = ssh.end_strays(host, &names).await {
            tracing::warn!(
                "cannot end the processes of an earlier attempt on {host}: {error}; they may hold ports"
            );
        }
    }
}
