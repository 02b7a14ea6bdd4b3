//! A hint to the processor: these bytes will be read soon.
//!
//! A look-up in a table larger than the caches waits for memory two times, for the slot and for the entry.
//! Whoever has several look-ups to do asks for all their lines first, so that the waits overlap.

/// Asks for the cache line of an address. A hint alone: the address may be any, and where the processor has no
/// such instruction known here nothing happens.
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
