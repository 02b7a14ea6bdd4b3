//! Tests of the scripts. They run as for a user, in a copy of the checkout whose path is hard to quote.
//!
//! ```text
//!   <temp>/it's a checkout/  scripts/ config.txt         copied
//!                            bin/coord, server, client   those built for the tests
//!                            run/                        files that the scripts leave
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::cluster::read_dump;
use crate::common::process::{self, Signal};
use crate::common::programs::{self, CLIENT, COORD, Ended, SERVER, show_logs};
use crate::common::sshd::Sshd;
use crate::common::terminal::{CTRL_C, CTRL_D, Terminal};
use crate::common::{TIMEOUT, poll, wait_until};
use kv_protocol::map::ServerState;
use kv_protocol::status::{ClusterState, ClusterStatus};

/// Time limit for one run of a script.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for the end of a process after the end of its parent.
const GOING: Duration = Duration::from_secs(5);
/// Exit code: no cluster runs in the directory.
const NO_CLUSTER: i32 = 5;

/// A copy of the checkout with the built programs.
struct Checkout {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Checkout {
    #[track_caller]
    fn make() -> Checkout {
        let dir = tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory");
        let root = dir.path().join("it's a checkout");
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["scripts/lib", "bin"] {
            fs::create_dir_all(root.join(folder)).expect("make a directory");
        }
        let files = ["config.txt", "scripts/run.sh", "scripts/launch-cluster.sh"];
        for file in files.into_iter().chain(["scripts/lib/cluster.sh"]) {
            programs::copy(&source.join(file), &root.join(file));
        }
        for program in [COORD, SERVER, CLIENT] {
            let name = Path::new(program).file_name().expect("a program's name");
            let linked = root.join("bin").join(name);
            // If possible, the program is a hard link, as scripts/build.sh creates it.
            if fs::hard_link(program, &linked).is_err() {
                programs::copy(Path::new(program), &linked);
            }
        }
        Checkout { _dir: dir, root }
    }

    fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    fn script(&self, name: &str) -> String {
        self.root.join("scripts").join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// Returns a script as a command, to be started in a directory other than its own.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.script(name));
        command.current_dir(&self.root);
        command
    }

    /// Runs what `make run` runs after the build.
    #[track_caller]
    fn run(&self, input: &str) -> Ended {
        programs::run(&self.script("run.sh"), std::iter::empty::<&str>(), input, SCRIPT_LIMIT)
    }

    #[track_caller]
    fn launch(&self, arguments: &[&str]) -> Ended {
        programs::run(&self.script("launch-cluster.sh"), arguments, "", SCRIPT_LIMIT)
    }

    /// Starts a script with its input from a pipe.
    #[track_caller]
    fn spawn(&self, name: &str, arguments: &[&str]) -> Child {
        let mut command = self.command(name);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("start a script")
    }

