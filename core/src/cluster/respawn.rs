//! The replacement of processes (steps 0 and 1 of a recovery). A process that no view names is killed if it is silent,
//! has not reported in time, or has failed repeatedly. When its death is proven, a new one is started in its place.
//!
//! A process that any durable view names, in particular a primary, is never killed here (consistency.md §5). A process
//! that was removed from its views but still reports is not killed either: it becomes a candidate again. It is
//! replaced only after three failures as a candidate or as a secondary that did not keep up.

use std::time::Duration;

use kv_protocol::{Incarnation, Member, ServerId, Time};

use super::alarms::Alarm;
use super::server::Server;
use super::{Cluster, Effect, KillReason};
use crate::hash::mix;
use crate::mutations::{self, Mutation};

/// The timeout for the first report of a replacement process.
const REPLACEMENT_TIMEOUT: Duration = Duration::from_secs(20);
/// The back-off after the first failure. It doubles with every further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The maximum back-off after failures.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// The minimum back-off after a secondary did not keep up.
const FOLLOWING_PAUSE: Duration = Duration::from_secs(1);
/// The time without a failure after which the count of failures in a row is reset, if the place is filled.
const FORGETS_FAILURES: Duration = Duration::from_secs(60);
/// The number of failures in a row that raises an alarm.
const ALARMING_FAILURES: u32 = 3;
/// The number of failures of one process after which it is replaced, once no view names it.
const USELESS_FAILURES: u32 = 3;
/// The back-off before the first retry of a kill. It doubles with every retry, because the host may be down for hours.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// The maximum back-off between kills of one process.
const LAST_KILL_PAUSE: Duration = Duration::from_secs(32);

/// The number of failures in a row at one place of the ring, and the time of the next attempt to fill it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    failed_at: Time,
    again_at: Option<Time>,
}

impl Backoff {
    /// Records a failure; returns whether it is the one that raises the alarm.
    pub(super) fn fail(&mut self, now: Time) -> bool {
        self.failures = self.failures.saturating_add(1);
        let doublings = (self.failures - 1).min(16);
        self.again_at = Some(now + (FIRST_PAUSE * (1 << doublings)).min(LAST_PAUSE));
        self.failed_at = now;
        self.failures == ALARMING_FAILURES
    }

    /// Delays the next attempt until this time.
    fn wait_until(&mut self, time: Time) {
        self.again_at = self.again_at.max(Some(time));
    }

    /// Clears earlier failures of a place that is filled, unless they are recent.
    ///
    /// Returns whether no failure is left.
    pub(super) fn settle(&mut self, now: Time) -> bool {
        if self.failures > 0 && now.since(self.failed_at) >= FORGETS_FAILURES {
            *self = Backoff::default();
        }
        self.failures == 0
    }

    /// Returns whether another attempt is due.
    pub(super) fn is_over(&self, now: Time) -> bool {
        self.again_at.is_none_or(|again| again <= now)
    }

    /// Returns whether the failures raise an alarm.
    pub(super) fn is_alarming(&self) -> bool {
        self.failures >= ALARMING_FAILURES
    }

    pub(super) fn again_at(&self) -> Option<Time> {
        self.again_at
    }
}

