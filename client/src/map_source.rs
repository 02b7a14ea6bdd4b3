//! The schedule of requests for the map. The endpoints are tried one after the other, and there is always a pause
//! between two rounds.
//!
//! ```text
//!   wanted --(pause over)--> asking --map--> idle
//!      ^                        |
//!      +---- the next one <-----+  at once after a failure, or after 250 ms of silence
//!
//!   a round: the endpoints that the caller named (coordinators, or servers)
//!            -> none responded: the servers of the last map, one after the other
//! ```
//!
//! An unreachable address (a crashed host, a firewall) must not delay the next one by the whole connect timeout. If an
//! address is silent for [`HEAD_START`], the request also goes to the next one, and the first map counts. RFC 8305
//! ("happy eyeballs") treats the addresses of a name the same way.
//!
//! Endpoints that have all failed are skipped for a while, so that not every request waits for their timeouts. A server
//! returns the newest map that it has received, which may be outdated, so the next request goes to another server. The
//! server that is the reason for the request comes last: it may not have received its exclusion from the view
//! (consistency.md §10).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use kv_protocol::ids::ServerId;

use crate::address::Place;
use crate::backoff::{Backoff, Random};
use crate::options::{Endpoint, Endpoints};

/// The shortest pause between two rounds of requests, so that many failing operations cause only one round.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// The silence after which the next address is tried too: the "connection attempt delay" that RFC 8305 recommends.
const HEAD_START: Duration = Duration::from_millis(250);
/// The maximum number of concurrent requests for the map.
const MAX_ASKED: usize = 4;
/// The initial time for which the endpoints are skipped after all of them have failed, if servers are known. Each
/// further failure of all endpoints doubles the time, up to [`AWAY_LAST`]. Meanwhile the servers provide the map: they
/// receive every change from the coordinator.
const AWAY_FIRST: Duration = Duration::from_secs(1);
/// The longest time for which such endpoints are skipped.
const AWAY_LAST: Duration = Duration::from_secs(8);

/// The source to which a request for the map is sent in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The endpoint at this index.
    Endpoint(usize),
    /// The server at this position of the round.
    Server(usize),
}

/// A request for the map in progress.
#[derive(Clone, Copy, Debug)]
struct Asked {
    source: Source,
    /// The server's id, if the source is a server.
    server: Option<ServerId>,
    /// The connection that carries the request, once it exists.
    connection: Option<u64>,
}

/// The sources of the map; see the module documentation.
#[derive(Debug)]
pub(crate) struct MapSource {
    endpoints: Endpoints,
    /// The servers of the last map from which the map can be requested, in ring order.
    servers: Vec<(ServerId, SocketAddr)>,
    /// The next source of the current round; `None` between two rounds, and once the last source of the round has been
    /// tried.
    upcoming: Option<Source>,
    /// The requests in progress.
    asked: Vec<Asked>,
    /// The number of endpoints tried in this round.
    tried: usize,
    /// The number of endpoints that failed in this round.
    failed: usize,
    /// The server that last provided the map; `None` after a round in which all sources failed.
    last_server: Option<ServerId>,
    /// The time until which endpoints are skipped; `None` if they are not skipped.
    away_until: Option<Instant>,
    /// The length of the next period in which endpoints are skipped.
    away: Duration,
    /// The server that is the reason for the next request.
    doubted: Option<ServerId>,
    /// The server that the current round tries last.
    put_off: Option<ServerId>,
    is_wanted: bool,
    not_before: Instant,
    backoff: Backoff,
    /// The last failure of an endpoint, until one responds.
    trouble: Option<Arc<str>>,
}

impl MapSource {
    pub(crate) fn new(endpoints: Endpoints, now: Instant) -> MapSource {
        MapSource {
            endpoints,
            servers: Vec::new(),
            upcoming: None,
            asked: Vec::new(),
            tried: 0,
            failed: 0,
            last_server: None,
            away_until: None,
            away: AWAY_FIRST,
            doubted: None,
            put_off: None,
            is_wanted: false,
            not_before: now,
            backoff: Backoff::default(),
            trouble: None,
        }
    }