    /// Returns all processes that run a program of `bin/`, or run in the checkout.
    fn processes(&self) -> Vec<u32> {
        let mut all = process::running_from(&self.root.join("bin"));
        all.extend(process::running_in(&self.root));
        all.extend(process::running_in(&self.run_dir()));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Fails if a process is left. A process whose parent has ended (ssh, a watching server) needs
    /// a moment to end.
    #[track_caller]
    fn assert_nobody_left(&self) {
        let is_empty = poll(GOING, || self.processes().is_empty().then_some(()));
        let told = || self.processes().into_iter().map(|pid| (pid, process::command_line(pid)));
        assert!(is_empty.is_some(), "processes {:?} were left", told().collect::<Vec<_>>());
    }

    /// Returns the number of entries in the primary dumps in `run/`. All dumps must be complete, and the secondary ones
    /// must have as many entries.
    #[track_caller]
    fn dumped_entries(&self) -> usize {
        let entries = |id: usize, role: &str| {
            read_dump(&self.run_dir().join(format!("server_{id}.{role}"))).entries.len()
        };
        (0..3)
            .for_each(|id| assert_eq!(entries(id, "primary"), entries((id + 1) % 3, "secondary")));
        (0..3).map(|id| entries(id, "primary")).sum()
    }

    /// Waits until the cluster serves and returns the coordinator's port for clients.
    #[track_caller]
    fn await_port(&self) -> String {
        let file = self.run_dir().join("ready.json");
        wait_until("the cluster to serve", TIMEOUT, || {
            fs::read_to_string(&file).is_ok_and(|line| line.ends_with('\n'))
        });
        let line = fs::read_to_string(&file).expect("read the line");
        let json: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
        json["clients_port"].to_string()
    }

    #[track_caller]
    fn client(&self, operations: &str) -> Ended {
        let port = self.await_port();
        programs::run(CLIENT, ["-h", "localhost", "-p", &port], operations, SCRIPT_LIMIT)
    }

    #[track_caller]
    fn status(&self) -> ClusterStatus {
        let ended = self.launch(&["status", "--json"]);
        assert!(ended.code.is_some_and(|code| [0, 3, 4].contains(&code)), "{ended:#?}");
        serde_json::from_str(&ended.stdout).expect("a status")
    }

    /// Writes a cluster file with these hosts and returns its path.
    #[track_caller]
    fn cluster_file(&self, hosts: [&str; 3]) -> String {
        let lines: String = hosts.iter().map(|host| format!("{host} 0 0 0\n")).collect();
        let path = self.root.join("my cluster.txt");
        fs::write(&path, format!("# three\n3\n{lines}")).expect("write a cluster file");
        path.to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(&self.run_dir());
        }
        crate::common::poll(TIMEOUT, || {
            let left = self.processes();
            left.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
            left.is_empty().then_some(())
        });
    }
}

#[test]
fn make_run_executes_piped_operations_and_leaves_dumps_and_no_process_twice_in_a_row() {
    let checkout = Checkout::make();
    for value in ["1", "2"] {
        let operations = format!("P \"a\" \"{value}\"\nG \"a\"\n");
        let ended = checkout.run(&operations).with_code(0);
        // Standard output has only the results.
        assert_eq!(
            ended.stdout,
            format!("value[\"a\"] <- \"{value}\"\nvalue[\"a\"] == \"{value}\"\n")
        );
        checkout.assert_nobody_left();
        assert_eq!(checkout.dumped_entries(), 1);
        // The file that announces a running cluster is gone.
        assert!(!checkout.run_dir().join("ready.json").exists());
        checkout.launch(&["status"]).with_code(NO_CLUSTER);
    }
}

#[test]
fn make_run_fails_when_the_client_fails_and_still_stops_the_cluster() {
    let checkout = Checkout::make();
    let ended = checkout.run("G \"nowhere\"\n").with_code(1);
    assert_eq!(ended.stdout, "key \"nowhere\" not found\n");
    checkout.assert_nobody_left();
    assert_eq!(checkout.dumped_entries(), 0);
}

#[test]
fn make_run_on_a_terminal_prompts_until_ctrl_d_which_ends_client_and_cluster() {
    let checkout = Checkout::make();
    let mut command = checkout.command("run.sh");
    command.env("XDG_STATE_HOME", checkout.root.join("state"));
    let mut terminal = Terminal::start(command);
    terminal.wait_for("kv> ");
    terminal.type_in("P \"a\" \"1\"\r");
    terminal.wait_for("value[\"a\"] <- \"1\"");
    terminal.wait_for("kv> ");
    // Ctrl+C ends neither the client nor the cluster.
    terminal.type_in("P \"never\" \"done\"");
    terminal.wait_for("done");
    terminal.type_in(CTRL_C);
    terminal.wait_for("\n");
    terminal.wait_for("kv> ");
    terminal.type_in("G \"a\"\r");
    terminal.wait_for("value[\"a\"] == \"1\"");
    terminal.wait_for("kv> ");
    terminal.type_in(CTRL_D);
    assert_eq!(terminal.await_end(SCRIPT_LIMIT), Some(0));
    checkout.assert_nobody_left();
    assert_eq!(checkout.dumped_entries(), 1);
}

#[test]
fn a_terminated_make_run_stops_its_cluster_cleanly() {
    let checkout = Checkout::make();
    let mut script = checkout.spawn("run.sh", &[]);
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    for _ in 0..2 {
        process::signal(script.id(), Signal::TERM);
    }
    assert_eq!(programs::wait(&mut script, SCRIPT_LIMIT), Some(Some(143)));
    checkout.assert_nobody_left();
    assert_eq!(checkout.dumped_entries(), 1);
}

#[test]
fn a_killed_make_run_leaves_a_cluster_that_stops_by_itself() {
    let checkout = Checkout::make();
    let mut script = checkout.spawn("run.sh", &[]);
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    let input = script.stdin.take();
    process::signal(script.id(), Signal::KILL);
    assert_eq!(programs::wait(&mut script, TIMEOUT), Some(None));
    // The client ends at the end of its input, whose other end this test holds.
    drop(input);
    wait_until("the end of client and cluster", TIMEOUT, || checkout.processes().is_empty());
    assert_eq!(checkout.dumped_entries(), 1);
    // The files of the killed cluster do not prevent another start.
    checkout.run("").with_code(0);
}

#[test]
fn a_second_cluster_in_the_same_directory_is_rejected_and_the_first_continues() {
    let checkout = Checkout::make();
    let mut script = checkout.spawn("run.sh", &[]);
    checkout.await_port();
    let second = checkout.run("P \"a\" \"1\"\n").with_code(1);
    assert!(second.stderr.contains("a cluster is running in"), "{}", second.stderr);
    let config = checkout.root.join("config.txt");
    let config = config.to_str().expect("a path in UTF-8");
    let second = checkout.launch(&["start", config, "--daemon"]).with_code(1);
    assert!(second.stderr.contains("a cluster is running in"), "{}", second.stderr);
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    drop(script.stdin.take());
    assert_eq!(programs::wait(&mut script, SCRIPT_LIMIT), Some(Some(0)));
    checkout.assert_nobody_left();
}

#[test]
fn launch_cluster_starts_a_daemon_shows_its_status_and_stops_it_twice_in_a_row() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost"; 3]);
    checkout.launch(&["status"]).with_code(NO_CLUSTER);
    checkout.launch(&["stop"]).with_code(NO_CLUSTER);
    for _ in 0..2 {
        let start = ["start", &file, "--daemon", "--shards", "2"];
        let started = checkout.launch(&start).with_code(0);
        let port = checkout.await_port();
        assert!(started.stdout.trim_end().ends_with(&format!("-h localhost -p {port}")));
        let status = checkout.status();
        assert_eq!((status.state, status.shards), (ClusterState::Serving, 2));
        assert!(status.servers.iter().all(|server| server.state == ServerState::Up));
        let people = checkout.launch(&["status"]).with_code(0).stdout;
        assert!(people.contains("serving"), "{people}");
        // The printed command works in a shell.
        let piped = format!("printf 'P \"a\" \"1\"\\n' | {}", started.stdout);
        let ended = programs::run("sh", ["-c", &piped], "", SCRIPT_LIMIT).with_code(0);
        assert_eq!(ended.stdout, "value[\"a\"] <- \"1\"\n");

        checkout.launch(&["stop"]).with_code(0);
        checkout.assert_nobody_left();
        assert_eq!(checkout.dumped_entries(), 1);
        checkout.launch(&["status"]).with_code(NO_CLUSTER);
    }
}

