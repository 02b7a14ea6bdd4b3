//! The dumps that a stop orders from one server: the progress of each, and the dumps of the same groups at other
//! servers.
//!
//! ```text
//!   Ordered ---> Complete
//!      |    ---> NoCopy        this server holds no full copy: nothing is lost without this dump
//!      v
//!   AgainAt ---> Ordered       the data stays in memory, frozen, and the dump is ordered again after a back-off
//!      |
//!      +-------> GivenUp       the stop is forced, or no view names this server a replica of the group
//! ```

use std::time::Duration;

use kv_protocol::control_message::{DumpedBytes, OrderFailure, OrderKind};
use kv_protocol::{GroupId, ServerId, View};

use super::Cluster;
use crate::cluster::server::Server;

/// The back-off before the first retry of a failed dump; it doubles up to [`LAST_DUMP_RETRY_PAUSE`].
pub const DUMP_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The maximum back-off. It is shorter than the time for which a leaving server waits for the next order.
pub const LAST_DUMP_RETRY_PAUSE: Duration = Duration::from_secs(3);
/// The number of failures after which a dump is given up if no data is lost without it, or if the stop is forced.
const FAILURES_AT_MOST: u32 = 2;

/// The state of one dump of a server. Times are readings of the stop's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dump {
    /// A dump that was ordered and is not reported yet, after this number of failures.
    Ordered { failures: u32 },
    /// A failed dump that is ordered again at this time.
    AgainAt { failures: u32, at: Duration },
    /// A failed dump that is not ordered again.
    GivenUp,
    /// The server holds no full copy, so there is nothing to dump.
    NoCopy,
    /// A complete dump on the disk.
    Complete,
}

impl Default for Dump {
    fn default() -> Dump {
        Dump::Ordered { failures: 0 }
    }
}

impl Dump {
    /// Returns the state after a report. `is_needed` is true if data may be lost without this dump.
    fn reported(
        self,
        clock: Duration,
        outcome: Result<u64, &OrderFailure>,
        is_needed: bool,
    ) -> Dump {
        match outcome {
            Ok(_) => return Dump::Complete,
            Err(failure) if failure.is_no_copy => return Dump::NoCopy,
            Err(_) => {}
        }
        let failures = self.failures() + 1;
        if failures >= FAILURES_AT_MOST && !is_needed {
            return Dump::GivenUp;
        }
        let doublings = (failures - 1).min(16);
        let pause = (DUMP_RETRY_PAUSE * (1 << doublings)).min(LAST_DUMP_RETRY_PAUSE);
        Dump::AgainAt { failures, at: clock + pause }
    }

    fn failures(self) -> u32 {
        match self {
            Dump::Ordered { failures } | Dump::AgainAt { failures, .. } => failures,
            Dump::GivenUp | Dump::NoCopy | Dump::Complete => 0,
        }
    }

    /// Returns whether the dump has failed and is being retried.
    pub(super) fn is_failing(self) -> bool {
        self.failures() > 0
    }

    /// Returns whether the stop no longer waits for this dump.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Dump::GivenUp | Dump::NoCopy | Dump::Complete)
    }

    pub(super) fn again_at(self) -> Option<Duration> {
        match self {
            Dump::AgainAt { at, .. } => Some(at),
            _ => None,
        }
    }
}

/// Both dumps of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dumps {
    pub(super) primary: Dump,
    pub(super) secondary: Dump,
    /// The number of bytes written, by the last heartbeat with progress.
    pub(super) written: DumpedBytes,
}

impl Dumps {
    pub(super) fn all(self) -> [Dump; 2] {
        [self.primary, self.secondary]
    }

