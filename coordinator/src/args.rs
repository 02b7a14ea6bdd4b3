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
/// The cluster runs until Ctrl+D (the end of standard input), Ctrl+C or SIGTERM; then every server
/// drains, dumps both its tables and exits. A dump that fails is tried again and again, and no server
/// exits before; `coord stop --dump-dir` sends the dumps elsewhere. A second Ctrl+C that comes a second or
/// more after the first gives up what cannot be dumped; if nothing has failed, or when it comes once more,
/// the servers are killed without dumps. Any further SIGTERM changes nothing. SIGHUP opens the log file anew, as it
/// does at every server; SIGUSR1, SIGUSR2, SIGALRM and the like are ignored by both.
///
/// The exit status is 0 if all went well, 1 if something failed (among it: a group of which
/// no server reported a complete dump), 2 if the command line or the cluster file makes no sense.
///
/// `--on-double-fault`, `--memory-limit`, `--connection-memory`, `--orphan-timeout`, `--net`, `--failure-timeout`,
/// `--remote-dir`, `--ssh-config` and `--advertise` are kept with the cluster's state: a coordinator that takes it over or
/// restores it goes on with them unless it is given others. `coord status` shows them.
#[derive(Debug, Parser)]
#[command(
    name = "coord",
    version,
    disable_help_flag = true,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    /// Ask a running coordinator instead of being one.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Port for clients; 0 takes a free one, or that of before for a cluster that runs.
    #[arg(short = 'c', long, value_name = "PORT", default_value_t = 0)]
    pub(crate) clients_port: u16,

    /// Port for servers; 0 takes a free one, or that of before for a cluster that runs.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 0)]
    pub(crate) servers_port: u16,

    /// The cluster file: the number of servers, then `<host> <clients_port> <servers_port>
    /// <coord_port>` for each.
    #[arg(short = 'C', long, value_name = "FILE", required = true)]
    pub(crate) cluster_file: Option<PathBuf>,

    /// File that the log is appended to; standard error without it. KV_LOG filters it
    /// (error, warn, info, debug, trace).
    #[arg(short = 'l', long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,

    /// Failure timeout in seconds (fractions allowed): a server that sends no heartbeat for this long counts
    /// as down. Leases are as long, at least 0.5 s; a server of which a thread hangs for 1.25 leases ends.
    /// Raise it where servers are starved of processor time: failures are then noticed as much later, and
    /// reads and writes of the groups concerned wait as much longer. Default: the stored setting, else 0.5.
    /// A cluster that runs keeps its own.
    #[arg(short = 't', long, alias = "timeout", value_name = "SECONDS", value_parser = parse_failure_timeout)]
    pub(crate) failure_timeout: Option<Duration>,

    /// What to do when a second server is gone before the first is back: `shutdown` stops the cluster
    /// with dumps, `isolate` goes on without what is lost. By default that of before, or `shutdown`.
    #[arg(long, value_name = "POLICY", value_enum)]
    pub(crate) on_double_fault: Option<OnDoubleFault>,

    /// Directory for the files of the coordinator and of the servers on this machine: logs, dumps,
    /// the lock, the state. Made if it does not exist. A coordinator that finds the state of a cluster
    /// that runs takes it over.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Open file descriptor to which one line of JSON with the ports is written once the cluster
    /// serves.
    #[arg(long, value_name = "N")]
    pub(crate) ready_fd: Option<i32>,

    /// Check hosts, ssh, io_uring, binaries and ports, start nothing, and exit: 0 if all is well.
    #[arg(long)]
    pub(crate) check: bool,

    /// Only read the cluster file, as a start would with these flags, and exit: 0 if it makes sense.
    #[arg(long)]
    pub(crate) check_file: bool,

    /// Only print a line for each ssh host of the cluster file, and exit: the host as ssh takes it, the servers'
    /// directory there, and the configuration that ssh shall use, with tabs between them. For scripts.
    #[arg(long)]
    pub(crate) list_hosts: bool,

    /// The configuration that ssh shall use (ssh -F). Default: the stored setting, else that of the user.
    #[arg(long, value_name = "FILE", value_parser = parse_ssh_config)]
    pub(crate) ssh_config: Option<PathBuf>,

    /// The servers' directory on ssh hosts; the binary there is DIR/server. Relative to the login's
    /// home directory. Default: the stored setting, else `ftkv`.
    #[arg(long, value_name = "DIR", value_parser = parse_remote_dir)]
    pub(crate) remote_dir: Option<String>,

    /// Address by which the other hosts reach this machine. Required when the cluster file mixes
    /// localhost with ssh hosts; without it a cluster of localhost alone listens on 127.0.0.1 only. Default: the
    /// stored setting.
    #[arg(long, value_name = "IP")]
    pub(crate) advertise: Option<IpAddr>,

    /// Address of this machine on which the coordinator and the servers here listen, and no other. Default:
    /// 127.0.0.1 for a cluster of localhost lines, all addresses where other hosts must reach this one.
    #[arg(long, value_name = "IP")]
    pub(crate) bind: Option<IpAddr>,

    /// Allow core dumps and debuggers of the same user for the coordinator and for servers that are started
    /// from now on. Both can show the cluster's key and all data.
    #[arg(long)]
    pub(crate) core_dumps: bool,

    /// Shards of every group, one executor thread each. By default the least number of cores a
    /// server has to itself on any host, at least 1.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SHARDS)))]
    pub(crate) shards: Option<u16>,

    /// Memory that the tables of one server may take, such as 512M or 4GiB, at least 16M; `none` for no bound. By default
    /// that of before, or what the servers of a machine can share of its memory, or of their cgroup's
    /// (--check says how much that is).
    #[arg(long, value_name = "BYTES", value_parser = parse_memory_limit)]
    pub(crate) memory_limit: Option<String>,

    /// Memory that the clients' connections of one server may hold, such as 128M; at least 40M. The tables
    /// leave free what connections hold. Default: the stored setting, else a quarter of the memory limit, else
    /// 256M.
    #[arg(long, value_name = "BYTES", value_parser = parse_connection_memory)]
    pub(crate) connection_memory: Option<String>,

    /// Seconds (fractions allowed) after which a server that no coordinator speaks to dumps its tables and
    /// exits, unless it holds the only copy of a group; 0 for never. By default that of before, or 3600.
    #[arg(long, value_name = "SECONDS", value_parser = parse_orphan_timeout)]
    pub(crate) orphan_timeout: Option<Duration>,

    /// What moves the bytes of the servers' connections: io_uring (`uring`, Linux 6.1 and later), `epoll`, or `auto`:
    /// uring where a server finds that it works, else epoll. Default: the stored setting, else `auto`.
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub(crate) net: Option<NetEngine>,

    /// The server's executable on this machine. By default `server` beside this one (`kv-server` where
    /// it is installed).
    #[arg(long, value_name = "FILE")]
    pub(crate) server_binary: Option<PathBuf>,

    /// Bring back the cluster that was stopped, from the dumps and the coordinator's state
    /// (`coordinator.state`) in these directories; the dumps of servers on ssh hosts must be copied into
    /// one of them first. They may be the directory that the cluster ran in (--dir). The last state says
    /// which dumps count; a table shows what becomes of each. Nothing is changed before all is checked,
    /// and a try that fails can be made again.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(crate) restore: Vec<PathBuf>,

    /// Do what the files in --dir call for: take the cluster over if it runs, restore it if it was stopped, and
    /// found a new one only where there is neither a state nor a dump. Never begins empty beside data. For
    /// service units.
    #[arg(long, conflicts_with = "restore")]
    pub(crate) resume: bool,

    /// Restore although groups are LOST, of which no dump counts: their keys are answered LOST.
    #[arg(long, requires = "restore")]
    pub(crate) accept_loss: bool,

    /// Restore where every copy of the coordinator's state is lost: the dumps in the directories tell what the last
    /// state was. Where both holders' dumps of a group are there that is certain; of any other group it is said what
    /// may be missing, and it needs --accept-loss. Servers that run in these directories, or on the ssh hosts, are in
    /// the way: end them first.
    #[arg(long, requires = "restore")]
    pub(crate) without_state: bool,

    /// Restore although a member of the old cluster may still serve. Only if you know that it does not:
    /// two clusters would answer for the same keys.
    #[arg(long, requires = "restore")]
    pub(crate) force: bool,

    /// Ignore standard input; only SIGINT and SIGTERM stop the cluster.
    #[arg(long)]
    pub(crate) daemon: bool,

    // Not a flag: set by `coord stop`, which takes a cluster over only to stop it.
    #[arg(skip)]
    pub(crate) only_stops: bool,

    /// Prints this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The policy for a second fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnDoubleFault {
    /// Every living server dumps its tables and exits.
    #[default]
    Shutdown,
    /// Every group goes on by itself; those without a holder are LOST.
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
    /// io_uring, or no start.
    Uring,
    /// epoll, without any io_uring.
    // States of before name the engine that it has replaced.
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

