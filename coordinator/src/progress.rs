//! The progress display: the step of each recovery and the progress of its copy, and the progress of all servers
//! while they load or write dumps.
//!
//! ```text
//!   views and heartbeats in the cluster -> facts, every 100 ms while anything is recovered
//!      -> one line per place at the bottom of the terminal, redrawn in place
//!         server 1, step 3 [#########------]  60 %, 10.0 of 16.7 MiB, 10240 of 17067 keys, 2 s left
//!      -> or, in the log, one line at the start of each copy and then every few seconds
//! ```
//!
//! The servers report how much is sent and how much there is; rates and remaining times are computed here. During
//! writes, all figures are approximate.

mod all;
pub(crate) mod bar;
mod places;

use std::time::Duration;

use kv_core::cluster::Cluster;
use kv_protocol::Time;

use all::All;
use places::{LOG_EVERY, Places};

use crate::screen;

pub(crate) use places::step_words;

/// The interval at which callers of `coord stop` receive the progress of the dumps.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The display of a coordinator: the progress of recoveries, and of work that all servers do.
#[derive(Debug, Default)]
pub(crate) struct Display {
    places: Places,
    all: Option<All>,
    /// The start of the interval until the next log line about all servers; `None` before the first look.
    logged_at: Option<Time>,
    /// The last line for the callers, and its time.
    told: String,
    told_at: Time,
}

impl Display {
    /// Returns whether there is nothing to show.
    pub(crate) fn is_idle(&self) -> bool {
        self.places.is_empty() && self.all.is_none()
    }

    /// Updates the display. `loading` has for each server whether it has loaded its dumps, and the size of the dumps in
    /// bytes. It is `None` unless the servers load dumps.
    pub(crate) fn look(&mut self, now: Time, cluster: &Cluster, loading: Option<Vec<(bool, u64)>>) {
        self.places.look(now, &places::facts(cluster));
        self.all = All::now(cluster, loading);
    }

    /// Returns the line that is due for callers that wait for the end of a stop. They have no bar.
    pub(crate) fn line_for_callers(&mut self, now: Time) -> Option<&str> {
        let line = self.all.as_ref().map(All::log_line)?;
        if now.since(self.told_at) < TELL_EVERY || line == self.told {
            return None;
        }
        (self.told, self.told_at) = (line, now);
        Some(&self.told)
    }

    /// Draws the lines at the bottom of the terminal. Returns whether a terminal shows them.
    pub(crate) fn draw(&self, now: Time) -> bool {
        let width = screen::width().unwrap_or(usize::MAX);
        let mut lines = self.places.lines(now, width);
        lines.extend(self.all.iter().map(|all| all.line(width)));
        screen::show(&lines)
    }

    /// Returns the lines that are due in the log.
    pub(crate) fn log_lines(&mut self, now: Time) -> Vec<String> {
        let mut lines = self.places.log_lines(now);
        // The start of the work is in the log already, so the first progress line is due later.
        let logged = *self.logged_at.get_or_insert(now);
        if now.since(logged) >= LOG_EVERY || self.all.is_none() {
            lines.extend(self.all.iter().map(All::log_line));
            self.logged_at = self.all.is_some().then_some(now);
        }
        lines
    }
}
