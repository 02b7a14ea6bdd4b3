//! Tests of Redis clients at a shard.

use std::time::Duration;

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Response, Status, Welcome, opcode};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{
    BootId, Epoch, GroupId, MapRevision, RequestId, SequenceNumber, ServerId, Time, ViewVersion,
};
use kv_protocol::limits::MAX_RESPONSE_BODY;
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::placement::Placement;
use kv_protocol::view::{Peer, View};
use kv_redis::client::End;

use crate::dial::DialTarget;
use crate::handshake::Port;
use crate::shard::Shard;
use crate::testing::{CLUSTER, NOW, Pair, WALL, member, take_output, take_output_at, view};

/// Returns the map of three servers; [`view`] is that of the first group.
pub(super) fn map() -> Map {
    let server = |id: u16| MapServer {
        id: ServerId(id),
        incarnation: member(id).incarnation,
        state: ServerState::Up,
        clients: Some(format!("127.0.0.1:{}", 100 + id).parse().unwrap()),
    };
    let other = |group: u16| View {
        group: GroupId(group),
        version: ViewVersion(1),
        primary: Some(member(group)),
        peer: Peer::Secondary(member((group + 1) % 3)),
        handover: false,
    };
    Map {
        cluster: CLUSTER,
        ancestors: Vec::new(),
        epoch: Epoch { number: 1, boot: BootId(1) },
        revision: MapRevision(1),
        shards: 1,
        servers: (0..3).map(server).collect(),
        views: vec![view(), other(1), other(2)],
        hash_tags: false,
    }
}

/// Returns a pair whose primary knows the map, and a Redis client at the primary.
pub(super) fn joined() -> (Pair, ConnectionId) {
    let mut pair = Pair::joined();
    pair.primary.service.note_wall(NOW, WALL);
    pair.primary.service.set_map(map().into());
    let client = open(&mut pair.primary);
    (pair, client)
}

/// Opens a connection of a Redis client, as the engine does.
pub(super) fn open(shard: &mut Shard) -> ConnectionId {
    let id = shard.open_accepted(NOW, Port::Clients);
    shard.handle_bytes(NOW, id, b"PING\r\n");
    shard.adopt_accepted(NOW, id);
    assert_eq!(take_output(shard, id), b"+PONG\r\n");
    id
}

/// Returns a key of a group.
pub(super) fn key_of(group: u16) -> String {
    let placement = Placement::new(3, 1);
    let is_of_group = |key: &String| placement.locate(key.as_bytes()).0 == GroupId(group);
    (0..).map(|n| format!("key{n}")).find(is_of_group).unwrap()
}

/// Encodes commands, whose words are separated by spaces.
pub(super) fn commands(lines: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        bytes.extend(format!("*{}\r\n", words.len()).into_bytes());
        for word in words {
            bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
        }
    }
    bytes
}

/// Ends a wake-up, and takes what the client receives.
pub(super) fn replies(pair: &mut Pair, client: ConnectionId) -> String {
    pair.exchange();
    String::from_utf8(take_output(&mut pair.primary, client)).unwrap()
}

#[test]
fn a_pipeline_gets_its_replies_in_order_and_reads_its_own_writes() {
    let (mut pair, client) = joined();
    let key = key_of(0);
    let lines =
        [format!("SET {key} 1"), format!("GET {key}"), "PING".into(), format!("SET {key} 2")];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    pair.primary.handle_bytes(NOW, client, &commands(&lines));
    pair.primary.finish_wake_up(NOW);
    let early = take_output(&mut pair.primary, client);
    assert_eq!(early, b"", "a reply was sent before the write has its second copy");
    assert_eq!(replies(&mut pair, client), "+OK\r\n$1\r\n1\r\n+PONG\r\n+OK\r\n");
}

