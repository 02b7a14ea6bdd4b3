//! Tests in which processes die, hang, lose connections or leave while others work.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::load::{check_all, put_all};
use crate::common::ports::{Ports, VICTIM};
use crate::common::process::Signal;
use crate::common::programs::{self, COORD};
use crate::common::raw::{request, write_number};
use crate::common::{Cluster, TIMEOUT, poll, process, wait_for, wait_until};
use kv_client::{Client, Error, OpOptions, Options};
use kv_protocol::client_message::Operation;
use kv_protocol::ids::RequestId;
use kv_protocol::map::ServerState;
use kv_protocol::status::{ClusterState, GroupCondition};

/// The deadline of operations that are expected to fail.
const DEADLINE: Duration = Duration::from_secs(1);
/// The time limit on a busy machine for operations while a killed server is replaced or another group is lost.
const NORMAL: Duration = Duration::from_millis(500);

fn within(deadline: Duration) -> OpOptions {
    OpOptions { deadline: Some(deadline), ..OpOptions::default() }
}

/// Returns `count` pairs, evenly spread over the groups.
fn pairs(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count)
        .map(|n| (format!("key {n}").into_bytes(), format!("value {n}").into_bytes()))
        .collect()
}

fn group_of(cluster: &Cluster, key: &[u8]) -> usize {
    cluster.placement().locate(key).0.0.into()
}

#[test]
fn a_killed_server_is_replaced_and_every_key_stays_readable_and_writable() {
    let cluster = Cluster::builder().servers(4).start();
    let pairs = pairs(2_000);
    let mut client = cluster.open();
    put_all(&mut client, &pairs);
    for dead in [1, 3] {
        let pid = cluster.server_pid(dead);
        process::signal(pid, Signal::KILL);
        for (key, value) in &pairs {
            let start = Instant::now();
            assert_eq!(client.get(key, &OpOptions::default()).expect("a get").bytes, *value);
            client.put(key, value, &OpOptions::default()).expect("a put");
            let waited = start.elapsed();
            assert!(waited < NORMAL, "group {}: {waited:?}", group_of(&cluster, key));
        }
        cluster.await_whole();
        assert_ne!(cluster.server_pid(dead), pid);
        let log = cluster.coord_log();
        assert!(log.contains(&format!("server {dead} is down")), "{log}");
        for step in 0..=3 {
            assert!(log.contains(&format!("server {dead}, step {step}")), "step {step}:\n{log}");
        }
    }
    check_all(&mut client, &pairs);
    let written = client.put(b"after", b"v", &OpOptions::default()).expect("a put");
    assert_eq!(written.copies, 2);
    cluster.stop().assert_copies_agree();
}

#[test]
fn the_command_line_client_finishes_in_three_seconds_although_a_server_was_killed() {
    let cluster = Cluster::builder().servers(4).start();
    let (moved, kept) = (cluster.key_at(1, 0, "l"), cluster.key_at(2, 0, "k"));
    let (moved, kept) = (String::from_utf8(moved).unwrap(), String::from_utf8(kept).unwrap());
    let operations = format!("P \"{moved}\" \"1\"\nP \"{kept}\" \"2\"\n");
    cluster.client(&operations).with_code(0);
    process::signal(cluster.server_pid(1), Signal::KILL);
    let start = Instant::now();
    let operations = format!("G \"{kept}\"\nG \"{moved}\"\nG \"{kept}\"\n");
    let ended = cluster.client_with(&["--timeout", "3"], &operations).with_code(0);
    assert!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
    assert_eq!(ended.stdout.matches(&format!("value[\"{kept}\"] == \"2\"")).count(), 2);
    assert!(ended.stdout.contains(&format!("value[\"{moved}\"] == \"1\"")), "{}", ended.stdout);
}

#[test]
fn a_write_sent_to_a_server_that_then_dies_gets_its_response_from_the_successor() {
    let cluster = Cluster::start();
    let key = cluster.key_at(1, 0, "doubt");
    let mut client = cluster.open();
    client.put(&key, b"before", &OpOptions::default()).expect("a put");
    let pid = cluster.server_pid(1);
    process::pause(pid);
    let (written, took) = std::thread::scope(|scope| {
        let write = scope.spawn(|| {
            let start = Instant::now();
            (client.put(&key, b"after", &within(TIMEOUT)), start.elapsed())
        });
        // The write is in flight when the server's silence is detected.
        wait_until("the silence to be detected", TIMEOUT, || {
            cluster.coord_log().contains("server 1 is down")
        });
        process::signal(pid, Signal::KILL);
        write.join().expect("a writer")
    });
    written.expect("a write that the successor accepts");
    assert!(took < 3 * DEADLINE, "{took:?}");
    assert_eq!(client.get(&key, &OpOptions::default()).expect("a get").bytes, b"after");
}