/// What else `coord` does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the servers and groups of a running cluster.
    ///
    /// The exit status is 0 if every group has two copies and there is no alarm, 3 if every key is served and something is
    /// amiss, 4 if some keys are not served, 1 if the coordinator cannot be asked. The first line says why.
    Status(StatusArgs),
    /// Stops a running cluster in order, and waits for its end. Where its coordinator has died, this takes the servers
    /// over, here and on ssh hosts, and stops them in order. Only the user that runs the coordinator, and root, may.
    /// The exit status is that of the coordinator.
    Stop(StopArgs),
    /// Ends the coordinator and leaves the servers serving. Nobody is replaced until another coordinator takes them
    /// over (`coord -C FILE --dir DIR`). Only the user that runs the coordinator, and root, may.
    Detach(DetachArgs),
    /// Starts a server anew while the cluster serves: on its host, for a new executable, or on another one, where its
    /// host is dead for good or to move it. A server that serves hands its groups over first; of one that is silent no
    /// proof of its death is needed. The only holder of a group stays where it is. Waits until the new process holds
    /// all that the old one held; Ctrl+C ends the waiting alone.
    Replace(ReplaceArgs),
    /// Changes settings of a cluster that runs, at its servers too.
    Set(SetArgs),
    /// Lists the servers of the cluster in a directory, and whether they live, with or without a coordinator: by the
    /// state there, the processes of this machine, and the ssh hosts. Changes nothing.
    ///
    /// The exit status is 0 if a coordinator runs or a server lives, 3 if nothing runs, 4 if no server is known to live
    /// and some cannot be asked after, 1 if the state cannot be read.
    Ls(LsArgs),
    /// Fetches the dumps of a stopped cluster from its ssh hosts, for --restore. No file is overwritten; the copies are
    /// for their owner alone.
    ///
    /// The exit status is 0 if two dumps of each server on an ssh host are there then, 1 otherwise.
    Collect(CollectArgs),
}

