//! The engine, which advances operations. One turn runs the timers, sends, waits on epoll and processes responses.
//!
//! ```text
//!  start -> Ready -> (route) -> Assigned -> (WELCOME) sent -> response -> finish
//!             ^         |           |                           |
//!             |         v           v lost, overdue             v WRONG_VIEW, UNAVAILABLE, BUSY
//!             +-- AwaitingMap <-- BackingOff <------------------+
//!             +-- AwaitingWindow (a write beyond the session's 64)
//!             +-- AwaitingDoubt (an earlier write to the key is in doubt)
//! ```
//!
//! Only the wait on epoll blocks, and it ends at the next timer. Sending and receiving are in `engine/traffic.rs`.

mod counting;
mod early;
mod scanning;
mod settling;
mod traffic;
mod updating;

pub(crate) use early::Early;
use settling::Meeting;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{ClientId, ClusterId, GroupId, RequestSeq, ServerId, ShardId};
use kv_protocol::placement::Digest;

use crate::address::Sockets;
use crate::backoff::Random;
use crate::completion::{Ends, Reply, SubmitError};
use crate::connection::{Connection, Target};
use crate::doubt::OpenDoubts;
use crate::error::{Error, OpenError};
use crate::free_list::FreeList;
use crate::fresh_ids::FreshIds;
use crate::inherited::Descriptors;
use crate::log::Level;
use crate::map_source::MapSource;
use crate::operation::{Kind, Notify, OpId, Operation, Operations, Stage};
use crate::options::{Endpoints, Options};
use crate::poller::{Poller, Readiness, Waiter};
use crate::route_cache::{CachedRoute, Place, RouteCache};
use crate::router::{Route, Router};
use crate::statistics::Counts;
use crate::table::Table;
use crate::timers::Timers;

/// The maximum number of bytes of keys and values in flight. If no operation is in flight, one of any size may be
/// submitted.
const MAX_BYTES_IN_FLIGHT: usize = 64 << 20;
/// The time without a response or a connection after which an operation checks for a newer view (consistency.md §10).
const OVERDUE_AFTER: Duration = Duration::from_millis(150);
/// The interval of further checks.
const OVERDUE_AGAIN: Duration = Duration::from_millis(100);
/// The time to the next scan if no connection and no request for the map needs an earlier one.
const IDLE: Duration = Duration::from_secs(3_600);

/// The engine of one client; see the module documentation.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) options: Options,
    client: ClientId,
    /// A source of client ids for sessions that cannot continue under the old one.
    fresh_ids: FreshIds,
    random: Random,
    poller: Poller,
    router: Router,
    map_source: MapSource,
    sockets: Sockets,
    /// The id of another cluster whose map was received from an address of this client's cluster.
    other_cluster: Option<ClusterId>,
    /// True if a whole round of requests for the map has failed, and another cluster has responded. The next turn then
    /// ends the operations that wait, and clears the flag.
    is_stranded: bool,
    routes: RouteCache,
    /// The writes in doubt whose numbers are still open.
    doubts: OpenDoubts,
    /// The number of RESOLVEs that the engine itself has in flight.
    resolvers: usize,
    operations: Operations,
    pub(crate) free_list: FreeList,
    bytes_in_flight: usize,
    ready: VecDeque<OpId>,
    connections: Table<Connection>,
    by_target: HashMap<Target, u64>,
    /// The connections that may have output to send.
    dirty: Vec<u64>,
    /// One timer for each operation.
    timers: Timers,
    /// The time by which a connection or the map source needs attention; operations have `timers`.
    next_scan: Instant,
    /// The number of operations that have ended.
    ended: u64,
    readiness: Vec<Readiness>,
    /// The time at which bytes last arrived from any peer.
    heard_at: Option<Instant>,
    counts: Counts,
}

