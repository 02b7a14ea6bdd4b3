//! Tests of a coordinator that cannot store its state. It raises an alarm, and continues as soon as a store succeeds. A
//! full disk does not prevent stores, because the space is reserved.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::process::{self, Signal};
use crate::common::{Cluster, TIMEOUT, wait_for, wait_until};
use kv_client::OpOptions;
use kv_protocol::status::AlarmKind;

/// Time limit from the moment at which the state can be stored again until a group without a primary is served. It
/// covers a retry every 200 ms and the failover, on a busy machine.
const SOON: Duration = Duration::from_secs(3);

fn alarm(cluster: &Cluster, kind: AlarmKind) -> Option<String> {
    cluster.status().alarms.into_iter().find(|alarm| alarm.kind == kind).map(|alarm| alarm.text)
}

fn kill_server_1(cluster: &Cluster) -> u32 {
    let pid = cluster.server_pid(1);
    process::signal(pid, Signal::KILL);
    pid
}

fn await_replaced(cluster: &Cluster, killed: u32) {
    wait_until("another process", TIMEOUT, || {
        cluster.server(1).pid.is_some_and(|pid| pid != killed)
    });
    cluster.await_whole();
}

#[test]
fn a_state_that_cannot_be_stored_raises_an_alarm_and_failover_follows_once_it_can() {
    let cluster = Cluster::start();
    let mut client = cluster.open();
    let key = cluster.key_at(1, 0, "k");
    let patient = OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() };
    client.put(&key, b"before", &patient).expect("a put");
    // Every write to a file fails from now on, as on a broken disk.
    process::limit_file_size(cluster.coord_pid(), Some(0));
    let killed = kill_server_1(&cluster);
    let text = wait_for("the alarm", TIMEOUT, || alarm(&cluster, AlarmKind::StateNotStored));
    for words in ["cannot store its state", "coordinator.state", "os error 27", "ulimit -f"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    let view = cluster.status().groups[1].view;
    assert_eq!(view.0, 1, "a view was sent before it was durable");
    let impatient =
        OpOptions { deadline: Some(Duration::from_millis(300)), ..OpOptions::default() };
    client.get(&key, &impatient).expect_err("its group has no primary");
    process::limit_file_size(cluster.coord_pid(), None);
    let start = Instant::now();
    assert_eq!(client.get(&key, &patient).expect("a get").bytes, b"before");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    await_replaced(&cluster, killed);
    wait_until("the end of the alarm", TIMEOUT, || {
        alarm(&cluster, AlarmKind::StateNotStored).is_none()
    });
    assert!(cluster.coord_log().contains("the state is stored again"));
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_moved_directory_delays_no_failover_and_is_named() {
    let cluster = Cluster::start();
    let moved = cluster.dir().with_extension("moved");
    fs::rename(cluster.dir(), &moved).expect("move the directory");
    let killed = kill_server_1(&cluster);
    await_replaced(&cluster, killed);
    let text = alarm(&cluster, AlarmKind::StateAtRisk).expect("an alarm");
    assert!(text.contains("was moved") && text.contains(".moved"), "{text}");
    fs::rename(&moved, cluster.dir()).expect("move it back");
    let killed = kill_server_1(&cluster);
    await_replaced(&cluster, killed);
    assert_eq!(alarm(&cluster, AlarmKind::StateAtRisk), None);
    cluster.stop().assert_copies_agree();
}

/// A small file system that is unmounted on drop.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    /// Mounts a tmpfs. Returns `None` if the system forbids it.
    fn mount(at: &'a Path) -> Option<Tmpfs<'a>> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m", "kv-test"]).arg(at);
        mount.output().is_ok_and(|output| output.status.success()).then_some(Tmpfs(at))
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).output();
    }
}

#[test]
fn a_full_disk_delays_no_failover() {
    let builder = Cluster::builder();
    let dir = builder.dir().to_owned();
    let Some(_tmpfs) = Tmpfs::mount(&dir) else {
        crate::common::skipped("mount(8) is not permitted here");
        return;
    };
    let cluster = builder.start();
    let mut filler = fs::File::create(dir.join("filler")).expect("create a file");
    while filler.write_all(&[b'x'; 4_096]).is_ok() {}
    while filler.write_all(b"x").is_ok() {}
    for _ in 0..2 {
        let killed = kill_server_1(&cluster);
        await_replaced(&cluster, killed);
    }
    assert_eq!(alarm(&cluster, AlarmKind::StateNotStored), None);
    assert_eq!(alarm(&cluster, AlarmKind::StateAtRisk), None, "no space is reserved");
    drop(cluster);
}
