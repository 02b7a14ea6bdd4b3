//! A network of namespaces on this machine. Each link can be cut in one direction or in both.
//!
//! ```text
//!   hub 10.77.0.1    this program and coord: a common namespace, with a bridge
//!     |-- 10.77.0.2    the client processes
//!     |-- 10.77.0.10   server 0: coord starts a small script as --server-binary, which enters the
//!     |-- 10.77.0.11   server 1  namespace of its -S and passes that address as --advertise
//! ```
//!
//! A cut drops all packets from the sender in the receiver's namespace, without a reset, as a broken network does. The
//! namespaces have no names, so the kernel removes them when this program and the servers have ended.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use kv_testkit::programs::check;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The nftables rules of each namespace: packets from addresses in the set are dropped.
const RULES: &str = "table inet cut {
  set from { type ipv4_addr; }
  chain input { type filter hook input priority 0; policy accept; ip saddr @from drop; }
}
";

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The coordinator.
    Hub,
    /// The client processes.
    Clients,
    /// A server.
    Server(u16),
}

impl End {
    fn address(self) -> String {
        match self {
            End::Hub => "10.77.0.1".into(),
            End::Clients => "10.77.0.2".into(),
            End::Server(id) => format!("10.77.0.{}", 10 + id),
        }
    }
}

/// The namespaces. Each exists as long as its file is open.
#[derive(Debug)]
pub(crate) struct Network {
    clients: File,
    servers: Vec<File>,
}

/// Returns the reason why no network can be created; `None` if it can.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("cutting links needs root (run `sudo make chaos`)".into());
    }
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")] {
        let found = Command::new(tool).arg("--version").output();
        // Only a failure to start counts: `ip` supports only -V, and exits with an error on --version.
        if found.is_err() {
            return Some(format!("cutting links needs {tool} (Debian package {package})"));
        }
    }
    None
}

impl Network {
    /// Moves this program into a new namespace, and creates one for the clients and one for each server. The main
    /// thread must call it before it starts other threads.
    pub(crate) fn make(servers: u16) -> anyhow::Result<Network> {
        leave_network().context("make a network namespace for this program")?;
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "hub", "type", "bridge"])?;
        run("ip", &["address", "add", "10.77.0.1/24", "dev", "hub"])?;
        run("ip", &["link", "set", "hub", "up"])?;
        feed("nft", &["-f", "-"], RULES)?;
        let clients = namespace(End::Clients, "clients")?;
        let servers: anyhow::Result<Vec<File>> =
            (0..servers).map(|id| namespace(End::Server(id), &format!("server{id}"))).collect();
        Ok(Network { clients, servers: servers? })
    }

    /// Returns the address of the hub, for the coordinator and its clients.
    pub(crate) fn hub(&self) -> String {
        End::Hub.address()
    }

    /// Writes the script that starts a server in its namespace, and returns its path.
    pub(crate) fn write_wrapper(&self, dir: &Path, server: &Path) -> anyhow::Result<PathBuf> {
        let spaces: String = (0..).zip(&self.servers).fold(String::new(), |text, (id, file)| {
            let address = End::Server(id).address();
            text + &format!("{id}) address={address} space={} ;;\n", path_of(file))
        });
        let script = format!(
            "#!/bin/sh\n\
             # Starts the server of -S in its own network namespace, under its own address.\n\
             set -eu\n\
             id= last=\n\
             for word; do\n\
             case $last in -S|--id) id=$word ;; esac\n\
             last=$word\n\
             done\n\
             case $id in\n{spaces}*) exec '{server}' \"$@\" ;;\nesac\n\
             last=\n\
             for word; do\n\
             shift\n\
             case $last in --advertise) word=$address ;; esac\n\
             last=$word\n\
             set -- \"$@\" \"$word\"\n\
             done\n\
             exec nsenter --net=\"$space\" '{server}' \"$@\"\n",
            server = server.display()
        );
        let path = dir.join("server-in-its-namespace");
        fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Returns a command that runs in the clients' namespace.
    pub(crate) fn enter_clients(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", path_of(&self.clients))).arg(program);
        command
    }

    /// Drops all packets from `from` to `to` from now on.
    pub(crate) fn cut(&self, from: End, to: End) -> anyhow::Result<()> {
        let element = format!("{{ {} }}", from.address());
        self.nft(to, &["add", "element", "inet", "cut", "from", &element])
    }

    /// Heals all links.
    pub(crate) fn heal(&self) -> anyhow::Result<()> {
        let servers = (0..).zip(&self.servers).map(|(id, _)| End::Server(id));
        [End::Hub, End::Clients]
            .into_iter()
            .chain(servers)
            .try_for_each(|end| self.nft(end, &["flush", "set", "inet", "cut", "from"]))
    }

    fn nft(&self, end: End, arguments: &[&str]) -> anyhow::Result<()> {
        let file = match end {
            End::Hub => return run("nft", arguments),
            End::Clients => &self.clients,
            End::Server(id) => &self.servers[usize::from(id)],
        };
        let space = format!("--net={}", path_of(file));
        let words: Vec<&str> =
            [&space, "nft"].into_iter().chain(arguments.iter().copied()).collect();
        run("nsenter", &words)
    }
}

/// Creates a namespace with one link to the hub.
fn namespace(end: End, name: &str) -> anyhow::Result<File> {
    // A thread moves into a new namespace. The open file keeps the namespace alive.
    let made = std::thread::spawn(|| -> anyhow::Result<File> {
        leave_network()?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    });
    let file = made.join().expect("a thread does not panic").context("make a network namespace")?;
    let (space, far) = (path_of(&file), format!("{name}-hub"));
    run("ip", &["link", "add", &far, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
    run("ip", &["link", "set", &far, "master", "hub", "up"])?;
    let inside = format!("--net={space}");
    let address = format!("{}/24", end.address());
    for words in [
        &["ip", "link", "set", "lo", "up"][..],
        &["ip", "address", "add", &address, "dev", "eth0"],
        &["ip", "link", "set", "eth0", "up"],
    ] {
        let all: Vec<&str> = [&inside[..]].into_iter().chain(words.iter().copied()).collect();
        run("nsenter", &all)?;
    }
    feed("nsenter", &[&inside, "nft", "-f", "-"], RULES)?;
    Ok(file)
}

/// Returns a path by which other processes reach a file that this process has open.
fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

fn leave_network() -> rustix::io::Result<()> {
    // SAFETY: a change of the network namespace does not affect memory or open files.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    feed(program, arguments, "")
}

fn feed(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    check(Command::new(program).args(arguments), input).map(drop)
}
