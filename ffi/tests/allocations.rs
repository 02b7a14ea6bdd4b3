//! Tests that calls and queue operations allocate nothing in the steady state. The allocator counts the allocations of
//! the calling thread.

#[path = "../../client/tests/common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::CString;
use std::ptr::{null, null_mut};

use common::Fake;
use kvclient::*;

/// The system's allocator, with a counter for threads that enable it.
struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

fn note() {
    let _ = COUNT.try_with(|count| count.set(count.get().map(|n| n + 1)));
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the number of allocations of this thread while it runs `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    COUNT.set(Some(0));
    work();
    COUNT.replace(None).expect("it was set")
}

/// Returns the minimum of five runs. A receive buffer grows permanently when a read fills it and ends within a frame,
/// which may happen late on a busy machine. Allocations that the call or the operation itself makes would occur in
/// every run.
fn least(mut work: impl FnMut()) -> u64 {
    (0..5).map(|_| allocations(&mut work)).min().expect("five times")
}

fn slice(bytes: &[u8]) -> kvc_slice {
    kvc_slice { data: bytes.as_ptr().cast(), len: bytes.len() }
}

fn open(fake: &Fake) -> *mut kvc_client {
    let endpoint = CString::new(fake.endpoint()).unwrap();
    let mut client = null_mut();
    // SAFETY: all arguments are valid.
    assert_eq!(unsafe { kvc_open(endpoint.as_ptr(), null(), &raw mut client) }, KVC_OK);
    client
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1);
}

#[test]
fn a_read_into_memory_of_the_program_and_a_write_allocate_nothing() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    let keys: Vec<String> = (0..50).map(|n| format!("key {n}")).collect();
    // Values that fit into the receive buffer must not allocate even in a single run.
    write_and_read(client, &keys, 1_000, 2_000, |work| allocations(work));
    for len in [64 << 10, 200 << 10, 256 << 10] {
        write_and_read(client, &keys, len, 100, |work| least(work));
    }
    // SAFETY: no thread uses the handle or the queue any more.
    assert_eq!(unsafe { kvc_close(client) }, KVC_OK);
}

/// Counts the allocations of `times` writes and reads of values of `bytes` bytes. A quarter as many operations run
/// first, as a warm-up.
fn write_and_read(
    client: *mut kvc_client,
    keys: &[String],
    bytes: usize,
    times: usize,
    count: impl FnOnce(&mut dyn FnMut()) -> u64,
) {
    let value = vec![b'v'; bytes];
    let mut room = vec![0; bytes];
    let mut call_all = |times: usize| {
        for key in keys.iter().cycle().take(times) {
            room.fill(0);
            let mut len = 0;
            // SAFETY: all arguments are valid.
            unsafe {
                let written =
                    kvc_put(client, slice(key.as_bytes()), slice(&value), null(), null_mut());
                assert_eq!(written, KVC_OK);
                let (to, cap) = (room.as_mut_ptr().cast(), room.len());
                let key = slice(key.as_bytes());
                let read = kvc_get_into(client, key, to, cap, &raw mut len, null(), null_mut());
                assert_eq!(read, KVC_OK);
            }
            assert_eq!(len, value.len());
            assert!(room == value, "another value was read");
        }
    };
    call_all(times / 4);
    assert_eq!(count(&mut || call_all(times)), 0, "values of {bytes} bytes");
}

#[test]
fn an_update_of_one_key_allocates_nothing() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    let keys: Vec<String> = (0..50).map(|n| format!("key {n}")).collect();
    let add = kvc_update {
        size: u32::try_from(size_of::<kvc_update>()).unwrap(),
        action: KVC_ACTION_ADD,
        number: 1,
        ..kvc_update::default()
    };
    let call_all = |times: usize| {
        for key in keys.iter().cycle().take(times) {
            let (key, mut sum, mut deadline) = (slice(key.as_bytes()), 0, 7);
            // SAFETY: all arguments are valid.
            unsafe {
                let added = kvc_add(client, key, 1, null(), &raw mut sum, null_mut());
                assert_eq!(added, KVC_OK);
                let updated = kvc_update_one(client, key, &raw const add, null(), null_mut());
                assert_eq!(updated, KVC_OK);
                let read = kvc_get_deadline(client, key, null(), &raw mut deadline, null_mut());
                assert_eq!((read, deadline), (KVC_OK, 0));
            }
        }
    };
    call_all(500);
    assert_eq!(least(|| call_all(500)), 0);
    // SAFETY: no thread uses the handle any more.
    assert_eq!(unsafe { kvc_close(client) }, KVC_OK);
}

#[test]
fn operations_of_a_queue_allocate_nothing() {
    const DEPTH: usize = 32;
    let depth = u32::try_from(DEPTH).unwrap();
    let size = u32::try_from(size_of::<kvc_op>()).unwrap();
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    let mut cq = null_mut();
    // SAFETY: all arguments are valid.
    assert_eq!(unsafe { kvc_cq_new(client, depth, &raw mut cq) }, KVC_OK);
    let keys: Vec<String> = (0..DEPTH).map(|n| format!("key {n}")).collect();
    let value = [b'v'; 300];
    // An update that returns no value; the next get finds the same value.
    let mut update = kvc_update {
        size: u32::try_from(size_of::<kvc_update>()).unwrap(),
        action: KVC_ACTION_PUT,
        ..kvc_update::default()
    };
    update.value = slice(&value);
    let updates = [update];
    let mut deadline = 0;
    let mut results = [kvc_updated {
        status: 0,
        copies: 0,
        version: 0,
        value: kvc_buf { data: null_mut(), len: 0, version: 0 },
        deadline_ms: 0,
        doubt: kvclient::kvc_doubt::default(),
        reserved: [0; 2],
    }];
    let mut rooms = vec![[0u8; 300]; DEPTH];
    let nothing = kvc_completion {
        tag: 0,
        status: 0,
        copies: 0,
        value: kvc_buf { data: null_mut(), len: 0, version: 0 },
        words: null(),
        doubt: kvclient::kvc_doubt::default(),
    };
    let mut done = vec![nothing; DEPTH];
    let mut run = |rounds: usize| {
        for round in 0..rounds {
            for (n, (key, room)) in keys.iter().zip(&mut rooms).enumerate() {
                let kind = [KVC_OP_PUT, KVC_OP_GET, KVC_OP_UPDATE][round % 3];
                let is_update = kind == KVC_OP_UPDATE;
                let op = kvc_op {
                    size,
                    kind,
                    key: slice(key.as_bytes()),
                    value: if is_update { slice(b"") } else { slice(&value) },
                    dst: if is_update { null_mut() } else { room.as_mut_ptr().cast() },
                    cap: if is_update { 0 } else { room.len() },
                    updates: if is_update { updates.as_ptr() } else { null() },
                    n: if is_update { updates.len() } else { 0 },
                    results: if is_update { results.as_mut_ptr() } else { null_mut() },
                    deadline_ms: if kind == KVC_OP_GET { &raw mut deadline } else { null_mut() },
                    ..kvc_op::default()
                };
                // SAFETY: all arguments are valid, and the room lives until the queue is freed.
                assert_eq!(unsafe { kvc_cq_submit(cq, &raw const op, n as u64) }, KVC_OK);
            }
            let mut left = DEPTH;
            while left > 0 {
                // SAFETY: all arguments are valid.
                let count = unsafe { kvc_cq_poll(cq, done.as_mut_ptr(), DEPTH, -1) };
                let count = usize::try_from(count).expect("a count");
                assert!(done[..count].iter().all(|ended| ended.status == KVC_OK));
                left -= count;
            }
        }
        assert!(rooms.iter().all(|room| *room == value));
    };
    run(500);
    assert_eq!(least(|| run(200)), 0);
    // SAFETY: no thread uses the handle or the queue any more.
    unsafe { (kvc_cq_free(cq), kvc_close(client)) };
}
