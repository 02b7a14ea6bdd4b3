//! Many keys in one call: everything is under way at once, every server's part together.

use std::ffi::c_int;
use std::slice;
use std::time::{Duration, Instant};

use kv_client::{Client, Op, OpOptions, SubmitError};

use crate::buffer::{kvc_buf, kvc_slice, own};
use crate::error::{Failure, KVC_OK, KVC_UNAVAILABLE};
use crate::handle::{kvc_client, open_here};
use crate::options::{kvc_op_options, read_op_options};
use crate::panic::guard;

/// Sets `n` keys to `n` values, those of all servers at once. Each is a write of its own: some may be
/// done and others not. `statuses[i]`, unless `statuses` is NULL, says how the i-th ended. Returns
/// KVC_OK if all were done, else the first status that is not; kvc_last_error() tells how many there
/// are. A condition of `options` holds for every key; a key that is named twice gets either value.
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
        let mut ops = Vec::with_capacity(n);
        for (&key, &value) in keys.iter().zip(values) {
            // SAFETY: as above; nothing of the values is looked at once the call has returned.
            ops.push(unsafe {
                Op::PutKept { key: key.bytes("key")?, value: value.bytes("value")? }
            });
        }
        let mut ends = Ends::new(n);
        handle.pool.with(&options, |client, options| {
            run(client, &ops, options, &mut |at, result| ends.note(at, result.map(|_| ())))
        })?;
        // SAFETY: the caller passes NULL or room for `n` statuses.
        unsafe { ends.tell(statuses) }
    })
}

/// Reads `n` keys, those of all servers at once. `out[i]` gets the value of the i-th, to be freed with
/// kvc_buf_free(), or is empty (data NULL) if it cannot be read, so that all may be freed.
/// `statuses[i]`, unless `statuses` is NULL, says how the i-th ended. Returns KVC_OK if all were read, else the
/// first status that is not; kvc_last_error() tells how many there are. After KVC_INVALID nothing was
/// written.
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
        let mut ops = Vec::with_capacity(n);
        for &key in keys {
            // SAFETY: as above.
            ops.push(Op::Get { key: unsafe { key.bytes("key")? } });
        }
        for at in 0..n {
            // SAFETY: the caller passes room for `n` buffers.
            unsafe { out.add(at).write(kvc_buf::EMPTY) };
        }
        let mut ends = Ends::new(n);
        handle.pool.with(&options, |client, options| {
            run(client, &ops, options, &mut |at, result| {
                let owned = result.and_then(|answered| {
                    let value = own(answered.value, answered.version.0)?;
                    // SAFETY: as above, and `at` is below `n`.
                    unsafe { out.add(at).write(value) };
                    Ok(())
                });
                ends.note(at, owned);
            })
        })?;
        // SAFETY: the caller passes NULL or room for `n` statuses.
        unsafe { ends.tell(statuses) }
    })
}

/// Runs all operations, as many at once as the client takes, and tells the end of each. However it ends,
/// nothing is left in flight.
fn run(
    client: &mut Client,
    ops: &[Op<'_>],
    options: &OpOptions,
    each: &mut dyn FnMut(usize, Result<kv_client::Answered<'_>, Failure>),
) -> Result<(), Failure> {
    let deadline = options.deadline.map(|left| Instant::now() + left);
    let mut next = 0;
    while next < ops.len() || client.in_flight() > 0 {
        while next < ops.len() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left < Duration::from_millis(1)) {
                let words = "the deadline passed before it was sent; use smaller batches";
                each(next, Err(Failure::new(KVC_UNAVAILABLE, words)));
                next += 1;
                continue;
            }
            let options = OpOptions { deadline: left, ..*options };
            match client.submit(ops[next], &options, next as u64) {
                Ok(()) => next += 1,
                Err(SubmitError::Full { .. }) => break,
                Err(SubmitError::Refused(error)) => {
                    each(next, Err(error.into()));
                    next += 1;
                }
            }
        }
        let polled = client.poll_each(Duration::from_secs(1), &mut |tag, result| {
            let at = usize::try_from(tag).expect("it was a place in the batch");
            each(at, result.map_err(Into::into));
        });
        // Cannot be caused from outside; the client's state is not known, so it is not used again.
        polled.unwrap_or_else(|error| panic!("waiting on epoll: {error}"));
    }
    Ok(())
}

/// How the operations of a batch have ended.
struct Ends {
    statuses: Vec<c_int>,
    failed: usize,
    /// The failure of the lowest place.
    first: Option<(usize, Failure)>,
}

impl Ends {
    fn new(n: usize) -> Ends {
        Ends { statuses: vec![KVC_OK; n], failed: 0, first: None }
    }

    fn note(&mut self, at: usize, result: Result<(), Failure>) {
        let Err(failure) = result else { return };
        self.statuses[at] = failure.status;
        self.failed += 1;
        if self.first.as_ref().is_none_or(|(first, _)| at < *first) {
            self.first = Some((at, failure));
        }
    }

    /// # Safety
    /// `statuses` is NULL or has room for all.
    unsafe fn tell(self, statuses: *mut c_int) -> Result<c_int, Failure> {
        let n = self.statuses.len();
        if !statuses.is_null() {
            // SAFETY: not NULL, and the caller's promise.
            unsafe { statuses.copy_from_nonoverlapping(self.statuses.as_ptr(), n) };
        }
        let Some((at, first)) = self.first else { return Ok(KVC_OK) };
        let words = format!("{} of {n} failed, first number {at}: {}", self.failed, first.words);
        Err(Failure::new(first.status, words))
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
