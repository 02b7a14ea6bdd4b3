//! Requests, the pending log, commits, and the sending end of the stream.

use std::time::Duration;

use kv_protocol::client_message::{
    Answer, Condition, Operation, ReplicaRole, Request, Status, WriteHeader,
};
use kv_protocol::ids::{ClientId, ClusterId, RequestId, RequestSeq, SequenceNumber, Time};
use kv_protocol::limits::{BEACON_INTERVAL, SESSION_IDLE};
use kv_protocol::peer_message::{
    Ack, BatchWriter, Beacon, CompletionRecord, Effect, PeerHello, PeerMessage, PeerWelcome,
};
use kv_protocol::placement::Digest;

use super::pending::{PendingLog, PendingWrite};
use super::{Answers, ConnectionId, Pumped, Replica, Role, StreamError};
use crate::session::{LoggedRecord, Lookup};
use crate::table::TableHash;

/// How often idle sessions are looked for, how many are forgotten at once, and how soon the next ones
/// follow when there are more.
const FORGET_INTERVAL: Duration = SESSION_IDLE.checked_div(10).expect("ten is not zero");
const FORGET_AT_ONCE: usize = 256;
const FORGET_MORE_INTERVAL: Duration = Duration::from_millis(100);

/// What a primary knows beside table and sessions.
#[derive(Debug, Default)]
pub(super) struct Primary {
    pub(super) log: PendingLog,
    stream: Stream,
    /// When idle sessions are looked for next.
    forget_at: Option<Time>,
}

/// The stream to the other holder.
#[derive(Clone, Copy, Debug, Default)]
enum Stream {
    #[default]
    Down,
    Up {
        /// The newest `t_send` given to it; a beacon is due an interval later.
        t_send: Option<Time>,
    },
}

impl Primary {
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.stream, Stream::Up { .. })
    }

    fn beacon_due(&self) -> Option<Time> {
        match self.stream {
            Stream::Down => None,
            Stream::Up { t_send: None } => Some(Time::default()),
            Stream::Up { t_send: Some(last) } => Some(last + BEACON_INTERVAL),
        }
    }
}

/// A write as the newest pending state decides it.
struct Decision {
    effect: Effect,
    status: Status,
    /// The version answered; `None`: the write's own sequence number.
    version: Option<SequenceNumber>,
}

/// Whom an answer goes to.
#[derive(Clone, Copy)]
struct Asker {
    connection: ConnectionId,
    request: RequestId,
}

impl Replica {
    /// Serves a request of a client whose key is in this group and shard. Reads are answered at
    /// once, writes when they are committed.
    pub fn on_request(
        &mut self,
        now: Time,
        connection: ConnectionId,
        client: ClientId,
        request: &Request<'_>,
        answers: &mut impl Answers,
    ) {
        debug_assert_eq!(
            self.config.placement.locate(request.digest),
            (self.config.group, self.config.shard)
        );
        let asker = Asker { connection, request: request.id };
        if request.view > self.view_version() {
            let reason = "the view of this request has not come here yet";
            return self.refuse(asker, Status::Unavailable, reason, answers);
        }
        let role_asked = match request.operation {
            Operation::Verify(role) => role,
            _ => ReplicaRole::Primary,
        };
        match self.role() {
            None => {
                let reason = "this server has no view of the group yet";
                return self.refuse(asker, Status::Unavailable, reason, answers);
            }
            Some(role) if role != role_asked => {
                let reason = "another server serves this key";
                return self.refuse(asker, Status::WrongView, reason, answers);
            }
            Some(_) => {}
        }
        match request.operation {
            Operation::Get | Operation::Verify(_) => self.read(asker, request, answers),
            Operation::Noop => {
                self.refuse(asker, Status::Ok, "", answers);
            }
            Operation::Put(header, value) => {
                self.write(now, asker, client, request, header, Some(value), answers);
            }
            Operation::Delete(header) => {
                self.write(now, asker, client, request, header, None, answers);
            }
        }
    }

    fn read(&self, asker: Asker, request: &Request<'_>, answers: &mut impl Answers) {
        let hash = self.config.hash_secret.of_key(request.digest, request.key);
        let entry = self.table.get(hash, request.key);
        let (status, version, value) = match &entry {
            Some(entry) => (Status::Ok, entry.version, entry.value),
            None => (Status::NotFound, SequenceNumber::ZERO, &[][..]),
        };
        let view = self.view_version();
        let answer = Answer { id: asker.request, status, copies: 0, view, version, value };
        answers.answer(asker.connection, &answer);
    }

