//! One shard of one group at one server: primary/backup replication under views that the coordinator
//! creates (consistency.md §3, §4, §6, §7; PacificA, Lin et al., MSR-TR-2008-25).
//!
//! ```text
//!                 primary                               secondary or candidate
//!  request  ->  on_request: decide against the newest
//!               pending state, log with the next sn
//!               pump: PREPARE(view, sn, ...)      ->    on_peer_message: sn = last + 1? apply
//!               on_peer_message: commit up to sn  <-    pump: ACK(view, sn, echo t_send)
//!  response <-  the table is the committed state
//!
//!                     +------------- TAKE-OVER ------------+
//!                     v                                    |
//!   Out --view 1--> Primary --hand-over view--> HandingOver|
//!    ^                ^  ^                          |  new primary dials
//!    |                |  +-- HANDOVER -- TakingOver |      v
//!    |  any view      |                     ^       +-> Secondary
//!    |  without it    +-- TAKE-OVER --+     +--hand-over--/   ^
//!    +---- (wiped)                    |     |                 | caught up
//!                                  Candidate (wiped first) ---+
//! ```
//!
//! The machine is synchronous and pure. The caller passes the time and every input, owns the
//! connections, and supplies a sink for responses, whose values are borrowed from the table. The time
//! is one clock reading per wake-up, taken after the inputs of that wake-up arrived and before anything
//! is sent. The correctness of lease checks and graces depends on this order.
//!
//! - [`Replica`] (here): state and methods common to all roles.
//! - `install`: role changes caused by views. `lease`: leases and graces.
//! - `requests`: reads of clients, and responses. `writes`: writes of clients. `pending`: the log. `primary`: commits
//!   and acks. `expiry`: the removal of expired entries. `forgetting`: the expiry of sessions.
//! - `memory`: the memory limit and compaction of the table. `eviction`: the removal of entries at the memory limit.
//! - `flush`: the removal of all entries.
//! - `stream`: hellos and batches, at either end.
//! - `frozen`: behaviour after the replica's dump has begun.
//! - `follower`: the receiving end. `copy_out`, `copy_in`: the copy to a candidate, at either end.

mod copy_in;
mod copy_out;
mod eviction;
mod expiry;
mod flush;
mod follower;
mod forgetting;
mod frozen;
mod inspect;
mod install;
mod key_list;
mod lease;
mod memory;
#[cfg(feature = "mutations")]
mod mutant;
mod pending;
mod primary;
mod requests;
mod restore;
mod scan;
mod stream;
#[cfg(test)]
mod tests;
mod writes;

use std::ops::Range;
use std::time::Duration;

use kv_protocol::client_message::Response;
use kv_protocol::control_message::{Following, ReplicaReport, ReplicaState};
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{ClientId, GroupId, Member, SequenceNumber, ShardId, Time, ViewVersion};
use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::peer_message::PeerMessage;
use kv_protocol::placement::Placement;
use kv_protocol::view::View;
use kv_protocol::{DecodeError, FailureTimeout};

use crate::arena::ChunkSource;
use crate::awake::Awake;
use crate::hash::HashSecret;
use crate::mutations::Readings;
use crate::session::{LoggedRecord, Sessions};
use crate::table::{CompactionCounts, Entry, Pin, Table, TableHash, WalkBudget, WalkCursor};
use copy_in::CopyIn;
use copy_out::Copied;
use eviction::Evictions;
pub use eviction::RemovalCounts;
use expiry::{Upkeep, WallClock};
use flush::Flush;
use follower::Follower;
pub use inspect::{Inspection, Serves};
use lease::Acked;
use memory::LastSteps;
use primary::{Candidacy, Primary, Sender};
pub use restore::NoFullCopy;

