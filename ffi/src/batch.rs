//! Calls with many keys. All operations of a call run concurrently, on all servers.
//!
//! ```text
//!   check all keys -> start as many as may be in flight <-> their results -> statuses[i], out[i]
//! ```

use std::cmp::Reverse;
use std::ffi::c_int;
use std::fmt::Display;
use std::{ptr, slice};

use kv_client::{Op, OpOptions, Reply};

use crate::buffer::{kvc_buf, kvc_slice, value_of};

use crate::doubt::kvc_doubt;
use crate::error::{Failure, KVC_OK, KVC_PANIC, severity};
use crate::handle::{Pointer, kvc_client, open_to_call};
use crate::operation::{
    KVC_KEEP, KVC_OP_SCAN, Slot, end, kvc_completion, kvc_op, read_op_updates, request,
};
use crate::options::{condition, kvc_op_options, read_op_options, sized};
use crate::panic::guard;

/// Sets `n` keys to `n` values, on all servers in parallel. Each key is a separate write: some may be executed and
/// others not. If `statuses` is not NULL, `statuses[i]` is set to the status of the i-th write, even if the call fails
/// (the exceptions are below). The call returns KVC_OK if all writes were executed, else the most serious status, in
/// this order: KVC_PANIC, KVC_LOST, KVC_OTHER_CLUSTER, KVC_SHARED_IDENTITY, KVC_PROTOCOL, KVC_UNSUPPORTED,
/// KVC_IN_DOUBT, KVC_NO_MEMORY, KVC_OUT_OF_SPACE, KVC_INTERRUPTED, KVC_TIMEOUT, KVC_UNAVAILABLE, KVC_BUSY, KVC_TOO_BIG,
/// KVC_CROSS_SHARD, KVC_INVALID, KVC_OVERFLOW, KVC_NOT_A_NUMBER, KVC_CONFLICT, KVC_NOT_FOUND. In that case,
/// kvc_last_error() includes the number of failed writes. A condition in `options` applies to every key; kvc_batch()
/// has a condition for each operation. If a key occurs twice, either value may be the final one. If an argument is
/// invalid (KVC_INVALID) or the handle is inherited (KVC_FORKED), nothing is executed and no status is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_mput(
    client: *mut kvc_client,
    keys: *const kvc_slice,
    values: *const kvc_slice,
    n: usize,
    statuses: *mut c_int,
    options: *const kvc_op_options,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle, and arrays and structs as the header requires.
        let (handle, options, keys, values) = unsafe {
            let (handle, options) = (open_to_call(client)?, read_op_options(options)?);
            (handle, options, many(keys, n, "keys")?, many(values, n, "values")?)
        };
        let op = |at: usize| {
            // SAFETY: as above; the values are not accessed after the call has returned.
            let (key, value) = unsafe { (key(keys, at)?, values[at].bytes("value")?) };
            Ok(Op::PutKept { key, value })
        };
        // SAFETY: the caller passes NULL or room for `n` statuses.
        unsafe { execute(handle, &options, n, &op, statuses, |_, _| Ok(())) }
    })
}

/// Reads `n` keys, on all servers in parallel. `out[i]` is set to the i-th value, to be freed with kvc_buf_free(). If
/// the key could not be read, `out[i]` is empty (data NULL) and may be freed too. If `statuses` is not NULL,
/// `statuses[i]` is set to the status of the i-th read. Both arrays are written even if the call fails (the exceptions
/// are below). The call returns KVC_OK if all keys were read, else the most serious status, in the order of kvc_mput().
/// In that case, kvc_last_error() includes the number of failed reads. If an argument is invalid (KVC_INVALID) or the
/// handle is inherited (KVC_FORKED), neither array is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_mget(
    client: *mut kvc_client,
    keys: *const kvc_slice,
    n: usize,
    out: *mut kvc_buf,
    statuses: *mut c_int,
    options: *const kvc_op_options,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle, and arrays and structs as the header requires.
        let (handle, options, keys) = unsafe {
            let (handle, options) = (open_to_call(client)?, read_op_options(options)?);
            (handle, options, many(keys, n, "keys")?)
        };
        if out.is_null() && n > 0 {
            return Err(Failure::invalid("kvc_mget: out is NULL"));
        }
        // SAFETY: as above.
        let op = |at: usize| Ok(Op::Get { key: unsafe { key(keys, at) }? });
        (0..n).try_for_each(|at| op(at).map(|_| ()))?;
        for at in 0..n {
            // SAFETY: the caller passes room for `n` buffers.
            unsafe { out.add(at).write(kvc_buf::EMPTY) };
        }
        let out = Pointer::new(out);
        let take = move |at, responded: Reply<'_>| {
            let value = value_of(responded)?;
            // SAFETY: as above, and `at` is below `n`.
            unsafe { out.get().add(at).write(value) };
            Ok(())
        };
        // SAFETY: the caller passes NULL or room for `n` statuses.
        unsafe { execute(handle, &options, n, &op, statuses, take) }
    })
}

