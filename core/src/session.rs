//! Exactly-once writes: the completion records of clients' sessions (consistency.md §8; after RIFL,
//! Lee et al., SOSP 2015).
//!
//! ```text
//!   session (client, in this group and shard)
//!     first_incomplete                      every write below it has completed at the client
//!     |      records: seq -> response, sn   at most SESSION_WINDOW of them
//!     v
//!  ...4 [5 6 7 . 9]                         8 was not received
//!
//!   log of the shard   1 ......... horizon ........... committed ... last
//!                      expired     |   every session with a write here is kept
//! ```
//!
//! The primary keeps a record from the moment it logs the write. The replica tracks commits, so it decides whether a
//! record may be used for a response. Records travel in the PREPARE, so they are kept wherever the write is.
//!
//! Sessions expire by position in the log: when the horizon is raised, every session that has written nothing since
//! the new horizon is dropped. A write carries the log position at which its session began. The client received that
//! position before it sent any request of the session. So a write of an unknown session is certainly new if the
//! session began at or above the horizon. If the session began below it, the write is not executed.
//!
//! The response to an update may have a value, which a retry must get too. Such a response is kept beside its record and
//! dropped with it. Long responses count ([`Sessions::retained_bytes`]). A short one takes no more than its record, so
//! the bounds of sessions and records bound them too.
//!
//! A record may also state that its write was not executed and never will be, because a RESOLVE found no such write and
//! used its number.

use std::collections::VecDeque;
use std::ops::Range;

use hashbrown::HashTable;
use kv_protocol::client_message::{Status, WriteHeader};
use kv_protocol::ids::{ClientId, RequestHash, RequestSeq, SequenceNumber};
use kv_protocol::limits::{MAX_SESSIONS, SESSION_WINDOW};
use kv_protocol::peer_message::CompletionRecord;

use crate::hash::{HashSecret, mix};
use crate::mutations::{self, Mutation};
use crate::retained_bytes::RetainedBytes;

/// The records of all sessions of one (group, shard).
#[derive(Debug)]
pub struct Sessions {
    sessions: HashTable<Session>,
    secret: HashSecret,
    /// The sum of the digests of all records and responses.
    digest: u64,
    /// The number of bytes of all long responses.
    retained_bytes: usize,
    /// The horizon: every kept session has written since this write; all others have expired.
    horizon: SequenceNumber,
}

#[derive(Debug)]
struct Session {
    client: ClientId,
    first_incomplete: RequestSeq,
    /// The newest write of the session.
    last: SequenceNumber,
    /// The horizon when this session began at this replica; zero if it is unknown, as for a session from a copy. A
    /// write whose session began below this horizon belongs to an earlier, expired session with the same id.
    since: SequenceNumber,
    /// The records, by ascending seq.
    records: VecDeque<Kept>,
    /// The responses of records, if there are any, by ascending seq. Few sessions have some, so the list is boxed.
    #[allow(clippy::box_collection)]
    responses: Option<Box<VecDeque<Retained>>>,
}

/// The part of a response that is kept beside its record; see [`RetainedResponse`](kv_protocol::change::RetainedResponse).
#[derive(Clone, Debug)]
struct Retained {
    seq: RequestSeq,
    bytes: RetainedBytes,
}

/// A completion record without the fields that are kept once per session.
#[derive(Clone, Copy, Debug)]
struct Kept {
    sn: SequenceNumber,
    seq: RequestSeq,
    version: SequenceNumber,
    request: RequestHash,
    status: Status,
}

/// The bounds behind the memory per session in README.md: a slot in the hash table, and the one record that every
/// session keeps.
const _: () = assert!(size_of::<Session>() <= 80 && size_of::<Kept>() <= 40);

impl Kept {
    /// Returns the contribution of this record and its response to the digest: their sum, mixed once.
    #[inline]
    fn digest(&self, client: ClientId, response: Option<&RetainedBytes>) -> u64 {
        mix(self.sum(client).wrapping_add(response.map_or(0, RetainedBytes::digest)))
    }

