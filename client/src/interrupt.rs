//! A way to end the waiting of a client's calls from another thread, for shutdown.
//!
//! ```text
//!   another thread: interrupt() -> flag, eventfd readable --> every epoll set that has it: waits end
//!   calls under way: end early     calls that begin: rejected     until resume()
//! ```
//!
//! One eventfd serves all engines of a client. It stays readable until [`Interrupt::resume`], so a call that began a
//! moment before the interrupt, and waits a moment after it, is woken too.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Interrupts the clients that were opened with it ([`crate::Options::interrupt`]). Copies interrupt the same ones.
///
/// Calls under way end early, and calls that begin are rejected ([`crate::Error::Interrupted`]), until
/// [`Interrupt::resume`]. A write that was sent ends [`crate::Error::InDoubt`]. A poll does not wait; what was
/// submitted stays in flight. A call that is still under way at [`Interrupt::resume`] may go on to its own end.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    is_set: AtomicBool,
    /// Held while the flag and the eventfd change, so that they agree.
    change: Mutex<()>,
    /// Readable while the flag is set.
    event: ManuallyDrop<OwnedFd>,
    is_closed: AtomicBool,
}

impl Interrupt {
    /// Makes one that interrupts nothing yet.
    ///
    /// # Errors
    /// If the system gives no descriptor.
    pub fn new() -> io::Result<Interrupt> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Interrupt(Arc::new(Shared {
            is_set: AtomicBool::new(false),
            change: Mutex::new(()),
            event: ManuallyDrop::new(event),
            is_closed: AtomicBool::new(false),
        })))
    }

    /// Ends the calls under way, and rejects those that begin. Any thread may call it, also within a function that a
    /// client calls. It does not wait for the calls to end.
    ///
    /// # Errors
    /// If the system refuses to signal the descriptor. Calls that begin are rejected all the same.
    pub fn interrupt(&self) -> io::Result<()> {
        let _changing = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.is_set.swap(true, Ordering::AcqRel) {
            rustix::io::write(&*self.0.event, &1_u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Lets calls begin again.
    ///
    /// # Errors
    /// If the system refuses to read the descriptor.
    pub fn resume(&self) -> io::Result<()> {
        let _changing = self.0.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.is_set.load(Ordering::Acquire) {
            match rustix::io::read(&*self.0.event, &mut [0_u8; 8]) {
                // AGAIN: the write of the interrupt was refused.
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
        // It only has to be seen in time, which the eventfd brings about.
        self.0.is_set.load(Ordering::Relaxed)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }

    /// Closes this process's copy of the descriptor, in the child of a fork.
    ///
    /// # Safety
    /// No other function of this process uses it, or a client that was opened with it, any more; both may be dropped.
    pub unsafe fn close_inherited(&self) {
        self.0.close();
    }
}

impl Shared {
    fn close(&self) {
        if !self.is_closed.swap(true, Ordering::AcqRel) {
            // SAFETY: the swap lets one caller in, and nothing uses the descriptor afterwards: this is the end of the
            // last copy, or the promise of `close_inherited`.
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
    fn it_is_readable_from_the_interrupt_to_the_resumption_however_often_each_is_said() {
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
