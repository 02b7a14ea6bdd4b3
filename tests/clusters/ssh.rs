//! Tests of servers on another machine: one of three runs behind a real sshd on a loopback port.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::process::{self, Signal};
use crate::common::programs::{self, COORD, Ended};
use crate::common::sshd::Sshd;
use crate::common::terminal::Terminal;
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_protocol::map::ServerState;
use kv_protocol::status::ClusterState;

/// The server that runs behind sshd.
const REMOTE: usize = 1;
/// Time limit for a start that must fail. It shows that the start does not wait for a password.
const QUICK: Duration = Duration::from_secs(8);

/// Copies the dumps of the remote server into the cluster's directory.
#[track_caller]
fn fetch_dumps(sshd: &Sshd, cluster: &Cluster) {
    for role in ["primary", "secondary"] {
        let name = format!("server_{REMOTE}.{role}");
        assert!(!cluster.dir().join(&name).exists(), "{name} must be in the remote directory");
        fs::copy(sshd.remote_dir().join(&name), cluster.dir().join(&name))
            .unwrap_or_else(|error| panic!("{name} in the remote directory: {error}"));
    }
}

fn operations(count: usize) -> String {
    (0..count).map(|n| format!("P \"key {n}\" \"value {n}\"\n")).collect()
}

/// Returns true if no process that was started on the remote host is left.
fn nobody_is_left(sshd: &Sshd) -> bool {
    process::running_in(&sshd.remote_dir()).is_empty()
}

/// Returns true if a watcher on the remote host waits for the end of this process.
fn is_watched(sshd: &Sshd, pid: u32) -> bool {
    process::running_in(&sshd.remote_dir())
        .into_iter()
        .any(|watcher| process::command_line(watcher).contains(&format!("server --watch {pid}:")))
}

#[test]
fn a_server_behind_ssh_serves_and_leaves_its_dumps_in_the_remote_directory() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().shards(2).start();
    let status = cluster.status();
    assert_eq!(status.servers[REMOTE].host, sshd.host());
    let pid = status.servers[REMOTE].pid.expect("a pid");
    let runs_in = fs::read_link(format!("/proc/{pid}/cwd")).expect("a directory");
    assert_eq!(runs_in, sshd.remote_dir().canonicalize().expect("a path"));

    cluster.client(&operations(1_000)).with_code(0);
    let checks: String = (0..1_000).map(|n| format!("V \"key {n}\" \"value {n}\"\n")).collect();
    let checked = cluster.client(&checks).with_code(0);
    assert_eq!(checked.lines().iter().filter(|l| l.starts_with("check passed")).count(), 1_000);

    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    assert!(!process::is_alive(pid), "the remote server outlived the cluster");
    wait_until("the end of the scripts there", TIMEOUT, || nobody_is_left(&sshd));
    fetch_dumps(&sshd, &cluster);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), 1_000);
    assert!(dumps.primary[REMOTE].entries.len() > 100);
}

#[test]
fn a_server_behind_ssh_listens_in_the_directory_of_sockets_on_its_host() {
    let dir = tempfile::Builder::new().prefix("kv sock-").tempdir().expect("make a directory");
    let sshd = Sshd::start();
    let path = dir.path().to_str().expect("a path in UTF-8");
    let mut cluster = sshd.cluster().flag("--unix").flag(path).start();
    let socket = dir.path().join(format!("server_{REMOTE}.sock"));
    let stream = std::os::unix::net::UnixStream::connect(&socket).expect("connect");
    let server = rustix::net::sockopt::socket_peercred(&stream).expect("the process");
    assert_eq!(u32::try_from(server.pid.as_raw_nonzero().get()), Ok(cluster.server_pid(REMOTE)));
    let endpoint = format!("unix:{path}");
    programs::run(programs::CLIENT, ["-h", &endpoint], &operations(50), TIMEOUT).with_code(0);
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    assert!(!socket.exists(), "the socket was left");
}

