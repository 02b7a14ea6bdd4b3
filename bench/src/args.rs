//! The command line, and the plan built from it.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use kv_protocol::ids::GroupId;
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES, SESSION_WINDOW};

use crate::control::Until;
use crate::distribution::Popularity;
use crate::numbers::{parse_count, parse_range, parse_seconds};
use crate::report::Format;
use crate::target::{Scheme, Target};
use crate::value::STAMP_BYTES;
use crate::wire::kv::WriteKind;

/// The upper bound of `--keys`. Two copies of more keys would exceed the memory of current machines.
const MAX_KEYS: u64 = 1_000_000_000;
/// The upper bound of `--connections`, above the limit of a server.
const MAX_CONNECTIONS: u64 = 16_384;
const MAX_THREADS: u64 = 256;
/// The maximum number of operations in flight of one client of the library.
const MAX_DEPTH: u64 = kv_client::MAX_IN_FLIGHT as u64;
const MAX_REPLICAS: u32 = 16;

const EXAMPLES: &str = "Examples:
  kv-bench --target kv://localhost:7000 --load --keys 100k
          Write 100,000 keys, then run 95 % reads and 5 % writes for ten seconds
  kv-bench --target kv://localhost:7000 --load --reads 50 --distribution zipf --verify
          Half reads and half writes of skewed keys, with every response checked
  kv-bench --target redis://localhost:6379 --reads 0 --wait 1 --depth 16
          Writes to Redis, each acknowledged by one replica
  kv-bench --target kv+wire://localhost:7000 --rate 20000 --reads 100 --json
          Latency at a fixed rate, as JSON";

/// Loads a store with reads and writes and measures its throughput and latency.
///
/// In a closed loop (without --rate), every connection keeps --depth operations in flight. The server determines the
/// rate, and the latency of an operation counts from its sending. In an open loop (with --rate), operations begin on
/// schedule, even if the server is slow. Their latency counts from the scheduled time, so it includes queueing.
///
/// Targets: kv is a cluster of this store, accessed through the client library at the coordinator's
/// address, with one thread for each connection. kv+wire is such a cluster over plain sockets, each to
/// one shard. kv+redis is such a cluster over the Redis protocol, with connections to all servers in
/// turn. redis is Redis or Valkey, or a single server of this store. memcached is memcached. echo is
/// kv-echo, a server that only returns bytes.
///
/// Exit status: 0 if every operation succeeded and every response was correct, 1 if not, 2 for invalid
/// usage.
#[derive(Clone, Debug, Parser)]
#[command(name = "kv-bench", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Store under load: kv://HOST:PORT, kv+wire://…, kv+redis://…, redis://…, memcached://… or echo://… Instead of
    /// HOST:PORT, unix:DIR is the directory of a cluster's sockets, and redis://unix:PATH a single socket.
    #[arg(short, long, value_name = "URL", value_parser = Target::parse)]
    target: Target,
    /// Percentage of operations that read; the others write. Fractions allowed.
    #[arg(short, long, value_name = "PERCENT", default_value = "95", value_parser = percent)]
    reads: f64,
    /// Number of keys.
    #[arg(short, long, value_name = "N", default_value = "100k", value_parser = parse_count)]
    keys: u64,
    /// Bytes of a key.
    #[arg(long, value_name = "BYTES", default_value = "16", value_parser = parse_count)]
    key_size: u64,
    /// Bytes of a value: one number, or MIN-MAX.
    #[arg(short, long, value_name = "BYTES", default_value = "64", value_parser = parse_range)]
    value_size: RangeInclusive<u64>,
    /// Distribution of keys: uniform, zipf (theta 0.99), or zipf:THETA.
    #[arg(long, value_name = "NAME", default_value = "uniform", value_parser = Popularity::parse)]
    distribution: Popularity,
    /// Connections (kv: clients, each with a thread of its own).
    #[arg(short, long, value_name = "N", default_value = "50", value_parser = parse_count)]
    connections: u64,
    /// Operations in flight on each connection.
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = parse_count)]
    depth: u64,
    /// Threads that share the connections (not for kv).
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_count)]
    threads: u64,
    /// Open loop: this many operations a second, over all connections.
    #[arg(long, value_name = "OPS", value_parser = parse_count)]
    rate: Option<u64>,
    /// Duration of the measurement.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    duration: Duration,
    /// Measure this many operations instead of a duration; 0 with --load: only fill.
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_count)]
    count: Option<u64>,
    /// Duration of the load before the measurement.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    warm_up: Duration,
    /// Seed of the choice of keys and operations; the same seed gives the same choice.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write every key once before the measurement.
    #[arg(short, long)]
    load: bool,
    /// Check every value read against the writes of this run. A key that this run has not written may hold a value of
    /// an earlier run.
    #[arg(long)]
    verify: bool,
    /// redis: after each batch of writes, wait until this many replicas have the writes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_REPLICAS as i64))]
    wait: Option<u32>,
    /// kv, kv+wire, kv+redis: use only keys of this group, which one server and its secondary hold.
    #[arg(long, value_name = "N")]
    group: Option<u16>,
    /// kv+redis: use on each connection only keys whose primary is its server, so that no command is forwarded to
    /// another server.
    #[arg(long)]
    local: bool,
    /// kv+wire: the operation of the writes. First fill with put for put-if, and with add for add.
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    writes: WriteKind,
    /// Report the CPU time of these processes for one operation.
    #[arg(long, value_name = "PID", num_args = 1.., value_delimiter = ',')]
    server_pid: Vec<u32>,
    /// Print the result as one JSON object.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print the result as two lines of comma-separated values.
    #[arg(long)]
    csv: bool,
}

