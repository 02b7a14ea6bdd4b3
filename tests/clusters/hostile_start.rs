//! Tests of clusters that cannot start. Each reports the reason, stops the servers that it has started, and leaves no
//! process.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::common::cluster::Builder;
use crate::common::programs::{self, COORD, Ended};
use crate::common::{Cluster, TIMEOUT, process};

/// Runs a coordinator that is expected to fail.
#[track_caller]
fn run(builder: &Builder) -> Ended {
    let command = builder.command();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let ended = programs::run(COORD, arguments, "", 2 * TIMEOUT);
    let left = process::running_in(builder.dir());
    process::end_all_in(builder.dir());
    assert!(left.is_empty(), "processes {left:?} were left: {ended:#?}");
    ended
}

/// Returns the messages of a failed coordinator: its standard error and its log.
fn said(builder: &Builder, ended: &Ended) -> String {
    let log = std::fs::read_to_string(builder.dir().join("coord.log")).unwrap_or_default();
    format!("{}\n{log}", ended.stderr)
}

fn server_files(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).expect("read the directory");
    files
        .map(|file| file.expect("a file").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("server_"))
        .collect()
}

const SERVER: &str = "localhost 0 0 0\n";

#[test]
fn a_bad_cluster_file_is_rejected_with_its_line_and_nothing_is_started() {
    let cases = [
        (String::new(), 1, "empty"),
        ("# only a comment\n".into(), 1, "empty"),
        (format!("2\n{SERVER}{SERVER}"), 1, "3 to 1024"),
        (format!("0\n{SERVER}"), 1, "3 to 1024"),
        (format!("1025\n{SERVER}"), 1, "3 to 1024"),
        (format!("three\n{}", SERVER.repeat(3)), 1, "three"),
        (format!("-3\n{}", SERVER.repeat(3)), 1, "-3"),
        (format!("3 4\n{}", SERVER.repeat(3)), 1, "unexpected"),
        (format!("4\n{}", SERVER.repeat(3)), 4, "gives the number 4"),
        (format!("3\n{}", SERVER.repeat(4)), 5, "too many"),
        (format!("# c\n\n3\n{SERVER}{SERVER}localhost 0 0\n"), 6, "coord_port"),
        (format!("3\n{SERVER}localhost 0 0 0 0\n{SERVER}"), 3, "unexpected"),
        (format!("3\n{SERVER}localhost 0 65536 0\n{SERVER}"), 3, "65535"),
        (format!("3\n{SERVER}localhost 0 -1 0\n{SERVER}"), 3, "servers_port"),
        (format!("3\n{SERVER}localhost x 0 0\n{SERVER}"), 3, "clients_port"),
        (format!("3\n{SERVER}bad;host 0 0 0\n{SERVER}"), 3, "not a host"),
        (format!("3\n{SERVER}-oProxyCommand=x@host 0 0 0\n{SERVER}"), 3, "not a host"),
        (format!("3\n{SERVER}user@ 0 0 0\n{SERVER}"), 3, "not a host"),
        ("3\nlocalhost 7 8 9\nlocalhost 0 0 0\nlocalhost 9 0 0\n".into(), 4, "9"),
    ];
    for (text, line, words) in cases {
        let builder = Cluster::builder().cluster_file(text.clone());
        let ended = run(&builder).with_code(2);
        let expected = format!("line {line}");
        assert!(ended.stderr.contains(&expected), "{text:?}: no {expected:?} in {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{text:?}: no {words:?} in {}", ended.stderr);
        assert_eq!(server_files(builder.dir()), [""; 0], "{text:?} started servers");
    }
}

#[test]
fn a_cluster_file_that_is_missing_or_not_text_is_rejected_by_name() {
    let dir = tempfile::tempdir().expect("make a directory");
    let missing = dir.path().join("nowhere.txt");
    let binary = dir.path().join("binary.txt");
    std::fs::write(&binary, [0x33, 0x0a, 0xff, 0xfe, 0x00]).expect("write a file");
    for file in [&missing, &binary] {
        let name = file.to_str().expect("a path in UTF-8");
        let arguments = ["-C", name, "--daemon", "--dir", dir.path().to_str().expect("UTF-8")];
        let ended = programs::run(COORD, arguments, "", TIMEOUT);
        assert_ne!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stderr.contains(name), "{}", ended.stderr);
    }
}