#[test]
fn a_cluster_with_a_remote_server_is_restored_from_the_collected_dumps() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    cluster.client(&operations(500)).with_code(0);
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    fetch_dumps(&sshd, &cluster);
    let mut restored = sshd.cluster().restore(cluster.into_dir()).start();
    let checks: String = (0..500).map(|n| format!("V \"key {n}\" \"value {n}\"\n")).collect();
    let checked = restored.client(&checks).with_code(0);
    assert_eq!(checked.lines().iter().filter(|l| l.starts_with("check passed")).count(), 500);
    wait_until("the copies of the dumps there to be removed", TIMEOUT, || {
        let files = fs::read_dir(sshd.remote_dir()).expect("read a directory").flatten();
        files.map(|file| file.file_name()).all(|name| !name.to_string_lossy().contains(".load."))
    });
    assert!(sshd.remote_dir().join("server_1.primary.old").exists(), "a dump there was removed");
    process::signal(restored.coord_pid(), Signal::TERM);
    restored.await_end(0);
}

#[test]
fn resume_fetches_the_dumps_from_ssh_hosts_and_restores_the_cluster() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().flag("--resume").start();
    cluster.client(&operations(500)).with_code(0);
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    let mut resumed = sshd.cluster().in_dir(cluster.into_dir()).flag("--resume").start();
    let checks: String = (0..500).map(|n| format!("V \"key {n}\" \"value {n}\"\n")).collect();
    let checked = resumed.client(&checks).with_code(0);
    assert_eq!(checked.lines().iter().filter(|l| l.starts_with("check passed")).count(), 500);
    process::signal(resumed.coord_pid(), Signal::TERM);
    resumed.await_end(0);
}

#[test]
fn when_the_host_of_an_old_member_cannot_be_checked_only_force_restores() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pid = cluster.server_pid(REMOTE);
    cluster.client(&operations(100)).with_code(0);
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    fetch_dumps(&sshd, &cluster);
    // The servers of the new cluster run on other hosts, so the start itself does not need that
    // host.
    let config = sshd.refused_config().display().to_string();
    let here = |dir| Cluster::builder().restore(dir).flag("--ssh-config").flag(&config);
    let mut refused = here(cluster.into_dir()).launch();
    refused.await_end(1);
    let said = refused.coord_errors();
    let who = format!("cannot check {} for server {REMOTE} (pid {pid})", sshd.host());
    for words in [&*who, "Permission denied", "--force"] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    assert!(refused.state_file().exists(), "the state was removed");
    let restored = here(refused.into_dir()).flag("--force").start();
    let checks: String = (0..100).map(|n| format!("V \"key {n}\" \"value {n}\"\n")).collect();
    restored.client(&checks).with_code(0);
    restored.stop().assert_copies_agree();
}

#[test]
fn a_killed_remote_server_is_replaced_and_the_log_names_the_signal() {
    let sshd = Sshd::start();
    let cluster = sshd.cluster().start();
    let killed = cluster.server_pid(REMOTE);
    process::signal(killed, Signal::KILL);
    wait_until("its exit in the log", TIMEOUT, || {
        cluster.coord_log().contains("server 1: killed by signal 9")
    });
    wait_until("another process in its place", TIMEOUT, || {
        cluster.status().state == ClusterState::Serving && cluster.server_pid(REMOTE) != killed
    });
    let mut client = cluster.open();
    let key = cluster.key_at(1, 0, "key");
    client.put(&key, b"v", &kv_client::OpOptions::default()).expect("a put to its own group");
}

#[test]
fn a_coordinator_that_follows_another_watches_the_remote_server_and_replaces_it() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    cluster.restart();
    wait_until("all to be up again", TIMEOUT, || {
        let status = cluster.status();
        status.state == ClusterState::Serving
            && status.servers.iter().all(|server| server.state == ServerState::Up)
    });
    assert_eq!(cluster.server_pids(), pids);
    assert_eq!(cluster.status().epoch.number, 2);
    wait_until("the watcher there", TIMEOUT, || is_watched(&sshd, pids[REMOTE]));
    process::signal(pids[REMOTE], Signal::KILL);
    wait_until("its exit in the log", TIMEOUT, || {
        cluster.coord_log().contains("server 1: it has ended; its exit status is not known")
    });
    wait_until("another process in its place", TIMEOUT, || {
        cluster.status().state == ClusterState::Serving
            && cluster.server(REMOTE).pid.is_some_and(|pid| pid != pids[REMOTE])
    });
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    wait_until("the end of all there", TIMEOUT, || nobody_is_left(&sshd));
}

