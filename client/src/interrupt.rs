//! An interrupt with which another thread ends the waits of a client's calls, for shutdown.
//!
//! ```text
//!   another thread: interrupt() -> flag, eventfd readable --> every epoll set with it: waits end
//!   calls in progress: end early     new calls: rejected     until resume()
//! ```
//!
//! One eventfd serves all engines of a client. It stays readable until [`Interrupt::resume`]. So it also ends the wait
//! of a call that began before the interrupt but waits only after it.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// A handle that interrupts the clients opened with it ([`crate::Options::interrupt`]). Clones interrupt the same
/// clients.
///
/// Until [`Interrupt::resume`], calls in progress end early and new calls are rejected ([`crate::Error::Interrupted`]).
/// A write that was sent ends with [`crate::Error::InDoubt`]. A poll does not wait, and submitted operations stay in
/// flight. A call still in progress at [`Interrupt::resume`] may run to its normal end.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    is_set: AtomicBool,
    /// The lock for changes of the flag and the eventfd, so that both always agree.
    change: Mutex<()>,
    /// The eventfd, readable while the flag is set.
    event: ManuallyDrop<OwnedFd>,
    is_closed: AtomicBool,
}

impl Interrupt {
    /// Creates an interrupt that is not set.
    ///
    /// # Errors
    /// If the system provides no descriptor.
    pub fn new() -> io::Result<Interrupt> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Interrupt(Arc::new(Shared {
            is_set: AtomicBool::new(false),
            change: Mutex::new(()),
            event: ManuallyDrop::new(event),
            is_closed: AtomicBool::new(false),
        })))
    }

    /// Ends the calls in progress and rejects new ones. Any thread may call this, even in a callback of a client. It
    /// does not wait for the calls to end.
    ///
    /// # Errors
    /// If signalling the descriptor fails. The interrupt is then not set, and the next call signals the descriptor
    /// again.
    pub fn interrupt(&self) -> io::Result<()> {
        let _changing = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.is_set.swap(true, Ordering::AcqRel) {
            rustix::io::write(&*self.0.event, &1_u64.to_ne_bytes()).inspect_err(|_| {
                // The next call of this function signals the descriptor again.
                self.0.is_set.store(false, Ordering::Release);
            })?;
        }
        Ok(())
    }

    /// Accepts calls again.
    ///
    /// # Errors
    /// If reading the descriptor fails. The interrupt then stays set.
    pub fn resume(&self) -> io::Result<()> {
        let _changing = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.is_set.load(Ordering::Acquire) {
            match rustix::io::read(&*self.0.event, &mut [0_u8; 8]) {
                // AGAIN means that another process has read its copy of the descriptor, such as a forked child.
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            self.0.is_set.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Returns whether calls are rejected.
    #[inline]
    pub fn is_interrupted(&self) -> bool {
        // Relaxed is sufficient: the eventfd wakes the waits.
        self.0.is_set.load(Ordering::Relaxed)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    /// Closes this process's copy of the descriptor in the child of a fork.
    ///
    /// # Safety
    /// The caller must not use this interrupt, or a client that was opened with it, afterwards. Both may be dropped.
    pub unsafe fn close_inherited(&self) {
        self.0.close();
    }
}

impl Shared {
    fn close(&self) {
        if !self.is_closed.swap(true, Ordering::AcqRel) {
            // SAFETY: only one caller passes the swap, and nothing uses the descriptor afterwards: either this is the
            // drop of the last clone, or the caller of `close_inherited` guarantees it.
            drop(unsafe { std::ptr::read(&*self.event) });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn is_readable(interrupt: &Interrupt) -> bool {
        let descriptor = interrupt.descriptor();
        let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn it_is_readable_from_interrupt_to_resume_even_when_each_call_is_repeated() {
        let interrupt = Interrupt::new().unwrap();
        for _ in 0..3 {
            interrupt.resume().unwrap();
            assert!(!interrupt.is_interrupted() && !is_readable(&interrupt));
            for _ in 0..3 {
                interrupt.interrupt().unwrap();
                assert!(interrupt.clone().is_interrupted() && is_readable(&interrupt));
            }
            interrupt.resume().unwrap();
            assert!(!interrupt.is_interrupted() && !is_readable(&interrupt));
        }
    }
}
