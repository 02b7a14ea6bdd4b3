//! Mutations: each disables one rule on purpose, to check that the simulator detects the absence of the rule
//! (docs/recovery.md).
//!
//! No shipped program can enable a [`Mutation`]: mutations need the cargo feature `mutations`, which no crate of the
//! workspace enables by default. Without the feature, `is_open` is the constant `false`, and executables do not contain
//! the string `MARKER`.

/// A mutation: the omission of one rule. The numbers are those of docs/recovery.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // `Mutation::description` documents each.
pub enum Mutation {
    PromoteWithoutGrace = 1,
    CandidateAcksGiveNoGrace = 2,
    ReadWithoutLease = 3,
    StaleClockInLeaseCheck = 4,
    GraceFromStaleReading = 5,
    LeaseFromAckReceipt = 6,
    OldPrepareAccepted = 7,
    AckUnderOldView = 8,
    PendingStateRead = 9,
    RefusalRespondedAtOnce = 10,
    ResponseBeforeAck = 11,
    RetryExecutesTwice = 12,
    RetryRespondedUncommitted = 13,
    RecordNotInPrepare = 14,
    RecordNotCopied = 15,
    CopyBeforeStream = 16,
    OlderEntryApplied = 17,
    TombstonesForgotten = 18,
    ReportedBeforeAllShards = 19,
    ReportedWithAckOutstanding = 20,
    UnionLeftAfterReport = 21,
    CopyRestartedUnderSameView = 22,
    StaleUpdatedAccepted = 23,
    CandidateNotWiped = 24,
    ServeBeforeHandover = 25,
    // Number 26, a hand-over by an inactive primary, is not used because this cannot happen: see
    // docs/decisions/2026-11-25-an-inactive-primary-is-never-told-to-hand-over.md.
    GraceInHandover = 27,
    UnionByInactive = 28,
    GroupCForgotten = 29,
    ThirdGroupForgotten = 30,
    SentBeforeFsync = 31,
    OldEpochAccepted = 32,
    OldIncarnationHeartbeat = 33,
    ProofOfAnotherIncarnation = 34,
    SoleKilledOnSilence = 35,
    LostServedEmpty = 36,
    SnRestarted = 37,
    RestoreFromRemoved = 38,
    LeaverWins = 40,
    LeaverMadeHolder = 41,
    LastHoldersForgotten = 42,
    OrderlyExitIsDeath = 43,
    PinLeftBehind = 44,
    VerdictByGroup = 45,
    AliveCountsAsFault = 46,
    HandshakeIsHeard = 47,
    ComplaintWithinLease = 48,
    AliveIsReplaced = 49,
    ShutdownAfterFailedDump = 50,
    StopByTheBareClock = 51,
    SoleKilledInStop = 52,
    PendingNotDumped = 54,
    FailedDecisionKept = 55,
    FailedStoreBelieved = 56,
    SessionBegunByRetry = 58,
    IdleByTheClock = 59,
    RecordWithoutRequest = 60,
    PendingForgotten = 61,
    MovedWhileNamed = 62,
    NotDoneWithoutRecord = 63,
    ResolveOverPending = 64,
    LateWriteExecuted = 65,
    JudgedBeforeRead = 66,
    RespondedBeforeLease = 67,
    SentAfterWait = 68,
    LookedAheadTooFar = 69,
    HalfClosedStreamKept = 70,
    OutputOfClosedKept = 71,
    StreamsLast = 72,
    TurnUnbounded = 73,
    OutputUnbounded = 74,
    HalfClosedClientDropped = 75,
    CommittedStateEvaluated = 76,
    RecordWithoutValue = 77,
    BatchAppliedInPart = 78,
    ExpiryNotLogged = 79,
    ExpiredBySecondary = 80,
    EvictedBySecondary = 81,
    ScanInAnotherOrder = 82,
    PlacedByWholeKey = 83,
    RetriedUnderNewNumber = 84,
    ReadBeforeOwnWrite = 85,
    RepliesByCompletion = 86,
    DoubtReportedAsNotDone = 87,
    ClosedLaneReused = 88,
    BegunWithinTransaction = 89,
}

/// Returns false: without the feature `mutations` no rule can be disabled.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is_open(_: Mutation) -> bool {
    false
}

