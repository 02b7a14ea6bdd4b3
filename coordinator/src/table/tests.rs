//! Tests of the readable status.

use console::measure_text_width;
use kv_protocol::ids::{Member, ServerId};
use kv_protocol::status::{AlarmKind, CopyStatus, RecoveryStatus, StepStatus};
use kv_protocol::{BootId, ClusterId, Epoch, GroupId, Incarnation, ViewVersion};

use super::*;

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
        evicted: 0,
        expired: 0,
        heartbeat_age_ms: (id != 1).then_some(42),
        longest_gap_ms: 103,
        recovery_step: None,
        recoveries: Vec::new(),
    };
    let member = |id| Some(Member { server: ServerId(id), incarnation: Incarnation(1) });
    ClusterStatus {
        hash_tags: false,
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
    assert!(text.contains("feed: degraded, 3 servers, 2 shards a group; "), "{text}");
    let tagged = ClusterStatus { hash_tags: true, ..status() };
    let text = render(&tagged, Screen::default());
    assert!(text.contains("3 servers, 2 shards a group, hash tags; "), "{text}");
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
fn the_last_numbers_of_a_server_that_is_down_are_not_shown_as_current() {
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
        "-",
        "-",
        "never",
    ];
    assert_eq!(cells, expected);
}

#[test]
fn the_settings_are_one_line_at_the_end() {
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
fn alarms_come_first_with_their_age_and_without_control_characters() {
    let text = render(&recovered(), Screen::default());
    let alarm = text.lines().nth(1).unwrap();
    assert!(alarm.starts_with("ALARM, for 61 s: server 1 could not carry out"), "{alarm}");
    assert!(!text.contains(['\x1b', '\u{202e}']), "{text:?}");
}

#[test]
fn a_narrow_terminal_gets_the_most_important_columns_and_no_long_line() {
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
fn on_a_small_terminal_the_unhealthy_come_first_and_the_others_are_counted() {
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
    // The first line is skipped, because the cluster's id alone is longer.
    assert!(text.lines().skip(1).all(|line| measure_text_width(line) <= 40), "{text}");
    for needed in ["29", "DOWN", "28", "degraded", "31 servers more: up", "31 groups more: whole"] {
        assert!(text.contains(needed), "{needed}:\n{text}");
    }
    let tall = render(&status, Screen { width: Some(40), lines: Some(200) });
    let first = tall.lines().skip_while(|line| !line.starts_with("server ")).nth(1).unwrap();
    assert!(first.contains("DOWN"), "{tall}");
    assert!(!tall.contains("more"), "{tall}");
}

#[test]
fn the_first_line_has_the_reason() {
    let text = render(&status(), Screen::default());
    let first = text.lines().next().unwrap();
    assert!(first.ends_with("2 shards a group; server 1 is down; group 0 has one copy"), "{first}");
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
