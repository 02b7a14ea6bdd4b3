//! Detection of a fork: a check, without a system call, whether this is still the process that opened a handle.
//!
//! ```text
//!   a page that the kernel zeroes in the child of a fork (madvise, MADV_WIPEONFORK: Linux 4.14)
//!     parent   [ 1 ]   handles opened here carry 1
//!     child    [ 0 ]   inherited handles carry 1: rejected; the next open writes 2 and carries it
//! ```
//!
//! If the kernel provides no such page, each check reads the process id.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The page; NULL until it is mapped, and permanently if it cannot be mapped.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
/// The number for the next process that finds its page zeroed. A child continues with its parent's counter.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The identity of a process across forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// The number in the page.
    Page(u64),
    /// The process id, if no page is available.
    Id(u32),
}

impl Process {
    /// Returns the identity of this process.
    pub(crate) fn current() -> Process {
        let Some(page) = page() else { return Process::Id(std::process::id()) };
        let mut number = page.load(Ordering::Relaxed);
        if number == 0 {
            let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
            // If another thread has stored a number first, that number counts.
            let was = page.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
            number = was.map_or_else(|first| first, |_| fresh);
        }
        Process::Page(number)
    }

    /// Returns whether this identity is that of the current process.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        match self {
            Process::Page(number) => {
                // SAFETY: the page was mapped before the number was assigned, and stays mapped.
                let page = unsafe { PAGE.load(Ordering::Acquire).as_ref() };
                page.is_some_and(|page| page.load(Ordering::Relaxed) == number)
            }
            Process::Id(id) => id == std::process::id(),
        }
    }
}

fn page() -> Option<&'static AtomicU64> {
    // SAFETY: NULL, or a mapping that is never unmapped.
    if let Some(page) = unsafe { PAGE.load(Ordering::Acquire).as_ref() } {
        return Some(page);
    }
    let bytes = size_of::<AtomicU64>();
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let made = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    if made == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping above, to which no other thread has a pointer.
    if unsafe { libc::madvise(made, bytes, libc::MADV_WIPEONFORK) } != 0 {
        // SAFETY: as above.
        unsafe { libc::munmap(made, bytes) };
        return None;
    }
    let made = made.cast::<AtomicU64>();
    match PAGE.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: it was just mapped, aligned to a page and zero, and stays mapped.
        Ok(_) => Some(unsafe { &*made }),
        Err(first) => {
            // SAFETY: no other thread has a pointer to this mapping.
            unsafe { libc::munmap(made.cast(), bytes) };
            // SAFETY: not NULL, and never unmapped.
            Some(unsafe { &*first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `look` in a child of this process and returns its result.
    fn in_child(look: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child calls nothing that needs a lock, and ends by _exit.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let is_so = look();
            // SAFETY: ends only the child, without the exit handlers of the test program.
            unsafe { libc::_exit(if is_so { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        status == 0
    }

    #[test]
    fn a_child_and_a_grandchild_are_other_processes_and_the_parent_keeps_its_identity() {
        let parent = Process::current();
        assert!(matches!(parent, Process::Page(_)), "this kernel supports MADV_WIPEONFORK");
        assert!(in_child(|| {
            let before = !parent.is_current();
            let child = Process::current();
            let grandchild = in_child(|| {
                let none = !parent.is_current() && !child.is_current();
                let own = Process::current();
                none && own.is_current() && own != parent && own != child
            });
            before && !parent.is_current() && child.is_current() && grandchild
        }));
        assert!(parent.is_current() && Process::current() == parent);
    }
}
