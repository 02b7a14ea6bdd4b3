//! One run of a program from its start to its exit.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use crate::poll;

/// Time limit for a short command. It is long because the machine may be busy.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// The number of trailing lines of each log that are printed after a failure.
const SHOWN_LINES: usize = 25;

/// A program's exit code and output.
#[derive(Debug)]
pub struct Ended {
    /// The exit code, or `None` if a signal ended the program.
    pub code: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

impl Ended {
    /// Panics unless the program ended with this code.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Returns the lines of the standard output.
    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }
}

/// Runs a program with this standard input. Kills it if it exceeds the time limit.
///
/// # Errors
/// The program did not start, or it exceeded the limit.
pub fn run(command: &mut Command, input: &str, limit: Duration) -> anyhow::Result<Ended> {
    let program = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
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
            Some(code) => Ok(Ended { code, stdout, stderr }),
            None => bail!("{program} ran longer than {limit:?}\n{stdout}\n{stderr}"),
        }
    })
}

/// Runs a short command with this standard input, and returns its trimmed output.
///
/// # Errors
/// The command did not start, exceeded the time limit, or did not exit with 0.
pub fn check(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let ended = run(command, input, CHECK_LIMIT)?;
    ensure!(ended.code == Some(0), "{command:?}: {}", ended.stderr.trim());
    Ok(ended.stdout.trim().to_owned())
}

fn text(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read a pipe");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child to end and returns its exit code. Returns `None` if the child exceeded the limit and was killed.
pub fn wait(child: &mut Child, limit: Duration) -> Option<Option<i32>> {
    let ended = poll(limit, || child.try_wait().expect("wait for a child"));
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    ended.map(|status| status.code())
}

/// Copies an executable in a separate process. If this process wrote the copy, a child of another thread could inherit
/// the open descriptor for a moment. Executing the copy would then fail with ETXTBSY.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    check(Command::new("cp").arg("-p").args([from, to]), "").map(drop)
}

/// Makes the system send this signal to the program when the thread that started it ends, and so also if this process
/// is killed.
pub fn end_with_this(command: &mut Command, signal: Signal) {
    let set = move || Ok(rustix::process::set_parent_process_death_signal(Some(signal))?);
    // SAFETY: the closure makes one system call with an integer, which is safe between fork and exec.
    unsafe { command.pre_exec(set) };
}

/// Prints the ends of all logs (`*.log`, `*.err`) in this directory.
pub fn show_logs(dir: &Path) {
    let Ok(files) = fs::read_dir(dir) else { return };
    let mut logs: Vec<PathBuf> = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "log" || e == "err"))
        .filter(|path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() > 0))
        .collect();
    logs.sort();
    for log in logs {
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- the end of {}", log.display());
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            eprintln!("    {line}");
        }
    }
}
