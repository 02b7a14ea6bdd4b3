//! The orderly stop, of the cluster or of one server.
//!
//! ```text
//!             DRAIN            DUMP-PRIMARY, DUMP-SECONDARY       SHUTDOWN
//!   Running --------> Draining ----------------------------> Dumping --------> Leaving --> exited
//!                        (in a stop of the cluster all servers         ^          |
//!                         enter a stage together; a single leaver      |          | no end in time
//!                         goes at its own pace)        failed: retry --+          v
//!                                                                              Killed
//! ```
//!
//! A server that leaves alone first hands its groups over (leave.rs); it drains and dumps only as the last holder of a
//! group, or before the cluster serves. If all servers are to leave, the cluster is stopped.
//!
//! All servers drain before any server dumps, so that the two dumps of a group agree. A server may fail to drain in
//! time because the other holder of a group is gone and pending writes cannot commit. It is ordered to dump
//! nevertheless. It acknowledges no write after its first dump begins, so every acknowledged write is in a dump.
//!
//! No server is ordered to exit while data that only it holds is not on a disk. A failed dump is ordered again, with
//! back-off, until it is complete or the operator forces the stop ([`Cluster::on_force`]). The stop waits for a server
//! that reports, even if its disk is slow. A silent server is killed after the stop's timeout, but only if other
//! replicas have dumped every group that it holds. Otherwise the operator decides.
//!
//! The deadlines of a stop use a clock that excludes time in which this coordinator was suspended ([`Awake`]). So they
//! do not expire during a pause of its machine.
//!
//! No server receives an order of a cluster stop before the stop is durable. A draining server rejects writes, and a
//! dumping one installs no view. If the coordinator crashed during a stop that is not durable, its successor would
//! not know of the stop. It would wait for such servers for ever, or treat servers that have exited as dead and
//! reassign or give up their groups. The last views would then name no server, and no dump would count at a restore.

use std::fmt;
use std::time::Duration;

use kv_protocol::control_message::{Order, OrderFailure, OrderKind};
use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::map::ServerState;
use kv_protocol::{GroupId, Member, ServerId, Time, View};

use super::server::Server;
use super::{Cluster, Effect, Ignored, KillReason, LeaveReason, LinkId};
use crate::awake::Awake;
use crate::mutations::{self, Mutation};

mod dumps;

pub use dumps::{DUMP_RETRY_PAUSE, LAST_DUMP_RETRY_PAUSE};
use dumps::{Dump, Dumps, written_of};

/// The rate at which dumps are transferred and loaded, assumed for the timeouts of a restore. It is low even for a disk
/// that several servers share.
pub const DUMP_BYTES_PER_SECOND: u64 = 8 << 20;

/// The time after which the operator is notified if a server that reports makes no progress with its dumps.
pub const NO_PROGRESS: Duration = Duration::from_secs(30);

/// A clock that excludes time in which this coordinator was suspended. The `Debug` output of a cluster omits it,
/// because the exhaustive search treats states with equal output as one and does not model stops.
#[derive(Clone, Copy)]
pub(super) struct StopClock(pub(super) Awake);

impl StopClock {
    pub(super) const fn new() -> StopClock {
        StopClock(Awake::new(HEARTBEAT_INTERVAL))
    }
}

impl fmt::Debug for StopClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StopClock")
    }
}

/// A reading of the [`StopClock`], also omitted from `Debug` output.
#[derive(Clone, Copy, Default)]
pub(super) struct StopTime(pub(super) Duration);

impl fmt::Debug for StopTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StopTime")
    }
}

/// A phase of the cluster's orderly stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPhase {
    /// Servers reject new writes; pending ones commit.
    Drain,
    /// Every server writes both its tables to dumps.
    Dump,
    /// Every server exits.
    Shutdown,
}

