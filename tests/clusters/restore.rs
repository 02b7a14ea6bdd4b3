//! Tests of the restore of a stopped cluster. It brings back every acknowledged write, or reports which data is
//! missing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::common::cluster::{Builder, move_to_another_machine};
use crate::common::load::{check_all, put_all};
use crate::common::process::{self, Signal};
use crate::common::programs::{COORD, SERVER};
use crate::common::raw::{Raw, write_number};
use crate::common::workshop::{Workshop, root};
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_client::{Client, Error, OpOptions, Value};
use kv_protocol::client_message::{Operation, Request, Status};
use kv_protocol::ids::{ClientId, RequestId, SequenceNumber, ShardId};
use kv_protocol::{Digest, Placement};
use tempfile::TempDir;

type Pair = (Vec<u8>, Vec<u8>);

fn now() -> OpOptions {
    OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() }
}

fn pairs(count: usize) -> Vec<Pair> {
    (0..count)
        .map(|n| (format!("key \0\"{n}\\\n").into_bytes(), format!("value {n}").into_bytes()))
        .collect()
}

fn of_group(placement: Placement, pairs: &[Pair], group: u16) -> Vec<Pair> {
    let is_in = |pair: &&Pair| placement.locate(&pair.0).0.0 == group;
    pairs.iter().filter(is_in).cloned().collect()
}

#[track_caller]
fn values(client: &mut Client, pairs: &[Pair]) -> Vec<Value> {
    pairs.iter().map(|(key, _)| client.get(key, &now()).expect("a get")).collect()
}

/// Starts a cluster whose start must fail. Returns the new text on standard error.
#[track_caller]
fn refused(builder: Builder) -> (String, TempDir) {
    let before = fs::read(builder.dir().join("coord.err")).unwrap_or_default().len();
    let mut cluster = builder.launch();
    cluster.await_end(1);
    (cluster.coord_errors().split_off(before), cluster.into_dir())
}

#[track_caller]
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).expect("read a dump");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("write a dump");
}

/// Returns the directory of a stopped cluster of three with some entries.
#[track_caller]
fn stopped(pairs: &[Pair]) -> TempDir {
    let cluster = Cluster::start();
    put_all(&mut cluster.open(), pairs);
    cluster.stop_and_keep().1
}

#[test]
fn repeated_restores_bring_every_key_back_with_its_value_and_version() {
    let cluster = Cluster::builder().shards(3).start();
    let first_name = cluster.ready.cluster.clone();
    let port = cluster.ready.clients_port;
    let mut all = pairs(600);
    let mut client = cluster.open();
    put_all(&mut client, &all);
    let deleted = all.split_off(500);
    for (key, _) in &deleted {
        client.delete(key, &now()).expect("a delete");
    }
    let large: Vec<u8> = (0..=255u8).cycle().step_by(7).take(16 << 20).collect();
    all.push((b"large".to_vec(), large));
    all.push((b"empty".to_vec(), Vec::new()));
    put_all(&mut client, &all[500..]);
    let before = values(&mut client, &all);
    let (dumps, dir) = cluster.stop_and_keep();
    dumps.assert_copies_agree();

    let cluster = Cluster::builder().shards(3).restore(dir).start();
    assert_ne!(cluster.ready.cluster, first_name, "the restored cluster has the old id");
    assert_eq!(cluster.ready.clients_port, port, "the port for clients has changed");
    assert!(!cluster.dir().join("restore").exists(), "the staged files were left");
    let mut client = cluster.open();
    let after = values(&mut client, &all);
    for (n, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(before.bytes == after.bytes, "value {n}");
        assert_eq!(before.version, after.version, "version {n}");
    }
    for (key, _) in &deleted {
        assert!(matches!(client.get(key, &now()), Err(Error::NotFound { .. })), "{key:?}");
    }
    let written = client.put(&all[0].0, b"after", &now()).expect("a put");
    assert!(written.version > before[0].version, "the version did not grow");
    assert_eq!(written.copies, 2);
    all[0].1 = b"after".to_vec();

    // A process that later replaces a server begins without data and receives a copy.
    let killed = cluster.server_pid(1);
    process::signal(killed, Signal::KILL);
    wait_until("another process", TIMEOUT, || {
        cluster.status().servers[1].pid.is_some_and(|pid| pid != killed)
            && cluster.coord_log().contains("server 1 is back")
    });
    cluster.await_whole();
    let (dumps, dir) = cluster.stop_and_keep();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), all.len());

    let cluster = Cluster::builder().shards(3).restore(dir).start();
    check_all(&mut cluster.open(), &all);
    cluster.stop().assert_copies_agree();
}

