//! A bounded stock of things that one at a time uses: taken when one is idle, made when the bound allows
//! one more, waited for otherwise.
//!
//! ```text
//!   take:   pop -> one that is idle          give:   push
//!           reserve -> room for one more     forget: one less exists
//!           wait -> look again                 then, if anybody waits, wake one
//! ```
//!
//! The queue and the counters need no lock; the gate is passed only by those that wait and by those
//! that wake them. Who waits says so before it looks a last time, and who gives looks for waiters
//! after it has given: one of the two sees the other. `tests/idle_under_loom.rs` tries every order.

use std::time::Duration;

// The standard library's, or those of the test.
use super::sync::{ArrayQueue, AtomicUsize, Condvar, Mutex, Ordering, PoisonError, fence};

/// See the module.
#[derive(Debug)]
pub(crate) struct Idle<T> {
    queue: ArrayQueue<T>,
    /// Things that exist, idle or in use; at most the queue's capacity.
    made: AtomicUsize,
    waiting: AtomicUsize,
    gate: Mutex<()>,
    returned: Condvar,
}

/// What [`Idle::take`] has found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken<T> {
    /// One that was idle.
    One(T),
    /// Room for one more: the caller makes it, or calls [`Idle::forget`].
    Room,
    /// Neither.
    Nothing,
}

impl<T> Idle<T> {
    /// A stock of up to `most`, of which none exists.
    pub(crate) fn new(most: usize) -> Idle<T> {
        Idle {
            queue: ArrayQueue::new(most),
            made: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            gate: Mutex::new(()),
            returned: Condvar::new(),
        }
    }

    /// How many may exist.
    pub(crate) fn most(&self) -> usize {
        self.queue.capacity()
    }

    /// Takes what there is, without waiting.
    pub(crate) fn take(&self) -> Taken<T> {
        if let Some(one) = self.queue.pop() {
            return Taken::One(one);
        }
        let most = self.most();
        let reserved = self.made.fetch_update(Ordering::AcqRel, Ordering::Acquire, |made| {
            (made < most).then_some(made + 1)
        });
        if reserved.is_ok() { Taken::Room } else { Taken::Nothing }
    }

    /// Gives back what was taken, or what was made.
    pub(crate) fn give(&self, one: T) {
        let is_full = self.queue.push(one).is_err();
        assert!(!is_full, "no more exist than the queue holds");
        self.wake_one();
    }

    /// What was taken is no more, or was not made.
    pub(crate) fn forget(&self) {
        self.made.fetch_sub(1, Ordering::AcqRel);
        self.wake_one();
    }

    fn wake_one(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            // Behind the gate nobody is between its last look and its sleep.
            drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
            self.returned.notify_one();
        }
    }

    /// Waits up to `limit` until [`Idle::take`] may find something.
    pub(crate) fn wait(&self, limit: Duration) {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.queue.is_empty() && self.made.load(Ordering::Acquire) >= self.most() {
            let woken = self.returned.wait_timeout(gate, limit);
            drop(woken.unwrap_or_else(PoisonError::into_inner));
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
