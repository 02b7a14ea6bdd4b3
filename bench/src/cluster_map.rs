//! A cluster's map, and the handshake with one of its shards.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kv_protocol::client_message::{Hello, Question, Refusal, Welcome, opcode, read_map_response};
use kv_protocol::frame::FrameBuffer;
use kv_protocol::ids::{ClientId, ClusterId, ShardId};
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
