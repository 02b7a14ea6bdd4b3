//! The log, and what a person at the terminal is told. Neither is waited for: each has a queue and a thread
//! of its own ([`kv_daemon::queue`]).

use std::cell::RefCell;
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
/// The longest time between two lines of the same refusal, for as long as it goes on.
const LONGEST_REFUSAL_PAUSE: Duration = Duration::from_secs(600);

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

/// Counts what strangers do wrong on a port, and logs it once a second at most; the same reason after pauses that
/// double up to ten minutes, for as long as it goes on.
#[derive(Debug)]
pub(crate) struct Refusals {
    port: &'static str,
    state: RefCell<Refused>,
}

#[derive(Debug)]
struct Refused {
    /// How often since it was last said.
    unsaid: u64,
    /// When it was last said, and why.
    last: Option<(Instant, String)>,
    /// The same reason is said again after this.
    pause: Duration,
}

impl Refusals {
    /// For the port called `port` in the log.
    pub(crate) fn new(port: &'static str) -> Refusals {
        let state = Refused { unsaid: 0, last: None, pause: REFUSAL_LOG_INTERVAL };
        Refusals { port, state: RefCell::new(state) }
    }

    /// One more.
    pub(crate) fn note(&self, from: impl std::fmt::Display, reason: impl std::fmt::Display) {
        let reason = reason.to_string();
        if let Some(count) = self.state.borrow_mut().is_due(Instant::now(), &reason) {
            let port = self.port;
            tracing::warn!(
                "refused on the {port} port, from {from}: {reason} ({count} since last said)"
            );
        }
    }
}

impl Refused {
    /// Counts one, and returns how many there were if that is to be said now.
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
        // What stopped for long enough is news when it begins again.
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
    fn hours_of_the_same_refusal_are_a_few_lines_and_another_one_is_told_at_once() {
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
