//! Exactly-once writes: the completion records of clients' sessions (consistency.md §8; after RIFL,
//! Lee et al., SOSP 2015).
//!
//! ```text
//!   session (client, in this group and shard)
//!     first_incomplete                    every write below it has ended for the client
//!     |      records: seq -> answer, sn   at most SESSION_WINDOW of them
//!     v
//!  ...4 [5 6 7 . 9]                       8 has not been seen
//! ```
//!
//! The primary keeps a record from the moment it logs the write; whether the record may be answered
//! from is the replica's to say, which knows what is committed. Records ride in the PREPARE, so they
//! are wherever the write is.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use hashbrown::HashTable;
use kv_protocol::client_message::Status;
use kv_protocol::ids::{ClientId, RequestSeq, SequenceNumber, Time};
use kv_protocol::limits::{MAX_SESSIONS, SESSION_WINDOW};
use kv_protocol::peer_message::CompletionRecord;

use crate::hash::{HashSecret, mix};

/// The records of all sessions of one (group, shard).
#[derive(Debug)]
pub struct Sessions {
    sessions: HashTable<Session>,
    secret: HashSecret,
    /// The sum of what every record adds.
    digest: u64,
}

#[derive(Debug)]
struct Session {
    client: ClientId,
    first_incomplete: RequestSeq,
    /// By ascending seq.
    records: VecDeque<Kept>,
    last_used: Time,
}

/// A record without what its session says already.
#[derive(Clone, Copy, Debug)]
struct Kept {
    sn: SequenceNumber,
    seq: RequestSeq,
    version: SequenceNumber,
    status: Status,
}

impl Kept {
    /// What it adds to the digest.
    fn digest(&self, client: ClientId) -> u64 {
        #[allow(clippy::cast_possible_truncation)] // Both halves are meant.
        let (high, low) = ((client.0 >> 64) as u64, client.0 as u64);
        // Odd factors, so that no field's difference is lost; one mixing of their sum.
        let sum = low
            .wrapping_add(high.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_add(self.seq.0.wrapping_mul(0xd6e8_feb8_6659_fd93))
            .wrapping_add(self.sn.0.wrapping_mul(0xa076_1d64_78bd_642f))
            .wrapping_add(self.version.0.wrapping_mul(0xe703_7ed1_a0b4_28db))
            .wrapping_add((self.status as u64).wrapping_mul(0x8ebc_6af0_9c88_c6e3));
        mix(sum)
    }
}

/// A completion record and the log entry that carried it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedRecord {
    /// The write's place in the log.
    pub sn: SequenceNumber,
    /// The record.
    pub record: CompletionRecord,
}

/// What a session knows of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Never seen: execute it.
    New,
    /// Logged: the answer is here, valid once its sn is committed.
    Logged(LoggedRecord),
    /// Seen and dropped, or the session is unknown though it had earlier writes.
    Expired,
    /// Further ahead of the first incomplete write than the window allows.
    BeyondWindow,
    /// There are as many sessions as there may be.
    TooManySessions,
}

impl Sessions {
    /// No sessions. `secret` keeps clients from choosing ids that collide.
    pub fn new(secret: HashSecret) -> Sessions {
        Sessions { sessions: HashTable::new(), secret, digest: 0 }
    }

    /// The secret that it was made with.
    pub fn secret(&self) -> HashSecret {
        self.secret
    }

    /// What is known of write `seq` of `client`.
    pub fn look_up(
        &self,
        client: ClientId,
        seq: RequestSeq,
        first_incomplete: RequestSeq,
    ) -> Lookup {
        if seq.0 - first_incomplete.0.min(seq.0) >= SESSION_WINDOW {
            return Lookup::BeyondWindow;
        }
        let Some(session) = self.find(client) else {
            return match first_incomplete.0 {
                0 | 1 if self.sessions.len() >= MAX_SESSIONS => Lookup::TooManySessions,
                0 | 1 => Lookup::New,
                _ => Lookup::Expired,
            };
        };
        if seq < session.first_incomplete {
            return Lookup::Expired;
        }
        match session.position(seq) {
            Ok(at) => Lookup::Logged(session.logged(&session.records[at])),
            Err(_) => Lookup::New,
        }
    }

