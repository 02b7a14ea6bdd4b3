//! What stops the cluster: the end of standard input, SIGINT, SIGTERM, SIGHUP.

use std::io::Read as _;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::Failure;

/// Why the cluster is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nobody holds standard input open any more.
    EndOfInput,
    /// This signal.
    Signal(&'static str),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::EndOfInput => f.write_str("standard input has ended"),
            Reason::Signal(name) => f.write_str(name),
        }
    }
}

/// Reasons that wait to be looked at; a person who presses Ctrl+C more often is not heard more often.
const MAX_WAITING: usize = 8;

/// Listens for all reasons to stop. A daemon ignores standard input and SIGHUP.
pub(crate) fn listen(daemon: bool) -> Result<mpsc::Receiver<Reason>, Failure> {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    for (name, kind, heeded) in [
        ("SIGINT", SignalKind::interrupt(), true),
        ("SIGTERM", SignalKind::terminate(), true),
        ("SIGHUP", SignalKind::hangup(), !daemon),
    ] {
        let mut signals =
            signal(kind).map_err(|error| Failure::Failed(format!("listen for {name}: {error}")))?;
        let sender = sender.clone();
        tokio::task::spawn_local(async move {
            while signals.recv().await.is_some() {
                if heeded {
                    let _ = sender.try_send(Reason::Signal(name));
                }
            }
        });
    }
    if !daemon {
        read_input(sender)?;
    }
    Ok(receiver)
}

/// Waits for the end of standard input on a thread of its own: a blocking read cannot be cancelled,
/// and a thread does not keep the process from ending.
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
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(read)
        .map(drop)
        .map_err(|error| Failure::Failed(format!("start the thread that reads input: {error}")))
}