/// The checked parameters of a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    /// The fraction of reads, from 0 to 1.
    pub(crate) reads: f64,
    pub(crate) keys: u32,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: RangeInclusive<usize>,
    pub(crate) popularity: Popularity,
    pub(crate) connections: usize,
    pub(crate) depth: u32,
    pub(crate) threads: usize,
    pub(crate) rate: Option<u64>,
    pub(crate) warm_up: Duration,
    /// The end of the measurement; `None` if the run only fills the keys.
    pub(crate) until: Option<Until>,
    pub(crate) seed: u64,
    pub(crate) fills: bool,
    pub(crate) verifies: bool,
    pub(crate) replicas: u32,
    pub(crate) group: Option<GroupId>,
    /// Whether each connection has only keys of its own server.
    pub(crate) is_local: bool,
    pub(crate) server_pids: Vec<u32>,
    pub(crate) writes: WriteKind,
}

fn percent(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    share.ok_or_else(|| format!("`{text}` is not a number from 0 to 100"))
}

/// Returns `number` if it lies within `bounds`; otherwise fails with an error that names the flag.
fn within(flag: &str, number: u64, bounds: RangeInclusive<u64>) -> anyhow::Result<u64> {
    match bounds.contains(&number) {
        true => Ok(number),
        false => bail!("--{flag} {number}: must be {} to {}", bounds.start(), bounds.end()),
    }
}

impl Args {
    /// Returns the output format.
    pub(crate) fn format(&self) -> Format {
        match (self.json, self.csv) {
            (true, _) => Format::Json,
            (_, true) => Format::Csv,
            _ => Format::Table,
        }
    }

