//! A line in progress: the operations that it needs, in sequence, and its output.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kv_client::update::UpdateResult;
use kv_client::{Doubt, Error, Landing, Op, Outcome, Part, ReplicaRole, Status, Update, WallTime};
use kv_protocol::escape::readable;

use super::change::{Change, time_left};
use super::command::{Command, What};
use super::scan::{Found, Places, Progress};
use super::text::{not_found, says};

/// The output of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    /// The number of the line, from 1.
    pub(super) line: u64,
    /// One line of text, or several for `help`; without the last line end.
    pub(super) text: String,
    pub(super) end: End,
}

impl Response {
    /// Creates the output of lines that are not tried because earlier lines got no response within `waited`.
    pub(super) fn not_tried(lines: RangeInclusive<u64>, waited: Duration) -> Response {
        let (first, line) = lines.into_inner();
        // `Output` writes one message for many such lines.
        Response { line, text: String::new(), end: End::NotTried { first, waited } }
    }
}

/// The outcome of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The line succeeded.
    Done,
    /// This is a part of the output of a line that lists all keys; more follows.
    Part(Places),
    /// The result is negative: a key was not found, or a check failed.
    Negative,
    /// The line failed.
    Error,
    /// The lines from `first` to this one were not sent, because earlier lines got no response.
    NotTried {
        /// The number of the first of these lines.
        first: u64,
        /// The time that they waited.
        waited: Duration,
    },
}

/// The next step of a task after one of its operations.
#[derive(Debug)]
pub(super) enum Step {
    /// The task needs another operation.
    Next,
    /// The task has this part of its output, and needs another operation.
    Part(Response),
    /// The task has ended with this output.
    End(Response),
}

/// A line in progress; see the module documentation.
#[derive(Debug)]
pub(super) struct Task {
    line: u64,
    read_at: Instant,
    command: Command,
    /// The deadline of the last operation that was sent.
    due: Option<Instant>,
    /// The number of operations that ended.
    done: u32,
    /// The primary's value, once `V` has read it.
    primary: Option<Vec<u8>>,
    /// The write in doubt that the next operation settles, and the error to report if it cannot be settled.
    doubt: Option<(Doubt, String)>,
    /// The progress of a line that concerns all keys.
    progress: Progress,
}

impl Task {
    pub(super) fn new(line: u64, read_at: Instant, command: Command) -> Task {
        let progress = Progress::default();
        Task { line, read_at, command, due: None, done: 0, primary: None, doubt: None, progress }
    }

    /// Returns the time at which the line was read.
    pub(super) fn read_at(&self) -> Instant {
        self.read_at
    }

    /// Sets the deadline of the operation that was sent.
    pub(super) fn set_due(&mut self, due: Instant) {
        self.due = Some(due);
    }

