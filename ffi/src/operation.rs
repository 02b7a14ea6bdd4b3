//! One operation of a queue or a batch: its description, its state in flight, and its completion.
//!
//! ```text
//!   kvc_op -> checked, as kv_client::Op -> slot (tag, destinations) -> result -> done -> kvc_completion
//! ```

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use kv_client::{Condition, Op, Reply, Ticket, Update};

use crate::buffer::{kvc_buf, kvc_slice, value_of};
use crate::changes::get_with_deadline;
use crate::doubt::{Doubts, kvc_doubt};
use crate::error::{Failure, KVC_OK};
use crate::handle::Pointer;
use crate::options::condition;
use crate::results::{Results, current, executed};
use crate::scan::{PendingPage, kvc_page, kvc_scan_options, read_scan_options};
use crate::target::Target;
use crate::update::{check_count, deadline_ms, kvc_update, kvc_updated, read_updates};

/// kvc_op.kind: a read of a key.
pub const KVC_OP_GET: u32 = 1;
/// kvc_op.kind: a put, which sets a key.
pub const KVC_OP_PUT: u32 = 2;
/// kvc_op.kind: a delete, which removes a key.
pub const KVC_OP_DELETE: u32 = 3;
/// kvc_op.kind: a request with `n` updates, like kvc_update_one() and kvc_update_many().
pub const KVC_OP_UPDATE: u32 = 4;
/// kvc_op.kind: a page of a scan of all keys, like kvc_scan().
pub const KVC_OP_SCAN: u32 = 5;

/// kvc_op.flags: the value of a put is not copied. The program must not change or free the value until it has received
/// the completion or has freed the queue.
pub const KVC_KEEP: u32 = 1;

/// kvc_op.flags: a get with dst reads the part of the value that begins at offset, like kvc_get_range().
pub const KVC_RANGE: u32 = 2;

/// An operation to submit. Set size to sizeof(kvc_op), and all unused fields to zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_op {
    /// sizeof(kvc_op)
    pub size: u32,
    /// KVC_OP_GET, KVC_OP_PUT, KVC_OP_DELETE, KVC_OP_UPDATE or KVC_OP_SCAN.
    pub kind: u32,
    /// The key: 1 to 65,535 bytes. It is copied. A scan has none.
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
    /// The token of the page of KVC_OP_SCAN, as for kvc_scan(): 0 for the first page, then kvc_page.next of the page
    /// before. Else zero.
    pub token: u64,
    /// The settings of KVC_OP_SCAN; NULL gives the defaults. They and their pattern are copied. Else NULL.
    pub scan: *const kvc_scan_options,
    /// The variable of KVC_OP_SCAN for the page, which the program frees with kvc_page_free(). It is written before the
    /// completion is available; after a failure it is NULL. The page may be freed once the completion was polled or the
    /// queue was freed. Else NULL.
    pub page: *mut *mut kvc_page,
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
            token: 0,
            scan: ptr::null(),
            page: ptr::null_mut(),
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
    /// sequence number of the delete itself. For updates, it is as in kvc_updated. For a scan, it is zero.
    pub value: kvc_buf,
    /// The error message; NULL after a success. The queue owns the string, which is valid until the next kvc_cq_poll()
    /// or kvc_cq_free().
    pub words: *const c_char,
    /// The name of the write after KVC_IN_DOUBT, for kvc_resolve(). All zero after any other status, and if the servers
    /// have expired the session of the write.
    pub doubt: kvc_doubt,
}

/// The state of an operation in flight.
pub(crate) struct Slot {
    pub(crate) tag: u64,
    is_get: bool,
    /// The memory of a get with dst.
    target: Option<Target>,
    /// The memory for the results of updates; `None` for any other operation.
    results: Option<Results>,
    /// The page of a scan, boxed because most operations have none; `None` for any other operation.
    pub(crate) page: Option<Box<PendingPage>>,
    /// True if the completion owns the value that the operation returns.
    owns_value: bool,
    /// The program's variable for the deadline of the entry, or NULL.
    deadline_ms: Pointer<u64>,
    /// The ticket with which the operation can be cancelled while it is in flight.
    pub(crate) ticket: Option<Ticket>,
}

