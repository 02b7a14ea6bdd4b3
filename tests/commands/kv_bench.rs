//! Tests of the load generator with a real cluster, and with a server that returns wrong data.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::common::Cluster;
use crate::common::programs::{Ended, KV_BENCH, run};
use serde_json::Value;

/// Time limit for one run.
const LIMIT: Duration = Duration::from_secs(60);

#[track_caller]
fn bench(target: &str, arguments: &str) -> Ended {
    let arguments = ["--target", target].into_iter().chain(arguments.split_whitespace());
    run(KV_BENCH, arguments, "", LIMIT)
}

#[track_caller]
fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:#?}"))
}

#[test]
fn every_response_of_a_cluster_is_the_value_that_its_key_must_hold() {
    let cluster = Cluster::builder().shards(2).start();
    let pids = cluster.server_pids().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    for (scheme, connections, local) in
        [("kv", 4, ""), ("kv+wire", 6, ""), ("kv+redis", 4, ""), ("kv+redis", 4, "--local")]
    {
        let target = format!("{scheme}://{}", cluster.endpoint());
        let line = format!(
            "--load --verify --keys 500 --reads 50 --distribution zipf --value-size 12-2KiB \
             --connections {connections} --depth 8 --warm-up 0.1 --count 5000 --json {local} \
             --server-pid {pids}"
        );
        let report = json(&bench(&target, &line).with_code(0));
        assert_eq!(report["operations"], 5_000, "{report}");
        assert_eq!(report["filled"], 500, "{report}");
        for nothing in ["missing", "failed", "mismatched", "single_copies", "changed_groups"] {
            assert_eq!(report[nothing], 0, "{nothing} in {report}");
        }
        for some in ["per_second", "server_cpu_us", "generator_cpu_us"] {
            assert!(report[some].as_f64().is_some_and(|figure| figure > 0.0), "{some} in {report}");
        }
        let kinds = ["reads", "writes"].map(|kind| report[kind]["count"].as_u64().unwrap());
        assert!(kinds.iter().all(|count| *count > 2_000), "{report}");
    }
    cluster.stop();
}

#[test]
fn a_fill_writes_every_key_of_every_shard() {
    for line in ["--connections 50 --depth 16", "--connections 7 --threads 3"] {
        let cluster = Cluster::builder().shards(2).start();
        let target = format!("kv+wire://{}", cluster.endpoint());
        let line = format!("--load --count 0 --keys 5000 --json {line}");
        assert_eq!(json(&bench(&target, &line).with_code(0))["filled"], 5_000);
        let dumps = cluster.stop();
        assert_eq!(dumps.primary.iter().map(|dump| dump.entries.len()).sum::<usize>(), 5_000);
    }
}

#[test]
fn a_cluster_can_be_loaded_over_the_sockets_of_its_servers() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().to_str().expect("a path in UTF-8");
    let cluster = Cluster::builder().flag("--unix").flag(path).start();
    let line = "--load --keys 200 --connections 3 --depth 4 --warm-up 0.1 --count 1000 --json";
    for target in [
        format!("kv://unix:{path}"),
        format!("kv+wire://unix:{path}"),
        format!("redis://unix:{path}/server_1.sock"),
    ] {
        let report = json(&bench(&target, line).with_code(0));
        assert_eq!(
            (&report["operations"], &report["failed"]),
            (&1_000.into(), &0.into()),
            "{report}"
        );
    }
    cluster.stop();
    let ended = bench(&format!("kv+wire://unix:{path}"), line).with_code(1);
    assert!(ended.stderr.contains("find a server's socket"), "{}", ended.stderr);
}

#[test]
fn a_single_group_can_be_loaded() {
    let cluster = Cluster::start();
    let target = format!("kv://{}", cluster.endpoint());
    let line = "--load --verify --keys 200 --group 1 --connections 2 --count 500 --warm-up 0 --csv";
    let ended = bench(&target, line).with_code(0);
    assert_eq!(ended.lines().len(), 2, "{ended:#?}");
    let by_redis = format!("kv+redis://{}", cluster.endpoint());
    let line =
        "--reads 100 --keys 200 --group 1 --local --connections 2 --count 500 --warm-up 0 --json";
    assert_eq!(json(&bench(&by_redis, line).with_code(0))["missing"], 0);
    let ended = bench(&by_redis, "--local --connections 2 --count 1").with_code(1);
    assert!(ended.stderr.contains("use at least 3"), "{}", ended.stderr);
    let ended = bench(&target, "--group 3 --count 1").with_code(1);
    assert!(ended.stderr.contains("groups 0 to 2"), "{}", ended.stderr);
    let dumps = cluster.stop();
    let counts: Vec<usize> = dumps.primary.iter().map(|dump| dump.entries.len()).collect();
    assert_eq!(counts, [0, 200, 0]);
}

/// Starts a RESP server with a thread for each connection. It stores nothing, and responds to each request after
/// `delay`, to a GET with `value`.
fn fake_redis(value: &'static [u8], delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(&stream, value, delay));
        }
    });
    format!("redis://{address}")
}

