//! Chunks whose pages are touched before a table needs them.
//!
//! The first touch of a huge page makes the kernel clear it. On a virtual machine it may also wait until the host
//! provides the memory. This takes 0.3 to about 4 ms, during which an executor would serve no requests. So a separate
//! thread keeps a few touched chunks ready: a twentieth of the chunks in use, but at least [`LEAST`] and at most
//! [`MOST`].
//!
//! ```text
//!   executor -- take --> ready <-- map, touch, unmap -- thread "memory"
//!                          +------- woken by each take and release
//! ```

use std::ptr::NonNull;
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};

use kv_core::arena::CHUNK_BYTES_DEFAULT;

use super::{Pages, map, unmap};
use crate::mutex::lock;
use crate::slice;

/// The maximum number of chunks that are kept ready.
const MOST: usize = 8;
/// The minimum number of chunks that are kept ready while any is in use.
const LEAST: usize = 2;
/// The number of chunks in use for each chunk that is kept ready. It is large, so that the chunks kept ready add little
/// to the memory of a server.
const USED_FOR_ONE: usize = 20;
/// The distance between two touches: the smallest page size, so that every page is touched.
const PAGE_BYTES: usize = 4 << 10;

/// A touched chunk that no table uses.
#[derive(Debug)]
struct Touched(NonNull<u8>);

// SAFETY: a fresh private mapping belongs to the owner of its address, on any thread.
unsafe impl Send for Touched {}

#[derive(Debug, Default)]
struct Stock {
    ready: Vec<Touched>,
    /// The number of chunks and windows that tables hold.
    in_use: usize,
}

#[derive(Debug, Default)]
struct Ahead {
    stock: Mutex<Stock>,
    wanted: Condvar,
}

impl Stock {
    /// Returns the number of chunks to keep ready.
    fn wanted(&self) -> usize {
        match self.in_use {
            0 => 0,
            chunks => (chunks / USED_FOR_ONE).clamp(LEAST, MOST),
        }
    }
}

static AHEAD: LazyLock<Ahead> = LazyLock::new(|| {
    let thread = std::thread::Builder::new().name("memory".to_owned());
    if let Err(error) = thread.spawn(|| AHEAD.work()) {
        tracing::warn!(
            "cannot start the thread that touches memory: {error}; requests may wait for memory"
        );
    }
    Ahead::default()
});

/// Returns a chunk, touched already if one is ready; `None` if the system has no memory.
pub(super) fn take() -> Option<NonNull<u8>> {
    let ready = lock(&AHEAD.stock).ready.pop();
    let taken = match ready {
        Some(Touched(at)) => at,
        None => map_chunk()?,
    };
    note_taken();
    Some(taken)
}

/// Records one more chunk or window in use, which may raise the number to keep ready.
pub(super) fn note_taken() {
    {
        let mut stock = lock(&AHEAD.stock);
        stock.in_use = stock.in_use.saturating_add(1);
    }
    AHEAD.wanted.notify_one();
}

/// Records that a chunk or window was returned to the system, which may lower the number to keep ready.
pub(super) fn note_released() {
    {
        let mut stock = lock(&AHEAD.stock);
        stock.in_use = stock.in_use.saturating_sub(1);
    }
    AHEAD.wanted.notify_one();
}

fn map_chunk() -> Option<NonNull<u8>> {
    map(CHUNK_BYTES_DEFAULT, Pages::Huge)
}

impl Ahead {
    fn work(&self) {
        slice::shorten();
        loop {
            let stock = lock(&self.stock);
            let stock = self.wanted.wait_while(stock, |stock| stock.ready.len() == stock.wanted());
            let mut stock = stock.unwrap_or_else(PoisonError::into_inner);
            if stock.ready.len() > stock.wanted() {
                let surplus = stock.ready.pop();
                drop(stock);
                if let Some(Touched(at)) = surplus {
                    // SAFETY: the chunk was never handed out.
                    unsafe { unmap(at, CHUNK_BYTES_DEFAULT) };
                }
                continue;
            }
            drop(stock);
            match map_chunk() {
                Some(at) => {
                    touch(at);
                    lock(&self.stock).ready.push(Touched(at));
                }
                // The system is out of memory. The count is set to 0, which stops this loop until a table takes its
                // next chunk.
                None => lock(&self.stock).in_use = 0,
            }
        }
    }
}

fn touch(at: NonNull<u8>) {
    for offset in (0..CHUNK_BYTES_DEFAULT).step_by(PAGE_BYTES) {
        // SAFETY: the chunk is mapped and unaliased. The write is volatile, so that it is not optimised away.
        unsafe { at.add(offset).write_volatile(0) };
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::HugePages;
    use super::*;
    use kv_core::arena::ChunkSource as _;

    #[test]
    fn touched_chunks_are_kept_ready_in_proportion_to_those_in_use() {
        let mut source = HugePages;
        let mut held = Vec::new();
        // Other tests of this process hold chunks too, so the wanted number may change at any time.
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            held.push(source.allocate(CHUNK_BYTES_DEFAULT).expect("memory"));
            let is_short = || {
                let stock = lock(&AHEAD.stock);
                stock.ready.len() < stock.wanted()
            };
            while is_short() {
                assert!(Instant::now() < until, "no chunk was touched ahead");
                std::thread::yield_now();
            }
            if held.len() == 3 * USED_FOR_ONE {
                break;
            }
        }
        for chunk in held {
            // SAFETY: allocated above, and released once.
            unsafe { source.release(chunk, CHUNK_BYTES_DEFAULT) };
        }
        let is_long = || {
            let stock = lock(&AHEAD.stock);
            stock.ready.len() > stock.wanted()
        };
        while is_long() {
            assert!(Instant::now() < until, "surplus chunks were not returned");
            std::thread::yield_now();
        }
    }
}
