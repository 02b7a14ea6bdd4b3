//! A function for each common update, and reads of deadlines. Every change is a request with one update.

use std::ffi::c_int;
use std::mem;
use std::ptr;
use std::slice;
use std::str::FromStr;

use kv_client::update::Action;
use kv_client::{Condition, Expiry, Landing, Op, Part, Precondition, Reply, Update, Written};

use crate::buffer::{kvc_buf, kvc_slice, value_of};
use crate::error::{Failure, KVC_NOT_FOUND, KVC_OK, KVC_PROTOCOL};
use crate::handle::{Owned, call, kvc_client, kvc_result, open_here, tell, written};
use crate::options::{kvc_op_options, read_op_options, sized};
use crate::panic::guard;
use crate::results::executed;
use crate::update::{self, bad_offset, read_condition, read_expiry};

/// The condition of a write; NULL means none. First set size to sizeof(kvc_condition) and all other fields to zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_condition {
    /// sizeof(kvc_condition)
    pub size: u32,
    /// KVC_IF_..., or zero for no condition.
    pub kind: u32,
    /// The version of KVC_IF_VERSION.
    pub version: u64,
    /// The value of KVC_IF_VALUE.
    pub value: kvc_slice,
}

impl Default for kvc_condition {
    fn default() -> kvc_condition {
        let value = kvc_slice { data: ptr::null(), len: 0 };
        kvc_condition { size: 0, kind: 0, version: 0, value }
    }
}

/// Sets a key to a value if a condition holds. Else the status is KVC_CONFLICT. The entry has no deadline afterwards.
/// `condition`, `options` and `result` may be NULL. *result is written as by kvc_put(). For a deadline, or to get the
/// old value, use kvc_update_one().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put_if(
    client: *mut kvc_client,
    key: kvc_slice,
    value: kvc_slice,
    condition: *const kvc_condition,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: the caller guarantees the requirements of `write`; the slices are readable during the call.
        unsafe {
            let update = Update::new(Action::Put(value.bytes("value")?));
            let update = Update { condition: read(condition)?, ..update };
            write(client, key, update, options, result)
        }
    })
}

/// Removes a key if a condition holds. Else the status is KVC_CONFLICT. `condition`, `options` and `result` may be
/// NULL. *result is written as by kvc_delete().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_delete_if(
    client: *mut kvc_client,
    key: kvc_slice,
    condition: *const kvc_condition,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: as in kvc_put_if.
        unsafe {
            let update = Update { condition: read(condition)?, ..Update::new(Action::Delete) };
            write(client, key, update, options, result)
        }
    })
}

/// Adds `amount` to the decimal text of a 64-bit integer, and sets *sum to the sum. A key that does not exist counts as
/// 0. The deadline of the entry stays. KVC_NOT_A_NUMBER and KVC_OVERFLOW: nothing was changed. `options`, `sum` and
/// `result` may be NULL. *result is written as by kvc_put(). This applies to all functions of changes below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_add(
    client: *mut kvc_client,
    key: kvc_slice,
    amount: i64,
    options: *const kvc_op_options,
    sum: *mut i64,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        let update = Update::new(Action::Add(amount));
        // SAFETY: the caller guarantees the requirements of `change_number`.
        unsafe { change_number(client, key, update, options, sum, result) }
    })
}

/// Adds a decimal text to that of a floating-point number. A key that does not exist counts as 0. On success, *sum owns
/// the decimal text of the sum; free it with kvc_buf_free(). `sum` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_add_float(
    client: *mut kvc_client,
    key: kvc_slice,
    amount: kvc_slice,
    options: *const kvc_op_options,
    sum: *mut kvc_buf,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: the caller guarantees the requirements of `change`; the slices are readable during the call.
        unsafe {
            let update = Update::new(Action::AddFloat(amount.bytes("amount")?));
            let wants = !sum.is_null();
            let changed = change(client, key, update, options, |reply| returned(reply, wants));
            finish(client, result, changed, |text: Owned| write_unless_null(sum, text.0))
        }
    })
}

