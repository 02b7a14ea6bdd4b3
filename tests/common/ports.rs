//! The five kinds of port on which a cluster listens, and the first frame that each expects.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use kv_protocol::client_message::{Question, Refusal, Status, opcode, read_map_response};
use kv_protocol::control_message::{OrdersHello, Started};
use kv_protocol::ids::{ClientId, ClusterId, ClusterKey, Epoch, Member, ServerId, ShardId};
use kv_protocol::key::{Challenge, Link, Nonce, Seal, opcode as key_opcode};
use kv_protocol::map::Map;
use kv_protocol::peer_message::PeerHello;
use kv_protocol::status::ClusterStatus;

use super::cluster::Cluster;
use super::raw::{Raw, hello};
use super::{TIMEOUT, wait_for};

/// A kind of port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A server's port for clients.
    Clients,
    /// A server's port for other servers.
    Servers,
    /// A server's port for the coordinator.
    Orders,
    /// The coordinator's port for clients.
    Map,
    /// The coordinator's port for servers.
    Reports,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Clients, Kind::Servers, Kind::Orders, Kind::Map, Kind::Reports];

    /// The cluster-internal ports, whose connections begin with the handshake.
    pub(crate) const CHECKED: [Kind; 3] = [Kind::Servers, Kind::Orders, Kind::Reports];

    /// Returns the kind of link named in the handshake of this port.
    fn link(self) -> Link {
        match self {
            Kind::Servers => Link::Stream,
            Kind::Orders => Link::Orders,
            Kind::Reports => Link::Reports,
            Kind::Clients | Kind::Map => panic!("{self:?} has no handshake"),
        }
    }

    /// Returns true if frames at this port end with a checksum.
    pub(crate) fn is_checked(self) -> bool {
        Kind::CHECKED.contains(&self)
    }
}

/// The ports of server 1 and of the coordinator, the identities that an attacker can learn, and the secret key.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) status: ClusterStatus,
    pub(crate) map: Map,
    pub(crate) key: ClusterKey,
    reports: SocketAddr,
    coordinator: SocketAddr,
}

/// The nonce of every challenge in these tests.
const DIALLER: Nonce = Nonce(0xd1a1);

/// The server whose ports are attacked: neither server 0 nor the last one.
pub(crate) const VICTIM: usize = 1;

impl Ports {
    #[track_caller]
    pub(crate) fn of(cluster: &Cluster) -> Ports {
        let here = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        let coordinator = here(cluster.ready.clients_port);
        Ports {
            status: cluster.status(),
            map: fetch_map(coordinator),
            key: key_of(cluster.dir()),
            reports: here(cluster.ready.servers_port),
            coordinator,
        }
    }

    pub(crate) fn address(&self, kind: Kind) -> SocketAddr {
        let victim = &self.status.servers[VICTIM];
        let text = match kind {
            Kind::Clients => &victim.clients,
            Kind::Servers => &victim.servers,
            Kind::Orders => &victim.coord,
            Kind::Map => return self.coordinator,
            Kind::Reports => return self.reports,
        };
        text.as_ref().expect("started").parse().expect("an address")
    }

    #[track_caller]
    pub(crate) fn connect(&self, kind: Kind) -> Raw {
        if kind.is_checked() {
            Raw::to_cluster_port(self.address(kind))
        } else {
            Raw::to_clients_port(self.address(kind))
        }
    }

    /// Opens a connection to the victim's shard 0 and receives its WELCOME.
    #[track_caller]
    pub(crate) fn welcomed(&self, client: u128) -> Raw {
        Raw::welcomed(self.address(Kind::Clients), ClientId(client), ShardId(0))
    }

    pub(crate) fn member(&self, server: usize) -> Member {
        let status = &self.status.servers[server];
        Member { server: status.id, incarnation: status.incarnation.expect("started") }
    }

    /// Returns the hello with which the victim's predecessor opens the stream of shard 0.
    pub(crate) fn peer_hello(&self) -> PeerHello {
        PeerHello {
            cluster: self.status.cluster,
            from: self.member(VICTIM - 1),
            to: self.member(VICTIM),
            shard: ShardId(0),
            shards: self.status.shards,
            view: self.map.views[VICTIM - 1],
        }
    }

    /// Returns the hello of the real coordinator to the victim.
    pub(crate) fn orders_hello(&self) -> OrdersHello {
        OrdersHello {
            cluster: self.status.cluster,
            epoch: self.status.epoch,
            to: self.member(VICTIM),
        }
    }

