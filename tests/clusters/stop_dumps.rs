//! Tests that a stop discards no data that is not on a disk. Failed dumps are retried until they are complete or the
//! operator abandons them. They may also be redirected to another directory.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::cluster::read_dump;
use crate::common::coordinator::{Lone, OTHER_USER};
use crate::common::load::put_all;
use crate::common::process::{self, Signal};
use crate::common::programs::{self, COORD, Ended};
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_client::OpOptions;
use kv_protocol::exit_code::ServerExit;
use kv_protocol::status::{AlarmKind, ClusterState};

const ENTRIES: usize = 2_000;

/// Starts a cluster with entries of about 100 KiB in all.
fn cluster() -> Cluster {
    let cluster = Cluster::builder().in_foreground().start();
    put_all(&mut cluster.open(), &pairs());
    cluster
}

fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |n| (format!("key {n}").into_bytes(), format!("value {n:040}").into_bytes());
    (0..ENTRIES).map(pair).collect()
}

/// Runs `coord stop` in the directory of a cluster.
fn coord_stop(dir: &Path, arguments: &[&str]) -> Ended {
    let dir = dir.to_str().expect("a path in UTF-8");
    let all = ["stop", "--dir", dir].into_iter().chain(arguments.iter().copied());
    programs::run(COORD, all, "", 2 * TIMEOUT)
}

#[track_caller]
fn await_log(cluster: &Cluster, words: &str) {
    wait_until(words, TIMEOUT, || cluster.coord_log().contains(words));
}

#[track_caller]
fn assert_complete(cluster: &Cluster) {
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), ENTRIES);
    let log = cluster.coord_log();
    assert!(!log.contains("killed"), "{log}");
}

#[test]
fn a_failed_dump_is_retried_until_it_is_complete_and_no_server_exits_before() {
    let mut cluster = cluster();
    let (pids, coord) = (cluster.server_pids(), cluster.coord_pid());
    // Writes fail at this file size, as on a full disk. In addition, the process receives SIGXFSZ.
    process::limit_file_size(pids[1], Some(4_096));
    process::signal(coord, Signal::TERM);
    await_log(&cluster, "server 1 could not carry out DUMP-PRIMARY");
    await_log(&cluster, "server 1 could not carry out DUMP-SECONDARY");
    let log = cluster.coord_log();
    assert!(log.contains("File too large") && log.contains("coord stop --dump-dir"), "{log}");
    let status = cluster.status();
    let alarm = status.alarms.iter().find(|alarm| alarm.kind == AlarmKind::OrderFailed);
    let text = &alarm.expect("an alarm").text;
    assert!(text.contains("File too large") && text.contains("--dump-dir"), "{text}");
    // Pauses all processes of the cluster in the middle of the dumps, as a suspended machine does.
    let all = || pids.iter().copied().chain([coord]);
    all().for_each(process::pause);
    all().for_each(|pid| process::signal(pid, Signal::CONT));
    wait_until("more attempts of both dumps", TIMEOUT, || {
        cluster.coord_log().matches("server 1 still cannot carry out DUMP-").count() >= 4
    });
    assert!(pids.iter().all(|pid| process::is_alive(*pid)), "a server has exited");
    assert!(!cluster.coord_log().contains("stop, 3 of 3"));
    process::limit_file_size(pids[1], None);
    cluster.await_end(0);
    assert_complete(&cluster);
}

#[test]
fn a_stop_needs_no_further_thread_in_the_coordinator_or_a_server() {
    let own = rustix::process::geteuid().as_raw();
    // Root may exceed the limit, so the cluster runs as another user.
    let (builder, user) = match own {
        0 => (Cluster::builder().run_by(OTHER_USER), OTHER_USER),
        _ => (Cluster::builder(), own),
    };
    let mut cluster = builder.start();
    put_all(&mut cluster.open(), &pairs());
    for pid in cluster.server_pids().into_iter().chain([cluster.coord_pid()]) {
        process::forbid_threads(pid, user);
    }
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    assert_complete(&cluster);
}

#[test]
fn dumps_go_to_another_directory_and_are_restored_from_there() {
    let mut cluster = cluster();
    let other = tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory");
    let there = other.path().join("made by the servers");
    let told = coord_stop(cluster.dir(), &["--dump-dir", there.to_str().expect("UTF-8")]);
    let told = told.with_code(0);
    for words in ["stop, 2 of 3", "coord --restore", "stopped"] {
        assert!(told.stdout.contains(words), "no {words}: {}", told.stdout);
    }
    cluster.await_end(0);
    for server in 0..3 {
        for role in ["primary", "secondary"] {
            let name = format!("server_{server}.{role}");
            assert!(!cluster.dir().join(&name).exists(), "{name} is in the old directory");
            read_dump(&there.join(&name));
        }
    }
    let flag = there.to_str().expect("UTF-8").to_owned();
    let restored = Cluster::builder().flag("--restore").flag(flag).start();
    let mut client = restored.open();
    for (key, value) in pairs() {
        assert_eq!(client.get(&key, &OpOptions::default()).expect("a get").bytes, value);
    }
}

