//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand};
use kv_core::cluster::DoubleFault;
use kv_protocol::cluster_file::Host;
use kv_protocol::failure_timeout::FAILURE_TIMEOUT_SECONDS;
use kv_protocol::limits::{
    CONNECTION_MEMORY_MIN, MAX_DUMP_DIRECTORY_BYTES, MAX_SHARDS, ORPHAN_SECONDS,
};
use kv_protocol::size;
use serde::{Deserialize, Serialize};

/// The bounds of the interval between two requests of `coord status --watch`.
const MIN_INTERVAL_SECONDS: f64 = 0.1;
const MAX_INTERVAL_SECONDS: f64 = 86_400.0;

/// The minimum of `--memory-limit` in bytes: less has no room for a value of the maximum size.
const MEMORY_LIMIT_MIN: u64 = 16 << 20;

/// Starts the servers of a cluster, watches them, and stops them in order.
///
/// The cluster runs until Ctrl+D (the end of standard input), Ctrl+C or SIGTERM. Then every server drains, dumps both
/// its tables and exits. A dump that fails is retried until it succeeds, and no server exits before; `coord stop
/// --dump-dir` writes the dumps elsewhere. A second Ctrl+C, a second or more after the first, gives up what cannot be
/// dumped. If nothing has failed, or on another Ctrl+C after that, the servers are killed without dumps. Any further
/// SIGTERM has no effect. SIGHUP makes a coordinator or a server reopen its log file; both ignore SIGUSR1, SIGUSR2, SIGALRM
/// and the like.
///
/// The exit status is 0 on success, 1 on a failure (for example: a group of which no server reported a complete dump),
/// 2 if the command line or the cluster file is invalid.
///
/// `--on-double-fault`, `--memory-limit`, `--connection-memory`, `--orphan-timeout`, `--net`, `--failure-timeout`,
/// `--remote-dir`, `--ssh-config` and `--advertise` are stored with the cluster's state. A coordinator that takes the
/// cluster over or restores it uses the stored settings, unless it is given others. `coord status` shows them.
#[derive(Debug, Parser)]
#[command(
    name = "coord",
    version,
    disable_help_flag = true,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    /// Send a command to a running coordinator instead of starting one.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Port for clients. 0 takes any free port, or, for a running cluster, the same port as before.
    #[arg(short = 'c', long, value_name = "PORT", default_value_t = 0)]
    pub(crate) clients_port: u16,

    /// Port for servers. 0 takes any free port, or, for a running cluster, the same port as before.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 0)]
    pub(crate) servers_port: u16,

    /// The cluster file: the number of servers, then `<host> <clients_port> <servers_port>
    /// <coord_port>` for each.
    #[arg(short = 'C', long, value_name = "FILE", required = true)]
    pub(crate) cluster_file: Option<PathBuf>,

    /// Append the log to this file. Default: standard error. KV_LOG sets the level (error, warn, info, debug, trace).
    #[arg(short = 'l', long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,

    /// Failure timeout in seconds (fractions allowed): a server that sends no heartbeat for this long counts as down.
    /// Leases are as long, at least 0.5 s; a server with a thread that hangs for 1.25 leases ends. Raise it if servers
    /// do not get enough processor time: failures are then detected later, and reads and writes of the affected groups
    /// wait longer. Default: the stored setting, else 0.5. A running cluster keeps its own.
    #[arg(short = 't', long, alias = "timeout", value_name = "SECONDS", value_parser = parse_failure_timeout)]
    pub(crate) failure_timeout: Option<Duration>,

    /// Policy for a second server that fails before the first is back: `shutdown` stops the cluster with dumps,
    /// `isolate` continues without what is lost. Default: the stored setting, else `shutdown`.
    #[arg(long, value_name = "POLICY", value_enum)]
    pub(crate) on_double_fault: Option<OnDoubleFault>,

    /// Directory for the files of the coordinator and of the servers on this machine: logs, dumps, the lock, the state.
    /// It is created if it does not exist. A coordinator that finds the state of a running cluster there takes the
    /// cluster over.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Write one line of JSON with the ports to this open file descriptor, once the cluster serves.
    #[arg(long, value_name = "N")]
    pub(crate) ready_fd: Option<i32>,

    /// Check hosts, ssh, io_uring, binaries and ports; start nothing, and exit. The exit status is 0 if every check
    /// passes.
    #[arg(long)]
    pub(crate) check: bool,

    /// Only read the cluster file, as a start with these flags would, and exit. The exit status is 0 if the file is
    /// valid.
    #[arg(long)]
    pub(crate) check_file: bool,

    /// Only print a line for each ssh host of the cluster file, and exit: the host as ssh takes it, the servers'
    /// directory there, and the ssh configuration file, separated by tabs. For scripts.
    #[arg(long)]
    pub(crate) list_hosts: bool,

    /// Configuration file for ssh (ssh -F). Default: the stored setting, else the user's configuration.
    #[arg(long, value_name = "FILE", value_parser = parse_ssh_config)]
    pub(crate) ssh_config: Option<PathBuf>,

    /// Directory of the servers on ssh hosts. The server binary there is DIR/server. A relative path starts at the home
    /// directory of the login. Default: the stored setting, else `ftkv`.
    #[arg(long, value_name = "DIR", value_parser = parse_remote_dir)]
    pub(crate) remote_dir: Option<String>,

    /// Address at which the other hosts reach this machine. Required if the cluster file mixes localhost with ssh
    /// hosts. Without it, a cluster of localhost lines listens on 127.0.0.1 only. Default: the stored setting.
    #[arg(long, value_name = "IP")]
    pub(crate) advertise: Option<IpAddr>,

    /// Listen only on this address of this machine; it applies to the coordinator and the servers here. Default:
    /// 127.0.0.1 for a cluster of localhost lines, all addresses if other hosts must reach this machine.
    #[arg(long, value_name = "IP")]
    pub(crate) bind: Option<IpAddr>,

    /// Allow core dumps, and debuggers of the same user, for the coordinator and for every server started from now on.
    /// Both can show the cluster's key and all data.
    #[arg(long)]
    pub(crate) core_dumps: bool,

    /// Shards of every group, one executor thread each. Default: the smallest number of cores that a server has to
    /// itself on any host, at least 1.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SHARDS)))]
    pub(crate) shards: Option<u16>,

    /// Memory limit for the tables of one server, such as 512M or 4GiB; at least 16M; `none` for no limit. Default: the
    /// stored setting, else the server's share of the memory of its machine or cgroup (--check shows it).
    #[arg(long, value_name = "BYTES", value_parser = parse_memory_limit)]
    pub(crate) memory_limit: Option<String>,

    /// Memory limit for the clients' connections of one server, such as 128M; at least 40M. The tables leave free what
    /// connections hold. Default: the stored setting, else a quarter of the memory limit, else 256M.
    #[arg(long, value_name = "BYTES", value_parser = parse_connection_memory)]
    pub(crate) connection_memory: Option<String>,

    /// Seconds (fractions allowed) without a coordinator after which a server dumps its tables and exits, unless it
    /// holds the only copy of a group; 0 for never. Default: the stored setting, else 3600.
    #[arg(long, value_name = "SECONDS", value_parser = parse_orphan_timeout)]
    pub(crate) orphan_timeout: Option<Duration>,

    /// Network engine of the servers: `uring` (io_uring, Linux 6.1 and later), `epoll`, or `auto`: uring where it works,
    /// else epoll. Default: the stored setting, else `auto`.
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub(crate) net: Option<NetEngine>,

    /// Server executable for this machine. Default: `server` beside this executable (`kv-server` where it is
    /// installed).
    #[arg(long, value_name = "FILE")]
    pub(crate) server_binary: Option<PathBuf>,

    /// Restore a stopped cluster from the dumps and the coordinator's state (`coordinator.state`) in these directories.
    /// Copy the dumps of servers on ssh hosts into one of them first (`coord collect`). The directory that the cluster
    /// ran in (--dir) may be one of them. The latest state decides which dumps count; a table shows how each dump is
    /// used. Nothing is changed until every check has passed, and a restore that fails can be repeated.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(crate) restore: Vec<PathBuf>,

    /// Do what the files in --dir call for: take the cluster over if it runs, restore it if it was stopped, and found a
    /// new one only if there is neither a state nor a dump. It never starts an empty cluster beside existing data. For
    /// service units.
    #[arg(long, conflicts_with = "restore")]
    pub(crate) resume: bool,

    /// Restore although some groups are LOST because no dump of them counts. Their keys are answered LOST.
    #[arg(long, requires = "restore")]
    pub(crate) accept_loss: bool,

    /// Restore although every copy of the coordinator's state is lost: the dumps in the directories show what the last
    /// state was. For a group with the dumps of both holders the result is certain. Any other group needs
    /// --accept-loss, and the coordinator reports what may be missing. Servers that run in these directories, or on the
    /// ssh hosts, block the restore: stop them first.
    #[arg(long, requires = "restore")]
    pub(crate) without_state: bool,

    /// Restore although a member of the old cluster may still serve. Use it only if you know that none does: otherwise
    /// two clusters would serve the same keys.
    #[arg(long, requires = "restore")]
    pub(crate) force: bool,

    /// Ignore standard input; only SIGINT and SIGTERM stop the cluster.
    #[arg(long)]
    pub(crate) daemon: bool,

    // Not a flag: set by `coord stop`, which takes a cluster over only to stop it.
    #[arg(skip)]
    pub(crate) only_stops: bool,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The policy for a second fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnDoubleFault {
    /// Every remaining server dumps its tables and exits.
    #[default]
    Shutdown,
    /// Every group continues on its own; groups without a holder are LOST.
    Isolate,
}