    /// Returns a STARTED message of the victim with ports other than its own.
    pub(crate) fn started(&self) -> Started {
        Started {
            cluster: self.status.cluster,
            member: self.member(VICTIM),
            pid: 1,
            start_time: 1,
            namespace: kv_protocol::ids::PidNamespace(1),
            shards: self.status.shards,
            address: IpAddr::from([127, 0, 0, 1]),
            clients_port: 1,
            servers_port: 2,
            coord_port: 3,
            epoch: Epoch::default(),
        }
    }

    /// Returns the first frame of a connection to this port.
    pub(crate) fn first_frame(&self, kind: Kind) -> Vec<u8> {
        let mut bytes = Vec::new();
        match kind {
            Kind::Clients | Kind::Map => bytes = hello(ClusterId(0), ClientId(9), ShardId(0)),
            Kind::Servers | Kind::Orders | Kind::Reports => {
                Challenge { nonce: DIALLER, shard: ShardId(0) }.write(&mut bytes);
            }
        }
        bytes
    }

    /// Opens a connection to a cluster-internal port, sends a challenge and receives the proof. Returns the seal under
    /// this key for later frames. Does not check that the port has the same key.
    #[track_caller]
    pub(crate) fn challenged(&self, kind: Kind, key: ClusterKey) -> (Raw, Seal) {
        let mut raw = self.connect(kind);
        raw.send(&self.first_frame(kind));
        let proof = raw.frame();
        assert_eq!(proof.opcode, key_opcode::PROOF, "{proof:?}");
        let nonce = proof.body.first_chunk().expect("a nonce");
        (raw, Seal::new(key, kind.link(), DIALLER, Nonce(u128::from_le_bytes(*nonce))))
    }

    /// Returns the frame that follows the handshake at this port.
    pub(crate) fn hello(&self, kind: Kind, seal: &Seal) -> Vec<u8> {
        let mut bytes = Vec::new();
        match kind {
            Kind::Servers => self.peer_hello().write(seal, &mut bytes),
            Kind::Orders => self.orders_hello().write(seal, &mut bytes),
            Kind::Reports => self.started().write(seal, &mut bytes),
            Kind::Clients | Kind::Map => panic!("{kind:?} has no handshake"),
        }
        bytes
    }
}

/// Reads the key that the coordinator has stored.
#[track_caller]
pub(crate) fn key_of(dir: &Path) -> ClusterKey {
    let text = fs::read_to_string(dir.join("coordinator.state")).expect("read the state");
    let (_, json) = text.split_once('\n').expect("a line before the state");
    let state: serde_json::Value = serde_json::from_str(json).expect("a state");
    state["key"].as_str().expect("a key").parse().expect("a key")
}

/// Requests the coordinator's map without the library.
#[track_caller]
pub(crate) fn fetch_map(coordinator: SocketAddr) -> Map {
    let mut raw = Raw::welcomed(coordinator, ClientId(9), ShardId(0));
    let mut question = Vec::new();
    Question::Map.write(&mut question);
    raw.send(&question);
    let frame = raw.frame();
    assert_eq!(frame.opcode, opcode::MAP_RESPONSE);
    read_map_response(&frame.body).expect("a map")
}

/// Returns a server's map, if it has one.
#[track_caller]
pub(crate) fn map_of_server(clients: SocketAddr) -> Option<Map> {
    let mut raw = Raw::welcomed(clients, ClientId(9), ShardId(0));
    let mut question = Vec::new();
    Question::Map.write(&mut question);
    raw.send(&question);
    let frame = raw.frame();
    if frame.opcode == opcode::MAP_RESPONSE {
        return Some(read_map_response(&frame.body).expect("a map"));
    }
    let refusal = Refusal::read(&frame.body).expect("a refusal");
    assert_eq!(refusal.status, Status::Unavailable, "{refusal:?}");
    None
}

/// Returns the clients addresses of the servers in a map.
pub(crate) fn addresses(map: &Map) -> Vec<SocketAddr> {
    map.servers.iter().map(|server| server.clients.expect("started")).collect()
}

/// Waits until every server has the coordinator's newest map, and returns it.
#[track_caller]
pub(crate) fn await_map_everywhere(cluster: &Cluster) -> Map {
    let coordinator = SocketAddr::from(([127, 0, 0, 1], cluster.ready.clients_port));
    wait_for("every server to have the newest map", TIMEOUT, || {
        let newest = fetch_map(coordinator);
        let has_it = |address| {
            map_of_server(address)
                .is_some_and(|map| map.views == newest.views && map.servers == newest.servers)
        };
        addresses(&newest).into_iter().all(has_it).then_some(newest)
    })
}

/// Returns a member whose incarnation belongs to no process of the cluster.
pub(crate) fn stranger(server: u16) -> Member {
    Member { server: ServerId(server), incarnation: kv_protocol::Incarnation(0xbad) }
}
