//! A scripted coordinator for one real server.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use kv_protocol::control_message::{Admission, Heartbeat, ServerMessage, Started, opcode};
use kv_protocol::ids::{BootId, ClusterId, ClusterKey, Epoch, Incarnation, Member, ServerId};
use kv_protocol::key::{Challenge, Link as KeyLink, Nonce, Seal, opcode as key_opcode};
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::view::{Peer, View};
use kv_protocol::{GroupId, MapRevision, ViewVersion};
use tempfile::TempDir;

use super::programs::{self, SERVER};
use super::raw::Raw;
use super::{TIMEOUT, turn, wait_for};

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(crate) const KEY: ClusterKey = ClusterKey(0x5ec);
pub(crate) const EPOCH: Epoch = Epoch { number: 4, boot: BootId(44) };
/// The id and the incarnation of the server.
pub(crate) const ME: Member = Member { server: ServerId(1), incarnation: Incarnation(0xabc) };
const SERVERS: u16 = 3;

/// A server that was started for the scripted coordinator. Dropping this value ends the server.
#[derive(Debug)]
pub(crate) struct Lone {
    child: Child,
    listener: Option<TcpListener>,
    pub(crate) dir: TempDir,
}

/// The id of a user other than the one that runs the tests.
pub(crate) const OTHER_USER: u32 = 12_345;

/// The link of an admitted server.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) raw: Raw,
    pub(crate) started: Started,
}

impl Lone {
    /// Starts server 1 of three with these further arguments.
    #[track_caller]
    pub(crate) fn start(flags: &[&str]) -> Lone {
        Lone::start_by(Command::new(SERVER), Lone::make_directory(), flags)
    }

    /// Does the same as [`Lone::start`], with another user id. That user can read only the required files. Requires
    /// root.
    #[track_caller]
    pub(crate) fn start_as(user: u32, flags: &[&str]) -> Lone {
        let dir = Lone::make_directory();
        let server = dir.path().join("server");
        programs::copy_server(&server);
        chown(dir.path(), Some(user), Some(user)).expect("change the owner of the directory");
        let mut command = Command::new(server);
        command.uid(user).gid(user);
        Lone::start_by(command, dir, flags)
    }

    fn make_directory() -> TempDir {
        turn::take();
        tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory")
    }

    #[track_caller]
    fn start_by(mut command: Command, dir: TempDir, flags: &[&str]) -> Lone {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("a port").port().to_string();
        command.args(["-h", "127.0.0.1", "-m", &port, "-S", "1", "-n", "3", "-l", "server.log"]);
        command.args(["--cluster-id", &CLUSTER.to_string()]);
        command.args(["--incarnation", &ME.incarnation.to_string()]).args(flags);
        command.args(["--key-file", "-"]);
        let (key, mut writer) = std::io::pipe().expect("a pipe");
        writeln!(writer, "{KEY}").expect("write the key");
        command.current_dir(dir.path()).stdin(key);
        let child = command.spawn().expect("start a server");
        listener.set_nonblocking(true).expect("set O_NONBLOCK");
        Lone { child, listener: Some(listener), dir }
    }

    /// Admits the server at its next connection.
    #[track_caller]
    pub(crate) fn admit(&self) -> Link {
        let listener = self.listener.as_ref().expect("the coordinator's port to be open");
        let stream = wait_for("the server to dial", TIMEOUT, || listener.accept().ok()).0;
        stream.set_nonblocking(false).expect("clear O_NONBLOCK");
        let mut raw = Raw::on_cluster_port(stream);
        let seal = respond_to_challenge(&mut raw, KEY);
        let frame = raw.frame();
        assert_eq!(frame.opcode, opcode::STARTED, "not a STARTED: {frame:?}");
        let started = Started::read(&frame.body, &seal).expect("a STARTED");
        let mut bytes = Vec::new();
        Admission::Admitted { epoch: EPOCH }.write(&mut bytes);
        raw.send(&bytes);
        Link { raw, started }
    }

    /// Closes the coordinator's port and returns a new listener on it, as another program would open it.
    #[track_caller]
    pub(crate) fn usurp(&mut self) -> TcpListener {
        let address = self.listener.take().expect("a coordinator").local_addr().expect("a port");
        // The server may be connecting to that port at this moment.
        wait_for("the port to be free", TIMEOUT, || TcpListener::bind(address).ok())
    }

    /// Closes the coordinator's port.
    pub(crate) fn vanish(&mut self) {
        self.listener = None;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the server to end and returns its exit code.
    #[track_caller]
    pub(crate) fn await_end(&mut self) -> Option<i32> {
        programs::wait(&mut self.child, TIMEOUT).expect("an end in time")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Link {
    /// Receives the next heartbeat.
    #[track_caller]
    pub(crate) fn heartbeat(&mut self) -> Heartbeat {
        let frame = self.raw.frame();
        match ServerMessage::read(frame.opcode, &frame.body) {
            Ok(ServerMessage::Heartbeat(heartbeat)) => heartbeat,
            other => panic!("not a heartbeat: {other:?}"),
        }
    }

    /// Returns the server's address for clients.
    pub(crate) fn clients(&self) -> SocketAddr {
        SocketAddr::new(self.started.address, self.started.clients_port)
    }
}

/// Receives a server's challenge and sends the proof of a coordinator with this key.
#[track_caller]
pub(crate) fn respond_to_challenge(raw: &mut Raw, key: ClusterKey) -> Seal {
    let frame = raw.frame();
    assert_eq!(frame.opcode, key_opcode::CHALLENGE, "not a CHALLENGE: {frame:?}");
    let challenge = Challenge::read(&frame.body).expect("a challenge");
    let seal = Seal::new(key, KeyLink::Reports, challenge.nonce, Nonce(0xacce));
    let mut proof = Vec::new();
    seal.write_proof(&mut proof);
    raw.send(&proof);
    seal
}

/// Returns a map of the server's cluster in which all views have this version.
pub(crate) fn map(revision: u64, version: u64) -> Map {
    let member = |n| Member { server: ServerId(n), incarnation: ME.incarnation };
    let server = |n| MapServer {
        id: ServerId(n),
        incarnation: ME.incarnation,
        state: ServerState::Up,
        clients: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 1 + n))),
    };
    let view = |n| View {
        group: GroupId(n),
        version: ViewVersion(version),
        primary: Some(member(n)),
        peer: Peer::Secondary(member((n + 1) % SERVERS)),
        handover: false,
    };
    Map {
        hash_tags: false,
        cluster: CLUSTER,
        ancestors: Vec::new(),
        epoch: EPOCH,
        revision: MapRevision(revision),
        shards: 1,
        servers: (0..SERVERS).map(server).collect(),
        views: (0..SERVERS).map(view).collect(),
    }
}
