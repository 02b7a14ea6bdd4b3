//! Tests of moves of servers, and of the coordinator, to other hosts while the cluster serves. One of three servers
//! runs behind a real sshd.

use std::fs;

use crate::common::process::{self, Signal};
use crate::common::programs::{self, COORD, Ended};
use crate::common::sshd::Sshd;
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_protocol::health::Health;
use kv_protocol::status::AlarmKind;

/// The server that runs behind sshd.
const REMOTE: usize = 1;
const KEYS: usize = 300;

/// Runs a command of `coord` for the cluster in this directory.
fn coord(cluster: &Cluster, words: &[&str]) -> Ended {
    let dir = cluster.dir().to_str().expect("a path in UTF-8");
    programs::run(COORD, [words, &["--dir", dir]].concat(), "", TIMEOUT)
}

/// Moves a server. Repeats the command while it is rejected: until another move is complete, the server holds the only
/// copy of a group.
fn replace_when_allowed(cluster: &Cluster, id: usize, host: &str) {
    wait_until("the server may move", TIMEOUT, || {
        let ended = coord(cluster, &["replace", &id.to_string(), host]);
        let is_sole = ended.stderr.contains("may hold the only copy");
        assert!(ended.code == Some(0) || is_sole, "{ended:?}");
        !is_sole
    });
}

fn health(cluster: &Cluster) -> (Health, i32) {
    let port = cluster.ready.clients_port.to_string();
    let shown = programs::run(COORD, ["status", "-p", &port], "", TIMEOUT);
    (cluster.status().health, shown.code.expect("an exit status"))
}

fn put_all(cluster: &Cluster) {
    let puts: String = (0..KEYS).map(|n| format!("P \"key {n}\" \"value {n}\"\n")).collect();
    cluster.client(&puts).with_code(0);
}

/// Checks the value of every key at both holders.
#[track_caller]
fn check_all(cluster: &Cluster) {
    let checks: String = (0..KEYS).map(|n| format!("V \"key {n}\" \"value {n}\"\n")).collect();
    let checked = cluster.client(&checks).with_code(0);
    assert_eq!(checked.lines().iter().filter(|l| l.starts_with("check passed")).count(), KEYS);
}

fn alarm(cluster: &Cluster, kind: AlarmKind) -> Option<String> {
    let alarms = cluster.status().alarms;
    alarms.into_iter().find(|alarm| alarm.kind == kind).map(|alarm| alarm.text)
}

#[test]
fn a_host_that_stays_dead_raises_an_alarm_and_its_server_can_be_moved_to_another() {
    let mut sshd = Sshd::start();
    let cluster = sshd.cluster().start();
    put_all(&cluster);
    assert_eq!(health(&cluster), (Health::Whole, 0));
    let old = cluster.server_pid(REMOTE);
    process::pause(old);
    sshd.kill();
    wait_until("an alarm with the message of ssh", TIMEOUT, || {
        alarm(&cluster, AlarmKind::HostUnreachable)
            .is_some_and(|text| text.contains("Connection refused"))
    });
    let text = alarm(&cluster, AlarmKind::HostUnreachable).expect("an alarm");
    assert!(text.contains("coord replace 1 HOST"), "{text}");
    assert_eq!(health(&cluster), (Health::Degraded, 3));
    wait_until("its process must end first", TIMEOUT, || {
        cluster.server(REMOTE).recovery_step == Some(0)
    });
    let refused = coord(&cluster, &["replace", "1", "nobody@127.0.0.1"]).with_code(1);
    assert!(refused.stderr.contains("cannot connect by ssh"), "{}", refused.stderr);

    let told = coord(&cluster, &["replace", "1", "localhost", "0", "0", "0"]).with_code(0);
    assert!(told.stdout.contains("localhost 0 0 0"), "{}", told.stdout);
    cluster.await_whole();
    assert_eq!(health(&cluster), (Health::Whole, 0));
    check_all(&cluster);
    let new = cluster.server_pid(REMOTE);
    assert_ne!(new, old);

    // The old process resumes, and later its host returns. Neither gets a role again.
    process::signal(old, Signal::CONT);
    check_all(&cluster);
    sshd.restart();
    wait_until("the end of the old process", TIMEOUT, || !process::is_alive(old));
    assert_eq!(cluster.server_pid(REMOTE), new);
    check_all(&cluster);
    let log = cluster.coord_log();
    let said = log.matches("Connection refused").count();
    assert!(said <= 4, "{said} identical lines:\n{log}");
}