#[test]
fn the_first_command_of_a_connection_sees_the_addresses_of_its_ends() {
    let (mut pair, _) = joined();
    let end = || Some(End::Unix("/run/kv/server_0.sock".into()));
    let expected = "addr=/run/kv/server_0.sock:0 laddr=/run/kv/server_0.sock:0 fd=0 name= age=0 ";
    let info = commands(&["CLIENT INFO"]);
    let accepted = pair.primary.open_accepted(NOW, Port::Clients);
    assert!(!pair.primary.shows_ends(accepted), "the protocol is unknown");
    pair.primary.handle_bytes(NOW, accepted, &info);
    assert!(pair.primary.shows_ends(accepted));
    pair.primary.set_ends(NOW, accepted, (end(), end()));
    pair.primary.adopt_accepted(NOW, accepted);
    let shown = replies(&mut pair, accepted);
    assert!(shown.contains(expected), "{shown}");
    let handed_over = pair.primary.adopt(NOW, Port::Redis, &[]);
    pair.primary.set_ends(NOW, handed_over, (end(), end()));
    pair.primary.handle_bytes(NOW, handed_over, &info);
    let shown = replies(&mut pair, handed_over);
    assert!(shown.contains(expected), "{shown}");
}

#[test]
fn commands_in_any_pieces_are_served_as_if_they_came_at_once() {
    let (mut pair, client) = joined();
    let key = key_of(0);
    let line = format!("SET {key} value");
    for byte in commands(&[&line, &format!("GET {key}")]) {
        pair.primary.handle_bytes(NOW, client, &[byte]);
    }
    assert_eq!(replies(&mut pair, client), "+OK\r\n$5\r\nvalue\r\n");
}

#[test]
fn a_request_of_a_browser_ends_the_connection_before_a_command_in_its_body() {
    for head in ["POST / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        let (mut pair, client) = joined();
        let bytes = format!("{head}\r\nSET {} 1\r\n", key_of(0));
        pair.primary.handle_bytes(NOW, client, bytes.as_bytes());
        pair.exchange();
        assert_eq!(pair.primary.fate(client), crate::Fate::Close);
        let other = open(&mut pair.primary);
        pair.primary.handle_bytes(NOW, other, &commands(&[&format!("GET {}", key_of(0))]));
        assert_eq!(replies(&mut pair, other), "$-1\r\n");
    }
}

#[test]
fn malformed_bytes_get_an_error_and_a_close() {
    let (mut pair, client) = joined();
    pair.primary.handle_bytes(NOW, client, b"*1\r\n:3\r\nPING\r\n");
    let said = replies(&mut pair, client);
    assert_eq!(said, "-ERR Protocol error: expected '$', got ':'\r\n");
    assert_eq!(pair.primary.fate(client), crate::Fate::Shut);
}

/// A stand-in for another server: the requests that a link brought.
pub(super) struct Other {
    link: ConnectionId,
}

impl Other {
    /// Accepts the link that the shard dials.
    pub(super) fn accept(shard: &mut Shard, now: Time, server: u16) -> Other {
        let due = shard.due_dials(now);
        let address = format!("127.0.0.1:{}", 100 + server).parse().unwrap();
        let is_wanted = |(target, to): &&(DialTarget, _)| {
            matches!(target, DialTarget::Link(_)) && *to == address
        };
        let (target, _) = due.iter().find(is_wanted).expect("a link is dialled");
        let link = shard.open_dialled(now, *target);
        let hello = take_output_at(now, shard, link);
        assert_eq!(hello[5], opcode::HELLO);
        let welcome = Welcome {
            cluster: CLUSTER,
            server: Some(member(server)),
            servers: 3,
            shards: 1,
            max_value: 0,
            starts: Default::default(),
            version: 2,
        };
        let mut bytes = Vec::new();
        welcome.write(&mut bytes);
        shard.handle_bytes(now, link, &bytes);
        Other { link }
    }

    /// Responds to a request without a value.
    pub(super) fn respond(&self, shard: &mut Shard, now: Time, id: u64, status: Status) {
        let response = Response {
            id: RequestId(id),
            status,
            copies: 0,
            view: ViewVersion(1),
            version: SequenceNumber::ZERO,
            value: &[],
            whole: 0,
            has_value: false,
            deadline: None,
        };
        let mut bytes = Vec::new();
        response.write(&mut bytes);
        shard.handle_bytes(now, self.link, &bytes);
    }

