//! Whether this is still the process that opened a handle, without a system call for each look.
//!
//! ```text
//!   a page that the kernel empties in the child of a fork (madvise, MADV_WIPEONFORK: Linux 4.14)
//!     parent   [ 1 ]   handles opened here carry 1
//!     child    [ 0 ]   inherited handles carry 1: refused; the next open writes 2 and carries it
//! ```
//!
//! On a kernel without such pages the process id is asked for each time.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The page; NULL until it is made, and for ever where it cannot be.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
/// The number of the next process; a child goes on with its parent's.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A process, as far as forks tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// By what the page says.
    Page(u64),
    /// By its id, for want of a page.
    Id(u32),
}

impl Process {
    /// This one.
    pub(crate) fn current() -> Process {
        let Some(page) = page() else { return Process::Id(std::process::id()) };
        let mut number = page.load(Ordering::Relaxed);
        if number == 0 {
            let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
            // Where another thread was first, its number stays.
            let was = page.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
            number = was.map_or_else(|first| first, |_| fresh);
        }
        Process::Page(number)
    }

    /// Whether it is this one.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        match self {
            Process::Page(number) => {
                // SAFETY: it was made before the number was given, and stays mapped.
                let page = unsafe { PAGE.load(Ordering::Acquire).as_ref() };
                page.is_some_and(|page| page.load(Ordering::Relaxed) == number)
            }
            Process::Id(id) => id == std::process::id(),
        }
    }
}

fn page() -> Option<&'static AtomicU64> {
    // SAFETY: NULL, or a mapping that is never taken away.
    if let Some(page) = unsafe { PAGE.load(Ordering::Acquire).as_ref() } {
        return Some(page);
    }
    let bytes = size_of::<AtomicU64>();
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a mapping of its own, in a place that the kernel chooses.
    let made = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    if made == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping above, which nobody else knows.
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
            // SAFETY: nobody has seen it.
            unsafe { libc::munmap(made.cast(), bytes) };
            // SAFETY: not NULL, and never taken away.
            Some(unsafe { &*first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `look` says in a child of this process.
    fn in_child(look: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child calls nothing that needs a lock, and ends by _exit.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let is_so = look();
            // SAFETY: ends the child alone, without what the test program does at its exit.
            unsafe { libc::_exit(if is_so { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        status == 0
    }

    #[test]
    fn a_child_is_another_process_and_so_is_its_child_and_the_parent_stays_itself() {
        let parent = Process::current();
        assert!(matches!(parent, Process::Page(_)), "this kernel has such pages");
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
