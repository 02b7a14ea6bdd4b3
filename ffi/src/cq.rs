//! The completion queue: many operations in flight from one thread, and one descriptor that is readable when there is
//! work to do.
//!
//! ```text
//!   kvc_cq_submit -> slot (tag, destination of the value) -> client -> servers
//!   kvc_cq_poll   <- done <- slot <-------------------------- results, as they arrive
//! ```
//!
//! The submitted operations and the completions not polled yet, taken together, never exceed the depth. In the steady
//! state, nothing is allocated.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ffi::{CString, c_int};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_client::{
    Client, Descriptors, Interrupt, MAX_IN_FLIGHT, OnEnd, OpOptions, Reply, Statistics,
    SubmitError, Update,
};

use crate::doubt::Doubts;
use crate::error::{
    Failure, KVC_FORKED, KVC_FULL, KVC_INVALID, KVC_NOT_FOUND, KVC_OK, KVC_PANIC, KVC_UNAVAILABLE,
    c_text,
};
use crate::fork::Process;
use crate::handle::{kvc_client, open_here, refuse_callback};
use crate::interrupt::interrupted;
use crate::operation::{Done, Slot, end, kvc_completion, kvc_op, read_op_updates, request};
use crate::options::{condition, millis, sized};
use crate::panic::guard;

/// The number of bytes of unpolled values at which no more responses are read. Data already read may exceed it by at
/// most one value of 16 MiB and one read of 1 MiB.
const MAX_UNPOLLED_BYTES: usize = 64 << 20;

/// A completion queue; opaque. Only one thread at a time may use it. While a thread is in a call on the queue, even if
/// it waits in kvc_cq_poll(), calls from other threads return KVC_INVALID.
pub struct kvc_cq {
    /// The process that opened the queue.
    process: Process,
    depth: u32,
    /// True while a call is in progress.
    is_in_use: AtomicBool,
    is_poisoned: AtomicBool,
    /// True if a log or event function is set; calls from within it are rejected.
    calls_back: bool,
    /// The descriptors that are closed in the child of a fork.
    descriptors: Descriptors,
    interrupt: Interrupt,
    queue: UnsafeCell<Queue>,
}

impl fmt::Debug for kvc_cq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("kvc_cq").field("depth", &self.depth).finish_non_exhaustive()
    }
}

pub(crate) struct Queue {
    client: Client,
    /// The list of writes in doubt, which the queue shares with its handle.
    doubts: Doubts,
    slots: Vec<Slot>,
    /// The free list of slots.
    free: Vec<usize>,
    done: VecDeque<Done>,
    /// The bytes of the values in `done`.
    done_bytes: usize,
    /// The messages to which the completions of the last poll point.
    words: Vec<CString>,
    /// The memory for the updates of an operation while it is submitted.
    updates: Vec<Update<'static>>,
}

impl Queue {
    /// Returns the number of operations whose completions have not been polled yet.
    fn taken(&self) -> usize {
        self.slots.len() - self.free.len() + self.done.len()
    }

    fn submit(&mut self, op: &kvc_op, tag: u64, depth: u32) -> Result<(), Failure> {
        if self.client.is_interrupted() {
            return Err(interrupted("kvc_cq_submit"));
        }
        if self.taken() >= depth as usize {
            let words = format!(
                "{depth} operations are in the queue; poll for completions, then submit the operation again"
            );
            return Err(Failure::new(KVC_FULL, words));
        }
        let mut updates = std::mem::take(&mut self.updates);
        // SAFETY: the program guarantees the memory; updates are not accessed after this call.
        let submitted = unsafe { read_op_updates(op, &mut updates) }
            .and_then(|()| self.submit_checked(op, &updates, tag));
        updates.clear();
        self.updates = updates;
        submitted
    }

