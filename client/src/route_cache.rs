//! The client's state for each place (a shard of a group): the session with that shard, and the cached route. With a
//! cached route, an operation needs no routing and no connection look-up.
//!
//! ```text
//!   (group, shard) -> Place { session, waiting, route }      by index, created by the first operation
//! ```

use kv_protocol::ids::{ClientId, GroupId, ServerId, ShardId, ViewVersion};
use kv_protocol::session::Session;

use crate::waiting::Waiting;

/// The client's state for one place; see the module documentation.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) session: Session,
    /// The writes that wait for room in the session's window.
    pub(crate) waiting: Waiting,
    pub(crate) route: Option<CachedRoute>,
}

/// The cached route of requests under the client's own id to the primary of a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedRoute {
    /// The number of maps received when the route was found. The route is valid until the next map.
    pub(crate) maps: u64,
    pub(crate) view: ViewVersion,
    pub(crate) server: ServerId,
    /// The id of the connection. If the connection is closed, a look-up by this id finds nothing.
    pub(crate) connection: u64,
}

/// The places used so far, at most as many as the cluster has.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    #[allow(clippy::vec_box)] // Most are empty, and a place is large.
    groups: Vec<Vec<Option<Box<Place>>>>,
}

impl RouteCache {
    #[inline]
    pub(crate) fn get_mut(&mut self, (group, shard): (GroupId, ShardId)) -> Option<&mut Place> {
        let shards = self.groups.get_mut(usize::from(group.0))?;
        shards.get_mut(usize::from(shard.0))?.as_deref_mut()
    }

    /// Returns the place. If it is new, creates it with a session under this client id.
    pub(crate) fn get_or_make(
        &mut self,
        (group, shard): (GroupId, ShardId),
        client: ClientId,
    ) -> &mut Place {
        let (group, shard) = (usize::from(group.0), usize::from(shard.0));
        if self.groups.len() <= group {
            self.groups.resize_with(group + 1, Vec::new);
        }
        let shards = &mut self.groups[group];
        if shards.len() <= shard {
            shards.resize_with(shard + 1, || None);
        }
        shards[shard].get_or_insert_with(|| {
            let (session, waiting) = (Session::new(client), Waiting::default());
            Box::new(Place { session, waiting, route: None })
        })
    }

    /// Iterates over the places that were used.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.groups.iter().flatten().flatten().map(|place| &**place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(group: u16, shard: u16) -> (GroupId, ShardId) {
        (GroupId(group), ShardId(shard))
    }

    #[test]
    fn each_place_is_created_once_with_its_own_session() {
        let mut places = RouteCache::default();
        assert!(places.get_mut(at(0, 0)).is_none());
        places.get_or_make(at(2, 1), ClientId(7)).session.begin();
        assert!(places.get_mut(at(2, 0)).is_none() && places.get_mut(at(1, 1)).is_none());
        let same = places.get_or_make(at(2, 1), ClientId(8));
        assert_eq!((same.session.client(), same.session.room()), (ClientId(7), 63));
        let other = places.get_or_make(at(2, 0), ClientId(8));
        assert_eq!((other.session.client(), other.session.room()), (ClientId(8), 64));
        let clients: Vec<_> = places.iter().map(|place| place.session.client().0).collect();
        assert_eq!(clients, [8, 7]);
    }
}