    #[allow(clippy::too_many_arguments)] // A request, taken apart once.
    fn write(
        &mut self,
        now: Time,
        asker: Asker,
        client: ClientId,
        request: &Request<'_>,
        header: WriteHeader,
        value: Option<&[u8]>,
        answers: &mut impl Answers,
    ) {
        if self.is_retry(now, asker, client, header, answers) {
            return;
        }
        if self.draining {
            let reason = "this server is being stopped and takes no new writes";
            return self.refuse(asker, Status::Unavailable, reason, answers);
        }
        let bytes = request.key.len() + value.map_or(0, <[u8]>::len);
        let Role::Primary(primary) = &self.role else { return };
        if !primary.log.has_room(bytes) {
            let reason = "too many writes wait for the other replica";
            return self.refuse(asker, Status::Busy, reason, answers);
        }
        let hash = self.config.hash_secret.of_key(request.digest, request.key);
        let decision = self.decide(hash, request.key, header.condition, value.is_some());
        let stored = if decision.effect == Effect::Put { value.unwrap_or(&[]) } else { &[] };
        if decision.effect == Effect::Put && !self.has_memory(bytes) {
            let reason = "the memory limit is reached; delete entries or raise --memory-limit";
            return self.refuse(asker, Status::OutOfSpace, reason, answers);
        }
        let Ok(mut staged) = self.table.stage(hash, request.key, stored.len()) else {
            let reason = "the server's machine has no memory left; delete entries";
            return self.refuse(asker, Status::OutOfSpace, reason, answers);
        };
        self.table.staged_append(&mut staged, stored);
        let Role::Primary(primary) = &self.role else { return };
        let sn = primary.log.last().next();
        let record = CompletionRecord {
            client,
            seq: header.seq,
            first_incomplete: header.first_incomplete,
            status: decision.status,
            version: decision.version.unwrap_or(sn),
        };
        self.sessions.record(now, sn, record);
        self.log(
            PendingWrite {
                effect: decision.effect,
                digest: request.digest,
                hash,
                record,
                staged: Some(staged),
                waiter: Some((asker.connection, asker.request)),
                bytes,
            },
            answers,
        );
    }

    /// Whether the write needs no execution: it is known, or must not be executed.
    fn is_retry(
        &mut self,
        now: Time,
        asker: Asker,
        client: ClientId,
        header: WriteHeader,
        answers: &mut impl Answers,
    ) -> bool {
        let (status, reason) =
            match self.sessions.look_up(client, header.seq, header.first_incomplete) {
                Lookup::New => return false,
                Lookup::Logged(logged) => {
                    self.sessions.touch(now, client);
                    self.answer_logged(asker, logged, answers);
                    return true;
                }
                Lookup::Expired => {
                    (Status::SessionExpired, "this write, or its session, is no longer known")
                }
                Lookup::BeyondWindow => {
                    (Status::Invalid, "seq is too far ahead of the first incomplete one")
                }
                Lookup::TooManySessions => (Status::Busy, "too many clients write to this shard"),
            };
        self.refuse(asker, status, reason, answers);
        true
    }

    /// Answers a retry from its record, once that is committed.
    fn answer_logged(&mut self, asker: Asker, logged: LoggedRecord, answers: &mut impl Answers) {
        let Role::Primary(primary) = &mut self.role else { return };
        if logged.sn > primary.log.committed() {
            let write = primary.log.get_mut(logged.sn).expect("uncommitted writes are pending");
            write.waiter = Some((asker.connection, asker.request));
            return;
        }
        self.answer_write(asker, &logged.record, answers);
    }

