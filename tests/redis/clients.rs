//! Clients and frameworks that others wrote, unchanged. `scripts/setup.sh` installs them in `target/redis-clients/`.
//!
//! A program gets the addresses of all servers, and ends with status 0 after it has printed `passed`.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Cluster, TIMEOUT, programs, workshop};
use crate::resp::servers;

/// Returns a path of the installed packages.
fn installed(path: &str) -> PathBuf {
    let path = workshop::root().join("target/redis-clients").join(path);
    assert!(path.exists(), "{} is missing: run scripts/setup.sh", path.display());
    path
}

/// Starts a cluster, and runs a command with the addresses of its servers.
fn run(mut command: Command) {
    let cluster = Cluster::builder().shards(2).flag("--hash-tags").start();
    command.args(servers(&cluster).iter().map(ToString::to_string));
    let ended = programs::finish(command, "", 4 * TIMEOUT).with_code(0);
    assert_eq!(ended.lines().last(), Some(&"passed"), "{ended:?}");
    cluster.stop();
}

fn run_python(program: &str) {
    let mut command = Command::new(installed("python/bin/python3"));
    command.arg(workshop::root().join("tests/redis/python").join(program));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    run(command);
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
fn redis_py_works_at_every_server_with_both_protocols() {
    run_python("redis_py.py");
}

#[test]
fn caches_and_sessions_of_django_and_flask_work() {
    run_python("frameworks.py");
}

#[test]
fn node_redis_works_at_every_server_with_both_protocols() {
    run_node("node_redis.mjs");
}

#[test]
fn ioredis_works_at_every_server() {
    run_node("ioredis.mjs");
}

#[test]
fn connect_redis_and_keyv_work() {
    run_node("stores.mjs");
}