/// Returns true if only the server is left on the remote host, and no ssh process here leads to that host.
fn only_the_server_is_left(sshd: &Sshd, server: u32) -> bool {
    process::running_in(&sshd.remote_dir()) == [server] && connections_to(sshd).is_empty()
}

/// Returns the ssh processes on this machine that lead to this sshd.
fn connections_to(sshd: &Sshd) -> Vec<u32> {
    let config = format!(" -F {} ", sshd.config().display());
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| process::command_line(*pid).contains(&config))
        .filter(|pid| process::command_line(*pid).starts_with("ssh "))
        .collect()
}

/// Checks that an exit after complete dumps does not count as a crash, even if the ssh connection that reports exit
/// statuses was lost.
#[test]
fn servers_that_exit_while_the_coordinator_is_paused_and_ssh_is_cut_are_no_fault() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().flag("--orphan-timeout").flag("1").start();
    cluster.client(&operations(500)).with_code(0);
    let pids = cluster.server_pids();
    process::signal(cluster.coord_pid(), Signal::STOP);
    for &pid in &pids {
        process::cut_connections(pid, cluster.ready.servers_port);
    }
    // The connections are lost before the server behind them exits.
    for ssh in connections_to(&sshd) {
        process::signal(ssh, Signal::KILL);
    }
    wait_until("every server to exit", TIMEOUT, || {
        pids.iter().all(|pid| process::has_ended(*pid)) && nobody_is_left(&sshd)
    });
    process::signal(cluster.coord_pid(), Signal::CONT);
    cluster.await_end(0);
    let log = cluster.coord_log();
    assert!(!log.contains("a second fault"), "{log}");
    fetch_dumps(&sshd, &cluster);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), 500);
}

/// Runs a subcommand of `coord` for the cluster in a directory.
#[track_caller]
fn coord(word: &str, dir: &Path, arguments: &[&str]) -> Ended {
    let all = [word, "--dir", dir.to_str().expect("a path in UTF-8")];
    programs::run(COORD, all.iter().chain(arguments), "", 2 * TIMEOUT)
}

#[test]
fn helpers_that_a_coordinator_started_beside_a_remote_server_end_when_it_is_killed() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    assert!(!connections_to(&sshd).is_empty(), "no ssh process was found");
    cluster.kill_coordinator();
    wait_until("the end of the script that started it", TIMEOUT, || {
        only_the_server_is_left(&sshd, pids[REMOTE])
    });
    // The next coordinator watches the server with a different script.
    cluster.restart();
    cluster.await_whole();
    wait_until("the watcher there", TIMEOUT, || is_watched(&sshd, pids[REMOTE]));
    cluster.kill_coordinator();
    wait_until("the end of the watcher", TIMEOUT, || only_the_server_is_left(&sshd, pids[REMOTE]));
    cluster.restart();
    cluster.await_whole();
    assert_eq!(cluster.server_pids(), pids);
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
}

#[test]
fn after_a_detach_the_servers_keep_serving_until_another_coordinator_takes_over() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().flag("--orphan-timeout").flag("77").start();
    let pids = cluster.server_pids();
    let mut client = cluster.open();
    let key = cluster.key_at(1, 0, "key");
    client.put(&key, b"v", &kv_client::OpOptions::default()).expect("a put");
    let told = coord("detach", cluster.dir(), &[]).with_code(0);
    for words in ["the 3 servers continue to serve", "77 s (--orphan-timeout)", "--dir"] {
        assert!(told.stdout.contains(words), "no {words:?} in {}", told.stdout);
    }
    // The command waits for the coordinator's lock; the process itself ends a moment later.
    let ended = || !process::is_alive(cluster.coord_pid());
    wait_until("the end of the coordinator", TIMEOUT, ended);
    wait_until("the end of its helpers on the remote host", TIMEOUT, || {
        only_the_server_is_left(&sshd, pids[REMOTE])
    });
    client.put(&key, b"w", &kv_client::OpOptions::default()).expect("a put without coordinator");
    let nobody = coord("detach", cluster.dir(), &[]).with_code(1);
    assert!(nobody.stderr.contains("no coordinator runs"), "{}", nobody.stderr);
    cluster.kill_coordinator();
    cluster.restart();
    cluster.assert_serves(&pids);
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
}

