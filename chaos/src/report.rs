//! The result of a run: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::doubles::Doubles;
use crate::enough::{self, Demand};
use crate::objects::verdict::{Tallies, Tally};
use crate::round::Outcome;

/// A line of the table.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Row {
    count: u64,
    with_write_in_flight: u64,
    /// The longest stall of the fault that came closest to its limit, in milliseconds.
    stall_ms: f64,
    /// The limit on the stall of the same fault, in milliseconds.
    limit_ms: f64,
}

/// The sums over all rounds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    seed: u64,
    rounds: u64,
    /// The faults, by name.
    kinds: BTreeMap<String, Row>,
    /// The ordinary days, by name.
    ordinary_kinds: BTreeMap<String, Row>,
    faults: u64,
    /// The number of ordinary days, which do not count as faults.
    ordinary: u64,
    with_write_in_flight: u64,
    /// The number of operations that were done.
    ok: u64,
    /// The number of operations that were not done.
    fail: u64,
    /// The part of `fail` that got neither a failed condition nor an absent key as its response, for example because
    /// the group was LOST.
    unserved: u64,
    /// The number of operations that were not served, or whose result is unknown, although at most one server was
    /// struck.
    not_carried_through: u64,
    /// The number of operations whose result is unknown.
    info: u64,
    keys: u64,
    /// The number of keys for which the check timed out.
    unknown: u64,
    /// The number of keys whose history is not linearizable.
    illegal: u64,
    /// The number of objects.
    objects: u64,
    /// The number of objects for which the check timed out.
    objects_unknown: u64,
    /// The number of objects whose history is not linearizable.
    objects_illegal: u64,
    /// The counts by kind of operation.
    operation_kinds: Tallies,
    longest_stall_ms: f64,
    two_servers_at_once: Doubles,
    seconds: f64,
    /// Faults and ordinary days that were left out, with the reason.
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
            let (kinds, count) = match outcome.is_ordinary {
                true => (&mut self.ordinary_kinds, &mut self.ordinary),
                false => (&mut self.kinds, &mut self.faults),
            };
            let row = kinds.entry(struck.name.clone()).or_default();
            *count += 1;
            let aimed = u64::from(counts.in_flight.get(at) == Some(&true));
            row.count += 1;
            row.with_write_in_flight += aimed;
            let stall = counts.stalls.get(at).map_or(0.0, |stall| ms(*stall));
            let limit = ms(struck.limit);
            if row.count == 1 || limit - stall < row.limit_ms - row.stall_ms {
                (row.stall_ms, row.limit_ms) = (stall, limit);
            }
            self.with_write_in_flight += aimed;
        }
        self.ok += counts.ok;
        self.fail += counts.fail;
        self.unserved += counts.unserved;
        self.info += counts.info;
        self.keys += counts.keys;
        self.unknown += counts.unknown;
        self.illegal += counts.illegal;
        self.objects += counts.objects.objects;
        self.objects_unknown += counts.objects.unknown;
        self.objects_illegal += counts.objects.illegal;
        for (kind, tally) in &counts.kinds {
            *self.operation_kinds.entry(kind).or_default() += *tally;
        }
        self.not_carried_through += outcome.not_carried_through;
        self.longest_stall_ms = self.longest_stall_ms.max(ms(counts.longest_stall));
        if let Some(shown) = outcome.shown.filter(|_| outcome.failures.is_empty()) {
            self.two_servers_at_once.add(shown);
        }
        let place = outcome.dir.display();
        self.failures.extend(outcome.failures.iter().map(|what| format!("{what} [{place}]")));
        self.verdict = if self.failures.is_empty() { "all guarantees held" } else { "FAILED" };
    }

    /// Completes the report. A run that did less than the required minimum counts as failed.
    pub(crate) fn end(&mut self, took: Duration, demand: &Demand, of_ordinary: &Demand) {
        self.seconds = took.as_secs_f64();
        // A run with failures reports only these, and not a missed minimum.
        if !self.failures.is_empty() {
            return;
        }
        for (demand, kinds) in [(demand, &self.kinds), (of_ordinary, &self.ordinary_kinds)] {
            let counted = |(name, row): (&String, &Row)| {
                (name.clone(), (row.count, row.with_write_in_flight))
            };
            self.failures.extend(demand.missed(&kinds.iter().map(counted).collect()));
        }
        self.failures.extend(enough::missed_kinds(&self.operation_kinds));
        if !self.failures.is_empty() {
            self.verdict = "NOT ENOUGH";
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.failures.is_empty() && self.rounds > 0
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("the keys of a report are strings")
    }

    /// Returns the table of the counts by kind of operation.
    fn table_of_operations(&self) -> Table {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header([
            "operation",
            "ran",
            "ok",
            "condition not met",
            "in doubt",
            "not served",
            "not linearizable",
            "not judged",
        ]);
        for (kind, tally) in &self.operation_kinds {
            let Tally { ran, ok, unmet, in_doubt, unserved, illegal, not_judged } = *tally;
            let counts = [ran, ok, unmet, in_doubt, unserved, illegal, not_judged];
            let row = std::iter::once((*kind).to_owned());
            table.add_row(row.chain(counts.map(|count| count.to_string())));
        }
        align(&mut table);
        table
    }

    /// Renders the report for people.
    pub(crate) fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["fault", "count", "with a write in flight", "stall, ms", "limit, ms"]);
        for (name, row) in self.kinds.iter().chain(&self.ordinary_kinds) {
            table.add_row([
                name.clone(),
                row.count.to_string(),
                row.with_write_in_flight.to_string(),
                format!("{:.0}", row.stall_ms),
                format!("{:.0}", row.limit_ms),
            ]);
        }
        table.add_row([
            "all".to_owned(),
            (self.faults + self.ordinary).to_string(),
            self.with_write_in_flight.to_string(),
            format!("{:.0}", self.longest_stall_ms),
            String::new(),
        ]);
        align(&mut table);
        let operations = self.table_of_operations();
        let mut text = format!(
            "{table}\n\n\
             {operations}\n\n\
             {} faults and {} ordinary days in {} rounds, {:.0} s, seed {}\n\
             operations: {} ok, {} fail (of these {} not served), {} info; {} keys and objects\n\
             not served, or of unknown result, although at most one server was struck: {}\n\
             checker: {} keys not linearizable, {} unknown (timed out); of {} objects {} not linearizable, {} unknown; \
             every corrupted history {}\n",
            self.faults,
            self.ordinary,
            self.rounds,
            self.seconds,
            self.seed,
            self.ok,
            self.fail,
            self.unserved,
            self.info,
            self.keys,
            self.not_carried_through,
            self.illegal,
            self.unknown,
            self.objects,
            self.objects_illegal,
            self.objects_unknown,
            if self.failures.iter().any(|what| what.contains("checker accepts")) {
                "WAS NOT rejected"
            } else {
                "was rejected"
            },
        );
        text += &self.two_servers_at_once.words();
        for what in &self.left_out {
            text += &format!("left out: {what}\n");
        }
        for what in &self.failures {
            text += &format!("FAILED: {what}\n");
        }
        text + self.verdict
    }
}

/// Aligns all columns except the first to the right.
fn align(table: &mut Table) {
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if n > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
