//! Tests of the servers' Unix-domain sockets with each engine: who may connect, both protocols, recovery in the place of
//! a dead server, and the files that a server must not touch.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::common::cluster::Builder;
use crate::common::process::{self, Signal};
use crate::common::programs::{self, CLIENT, COORD, Ended};
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_client::{Address, Client, Event, Events, OpOptions, Options};
use kv_protocol::limits::MAX_VALUE_BYTES;
use tempfile::TempDir;

const ENGINES: [&str; 2] = ["uring", "epoll"];

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("kv-sock-").tempdir().expect("make a directory")
}

fn builder(dir: &Path) -> Builder {
    Cluster::builder().flag("--unix").flag(dir.to_str().expect("a path in UTF-8"))
}

fn start(engine: &str, dir: &Path) -> Cluster {
    builder(dir).shards(2).flag("--net").flag(engine).start()
}

fn socket(dir: &Path, id: usize) -> PathBuf {
    dir.join(format!("server_{id}.sock"))
}

fn endpoint(dir: &Path) -> String {
    format!("unix:{}", dir.display())
}

/// Returns the address of a server's port for clients.
#[track_caller]
fn tcp_address(cluster: &Cluster, id: usize) -> SocketAddr {
    let address = cluster.server(id).clients.expect("an address");
    address.parse().expect("an IP address and a port")
}

/// Returns the inode of a file and the time of its last change.
#[track_caller]
fn created(path: &Path) -> (u64, i64, i64) {
    let file = fs::metadata(path).expect("a socket");
    (file.ino(), file.ctime(), file.ctime_nsec())
}

/// Runs the command line over the sockets.
#[track_caller]
fn client(dir: &Path, operations: &str) -> Ended {
    programs::run(CLIENT, ["-h", &endpoint(dir)], operations, TIMEOUT)
}

#[track_caller]
fn redis_cli(socket: &Path, words: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    command.arg("-s").arg(socket).args(words);
    programs::finish(command, "", TIMEOUT).with_code(0).stdout.trim_end().to_owned()
}

/// Opens a client over the sockets that records the address of every connection to a server.
fn recording(dir: &Path) -> (Client, Arc<Mutex<Vec<Address>>>) {
    let opened = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&opened);
    let events = Events::to(move |event| {
        if let Event::ConnectionOpened { address, .. } = event {
            to.lock().unwrap().push(address.clone());
        }
    });
    let options = Options { events, ..Options::default() };
    (Client::open(&endpoint(dir), options).expect("open a client"), opened)
}

#[test]
fn native_and_redis_clients_use_one_socket_of_each_server_and_a_stop_removes_it() {
    for engine in ENGINES {
        let dir = directory();
        let cluster = start(engine, dir.path());
        for id in 0..3 {
            let file = fs::symlink_metadata(socket(dir.path(), id)).expect("a socket");
            assert!(file.file_type().is_socket());
            assert_eq!(file.mode() & 0o7777, 0o660, "{engine}");
        }
        let keys: Vec<String> = (0..20).map(|n| format!("key{n}")).collect();
        let puts: String = keys.iter().map(|key| format!("put {key} \"{key}!\"\n")).collect();
        client(dir.path(), &puts).with_code(0);
        let gets: String = keys.iter().map(|key| format!("V \"{key}\" \"{key}!\"\n")).collect();
        client(dir.path(), &gets).with_code(0);
        cluster.client(&gets).with_code(0);
        for id in 0..3 {
            let path = socket(dir.path(), id);
            assert_eq!(redis_cli(&path, &["GET", "key7"]), "key7!", "{engine}, server {id}");
            let info = redis_cli(&path, &["CLIENT", "INFO"]);
            let ends = format!(" addr={0}:0 laddr={0}:0 ", path.display());
            assert!(info.contains(&ends), "{info}");
        }
        let (mut native, opened) = recording(dir.path());
        let options = OpOptions::default();
        for size in [0, 1, 64 << 10, (1 << 20) + 1, MAX_VALUE_BYTES] {
            let value: Vec<u8> = (0..size).map(|at| (at * 31).to_le_bytes()[0]).collect();
            assert_eq!(native.put(b"long", &value, &options).expect("a put").copies, 2);
            let got = native.get(b"long", &options).expect("a get").bytes;
            assert!(got == value, "{engine}: a value of {size} bytes was changed");
        }
        let opened = opened.lock().unwrap();
        let over_socket = |address: &Address| matches!(address, Address::Unix(path) if path.starts_with(dir.path()));
        assert!(!opened.is_empty() && opened.iter().all(over_socket), "{opened:?}");
        drop(native);
        cluster.stop().assert_copies_agree();
        assert_eq!(fs::read_dir(dir.path()).expect("read it").count(), 0, "a socket was left");
    }
}

