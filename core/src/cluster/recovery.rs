//! The steps 0 to 5 of the recovery of one server, for display.
//!
//! | step | shown while |
//! |---|---|
//! | 0 | views still name a process that is dead or must be replaced, or a killed process has not ended |
//! | 1 | the new process has not reported |
//! | 2 | the view of at least one of its two groups does not name the new process yet |
//! | 3 | its primary table is copied to it (UPDATE-PRIMARY) |
//! | 4 | its secondary table is copied to it (UPDATE-SECONDARY) |
//! | 5 | its group is handed back to it (SET-SECONDARY, SWITCH-PRIMARY) |
//!
//! The steps are derived from the views. Decisions depend only on the end of a recovery, which clears the earlier
//! failures and verdicts of the place.

use kv_protocol::{Member, Peer, ServerId, View};

use super::{Cluster, Effect};

impl Cluster {
    /// Returns the recovery step of a server's place; `None` if its groups are home or the cluster has not served yet.
    pub fn recovery_step(&self, id: ServerId) -> Option<u8> {
        let durable = self.memory.durable();
        let member = self.member(id);
        let own = &durable.views[usize::from(id.0)];
        let before = (id.0 + self.count() - 1) % self.count();
        let predecessors = &durable.views[usize::from(before)];
        // A group that is LOST or rests in dumps has no holder from which it could be copied.
        let is_given_up =
            |view: &View| view.primary.is_none() || self.memory.decided.rests(view.group);
        // A view is stale if it names a process of this place that is dead or that the next view no longer names.
        let stale = |view: &View| {
            if is_given_up(view) {
                return false;
            }
            let next = &self.memory.decided.views[usize::from(view.group.0)];
            let must_go = |m: Member| {
                let stays = next.primary == Some(m) || next.other() == Some(m);
                m.server == id && (self.is_dead(m) || !stays)
            };
            view.primary.is_some_and(must_go) || view.other().is_some_and(must_go)
        };
        let holds = |view: &View| view.primary == Some(member) || view.other() == Some(member);
        let copies = |view: &View| view.peer == Peer::Candidate(member);
        if !self.has_served() {
            return None;
        }
        if stale(own) || stale(predecessors) {
            return Some(0);
        }
        if self.server(id).killed.is_some() && !self.server(id).exited {
            return Some(0);
        }
        if self.server(id).started.is_none() || self.server(id).exited {
            return Some(1);
        }
        if [own, predecessors].into_iter().any(|view| !holds(view) && !is_given_up(view)) {
            return Some(2);
        }
        if copies(own) {
            return Some(3);
        }
        if copies(predecessors) {
            return Some(4);
        }
        let is_home = own.primary == Some(member) && (!own.handover || self.is_confirmed(own));
        (!is_home && !is_given_up(own)).then_some(5)
    }

    /// Emits the changes in the recovery of each place. Clears the verdicts and older failures of a place whose
    /// recovery is over. Does nothing during an orderly stop, because the exits of the servers are intended.
    pub(super) fn show_recovery(&mut self, sink: &mut Vec<Effect>) {
        if self.stop.is_some() {
            return;
        }
        for id in (0..self.count()).map(ServerId) {
            let step = self.recovery_step(id);
            if std::mem::replace(&mut self.server_mut(id).shown, step) != step {
                self.histories[usize::from(id.0)].note(self.now, step);
                sink.push(Effect::Recovery { server: id, step });
                self.revision += 1;
            }
            if step.is_none() {
                let now = self.now;
                let server = self.server_mut(id);
                if server.backoff.settle(now) {
                    server.failures = 0;
                }
                server.was_judged = false;
            }
        }
    }

    /// Returns whether every group is home with two copies and no change is in progress.
    pub fn is_whole(&self) -> bool {
        let durable = self.memory.durable();
        let is_held = |view: &View| view.primary.is_some() && !durable.rests(view.group);
        self.is_settled() && durable.views.iter().all(is_held)
    }

    /// Returns the same as [`Cluster::is_whole`], ignoring groups that are LOST or rest in dumps: no process can
    /// restore these.
    pub fn is_settled(&self) -> bool {
        let servers = self.count();
        let durable = self.memory.durable();
        let is_home = |view: &View| {
            let primary = self.member(view.group.home_primary());
            let secondary = self.member(view.group.home_secondary(servers));
            view.primary == Some(primary)
                && view.secondary() == Some(secondary)
                && self.is_confirmed(view)
        };
        self.has_served()
            && self.memory.decided.views == durable.views
            && self.memory.decided.servers == durable.servers
            && self.memory.decided.has_served == durable.has_served
            && self.memory.decided.last_holders == durable.last_holders
            && durable
                .views
                .iter()
                .all(|view| view.primary.is_none() || durable.rests(view.group) || is_home(view))
            && self.servers.iter().all(|server| server.is_up() && !server.exited)
    }
}
