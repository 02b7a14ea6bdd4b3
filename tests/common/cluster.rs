//! A coordinator and its servers in a temporary directory.
//!
//! ```text
//!   Cluster::builder() … .start()   coord -C file --dir <temp> --daemon --ready-fd <pipe>
//!           |                       until the line {"status":"serving",…} arrives
//!        the test
//!           |
//!   stop() -> dumps                 SIGTERM, exit code 0, no process left, every dump complete
//!   drop                            kills every process left in the directory; after a panic,
//!                                   prints the ends of all logs
//! ```

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use kv_client::{Client, Options};
use kv_core::dump::{Dump, DumpEntry};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::map::ServerState;
use kv_protocol::status::{ClusterState, ClusterStatus, ServerStatus};
use kv_protocol::{GroupId, Placement};
use kv_testkit::coord::{Coord, is_whole, spawn};
use tempfile::TempDir;

use super::process::{self, Signal};
use super::programs::{self, CLIENT, COORD, Ended, SERVER};
use super::{TIMEOUT, done, seccomp, turn, wait_for, wait_until};

/// Time limit for one run of `client`.
const CLIENT_LIMIT: Duration = Duration::from_secs(120);
/// Time limit for an orderly stop, including dumps of some hundred megabytes.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Environment variable with the network engine for clusters that do not choose one. So the same tests run with each
/// engine (`make test`). With epoll, io_uring is denied to all processes of the cluster.
const ENGINE_VARIABLE: &str = "KV_TEST_NET";

/// Options for starting a cluster.
#[derive(Debug)]
pub(crate) struct Builder {
    shape: Shape,
    dir: TempDir,
}

/// The options a cluster was started with, kept so that its coordinator can be restarted.
#[derive(Clone, Debug)]
struct Shape {
    servers: usize,
    cluster_file: Option<String>,
    in_foreground: bool,
    open_files: Option<u64>,
    is_io_uring_denied: bool,
    /// The user that runs the processes; `None` for the user of the tests.
    user: Option<u32>,
    coord: Coord,
}

/// The contents of the line that the coordinator writes to `--ready-fd`.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) clients_port: u16,
    pub(crate) servers_port: u16,
    pub(crate) cluster: String,
    pub(crate) pid: u32,
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    coord: Child,
    pub(crate) ready: Ready,
    shape: Shape,
    dir: TempDir,
}

/// All dumps of a stopped cluster, by server.
#[derive(Debug)]
pub(crate) struct Dumps {
    pub(crate) primary: Vec<Dump>,
    pub(crate) secondary: Vec<Dump>,
}

impl Builder {
    pub(crate) fn servers(mut self, servers: usize) -> Builder {
        self.shape.servers = servers;
        self
    }

    /// Sets the coordinator's clients port. Default: a free port.
    pub(crate) fn clients_port(mut self, port: u16) -> Builder {
        self.shape.coord.clients_port = port;
        self
    }

    pub(crate) fn shards(mut self, shards: u16) -> Builder {
        self.shape.coord.shards = shards;
        self
    }

    /// Sets the cluster file. Default: `localhost 0 0 0` for each server.
    pub(crate) fn cluster_file(mut self, text: impl Into<String>) -> Builder {
        self.shape.cluster_file = Some(text.into());
        self
    }

    /// Adds an argument to the coordinator's command line.
    pub(crate) fn flag(mut self, flag: impl Into<String>) -> Builder {
        self.shape.coord.flags.push(flag.into());
        self
    }

    /// Omits `--daemon`. The coordinator stops the cluster at the end of its standard input, which is a pipe.
    pub(crate) fn in_foreground(mut self) -> Builder {
        self.shape.in_foreground = true;
        self
    }

    /// Limits the open files (`ulimit -n`) of each process of the cluster.
    pub(crate) fn open_files(mut self, most: u64) -> Builder {
        self.shape.open_files = Some(most);
        self
    }

