//! Tests of malformed and forged bytes. The sender loses the request or the connection, and no other connection is
//! affected.

use crate::common::ports::{Kind, Ports, VICTIM, stranger};
use crate::common::raw::{Raw, Received, hello, request, write_number};
use crate::common::{Cluster, process};
use kv_client::OpOptions;
use kv_protocol::client_message::{Operation, Request, Status, opcode};
use kv_protocol::control_message::{
    Admission, DumpedBytes, Heartbeat, Order, OrderKind, ServerMessage, Started,
    opcode as control_opcode,
};
use kv_protocol::frame::{Checksum, write_frame};
use kv_protocol::ids::{
    ClientId, ClusterId, ClusterKey, Epoch, Incarnation, OrderId, RequestHash, RequestId,
    SequenceNumber, ServerId, ShardId, Time, ViewVersion,
};
use kv_protocol::key::Seal;
use kv_protocol::limits::{MAX_BATCH_MESSAGES, MAX_ERRORS_IN_A_ROW, MAX_VALUE_BYTES};
use kv_protocol::peer_message::{
    BatchWriter, Beacon, PeerHello, PeerMessage, PeerRefusal, PeerRefusalReason,
    opcode as peer_opcode,
};
use kv_protocol::placement::Digest;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Runs an attack on a new cluster and fails unless the cluster is unaffected.
#[track_caller]
fn survives(attack: impl FnOnce(&Cluster, &Ports)) {
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    attack(&cluster, &Ports::of(&cluster));
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}

/// Returns a key of the victim's own group.
fn key(cluster: &Cluster, prefix: &str) -> Vec<u8> {
    cluster.key_at(u16::try_from(VICTIM).expect("small"), 0, prefix)
}

fn frame(kind: Kind, opcode: u8, body: &[u8]) -> Vec<u8> {
    let checksum = if kind.is_checked() { Checksum::Crc32c } else { Checksum::Absent };
    let mut bytes = Vec::new();
    write_frame(&mut bytes, checksum, opcode, |out| out.extend_from_slice(body));
    bytes
}

#[test]
fn invalid_frame_lengths_close_the_connection_on_every_port_before_memory_is_allocated() {
    survives(|cluster, ports| {
        let before: Vec<u64> = cluster.server_pids().into_iter().map(process::data_bytes).collect();
        for length in [u32::MAX, u32::MAX - 8, 1 << 31, (32 << 20) + 1] {
            for kind in Kind::ALL {
                let mut raw = ports.connect(kind);
                raw.send(&length.to_le_bytes());
                raw.send_if_open(&[1, ports.first_frame(kind)[5], 0, 0]);
                raw.await_close();
            }
            let mut raw = ports.welcomed(1);
            raw.send(&length.to_le_bytes());
            raw.await_close();
        }
        for (pid, before) in cluster.server_pids().into_iter().zip(before) {
            let grown = process::data_bytes(pid).saturating_sub(before);
            assert!(grown < 64 << 20, "{grown} bytes were allocated for lengths alone");
        }
    });
}

#[test]
fn an_empty_key_and_a_value_above_the_limit_are_rejected_and_the_connection_stays_open() {
    survives(|cluster, ports| {
        let key = key(cluster, "limits");
        let mut raw = ports.welcomed(1);
        assert_eq!(raw.ask(b"", Operation::Get).status, Status::Invalid);
        let put = Operation::Put(write_number(1), b"v");
        assert_eq!(raw.ask(b"", put).status, Status::Invalid);
        let long = vec![7; MAX_VALUE_BYTES + 1];
        assert_eq!(raw.ask(&key, Operation::Put(write_number(1), &long)).status, Status::TooBig);
        assert_eq!(raw.ask(&key, Operation::Get).status, Status::NotFound);
        let longest = &long[1..];
        assert_eq!(raw.ask(&key, Operation::Put(write_number(1), longest)).status, Status::Ok);
        assert!(raw.ask(&key, Operation::Get).value == longest, "the value was changed");
    });
}

