//! The health of a cluster, derived from its status, and the reasons for it as one line of text.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::map::ServerState;
use crate::status::{ClusterState, ClusterStatus, GroupCondition, GroupStatus};

/// The maximum number of items of one kind that are listed. The others are only counted.
const MAX_NAMED: usize = 8;

/// The health of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Every group has two copies, and there is no alarm.
    Whole,
    /// Every key is served, but a copy is missing, there is an alarm, or the cluster is starting or stopping.
    #[default]
    Degraded,
    /// Some keys are not served, as far as the coordinator knows: a group is LOST or unreachable, or all its holders
    /// are silent.
    Unserved,
}

impl Health {
    /// Returns the exit status of `coord status`.
    pub fn exit_code(self) -> u8 {
        match self {
            Health::Whole => 0,
            Health::Degraded => 3,
            Health::Unserved => 4,
        }
    }
}

impl ClusterStatus {
    /// Returns the health of the cluster and a line with the reasons, the worst first. The line is empty if the cluster
    /// is whole, or if the only reason is [`ClusterStatus::state`].
    pub fn assess(&self) -> (Health, String) {
        let groups = |is_so: fn(&GroupStatus) -> bool| {
            let groups = self.groups.iter().filter(move |group| is_so(group));
            groups.map(|group: &GroupStatus| group.group)
        };
        let lost = groups(|group| group.condition == GroupCondition::Lost);
        let unreachable = groups(|group| group.condition == GroupCondition::Unreachable);
        let degraded = |group: &GroupStatus| group.condition == GroupCondition::Degraded;
        let unheard = self.groups.iter().filter(|group| degraded(group) && group.copies == 0);
        let alone = self.groups.iter().filter(|group| degraded(group) && group.copies > 0);
        let down = self.servers.iter().filter(|server| server.state == ServerState::Down);
        let (is_unheard, are_unheard) = (": all holders are silent", ": all holders are silent");
        let unserved = [
            counted("group", " is LOST", " are LOST", lost),
            counted("group", " is unreachable", " are unreachable", unreachable),
            counted("group", is_unheard, are_unheard, unheard.map(|group| group.group)),
        ];
        let amiss = [
            counted("server", " is down", " are down", down.map(|server| server.id)),
            counted("group", " has one copy", " have one copy", alone.map(|group| group.group)),
            match self.alarms.len() {
                0 => None,
                1 => Some("1 alarm".to_owned()),
                many => Some(format!("{many} alarms")),
            },
        ];
        let is_unserved = unserved.iter().any(Option::is_some);
        let is_amiss = amiss.iter().any(Option::is_some) || self.state != ClusterState::Serving;
        let why: Vec<String> = unserved.into_iter().chain(amiss).flatten().collect();
        let health = match (is_unserved, is_amiss) {
            (true, _) => Health::Unserved,
            (false, true) => Health::Degraded,
            (false, false) => Health::Whole,
        };
        (health, why.join("; "))
    }
}

/// Lists these items as text, after the name of their kind. Returns `None` if there are none.
fn counted<T: Display>(
    what: &str,
    one: &str,
    many: &str,
    things: impl Iterator<Item = T>,
) -> Option<String> {
    let names: Vec<String> = things.map(|thing| thing.to_string()).collect();
    match names.len() {
        0 => None,
        1 => Some(format!("{what} {}{one}", names[0])),
        count => {
            let shown = names[..count.min(MAX_NAMED)].join(", ");
            let more = count.saturating_sub(MAX_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Some(format!("{what}s {shown}{more}{many}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{AlarmKind, AlarmStatus};

    fn status(state: &str, servers: &[&str], groups: &[&str]) -> ClusterStatus {
        let servers = servers.iter().enumerate().map(|(id, state)| {
            serde_json::json!({"id": id, "host": "localhost", "state": state, "recovery_step": null,
                "incarnation": null, "pid": null, "clients": null, "servers": null, "coord": null,
                "primary_entries": 0, "secondary_entries": 0, "table_bytes": 0, "resident_bytes": 0,
                "client_connections": 0, "requests": 0, "refused": 0, "heartbeat_age_ms": null})
        });
        let groups = groups.iter().enumerate().map(|(group, condition)| {
            serde_json::json!({"group": group, "view": 1, "primary": null, "secondary": null,
                "candidate": null, "condition": condition, "copies": 1, "entries": 0, "bytes": 0})
        });
        let json = serde_json::json!({"cluster": "0000000000000000000000000000feed",
            "epoch": {"number": 1, "boot": "0000000000000001"}, "state": state, "shards": 1,
            "servers": servers.collect::<Vec<_>>(), "groups": groups.collect::<Vec<_>>()});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_worst_group_decides_the_health_and_is_listed_first() {
        for (state, servers, groups, health, why) in [
            ("serving", ["up"; 3], ["whole"; 3], Health::Whole, ""),
            ("starting", ["up"; 3], ["starting"; 3], Health::Degraded, ""),
            ("stopping", ["up"; 3], ["whole"; 3], Health::Degraded, ""),
            (
                "degraded",
                ["up", "down", "up"],
                ["degraded", "degraded", "whole"],
                Health::Degraded,
                "server 1 is down; groups 0, 1 have one copy",
            ),
            (
                "degraded",
                ["down", "down", "up"],
                ["degraded", "lost", "unreachable"],
                Health::Unserved,
                "group 1 is LOST; group 2 is unreachable; servers 0, 1 are down; group 0 has one copy",
            ),
        ] {
            let status = status(state, &servers, &groups);
            assert_eq!(status.assess(), (health, why.to_owned()));
        }
    }

    #[test]
    fn a_group_whose_holders_are_all_silent_is_not_reported_with_a_copy() {
        let mut status = status("degraded", &["down", "down", "up"], &["degraded"; 3]);
        status.groups[0].copies = 0;
        let why =
            "group 0: all holders are silent; servers 0, 1 are down; groups 1, 2 have one copy";
        assert_eq!(status.assess(), (Health::Unserved, why.to_owned()));
    }

    #[test]
    fn an_alarm_alone_makes_the_cluster_degraded() {
        let mut status = status("serving", &["up"], &["whole"]);
        let alarm = AlarmStatus {
            kind: AlarmKind::StateNotStored,
            server: None,
            group: None,
            text: "x".into(),
            age_ms: 1,
        };
        status.alarms = vec![alarm.clone()];
        assert_eq!(status.assess(), (Health::Degraded, "1 alarm".into()));
        status.alarms.push(alarm);
        assert_eq!(status.assess().1, "2 alarms");
    }

    #[test]
    fn a_long_list_is_cut_and_its_rest_is_counted() {
        let status = status("degraded", &["up"], &["degraded"; 20]);
        assert_eq!(status.assess().1, "groups 0, 1, 2, 3, 4, 5, 6, 7 and 12 more have one copy");
    }
}
