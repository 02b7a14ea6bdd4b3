//! Writes of clients at a primary: the decision from the newest pending state, and the logging of its changes.

use std::ops::Range;

use kv_protocol::change::{Change, NewEntry};
use kv_protocol::client_message::{Condition, Operation, Request, Status, WriteHeader};
use kv_protocol::ids::{ClientId, RequestHash, SequenceNumber, Time};
use kv_protocol::limits::MAX_RETAINED_BYTES;
use kv_protocol::peer_message::{CompletionRecord, Effect};
use kv_protocol::placement::Digest;
use kv_protocol::update::Updates;

use super::eviction::{Evicted, Lengths};
use super::pending::{More, NewestChange, PendingChange, PendingWrite, Waiters};
use super::requests::Asker;
use super::{Replica, Responses};
use crate::mutations::{self, Mutation};
use crate::retained_bytes::RetainedBytes;
use crate::session::{LoggedRecord, Lookup};
use crate::table::{Room, Staged, TableHash};
use crate::update::{Current, Evaluation, KeyChange, evaluate};

/// A write or RESOLVE of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<'a> {
    pub(super) asker: Asker,
    pub(super) client: ClientId,
    pub(super) request: &'a Request<'a>,
    /// The hash of the key.
    pub(super) hash: TableHash,
    pub(super) header: WriteHeader,
    pub(super) request_hash: RequestHash,
}

/// The outcome of a write, decided from the newest pending state.
struct Decision {
    effect: Effect,
    status: Status,
    /// The version in the response; `None` stands for the sequence number of the write itself.
    version: Option<SequenceNumber>,
}

impl Decision {
    /// The outcome of a PUT whose condition holds.
    const PUT: Decision = Decision { effect: Effect::Put, status: Status::Ok, version: None };
    /// The outcome that settles an unknown write as not executed.
    const NOT_DONE: Decision = Decision {
        effect: Effect::Nothing,
        status: Status::NotDone,
        version: Some(SequenceNumber::ZERO),
    };
}

