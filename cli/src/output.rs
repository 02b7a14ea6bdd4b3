//! Output of results to standard output and of errors to standard error. If both are one terminal, they appear in the
//! order of the lines.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use indicatif::ProgressBar;

use super::task::{End, Response};

const BUFFER_BYTES: usize = 64 << 10;

/// The output of the program; see the module documentation.
pub(super) struct Output {
    responses: BufWriter<Box<dyn Write>>,
    errors: Box<dyn Write>,
    /// True if errors begin with their line number.
    has_numbers: bool,
    progress: Option<ProgressBar>,
    has_failed: bool,
    /// Lines that were not tried and not yet reported.
    not_tried: Option<NotTried>,
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
        Output::new(Box::new(io::stdout()), Box::new(io::stderr()))
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
        self.has_failed |= response.end != End::Done;
        match response.end {
            End::NotTried { first, waited } => {
                let first = self.not_tried.map_or(first, |before| before.first);
                self.not_tried = Some(NotTried { first, last: response.line, waited });
                Ok(())
            }
            End::Done | End::Negative => {
                self.report_not_tried()?;
                self.responses.write_all(response.text.as_bytes())?;
                self.responses.write_all(b"\n")
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
