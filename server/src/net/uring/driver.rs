//! The schedule of turns: one task of glommio's executor.
//!
//! ```text
//!          +--> turn
//!          |      +-- bytes arrive often --> submit and wait in the ring by one call, until the next visit
//!          |      |                          is due
//!          |      +-- else ----------------> yield to other ready tasks
//!          |                                 +-- there was work --> again
//!          |                                 +-- else ------------> wait in glommio, for the eventfd
//!          +-- at least once a visit interval: through glommio, which handles its timers and files
//! ```
//!
//! A pass through glommio costs several system calls, but a wait in the engine's ring costs only one. So a busy shard
//! waits in that ring. The work of glommio is delayed by at most the visit interval.

use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::future::yield_now;
use glommio::io::BufferedFile;
use kv_protocol::ids::Time;

use super::Engine;
use crate::clock;
use crate::fatal::Fatal;

/// The visit interval: the longest time without a pass through glommio.
const VISIT_INTERVAL: Duration = Duration::from_millis(1);

/// Drives the engine for the life of the process.
pub(super) async fn drive(engine: Rc<Engine>, bell: OwnedFd) {
    let mut bell = Bell::new(bell);
    let mut visit_at = clock::now() + VISIT_INTERVAL;
    // True if the last wait was so short that waiting in the ring pays off.
    let mut is_dense = false;
    loop {
        let has_worked = engine.turn();
        let now = clock::now();
        if is_dense && now < visit_at && engine.background.get() == 0 {
            // The call that waits in the ring also submits the queued requests.
            if !engine.context.has_wish() {
                engine.sleep_in_ring(visit_at.since(now));
            }
            continue;
        }
        // Tasks that this turn made ready, or that have steps to run, run first.
        yield_now().await;
        let has_more = has_worked || engine.context.has_wish();
        let now = clock::now();
        if has_more && now < visit_at {
            continue;
        }
        if has_more {
            bell.pass_through_glommio().await;
        } else if engine.listen_for_bell() {
            bell.wait(&engine).await;
        }
        engine.ignore_bell();
        let woken = clock::now();
        is_dense = has_more || woken.since(now) < VISIT_INTERVAL;
        visit_at = woken + VISIT_INTERVAL;
    }
}

impl Engine {
    fn sleep_in_ring(&self, longest: Duration) {
        let slept = self.net.borrow_mut().ring.enter_and_sleep(longest);
        if let Err(error) = slept {
            Fatal::System { doing: "wait in the io_uring of the network engine", error }
                .end_process();
        }
    }

    fn listen_for_bell(&self) -> bool {
        self.net.borrow_mut().ring.listen_for_bell()
    }

    fn ignore_bell(&self) {
        self.net.borrow_mut().ring.ignore_bell();
    }

    /// Publishes a change to the other threads, and dials streams when they are due.
    pub(super) fn on_news(self: &Rc<Engine>, now: Time) {
        self.context.announce();
        self.dial_targets(now);
        self.dial_when_due(now);
    }
}

/// The eventfd that the ring signals, read through glommio.
struct Bell {
    rung: OwnedFd,
    file: Rc<BufferedFile>,
    /// The read in progress. It continues if a wait ends for another reason.
    read: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Bell {
    fn new(bell: OwnedFd) -> Bell {
        let rung = bell.try_clone().expect("descriptors are reserved for each shard");
        // SAFETY: the descriptor is given away and the file is its only owner from here on.
        let file = Rc::new(unsafe { BufferedFile::from_raw_fd(bell.into_raw_fd()) });
        Bell { rung, file, read: None }
    }

    /// Lets glommio handle its timers and files, and then returns at once.
    async fn pass_through_glommio(&mut self) {
        let rung = rustix::io::write(self.rung.as_fd(), &1u64.to_ne_bytes());
        debug_assert!(rung.is_ok(), "an eventfd counts to 2^64 - 2 before a write blocks");
        poll_fn(|task| self.poll(task)).await;
    }

    /// Waits until the eventfd is signalled or a task on this executor requests a flush.
    async fn wait(&mut self, engine: &Engine) {
        poll_fn(|task| match self.poll(task) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => engine.context.poll_wish(task),
        })
        .await;
    }

    fn poll(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let read = self.read.get_or_insert_with(|| {
            let file = Rc::clone(&self.file);
            Box::pin(async move {
                let read = file.read_at(0, size_of::<u64>()).await;
                if let Err(error) = read {
                    panic!("cannot read the eventfd of the network engine: {error}");
                }
            })
        });
        let polled = read.as_mut().poll(task);
        if polled.is_ready() {
            self.read = None;
        }
        polled
    }
}