/// Removes every copy of the coordinator's state.
pub(super) fn lose_state(dir: &Path) {
    for name in ["coordinator.state", "coordinator.state.old", "restore/coordinator.state"] {
        let _ = fs::remove_file(dir.join(name));
    }
}

#[test]
fn without_the_state_the_dumps_of_both_holders_bring_every_key_back() {
    let pairs = pairs(300);
    let dir = stopped(&pairs);
    let (said, dir) = refused(Cluster::builder().flag("--without-state").restore(dir));
    assert_says(&said, &["coordinator.state exists", "omit --without-state"]);
    lose_state(dir.path());
    let (said, dir) = refused(Cluster::builder().restore(dir));
    assert_says(&said, &["it is not known which dumps count", "--without-state"]);
    let cluster = Cluster::builder().flag("--without-state").restore(dir).start();
    let log = cluster.coord_log();
    assert_says(&log, &["rebuilt from dumps alone", "two clusters serve the same keys"]);
    check_all(&mut cluster.open(), &pairs);
    cluster.await_whole();
    cluster.stop().assert_copies_agree();
}

#[test]
fn without_the_state_a_group_with_one_dump_is_restored_only_with_explicit_consent() {
    let all = pairs(300);
    let dir = stopped(&all);
    lose_state(dir.path());
    // Group 0 has lost the dump of one holder, and group 1 the dumps of both.
    for name in ["server_1.secondary", "server_1.primary", "server_2.secondary"] {
        fs::remove_file(dir.path().join(name)).expect("remove a dump");
    }
    let without = |dir| Cluster::builder().flag("--without-state").restore(dir);
    let (said, dir) = refused(without(dir));
    let doubts =
        ["group 0: the dump of only one holder was found", "group 1: there is no dump of a holder"];
    assert_says(&said, &[doubts[0], doubts[1], "--accept-loss"]);
    assert!(!said.contains("group 2:"), "{said}");
    let cluster = without(dir).flag("--accept-loss").start();
    let placement = cluster.placement();
    let mut client = cluster.open();
    for group in [0, 2] {
        check_all(&mut client, &of_group(placement, &all, group));
    }
    let lost = of_group(placement, &all, 1);
    assert!(matches!(client.get(&lost[0].0, &now()), Err(Error::Lost { .. })));
}

#[test]
fn without_the_state_dumps_of_earlier_runs_and_running_servers_prevent_a_restore() {
    let all = pairs(100);
    let mut cluster = Cluster::builder().restore(stopped(&all)).start();
    put_all(&mut cluster.open(), &[(b"later".to_vec(), b"acknowledged".to_vec())]);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    lose_state(cluster.dir());
    let ended = cluster.run_coordinator(&["--without-state"]).with_code(1);
    let pid = format!("pid {} on this machine", pids[0]);
    assert_says(&ended.stderr, &[&pid, "SIGTERM", "--force"]);
    // No dump holds this run's data; the dumps of the run before are complete and agree.
    for pid in pids {
        process::signal(pid, Signal::KILL);
        wait_until("its end", TIMEOUT, || !process::is_alive(pid));
    }
    let ended = cluster.run_coordinator(&["--without-state"]).with_code(1);
    assert_says(&ended.stderr, &["there are only dumps of earlier runs", ".old"]);
}

#[test]
fn without_the_state_a_damaged_dump_prevents_a_restore() {
    let dir = stopped(&pairs(100));
    lose_state(dir.path());
    flip_a_byte(&dir.path().join("server_1.secondary"));
    let (said, _dir) = refused(Cluster::builder().flag("--without-state").restore(dir));
    assert_says(&said, &["server_1.secondary: ", "--accept-loss"]);
}

