//! Output that never blocks the threads that produce it: a bounded queue of lines, and one thread that writes them.
//!
//! ```text
//!   any thread --- push, never waits ---> queue (4,096 lines, 1 MiB) ---> writer thread ---> sink
//!                    | full                                                 | write fails
//!                    +--> counted as dropped <------------------------------+
//!                         "N log lines were dropped" is logged once the sink accepts lines again
//! ```
//!
//! A device that stalls (a frozen file system, a pipe without a reader, a stopped terminal) stalls only the writer
//! thread. Part of the queue is reserved for lines of level ERROR.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::files;

/// The maximum number of queued lines.
pub const MAX_LINES: usize = 4_096;
/// The maximum number of queued bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// The maximum length of a queued line. A line of this length or longer is truncated and ends with ` ...`.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// The number of queue slots reserved for urgent lines.
const RESERVED_LINES: usize = 64;
/// The number of queued bytes reserved for urgent lines.
const RESERVED_BYTES: usize = 128 << 10;
/// The number of lines after which dropped lines are reported even though the queue is not empty.
const REPORT_AFTER: u32 = 1_024;
/// The interval at which [`Queue::flush`] checks the queue.
const FLUSH_LOOKS: Duration = Duration::from_millis(1);

/// The destination of the lines. Only the writer thread calls it, so it may block.
pub trait Sink: Send + 'static {
    /// Writes whole lines.
    ///
    /// # Errors
    /// The lines were not written, or only in part.
    fn write(&mut self, lines: &[u8]) -> io::Result<()>;

    /// Reopens the file or redraws the screen, after [`Queue::nudge`]. By default, does nothing.
    ///
    /// # Errors
    /// The file cannot be reopened, or the screen cannot be redrawn. The writer thread logs the error and continues.
    fn nudged(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A handle to the queue; clones share the queue.
#[derive(Clone, Debug)]
pub struct Queue {
    lines: Sender<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The number of queued bytes.
    bytes: AtomicUsize,
    /// The number of lines and [`Queue::nudge`] calls accepted since the start.
    accepted: AtomicU64,
    /// The number of accepted lines and calls that have been processed.
    done: AtomicU64,
    /// The number of lines dropped and not yet reported.
    dropped: AtomicU64,
    is_nudged: AtomicBool,
}

impl Queue {
    /// Starts the writer thread. `prepare` runs on it first, and has ended when this function returns.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(
        name: &str,
        sink: impl Sink,
        prepare: impl FnOnce() + Send + 'static,
    ) -> io::Result<Queue> {
        let (lines, waiting) = bounded(MAX_LINES);
        let queue = Queue { lines, shared: Arc::default() };
        let shared = Arc::clone(&queue.shared);
        let (preparing, is_prepared) = bounded::<()>(0);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            prepare();
            drop(preparing);
            write_lines(&waiting, &shared, sink);
        })?;
        // Nothing is ever sent: the wait ends when the thread drops its end.
        let _ = is_prepared.recv();
        Ok(queue)
    }

    /// Queues a line, or drops and counts it if the queue is full. Never waits. Only urgent lines may use the reserved
    /// slots and bytes.
    pub fn push(&self, line: &[u8], is_urgent: bool) {
        let mut line = line[..line.len().min(MAX_LINE_BYTES)].to_vec();
        if line.len() == MAX_LINE_BYTES {
            line.truncate(MAX_LINE_BYTES - 5);
            line.extend_from_slice(b" ...\n");
        }
        let (most_lines, most_bytes) = match is_urgent {
            true => (MAX_LINES, MAX_BYTES),
            false => (MAX_LINES - RESERVED_LINES, MAX_BYTES - RESERVED_BYTES),
        };
        let length = line.len();
        let before = self.shared.bytes.fetch_add(length, Ordering::Relaxed);
        let has_room = before + length <= most_bytes && self.lines.len() < most_lines;
        // The line is counted before it is queued, so that a flush always waits for it.
        self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        if !has_room || self.lines.try_send(line).is_err() {
            self.shared.accepted.fetch_sub(1, Ordering::Relaxed);
            self.shared.bytes.fetch_sub(length, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Schedules a call of [`Sink::nudged`], which reopens a log file or redraws a screen.
    pub fn nudge(&self) {
        self.shared.is_nudged.store(true, Ordering::Release);
        // If the queue is full, no message is needed: the writer checks the flag before its next line.
        self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        if self.lines.try_send(Vec::new()).is_err() {
            self.shared.accepted.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Waits until all accepted lines are processed, but at most for `limit`. Returns whether they are processed.
    pub fn flush(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            let accepted = self.shared.accepted.load(Ordering::Relaxed);
            if self.shared.done.load(Ordering::Acquire) >= accepted {
                return true;
            }
            if start.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(FLUSH_LOOKS);
        }
    }
}

fn write_lines(waiting: &Receiver<Vec<u8>>, shared: &Shared, mut sink: impl Sink) {
    // The number of lines that the sink failed to write, and whether the last of them may have been written in part.
    let (mut lost, mut is_torn) = (0, false);
    let mut since_report = 0;
    while let Ok(line) = waiting.recv() {
        if shared.is_nudged.swap(false, Ordering::Acquire)
            && let Err(error) = sink.nudged()
        {
            tracing::warn!("{error}");
        }
        shared.bytes.fetch_sub(line.len(), Ordering::Relaxed);
        let written = match &line[..] {
            [] => Ok(()),
            line if is_torn => sink.write(&[b"\n", line].concat()),
            line => sink.write(line),
        };
        match written {
            Ok(()) if !line.is_empty() => is_torn = false,
            Ok(()) => {}
            Err(_) => {
                is_torn = true;
                lost += 1;
            }
        }
        since_report += 1;
        if !is_torn && (waiting.is_empty() || since_report >= REPORT_AFTER) {
            since_report = 0;
            let dropped = shared.dropped.swap(0, Ordering::Relaxed) + std::mem::take(&mut lost);
            if dropped > 0 {
                // The report is logged through the queue, so that it has the format of all other lines.
                tracing::warn!(
                    "{dropped} log lines were dropped: writing the log was too slow or failed; check its device"
                );
            }
        }
        shared.done.fetch_add(1, Ordering::Release);
    }
}

/// The writer that tracing-subscriber uses for one line.
#[derive(Debug)]
pub struct Line<'a> {
    queue: &'a Queue,
    is_urgent: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.queue.push(bytes, self.is_urgent);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, is_urgent: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line { queue: self, is_urgent: *metadata.level() == Level::ERROR }
    }
}

/// A file to which lines are appended. [`Queue::nudge`] reopens the file by its path.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// The function that opens the file, initially and at each [`Queue::nudge`].
    append: fn(&Path) -> io::Result<File>,
}

