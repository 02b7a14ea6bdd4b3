//! The input file of the C program: keys, values, and the frames that the library sends for them. The C program fills
//! in the client id, the request ids and the write numbers. `benches/c/client_cost.h` describes the format.

use kv_protocol::client_message::{Condition, Hello, Operation, Request, WriteHeader};
use kv_protocol::ids::{ClientId, RequestId, RequestSeq, ShardId};
use kv_protocol::map::Map;
use kv_protocol::placement::Digest;

/// The number of keys. They are few enough to stay in the processor's caches, because the benchmark measures the
/// client.
pub(crate) const KEYS: u32 = 1_200;
const VALUE_BYTES: usize = 64;
/// A client id whose bytes do not occur elsewhere in a hello. A search for it finds the offset of the client id.
const MARK: u128 = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;

/// Returns the plan for the cluster of this map. Its groups must have one shard each, and a primary.
pub(crate) fn plan(map: &Map) -> Vec<u8> {
    let mut hello = Vec::new();
    Hello::new(map.cluster, ClientId(MARK), ShardId(0)).write(&mut hello);
    let is_mark = |bytes: &[u8]| bytes == MARK.to_le_bytes() || bytes == MARK.to_be_bytes();
    let client_at = hello.windows(16).position(is_mark).expect("the hello has the client's id");

    let keys = (0..KEYS).map(|number| {
        let key = format!("{number:016}").into_bytes();
        let digest = Digest::of(&key);
        let view = map.views[usize::from(map.placement().locate_digested(digest, &key).0.0)];
        let primary = view.primary.expect("every group is served");
        (primary.server, view.version, digest, key)
    });
    let mut keys: Vec<_> = keys.collect();
    keys.sort();
    let of_first = keys.iter().filter(|(server, ..)| server.0 == 0).count();

    let (mut servers, mut entries, mut gets, mut puts) = (vec![], vec![], vec![], vec![]);
    for (number, (server, view, digest, key)) in keys.iter().enumerate() {
        let value: Vec<u8> = format!("{number:08}").bytes().cycle().take(VALUE_BYTES).collect();
        let header = WriteHeader {
            seq: RequestSeq(1),
            first_incomplete: RequestSeq(1),
            begun: Default::default(),
            condition: Condition::Always,
        };
        let (id, view, digest) = (RequestId(0), *view, *digest);
        let (get, put) = (Operation::Get, Operation::Put(header, &value));
        Request { id, view, digest, key, operation: get }.write(&mut gets);
        Request { id, view, digest, key, operation: put }.write(&mut puts);
        servers.push(u32::from(server.0));
        entries.extend(key);
        entries.extend(value);
    }

    let ports = map.servers.iter();
    let ports: Vec<u32> =
        ports.map(|server| server.clients.expect("every server serves").port().into()).collect();
    let size = |bytes: usize| u32::try_from(bytes).expect("short");
    let head = [
        size(ports.len()),
        KEYS,
        size(of_first),
        size(keys[0].3.len()),
        size(VALUE_BYTES),
        size(hello.len()),
        size(client_at),
        size(gets.len() / keys.len()),
        size(puts.len() / keys.len()),
    ];
    let numbers = head.iter().chain(&ports).chain(&servers);
    let mut plan: Vec<u8> = numbers.flat_map(|number| number.to_ne_bytes()).collect();
    for part in [entries, gets, puts, hello] {
        plan.extend(part);
    }
    plan
}