impl Slot {
    /// Creates the state of `op`, which `request` has converted into `asked`.
    pub(crate) fn of(op: &kvc_op, asked: &Op<'_>, tag: u64) -> Slot {
        let is_get = op.kind == KVC_OP_GET;
        let is_update = op.kind == KVC_OP_UPDATE;
        let results = is_update.then(|| Results::new(op.results, op.n));
        let owns_value = is_get || (is_update && op.n == 1 && op.results.is_null());
        let deadline_ms = Pointer::new(op.deadline_ms);
        let target = target(op);
        let page = match asked {
            Op::Scan { options, .. } => Some(Box::new(PendingPage::new(options, op.page))),
            _ => None,
        };
        Slot { tag, is_get, target, results, page, owns_value, deadline_ms, ticket: None }
    }

    /// Empties the program's results of updates and its page of a scan, so that they may be freed whatever happens.
    ///
    /// # Safety
    /// The program's memory has room for the results and the page.
    pub(crate) unsafe fn empty_results(&self) {
        if let Some(results) = self.results {
            // SAFETY: passed on.
            unsafe { results.empty() };
        }
        if let Some(page) = &self.page {
            // SAFETY: passed on.
            unsafe { page.empty() };
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
    pub(crate) tag: u64,
    copies: u32,
    pub(crate) value: kvc_buf,
    /// The number of bytes of the values in the results of updates, or of the page of a scan.
    bytes_of_results: usize,
    /// The memory for the results of updates that failed.
    results: Option<Results>,
    /// The failure, boxed because most completions have none.
    failure: Option<Box<Failure>>,
}

impl Done {
    /// Returns the number of bytes of the values that the completion or its results own.
    pub(crate) fn bytes(&self) -> usize {
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

/// Converts the result of an operation into its completion.
///
/// # Safety
/// The memory of `slot.target` has room for its `cap` bytes, that of `slot.results` for the results, and that of
/// `slot.page` for a pointer.
pub(crate) unsafe fn end(slot: &mut Slot, result: Result<Reply<'_>, kv_client::Error>) -> Done {
    let page = slot.page.take();
    let Slot { tag, is_get, target, results, owns_value, deadline_ms: to, .. } = *slot;
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
    } else if let Some(page) = page {
        done.value.version = 0;
        // SAFETY: passed on.
        done.bytes_of_results = unsafe { page.succeed(responded) };
        Ok(())
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
    if op.value.len != 0 {
        let words = "kvc_op.value is set, but KVC_OP_UPDATE does not use it; set the value of each update instead";
        return Err(Failure::invalid(words));
    }
    if !op.dst.is_null() || op.cap != 0 {
        let words =
            "kvc_op.dst or cap is set, but KVC_OP_UPDATE does not use it; set results instead";
        return Err(Failure::invalid(words));
    }
    // SAFETY: passed on.
    unsafe { read_updates(op.updates, op.n, into) }
}

/// Converts an operation of the C interface into one of the client.
///
/// # Safety
/// Key, value and pattern are readable, a kept value for as long as KVC_KEEP requires.
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
    if op.kind != KVC_OP_SCAN && (op.token != 0 || !op.scan.is_null() || !op.page.is_null()) {
        let words = "kvc_op.token, scan or page is set, but kvc_op.kind is not KVC_OP_SCAN";
        return Err(Failure::invalid(words));
    }
    // SAFETY: passed on.
    let key = unsafe { op.key.bytes("kvc_op.key") }?;
    match op.kind {
        // SAFETY: passed on.
        KVC_OP_SCAN => unsafe { scan(op) },
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
            "kvc_op.kind is {kind}; use KVC_OP_GET, KVC_OP_PUT, KVC_OP_DELETE, KVC_OP_UPDATE or KVC_OP_SCAN"
        ))),
    }
}

/// Converts a KVC_OP_SCAN.
///
/// # Safety
/// The settings are NULL or a struct of the size that they state, and their pattern is readable.
unsafe fn scan<'a>(op: &kvc_op) -> Result<Op<'a>, Failure> {
    for (field, is_unused) in [
        ("key", op.key.len == 0),
        ("value", op.value.len == 0),
        ("dst", op.dst.is_null()),
        ("if_version", op.if_version == 0),
    ] {
        if !is_unused {
            let words = format!("kvc_op.{field} is set, but KVC_OP_SCAN does not use it");
            return Err(Failure::invalid(words));
        }
    }
    if op.page.is_null() {
        return Err(Failure::invalid(
            "kvc_op.page is NULL; KVC_OP_SCAN needs a variable for its page",
        ));
    }
    // SAFETY: passed on.
    let (options, timeout_ms) = unsafe { read_scan_options(op.scan) }?;
    if timeout_ms != 0 {
        let words = "kvc_scan_options.timeout_ms is not 0; for KVC_OP_SCAN, set the timeout of the operation instead";
        return Err(Failure::invalid(words));
    }
    Ok(Op::Scan { token: op.token, options })
}
