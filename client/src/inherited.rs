//! The list of an engine's descriptors. The child of a fork uses it to close its copies.
//!
//! The child has copies of all descriptors. Closing them does not affect the parent: a socket and its epoll
//! registration live as long as the parent holds them. The child drops the whole engine if that is sound. It is unsound
//! if another thread of the parent was changing the engine at the moment of the fork. In that case the child closes
//! only the descriptors in this list and leaks the memory.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The list of an engine's open descriptors; see the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Descriptors(Arc<Mutex<Vec<RawFd>>>);

impl Descriptors {
    /// Adds a descriptor that was opened.
    pub(crate) fn add(&self, descriptor: BorrowedFd<'_>) {
        self.list().push(descriptor.as_raw_fd());
    }

    /// Removes a descriptor that is about to be closed.
    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>) {
        let mut list = self.list();
        if let Some(at) = list.iter().position(|&known| known == descriptor.as_raw_fd()) {
            list.swap_remove(at);
        }
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<RawFd>> {
        // No operation under this lock can panic in the middle of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes this process's copies of the descriptors and returns true. If another thread was changing this list at
    /// the moment of the fork, the function leaves them open and returns false.
    ///
    /// # Safety
    /// The caller must neither use nor drop the owner of the descriptors afterwards.
    pub unsafe fn close(&self) -> bool {
        let Ok(mut list) = self.0.try_lock() else { return false };
        for descriptor in list.drain(..) {
            // SAFETY: the descriptor is open, because it is removed from the list before it is closed; its owner no
            // longer closes it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        true
    }
}
