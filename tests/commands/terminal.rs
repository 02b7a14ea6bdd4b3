//! Tests of the programs on a pseudo-terminal, as a user sees them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::load::put_all;
use crate::common::process::{self, Signal};
use crate::common::programs::{self, CLIENT, COORD, SERVER};
use crate::common::terminal::{CTRL_C, CTRL_D, Terminal};
use crate::common::{Cluster, TIMEOUT, wait_for, wait_until};
use kv_client::{Client, Options};
use kv_protocol::status::ClusterStatus;

const PROMPT: &str = "kv> ";
const ENTER: &str = "\r";
const UP: &str = "\x1b[A";
const LEFT: &str = "\x1b[D";
const BACKSPACE: &str = "\x7f";

/// Returns the client's command line, with its state in this directory.
fn client_command(cluster: &Cluster, state: &Path) -> Command {
    let mut command = Command::new(CLIENT);
    command.args(["-h", "127.0.0.1", "-p", &cluster.ready.clients_port.to_string()]);
    command.env("XDG_STATE_HOME", state);
    command
}

/// Starts the client and waits for its prompt.
#[track_caller]
fn open_client(cluster: &Cluster, state: &Path) -> Terminal {
    let mut terminal = Terminal::start(client_command(cluster, state));
    terminal.wait_for(PROMPT);
    terminal
}

/// Types a line and waits for its output and the next prompt.
#[track_caller]
fn ask(terminal: &mut Terminal, keys: &str, response: &str) {
    terminal.type_in(keys);
    terminal.type_in(ENTER);
    terminal.wait_for(response);
    terminal.wait_for(PROMPT);
}

#[track_caller]
fn leave(mut terminal: Terminal) {
    terminal.type_in(CTRL_D);
    assert_eq!(terminal.await_end(TIMEOUT), Some(0));
}

#[test]
fn the_client_greets_prompts_responds_and_exits_with_zero_at_ctrl_d() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = Terminal::start(client_command(&cluster, state.path()));
    let greeting = terminal.wait_for(PROMPT);
    let port = cluster.ready.clients_port.to_string();
    for words in [&*port, "help", "quit", "Ctrl+D"] {
        assert!(greeting.contains(words), "no {words:?} in the greeting {greeting:?}");
    }
    ask(&mut terminal, "P \"a\" \"1\"", "value[\"a\"] <- \"1\"");
    ask(&mut terminal, "G \"a\"", "value[\"a\"] == \"1\"");
    ask(&mut terminal, "V \"a\" \"1\"", "check passed");
    ask(&mut terminal, "nonsense", "unknown operation \"nonsense\"");
    // The message has no line number, because a user sees the typed line.
    assert!(!terminal.screen().contains("line 4"), "{}", terminal.screen());
    // A failed line does not end the program and does not affect its exit status, because the user has seen the
    // message.
    ask(&mut terminal, "G \"b\"", "key \"b\" not found");
    leave(terminal);
}

#[test]
fn quit_exit_and_q_end_the_client_with_zero() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    for word in ["quit", "exit", " q "] {
        let mut terminal = open_client(&cluster, state.path());
        terminal.type_in(word);
        terminal.type_in(ENTER);
        assert_eq!(terminal.await_end(TIMEOUT), Some(0), "{word}");
    }
}

#[test]
fn a_line_can_be_edited_before_it_is_executed() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    let keys = format!("P \"a\" \"12\"{LEFT}{BACKSPACE}3");
    ask(&mut terminal, &keys, "value[\"a\"] <- \"13\"");
    leave(terminal);
}

#[test]
fn the_tabulator_completes_words_and_options() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    ask(&mut terminal, "pu\ta 1 if-ab\t", "value[\"a\"] <- \"1\"");
    ask(&mut terminal, "incrf\tb 1.5", "value[\"b\"] <- \"1.5\"");
    leave(terminal);
}

#[test]
fn ctrl_c_clears_the_line_and_does_not_end_the_client() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    terminal.type_in("P \"a\" \"never\"");
    terminal.wait_for("never");
    terminal.type_in(CTRL_C);
    terminal.wait_for("\n");
    terminal.wait_for(PROMPT);
    ask(&mut terminal, "G \"a\"", "key \"a\" not found");
    leave(terminal);
}