#[test]
fn a_coordinator_that_completes_a_stop_keeps_the_dump_directory_that_was_given() {
    let mut cluster = Cluster::start();
    put_all(&mut cluster.open(), &pairs());
    let other = tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory");
    let (blocked, there) = (other.path().join("blocked"), other.path().join("blocked/dumps"));
    fs::write(&blocked, "a file where a directory must be").expect("write a file");
    // The directory is given while the stop is in progress, so that no other change stores the state after it.
    for id in 0..3 {
        process::limit_file_size(cluster.server_pid(id), Some(4_096));
    }
    process::signal(cluster.coord_pid(), Signal::TERM);
    await_log(&cluster, "could not carry out DUMP-PRIMARY");
    let mut caller = Command::new(COORD)
        .args(["stop", "--dir"])
        .arg(cluster.dir())
        .arg("--dump-dir")
        .arg(&there)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start coord stop");
    let there_is_told = |cluster: &Cluster| {
        let settings = cluster.status().settings;
        settings.get("dump-dir").is_some_and(|dir| *dir == there.display().to_string())
    };
    wait_until("the directory in the status", TIMEOUT, || there_is_told(&cluster));
    wait_until("the directory in the state", TIMEOUT, || {
        fs::read_to_string(cluster.state_file())
            .is_ok_and(|text| text.contains(&there.display().to_string()))
    });
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    assert_eq!(programs::wait(&mut caller, TIMEOUT), Some(Some(1)), "its coordinator was killed");
    // From now on dumps to the servers' own directories would succeed; those to the given directory
    // fail.
    pids.iter().for_each(|pid| process::limit_file_size(*pid, None));
    let before = cluster.coord_log().matches("could not carry out DUMP-").count();
    cluster.relaunch(&[]);
    wait_until("a dump that fails for the new coordinator", TIMEOUT, || {
        cluster.coord_log().matches("could not carry out DUMP-").count() > before
    });
    assert!(there_is_told(&cluster), "the status lacks the directory");
    fs::remove_file(&blocked).expect("remove a file");
    cluster.await_end(0);
    for server in 0..3 {
        for role in ["primary", "secondary"] {
            let name = format!("server_{server}.{role}");
            assert!(!cluster.dir().join(&name).exists(), "{name} is in the old directory");
            read_dump(&there.join(&name));
        }
    }
}

#[test]
fn an_interrupted_stop_that_took_the_servers_over_gives_up_no_table() {
    let mut cluster = cluster();
    let pids = cluster.server_pids();
    process::limit_file_size(pids[1], Some(4_096));
    cluster.kill_coordinator();
    let errors = tempfile::NamedTempFile::new().expect("a file");
    let mut stop = Command::new(COORD)
        .args(["stop", "--dir"])
        .arg(cluster.dir())
        .stderr(errors.reopen().expect("open a file"))
        .spawn()
        .expect("start coord stop");
    let said = || fs::read_to_string(errors.path()).expect("read a file");
    wait_until("a dump that fails", TIMEOUT, || said().contains("could not carry out DUMP-"));
    wait_until("the message about an interrupt", TIMEOUT, || {
        process::signal(stop.id(), Signal::INT);
        said().contains("the stop continues; coord stop --force")
    });
    assert!(pids.iter().all(|pid| process::is_alive(*pid)), "a server has exited");
    process::limit_file_size(pids[1], None);
    assert_eq!(programs::wait(&mut stop, 2 * TIMEOUT), Some(Some(0)), "{}", said());
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), ENTRIES);
}

/// Mounts a tmpfs, or changes its size.
fn mount(at: &Path, options: &str) -> bool {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "kv-test"]).arg(at);
    command.status().is_ok_and(|status| status.success())
}

/// A tmpfs that is unmounted on drop.
struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}; unmount it by hand", self.0.display());
        }
    }
}

#[test]
fn a_stop_on_a_full_disk_completes_when_there_is_room() {
    let mut cluster = cluster();
    let small = tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory");
    if !mount(small.path(), "size=64k") {
        crate::common::skipped("only root may mount a small tmpfs");
        return;
    }
    let _tmpfs = Tmpfs(small.path());
    let dir = cluster.dir().to_owned();
    let path = small.path().to_str().expect("UTF-8").to_owned();
    let told = std::thread::scope(|scope| {
        let stop = scope.spawn(|| coord_stop(&dir, &["--dump-dir", &path]));
        await_log(&cluster, "No space left");
        let pids = cluster.server_pids();
        assert!(pids.iter().all(|pid| process::is_alive(*pid)));
        assert!(mount(small.path(), "remount,size=16m"), "remount");
        stop.join().expect("coord stop")
    });
    let told = told.with_code(0);
    cluster.await_end(0);
    let entries: usize = (0..3)
        .map(|server| read_dump(&small.path().join(format!("server_{server}.primary"))))
        .map(|dump| dump.entries.len())
        .sum();
    assert_eq!(entries, ENTRIES);
    assert!(told.stdout.contains("No space left"), "{}", told.stdout);
}

