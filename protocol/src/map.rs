//! The map: the holders of each group and their addresses. Clients route requests by it. The coordinator creates it. It
//! also sends it to the servers, which respond with it to clients, even while the coordinator is unreachable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::codec::{Reader, Writer, length_u16};
use crate::error::DecodeError;
use crate::ids::{BootId, ClusterId, Epoch, Incarnation, MapRevision, ServerId};
use crate::limits::{MAX_ANCESTORS, MAX_SERVERS, MAX_SHARDS};
use crate::placement::Placement;
use crate::view::{View, read_view, write_view};

/// The state of a server, according to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// The process was spawned, but has not reported yet.
    Starting,
    /// The server reports to the coordinator.
    Up,
    /// The server no longer reports, or its process is known to be dead.
    Down,
}

/// One server in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapServer {
    /// Its place in the ring.
    pub id: ServerId,
    /// Its process; zero while starting.
    pub incarnation: Incarnation,
    /// Its state, according to the coordinator.
    pub state: ServerState,
    /// Its address for clients; `None` while starting.
    pub clients: Option<SocketAddr>,
}

/// The configuration of the cluster that clients need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The cluster.
    pub cluster: ClusterId,
    /// The ancestor clusters, the latest first; at most [`MAX_ANCESTORS`]. This cluster has their data and
    /// sessions, so it accepts their clients.
    pub ancestors: Vec<ClusterId>,
    /// The coordinator's epoch when it created this map.
    pub epoch: Epoch,
    /// The number of the map within that epoch.
    pub revision: MapRevision,
    /// The number of shards of every group.
    pub shards: u16,
    /// All servers, by place in the ring.
    pub servers: Vec<MapServer>,
    /// The views of all groups, by group.
    pub views: Vec<View>,
    /// True if the cluster has hash tags ([`placed_bytes`](crate::placement::placed_bytes)).
    pub hash_tags: bool,
}

/// The flag of a cluster with hash tags.
const HASH_TAGS: u8 = 1;

impl Map {
    /// Returns the placement of keys in the cluster.
    pub fn placement(&self) -> Placement {
        let servers = length_u16(self.servers.len(), "ring");
        Placement::new(servers, self.shards).with_hash_tags(self.hash_tags)
    }

    /// Returns whether this map is newer than `other`, a map of the same cluster.
    pub fn is_newer_than(&self, other: &Map) -> bool {
        (self.epoch.number, self.revision) > (other.epoch.number, other.revision)
    }

    /// Appends the map.
    pub fn write(&self, output: &mut Vec<u8>) {
        output.put_u128(self.cluster.0);
        output.put_u16(length_u16(self.ancestors.len(), "ancestors"));
        for ancestor in &self.ancestors {
            output.put_u128(ancestor.0);
        }
        write_epoch(output, self.epoch);
        output.put_u64(self.revision.0);
        output.put_u16(length_u16(self.servers.len(), "ring"));
        output.put_u16(self.shards);
        for server in &self.servers {
            output.put_u16(server.id.0);
            output.put_u64(server.incarnation.0);
            output.put_u8(match server.state {
                ServerState::Starting => 0,
                ServerState::Up => 1,
                ServerState::Down => 2,
            });
            write_address(output, server.clients);
        }
        for view in &self.views {
            write_view(output, view);
        }
        // A reader without support for hash tags rejects a map with bytes after the views, so it places no key wrongly.
        if self.hash_tags {
            output.put_u8(HASH_TAGS);
        }
    }

