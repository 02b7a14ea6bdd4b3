//! Fixtures shared by the tests over real processes. Each folder with a `main.rs` under `tests/` is a separate program
//! and uses some of these modules.
//!
//! ```text
//!   cluster    a coordinator and its servers in a temporary directory; nothing outlives it
//!   process    processes by pid: measure, limit, cut their connections
//!   threads    one stopped thread of another process
//!   programs   one run of `coord` or `client` from its start to its exit
//!   turn       the modules of a program, one after the other
//!   ports      the five kinds of port, and the first frame that each expects
//!   raw        a connection that sends arbitrary bytes
//!   proxy      a fake coordinator, and proxies in front of real servers that drop responses
//!   load       bulk operations through the client library
//!   sshd       an ssh server, and a cluster with one server behind it
//!   coordinator  a scripted coordinator in front of one real server
//!   hosts      hosts of a cluster: namespaces of this machine, each with an sshd
//!   seccomp    a filter of system calls that denies io_uring
//!   package    the files that `make install` leaves
//!   workshop   C programs, compiled and run with the library as built by cargo
//!   terminal   a program on a pseudo-terminal, and a simulated user
//! ```
//!
//! The parts that the chaos runner needs as well are in `testkit/`; here their errors become test failures.

#![allow(dead_code)] // Each test program uses some of the modules.

pub(crate) mod cluster;
pub(crate) mod coordinator;
pub(crate) mod hosts;
pub(crate) mod load;
pub(crate) mod package;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod seccomp;
pub(crate) mod sshd;
pub(crate) mod terminal;
pub(crate) mod threads;
pub(crate) mod turn;
pub(crate) mod workshop;

use std::time::Duration;

pub(crate) use cluster::Cluster;
pub(crate) use kv_testkit::{TIMEOUT, poll};

/// Polls `look` until it returns a value; fails with `what` if the limit passes first.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    done(kv_testkit::wait_for(what, limit, look))
}

/// Polls `is_so` until it returns true; fails with `what` if the limit passes first.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    wait_for(what, limit, || is_so().then_some(()));
}

/// Returns the value of a result of the test kit; panics with its error.
#[track_caller]
pub(crate) fn done<T, E: Into<kv_testkit::Error>>(result: Result<T, E>) -> T {
    result.map_err(Into::into).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Reports that a test, or a part of it, is skipped. Writes to standard error directly, because the harness shows the
/// output of `eprintln!` only if the test fails.
pub(crate) fn skipped(reason: &str) {
    let words = format!("\nSKIPPED: {reason}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), words.as_bytes());
}
