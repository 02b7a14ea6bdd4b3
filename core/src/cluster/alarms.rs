//! What a person should look at, and since when: kept until it is over.
//!
//! | alarm | begins | ends |
//! |---|---|---|
//! | LOST | a group has no holder | never by itself |
//! | UNREACHABLE | the only holder of a group is silent | it is heard, or proven dead |
//! | kept though silent | the other holder of a group hears a server that is silent here | it is heard here, or dead |
//! | unanswered | the two holders of a group do not hear each other, and neither answers here | they do |
//! | keeps failing | a place could not be filled three times in a row | its recovery is over |
//! | stuck | a part of a server is stuck that is the only holder of a group | it goes on, or the server is dead |
//! | state not stored | the coordinator's memory cannot be stored | it is stored, or there is nothing to store |
//! | state at risk | it was stored, and the next store may fail | the next store finds nothing wrong |
//! | cannot follow | a secondary was removed because it did not keep up | its recovery is over |
//! | crowded | an address has so many connections of a server that others wait for room | it has not for 10 s |
//! | order failed | a server could not do what it was ordered to | it could, or all is home again |
//! | stop waits | an orderly stop waits for a server that is silent, or writes nothing | it goes on, or has ended |
//!
//! Nothing is decided by it. The list is bounded: there is at most one alarm of a kind for each server
//! or group, and of failed orders one for each name of an order.

use std::fmt;

use kv_protocol::control_message::{CrowdReport, Following, Heartbeat};
use kv_protocol::status::{AlarmKind, AlarmStatus, GroupCondition};
use kv_protocol::{GroupId, ServerId, Time};

use super::{Cluster, NO_PROGRESS, STORE_AGAIN, StopWait};

/// What to do about a dump that fails.
pub const DUMP_ADVICE: &str = "its data stays in memory and the dump is tried again; free space or raise the \
                               limit there, or use coord stop --dump-dir DIR; coord stop --force gives it up";

/// Characters of a server's own words that are kept.
const MAX_WORDS: usize = 200;
/// Characters of the reasons why a state is not stored that are kept: they have a path in them.
const MAX_REASON: usize = 600;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Lost(GroupId),
    Unreachable(GroupId),
    KeptThoughSilent(ServerId),
    Unanswered(GroupId),
    KeepsFailing(ServerId),
    Stuck(ServerId),
    StateNotStored { reason: String },
    StateAtRisk { reason: String },
    CannotFollow { server: ServerId, group: GroupId, reason: Following },
    Crowded { server: ServerId, crowd: CrowdReport },
    OrderFailed { server: ServerId, order: &'static str, reason: String },
    StopWaits(ServerId, StopWait),
}

/// All that is wrong, each with its beginning.
#[derive(Default)]
pub(super) struct Alarms {
    raised: Vec<(Time, Alarm)>,
}

/// As for the history: a description of a cluster is of what it will do.
impl fmt::Debug for Alarms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alarms")
    }
}

impl Alarm {
    /// Whether the other one is the same alarm, perhaps in newer words.
    fn is_same(&self, other: &Alarm) -> bool {
        match (self, other) {
            (
                Alarm::OrderFailed { server, order, .. },
                Alarm::OrderFailed { server: other_server, order: other_order, .. },
            ) => server == other_server && order == other_order,
            (Alarm::StateNotStored { .. }, Alarm::StateNotStored { .. })
            | (Alarm::StateAtRisk { .. }, Alarm::StateAtRisk { .. }) => true,
            (
                Alarm::CannotFollow { server, group, .. },
                Alarm::CannotFollow { server: other_server, group: other_group, .. },
            ) => server == other_server && group == other_group,
            (Alarm::StopWaits(server, _), Alarm::StopWaits(other, _)) => server == other,
            (Alarm::Crowded { server, .. }, Alarm::Crowded { server: other_server, .. }) => {
                server == other_server
            }
            _ => self == other,
        }
    }

