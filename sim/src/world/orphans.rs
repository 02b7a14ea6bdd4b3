//! An orphaned cluster: the coordinator is alive, but servers receive nothing from it until they reach the orphan
//! timeout and leave.
//!
//! ```text
//!   the coordinator is cut off from all servers, or paused -> back before the timeout: no effect
//!                                                          -> later: servers dump and exit, except those
//!                                                             that hold the only copy of a group
//! ```
//!
//! When the coordinator returns, some or all servers have made an orderly exit. These exits are not faults, and no
//! group is LOST.

use super::*;

/// The time without a coordinator after which a server leaves, in nanoseconds.
const ORPHAN_TIMEOUT: u64 = 2_000_000_000;

impl World {
    /// Plans the times at which the coordinator is unreachable. At the end the operator stops the remaining
    /// servers.
    pub(super) fn plan_orphans(&mut self) {
        let mut at = 0;
        loop {
            at += self.random.between(1_500_000_000, 7_000_000_000);
            if at >= self.config.faulty * 9 / 10 {
                break;
            }
            self.at(at, Happening::Orphan);
        }
        self.at(self.config.faulty * 9 / 10, Happening::Stop);
    }

    /// Makes the coordinator unreachable from every server for a while.
    pub(super) fn orphan(&mut self) {
        let is_away = self.coordinator.paused_until > self.now;
        if self.is_healing || is_away || !self.serves() {
            return;
        }
        let lasts = self.random.between(ORPHAN_TIMEOUT / 2, 3 * ORPHAN_TIMEOUT);
        self.counts.orphaned += 1;
        if self.random.per_mille(500) {
            self.trace.note(self.now, About::All, format_args!("the coordinator is paused"));
            return crate::nemesis::pause_coordinator(self, lasts);
        }
        self.trace.note(self.now, About::All, format_args!("the coordinator is cut off"));
        let here = self.coordinator_host();
        for place in 0..usize::from(self.config.servers) {
            self.network.cut(here, Host(place));
            self.network.cut(Host(place), here);
        }
        self.after(lasts, Happening::Heal);
    }

    /// Handles the heartbeat timer of a process. If the process has received nothing from a coordinator for the
    /// orphan timeout, it leaves, unless it is the only holder of a group.
    pub(super) fn look_for_coordinator(&mut self, process: usize) {
        if !self.config.orphans || self.operator.told(process) {
            return;
        }
        let (here, now) = (self.coordinator_host(), self.now);
        let place = &self.processes[process];
        let is_cut = self.network.is_cut(here, Host(place.place));
        let is_linked = matches!(place.link, Some((_, true)));
        let is_heard = is_linked && !is_cut && self.coordinator.paused_until <= now;
        let replicas = || place.shards.iter().flat_map(|executor| executor.replicas());
        let is_alone = replicas().any(|replica| {
            let view = replica.inspect().view;
            view.is_some_and(|view| {
                view.primary == Some(place.member) && view.secondary().is_none()
            })
        });
        let place = &mut self.processes[process];
        if is_heard {
            place.alone_since = None;
            return;
        }
        let since = *place.alone_since.get_or_insert(now);
        if now - since < ORPHAN_TIMEOUT || is_alone {
            return;
        }
        let at = place.place;
        self.note_place(at, format_args!("process {process} has no coordinator, and leaves"));
        self.operator.tell(process);
        self.leave_alone(process);
    }
}
