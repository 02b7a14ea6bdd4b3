//! The schedule of the invariant checks, and the state that they keep between calls.
//!
//! ```text
//!   at an event                       invariants that a single input or response can violate
//!   after every wake-up of a shard    invariants of the replicas of this shard
//!   every thousand events             the digests of all replicas; every 40th time, one shard in full
//!   at the end                        every table, and every key's history
//! ```

use std::collections::{BTreeMap, BTreeSet};

use kv_protocol::View;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::{ClientId, ClusterId, GroupId, ShardId};

use crate::invariants::{
    Violation, commits, copies, leases, may_serve, roles, slowness, views, writes,
};
use crate::server::SentResponse;
use crate::world::World;

/// One shard of a group.
pub type Place = (GroupId, usize);

/// The identity of a client's operation. It is the same in all retries.
pub type Question = (ClientId, u64);

/// A replica's state at the last check.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The version of the installed view.
    pub version: u64,
    /// The replica's state.
    pub state: ReplicaState,
    /// True if the replica could serve reads.
    pub served: bool,
}

/// The interval between two full comparisons, in thousands of events. Each compares the replicas of one shard; the
/// shards take turns.
const THOUSANDS_A_COMPARISON: u64 = 40;

/// Counts of comparisons between replicas.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    /// The number of comparisons by digest.
    pub digests: u64,
    /// The number of full comparisons.
    pub contents: u64,
}

/// The state that the checks keep.
#[derive(Debug, Default)]
pub struct Checks {
    /// The highest version of a write acknowledged with OK, by place.
    pub acked: BTreeMap<Place, u64>,
    /// The state at the last check, by process and place.
    pub seen: BTreeMap<(usize, Place), Seen>,
    /// The view version under which a primary reported that its candidate had caught up, by process and place.
    pub caught_up: BTreeMap<(usize, Place), u64>,
    /// The numbers of comparisons made.
    pub compared: Compared,
    thousands: u64,
    views: views::Views,
    numbers: writes::Numbers,
    responses: writes::Responses,
    used: writes::Used,
    /// The session names under which two clients write.
    pub shared: BTreeSet<ClientId>,
}

impl Checks {
    /// Checks the replicas of a shard after its wake-up.
    ///
    /// # Errors
    /// The first invariant that a replica, or the connections of its process, violate.
    pub fn after_wake(
        &mut self,
        world: &World,
        process: usize,
        shard: usize,
    ) -> Result<(), Violation> {
        let now = world.clocks[world.processes[process].place].read(world.now);
        for replica in world.processes[process].shards[shard].replicas() {
            let place = (replica.group(), shard);
            let sight = replica.inspect();
            views::versions_grow(self, process, place, &sight)?;
            let serves = may_serve(&sight, now);
            commits::taker_has_all(self, process, place, &sight, serves)?;
            commits::taker_has_all_after_handover(self, world, process, place, &sight)?;
            commits::union_is_true(self, process, place, &sight)?;
            roles::copies_are_spared(self, world, process, place, &sight)?;
            copies::memory_is_bounded(replica, world.config.bounds.memory)?;
            copies::responses_are_bounded(replica)?;
            slowness::load_moves_no_view(world, process, replica)?;
            leases::one_server(world, place)?;
            leases::lease_before_grace(world, place)?;
            leases::dead_are_not_waited_for(world, process, place, &sight)?;
            let version = sight.view.map_or(0, |view| view.version.0);
            if sight.state == ReplicaState::CaughtUp {
                self.caught_up.insert((process, place), version);
            }
            let seen = Seen { version, state: sight.state, served: serves };
            let before = self.seen.insert((process, place), seen).map(|before| before.version);
            if let Some(view) = sight.view.filter(|_| before != Some(version)) {
                views::version_names_one_view(
                    &mut self.views,
                    world.processes[process].cluster,
                    &view,
                )?;
            }
        }
        slowness::connections_are_bounded(world, process)
    }

    /// Checks a view that the coordinator sends in an order or in a map.
    ///
    /// # Errors
    /// A violation of invariant 5, if the version names another view.
    pub fn on_view_told(&mut self, cluster: ClusterId, view: &View) -> Result<(), Violation> {
        views::version_names_one_view(&mut self.views, cluster, view)
    }

    /// Checks and records a replica's final response to a client's write. `client` identifies the client, and `name` is
    /// the client id of its session. `asked_at` is the time at which the client began the write. Both are 0 if the
    /// operation has already ended at the client.
    ///
    /// # Errors
    /// The first invariant that the response violates.
    pub fn on_write_answered(
        &mut self,
        world: &World,
        process: usize,
        shard: usize,
        (client, name): (ClientId, ClientId),
        asked_at: u64,
        responded: &SentResponse,
    ) -> Result<(), Violation> {
        let (place, question) = ((responded.group, shard), (client, responded.request.0));
        writes::once_only(&mut self.responses, place, question, responded)?;
        writes::note_use(&mut self.used, world, place, name, asked_at);
        if !responded.is_acked() {
            return Ok(());
        }
        let version = responded.version.0;
        let highest = self.acked.entry(place).or_default();
        *highest = (*highest).max(version);
        // An update without effect has the version that it found.
        if responded.changes {
            writes::numbers_are_unique(&mut self.numbers, place, version, question)?;
        }
        commits::acked_is_held(world, process, place, responded)?;
        commits::candidate_holds_acked(world, process, place, responded)
    }

    /// Checks a SESSION_EXPIRED response to a client with this session name.
    ///
    /// # Errors
    /// A violation of invariant 23, if the session was used recently.
    pub fn on_expired(
        &mut self,
        world: &World,
        (group, shard): (GroupId, ShardId),
        client: ClientId,
    ) -> Result<(), Violation> {
        if self.shared.contains(&client) {
            return Ok(());
        }
        writes::sessions_are_kept(&self.used, world, (group, usize::from(shard.0)), client)
    }

    /// Compares replicas. It is called every thousand events.
    ///
    /// # Errors
    /// A violation of invariant 3, if two replicas differ.
    pub fn every_thousand(&mut self, world: &World) -> Result<(), Violation> {
        self.compared.digests += copies::digests_agree(world)?;
        self.thousands += 1;
        if !self.thousands.is_multiple_of(THOUSANDS_A_COMPARISON) {
            return Ok(());
        }
        let places: Vec<Place> = copies::places(world).collect();
        let turn = usize::try_from(self.thousands / THOUSANDS_A_COMPARISON).expect("it fits");
        let is_made = copies::contents_agree(world, places[turn % places.len()])?;
        self.compared.contents += u64::from(is_made);
        Ok(())
    }

    /// Runs the final checks, after all faults have ended and every group is home.
    ///
    /// # Errors
    /// The first invariant that the replicas or the history of a key violate.
    pub fn at_end(&mut self, world: &World) -> Result<(), Violation> {
        self.compared.digests += copies::digests_agree(world)?;
        for place in copies::places(world) {
            self.compared.contents += u64::from(copies::contents_agree(world, place)?);
        }
        copies::keys_are_at_home(world)?;
        copies::expired_are_removed(world)?;
        writes::linearizable(world)
    }
}
