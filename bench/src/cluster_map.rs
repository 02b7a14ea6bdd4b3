//! A cluster's map, and the handshake with one of its shards.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kv_protocol::client_message::{Hello, Question, Refusal, Welcome, opcode, read_map_response};
use kv_protocol::frame::FrameBuffer;
use kv_protocol::ids::{ClientId, ClusterId, GroupId, ServerId, ShardId};
use kv_protocol::map::Map;

use crate::stream::{Address, Stream, TIMEOUT};
use crate::wire::kv::RULES;

/// The back-off before the map is requested again if a group has no primary.
const PAUSE: Duration = Duration::from_millis(10);

/// Requests the map from a coordinator or a server. Retries while a group has no primary, because a cluster that is
/// starting or recovering soon has one. After [`TIMEOUT`], returns the map even if a group has no primary.
pub(crate) fn fetch(address: &Address) -> anyhow::Result<Map> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let map = fetch_once(address)?;
        let is_complete = map.views.iter().all(|view| view.primary.is_some());
        if is_complete || Instant::now() > deadline {
            return Ok(map);
        }
        std::thread::sleep(PAUSE);
    }
}

fn fetch_once(address: &Address) -> anyhow::Result<Map> {
    let asked = || format!("request the cluster's map from {address}");
    let stream = address.connect()?;
    let mut bytes = Vec::new();
    hello(ClientId(0), ShardId(0), &mut bytes);
    Question::Map.write(&mut bytes);
    let mut input = FrameBuffer::new(RULES);
    exchange(&stream, &bytes, &mut input, opcode::WELCOME).with_context(asked)?;
    let body = exchange(&stream, &[], &mut input, opcode::MAP_RESPONSE).with_context(asked)?;
    read_map_response(&body).with_context(asked)
}

/// Returns the server that is the primary of a group.
pub(crate) fn primary(map: &Map, group: usize) -> anyhow::Result<ServerId> {
    let view = map.views.get(group).with_context(|| format!("the map has no group {group}"))?;
    let primary = view.primary.with_context(|| format!("group {group} has no primary now"))?;
    Ok(primary.server)
}

/// Returns the address of a server for clients.
pub(crate) fn address(map: &Map, server: ServerId) -> anyhow::Result<SocketAddr> {
    let found = map.servers.get(usize::from(server.0)).and_then(|server| server.clients);
    found.with_context(|| format!("server {server} has not started"))
}

/// Returns the list of keys and the server of connection number `at` over RESP. Without `is_local`, there is one list,
/// and the connections are assigned to the servers in turn. With it, there is a list for each group, or only for
/// `group`, and the server is the primary of the group.
pub(crate) fn resp_place(
    map: &Map,
    at: usize,
    group: Option<GroupId>,
    is_local: bool,
) -> anyhow::Result<(usize, ServerId)> {
    let turn = at % map.servers.len();
    match (is_local, group) {
        (false, _) => Ok((0, map.servers[turn].id)),
        (true, None) => Ok((turn, primary(map, turn)?)),
        (true, Some(group)) => Ok((0, primary(map, group.0.into())?)),
    }
}

/// Returns the number of groups that have a single copy in one of two maps of a cluster, or other views.
pub(crate) fn changed_groups(before: &Map, after: &Map) -> usize {
    let pairs = before.views.iter().zip(&after.views);
    pairs.filter(|(before, after)| before != after || before.copies() < 2).count()
}

/// Connects to one shard of a server, and returns the connection and the shard's WELCOME.
pub(crate) fn join(
    address: &Address,
    client: ClientId,
    shard: ShardId,
) -> anyhow::Result<(Stream, Welcome)> {
    let stream = address.connect()?;
    let mut bytes = Vec::new();
    hello(client, shard, &mut bytes);
    let mut input = FrameBuffer::new(RULES);
    let handshake = || format!("complete the handshake with the server at {address}");
    let body = exchange(&stream, &bytes, &mut input, opcode::WELCOME).with_context(handshake)?;
    Ok((stream, Welcome::read(&body).with_context(handshake)?))
}

