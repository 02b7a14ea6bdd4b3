//! One operation in progress: its encoded request, its stage, and its last obstacle.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kv_protocol::client_message::{
    Condition, Operation as WireOperation, Part, REQUEST_HEAD_BYTES, ReplicaRole, Request, Scan,
    WriteHeader,
};
use kv_protocol::ids::{
    ClientId, ClusterId, GroupId, RequestHash, RequestId, RequestSeq, SequenceNumber, ServerId,
    ShardId, ViewVersion,
};
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use kv_protocol::placement::Digest;
use kv_protocol::scan_token::{InvalidToken, ScanPosition, ScanTokens};
use kv_protocol::update::{Update, Updates};

use crate::backoff::Backoff;
use crate::doubt::{Doubt, DoubtfulWrite};
use crate::error::{Action, Error};
use crate::free_list::FreeList;
use crate::landing::Landing;
use crate::map_source::MapSource;
use crate::options::{OpOptions, is_deadline};
use crate::scan::ScanOptions;
use crate::table::Table;
use crate::{updates, verbs};

/// An operation on one key, or on several keys of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Reads a key. A long value is received into separate memory ([`crate::Reply::take_memory`]).
    Get {
        /// The key: 1 to 65,535 bytes.
        key: &'a [u8],
    },
    /// Reads a part of a key's value, or a value into memory of the caller's choice.
    Read {
        /// The key: 1 to 65,535 bytes.
        key: &'a [u8],
        /// The part of the value; `None` for the whole value.
        part: Option<Part>,
        /// The destination of a long value.
        landing: Landing,
    },
    /// Sets a key.
    Put {
        /// The key: 1 to 65,535 bytes.
        key: &'a [u8],
        /// The value: up to 16 MiB.
        value: &'a [u8],
    },
    /// Sets a key to a value that is sent from the caller's memory, without a copy.
    PutKept {
        /// The key: 1 to 65,535 bytes.
        key: &'a [u8],
        /// The value: up to 16 MiB. The client does not read it after the operation has ended or the client has been
        /// dropped.
        value: &'static [u8],
    },
    /// Removes a key.
    Delete {
        /// The key: 1 to 65,535 bytes.
        key: &'a [u8],
    },
    /// Executes updates of keys of one group and shard, all or none. The result is [`crate::Reply::value`]. The
    /// condition in the options must be [`Condition::Always`], because each update has its own condition.
    ///
    /// The connections of a [`crate::SharedClient`] do not know each other's writes in doubt. If it has several to each
    /// shard, an operation on another key of an update in doubt may be sent before the update is settled.
    Update {
        /// The key that determines the group and shard: 1 to 65,535 bytes. The updates without a key apply to it.
        key: &'a [u8],
        /// The updates, 1 to 1,024.
        updates: &'a [Update<'a>],
    },
    /// Does nothing; the response shows that the key's server is serving.
    Noop {
        /// The key: 1 to 65,535 bytes.
        key: &'a [u8],
    },
    /// Reads a key from the given replica.
    Verify {
        /// The key: 1 to 65,535 bytes.
        key: &'a [u8],
        /// The replica to read.
        replica: ReplicaRole,
    },
    /// Returns a page of a scan; see [`crate::Client::scan`]. The result is read with [`crate::Page::of`].
    Scan {
        /// The token of the page; 0 for the first one.
        token: u64,
        /// The pattern, and what entries have.
        options: ScanOptions<'a>,
    },
    /// Settles a write that ended in doubt. The result is the result of the write itself, or [`Error::NotDone`].
    Resolve {
        /// The write, as reported in [`Error::InDoubt`].
        doubt: &'a Doubt,
    },
}

