//! Tests in which a coordinator dies at various moments and another one continues its cluster.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::cluster::move_to_another_namespace;
use crate::common::load::{check_all, put_all};
use crate::common::process::{self, Signal};
use crate::common::programs::{Ended, SERVER};
use crate::common::{Cluster, TIMEOUT, wait_for, wait_until};
use kv_client::{Client, OpOptions};
use kv_protocol::status::GroupCondition;

fn pairs(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count)
        .map(|n| (format!("key {n}").into_bytes(), format!("value {n}").into_bytes()))
        .collect()
}

/// Writes and reads one key until `over` is set, and counts the rounds in `done`. Every operation must succeed.
fn work(mut client: Client, key: &[u8], done: &AtomicU64, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let number = done.load(Ordering::SeqCst) + 1;
        let value = number.to_string().into_bytes();
        client.put(key, &value, &OpOptions::default()).expect("a put");
        assert_eq!(client.get(key, &OpOptions::default()).expect("a get").bytes, value);
        done.store(number, Ordering::SeqCst);
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn another_coordinator_follows_a_killed_one_and_no_client_request_fails() {
    let mut cluster = Cluster::builder().shards(2).start();
    let (before, pids) = (cluster.ready.clone(), cluster.server_pids());
    let keys: Vec<Vec<u8>> = (0..3).map(|group| cluster.key_at(group, 0, "w")).collect();
    let counts: Vec<AtomicU64> = keys.iter().map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (key, done) in keys.iter().zip(&counts) {
            let (client, over) = (cluster.open(), &over);
            scope.spawn(move || work(client, key, done, over));
        }
        let _stopper = StopOnDrop(&over);
        let go_on = || {
            let seen: Vec<u64> = counts.iter().map(|done| done.load(Ordering::SeqCst)).collect();
            wait_until("every client to make progress", TIMEOUT, || {
                counts.iter().zip(&seen).all(|(done, seen)| done.load(Ordering::SeqCst) > seen + 50)
            });
        };
        go_on();
        cluster.kill_coordinator();
        go_on();
        cluster.restart();
        cluster.await_whole();
        go_on();
    });
    assert_eq!(cluster.ready.cluster, before.cluster);
    assert_eq!(cluster.ready.clients_port, before.clients_port);
    assert_eq!(cluster.ready.servers_port, before.servers_port);
    let status = cluster.status();
    assert_eq!(status.epoch.number, 2);
    assert!(status.groups.iter().all(|group| group.view.0 == 1), "a group was recovered");
    cluster.assert_serves(&pids);

    // The new coordinator detects and proves the death of a process that it did not start, and recovers.
    process::signal(pids[1], Signal::KILL);
    wait_until("another process", TIMEOUT, || {
        cluster.server(1).pid.is_some_and(|pid| pid != pids[1])
    });
    cluster.await_whole();
    assert!(cluster.coord_log().contains("an earlier coordinator had started it"));
    for (key, done) in keys.iter().zip(&counts) {
        let value = cluster.open().get(key, &OpOptions::default()).expect("a get").bytes;
        assert_eq!(value, done.load(Ordering::SeqCst).to_string().into_bytes());
    }
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_server_that_died_while_the_coordinator_was_away_is_recovered_afterwards() {
    let mut cluster = Cluster::start();
    let pairs = pairs(1_000);
    put_all(&mut cluster.open(), &pairs);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    process::signal(pids[1], Signal::KILL);
    wait_until("its end", TIMEOUT, || !process::is_alive(pids[1]));
    cluster.restart();
    wait_until("another process", TIMEOUT, || {
        cluster.server(1).pid.is_some_and(|pid| pid != pids[1])
    });
    cluster.await_whole();
    let after = cluster.server_pids();
    assert_eq!((after[0], after[2]), (pids[0], pids[2]));
    check_all(&mut cluster.open(), &pairs);
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_coordinator_in_another_pid_namespace_judges_no_live_server_as_dead() {
    let mut cluster = Cluster::start();
    let pairs = pairs(100);
    put_all(&mut cluster.open(), &pairs);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    let state = fs::read(cluster.state_file()).expect("the state");
    let refuses = |ended: Ended| {
        let ended = ended.with_code(1);
        for words in ["may still run", "PID namespace", "nothing was started"] {
            assert!(ended.stderr.contains(words), "no {words:?} in {}", ended.stderr);
        }
    };
    match cluster.run_coordinator_in_a_namespace() {
        Some(ended) => refuses(ended),
        None => eprintln!("unshare(1) is not permitted here: only a forged namespace was tested"),
    }
    assert_eq!(fs::read(cluster.state_file()).expect("the state"), state, "it was changed");
    move_to_another_namespace(&cluster.state_file());
    refuses(cluster.run_coordinator(&[]));
    fs::write(cluster.state_file(), state).expect("put the state back");
    cluster.restart();
    cluster.assert_serves(&pids);
    check_all(&mut cluster.open(), &pairs);
}

/// Fails unless the replacement of server 1 is started with these words on its command line.
#[track_caller]
fn assert_replacement_is_told(cluster: &Cluster, words: &[&str]) {
    let killed = cluster.server_pid(1);
    process::signal(killed, Signal::KILL);
    let pid =
        wait_for("another process", TIMEOUT, || cluster.server(1).pid.filter(|pid| *pid != killed));
    cluster.await_whole();
    let line = process::command_line(pid);
    for word in words {
        assert!(line.contains(word), "no {word} in {line}");
    }
}

/// Fails unless the other groups continue when both holders of one group are killed.
#[track_caller]
fn assert_isolates(cluster: &Cluster) {
    for pid in [1, 2].map(|id| cluster.server_pid(id)) {
        process::signal(pid, Signal::KILL);
    }
    wait_until("the others to be whole and one group to be lost", TIMEOUT, || {
        let conditions = cluster.status().groups.into_iter().map(|group| group.condition);
        conditions.eq([GroupCondition::Whole, GroupCondition::Lost, GroupCondition::Whole])
    });
}

#[test]
fn settings_of_the_start_hold_under_a_later_coordinator_without_options() {
    let flags = ["--on-double-fault", "isolate", "--memory-limit", "96M", "--orphan-timeout", "77"];
    let builder = flags.into_iter().fold(Cluster::builder(), crate::common::cluster::Builder::flag);
    let mut cluster = builder.start();
    cluster.forget_flags();
    cluster.kill_coordinator();
    cluster.restart();
    cluster.await_whole();
    assert_replacement_is_told(&cluster, &["--memory-limit 96M ", "--orphan-timeout 77 "]);
    assert!(!cluster.coord_log().contains("from now on"), "a setting has changed");
    assert_isolates(&cluster);
}

#[test]
fn options_of_a_later_coordinator_take_effect_and_are_stored() {
    let mut cluster = Cluster::builder().flag("--memory-limit").flag("96M").start();
    cluster.forget_flags();
    cluster.kill_coordinator();
    cluster.restart_with(&["--memory-limit", "128M", "--on-double-fault", "isolate"]);
    let log = cluster.coord_log();
    for words in [
        "--memory-limit is 128M from now on, no longer 96M; running servers use it too",
        "--on-double-fault is isolate from now on, no longer shutdown",
    ] {
        assert!(log.contains(words), "no {words:?} in {log}");
    }
    wait_until("the running servers to use the new limit", TIMEOUT, || {
        cluster.status().servers.iter().all(|server| server.memory_limit == 128 << 20)
    });
    cluster.kill_coordinator();
    cluster.restart();
    cluster.await_whole();
    assert_replacement_is_told(&cluster, &["--memory-limit 128M "]);
    assert_isolates(&cluster);
}

#[test]
fn settings_of_the_start_hold_after_a_restore() {
    let flags = ["--on-double-fault", "isolate", "--memory-limit", "96M", "--orphan-timeout", "77"];
    let builder = flags.into_iter().fold(Cluster::builder(), crate::common::cluster::Builder::flag);
    let (_, dir) = builder.start().stop_and_keep();
    let cluster = Cluster::builder().restore(dir).flag("--orphan-timeout").flag("78").start();
    assert!(cluster.coord_log().contains("--orphan-timeout is 78 from now on, no longer 77"));
    let line = process::command_line(cluster.server_pid(0));
    assert!(
        line.contains("--memory-limit 96M ") && line.contains("--orphan-timeout 78 "),
        "{line}"
    );
    assert_isolates(&cluster);
}

#[test]
fn a_recovery_whose_coordinator_is_killed_in_any_step_is_completed_by_the_next_one() {
    let mut cluster = Cluster::start();
    let mut pairs = pairs(2_000);
    // Server 1 gets enough data that the copies of both tables take a while. Otherwise the test might miss steps 3 and
    // 4.
    for (group, count) in [(1, 16), (0, 48)] {
        let large = |n| (cluster.key_at(group, 0, &format!("large {n}")), vec![7; 1 << 20]);
        pairs.extend((0..count).map(large));
    }
    put_all(&mut cluster.open(), &pairs);
    for step in 0..=5 {
        let pid = cluster.server_pid(1);
        let before = cluster.coord_log().len();
        process::signal(pid, Signal::KILL);
        let steps = |cluster: &Cluster| {
            let log = cluster.coord_log().split_off(before);
            let steps = log.lines().filter_map(|line| line.split_once("server 1, step "));
            steps.filter_map(|(_, rest)| rest.get(..1).map(str::to_owned)).collect::<Vec<_>>()
        };
        let wanted = step.to_string();
        let what = format!("step {step}");
        wait_until(&what, TIMEOUT, || steps(&cluster).contains(&wanted));
        cluster.kill_coordinator();
        if step == 3 || step == 4 {
            assert_eq!(steps(&cluster).last(), Some(&wanted), "the step had already ended");
        }
        cluster.restart();
        wait_until("another process", TIMEOUT, || {
            cluster.server(1).pid.is_some_and(|other| other != pid)
        });
        cluster.await_whole();
        check_all(&mut cluster.open(), &pairs);
    }
    assert_eq!(cluster.status().epoch.number, 7);
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_damaged_state_is_rejected_by_name_and_nothing_is_changed() {
    let mut cluster = Cluster::start();
    let pairs = pairs(300);
    put_all(&mut cluster.open(), &pairs);
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    let whole = fs::read(cluster.state_file()).expect("the state");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() / 2], b""] {
        fs::write(cluster.state_file(), bytes).expect("write a file");
        let ended = cluster.run_coordinator(&[]).with_code(1);
        for words in ["coordinator.state is damaged", "nothing was started", "move the file away"] {
            assert!(ended.stderr.contains(words), "no {words:?} in {}", ended.stderr);
        }
        assert_eq!(fs::read(cluster.state_file()).expect("the state"), bytes);
    }
    fs::write(cluster.state_file(), &whole).expect("write a file");
    cluster.restart();
    cluster.await_whole();
    cluster.assert_serves(&pids);
    check_all(&mut cluster.open(), &pairs);
}

