//! The replicas of one shard, as a service to its connections.
//!
//! ```text
//!   connection --- handle_request -------> +---------+ ---- responses --> outputs
//!   peer       --- handle_peer_message --> | Service | ---- pump -------> outputs (batches)
//!   orders     --- install, drain -------> +---------+ ---- due_dials --> the engine dials
//!                                          replicas
//! ```
//!
//! This module does not read a clock and does not depend on a runtime. Output waits in `outputs` until the engine
//! sends it. Long values are sent from the tables (`long_values`).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kv_core::arena::ChunkSource;
use kv_core::hash::HashSecret;
use kv_core::mutations::{self, Mutation};
use kv_core::replica::{
    ConnectionId, InstallError, Pumped, RemovalCounts, Replica, ReplicaConfig, StreamError,
};
use kv_core::session::LoggedRecord;
use kv_protocol::client_message::{
    GROUPS_OF_A_SERVER, Operation, Refusal, ReplicaRole, Request, Response, SessionStart, Status,
    write_map_response,
};
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::ids::{
    ClientId, ClusterId, ClusterKey, GroupId, Member, OrderId, RequestId, SequenceNumber, ServerId,
    ShardId, Time, ViewVersion, WallTime,
};
use kv_protocol::key::Nonce;
use kv_protocol::limits::DEFAULT_DEADLINE;
use kv_protocol::map::Map;
use kv_protocol::peer_message::{
    PeerHello, PeerMessage, PeerRefusal, PeerRefusalReason, PeerWelcome,
};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::view::View;
use kv_protocol::{Eviction, FailureTimeout, RedisMulti};

use crate::address::Address;
use crate::connection_memory::ConnectionMemory;
use crate::event::{Event, EventKind};
use crate::load::LoadPiece;
use crate::log_limit::LogLimit;
use crate::output::{Outputs, PinnedValue};
use crate::redis::gateway::Gateway;

mod inspect;
mod long_values;
mod look_ahead;
mod new_sessions;

use new_sessions::NewSessions;

pub(crate) use look_ahead::{Ahead, Hashed, ReadFrame};

/// The number of unsent bytes at which a stream is no longer pumped, until some of them are sent. A beacon waits behind
/// at most these bytes, one batch, and the bytes that the kernel buffers for the stream (`UNSENT_BYTES` in
/// `server/src/net/socket.rs`).
const STREAM_OUTPUT_BYTES: usize = 64 << 10;
/// The work for a page of a scan. Each unit is up to 100 µs. The work for an addition of a floating-point number is one
/// unit. The work for any other request is limited by its length, except for the bytes that updates make.
const WORK_OF_SCAN: u32 = 4;
/// The number of bytes that an update makes with one unit of work.
const BYTES_OF_WORK: usize = 64 << 10;
/// The initial back-off before a lost stream is dialled again. It doubles up to [`REDIAL_LAST`].
const REDIAL_FIRST: Duration = Duration::from_millis(1);
const REDIAL_LAST: Duration = Duration::from_millis(100);
/// The minimum interval between log lines about an unreachable other holder.
const UNREACHABLE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A source of random nonces for handshakes. It fails if the system has no random numbers.
pub type Nonces = Box<dyn FnMut() -> Result<Nonce, String>>;

/// The identity of a shard, which is constant for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The cluster to which the process belongs.
    pub cluster: ClusterId,
    /// The key with which processes of the cluster authenticate each other.
    pub key: ClusterKey,
    /// The place and incarnation of the process.
    pub me: Member,
    /// The shard that the executor serves.
    pub shard: ShardId,
    /// The numbers of servers and shards, which place each key.
    pub placement: Placement,
    /// The cluster's failure timeout, from which lease durations follow.
    pub failure_timeout: FailureTimeout,
    /// The idle timeout of a client's session.
    pub session_idle: Duration,
    /// The length in bytes above which a value is sent directly from the table ([`LONG_VALUE`](crate::LONG_VALUE) in a
    /// server).
    pub long_value: usize,
}

impl Identity {
    /// Returns the group whose primary is at home on this server.
    pub fn primary_group(&self) -> GroupId {
        self.me.server.home_group()
    }

    /// Returns the group whose secondary is at home on this server: the predecessor's group.
    pub fn secondary_group(&self) -> GroupId {
        let servers = self.placement.servers();
        ServerId((self.me.server.0 + servers - 1) % servers).home_group()
    }

    /// Returns the group for which this server is the home server in this role. A dump of the role contains this
    /// group.
    pub fn group_of(&self, role: ReplicaRole) -> GroupId {
        match role {
            ReplicaRole::Primary => self.primary_group(),
            ReplicaRole::Secondary => self.secondary_group(),
        }
    }
}