#[test]
fn the_line_history_is_kept_between_runs() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    ask(&mut terminal, "P \"a\" \"1\"", "value[\"a\"] <- \"1\"");
    ask(&mut terminal, "G \"a\"", "value[\"a\"] == \"1\"");
    ask(&mut terminal, &format!("{UP}{UP}"), "value[\"a\"] <- \"1\"");
    leave(terminal);
    let history = std::fs::read_to_string(state.path().join("kv/history")).expect("a history");
    assert!(history.contains("G \"a\""), "{history}");

    let mut terminal = open_client(&cluster, state.path());
    ask(&mut terminal, UP, "value[\"a\"] <- \"1\"");
    ask(&mut terminal, &format!("{UP}{UP}"), "value[\"a\"] == \"1\"");
    leave(terminal);
}

/// Returns the bytes of a bracketed paste.
fn pasted(text: &str) -> String {
    format!("\x1b[200~{}\x1b[201~", text.replace('\n', ENTER))
}

#[test]
fn a_paste_runs_only_at_enter_and_then_all_of_its_lines_in_order() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    assert!(terminal.screen().contains("\x1b[?2004h"), "bracketed paste is off");
    let mut other = cluster.open();
    let key = b"a".as_slice();
    // The last line works with and without a line end. Empty lines and comments are ignored.
    for text in [
        "P \"a\" \"1\"\nG \"a\"\n\n# no more\nP \"a\" \"2\"\nnonsense\nG \"a\"\n# end",
        "P \"a\" \"1\"\nG \"a\"\n\n# no more\nP \"a\" \"2\"\nnonsense\nG \"a\"\n",
    ] {
        let _ = other.delete(key, &Default::default());
        terminal.type_in(&pasted(text));
        terminal.wait_for("G \"a\"");
        terminal.wait_for("nonsense");
        // The whole paste is at the prompt once another key is echoed.
        terminal.type_in(" # typed");
        terminal.wait_for("# typed");
        let found = other.get(key, &Default::default());
        assert!(matches!(found, Err(kv_client::Error::NotFound { .. })), "{found:?}");
        terminal.type_in(ENTER);
        terminal.wait_for("value[\"a\"] <- \"1\"");
        terminal.wait_for("value[\"a\"] == \"1\"");
        terminal.wait_for("value[\"a\"] <- \"2\"");
        // With several lines, the message must name the one that failed.
        terminal.wait_for("line 6: unknown operation \"nonsense\"");
        terminal.wait_for("value[\"a\"] == \"2\"");
        terminal.wait_for(PROMPT);
    }
    // Each line has its own history entry.
    ask(&mut terminal, &format!("{UP}{UP}"), "value[\"a\"] == \"2\"");
    leave(terminal);
}

#[test]
fn a_paste_can_be_discarded_and_a_quit_in_it_ends_the_client_there() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    terminal.type_in(&pasted("P \"a\" \"1\"\nP \"b\" \"1\"\n# end"));
    terminal.wait_for("# end");
    terminal.type_in(CTRL_C);
    terminal.wait_for("\n");
    terminal.wait_for(PROMPT);
    ask(&mut terminal, "G \"a\"", "key \"a\" not found");
    terminal.type_in(&pasted("P \"a\" \"2\"\nquit\nP \"a\" \"3\"\n"));
    terminal.type_in(ENTER);
    terminal.wait_for("value[\"a\"] <- \"2\"");
    assert_eq!(terminal.await_end(TIMEOUT), Some(0));
    let value = cluster.open().get(b"a", &Default::default()).expect("a get");
    assert_eq!(value.bytes, b"2");
}

#[test]
fn a_paste_without_a_cluster_ends_after_one_timeout() {
    let (mut cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut command = client_command(&cluster, state.path());
    command.args(["--timeout", "1"]);
    let mut terminal = Terminal::start(command);
    terminal.wait_for(PROMPT);
    ask(&mut terminal, "P \"a\" \"1\"", "value[\"a\"] <- \"1\"");
    cluster.kill_coordinator();
    process::end_all_in(cluster.dir());
    // If each line waited for its own timeout, the lines would exceed this test's time limit.
    let lines: String = (1..=100).map(|n| format!("P \"key {n}\" \"1\"\n")).collect();
    terminal.type_in(&pasted(&lines));
    terminal.wait_for("key 100");
    terminal.type_in(ENTER);
    terminal.wait_for("line 1: put \"key 1\"");
    // The first line may still get a response, because a server may take a moment to end.
    terminal.wait_for("to 100: not tried");
    terminal.wait_for(PROMPT);
    leave(terminal);
}

#[test]
fn lines_that_arrive_at_once_without_bracketed_paste_are_all_executed() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    let lines: String = (0..20).map(|n| format!("P \"a\" \"{n}\"{ENTER}")).collect();
    terminal.type_in(&lines);
    for n in 0..20 {
        terminal.wait_for(&format!("value[\"a\"] <- \"{n}\""));
        terminal.wait_for(PROMPT);
    }
    leave(terminal);
}