#[test]
fn a_state_that_is_older_than_its_cluster_is_rejected_and_no_decision_is_based_on_it() {
    let mut cluster = Cluster::start();
    let pairs = pairs(300);
    put_all(&mut cluster.open(), &pairs);
    let old = fs::read(cluster.state_file()).expect("the state");
    let killed = cluster.server_pid(1);
    process::signal(killed, Signal::KILL);
    wait_until("another process", TIMEOUT, || {
        cluster.server(1).pid.is_some_and(|pid| pid != killed)
    });
    cluster.await_whole();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    let newest = fs::read(cluster.state_file()).expect("the state");
    fs::write(cluster.state_file(), old).expect("write a file");
    let ended = cluster.run_coordinator(&[]).with_code(1);
    assert!(ended.stderr.contains("coordinator.state is older than the cluster"), "{ended:#?}");
    assert!(pids.iter().all(|pid| process::is_alive(*pid)));
    fs::write(cluster.state_file(), newest).expect("write a file");
    // The servers accepted the coordinator with the old state, so its successor needs a later epoch.
    let ended = cluster.run_coordinator(&[]).with_code(1);
    assert!(ended.stderr.contains("has accepted another coordinator, of epoch 2"), "{ended:#?}");
    cluster.restart();
    cluster.await_whole();
    cluster.assert_serves(&pids);
    check_all(&mut cluster.open(), &pairs);
}

