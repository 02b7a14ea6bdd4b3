//! The work of an executor in addition to moving bytes. It is the same with both engines.
//!
//! ```text
//!   engine: calls Duties::tick    when it is due
//!                 take            for each message of the mailbox
//!                 Job::step       for dumps and loads (jobs.rs)
//! ```

use std::time::Duration;

use kv_protocol::ids::Time;
use kv_shard::LogLimit;

use super::context::ShardContext;
use super::engine::Engine;
use super::jobs::Job;
use crate::clock;
use crate::message::{ShardMessage, ShardReply};
use crate::watchdog::Activity;

/// The longest pause between two ticks while bytes arrive.
const TICK_ACTIVE: Duration = Duration::from_millis(10);
/// The longest pause between two ticks while no bytes arrive.
const TICK_IDLE: Duration = Duration::from_millis(100);
/// The interval between log lines about connections that are closed to make room.
const CROWD_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest pause between two ticks.
const TICK_SHORTEST: Duration = Duration::from_millis(1);
/// The interval at which deadlines are enforced and the shard's state is published.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// The work of every tick, with its state between ticks.
pub(crate) struct Duties {
    housekeeping_at: Time,
    crowd_log: LogLimit,
}

impl Duties {
    /// Creates the state of the periodic work; housekeeping is due at once.
    pub(crate) fn new() -> Duties {
        Duties { housekeeping_at: Time::default(), crowd_log: LogLimit::every(CROWD_LOG_INTERVAL) }
    }

    /// Performs the work that is due; returns the pause until the next tick.
    pub(crate) fn tick(&mut self, engine: &impl Engine) -> Duration {
        let context = engine.context();
        let place = usize::from(context.here.0);
        let (now, wall) = clock::now_and_wall();
        context.statistics.tick(place);
        context.statistics.begin(place, Activity::Timers);
        context.shard.borrow_mut().handle_tick(now, wall);
        engine.dial_due(now);
        context.want_flush();
        make_room(context, now, &mut self.crowd_log);
        if self.housekeeping_at <= now {
            self.housekeeping_at = now + HOUSEKEEPING;
            engine.enforce_deadlines(now);
            context.publish();
        }
        let longest = if context.take_activity() { TICK_ACTIVE } else { TICK_IDLE };
        let due = context.shard.borrow().service.poll_timeout();
        let pause = due.map_or(longest, |due| due.since(now).min(longest));
        context.statistics.begin(place, Activity::Connections);
        pause.max(TICK_SHORTEST)
    }
}

/// Closes idle connections of the address with the most connections, if the server has more clients than its limit.
fn make_room(context: &ShardContext, now: Time, log: &mut LogLimit) {
    let Some((address, excess)) = context.statistics.admission.crowding() else { return };
    let closed = context.shard.borrow_mut().close_idle(address, excess);
    if closed == 0 {
        return;
    }
    context.statistics.admission.note_closed(now, closed);
    if let Some(suppressed) = log.admit(now) {
        tracing::warn!(
            suppressed,
            "closed {closed} idle connections of {address}, the address with the most connections, to make \
             room for other addresses: this server accepts at most {} client connections",
            context.statistics.admission.bounds().clients
        );
    }
}

/// Processes a message from another thread.
pub(crate) fn take(engine: &impl Engine, message: ShardMessage) {
    let activity = match message {
        ShardMessage::Install { .. } => Activity::Install,
        _ => Activity::Message,
    };
    engine.context().during(activity, || carry_out(engine, message));
}

fn carry_out(engine: &impl Engine, message: ShardMessage) {
    let context = engine.context();
    match message {
        ShardMessage::Connection(handed) => engine.adopt(handed),
        ShardMessage::Install { order, view, other, replies } => {
            let now = clock::now();
            let shard = context.here;
            let installed = context.shard.borrow_mut().service.install(now, view, other);
            if let Err(reason) = installed {
                let reason = reason.to_string();
                replies.send(ShardReply::Refused { order, shard, reason });
            }
            engine.dial_due(now);
            context.want_flush();
        }
        ShardMessage::Probe { order, replies } => {
            let shard = context.here;
            // A frozen shard does not reply: a server that is about to exit must not provide evidence for the removal
            // of another server.
            if !context.shard.borrow().service.is_frozen() {
                replies.send(ShardReply::Probed { order, shard });
            }
        }
        ShardMessage::Exited { member } => {
            let now = clock::now();
            context.shard.borrow_mut().service.handle_exited(now, member);
            engine.dial_due(now);
            context.want_flush();
        }
        ShardMessage::Drain => {
            context.shard.borrow_mut().service.drain();
            context.want_flush();
        }
        ShardMessage::Flush { order, group, view } => {
            context.shard.borrow_mut().service.begin_flush(order, group, view);
        }
        ShardMessage::Dump { role, pieces } => {
            // The shard is frozen first, because a write that is acknowledged after its table was walked would be in no
            // dump.
            context.shard.borrow_mut().service.freeze();
            engine.begin(Job::dump(role, pieces));
        }
        ShardMessage::Load { group, pieces, done } => engine.begin(Job::load(group, pieces, done)),
    }
}
