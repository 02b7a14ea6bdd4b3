//! `coord flush`: asks the running coordinator to remove every key, and shows the progress.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::FlushArgs;
use crate::failure::Failure;
use crate::printable::printable;
use crate::progress::bar::with_bar;
use crate::stop_port::{Call, FlushRequest, Flushed, Line, path_in};
use crate::{lock, screen, units};

/// The interval between two lines of progress if there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// The timeout for the last output to the terminal.
const SCREEN_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of groups that a message names.
const GROUPS_MAX: usize = 16;

/// The outcome of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Done,
    Refused,
    Failed,
    Interrupted,
}

/// The line of JSON at the end.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    outcome: Outcome,
    message: &'a str,
    keys: u64,
    servers: usize,
    removed: u64,
    removed_is_exact: bool,
    shards: usize,
    shards_done: usize,
    shards_left: Vec<Left<'a>>,
    milliseconds: u64,
}

/// The shards of a group that are not done.
#[derive(Debug, Serialize)]
struct Left<'a> {
    group: u16,
    shards: &'a [u16],
}

/// Removes every key of a cluster.
///
/// # Errors
/// The removal was not confirmed, has failed or was interrupted; or no coordinator runs in the directory.
pub(crate) async fn run(args: &FlushArgs) -> Result<(), Failure> {
    // The signals are handled from before the request on, so that an interrupted flush is always reported.
    let mut signals = Signals::listen()?;
    let mut lines = ask(args).await?;
    let mut display = Display::new(args);
    let (outcome, say) = follow(&mut lines, &mut signals, &mut display).await?;
    let Display { known, begun, .. } = display;
    screen::show(&[]);
    screen::flush(SCREEN_TIMEOUT);
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let text = match outcome {
        Outcome::Done => done_in_words(&known, millis),
        Outcome::Refused => say.clone(),
        Outcome::Failed | Outcome::Interrupted => format!("{say}; {}", left_in_words(&known)),
    };
    if args.json {
        let summary = Summary::of(outcome, &text, &known, millis);
        let json = serde_json::to_string(&summary)
            .map_err(|error| Failure::Failed(format!("cannot encode the summary: {error}")))?;
        // A closed standard output is not a failure.
        let _ = writeln!(io::stdout(), "{json}");
    }
    match outcome {
        Outcome::Done if args.json => Ok(()),
        Outcome::Done => {
            let _ = writeln!(io::stdout(), "{text}");
            Ok(())
        }
        Outcome::Refused => Err(Failure::Usage(text)),
        Outcome::Failed | Outcome::Interrupted => Err(Failure::Failed(text)),
    }
}

/// The signals that interrupt the command.
struct Signals {
    interrupts: Signal,
    terminations: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))
        };
        let interrupts = listen(SignalKind::interrupt())?;
        Ok(Signals { interrupts, terminations: listen(SignalKind::terminate())? })
    }

    /// Waits for one of the signals.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupts.recv() => {}
            _ = self.terminations.recv() => {}
        }
    }
}

/// Connects to the coordinator and sends the request. Returns the lines of the response.
async fn ask(args: &FlushArgs) -> Result<Lines<BufReader<UnixStream>>, Failure> {
    let dir = &args.dir;
    let connected = async {
        let directory = File::open(dir)?;
        UnixStream::connect(path_in(&directory)).await
    };
    let mut stream = connected.await.map_err(|error| {
        let is_absent = [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind());
        Failure::Failed(match is_absent && lock::holder_of(dir).is_none() {
            true => format!(
                "no coordinator runs in {}; give the directory of the cluster with --dir",
                dir.display()
            ),
            false => format!(
                "cannot connect to the coordinator in {}: {error}; check --dir, and run this command as the \
                 coordinator's user",
                dir.display()
            ),
        })
    })?;
    let timeout_ms = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX);
    let call = Call::Flush { flush: FlushRequest { yes: args.yes, timeout_ms } };
    let mut text = serde_json::to_string(&call)
        .map_err(|error| Failure::Failed(format!("cannot encode the request as JSON: {error}")))?;
    text.push('\n');
    stream.write_all(text.as_bytes()).await.map_err(|error| {
        Failure::Failed(format!("cannot send the request to the coordinator: {error}; retry"))
    })?;
    Ok(BufReader::new(stream).lines())
}

/// Shows the progress until the last line. Returns the outcome and its message.
async fn follow(
    lines: &mut Lines<BufReader<UnixStream>>,
    signals: &mut Signals,
    display: &mut Display,
) -> Result<(Outcome, String), Failure> {
    loop {
        // A line that has arrived is processed first, so that an interrupted flush reports the progress.
        let line = tokio::select! {
            biased;
            line = lines.next_line() => line,
            () = signals.any() => return Ok((Outcome::Interrupted, "interrupted".to_owned())),
        };
        let lost = "the coordinator has ended before the flush; see its log";
        let Ok(Some(line)) = line else { return Ok((Outcome::Failed, lost.to_owned())) };
        let line: Line = serde_json::from_str(&line).map_err(|error| {
            Failure::Failed(format!(
                "cannot parse the coordinator's response: {error}; use the same version of coord as the running \
                 coordinator"
            ))
        })?;
        display.take(line.flush);
        let say = printable(&line.say);
        match line.ended {
            None => {}
            Some(true) => return Ok((Outcome::Done, say)),
            Some(false) if !display.is_confirmed => return Ok((Outcome::Refused, say)),
            Some(false) => return Ok((Outcome::Failed, say)),
        }
    }
}

