//! The client of protocol version 1 with the current servers. Its source is in `tests/previous/client-v1.tar.gz`, taken
//! from commit 89b5e9b, the last one before version 2, without tests.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use crate::common::process::Signal;
use crate::common::programs::{self, Ended};
use crate::common::workshop::root;
use crate::common::{Cluster, TIMEOUT, process, wait_until};
use kv_client::OpOptions;

/// Time limit of a build or a run. It is long because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(900);

/// The executable of the previous client. Cargo builds it once, in this project's target directory.
static PREVIOUS: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let archive = root().join("tests/previous/client-v1.tar.gz");
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(archive).arg("-C").arg(dir);
    programs::finish(unpack, "", LIMIT).with_code(0);
    let source = dir.join("client-v1");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--package", "kv-cli"]).current_dir(&source);
    build.env("CARGO_TARGET_DIR", source.join("target"));
    programs::finish(build, "", LIMIT).with_code(0);
    source.join("target/debug/client")
});

/// Runs the previous client with these operations.
#[track_caller]
fn run(endpoint: &str, operations: &str) -> Ended {
    let (host, port) = endpoint.rsplit_once(':').expect("HOST:PORT");
    let mut command = Command::new(&*PREVIOUS);
    command.args(["-h", host, "-p", port]);
    programs::finish(command, operations, LIMIT)
}

#[test]
fn a_client_of_version_1_works_with_the_current_servers_and_shares_their_entries() {
    let cluster = Cluster::builder().shards(2).start();
    let endpoint = cluster.endpoint();
    let ended = run(&endpoint, "P \"a\" \"1\"\nG \"a\"\nP \"a\" \"2\"\nG \"a\"\nG \"absent\"\n");
    assert!(ended.stdout.contains("value[\"a\"] == \"1\""), "{}", ended.stdout);
    assert!(ended.stdout.contains("value[\"a\"] == \"2\""), "{}", ended.stdout);
    let mut client = cluster.open();
    let options = OpOptions::default();
    assert_eq!(client.get(b"a", &options).expect("a get").bytes, b"2");
    // An entry of an operation that only version 2 has is an entry as any other.
    client.add(b"n", 41, &options).expect("an addition");
    client.add(b"n", 1, &options).expect("an addition");
    assert!(run(&endpoint, "G \"n\"\n").with_code(0).stdout.contains("value[\"n\"] == \"42\""));
}

#[test]
fn a_client_of_version_1_goes_through_a_failover_without_an_error() {
    let cluster = Cluster::builder().shards(1).start();
    let endpoint = cluster.endpoint();
    // The build is not part of the failover.
    run(&endpoint, "P \"first\" \"1\"\n").with_code(0);
    const WRITES: usize = 60_000;
    let mut operations = String::new();
    for n in 0..WRITES {
        writeln!(operations, "P \"k{n}\" \"v{n}\"").expect("a line");
    }
    let options = OpOptions::default();
    let mut client = cluster.open();
    let ended = thread::scope(|scope| {
        let writer = scope.spawn(|| run(&endpoint, &operations));
        let mut is_written = |n: usize| client.get(format!("k{n}").as_bytes(), &options).is_ok();
        wait_until("a twentieth of the writes", TIMEOUT, || is_written(WRITES / 20));
        assert!(!is_written(WRITES - 1), "the writes have ended before the fault");
        process::signal(cluster.server_pid(1), Signal::KILL);
        writer.join().expect("the previous client")
    });
    ended.with_code(0);
    for n in 0..WRITES {
        let value =
            client.get(format!("k{n}").as_bytes(), &options).expect("an acknowledged write");
        assert_eq!(value.bytes, format!("v{n}").as_bytes());
    }
}
