//! The dumps that a stop orders of one server: how far each is, and what another server has of the same group.
//!
//! ```text
//!   Ordered ---> Complete
//!      |    ---> NoCopy        this server holds no full copy: nothing is lost without this dump
//!      v
//!   AgainAt ---> Ordered       the data stays in memory, frozen, and the dump is ordered again after a pause
//!      |
//!      +-------> GivenUp       the operator insists, or no view names this server a replica of the group
//! ```

use std::time::Duration;

use kv_protocol::control_message::{DumpedBytes, OrderFailure, OrderKind};
use kv_protocol::{GroupId, ServerId, View};

use super::Cluster;
use crate::cluster::server::Server;

/// The pause before the first retry of a failed dump; it doubles up to [`LAST_DUMP_RETRY_PAUSE`].
pub const DUMP_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause. It is shorter than the time for which a server that leaves waits for the next order.
pub const LAST_DUMP_RETRY_PAUSE: Duration = Duration::from_secs(3);
/// Failures after which a dump is given up if nothing is lost with it, or if the operator has insisted.
const FAILURES_AT_MOST: u32 = 2;

/// One dump of a server. Times are those of the stop's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dump {
    /// It is to be reported; it has failed so often before.
    Ordered { failures: u32 },
    /// It has failed; it is ordered again then.
    AgainAt { failures: u32, at: Duration },
    /// It has failed, and is not ordered again.
    GivenUp,
    /// There was nothing to dump.
    NoCopy,
    /// It is on the disk.
    Complete,
}

impl Default for Dump {
    fn default() -> Dump {
        Dump::Ordered { failures: 0 }
    }
}

impl Dump {
    /// Takes a report. `is_needed` says that data may be lost with this dump, which nobody has given up.
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

    /// Whether it has failed and is tried on.
    pub(super) fn is_failing(self) -> bool {
        self.failures() > 0
    }

    /// Whether nothing more is waited for.
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
    /// What of them was written when that last changed.
    pub(super) written: DumpedBytes,
}

impl Dumps {
    pub(super) fn all(self) -> [Dump; 2] {
        [self.primary, self.secondary]
    }

    /// The orders that are not done, by name.
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

    /// Notes how an order has ended; whether it is to be given again, or is given up.
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

    /// The orders that are due again; they count as given.
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

    /// Makes every retry due.
    pub(super) fn hurry(&mut self, clock: Duration) {
        for dump in [&mut self.primary, &mut self.secondary] {
            if let Dump::AgainAt { at, .. } = dump {
                *at = clock.min(*at);
            }
        }
    }

    /// Gives up those that wait for a retry; which.
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
    /// The group whose table a dump order of a server means.
    pub(super) fn dumped_group(&self, id: ServerId, kind: &OrderKind) -> Option<GroupId> {
        let before = (id.0 + self.count() - 1) % self.count();
        match kind {
            OrderKind::DumpPrimary => Some(GroupId(id.0)),
            OrderKind::DumpSecondary => Some(GroupId(before)),
            _ => None,
        }
    }

    /// Whether the process at this place is a holder of the group, or one of its last holders.
    pub(super) fn is_replica(&self, view: &View, id: ServerId) -> bool {
        let member = self.member(id);
        self.memory.durable().holders(view.group).any(|holder| holder == member)
    }

    /// Whether this server has reported a complete dump of this group.
    pub(super) fn has_dump(&self, id: ServerId, group: GroupId) -> bool {
        let dumps = self.server(id).stage.progress().dumps;
        let is_complete = |dump: Dump| dump == Dump::Complete;
        (id == group.home_primary() && is_complete(dumps.primary))
            || (id == group.home_secondary(self.count()) && is_complete(dumps.secondary))
    }

    /// Whether a replica of this group has reported a complete dump of it. A server that is not waited for may
    /// be left out.
    pub(super) fn is_dumped(&self, view: &View, without: Option<ServerId>) -> bool {
        if self.memory.durable().rests(view.group) {
            return true;
        }
        let replicas = self.memory.durable().holders(view.group);
        let mut others = replicas.map(|member| member.server).filter(|id| Some(*id) != without);
        others.any(|id| self.is_replica(view, id) && self.has_dump(id, view.group))
    }

    /// The groups that would be lost if this server ended now: it is a replica of each, and no replica has dumped
    /// it.
    pub(super) fn undumped_groups_of(&self, id: ServerId) -> impl Iterator<Item = &View> {
        let is_only_here =
            move |view: &&View| self.is_replica(view, id) && !self.is_dumped(view, None);
        self.views().iter().filter(is_only_here)
    }
}

/// Bytes of keys and values of the tables that a server dumps, by its last heartbeat, and how many of them its
/// dumps hold.
pub(super) fn written_of(server: &Server) -> (u64, u64) {
    let Some((_, heartbeat)) = &server.heartbeat else { return (0, 0) };
    let sum = |bytes: u64, replica: u64| bytes.saturating_add(replica);
    let all = heartbeat.replicas.iter().map(|replica| replica.content_bytes).fold(0, sum);
    let written = heartbeat.dumped.primary.saturating_add(heartbeat.dumped.secondary);
    (written.min(all), all)
}