    /// Returns the sum of the fields, each multiplied by an odd factor. This multiplication is injective, so a difference
    /// in any single field changes the sum.
    #[inline]
    fn sum(&self, client: ClientId) -> u64 {
        #[allow(clippy::cast_possible_truncation)] // Both halves are used.
        let (high, low) = ((client.0 >> 64) as u64, client.0 as u64);
        low.wrapping_add(high.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_add(self.seq.0.wrapping_mul(0xd6e8_feb8_6659_fd93))
            .wrapping_add(self.sn.0.wrapping_mul(0xa076_1d64_78bd_642f))
            .wrapping_add(self.version.0.wrapping_mul(0xe703_7ed1_a0b4_28db))
            .wrapping_add(self.request.0.wrapping_mul(0x5895_11c6_3a8f_4d27))
            .wrapping_add((self.status as u64).wrapping_mul(0x8ebc_6af0_9c88_c6e3))
    }
}

/// A completion record and the log entry that carried it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedRecord {
    /// The sequence number of the write.
    pub sn: SequenceNumber,
    /// The completion record.
    pub record: CompletionRecord,
}

/// The result of looking up a write in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// An unknown write: execute it.
    New,
    /// A logged write: the response is valid once its sequence number is committed.
    Logged(LoggedRecord),
    /// Another write was logged under this number.
    Mismatch,
    /// A write whose record was dropped because the client has completed it, or a write of a session that has expired
    /// or may have expired.
    Expired,
    /// A write that is further ahead of the first incomplete one than the window allows.
    BeyondWindow,
    /// A write of a new session while the number of sessions is at its limit.
    TooManySessions,
}

impl Sessions {
    /// Creates an empty set of sessions. With the secret, clients cannot choose ids with equal hashes.
    pub fn new(secret: HashSecret) -> Sessions {
        Sessions {
            sessions: HashTable::new(),
            secret,
            digest: 0,
            retained_bytes: 0,
            horizon: SequenceNumber::ZERO,
        }
    }

    /// Returns the secret of the hashes of client ids.
    pub fn secret(&self) -> HashSecret {
        self.secret
    }

    /// Looks up a write of `client` by its header and request hash.
    pub fn look_up(&self, client: ClientId, write: &WriteHeader, request: RequestHash) -> Lookup {
        let WriteHeader { seq, first_incomplete, begun, .. } = *write;
        if seq.0 - first_incomplete.0.min(seq.0) >= SESSION_WINDOW {
            return Lookup::BeyondWindow;
        }
        let Some(session) = self.find(client) else {
            return match begun >= self.horizon || mutations::is_open(Mutation::SessionBegunByRetry)
            {
                false => Lookup::Expired,
                true if self.sessions.len() >= MAX_SESSIONS => Lookup::TooManySessions,
                true => Lookup::New,
            };
        };
        if seq < session.first_incomplete || begun < session.since {
            return Lookup::Expired;
        }
        match session.position(seq) {
            Ok(at) if session.records[at].is_of(request) => {
                Lookup::Logged(session.logged(&session.records[at]))
            }
            Ok(_) => Lookup::Mismatch,
            Err(_) => Lookup::New,
        }
    }

