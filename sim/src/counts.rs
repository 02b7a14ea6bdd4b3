//! Statistics of runs. They show what was exercised: a run without a failure proves little without them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::client::Flight;
use crate::nemesis::clocks::CLOCK_STEP;
use crate::nemesis::slow::{LONG_STALL, NO_MEMORY, SHORT_STALL};
use crate::nemesis::{KINDS, MACHINE_PAUSE};
use crate::workload;
use kv_history::Returned;

/// The minimum number of operations in ten minutes on two cores.
const OPERATIONS: u64 = 10_000_000;
const FAULTS: u64 = 100_000;
const SETTLED: u64 = 1_000;
const PERCENT_WITH_WRITE: u64 = 90;
const FAULTS_A_KIND_A_STEP: u64 = 1_000;
const SLOW_FAULTS_A_KIND: u64 = 50;
/// The minimum number of operations of each kind on objects.
const OPERATIONS_A_KIND: u64 = 5_000;
const LOAD: u64 = 1_000_000;
const COMMANDS: u64 = 100_000;
const CLIENTS_WAYS: u64 = 1_000;
/// The number of recovery steps, and the index of the faults that struck at rest.
const STEPS: usize = 6;

/// The sums over one or more runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// The number of runs.
    pub runs: u64,
    /// The number of events.
    pub events: u64,
    /// The simulated time, in nanoseconds.
    pub simulated: u64,
    /// The number of OK responses of servers to writes, including repeated ones.
    pub acked: u64,
    /// The number of reads with a result, and of writes that were done, failed their condition or had nothing to
    /// delete. Settled writes are not included.
    pub operations: u64,
    /// The number of commands of Redis clients with a definite reply. They are counted as operations too.
    pub commands: u64,
    /// The number of scans that ended.
    pub scans: u64,
    /// The number of pages of scans.
    pub scan_pages: u64,
    /// The number of operations that ended in doubt, including writes that were settled later.
    pub in_doubt: u64,
    /// The number of writes in doubt that were settled as done.
    pub settled_done: u64,
    /// The number of writes in doubt that were settled as not done.
    pub settled_not_done: u64,
    /// The number of writes whose outcome stays unknown because the servers had expired their session.
    pub undecided: u64,
    /// The number of operations without effect: every request was rejected, or none was sent before the deadline.
    pub refused: u64,
    /// The number of operations without effect because the group was LOST.
    pub lost: u64,
    /// The number of sessions that replaced expired or shared ones, plus 1,000 for each clone.
    pub fresh_sessions: u64,
    /// The number of faults, by kind and by the recovery step in which they struck (6: no recovery in progress).
    pub faults: BTreeMap<&'static str, [u64; 7]>,
    /// The number of completed operations on objects, by kind. `expiry observed` counts operations that found an entry
    /// absent which the last response about it showed with a deadline.
    pub objects: BTreeMap<&'static str, u64>,
    /// Comparisons by digest of two replicas with the same writes.
    pub digests_compared: u64,
    /// Comparisons in full of two replicas.
    pub copies_compared: u64,
    /// Restores of the whole cluster.
    pub restored: u64,
    /// The number of groups that became LOST by a restore.
    pub lost_by_restore: u64,
    /// Failed attempts to dump a table.
    pub failed_dumps: u64,
    /// The number of suspensions of one or all servers during a stop.
    pub stop_suspends: u64,
    /// The number of suspensions during the start of a restored cluster.
    pub restore_suspends: u64,
    /// The number of periods in which no server could reach the coordinator.
    pub orphaned: u64,
    /// The number of chunks of tables emptied by compaction.
    pub emptied_chunks: u64,
    /// The number of entries evicted by the replicas that were alive at the end.
    pub evicted: u64,
    /// The number of completed flushes.
    pub flushes: u64,
    /// The number of completed flushes that began again at another primary of a group.
    pub flushes_resumed: u64,
    /// The number of connections that an executor handed over to another one.
    pub handed_over: u64,
    /// The number of connections that a client closed without waiting for responses.
    pub resets: u64,
    /// The number of connections whose sending direction a client shut down with requests in flight.
    pub half_closes: u64,
    /// The number of writes with a wrong digest.
    pub forged: u64,
    /// The number of values read that are long enough to be sent directly from the table.
    pub long_values: u64,
    /// The number of requests served for clients that only produce load.
    pub load: u64,
    /// The number of faults that struck a group with a write in flight.
    pub with_write_in_flight: u64,
}

impl Counts {
    /// Counts the end of an operation.
    pub fn note_operation(&mut self, flight: &Flight, responded: Returned) {
        match responded {
            Returned::Done { .. } if flight.was_given_up() => self.settled_done += 1,
            Returned::Refused if flight.was_given_up() => self.settled_not_done += 1,
            Returned::Undecided => self.undecided += 1,
            Returned::InDoubt => self.in_doubt += u64::from(!flight.was_given_up()),
            Returned::Refused => self.refused += 1,
            Returned::Lost => self.lost += 1,
            _ => self.operations += 1,
        }
    }

