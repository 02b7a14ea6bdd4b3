//! Client requests at a replica. Reads and rejected requests get their response at once, writes when they are
//! committed.

use kv_protocol::client_message::{
    Condition, Operation, ReplicaRole, Request, Response, Status, WriteHeader,
};
use kv_protocol::ids::{ClientId, RequestHash, RequestId, SequenceNumber, Time};
use kv_protocol::peer_message::{CompletionRecord, Effect};
use kv_protocol::placement::Digest;

use super::pending::{PendingWrite, Waiters};
use super::{ConnectionId, Replica, Responses, Role};
use crate::mutations::{self, Mutation};
use crate::session::{LoggedRecord, Lookup};
use crate::table::{Entry, Room, TableHash};

/// The outcome of a write, decided from the newest pending state.
struct Decision {
    effect: Effect,
    status: Status,
    /// The version in the response; `None` stands for the sequence number of the write itself.
    version: Option<SequenceNumber>,
}

impl Decision {
    /// The outcome that settles an unknown write as not executed.
    const NOT_DONE: Decision = Decision {
        effect: Effect::Nothing,
        status: Status::NotDone,
        version: Some(SequenceNumber::ZERO),
    };
}

/// The destination of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) connection: ConnectionId,
    pub(super) request: RequestId,
}

impl Replica {
    /// Serves a client request for a key in this group and shard; `hash` is the key's [`Replica::hash_of`]. Reads and
    /// rejected requests get their response at once; writes get it when they are committed.
    pub fn on_request(
        &mut self,
        now: Time,
        (connection, client): (ConnectionId, ClientId),
        request: &Request<'_>,
        hash: TableHash,
        responses: &mut impl Responses,
    ) {
        debug_assert_eq!(
            self.config.placement.locate(request.digest),
            (self.config.group, self.config.shard)
        );
        debug_assert_eq!(hash, self.hash_of(request.digest, request.key));
        self.readings.note(now);
        if let Some(response) = self.response_to_read(now, request, hash) {
            return responses.respond(connection, &response);
        }
        let asker = Asker { connection, request: request.id };
        if let Err((status, reason)) = self.check_role(now, request) {
            return self.refuse(asker, status, reason, responses);
        }
        match request.operation {
            Operation::Get | Operation::GetPart(_) | Operation::Verify(_) => {
                match self.read(now, request, hash) {
                    Ok(response) => responses.respond(connection, &response),
                    Err((status, reason)) => self.refuse(asker, status, reason, responses),
                }
            }
            Operation::Noop => self.refuse(asker, Status::Ok, "", responses),
            Operation::Put(header, value) => {
                self.write(now, asker, client, (request, hash), header, Some(value), responses);
            }
            Operation::Delete(header) | Operation::Resolve(header, _) => {
                self.write(now, asker, client, (request, hash), header, None, responses);
            }
        }
    }