    /// Keeps a record and the rest of its response, if there is one. Begins a session if the client has
    /// none. Advances the session's `first_incomplete` to that of the record, and drops the records below it.
    pub fn record(
        &mut self,
        sn: SequenceNumber,
        record: CompletionRecord,
        response: Option<&RetainedBytes>,
    ) {
        let hash = self.secret.of_client(record.client);
        let (secret, since) = (self.secret, self.horizon);
        let session = self
            .sessions
            .entry(hash, |s| s.client == record.client, |s| secret.of_client(s.client))
            .or_insert_with(|| Session {
                client: record.client,
                first_incomplete: record.first_incomplete,
                last: sn,
                since,
                // Most clients wait for each write, so their sessions never have two records.
                records: VecDeque::with_capacity(1),
                responses: None,
            })
            .into_mut();
        session.last = session.last.max(sn);
        session.first_incomplete = session.first_incomplete.max(record.first_incomplete);
        let CompletionRecord { client, seq, version, status, request, .. } = record;
        while let Some(oldest) = session.records.front()
            && oldest.seq < session.first_incomplete
        {
            let (seq, mut sum) = (oldest.seq, oldest.sum(client));
            session.records.pop_front();
            if session.responses.is_some()
                && let Some(dropped) = session.take_first_response(seq)
            {
                sum = sum.wrapping_add(dropped.digest());
                self.retained_bytes -= dropped.heap_bytes();
            }
            self.digest = self.digest.wrapping_sub(mix(sum));
        }
        // A copy may contain records that the client has already confirmed by a later live write.
        if seq < session.first_incomplete {
            return;
        }
        let kept = Kept { sn, seq, version, request, status };
        self.digest = self.digest.wrapping_add(kept.digest(client, response));
        match session.position(seq) {
            Ok(at) => {
                let old = std::mem::replace(&mut session.records[at], kept);
                let dropped = session.take_response(seq);
                self.retained_bytes -= dropped.as_ref().map_or(0, RetainedBytes::heap_bytes);
                self.digest = self.digest.wrapping_sub(old.digest(client, dropped.as_ref()));
            }
            Err(at) if at == session.records.len() => session.records.push_back(kept),
            Err(at) => session.records.insert(at, kept),
        }
        if let Some(response) = response {
            self.retained_bytes += response.heap_bytes();
            session.keep_response(Retained { seq, bytes: response.clone() });
        }
    }

    /// Returns the rest of the response that is kept with a record; empty if there is none.
    pub fn response_of(&self, client: ClientId, seq: RequestSeq) -> &[u8] {
        let response = self.find(client).and_then(|session| session.response(seq));
        response.map_or(&[], |response| response)
    }

    /// Returns the number of bytes of all long responses that are kept for retries.
    pub fn retained_bytes(&self) -> usize {
        self.retained_bytes
    }

    /// Keeps a record from a copy, from a live write during a copy, or from a dump. The session may have begun long
    /// before, so its start counts as unknown.
    pub fn record_known(&mut self, sn: SequenceNumber, record: CompletionRecord, response: &[u8]) {
        let response = (!response.is_empty()).then(|| RetainedBytes::from(response));
        self.record(sn, record, response.as_ref());
        let session = self.sessions.find_mut(self.secret.of_client(record.client), |session| {
            session.client == record.client
        });
        if let Some(session) = session {
            session.since = SequenceNumber::ZERO;
        }
    }

    /// Returns the horizon: every kept session has written since this write; all others have expired.
    pub fn horizon(&self) -> SequenceNumber {
        self.horizon
    }

    /// Raises the horizon and drops every session that has written nothing since the new horizon. The replica logs
    /// the expiry as a separate write.
    pub fn forget(&mut self, horizon: SequenceNumber) {
        self.raise_horizon(horizon);
        let (digest, retained_bytes) = (&mut self.digest, &mut self.retained_bytes);
        self.sessions.retain(|session| {
            let stays = session.last > horizon;
            if !stays {
                *digest = digest.wrapping_sub(session.digest());
                *retained_bytes -= session.retained_bytes();
            }
            stays
        });
    }

    /// Raises the horizon to that of the replica or dump from which the sessions are taken. A lower one has no effect.
    pub fn raise_horizon(&mut self, horizon: SequenceNumber) {
        self.horizon = self.horizon.max(horizon);
    }

    /// Returns whether there is a session that has written nothing since this write.
    pub fn has_idle(&self, horizon: SequenceNumber) -> bool {
        self.sessions.iter().any(|session| session.last <= horizon)
    }

