//! The part P13, memory: what an idle connection of either protocol costs a server.

use anyhow::{Context as _, bail};
use kv_protocol::ids::{ClientId, GroupId, SequenceNumber, ShardId};
use kv_protocol::map::Map;

use super::grid::Effort;
use super::process::{allow_descriptors, resident_bytes};
use super::report::{Idle, Measured, RESP};
use super::sides::{Ground, Who};
use crate::cluster_map;
use crate::driver::{Outcome, Request};
use crate::stream::{Address, Stream, TIMEOUT};
use crate::target::Target;
use crate::wire::Wire;
use crate::wire::kv::{Kv, WriteKind};
use crate::wire::resp::Resp;

/// The value that every connection reads.
const VALUE: [u8; 64] = [b'v'; 64];
/// Descriptors of this process that are not idle connections.
const OTHER_DESCRIPTORS: u32 = 200;

/// Returns the number of connections before those whose memory counts. For the first ones, a server allocates memory
/// that it needs only once.
fn first_connections(effort: &Effort) -> u32 {
    effort.idle / 10
}

/// Checks that this process may open all connections.
pub(super) fn check(effort: &Effort) -> anyhow::Result<()> {
    let needed = effort.idle + first_connections(effort) + OTHER_DESCRIPTORS;
    allow_descriptors(needed.into()).context("open idle connections for P13")
}

/// Measures both protocols, each on a freshly started cluster.
pub(super) fn run(
    effort: &Effort,
    ground: &Ground<'_>,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let all = [Who::Kv, Who::Epoll];
    // The quick run only shows that the measurement works.
    for &who in &all[..if effort.is_quick { 1 } else { all.len() }] {
        if !measured.sides.iter().any(|(known, _)| *known == who) {
            measured.sides.push((who, ground.version(who)?));
        }
        for protocol in ["native", RESP] {
            let with = || format!("idle connections of {}, {protocol}", who.name());
            let side = ground.start(who)?;
            let address = Target::parse(&side.url).map_err(anyhow::Error::msg)?.resolve()?;
            let server = Server::new(&address, side.pids[0])?;
            let bytes = match protocol {
                RESP => server.growth(effort, |at| server.connect_resp(at)),
                _ => server.growth(effort, |at| server.connect_native(at)),
            };
            let bytes = bytes.with_context(with)?;
            measured.idle.push(Idle { who, protocol, connections: effort.idle, bytes });
        }
    }
    Ok(())
}

/// The server of group 0, to which all connections are made.
struct Server {
    pid: u32,
    address: Address,
    map: Map,
    /// A key of each group, beginning with group 0.
    keys: Vec<Vec<u8>>,
}

impl Server {
    fn new(coordinator: &Address, pid: u32) -> anyhow::Result<Server> {
        let map = cluster_map::fetch(coordinator)?;
        let address = Address::Tcp(cluster_map::address(&map, cluster_map::primary(&map, 0)?)?);
        let placement = map.placement();
        let key_of = |group: u16| {
            let mut keys = (0u32..).map(|number| format!("idle {number}").into_bytes());
            keys.find(|key| placement.locate(key).0 == GroupId(group)).unwrap_or_default()
        };
        let keys = (0..placement.servers()).map(key_of).collect();
        Ok(Server { pid, address, map, keys })
    }

    /// Opens the connections, and returns the memory of each in bytes.
    fn growth(
        &self,
        effort: &Effort,
        connect: impl Fn(u32) -> anyhow::Result<Stream>,
    ) -> anyhow::Result<f64> {
        let first = first_connections(effort);
        let mut open: Vec<Stream> = (0..first).map(&connect).collect::<anyhow::Result<_>>()?;
        let before = resident_bytes(self.pid)?;
        for at in first..first + effort.idle {
            open.push(connect(at)?);
        }
        let grown = resident_bytes(self.pid)?.saturating_sub(before);
        drop(open);
        #[allow(clippy::cast_precision_loss)] // Exact as a double.
        let grown = grown as f64;
        Ok(grown / f64::from(effort.idle))
    }

    /// Opens connection number `at` of RESP, and reads a key of each group. The first connection writes the keys.
    fn connect_resp(&self, at: u32) -> anyhow::Result<Stream> {
        let stream = self.address.connect()?;
        let mut wire = Resp::new(0);
        for key in &self.keys {
            if at == 0 {
                ask(&stream, &mut wire, key, Some(&VALUE))?;
            }
            ask(&stream, &mut wire, key, None)?;
        }
        Ok(stream)
    }

    /// Opens connection number `at` of the native protocol, and reads a key of group 0. The first connection writes it.
    fn connect_native(&self, at: u32) -> anyhow::Result<Stream> {
        let client = ClientId(u128::from(at) + 1);
        let key = &self.keys[0];
        let shard: ShardId = self.map.placement().locate(key).1;
        let (stream, welcome) = cluster_map::join(&self.address, client, shard)?;
        let start = welcome.starts.iter().find(|start| start.group == GroupId(0));
        let begun = start.map_or(SequenceNumber::ZERO, |start| start.committed);
        let mut wire = Kv::new(self.map.views[0].version, begun, WriteKind::Put);
        if at == 0 {
            ask(&stream, &mut wire, key, Some(&VALUE))?;
        }
        ask(&stream, &mut wire, key, None)?;
        Ok(stream)
    }
}

/// Sends one request and waits for its reply. A read must return [`VALUE`].
fn ask(
    stream: &Stream,
    wire: &mut impl Wire,
    key: &[u8],
    value: Option<&[u8]>,
) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    wire.request(&Request { slot: 0, key, value }, &mut bytes);
    wire.end_batch(&mut bytes);
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&bytes)?;
    let (mut input, mut scratch) = (Vec::new(), [0; 1 << 10]);
    loop {
        if let Some(reply) = wire.reply(&input).map_err(anyhow::Error::msg)? {
            match reply.ended.map(|(_, outcome)| outcome) {
                Some(Outcome::Done(_)) if value.is_some() => return Ok(()),
                Some(Outcome::Done(read)) if read == VALUE => return Ok(()),
                other => bail!(
                    "an unexpected reply to the request for {}: {other:?}",
                    key.escape_ascii()
                ),
            }
        }
        match stream.read(&mut scratch).context("read a reply")? {
            0 => bail!("the server closed an idle connection"),
            count => input.extend_from_slice(&scratch[..count]),
        }
    }
}
