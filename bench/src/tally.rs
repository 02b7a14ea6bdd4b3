//! The counts of a thread: latencies by kind of operation, and failures.

use hdrhistogram::Histogram;

/// The highest recorded latency: two minutes, which is longer than any timeout of this program. Longer latencies count
/// as this one.
const LONGEST_NS: u64 = 120_000_000_000;
const DIGITS: u8 = 3;

/// A distribution of latencies.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// The figures of a distribution, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Figures {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    #[serde(rename = "p99.9")]
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Latencies {
    pub(crate) fn new() -> Latencies {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS);
        Latencies(histogram.expect("the bounds are right"))
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub(crate) fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    #[allow(clippy::cast_precision_loss)] // Two minutes in nanoseconds are exact as a double.
    pub(crate) fn figures(&self) -> Figures {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        match self.0.len() {
            0 => Figures::default(),
            count => Figures {
                count,
                mean: self.0.mean() / 1e3,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: self.0.max() as f64 / 1e3,
            },
        }
    }
}

/// The counts of one thread during the measurement.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) reads: Latencies,
    pub(crate) writes: Latencies,
    /// Operations that began and ended during the measurement.
    pub(crate) completed: u64,
    /// Reads of keys that do not exist.
    pub(crate) missing: u64,
    /// Writes acknowledged while only one server held them.
    pub(crate) single_copies: u64,
    /// Operations that were rejected or failed, and the first such error.
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    /// Reads that returned a wrong value, and the first such mismatch.
    pub(crate) mismatched: u64,
    pub(crate) first_mismatch: Option<String>,
    /// The time at which the last operation ended, in nanoseconds of the run.
    pub(crate) last_ns: u64,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally {
            reads: Latencies::new(),
            writes: Latencies::new(),
            completed: 0,
            missing: 0,
            single_copies: 0,
            failed: 0,
            first_failure: None,
            mismatched: 0,
            first_mismatch: None,
            last_ns: 0,
        }
    }

    /// Adds the counts of another thread.
    pub(crate) fn add(&mut self, other: Tally) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.completed += other.completed;
        self.missing += other.missing;
        self.single_copies += other.single_copies;
        self.failed += other.failed;
        self.mismatched += other.mismatched;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.first_mismatch = self.first_mismatch.take().or(other.first_mismatch);
        self.last_ns = self.last_ns.max(other.last_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_a_known_distribution() {
        let mut latencies = Latencies::new();
        for us in 1..=1_000 {
            latencies.record(us * 1_000);
        }
        let figures = latencies.figures();
        let is_near = |got: f64, expected: f64| (got / expected - 1.0).abs() < 0.002;
        assert_eq!(figures.count, 1_000);
        assert!(is_near(figures.mean, 500.5), "{figures:?}");
        assert!(is_near(figures.p50, 500.0), "{figures:?}");
        assert!(is_near(figures.p90, 900.0), "{figures:?}");
        assert!(is_near(figures.p99, 990.0), "{figures:?}");
        assert!(is_near(figures.p999, 999.0), "{figures:?}");
        assert!(is_near(figures.max, 1_000.0), "{figures:?}");
    }

    #[test]
    fn tallies_are_summed_and_an_overlong_latency_counts_as_the_longest() {
        let (mut one, mut other) = (Tally::new(), Tally::new());
        one.reads.record(1_000);
        other.reads.record(u64::MAX);
        other.failed = 2;
        other.first_failure = Some("no".to_owned());
        one.add(other);
        assert_eq!((one.reads.figures().count, one.failed), (2, 2));
        assert!(one.reads.figures().max > 1e8);
        assert_eq!(one.first_failure.as_deref(), Some("no"));
        assert_eq!(Latencies::new().figures(), Figures::default());
    }
}
