//! The coordinator's state on the disk: one file, replaced as a whole.
//!
//! ```text
//!   coordinator.state:  kv-coordinator-state 3 <bytes> <CRC-32C in hex>\n
//!                       <JSON>
//! ```
//!
//! state_file.rs writes it.
//!
//! After a crash at any moment the file is completely the previous or the new one. Beside the cluster's durable
//! state it has the addresses of all processes. Servers connect to the port of their first coordinator for ever, so
//! later coordinators listen there too.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kv_core::cluster::{DurableServer, DurableState};
use kv_daemon::files;
use kv_protocol::aside;
use kv_protocol::cluster_file::{ClusterFile, Host, ServerLine};
use kv_protocol::control_message::Started;
use kv_protocol::limits::{MAX_ANCESTORS, MAX_SERVERS, MAX_SHARDS, MIN_SERVERS};
use kv_protocol::{ClusterKey, Member, ServerId};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::moves::{Elsewhere, Moved};
use crate::plan::Route;
use crate::ready::Ports;
use crate::settings::Settings;
use crate::state_file::SPARE_NAME;

/// The file's name in the coordinator's directory.
pub(crate) const FILE_NAME: &str = "coordinator.state";
/// Its name after the end of its cluster.
pub(crate) const OLD_NAME: &str = "coordinator.state.old";
const MAGIC: &str = "kv-coordinator-state";
const VERSION: &str = "3";
/// The maximum length of the header line.
const HEADER_ROOM: usize = 64;
/// The maximum size of a state file; a ring of 1,024 servers takes less than a megabyte.
const MAX_BYTES: u64 = 64 << 20;

/// All data that the next coordinator needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The key with which the cluster's processes authenticate each other.
    pub(crate) key: ClusterKey,
    /// The hosts, ports and addresses.
    pub(crate) place: Place,
    /// The settings of the cluster.
    #[serde(default)]
    pub(crate) settings: Settings,
    /// The directory of `coord stop --dump-dir` for a stop in progress.
    #[serde(default)]
    pub(crate) dump_dir: Option<String>,
    /// True if the cluster was stopped in order and every table is in a dump. Then another cluster may follow
    /// without loss.
    #[serde(default)]
    pub(crate) has_ended_well: bool,
    /// The durable state of the cluster.
    #[serde(flatten)]
    pub(crate) state: DurableState,
}

impl Record {
    /// Returns every process that has its place and has reported, with its host.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (&Host, Started)> {
        let started = self.state.servers.iter().map(|server| server.started);
        self.place.hosts.iter().zip(started).filter_map(|(host, started)| {
            let started = started?;
            let is_its = |other: &&Elsewhere| other.started.member == started.member;
            let other = self.place.elsewhere.iter().find(is_its);
            Some((other.map_or(host, |other| &other.host), started))
        })
    }

    /// Returns a cluster file with the hosts of this cluster and the current ports of its servers.
    pub(crate) fn cluster_file(&self) -> ClusterFile {
        let lines = self.place.hosts.iter().zip(&self.state.servers).zip(0..);
        let line = |((host, server), n): ((&Host, &DurableServer), u16)| {
            let port = |of: fn(&Started) -> u16| server.started.as_ref().map_or(0, of);
            ServerLine {
                id: ServerId(n),
                host: host.clone(),
                clients_port: port(|started| started.clients_port),
                servers_port: port(|started| started.servers_port),
                coord_port: port(|started| started.coord_port),
            }
        };
        ClusterFile { servers: lines.map(line).collect() }
    }
}

/// The hosts, ports and addresses of the coordinator and of the servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The coordinator's own ports.
    #[serde(flatten)]
    pub(crate) ports: Ports,
    /// The address that the coordinator listens on.
    pub(crate) listen: IpAddr,
    /// The machine that `localhost` denotes.
    #[serde(default)]
    pub(crate) machine: Option<Machine>,
    /// The servers' hosts in ring order.
    pub(crate) hosts: Vec<Host>,
    /// The addresses between each server and the other processes.
    pub(crate) routes: Vec<Route>,
    /// The places that moved to other hosts than the cluster file names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) moved: Vec<Moved>,
    /// The processes that run, or may run, on hosts other than those of their places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) elsewhere: Vec<Elsewhere>,
}

/// The reason for a failed store.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {error}; {advice}")]
pub(crate) struct StoreError {
    doing: &'static str,
    path: PathBuf,
    error: io::Error,
    advice: &'static str,
}