impl<'a> Op<'a> {
    /// Creates a put. If `is_kept`, the value is sent from the caller's memory, without a copy.
    pub fn put(key: &'a [u8], value: &'static [u8], is_kept: bool) -> Op<'a> {
        if is_kept { Op::PutKept { key, value } } else { Op::Put { key, value } }
    }

    pub(crate) fn key(&self) -> &[u8] {
        match *self {
            Op::Put { key, .. }
            | Op::PutKept { key, .. }
            | Op::Get { key }
            | Op::Read { key, .. }
            | Op::Delete { key }
            | Op::Update { key, .. }
            | Op::Noop { key }
            | Op::Verify { key, .. } => key,
            Op::Scan { options, .. } => options.pattern,
            Op::Resolve { doubt } => &doubt.write.key,
        }
    }

    /// Returns the digest of the key, or of the pattern.
    pub(crate) fn digest(&self) -> Digest {
        match self {
            Op::Resolve { doubt } => doubt.write.digest,
            op => Digest::of(op.key()),
        }
    }

    pub(crate) fn verb(&self) -> &'static str {
        self.kind().verb()
    }

    fn kind(&self) -> Kind {
        match *self {
            Op::Put { .. } | Op::PutKept { .. } => Kind::Put,
            Op::Get { .. } | Op::Read { .. } => Kind::Get,
            Op::Delete { .. } => Kind::Delete,
            Op::Update { updates, .. } => {
                Kind::Update { verb: verbs::of_request(updates), count: updates.len() }
            }
            Op::Noop { .. } => Kind::Noop,
            Op::Verify { replica, .. } => Kind::Verify(replica),
            Op::Scan { .. } => Kind::Scan,
            Op::Resolve { .. } => Kind::Resolve,
        }
    }

    /// Returns the number of bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        match *self {
            Op::Put { key, value } | Op::PutKept { key, value } => key.len() + value.len(),
            Op::Update { key, updates } => {
                key.len() + updates.iter().map(Update::wire_bytes).sum::<usize>()
            }
            _ => self.key().len(),
        }
    }
}

/// The id of an operation; never reused.
pub(crate) type OpId = u64;

/// The kind of an operation, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Get,
    Put,
    Delete,
    /// A request with this number of updates.
    Update {
        verb: &'static str,
        count: usize,
    },
    Noop,
    Verify(ReplicaRole),
    Scan,
    Resolve,
}

impl Kind {
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Put => "put",
            Kind::Delete => "delete",
            Kind::Update { verb, .. } => verb,
            Kind::Noop => "no-op for",
            Kind::Verify(ReplicaRole::Primary) => "read from the primary's copy of",
            Kind::Verify(ReplicaRole::Secondary) => "read from the secondary's copy of",
            Kind::Scan => "scan",
            Kind::Resolve => "settle a write in doubt to",
        }
    }

    pub(crate) fn is_write(self) -> bool {
        matches!(self, Kind::Put | Kind::Delete | Kind::Update { .. })
    }

    pub(crate) fn is_update(self) -> bool {
        matches!(self, Kind::Update { .. })
    }

    /// Returns the role of the replica that serves this kind.
    pub(crate) fn role(self) -> ReplicaRole {
        match self {
            Kind::Verify(role) => role,
            _ => ReplicaRole::Primary,
        }
    }
}

/// The receiver of an operation's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notify {
    /// The next poll, with this tag.
    Queue(u64),
    /// The blocking call that waits for it.
    Caller,
    /// No caller: the engine itself settles a write in doubt.
    None,
}

/// The stage of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Queued in the engine to be routed next.
    Ready,
    /// Waiting for the first map.
    AwaitingMap,
    /// A write that waits for room in its session's window.
    AwaitingWindow,
    /// Waiting until an earlier write in doubt to its key is settled.
    AwaitingDoubt,
    /// Assigned to a connection; `request` is set once the request is queued on that connection.
    Assigned { connection: u64, request: Option<RequestId> },
    /// Waiting for a retry at this time.
    BackingOff { until: Instant },
}

/// The operations by id. They are boxed, because an operation is large and must keep its address.
pub(crate) type Operations = Table<Box<Operation>>;

