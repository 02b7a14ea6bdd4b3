//! Alarms: conditions that need an operator's attention, each kept with its start time until it ends.
//!
//! | alarm | begins | ends |
//! |---|---|---|
//! | LOST | a group has no holder | never while the cluster runs |
//! | UNREACHABLE | the only holder of a group is silent | it reports, or is proven dead |
//! | kept though silent | a server is silent to the coordinator only: it keeps its groups | it reports, or is dead |
//! | unanswered | a holder of a group reports a complaint, and neither responds to a probe | the complaint ends |
//! | keeps failing | a place could not be filled three times in a row | its recovery is over |
//! | stuck | a thread of a server that is the only holder of a group is hung | it continues, or the server is dead |
//! | state not stored | the coordinator's state cannot be stored | the state is stored, or there is nothing to store |
//! | state at risk | the state was stored, but the next store may fail | the next store finds no problem |
//! | cannot follow | a secondary was removed because it did not keep up | its recovery is over |
//! | out of space | a server rejects writes because its tables are full | it has rejected none for 10 s |
//! | cannot report | a server accepts orders, but its heartbeats do not arrive | one arrives, or the server is dead |
//! | host unreachable | a process must be killed or watched, and its host does not respond | the host responds |
//! | crowded | an address has so many connections to a server that others wait for room | not observed for 10 s |
//! | order failed | a server could not carry out an order | the order is done, or every group is home again |
//! | stop waits | a stop waits for a server that is silent or writes nothing | the server continues, or has ended |
//!
//! No decision depends on alarms. The list is bounded: there is at most one alarm of a kind for each server or
//! group. For failed orders there is one for each kind of order.

use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use kv_protocol::control_message::{CrowdReport, Following, Heartbeat};
use kv_protocol::status::{AlarmKind, AlarmStatus, GroupCondition};
use kv_protocol::{GroupId, ServerId, Time};

use super::{Cluster, NO_PROGRESS, STORE_AGAIN, StopWait};

/// The advice in messages about a dump that has failed.
pub const DUMP_ADVICE: &str = "its data stays in memory and the dump is tried again; free space or raise the \
                               limit there, or use coord stop --dump-dir DIR; coord stop --force abandons the dump";

/// The time without rejected writes after which a server is no longer out of space.
const OUT_OF_SPACE_LASTS: Duration = Duration::from_secs(10);
/// The time within which a server that accepts orders should have sent a heartbeat.
const CANNOT_REPORT_AFTER: Duration = Duration::from_secs(3);
/// The maximum number of characters kept of a message from a server.
const MAX_WORDS: usize = 200;
/// The maximum number of characters kept of the reason why the state is not stored. It is larger because the reason
/// contains a path.
const MAX_REASON: usize = 600;

/// A condition that needs an operator's attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Lost(GroupId),
    Unreachable(GroupId),
    KeptThoughSilent(ServerId),
    Unanswered(GroupId),
    KeepsFailing { server: ServerId, reason: Option<String> },
    HostUnreachable { server: ServerId, reason: String, is_silent: bool },
    CannotReport(ServerId),
    OutOfSpace { server: ServerId, refused: u64, used: u64, limit: u64 },
    Stuck(ServerId),
    StateNotStored { reason: String },
    StateAtRisk { reason: String },
    CannotFollow { server: ServerId, group: GroupId, reason: Following },
    Crowded { server: ServerId, crowd: CrowdReport },
    OrderFailed { server: ServerId, order: &'static str, reason: String },
    StopWaits(ServerId, StopWait),
}

/// All current alarms, each with its start time.
#[derive(Default)]
pub(super) struct Alarms {
    raised: Vec<(Time, Alarm)>,
}

/// Alarms affect no decision, so the `Debug` output of a cluster omits them.
impl fmt::Debug for Alarms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alarms")
    }
}

