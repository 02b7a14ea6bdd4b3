//! One shard of one group at one server: the normal case of primary/backup replication
//! (consistency.md §3; PacificA, Lin et al., MSR-TR-2008-25).
//!
//! ```text
//!                 primary                               secondary
//!  request  ->  on_request: decide against the newest
//!               pending state, log with the next sn
//!               pump: PREPARE(view, sn, ...)      ->    on_peer_message: sn = last + 1? apply
//!               on_peer_message: commit up to sn  <-    take_ack: ACK(view, sn, echo t_send)
//!  answer   <-  the table is the committed state
//! ```
//!
//! The machine is synchronous and pure: the caller passes the time and every input, owns the
//! connections, and hands in a sink for the answers, whose values are borrowed from the table.
//!
//! - [`Replica`] (here): roles, views, what both roles share.
//! - `primary`: requests, the pending log, commits, the sending end of the stream.
//! - `secondary`: the receiving end of the stream.

mod pending;
mod primary;
mod secondary;
#[cfg(test)]
mod tests;

use std::ops::Range;

use kv_protocol::client_message::{Answer, ReplicaRole};
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::ids::{GroupId, Member, SequenceNumber, ShardId, Time, ViewVersion};
use kv_protocol::peer_message::{CompletionRecord, PeerMessage};
use kv_protocol::placement::Placement;
use kv_protocol::view::View;

use crate::arena::ChunkSource;
use crate::hash::HashSecret;
use crate::session::Sessions;
use crate::table::{Entry, Table, WalkBudget, WalkCursor};
use primary::Primary;
use secondary::Secondary;

/// A client's connection, as its driver numbers it. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Where answers go. Answers of one connection may come in any order.
pub trait Answers {
    /// Takes one answer. The connection may be gone; the answer is then dropped.
    fn answer(&mut self, to: ConnectionId, answer: &Answer<'_>);
}

/// What a replica is made for.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// The server process it runs in.
    pub me: Member,
    /// Its group.
    pub group: GroupId,
    /// Its shard.
    pub shard: ShardId,
    /// The shape of the cluster.
    pub placement: Placement,
    /// Bytes its table may take before writes are refused; `None` = no bound.
    pub memory_limit: Option<u64>,
    /// Keys the hashes of its tables.
    pub hash_secret: HashSecret,
}

/// One shard of one group at one server.
#[derive(Debug)]
pub struct Replica {
    config: ReplicaConfig,
    view: Option<View>,
    role: Role,
    table: Table,
    sessions: Sessions,
    draining: bool,
    frozen: bool,
}

/// What the installed view makes of this replica.
#[derive(Debug)]
enum Role {
    /// No view yet.
    Idle,
    /// Orders writes and serves reads.
    Primary(Primary),
    /// Applies the primary's writes.
    Secondary(Secondary),
}

/// Why a view is not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A newer one is installed already.
    #[error("view {got} of group {group} is older than the installed view {installed}")]
    Old {
        /// The group.
        group: GroupId,
        /// The version offered.
        got: ViewVersion,
        /// The version installed.
        installed: ViewVersion,
    },
    /// The version is installed with other members: the coordinator contradicts itself.
    #[error("view {version} of group {group} is installed with other members")]
    Contradiction {
        /// The group.
        group: GroupId,
        /// The version.
        version: ViewVersion,
    },
    /// The view is not for this replica.
    #[error(
        "view {version} of group {group} does not name member {me}, or not in a role it can take"
    )]
    NotForMe {
        /// The group.
        group: GroupId,
        /// The version.
        version: ViewVersion,
        /// This replica's member.
        me: Member,
    },
}

/// Why a stream between the two holders must end. The next one goes on from the last write applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A message of another view than the installed one.
    #[error("a message of view {got} came under view {installed}")]
    View {
        /// The message's.
        got: ViewVersion,
        /// The installed one.
        installed: ViewVersion,
    },
    /// A write is missing.
    #[error("write {got} came where write {expected} was due")]
    Gap {
        /// The one due.
        expected: SequenceNumber,
        /// The one that came.
        got: SequenceNumber,
    },
    /// The other side claims a write that was never sent to it, or lacks one that it had acked.
    #[error("the other holder is at write {claimed}; {committed} is committed and {sent} is sent")]
    Impossible {
        /// What it claims to have applied.
        claimed: SequenceNumber,
        /// The last committed write.
        committed: SequenceNumber,
        /// The last write sent.
        sent: SequenceNumber,
    },
    /// A fragment that does not continue its value.
    #[error("a fragment of write {sn} does not continue its value")]
    Fragment {
        /// The write it names.
        sn: SequenceNumber,
    },
    /// A key that does not belong to this group and shard.
    #[error("write {sn} has a key of another group or shard")]
    ForeignKey {
        /// The write.
        sn: SequenceNumber,
    },
    /// This end is frozen for its dump.
    #[error("this server is being stopped and takes no more writes")]
    Frozen,
    /// A message that this role does not take.
    #[error("this end of the stream does not take such a message")]
    WrongEnd,
    /// The machine has no memory left for an entry.
    #[error("no memory for write {sn}")]
    OutOfMemory {
        /// The write.
        sn: SequenceNumber,
    },
}

/// Whether [`Replica::pump`] has more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// All is said.
    Done,
    /// The batch is full; send it and pump again.
    More,
}

impl Replica {
    /// A replica without a view; its table takes its memory from `chunks`.
    pub fn new(config: ReplicaConfig, chunks: Box<dyn ChunkSource>) -> Replica {
        Replica {
            config,
            view: None,
            role: Role::Idle,
            table: Table::new(chunks),
            sessions: Sessions::new(config.hash_secret),
            draining: false,
            frozen: false,
        }
    }