/// The result of an orderly stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// The two servers of a double fault, if it caused the stop.
    pub double_fault: Option<(ServerId, ServerId)>,
    /// Servers that were ordered to dump before all their pending writes had committed. The uncommitted writes were not
    /// acknowledged and never will be.
    pub undrained: Vec<ServerId>,
    /// Servers that had reported, and were killed because they did not respond in time or because the operator
    /// requested an immediate stop.
    pub killed: Vec<ServerId>,
    /// Servers whose end could not be proven. They may still run.
    pub unproven: Vec<ServerId>,
    /// The servers and groups of tables whose failing dumps a forced stop gave up. Another replica may have dumped the
    /// same group.
    pub given_up: Vec<(ServerId, GroupId)>,
    /// Groups of which no replica has reported a complete dump, although the cluster has served.
    pub undumped: Vec<GroupId>,
}

/// The reason why a stop waits for a server for longer than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopWait {
    /// The server is silent, its end is not proven, and no other replica has dumped this group or is dumping it.
    Silent(GroupId),
    /// The server reports, but its dumps have made no progress for [`NO_PROGRESS`].
    NoProgress,
}

/// The progress of one server's dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpProgress {
    /// The server that dumps.
    pub server: ServerId,
    /// True if the stop waits for no further dump of the server.
    pub is_done: bool,
    /// True if a dump has failed and is being retried.
    pub is_failing: bool,
    /// The number of bytes of keys and values written.
    pub bytes: u64,
    /// The number of bytes of keys and values in the server's tables.
    pub of_bytes: u64,
}

/// The progress of one server's stop. Times are readings of the stop's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The time at which the first stage began; `since` is that of the current stage.
    begun: Duration,
    since: Duration,
    /// The time of the server's last report on an order, or of the last progress of its dumps.
    moved: Duration,
    undrained: bool,
    dumps: Dumps,
    /// The last notification to the operator.
    told: Option<StopWait>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Running,
    /// The server hands its groups over. It began to leave at this reading of the stop's clock.
    Parting(Duration),
    Draining(Progress),
    Dumping(Progress),
    Leaving(Progress),
    Killed(Progress),
    /// The process was killed, but its death was not proven in time.
    Unproven(Progress),
}

impl Stage {
    /// Returns whether the end of the process is expected.
    pub(super) fn is_leaving(self) -> bool {
        matches!(self, Stage::Leaving(_) | Stage::Killed(_) | Stage::Unproven(_))
    }

    /// Returns whether the server can still install a view.
    pub(super) fn takes_views(self) -> bool {
        matches!(self, Stage::Running | Stage::Parting(_) | Stage::Draining(_))
    }

    /// Returns whether the server was ordered to exit and complete dumps hold all its data.
    pub(super) fn has_complete_dumps(self) -> bool {
        let is_complete = |dump: Dump| matches!(dump, Dump::Complete | Dump::NoCopy);
        match self {
            Stage::Leaving(Progress { dumps, .. }) => dumps.all().into_iter().all(is_complete),
            _ => false,
        }
    }

    /// Returns the last notification to the operator, if the server is still dumping.
    pub(super) fn told(self) -> Option<StopWait> {
        match self {
            Stage::Dumping(progress) => progress.told,
            _ => None,
        }
    }

    /// Returns the times at which failed dumps are ordered again.
    fn dumps_again_at(self) -> impl Iterator<Item = Duration> {
        let dumps = match self {
            Stage::Dumping(progress) => progress.dumps,
            _ => Dumps::default(),
        };
        dumps.all().into_iter().filter_map(Dump::again_at)
    }

    fn progress(self) -> Progress {
        match self {
            Stage::Running | Stage::Parting(_) => Progress::default(),
            Stage::Draining(progress)
            | Stage::Dumping(progress)
            | Stage::Leaving(progress)
            | Stage::Killed(progress)
            | Stage::Unproven(progress) => progress,
        }
    }

    fn progress_mut(&mut self) -> Option<&mut Progress> {
        match self {
            Stage::Running | Stage::Parting(_) => None,
            Stage::Draining(progress)
            | Stage::Dumping(progress)
            | Stage::Leaving(progress)
            | Stage::Killed(progress)
            | Stage::Unproven(progress) => Some(progress),
        }
    }
}

/// The stop of the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    phase: StopPhase,
    served: bool,
    begun: bool,
    over: bool,
    /// True if the operator has forced the stop. It then gives up failing dumps and does not wait for silent servers.
    forced: bool,
}

