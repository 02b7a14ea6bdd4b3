//! The pool of a handle in every order that its threads can meet (loom): nobody sleeps while something
//! is idle, and never are there more than the bound. The queue of crossbeam is modelled by a locked one.

#![allow(dead_code)] // A model of a whole queue.

/// What the pool is built from here.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;

    /// As crossbeam's, seen from outside.
    #[derive(Debug)]
    pub(crate) struct ArrayQueue<T> {
        capacity: usize,
        items: Mutex<Vec<T>>,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> ArrayQueue<T> {
            ArrayQueue { capacity, items: Mutex::new(Vec::new()) }
        }

        pub(crate) fn capacity(&self) -> usize {
            self.capacity
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.items.lock().unwrap().pop()
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            let mut items = self.items.lock().unwrap();
            if items.len() == self.capacity {
                return Err(item);
            }
            items.push(item);
            Ok(())
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.items.lock().unwrap().is_empty()
        }
    }
}

#[path = "../src/idle.rs"]
mod idle;

use idle::{Idle, Taken};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Far beyond any model. Loom's condition variables know no time: a wait that nobody ends is a deadlock,
/// which it reports.
const NO_LIMIT: Duration = Duration::from_secs(86_400);

/// What is in use, and what was made.
#[derive(Default)]
struct Counts {
    in_use: AtomicUsize,
    made: AtomicUsize,
}

/// One call: takes, uses, and gives back or drops.
fn call(idle: &Idle<usize>, counts: &Counts, most: usize, gives_back: bool) {
    let taken = match idle.take() {
        Taken::Nothing => idle.wait(Instant::now() + NO_LIMIT),
        taken => taken,
    };
    let one = match taken {
        Taken::One(one) => one,
        Taken::Room => counts.made.fetch_add(1, Ordering::SeqCst),
        Taken::Nothing => panic!("a wait without an end has ended"),
    };
    assert!(counts.in_use.fetch_add(1, Ordering::SeqCst) < most, "more than the bound");
    counts.in_use.fetch_sub(1, Ordering::SeqCst);
    if gives_back { idle.give(one) } else { idle.forget() }
}

/// Threads that each make one call; those at the places of `drops` do not give back.
fn every_order(most: usize, threads: usize, drops: &'static [usize]) {
    let mut model = loom::model::Builder::new();
    // Orders in which the threads are interrupted more often grow beyond all bounds.
    model.preemption_bound = Some(3);
    model.check(move || {
        let idle = Arc::new(Idle::new(most));
        let counts = Arc::new(Counts::default());
        let others: Vec<_> = (1..threads)
            .map(|n| {
                let (idle, counts) = (Arc::clone(&idle), Arc::clone(&counts));
                loom::thread::spawn(move || call(&idle, &counts, most, !drops.contains(&n)))
            })
            .collect();
        call(&idle, &counts, most, !drops.contains(&0));
        others.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(counts.made.load(Ordering::SeqCst) <= most + drops.len());
    });
}

#[test]
fn two_calls_share_one() {
    every_order(1, 2, &[]);
}

#[test]
fn one_that_is_dropped_makes_room_for_who_waits() {
    every_order(1, 2, &[0]);
    every_order(1, 2, &[1]);
}

#[test]
fn three_calls_share_two() {
    every_order(2, 3, &[]);
}

#[test]
fn of_three_calls_one_is_dropped_while_another_waits() {
    every_order(1, 3, &[1]);
    every_order(2, 3, &[0]);
}