impl From<OnDoubleFault> for DoubleFault {
    fn from(policy: OnDoubleFault) -> DoubleFault {
        match policy {
            OnDoubleFault::Shutdown => DoubleFault::Shutdown,
            OnDoubleFault::Isolate => DoubleFault::Isolate,
        }
    }
}

impl std::fmt::Display for OnDoubleFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OnDoubleFault::Shutdown => "shutdown",
            OnDoubleFault::Isolate => "isolate",
        })
    }
}

/// The network engine of the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetEngine {
    /// uring where it works, else epoll.
    #[default]
    Auto,
    /// io_uring; the server does not start without it.
    Uring,
    /// epoll, without any io_uring.
    // Earlier states name the engine that it has replaced.
    #[serde(alias = "tcpstream")]
    Epoll,
}

impl std::fmt::Display for NetEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NetEngine::Auto => "auto",
            NetEngine::Uring => "uring",
            NetEngine::Epoll => "epoll",
        })
    }
}

/// The subcommands of `coord`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the servers and groups of a running cluster.
    ///
    /// The exit status is 0 if every group has two copies and there is no alarm; 3 if every key is served, but a copy
    /// is missing, there is an alarm, or the cluster is starting or stopping; 4 if some keys are not served; 1 if the
    /// coordinator does not respond. The first line gives the reason.
    Status(StatusArgs),
    /// Stop a running cluster in order, and wait until it has ended. If its coordinator has died, this command takes
    /// the servers over, here and on ssh hosts, and stops them in order. Only the user that runs the coordinator, and
    /// root, may use it. The exit status is that of the coordinator.
    Stop(StopArgs),
    /// End the coordinator and leave the servers serving. No server is replaced until another coordinator takes them
    /// over (`coord -C FILE --dir DIR`). Only the user that runs the coordinator, and root, may use it.
    Detach(DetachArgs),
    /// Restart a server while the cluster serves: on its own host, to run a new executable, or on another host, to move
    /// it or because its host is dead for good. A server that serves hands its groups over first. A silent server is
    /// replaced without proof of its death. The only holder of a group stays where it is. The command waits until the
    /// new process holds all that the old one held; Ctrl+C ends only the wait.
    Replace(ReplaceArgs),
    /// Change settings of a running cluster, at its servers too.
    Set(SetArgs),
    /// List the servers of the cluster in a directory, and which of them run, with or without a coordinator. The
    /// command reads the state there, and asks this machine and the ssh hosts for their processes. It changes nothing.
    ///
    /// The exit status is 0 if a coordinator or a server runs, 3 if nothing runs, 4 if no server is known to run and
    /// the state of some is not known, 1 if the state cannot be read.
    Ls(LsArgs),
    /// Fetch the dumps of a stopped cluster from its ssh hosts, for --restore. No file is overwritten; only their owner
    /// can read the copies.
    ///
    /// The exit status is 0 if both dumps of each server on an ssh host are in the directory afterwards, 1 otherwise.
    Collect(CollectArgs),
}