#[test]
fn the_address_of_a_redis_client_over_tcp_is_shown() {
    let cluster = Cluster::start();
    let address = tcp_address(&cluster, 0);
    let mut command = Command::new("redis-cli");
    command.args(["-p", &address.port().to_string(), "CLIENT", "INFO"]);
    let info = programs::finish(command, "", TIMEOUT).with_code(0).stdout;
    assert!(info.contains(" addr=127.0.0.1:"), "{info}");
    assert!(info.contains(&format!(" laddr={address} ")), "{info}");
    assert!(info.contains(" age=0 ") || info.contains(" age=1 "), "{info}");
    cluster.stop();
}

#[test]
fn the_next_process_of_a_killed_server_replaces_its_socket_and_clients_return_to_it() {
    for engine in ENGINES {
        let dir = directory();
        let cluster = start(engine, dir.path());
        let (mut native, opened) = recording(dir.path());
        let options = OpOptions::default();
        let key = cluster.key_at(1, 0, "key");
        native.put(&key, b"before", &options).expect("a put");
        let path = socket(dir.path(), 1);
        let before = created(&path);
        process::signal(cluster.server_pid(1), Signal::KILL);
        opened.lock().unwrap().clear();
        assert_eq!(native.get(&key, &options).expect("a get").bytes, b"before");
        native.put(&key, b"after", &options).expect("a put");
        cluster.await_whole();
        assert_ne!(created(&path), before, "{engine}: the socket of the dead server");
        assert_eq!(fs::metadata(&path).expect("a socket").mode() & 0o7777, 0o660);
        client(dir.path(), &format!("V \"{}\" \"after\"\n", String::from_utf8_lossy(&key)))
            .with_code(0);
        wait_until("the client to use the new socket", TIMEOUT, || {
            native.get(&key, &options).expect("a get");
            opened.lock().unwrap().contains(&Address::Unix(path.clone().into()))
        });
        assert_eq!(redis_cli(&path, &["PING"]), "PONG");
        cluster.stop().assert_copies_agree();
    }
}

#[test]
fn a_server_without_a_socket_is_reached_by_tcp() {
    let dir = directory();
    let cluster = start("epoll", dir.path());
    // To the client, a server on another host and one without a socket are the same.
    fs::remove_file(socket(dir.path(), 1)).expect("remove a socket");
    let (mut native, opened) = recording(dir.path());
    let options = OpOptions::default();
    for group in 0..3 {
        let key = cluster.key_at(group, 0, "key");
        assert_eq!(native.put(&key, b"v", &options).expect("a put").copies, 2);
    }
    let tcp = Address::Tcp(tcp_address(&cluster, 1));
    let expected = |id| Address::Unix(socket(dir.path(), id).into());
    let opened = opened.lock().unwrap();
    assert!(opened.contains(&tcp), "{opened:?}");
    assert!(opened.contains(&expected(0)) && opened.contains(&expected(2)), "{opened:?}");
    cluster.stop();
}

