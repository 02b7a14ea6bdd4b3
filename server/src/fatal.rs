//! The reasons to end the whole process. Each has its own exit code.
//!
//! A server in which one thread has panicked must not continue with the others. It ends, and the coordinator starts a
//! new process.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kv_protocol::exit_code::ServerExit;

use crate::log::{self, NoLog};
use crate::unix_socket;
use crate::watchdog::Stalled;

/// The maximum time to wait until the last log line is written.
pub(crate) const LAST_LINE: Duration = Duration::from_millis(100);
/// The maximum time to wait until a panic, with its symbolised backtrace, is written to the log.
const LAST_WORDS: Duration = Duration::from_millis(400);

/// The reason why the network engine uring cannot be used, with advice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoUring {
    /// io_uring_setup(2) failed.
    #[error("cannot set up io_uring: {error}; {advice}")]
    Setup {
        /// The system's error.
        error: io::Error,
        /// The remedy.
        advice: String,
    },
    /// An io_uring feature that the engine needs does not work.
    #[error("{reason}; Linux 6.1 or newer is needed, this is {release}")]
    Features {
        /// The attempted operation and the system's error.
        reason: String,
        /// The kernel's release.
        release: String,
    },
    /// The limit on locked memory is too low.
    #[error(
        "cannot lock memory for io_uring: RLIMIT_MEMLOCK is {have} bytes, {need} are needed for --shards \
         {shards}; raise it with `ulimit -l {}` or LimitMEMLOCK= in the unit", need / 1024
    )]
    Memlock {
        /// The limit, in bytes.
        have: u64,
        /// The required limit, in bytes.
        need: u64,
        /// The number of executors.
        shards: u16,
    },
}

impl NoUring {
    /// Creates the error for a feature that does not work on this kernel.
    pub(crate) fn features(reason: String) -> NoUring {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        let release =
            release.map_or_else(|_| "an unknown release".into(), |it| it.trim().to_owned());
        NoUring::Features { reason, release }
    }
}

/// The reason why a server cannot start or continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// The log file cannot be opened.
    #[error(
        "cannot open the log {path}: {error}; check that the directory exists and can be written"
    )]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The cluster's key cannot be read or parsed.
    #[error(
        "cannot get the cluster's key from {path}: {error}; the coordinator passes it, see --key-file"
    )]
    Key {
        /// The file; `-` is standard input.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The network engine uring was requested and cannot be used.
    #[error(
        "cannot use the network engine uring: {0}; alternatively, start with --net auto or --net epoll"
    )]
    Uring(NoUring),
    /// The limit on open files is too low.
    #[error(
        "cannot reserve descriptors: {have} files may be open, {need} are needed for --shards {shards} and \
         a few clients; raise the hard limit with `ulimit -n {need}` or LimitNOFILE= in the unit"
    )]
    OpenFiles {
        /// The limit.
        have: u64,
        /// The required limit.
        need: u64,
        /// The number of executors.
        shards: u16,
    },
    /// A port cannot be listened on.
    #[error("cannot listen on {address} for {purpose}: {error}; {advice}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The use of the port.
        purpose: &'static str,
        /// The system's error.
        error: io::Error,
        /// The remedy.
        advice: String,
    },
    /// The Unix-domain socket for clients cannot be made.
    #[error("cannot listen on the Unix-domain socket {path}: {reason}")]
    UnixSocket {
        /// The path of the socket.
        path: PathBuf,
        /// The error, with advice.
        reason: String,
    },
    /// The name of the coordinator's host cannot be resolved.
    #[error("cannot look up the coordinator's host {host}: {error}; check -h")]
    CoordinatorHost {
        /// The host name.
        host: String,
        /// The resolver's error.
        error: io::Error,
    },
    /// An executor did not start.
    #[error("cannot start the executor of shard {shard}: {reason}")]
    Executor {
        /// The executor's shard.
        shard: u16,
        /// The reason.
        reason: String,
    },
    /// A thread did not start, or another system call failed.
    #[error("cannot {doing}: {error}")]
    System {
        /// The attempted operation.
        doing: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// A dump that this server was to load at the start cannot be loaded.
    #[error("cannot load {path}: {reason}")]
    Load {
        /// The dump.
        path: PathBuf,
        /// The error, with advice.
        reason: String,
    },
    /// The coordinator rejected this server, or the program at its address did not prove that it has the cluster's key.
    #[error("cannot join the cluster of the coordinator at {coordinator}: {reason}")]
    Refused {
        /// The coordinator's address.
        coordinator: SocketAddr,
        /// The coordinator's reason, or the missing proof.
        reason: String,
    },
    /// No coordinator admitted this server in time.
    #[error(
        "no coordinator at {coordinator} admitted this server within {seconds} s; check -h and -m"
    )]
    NoCoordinator {
        /// The coordinator's address.
        coordinator: SocketAddr,
        /// The duration of the attempts, in seconds.
        seconds: u64,
    },
}

impl From<NoLog> for Fatal {
    fn from(reason: NoLog) -> Fatal {
        match reason {
            NoLog::File { path, error } => Fatal::Log { path, error },
            NoLog::Thread(error) => Fatal::System { doing: "start the log's thread", error },
        }
    }
}

