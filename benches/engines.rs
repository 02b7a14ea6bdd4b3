//! A benchmark of the CPU time that a server uses per operation, with each network engine. One pipelined client on one
//! thread has 50 connections, and every response is checked. The runs of the engines alternate. The benchmark prints
//! the median and the spread.
//!
//! ```text
//!   cargo bench --bench engines             five runs of 2 s for each engine and kind of load
//!   cargo bench --bench engines -- --test   short runs, to check that it works
//! ```
//!
//! All GETs go to one server, whose CPU time is counted. PUTs go to the same server, and the CPU time of its secondary
//! is counted too. Machines differ and are shared, so only the ratio of two figures of one run is meaningful.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::Cluster;
use common::ports::{Kind, Ports, VICTIM};
use common::raw::Raw;
use kv_client::OpOptions;
use kv_protocol::client_message::{Condition, Operation, Request, Response, Status, WriteHeader};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClientId, RequestId, RequestSeq, ShardId, ViewVersion};
use kv_protocol::limits::MAX_RESPONSE_BODY;
use kv_protocol::placement::Digest;
use rustix::event::{PollFd, PollFlags, poll};

const CONNECTIONS: usize = 50;
const DEPTHS: [u64; 2] = [1, 16];
const VALUE: [u8; 64] = [7; 64];
const ENGINES: [&str; 2] = ["epoll", "uring"];

/// A connection with a constant number of requests in flight.
struct Connection {
    raw: Raw,
    input: FrameBuffer,
    key: Vec<u8>,
    digest: Digest,
    next: u64,
}

impl Connection {
    /// Sends `count` more requests, with at most `depth` in flight.
    fn ask(&mut self, count: u64, depth: u64, is_put: bool) {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let seq = self.next;
            self.next += 1;
            let first_incomplete = RequestSeq(seq.saturating_sub(depth - 1).max(1));
            let header = WriteHeader {
                seq: RequestSeq(seq),
                first_incomplete,
                begun: Default::default(),
                condition: Condition::Always,
            };
            let operation = if is_put { Operation::Put(header, &VALUE) } else { Operation::Get };
            let (id, view) = (RequestId(seq), ViewVersion(1));
            Request { id, view, digest: self.digest, key: &self.key, operation }.write(&mut bytes);
        }
        self.raw.stream.write_all(&bytes).expect("send");
    }

    /// Receives once, checks the complete responses, and returns their number.
    fn take(&mut self, scratch: &mut [u8], is_put: bool) -> u64 {
        match self.raw.stream.read(scratch) {
            Ok(0) => panic!("a server closed its connection"),
            Ok(count) => self.input.extend(&scratch[..count]),
            Err(error) => panic!("receive: {error}"),
        }
        let mut responses = 0;
        while let Some(frame) = self.input.next_frame().expect("a frame") {
            let response = Response::read(frame.body).expect("a response");
            assert_eq!(response.status, Status::Ok);
            assert!(is_put && response.copies == 2 || !is_put && response.value == VALUE);
            responses += 1;
        }
        responses
    }
}

/// The result of one run.
#[derive(Clone, Copy)]
struct Measured {
    micros_each: f64,
    per_second: f64,
}

/// Runs one kind of load for this time, and then waits for all responses.
fn run(cluster: &Cluster, client: u128, depth: u64, is_put: bool, time: Duration) -> Measured {
    let victim = u16::try_from(VICTIM).expect("small");
    let address = Ports::of(cluster).address(Kind::Clients);
    let mut writer = cluster.open();
    let mut connections: Vec<Connection> = (0..CONNECTIONS)
        .map(|n| {
            let key = cluster.key_at(victim, 0, &format!("bench {n}"));
            writer.put(&key, &VALUE, &OpOptions::default()).expect("a put");
            let raw = Raw::welcomed(address, ClientId(client + n as u128), ShardId(0));
            raw.stream.set_nodelay(true).expect("set an option");
            let input = FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY));
            Connection { raw, input, digest: Digest::of(&key), key, next: 1 }
        })
        .collect();
    let pids = cluster.server_pids();
    let counted = if is_put { vec![pids[VICTIM], pids[VICTIM + 1]] } else { vec![pids[VICTIM]] };
    let spent = || counted.iter().map(|pid| processor_time(*pid)).sum::<Duration>();
    let mut scratch = vec![0; 64 << 10];
    for connection in &mut connections {
        connection.ask(depth, depth, is_put);
    }
    let (before, start) = (spent(), Instant::now());
    let (mut done, mut left) = (0, depth * CONNECTIONS as u64);
    while left > 0 {
        let mut polled: Vec<PollFd<'_>> = connections
            .iter()
            .map(|connection| PollFd::new(&connection.raw.stream, PollFlags::IN))
            .collect();
        poll(&mut polled, None).expect("poll");
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let is_over = start.elapsed() >= time;
        for (connection, _) in connections.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            let responses = connection.take(&mut scratch, is_put);
            done += responses;
            if is_over {
                left -= responses;
            } else {
                connection.ask(responses, depth, is_put);
            }
        }
    }
    let (took, spent) = (start.elapsed(), spent() - before);
    let done = done as f64;
    Measured {
        micros_each: spent.as_secs_f64() * 1e6 / done,
        per_second: done / took.as_secs_f64(),
    }
}

/// Returns the CPU time of all threads of a process (proc(5)). Its resolution is one clock tick, usually 10 ms.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read /proc/PID/stat");
    // The name may contain any characters, so the fields are counted after it: the state is field 3, utime and stime
    // are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    let fields = rest.split(' ').skip(11).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().expect("a number of ticks")).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn main() {
    let is_trial = std::env::args().any(|argument| argument == "--test");
    let (turns, time) =
        if is_trial { (1, Duration::from_millis(50)) } else { (5, Duration::from_secs(2)) };
    let clusters = ENGINES.map(|engine| Cluster::builder().flag("--net").flag(engine).start());
    println!("server CPU time per operation, in microseconds, and operations per second");
    let mut client = 1u128 << 64;
    for (name, is_put) in [("GET 64 B", false), ("replicated PUT 64 B", true)] {
        for depth in DEPTHS {
            let mut measured = [const { Vec::new() }; 2];
            // The first run is the warm-up run, which counts only in a trial.
            for turn in 0..=turns {
                for (cluster, measured) in clusters.iter().zip(&mut measured) {
                    client += CONNECTIONS as u128;
                    let one = run(cluster, client, depth, is_put, time);
                    if turn > 0 || is_trial {
                        measured.push(one);
                    }
                }
            }
            for (engine, measured) in ENGINES.iter().zip(&mut measured) {
                measured.sort_by(|a, b| a.micros_each.total_cmp(&b.micros_each));
                let (least, most) = (measured[0], measured[measured.len() - 1]);
                let median = measured[measured.len() / 2];
                println!(
                    "{name}, {CONNECTIONS} connections, depth {depth:2}, {engine:9}: {:6.2} us \
                     ({:.2} to {:.2}), {:7.0}/s",
                    median.micros_each, least.micros_each, most.micros_each, median.per_second
                );
            }
        }
    }
    for cluster in clusters {
        cluster.stop();
    }
}