#[test]
fn launch_cluster_finds_and_ends_servers_that_outlived_their_coordinator() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost"; 3]);
    checkout.launch(&["start", &file, "--daemon"]).with_code(0);
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    kill_coordinator(&checkout);
    assert_eq!(checkout.processes().len(), 3);
    let told = checkout.launch(&["status"]).with_code(1);
    assert!(told.stderr.contains("has ended"), "{}", told.stderr);
    // Another coordinator takes the servers over for an orderly stop.
    checkout.launch(&["stop"]).with_code(0);
    checkout.assert_nobody_left();
    assert_eq!(checkout.dumped_entries(), 1);
    checkout.launch(&["status"]).with_code(NO_CLUSTER);
}

#[test]
fn launch_cluster_without_a_state_reports_and_ends_the_servers_that_hold_its_lock() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost"; 3]);
    checkout.launch(&["start", &file, "--daemon"]).with_code(0);
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    kill_coordinator(&checkout);
    fs::remove_file(checkout.run_dir().join("coordinator.state")).expect("remove the state");
    let told = checkout.launch(&["status"]).with_code(1);
    assert!(told.stderr.contains("its servers still run: pid"), "{}", told.stderr);
    checkout.launch(&["stop"]).with_code(1);
    checkout.assert_nobody_left();
    assert_eq!(checkout.dumped_entries(), 1);
}