/// The reason why a view cannot be installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallRefused {
    /// This server holds no replica of the group.
    #[error("server {server} does not hold group {group}")]
    NotHeld {
        /// The server.
        server: Member,
        /// The group.
        group: GroupId,
    },
    /// The replica rejects the view.
    #[error(transparent)]
    Replica(InstallError),
}

/// Counters of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The number of well-formed requests that this shard received.
    pub requests: u64,
    /// The number of rejections: malformed frames, rejected connections, and connections that exceeded a deadline or
    /// were closed to free memory.
    pub refused: u64,
    /// The number of writes with the response OUT_OF_SPACE.
    pub out_of_space: u64,
    /// The number of entries that its replicas have removed by themselves.
    pub removals: RemovalCounts,
}

/// One shard's replicas and the outputs of its connections.
pub struct Service {
    /// The identity of the shard.
    pub identity: Identity,
    pub(crate) outputs: Outputs,
    /// The newest map that this server has, for clients that cannot reach the coordinator.
    pub(crate) map: Option<Arc<Map>>,
    /// The requests of Redis clients.
    pub(crate) gateway: Gateway,
    nonces: Nonces,
    /// The secret of the hash functions of the tables.
    pub(crate) hash_secret: HashSecret,
    events: Vec<Event>,
    /// The memory limit per table that was applied last.
    table_limit: Option<u64>,
    /// The policy of eviction that was applied last.
    eviction: Eviction,
    counters: Counters,
    /// The number of bytes that the last UPDATE has made.
    updated_bytes: usize,
    hosted: Vec<Hosted>,
    /// Connections that wait for memory for a long frame, in the order in which they began to wait.
    pub(crate) waiting_frames: VecDeque<ConnectionId>,
    refusal_log: LogLimit,
    new_sessions: NewSessions,
    /// True if state that other threads read has changed.
    has_news: bool,
    was_drained: bool,
    /// The time after which a request of a Redis client is given up.
    pub(crate) redis_deadline: Duration,
    /// The treatment of transactions of Redis clients with keys of several shards.
    pub(crate) redis_multi: RedisMulti,
    /// The number of the shard that took the last connection that may be one of a Redis client.
    next_for_redis: u16,
    /// The first reading of the wall clock.
    started: Option<WallTime>,
}

/// A replica and its stream.
struct Hosted {
    replica: Replica,
    /// The connection that carries the stream, at either end.
    stream: Option<ConnectionId>,
    /// The hello with which this server opened the stream; `None` if the other server dialled. The stream is kept
    /// while the replica would send the same hello.
    dialled: Option<PeerHello>,
    /// The address at which the other holder accepts streams, and the version of the view in the order that contained
    /// the address.
    partner: Option<(ViewVersion, SocketAddr)>,
    /// The state of dialling, if this server is the dialling end.
    dial: Option<Dial>,
    /// True once a dump has begun. Then this replica no longer dials.
    is_frozen: bool,
    /// The rate limit of the log lines about an established stream; `down_log` is that of lost streams.
    stands_log: LogLimit,
    down_log: LogLimit,
}

struct Dial {
    address: SocketAddr,
    /// The version of the view that requires the stream.
    view: ViewVersion,
    state: DialState,
    pause: Duration,
    log: LogLimit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DialState {
    /// The stream is to be dialled at this time.
    Due(Time),
    /// The engine is connecting.
    Connecting,
    /// The connection is established; the handshake may still be incomplete.
    Connected,
}

impl Service {
    /// Creates the service of a shard with its two replicas, which have no views yet.
    pub fn new(
        identity: Identity,
        nonces: Nonces,
        connection_memory: Arc<ConnectionMemory>,
        hash_secret: HashSecret,
        mut chunks: impl FnMut() -> Box<dyn ChunkSource>,
    ) -> Service {
        let memory_limit = connection_memory.table_limit();
        let mut host = |group| {
            let config = ReplicaConfig {
                me: identity.me,
                group,
                shard: identity.shard,
                placement: identity.placement,
                memory_limit,
                session_idle: identity.session_idle,
                hash_secret,
                failure_timeout: identity.failure_timeout,
            };
            Hosted {
                replica: Replica::new(config, chunks()),
                stream: None,
                dialled: None,
                partner: None,
                dial: None,
                is_frozen: false,
                stands_log: LogLimit::default(),
                down_log: LogLimit::default(),
            }
        };
        Service {
            identity,
            outputs: Outputs::new(connection_memory),
            map: None,
            gateway: Gateway::default(),
            nonces,
            hash_secret,
            events: Vec::new(),
            table_limit: memory_limit,
            eviction: Eviction::None,
            counters: Counters::default(),
            updated_bytes: 0,
            hosted: vec![host(identity.primary_group()), host(identity.secondary_group())],
            waiting_frames: VecDeque::new(),
            refusal_log: LogLimit::default(),
            new_sessions: NewSessions::default(),
            has_news: false,
            was_drained: false,
            redis_deadline: DEFAULT_DEADLINE,
            redis_multi: RedisMulti::default(),
            next_for_redis: identity.shard.0,
            started: None,
        }
    }