    /// Returns the response to a GET or VERIFY of a key in this group and shard, with the value borrowed from the
    /// table. The response is the one that [`Replica::on_request`] gives. Returns `None` for all other operations, and
    /// for reads that only [`Replica::on_request`] can serve or reject.
    #[inline]
    pub fn response_to_read(
        &self,
        now: Time,
        request: &Request<'_>,
        hash: TableHash,
    ) -> Option<Response<'_>> {
        let is_active = || self.primary().is_some_and(|primary| primary.is_active());
        let is_served = match request.operation {
            Operation::Get | Operation::GetPart(_) | Operation::Verify(ReplicaRole::Primary) => {
                is_active()
            }
            Operation::Verify(ReplicaRole::Secondary) => matches!(self.role, Role::Secondary(_)),
            _ => false,
        };
        if is_served && request.view <= self.view_version() {
            self.read(now, request, hash).ok()
        } else {
            None
        }
    }

    /// Returns the entry of a key, if there is one, without checking role or lease. Dumps use it, because a frozen
    /// replica needs neither.
    pub fn entry(&self, digest: Digest, key: &[u8]) -> Option<Entry<'_>> {
        self.table.get(self.hash_of(digest, key), key)
    }

    /// Returns the hash of a key, by which the table finds its entry.
    #[inline]
    pub fn hash_of(&self, digest: Digest, key: &[u8]) -> TableHash {
        self.config.hash_secret.of_key(digest, key)
    }

    /// Prefetches the table memory that the next requests and writes will access. This is only a hint; see
    /// [`Table::prefetch`].
    ///
    /// [`Table::prefetch`]: crate::table::Table::prefetch
    #[inline]
    pub fn prefetch(&self, hashes: &[TableHash]) {
        self.table.prefetch(hashes);
    }

    /// Checks that this replica may serve the request under its view and role. First ends the grace of a primary if its
    /// time has passed.
    #[inline]
    fn check_role(
        &mut self,
        now: Time,
        request: &Request<'_>,
    ) -> Result<(), (Status, &'static str)> {
        if request.view > self.view_version() {
            return Err((
                Status::Unavailable,
                "this server has not installed the view of this request yet",
            ));
        }
        let role_asked = match request.operation {
            Operation::Verify(role) => role,
            _ => ReplicaRole::Primary,
        };
        match (&self.role, role_asked) {
            (Role::Primary(primary), ReplicaRole::Primary) if primary.is_active() => Ok(()),
            (Role::Primary(_), ReplicaRole::Primary) => {
                self.advance_standing(now);
                match self.primary().is_some_and(|primary| primary.is_active()) {
                    true => Ok(()),
                    false => Err((
                        Status::Unavailable,
                        "taking over: waiting for the old primary's lease to end",
                    )),
                }
            }
            (Role::Secondary(_), ReplicaRole::Secondary) => Ok(()),
            (Role::TakingOver(_), ReplicaRole::Primary) => {
                Err((Status::Unavailable, "taking over: waiting for the old primary's last writes"))
            }
            (Role::Out, _) if self.view.is_none() => {
                Err((Status::Unavailable, "this server has no view of the group yet"))
            }
            _ => Err((Status::WrongView, "another server serves this key; fetch the map")),
        }
    }

    /// Reads the table. At a primary this is the committed state, and the read needs a valid lease if another member
    /// could become primary. No other code runs between the check of the lease and the look-up. If the request names a
    /// part of the value, the response contains only that part.
    #[inline]
    fn read(
        &self,
        now: Time,
        request: &Request<'_>,
        hash: TableHash,
    ) -> Result<Response<'_>, (Status, &'static str)> {
        let now = self.readings.read(Mutation::StaleClockInLeaseCheck, now);
        if let Some(primary) = self.primary()
            && self.needs_lease()
            && !primary.lease.holds(now)
            && !mutations::is_open(Mutation::ReadWithoutLease)
        {
            let reason = "the other holder of the group has been silent for too long";
            return Err((Status::Unavailable, reason));
        }
        let entry = self.table.get(hash, request.key);
        let (mut status, mut version, mut value) = match &entry {
            Some(entry) => (Status::Ok, entry.version, entry.value),
            None => (Status::NotFound, SequenceNumber::ZERO, &[][..]),
        };
        if mutations::is_open(Mutation::PendingStateRead)
            && let Some(primary) = self.primary()
            && let Some((sn, staged)) =
                primary.sender.log.newest_staged(&self.table, hash, request.key)
        {
            (status, version, value) = (Status::Ok, sn, self.table.staged_entry(staged).1);
        }
        let view = self.view_version();
        let (part, whole) = (request.operation.range_of(value.len()), value.len());
        let whole = match part.len() < whole {
            true => {
                (status, value) = (Status::Part, &value[part]);
                u32::try_from(whole).expect("a value is at most 16 MiB long")
            }
            false => 0,
        };
        Ok(Response { id: request.id, status, copies: 0, view, version, value, whole })
    }

    /// Logs a write that is neither known nor rejected. For a RESOLVE of an unknown write, it logs a write without
    /// effect. Its record has the number and the hash of the unknown write. If the unknown write arrives later, it
    /// counts as a retry and is not executed.
    #[allow(clippy::too_many_arguments)] // The parts of one request.
    fn write(
        &mut self,
        now: Time,
        asker: Asker,
        client: ClientId,
        (request, hash): (&Request<'_>, TableHash),
        header: WriteHeader,
        value: Option<&[u8]>,
        responses: &mut impl Responses,
    ) {
        let request_hash = RequestHash::of(request.digest, &request.operation).unwrap_or_default();
        let is_resolve = matches!(request.operation, Operation::Resolve(..));
        if self.is_known(asker, client, &header, (request_hash, is_resolve), responses) {
            return;
        }
        if self.draining {
            let reason = "this server is being stopped and accepts no new writes";
            return self.refuse(asker, Status::Unavailable, reason, responses);
        }
        let bytes = request.key.len() + value.map_or(0, <[u8]>::len);
        let Some(primary) = self.primary() else { return };
        if !primary.sender.log.has_room(bytes) {
            let reason = "too many writes wait for the other replica; retry later";
            return self.refuse(asker, Status::Busy, reason, responses);
        }
        let decision = match is_resolve {
            true if mutations::is_open(Mutation::NotDoneWithoutRecord) => {
                return self.refuse(asker, Status::NotDone, "", responses);
            }
            true => Decision::NOT_DONE,
            false => self.decide(hash, request.key, header.condition, value.is_some()),
        };
        let stored = if decision.effect == Effect::Put { value.unwrap_or(&[]) } else { &[] };
        if decision.effect == Effect::Put {
            match self.make_room(now, request.key.len(), stored.len()) {
                Room::Fits => {}
                Room::Compacting => {
                    let reason = "the table is being compacted to make room; retry later";
                    return self.refuse(asker, Status::Busy, reason, responses);
                }
                Room::Full => {
                    let reason =
                        "the memory limit is reached; delete entries or raise --memory-limit";
                    return self.refuse(asker, Status::OutOfSpace, reason, responses);
                }
            }
        }
        // Only writes that change the key are staged in memory. So a RESOLVE succeeds even without free memory.
        let staged = match decision.effect {
            Effect::Put | Effect::Delete => {
                self.table.stage(hash, request.key, stored.len()).map(Some)
            }
            Effect::Nothing | Effect::ForgetSessions => Ok(None),
        };
        let Ok(mut staged) = staged else {
            let reason = "the server cannot allocate memory for the entry; delete entries";
            return self.refuse(asker, Status::OutOfSpace, reason, responses);
        };
        if let Some(staged) = &mut staged {
            self.table.staged_append(staged, stored);
        }
        let Some(primary) = self.primary() else { return };
        let sn = primary.sender.log.last().next();
        let record = CompletionRecord {
            client,
            seq: header.seq,
            first_incomplete: header.first_incomplete,
            status: decision.status,
            version: decision.version.unwrap_or(sn),
            request: request_hash,
        };
        self.sessions.record(sn, record);
        let mut waiters = Waiters::default();
        if mutations::is_open(Mutation::ResponseBeforeAck)
            || (mutations::is_open(Mutation::RefusalRespondedAtOnce)
                && decision.effect == Effect::Nothing)
        {
            self.respond_to_write(asker, &record, responses);
        } else {
            waiters.add(asker);
        }
        self.log(
            PendingWrite {
                effect: decision.effect,
                digest: request.digest,
                hash,
                record,
                staged,
                waiters,
                bytes,
            },
            responses,
        );
    }

    /// Returns whether the write needs no execution because it is known or rejected. The request then has its
    /// response, or waits for that of the known write.
    fn is_known(
        &mut self,
        asker: Asker,
        client: ClientId,
        header: &WriteHeader,
        (request, is_resolve): (RequestHash, bool),
        responses: &mut impl Responses,
    ) -> bool {
        let mut found = self.sessions.look_up(client, header, request);
        if found == Lookup::TooManySessions {
            self.forget_oldest_sessions(responses);
            found = self.sessions.look_up(client, header, request);
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
        self.respond_to_write(asker, &logged.record, responses);
    }

    /// Decides the outcome of a write from the newest pending state.
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

    /// Returns the version of a key after all pending writes; `None` if the key is then absent.
    fn newest_version(&self, hash: TableHash, key: &[u8]) -> Option<SequenceNumber> {
        match self.primary()?.sender.log.newest_change(&self.table, hash, key) {
            Some((sn, Effect::Put)) => Some(sn),
            Some(_) => None,
            None => self.table.get(hash, key).map(|entry| entry.version),
        }
    }

    pub(super) fn log(&mut self, write: PendingWrite, responses: &mut impl Responses) {
        let Some(primary) = self.primary_mut() else { return };
        primary.sender.log.push(write);
        self.commit_if_alone(responses);
    }

    pub(super) fn respond_to_write(
        &self,
        asker: Asker,
        record: &CompletionRecord,
        responses: &mut impl Responses,
    ) {
        let copies = self.view.map_or(0, |view| view.copies());
        let response = Response {
            id: asker.request,
            status: record.status,
            copies,
            view: self.view_version(),
            version: record.version,
            value: &[],
            whole: 0,
        };
        responses.respond(asker.connection, &response);
    }

    pub(super) fn refuse(
        &self,
        asker: Asker,
        status: Status,
        reason: &str,
        responses: &mut impl Responses,
    ) {
        let response = Response {
            id: asker.request,
            status,
            copies: 0,
            view: self.view_version(),
            version: SequenceNumber::ZERO,
            value: reason.as_bytes(),
            whole: 0,
        };
        responses.respond(asker.connection, &response);
    }
}