/// The number of a client connection, assigned by the driver. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A sink for responses. Responses on one connection may come in any order.
pub trait Responses {
    /// Takes one response; drops it if the connection is closed.
    fn respond(&mut self, to: ConnectionId, response: &Response<'_>);
}

/// The configuration of a replica.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// The server process that runs the replica.
    pub me: Member,
    /// The group of the replica.
    pub group: GroupId,
    /// The shard of the replica.
    pub shard: ShardId,
    /// The numbers of servers and shards, which determine the group and shard of each key.
    pub placement: Placement,
    /// The memory limit of the table, in bytes. Above it writes are rejected. `None` means no limit.
    pub memory_limit: Option<u64>,
    /// The idle time after which a session expires. Time in which this shard was suspended does not count.
    pub session_idle: Duration,
    /// The key of the hash function of the tables.
    pub hash_secret: HashSecret,
    /// The failure timeout of the cluster; the same in every process.
    pub failure_timeout: FailureTimeout,
}

/// One shard of one group at one server.
#[derive(Debug)]
pub struct Replica {
    config: ReplicaConfig,
    view: Option<View>,
    role: Role,
    table: Table,
    sessions: Sessions,
    /// The time of the last sign of life of the other holder under the installed view; before the first one, the time
    /// of the view's installation. Every message except some acks is a sign of life; see `Sender::note_ack`.
    heard: Time,
    /// The longest time between two signs of life of the other holder under the installed view; `None` before the first
    /// one.
    longest_gap: Option<Duration>,
    /// A clock that excludes time in which this shard was suspended; `awake_when_heard` is its reading at the time
    /// `heard`.
    awake: Awake,
    awake_when_heard: Duration,
    /// The last ack sent, in any role.
    acked: Option<Acked>,
    /// The process whose death was proven last.
    proven: Option<Member>,
    /// The last write of the dump from which the content was loaded. If it is set, this replica may become a holder by
    /// a first view of any version.
    restored: Option<SequenceNumber>,
    draining: bool,
    frozen: bool,
    readings: Readings,
    /// The bytes of the memory limit that writes must leave free.
    lent: u64,
    last_steps: LastSteps,
    wall: WallClock,
    upkeep: Upkeep,
    flush: Flush,
    evictions: Evictions,
    /// The number of bytes of the changes and responses of updates; see [`Replica::take_updated_bytes`].
    updated_bytes: usize,
    #[cfg(feature = "mutations")]
    mutant: mutant::Mutant,
}

/// The role of this replica under the installed view.
#[derive(Debug)]
enum Role {
    /// The replica holds no data: it has no view yet, or its view names only others.
    Out,
    /// Orders writes and serves reads, except during its grace.
    Primary(Box<Primary>),
    /// The former primary in a hand-over. It sends the rest of its log to the new primary and serves no requests.
    HandingOver(HandingOver),
    /// The primary of a hand-over view. It receives writes until the old primary has sent everything.
    TakingOver(Follower),
    /// Applies the primary's writes.
    Secondary(Follower),
    /// Applies the primary's writes like a secondary, but with an incomplete copy.
    Candidate(Follower, CopyIn),
}

/// The sending end of a hand-over.
#[derive(Debug)]
struct HandingOver {
    sender: Sender,
    /// True if HANDOVER was already sent on the current stream.
    is_said: bool,
}

/// The reason why a view is not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A newer view is installed already.
    #[error("view {got} of group {group} is older than the installed view {installed}")]
    Old {
        /// The group of this replica.
        group: GroupId,
        /// The version of the rejected view.
        got: ViewVersion,
        /// The version of the installed view.
        installed: ViewVersion,
    },
    /// A different view of the same version is installed. A correct coordinator never causes this.
    #[error("a different view {version} of group {group} is already installed")]
    Contradiction {
        /// The group of this replica.
        group: GroupId,
        /// The version of the rejected view.
        version: ViewVersion,
    },
    /// This replica is frozen for its dump. The installed view stays, so that the dump remains final.
    #[error("this server is being stopped; group {group} no longer installs views")]
    Frozen {
        /// The group of this replica.
        group: GroupId,
    },
    /// The view does not name this replica, or names it in a role that it cannot take.
    #[error(
        "view {version} of group {group} does not name member {me}, or names it in a role that it \
         cannot take"
    )]
    NotForMe {
        /// The group of this replica.
        group: GroupId,
        /// The version of the rejected view.
        version: ViewVersion,
        /// The member that runs this replica.
        me: Member,
    },
}