    /// Denies io_uring to each process of the cluster, as containers do.
    pub(crate) fn deny_io_uring(mut self) -> Builder {
        self.shape.is_io_uring_denied = true;
        self
    }

    /// Runs all processes of the cluster as another user, with copies of the executables. Requires root.
    pub(crate) fn run_by(mut self, user: u32) -> Builder {
        let [coord, server] = ["coord", "server"].map(|name| self.dir.path().join(name));
        programs::copy(Path::new(COORD), &coord);
        programs::copy_server(&server);
        chown(self.dir.path(), Some(user), Some(user)).expect("give the directory to the user");
        (self.shape.coord.program, self.shape.coord.server) = (coord, Some(server));
        self.shape.user = Some(user);
        self
    }

    /// Sets the server executable on this machine.
    pub(crate) fn server_binary(mut self, path: PathBuf) -> Builder {
        self.shape.coord.server = Some(path);
        self
    }

    /// Sets the coordinator executable. The coordinator then uses the server executable that it finds itself.
    pub(crate) fn coordinator(mut self, path: PathBuf) -> Builder {
        (self.shape.coord.program, self.shape.coord.server) = (path, None);
        self
    }

    /// Uses a directory in which a cluster has run before.
    pub(crate) fn in_dir(mut self, dir: TempDir) -> Builder {
        self.dir = dir;
        self
    }

    /// Restores the cluster that ran in this directory before.
    pub(crate) fn restore(self, dir: TempDir) -> Builder {
        let flag = dir.path().to_str().expect("a path in UTF-8").to_owned();
        self.in_dir(dir).flag("--restore").flag(flag)
    }

    /// Returns the directory in which the cluster will run.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the coordinator's command line and writes the cluster file that it names.
    pub(crate) fn command(&self) -> Command {
        self.shape.command(self.dir.path())
    }

    /// Starts the cluster and waits until it serves.
    #[track_caller]
    pub(crate) fn start(self) -> Cluster {
        let (mut cluster, reader) = self.launch_with_pipe();
        cluster.ready = cluster.await_ready(reader);
        cluster
    }

    /// Starts the cluster without waiting until it serves.
    #[track_caller]
    pub(crate) fn launch(self) -> Cluster {
        self.launch_with_pipe().0
    }

    #[track_caller]
    fn launch_with_pipe(self) -> (Cluster, PipeReader) {
        let (coord, reader) = self.shape.spawn(self.dir.path(), &[]);
        let ready = Ready { clients_port: 0, servers_port: 0, cluster: String::new(), pid: 0 };
        // From here on, dropping the cluster on a panic ends the started processes.
        (Cluster { coord, ready, shape: self.shape, dir: self.dir }, reader)
    }
}

impl Shape {
    /// Returns the coordinator's command line and writes the cluster file that it names.
    fn command(&self, dir: &Path) -> Command {
        let text = self.cluster_file.clone().unwrap_or_else(|| {
            format!("{}\n{}", self.servers, "localhost 0 0 0\n".repeat(self.servers))
        });
        done(Coord::write_file(dir, &text));
        let mut command = self.coord.command(dir);
        if self.in_foreground {
            command.stdin(Stdio::piped());
        } else {
            command.arg("--daemon").stdin(Stdio::null());
        }
        if let Ok(engine) = std::env::var(ENGINE_VARIABLE)
            && !self.coord.flags.iter().any(|flag| flag == "--net")
        {
            command.args(["--net", &engine]);
            if engine == "epoll" {
                seccomp::deny_io_uring(&mut command);
            }
        }
        if self.is_io_uring_denied {
            seccomp::deny_io_uring(&mut command);
        }
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        if let Some(most) = self.open_files {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            // SAFETY: setrlimit reads a structure that was copied into the closure and is safe to
            // call between fork and exec.
            unsafe {
                command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
        }
        command
    }

    /// Starts a coordinator and returns it with the read end of its `--ready-fd` pipe.
    #[track_caller]
    fn spawn(&self, dir: &Path, flags: &[&str]) -> (Child, PipeReader) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = self.command(dir);
        let descriptor = writer.as_raw_fd();
        command.args(["--ready-fd", &descriptor.to_string()]).args(flags);
        // SAFETY: fcntl on an open descriptor is safe between fork and exec. It lets the
        // coordinator, and no other child, inherit the write end of the pipe.
        unsafe {
            command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        (done(spawn(command, dir)), reader)
    }
}

impl Cluster {
    /// Returns the options for three servers with one shard, which the methods change.
    pub(crate) fn builder() -> Builder {
        turn::take();
        let dir = tempfile::Builder::new().prefix("kv-test-").tempdir().expect("make a directory");
        let shape = Shape {
            servers: 3,
            cluster_file: None,
            in_foreground: false,
            open_files: None,
            is_io_uring_denied: false,
            user: None,
            coord: Coord {
                program: COORD.into(),
                server: Some(SERVER.into()),
                clients_port: 0,
                servers_port: 0,
                shards: 1,
                flags: Vec::new(),
            },
        };
        Builder { shape, dir }
    }

