//! The clients of a handle: a call takes one that is idle or opens one more, so that threads do not
//! wait for each other until the bound is reached.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use kv_client::{Client, Endpoints, OpOptions, Options};

use crate::error::{Failure, KVC_BUSY, KVC_PANIC};

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoints: Endpoints,
    options: Options,
    idle: ArrayQueue<Client>,
    /// Clients that exist, idle or in a call; at most the queue's capacity.
    count: AtomicUsize,
    /// A call panicked: nothing of this handle is used again.
    is_poisoned: AtomicBool,
    /// For those who wait until a client is idle again.
    gate: Mutex<()>,
    returned: Condvar,
}

impl Pool {
    /// A pool of up to `most` clients.
    pub(crate) fn new(
        endpoints: Endpoints,
        options: Options,
        most: usize,
    ) -> Result<Pool, Failure> {
        let first = Client::with_endpoints(&endpoints, options.clone())?;
        let idle = ArrayQueue::new(most);
        let pushed = idle.push(first).is_ok();
        assert!(pushed, "a queue of {most} is empty");
        Ok(Pool {
            endpoints,
            options,
            idle,
            count: AtomicUsize::new(1),
            is_poisoned: AtomicBool::new(false),
            gate: Mutex::new(()),
            returned: Condvar::new(),
        })
    }

    /// Runs a call on a client of its own.
    pub(crate) fn with<T>(
        &self,
        options: &OpOptions,
        call: impl FnOnce(&mut Client, &OpOptions) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + options.deadline.unwrap_or(self.options.deadline);
        let mut lent = self.take(deadline)?;
        // What the wait took is no longer there for the call.
        let left = deadline.saturating_duration_since(Instant::now());
        let mut options = *options;
        let asked = options.deadline.unwrap_or(self.options.deadline);
        options.deadline = Some(left.max(std::time::Duration::from_millis(1)).min(asked));
        let client = lent.client.as_mut().expect("it was just taken");
        call(client, &options)
    }

    fn take(&self, deadline: Instant) -> Result<Lent<'_>, Failure> {
        loop {
            if self.is_poisoned.load(Ordering::SeqCst) {
                let words =
                    "an earlier call on this handle met a defect; close it and open another";
                return Err(Failure::new(KVC_PANIC, words));
            }
            if let Some(client) = self.idle.pop() {
                return Ok(Lent { pool: self, client: Some(client) });
            }
            if self.reserve() {
                // Gives the place back if opening fails.
                let mut lent = Lent { pool: self, client: None };
                let client = Client::with_endpoints(&self.endpoints, self.options.clone())?;
                lent.client = Some(client);
                return Ok(lent);
            }
            self.wait(deadline)?;
        }
    }

    /// Takes the place of one more client, if the bound allows it.
    fn reserve(&self) -> bool {
        self.count
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                (count < self.idle.capacity()).then_some(count + 1)
            })
            .is_ok()
    }

    fn wait(&self, deadline: Instant) -> Result<(), Failure> {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at again behind the gate: whoever returns one passes the gate afterwards.
        if !self.idle.is_empty() || self.count.load(Ordering::SeqCst) < self.idle.capacity() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let words = format!(
                "all {} connections per shard were in use until the deadline; raise connections_per_shard, or use fewer threads",
                self.idle.capacity()
            );
            return Err(Failure::new(KVC_BUSY, words));
        }
        let waited = self.returned.wait_timeout(gate, left);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// A client in a call. It goes back to the pool however the call ends; if by a panic, nobody knows
/// its state, and the whole handle is given up.
struct Lent<'a> {
    pool: &'a Pool,
    client: Option<Client>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let pool = self.pool;
        if std::thread::panicking() {
            pool.is_poisoned.store(true, Ordering::SeqCst);
        }
        let is_back = match self.client.take() {
            Some(client) if !std::thread::panicking() => pool.idle.push(client).is_ok(),
            _ => false,
        };
        if !is_back {
            pool.count.fetch_sub(1, Ordering::SeqCst);
        }
        drop(pool.gate.lock().unwrap_or_else(PoisonError::into_inner));
        pool.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    fn pool(most: usize) -> Pool {
        Pool::new(Endpoints::resolve("127.0.0.1:1").unwrap(), Options::default(), most).unwrap()
    }

    fn within(millis: u64) -> OpOptions {
        OpOptions { deadline: Some(Duration::from_millis(millis)), ..OpOptions::default() }
    }

    #[test]
    fn a_panic_in_a_call_poisons_the_handle() {
        let pool = pool(4);
        let call =
            || pool.with(&within(100), |_, _| -> Result<(), Failure> { panic!("on purpose") });
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
        let failure = pool.with(&within(100), |_, _| Ok(())).unwrap_err();
        assert_eq!(failure.status, KVC_PANIC);
    }

    #[test]
    fn beyond_the_bound_a_call_waits_for_its_turn_or_its_deadline() {
        let pool = pool(1);
        let failure =
            pool.with(&within(5_000), |_, _| pool.with(&within(20), |_, _| Ok(()))).unwrap_err();
        assert_eq!(failure.status, KVC_BUSY);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.with(&within(60_000), |_, _| {
                            assert_eq!(pool.idle.len(), 0);
                            total.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 1_600);
        assert_eq!((pool.count.into_inner(), pool.idle.len()), (1, 1));
    }
}
