//! Fixtures shared by the tests over real processes. Each file under `tests/` is a separate program
//! and uses some of these modules.
//!
//! ```text
//!   cluster    a coordinator and its servers in a temporary directory; nothing outlives it
//!   process    processes by pid: find, signal, measure, wait
//!   threads    one stopped thread of another process
//!   programs   one run of `coord` or `client` from its start to its exit
//!   ports      the five kinds of port, and the first frame that each expects
//!   raw        a connection that sends arbitrary bytes
//!   proxy      a fake coordinator in front of real servers, which drops responses
//!   load       bulk operations through the client library
//!   random     seeded random numbers
//!   sshd       an ssh server on a loopback port, with temporary keys
//!   coordinator  a scripted coordinator in front of one real server
//!   hosts      hosts of a cluster: namespaces of this machine, each with an sshd
//!   seccomp    a filter of system calls that denies io_uring
//!   silent     addresses that do not respond
//!   package    the files that `make install` leaves
//!   workshop   C programs, compiled and run with the library as built by cargo
//!   terminal   a program on a pseudo-terminal, and a simulated user
//! ```

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
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod seccomp;
// Public because tests of other crates include it too.
#[allow(unreachable_pub)]
pub(crate) mod silent;
pub(crate) mod sshd;
pub(crate) mod terminal;
pub(crate) mod threads;
pub(crate) mod workshop;

use std::time::{Duration, Instant};

pub(crate) use cluster::Cluster;

/// Time limit for events that should happen soon. It is long because the machine may be busy; a
/// passing test does not wait for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Interval between two checks of a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Polls `look` until it returns a value; fails with `what` if the limit passes first.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    poll(limit, look).unwrap_or_else(|| panic!("waited {limit:?} in vain: {what}"))
}

/// Polls until `is_so` holds; fails with `what` if the limit passes first.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    wait_for(what, limit, || is_so().then_some(()));
}

/// Calls `look` repeatedly until it returns a value or the limit passes.
pub(crate) fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
