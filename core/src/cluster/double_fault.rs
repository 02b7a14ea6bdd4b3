//! A second fault: a server fails before an earlier failed one is back (consistency.md §6).
//!
//! A fault is the proven death of a process, or its removal for silence to the coordinator. The removal of a live
//! process because of a complaint, or because it did not keep up, is no fault.
//!
//! There are two reactions. `shutdown` (the default): every live server stops serving, dumps both tables, and exits.
//! `isolate`: every group continues on its own; requests to groups without a holder get the status LOST.

use kv_protocol::{GroupId, Member, ServerId, Time};

use super::{Cluster, Effect};

/// The reaction to a second fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoubleFault {
    /// Stop the cluster, with dumps.
    #[default]
    Shutdown,
    /// Continue; groups without a holder are LOST.
    Isolate,
}

impl Cluster {
    /// Records the fault of a member that is proven dead or was removed for its silence, unless its exit is orderly.
    /// The caller must not pass a live member that was removed for another reason: it returns without a restart.
    pub(super) fn note_fault(&mut self, now: Time, member: Member, sink: &mut Vec<Effect>) {
        if self.leaves_in_order(member) {
            return;
        }
        match self.memory.decided.recovering {
            None => self.memory.decided.recovering = Some(member.server),
            Some(first) if first != member.server => {
                self.note_second_fault(now, first, member.server, sink);
            }
            Some(_) => {}
        }
    }

    /// Records that the last holder of a group was found dead. This is a second fault even if the other holder was
    /// removed by an orderly leave.
    pub(super) fn note_loss(
        &mut self,
        now: Time,
        group: GroupId,
        dead: Member,
        sink: &mut Vec<Effect>,
    ) {
        let homes = [group.home_primary(), group.home_secondary(self.count())];
        let other = homes.into_iter().find(|home| *home != dead.server);
        if let Some(other) = other.filter(|_| !self.leaves_in_order(dead)) {
            self.note_second_fault(now, other, dead.server, sink);
        }
    }

    fn note_second_fault(
        &mut self,
        now: Time,
        first: ServerId,
        second: ServerId,
        sink: &mut Vec<Effect>,
    ) {
        if self.double_fault.is_some() {
            return;
        }
        self.double_fault = Some((first, second));
        sink.push(Effect::DoubleFault { first, second });
        if self.config.on_double_fault == DoubleFault::Shutdown {
            self.on_stop(now, sink);
        }
    }

    /// Resumes the recovery that an earlier coordinator began. It is the recovery of the place whose fault that
    /// coordinator counted, or else of the first place whose process no view names: that process is replaced now.
    pub(super) fn resume_recovery(&mut self) {
        let is_replaced = |id: &ServerId| !self.memory.durable().names(self.member(*id));
        let replaced = (0..self.count()).map(ServerId).find(is_replaced);
        let recovering = &mut self.memory.decided.recovering;
        *recovering = recovering.or(replaced);
    }

    /// Returns whether this stop follows a double fault. Pending writes may then never commit, so the dumps begin
    /// without waiting for them.
    pub(super) fn stops_for_double_fault(&self) -> bool {
        self.double_fault.is_some() && self.config.on_double_fault == DoubleFault::Shutdown
    }

    /// Ends the recovery when every group that has a holder is home again. The next fault is then a first one.
    pub(super) fn note_settled(&mut self) {
        if self.memory.decided.recovering.is_some() && self.is_settled() {
            (self.memory.decided.recovering, self.double_fault) = (None, None);
        }
    }
}