/// Sends a write of one client session to group 0, under its current view.
fn write(cluster: &Cluster, key: &[u8], value: &[u8]) -> crate::common::raw::RawResponse {
    let server = cluster.server(0).clients.expect("started").parse().expect("an address");
    let mut raw = Raw::welcomed(server, ClientId(0xfeed), ShardId(0));
    let view = cluster.status().groups[0].view;
    let operation = Operation::Put(write_number(1), value);
    let mut bytes = Vec::new();
    Request { id: RequestId(9), view, digest: Digest::of(key), key, operation }.write(&mut bytes);
    raw.send(&bytes);
    raw.response()
}

#[test]
fn a_write_that_is_retried_after_a_restore_gets_its_first_response() {
    let cluster = Cluster::start();
    let key = cluster.key_at(0, 0, "once");
    let first = write(&cluster, &key, b"first");
    assert_eq!((first.status, first.version), (Status::Ok, SequenceNumber(1)));
    let (_, dir) = cluster.stop_and_keep();
    let cluster = Cluster::builder().restore(dir).start();
    let again = write(&cluster, &key, b"first");
    assert_eq!((again.status, again.version), (Status::Ok, SequenceNumber(1)));
    assert_eq!(write(&cluster, &key, b"another").status, Status::SessionMismatch);
    assert_eq!(cluster.open().get(&key, &now()).expect("a get").bytes, b"first");
}

