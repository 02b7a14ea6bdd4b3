//! The loop of an executor's thread.
//!
//! ```text
//!      +--> tick, if it is due; dials, if some are due
//!      |    messages from other threads: a bounded number
//!      |    jobs: one step of each that is due
//!      |    turn: the ready sockets, and the output of all of these
//!      +--- poll: wait until something is ready or due, or return at once if there is more to do
//! ```

use kv_protocol::ids::Time;

use super::Engine;
use super::poller::{Descriptors, Poller, Source};
use crate::clock;
use crate::fatal::Fatal;
use crate::mailbox::Messages;
use crate::message::ShardMessage;
use crate::net::duties::{self, Duties};
use crate::net::engine::{Engine as _, Prepared};
use crate::net::jobs::Step;

/// The maximum number of messages from other threads that are processed before the next turn.
const MESSAGES_AT_ONCE: usize = 64;

/// Starts the thread of a shard. The thread runs until the process ends.
///
/// # Errors
/// The reason why the descriptors cannot be opened or the thread cannot be started, as text.
pub(crate) fn start_thread(
    name: String,
    prepare: impl FnOnce() -> Prepared + Send + 'static,
) -> Result<(), String> {
    // The descriptors are opened before the thread is created, so that a failure is reported as an error of the start.
    let opened = Descriptors::open();
    let descriptors = opened.map_err(|error| format!("no epoll instance or timer: {error}"))?;
    let thread = std::thread::Builder::new().name(name);
    let started = thread.spawn(move || run(Poller::new(descriptors), prepare()));
    started.map(drop).map_err(|error| error.to_string())
}

fn run(poller: Poller, prepared: Prepared) -> ! {
    let Prepared { context, inbox, listeners } = prepared;
    let engine = Engine::new(context, poller);
    let (bell, messages) = inbox.into_parts();
    let failed = |error| -> ! {
        Fatal::System { doing: "register sockets with epoll", error }.end_process()
    };
    let mut net = engine.net.borrow_mut();
    net.poller.add(&bell, Source::Bell).unwrap_or_else(|error| failed(error));
    for (listener, port) in listeners {
        net.listen(listener, port).unwrap_or_else(|error| failed(error));
    }
    drop(net);
    // The eventfd of the mailbox stays open, because `drive` does not return.
    engine.drive(&messages)
}

impl Engine {
    /// Serves the shard until the process ends.
    fn drive(&self, messages: &Messages<ShardMessage>) -> ! {
        let mut duties = Duties::new();
        let mut tick_at = Time::default();
        loop {
            let now = clock::now();
            if tick_at <= now {
                tick_at = now + duties.tick(self);
            }
            if self.next_dial().is_some_and(|due| due <= now) {
                self.dial_due(now);
            }
            let has_more = self.carry_out(messages);
            let next_step = self.step_jobs();
            self.turn();
            let due = [next_step, self.next_dial()].into_iter().flatten().fold(tick_at, Time::min);
            self.poll(due, has_more);
        }
    }

    fn next_dial(&self) -> Option<Time> {
        self.context.shard.borrow().service.poll_dial()
    }

    /// Processes messages from other threads, orders first. Returns whether there may be more.
    fn carry_out(&self, messages: &Messages<ShardMessage>) -> bool {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(message) = messages.pop() else { return false };
            duties::take(self, message);
        }
        true
    }

    /// Takes one step of each job that is due. Returns the time of the next step; `None` if no job is left.
    fn step_jobs(&self) -> Option<Time> {
        let mut jobs = self.jobs.borrow_mut();
        if jobs.is_empty() {
            return None;
        }
        jobs.retain_mut(|(due, job)| {
            let now = clock::now();
            if *due > now {
                return true;
            }
            match job.step(&self.context) {
                Step::Again => *due = now,
                Step::After(pause) => *due = clock::now() + pause,
                Step::Done => return false,
            }
            true
        });
        jobs.iter().map(|(due, _)| *due).min()
    }

    /// Collects events. If there is no other work, it waits for events until `due`.
    fn poll(&self, due: Time, has_more: bool) {
        let mut net = self.net.borrow_mut();
        let mut may_sleep = !has_more && !self.context.has_wish() && !net.sockets.have_work();
        if may_sleep {
            let now = clock::now();
            may_sleep = due > now;
            if may_sleep {
                let set = net.poller.wake_at(now, due);
                set.unwrap_or_else(|error| {
                    Fatal::System { doing: "set the timer of a shard", error }.end_process()
                });
            }
        }
        net.look(&mut self.context.shard.borrow_mut(), may_sleep);
    }
}
