//! One run of `coord` or `client` from its start to its exit.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::poll;

pub(crate) const COORD: &str = env!("CARGO_BIN_EXE_coord");
pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_server");
pub(crate) const CLIENT: &str = env!("CARGO_BIN_EXE_client");
pub(crate) const KV_BENCH: &str = env!("CARGO_BIN_EXE_kv-bench");

/// Copies the server's executable, by a process of its own. While this one had the copy open for writing, another test
/// could start a process that has it open too for a moment; then the copy cannot be executed (ETXTBSY).
#[track_caller]
pub(crate) fn copy_server(to: &Path) {
    let copied = Command::new("cp").arg(SERVER).arg(to).status().expect("run cp");
    assert!(copied.success(), "copy the server to {}", to.display());
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; `None`: a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Fails unless the program ended with this code.
    #[track_caller]
    pub(crate) fn with_code(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    pub(crate) fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }
}

/// Runs a program with this standard input. One that does not end in time is killed and fails.
#[track_caller]
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
    input: &str,
    limit: Duration,
) -> Ended {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, input, limit)
}

/// The same with a command that is more than a program and its arguments.
#[track_caller]
pub(crate) fn finish(mut command: Command, input: &str, limit: Duration) -> Ended {
    let program = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    let stdin = child.stdin.take().expect("stdin is a pipe");
    let stdout = child.stdout.take().expect("stdout is a pipe");
    let stderr = child.stderr.take().expect("stderr is a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut stdin = stdin;
            // A program may end without reading its input.
            let _ = stdin.write_all(input.as_bytes());
        });
        let stdout = scope.spawn(move || text(stdout));
        let stderr = scope.spawn(move || text(stderr));
        let code = wait(&mut child, limit);
        let (stdout, stderr) = (stdout.join().expect("joined"), stderr.join().expect("joined"));
        match code {
            Some(code) => Ended { code, stdout, stderr },
            None => panic!("{program} ran longer than {limit:?}\n{stdout}\n{stderr}"),
        }
    })
}

fn text(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read a pipe");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end of a child; `None` if it had to be killed.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<Option<i32>> {
    let ended = poll(limit, || child.try_wait().expect("wait for a child"));
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    ended.map(|status| status.code())
}

/// Copies an executable, by another process: a descriptor that this one had open for writing would be in
/// every child that another test starts at that moment, and the file be busy.
#[track_caller]
pub(crate) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-p").args([from, to]).status().expect("start cp");
    assert!(status.success(), "copy {}", from.display());
}
