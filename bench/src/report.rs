//! The result of a run, as a table, as JSON, or as CSV.

use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::numbers::{micros, short};
use crate::tally::{Figures, Latencies, Tally};

/// The format of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
    Csv,
}

/// The measurements of a run. Latencies are in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) target: String,
    pub(crate) connections: usize,
    pub(crate) depth: u32,
    /// `closed`, or `open` if a rate was requested.
    pub(crate) loop_kind: String,
    pub(crate) rate: Option<u64>,
    /// The number of operations that were due but did not begin, because the server was too slow for the rate.
    pub(crate) behind: u64,
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) per_second: f64,
    pub(crate) all: Figures,
    pub(crate) reads: Figures,
    pub(crate) writes: Figures,
    pub(crate) missing: u64,
    pub(crate) single_copies: u64,
    /// kv+redis: the number of groups whose view changed during the run, or that had a single copy.
    pub(crate) changed_groups: usize,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) verified: bool,
    pub(crate) mismatched: u64,
    pub(crate) first_mismatch: Option<String>,
    /// The CPU time of this program per operation.
    pub(crate) generator_cpu_us: f64,
    /// The total CPU time of the processes of `--server-pid` per operation; `None` without this option.
    pub(crate) server_cpu_us: Option<f64>,
    /// The duration of the fill, if keys were filled.
    pub(crate) fill_seconds: Option<f64>,
    pub(crate) filled: u64,
    /// Latencies of the fill.
    pub(crate) fills: Figures,
}

impl Report {
    /// Sets the figures of the measurement from the sum of the counts of all threads.
    pub(crate) fn take(&mut self, tally: Tally) {
        let mut all: Latencies = tally.reads.clone();
        all.add(&tally.writes);
        self.all = all.figures();
        (self.reads, self.writes) = (tally.reads.figures(), tally.writes.figures());
        self.operations = tally.completed;
        self.missing = tally.missing;
        self.add_troubles(tally);
    }

    /// Adds the failures and wrong responses of a tally.
    pub(crate) fn add_troubles(&mut self, tally: Tally) {
        self.single_copies += tally.single_copies;
        self.failed += tally.failed;
        self.mismatched += tally.mismatched;
        self.first_failure = self.first_failure.take().or(tally.first_failure);
        self.first_mismatch = self.first_mismatch.take().or(tally.first_mismatch);
    }

    /// Returns whether every operation was done and every response was correct.
    pub(crate) fn is_clean(&self) -> bool {
        self.failed == 0 && self.mismatched == 0
    }

    /// Renders the text for standard output.
    pub(crate) fn render(&self, format: Format) -> String {
        match format {
            Format::Json => serde_json::to_string(self).expect("a report is plain data"),
            Format::Csv => self.csv(),
            Format::Table => self.table(),
        }
    }

    fn csv(&self) -> String {
        let all = &self.all;
        let server = self.server_cpu_us.map(|us| format!("{us:.3}")).unwrap_or_default();
        format!(
            "target,connections,depth,seconds,operations,per_second,mean_us,p50_us,p90_us,p99_us,\
             p99.9_us,max_us,missing,failed,mismatched,generator_cpu_us,server_cpu_us\n\
             {},{},{},{:.3},{},{:.1},{:.2},{:.2},{:.2},{:.2},{:.2},{:.2},{},{},{},{:.3},{server}",
            self.target,
            self.connections,
            self.depth,
            self.seconds,
            self.operations,
            self.per_second,
            all.mean,
            all.p50,
            all.p90,
            all.p99,
            all.p999,
            all.max,
            self.missing,
            self.failed,
            self.mismatched,
            self.generator_cpu_us,
        )
    }

    fn table(&self) -> String {
        let mut lines = Vec::new();
        if let Some(seconds) = self.fill_seconds {
            lines.push(format!("filled {} keys in {seconds:.2} s", self.filled));
        }
        if self.seconds > 0.0 {
            lines.push(format!(
                "{}, {} connections, depth {}, {} loop: {} operations in {:.2} s, {} a second",
                self.target,
                self.connections,
                self.depth,
                self.loop_kind,
                self.operations,
                self.seconds,
                short(self.per_second)
            ));
            lines.push(self.latencies());
            lines.push(format!(
                "CPU for one operation: generator {} µs",
                micros(self.generator_cpu_us)
            ));
            if let Some(us) = self.server_cpu_us {
                lines.push(format!("                       servers   {} µs", micros(us)));
            }
        }
        let troubles = [
            (self.behind, "operations were due but not begun at the end: the rate is too high"),
            (self.missing, "reads found no value (use --load to write all keys first)"),
            (self.single_copies, "writes have one copy: the cluster is degraded"),
            (
                self.changed_groups as u64,
                "groups changed or have one copy: the cluster is degraded",
            ),
            (self.failed, "operations failed"),
            (self.mismatched, "responses were wrong"),
        ];
        lines
            .extend(troubles.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
        let firsts = [&self.first_failure, &self.first_mismatch];
        lines.extend(
            firsts.iter().filter_map(|first| Some(format!("  the first: {}", (*first).as_ref()?))),
        );
        if self.verified && self.mismatched == 0 {
            lines.push("every response was checked and is correct".to_owned());
        }
        lines.join("\n")
    }

    fn latencies(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["µs", "count", "mean", "p50", "p90", "p99", "p99.9", "max"]);
        for (name, figures) in [("reads", &self.reads), ("writes", &self.writes)] {
            if figures.count == 0 {
                continue;
            }
            let Figures { count, mean, p50, p90, p99, p999, max } = *figures;
            let times = [mean, p50, p90, p99, p999, max].map(micros);
            table.add_row([name.to_owned(), count.to_string()].into_iter().chain(times));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut tally = Tally::new();
        (1..=100).for_each(|us| tally.reads.record(us * 1_000));
        tally.completed = 100;
        let mut report = Report { target: "echo://a:1".into(), seconds: 1.0, ..Report::default() };
        report.take(tally);
        report
    }

    #[test]
    fn json_is_read_back_unchanged() {
        let report = report();
        let text = report.render(Format::Json);
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.contains("\"p99.9\""), "{text}");
    }

    #[test]
    fn csv_has_as_many_values_as_names() {
        let text = report().render(Format::Csv);
        let counts: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(counts, [17, 17]);
    }

    #[test]
    fn a_table_lists_the_failures() {
        let mut wrong = report();
        assert!(!wrong.render(Format::Table).contains("wrong"));
        wrong.mismatched = 3;
        wrong.first_mismatch = Some("key 7 was read as nothing".to_owned());
        let text = wrong.render(Format::Table);
        assert!(text.contains("3 responses were wrong") && text.contains("key 7"), "{text}");
        assert!(!wrong.is_clean());
    }
}