    /// What the write does to the newest pending state.
    fn decide(&self, hash: TableHash, key: &[u8], condition: Condition, is_put: bool) -> Decision {
        if is_put && condition == Condition::Always {
            return Decision { effect: Effect::Put, status: Status::Ok, version: None };
        }
        let current = self.newest_version(hash, key);
        let holds = match condition {
            Condition::Always => true,
            Condition::IfVersion(version) => current == Some(version),
            Condition::IfAbsent => current.is_none(),
        };
        let nothing = |status| Decision {
            effect: Effect::Nothing,
            status,
            version: Some(current.unwrap_or(SequenceNumber::ZERO)),
        };
        match (holds, is_put, current) {
            (false, ..) => nothing(Status::Conflict),
            (true, true, _) => Decision { effect: Effect::Put, status: Status::Ok, version: None },
            (true, false, Some(_)) => {
                Decision { effect: Effect::Delete, status: Status::Ok, version: None }
            }
            (true, false, None) => nothing(Status::NotFound),
        }
    }

    /// The version of a key as of the last pending write.
    fn newest_version(&self, hash: TableHash, key: &[u8]) -> Option<SequenceNumber> {
        let Role::Primary(primary) = &self.role else { return None };
        match primary.log.newest_change(&self.table, hash, key) {
            Some((sn, Effect::Put)) => Some(sn),
            Some(_) => None,
            None => self.table.get(hash, key).map(|entry| entry.version),
        }
    }

    fn has_memory(&self, bytes: usize) -> bool {
        let used = (self.table.used_bytes() + bytes) as u64;
        self.config.memory_limit.is_none_or(|limit| used <= limit)
    }

    fn log(&mut self, write: PendingWrite, answers: &mut impl Answers) {
        let Role::Primary(primary) = &mut self.role else { return };
        primary.log.push(write);
        self.commit_if_alone(answers);
    }

    /// A primary without another holder commits what it logs.
    pub(super) fn commit_if_alone(&mut self, answers: &mut impl Answers) {
        if self.view.is_some_and(|view| view.secondary().is_none())
            && let Role::Primary(primary) = &self.role
        {
            let last = primary.log.last();
            self.commit_up_to(last, answers);
        }
    }

    fn commit_up_to(&mut self, sn: SequenceNumber, answers: &mut impl Answers) {
        while let Role::Primary(primary) = &mut self.role
            && primary.log.committed() < sn
        {
            let write = primary.log.commit_oldest().expect("sn is at most the last assigned");
            let committed = primary.log.committed();
            match (write.effect, write.staged) {
                (Effect::Put, Some(staged)) => {
                    self.table.commit(staged, committed);
                }
                (Effect::Delete, Some(staged)) => {
                    self.table.commit_removal(staged);
                }
                (_, Some(staged)) => self.table.discard(staged),
                (_, None) => {}
            }
            if let Some((connection, request)) = write.waiter {
                self.answer_write(Asker { connection, request }, &write.record, answers);
            }
        }
    }

    fn answer_write(&self, asker: Asker, record: &CompletionRecord, answers: &mut impl Answers) {
        let copies = self.view.map_or(0, |view| view.copies());
        let answer = Answer {
            id: asker.request,
            status: record.status,
            copies,
            view: self.view_version(),
            version: record.version,
            value: &[],
        };
        answers.answer(asker.connection, &answer);
    }

    fn refuse(&self, asker: Asker, status: Status, reason: &str, answers: &mut impl Answers) {
        let answer = Answer {
            id: asker.request,
            status,
            copies: 0,
            view: self.view_version(),
            version: SequenceNumber::ZERO,
            value: reason.as_bytes(),
        };
        answers.answer(asker.connection, &answer);
    }

    /// The hello with which a primary opens its stream; `None` when there is nobody to dial.
    pub fn peer_hello(&self, cluster: ClusterId) -> Option<PeerHello> {
        let view = self.view?;
        let Role::Primary(_) = &self.role else { return None };
        Some(PeerHello {
            cluster,
            from: self.config.me,
            to: view.other()?,
            shard: self.config.shard,
            shards: self.config.placement.shards(),
            view,
        })
    }

    /// The other holder has taken the stream: sends go on after the last write it has applied, and
    /// what it has applied counts as acked.
    ///
    /// # Errors
    /// [`StreamError::Impossible`] when its log cannot be ours.
    pub fn on_peer_welcome(
        &mut self,
        welcome: &PeerWelcome,
        answers: &mut impl Answers,
    ) -> Result<(), StreamError> {
        if self.frozen {
            return Err(StreamError::Frozen);
        }
        let installed = self.view_version();
        if welcome.view != installed {
            return Err(StreamError::View { got: welcome.view, installed });
        }
        let Role::Primary(primary) = &mut self.role else { return Err(StreamError::WrongEnd) };
        if primary.log.rewind(welcome.last).is_none() {
            return Err(StreamError::Impossible {
                claimed: welcome.last,
                committed: primary.log.committed(),
                sent: primary.log.last(),
            });
        }
        primary.stream = Stream::Up { t_send: None };
        self.commit_up_to(welcome.last, answers);
        Ok(())
    }

