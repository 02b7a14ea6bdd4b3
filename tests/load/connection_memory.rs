//! Tests of many connections that read long values, do not read their responses, or send partial requests, with both
//! network engines. No server ends, no view changes, memory stays bounded, and other clients are served.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::ports::{Kind, Ports, VICTIM, fetch_map};
use crate::common::raw::{Raw, request, write_number};
use crate::common::{Cluster, TIMEOUT, process, wait_until};
use kv_client::OpOptions;
use kv_protocol::client_message::Operation;
use kv_protocol::ids::{ClientId, RequestId, ShardId};
use kv_protocol::limits::MAX_VALUE_BYTES;
use rustix::net::sockopt::set_socket_recv_buffer_size;

const ENGINES: [&str; 2] = ["uring", "epoll"];
/// The memory that a server may use in addition to the budget of connections: kept buffers, and memory that the
/// allocator retains.
const OWN: u64 = 48 << 20;
/// The connection memory budget of each server here.
const BUDGET: u64 = 64 << 20;
/// The longest time that a well-behaved client may wait meanwhile on a busy machine.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A cluster under attack, with the state that is compared afterwards: its processes, its views, and the memory of the
/// attacked server.
struct Attacked {
    cluster: Cluster,
    pids: Vec<u32>,
    ports: Ports,
    before: u64,
    most: AtomicU64,
}

impl Attacked {
    fn start(engine: &str, values: &[(&str, usize)]) -> Attacked {
        let budget = BUDGET.to_string();
        let flags = ["--net", engine, "--connection-memory", &budget];
        let builder = flags.iter().fold(Cluster::builder(), |builder, flag| builder.flag(*flag));
        let cluster = builder.start();
        let mut client = cluster.open();
        for (name, bytes) in values {
            let key = key_of_victim(&cluster, name);
            client.put(&key, &vec![7; *bytes], &OpOptions::default()).expect("a put");
        }
        let pids = cluster.server_pids();
        let ports = Ports::of(&cluster);
        let before = process::resident_bytes(pids[VICTIM]);
        Attacked { cluster, pids, ports, before, most: AtomicU64::new(0) }
    }

    fn key(&self, name: &str) -> Vec<u8> {
        key_of_victim(&self.cluster, name)
    }

    fn connect(&self, number: u32) -> Raw {
        let address = self.ports.address(Kind::Clients);
        Raw::welcomed(address, ClientId(u128::from(number) + 1), ShardId(0))
    }

    /// Runs a well-behaved client and samples the server's memory until `is_over` returns true. Returns the client's
    /// longest wait.
    fn watch(&self, is_over: impl Fn() -> bool) -> Duration {
        let mut client = self.cluster.open();
        let (key, options) = (self.key("good"), OpOptions::default());
        let mut longest = Duration::ZERO;
        while !is_over() {
            let start = Instant::now();
            client.put(&key, b"v", &options).expect("a put");
            assert_eq!(client.get(&key, &options).expect("a get").bytes, b"v");
            longest = longest.max(start.elapsed());
            let resident = process::resident_bytes(self.pids[VICTIM]);
            self.most.fetch_max(resident.saturating_sub(self.before), Ordering::Relaxed);
        }
        longest
    }

    /// Fails unless processes and views are unchanged and the server took at most `most` bytes.
    fn end(self, engine: &str, most: u64) {
        let took = self.most.load(Ordering::Relaxed);
        assert!(took <= most, "{engine}: the server allocated {} MiB more", took >> 20);
        self.cluster.assert_serves(&self.pids);
        let views = |map: &kv_protocol::map::Map| map.views.clone();
        let now = fetch_map(self.ports.address(Kind::Map));
        assert_eq!(views(&now), views(&self.ports.map), "{engine}: views have changed");
        self.cluster.stop().assert_copies_agree();
    }
}

fn key_of_victim(cluster: &Cluster, prefix: &str) -> Vec<u8> {
    cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, prefix)
}

/// Returns the bytes of a GET of this key.
fn get(id: u64, key: &[u8]) -> Vec<u8> {
    request(RequestId(id), key, Operation::Get)
}

