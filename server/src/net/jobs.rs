//! Dumps and loads of a shard: long work in bounded steps, between which the engine does all other work.
//!
//! ```text
//!   engine: step -> Again           as soon as all other work has had its turn
//!                -> After(pause)    the other end of the channel is behind
//!                -> Done
//! ```
//!
//! A job never blocks and does not depend on its runtime: each engine calls [`Job::step`] in its own way.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError};
use kv_core::replica::Replica;
use kv_core::session::LoggedRecord;
use kv_core::table::{WalkBudget, WalkCursor};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::GroupId;
use kv_protocol::placement::Digest;
use kv_shard::{DumpedEntries, LoadPiece};

use super::context::ShardContext;
use crate::message::{DumpPiece, DumpedPart, LongItem};
use crate::watchdog::Activity;

/// The maximum number of entries and bytes that one step of a dump reads from the table. A longer value is read in
/// several steps. The number of bytes also limits the responses that one step reads.
pub(crate) const DUMP_STEP: WalkBudget = WalkBudget { entries: 4_096, bytes: 256 << 10 };
/// The maximum number of sessions whose completion records one step of a dump reads.
pub(crate) const DUMP_SESSIONS: usize = 256;
/// The pause of a dump if the thread that receives its pieces is behind.
const DUMP_PAUSE: Duration = Duration::from_millis(1);
/// The pause of a load if the thread that sends its pieces is behind.
const LOAD_PAUSE: Duration = Duration::from_millis(1);

/// The time of a job's next step, or the end of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next step is due as soon as all other pending work has been done once.
    Again,
    /// The next step is due after a pause.
    After(Duration),
    /// The job has ended.
    Done,
}

/// Long work of a shard.
pub(crate) enum Job {
    /// A dump, which sends the table of a role piece by piece.
    Dump(Dump),
    /// A load, which fills the table of a group piece by piece.
    Load(Load),
}

impl Job {
    /// Creates a dump of the table of this role. The replica must be frozen.
    pub(crate) fn dump(role: ReplicaRole, pieces: Sender<DumpPiece>) -> Job {
        Job::Dump(Dump { role, pieces, next: Part::Shard, long: VecDeque::new(), unsent: None })
    }

    /// Creates a load into the table of this group. The result goes to `done`, unless the sender of the pieces is
    /// dropped before the last piece.
    pub(crate) fn load(
        group: GroupId,
        pieces: Receiver<LoadPiece>,
        done: Sender<Result<(), String>>,
    ) -> Job {
        Job::Load(Load { group, pieces, done })
    }

    /// Performs one bounded step.
    pub(crate) fn step(&mut self, context: &ShardContext) -> Step {
        match self {
            Job::Dump(dump) => dump.step(context),
            Job::Load(load) => load.step(context),
        }
    }
}

/// The state of a [`Job::Dump`].
pub(crate) struct Dump {
    role: ReplicaRole,
    pieces: Sender<DumpPiece>,
    next: Part,
    /// The entries with long values that the walk has passed, and the records whose responses did not fit in their
    /// piece; each with the number of bytes of its value or response that are already sent.
    long: VecDeque<(LongItem, usize)>,
    /// The piece for which the channel had no room.
    unsent: Option<DumpPiece>,
}

/// The part that a dump sends next.
#[derive(Clone, Copy)]
enum Part {
    Shard,
    Entries(WalkCursor),
    /// The sessions from this index on.
    Records(usize),
    Nothing,
}

impl Dump {
    fn step(&mut self, context: &ShardContext) -> Step {
        let unsent = self.unsent.take();
        let Some(piece) =
            unsent.or_else(|| context.during(Activity::Dump, || self.next_piece(context)))
        else {
            return Step::Done;
        };
        match self.pieces.try_send(piece) {
            Ok(()) => Step::Again,
            Err(TrySendError::Disconnected(_)) => Step::Done,
            Err(TrySendError::Full(back)) => {
                self.unsent = Some(back);
                Step::After(DUMP_PAUSE)
            }
        }
    }

