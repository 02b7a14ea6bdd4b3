//! The removal of entries that expire at a high rate, on real servers.
//!
//! ```text
//!   fill           entries with deadlines that are spread evenly over a period, which begins later
//!   the period     every 50 ms: expired so far (status) / entries whose deadline passed a second before
//! ```

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use kv_client::update::Action;
use kv_client::{Client, Expiry, Op, OpOptions, Update, WallTime};

use super::cluster_dir;
use super::figures::Figures;
use crate::bulk::{Bulk, fill};
use crate::cluster::{Cluster, Programs, Setting};

/// The part of the entries that are gone a second after their deadlines, as a lower bound, in percent.
const LEAST_GONE: f64 = 90.0;
/// The interval between two looks at the status.
const LOOK: Duration = Duration::from_millis(50);

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExpiriesArgs {
    /// Number of entries.
    #[arg(long, default_value_t = 3_000_000)]
    entries: u64,
    /// Entries that expire in a second, in the whole cluster.
    #[arg(long, default_value_t = 1_000_000)]
    rate: u64,
    /// Seconds from the start of the fill to the first deadline. The fill must end before.
    #[arg(long, default_value_t = 60)]
    fill: u64,
    /// Number of shards of each group.
    #[arg(long, default_value_t = 1)]
    shards: u16,
}

fn wall_millis() -> anyhow::Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(u64::try_from(since.as_millis())?)
}

impl ExpiriesArgs {
    /// Returns the milliseconds from the first deadline to that of an entry.
    fn deadline(&self, number: u64) -> u64 {
        number * 1_000 / self.rate
    }

    /// Returns the number of entries whose deadline has passed so many milliseconds after the first deadline.
    fn due(&self, millis: u64) -> u64 {
        (millis * self.rate / 1_000).min(self.entries)
    }

    fn write(&self, endpoint: &str, first: u64, progress: &ProgressBar) -> anyhow::Result<()> {
        let submit = |client: &mut Client, number| {
            let key = Bulk::key(number);
            let expiry = Expiry::At(WallTime::from_millis(first + self.deadline(number)));
            let update = Update { expiry, ..Update::new(Action::Put(b"a session")) };
            let op = Op::Update { key: key.as_bytes(), updates: &[update] };
            client.submit(op, &OpOptions::default(), number)
        };
        let told = |done| progress.set_message(format!("fill: {done} of {}", self.entries));
        fill(endpoint, self.entries, submit, told)
    }
}

pub(super) fn run(
    args: &ExpiriesArgs,
    programs: &Programs,
    dir: &Path,
    progress: &ProgressBar,
) -> anyhow::Result<Figures> {
    ensure!(
        args.rate > 0 && args.entries > 2 * args.rate,
        "--entries must exceed twice the --rate"
    );
    let setting = Setting::plain(3, args.shards);
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    let before = cluster.status()?;
    let first = wall_millis()? + args.fill * 1_000;
    args.write(&cluster.endpoint(), first, progress)?;
    ensure!(
        wall_millis()? < first,
        "the fill took longer than {} s; use a larger --fill",
        args.fill
    );
    progress.set_message("wait for the deadlines");
    let (mut least, mut looks) = (100.0f64, 0);
    let end = args.deadline(args.entries) + 60_000;
    let gone_after = loop {
        std::thread::sleep(LOOK);
        // The time is read before the status, so the entries that are due are not too many.
        let Some(since) = wall_millis()?.checked_sub(first) else { continue };
        let expired: u64 = cluster.status()?.servers.iter().map(|server| server.expired).sum();
        let due = args.due(since.saturating_sub(1_000));
        if due > 0 && due < args.entries {
            #[allow(clippy::cast_precision_loss)] // Only for display.
            let percent = expired as f64 / due as f64 * 100.0;
            least = least.min(percent);
            looks += 1;
        }
        if expired >= args.entries {
            break since.saturating_sub(args.deadline(args.entries));
        }
        ensure!(since < end, "{expired} of {} entries have expired", args.entries);
    };
    ensure!(looks > 0, "no status arrived while entries expired");
    let after = cluster.status()?;
    let groups = before.groups.iter().zip(&after.groups);
    let moved = groups.filter(|(old, new)| old.view != new.view).count() as u64;
    cluster.stop()?;
    let what = format!("{} entries expire, {} a second", args.entries, args.rate);
    let mut figures = Figures::of(what);
    figures.should_be_at_least(
        "entries gone a second after their deadline, least",
        least,
        "%",
        LEAST_GONE,
    );
    #[allow(clippy::cast_precision_loss)] // Only for display.
    figures.state("time from the last deadline until all were gone", gone_after as f64, "ms");
    let gap = after.servers.iter().map(|server| server.longest_gap_ms).max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss)] // Only for display.
    figures.state("longest gap between beacons since the start", gap as f64, "ms");
    figures.none("views that changed", moved);
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadlines_are_spread_evenly() {
        let args = ExpiriesArgs { entries: 3_000, rate: 1_000, fill: 1, shards: 1 };
        assert_eq!((args.deadline(0), args.deadline(2_999)), (0, 2_999));
        assert_eq!((args.due(0), args.due(1_500), args.due(9_000)), (0, 1_500, 3_000));
    }
}