    /// Keeps a record, merges its watermark, and drops what the watermark has passed.
    pub fn record(&mut self, now: Time, sn: SequenceNumber, record: CompletionRecord) {
        let hash = self.secret.of_client(record.client);
        let secret = self.secret;
        let session = self
            .sessions
            .entry(hash, |s| s.client == record.client, |s| secret.of_client(s.client))
            .or_insert_with(|| Session {
                client: record.client,
                first_incomplete: record.first_incomplete,
                records: VecDeque::new(),
                last_used: now,
            })
            .into_mut();
        session.last_used = now;
        session.first_incomplete = session.first_incomplete.max(record.first_incomplete);
        let CompletionRecord { seq, version, status, .. } = record;
        let kept = Kept { sn, seq, version, status };
        self.digest = self.digest.wrapping_add(kept.digest(record.client));
        match session.position(seq) {
            Ok(at) => {
                let old = std::mem::replace(&mut session.records[at], kept);
                self.digest = self.digest.wrapping_sub(old.digest(record.client));
            }
            Err(at) if at == session.records.len() => session.records.push_back(kept),
            Err(at) => session.records.insert(at, kept),
        }
        while let Some(oldest) = session.records.front()
            && oldest.seq < session.first_incomplete
        {
            self.digest = self.digest.wrapping_sub(oldest.digest(record.client));
            session.records.pop_front();
        }
    }

    /// Notes that the client still asks, as by a retry.
    pub fn touch(&mut self, now: Time, client: ClientId) {
        let hash = self.secret.of_client(client);
        if let Some(session) = self.sessions.find_mut(hash, |s| s.client == client) {
            session.last_used = now;
        }
    }

    /// Drops a session; the replica logs this as a write of its own.
    pub fn forget(&mut self, client: ClientId) {
        let hash = self.secret.of_client(client);
        if let Ok(session) = self.sessions.find_entry(hash, |s| s.client == client) {
            let (session, _) = session.remove();
            for kept in &session.records {
                self.digest = self.digest.wrapping_sub(kept.digest(client));
            }
        }
    }

    /// Drops all sessions.
    pub fn clear(&mut self) {
        self.sessions.clear();
        self.digest = 0;
    }

    /// A number made of every record, whatever their order: equal sessions have equal digests.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The digest, made anew of every record: what [`Sessions::digest`] must be.
    pub fn recount(&self) -> u64 {
        let digests = self
            .sessions
            .iter()
            .flat_map(|session| session.records.iter().map(|kept| kept.digest(session.client)));
        digests.fold(0, u64::wrapping_add)
    }

    /// All clients that have a session, in no order that means anything.
    pub fn clients(&self) -> Vec<ClientId> {
        self.sessions.iter().map(|session| session.client).collect()
    }

    /// The records of one client's session.
    pub fn records_of(&self, client: ClientId) -> impl Iterator<Item = LoggedRecord> {
        let session = self.find(client);
        session.into_iter().flat_map(|s| s.records.iter().map(|kept| s.logged(kept)))
    }

    /// Up to `most` sessions that nobody has used for so long.
    pub fn idle(&self, now: Time, idle: Duration, most: usize) -> Vec<ClientId> {
        self.sessions
            .iter()
            .filter(|session| now.since(session.last_used) >= idle)
            .map(|session| session.client)
            .take(most)
            .collect()
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The records of some sessions, by their place in an order that holds as long as nothing
    /// changes; their watermark is the session's.
    pub fn records(&self, sessions: Range<usize>) -> impl Iterator<Item = LoggedRecord> {
        self.sessions
            .iter()
            .skip(sessions.start)
            .take(sessions.len())
            .flat_map(|session| session.records.iter().map(|kept| session.logged(kept)))
    }

    fn find(&self, client: ClientId) -> Option<&Session> {
        self.sessions.find(self.secret.of_client(client), |s| s.client == client)
    }
}

impl Session {
    fn logged(&self, kept: &Kept) -> LoggedRecord {
        let Kept { sn, seq, version, status } = *kept;
        let (client, first_incomplete) = (self.client, self.first_incomplete);
        let record = CompletionRecord { client, seq, first_incomplete, status, version };
        LoggedRecord { sn, record }
    }

    /// Where the record of `seq` is, or where it would go. Writes come in order, nearly always.
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
    use super::*;

