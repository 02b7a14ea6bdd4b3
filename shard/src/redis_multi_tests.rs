//! Tests of transactions that are executed in several steps (`--redis-multi ordered`).

use std::time::Duration;

use kv_core::replica::ConnectionId;
use kv_protocol::RedisMulti;
use kv_protocol::client_message::Status;
use kv_protocol::ids::Time;

use super::tests::{Other, commands, joined, key_of, map_with_a_lost_group, open, replies};
use crate::testing::{NOW, Pair, WALL, take_output, take_output_at};

/// Returns a pair whose primary executes transactions in order, and a Redis client at the primary.
fn ordered() -> (Pair, ConnectionId) {
    let (mut pair, client) = joined();
    pair.primary.service.set_redis_multi(RedisMulti::Ordered);
    (pair, client)
}

/// Sends commands to the primary.
fn send(pair: &mut Pair, client: ConnectionId, lines: &[&str]) {
    pair.primary.handle_bytes(NOW, client, &commands(lines));
}

/// Lets six seconds pass in which no link can be dialled. Returns the time after them.
fn wait(pair: &mut Pair) -> Time {
    let mut now = NOW;
    for _ in 0..60 {
        now = now + Duration::from_millis(100);
        pair.exchange_at(now);
        pair.primary.handle_tick(now, WALL);
        pair.primary.finish_wake_up(now);
        for (target, _) in pair.primary.due_dials(now) {
            pair.primary.handle_dial_failed(now, target, "refused");
        }
    }
    now
}

#[test]
fn the_commands_of_a_transaction_begin_one_after_the_other_and_those_after_it_wait() {
    let (mut pair, client) = ordered();
    let (here, there) = (key_of(0), key_of(2));
    let lines = [
        "MULTI",
        &format!("SET {here} 1"),
        &format!("SET {there} 2"),
        &format!("INCR {here}"),
        &format!("SET {there} 3"),
        "EXEC",
        &format!("GET {here}"),
    ];
    send(&mut pair, client, &lines);
    assert_eq!(pair.primary.fate(client), crate::Fate::Wait);
    assert!(
        pair.primary.due_dials(NOW).is_empty(),
        "the second command began before the first ended"
    );
    assert_eq!(replies(&mut pair, client), format!("+OK\r\n{}", "+QUEUED\r\n".repeat(4)));
    let other = Other::accept(&mut pair.primary, NOW, 2);
    let requests = other.requests(&mut pair.primary, NOW);
    assert_eq!(requests.len(), 1, "the fourth command began before the second ended");
    assert_eq!(pair.primary.fate(client), crate::Fate::Wait);
    other.respond(&mut pair.primary, NOW, requests[0].0, Status::Ok);
    assert_eq!(replies(&mut pair, client), "");
    let requests = other.requests(&mut pair.primary, NOW);
    assert_eq!(requests.len(), 1);
    other.respond(&mut pair.primary, NOW, requests[0].0, Status::Ok);
    let said = replies(&mut pair, client);
    assert_eq!(said, "*4\r\n+OK\r\n+OK\r\n:2\r\n+OK\r\n$1\r\n2\r\n");
    assert_eq!(pair.primary.fate(client), crate::Fate::Read);
    assert_eq!(pair.primary.redis_bytes(client), Some(0));
}

#[test]
fn a_write_in_doubt_within_a_transaction_ends_it_and_the_connection() {
    let (mut pair, client) = ordered();
    let reader = open(&mut pair.primary);
    let (here, there) = (key_of(0), key_of(2));
    let lines = [
        "MULTI",
        &format!("SET {there} 1"),
        &format!("SET {here} 1"),
        "EXEC",
        &format!("SET {here} 2"),
    ];
    send(&mut pair, client, &lines);
    take_output(&mut pair.primary, client);
    let other = Other::accept(&mut pair.primary, NOW, 2);
    assert_eq!(other.requests(&mut pair.primary, NOW).len(), 1);
    let now = wait(&mut pair);
    let said = String::from_utf8(take_output_at(now, &mut pair.primary, client)).unwrap();
    assert!(said.starts_with("-ERR outcome unknown") && said.lines().count() == 1, "{said}");
    assert_eq!(pair.primary.fate(client), crate::Fate::Shut);
    pair.primary.handle_bytes(now, reader, &commands(&[&format!("GET {here}")]));
    pair.exchange_at(now);
    let said = take_output_at(now, &mut pair.primary, reader);
    assert_eq!(said, b"$-1\r\n", "a later command was executed");
}

#[test]
fn a_lost_group_fails_its_own_command_and_a_deadline_all_after_it() {
    for is_lost in [true, false] {
        let (mut pair, client) = ordered();
        let (here, there) = (key_of(0), key_of(2));
        if is_lost {
            pair.primary.service.set_map(map_with_a_lost_group().into());
        }
        let lines = [
            "MULTI",
            &format!("SET {here} 1"),
            &format!("SET {there} 1"),
            &format!("GET {there}"),
            &format!("INCR {here}"),
            "EXEC",
        ];
        send(&mut pair, client, &lines);
        let now = if is_lost { NOW } else { wait(&mut pair) };
        pair.exchange_at(now);
        let said = String::from_utf8(take_output_at(now, &mut pair.primary, client)).unwrap();
        let said: Vec<&str> = said.lines().skip(1 + 4 + 1).collect();
        match is_lost {
            true => {
                let down = "-CLUSTERDOWN Hash slot not served";
                assert_eq!(said, ["+OK", down, down, ":2"]);
            }
            false => {
                assert_eq!(said[0], "+OK");
                assert_eq!(said.len(), 4);
                assert!(said[1..].iter().all(|line| line.starts_with("-TRYAGAIN ")), "{said:?}");
            }
        }
        assert_eq!(pair.primary.fate(client), crate::Fate::Read);
        assert_eq!(pair.primary.redis_bytes(client), Some(0));
    }
}

#[test]
fn a_command_with_too_many_keys_fails_within_its_transaction() {
    let (mut pair, client) = ordered();
    let (here, there) = (key_of(0), key_of(2));
    // No key is read twice, so each is a request.
    let keys: Vec<String> = (0..70_000).map(|n| format!("key{n}")).collect();
    let lines = [
        "MULTI",
        &format!("SET {here} 1"),
        &format!("MGET {there} {}", keys.join(" ")),
        &format!("INCR {here}"),
        "EXEC",
    ];
    send(&mut pair, client, &lines);
    let said = replies(&mut pair, client);
    let many = "-ERR a command has at most 65,536 keys in this store";
    assert!(said.ends_with(&format!("*3\r\n+OK\r\n{many}\r\n:2\r\n")), "{said}");
    assert_eq!(pair.primary.redis_bytes(client), Some(0));
}