impl Alarm {
    /// Returns the identity of the alarm. Two alarms with equal identities are the same alarm; only the text may be
    /// newer.
    fn name(&self) -> (Discriminant<Alarm>, Option<ServerId>, Option<GroupId>, &'static str) {
        let (server, group, order) = match self {
            Alarm::StateNotStored { .. } | Alarm::StateAtRisk { .. } => (None, None, ""),
            Alarm::Lost(group) | Alarm::Unreachable(group) | Alarm::Unanswered(group) => {
                (None, Some(*group), "")
            }
            Alarm::KeptThoughSilent(server)
            | Alarm::KeepsFailing { server, .. }
            | Alarm::HostUnreachable { server, .. }
            | Alarm::CannotReport(server)
            | Alarm::OutOfSpace { server, .. }
            | Alarm::Stuck(server)
            | Alarm::Crowded { server, .. }
            | Alarm::StopWaits(server, _) => (Some(*server), None, ""),
            Alarm::CannotFollow { server, group, .. } => (Some(*server), Some(*group), ""),
            Alarm::OrderFailed { server, order, .. } => (Some(*server), None, *order),
        };
        (discriminant(self), server, group, order)
    }

    fn status(&self, age_ms: u64) -> AlarmStatus {
        let of = |kind, server, group, text| AlarmStatus { kind, server, group, text, age_ms };
        match self {
            Alarm::Lost(group) => {
                let text = format!(
                    "group {group} is LOST: no holder is left, and requests for its keys get LOST; other keys are \
                     served; to get its keys back, stop the cluster and restore dumps that contain them"
                );
                of(AlarmKind::Lost, None, Some(*group), text)
            }
            Alarm::Unreachable(group) => {
                let text = format!(
                    "group {group} is UNREACHABLE: its only holder is silent, or has dumped and exited; bring its \
                     host and the network back; if it has exited, stop the cluster and restore its complete dump"
                );
                of(AlarmKind::Unreachable, None, Some(*group), text)
            }
            Alarm::KeptThoughSilent(server) => {
                let text = format!(
                    "the coordinator receives nothing from server {server}, but the other holders of its groups do, so \
                     it keeps its groups; check the network between its host and the coordinator"
                );
                of(AlarmKind::KeptThoughSilent, Some(*server), None, text)
            }
            Alarm::Unanswered(group) => {
                let text = format!(
                    "the two holders of group {group} receive nothing from each other, and neither responds to the \
                     coordinator's probe; check the network between the hosts"
                );
                of(AlarmKind::Unanswered, None, Some(*group), text)
            }
            Alarm::KeepsFailing { server, reason } => {
                let reason = reason.as_deref().map(|words| format!(": {words}"));
                let text = format!(
                    "server {server} could not be replaced three times in a row{}; attempts continue; \
                     see its log, or give its place to another host: {}",
                    reason.unwrap_or_default(),
                    replace_command(*server)
                );
                of(AlarmKind::KeepsFailing, Some(*server), None, text)
            }
            Alarm::HostUnreachable { server, reason, is_silent: true } => {
                let text = format!(
                    "server {server} is silent, and its host does not report whether its process has ended: \
                     {reason}; keys with another copy are served from it; bring the host back, or give its place \
                     to another one: {}",
                    replace_command(*server)
                );
                of(AlarmKind::HostUnreachable, Some(*server), None, text)
            }
            Alarm::HostUnreachable { server, reason, is_silent: false } => {
                let text = format!(
                    "server {server} serves, but its host does not report the state of its process: {reason}; if the \
                     server fails, it cannot be replaced there; check ssh to that host"
                );
                of(AlarmKind::HostUnreachable, Some(*server), None, text)
            }
            Alarm::CannotReport(server) => {
                let text = format!(
                    "server {server} accepts this coordinator's orders, but its heartbeats do not arrive; check \
                     --advertise, and that its host can connect to the coordinator's servers port"
                );
                of(AlarmKind::CannotReport, Some(*server), None, text)
            }
            Alarm::OutOfSpace { server, refused, used, limit } => {
                let (why, advice) = match limit {
                    0 => (
                        "its machine has no memory left".to_owned(),
                        "; delete entries, or give its place to a larger host",
                    ),
                    limit => (
                        format!(
                            "its tables are full: {} of a limit of {} are used",
                            mib(*used),
                            mib(*limit)
                        ),
                        "; delete entries, or raise the limit: coord set --memory-limit SIZE",
                    ),
                };
                let text = format!(
                    "server {server} rejects writes: {why} ({refused} writes rejected since its start){advice}"
                );
                of(AlarmKind::OutOfSpace, Some(*server), None, text)
            }
            Alarm::Stuck(server) => {
                let text = format!(
                    "a thread of server {server} is hung; the server is not restarted, because it is the only holder \
                     of a group; see its log, and check the memory and processor load of its machine"
                );
                of(AlarmKind::Stuck, Some(*server), None, text)
            }
            Alarm::StateNotStored { reason } => {
                let text = format!(
                    "the coordinator cannot store its state, so no server is replaced and no group changes \
                     its holders: {reason}; fix the cause; the store is retried every {} ms",
                    STORE_AGAIN.as_millis()
                );
                of(AlarmKind::StateNotStored, None, None, text)
            }
            Alarm::StateAtRisk { reason } => {
                let text = format!(
                    "the next store of the coordinator's state may fail, and without it no server is replaced: \
                     {reason}; fix the cause now"
                );
                of(AlarmKind::StateAtRisk, None, None, text)
            }
            Alarm::CannotFollow { server, group, reason } => {
                let text = format!(
                    "server {server} was removed as secondary of group {group}: {reason}; it becomes a candidate \
                     again after a back-off; check the memory of its host, and its log"
                );
                of(AlarmKind::CannotFollow, Some(*server), Some(*group), text)
            }
            Alarm::Crowded { server, crowd } => {
                let text = format!(
                    "server {server} has reached its limit of client connections: {} has {} of them; {} idle ones \
                     were closed since its start to make room for others; check that address for connections \
                     that are never closed",
                    crowd.address, crowd.connections, crowd.closed
                );
                of(AlarmKind::Crowded, Some(*server), None, text)
            }
            Alarm::OrderFailed { server, order, reason } => {
                let advice = match order.starts_with("DUMP") {
                    true => DUMP_ADVICE.to_owned(),
                    false => format!(
                        "check its log; if the alarm persists, replace the process: coord replace {server}"
                    ),
                };
                let text =
                    format!("server {server} could not carry out {order}: {reason}; {advice}");
                of(AlarmKind::OrderFailed, Some(*server), None, text)
            }
            Alarm::StopWaits(server, StopWait::Silent(group)) => {
                let text = format!(
                    "the stop waits for server {server}, which is silent and may hold the only copy of \
                     group {group}; bring it back, or end the stop without it: coord stop --force"
                );
                of(AlarmKind::StopWaits, Some(*server), Some(*group), text)
            }
            Alarm::StopWaits(server, StopWait::NoProgress) => {
                let text = format!(
                    "server {server} has written nothing to its dumps for {} s; the stop waits for it; check \
                     the disk of its host",
                    NO_PROGRESS.as_secs()
                );
                of(AlarmKind::StopWaits, Some(*server), None, text)
            }
        }
    }
}