/// One operation in progress; see the module documentation.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// The encoded request: head and key, and the value unless it is sent from the caller's memory.
    pub(crate) frame: Vec<u8>,
    key_bytes: usize,
    /// The value, if it is sent from the caller's memory.
    kept: &'static [u8],
    condition: Condition,
    /// The digest of the key. It is computed on demand, or earlier together with the digests of other keys.
    digest: Option<Digest>,
    /// The digests of the other keys of updates, once the operation is routed.
    pub(crate) other_keys: Box<[Digest]>,
    pub(crate) notify: Notify,
    /// The time allowed for the operation.
    allowed: Duration,
    pub(crate) deadline: Instant,
    pub(crate) place: Option<(GroupId, ShardId)>,
    pub(crate) stage: Stage,
    /// The connection on which the request is queued, in whole or in part, and its request id on that connection.
    pub(crate) queued: Option<(u64, RequestId)>,
    /// The time at which the operation was assigned to its current connection.
    pub(crate) assigned_at: Instant,
    /// The time at which to check whether the view has changed; for [`Stage::Assigned`].
    pub(crate) attention_at: Instant,
    /// True if that check has run on the current connection.
    pub(crate) is_overdue: bool,
    /// The view version and the server of the last routing.
    pub(crate) view: ViewVersion,
    pub(crate) server: Option<ServerId>,
    /// The number of a write, kept by all retries, and the client id of its session.
    pub(crate) session: Option<(ClientId, RequestSeq)>,
    /// The session's first incomplete number at the last transmission.
    pub(crate) first_incomplete: RequestSeq,
    /// The position in the log at which the write's session began.
    pub(crate) begun: SequenceNumber,
    /// The number of transmissions of a write that are not known to have had no effect. While it is above zero, the
    /// write may have been executed.
    pub(crate) doubtful: u32,
    pub(crate) backoff: Backoff,
    /// The last obstacle.
    pub(crate) trouble: Option<Arc<str>>,
    /// True if that obstacle was overload.
    pub(crate) was_busy: bool,
    /// The time at which the timer of the operation fires, if a timer is set.
    pub(crate) timer: Option<Instant>,
    /// The part of the value to read; `None` for the whole value.
    pub(crate) part: Option<Part>,
    /// The destination of a long value.
    pub(crate) landing: Landing,
    /// The connection from which a long value is being received, and the request id on that connection.
    pub(crate) lands_from: Option<(u64, RequestId)>,
    /// The write to settle; for [`Kind::Resolve`].
    pub(crate) doubt: Option<Doubt>,
    /// True if the servers have expired the session of this write, or of the write to settle.
    pub(crate) is_forgotten: bool,
    /// The scan; for [`Kind::Scan`].
    scan: Option<ScanState>,
}

/// A scan and its position.
#[derive(Clone, Copy, Debug)]
struct ScanState {
    token: u64,
    request: Scan,
    position: ScanPosition,
}