/// The command line of `coord collect`.
#[derive(Debug, clap::Args)]
pub(crate) struct CollectArgs {
    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Directory for the dumps; created if it does not exist. Default: the directory of the cluster.
    #[arg(value_name = "INTO")]
    pub(crate) into: Option<PathBuf>,

    /// Only print where the dumps are: one line for each host, with host and directory separated by a tab.
    #[arg(long)]
    pub(crate) list: bool,

    /// Configuration file for ssh (ssh -F). Default: the stored setting.
    #[arg(long, value_name = "FILE", value_parser = parse_ssh_config)]
    pub(crate) ssh_config: Option<PathBuf>,

    /// Directory of the servers on ssh hosts. Default: the stored setting.
    #[arg(long, value_name = "DIR", value_parser = parse_remote_dir)]
    pub(crate) remote_dir: Option<String>,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord detach`.
#[derive(Debug, clap::Args)]
pub(crate) struct DetachArgs {
    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord replace`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplaceArgs {
    /// Number of the server: its place in the ring, from 0.
    #[arg(value_name = "ID")]
    pub(crate) server: u16,

    /// New host, as in the cluster file: localhost, user@host or ssh://user@host[:port]. The server executable must be
    /// there, in the directory of --remote-dir. Default: the current host and ports.
    #[arg(value_name = "HOST", value_parser = parse_host)]
    pub(crate) host: Option<String>,

    /// Ports on the new host, for clients, servers and the coordinator. Default: any free ports.
    #[arg(value_name = "PORT", num_args = 3)]
    pub(crate) ports: Vec<u16>,

    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord set`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    /// Memory limit for the tables of one server, such as 512M or 4GiB; `none` for no limit. A lower limit removes
    /// nothing: writes are rejected until entries are deleted.
    #[arg(long, value_name = "BYTES", required = true, value_parser = parse_memory_limit)]
    pub(crate) memory_limit: String,

    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

fn parse_host(text: &str) -> Result<String, String> {
    Host::parse(text).map(|_| text.to_owned())
}

/// The command line of `coord ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Print one line of JSON.
    #[arg(long)]
    pub(crate) json: bool,

    /// Configuration file for ssh (ssh -F). Default: the stored setting.
    #[arg(long, value_name = "FILE", value_parser = parse_ssh_config)]
    pub(crate) ssh_config: Option<PathBuf>,

    /// Directory of the servers on ssh hosts. Default: the stored setting.
    #[arg(long, value_name = "DIR", value_parser = parse_remote_dir)]
    pub(crate) remote_dir: Option<String>,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Write the dumps to this directory on each server's host instead of the server's own directory; it is created if
    /// it does not exist. It may also be given during a stop whose dumps fail: they are retried there at once.
    #[arg(long, value_name = "DIR", value_parser = parse_dump_dir)]
    pub(crate) dump_dir: Option<String>,

    /// Give up the tables that cannot be dumped, and kill silent servers, whatever they hold. The coordinator reports
    /// which groups are lost with them.
    #[arg(long)]
    pub(crate) force: bool,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

fn parse_dump_dir(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(
            "not an absolute path; give the absolute path of a directory on each server's host"
                .to_owned(),
        );
    }
    if text.len() > MAX_DUMP_DIRECTORY_BYTES {
        return Err(format!(
            "the path has {} bytes; give one of at most {MAX_DUMP_DIRECTORY_BYTES}",
            text.len()
        ));
    }
    Ok(text.to_owned())
}

/// Returns the absolute path, because the path is stored and used from another working directory.
fn parse_ssh_config(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

/// Returns the directory with a leading `~` resolved to a path relative to the home directory. The remote shell does
/// not expand `~`, because the path is quoted.
fn parse_remote_dir(text: &str) -> Result<String, String> {
    match text.strip_prefix('~') {
        None if text.is_empty() => {
            Err("empty path; write . for the home directory of the login".to_owned())
        }
        None => Ok(text.to_owned()),
        Some("" | "/") => Ok(".".to_owned()),
        Some(rest) => match rest.strip_prefix('/') {
            Some(rest) => Ok(rest.trim_start_matches('/').to_owned()),
            None => Err("~USER is not supported; write the absolute path".to_owned()),
        },
    }
}

/// The command line of `coord status`.
#[derive(Clone, Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct StatusArgs {
    /// Host of the coordinator.
    #[arg(short = 'h', long, value_name = "HOST", default_value = "localhost")]
    pub(crate) host: String,

    /// The coordinator's port for clients.
    #[arg(short = 'p', long, value_name = "PORT")]
    pub(crate) port: u16,

    /// Print the status as JSON.
    #[arg(long)]
    pub(crate) json: bool,

    /// Repeat until Ctrl+C, with --json one line each. A terminal shows the status in place; elsewhere each status
    /// follows the last one.
    #[arg(long)]
    pub(crate) watch: bool,

    /// Seconds (fractions allowed) between two requests of --watch.
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "watch", value_parser = parse_interval)]
    pub(crate) interval: Duration,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

