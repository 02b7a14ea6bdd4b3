//! Tests of ssh without another machine: the scripts are run by the local shell.

use super::scripts::*;
use super::*;
use kv_protocol::cluster_file::ServerLine;
use kv_protocol::{ClusterKey, ServerId};

fn host() -> Host {
    Host::Ssh { user: Some("kv".into()), host: "[fe80::1]".into(), port: Some(2_222) }
}

#[test]
fn ssh_never_prompts_and_times_out() {
    let ssh = Ssh { config: Some("/etc/my ssh".into()), remote_dir: ".".into() };
    let words = ssh.arguments(&host(), "echo 'hi'");
    let expected = [
        "-F",
        "/etc/my ssh",
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=10",
        "-o",
        "ServerAliveInterval=5",
        "-o",
        "ServerAliveCountMax=3",
        "-o",
        "ControlMaster=no",
        "-o",
        "RemoteCommand=none",
        "-o",
        "RequestTTY=no",
        "-T",
        "-x",
        "-p",
        "2222",
        "-l",
        "kv",
        "--",
        "fe80::1",
        "exec sh -c 'echo '\\''hi'\\'''",
    ];
    assert_eq!(words, expected);
}

fn line() -> ServerLine {
    ServerLine { id: ServerId(1), host: host(), clients_port: 0, servers_port: 0, coord_port: 0 }
}

/// Runs a script as sshd would, with a running coordinator that has sent its key.
fn shell(script: &str) -> std::process::Output {
    use std::io::Write as _;
    let mut child = std::process::Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // A script that reads nothing may have ended.
    let _ = writeln!(input, "{}", ClusterKey(0xfeed));
    let output = child.wait_with_output().unwrap();
    drop(input);
    output
}

#[test]
fn a_script_ends_with_its_coordinator_and_leaves_the_server_running() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    // The fake server runs until the file is removed.
    fake_server(dir.path(), "[ $1 = --name ] || while [ -e stay ]; do sleep 0.01; done");
    std::fs::write(dir.path().join("stay"), "").unwrap();
    let script = start_script(&dir.path().to_string_lossy(), &line(), &["-x".into()]);
    let mut child = std::process::Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", ClusterKey(0xfeed)).unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut said = [0; 8];
    output.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"started ");
    assert_eq!(child.try_wait().unwrap(), None);
    drop(input);
    child.wait().unwrap();
    // No other process holds the script's output, so ssh ends with it.
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("exited"), "{rest}");
    let pid: u32 = rest.split_whitespace().next().unwrap().parse().unwrap();
    assert!(std::fs::exists(format!("/proc/{pid}/cwd")).unwrap(), "the server has ended");
    std::fs::remove_file(dir.path().join("stay")).unwrap();
}

#[test]
fn a_server_receives_the_key_and_no_command_line_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    fake_server(dir.path(), "read -r key; echo \"$key $1 $2\" >&2; exit 13");
    let script = start_script(&dir.path().to_string_lossy(), &line(), &[]);
    let key = ClusterKey(0xfeed).to_string();
    assert!(!script.contains(&key));
    let output = shell(&script);
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{key} --key-file -\n"));
}

fn fake_server(dir: &std::path::Path, body: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join("server");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_script_reports_the_start_the_exit_and_the_output_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("it's here");
    std::fs::create_dir(&dir).unwrap();
    fake_server(&dir, "echo \"last words of $1\" >&2; exit 13");
    let script = start_script(&dir.to_string_lossy(), &line(), &["a 'b'".into()]);
    let output = shell(&script);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, pid, ..] = words[..] else { panic!("{text}") };
    // This fake server cannot report its start time.
    assert_eq!(words, ["started", pid, "exited", pid, "13"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "last words of a 'b'\n");
    let body = "[ $1 = --name ] && { echo started $2 5 6; exit 0; }; exit 13";
    fake_server(&dir, body);
    let text = String::from_utf8(shell(&script).stdout).unwrap();
    let pid = text.split_whitespace().nth(1).unwrap();
    assert_eq!(text, format!("started {pid} 5 6\nexited {pid} 13\n"));
}