/// The reason why a message or welcome of the stream between the two holders is rejected. The caller ends the stream,
/// unless [`Replica::on_peer_message`] returns [`StreamError::Frozen`]. The next stream continues after the last write
/// applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A message of a view other than the installed one.
    #[error("received a message of view {got}, but view {installed} is installed")]
    View {
        /// The view of the message.
        got: ViewVersion,
        /// The installed view.
        installed: ViewVersion,
    },
    /// The received write is not the next one.
    #[error("received write {got}, but expected write {expected}")]
    Gap {
        /// The expected write.
        expected: SequenceNumber,
        /// The received write.
        got: SequenceNumber,
    },
    /// HANDOVER or COPY-END names another last write than the last one applied here.
    #[error("the other holder ends at write {got}, but the last write applied here is {applied}")]
    End {
        /// The last write according to the message.
        got: SequenceNumber,
        /// The last write applied.
        applied: SequenceNumber,
    },
    /// An ack echoes a `t_send` that was not sent on this stream.
    #[error("received an ack of write {sn} with a send time that is not of this stream")]
    Echo {
        /// The write that the ack names.
        sn: SequenceNumber,
    },
    /// The other side claims a write that was never sent to it, or lacks a write that it has acked.
    #[error(
        "the other holder claims write {claimed}, but {committed} is committed and {sent} is sent"
    )]
    Impossible {
        /// The last write that the other side claims to have applied.
        claimed: SequenceNumber,
        /// The last committed write.
        committed: SequenceNumber,
        /// The last write sent.
        sent: SequenceNumber,
    },
    /// A fragment does not continue its value.
    #[error("a fragment of write {sn} does not continue its value")]
    Fragment {
        /// The write that the fragment names.
        sn: SequenceNumber,
    },
    /// The changes of a write are malformed.
    #[error("the changes of write {sn} are malformed: {error}")]
    Changes {
        /// The sequence number of the write.
        sn: SequenceNumber,
        /// The error in the changes.
        error: DecodeError,
    },
    /// A key does not belong to this group and shard.
    #[error("write {sn} has a key of another group or shard")]
    ForeignKey {
        /// The sequence number of the write.
        sn: SequenceNumber,
    },
    /// This replica is frozen for its dump. An open stream stays open for beacons.
    #[error("this server is being stopped and accepts no more writes")]
    Frozen,
    /// The candidate's copy differs from the primary's table, so it must be copied again.
    #[error("the copy of the candidate differs from the table of the primary at write {sn}")]
    Diverged {
        /// The write as of which the two were compared.
        sn: SequenceNumber,
    },
    /// This role does not accept such a message.
    #[error("a replica in this role does not accept such a message")]
    WrongEnd,
    /// An entry of the copy exceeds the memory limit of this replica, because the two servers have different limits.
    #[error(
        "cannot store the copy's entry of write {sn}: the table would exceed its memory limit of \
         {limit} bytes; give all servers the same --memory-limit"
    )]
    CopyBeyondLimit {
        /// The sequence number of the write.
        sn: SequenceNumber,
        /// The limit of one table.
        limit: u64,
    },
    /// The table got no memory for the write; see [`OutOfMemory`](crate::table::OutOfMemory).
    #[error(
        "cannot allocate memory for write {sn}; check the memory limit against the machine's memory"
    )]
    OutOfMemory {
        /// The sequence number of the write.
        sn: SequenceNumber,
    },
}

/// The result of [`Replica::pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// Everything was written.
    Done,
    /// The batch is full: send it and pump again.
    More,
}

/// Adds the age of a replica's report to the reported silence. If the executor is hung, its report gets old although
/// the other holder sends. So the addition never raises the silence above one lease.
pub fn aged(report: &ReplicaReport, age: Duration, times: FailureTimeout) -> ReplicaReport {
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let aged = report.silent_ms.saturating_add(millis(age)).min(millis(times.lease()));
    ReplicaReport { silent_ms: report.silent_ms.max(aged), ..*report }
}