#[test]
fn an_open_handle_works_with_the_restored_cluster_and_with_no_other() {
    let cluster = Cluster::start();
    let port = cluster.ready.clients_port;
    let mut client = cluster.open();
    let before = client.put(b"k", b"before", &now()).expect("a put");
    let workshop = Workshop::open();
    let words = ["-std=c11", "-D_GNU_SOURCE", "-lcmocka", "-lpthread"];
    let program = workshop.compile_shared(&root().join("tests/c/restored.c"), &words);
    let file = workshop.dir().join("handle");
    let at = |what: &str| file.with_extension(what);
    let say = |what: &str| fs::write(at(what), "").expect("make a file");
    let (endpoint, path) = (cluster.endpoint(), file.to_str().expect("a path").to_owned());
    let ended = std::thread::scope(|scope| {
        let ended = scope.spawn(|| workshop.run(&program, &[&endpoint, &path]));
        wait_until("the program in C to store", TIMEOUT, || at("stored").exists());
        let (_, dir) = cluster.stop_and_keep();

        let cluster = Cluster::builder().clients_port(port).restore(dir).start();
        say("restored");
        assert_eq!(client.get(b"k", &now()).expect("a get").bytes, b"before");
        let after = client.put(b"k", b"after", &now()).expect("a put");
        assert!(after.version > before.version);
        wait_until("the program in C to read", TIMEOUT, || at("read").exists());
        cluster.stop();

        let other = Cluster::builder().clients_port(port).start();
        say("replaced");
        let begun = Instant::now();
        for result in [client.get(b"k", &now()).err(), client.put(b"k", b"v", &now()).err()] {
            assert!(matches!(result, Some(Error::OtherCluster { .. })), "{result:?}");
        }
        assert!(begun.elapsed() < TIMEOUT / 2, "the errors took long");
        let ended = ended.join().expect("the program ran");
        other.stop();
        ended
    });
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn after_a_double_fault_the_printed_command_restores_all_groups_but_the_lost_one() {
    let mut cluster = Cluster::builder().servers(4).start();
    let pairs = pairs(400);
    put_all(&mut cluster.open(), &pairs);
    let placement = cluster.placement();
    for server in [1, 2].map(|id| cluster.server_pid(id)) {
        process::signal(server, Signal::KILL);
    }
    cluster.await_end(1);
    let said = cluster.coord_errors();
    let path = cluster.dir().to_str().expect("a path").to_owned();
    assert_says(&said, &["was replaced", "restore it with: ", "--accept-loss"]);
    let command = said.split_once("restore it with: ").expect("a command").1;
    let command = command.lines().next().expect("a line").to_owned();
    assert!(command.starts_with(COORD) && command.ends_with(&format!("--restore {path}")));

    let ended = Command::new("sh").args(["-c", &command]).output().expect("run sh");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert_says(&said, &["these groups is left: 1.", "--accept-loss"]);

    let mut plain = Cluster::builder().servers(4).in_dir(cluster.into_dir()).launch();
    plain.await_any_code(1);
    assert_says(
        &plain.coord_errors(),
        &["was interrupted or did not dump every table", "--restore DIR"],
    );
    let dir = plain.into_dir();
    let cluster = Cluster::builder().servers(4).restore(dir).flag("--accept-loss").start();
    let mut client = cluster.open();
    for group in [0, 2, 3] {
        check_all(&mut client, &of_group(placement, &pairs, group));
    }
    let lost = of_group(placement, &pairs, 1);
    let got = client.get(&lost[0].0, &now());
    assert!(matches!(got, Err(Error::Lost { .. })), "{got:?}");
    assert_says(&cluster.coord_log(), &["group 1 is LOST"]);
}

#[test]
fn failed_starts_leave_everything_that_can_be_restored() {
    let pairs = pairs(100);
    let mut dir = stopped(&pairs);
    for _ in 0..2 {
        let said;
        (said, dir) = refused(Cluster::builder().in_dir(dir).server_binary("/bin/false".into()));
        assert_says(&said, &["exit status 1"]);
    }
    let cluster = Cluster::builder().restore(dir).start();
    check_all(&mut cluster.open(), &pairs);
}

#[test]
fn a_damaged_or_missing_dump_is_named_and_the_other_copy_is_used_if_there_is_one() {
    let pairs = pairs(300);
    let dir = stopped(&pairs);
    let path = |dir: &TempDir, name: &str| dir.path().join(name);
    let (whole, kept) = (path(&dir, "server_0.primary"), path(&dir, "kept"));
    fs::copy(&whole, &kept).expect("copy a dump");
    flip_a_byte(&path(&dir, "server_0.primary"));
    let other = fs::read(path(&dir, "server_1.secondary")).expect("read a dump");
    fs::write(path(&dir, "server_1.secondary"), &other[..other.len() - 1]).expect("write a dump");
    fs::remove_file(path(&dir, "server_2.primary")).expect("remove a dump");

    let (said, dir) = refused(Cluster::builder().restore(dir));
    let lost =
        ["these groups is left: 0.", "missing: server_0.primary", "missing: server_1.secondary"];
    assert_says(&said, &lost);
    assert_says(&said, &["missing: server_2.primary", "server_0.primary: ", "cut short"]);

    fs::rename(path(&dir, "kept"), path(&dir, "server_0.primary")).expect("rename a dump");
    let cluster = Cluster::builder().restore(dir).start();
    check_all(&mut cluster.open(), &pairs);
    cluster.await_whole();
    let log = cluster.coord_log();
    assert_says(&log, &["broken: ", "missing: server_1.secondary", "used"]);
}

#[test]
fn while_an_old_member_may_still_serve_only_force_restores() {
    let mut cluster = Cluster::start();
    let pairs = pairs(300);
    put_all(&mut cluster.open(), &pairs);
    let pids = cluster.server_pids();
    process::pause(pids[1]);
    cluster.kill_coordinator();
    for pid in [pids[0], pids[2]] {
        process::signal(pid, Signal::TERM);
    }
    wait_until("the others to leave", TIMEOUT, || {
        !process::is_alive(pids[0]) && !process::is_alive(pids[2])
    });
    let dir = cluster.into_dir();
    let path = dir.path().to_owned();
    let mut refused = Cluster::builder().restore(dir).launch();
    refused.await_any_code(1);
    let who = format!("server 1 (pid {}) still runs", pids[1]);
    assert_says(&refused.coord_errors(), &[&who, "--force"]);
    assert!(path.join("coordinator.state").exists(), "the state was removed");

    let cluster = Cluster::builder().restore(refused.into_dir()).flag("--force").start();
    check_all(&mut cluster.open(), &pairs);
    process::signal(pids[1], Signal::KILL);
}

#[test]
fn on_another_machine_localhost_servers_cannot_be_checked_and_only_force_restores() {
    let pairs = pairs(100);
    let dir = stopped(&pairs);
    move_to_another_machine(&dir.path().join("coordinator.state"));
    let (said, dir) = refused(Cluster::builder().restore(dir));
    assert_says(&said, &["another machine", "cannot be checked for server 0 (pid ", "--force"]);
    assert!(dir.path().join("server_0.primary").exists(), "a dump was removed");
    let cluster = Cluster::builder().restore(dir).flag("--force").start();
    check_all(&mut cluster.open(), &pairs);
    // The cluster's own state names this machine.
    let (_, dir) = cluster.stop_and_keep();
    check_all(&mut Cluster::builder().restore(dir).start().open(), &pairs);
}

#[test]
fn an_outdated_damaged_or_missing_state_prevents_a_restore() {
    let cluster = Cluster::start();
    let state = cluster.dir().join("coordinator.state");
    let old = fs::read(&state).expect("read the state");
    put_all(&mut cluster.open(), &pairs(100));
    process::signal(cluster.server_pid(1), Signal::KILL);
    wait_until("its return", TIMEOUT, || cluster.coord_log().contains("server 1 is back"));
    let (_, dir) = cluster.stop_and_keep();
    let last = fs::read(&state).expect("read the state");
    fs::write(&state, old).expect("write the state");
    let (said, dir) = refused(Cluster::builder().restore(dir));
    assert_says(&said, &["a later state was stored"]);

    fs::write(&state, &last[..last.len() - 9]).expect("write the state");
    let (said, dir) = refused(Cluster::builder().restore(dir));
    assert_says(&said, &["coordinator.state is damaged", "but there are"]);
    fs::remove_file(&state).expect("remove the state");
    let (said, dir) = refused(Cluster::builder().restore(dir));
    assert_says(&said, &["there is no coordinator.state"]);

    fs::write(&state, last).expect("write the state");
    let cluster = Cluster::builder().restore(dir).start();
    check_all(&mut cluster.open(), &pairs(100));
}

#[test]
fn a_failed_restore_can_be_repeated_however_far_it_came() {
    let pairs = pairs(300);
    let mut dir = stopped(&pairs);
    // Server 2 exits once server 0 has loaded its dumps and renamed the dumps that it found.
    let program = dir.path().join("one-fails");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' -S 2 '*)\n  until [ -e server_0.primary.old ]; do sleep 0.05; done\n  exit 13;;\nesac\nexec '{SERVER}' \"$@\"\n"
    );
    fs::write(&program, script).expect("write a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set the mode");
    for _ in 0..3 {
        let said;
        (said, dir) = refused(Cluster::builder().restore(dir).server_binary(program.clone()));
        assert_says(&said, &["server 2", "exit status 13"]);
        // Simulates a dump that a server writes in such an attempt: it replaces the renamed source of the restore.
        fs::write(dir.path().join("server_0.primary.old"), "of nobody").expect("write a file");
    }
    let cluster = Cluster::builder().restore(dir).start();
    check_all(&mut cluster.open(), &pairs);
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_restore_whose_coordinator_is_killed_is_completed_only_by_another_restore() {
    let pairs = pairs(200);
    let dir = stopped(&pairs);
    let program = dir.path().join("one-waits");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' -S 2 '*)\n  until [ -e never ]; do sleep 0.05; done;;\nesac\n\
         exec '{SERVER}' \"$@\"\n"
    );
    fs::write(&program, script).expect("write a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set the mode");
    let mut cluster = Cluster::builder().restore(dir).server_binary(program).launch();
    wait_until("two servers to report", TIMEOUT, || {
        cluster.coord_log().matches(" reports: ").count() == 2 * 3 - 1
    });
    cluster.kill_coordinator();
    let left = process::running_in(cluster.dir());
    assert!(left.len() >= 3, "{left:?}");
    let dir = cluster.into_dir();

    let mut plain = Cluster::builder().in_dir(dir).launch();
    plain.await_any_code(1);
    assert_says(&plain.coord_errors(), &["whose restore did not finish", "--restore"]);
    let cluster = Cluster::builder().restore(plain.into_dir()).start();
    check_all(&mut cluster.open(), &pairs);
    // The waiting process is a shell. Its child `sleep` may run for a moment longer.
    wait_until("all processes of the first attempt to end", TIMEOUT, || {
        left.iter().all(|pid| !process::is_alive(*pid))
    });
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_cluster_replaced_by_an_empty_one_is_restored_from_its_renamed_files() {
    let pairs = pairs(100);
    let dir = stopped(&pairs);
    let (_, dir) = Cluster::builder().in_dir(dir).start().stop_and_keep();
    let old = tempfile::tempdir().expect("make a directory");
    for file in fs::read_dir(dir.path()).expect("read a directory").flatten() {
        let name = file.file_name().into_string().expect("a name in UTF-8");
        if let Some(plain) = name.strip_suffix(".old") {
            fs::copy(file.path(), old.path().join(plain)).expect("copy a file");
        }
    }
    let source = old.path().to_str().expect("a path in UTF-8").to_owned();
    let cluster = Cluster::builder().flag("--restore").flag(source).start();
    check_all(&mut cluster.open(), &pairs);
    cluster.stop().assert_copies_agree();
    assert!(old.path().join("server_0.primary").exists(), "the source was removed");
}