    /// Returns the horizon that expires the `count` sessions with the oldest last writes. `None` if `count` is zero, or
    /// if fewer than `count` sessions have a committed last write.
    pub fn horizon_of_oldest(
        &self,
        count: usize,
        committed: SequenceNumber,
    ) -> Option<SequenceNumber> {
        let idle = self.sessions.iter().map(|session| session.last);
        let mut idle: Vec<SequenceNumber> = idle.filter(|last| *last <= committed).collect();
        let at = count.checked_sub(1).filter(|at| *at < idle.len())?;
        Some(*idle.select_nth_unstable(at).1)
    }

    /// Returns the horizon that expires the sessions with the oldest last writes, until they have freed `bytes` of
    /// [`Sessions::retained_bytes`], or until all sessions without a write after `old` have expired. `None` if these
    /// sessions keep nothing.
    pub fn horizon_of_retained(&self, bytes: usize, old: SequenceNumber) -> Option<SequenceNumber> {
        let old = self.sessions.iter().filter(|session| session.last <= old);
        let retained = old.map(|session| (session.last, session.retained_bytes()));
        let mut retained: Vec<_> = retained.filter(|(_, retained)| *retained > 0).collect();
        retained.sort_unstable();
        let mut freed = 0;
        let is_enough = |(_, retained): &&(SequenceNumber, usize)| {
            freed += retained;
            freed >= bytes
        };
        let (horizon, _) = retained.iter().find(is_enough).or(retained.last())?;
        Some(*horizon)
    }

    /// Drops all sessions and resets the horizon.
    pub fn clear(&mut self) {
        self.sessions.clear();
        (self.digest, self.retained_bytes) = (0, 0);
        self.horizon = SequenceNumber::ZERO;
    }

    /// Returns a digest of all records and responses that is independent of their order: equal sessions have equal digests.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Recomputes the digest from all records; it must equal [`Sessions::digest`].
    pub fn recount(&self) -> u64 {
        self.sessions.iter().map(Session::digest).fold(0, u64::wrapping_add)
    }

    /// Returns all clients that have a session, in arbitrary order.
    pub fn clients(&self) -> Vec<ClientId> {
        self.sessions.iter().map(|session| session.client).collect()
    }

    /// Returns the records of one client's session.
    pub fn records_of(&self, client: ClientId) -> impl Iterator<Item = LoggedRecord> {
        let session = self.find(client);
        session.into_iter().flat_map(|s| s.records.iter().map(|kept| s.logged(kept)))
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Returns whether this client has a session.
    pub fn has(&self, client: ClientId) -> bool {
        self.find(client).is_some()
    }

    /// Returns whether there are no sessions.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Returns the records of a range of sessions. The range refers to an order that is stable while nothing
    /// changes. The records have the `first_incomplete` of their session.
    pub fn records(&self, sessions: Range<usize>) -> impl Iterator<Item = LoggedRecord> {
        self.sessions
            .iter()
            .skip(sessions.start)
            .take(sessions.len())
            .flat_map(|session| session.records.iter().map(|kept| session.logged(kept)))
    }

    /// Returns the records of writes up to `committed` of a range of sessions, in the same order. For a session without
    /// such a record, returns one for the last write that its client has completed.
    pub fn records_up_to(
        &self,
        sessions: Range<usize>,
        committed: SequenceNumber,
    ) -> impl Iterator<Item = LoggedRecord> {
        let of_session = move |session: &Session| {
            let is_committed = |logged: &LoggedRecord| logged.sn <= committed;
            let records = session.records.iter().map(|kept| session.logged(kept));
            let mut records: Vec<LoggedRecord> = records.filter(is_committed).collect();
            if records.is_empty() && !mutations::is_open(Mutation::PendingNotDumped) {
                records.extend(session.watermark(committed));
            }
            records
        };
        self.sessions.iter().skip(sessions.start).take(sessions.len()).flat_map(of_session)
    }

    fn find(&self, client: ClientId) -> Option<&Session> {
        self.sessions.find(self.secret.of_client(client), |s| s.client == client)
    }
}

impl Kept {
    /// Returns whether the record belongs to this request. Records from dumps of an earlier format match any request.
    fn is_of(&self, request: RequestHash) -> bool {
        self.request == request
            || self.request == RequestHash::default()
            || mutations::is_open(Mutation::RecordWithoutRequest)
    }
}

impl Session {
    /// Returns the sum of the digests of the records and responses.
    fn digest(&self) -> u64 {
        let digest = |kept: &Kept| kept.digest(self.client, self.response(kept.seq));
        self.records.iter().map(digest).fold(0, u64::wrapping_add)
    }

