//! When and where the map is asked for: one endpoint after the other, never more than one question at
//! a time, never without a pause between two rounds.
//!
//! ```text
//!   wanted --(pause over)--> asking --map--> idle
//!      ^                        |
//!      +---- the next one <---failure
//!
//!   a round: the endpoints that the caller named (coordinators, or servers)
//!            -> none answered: the servers of the last map, one after the other
//! ```
//!
//! Coordinators that did not answer are left alone for a moment, so that their silence is not waited for
//! again and again. A server tells what it was told last, so the next question goes to another server;
//! and whoever is himself the reason for asking is asked last: he may not know that he is out
//! (consistency.md §10).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_protocol::ids::ServerId;

use crate::backoff::{Backoff, Random};
use crate::options::Endpoint;

/// The shortest time between the end of one question and the next, so that a crowd of failing
/// operations asks once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// How long endpoints that have all failed are not asked while servers are known; it doubles up to the
/// last. The servers hear of every change from the coordinator, so nothing is missed meanwhile.
const AWAY_FIRST: Duration = Duration::from_secs(1);
const AWAY_LAST: Duration = Duration::from_secs(8);

/// Who is being asked, or asked next in a round that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The endpoint at this place.
    Endpoint(usize),
    /// The so-manieth server of the round.
    Server(usize),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MapSource {
    endpoints: Vec<Endpoint>,
    /// The servers of the last map that may be asked, in ring order.
    servers: Vec<(ServerId, SocketAddr)>,
    /// Where the round is; `None` between two.
    at: Option<Source>,
    /// The endpoint that a round begins with: the one that answered last.
    favourite: usize,
    /// Endpoints that have failed in this round.
    failed: usize,
    /// The server that is being asked, and the one that has answered last.
    asked: Option<ServerId>,
    last_server: Option<ServerId>,
    /// Until when the endpoints are not asked, and how long that is the next time.
    away_until: Option<Instant>,
    away: Duration,
    /// The server that is the reason for asking, and the one that this round comes to at its end.
    doubted: Option<ServerId>,
    put_off: Option<ServerId>,
    is_wanted: bool,
    not_before: Instant,
    /// The connection that asks.
    connection: Option<u64>,
    backoff: Backoff,
    /// What was last in the way of an endpoint, until one answers.
    trouble: Option<Arc<str>>,
}

impl MapSource {
    pub(crate) fn new(endpoints: Vec<Endpoint>, now: Instant) -> MapSource {
        MapSource {
            endpoints,
            servers: Vec::new(),
            at: None,
            favourite: 0,
            failed: 0,
            asked: None,
            last_server: None,
            away_until: None,
            away: AWAY_FIRST,
            doubted: None,
            put_off: None,
            is_wanted: false,
            not_before: now,
            connection: None,
            backoff: Backoff::default(),
            trouble: None,
        }
    }

    /// Somebody needs a newer map. `doubted`: the server that made him need it.
    pub(crate) fn want(&mut self, doubted: Option<ServerId>) {
        self.is_wanted = true;
        self.doubted = doubted.or(self.doubted);
    }

    /// When to ask next; `None` while nobody needs it or it is being asked.
    pub(crate) fn ask_at(&self) -> Option<Instant> {
        (self.is_wanted && self.connection.is_none()).then_some(self.not_before)
    }

    /// Whom to ask now.
    pub(crate) fn next(&mut self, now: Instant) -> SocketAddr {
        let at = self.at.unwrap_or_else(|| {
            self.failed = 0;
            let is_away = self.away_until.is_some_and(|until| now < until);
            match is_away && !self.servers.is_empty() {
                true => Source::Server(0),
                false => Source::Endpoint(self.favourite),
            }
        });
        self.at = Some(at);
        match at {
            Source::Endpoint(n) => self.endpoints[n].address,
            Source::Server(nth) => {
                if nth == 0 {
                    self.put_off = self.doubted;
                }
                let (id, address) = self.server(nth);
                self.asked = Some(id);
                address
            }
        }
    }

    /// All that the caller named, as he wrote them.
    pub(crate) fn names(&self) -> String {
        let mut names: Vec<&str> = self.endpoints.iter().map(|e| e.name.as_str()).collect();
        names.dedup();
        names.join(",")
    }

    /// This connection asks now.
    pub(crate) fn asking(&mut self, connection: u64) {
        self.connection = Some(connection);
    }

    /// A map came; these are its servers that may be asked, in ring order.
    pub(crate) fn answered(&mut self, servers: Vec<(ServerId, SocketAddr)>, now: Instant) {
        match self.at.take() {
            Some(Source::Endpoint(n)) => {
                self.favourite = n;
                self.away_until = None;
                self.away = AWAY_FIRST;
                self.trouble = None;
            }
            Some(Source::Server(_)) => self.last_server = self.asked,
            None => {}
        }
        self.servers = servers;
        self.connection = None;
        self.is_wanted = false;
        self.doubted = None;
        self.backoff.reset();
        self.not_before = now + SHORTEST_PAUSE;
    }

