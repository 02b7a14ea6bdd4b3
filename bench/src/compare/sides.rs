//! The compared systems. For a side that replicates, two processes take part in the load: a primary and its replica.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kv_protocol::status::{ClusterStatus, GroupCondition};
use rustix::process::Signal;

use super::machine::{Hardware, Placement};
use super::process::{self, Kept, free_port, pinned, wait_for};
use super::{Args, Programs};

/// The name of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Who {
    Kv,
    /// This store with `--net epoll`, the engine for systems without io_uring.
    Epoll,
    /// The cluster of [`Who::Kv`], accessed by its own protocol, with keys of all groups.
    Native,
    /// The same cluster over RESP. Each connection sends only keys of its server.
    RespLocal,
    /// The same cluster over RESP. Each connection sends keys of all groups.
    Resp,
    Redis,
    Valkey,
    Memcached,
    /// One process of kv-echo.
    Ring,
    /// Two processes of kv-echo in a chain.
    Chain,
}

impl Who {
    /// All sides. A side that uses the processes of another one comes after it.
    pub(super) const ALL: [Who; 10] = [
        Who::Kv,
        Who::Epoll,
        Who::Native,
        Who::RespLocal,
        Who::Resp,
        Who::Redis,
        Who::Valkey,
        Who::Memcached,
        Who::Ring,
        Who::Chain,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Who::Kv => "this store",
            Who::Epoll => "this store, epoll",
            Who::Native => "this store, all groups",
            Who::RespLocal => "this store, RESP, keys of the server",
            Who::Resp => "this store, RESP, any key",
            Who::Redis => "Redis",
            Who::Valkey => "Valkey",
            Who::Memcached => "memcached",
            Who::Ring => "bare ring",
            Who::Chain => "bare chain",
        }
    }

    /// Returns the side whose processes this side uses too.
    fn host(self) -> Option<Who> {
        matches!(self, Who::Native | Who::RespLocal | Who::Resp).then_some(Who::Kv)
    }

    /// Returns the side that stores the same keys in the same processes.
    pub(super) fn holder(self) -> Who {
        if self.host().is_some() { Who::Native } else { self }
    }
}

/// One running side.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) who: Who,
    pub(super) version: String,
    pub(super) url: String,
    /// The processes whose CPU time counts, the primary first.
    pub(super) pids: Vec<u32>,
    /// Further processes of this side, which take no part in the load.
    others: Vec<u32>,
    /// A cluster's directory.
    dir: Option<PathBuf>,
    // The processes of the side. They are dropped before the directory is searched for remaining processes.
    processes: Vec<Kept>,
}

impl Side {
    /// Returns this side's processes as another side. The CPU time of all of them counts.
    fn view(&self, who: Who) -> Side {
        let address = self.url.split_once("://").map_or(self.url.as_str(), |(_, address)| address);
        let scheme = if who == Who::Native { "kv+wire" } else { "kv+redis" };
        Side {
            who,
            version: format!("the processes of {}", self.who.name()),
            url: format!("{scheme}://{address}"),
            pids: self.pids.iter().chain(&self.others).copied().collect(),
            others: Vec::new(),
            dir: None,
            processes: Vec::new(),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.processes.clear();
        if let Some(dir) = &self.dir {
            process::end_all_in(dir);
        }
    }
}

/// All available sides, and the reasons why the other sides are unavailable.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) running: Vec<Side>,
    pub(super) absent: Vec<(Who, String)>,
}

/// The inputs for starting a side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground<'a> {
    pub(super) args: &'a Args,
    pub(super) programs: &'a Programs,
    pub(super) machine: &'a Hardware,
    pub(super) dir: &'a Path,
}

impl Sides {
    /// Starts all installed sides among these, and the sides whose processes they use.
    pub(super) fn start(ground: &Ground<'_>, asked: &[Who]) -> anyhow::Result<Sides> {
        let mut sides = Sides { running: Vec::new(), absent: Vec::new() };
        let is_used = |who: &Who| asked.iter().any(|a| a == who || a.host() == Some(*who));
        for who in Who::ALL.into_iter().filter(is_used) {
            if let Some(host) = who.host().and_then(|host| sides.get(host)) {
                let side = host.view(who);
                sides.running.push(side);
                continue;
            }
            match ground.missing(who) {
                Some(why) => {
                    // Standard error may be closed; the report carries the same information.
                    let _ =
                        writeln!(std::io::stderr(), "kv-compare: without {}: {why}", who.name());
                    sides.absent.push((who, why));
                }
                None => sides.running.push(ground.start(who)?),
            }
        }
        Ok(sides)
    }

