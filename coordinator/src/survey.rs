//! Facts about a host, gathered before a server is started there, and by `--check`.

mod limits;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::rc::Rc;

use kv_protocol::cluster_file::{ClusterFile, Host};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::printable::printable;
use crate::quote;
use crate::spawn::ssh::Ssh;

pub(crate) use limits::Limits;

/// The maximum number of concurrent ssh connections: sshd drops connections over its limit (MaxStartups).
pub(crate) const MAX_SSH_AT_ONCE: usize = 8;

/// Facts about a machine that is reached by ssh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// The number of its processor cores; `None` if the machine does not report it.
    pub(crate) cores: Option<u16>,
    /// The coordinator's address as seen from that machine.
    pub(crate) our_address: Option<IpAddr>,
    /// The address of the machine as seen by the coordinator.
    pub(crate) its_address: Option<IpAddr>,
    /// The address of the machine if the machine itself reported it; `None` if its name was resolved here.
    pub(crate) own_address: Option<IpAddr>,
    /// True if the servers' directory exists.
    pub(crate) has_dir: bool,
    /// True if the login's user can write to the directory.
    pub(crate) is_writable: bool,
    /// True if the server's executable exists and can be executed.
    pub(crate) has_binary: bool,
    /// The version that `server --version` reports on the machine.
    pub(crate) version: Option<String>,
    /// The value of `/proc/sys/kernel/io_uring_disabled`; kernels before 6.6 do not have it.
    pub(crate) io_uring_disabled: Option<u8>,
    /// The release of its kernel.
    pub(crate) kernel: String,
    /// The memory limit that its server uses by default.
    pub(crate) memory_limit: Option<String>,
    /// The resource limits of the login's user.
    pub(crate) limits: Limits,
    /// TCP ports in use by listening sockets.
    pub(crate) listening: BTreeSet<u16>,
}

/// Gathers the facts about each ssh host of a cluster file once, a few hosts at a time.
pub(crate) async fn of_hosts(
    file: &ClusterFile,
    ssh: &Ssh,
) -> HashMap<Host, Result<Survey, String>> {
    let hosts: BTreeSet<String> = ssh_hosts(file).map(ToString::to_string).collect();
    let turn = Rc::new(Semaphore::new(MAX_SSH_AT_ONCE));
    let mut running = JoinSet::new();
    for host in ssh_hosts(file).filter({
        let mut left = hosts;
        move |host| left.remove(&host.to_string())
    }) {
        let (host, ssh, turn) = (host.clone(), ssh.clone(), Rc::clone(&turn));
        let servers = servers_on(file, &host);
        running.spawn_local(async move {
            let _permit = turn.acquire().await;
            let response = ssh.run(&host, &script(&ssh.remote_dir, servers)).await;
            let survey =
                response.map(|text| parse(&text, &host)).map_err(|error| error.to_string());
            (host, survey)
        });
    }
    let mut surveys = HashMap::new();
    while let Some(result) = running.join_next().await {
        if let Ok((host, survey)) = result {
            surveys.insert(host, survey);
        }
    }
    surveys
}

/// Returns the number of servers on a host.
pub(crate) fn servers_on(file: &ClusterFile, host: &Host) -> usize {
    file.servers.iter().filter(|line| line.host == *host).count()
}

fn ssh_hosts(file: &ClusterFile) -> impl Iterator<Item = &Host> {
    file.servers.iter().map(|line| &line.host).filter(|host| **host != Host::Local)
}

/// Returns the script whose output [`parse`] reads. Each step may fail without failing the script.
fn script(remote_dir: &str, servers: usize) -> String {
    format!(
        "echo connection $SSH_CONNECTION\n\
         echo cores $(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null)\n\
         echo kernel $(uname -r)\n\
         echo io_uring_disabled $(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null)\n\
         echo user $(id -u)\n\
         cat /proc/self/limits 2>/dev/null | grep -e 'Max processes' -e 'Max locked memory'\n\
         grep MemAvailable: /proc/meminfo 2>/dev/null\n\
         cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep ' 0A ' | while read n local rest; do echo listens $local; done\n\
         cd {} 2>/dev/null && echo dir && {{ [ ! -w . ] || echo writable; }} && [ -x ./server ] && [ -f ./server ] && echo binary && echo version $(./server --version 2>/dev/null </dev/null) && echo memory_limit $(./server --show-memory-limit {servers} 2>/dev/null </dev/null)\n\
         exit 0\n",
        quote::word(remote_dir)
    )
}

