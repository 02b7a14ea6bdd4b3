//! Tests of slow, silent, greedy and numerous clients. Limits and deadlines protect other clients.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::common::load::{check_all, put_all, run_all};
use crate::common::ports::{Kind, Ports, VICTIM};
use crate::common::raw::{Raw, hello, request, write_number};
use crate::common::{Cluster, TIMEOUT, process, wait_for, wait_until};
use kv_client::update::Action;
use kv_client::{Error, Expiry, Op, OpOptions, Options, Update, WallTime};
use kv_protocol::client_message::{Operation, Question, Refusal, Status, opcode};
use kv_protocol::ids::{ClientId, RequestId, ShardId};
use kv_protocol::limits::{
    FRAME_DEADLINE, HELLO_DEADLINE, MAX_CLIENT_CONNECTIONS, MAX_COORDINATOR_CONNECTIONS,
    MAX_UPDATES, MAX_VALUE_BYTES, STALL_DEADLINE,
};
use kv_protocol::map::ServerState;
use kv_protocol::status::{AlarmKind, AlarmStatus};

/// The longest delay of a close after its deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(3);
/// The longest time that a well-behaved client may wait meanwhile on a busy machine.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

#[test]
fn slow_silent_and_greedy_connections_are_closed_at_their_deadlines_and_delay_no_other() {
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let ports = &Ports::of(&cluster);
    let pid = pids[VICTIM];
    let key = &cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "large");
    let value = vec![1; 1 << 20];
    cluster.open().put(key, &value, &OpOptions::default()).expect("a put");
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let good = scope.spawn(|| longest_wait_of_a_good_client(&cluster, over));
        let idle = scope.spawn(move || {
            let mut raw = ports.welcomed(1);
            wait_until("the end of the others", 2 * TIMEOUT, || over.load(Ordering::SeqCst));
            assert_eq!(
                raw.ask(key, Operation::Noop).status,
                Status::Ok,
                "an idle connection is kept"
            );
        });
        let mut culprits = Vec::new();
        for kind in Kind::ALL {
            culprits.push(scope.spawn(move || {
                let raw = ports.connect(kind);
                assert_closed_after(HELLO_DEADLINE, kind, "silent", raw, &[]);
            }));
            culprits.push(scope.spawn(move || {
                let raw = ports.connect(kind);
                assert_closed_after(FRAME_DEADLINE, kind, "slow", raw, &ports.first_frame(kind));
            }));
        }
        culprits.push(scope.spawn(move || {
            let raw = ports.welcomed(2);
            let put = request(RequestId(1), key, Operation::Put(write_number(1), b"slow"));
            assert_closed_after(FRAME_DEADLINE, Kind::Clients, "slow later", raw, &put);
        }));
        culprits.push(scope.spawn(move || ask_without_reading(ports, key, pid)));
        // All threads are joined before the first failure is reported.
        let ended: Vec<_> = culprits.into_iter().map(|culprit| culprit.join()).collect();
        over.store(true, Ordering::SeqCst);
        idle.join().expect("an idle connection stays");
        assert!(
            ended.into_iter().all(|end| end.is_ok()),
            "a connection was not closed as expected, see above"
        );
        let longest = good.join().expect("a client that is served");
        assert!(longest < LONGEST_WAIT, "a good client waited {longest:?}");
    });
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}

/// Sends one byte of `bytes` each second; fails unless the connection closes at its deadline.
fn assert_closed_after(deadline: Duration, kind: Kind, manner: &str, mut raw: Raw, bytes: &[u8]) {
    let start = Instant::now();
    let mut sent = 0;
    wait_until("the connection to be closed", deadline + SLACK, || {
        if bytes.len() > sent && start.elapsed() >= Duration::from_secs(sent as u64) {
            raw.send_if_open(&bytes[sent..=sent]);
            sent += 1;
        }
        raw.is_closed()
    });
    let lasted = start.elapsed();
    assert!(lasted + SLACK > deadline, "{manner} on {kind:?}: closed after only {lasted:?}");
}