    /// Returns the number of bytes of the long responses.
    fn retained_bytes(&self) -> usize {
        let responses = self.responses.iter().flat_map(|responses| responses.iter());
        responses.map(|retained| retained.bytes.heap_bytes()).sum()
    }

    /// Returns the response of a record, if there is one.
    fn response(&self, seq: RequestSeq) -> Option<&RetainedBytes> {
        let responses = self.responses.as_ref()?;
        let at = responses.binary_search_by_key(&seq, |retained| retained.seq).ok()?;
        Some(&responses[at].bytes)
    }

    /// Keeps the response of a record that has none yet.
    #[inline]
    fn keep_response(&mut self, retained: Retained) {
        let responses = self.responses.get_or_insert_with(|| Box::new(VecDeque::with_capacity(1)));
        match responses.back() {
            // Writes nearly always arrive in order.
            Some(last) if last.seq > retained.seq => {
                let at = responses.partition_point(|kept| kept.seq < retained.seq);
                responses.insert(at, retained);
            }
            _ => responses.push_back(retained),
        }
    }

    /// Removes the response of the first record, if there is one.
    #[inline]
    fn take_first_response(&mut self, seq: RequestSeq) -> Option<RetainedBytes> {
        let responses = self.responses.as_mut()?;
        match responses.front()?.seq == seq {
            true => responses.pop_front().map(|retained| retained.bytes),
            false => None,
        }
    }

    /// Removes the response of a record, if there is one.
    #[cold]
    fn take_response(&mut self, seq: RequestSeq) -> Option<RetainedBytes> {
        let responses = self.responses.as_mut()?;
        let at = responses.binary_search_by_key(&seq, |retained| retained.seq).ok()?;
        Some(responses.remove(at)?.bytes)
    }

    /// Returns a record of the last write that the client has completed, with number 0 if it has completed none. The
    /// client does not need the response any more, so the record has none. `None` if `first_incomplete` is 0, which no
    /// valid request has.
    fn watermark(&self, committed: SequenceNumber) -> Option<LoggedRecord> {
        let seq = RequestSeq(self.first_incomplete.0.checked_sub(1)?);
        let record = CompletionRecord {
            client: self.client,
            seq,
            first_incomplete: self.first_incomplete,
            status: Status::Ok,
            version: SequenceNumber::ZERO,
            request: RequestHash::default(),
        };
        Some(LoggedRecord { sn: committed, record })
    }

    fn logged(&self, kept: &Kept) -> LoggedRecord {
        let Kept { sn, seq, version, request, status } = *kept;
        let (client, first_incomplete) = (self.client, self.first_incomplete);
        let record = CompletionRecord { client, seq, first_incomplete, status, version, request };
        LoggedRecord { sn, record }
    }

