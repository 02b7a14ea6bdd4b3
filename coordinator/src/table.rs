//! The status of a cluster in readable form: problems, servers, groups and recoveries.
//!
//! On a terminal, a table has the most important columns that fit; elsewhere it has all columns.

mod columns;
mod grid;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use kv_protocol::health::Health;
use kv_protocol::map::ServerState;
use kv_protocol::status::{
    AlarmStatus, ClusterState, ClusterStatus, GroupCondition, GroupStatus, ServerStatus,
};

use columns::{groups, recoveries, servers};
use grid::{Grid, wrap};

use crate::printable::printable;
use crate::units::age;

/// The output device of the status.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Screen {
    /// The width of the terminal in columns; `None` if the output is not a terminal.
    pub(crate) width: Option<usize>,
    /// The number of visible lines; `None` if it is unlimited.
    pub(crate) lines: Option<usize>,
}

/// The selection and order of servers and groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// All, in ring order.
    InOrder,
    /// All, unhealthy ones first.
    SickFirst,
    /// Only unhealthy ones, and a count of the others.
    SickOnly,
}

/// Renders the status. On a terminal, unhealthy servers and groups come first. If the lines do not fit, healthy
/// ones are only counted.
pub(crate) fn render(status: &ClusterStatus, screen: Screen) -> String {
    let Screen { width, lines } = screen;
    let rows = if width.is_some() { Rows::SickFirst } else { Rows::InOrder };
    let all = render_rows(status, width, rows);
    match lines {
        Some(lines) if all.lines().count() > lines => render_rows(status, width, Rows::SickOnly),
        _ => all,
    }
}

fn render_rows(status: &ClusterStatus, width: Option<usize>, rows: Rows) -> String {
    let (health, why) = status.assess();
    let state = match status.state {
        _ if health == Health::Unserved => "NOT ALL KEYS ARE SERVED",
        ClusterState::Starting => "starting",
        ClusterState::Serving => "serving",
        ClusterState::Degraded => "degraded",
        ClusterState::Stopping => "stopping",
    };
    let words = format!(
        "{}: {state}, {} servers, {} shard{} a group{}{}{}",
        status.cluster,
        status.servers.len(),
        status.shards,
        if status.shards == 1 { "" } else { "s" },
        if status.hash_tags { ", hash tags" } else { "" },
        if why.is_empty() { "" } else { "; " },
        printable(&why),
    );
    let mut text = wrap("cluster ", &words, width.unwrap_or(usize::MAX));
    text += &alarms(&status.alarms, width);
    let is_up =
        |server: &ServerStatus| server.state == ServerState::Up && server.recovery_step.is_none();
    let is_whole = |group: &GroupStatus| group.condition == GroupCondition::Whole;
    text += &section(&status.servers, rows, width, is_up, servers, "up", "server");
    text += &section(&status.groups, rows, width, is_whole, groups, "whole", "group");
    let recoveries = recoveries(&status.servers);
    if !recoveries.rows.is_empty() {
        text += &format!("\n{}", recoveries.text(width));
    }
    text + &settings(&status.settings, width)
}

/// Renders the table of the servers or of the groups.
fn section<T: Clone>(
    things: &[T],
    rows: Rows,
    width: Option<usize>,
    is_well: fn(&T) -> bool,
    grid: fn(&[T]) -> Grid,
    well: &str,
    name: &str,
) -> String {
    let (fine, sick): (Vec<T>, Vec<T>) = things.iter().cloned().partition(is_well);
    let count = fine.len();
    let shown = match rows {
        Rows::InOrder => things.to_vec(),
        Rows::SickFirst => [sick, fine].concat(),
        Rows::SickOnly => sick,
    };
    let mut text = String::new();
    if !shown.is_empty() {
        text += &format!("\n{}", grid(&shown).text(width));
    }
    if rows == Rows::SickOnly && count > 0 {
        let more = if shown.is_empty() { "" } else { " more" };
        let s = if count == 1 { "" } else { "s" };
        text += &format!("\n{count} {name}{s}{more}: {well}\n");
    }
    text
}

/// Renders the stored settings, or nothing for a coordinator that does not report them.
fn settings(settings: &BTreeMap<String, String>, width: Option<usize>) -> String {
    let words: Vec<String> =
        settings.iter().map(|(name, value)| printable(&format!("{name} {value}"))).collect();
    match words.is_empty() {
        true => String::new(),
        false => {
            let words = words.join(", ");
            format!("\n{}", wrap("settings: ", &words, width.unwrap_or(usize::MAX)))
        }
    }
}

/// Renders the alarms.
fn alarms(alarms: &[AlarmStatus], width: Option<usize>) -> String {
    let mut text = String::new();
    for alarm in alarms {
        let words = format!("for {}: {}", age(alarm.age_ms), printable(&alarm.text));
        text += &wrap("ALARM, ", &words, width.unwrap_or(usize::MAX));
    }
    text
}
