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
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_client::{
    Client, Condition, Descriptors, Interrupt, MAX_IN_FLIGHT, OnEnd, Op, OpOptions, Reply,
    Statistics, SubmitError, Ticket, Update,
};

use crate::buffer::{kvc_buf, kvc_slice, value_of};
use crate::changes::get_with_deadline;
use crate::doubt::{Doubts, kvc_doubt};
use crate::error::{
    Failure, KVC_FORKED, KVC_FULL, KVC_INVALID, KVC_NOT_FOUND, KVC_OK, KVC_PANIC, KVC_UNAVAILABLE,
    c_text,
};
use crate::fork::Process;
use crate::handle::{Pointer, kvc_client, open_here, refuse_callback};
use crate::interrupt::interrupted;
use crate::options::{condition, millis, sized};
use crate::panic::guard;
use crate::target::Target;
use crate::update::{
    Results, check_count, current, deadline_ms, executed, kvc_update, kvc_updated, read_updates,
};

/// kvc_op.kind: a read of a key.
pub const KVC_OP_GET: u32 = 1;
/// kvc_op.kind: a put, which sets a key.
pub const KVC_OP_PUT: u32 = 2;
/// kvc_op.kind: a delete, which removes a key.
pub const KVC_OP_DELETE: u32 = 3;
/// kvc_op.kind: a request with `n` updates, like kvc_update_one() and kvc_update_many().
pub const KVC_OP_UPDATE: u32 = 4;

/// kvc_op.flags: the value of a put is not copied. The program must not change or free the value until it has received
/// the completion or has freed the queue.
pub const KVC_KEEP: u32 = 1;

/// kvc_op.flags: a get with dst reads the part of the value that begins at offset, like kvc_get_range().
pub const KVC_RANGE: u32 = 2;

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

/// An operation to submit. Set size to sizeof(kvc_op), and all unused fields to zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_op {
    /// sizeof(kvc_op)
    pub size: u32,
    /// KVC_OP_GET, KVC_OP_PUT, KVC_OP_DELETE or KVC_OP_UPDATE.
    pub kind: u32,
    /// The key: 1 to 65,535 bytes. It is copied.
    pub key: kvc_slice,
    /// The value of a put: up to 16 MiB. It is copied unless flags has KVC_KEEP. With KVC_KEEP, a value below 1 KiB may
    /// still be copied to be sent together with others.
    pub value: kvc_slice,
    /// The buffer of a get: `cap` bytes for the value, written before the completion is available. After a failure its
    /// content is unspecified. If dst is NULL, the completion owns the value.
    pub dst: *mut c_void,
    /// The size of dst in bytes.
    pub cap: usize,
    /// The condition of a put or a delete, as in kvc_op_options. Else zero.
    pub if_version: u64,
    /// The deadline of the operation in milliseconds, at most 60,000. Zero means the deadline of the handle.
    pub timeout_ms: u32,
    /// KVC_KEEP, KVC_RANGE, or zero.
    pub flags: u32,
    /// The offset in the value of the first byte to read, with KVC_RANGE. Else zero.
    pub offset: u64,
    /// The updates of KVC_OP_UPDATE. They and all that they refer to are copied. Else NULL.
    pub updates: *const kvc_update,
    /// The number of updates, 1 to 1,024. Else zero.
    pub n: usize,
    /// NULL, or room for `n` results, which are written before the completion is available. Their values may be freed
    /// once the completion was polled or the queue was freed. Their `doubt` is that of the completion. If it is NULL,
    /// the completion owns the value of a single update, and the results of several are discarded.
    pub results: *mut kvc_updated,
    /// NULL, or a variable for the deadline of the entry that a get or a single update with KVC_RETURN_VALUE returns,
    /// in milliseconds since 1970; zero if there is none. It is written on success, before the completion is available.
    pub deadline_ms: *mut u64,
}

impl Default for kvc_op {
    fn default() -> kvc_op {
        let nothing = kvc_slice { data: ptr::null(), len: 0 };
        kvc_op {
            size: 0,
            kind: 0,
            key: nothing,
            value: nothing,
            dst: ptr::null_mut(),
            cap: 0,
            if_version: 0,
            timeout_ms: 0,
            flags: 0,
            offset: 0,
            updates: ptr::null(),
            n: 0,
            results: ptr::null_mut(),
            deadline_ms: ptr::null_mut(),
        }
    }
}

/// The completion of an operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_completion {
    /// The tag that was passed to kvc_cq_submit().
    pub tag: u64,
    /// KVC_OK, or the status of the failure.
    pub status: c_int,
    /// The number of servers that hold the write: 2, or 1 while the group has no second replica. Zero for a read, and
    /// after a failure.
    pub copies: u32,
    /// The value of a successful get without dst, or the value that a single update without results returns, also after
    /// KVC_CONFLICT; to be freed with kvc_buf_free(). In all other cases data is NULL. For a get with dst, len is the
    /// length of the value after a success and after KVC_TOO_BIG, else zero. The version is that of the entry after
    /// every success, KVC_TOO_BIG and KVC_CONFLICT (zero if there is no entry), else zero. After a delete it is the
    /// sequence number of the delete itself. For updates, it is as in kvc_updated.
    pub value: kvc_buf,
    /// The error message; NULL after a success. The queue owns the string, which is valid until the next kvc_cq_poll()
    /// or kvc_cq_free().
    pub words: *const c_char,
    /// The name of the write after KVC_IN_DOUBT, for kvc_resolve(). All zero after any other status, and if the servers
    /// have expired the session of the write.
    pub doubt: kvc_doubt,
}