    /// Counts a fault.
    pub fn note_fault(&mut self, kind: &'static str, step: Option<u8>, with_write: bool) {
        let at = step.map_or(6, usize::from);
        self.faults.entry(kind).or_default()[at] += 1;
        self.with_write_in_flight += u64::from(with_write);
    }

    /// Returns the number of all faults.
    pub fn all_faults(&self) -> u64 {
        self.faults.values().flatten().sum()
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Counts) {
        self.runs += other.runs;
        self.events += other.events;
        self.simulated += other.simulated;
        self.acked += other.acked;
        self.operations += other.operations;
        self.in_doubt += other.in_doubt;
        self.commands += other.commands;
        self.scans += other.scans;
        self.scan_pages += other.scan_pages;
        self.settled_done += other.settled_done;
        self.settled_not_done += other.settled_not_done;
        self.undecided += other.undecided;
        self.refused += other.refused;
        self.lost += other.lost;
        self.fresh_sessions += other.fresh_sessions;
        self.digests_compared += other.digests_compared;
        self.copies_compared += other.copies_compared;
        self.restored += other.restored;
        self.lost_by_restore += other.lost_by_restore;
        self.failed_dumps += other.failed_dumps;
        self.stop_suspends += other.stop_suspends;
        self.restore_suspends += other.restore_suspends;
        self.orphaned += other.orphaned;
        self.emptied_chunks += other.emptied_chunks;
        self.evicted += other.evicted;
        self.flushes += other.flushes;
        self.flushes_resumed += other.flushes_resumed;
        self.load += other.load;
        self.handed_over += other.handed_over;
        self.resets += other.resets;
        self.half_closes += other.half_closes;
        self.forged += other.forged;
        self.long_values += other.long_values;
        self.with_write_in_flight += other.with_write_in_flight;
        for (kind, count) in &other.objects {
            *self.objects.entry(kind).or_default() += count;
        }
        for (kind, steps) in &other.faults {
            let sums = self.faults.entry(kind).or_default();
            for (sum, count) in sums.iter_mut().zip(steps) {
                *sum += count;
            }
        }
    }

