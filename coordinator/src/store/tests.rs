//! Tests of stored states, and a record for the tests of other modules.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;

use kv_core::cluster::{DurableServer, DurableState};
use kv_protocol::cluster_file::Host;
use kv_protocol::control_message::Started;
use kv_protocol::{
    BootId, ClusterId, ClusterKey, Epoch, GroupId, Incarnation, Member, Peer, ServerId, View,
    ViewVersion, aside,
};

use super::format::{SPARE_NAME, decode, encode_in};
use super::*;
use crate::machine::Boot;
use crate::place::{Place, Ports, Route};
use crate::settings::Settings;

/// Returns a record of three servers, all of them started.
pub(crate) fn record(version: u64) -> Record {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let member =
        |n: u16| Member { server: ServerId(n), incarnation: Incarnation(u64::MAX - u64::from(n)) };
    let view = |n: u16| View {
        group: GroupId(n),
        version: ViewVersion(version),
        primary: Some(member(n)),
        peer: Peer::Secondary(member((n + 1) % 3)),
        handover: false,
    };
    let cluster = ClusterId(u128::MAX - 7);
    let epoch = Epoch { number: 3, boot: BootId(9) };
    let server = |n: u16| DurableServer {
        incarnation: member(n).incarnation,
        started: Some(Started {
            cluster,
            member: member(n),
            pid: 1_000 + u32::from(n),
            start_time: 5,
            namespace: kv_protocol::PidNamespace(6),
            shards: 2,
            address: local,
            clients_port: 1,
            servers_port: 2,
            coord_port: 3,
            epoch,
        }),
    };
    Record {
        key: ClusterKey(7),
        place: Place {
            ports: Ports { clients: 4_000, servers: 4_001 },
            listen: local,
            machine: Some(Boot::this()),
            hosts: vec![
                Host::Local,
                Host::Ssh { user: None, host: "db".into(), port: Some(22) },
                Host::Local,
            ],
            routes: vec![Route { coordinator: local, bind: local, advertise: local }; 3],
            moved: Vec::new(),
            elsewhere: Vec::new(),
        },
        dump_dir: None,
        has_ended_well: false,
        settings: Settings { memory_limit: Some("1G".into()), ..Settings::default() },
        state: DurableState {
            hash_tags: false,
            cluster,
            ancestors: vec![ClusterId(3), ClusterId(2)],
            epoch,
            shards: 2,
            has_served: true,
            servers: (0..3).map(server).collect(),
            views: (0..3).map(view).collect(),
            foundings: Vec::new(),
            last_holders: Vec::new(),
            is_stopping: false,
            recovering: None,
            moving: Vec::new(),
        },
    }
}

fn encode(record: &Record) -> Vec<u8> {
    encode_in(record, 0)
}

#[test]
fn hash_tags_are_stored_and_a_state_without_the_field_has_none() {
    for hash_tags in [false, true] {
        let mut record = record(1);
        record.state.hash_tags = hash_tags;
        let bytes = encode(&record);
        assert_eq!(decode(&bytes).unwrap().state.hash_tags, hash_tags);
        assert_eq!(String::from_utf8_lossy(&bytes).contains("hash_tags"), hash_tags);
    }
}

#[test]
fn the_last_stored_state_is_loaded_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(load(directory.path()).unwrap(), None);
    fs::write(directory.path().join(SPARE_NAME), "of a crash").unwrap();
    for version in [1, u64::MAX] {
        store(directory.path(), &record(version)).unwrap();
    }
    assert_eq!(load(directory.path()).unwrap(), Some(record(u64::MAX)));
    let metadata = fs::metadata(directory.path().join(FILE_NAME)).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "the key is in it");
    set_aside(directory.path(), &record(u64::MAX)).unwrap();
    assert!(!directory.path().join(SPARE_NAME).exists(), "it has the key");
    assert_eq!(load(directory.path()).unwrap(), None);
    let mut never = record(1);
    never.state.has_served = false;
    store(directory.path(), &never).unwrap();
    set_aside(directory.path(), &never).unwrap();
    assert_eq!(load(directory.path()).unwrap(), None);
    let old = load_file(&directory.path().join(OLD_NAME)).unwrap();
    assert_eq!(old, Some(record(u64::MAX)));
    // No state is overwritten, and the number of kept states is bounded.
    for version in 1..20 {
        store(directory.path(), &record(version)).unwrap();
        set_aside(directory.path(), &record(version)).unwrap();
    }
    let at = |name: String| load_file(&directory.path().join(name)).unwrap();
    assert_eq!(at(OLD_NAME.to_owned()), Some(record(19)));
    assert_eq!(at(aside::numbered(FILE_NAME, 20)), Some(record(18)));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), aside::MAX_ASIDE);
}

#[test]
fn a_state_without_settings_has_the_defaults_and_needs_no_machine() {
    let mut json = serde_json::to_value(record(1)).unwrap();
    json.as_object_mut().unwrap().remove("settings").unwrap();
    json["place"].as_object_mut().unwrap().remove("machine").unwrap();
    let read: Record = serde_json::from_value(json).unwrap();
    let place = Place { machine: None, ..record(1).place };
    assert_eq!(read, Record { place, settings: Settings::default(), ..record(1) });
}

#[test]
fn every_changed_or_missing_byte_is_detected() {
    let whole = encode(&record(5));
    decode(&whole).unwrap();
    for at in 0..whole.len() - 1 {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        assert!(decode(&bytes).is_err(), "byte {at} changed");
        assert!(decode(&whole[..at]).is_err(), "cut after {at} bytes");
    }
    let longer = [&whole[..], b"x"].concat();
    assert!(decode(&longer).is_err());
}

#[test]
fn damaged_files_and_other_versions_are_reported_with_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let said = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        load(directory.path()).unwrap_err().to_string()
    };
    let damaged = said(b"");
    assert!(damaged.contains(FILE_NAME) && damaged.contains("move the file away"), "{damaged}");
    let older = said(b"kv-coordinator-state 1 2 00000000\n{}\n");
    assert!(older.contains(FILE_NAME) && older.contains("version 1"), "{older}");
}

#[test]
fn an_inconsistent_state_is_rejected_despite_its_valid_checksum() {
    let wrong: [fn(&mut Record); 8] = [
        |record| record.state.servers.truncate(2),
        |record| record.place.hosts.clear(),
        |record| record.state.views[1].group = GroupId(2),
        |record| record.state.views[1].primary.as_mut().unwrap().server = ServerId(3),
        |record| record.state.servers[0].incarnation = Incarnation(1),
        |record| record.state.shards = 0,
        |record| record.state.epoch.number = u64::MAX,
        |record| record.place.routes.truncate(1),
    ];
    for (n, spoil) in wrong.into_iter().enumerate() {
        let mut spoilt = record(1);
        spoil(&mut spoilt);
        assert!(decode(&encode(&spoilt)).is_err(), "case {n}");
    }
}

#[test]
fn the_cluster_file_can_be_derived_from_the_state() {
    let file = record(1).cluster_file();
    let lines: Vec<String> =
        file.servers.iter().map(|line| format!("{} {}", line.id, line.host)).collect();
    assert_eq!(lines, ["0 localhost", "1 ssh://db:22", "2 localhost"]);
    let line = &file.servers[2];
    assert_eq!((line.clients_port, line.servers_port, line.coord_port), (1, 2, 3));
}

#[test]
fn the_error_for_a_missing_directory_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = store(&missing, &record(1)).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}