#[test]
fn without_a_coordinator_the_live_local_and_remote_servers_are_listed() {
    let mut sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    let list = |cluster: &Cluster, code: i32| {
        let text = coord("ls", cluster.dir(), &["--json"]).with_code(code).stdout;
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let states = json["servers"].as_array().expect("servers").iter();
        let states: Vec<String> =
            states.map(|server| server["state"].as_str().expect("a state").to_owned()).collect();
        (json["coordinator"].as_u64(), states)
    };
    let coordinator = Some(u64::from(cluster.coord_pid()));
    assert_eq!(list(&cluster, 0), (coordinator, ["lives"; 3].map(str::to_owned).to_vec()));
    cluster.kill_coordinator();
    assert_eq!(list(&cluster, 0), (None, ["lives"; 3].map(str::to_owned).to_vec()));
    sshd.kill();
    let text = coord("ls", cluster.dir(), &[]).with_code(0).stdout;
    for words in ["no coordinator runs; 2 of 3", "NOT KNOWN", "Connection refused", &sshd.host()] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    for local in [0, 2] {
        process::signal(pids[local], Signal::KILL);
        wait_until("its end", TIMEOUT, || !process::is_alive(pids[local]));
    }
    let here_gone = |state: &str| ["gone", state, "gone"].map(str::to_owned).to_vec();
    assert_eq!(list(&cluster, 4), (None, here_gone("unknown")));
    sshd.restart();
    assert_eq!(list(&cluster, 0), (None, here_gone("lives")));
    process::signal(pids[REMOTE], Signal::KILL);
    wait_until("its end", TIMEOUT, || !process::is_alive(pids[REMOTE]));
    assert_eq!(list(&cluster, 3), (None, here_gone("gone")));
    let empty = tempfile::tempdir().expect("make a directory");
    let text = coord("ls", empty.path(), &[]).with_code(3).stdout;
    assert!(text.contains("no cluster in"), "{text}");
}

#[test]
fn a_stop_without_a_coordinator_takes_the_servers_over_and_stops_them_cleanly() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    cluster.client(&operations(300)).with_code(0);
    cluster.kill_coordinator();
    let told = coord("stop", cluster.dir(), &[]).with_code(0);
    assert!(told.stderr.contains("taking over its servers (3 of 3"), "{}", told.stderr);
    assert!(pids.iter().all(|pid| !process::is_alive(*pid)), "a server was left");
    wait_until("the end of all there", TIMEOUT, || nobody_is_left(&sshd));
    fetch_dumps(&sshd, &cluster);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), 300);
    let nobody = coord("stop", cluster.dir(), &[]).with_code(1);
    assert!(nobody.stderr.contains("no server of its cluster runs"), "{}", nobody.stderr);
}

#[test]
fn a_later_coordinator_without_options_still_reaches_the_ssh_host_and_replaces_its_server() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    cluster.forget_flags();
    cluster.restart();
    cluster.await_whole();
    let settings = cluster.status().settings;
    let expected = [
        ("remote-dir", sshd.remote_dir().display().to_string()),
        ("ssh-config", sshd.config().display().to_string()),
        ("advertise", "127.0.0.1".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(settings.get(name), Some(&value), "{name}: {settings:?}");
    }
    process::signal(pids[REMOTE], Signal::KILL);
    wait_until("another process in its place", TIMEOUT, || {
        cluster.status().state == ClusterState::Serving
            && cluster.server(REMOTE).pid.is_some_and(|pid| pid != pids[REMOTE])
    });
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    // The restore is started without these options too.
    fetch_dumps(&sshd, &cluster);
    let host = sshd.host();
    let restored = Cluster::builder()
        .cluster_file(format!("3\nlocalhost 0 0 0\n{host} 0 0 0\nlocalhost 0 0 0\n"))
        .restore(cluster.into_dir())
        .start();
    assert_eq!(restored.status().settings, settings);
}

