//! When the keys of a server that was killed, or stopped, answer again.

use std::path::Path;
use std::time::Duration;

use kv_protocol::Digest;
use serde_json::{Value, json};

use super::probe::Probe;
use super::{STRENGTH, bulk, cluster_dir, ms, parse_size, percentile};
use crate::clock::now_ns;
use crate::cluster::{Cluster, Programs, Setting};
use crate::load::Load;
use crate::process::{self, Signal};
use crate::random::Random;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct FailoverArgs {
    /// Data in each server, both tables together.
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    data: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 1_024)]
    value_bytes: usize,
    /// How often.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Stop the server (SIGSTOP) instead of killing it; it goes on when its keys answer again.
    #[arg(long)]
    hang: bool,
    /// Servers of the ring.
    #[arg(long, default_value_t = 3)]
    servers: u16,
    /// Shards of each group.
    #[arg(long, default_value_t = 1)]
    shards: u16,
    /// Chooses the servers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn run(args: &FailoverArgs, programs: &Programs, dir: &Path) -> anyhow::Result<Value> {
    let setting = Setting { servers: args.servers, shards: args.shards, flags: Vec::new() };
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    bulk(args.servers, args.data, args.value_bytes).write(&cluster.endpoint(), |_| {})?;
    let load = Load::start(programs, &cluster, None, STRENGTH, args.seed)?;
    let mut random = Random::new(args.seed);
    let (mut puts, mut gets, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.kills {
        let victim = u16::try_from(random.below(u64::from(args.servers))).expect("a server");
        let key = key_of(&cluster, victim);
        let probe = Probe::start(&cluster.endpoint(), &key)?;
        std::thread::sleep(Duration::from_millis(random.between(100, 400)));
        let pid = cluster.server_pid(victim)?;
        let moment = now_ns();
        process::signal(pid, if args.hang { Signal::STOP } else { Signal::KILL });
        probe.look_from(moment);
        let found = probe.wait();
        process::signal(pid, Signal::CONT);
        let after = |ns: i64| Duration::from_nanos(u64::try_from(ns - moment).unwrap_or(0));
        let [put, get] = found?.map(after);
        drop(probe);
        puts.push(put);
        gets.push(get);
        let asked = after(now_ns());
        whole.push(asked + cluster.wait_whole("after a failover was measured")?);
        eprintln!("server {victim}: PUT after {} ms, GET after {} ms", ms(put), ms(get));
    }
    drop(load);
    cluster.stop()?;
    for list in [&mut puts, &mut gets, &mut whole] {
        list.sort_unstable();
    }
    Ok(json!({
        "what": if args.hang { "SIGSTOP of a server" } else { "kill -9 of a server" },
        "times": args.kills,
        "data_bytes_in_each_server": args.data,
        "value_bytes": args.value_bytes,
        "put_p50_ms": ms(percentile(&puts, 50)),
        "put_worst_ms": ms(percentile(&puts, 100)),
        "get_p50_ms": ms(percentile(&gets, 50)),
        "get_worst_ms": ms(percentile(&gets, 100)),
        "two_copies_again_p50_ms": ms(percentile(&whole, 50)),
        "two_copies_again_worst_ms": ms(percentile(&whole, 100)),
    }))
}

/// A key whose home is this server.
fn key_of(cluster: &Cluster, server: u16) -> String {
    let placement = cluster.placement();
    (0u32..)
        .map(|number| format!("probe-{number}"))
        .find(|key| placement.locate(Digest::of(key.as_bytes())).0.0 == server)
        .expect("every group has keys")
}
