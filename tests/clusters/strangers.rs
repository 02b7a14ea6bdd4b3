//! Tests of programs that take over a port or a file of the cluster without its key.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

use crate::common::coordinator::{EPOCH, KEY, Lone, OTHER_USER, respond_to_challenge};
use crate::common::ports::{Kind, Ports};
use crate::common::raw::{Raw, Received};
use crate::common::{Cluster, TIMEOUT, process, wait_for, wait_until};
use kv_protocol::control_message::{Admission, opcode};
use kv_protocol::ids::ClusterKey;
use kv_protocol::key::opcode as key_opcode;
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

/// Accepts the next connection of a server; returns the frames received until it closes.
#[track_caller]
fn said_to(listener: &TcpListener, respond: impl FnOnce(&mut Raw)) -> Vec<Received> {
    let stream = wait_for("the server to dial", TIMEOUT, || listener.accept().ok()).0;
    stream.set_nonblocking(false).expect("clear O_NONBLOCK");
    let mut raw = Raw::on_cluster_port(stream);
    respond(&mut raw);
    raw.await_close()
}

#[test]
fn a_program_on_the_port_of_a_dead_coordinator_receives_nothing_and_is_not_obeyed() {
    let mut server = Lone::start(&["--orphan-timeout", "0"]);
    let mut link = server.admit();
    link.heartbeat();
    drop(link);
    let listener = server.usurp();
    listener.set_nonblocking(true).expect("set O_NONBLOCK");
    let mut admitted = Vec::new();
    Admission::Admitted { epoch: EPOCH }.write(&mut admitted);
    // The stranger admits the server at once, without a proof.
    let said = said_to(&listener, |raw| {
        raw.send_if_open(&admitted);
    });
    let opcodes: Vec<u8> = said.iter().map(|frame| frame.opcode).collect();
    assert_eq!(opcodes, [key_opcode::CHALLENGE], "more was sent before a proof");
    // The stranger responds to the challenge with a made-up key.
    let said = said_to(&listener, |raw| {
        respond_to_challenge(raw, ClusterKey(KEY.0 ^ 1));
        raw.send_if_open(&admitted);
    });
    assert!(said.iter().all(|frame| frame.opcode != opcode::STARTED), "{said:?}");
    // The stranger sends REFUSED. If the coordinator sent it, a server that was never admitted would end.
    let mut refused = Vec::new();
    Admission::Refused { reason: "go away".into() }.write(&mut refused);
    said_to(&listener, |raw| raw.send_if_open(&refused));
    assert!(process::is_alive(server.pid()), "{}", server.log());
    wait_until("the server to log why it does not report there", TIMEOUT, || {
        server.log().contains("is not this cluster's coordinator")
    });
}

#[test]
fn the_key_is_in_no_environment_command_line_or_file_that_others_can_read() {
    let cluster = Cluster::start();
    let key = crate::common::ports::key_of(cluster.dir()).to_string();
    for pid in cluster.server_pids().into_iter().chain([cluster.coord_pid()]) {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            let bytes = match std::fs::read(&path) {
                // Only root may read the environment of a process that leaves no core dumps.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => continue,
                read => read.unwrap_or_else(|error| panic!("{path}: {error}")),
            };
            assert!(!String::from_utf8_lossy(&bytes).contains(&key), "{path}");
        }
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

/// Returns the user that may read a process's memory: root if the process leaves no core dumps,
/// else the process's own user (proc(5), PR_SET_DUMPABLE).
fn may_read_memory(pid: u32) -> u32 {
    std::fs::metadata(format!("/proc/{pid}/mem")).expect("the memory").uid()
}

#[test]
fn a_server_writes_no_core_dump_with_the_key_unless_allowed() {
    let own = rustix::process::geteuid().as_raw();
    let start = |flags: &[&str]| match own {
        0 => Lone::start_as(OTHER_USER, flags),
        _ => Lone::start(flags),
    };
    let user = if own == 0 { OTHER_USER } else { own };
    for (flags, expected) in [(&[][..], 0), (&["--core-dumps"][..], user)] {
        let server = start(flags);
        let _link = server.admit();
        assert_eq!(may_read_memory(server.pid()), expected, "{flags:?}");
    }
}

#[test]
fn a_coordinator_writes_no_core_dump_with_the_key_unless_allowed() {
    let own = rustix::process::geteuid().as_raw();
    let user = if own == 0 { OTHER_USER } else { own };
    for (flags, expected) in [(&[][..], 0), (&["--core-dumps"][..], user)] {
        let builder = flags.iter().fold(Cluster::builder(), |builder, flag| builder.flag(*flag));
        let cluster = if own == 0 { builder.run_by(OTHER_USER) } else { builder }.start();
        assert_eq!(may_read_memory(cluster.coord_pid()), expected, "{flags:?}");
        for pid in cluster.server_pids() {
            assert_eq!(may_read_memory(pid), expected, "{flags:?}");
        }
    }
}

#[test]
fn a_state_that_another_user_may_have_written_is_rejected() {
    let mut cluster = Cluster::start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    let (state, elsewhere) = (cluster.state_file(), cluster.dir().join("elsewhere"));
    std::fs::rename(&state, &elsewhere).expect("rename the state");
    symlink(&elsewhere, &state).expect("make a link");
    let ended = cluster.run_coordinator(&[]).with_code(1);
    assert!(ended.stderr.contains("it is a symbolic link"), "{}", ended.stderr);
    std::fs::rename(&elsewhere, &state).expect("rename the state back");
    // Only root can change a file's owner.
    if chown(&state, Some(OTHER_USER), None).is_ok() {
        let ended = cluster.run_coordinator(&[]).with_code(1);
        assert!(ended.stderr.contains("belongs to the user with id 12345"), "{}", ended.stderr);
        chown(&state, Some(0), None).expect("change the owner back");
    }
    cluster.restart();
    cluster.await_whole();
    cluster.assert_serves(&pids);
}

#[test]
fn a_coordinator_reports_at_once_that_another_user_has_its_port() {
    let mut cluster = Cluster::start();
    let address = Ports::of(&cluster).address(Kind::Reports);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    // A socket belongs to the user id of the thread that creates it, and only root can change the user id of a thread.
    let usurper = std::thread::spawn(move || {
        let other = Uid::from_raw(OTHER_USER);
        set_thread_res_uid(other, other, other).ok()?;
        Some(wait_for("the port", TIMEOUT, || TcpListener::bind(address).ok()))
    });
    let Some(usurper) = usurper.join().expect("the thread of the other user") else {
        crate::common::skipped("only root can act as another user");
        return;
    };
    let ended = cluster.run_coordinator(&[]).with_code(1);
    assert!(ended.stderr.contains("a process of another user (id 12345)"), "{}", ended.stderr);
    drop(usurper);
    cluster.restart();
    cluster.await_whole();
    cluster.assert_serves(&pids);
}
