//! Answers to standard output, errors to standard error, in an order that reads well where both are
//! one terminal.

use std::io::{self, BufWriter, Write};

use indicatif::ProgressBar;

use super::task::{Answer, End};

const BUFFER_BYTES: usize = 64 << 10;

/// See the module.
pub(super) struct Output {
    answers: BufWriter<Box<dyn Write>>,
    errors: Box<dyn Write>,
    /// Whether errors begin with the number of their line.
    has_numbers: bool,
    progress: Option<ProgressBar>,
    has_failed: bool,
}

impl Output {
    pub(super) fn standard() -> Output {
        Output::new(Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// For a person, who sees which line an error is about.
    pub(super) fn terminal() -> Output {
        Output { has_numbers: false, ..Output::standard() }
    }

    pub(super) fn new(answers: Box<dyn Write>, errors: Box<dyn Write>) -> Output {
        let answers = BufWriter::with_capacity(BUFFER_BYTES, answers);
        Output { answers, errors, has_numbers: true, progress: None, has_failed: false }
    }

    /// Writes around this bar from now on.
    pub(super) fn set_progress(&mut self, bar: ProgressBar) {
        self.progress = Some(bar);
    }

    /// Whether any line failed.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// # Errors
    /// If standard output takes no more. Standard error's refusal is of no consequence.
    pub(super) fn give(&mut self, answer: &Answer) -> io::Result<()> {
        self.has_failed |= answer.end != End::Done;
        if answer.end != End::Error {
            self.answers.write_all(answer.text.as_bytes())?;
            return self.answers.write_all(b"\n");
        }
        self.answers.flush()?;
        let text = if self.has_numbers {
            format!("line {}: {}\n", answer.line, answer.text)
        } else {
            format!("{}\n", answer.text)
        };
        let mut write = || {
            let _ = self.errors.write_all(text.as_bytes());
        };
        match &self.progress {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
        Ok(())
    }

    /// Shows everything given so far.
    ///
    /// # Errors
    /// As [`Output::give`].
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.answers.flush()
    }
}