    /// Builds the plan, and checks that the options are in range and do not contradict each other.
    pub(crate) fn plan(&self) -> anyhow::Result<Plan> {
        let Args { target, .. } = self;
        let keys = within("keys", self.keys, 1..=MAX_KEYS)?;
        // The keys of one group are chosen among the keys of all groups, so their numbers exceed the number of keys.
        let numbers = if self.group.is_some() { u64::from(u32::MAX) } else { keys - 1 };
        let digits = numbers.to_string().len() as u64;
        let key_bytes = within("key-size", self.key_size, digits..=MAX_KEY_BYTES as u64)?;
        within("value-size", *self.value_size.end(), 0..=MAX_VALUE_BYTES as u64)?;
        let connections = within("connections", self.connections, 1..=MAX_CONNECTIONS)?;
        let threads = within("threads", self.threads, 1..=MAX_THREADS.min(connections))?;
        let depth = within("depth", self.depth, 1..=MAX_DEPTH)?;
        if let Some(rate) = self.rate {
            within("rate", rate, 1..=1_000_000_000)?;
        }
        let writes = self.load || self.reads < 100.0;
        if target.scheme == Scheme::KvWire && writes && depth > SESSION_WINDOW {
            bail!("--depth {depth}: kv+wire keeps at most {SESSION_WINDOW} writes in flight");
        }
        if target.scheme == Scheme::Kv && threads > 1 {
            bail!("--threads does not apply to kv, which has one thread for each of --connections");
        }
        if self.writes != WriteKind::Put && target.scheme != Scheme::KvWire {
            bail!("--writes applies only to kv+wire://, not to {target}");
        }
        if self.writes == WriteKind::Add && self.verify {
            bail!("--verify does not apply to --writes add, whose values are sums");
        }
        if self.wait.is_some() && target.scheme != Scheme::Redis {
            bail!("--wait applies only to redis://, not to {target}");
        }
        if self.group.is_some() && !target.is_kv() {
            bail!("--group applies only to kv://, kv+wire:// and kv+redis://, not to {target}");
        }
        if self.local && target.scheme != Scheme::KvRedis {
            bail!("--local applies only to kv+redis://, not to {target}");
        }
        if self.verify && target.scheme == Scheme::Echo {
            bail!("--verify does not apply to {target}, which stores no values");
        }
        if self.verify && *self.value_size.start() < STAMP_BYTES as u64 {
            bail!("--verify needs a --value-size of {STAMP_BYTES} or more");
        }
        let until = match self.count {
            Some(0) if self.load => None,
            Some(0) => bail!("--count 0 does nothing without --load"),
            Some(count) => Some(Until::Count(count)),
            None if self.duration.is_zero() => bail!("--duration 0 measures nothing"),
            None => Some(Until::Time(self.duration)),
        };
        let index = crate::numbers::index;
        Ok(Plan {
            target: target.clone(),
            reads: self.reads / 100.0,
            keys: u32::try_from(keys)?,
            key_bytes: index(key_bytes),
            value_bytes: index(*self.value_size.start())..=index(*self.value_size.end()),
            popularity: self.distribution,
            connections: index(connections),
            depth: u32::try_from(depth)?,
            threads: index(threads),
            rate: self.rate,
            warm_up: self.warm_up,
            until,
            seed: self.seed,
            fills: self.load,
            verifies: self.verify,
            replicas: self.wait.unwrap_or(0),
            group: self.group.map(GroupId),
            is_local: self.local,
            server_pids: self.server_pid.clone(),
            writes: self.writes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn plan(line: &str) -> Result<Plan, String> {
        let args = Args::try_parse_from(format!("kv-bench {line}").split_whitespace());
        args.map_err(|error| error.to_string())?.plan().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_command_line_is_consistent_and_documented() {
        let command = Args::command();
        command.clone().debug_assert();
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        }
    }

    #[test]
    fn the_examples_of_the_help_are_right() {
        let lines = EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("kv-bench "));
        let plans: Vec<Plan> = lines.map(|line| plan(line).unwrap()).collect();
        assert_eq!(plans.len(), 4);
    }

    #[test]
    fn invalid_combinations_are_rejected_with_the_flag() {
        for (line, named) in [
            ("", "--target"),
            ("-t nowhere", "kv://HOST:PORT"),
            ("-t kv://a:1 --keys 0", "--keys"),
            ("-t kv://a:1 --keys 1M --key-size 5", "--key-size"),
            ("-t kv://a:1 --value-size 17MiB", "--value-size"),
            ("-t kv://a:1 --value-size 8-4", "MIN-MAX"),
            ("-t kv://a:1 --reads 101", "0 to 100"),
            ("-t kv://a:1 --depth 0", "--depth"),
            ("-t kv://a:1 --threads 2", "--connections"),
            ("-t kv+wire://a:1 --depth 65", "at most 64"),
            ("-t redis://a:1 --threads 3 -c 2", "--threads"),
            ("-t kv://a:1 --wait 1", "--wait"),
            ("-t redis://a:1 --group 0", "--group"),
            ("-t redis://a:1 --local", "--local"),
            ("-t kv+redis://a:1 --wait 1", "--wait"),
            ("-t redis://a:1 --writes add", "--writes"),
            ("-t kv+wire://a:1 --writes add --verify", "--verify"),
            ("-t echo://a:1 --verify", "--verify"),
            ("-t kv://a:1 --verify --value-size 4-64", "--value-size"),
            ("-t kv://a:1 --count 0", "--load"),
            ("-t kv://a:1 --duration 0", "--duration"),
            ("-t kv://a:1 --rate 0", "--rate"),
            ("-t kv://a:1 --json --csv", "--csv"),
            ("-t kv://a:1 --distribution zipf:-1", "theta"),
        ] {
            let refused = plan(line).expect_err(line);
            assert!(refused.contains(named), "{line}: {refused}");
        }
    }
}
