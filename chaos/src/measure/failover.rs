//! The time until the keys of a killed or hung server are served again.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;
use kv_testkit::process::{self, Signal};
use kv_testkit::random::Random;
use kv_testkit::sshd::Sshd;

use super::figures::Figures;
use super::probe::Probe;
use super::{STRENGTH, aftermath, bulk, cluster_dir, ms, percentile};
use crate::clock::now_ns;
use crate::cluster::{Cluster, Programs, Setting};
use crate::load::Load;

/// The server that is started through ssh.
const REMOTE: u16 = 1;
/// The target for the median time after a kill, in milliseconds, as an upper bound.
const KILL_MIDDLE_MS: f64 = 50.0;
/// The target for the longest time after a kill.
const KILL_WORST_MS: f64 = 250.0;
/// The target for the longest time after the beginning of a hang.
const HANG_WORST_MS: f64 = 1_000.0;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct FailoverArgs {
    /// Total data in the two tables of each server.
    #[arg(long, default_value = "64M", value_parser = kv_protocol::size::parse)]
    data: u64,
    /// Length of a value in bytes.
    #[arg(long, default_value_t = 1_024)]
    value_bytes: usize,
    /// Number of failovers to measure.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// Stop the server (SIGSTOP) instead of killing it. It resumes when its keys are served again.
    #[arg(long)]
    hang: bool,
    /// Run server 1 through ssh, with an sshd started for this purpose, and kill only this server.
    #[arg(long, conflicts_with = "hang")]
    ssh: bool,
    /// Number of servers in the ring.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=32))]
    servers: u16,
    /// Number of shards of each group.
    #[arg(long, default_value_t = 1)]
    shards: u16,
    /// Seed that determines the servers to kill or stop.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn run(
    args: &FailoverArgs,
    programs: &Programs,
    dir: &Path,
    progress: &ProgressBar,
) -> anyhow::Result<Figures> {
    let sshd = match args.ssh {
        true => Some(Sshd::start(&dir.join("sshd"), "PasswordAuthentication no\n")?),
        false => None,
    };
    let mut setting = Setting::plain(args.servers, args.shards);
    if let Some(sshd) = &sshd {
        kv_testkit::programs::copy(&programs.server, &sshd.remote_dir().join("server"))?;
        setting.flags = Sshd::flags(&sshd.config(), &sshd.remote_dir());
        setting.remote = Some((REMOTE, sshd.host()));
    }
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    let bulk = bulk(args.servers, args.data, args.value_bytes);
    bulk.write(&cluster.endpoint(), |_| {})?;
    let load = Load::start(programs, &cluster, &cluster.dir, None, STRENGTH, args.seed)?;
    let mut random = Random::new(args.seed);
    let (mut puts, mut gets, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut probed = Vec::new();
    for number in 0..args.kills {
        let victim = match sshd {
            Some(_) => REMOTE,
            None => u16::try_from(random.below(u64::from(args.servers))).expect("a server"),
        };
        let key = key_of(&cluster, victim, number);
        let probe = Probe::start(&cluster.endpoint(), &key, number)?;
        std::thread::sleep(Duration::from_millis(random.between(100, 400)));
        let pid = cluster.server_pid(victim)?;
        let moment = now_ns();
        process::signal(pid, if args.hang { Signal::STOP } else { Signal::KILL });
        probe.look_from(moment);
        let found = probe.wait();
        process::signal(pid, Signal::CONT);
        let after = |ns: i64| Duration::from_nanos(u64::try_from(ns - moment).unwrap_or(0));
        let [put, get] = found?.map(after);
        probed.extend(probe.end());
        puts.push(put);
        gets.push(get);
        let asked = after(now_ns());
        whole.push(asked + cluster.wait_whole("after a failover was measured")?);
        progress.suspend(|| {
            eprintln!("server {victim}: PUT after {} ms, GET after {} ms", ms(put), ms(get));
        });
    }
    for list in [&mut puts, &mut gets, &mut whole] {
        list.sort_unstable();
    }
    let mut figures = Figures::of(args.what());
    for (name, list) in [("PUT", &puts), ("GET", &gets)] {
        let (middle, worst) = (ms(percentile(list, 50)), ms(percentile(list, 100)));
        let (middle_name, worst_name) =
            (format!("first {name}, p50"), format!("first {name}, worst"));
        match (args.ssh, args.hang) {
            (true, _) => {
                figures.state(middle_name, middle, "ms");
                figures.state(worst_name, worst, "ms");
            }
            (false, true) => {
                figures.state(middle_name, middle, "ms");
                figures.at_most(worst_name, worst, "ms", HANG_WORST_MS);
            }
            (false, false) => {
                figures.at_most(middle_name, middle, "ms", KILL_MIDDLE_MS);
                figures.at_most(worst_name, worst, "ms", KILL_WORST_MS);
            }
        }
    }
    figures.state("two copies again, p50", ms(percentile(&whole, 50)), "ms");
    figures.state("two copies again, worst", ms(percentile(&whole, 100)), "ms");
    let mut records = load.stop(dir)?.registers;
    records.extend(probed);
    records.sort_by_key(|record| record.time_ns);
    let ended = cluster.stop()?;
    anyhow::ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
    if let Some(sshd) = &sshd {
        fetch_dumps(&sshd.remote_dir(), &cluster.dir)?;
    }
    aftermath::judge(&cluster, dir, records, bulk, args.data, &mut figures)?;
    Ok(figures)
}

impl FailoverArgs {
    fn what(&self) -> String {
        let what = if self.hang { "SIGSTOP" } else { "kill -9" };
        let whose = if self.ssh { "the server behind ssh" } else { "a server" };
        let data = self.data >> 20;
        format!("{what} of {whose}, {} times, {data} MiB in each server", self.kills)
    }
}

/// Copies the dumps of the remote server into the directory of the other dumps.
fn fetch_dumps(from: &Path, to: &Path) -> anyhow::Result<()> {
    for role in ["primary", "secondary"] {
        let name = format!("server_{REMOTE}.{role}");
        std::fs::copy(from.join(&name), to.join(&name))
            .with_context(|| format!("fetch {name} from {}", from.display()))?;
    }
    Ok(())
}

/// Returns a key of the home group of this server. The key differs for each number.
fn key_of(cluster: &Cluster, server: u16, number: u32) -> String {
    let placement = cluster.placement();
    (0u32..)
        .map(|attempt| format!("probe-{number}-{attempt}"))
        .find(|key| placement.locate(key.as_bytes()).0.0 == server)
        .expect("every group has keys")
}
