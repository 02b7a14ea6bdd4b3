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

/// Copies the server's executable in a separate process. If this process had the copy open for
/// writing, a child started by another test could inherit the descriptor for a moment. Executing
/// the copy would then fail with ETXTBSY.
#[track_caller]
pub(crate) fn copy_server(to: &Path) {
    let copied = Command::new("cp").arg(SERVER).arg(to).status().expect("run cp");
    assert!(copied.success(), "copy the server to {}", to.display());
}

/// A program's exit code and output.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code. `None`: a signal ended the program.
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

/// Runs a program with this standard input. Kills it and fails if it exceeds the time limit.
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

/// Same as [`run`] for a command that has more than arguments set.
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
            // A program may exit without reading its input.
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

/// Waits for a child to end. `None`: it exceeded the limit and was killed.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<Option<i32>> {
    let ended = poll(limit, || child.try_wait().expect("wait for a child"));
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    ended.map(|status| status.code())
}

/// Copies an executable in a separate process. A descriptor that this process had open for writing
/// could be inherited by a child that another test starts, and the file would be busy.
#[track_caller]
pub(crate) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-p").args([from, to]).status().expect("start cp");
    assert!(status.success(), "copy {}", from.display());
}