impl LogFile {
    /// Opens or creates the file that the operator has named. Its path may be a link or a terminal.
    ///
    /// # Errors
    /// The error of open(2).
    pub fn open(path: &Path) -> io::Result<LogFile> {
        LogFile::open_by(path, |path| {
            OpenOptions::new().create(true).append(true).mode(0o600).open(path)
        })
    }

    /// Opens or creates a file in a directory that other users may be able to write to.
    ///
    /// # Errors
    /// The errors of [`files::append`].
    pub fn open_own(path: &Path) -> io::Result<LogFile> {
        LogFile::open_by(path, files::append)
    }

    fn open_by(path: &Path, append: fn(&Path) -> io::Result<File>) -> io::Result<LogFile> {
        Ok(LogFile { path: path.to_owned(), file: append(path)?, append })
    }
}

impl Sink for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)
    }

    fn nudged(&mut self) -> io::Result<()> {
        match (self.append)(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                let path = self.path.display();
                let words = format!(
                    "cannot reopen the log {path}: {error}; logging continues in the old file"
                );
                return Err(io::Error::new(error.kind(), words));
            }
        }
        tracing::info!("the log was reopened: this file starts or continues here");
        Ok(())
    }
}

/// Standard error as a sink.
#[derive(Clone, Copy, Debug)]
pub struct StandardError;

