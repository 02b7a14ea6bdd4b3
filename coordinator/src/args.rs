//! The command line of `coord`: its flags, with their help.

mod commands;
mod parse;
mod policies;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use kv_protocol::limits::MAX_SHARDS;
use kv_protocol::{Eviction, RedisMulti};

pub(crate) use commands::{
    CollectArgs, Command, DetachArgs, FlushArgs, LsArgs, ReplaceArgs, SetArgs, StatusArgs, StopArgs,
};
pub(crate) use policies::{NetEngine, OnDoubleFault};

use parse::{
    eviction_policy, parse_connection_memory, parse_failure_timeout, parse_memory_limit,
    parse_orphan_timeout, parse_redis_deadline, parse_redis_ports, parse_remote_dir,
    parse_ssh_config, parse_unix_dir, redis_multi,
};

/// Starts the servers of a cluster, monitors them, and stops them in an orderly way.
///
/// The cluster runs until Ctrl+D (the end of standard input), Ctrl+C or SIGTERM. Then every server drains, dumps both
/// its tables and exits. A dump that fails is retried until it succeeds, and no server exits before that; `coord stop
/// --dump-dir` writes the dumps elsewhere. Ctrl+C, a second or more after the stop has begun, abandons the tables that
/// cannot be dumped, and kills silent servers. If no dump has failed and no silent server holds up the stop, or on
/// another Ctrl+C, the remaining servers are killed without dumps. Any further SIGTERM has no effect. SIGHUP makes a
/// coordinator or a server reopen its log file; both ignore SIGUSR1, SIGUSR2, SIGALRM and similar signals.
///
/// The exit status is 0 on success, 1 on a failure (for example: a group of which no server reported a complete dump),
/// 2 if the command line or the cluster file is invalid.
///
/// `--on-double-fault`, `--memory-limit`, `--eviction`, `--connection-memory`, `--orphan-timeout`, `--net`,
/// `--failure-timeout`, `--redis-port`, `--redis-deadline`, `--redis-multi`, `--unix`, `--remote-dir`, `--ssh-config` and
/// `--advertise` are stored with the cluster's state. A coordinator that takes the cluster over or restores it uses the
/// stored settings, unless its flags give other values. `coord status` shows the settings.
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

    /// Port for clients. 0 selects the last coordinator's port if the cluster is taken over, or if it is restored and
    /// that port is free; else any free port.
    #[arg(short = 'c', long, value_name = "PORT", default_value_t = 0)]
    pub(crate) clients_port: u16,

    /// Port for servers. 0 selects the last coordinator's port if the cluster is taken over, else any free port.
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
    /// Leases last as long, but at least 0.5 s; a server ends if one of its threads hangs for 1.25 leases, unless it
    /// holds the only copy of a group. Raise the timeout if servers do not get enough processor time: failures are then
    /// detected later, and reads and writes of the affected groups wait longer. Default: the stored setting, else 0.5.
    /// A running cluster keeps its own.
    #[arg(short = 't', long, alias = "timeout", value_name = "SECONDS", value_parser = parse_failure_timeout)]
    pub(crate) failure_timeout: Option<Duration>,

    /// Policy for a second server that fails before the first one is replaced: `shutdown` stops the cluster with dumps,
    /// `isolate` continues without the lost groups. Default: the stored setting, else `shutdown`.
    #[arg(long, value_name = "POLICY", value_enum)]
    pub(crate) on_double_fault: Option<OnDoubleFault>,

    /// Directory for the files of the coordinator and of the servers on this machine: logs, dumps, the lock, the state.
    /// It is created if it does not exist. A coordinator that finds the state of a running cluster in it takes the
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

    /// Only print a line for each ssh host of the cluster file, and exit: the host in the form for ssh, the servers'
    /// directory on it, and the ssh configuration file, separated by tabs. For scripts.
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
    /// Both can expose the cluster's key and all data.
    #[arg(long)]
    pub(crate) core_dumps: bool,

    /// Shards of every group, one executor thread each. Default: the smallest number of cores that a server has to
    /// itself on any host, at least 1.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_SHARDS)))]
    pub(crate) shards: Option<u16>,

    /// Place a key by its hash tag, if it has one: the part between its first `{` and the next `}`. So keys with the
    /// same tag, such as `{user:1}:name` and `{user:1}:mail`, share a group and a shard, and one batch, rename or copy
    /// can use them together. The setting is chosen when a cluster is created, is stored, and never changes. Clients of
    /// protocol version 1 are rejected. Default: the whole key is hashed.
    #[arg(long)]
    pub(crate) hash_tags: bool,

    /// Memory limit for the tables of one server, such as 512M or 4GiB; at least 16M; `none` for no limit. Default: the
    /// stored setting, else the server's share of the memory of its machine or cgroup (--check shows it).
    #[arg(long, value_name = "BYTES", value_parser = parse_memory_limit)]
    pub(crate) memory_limit: Option<String>,

    /// Policy of full tables for writes that need memory: `none` rejects the writes, `lfu` removes entries that are seldom
    /// used, `ttl` removes the entries with the nearest deadlines, and never entries without a deadline. Default: the
    /// stored setting, else `none`.
    #[arg(long, value_name = "POLICY", value_parser = eviction_policy())]
    pub(crate) eviction: Option<Eviction>,

    /// Memory limit for the clients' connections of one server, such as 128M; at least 40M. It is part of the memory
    /// limit: the tables leave the memory that connections hold free. Default: the stored setting, else a quarter of
    /// the memory limit, else 256M.
    #[arg(long, value_name = "BYTES", value_parser = parse_connection_memory)]
    pub(crate) connection_memory: Option<String>,

    /// Seconds (fractions allowed) without a coordinator after which a server dumps its tables and exits, unless it
    /// holds the only copy of a group; 0 for never. Default: the stored setting, else 3600.
    #[arg(long, value_name = "SECONDS", value_parser = parse_orphan_timeout)]
    pub(crate) orphan_timeout: Option<Duration>,

    /// Ports at which the servers accept only Redis clients, one for each server in the order of the cluster file, such as
    /// 6379,6380,6381; 0 for any free port at each server, which its log names; `none` for none. Redis clients may also use
    /// the ports for clients. Default: the stored setting, else none.
    #[arg(long, value_name = "PORTS", value_parser = parse_redis_ports)]
    pub(crate) redis_port: Option<String>,

    /// Seconds (fractions allowed) for which a command of a Redis client waits for a server that serves its key. Then the
    /// client gets an error. Default: the stored setting, else 5.
    #[arg(long, value_name = "SECONDS", value_parser = parse_redis_deadline)]
    pub(crate) redis_deadline: Option<Duration>,

    /// Treatment of transactions of Redis clients with keys of several shards: `refuse` rejects their commands, `ordered`
    /// executes them one after the other, without isolation. Transactions with keys of one shard are atomic either way.
    /// Default: the stored setting, else `refuse`.
    #[arg(long, value_name = "TREATMENT", value_parser = redis_multi())]
    pub(crate) redis_multi: Option<RedisMulti>,
    /// Directory of the servers' Unix-domain sockets for clients, an absolute path; `none` for no sockets. Each server also
    /// listens on `DIR/server_ID.sock`, with mode 0660, in the directory of that path on its own host. The directory must
    /// exist and belong to this cluster alone. Native clients use it as `unix:DIR`. Default: the stored setting, else none.
    #[arg(long, value_name = "DIR", value_parser = parse_unix_dir)]
    pub(crate) unix: Option<String>,

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

    /// Choose the kind of start by the files in --dir: take the cluster over if it runs, restore it if it was stopped,
    /// and found a new one only if there is neither a state nor a dump. It never starts an empty cluster beside
    /// existing data. For service units.
    #[arg(long, conflicts_with = "restore")]
    pub(crate) resume: bool,

    /// Restore although some groups are LOST because no dump of them counts. Requests for their keys get LOST.
    #[arg(long, requires = "restore")]
    pub(crate) accept_loss: bool,

    /// Restore although every copy of the coordinator's state is lost: the dumps in the directories show what the last
    /// state was. For a group with the dumps of both holders the result is certain. Any other group needs
    /// --accept-loss, and the coordinator reports what may be missing. Servers that run in these directories, or on the
    /// ssh hosts, block the restore: stop them first.
    #[arg(long, requires = "restore")]
    pub(crate) without_state: bool,

    /// Restore although a member of the old cluster may still serve. Use it only if you know that no such member
    /// serves: otherwise two clusters would serve the same keys.
    #[arg(long, requires = "restore")]
    pub(crate) force: bool,

    /// Ignore standard input; only SIGINT and SIGTERM stop the cluster.
    #[arg(long)]
    pub(crate) daemon: bool,

    // True in `coord stop`, which takes a cluster over only to stop it; no flag sets it.
    #[arg(skip)]
    pub(crate) only_stops: bool,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
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
    fn flags_about_a_restore_require_restore() {
        let args = parse("coord -C file --restore a b --dir c --restore d --accept-loss").unwrap();
        assert_eq!(args.restore, ["a", "b", "d"].map(PathBuf::from));
        assert!(args.accept_loss && !args.force);
        for wrong in ["--accept-loss", "--force", "--restore"] {
            let error = parse(&format!("coord -C file {wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_limit_below_the_minimum_is_rejected_and_the_error_has_the_minimum() {
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
    fn invalid_values_are_usage_errors() {
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
        for word in ["status", "stop", "detach", "set", "flush", "ls", "collect"] {
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