    /// Returns the names of the dump orders that are not done.
    pub(super) fn unfinished(self) -> &'static str {
        match self.all().map(Dump::is_over) {
            [false, true] => "DUMP-PRIMARY",
            [true, false] => "DUMP-SECONDARY",
            _ => "DUMP-PRIMARY and DUMP-SECONDARY",
        }
    }

    pub(super) fn of_mut(&mut self, kind: &OrderKind) -> Option<&mut Dump> {
        match kind {
            OrderKind::DumpPrimary => Some(&mut self.primary),
            OrderKind::DumpSecondary => Some(&mut self.secondary),
            _ => None,
        }
    }

    /// Records the outcome of a dump order and returns the new state of that dump; `None` for any other order.
    pub(super) fn report(
        &mut self,
        clock: Duration,
        kind: &OrderKind,
        outcome: Result<u64, &OrderFailure>,
        is_needed: bool,
    ) -> Option<Dump> {
        let dump = self.of_mut(kind)?;
        *dump = dump.reported(clock, outcome, is_needed);
        Some(*dump)
    }

    /// Returns the orders that are due again and marks them as given.
    pub(super) fn take_due(&mut self, clock: Duration) -> Vec<OrderKind> {
        let mut due = Vec::new();
        for kind in [OrderKind::DumpPrimary, OrderKind::DumpSecondary] {
            if let Some(dump) = self.of_mut(&kind)
                && let Dump::AgainAt { failures, at } = *dump
                && at <= clock
            {
                *dump = Dump::Ordered { failures };
                due.push(kind);
            }
        }
        due
    }

    /// Makes every waiting retry due now.
    pub(super) fn hurry(&mut self, clock: Duration) {
        for dump in [&mut self.primary, &mut self.secondary] {
            if let Dump::AgainAt { at, .. } = dump {
                *at = clock.min(*at);
            }
        }
    }

    /// Gives up the dumps that wait for a retry; returns their orders.
    pub(super) fn give_up(&mut self) -> Vec<OrderKind> {
        let mut given_up = Vec::new();
        for kind in [OrderKind::DumpPrimary, OrderKind::DumpSecondary] {
            if let Some(dump) = self.of_mut(&kind)
                && dump.again_at().is_some()
            {
                *dump = Dump::GivenUp;
                given_up.push(kind);
            }
        }
        given_up
    }
}

impl Cluster {
    /// Returns the group whose table a dump order for this server names; `None` for any other order.
    pub(super) fn dumped_group(&self, id: ServerId, kind: &OrderKind) -> Option<GroupId> {
        let before = (id.0 + self.count() - 1) % self.count();
        match kind {
            OrderKind::DumpPrimary => Some(GroupId(id.0)),
            OrderKind::DumpSecondary => Some(GroupId(before)),
            _ => None,
        }
    }

    /// Returns whether the process at this place is a holder of the group, or one of its last holders.
    pub(super) fn is_replica(&self, view: &View, id: ServerId) -> bool {
        let member = self.member(id);
        self.memory.durable().holders(view.group).any(|holder| holder == member)
    }

    /// Returns whether this server has reported a complete dump of this group.
    pub(super) fn has_dump(&self, id: ServerId, group: GroupId) -> bool {
        let dumps = self.server(id).stage.progress().dumps;
        let is_complete = |dump: Dump| dump == Dump::Complete;
        (id == group.home_primary() && is_complete(dumps.primary))
            || (id == group.home_secondary(self.count()) && is_complete(dumps.secondary))
    }

    /// Returns whether the group rests in dumps, or a replica of it has reported a complete dump. Ignores the replica
    /// on the server `without`, if one is given.
    pub(super) fn is_dumped(&self, view: &View, without: Option<ServerId>) -> bool {
        if self.memory.durable().rests(view.group) {
            return true;
        }
        let replicas = self.memory.durable().holders(view.group);
        let mut others = replicas.map(|member| member.server).filter(|id| Some(*id) != without);
        others.any(|id| self.is_replica(view, id) && self.has_dump(id, view.group))
    }

    /// Returns the views of the groups that would be lost if this server ended now: it is a replica of the group,
    /// and no replica has dumped the group.
    pub(super) fn undumped_groups_of(&self, id: ServerId) -> impl Iterator<Item = &View> {
        let is_only_here =
            move |view: &&View| self.is_replica(view, id) && !self.is_dumped(view, None);
        self.views().iter().filter(is_only_here)
    }
}

/// Returns two numbers of bytes of keys and values, from a server's last heartbeat: the bytes written to its dumps,
/// and the bytes in the dumped tables.
pub(super) fn written_of(server: &Server) -> (u64, u64) {
    let Some((_, heartbeat)) = &server.heartbeat else { return (0, 0) };
    let sum = |bytes: u64, replica: u64| bytes.saturating_add(replica);
    let all = heartbeat.replicas.iter().map(|replica| replica.content_bytes).fold(0, sum);
    let written = heartbeat.dumped.primary.saturating_add(heartbeat.dumped.secondary);
    (written.min(all), all)
}