/// Appends bytes to a value, and sets *len to the new length. A key that does not exist counts as empty. `len` may be
/// NULL. KVC_TOO_BIG: the value would be longer than 16 MiB, and nothing was changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_append(
    client: *mut kvc_client,
    key: kvc_slice,
    bytes: kvc_slice,
    options: *const kvc_op_options,
    len: *mut usize,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: as in kvc_add_float.
        unsafe {
            let update = Update::new(Action::Append(bytes.bytes("bytes")?));
            change_number(client, key, update, options, len, result)
        }
    })
}

/// Overwrites a part of a value, from byte `offset` on, and sets *len to the length of the value. A gap before the part
/// is filled with zero bytes. Without bytes, nothing is changed. `len` may be NULL. KVC_TOO_BIG: the value would be
/// longer than 16 MiB, and nothing was changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_set_range(
    client: *mut kvc_client,
    key: kvc_slice,
    offset: usize,
    bytes: kvc_slice,
    options: *const kvc_op_options,
    len: *mut usize,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        let offset = u32::try_from(offset).map_err(|_| bad_offset(offset))?;
        // SAFETY: as in kvc_add_float.
        unsafe {
            let bytes = bytes.bytes("bytes")?;
            let update = Update::new(Action::SetRange { offset, bytes });
            change_number(client, key, update, options, len, result)
        }
    })
}

/// Sets or removes the deadline of an entry: `expiry` is KVC_EXPIRY_..., and `time_ms` its time. `condition` may be
/// NULL; KVC_CONFLICT: it does not hold. KVC_NOT_FOUND: the key does not exist. A deadline in the past removes the
/// entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_expire(
    client: *mut kvc_client,
    key: kvc_slice,
    expiry: u32,
    time_ms: u64,
    condition: *const kvc_condition,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: as in kvc_put_if.
        unsafe {
            let (expiry, condition) = (read_expiry(expiry, time_ms, "time_ms")?, read(condition)?);
            let update = Update { expiry, condition, ..Update::new(Action::SetExpiry) };
            write(client, key, update, options, result)
        }
    })
}

/// Removes the deadline of an entry. KVC_CONFLICT: the entry has none. KVC_NOT_FOUND: the key does not exist. A
/// condition in `options` is rejected (KVC_INVALID).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_persist(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        let (expiry, condition) = (Expiry::Never, Precondition::HasDeadline);
        let update = Update { expiry, condition, ..Update::new(Action::SetExpiry) };
        // SAFETY: the caller guarantees the requirements of `write`.
        unsafe { write(client, key, update, options, result) }
    })
}

/// Moves an entry with its deadline to the key `to`, whose entry it replaces. KVC_CROSS_SHARD: the keys are not of one
/// group and shard; in a cluster with hash tags, keys with the same tag are. KVC_NOT_FOUND: the key does not exist.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_rename(
    client: *mut kvc_client,
    key: kvc_slice,
    to: kvc_slice,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: as in kvc_add_float.
        unsafe {
            let update = Update::new(Action::Rename(to.bytes("to")?));
            write(client, key, update, options, result)
        }
    })
}

/// Copies an entry with its deadline to the key `to`, whose entry it replaces. The statuses are those of kvc_rename().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_copy(
    client: *mut kvc_client,
    key: kvc_slice,
    to: kvc_slice,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: as in kvc_add_float.
        unsafe {
            let update = Update::new(Action::Copy(to.bytes("to")?));
            write(client, key, update, options, result)
        }
    })
}

/// Removes a key and returns its value. On success, *out owns the value; free it with kvc_buf_free(). KVC_NOT_FOUND:
/// the key does not exist. After KVC_IN_DOUBT, kvc_resolve_update() returns the value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_take(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    out: *mut kvc_buf,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        if out.is_null() {
            return Err(Failure::invalid("kvc_take: out is NULL"));
        }
        let update = Update { returns_value: true, ..Update::new(Action::Delete) };
        // SAFETY: the caller guarantees the requirements of `change` and `finish`.
        unsafe {
            let changed = change(client, key, update, options, |reply| returned(reply, true));
            finish(client, result, changed, |value: Owned| write_unless_null(out, value.0))
        }
    })
}