#[test]
fn a_server_that_cannot_load_exits_with_a_reason_and_leaves_the_dumps() {
    let pairs = pairs(100);
    let dir = stopped(&pairs);
    // The dump passes the check and disappears before it is loaded.
    let program = dir.path().join("without");
    let script = format!("#!/bin/sh\nrm -f restore/server_0.primary\nexec '{SERVER}' \"$@\"\n");
    fs::write(&program, script).expect("write a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set the mode");
    let (said, dir) = refused(Cluster::builder().restore(dir).server_binary(program.clone()));
    assert_says(&said, &["exit status 21", "restore/server_0.primary: No such file"]);
    let cluster = Cluster::builder().restore(dir).start();
    check_all(&mut cluster.open(), &pairs);
}

#[test]
fn a_restore_with_another_number_of_servers_or_shards_is_rejected() {
    let dir = stopped(&pairs(10));
    let mut cluster = Cluster::builder().servers(4).restore(dir).launch();
    cluster.await_end(2);
    assert_says(&cluster.coord_errors(), &["had 3 servers", "has 4"]);
    let mut cluster = Cluster::builder().shards(2).restore(cluster.into_dir()).launch();
    cluster.await_end(2);
    assert_says(&cluster.coord_errors(), &["had 1 shards", "--shards"]);
    let dir = cluster.into_dir();
    let restored = Cluster::builder().restore(dir).start();
    check_all(&mut restored.open(), &pairs(10));
}