    /// Requests a newer map. `doubted` is the server whose behaviour is the reason; `None` keeps an earlier one.
    pub(crate) fn want(&mut self, doubted: Option<ServerId>) {
        self.is_wanted = true;
        self.doubted = doubted.or(self.doubted);
    }

    /// Returns the time of the next request; `None` while no map is needed or enough requests are in progress.
    pub(crate) fn ask_at(&self) -> Option<Instant> {
        let may_ask = match self.asked.len() {
            0 => true,
            count => count < MAX_ASKED && self.upcoming.is_some(),
        };
        (self.is_wanted && may_ask).then_some(self.not_before)
    }

    /// Returns the source to which the next request is sent now. The caller reports the outcome with
    /// [`MapSource::asking`] or [`MapSource::failed`].
    pub(crate) fn next(&mut self, now: Instant) -> (Source, Place) {
        let source = self.upcoming.unwrap_or_else(|| {
            (self.tried, self.failed) = (0, 0);
            let is_away = self.away_until.is_some_and(|until| now < until);
            match is_away && !self.servers.is_empty() {
                true => Source::Server(0),
                // A round begins with the endpoint that responded last, to this client or to another client with the
                // same endpoints.
                false => Source::Endpoint(self.endpoints.favourite.load(Relaxed)),
            }
        });
        let (server, place) = match source {
            Source::Endpoint(n) => {
                self.tried += 1;
                (None, self.endpoints.list[n].place)
            }
            Source::Server(nth) => {
                if nth == 0 {
                    self.put_off = self.doubted;
                }
                let (id, address) = self.server(nth);
                (Some(id), Place { server: Some(id), address: Some(address) })
            }
        };
        self.upcoming = self.after(source);
        self.asked.push(Asked { source, server, connection: None });
        (source, place)
    }

    /// Returns the source after this one in the same round.
    fn after(&self, source: Source) -> Option<Source> {
        let next_server = match source {
            Source::Endpoint(n) if self.tried < self.endpoints.list.len() => {
                return Some(Source::Endpoint((n + 1) % self.endpoints.list.len()));
            }
            Source::Endpoint(_) => 0,
            Source::Server(nth) => nth + 1,
        };
        (next_server < self.servers.len()).then_some(Source::Server(next_server))
    }

    /// Returns the names of the resolved endpoints as the caller wrote them, separated by commas.
    pub(crate) fn names(&self) -> String {
        let mut names: Vec<&str> = self.endpoints.list.iter().map(|e| e.name.as_str()).collect();
        names.dedup();
        names.join(",")
    }

    /// Records the connection that carries the request to a source.
    pub(crate) fn asking(&mut self, source: Source, connection: u64, now: Instant) {
        self.not_before = now + HEAD_START;
        // The server may also be an endpoint to which a request is already in progress.
        let is_asked = self.source_of(connection).is_some();
        if is_asked {
            self.not_before = now;
            return self.asked.retain(|asked| asked.source != source);
        }
        if let Some(asked) = self.asked.iter_mut().find(|asked| asked.source == source) {
            asked.connection = Some(connection);
        }
    }

    /// Returns the source to which the request of this connection was sent.
    pub(crate) fn source_of(&self, connection: u64) -> Option<Source> {
        let asked = self.asked.iter().find(|asked| asked.connection == Some(connection));
        asked.map(|asked| asked.source)
    }

