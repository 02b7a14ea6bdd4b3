//! The places of the ring that are being recovered: the step of each, and the progress and the rate of its copy.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use console::truncate_str;
use kv_core::cluster::Cluster;
use kv_protocol::status::{ClusterState, CopyStatus};
use kv_protocol::{GroupId, ServerId, Time};

use super::bar::{percent_of_bytes, with_bar};
use crate::units;

/// The interval at which the progress of a copy is logged.
pub(super) const LOG_EVERY: Duration = Duration::from_secs(3);
/// The period over which a rate is measured.
const RATE_OVER: Duration = Duration::from_secs(5);
/// The maximum number of samples for a rate.
const MAX_SAMPLES: usize = 64;

/// Returns a description of a step.
pub(crate) fn step_words(step: u8) -> &'static str {
    match step {
        0 => "its groups continue without it",
        1 => "a new process takes its place",
        2 => "it becomes a candidate in its groups",
        3 => "its primary table is copied to it (UPDATE-PRIMARY)",
        4 => "its secondary table is copied to it (UPDATE-SECONDARY)",
        _ => "its group is handed back (SET-SECONDARY, SWITCH-PRIMARY)",
    }
}

/// A place of the ring that is being recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    server: ServerId,
    step: u8,
    /// The progress of the copy, in steps that copy.
    copy: Option<CopyStatus>,
}

/// Returns the places that are being recovered now.
pub(super) fn facts(cluster: &Cluster) -> Vec<Fact> {
    if cluster.state() == ClusterState::Stopping {
        return Vec::new();
    }
    let count = cluster.count();
    let fact = |server: ServerId| {
        let step = cluster.recovery_step(server)?;
        let copied = match step {
            3 => Some(GroupId(server.0)),
            4 => Some(GroupId((server.0 + count - 1) % count)),
            _ => None,
        };
        Some(Fact { server, step, copy: copied.and_then(|group| cluster.copy_of(group)) })
    };
    (0..count).map(ServerId).filter_map(fact).collect()
}

/// All places that are being recovered.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<ServerId, Place>);

#[derive(Debug)]
struct Place {
    fact: Fact,
    /// The time at which its step was first seen.
    since: Time,
    rate: Rate,
    logged: Option<Time>,
}

impl Places {
    /// Returns whether no place is being recovered.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Updates the places.
    pub(super) fn look(&mut self, now: Time, facts: &[Fact]) {
        self.0.retain(|server, _| facts.iter().any(|fact| fact.server == *server));
        for &fact in facts {
            let new = Place { fact, since: now, rate: Rate::default(), logged: None };
            let place = self.0.entry(fact.server).or_insert(new);
            if place.fact.step != fact.step {
                *place = Place { fact, since: now, rate: Rate::default(), logged: None };
            }
            place.fact = fact;
            if let Some(copy) = fact.copy {
                place.rate.note(now, copy.bytes);
            }
        }
    }

    /// Returns a line for each place, for the bottom of a terminal with this many columns.
    pub(super) fn lines(&self, now: Time, width: usize) -> Vec<String> {
        self.0.values().map(|place| place.line(now, width)).collect()
    }

    /// Returns the lines that are due in the log.
    pub(super) fn log_lines(&mut self, now: Time) -> Vec<String> {
        let mut lines = Vec::new();
        for place in self.0.values_mut() {
            let is_due = place.logged.is_none_or(|logged| now.since(logged) >= LOG_EVERY);
            if let Some(copy) = place.fact.copy.filter(|_| is_due) {
                place.logged = Some(now);
                lines.push(place.log_line(&copy));
            }
        }
        lines
    }
}

impl Place {
    /// Returns the line for the bottom of a terminal with this many columns.
    fn line(&self, now: Time, width: usize) -> String {
        let Fact { server, step, copy } = self.fact;
        let head = format!("server {server}, step {step}");
        let Some(copy) = copy else {
            let width = width.saturating_sub(1);
            let words = step_words(step);
            let time = units::left(now.since(self.since));
            return truncate_str(&format!("{head}: {words}, {time}"), width, "…").into_owned();
        };
        let percent = percent(&copy);
        let bytes = units::bytes_of(copy.bytes, copy.of_bytes);
        let keys = format!("{} of {} keys", copy.entries, copy.of_entries);
        let left = self.rate.time_left(&copy).map(|left| format!("{} left", units::left(left)));
        let mut parts = vec![(1, format!("{percent:>3} %")), (3, bytes), (2, keys)];
        parts.extend(left.map(|left| (4, left)));
        with_bar(&head, percent, parts, width)
    }

    fn log_line(&self, copy: &CopyStatus) -> String {
        let mut line = format!(
            "server {}, step {}: {} % is copied, {}, {} of {} keys",
            self.fact.server,
            self.fact.step,
            percent(copy),
            units::bytes_of(copy.bytes, copy.of_bytes),
            copy.entries,
            copy.of_entries
        );
        if let (Some(rate), Some(left)) = (self.rate.per_second(), self.rate.time_left(copy)) {
            line += &format!(", {}/s, {} left", units::bytes(rate), units::left(left));
        }
        line
    }
}

fn percent(copy: &CopyStatus) -> u64 {
    percent_of_bytes(copy.bytes, copy.of_bytes, copy.entries, copy.of_entries)
}

/// The rate of a copy, measured over the last [`RATE_OVER`].
#[derive(Debug, Default)]
struct Rate {
    samples: VecDeque<(Time, u64)>,
}

