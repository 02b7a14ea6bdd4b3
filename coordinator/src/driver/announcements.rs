//! Messages to the log, to the terminal, and to the callers that wait for the end of a stop.

use kv_core::cluster::{
    DUMP_ADVICE, DownCause, Effect, LeaveReason, NO_PROGRESS, StopPhase, StopWait,
};
use kv_protocol::cluster_file::ServerLine;
use kv_protocol::control_message::Started;
use kv_protocol::{GroupId, Member, Peer, ServerId, View};

use super::context::Driver;
use crate::printable::printable;
use crate::{clock, progress};

impl Driver {
    /// Reports an effect. An effect without a message for operators is only logged, at level debug.
    pub(super) fn announce(&self, effect: Effect) {
        match effect {
            Effect::ViewChanged { before, view } => self.tell_view(&before, &view),
            Effect::Recovery { server, step } => {
                self.tell_step(server, step);
                self.recovering.notify_one();
            }
            Effect::KeepsFailing { server } => self.console.warn(&format!(
                "server {server} could not be replaced three times in a row; attempts continue, at most 10 s \
                 apart; see its log"
            )),
            Effect::CannotFollow { server, group, reason } => self.console.warn(&format!(
                "removed server {server} as secondary of group {group}: {reason}; the server becomes a candidate \
                 again after a back-off; check its log, and the memory of its host"
            )),
            Effect::Unanswered { group } => self.console.warn(&format!(
                "the two holders of group {group} receive nothing from each other, and neither responds to \
                 the coordinator's probe; the views stay as they are; check the network between the hosts"
            )),
            Effect::DoubleFault { first, second } => self.console.warn(&format!(
                "server {second} failed before server {first} was replaced: a second fault"
            )),
            Effect::Down { member, cause } => self.tell_down(member, cause),
            Effect::Back { member } => {
                self.console.say(&format!("server {} is up again", member.server));
            }
            Effect::OrderFailed { member, order, reason, again } => {
                self.tell_failed(member, order, &reason, again);
            }
            Effect::StopWaits { member, why } => self.tell_wait(member, why),
            Effect::GivenUp { member, group, is_dumped } => {
                self.tell_given_up(member, group, is_dumped);
            }
            Effect::Leaving { member, why } => {
                let id = member.server;
                let why = match why {
                    LeaveReason::StopSignal => "received a stop signal",
                    LeaveReason::Replaced => "is being replaced",
                };
                self.console.say(&format!(
                    "server {id} {why}: its groups are handed over to the other servers first"
                ));
            }
            Effect::AllLeave => self.console.say(
                "every server with data received a stop signal, or has dumped and exited: stopping the \
                 cluster",
            ),
            Effect::Stopping(phase) => {
                self.tell_phase(phase);
                self.recovering.notify_one();
            }
            other => tracing::debug!("{other:?}"),
        }
    }

    /// Reports a message about a stop: on the terminal, in the log, and to the callers that wait for the end of the
    /// stop.
    pub(super) fn say(&self, text: &str) {
        self.console.say(text);
        self.callers.say(text);
    }

    /// Reports a warning to the same destinations as [`Driver::say`].
    pub(super) fn warn(&self, text: &str) {
        self.console.warn(text);
        self.callers.say(text);
    }

    /// Reports a failed order. A failure that repeats for the same reason is reported at intervals, but logged each
    /// time.
    fn tell_failed(&self, member: Member, order: &'static str, reason: &str, again: bool) {
        if !self.told_orders.is_due((member.server, order), reason, clock::now()) {
            let (id, reason) = (member.server, printable(reason));
            return tracing::warn!("server {id} still cannot carry out {order}: {reason}");
        }
        let (id, reason) = (member.server, printable(reason));
        let advice = if again { format!("; {DUMP_ADVICE}") } else { String::new() };
        self.warn(&format!("server {id} could not carry out {order}: {reason}{advice}"));
    }

    fn tell_wait(&self, member: Member, why: StopWait) {
        let id = member.server;
        self.warn(&match why {
            StopWait::Silent(group) => format!(
                "the stop waits for server {id}, which is silent and may hold the only copy of group \
                 {group}; coord stop --force, or Ctrl+C again, kills it"
            ),
            StopWait::NoProgress => format!(
                "the stop waits for server {id}, which reports but has written nothing to its dumps for {} s; \
                 check the disk of its host",
                NO_PROGRESS.as_secs()
            ),
        });
    }