/// Returns whether two keys are equal. Most are the same key of the same request.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// A rejection: the status and the reason.
type Rejected = (Status, &'static str);

/// The changes of a write, staged in the table.
#[derive(Default)]
struct StagedChanges {
    /// The staged entry of the only change.
    single: Option<Staged>,
    /// Several changes, or a response that is kept for retries.
    more: Option<Box<More>>,
}

impl Replica {
    /// Logs a write that is neither known nor rejected. For a RESOLVE of an unknown write, it logs a write without
    /// effect. Its record has the number and the hash of the unknown write. If the unknown write arrives later, it
    /// counts as a retry and is not executed.
    pub(super) fn write(&mut self, now: Time, write: &Write<'_>, responses: &mut impl Responses) {
        if self.is_known(write, responses) {
            return;
        }
        let logged = match self.draining {
            true => {
                let reason = "this server is being stopped and accepts no new writes";
                Err((Status::Unavailable, reason))
            }
            false => self.decide_and_log(now, write, responses),
        };
        let logged = match logged {
            // A sole holder has removed the entries already.
            Err(EVICTING) if !self.is_evicting() => self.decide_again(now, write, responses),
            logged => logged,
        };
        if let Err((status, reason)) = logged {
            self.refuse(write.asker, status, reason, responses);
        }
    }

    #[cold]
    fn decide_again(
        &mut self,
        now: Time,
        write: &Write<'_>,
        responses: &mut impl Responses,
    ) -> Result<(), Rejected> {
        self.decide_and_log(now, write, responses)
    }

    #[inline(always)]
    fn decide_and_log(
        &mut self,
        now: Time,
        write: &Write<'_>,
        responses: &mut impl Responses,
    ) -> Result<(), Rejected> {
        match &write.request.operation {
            Operation::Update(_, updates) => self.update(now, write, updates, responses),
            Operation::Put(_, value) => self.put_or_delete(now, write, Some(value), responses),
            _ => self.put_or_delete(now, write, None, responses),
        }
    }

    /// Decides a PUT, DELETE or RESOLVE, stages its change, and logs it.
    #[inline]
    fn put_or_delete(
        &mut self,
        now: Time,
        write: &Write<'_>,
        value: Option<&[u8]>,
        responses: &mut impl Responses,
    ) -> Result<(), Rejected> {
        let (key, hash) = (write.request.key, write.hash);
        let bytes = key.len() + value.map_or(0, <[u8]>::len);
        self.check_log_room(bytes, 1)?;
        let decision = match write.request.operation {
            Operation::Resolve(..) if mutations::is_open(Mutation::NotDoneWithoutRecord) => {
                return Err((Status::NotDone, ""));
            }
            Operation::Resolve(..) => Decision::NOT_DONE,
            _ if value.is_some() && write.header.condition == Condition::Always => Decision::PUT,
            _ => self.decide(now, hash, key, write.header.condition, value.is_some()),
        };
        let stored = if decision.effect == Effect::Put { value.unwrap_or(&[]) } else { &[] };
        if decision.effect == Effect::Put {
            let lengths = Lengths { key: key.len(), value: stored.len(), deadline: None };
            self.check_memory(now, lengths, responses)?;
            self.note_use(hash);
        }
        // Only writes that change the key are staged in memory. So a RESOLVE succeeds even without free memory.
        let mut staged = StagedChanges::default();
        if matches!(decision.effect, Effect::Put | Effect::Delete) {
            let mut single =
                self.table.stage(hash, key, stored.len(), None).map_err(|_| NO_MEMORY)?;
            self.table.staged_append(&mut single, stored);
            staged.single = Some(single);
        }
        self.log_write(write, &decision, staged, bytes, responses);
        Ok(())
    }

    /// Evaluates an UPDATE, stages its changes, and logs them.
    fn update(
        &mut self,
        now: Time,
        write: &Write<'_>,
        updates: &Updates<'_>,
        responses: &mut impl Responses,
    ) -> Result<(), Rejected> {
        let key = write.request.key;
        if updates.names_keys() {
            self.check_places(updates)?;
        }
        let wall = self.wall_at(now);
        let evaluation = evaluate(key, updates, wall, |of| {
            let hash = if is_same(of, key) { write.hash } else { self.hash_of(Digest::of(of), of) };
            self.newest(hash, of)
        });
        let Evaluation { status, mut changes, is_done, found, response, made_bytes } = evaluation;
        if mutations::is_open(Mutation::BatchAppliedInPart) && changes.len() > 1 {
            changes.truncate(1);
        }
        let response_bytes = response.as_deref().map_or(0, <[u8]>::len);
        let mut bytes = response_bytes;
        let mut lengths = Lengths { key: 0, value: response_bytes, deadline: None };
        let changes = &changes[..];
        for KeyChange { key, stored } in changes {
            bytes += key.len();
            if let Some(stored) = stored {
                let length = stored.value.len();
                bytes += length;
                (lengths.key, lengths.value) = (lengths.key + key.len(), lengths.value + length);
                lengths.deadline = lengths.deadline.or(stored.deadline);
            }
        }
        self.updated_bytes += bytes.max(made_bytes);
        self.check_log_room(bytes, changes.len())?;
        if lengths.key > 0 {
            self.check_memory(now, lengths, responses)?;
        }
        let retained = response.as_ref().map_or(0, RetainedBytes::heap_bytes);
        if retained > 0 && self.sessions.retained_bytes() + retained > MAX_RETAINED_BYTES {
            let reason = "too many responses with values are kept for retries; retry later";
            return Err((Status::Busy, reason));
        }
        let effect = match changes {
            [] => Effect::Nothing,
            [KeyChange { key: of, stored: Some(_) }] if is_same(of, key) => Effect::Put,
            [KeyChange { key: of, stored: None }] if is_same(of, key) => Effect::Delete,
            _ => Effect::Changes,
        };
        let mut staged = match effect {
            Effect::Put | Effect::Delete => {
                let single = self.stage_one(write.hash, &changes[0])?;
                StagedChanges { single: Some(single), ..Default::default() }
            }
            Effect::Changes => {
                StagedChanges { more: Some(self.stage_all(changes)?), ..Default::default() }
            }
            _ => StagedChanges::default(),
        };
        if let Some(response) = response {
            match &mut staged.more {
                Some(more) => more.response = response,
                None => staged.more = self.new_more(response),
            }
        }
        let version = (!is_done).then_some(found);
        let decision = Decision { effect, status, version };
        self.log_write(write, &decision, staged, bytes, responses);
        Ok(())
    }

    /// Checks that all keys of the updates are of this group and shard.
    fn check_places(&self, updates: &Updates<'_>) -> Result<(), Rejected> {
        let place = (self.config.group, self.config.shard);
        let ignores_tags = mutations::is_open(Mutation::PlacedByWholeKey);
        let placement = self.config.placement;
        let placement = placement.with_hash_tags(placement.hash_tags() && !ignores_tags);
        let is_elsewhere = |key: &[u8]| placement.locate(key) != place;
        for update in updates.iter() {
            let keys = [update.key, update.second_key()];
            if keys.into_iter().flatten().any(is_elsewhere) {
                let reason = "the keys of one request must be of one shard";
                return Err((Status::CrossShard, reason));
            }
        }
        Ok(())
    }

    fn check_log_room(&self, bytes: usize, changes: usize) -> Result<(), Rejected> {
        let has_room =
            self.primary().is_some_and(|primary| primary.sender.log.has_room(bytes, changes));
        match has_room {
            true => Ok(()),
            false => Err((Status::Busy, "too many writes wait for the other replica; retry later")),
        }
    }

    /// Checks that there is memory for entries of these lengths in total, including a response that is kept. If not, it
    /// evicts entries, if the policy allows it.
    fn check_memory(
        &mut self,
        now: Time,
        lengths: Lengths,
        responses: &mut impl Responses,
    ) -> Result<(), Rejected> {
        let mut room = self.make_room(now, lengths);
        if room != Room::Fits && self.evicts() {
            room = match self.evict_for(now, lengths, responses) {
                Evicted::ForRoom(room) => room,
                Evicted::Soon => return Err(EVICTING),
            };
        }
        match room {
            Room::Fits => {
                self.evictions.note_fits(lengths);
                Ok(())
            }
            Room::Compacting => {
                Err((Status::Busy, "the table is being compacted to make room; retry later"))
            }
            Room::Full => {
                let reason = "the memory limit is reached; delete entries or raise --memory-limit";
                Err((Status::OutOfSpace, reason))
            }
        }
    }

    #[inline]
    fn stage_one(&mut self, hash: TableHash, change: &KeyChange<'_>) -> Result<Staged, Rejected> {
        let (value, deadline) = match &change.stored {
            Some(stored) => (&stored.value[..], stored.deadline),
            None => (&[][..], None),
        };
        if change.stored.is_some() {
            self.note_use(hash);
        }
        let staged = self.table.stage(hash, change.key, value.len(), deadline);
        let mut staged = staged.map_err(|_| NO_MEMORY)?;
        self.table.staged_append(&mut staged, value);
        Ok(staged)
    }

    /// Stages several changes and encodes them for the other replica.
    fn stage_all(&mut self, changes: &[KeyChange<'_>]) -> Result<Box<More>, Rejected> {
        let mut more = Box::<More>::default();
        for change in changes {
            let digest = Digest::of(change.key);
            let hash = self.hash_of(digest, change.key);
            let staged = match &change.stored {
                None => None,
                Some(_) => match self.stage_one(hash, change) {
                    Ok(staged) => Some(staged),
                    Err(rejected) => {
                        more.changes.drain(..).filter_map(|change| change.staged).for_each(
                            |staged| {
                                self.table.discard(staged);
                            },
                        );
                        return Err(rejected);
                    }
                },
            };
            let entry = change.stored.as_ref();
            let entry =
                entry.map(|stored| NewEntry { value: &stored.value, deadline: stored.deadline });
            let key = more.encode(&Change { digest, key: change.key, entry });
            more.changes.push(PendingChange { hash, key, staged, back: 0 });
        }
        Ok(more)
    }

    /// Logs a decided write of `bytes` of keys, values and response. Its response waits for the commit.
    #[inline]
    fn log_write(
        &mut self,
        write: &Write<'_>,
        decision: &Decision,
        staged: StagedChanges,
        bytes: usize,
        responses: &mut impl Responses,
    ) {
        let Some(primary) = self.primary() else { return };
        let sn = primary.sender.log.last().next();
        let record = CompletionRecord {
            client: write.client,
            seq: write.header.seq,
            first_incomplete: write.header.first_incomplete,
            status: decision.status,
            version: decision.version.unwrap_or(sn),
            request: write.request_hash,
        };
        let StagedChanges { single, more } = staged;
        let response = more.as_ref().map(|more| &more.response);
        let is_kept = |response: &&RetainedBytes| {
            !response.is_empty() && !mutations::is_open(Mutation::RecordWithoutValue)
        };
        self.sessions.record(sn, record, response.filter(is_kept));
        let mut waiters = Waiters::default();
        if mutations::is_open(Mutation::ResponseBeforeAck)
            || (mutations::is_open(Mutation::RefusalRespondedAtOnce)
                && decision.effect == Effect::Nothing)
        {
            let rest: &[u8] = response.map_or(&[], |response| response);
            self.respond_to_write(write.asker, &record, rest, responses);
        } else {
            waiters.add(write.asker);
        }
        let write = PendingWrite {
            effect: decision.effect,
            back: 0,
            digest: write.request.digest,
            hash: write.hash,
            record,
            staged: single,
            waiters,
            bytes,
            more,
        };
        self.log(write, responses);
    }

    /// Returns whether the write needs no execution because it is known or rejected. The request then has its
    /// response, or waits for that of the known write.
    fn is_known(&mut self, write: &Write<'_>, responses: &mut impl Responses) -> bool {
        let Write { asker, client, header, request_hash: request, .. } = *write;
        let is_resolve = matches!(write.request.operation, Operation::Resolve(..));
        let mut found = self.sessions.look_up(client, &header, request);
        if found == Lookup::TooManySessions {
            self.forget_oldest_sessions(responses);
            found = self.sessions.look_up(client, &header, request);
        }
        let (status, reason) = match found {
            Lookup::New => return false,
            Lookup::Logged(_) if mutations::is_open(Mutation::RetryExecutesTwice) => return false,
            Lookup::Logged(logged)
                if !is_resolve
                    && logged.record.status == Status::NotDone
                    && mutations::is_open(Mutation::LateWriteExecuted) =>
            {
                return false;
            }
            Lookup::Logged(logged)
                if is_resolve
                    && self.primary().is_some_and(|p| logged.sn > p.sender.log.committed())
                    && mutations::is_open(Mutation::ResolveOverPending) =>
            {
                return false;
            }
            Lookup::Logged(logged) => {
                self.respond_from_record(asker, logged, responses);
                return true;
            }
            Lookup::Mismatch => (
                Status::SessionMismatch,
                "client id and number belong to another write; never share a client id",
            ),
            // The expiry is not committed yet, so another primary could still have the session and execute the
            // write.
            Lookup::Expired if self.primary().is_some_and(|primary| primary.is_forgetting()) => {
                (Status::Busy, "sessions are being expired; retry later")
            }
            Lookup::Expired => {
                (Status::SessionExpired, "the record of this write or its session has expired")
            }
            Lookup::BeyondWindow => (
                Status::Invalid,
                "the write is too far ahead of the client's first incomplete write",
            ),
            Lookup::TooManySessions => {
                (Status::Busy, "too many clients write to this shard; retry later")
            }
        };
        self.refuse(asker, status, reason, responses);
        true
    }

    /// Responds to a retry or a RESOLVE from the completion record, once the write is committed.
    fn respond_from_record(
        &mut self,
        asker: Asker,
        logged: LoggedRecord,
        responses: &mut impl Responses,
    ) {
        let Some(primary) = self.primary_mut() else { return };
        if logged.sn > primary.sender.log.committed()
            && !mutations::is_open(Mutation::RetryRespondedUncommitted)
        {
            let write = primary.sender.log.get_mut(logged.sn);
            let write = write.expect("uncommitted writes are pending");
            return write.waiters.add(asker);
        }
        let LoggedRecord { record, .. } = logged;
        let rest = self.sessions.response_of(record.client, record.seq);
        self.respond_to_write(asker, &record, rest, responses);
    }

    /// Decides the outcome of a PUT or DELETE from the newest pending state.
    #[inline(never)] // Most writes are unconditional PUTs, which need no decision.
    fn decide(
        &self,
        now: Time,
        hash: TableHash,
        key: &[u8],
        condition: Condition,
        is_put: bool,
    ) -> Decision {
        let newest = self.newest(hash, key);
        let is_expired = newest.is_some_and(|newest| newest.is_expired(self.wall_at(now)));
        let current = newest.filter(|_| !is_expired).map(|newest| newest.version);
        let holds = match condition {
            Condition::Always => true,
            Condition::IfVersion(version) => current == Some(version),
            Condition::IfAbsent => current.is_none(),
        };
        // The response depends on the expiry of the entry, so the write removes the entry.
        let no_effect = if is_expired { Effect::Delete } else { Effect::Nothing };
        let nothing = |status| Decision {
            effect: no_effect,
            status,
            version: Some(current.unwrap_or(SequenceNumber::ZERO)),
        };
        match (holds, is_put, current) {
            (false, ..) => nothing(Status::Conflict),
            (true, true, _) => Decision::PUT,
            (true, false, Some(_)) => {
                Decision { effect: Effect::Delete, status: Status::Ok, version: None }
            }
            (true, false, None) => nothing(Status::NotFound),
        }
    }

    /// Returns the entry of a key after all pending writes, whether or not its deadline has passed.
    #[inline]
    pub(super) fn newest(&self, hash: TableHash, key: &[u8]) -> Option<Current<'_>> {
        let pending = self.primary()?.sender.log.newest_change(&self.table, hash, key);
        match pending.filter(|_| !mutations::is_open(Mutation::CommittedStateEvaluated)) {
            Some(NewestChange { sn, entry }) => {
                entry.map(|(value, deadline)| Current { value, version: sn, deadline })
            }
            None => {
                let entry = self.table.get(hash, key)?;
                let (value, version) = (entry.value, entry.version);
                Some(Current { value, version, deadline: entry.deadline })
            }
        }
    }

    /// Returns the parts of a write that has only a response. `None` if this replica is no primary.
    #[inline]
    fn new_more(&mut self, response: RetainedBytes) -> Option<Box<More>> {
        self.primary_mut().map(|primary| primary.sender.log.new_more(response))
    }

    #[inline(always)] // A pending write is built where it is kept.
    pub(super) fn log(&mut self, write: PendingWrite, responses: &mut impl Responses) {
        let Some(primary) = self.primary_mut() else { return };
        primary.sender.log.push(write);
        self.commit_if_alone(responses);
    }
}

/// The rejection of a write for which entries are removed.
const EVICTING: Rejected = (Status::Busy, "entries are being evicted to make room; retry later");

/// The rejection if the system has no memory.
const NO_MEMORY: Rejected =
    (Status::OutOfSpace, "the server cannot allocate memory for the entry; delete entries");

impl More {
    /// Appends a change to the encoded ones. Returns the position of its key.
    pub(super) fn encode(&mut self, change: &Change<'_>) -> Range<usize> {
        let from = self.encoded.len() + Change::KEY_OFFSET;
        change.write(&mut self.encoded);
        from..from + change.key.len()
    }
}
