//! The map while the coordinator is down: every server has the newest one and sends it to clients. No server accepts a
//! map from a program other than its coordinator.

use crate::common::coordinator::{self, CLUSTER, Lone};
use crate::common::ports::{Ports, addresses, await_map_everywhere, map_of_server as ask};
use crate::common::process::Signal;
use crate::common::programs::CLIENT;
use crate::common::{Cluster, TIMEOUT, process, programs, wait_until};
use kv_client::{Client, OpOptions, Options};
use kv_protocol::client_message::{Question, Refusal, Status};
use kv_protocol::control_message::{opcode as control_opcode, write_cluster_map};
use kv_protocol::frame::{Checksum, write_frame};
use kv_protocol::ids::{BootId, ClusterId, Epoch};
use kv_protocol::map::Map;
use kv_protocol::status::{ClusterState, GroupCondition};

fn kill_coordinator(cluster: &Cluster) {
    process::signal(cluster.coord_pid(), Signal::KILL);
    wait_until("the coordinator's end", TIMEOUT, || !process::is_alive(cluster.coord_pid()));
}

/// Writes and reads a key of every group and shard through this client.
#[track_caller]
fn work(cluster: &Cluster, client: &mut Client, value: &[u8]) {
    let options = OpOptions::default();
    for group in 0..cluster.placement().servers() {
        for shard in 0..cluster.placement().shards() {
            let key = cluster.key_at(group, shard, "k");
            assert_eq!(client.put(&key, value, &options).expect("a put").copies, 2);
            assert_eq!(client.get(&key, &options).expect("a get").bytes, value);
        }
    }
}

#[test]
fn without_a_coordinator_old_clients_continue_and_new_ones_get_the_map_from_any_server() {
    let cluster = Cluster::builder().shards(2).start();
    let mut before = cluster.open();
    work(&cluster, &mut before, b"before");
    let map = await_map_everywhere(&cluster);
    kill_coordinator(&cluster);
    work(&cluster, &mut before, b"after");
    for address in addresses(&map) {
        let mut client = Client::open(&address.to_string(), Options::default()).expect("open");
        work(&cluster, &mut client, b"by a server's map");
        // A dead coordinator at the start of the list only delays the first call.
        let both = format!("{},{address}", cluster.endpoint());
        let mut client = Client::open(&both, Options::default()).expect("open");
        work(&cluster, &mut client, b"by a server's map, second in the list");
        let port = address.port().to_string();
        let ended = programs::run(
            CLIENT,
            ["-h", "127.0.0.1", "-p", &port],
            "P \"a\" \"1\"\nG \"a\"\n",
            TIMEOUT,
        );
        assert!(ended.with_code(0).stdout.contains("value[\"a\"] == \"1\""));
    }
    work(&cluster, &mut before, b"at the end");
}

#[test]
fn every_server_receives_the_map_of_a_recovery_and_serves_it_without_the_coordinator() {
    let cluster = Cluster::builder().servers(4).start();
    let mut client = cluster.open();
    work(&cluster, &mut client, b"before");
    let first = await_map_everywhere(&cluster);
    let pid = cluster.server_pid(1);
    process::signal(pid, Signal::KILL);
    wait_until("the recovery to be over", TIMEOUT, || {
        let status = cluster.status();
        status.state == ClusterState::Serving
            && status.servers[1].pid != Some(pid)
            && status.groups.iter().all(|group| {
                group.condition == GroupCondition::Whole
                    && group.primary.map(|member| member.server.0) == Some(group.group.0)
            })
    });
    let second = await_map_everywhere(&cluster);
    assert!(second.is_newer_than(&first));
    assert_ne!(second.servers[1].incarnation, first.servers[1].incarnation);
    kill_coordinator(&cluster);
    // The client still has the map of its last operation.
    work(&cluster, &mut client, b"after");
    // The replacement of the dead process also serves the map.
    let address = second.servers[1].clients.expect("started");
    let mut client = Client::open(&address.to_string(), Options::default()).expect("open");
    work(&cluster, &mut client, b"new");
}

#[test]
fn a_forged_stale_or_malformed_map_is_rejected_and_counted_and_the_server_keeps_serving() {
    let server = Lone::start(&[]);
    let mut link = server.admit();
    let clients = link.clients();
    assert_eq!(ask(clients), None, "a map was served before any was sent");
    let written = |map: &Map| {
        let mut bytes = Vec::new();
        write_cluster_map(&mut bytes, map);
        bytes
    };
    let good = coordinator::map(7, 3);
    link.raw.send(&written(&good));
    wait_until("the map to be accepted", TIMEOUT, || ask(clients).as_ref() == Some(&good));

    let wrong = |change: fn(&mut Map)| {
        let mut map = coordinator::map(8, 9);
        change(&mut map);
        written(&map)
    };
    let frame = |opcode, body: &[u8]| {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Checksum::Crc32c, opcode, |to| to.extend_from_slice(body));
        bytes
    };
    let hostile = [
        wrong(|map| map.cluster = ClusterId(CLUSTER.0 + 1)),
        wrong(|map| map.shards = 2),
        wrong(|map| map.epoch.number -= 1),
        wrong(|map| map.epoch.number += 1),
        wrong(|map| map.epoch = Epoch { boot: BootId(1), ..map.epoch }),
        wrong(|map| map.views[0].version.0 = u64::MAX),
        wrong(|map| map.revision.0 = 6),
        frame(control_opcode::CLUSTER_MAP, b""),
        frame(control_opcode::CLUSTER_MAP, &[0xff; 512]),
        frame(control_opcode::SHUTDOWN, &[0; 8]),
        frame(0xff, b"?"),
    ];
    for bytes in &hostile {
        link.raw.send(bytes);
    }
    let refused = hostile.len() as u64;
    wait_until("all of them to be counted", TIMEOUT, || link.heartbeat().refused == refused);
    assert_eq!(ask(clients).as_ref(), Some(&good), "a rejected map was kept");

    // A damaged frame only ends the link, and the server reconnects.
    let mut broken = written(&coordinator::map(9, 9));
    let last = broken.len() - 1;
    broken[last] ^= 1;
    link.raw.send(&broken);
    let mut link = server.admit();
    assert_eq!(ask(clients).as_ref(), Some(&good));
    let newer = coordinator::map(9, 4);
    link.raw.send(&written(&newer));
    wait_until("the newer map to be accepted", TIMEOUT, || ask(clients).as_ref() == Some(&newer));
    // An overlong frame ends the link at once: the server does not wait for the announced bytes.
    link.raw.send(&[0xff, 0xff, 0xff, 0x7f, 1, control_opcode::CLUSTER_MAP, 0, 0]);
    server.admit().heartbeat();
}

#[test]
fn only_the_coordinator_serves_the_status() {
    let cluster = Cluster::start();
    let ports = Ports::of(&cluster);
    let mut raw = ports.welcomed(9);
    let mut question = Vec::new();
    Question::Status.write(&mut question);
    raw.send(&question);
    let frame = raw.frame();
    let refusal = Refusal::read(&frame.body).expect("a refusal");
    assert_eq!(refusal.status, Status::Unsupported);
    assert!(refusal.reason.contains("MAP"), "{}", refusal.reason);
}