/// Removes `n` keys, on all servers in parallel. The statuses and the return value are as for kvc_mput(). The status of
/// a key that does not exist is KVC_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_mdelete(
    client: *mut kvc_client,
    keys: *const kvc_slice,
    n: usize,
    statuses: *mut c_int,
    options: *const kvc_op_options,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle, and arrays and structs as the header requires.
        let (handle, options, keys) = unsafe {
            let (handle, options) = (open_to_call(client)?, read_op_options(options)?);
            (handle, options, many(keys, n, "keys")?)
        };
        // SAFETY: as above.
        let op = |at: usize| Ok(Op::Delete { key: unsafe { key(keys, at) }? });
        // SAFETY: the caller passes NULL or room for `n` statuses.
        unsafe { execute(handle, &options, n, &op, statuses, |_, _| Ok(())) }
    })
}

/// Runs `n` operations of any kind, on all servers in parallel, under the deadline of `options`. Each element of `ops`
/// is an operation as for kvc_cq_submit(), with its own condition; a condition in `options` is ignored. Its timeout_ms
/// must be zero. Values of puts are not copied, with or without KVC_KEEP. An operation with several updates is executed
/// as a whole or not at all, unlike the batch. `out[i]` is set to the completion of the i-th operation, with tag `i`
/// and the fields that kvc_cq_poll() sets. Free its value with kvc_buf_free(). Its `words` is NULL. The return value
/// and kvc_last_error() are as for kvc_mput(). If an argument, such as an empty key, is invalid (KVC_INVALID) or the
/// handle is inherited (KVC_FORKED), nothing is executed and nothing is written. After any other status, all of `out`
/// is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_batch(
    client: *mut kvc_client,
    ops: *const kvc_op,
    n: usize,
    out: *mut kvc_completion,
    options: *const kvc_op_options,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle, and arrays and structs as the header requires.
        let (handle, options) = unsafe { (open_to_call(client)?, read_op_options(options)?) };
        if n > 0 && (ops.is_null() || out.is_null()) {
            return Err(Failure::invalid("kvc_batch: ops or out is NULL"));
        }
        // SAFETY: the caller passes `n` operations, each of the size that it states.
        let asked = unsafe { read_ops(ops, n) }?;
        let mut updates = Vec::new();
        for op in &asked {
            // SAFETY: the caller passes updates and slices that are readable during the call.
            unsafe { read_op_updates(op, &mut updates) }?;
        }
        let mut updates = &updates[..];
        let mut requests = Vec::with_capacity(n);
        let mut slots = Vec::with_capacity(n);
        for (at, op) in (0..).zip(asked) {
            let (own, others) = updates.split_at(op.n);
            updates = others;
            if op.timeout_ms != 0 {
                let words =
                    format!("kvc_batch: ops[{at}].timeout_ms is not 0; use options instead");
                return Err(Failure::invalid(words));
            }
            let kept = kvc_op { flags: op.flags | KVC_KEEP, ..op };
            // SAFETY: the values are not accessed after the call has returned.
            let asked = unsafe { request(&kept, own) }?;
            if op.key.len == 0 && op.kind != KVC_OP_SCAN {
                return Err(empty_key(at));
            }
            slots.push(Slot::of(&op, &asked, at));
            requests.push((asked, condition(op.if_version)));
        }
        for (at, tag) in (0..n).zip(0..) {
            // Every completion is overwritten later, unless a panic ends the call early.
            // SAFETY: the caller passes room for `n` completions.
            unsafe { out.add(at).write(unfinished(tag)) };
            let slot: &Slot = &slots[at];
            // SAFETY: the caller passes room for the results of each update.
            unsafe { slot.empty_results() };
        }
        let to = Pointer::new(out);
        let mut worst = Worst::default();
        let (noted, doubts) = (&mut worst, &handle.doubts);
        let mut each = move |at: usize, result: Result<Reply<'_>, kv_client::Error>| {
            // SAFETY: the caller's dst has room for `cap` bytes, and its results for those of each update.
            let (completion, failure) = unsafe { end(&mut slots[at], result).tell(doubts) };
            // SAFETY: the caller passes room for `n` completions.
            unsafe { to.get().add(at).write(completion) };
            if let Some(failure) = failure {
                noted.note(at, failure);
            }
        };
        handle.shared.batch(requests.into_iter(), &options, &mut each)?;
        worst.tell(n)
    })
}