    /// Handles a failure to get a map there: asks the next endpoint, at once unless all have failed. Returns whether
    /// all have.
    pub(crate) fn failed(&mut self, why: &str, random: &mut Random, now: Instant) -> bool {
        self.connection = None;
        self.not_before = now;
        let next = match self.at {
            Some(Source::Endpoint(n)) => {
                let Endpoint { name, address } = &self.endpoints[n];
                let trouble = format!(
                    "asking {address} for the map: {why}; is the coordinator running at {name}, and is the port its clients port?"
                );
                self.trouble = Some(trouble.into());
                self.failed += 1;
                if self.failed < self.endpoints.len() {
                    Some(Source::Endpoint((n + 1) % self.endpoints.len()))
                } else {
                    self.away_until = Some(now + self.away);
                    self.away = (self.away * 2).min(AWAY_LAST);
                    (!self.servers.is_empty()).then_some(Source::Server(0))
                }
            }
            Some(Source::Server(nth)) => {
                (nth + 1 < self.servers.len()).then_some(Source::Server(nth + 1))
            }
            None => None,
        };
        if next.is_none() {
            self.not_before = now + self.backoff.next(random).max(SHORTEST_PAUSE);
            // The endpoints are asked again, however lately they failed.
            self.away_until = None;
            self.last_server = None;
        }
        self.at = next;
        next.is_none()
    }

    /// What was last in the way of the endpoints.
    pub(crate) fn trouble(&self) -> Option<&Arc<str>> {
        self.trouble.as_ref()
    }

    /// The so-manieth server of a round: they follow the one that answered last around the ring, and the
    /// one that is put off comes at the end.
    fn server(&self, nth: usize) -> (ServerId, SocketAddr) {
        let behind = |&(id, _): &(ServerId, SocketAddr)| self.last_server.is_none_or(|l| id > l);
        let start = self.servers.iter().position(behind).unwrap_or(0);
        let mut around: Vec<_> =
            self.servers[start..].iter().chain(&self.servers[..start]).collect();
        around.sort_by_key(|(id, _)| self.put_off == Some(*id));
        *around[nth]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: [u16; 3] = [7_000, 7_001, 7_002];

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn source(ports: &[u16], now: Instant) -> MapSource {
        let endpoint = |&port: &u16| Endpoint { name: format!("c:{port}"), address: at(port) };
        MapSource::new(ports.iter().map(endpoint).collect(), now)
    }

    fn servers() -> Vec<(ServerId, SocketAddr)> {
        (0..).map(ServerId).zip(SERVERS.map(at)).collect()
    }

    /// Asks, and fails, `count` times; whom.
    fn fail(source: &mut MapSource, count: usize, now: Instant) -> Vec<u16> {
        let mut random = Random::seeded(1);
        let mut asked = Vec::new();
        for _ in 0..count {
            source.want(None);
            asked.push(source.next(now).port());
            source.failed("refused", &mut random, now);
        }
        asked
    }

    fn answer(source: &mut MapSource, now: Instant) -> u16 {
        source.want(None);
        let port = source.next(now).port();
        source.answered(servers(), now);
        port
    }

    #[test]
    fn servers_are_asked_when_every_endpoint_has_failed_and_never_before() {
        let now = Instant::now();
        let mut source = source(&[1, 2], now);
        assert_eq!(fail(&mut source, 3, now), [1, 2, 1], "no server is known yet");
        assert_eq!(answer(&mut source, now), 2);
        let start = source.ask_at();
        assert_eq!(start, None, "nobody needs it");
        assert_eq!(fail(&mut source, 5, now), [2, 1, 7_000, 7_001, 7_002]);
        assert!(source.ask_at().unwrap() > now, "a pause after a round in which all failed");
        assert_eq!(fail(&mut source, 2, now), [2, 1]);
    }

    #[test]
    fn endpoints_that_are_away_are_left_alone_for_a_while_and_servers_take_turns() {
        let now = Instant::now();
        let mut source = source(&[1], now);
        answer(&mut source, now);
        assert_eq!(fail(&mut source, 1, now), [1]);
        let asked: Vec<u16> = (0..4).map(|_| answer(&mut source, now)).collect();
        assert_eq!(asked, [7_000, 7_001, 7_002, 7_000]);
        assert!(source.trouble().is_some(), "the coordinator is still away");
        assert_eq!(answer(&mut source, now + AWAY_FIRST), 1, "it is back");
        assert!(source.trouble().is_none());
        assert_eq!(answer(&mut source, now), 1);
    }

    #[test]
    fn the_server_that_is_doubted_is_asked_last() {
        let now = Instant::now();
        for doubted in 0..3 {
            let mut source = source(&[1], now);
            answer(&mut source, now);
            fail(&mut source, 1, now);
            source.want(Some(ServerId(doubted)));
            let asked = fail(&mut source, 3, now);
            assert_eq!(asked[2], SERVERS[usize::from(doubted)], "{asked:?}");
            assert!(SERVERS.iter().all(|port| asked.contains(port)), "{asked:?}");
        }
    }
}