    /// Handles a map received over this connection. `servers` are the servers of this map that provide the map, in ring
    /// order. Returns the other connections with requests in progress, which are no longer needed.
    pub(crate) fn on_map(
        &mut self,
        connection: u64,
        servers: Vec<(ServerId, SocketAddr)>,
        now: Instant,
    ) -> Vec<u64> {
        let (of_it, others): (Vec<Asked>, Vec<Asked>) =
            self.asked.drain(..).partition(|asked| asked.connection == Some(connection));
        for asked in of_it {
            match asked.source {
                Source::Endpoint(n) => {
                    self.endpoints.favourite.store(n, Relaxed);
                    self.away_until = None;
                    self.away = AWAY_FIRST;
                    self.trouble = None;
                }
                Source::Server(_) => self.last_server = asked.server,
            }
        }
        self.servers = servers;
        self.upcoming = None;
        self.is_wanted = false;
        self.doubted = None;
        self.backoff.reset();
        self.not_before = now + SHORTEST_PAUSE;
        others.iter().filter_map(|asked| asked.connection).collect()
    }

    /// Handles the failure of a source. The next source is due at once, unless all have failed. Returns whether all
    /// have failed.
    pub(crate) fn failed(
        &mut self,
        source: Source,
        why: &str,
        random: &mut Random,
        now: Instant,
    ) -> bool {
        self.asked.retain(|asked| asked.source != source);
        self.not_before = now;
        if let Source::Endpoint(n) = source {
            let Endpoint { name, place } = &self.endpoints.list[n];
            let trouble = match (place.address, place.server) {
                (None, Some(server)) => format!(
                    "requesting the map from server {server} by its socket in {name}: {why}; is the server running?"
                ),
                (address, _) => format!(
                    "requesting the map from {}: {why}; is the coordinator running at {name}, and is the port its \
                     clients port?",
                    address.map_or_else(|| name.clone(), |address| address.to_string())
                ),
            };
            self.trouble = Some(trouble.into());
            self.failed += 1;
            if self.failed == self.endpoints.list.len() {
                self.away_until = Some(now + self.away);
                self.away = (self.away * 2).min(AWAY_LAST);
            }
        }
        let have_all_failed = self.upcoming.is_none() && self.asked.is_empty();
        if have_all_failed {
            self.not_before = now + self.backoff.next(random).max(SHORTEST_PAUSE);
            // The next round starts with the endpoints, even if they failed only recently.
            self.away_until = None;
            self.last_server = None;
        }
        have_all_failed
    }

    /// Returns the last failure of the endpoints.
    pub(crate) fn trouble(&self) -> Option<&Arc<str>> {
        self.trouble.as_ref()
    }