    /// Returns the next piece; `None` after the last one, or if this server has no replica of the group.
    fn next_piece(&mut self, context: &ShardContext) -> Option<DumpPiece> {
        let shard = context.shard.borrow();
        let service = &shard.service;
        let replica = service.replica(service.identity.group_of(self.role))?;
        if let Some(part) = next_part(replica, &mut self.long) {
            return Some(DumpPiece::Part(part));
        }
        let (piece, next) = match self.next {
            Part::Shard => {
                let dumped = replica.dumped();
                let next = match dumped {
                    Ok(_) => Part::Entries(WalkCursor::START),
                    Err(_) => Part::Nothing,
                };
                (DumpPiece::Shard(dumped), next)
            }
            Part::Entries(from) => {
                let mut entries = DumpedEntries::default();
                let long = &mut self.long;
                let walked = replica.walk(from, DUMP_STEP, |entry| match entry.value.len() {
                    length if length > DUMP_STEP.bytes => {
                        let (deadline, version) = (entry.deadline, entry.version);
                        let key = entry.key.to_vec();
                        long.push_back((LongItem::Entry { key, deadline, version }, 0));
                    }
                    _ => entries.push(entry.key, entry.value, entry.deadline, entry.version),
                });
                (DumpPiece::Entries(entries), walked.map_or(Part::Records(0), Part::Entries))
            }
            // The replica is frozen, so the sessions keep their indexes from step to step.
            Part::Records(from) if from < replica.session_count() => {
                let to = from + DUMP_SESSIONS;
                (DumpPiece::Records(records(replica, from..to, &mut self.long)), Part::Records(to))
            }
            Part::Records(_) => (DumpPiece::End, Part::Nothing),
            Part::Nothing => return None,
        };
        self.next = next;
        Some(piece)
    }
}

/// Returns the completion records of a range of sessions, each with the rest of its response. Records whose responses
/// exceed the bytes of a step are appended to `long` instead.
fn records(
    replica: &Replica,
    sessions: Range<usize>,
    long: &mut VecDeque<(LongItem, usize)>,
) -> Vec<(LoggedRecord, Vec<u8>)> {
    let mut records = Vec::new();
    let mut bytes = 0;
    for logged in replica.records_for_dump(sessions) {
        let response = replica.response_of(logged.record.client, logged.record.seq);
        if bytes + response.len() > DUMP_STEP.bytes {
            long.push_back((LongItem::Record(logged), 0));
        } else {
            bytes += response.len();
            records.push((logged, response.to_vec()));
        }
    }
    records
}

/// Returns the next part of the first of these long items; `None` if there are none. The replica is frozen, so no value
/// or response changes.
fn next_part(replica: &Replica, long: &mut VecDeque<(LongItem, usize)>) -> Option<DumpedPart> {
    let (item, from) = long.pop_front()?;
    let whole = match &item {
        LongItem::Entry { key, .. } => {
            let entry = replica.entry(Digest::of(key), key);
            entry.expect("a frozen replica keeps its entries").value
        }
        LongItem::Record(LoggedRecord { record, .. }) => {
            replica.response_of(record.client, record.seq)
        }
    };
    let to = whole.len().min(from + DUMP_STEP.bytes);
    let is_last = to == whole.len();
    let bytes = whole[from..to].to_vec();
    if !is_last {
        long.push_front((item.clone(), to));
    }
    Some(DumpedPart { item, bytes, is_last })
}

/// The state of a [`Job::Load`].
pub(crate) struct Load {
    group: GroupId,
    pieces: Receiver<LoadPiece>,
    done: Sender<Result<(), String>>,
}

impl Load {
    fn step(&mut self, context: &ShardContext) -> Step {
        let piece = match self.pieces.try_recv() {
            Ok(piece) => piece,
            Err(TryRecvError::Empty) => return Step::After(LOAD_PAUSE),
            // The thread that reads the file has failed, and ends the process.
            Err(TryRecvError::Disconnected) => return Step::Done,
        };
        let is_last = matches!(piece, LoadPiece::End(_));
        let loaded = context
            .during(Activity::Load, || context.shard.borrow_mut().service.load(self.group, piece));
        if is_last || loaded.is_err() {
            // The channel has room for the one result.
            let _ = self.done.try_send(loaded);
            return Step::Done;
        }
        Step::Again
    }
}
