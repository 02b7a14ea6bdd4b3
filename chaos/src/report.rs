//! What a run came to: a table for eyes, JSON for tools.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::round::Outcome;

/// A line of the table.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Row {
    count: u64,
    with_write_in_flight: u64,
    longest_stall_ms: f64,
}

/// The sum of all rounds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    seed: u64,
    rounds: u64,
    /// By name.
    kinds: BTreeMap<String, Row>,
    faults: u64,
    with_write_in_flight: u64,
    /// Operations that were done.
    ok: u64,
    /// That were not.
    fail: u64,
    /// Of these: because nobody served them before the deadline, or their group was lost.
    unserved: u64,
    /// Of which nobody knows.
    info: u64,
    keys: u64,
    /// Keys that the checker has not decided in time.
    unknown: u64,
    /// Keys that no register explains.
    illegal: u64,
    longest_stall_ms: f64,
    seconds: f64,
    /// What was left out, and why.
    left_out: Vec<String>,
    failures: Vec<String>,
    verdict: &'static str,
}

impl Report {
    pub(crate) fn new(seed: u64, left_out: Vec<String>) -> Report {
        Report { seed, left_out, verdict: "nothing was run", ..Report::default() }
    }

    /// Adds a round.
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        let counts = &outcome.counts;
        self.rounds += 1;
        for (at, struck) in outcome.struck.iter().enumerate() {
            let row = self.kinds.entry(struck.name.clone()).or_default();
            let aimed = u64::from(counts.in_flight.get(at) == Some(&true));
            row.count += 1;
            row.with_write_in_flight += aimed;
            let stall = counts.stalls.get(at).map_or(0.0, |stall| stall.as_secs_f64() * 1_000.0);
            row.longest_stall_ms = row.longest_stall_ms.max(stall);
            self.faults += 1;
            self.with_write_in_flight += aimed;
        }
        self.ok += counts.ok;
        self.fail += counts.fail;
        self.unserved += counts.unserved;
        self.info += counts.info;
        self.keys += counts.keys;
        self.unknown += counts.unknown;
        self.illegal += counts.illegal;
        self.longest_stall_ms =
            self.longest_stall_ms.max(counts.longest_stall.as_secs_f64() * 1_000.0);
        let place = outcome.dir.display();
        self.failures.extend(outcome.failures.iter().map(|what| format!("{what} [{place}]")));
        self.verdict = if self.failures.is_empty() { "all held" } else { "FAILED" };
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults
    }

    /// Something that no round tells.
    pub(crate) fn fail(&mut self, what: String) {
        self.failures.push(what);
        self.verdict = "FAILED";
    }

    pub(crate) fn end(&mut self, took: Duration) {
        self.seconds = took.as_secs_f64();
    }

    pub(crate) fn is_good(&self) -> bool {
        self.failures.is_empty() && self.rounds > 0
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report has only names for keys")
    }

    /// As people read it.
    pub(crate) fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["fault", "count", "with a write in flight", "longest stall, ms"]);
        for (name, row) in &self.kinds {
            table.add_row([
                name.clone(),
                row.count.to_string(),
                row.with_write_in_flight.to_string(),
                format!("{:.0}", row.longest_stall_ms),
            ]);
        }
        table.add_row([
            "all".to_owned(),
            self.faults.to_string(),
            self.with_write_in_flight.to_string(),
            format!("{:.0}", self.longest_stall_ms),
        ]);
        for (n, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if n > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = format!(
            "{table}\n\n\
             {} rounds, {:.0} s, seed {}\n\
             operations: {} ok, {} fail (of these {} not served), {} info; {} keys\n\
             longest stall of a key: {:.0} ms\n\
             checker: {} keys illegal, {} unknown; every corrupted copy {}\n",
            self.rounds,
            self.seconds,
            self.seed,
            self.ok,
            self.fail,
            self.unserved,
            self.info,
            self.keys,
            self.longest_stall_ms,
            self.illegal,
            self.unknown,
            if self.failures.iter().any(|what| what.contains("checker accepts")) {
                "WAS NOT rejected"
            } else {
                "was rejected"
            },
        );
        for what in &self.left_out {
            text += &format!("left out: {what}\n");
        }
        for what in &self.failures {
            text += &format!("FAILED: {what}\n");
        }
        text + self.verdict
    }
}
