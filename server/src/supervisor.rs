//! The main thread after the start. It handles signals and runs the watchdog.
//!
//! On SIGTERM or SIGINT it requests an orderly stop from the coordinator. The coordinator hands this server's groups
//! over to other servers, and then sends SHUTDOWN. For a last holder, it orders DRAIN and the dumps before that. The
//! server waits while orders arrive (at least a PROBE every second). If the coordinator sends no orders, this server
//! drains and dumps by itself:
//!
//! ```text
//!   signal --- COORDINATOR_TIMEOUT ---> no order: drain --- LEAVE_BY ---> dumps, exit (control/leaving.rs)
//! ```
//!
//! A server that has been without a coordinator for `--orphan-timeout` leaves in the same way. SIGHUP reopens the log
//! file. Signals without a meaning are ignored ([`kv_daemon::signals`]).

use std::sync::Arc;
use std::time::Duration;

use kv_core::awake::Awake;
use kv_daemon::signals;
use kv_protocol::exit_code::ServerExit;
use kv_protocol::ids::Time;
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_shard::LogLimit;

use crate::clock;
use crate::control::leaving::{self, Leave, Leaver};
use crate::control::operation::ServerProcess;
use crate::fatal::{self, Fatal};
use crate::log;
use crate::watchdog::{LOOK_INTERVAL, Stalled, Watchdog};

/// The time since the last order after which the coordinator counts as unavailable if there is no link to it.
const LINK_PAUSE: Duration = Duration::from_millis(250);
/// The time within which a coordinator must send its first order. The timeout of each later order is that of a drain of
/// the whole cluster.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(2);
/// The time, counted from the signal, until which a server that stops alone waits for pending writes. The rest of the
/// time that a stop may take is for the dumps.
const LEAVE_BY: Duration = DRAIN_DEADLINE.saturating_sub(Duration::from_millis(500));

/// The interval between log lines about a stalled thread that is left running.
const STALLED_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The signals that [`run`] waits for.
const AWAITED: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Blocks these signals for [`run`]; must be called before any thread is started.
pub(crate) fn block_signals() -> Result<(), Fatal> {
    let doing = "block SIGTERM, SIGINT and SIGHUP";
    signals::block(&AWAITED).map_err(|error| Fatal::System { doing, error })
}

/// Handles signals and the watchdog for the life of the process.
pub(crate) fn run(node: &Arc<ServerProcess>) -> ! {
    let leaver = Leaver::start(node).unwrap_or_else(|fatal| fatal.end_process());
    let mut asked: Option<Duration> = None;
    let mut is_leaving = false;
    let mut watchdog = Watchdog::default();
    let mut stalled_log = LogLimit::every(STALLED_LOG_INTERVAL);
    // The timeouts of a stop exclude the time in which this process or its machine is suspended.
    let mut awake = Awake::new(LOOK_INTERVAL * 2);
    let (mut last_order, mut moved) = (Some(Time::default()), Duration::ZERO);
    loop {
        let signal = wait_for_signal();
        if signal == Some(libc::SIGHUP) {
            log::reopen();
        }
        let signalled = matches!(signal, Some(libc::SIGTERM | libc::SIGINT));
        let now = clock::now();
        let clock = awake.look(now);
        let order = node.last_order();
        if order.is_none() || order != last_order {
            (last_order, moved) = (order, clock);
        }
        let is_repeated = signalled && asked.is_some();
        if is_repeated && leaving::may_give_up(node, now) {
            leaving::give_up(node);
        }
        if signalled && !is_repeated {
            asked = Some(clock);
            node.stop();
            tracing::info!(
                "received a stop signal; requesting an orderly stop from the coordinator"
            );
        }
        if let Some(asked) = asked.filter(|_| !is_leaving) {
            let (waited, quiet) = (clock - asked, clock - moved);
            let why = if is_repeated {
                Some("a second signal arrived")
            } else if !node.is_linked() && quiet > LINK_PAUSE {
                Some("there is no coordinator")
            } else {
                is_ignored(waited, quiet).then_some("the coordinator gave no orders")
            };
            if let Some(why) = why {
                is_leaving = true;
                let timeout = LEAVE_BY.saturating_sub(waited);
                leaver.leave(Leave { timeout, why, exit: ServerExit::Stopped });
            }
        } else if node.is_orphaned() && !is_leaving {
            is_leaving = true;
            let why = "no coordinator has come back (--orphan-timeout)";
            leaver.leave(Leave { timeout: LEAVE_BY, why, exit: ServerExit::Orphaned });
        }
        let stalled = watchdog.look(clock::now(), node.statistics.pulses());
        judge(node, now, stalled.as_ref(), &mut stalled_log);
    }
}

/// Ends this process if a thread is hung. If the server is the only holder of a group, only logs the hang at intervals:
/// such a primary needs no lease, and no other server could take over.
fn judge(node: &ServerProcess, now: Time, stalled: Option<&Stalled>, log: &mut LogLimit) {
    let stood = stalled.map_or(Duration::ZERO, |stalled| stalled.stood);
    node.statistics.note_stood(stood);
    let Some(stalled) = stalled else { return };
    if !node.statistics.is_sole_holder() {
        fatal::abort_stalled(stalled);
    }
    if log.admit(now).is_some() {
        fatal::report_stalled(stalled);
    }
}

/// Returns whether the coordinator ignores the requested stop, given the time since the request and since its last
/// order.
fn is_ignored(waited: Duration, quiet: Duration) -> bool {
    let gave_orders = quiet < waited;
    let timeout = if gave_orders { DRAIN_DEADLINE } else { COORDINATOR_TIMEOUT };
    quiet.min(waited) >= timeout
}

/// Waits for a signal; returns `None` if none arrives within the interval.
fn wait_for_signal() -> Option<libc::c_int> {
    let set = signals::set_of(&AWAITED);
    let timeout =
        libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(LOOK_INTERVAL.subsec_nanos()) };
    // SAFETY: both are initialised and live across the call; no details of the signal are requested.
    let signal = unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &timeout) };
    (signal > 0).then_some(signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_that_has_given_an_order_has_a_longer_timeout() {
        let seconds = Duration::from_secs;
        assert!(!is_ignored(seconds(1), seconds(1_000)), "the request is recent");
        assert!(is_ignored(seconds(2), seconds(1_000)), "it gave no order since");
        assert!(!is_ignored(seconds(4), seconds(3)), "others may still drain");
        assert!(!is_ignored(seconds(20), Duration::ZERO), "an order is being carried out");
        assert!(is_ignored(seconds(9), seconds(5)));
    }
}
