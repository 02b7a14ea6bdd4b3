//! A second server that is found dead while the first is not yet back (consistency.md §6).
//!
//! A fault is a process that is dead by proof, or was judged to be gone for its silence. A slow one that was removed
//! from its groups on its partners' complaints, or because it did not keep up, is none.
//!
//! `shutdown`, the original's rule: every living server stops serving, dumps both tables, and exits.
//! `isolate`: every group goes on by itself; those without a holder answer LOST.

use kv_protocol::{GroupId, Member, ServerId, Time};

use super::{Cluster, Effect};

/// What to do about a second fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoubleFault {
    /// Stop the cluster, with dumps.
    #[default]
    Shutdown,
    /// Go on; groups without a holder are LOST.
    Isolate,
}

impl Cluster {
    /// A member is dead by proof, or was judged to be gone for its silence. One that was removed and lives is no
    /// fault: nothing is lost with it, and it comes back by itself.
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

    /// The last holder of a group was found dead. Whatever took the other one away, an orderly leave too, that is
    /// a second fault.
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

    /// An earlier coordinator may have died while a place was being recovered: the one whose fault it has
    /// counted, or one whose process no view names, which is replaced now.
    pub(super) fn resume_recovery(&mut self) {
        let is_replaced = |id: &ServerId| !self.memory.durable().names(self.member(*id));
        let replaced = (0..self.count()).map(ServerId).find(is_replaced);
        let recovering = &mut self.memory.decided.recovering;
        *recovering = recovering.or(replaced);
    }

    /// Whether this stop is the end of a double fault: what is pending can never commit, so nothing
    /// is waited for before the dumps.
    pub(super) fn stops_for_double_fault(&self) -> bool {
        self.double_fault.is_some() && self.config.on_double_fault == DoubleFault::Shutdown
    }

    /// The recovery is over when everything is home that can come home; the next fault is a first one
    /// again.
    pub(super) fn note_settled(&mut self) {
        if self.memory.decided.recovering.is_some() && self.is_settled() {
            (self.memory.decided.recovering, self.double_fault) = (None, None);
        }
    }
}
