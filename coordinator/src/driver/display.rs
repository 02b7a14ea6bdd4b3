//! The progress display. It is redrawn while a place is recovered, or while all servers load or dump.

use std::rc::Rc;
use std::time::Duration;

use kv_protocol::ServerId;
use kv_protocol::status::ClusterState;

use super::context::Driver;
use crate::clock;
use crate::progress::Display;

/// The interval between two redraws, which is the servers' reporting interval.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Shows the progress of recoveries, loads and dumps until the cluster ends.
pub(super) async fn keep(driver: Rc<Driver>) {
    let mut display = Display::default();
    loop {
        let step = driver.recovering.notified();
        match display.is_idle() {
            true => step.await,
            false => tokio::select! {
                () = step => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            },
        }
        let now = clock::now();
        let loading = driver.loading();
        display.look(now, &driver.cluster(), loading);
        if let Some(line) = display.line_for_callers(now) {
            driver.callers.say(line);
        }
        let is_seen = display.draw(now);
        for line in display.log_lines(now) {
            // A log file gets every line. On a terminal, the bar replaces the lines.
            if !is_seen || driver.console.is_file() {
                tracing::info!("{line}");
            }
        }
    }
}

impl Driver {
    /// Returns for each server whether it has loaded its dumps, and the size of the dumps in bytes. Returns `None`
    /// unless the servers of a restored cluster are loading.
    fn loading(&self) -> Option<Vec<(bool, u64)>> {
        let cluster = self.cluster();
        let lasts = cluster.is_founding() && cluster.state() != ClusterState::Stopping;
        let restored = self.restoration.as_ref().filter(|_| lasts)?;
        let server = |id| {
            let bytes = restored.of(id).iter().map(|load| load.bytes).sum();
            (cluster.started(id).is_some(), bytes)
        };
        Some((0..cluster.count()).map(ServerId).map(server).collect())
    }
}
