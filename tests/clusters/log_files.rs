//! Tests that a log that cannot be written, or that blocks its writer, affects only the log.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::common::process::{self, Signal};
use crate::common::programs;
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_protocol::limits::GRACE;

#[test]
fn a_cluster_whose_logs_are_on_a_full_disk_serves_and_stops_cleanly() {
    let builder = Cluster::builder();
    for name in ["coord.log", "coord.err", "server_0.log", "server_0.err", "server_1.log"] {
        // Every write to this log fails as on a full disk.
        symlink("/dev/full", builder.dir().join(name)).expect("make a link");
    }
    let cluster = builder.start();
    let pids = cluster.server_pids();
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}

/// A log that is a pipe. While it is full and not read, its writer blocks as on a stalled device.
struct PipeLog {
    path: PathBuf,
    reader: File,
}

impl PipeLog {
    fn make(path: PathBuf) -> PipeLog {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("make a pipe");
        let reader = open_at_once(OpenOptions::new().read(true), &path);
        PipeLog { path, reader }
    }

    /// Fills the pipe until no further byte fits.
    fn fill(&self) {
        let mut writer = open_at_once(OpenOptions::new().write(true), &self.path);
        for size in [4_096, 1] {
            loop {
                match writer.write(&vec![b'\n'; size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("fill a pipe: {error}"),
                }
            }
        }
    }

    /// Reads what has been written and not yet read.
    fn read(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.reader.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("read a pipe: {error}"),
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn open_at_once(options: &mut OpenOptions, path: &Path) -> File {
    options.custom_flags(libc::O_NONBLOCK).open(path).expect("open a pipe")
}

#[test]
fn stalled_log_devices_end_no_server_and_delay_no_client() {
    let builder = Cluster::builder().shards(2);
    let names = ["coord.log", "server_0.log", "server_1.log", "server_2.log"];
    let mut logs = names.map(|name| PipeLog::make(builder.dir().join(name)));
    let cluster = builder.start();
    let pids = cluster.server_pids();
    logs.iter().for_each(PipeLog::fill);
    // Malformed bytes to each port make each serving thread log a message.
    let ports: Vec<u16> = pids.iter().flat_map(|pid| process::listening_ports(*pid)).collect();
    assert_eq!(ports.len(), 9, "three ports for each server");
    let coordinator = [cluster.ready.clients_port, cluster.ready.servers_port];
    for port in ports.into_iter().chain(coordinator) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("send");
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let start = Instant::now();
    let mut client = cluster.open();
    let options = kv_client::OpOptions::default();
    // The loop lasts longer than any watchdog or failure timeout.
    while start.elapsed() < 3 * GRACE {
        for group in 0..3 {
            client.put(&cluster.key_at(group, 0, "k"), b"v", &options).expect("a put");
        }
    }
    cluster.assert_serves(&pids);
    // Messages that were logged meanwhile appear as soon as the pipe is read.
    for (log, name) in logs.iter_mut().zip(names) {
        let mut said = String::new();
        wait_until("the refusal in the log", TIMEOUT, || {
            said += &log.read();
            ["refused", "rejected"].iter().any(|word| said.contains(word))
        });
        assert!(!said.contains("has been hung"), "{name}: {said}");
        log.fill();
    }
    // An orderly stop does not wait for a log either.
    cluster.stop().assert_copies_agree();
}

/// Returns signals that must end no process, although their default action does: SIGHUP, which reopens the logs, and
/// signals without a meaning here.
fn signals() -> impl Iterator<Item = i32> {
    let named = [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGPIPE,
        libc::SIGXFSZ,
        libc::SIGXCPU,
        libc::SIGHUP,
    ];
    named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// Returns whether the process already blocks, ignores or catches SIGUSR1, according to proc_pid_status(5).
fn withstands_stray_signals(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let masks = status.lines().filter_map(|line| {
        let (name, mask) = line.split_once(':')?;
        let is_mask = matches!(name, "SigBlk" | "SigIgn" | "SigCgt");
        is_mask.then(|| u64::from_str_radix(mask.trim(), 16).ok())?
    });
    masks.fold(0, |all, mask| all | mask) & (1 << (libc::SIGUSR1 - 1)) != 0
}

fn send_all(pid: u32) {
    for signal in signals() {
        // SAFETY: kill takes integers.
        unsafe { libc::kill(pid.cast_signed(), signal) };
    }
}

#[test]
fn signals_without_a_meaning_are_ignored_and_sighup_reopens_the_logs() {
    let cluster = Cluster::builder().in_foreground().start();
    let pids = cluster.server_pids();
    let names = ["coord.log", "server_0.log", "server_1.log", "server_2.log"];
    let (path, old) = (|name: &str| cluster.dir().join(name), |name: &str| format!("{name}.1"));
    for name in names {
        fs::rename(path(name), path(&old(name))).expect("rename a log");
    }
    let named = programs::run(programs::SERVER, ["--name", &pids[0].to_string()], "", TIMEOUT);
    let words: Vec<&str> = named.stdout.split_whitespace().collect();
    let incarnation = cluster.server(0).incarnation.expect("started");
    let process = format!("{}:{}:{}:{incarnation}", words[1], words[2], words[3]);
    let mut watcher = std::process::Command::new(programs::SERVER)
        .args(["--watch", &process])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start a watcher");
    wait_until("the watcher to watch", TIMEOUT, || {
        let pid = watcher.id();
        process::command_line(pid).contains("--watch") && withstands_stray_signals(pid)
    });
    for pid in pids.iter().chain([&cluster.coord_pid(), &watcher.id()]) {
        send_all(*pid);
    }
    for name in names {
        wait_until("a new log", TIMEOUT, || {
            fs::read_to_string(path(name)).is_ok_and(|log| log.contains("the log was reopened"))
        });
    }
    cluster.assert_serves(&pids);
    assert!(watcher.try_wait().expect("wait for it").is_none(), "the watcher has exited");
    watcher.kill().expect("end the watcher");
    watcher.wait().expect("wait for it");
    let (dumps, dir) = cluster.stop_and_keep();
    dumps.assert_copies_agree();
    assert!(fs::read_to_string(dir.path().join("coord.log")).expect("a log").contains("stopped"));

    // A coordinator that restores, and its servers from their start on, are tested too.
    let mut restored = Cluster::builder().restore(dir).launch();
    wait_until("the restored cluster to serve", TIMEOUT, || {
        if restored.coord_log().contains("checking") {
            send_all(restored.coord_pid());
            process::running_in(restored.dir()).into_iter().for_each(send_all);
        }
        restored.coord_log().contains("serving; clients connect")
    });
    process::signal(restored.coord_pid(), Signal::TERM);
    restored.await_end(0);
    restored.dumps().assert_copies_agree();
}

#[test]
fn logs_dumps_and_the_state_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let cluster = Cluster::start();
    let (_dumps, dir) = cluster.stop_and_keep();
    let mut seen = 0;
    for entry in fs::read_dir(dir.path()).expect("read a directory").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // These are the cluster file, the output that the test redirects, and the lock file.
        if ["cluster.txt", "coord.err", "coord.lock"].contains(&&*name) {
            continue;
        }
        let mode = entry.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        seen += 1;
    }
    assert!(seen >= 3 * 4 + 2, "{seen} files");
}
