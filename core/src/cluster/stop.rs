//! The orderly stop, of the cluster or of one server.
//!
//! ```text
//!             DRAIN            DUMP-PRIMARY, DUMP-SECONDARY       SHUTDOWN
//!   Running --------> Draining ----------------------------> Dumping --------> Leaving --> exited
//!                        |  (all of the cluster enter a stage together,            |
//!                        |   a server that leaves alone goes at its own pace)      |
//!                        +-------- no answer in time -------> Killed <-------------+
//! ```
//!
//! All drain before any dumps, so that the two dumps of a group agree. A server that lives but
//! cannot drain in time (its other holder is gone, so pending writes cannot commit) is dumped
//! nevertheless: from its first dump on it acknowledges nothing more, so whatever anybody was told
//! is done stands in it. One that is dumping may take as long as its tables are large, while its
//! heartbeats come. A dump that fails is ordered once more a moment later, and nobody exits before.
//!
//! Nobody is told of a stop of the cluster before it is durable. Who drains takes no writes any more, and
//! who has begun to dump takes no view; a coordinator that dies in a stop would otherwise be followed by
//! one that waits for them for ever, or takes those who have exited for dead and gives their groups away
//! or up: then the last views would name nobody, and no dump would count.

use std::time::Duration;

use kv_protocol::control_message::{Order, OrderKind};
use kv_protocol::map::ServerState;
use kv_protocol::{GroupId, Member, ServerId, Time};

use super::server::Server;
use super::status::table_bytes;
use super::{Cluster, Effect, Ignored, KillReason, LinkId};

/// A server that is heard from is given the time to dump its tables at this rate, slow even for a
/// disk that several servers share.
pub const DUMP_BYTES_PER_SECOND: u64 = 8 << 20;

/// How long after a failed dump it is ordered once more: what was short for a moment (room on the
/// disk, descriptors) may be there again.
pub const DUMP_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A phase of the cluster's orderly stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPhase {
    /// No new writes; pending ones commit.
    Drain,
    /// Both tables of every server are written out.
    Dump,
    /// Every server exits.
    Shutdown,
}

/// How an orderly stop ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// The two servers whose faults came together, where that is why the cluster was stopped.
    pub double_fault: Option<(ServerId, ServerId)>,
    /// Servers that were told to dump before all their pending writes had committed. What had not
    /// committed by then was not acknowledged, and never will be.
    pub undrained: Vec<ServerId>,
    /// Servers that were killed: they did not answer in time, or nobody wanted to wait for them.
    pub killed: Vec<ServerId>,
    /// Servers whose end could not be proven: they may still run.
    pub unproven: Vec<ServerId>,
    /// Groups of which neither holder has reported a complete dump, although the cluster has served.
    pub undumped: Vec<GroupId>,
}

/// How far the stop of one server has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    since: Time,
    undrained: bool,
    primary: Dump,
    secondary: Dump,
}

/// How far one of a server's two dumps has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Dump {
    /// It has not failed so far.
    #[default]
    First,
    /// It has failed; it is ordered once more then.
    AgainAt(Time),
    /// It has failed, and is not ordered again after this.
    Last,
    Complete,
}

impl Dump {
    /// Takes a report. One that failed is ordered again unless it was before, or the time that the
    /// server has ends before `deadline`.
    fn reported(self, complete: bool, now: Time, deadline: Time) -> Dump {
        let again = now + DUMP_RETRY_PAUSE;
        match self {
            _ if complete => Dump::Complete,
            Dump::First if again < deadline => Dump::AgainAt(again),
            _ => Dump::Last,
        }
    }