impl Operation {
    /// Checks the caller's operation and encodes its request.
    pub(crate) fn new(
        op: Op<'_>,
        options: &OpOptions,
        default_deadline: Duration,
        notify: Notify,
        now: Instant,
        free_list: &mut FreeList,
    ) -> Result<Box<Operation>, Error> {
        let (kind, key) = (op.kind(), op.key());
        let (value, kept): (&[u8], &'static [u8]) = match op {
            Op::Put { value, .. } => (value, &[]),
            Op::PutKept { value, .. } => (&[], value),
            _ => (&[], &[]),
        };
        let action = || Action::new(kind.verb(), key);
        if key.is_empty() && kind != Kind::Scan {
            let reason = "the key is empty; it needs 1 to 65,535 bytes".to_owned();
            return Err(Error::Invalid { action: action(), reason });
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(Error::key_too_long(action()));
        }
        let value_bytes = value.len() + kept.len();
        if value_bytes > MAX_VALUE_BYTES {
            return Err(Error::value_too_long(action(), value_bytes));
        }
        let allowed = options.deadline.unwrap_or(default_deadline);
        if !is_deadline(allowed) {
            let reason = format!("the deadline is {allowed:?}; it must be 1 ms to 60 s");
            return Err(Error::Invalid { action: action(), reason });
        }
        let updates = match op {
            Op::Update { updates, .. } => updates::check(key, updates, options.condition)?,
            _ => &[],
        };
        let bytes = REQUEST_HEAD_BYTES + op.bytes() - kept.len();
        let mut operation =
            free_list.take(bytes, now).map_err(|_| Error::NoMemory { action: action(), bytes })?;
        operation.frame.extend_from_slice(&[0; REQUEST_HEAD_BYTES]);
        operation.frame.extend_from_slice(key);
        operation.frame.extend_from_slice(value);
        for update in updates {
            update.write(&mut operation.frame);
        }
        operation.kind = kind;
        operation.key_bytes = key.len();
        operation.kept = kept;
        operation.condition = options.condition;
        operation.notify = notify;
        operation.allowed = allowed;
        operation.deadline = now + allowed;
        operation.assigned_at = now;
        operation.attention_at = now;
        (operation.part, operation.landing) = match op {
            Op::Read { part, landing, .. } => (part, landing),
            Op::Get { .. } | Op::Update { .. } => (None, Landing::Memory),
            _ => (None, Landing::Buffer),
        };
        if let Op::Scan { token, options: ScanOptions { values, deadlines, .. } } = op {
            let request = Scan { cursor: 0, values, deadlines };
            operation.scan = Some(ScanState { token, request, position: ScanPosition::default() });
        }
        if let Op::Resolve { doubt } = op {
            let write = &doubt.write;
            operation.place = Some(write.place);
            operation.digest = Some(write.digest);
            operation.session = Some((write.client, write.seq));
            operation.first_incomplete = write.first_incomplete;
            operation.begun = write.begun;
            operation.doubt = Some(doubt.clone());
        }
        Ok(operation)
    }

    /// Creates a blank operation that uses `frame` as memory for its request.
    pub(crate) fn blank(frame: Vec<u8>, now: Instant) -> Operation {
        Operation {
            kind: Kind::Get,
            frame,
            key_bytes: 0,
            kept: &[],
            condition: Condition::Always,
            digest: None,
            other_keys: Box::default(),
            notify: Notify::Caller,
            allowed: Duration::ZERO,
            deadline: now,
            place: None,
            stage: Stage::Ready,
            queued: None,
            assigned_at: now,
            attention_at: now,
            is_overdue: false,
            view: ViewVersion(0),
            server: None,
            session: None,
            first_incomplete: RequestSeq(0),
            begun: SequenceNumber::ZERO,
            doubtful: 0,
            backoff: Backoff::default(),
            trouble: None,
            was_busy: false,
            timer: None,
            part: None,
            landing: Landing::Buffer,
            lands_from: None,
            doubt: None,
            is_forgotten: false,
            scan: None,
        }
    }

    /// Resets an ended operation to a blank one. Keeps the memory of its request and returns it. Fields are reset one
    /// by one, because overwriting the whole struct would copy all of it.
    pub(crate) fn clear(&mut self) -> &mut Vec<u8> {
        let Operation {
            // `Operation::new` sets these fields for every operation.
            part: _,
            landing: _,
            kind: _,
            key_bytes: _,
            condition: _,
            notify: _,
            allowed: _,
            deadline: _,
            assigned_at: _,
            attention_at: _,
            frame,
            kept,
            digest,
            other_keys,
            place,
            stage,
            queued,
            is_overdue,
            view,
            server,
            session,
            first_incomplete,
            begun,
            doubtful,
            backoff,
            trouble,
            was_busy,
            timer,
            lands_from,
            doubt,
            is_forgotten,
            scan,
        } = self;
        frame.clear();
        *kept = &[];
        *other_keys = Box::default();
        (*digest, *place, *stage, *queued) = (None, None, Stage::Ready, None);
        (*is_overdue, *view, *server) = (false, ViewVersion(0), None);
        (*session, *first_incomplete, *doubtful) = (None, RequestSeq(0), 0);
        *begun = SequenceNumber::ZERO;
        (*backoff, *trouble, *was_busy) = (Backoff::default(), None, false);
        (*lands_from, *scan) = (None, None);
        (*timer, *doubt, *is_forgotten) = (None, None, false);
        frame
    }