    /// Returns the position of the record of `seq`, or its insertion position. The last record is compared first,
    /// because writes nearly always arrive in order.
    fn position(&self, seq: RequestSeq) -> Result<usize, usize> {
        match self.records.back() {
            Some(last) if last.seq < seq => Err(self.records.len()),
            None => Err(0),
            Some(_) => self.records.binary_search_by_key(&seq, |kept| kept.seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_protocol::client_message::Condition;

    use super::*;

    const ALICE: ClientId = ClientId(1);
    const BOB: ClientId = ClientId(2);

    fn sessions() -> Sessions {
        Sessions::new(HashSecret::new(7))
    }

    fn record(client: ClientId, seq: u64, first_incomplete: u64) -> CompletionRecord {
        CompletionRecord {
            client,
            seq: RequestSeq(seq),
            first_incomplete: RequestSeq(first_incomplete),
            status: Status::Ok,
            version: SequenceNumber(seq * 10),
            request: RequestHash(seq),
        }
    }

    fn record_plain(sessions: &mut Sessions, sn: SequenceNumber, record: CompletionRecord) {
        sessions.record(sn, record, None);
    }

    fn header(seq: u64, first_incomplete: u64, begun: u64) -> WriteHeader {
        WriteHeader {
            seq: RequestSeq(seq),
            first_incomplete: RequestSeq(first_incomplete),
            begun: SequenceNumber(begun),
            condition: Condition::Always,
        }
    }

    fn look_up(sessions: &Sessions, seq: u64, first_incomplete: u64) -> Lookup {
        sessions.look_up(ALICE, &header(seq, first_incomplete, 0), RequestHash(seq))
    }

    #[test]
    fn a_known_write_finds_its_first_response() {
        let mut sessions = sessions();
        for seq in [1, 3, 2] {
            record_plain(&mut sessions, SequenceNumber(seq + 100), record(ALICE, seq, 1));
        }
        for seq in 1..=3 {
            let sn = SequenceNumber(seq + 100);
            let expected = Lookup::Logged(LoggedRecord { sn, record: record(ALICE, seq, 1) });
            assert_eq!(look_up(&sessions, seq, 1), expected);
        }
        assert_eq!(look_up(&sessions, 4, 1), Lookup::New);
    }

    #[test]
    fn another_write_with_a_known_number_is_no_retry() {
        let mut sessions = sessions();
        record_plain(&mut sessions, SequenceNumber(1), record(ALICE, 1, 1));
        let other = sessions.look_up(ALICE, &header(1, 1, 0), RequestHash(99));
        assert_eq!(other, Lookup::Mismatch);
        let unknown = CompletionRecord { request: RequestHash(0), ..record(ALICE, 2, 1) };
        record_plain(&mut sessions, SequenceNumber(2), unknown);
        let other = sessions.look_up(ALICE, &header(2, 1, 0), RequestHash(99));
        assert!(matches!(other, Lookup::Logged(_)), "a record of an old dump: {other:?}");
    }

    #[test]
    fn records_below_the_watermark_are_expired_and_dropped() {
        let mut sessions = sessions();
        for seq in 1..=5 {
            record_plain(&mut sessions, SequenceNumber(seq), record(ALICE, seq, 1));
        }
        record_plain(&mut sessions, SequenceNumber(6), record(ALICE, 6, 5));
        assert_eq!(look_up(&sessions, 4, 4), Lookup::Expired);
        assert!(matches!(look_up(&sessions, 5, 5), Lookup::Logged(_)));
        assert_eq!(sessions.records(0..usize::MAX).count(), 2);
        // A lower `first_incomplete` that arrives late has no effect.
        record_plain(&mut sessions, SequenceNumber(7), record(ALICE, 7, 2));
        assert_eq!(look_up(&sessions, 4, 4), Lookup::Expired);
        assert_eq!(sessions.digest(), sessions.recount());
    }

    #[test]
    fn a_write_of_an_expired_session_does_not_count_for_a_later_session_of_the_same_id() {
        let mut sessions = sessions();
        record_plain(&mut sessions, SequenceNumber(11), record(ALICE, 1, 1));
        record_plain(&mut sessions, SequenceNumber(12), record(ALICE, 2, 1));
        sessions.forget(SequenceNumber(12));
        // Later a clone of the client begins a session with the same id.
        let of = |sessions: &Sessions, seq, begun| {
            sessions.look_up(ALICE, &header(seq, 1, begun), RequestHash(seq))
        };
        assert_eq!(of(&sessions, 1, 20), Lookup::New);
        record_plain(&mut sessions, SequenceNumber(21), record(ALICE, 1, 1));
        // The first client's retried write was executed before.
        assert_eq!(of(&sessions, 2, 10), Lookup::Expired);
        assert_eq!(of(&sessions, 1, 10), Lookup::Expired);
        assert_eq!(of(&sessions, 2, 20), Lookup::New);
        // A copy does not contain the starts of sessions.
        sessions.record_known(SequenceNumber(21), record(ALICE, 1, 1), &[]);
        assert!(matches!(of(&sessions, 1, 10), Lookup::Logged(_)));
        assert_eq!(sessions.digest(), sessions.recount());
    }

    #[test]
    fn an_unknown_session_may_begin_only_after_the_horizon() {
        let mut sessions = sessions();
        assert_eq!(look_up(&sessions, 1, 1), Lookup::New, "no session has ever expired");
        assert_eq!(look_up(&sessions, 9, 2), Lookup::New, "its earlier writes never arrived here");
        record_plain(&mut sessions, SequenceNumber(5), record(ALICE, 1, 1));
        record_plain(&mut sessions, SequenceNumber(8), record(BOB, 1, 1));
        assert!(sessions.has_idle(SequenceNumber(5)) && !sessions.has_idle(SequenceNumber(4)));
        sessions.forget(SequenceNumber(5));
        assert_eq!((sessions.clients(), sessions.horizon()), (vec![BOB], SequenceNumber(5)));
        // A retry of the first write, which may have been executed before.
        assert_eq!(look_up(&sessions, 1, 1), Lookup::Expired);
        for (begun, expected) in [(4, Lookup::Expired), (5, Lookup::New), (7, Lookup::New)] {
            let found = sessions.look_up(ALICE, &header(1, 1, begun), RequestHash(1));
            assert_eq!(found, expected, "begun at {begun}");
        }
        assert_eq!(sessions.digest(), sessions.recount());
    }

    #[test]
    fn the_window_bounds_the_records_of_a_session() {
        let mut sessions = sessions();
        assert_eq!(look_up(&sessions, SESSION_WINDOW, 1), Lookup::New);
        assert_eq!(look_up(&sessions, SESSION_WINDOW + 1, 1), Lookup::BeyondWindow);
        for seq in 1..1_000u64 {
            let first_incomplete = seq.saturating_sub(SESSION_WINDOW - 1).max(1);
            assert_eq!(look_up(&sessions, seq, first_incomplete), Lookup::New);
            record_plain(&mut sessions, SequenceNumber(seq), record(ALICE, seq, first_incomplete));
            assert!(sessions.records(0..usize::MAX).count() as u64 <= SESSION_WINDOW);
        }
    }

    #[test]
    fn the_number_of_sessions_is_bounded_and_the_oldest_make_room() {
        let mut sessions = sessions();
        for n in 0..MAX_SESSIONS as u64 {
            let client = ClientId(u128::from(n) + 10);
            let known = sessions.look_up(client, &header(1, 1, 0), RequestHash(1));
            assert_eq!(known, Lookup::New);
            record_plain(&mut sessions, SequenceNumber(n + 1), record(client, 1, 1));
        }
        assert_eq!(look_up(&sessions, 1, 1), Lookup::TooManySessions);
        let known = sessions.look_up(ClientId(10), &header(2, 2, 0), RequestHash(2));
        assert_eq!(known, Lookup::New);
        record_plain(
            &mut sessions,
            SequenceNumber(MAX_SESSIONS as u64 + 1),
            record(ClientId(10), 2, 2),
        );
        let all = SequenceNumber(u64::MAX);
        assert_eq!(sessions.horizon_of_oldest(100, SequenceNumber(99)), None, "some are pending");
        let horizon = sessions.horizon_of_oldest(100, all).unwrap();
        assert_eq!(horizon, SequenceNumber(101));
        sessions.forget(horizon);
        assert_eq!(sessions.len(), MAX_SESSIONS - 100);
        assert!(sessions.records_of(ClientId(10)).next().is_some(), "it has written since");
    }

    fn keep(sessions: &mut Sessions, sn: SequenceNumber, record: CompletionRecord, rest: &[u8]) {
        sessions.record(sn, record, Some(&rest.into()));
    }

    #[test]
    fn a_response_is_kept_as_long_as_its_record() {
        let mut sessions = sessions();
        let [first, second, secund] = [[1; 40], [2; 40], [3; 40]];
        keep(&mut sessions, SequenceNumber(1), record(ALICE, 1, 1), &first);
        keep(&mut sessions, SequenceNumber(2), record(ALICE, 2, 1), &second);
        keep(&mut sessions, SequenceNumber(3), record(BOB, 1, 1), b"short");
        assert_eq!(sessions.response_of(ALICE, RequestSeq(1)), first);
        assert_eq!(sessions.response_of(ALICE, RequestSeq(2)), second);
        assert_eq!(sessions.response_of(ALICE, RequestSeq(3)), b"");
        assert_eq!(sessions.response_of(BOB, RequestSeq(1)), b"short");
        assert_eq!(sessions.retained_bytes(), 80, "the short one does not count");
        assert_eq!(sessions.digest(), sessions.recount());
        record_plain(&mut sessions, SequenceNumber(4), record(ALICE, 3, 2));
        assert_eq!(sessions.response_of(ALICE, RequestSeq(1)), b"");
        assert_eq!(sessions.retained_bytes(), 40);
        keep(&mut sessions, SequenceNumber(2), record(ALICE, 2, 1), &second);
        assert_eq!(sessions.retained_bytes(), 40, "a record of a copy that is here already");
        let digest = sessions.digest();
        keep(&mut sessions, SequenceNumber(2), record(ALICE, 2, 1), &secund);
        assert_ne!(sessions.digest(), digest, "the response is part of the digest");
        sessions.forget(SequenceNumber(4));
        assert_eq!((sessions.retained_bytes(), sessions.digest()), (0, 0));
    }

    #[test]
    fn the_oldest_sessions_that_keep_enough_bytes_make_room() {
        let mut sessions = sessions();
        for n in 1..=6 {
            let record = record(ClientId(n), 1, 1);
            let sn = SequenceNumber(u64::try_from(10 * n).unwrap());
            match n {
                1 => record_plain(&mut sessions, sn, record),
                _ => keep(&mut sessions, sn, record, &[7; 100]),
            }
        }
        let horizon = |bytes, old| sessions.horizon_of_retained(bytes, SequenceNumber(old));
        assert_eq!(horizon(1, 19), None, "the only old session keeps nothing");
        assert_eq!(horizon(1, 60), Some(SequenceNumber(20)));
        assert_eq!(horizon(101, 60), Some(SequenceNumber(30)));
        assert_eq!(horizon(usize::MAX, 45), Some(SequenceNumber(40)), "as much as is old");
        sessions.forget(SequenceNumber(40));
        assert_eq!(sessions.retained_bytes(), 200);
    }

    #[test]
    fn records_can_be_read_in_parts() {
        let mut sessions = sessions();
        for n in 0..10 {
            record_plain(&mut sessions, SequenceNumber(1), record(ClientId(n), 1, 1));
        }
        let whole: Vec<_> = sessions.records(0..10).collect();
        let mut parts: Vec<_> = sessions.records(0..4).collect();
        parts.extend(sessions.records(4..8));
        parts.extend(sessions.records(8..99));
        assert_eq!(parts, whole);
    }
}