fn parse_failure_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !FAILURE_TIMEOUT_SECONDS.contains(&seconds) {
        let (least, most) = (FAILURE_TIMEOUT_SECONDS.start(), FAILURE_TIMEOUT_SECONDS.end());
        return Err(format!(
            "{text} s is out of range; heartbeats are sent every 0.1 s, so write {least} to \
                            {most}"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !(MIN_INTERVAL_SECONDS..=MAX_INTERVAL_SECONDS).contains(&seconds) {
        return Err(format!(
            "{text} s is out of range; write {MIN_INTERVAL_SECONDS} to \
                            {MAX_INTERVAL_SECONDS}"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_orphan_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if seconds != 0.0 && !ORPHAN_SECONDS.contains(&seconds) {
        let (least, most) = (ORPHAN_SECONDS.start(), ORPHAN_SECONDS.end());
        return Err(format!("{text} s is out of range; write 0 for never, or {least} to {most}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Checks a limit of the tables and returns its text; the servers parse it themselves.
fn parse_memory_limit(text: &str) -> Result<String, String> {
    match text {
        "none" => Ok(text.to_owned()),
        _ => parse_size(text, MEMORY_LIMIT_MIN, "16M, or none for no limit"),
    }
}

fn parse_connection_memory(text: &str) -> Result<String, String> {
    parse_size(text, CONNECTION_MEMORY_MIN, "40M, which is room for two of the longest requests")
}

/// Checks that a size has at least so many bytes, and returns its text.
fn parse_size(text: &str, least: u64, at_least: &str) -> Result<String, String> {
    match size::parse(text)? {
        bytes if bytes < least => {
            Err(format!("{text} is {bytes} bytes, which is too small; give at least {at_least}"))
        }
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_short_and_long_forms_agree() {
        let short = parse("coord -c 1 -s 2 -C file -l log -t 0.75").unwrap();
        let long = parse(
            "coord --clients-port 1 --servers-port 2 --cluster-file file --log log --failure-timeout 0.75",
        )
        .unwrap();
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        assert_eq!(long.failure_timeout, Some(Duration::from_millis(750)));
    }

    #[test]
    fn status_needs_a_port_and_no_cluster_file() {
        let args = parse("coord status -h db -p 4000 --json").unwrap();
        let Some(Command::Status(status)) = args.command else { panic!("not a status") };
        assert_eq!((status.host.as_str(), status.port, status.json), ("db", 4_000, true));
        assert_eq!(parse("coord status -h db").unwrap_err().exit_code(), 2);
        let args = parse("coord status -p 4000 --watch --interval 0.5").unwrap();
        let Some(Command::Status(status)) = args.command else { panic!("not a status") };
        assert_eq!((status.watch, status.interval), (true, Duration::from_millis(500)));
        for wrong in ["--interval 1", "--watch --interval 0", "--watch --interval NaN"] {
            let error = parse(&format!("coord status -p 4000 {wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
        assert_eq!(parse("coord").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn what_is_said_about_a_restore_needs_one() {
        let args = parse("coord -C file --restore a b --dir c --restore d --accept-loss").unwrap();
        assert_eq!(args.restore, ["a", "b", "d"].map(PathBuf::from));
        assert!(args.accept_loss && !args.force);
        for wrong in ["--accept-loss", "--force", "--restore"] {
            let error = parse(&format!("coord -C file {wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_limit_that_no_server_can_work_with_is_refused_with_the_least_there_is() {
        for (flag, small, least) in [
            ("--memory-limit", "5", "16M"),
            ("--memory-limit", "16MB", "16M"),
            ("--connection-memory", "39M", "40M"),
        ] {
            let error = parse(&format!("coord -C file {flag} {small}")).unwrap_err().to_string();
            let words = format!("too small; give at least {least}");
            assert!(error.contains(&words), "{error}");
            parse(&format!("coord -C file {flag} {least}")).unwrap();
        }
        parse("coord -C file --memory-limit none").unwrap();
    }

    #[test]
    fn the_home_directory_of_the_login_may_be_written_as_a_tilde() {
        for (written, meant) in
            [("~", "."), ("~/", "."), ("~/kv", "kv"), ("kv ~", "kv ~"), ("/kv", "/kv")]
        {
            assert_eq!(parse_remote_dir(written).unwrap(), meant, "{written}");
        }
        parse_remote_dir("~kv/here").unwrap_err();
        parse_remote_dir("").unwrap_err();
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for wrong in [
            "-t 0",
            "-t x",
            "-t NaN",
            "-t 1e9",
            "-t 0.05",
            "--orphan-timeout 0.5",
            "--orphan-timeout -1",
            "--orphan-timeout NaN",
            "--orphan-timeout x",
            "--net tcpstream",
            "--shards 0",
            "--shards 257",
            "--memory-limit G",
            "--memory-limit 0",
            "--memory-limit 1X",
            "--connection-memory 1X",
            "--advertise name",
            "-c 65536",
        ] {
            let error = parse(&format!("coord -C file {wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn every_subcommand_has_help() {
        for word in ["status", "stop", "detach", "ls", "collect"] {
            let error = parse(&format!("coord {word} --help")).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{word}");
        }
    }

    #[test]
    fn every_argument_is_documented() {
        let command = Args::command();
        let words = command.get_subcommands().flat_map(clap::Command::get_arguments);
        for argument in command.get_arguments().chain(words) {
            assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        }
    }
}