/// Returns the arguments of `start` for a cluster on ssh hosts, in the directory `remote`.
fn start_there<'a>(file: &'a str, sshd: &Sshd, remote: &'a str) -> Vec<String> {
    let config = sshd.config().to_str().expect("a path in UTF-8").to_owned();
    let words = ["start", file, "--daemon", "--remote-dir", remote, "--advertise", "127.0.0.1"];
    let words = words.into_iter().map(str::to_owned);
    words.chain(["--ssh-config".to_owned(), config]).collect()
}

#[test]
fn launch_cluster_finds_servers_on_ssh_hosts_without_a_coordinator_and_takes_them_over() {
    let sshd = Sshd::start_without_server();
    let checkout = Checkout::make();
    let host = sshd.host();
    let file = checkout.cluster_file([&host; 3]);
    let remote = sshd.remote_dir();
    let start = start_there(&file, &sshd, remote.to_str().expect("a path in UTF-8"));
    let start: Vec<&str> = start.iter().map(String::as_str).collect();
    checkout.launch(&start).with_code(0);
    let operations: String = (0..100).map(|n| format!("P \"{n}\" \"v\"\n")).collect();
    checkout.client(&operations).with_code(0);
    let pids = |status: &ClusterStatus| status.servers.iter().map(|s| s.pid).collect::<Vec<_>>();
    let first = pids(&checkout.status());
    kill_coordinator(&checkout);
    let told = checkout.launch(&["status"]).with_code(1);
    for words in ["3 of 3 servers are known to run", "has ended", &host] {
        assert!(told.stderr.contains(words), "no {words:?} in {}", told.stderr);
    }
    // The options for reaching the hosts are not repeated.
    let again = checkout.launch(&["start", &file, "--daemon"]).with_code(0);
    assert!(again.stderr.contains("taking over"), "{}", again.stderr);
    assert!(!again.stderr.contains("copying"), "{}", again.stderr);
    assert_eq!(pids(&checkout.status()), first);
    // The same works after a coordinator was detached.
    checkout.launch(&["detach"]).with_code(0);
    checkout.assert_nobody_left();
    checkout.launch(&["detach"]).with_code(1);
    checkout.launch(&["status"]).with_code(1);
    checkout.launch(&["start", &file, "--daemon"]).with_code(0);
    assert_eq!(pids(&checkout.status()), first);

    kill_coordinator(&checkout);
    checkout.launch(&["stop"]).with_code(0);
    checkout.launch(&["status"]).with_code(NO_CLUSTER);
    for pid in first.into_iter().flatten() {
        assert!(!process::is_alive(pid), "server process {pid} was left");
    }
    let entries = |id: usize| read_dump(&remote.join(format!("server_{id}.primary"))).entries.len();
    assert_eq!((0..3).map(entries).sum::<usize>(), 100);
}