fn replace_command(server: ServerId) -> String {
    format!("coord replace {server} HOST")
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

impl Alarms {
    /// Raises an alarm, or updates the text of one that is raised already.
    pub(super) fn raise(&mut self, now: Time, alarm: Alarm) {
        match self.raised.iter_mut().find(|(_, known)| known.name() == alarm.name()) {
            Some((_, known)) => *known = alarm,
            None => self.raised.push((now, alarm)),
        }
    }

    /// Raises the alarm for an order that a server could not carry out. The server's message is truncated, because its
    /// length is not bounded.
    pub(super) fn order_failed(
        &mut self,
        now: Time,
        server: ServerId,
        order: &'static str,
        reason: &str,
    ) {
        let reason = reason.chars().take(MAX_WORDS).collect();
        self.raise(now, Alarm::OrderFailed { server, order, reason });
    }

    /// Ends the alarm for an order that a server has carried out.
    pub(super) fn order_done(&mut self, server: ServerId, name: &'static str) {
        self.raised.retain(|(_, alarm)| {
            !matches!(alarm, Alarm::OrderFailed { server: of, order, .. } if *of == server && *order == name)
        });
    }

    pub(super) fn status(&self, now: Time) -> Vec<AlarmStatus> {
        let age = |began: Time| u64::try_from(now.since(began).as_millis()).unwrap_or(u64::MAX);
        self.raised.iter().map(|(began, alarm)| alarm.status(age(*began))).collect()
    }
}

impl Cluster {
    /// Raises the alarms that follow from the state alone, and ends those whose condition is over.
    pub(super) fn renew_alarms(&mut self) {
        let now = self.now;
        let mut alarms = std::mem::take(&mut self.alarms);
        alarms.raised.retain(|(_, alarm)| self.lasts(alarm));
        for server in (0..self.count()).map(ServerId).filter(|id| self.is_stuck(*id)) {
            alarms.raise(now, Alarm::Stuck(server));
        }
        let words = |reason: &str| reason.chars().take(MAX_REASON).collect();
        if let Some(reason) = self.memory.trouble() {
            alarms.raise(now, Alarm::StateNotStored { reason: words(reason) });
        }
        if let Some(reason) = &self.store_risk {
            alarms.raise(now, Alarm::StateAtRisk { reason: words(reason) });
        }
        // During an orderly stop servers leave their groups as intended, which is no reason for alarms.
        if self.recovers() {
            for view in self.views() {
                match self.condition(view) {
                    GroupCondition::Lost => alarms.raise(now, Alarm::Lost(view.group)),
                    GroupCondition::Unreachable => {
                        alarms.raise(now, Alarm::Unreachable(view.group));
                    }
                    _ => {}
                }
            }
        }
        for server in &self.servers {
            if let Some(why) = server.stage.told() {
                alarms.raise(now, Alarm::StopWaits(server.member.server, why));
            }
            if let Some((_, Heartbeat { crowd: Some(crowd), .. })) = &server.heartbeat {
                alarms.raise(now, Alarm::Crowded { server: server.member.server, crowd: *crowd });
            }
            let id = server.member.server;
            if let Some(reason) = self.unreachable_host(id) {
                let (reason, is_silent) = (words(reason), server.suspected.is_some());
                alarms.raise(now, Alarm::HostUnreachable { server: id, reason, is_silent });
            }
            if self.cannot_report(id) {
                alarms.raise(now, Alarm::CannotReport(id));
            }
            if let Some((refused, heartbeat)) = self.out_of_space(id) {
                let used = heartbeat
                    .replicas
                    .iter()
                    .fold(0, |sum: u64, r| sum.saturating_add(r.used_bytes));
                let limit = heartbeat.memory_limit;
                alarms.raise(now, Alarm::OutOfSpace { server: id, refused, used, limit });
            }
        }
        self.alarms = alarms;
    }

    /// Returns whether the last heartbeat of a server reports a hung thread.
    fn is_stuck(&self, id: ServerId) -> bool {
        let server = self.server(id);
        let said = server.heartbeat.as_ref().filter(|_| !server.exited);
        said.is_some_and(|(_, heartbeat)| heartbeat.stood_ms > 0)
    }

    /// Returns the reason why it is unknown whether the process of a server has ended.
    fn unreachable_host(&self, id: ServerId) -> Option<&str> {
        let server = self.server(id);
        server.signs.unreachable.as_deref().filter(|_| !server.exited)
    }

    /// Returns whether a server has accepted orders for [`CANNOT_REPORT_AFTER`] without a heartbeat.
    fn cannot_report(&self, id: ServerId) -> bool {
        let server = self.server(id);
        let since = server.signs.orders_since.filter(|_| server.link.is_none() && !server.exited);
        since.is_some_and(|since| self.now.since(since) >= CANNOT_REPORT_AFTER)
    }

    /// Returns the number of writes that a server has rejected for lack of space, and its last heartbeat. Returns
    /// `None` if it rejected none recently.
    fn out_of_space(&self, id: ServerId) -> Option<(u64, &Heartbeat)> {
        let server = self.server(id);
        let (_, heartbeat) = server.heartbeat.as_ref().filter(|_| !server.exited)?;
        let at = server.signs.refused_at?;
        (self.now.since(at) < OUT_OF_SPACE_LASTS).then_some((heartbeat.out_of_space, heartbeat))
    }

    fn lasts(&self, alarm: &Alarm) -> bool {
        let condition = |group: GroupId| self.condition(&self.views()[usize::from(group.0)]);
        match alarm {
            Alarm::Lost(group) => condition(*group) == GroupCondition::Lost,
            Alarm::Unreachable(group) => {
                self.recovers() && condition(*group) == GroupCondition::Unreachable
            }
            Alarm::KeptThoughSilent(server) => {
                let server = self.server(*server);
                server.suspected.is_some() && !server.exited && self.recovers()
            }
            Alarm::Unanswered(group) => {
                self.is_complained_of(&self.views()[usize::from(group.0)]) && self.recovers()
            }
            Alarm::Stuck(server) => self.is_stuck(*server),
            Alarm::StateNotStored { .. } => self.memory.trouble().is_some(),
            Alarm::StateAtRisk { .. } => self.store_risk.is_some(),
            Alarm::Crowded { server, .. } => {
                let heartbeat = self.server(*server).heartbeat.as_ref();
                heartbeat.is_some_and(|(_, heartbeat)| heartbeat.crowd.is_some())
            }
            Alarm::KeepsFailing { server, .. } | Alarm::CannotFollow { server, .. } => {
                self.recovery_step(*server).is_some()
            }
            Alarm::HostUnreachable { server, .. } => self.unreachable_host(*server).is_some(),
            Alarm::CannotReport(server) => self.cannot_report(*server),
            Alarm::OutOfSpace { server, .. } => self.out_of_space(*server).is_some(),
            Alarm::StopWaits(server, _) => self.server(*server).stage.told().is_some(),
            Alarm::OrderFailed { .. } => !self.is_settled() || !self.recovers(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The first words of the advice in alarms.
    const ADVICE: [&str; 7] = ["bring", "check", "delete", "fix", "free", "see", "stop"];

    /// Returns an alarm of each kind and of each wording.
    fn all() -> Vec<Alarm> {
        let (server, group) = (ServerId(1), GroupId(2));
        let reason = || "the disk is full".to_owned();
        let crowd = CrowdReport { address: Ipv4Addr::LOCALHOST.into(), connections: 9, closed: 7 };
        vec![
            Alarm::Lost(group),
            Alarm::Unreachable(group),
            Alarm::KeptThoughSilent(server),
            Alarm::Unanswered(group),
            Alarm::KeepsFailing { server, reason: Some(reason()) },
            Alarm::CannotFollow { server, group, reason: Following::NoProgress },
            Alarm::OrderFailed { server, order: "DUMP-PRIMARY", reason: reason() },
            Alarm::OrderFailed { server, order: "SET-SECONDARY", reason: reason() },
            Alarm::Crowded { server, crowd },
            Alarm::StateNotStored { reason: reason() },
            Alarm::StateAtRisk { reason: reason() },
            Alarm::Stuck(server),
            Alarm::StopWaits(server, StopWait::Silent(group)),
            Alarm::StopWaits(server, StopWait::NoProgress),
            Alarm::HostUnreachable { server, reason: reason(), is_silent: true },
            Alarm::HostUnreachable { server, reason: reason(), is_silent: false },
            Alarm::CannotReport(server),
            Alarm::OutOfSpace { server, refused: 3, used: 4, limit: 5 },
        ]
    }

    #[test]
    fn every_alarm_has_advice_and_an_age() {
        let mut kinds = Vec::new();
        for alarm in all() {
            let status = alarm.status(12);
            let mut clauses = status.text.split(['.', ';', ':', ',']).map(str::trim_start);
            let says = clauses.any(|clause| ADVICE.iter().any(|verb| clause.starts_with(verb)));
            assert!(says, "no advice: {}", status.text);
            assert_eq!(status.age_ms, 12);
            kinds.push(status.kind);
        }
        kinds.dedup();
        assert_eq!(kinds, AlarmKind::ALL);
    }
}
