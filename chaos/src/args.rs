//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use kv_protocol::placement::Placement;

use crate::measure::MeasureArgs;

/// Runs clusters of real processes under load, injects faults, and checks every guarantee afterwards.
///
/// Each round starts a cluster with `coord` and `server` from the directory of this program, and loads it from several
/// client processes. It injects one fault after the other, each when the cluster is whole again, and stops the cluster
/// in an orderly way. Then the round is checked: the history of every key must be that of one register, or of an object
/// with updates and deadlines, and every write must have taken effect once. Scans must return every key. The two dumps of every group must be equal and contain every acknowledged write. A
/// corrupted copy of each history must be rejected. The exit status is 0 if all guarantees held, and 1 if one was
/// violated. The directory of a failed round (history, logs, dumps) is kept, and its path is printed.
#[derive(Debug, Parser)]
#[command(name = "chaos", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Seed that determines the faults (default: random, and printed). The same seed selects the same faults, but their
    /// timing differs, because real processes are not deterministic.
    #[arg(long)]
    pub(crate) seed: Option<u64>,

    /// Number of faults to inject.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) faults: u32,

    /// Number of ordinary days: events such as an orderly exit, a suspension, a full disk or a flood, in separate
    /// clusters.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) ordinary: u32,

    /// Number of servers in each cluster (default: 3 and 5 in turn).
    #[arg(long, value_parser = clap::value_parser!(u16).range(3..=32))]
    pub(crate) servers: Option<u16>,

    /// Time limit in minutes. After this time no round begins, and the current round injects no further fault.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) minutes: Option<u32>,

    /// Keep the directories of all rounds in this directory, not only those of failed rounds.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,

    /// Cut no links. Cuts need root, `ip`, `nft` and `nsenter`. If one of them is missing, cuts are left out, and the
    /// report names the reason.
    #[arg(long)]
    pub(crate) no_cuts: bool,

    /// Leave out rounds in which two servers die together.
    #[arg(long)]
    pub(crate) no_double_faults: bool,

    /// Inject only faults and ordinary days whose name in the table contains this text.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,

    /// Run the short selection of `make test`: two minutes and a few ordinary days, seed 1, clusters of three and
    /// four servers, no cuts.
    #[arg(long, conflicts_with_all = ["seed", "faults", "ordinary", "servers", "minutes", "only"])]
    pub(crate) slice: bool,

    /// Print the result as one JSON object instead of tables.
    #[arg(long)]
    pub(crate) json: bool,

    /// Directory of the programs `coord` and `server` (default: the directory of this program).
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) programs: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measures the figures of docs/recovery.md, each on a separate cluster.
    Measure(MeasureArgs),
    /// Runs one client process of the load.
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// The command line of a client process.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    /// The coordinator (`host:port`).
    #[arg(long)]
    pub(crate) endpoint: String,
    /// The number of this worker in the run.
    #[arg(long)]
    pub(crate) index: u32,
    /// Execute operations on objects instead of registers.
    #[arg(long)]
    pub(crate) objects: bool,
    /// Number of concurrent operations. Each has a separate process number in the history.
    #[arg(long)]
    pub(crate) threads: u32,
    /// Maximum number of operations per second of each thread.
    #[arg(long)]
    pub(crate) rate: u32,
    /// File for the history.
    #[arg(long)]
    pub(crate) history: PathBuf,
    /// File for the groups with a write in flight.
    #[arg(long)]
    pub(crate) flight: PathBuf,
    /// Number of servers in the ring.
    #[arg(long)]
    pub(crate) servers: u16,
    /// Number of shards of each group.
    #[arg(long)]
    pub(crate) shards: u16,
    /// The cluster places keys by their hash tags.
    #[arg(long)]
    pub(crate) hash_tags: bool,
    /// Seed that determines the operations.
    #[arg(long)]
    pub(crate) seed: u64,
}

impl WorkerArgs {
    /// Returns the placement of keys in the cluster.
    pub(crate) fn placement(&self) -> Placement {
        Placement::new(self.servers, self.shards).with_hash_tags(self.hash_tags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_documented() {
        let command = Args::command();
        command.clone().debug_assert();
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        }
    }
}