impl Engine {
    pub(crate) fn new(endpoints: Endpoints, options: Options) -> Result<Engine, OpenError> {
        let poller = Poller::new()
            .map_err(|reason| OpenError::System { what: "creating an epoll descriptor", reason })?;
        if let Some(interrupt) = &options.interrupt {
            poller.add_interrupt(interrupt).map_err(|reason| OpenError::System {
                what: "adding the interrupt to the epoll set",
                reason,
            })?;
        }
        let mut seed = [0; 24];
        getrandom::fill(&mut seed).map_err(|error| OpenError::System {
            what: "choosing a random id",
            reason: io::Error::other(error),
        })?;
        let (id, jitter) = seed.split_at(16);
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, &byte| (n << 8) | u128::from(byte));
        let jitter = u64::try_from(number(jitter)).expect("eight bytes");
        let now = Instant::now();
        Ok(Engine {
            options,
            client: ClientId(number(id)),
            fresh_ids: FreshIds::default(),
            random: Random::seeded(jitter),
            poller,
            router: Router::default(),
            sockets: Sockets::new(endpoints.sockets.clone()),
            map_source: MapSource::new(endpoints, now),
            other_cluster: None,
            is_stranded: false,
            routes: RouteCache::default(),
            doubts: OpenDoubts::default(),
            resolvers: 0,
            operations: Operations::default(),
            free_list: FreeList::default(),
            bytes_in_flight: 0,
            ready: VecDeque::new(),
            connections: Table::default(),
            by_target: HashMap::new(),
            dirty: Vec::new(),
            timers: Timers::default(),
            next_scan: now + IDLE,
            ended: 0,
            readiness: Vec::new(),
            heard_at: None,
            counts: Counts::default(),
        })
    }

    /// Returns the time at which bytes last arrived from any server or coordinator.
    pub(crate) fn heard_at(&self) -> Option<Instant> {
        self.heard_at
    }

    /// Returns whether the cluster's map has ever been received.
    pub(crate) fn has_map(&self) -> bool {
        self.router.has_map()
    }

    pub(crate) fn coordinators(&self) -> String {
        self.map_source.names()
    }

    /// Returns the number of the program's operations that have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.operations.len() - self.resolvers
    }

    /// Checks whether an operation with `bytes` bytes of key and value may be submitted while `uncollected` completions
    /// wait to be collected.
    pub(crate) fn check_room(&self, bytes: usize, uncollected: usize) -> Result<(), SubmitError> {
        let operations = self.in_flight() + uncollected;
        let is_full = operations >= self.options.window
            || (operations > 0 && self.bytes_in_flight + bytes > MAX_BYTES_IN_FLIGHT);
        if is_full {
            return Err(SubmitError::Full { operations, bytes: self.bytes_in_flight });
        }
        Ok(())
    }

    /// Starts an operation; the next turn sends it.
    pub(crate) fn start(&mut self, operation: Box<Operation>) -> OpId {
        self.bytes_in_flight += operation.bytes();
        let id = self.operations.insert(operation);
        self.ready.push_back(id);
        id
    }

    /// Sends all requests that are ready, without waiting. If the client is stranded, first ends the operations that
    /// wait for its replaced cluster.
    fn push_out(&mut self, now: Instant, ends: &mut dyn Ends) {
        if std::mem::take(&mut self.is_stranded) {
            self.fail_stranded(ends);
        }
        self.advance_ready(now, ends);
        self.flush_dirty(now);
    }

    /// Runs the timers, and a scan if one is due, then sends.
    pub(crate) fn begin_turn(&mut self, now: Instant, ends: &mut dyn Ends) {
        while let Some((at, id)) = self.timers.take_due(now) {
            let of_timer = |operation: &&mut Box<Operation>| operation.timer == Some(at);
            let Some(operation) = self.operations.get_mut(id).filter(of_timer) else {
                self.timers.note_stale();
                continue;
            };
            operation.timer = None;
            if operation.wake_at() <= now {
                self.on_due(id, now, ends);
            }
            self.arm(id);
        }
        if now >= self.next_scan {
            self.scan(now);
        }
        self.push_out(now, ends);
    }

    /// Returns the time of the next timer or scan.
    pub(crate) fn next_timer(&self) -> Instant {
        self.timers.next().map_or(self.next_scan, |at| at.min(self.next_scan))
    }

    /// Sets the timer of an operation according to its stage.
    fn arm(&mut self, id: OpId) {
        if let Some(operation) = self.operations.get_mut(id) {
            let at = operation.wake_at();
            self.timers.set(id, &mut operation.timer, at);
        }
    }

    /// Runs the parts of a turn that receive nothing: timers and sends.
    ///
    /// # Errors
    /// If the timer cannot be set.
    pub(crate) fn send(&mut self, ends: &mut dyn Ends) -> io::Result<()> {
        let now = Instant::now();
        self.begin_turn(now, ends);
        self.set_timer(now)
    }

    /// Runs one turn: timers, sends, at most one wait, responses. The wait ends when a connection is ready, at the next
    /// timer, or at `until`. If an operation has already ended in this turn, there is no wait.
    ///
    /// # Errors
    /// If waiting on epoll or setting the timer fails, which neither servers nor networks can cause.
    pub(crate) fn turn(&mut self, until: Instant, ends: &mut dyn Ends) -> io::Result<()> {
        let now = Instant::now();
        let ended = self.ended;
        self.begin_turn(now, ends);
        let wait = if self.ended != ended {
            Duration::ZERO
        } else {
            until.min(self.next_timer()).saturating_duration_since(now)
        };
        let mut readiness = std::mem::take(&mut self.readiness);
        readiness.clear();
        let waited = self.poller.wait(wait, &mut readiness);
        let now = self.end_turn(&readiness, ends);
        self.readiness = readiness;
        waited.and_then(|()| self.set_timer(now))
    }

    /// Receives from the ready connections, and sends the requests that result from the responses. Returns the current
    /// time.
    pub(crate) fn end_turn(&mut self, readiness: &[Readiness], ends: &mut dyn Ends) -> Instant {
        let now = Instant::now();
        for &event in readiness {
            self.on_readiness(event, now, ends);
        }
        self.push_out(now, ends);
        now
    }

    /// Returns a key of each group; empty before the first map.
    pub(crate) fn key_of_each_group(&self) -> Vec<Vec<u8>> {
        self.router.key_of_each_group()
    }

    /// Returns all descriptors of this engine, by number.
    pub(crate) fn descriptors(&self) -> Descriptors {
        self.poller.descriptors().clone()
    }

    /// Returns a handle with which a thread waits on epoll without access to the engine.
    pub(crate) fn waiter(&self) -> Waiter {
        self.poller.waiter()
    }

    /// Adds a timer to the epoll set, so that due work makes the descriptor readable too.
    ///
    /// # Errors
    /// If the system provides no timer.
    pub(crate) fn add_timer(&mut self) -> io::Result<()> {
        self.poller.add_timer()?;
        self.set_timer(Instant::now())
    }

    /// Returns the epoll descriptor. With a timer, it is readable when a turn has work to do.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.poller.descriptor()
    }

    /// Sets the timer, if there is one, to the time of the next turn that no socket signals.
    pub(crate) fn set_timer(&mut self, now: Instant) -> io::Result<()> {
        let due = if self.ready.is_empty() { self.next_timer() } else { now };
        self.poller.set_timer(due, now)
    }

    /// Makes the descriptor readable at once, if the epoll set has a timer.
    pub(crate) fn wake(&mut self, now: Instant) -> io::Result<()> {
        self.poller.set_timer(now, now)
    }

    /// Ends an operation early because a system call failed.
    pub(crate) fn abandon(
        &mut self,
        id: OpId,
        cause: &io::Error,
        now: Instant,
        ends: &mut dyn Ends,
    ) {
        if let Some(operation) = self.operations.get_mut(id) {
            operation.trouble = Some(format!("waiting for responses: {cause}").into());
            self.expire(id, now, ends);
        }
    }

    /// Ends all operations early because a system call failed.
    pub(crate) fn abandon_all(&mut self, cause: &io::Error, now: Instant, ends: &mut dyn Ends) {
        let all: Vec<OpId> = self.operations.iter().map(|(id, _)| id).collect();
        for id in all {
            self.abandon(id, cause, now, ends);
        }
    }

    fn wake_by(&mut self, at: Instant) {
        self.next_scan = self.next_scan.min(at);
    }

    /// Requests a newer map. `doubted` is the server whose behaviour is the reason, if any.
    fn want_map(&mut self, doubted: Option<ServerId>) {
        self.map_source.want(doubted);
        if let Some(at) = self.map_source.ask_at() {
            self.wake_by(at);
        }
    }

    // --- Timers ----------------------------------------------------------------------------------

    /// Closes connections whose WELCOME or map is overdue, and requests the map if a request is due.
    fn scan(&mut self, now: Instant) {
        self.next_scan = now + IDLE;
        let timeout = self.options.connect_timeout;
        // The message omits the length of the timeout, because it may be longer than the deadline of an operation that
        // waited for only a part of it.
        let stuck: Vec<(u64, &str)> = self
            .connections
            .iter()
            .filter(|(_, c)| now >= c.opened_at + timeout)
            .filter_map(|(token, c)| Some((token, c.owes()?)))
            .collect();
        for (token, owed) in stuck {
            self.lose(token, &format!("no {owed} within the connect timeout"), now);
        }
        if self.map_source.ask_at().is_some_and(|at| at <= now) {
            self.ask_for_map(now);
        }
        let owing = self.connections.values().filter(|c| c.owes().is_some());
        let next = owing.map(|c| c.opened_at + timeout).min();
        for at in [next, self.map_source.ask_at()].into_iter().flatten() {
            self.wake_by(at);
        }
    }

    fn on_due(&mut self, id: OpId, now: Instant, ends: &mut dyn Ends) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        if now >= operation.deadline {
            return self.expire(id, now, ends);
        }
        match operation.stage {
            Stage::BackingOff { .. } => self.make_ready(id),
            Stage::Assigned { .. } => {
                operation.is_overdue = true;
                operation.attention_at = now + OVERDUE_AGAIN;
                let (place, view, server) = (operation.place, operation.view, operation.server);
                if place.is_some_and(|(group, _)| self.router.version(group) > view) {
                    self.make_ready(id);
                } else {
                    self.want_map(server);
                }
            }
            Stage::Ready | Stage::AwaitingMap | Stage::AwaitingWindow | Stage::AwaitingDoubt => {}
        }
    }

    fn expire(&mut self, id: OpId, now: Instant, ends: &mut dyn Ends) {
        // A request that was not sent whole has no effect.
        self.release(id);
        let Some(operation) = self.operations.get(id) else { return };
        let is_down = operation.server.is_some_and(|server| self.router.is_down(server));
        let error = operation.expired(is_down, &self.map_source);
        // If nothing has arrived on the connection since the operation was assigned, and that was at least the connect
        // timeout ago, the connection may be dead. It is closed, so that the next operation does not wait until the
        // kernel detects that.
        let silent = match operation.stage {
            Stage::Assigned { connection, .. }
                if now - operation.assigned_at >= self.options.connect_timeout =>
            {
                let since = operation.assigned_at;
                self.connections
                    .get(connection)
                    .is_some_and(|c| c.heard_at < since)
                    .then_some(connection)
            }
            _ => None,
        };
        self.finish(id, Err(error), ends);
        if let Some(token) = silent {
            self.lose(token, "the server sent nothing for longer than the connect timeout", now);
        }
    }

    // --- The path of an operation ----------------------------------------------------------------

    fn make_ready(&mut self, id: OpId) {
        if let Some(operation) = self.operations.get_mut(id) {
            operation.stage = Stage::Ready;
            self.ready.push_back(id);
        }
    }

    fn advance_ready(&mut self, now: Instant, ends: &mut dyn Ends) {
        while !self.ready.is_empty() {
            self.digest_ready();
            for _ in 0..Digest::TOGETHER {
                let Some(id) = self.ready.pop_front() else { break };
                self.advance(id, now, ends);
            }
        }
    }

    /// Computes the digests of the next few short keys together, if there are at least two.
    fn digest_ready(&mut self) {
        let mut ids = [0; Digest::TOGETHER];
        let mut keys: [&[u8]; Digest::TOGETHER] = [&[]; Digest::TOGETHER];
        let mut count = 0;
        for &id in self.ready.iter().take(Digest::TOGETHER) {
            if let Some(key) = self.operations.get(id).and_then(|operation| operation.short_key()) {
                (ids[count], keys[count]) = (id, key);
                count += 1;
            }
        }
        if count < 2 {
            return;
        }
        for (&id, digest) in ids[..count].iter().zip(Digest::of_several(&keys[..count])) {
            if let Some(operation) = self.operations.get_mut(id) {
                operation.set_digest(digest);
            }
        }
    }

    /// Routes an operation and assigns it to a connection.
    fn advance(&mut self, id: OpId, now: Instant, ends: &mut dyn Ends) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        if operation.stage != Stage::Ready {
            return;
        }
        if operation.kind == Kind::Scan && !self.locate_scan(id, ends) {
            return;
        }
        let Some(operation) = self.operations.get_mut(id) else { return };
        let router = &self.router;
        let Some(place) = operation.place.or_else(|| {
            let digest = operation.digest();
            router.locate(digest, operation.key())
        }) else {
            operation.stage = Stage::AwaitingMap;
            self.timers.set(id, &mut operation.timer, operation.deadline);
            return self.want_map(None);
        };
        let (group, shard) = place;
        let is_new = operation.place.replace(place).is_none();
        if is_new && operation.kind.is_update() && !self.check_keys(id, place, ends) {
            return;
        }
        let Some(operation) = self.operations.get_mut(id) else { return };
        if operation.doubt.is_some() || !self.doubts.is_empty() {
            match self.meet_doubt(id, now) {
                Meeting::GoOn => {}
                Meeting::Wait => return,
                Meeting::Settled(result) => return self.finish_settled(id, result, ends),
            }
        }
        let Some(operation) = self.operations.get_mut(id) else { return };
        let mut client = self.client;
        if operation.kind.is_write() {
            let Place { session, waiting, .. } = self.routes.get_or_make(place, client);
            let given_up = |(client, _)| operation.doubtful == 0 && client != session.client();
            if operation.session.is_none_or(given_up) {
                operation.session = session.begin().map(|seq| (session.client(), seq));
            }
            let Some((of, _)) = operation.session else {
                operation.stage = Stage::AwaitingWindow;
                let deadline = operation.deadline;
                self.timers.set(id, &mut operation.timer, deadline);
                waiting.push(id);
                return self.settle_place(place, now);
            };
            client = of;
        } else if let Some((of, _)) = operation.session {
            client = of;
        }
        let is_usual = client == self.client && operation.kind.role() == ReplicaRole::Primary;
        if is_usual
            && let Some(route) = self.routes.get_mut(place).and_then(|place| place.route)
            && route.maps == self.counts.maps
            && self.connections.get(route.connection).is_some()
        {
            return self.assign(id, route, now, ends);
        }
        let view = self.router.version(group);
        operation.view = view;
        let (member, address) = match self.router.route(group, operation.kind.role()) {
            Route::To { member, address } => (member, address),
            Route::Lost => return self.finish_lost(id, group, ends),
            Route::Nowhere { server } => {
                operation.server = server;
                let trouble = match server {
                    Some(server) => format!("the map has no address of server {server} yet"),
                    None => {
                        format!("the map names no server for this operation in group {group} yet")
                    }
                };
                self.back_off(id, &trouble.into(), now);
                return self.want_map(None);
            }
        };
        let server = member.server;
        operation.server = Some(server);
        match self.connect(Target::Shard { member, address, shard, client }, now) {
            Ok(connection) => {
                let route = CachedRoute { maps: self.counts.maps, view, server, connection };
                if is_usual {
                    self.routes.get_or_make(place, self.client).route = Some(route);
                }
                self.assign(id, route, now, ends);
            }
            Err(error) => {
                let at = self.shown_address(member, address);
                let trouble = format!("connecting to server {member} at {at}: {error}");
                self.options.log.write(Level::Warning, || trouble.clone());
                self.back_off(id, &trouble.into(), now);
                self.want_map(Some(server));
            }
        }
    }

    fn assign(&mut self, id: OpId, route: CachedRoute, now: Instant, ends: &mut dyn Ends) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        let token = route.connection;
        operation.view = route.view;
        operation.server = Some(route.server);
        operation.stage = Stage::Assigned { connection: token, request: None };
        operation.assigned_at = now;
        operation.attention_at = now + OVERDUE_AFTER;
        operation.is_overdue = false;
        let wake_at = operation.wake_at();
        self.timers.set(id, &mut operation.timer, wake_at);
        let Some(connection) = self.connections.get_mut(token) else { return };
        if connection.is_open {
            self.transmit(id, token, now, ends);
        } else {
            connection.backlog.push_back(id);
        }
    }

    /// Schedules a retry of an operation after its back-off, and records the reason.
    fn back_off(&mut self, id: OpId, trouble: &Arc<str>, now: Instant) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        let until = now + operation.backoff.next(&mut self.random);
        operation.stage = Stage::BackingOff { until };
        operation.trouble = Some(Arc::clone(trouble));
        operation.was_busy = false;
        let wake_at = operation.wake_at();
        self.timers.set(id, &mut operation.timer, wake_at);
        let server = operation.server;
        self.note_retry(server);
    }

    /// Handles a new map: advances the operations that waited for it or for a newer view, and closes connections to
    /// replaced processes.
    fn on_new_map(&mut self, now: Instant) {
        let router = &self.router;
        self.sockets.retain(|member| router.knows(member));
        let moved: Vec<OpId> = self
            .operations
            .iter()
            .filter(|(_, operation)| {
                let is_newer =
                    operation.place.is_some_and(|(g, _)| router.version(g) > operation.view);
                match operation.stage {
                    Stage::AwaitingMap => true,
                    Stage::BackingOff { .. } => is_newer,
                    Stage::Assigned { .. } => is_newer && operation.is_overdue,
                    Stage::Ready | Stage::AwaitingWindow | Stage::AwaitingDoubt => false,
                }
            })
            .map(|(id, _)| id)
            .collect();
        for id in moved {
            self.make_ready(id);
        }
        let gone: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| match c.target {
                Target::Shard { member, .. } => !self.router.knows(member),
                Target::Map { .. } => false,
            })
            .map(|(token, _)| token)
            .collect();
        for token in gone {
            self.lose(token, "according to the map, another process has replaced it", now);
        }
    }

    fn finish_lost(&mut self, id: OpId, group: GroupId, ends: &mut dyn Ends) {
        self.release(id);
        let Some(operation) = self.operations.get(id) else { return };
        let action = operation.action();
        let cause = format!("the map reports group {group} as lost");
        // Only a completion record is definite once a write was sent (consistency.md §8).
        let error = if operation.doubtful > 0 {
            Error::InDoubt { action, cause, doubt: None }
        } else {
            Error::Lost { action, cause }
        };
        self.finish(id, Err(error), ends);
    }

    /// Ends the operations that wait for the map or for a retry, after another cluster has replaced this client's
    /// cluster.
    fn fail_stranded(&mut self, ends: &mut dyn Ends) {
        let (Some(known), Some(got)) = (self.router.cluster(), self.other_cluster) else { return };
        let waits = |operation: &Operation| {
            matches!(operation.stage, Stage::AwaitingMap | Stage::BackingOff { .. })
        };
        let waiting = self.operations.iter().filter(|(_, operation)| waits(operation));
        let waiting: Vec<OpId> = waiting.map(|(id, _)| id).collect();
        for id in waiting {
            self.release(id);
            let Some(operation) = self.operations.get(id) else { continue };
            let action = operation.action();
            let error = match operation.doubtful {
                0 => Error::OtherCluster { action, known, got },
                _ => {
                    let cause = format!(
                        "cluster {known} was replaced by cluster {got}, which was not restored from it"
                    );
                    Error::InDoubt { action, cause, doubt: None }
                }
            };
            self.finish(id, Err(error), ends);
        }
    }

    /// Ends an operation and passes its result to the caller.
    fn finish(&mut self, id: OpId, mut result: Result<Reply<'_>, Error>, ends: &mut dyn Ends) {
        if self.operations.get(id).is_some_and(|operation| operation.queued.is_some()) {
            self.release(id);
        }
        let Some(mut operation) = self.operations.remove(id) else { return };
        self.timers.clear(&mut operation.timer);
        let operations = &self.operations;
        self.timers.tidy(|id, at| operations.get(id).is_some_and(|other| other.timer == Some(at)));
        self.bytes_in_flight -= operation.bytes();
        let mut number = operation.session;
        if let (true, Err(Error::InDoubt { doubt, .. })) = (operation.kind.is_write(), &mut result)
            && !operation.is_forgotten
            && let Some(named) =
                self.router.cluster().and_then(|cluster| operation.doubt_of(cluster))
        {
            *doubt = Some(named.clone());
            self.doubts.add(named);
            // The number stays open until the write is settled.
            number = None;
        }
        if let (true, Some(place)) = (operation.kind.is_write(), operation.place) {
            if operation.stage == Stage::AwaitingWindow
                && let Some(place) = self.routes.get_mut(place)
            {
                let operations = &self.operations;
                place.waiting.remove_one(|id| operations.get(id).is_none());
            }
            self.leave_session(place, number);
        }
        if let Some(doubt) = operation.doubt.take() {
            self.on_resolved(id, &doubt, &result, ends);
        }
        self.ended += 1;
        let notify = operation.notify;
        if let Err(error) = &result {
            self.note_failure(&operation, error);
        }
        self.resolvers -= usize::from(notify == Notify::None);
        self.free_list.give(operation);
        ends.end(id, notify, result);
    }

    /// Marks `number` as finished, if it belongs to the current session of the place. `None` finishes no number. Then
    /// assigns the next numbers to the writes that wait for room in the window. They get them in order of submission,
    /// so a later write cannot overtake them.
    fn leave_session(&mut self, place: (GroupId, ShardId), number: Option<(ClientId, RequestSeq)>) {
        let Some(Place { session, waiting, .. }) = self.routes.get_mut(place) else { return };
        if let Some((client, seq)) = number
            && client == session.client()
        {
            session.finish(seq);
        }
        while session.room() > 0
            && let Some(id) = waiting.next()
        {
            // A write that ended while it waited is no longer in the table.
            if let Some(operation) = self.operations.get_mut(id) {
                operation.session = session.begin().map(|seq| (session.client(), seq));
                operation.stage = Stage::Ready;
                self.ready.push_back(id);
            }
        }
    }
}