    /// Reads a map that fills the whole body. Checks its counts and the order of its servers and views.
    pub(crate) fn read_all(body: &[u8]) -> Result<Map, DecodeError> {
        let mut reader = Reader::new(body);
        let map = Map::read(&mut reader)?;
        reader.finish()?;
        Ok(map)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Map, DecodeError> {
        let cluster = ClusterId(reader.u128("cluster id")?);
        let ancestors = read_ancestors(reader)?;
        let epoch = read_epoch(reader)?;
        let revision = MapRevision(reader.u64("map revision")?);
        let count = bounded(reader.u16("server count")?, MAX_SERVERS, "server count")?;
        let shards = bounded(reader.u16("shard count")?, MAX_SHARDS, "shard count")?;
        let mut servers = Vec::new();
        for n in 0..count {
            servers.push(read_server(reader, ServerId(n))?);
        }
        let mut views = Vec::new();
        for n in 0..count {
            let view = read_view(reader)?;
            if view.group.0 != n {
                return Err(DecodeError::BadValue {
                    field: "group id",
                    value: view.group.0.into(),
                });
            }
            views.push(view);
        }
        let hash_tags = read_flags(reader)?;
        Ok(Map { cluster, ancestors, epoch, revision, shards, servers, views, hash_tags })
    }
}

/// Reads the flags at the end of a map, which are absent if none is set, and returns whether the cluster has hash tags.
fn read_flags(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    if reader.left() == 0 {
        return Ok(false);
    }
    match reader.u8("map flags")? {
        HASH_TAGS => Ok(true),
        other => Err(DecodeError::BadValue { field: "map flags", value: other.into() }),
    }
}

fn read_ancestors(reader: &mut Reader<'_>) -> Result<Vec<ClusterId>, DecodeError> {
    let count = reader.u16("ancestor count")?;
    if usize::from(count) > MAX_ANCESTORS {
        return Err(DecodeError::BadValue { field: "ancestor count", value: count.into() });
    }
    let mut ancestors = Vec::new();
    for _ in 0..count {
        ancestors.push(ClusterId(reader.u128("ancestor")?));
    }
    Ok(ancestors)
}

fn read_server(reader: &mut Reader<'_>, expected: ServerId) -> Result<MapServer, DecodeError> {
    let id = ServerId(reader.u16("server id")?);
    if id != expected {
        return Err(DecodeError::BadValue { field: "server id", value: id.0.into() });
    }
    let incarnation = Incarnation(reader.u64("incarnation")?);
    let state = match reader.u8("server state")? {
        0 => ServerState::Starting,
        1 => ServerState::Up,
        2 => ServerState::Down,
        other => return Err(DecodeError::BadValue { field: "server state", value: other.into() }),
    };
    Ok(MapServer { id, incarnation, state, clients: read_address(reader)? })
}

/// Appends an epoch.
pub fn write_epoch(output: &mut Vec<u8>, epoch: Epoch) {
    output.put_u64(epoch.number);
    output.put_u64(epoch.boot.0);
}

/// Reads an epoch.
pub fn read_epoch(reader: &mut Reader<'_>) -> Result<Epoch, DecodeError> {
    Ok(Epoch { number: reader.u64("epoch")?, boot: BootId(reader.u64("boot id")?) })
}

/// Appends an address: family (0 none, 4, 6), 16 bytes (an IPv4 address in the first four), port.
pub fn write_address(output: &mut Vec<u8>, address: Option<SocketAddr>) {
    let mut octets = [0; 16];
    let (family, port) = match address {
        None => (0, 0),
        Some(SocketAddr::V4(v4)) => {
            octets[..4].copy_from_slice(&v4.ip().octets());
            (4, v4.port())
        }
        Some(SocketAddr::V6(v6)) => {
            octets = v6.ip().octets();
            (6, v6.port())
        }
    };
    output.put_u8(family);
    output.put_bytes(&octets);
    output.put_u16(port);
}

/// Reads an address; `None` for the family 0.
pub fn read_address(reader: &mut Reader<'_>) -> Result<Option<SocketAddr>, DecodeError> {
    let family = reader.u8("address family")?;
    let octets: [u8; 16] = reader.array("address")?;
    let port = reader.u16("port")?;
    let ip = match family {
        0 => return Ok(None),
        4 => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
        6 => IpAddr::V6(Ipv6Addr::from(octets)),
        other => {
            return Err(DecodeError::BadValue { field: "address family", value: other.into() });
        }
    };
    Ok(Some(SocketAddr::new(ip, port)))
}

/// Rejects zero and anything above `most`.
pub(crate) fn bounded(value: u16, most: u16, field: &'static str) -> Result<u16, DecodeError> {
    if value == 0 || value > most {
        return Err(DecodeError::BadValue { field, value: value.into() });
    }
    Ok(value)
}