impl Rate {
    fn note(&mut self, now: Time, bytes: u64) {
        // Fewer bytes than before mean that another copy has started from the beginning.
        if self.samples.back().is_some_and(|(_, before)| bytes < *before) {
            self.samples.clear();
        }
        let is_old = |(at, _): &(Time, u64)| now.since(*at) > RATE_OVER;
        while self.samples.len() >= MAX_SAMPLES || self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
        self.samples.push_back((now, bytes));
    }

    /// Returns the bytes per second, or `None` if the rate is unknown or zero.
    fn per_second(&self) -> Option<u64> {
        let ((first, from), (last, to)) = (self.samples.front()?, self.samples.back()?);
        let nanos = last.since(*first).as_nanos();
        let rate = (u128::from(to - from) * 1_000_000_000).checked_div(nanos)?;
        u64::try_from(rate).ok().filter(|rate| *rate > 0)
    }

    fn time_left(&self, copy: &CopyStatus) -> Option<Duration> {
        let rate = self.per_second()?;
        // Rounded up, so that 0 s means that nothing is left.
        Some(Duration::from_secs(copy.of_bytes.saturating_sub(copy.bytes).div_ceil(rate)))
    }
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;

    use super::super::bar::bar;
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    const MIB: u64 = 1 << 20;

    fn copying(step: u8, mib: u64) -> Fact {
        let copy = CopyStatus {
            entries: mib * 1_000,
            bytes: mib * MIB,
            of_entries: 50_000,
            of_bytes: 50 * MIB,
        };
        Fact { server: ServerId(1), step, copy: Some(copy) }
    }

    /// Returns the places of a copy of 50 MiB that is half done, at 10 MiB a second.
    fn half_way() -> Places {
        let mut places = Places::default();
        for second in 0..=5 {
            places.look(at(second * 500), &[copying(3, second * 5)]);
        }
        places
    }

    #[test]
    fn a_line_shows_server_step_bar_bytes_keys_and_the_time_left() {
        let lines = half_way().lines(at(2_500), 200);
        let bar = format!("[{}{}]", "#".repeat(15), "-".repeat(15));
        let expected = format!(
            "server 1, step 3 {bar}  50 %, 25.0 of 50.0 MiB, 25000 of 50000 keys, 3 s left"
        );
        assert_eq!(lines, [expected]);
    }

    #[test]
    fn a_narrow_terminal_gets_a_line_that_fits() {
        let places = half_way();
        let line = |width| places.lines(at(2_500), width).remove(0);
        for width in 2..120 {
            assert!(measure_text_width(&line(width)) <= width.saturating_sub(1), "{}", line(width));
        }
        let usual = line(80);
        for part in
            ["server 1, step 3 [####", "25.0 of 50.0 MiB", "25000 of 50000 keys", "3 s left"]
        {
            assert!(usual.contains(part), "{usual}");
        }
        assert!(line(45).contains("[########--------] 3 s left"), "{}", line(45));
    }

    #[test]
    fn a_step_without_a_copy_shows_its_description_and_duration() {
        let mut places = Places::default();
        let fact = Fact { server: ServerId(7), step: 1, copy: None };
        places.look(at(1_000), &[fact]);
        places.look(at(4_000), &[fact]);
        assert_eq!(
            places.lines(at(5_500), 80),
            ["server 7, step 1: a new process takes its place, 4 s"]
        );
        assert!(places.log_lines(at(5_500)).is_empty(), "its step is in the log already");
        places.look(at(6_000), &[]);
        assert!(places.lines(at(6_000), 80).is_empty(), "a recovered place is no longer shown");
    }

    #[test]
    fn a_copy_is_logged_at_its_start_and_every_few_seconds() {
        let mut places = Places::default();
        let mut logged = Vec::new();
        for tick in 0..=70 {
            let now = at(tick * 100);
            places.look(now, &[copying(3, tick / 2)]);
            logged.extend(places.log_lines(now));
        }
        assert_eq!(logged.len(), 3, "{logged:?}");
        assert_eq!(logged[0], "server 1, step 3: 0 % is copied, 0.0 of 50.0 MiB, 0 of 50000 keys");
        assert_eq!(
            logged[1],
            "server 1, step 3: 30 % is copied, 15.0 of 50.0 MiB, 15000 of 50000 keys, 5.0 MiB/s, 7 s left"
        );
        places.look(at(7_100), &[copying(4, 0)]);
        assert_eq!(places.log_lines(at(7_100)).len(), 1, "another step starts another copy");
    }

    #[test]
    fn the_rate_of_an_earlier_copy_is_forgotten_and_nothing_divides_by_zero() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), None);
        rate.note(at(5), u64::MAX);
        rate.note(at(5), u64::MAX);
        assert_eq!(rate.per_second(), None, "no time has passed");
        rate.note(at(1_005), 0);
        assert_eq!(rate.per_second(), None, "nothing was sent");
        rate.note(at(2_005), 2_000);
        assert_eq!(rate.per_second(), Some(2_000));
        for tick in 0..10_000 {
            rate.note(at(2_005 + tick), 2_000);
        }
        assert_eq!((rate.per_second(), rate.samples.len()), (None, MAX_SAMPLES), "it has stalled");
    }

    #[test]
    fn an_empty_table_is_copied_in_full() {
        let copy = CopyStatus::default();
        assert_eq!((percent(&copy), bar(percent(&copy), 8)), (100, "########".to_owned()));
    }
}
