//! The sessions of the gateway with each shard of each group.
//!
//! A session has at most 64 writes in flight, so there are several, called lanes. All lanes with the same number have the
//! same client id, because a link to a server has one client id.

use std::collections::BTreeMap;

use kv_core::mutations::{self, Mutation};
use kv_protocol::ids::{ClientId, GroupId, RequestSeq, ShardId};
use kv_protocol::session::Session;

/// The maximum number of open lanes to a shard of a group.
const LANES_MAX: usize = 16;

/// A shard of a group.
pub(crate) type Place = (GroupId, ShardId);

/// The number of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneId(pub(crate) u64);

impl LaneId {
    /// The lane whose links carry reads.
    pub(crate) const FIRST: LaneId = LaneId(0);

    /// Returns the client id of the lane, at a gateway whose ids begin at `first`.
    pub(crate) fn client(self, first: ClientId) -> ClientId {
        ClientId(first.0.wrapping_add(self.0.into()))
    }
}

/// The number of a write, and its lane.
pub(crate) type WriteNumber = (LaneId, RequestSeq);

/// The lanes to all places.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    places: BTreeMap<Place, Vec<Lane>>,
    /// The number of lanes that were closed. No later lane has the number of one of them.
    closed: u64,
}

#[derive(Debug)]
struct Lane {
    id: LaneId,
    session: Session,
    /// The number of its writes in flight.
    in_flight: u32,
    /// True if one of its writes is in doubt for ever. No further write begins.
    is_closed: bool,
}

impl Lanes {
    /// Allocates the number of a write; `None` while the windows of all lanes are full.
    pub(crate) fn begin(&mut self, place: Place, first: ClientId) -> Option<WriteNumber> {
        let lanes = self.places.entry(place).or_default();
        for lane in lanes.iter_mut().filter(|lane| !lane.is_closed) {
            if let Some(seq) = lane.session.begin() {
                lane.in_flight += 1;
                return Some((lane.id, seq));
            }
        }
        if lanes.iter().filter(|lane| !lane.is_closed).count() >= LANES_MAX {
            return None;
        }
        let is_free = |id: &u64| lanes.iter().all(|lane| lane.id.0 != *id);
        let closed = match mutations::is_open(Mutation::ClosedLaneReused) {
            true => 0,
            false => self.closed,
        };
        let id = LaneId((closed * LANES_MAX as u64..).find(is_free)?);
        let mut session = Session::new(id.client(first));
        let seq = session.begin()?;
        lanes.push(Lane { id, session, in_flight: 1, is_closed: false });
        Some((id, seq))
    }

    /// Returns the session of a write in flight.
    pub(crate) fn session(&mut self, place: Place, id: LaneId) -> Option<&mut Session> {
        let lane = self.places.get_mut(&place)?.iter_mut().find(|lane| lane.id == id)?;
        Some(&mut lane.session)
    }

    /// Ends a write. `is_settled` is false if it may still take effect. Then its lane is closed, because the window
    /// can never move past the write.
    pub(crate) fn end(&mut self, place: Place, (id, seq): WriteNumber, is_settled: bool) {
        let Some(lanes) = self.places.get_mut(&place) else { return };
        let Some(lane) = lanes.iter_mut().find(|lane| lane.id == id) else { return };
        lane.in_flight -= 1;
        if is_settled {
            lane.session.finish(seq);
        } else if !std::mem::replace(&mut lane.is_closed, true) {
            self.closed += 1;
        }
        lanes.retain(|lane| !lane.is_closed || lane.in_flight > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (GroupId(1), ShardId(0));

    #[test]
    fn a_lane_opens_when_the_others_are_full_and_a_closed_one_is_never_reused() {
        let mut lanes = Lanes::default();
        let first = ClientId(100);
        let writes: Vec<WriteNumber> = std::iter::from_fn(|| lanes.begin(PLACE, first)).collect();
        assert_eq!(writes.len(), 64 * LANES_MAX);
        let used: Vec<LaneId> = writes.iter().map(|(lane, _)| *lane).collect();
        lanes.end(PLACE, writes[0], false);
        for write in &writes[1..64] {
            lanes.end(PLACE, *write, true);
        }
        let (fresh, seq) = lanes.begin(PLACE, first).unwrap();
        assert_eq!(seq, RequestSeq(1));
        assert!(!used.contains(&fresh), "the client id would be that of an old session");
        assert!(lanes.session(PLACE, used[0]).is_none());
        assert_eq!(lanes.session(PLACE, fresh).unwrap().client(), fresh.client(first));
    }
}
