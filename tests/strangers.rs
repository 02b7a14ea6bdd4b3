//! Programs that take a port of the cluster, or its files, without having its key.

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use common::coordinator::{EPOCH, KEY, Lone, answer_challenge};
use common::raw::{Raw, Received};
use common::{Cluster, PATIENCE, process, wait_for, wait_until};
use kv_protocol::control_message::{Admission, opcode};
use kv_protocol::ids::ClusterKey;
use kv_protocol::key::opcode as key_opcode;

/// Takes the next connection of a server; everything that it sends until it closes.
#[track_caller]
fn said_to(listener: &TcpListener, respond: impl FnOnce(&mut Raw)) -> Vec<Received> {
    let stream = wait_for("the server to dial", PATIENCE, || listener.accept().ok()).0;
    stream.set_nonblocking(false).expect("clear O_NONBLOCK");
    let mut raw = Raw::on_cluster_port(stream);
    respond(&mut raw);
    raw.await_close()
}

#[test]
fn a_program_on_the_port_of_a_dead_coordinator_learns_nothing_and_is_not_obeyed() {
    let mut server = Lone::start(&["--orphan-timeout", "0"]);
    let mut link = server.admit();
    link.heartbeat();
    drop(link);
    let listener = server.usurp();
    listener.set_nonblocking(true).expect("set O_NONBLOCK");
    let mut admitted = Vec::new();
    Admission::Admitted { epoch: EPOCH }.write(&mut admitted);
    // It admits the server at once, without a proof.
    let said = said_to(&listener, |raw| {
        raw.send_if_open(&admitted);
    });
    let opcodes: Vec<u8> = said.iter().map(|frame| frame.opcode).collect();
    assert_eq!(opcodes, [key_opcode::CHALLENGE], "nothing else is sent before a proof");
    // It answers the challenge under a key that it made up.
    let said = said_to(&listener, |raw| {
        answer_challenge(raw, ClusterKey(KEY.0 ^ 1));
        raw.send_if_open(&admitted);
    });
    assert!(said.iter().all(|frame| frame.opcode != opcode::STARTED), "{said:?}");
    // It refuses the server, which would end one that was never admitted.
    let mut refused = Vec::new();
    Admission::Refused { reason: "go away".into() }.write(&mut refused);
    said_to(&listener, |raw| raw.send_if_open(&refused));
    assert!(process::is_alive(server.pid()), "{}", server.log());
    wait_until("the server to say why it does not report there", PATIENCE, || {
        server.log().contains("is not this cluster's coordinator")
    });
}

#[test]
fn the_key_stands_in_no_environment_command_line_or_file_that_others_may_read() {
    let cluster = Cluster::start();
    let key = common::ports::key_of(cluster.dir()).to_string();
    for pid in cluster.server_pids().into_iter().chain([cluster.coord_pid()]) {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(!String::from_utf8_lossy(&bytes).contains(&key), "{path}");
        }
        // PR_SET_DUMPABLE: the files of such a process belong to root, and it leaves no core dump.
        let limits = std::fs::metadata(format!("/proc/{pid}/mem")).expect("the process's memory");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&limits), 0);
    }
    for entry in std::fs::read_dir(cluster.dir()).expect("read the directory") {
        let path = entry.expect("an entry").path();
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read(&path).expect("read a file");
        if String::from_utf8_lossy(&text).contains(&key) {
            let mode = path.metadata().expect("a file").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{} has the key and mode {mode:o}", path.display());
        }
    }
}