    fn submit_checked(
        &mut self,
        op: &kvc_op,
        updates: &[Update<'_>],
        tag: u64,
    ) -> Result<(), Failure> {
        let options =
            OpOptions { deadline: millis(op.timeout_ms), condition: condition(op.if_version) };
        // SAFETY: the program guarantees the memory; a kept value is released when the operation has ended or the
        // client is dropped.
        let request = unsafe { request(op, updates) }?;
        let slot = Slot::of(op, &request, tag);
        let at = if let Some(at) = self.free.pop() {
            self.slots[at] = slot;
            at
        } else {
            self.slots.push(slot);
            // All operations may end at the same time, when nothing may be allocated.
            self.done.reserve(self.slots.len() - self.done.len());
            self.slots.len() - 1
        };
        match self.client.submit_to_cancel(request, &options, at as u64) {
            Ok(ticket) => {
                let slot = &mut self.slots[at];
                slot.ticket = Some(ticket);
                // SAFETY: the program guarantees the memory until the completion.
                unsafe { slot.empty_results() };
                Ok(())
            }
            Err(error) => {
                self.slots[at].page = None;
                self.free.push(at);
                Err(match error {
                    SubmitError::Full { .. } => Failure::new(KVC_FULL, error.to_string()),
                    SubmitError::Refused(error) => error.into(),
                })
            }
        }
    }

    /// Ends the operations with this tag early. Fails with KVC_NOT_FOUND if the queue has none, in flight or ended.
    pub(crate) fn cancel(&mut self, tag: u64) -> Result<(), Failure> {
        let mut is_known = self.done.iter().any(|done| done.tag == tag);
        for slot in self.slots.iter().filter(|slot| slot.tag == tag) {
            if let Some(ticket) = slot.ticket {
                is_known = true;
                self.client.cancel(ticket);
            }
        }
        if is_known {
            return Ok(());
        }
        let words = format!("kvc_cq_cancel: no operation in the queue has the tag {tag}");
        Err(Failure::new(KVC_NOT_FOUND, words))
    }

    pub(crate) fn statistics(&self) -> Statistics {
        self.client.statistics()
    }

    /// Polls for completions. Without a timeout, the wait ends only with a completion, with an interrupt, or when
    /// nothing is in flight.
    fn poll(
        &mut self,
        out: &mut [MaybeUninit<kvc_completion>],
        timeout: Option<Duration>,
    ) -> Result<usize, Failure> {
        self.words.clear();
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut is_over = !self.done.is_empty();
        loop {
            let left = match until {
                _ if is_over => Duration::ZERO,
                Some(until) => until.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            if self.done.len() >= out.len() || self.done_bytes >= MAX_UNPOLLED_BYTES {
                self.send()?;
            } else {
                self.collect(left)?;
            }
            is_over |= !self.done.is_empty()
                || self.client.in_flight() == 0
                || self.client.is_interrupted();
            if is_over || until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
        }
        if self.done.is_empty() && self.client.is_interrupted() {
            return Err(interrupted("kvc_cq_poll"));
        }
        let count = self.done.len().min(out.len());
        for (place, done) in out.iter_mut().zip(self.done.drain(..count)) {
            self.done_bytes -= done.bytes();
            // SAFETY: the program keeps its results valid until it has the completion.
            let (mut completion, failure) = unsafe { done.tell(&self.doubts) };
            if let Some(failure) = failure {
                self.words.push(c_text(failure.words));
                completion.words = self.words.last().map_or(ptr::null(), |text| text.as_ptr());
            }
            place.write(completion);
        }
        self.wake_if_done();
        Ok(count)
    }

    /// Sends and receives for up to `timeout`, and records results.
    fn collect(&mut self, timeout: Duration) -> Result<(), Failure> {
        let (client, mut each) = self.with_each();
        client.poll_each(timeout, &mut each).map(|_| ()).map_err(epoll_failed)
    }

    /// Sends, and records results.
    fn send(&mut self) -> Result<(), Failure> {
        let (client, mut each) = self.with_each();
        client.send_each(&mut each).map_err(epoll_failed)
    }

    /// Returns the client, and a function that records each result.
    fn with_each(&mut self) -> (&mut Client, impl OnEnd) {
        let Queue { client, slots, free, done, done_bytes, .. } = self;
        let each = move |at: u64, result: Result<Reply<'_>, kv_client::Error>| {
            let at = usize::try_from(at).expect("it was a slot");
            free.push(at);
            slots[at].ticket = None;
            // SAFETY: the program keeps dst valid until it has the completion.
            let ended = unsafe { end(&mut slots[at], result) };
            *done_bytes += ended.bytes();
            done.push_back(ended);
            match *done_bytes >= MAX_UNPOLLED_BYTES {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        (client, each)
    }

    fn descriptor(&mut self) -> Result<c_int, Failure> {
        let descriptor = self.client.descriptor()?.as_raw_fd();
        self.wake_if_done();
        Ok(descriptor)
    }

    /// Makes the descriptor readable if there are unpolled completions, because no socket signals them.
    fn wake_if_done(&mut self) {
        if !self.done.is_empty() {
            self.client.wake();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        for done in &mut self.done {
            // SAFETY: the queue owns the value.
            unsafe { crate::buffer::kvc_buf_free(&raw mut done.value) };
        }
    }
}

fn epoll_failed(error: io::Error) -> Failure {
    Failure::new(KVC_UNAVAILABLE, format!("kvc_cq_poll: epoll or its timer failed: {error}"))
}

/// Opens a queue for up to `depth` operations (1 to 65,536) that are submitted and whose completions are not polled
/// yet. The queue has its own connections, and the handle may be closed before the queue. On success, *out is a queue
/// that the caller frees with kvc_cq_free().
///
/// The memory of a queue is limited. It holds at most 64 MiB of keys and values to be sent (values with KVC_KEEP stay
/// in the program's memory). While it has 64 MiB of unpolled values that were read without dst, it reads no more
/// responses. The last read may exceed this limit by up to 17 MiB. Each connection to a shard of a server has a receive
/// buffer of up to twice the longest value. In addition, the queue has 16 MiB of reused request buffers, and about 500
/// bytes for each operation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_new(
    client: *mut kvc_client,
    depth: u32,
    out: *mut *mut kvc_cq,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle.
        let handle = unsafe { open_here(client) }?;
        if out.is_null() {
            return Err(Failure::invalid("kvc_cq_new: out is NULL"));
        }
        refuse_callback()?;
        if depth == 0 || depth as usize > MAX_IN_FLIGHT {
            let words = format!("kvc_cq_new: depth is {depth}; it must be 1 to {MAX_IN_FLIGHT}");
            return Err(Failure::invalid(words));
        }
        let client = handle.open(depth as usize)?;
        let descriptors = client.descriptors();
        let queue = Queue {
            client,
            doubts: handle.doubts.clone(),
            slots: Vec::new(),
            free: Vec::new(),
            done: VecDeque::new(),
            done_bytes: 0,
            words: Vec::new(),
            updates: Vec::new(),
        };
        let cq = Box::new(kvc_cq {
            process: Process::current(),
            depth,
            is_in_use: AtomicBool::new(false),
            is_poisoned: AtomicBool::new(false),
            calls_back: handle.calls_back(),
            descriptors,
            interrupt: handle.interrupt.clone(),
            queue: UnsafeCell::new(queue),
        });
        // SAFETY: not NULL; the caller passes a pointer that is valid for writing a pointer.
        unsafe { out.write(Box::into_raw(cq)) };
        Ok(KVC_OK)
    })
}

/// Returns the descriptor of a queue, or a negative status. The descriptor is readable when kvc_cq_poll() has work to
/// do. The work may be only to send submitted operations or to run a timer of the library. The descriptor can be used
/// with poll, epoll and event libraries, level-triggered. The queue owns the descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_fd(cq: *mut kvc_cq) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a queue that is not freed.
        unsafe { with_queue(cq, |queue, _| queue.descriptor()) }
    })
}