/// The state of an operation in flight.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    tag: u64,
    is_get: bool,
    /// The memory of a get with dst.
    target: Option<Target>,
    /// The memory for the results of updates; `None` for any other operation.
    results: Option<Results>,
    /// True if the completion owns the value that the operation returns.
    owns_value: bool,
    /// The program's variable for the deadline of the entry, or NULL.
    deadline_ms: Pointer<u64>,
    /// The ticket with which the operation can be cancelled while it is in flight.
    ticket: Option<Ticket>,
}

impl Slot {
    pub(crate) fn of(op: &kvc_op, tag: u64) -> Slot {
        let is_get = op.kind == KVC_OP_GET;
        let is_update = op.kind == KVC_OP_UPDATE;
        let results = is_update.then(|| Results::new(op.results, op.n));
        let owns_value = is_get || (is_update && op.n == 1 && op.results.is_null());
        let deadline_ms = Pointer::new(op.deadline_ms);
        let target = target(op);
        Slot { tag, is_get, target, results, owns_value, deadline_ms, ticket: None }
    }

    /// Empties the program's results of updates, so that their values may be freed whatever happens.
    ///
    /// # Safety
    /// The program's memory has room for the results.
    pub(crate) unsafe fn empty_results(&self) {
        if let Some(results) = self.results {
            // SAFETY: passed on.
            unsafe { results.empty() };
        }
    }
}

/// Returns the destination of a get with dst; `None` for any other operation.
fn target(op: &kvc_op) -> Option<Target> {
    let offset = usize::try_from(op.offset).unwrap_or(usize::MAX);
    match op.kind {
        KVC_OP_GET if op.dst.is_null() => None,
        KVC_OP_GET if op.flags & KVC_RANGE != 0 => Some(Target::range(op.dst, op.cap, offset)),
        KVC_OP_GET => Some(Target::all(op.dst, op.cap)),
        _ => None,
    }
}

/// A completion that has not been polled yet.
pub(crate) struct Done {
    tag: u64,
    copies: u32,
    value: kvc_buf,
    /// The number of bytes of the values in the results of updates.
    bytes_of_results: usize,
    /// The memory for the results of updates that failed.
    results: Option<Results>,
    /// The failure, boxed because most completions have none.
    failure: Option<Box<Failure>>,
}

impl Done {
    /// Returns the number of bytes of the values that the completion or its results own.
    fn bytes(&self) -> usize {
        let own = if self.value.data.is_null() { 0 } else { self.value.len };
        own + self.bytes_of_results
    }