#[test]
fn a_live_server_is_moved_without_a_dump_and_an_old_cluster_file_moves_no_server_back() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    put_all(&cluster);
    let old = cluster.server_pid(0);
    let host = sshd.host();
    coord(&cluster, &["replace", "0", &host]).with_code(0);
    wait_until("the end of the old process", TIMEOUT, || !process::is_alive(old));
    cluster.await_whole();
    check_all(&cluster);
    let moved = cluster.server(0);
    assert_eq!(moved.host, host);
    assert!(
        !cluster.dir().join("server_0.primary").exists(),
        "the moved server has written a dump"
    );

    cluster.kill_coordinator();
    cluster.restart();
    cluster.await_whole();
    assert_eq!(cluster.server(0).pid, moved.pid, "the server was moved back");
    let log = cluster.coord_log();
    assert!(log.contains("the cluster file still names localhost for server 0"), "{log}");
    check_all(&cluster);

    // The next coordinator can kill the current process, although another process had the place before.
    process::pause(moved.pid.expect("a pid"));
    wait_until("another process in its place", TIMEOUT, || {
        cluster.server(0).pid.is_some_and(|pid| Some(pid) != moved.pid)
    });
    cluster.await_whole();
    check_all(&cluster);
}

#[test]
fn two_simultaneous_replacements_and_a_changed_setting_all_complete() {
    let sshd = Sshd::start();
    let cluster = sshd.cluster().start();
    put_all(&cluster);
    let old = cluster.server_pids();
    let host = sshd.host();
    std::thread::scope(|scope| {
        let moving = [0, 2].map(|id: usize| {
            let (cluster, host) = (&cluster, &host);
            scope.spawn(move || replace_when_allowed(cluster, id, host))
        });
        coord(&cluster, &["set", "--memory-limit", "1G"]).with_code(0);
        moving.into_iter().for_each(|thread| thread.join().expect("a replacement"));
    });
    wait_until("both to have moved", TIMEOUT, || {
        [0, 2].into_iter().all(|id| {
            let server = cluster.server(id);
            server.host == host && server.pid.is_some_and(|pid| pid != old[id])
        })
    });
    cluster.await_whole();
    check_all(&cluster);
    let status = cluster.status();
    assert!(status.servers.iter().all(|server| server.memory_limit == 1 << 30), "{status:?}");
    assert_eq!(status.settings["memory-limit"], "1G");
}

#[test]
fn a_server_is_restarted_in_place_and_the_command_waits_until_all_its_copies_are_back() {
    let sshd = Sshd::start();
    let cluster = sshd.cluster().start();
    put_all(&cluster);
    for server in [0, REMOTE] {
        let before = cluster.server(server);
        let told = coord(&cluster, &["replace", &server.to_string()]).with_code(0);
        let first = format!("restarting server {server} on {}", before.host);
        assert!(told.lines()[0].starts_with(&first), "{}", told.stdout);
        assert_eq!(
            told.lines()[1..],
            [format!("server {server} is back, with copies of all its groups")]
        );
        let now = cluster.server(server);
        assert_ne!(now.pid, before.pid);
        assert_eq!((now.host, now.recovery_step), (before.host, None));
        assert_eq!(health(&cluster), (Health::Whole, 0));
        check_all(&cluster);
    }
    let log = cluster.coord_log();
    assert!(!log.contains("cluster file still names"), "a server was moved");
    assert!(log.contains("server 0 is being replaced: its groups are handed over"), "{log}");
    assert!(!log.contains("received a stop signal"), "{log}");
}

#[test]
fn a_changed_cluster_file_moves_a_server_when_another_coordinator_takes_over() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    put_all(&cluster);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    cluster.change_cluster_file("3\nlocalhost 0 0 0\nlocalhost 0 0 0\nlocalhost 0 0 0\n");
    cluster.restart();
    wait_until("the end of the process there", TIMEOUT, || !process::is_alive(pids[REMOTE]));
    cluster.await_whole();
    let now = cluster.server(REMOTE);
    assert_eq!(now.host, "localhost");
    assert_eq!([cluster.server_pid(0), cluster.server_pid(2)], [pids[0], pids[2]]);
    check_all(&cluster);
}