#[test]
fn a_socket_of_another_cluster_does_not_mislead_a_client() {
    let (dir, others, mixed) = (directory(), directory(), directory());
    let cluster = start("epoll", dir.path());
    let other = start("epoll", others.path());
    // The name of server 1 leads to the other cluster.
    for (id, at) in [(0, dir.path()), (1, others.path()), (2, dir.path())] {
        std::os::unix::fs::symlink(socket(at, id), socket(mixed.path(), id)).expect("a link");
    }
    let (mut native, opened) = recording(mixed.path());
    let options = OpOptions::default();
    let key = cluster.key_at(1, 0, "key");
    native.put(&key, b"mine", &options).expect("a put");
    assert_eq!(cluster.open().get(&key, &options).expect("a get").bytes, b"mine");
    let tcp = Address::Tcp(tcp_address(&cluster, 1));
    assert!(opened.lock().unwrap().contains(&tcp));
    other.stop();
    cluster.stop();
}

/// Runs a coordinator that is expected to fail, and returns what it and its servers said.
#[track_caller]
fn failed(builder: &Builder, code: i32) -> String {
    let command = builder.command();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let ended = programs::run(COORD, arguments, "", 2 * TIMEOUT).with_code(code);
    process::end_all_in(builder.dir());
    let log = fs::read_to_string(builder.dir().join("coord.log")).unwrap_or_default();
    format!("{}\n{log}", ended.stderr)
}

#[test]
fn neither_a_foreign_file_nor_the_socket_of_a_living_process_is_removed() {
    let dir = directory();
    let path = socket(dir.path(), 1);
    fs::write(&path, "mine").expect("write a file");
    let said = failed(&builder(dir.path()), 1);
    assert!(said.contains("not a socket") && said.contains("server_1.sock"), "{said}");
    assert_eq!(fs::read(&path).expect("the file"), b"mine");
    fs::remove_file(&path).expect("remove it");
    let living = UnixListener::bind(&path).expect("a listener");
    let said = failed(&builder(dir.path()), 1);
    assert!(said.contains("a process listens on it") && said.contains("server_1.sock"), "{said}");
    UnixStream::connect(&path).expect("the listener is still there");
    drop(living);
    let cluster = builder(dir.path()).start();
    assert_eq!(redis_cli(&path, &["PING"]), "PONG", "a stale socket is replaced");
    cluster.stop();
}

#[test]
fn a_missing_directory_a_relative_one_and_a_long_path_are_rejected_at_the_start() {
    let dir = directory();
    let missing = dir.path().join("none");
    let said = failed(&builder(&missing), 2);
    assert!(said.contains("create it first") && said.contains("none"), "{said}");
    let said = failed(&builder(Path::new("run/kv")), 2);
    assert!(said.contains("not an absolute path"), "{said}");
    let long = dir.path().join("d".repeat(100));
    let said = failed(&builder(&long), 2);
    assert!(said.contains("at most 107"), "{said}");
}

#[test]
fn a_later_coordinator_keeps_the_directory() {
    let dir = directory();
    let mut cluster = builder(dir.path()).start();
    cluster.kill_coordinator();
    cluster.forget_flags();
    cluster.restart();
    process::signal(cluster.server_pid(2), Signal::KILL);
    cluster.await_whole();
    assert_eq!(redis_cli(&socket(dir.path(), 2), &["PING"]), "PONG");
    cluster.stop();
}

#[test]
fn connections_over_a_socket_count_towards_the_limit() {
    let dir = directory();
    let cluster = builder(dir.path()).open_files(256).start();
    let path = socket(dir.path(), 0);
    let mut open = Vec::new();
    wait_until("the limit", TIMEOUT, || {
        let mut stream = UnixStream::connect(&path).expect("connect");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set a timeout");
        // A rejected connection may end before the command is sent.
        let sent = std::io::Write::write_all(&mut stream, b"PING\r\n");
        let mut reply = [0; 64];
        let received = sent.and_then(|()| std::io::Read::read(&mut stream, &mut reply));
        open.push(stream);
        assert!(open.len() < 256, "there is no limit");
        !received.is_ok_and(|count| reply[..count].starts_with(b"+PONG"))
    });
    drop(open);
    wait_until("room again", TIMEOUT, || {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(&path).arg("PING");
        programs::finish(command, "", TIMEOUT).stdout.trim_end() == "PONG"
    });
    cluster.stop();
}
