//! The tools of Redis, unchanged.

use std::net::SocketAddr;

use crate::common::{Cluster, TIMEOUT, programs};
use crate::resp::servers;

/// Runs a tool of Redis against a server.
fn run(tool: &str, server: SocketAddr, words: &[&str], input: &str) -> String {
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let arguments = [&["-h", &host, "-p", &port], words].concat();
    let ended = programs::run(tool, arguments, input, TIMEOUT).with_code(0);
    ended.stdout
}

#[test]
fn redis_cli_and_redis_benchmark_work_at_the_port_of_any_server() {
    let cluster = Cluster::start();
    let addresses = servers(&cluster);
    let input = "SET k 5\nINCR k\nMGET k absent\nEXPIRE k 100\nTTL k\nNOSUCH a\n";
    let said = run("redis-cli", addresses[0], &[], input);
    let expected =
        "OK\n6\n6\n\n1\n100\nERR unknown command 'NOSUCH', with args beginning with: 'a' ";
    assert_eq!(said.trim_end(), expected.trim_end());
    assert_eq!(run("redis-cli", addresses[1], &["GET", "k"], "").trim_end(), "6");
    let words = ["-n", "2000", "-r", "1000", "-P", "16", "-q", "-t", "set,get,incr,mset"];
    let said = run("redis-benchmark", addresses[2], &words, "");
    assert_eq!(said.matches("requests per second").count(), 4, "{said}");
    cluster.stop();
}