#[test]
fn a_sole_holder_is_not_replaced_and_without_a_coordinator_no_server_is() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let no = coord(&cluster, &["replace", "3", "localhost"]).with_code(1);
    assert!(no.stderr.contains("no server 3"), "{}", no.stderr);
    for words in [&["replace"][..], &["replace", "x", "localhost"], &["replace", "1", "a b"]] {
        coord(&cluster, words).with_code(2);
    }
    // Server 1 cannot be replaced, so the others are the only holders of its groups.
    fs::remove_file(sshd.remote_dir().join("server")).expect("remove the server there");
    process::signal(cluster.server_pid(REMOTE), Signal::KILL);
    wait_until("its groups to have one holder", TIMEOUT, || {
        cluster.status().groups.iter().filter(|group| group.copies == 1).count() == 2
    });
    let no = coord(&cluster, &["replace", "2", "localhost"]).with_code(1);
    assert!(no.stderr.contains("may hold the only copy of group 1"), "{}", no.stderr);
    cluster.kill_coordinator();
    let no = coord(&cluster, &["replace", "1", "localhost"]).with_code(1);
    assert!(no.stderr.contains("no coordinator runs"), "{}", no.stderr);
}

#[test]
fn servers_follow_their_coordinator_to_another_port_and_address() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    put_all(&cluster);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    cluster.forget_flags();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    cluster.change_servers_port(port);
    cluster.restart_with(&["--advertise", "127.0.0.2", "--bind", "0.0.0.0"]);
    cluster.await_whole();
    assert_eq!(cluster.server_pids(), pids, "a server was replaced");
    check_all(&cluster);
    // Servers that start from now on find the coordinator too.
    process::signal(pids[REMOTE], Signal::KILL);
    wait_until("another process in its place", TIMEOUT, || {
        cluster.server(REMOTE).pid.is_some_and(|pid| pid != pids[REMOTE])
    });
    cluster.await_whole();
    check_all(&cluster);
}

#[test]
fn after_the_loss_of_the_coordinators_host_its_server_moves_to_the_host_in_the_cluster_file() {
    let sshd = Sshd::start();
    let there = format!("{} 0 0 0\n", sshd.host());
    let file = |first: &str| format!("3\n{first}{there}{there}");
    let mut cluster = sshd.cluster().cluster_file(file("localhost 0 0 0\n")).start();
    put_all(&cluster);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    process::pause(pids[0]);
    cluster.move_state_to_another_machine();
    let ended = cluster.run_coordinator(&[]).with_code(1);
    assert!(ended.stderr.contains("name another host for that server"), "{}", ended.stderr);
    cluster.change_cluster_file(&file(&there));
    cluster.restart();
    wait_until("another process in its place", TIMEOUT, || {
        cluster.server(0).pid.is_some_and(|pid| pid != pids[0])
    });
    cluster.await_whole();
    assert_eq!(health(&cluster), (Health::Whole, 0));
    check_all(&cluster);
    assert_eq!([cluster.server_pid(1), cluster.server_pid(2)], [pids[1], pids[2]]);
    // The old machine was only unreachable. Its process has no role and must not serve.
    process::signal(pids[0], Signal::CONT);
    check_all(&cluster);
    process::signal(pids[0], Signal::KILL);
}

#[test]
fn a_reached_memory_limit_raises_an_alarm_and_can_be_raised_while_the_servers_run() {
    let mut cluster = Cluster::builder().flag("--memory-limit").flag("16M").start();
    let pids = cluster.server_pids();
    let value = "x".repeat(30_000);
    let puts = |from: usize| -> String {
        (from..from + 2_000).map(|n| format!("P \"key {n}\" \"{value}\"\n")).collect()
    };
    cluster.client(&puts(0)).with_code(1);
    let text = alarm(&cluster, AlarmKind::OutOfSpace).expect("an alarm");
    for words in ["of a limit of 16 MiB", "writes rejected", "coord set --memory-limit"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    assert!(cluster.status().servers.iter().any(|server| server.out_of_space > 0));
    assert_eq!(health(&cluster), (Health::Degraded, 3));
    coord(&cluster, &["set", "--memory-limit", "5"]).with_code(2);
    coord(&cluster, &["set", "--memory-limit", "512M"]).with_code(0);
    wait_until("the new limit everywhere", TIMEOUT, || {
        cluster.status().servers.iter().all(|server| server.memory_limit == 512 << 20)
    });
    cluster.client(&puts(0)).with_code(0);
    wait_until("the end of the alarm", TIMEOUT, || {
        alarm(&cluster, AlarmKind::OutOfSpace).is_none()
    });
    assert_eq!(cluster.server_pids(), pids, "a server was restarted");
    // Servers that start later use the new limit, and so does the next coordinator.
    process::signal(pids[0], Signal::KILL);
    cluster.await_whole();
    cluster.kill_coordinator();
    cluster.forget_flags();
    cluster.restart();
    cluster.await_whole();
    assert_eq!(cluster.status().settings["memory-limit"], "512M");
    assert_eq!(cluster.server(0).memory_limit, 512 << 20);
}
