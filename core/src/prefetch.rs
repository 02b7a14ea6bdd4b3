//! A hint to the processor that an address will be read soon.
//!
//! A look-up in a table larger than the caches waits for memory twice: for the slot and for the entry.
//! A caller with several look-ups prefetches all their lines first, so that the waits overlap.

/// Prefetches the cache line of an address. This is only a hint: any address is valid, and on architectures other
/// than x86-64 it does nothing.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults at no address; SSE is part of the architecture.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
