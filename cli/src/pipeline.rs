//! The pipeline of lines: many are in flight, their output keeps the order of the lines, and operations on one key run
//! in order. A line that concerns all keys, such as `scan`, runs alone: after the earlier lines and before the later
//! ones. Its output is passed on in parts.
//!
//! ```text
//!   window:   3:ended  4:in flight  5:ended  6:waits for 4 (same key)  7:in flight …
//!             └ output next
//! ```
//!
//! The timeout of an operation begins when it is sent. A write that ends in doubt is then settled, for up to half of
//! the timeout. If an operation times out, the timeouts of the lines that wait for the same key count from the time at
//! which they were read. A line whose timeout has passed fails without being tried. So all waiting lines end together
//! when the cluster fails.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use kv_client::{Client, Completion, Error, OpOptions, SubmitError, is_deadline};

use super::command::Command;
use super::help;
use super::parse::ParseError;
use super::task::{End, Response, Step, Task};

/// The shortest timeout of an operation.
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
/// The maximum number of lines in the window.
const MAX_LINES: usize = 512;
/// The initial number of lines in the window; it grows as the size of results becomes known.
const FIRST_LINES: usize = 16;
/// The number of bytes of lines and results in the window above which no line is added.
const MAX_BYTES: usize = 64 << 20;

/// A line in the window.
#[derive(Debug)]
enum Slot {
    Running(Box<Task>),
    Ended(Response),
}

/// The lines of one key in the window, in order.
#[derive(Debug, Default)]
struct Queue {
    /// The places of these lines. The first line is in flight, unless it waits for another of its keys.
    places: VecDeque<u64>,
    /// True if the last line of this key that ended got no response in time.
    is_without_response: bool,
}

/// The window of lines; see the module documentation.
#[derive(Debug)]
pub(super) struct Pipeline {
    client: Client,
    /// The timeout of an operation.
    timeout: Duration,
    /// The place of the window's first line. Places count from 0 and are the tags of operations.
    first: u64,
    window: VecDeque<Slot>,
    /// The lines of each key in the window.
    by_key: HashMap<Vec<u8>, Queue>,
    /// The places whose next operation can be submitted.
    to_submit: VecDeque<u64>,
    /// The place of a line that concerns all keys and waits for the earlier lines.
    waits_for_all: Option<u64>,
    /// The parts of the output of such a line.
    parts: Vec<Response>,
    bytes: usize,
    /// The current limit of lines in the window. It depends on the size of the last result.
    lines: usize,
    completions: Vec<Completion>,
    /// True if an operation has failed and no map has ever been received.
    is_cut_off: bool,
    /// True if the last operation that ended got no response in time.
    is_without_response: bool,
}

