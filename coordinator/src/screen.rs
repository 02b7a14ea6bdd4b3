//! The lines at the bottom of a person's terminal that are drawn over and over, and everything else
//! that goes to standard error above them.

use std::io::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// There is one standard error, so there is one of these. One bar of as many lines as needed: unlike
/// several bars it never minds a terminal that is gone.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn bar() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Columns of the terminal; `None`: standard error is none.
pub(crate) fn width() -> Option<usize> {
    let terminal = console::Term::stderr();
    let (_, columns) = terminal.is_term().then(|| terminal.size())?;
    Some(usize::from(columns))
}

/// Draws these lines instead of those before. Whether anybody can see them.
pub(crate) fn show(lines: &[String]) -> bool {
    let mut bar = bar();
    if lines.is_empty() {
        if let Some(bar) = bar.take() {
            bar.finish_and_clear();
        }
        return width().is_some();
    }
    let bar = bar.get_or_insert_with(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.with_style(ProgressStyle::with_template("{msg}").expect("a template"))
    });
    bar.set_message(lines.join("\n"));
    !bar.is_hidden()
}

/// Writes to standard error, above the lines if there are any.
pub(crate) fn write(bytes: &[u8]) -> io::Result<()> {
    match &*bar() {
        Some(bar) => bar.suspend(|| io::stderr().write_all(bytes)),
        None => io::stderr().write_all(bytes),
    }
}

/// [`write`] for whoever wants a writer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above;

impl io::Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