impl Replica {
    /// Creates a replica without a view. `chunks` supplies the memory of the table.
    pub fn new(config: ReplicaConfig, chunks: Box<dyn ChunkSource>) -> Replica {
        Replica {
            config,
            view: None,
            role: Role::Out,
            table: Table::new(chunks),
            sessions: Sessions::new(config.hash_secret),
            heard: Time::default(),
            longest_gap: None,
            awake: Awake::new(HEARTBEAT_INTERVAL),
            awake_when_heard: Duration::ZERO,
            acked: None,
            proven: None,
            restored: None,
            draining: false,
            frozen: false,
            readings: Readings::default(),
            lent: 0,
            last_steps: LastSteps::default(),
            wall: WallClock::default(),
            upkeep: Upkeep::default(),
            flush: Flush::default(),
            evictions: Evictions::new(config.hash_secret),
            updated_bytes: 0,
            #[cfg(feature = "mutations")]
            mutant: mutant::Mutant::default(),
        }
    }

    /// Returns the group of this replica.
    pub fn group(&self) -> GroupId {
        self.config.group
    }

    /// Returns the shard of this replica.
    pub fn shard(&self) -> ShardId {
        self.config.shard
    }

    /// Returns the number of bytes of the changes and responses that updates have made since the last call, whether or
    /// not they were logged. It measures their work, which the length of a request does not limit.
    pub fn take_updated_bytes(&mut self) -> usize {
        std::mem::take(&mut self.updated_bytes)
    }

    /// Returns the numbers of servers and shards, which place each key.
    pub fn placement(&self) -> Placement {
        self.config.placement
    }

    /// Returns the installed view; `None` before the first.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Returns the version of the installed view, or 0 without one.
    pub fn view_version(&self) -> ViewVersion {
        self.view.map_or(ViewVersion(0), |view| view.version)
    }

    /// Returns the state of this replica under the installed view.
    pub fn state(&self) -> ReplicaState {
        match &self.role {
            Role::Out => ReplicaState::Out,
            Role::Primary(primary) if !primary.is_active() => ReplicaState::InGrace,
            Role::Primary(primary) => match primary.candidacy {
                Candidacy::CaughtUp => ReplicaState::CaughtUp,
                Candidacy::Failed => ReplicaState::CopyFailed,
                Candidacy::None | Candidacy::Awaited { .. } | Candidacy::Copying(_) => {
                    ReplicaState::Active
                }
            },
            Role::HandingOver(_) => ReplicaState::HandingOver,
            Role::TakingOver(_) => ReplicaState::TakingOver,
            Role::Secondary(_) => ReplicaState::Secondary,
            Role::Candidate(..) => ReplicaState::Candidate,
        }
    }

    /// Applies a message of the stream, at either end.
    ///
    /// # Errors
    /// [`StreamError`]: no write or entry of this message was applied. The caller sends a refusal with
    /// [`Replica::view`], then closes the stream. Only on [`StreamError::Frozen`] the stream stays open.
    pub fn on_peer_message(
        &mut self,
        now: Time,
        message: &PeerMessage<'_>,
        responses: &mut impl Responses,
    ) -> Result<(), StreamError> {
        self.readings.note(now);
        if self.frozen {
            return self.on_message_when_frozen(now, message);
        }
        let (got, installed) = (message.view(), self.view_version());
        if got != installed {
            return self.on_message_of_another_view(message, got, installed);
        }
        // Not every ack counts as a sign of life; `on_ack` decides.
        if !matches!(message, PeerMessage::Ack(_)) {
            self.hear(now);
        }
        match message {
            PeerMessage::Ack(ack) => self.on_ack(now, ack, responses),
            PeerMessage::Marked(marked) => self.on_marked(marked, responses),
            PeerMessage::Prepare(prepare) => self.on_prepare(prepare),
            PeerMessage::Fragment(fragment) => self.on_fragment(now, fragment),
            PeerMessage::Beacon(beacon) => self.on_beacon(beacon),
            PeerMessage::CopyStart(start) => self.on_copy_start(start),
            PeerMessage::CopyEntry(entry) => self.on_copy_entry(entry),
            PeerMessage::CopyFragment(fragment) => self.on_copy_fragment(fragment),
            PeerMessage::CopyRecord(record) => self.on_copy_record(record),
            PeerMessage::CopyEnd(end) => self.on_copy_end(end),
            PeerMessage::Handover(handover) => self.on_handover(handover),
        }
    }