impl Cluster {
    /// Kills processes that are to be replaced. Decides on a new process for each place whose old process is proven
    /// dead, or may be given up because the place moves.
    pub(super) fn replace_processes(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if !self.recovers() {
            return;
        }
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            let member = server.member;
            let is_named = self.memory.durable().names(member) || self.memory.decided.names(member);
            if is_named && !(mutations::is_open(Mutation::MovedWhileNamed) && self.is_given_up(id))
            {
                continue;
            }
            if !server.exited {
                self.kill_unnamed(now, id, sink);
                if !self.is_given_up(id) {
                    continue;
                }
            }
            if self.server(id).exited {
                self.note_dead(now, id, sink);
            }
            if self.stop.is_some() {
                return;
            }
            if self.server(id).backoff.is_over(now) {
                self.decide_process(id);
            }
        }
    }

    fn kill_unnamed(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let server = self.server_mut(id);
        let is_late = server
            .spawned
            .is_some_and(|at| server.started.is_none() && now.since(at) >= REPLACEMENT_TIMEOUT);
        // A process that was ordered to exit closes its connections first. So it is killed only if it stays silent for
        // `KILL_AGAIN`.
        let may_still_end =
            |since: Time| server.stage.is_leaving() && now.since(since) < KILL_AGAIN;
        let is_silent = server.suspected.is_some_and(|since| !may_still_end(since));
        // A process that was killed once must end, so the kill is repeated even if the process reports again.
        let is_useless = server.killed.is_some()
            || is_silent
            || (server.is_condemned && !server.stage.is_leaving())
            || is_late;
        let is_due = server.kill_again_at().is_none_or(|again| again <= now);
        if is_useless && is_due && server.spawned.is_some() {
            server.killed = Some(now);
            server.kills = server.kills.saturating_add(1);
            sink.push(Effect::Kill { member: server.member, reason: KillReason::Replaced });
        }
    }

    /// Records whether the host of a server can report the end of its process. If it cannot, `trouble` is the
    /// reason. This affects only alarms, because decisions need a proof of death.
    pub fn note_host(&mut self, now: Time, member: Member, trouble: Option<&str>) {
        if self.member(member.server) == member {
            self.server_mut(member.server).signs.unreachable = trouble.map(str::to_owned);
            self.now = self.now.max(now);
            self.renew_alarms();
        }
    }

    /// Records, for display only, the last output of a process that has ended or could not be started.
    pub fn note_last_words(&mut self, member: Member, words: &str) {
        if self.member(member.server) == member {
            self.server_mut(member.server).signs.failure = Some(words.to_owned());
        }
    }

    /// Decides on a new process for a place. The process is spawned when the decision is durable.
    pub(super) fn decide_process(&mut self, id: ServerId) {
        self.drawn += 1;
        let incarnation = Incarnation(draw(self.config.seed, self.drawn));
        let known = &mut self.memory.decided.servers[usize::from(id.0)];
        (known.incarnation, known.started) = (incarnation, None);
        let backoff = self.server(id).backoff;
        let member = Member { server: id, incarnation };
        self.memory.decided.moving.retain(|moving| *moving != id);
        let known = self.server_mut(id);
        let failure = known.signs.failure.take();
        *known = Server { backoff, ..Server::new(member) };
        known.signs.failure = failure;
        self.detector.forget(id);
        self.revision += 1;
    }

    /// Spawns the processes whose incarnations a store has made durable.
    pub(super) fn spawn_decided(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if self.stop.is_some() {
            return;
        }
        for id in (0..self.count()).map(ServerId) {
            let durable = self.memory.durable().member(id);
            let server = self.server_mut(id);
            if server.member == durable && server.spawned.is_none() && !server.exited {
                server.spawned = Some(now);
                sink.push(Effect::Spawn { member: durable });
            }
        }
    }

    /// Records that the process at a place has failed as a candidate, as a secondary that did not keep up, or
    /// before it reported.
    pub(super) fn note_failure(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let server = self.server_mut(id);
        server.failures = server.failures.saturating_add(1);
        if server.backoff.fail(now) {
            sink.push(Effect::KeepsFailing { server: id });
        }
        if self.server(id).backoff.is_alarming() {
            let reason = self.server(id).signs.failure.clone();
            self.alarms.raise(now, Alarm::KeepsFailing { server: id, reason });
        }
    }

    /// Records that a secondary was removed because it did not keep up. It becomes a candidate again only after a
    /// back-off.
    pub(super) fn note_cannot_follow(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        self.note_failure(now, id, sink);
        self.server_mut(id).backoff.wait_until(now + FOLLOWING_PAUSE);
    }

    /// Marks a process for replacement if it has failed [`USELESS_FAILURES`] times and no view names it. Failures of
    /// earlier processes of its place are not counted, because their cause, such as a host without memory, may be over.
    pub(super) fn condemn_useless(&mut self, candidate: Member) {
        let is_named = self.memory.decided.names(candidate);
        let server = self.server_mut(candidate.server);
        if server.member == candidate && !is_named && server.failures >= USELESS_FAILURES {
            server.is_condemned = true;
        }
    }

    /// Records the death of a process that no view names. Its removal may not have counted as a fault. Its death does,
    /// unless the process had not reported yet, was marked for replacement or was leaving.
    fn note_dead(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let server = self.server(id);
        let is_counted = server.is_condemned || server.stage.is_leaving();
        if server.started.is_some() && !is_counted {
            let member = server.member;
            self.note_fault(now, member, sink);
        }
    }

    /// Returns the next time at which the back-off of a place, the timeout of a new process or the pause before a kill
    /// ends; `None` if there is none.
    pub(super) fn next_respawn_timeout(&self) -> Option<Time> {
        let waiting = self.servers.iter().flat_map(|server| {
            let spawned = server.spawned.filter(|_| server.started.is_none() && !server.exited);
            let late = spawned.map(|at| at + REPLACEMENT_TIMEOUT);
            let killed = server.kill_again_at().filter(|_| !server.exited);
            let leaving = server.suspected.filter(|_| server.stage.is_leaving() && !server.exited);
            let leaving = leaving.map(|at| at + KILL_AGAIN).filter(|at| *at > self.now);
            let again = server.backoff.again_at().filter(|again| *again > self.now);
            [late.filter(|_| server.killed.is_none()), killed, leaving, again]
        });
        waiting.flatten().min()
    }
}

impl Server {
    /// Returns the time of the next kill; `None` if the process was not killed yet.
    fn kill_again_at(&self) -> Option<Time> {
        let doublings = self.kills.saturating_sub(1).min(16);
        self.killed.map(|at| at + (KILL_AGAIN * (1 << doublings)).min(LAST_KILL_PAUSE))
    }
}

/// Returns the n-th incarnation drawn from a seed. It is never zero, because zero stands for no incarnation.
pub(super) fn draw(seed: u64, n: u64) -> u64 {
    mix(seed ^ mix(n)).max(1)
}