#[cfg(feature = "mutations")]
pub use mutant::is_open;
/// The clock readings of this and the previous wake-up. Mutations that use stale readings take the earlier one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readings {
    #[cfg(feature = "mutations")]
    latest: kv_protocol::ids::Time,
    #[cfg(feature = "mutations")]
    before: kv_protocol::ids::Time,
}

#[cfg(not(feature = "mutations"))]
impl Readings {
    /// Does nothing, because only mutations use earlier readings.
    #[inline(always)]
    pub(crate) fn note(&mut self, _: kv_protocol::ids::Time) {}

    /// Returns the reading to use for a decision: always `now`.
    #[inline(always)]
    pub(crate) fn read(&self, _: Mutation, now: kv_protocol::ids::Time) -> kv_protocol::ids::Time {
        now
    }
}

#[cfg(feature = "mutations")]
impl Readings {
    const LONGEST_WAKE_UP: std::time::Duration = std::time::Duration::from_millis(2);

    /// Records a reading. Readings at short intervals belong to one wake-up.
    pub(crate) fn note(&mut self, now: kv_protocol::ids::Time) {
        if now.since(self.latest) > Self::LONGEST_WAKE_UP {
            self.before = self.latest;
        }
        self.latest = now;
    }

    /// Returns the reading to use for a decision: that of the previous wake-up if the rule is disabled, else `now`.
    pub(crate) fn read(
        &self,
        mutation: Mutation,
        now: kv_protocol::ids::Time,
    ) -> kv_protocol::ids::Time {
        if is_open(mutation) { self.before } else { now }
    }
}

#[cfg(feature = "mutations")]
pub use mutant::{ALL, MARKER, close, number_of, open};

#[cfg(feature = "mutations")]
mod mutant {
    use std::cell::Cell;
    use std::hint::black_box;

    use super::Mutation;

    /// A string in every executable in which a rule can be disabled. A test searches executables for it.
    pub const MARKER: &str = "mutations-of-kv-core-can-be-enabled-here";

    /// All mutations in order.
    pub const ALL: [Mutation; 85] = {
        use Mutation::*;
        [
            PromoteWithoutGrace,
            CandidateAcksGiveNoGrace,
            ReadWithoutLease,
            StaleClockInLeaseCheck,
            GraceFromStaleReading,
            LeaseFromAckReceipt,
            OldPrepareAccepted,
            AckUnderOldView,
            PendingStateRead,
            RefusalRespondedAtOnce,
            ResponseBeforeAck,
            RetryExecutesTwice,
            RetryRespondedUncommitted,
            RecordNotInPrepare,
            RecordNotCopied,
            CopyBeforeStream,
            OlderEntryApplied,
            TombstonesForgotten,
            ReportedBeforeAllShards,
            ReportedWithAckOutstanding,
            UnionLeftAfterReport,
            CopyRestartedUnderSameView,
            StaleUpdatedAccepted,
            CandidateNotWiped,
            ServeBeforeHandover,
            GraceInHandover,
            UnionByInactive,
            GroupCForgotten,
            ThirdGroupForgotten,
            SentBeforeFsync,
            OldEpochAccepted,
            OldIncarnationHeartbeat,
            ProofOfAnotherIncarnation,
            SoleKilledOnSilence,
            LostServedEmpty,
            SnRestarted,
            RestoreFromRemoved,
            LeaverWins,
            LeaverMadeHolder,
            LastHoldersForgotten,
            OrderlyExitIsDeath,
            PinLeftBehind,
            VerdictByGroup,
            AliveCountsAsFault,
            HandshakeIsHeard,
            ComplaintWithinLease,
            AliveIsReplaced,
            ShutdownAfterFailedDump,
            StopByTheBareClock,
            SoleKilledInStop,
            PendingNotDumped,
            FailedDecisionKept,
            FailedStoreBelieved,
            SessionBegunByRetry,
            IdleByTheClock,
            RecordWithoutRequest,
            PendingForgotten,
            MovedWhileNamed,
            NotDoneWithoutRecord,
            ResolveOverPending,
            LateWriteExecuted,
            JudgedBeforeRead,
            RespondedBeforeLease,
            SentAfterWait,
            LookedAheadTooFar,
            HalfClosedStreamKept,
            OutputOfClosedKept,
            StreamsLast,
            TurnUnbounded,
            OutputUnbounded,
            HalfClosedClientDropped,
            CommittedStateEvaluated,
            RecordWithoutValue,
            BatchAppliedInPart,
            ExpiryNotLogged,
            ExpiredBySecondary,
            EvictedBySecondary,
            ScanInAnotherOrder,
            PlacedByWholeKey,
            RetriedUnderNewNumber,
            ReadBeforeOwnWrite,
            RepliesByCompletion,
            DoubtReportedAsNotDone,
            ClosedLaneReused,
            BegunWithinTransaction,
        ]
    };

