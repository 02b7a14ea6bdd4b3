//! The status of a cluster in readable form: problems, servers, groups and recoveries.
//!
//! On a terminal, a table has the most important columns that fit; elsewhere it has all columns.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};
use console::{measure_text_width, truncate_str};
use kv_protocol::health::Health;
use kv_protocol::ids::{Member, ServerId};
use kv_protocol::map::ServerState;
use kv_protocol::status::{
    AlarmStatus, ClusterState, ClusterStatus, GroupCondition, GroupStatus, RecoveryStatus,
    ServerStatus,
};

use crate::printable::printable;
use crate::units::{age, bytes, percent, took};

/// The number of recoveries shown, the newest ones; `--json` has all.
const SHOWN_RECOVERIES: usize = 8;
/// The number of steps of a recovery, 0 to 5.
const STEPS: usize = 6;

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
        "{}: {state}, {} servers, {} shard{} a group{}{}",
        status.cluster,
        status.servers.len(),
        status.shards,
        if status.shards == 1 { "" } else { "s" },
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

/// Returns a head and words, wrapped to the width.
fn wrap(head: &str, words: &str, width: usize) -> String {
    let mut text = String::new();
    let mut line = head.to_owned();
    for word in words.split(' ') {
        let is_first = line.trim().is_empty() || line == head;
        if !is_first && measure_text_width(&line) + 1 + measure_text_width(word) > width {
            text += &format!("{line}\n");
            line = " ".repeat(4);
        } else if !is_first {
            line.push(' ');
        }
        line += word;
    }
    text + &line + "\n"
}

/// A table that can omit some of its columns.
struct Grid {
    /// The name and the weight of each column: columns with the lowest weights are omitted first.
    columns: Vec<(&'static str, u8)>,
    /// The index of the first numeric column.
    first_number: usize,
    rows: Vec<Vec<String>>,
}

impl Grid {
    fn text(&self, width: Option<usize>) -> String {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        loop {
            // Every column is padded on its right; the padding of the last one is not shown.
            let lines: Vec<String> =
                self.table(&shown).lines().map(|line| line.trim_end().to_owned()).collect();
            let widest = lines.iter().map(|line| measure_text_width(line)).max().unwrap_or(0);
            let Some(width) = width.filter(|width| widest > *width) else {
                return lines.join("\n") + "\n";
            };
            let least = shown.iter().enumerate().skip(1).min_by_key(|(_, at)| self.columns[**at].1);
            let Some((least, _)) = least.filter(|_| shown.len() > 2) else {
                let cut = |line: &String| truncate_str(line, width, "…").into_owned() + "\n";
                return lines.iter().map(cut).collect();
            };
            shown.remove(least);
        }
    }

