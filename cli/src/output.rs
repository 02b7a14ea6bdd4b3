//! Output of results to standard output and of errors to standard error. If both are one terminal, they appear in the
//! order of the lines.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::scan::Places;
use super::task::{End, Response};

const BUFFER_BYTES: usize = 64 << 10;
/// The time after which a line that lists all keys gets a progress bar.
const BAR_AFTER: Duration = Duration::from_millis(500);

/// The output of the program; see the module documentation.
pub(super) struct Output {
    responses: BufWriter<Box<dyn Write>>,
    errors: Box<dyn Write>,
    /// True if errors begin with their line number.
    has_numbers: bool,
    progress: Option<ProgressBar>,
    /// True if standard error is a terminal.
    may_show_bars: bool,
    /// The line that lists all keys, while it runs.
    listing: Option<Listing>,
    has_failed: bool,
    /// Lines that were not tried and not yet reported.
    not_tried: Option<NotTried>,
}

/// A line that lists all keys: the time of its first part, and its progress bar.
#[derive(Debug)]
struct Listing {
    begun: Instant,
    bar: Option<ProgressBar>,
}

/// A range of consecutive lines that were not tried.
#[derive(Clone, Copy, Debug)]
struct NotTried {
    first: u64,
    last: u64,
    waited: Duration,
}

impl Output {
    pub(super) fn standard() -> Output {
        let may_show_bars = io::stderr().is_terminal();
        Output { may_show_bars, ..Output::new(Box::new(io::stdout()), Box::new(io::stderr())) }
    }

    /// Creates the output of a prompt, at which errors need no line number.
    pub(super) fn terminal() -> Output {
        Output { has_numbers: false, ..Output::standard() }
    }

    pub(super) fn new(responses: Box<dyn Write>, errors: Box<dyn Write>) -> Output {
        let responses = BufWriter::with_capacity(BUFFER_BYTES, responses);
        Output {
            responses,
            errors,
            has_numbers: true,
            progress: None,
            may_show_bars: false,
            listing: None,
            has_failed: false,
            not_tried: None,
        }
    }

    /// Sets a progress bar, which is hidden while a message is written to standard error.
    pub(super) fn set_progress(&mut self, bar: ProgressBar) {
        self.progress = Some(bar);
    }

    /// Sets whether later errors begin with their line number.
    pub(super) fn set_numbers(&mut self, has_numbers: bool) {
        self.has_numbers = has_numbers;
    }

    /// Returns whether any line failed.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Writes the output of a line, or joins it to the report of lines that were not tried.
    ///
    /// # Errors
    /// Standard output cannot be written. Errors of standard error are ignored.
    pub(super) fn give(&mut self, response: &Response) -> io::Result<()> {
        self.has_failed |= !matches!(response.end, End::Done | End::Part(_));
        if let End::Part(places) = response.end {
            return self.give_part(&response.text, places);
        }
        self.listing = None;
        match response.end {
            End::Part(_) => Ok(()),
            End::NotTried { first, waited } => {
                let first = self.not_tried.map_or(first, |before| before.first);
                self.not_tried = Some(NotTried { first, last: response.line, waited });
                Ok(())
            }
            End::Done | End::Negative => {
                self.report_not_tried()?;
                self.write_lines(&response.text)
            }
            End::Error => {
                self.report_not_tried()?;
                self.report(&match self.has_numbers {
                    true => format!("line {}: {}\n", response.line, response.text),
                    false => format!("{}\n", response.text),
                })
            }
        }
    }

    /// Writes lines without the last line end; nothing if there is no line.
    fn write_lines(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.responses.write_all(text.as_bytes())?;
        self.responses.write_all(b"\n")
    }

    /// Writes a part of the output of a line that lists all keys, and shows its progress if that takes long.
    fn give_part(&mut self, text: &str, places: Places) -> io::Result<()> {
        self.report_not_tried()?;
        let may_show_bars = self.may_show_bars && self.progress.is_none();
        let listing =
            self.listing.get_or_insert_with(|| Listing { begun: Instant::now(), bar: None });
        if may_show_bars && listing.bar.is_none() && listing.begun.elapsed() >= BAR_AFTER {
            listing.bar = Some(bar_of(places));
        }
        match listing.bar.clone() {
            None => self.write_lines(text),
            Some(bar) => {
                bar.set_position(places.done.into());
                // If both outputs are one terminal, the lines appear above the bar.
                bar.suspend(|| {
                    self.write_lines(text)?;
                    self.responses.flush()
                })
            }
        }
    }

    /// Flushes everything given so far.
    ///
    /// # Errors
    /// As [`Output::give`].
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.report_not_tried()?;
        self.responses.flush()
    }

    /// Reports consecutive lines that were not tried in one message.
    fn report_not_tried(&mut self) -> io::Result<()> {
        let Some(NotTried { first, last, waited }) = self.not_tried.take() else { return Ok(()) };
        let (lines, them) = match first == last {
            true => (format!("line {first}"), "it"),
            false => (format!("lines {first} to {last}"), "them"),
        };
        self.report(&format!(
            "{lines}: not tried, because earlier lines got no response within {waited:?}; run {them} again when the cluster responds\n"
        ))
    }

    /// Flushes standard output, then writes a message to standard error.
    fn report(&mut self, text: &str) -> io::Result<()> {
        self.responses.flush()?;
        let mut write = || {
            let _ = self.errors.write_all(text.as_bytes());
        };
        match &self.progress {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
        Ok(())
    }
}

/// Returns the progress bar of a line that lists all keys. It disappears when it is dropped.
fn bar_of(places: Places) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} shards, {eta} left")
        .expect("the template is well-formed");
    let finish = indicatif::ProgressFinish::AndClear;
    ProgressBar::new(places.all.into()).with_style(style).with_finish(finish)
}
