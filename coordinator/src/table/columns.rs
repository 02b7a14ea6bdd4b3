//! The columns of the tables of servers, groups and recoveries.

use kv_protocol::ids::{Member, ServerId};
use kv_protocol::map::ServerState;
use kv_protocol::status::{GroupCondition, GroupStatus, RecoveryStatus, ServerStatus};

use super::grid::Grid;
use crate::printable::printable;
use crate::units::{age, bytes, percent, took};

/// The number of recoveries shown, the newest ones; `--json` has all.
const SHOWN_RECOVERIES: usize = 8;
/// The number of steps of a recovery, 0 to 5.
const STEPS: usize = 6;

/// Returns the table of the servers.
pub(super) fn servers(servers: &[ServerStatus]) -> Grid {
    let columns = vec![
        ("server", 9),
        ("host", 3),
        ("state", 9),
        ("clients at", 4),
        ("pid", 7),
        ("primary", 6),
        ("secondary", 6),
        ("tables", 4),
        ("in use", 3),
        ("limit", 4),
        ("memory", 5),
        ("clients", 1),
        ("requests", 2),
        ("evicted", 1),
        ("expired", 1),
        ("gap", 3),
        ("heard", 8),
    ];
    let row = |server: &ServerStatus| {
        let text = |text: &Option<String>| text.as_deref().map_or("-".into(), printable);
        // The last report of a server that is down does not describe its current state.
        let is_down = server.state == ServerState::Down;
        let counted = |number: String| if is_down { "-".to_owned() } else { number };
        vec![
            server.id.to_string(),
            printable(&server.host),
            match server.recovery_step {
                Some(step) => format!("{}, step {step}", state(server.state)),
                None => state(server.state).into(),
            },
            text(&server.clients),
            server.pid.map_or("-".into(), |pid| pid.to_string()),
            counted(server.primary_entries.to_string()),
            counted(server.secondary_entries.to_string()),
            counted(format!("{} + {}", bytes(server.primary_bytes), bytes(server.secondary_bytes))),
            counted(format!(
                "{} + {}",
                bytes(server.primary_used_bytes),
                bytes(server.secondary_used_bytes)
            )),
            counted(match server.memory_limit {
                0 => "none".to_owned(),
                limit => bytes(limit),
            }),
            counted(bytes(server.resident_bytes)),
            counted(server.client_connections.to_string()),
            counted(server.requests.to_string()),
            counted(server.evicted.to_string()),
            counted(server.expired.to_string()),
            counted(format!("{} ms", server.longest_gap_ms)),
            server.heartbeat_age_ms.map_or("never".into(), age),
        ]
    };
    Grid { columns, first_number: 4, rows: servers.iter().map(row).collect() }
}

/// Returns the table of the groups.
pub(super) fn groups(groups: &[GroupStatus]) -> Grid {
    let columns = vec![
        ("group", 9),
        ("view", 2),
        ("primary", 8),
        ("secondary", 8),
        ("state", 9),
        ("copies", 7),
        ("entries", 6),
        ("bytes", 5),
    ];
    let holder = |member: Option<Member>| {
        member.map_or("-".into(), |member: Member| format!("server {}", member.server))
    };
    let row = |group: &GroupStatus| {
        vec![
            group.group.to_string(),
            group.view.to_string(),
            holder(group.primary),
            match (group.candidate, &group.copy) {
                (Some(to), Some(copy)) => {
                    let done = match copy.of_bytes {
                        0 => percent(copy.entries, copy.of_entries),
                        all => percent(copy.bytes, all),
                    };
                    format!("copying to {}, {done} %", to.server)
                }
                (Some(to), None) => format!("copying to {}", to.server),
                (None, _) => holder(group.secondary),
            },
            condition(group.condition).into(),
            group.copies.to_string(),
            group.entries.to_string(),
            bytes(group.bytes),
        ]
    };
    Grid { columns, first_number: 5, rows: groups.iter().map(row).collect() }
}

/// Returns the latest recoveries of all servers, the newest first, with the time spent in each step.
pub(super) fn recoveries(servers: &[ServerStatus]) -> Grid {
    let columns = vec![
        ("recovery of", 9),
        ("began", 3),
        ("took", 8),
        ("step 0", 7),
        ("1", 7),
        ("2", 7),
        ("3", 7),
        ("4", 7),
        ("5", 7),
    ];
    let of = |server: &'_ ServerStatus| {
        server.recoveries.iter().map(|r| (server.id, r.clone())).collect::<Vec<_>>()
    };
    let mut all: Vec<(ServerId, RecoveryStatus)> = servers.iter().flat_map(of).collect();
    all.sort_by_key(|(_, recovery)| recovery.began_ms_ago);
    all.truncate(SHOWN_RECOVERIES);
    let row = |(server, recovery): &(ServerId, RecoveryStatus)| {
        let mut row = vec![
            format!("server {server}"),
            format!("{} ago", age(recovery.began_ms_ago)),
            recovery.took_ms.map_or("running".into(), took),
        ];
        row.extend((0..STEPS).map(|step| time_in(recovery, step)));
        row
    };
    Grid { columns, first_number: 1, rows: all.iter().map(row).collect() }
}

/// Returns the time that a recovery spent in a step, over all attempts; `…` marks the current step.
fn time_in(recovery: &RecoveryStatus, step: usize) -> String {
    let of_step = |told: &&kv_protocol::status::StepStatus| usize::from(told.step) == step;
    let steps: Vec<_> = recovery.steps.iter().filter(of_step).collect();
    if steps.is_empty() {
        return "-".into();
    }
    let times = steps.iter().map(|step| step.took_ms.unwrap_or(step.began_ms_ago));
    let lasts = steps.iter().any(|step| step.took_ms.is_none());
    format!("{}{}", took(times.fold(0, u64::saturating_add)), if lasts { "…" } else { "" })
}

fn condition(condition: GroupCondition) -> &'static str {
    match condition {
        GroupCondition::Starting => "starting",
        GroupCondition::Whole => "whole",
        GroupCondition::Degraded => "degraded",
        GroupCondition::Unreachable => "UNREACHABLE",
        GroupCondition::Lost => "LOST",
    }
}

fn state(state: ServerState) -> &'static str {
    match state {
        ServerState::Starting => "starting",
        ServerState::Up => "up",
        ServerState::Down => "DOWN",
    }
}
