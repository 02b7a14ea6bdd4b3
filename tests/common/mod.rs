//! What the tests over real processes share. Each file under `tests/` is a program of its own and
//! uses a part of this.
//!
//! ```text
//!   cluster    a coordinator and its servers in a directory of their own; nothing survives it
//!   process    processes by pid: find, signal, measure, wait
//!   threads    one thread of another process, made to stand
//!   programs   one run of `coord` or `client` from its start to its exit
//!   ports      the five kinds of port, and the first frame that each expects
//!   raw        a connection that says whatever a test wants it to say
//!   proxy      a fake coordinator in front of real servers, which cuts answers off
//!   load       many operations through the client library
//!   random     seeded random numbers
//!   sshd       an ssh server on a loopback port, with keys that are thrown away
//!   coordinator  a coordinator that says what a test wants it to say
//!   hosts      hosts of a cluster: namespaces of this machine, an sshd in each
//!   seccomp    a filter of system calls, under which io_uring is denied
//!   silent     addresses at which nobody answers
//!   package    what `make install` leaves
//!   workshop   C programs, compiled and run with the library as cargo has built it
//!   terminal   a program on a pseudo-terminal, and somebody who types
//! ```

#![allow(dead_code)] // Every test program uses another part.

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
// Tests of crates use it, too.
#[allow(unreachable_pub)]
pub(crate) mod silent;
pub(crate) mod sshd;
pub(crate) mod terminal;
pub(crate) mod threads;
pub(crate) mod workshop;

use std::time::{Duration, Instant};

pub(crate) use cluster::Cluster;

/// How long a test waits for what should come soon. Long, because the machine may be busy; nothing
/// waits for it where all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `look` finds something, and fails naming `what` when it does not in time.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    poll(limit, look).unwrap_or_else(|| panic!("waited {limit:?} in vain: {what}"))
}

/// Waits until `is_so` holds, and fails naming `what` when it does not in time.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    wait_for(what, limit, || is_so().then_some(()));
}

/// Looks again and again until there is something or the time is over.
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
