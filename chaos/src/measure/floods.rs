//! The measurement of floods: no shape of load may change a view.
//!
//! ```text
//!   for each shape: a cluster -> flood one server for a while -> status: views, longest gap between beacons
//!     shape    the requests, the number of connections, and whether responses are read
//!     sender   sends the requests as fast as the server accepts them
//! ```

pub(crate) mod sender;
pub(crate) mod shape;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;
use kv_client::{Client, OpOptions, Options};
use kv_protocol::ids::{ServerId, ShardId};
use kv_protocol::limits::LEASE;
use kv_protocol::placement::Placement;
use kv_protocol::status::ClusterStatus;
use kv_testkit::coord::is_whole;
use kv_testkit::key_at;

use super::figures::Figures;
use super::{cluster_dir, ms};
use crate::cluster::{Cluster, Programs, Setting};
use sender::Aim;
use shape::{QUICK, SHAPES, Shape};

/// The server that is flooded.
const VICTIM: ServerId = ServerId(1);
/// The exclusive upper bound of the gap between beacons during a flood.
const LONGEST_GAP: Duration = LEASE.checked_div(2).expect("two is not zero");
/// The number of further keys of a flood.
const KEYS: usize = 2_000;
/// The length of the values under these keys.
const ENTRY_BYTES: usize = 100;
/// The number of servers in the cluster, with one shard each.
const SERVERS: u16 = 3;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct FloodsArgs {
    /// Duration of each flood in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Send only a short selection of shapes. They share one cluster, unless a shape does harm.
    #[arg(long)]
    quick: bool,
    /// Send only shapes whose name contains this text.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Network engine of the servers (`coord --net`).
    #[arg(long, value_name = "ENGINE")]
    net: Option<String>,
}

/// The outcome of one flood.
struct Flooded {
    responses_per_second: f64,
    changed_views: u64,
    longest_gap_ms: u64,
}

pub(super) fn run(
    args: &FloodsArgs,
    programs: &Programs,
    dir: &Path,
    progress: &ProgressBar,
) -> anyhow::Result<Figures> {
    let shapes = if args.quick { QUICK } else { SHAPES };
    let is_chosen = |shape: &&Shape| {
        let name = shape.to_string();
        args.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
    };
    let shapes: Vec<&Shape> = shapes.iter().filter(is_chosen).collect();
    anyhow::ensure!(!shapes.is_empty(), "no shape of a flood has the text of --only in its name");
    let mut setting = Setting::plain(SERVERS, 1);
    if let Some(net) = &args.net {
        setting.flags.extend(["--net".to_owned(), net.clone()]);
    }
    let what = format!("floods of {} s each: longest gap between beacons", args.seconds);
    let mut figures = Figures::of(what);
    let mut running: Option<Cluster> = None;
    for (number, shape) in (1..).zip(&shapes) {
        progress.set_message(format!("{number} of {}: {shape}", shapes.len()));
        let mut cluster = match running.take() {
            Some(cluster) => cluster,
            None => Cluster::start(
                programs,
                &cluster_dir(dir).join(number.to_string()),
                &setting,
                None,
            )?,
        };
        let flooded = flood(&cluster, shape, Duration::from_secs(args.seconds));
        let is_harmed = match flooded {
            Ok(flooded) => {
                let name = format!("{shape} ({:.0} responses/s)", flooded.responses_per_second);
                #[allow(clippy::cast_precision_loss)] // Only for display.
                let gap = flooded.longest_gap_ms as f64;
                figures.below(name, gap, "ms", ms(LONGEST_GAP));
                if flooded.changed_views > 0 {
                    figures.none(format!("{shape}: views changed"), flooded.changed_views);
                }
                flooded.changed_views > 0 || gap >= ms(LONGEST_GAP)
            }
            Err(error) => {
                progress.suspend(|| eprintln!("{shape}: {error:#}"));
                figures.none(format!("{shape}: floods that failed"), 1);
                true
            }
        };
        if args.quick && !is_harmed {
            running = Some(cluster);
        } else {
            // If the stop fails, dropping the cluster kills its remaining processes.
            let _ = cluster.stop();
        }
    }
    if let Some(mut cluster) = running {
        let ended = cluster.stop()?;
        anyhow::ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
    }
    Ok(figures)
}

/// Floods one server of a cluster, which must be whole, and returns the effects.
fn flood(cluster: &Cluster, shape: &Shape, lasts: Duration) -> anyhow::Result<Flooded> {
    let before = cluster.status()?;
    anyhow::ensure!(is_whole(&before), "the cluster is not whole before the flood");
    let key = key_at(cluster.placement(), VICTIM.home_group().0, 0, "flooded").into_bytes();
    if let Some(bytes) = shape.value_bytes() {
        let mut client = Client::open(&cluster.endpoint(), Options::default())?;
        client.put(&key, &vec![7; bytes], &OpOptions::default()).context("put the value")?;
    }
    let aim = aim(&before, VICTIM, key)?;
    if shape.needs_entries() {
        let mut client = Client::open(&cluster.endpoint(), Options::default())?;
        for key in &aim.keys {
            let put = client.put(key, &[7; ENTRY_BYTES], &OpOptions::default());
            put.context("put the entries of the shard")?;
        }
    }
    let responses = sender::flood(&aim, shape, lasts)?;
    let after = cluster.status().context("after the flood")?;
    let groups = before.groups.iter().zip(&after.groups);
    let changed = groups.filter(|(old, new)| old.view != new.view).count();
    #[allow(clippy::cast_precision_loss)] // Only for display.
    Ok(Flooded {
        responses_per_second: responses as f64 / lasts.as_secs_f64(),
        changed_views: changed as u64,
        longest_gap_ms: after.servers.iter().map(|s| s.longest_gap_ms).max().unwrap_or(0),
    })
}

/// Returns the target of a flood: the addresses of a server, and the view and keys of its home group. The keys are those
/// of shard 0.
pub(crate) fn aim(status: &ClusterStatus, victim: ServerId, key: Vec<u8>) -> anyhow::Result<Aim> {
    let server = &status.servers[usize::from(victim.0)];
    let address = |text: &Option<String>| -> anyhow::Result<_> {
        Ok(text.as_ref().with_context(|| format!("server {victim} has not started"))?.parse()?)
    };
    let placement = Placement::new(u16::try_from(status.servers.len())?, status.shards);
    let place = (victim.home_group(), ShardId(0));
    let keys = (0..).map(|number| format!("flooded.{number}").into_bytes());
    let keys = keys.filter(|key| placement.locate(key) == place);
    Ok(Aim {
        clients: address(&server.clients)?,
        servers: address(&server.servers)?,
        view: status.groups[usize::from(victim.home_group().0)].view,
        key,
        keys: keys.take(KEYS).collect(),
        digest: placement.digest_at(place),
    })
}
