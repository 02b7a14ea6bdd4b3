//! Chunks that are touched before they are wanted.
//!
//! The first touch of a huge page clears it, and on a virtual machine may wait until its host has the memory:
//! 0.3 to some 4 ms for which an executor would serve nobody. So a thread of the process keeps a few touched
//! chunks ready: as many as were taken so far, up to [`MOST`].
//!
//! ```text
//!   executor -- take --> ready <-- map, touch -- thread "memory"
//!                          +------- woken by each take
//! ```

use std::ptr::NonNull;
use std::sync::{Condvar, LazyLock, Mutex};

use kv_core::arena::CHUNK_BYTES_DEFAULT;

use super::map;
use crate::slice;
use crate::stats::lock;

/// Most chunks that are kept ready.
const MOST: usize = 8;
/// What a touch must reach: every page, whatever its size.
const PAGE_BYTES: usize = 4 << 10;

/// A mapping that nobody uses.
#[derive(Debug)]
struct Touched(NonNull<u8>);

// SAFETY: a fresh private mapping belongs to whoever holds its address, on whichever thread.
unsafe impl Send for Touched {}

#[derive(Debug, Default)]
struct Stock {
    ready: Vec<Touched>,
    taken: usize,
}

#[derive(Debug, Default)]
struct Ahead {
    stock: Mutex<Stock>,
    wanted: Condvar,
}

static AHEAD: LazyLock<Ahead> = LazyLock::new(|| {
    let thread = std::thread::Builder::new().name("memory".to_owned());
    if let Err(error) = thread.spawn(|| AHEAD.work()) {
        tracing::warn!("start the thread that touches memory ahead: {error}");
    }
    Ahead::default()
});

/// A chunk, touched ahead if there is one.
pub(super) fn take() -> Option<NonNull<u8>> {
    let ready = {
        let mut stock = lock(&AHEAD.stock);
        stock.taken = stock.taken.saturating_add(1);
        stock.ready.pop()
    };
    AHEAD.wanted.notify_one();
    ready.map_or_else(|| map(1), |Touched(at)| Some(at))
}

impl Ahead {
    fn work(&self) {
        slice::shorten();
        loop {
            let stock = self
                .wanted
                .wait_while(lock(&self.stock), |stock| stock.ready.len() >= stock.taken.min(MOST));
            drop(stock);
            match map(1) {
                Some(at) => {
                    touch(at);
                    lock(&self.stock).ready.push(Touched(at));
                }
                // Whoever needs memory will find out; until then none is asked for.
                None => lock(&self.stock).taken = 0,
            }
        }
    }
}

fn touch(at: NonNull<u8>) {
    for offset in (0..CHUNK_BYTES_DEFAULT).step_by(PAGE_BYTES) {
        // SAFETY: the chunk is mapped and nobody else's. Volatile, so that it is not left out.
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
    fn whoever_takes_chunks_finds_touched_ones_soon() {
        let mut source = HugePages;
        let mut held = Vec::new();
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            held.push(source.allocate(1).expect("memory"));
            let wanted = lock(&AHEAD.stock).taken.min(MOST);
            while lock(&AHEAD.stock).ready.len() < wanted {
                assert!(Instant::now() < until, "nothing is touched ahead");
                std::thread::yield_now();
            }
            if held.len() == MOST {
                break;
            }
        }
        assert!(lock(&AHEAD.stock).ready.len() <= MOST, "no more than that is kept");
        for chunk in held {
            // SAFETY: allocated above, and released once.
            unsafe { source.release(chunk, 1) };
        }
    }
}