impl StoreError {
    /// Returns an error with advice for the operator.
    pub(crate) fn new(doing: &'static str, path: PathBuf, error: io::Error) -> StoreError {
        let advice = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => "free some space there",
            Some(libc::EFBIG) => "raise the limit of file sizes (ulimit -f)",
            Some(libc::EROFS) => "mount the file system writable",
            Some(libc::EACCES | libc::EPERM) => "check the permissions of the directory",
            Some(libc::EIO) => "check the disk",
            _ => "check the free space and the permissions of the directory",
        };
        StoreError { doing, path, error, advice }
    }

    /// Returns the error with other advice.
    pub(crate) fn because(self, advice: &'static str) -> StoreError {
        StoreError { advice, ..self }
    }
}

/// The reason for which a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read {path}: {error}; check its permissions")]
    Read { path: PathBuf, error: io::Error },
    #[error(
        "{path} was written by another version of coord ({found}; this one reads version {VERSION}): use that \
         version to continue its cluster or to stop it. Leave the file where it is: running servers hold all \
         data, and coord finds them by this file"
    )]
    OtherVersion { path: PathBuf, found: String },
    #[error(
        "{path} is damaged: {what}; nothing was started or changed, and servers that run continue. Put an \
         intact copy back if no server was lost since it was made; otherwise end every server with SIGTERM, \
         which makes it dump its tables, and move the file away"
    )]
    Corrupt { path: PathBuf, what: String },
}

/// Makes a state durable in a directory. Blocks until it is on the disk.
pub(crate) fn store(directory: &Path, record: &Record) -> Result<(), StoreError> {
    crate::state_file::StateFile::open(directory)?.store(record).map(drop)
}

/// Writes a state to a file of another name, which only this user can access.
pub(crate) fn write(path: &Path, record: &Record) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace", path)(error));
        }
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(&encode_in(record, 0))?;
        file.sync_all()
    });
    written.map_err(failed("write", path))
}

/// Renames the state of a cluster that is over. A state that has never served is removed if it would replace an
/// earlier one, because dumps may still be restored by that.
pub(crate) fn set_aside(directory: &Path, record: &Record) -> Result<(), StoreError> {
    let (path, old) = (directory.join(FILE_NAME), directory.join(OLD_NAME));
    match !record.state.has_served && old.exists() {
        true => fs::remove_file(&path).map_err(failed("remove", &path))?,
        false => rename_aside(directory).map_err(failed("rename to", &old))?,
    }
    // The spare file contains a key that is no longer needed.
    match fs::remove_file(directory.join(SPARE_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &directory.join(SPARE_NAME))(error));
        }
        _ => {}
    }
    sync(directory).map_err(failed("sync the directory of", &old))
}

/// Renames the state to its old name. An earlier state with that name gets a number, like the dumps that it belongs
/// to ([`kv_protocol::aside`]). At most [`aside::MAX_ASIDE`] states are kept.
pub(crate) fn rename_aside(directory: &Path) -> io::Result<()> {
    let (path, old) = (directory.join(FILE_NAME), directory.join(OLD_NAME));
    if old.exists() {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(|name| aside::number_of(FILE_NAME, name)));
        }
        numbers.sort_unstable();
        let earlier = aside::numbered(FILE_NAME, aside::next_number(numbers.iter().copied()));
        let too_many = (numbers.len() + 2).saturating_sub(aside::MAX_ASIDE);
        for oldest in numbers.iter().take(too_many) {
            let oldest = aside::numbered(FILE_NAME, *oldest);
            tracing::warn!("removing {oldest}, the oldest of {} states", aside::MAX_ASIDE);
            fs::remove_file(directory.join(oldest))?;
        }
        fs::rename(&old, directory.join(earlier))?;
    }
    fs::rename(path, old)
}

/// Returns the state in a directory, or `None` if there is none.
pub(crate) fn load(directory: &Path) -> Result<Option<Record>, LoadError> {
    load_file(&directory.join(FILE_NAME))
}

/// Returns the state in a file, or `None` if there is none.
pub(crate) fn load_file(path: &Path) -> Result<Option<Record>, LoadError> {
    let read = |error| LoadError::Read { path: path.to_owned(), error };
    let file = match files::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(read)?;
    decode(&bytes).map(Some).map_err(|bad| match bad {
        Bad::Version(found) => LoadError::OtherVersion { path: path.to_owned(), found },
        Bad::Bytes(what) => LoadError::Corrupt { path: path.to_owned(), what },
    })
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::new(doing, path, error)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all())
}

#[cfg(test)]
fn encode(record: &Record) -> Vec<u8> {
    encode_in(record, 0)
}

/// Returns the bytes of a state, padded with spaces to `room` bytes including the space of the header line.
pub(crate) fn encode_in(record: &Record, room: usize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(record).expect("a state has only strings for keys");
    json.resize(json.len().max(room.saturating_sub(HEADER_ROOM)), b' ');
    let crc = crc32c::crc32c(&json);
    let mut bytes = format!("{MAGIC} {VERSION} {} {crc:08x}\n", json.len()).into_bytes();
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    bytes
}