    /// Returns whether the deadline of the last operation that was sent has passed.
    pub(super) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| Instant::now() >= due)
    }

    pub(super) fn command(&self) -> &Command {
        &self.command
    }

    /// Returns the updates of the line, for [`Task::op`].
    pub(super) fn updates(&self) -> Vec<Update<'_>> {
        self.command.changes().iter().map(Change::update).collect()
    }

    /// Returns the next operation, or `None` if the line needs no server.
    pub(super) fn op<'a>(&'a self, updates: &'a [Update<'a>]) -> Option<Op<'a>> {
        if let Some((doubt, _)) = &self.doubt {
            return Some(Op::Resolve { doubt });
        }
        Some(match &self.command {
            Command::Put { key, value, .. } => Op::Put { key, value },
            Command::Get { key } => Op::Get { key },
            Command::Read { key, what } => {
                Op::Read { key, part: Some(part(*what)), landing: Landing::Buffer }
            }
            Command::Update(_) | Command::Batch(_) => {
                Op::Update { key: self.command.key()?, updates }
            }
            Command::Delete { key } => Op::Delete { key },
            Command::Noop { key } => Op::Noop { key },
            Command::Verify { key, .. } => {
                let first = self.done == 0;
                let replica = if first { ReplicaRole::Primary } else { ReplicaRole::Secondary };
                Op::Verify { key, replica }
            }
            Command::Scan(scan) => self.progress.op(scan),
            Command::Count => self.progress.op_of_count(),
            Command::Several(_) | Command::Help(_) => return None,
        })
    }

    /// Handles the result of the current operation.
    pub(super) fn on_result(&mut self, result: Result<Outcome, Error>) -> Step {
        let result = match (self.doubt.take(), result) {
            (None, Err(Error::InDoubt { action, cause, doubt: Some(doubt) })) => {
                let error = Error::InDoubt { action, cause, doubt: None };
                self.doubt = Some((doubt, error.to_string()));
                return Step::Next;
            }
            (Some((_, words)), Err(error)) if !is_settled(&error) => {
                return Step::End(self.response(End::Error, words));
            }
            (_, result) => result,
        };
        self.done += 1;
        let end = match (&self.command, result) {
            (Command::Put { count, .. }, Ok(_)) if self.done < *count => return Step::Next,
            (Command::Put { key, value, .. }, Ok(outcome)) => {
                self.response(End::Done, says(key, "<-", value) + degraded(&outcome))
            }
            (Command::Get { key }, Ok(outcome)) => {
                self.response(End::Done, says(key, "==", &outcome.value))
            }
            (Command::Read { key, what }, Ok(outcome)) => {
                self.response(End::Done, read_text(key, *what, &outcome))
            }
            (Command::Update(change), Ok(outcome)) => {
                let value = outcome.has_value.then_some(&outcome.value[..]);
                self.response(End::Done, change.done_text(value, now()) + degraded(&outcome))
            }
            (Command::Update(change), Err(Error::NotFound { .. })) => {
                let end = if change.needs_entry() { End::Negative } else { End::Done };
                self.response(end, not_found(&change.key))
            }
            (Command::Update(change), Err(Error::Conflict { .. })) if change.only_persists() => {
                let text = format!("key \"{}\" has no deadline", readable(&change.key));
                self.response(End::Done, text)
            }
            (Command::Batch(changes), Ok(outcome)) => {
                self.response(End::Done, batch_text(changes, &outcome))
            }
            (Command::Update(_) | Command::Batch(_), Err(error @ Error::Conflict { .. })) => {
                self.response(End::Negative, conflict_text(&error))
            }
            (Command::Get { key } | Command::Read { key, .. }, Err(Error::NotFound { .. })) => {
                self.response(End::Negative, not_found(key))
            }
            (Command::Delete { key }, Ok(outcome)) => {
                let text = format!("key \"{}\" deleted{}", readable(key), degraded(&outcome));
                self.response(End::Done, text)
            }
            // The key does not exist, which is the requested state.
            (Command::Delete { key }, Err(Error::NotFound { .. })) => {
                self.response(End::Done, not_found(key))
            }
            (Command::Noop { key }, Ok(_)) => {
                self.response(End::Done, format!("server of key \"{}\" responds", readable(key)))
            }
            (Command::Verify { .. }, result) => return self.on_copy(result),
            (Command::Scan(scan), result) => match self.progress.on_result(scan, result) {
                Ok(found) => return self.on_found(found),
                Err(error) => self.response(End::Error, error.to_string()),
            },
            (Command::Count, result) => match self.progress.on_result_of_count(result) {
                Ok(found) => return self.on_found(found),
                Err(error) => self.response(End::Error, error.to_string()),
            },
            (_, Err(error)) => self.response(End::Error, error.to_string()),
            (Command::Several(_) | Command::Help(_), Ok(_)) => {
                unreachable!("these lines have no operation of their own")
            }
        };
        Step::End(end)
    }

    /// Returns the step for what a line that concerns all keys has found.
    fn on_found(&self, found: Found) -> Step {
        match found {
            Found::Part(text, places) => Step::Part(self.response(End::Part(places), text)),
            Found::End(text) => Step::End(self.response(End::Done, text)),
        }
    }

    /// Handles the value of one of the two replicas.
    fn on_copy(&mut self, result: Result<Outcome, Error>) -> Step {
        let copy = match result {
            Ok(outcome) => Some(outcome.value),
            Err(Error::NotFound { .. }) => None,
            Err(error) => return Step::End(self.response(End::Error, error.to_string())),
        };
        if self.done == 1 {
            self.primary = copy;
            return Step::Next;
        }
        let Command::Verify { key, expected } = &self.command else {
            unreachable!("only V reads copies")
        };
        let (primary, secondary) = (&self.primary, &copy);
        if primary == expected && secondary == expected {
            let text = match expected {
                Some(value) => {
                    format!("check passed: value[\"{}\"] == \"{}\"", readable(key), checked(value))
                }
                None => format!("check passed: {}", not_found(key)),
            };
            return Step::End(self.response(End::Done, text));
        }
        let text = format!(
            "check FAILED: key \"{}\": expected {}, the primary has {}, the secondary has {}",
            readable(key),
            held(expected.as_deref()),
            held(primary.as_deref()),
            held(secondary.as_deref()),
        );
        Step::End(self.response(End::Negative, text))
    }

    pub(super) fn response(&self, end: End, text: String) -> Response {
        Response { line: self.line, text, end }
    }

    /// Returns whether the next operation settles a write in doubt.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// Creates the output of this line, which is not tried.
    pub(super) fn not_tried(&self, waited: Duration) -> Response {
        Response::not_tried(self.line..=self.line, waited)
    }
}