#[test]
fn a_remote_directory_given_at_a_takeover_applies_from_then_on() {
    let sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    cluster.forget_flags();
    let other = sshd.remote_dir().with_file_name("other");
    fs::create_dir(&other).expect("make a directory");
    programs::copy_server(&other.join("server"));
    let other = other.to_str().expect("a path in UTF-8");
    cluster.restart_with(&["--remote-dir", other]);
    cluster.await_whole();
    assert!(cluster.coord_log().contains(&format!("--remote-dir is {other} from now on")));
    assert_eq!(cluster.status().settings["remote-dir"], other);
    process::signal(pids[REMOTE], Signal::KILL);
    wait_until("another process in its place", TIMEOUT, || {
        cluster.status().state == ClusterState::Serving
            && cluster.server(REMOTE).pid.is_some_and(|pid| pid != pids[REMOTE])
    });
    let pid = cluster.server_pid(REMOTE);
    let runs_in = fs::read_link(format!("/proc/{pid}/cwd")).expect("a directory");
    assert_eq!(runs_in, Path::new(other).canonicalize().expect("a path"));
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
}

#[test]
fn an_unreachable_host_blocks_a_start_only_if_no_other_server_is_known_to_live() {
    let mut sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    sshd.kill();
    // Two servers run on this machine, which is enough for a takeover, whatever the state of the third.
    cluster.restart();
    wait_until("all to be up again", TIMEOUT, || {
        let status = cluster.status();
        status.servers.iter().all(|server| server.state == ServerState::Up)
    });
    assert_eq!(cluster.server_pids(), pids);
    cluster.kill_coordinator();
    for local in [0, 2] {
        process::signal(pids[local], Signal::KILL);
        wait_until("its end", TIMEOUT, || !process::is_alive(pids[local]));
    }
    let state = fs::read(cluster.state_file()).expect("the state");
    let ended = cluster.run_coordinator(&[]).with_code(1);
    let advice = "coordinator.state where it is: running servers hold all data";
    for words in
        ["server 1 of the last run may still run", &*sshd.host(), "nothing was started", advice]
    {
        assert!(ended.stderr.contains(words), "no {words:?} in {}", ended.stderr);
    }
    assert_eq!(fs::read(cluster.state_file()).expect("the state"), state);
    assert!(process::is_alive(pids[REMOTE]));
}

#[test]
fn without_sshd_the_cluster_continues_and_once_it_is_back_the_server_is_watched_again() {
    let mut sshd = Sshd::start();
    let cluster = sshd.cluster().start();
    let pids = cluster.server_pids();
    sshd.kill();
    wait_until("the loss in the log", TIMEOUT, || {
        cluster.coord_log().contains("the ssh connection that watches server 1")
    });
    cluster.client(&operations(200)).with_code(0);
    cluster.assert_serves(&pids);

    // If a host cannot look up the server process, the end of that process is not proven.
    let (server, away) = (sshd.remote_dir().join("server"), sshd.remote_dir().join("away"));
    fs::rename(&server, &away).expect("move the program away");
    sshd.restart();
    wait_until("the reason in the log", TIMEOUT, || {
        cluster.coord_log().contains("which is needed to find the processes that run")
    });
    cluster.assert_serves(&pids);
    assert!(
        !cluster.coord_log().contains("server 1: it has ended"),
        "the end of the server counts as proven"
    );
    fs::rename(&away, &server).expect("move it back");
    wait_until("a watcher over the new sshd", TIMEOUT, || is_watched(&sshd, pids[REMOTE]));
    cluster.assert_serves(&pids);
    process::signal(pids[REMOTE], Signal::KILL);
    wait_until("the end of the server in the log", TIMEOUT, || {
        cluster.coord_log().contains("server 1: it has ended; its exit status is not known")
    });
}