    /// Takes the requests that were sent, as id, opcode and seq.
    pub(super) fn requests(&self, shard: &mut Shard, now: Time) -> Vec<(u64, u8, u64)> {
        shard.finish_wake_up(now);
        let bytes = take_output_at(now, shard, self.link);
        let (mut rest, mut requests) = (&bytes[..], Vec::new());
        while let Some(frame) =
            split_frame(rest, &FrameRules::unchecked(MAX_RESPONSE_BODY)).unwrap()
        {
            let number = |at: usize| u64::from_le_bytes(frame.body[at..at + 8].try_into().unwrap());
            requests.push((number(0), frame.opcode, number(32)));
            rest = &rest[frame.consumed..];
        }
        requests
    }
}

#[test]
fn a_write_is_sent_again_under_its_number_after_the_link_is_lost() {
    let (mut pair, client) = joined();
    let line = format!("SET {} 1", key_of(2));
    pair.primary.handle_bytes(NOW, client, &commands(&[&line]));
    let other = Other::accept(&mut pair.primary, NOW, 2);
    let [(_, opcode::PUT, seq)] = other.requests(&mut pair.primary, NOW)[..] else { panic!() };
    pair.primary.handle_failure(other.link);
    pair.primary.close(NOW, other.link);
    let mut later = NOW;
    for _ in 0..3 {
        later = later + Duration::from_millis(100);
        pair.primary.handle_tick(later, WALL);
        pair.primary.finish_wake_up(later);
    }
    let again = Other::accept(&mut pair.primary, later, 2);
    let [(_, opcode::PUT, retried)] = again.requests(&mut pair.primary, later)[..] else {
        panic!()
    };
    assert_eq!(seq, retried);
}

#[test]
fn a_write_that_may_take_effect_after_its_deadline_is_in_doubt_and_ends_the_connection() {
    let (mut pair, client) = joined();
    let lines = [format!("SET {} 1", key_of(2)), "PING".into()];
    pair.primary.handle_bytes(NOW, client, &commands(&[&lines[0], &lines[1]]));
    let other = Other::accept(&mut pair.primary, NOW, 2);
    assert_eq!(other.requests(&mut pair.primary, NOW).len(), 1);
    let mut now = NOW;
    for _ in 0..60 {
        now = now + Duration::from_millis(100);
        pair.primary.handle_tick(now, WALL);
        pair.primary.finish_wake_up(now);
    }
    let said = String::from_utf8(take_output_at(now, &mut pair.primary, client)).unwrap();
    assert!(said.starts_with("-ERR outcome unknown"), "{said}");
    assert!(said.ends_with("+PONG\r\n"), "{said}");
    assert_eq!(pair.primary.fate(client), crate::Fate::Shut);
}

#[test]
fn a_request_that_a_server_cannot_serve_yet_is_sent_again_after_its_pause() {
    let (mut pair, client) = joined();
    pair.primary.handle_tick(NOW, WALL);
    pair.primary.finish_wake_up(NOW);
    let line = format!("SET {} 1", key_of(2));
    pair.primary.handle_bytes(NOW, client, &commands(&[&line]));
    let other = Other::accept(&mut pair.primary, NOW, 2);
    let mut now = NOW;
    for _ in 0..4 {
        let requests = other.requests(&mut pair.primary, now);
        assert_eq!(requests.len(), 1, "the request was not sent {now:?}");
        other.respond(&mut pair.primary, now, requests[0].0, Status::Unavailable);
        pair.primary.finish_wake_up(now);
        let due = pair.primary.service.poll_timeout().expect("the request waits for a time");
        assert!(due > now && due <= now + Duration::from_millis(10), "{:?}", due.since(now));
        now = due;
        pair.primary.handle_tick(now, WALL);
    }
}