#[test]
fn memory_grows_with_the_bytes_received_and_not_with_the_length_announced() {
    survives(|cluster, ports| {
        let pid = cluster.server_pid(VICTIM);
        let before = process::data_bytes(pid);
        let key = key(cluster, "announced");
        let value = vec![0; MAX_VALUE_BYTES];
        let whole = request(RequestId(1), &key, Operation::Put(write_number(1), &value));
        let connections: Vec<Raw> = (0..100)
            .map(|client| {
                let mut raw = ports.welcomed(client);
                // All bytes before the value are sent, and one byte of the value.
                raw.send(&whole[..whole.len() - value.len() + 1]);
                raw
            })
            .collect();
        // A response to a later request shows that these bytes were received.
        assert_eq!(ports.welcomed(1_000).ask(&key, Operation::Get).status, Status::NotFound);
        let grown = process::data_bytes(pid).saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes were allocated for 100 bytes of values");
        drop(connections);
    });
}

#[test]
fn a_batch_that_announces_too_many_messages_ends_the_stream_and_writes_continue() {
    survives(|cluster, ports| {
        for count in [0, u16::try_from(MAX_BATCH_MESSAGES).expect("small") + 1, u16::MAX] {
            let batch = frame(Kind::Servers, peer_opcode::BATCH, &count.to_le_bytes());
            assert_stream_broken_by(ports, &batch);
            put_through_the_real_stream(cluster, ports);
        }
    });
}

#[test]
fn a_bad_checksum_closes_a_forged_stream_and_the_real_stream_resumes_where_it_was() {
    survives(|cluster, ports| {
        put_through_the_real_stream(cluster, ports);
        let mut beacon = Vec::new();
        let mut batch = BatchWriter::new(&mut beacon);
        let (view, t_send) = (ViewVersion(1), Time::from_nanos(7));
        batch.push(&PeerMessage::Beacon(Beacon { view, t_send }));
        batch.finish();
        // The unaltered frame is acknowledged, so the checksum is the only defect below.
        say_on_a_stream(ports, &beacon, |frame| frame.opcode == peer_opcode::BATCH);
        for damaged in 8..beacon.len() {
            let mut bytes = beacon.clone();
            bytes[damaged] ^= 0x10;
            assert_stream_broken_by(ports, &bytes);
            put_through_the_real_stream(cluster, ports);
        }
    });
}

#[track_caller]
fn assert_stream_broken_by(ports: &Ports, bytes: &[u8]) {
    say_on_a_stream(ports, bytes, |frame| {
        let refusal = (frame.opcode == peer_opcode::PEER_REFUSAL)
            .then(|| PeerRefusal::read(&frame.body).expect("a refusal"));
        refusal.is_some_and(|refusal| refusal.reason == PeerRefusalReason::BrokenStream)
    });
}

/// Sends bytes to the victim on a forged stream, whose hello has every field of the victim's predecessor. Repeats this
/// until the response is as expected, because the real predecessor reconnects at once and may replace the stream.
#[track_caller]
fn say_on_a_stream(ports: &Ports, bytes: &[u8], is_expected: impl Fn(&Received) -> bool) {
    crate::common::wait_until(
        "the victim's response on a forged stream",
        crate::common::TIMEOUT,
        || {
            let (mut raw, seal) = ports.challenged(Kind::Servers, ports.key);
            // All bytes are sent in one piece, so that the real predecessor cannot connect in between.
            raw.send(&[&ports.hello(Kind::Servers, &seal), bytes].concat());
            let welcome = raw.next_frame();
            assert!(welcome.is_none_or(|frame| frame.opcode == peer_opcode::PEER_WELCOME));
            std::iter::from_fn(|| raw.next_frame()).any(|frame| is_expected(&frame))
        },
    );
}

#[track_caller]
fn put_through_the_real_stream(cluster: &Cluster, ports: &Ports) {
    let group = ports.peer_hello().group();
    let written =
        cluster.open().put(&cluster.key_at(group.0, 0, "stream"), b"v", &OpOptions::default());
    assert_eq!(written.expect("a put over the stream that was broken").copies, 2);
}

