//! The start: from the first process until every holder has its first view.
//!
//! ```text
//!            every first view is confirmed: decided, stored, durable
//!   Until  ----------------------------------------------------------> Done: clients are welcome
//!      |
//!      +-- a process exits, an order fails, or patience is over -----> Failed
//! ```

use kv_protocol::{GroupId, Peer, ServerId, Time, View, ViewVersion};

use super::{Cluster, Effect, StartFailure};

/// How far the start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Until(Time),
    Done,
    Failed,
}

impl Cluster {
    /// Whether the first views are not yet decided: a process that is spawned now is a founder.
    pub fn is_founding(&self) -> bool {
        self.memory.decided.views.iter().all(|view| view.version == ViewVersion(0))
    }

    /// Whether the start is over: every holder had its first view then. Before that no client is told
    /// where anything is, so a start that fails loses nothing.
    pub fn has_served(&self) -> bool {
        self.start == Start::Done
    }

    /// Whether it goes on: a start that is being stopped does not.
    fn is_starting(&self) -> bool {
        matches!(self.start, Start::Until(_)) && self.stop.is_none()
    }

    /// Once all have started: the first view of every group.
    pub(super) fn found_views(&mut self) {
        let complete = self.servers.iter().all(|server| server.started.is_some());
        if !self.is_founding() || !complete || !self.is_starting() {
            return;
        }
        let servers = self.count();
        for group in (0..servers).map(GroupId) {
            let founding = self.memory.decided.founding(group);
            let version = ViewVersion(founding.above.0 + 1);
            let primary = self.member(group.home_primary());
            let secondary = self.member(group.home_secondary(servers));
            let (primary, peer) = match founding.is_lost {
                true => (None, Peer::None),
                false => (Some(primary), Peer::Secondary(secondary)),
            };
            self.memory.decided.views[usize::from(group.0)] =
                View { group, version, primary, peer, handover: false };
        }
    }

    /// Every first view is confirmed, so every holder has it: that is remembered, and then told.
    pub(super) fn finish_start(&mut self) {
        let connected = self
            .views()
            .iter()
            .all(|view| view.version > ViewVersion(0) && self.is_confirmed_or_lost(view));
        if self.is_starting() && connected {
            self.memory.decided.has_served = true;
        }
    }

    /// A store is done: if it says that every first view is confirmed, the start is over.
    pub(super) fn begin_to_serve(&mut self, sink: &mut Vec<Effect>) {
        if self.is_starting() && self.memory.durable().has_served {
            self.start = Start::Done;
            self.revision += 1;
            sink.push(Effect::Serving);
        }
    }

    /// A start that is being stopped anyway, or that everybody has done his part for, cannot fail any
    /// more.
    pub(super) fn fail_start(
        &mut self,
        server: ServerId,
        reason: StartFailure,
        sink: &mut Vec<Effect>,
    ) {
        if self.is_starting() && !self.memory.decided.has_served {
            self.start = Start::Failed;
            sink.push(Effect::StartFailed { server, reason });
        }
    }

    /// When the patience with it ends.
    pub(super) fn next_start_timeout(&self) -> Option<Time> {
        match self.start {
            Start::Until(deadline) if self.stop.is_none() => {
                Some(deadline).filter(|_| !self.memory.decided.has_served)
            }
            _ => None,
        }
    }

    /// Gives up a start that took too long.
    pub(super) fn fail_late_start(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if let Start::Until(deadline) = self.start
            && deadline <= now
        {
            let late = self.servers.iter().find(|server| server.started.is_none());
            let patience = self.config.start_patience;
            let (server, reason) = match late {
                Some(server) => (server.member.server, StartFailure::NotStarted(patience)),
                None => (self.first_with_orders(), StartFailure::NotConnected(patience)),
            };
            self.fail_start(server, reason, sink);
        }
    }

    fn first_with_orders(&self) -> ServerId {
        let waiting = self.servers.iter().find(|server| !server.outstanding.is_empty());
        waiting.map_or(ServerId(0), |server| server.member.server)
    }
}