    pub(crate) fn action(&self) -> Action {
        Action::new(self.kind.verb(), self.key())
    }

    /// Returns the key, if its digest is still unknown and the key is short enough to compute it together with others.
    pub(crate) fn short_key(&self) -> Option<&[u8]> {
        let key = self.key();
        (self.digest.is_none() && key.len() <= Digest::MAX_TOGETHER_BYTES).then_some(key)
    }

    pub(crate) fn set_digest(&mut self, digest: Digest) {
        self.digest = Some(digest);
    }

    pub(crate) fn digest(&mut self) -> Digest {
        let digest = self.digest.unwrap_or_else(|| Digest::of(self.key()));
        self.digest = Some(digest);
        digest
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.frame[REQUEST_HEAD_BYTES..][..self.key_bytes]
    }

    fn value(&self) -> &[u8] {
        match self.kept {
            [] => &self.frame[REQUEST_HEAD_BYTES + self.key_bytes..],
            kept => kept,
        }
    }

    /// Returns the number of bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        self.frame.len() - REQUEST_HEAD_BYTES + self.kept.len()
    }

    /// Returns the encoded request in its two pieces.
    pub(crate) fn wire(&self) -> [&[u8]; 2] {
        [&self.frame, self.kept]
    }

    /// Returns the length of the encoded request.
    pub(crate) fn wire_bytes(&self) -> usize {
        self.frame.len() + self.kept.len()
    }

    /// Rewrites the head of the request for one more transmission.
    pub(crate) fn address(&mut self, id: RequestId) {
        let digest = self.digest();
        let head =
            Request { id, view: self.view, digest, key: self.key(), operation: self.to_wire() }
                .head();
        self.frame[..REQUEST_HEAD_BYTES].copy_from_slice(&head);
    }

    /// Records that the queued request was removed before it was sent whole. This transmission has no effect, because a
    /// server executes only whole requests. Returns the connection and request id under which it was queued.
    pub(crate) fn was_not_sent(&mut self) -> Option<(u64, RequestId)> {
        let queued = self.queued.take()?;
        self.doubtful = self.doubtful.saturating_sub(1);
        Some(queued)
    }

    /// Returns whether CONFLICT is a possible response.
    pub(crate) fn is_conditional(&self) -> bool {
        self.kind.is_update() || (self.kind.is_write() && self.condition != Condition::Always)
    }

    /// Returns whether the operation needs a server that supports UPDATE, SCAN and what the same version introduced.
    pub(crate) fn needs_updates(&self) -> bool {
        let is_new = |part: Part| part.with_deadline || part.from_end;
        self.kind.is_update() || self.kind == Kind::Scan || self.part.is_some_and(is_new)
    }

    /// Sets the place, the cursor and the digest of a scan from its token.
    pub(crate) fn locate_scan(&mut self, tokens: &ScanTokens) -> Result<(), InvalidToken> {
        let Some(scan) = &mut self.scan else { return Ok(()) };
        scan.position = tokens.decode(scan.token)?;
        scan.request.cursor = scan.position.cursor.into();
        let place = tokens.place(scan.position.place);
        self.place = Some(place);
        self.digest = Some(tokens.placement().digest_at(place));
        Ok(())
    }

    /// Returns the position of a scan; `None` for other operations.
    pub(crate) fn scan_position(&self) -> Option<ScanPosition> {
        self.scan.map(|scan| scan.position)
    }

    /// Returns the updates of the request; empty for other operations.
    pub(crate) fn updates(&self) -> impl Iterator<Item = Update<'_>> {
        let updates = self.kind.is_update().then(|| self.encoded_updates());
        updates.into_iter().flat_map(|updates| updates.iter())
    }

    fn encoded_updates(&self) -> Updates<'_> {
        Updates::read(self.value()).expect("they were encoded by Operation::new")
    }

    /// Returns the number of updates, if this is a batch or a RESOLVE of a batch.
    pub(crate) fn batch_count(&self) -> Option<usize> {
        let count = match self.kind {
            Kind::Update { count, .. } => count,
            _ => self.doubt.as_ref()?.write.batch.len(),
        };
        (count > 1).then_some(count)
    }

    /// Returns the description of the update that failed. `index` is the value of the response to a batch: the index
    /// of that update as a decimal text. For other operations, returns the description of the operation.
    pub(crate) fn failed_action(&self, index: &[u8]) -> Action {
        let index = std::str::from_utf8(index).ok().and_then(|index| index.parse().ok());
        let of_update = index.and_then(|index: usize| match (self.kind, self.batch_count()?) {
            (Kind::Resolve, _) => self.doubt.as_ref()?.write.batch.get(index).cloned(),
            (_, count) => {
                let update = self.updates().nth(index)?;
                Some(updates::action(self.key(), &update).in_batch(index, count))
            }
        });
        of_update.unwrap_or_else(|| self.action())
    }

    /// Returns the descriptions of the updates of a batch; empty for other operations.
    fn batch_actions(&self) -> Box<[Action]> {
        let Some(count) = self.batch_count() else { return Box::default() };
        let actions = self
            .updates()
            .enumerate()
            .map(|(index, update)| updates::action(self.key(), &update).in_batch(index, count));
        actions.collect()
    }

    fn to_wire(&self) -> WireOperation<'_> {
        let header = WriteHeader {
            seq: self.session.map_or(RequestSeq(0), |(_, seq)| seq),
            first_incomplete: self.first_incomplete,
            begun: self.begun,
            condition: self.condition,
        };
        match self.kind {
            Kind::Get => self.part.map_or(WireOperation::Get, WireOperation::GetPart),
            Kind::Put => WireOperation::Put(header, self.value()),
            Kind::Delete => WireOperation::Delete(header),
            Kind::Update { .. } => WireOperation::Update(header, self.encoded_updates()),
            Kind::Noop => WireOperation::Noop,
            Kind::Verify(role) => WireOperation::Verify(role),
            Kind::Scan => {
                WireOperation::Scan(self.scan.map_or(Scan::default(), |scan| scan.request))
            }
            Kind::Resolve => {
                let asked = self.doubt.as_ref().map_or(RequestHash(0), |doubt| doubt.write.request);
                WireOperation::Resolve(header, asked)
            }
        }
    }

    /// Returns the [`Doubt`] that identifies this write, which was sent and ends in doubt.
    pub(crate) fn doubt_of(&mut self, cluster: ClusterId) -> Option<Doubt> {
        let (digest, (client, seq), place) = (self.digest(), self.session?, self.place?);
        let request = RequestHash::of(digest, &self.to_wire())?;
        let write = DoubtfulWrite {
            key: self.key().into(),
            digest,
            other_keys: self.other_keys.clone(),
            batch: self.batch_actions(),
            cluster,
            place,
            client,
            seq,
            first_incomplete: self.first_incomplete,
            begun: self.begun,
            request,
            settled: OnceLock::new(),
        };
        Some(Doubt { write: Arc::new(write) })
    }

    /// Returns the time at which the operation's timer must fire.
    pub(crate) fn wake_at(&self) -> Instant {
        match self.stage {
            Stage::Assigned { .. } => self.attention_at.min(self.deadline),
            Stage::BackingOff { until } => until.min(self.deadline),
            Stage::Ready | Stage::AwaitingMap | Stage::AwaitingWindow | Stage::AwaitingDoubt => {
                self.deadline
            }
        }
    }

    /// Returns the error of an operation that ends now without a result, at its deadline or because a system call
    /// failed. `server_is_down` is true if the map reports the server of the last routing as down.
    pub(crate) fn expired(&self, server_is_down: bool, map_source: &MapSource) -> Error {
        let (action, waited) = (self.action(), rounded(self.allowed));
        let is_waiting = matches!(self.stage, Stage::Assigned { request: Some(_), .. });
        let has_map = self.stage != Stage::AwaitingMap;
        let map_trouble = map_source.trouble();
        let mut cause = match (&self.trouble, self.stage) {
            (_, Stage::AwaitingMap) => match map_trouble {
                Some(trouble) => trouble.to_string(),
                None => {
                    let names = map_source.names();
                    format!("no process has sent the map; is the coordinator running at {names}?")
                }
            },
            (Some(trouble), _) => trouble.to_string(),
            (_, Stage::AwaitingWindow) => {
                "64 earlier writes to its shard have not ended".to_owned()
            }
            (_, Stage::AwaitingDoubt) => {
                "an earlier write to the key is in doubt, and could not be settled".to_owned()
            }
            (None, _) => match self.server {
                Some(server) => format!("server {server} did not respond"),
                None => "no server is known for the key".to_owned(),
            },
        };
        if let (true, Some(server)) = (server_is_down, self.server) {
            cause.push_str(&format!("; the coordinator reports server {server} as down"));
        }
        if let (true, Some(trouble)) = (has_map, map_trouble) {
            cause.push_str(&format!("; {trouble}"));
        }
        if self.doubtful > 0 {
            let cause = format!("no response within {waited:?} ({cause})");
            return Error::InDoubt { action, cause, doubt: None };
        }
        if self.was_busy {
            return Error::Busy { action, waited, cause };
        }
        // The advice is omitted if the coordinator cannot be reached, because `coord status` would fail too.
        if has_map && map_trouble.is_none() && self.stage != Stage::AwaitingWindow {
            cause.push_str("; `coord status` shows which servers are up");
        }
        // A write that is not in doubt was not executed, so it is reported as unavailable and never as timed out.
        if is_waiting && !self.kind.is_write() && !server_is_down {
            Error::Timeout { action, waited, cause }
        } else {
            Error::Unavailable { action, waited, cause }
        }
    }
}

