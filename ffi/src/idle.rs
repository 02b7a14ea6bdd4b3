//! A bounded stock of things that one at a time uses: taken when one is idle, made when the bound allows
//! one more, waited for otherwise.
//!
//! ```text
//!   take:   pop -> one that is idle          give:   nobody waits: push
//!           reserve -> room for one more             else hand it to the oldest that waits
//!           wait -> stand in line            forget: the same with the room that it leaves
//! ```
//!
//! The queue and the counters need no lock; the gate is passed only by those that wait and by those
//! that serve them. Who waits says so before it looks a last time, and who gives looks for waiters
//! after it has given: one of the two sees the other. What is handed over never lies in the queue, so
//! nobody who comes later can take it before. `tests/idle_under_loom.rs` tries every order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

// The standard library's, or those of the test.
use super::sync::{
    ArrayQueue, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, fence,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Idle<T> {
    queue: ArrayQueue<T>,
    /// Things that exist, idle or in use; at most the queue's capacity.
    made: AtomicUsize,
    /// How many stand in line; changed behind the gate only.
    waiting: AtomicUsize,
    /// Those that wait, the oldest first.
    gate: Mutex<VecDeque<Arc<Place<T>>>>,
}

/// Where one that waits is served.
#[derive(Debug)]
struct Place<T> {
    handed: Mutex<Option<Taken<T>>>,
    served: Condvar,
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
            gate: Mutex::new(VecDeque::new()),
        }
    }

    /// How many may exist.
    pub(crate) fn most(&self) -> usize {
        self.queue.capacity()
    }

    /// How many stand in line.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
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
        if let Some(one) = self.hand_on(one, Taken::One) {
            let is_full = self.queue.push(one).is_err();
            assert!(!is_full, "no more exist than the queue holds");
            self.serve_late();
        }
    }

    /// What was taken is no more, or was not made.
    pub(crate) fn forget(&self) {
        if self.hand_on((), |()| Taken::Room).is_some() {
            self.made.fetch_sub(1, Ordering::AcqRel);
            self.serve_late();
        }
    }

    /// Hands `what` to the oldest that waits; nobody waits: it is returned.
    fn hand_on<W>(&self, what: W, taken: impl FnOnce(W) -> Taken<T>) -> Option<W> {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return Some(what);
        }
        let mut line = lock(&self.gate);
        match self.first(&mut line) {
            Some(place) => place.hand(taken(what)),
            None => return Some(what),
        }
        None
    }

    /// Serves those that stood in line after [`Idle::hand_on`] had looked.
    fn serve_late(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.serve(&mut lock(&self.gate));
        }
    }

    /// Serves who waits, in turn, with what there is.
    fn serve(&self, line: &mut VecDeque<Arc<Place<T>>>) {
        while !line.is_empty() {
            match self.take() {
                Taken::Nothing => return,
                taken => {
                    if let Some(place) = self.first(line) {
                        place.hand(taken);
                    }
                }
            }
        }
    }

    /// The oldest that waits leaves the line.
    fn first(&self, line: &mut VecDeque<Arc<Place<T>>>) -> Option<Arc<Place<T>>> {
        let place = line.pop_front()?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(place)
    }

    /// As [`Idle::take`], but waits in line until `limit`.
    pub(crate) fn wait(&self, limit: Instant) -> Taken<T> {
        let place = Arc::new(Place { handed: Mutex::new(None), served: Condvar::new() });
        {
            let mut line = lock(&self.gate);
            line.push_back(Arc::clone(&place));
            self.waiting.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.serve(&mut line);
        }
        if let Some(taken) = place.wait(limit) {
            return taken;
        }
        // Too late; but until it has left the line it may be served.
        let mut line = lock(&self.gate);
        if let Some(index) = line.iter().position(|other| Arc::ptr_eq(other, &place)) {
            line.remove(index);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        lock(&place.handed).take().unwrap_or(Taken::Nothing)
    }
}

impl<T> Place<T> {
    fn hand(&self, taken: Taken<T>) {
        *lock(&self.handed) = Some(taken);
        self.served.notify_one();
    }

    fn wait(&self, limit: Instant) -> Option<Taken<T>> {
        let mut handed = lock(&self.handed);
        loop {
            if let Some(taken) = handed.take() {
                return Some(taken);
            }
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            handed = self
                .served
                .wait_timeout(handed, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(handed, _)| handed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