/// Returns whether this error of a RESOLVE is the result of the write, so that the write is settled.
fn is_settled(error: &Error) -> bool {
    matches!(
        error,
        Error::NotDone { .. }
            | Error::NotFound { .. }
            | Error::Conflict { .. }
            | Error::NotANumber { .. }
            | Error::Overflow { .. }
            | Error::TooBig { .. }
    )
}

/// Returns the part of the entry that a line reads.
fn part(what: What) -> Part {
    match what {
        What::Range { from, from_end, most } => Part { from_end, ..Part::new(from, most) },
        What::Length | What::Existence => Part { all_or_nothing: true, ..Part::new(0, 0) },
        What::Deadline => Part { all_or_nothing: true, with_deadline: true, ..Part::new(0, 0) },
    }
}

/// Returns the text of a read that found the key.
fn read_text(key: &[u8], what: What, outcome: &Outcome) -> String {
    let shown = readable(key);
    match (what, outcome.deadline) {
        (What::Range { .. }, _) => {
            format!("part[\"{shown}\"] == \"{}\"", readable(&outcome.value))
        }
        (What::Length, _) => format!("length[\"{shown}\"] == {}", outcome.length),
        (What::Existence, _) => format!("key \"{shown}\" exists"),
        (What::Deadline, None) => format!("key \"{shown}\" does not expire"),
        (What::Deadline, Some(deadline)) => {
            format!("key \"{shown}\" expires in {}", time_left(deadline, now()))
        }
    }
}

/// Returns the current wall time.
fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Returns the text of a batch that was executed, with one line for each update.
fn batch_text(changes: &[Change], outcome: &Outcome) -> String {
    // The library has checked the results.
    let results = UpdateResult::read_all(&outcome.value).unwrap_or_default();
    let now = now();
    let lines = changes.iter().zip(results).map(|(change, result)| match result.status {
        Status::Ok => change.done_text(result.value, now),
        Status::NotFound => not_found(&change.key),
        status => change.skipped_text(status),
    });
    lines.collect::<Vec<_>>().join("\n") + degraded(outcome)
}

/// Returns the text of an update whose condition does not hold, with the current value if it was requested.
fn conflict_text(error: &Error) -> String {
    match error {
        Error::Conflict { value: Some(value), .. } => {
            format!("{error} (its value is \"{}\")", readable(value))
        }
        _ => error.to_string(),
    }
}

/// Returns the suffix for a write that only one replica holds because its group is degraded; empty for other writes.
fn degraded(outcome: &Outcome) -> &'static str {
    match outcome.copies {
        1 => " (1 copy)",
        _ => "",
    }
}

/// Formats a value in the form that `V` parses as this value: a single blank must be escaped.
fn checked(value: &[u8]) -> String {
    match value {
        b" " => "\\x20".to_owned(),
        _ => readable(value).to_string(),
    }
}