#[test]
fn a_first_frame_cut_at_any_byte_changes_nothing_on_any_port() {
    survives(|_, ports| {
        for kind in Kind::ALL {
            let whole = ports.first_frame(kind);
            for end in 0..whole.len() {
                let mut raw = ports.connect(kind);
                raw.send(&whole[..end]);
                raw.finish();
                raw.await_close();
            }
        }
        for kind in Kind::CHECKED {
            let (_, seal) = ports.challenged(kind, ports.key);
            for end in 0..ports.hello(kind, &seal).len() {
                let (mut raw, seal) = ports.challenged(kind, ports.key);
                raw.send(&ports.hello(kind, &seal)[..end]);
                raw.finish();
                raw.await_close();
            }
        }
    });
}

#[test]
fn a_write_cut_at_any_byte_is_not_done() {
    survives(|cluster, ports| {
        let key = key(cluster, "cut");
        let whole = request(RequestId(1), &key, Operation::Put(write_number(1), b"value"));
        for end in 0..whole.len() {
            let mut raw = ports.welcomed(end as u128);
            raw.send(&whole[..end]);
            raw.finish();
            let responses = raw.await_close();
            assert!(
                responses.iter().all(|f| f.opcode != opcode::RESPONSE),
                "cut at {end}: {responses:?}"
            );
        }
        assert_eq!(ports.welcomed(1_000).ask(&key, Operation::Get).status, Status::NotFound);
    });
}

#[test]
fn a_request_in_single_bytes_is_served_like_any_other() {
    survives(|cluster, ports| {
        let key = key(cluster, "slices");
        let mut raw = ports.connect(Kind::Clients);
        let mut bytes = hello(ports.status.cluster, ClientId(1), ShardId(0));
        bytes.extend(request(RequestId(1), &key, Operation::Put(write_number(1), b"value")));
        for byte in bytes {
            raw.send(&[byte]);
        }
        assert_eq!(raw.frame().opcode, opcode::WELCOME);
        assert_eq!(raw.response().status, Status::Ok);
    });
}

#[test]
fn a_client_that_sends_endless_errors_gets_a_limited_number_of_responses_and_is_closed() {
    survives(|_, ports| {
        let mut raw = ports.welcomed(1);
        let bad = request(RequestId(5), b"", Operation::Get);
        for _ in 0..2 * MAX_ERRORS_IN_A_ROW {
            raw.send_if_open(&bad);
        }
        let said = raw.await_close();
        let responses = said.iter().filter(|frame| frame.opcode == opcode::RESPONSE).count();
        let most = MAX_ERRORS_IN_A_ROW as usize;
        assert!((most - 1..=most).contains(&responses), "{responses} responses to errors");
    });
}

#[test]
fn errors_between_good_requests_do_not_add_up() {
    survives(|_, ports| {
        let mut raw = ports.welcomed(1);
        for _ in 0..2 * MAX_ERRORS_IN_A_ROW {
            assert_eq!(raw.ask(b"", Operation::Get).status, Status::Invalid);
            let status = raw.ask(b"any key", Operation::Get).status;
            assert!(matches!(status, Status::NotFound | Status::WrongView), "{status:?}");
        }
    });
}

#[test]
fn an_unknown_opcode_is_rejected_with_the_names_of_the_served_ones() {
    survives(|_, ports| {
        let mut raw = ports.welcomed(1);
        raw.send(&frame(Kind::Clients, 0x1f, b"?"));
        let (status, reason) = raw.refusal();
        assert_eq!(status, Status::Unsupported);
        assert!(reason.contains("GET, PUT, DELETE, NOOP, VERIFY, RESOLVE"), "{reason}");
        assert_eq!(
            raw.ask(b"any key", Operation::Noop).id,
            RequestId(77),
            "the connection was closed"
        );

        let mut raw = Raw::welcomed(ports.address(Kind::Map), ClientId(1), ShardId(0));
        raw.send(&frame(Kind::Map, 0x1f, b"?"));
        let (status, reason) = raw.refusal();
        assert_eq!(status, Status::Unsupported);
        assert!(reason.contains("MAP, STATUS"), "{reason}");
    });
}