    fn place_of(&self, group: GroupId) -> Option<usize> {
        self.hosted.iter().position(|hosted| hosted.replica.group() == group)
    }

    fn hosted(&mut self, group: GroupId) -> Option<&mut Hosted> {
        self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group)
    }

    /// Returns the replica of a group, if this server has one.
    pub fn replica(&self, group: GroupId) -> Option<&Replica> {
        self.hosted.iter().map(|hosted| &hosted.replica).find(|replica| replica.group() == group)
    }

    /// Returns the replica of a group, if this server has one.
    pub(crate) fn replica_mut(&mut self, group: GroupId) -> Option<&mut Replica> {
        self.hosted(group).map(|hosted| &mut hosted.replica)
    }

    /// Returns the replicas, first that of the server's own group.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.hosted.iter().map(|hosted| &hosted.replica)
    }

    /// Returns the connection that carries a group's stream, whichever end dialled it.
    pub fn stream(&self, group: GroupId) -> Option<ConnectionId> {
        self.hosted.iter().find(|hosted| hosted.replica.group() == group)?.stream
    }

    // --- Clients ---------------------------------------------------------------------------------

    /// Returns the commit positions from which sessions of a client that connects now may begin.
    pub(crate) fn session_starts(&self) -> [SessionStart; GROUPS_OF_A_SERVER] {
        let mut starts = [SessionStart::default(); GROUPS_OF_A_SERVER];
        for (start, hosted) in starts.iter_mut().zip(&self.hosted) {
            let (group, committed) = (hosted.replica.group(), hosted.replica.session_start());
            *start = SessionStart { group, committed };
        }
        starts
    }

    /// Checks that the digest in a write is that of the key, because both holders find the entry by the digest. Reads
    /// are not checked: a read with a wrong digest finds no entry.
    pub(crate) fn check_digest(&self, request: &Request<'_>) -> Result<(), (Status, &'static str)> {
        match request.operation.write_header() {
            Some(_) if request.digest != Digest::of(request.key) => {
                Err((Status::Invalid, "the digest is not the MD5 of the key"))
            }
            _ => Ok(()),
        }
    }

    /// Passes a well-formed request from a client at address `from` to the replica of its key. Rejects it if this shard
    /// has no such replica, or if too many clients of the address begin sessions.
    pub(crate) fn handle_request(
        &mut self,
        now: Time,
        id: ConnectionId,
        (client, from): (ClientId, Address),
        Hashed { request, hash }: &Hashed<'_>,
    ) {
        self.counters.requests += 1;
        let (group, shard) = request.place(&self.identity.placement);
        if shard != self.identity.shard {
            let reason = "the key belongs to another shard; connect to that shard";
            return self.respond_with_refusal(id, request.id, Status::WrongView, reason);
        }
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        let Some(hosted) = hosted else {
            let reason = "this server holds no replica of the group of the key; fetch the map";
            return self.respond_with_refusal(id, request.id, Status::WrongView, reason);
        };
        let checked_at =
            if mutations::is_open(Mutation::RespondedBeforeLease) { Time::default() } else { now };
        if let Some(response) = hosted.replica.response_to_read(checked_at, request, *hash) {
            let is_found = response.status != Status::NotFound;
            if response.value.len() <= self.identity.long_value {
                self.outputs.append(id, |bytes| response.write(bytes));
                if is_found {
                    hosted.replica.note_use(*hash);
                }
                return;
            }
            let (head, length) =
                (response.head(), response.value.len().max(response.whole as usize));
            hosted.replica.note_use(*hash);
            if let Some(pin) = hosted.replica.pin(*hash, request.key) {
                let range = request.operation.range_of(length);
                let value = PinnedValue::new(group, pin, range, request);
                return self.outputs.append_long(id, head, value);
            }
        }
        let begins = hosted.replica.session_count();
        if !self.new_sessions.may_begin(now, from)
            && request.operation.write_header().is_some()
            && !hosted.replica.has_session(client)
        {
            let reason = "too many new clients write from this address; retry later";
            return self.respond_with_refusal(id, request.id, Status::Busy, reason);
        }
        if let Some(output) = self.outputs.get(id) {
            output.expect_response();
        }
        hosted.replica.on_request(now, (id, client), request, *hash, &mut self.outputs);
        if let Operation::Update(..) = request.operation {
            self.updated_bytes = hosted.replica.take_updated_bytes();
        }
        if hosted.replica.session_count() > begins {
            self.new_sessions.note(now, from);
        }
    }

    /// Returns the work for a request that was just passed to a replica.
    pub(crate) fn work_of(&mut self, request: &Request<'_>) -> u32 {
        match request.operation {
            Operation::Scan(_) => WORK_OF_SCAN,
            Operation::Update(_, updates) => {
                let made = std::mem::take(&mut self.updated_bytes) / BYTES_OF_WORK;
                u32::from(updates.floats()).saturating_add(u32::try_from(made).unwrap_or(u32::MAX))
            }
            _ => 0,
        }
    }

    /// Appends an error response for a request that reaches no replica.
    pub(crate) fn respond_with_refusal(
        &mut self,
        id: ConnectionId,
        request: RequestId,
        status: Status,
        reason: &str,
    ) {
        let response = Response {
            id: request,
            status,
            copies: 0,
            view: ViewVersion(0),
            version: SequenceNumber::ZERO,
            value: reason.as_bytes(),
            whole: 0,
            has_value: false,
            deadline: None,
        };
        self.outputs.append(id, |bytes| response.write(bytes));
    }

    /// Sets the newest map that this server has.
    pub fn set_map(&mut self, map: Arc<Map>) {
        self.map = Some(map);
        self.note_new_views();
    }

    /// Responds to a MAP with the newest map that this server has.
    pub(crate) fn respond_to_map(&mut self, id: ConnectionId) {
        match self.map_with_views() {
            Some(map) => self.outputs.append(id, |bytes| write_map_response(bytes, &map)),
            None => {
                let (status, reason) =
                    (Status::Unavailable, "this server has no map yet; retry later");
                self.outputs.append(id, |bytes| Refusal { status, reason }.write(bytes));
            }
        }
    }

    /// Returns the map, updated with newer views of the replicas. A holder installs a view before it receives the map
    /// with this view, and the coordinator may crash in between.
    fn map_with_views(&self) -> Option<Arc<Map>> {
        let mut map = Arc::clone(self.map.as_ref()?);
        for view in self.hosted.iter().filter_map(|hosted| hosted.replica.view()) {
            let group = usize::from(view.group.0);
            let known = map.views.get(group).map(|known| known.version);
            // Clients receive no views before the cluster serves for the first time.
            if known.is_some_and(|known| known > ViewVersion(0) && known < view.version) {
                Arc::make_mut(&mut map).views[group] = *view;
            }
        }
        Some(map)
    }

    /// Counts a command of a Redis client.
    pub(crate) fn count_command(&mut self) {
        self.counters.requests += 1;
        self.gateway.count_command();
    }

    /// Counts a rejected frame or connection, and reports it within the rate limit.
    pub(crate) fn count_refused(&mut self, now: Time, what: &'static str, reason: &str) {
        self.counters.refused += 1;
        if let Some(suppressed) = self.refusal_log.admit(now) {
            let reason = kv_protocol::escape::readable(reason.as_bytes()).to_string();
            let kind = EventKind::Refused { what, reason };
            self.events.push(Event { kind, to_log: Some(suppressed) });
        }
    }

    /// Takes the events since the last call. Their number is small: events that clients can cause are rate-limited,
    /// and the rate of stream events is limited by the back-off of dials.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Draws a nonce for a handshake.
    pub(crate) fn draw_nonce(&mut self) -> Result<Nonce, String> {
        (self.nonces)()
    }

    // --- Streams ---------------------------------------------------------------------------------

    /// Returns the key with which processes of the cluster authenticate each other.
    pub(crate) fn key(&self) -> ClusterKey {
        self.identity.key
    }

    /// Returns the hello for a stream that was just dialled; `None` if the replica no longer requires the stream.
    pub(crate) fn peer_hello(&mut self, group: GroupId) -> Option<PeerHello> {
        let cluster = self.identity.cluster;
        self.hosted(group)?.replica.peer_hello(cluster)
    }

    /// Processes the hello of the other holder, which dialled this server. An earlier stream of the group is closed,
    /// because the other end no longer uses it.
    pub(crate) fn handle_peer_hello(
        &mut self,
        now: Time,
        id: ConnectionId,
        hello: &PeerHello,
    ) -> Result<PeerWelcome, PeerRefusal> {
        let stranger = PeerRefusal { reason: PeerRefusalReason::Stranger, view: None };
        let (cluster, me) = (self.identity.cluster, self.identity.me);
        if hello.cluster != cluster || hello.to != me {
            return Err(stranger);
        }
        let group = hello.group();
        let Some(at) = self.place_of(group) else { return Err(stranger) };
        let hosted = &mut self.hosted[at];
        // The hello is checked before the existing stream is closed.
        hosted.replica.judge_hello(hello)?;
        if let Some(old) = hosted.stream.take() {
            hosted.replica.on_stream_down(now, &mut self.outputs);
            self.outputs.kill(old);
        }
        let welcome = hosted.replica.on_peer_hello(now, hello, &mut self.outputs)?;
        hosted.stream = Some(id);
        hosted.dialled = None;
        self.outputs.set_stream(id);
        self.has_news = true;
        if let Some(suppressed) = hosted.stands_log.admit(now) {
            let (view, last) = (welcome.view, welcome.last);
            let kind = EventKind::StreamEstablished { group, from: Some(hello.from), view, last };
            self.events.push(Event { kind, to_log: Some(suppressed) });
        }
        Ok(welcome)
    }

    /// Processes the welcome with which the other holder accepts this server's stream.
    pub(crate) fn handle_peer_welcome(
        &mut self,
        now: Time,
        group: GroupId,
        id: ConnectionId,
        welcome: &PeerWelcome,
    ) -> Result<(), String> {
        let cluster = self.identity.cluster;
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        let Some(hosted) = hosted.filter(|hosted| hosted.stream == Some(id)) else {
            return Err("this stream was replaced by another".to_owned());
        };
        if hosted.dialled != hosted.replica.peer_hello(cluster) {
            // The replica no longer uses this stream, for example because the welcome was late.
            self.outputs.kill(id);
            return Ok(());
        }
        if let Err(error) = hosted.replica.on_peer_welcome(now, welcome, &mut self.outputs) {
            let kind = EventKind::StreamBroken { group, error };
            let words = kind.to_string();
            self.events.push(Event { kind, to_log: None });
            return Err(words);
        }
        self.has_news = true;
        if let Some(suppressed) = hosted.stands_log.admit(now) {
            let (view, last) = (welcome.view, welcome.last);
            let kind = EventKind::StreamEstablished { group, from: None, view, last };
            self.events.push(Event { kind, to_log: Some(suppressed) });
        }
        Ok(())
    }

    /// Processes the other end's rejection of this server's stream. The rejection may carry a newer view.
    pub(crate) fn handle_peer_refusal(
        &mut self,
        now: Time,
        group: GroupId,
        id: ConnectionId,
        refusal: &PeerRefusal,
    ) {
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        if let Some(hosted) = hosted.filter(|hosted| hosted.stream == Some(id)) {
            hosted.replica.on_peer_refusal(now, refusal, &mut self.outputs);
            self.has_news = true;
        }
    }

    /// Processes a message of a group's stream.
    ///
    /// # Errors
    /// Returns the rejection to send before the stream is closed, and a description of the reason.
    pub(crate) fn handle_peer_message(
        &mut self,
        now: Time,
        group: GroupId,
        id: ConnectionId,
        message: &PeerMessage<'_>,
    ) -> Result<(), (PeerRefusal, String)> {
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        let Some(hosted) = hosted.filter(|hosted| hosted.stream == Some(id)) else {
            let refusal = PeerRefusal { reason: PeerRefusalReason::BrokenStream, view: None };
            return Err((refusal, "this stream was replaced by another".to_owned()));
        };
        let state = hosted.replica.state();
        match hosted.replica.on_peer_message(now, message, &mut self.outputs) {
            Ok(()) => {}
            // A frozen replica ignores writes of the other end, which will be frozen soon too. The stream stays
            // open for beacons.
            Err(StreamError::Frozen) => return Ok(()),
            Err(error) => {
                let reason = match error {
                    StreamError::View { .. } => PeerRefusalReason::OldView,
                    StreamError::OutOfMemory { .. } | StreamError::CopyBeyondLimit { .. } => {
                        PeerRefusalReason::NoMemory
                    }
                    _ => PeerRefusalReason::BrokenStream,
                };
                let refusal = PeerRefusal { reason, view: hosted.replica.view().copied() };
                let kind = EventKind::StreamBroken { group, error };
                let words = kind.to_string();
                self.events.push(Event { kind, to_log: None });
                return Err((refusal, words));
            }
        }
        self.has_news |= hosted.replica.state() != state;
        // Only an ACK resets the back-off. A welcome does not, because a stream that repeatedly breaks right after
        // its welcome must be dialled at growing intervals.
        if let (PeerMessage::Ack(_), Some(dial)) = (message, &mut hosted.dial) {
            dial.pause = REDIAL_FIRST;
        }
        Ok(())
    }

    /// Records that a part of an incomplete message arrived on a group's stream.
    pub(crate) fn handle_part_of_peer_message(
        &mut self,
        now: Time,
        group: GroupId,
        id: ConnectionId,
    ) {
        if let Some(hosted) = self.hosted(group).filter(|hosted| hosted.stream == Some(id)) {
            hosted.replica.on_part_of_message(now);
        }
    }

    /// Handles the loss of a connection that carried a group's stream.
    pub(crate) fn handle_stream_closed(&mut self, now: Time, group: GroupId, id: ConnectionId) {
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        let Some(hosted) = hosted.filter(|hosted| hosted.stream == Some(id)) else { return };
        hosted.stream = None;
        hosted.dialled = None;
        if let Some(dial) = &mut hosted.dial {
            dial.retry(now);
        }
        if let Some(suppressed) = hosted.down_log.admit(now) {
            let kind = EventKind::StreamDown { group };
            self.events.push(Event { kind, to_log: Some(suppressed) });
        }
        hosted.replica.on_stream_down(now, &mut self.outputs);
        self.has_news = true;
    }

    /// Closes streams that no longer match their replica's state, and schedules dials of the streams that replicas
    /// require.
    fn keep_streams(&mut self, now: Time) {
        let cluster = self.identity.cluster;
        for at in 0..self.hosted.len() {
            let hosted = &mut self.hosted[at];
            let wanted = hosted.replica.peer_hello(cluster);
            if hosted.dialled.is_some() && hosted.dialled != wanted {
                hosted.dialled = None;
                if let Some(old) = hosted.stream.take() {
                    hosted.replica.on_stream_down(now, &mut self.outputs);
                    self.outputs.kill(old);
                }
                hosted.dial = None;
                self.has_news = true;
            }
            let address = hosted.partner.filter(|_| !hosted.is_frozen).map(|(_, address)| address);
            match (wanted, address) {
                (Some(hello), Some(address)) => {
                    let is_new = hosted.dial.as_ref().is_none_or(|dial| {
                        dial.address != address || dial.view != hello.view.version
                    });
                    if is_new {
                        hosted.dial = Some(Dial::new(now, address, hello.view.version));
                    }
                }
                _ => hosted.dial = None,
            }
        }
    }

    /// Returns the streams to dial now.
    pub(crate) fn due_dials(&mut self, now: Time) -> Vec<(GroupId, SocketAddr)> {
        self.keep_streams(now);
        let mut due = Vec::new();
        for hosted in &mut self.hosted {
            if let Some(dial) = &mut hosted.dial
                && matches!(dial.state, DialState::Due(at) if at <= now)
            {
                dial.state = DialState::Connecting;
                due.push((hosted.replica.group(), dial.address));
            }
        }
        due
    }

    /// Records that a dialled stream is connected, with `id` as its connection.
    pub(crate) fn handle_dialled(&mut self, now: Time, group: GroupId, id: ConnectionId) {
        let cluster = self.identity.cluster;
        let at = self.hosted.iter().position(|hosted| hosted.replica.group() == group);
        let Some(hosted) = at.map(|at| &mut self.hosted[at]) else { return };
        hosted.dialled = hosted.replica.peer_hello(cluster);
        self.outputs.set_stream(id);
        if let Some(dial) = &mut hosted.dial {
            dial.state = DialState::Connected;
        }
        if let Some(old) = hosted.stream.replace(id) {
            hosted.replica.on_stream_down(now, &mut self.outputs);
            self.outputs.kill(old);
        }
    }

    /// Records that a stream could not be connected and schedules a retry.
    pub(crate) fn handle_dial_failed(&mut self, now: Time, group: GroupId, error: &str) {
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        if let Some(dial) = hosted.and_then(|hosted| hosted.dial.as_mut()) {
            dial.retry(now);
            if let Some(suppressed) = dial.log.admit(now) {
                let (address, error) = (dial.address, error.to_owned());
                let kind = EventKind::DialFailed { group, address, error };
                self.events.push(Event { kind, to_log: Some(suppressed) });
            }
        }
    }

    /// Evicts entries if tables are nearly full, and appends the pending messages of all replicas to their streams. It is
    /// called once at the end of every wake-up, so that PREPAREs and ACKs are sent in batches.
    pub(crate) fn pump(&mut self, now: Time) {
        for hosted in &mut self.hosted {
            hosted.replica.keep_headroom(now, &mut self.outputs);
            let Some(id) = hosted.stream else { continue };
            loop {
                let output = self.outputs.get(id).filter(|output| !output.is_closing());
                if output.is_none_or(|output| output.unsent_bytes() >= STREAM_OUTPUT_BYTES) {
                    break;
                }
                let mut pumped = Pumped::Done;
                self.outputs.append(id, |bytes| pumped = hosted.replica.pump(now, bytes));
                if pumped == Pumped::Done {
                    break;
                }
            }
        }
    }

    // --- Orders and time -------------------------------------------------------------------------

    /// Installs a view. `other` is the address at which the other holder accepts streams; `None` keeps the known
    /// address.
    ///
    /// # Errors
    /// [`InstallRefused`] if this server does not hold the group, or if the replica rejects the view. A view that is
    /// older than the installed one is ignored without an error.
    pub fn install(
        &mut self,
        now: Time,
        view: View,
        other: Option<SocketAddr>,
    ) -> Result<(), InstallRefused> {
        let (group, server) = (view.group, self.identity.me);
        let at = self.place_of(group).ok_or(InstallRefused::NotHeld { server, group })?;
        let hosted = &mut self.hosted[at];
        match hosted.replica.install(now, view, &mut self.outputs) {
            Ok(()) | Err(InstallError::Old { .. }) => {}
            Err(error) => return Err(InstallRefused::Replica(error)),
        }
        if let Some(address) = other
            && hosted.partner.is_none_or(|(version, _)| version <= view.version)
        {
            hosted.partner = Some((view.version, address));
        }
        self.keep_streams(now);
        self.note_new_views();
        self.has_news = true;
        Ok(())
    }

    /// Loads a part of a dump into the empty table of a group that has no view yet.
    ///
    /// # Errors
    /// Fails if this server does not hold the group, if the replica has a view, or if the table gets no memory. After
    /// an error this process cannot serve.
    pub fn load(&mut self, group: GroupId, piece: LoadPiece) -> Result<(), String> {
        let me = self.identity.me;
        let hosted = self.hosted(group);
        let replica =
            &mut hosted.ok_or_else(|| format!("{me} does not hold group {group}"))?.replica;
        if replica.view().is_some() {
            return Err(format!("group {group} already has a view; load the dump before it"));
        }
        match piece {
            LoadPiece::Entries(entries) => {
                let mut loaded = Ok(());
                entries.for_each(|key, value, deadline, version| {
                    if loaded.is_ok() {
                        loaded = replica.load_entry(key, value, deadline, version);
                    }
                });
                loaded.map_err(|error| format!("{error}; raise --memory-limit or add memory"))?;
            }
            LoadPiece::Records(records) => {
                for (LoggedRecord { sn, record }, response) in records {
                    replica.load_record(sn, record, &response);
                }
            }
            LoadPiece::End(line) => replica.finish_load(line.last, line.forgotten),
        }
        self.has_news = true;
        Ok(())
    }

    /// Records the proof that a process is dead.
    pub fn handle_exited(&mut self, now: Time, member: Member) {
        for hosted in &mut self.hosted {
            hosted.replica.on_exited(now, member);
        }
        self.keep_streams(now);
        self.has_news = true;
    }

    /// Stops accepting new writes.
    pub fn drain(&mut self) {
        for hosted in &mut self.hosted {
            hosted.replica.drain();
        }
        self.has_news = true;
    }

    /// Begins to remove the entries of a group, if this server is its primary under the view of this version. The reports
    /// show the progress.
    pub fn begin_flush(&mut self, order: OrderId, group: GroupId, view: ViewVersion) {
        if let Some(hosted) = self.hosted(group) {
            hosted.replica.begin_flush(order, view);
        }
        self.has_news = true;
    }

    /// Freezes all replicas. They accept, send and acknowledge no writes; reads and beacons continue.
    pub fn freeze(&mut self) {
        for hosted in &mut self.hosted {
            hosted.replica.freeze();
            hosted.is_frozen = true;
            hosted.dial = None;
        }
        self.has_news = true;
    }

    /// Returns whether a replica is frozen, because its dump has begun.
    pub fn is_frozen(&self) -> bool {
        self.hosted.iter().any(|hosted| hosted.is_frozen)
    }

    /// Returns whether no write is pending after [`Service::drain`].
    pub fn is_drained(&self) -> bool {
        self.hosted.iter().all(|hosted| hosted.replica.is_drained())
    }

    /// Returns whether a replica is the primary of a view without a secondary.
    pub fn is_sole_primary(&self) -> bool {
        self.hosted.iter().any(|hosted| {
            let is_alone = hosted.replica.view().is_some_and(|view| view.secondary().is_none());
            is_alone && hosted.replica.state().is_primary()
        })
    }

    /// Records a reading of the wall clock, taken at `now`. The driver must call it before the first request.
    pub fn note_wall(&mut self, now: Time, wall: WallTime) {
        self.started.get_or_insert(wall);
        for hosted in &mut self.hosted {
            hosted.replica.note_wall(now, wall);
        }
    }

    /// Sets the time after which a request of a Redis client is given up; the default is [`DEFAULT_DEADLINE`]. It must be
    /// set before the first request.
    pub fn set_redis_deadline(&mut self, deadline: Duration) {
        self.redis_deadline = deadline;
    }

    /// Sets the treatment of transactions of Redis clients with keys of several shards. It must be set before the first
    /// request.
    pub fn set_redis_multi(&mut self, multi: RedisMulti) {
        self.redis_multi = multi;
    }

    /// Returns the shard of this server that takes the next Redis client.
    pub(crate) fn next_for_redis(&mut self) -> ShardId {
        self.next_for_redis = (self.next_for_redis + 1) % self.identity.placement.shards();
        ShardId(self.next_for_redis)
    }

    /// Returns the wall time at which this shard began.
    pub(crate) fn started(&self) -> WallTime {
        self.started.unwrap_or_default()
    }

    /// Returns the port at which this server accepts clients, once the map has it.
    pub(crate) fn clients_port(&self) -> Option<u16> {
        let server = usize::from(self.identity.me.server.0);
        Some(self.map.as_ref()?.servers.get(server)?.clients?.port())
    }

    /// Returns the wall time at `now`.
    pub(crate) fn wall(&self, now: Time) -> WallTime {
        self.hosted[0].replica.wall(now)
    }

    /// Records that the shard is scheduled ([`Replica::look`]). The caller must call it at least every 100 ms.
    pub(crate) fn look(&mut self, now: Time) {
        for hosted in &mut self.hosted {
            hosted.replica.look(now);
        }
    }

    /// Applies the memory limit to the tables, and performs the replicas' timed work that is due.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.handle_gateway_tick(now);
        self.leave_memory_to_connections();
        for hosted in &mut self.hosted {
            if hosted.replica.next_timeout().is_some_and(|due| due <= now) {
                let state = hosted.replica.state();
                hosted.replica.on_timeout(now, &mut self.outputs);
                self.has_news |= hosted.replica.state() != state;
            }
        }
    }

    /// Returns when [`crate::Shard::handle_tick`] has timed work next; `None` if no replica waits for a time.
    pub fn poll_timeout(&self) -> Option<Time> {
        let replicas = self.hosted.iter().filter_map(|hosted| hosted.replica.next_timeout());
        replicas.chain(self.poll_gateway()).min()
    }

    /// Returns when [`crate::Shard::due_dials`] has a stream to dial next; `None` if no dial is due later.
    pub fn poll_dial(&self) -> Option<Time> {
        let dials = self.hosted.iter().filter_map(|hosted| match hosted.dial.as_ref()?.state {
            DialState::Due(at) => Some(at),
            DialState::Connecting | DialState::Connected => None,
        });
        dials.chain(self.poll_link_dial()).min()
    }

    /// Returns the replicas' reports for the heartbeat.
    pub fn reports(&self, now: Time) -> impl Iterator<Item = ReplicaReport> {
        self.hosted.iter().filter_map(move |hosted| hosted.replica.report(now))
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        let mut removals = RemovalCounts::default();
        for replica in self.replicas() {
            let RemovalCounts { evicted, expired } = replica.removal_counts();
            removals.evicted += evicted;
            removals.expired += expired;
        }
        Counters { out_of_space: self.outputs.out_of_space(), removals, ..self.counters }
    }

    /// Makes the next [`Service::take_news`] return true, so that the engine publishes the state and checks the dials.
    pub fn note_news(&mut self) {
        self.has_news = true;
    }

    /// Returns whether state that other threads read has changed since the last call, for example a stream, a view, a
    /// role, or the end of a drain.
    pub fn take_news(&mut self) -> bool {
        let is_drained = self.is_drained();
        let news = self.has_news || is_drained != self.was_drained;
        self.has_news = false;
        self.was_drained = is_drained;
        news
    }
}

impl Dial {
    fn new(now: Time, address: SocketAddr, view: ViewVersion) -> Dial {
        let log = LogLimit::every(UNREACHABLE_LOG_INTERVAL);
        Dial { address, view, state: DialState::Due(now), pause: REDIAL_FIRST, log }
    }

    fn retry(&mut self, now: Time) {
        self.state = DialState::Due(now + self.pause);
        self.pause = (self.pause * 2).min(REDIAL_LAST);
    }
}