impl Cluster {
    /// Stops the whole cluster in an orderly way. Calling it again changes nothing.
    pub fn on_stop(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if self.stop.is_some() {
            return;
        }
        let served = self.has_served();
        self.stop = Some(Stop {
            phase: StopPhase::Drain,
            served,
            begun: false,
            over: false,
            forced: false,
        });
        self.revision += 1;
        self.memory.decided.is_stopping = true;
        self.store(sink);
        sink.push(Effect::Stopping(StopPhase::Drain));
        self.advance_stop(now, sink);
    }

    /// Gives the first orders of a stop once the stop is durable.
    fn begin_stop(&mut self, now: Time, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            if server.exited {
                continue;
            }
            if server.started.is_none() && server.spawned.is_none() {
                // Only the incarnation was drawn. The process was not spawned and will not be.
                self.server_mut(id).exited = true;
            } else if server.started.is_none() {
                self.kill(now, id, KillReason::NotStarted, sink);
            } else if matches!(server.stage, Stage::Running | Stage::Parting(_)) {
                self.server_mut(id).outstanding.clear();
                self.drain(now, id, sink);
            } else if let Stage::Draining(progress) = &mut self.server_mut(id).stage {
                // The server was leaving alone. From now on it has the same deadlines as the others.
                (progress.begun, progress.since) = (clock, clock);
            }
        }
    }

    /// Handles a further request to stop. If a failed dump or a silent server holds up a stop that is not forced yet,
    /// acts like [`Cluster::on_force`]. Otherwise kills every remaining process.
    pub fn on_stop_now(&mut self, now: Time, sink: &mut Vec<Effect>) {
        self.on_stop(now, sink);
        let is_forced = self.stop.is_some_and(|stop| stop.forced);
        if !is_forced && self.is_held_up(now) {
            return self.on_force(now, sink);
        }
        self.set_forced();
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            if !server.exited && !matches!(server.stage, Stage::Killed(_) | Stage::Unproven(_)) {
                self.kill(now, id, KillReason::Hurry, sink);
            }
        }
        self.advance_stop(now, sink);
    }

    /// Forces the stop of the cluster. Gives up tables whose dumps fail, now or later. Kills silent servers even if
    /// they hold the only copy of a group. Still waits for servers that are dumping.
    pub fn on_force(&mut self, now: Time, sink: &mut Vec<Effect>) {
        self.on_stop(now, sink);
        self.set_forced();
        for id in (0..self.count()).map(ServerId) {
            let server = self.server_mut(id);
            let Stage::Dumping(progress) = &mut server.stage else { continue };
            for kind in progress.dumps.give_up() {
                self.tell_given_up(id, &kind, sink);
            }
        }
        self.advance_stop(now, sink);
    }

    /// Retries failed dumps at once, because their cause may be fixed, for example by another directory.
    pub fn on_dump_again(&mut self, now: Time, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        for server in &mut self.servers {
            if let Stage::Dumping(progress) = &mut server.stage {
                progress.dumps.hurry(clock);
            }
        }
        self.advance_stop(now, sink);
    }

    fn set_forced(&mut self) {
        if let Some(stop) = &mut self.stop {
            stop.forced = true;
        }
    }

    fn tell_given_up(&self, id: ServerId, kind: &OrderKind, sink: &mut Vec<Effect>) {
        let Some(group) = self.dumped_group(id, kind) else { return };
        let view = &self.views()[usize::from(group.0)];
        if self.is_replica(view, id) {
            let is_dumped = self.is_dumped(view, Some(id));
            sink.push(Effect::GivenUp { member: self.member(id), group, is_dumped });
        }
    }

    /// Returns whether the stop waits for a failing dump or a silent server, which it may do for ever.
    fn is_held_up(&mut self, now: Time) -> bool {
        let clock = self.stop_clock(now);
        let mut left = self.servers.iter().filter(|server| !server.exited);
        left.any(|server| {
            let is_failing = matches!(server.stage, Stage::Dumping(progress)
                if progress.dumps.all().into_iter().any(Dump::is_failing));
            is_failing || self.stop_waits(clock, server).is_some()
        })
    }

    /// Returns the dump progress of each server that may still run; `None` unless the stop is in its dump phase.
    pub fn dumping(&self) -> Option<Vec<DumpProgress>> {
        self.stop.filter(|stop| stop.phase == StopPhase::Dump)?;
        let left = self.servers.iter().filter(|server| !server.exited);
        let progress = left.map(|server| {
            let (written, of_bytes) = written_of(server);
            let is_done = Self::has_dumped(server);
            let dumps = server.stage.progress().dumps.all();
            DumpProgress {
                server: server.member.server,
                is_done,
                is_failing: !is_done && dumps.into_iter().any(Dump::is_failing),
                bytes: if is_done { of_bytes } else { written },
                of_bytes,
            }
        });
        Some(progress.collect())
    }

    /// Handles the request of a server to leave, after the server received a stop signal.
    ///
    /// # Errors
    /// [`Ignored::OldLink`] if the connection no longer belongs to the server.
    pub fn on_drain_request(
        &mut self,
        now: Time,
        link: LinkId,
        server: ServerId,
        sink: &mut Vec<Effect>,
    ) -> Result<(), Ignored> {
        self.check_link(link, server)?;
        self.server_mut(server).wants_to_leave = true;
        if self.stop.is_none() && self.server(server).stage == Stage::Running {
            let member = self.member(server);
            sink.push(Effect::Leaving { member, why: LeaveReason::StopSignal });
            self.begin_leave(now, server, sink);
        }
        self.advance(now, sink);
        Ok(())
    }

    pub(super) fn drain(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        let progress = Progress { begun: clock, since: clock, ..Progress::default() };
        self.server_mut(id).stage = Stage::Draining(progress);
        self.give(id, OrderKind::Drain, sink);
    }

    /// Returns the reading of the stop's clock, which excludes time in which this coordinator was suspended.
    pub(super) fn stop_clock(&mut self, now: Time) -> Duration {
        let awake = self.awake.0.look(now);
        match mutations::is_open(Mutation::StopByTheBareClock) {
            true => Duration::from_nanos(now.nanos),
            false => awake,
        }
    }

    /// Records a report on an order of a stop. Returns whether the order is for a dump that is retried.
    pub(super) fn note_stop_report(
        &mut self,
        now: Time,
        id: ServerId,
        order: &Order,
        outcome: Result<u64, &OrderFailure>,
        sink: &mut Vec<Effect>,
    ) -> bool {
        let clock = self.stop_clock(now);
        let group = self.dumped_group(id, &order.kind);
        let holds = group.is_some_and(|g| self.is_replica(&self.views()[usize::from(g.0)], id));
        let is_forced = self.stop.is_some_and(|stop| stop.forced);
        let is_left_out = mutations::is_open(Mutation::ShutdownAfterFailedDump);
        let Some(progress) = self.server_mut(id).stage.progress_mut() else { return false };
        progress.moved = clock;
        if order.kind == OrderKind::Drain {
            progress.undrained = outcome.is_err();
        }
        let is_needed = holds && !is_forced && !is_left_out;
        match progress.dumps.report(clock, &order.kind, outcome, is_needed) {
            Some(Dump::AgainAt { .. }) => true,
            Some(Dump::GivenUp) => {
                self.tell_given_up(id, &order.kind, sink);
                false
            }
            _ => false,
        }
    }

    /// Takes every step of a stop, or of servers that leave alone, that is due.
    pub(super) fn advance_stop(&mut self, now: Time, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        self.dump_again(clock, sink);
        let Some(mut stop) = self.stop.filter(|stop| !stop.over) else {
            self.advance_lone(now, sink);
            return;
        };
        if !stop.begun && self.memory.durable().is_stopping {
            stop.begun = true;
            self.begin_stop(now, sink);
        }
        self.note_progress(clock, sink);
        self.kill_late(now, sink);
        if stop.begun && stop.phase == StopPhase::Drain && self.all(|s| self.has_drained(clock, s))
        {
            stop.phase = StopPhase::Dump;
            sink.push(Effect::Stopping(StopPhase::Dump));
            self.each(|cluster, id| cluster.dump(now, id, sink));
        }
        if stop.phase == StopPhase::Dump && self.all(Self::has_dumped) {
            stop.phase = StopPhase::Shutdown;
            sink.push(Effect::Stopping(StopPhase::Shutdown));
            self.each(|cluster, id| cluster.shut_down(now, id, sink));
        }
        if stop.phase == StopPhase::Shutdown && self.all(Self::has_ended) {
            stop.over = true;
            sink.push(Effect::Stopped(self.outcome(stop.served)));
        }
        self.stop = Some(stop);
    }

    /// Advances servers that leave alone. Kills none of them, because they exit on their own if no order arrives.
    /// Processes that no view names are killed elsewhere (respawn.rs).
    fn advance_lone(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if self.stop.is_some() {
            return;
        }
        let clock = self.stop_clock(now);
        for id in (0..self.count()).map(ServerId) {
            match self.server(id).stage {
                _ if self.server(id).exited => continue,
                Stage::Running => continue,
                Stage::Parting(_) => {
                    self.part(now, id, sink);
                    continue;
                }
                _ => {}
            }
            if self.has_drained(clock, self.server(id)) {
                self.dump(now, id, sink);
            }
            if Self::has_dumped(self.server(id)) {
                self.shut_down(now, id, sink);
            }
        }
    }

    /// Returns whether the cluster's stop is over, so that no further effect follows.
    pub(super) fn is_over(&self) -> bool {
        self.stop.is_some_and(|stop| stop.over)
    }

    /// Returns the time of the next step of a stop that depends on time alone; `None` if there is none.
    pub(super) fn next_stop_timeout(&self) -> Option<Time> {
        let clock = match mutations::is_open(Mutation::StopByTheBareClock) {
            true => Duration::from_nanos(self.now.nanos),
            false => self.awake.0.at(self.now),
        };
        let stopping = self.stop.is_some();
        let left = self.servers.iter().filter(|server| !server.exited);
        let due = left.flat_map(|server| {
            let progress = server.stage.progress();
            let deadline = match server.stage {
                Stage::Running | Stage::Parting(_) | Stage::Unproven(_) => None,
                Stage::Draining(_) => Some(self.drain_deadline(server)),
                Stage::Dumping(_) if !stopping => None,
                Stage::Dumping(_) if server.is_up() => Some(progress.moved + NO_PROGRESS),
                Stage::Dumping(_) => Some(self.silence_deadline(server)),
                Stage::Leaving(_) | Stage::Killed(_) => {
                    stopping.then_some(progress.since + self.config.stop_timeout)
                }
            };
            deadline.into_iter().chain(server.stage.dumps_again_at())
        });
        // Steps that were due earlier are done already.
        let next = due.filter(|due| *due > clock).min()?;
        Some(self.now + next.saturating_sub(clock).min(self.awake.0.interval()))
    }

    /// Returns the deadline for pending writes. A server that leaves alone waits for its next order no longer than the
    /// stop's timeout, so its pending writes get only two fifths of that time.
    fn drain_deadline(&self, server: &Server) -> Duration {
        let timeout = self.config.stop_timeout;
        let timeout = if self.stop.is_none() { timeout * 2 / 5 } else { timeout };
        server.stage.progress().since + timeout
    }

    /// Returns the time before which the stop does not give up a silent server.
    fn silence_deadline(&self, server: &Server) -> Duration {
        server.stage.progress().begun.max(server.beat.0) + self.config.stop_timeout
    }

    /// Returns whether a server that has not dumped is silent past its deadline.
    fn is_late(&self, clock: Duration, server: &Server) -> bool {
        let is_dumping = matches!(server.stage, Stage::Dumping(_)) && !Self::has_dumped(server);
        is_dumping && server.state == ServerState::Down && clock >= self.silence_deadline(server)
    }

    /// Returns the reason to notify the operator that the stop waits for this server, if there is one.
    pub(super) fn stop_waits(&self, clock: Duration, server: &Server) -> Option<StopWait> {
        if server.exited || self.stop.is_none() || Self::has_dumped(server) {
            return None;
        }
        let Stage::Dumping(progress) = server.stage else { return None };
        if self.is_late(clock, server) {
            let id = server.member.server;
            let is_dumped_soon = |view: &View| {
                let others = view.primary.into_iter().chain(view.secondary());
                let others = others.map(|member| self.server(member.server));
                others.filter(|other| other.member.server != id).any(|other| {
                    let dumps = matches!(other.stage, Stage::Dumping(_)) && !other.exited;
                    dumps && !Self::has_dumped(other) && !self.is_late(clock, other)
                })
            };
            let only_here = self.undumped_groups_of(id).find(|view| !is_dumped_soon(view));
            return only_here.map(|view| StopWait::Silent(view.group));
        }
        let stands = server.is_up() && !server.outstanding.is_empty();
        (stands && clock >= progress.moved + NO_PROGRESS).then_some(StopWait::NoProgress)
    }

    /// Records dump progress, and notifies the operator of servers that delay the stop.
    fn note_progress(&mut self, clock: Duration, sink: &mut Vec<Effect>) {
        for id in (0..self.count()).map(ServerId) {
            let server = self.server_mut(id);
            let written = server.heartbeat.as_ref().map(|(_, heartbeat)| heartbeat.dumped);
            let Stage::Dumping(progress) = &mut server.stage else { continue };
            if written.is_some_and(|written| written != progress.dumps.written) {
                progress.dumps.written = written.unwrap_or_default();
                progress.moved = clock;
            }
            let told = progress.told;
            let waits = self.stop_waits(clock, self.server(id));
            if let Some(why) = waits.filter(|_| waits != told) {
                sink.push(Effect::StopWaits { member: self.member(id), why });
            }
            if let Some(progress) = self.server_mut(id).stage.progress_mut() {
                progress.told = waits;
            }
        }
    }

    fn kill_late(&mut self, now: Time, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        let is_forced = self.stop.is_some_and(|stop| stop.forced);
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            if server.exited {
                continue;
            }
            let is_over = clock >= server.stage.progress().since + self.config.stop_timeout;
            let without_response = match server.stage {
                Stage::Dumping(progress) if self.is_late(clock, server) => {
                    let may_end = is_forced
                        || self.undumped_groups_of(id).next().is_none()
                        || mutations::is_open(Mutation::SoleKilledInStop);
                    if !may_end {
                        continue;
                    }
                    progress.dumps.unfinished()
                }
                Stage::Leaving(_) if is_over => "SHUTDOWN",
                Stage::Killed(progress) if is_over => {
                    self.server_mut(id).stage = Stage::Unproven(progress);
                    continue;
                }
                _ => continue,
            };
            self.kill(now, id, KillReason::Unanswered(without_response), sink);
        }
    }

    fn kill(&mut self, now: Time, id: ServerId, reason: KillReason, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        let server = self.server_mut(id);
        server.stage = Stage::Killed(Progress { since: clock, ..server.stage.progress() });
        server.outstanding.clear();
        sink.push(Effect::Kill { member: server.member, reason });
    }

    fn dump(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        let server = self.server_mut(id);
        if let Stage::Draining(progress) = server.stage {
            let undrained = progress.undrained || !server.outstanding.is_empty();
            server.outstanding.clear();
            let mut progress = Progress { since: clock, moved: clock, undrained, ..progress };
            // A server that leaves alone dumps the tables of which it is a holder. In a stop of the cluster each server
            // dumps both tables.
            let (primary, secondary) = match self.stop {
                None => self.held_tables(id),
                Some(_) => (true, true),
            };
            if !primary {
                progress.dumps.primary = Dump::NoCopy;
            }
            if !secondary {
                progress.dumps.secondary = Dump::NoCopy;
            }
            self.server_mut(id).stage = Stage::Dumping(progress);
            if primary {
                self.give(id, OrderKind::DumpPrimary, sink);
            }
            if secondary {
                self.give(id, OrderKind::DumpSecondary, sink);
            }
        }
    }

    /// Orders failed dumps again when their back-off is over.
    fn dump_again(&mut self, clock: Duration, sink: &mut Vec<Effect>) {
        for id in (0..self.count()).map(ServerId) {
            let server = self.server_mut(id);
            let Stage::Dumping(progress) = &mut server.stage else { continue };
            if server.exited {
                continue;
            }
            for kind in progress.dumps.take_due(clock) {
                self.give(id, kind, sink);
            }
        }
    }

    /// Orders a server that no longer holds any group to shut down without dumps.
    pub(super) fn let_go(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        let mut progress =
            Progress { begun: clock, since: clock, moved: clock, ..Progress::default() };
        (progress.dumps.primary, progress.dumps.secondary) = (Dump::NoCopy, Dump::NoCopy);
        let server = self.server_mut(id);
        server.outstanding.clear();
        server.stage = Stage::Leaving(progress);
        self.give(id, OrderKind::Shutdown, sink);
    }

    fn shut_down(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let clock = self.stop_clock(now);
        let server = self.server_mut(id);
        if let Stage::Dumping(progress) = server.stage {
            server.stage = Stage::Leaving(Progress { since: clock, ..progress });
            self.give(id, OrderKind::Shutdown, sink);
        }
    }

    /// Returns whether this server need not drain any longer.
    fn has_drained(&self, clock: Duration, server: &Server) -> bool {
        match server.stage {
            Stage::Draining(_) => {
                server.outstanding.is_empty()
                    || clock >= self.drain_deadline(server)
                    || self.stops_for_double_fault()
            }
            _ => true,
        }
    }

    fn has_dumped(server: &Server) -> bool {
        match server.stage {
            Stage::Draining(_) => false,
            Stage::Dumping(progress) => progress.dumps.all().into_iter().all(Dump::is_over),
            _ => true,
        }
    }

    fn has_ended(server: &Server) -> bool {
        matches!(server.stage, Stage::Unproven(_))
    }

    /// Returns whether `done` holds for every server whose process may still run.
    fn all(&self, done: impl Fn(&Server) -> bool) -> bool {
        self.servers.iter().all(|server| server.exited || done(server))
    }

    /// Calls `act` for every server whose process may still run.
    fn each(&mut self, mut act: impl FnMut(&mut Cluster, ServerId)) {
        for id in (0..self.count()).map(ServerId) {
            if !self.server(id).exited {
                act(self, id);
            }
        }
    }

    fn outcome(&self, served: bool) -> StopOutcome {
        let named = |is: fn(&Server) -> bool| {
            let members = self.servers.iter().filter(|s| is(s)).map(|s| s.member);
            members.map(|Member { server, .. }| server).collect::<Vec<_>>()
        };
        let undumped = self.views().iter().filter(|view| served && !self.is_dumped(view, None));
        let given_up = (0..self.count()).map(ServerId).flat_map(|id| {
            let dumps = self.server(id).stage.progress().dumps;
            let tables = [OrderKind::DumpPrimary, OrderKind::DumpSecondary];
            let given_up = tables.into_iter().zip(dumps.all());
            let given_up = given_up.filter(|(_, dump)| *dump == Dump::GivenUp);
            let groups = given_up.filter_map(move |(kind, _)| self.dumped_group(id, &kind));
            let holds =
                move |group: &GroupId| self.is_replica(&self.views()[usize::from(group.0)], id);
            groups.filter(holds).map(move |group| (id, group))
        });
        StopOutcome {
            double_fault: self.double_fault.filter(|_| self.stops_for_double_fault()),
            undrained: named(|s| s.stage.progress().undrained),
            // Processes that never reported were killed too, but are not listed, because they ignored no order.
            killed: named(|s| {
                matches!(s.stage, Stage::Killed(_) | Stage::Unproven(_)) && s.started.is_some()
            }),
            unproven: named(|s| matches!(s.stage, Stage::Unproven(_)) && !s.exited),
            given_up: given_up.collect(),
            undumped: undumped.map(|view| view.group).collect(),
        }
    }
}