/// Requests a megabyte repeatedly and reads no response.
fn ask_without_reading(ports: &Ports, key: &[u8], pid: u32) {
    let mut raw = ports.welcomed(3);
    let before = process::resident_bytes(pid);
    raw.stream.set_nonblocking(true).expect("make it non-blocking");
    let ask: Vec<u8> = (0..64).flat_map(|id| request(RequestId(id), key, Operation::Get)).collect();
    let mut at = 0;
    let start = Instant::now();
    let mut most = 0;
    wait_until("a client that never reads to be closed", 2 * STALL_DEADLINE + SLACK, || {
        most = most.max(process::resident_bytes(pid).saturating_sub(before));
        match raw.stream.write(&ask[at..]) {
            Ok(count) => {
                at = (at + count) % ask.len();
                false
            }
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    });
    assert!(start.elapsed() > STALL_DEADLINE - SLACK, "closed after {:?}", start.elapsed());
    assert!(most < 64 << 20, "the server allocated {most} bytes for responses that are not read");
}

fn longest_wait_of_a_good_client(cluster: &Cluster, over: &AtomicBool) -> Duration {
    let mut client = cluster.open();
    let key = cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "good");
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        let start = Instant::now();
        client.put(&key, b"v", &OpOptions::default()).expect("a put");
        client.get(&key, &OpOptions::default()).expect("a get");
        longest = longest.max(start.elapsed());
    }
    longest
}

/// A lock for tests that open very many sockets: the descriptors of one process are not enough for two such tests at
/// once.
static MANY_SOCKETS: Mutex<()> = Mutex::new(());

#[test]
fn connections_beyond_the_limit_are_rejected_as_busy_and_the_clusters_own_links_stay() {
    let _alone = MANY_SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = process::raise_own_descriptor_limit();
    let needed = MAX_CLIENT_CONNECTIONS as u64 + 1_000;
    assert!(limit >= needed, "this test opens {needed} sockets; raise the hard limit (ulimit -Hn)");
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let ports = Ports::of(&cluster);
    let crowd = crowd(&ports, Kind::Clients, MAX_CLIENT_CONNECTIONS);
    let (status, reason) = {
        let mut one_more = ports.connect(Kind::Clients);
        one_more.send_if_open(&hello(ports.status.cluster, ClientId(1), ShardId(0)));
        let said = one_more.await_close();
        let said = said.first().expect("a reason before the close");
        assert_eq!(said.opcode, opcode::ERROR);
        let refusal = Refusal::read(&said.body).expect("a refusal");
        (refusal.status, refusal.reason.to_owned())
    };
    assert_eq!(status, Status::Busy, "{reason}");
    let status = cluster.status();
    assert!(status.servers.iter().all(|server| server.state == ServerState::Up));
    assert!(status.groups.iter().all(|group| group.copies == 2));
    drop(crowd);
    wait_until("room for a client again", TIMEOUT, || {
        let mut raw = ports.connect(Kind::Clients);
        raw.send_if_open(&hello(ports.status.cluster, ClientId(1), ShardId(0)));
        is_welcomed(&mut raw)
    });
    cluster.assert_serves(&pids);
}

#[test]
fn idle_connections_of_an_address_that_fills_the_limit_make_room_for_other_addresses() {
    const OTHERS: u128 = 40;
    let cluster = Cluster::builder().open_files(256).start();
    let pids = cluster.server_pids();
    let ports = Ports::of(&cluster);
    let handshake = hello(ports.status.cluster, ClientId(1), ShardId(0));
    let mut crowd = Vec::new();
    loop {
        let mut raw = ports.connect(Kind::Clients);
        raw.send_if_open(&handshake);
        if !is_welcomed(&mut raw) {
            break;
        }
        crowd.push(raw);
        assert!(crowd.len() < 256, "the connection limit is not enforced");
    }
    let mut others: Vec<Raw> = (0..OTHERS)
        .map(|_| {
            wait_for("a connection from another address to be accepted", TIMEOUT, || {
                let mut raw = Raw::from_another_address(ports.address(Kind::Clients));
                raw.send_if_open(&handshake);
                is_welcomed(&mut raw).then_some(raw)
            })
        })
        .collect();
    let key = cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "crowded");
    for other in &mut others {
        assert_eq!(other.ask(&key, Operation::Noop).status, Status::Ok);
    }
    wait_until("the longest-idle connection to be closed", TIMEOUT, || crowd[0].is_closed());
    let newest = crowd.last_mut().expect("there are some");
    assert_eq!(
        newest.ask(&key, Operation::Noop).status,
        Status::Ok,
        "it has not been idle for long"
    );
    let of_crowd = |alarm: &AlarmStatus| alarm.kind == AlarmKind::Crowded;
    let alarm =
        wait_for("an alarm", TIMEOUT, || cluster.status().alarms.into_iter().find(of_crowd));
    assert!(alarm.text.contains("127.0.0.1 has"), "{}", alarm.text);
    let log = std::fs::read_to_string(cluster.dir().join("server_1.log")).expect("a log");
    assert!(log.contains("idle connections of 127.0.0.1"), "{log}");
    drop((crowd, others));
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}