    /// Starts three servers with one shard.
    #[track_caller]
    pub(crate) fn start() -> Cluster {
        Cluster::builder().start()
    }

    #[track_caller]
    fn await_ready(&mut self, reader: PipeReader) -> Ready {
        let (sender, line) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(reader).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = wait_for("the coordinator's line on --ready-fd", TIMEOUT, || {
            if let Some(status) = self.coord.try_wait().expect("wait for coord") {
                panic!("coord ended with {status} before the cluster served");
            }
            line.try_recv().ok()
        });
        assert!(line.ends_with('\n'), "--ready-fd was closed after {line:?}");
        let json: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
        assert_eq!(json["status"], "serving", "{line}");
        let number = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("{name} in {line}"));
        let port = |name| u16::try_from(number(name)).expect("a port");
        Ready {
            clients_port: port("clients_port"),
            servers_port: port("servers_port"),
            cluster: json["cluster"].as_str().expect("the cluster's id").to_owned(),
            pid: u32::try_from(number("pid")).expect("a pid"),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn placement(&self) -> Placement {
        Placement::new(
            u16::try_from(self.shape.servers).expect("at most 1,024"),
            self.shape.coord.shards,
        )
        .with_hash_tags(self.shape.coord.flags.iter().any(|flag| flag == "--hash-tags"))
    }

    pub(crate) fn coord_pid(&self) -> u32 {
        self.coord.id()
    }

    /// Kills the coordinator with SIGKILL and leaves the servers running.
    #[track_caller]
    pub(crate) fn kill_coordinator(&mut self) {
        self.coord.kill().expect("kill coord");
        self.coord.wait().expect("wait for coord");
    }

    /// Starts a coordinator in the directory of the killed one and waits until it serves.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Does the same as [`Cluster::restart`], with further arguments.
    #[track_caller]
    pub(crate) fn restart_with(&mut self, flags: &[&str]) {
        let reader = self.relaunch(flags);
        self.ready = self.await_ready(reader);
    }

    /// Makes later coordinators start without the arguments that the first one was given.
    pub(crate) fn forget_flags(&mut self) {
        self.shape.coord.flags.clear();
    }

    /// Makes later coordinators start with this cluster file.
    pub(crate) fn change_cluster_file(&mut self, text: &str) {
        self.shape.cluster_file = Some(text.to_owned());
    }

    /// Makes later coordinators listen on this port for servers.
    pub(crate) fn change_servers_port(&mut self, port: u16) {
        self.shape.coord.servers_port = port;
    }

    /// Starts a coordinator in the directory of the killed one without waiting until it serves.
    #[track_caller]
    pub(crate) fn relaunch(&mut self, flags: &[&str]) -> PipeReader {
        let (coord, reader) = self.shape.spawn(self.dir.path(), flags);
        self.coord = coord;
        reader
    }

    /// Runs one more coordinator with the same command line and waits until it exits by itself.
    #[track_caller]
    pub(crate) fn run_coordinator(&self, flags: &[&str]) -> Ended {
        let command = self.shape.command(self.dir.path());
        let arguments = command.get_args().map(ToOwned::to_owned);
        let flags = flags.iter().map(|flag| OsString::from(*flag));
        programs::run(COORD, arguments.chain(flags), "", TIMEOUT)
    }

    /// Does the same as [`Cluster::run_coordinator`], in a new PID namespace. Returns `None` if the system forbids it.
    #[track_caller]
    pub(crate) fn run_coordinator_in_a_namespace(&self) -> Option<Ended> {
        let command = self.shape.command(self.dir.path());
        let unshare =
            ["--pid", "--fork", "--mount-proc", "--kill-child", COORD].map(OsString::from);
        let arguments = unshare.into_iter().chain(command.get_args().map(ToOwned::to_owned));
        let ended = programs::run("unshare", arguments, "", TIMEOUT);
        (!ended.stderr.contains("unshare:")).then_some(ended)
    }

    /// Returns the path of the coordinator's stored state.
    pub(crate) fn state_file(&self) -> PathBuf {
        self.dir().join("coordinator.state")
    }

    /// Edits the stored state so that it names another machine.
    #[track_caller]
    pub(crate) fn move_state_to_another_machine(&self) {
        move_to_another_machine(&self.state_file());
    }

    /// Takes the pipe to the coordinator's standard input, for a cluster in the foreground.
    pub(crate) fn take_input(&mut self) -> ChildStdin {
        self.coord.stdin.take().expect("a cluster in the foreground")
    }

    /// Waits until the coordinator ends in any way; fails if a process is left.
    #[track_caller]
    pub(crate) fn await_any_end(&mut self) {
        programs::wait(&mut self.coord, STOP_LIMIT).expect("an end in time");
        self.assert_nobody_left();
    }

    #[track_caller]
    fn assert_nobody_left(&self) {
        let left = process::running_in(self.dir());
        assert!(left.is_empty(), "processes {left:?} outlived their coordinator");
    }

    /// Returns the coordinator's address for clients in the format of the client library.
    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.ready.clients_port)
    }

