//! The log, and the messages on the operator's terminal. Neither blocks the driver, because each has its own queue and
//! writer thread ([`kv_daemon::queue`]).

use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kv_daemon::queue::{LogFile, Queue, StandardError};
use tracing_subscriber::EnvFilter;

use crate::args::Args;
use crate::failure::Failure;
use crate::screen;

/// The minimum interval between two log lines about rejections on one port.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// The longest interval between two lines of the same rejection while it continues.
const LONGEST_REFUSAL_PAUSE: Duration = Duration::from_secs(600);

/// The timeout for writing all messages at the end of the process.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The queue of the log; not set if the log goes to a terminal, which has the queue of [`screen`].
static LOG: OnceLock<Queue> = OnceLock::new();

/// Starts logging: to the file of `-l`, or to standard error. On a terminal, the lines have no timestamps.
pub(crate) fn start(args: &Args) -> Result<Console, Failure> {
    let filter = EnvFilter::try_from_env("KV_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        // tracing-subscriber would report a failed write on standard error, and panic if that fails too. A full
        // disk or a closed terminal must not end the process.
        .log_internal_errors(false);
    let failed = |error| Failure::Failed(format!("cannot start the log thread: {error}"));
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
                Failure::Failed(format!("cannot open the log {path}: {error}; check its directory"))
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

/// Reopens the log file by its path.
pub(crate) fn reopen() {
    if let Some(queue) = LOG.get() {
        queue.nudge();
    }
}

/// Waits for all messages to be written, up to a timeout.
pub(crate) fn flush() {
    screen::flush(LAST_WORDS);
    if let Some(queue) = LOG.get() {
        queue.flush(LAST_WORDS);
    }
}

/// The destination of messages for the operator: the log, and also the terminal if the log is a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    is_file: bool,
    beside_log: bool,
}

impl Console {
    /// Reports normal operation.
    pub(crate) fn say(self, text: &str) {
        tracing::info!("{text}");
        self.show(text);
    }

    /// Reports a problem.
    pub(crate) fn warn(self, text: &str) {
        tracing::warn!("{text}");
        self.show(text);
    }

    /// Logs the failure with which the program ends, if the log is a file. If the log goes to standard error, the
    /// failure is printed to it anyway.
    pub(crate) fn log(self, failure: &Failure) {
        let (Failure::Usage(message) | Failure::Failed(message)) = failure;
        if self.is_file {
            tracing::error!("{message}");
        }
    }

    /// Returns whether the log is a file rather than standard error.
    pub(crate) fn is_file(self) -> bool {
        self.is_file
    }

    fn show(self, text: &str) {
        if self.beside_log {
            screen::write(format!("{text}\n").as_bytes());
        }
    }
}

/// A log of the rejections on a port, with at most one line a second. While the same reason repeats, it is logged at
/// intervals that double up to ten minutes.
#[derive(Debug)]
pub(crate) struct Refusals {
    port: &'static str,
    state: RefCell<Refused>,
}

#[derive(Debug)]
struct Refused {
    /// The number of rejections since the last line.
    unsaid: u64,
    /// The time and the reason of the last line.
    last: Option<(Instant, String)>,
    /// The interval after which the same reason is logged again.
    pause: Duration,
}

impl Refusals {
    /// Creates the log of the port called `port`.
    pub(crate) fn new(port: &'static str) -> Refusals {
        let state = Refused { unsaid: 0, last: None, pause: REFUSAL_LOG_INTERVAL };
        Refusals { port, state: RefCell::new(state) }
    }

    /// Counts a rejection, and logs it if a line is due.
    pub(crate) fn note(&self, from: impl std::fmt::Display, reason: impl std::fmt::Display) {
        let reason = reason.to_string();
        if let Some(count) = self.state.borrow_mut().is_due(Instant::now(), &reason) {
            let port = self.port;
            tracing::warn!(
                "rejected on the {port} port, from {from}: {reason} ({count} since the last report)"
            );
        }
    }
}

impl Refused {
    /// Counts a rejection. Returns the number since the last line if a new line is due.
    fn is_due(&mut self, now: Instant, reason: &str) -> Option<u64> {
        self.unsaid += 1;
        let pause = match &self.last {
            None => Duration::ZERO,
            Some((_, last)) if last == reason => self.pause,
            Some(_) => REFUSAL_LOG_INTERVAL,
        };
        let since = self.last.as_ref().map_or(Duration::MAX, |(at, _)| now.duration_since(*at));
        if since < pause {
            return None;
        }
        let is_repeated = self.last.as_ref().is_some_and(|(_, last)| last == reason);
        // A reason that did not occur for long enough starts with short intervals again.
        self.pause = match is_repeated && since < pause * 2 {
            true => (self.pause * 2).min(LONGEST_REFUSAL_PAUSE),
            false => REFUSAL_LOG_INTERVAL,
        };
        self.last = Some((now, reason.to_owned()));
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_rejection_is_logged_rarely_and_a_new_reason_at_once() {
        let mut refused = Refused { unsaid: 0, last: None, pause: REFUSAL_LOG_INTERVAL };
        let start = Instant::now();
        let at = |tenths: u64| start + Duration::from_millis(100 * tenths);
        let eight_hours = 8 * 36_000;
        let said: Vec<u64> =
            (0..eight_hours).filter_map(|n| refused.is_due(at(n), "unknown incarnation")).collect();
        assert!((50..70).contains(&said.len()), "{} lines", said.len());
        assert!(said.iter().sum::<u64>() > eight_hours - 6_001, "the others are counted");
        let other = refused.is_due(at(eight_hours + 10), "another cluster");
        assert!(other.is_some());
        assert_eq!(refused.is_due(at(eight_hours + 11), "another cluster"), None);
        assert_eq!(refused.is_due(at(eight_hours + 20), "another cluster"), Some(2));
    }
}