impl Pipeline {
    /// Creates an empty window. `timeout` is the deadline in the client's options.
    pub(super) fn new(client: Client, timeout: Duration) -> Pipeline {
        Pipeline {
            client,
            timeout,
            first: 0,
            window: VecDeque::new(),
            by_key: HashMap::new(),
            to_submit: VecDeque::new(),
            waits_for_all: None,
            parts: Vec::new(),
            bytes: 0,
            lines: FIRST_LINES,
            completions: Vec::new(),
            is_cut_off: false,
            is_without_response: false,
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns whether the cluster is unreachable: the last operation that ended got no response in time, and nothing
    /// at all was received for at least half of the timeout.
    pub(super) fn is_out_of_touch(&self) -> bool {
        let is_silent = |heard_at: Instant| heard_at.elapsed() >= self.timeout / 2;
        self.is_without_response && self.client.heard_at().is_none_or(is_silent)
    }

    /// Returns whether further lines cannot succeed, because an operation has failed and no map was ever received.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Returns whether the window has room for another line. No line is added behind one that concerns all keys.
    pub(super) fn has_room(&self) -> bool {
        let is_of_all =
            |slot: &Slot| matches!(slot, Slot::Running(task) if task.command().is_of_all_keys());
        let is_blocked = self.window.back().is_some_and(is_of_all);
        !is_blocked && self.window.len() < self.lines && self.bytes < MAX_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// Adds a line that was read at `read_at`, unless it contains no operation.
    pub(super) fn push(
        &mut self,
        line: u64,
        read_at: Instant,
        parsed: Result<Option<Command>, ParseError>,
    ) {
        let ended = |text: String, end| Slot::Ended(Response { line, text, end });
        let slot = match parsed {
            Ok(None) => return,
            Ok(Some(Command::Several(commands))) => {
                for command in commands {
                    self.push(line, read_at, Ok(Some(command)));
                }
                return;
            }
            Ok(Some(Command::Help(word))) => ended(help::text(word), End::Done),
            Err(error) => ended(error.to_string(), End::Error),
            Ok(Some(command)) => Slot::Running(Box::new(Task::new(line, read_at, command))),
        };
        let place = self.first + self.window.len() as u64;
        self.bytes += slot_bytes(&slot);
        if let Slot::Running(task) = &slot {
            let mut is_first = true;
            for key in task.command().keys() {
                let queue = self.by_key.entry(key.to_vec()).or_default();
                queue.places.push_back(place);
                is_first &= queue.places.len() == 1;
            }
            if task.command().is_of_all_keys() {
                self.waits_for_all = Some(place);
            } else if is_first {
                self.to_submit.push_back(place);
            }
        }
        self.window.push_back(slot);
    }

    /// Adds lines that are not tried.
    pub(super) fn push_not_tried(&mut self, lines: RangeInclusive<u64>) {
        self.window.push_back(Slot::Ended(Response::not_tried(lines, self.timeout)));
    }

    /// Sends all operations that can be sent. If any is in flight, waits up to `timeout` for a response. Passes the
    /// results that are next in order to `give`.
    ///
    /// # Errors
    /// The library cannot wait on epoll or set its timer.
    pub(super) fn turn(
        &mut self,
        timeout: Duration,
        mut give: impl FnMut(Response),
    ) -> io::Result<()> {
        self.to_submit.extend(self.waits_for_all.take_if(|place| *place == self.first));
        self.submit();
        let mut completions = std::mem::take(&mut self.completions);
        if self.client.in_flight() > 0 {
            self.client.poll(timeout, &mut completions)?;
        }
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.submit();
        self.parts.drain(..).for_each(&mut give);
        while let Some(Slot::Ended(_)) = self.window.front() {
            if let Some(Slot::Ended(response)) = self.window.pop_front() {
                self.first += 1;
                self.bytes -= response.text.len();
                give(response);
            }
        }
        Ok(())
    }

    fn index(&self, place: u64) -> Option<usize> {
        usize::try_from(place.checked_sub(self.first)?).ok()
    }

    fn slot(&mut self, place: u64) -> Option<&mut Slot> {
        let index = self.index(place)?;
        self.window.get_mut(index)
    }

    fn submit(&mut self) {
        while let Some(place) = self.to_submit.pop_front() {
            let index = usize::try_from(place - self.first).unwrap_or(usize::MAX);
            let Some(Slot::Running(task)) = self.window.get_mut(index) else { continue };
            let queues = &self.by_key;
            let is_silent = |key| queues.get(key).is_some_and(|queue| queue.is_without_response);
            let is_without_response = task.command().keys().into_iter().any(is_silent);
            let deadline = match is_without_response {
                // The write of this line is in doubt. It is settled even if the timeout of the line has passed.
                _ if task.is_in_doubt() => (self.timeout / 2).max(LEAST_TIMEOUT),
                true => self.timeout.saturating_sub(task.read_at().elapsed()),
                false => self.timeout,
            };
            if !is_deadline(deadline) {
                let response = task.not_tried(self.timeout);
                self.end(place, response);
                continue;
            }
            let now = Instant::now();
            let options = OpOptions { deadline: Some(deadline), ..OpOptions::default() };
            let updates = task.updates();
            let Some(op) = task.op(&updates) else { continue };
            match self.client.submit(op, &options, place) {
                Ok(()) => task.set_due(now + deadline),
                Err(SubmitError::Full { .. }) => return self.to_submit.push_front(place),
                Err(SubmitError::Refused(error)) => {
                    let response = task.response(End::Error, error.to_string());
                    self.end(place, response);
                }
            }
        }
    }

    fn complete(&mut self, completion: Completion) {
        let place = completion.tag;
        self.is_cut_off |= completion.result.is_err() && !self.client.has_map();
        let value_bytes = completion.result.as_ref().map_or(0, |outcome| outcome.value.len());
        // The factor of two counts the value and its output, which is at least as long.
        let most = MAX_BYTES / (2 * value_bytes + 1);
        self.lines = (self.lines * 2).min(MAX_LINES).min(most).max(1);
        let Some(index) = self.index(place) else { return };
        let Some(Slot::Running(task)) = self.window.get_mut(index) else { return };
        self.is_without_response = is_silence(&completion.result) && task.is_due();
        for key in task.command().keys() {
            if let Some(queue) = self.by_key.get_mut(key) {
                queue.is_without_response = self.is_without_response;
            }
        }
        match task.on_result(completion.result) {
            Step::Next => self.to_submit.push_front(place),
            Step::Part(response) => {
                self.parts.push(response);
                self.to_submit.push_front(place);
            }
            Step::End(response) => self.end(place, response),
        }
    }

    /// Ends a line. The next line of each of its keys is submitted if it is the first one of all of its own keys.
    fn end(&mut self, place: u64, response: Response) {
        let Some(slot) = self.slot(place) else { return };
        let ended = Slot::Ended(response);
        let (old_bytes, new_bytes) = (slot_bytes(slot), slot_bytes(&ended));
        let old = std::mem::replace(slot, ended);
        self.bytes = self.bytes - old_bytes + new_bytes;
        let Slot::Running(task) = old else { return };
        let keys = task.command().keys();
        let mut next = Vec::new();
        for key in keys {
            let Some(queue) = self.by_key.get_mut(key) else { continue };
            queue.places.pop_front();
            match queue.places.front() {
                Some(&place) => next.push(place),
                None => {
                    self.by_key.remove(key);
                }
            }
        }
        next.sort_unstable();
        next.dedup();
        for place in next {
            if self.is_first(place) {
                self.to_submit.push_back(place);
            }
        }
    }

    /// Returns whether a line is the first one of all of its keys.
    fn is_first(&self, place: u64) -> bool {
        let slot = self.index(place).and_then(|index| self.window.get(index));
        let Some(Slot::Running(task)) = slot else { return false };
        let is_first = |key| {
            let queue = self.by_key.get(key);
            queue.is_some_and(|queue| queue.places.front() == Some(&place))
        };
        task.command().keys().into_iter().all(is_first)
    }
}

/// Returns whether a result can mean that no response arrived before the deadline. BUSY is a response.
fn is_silence<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Timeout { .. } | Error::Unavailable { .. } | Error::InDoubt { .. }))
}

fn slot_bytes(slot: &Slot) -> usize {
    match slot {
        Slot::Running(task) => task.command().bytes(),
        Slot::Ended(response) => response.text.len(),
    }
}
