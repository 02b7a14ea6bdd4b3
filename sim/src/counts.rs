//! What a run has done: without these numbers a run without a failure says nothing.

use std::collections::BTreeMap;

use crate::history::Answered;

/// The sums of one or more runs.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Runs.
    pub runs: u64,
    /// Events.
    pub events: u64,
    /// Nanoseconds of simulated time.
    pub simulated: u64,
    /// Writes that servers have answered OK.
    pub acked: u64,
    /// Operations that ended for their client with an answer.
    pub operations: u64,
    /// Operations in doubt.
    pub in_doubt: u64,
    /// Faults by kind, and by the step of the recovery that they struck (6: none was under way).
    pub faults: BTreeMap<&'static str, [u64; 7]>,
    /// Faults that struck while a write was in flight in a group that they hit.
    pub with_write_in_flight: u64,
}

impl Counts {
    /// Notes the end of an operation.
    pub fn note_operation(&mut self, answered: Answered) {
        match answered {
            Answered::InDoubt => self.in_doubt += 1,
            _ => self.operations += 1,
        }
    }

    /// Notes a fault.
    pub fn note_fault(&mut self, kind: &'static str, step: Option<u8>, with_write: bool) {
        let at = step.map_or(6, usize::from);
        self.faults.entry(kind).or_default()[at] += 1;
        self.with_write_in_flight += u64::from(with_write);
    }

    /// All faults.
    pub fn all_faults(&self) -> u64 {
        self.faults.values().flatten().sum()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Counts) {
        self.runs += other.runs;
        self.events += other.events;
        self.simulated += other.simulated;
        self.acked += other.acked;
        self.operations += other.operations;
        self.in_doubt += other.in_doubt;
        self.with_write_in_flight += other.with_write_in_flight;
        for (kind, steps) in &other.faults {
            let sums = self.faults.entry(kind).or_default();
            for (sum, count) in sums.iter_mut().zip(steps) {
                *sum += count;
            }
        }
    }

    /// As people read it.
    pub fn table(&self) -> String {
        let hours = self.simulated as f64 / 3.6e12;
        let mut text = format!(
            "{} runs, {hours:.2} simulated hours, {} events\n{} operations answered ({} writes \
             acknowledged), {} in doubt\n",
            self.runs, self.events, self.operations, self.acked, self.in_doubt
        );
        let faults = self.all_faults();
        let share = 100.0 * self.with_write_in_flight as f64 / faults.max(1) as f64;
        text += &format!("{faults} faults, {share:.1} % of them with a write in flight\n\n");
        text +=
            "fault                step 0   step 1   step 2   step 3   step 4   step 5   at rest\n";
        for (kind, steps) in &self.faults {
            text += &format!("{kind:<18}");
            for count in steps {
                text += &format!(" {count:>8}");
            }
            text.push('\n');
        }
        text
    }
}