#[test]
fn a_stop_without_sshd_leaves_all_dumps_and_names_the_server_that_may_still_run() {
    let mut sshd = Sshd::start();
    let mut cluster = sshd.cluster().start();
    cluster.client(&operations(100)).with_code(0);
    let pid = cluster.server_pid(REMOTE);
    sshd.kill();
    let start = Instant::now();
    process::signal(cluster.coord_pid(), Signal::TERM);
    // The server has ended, but its end cannot be proven; the log reports this.
    cluster.await_end(1);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let log = cluster.coord_log();
    assert!(log.contains("these servers may still run: 1"), "{log}");
    wait_until("the end of the remote server", TIMEOUT, || !process::is_alive(pid));
    fetch_dumps(&sshd, &cluster);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), 100);
}

#[test]
fn a_hung_server_is_killed_once_the_lost_ssh_connection_to_its_host_is_back() {
    let mut sshd = Sshd::start();
    let mut cluster = sshd.cluster().in_foreground().start();
    let pid = cluster.server_pid(REMOTE);
    process::pause(pid);
    sshd.kill();
    // At the fifth attempt, the back-off is eight seconds, which is longer than the wait for a killed server.
    let deaf = TcpListener::bind(("127.0.0.1", sshd.port())).expect("the port of sshd");
    deaf.set_nonblocking(true).expect("a listener that does not wait");
    let mut tries = 0;
    wait_until("the fifth attempt to connect", TIMEOUT, || {
        tries += usize::from(deaf.accept().is_ok());
        tries == 5
    });
    drop(deaf);
    sshd.restart();
    let interrupt = |cluster: &Cluster| process::signal(cluster.coord_pid(), Signal::INT);
    wait_until("the end of coord", TIMEOUT, || {
        interrupt(&cluster);
        !process::is_alive(cluster.coord_pid())
    });
    cluster.await_any_end();
    assert!(!process::is_alive(pid), "the hung server was left");
    let log = cluster.coord_log();
    assert!(!log.contains("may still run"), "{log}");
}

/// Attempts to start a cluster that cannot start, on a terminal on which ssh could ask for a password. Fails if ssh
/// asks, if the attempt takes long, or if a server is left. Returns the output.
#[track_caller]
fn fail_to_start(sshd: &Sshd, config: &Path, remote_dir: &Path) -> String {
    let builder = sshd.cluster_with(config, remote_dir);
    let start = Instant::now();
    let mut terminal = Terminal::start(builder.command());
    assert_eq!(terminal.await_end(TIMEOUT), Some(1), "{}", terminal.screen());
    assert!(start.elapsed() < QUICK, "{:?}: {}", start.elapsed(), terminal.screen());
    let said = terminal.screen();
    assert!(!said.to_lowercase().contains("password:"), "{said}");
    assert!(process::running_in(builder.dir()).is_empty(), "local servers were left");
    wait_until("the end of the processes on the remote host", TIMEOUT, || nobody_is_left(sshd));
    said
}

#[test]
fn a_host_that_rejects_the_key_fails_the_start_at_once_and_ssh_asks_for_no_password() {
    let sshd = Sshd::start();
    let said = fail_to_start(&sshd, &sshd.refused_config(), &sshd.remote_dir());
    let config = sshd.refused_config();
    for words in ["server 1", &*sshd.host(), "Permission denied", &config.display().to_string()] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    assert!(sshd.log().contains("Failed publickey") || sshd.log().contains("Connection closed by"));
}

#[test]
fn an_unknown_host_key_or_a_host_that_does_not_listen_fails_the_start_at_once() {
    let mut sshd = Sshd::start();
    let (config, remote_dir) = (sshd.config(), sshd.remote_dir());
    let stranger = config.with_file_name("stranger_config");
    let text = fs::read_to_string(&config).expect("read a file").replace("known_hosts", "nobody");
    fs::write(&stranger, text).expect("write a file");
    let said = fail_to_start(&sshd, &stranger, &remote_dir);
    assert!(said.contains("server 1") && said.contains("Host key verification failed"), "{said}");

    sshd.kill();
    let said = fail_to_start(&sshd, &config, &remote_dir);
    assert!(said.contains("server 1") && said.contains("Connection refused"), "{said}");
    sshd.restart();
}