#[test]
fn a_command_that_was_served_in_part_does_not_say_that_nothing_was_changed() {
    let (mut pair, client) = joined();
    let line = format!("MSET {} 1 {} 2", key_of(0), key_of(2));
    pair.primary.handle_bytes(NOW, client, &commands(&[&line]));
    let mut now = NOW;
    pair.exchange();
    for _ in 0..60 {
        now = now + Duration::from_millis(100);
        pair.primary.handle_tick(now, WALL);
        pair.primary.finish_wake_up(now);
        for (target, _) in pair.primary.due_dials(now) {
            pair.primary.handle_dial_failed(now, target, "refused");
        }
    }
    let said = String::from_utf8(take_output_at(now, &mut pair.primary, client)).unwrap();
    assert!(said.starts_with("-TRYAGAIN ") && said.contains("other keys were changed"), "{said}");
}

#[test]
fn a_command_that_waits_for_a_write_in_doubt_is_not_begun() {
    let (mut pair, client) = joined();
    let lines = [format!("SET {} 1", key_of(2)), format!("SET {} 2", key_of(2))];
    pair.primary.handle_bytes(NOW, client, &commands(&[&lines[0], &lines[1]]));
    let other = Other::accept(&mut pair.primary, NOW, 2);
    assert_eq!(other.requests(&mut pair.primary, NOW).len(), 1);
    let mut now = NOW;
    for _ in 0..60 {
        now = now + Duration::from_millis(100);
        pair.primary.handle_tick(now, WALL);
        let late = other.requests(&mut pair.primary, now);
        let is_begun = !late.is_empty() || !pair.primary.due_dials(now).is_empty();
        assert!(!is_begun, "the first write could take effect after the second one");
    }
    let said = String::from_utf8(take_output_at(now, &mut pair.primary, client)).unwrap();
    assert!(said.starts_with("-ERR outcome unknown") && said.lines().count() == 1, "{said}");
    assert_eq!(pair.primary.fate(client), crate::Fate::Shut);
}

#[test]
fn a_request_that_no_server_could_serve_is_not_done_and_the_connection_stays() {
    let (mut pair, client) = joined();
    let line = format!("SET {} 1", key_of(2));
    pair.primary.handle_bytes(NOW, client, &commands(&[&line]));
    let mut now = NOW;
    for _ in 0..60 {
        now = now + Duration::from_millis(100);
        pair.primary.handle_tick(now, WALL);
        pair.primary.finish_wake_up(now);
        for (target, _) in pair.primary.due_dials(now) {
            pair.primary.handle_dial_failed(now, target, "refused");
        }
    }
    let said = String::from_utf8(take_output_at(now, &mut pair.primary, client)).unwrap();
    assert!(said.starts_with("-TRYAGAIN"), "{said}");
    assert_eq!(pair.primary.fate(client), crate::Fate::Read);
}

/// Returns the map after the third group has lost both of its holders.
pub(super) fn map_with_a_lost_group() -> Map {
    let mut lost = map();
    lost.revision = MapRevision(2);
    lost.views[2].version = ViewVersion(2);
    (lost.views[2].primary, lost.views[2].peer) = (None, Peer::None);
    lost
}

#[test]
fn a_command_on_a_lost_group_has_the_error_of_redis_at_once_and_the_connection_stays() {
    let (mut pair, client) = joined();
    pair.primary.service.set_map(map_with_a_lost_group().into());
    let lost = key_of(2);
    let lines =
        [format!("GET {lost}"), format!("SET {lost} 1"), format!("MGET {} {lost}", key_of(0))];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    pair.primary.handle_bytes(NOW, client, &commands(&lines));
    let down = "-CLUSTERDOWN Hash slot not served\r\n";
    assert_eq!(replies(&mut pair, client), down.repeat(3));
    assert_eq!(pair.primary.fate(client), crate::Fate::Read);
    // The keys of other groups are served.
    pair.primary.handle_bytes(NOW, client, &commands(&[&format!("SET {} 1", key_of(0))]));
    assert_eq!(replies(&mut pair, client), "+OK\r\n");
}