#[test]
fn the_error_for_a_missing_executable_names_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let output = shell(&start_script(&dir.path().to_string_lossy(), &line(), &[]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no executable file 'server' in /"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_server_runs_in_a_session_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    fake_server(dir.path(), "cut -d' ' -f1,6 /proc/$$/stat | grep \"^$$ $$$\" >&2 || exit 1");
    let output = shell(&start_script(&dir.path().to_string_lossy(), &line(), &[]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.trim().ends_with(" 0"), "its session is not its own: {text}");
}

fn process() -> Process {
    "4000000:77:5:3".parse().unwrap()
}

fn started() -> Started {
    let first = crate::store::tests::record(1).state.servers[0].started.unwrap();
    Started { pid: 4_000_000, start_time: 77, ..first }
}

/// Ways in which the remote program may fail instead of reporting a result.
const FAILURES: [&str; 9] = [
    "exit 2",
    "exit 0",
    "exit 1",
    "kill -9 $$",
    "echo '-sh: fork: retry: Resource temporarily unavailable' >&2; exit 254",
    // Lines that are truncated, or that belong to another process or to another start.
    "printf 'exited 4000000'; printf 'gone 4000000'",
    "printf 'exited 4000000 unknown'; printf 'gone 4000000 77'",
    "echo exited 400000 unknown; echo gone 400000 77; echo gone 4000000 78",
    "echo gone 4000000; echo exited",
];

#[test]
fn a_failing_remote_program_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_string_lossy().into_owned();
    let ask = || {
        let text = |script: &str| String::from_utf8(shell(script).stdout).unwrap();
        let watched = text(&watch_script(&path, &process()));
        let says_exited = lines(&watched).any(|line| line.starts_with("exited 4000000 "));
        let looked = response(&text(&look_script(&path, &[started()])), &started());
        let ended = text(&end_script(&path, &process()));
        (says_exited, looked, lines(&ended).any(|line| is_end_of(line, &process())))
    };
    assert_eq!(ask(), (false, None, false), "there is no program");
    std::fs::create_dir(dir.path().join("server")).unwrap();
    assert_eq!(ask(), (false, None, false), "there is no program, but a directory");
    std::fs::remove_dir(dir.path().join("server")).unwrap();
    for failure in FAILURES {
        fake_server(dir.path(), failure);
        assert_eq!(ask(), (false, None, false), "{failure}");
    }
    fake_server(dir.path(), "echo exited 4000000 unknown; echo gone 4000000 77");
    assert_eq!(ask(), (true, Some(false), true));
    fake_server(dir.path(), "echo lives 4000000 77");
    assert_eq!(ask(), (false, Some(true), false));
    fake_server(dir.path(), "echo lives 4000000 77; echo gone 4000000 77");
    assert_eq!(ask().1, None, "both are reported");
}

#[test]
fn the_remote_program_is_queried_with_the_whole_identity_of_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_string_lossy().into_owned();
    fake_server(dir.path(), "echo \"$@\"");
    let said = |script: &str| String::from_utf8(shell(script).stdout).unwrap();
    let whole = format!("{}", process());
    let watched = said(&watch_script(&path, &process()));
    assert_eq!(watched, format!("started 4000000 77 5\n--watch {whole}\n"));
    assert_eq!(said(&end_script(&path, &process())), format!("--end {whole}\n"));
    let all = [started(), Started { pid: 9, ..started() }].map(|one| Process::from(&one));
    let looked = said(&look_script(&path, &[started(), Started { pid: 9, ..started() }]));
    assert_eq!(looked, format!("--look {} {}\n", all[0], all[1]));
}

#[test]
fn remote_strays_are_found_by_incarnation_and_the_script_skips_itself() {
    let names = [Incarnation(0xfeed_0000_0000_0001), Incarnation(0xfeed_0000_0000_0002)];
    let mut child = std::process::Command::new("sh")
        .args(["-c", "read line", &names[1].to_string()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    while child.try_wait().unwrap().is_none() {
        assert!(shell(&strays_script(&names)).status.success());
    }
    assert!(!child.wait().unwrap().success());
}