#[test]
fn a_coordinator_on_another_machine_judges_no_localhost_server_as_dead() {
    let mut cluster = Cluster::start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    let state = fs::read(cluster.state_file()).expect("the state");
    cluster.move_state_to_another_machine();
    let ended = cluster.run_coordinator(&[]).with_code(1);
    for words in ["another machine", "server 0", "nothing was started", "--restore DIR --force"] {
        assert!(ended.stderr.contains(words), "no {words:?} in {}", ended.stderr);
    }
    fs::write(cluster.state_file(), state).expect("write a file");
    cluster.restart();
    cluster.await_whole();
    cluster.assert_serves(&pids);
}

#[test]
fn a_second_coordinator_in_the_same_directory_is_rejected() {
    let mut cluster = Cluster::start();
    let pids = cluster.server_pids();
    for _ in 0..2 {
        let ended = cluster.run_coordinator(&[]).with_code(1);
        let holder = format!("in use by another coordinator (pid {})", cluster.coord_pid());
        assert!(ended.stderr.contains(&holder), "{ended:#?}");
        cluster.await_whole();
        cluster.assert_serves(&pids);
        cluster.kill_coordinator();
        cluster.restart();
    }
    assert_eq!(cluster.status().epoch.number, 3);
}

/// Kills the coordinator during a stop that a hung server holds up. Returns the pids of all
/// servers.
#[track_caller]
fn kill_coordinator_in_a_stop(cluster: &mut Cluster) -> Vec<u32> {
    let pids = cluster.server_pids();
    process::pause(pids[2]);
    process::signal(cluster.coord_pid(), Signal::TERM);
    wait_until("the stop in the file", TIMEOUT, || {
        let state = fs::read_to_string(cluster.state_file());
        state.is_ok_and(|text| text.contains("\"is_stopping\": true"))
    });
    cluster.kill_coordinator();
    pids
}