#[test]
fn a_closed_terminal_ends_the_client() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    terminal.close();
    terminal.await_end(TIMEOUT);
}

/// A coordinator with three servers on a terminal. Dropping it ends all these processes.
struct OnTerminal {
    terminal: Terminal,
    dir: tempfile::TempDir,
    port: String,
}

impl OnTerminal {
    /// Starts the coordinator with its log in a file or on the terminal, and puts 500 entries.
    #[track_caller]
    fn start(log_in_file: bool) -> OnTerminal {
        let dir = tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory");
        let mut terminal = Terminal::start(Self::command(dir.path(), log_in_file));
        terminal.wait_for("client -h localhost -p ");
        let port = terminal.wait_for("\r\n");
        let started = OnTerminal { terminal, dir, port };
        let operations: String = (0..500).map(|n| format!("P \"key {n}\" \"{n}\"\n")).collect();
        let arguments = ["-h", "localhost", "-p", &started.port];
        crate::common::programs::run(CLIENT, arguments, &operations, TIMEOUT).with_code(0);
        started
    }

    fn command(dir: &Path, log_in_file: bool) -> Command {
        let file = dir.join("cluster.txt");
        let text = format!("3\n{}", "localhost 0 0 0\n".repeat(3));
        std::fs::write(&file, text).expect("write the cluster file");
        let mut command = Command::new(COORD);
        command.args(["--server-binary", SERVER, "--shards", "1"]);
        command.arg("-C").arg(file).arg("--dir").arg(dir);
        if log_in_file {
            command.arg("-l").arg(dir.join("coord.log"));
        }
        command
    }

    fn servers(&self) -> Vec<u32> {
        process::running_in(self.dir.path())
    }

    /// Waits for the end; fails unless no process is left and the dumps are complete.
    #[track_caller]
    fn assert_ends_in_order(&mut self) {
        assert_eq!(self.terminal.await_end(TIMEOUT), Some(0));
        assert!(self.servers().is_empty(), "servers outlived their coordinator");
        let mut entries = 0;
        for id in 0..3 {
            let dump = |id: usize, role| {
                crate::common::cluster::read_dump(
                    &self.dir.path().join(format!("server_{id}.{role}")),
                )
            };
            let (primary, secondary) = (dump(id, "primary"), dump((id + 1) % 3, "secondary"));
            assert_eq!(primary.entries.len(), secondary.entries.len());
            entries += primary.entries.len();
        }
        assert_eq!(entries, 500);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("coord.log")).expect("read the log")
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            crate::common::programs::show_logs(self.dir.path());
            process::signal(self.terminal.pid(), Signal::KILL);
        }
        process::end_all_in(self.dir.path());
    }
}

#[test]
fn ctrl_d_at_the_coordinator_stops_the_cluster_cleanly() {
    for log_in_file in [true, false] {
        let mut cluster = OnTerminal::start(log_in_file);
        cluster.terminal.type_in("a line that is ignored\n");
        cluster.terminal.type_in(CTRL_D);
        cluster.terminal.wait_for("stopping the cluster");
        cluster.terminal.wait_for("stopped");
        cluster.assert_ends_in_order();
    }
}

#[test]
fn ctrl_c_at_the_coordinator_stops_the_cluster_cleanly_and_reaches_no_server() {
    let mut cluster = OnTerminal::start(true);
    for server in cluster.servers() {
        assert_eq!(terminal_of(server), "0", "server {server} has a terminal");
    }
    cluster.terminal.type_in(CTRL_C);
    cluster.terminal.wait_for("SIGINT: stopping the cluster");
    cluster.assert_ends_in_order();
    let log = cluster.log();
    // A server that receives the signal itself would cause this message.
    assert!(!log.contains("received a stop signal"), "{log}");
    assert!(!log.contains("is down"), "{log}");
}

/// Returns the number of a process's controlling terminal; 0 if it has none.
fn terminal_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read /proc/PID/stat");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in brackets");
    // The fields are state, parent, group, session, terminal.
    rest.split(' ').nth(4).expect("a terminal").to_owned()
}

#[test]
fn a_closed_terminal_stops_the_cluster_cleanly() {
    for log_in_file in [true, false] {
        let mut cluster = OnTerminal::start(log_in_file);
        let servers = cluster.servers();
        assert_eq!(servers.len(), 3);
        cluster.terminal.close();
        wait_until("the end of the servers", TIMEOUT, || {
            servers.iter().all(|pid| !process::is_alive(*pid))
        });
        cluster.assert_ends_in_order();
    }
}