/// Submits an operation. After KVC_OK, kvc_cq_poll() returns one completion with `tag`, whatever the result. After any
/// other status, nothing was submitted, the program's memory is not accessed any more, and no completion follows.
/// KVC_FULL: depth operations, or 64 MiB of keys and values, are in the queue; call kvc_cq_poll() until it returns a
/// completion, then submit the operation again. KVC_INVALID: an argument is invalid, or another thread is in a call on
/// the queue. KVC_TOO_BIG, KVC_NO_MEMORY: the key or the value is too long, or there is no memory for them.
/// KVC_INTERRUPTED, KVC_FORKED and KVC_PANIC are also possible. `op` is read during the call only. Operations on one
/// key that are in the queue at the same time may be executed in any order.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_submit(cq: *mut kvc_cq, op: *const kvc_op, tag: u64) -> c_int {
    guard(|| {
        if op.is_null() {
            return Err(Failure::invalid("kvc_cq_submit: op is NULL"));
        }
        // SAFETY: the caller passes a struct of the size that it states, and a queue that is not freed.
        unsafe {
            let op = sized(op, "kvc_op")?;
            with_queue(cq, |queue, depth| queue.submit(&op, tag, depth))?;
        }
        Ok(KVC_OK)
    })
}

/// Sends submitted operations, waits up to `timeout_ms` milliseconds for a completion (0: no wait; negative: until
/// there is one), and writes up to `max` completions to `out`, which need not be initialised. Returns the number of
/// completions. It is 0 at the timeout, and at once if the queue is empty. A negative result is a status. In that case
/// no completion was written, and none is lost unless the status is KVC_PANIC. KVC_INTERRUPTED: there is no completion,
/// and the program has called kvc_interrupt().
///
/// Every operation ends at its own deadline or earlier, so a wait lasts at most as long as the longest deadline in the
/// queue, which is at most 60 seconds. Another thread can end a wait early only with kvc_interrupt(). Signals do not
/// end it. A program that waits for other events too should wait on kvc_cq_fd().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_poll(
    cq: *mut kvc_cq,
    out: *mut kvc_completion,
    max: usize,
    timeout_ms: c_int,
) -> c_int {
    guard(|| {
        if out.is_null() || max == 0 {
            return Err(Failure::invalid("kvc_cq_poll: out is NULL or max is 0"));
        }
        let max = max.min(MAX_IN_FLIGHT);
        // SAFETY: the caller passes room for `max` completions, which may be uninitialised, and a queue that is not
        // freed.
        let count = unsafe {
            let out = std::slice::from_raw_parts_mut(out.cast(), max);
            with_queue(cq, |queue, _| {
                queue.poll(out, u64::try_from(timeout_ms).ok().map(Duration::from_millis))
            })
        }?;
        Ok(c_int::try_from(count).expect("at most 65,536"))
    })
}

