//! The triggers of a stop: the end of standard input, SIGINT and SIGTERM. SIGHUP reopens the log.
//!
//! The first trigger stops the cluster in an orderly way, with dumps. Later triggers usually have no further meaning:
//! supervisors and `timeout` send SIGTERM repeatedly, and users repeat Ctrl+C. Only a SIGINT at least a second later
//! means that the operator does not want to wait. It abandons dumps.

use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::time::Duration;

use kv_protocol::Time;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::logs;

/// The time after the first trigger from which a SIGINT means "do not wait".
const SECOND_THOUGHT: Duration = Duration::from_secs(1);

/// The trigger of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Standard input was closed.
    EndOfInput,
    /// SIGINT, as sent by Ctrl+C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::EndOfInput => "standard input has ended",
            Reason::Interrupt => "SIGINT",
            Reason::Terminate => "SIGTERM",
        })
    }
}

/// The action that a trigger calls for, depending on earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Stop the cluster in an orderly way.
    Stop,
    /// Do not wait for the orderly stop any longer.
    DoNotWait,
    /// Continue the stop in progress.
    GoOn,
}

/// The start of the current stop, if there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stopping {
    since: Option<Time>,
}

impl Stopping {
    /// Returns whether a stop has begun.
    pub(crate) fn has_begun(self) -> bool {
        self.since.is_some()
    }

    /// Records that a stop begins, for any reason.
    pub(crate) fn begin(&mut self, now: Time) {
        self.since.get_or_insert(now);
    }

    /// Handles a trigger, and returns the action that it calls for.
    pub(crate) fn wish(&mut self, reason: Reason, now: Time) -> Wish {
        match self.since {
            None => {
                self.begin(now);
                Wish::Stop
            }
            Some(since) if reason == Reason::Interrupt && now.since(since) >= SECOND_THOUGHT => {
                Wish::DoNotWait
            }
            Some(_) => Wish::GoOn,
        }
    }
}

/// The maximum number of queued triggers; further ones are dropped.
const MAX_WAITING: usize = 8;

/// Listens for all triggers of a stop, and for SIGHUP. A daemon ignores standard input.
pub(crate) fn listen(daemon: bool) -> Result<mpsc::Receiver<Reason>, Failure> {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    let failed = |name: &str, error| Failure::Failed(format!("cannot listen for {name}: {error}"));
    for (reason, kind) in
        [(Reason::Interrupt, SignalKind::interrupt()), (Reason::Terminate, SignalKind::terminate())]
    {
        let mut signals = signal(kind).map_err(|error| failed(&reason.to_string(), error))?;
        let sender = sender.clone();
        tokio::task::spawn_local(async move {
            while signals.recv().await.is_some() {
                let _ = sender.try_send(reason);
            }
        });
    }
    let mut hang_ups = signal(SignalKind::hangup()).map_err(|error| failed("SIGHUP", error))?;
    tokio::task::spawn_local(async move {
        while hang_ups.recv().await.is_some() {
            logs::reopen();
        }
    });
    if !daemon {
        read_input(sender)?;
    }
    Ok(receiver)
}

/// Returns whether standard input is /dev/null, as under a supervisor or in a script without a terminal. (Before
/// `main`, the runtime opens /dev/null in place of a closed standard input.)
pub(crate) fn input_is_null() -> bool {
    let device = |metadata: std::fs::Metadata| {
        metadata.file_type().is_char_device().then(|| metadata.rdev())
    };
    let null = std::fs::metadata("/dev/null").ok().and_then(device);
    let input = rustix::fs::fstat(std::io::stdin()).ok();
    null.is_some_and(|null| {
        input.is_some_and(|input| {
            rustix::fs::FileType::from_raw_mode(input.st_mode)
                == rustix::fs::FileType::CharacterDevice
                && input.st_rdev == null
        })
    })
}

/// Waits on a separate thread for the end of standard input; a read error counts as the end. A blocking read cannot be
/// canceled, but a thread does not prevent the process from ending.
fn read_input(sender: mpsc::Sender<Reason>) -> Result<(), Failure> {
    let read = move || {
        let mut input = std::io::stdin().lock();
        let mut ignored = [0; 4096];
        loop {
            match input.read(&mut ignored) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let _ = sender.blocking_send(Reason::EndOfInput);
    };
    std::thread::Builder::new().name("stdin".into()).spawn(read).map(drop).map_err(|error| {
        Failure::Failed(format!("cannot start the thread that reads input: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(7_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn the_first_trigger_of_any_kind_stops_in_order() {
        for reason in [Reason::EndOfInput, Reason::Interrupt, Reason::Terminate] {
            let mut stopping = Stopping::default();
            assert!(!stopping.has_begun());
            assert_eq!(stopping.wish(reason, at(0)), Wish::Stop);
            assert!(stopping.has_begun());
        }
    }

    #[test]
    fn only_a_sigint_at_least_a_second_later_ends_the_wait() {
        for first in [Reason::EndOfInput, Reason::Interrupt, Reason::Terminate] {
            let mut stopping = Stopping::default();
            stopping.wish(first, at(0));
            for again in [Reason::EndOfInput, Reason::Terminate] {
                for millis in [0, 1, 999, 1_000, 60_000] {
                    assert_eq!(stopping.wish(again, at(millis)), Wish::GoOn, "{again} {millis}");
                }
            }
            assert_eq!(stopping.wish(Reason::Interrupt, at(0)), Wish::GoOn);
            assert_eq!(stopping.wish(Reason::Interrupt, at(999)), Wish::GoOn);
            assert_eq!(stopping.wish(Reason::Interrupt, at(1_000)), Wish::DoNotWait);
            assert_eq!(stopping.wish(Reason::Interrupt, at(9_000)), Wish::DoNotWait);
        }
    }

    #[test]
    fn a_failed_start_counts_as_the_first_trigger() {
        let mut stopping = Stopping::default();
        stopping.begin(at(0));
        stopping.begin(at(500));
        assert_eq!(stopping.wish(Reason::Terminate, at(600)), Wish::GoOn);
        assert_eq!(stopping.wish(Reason::Interrupt, at(1_000)), Wish::DoNotWait);
    }
}