    /// Opens a client of the library.
    #[track_caller]
    pub(crate) fn open(&self) -> Client {
        self.open_with(Options::default())
    }

    #[track_caller]
    pub(crate) fn open_with(&self, options: Options) -> Client {
        Client::open(&self.endpoint(), options).expect("open a client")
    }

    /// Returns the output of `coord status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> ClusterStatus {
        done(self.shape.coord.status("127.0.0.1", self.ready.clients_port))
    }

    /// Returns the status of one server.
    #[track_caller]
    pub(crate) fn server(&self, id: usize) -> ServerStatus {
        self.status().servers.swap_remove(id)
    }

    #[track_caller]
    pub(crate) fn server_pid(&self, id: usize) -> u32 {
        self.server(id).pid.expect("a server that has started")
    }

    #[track_caller]
    pub(crate) fn server_pids(&self) -> Vec<u32> {
        self.status().servers.iter().map(|server| server.pid.expect("started")).collect()
    }

    /// Runs `client` with these operations on its standard input.
    #[track_caller]
    pub(crate) fn client(&self, operations: &str) -> Ended {
        self.client_with(&[], operations)
    }

    /// Runs `client` with further arguments and this standard input.
    #[track_caller]
    pub(crate) fn client_with(&self, arguments: &[&str], input: &str) -> Ended {
        let port = self.ready.clients_port.to_string();
        let all = ["-h", "127.0.0.1", "-p", &port].into_iter().chain(arguments.iter().copied());
        programs::run(CLIENT, all, input, CLIENT_LIMIT)
    }

    /// Runs `client -f` with these operations in a file.
    #[track_caller]
    pub(crate) fn client_file(&self, name: &str, operations: &str) -> Ended {
        let path = self.dir().join(name);
        fs::write(&path, operations).expect("write the operations file");
        self.client_with(&["-f", path.to_str().expect("a path in UTF-8")], "")
    }

    /// Waits until no server is down or being recovered, and every group is at home with two copies.
    #[track_caller]
    pub(crate) fn await_whole(&self) {
        wait_until("every server up and every group at home", TIMEOUT, || is_whole(&self.status()));
    }

    /// Fails unless the cluster is as it was at its start: no process has ended, every group has two copies, and a
    /// client can write each key and read it from both copies.
    #[track_caller]
    pub(crate) fn assert_serves(&self, pids: &[u32]) {
        for pid in pids {
            assert!(process::is_alive(*pid), "server process {pid} has ended");
        }
        let status = wait_for("every group to have both copies", TIMEOUT, || {
            Some(self.status()).filter(|status| status.state == ClusterState::Serving)
        });
        let found: Vec<u32> = status.servers.iter().map(|s| s.pid.expect("started")).collect();
        assert_eq!(found, pids, "the processes of the servers have changed");
        assert!(status.servers.iter().all(|server| server.state == ServerState::Up));
        assert!(status.groups.iter().all(|group| group.copies == 2), "{:?}", status.groups);
        self.assert_every_place_serves();
    }

    /// Writes and reads a key of every group and shard.
    #[track_caller]
    fn assert_every_place_serves(&self) {
        let mut client = self.open();
        let options = kv_client::OpOptions::default();
        for key in self.keys_of_all_places() {
            let written = client.put(&key, b"still serving", &options).expect("a put");
            assert_eq!(written.copies, 2);
            assert_eq!(client.get(&key, &options).expect("a get").bytes, b"still serving");
            for role in [ReplicaRole::Primary, ReplicaRole::Secondary] {
                let copy = client.verify(&key, role, &options).expect("a verify");
                assert_eq!(copy.expect("a copy").bytes, b"still serving");
            }
        }
    }

    /// Returns one key for each (group, shard).
    fn keys_of_all_places(&self) -> Vec<Vec<u8>> {
        let groups = u16::try_from(self.shape.servers).expect("at most 1,024");
        let places = (0..groups).flat_map(|g| (0..self.shape.coord.shards).map(move |s| (g, s)));
        places.map(|(group, shard)| self.key_at(group, shard, "probe")).collect()
    }

    /// Returns a key of this group and shard that begins with `prefix`.
    pub(crate) fn key_at(&self, group: u16, shard: u16, prefix: &str) -> Vec<u8> {
        kv_testkit::key_at(self.placement(), group, shard, prefix).into_bytes()
    }

    /// Stops the cluster in an orderly way and returns its dumps. Fails unless the coordinator exits with 0 and leaves
    /// no process.
    #[track_caller]
    pub(crate) fn stop(self) -> Dumps {
        let (dumps, dir) = self.stop_and_keep();
        drop(dir);
        dumps
    }

    /// Does the same as [`Cluster::stop`], but keeps the directory and returns it too.
    #[track_caller]
    pub(crate) fn stop_and_keep(mut self) -> (Dumps, TempDir) {
        process::signal(self.coord.id(), Signal::TERM);
        self.await_end(0);
        let dumps = self.dumps();
        let other = tempfile::tempdir().expect("make a directory");
        (dumps, std::mem::replace(&mut self.dir, other))
    }

    /// Returns the directory of a cluster that has ended.
    pub(crate) fn into_dir(mut self) -> TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("make a directory"))
    }

    /// Returns the coordinator's standard error.
    pub(crate) fn coord_errors(&self) -> String {
        let bytes = fs::read(self.dir().join("coord.err")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the coordinator exits with this code; servers may still run.
    #[track_caller]
    pub(crate) fn await_any_code(&mut self, code: i32) {
        let ended = programs::wait(&mut self.coord, STOP_LIMIT).expect("an end in time");
        assert_eq!(ended, Some(code), "the exit code of coord");
    }

    /// Waits until the coordinator exits with this code; fails if a process is left.
    #[track_caller]
    pub(crate) fn await_end(&mut self, code: i32) {
        let ended = programs::wait(&mut self.coord, STOP_LIMIT).expect("an end in time");
        assert_eq!(ended, Some(code), "the exit code of coord");
        self.assert_nobody_left();
    }

    /// Reads all dumps in the directory.
    #[track_caller]
    pub(crate) fn dumps(&self) -> Dumps {
        let all = |role| (0..self.shape.servers).map(|id| self.dump(id, role)).collect();
        Dumps { primary: all("primary"), secondary: all("secondary") }
    }

    /// Reads one dump; fails unless it is complete and unaltered.
    #[track_caller]
    pub(crate) fn dump(&self, id: usize, role: &str) -> Dump {
        read_dump(&self.dir().join(format!("server_{id}.{role}")))
    }

    /// Returns the coordinator's log so far.
    pub(crate) fn coord_log(&self) -> String {
        let bytes = fs::read(self.dir().join("coord.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Edits a coordinator's stored state so that it names another machine.
#[track_caller]
pub(crate) fn move_to_another_machine(state: &Path) {
    rewrite_state(state, |json| json["place"]["machine"]["id"] = "another".into());
}

/// Edits a coordinator's stored state so that its servers run in another PID namespace.
#[track_caller]
pub(crate) fn move_to_another_namespace(state: &Path) {
    rewrite_state(state, |json| {
        for server in json["servers"].as_array_mut().expect("servers") {
            let namespace = server["started"]["namespace"].as_u64().expect("a namespace");
            assert!(namespace > 0, "the PID namespace is unknown");
            server["started"]["namespace"] = (namespace ^ 1).into();
        }
    });
}

#[track_caller]
fn rewrite_state(state: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let text = fs::read_to_string(state).expect("read the state");
    let (header, json) = text.split_once('\n').expect("a first line");
    let mut json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    change(&mut json);
    let json = serde_json::to_string(&json).expect("JSON");
    let words: Vec<&str> = header.split(' ').collect();
    let [magic, version, _, _] = words[..] else { panic!("no header: {header}") };
    let crc = crc32c(json.as_bytes());
    let text = format!("{magic} {version} {} {crc:08x}\n{json}\n", json.len());
    fs::write(state, text).expect("write the state");
}

/// Computes a CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

/// Reads a dump; fails unless it is complete and unaltered.
#[track_caller]
pub(crate) fn read_dump(path: &Path) -> Dump {
    done(kv_testkit::dumps::read(path))
}

impl Dumps {
    /// Fails unless the two dumps of every group hold the same entries, all of them of that group.
    #[track_caller]
    pub(crate) fn assert_copies_agree(&self) {
        let servers = self.primary.len();
        for (id, primary) in self.primary.iter().enumerate() {
            let secondary = &self.secondary[(id + 1) % servers];
            let placement = primary.header.origin.placement(u16::try_from(servers).expect("few"));
            let group = GroupId(u16::try_from(id).expect("few"));
            done(kv_testkit::dumps::agree(group, placement, primary, secondary));
        }
    }

    /// Returns the entries of all groups, by key.
    #[track_caller]
    pub(crate) fn entries(&self) -> std::collections::HashMap<&[u8], &DumpEntry> {
        let mut all = std::collections::HashMap::new();
        for entry in self.primary.iter().flat_map(|dump| &dump.entries) {
            let before = all.insert(&entry.key[..], entry);
            assert!(before.is_none(), "two entries of one key: {before:?} and {entry:?}");
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            programs::show_logs(self.dir.path());
        }
        let _ = self.coord.kill();
        let _ = self.coord.wait();
        process::end_all_in(self.dir.path());
    }
}
