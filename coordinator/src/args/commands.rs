//! The subcommands of `coord`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Subcommand};
use kv_protocol::Eviction;

use super::parse::{
    eviction_policy, parse_dump_dir, parse_host, parse_interval, parse_memory_limit,
    parse_remote_dir, parse_ssh_config,
};

/// The subcommands of `coord`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the servers and groups of a running cluster.
    ///
    /// The exit status is 0 if every group has two copies and there is no alarm; 3 if every key is served, but a copy
    /// is missing, there is an alarm, or the cluster is starting or stopping; 4 if some keys are not served; 1 if the
    /// coordinator does not respond. The first line gives the reason.
    Status(StatusArgs),
    /// Stop a running cluster in an orderly way, and wait until it has ended. If its coordinator has died, this command
    /// takes the servers over, here and on ssh hosts, and stops them in an orderly way. Only the user that runs the
    /// coordinator, and root, may use it. The exit status is that of the coordinator.
    Stop(StopArgs),
    /// End the coordinator and leave the servers running. No server is replaced until another coordinator takes them
    /// over (`coord -C FILE --dir DIR`). Only the user that runs the coordinator, and root, may use it.
    Detach(DetachArgs),
    /// Restart a server while the cluster serves: on its own host, to run a new executable, or on another host, to move
    /// it or because its host is lost for good. A server that serves hands its groups over first. A silent server is
    /// replaced without proof of its death. The only holder of a group stays where it is. The command waits until the
    /// new process holds all replicas that the old one held; Ctrl+C ends only the wait.
    Replace(ReplaceArgs),
    /// Change settings of a running cluster and of its running servers.
    Set(SetArgs),
    /// Remove every key of a running cluster. The cluster serves meanwhile, and a failover does not stop the removal. Every
    /// key that exists at the beginning is removed; a key that a client writes meanwhile may stay. Only the user that
    /// runs the coordinator, and root, may use it.
    ///
    /// The exit status is 0 if every shard is done, 1 if the flush has failed or was interrupted, 2 without --yes. After a
    /// failure the message names the shards that are not done; repeating the command is safe.
    Flush(FlushArgs),
    /// List the servers of the cluster in a directory and show which of them run, with or without a coordinator. The
    /// command reads the state in the directory, and queries this machine and the ssh hosts for the processes. It
    /// changes nothing.
    ///
    /// The exit status is 0 if a coordinator or a server runs, 3 if nothing runs, 4 if no server is known to run and
    /// the state of some is not known, 1 if the state cannot be read.
    Ls(LsArgs),
    /// Fetch the dumps of a stopped cluster from its ssh hosts, for --restore. No file is overwritten. Only the owner
    /// of a copy can read it.
    ///
    /// The exit status is 0 if both dumps of each server on an ssh host are in the directory afterwards, 1 otherwise.
    Collect(CollectArgs),
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

    /// Repeat until Ctrl+C; with --json, print one line for each status. A terminal shows the status in place;
    /// elsewhere each status follows the last one.
    #[arg(long)]
    pub(crate) watch: bool,

    /// Seconds (fractions allowed) between two requests of --watch.
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "watch", value_parser = parse_interval)]
    pub(crate) interval: Duration,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
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

    /// Write the dumps to this directory on each server's host instead of the server's own directory. The directory is
    /// created if it does not exist. The flag may also be given during a stop: failed dumps are then retried in this
    /// directory at once.
    #[arg(long, value_name = "DIR", value_parser = parse_dump_dir)]
    pub(crate) dump_dir: Option<String>,

    /// Abandon the tables that cannot be dumped, and kill silent servers, whatever they hold. The coordinator reports
    /// which groups are lost.
    #[arg(long)]
    pub(crate) force: bool,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
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
    /// on that host, in the directory of --remote-dir. Default: the current host and ports.
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

/// The command line of `coord flush`.
#[derive(Debug, clap::Args)]
pub(crate) struct FlushArgs {
    /// Remove the keys. Without this flag the command only shows about how many keys it would remove, as
    /// of the last reports of the servers.
    #[arg(long)]
    pub(crate) yes: bool,

    /// Print one line of JSON at the end, and no progress.
    #[arg(long)]
    pub(crate) json: bool,

    /// Seconds (fractions allowed) without progress in any shard after which the flush fails.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_interval)]
    pub(crate) timeout: Duration,

    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// The command line of `coord set`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("setting").required(true).multiple(true))]
pub(crate) struct SetArgs {
    /// Memory limit for the tables of one server, such as 512M or 4GiB; `none` for no limit. Without eviction a lower
    /// limit removes nothing: writes are rejected until entries are deleted.
    #[arg(long, value_name = "BYTES", group = "setting", value_parser = parse_memory_limit)]
    pub(crate) memory_limit: Option<String>,

    /// Policy of full tables for writes that need memory: `none`, `lfu` or `ttl`, as for the start of a cluster.
    #[arg(long, value_name = "POLICY", group = "setting", value_parser = eviction_policy())]
    pub(crate) eviction: Option<Eviction>,

    /// The directory of the cluster: the coordinator's --dir.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,

    /// Print this help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}
