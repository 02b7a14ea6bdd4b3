//! Client requests at a replica. Reads and rejected requests get their response at once, writes when they are
//! committed.

use kv_protocol::change::RetainedResponse;
use kv_protocol::client_message::{Operation, ReplicaRole, Request, Response, Status};
use kv_protocol::ids::{ClientId, RequestHash, RequestId, SequenceNumber, Time, WallTime};
use kv_protocol::peer_message::CompletionRecord;
use kv_protocol::placement::Digest;

use super::pending::NewestChange;
use super::writes::Write;
use super::{ConnectionId, Replica, Responses, Role};
use crate::mutations::{self, Mutation};
use crate::table::{Entry, TableHash};

/// The reason why a read has no response yet.
enum NoResponse {
    /// The read is rejected with this status and reason.
    Refused(Status, &'static str),
    /// The entry has expired, but its removal is not committed.
    Expired,
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
            request.place(&self.config.placement),
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
                    Err(NoResponse::Refused(status, reason)) => {
                        self.refuse(asker, status, reason, responses);
                    }
                    Err(NoResponse::Expired) => {
                        self.await_expiry(asker, (request.digest, request.key), hash, responses);
                    }
                }
            }
            Operation::Noop => self.refuse(asker, Status::Ok, "", responses),
            Operation::Scan(scan) => self.scan(now, asker, (request, scan), responses),
            Operation::Put(header, _)
            | Operation::Delete(header)
            | Operation::Resolve(header, _)
            | Operation::Update(header, _) => {
                let request_hash =
                    RequestHash::of(request.digest, &request.operation).unwrap_or_default();
                let write = Write { asker, client, request, hash, header, request_hash };
                self.write(now, &write, responses);
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

    /// Checks that a primary has a valid lease, if another member could become primary.
    #[inline]
    pub(super) fn check_lease(&self, now: Time) -> Result<(), (Status, &'static str)> {
        if let Some(primary) = self.primary()
            && self.needs_lease()
            && !primary.lease.holds(now)
            && !mutations::is_open(Mutation::ReadWithoutLease)
        {
            let reason = "the other holder of the group has been silent for too long";
            return Err((Status::Unavailable, reason));
        }
        Ok(())
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
    ) -> Result<Response<'_>, NoResponse> {
        let now = self.readings.read(Mutation::StaleClockInLeaseCheck, now);
        self.check_lease(now).map_err(|(status, reason)| NoResponse::Refused(status, reason))?;
        let entry = self.table.get(hash, request.key);
        let (mut status, mut version, mut value) = match &entry {
            Some(entry) => (Status::Ok, entry.version, entry.value),
            None => (Status::NotFound, SequenceNumber::ZERO, &[][..]),
        };
        let deadline = match entry.and_then(|entry| entry.deadline) {
            Some(deadline) => self.check_deadline(now, request, deadline)?,
            None => None,
        };
        if mutations::is_open(Mutation::PendingStateRead)
            && let Some(primary) = self.primary()
            && let Some(NewestChange { sn, entry: Some((newest, _)) }) =
                primary.sender.log.newest_change(&self.table, hash, request.key)
        {
            (status, version, value) = (Status::Ok, sn, newest);
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
        Ok(Response {
            id: request.id,
            status,
            copies: 0,
            view,
            version,
            value,
            whole,
            has_value: false,
            deadline,
        })
    }

    /// Checks that the deadline of an entry has not passed. Returns it if the read asks for it. A VERIFY shows the table
    /// as it is.
    #[cold]
    fn check_deadline(
        &self,
        now: Time,
        request: &Request<'_>,
        deadline: WallTime,
    ) -> Result<Option<WallTime>, NoResponse> {
        let is_verify = matches!(request.operation, Operation::Verify(_));
        match self.has_passed(now, deadline) && !is_verify {
            true => Err(NoResponse::Expired),
            false => Ok(request.operation.wants_deadline().then_some(deadline)),
        }
    }

    /// Responds to a write from its record. `rest` is the rest of the response, a [`RetainedResponse`].
    pub(super) fn respond_to_write(
        &self,
        asker: Asker,
        record: &CompletionRecord,
        rest: &[u8],
        responses: &mut impl Responses,
    ) {
        // The bytes were encoded here, or checked when they were received.
        let rest = RetainedResponse::read(rest).unwrap_or_default();
        let copies = self.view.map_or(0, |view| view.copies());
        let response = Response {
            id: asker.request,
            status: record.status,
            copies,
            view: self.view_version(),
            version: record.version,
            value: rest.value.unwrap_or(&[]),
            whole: 0,
            has_value: rest.value.is_some(),
            deadline: rest.deadline,
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
            has_value: false,
            deadline: None,
        };
        responses.respond(asker.connection, &response);
    }
}