/// Frees a queue, its connections and the values of completions that were not polled, except those in the program's
/// results of updates and its pages of scans. NULL is allowed. Operations in flight are abandoned, and the outcome of their writes is unknown.
/// Memory of the program to which operations refer is not accessed any more. While another thread is in a call on the
/// queue, the function returns KVC_INVALID and does not free the queue. In the child of a fork, an inherited queue is
/// not freed (KVC_FORKED): see kvc_cq_free_forked().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_free(cq: *mut kvc_cq) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a queue that is not freed.
        let Some(open) = (unsafe { cq.as_ref() }) else { return Ok(KVC_OK) };
        open.check_process()?;
        open.check_caller()?;
        open.enter()?;
        // SAFETY: it came from Box::into_raw in kvc_cq_new, and the caller transfers it back.
        drop(unsafe { Box::from_raw(cq) });
        Ok(KVC_OK)
    })
}

impl kvc_cq {
    fn check_process(&self) -> Result<(), Failure> {
        if !self.process.is_current() {
            let words = "this queue was opened before the fork; open another in this process";
            return Err(Failure::new(KVC_FORKED, words));
        }
        Ok(())
    }

    /// Rejects a call from within a log or event function (KVC_INVALID).
    fn check_caller(&self) -> Result<(), Failure> {
        if self.calls_back { refuse_callback() } else { Ok(()) }
    }

    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process.is_current()
    }

    /// Releases this process's copy of the queue in the child of a fork. If another thread of the parent was in a call
    /// on the queue, only the descriptors are closed, and the memory leaks.
    pub(crate) fn close_inherited(mut self: Box<kvc_cq>) {
        // SAFETY: no call of this process on the handle or its queues uses the interrupt any more.
        unsafe { self.interrupt.close_inherited() };
        if self.is_in_use.load(Ordering::Acquire) {
            // SAFETY: `forget` ensures that the owner of the descriptors is never dropped.
            unsafe { self.descriptors.close() };
            std::mem::forget(self);
            return;
        }
        std::mem::take(&mut self.queue.get_mut().doubts).close_inherited();
    }

    /// Claims the queue for this thread until `is_in_use` is reset.
    fn enter(&self) -> Result<(), Failure> {
        if self.is_in_use.swap(true, Ordering::Acquire) {
            let words =
                "another thread is in a call on this queue; use it from one thread at a time";
            return Err(Failure::new(KVC_INVALID, words));
        }
        Ok(())
    }
}

