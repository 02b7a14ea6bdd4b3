//! A short time slice for the threads that respond to requests.
//!
//! If there are more runnable threads than processors, each thread waits for the time slices of other threads. The
//! scheduler's default slice is about 3 ms, a hundred times as long as a request takes. A thread may request a shorter
//! one (Linux 6.12 and later, SCHED_OTHER, without privileges; sched_setattr(2)). It then runs sooner and more often,
//! but not longer in total.

use std::io;
use std::mem;

/// The slice in nanoseconds. The kernel's minimum is 0.1 ms.
const SLICE: u64 = 300_000;

/// Requests a short slice for the calling thread. Kernels before 6.12 ignore it.
pub(crate) fn shorten() {
    if let Err(error) = try_shorten() {
        tracing::debug!("cannot request a short time slice: {error}");
    }
}

fn try_shorten() -> io::Result<()> {
    let size = u32::try_from(mem::size_of::<libc::sched_attr>()).map_err(io::Error::other)?;
    // SAFETY: all fields are integers.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most `size` bytes, the size of the structure.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.sched_runtime = SLICE;
    // SAFETY: the kernel reads as many bytes as the structure's size field states.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_accepts_the_request() {
        try_shorten().unwrap();
    }
}