#[test]
fn idle_connections_to_the_coordinator_make_room_for_clients_with_requests() {
    let _alone = MANY_SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    process::raise_own_descriptor_limit();
    let cluster = Cluster::start();
    let ports = Ports::of(&cluster);
    let greet = || {
        let mut raw = ports.connect(Kind::Map);
        raw.send(&hello(ports.status.cluster, ClientId(1), ShardId(0)));
        assert_eq!(raw.frame().opcode, opcode::WELCOME);
        raw
    };
    let mut oldest = greet();
    let mut asks = greet();
    let mut crowd = Vec::new();
    for _ in 0..MAX_COORDINATOR_CONNECTIONS {
        crowd.push(greet());
        if crowd.len() % 512 == 0 {
            // A connection with occasional requests is never the longest-idle one.
            let mut question = Vec::new();
            Question::Map.write(&mut question);
            asks.send(&question);
            assert_eq!(asks.frame().opcode, opcode::MAP_RESPONSE);
        }
    }
    assert_eq!(oldest.await_close(), []);
    // The connections of the crowd have reached the limit, but a client and the status command are still served.
    cluster.client("P \"k\" \"v\"\n").with_code(0);
    assert!(cluster.status().groups.iter().all(|group| group.copies == 2));
    drop(crowd);
}

#[test]
fn many_status_requests_do_not_delay_a_failover() {
    const CROWD: usize = 400;
    const LONGEST: Duration = Duration::from_millis(500);
    process::raise_own_descriptor_limit();
    let cluster = Cluster::start();
    let ports = Ports::of(&cluster);
    let key = cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "failover");
    let mut client = cluster.open();
    client.put(&key, b"v", &OpOptions::default()).expect("a put");
    let victim = cluster.server_pid(VICTIM);
    let over = AtomicBool::new(false);
    let mut question = Vec::new();
    Question::Status.write(&mut question);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let crowd: Vec<Raw> = (0..CROWD / 4)
                .map(|_| Raw::welcomed(ports.address(Kind::Map), ClientId(5), ShardId(0)))
                .collect();
            let (over, question) = (&over, &question);
            scope.spawn(move || {
                let mut crowd = crowd;
                while !over.load(Ordering::SeqCst) {
                    crowd.iter_mut().for_each(|raw| raw.send_if_open(question));
                    for raw in &mut crowd {
                        assert_eq!(raw.frame().opcode, opcode::STATUS_RESPONSE);
                    }
                }
            });
        }
        let killed = Instant::now();
        process::signal(victim, process::Signal::KILL);
        let value = client.get(&key, &OpOptions::default());
        let took = killed.elapsed();
        over.store(true, Ordering::SeqCst);
        assert_eq!(value.expect("a get").bytes, b"v");
        assert!(took < LONGEST, "the failover took {took:?}");
    });
}

/// Opens connections until `most` have received a WELCOME. Connections of the fixture that have
/// just ended may still count for a moment.
fn crowd(ports: &Ports, kind: Kind, most: usize) -> Vec<Raw> {
    const AT_ONCE: usize = 256;
    let mut crowd: Vec<Raw> = Vec::new();
    wait_until("a WELCOME for every connection", TIMEOUT, || {
        let greeted = crowd.len();
        for n in greeted..most.min(greeted + AT_ONCE) {
            let mut raw = ports.connect(kind);
            raw.send(&hello(ports.status.cluster, ClientId(n as u128), ShardId(0)));
            crowd.push(raw);
        }
        let mut place = 0;
        crowd.retain_mut(|raw| {
            place += 1;
            place <= greeted || is_welcomed(raw)
        });
        crowd.len() == most
    });
    crowd
}