    /// Returns a table without borders, which would be garbled in a narrow terminal.
    fn table(&self, shown: &[usize]) -> Table {
        let pick = |cells: &dyn Fn(usize) -> String| shown.iter().map(|at| cells(*at)).collect();
        let mut table = Table::new();
        let header: Vec<String> = pick(&|at| self.columns[at].0.to_owned());
        table.load_style(comfy_table::presets::NOTHING).set_header(header);
        for row in &self.rows {
            let cells: Vec<String> = pick(&|at| row[at].clone());
            table.add_row(cells);
        }
        for (column, at) in table.column_iter_mut().zip(shown) {
            column.set_padding((0, 2));
            if *at >= self.first_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn servers(servers: &[ServerStatus]) -> Grid {
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
        ("gap", 3),
        ("heard", 8),
    ];
    let row = |server: &ServerStatus| {
        let text = |text: &Option<String>| text.as_deref().map_or("-".into(), printable);
        // The last report of a lost server does not describe its current state.
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
            counted(format!("{} ms", server.longest_gap_ms)),
            server.heartbeat_age_ms.map_or("never".into(), age),
        ]
    };
    Grid { columns, first_number: 4, rows: servers.iter().map(row).collect() }
}

fn groups(groups: &[GroupStatus]) -> Grid {
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
fn recoveries(servers: &[ServerStatus]) -> Grid {
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

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::status::{AlarmKind, CopyStatus, StepStatus};
    use kv_protocol::{BootId, ClusterId, Epoch, GroupId, Incarnation, ViewVersion};

    fn status() -> ClusterStatus {
        let server = |id: u16, state| ServerStatus {
            id: ServerId(id),
            host: if id == 2 { "kv@\x1b[31mdb".into() } else { "localhost".into() },
            state,
            incarnation: Some(Incarnation(1)),
            pid: (id != 1).then_some(4_711),
            clients: Some("127.0.0.1:7000".into()),
            servers: None,
            coord: None,
            primary_entries: 123_456,
            secondary_entries: 7,
            table_bytes: 3 << 20,
            primary_bytes: 2 << 20,
            secondary_bytes: 1 << 20,
            primary_used_bytes: 3 << 19,
            secondary_used_bytes: 1 << 19,
            resident_bytes: u64::MAX,
            memory_limit: 5 << 30,
            connection_bytes: 8,
            connection_limit: 9,
            client_connections: 4,
            requests: 5,
            refused: 6,
            out_of_space: 0,
            heartbeat_age_ms: (id != 1).then_some(42),
            longest_gap_ms: 103,
            recovery_step: None,
            recoveries: Vec::new(),
        };
        let member = |id| Some(Member { server: ServerId(id), incarnation: Incarnation(1) });
        ClusterStatus {
            version: 1,
            health: Health::Degraded,
            why: String::new(),
            cluster: ClusterId(0xfeed),
            epoch: Epoch { number: 1, boot: BootId(1) },
            state: ClusterState::Degraded,
            shards: 2,
            servers: vec![
                server(0, ServerState::Up),
                server(1, ServerState::Down),
                server(2, ServerState::Up),
            ],
            groups: vec![GroupStatus {
                group: GroupId(0),
                view: ViewVersion(1),
                primary: member(0),
                secondary: None,
                candidate: member(1),
                condition: GroupCondition::Degraded,
                copies: 1,
                entries: 99,
                bytes: 1_536,
                copy: Some(CopyStatus { entries: 1, bytes: 2, of_entries: 4, of_bytes: 8 }),
            }],
            alarms: Vec::new(),
            settings: BTreeMap::new(),
        }
    }

    #[test]
    fn the_tables_show_servers_groups_copies_entries_and_memory() {
        let text = render(&status(), Screen::default());
        assert!(text.contains("feed: degraded, 3 servers, 2 shards a group"), "{text}");
        let row = |word: &str| text.lines().find(|line| line.contains(word)).unwrap().to_owned();
        let down = row("DOWN");
        assert!(down.contains("never") && down.contains(" - "), "{down}");
        let up = row("4711");
        assert!(up.contains("123456"), "{up}");
        assert!(up.contains("2.0 MiB + 1.0 MiB"), "{up}");
        assert!(up.contains("1.5 MiB + 512.0 KiB") && up.contains("5.0 GiB"), "{up}");
        assert!(up.contains("127.0.0.1:7000") && up.contains("15.9 EiB") && up.contains("42 ms"));
        let group = row("server 0");
        assert!(group.contains("copying to 1, 25 %") && group.contains("degraded"), "{group}");
        assert!(group.contains("99") && group.contains("1.5 KiB"), "{group}");
    }

    #[test]
    fn the_last_known_numbers_of_a_server_that_is_down_are_not_shown_as_what_it_has() {
        let text = servers(&status().servers).text(None);
        let down = text.lines().find(|line| line.contains("DOWN")).unwrap();
        let cells: Vec<&str> = down.split_whitespace().collect();
        let expected = [
            "1",
            "localhost",
            "DOWN",
            "127.0.0.1:7000",
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            "never",
        ];
        assert_eq!(cells, expected);
    }

    #[test]
    fn the_settings_stand_in_one_line_at_the_end() {
        let mut status = status();
        for (name, value) in [("remote-dir", "ftkv"), ("net", "au\x1bto")] {
            status.settings.insert(name.to_owned(), value.to_owned());
        }
        let text = render(&status, Screen::default());
        let last = text.lines().last().unwrap();
        assert_eq!(last, "settings: net au\\u{1b}to, remote-dir ftkv");
    }

    #[test]
    fn a_hostile_coordinator_cannot_send_escapes_to_the_terminal() {
        assert!(!render(&status(), Screen::default()).contains('\x1b'));
    }

    fn wide(columns: usize) -> Screen {
        Screen { width: Some(columns), lines: None }
    }

    fn recovered() -> ClusterStatus {
        let mut status = status();
        let step = |step, began_ms_ago, took_ms| StepStatus { step, began_ms_ago, took_ms };
        let first = vec![
            step(0, 90_000, Some(7)),
            step(1, 89_000, Some(120)),
            step(2, 88_000, Some(30)),
            step(1, 87_000, Some(130)),
            step(3, 86_000, Some(2_340)),
        ];
        let over = RecoveryStatus { began_ms_ago: 90_000, took_ms: Some(5_100), steps: first };
        let steps = vec![step(0, 3_000, Some(8)), step(1, 2_900, None)];
        let lasting = RecoveryStatus { began_ms_ago: 3_000, took_ms: None, steps };
        status.servers[2].recoveries = vec![over];
        status.servers[1].recoveries = vec![lasting];
        status.alarms = vec![AlarmStatus {
            kind: AlarmKind::OrderFailed,
            server: Some(ServerId(1)),
            group: None,
            text: "server 1 could not carry out UPDATE-PRIMARY: \x1b[31mno room\u{202e}".into(),
            age_ms: 61_000,
        }];
        status
    }

    #[test]
    fn recoveries_are_shown_newest_first_with_the_time_in_each_step() {
        let text = render(&recovered(), Screen::default());
        let at = text.lines().position(|line| line.starts_with("recovery of")).unwrap();
        let cells = |n: usize| {
            let line = text.lines().nth(at + n).unwrap();
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
        };
        let newest = ["server 1", "3000 ms ago", "running", "8 ms", "2.9 s…", "-", "-", "-", "-"];
        assert_eq!(cells(1), newest);
        let first = ["server 2", "90 s ago", "5.1 s", "7 ms", "250 ms", "30 ms", "2.3 s", "-", "-"];
        assert_eq!(cells(2), first);
    }

    #[test]
    fn alarms_come_first_with_their_age_and_nothing_that_a_terminal_obeys() {
        let text = render(&recovered(), Screen::default());
        let alarm = text.lines().nth(1).unwrap();
        assert!(alarm.starts_with("ALARM, for 61 s: server 1 could not carry out"), "{alarm}");
        assert!(!text.contains(['\x1b', '\u{202e}']), "{text:?}");
    }

    #[test]
    fn a_narrow_terminal_gets_the_most_telling_columns_and_no_line_too_long() {
        let status = recovered();
        for width in 20..200 {
            let text = render(&status, wide(width));
            let tables = text.lines().skip(1);
            let widest = tables.map(measure_text_width).max().unwrap();
            assert!(widest <= width.max(30), "{width}:\n{text}");
        }
        let text = render(&status, wide(60));
        for needed in ["server", "state", "heard", "DOWN", "degraded", "copying to 1", "running"] {
            assert!(text.contains(needed), "{needed}:\n{text}");
        }
        assert!(!text.contains("requests"), "{text}");
        assert!(render(&status, wide(200)).contains("requests"));
    }

    #[test]
    fn on_a_small_terminal_the_sick_come_first_and_the_others_are_counted() {
        let mut status = status();
        let well = status.servers[0].clone();
        let place = |id| ServerStatus { id: ServerId(id), ..well.clone() };
        status.servers = (0..32).map(place).collect();
        status.servers[29].state = ServerState::Down;
        let group = status.groups[0].clone();
        let whole = |id| GroupStatus {
            group: GroupId(id),
            condition: GroupCondition::Whole,
            candidate: None,
            copy: None,
            ..group.clone()
        };
        status.groups = (0..32).map(whole).collect();
        status.groups[28] = GroupStatus { group: GroupId(28), ..group };

        let text = render(&status, Screen { width: Some(40), lines: Some(23) });
        assert!(text.lines().count() <= 23, "{text}");
        // The cluster's id alone is longer.
        assert!(text.lines().skip(1).all(|line| measure_text_width(line) <= 40), "{text}");
        for needed in
            ["29", "DOWN", "28", "degraded", "31 servers more: up", "31 groups more: whole"]
        {
            assert!(text.contains(needed), "{needed}:\n{text}");
        }
        let tall = render(&status, Screen { width: Some(40), lines: Some(200) });
        let first = tall.lines().skip_while(|line| !line.starts_with("server ")).nth(1).unwrap();
        assert!(first.contains("DOWN"), "{tall}");
        assert!(!tall.contains("more"), "{tall}");
    }

    #[test]
    fn the_first_line_says_why() {
        let text = render(&status(), Screen::default());
        let first = text.lines().next().unwrap();
        assert!(
            first.ends_with("2 shards a group; server 1 is down; group 0 has one copy"),
            "{first}"
        );
        let mut lost = status();
        lost.groups[0].condition = GroupCondition::Lost;
        let text = render(&lost, Screen::default());
        assert!(text.starts_with("cluster 0000"), "{text}");
        let words = "NOT ALL KEYS ARE SERVED, 3 servers, 2 shards a group; group 0 is LOST";
        assert!(text.lines().next().unwrap().contains(words), "{text}");
    }

    #[test]
    fn words_are_wrapped_between_words() {
        assert_eq!(wrap("A, ", "one two three", 11), "A, one two\n    three\n");
        assert_eq!(wrap("A, ", "one", 1), "A, one\n", "what does not fit anywhere stays whole");
    }
}
