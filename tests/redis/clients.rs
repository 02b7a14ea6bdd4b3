//! Clients and frameworks that others wrote, unchanged. `make redis-clients` installs those in Python, JavaScript and Rust
//! in `target/redis-clients/`, and runs them.
//!
//! A program gets the addresses of all servers, and ends with status 0 after it has printed `passed`.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::process::{self, Signal};
use crate::common::workshop::{self, Workshop};
use crate::common::{Cluster, TIMEOUT, programs, wait_until};
use crate::resp::{Connection, Reply, servers};

/// Returns a path of the installed packages.
fn installed(path: &str) -> PathBuf {
    let path = workshop::root().join("target/redis-clients").join(path);
    assert!(path.exists(), "{} is missing: run `make redis-clients`", path.display());
    path
}

/// Starts a cluster, and runs a command with the addresses of its servers.
fn run(command: Command) {
    run_on(Cluster::builder().shards(2).flag("--hash-tags").start(), command);
}

/// Runs a command with the addresses of a cluster's servers.
fn run_on(cluster: Cluster, mut command: Command) {
    command.args(servers(&cluster).iter().map(ToString::to_string));
    let ended = programs::finish(command, "", 4 * TIMEOUT).with_code(0);
    assert_eq!(ended.lines().last(), Some(&"passed"), "{ended:?}");
    cluster.stop();
}

fn python(program: &str) -> Command {
    let mut command = Command::new(installed("python/bin/python3"));
    command.arg(workshop::root().join("tests/redis/python").join(program));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn run_node(program: &str) {
    // Node looks for packages beside the program.
    let dir = tempfile::tempdir().expect("make a directory");
    let source = Path::new(workshop::root()).join("tests/redis/node").join(program);
    std::fs::copy(source, dir.path().join(program)).expect("copy the program");
    symlink(installed("node/node_modules"), dir.path().join("node_modules")).expect("make a link");
    let mut command = Command::new("node");
    command.arg(dir.path().join(program));
    run(command);
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn redis_py_works_at_every_server_with_both_protocols() {
    run(python("redis_py.py"));
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn caches_and_sessions_of_django_and_flask_work() {
    let cluster = Cluster::builder().shards(2).flag("--redis-multi").flag("ordered").start();
    run_on(cluster, python("frameworks.py"));
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn node_redis_works_at_every_server_with_both_protocols() {
    run_node("node_redis.mjs");
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn ioredis_works_at_every_server() {
    run_node("ioredis.mjs");
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn connect_redis_and_keyv_work() {
    run_node("stores.mjs");
}

/// The increments of a pool count once, and get no error, while a server to which it has no connection is killed.
#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn a_pool_of_redis_py_counts_exactly_while_a_server_is_killed() {
    let cluster = Cluster::start();
    let addresses = servers(&cluster);
    let mut command = python("killed.py");
    command.args([addresses[0], addresses[2]].map(|address| address.to_string()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("start python3");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut line = || output.next().expect("a line").expect("a line in UTF-8");
    assert_eq!(line(), "started");
    let counted = |connection: &mut Connection| match connection.ask("GET counter0") {
        Reply::Bulk(Some(digits)) => String::from_utf8_lossy(&digits).parse().expect("a number"),
        _ => 0,
    };
    let mut connection = Connection::open(addresses[0]);
    for _ in 0..2 {
        let before: u64 = counted(&mut connection);
        wait_until("further increments", TIMEOUT, || counted(&mut connection) > before + 20);
        process::signal(cluster.server_pid(1), Signal::KILL);
        cluster.await_whole();
    }
    drop(child.stdin.take());
    let ended = programs::wait(&mut child, TIMEOUT).expect("an end in time");
    assert_eq!(ended, Some(0));
    let last = line();
    assert!(last.starts_with("passed"), "{last}");
    println!("{last}");
    cluster.stop();
}

fn rust(program: &str) -> Command {
    Command::new(installed("rust/debug").join(program))
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn redis_rs_works_at_every_server_with_both_protocols() {
    run(rust("redis_rs"));
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn fred_works_at_every_server_with_both_protocols() {
    run(rust("fred"));
}

/// A client increments keys of all servers while the server to which it is connected is killed. It connects to the next
/// server, finds every acknowledged increment, and then this server is killed too.
fn counts_exactly_while_its_server_is_killed(program: &str) {
    let cluster = Cluster::start();
    let addresses = servers(&cluster);
    let mut command = rust(program);
    command.arg("increments").args(addresses.iter().map(ToString::to_string));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("start the client");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut line = || output.next().expect("a line").expect("a line in UTF-8");
    assert_eq!(line(), "started");
    let mut observer = Connection::open(addresses[2]);
    let mut sum = || -> i64 {
        let mut digits = |n| match observer.ask(&format!("GET counter{n}")) {
            Reply::Bulk(Some(digits)) => String::from_utf8(digits).expect("digits"),
            other => panic!("{other:?}"),
        };
        (0..30).map(|n| digits(n).parse::<i64>().expect("a number")).sum()
    };
    for server in [0, 1] {
        let before = sum();
        wait_until("further increments", TIMEOUT, || sum() > before + 200);
        process::signal(cluster.server_pid(server), Signal::KILL);
        cluster.await_whole();
    }
    let before = sum();
    wait_until("increments at the third server", TIMEOUT, || sum() > before + 200);
    drop(child.stdin.take());
    let ended = programs::wait(&mut child, TIMEOUT).expect("an end in time");
    assert_eq!(ended, Some(0));
    let last = line();
    assert!(last.starts_with("passed") && last.contains("at 3 servers"), "{last}");
    println!("{program} {last}");
    cluster.stop();
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn redis_rs_loses_no_increment_when_its_server_is_killed() {
    counts_exactly_while_its_server_is_killed("redis_rs");
}

#[test]
#[ignore = "needs programs of others; `make redis-clients` installs and runs it"]
fn fred_loses_no_increment_when_its_server_is_killed() {
    counts_exactly_while_its_server_is_killed("fred");
}

#[test]
fn hiredis_works_at_every_server() {
    let workshop = Workshop::open();
    let source = workshop::root().join("tests/redis/c/hiredis.c");
    run(Command::new(workshop.compile(&source, &["-lhiredis"])));
}