/// Returns the completion of an operation that a panic has ended.
fn unfinished(tag: u64) -> kvc_completion {
    let (value, words, doubt) = (kvc_buf::EMPTY, ptr::null(), kvc_doubt::default());
    kvc_completion { tag, status: KVC_PANIC, copies: 0, value, words, doubt }
}

/// A function that returns the operation at an index of the batch.
type OpAt<'a, 'b> = dyn Fn(usize) -> Result<Op<'a>, Failure> + 'b;

/// Checks all operations of a batch, then runs it.
///
/// # Safety
/// `statuses` is NULL or has room for `n`.
unsafe fn execute(
    handle: &kvc_client,
    options: &OpOptions,
    n: usize,
    op: &OpAt<'_, '_>,
    statuses: *mut c_int,
    mut take: impl FnMut(usize, Reply<'_>) -> Result<(), Failure> + Send,
) -> Result<c_int, Failure> {
    let condition = options.condition;
    let ops: Vec<_> = (0..n).map(|at| Ok((op(at)?, condition))).collect::<Result<_, Failure>>()?;
    // SAFETY: passed on.
    let mut ends = unsafe { Ends::new(statuses, n) };
    let mut each = |at: usize, result: Result<Reply<'_>, kv_client::Error>| {
        let result = result.map_err(Failure::from).and_then(|responded| take(at, responded));
        ends.note(at, result);
    };
    handle.shared.batch(ops.into_iter(), options, &mut each)?;
    ends.worst.tell(n)
}

/// The statuses of a batch, and its most serious failure.
struct Ends {
    /// The array of the program, with room for `n`, or NULL.
    statuses: Pointer<c_int>,
    n: usize,
    worst: Worst,
}

impl Ends {
    /// # Safety
    /// `statuses` is NULL, or has room for `n` while the result lives.
    unsafe fn new(statuses: *mut c_int, n: usize) -> Ends {
        let mut ends = Ends { statuses: Pointer::new(statuses), n, worst: Worst::default() };
        // Every status is overwritten later, unless a panic ends the call early.
        ends.write(0..n, KVC_PANIC);
        ends
    }

    fn write(&mut self, places: std::ops::Range<usize>, status: c_int) {
        assert!(places.end <= self.n, "a place in the batch");
        for at in places.filter(|_| !self.statuses.get().is_null()) {
            // SAFETY: not NULL, and there is room for `n`.
            unsafe { self.statuses.get().add(at).write(status) };
        }
    }

    fn note(&mut self, at: usize, result: Result<(), Failure>) {
        let Err(failure) = result else { return self.write(at..at + 1, KVC_OK) };
        self.write(at..at + 1, failure.status);
        self.worst.note(at, failure);
    }
}

/// The most serious failure of a batch, and the number of failures.
#[derive(Default)]
pub(crate) struct Worst {
    failed: usize,
    /// The failure and its index; the lowest index among equally serious ones.
    found: Option<(usize, Failure)>,
}

impl Worst {
    pub(crate) fn note(&mut self, at: usize, failure: Failure) {
        self.failed += 1;
        let rank = |at: usize, failure: &Failure| (severity(failure.status), Reverse(at));
        if self.found.as_ref().is_none_or(|(known, worst)| rank(at, &failure) > rank(*known, worst))
        {
            self.found = Some((at, failure));
        }
    }

    pub(crate) fn tell(&mut self, n: usize) -> Result<c_int, Failure> {
        let Some((at, worst)) = self.found.take() else { return Ok(KVC_OK) };
        let words = format!(
            "{} of {n} failed; the most serious is number {at}: {}",
            self.failed, worst.words
        );
        Err(Failure::new(worst.status, words))
    }
}

/// Copies the operations of a batch, each of the size that it states itself.
///
/// # Safety
/// `n` operations are readable at `from`, which is NULL only if `n` is 0.
unsafe fn read_ops(from: *const kvc_op, n: usize) -> Result<Vec<kvc_op>, Failure> {
    let mut ops = Vec::new();
    let mut at = from.cast::<u8>();
    for _ in 0..n {
        // SAFETY: passed on.
        let op = unsafe { sized(at.cast::<kvc_op>(), "kvc_op") }?;
        // SAFETY: the next operation, if there is one, follows directly.
        at = unsafe { at.add(op.size as usize) };
        ops.push(op);
    }
    Ok(ops)
}