    /// Returns the server at position `nth` of a round. The order follows the ring after the server that responded
    /// last; the doubted server comes last.
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
        let endpoint =
            |&port: &u16| Endpoint { name: format!("c:{port}"), place: Place::at(at(port)) };
        MapSource::new(ports.iter().map(endpoint).collect::<Vec<_>>().into(), now)
    }

    fn port_of(place: Place) -> u16 {
        place.address.unwrap().port()
    }

    fn servers() -> Vec<(ServerId, SocketAddr)> {
        (0..).map(ServerId).zip(SERVERS.map(at)).collect()
    }

    /// Makes `count` requests that fail. Returns the ports in their order.
    fn fail(source: &mut MapSource, count: usize, now: Instant) -> Vec<u16> {
        let mut random = Random::seeded(1);
        let mut asked = Vec::new();
        for _ in 0..count {
            source.want(None);
            let (whom, place) = source.next(now);
            asked.push(port_of(place));
            source.failed(whom, "refused", &mut random, now);
        }
        asked
    }

    fn response(source: &mut MapSource, now: Instant) -> u16 {
        source.want(None);
        let (whom, place) = source.next(now);
        source.asking(whom, 0, now);
        assert_eq!(source.on_map(0, servers(), now), [], "no other request was in progress");
        port_of(place)
    }

    #[test]
    fn a_silent_address_does_not_delay_the_next_one_beyond_the_head_start() {
        let now = Instant::now();
        let mut source = source(&[1, 2, 3, 4, 5, 6], now);
        source.want(None);
        let mut time = now;
        for port in 1..=4 {
            assert_eq!(source.ask_at(), Some(time));
            let (whom, place) = source.next(time);
            assert_eq!(port_of(place), port);
            source.asking(whom, u64::from(port), time);
            time += HEAD_START;
        }
        assert_eq!(source.ask_at(), None, "enough requests are in progress");
        // When one request fails, the next one is due at once.
        let first = source.source_of(1).unwrap();
        assert!(!source.failed(first, "no welcome", &mut Random::seeded(1), time));
        assert_eq!(source.ask_at(), Some(time));
        let (whom, place) = source.next(time);
        assert_eq!(port_of(place), 5);
        source.asking(whom, 5, time);
        // The endpoint that responded first is the first of the next round; the other requests are not needed.
        assert_eq!(source.on_map(3, Vec::new(), time), [2, 4, 5]);
        assert_eq!(source.ask_at(), None);
        assert_eq!(response(&mut source, time), 3);
    }

    #[test]
    fn a_round_fails_when_the_last_of_its_requests_fails() {
        let now = Instant::now();
        let mut source = source(&[1, 2], now);
        source.want(None);
        let (first, _) = source.next(now);
        source.asking(first, 1, now);
        let (second, _) = source.next(now);
        source.asking(second, 2, now);
        let random = &mut Random::seeded(1);
        assert!(!source.failed(second, "refused", random, now));
        assert_eq!(source.ask_at(), None, "the first may still respond");
        assert!(source.failed(first, "no welcome", random, now));
        assert!(source.ask_at().unwrap() > now, "a pause");
    }

    #[test]
    fn a_server_that_is_also_an_endpoint_gets_one_request_at_a_time() {
        let now = Instant::now();
        let mut source = source(&[SERVERS[0]], now);
        response(&mut source, now);
        source.want(None);
        let (endpoint, _) = source.next(now);
        source.asking(endpoint, 8, now);
        let (server, place) = source.next(now);
        assert_eq!(port_of(place), SERVERS[0]);
        // A connection to that address exists.
        source.asking(server, 8, now);
        assert_eq!(source.ask_at(), Some(now), "the next one at once");
        assert_eq!(port_of(source.next(now).1), SERVERS[1]);
    }

    #[test]
    fn servers_are_asked_only_after_every_endpoint_has_failed() {
        let now = Instant::now();
        let mut source = source(&[1, 2], now);
        assert_eq!(fail(&mut source, 3, now), [1, 2, 1], "no server is known yet");
        assert_eq!(response(&mut source, now), 2);
        let start = source.ask_at();
        assert_eq!(start, None, "no map is needed");
        assert_eq!(fail(&mut source, 5, now), [2, 1, 7_000, 7_001, 7_002]);
        assert!(source.ask_at().unwrap() > now, "a pause after a round in which all failed");
        assert_eq!(fail(&mut source, 2, now), [2, 1]);
    }

    #[test]
    fn failed_endpoints_are_skipped_for_a_while_and_servers_take_turns() {
        let now = Instant::now();
        let mut source = source(&[1], now);
        response(&mut source, now);
        assert_eq!(fail(&mut source, 1, now), [1]);
        let asked: Vec<u16> = (0..4).map(|_| response(&mut source, now)).collect();
        assert_eq!(asked, [7_000, 7_001, 7_002, 7_000]);
        assert!(source.trouble().is_some(), "the coordinator is still skipped");
        assert_eq!(response(&mut source, now + AWAY_FIRST), 1, "it is back");
        assert!(source.trouble().is_none());
        assert_eq!(response(&mut source, now), 1);
    }

    #[test]
    fn the_doubted_server_is_asked_last() {
        let now = Instant::now();
        for doubted in 0..3 {
            let mut source = source(&[1], now);
            response(&mut source, now);
            fail(&mut source, 1, now);
            source.want(Some(ServerId(doubted)));
            let asked = fail(&mut source, 3, now);
            assert_eq!(asked[2], SERVERS[usize::from(doubted)], "{asked:?}");
            assert!(SERVERS.iter().all(|port| asked.contains(port)), "{asked:?}");
        }
    }
}
