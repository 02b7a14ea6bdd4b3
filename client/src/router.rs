//! Routing from a key to the server that serves it. This module does no I/O: it takes maps and returns routes.
//!
//! Views only move forward: for each group the router keeps the view with the highest version of any map. An older map
//! (of an earlier term of the coordinator, or an earlier one of the same term) changes no address. Servers return the
//! last map that they received, which may be older than the one known here.

use std::net::SocketAddr;

use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{
    ClusterId, Epoch, GroupId, MapRevision, Member, ServerId, ShardId, ViewVersion,
};
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::scan_token::ScanTokens;
use kv_protocol::view::View;

/// The destination of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// This process serves the request.
    To { member: Member, address: SocketAddr },
    /// Every holder of the group is dead.
    Lost,
    /// No server with a known address serves this request now: the cluster is starting or changing.
    Nowhere { server: Option<ServerId> },
}

/// The reason for rejecting a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MapRefusal {
    #[error(
        "the map belongs to cluster {got}, which was not restored from {known}, the cluster of this client; \
         open a new client"
    )]
    OtherCluster { known: ClusterId, got: ClusterId },
    #[error(
        "the map has {got}, but earlier maps had {known}, and these never change; check the endpoints of this client"
    )]
    OtherShape { known: Placement, got: Placement },
    #[error("the map has a cluster id of zero")]
    NoCluster,
}

/// The maximum number of keys tried to find one of each group. With the largest ring, the probability that a group has
/// no key among them is below 1e-400.
const MAX_TRIALS: usize = 1 << 20;

/// The router of one client; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Router {
    known: Option<Known>,
}

#[derive(Debug)]
struct Known {
    cluster: ClusterId,
    /// The clusters from which this one was restored.
    ancestors: Vec<ClusterId>,
    placement: Placement,
    epoch: Epoch,
    revision: MapRevision,
    servers: Vec<MapServer>,
    views: Vec<View>,
}

impl Router {
    /// Applies the newer parts of a map.
    pub(crate) fn learn(&mut self, map: Map) -> Result<(), MapRefusal> {
        if map.cluster == ClusterId::default() {
            return Err(MapRefusal::NoCluster);
        }
        let placement = map.placement();
        let Some(known) = &mut self.known else {
            self.known = Some(Known {
                cluster: map.cluster,
                ancestors: map.ancestors,
                placement,
                epoch: map.epoch,
                revision: map.revision,
                servers: map.servers,
                views: map.views,
            });
            return Ok(());
        };
        let is_heir = map.ancestors.contains(&known.cluster);
        if map.cluster != known.cluster && !is_heir {
            return Err(MapRefusal::OtherCluster { known: known.cluster, got: map.cluster });
        }
        if placement != known.placement {
            return Err(MapRefusal::OtherShape { known: known.placement, got: placement });
        }
        if is_heir {
            // The view versions of a restored cluster continue above the earlier ones.
            let Map { cluster, ancestors, epoch, revision, servers, views, .. } = map;
            *known = Known { cluster, ancestors, placement, epoch, revision, servers, views };
            return Ok(());
        }
        for (view, newer) in known.views.iter_mut().zip(map.views) {
            if newer.version > view.version {
                *view = newer;
            }
        }
        if (map.epoch.number, map.revision) >= (known.epoch.number, known.revision) {
            known.epoch = map.epoch;
            known.revision = map.revision;
            known.servers = map.servers;
        }
        Ok(())
    }