    /// Describes each count that is below the minimum for ten minutes on two cores.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let mut least = |words: String, count: u64, least: u64| {
            if count < least {
                missing.push(format!("{count} {words}, {least} are required"));
            }
        };
        least("operations".to_owned(), self.operations, OPERATIONS);
        least("faults".to_owned(), self.all_faults(), FAULTS);
        least("writes settled as done".to_owned(), self.settled_done, SETTLED);
        least("writes settled as not done".to_owned(), self.settled_not_done, SETTLED);
        for kind in workload::KINDS {
            let count = self.objects.get(kind).copied().unwrap_or_default();
            least(format!("operations on objects of kind {kind}"), count, OPERATIONS_A_KIND);
        }
        let steps = self.faults.get(CLOCK_STEP).map_or(0, |counts| counts.iter().sum());
        least("steps of wall clocks".to_owned(), steps, FAULTS_A_KIND_A_STEP);
        least("comparisons of two digests".to_owned(), self.digests_compared, 1);
        least("comparisons of two copies in full".to_owned(), self.copies_compared, 1);
        least("failed dumps".to_owned(), self.failed_dumps, 1);
        least("suspensions during a stop".to_owned(), self.stop_suspends, 1);
        least("suspensions during a restore".to_owned(), self.restore_suspends, 1);
        least("periods without a coordinator".to_owned(), self.orphaned, 1);
        least("chunks emptied by compaction".to_owned(), self.emptied_chunks, 1);
        least("evicted entries".to_owned(), self.evicted, 1);
        least("commands of Redis clients".to_owned(), self.commands, COMMANDS);
        least("flushes".to_owned(), self.flushes, 1);
        least("flushes that began again".to_owned(), self.flushes_resumed, 1);
        least("requests of load-only clients".to_owned(), self.load, LOAD);
        least("connections handed over".to_owned(), self.handed_over, CLIENTS_WAYS);
        least("connections reset".to_owned(), self.resets, CLIENTS_WAYS);
        least("connections half-closed".to_owned(), self.half_closes, CLIENTS_WAYS);
        least("writes with a wrong digest".to_owned(), self.forged, CLIENTS_WAYS);
        least("long values read".to_owned(), self.long_values, CLIENTS_WAYS);
        let share = 100 * self.with_write_in_flight / self.all_faults().max(1);
        least("% of the faults with a write in flight".to_owned(), share, PERCENT_WITH_WRITE);
        for kind in KINDS {
            let counts = self.faults.get(kind.name()).copied().unwrap_or_default();
            for (step, count) in counts.into_iter().take(STEPS).enumerate() {
                let words = format!("faults of kind {} in step {step}", kind.name());
                least(words, count, FAULTS_A_KIND_A_STEP);
            }
        }
        let pauses = self.faults.get(MACHINE_PAUSE).map_or(0, |counts| counts.iter().sum());
        least("pauses of all servers together".to_owned(), pauses, FAULTS_A_KIND_A_STEP);
        for kind in [SHORT_STALL, LONG_STALL, NO_MEMORY] {
            let count = self.faults.get(kind).map_or(0, |counts| counts.iter().sum());
            least(format!("faults of kind {kind}"), count, SLOW_FAULTS_A_KIND);
        }
        missing
    }

    /// Describes the speed of the runs.
    pub fn rates(&self, elapsed: Duration, cpu_minutes: f64) -> String {
        let hours = self.simulated as f64 / 3.6e12;
        format!(
            "{:.0} s, {:.0} operations a second; a minute of CPU: {:.2} simulated hours, {:.0} faults",
            elapsed.as_secs_f64(),
            self.operations as f64 / elapsed.as_secs_f64(),
            hours / cpu_minutes,
            self.all_faults() as f64 / cpu_minutes,
        )
    }

    /// Renders the counts as a table for people.
    pub fn table(&self) -> String {
        let hours = self.simulated as f64 / 3.6e12;
        let mut text = format!(
            "{} runs, {hours:.2} simulated hours, {} events\n{} operations completed ({} writes \
             acknowledged), {} in doubt\n",
            self.runs, self.events, self.operations, self.acked, self.in_doubt
        );
        text += &format!(
            "settled: {} done, {} not done, {} undecided because their session had expired\n",
            self.settled_done, self.settled_not_done, self.undecided
        );
        text += &format!(
            "{} rejected, {} on LOST groups; {} sessions replaced\n",
            self.refused, self.lost, self.fresh_sessions
        );
        text += &format!(
            "copies compared: {} times by digest, {} times in full\n",
            self.digests_compared, self.copies_compared
        );
        text += &format!(
            "{} restores, {} groups LOST; {} dumps failed, {} suspensions during a stop\n",
            self.restored, self.lost_by_restore, self.failed_dumps, self.stop_suspends
        );
        text += &format!(
            "{} suspensions during a restore, {} periods without a coordinator, {} chunks emptied by \
             compaction, {} entries evicted, {} flushes ({} began again at another primary), {} requests of load-only \
             clients\n",
            self.restore_suspends,
            self.orphaned,
            self.emptied_chunks,
            self.evicted,
            self.flushes,
            self.flushes_resumed,
            self.load
        );
        text += &format!(
            "clients: {} connections handed over, {} reset, {} half-closed, {} writes with a wrong digest, \
             {} long values read\n",
            self.handed_over, self.resets, self.half_closes, self.forged, self.long_values
        );
        text += &format!("Redis clients: {} commands\n", self.commands);
        let objects = self.objects.iter().map(|(kind, count)| format!("{count} {kind}"));
        text += &format!("on objects: {}\n", objects.collect::<Vec<_>>().join(", "));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_misses_a_kind_of_fault_in_a_step_is_not_enough() {
        let mut counts = Counts { operations: OPERATIONS, ..Counts::default() };
        for kind in KINDS {
            counts.faults.insert(kind.name(), [FAULTS; STEPS + 1]);
        }
        for kind in [MACHINE_PAUSE, SHORT_STALL, LONG_STALL, NO_MEMORY, CLOCK_STEP] {
            counts.faults.insert(kind, [FAULTS; STEPS + 1]);
        }
        counts.objects = workload::KINDS.map(|kind| (kind, OPERATIONS_A_KIND)).into();
        counts.with_write_in_flight = counts.all_faults();
        (counts.digests_compared, counts.copies_compared) = (1, 1);
        (counts.settled_done, counts.settled_not_done) = (SETTLED, SETTLED);
        (counts.failed_dumps, counts.stop_suspends) = (1, 1);
        (counts.restore_suspends, counts.orphaned, counts.emptied_chunks) = (1, 1, 1);
        (counts.evicted, counts.commands) = (1, COMMANDS);
        (counts.flushes, counts.flushes_resumed) = (1, 1);
        counts.load = LOAD;
        (counts.handed_over, counts.resets) = (CLIENTS_WAYS, CLIENTS_WAYS);
        counts.half_closes = CLIENTS_WAYS;
        (counts.forged, counts.long_values) = (CLIENTS_WAYS, CLIENTS_WAYS);
        assert_eq!(counts.missing(), [""; 0]);
        counts.faults.get_mut("crash").unwrap()[2] = 999;
        assert_eq!(counts.missing(), ["999 faults of kind crash in step 2, 1000 are required"]);
        counts.with_write_in_flight = counts.all_faults() * 89 / 100;
        counts.operations -= 1;
        assert_eq!(counts.missing().len(), 3);
        counts.copies_compared = 0;
        assert_eq!(counts.missing().len(), 4);
        counts.faults.remove(MACHINE_PAUSE);
        counts.with_write_in_flight = counts.all_faults();
        assert_eq!(counts.missing().len(), 4, "{:?}", counts.missing());
    }
}
