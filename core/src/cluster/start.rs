//! The start of a cluster, from the first process until every holder has its first view.
//!
//! ```text
//!            every first view is confirmed, and this is durable
//!   Until  ----------------------------------------------------------> Done: clients are served
//!      |
//!      +-- a process exits, an order fails, or the timeout passes ---> Failed
//! ```

use kv_protocol::{GroupId, Peer, ServerId, Time, View, ViewVersion};

use super::{Cluster, Effect, StartFailure};

/// The progress of the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Until(Time),
    Done,
    Failed,
}

impl Cluster {
    /// Returns whether the first views are not decided yet. In a restored cluster, a process that is spawned before
    /// they are decided loads dumps.
    pub fn is_founding(&self) -> bool {
        self.memory.decided.views.iter().all(|view| view.version == ViewVersion(0))
    }

    /// Returns whether the start has succeeded: every holder has received its first view. Clients get no map before
    /// that, so a failed start loses no data.
    pub fn has_served(&self) -> bool {
        self.start == Start::Done
    }

    /// Returns whether the start is in progress and the cluster is not being stopped.
    fn is_starting(&self) -> bool {
        matches!(self.start, Start::Until(_)) && self.stop.is_none()
    }

    /// Decides the first view of every group once all servers have started.
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

    /// Decides, once every first view is confirmed, that the cluster serves. Clients are served when this decision is
    /// durable.
    pub(super) fn finish_start(&mut self) {
        let connected = self
            .views()
            .iter()
            .all(|view| view.version > ViewVersion(0) && self.is_confirmed_or_lost(view));
        if self.is_starting() && connected {
            self.memory.decided.has_served = true;
        }
    }

    /// Ends the start once the durable state records that every first view is confirmed.
    pub(super) fn begin_to_serve(&mut self, sink: &mut Vec<Effect>) {
        if self.is_starting() && self.memory.durable().has_served {
            self.start = Start::Done;
            self.revision += 1;
            sink.push(Effect::Serving);
        }
    }

    /// Fails the start, unless the cluster is being stopped or every first view is confirmed already.
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

    /// Returns the time at which the start times out; `None` if it can no longer time out.
    pub(super) fn next_start_timeout(&self) -> Option<Time> {
        match self.start {
            Start::Until(deadline) if self.stop.is_none() => {
                Some(deadline).filter(|_| !self.memory.decided.has_served)
            }
            _ => None,
        }
    }

    /// Fails a start that took too long.
    pub(super) fn fail_late_start(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if let Start::Until(deadline) = self.start
            && deadline <= now
        {
            let late = self.servers.iter().find(|server| server.started.is_none());
            let timeout = self.config.start_timeout;
            let (server, reason) = match late {
                Some(server) => (server.member.server, StartFailure::NotStarted(timeout)),
                None => (self.first_with_orders(), StartFailure::NotConnected(timeout)),
            };
            self.fail_start(server, reason, sink);
        }
    }

    fn first_with_orders(&self) -> ServerId {
        let waiting = self.servers.iter().find(|server| !server.outstanding.is_empty());
        waiting.map_or(ServerId(0), |server| server.member.server)
    }
}