/// Makes both holders of group 0 dump and exit while no coordinator runs.
#[track_caller]
fn let_both_holders_of_group_0_leave(pids: &[u32]) {
    for pid in &pids[..2] {
        process::signal(*pid, Signal::TERM);
    }
    wait_until("their end", TIMEOUT, || pids[..2].iter().all(|pid| !process::is_alive(*pid)));
}

#[test]
fn a_stop_whose_coordinator_is_killed_is_completed_by_the_next_one() {
    let mut cluster = Cluster::start();
    let pairs = pairs(1_000);
    put_all(&mut cluster.open(), &pairs);
    let pids = kill_coordinator_in_a_stop(&mut cluster);
    process::signal(pids[2], Signal::CONT);
    let _ready = cluster.relaunch(&[]);
    cluster.await_end(0);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), pairs.len());
    assert!(cluster.coord_log().trim_end().ends_with("stopped"), "{}", cluster.coord_log());
}

#[test]
fn a_stop_completed_by_another_coordinator_succeeds_if_all_dumps_are_there() {
    let mut cluster = Cluster::start();
    let pairs = pairs(1_000);
    put_all(&mut cluster.open(), &pairs);
    let pids = kill_coordinator_in_a_stop(&mut cluster);
    let_both_holders_of_group_0_leave(&pids);
    process::signal(pids[2], Signal::CONT);
    let _ready = cluster.relaunch(&[]);
    cluster.await_end(0);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), pairs.len());
}

#[test]
fn a_stop_completed_by_another_coordinator_fails_if_a_group_has_no_valid_dump() {
    let mut cluster = Cluster::start();
    put_all(&mut cluster.open(), &pairs(1_000));
    let pids = kill_coordinator_in_a_stop(&mut cluster);
    let_both_holders_of_group_0_leave(&pids);
    for name in ["server_0.primary", "server_1.secondary"] {
        let path = cluster.dir().join(name);
        let bytes = fs::read(&path).expect("a dump");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("write a file");
    }
    process::signal(pids[2], Signal::CONT);
    let _ready = cluster.relaunch(&[]);
    cluster.await_end(1);
    let said = cluster.coord_errors();
    assert!(said.contains("no server reported a complete dump of group 0"), "{said}");
}