#[test]
fn a_remote_server_that_exits_at_its_start_is_quoted_and_the_others_are_stopped() {
    let sshd = Sshd::start_without_server();
    let program = sshd.remote_dir().join("server");
    let script = "#!/bin/sh\necho \"the moon is in the wrong phase\" >&2\nexit 13\n";
    fs::write(&program, script).expect("write a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set the mode");
    let said = fail_to_start(&sshd, &sshd.config(), &sshd.remote_dir());
    for words in [
        "server 1",
        &*format!("command: ssh {}", sshd.host()),
        "the moon is in the wrong phase",
        "it cannot listen on a port",
        "the start was canceled, and every other server was stopped",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
}

#[test]
fn a_missing_binary_and_a_missing_directory_are_named() {
    let sshd = Sshd::start_without_server();
    let said = fail_to_start(&sshd, &sshd.config(), &sshd.remote_dir());
    assert!(said.contains("server 1") && said.contains("server does not exist"), "{said}");
    let said = fail_to_start(&sshd, &sshd.config(), &sshd.remote_dir().join("nowhere"));
    assert!(said.contains("server 1") && said.contains("nowhere does not exist"), "{said}");
}

/// Runs `coord --check` for the cluster with this ssh configuration and this remote directory.
#[track_caller]
fn check(sshd: &Sshd, config: &Path, remote_dir: &Path) -> Ended {
    let builder = sshd.cluster_with(config, remote_dir).flag("--check");
    let command: Command = builder.command();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let ended = programs::run(COORD, arguments, "", QUICK);
    assert!(process::running_in(builder.dir()).is_empty(), "the check started a process");
    assert!(nobody_is_left(sshd), "the check left a process on the remote host");
    ended
}

/// Returns the printed findings about the remote host that begin with this word.
fn findings<'a>(ended: &'a Ended, word: &str, sshd: &Sshd) -> Vec<&'a str> {
    let host = sshd.host();
    ended.lines().into_iter().filter(|l| l.starts_with(word) && l.contains(&host)).collect()
}

#[test]
fn a_check_passes_a_good_ssh_host() {
    let sshd = Sshd::start();
    let ended = check(&sshd, &sshd.config(), &sshd.remote_dir()).with_code(0);
    let good = findings(&ended, "ok ", &sshd).join("\n");
    let needs = ["threads (ulimit -u)", "locked memory (ulimit -l)", "are free"];
    for words in
        ["reached at 127.0.0.1", env!("CARGO_PKG_VERSION"), "io_uring"].into_iter().chain(needs)
    {
        assert!(good.contains(words), "no {words:?} in: {good}");
    }
    assert!(!ended.stdout.contains("FAILED"), "{}", ended.stdout);
}

#[test]
fn a_check_names_each_problem_of_an_ssh_host() {
    let sshd = Sshd::start_without_server();
    let (config, remote_dir) = (sshd.config(), sshd.remote_dir());
    let expect = |ended: Ended, words: &str| {
        let ended = ended.with_code(1);
        let bad = findings(&ended, "FAILED ", &sshd).join("\n");
        assert!(bad.contains(words), "no {words:?} in: {}", ended.stdout);
        // Checks of other hosts that pass are reported too.
        assert!(ended.stdout.contains("ok      localhost"), "{}", ended.stdout);
    };
    expect(check(&sshd, &config, &remote_dir), "there is no executable");
    expect(check(&sshd, &config, &remote_dir.join("nowhere")), "there is no directory");
    expect(check(&sshd, &sshd.refused_config(), &remote_dir), "Permission denied");
    fs::write(remote_dir.join("server"), "not a program").expect("write a file");
    fs::set_permissions(remote_dir.join("server"), fs::Permissions::from_mode(0o755))
        .expect("set the mode");
    expect(check(&sshd, &config, &remote_dir), "cannot be executed on that host");
}
