//! Mutations: rules that can be disabled on purpose to check that the simulator detects it (docs/recovery.md).
//!
//! Each [`Hole`] disables one rule of the machines. No shipped program can enable one, because it needs the cargo
//! feature `holes`, which no crate of the workspace enables by default. Without it `is_open` is the constant
//! `false`, and the marker is in no executable.

/// A rule that can be disabled. The numbers are those of docs/recovery.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // `Hole::description` documents each.
pub enum Hole {
    PromoteWithoutGrace = 1,
    CandidateAcksGiveNoGrace = 2,
    ReadWithoutLease = 3,
    StaleClockInLeaseCheck = 4,
    GraceFromStaleReading = 5,
    LeaseFromAckReceipt = 6,
    OldPrepareAccepted = 7,
    AckUnderOldView = 8,
    PendingStateRead = 9,
    RefusalAnsweredAtOnce = 10,
    AnswerBeforeAck = 11,
    RetryExecutesTwice = 12,
    RetryAnsweredUncommitted = 13,
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
    // 26, a hand-over by an inactive primary, is impossible: see docs/decisions/.
    GraceInHandover = 27,
    UnionByInactive = 28,
    GroupCForgotten = 29,
    ThirdGroupForgotten = 30,
    ToldBeforeFsync = 31,
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
    AnsweredBeforeLease = 67,
    SentAfterWait = 68,
    LookedAheadTooFar = 69,
    HalfClosedStreamKept = 70,
    OutputOfClosedKept = 71,
    StreamsLast = 72,
    TurnUnbounded = 73,
    OutputUnbounded = 74,
}

/// Returns whether this rule is disabled in the running thread.
#[cfg(not(feature = "holes"))]
#[inline(always)]
pub const fn is_open(_: Hole) -> bool {
    false
}

#[cfg(feature = "holes")]
pub use planted::is_open;
/// The clock readings of this and the previous wake-up, for mutations of the rules that forbid stale readings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readings {
    #[cfg(feature = "holes")]
    latest: kv_protocol::ids::Time,
    #[cfg(feature = "holes")]
    before: kv_protocol::ids::Time,
}

#[cfg(not(feature = "holes"))]
impl Readings {
    /// Records the reading of this wake-up.
    #[inline(always)]
    pub(crate) fn note(&mut self, _: kv_protocol::ids::Time) {}

    /// Returns the reading to decide by.
    #[inline(always)]
    pub(crate) fn read(&self, _: Hole, now: kv_protocol::ids::Time) -> kv_protocol::ids::Time {
        now
    }
}

#[cfg(feature = "holes")]
impl Readings {
    /// Records the reading of this wake-up.
    pub(crate) fn note(&mut self, now: kv_protocol::ids::Time) {
        if now != self.latest {
            self.before = std::mem::replace(&mut self.latest, now);
        }
    }

    /// Returns the reading to decide by: that of the previous wake-up if the rule is disabled, else `now`.
    pub(crate) fn read(&self, hole: Hole, now: kv_protocol::ids::Time) -> kv_protocol::ids::Time {
        if is_open(hole) { self.before } else { now }
    }
}

#[cfg(feature = "holes")]
pub use planted::{ALL, MARKER, close, number_of, open};

#[cfg(feature = "holes")]
mod planted {
    use std::cell::Cell;
    use std::hint::black_box;

    use super::Hole;

    /// A string that is in every executable in which a rule can be disabled, so that a test can search for it.
    pub const MARKER: &str = "planted-holes-of-kv-core-can-be-opened-here";

