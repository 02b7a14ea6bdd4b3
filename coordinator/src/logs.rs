//! The log, and what a person at the terminal is told. Neither is waited for: each has a queue and a thread
//! of its own ([`kv_daemon::queue`]).

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kv_daemon::queue::{LogFile, Queue, StandardError};
use tracing_subscriber::EnvFilter;

use crate::args::Args;
use crate::{Failure, screen};

/// How often a kind of refusal is logged at most.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How long the end of the process waits for what it has said to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The queue of the log, where that is not the screen.
static LOG: OnceLock<Queue> = OnceLock::new();

/// Starts logging: to the file of `-l`, or to standard error, there without times if a person reads.
pub(crate) fn start(args: &Args) -> Result<Console, Failure> {
    let filter = EnvFilter::try_from_env("KV_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        // It would report a log that cannot be written on standard error, and panic where that cannot
        // be written either: a full disk or a closed terminal must not end the process.
        .log_internal_errors(false);
    let failed = |error| Failure::Failed(format!("start the log's thread: {error}"));
    let started = |queue: std::io::Result<Queue>| {
        queue.map_err(failed).inspect(|queue| {
            let _ = LOG.set(queue.clone());
        })
    };
    let screen = if is_terminal { Some(screen::start().map_err(failed)?) } else { None };
    match (&args.log, screen) {
        (Some(path), _) => {
            let is_beside = |dir: &Path| {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                parent.unwrap_or(Path::new(".")).canonicalize().ok() == dir.canonicalize().ok()
            };
            let open = if is_beside(&args.dir) { LogFile::open_own } else { LogFile::open };
            let file = open(path).map_err(|error| {
                let path = path.display();
                Failure::Failed(format!("open the log {path}: {error}; check its directory"))
            })?;
            let queue = started(Queue::start("log", file, || {}))?;
            builder.with_writer(queue).with_target(false).init();
            Ok(Console { is_file: true, beside_log: is_terminal })
        }
        (None, Some(screen)) => {
            builder.with_writer(screen).without_time().with_target(false).init();
            Ok(Console { is_file: false, beside_log: false })
        }
        (None, None) => {
            let queue = started(Queue::start("log", StandardError, || {}))?;
            builder.with_writer(queue).with_target(false).init();
            Ok(Console { is_file: false, beside_log: false })
        }
    }
}

/// Has the log file opened anew by its name.
pub(crate) fn reopen() {
    if let Some(queue) = LOG.get() {
        queue.nudge();
    }
}

/// Waits for what was said to be written; not for ever.
pub(crate) fn flush() {
    screen::flush(LAST_WORDS);
    if let Some(queue) = LOG.get() {
        queue.flush(LAST_WORDS);
    }
}

/// What is worth telling a person: it is logged, and shown on the terminal if the log is a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    is_file: bool,
    beside_log: bool,
}

impl Console {
    /// Says that all goes as it should.
    pub(crate) fn say(self, text: &str) {
        tracing::info!("{text}");
        self.show(text);
    }

    /// Says that something is wrong.
    pub(crate) fn warn(self, text: &str) {
        tracing::warn!("{text}");
        self.show(text);
    }

    /// Logs what the program ends with; where the log is standard error, it is said there anyway.
    pub(crate) fn log(self, failure: &Failure) {
        let (Failure::Usage(message) | Failure::Failed(message)) = failure;
        if self.is_file {
            tracing::error!("{message}");
        }
    }

    /// Whether the log is a file, and not what a person sees.
    pub(crate) fn is_file(self) -> bool {
        self.is_file
    }

    fn show(self, text: &str) {
        if self.beside_log {
            screen::write(format!("{text}\n").as_bytes());
        }
    }
}

/// Counts what strangers do wrong on a port, and logs it once a second at most.
#[derive(Debug)]
pub(crate) struct Refusals {
    port: &'static str,
    total: Cell<u64>,
    logged: Cell<u64>,
    last: Cell<Option<Instant>>,
}

impl Refusals {
    /// For the port called `port` in the log.
    pub(crate) fn new(port: &'static str) -> Refusals {
        Refusals { port, total: Cell::new(0), logged: Cell::new(0), last: Cell::new(None) }
    }

    /// One more.
    pub(crate) fn note(&self, from: impl std::fmt::Display, reason: impl std::fmt::Display) {
        self.total.set(self.total.get() + 1);
        let now = Instant::now();
        let due = self.last.get().is_none_or(|last| now - last >= REFUSAL_LOG_INTERVAL);
        if due {
            let since = self.total.get() - self.logged.get();
            let port = self.port;
            tracing::warn!(
                "refused on the {port} port, from {from}: {reason} ({since} since last said)"
            );
            self.logged.set(self.total.get());
            self.last.set(Some(now));
        }
    }
}