#[test]
fn sixty_four_readers_of_the_longest_value_are_served_and_other_clients_wait_briefly() {
    const READERS: u32 = 64;
    for engine in ENGINES {
        let attacked = Attacked::start(engine, &[("long", MAX_VALUE_BYTES), ("good", 1)]);
        let key = attacked.key("long");
        let left = AtomicU64::new(u64::from(READERS));
        std::thread::scope(|scope| {
            for number in 0..READERS {
                let (attacked, key, left) = (&attacked, &key, &left);
                scope.spawn(move || {
                    let mut raw = attacked.connect(number);
                    raw.send(&get(1, key));
                    raw.drop_bytes(MAX_VALUE_BYTES);
                    left.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let longest = attacked.watch(|| left.load(Ordering::Relaxed) == 0);
            assert!(longest < LONGEST_WAIT, "{engine}: a good client waited {longest:?}");
        });
        attacked.end(engine, OWN);
    }
}

#[test]
fn clients_that_request_long_values_and_read_nothing_take_no_memory() {
    const CONNECTIONS: u32 = 200;
    for engine in ENGINES {
        let values = [("long", MAX_VALUE_BYTES), ("large", 4 << 20), ("small", 4_000), ("good", 1)];
        let attacked = Attacked::start(engine, &values);
        let keys = ["long", "large", "small"].map(|name| attacked.key(name));
        let connections: Vec<Raw> = (0..CONNECTIONS)
            .map(|number| {
                let mut raw = attacked.connect(number);
                set_socket_recv_buffer_size(&raw.stream, 16 << 10).expect("set SO_RCVBUF");
                match number {
                    0..100 => raw.send(&get(1, &keys[0])),
                    100..150 => raw.send(&[1, 2, 3].map(|id| get(id, &keys[1])).concat()),
                    // Together, these small requests have at least 12 KB.
                    _ => raw.send(&(0..500).flat_map(|id| get(id, &keys[2])).collect::<Vec<u8>>()),
                }
                raw
            })
            .collect();
        let until = Instant::now() + Duration::from_secs(1);
        let longest = attacked.watch(|| Instant::now() > until);
        assert!(longest < LONGEST_WAIT, "{engine}: a good client waited {longest:?}");
        drop(connections);
        attacked.end(engine, OWN);
    }
}

#[test]
fn partial_requests_wait_for_memory_and_make_room_for_a_complete_one() {
    const CONNECTIONS: u32 = 200;
    const PART: usize = 10 << 20;
    for engine in ENGINES {
        let attacked = Attacked::start(engine, &[("good", 1)]);
        let key = attacked.key("long");
        let value = vec![9; MAX_VALUE_BYTES];
        let whole = request(RequestId(1), &key, Operation::Put(write_number(1), &value));
        let connections: Vec<Raw> = (0..CONNECTIONS)
            .map(|number| {
                let raw = attacked.connect(number);
                raw.stream.set_nonblocking(true).expect("make it non-blocking");
                let mut sent = 0;
                while sent < PART {
                    match (&raw.stream).write(&whole[sent..PART]) {
                        Ok(count) => sent += count,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        // The server closed the connection to make room.
                        Err(_) => break,
                    }
                }
                raw
            })
            .collect();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let honest = scope.spawn(|| {
                let options = OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() };
                let put = attacked.cluster.open().put(&key, &value, &options);
                is_over.store(true, Ordering::Relaxed);
                put
            });
            let until = Instant::now() + TIMEOUT;
            let longest =
                attacked.watch(|| is_over.load(Ordering::Relaxed) || Instant::now() > until);
            assert!(longest < LONGEST_WAIT, "{engine}: a good client waited {longest:?}");
            let put = honest.join().expect("the thread of the honest client");
            assert_eq!(put.expect("a put").copies, 2, "{engine}");
        });
        drop(connections);
        // The value itself is in the chunks of the table and does not count as connection memory.
        attacked.end(engine, BUDGET + OWN + (20 << 20));
    }
}

#[test]
fn the_memory_of_connections_is_released_when_they_close() {
    for engine in ENGINES {
        let attacked = Attacked::start(engine, &[("good", 1)]);
        let key = attacked.key("long");
        let value = vec![9; MAX_VALUE_BYTES];
        let whole = request(RequestId(1), &key, Operation::Put(write_number(1), &value));
        let mut connections: Vec<Raw> = (0..8).map(|number| attacked.connect(number)).collect();
        for raw in &mut connections {
            raw.send(&whole[..2 << 20]);
        }
        let pid = attacked.pids[VICTIM];
        wait_until("the server to receive what was sent", TIMEOUT, || {
            process::resident_bytes(pid) > attacked.before + (12 << 20)
        });
        drop(connections);
        wait_until("the server to release it", TIMEOUT, || {
            process::resident_bytes(pid) < attacked.before + (8 << 20)
        });
        attacked.end(engine, BUDGET);
    }
}