fn parse(text: &str, host: &Host) -> Survey {
    let mut survey = Survey::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["connection", ours, _, its, _] => {
                survey.our_address = address(ours);
                survey.its_address = address(its);
                survey.own_address = survey.its_address;
            }
            ["cores", count] => survey.cores = count.parse().ok(),
            ["kernel", release] => survey.kernel = release.to_owned(),
            ["user", id] => survey.limits.is_root = id == "0",
            // proc_pid_limits(5): the soft limit, then the hard limit.
            ["Max", "processes", soft, ..] => survey.limits.threads = soft.parse().ok(),
            ["Max", "locked", "memory", _, hard, ..] => survey.limits.locked = hard.parse().ok(),
            ["MemAvailable:", kilobytes, ..] => {
                let kilobytes: Option<u64> = kilobytes.parse().ok();
                survey.limits.free = kilobytes.and_then(|kilobytes| kilobytes.checked_mul(1 << 10));
            }
            ["io_uring_disabled", value] => survey.io_uring_disabled = value.parse().ok(),
            ["listens", local] => survey.listening.extend(listening_port(local)),
            ["dir"] => survey.has_dir = true,
            ["writable"] => survey.is_writable = true,
            ["binary"] => survey.has_binary = true,
            ["memory_limit", ref words @ ..] if !words.is_empty() => {
                survey.memory_limit = Some(printable(&words.join(" ")));
            }
            ["version", _, version] => survey.version = Some(version.to_owned()),
            _ => {}
        }
    }
    if survey.its_address.is_none() {
        survey.its_address = resolve(host);
    }
    survey
}

/// Parses an address of `SSH_CONNECTION`, without the interface of a link-local address.
fn address(text: &str) -> Option<IpAddr> {
    text.split('%').next()?.parse().ok()
}

/// Parses the port of an entry of `/proc/net/tcp` (proc(5)): address and port in hex, separated by a colon.
pub(crate) fn listening_port(local: &str) -> Option<u16> {
    u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
}

fn resolve(host: &Host) -> Option<IpAddr> {
    let Host::Ssh { host, .. } = host else { return None };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    (bare, 0).to_socket_addrs().ok()?.next().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survey_is_parsed_despite_unrelated_output() {
        let text = "Welcome to db!\nconnection 10.0.0.1 5 10.0.0.2 22\ncores 16\nkernel 6.8.0-x\n\
                    io_uring_disabled 0\nuser 1000\nMax processes 100 200 processes\n\
                    Max locked memory 0 4096 bytes\nMemAvailable: 7 kB\nlistens 0100007F:1B58\nlistens 00:0016\ndir\nbinary\n\
                    version server 0.1.0\n";
        let host = Host::Ssh { user: None, host: "db".into(), port: None };
        let survey = parse(text, &host);
        assert_eq!(survey.cores, Some(16));
        let (threads, locked, free) = (Some(100), Some(4_096), Some(7 << 10));
        assert_eq!(survey.limits, Limits { threads, locked, free, ..Limits::default() });
        assert_eq!(survey.our_address, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(survey.its_address, Some("10.0.0.2".parse().unwrap()));
        assert_eq!(survey.listening, BTreeSet::from([22, 7_000]));
        assert!(survey.has_dir && survey.has_binary);
        assert_eq!(survey.version.as_deref(), Some("0.1.0"));
        assert_eq!(survey.io_uring_disabled, Some(0));
    }

    #[test]
    fn the_script_runs_in_a_posix_shell_and_finds_the_binary() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("server");
        std::fs::write(&binary, "#!/bin/sh\necho server 9.9\n").unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let output = std::process::Command::new("sh")
            .args(["-c", &script(&dir.path().to_string_lossy(), 3)])
            .env("SSH_CONNECTION", "::1 1 ::1 2")
            .output()
            .unwrap();
        assert!(output.status.success());
        let host = Host::Ssh { user: None, host: "db".into(), port: None };
        let survey = parse(&String::from_utf8_lossy(&output.stdout), &host);
        assert!(survey.cores.is_some() && !survey.kernel.is_empty());
        assert!(survey.limits.free.is_some_and(|bytes| bytes > 0));
        assert_eq!(survey.limits.is_root, rustix::process::geteuid().is_root());
        assert!(survey.has_dir && survey.has_binary && survey.is_writable);
        assert_eq!(survey.version.as_deref(), Some("9.9"));
        assert_eq!(survey.memory_limit.as_deref(), Some("server 9.9"));
        assert!(survey.listening.contains(&listener.local_addr().unwrap().port()));
        assert_eq!(survey.its_address, Some("::1".parse().unwrap()));
    }
}
