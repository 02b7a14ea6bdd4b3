//! Bytes of Redis clients that are malformed, endless or never read. They harm no other connection.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kv_testkit::process;

use crate::common::{Cluster, TIMEOUT, wait_until};
use crate::resp::{Connection, Reply, servers};

/// Sends bytes, and returns the last reply before the server closes the connection.
fn last_reply(server: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    let mut connection = Connection::open(server);
    connection.send_bytes(bytes);
    let mut last = None;
    while let Some(reply) = connection.receive() {
        last = Some(reply);
    }
    last
}

#[test]
fn malformed_commands_get_the_errors_of_redis_and_a_close() {
    let cluster = Cluster::start();
    let server = servers(&cluster)[0];
    let long_line = [b"GET ".to_vec(), vec![b'a'; 70_000]].concat();
    for (bytes, error) in [
        (&b"*1\r\n+PING\r\n"[..], "ERR Protocol error: expected '$', got '+'"),
        (b"*x\r\n", "ERR Protocol error: invalid multibulk length"),
        (b"*1048577\r\n", "ERR Protocol error: invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "ERR Protocol error: invalid bulk length"),
        (b"*1\r\n$16777217\r\n", "ERR Protocol error: invalid bulk length"),
        (b"GET \"a\r\n", "ERR Protocol error: unbalanced quotes in request"),
        (&long_line, "ERR Protocol error: too big inline request"),
    ] {
        let reply = last_reply(server, bytes);
        assert_eq!(
            reply,
            Some(Reply::Error(error.to_owned())),
            "{:?}",
            &bytes[..8.min(bytes.len())]
        );
    }
    let mut connection = Connection::open(server);
    assert_eq!(connection.ask("SET a 1"), Reply::ok());
    cluster.stop();
}

/// Clients that announce long arguments and then send nothing make the server hold no memory for them.
#[test]
fn announced_arguments_take_no_memory_before_they_arrive() {
    let cluster = Cluster::start();
    let server = servers(&cluster)[0];
    let before = process::resident_bytes(cluster.server_pid(0)).expect("the memory");
    let silent: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(server).expect("connect");
            stream.write_all(b"*1048576\r\n$16777216\r\n").expect("send");
            stream
        })
        .collect();
    let mut connection = Connection::open(server);
    assert_eq!(connection.ask("SET a 1"), Reply::ok());
    let after = process::resident_bytes(cluster.server_pid(0)).expect("the memory");
    assert!(after < before + (16 << 20), "{before} -> {after}");
    drop(silent);
    cluster.stop();
}

/// A client that sends commands and never reads their replies is not served further, and is closed in the end.
#[test]
fn replies_that_are_never_read_are_bounded() {
    let cluster = Cluster::start();
    let server = servers(&cluster)[0];
    let mut connection = Connection::open(server);
    let value = "v".repeat(4_000);
    assert_eq!(connection.ask(&format!("SET a {value}")), Reply::ok());
    let before = process::resident_bytes(cluster.server_pid(0)).expect("the memory");
    let mut deaf = TcpStream::connect(server).expect("connect");
    deaf.set_nonblocking(true).expect("an option");
    let pipeline = b"GET a\r\n".repeat(1_000);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        if deaf.write(&pipeline).is_err() {
            assert_eq!(connection.ask("INCR others"), Reply::Integer(1), "nobody else is served");
            assert!(matches!(connection.ask("DEL others"), Reply::Integer(1)));
        }
    }
    let after = process::resident_bytes(cluster.server_pid(0)).expect("the memory");
    assert!(after < before + (16 << 20), "{before} -> {after}");
    wait_until("the end of the deaf connection", TIMEOUT, || {
        deaf.write(b"PING\r\n").is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
    });
    cluster.stop();
}
