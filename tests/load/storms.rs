//! Tests of many connections at once, and of connections that end in the middle of a request or response, with both
//! network engines. No response is lost or swapped, and all resources of closed connections are released.

use std::time::Duration;

use crate::common::ports::{Kind, Ports, VICTIM};
use crate::common::raw::{Raw, request, write_number};
use crate::common::{Cluster, TIMEOUT, process, wait_until};
use kv_client::OpOptions;
use kv_protocol::client_message::{Operation, Status};
use kv_protocol::ids::{ClientId, RequestId, ShardId};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};

const ENGINES: [&str; 2] = ["uring", "epoll"];

/// The actions of a client before it resets its connection.
type GoSoFar<'a> = &'a dyn Fn(&mut Raw);

fn start(engine: &str) -> Cluster {
    Cluster::builder().flag("--net").flag(engine).start()
}

/// Returns a key of the server that these tests examine.
fn key_of_victim(cluster: &Cluster, prefix: &str) -> Vec<u8> {
    cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, prefix)
}

fn connect(cluster: &Cluster, numbers: std::ops::Range<u32>) -> Vec<Raw> {
    let address = Ports::of(cluster).address(Kind::Clients);
    numbers.map(|n| Raw::welcomed(address, ClientId(u128::from(n) + 1), ShardId(0))).collect()
}

/// Resets a connection: data in flight in either direction is lost.
fn reset(raw: Raw) {
    set_socket_linger(&raw.stream, Some(Duration::ZERO)).expect("set SO_LINGER");
    drop(raw);
}

#[test]
fn simultaneous_requests_with_more_bytes_than_the_buffers_hold_are_all_served() {
    /// The number of connections, which together send several times as many bytes as the receive buffers of a shard
    /// hold.
    const CONNECTIONS: u32 = 400;
    const ROUNDS: u64 = 3;
    const VALUE_BYTES: usize = 30_000;
    const PUT: RequestId = RequestId(1);
    const GET: RequestId = RequestId(2);
    for engine in ENGINES {
        let cluster = start(engine);
        let pid = cluster.server_pids()[VICTIM];
        let keys: Vec<Vec<u8>> =
            (0..CONNECTIONS).map(|n| key_of_victim(&cluster, &format!("storm {n} "))).collect();
        let mut connections = connect(&cluster, 0..CONNECTIONS);
        let value =
            |n: usize, round: u64| vec![(n as u64 * 7 + round).to_le_bytes()[0]; VALUE_BYTES];
        let mut client = cluster.open();
        for (n, key) in keys.iter().enumerate() {
            client.put(key, &value(n, 0), &OpOptions::default()).expect("a put");
        }
        for round in 1..=ROUNDS {
            // All requests are waiting when the stopped server resumes.
            process::pause(pid);
            for (n, raw) in connections.iter_mut().enumerate() {
                let value = value(n, round);
                let put = Operation::Put(write_number(round), &value);
                let mut bytes = request(PUT, &keys[n], put);
                bytes.extend(request(GET, &keys[n], Operation::Get));
                raw.send(&bytes);
            }
            process::signal(pid, process::Signal::CONT);
            for (n, raw) in connections.iter_mut().enumerate() {
                let (one, other) = (raw.response(), raw.response());
                let (put, got) = if one.id == PUT { (one, other) } else { (other, one) };
                assert_eq!((put.id, put.status, put.copies), (PUT, Status::Ok, 2), "{engine}, {n}");
                assert_eq!((got.id, got.status), (GET, Status::Ok), "{engine}, {n}");
                // A value becomes readable only after both copies have it, so the previous value may be returned too.
                let may_be = [value(n, round - 1), value(n, round)];
                assert!(may_be.contains(&got.value), "{engine}: {n} got the value of another key");
            }
        }
        cluster.stop().assert_copies_agree();
    }
}

#[test]
fn long_values_requested_together_arrive_complete_and_in_order_however_slowly_they_are_read() {
    const LONG: usize = 16 << 10;
    const READS: u64 = 500;
    for engine in ENGINES {
        let cluster = start(engine);
        let mut client = cluster.open();
        let keys: Vec<Vec<u8>> = (0..10).map(|n| key_of_victim(&cluster, &n.to_string())).collect();
        let value =
            |n: usize| -> Vec<u8> { (0..LONG).map(|at| (at * 7 + n).to_le_bytes()[0]).collect() };
        for (n, key) in keys.iter().enumerate() {
            client.put(key, &value(n), &OpOptions::default()).expect("a put");
        }
        let mut raw = connect(&cluster, 0..1).remove(0);
        set_socket_recv_buffer_size(&raw.stream, 64 << 10).expect("set SO_RCVBUF");
        // A small request follows each run of reads.
        let key_of = |id: u64| &keys[(id % 10) as usize];
        let operation = |id: u64| if id % 20 == 19 { Operation::Noop } else { Operation::Get };
        let requests = (0..READS).map(|id| request(RequestId(id), key_of(id), operation(id)));
        raw.send(&requests.flatten().collect::<Vec<u8>>());
        for id in 0..READS {
            let response = raw.response();
            assert_eq!((response.id, response.status), (RequestId(id), Status::Ok), "{engine}");
            let expected = if id % 20 == 19 { Vec::new() } else { value((id % 10) as usize) };
            assert!(response.value == expected, "{engine}: response {id} has a wrong value");
        }
        cluster.stop().assert_copies_agree();
    }
}

