//! A reader of lines from a descriptor. It can check for a line without blocking, because the writer may wait for a
//! result before it writes its next line.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::parse::MAX_LINE_BYTES;

/// The number of bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// A byte order mark in UTF-8, which some editors write at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The next event of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A line and its number, from 1; without its line end.
    Line(u64, Vec<u8>),
    /// A line that is longer than any valid operation. Its bytes are skipped.
    TooLong(u64),
    /// No whole line has arrived.
    NotYet,
    /// The end of the input.
    End,
}

/// A reader of lines; see the module documentation.
#[derive(Debug)]
pub(super) struct Lines {
    source: OwnedFd,
    buffer: Vec<u8>,
    /// The number of bytes at the front that were returned.
    taken: usize,
    /// The number of bytes after these that contain no line end.
    searched: usize,
    /// The number of the line at the front.
    number: u64,
    is_at_end: bool,
    /// True while a line that is too long is skipped.
    is_skipping: bool,
    bytes_read: u64,
}

impl Lines {
    pub(super) fn new(source: OwnedFd) -> Lines {
        Lines {
            source,
            buffer: Vec::new(),
            taken: 0,
            searched: 0,
            number: 1,
            is_at_end: false,
            is_skipping: false,
            bytes_read: 0,
        }
    }

    /// Returns the number of bytes read from the source.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Returns the next event. If `wait` is true, waits for it, and never returns [`Next::NotYet`].
    pub(super) fn next(&mut self, wait: bool) -> io::Result<Next> {
        loop {
            if let Some(next) = self.buffered() {
                return Ok(next);
            }
            if !wait && !self.is_readable(Duration::ZERO)? {
                return Ok(Next::NotYet);
            }
            self.read()?;
        }
    }

    /// Returns the next event if the buffer holds it.
    fn buffered(&mut self) -> Option<Next> {
        loop {
            let waiting = &self.buffer[self.taken..];
            let found = waiting[self.searched..].iter().position(|&byte| byte == b'\n');
            let length = match found {
                Some(position) => self.searched + position,
                None if self.is_at_end && !waiting.is_empty() => waiting.len(),
                None if self.is_at_end => return Some(Next::End),
                None => {
                    self.searched = waiting.len();
                    if self.searched <= MAX_LINE_BYTES {
                        return None;
                    }
                    // The line is discarded while it arrives, so that it needs no memory.
                    self.take(self.searched);
                    let is_new = !std::mem::replace(&mut self.is_skipping, true);
                    if is_new {
                        return Some(Next::TooLong(self.number));
                    }
                    return None;
                }
            };
            let line = &waiting[..length];
            let line = match self.number {
                1 => line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).to_vec(),
                _ => line.to_vec(),
            };
            self.take((length + 1).min(waiting.len()));
            let number = self.number;
            self.number += 1;
            if !std::mem::replace(&mut self.is_skipping, false) {
                return Some(Next::Line(number, line));
            }
        }
    }

    fn take(&mut self, bytes: usize) {
        self.taken += bytes;
        self.searched = 0;
    }

    /// Waits up to `wait` until the source can be read or has ended. Returns false at the timeout or after a signal.
    pub(super) fn is_readable(&self, wait: Duration) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.source, PollFlags::IN)];
        let wait = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut polled, Some(&wait)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let before = self.buffer.len();
        self.buffer.resize(before + READ_BYTES, 0);
        let result = loop {
            match rustix::io::read(&self.source, &mut self.buffer[before..]) {
                Err(Errno::INTR) => {}
                // Another program may have made standard input non-blocking.
                Err(Errno::AGAIN) => {
                    let mut polled = [PollFd::new(&self.source, PollFlags::IN)];
                    let _ = rustix::event::poll(&mut polled, None);
                }
                other => break other,
            }
        };
        let count = *result.as_ref().unwrap_or(&0);
        self.buffer.truncate(before + count);
        self.bytes_read += count as u64;
        self.is_at_end = result? == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(bytes: &[u8]) -> Vec<Next> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut lines = Lines::new(file.into());
        let mut found = Vec::new();
        loop {
            match lines.next(false).unwrap() {
                Next::End => return found,
                next => found.push(next),
            }
        }
    }

    #[test]
    fn lines_are_numbered_and_the_last_needs_no_line_end() {
        let line = |n, text: &str| Next::Line(n, text.into());
        assert_eq!(all(b"a\n\nb\n"), [line(1, "a"), line(2, ""), line(3, "b")]);
        assert_eq!(all(b"a\nb"), [line(1, "a"), line(2, "b")]);
        assert_eq!(all(b""), []);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_at_the_start_and_only_there() {
        let line = |n, text: &str| Next::Line(n, text.into());
        assert_eq!(all("\u{feff}a\n\u{feff}b".as_bytes()), [line(1, "a"), line(2, "\u{feff}b")]);
        assert_eq!(all("\u{feff}".as_bytes()), [line(1, "")]);
        let twice = "\u{feff}\u{feff}a".as_bytes();
        assert_eq!(all(twice), [line(1, "\u{feff}a")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_counted() {
        let mut bytes = vec![b'x'; 2 * MAX_LINE_BYTES];
        bytes.extend_from_slice(b"\nG \"a\"\n");
        let found = all(&bytes);
        assert!(found == [Next::TooLong(1), Next::Line(2, b"G \"a\"".to_vec())]);
    }

    #[test]
    fn it_does_not_wait_for_a_line_that_has_not_arrived() {
        let (read, write) = std::io::pipe().unwrap();
        let mut lines = Lines::new(read.into());
        assert_eq!(lines.next(false).unwrap(), Next::NotYet);
        rustix::io::write(&write, b"G \"a").unwrap();
        assert_eq!(lines.next(false).unwrap(), Next::NotYet);
        rustix::io::write(&write, b"\"\n").unwrap();
        assert_eq!(lines.next(false).unwrap(), Next::Line(1, b"G \"a\"".to_vec()));
        drop(write);
        assert_eq!(lines.next(true).unwrap(), Next::End);
    }
}