/// Writes growing numbers under one key until `over` is set. Every write must get the response OK. Returns the last
/// number and the longest time that a write took.
fn write_on(mut client: Client, key: &[u8], padding: usize, over: &AtomicBool) -> (u64, Duration) {
    let mut longest = Duration::ZERO;
    for number in 1.. {
        let start = Instant::now();
        let written = client
            .put(key, &numbered(number, padding), &within(TIMEOUT))
            .unwrap_or_else(|error| panic!("write {number}: {error}"));
        assert!((1..=2).contains(&written.copies));
        longest = longest.max(start.elapsed());
        if over.load(Ordering::SeqCst) {
            return (number, longest);
        }
    }
    unreachable!("fewer writes than u64::MAX");
}

/// Returns a value that begins with a number and has `padding` further bytes.
fn numbered(number: u64, padding: usize) -> Vec<u8> {
    let mut value = format!("{number};").into_bytes();
    let filler = number.to_le_bytes()[0];
    value.resize(value.len() + padding, filler);
    value
}

/// Injects a fault while values with this padding are written to every group. Fails unless all groups are whole
/// afterwards and both dumps hold the last write of each writer. Returns the longest time of a write for each group.
fn nothing_is_lost_through(padding: usize, fault: impl FnOnce(&Cluster)) -> Vec<Duration> {
    let cluster = Cluster::start();
    let keys: Vec<Vec<u8>> = (0..3).map(|group| cluster.key_at(group, 0, "w")).collect();
    let over = AtomicBool::new(false);
    let ended: Vec<(u64, Duration)> = std::thread::scope(|scope| {
        let writers: Vec<_> = keys
            .iter()
            .map(|key| {
                let client = cluster.open();
                scope.spawn(|| write_on(client, key, padding, &over))
            })
            .collect();
        let stopper = StopOnDrop(&over);
        wait_until("every writer to be at work", TIMEOUT, || {
            cluster.status().groups.iter().all(|group| group.entries > 0)
        });
        fault(&cluster);
        drop(stopper);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    cluster.await_whole();
    cluster.assert_serves(&cluster.server_pids());
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    let entries = dumps.entries();
    for (key, (last, _)) in keys.iter().zip(&ended) {
        let value = &entries[&key[..]].value;
        assert!(*value == numbered(*last, padding), "not write {last}, but {:?}", value.get(..20));
    }
    ended.into_iter().map(|(_, longest)| longest).collect()
}

/// Stops the writers even if the fault injection panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_hung_server_is_failed_over_and_replaced_while_writes_continue() {
    const HANGS: Duration = Duration::from_secs(3);
    let longest = nothing_is_lost_through(0, |cluster| {
        let pid = cluster.server_pid(1);
        process::pause(pid);
        let since = Instant::now();
        let replaced = poll(HANGS, || {
            let server = cluster.server(1);
            (server.state == ServerState::Up && server.pid != Some(pid)).then_some(since.elapsed())
        });
        process::signal(pid, Signal::CONT);
        replaced.expect("another process in place of the hung one");
    });
    // A failover takes the time of the suspicion and the grace of the new primary, and longer on a busy machine.
    assert!(longest.iter().all(|longest| *longest < HANGS), "{longest:?}");
}

#[test]
fn a_machine_that_is_suspended_repeatedly_costs_no_group_a_member() {
    // The lengths of the pauses in milliseconds: just below the failure timeout, just above it, and far above it.
    const STANDS: [u64; 8] = [700, 440, 480, 520, 460, 700, 500, 450];
    const RUNS: Duration = Duration::from_millis(200);
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let mut client = cluster.open();
    let pairs = pairs(100);
    let passes = |time: Duration, meanwhile: &mut dyn FnMut()| {
        let start = Instant::now();
        wait_until("time to pass", TIMEOUT, || {
            meanwhile();
            start.elapsed() >= time
        });
    };
    for (round, stands) in STANDS.into_iter().enumerate() {
        // Pauses all processes of the cluster, in a different order each time.
        let mut all: Vec<u32> = pids.iter().copied().chain([cluster.coord_pid()]).collect();
        all.rotate_left(round % 4);
        all.iter().for_each(|pid| process::pause(*pid));
        passes(Duration::from_millis(stands), &mut || {});
        all.iter().for_each(|pid| process::signal(*pid, Signal::CONT));
        passes(RUNS, &mut || put_all(&mut client, &pairs));
    }
    let log = cluster.coord_log();
    assert!(!log.contains("view 1 -> 2"), "a suspended server was declared dead: {log}");
    assert_eq!(cluster.server_pids(), pids);
    check_all(&mut client, &pairs);
    cluster.stop().assert_copies_agree();
}

#[test]
fn streams_between_servers_that_are_cut_repeatedly_lose_no_write() {
    nothing_is_lost_through(0, cut_streams);
}

#[test]
fn streams_that_are_cut_within_large_values_lose_no_write() {
    nothing_is_lost_through(3 << 20, cut_streams);
}

/// Cuts all streams of the ring one after the other, several times.
fn cut_streams(cluster: &Cluster) {
    let status = cluster.status();
    if !process::may_cut_connections(status.servers[0].pid.expect("started")) {
        crate::common::skipped("pidfd_getfd(2) is not permitted here, so no stream was cut");
        return;
    }
    for round in 0..20 {
        let (from, to) = (round % 3, (round + 1) % 3);
        let port = status.servers[to].servers.as_ref().expect("started");
        let port = port.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        let pid = status.servers[from].pid.expect("started");
        wait_until("a stream to be cut", TIMEOUT, || process::cut_connections(pid, port) > 0);
    }
}

#[test]
fn servers_reconnect_to_the_coordinator_after_their_connections_are_cut() {
    nothing_is_lost_through(0, |cluster| {
        let status = cluster.status();
        if !process::may_cut_connections(status.servers[0].pid.expect("started")) {
            crate::common::skipped("pidfd_getfd(2) is not permitted here, so no link was cut");
            return;
        }
        for server in &status.servers {
            let port = server.coord.as_ref().expect("started");
            let port = port.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
            let reports =
                process::cut_connections(server.pid.expect("started"), cluster.ready.servers_port);
            let orders = process::cut_connections(cluster.coord_pid(), port);
            assert_eq!((reports, orders), (1, 1), "links of server {}", server.id);
        }
        wait_until("all servers to be up again", TIMEOUT, || {
            cluster.status().state == ClusterState::Serving
        });
    });
}

#[test]
fn a_server_that_leaves_hands_over_exits_within_five_seconds_and_is_replaced() {
    let cluster = Cluster::start();
    let pairs = pairs(3_000);
    let mut client = cluster.open();
    put_all(&mut client, &pairs);
    let pid = cluster.server_pid(1);
    process::signal(pid, Signal::TERM);
    wait_until("the server to exit", Duration::from_secs(5), || !process::is_alive(pid));
    wait_until("the coordinator to log it", TIMEOUT, || {
        cluster.coord_log().contains("server 1 received a stop signal")
    });
    cluster.await_whole();
    for role in ["primary", "secondary"] {
        // The server has left no dump: other servers have newer data, and an old dump would be misleading.
        let path = cluster.dir().join(format!("server_1.{role}.old"));
        assert!(!path.exists(), "{}", path.display());
    }
    check_all(&mut client, &pairs);
    cluster.stop().assert_copies_agree();
}

#[test]
fn every_write_acknowledged_while_a_server_leaves_is_in_a_dump() {
    let mut cluster = Cluster::builder().shards(2).start();
    let keys: Vec<Vec<u8>> = (0..3)
        .flat_map(|group| (0..2).map(move |shard| (group, shard)))
        .map(|(group, shard)| cluster.key_at(group, shard, "w"))
        .collect();
    let responded: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = keys
            .iter()
            .map(|key| {
                let client = cluster.open();
                scope.spawn(|| write_until_it_fails(client, key, 3 * DEADLINE))
            })
            .collect();
        wait_until("every writer to be at work", TIMEOUT, || {
            cluster.status().groups.iter().all(|group| group.entries >= 2)
        });
        let pid = cluster.server_pid(1);
        process::signal(pid, Signal::TERM);
        wait_until("the server to exit", Duration::from_secs(5), || !process::is_alive(pid));
        cluster.await_whole();
        process::signal(cluster.coord_pid(), Signal::TERM);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    cluster.await_end(0);
    for (place, (key, responded)) in keys.iter().zip(responded).enumerate() {
        let group = place / 2;
        let found: Vec<u64> = [(group, "primary"), ((group + 1) % 3, "secondary")]
            .into_iter()
            .flat_map(|(server, role)| cluster.dump(server, role).entries)
            .filter(|entry| entry.key == *key)
            .map(|entry| String::from_utf8(entry.value).expect("a number").parse().expect("one"))
            .collect();
        let newest = found.iter().max();
        assert!(
            newest >= Some(&responded),
            "group {group}: {responded} was acknowledged, but {found:?} was dumped"
        );
    }
}

/// Writes growing numbers under one key until a write fails. Returns the last number with the response OK.
fn write_until_it_fails(mut client: Client, key: &[u8], deadline: Duration) -> u64 {
    let mut responded = 0;
    loop {
        let value = (responded + 1).to_string().into_bytes();
        match client.put(key, &value, &within(deadline)) {
            Ok(_) => responded += 1,
            // The cluster of another test may have the port of this one's coordinator afterwards.
            Err(Error::InDoubt { .. } | Error::Unavailable { .. } | Error::OtherCluster { .. }) => {
                return responded;
            }
            Err(error) => panic!("write {}: {error}", responded + 1),
        }
    }
}

#[test]
fn when_two_neighbours_die_under_isolate_only_their_common_group_is_lost_and_no_other_fails() {
    const LOST: u16 = 1;
    let builder = Cluster::builder().servers(5);
    let mut cluster = builder.flag("--on-double-fault").flag("isolate").start();
    let pairs = pairs(2_000);
    put_all(&mut cluster.open(), &pairs);
    let lost_key = cluster.key_at(LOST, 0, "gone");
    put_all(&mut cluster.open(), &[(lost_key.clone(), b"v".to_vec())]);
    let keys: Vec<Vec<u8>> =
        (0..5).filter(|group| *group != LOST).map(|group| cluster.key_at(group, 0, "w")).collect();
    let over = AtomicBool::new(false);
    let ended: Vec<(u64, Duration)> = std::thread::scope(|scope| {
        let writers: Vec<_> = keys
            .iter()
            .map(|key| {
                let client = cluster.open();
                scope.spawn(|| write_on(client, key, 0, &over))
            })
            .collect();
        let _stopper = StopOnDrop(&over);
        for pid in [1, 2].map(|id| cluster.server_pid(id)) {
            process::signal(pid, Signal::KILL);
        }
        wait_until("all but one group to be home again", TIMEOUT, || {
            let status = cluster.status();
            let is_as_wanted = |group: &kv_protocol::status::GroupStatus| {
                let is_lost = group.group.0 == LOST;
                group.condition
                    == if is_lost { GroupCondition::Lost } else { GroupCondition::Whole }
            };
            status.groups.iter().all(is_as_wanted)
                && status.servers.iter().all(|server| server.recovery_step.is_none())
        });
        over.store(true, Ordering::SeqCst);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    for (key, (_, longest)) in keys.iter().zip(&ended) {
        let group = group_of(&cluster, key);
        // Groups 0 and 2 have lost one holder.
        assert!(*longest < NORMAL || group <= 2, "group {group}: {longest:?}");
    }

    let mut client = cluster.open();
    for got in [
        client.get(&lost_key, &within(DEADLINE)).map(drop),
        client.put(&lost_key, b"v", &within(DEADLINE)).map(drop),
    ] {
        assert!(matches!(got, Err(Error::Lost { .. })), "{got:?}");
    }
    let lost_key = String::from_utf8(lost_key).expect("text");
    let failed = cluster.client(&format!("G \"{lost_key}\"\n")).with_code(1);
    assert!(failed.stderr.contains("no server holds this key's group any more"), "{failed:#?}");
    let port = cluster.ready.clients_port.to_string();
    let shown = programs::run(COORD, ["status", "-p", &port], "", TIMEOUT).with_code(4);
    let is_row = |line: &&str| line.starts_with('1') && line.contains("LOST");
    assert_eq!(shown.lines().into_iter().filter(is_row).count(), 1, "{}", shown.stdout);
    assert!(shown.stdout.contains("group 1 is LOST"), "{}", shown.stdout);
    let (kept, _): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(key, _)| group_of(&cluster, key) != usize::from(LOST));
    check_all(&mut client, &kept);

    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(1);
    let said = cluster.coord_errors();
    assert!(said.contains("no server reported a complete dump of group 1"), "{said}");
    let mut found = HashMap::new();
    for group in (0..5).filter(|group| *group != usize::from(LOST)) {
        let sorted = |server: usize, role: &str| {
            let entries = cluster.dump(server, role).entries.into_iter();
            let mut entries: Vec<_> = entries.map(|e| (e.key, e.value)).collect();
            entries.sort();
            entries
        };
        let primary = sorted(group, "primary");
        assert!(primary == sorted((group + 1) % 5, "secondary"), "the dumps of group {group}");
        found.extend(primary);
    }
    for (key, (last, _)) in keys.into_iter().zip(ended) {
        assert_eq!(found.remove(&key), Some(numbered(last, 0)));
    }
    assert_eq!(found, kept.into_iter().collect());
}

#[test]
fn servers_serve_without_their_coordinator_and_write_dumps_on_a_stop_signal() {
    let cluster = Cluster::start();
    let pairs = pairs(1_000);
    // Clients that have the map do not need the coordinator.
    let mut client = cluster.open();
    put_all(&mut client, &pairs);
    let pids = cluster.server_pids();
    process::signal(cluster.coord_pid(), Signal::KILL);
    wait_until("the coordinator's end", TIMEOUT, || !process::is_alive(cluster.coord_pid()));
    let again: Vec<_> =
        pairs.iter().map(|(key, value)| (key.clone(), [&value[..], b" again"].concat())).collect();
    put_all(&mut client, &again);
    check_all(&mut client, &again);
    for pid in &pids {
        assert!(process::is_alive(*pid));
        process::signal(*pid, Signal::TERM);
    }
    wait_for("all servers to exit", TIMEOUT, || {
        pids.iter().all(|pid| !process::is_alive(*pid)).then_some(())
    });
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    let entries = dumps.entries();
    assert!(again.iter().all(|(key, value)| entries[&key[..]].value == *value));
    assert_eq!(entries.len(), again.len());
}

#[test]
fn a_server_that_leaves_while_coordinator_and_secondary_hang_dumps_within_five_seconds() {
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let pairs = pairs(300);
    put_all(&mut cluster.open(), &pairs);
    let ports = Ports::of(&cluster);
    let key = cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "pending");
    let mut raw = ports.welcomed(1);
    process::pause(cluster.coord_pid());
    process::pause(pids[VICTIM + 1]);
    // This write stays pending, so the server cannot drain.
    raw.send(&request(RequestId(1), &key, Operation::Put(write_number(1), b"v")));
    raw.send(&request(RequestId(2), &key, Operation::Get));
    assert_eq!(raw.response().id, RequestId(2), "the write is pending when the GET is served");
    let start = Instant::now();
    process::signal(pids[VICTIM], Signal::TERM);
    wait_until("the server to exit", TIMEOUT, || !process::is_alive(pids[VICTIM]));
    assert!(start.elapsed() < Duration::from_millis(5_500), "{:?}", start.elapsed());
    assert_eq!(raw.next_frame(), None, "the write got a response");
    for (role, group) in [("primary", VICTIM), ("secondary", VICTIM - 1)] {
        let expected = pairs.iter().filter(|(key, _)| group_of(&cluster, key) == group).count();
        assert_eq!(cluster.dump(VICTIM, role).entries.len(), expected, "{role}");
    }
    process::signal(cluster.coord_pid(), Signal::CONT);
    process::signal(pids[VICTIM + 1], Signal::CONT);
}

#[test]
fn a_hung_server_is_killed_and_named_when_the_cluster_stops() {
    let mut cluster = Cluster::start();
    let pairs = pairs(300);
    put_all(&mut cluster.open(), &pairs);
    let pid = cluster.server_pid(1);
    process::pause(pid);
    let start = Instant::now();
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(!process::is_alive(pid));
    let log = cluster.coord_log();
    assert!(log.lines().any(|l| l.contains("server 1") && l.contains("kill")), "{log}");
    // Every group still has at least one dump.
    let mut found = HashMap::new();
    for (server, role) in [(0, "primary"), (2, "secondary"), (2, "primary")] {
        found.extend(cluster.dump(server, role).entries.into_iter().map(|e| (e.key, e.value)));
    }
    assert_eq!(found, pairs.into_iter().collect());
}

#[test]
fn a_client_reconnects_after_its_own_connections_were_cut() {
    let cluster = Cluster::start();
    let pairs = pairs(200);
    let mut client = cluster.open_with(Options::default());
    put_all(&mut client, &pairs);
    for server in &cluster.status().servers {
        let port = server.clients.as_ref().expect("started");
        let port = port.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        // The client runs in this process.
        assert!(process::cut_connections(std::process::id(), port) > 0);
    }
    check_all(&mut client, &pairs);
    put_all(&mut client, &pairs);
    assert!(client.statistics().connections_lost >= 3);
}