/// Tests the command of a service unit. In whatever state the directory is, no data is ignored.
#[test]
fn resume_founds_takes_over_and_restores_and_never_starts_empty_beside_dumps() {
    let pairs = pairs(100);
    let mut cluster = Cluster::builder().flag("--resume").start();
    put_all(&mut cluster.open(), &pairs);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    cluster.restart();
    assert_eq!(cluster.server_pids(), pids, "the servers were replaced");
    check_all(&mut cluster.open(), &pairs);
    let (_, dir) = cluster.stop_and_keep();

    let cluster = Cluster::builder().in_dir(dir).flag("--resume").start();
    check_all(&mut cluster.open(), &pairs);
    let (_, dir) = cluster.stop_and_keep();

    fs::rename(dir.path().join("coordinator.state"), dir.path().join("kept")).expect("rename");
    let _ = fs::remove_file(dir.path().join("coordinator.state.old"));
    let (said, dir) = refused(Cluster::builder().in_dir(dir).flag("--resume"));
    assert_says(&said, &["no coordinator.state", "nothing was started", "move the dumps away"]);
    fs::rename(dir.path().join("kept"), dir.path().join("coordinator.state")).expect("rename");
    let cluster = Cluster::builder().in_dir(dir).flag("--resume").start();
    check_all(&mut cluster.open(), &pairs);
}

#[test]
fn a_restore_beside_live_servers_first_explains_how_to_take_them_over() {
    let pairs = pairs(20);
    let mut cluster = Cluster::start();
    put_all(&mut cluster.open(), &pairs);
    cluster.kill_coordinator();
    let dir = cluster.dir().to_str().expect("a path").to_owned();
    let ended = cluster.run_coordinator(&["--restore", &dir]);
    let take_over = ended.stderr.find("take them over").expect("the way that keeps the data");
    assert!(take_over < ended.stderr.find("--force").expect("the other way"), "{}", ended.stderr);
    assert_says(&ended.stderr, &["still runs", &format!("--dir {dir} and without --restore")]);
    cluster.restart();
    check_all(&mut cluster.open(), &pairs);
}
