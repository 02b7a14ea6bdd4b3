//! Tests of both network engines of the servers. The requested engine runs, and serves large and small values over many
//! and few connections. If io_uring is denied, epoll serves. Most other tests also run with either engine, which
//! `KV_TEST_NET` selects (`make test`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::ports::VICTIM;
use crate::common::{Cluster, programs, seccomp};
use kv_client::OpOptions;
use kv_protocol::exit_code::ServerExit;
use kv_protocol::limits::MAX_VALUE_BYTES;

const ENGINES: [&str; 2] = ["uring", "epoll"];

fn start(engine: &str) -> Cluster {
    Cluster::builder().flag("--net").flag(engine).start()
}

fn server_log(cluster: &Cluster, id: usize) -> String {
    std::fs::read_to_string(cluster.dir().join(format!("server_{id}.log"))).expect("a log")
}

#[test]
fn each_engine_logs_that_it_runs_and_returns_values_of_all_sizes() {
    for engine in ENGINES {
        let cluster = start(engine);
        for id in 0..3 {
            let log = server_log(&cluster, id);
            assert!(log.contains(&format!("network engine {engine}")), "{log}");
        }
        let mut client = cluster.open();
        let options = OpOptions::default();
        let sizes = [0, 1, 8 << 10, 64 << 10, (64 << 10) + 1, 1 << 20, MAX_VALUE_BYTES];
        for (n, size) in sizes.into_iter().enumerate() {
            let key = format!("size {size}").into_bytes();
            let value: Vec<u8> = (0..size).map(|at| (at * 31 + n).to_le_bytes()[0]).collect();
            assert_eq!(client.put(&key, &value, &options).expect("a put").copies, 2);
            let got = client.get(&key, &options).expect("a get").bytes;
            assert!(got == value, "{engine}: a value of {size} bytes was changed");
        }
        cluster.stop().assert_copies_agree();
    }
}

#[test]
fn an_unknown_engine_is_rejected_with_the_names_of_the_known_ones() {
    for program in [programs::COORD, programs::SERVER] {
        let ended =
            programs::run(program, ["--net", "tcpstream"], "", crate::common::TIMEOUT).with_code(2);
        for engine in ENGINES {
            assert!(ended.stderr.contains(engine), "{}", ended.stderr);
        }
    }
}

#[test]
fn without_io_uring_servers_use_epoll_and_log_the_reason_and_the_remedy_in_one_line() {
    let cluster = Cluster::builder().deny_io_uring().flag("--net").flag("auto").start();
    for id in 0..3 {
        let log = server_log(&cluster, id);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("io_uring")).collect();
        let [line] = lines[..] else { panic!("one line about io_uring: {log}") };
        for word in ["WARN", "network engine epoll", "not permitted", "seccomp", "--security-opt"] {
            assert!(line.contains(word), "no {word:?} in {line}");
        }
        assert!(log.lines().any(|line| line.ends_with("network engine epoll")), "{log}");
    }
    let (mut client, options) = (cluster.open(), OpOptions::default());
    assert_eq!(client.put(b"k", b"v", &options).expect("a put").copies, 2);
    assert_eq!(client.get(b"k", &options).expect("a get").bytes, b"v");
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_server_that_requires_io_uring_exits_at_once_and_names_the_remedy_when_it_is_denied() {
    let mut command = std::process::Command::new(programs::SERVER);
    command.args(["-h", "localhost", "-m", "1", "-S", "0", "-n", "3", "--net", "uring"]);
    seccomp::deny_io_uring(&mut command);
    let code = ServerExit::IoUring.code().into();
    let ended = programs::finish(command, "", crate::common::TIMEOUT).with_code(code);
    for word in ["network engine uring", "seccomp", "--net epoll"] {
        assert!(ended.stderr.contains(word), "no {word:?} in {}", ended.stderr);
    }
}

#[test]
fn a_small_request_does_not_wait_for_the_largest_values_on_the_same_shard() {
    const LONGEST_WAIT: Duration = Duration::from_secs(1);
    for engine in ENGINES {
        let cluster = start(engine);
        let victim = u16::try_from(VICTIM).expect("small");
        let (small, large) =
            (cluster.key_at(victim, 0, "small"), cluster.key_at(victim, 0, "large"));
        let options = OpOptions::default();
        cluster.open().put(&small, b"x", &options).expect("a put");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let busy: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = cluster.open();
                        let value = vec![1; MAX_VALUE_BYTES];
                        let mut rounds = 0;
                        while !over.load(Ordering::SeqCst) || rounds == 0 {
                            client.put(&large, &value, &options).expect("a large put");
                            client.get(&large, &options).expect("a large get");
                            rounds += 1;
                        }
                    })
                })
                .collect();
            let mut client = cluster.open();
            let mut longest = Duration::ZERO;
            for _ in 0..300 {
                let start = Instant::now();
                assert_eq!(client.get(&small, &options).expect("a small get").bytes, b"x");
                longest = longest.max(start.elapsed());
            }
            over.store(true, Ordering::SeqCst);
            for thread in busy {
                thread.join().expect("a client with large values");
            }
            assert!(longest < LONGEST_WAIT, "{engine}: {longest:?}");
        });
        cluster.stop().assert_copies_agree();
    }
}
