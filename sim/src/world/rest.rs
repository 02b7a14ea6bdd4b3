//! The end of a run: the cluster comes to rest, and then clients check all data.
//!
//! ```text
//!   faults stop -> every group home, no operation waiting, for a while
//!               -> every key ever used is read, every shard is written to
//!               -> the histories, including these operations, are checked
//! ```

use kv_protocol::View;

use super::*;
use crate::invariants::groups;

/// The time for which the cluster must stay at rest, in nanoseconds. It allows for a stream that has just broken
/// and whose loss is not detected yet.
const LASTS: u64 = 1_500_000_000;
/// The interval between two checks for rest, in nanoseconds.
const LOOK: u64 = 50_000_000;
/// The timeout of the final check, in nanoseconds.
const LOOK_BACK_TIMEOUT: u64 = 20_000_000_000;

impl World {
    /// Returns whether every group is home, no operation waits, and nothing is paused, stopping or being restored.
    pub fn is_at_rest(&self) -> bool {
        // Groups that are LOST or rest in dumps are ignored.
        let is_home = self.coordinator.cluster.as_ref().is_some_and(|c| c.is_settled());
        let mut alive = self.processes.iter().enumerate().filter(|(_, process)| process.alive);
        is_home
            && self.operator.is_idle()
            && self.coordinator.paused_until <= self.now
            && alive.all(|(at, process)| process.is_at_work(self.now) && !self.operator.told(at))
            && self
                .clients
                .iter()
                .all(|client| !client.waits(|group| self.is_lost(group) || self.rests(group)))
            && !self.redis_waits()
    }

    /// Returns whether a group has no holder left.
    fn is_lost(&self, group: GroupId) -> bool {
        let views = self.coordinator.cluster.as_ref().map_or(&[][..], |cluster| cluster.views());
        views.get(usize::from(group.0)).is_some_and(|view| view.primary.is_none())
    }

    /// Returns whether a group rests in dumps: its last holder has made an orderly exit. Operations on such a group get
    /// no response.
    fn rests(&self, group: GroupId) -> bool {
        self.coordinator.cluster.as_ref().is_some_and(|cluster| cluster.durable().rests(group))
    }

    /// Runs until the cluster is at rest.
    ///
    /// # Errors
    /// The cluster does not come to rest in time, or another invariant is violated.
    pub(super) fn come_to_rest(&mut self) -> Result<(), Violation> {
        let end = self.now + self.config.timeout;
        let mut since = None;
        while self.now < end && since.is_none_or(|since| self.now < since + LASTS) {
            self.run_until((self.now + LOOK).min(end))?;
            since = since.or(Some(self.now)).filter(|_| self.is_at_rest());
        }
        groups::home_again(self)
    }

    /// Runs the final check: clients read every key ever used, and write to every shard, except for groups that rest in
    /// dumps.
    ///
    /// # Errors
    /// An operation does not end in time, or another invariant is violated.
    pub(super) fn look_back(&mut self) -> Result<(), Violation> {
        let placement = self.config.placement();
        let views = self.coordinator.cluster.as_ref().map_or(&[][..], |cluster| cluster.views());
        let is_resting = |view: &&View| self.rests(view.group);
        let resting: Vec<View> = views.iter().filter(is_resting).copied().collect();
        resting.iter().try_for_each(|view| groups::resting_has_a_dump(self, view))?;
        let rests = |group| resting.iter().any(|view| view.group == group);
        self.workload.look_back(placement, |group| !rests(group));
        self.is_looking_back = true;
        // A client that has not received the map of a restored cluster receives it now. With the old map, its first
        // operation would end in doubt.
        let map = self.coordinator.cluster.as_ref().map(|cluster| cluster.map());
        let map = map.expect("the coordinator runs when the cluster is at rest");
        self.end_clones();
        // An operation that is in doubt now stays in doubt, because its group has no holder.
        for client in 0..self.clients.len() {
            let mut wishes = Vec::new();
            self.clients[client].end_all(&mut wishes);
            self.grant(client, wishes);
        }
        for client in 0..self.clients.len() {
            (self.clients[client].is_reader, self.clients[client].rests_until) = (false, 0);
            self.on_map(client, map.clone());
        }
        self.look_back_at_own_keys();
        let end = self.now + LOOK_BACK_TIMEOUT;
        let waits = |world: &World| {
            let mut clients = world.clients.iter();
            world.workload.has_more()
                || clients.any(|client| !client.flights.is_empty())
                || world.redis_waits()
        };
        while self.now < end && waits(self) {
            self.run_until(self.now + LOOK)?;
        }
        match waits(self) {
            true => Err(Violation::new(19, "the final check did not end in time".to_owned())),
            false => Ok(()),
        }
    }
}