    fn again_at(self) -> Option<Time> {
        match self {
            Dump::AgainAt(time) => Some(time),
            Dump::First | Dump::Last | Dump::Complete => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Running,
    Draining(Progress),
    Dumping(Progress),
    Leaving(Progress),
    Killed(Progress),
    /// Killed, and no proof of its end came in time.
    Unproven(Progress),
}

impl Stage {
    /// Whether it is on its way out, so that its end surprises nobody.
    pub(super) fn is_leaving(self) -> bool {
        matches!(self, Stage::Leaving(_) | Stage::Killed(_) | Stage::Unproven(_))
    }

    /// Whether it can still do what a view asks of it.
    pub(super) fn takes_views(self) -> bool {
        matches!(self, Stage::Running | Stage::Draining(_))
    }

    /// When its failed dumps are ordered once more.
    fn dumps_again_at(self) -> impl Iterator<Item = Time> {
        let dumps = match self {
            Stage::Dumping(Progress { primary, secondary, .. }) => [primary, secondary],
            _ => [Dump::default(); 2],
        };
        dumps.into_iter().filter_map(Dump::again_at)
    }

    fn progress(self) -> Progress {
        match self {
            Stage::Running => Progress::default(),
            Stage::Draining(progress)
            | Stage::Dumping(progress)
            | Stage::Leaving(progress)
            | Stage::Killed(progress)
            | Stage::Unproven(progress) => progress,
        }
    }

    fn progress_mut(&mut self) -> Option<&mut Progress> {
        match self {
            Stage::Running => None,
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
}

impl Cluster {
    /// Stop the whole cluster in order. Asking again changes nothing.
    pub fn on_stop(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if self.stop.is_some() {
            return;
        }
        let served = self.has_served();
        self.stop = Some(Stop { phase: StopPhase::Drain, served, begun: false, over: false });
        self.revision += 1;
        self.memory.decided.is_stopping = true;
        self.store(sink);
        sink.push(Effect::Stopping(StopPhase::Drain));
        self.advance_stop(now, sink);
    }

    /// The stop is durable: everybody is told.
    fn begin_stop(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            if server.exited {
                continue;
            }
            if server.started.is_none() && server.spawned.is_none() {
                // Only its name was drawn: there is no process, and none will be.
                self.server_mut(id).exited = true;
            } else if server.started.is_none() {
                self.kill(now, id, KillReason::NotStarted, sink);
            } else if server.stage == Stage::Running {
                self.server_mut(id).outstanding.clear();
                self.drain(now, id, sink);
            } else if let Stage::Draining(progress) = &mut self.server_mut(id).stage {
                // It was leaving alone; from now on it is waited for like the others.
                progress.since = now;
            }
        }
    }

    /// Stop waiting: whoever is left is killed.
    pub fn on_stop_now(&mut self, now: Time, sink: &mut Vec<Effect>) {
        self.on_stop(now, sink);
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            if !server.exited && !matches!(server.stage, Stage::Killed(_) | Stage::Unproven(_)) {
                self.kill(now, id, KillReason::Hurry, sink);
            }
        }
        self.advance_stop(now, sink);
    }

    /// While all servers dump for a stop: of each that may still run, whether it has, and the bytes of its
    /// tables as it told them last.
    pub fn dumping(&self) -> Option<Vec<(bool, u64)>> {
        self.stop.filter(|stop| stop.phase == StopPhase::Dump)?;
        let left = self.servers.iter().filter(|server| !server.exited);
        Some(left.map(|server| (Self::has_dumped(server), table_bytes(server))).collect())
    }

    /// A server was told to stop, and asks for the orderly way.
    ///
    /// # Errors
    /// The connection it came over is not the server's any more.
    pub fn on_drain_request(
        &mut self,
        now: Time,
        link: LinkId,
        server: ServerId,
        sink: &mut Vec<Effect>,
    ) -> Result<(), Ignored> {
        self.check_link(link, server)?;
        if self.stop.is_none() && self.server(server).stage == Stage::Running {
            sink.push(Effect::Leaving { member: self.member(server) });
            self.drain(now, server, sink);
        }
        self.advance_stop(now, sink);
        Ok(())
    }

    fn drain(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let progress = Progress { since: now, ..Progress::default() };
        self.server_mut(id).stage = Stage::Draining(progress);
        self.give(id, OrderKind::Drain, sink);
    }

    /// Notes what a report of DRAIN or of a dump says about the data. Whether the order is to be
    /// given once more.
    pub(super) fn note_stop_report(
        &mut self,
        now: Time,
        id: ServerId,
        order: &Order,
        done: bool,
    ) -> bool {
        let deadline = self.deadline(self.server(id));
        let Some(progress) = self.server_mut(id).stage.progress_mut() else { return false };
        let dump = match order.kind {
            OrderKind::DumpPrimary => &mut progress.primary,
            OrderKind::DumpSecondary => &mut progress.secondary,
            OrderKind::Drain => {
                progress.undrained = !done;
                return false;
            }
            OrderKind::View(_) | OrderKind::Probe | OrderKind::Exited(_) | OrderKind::Shutdown => {
                return false;
            }
        };
        *dump = dump.reported(done, now, deadline);
        dump.again_at().is_some()
    }

    /// Takes every step of a stop that is due. Called after each input.
    pub(super) fn advance_stop(&mut self, now: Time, sink: &mut Vec<Effect>) {
        self.dump_again(now, sink);
        let Some(mut stop) = self.stop.filter(|stop| !stop.over) else {
            self.advance_lone(now, sink);
            return;
        };
        if !stop.begun && self.memory.durable().is_stopping {
            stop.begun = true;
            self.begin_stop(now, sink);
        }
        self.kill_late(now, sink);
        if stop.begun && stop.phase == StopPhase::Drain && self.all(|s| self.has_drained(now, s)) {
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

    /// Servers that leave alone. What they do not answer they do by themselves: they were told to
    /// stop by someone else, and nobody is killed here.
    fn advance_lone(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if self.stop.is_some() {
            return;
        }
        for id in (0..self.count()).map(ServerId) {
            if self.server(id).stage == Stage::Running {
                continue;
            }
            if self.has_drained(now, self.server(id)) {
                self.dump(now, id, sink);
            }
            if Self::has_dumped(self.server(id)) {
                self.shut_down(now, id, sink);
            }
        }
    }

    /// Whether the cluster's stop is over, and nothing will ever happen again.
    pub(super) fn is_over(&self) -> bool {
        self.stop.is_some_and(|stop| stop.over)
    }

    /// When something happens in a stop by time alone.
    pub(super) fn next_stop_timeout(&self) -> Option<Time> {
        let stopping = self.stop.is_some();
        let waiting = self.servers.iter().filter(|server| match server.stage {
            _ if server.exited => false,
            Stage::Running | Stage::Unproven(_) => false,
            Stage::Draining(_) => !server.outstanding.is_empty(),
            Stage::Dumping(_) => stopping && !server.outstanding.is_empty(),
            Stage::Leaving(_) | Stage::Killed(_) => stopping,
        });
        let again = self.servers.iter().filter(|server| !server.exited);
        let again = again.flat_map(|server| server.stage.dumps_again_at());
        waiting.map(|server| self.deadline(server)).chain(again).min()
    }

    /// Until when a server may take for the stage it is in.
    fn deadline(&self, server: &Server) -> Time {
        let patience = self.config.stop_patience;
        let progress = server.stage.progress();
        match server.stage {
            Stage::Dumping(_) if server.is_up() => {
                let seconds = table_bytes(server) / DUMP_BYTES_PER_SECOND;
                progress.since + patience + Duration::from_secs(seconds)
            }
            // A server that leaves alone gives up waiting for its SHUTDOWN after the same time, so
            // less than half of it may go into waiting for the other holder.
            Stage::Draining(_) if self.stop.is_none() => progress.since + patience * 2 / 5,
            _ => progress.since + patience,
        }
    }

    fn kill_late(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            if server.exited || now < self.deadline(server) {
                continue;
            }
            let waits = !server.outstanding.is_empty();
            let unanswered = match server.stage {
                Stage::Draining(_) if waits && server.state == ServerState::Down => "DRAIN",
                Stage::Dumping(_) if waits => match server.outstanding[..] {
                    [only] => only.name(),
                    _ => "DUMP-PRIMARY and DUMP-SECONDARY",
                },
                Stage::Leaving(_) => "SHUTDOWN",
                Stage::Killed(progress) => {
                    self.server_mut(id).stage = Stage::Unproven(progress);
                    continue;
                }
                Stage::Draining(_) | Stage::Dumping(_) | Stage::Running | Stage::Unproven(_) => {
                    continue;
                }
            };
            self.kill(now, id, KillReason::Unanswered(unanswered), sink);
        }
    }

    fn kill(&mut self, now: Time, id: ServerId, reason: KillReason, sink: &mut Vec<Effect>) {
        let server = self.server_mut(id);
        server.stage = Stage::Killed(Progress { since: now, ..server.stage.progress() });
        server.outstanding.clear();
        sink.push(Effect::Kill { member: server.member, reason });
    }

    fn dump(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let server = self.server_mut(id);
        if let Stage::Draining(progress) = server.stage {
            let undrained = progress.undrained || !server.outstanding.is_empty();
            server.outstanding.clear();
            server.stage = Stage::Dumping(Progress { since: now, undrained, ..progress });
            self.give(id, OrderKind::DumpPrimary, sink);
            self.give(id, OrderKind::DumpSecondary, sink);
        }
    }

    /// Orders failed dumps once more where that is due.
    fn dump_again(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for id in (0..self.count()).map(ServerId) {
            let server = self.server_mut(id);
            let Stage::Dumping(progress) = &mut server.stage else { continue };
            let mut orders = Vec::new();
            for (dump, kind) in [
                (&mut progress.primary, OrderKind::DumpPrimary),
                (&mut progress.secondary, OrderKind::DumpSecondary),
            ] {
                if !server.exited && dump.again_at().is_some_and(|again| again <= now) {
                    *dump = Dump::Last;
                    orders.push(kind);
                }
            }
            for kind in orders {
                self.give(id, kind, sink);
            }
        }
    }

    fn shut_down(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let server = self.server_mut(id);
        if let Stage::Dumping(progress) = server.stage {
            server.stage = Stage::Leaving(Progress { since: now, ..progress });
            self.give(id, OrderKind::Shutdown, sink);
        }
    }

    /// Whether nothing is to be waited for before this server dumps.
    fn has_drained(&self, now: Time, server: &Server) -> bool {
        match server.stage {
            Stage::Draining(_) => {
                server.outstanding.is_empty()
                    || now >= self.deadline(server)
                    || self.stops_for_double_fault()
            }
            _ => true,
        }
    }

    fn has_dumped(server: &Server) -> bool {
        match server.stage {
            Stage::Draining(_) => false,
            stage @ Stage::Dumping(_) => {
                server.outstanding.is_empty() && stage.dumps_again_at().next().is_none()
            }
            _ => true,
        }
    }

    fn has_ended(server: &Server) -> bool {
        matches!(server.stage, Stage::Unproven(_))
    }

    /// Whether `done` holds for every server whose process may still run.
    fn all(&self, done: impl Fn(&Server) -> bool) -> bool {
        self.servers.iter().all(|server| server.exited || done(server))
    }

    /// Does something to every server whose process may still run.
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
        // The dump of a group is written at its home places, whatever the roles there.
        let servers = self.count();
        let undumped = self.views().iter().filter(|view| {
            let dump_at = |id: ServerId, dump: fn(Progress) -> Dump| {
                let holder = self.member(id);
                let is_holder = view.primary == Some(holder) || view.secondary() == Some(holder);
                is_holder && dump(self.server(id).stage.progress()) == Dump::Complete
            };
            let primary = dump_at(view.group.home_primary(), |progress| progress.primary);
            let secondary =
                dump_at(view.group.home_secondary(servers), |progress| progress.secondary);
            served && !primary && !secondary
        });
        StopOutcome {
            double_fault: self.double_fault.filter(|_| self.stops_for_double_fault()),
            undrained: named(|s| s.stage.progress().undrained),
            // Servers that never started were killed too, but nothing was asked of them.
            killed: named(|s| {
                matches!(s.stage, Stage::Killed(_) | Stage::Unproven(_)) && s.started.is_some()
            }),
            unproven: named(|s| matches!(s.stage, Stage::Unproven(_)) && !s.exited),
            undumped: undumped.map(|view| view.group).collect(),
        }
    }
}