impl Sink for StandardError {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        io::stderr().write_all(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// A sink in which every write waits for a permit. The permit also decides whether the write fails.
    struct Gate {
        open: mpsc::Receiver<bool>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Sink for Gate {
        fn write(&mut self, lines: &[u8]) -> io::Result<()> {
            match self.open.recv() {
                Ok(false) => Err(io::Error::other("no room")),
                Ok(true) | Err(_) => {
                    self.taken.lock().unwrap().extend_from_slice(lines);
                    Ok(())
                }
            }
        }
    }

    fn gate() -> (mpsc::Sender<bool>, Queue, Arc<Mutex<Vec<u8>>>) {
        let (open, opened) = mpsc::channel();
        let taken = Arc::default();
        let sink = Gate { open: opened, taken: Arc::clone(&taken) };
        (open, Queue::start("test", sink, || {}).unwrap(), taken)
    }

    #[test]
    fn the_thread_is_prepared_when_the_queue_has_started() {
        let prepared = Arc::new(AtomicBool::new(false));
        let to = Arc::clone(&prepared);
        let prepare = move || {
            std::thread::yield_now();
            to.store(true, Ordering::Relaxed);
        };
        let _queue = Queue::start("test", StandardError, prepare).unwrap();
        assert!(prepared.load(Ordering::Relaxed));
    }

    #[test]
    fn a_stalled_sink_blocks_no_caller_and_dropped_lines_are_counted() {
        let (open, queue, taken) = gate();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(queue.clone()).finish();
        let start = Instant::now();
        for _ in 0..3 * MAX_LINES {
            queue.push(b"a line of a thread that must not wait\n", false);
        }
        assert!(start.elapsed() < TIMEOUT, "a push waited for the sink");
        assert!(!queue.flush(Duration::from_millis(5)), "the sink stalls");
        let dropped = queue.shared.dropped.load(Ordering::Relaxed);
        assert!(dropped >= 2 * MAX_LINES as u64, "{dropped}");
        // Urgent lines may use the reserve.
        queue.push(b"the last line\n", true);
        assert_eq!(queue.shared.dropped.load(Ordering::Relaxed), dropped);
        drop(open);
        assert!(queue.flush(TIMEOUT));
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert!(text.ends_with("the last line\n"), "all accepted lines are written, in order");
        assert_eq!(queue.shared.bytes.load(Ordering::Relaxed), 0);
        drop(subscriber);
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_too() {
        let (_open, queue, _) = gate();
        for _ in 0..1_000 {
            queue.push(&[b'x'; 2 * MAX_LINE_BYTES], false);
        }
        assert!(queue.shared.bytes.load(Ordering::Relaxed) <= MAX_BYTES);
        assert!(queue.shared.dropped.load(Ordering::Relaxed) > 900);
    }

    #[test]
    fn after_a_failed_write_the_next_line_starts_on_a_new_line() {
        let (open, queue, taken) = gate();
        open.send(false).unwrap();
        open.send(true).unwrap();
        queue.push(b"lost\n", false);
        queue.push(b"written\n", false);
        assert!(queue.flush(TIMEOUT));
        assert_eq!(*taken.lock().unwrap(), b"\nwritten\n");
    }

    #[test]
    fn a_nudge_reopens_a_renamed_file_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("x.log"), dir.path().join("x.log.1"));
        let queue = Queue::start("test", LogFile::open(&path).unwrap(), || {}).unwrap();
        queue.push(b"one\n", false);
        assert!(queue.flush(TIMEOUT));
        std::fs::rename(&path, &old).unwrap();
        queue.push(b"two\n", false);
        assert!(queue.flush(TIMEOUT));
        queue.nudge();
        queue.push(b"three\n", false);
        assert!(queue.flush(TIMEOUT));
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        // Without the directory, reopening fails, but no log lines are lost.
        std::fs::remove_dir_all(dir.path()).unwrap();
        queue.nudge();
        queue.push(b"four\n", false);
        assert!(queue.flush(TIMEOUT));
    }
}