    /// Returns the completion without its message, and the failure. Writes the results of updates that failed.
    ///
    /// # Safety
    /// The program's memory has room for the results.
    pub(crate) unsafe fn tell(self, doubts: &Doubts) -> (kvc_completion, Option<Failure>) {
        let Done { tag, copies, value, results, failure, .. } = self;
        let mut failure = failure.map(|failure| *failure);
        let status = failure.as_ref().map_or(KVC_OK, |failure| failure.status);
        let doubt = doubts.name(failure.as_mut().and_then(|failure| failure.doubt.take()));
        if let (Some(results), Some(failure)) = (results, &failure) {
            // SAFETY: passed on.
            unsafe { results.fail(failure, doubt) };
        }
        (kvc_completion { tag, status, copies, value, words: ptr::null(), doubt }, failure)
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
        let slot = Slot::of(op, tag);
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(slot);
            // All operations may end at the same time, when nothing may be allocated.
            self.done.reserve(self.slots.len() - self.done.len());
            self.slots.len() - 1
        });
        self.slots[at] = slot;
        match self.client.submit_to_cancel(request, &options, at as u64) {
            Ok(ticket) => {
                self.slots[at].ticket = Some(ticket);
                // SAFETY: the program guarantees the memory until the completion.
                unsafe { slot.empty_results() };
                Ok(())
            }
            Err(error) => {
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
            let ended = unsafe { end(slots[at], result) };
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

/// Converts the result of an operation into its completion.
///
/// # Safety
/// The memory of `slot.target` has room for its `cap` bytes, and that of `slot.results` for the results.
pub(crate) unsafe fn end(slot: Slot, result: Result<Reply<'_>, kv_client::Error>) -> Done {
    let Slot { tag, is_get, target, results, owns_value, deadline_ms: to, .. } = slot;
    let nothing = Done {
        tag,
        copies: 0,
        value: kvc_buf::EMPTY,
        bytes_of_results: 0,
        results: None,
        failure: None,
    };
    let responded = match result {
        Ok(responded) => responded,
        Err(error) => {
            let failure = Failure::from(error);
            let value = if owns_value { current(&failure) } else { kvc_buf::EMPTY };
            let value = kvc_buf { version: failure.version, ..value };
            return Done { value, results, failure: Some(Box::new(failure)), ..nothing };
        }
    };
    let version = responded.version.0;
    let mut done = Done { copies: responded.copies.into(), ..nothing };
    done.value.version = version;
    let deadline = deadline_ms(responded.deadline);
    let fits = if let Some(target) = target {
        done.value.len = responded.length;
        // SAFETY: passed on.
        unsafe { target.take(responded) };
        target.too_small(responded.length).map_or(Ok(()), Err)
    } else if owns_value && responded.has_value {
        match value_of(responded) {
            Ok(value) => {
                done.value = value;
                Ok(())
            }
            Err(no_memory) if is_get => {
                done.value = kvc_buf::EMPTY;
                Err(no_memory)
            }
            Err(no_memory) => Err(executed(no_memory)),
        }
    } else if let Some(results) = results {
        // SAFETY: passed on.
        unsafe { results.succeed(responded) }.map(|bytes| done.bytes_of_results = bytes)
    } else {
        Ok(())
    };
    match fits {
        Ok(()) if !to.get().is_null() => {
            // SAFETY: not NULL; the program keeps the variable until it has the completion.
            unsafe { to.get().write(deadline) };
        }
        Ok(()) => {}
        Err(failure) => done.failure = Some(Box::new(failure)),
    }
    done
}

/// Appends the updates of an operation to `into`; there are none of any other kind. Checks the fields that belong to
/// updates and deadlines.
///
/// # Safety
/// The updates and all that they refer to are readable, and do not change while the results live.
pub(crate) unsafe fn read_op_updates<'a>(
    op: &kvc_op,
    into: &mut Vec<Update<'a>>,
) -> Result<(), Failure> {
    let has_deadline = matches!(op.kind, KVC_OP_GET | KVC_OP_UPDATE);
    if !has_deadline && !op.deadline_ms.is_null() {
        let words = "kvc_op.deadline_ms is not NULL, but only gets and updates return a deadline";
        return Err(Failure::invalid(words));
    }
    if op.kind != KVC_OP_UPDATE {
        if !op.updates.is_null() || op.n != 0 || !op.results.is_null() {
            let words = "kvc_op.updates, n or results is set, but kvc_op.kind is not KVC_OP_UPDATE";
            return Err(Failure::invalid(words));
        }
        return Ok(());
    }
    check_count(op.n)?;
    if op.updates.is_null() {
        return Err(Failure::invalid("kvc_op.updates is NULL"));
    }
    if condition(op.if_version) != Condition::Always {
        let words = "kvc_op.if_version is not 0; set the condition of each update instead";
        return Err(Failure::invalid(words));
    }
    // SAFETY: passed on.
    unsafe { read_updates(op.updates, op.n, into) }
}

/// Converts an operation of the C interface into one of the client.
///
/// # Safety
/// Key and value are readable, a kept value for as long as KVC_KEEP requires.
pub(crate) unsafe fn request<'a>(
    op: &kvc_op,
    updates: &'a [Update<'a>],
) -> Result<Op<'a>, Failure> {
    if op.flags & !(KVC_KEEP | KVC_RANGE) != 0 {
        return Err(Failure::invalid(format!("kvc_op.flags is {:#x}; unknown flag", op.flags)));
    }
    if op.flags & KVC_RANGE == 0 && op.offset != 0 {
        return Err(Failure::invalid(
            "kvc_op.offset is not 0, but kvc_op.flags does not include KVC_RANGE",
        ));
    }
    if op.flags & KVC_RANGE != 0 && (op.kind != KVC_OP_GET || op.dst.is_null()) {
        return Err(Failure::invalid(
            "kvc_op.flags includes KVC_RANGE, which is only for a get with dst",
        ));
    }
    if op.dst.is_null() && op.cap > 0 {
        return Err(Failure::invalid("kvc_op.dst is NULL, but kvc_op.cap is not 0"));
    }
    // SAFETY: passed on.
    let key = unsafe { op.key.bytes("kvc_op.key") }?;
    match op.kind {
        KVC_OP_GET => Ok(match (target(op), op.deadline_ms.is_null()) {
            (None, true) => Op::Get { key },
            (None, false) => get_with_deadline(key),
            (Some(target), is_without) => target.op(key, !is_without),
        }),
        KVC_OP_UPDATE => Ok(Op::Update { key, updates }),
        KVC_OP_DELETE => Ok(Op::Delete { key }),
        KVC_OP_PUT => {
            // SAFETY: passed on.
            let value: &'static [u8] = unsafe { op.value.bytes("kvc_op.value") }?;
            Ok(Op::put(key, value, op.flags & KVC_KEEP != 0))
        }
        kind => Err(Failure::invalid(format!(
            "kvc_op.kind is {kind}; use KVC_OP_GET, KVC_OP_PUT, KVC_OP_DELETE or KVC_OP_UPDATE"
        ))),
    }
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
/// results of updates. NULL is allowed. Operations in flight are abandoned, and the outcome of their writes is unknown.
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