#[test]
fn a_forced_stop_names_the_groups_that_are_given_up() {
    let mut cluster = cluster();
    let pids = cluster.server_pids();
    // The dumps of both replicas of group 1 fail.
    process::limit_file_size(pids[1], Some(4_096));
    process::limit_file_size(pids[2], Some(4_096));
    let told = coord_stop(cluster.dir(), &["--force"]).with_code(1);
    let lost = "no server reported a complete dump of group 1";
    assert!(told.stderr.contains(lost), "{}", told.stderr);
    assert!(
        told.stdout.contains("the copy of group 1 at server 1 is abandoned"),
        "{}",
        told.stdout
    );
    cluster.await_end(1);
    assert!(cluster.dir().join("server_0.primary").exists());
    assert!(cluster.dir().join("server_0.secondary").exists());
}

#[test]
fn a_second_interrupt_gives_up_only_the_tables_that_cannot_be_dumped() {
    let mut cluster = cluster();
    process::limit_file_size(cluster.server_pids()[1], Some(4_096));
    process::signal(cluster.coord_pid(), Signal::INT);
    // By then the stop has lasted for more than a second, so the next signal counts as a second Ctrl+C.
    wait_until("more attempts of both dumps", TIMEOUT, || {
        cluster.coord_log().matches("server 1 still cannot carry out DUMP-").count() >= 4
    });
    process::signal(cluster.coord_pid(), Signal::INT);
    cluster.await_end(0);
    let log = cluster.coord_log();
    for group in [0, 1] {
        let words =
            format!("the copy of group {group} at server 1 is abandoned; another server has");
        assert!(log.contains(&words), "{log}");
    }
    for (server, role) in [(0, "primary"), (0, "secondary"), (2, "primary"), (2, "secondary")] {
        cluster.dump(server, role);
    }
}

#[test]
fn a_deleted_dump_directory_can_be_created_again() {
    let mut cluster = cluster();
    let dir = cluster.dir().to_owned();
    let pids = cluster.server_pids();
    fs::remove_dir_all(&dir).expect("delete the directory");
    process::signal(cluster.coord_pid(), Signal::TERM);
    wait_until("the stop to begin", TIMEOUT, || cluster.status().state == ClusterState::Stopping);
    assert!(pids.iter().all(|pid| process::is_alive(*pid)));
    fs::create_dir(&dir).expect("make the directory");
    cluster.await_end(0);
    wait_until("the servers' end", TIMEOUT, || !pids.iter().any(|pid| process::is_alive(*pid)));
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), ENTRIES);
}

/// Starts a server whose coordinator vanishes, makes the dump of its primary table fail, and sends it a stop signal.
/// Waits until the dump has failed.
fn lone_with_a_blocked_dump() -> Lone {
    let mut server = Lone::start(&[]);
    server.admit().heartbeat();
    server.vanish();
    // A file cannot be created under the name of a directory.
    fs::create_dir(server.dir.path().join("server_1.primary.tmp")).expect("make a directory");
    process::signal(server.pid(), Signal::TERM);
    wait_until("a dump to fail", TIMEOUT, || server.log().contains("their dumps are retried"));
    server
}

#[test]
fn a_server_that_leaves_alone_retries_its_dumps_until_they_are_complete() {
    let mut server = lone_with_a_blocked_dump();
    fs::remove_dir(server.dir.path().join("server_1.primary.tmp")).expect("remove the directory");
    assert_eq!(server.await_end(), Some(ServerExit::Stopped.code().into()), "{}", server.log());
}

#[test]
fn a_server_that_leaves_alone_gives_its_tables_up_at_a_second_signal() {
    let mut server = lone_with_a_blocked_dump();
    wait_until("the server's end", TIMEOUT, || {
        process::signal(server.pid(), Signal::TERM);
        !process::is_alive(server.pid())
    });
    assert_eq!(server.await_end(), Some(ServerExit::NotDumped.code().into()), "{}", server.log());
}

#[test]
fn coord_stop_reports_that_no_coordinator_runs() {
    let dir = tempfile::tempdir().expect("make a directory");
    let told = coord_stop(dir.path(), &[]).with_code(1);
    assert!(told.stderr.contains("no coordinator runs there"), "{}", told.stderr);
    let told = coord_stop(dir.path(), &["--dump-dir", "relative"]).with_code(2);
    assert!(told.stderr.contains("absolute path"), "{}", told.stderr);
}