#[test]
fn launch_cluster_fetches_the_dumps_from_ssh_hosts_and_overwrites_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let sshd = Sshd::start_without_server();
    let checkout = Checkout::make();
    let host = sshd.host();
    let file = checkout.cluster_file(["localhost", &host, &host]);
    let remote = sshd.remote_dir().join("it's there");
    let remote = remote.to_str().expect("a path in UTF-8");
    let start = start_there(&file, &sshd, remote);
    let start: Vec<&str> = start.iter().map(String::as_str).collect();
    checkout.launch(&start).with_code(0);
    let operations: String = (0..100).map(|n| format!("P \"{n}\" \"v\"\n")).collect();
    checkout.client(&operations).with_code(0);
    let early = checkout.launch(&["collect"]).with_code(1);
    assert!(early.stderr.contains("is running, and its data is in memory"), "{}", early.stderr);
    let stopped = checkout.launch(&["stop"]).with_code(0);
    for words in [&*host, remote, "collect --dir"] {
        assert!(stopped.stderr.contains(words), "no {words:?} in {}", stopped.stderr);
    }
    let run = checkout.run_dir();
    fs::write(run.join("server_1.primary"), "another file").expect("write a file");
    let refused = checkout.launch(&["collect"]).with_code(1);
    assert!(refused.stderr.contains("no file is overwritten"), "{}", refused.stderr);
    assert_eq!(fs::read(run.join("server_1.primary")).expect("read a file"), b"another file");
    fs::remove_file(run.join("server_1.primary")).expect("remove a file");
    // The second run keeps the files that already exist.
    for _ in 0..2 {
        checkout.launch(&["collect"]).with_code(0);
    }
    for id in 1..3 {
        for role in ["primary", "secondary"] {
            let name = format!("server_{id}.{role}");
            let mode = fs::metadata(run.join(&name)).expect("a dump").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
    assert_eq!(checkout.dumped_entries(), 100);
    let names = fs::read_dir(&run).expect("read a directory").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let hidden: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
    assert!(hidden.is_empty(), "{hidden:?} were left");
    // The dumps restore the cluster without further options for reaching its hosts.
    let run = run.to_str().expect("a path in UTF-8");
    checkout.launch(&["start", &file, "--daemon", "--restore", run]).with_code(0);
    let checks: String = (0..100).map(|n| format!("V \"{n}\" \"v\"\n")).collect();
    checkout.client(&checks).with_code(0);
    checkout.launch(&["stop"]).with_code(0);
}

#[test]
fn launch_cluster_parses_the_file_like_the_coordinator_and_copes_with_ssh_configurations() {
    let sshd = Sshd::start_without_server();
    let checkout = Checkout::make();
    let host = sshd.host();
    let file = checkout.root.join("dos.txt");
    // The text has a byte order mark, a blank line, a comment and CRLF line ends.
    let text =
        format!("\u{feff}3\r\n\r\n{host} 0 0 0 # here\r\n{host}\t0 0 0\r\nlocalhost 0 0 0\r\n");
    fs::write(&file, text).expect("write a file");
    let file = file.to_str().expect("a path in UTF-8");
    let config = sshd.config().with_file_name("by hand");
    let own = fs::read_to_string(sshd.config()).expect("read a file");
    fs::write(&config, format!("{own}RequestTTY force\nRemoteCommand tmux attach\n"))
        .expect("write a file");
    let config = config.to_str().expect("a path in UTF-8");
    let home = sshd.remote_dir();
    // The script and its directory are reached through symbolic links.
    let link = checkout.root.join("launch");
    std::os::unix::fs::symlink(checkout.script("launch-cluster.sh"), &link).expect("make a link");
    let (real, linked) = (checkout.root.join("real"), checkout.root.join("linked"));
    fs::create_dir(&real).expect("make a directory");
    std::os::unix::fs::symlink(&real, &linked).expect("make a link");
    let (link, linked) = (link.to_str().expect("UTF-8"), linked.to_str().expect("UTF-8"));
    let launch = |words: &[&str]| {
        let all = words.iter().copied().chain(["--dir", linked]);
        programs::run(link, all, "", SCRIPT_LIMIT)
    };
    let home = home.to_str().expect("a path in UTF-8");
    let start = ["start", file, "--daemon", "--ssh-config", config, "--remote-dir", home];
    let start: Vec<&str> = start.into_iter().chain(["--advertise", "127.0.0.1"]).collect();
    launch(&start).with_code(0);
    let status = launch(&["status", "--json"]).with_code(0).stdout;
    let status: ClusterStatus = serde_json::from_str(&status).expect("a status");
    let hosts: Vec<&str> = status.servers.iter().map(|server| server.host.as_str()).collect();
    assert_eq!(hosts, [&host, &host, "localhost"]);
    let pid = fs::read_to_string(real.join("coord.pid")).expect("read coord.pid");
    let pid = pid.trim().parse().expect("a pid");
    process::signal(pid, Signal::KILL);
    wait_until("the coordinator's end", TIMEOUT, || !process::is_alive(pid));
    launch(&["status"]).with_code(1);
    launch(&["start", file, "--daemon"]).with_code(0);
    launch(&["stop"]).with_code(0);
    launch(&["status"]).with_code(NO_CLUSTER);
    assert!(process::running_in(&real).is_empty());
}

#[test]
fn launch_cluster_starts_nothing_while_hosts_of_its_cluster_cannot_be_checked() {
    let mut sshd = Sshd::start_without_server();
    let checkout = Checkout::make();
    let host = sshd.host();
    let file = checkout.cluster_file([&host; 3]);
    let remote = sshd.remote_dir();
    let start = start_there(&file, &sshd, remote.to_str().expect("a path in UTF-8"));
    let start: Vec<&str> = start.iter().map(String::as_str).collect();
    checkout.launch(&start).with_code(0);
    let before = checkout.status();
    kill_coordinator(&checkout);
    sshd.kill();
    for command in [&["start", &file, "--daemon"][..], &["status"], &["stop"]] {
        let told = checkout.launch(command).with_code(1);
        for words in ["NOT KNOWN", "ring those hosts back"] {
            assert!(told.stderr.contains(words), "{command:?}: no {words:?} in {}", told.stderr);
        }
    }
    sshd.restart();
    checkout.launch(&["start", &file, "--daemon"]).with_code(0);
    assert_eq!(checkout.status().servers[0].pid, before.servers[0].pid);
    checkout.launch(&["stop"]).with_code(0);
}

/// Kills the coordinator of the cluster in `run/`, which the script started.
#[track_caller]
fn kill_coordinator(checkout: &Checkout) {
    let pid = fs::read_to_string(checkout.run_dir().join("coord.pid")).expect("read coord.pid");
    let pid = pid.trim().parse().expect("a pid");
    process::signal(pid, Signal::KILL);
    wait_until("the coordinator's end", TIMEOUT, || !process::is_alive(pid));
}

#[test]
fn launch_cluster_takes_over_servers_whose_coordinator_has_died_however_often() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost"; 3]);
    let start = ["start", &file, "--daemon"];
    let started = checkout.launch(&start).with_code(0);
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    let first: Vec<_> = checkout.status().servers.iter().map(|server| server.pid).collect();
    for epoch in 2..4 {
        kill_coordinator(&checkout);
        let again = checkout.launch(&start).with_code(0);
        assert_eq!(again.stdout, started.stdout, "the port has changed");
        assert!(again.stderr.contains("taking over"), "{}", again.stderr);
        assert_eq!(checkout.status().epoch.number, epoch);
    }
    let pids: Vec<_> = checkout.status().servers.iter().map(|server| server.pid).collect();
    assert_eq!(pids, first);
    // The cluster is found even when all of the first processes have ended.
    for (n, pid) in first.into_iter().enumerate() {
        process::signal(pid.expect("a pid"), Signal::KILL);
        wait_until("another one and two copies", TIMEOUT, || {
            let status = checkout.status();
            status.servers[n].pid.is_some_and(|other| Some(other) != pid)
                && status.servers.iter().all(|server| server.recovery_step.is_none())
                && status.groups.iter().all(|group| group.copies == 2)
        });
    }
    let second = checkout.launch(&start).with_code(1);
    assert!(second.stderr.contains("a cluster is running in"), "{}", second.stderr);
    kill_coordinator(&checkout);
    checkout.launch(&start).with_code(0);
    checkout.launch(&["stop"]).with_code(0);
    checkout.assert_nobody_left();
    assert_eq!(checkout.dumped_entries(), 1);
}