#[test]
fn silent_strangers_do_not_keep_the_clusters_own_links_from_reconnecting() {
    // More connections than a port keeps without a hello, and at most a listener's backlog.
    const STRANGERS: [(Kind, usize); 3] =
        [(Kind::Servers, 1_100), (Kind::Orders, 100), (Kind::Reports, 500)];
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    if !process::may_cut_connections(pids[VICTIM]) {
        crate::common::skipped("pidfd_getfd(2) is not permitted here, so no link was cut");
        return;
    }
    let ports = Ports::of(&cluster);
    for (kind, strangers) in STRANGERS {
        let port = ports.address(kind).port();
        // The process that connects to that port for the cluster: predecessor, coordinator or
        // victim.
        let dialler = match kind {
            Kind::Servers => pids[VICTIM - 1],
            Kind::Orders => cluster.coord_pid(),
            _ => pids[VICTIM],
        };
        let crowd: Vec<Raw> = (0..strangers).map(|_| ports.connect(kind)).collect();
        let start = Instant::now();
        assert_eq!(process::cut_connections(dialler, port), 1, "{kind:?}");
        cluster.assert_serves(&pids);
        wait_until("the link to be back", TIMEOUT, || process::connections(dialler, port) == 1);
        // The deadlines of the strangers had not passed by then.
        assert!(start.elapsed() < HELLO_DEADLINE / 2, "{kind:?}: {:?}", start.elapsed());
        cluster.assert_serves(&pids);
        drop(crowd);
    }
    cluster.stop().assert_copies_agree();
}

/// Waits for the server's response; returns true if it is WELCOME.
fn is_welcomed(raw: &mut Raw) -> bool {
    raw.next_frame().is_some_and(|frame| frame.opcode == opcode::WELCOME)
}

#[test]
fn a_server_without_descriptors_keeps_its_links_and_recovers_by_itself() {
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let ports = Ports::of(&cluster);
    let pid = pids[VICTIM];
    let mut early = ports.welcomed(1);
    let room = process::open_descriptors(pid) + 10;
    process::limit_descriptors(pid, room);

    // There are more connections than the server has descriptors for. Most of them must not be welcomed.
    let mut crowd: Vec<Raw> = (0..40)
        .map(|n| {
            let mut raw = ports.connect(Kind::Clients);
            raw.send_if_open(&hello(ports.status.cluster, ClientId(n), ShardId(0)));
            raw
        })
        .collect();
    wait_until("all descriptors to be used", TIMEOUT, || process::open_descriptors(pid) >= room);
    // The links still work: heartbeats continue for longer than the failure timeout. Existing clients and the stream to
    // the secondary also work.
    let key = cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "full");
    let start = Instant::now();
    let mut seq = 0;
    wait_until("a second without descriptors", TIMEOUT, || {
        seq += 1;
        let put = Operation::Put(write_number(seq), b"v");
        assert_eq!(early.ask(&key, put).status, Status::Ok);
        assert_eq!(cluster.server(VICTIM).state, ServerState::Up);
        start.elapsed() > Duration::from_secs(1)
    });
    // The other connections wait. Connections that arrived in one burst with the last accepted ones were rejected. A
    // few more than ten were accepted, because others closed after the limit was set.
    let is_answered_welcome = |raw: &mut Raw| raw.has_input() && is_welcomed(raw);
    let welcomed = crowd.iter_mut().map(is_answered_welcome).filter(|welcomed| *welcomed).count();
    assert!(welcomed < 20, "{welcomed} of 40 were welcomed where there was room for 10");
    drop(crowd);
    wait_until("a new client to be served, although the limit stays", TIMEOUT, || {
        let mut raw = ports.connect(Kind::Clients);
        raw.send_if_open(&hello(ports.status.cluster, ClientId(99), ShardId(0)));
        is_welcomed(&mut raw)
    });
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_server_at_its_limit_of_open_files_stops_with_complete_dumps() {
    let cluster = Cluster::builder().shards(2).open_files(256).start();
    let pids = cluster.server_pids();
    let pairs: Vec<_> = (0..200).map(|n| (format!("key {n}").into_bytes(), vec![n])).collect();
    put_all(&mut cluster.open(), &pairs);
    let ports = Ports::of(&cluster);
    let mut crowd = Vec::new();
    for n in 0..300 {
        let mut raw = ports.connect(Kind::Clients);
        raw.send_if_open(&hello(ports.status.cluster, ClientId(n), ShardId(0)));
        crowd.push(raw);
        crowd.push(ports.connect(Kind::Servers));
    }
    let clients = crowd.iter_mut().step_by(2);
    let mut welcomed: Vec<&mut Raw> = clients.filter_map(|r| is_welcomed(r).then_some(r)).collect();
    let count = welcomed.len();
    assert!((50..256).contains(&count), "{count} of 300 clients were welcomed");
    // Strangers at the servers port stay until their hello is overdue. The stream works meanwhile.
    let key = cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "full");
    let put = Operation::Put(write_number(1), b"v");
    assert_eq!(welcomed[0].ask(&key, put).status, Status::Ok);
    assert!(pids.iter().all(|pid| process::is_alive(*pid)));
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), pairs.len() + 1);
    drop(crowd);
}