/// The command line of `coord collect`.
#[derive(Debug, clap::Args)]
pub(crate) struct CollectArgs {
    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Where the dumps are put; made if it does not exist. Default: the directory of the cluster.
    #[arg(value_name = "INTO")]
    pub(crate) into: Option<PathBuf>,

    /// Only print where the dumps are: a line with host and directory, and a tab between them, for each.
    #[arg(long)]
    pub(crate) list: bool,

    /// The configuration that ssh shall use (ssh -F). Default: the stored setting.
    #[arg(long, value_name = "FILE", value_parser = parse_ssh_config)]
    pub(crate) ssh_config: Option<PathBuf>,

    /// The servers' directory on ssh hosts. Default: the stored setting.
    #[arg(long, value_name = "DIR", value_parser = parse_remote_dir)]
    pub(crate) remote_dir: Option<String>,

    /// Prints this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord detach`.
#[derive(Debug, clap::Args)]
pub(crate) struct DetachArgs {
    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Prints this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord replace`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplaceArgs {
    /// The server: its place in the ring, from 0.
    #[arg(value_name = "ID")]
    pub(crate) server: u16,

    /// Its new host, as in the cluster file: localhost, user@host or ssh://user@host[:port]. The server's executable
    /// must be there, in the directory of --remote-dir. Default: the host and the ports that it has.
    #[arg(value_name = "HOST", value_parser = parse_host)]
    pub(crate) host: Option<String>,

    /// Its ports there, for clients, servers and the coordinator; any free ones without them.
    #[arg(value_name = "PORT", num_args = 3)]
    pub(crate) ports: Vec<u16>,

    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Prints this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord set`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    /// Memory that the tables of one server may take, such as 512M or 4GiB; `none` for no bound. A lower limit drops
    /// nothing: writes are refused until entries are deleted.
    #[arg(long, value_name = "BYTES", required = true, value_parser = parse_memory_limit)]
    pub(crate) memory_limit: String,

    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Prints this help.
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