    /// Parses the number of an existing mutation from a command line.
    ///
    /// # Errors
    /// A message if the text is not a number, or no mutation has that number.
    pub fn number_of(text: &str) -> Result<u8, String> {
        let number: u8 = text.parse().map_err(|_| "expected a mutation number".to_owned())?;
        match ALL.iter().any(|mutation| mutation.number() == number) {
            true => Ok(number),
            false => Err("no mutation has this number; see core/src/mutations.rs".to_owned()),
        }
    }

    thread_local! {
        static OPEN: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Disables this rule, and no other, in the current thread.
    pub fn open(mutation: Mutation) {
        OPEN.set(Some(mutation));
    }

    /// Enables all rules again in the current thread.
    pub fn close() {
        OPEN.set(None);
    }

    /// Returns whether this rule is disabled in the current thread. The use of [`MARKER`] here keeps the marker in
    /// every executable with such checks, even if the program disables no rule.
    pub fn is_open(mutation: Mutation) -> bool {
        OPEN.get() == Some(mutation) && !black_box(MARKER).is_empty()
    }

    impl Mutation {
        /// Returns the number of the mutation in docs/recovery.md.
        pub fn number(self) -> u8 {
            self as u8
        }

        /// Returns a short description of the behaviour without the rule.
        pub fn description(self) -> &'static str {
            match self {
                Mutation::PromoteWithoutGrace => "promote without grace",
                Mutation::CandidateAcksGiveNoGrace => {
                    "acks sent as a candidate do not count for its grace"
                }
                Mutation::ReadWithoutLease => "serve reads without lease",
                Mutation::StaleClockInLeaseCheck => "stale clock reading in the lease check",
                Mutation::GraceFromStaleReading => "grace from a stale reading",
                Mutation::LeaseFromAckReceipt => "lease from ack receipt instead of t_send",
                Mutation::OldPrepareAccepted => "accept an old-version PREPARE",
                Mutation::AckUnderOldView => "ack under the old view after installing the new",
                Mutation::PendingStateRead => "read pending state",
                Mutation::RefusalRespondedAtOnce => "response to a failed compare-and-set at once",
                Mutation::ResponseBeforeAck => "response before the ack",
                Mutation::RetryExecutesTwice => "retry executes twice",
                Mutation::RetryRespondedUncommitted => {
                    "response to a retry from an uncommitted record"
                }
                Mutation::RecordNotInPrepare => "record not in the PREPARE",
                Mutation::RecordNotCopied => "record not copied",
                Mutation::CopyBeforeStream => "copy before the stream is registered",
                Mutation::OlderEntryApplied => "older sn applied",
                Mutation::TombstonesForgotten => "tombstones forgotten",
                Mutation::ReportedBeforeAllShards => "reported before all shards are in the union",
                Mutation::ReportedWithAckOutstanding => "reported with an ack outstanding",
                Mutation::UnionLeftAfterReport => "union left after the report",
                Mutation::CopyRestartedUnderSameView => "copy restarted under the same view",
                Mutation::StaleUpdatedAccepted => "stale UPDATED accepted",
                Mutation::CandidateNotWiped => "copy not wiped when named candidate",
                Mutation::ServeBeforeHandover => "serve before HANDOVER's sn",
                Mutation::GraceInHandover => "grace in a hand-over view",
                Mutation::UnionByInactive => "union or report by an inactive primary",
                Mutation::GroupCForgotten => "group C forgotten in step 0",
                Mutation::ThirdGroupForgotten => "a third group of the dead server forgotten",
                Mutation::SentBeforeFsync => "view sent before fsync",
                Mutation::OldEpochAccepted => "old epoch accepted",
                Mutation::OldIncarnationHeartbeat => "old incarnation's heartbeat accepted",
                Mutation::ProofOfAnotherIncarnation => "proof applied to another incarnation",
                Mutation::SoleKilledOnSilence => "sole primary killed on silence",
                Mutation::LostServedEmpty => "LOST group served empty",
                Mutation::SnRestarted => "sn restarted at promotion",
                Mutation::RestoreFromRemoved => "restore from a removed member's dump",
                Mutation::LeaverWins => "a leaving server wins an inquiry",
                Mutation::LeaverMadeHolder => "a leaving server is made candidate or sole holder",
                Mutation::LastHoldersForgotten => "last holders of a group forgotten",
                Mutation::OrderlyExitIsDeath => "an exit after complete dumps counts as a death",
                Mutation::PinLeftBehind => "a pin does not follow its moved entry",
                Mutation::VerdictByGroup => "one verdict per group instead of per server",
                Mutation::AliveCountsAsFault => "a removed member that is alive counts as a fault",
                Mutation::HandshakeIsHeard => "a handshake without progress is a sign of life",
                Mutation::ComplaintWithinLease => {
                    "complaint before a lease and a beacon interval end"
                }
                Mutation::AliveIsReplaced => "a removed member that is alive is replaced",
                Mutation::FailedDecisionKept => "a decision kept after its store has failed",
                Mutation::FailedStoreBelieved => "a failed store treated as done",
                Mutation::ShutdownAfterFailedDump => "SHUTDOWN after a failed dump",
                Mutation::StopByTheBareClock => "deadlines of a stop include a suspend",
                Mutation::SoleKilledInStop => "silent sole replica killed in a stop",
                Mutation::PendingNotDumped => "sessions of pending writes alone are not dumped",
                Mutation::SessionBegunByRetry => "an expired session started again by a retry",
                Mutation::IdleByTheClock => "sessions expire during a pause of the machine",
                Mutation::RecordWithoutRequest => "a record used for another request of its number",
                Mutation::PendingForgotten => "sessions with pending writes expired",
                Mutation::MovedWhileNamed => "a place moved while a view names its process",
                Mutation::NotDoneWithoutRecord => "NOT_DONE sent without a record",
                Mutation::ResolveOverPending => "NOT_DONE sent for a pending write",
                Mutation::LateWriteExecuted => "a late request executed after NOT_DONE",
                Mutation::JudgedBeforeRead => "timeouts evaluated before pending input is read",
                Mutation::RespondedBeforeLease => "a response sent before the lease check",
                Mutation::SentAfterWait => "a transmit that reads the table again",
                Mutation::LookedAheadTooFar => "a result of look-ahead used for a later request",
                Mutation::HalfClosedStreamKept => "a stream kept after the end of its input",
                Mutation::OutputOfClosedKept => "output of a closed connection sent on the next",
                Mutation::StreamsLast => "streams served only when no client waits",
                Mutation::TurnUnbounded => "clients served without a limit of time",
                Mutation::OutputUnbounded => "unsent responses without a limit",
                Mutation::HalfClosedClientDropped => "a client dropped at the end of its input",
                Mutation::CommittedStateEvaluated => "update evaluated against the committed state",
                Mutation::RecordWithoutValue => "completion record without the value",
                Mutation::BatchAppliedInPart => "batch applied in part",
                Mutation::ExpiryNotLogged => "expiry not logged",
                Mutation::ExpiredBySecondary => "expiry decided by the secondary",
                Mutation::EvictedBySecondary => "eviction decided by the secondary",
                Mutation::ScanInAnotherOrder => "a scan cursor used with another order",
                Mutation::PlacedByWholeKey => {
                    "a server places a key by the whole key, despite hash tags"
                }
                Mutation::RetriedUnderNewNumber => {
                    "a Redis client's write sent again under a new number"
                }
                Mutation::ReadBeforeOwnWrite => "a read before an earlier write of its connection",
                Mutation::RepliesByCompletion => "replies in the order of completion",
                Mutation::DoubtReportedAsNotDone => "a write in doubt reported as not done",
                Mutation::ClosedLaneReused => "the client id of a closed session used again",
                Mutation::BegunWithinTransaction => {
                    "a command begun between the steps of a transaction of its connection"
                }
            }
        }
    }
}
