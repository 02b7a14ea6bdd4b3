use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use proptest::prelude::*;

use super::*;

/// A source that counts the chunks, windows and blocks in use. Allocations fail when `chunks_max` are in use.
struct CountedChunks {
    heap: HeapChunks,
    chunks_out: Arc<AtomicUsize>,
    chunks_max: usize,
}

// SAFETY: `HeapChunks` fulfils the contract; this source only counts its calls.
unsafe impl ChunkSource for CountedChunks {
    fn chunk_bytes(&self) -> usize {
        self.heap.chunk_bytes()
    }

    fn allocate(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        let chunks = bytes.div_ceil(self.heap.chunk_bytes());
        if self.chunks_out.load(Relaxed) + chunks > self.chunks_max {
            return None;
        }
        self.chunks_out.fetch_add(chunks, Relaxed);
        self.heap.allocate(bytes)
    }

    fn reserve(&mut self) -> Option<NonNull<u8>> {
        self.allocate(self.heap.chunk_bytes())
    }

    unsafe fn discard(&mut self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: discarded memory is no longer used.
        unsafe { at.as_ptr().write_bytes(POISON, bytes) };
    }

    unsafe fn release(&mut self, at: NonNull<u8>, bytes: usize) {
        self.chunks_out.fetch_sub(bytes.div_ceil(self.heap.chunk_bytes()), Relaxed);
        // SAFETY: the caller's guarantees hold for the heap.
        unsafe { self.heap.release(at, bytes) };
    }
}

fn counted(chunk_bytes: usize, chunks_max: usize) -> (Arena, Arc<AtomicUsize>) {
    let chunks_out = Arc::new(AtomicUsize::new(0));
    let source = CountedChunks {
        heap: HeapChunks::new(chunk_bytes),
        chunks_out: Arc::clone(&chunks_out),
        chunks_max,
    };
    (Arena::new(Box::new(source)), chunks_out)
}

/// An allocation filled with a pattern that is checked when it is freed.
struct Filled {
    handle: Handle,
    bytes: usize,
    pattern: u8,
}

impl Filled {
    fn new(arena: &mut Arena, bytes: usize, pattern: u8) -> Filled {
        let (fresh, held) = (arena.fresh_bytes(bytes), arena.held_bytes());
        let handle = arena.allocate(bytes).expect("the test stays below the limit");
        assert_eq!(
            arena.held_bytes().saturating_sub(held),
            fresh,
            "fresh_bytes predicts the held bytes"
        );
        // SAFETY: freshly allocated with this size.
        unsafe { arena.address(handle).write_bytes(pattern, bytes) };
        Filled { handle, bytes, pattern }
    }

    fn check_and_free(self, arena: &mut Arena) {
        // SAFETY: allocated and filled in `new`, freed only here.
        let content = unsafe { std::slice::from_raw_parts(arena.address(self.handle), self.bytes) };
        assert!(content.iter().all(|&byte| byte == self.pattern), "{} bytes", self.bytes);
        assert_eq!(content.as_ptr().addr() % UNIT_BYTES, 0);
        // SAFETY: as above; `content` is no longer used.
        unsafe { arena.free(self.handle, self.bytes) };
    }
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 1usize..300,
        4 => 300usize..5_000,
        2 => 5_000usize..65_536,
        1 => 65_536usize..300_000,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn live_allocations_never_overlap_and_all_memory_returns(
        steps in prop::collection::vec((size(), any::<prop::sample::Index>(), 0u8..5), 1..300)
    ) {
        let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, usize::MAX);
        let mut live = Vec::new();
        for (number, (bytes, victim, choice)) in steps.into_iter().enumerate() {
            if choice < 3 || live.is_empty() {
                live.push(Filled::new(&mut arena, bytes, u8::try_from(number % 251).unwrap()));
            } else {
                live.swap_remove(victim.index(live.len())).check_and_free(&mut arena);
            }
            let asked: usize = live.iter().map(|filled| filled.bytes).sum();
            prop_assert!(arena.used_bytes() >= asked);
            prop_assert!(arena.reserved_bytes() >= arena.used_bytes());
        }
        for filled in live {
            filled.check_and_free(&mut arena);
        }
        prop_assert_eq!(arena.used_bytes(), 0);
        prop_assert!(arena.paged_chunks <= 1, "at most the spare chunk is still held");
        prop_assert!(arena.held_bytes() <= 2 * CHUNK_BYTES_MIN, "and warm pages up to the size of a chunk");
        drop(arena);
        prop_assert_eq!(chunks_out.load(Relaxed), 0);
    }
}