/// The display of the progress: a bar on a terminal, otherwise lines.
struct Display {
    known: Flushed,
    begun: Instant,
    is_confirmed: bool,
    is_silent: bool,
    line_at: Instant,
}

impl Display {
    fn new(args: &FlushArgs) -> Display {
        let begun = Instant::now();
        let is_silent = args.json || !args.yes;
        if !is_silent && screen::width().is_some() {
            // Without the thread for the terminal, the progress is not shown.
            let _ = screen::start();
        }
        Display {
            known: Flushed::default(),
            begun,
            is_confirmed: args.yes,
            is_silent,
            line_at: begun + LINE_EVERY,
        }
    }

    fn take(&mut self, flushed: Option<Flushed>) {
        self.known = flushed.unwrap_or_else(|| self.known.clone());
        if self.is_silent {
            return;
        }
        let Flushed { keys, removed, shards, .. } = self.known;
        let parts = vec![
            (2, format!("{removed} of about {keys} keys")),
            (1, format!("{} of {shards} shards done", self.known.done())),
        ];
        let width = screen::width().unwrap_or(usize::MAX);
        let bar = with_bar("flush", units::percent(removed, keys), parts, width);
        if !screen::show(&[bar]) && Instant::now() >= self.line_at {
            self.line_at = Instant::now() + LINE_EVERY;
            let done = self.known.done();
            let _ = writeln!(
                io::stderr(),
                "flush: {removed} of about {keys} keys removed, {done} of {shards} shards done"
            );
        }
    }
}

impl<'a> Summary<'a> {
    fn of(
        outcome: Outcome,
        message: &'a str,
        flushed: &'a Flushed,
        milliseconds: u64,
    ) -> Summary<'a> {
        let Flushed { keys, servers, removed, is_exact, shards, left } = flushed;
        let shards_left = left.iter().map(|(group, shards)| Left { group: *group, shards });
        Summary {
            outcome,
            message,
            keys: *keys,
            servers: *servers,
            removed: *removed,
            removed_is_exact: *is_exact,
            shards: *shards,
            shards_done: flushed.done(),
            shards_left: shards_left.collect(),
            milliseconds,
        }
    }
}

fn done_in_words(flushed: &Flushed, millis: u64) -> String {
    let Flushed { servers, removed, is_exact, shards, .. } = flushed;
    let at_least = if *is_exact { "" } else { "at least " };
    format!(
        "removed {at_least}{removed} keys from {shards} shards on {servers} servers in {}",
        units::took(millis)
    )
}

/// Describes the shards that are done and not done, and the way on.
fn left_in_words(flushed: &Flushed) -> String {
    let Flushed { removed, shards, left, .. } = flushed;
    if left.is_empty() {
        return "repeating the command is safe".to_owned();
    }
    let group = |(group, shards): &(u16, Vec<u16>)| {
        let numbers: Vec<String> = shards.iter().map(u16::to_string).collect();
        let word = if shards.len() == 1 { "shard" } else { "shards" };
        format!("{word} {} of group {group}", numbers.join(", "))
    };
    let mut groups: Vec<String> = left.iter().take(GROUPS_MAX).map(group).collect();
    if let Some(more @ 1..) = left.len().checked_sub(GROUPS_MAX) {
        groups.push(format!("shards of {more} more groups"));
    }
    format!(
        "{removed} keys were removed, and {} of {shards} shards are done; not done: {}. Shards that have the order complete \
         it. Repeating the command is safe",
        flushed.done(),
        groups.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flushed() -> Flushed {
        Flushed {
            keys: 100,
            servers: 3,
            removed: 70,
            is_exact: true,
            shards: 6,
            left: vec![(1, vec![0]), (2, vec![0, 1])],
        }
    }

    #[test]
    fn a_failed_flush_names_the_shards_that_are_not_done() {
        let words = left_in_words(&flushed());
        let names = "3 of 6 shards are done; not done: shard 0 of group 1; shards 0, 1 of group 2.";
        assert!(words.contains(names), "{words}");
        assert!(words.contains("Repeating the command is safe"), "{words}");
        let left = (0..20).map(|group| (group, vec![0])).collect();
        let words = left_in_words(&Flushed { left, shards: 20, ..flushed() });
        assert!(words.contains("shard 0 of group 15; shards of 4 more groups"), "{words}");
    }

    #[test]
    fn the_number_of_removed_keys_is_a_lower_bound_after_a_failover() {
        let done = Flushed { left: Vec::new(), ..flushed() };
        let words = done_in_words(&done, 1_200);
        assert_eq!(words, "removed 70 keys from 6 shards on 3 servers in 1.2 s");
        let words = done_in_words(&Flushed { is_exact: false, ..done }, 12);
        assert_eq!(words, "removed at least 70 keys from 6 shards on 3 servers in 12 ms");
    }
}