#[test]
fn another_protocol_version_is_rejected_with_the_supported_one_named() {
    survives(|_, ports| {
        for kind in [Kind::Clients, Kind::Map] {
            let mut raw = ports.connect(kind);
            let mut bytes = ports.first_frame(kind);
            bytes[4] = 2;
            raw.send(&bytes);
            let (status, reason) = raw.refusal();
            assert_eq!(status, Status::Unsupported, "{kind:?}");
            assert!(reason.contains("version 2") && reason.contains('1'), "{kind:?}: {reason}");
            raw.await_close();
        }
        for kind in [Kind::Servers, Kind::Orders, Kind::Reports] {
            let mut raw = ports.connect(kind);
            let mut bytes = ports.first_frame(kind);
            bytes[4] = 2;
            raw.send(&bytes);
            raw.await_close();
        }
    });
}

#[test]
fn keys_and_values_may_hold_any_byte_and_dumps_are_plain_text_all_the_same() {
    let cluster = Cluster::start();
    let mut client = cluster.open();
    let options = OpOptions::default();
    let all: Vec<u8> = (0..=255).collect();
    for first in 0..=255u8 {
        let key = [&[first], &all[..]].concat();
        client.put(&key, &all[usize::from(first)..], &options).expect("a put");
        client.put(&[first], &[first, 0, first], &options).expect("a put");
    }
    for first in 0..=255u8 {
        let key = [&[first], &all[..]].concat();
        assert_eq!(client.get(&key, &options).expect("a get").bytes, all[usize::from(first)..]);
        assert_eq!(client.get(&[first], &options).expect("a get").bytes, [first, 0, first]);
    }
    let (dumps, dir) = cluster.stop_and_keep();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), 512);
    for server in 0..3 {
        let file = dir.path().join(format!("server_{server}.primary"));
        let bytes = std::fs::read(file).expect("read a dump");
        assert!(bytes.iter().all(|byte| matches!(byte, b'\n' | b' '..=b'~')));
    }
}

#[test]
fn opcodes_of_another_port_close_the_connection_on_every_port() {
    survives(|_, ports| {
        for to in Kind::ALL {
            for from in Kind::ALL {
                let is_client = |kind| matches!(kind, Kind::Clients | Kind::Map);
                if is_client(to) == is_client(from) {
                    continue;
                }
                let opcode = ports.first_frame(from)[5];
                let body = &ports.first_frame(from)[8..];
                for bytes in [ports.first_frame(from), frame(to, opcode, &body[..body.len() - 4])] {
                    let mut raw = ports.connect(to);
                    raw.send(&bytes);
                    raw.finish();
                    raw.await_close();
                }
            }
        }
        for (to, from) in
            Kind::CHECKED.into_iter().flat_map(|to| Kind::CHECKED.map(|from| (to, from)))
        {
            if to != from {
                let (mut raw, seal) = ports.challenged(to, ports.key);
                raw.send(&ports.hello(from, &seal));
                raw.finish();
                raw.await_close();
            }
        }
        for opcode in [peer_opcode::PEER_HELLO, peer_opcode::BATCH, control_opcode::SHUTDOWN] {
            let mut raw = ports.welcomed(1);
            raw.send(&frame(Kind::Clients, opcode, &[0; 8]));
            raw.await_close();
        }
    });
}

#[test]
fn a_client_of_another_cluster_is_rejected() {
    survives(|_, ports| {
        for kind in [Kind::Clients, Kind::Map] {
            let mut raw = ports.connect(kind);
            raw.send(&hello(ClusterId(0xbad), ClientId(1), ShardId(0)));
            let (_, reason) = raw.refusal();
            assert!(reason.contains(&ports.status.cluster.to_string()), "{kind:?}: {reason}");
            raw.await_close();
        }
    });
}

#[test]
fn a_shard_that_does_not_exist_is_rejected() {
    survives(|_, ports| {
        let mut raw = ports.connect(Kind::Clients);
        raw.send(&hello(ports.status.cluster, ClientId(1), ShardId(1)));
        let (status, reason) = raw.refusal();
        assert_eq!(status, Status::Invalid, "{reason}");
        raw.await_close();
    });
}