    /// Its group.
    pub fn group(&self) -> GroupId {
        self.config.group
    }

    /// Its shard.
    pub fn shard(&self) -> ShardId {
        self.config.shard
    }

    /// The installed view.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// The installed view's version; 0 without one.
    pub fn view_version(&self) -> ViewVersion {
        self.view.map_or(ViewVersion(0), |view| view.version)
    }

    /// What it is under the installed view.
    pub fn role(&self) -> Option<ReplicaRole> {
        match self.role {
            Role::Idle => None,
            Role::Primary(_) => Some(ReplicaRole::Primary),
            Role::Secondary(_) => Some(ReplicaRole::Secondary),
        }
    }

    /// Installs a view. Installing the same view again changes nothing.
    ///
    /// # Errors
    /// [`InstallError`]; the installed view stays.
    pub fn install(&mut self, view: View, answers: &mut impl Answers) -> Result<(), InstallError> {
        let (group, version) = (self.config.group, view.version);
        let not_for_me = InstallError::NotForMe { group, version, me: self.config.me };
        if view.group != group || version == ViewVersion(0) {
            return Err(not_for_me);
        }
        if let Some(installed) = self.view {
            if version < installed.version {
                let installed = installed.version;
                return Err(InstallError::Old { group, got: version, installed });
            }
            if version == installed.version {
                return if view == installed {
                    Ok(())
                } else {
                    Err(InstallError::Contradiction { group, version })
                };
            }
        }
        let me = Some(self.config.me);
        match &self.role {
            Role::Idle if view.primary == me => self.role = Role::Primary(Primary::default()),
            Role::Idle if view.other() == me => self.role = Role::Secondary(Secondary::default()),
            Role::Primary(_) if view.primary == me => {}
            Role::Secondary(_) if view.other() == me => {}
            _ => return Err(not_for_me),
        }
        self.view = Some(view);
        self.adopt_view(answers);
        Ok(())
    }

    /// The stream that stood belongs to the view before.
    fn adopt_view(&mut self, answers: &mut impl Answers) {
        match &mut self.role {
            Role::Idle => {}
            Role::Primary(_) => {
                self.on_stream_down();
                self.commit_if_alone(answers);
            }
            Role::Secondary(secondary) => secondary.abandon_partial(&mut self.table),
        }
    }

    /// Takes a message of the stream, at either end.
    ///
    /// # Errors
    /// [`StreamError`]: close the stream; nothing of this message was applied.
    pub fn on_peer_message(
        &mut self,
        now: Time,
        message: &PeerMessage<'_>,
        answers: &mut impl Answers,
    ) -> Result<(), StreamError> {
        if self.frozen {
            return Err(StreamError::Frozen);
        }
        let installed = self.view_version();
        let got = match message {
            PeerMessage::Prepare(prepare) => prepare.view,
            PeerMessage::Fragment(fragment) => fragment.view,
            PeerMessage::Ack(ack) => ack.view,
            PeerMessage::Beacon(beacon) => beacon.view,
        };
        if got != installed {
            return Err(StreamError::View { got, installed });
        }
        match (message, &mut self.role) {
            (PeerMessage::Ack(ack), Role::Primary(_)) => self.on_ack(ack, answers),
            (PeerMessage::Prepare(prepare), Role::Secondary(_)) => self.on_prepare(now, prepare),
            (PeerMessage::Fragment(fragment), Role::Secondary(_)) => {
                self.on_fragment(now, fragment)
            }
            (PeerMessage::Beacon(beacon), Role::Secondary(secondary)) => {
                secondary.owe_ack(beacon.t_send);
                Ok(())
            }
            _ => Err(StreamError::WrongEnd),
        }
    }

    /// Takes no new writes from now on; pending ones still commit.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Changes nothing any more, so that a dump is the last word: from now on no write is taken,
    /// applied, sent or committed. What is pending stays unanswered. Reads go on.
    pub fn freeze(&mut self) {
        self.draining = true;
        self.frozen = true;
    }

    /// Whether it drains and no write is pending.
    pub fn is_drained(&self) -> bool {
        self.draining
            && match &self.role {
                Role::Primary(primary) => primary.log.is_empty(),
                Role::Idle | Role::Secondary(_) => true,
            }
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

    /// How many clients' sessions there are.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The completion records of the committed writes of some sessions, which are named by their place
    /// in an order that holds as long as nothing is written.
    pub fn completion_records(
        &self,
        sessions: Range<usize>,
    ) -> impl Iterator<Item = CompletionRecord> {
        let committed = match &self.role {
            Role::Primary(primary) => primary.log.committed(),
            Role::Secondary(secondary) => secondary.last,
            Role::Idle => SequenceNumber::ZERO,
        };
        let records = self.sessions.records(sessions);
        records.filter(move |logged| logged.sn <= committed).map(|logged| logged.record)
    }

    /// Its line in the server's heartbeat; `None` without a view.
    pub fn report(&self) -> Option<ReplicaReport> {
        let (role, last, committed, connected) = match &self.role {
            Role::Idle => return None,
            Role::Primary(primary) => (
                ReplicaRole::Primary,
                primary.log.last(),
                primary.log.committed(),
                primary.is_connected(),
            ),
            Role::Secondary(secondary) => {
                (ReplicaRole::Secondary, secondary.last, secondary.last, secondary.connected)
            }
        };
        Some(ReplicaReport {
            group: self.config.group,
            shard: self.config.shard,
            role,
            view: self.view_version(),
            last,
            committed,
            entries: self.table.len() as u64,
            bytes: self.table.reserved_bytes() as u64,
            connected,
        })
    }
}