/// Returns the key at an index of the batch. Fails if the key is empty.
///
/// # Safety
/// The requirements of [`kvc_slice::bytes`].
unsafe fn key<'a>(keys: &[kvc_slice], at: usize) -> Result<&'a [u8], Failure> {
    // SAFETY: passed on.
    match unsafe { keys[at].bytes("key") }? {
        [] => Err(empty_key(at)),
        key => Ok(key),
    }
}

fn empty_key(at: impl Display) -> Failure {
    Failure::invalid(format!("key number {at} is empty; it needs 1 to 65,535 bytes"))
}

/// Borrows the `n` slices at `from`.
///
/// # Safety
/// While the result lives, `n` slices are readable at `from` and do not change.
unsafe fn many<'a>(
    from: *const kvc_slice,
    n: usize,
    what: &str,
) -> Result<&'a [kvc_slice], Failure> {
    if n == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(Failure::invalid(format!("{what} is NULL, but n is {n}")));
    }
    let bytes = n.checked_mul(size_of::<kvc_slice>());
    if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(Failure::invalid(format!("n is {n}; no array is that long")));
    }
    // SAFETY: not NULL, and within the size limit of an object; the caller guarantees the rest.
    Ok(unsafe { slice::from_raw_parts(from, n) })
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::ptr::null_mut;

    use super::*;
    use crate::error::{KVC_INVALID, KVC_UNAVAILABLE};
    use crate::handle::{kvc_close, kvc_open};
    use crate::operation::KVC_OP_DELETE;

    /// Opens a handle for an unreachable cluster.
    fn handle() -> *mut kvc_client {
        let mut client = null_mut();
        // SAFETY: all arguments are valid.
        let opened = unsafe { kvc_open(c"127.0.0.1:1".as_ptr(), ptr::null(), &raw mut client) };
        assert_eq!(opened, KVC_OK);
        client
    }

    fn delete(key: &'static [u8]) -> kvc_op {
        // SAFETY: a struct of integers and pointers may be zero.
        let mut op: kvc_op = unsafe { MaybeUninit::zeroed().assume_init() };
        op.size = u32::try_from(size_of::<kvc_op>()).unwrap();
        op.kind = KVC_OP_DELETE;
        op.key = kvc_slice { data: key.as_ptr().cast(), len: key.len() };
        op
    }

    /// Runs a batch of two deletes for at most 10 ms. Returns its status, and the tags and statuses in `out`.
    fn run(client: *mut kvc_client, keys: [&'static [u8]; 2]) -> (c_int, [(u64, c_int); 2]) {
        let (ops, mut out) = (keys.map(delete), [unfinished(7), unfinished(7)]);
        out.iter_mut().for_each(|completion| completion.status = 7);
        let size = u32::try_from(size_of::<kvc_op_options>()).unwrap();
        let options = kvc_op_options { size, timeout_ms: 10, if_version: 0 };
        // SAFETY: the handle is open, and the arrays have two elements.
        let status =
            unsafe { kvc_batch(client, ops.as_ptr(), 2, out.as_mut_ptr(), &raw const options) };
        (status, out.map(|completion| (completion.tag, completion.status)))
    }

    #[test]
    fn an_empty_key_rejects_the_whole_batch_and_writes_nothing() {
        let client = handle();
        assert_eq!(run(client, [b"a", b""]), (KVC_INVALID, [(7, 7), (7, 7)]));
        let statuses = [(0, KVC_UNAVAILABLE), (1, KVC_UNAVAILABLE)];
        assert_eq!(run(client, [b"a", b"b"]), (KVC_UNAVAILABLE, statuses));
        // SAFETY: the handle is open.
        assert_eq!(unsafe { kvc_close(client) }, KVC_OK);
    }

    #[test]
    fn every_completion_is_written_after_a_panic() {
        let client = handle();
        // SAFETY: the handle is open.
        let shared = unsafe { &(*client).shared };
        let panicking = AssertUnwindSafe(|| {
            let op = [(Op::Get { key: b"a" }, kv_client::Condition::Always)].into_iter();
            let options = OpOptions {
                deadline: Some(std::time::Duration::from_millis(1)),
                ..OpOptions::default()
            };
            let mut each = |_: usize, _: Result<Reply<'_>, kv_client::Error>| panic!("on purpose");
            shared.batch(op, &options, &mut each)
        });
        catch_unwind(panicking).unwrap_err();
        let statuses = [(0, KVC_PANIC), (1, KVC_PANIC)];
        assert_eq!(run(client, [b"a", b"b"]), (KVC_PANIC, statuses));
        // SAFETY: the handle is open.
        assert_eq!(unsafe { kvc_close(client) }, KVC_OK);
    }
}