    /// Returns the id of the cluster; `None` before the first map.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.known.as_ref().map(|known| known.cluster)
    }

    /// Returns whether the client's cluster is `cluster`, or was restored from it; false before the first map.
    pub(crate) fn is_heir_of(&self, cluster: ClusterId) -> bool {
        self.known
            .as_ref()
            .is_some_and(|known| known.cluster == cluster || known.ancestors.contains(&cluster))
    }

    /// Returns whether a map has ever been applied.
    pub(crate) fn has_map(&self) -> bool {
        self.known.is_some()
    }

    /// Returns the group and shard of a key with this digest; `None` before the first map.
    #[inline]
    pub(crate) fn locate(&self, digest: Digest, key: &[u8]) -> Option<(GroupId, ShardId)> {
        self.known.as_ref().map(|known| known.placement.locate_digested(digest, key))
    }

    /// Returns the encoding of the tokens of scans; `None` before the first map.
    pub(crate) fn scan_tokens(&self) -> Option<ScanTokens> {
        self.known.as_ref().map(|known| ScanTokens::new(known.cluster, known.placement))
    }

    /// Returns the version of the group's view; zero if none is known.
    pub(crate) fn version(&self, group: GroupId) -> ViewVersion {
        self.view(group).map_or(ViewVersion(0), |view| view.version)
    }

    /// Returns the route to the group's current replica in this role.
    pub(crate) fn route(&self, group: GroupId, role: ReplicaRole) -> Route {
        let Some(view) = self.view(group) else { return Route::Nowhere { server: None } };
        let member = match role {
            ReplicaRole::Primary => view.primary,
            ReplicaRole::Secondary => view.secondary(),
        };
        let Some(member) = member else {
            // Version zero means that there is no view yet: the cluster is starting, and no group can be lost.
            let lost = view.primary.is_none() && view.version > ViewVersion(0);
            return if lost { Route::Lost } else { Route::Nowhere { server: None } };
        };
        match self.process(member).and_then(|server| server.clients) {
            Some(address) => Route::To { member, address },
            None => Route::Nowhere { server: Some(member.server) },
        }
    }

    /// Returns the servers from which the map can be requested, in ring order.
    pub(crate) fn servers(&self) -> Vec<(ServerId, SocketAddr)> {
        let servers = self.known.iter().flat_map(|known| &known.servers);
        let up = servers.filter(|server| server.state != ServerState::Down);
        up.filter_map(|server| Some((server.id, server.clients?))).collect()
    }

    /// Returns the epoch and the revision of the newest map; `None` before the first.
    pub(crate) fn revision(&self) -> Option<(Epoch, MapRevision)> {
        self.known.as_ref().map(|known| (known.epoch, known.revision))
    }

    /// Returns all servers of the newest map, in ring order.
    pub(crate) fn all_servers(&self) -> &[MapServer] {
        self.known.as_ref().map_or(&[], |known| &known.servers)
    }

    /// Returns a key of each group, found by trial, or an empty key where none was found. The result is empty before
    /// the first map.
    pub(crate) fn key_of_each_group(&self) -> Vec<Vec<u8>> {
        let Some(known) = &self.known else { return Vec::new() };
        let mut keys = vec![Vec::new(); known.views.len()];
        let mut missing = keys.len();
        for n in (0_u64..).take(MAX_TRIALS) {
            if missing == 0 {
                break;
            }
            let key = n.to_string().into_bytes();
            let (group, _) = known.placement.locate(&key);
            if let Some(place) = keys.get_mut(usize::from(group.0)).filter(|key| key.is_empty()) {
                *place = key;
                missing -= 1;
            }
        }
        keys
    }

    /// Returns whether the newest map contains this process.
    pub(crate) fn knows(&self, member: Member) -> bool {
        self.process(member).is_some()
    }

    /// Returns whether the newest map reports the server as down.
    pub(crate) fn is_down(&self, server: ServerId) -> bool {
        self.known
            .as_ref()
            .and_then(|known| known.servers.get(usize::from(server.0)))
            .is_some_and(|server| server.state == ServerState::Down)
    }

    fn view(&self, group: GroupId) -> Option<&View> {
        self.known.as_ref()?.views.get(usize::from(group.0))
    }

    fn process(&self, member: Member) -> Option<&MapServer> {
        let server = self.known.as_ref()?.servers.get(usize::from(member.server.0))?;
        (server.incarnation == member.incarnation).then_some(server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::ids::{BootId, Incarnation};
    use kv_protocol::view::Peer;
    use proptest::prelude::*;

    fn member(server: u16) -> Member {
        Member { server: ServerId(server), incarnation: Incarnation(100 + u64::from(server)) }
    }

    fn map(epoch: u64, primaries: [(u64, Option<u16>); 3]) -> Map {
        let views = (0..).zip(primaries).map(|(group, (version, primary))| View {
            group: GroupId(group),
            version: ViewVersion(version),
            primary: primary.map(member),
            peer: primary.map_or(Peer::None, |p| Peer::Secondary(member((p + 1) % 3))),
            handover: false,
        });
        let servers = (0..3).map(|n| MapServer {
            id: ServerId(n),
            incarnation: member(n).incarnation,
            state: ServerState::Up,
            clients: Some(SocketAddr::from(([127, 0, 0, 1], 4_000 + n))),
        });
        Map {
            cluster: ClusterId(9),
            ancestors: Vec::new(),
            epoch: Epoch { number: epoch, boot: BootId(1) },
            revision: MapRevision(1),
            shards: 2,
            servers: servers.collect(),
            views: views.collect(),
            hash_tags: false,
        }
    }

    fn home(version: u64) -> [(u64, Option<u16>); 3] {
        [(version, Some(0)), (version, Some(1)), (version, Some(2))]
    }

    #[test]
    fn a_key_goes_to_the_primary_of_its_groups_view() {
        let mut router = Router::default();
        assert_eq!(router.locate(Digest::of(b"a"), b"a"), None);
        router.learn(map(1, [(1, Some(0)), (2, Some(2)), (1, Some(2))])).unwrap();
        // In a ring of three servers, "a" belongs to group 1.
        let (group, shard) = router.locate(Digest::of(b"a"), b"a").unwrap();
        assert_eq!((group, shard), (GroupId(1), ShardId(0)));
        let address = SocketAddr::from(([127, 0, 0, 1], 4_002));
        let route = router.route(group, ReplicaRole::Primary);
        assert_eq!(route, Route::To { member: member(2), address });
        let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
        let route = router.route(group, ReplicaRole::Secondary);
        assert_eq!(route, Route::To { member: member(0), address });
    }

    #[test]
    fn an_older_view_of_a_group_is_never_applied() {
        let mut router = Router::default();
        router.learn(map(1, home(5))).unwrap();
        router.learn(map(1, [(4, Some(2)), (6, Some(2)), (5, Some(0))])).unwrap();
        assert_eq!(router.version(GroupId(0)), ViewVersion(5));
        assert_eq!(router.version(GroupId(1)), ViewVersion(6));
        let to = |group| match router.route(GroupId(group), ReplicaRole::Primary) {
            Route::To { member, .. } => member.server.0,
            other => panic!("{other:?}"),
        };
        assert_eq!([to(0), to(1), to(2)], [0, 2, 2]);
    }

    #[test]
    fn an_older_term_changes_no_address() {
        let mut router = Router::default();
        router.learn(map(2, home(1))).unwrap();
        let mut old = map(1, home(1));
        old.servers[0].clients = Some(SocketAddr::from(([127, 0, 0, 1], 9)));
        router.learn(old).unwrap();
        let Route::To { address, .. } = router.route(GroupId(0), ReplicaRole::Primary) else {
            panic!("no route")
        };
        assert_eq!(address.port(), 4_000);
    }

    #[test]
    fn an_earlier_map_of_the_same_term_changes_no_address_but_its_newer_views_apply() {
        let mut router = Router::default();
        let mut later = map(1, home(1));
        later.revision = MapRevision(7);
        router.learn(later).unwrap();
        let mut earlier = map(1, [(2, Some(0)), (1, Some(1)), (1, Some(2))]);
        earlier.servers[0].incarnation = Incarnation(77);
        router.learn(earlier).unwrap();
        assert_eq!(router.version(GroupId(0)), ViewVersion(2));
        assert!(router.knows(member(0)), "its process has been replaced");
    }

    #[test]
    fn a_group_without_a_view_is_not_lost_and_one_whose_view_has_no_primary_is() {
        let mut router = Router::default();
        router.learn(map(1, [(0, None), (3, None), (1, Some(2))])).unwrap();
        let nowhere = Route::Nowhere { server: None };
        assert_eq!(router.route(GroupId(0), ReplicaRole::Primary), nowhere);
        assert_eq!(router.route(GroupId(1), ReplicaRole::Primary), Route::Lost);
    }

    #[test]
    fn a_process_outside_the_view_gets_no_requests() {
        let mut router = Router::default();
        let mut restarted = map(1, home(1));
        restarted.servers[0].incarnation = Incarnation(77);
        router.learn(restarted).unwrap();
        let nowhere = Route::Nowhere { server: Some(ServerId(0)) };
        assert_eq!(router.route(GroupId(0), ReplicaRole::Primary), nowhere);
        assert!(!router.knows(member(0)) && router.knows(member(1)));
    }

    #[test]
    fn only_a_cluster_restored_from_the_known_one_replaces_it() {
        let mut router = Router::default();
        router.learn(map(3, home(5))).unwrap();
        let restored = || {
            let mut map = map(1, home(6));
            (map.cluster, map.ancestors) = (ClusterId(10), vec![ClusterId(9), ClusterId(4)]);
            map.servers[0].incarnation = Incarnation(77);
            map
        };
        router.learn(restored()).unwrap();
        assert_eq!(router.cluster(), Some(ClusterId(10)));
        assert_eq!(router.version(GroupId(0)), ViewVersion(6));
        assert!(!router.knows(member(0)), "its processes are others");
        router.learn(restored()).unwrap();
        for ancestors in [vec![], vec![ClusterId(9)]] {
            let mut other = map(1, home(7));
            (other.cluster, other.ancestors) = (ClusterId(11), ancestors);
            let refused = router.learn(other);
            assert!(matches!(refused, Err(MapRefusal::OtherCluster { .. })), "{refused:?}");
        }
        let mut before = map(9, home(9));
        before.cluster = ClusterId(9);
        assert!(matches!(router.learn(before), Err(MapRefusal::OtherCluster { .. })));
    }

    #[test]
    fn another_cluster_or_shape_is_refused() {
        let mut router = Router::default();
        router.learn(map(1, home(1))).unwrap();
        let mut other = map(1, home(9));
        other.cluster = ClusterId(8);
        assert!(matches!(router.learn(other), Err(MapRefusal::OtherCluster { .. })));
        let mut other = map(1, home(9));
        other.shards = 4;
        assert!(matches!(router.learn(other), Err(MapRefusal::OtherShape { .. })));
        let mut other = map(1, home(9));
        other.hash_tags = true;
        let refused = router.learn(other).unwrap_err();
        assert!(
            refused.to_string().contains("3 servers with 2 shards each and hash tags"),
            "{refused}"
        );
        assert_eq!(router.version(GroupId(0)), ViewVersion(1));
        let mut nameless = map(1, home(1));
        nameless.cluster = ClusterId(0);
        assert_eq!(Router::default().learn(nameless), Err(MapRefusal::NoCluster));
    }

    proptest! {
        #[test]
        fn versions_only_grow_whatever_maps_come(
            maps in prop::collection::vec((1u64..4, [0u64..8, 0..8, 0..8]), 1..20),
        ) {
            let mut router = Router::default();
            let mut seen = [0; 3];
            for (epoch, versions) in maps {
                let views = versions.map(|version| (version, (version > 0).then_some(1)));
                router.learn(map(epoch, views)).unwrap();
                for (group, version) in (0u16..).zip(versions) {
                    let highest = &mut seen[usize::from(group)];
                    *highest = (*highest).max(version);
                    prop_assert_eq!(router.version(GroupId(group)).0, *highest);
                }
            }
        }
    }
}