    /// Rejects new writes from now on; pending ones still commit.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Returns whether this replica is draining and no write is pending.
    pub fn is_drained(&self) -> bool {
        self.draining && self.sender().is_none_or(|sender| sender.log.is_empty())
    }

    /// Walks over entries of the table; see [`Table::walk`].
    pub fn walk(
        &self,
        cursor: WalkCursor,
        budget: WalkBudget,
        visit: impl FnMut(Entry<'_>),
    ) -> Option<WalkCursor> {
        self.table.walk(cursor, budget, visit)
    }

    /// Pins the entry of a key in this group and shard; `None` if there is none. See [`Table::pin`].
    pub fn pin(&mut self, hash: TableHash, key: &[u8]) -> Option<Pin> {
        self.table.pin(hash, key)
    }

    /// Returns the value of a pinned entry; `None` if the table was cleared since. See [`Table::pinned_value`].
    pub fn pinned_value(&self, pin: &Pin) -> Option<&[u8]> {
        self.table.pinned_value(pin)
    }

    /// Ends a pin; see [`Table::unpin`].
    pub fn unpin(&mut self, pin: Pin) {
        self.table.unpin(pin);
    }

    /// Returns the totals of the table's compaction.
    pub fn compaction_counts(&self) -> CompactionCounts {
        self.table.compaction_counts()
    }

    /// Returns the number of pinned entries.
    pub fn pinned_len(&self) -> usize {
        self.table.pinned_len()
    }

    /// Returns the number of client sessions.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Returns whether a client has a session here.
    pub fn has_session(&self, client: ClientId) -> bool {
        self.sessions.has(client)
    }

    /// Returns the completion records of committed writes of a range of sessions. The range refers to an order that is
    /// stable until the next write.
    pub fn completion_records(&self, sessions: Range<usize>) -> impl Iterator<Item = LoggedRecord> {
        let (_, committed) = self.progress();
        self.sessions.records(sessions).filter(move |logged| logged.sn <= committed)
    }

    /// Returns the records of [`Replica::completion_records`], and one more for each session whose records all belong
    /// to pending writes. That record names the last write that the client has completed. Without it, a replica that
    /// loads the dump would not know the session, and would reject a retry of the pending writes.
    pub fn records_for_dump(&self, sessions: Range<usize>) -> impl Iterator<Item = LoggedRecord> {
        let (_, committed) = self.progress();
        self.sessions.records_up_to(sessions, committed)
    }

    /// Returns the number of bytes that the table has reserved.
    pub fn reserved_bytes(&self) -> u64 {
        self.table.reserved_bytes() as u64
    }

    /// Returns a digest of the table and the completion records. At a primary the table is the committed one, and the
    /// records include those of pending writes.
    pub fn content(&self) -> ContentDigest {
        ContentDigest { table: self.table.digest(), sessions: self.sessions.digest() }
    }

    /// Returns the time of the last sign of life of the other holder under the installed view, or of that view's
    /// installation. After a stream without progress, an ack without progress is no sign of life.
    pub fn heard(&self) -> Time {
        self.heard
    }

    fn hear(&mut self, now: Time) {
        self.longest_gap =
            Some(self.longest_gap.map_or(Duration::ZERO, |gap| gap.max(now.since(self.heard))));
        self.heard = now;
        self.awake_when_heard = self.awake.look(now);
    }

    /// Returns the longest time without a sign of life of the other holder since its first one under the installed
    /// view; zero before that. The current silence is included if the view names another member. As in leases, time in
    /// which this shard was suspended counts.
    fn longest_gap_at(&self, now: Time) -> Duration {
        let has_other = self.view.is_some_and(|view| view.other().is_some());
        match self.longest_gap {
            Some(gap) if has_other => gap.max(now.since(self.heard)),
            gap => gap.unwrap_or_default(),
        }
    }

    /// Advances the clock that excludes suspensions. The driver calls this function at every wake-up, and at least
    /// every 100 ms. The time between two calls adds at most 100 ms to a reported silence.
    pub fn look(&mut self, now: Time) {
        self.awake.look(now);
    }

    /// Returns the report of this replica for the server's heartbeat; `None` before the first view. The coordinator
    /// uses the reported silence to detect a failure of the other holder. It excludes time in which this shard was
    /// suspended.
    pub fn report(&self, now: Time) -> Option<ReplicaReport> {
        self.view?;
        let (last, committed) = self.progress();
        let silence = self.awake.at(now).saturating_sub(self.awake_when_heard).as_millis();
        let copied = self.copied();
        let gap = self.longest_gap_at(now).as_millis();
        Some(ReplicaReport {
            group: self.config.group,
            shard: self.config.shard,
            state: self.state(),
            view: self.view_version(),
            last,
            committed,
            entries: self.table.len() as u64,
            bytes: self.reserved_bytes(),
            connected: self.is_connected(),
            silent_ms: u32::try_from(silence).unwrap_or(u32::MAX),
            following: self.following(),
            longest_gap_ms: u32::try_from(gap).unwrap_or(u32::MAX),
            used_bytes: self.table.used_bytes() as u64,
            content_bytes: self.table.content_bytes() as u64,
            copied: copied.entries,
            copied_bytes: copied.bytes,
            flush: self.flush_report(),
        })
    }

    /// Returns the last write assigned or applied, and the last write committed. At a follower both are the last write
    /// applied; both are zero if the replica has no data.
    fn progress(&self) -> (SequenceNumber, SequenceNumber) {
        match (self.sender(), self.follower()) {
            (Some(sender), _) => (sender.log.last(), sender.log.committed()),
            (_, Some(follower)) => (follower.last, follower.last),
            (None, None) => (SequenceNumber::ZERO, SequenceNumber::ZERO),
        }
    }

    fn following(&self) -> Following {
        match (self.sender(), self.follower()) {
            (Some(sender), _) => sender.following(),
            (_, Some(follower)) => follower.following(),
            (None, None) => Following::KeepsUp,
        }
    }

    fn is_connected(&self) -> bool {
        match (self.sender(), self.follower()) {
            (Some(sender), _) => sender.is_connected(),
            (_, Some(follower)) => follower.connected,
            (None, None) => false,
        }
    }

    /// Returns the part of the table that was sent to the candidate; the whole table once the candidate has caught up.
    fn copied(&self) -> Copied {
        match self.primary().map(|primary| &primary.candidacy) {
            Some(Candidacy::Copying(copy)) => copy.copied(),
            Some(Candidacy::CaughtUp) => Copied {
                entries: self.table.len() as u64,
                bytes: self.table.content_bytes() as u64,
            },
            _ => Copied::default(),
        }
    }

    fn primary(&self) -> Option<&Primary> {
        match &self.role {
            Role::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    fn primary_mut(&mut self) -> Option<&mut Primary> {
        match &mut self.role {
            Role::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    /// Returns the sending end, in the two roles that have one.
    fn sender(&self) -> Option<&Sender> {
        match &self.role {
            Role::Primary(primary) => Some(&primary.sender),
            Role::HandingOver(old) => Some(&old.sender),
            _ => None,
        }
    }

    fn sender_mut(&mut self) -> Option<&mut Sender> {
        match &mut self.role {
            Role::Primary(primary) => Some(&mut primary.sender),
            Role::HandingOver(old) => Some(&mut old.sender),
            _ => None,
        }
    }

    /// Returns the receiving end, in the three roles that have one.
    fn follower(&self) -> Option<&Follower> {
        match &self.role {
            Role::TakingOver(follower)
            | Role::Secondary(follower)
            | Role::Candidate(follower, _) => Some(follower),
            _ => None,
        }
    }

    fn follower_mut(&mut self) -> Option<&mut Follower> {
        match &mut self.role {
            Role::TakingOver(follower)
            | Role::Secondary(follower)
            | Role::Candidate(follower, _) => Some(follower),
            _ => None,
        }
    }
}