    /// The configuration that ssh shall use (ssh -F). Default: the stored setting.
    #[arg(long, value_name = "FILE", value_parser = parse_ssh_config)]
    pub(crate) ssh_config: Option<PathBuf>,

    /// The servers' directory on ssh hosts. Default: the stored setting.
    #[arg(long, value_name = "DIR", value_parser = parse_remote_dir)]
    pub(crate) remote_dir: Option<String>,

    /// Prints this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Write the dumps to this directory of each server's host, which is made if need be, instead of the
    /// server's own. May be given while a stop is under way whose dumps fail: they are tried there at once.
    #[arg(long, value_name = "DIR", value_parser = parse_dump_dir)]
    pub(crate) dump_dir: Option<String>,

    /// Give up the tables that cannot be dumped, and kill servers that are silent, whatever they hold; the
    /// coordinator says which groups are lost with them.
    #[arg(long)]
    pub(crate) force: bool,

    /// Prints this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

fn parse_dump_dir(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("write an absolute path: it is a directory of each server's host".to_owned());
    }
    if text.len() > MAX_DUMP_DIRECTORY_BYTES {
        return Err(format!("{} bytes; a path has at most {MAX_DUMP_DIRECTORY_BYTES}", text.len()));
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
            Err("it is empty; write . for the login's home directory".to_owned())
        }
        None => Ok(text.to_owned()),
        Some("" | "/") => Ok(".".to_owned()),
        Some(rest) => match rest.strip_prefix('/') {
            Some(rest) => Ok(rest.trim_start_matches('/').to_owned()),
            None => Err("the home directory of another user; write the whole path".to_owned()),
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

    /// Show it again and again until Ctrl+C: on a terminal in place; elsewhere one after the other, with
    /// --json a line each time.
    #[arg(long)]
    pub(crate) watch: bool,

    /// Seconds (fractions allowed) between two looks of --watch.
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "watch", value_parser = parse_interval)]
    pub(crate) interval: Duration,

    /// Prints this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

fn parse_failure_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !FAILURE_TIMEOUT_SECONDS.contains(&seconds) {
        let (least, most) = (FAILURE_TIMEOUT_SECONDS.start(), FAILURE_TIMEOUT_SECONDS.end());
        return Err(format!("{text} s; heartbeats come every 0.1 s, write {least} to {most}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !(MIN_INTERVAL_SECONDS..=MAX_INTERVAL_SECONDS).contains(&seconds) {
        return Err(format!("{text} s; write {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn parse_orphan_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if seconds != 0.0 && !ORPHAN_SECONDS.contains(&seconds) {
        let (least, most) = (ORPHAN_SECONDS.start(), ORPHAN_SECONDS.end());
        return Err(format!("{text} s; write 0 for never, or {least} to {most}"));
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