/// The defect of bytes that should be a state.
#[derive(Debug)]
enum Bad {
    Version(String),
    Bytes(String),
}

fn bad(what: impl Into<String>) -> Bad {
    Bad::Bytes(what.into())
}

fn decode(bytes: &[u8]) -> Result<Record, Bad> {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let header = std::str::from_utf8(line).unwrap_or_default();
    let json = bytes.get(line.len() + 1..).unwrap_or_default();
    let words: Vec<&str> = header.split(' ').collect();
    let (length, crc) = match words[..] {
        [MAGIC, VERSION, length, crc] => (length, crc),
        [MAGIC, other, ..] if other.parse::<u32>().is_ok() => {
            return Err(Bad::Version(format!("version {other}")));
        }
        _ => return Err(bad("its first line is not that of a coordinator's state")),
    };
    let json = json.strip_suffix(b"\n").unwrap_or(json);
    if length.parse() != Ok(json.len()) {
        return Err(bad(format!("{length} bytes were written, {} are left", json.len())));
    }
    let found = crc32c::crc32c(json);
    if u32::from_str_radix(crc, 16) != Ok(found) {
        return Err(bad(format!("its CRC-32C is {found:08x}, not {crc}")));
    }
    let record: Record = serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
    check(&record).map_err(bad)?;
    Ok(record)
}

/// Checks that every part is complete, and that every member belongs to the ring.
fn check(record: &Record) -> Result<(), &'static str> {
    let Record { place, state, .. } = record;
    let count = state.servers.len();
    if !(usize::from(MIN_SERVERS)..=usize::from(MAX_SERVERS)).contains(&count) {
        return Err("its number of servers is out of range");
    }
    if [state.views.len(), place.hosts.len(), place.routes.len()] != [count; 3]
        || ![0, count].contains(&state.foundings.len())
        || state.ancestors.len() > MAX_ANCESTORS
    {
        return Err("its numbers of servers, views, hosts and routes do not match");
    }
    if !(1..=MAX_SHARDS).contains(&state.shards) || state.epoch.number == u64::MAX {
        return Err("its number of shards or its epoch is out of range");
    }
    let is_in_ring = |member: Member| usize::from(member.server.0) < count;
    for (n, (view, server)) in state.views.iter().zip(&state.servers).enumerate() {
        let members = view.primary.into_iter().chain(view.other());
        let members = members.chain(state.holders(view.group)).collect::<Vec<_>>();
        if usize::from(view.group.0) != n || !members.into_iter().all(is_in_ring) {
            return Err("a view names a server or group that the ring does not have");
        }
        let id = ServerId(u16::try_from(n).map_err(|_| "its ring is too large")?);
        if server.started.is_some_and(|started| started.member != state.member(id)) {
            return Err("the name of a process does not match its place");
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;
    use std::os::unix::fs::PermissionsExt as _;

    use kv_protocol::{BootId, ClusterId, Epoch, GroupId, Incarnation, Peer, View, ViewVersion};

    use super::*;

    /// Returns a record of three servers, all of them started.
    pub(crate) fn record(version: u64) -> Record {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let member = |n: u16| Member {
            server: ServerId(n),
            incarnation: Incarnation(u64::MAX - u64::from(n)),
        };
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
                machine: Some(Machine::this()),
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

    #[test]
    fn a_stored_state_is_loaded_again_as_the_last_one_whole() {
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
    fn a_state_that_tells_of_no_settings_and_no_machine_has_the_usual_ones_and_is_of_this_one() {
        let mut json = serde_json::to_value(record(1)).unwrap();
        json.as_object_mut().unwrap().remove("settings").unwrap();
        json["place"].as_object_mut().unwrap().remove("machine").unwrap();
        let read: Record = serde_json::from_value(json).unwrap();
        let place = Place { machine: None, ..record(1).place };
        assert_eq!(read, Record { place, settings: Settings::default(), ..record(1) });
    }

    #[test]
    fn every_byte_that_is_changed_or_missing_is_noticed() {
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
    fn a_damaged_file_and_one_of_another_version_are_named_with_what_to_do() {
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
    fn a_state_that_names_what_is_not_there_is_refused_though_its_checksum_is_right() {
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
            assert!(decode(&encode(&spoilt)).is_err(), "the {n}th");
        }
    }

    #[test]
    fn the_cluster_file_can_be_made_again_from_the_state() {
        let file = record(1).cluster_file();
        let lines: Vec<String> =
            file.servers.iter().map(|line| format!("{} {}", line.id, line.host)).collect();
        assert_eq!(lines, ["0 localhost", "1 ssh://db:22", "2 localhost"]);
        let line = &file.servers[2];
        assert_eq!((line.clients_port, line.servers_port, line.coord_port), (1, 2, 3));
    }

    #[test]
    fn a_directory_that_takes_no_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = store(&missing, &record(1)).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