    pub(super) fn get(&self, who: Who) -> Option<&Side> {
        self.running.iter().find(|side| side.who == who)
    }

    /// Returns the report's text for each side: its version, or the reason why it is left out.
    pub(super) fn describe(&self) -> Vec<(Who, String)> {
        let running = self.running.iter().map(|side| (side.who, side.version.clone()));
        let absent = self.absent.iter();
        running.chain(absent.map(|(who, why)| (*who, format!("left out: {why}")))).collect()
    }

    /// Moves all processes of all sides to the servers' cores of a placement.
    pub(super) fn place(&self, machine: &Hardware, placement: Placement) -> anyhow::Result<()> {
        let cores = machine.servers(placement);
        for pid in self.running.iter().flat_map(|side| side.pids.iter().chain(&side.others)) {
            process::move_to(*pid, &cores)?;
        }
        Ok(())
    }
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned()
}

/// Sends a command to a RESP server, and returns its response.
fn ask_resp(port: u16, question: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(format!("{question}\r\nQUIT\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

impl Ground<'_> {
    fn program(&self, who: Who) -> Option<&Path> {
        match who {
            Who::Redis => Some(&self.args.redis),
            Who::Valkey => Some(&self.args.valkey),
            Who::Memcached => Some(&self.args.memcached),
            Who::Kv
            | Who::Epoll
            | Who::Native
            | Who::RespLocal
            | Who::Resp
            | Who::Ring
            | Who::Chain => None,
        }
    }

    /// Returns the reason why a side is unavailable; `None` if it is available.
    pub(super) fn missing(&self, who: Who) -> Option<String> {
        let program = self.program(who)?;
        let version = Command::new(program).arg("--version").output();
        let (error, flag) = match version {
            Ok(output) if output.status.success() => return None,
            Ok(output) => (output.status.to_string(), who),
            Err(error) => (error.to_string(), who),
        };
        let flag = format!("{flag:?}").to_lowercase();
        Some(format!("cannot run {} ({error}); install it or set --{flag}", program.display()))
    }

    /// Returns a side's version for the report.
    pub(super) fn version(&self, who: Who) -> anyhow::Result<String> {
        match self.program(who) {
            Some(program) => {
                Ok(first_line(&Command::new(program).arg("--version").output()?.stdout))
            }
            None => Ok(format!("{}, built from this source", env!("CARGO_PKG_VERSION"))),
        }
    }

    fn command(&self, program: &Path, at_death: Signal) -> Command {
        pinned(program, self.machine.servers(Placement::Apart), at_death)
    }

    /// Starts a side and waits until it serves.
    pub(super) fn start(&self, who: Who) -> anyhow::Result<Side> {
        let side = match who {
            Who::Kv | Who::Epoll => self.start_cluster(who),
            Who::Native | Who::RespLocal | Who::Resp => {
                Err(anyhow!("it has no processes of its own"))
            }
            Who::Redis | Who::Valkey => self.start_resp(who),
            Who::Memcached => self.start_memcached(),
            Who::Ring => self.start_echoes(1),
            Who::Chain => self.start_echoes(2),
        };
        side.with_context(|| format!("start {}", who.name()))
    }

    fn start_cluster(&self, who: Who) -> anyhow::Result<Side> {
        let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(self.dir)?.keep();
        let file = dir.join("cluster.txt");
        fs::write(&file, format!("3\n{}", "localhost 0 0 0\n".repeat(3)))?;
        let port = free_port()?;
        let log = dir.join("coord.err");
        let mut command = self.command(&self.programs.coord, Signal::TERM);
        command.args(["--daemon", "--shards", "1", "-c", &port.to_string()]);
        // During the runs of peers, idle servers on the same core got no CPU time for up to 0.8 s. With the default
        // failure timeout, the coordinator would remove them.
        command.args(["-t", "5"]);
        if who == Who::Epoll {
            command.args(["--net", "epoll"]);
        }
        command.arg("-C").arg(&file).arg("--dir").arg(&dir).arg("-l").arg(dir.join("coord.log"));
        let processes = vec![Kept::start(&mut command, &log)?];
        // From here on, dropping this value kills the processes in the directory.
        let mut side = Side {
            who,
            version: self.version(who)?,
            url: format!("kv+wire://127.0.0.1:{port}"),
            pids: Vec::new(),
            others: Vec::new(),
            dir: Some(dir),
            processes,
        };
        let status = wait_for("every group to have two copies", || {
            side.processes[0].check(&log)?;
            let port = port.to_string();
            let asked = Command::new(&self.programs.coord)
                .args(["status", "-h", "127.0.0.1", "-p", &port, "--json"])
                .output()?;
            let status = serde_json::from_slice::<ClusterStatus>(&asked.stdout).ok();
            Ok(status.filter(|status| {
                let is_whole = |condition| condition == GroupCondition::Whole;
                status.groups.len() == 3 && status.groups.iter().all(|g| is_whole(g.condition))
            }))
        })?;
        let pids: Option<Vec<u32>> = status.servers.iter().map(|server| server.pid).collect();
        side.pids = pids.context("the status of the cluster lists a server without a pid")?;
        side.others = side.pids.split_off(2);
        side.others.push(side.processes[0].0.id());
        Ok(side)
    }

    fn start_resp(&self, who: Who) -> anyhow::Result<Side> {
        let program = self.program(who).context("it has a program")?;
        let (primary, replica) = (free_port()?, free_port()?);
        let mut side = Side {
            who,
            version: self.version(who)?,
            url: format!("redis://127.0.0.1:{primary}"),
            pids: Vec::new(),
            others: Vec::new(),
            dir: None,
            processes: Vec::new(),
        };
        for port in [primary, replica] {
            let dir = tempfile::Builder::new().prefix("resp-").tempdir_in(self.dir)?.keep();
            let log = dir.join("log");
            let mut command = self.command(program, Signal::KILL);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
            command.args([
                "--appendonly",
                "no",
                "--daemonize",
                "no",
                "--repl-diskless-sync-delay",
                "0",
            ]);
            command.arg("--dir").arg(&dir);
            if port == replica {
                command.args(["--replicaof", "127.0.0.1", &primary.to_string()]);
            }
            let mut kept = Kept::start(&mut command, &log)?;
            wait_for("the server to respond and its replica to follow", || {
                kept.check(&log)?;
                let said = ask_resp(port, "INFO replication").unwrap_or_default();
                let sign = if port == replica { "master_link_status:up" } else { "role:master" };
                Ok(said.contains(sign).then_some(()))
            })?;
            side.pids.push(kept.0.id());
            side.processes.push(kept);
        }
        Ok(side)
    }

    fn start_memcached(&self) -> anyhow::Result<Side> {
        let port = free_port()?;
        let log = self.dir.join("memcached.log");
        let mut command = self.command(&self.args.memcached, Signal::KILL);
        command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-t", "1", "-m", "2048"]);
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "root"]);
        }
        let mut kept = Kept::start(&mut command, &log)?;
        wait_for("memcached to accept connections", || {
            kept.check(&log)?;
            Ok(TcpStream::connect(("127.0.0.1", port)).ok().map(drop))
        })?;
        Ok(Side {
            who: Who::Memcached,
            version: self.version(Who::Memcached)?,
            url: format!("memcached://127.0.0.1:{port}"),
            pids: vec![kept.0.id()],
            others: Vec::new(),
            dir: None,
            processes: vec![kept],
        })
    }

    /// Starts `count` processes of kv-echo. Each forwards to the one that was started before it.
    fn start_echoes(&self, count: usize) -> anyhow::Result<Side> {
        let mut address: Option<String> = None;
        let mut processes: Vec<Kept> = Vec::new();
        for number in 0..count {
            let log = self.dir.join(format!("echo-{count}-{number}.log"));
            let mut command = self.command(&self.programs.echo, Signal::KILL);
            if let Some(next) = &address {
                command.args(["--forward", next]);
            }
            let mut kept = Kept::start(&mut command, &log)?;
            address = Some(wait_for("kv-echo to print its address", || {
                kept.check(&log)?;
                let said = fs::read_to_string(&log)?;
                Ok(said.strip_suffix('\n').map(ToOwned::to_owned))
            })?);
            processes.insert(0, kept);
        }
        let who = if count == 1 { Who::Ring } else { Who::Chain };
        Ok(Side {
            who,
            version: self.version(who)?,
            url: format!("echo://{}", address.context("at least one")?),
            pids: processes.iter().map(|kept| kept.0.id()).collect(),
            others: Vec::new(),
            dir: None,
            processes,
        })
    }
}