#[test]
fn a_failed_takeover_by_launch_cluster_leaves_the_servers_and_make_run_attempts_none() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost"; 3]);
    checkout.launch(&["start", &file, "--daemon"]).with_code(0);
    let before = checkout.status();
    kill_coordinator(&checkout);
    let tried = checkout.launch(&["start", &file, "--daemon", "--shards", "7"]).with_code(1);
    for words in ["not 7", "left as they were"] {
        assert!(tried.stderr.contains(words), "no {words:?} in {}", tried.stderr);
    }
    let tried = checkout.run("").with_code(1);
    assert!(tried.stderr.contains("takes it over"), "{}", tried.stderr);
    checkout.launch(&["start", &file, "--daemon"]).with_code(0);
    let after = checkout.status();
    let pids = |status: &ClusterStatus| status.servers.iter().map(|s| s.pid).collect::<Vec<_>>();
    assert_eq!(pids(&after), pids(&before));
    checkout.launch(&["stop"]).with_code(0);
    checkout.assert_nobody_left();
}

#[test]
fn launch_cluster_restores_a_cluster_and_passes_its_options_on() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost"; 3]);
    let start = ["start", &file, "--daemon", "--orphan-timeout", "77", "--on-double-fault"];
    let wrong: Vec<_> = start.into_iter().chain(["never"]).collect();
    let refused = checkout.launch(&wrong).with_code(1);
    assert!(refused.stderr.contains("'never'"), "{}", refused.stderr);
    let right: Vec<_> = start.into_iter().chain(["isolate"]).collect();
    checkout.launch(&right).with_code(0);
    let pid = checkout.status().servers[0].pid.expect("a pid");
    assert!(process::command_line(pid).contains("--orphan-timeout 77 "));
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    checkout.launch(&["stop"]).with_code(0);

    let run = checkout.run_dir();
    for role in ["server_0.primary", "server_1.secondary"] {
        fs::remove_file(run.join(role)).expect("remove a dump");
    }
    let run = run.to_str().expect("a path in UTF-8");
    let restore = ["start", &file, "--daemon", "--restore", run, "--force"];
    let refused = checkout.launch(&restore).with_code(1);
    assert!(refused.stderr.contains("--accept-loss"), "{}", refused.stderr);
    let restore: Vec<_> = restore.into_iter().chain(["--accept-loss"]).collect();
    checkout.launch(&restore).with_code(0);
    checkout.launch(&["status"]).with_code(4);
    let lost = checkout.status().groups.iter().filter(|group| group.primary.is_none()).count();
    assert_eq!(lost, 1);
    checkout.launch(&["stop"]).with_code(0);
}