/// One request with the most updates of a value of the greatest length must not keep a shard from its other work.
#[test]
fn updates_that_would_make_long_values_over_and_over_delay_no_other_work() {
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let key = cluster.key_at(0, 0, "long");
    let mut client = cluster.open();
    let options = OpOptions::default();
    client.put(&key, &vec![1; MAX_VALUE_BYTES], &options).expect("a put");
    let optional = |action| Update { is_optional: true, ..Update::new(action) };
    let appends = vec![optional(Action::Append(b"x")); MAX_UPDATES];
    let batch = client.batch(&key, &appends, &options).expect("a batch whose updates are skipped");
    assert!(batch.results.iter().all(|result| result.status == Status::TooBig));
    // No value is made of an entry that would have expired.
    let expiry = Expiry::At(WallTime::from_millis(1));
    let last = u32::try_from(MAX_VALUE_BYTES - 1).expect("16 MiB");
    let set = Update { expiry, ..optional(Action::SetRange { offset: last, bytes: b"x" }) };
    let absent = cluster.key_at(0, 0, "absent");
    client.batch(&absent, &vec![set; MAX_UPDATES], &options).expect("a batch that stores nothing");
    assert!(client.get(&absent, &options).is_err());
    cluster.assert_serves(&pids);
    let longest = cluster.status().servers.iter().map(|server| server.longest_gap_ms).max();
    assert!(longest < Some(500), "a gap of {longest:?} ms between beacons");
}

#[test]
fn at_the_memory_limit_writes_are_rejected_reads_and_deletes_work_and_both_copies_agree() {
    let cluster = Cluster::builder().flag("--memory-limit").flag("64M").start();
    let pids = cluster.server_pids();
    let mut client = cluster.open();
    let value = vec![5; 64 << 10];
    // Three servers with 32 MiB for each primary table.
    let keys: Vec<Vec<u8>> = (0..4_000).map(|n| format!("key {n}").into_bytes()).collect();
    let mut done = vec![false; keys.len()];
    let mut refused = 0;
    let puts = keys.iter().map(|key| Op::Put { key, value: &value });
    run_all(&mut client, puts, |place, result| match result {
        Ok(_) => done[place] = true,
        Err(Error::OutOfSpace { .. }) => refused += 1,
        Err(error) => panic!("put {place}: {error}"),
    });
    assert!(refused > 1_000, "{refused} of 4,000 writes of 64 KiB were rejected");
    let kept: Vec<_> = keys
        .iter()
        .zip(&done)
        .filter(|(_, done)| **done)
        .map(|(key, _)| (key.clone(), value.clone()))
        .collect();
    assert!(kept.len() > 500, "only {} writes of 64 KiB found room", kept.len());
    for pid in &pids {
        let resident = process::resident_bytes(*pid);
        assert!(resident < 256 << 20, "{resident} bytes are held under a limit of 64 MiB");
    }
    check_all(&mut client, &kept);
    for ((key, _), done) in keys.iter().zip(&done).map(|(key, done)| ((key, ()), done)) {
        if !done {
            let error = client.get(key, &OpOptions::default()).expect_err("a refused write");
            assert!(matches!(error, Error::NotFound { .. }), "{error}");
        }
    }
    // Deletes free memory for further writes.
    let (gone, rest) = kept.split_at(kept.len() / 2);
    let deletes = gone.iter().map(|(key, _)| Op::Delete { key });
    run_all(&mut client, deletes, |place, result| {
        result.unwrap_or_else(|error| panic!("delete {place}: {error}"));
    });
    put_all(&mut client, &gone[..gone.len() / 2]);
    check_all(&mut client, rest);
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), rest.len() + gone.len() / 2);
}