    const ALICE: ClientId = ClientId(1);
    const NOW: Time = Time::from_nanos(1);

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
        }
    }

    fn look_up(sessions: &Sessions, seq: u64, first_incomplete: u64) -> Lookup {
        sessions.look_up(ALICE, RequestSeq(seq), RequestSeq(first_incomplete))
    }

    #[test]
    fn a_known_write_finds_its_first_answer() {
        let mut sessions = sessions();
        for seq in [1, 3, 2] {
            sessions.record(NOW, SequenceNumber(seq + 100), record(ALICE, seq, 1));
        }
        for seq in 1..=3 {
            let sn = SequenceNumber(seq + 100);
            let expected = Lookup::Logged(LoggedRecord { sn, record: record(ALICE, seq, 1) });
            assert_eq!(look_up(&sessions, seq, 1), expected);
        }
        assert_eq!(look_up(&sessions, 4, 1), Lookup::New);
    }

    #[test]
    fn what_the_watermark_passed_is_expired_and_dropped() {
        let mut sessions = sessions();
        for seq in 1..=5 {
            sessions.record(NOW, SequenceNumber(seq), record(ALICE, seq, 1));
        }
        sessions.record(NOW, SequenceNumber(6), record(ALICE, 6, 5));
        assert_eq!(look_up(&sessions, 4, 4), Lookup::Expired);
        assert!(matches!(look_up(&sessions, 5, 5), Lookup::Logged(_)));
        assert_eq!(sessions.records(0..usize::MAX).count(), 2);
        // An older watermark that arrives late takes nothing back.
        sessions.record(NOW, SequenceNumber(7), record(ALICE, 7, 2));
        assert_eq!(look_up(&sessions, 4, 4), Lookup::Expired);
    }

    #[test]
    fn an_unknown_session_that_had_writes_is_expired() {
        let mut sessions = sessions();
        assert_eq!(look_up(&sessions, 1, 1), Lookup::New);
        assert_eq!(look_up(&sessions, 9, 2), Lookup::Expired);
        sessions.record(NOW, SequenceNumber(1), record(ALICE, 1, 1));
        sessions.forget(ALICE);
        assert_eq!(look_up(&sessions, 2, 2), Lookup::Expired);
        assert!(sessions.is_empty());
    }

    #[test]
    fn the_window_bounds_the_records_of_a_session() {
        let mut sessions = sessions();
        assert_eq!(look_up(&sessions, SESSION_WINDOW, 1), Lookup::New);
        assert_eq!(look_up(&sessions, SESSION_WINDOW + 1, 1), Lookup::BeyondWindow);
        for seq in 1..1_000u64 {
            let first_incomplete = seq.saturating_sub(SESSION_WINDOW - 1).max(1);
            assert_eq!(look_up(&sessions, seq, first_incomplete), Lookup::New);
            sessions.record(NOW, SequenceNumber(seq), record(ALICE, seq, first_incomplete));
            assert!(sessions.records(0..usize::MAX).count() as u64 <= SESSION_WINDOW);
        }
    }

    #[test]
    fn there_are_never_more_sessions_than_allowed() {
        let mut sessions = sessions();
        for n in 0..MAX_SESSIONS as u128 {
            let client = ClientId(n + 10);
            let known = sessions.look_up(client, RequestSeq(1), RequestSeq(1));
            assert_eq!(known, Lookup::New);
            sessions.record(NOW, SequenceNumber(1), record(client, 1, 1));
        }
        assert_eq!(look_up(&sessions, 1, 1), Lookup::TooManySessions);
        let known = ClientId(10);
        assert_eq!(sessions.look_up(known, RequestSeq(2), RequestSeq(2)), Lookup::New);
    }

    #[test]
    fn the_records_come_in_parts() {
        let mut sessions = sessions();
        for n in 0..10 {
            sessions.record(NOW, SequenceNumber(1), record(ClientId(n), 1, 1));
        }
        let whole: Vec<_> = sessions.records(0..10).collect();
        let mut parts: Vec<_> = sessions.records(0..4).collect();
        parts.extend(sessions.records(4..8));
        parts.extend(sessions.records(8..99));
        assert_eq!(parts, whole);
    }

    #[test]
    fn only_idle_sessions_are_named_for_forgetting() {
        let mut sessions = sessions();
        let bob = ClientId(2);
        sessions.record(NOW, SequenceNumber(1), record(ALICE, 1, 1));
        sessions.record(NOW, SequenceNumber(2), record(bob, 1, 1));
        let idle = Duration::from_secs(5);
        let later = NOW + idle;
        sessions.touch(later, bob);
        assert_eq!(sessions.idle(later, idle, 10), vec![ALICE]);
    }
}
