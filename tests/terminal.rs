//! The programs on a real (pseudo-)terminal, as a person meets them.

mod common;

use std::path::Path;
use std::process::Command;

use common::process::{self, Signal};
use common::programs::{CLIENT, COORD, SERVER};
use common::terminal::{CTRL_C, CTRL_D, Terminal};
use common::{Cluster, PATIENCE, wait_until};

const PROMPT: &str = "kv> ";
const ENTER: &str = "\r";
const UP: &str = "\x1b[A";
const LEFT: &str = "\x1b[D";
const BACKSPACE: &str = "\x7f";

/// The client on a terminal, with its state in this directory.
fn client_command(cluster: &Cluster, state: &Path) -> Command {
    let mut command = Command::new(CLIENT);
    command.args(["-h", "127.0.0.1", "-p", &cluster.ready.clients_port.to_string()]);
    command.env("XDG_STATE_HOME", state);
    command
}

/// The client, ready for its first line.
#[track_caller]
fn open_client(cluster: &Cluster, state: &Path) -> Terminal {
    let mut terminal = Terminal::start(client_command(cluster, state));
    terminal.wait_for(PROMPT);
    terminal
}

/// Types a line and waits for its answer and the next prompt.
#[track_caller]
fn ask(terminal: &mut Terminal, keys: &str, answer: &str) {
    terminal.type_in(keys);
    terminal.type_in(ENTER);
    terminal.wait_for(answer);
    terminal.wait_for(PROMPT);
}

#[track_caller]
fn leave(mut terminal: Terminal) {
    terminal.type_in(CTRL_D);
    assert_eq!(terminal.await_end(PATIENCE), Some(0));
}

#[test]
fn the_client_greets_prompts_answers_and_ends_with_zero_at_ctrl_d() {
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
    ask(&mut terminal, "nonsense", "\"nonsense\" is no operation");
    // Numbers of lines are for files: whoever has typed the line sees it.
    assert!(!terminal.screen().contains("line 4"), "{}", terminal.screen());
    // What fails is no reason to end, nor to end with failure: a person has seen it.
    ask(&mut terminal, "G \"b\"", "key \"b\" not found");
    leave(terminal);
}

#[test]
fn words_of_leave_end_the_client_with_zero() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    for word in ["quit", "exit", " q "] {
        let mut terminal = open_client(&cluster, state.path());
        terminal.type_in(word);
        terminal.type_in(ENTER);
        assert_eq!(terminal.await_end(PATIENCE), Some(0), "{word}");
    }
}

#[test]
fn a_line_is_edited_before_it_is_done() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    let keys = format!("P \"a\" \"12\"{LEFT}{BACKSPACE}3");
    ask(&mut terminal, &keys, "value[\"a\"] <- \"13\"");
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
fn lines_are_remembered_from_one_run_to_the_next() {
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

#[test]
fn a_terminal_that_is_closed_ends_the_client() {
    let (cluster, state) = (Cluster::start(), tempfile::tempdir().expect("make a directory"));
    let mut terminal = open_client(&cluster, state.path());
    terminal.close();
    terminal.await_end(PATIENCE);
}

/// A coordinator with three servers on a terminal. It ends what it started when it is dropped.
struct OnTerminal {
    terminal: Terminal,
    dir: tempfile::TempDir,
    port: String,
}

impl OnTerminal {
    /// Starts it with its log in a file or on the terminal, and puts 500 entries in.
    #[track_caller]
    fn start(log_in_file: bool) -> OnTerminal {
        let dir = tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory");
        let file = dir.path().join("cluster.txt");
        let text = format!("3\n{}", "localhost 0 0 0\n".repeat(3));
        std::fs::write(&file, text).expect("write the cluster file");
        let mut command = Command::new(COORD);
        command.args(["--server-binary", SERVER, "--shards", "1"]);
        command.arg("-C").arg(file).arg("--dir").arg(dir.path());
        if log_in_file {
            command.arg("-l").arg(dir.path().join("coord.log"));
        }
        let mut terminal = Terminal::start(command);
        terminal.wait_for("client -h localhost -p ");
        let port = terminal.wait_for("\r\n");
        let started = OnTerminal { terminal, dir, port };
        let operations: String = (0..500).map(|n| format!("P \"key {n}\" \"{n}\"\n")).collect();
        let arguments = ["-h", "localhost", "-p", &started.port];
        common::programs::run(CLIENT, arguments, &operations, PATIENCE).with_code(0);
        started
    }

    fn servers(&self) -> Vec<u32> {
        process::running_in(self.dir.path())
    }

    /// Waits for the end and looks at what is left: no process, and complete dumps.
    #[track_caller]
    fn assert_ends_in_order(&mut self) {
        assert_eq!(self.terminal.await_end(PATIENCE), Some(0));
        assert!(self.servers().is_empty(), "servers outlived their coordinator");
        let mut entries = 0;
        for id in 0..3 {
            let dump = |id: usize, role| {
                common::cluster::read_dump(&self.dir.path().join(format!("server_{id}.{role}")))
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
            common::cluster::show_logs(self.dir.path());
            process::signal(self.terminal.pid(), Signal::KILL);
        }
        process::end_all_in(self.dir.path());
    }
}

#[test]
fn ctrl_d_at_the_coordinator_stops_the_cluster_in_order() {
    for log_in_file in [true, false] {
        let mut cluster = OnTerminal::start(log_in_file);
        cluster.terminal.type_in("a line that nobody reads\n");
        cluster.terminal.type_in(CTRL_D);
        cluster.terminal.wait_for("stopping the cluster");
        cluster.terminal.wait_for("stopped");
        cluster.assert_ends_in_order();
    }
}

#[test]
fn ctrl_c_at_the_coordinator_stops_the_cluster_in_order_and_reaches_no_server() {
    let mut cluster = OnTerminal::start(true);
    for server in cluster.servers() {
        assert_eq!(terminal_of(server), "0", "server {server} has a terminal");
    }
    cluster.terminal.type_in(CTRL_C);
    cluster.terminal.wait_for("SIGINT: stopping the cluster");
    cluster.assert_ends_in_order();
    let log = cluster.log();
    // That is what a server asks for when a signal reaches it.
    assert!(!log.contains("was told to stop"), "{log}");
    assert!(!log.contains("is down"), "{log}");
}

/// The number of a process's controlling terminal; 0 if it has none.
fn terminal_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read /proc/PID/stat");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in brackets");
    // State, parent, group, session, terminal.
    rest.split(' ').nth(4).expect("a terminal").to_owned()
}

#[test]
fn a_terminal_that_is_closed_stops_the_cluster_in_order() {
    for log_in_file in [true, false] {
        let mut cluster = OnTerminal::start(log_in_file);
        let servers = cluster.servers();
        assert_eq!(servers.len(), 3);
        cluster.terminal.close();
        wait_until("the end of the servers", PATIENCE, || {
            servers.iter().all(|pid| !process::is_alive(*pid))
        });
        cluster.assert_ends_in_order();
    }
}
