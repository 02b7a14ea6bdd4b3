//! The promises, and when each is looked at.
//!
//! ```text
//!   after every wake-up of a shard    what concerns the replicas that woke
//!   every thousand events             both copies of everything, in full
//!   at the end                        every key's history
//! ```

use std::collections::BTreeMap;

use kv_protocol::View;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::GroupId;

use crate::invariants::{
    acked_is_held, copies_agree, lease_before_grace, linearizable, one_server, taker_has_all,
    union_is_true, versions_grow,
};
use crate::server::Acked;
use crate::world::{Violation, World};

/// A group's shard.
pub type Place = (GroupId, usize);

/// What the checks remember.
#[derive(Debug, Default)]
pub struct Checks {
    /// By place: the highest write that was ever answered OK.
    pub acked: BTreeMap<Place, u64>,
    /// By process and place: the version installed last, and whether it served.
    pub seen: BTreeMap<(usize, Place), (u64, bool)>,
    /// By process and place: the version under which its candidate was told to have caught up.
    pub caught_up: BTreeMap<(usize, Place), u64>,
}

impl Checks {
    /// After a shard of a process has woken.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn after_wake(
        &mut self,
        world: &World,
        process: usize,
        shard: usize,
    ) -> Result<(), Violation> {
        for hosted in &world.processes[process].shards[shard].hosted {
            let place = (hosted.replica.group(), shard);
            let sight = hosted.replica.inspect();
            versions_grow::check(self, process, place, &sight)?;
            taker_has_all::check(self, process, place, &sight)?;
            union_is_true::check(self, process, place, &sight)?;
            one_server::check(world, place)?;
            lease_before_grace::check(world, place)?;
            let version = sight.view.map_or(0, |view| view.version.0);
            if sight.state == ReplicaState::CaughtUp {
                self.caught_up.insert((process, place), version);
            }
            self.seen.insert((process, place), (version, sight.state.is_active()));
        }
        Ok(())
    }

    /// A primary has answered a write OK.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn on_acked(
        &mut self,
        world: &World,
        process: usize,
        shard: usize,
        acked: &Acked,
    ) -> Result<(), Violation> {
        let highest = self.acked.entry((acked.group, shard)).or_default();
        *highest = (*highest).max(acked.version);
        acked_is_held::check(world, process, shard, acked)
    }

    /// A view is durable.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn on_view(&self, world: &World, before: &View, view: &View) -> Result<(), Violation> {
        union_is_true::on_view(world, before, view)
    }

    /// Every thousand events.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn every_thousand(&mut self, world: &World) -> Result<(), Violation> {
        copies_agree::check(world)
    }

    /// After all faults, with everything home.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn at_end(&self, world: &World) -> Result<(), Violation> {
        copies_agree::check(world)?;
        linearizable::check(world)
    }
}
