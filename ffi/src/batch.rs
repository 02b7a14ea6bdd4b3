//! Many keys in one call: everything is under way at once, every server's part together.
//!
//! ```text
//!   check all keys -> start as many as may be under way <-> their ends -> statuses[i], out[i]
//! ```

use std::ffi::c_int;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use kv_client::{Answered, Op, OpOptions};

use crate::buffer::{kvc_buf, kvc_slice, own};
use crate::error::{Failure, KVC_OK, KVC_PANIC};
use crate::handle::{Pointer, kvc_client, open_here};
use crate::options::{kvc_op_options, read_op_options};
use crate::panic::guard;

/// Sets `n` keys to `n` values, those of all servers at once. Each is a write of its own: some may be
/// done and others not. `statuses[i]`, unless `statuses` is NULL, says how the i-th ended, whatever the
/// call returns: KVC_OK if all were done, else the status of the lowest i that was not; kvc_last_error()
/// tells how many there are. A condition of `options` holds for every key; a key that is named twice gets
/// either value. Where an argument is wrong (KVC_INVALID) or the handle inherited (KVC_FORKED), nothing was
/// done, and no status written.
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
        // SAFETY: the caller's promises are those that are asked for.
        let (handle, options, keys, values) = unsafe {
            let (handle, options) = (open_here(client)?, read_op_options(options)?);
            (handle, options, many(keys, n, "keys")?, many(values, n, "values")?)
        };
        let op = |at: usize| {
            // SAFETY: as above; nothing of the values is looked at once the call has returned.
            let (key, value) = unsafe { (key(keys, at)?, values[at].bytes("value")?) };
            Ok(Op::PutKept { key, value })
        };
        // SAFETY: the caller passes NULL or room for `n` statuses.
        unsafe { execute(handle, &options, n, &op, statuses, |_, _| Ok(())) }
    })
}

/// Reads `n` keys, those of all servers at once. `out[i]` gets the value of the i-th, to be freed with
/// kvc_buf_free(), or is empty (data NULL) if it cannot be read, so that all may be freed. `statuses[i]`,
/// unless `statuses` is NULL, says how the i-th ended. Both are written whatever the call returns: KVC_OK
/// if all were read, else the status of the lowest i that was not; kvc_last_error() tells how many there
/// are. Where an argument is wrong (KVC_INVALID) or the handle inherited (KVC_FORKED), neither is written.
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
        // SAFETY: the caller's promises are those that are asked for.
        let (handle, options, keys) = unsafe {
            let (handle, options) = (open_here(client)?, read_op_options(options)?);
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
        let take = move |at, answered: Answered<'_>| {
            let value = own(answered.value, answered.version.0)?;
            // SAFETY: as above, and `at` is below `n`.
            unsafe { out.get().add(at).write(value) };
            Ok(())
        };
        // SAFETY: the caller passes NULL or room for `n` statuses.
        unsafe { execute(handle, &options, n, &op, statuses, take) }
    })
}

/// The operation at a place of the batch.
type OpAt<'a, 'b> = dyn Fn(usize) -> Result<Op<'a>, Failure> + 'b;

/// Runs a batch, after a look whether all of its arguments are good.
///
/// # Safety
/// `statuses` is NULL or has room for `n`.
unsafe fn execute(
    handle: &kvc_client,
    options: &OpOptions,
    n: usize,
    op: &OpAt<'_, '_>,
    statuses: *mut c_int,
    mut take: impl FnMut(usize, Answered<'_>) -> Result<(), Failure> + Send + 'static,
) -> Result<c_int, Failure> {
    let ops: Vec<Op<'_>> = (0..n).map(op).collect::<Result<_, _>>()?;
    // SAFETY: passed on.
    let ends = Arc::new(Mutex::new(unsafe { Ends::new(statuses, n) }));
    let noted = Arc::clone(&ends);
    let each = move |at, result: Result<Answered<'_>, kv_client::Error>| {
        let result = result.map_err(Failure::from).and_then(|answered| take(at, answered));
        noted.lock().unwrap_or_else(PoisonError::into_inner).note(at, result);
    };
    handle.shared.batch(ops.into_iter(), options, Box::new(each))?;
    ends.lock().unwrap_or_else(PoisonError::into_inner).tell()
}

/// How the operations of a batch have ended.
struct Ends {
    /// NULL or room for `n`.
    statuses: Pointer<c_int>,
    n: usize,
    failed: usize,
    /// The failure of the lowest place.
    first: Option<(usize, Failure)>,
}

impl Ends {
    /// # Safety
    /// `statuses` is NULL or has room for `n`, as long as this lives.
    unsafe fn new(statuses: *mut c_int, n: usize) -> Ends {
        let mut ends = Ends { statuses: Pointer::new(statuses), n, failed: 0, first: None };
        // What only a defect leaves as it is.
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
        self.failed += 1;
        if self.first.as_ref().is_none_or(|(first, _)| at < *first) {
            self.first = Some((at, failure));
        }
    }

    fn tell(&mut self) -> Result<c_int, Failure> {
        let Some((at, first)) = self.first.take() else { return Ok(KVC_OK) };
        let words =
            format!("{} of {} failed, first number {at}: {}", self.failed, self.n, first.words);
        Err(Failure::new(first.status, words))
    }
}

/// The key at a place of the batch.
///
/// # Safety
/// As [`kvc_slice::bytes`].
unsafe fn key<'a>(keys: &[kvc_slice], at: usize) -> Result<&'a [u8], Failure> {
    // SAFETY: passed on.
    match unsafe { keys[at].bytes("key") }? {
        [] => {
            Err(Failure::invalid(format!("key number {at} is empty; it needs 1 to 65,535 bytes")))
        }
        key => Ok(key),
    }
}

/// The `n` slices at `from`.
///
/// # Safety
/// `n` slices are readable there, and do not change, while the result lives.
unsafe fn many<'a>(
    from: *const kvc_slice,
    n: usize,
    what: &str,
) -> Result<&'a [kvc_slice], Failure> {
    if n == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(Failure::invalid(format!("{what} is NULL and n {n}")));
    }
    let bytes = n.checked_mul(size_of::<kvc_slice>());
    if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(Failure::invalid(format!("n is {n}")));
    }
    // SAFETY: not NULL, not longer than an object can be; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(from, n) })
}