    /// All mutations in order.
    pub const ALL: [Hole; 69] = {
        use Hole::*;
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
            RefusalAnsweredAtOnce,
            AnswerBeforeAck,
            RetryExecutesTwice,
            RetryAnsweredUncommitted,
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
            ToldBeforeFsync,
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
            AnsweredBeforeLease,
            SentAfterWait,
            LookedAheadTooFar,
            HalfClosedStreamKept,
            OutputOfClosedKept,
            StreamsLast,
            TurnUnbounded,
            OutputUnbounded,
        ]
    };

    /// Parses the number of an existing mutation from a command line.
    ///
    /// # Errors
    /// A message if the text is not a number or no mutation has that number.
    pub fn number_of(text: &str) -> Result<u8, String> {
        let number: u8 = text.parse().map_err(|_| "write its number".to_owned())?;
        match ALL.iter().any(|hole| hole.number() == number) {
            true => Ok(number),
            false => Err("there is no such hole; core/src/holes.rs lists them".to_owned()),
        }
    }

    thread_local! {
        static OPEN: Cell<Option<Hole>> = const { Cell::new(None) };
    }

    /// Disables this rule in the current thread.
    pub fn open(hole: Hole) {
        OPEN.set(Some(hole));
    }

    /// Enables all rules again in the current thread.
    pub fn close() {
        OPEN.set(None);
    }

    /// Returns whether this rule is disabled in the running thread. The use of [`MARKER`] keeps the marker in every
    /// executable that contains such checks, even if nothing in it disables a rule.
    pub fn is_open(hole: Hole) -> bool {
        OPEN.get() == Some(hole) && !black_box(MARKER).is_empty()
    }

    impl Hole {
        /// Returns its number in docs/recovery.md.
        pub fn number(self) -> u8 {
            self as u8
        }

        /// Returns the disabled rule in the words of docs/recovery.md.
        pub fn description(self) -> &'static str {
            match self {
                Hole::PromoteWithoutGrace => "promote without grace",
                Hole::CandidateAcksGiveNoGrace => {
                    "acks sent as a candidate do not count for its grace"
                }
                Hole::ReadWithoutLease => "serve reads without lease",
                Hole::StaleClockInLeaseCheck => "stale clock reading in the lease check",
                Hole::GraceFromStaleReading => "grace from a stale reading",
                Hole::LeaseFromAckReceipt => "lease from ack receipt instead of t_send",
                Hole::OldPrepareAccepted => "accept an old-version PREPARE",
                Hole::AckUnderOldView => "ack under the old view after installing the new",
                Hole::PendingStateRead => "read pending state",
                Hole::RefusalAnsweredAtOnce => "failed compare-and-set answered at once",
                Hole::AnswerBeforeAck => "answer before the ack",
                Hole::RetryExecutesTwice => "retry executes twice",
                Hole::RetryAnsweredUncommitted => "retry answered from an uncommitted record",
                Hole::RecordNotInPrepare => "record not in the PREPARE",
                Hole::RecordNotCopied => "record not copied",
                Hole::CopyBeforeStream => "copy before the stream is registered",
                Hole::OlderEntryApplied => "older sn applied",
                Hole::TombstonesForgotten => "tombstones forgotten",
                Hole::ReportedBeforeAllShards => "reported before all shards are in the union",
                Hole::ReportedWithAckOutstanding => "reported with an ack outstanding",
                Hole::UnionLeftAfterReport => "union left after the report",
                Hole::CopyRestartedUnderSameView => "copy restarted under the same view",
                Hole::StaleUpdatedAccepted => "stale UPDATED accepted",
                Hole::CandidateNotWiped => "copy not wiped when named candidate",
                Hole::ServeBeforeHandover => "serve before HANDOVER's sn",
                Hole::GraceInHandover => "grace in a hand-over view",
                Hole::UnionByInactive => "union or report by an inactive primary",
                Hole::GroupCForgotten => "group C forgotten in step 0",
                Hole::ThirdGroupForgotten => "a third group of the dead server forgotten",
                Hole::ToldBeforeFsync => "told before fsync",
                Hole::OldEpochAccepted => "old epoch accepted",
                Hole::OldIncarnationHeartbeat => "old incarnation's heartbeat accepted",
                Hole::ProofOfAnotherIncarnation => "proof applied to another incarnation",
                Hole::SoleKilledOnSilence => "sole primary killed on silence",
                Hole::LostServedEmpty => "LOST group served empty",
                Hole::SnRestarted => "sn restarted at promotion",
                Hole::RestoreFromRemoved => "restore from a removed member's dump",
                Hole::LeaverWins => "a leaver wins an inquiry",
                Hole::LeaverMadeHolder => "a leaver is made candidate or sole holder",
                Hole::LastHoldersForgotten => "last holders of a group forgotten",
                Hole::OrderlyExitIsDeath => "an exit after complete dumps counts as a death",
                Hole::PinLeftBehind => "a pin does not follow its entry when that moves",
                Hole::VerdictByGroup => "each group judges by itself",
                Hole::AliveCountsAsFault => "a removed member that is alive counts as a fault",
                Hole::HandshakeIsHeard => "a handshake without progress is heard",
                Hole::ComplaintWithinLease => "complain before a lease and a beacon are over",
                Hole::AliveIsReplaced => "a removed member that is alive is replaced",
                Hole::FailedDecisionKept => "a decision kept whose store has failed",
                Hole::FailedStoreBelieved => "a failed store taken for done",
                Hole::ShutdownAfterFailedDump => "SHUTDOWN after a failed dump",
                Hole::StopByTheBareClock => "deadlines of a stop by the bare clock",
                Hole::SoleKilledInStop => "silent sole replica killed in a stop",
                Hole::SessionBegunByRetry => "a forgotten session begun again by a retry",
                Hole::IdleByTheClock => "sessions idle by the clock of a machine that slept",
                Hole::RecordWithoutRequest => "a record answers another request of its number",
                Hole::PendingForgotten => "sessions with pending writes forgotten",
                Hole::MovedWhileNamed => "a place refilled elsewhere before its views name another",
                Hole::NotDoneWithoutRecord => "NOT_DONE answered without a record",
                Hole::ResolveOverPending => "NOT_DONE answered for a pending write",
                Hole::LateWriteExecuted => "a late sending executed after NOT_DONE",
                Hole::JudgedBeforeRead => "a shard that stood judges others before it reads",
                Hole::AnsweredBeforeLease => "a response sent before the lease check",
                Hole::SentAfterWait => "a transmit that reads the table anew",
                Hole::LookedAheadTooFar => "a result of look-ahead used for a later request",
                Hole::HalfClosedStreamKept => "a stream kept after the end of its input",
                Hole::OutputOfClosedKept => "output of a closed connection sent on the next",
                Hole::StreamsLast => "streams served only when no client waits",
                Hole::TurnUnbounded => "clients served without a limit of time",
                Hole::OutputUnbounded => "unsent responses without a bound",
            }
        }
    }
}