#[test]
fn a_stranger_is_rejected_at_the_servers_port_before_any_other_check() {
    survives(|_, ports| {
        let good = ports.peer_hello();
        let mut later = good.view;
        later.version = ViewVersion(u64::MAX);
        later.primary = Some(stranger(0));
        let forged = [
            PeerHello { cluster: ClusterId(0xbad), ..good },
            PeerHello { from: stranger(0), ..good },
            PeerHello { to: stranger(1), ..good },
            PeerHello { shards: 2, ..good },
            PeerHello { from: stranger(0), view: later, ..good },
        ];
        for hello in forged {
            let (mut raw, seal) = ports.challenged(Kind::Servers, ports.key);
            let mut bytes = Vec::new();
            hello.write(&seal, &mut bytes);
            raw.send(&bytes);
            let said = raw.await_close();
            assert!(
                said.iter().all(|frame| frame.opcode == peer_opcode::PEER_REFUSAL),
                "the response to {hello:?} is {said:?}"
            );
        }
    });
}

/// Checks that a program without the key is rejected, even if it has all identities from the status and the map
/// (cluster, epoch, processes).
#[test]
fn a_program_that_knows_every_identity_but_not_the_key_is_rejected() {
    survives(|cluster, ports| {
        let guessed = ClusterKey(ports.key.0 ^ 1);
        let refused = |kind: Kind, hello: &dyn Fn(&Seal, &mut Vec<u8>)| {
            let (mut raw, seal) = ports.challenged(kind, guessed);
            let mut bytes = Vec::new();
            hello(&seal, &mut bytes);
            raw.send_if_open(&bytes);
            let said = raw.await_close();
            let is_refusal =
                |opcode| [control_opcode::REFUSED, peer_opcode::PEER_REFUSAL].contains(&opcode);
            assert!(said.iter().all(|frame| is_refusal(frame.opcode)), "{kind:?}: {said:?}");
        };
        for step in [0, 1] {
            let mut hello = ports.orders_hello();
            hello.epoch.number += step;
            refused(Kind::Orders, &|seal, bytes| {
                hello.write(seal, bytes);
                let id = OrderId::first_of(hello.epoch);
                Order { id, kind: OrderKind::Shutdown }.write(bytes);
            });
        }
        let mut hello = ports.peer_hello();
        hello.view.version.0 += 1;
        refused(Kind::Servers, &|seal, bytes| hello.write(seal, bytes));
        let epoch = Epoch { number: 1 << 40, ..ports.status.epoch };
        let started = Started { epoch, ..ports.started() };
        refused(Kind::Reports, &|seal, bytes| started.write(seal, bytes));
        // A recorded handshake under the correct key is rejected on the next connection.
        for kind in Kind::CHECKED {
            let (_, earlier) = ports.challenged(kind, ports.key);
            let (mut raw, _) = ports.challenged(kind, ports.key);
            raw.send(&ports.hello(kind, &earlier));
            let said = raw.await_close();
            assert!(said.iter().all(|frame| {
                [control_opcode::REFUSED, peer_opcode::PEER_REFUSAL].contains(&frame.opcode)
            }));
        }
        assert!(process::is_alive(cluster.server_pid(VICTIM)));
        assert_eq!(cluster.status().epoch, ports.status.epoch);
        let told = serde_json::to_string(&cluster.status()).expect("a status");
        assert!(!told.contains(&ports.key.to_string()), "{told}");
        for server in &ports.status.servers {
            for file in ["cmdline", "environ"] {
                let path = format!("/proc/{}/{file}", server.pid.expect("started"));
                let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                let text = String::from_utf8_lossy(&bytes);
                assert!(!text.contains(&ports.key.to_string()), "{path}: {text}");
            }
        }
    });
}