/// Serves until the generator closes the connection.
fn serve(stream: &TcpStream, value: &[u8], delay: Duration) -> Option<()> {
    let mut input = BufReader::new(stream);
    loop {
        let mut words = Vec::new();
        for _ in 0..length(&mut input)? {
            let mut word = vec![0; length(&mut input)? + 2];
            input.read_exact(&mut word).ok()?;
            words.push(word);
        }
        thread::sleep(delay);
        let mut output = stream;
        let response = match words.first()?.as_slice() {
            b"GET\r\n" => value,
            // The server reports one replica with all writes.
            b"WAIT\r\n" => b":1\r\n",
            _ => b"+OK\r\n",
        };
        output.write_all(response).ok()?;
    }
}

/// Returns the number of a line such as `*2` or `$16`.
fn length(input: &mut impl BufRead) -> Option<usize> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    line.get(1..)?.trim().parse().ok()
}

#[test]
fn a_wrong_value_is_noticed_and_fails_the_run() {
    let target = fake_redis(b"$20\r\nnot what was stored!\r\n", Duration::ZERO);
    let line = "--load --keys 50 --verify --reads 50 --connections 2 --count 300 --warm-up 0";
    let ended = bench(&target, line).with_code(1);
    assert!(ended.stdout.contains("responses were wrong"), "{ended:#?}");
    assert!(ended.stdout.contains("was read as"), "{ended:#?}");
}

#[test]
fn a_lost_value_is_noticed_and_fails_the_run() {
    let target = fake_redis(b"$-1\r\n", Duration::ZERO);
    let line =
        "--load --keys 50 --verify --reads 100 --connections 2 --count 300 --warm-up 0 --json";
    let report = json(&bench(&target, line).with_code(1));
    assert_eq!((&report["missing"], &report["mismatched"]), (&300.into(), &300.into()), "{report}");
}

#[test]
fn an_invalid_response_ends_the_run_with_a_reason() {
    for nonsense in [&b"$99999999999\r\n"[..], b"hello\r\n", b"$1\r\nabcdef"] {
        let target = fake_redis(nonsense, Duration::ZERO);
        let ended = bench(&target, "--reads 100 --connections 1 --count 10").with_code(1);
        assert!(ended.stderr.starts_with("kv-bench: "), "{ended:#?}");
    }
}

#[test]
fn writes_wait_for_the_requested_number_of_replicas() {
    let target = fake_redis(b"$-1\r\n", Duration::ZERO);
    let line = "--reads 0 --connections 2 --depth 4 --count 200 --warm-up 0 --json --wait";
    let report = json(&bench(&target, &format!("{line} 1")).with_code(0));
    assert_eq!((&report["operations"], &report["failed"]), (&200.into(), &0.into()), "{report}");
    let ended = bench(&target, &format!("{line} 2")).with_code(1);
    assert!(ended.stderr.contains(":1"), "only one replica has the writes: {ended:#?}");
}

#[test]
fn a_run_lasts_for_the_requested_time() {
    let target = fake_redis(b"$-1\r\n", Duration::ZERO);
    let line = "--reads 100 --connections 1 --warm-up 0.2 --duration 0.5 --json";
    let start = std::time::Instant::now();
    let report = json(&bench(&target, line).with_code(0));
    let seconds = report["seconds"].as_f64().expect("a figure");
    assert!((0.5..3.0).contains(&seconds), "{report}");
    assert!(start.elapsed() >= Duration::from_millis(700), "there was no warm-up");
}

#[test]
fn an_open_loop_shows_the_queue_that_a_closed_one_hides() {
    // Each response takes 5 ms, which is what a closed loop measures. At 400 requests a second, a queue grows.
    let target = fake_redis(b"$-1\r\n", Duration::from_millis(5));
    let p99 = |line: &str| {
        let line = format!("--reads 100 --connections 1 --warm-up 0 --duration 0.5 --json {line}");
        let report = json(&bench(&target, &line).with_code(0));
        (report["all"]["p99"].as_f64().expect("a figure"), report["behind"].clone())
    };
    let (closed, behind) = p99("");
    assert_eq!(behind, 0);
    let (open, behind) = p99("--rate 400");
    assert!(behind.as_u64().is_some_and(|behind| behind > 0), "{behind}");
    // At the end, at least half of the requests of this half second are queued.
    assert!(open > 100_000.0 && open > 3.0 * closed, "p99 {closed} µs and {open} µs");
}

#[test]
fn invalid_usage_names_the_error_and_exits_with_2() {
    for (target, line, named) in [
        ("localhost:7000", "", "kv://HOST:PORT"),
        ("kv://localhost:7000", "--threads 4", "--connections"),
        ("redis://localhost:7000", "--depth 0", "--depth"),
        ("echo://localhost:7000", "--verify", "--verify"),
    ] {
        let ended = bench(target, line).with_code(2);
        assert!(ended.stderr.contains(named), "{line}: {}", ended.stderr);
    }
    let ended = bench("redis://127.0.0.1:1", "--duration 1").with_code(1);
    assert!(ended.stderr.contains("check that a server runs there"), "{}", ended.stderr);
    let pid = u32::MAX.to_string();
    let target = fake_redis(b"$-1\r\n", Duration::ZERO);
    let line = format!("--duration 5 --connections 1 --server-pid {pid}");
    let ended = bench(&target, &line).with_code(1);
    assert!(ended.stderr.contains("--server-pid"), "{}", ended.stderr);
}
