//! What a cluster says of itself: its map, and the welcome of one of its shards.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kv_protocol::client_message::{Hello, Question, Refusal, Welcome, opcode, read_map_answer};
use kv_protocol::frame::FrameBuffer;
use kv_protocol::ids::{ClientId, ClusterId, ShardId};
use kv_protocol::map::Map;

use crate::wire::kv::RULES;

/// How long a connection, and each answer before the load, may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long after a map without a primary the next one is asked for.
const PAUSE: Duration = Duration::from_millis(10);

/// Connects within [`PATIENCE`].
pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {address}; does the server run there?"))
}

/// Asks a coordinator, or a server, for the map, again while a group has no primary: one that starts or
/// recovers will have. After [`PATIENCE`] the map is taken as it is.
pub(crate) fn fetch(address: SocketAddr) -> anyhow::Result<Map> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let map = fetch_once(address)?;
        let is_complete = map.views.iter().all(|view| view.primary.is_some());
        if is_complete || Instant::now() > deadline {
            return Ok(map);
        }
        std::thread::sleep(PAUSE);
    }
}

fn fetch_once(address: SocketAddr) -> anyhow::Result<Map> {
    let asked = || format!("ask {address} for the cluster's map");
    let stream = connect(address)?;
    let mut bytes = Vec::new();
    hello(ClientId(0), ShardId(0), &mut bytes);
    Question::Map.write(&mut bytes);
    let mut input = FrameBuffer::new(RULES);
    exchange(&stream, &bytes, &mut input, opcode::WELCOME).with_context(asked)?;
    let body = exchange(&stream, &[], &mut input, opcode::MAP_ANSWER).with_context(asked)?;
    read_map_answer(&body).with_context(asked)
}

/// A connection to one shard of a server, and its welcome.
pub(crate) fn join(
    address: SocketAddr,
    client: ClientId,
    shard: ShardId,
) -> anyhow::Result<(TcpStream, Welcome)> {
    let stream = connect(address)?;
    let mut bytes = Vec::new();
    hello(client, shard, &mut bytes);
    let mut input = FrameBuffer::new(RULES);
    let greeted = || format!("begin a conversation with the server at {address}");
    let body = exchange(&stream, &bytes, &mut input, opcode::WELCOME).with_context(greeted)?;
    Ok((stream, Welcome::read(&body).with_context(greeted)?))
}

fn hello(client: ClientId, shard: ShardId, into: &mut Vec<u8>) {
    Hello { cluster: ClusterId(0), client, shard }.write(into);
}

/// Sends, and waits for a frame.
fn exchange(
    mut stream: &TcpStream,
    bytes: &[u8],
    input: &mut FrameBuffer,
    expected: u8,
) -> anyhow::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut scratch = [0; 16 << 10];
    loop {
        if let Some(frame) = input.next_frame()? {
            if frame.opcode == opcode::ERROR {
                let refusal = Refusal::read(frame.body)?;
                bail!("it answers {:?}: {}", refusal.status, refusal.reason);
            }
            if frame.opcode != expected {
                bail!("it answers with opcode {}; is it a port for clients?", frame.opcode);
            }
            return Ok(frame.body.to_vec());
        }
        match stream.read(&mut scratch)? {
            0 => bail!("it has closed the connection; is it a port for clients?"),
            count => input.extend(&scratch[..count]),
        }
    }
}