/// Sets or removes the deadline of an entry, and returns its value. `expiry` and `time_ms` are as for kvc_expire(). On
/// success, *out owns the value; free it with kvc_buf_free(). *deadline_ms is set to the deadline in milliseconds since
/// 1970, or to zero if there is none; `deadline_ms` may be NULL. KVC_NOT_FOUND: the key does not exist.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // The C interface needs all of them.
pub unsafe extern "C" fn kvc_get_and_expire(
    client: *mut kvc_client,
    key: kvc_slice,
    expiry: u32,
    time_ms: u64,
    options: *const kvc_op_options,
    out: *mut kvc_buf,
    deadline_ms: *mut u64,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        if out.is_null() {
            return Err(Failure::invalid("kvc_get_and_expire: out is NULL"));
        }
        let expiry = read_expiry(expiry, time_ms, "time_ms")?;
        let update = Update { expiry, returns_value: true, ..Update::new(Action::SetExpiry) };
        let take = |reply: Reply<'_>| {
            let deadline = update::deadline_ms(reply.deadline);
            returned(reply, true).map(|value| (value, deadline))
        };
        // SAFETY: the caller guarantees the requirements of `change` and `finish`.
        unsafe {
            let changed = change(client, key, update, options, take);
            finish(client, result, changed, |(value, deadline): (Owned, u64)| {
                write_unless_null(out, value.0);
                write_unless_null(deadline_ms, deadline);
            })
        }
    })
}

/// Reads a key with the deadline of its entry. On success, *out owns the value; free it with kvc_buf_free().
/// *deadline_ms is set to the deadline in milliseconds since 1970, or to zero if the entry does not expire.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_with_deadline(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    out: *mut kvc_buf,
    deadline_ms: *mut u64,
) -> c_int {
    guard(|| {
        if out.is_null() || deadline_ms.is_null() {
            return Err(Failure::invalid("kvc_get_with_deadline: out or deadline_ms is NULL"));
        }
        let take = |reply: Reply<'_>| {
            let deadline = update::deadline_ms(reply.deadline);
            value_of(reply).map(|value| (Owned(value), deadline))
        };
        // SAFETY: the caller guarantees the requirements of `call`, and passes room for both results.
        unsafe {
            let (value, deadline) = call(client, key, options, get_with_deadline, take)??;
            out.write(value.0);
            deadline_ms.write(deadline);
        }
        Ok(KVC_OK)
    })
}

/// Sets *deadline_ms to the deadline of an entry in milliseconds since 1970, or to zero if the entry does not expire.
/// The value is not fetched. `options` and `result` may be NULL. On success, result->version is the version of the
/// entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_deadline(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    deadline_ms: *mut u64,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        if deadline_ms.is_null() {
            return Err(Failure::invalid("kvc_get_deadline: deadline_ms is NULL"));
        }
        let take = |reply: Reply<'_>| (update::deadline_ms(reply.deadline), written(reply));
        // SAFETY: the caller guarantees the requirements of `call` and `finish`.
        unsafe {
            let read = call(client, key, options, |key| inspect(key, Part::ONLY_DEADLINE), take);
            finish(client, result, read, |deadline| write_unless_null(deadline_ms, deadline))
        }
    })
}

/// Sets *exists to 1 if a key exists, else to 0. The status is KVC_OK in both cases. The value is not fetched.
/// `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_exists(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    exists: *mut c_int,
) -> c_int {
    guard(|| {
        if exists.is_null() {
            return Err(Failure::invalid("kvc_exists: exists is NULL"));
        }
        // SAFETY: the caller guarantees the requirements of `call`.
        let read =
            unsafe { call(client, key, options, |key| inspect(key, Part::new(0, 0)), |_| ()) };
        let found = match read {
            Ok(()) => 1,
            Err(failure) if failure.status == KVC_NOT_FOUND => 0,
            Err(failure) => return Err(failure),
        };
        // SAFETY: not NULL; the caller passes a pointer that is valid for writing a number.
        unsafe { exists.write(found) };
        Ok(KVC_OK)
    })
}

/// Returns the read of a value with the deadline of its entry.
pub(crate) fn get_with_deadline(key: &[u8]) -> Op<'_> {
    Op::Read { key, part: Some(Part::WITH_DEADLINE), landing: Landing::Memory }
}

/// Returns a read that fetches no value.
fn inspect(key: &[u8], part: Part) -> Op<'_> {
    Op::Read { key, part: Some(part), landing: Landing::Buffer }
}