#[test]
fn a_start_after_a_stop_founds_an_empty_cluster_and_renames_the_files_of_the_last_one() {
    let mut cluster = Cluster::start();
    put_all(&mut cluster.open(), &pairs(30));
    let first = cluster.ready.cluster.clone();
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    cluster.restart();
    assert_ne!(cluster.ready.cluster, first);
    let status = cluster.status();
    assert_eq!(status.epoch.number, 1);
    assert!(status.groups.iter().all(|group| group.entries == 0));
    let old = cluster.dir().join("coordinator.state.old");
    assert!(fs::read_to_string(old).expect("the old state").contains(&first));
    assert!(cluster.dir().join("server_0.primary.old").exists());
    let log = cluster.coord_log();
    for words in [&*first, "kept as *.old", "--restore"] {
        assert!(log.contains(words), "no {words:?} in {log}");
    }
    cluster.stop();
}

#[test]
fn a_cluster_whose_processes_have_all_ended_is_not_replaced_by_an_empty_one_by_default() {
    let mut cluster = Cluster::start();
    put_all(&mut cluster.open(), &pairs(30));
    let (first, pids) = (cluster.ready.cluster.clone(), cluster.server_pids());
    cluster.kill_coordinator();
    // A server writes its dumps on a stop signal even without a coordinator.
    for pid in &pids {
        process::signal(*pid, Signal::TERM);
    }
    wait_until("the end of all", TIMEOUT, || pids.iter().all(|pid| !process::is_alive(*pid)));
    let ended = cluster.run_coordinator(&[]).with_code(1);
    let path = cluster.state_file();
    for words in [&*first, "was not stopped", "--restore", &format!("mv {}", path.display())] {
        assert!(ended.stderr.contains(words), "no {words:?} in {}", ended.stderr);
    }
    assert!(cluster.dir().join("server_0.primary").exists(), "a dump was removed");
    fs::rename(&path, path.with_extension("lost")).expect("move the state away");
    cluster.restart();
    assert_ne!(cluster.ready.cluster, first);
    cluster.stop();
}

#[test]
fn a_port_that_another_program_has_taken_meanwhile_is_named() {
    let mut cluster = Cluster::start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    for port in [cluster.ready.servers_port, cluster.ready.clients_port] {
        let taken = wait_for("the port", TIMEOUT, || TcpListener::bind(("127.0.0.1", port)).ok());
        let ended = cluster.run_coordinator(&[]).with_code(1);
        let words = format!("127.0.0.1:{port}");
        assert!(ended.stderr.contains(&words), "no {words} in {}", ended.stderr);
        drop(taken);
    }
    let other = cluster.ready.servers_port.wrapping_sub(1).to_string();
    let ended = cluster.run_coordinator(&["--servers-port", &other]).code;
    assert_eq!(ended, Some(2), "a second -s with a port that no server dials");
    cluster.restart();
    cluster.await_whole();
    cluster.assert_serves(&pids);
}

/// Writes a server executable that starts server 2 only once the file `gate` exists.
fn gated_server(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("gated-server");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' -S 2 '*) while [ ! -e gate ]; do sleep 0.02; done;; esac\n\
         exec {SERVER} \"$@\"\n"
    );
    fs::write(&path, script).expect("write a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set the mode");
    path
}

#[test]
fn a_start_whose_coordinator_died_before_all_servers_reported_is_completed() {
    let builder = Cluster::builder();
    let binary = gated_server(builder.dir());
    let mut cluster = builder.server_binary(binary).launch();
    let state = wait_for("two servers in the file", TIMEOUT, || {
        let text = fs::read_to_string(cluster.state_file()).ok()?;
        (text.matches("\"pid\"").count() == 2).then_some(text)
    });
    let (_, json) = state.split_once('\n').expect("a first line");
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    cluster.kill_coordinator();
    let waiting = process::running_in(cluster.dir());
    fs::write(cluster.dir().join("gate"), "").expect("write a file");
    cluster.restart();
    cluster.await_whole();
    assert_eq!(cluster.ready.cluster, json["cluster"].as_str().expect("an id"));
    let pids = cluster.server_pids();
    for n in [0, 1] {
        assert_eq!(json["servers"][n]["started"]["pid"], pids[n], "server {n} was replaced");
    }
    assert!(!waiting.contains(&pids[2]), "a server of which the state has no pid serves");
    wait_until("the end of the server that had not reported", TIMEOUT, || {
        process::running_in(cluster.dir()).iter().all(|pid| pids.contains(pid))
    });
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}