fn held(value: Option<&[u8]>) -> String {
    /// The maximum number of bytes of a value that a failed check shows.
    const SHOWN: usize = 256;
    match value {
        None => "nothing".to_owned(),
        Some(value) if value.len() <= SHOWN => format!("\"{}\"", checked(value)),
        Some(value) => {
            format!("\"{}\"… ({} bytes)", readable(&value[..SHOWN]), value.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;
    use kv_client::Action;

    fn task(line: &str) -> Task {
        Task::new(7, Instant::now(), parse(line.as_bytes()).unwrap().unwrap())
    }

    fn ok(value: &str) -> Result<Outcome, Error> {
        Ok(Outcome { value: value.into(), ..Outcome::default() })
    }

    fn absent() -> Result<Outcome, Error> {
        Err(Error::NotFound { action: Action::new("get", b"k") })
    }

    /// Runs a line with these results of its operations.
    fn end(line: &str, results: Vec<Result<Outcome, Error>>) -> (End, String) {
        let mut task = task(line);
        let last = results.len();
        for (n, result) in (1..).zip(results) {
            assert!(task.op(&task.updates()).is_some());
            match task.on_result(result) {
                Step::End(response) => {
                    assert_eq!((n, response.line), (last, 7), "{line}");
                    return (response.end, response.text);
                }
                Step::Next | Step::Part(_) => assert!(n < last, "{line} has a further operation"),
            }
        }
        unreachable!()
    }

    #[test]
    fn results_have_the_form_of_the_manual() {
        let text = |line: &str, results| end(line, results);
        let done = |text: &str| (End::Done, text.to_owned());
        let negative = |text: &str| (End::Negative, text.to_owned());
        assert_eq!(text(r#"P "k" "v""#, vec![ok("")]), done(r#"value["k"] <- "v""#));
        assert_eq!(
            text(r#"P "k" "v" 3"#, vec![ok(""), ok(""), ok("")]),
            done(r#"value["k"] <- "v""#)
        );
        assert_eq!(text(r#"G "k""#, vec![ok("v")]), done(r#"value["k"] == "v""#));
        assert_eq!(text(r#"G "k""#, vec![ok("\"\n")]), done(r#"value["k"] == "\"\x0a""#));
        assert_eq!(text(r#"G "k""#, vec![absent()]), negative(r#"key "k" not found"#));
        assert_eq!(text(r#"D "k""#, vec![ok("")]), done(r#"key "k" deleted"#));
        assert_eq!(text(r#"D "k""#, vec![absent()]), done(r#"key "k" not found"#));
        assert_eq!(text(r#"0 "k""#, vec![ok("")]), done(r#"server of key "k" responds"#));
    }

    #[test]
    fn only_a_write_with_one_copy_reports_the_number_of_copies() {
        let with = |copies| vec![Ok(Outcome { copies, ..Outcome::default() })];
        let text = |line: &str, copies| end(line, with(copies)).1;
        assert_eq!(text(r#"P "k" "v""#, 1), r#"value["k"] <- "v" (1 copy)"#);
        assert_eq!(text(r#"P "k" "v""#, 2), r#"value["k"] <- "v""#);
        assert_eq!(text(r#"D "k""#, 1), r#"key "k" deleted (1 copy)"#);
        assert_eq!(text(r#"D "k""#, 2), r#"key "k" deleted"#);
        // The last write counts, because it replaces the others.
        let both = [with(1), with(2)].into_iter().flatten().collect();
        assert_eq!(end(r#"P "k" "v" 2"#, both).1, r#"value["k"] <- "v""#);
    }

    #[test]
    fn a_single_blank_is_checked_and_shown_in_its_escaped_form() {
        let line = r#"V "k" "\x20""#;
        let passed = (End::Done, r#"check passed: value["k"] == "\x20""#.to_owned());
        assert_eq!(end(line, vec![ok(" "), ok(" ")]), passed);
        let (how, text) = end(line, vec![absent(), ok(" ")]);
        assert_eq!(how, End::Negative);
        assert!(
            text.ends_with(r#"expected "\x20", the primary has nothing, the secondary has "\x20""#)
        );
    }

    #[test]
    fn a_check_passes_only_if_both_copies_hold_the_value() {
        let line = r#"V "k" "v""#;
        let passed = (End::Done, r#"check passed: value["k"] == "v""#.to_owned());
        assert_eq!(end(line, vec![ok("v"), ok("v")]), passed);
        for copies in [
            vec![ok("v"), ok("w")],
            vec![ok("w"), ok("v")],
            vec![ok("v"), absent()],
            vec![absent(), absent()],
        ] {
            let (how, text) = end(line, copies);
            assert_eq!(how, End::Negative);
            assert!(text.starts_with(r#"check FAILED: key "k": expected "v", the primary has"#));
        }
        let (_, text) = end(line, vec![ok("w"), absent()]);
        assert!(text.ends_with(r#"the primary has "w", the secondary has nothing"#), "{text}");
    }

    #[test]
    fn a_check_for_absence_passes_only_if_neither_copy_has_the_key() {
        let line = r#"V "k" " ""#;
        let passed = (End::Done, r#"check passed: key "k" not found"#.to_owned());
        assert_eq!(end(line, vec![absent(), absent()]), passed);
        assert_eq!(end(line, vec![absent(), ok("v")]).0, End::Negative);
        assert_eq!(end(line, vec![ok(" "), ok(" ")]).0, End::Negative);
    }
}