#[test]
fn launch_cluster_in_the_foreground_ends_with_its_input() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost"; 3]);
    let mut script = checkout.spawn("launch-cluster.sh", &["start", &file]);
    checkout.client("P \"a\" \"1\"\n").with_code(0);
    assert_eq!(checkout.status().state, ClusterState::Serving);
    drop(script.stdin.take());
    assert_eq!(programs::wait(&mut script, SCRIPT_LIMIT), Some(Some(0)));
    checkout.assert_nobody_left();
    assert_eq!(checkout.dumped_entries(), 1);
}

#[test]
fn launch_cluster_copies_the_server_to_an_ssh_host_and_runs_it_there() {
    let sshd = Sshd::start_without_server();
    let checkout = Checkout::make();
    let host = sshd.host();
    let file = checkout.cluster_file(["localhost", &host, "localhost"]);
    let remote = sshd.remote_dir().join("not there yet");
    let (config, remote) = (sshd.config(), remote.to_str().expect("a path in UTF-8"));
    let config = config.to_str().expect("a path in UTF-8");
    let start = ["start", &file, "--daemon", "--ssh-config", config, "--remote-dir", remote];
    let start: Vec<&str> = start.into_iter().chain(["--advertise", "127.0.0.1"]).collect();
    // In the second round, the server executable is already on the host.
    for _ in 0..2 {
        checkout.launch(&start).with_code(0);
        let status = checkout.status();
        assert_eq!((status.state, &status.servers[1].host), (ClusterState::Serving, &host));
        let pid = status.servers[1].pid.expect("a pid");
        let copy = fs::read_link(format!("/proc/{pid}/exe")).expect("a program");
        assert_eq!(copy, Path::new(remote).canonicalize().expect("a path").join("server"));
        let operations: String = (0..100).map(|n| format!("P \"{n}\" \"v\"\n")).collect();
        checkout.client(&operations).with_code(0);

        checkout.launch(&["stop"]).with_code(0);
        checkout.assert_nobody_left();
        assert!(!process::is_alive(pid), "the remote server was left");
        for role in ["primary", "secondary"] {
            let dump = read_dump(&Path::new(remote).join(format!("server_1.{role}")));
            assert!(!dump.entries.is_empty());
        }
    }
}