/// Returns `count` pairs with values of 1 KiB.
fn kibibytes(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count).map(|n| (format!("key {n}").into_bytes(), vec![b'v'; 1 << 10])).collect()
}

/// Returns the output of `coord status --json` for the coordinator at this port.
#[track_caller]
fn status(port: &str) -> ClusterStatus {
    let ended = programs::run(COORD, ["status", "-p", port, "--json"], "", TIMEOUT).with_code(0);
    serde_json::from_str(&ended.stdout).expect("a status in JSON")
}

#[test]
fn a_recovery_on_a_terminal_shows_its_steps_and_a_bar_with_bytes_and_keys() {
    let mut cluster = OnTerminal::start(true);
    let endpoint = format!("localhost:{}", cluster.port);
    let mut client = Client::open(&endpoint, Options::default()).expect("open a client");
    put_all(&mut client, &kibibytes(50 << 10));
    let victim = status(&cluster.port).servers[1].pid.expect("a pid");
    process::signal(victim, Signal::KILL);
    cluster.terminal.wait_for("server 1 is down");
    for step in 0..=2 {
        cluster.terminal.wait_for(&format!("server 1, step {step}: "));
    }
    // A progress bar and the rest of its line.
    cluster.terminal.wait_for("server 1, step 3 [");
    let bar = cluster.terminal.wait_for("]");
    assert!(bar.len() >= 8 && bar.bytes().all(|b| b == b'#' || b == b'-'), "{bar:?}");
    let numbers = cluster.terminal.wait_for(" keys");
    assert!(numbers.contains(" MiB, ") && numbers.contains(" of "), "{numbers:?}");
    // Step 4 may not appear, because either of the two copies may end first.
    cluster.terminal.wait_for("server 1 is back");
    cluster.terminal.type_in(CTRL_D);
    cluster.terminal.wait_for("stopped");
    assert_eq!(cluster.terminal.await_end(TIMEOUT), Some(0));
    // The log file contains no progress bar.
    let log = cluster.log();
    assert!(log.contains("server 1, step 3: "), "{log}");
    assert!(!log.contains('[') || !log.contains("##"), "{log}");
}

#[test]
fn writing_and_loading_dumps_shows_a_bar_with_servers_and_bytes_on_a_terminal() {
    let mut cluster = OnTerminal::start(true);
    let endpoint = format!("localhost:{}", cluster.port);
    put_all(&mut Client::open(&endpoint, Options::default()).expect("open"), &kibibytes(50 << 10));
    for what in ["dumping", "loading", "dumping"] {
        if what == "loading" {
            let mut command = OnTerminal::command(cluster.dir.path(), true);
            command.arg("--restore").arg(cluster.dir.path());
            cluster.terminal = Terminal::start(command);
        } else {
            cluster.terminal.type_in(CTRL_D);
        }
        cluster.terminal.wait_for(&format!("{what} ["));
        let bar = cluster.terminal.wait_for("] ");
        assert!(bar.bytes().all(|b| b == b'#' || b == b'-'), "{bar:?}");
        let numbers = cluster.terminal.wait_for(" MiB");
        assert!(numbers.contains(" of 3 servers, "), "{numbers:?}");
        if what == "loading" {
            cluster.terminal.wait_for("restored: ");
        } else {
            cluster.terminal.wait_for("stopped");
            assert_eq!(cluster.terminal.await_end(TIMEOUT), Some(0));
        }
    }
    assert!(!cluster.log().contains("##"), "{}", cluster.log());
}

#[test]
fn without_a_terminal_a_recovery_is_reported_in_lines_and_the_status_keeps_its_history() {
    let cluster = Cluster::start();
    put_all(&mut cluster.open(), &kibibytes(5 << 10));
    assert!(cluster.server(1).recoveries.is_empty());
    process::signal(cluster.server_pid(1), Signal::KILL);
    let recovery = wait_for("the end of the recovery", TIMEOUT, || {
        let recovery = cluster.server(1).recoveries.first().cloned();
        recovery.filter(|recovery| recovery.took_ms.is_some())
    });
    let steps: Vec<u8> = recovery.steps.iter().map(|step| step.step).collect();
    assert_eq!((steps.first(), steps.last()), (Some(&0), Some(&5)), "{recovery:?}");
    let took: u64 = recovery.steps.iter().map(|step| step.took_ms.expect("over")).sum();
    let whole = recovery.took_ms.expect("over");
    assert!(took <= whole && whole - took < 10, "the steps do not add up: {recovery:?}");
    let log = cluster.coord_log();
    // Steps 3 and 4 may be missing, because either of the two copies may end first.
    for step in steps {
        assert!(log.contains(&format!("server 1, step {step}: ")), "step {step}:\n{log}");
    }
    let port = cluster.ready.clients_port.to_string();
    let table = programs::run(COORD, ["status", "-p", &port], "", TIMEOUT).with_code(0).stdout;
    assert!(table.contains("recovery of") && table.contains("server 1 "), "{table}");
    cluster.stop();
}