    fn status(&self, age_ms: u64) -> AlarmStatus {
        let of = |kind, server, group, text| AlarmStatus { kind, server, group, text, age_ms };
        match self {
            Alarm::Lost(group) => {
                let text = format!("group {group} is LOST: no holder is left");
                of(AlarmKind::Lost, None, Some(*group), text)
            }
            Alarm::Unreachable(group) => {
                let text = format!(
                    "group {group} is UNREACHABLE: its only holder is silent, or has left in order; \
                     a complete dump of it comes back by a stop and a restore"
                );
                of(AlarmKind::Unreachable, None, Some(*group), text)
            }
            Alarm::KeptThoughSilent(server) => {
                let text = format!(
                    "server {server} is silent here, but the other holders of its groups hear it: \
                     it is kept; check the network between it and the coordinator"
                );
                of(AlarmKind::KeptThoughSilent, Some(*server), None, text)
            }
            Alarm::Unanswered(group) => {
                let text = format!(
                    "the two holders of group {group} do not hear each other, and neither answers \
                     here; check the network between the hosts"
                );
                of(AlarmKind::Unanswered, None, Some(*group), text)
            }
            Alarm::KeepsFailing(server) => {
                let text = format!(
                    "server {server} could not be replaced three times in a row; it is tried on; \
                     see its log"
                );
                of(AlarmKind::KeepsFailing, Some(*server), None, text)
            }
            Alarm::Stuck(server) => {
                let text = format!(
                    "a part of server {server} is stuck; it lives on, because it is the only holder of \
                     a group; see its log, and whether its machine is short of memory or processors"
                );
                of(AlarmKind::Stuck, Some(*server), None, text)
            }
            Alarm::StateNotStored { reason } => {
                let text = format!(
                    "the coordinator cannot store its state, so nobody is replaced and no group changes \
                     its holders: {reason}; it tries again every {} ms",
                    STORE_AGAIN.as_millis()
                );
                of(AlarmKind::StateNotStored, None, None, text)
            }
            Alarm::StateAtRisk { reason } => {
                let text = format!("the next store of the coordinator's state may fail: {reason}");
                of(AlarmKind::StateAtRisk, None, None, text)
            }
            Alarm::CannotFollow { server, group, reason } => {
                let text = format!(
                    "server {server} was removed as secondary of group {group}: {reason}; it is tried again \
                     after a pause; check the memory of its host, and its log"
                );
                of(AlarmKind::CannotFollow, Some(*server), Some(*group), text)
            }
            Alarm::Crowded { server, crowd } => {
                let text = format!(
                    "server {server} has as many client connections as it may: {} has {} of them; {} idle ones \
                     were closed since its start, to make room for others; check that address for connections \
                     that are never closed",
                    crowd.address, crowd.connections, crowd.closed
                );
                of(AlarmKind::Crowded, Some(*server), None, text)
            }
            Alarm::OrderFailed { server, order, reason } => {
                let mut text = format!("server {server} could not carry out {order}: {reason}");
                if order.starts_with("DUMP") {
                    text += &format!("; {DUMP_ADVICE}");
                }
                of(AlarmKind::OrderFailed, Some(*server), None, text)
            }
            Alarm::StopWaits(server, StopWait::Silent(group)) => {
                let text = format!(
                    "the stop waits for server {server}, which is silent and may hold the only copy of \
                     group {group}; let it go on, or end the stop without it: coord stop --force"
                );
                of(AlarmKind::StopWaits, Some(*server), Some(*group), text)
            }
            Alarm::StopWaits(server, StopWait::NoProgress) => {
                let text = format!(
                    "server {server} has written nothing to its dumps for {} s; it is waited for; look at \
                     the disk of its host",
                    NO_PROGRESS.as_secs()
                );
                of(AlarmKind::StopWaits, Some(*server), None, text)
            }
        }
    }
}

impl Alarms {
    /// Begins an alarm, unless it lasts already; its newest words count.
    pub(super) fn raise(&mut self, now: Time, alarm: Alarm) {
        match self.raised.iter_mut().find(|(_, known)| known.is_same(&alarm)) {
            Some((_, known)) => *known = alarm,
            None => self.raised.push((now, alarm)),
        }
    }

    /// A server could not carry out an order. Its words are cut: they are as long as it likes.
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

    /// A server has carried out an order.
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
    /// Begins what follows from the state alone, and ends what is over.
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
        // During an orderly stop servers leave their groups, as they should.
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
        }
        self.alarms = alarms;
    }

    /// Whether a server has said last that a part of it is stuck.
    fn is_stuck(&self, id: ServerId) -> bool {
        let server = self.server(id);
        let said = server.heartbeat.as_ref().filter(|_| !server.exited);
        said.is_some_and(|(_, heartbeat)| heartbeat.stood_ms > 0)
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
            Alarm::KeepsFailing(server) | Alarm::CannotFollow { server, .. } => {
                self.recovery_step(*server).is_some()
            }
            Alarm::StopWaits(server, _) => self.server(*server).stage.told().is_some(),
            Alarm::OrderFailed { .. } => !self.is_settled() || !self.recovers(),
        }
    }
}