#[test]
fn orders_of_a_stranger_are_rejected() {
    survives(|cluster, ports| {
        let good = ports.orders_hello();
        let mut forged = [good; 4];
        forged[0].cluster = ClusterId(0xbad);
        forged[1].to = stranger(1);
        forged[2].epoch = Epoch::default();
        forged[3].to.server = ServerId(2);
        let mut shutdown = Vec::new();
        Order { id: OrderId(1), kind: OrderKind::Shutdown }.write(&mut shutdown);
        for hello in forged {
            let (mut raw, seal) = ports.challenged(Kind::Orders, ports.key);
            let mut bytes = Vec::new();
            hello.write(&seal, &mut bytes);
            bytes.extend_from_slice(&shutdown);
            raw.send(&bytes);
            let said = raw.await_close();
            let refused = said.iter().find(|frame| frame.opcode == control_opcode::REFUSED);
            assert!(refused.is_some(), "the response to {hello:?} is {said:?}");
            assert!(said.iter().all(|frame| frame.opcode != control_opcode::REPORT), "{said:?}");
        }
        // The order is sent without a hello.
        let mut raw = ports.connect(Kind::Orders);
        raw.send(&shutdown);
        raw.await_close();
        assert!(process::is_alive(cluster.server_pid(VICTIM)));
    });
}

#[test]
fn the_coordinator_rejects_a_stranger_with_a_reason() {
    survives(|_, ports| {
        let good = ports.started();
        let mut forged = [good; 6];
        forged[0].cluster = ClusterId(0xbad);
        forged[1].member = stranger(1);
        forged[2].member.server = ServerId(77);
        forged[3].shards = 9;
        forged[4].epoch.number = u64::MAX;
        // The frame has the victim's own identity with other ports. Clients must not be directed to these ports.
        forged[5] = good;
        for started in forged {
            let (mut raw, seal) = ports.challenged(Kind::Reports, ports.key);
            let mut bytes = Vec::new();
            started.write(&seal, &mut bytes);
            raw.send(&bytes);
            let response = raw.frame();
            match Admission::read(response.opcode, &response.body).expect("an admission") {
                Admission::Refused { reason } => assert!(!reason.is_empty()),
                Admission::Admitted { .. } => panic!("{started:?} was admitted"),
            }
            raw.await_close();
        }
        assert_eq!(
            crate::common::ports::fetch_map(ports.address(Kind::Map)).servers,
            ports.map.servers
        );
    });
}

#[test]
fn a_heartbeat_before_any_started_message_changes_nothing_at_the_coordinator() {
    survives(|_, ports| {
        let heartbeat = Heartbeat {
            incarnation: ports.member(VICTIM).incarnation,
            epoch: Epoch { number: u64::MAX, ..Epoch::default() },
            resident_bytes: u64::MAX,
            memory_limit: u64::MAX,
            connection_bytes: u64::MAX,
            connection_limit: u64::MAX,
            clients: u32::MAX,
            requests: u64::MAX,
            out_of_space: 0,
            evicted: 0,
            expired: 0,
            refused: u64::MAX,
            stood_ms: 0,
            dumped: DumpedBytes { primary: u64::MAX, secondary: u64::MAX },
            crowd: None,
            replicas: Vec::new(),
        };
        let forged = Heartbeat { incarnation: Incarnation(0xbad), ..heartbeat.clone() };
        for message in [
            ServerMessage::Heartbeat(heartbeat),
            ServerMessage::Heartbeat(forged),
            ServerMessage::DrainRequest,
        ] {
            let mut raw = ports.connect(Kind::Reports);
            let mut bytes = Vec::new();
            message.write(&mut bytes);
            raw.send(&bytes);
            let said = raw.await_close();
            assert!(said.iter().all(|frame| frame.opcode == control_opcode::REFUSED), "{said:?}");
        }
    });
}

#[test]
fn a_client_that_claims_a_later_view_does_not_change_the_servers_view() {
    survives(|cluster, ports| {
        let key = key(cluster, "view");
        let mut raw = ports.welcomed(1);
        let mut bytes = Vec::new();
        Request {
            id: RequestId(1),
            view: ViewVersion(u64::MAX),
            digest: Digest::of(&key),
            key: &key,
            operation: Operation::Put(write_number(1), b"v"),
        }
        .write(&mut bytes);
        raw.send(&bytes);
        let response = raw.response();
        assert!(matches!(response.status, Status::Unavailable | Status::Invalid), "{response:?}");
        assert_eq!(raw.ask(&key, Operation::Put(write_number(1), b"v")).status, Status::Ok);
    });
}

