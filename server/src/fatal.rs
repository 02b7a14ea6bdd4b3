//! Reasons to stop the whole process, each with its own exit code.
//!
//! A server whose invariant is broken must not go on in part: the coordinator brings a fresh one.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kv_protocol::exit_code::ServerExit;

use crate::log;
use crate::watchdog::Stalled;

/// How long the log may take for the line that says so.
pub(crate) const LAST_LINE: Duration = Duration::from_millis(100);
/// How long it may take for a panic, with names for all that was called.
const LAST_WORDS: Duration = Duration::from_millis(400);

/// Why the network engine uring cannot be used, and what allows it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoUring {
    /// The kernel refuses io_uring.
    #[error("set up io_uring: {error}; {advice}")]
    Setup {
        /// What the system said.
        error: io::Error,
        /// What to do about it.
        advice: String,
    },
    /// Something that the engine needs of io_uring does not work.
    #[error("{reason}; Linux 6.1 or newer is needed, this is {release}")]
    Features {
        /// What was tried, and what the system said.
        reason: String,
        /// The kernel's release.
        release: String,
    },
    /// Too little memory may be locked.
    #[error(
        "lock memory for io_uring: RLIMIT_MEMLOCK is {have} bytes, {need} are needed for --shards \
         {shards}; raise it with `ulimit -l {}` or LimitMEMLOCK= in the unit", need / 1024
    )]
    Memlock {
        /// The limit.
        have: u64,
        /// What is needed.
        need: u64,
        /// For how many executors.
        shards: u16,
    },
}

impl NoUring {
    /// Something does not work on this kernel.
    pub(crate) fn features(reason: String) -> NoUring {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        let release =
            release.map_or_else(|_| "one that does not say".into(), |it| it.trim().to_owned());
        NoUring::Features { reason, release }
    }
}

/// Why a server cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// The log file cannot be opened.
    #[error("open the log {path}: {error}; check that the directory exists and can be written")]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The cluster's key cannot be read.
    #[error(
        "read the cluster's key from {path}: {error}; the coordinator passes it, see --key-file"
    )]
    Key {
        /// The file, `-` for standard input.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The network engine uring was asked for and cannot be used.
    #[error("start the network engine uring: {0}; or start with --net auto or --net epoll")]
    Uring(NoUring),
    /// Too few files may be open.
    #[error(
        "reserve descriptors: {have} files may be open, {need} are needed for --shards {shards} and \
         a few clients; raise the hard limit with `ulimit -n {need}` or LimitNOFILE= in the unit"
    )]
    OpenFiles {
        /// The limit.
        have: u64,
        /// What is needed.
        need: u64,
        /// For how many executors.
        shards: u16,
    },
    /// A port cannot be listened on.
    #[error("listen on {address} for {purpose}: {error}; {advice}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// For whom.
        purpose: &'static str,
        /// What the system said.
        error: io::Error,
        /// What to do about it.
        advice: String,
    },
    /// The coordinator's host has no address.
    #[error("look up the coordinator's host {host}: {error}; check -h")]
    CoordinatorHost {
        /// The name.
        host: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// An executor did not start.
    #[error("start the executor of shard {shard}: {reason}")]
    Executor {
        /// Its shard.
        shard: u16,
        /// What was said.
        reason: String,
    },
    /// A thread did not start, or another of the system's services failed at the start.
    #[error("{doing}: {error}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A dump that this server was to begin with cannot be loaded.
    #[error("load {path}: {reason}")]
    Load {
        /// The dump.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// The coordinator does not want this server.
    #[error("the coordinator at {coordinator} refused this server: {reason}")]
    Refused {
        /// Where it was asked.
        coordinator: SocketAddr,
        /// Its words.
        reason: String,
    },
    /// The coordinator never answered.
    #[error("no coordinator answered at {coordinator} for {seconds} s; check -h and -m")]
    NoCoordinator {
        /// Where it was looked for.
        coordinator: SocketAddr,
        /// For how long.
        seconds: u64,
    },
}

impl Fatal {
    /// How the process ends for it.
    pub fn exit(&self) -> ServerExit {
        match self {
            Fatal::Log { .. } => ServerExit::Log,
            Fatal::Key { .. } => ServerExit::Key,
            Fatal::Uring(NoUring::Memlock { .. }) => ServerExit::Memlock,
            Fatal::Uring(_) => ServerExit::IoUring,
            Fatal::Listen { .. } => ServerExit::Listen,
            Fatal::CoordinatorHost { .. } => ServerExit::CoordinatorHost,
            Fatal::Executor { .. } => ServerExit::Executor,
            Fatal::System { .. } => ServerExit::System,
            Fatal::Refused { .. } => ServerExit::Refused,
            Fatal::NoCoordinator { .. } => ServerExit::NoCoordinator,
            Fatal::OpenFiles { .. } => ServerExit::OpenFiles,
            Fatal::Load { .. } => ServerExit::Load,
        }
    }

    /// Logs the reason and ends the process: for threads that have nobody to report to.
    pub(crate) fn end_process(&self) -> ! {
        tracing::error!("{self}");
        end(self.exit());
    }
}

/// Ends the process in order.
pub(crate) fn end(exit: ServerExit) -> ! {
    log::flush(LAST_LINE);
    std::process::exit(exit.code().into())
}

/// Ends the process at once, passing over destructors and exit handlers: they might wait for what
/// stands or has panicked.
fn end_at_once(exit: ServerExit) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(exit.code().into()) }
}

/// Ends the process at once, because a part of it stands. Nothing is tidied up: what stands may hold any
/// lock, so even the log is left to a thread that need not come to an end.
pub(crate) fn abort_stalled(stalled: &Stalled) -> ! {
    let stalled = *stalled;
    say_apart(LAST_LINE, move || {
        let seen = stalled.seen_by_the_system();
        tracing::error!(
            "{stalled} ({seen}): the process ends, so that its other holders take over; was the machine \
             short of memory or processors?"
        );
        log::flush(LAST_LINE);
    });
    end_at_once(ServerExit::Stalled)
}

/// Reports a part that stands in a process that must go on, because nobody else holds what it holds.
pub(crate) fn report_stalled(stalled: &Stalled) {
    let stalled = *stalled;
    say_apart(Duration::ZERO, move || {
        let seen = stalled.seen_by_the_system();
        tracing::error!(
            "{stalled} ({seen}): this server holds the only copy of a group, so the process goes on; is \
             the machine short of memory or processors?"
        );
    });
}

/// Lets another thread say something, and waits for it so long.
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

/// From now on a panic on any thread is logged and ends the process: one shard must not die while
/// its siblings go on serving.
pub(crate) fn end_process_on_panic() {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let words = format!("thread {:?} {panic}", thread.name().unwrap_or("without a name"));
        tracing::error!("{words}");
        let trace = std::backtrace::Backtrace::force_capture();
        // Names of functions are read from the executable, and standard error is a file too.
        say_apart(LAST_WORDS, move || {
            let _ = writeln!(io::stderr(), "{words}");
            tracing::error!("it was called by:\n{trace}");
            log::flush(LAST_WORDS);
        });
        end_at_once(ServerExit::Panicked);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_code_of_its_own() {
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

    /// The test runs itself once more, as the process that is to end.
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