impl Fatal {
    /// Returns the exit status of the process for this reason.
    pub fn exit(&self) -> ServerExit {
        match self {
            Fatal::Log { .. } => ServerExit::Log,
            Fatal::Key { .. } => ServerExit::Key,
            Fatal::Uring(NoUring::Memlock { .. }) => ServerExit::Memlock,
            Fatal::Uring(_) => ServerExit::IoUring,
            Fatal::Listen { .. } | Fatal::UnixSocket { .. } => ServerExit::Listen,
            Fatal::CoordinatorHost { .. } => ServerExit::CoordinatorHost,
            Fatal::Executor { .. } => ServerExit::Executor,
            Fatal::System { .. } => ServerExit::System,
            Fatal::Refused { .. } => ServerExit::Refused,
            Fatal::NoCoordinator { .. } => ServerExit::NoCoordinator,
            Fatal::OpenFiles { .. } => ServerExit::OpenFiles,
            Fatal::Load { .. } => ServerExit::Load,
        }
    }

    /// Logs the reason and ends the process, for threads that cannot return an error.
    pub(crate) fn end_process(&self) -> ! {
        tracing::error!("{self}");
        end(self.exit());
    }
}

/// Ends the process after its log is written, or after [`LAST_LINE`]. Removes its Unix-domain socket first.
pub(crate) fn end(exit: ServerExit) -> ! {
    unix_socket::remove();
    log::flush(LAST_LINE);
    std::process::exit(exit.code().into())
}

/// Ends the process at once, without destructors and exit handlers: these might wait for a hung or panicked thread.
fn end_at_once(exit: ServerExit) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(exit.code().into()) }
}

/// Ends the process at once, because one of its threads is hung. No cleanup is done, because the hung thread may hold
/// any lock. For the same reason, a separate thread writes the log line, and this function waits only for a limited
/// time.
pub(crate) fn abort_stalled(stalled: &Stalled) -> ! {
    let stalled = *stalled;
    say_apart(LAST_LINE, move || {
        let seen = stalled.seen_by_the_system();
        tracing::error!(
            "{stalled} ({seen}): the process ends, so that the other holders of its groups take over; check whether \
             the machine is short of memory or processors"
        );
        log::flush(LAST_LINE);
    });
    end_at_once(ServerExit::Stalled)
}

/// Reports a hung thread of a process that must continue, because it holds the only copy of a group.
pub(crate) fn report_stalled(stalled: &Stalled) {
    let stalled = *stalled;
    say_apart(Duration::ZERO, move || {
        let seen = stalled.seen_by_the_system();
        tracing::error!(
            "{stalled} ({seen}): this server holds the only copy of a group, so the process continues; \
             check whether the machine is short of memory or processors"
        );
    });
}

/// Runs `say` on another thread, and waits for it at most for `limit`.
fn say_apart(limit: Duration, say: impl FnOnce() + Send + 'static) {
    let (said, heard) = std::sync::mpsc::channel();
    let speaker = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        say();
        let _ = said.send(());
    });
    if speaker.is_ok() && !limit.is_zero() {
        let _ = heard.recv_timeout(limit);
    }
}

/// Installs the panic hook: a panic on any thread is logged and ends the process. Otherwise one shard could end while
/// the others continue to serve.
pub(crate) fn end_process_on_panic() {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let words = format!("thread {:?} {panic}", thread.name().unwrap_or("without a name"));
        tracing::error!("{words}");
        let trace = std::backtrace::Backtrace::force_capture();
        // Symbolising reads the executable, and standard error may be a file; both may block.
        say_apart(LAST_WORDS, move || {
            let _ = writeln!(io::stderr(), "{words}");
            tracing::error!("backtrace of the panic:\n{trace}");
            log::flush(LAST_WORDS);
        });
        end_at_once(ServerExit::Panicked);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_exit_code() {
        let error = || io::Error::from(io::ErrorKind::Other);
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let reasons = [
            Fatal::Log { path: "x".into(), error: error() },
            Fatal::Key { path: "x".into(), error: error() },
            Fatal::Uring(NoUring::Setup { error: error(), advice: String::new() }),
            Fatal::Uring(NoUring::Memlock { have: 0, need: 1, shards: 1 }),
            Fatal::OpenFiles { have: 0, need: 1, shards: 1 },
            Fatal::Listen { address, purpose: "clients", error: error(), advice: String::new() },
            Fatal::CoordinatorHost { host: "h".into(), error: error() },
            Fatal::Executor { shard: 0, reason: String::new() },
            Fatal::System { doing: "x", error: error() },
            Fatal::Refused { coordinator: address, reason: String::new() },
            Fatal::NoCoordinator { coordinator: address, seconds: 1 },
            Fatal::Load { path: "x".into(), reason: String::new() },
        ];
        let mut exits: Vec<ServerExit> = reasons.iter().map(Fatal::exit).collect();
        exits.sort_unstable_by_key(|exit| exit.code());
        exits.dedup();
        assert_eq!(exits.len(), reasons.len());
        assert!(exits.iter().all(|exit| (10..70).contains(&exit.code())));
    }

    /// The test runs itself once more, as the process that panics.
    #[test]
    fn a_panic_on_any_thread_ends_the_process_with_its_own_code() {
        const CHILD: &str = "KV_SERVER_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            end_process_on_panic();
            let thread = std::thread::spawn(|| panic!("on purpose"));
            let _ = thread.join();
            std::process::exit(0);
        }
        let this_test = "fatal::tests::a_panic_on_any_thread_ends_the_process_with_its_own_code";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this_test, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(ServerExit::Panicked.code().into()), "{child:?}");
    }
}