#[test]
fn a_key_of_another_group_gets_wrong_view_and_is_written_nowhere() {
    let cluster = Cluster::start();
    let ports = Ports::of(&cluster);
    let mut raw = ports.welcomed(1);
    for group in [0, 2] {
        let foreign = cluster.key_at(group, 0, "foreign");
        for operation in [
            Operation::Get,
            Operation::Put(write_number(1), b"v"),
            Operation::Delete(write_number(1)),
            Operation::Resolve(write_number(1), RequestHash(7)),
            Operation::Noop,
        ] {
            assert_eq!(raw.ask(&foreign, operation).status, Status::WrongView, "{operation:?}");
        }
    }
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    assert!(dumps.entries().is_empty());
}

#[test]
fn a_digest_that_does_not_match_the_key_is_rejected_and_the_write_is_not_done() {
    survives(|cluster, ports| {
        let (key, other) = (key(cluster, "one"), key(cluster, "other"));
        let mut raw = ports.welcomed(1);
        for operation in [
            Operation::Put(write_number(1), b"v"),
            Operation::Delete(write_number(1)),
            Operation::Resolve(write_number(1), RequestHash(7)),
        ] {
            let mut bytes = Vec::new();
            let (view, digest) = (ViewVersion(1), Digest::of(&other));
            Request { id: RequestId(3), view, digest, key: &key, operation }.write(&mut bytes);
            raw.send(&bytes);
            assert_eq!(raw.response().status, Status::Invalid);
        }
        assert_eq!(raw.ask(&key, Operation::Get).status, Status::NotFound);
        let first = raw.ask(&other, Operation::Put(write_number(1), b"v"));
        assert_eq!((first.status, first.version), (Status::Ok, SequenceNumber(1)));
    });
}

#[test]
fn rejected_requests_are_counted_in_the_status() {
    let cluster = Cluster::start();
    let ports = Ports::of(&cluster);
    let before = cluster.server(VICTIM).refused;
    let mut raw = ports.welcomed(1);
    for _ in 0..10 {
        assert_eq!(raw.ask(b"", Operation::Get).status, Status::Invalid);
    }
    crate::common::wait_until("ten rejections in the status", crate::common::TIMEOUT, || {
        cluster.server(VICTIM).refused >= before + 10
    });
}

/// Generates bytes that pass more checks than uniformly random ones: often a correct header, an existing opcode, or a
/// whole frame with a correct checksum.
fn nonsense() -> impl Strategy<Value = (usize, Vec<u8>, bool)> {
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let opcodes = prop::sample::select(vec![
        0x01u8, 0x02, 0x03, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x18, 0x1a, 0x40, 0x41, 0x43, 0x80,
        0x83, 0x84, 0x90, 0x92, 0x93, 0x96, 0x9f, 0xff,
    ]);
    let framed = (bytes.clone(), opcodes, any::<bool>()).prop_map(|(body, opcode, checked)| {
        let kind = if checked { Kind::Servers } else { Kind::Clients };
        frame(kind, opcode, &body)
    });
    (0..Kind::ALL.len() + 1, prop_oneof![bytes, framed], any::<bool>())
}

#[test]
fn random_bytes_into_every_port_harm_no_other_connection() {
    let cluster = Cluster::builder().shards(2).start();
    let pids = cluster.server_pids();
    let ports = Ports::of(&cluster);
    let config = Config { cases: 600, failure_persistence: None, ..Config::default() };
    let attack = TestRunner::new(config).run(&nonsense(), |(port, bytes, greets)| {
        let kind = Kind::ALL[port % Kind::ALL.len()];
        let mut raw = ports.connect(kind);
        // On the cluster-internal ports the random bytes take the place of the challenge.
        if greets && !kind.is_checked() {
            raw.send(&ports.first_frame(kind));
        }
        raw.send_if_open(&bytes);
        raw.finish();
        // Bytes that begin like a command of Redis get the replies of Redis.
        match greets || kind.is_checked() {
            true => drop(raw.await_close()),
            false => raw.drain(),
        }
        Ok(())
    });
    attack.expect("every connection to end");
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}
