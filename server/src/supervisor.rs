//! The main thread after the start: signals, and a look at the executors' ticks.
//!
//! SIGTERM or SIGINT: the coordinator is asked for an orderly stop (DRAIN, dumps, SHUTDOWN). If it
//! gives no orders, this server drains and dumps by itself.

use std::sync::Arc;
use std::time::Duration;

use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::Time;
use kv_protocol::limits::{DRAIN_DEADLINE, GRACE};

use crate::clock;
use crate::fatal::Fatal;
use crate::log_limit::LogLimit;
use crate::operation::Node;

/// How often the executors are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// An executor that has not ticked for so long is reported.
const STALL: Duration = GRACE.saturating_mul(10);

/// Keeps SIGTERM and SIGINT for [`run`]; to be called before any thread is started.
pub(crate) fn block_signals() -> Result<(), Fatal> {
    let set = stop_signals();
    // SAFETY: `set` is an initialised set; the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    match result {
        0 => Ok(()),
        code => {
            let error = std::io::Error::from_raw_os_error(code);
            Err(Fatal::System { doing: "block the stop signals", error })
        }
    }
}

fn stop_signals() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data for which zeros are valid, and sigemptyset initialises it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        set
    }
}

/// Watches for the life of the process.
pub(crate) fn run(node: &Arc<Node>) -> ! {
    let mut asked_at: Option<Time> = None;
    let mut stalls = LogLimit::default();
    loop {
        let signalled = wait_for_signal();
        let now = clock::now();
        if signalled && asked_at.is_some() {
            stop_alone(node, "a second signal came");
        } else if signalled {
            asked_at = Some(now);
            node.stop();
            tracing::info!("told to stop; asking the coordinator for an orderly stop");
        }
        if let Some(asked) = asked_at {
            let is_ignored =
                now.since(asked) >= DRAIN_DEADLINE && node.quiet_for(now) >= DRAIN_DEADLINE;
            if !node.is_linked() && node.quiet_for(now) > WATCH_INTERVAL {
                stop_alone(node, "there is no coordinator");
            } else if is_ignored {
                stop_alone(node, "the coordinator gave no orders");
            }
        }
        watch_ticks(node, now, &mut stalls);
    }
}

fn watch_ticks(node: &Node, now: Time, log: &mut LogLimit) {
    for (shard, stall) in node.board.stalled(now, STALL) {
        if let Some(suppressed) = log.admit(now) {
            tracing::error!(suppressed, "the executor of shard {shard} has stood for {stall:?}");
        }
    }
}

/// Waits for a stop signal; `false` when none came within the interval.
fn wait_for_signal() -> bool {
    let set = stop_signals();
    let patience =
        libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(WATCH_INTERVAL.subsec_nanos()) };
    // SAFETY: both are initialised and live across the call; no details of the signal are asked for.
    unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &patience) > 0 }
}

/// Drains and dumps without the coordinator, and ends the process.
fn stop_alone(node: &Node, why: &str) -> ! {
    tracing::warn!("stopping without the coordinator's orders: {why}");
    if let Err(reason) = node.drain() {
        tracing::warn!("drain: {reason}");
    }
    let dumps = [ReplicaRole::Primary, ReplicaRole::Secondary].map(|role| node.dump(role));
    let is_whole = dumps.iter().all(Result::is_ok);
    std::process::exit(if is_whole { 0 } else { 1 });
}