    fn tell_given_up(&self, member: Member, group: GroupId, is_dumped: bool) {
        let elsewhere = match is_dumped {
            true => "another server has dumped the group",
            false => "no other complete dump of the group exists so far",
        };
        let id = member.server;
        self.warn(&format!("the copy of group {group} at server {id} is abandoned; {elsewhere}"));
    }

    /// Warns about a store of the state that fails, takes long, or may fail next time. A warning with the same reason
    /// is repeated only at intervals.
    pub(super) fn warn_of_store(&self, reason: &str, words: &str) {
        if self.told_stores.is_due((), reason, clock::now()) {
            self.console.warn(&format!("storing the state: {words}"));
        }
    }

    fn tell_view(&self, before: &View, view: &View) {
        let name = |member: Option<Member>| {
            member.map_or("no primary".to_owned(), |member| format!("server {}", member.server))
        };
        let other = match view.peer {
            Peer::None => "alone".to_owned(),
            Peer::Secondary(member) => format!("with secondary {}", member.server),
            Peer::Candidate(member) => format!("copying to {}", member.server),
        };
        tracing::info!(
            "group {}: view {} -> {}: {} {other}{}",
            view.group,
            before.version,
            view.version,
            name(view.primary),
            if view.handover { ", by hand-over" } else { "" }
        );
        if view.primary.is_none() {
            let cluster = self.cluster();
            let last = cluster.durable().holders(view.group);
            let last: Vec<String> =
                last.map(|member| format!("server {}", member.server)).collect();
            self.console.warn(&format!(
                "group {} is LOST: no holder is left, and requests for its keys get LOST. A restore can use \
                 only a complete dump of {}",
                view.group,
                last.join(" or ")
            ));
        }
    }

    fn tell_step(&self, server: ServerId, step: Option<u8>) {
        let Some(step) = step else {
            self.console.say(&format!(
                "server {server} is back: its groups have two copies again, on their home servers"
            ));
            return;
        };
        let what = progress::step_words(step);
        self.console.say(&format!("server {server}, step {step}: {what}"));
    }

    fn tell_down(&self, member: Member, cause: DownCause) {
        if self.failure.borrow().is_some() {
            // The failure is reported with its reason when the coordinator ends.
            return;
        }
        let id = member.server;
        let how = match cause {
            DownCause::Silent => "no heartbeat arrived in time".to_owned(),
            DownCause::LinkLost => "its connection to the coordinator ended".to_owned(),
            DownCause::Exited => match self.processes.exit(id) {
                Some(exit) => exit.with_last_words(),
                None => "its process has ended".to_owned(),
            },
        };
        let was_started = self.cluster().started(id).is_some();
        // Every attempt to start the server fails while its host is down, which may take hours.
        if cause == DownCause::Exited
            && !was_started
            && !self.told_starts.is_due(id, &how, clock::now())
        {
            return tracing::debug!("server {id} is down: {how}");
        }
        self.console.warn(&format!("server {id} is down: {how}"));
    }

    fn tell_phase(&self, phase: StopPhase) {
        if self.failure.borrow().is_some() {
            return;
        }
        self.say(match phase {
            StopPhase::Drain => "stop, 1 of 3: no new writes, waiting for the pending ones (DRAIN)",
            StopPhase::Dump => "stop, 2 of 3: every server writes its tables to its dumps",
            StopPhase::Shutdown => "stop, 3 of 3: every server exits (SHUTDOWN)",
        });
    }

    pub(super) fn tell_spawned(&self, line: &ServerLine, pid: Option<u32>) {
        let pid = pid.map_or_else(|| "?".into(), |pid| pid.to_string());
        tracing::info!("server {} started on {}, pid {pid}", line.id, line.host);
    }

    /// Logs that a server has reported its start.
    pub(super) fn note_started(&self, started: &Started) {
        tracing::info!(
            "server {} reports: pid {}, address {}, ports {} (clients), {} (servers), {} (coordinator)",
            started.member.server,
            started.pid,
            started.address,
            started.clients_port,
            started.servers_port,
            started.coord_port
        );
    }
}
