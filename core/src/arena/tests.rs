use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use proptest::prelude::*;

use super::*;

/// Counts the chunks that are out, and refuses more than `chunks_max`.
struct CountedChunks {
    heap: HeapChunks,
    chunks_out: Arc<AtomicUsize>,
    chunks_max: usize,
}

// SAFETY: `HeapChunks` keeps the promise, and this only counts.
unsafe impl ChunkSource for CountedChunks {
    fn chunk_bytes(&self) -> usize {
        self.heap.chunk_bytes()
    }

    fn allocate(&mut self, chunks: usize) -> Option<NonNull<u8>> {
        if self.chunks_out.load(Relaxed) + chunks > self.chunks_max {
            return None;
        }
        self.chunks_out.fetch_add(chunks, Relaxed);
        self.heap.allocate(chunks)
    }

    unsafe fn release(&mut self, at: NonNull<u8>, chunks: usize) {
        self.chunks_out.fetch_sub(chunks, Relaxed);
        // SAFETY: the caller's promise is the heap's.
        unsafe { self.heap.release(at, chunks) };
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

/// Writes and checks a pattern over the whole of an allocation.
struct Filled {
    handle: Handle,
    bytes: usize,
    pattern: u8,
}

impl Filled {
    fn new(arena: &mut Arena, bytes: usize, pattern: u8) -> Filled {
        let (fresh, held) = (arena.fresh_bytes(bytes), arena.chunks_held);
        let handle = arena.allocate(bytes).expect("the test stays below the limit");
        assert_eq!((arena.chunks_held - held) * arena.chunk_bytes(), fresh, "as it was foretold");
        // SAFETY: freshly allocated with this size.
        unsafe { arena.address(handle).write_bytes(pattern, bytes) };
        Filled { handle, bytes, pattern }
    }

    fn check_and_free(self, arena: &mut Arena) {
        // SAFETY: allocated and filled in `new`, freed only here.
        let content = unsafe { std::slice::from_raw_parts(arena.address(self.handle), self.bytes) };
        assert!(content.iter().all(|&byte| byte == self.pattern), "{} bytes", self.bytes);
        assert_eq!(content.as_ptr().addr() % UNIT_BYTES, 0);
        // SAFETY: as above; `content` is not used any more.
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
        prop_assert!(chunks_out.load(Relaxed) <= 1, "only the spare chunk may stay");
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

#[test]
fn one_spare_chunk_spares_the_source_at_the_border() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, 2);
    let first = Filled::new(&mut arena, CHUNK_BYTES_MIN, 1);
    for _ in 0..10 {
        Filled::new(&mut arena, CHUNK_BYTES_MIN, 2).check_and_free(&mut arena);
        assert_eq!(chunks_out.load(Relaxed), 2, "the emptied chunk stays as the spare");
    }
    first.check_and_free(&mut arena);
    assert_eq!(chunks_out.load(Relaxed), 1, "the second empty chunk goes back");
}

#[test]
fn the_tail_of_a_large_allocation_serves_small_ones() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, usize::MAX);
    let large = Filled::new(&mut arena, 3 * CHUNK_BYTES_MIN + 1, 1);
    let small: Vec<_> = (0..100).map(|_| Filled::new(&mut arena, 96, 2)).collect();
    assert_eq!(chunks_out.load(Relaxed), 4);
    large.check_and_free(&mut arena);
    assert_eq!(chunks_out.load(Relaxed), 1, "only the tail, where the small ones live, stays");
    small.into_iter().for_each(|filled| filled.check_and_free(&mut arena));
    drop(arena);
    assert_eq!(chunks_out.load(Relaxed), 0);
}

#[test]
fn a_refusal_of_the_source_changes_nothing() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, 2);
    let kept = Filled::new(&mut arena, 40, 1);
    let (used, refused) = (arena.used_bytes(), arena.allocate(5 * CHUNK_BYTES_MIN + 1));
    assert!(refused.is_none());
    assert!(arena.allocate(2 * CHUNK_BYTES_MIN).is_none());
    assert_eq!((arena.used_bytes(), chunks_out.load(Relaxed)), (used, 1));
    let second = Filled::new(&mut arena, CHUNK_BYTES_MIN, 2);
    assert!(arena.allocate(CHUNK_BYTES_MIN).is_none());
    second.check_and_free(&mut arena);
    kept.check_and_free(&mut arena);
}

#[test]
fn clearing_gives_everything_back_and_the_arena_goes_on() {
    let (mut arena, chunks_out) = counted(CHUNK_BYTES_MIN, usize::MAX);
    for bytes in [1, 100, 5_000, 70_000, 200_000, 3 * CHUNK_BYTES_MIN] {
        Filled::new(&mut arena, bytes, 1);
    }
    // SAFETY: none of the allocations is used again.
    unsafe { arena.clear() };
    assert_eq!((chunks_out.load(Relaxed), arena.used_bytes(), arena.reserved_bytes()), (0, 0, 0));
    Filled::new(&mut arena, 100, 3).check_and_free(&mut arena);
}
