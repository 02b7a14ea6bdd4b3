//! A hint to the processor that an address will be read soon.
//!
//! A look-up in a table larger than the caches has two cache misses: for the slot and for the entry. A caller with
//! several look-ups prefetches the cache lines of all of them first, so that the cache misses overlap.

/// Prefetches the cache line of an address. This is only a hint: any address is allowed. On architectures other
/// than x86-64 the function does nothing.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch returns no data and causes no fault for any address. SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
