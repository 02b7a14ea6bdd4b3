//! Tests that `coord --check` finds problems before a start and names the remedies.

use std::fs;
use std::process::Command;

use crate::common::programs::{self, COORD, Ended};
use crate::common::{TIMEOUT, seccomp};

/// Runs `coord` for a cluster file in a separate directory.
#[track_caller]
fn coord_with(file: &str, flags: &[&str]) -> Ended {
    coord_after(file, flags, |_| {})
}

/// Does the same as [`coord_with`], after a change of the command.
#[track_caller]
fn coord_after(file: &str, flags: &[&str], change: impl FnOnce(&mut Command)) -> Ended {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("cluster.txt");
    fs::write(&path, file).expect("write a file");
    let path = path.to_str().expect("a path in UTF-8");
    let dir = dir.path().to_str().expect("a path in UTF-8");
    let all = ["-C", path, "--dir", dir].into_iter().chain(flags.iter().copied());
    let mut command = Command::new(COORD);
    command.args(all);
    change(&mut command);
    programs::finish(command, "", TIMEOUT)
}

const THREE: &str = "3\nlocalhost 0 0 0\nlocalhost 0 0 0\nlocalhost 0 0 0\n";

#[test]
fn an_address_of_another_machine_is_found_by_a_check_and_by_a_start() {
    // RFC 5737: no machine has such an address.
    let flags = ["--advertise", "192.0.2.1"];
    let checked = coord_with(THREE, &["--advertise", "192.0.2.1", "--check"]).with_code(1);
    let line = checked.stdout.lines().find(|line| line.starts_with("FAILED")).expect("a finding");
    assert!(line.contains("--advertise 192.0.2.1: 192.0.2.1 is not an address of this"), "{line}");
    let started = coord_with(THREE, &[&flags[..], &["--daemon"]].concat()).with_code(1);
    assert!(started.stderr.contains("192.0.2.1 is not an address of this"), "{}", started.stderr);
}

#[test]
fn a_check_reports_port_conflicts_memory_and_threads() {
    let file = "3\nlocalhost 0 0 0\nlocalhost 45017 0 0\nlocalhost 0 0 0\n";
    let checked = coord_with(file, &["-c", "45017", "--check"]).with_code(1);
    let words = "FAILED  server 1 on localhost, port 45017: the coordinator's -c has the same port";
    for words in [words, "localhost, memory:", "threads (ulimit -u)", "locked memory (ulimit -l)"] {
        assert!(checked.stdout.contains(words), "no {words:?} in {}", checked.stdout);
    }
}

#[test]
fn without_io_uring_a_check_notes_the_remedy_and_fails_only_if_uring_is_required() {
    let check = |net, code| {
        let flags = ["--check", "--net", net];
        let ended = coord_after(THREE, &flags, seccomp::deny_io_uring).with_code(code);
        let line = ended.stdout.lines().find(|line| line.contains("localhost, io_uring:"));
        line.expect("a finding about io_uring").to_owned()
    };
    let note = check("auto", 0);
    for word in ["engine epoll", "not permitted", "seccomp"] {
        assert!(note.contains(word), "no {word:?} in {note}");
    }
    assert!(check("epoll", 0).contains("not needed"));
    let failed = check("uring", 1);
    assert!(failed.starts_with("FAILED") && failed.contains("seccomp"), "{failed}");
}

#[test]
fn a_memory_limit_that_is_too_small_is_rejected_at_once_with_the_minimum() {
    let refused = coord_with(THREE, &["--memory-limit", "5"]).with_code(2);
    assert!(refused.stderr.contains("give at least 16M"), "{}", refused.stderr);
}

#[test]
fn a_coordinator_on_dev_null_starts_nothing_and_names_the_remedy() {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = dir.path().join("cluster.txt");
    fs::write(&path, THREE).expect("write a file");
    let output = Command::new(COORD)
        .arg("-C")
        .arg(&path)
        .arg("--dir")
        .arg(dir.path())
        .stdin(std::process::Stdio::null())
        .output()
        .expect("run coord");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot use /dev/null") && said.contains("--daemon"), "{said}");
    assert!(!dir.path().join("coordinator.state").exists(), "a state was stored");
}