/// Runs a call on a queue. Fails if the queue is NULL, was inherited over a fork or is poisoned, if another thread is
/// in a call on it, or from within a log or event function.
///
/// # Safety
/// `cq` is NULL or a queue that is not freed.
pub(crate) unsafe fn with_queue<T>(
    cq: *const kvc_cq,
    call: impl FnOnce(&mut Queue, u32) -> Result<T, Failure>,
) -> Result<T, Failure> {
    /// A guard that releases the queue at the end of a call. `is_over` detects a panic: `thread::panicking` would not,
    /// because the calling program may itself be unwinding.
    struct InUse<'a> {
        cq: &'a kvc_cq,
        is_over: bool,
    }
    impl Drop for InUse<'_> {
        fn drop(&mut self) {
            if !self.is_over {
                self.cq.is_poisoned.store(true, Ordering::SeqCst);
            }
            self.cq.is_in_use.store(false, Ordering::Release);
        }
    }
    // SAFETY: passed on.
    let cq = unsafe { cq.as_ref() }.ok_or_else(|| Failure::invalid("the queue is NULL"))?;
    cq.check_process()?;
    cq.check_caller()?;
    cq.enter()?;
    let mut in_use = InUse { cq, is_over: false };
    let result = if cq.is_poisoned.load(Ordering::SeqCst) {
        let words = "an earlier call on this queue panicked; free the queue and open another";
        Err(Failure::new(KVC_PANIC, words))
    } else {
        // SAFETY: the thread that has set `is_in_use` has exclusive access to the queue.
        call(unsafe { &mut *cq.queue.get() }, cq.depth)
    };
    in_use.is_over = true;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panic::testing::unwinding;
    use std::ptr::null_mut;

    /// Opens a queue on a handle for an unreachable cluster.
    fn queue() -> *mut kvc_cq {
        let (mut client, mut cq) = (null_mut(), null_mut());
        // SAFETY: all arguments are valid; the handle is not used after it is closed.
        unsafe {
            let opened =
                crate::handle::kvc_open(c"127.0.0.1:1".as_ptr(), ptr::null(), &raw mut client);
            assert_eq!(opened, KVC_OK);
            assert_eq!(kvc_cq_new(client, 4, &raw mut cq), KVC_OK);
            assert_eq!(crate::handle::kvc_close(client), KVC_OK);
        }
        cq
    }

    #[test]
    fn a_panic_in_a_call_poisons_the_queue() {
        let cq = queue();
        let panicked = guard(|| {
            // SAFETY: the queue is open.
            unsafe { with_queue(cq, |_, _| -> Result<c_int, Failure> { panic!("on purpose") }) }
        });
        assert_eq!(panicked, KVC_PANIC);
        // SAFETY: the queue is open until it is freed.
        unsafe {
            assert_eq!(kvc_cq_fd(cq), KVC_PANIC);
            assert_eq!(kvc_cq_fd(cq), KVC_PANIC, "not KVC_INVALID, as for a queue in use");
            assert_eq!(kvc_cq_free(cq), KVC_OK);
        }
    }

    #[test]
    fn a_call_from_a_destructor_during_unwinding_leaves_the_queue_usable() {
        let cq = queue();
        // SAFETY: the queue is open.
        unwinding(|| assert!(unsafe { kvc_cq_fd(cq) } >= 0));
        // SAFETY: the queue is open until it is freed.
        unsafe {
            assert!(kvc_cq_fd(cq) >= 0);
            assert_eq!(kvc_cq_free(cq), KVC_OK);
        }
    }
}