#[test]
fn a_watched_status_is_drawn_in_place_and_ctrl_c_restores_the_cursor() {
    let cluster = Cluster::start();
    let port = cluster.ready.clients_port.to_string();
    for ends_by_key in [true, false] {
        let mut command = Command::new(COORD);
        command.args(["status", "-p", &port, "--watch", "--interval", "0.1"]);
        let mut terminal = Terminal::start(command);
        terminal.wait_for("\x1b[?25l\x1b[2J\x1b[H");
        terminal.wait_for("serving");
        let victim = cluster.server_pid(1);
        process::signal(victim, Signal::KILL);
        // Later frames begin at the same position as the first and overwrite it.
        terminal.wait_for("\x1b[Hcluster");
        terminal.wait_for("recovery of");
        match ends_by_key {
            true => terminal.type_in(CTRL_C),
            false => process::signal(terminal.pid(), Signal::TERM),
        }
        assert_eq!(terminal.await_end(TIMEOUT), Some(0));
        let screen = terminal.screen();
        assert!(screen.ends_with("\x1b[?25h"), "the cursor is not shown again: {screen:?}");
        assert_eq!(screen.matches("\x1b[2J").count(), 1, "the screen was cleared again");
        wait_until("the server to be back", TIMEOUT, || {
            cluster.server(1).recovery_step.is_none() && cluster.server_pid(1) != victim
        });
    }
}

/// A running `coord status --watch` with its output in a file. Dropping it ends the program.
struct Watching {
    child: Child,
    output: std::path::PathBuf,
}

impl Watching {
    #[track_caller]
    fn start(cluster: &Cluster, dir: &Path, flags: &[&str]) -> Watching {
        let output = dir.join("output");
        let port = cluster.ready.clients_port.to_string();
        let mut command = Command::new(COORD);
        command.args(["status", "-p", &port, "--watch", "--interval", "0.1"]).args(flags);
        command.stdin(Stdio::null()).stdout(File::create(&output).expect("create a file"));
        Watching { child: command.spawn().expect("start coord status"), output }
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.output).expect("read the output")
    }

    /// Sends SIGINT and returns everything that was printed.
    #[track_caller]
    fn end(mut self) -> String {
        process::signal(self.child.id(), Signal::INT);
        assert_eq!(programs::wait(&mut self.child, TIMEOUT), Some(Some(0)));
        self.output()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn without_a_terminal_a_watched_status_prints_successive_tables_or_lines_of_json() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let tables = Watching::start(&cluster, dir.path(), &[]);
    wait_until("three tables", TIMEOUT, || tables.output().matches("serving").count() >= 3);
    let text = tables.end();
    assert!(!text.contains('\x1b'), "escapes in a file: {text:?}");
    assert!(text.contains("\n\ncluster "), "{text}");

    let lines = Watching::start(&cluster, dir.path(), &["--json"]);
    wait_until("three lines", TIMEOUT, || lines.output().matches('\n').count() >= 3);
    let text = lines.end();
    for line in text.lines() {
        let status: ClusterStatus = serde_json::from_str(line).expect("a status in every line");
        assert_eq!(status.servers.len(), 3);
    }
}

#[test]
fn a_watch_continues_while_the_coordinator_does_not_respond() {
    let (cluster, dir) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let port = cluster.ready.clients_port.to_string();
    let mut command = Command::new(COORD);
    command.args(["status", "-p", &port, "--watch", "--interval", "0.1"]);
    let mut terminal = Terminal::start(command);
    terminal.wait_for("serving");
    let tables = Watching::start(&cluster, dir.path(), &[]);
    wait_until("a table", TIMEOUT, || tables.output().contains("serving"));
    cluster.stop();
    terminal.wait_for("NO RESPONSE from the coordinator: ");
    terminal.wait_for("the status below is ");
    terminal.type_in(CTRL_C);
    assert_eq!(terminal.await_end(TIMEOUT), Some(0));
    tables.end();
    // Without a first response, the message suggests checking the address.
    let arguments = ["status", "-p", &port, "--watch"];
    let ended = programs::run(COORD, arguments, "", TIMEOUT).with_code(1);
    assert!(ended.stderr.contains("check -h and -p"), "{}", ended.stderr);
}