#[test]
fn connections_reset_in_any_state_of_a_request_or_response_leave_nothing_behind() {
    const LARGE: usize = 4 << 20;
    const LONG: usize = 16 << 10;
    const CLIENTS: u32 = 8;
    for engine in ENGINES {
        let cluster = start(engine);
        let pid = cluster.server_pids()[VICTIM];
        let (large, small) = (key_of_victim(&cluster, "large"), key_of_victim(&cluster, "small"));
        let long = key_of_victim(&cluster, "long");
        let mut client = cluster.open();
        let options = OpOptions::default();
        client.put(&large, &vec![7; LARGE], &options).expect("a put");
        client.put(&small, b"s", &options).expect("a put");
        client.put(&long, &[6; LONG], &options).expect("a put");
        let get_large = request(RequestId(1), &large, Operation::Get);
        let get_long = request(RequestId(4), &long, Operation::Get).repeat(64);
        let get_small = request(RequestId(2), &small, Operation::Get);
        let written = vec![8; LARGE];
        let put_large = request(RequestId(3), &large, Operation::Put(write_number(1), &written));
        // The states in which a client resets its connection.
        let states: [(&str, GoSoFar<'_>); 11] = [
            ("welcomed", &|_| {}),
            ("a request in part", &|raw| raw.send(&get_small[..get_small.len() - 1])),
            ("a long request in part", &|raw| raw.send(&put_large[..LARGE / 2])),
            ("a request whose response is not awaited", &|raw| raw.send(&get_small)),
            ("a long response that does not fit the socket", &|raw| raw.send(&get_large)),
            ("several long responses that wait", &|raw| {
                raw.send(&get_large);
                raw.send(&get_large);
                wait_until("a response to begin", TIMEOUT, || raw.has_input());
            }),
            ("a long response, partly read", &|raw| {
                raw.send(&get_large);
                raw.send(&get_small);
                wait_until("a response to begin", TIMEOUT, || raw.has_input());
                raw.drop_bytes(LARGE / 3);
            }),
            ("responses from the table that do not fit the socket", &|raw| raw.send(&get_long)),
            ("responses from the table, partly read", &|raw| {
                raw.send(&get_long);
                wait_until("a response to begin", TIMEOUT, || raw.has_input());
                raw.drop_bytes(3 * LONG);
                raw.send(&get_long);
            }),
            ("a half-closed connection that awaits responses from the table", &|raw| {
                raw.send(&get_long);
                raw.finish();
                wait_until("a response to begin", TIMEOUT, || raw.has_input());
            }),
            ("a half-closed connection that awaits a response", &|raw| {
                raw.send(&get_large);
                raw.finish();
                wait_until("a response to begin", TIMEOUT, || raw.has_input());
            }),
        ];
        let mut next = 100;
        let before = process::open_descriptors(pid);
        for (state, go) in states {
            let mut clients = connect(&cluster, next..next + CLIENTS);
            next += CLIENTS;
            for raw in &mut clients {
                set_socket_recv_buffer_size(&raw.stream, 64 << 10).expect("set SO_RCVBUF");
                go(raw);
            }
            clients.into_iter().for_each(reset);
            wait_until(&format!("{engine}: nothing to be left of `{state}`"), TIMEOUT, || {
                process::open_descriptors(pid) <= before
            });
            assert_eq!(client.get(&small, &options).expect("a get").bytes, b"s");
        }
        assert!(client.get(&large, &options).expect("a get").bytes == vec![7; LARGE]);
        cluster.stop().assert_copies_agree();
    }
}

#[test]
fn ten_thousand_connections_are_served_and_an_idle_one_costs_at_most_4_kib() {
    const CONNECTIONS: u32 = 10_000;
    const BATCH: u32 = 1_000;
    const MOST_BYTES: u64 = 4 << 10;
    let limit = process::raise_own_descriptor_limit();
    let needed = u64::from(CONNECTIONS + BATCH) + 1_000;
    assert!(limit >= needed, "this test opens {needed} sockets; raise the hard limit (ulimit -Hn)");
    for engine in ENGINES {
        let cluster = start(engine);
        let pid = cluster.server_pids()[VICTIM];
        let key = key_of_victim(&cluster, "idle");
        cluster.open().put(&key, &[1; 1_000], &OpOptions::default()).expect("a put");
        let serve = |raw: &mut Raw| {
            let response = raw.ask(&key, Operation::Get);
            assert!(response.status == Status::Ok && response.value == [1; 1_000], "{engine}");
        };
        // Memory that a server allocates only once, for its first connections, is not counted.
        let mut first = connect(&cluster, 0..BATCH);
        first.iter_mut().for_each(serve);
        let before = process::resident_bytes(pid);
        let mut others = connect(&cluster, BATCH..BATCH + CONNECTIONS);
        others.iter_mut().for_each(serve);
        let each = process::resident_bytes(pid).saturating_sub(before) / u64::from(CONNECTIONS);
        assert!(each <= MOST_BYTES, "{engine}: {each} bytes a connection");
        println!("{engine}: {each} bytes a connection");
        let whole = cluster.status();
        assert!(whole.groups.iter().all(|group| group.copies == 2), "{engine}: {whole:?}");
        // The first connections still work after the last ones.
        first.iter_mut().for_each(serve);
    }
}