#[test]
fn a_write_that_was_sent_before_its_group_was_lost_is_in_doubt() {
    let (mut pair, client) = joined();
    let line = format!("SET {} 1", key_of(2));
    pair.primary.handle_bytes(NOW, client, &commands(&[&line]));
    let other = Other::accept(&mut pair.primary, NOW, 2);
    assert_eq!(other.requests(&mut pair.primary, NOW).len(), 1);
    pair.primary.service.set_map(map_with_a_lost_group().into());
    pair.primary.finish_wake_up(NOW);
    let said = String::from_utf8(take_output(&mut pair.primary, client)).unwrap();
    assert!(said.starts_with("-ERR outcome unknown"), "another client may have read it: {said}");
}

#[test]
fn a_write_that_no_memory_is_left_for_is_in_doubt_if_it_was_sent_before() {
    for links_lost in 0..2 {
        let (mut pair, client) = joined();
        let line = format!("SET {} 1", key_of(2));
        pair.primary.handle_bytes(NOW, client, &commands(&[&line]));
        let mut now = NOW;
        let mut other = Other::accept(&mut pair.primary, now, 2);
        for _ in 0..links_lost {
            assert_eq!(other.requests(&mut pair.primary, now).len(), 1);
            pair.primary.handle_failure(other.link);
            pair.primary.close(now, other.link);
            for _ in 0..3 {
                now = now + Duration::from_millis(100);
                pair.primary.handle_tick(now, WALL);
                pair.primary.finish_wake_up(now);
            }
            other = Other::accept(&mut pair.primary, now, 2);
        }
        let requests = other.requests(&mut pair.primary, now);
        other.respond(&mut pair.primary, now, requests[0].0, Status::OutOfSpace);
        pair.primary.finish_wake_up(now);
        let said = String::from_utf8(take_output_at(now, &mut pair.primary, client)).unwrap();
        let expected = if links_lost == 0 { "-OOM " } else { "-ERR outcome unknown" };
        assert!(said.starts_with(expected), "after {links_lost} lost links: {said}");
    }
}