fn hello(client: ClientId, shard: ShardId, into: &mut Vec<u8>) {
    Hello::new(ClusterId(0), client, shard).write(into);
}

/// Sends `bytes`, waits for the next frame, and returns its body. Fails if the frame does not have the expected opcode.
fn exchange(
    stream: &Stream,
    bytes: &[u8],
    input: &mut FrameBuffer,
    expected: u8,
) -> anyhow::Result<Vec<u8>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(bytes)?;
    let mut scratch = [0; 16 << 10];
    loop {
        if let Some(frame) = input.next_frame()? {
            if frame.opcode == opcode::ERROR {
                let refusal = Refusal::read(frame.body)?;
                bail!("the response is an error ({}): {}", refusal.status, refusal.reason);
            }
            if frame.opcode != expected {
                bail!(
                    "unexpected opcode {} in the response; check that the port is for clients",
                    frame.opcode
                );
            }
            return Ok(frame.body.to_vec());
        }
        match stream.read(&mut scratch)? {
            0 => bail!("the server closed the connection; check that the port is for clients"),
            count => input.extend(&scratch[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::ids::{Epoch, Incarnation, MapRevision, Member, ViewVersion};
    use kv_protocol::map::{MapServer, ServerState};
    use kv_protocol::view::{Peer, View};

    fn member(server: u16) -> Member {
        Member { server: ServerId(server), incarnation: Incarnation(1) }
    }

    fn view(group: u16, version: u64, peer: Peer) -> View {
        let primary = Some(member(group));
        let version = ViewVersion(version);
        View { group: GroupId(group), version, primary, peer, handover: false }
    }

    fn server(number: u16) -> MapServer {
        let Member { server: id, incarnation } = member(number);
        MapServer { id, incarnation, state: ServerState::Up, clients: None }
    }

    fn map(views: Vec<View>) -> Map {
        Map {
            cluster: ClusterId(1),
            ancestors: Vec::new(),
            epoch: Epoch::default(),
            revision: MapRevision(1),
            shards: 1,
            servers: (0..3).map(server).collect(),
            views,
            hash_tags: false,
        }
    }

    #[test]
    fn a_group_with_another_view_or_a_single_copy_counts_as_changed() {
        let whole = |version| view(0, version, Peer::Secondary(member(1)));
        let alone = view(1, 1, Peer::None);
        let copied = view(1, 1, Peer::Candidate(member(2)));
        let count = |before: &[View], after: &[View]| {
            changed_groups(&map(before.to_vec()), &map(after.to_vec()))
        };
        assert_eq!(count(&[whole(1)], &[whole(1)]), 0);
        assert_eq!(count(&[whole(1)], &[whole(2)]), 1);
        assert_eq!(count(&[whole(1), alone], &[whole(1), alone]), 1);
        assert_eq!(count(&[whole(1), copied], &[whole(2), copied]), 2);
    }

    #[test]
    fn local_keys_have_their_primary_at_the_server_of_their_connection() {
        let views = (0..3).map(|group| view(group, 1, Peer::None));
        let mut map = map(views.collect());
        // The primary of group 2 has moved.
        map.views[2].primary = Some(member(0));
        let places = |group, is_local| {
            let place = |at| resp_place(&map, at, group, is_local).unwrap();
            (0..4).map(place).map(|(list, server)| (list, server.0)).collect::<Vec<_>>()
        };
        assert_eq!(places(None, false), [(0, 0), (0, 1), (0, 2), (0, 0)]);
        assert_eq!(places(None, true), [(0, 0), (1, 1), (2, 0), (0, 0)]);
        assert_eq!(places(Some(GroupId(2)), true), [(0, 0); 4]);
        assert_eq!(places(Some(GroupId(1)), false), [(0, 0), (0, 1), (0, 2), (0, 0)]);
    }
}