    /// The stream is gone, at either end; what was not acked is sent again on the next one.
    pub fn on_stream_down(&mut self) {
        match &mut self.role {
            Role::Idle => {}
            Role::Primary(primary) => primary.stream = Stream::Down,
            Role::Secondary(secondary) => secondary.connected = false,
        }
    }

    /// Fills one batch for the stream: what the pending log has not sent, and a beacon when the
    /// other side has heard no clock for an interval. `now` is read just before.
    pub fn pump(&mut self, now: Time, batch: &mut BatchWriter) -> Pumped {
        let view = self.view_version();
        let Role::Primary(primary) = &mut self.role else { return Pumped::Done };
        if !primary.is_connected() || self.frozen {
            return Pumped::Done;
        }
        if primary.beacon_due().is_some_and(|due| due <= now) {
            batch.push(&PeerMessage::Beacon(Beacon { view, t_send: now }));
            primary.stream = Stream::Up { t_send: Some(now) };
        }
        while primary.log.has_unsent() {
            if batch.is_full() {
                return Pumped::More;
            }
            let push = |message: &PeerMessage<'_>| batch.push(message);
            primary.log.send_next(&self.table, view, now, push);
            primary.stream = Stream::Up { t_send: Some(now) };
        }
        Pumped::Done
    }

    pub(super) fn on_ack(
        &mut self,
        ack: &Ack,
        answers: &mut impl Answers,
    ) -> Result<(), StreamError> {
        let Role::Primary(primary) = &mut self.role else { return Err(StreamError::WrongEnd) };
        let (committed, sent) = (primary.log.committed(), primary.log.sent());
        if ack.sn > sent || !primary.is_connected() {
            return Err(StreamError::Impossible { claimed: ack.sn, committed, sent });
        }
        self.commit_up_to(ack.sn, answers);
        Ok(())
    }

    /// When [`Replica::on_timeout`] (and then [`Replica::pump`]) is wanted next.
    pub fn next_timeout(&self) -> Option<Time> {
        let Role::Primary(primary) = &self.role else { return None };
        match (primary.beacon_due(), primary.forget_at) {
            (Some(beacon), Some(forget)) => Some(beacon.min(forget)),
            (beacon, forget) => beacon.or(forget),
        }
    }

    /// Forgets sessions that nobody uses; that is a write of its own, so both holders forget the
    /// same ones.
    pub fn on_timeout(&mut self, now: Time, answers: &mut impl Answers) {
        let Role::Primary(primary) = &mut self.role else { return };
        let due = *primary.forget_at.get_or_insert(now + FORGET_INTERVAL);
        if now < due {
            return;
        }
        let idle = self.sessions.idle(now, FORGET_AT_ONCE);
        let has_more = idle.len() == FORGET_AT_ONCE;
        let interval = if has_more { FORGET_MORE_INTERVAL } else { FORGET_INTERVAL };
        primary.forget_at = Some(now + interval);
        for client in idle {
            self.forget_session(client, answers);
        }
    }

    fn forget_session(&mut self, client: ClientId, answers: &mut impl Answers) {
        let Role::Primary(primary) = &mut self.role else { return };
        if self.draining || !primary.log.has_room(0) {
            return;
        }
        let sn = primary.log.last().next();
        let digest = Digest([0; 16]);
        self.sessions.forget(client);
        self.log(
            PendingWrite {
                effect: Effect::ForgetSession,
                digest,
                hash: self.config.hash_secret.of_key(digest, &[]),
                record: CompletionRecord {
                    client,
                    seq: RequestSeq(0),
                    first_incomplete: RequestSeq(0),
                    status: Status::Ok,
                    version: sn,
                },
                staged: None,
                waiter: None,
                bytes: 0,
            },
            answers,
        );
    }
}
