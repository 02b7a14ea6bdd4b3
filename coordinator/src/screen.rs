//! The status lines at the bottom of a terminal, redrawn in place, with all other standard error output above them.
//! A terminal may be stopped (Ctrl+S) or slow. Therefore one thread writes to it, and no other thread waits for it.

use std::io::{self, Write as _};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kv_daemon::queue::{Queue, Sink};

/// The queue of the terminal; not set if standard error is not a terminal.
static QUEUE: OnceLock<Queue> = OnceLock::new();
/// The lines currently at the bottom.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn lines() -> MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that writes to the terminal.
pub(crate) fn start() -> io::Result<Queue> {
    let queue = Queue::start("screen", Screen { bar: None }, || {})?;
    let _ = QUEUE.set(queue.clone());
    Ok(queue)
}

/// Returns the width of the terminal in columns, or `None` if standard error is not a terminal.
pub(crate) fn width() -> Option<usize> {
    let terminal = console::Term::stderr();
    let (_, columns) = terminal.is_term().then(|| terminal.size())?;
    Some(usize::from(columns))
}

/// Replaces the lines at the bottom. Returns whether they are shown on a terminal.
pub(crate) fn show(new: &[String]) -> bool {
    let Some(queue) = QUEUE.get() else { return false };
    let before = std::mem::replace(&mut *lines(), new.to_vec());
    if before != new {
        queue.nudge();
    }
    true
}

/// Writes to the terminal, above the lines at the bottom.
pub(crate) fn write(bytes: &[u8]) {
    if let Some(queue) = QUEUE.get() {
        queue.push(bytes, true);
    }
}

/// Waits until all queued output is written, but at most for `limit`.
pub(crate) fn flush(limit: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.flush(limit);
    }
}

/// The terminal. All status lines form one bar, because several bars would fail on a terminal that has been closed.
struct Screen {
    bar: Option<ProgressBar>,
}

impl Sink for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &self.bar {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes)),
            None => io::stderr().write_all(bytes),
        }
    }

    fn nudged(&mut self) -> io::Result<()> {
        let lines = lines().clone();
        if lines.is_empty() {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            return Ok(());
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.with_style(ProgressStyle::with_template("{msg}").expect("a template"))
        });
        bar.set_message(lines.join("\n"));
        Ok(())
    }
}