#[test]
fn an_empty_arena_holds_nothing() {
    let (arena, chunks_out) = counted(CHUNK_BYTES_DEFAULT, usize::MAX);
    assert_eq!((arena.used_bytes(), arena.reserved_bytes()), (0, 0));
    assert_eq!(chunks_out.load(Relaxed), 0);
}

#[test]
fn freed_memory_is_used_again() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, usize::MAX);
    for round in 0..200 {
        let live: Vec<_> =
            (0..500).map(|i| Filled::new(&mut arena, 1 + (i * 37 + round * 11) % 200, 7)).collect();
        live.into_iter().for_each(|filled| filled.check_and_free(&mut arena));
        assert!(chunks_out.load(Relaxed) <= 4, "round {round}");
    }
}

/// Creates allocations that fill a chunk.
fn chunkful(arena: &mut Arena) -> Vec<Filled> {
    (0..8).map(|_| Filled::new(arena, CHUNK_BYTES_MIN / 8, 1)).collect()
}

#[test]
fn one_spare_chunk_avoids_repeated_requests_to_the_source() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, 2);
    let first = chunkful(&mut arena);
    for _ in 0..10 {
        Filled::new(&mut arena, 100, 2).check_and_free(&mut arena);
        assert_eq!(chunks_out.load(Relaxed), 2, "the emptied chunk stays as the spare");
    }
    first.into_iter().for_each(|filled| filled.check_and_free(&mut arena));
    assert_eq!(chunks_out.load(Relaxed), 1, "the second empty chunk is returned");
}

#[test]
fn a_block_takes_exactly_the_pages_that_it_needs() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, usize::MAX);
    let page = CHUNK_BYTES_MIN / 512;
    let mut live = Vec::new();
    let mut expected = 0;
    for pages in [65, 300, 512, 147, 513, 5 * 512 + 1] {
        live.push(Filled::new(&mut arena, pages * page - 1, 3));
        expected += pages * page;
        assert_eq!((arena.held_bytes(), arena.used_bytes()), (expected, expected), "{pages}");
        assert_eq!(arena.waste_bytes(), 0);
    }
    assert_eq!(chunks_out.load(Relaxed), 1 + 1 + 2 + 6, "three blocks are in one window");
    for filled in live {
        expected -= filled.bytes + 1;
        filled.check_and_free(&mut arena);
        assert_eq!(arena.used_bytes(), expected);
        assert!(
            arena.held_bytes() <= expected + CHUNK_BYTES_MIN,
            "at most a chunk's bytes stay warm"
        );
    }
}

#[test]
fn recently_freed_block_memory_is_reused_and_returned_before_more_is_taken() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, usize::MAX);
    let bytes = CHUNK_BYTES_MIN / 4;
    let mut live: Vec<_> = (0..16).map(|_| Filled::new(&mut arena, bytes, 1)).collect();
    assert_eq!((chunks_out.load(Relaxed), arena.held_bytes()), (4, 16 * bytes));
    for (at, filled) in live.iter_mut().enumerate() {
        let place = arena.address(filled.handle);
        let old = std::mem::replace(filled, Filled::new(&mut arena, bytes - at, 2));
        old.check_and_free(&mut arena);
        assert_eq!(arena.held_bytes(), 17 * bytes, "the freed memory serves the next block");
        let next = Filled::new(&mut arena, bytes, 3);
        assert_eq!(arena.address(next.handle), place);
        next.check_and_free(&mut arena);
    }
    live.drain(4..).for_each(|filled| filled.check_and_free(&mut arena));
    assert_eq!(arena.held_bytes(), 4 * bytes + CHUNK_BYTES_MIN, "a chunk's bytes stay");
    live.push(Filled::new(&mut arena, CHUNK_BYTES_MIN / 2, 3));
    assert_eq!(
        arena.held_bytes(),
        4 * bytes + CHUNK_BYTES_MIN,
        "two warm blocks were returned first"
    );
    live.push(Filled::new(&mut arena, 100, 3));
    assert_eq!(
        arena.held_bytes(),
        6 * bytes + CHUNK_BYTES_MIN,
        "all warm memory was returned before a chunk was taken"
    );
    live.into_iter().for_each(|filled| filled.check_and_free(&mut arena));
}

