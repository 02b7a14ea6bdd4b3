//! `coord status --watch`: repeats the request for the status.
//!
//! ```text
//!   on a terminal    cursor hidden; each frame overwrites the last one from the top and clears the rest;
//!                    at the end (Ctrl+C, SIGTERM) the cursor is shown again
//!   elsewhere        one table after the other, an empty line between them
//!   --json           a line of JSON each time
//! ```
//!
//! After the first response, requests continue even if the coordinator does not respond, because it may be
//! restarting.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::time::Instant;

use console::truncate_str;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::StatusArgs;
use crate::ask;
use crate::failure::Failure;
use crate::printable::printable;
use crate::table::{self, Screen};

const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows the status until a signal arrives or standard output is closed.
pub(crate) fn run(args: StatusArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the async runtime: {error}")))?;
    let in_place = io::stdout().is_terminal() && !args.json;
    let ended = runtime.block_on(watch(Arc::new(args), in_place));
    if in_place {
        let _ = print(SHOW_CURSOR);
    }
    // The shutdown does not wait for a pending response.
    runtime.shutdown_background();
    ended
}

async fn watch(args: Arc<StatusArgs>, in_place: bool) -> Result<(), Failure> {
    let mut ends = Ends::listen()?;
    let mut last: Option<(String, Instant)> = None;
    let mut is_first = true;
    loop {
        let width = ask::width().map(|columns| columns.saturating_sub(1));
        let asked = Arc::clone(&args);
        let fetch = tokio::task::spawn_blocking(move || ask::fetch(&asked));
        let fetched = tokio::select! {
            () = ends.next() => return Ok(()),
            fetched = fetch => fetched.unwrap_or_else(|error| Err(error.to_string())),
        };
        if is_first && let Err(reason) = &fetched {
            return Err(ask::failure(&args, reason));
        }
        let printed = match fetched {
            Ok(json) if args.json => print(&format!("{}\n", printable(&json))),
            Ok(json) => {
                let lines = in_place
                    .then(|| usize::from(console::Term::stdout().size().0).saturating_sub(1));
                let text = table::render(&ask::parse(&json)?, Screen { width, lines });
                let printed = show(&text, in_place, is_first);
                last = Some((text, Instant::now()));
                printed
            }
            Err(reason) if in_place => {
                let (text, said) =
                    last.as_ref().map_or(("", 0), |(text, at)| (text, at.elapsed().as_secs()));
                let head = format!(
                    "NO RESPONSE from the coordinator: {}\nthe status below is {said} s old:\n",
                    printable(&reason)
                );
                show(&format!("{head}{text}"), in_place, is_first)
            }
            Err(reason) => {
                // A later request may succeed, and a closed standard error must not end the watch.
                let _ = writeln!(io::stderr(), "coord: no response: {}", printable(&reason));
                Ok(())
            }
        };
        match printed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::Failed(format!("cannot print the status: {error}"))),
        }
        is_first = false;
        tokio::select! {
            () = ends.next() => return Ok(()),
            () = tokio::time::sleep(args.interval) => {}
        }
    }
}

fn show(text: &str, in_place: bool, is_first: bool) -> io::Result<()> {
    if !in_place {
        return print(&format!("{}{text}", if is_first { "" } else { "\n" }));
    }
    let (rows, columns) = console::Term::stdout().size();
    print(&frame(text, usize::from(rows), usize::from(columns), is_first))
}

/// Returns the output that replaces the previous frame on a terminal of this size. Lines that are too long are
/// cut, and lines below the last row are omitted, because they would shift the others. The last column stays empty,
/// because clearing the rest of a line would erase it.
fn frame(text: &str, rows: usize, columns: usize, is_first: bool) -> String {
    let columns = columns.saturating_sub(1);
    let mut frame = String::new();
    if is_first {
        frame += HIDE_CURSOR;
        frame += CLEAR;
    }
    frame += HOME;
    let lines: Vec<&str> = text.lines().collect();
    // The cursor stays in the row below the last line, so one row is left empty.
    let room = rows.saturating_sub(1).max(1);
    let is_cut = lines.len() > room;
    let shown = if is_cut { room - 1 } else { lines.len() };
    for line in &lines[..shown] {
        frame += &truncate_str(line, columns, "…");
        frame += CLEAR_LINE;
        frame += "\r\n";
    }
    if is_cut {
        let more = format!("… {} more lines", lines.len() - shown);
        frame += &truncate_str(&more, columns, "…");
        frame += CLEAR_LINE;
        frame += "\r\n";
    }
    frame + CLEAR_BELOW
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The signals that end a watch without a failure.
struct Ends {
    signals: [Signal; 3],
}

impl Ends {
    fn listen() -> Result<Ends, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))
        };
        let signals = [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(Ends { signals })
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_clears_the_screen_and_later_ones_overwrite_it() {
        let first = frame("a\nb\n", 24, 80, true);
        assert_eq!(first, "\x1b[?25l\x1b[2J\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
        assert_eq!(frame("c\n", 24, 80, false), "\x1b[Hc\x1b[K\r\n\x1b[J");
    }

    #[test]
    fn a_frame_never_exceeds_the_terminal() {
        let text: String = (0..50).map(|n| format!("line {n} {}\n", "x".repeat(100))).collect();
        for (rows, columns) in [(24, 80), (3, 10), (1, 1), (2, 0), (0, 0)] {
            let frame = frame(&text, rows, columns, false);
            assert!(frame.matches("\r\n").count() <= rows.saturating_sub(1).max(1), "{rows}");
            let plain = console::strip_ansi_codes(&frame).into_owned();
            let widest = plain.lines().map(console::measure_text_width).max().unwrap();
            assert!(widest <= columns.max(1), "{columns}: {plain}");
        }
        let cut = frame(&text, 24, 80, false);
        assert!(cut.contains("line 21") && cut.contains("… 28 more lines"), "{cut}");
    }
}