#[test]
fn launch_cluster_starts_nothing_if_an_ssh_host_is_unreachable() {
    let sshd = Sshd::start_without_server();
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["localhost", &sshd.host(), "localhost"]);
    let config = sshd.refused_config();
    let config = config.to_str().expect("a path in UTF-8");
    let arguments = ["start", &file, "--daemon", "--ssh-config", config];
    let arguments = arguments.into_iter().chain(["--advertise", "127.0.0.1"]).collect::<Vec<_>>();
    let ended = checkout.launch(&arguments).with_code(1);
    for words in ["Permission denied", &sshd.host()] {
        assert!(ended.stderr.contains(words), "no {words:?} in: {}", ended.stderr);
    }
    checkout.assert_nobody_left();
    checkout.launch(&["status"]).with_code(NO_CLUSTER);
}

#[test]
fn launch_cluster_copies_nothing_for_an_invalid_cluster_file() {
    let checkout = Checkout::make();
    let file = checkout.cluster_file(["kv@nowhere.invalid", "kv@nowhere.invalid", "not/a/host"]);
    let ended = checkout.launch(&["start", &file, "--daemon"]).with_code(1);
    assert!(ended.stderr.contains("line 5"), "the comment line must count: {}", ended.stderr);
    assert!(!ended.stderr.contains("copying"), "{}", ended.stderr);
    checkout.assert_nobody_left();
}

#[test]
fn invalid_usage_of_launch_cluster_exits_with_two_and_names_the_error() {
    let checkout = Checkout::make();
    for (arguments, named) in [
        (&["begin"][..], "begin"),
        (&["start"], "cluster file"),
        (&["start", "a", "b"], "'b'"),
        (&["start", "a", "--dir"], "--dir"),
        (&["start", "a", "--json"], "--json"),
        (&["status", "--daemon"], "--daemon"),
        (&["stop", "it"], "'it'"),
    ] {
        let ended = checkout.launch(arguments).with_code(2);
        assert!(ended.stderr.contains(named), "{arguments:?}: {}", ended.stderr);
    }
    let ended = checkout.launch(&["start", "/nowhere.txt"]).with_code(1);
    assert!(ended.stderr.contains("/nowhere.txt"), "{}", ended.stderr);
    let help = checkout.launch(&["--help"]).with_code(0);
    assert!(help.stdout.contains("--ssh-config"), "{}", help.stdout);
    checkout.assert_nobody_left();
}