/// Reads the condition of a call; NULL gives none.
///
/// # Safety
/// `from` is NULL or a struct of the size that it states. Its value is readable while the result lives.
unsafe fn read<'a>(from: *const kvc_condition) -> Result<Precondition<'a>, Failure> {
    // SAFETY: passed on.
    let given = unsafe { sized(from, "kvc_condition") }?;
    // SAFETY: passed on.
    let value = unsafe { given.value.bytes("kvc_condition.value") }?;
    let names = ["kvc_condition.version", "kvc_condition.value"];
    read_condition(given.kind, given.version, value, names)
}

/// Runs a request with one update. A condition in `options` becomes the condition of the update.
///
/// # Safety
/// `client` is NULL or an open handle; `key` is readable; `options` is NULL or a struct of the size that it states.
unsafe fn change<T: Send>(
    client: *mut kvc_client,
    key: kvc_slice,
    mut update: Update<'_>,
    options: *const kvc_op_options,
    take: impl FnOnce(Reply<'_>) -> Result<T, Failure> + Send,
) -> Result<(T, Written), Failure> {
    // SAFETY: passed on.
    let (handle, key, mut options) =
        unsafe { (open_here(client)?, key.bytes("key")?, read_op_options(options)?) };
    let condition = match mem::replace(&mut options.condition, Condition::Always) {
        Condition::Always => Precondition::None,
        Condition::IfAbsent => Precondition::Absent,
        Condition::IfVersion(version) => Precondition::Version(version),
    };
    match (condition, update.condition) {
        (Precondition::None, _) => {}
        (condition, Precondition::None) => update.condition = condition,
        _ => {
            let words = "kvc_op_options.if_version is set, but the call has another condition";
            return Err(Failure::invalid(words));
        }
    }
    let op = Op::Update { key, updates: slice::from_ref(&update) };
    let take = |reply: Reply<'_>| {
        let written = written(reply);
        take(reply).map(|value| (value, written))
    };
    handle.shared.call(op, &options, take)?
}

/// Runs a request with one update whose result the program does not need.
///
/// # Safety
/// The requirements of [`change`] and [`tell`].
unsafe fn write(
    client: *mut kvc_client,
    key: kvc_slice,
    update: Update<'_>,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> Result<c_int, Failure> {
    // SAFETY: passed on.
    unsafe { finish(client, result, change(client, key, update, options, |_| Ok(())), |()| ()) }
}

/// Runs a request with one update that returns a decimal number.
///
/// # Safety
/// The requirements of [`change`] and [`tell`]; `out` is NULL or may be written to.
unsafe fn change_number<T: FromStr + Send>(
    client: *mut kvc_client,
    key: kvc_slice,
    update: Update<'_>,
    options: *const kvc_op_options,
    out: *mut T,
    result: *mut kvc_result,
) -> Result<c_int, Failure> {
    let number = |reply: Reply<'_>| {
        let text = std::str::from_utf8(reply.value).ok();
        text.and_then(|text| text.parse::<T>().ok()).ok_or_else(|| {
            let words = "the update was executed, but the response has no number as its result";
            Failure::new(KVC_PROTOCOL, words)
        })
    };
    // SAFETY: passed on.
    unsafe {
        let changed = change(client, key, update, options, number);
        finish(client, result, changed, |number| write_unless_null(out, number))
    }
}

/// Passes the value of a call to `give` and writes its result.
///
/// # Safety
/// The requirements of [`tell`]; `client` is NULL or an open handle.
unsafe fn finish<T>(
    client: *mut kvc_client,
    result: *mut kvc_result,
    changed: Result<(T, Written), Failure>,
    give: impl FnOnce(T),
) -> Result<c_int, Failure> {
    let written = changed.map(|(value, written)| {
        give(value);
        written
    });
    // SAFETY: passed on.
    unsafe { tell(open_here(client)?, result, written) }
}

/// Returns the value that an update returns; empty if it is not wanted.
fn returned(reply: Reply<'_>, is_wanted: bool) -> Result<Owned, Failure> {
    match is_wanted {
        true => value_of(reply).map(Owned).map_err(executed),
        false => Ok(Owned(kvc_buf::EMPTY)),
    }
}

/// # Safety
/// `to` is NULL or may be written to.
unsafe fn write_unless_null<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: not NULL, and the caller guarantees the rest.
        unsafe { to.write(value) };
    }
}
