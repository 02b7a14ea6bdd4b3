//! An orderly exit without a coordinator's orders: the server drains, dumps and exits by itself.
//!
//! ```text
//!   drain --> dumps --complete--> exit
//!               ^  |
//!               |  | failed: the tables stay in memory; retry after a pause
//!               +--+
//!               a signal after the first, while a dump fails: the tables are abandoned, exit
//! ```
//!
//! The thread is created when the server starts, because the system may be unable to create a thread later.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use kv_core::cluster::{DUMP_RETRY_PAUSE, LAST_DUMP_RETRY_PAUSE};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::exit_code::ServerExit;
use kv_protocol::ids::Time;

use super::operation::ServerProcess;
use crate::dump;
use crate::fatal::{self, Fatal};

/// The time after the first failure of a dump in which a signal does not count: it may have been sent before the
/// failure was visible.
const SECOND_THOUGHT: Duration = Duration::from_secs(1);

/// The parameters of an exit without orders.
#[derive(Debug)]
pub(crate) struct Leave {
    /// The time within which pending writes must commit.
    pub(crate) timeout: Duration,
    /// The reason why the server leaves without orders.
    pub(crate) why: &'static str,
    /// The exit status once the tables are dumped.
    pub(crate) exit: ServerExit,
}

/// A handle to the thread that waits for the request to leave.
#[derive(Debug)]
pub(crate) struct Leaver {
    leave: Sender<Leave>,
}

impl Leaver {
    /// Starts the thread.
    pub(crate) fn start(node: &Arc<ServerProcess>) -> Result<Leaver, Fatal> {
        let (leave, told) = bounded::<Leave>(1);
        let node = Arc::clone(node);
        let wait = move || {
            if let Ok(leave) = told.recv() {
                leave_alone(&node, &leave);
            }
        };
        let thread = std::thread::Builder::new().name("stop".to_owned()).spawn(wait);
        let failed = |error| Fatal::System { doing: "start a thread", error };
        thread.map(|_| Leaver { leave }).map_err(failed)
    }

    /// Requests that the thread begin the exit. Only the first call has an effect.
    pub(crate) fn leave(&self, leave: Leave) {
        // The channel has room for the only request that is ever sent.
        let _ = self.leave.try_send(leave);
    }
}

/// Drains within the timeout, retries the dumps until they succeed, and ends the process.
fn leave_alone(node: &ServerProcess, leave: &Leave) -> ! {
    tracing::warn!("stopping without the coordinator's orders: {}", leave.why);
    if let Err(reason) = node.drain(leave.timeout) {
        tracing::warn!("the drain is incomplete: {reason}");
    }
    let mut left = vec![ReplicaRole::Primary, ReplicaRole::Secondary];
    let mut pause = DUMP_RETRY_PAUSE;
    loop {
        // If this server has no full copy of a table, no data is lost without its dump.
        left.retain(|role| node.dump(*role).is_err_and(|error| !error.is_no_copy()));
        if left.is_empty() {
            fatal::end(leave.exit);
        }
        tracing::error!(
            "the tables that are not dumped stay in memory, and their dumps are retried in {pause:?}: free \
             space or raise the limits; a SIGTERM after the first one abandons these tables"
        );
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_DUMP_RETRY_PAUSE);
    }
}

/// Returns whether a further signal means that the operator abandons the tables that cannot be dumped.
pub(crate) fn may_give_up(node: &ServerProcess, now: Time) -> bool {
    let failing = node.dumps.failing();
    failing.iter().any(|(_, since)| now.since(*since) >= SECOND_THOUGHT)
}

/// Ends the process although some tables are not dumped.
pub(crate) fn give_up(node: &ServerProcess) -> ! {
    for (role, _) in node.dumps.failing() {
        let name = dump::file_name(node.me.server, role);
        let group = node.dumps.group_of(role);
        tracing::error!(
            "received a further stop signal: {name} is abandoned, and with it this copy of group {group}"
        );
    }
    fatal::end(ServerExit::NotDumped)
}
