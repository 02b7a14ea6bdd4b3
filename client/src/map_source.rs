//! When and where the map is asked for: one coordinator after the other, never more than one
//! question at a time, never without a pause between two.
//!
//! ```text
//!   wanted --(pause over)--> asking --map--> idle
//!      ^                        |
//!      +---- next endpoint <--failure
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Random};
use crate::options::Endpoint;

/// The shortest time between the end of one question and the next, so that a crowd of failing
/// operations asks once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct MapSource {
    endpoints: Vec<Endpoint>,
    /// The endpoint to ask next, or being asked.
    at: usize,
    /// Endpoints that failed since the last map.
    failures: usize,
    is_wanted: bool,
    not_before: Instant,
    /// The connection that asks.
    connection: Option<u64>,
    backoff: Backoff,
    trouble: Option<Arc<str>>,
}

impl MapSource {
    pub(crate) fn new(endpoints: Vec<Endpoint>, now: Instant) -> MapSource {
        MapSource {
            endpoints,
            at: 0,
            failures: 0,
            is_wanted: false,
            not_before: now,
            connection: None,
            backoff: Backoff::default(),
            trouble: None,
        }
    }

    /// Somebody needs a newer map.
    pub(crate) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// When to ask next; `None` while nobody needs it or it is being asked.
    pub(crate) fn ask_at(&self) -> Option<Instant> {
        (self.is_wanted && self.connection.is_none()).then_some(self.not_before)
    }

    /// Whom to ask.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoints[self.at]
    }

    /// All that may be asked, as the caller wrote them.
    pub(crate) fn names(&self) -> String {
        let mut names: Vec<&str> = self.endpoints.iter().map(|e| e.name.as_str()).collect();
        names.dedup();
        names.join(",")
    }

    /// This connection asks now.
    pub(crate) fn asking(&mut self, connection: u64) {
        self.connection = Some(connection);
    }

    /// A map came.
    pub(crate) fn answered(&mut self, now: Instant) {
        self.connection = None;
        self.is_wanted = false;
        self.failures = 0;
        self.backoff.reset();
        self.trouble = None;
        self.not_before = now + SHORTEST_PAUSE;
    }

    /// No map came from there: the next endpoint is asked, at once unless all have failed.
    pub(crate) fn failed(&mut self, why: &str, random: &mut Random, now: Instant) {
        self.connection = None;
        let Endpoint { name, address } = self.endpoint();
        let trouble = format!(
            "asking {address} for the map: {why}; is the coordinator running at {name}, and is the port its clients port?"
        );
        self.trouble = Some(trouble.into());
        self.at = (self.at + 1) % self.endpoints.len();
        self.failures += 1;
        self.not_before = if self.failures.is_multiple_of(self.endpoints.len()) {
            now + self.backoff.next(random).max(SHORTEST_PAUSE)
        } else {
            now
        };
    }

    /// What was last in the way.
    pub(crate) fn trouble(&self) -> Option<&Arc<str>> {
        self.trouble.as_ref()
    }
}