#[test]
fn a_missing_server_binary_is_named_and_the_start_fails() {
    let builder = Cluster::builder().flag("--server-binary").flag("/nowhere/at/all/server");
    // The fixture's own --server-binary must not take precedence.
    let arguments: Vec<String> = builder
        .command()
        .get_args()
        .map(|argument| argument.to_str().expect("UTF-8").to_owned())
        .collect();
    let own = arguments.iter().position(|a| a == "--server-binary").expect("the fixture's");
    let arguments = [&arguments[..own], &arguments[own + 2..]].concat();
    let ended = programs::run(COORD, &arguments, "", 2 * TIMEOUT).with_code(1);
    assert!(said(&builder, &ended).contains("/nowhere/at/all/server"), "{ended:#?}");
    assert!(process::running_in(builder.dir()).is_empty());
}

#[test]
fn a_server_binary_that_is_not_a_program_is_named_and_the_start_fails() {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("server");
    std::fs::write(&file, "this is no program\n").expect("write a file");
    let builder = Cluster::builder();
    let mut arguments: Vec<String> = builder
        .command()
        .get_args()
        .map(|argument| argument.to_str().expect("UTF-8").to_owned())
        .collect();
    let own = arguments.iter().position(|a| a == "--server-binary").expect("the fixture's");
    arguments[own + 1] = file.to_str().expect("UTF-8").to_owned();
    let ended = programs::run(COORD, &arguments, "", 2 * TIMEOUT).with_code(1);
    assert!(said(&builder, &ended).contains(&arguments[own + 1]), "{ended:#?}");
}

#[test]
fn a_port_in_use_is_named_with_its_server_and_the_started_servers_are_stopped() {
    // The port in use is the clients port, the servers port or the orders port of server 1.
    for place in 0..3 {
        let taken = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = taken.local_addr().expect("an address").port();
        let mut numbers = [0; 3];
        numbers[place] = port;
        let [clients, servers, orders] = numbers;
        let text = format!("3\n{SERVER}localhost {clients} {servers} {orders}\n{SERVER}");
        let builder = Cluster::builder().cluster_file(text);
        let ended = run(&builder).with_code(1);
        let said = said(&builder, &ended);
        assert!(said.contains("server 1"), "{said}");
        assert!(said.contains(&port.to_string()), "{said}");
        assert!(said.contains("in use"), "{said}");
    }
}

#[test]
fn a_coordinator_port_in_use_is_named_and_nothing_is_started() {
    for flag in ["-c", "-s"] {
        let taken = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = taken.local_addr().expect("an address").port().to_string();
        let builder = Cluster::builder();
        let mut arguments: Vec<String> = builder
            .command()
            .get_args()
            .map(|argument| argument.to_str().expect("UTF-8").to_owned())
            .collect();
        let at = arguments.iter().position(|a| a == flag).expect("the fixture's");
        arguments[at + 1] = port.clone();
        let ended = programs::run(COORD, &arguments, "", TIMEOUT).with_code(1);
        assert!(ended.stderr.contains(&port), "{}", ended.stderr);
        assert_eq!(server_files(builder.dir()), [""; 0]);
    }
}

#[test]
fn a_second_coordinator_in_the_same_directory_is_rejected_and_the_first_keeps_serving() {
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let file = cluster.dir().join("cluster.txt");
    let second = Command::new(COORD)
        .arg("-C")
        .arg(file)
        .arg("--dir")
        .arg(cluster.dir())
        .args(["--daemon", "--server-binary", programs::SERVER])
        .output()
        .expect("start coord");
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let words = String::from_utf8_lossy(&second.stderr);
    assert!(
        words.contains(&cluster.coord_pid().to_string()),
        "the pid of the first is missing: {words}"
    );
    assert!(
        words.contains(cluster.dir().to_str().expect("UTF-8")),
        "the directory is missing: {words}"
    );
    cluster.assert_serves(&pids);
    cluster.stop();
}

#[test]
fn a_server_started_by_hand_is_rejected_with_a_reason_and_the_cluster_keeps_serving() {
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    let port = cluster.ready.servers_port.to_string();
    let dir = tempfile::tempdir().expect("make a directory");
    let log = dir.path().join("by_hand.log");
    let ended = programs::run(
        programs::SERVER,
        ["-h", "localhost", "-m", &port, "-S", "0", "-n", "3", "-l", log.to_str().expect("UTF-8")],
        "",
        TIMEOUT,
    );
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    let words = format!("{}{}", ended.stderr, std::fs::read_to_string(log).unwrap_or_default());
    assert!(words.contains("does not have the key of this cluster"), "{words}");
    cluster.assert_serves(&pids);
    cluster.stop();
}
