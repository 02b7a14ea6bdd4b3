//! The file that tells the C program what to do: keys, values, and the frames that the library sends for
//! them, with the client's id, request ids and write numbers left to be filled in. Its form is in
//! `benches/c/client_cost.h`.

use kv_protocol::client_message::{Condition, Hello, Operation, Request, WriteHeader};
use kv_protocol::ids::{ClientId, RequestId, RequestSeq, ShardId};
use kv_protocol::map::Map;
use kv_protocol::placement::Digest;

/// How many keys, in any order, are read and written.
const KEYS: u32 = 10_000;
const VALUE_BYTES: usize = 64;
/// Looked for in a hello to find where its client id is.
const MARK: u128 = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;

/// The plan for the cluster of this map, whose groups have one shard.
pub(crate) fn plan(map: &Map) -> Vec<u8> {
    let mut hello = Vec::new();
    Hello { cluster: map.cluster, client: ClientId(MARK), shard: ShardId(0) }.write(&mut hello);
    let is_mark = |bytes: &[u8]| bytes == MARK.to_le_bytes() || bytes == MARK.to_be_bytes();
    let client_at = hello.windows(16).position(is_mark).expect("the hello has the client's id");

    let mut entries = Vec::new();
    let (mut key_bytes, mut get_bytes, mut put_bytes) = (0, 0, 0);
    for number in 0..KEYS {
        let key = format!("{number:016}").into_bytes();
        let value: Vec<u8> = format!("{number:08}").bytes().cycle().take(VALUE_BYTES).collect();
        let digest = Digest::of(&key);
        let (group, _) = map.placement().locate(digest);
        let view = map.views[usize::from(group.0)];
        let primary = view.primary.expect("every group is served");
        let header = WriteHeader {
            seq: RequestSeq(1),
            first_incomplete: RequestSeq(1),
            condition: Condition::Always,
        };
        let frame = |operation| {
            let mut frame = Vec::new();
            let (id, view, key) = (RequestId(0), view.version, &key[..]);
            Request { id, view, digest, key, operation }.write(&mut frame);
            frame
        };
        let (get, put) = (frame(Operation::Get), frame(Operation::Put(header, &value)));
        (key_bytes, get_bytes, put_bytes) = (key.len(), get.len(), put.len());
        entries.extend(u32::from(primary.server.0).to_ne_bytes());
        for part in [key, value, get, put] {
            entries.extend(part);
        }
    }

    let ports = map
        .servers
        .iter()
        .map(|server| u32::from(server.clients.expect("every server serves").port()));
    let ports: Vec<u32> = ports.collect();
    let size = |bytes: usize| u32::try_from(bytes).expect("short");
    let head = [
        size(ports.len()),
        KEYS,
        size(key_bytes),
        size(VALUE_BYTES),
        size(hello.len()),
        size(client_at),
        size(get_bytes),
        size(put_bytes),
    ];
    let mut plan: Vec<u8> = head.iter().chain(&ports).flat_map(|n| n.to_ne_bytes()).collect();
    plan.extend(hello);
    plan.extend(entries);
    plan
}