/// Rounds a duration to the millisecond for messages. The time that remains after earlier waits has many digits.
fn rounded(duration: Duration) -> Duration {
    let millis = (duration + Duration::from_micros(500)).as_millis();
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Random;
    use crate::options::Endpoint;

    fn source(now: Instant) -> MapSource {
        let address = "127.0.0.1:7000".parse().unwrap();
        let place = crate::address::Place::at(address);
        MapSource::new(vec![Endpoint { name: "example:7000".to_owned(), place }].into(), now)
    }

    fn get(deadline: Duration, now: Instant) -> Box<Operation> {
        let options = OpOptions { deadline: Some(deadline), ..OpOptions::default() };
        let (op, mut free_list) = (Op::Get { key: b"k" }, FreeList::default());
        Operation::new(op, &options, deadline, Notify::Caller, now, &mut free_list).unwrap()
    }

    #[test]
    fn a_deadline_is_shown_to_the_millisecond() {
        let now = Instant::now();
        let operation = get(Duration::from_nanos(4_999_999_830), now);
        let text = operation.expired(false, &source(now)).to_string();
        assert!(text.contains("not served within 5s:"), "{text}");
        assert_eq!(rounded(Duration::from_micros(1_499)), Duration::from_millis(1));
    }

    #[test]
    fn coord_status_is_recommended_only_when_a_coordinator_is_reachable() {
        let now = Instant::now();
        let mut operation = get(Duration::from_secs(5), now);
        let mut source = source(now);
        let text = operation.expired(false, &source).to_string();
        assert!(text.ends_with("; `coord status` shows which servers are up"), "{text}");

        let question = "is the coordinator running at example:7000";
        operation.stage = Stage::AwaitingMap;
        let silent = operation.expired(false, &source).to_string();
        let (whom, _) = source.next(now);
        source.failed(whom, "refused", &mut Random::seeded(1), now);
        let refused = operation.expired(false, &source).to_string();
        operation.stage = Stage::Ready;
        let later = operation.expired(false, &source).to_string();
        for text in [silent, refused, later] {
            assert!(!text.contains("coord status"), "{text}");
            assert_eq!(text.matches(question).count(), 1, "{text}");
        }
    }
}
