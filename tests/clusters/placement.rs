//! Tests of the placement of keys, as the dumps show it.

use std::collections::HashMap;

use crate::common::Cluster;
use crate::common::cluster::Dumps;
use crate::common::load::put_all;
use kv_protocol::client_message::{Operation, Status};
use kv_protocol::ids::{ClientId, ShardId};

/// Keys with their MD5, their group (of 3) and their shard (of 2). Computed independently with
/// `python3 -c 'import hashlib; h=hashlib.md5(b"a").hexdigest(); n=int(h,16); print(h, n%3, n//3%2)'`.
const VECTORS: [(&str, &str, usize, u16); 5] = [
    ("a", "0cc175b9c0f1b6a831c399e269772661", 1, 0),
    ("abc", "900150983cd24fb0d6963f7d28e17f72", 1, 1),
    ("message digest", "f96b697d7cb7938d525a2f31aaf161d0", 2, 0),
    ("key", "3c6e0b8a9c15224a8228b9a98ca1531d", 2, 1),
    ("Zürich", "103a821a3a6a0b923c9f74a39662bb51", 2, 1),
];

fn owner(dumps: &Dumps, key: &str) -> usize {
    let holds = |id: &usize| dumps.primary[*id].entries.iter().any(|e| e.key == key.as_bytes());
    let owners: Vec<usize> = (0..dumps.primary.len()).filter(holds).collect();
    assert_eq!(owners.len(), 1, "primary tables that hold {key:?}");
    owners[0]
}

#[test]
fn known_keys_are_in_the_dumps_of_the_expected_servers_under_their_known_md5() {
    let cluster = Cluster::builder().shards(2).start();
    let pairs: Vec<_> = VECTORS.iter().map(|v| (v.0.as_bytes().to_vec(), b"x".to_vec())).collect();
    put_all(&mut cluster.open(), &pairs);
    let (dumps, dir) = cluster.stop_and_keep();
    dumps.assert_copies_agree();
    for (key, md5, group, _) in VECTORS {
        assert_eq!(owner(&dumps, key), group, "{key:?}");
        let file = dir.path().join(format!("server_{group}.primary"));
        let text = std::fs::read_to_string(file).expect("read a dump");
        let escaped = kv_protocol::escape::ascii(key.as_bytes());
        let start = format!("{md5} \"{escaped}\" \"x\" ");
        assert!(text.lines().any(|line| line.starts_with(&start)), "no line {start}…\n{text}");
    }
}

#[test]
fn a_known_key_is_served_by_the_expected_shard_alone() {
    let cluster = Cluster::builder().shards(2).start();
    for (key, _, group, shard) in VECTORS {
        let server = cluster.server(group).clients.expect("started").parse().expect("an address");
        for asked in 0..2 {
            let mut raw = crate::common::raw::Raw::welcomed(server, ClientId(1), ShardId(asked));
            let response = raw.ask(key.as_bytes(), Operation::Get);
            let expected = if asked == shard { Status::NotFound } else { Status::WrongView };
            assert_eq!(response.status, expected, "{key:?} at shard {asked} of server {group}");
        }
    }
}

#[test]
fn a_key_is_on_the_same_server_in_every_cluster_of_the_same_size() {
    let keys: Vec<String> = (0..500).map(|n| format!("key number {n}")).collect();
    let places: Vec<HashMap<String, usize>> = [1, 2]
        .map(|shards| {
            let cluster = Cluster::builder().shards(shards).start();
            let pairs: Vec<_> = keys.iter().map(|k| (k.clone().into_bytes(), vec![0])).collect();
            put_all(&mut cluster.open(), &pairs);
            let dumps = cluster.stop();
            keys.iter().map(|key| (key.clone(), owner(&dumps, key))).collect()
        })
        .into();
    assert_eq!(places[0], places[1]);
}
