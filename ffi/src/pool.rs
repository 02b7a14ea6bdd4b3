//! The clients of a handle: a call takes one that is idle or opens one more, so that threads do not
//! wait for each other until the bound is reached.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_client::{Client, Endpoints, OpOptions, Options};

use crate::error::{Failure, KVC_BUSY, KVC_PANIC};
use crate::idle::{Idle, Taken};

/// What a wait for a client leaves of a deadline, at the least; of a short one a tenth.
const LEAST_LEFT: Duration = Duration::from_millis(10);
/// A wait this long is told when the call fails.
const WORTH_WORDS: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    endpoints: Endpoints,
    options: Options,
    idle: Idle<Client>,
    /// A call panicked: nothing of this handle is used again.
    is_poisoned: AtomicBool,
}

impl Pool {
    /// A pool of up to `most` clients.
    pub(crate) fn new(
        endpoints: Endpoints,
        options: Options,
        most: usize,
    ) -> Result<Pool, Failure> {
        let is_poisoned = AtomicBool::new(false);
        let pool = Pool { endpoints, options, idle: Idle::new(most), is_poisoned };
        // What is wrong with the options shows now.
        drop(pool.take(Instant::now())?);
        Ok(pool)
    }

    /// One more client of the same cluster, outside of the pool.
    pub(crate) fn open(&self, window: usize) -> Result<Client, Failure> {
        self.check()?;
        let options = Options { window, ..self.options.clone() };
        Ok(Client::with_endpoints(&self.endpoints, options)?)
    }

    /// Runs a call on a client of its own. The options say what is left of its deadline.
    pub(crate) fn with<T>(
        &self,
        options: &OpOptions,
        call: impl FnOnce(&mut Client, &OpOptions) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let asked = options.deadline.unwrap_or(self.options.deadline);
        let begun = Instant::now();
        // With less than this a request would be sent only to be given up at once, and a write be in doubt.
        let least = (asked / 10).min(LEAST_LEFT);
        let mut lent = self.take(begun + (asked - least))?;
        // What the wait took is no longer there for the call.
        let waited = begun.elapsed();
        if lent.has_waited && waited + least >= asked {
            return Err(self.busy());
        }
        let left = asked.saturating_sub(waited).max(Duration::from_millis(1));
        let client = lent.client.as_mut().expect("it was just taken");
        lent.is_in_call = true;
        let result = call(client, &OpOptions { deadline: Some(left), ..*options });
        lent.is_in_call = false;
        match result {
            // What the client says of time is of what was left to it.
            Err(mut failure) if waited >= WORTH_WORDS && lent.has_waited => {
                failure.words.push_str(&format!(
                    " (of {asked:?} it had waited {}ms for one of {} connections per shard)",
                    waited.as_millis(),
                    self.idle.most()
                ));
                Err(failure)
            }
            result => result,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        if self.is_poisoned.load(Ordering::SeqCst) {
            let words = "an earlier call on this handle met a defect; close it and open another";
            return Err(Failure::new(KVC_PANIC, words));
        }
        Ok(())
    }

    /// A client, for which the call waits in turn until `limit`.
    fn take(&self, limit: Instant) -> Result<Lent<'_>, Failure> {
        self.check()?;
        let (taken, has_waited) = match self.idle.take() {
            Taken::Nothing => (self.idle.wait(limit), true),
            taken => (taken, false),
        };
        // Gives the place back if this fails.
        let mut lent = match taken {
            Taken::One(client) => Lent::new(self, Some(client)),
            Taken::Room => Lent::new(self, None),
            Taken::Nothing => return Err(self.busy()),
        };
        lent.has_waited = has_waited;
        self.check()?;
        if lent.client.is_none() {
            lent.client = Some(Client::with_endpoints(&self.endpoints, self.options.clone())?);
        }
        Ok(lent)
    }

    fn busy(&self) -> Failure {
        let words = format!(
            "all {} connections per shard were in use until the deadline; raise connections_per_shard, or use fewer threads",
            self.idle.most()
        );
        Failure::new(KVC_BUSY, words)
    }
}

/// A client in a call. It goes back to the pool however the call ends; if by a panic, nobody knows
/// its state, and the whole handle is given up.
struct Lent<'a> {
    pool: &'a Pool,
    client: Option<Client>,
    /// Whether a call has begun and not returned. Whether this thread unwinds says nothing: its program
    /// may be unwinding when it calls.
    is_in_call: bool,
    /// Whether the call has stood in line for it.
    has_waited: bool,
}

