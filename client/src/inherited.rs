//! The descriptors of one engine by their numbers, for the child of a fork that gives its copies back.
//!
//! The child has copies of everything: closing its copies leaves the parent's connections alone, as neither the socket
//! nor its registration with epoll goes while the parent holds them. The engine itself is dropped where that is sound.
//! Where another thread of the parent was changing the engine at the moment of the fork, it is not: then the
//! descriptors alone are closed, by this list, and the memory stays.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Descriptors(Arc<Mutex<Vec<RawFd>>>);

impl Descriptors {
    /// Notes a descriptor that was opened.
    pub(crate) fn add(&self, descriptor: BorrowedFd<'_>) {
        self.list().push(descriptor.as_raw_fd());
    }

    /// Strikes out a descriptor that is about to be closed.
    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>) {
        let mut list = self.list();
        if let Some(at) = list.iter().position(|&known| known == descriptor.as_raw_fd()) {
            list.swap_remove(at);
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<RawFd>> {
        // Nothing that can panic half-way is done behind it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes this process's copies. If another thread was changing this list at the moment of the fork, they stay
    /// open; returns whether they are closed.
    ///
    /// # Safety
    /// The owner of the descriptors is neither used nor dropped afterwards.
    pub unsafe fn close(&self) -> bool {
        let Ok(mut list) = self.0.try_lock() else { return false };
        for descriptor in list.drain(..) {
            // SAFETY: it is open, as it is struck out before it is closed; the owner does not close it any more.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        true
    }
}