#[test]
fn all_memory_of_a_connection_is_returned_when_its_commands_have_their_replies() {
    let (mut pair, client) = joined();
    let key = key_of(0);
    let lines: Vec<String> = (0..300).map(|n| format!("SET {key}{n} value")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    pair.primary.handle_bytes(NOW, client, &commands(&lines));
    let mut said = String::new();
    while said.matches("+OK").count() + said.matches("-TRYAGAIN").count() < 300 {
        let more = replies(&mut pair, client);
        if more.is_empty() {
            break;
        }
        said.push_str(&more);
    }
    // Keys of other groups wait for links that are not dialled here, and are given up.
    let mut now = NOW;
    for _ in 0..130 {
        now = now + Duration::from_millis(100);
        pair.exchange_at(now);
        pair.primary.handle_tick(now, WALL);
        pair.secondary.handle_tick(now, WALL);
        take_output_at(now, &mut pair.primary, client);
    }
    assert_eq!(pair.primary.redis_bytes(client), Some(0));
}

#[test]
fn a_connection_is_not_read_while_exec_waits_for_earlier_commands() {
    let (mut pair, client) = joined();
    let key = key_of(0);
    let lines = ["MULTI".to_owned(), format!("GET {key}"), "EXEC".to_owned()];
    let write = format!("SET {key} 1");
    let lines: Vec<&str> = [&write].into_iter().chain(&lines).map(String::as_str).collect();
    pair.primary.handle_bytes(NOW, client, &commands(&lines));
    pair.primary.finish_wake_up(NOW);
    assert_eq!(pair.primary.fate(client), crate::Fate::Wait);
    assert_eq!(replies(&mut pair, client), "+OK\r\n+OK\r\n+QUEUED\r\n*1\r\n$1\r\n1\r\n");
    assert_eq!(pair.primary.fate(client), crate::Fate::Read);
}

#[test]
fn a_command_that_forgets_watched_keys_forgets_those_of_a_watch_without_a_reply() {
    for (forget, said) in
        [("UNWATCH", "+OK\r\n"), ("MULTI DISCARD", "+OK\r\n+OK\r\n"), ("RESET", "+RESET\r\n")]
    {
        let (mut pair, client) = joined();
        let watch = format!("WATCH {}", key_of(2));
        let lines: Vec<&str> = [&*watch].into_iter().chain(forget.split(' ')).collect();
        pair.primary.handle_bytes(NOW, client, &commands(&lines));
        let other = Other::accept(&mut pair.primary, NOW, 2);
        let [(id, ..)] = other.requests(&mut pair.primary, NOW)[..] else { panic!() };
        other.respond(&mut pair.primary, NOW, id, Status::NotFound);
        pair.primary.finish_wake_up(NOW);
        assert_eq!(replies(&mut pair, client), format!("+OK\r\n{said}"));
        // A watched key of another group makes EXEC fail.
        let set = format!("SET {} 1", key_of(0));
        pair.primary.handle_bytes(NOW, client, &commands(&["MULTI", &set, "EXEC"]));
        assert_eq!(replies(&mut pair, client), "+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n", "{forget}");
    }
}

/// The work for a command with many keys is bounded in each wake-up, and grows with their number, not with its square.
#[test]
#[allow(clippy::disallowed_methods)] // Only the test reads the clock.
fn a_command_with_many_keys_is_served_in_linear_time_over_several_wake_ups() {
    let (mut pair, client) = joined();
    let is_here = |key: &String| Placement::new(3, 1).locate(key.as_bytes()).0 == GroupId(0);
    let keys: Vec<String> = (0..).map(|n| format!("key{n}")).filter(is_here).take(20_000).collect();
    let line = format!("MGET {}", keys.join(" "));
    let begin = std::time::Instant::now();
    pair.primary.begin_wake_up(NOW);
    pair.primary.handle_bytes(NOW, client, &commands(&[&line, "PING"]));
    let (mut turns, mut said) = (0, Vec::new());
    loop {
        pair.primary.finish_wake_up(NOW);
        said.extend(take_output(&mut pair.primary, client));
        if said.ends_with(b"+PONG\r\n") {
            break;
        }
        assert!(pair.primary.postponed() > 0, "nothing wakes the engine");
        pair.primary.begin_wake_up(NOW);
        pair.primary.serve_postponed(NOW);
        turns += 1;
        assert!(turns < 60);
    }
    assert!(said.starts_with(b"*20000\r\n$-1\r\n"));
    assert!(turns >= 16, "{turns}");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn an_idle_connection_keeps_no_buffers_of_its_last_commands() {
    let (mut pair, client) = joined();
    let held = |pair: &mut Pair| pair.primary.service.outputs.tally().held();
    let before = held(&mut pair);
    let line = format!("SET {} 1", key_of(0));
    pair.primary.handle_bytes(NOW, client, &commands(&[line.as_str(); 20]));
    assert!(held(&mut pair) > before);
    assert_eq!(replies(&mut pair, client), "+OK\r\n".repeat(20));
    assert!(held(&mut pair) > before, "the connection has no buffer for its next command");
    pair.primary.enforce_deadlines(NOW, [client].into_iter());
    assert_eq!(held(&mut pair), before);
    pair.primary.handle_bytes(NOW, client, &commands(&[&line]));
    assert_eq!(replies(&mut pair, client), "+OK\r\n");
}

#[test]
fn a_wake_up_makes_one_reply_that_takes_long() {
    let (mut pair, client) = joined();
    let key = key_of(0);
    let (set, lcs) = (format!("SET {key} ab"), format!("LCS {key} {key} LEN"));
    let lines = [&set, &lcs, &lcs, &lcs].map(String::as_str);
    pair.primary.handle_bytes(NOW, client, &commands(&lines));
    pair.exchange();
    let mut replies = take_output(&mut pair.primary, client);
    for made in 1..=3 {
        let expected = [&b"+OK\r\n"[..], &b":2\r\n".repeat(made)].concat();
        assert_eq!(replies, expected);
        assert_eq!(pair.primary.service.poll_timeout().is_some_and(|due| due <= NOW), made < 3);
        pair.primary.begin_wake_up(NOW);
        pair.primary.finish_wake_up(NOW);
        replies.extend(take_output(&mut pair.primary, client));
    }
}