impl Lent<'_> {
    fn new(pool: &Pool, client: Option<Client>) -> Lent<'_> {
        Lent { pool, client, is_in_call: false, has_waited: false }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let pool = self.pool;
        if self.is_in_call {
            pool.is_poisoned.store(true, Ordering::SeqCst);
            return pool.idle.forget();
        }
        match self.client.take() {
            Some(client) => pool.idle.give(client),
            None => pool.idle.forget(),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Runs `call` while this thread unwinds from a panic, as a destructor in a Rust program would.
    pub(crate) fn unwinding(call: impl Fn()) {
        struct Destructor<F: Fn()>(F);
        impl<F: Fn()> Drop for Destructor<F> {
            fn drop(&mut self) {
                (self.0)();
            }
        }
        let panicking = || {
            let _destructor = Destructor(call);
            panic!("on purpose");
        };
        assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    }
}

#[cfg(test)]
mod tests {
    use super::testing::unwinding;
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;

    fn pool(most: usize) -> Pool {
        Pool::new(
            Endpoints::resolve("127.0.0.1:1", &kv_client::Log::default()).unwrap(),
            Options::default(),
            most,
        )
        .unwrap()
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
    fn a_program_that_calls_while_it_unwinds_harms_no_handle() {
        let pool = pool(4);
        unwinding(|| pool.with(&within(100), |_, _| Ok(())).unwrap());
        pool.with(&within(100), |_, _| Ok(())).unwrap();
        assert!(matches!(pool.idle.take(), Taken::One(_)), "it is back");
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
                            assert!(matches!(pool.idle.take(), Taken::Nothing));
                            total.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 1_600);
        assert!(matches!(pool.idle.take(), Taken::One(_)), "it is back");
        assert!(matches!(pool.idle.take(), Taken::Nothing), "there was never more than one");
    }

    /// Whoever gives a client back and asks again at once stands behind those that wait already.
    #[test]
    fn a_client_that_comes_back_goes_to_the_oldest_that_waits() {
        let pool = pool(1);
        let served = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            pool.with(&within(60_000), |_, _| {
                for n in 0..3 {
                    let (pool, served) = (&pool, &served);
                    scope.spawn(move || {
                        pool.with(&within(60_000), |_, _| {
                            served.lock().unwrap().push(n);
                            Ok(())
                        })
                    });
                    let deadline = Instant::now() + Duration::from_secs(20);
                    while pool.idle.waiting() <= n {
                        assert!(Instant::now() < deadline, "it does not wait");
                        std::thread::yield_now();
                    }
                }
                Ok(())
            })
            .unwrap();
            pool.with(&within(60_000), |_, _| {
                served.lock().unwrap().push(3);
                Ok(())
            })
            .unwrap();
        });
        assert_eq!(served.into_inner().unwrap(), [0, 1, 2, 3]);
    }

    /// A write that is sent with nothing left of its deadline is in doubt at once; it is better not done.
    #[test]
    fn a_wait_that_has_eaten_the_deadline_is_busy_and_nothing_is_sent() {
        let pool = pool(1);
        std::thread::scope(|scope| {
            pool.with(&within(60_000), |_, _| {
                let late = scope.spawn(|| pool.with(&within(200), |_, left| Ok(left.deadline)));
                while pool.idle.waiting() == 0 {
                    std::thread::yield_now();
                }
                let limit = Instant::now() + Duration::from_millis(195);
                // The turn comes with 5 of 200 ms left.
                while Instant::now() < limit {
                    std::thread::yield_now();
                }
                Ok(late)
            })
            .map(|late| assert_eq!(late.join().unwrap().unwrap_err().status, KVC_BUSY))
            .unwrap();
        });
    }

    #[test]
    fn a_failure_after_a_wait_says_how_much_of_the_deadline_that_took() {
        let pool = pool(1);
        let words = std::thread::scope(|scope| {
            let late = pool.with(&within(60_000), |_, _| {
                let late = scope.spawn(|| {
                    pool.with(&within(60_000), |_, _| -> Result<(), Failure> {
                        Err(Failure::new(KVC_BUSY, "no answer"))
                    })
                });
                while pool.idle.waiting() == 0 {
                    std::thread::yield_now();
                }
                let begun = Instant::now();
                while begun.elapsed() < 2 * WORTH_WORDS {
                    std::thread::yield_now();
                }
                Ok(late)
            });
            late.unwrap().join().unwrap().unwrap_err().words
        });
        assert!(words.starts_with("no answer (of 60s it had waited "), "{words}");
    }
}