#[test]
fn a_stop_names_a_dump_that_cannot_be_written_and_waits_until_it_can() {
    let builder = Cluster::builder();
    // A file cannot be created under the name of a directory.
    let obstacle = builder.dir().join("server_1.primary.tmp");
    std::fs::create_dir(&obstacle).expect("make a directory");
    let mut cluster = builder.start();
    let pairs: Vec<_> = (0..300).map(|n| (format!("key {n}").into_bytes(), vec![0; 300])).collect();
    put_all(&mut cluster.open(), &pairs);
    process::signal(cluster.coord_pid(), process::Signal::TERM);
    wait_until("the failed dump to be named", TIMEOUT, || {
        let log = cluster.coord_log();
        log.contains("could not carry out DUMP-PRIMARY") && log.contains("server_1.primary")
    });
    assert!(!cluster.dir().join("server_1.primary").exists(), "half a dump under its final name");
    std::fs::remove_dir(&obstacle).expect("remove the directory");
    cluster.await_end(0);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), pairs.len());
}

#[test]
fn a_disk_that_is_full_for_a_moment_does_not_lose_a_dump() {
    let builder = Cluster::builder();
    // Writes to this link go to a device that is always full; the server removes the link.
    symlink("/dev/full", builder.dir().join("server_1.primary.tmp")).expect("make a link");
    let mut cluster = builder.start();
    let pairs: Vec<_> = (0..300).map(|n| (format!("key {n}").into_bytes(), vec![0; 300])).collect();
    put_all(&mut cluster.open(), &pairs);
    process::signal(cluster.coord_pid(), process::Signal::TERM);
    cluster.await_end(0);
    let log = cluster.coord_log();
    assert!(log.contains("the dump is tried again"), "{log}");
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), pairs.len());
}

#[test]
fn a_server_whose_log_cannot_be_written_keeps_serving() {
    let builder = Cluster::builder();
    symlink("/dev/full", builder.dir().join("server_1.log")).expect("make a link");
    let cluster = builder.start();
    let pids = cluster.server_pids();
    let mut client = cluster.open_with(Options::default());
    let pairs: Vec<_> = (0..300).map(|n| (format!("key {n}").into_bytes(), vec![1])).collect();
    put_all(&mut client, &pairs);
    check_all(&mut client, &pairs);
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_client_that_disconnects_within_its_responses_does_not_affect_other_clients() {
    let cluster = Cluster::start();
    let ports = Ports::of(&cluster);
    let key = cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, "gone");
    cluster.open().put(&key, &vec![1; 1 << 20], &OpOptions::default()).expect("a put");
    let pid = cluster.server_pid(VICTIM);
    let before = process::open_descriptors(pid);
    for client in 0..50 {
        let mut raw = ports.welcomed(client);
        for id in 0..8 {
            raw.send(&request(RequestId(id), &key, Operation::Get));
        }
        // The connections are dropped while responses are in flight.
    }
    wait_for("all descriptors to be closed", TIMEOUT, || {
        (process::open_descriptors(pid) <= before).then_some(())
    });
    cluster.assert_serves(&cluster.server_pids());
}