#[test]
fn an_arena_is_exhausted_when_it_has_used_all_chunk_numbers() {
    let (mut arena, _) = counted(CHUNK_BYTES_MAX, usize::MAX);
    let blocks = (1u64 << 32) / (CHUNK_BYTES_MAX / UNIT_BYTES) as u64 - 1;
    // The test writes almost none of this memory, so it takes little more than address space.
    let bytes = CHUNK_BYTES_MAX / 2 + 1;
    let mut handles: Vec<_> = (0..32).map(|_| arena.allocate(bytes).expect("memory")).collect();
    for number in 33..blocks {
        arena.chunks.push(Chunk::Vacant);
        arena.bases.push(std::ptr::null_mut());
        assert_eq!(arena.chunks.len() as u64 - 1, number);
    }
    handles.push(arena.allocate(bytes).expect("the last number"));
    let held = arena.held_bytes();
    assert!(arena.allocate(bytes).is_none() && arena.allocate(100).is_none());
    assert_eq!(arena.fresh_bytes(CHUNK_BYTES_MAX / 4), CHUNK_BYTES_MAX / 4);
    assert!(arena.allocate(CHUNK_BYTES_MAX / 4).is_some(), "windows have room");
    assert_eq!(arena.held_bytes(), held + CHUNK_BYTES_MAX / 4);
    for handle in handles {
        // SAFETY: allocated above with this size, and freed once.
        unsafe { arena.free(handle, bytes) };
    }
    assert!(arena.allocate(bytes).is_some(), "numbers are used again");
}

#[test]
fn a_failure_of_the_source_changes_nothing() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, 3);
    let kept = Filled::new(&mut arena, 40, 1);
    let before = (arena.used_bytes(), arena.held_bytes());
    for _ in 0..2 {
        assert!(arena.allocate(2 * CHUNK_BYTES_MIN + 1).is_none());
        assert_eq!((arena.used_bytes(), arena.held_bytes()), before);
        assert_eq!(chunks_out.load(Relaxed), 1);
    }
    let blocks = [CHUNK_BYTES_MIN, CHUNK_BYTES_MIN].map(|b| Filled::new(&mut arena, b, 2));
    let before = (arena.used_bytes(), arena.held_bytes());
    assert!(arena.allocate(CHUNK_BYTES_MIN).is_none());
    let first: Vec<_> = (0..7).map(|_| Filled::new(&mut arena, CHUNK_BYTES_MIN / 8, 1)).collect();
    assert!(arena.allocate(CHUNK_BYTES_MIN / 8).is_none());
    first.into_iter().for_each(|filled| filled.check_and_free(&mut arena));
    assert_eq!((arena.used_bytes(), arena.held_bytes()), before);
    blocks.into_iter().for_each(|filled| filled.check_and_free(&mut arena));
    kept.check_and_free(&mut arena);
}

#[test]
fn clearing_returns_all_memory_and_the_arena_stays_usable() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, usize::MAX);
    for bytes in [1, 100, 5_000, 70_000, 200_000, 3 * CHUNK_BYTES_MIN] {
        Filled::new(&mut arena, bytes, 1);
    }
    // SAFETY: none of the allocations is used again.
    unsafe { arena.clear() };
    assert_eq!((chunks_out.load(Relaxed), arena.used_bytes(), arena.reserved_bytes()), (0, 0, 0));
    Filled::new(&mut arena, 100, 3).check_and_free(&mut arena);
}
