//! Updates: changes that a server evaluates, such as an addition, and requests with several of them.
//!
//! ```text
//!   kvc_update[n] -> checked, as kv_client::Update[n] -> one request -> kvc_updated[n]
//! ```

use std::ffi::c_int;
use std::mem::size_of;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{ptr, slice};

use kv_client::update::Action;
use kv_client::{Expiry, Op, OpOptions, Precondition, Reply, SequenceNumber, Update, WallTime};

use crate::buffer::{kvc_buf, kvc_slice};
use crate::doubt::kvc_doubt;
use crate::error::{Failure, KVC_OK, KVC_PANIC, KVC_TOO_BIG};
use crate::handle::{kvc_client, open_here};
use crate::options::{MAX_STRUCT_BYTES, kvc_op_options, millis, read_op_options, sized};
use crate::panic::guard;
use crate::results::Results;

/// kvc_update.action: changes nothing. With a condition, it guards the other updates of its request; with
/// KVC_RETURN_VALUE, it reads the value.
pub const KVC_ACTION_CHECK: u32 = 1;
/// kvc_update.action: sets the key to `value`, up to 16 MiB.
pub const KVC_ACTION_PUT: u32 = 2;
/// kvc_update.action: removes the key.
pub const KVC_ACTION_DELETE: u32 = 3;
/// kvc_update.action: adds `number` to the decimal text of a 64-bit integer. A key that does not exist counts as 0. The
/// update returns the sum as a decimal text.
pub const KVC_ACTION_ADD: u32 = 4;
/// kvc_update.action: adds the decimal text in `value` to that of a floating-point number. A key that does not exist
/// counts as 0. The update returns the sum as a decimal text.
pub const KVC_ACTION_ADD_FLOAT: u32 = 5;
/// kvc_update.action: appends `value`. A key that does not exist counts as empty. The update returns the new length as
/// a decimal text.
pub const KVC_ACTION_APPEND: u32 = 6;
/// kvc_update.action: overwrites a part with `value`, from byte `number` on. A gap before the part is filled with zero
/// bytes. The update returns the new length as a decimal text.
pub const KVC_ACTION_SET_RANGE: u32 = 7;
/// kvc_update.action: moves the entry, with its deadline, to the key in `value`, whose entry it replaces.
pub const KVC_ACTION_RENAME: u32 = 8;
/// kvc_update.action: copies the entry, with its deadline, to the key in `value`, whose entry it replaces.
pub const KVC_ACTION_COPY: u32 = 9;
/// kvc_update.action: sets or removes the deadline of the entry as `expiry` states, and gives the entry a new version.
pub const KVC_ACTION_SET_EXPIRY: u32 = 10;

/// A condition: the key does not exist.
pub const KVC_IF_ABSENT: u32 = 1;
/// A condition: the key exists.
pub const KVC_IF_PRESENT: u32 = 2;
/// A condition: the entry has the given version.
pub const KVC_IF_VERSION: u32 = 3;
/// A condition: the entry has the given value.
pub const KVC_IF_VALUE: u32 = 4;
/// A condition: the entry exists and has no deadline. For this and the following conditions, the status is
/// KVC_NOT_FOUND if the key does not exist.
pub const KVC_IF_NO_DEADLINE: u32 = 5;
/// A condition: the entry exists and has a deadline.
pub const KVC_IF_DEADLINE: u32 = 6;
/// A condition: the new deadline is later than that of the entry. No deadline is later than any. Requires
/// KVC_EXPIRY_AFTER or KVC_EXPIRY_AT.
pub const KVC_IF_LATER: u32 = 7;
/// A condition: the new deadline is earlier than that of the entry. No deadline is later than any. Requires
/// KVC_EXPIRY_AFTER or KVC_EXPIRY_AT.
pub const KVC_IF_EARLIER: u32 = 8;

/// An expiry: the entry has no deadline.
pub const KVC_EXPIRY_NEVER: u32 = 1;
/// An expiry: the entry keeps the deadline that it has.
pub const KVC_EXPIRY_KEEP: u32 = 2;
/// An expiry: the entry expires `time_ms` milliseconds after the execution, by the clock of its server. The latest
/// deadline is 2^48 - 1 (in the year 10889). This and the following expiries are rejected (KVC_INVALID) if the deadline
/// would be later, by the clock of the caller.
pub const KVC_EXPIRY_AFTER: u32 = 3;
/// An expiry: the entry expires at `time_ms`, in milliseconds since 1970 (UTC). If this time has passed, the entry is
/// removed.
pub const KVC_EXPIRY_AT: u32 = 4;
/// An expiry: the entry keeps its deadline. If it has none, it expires `time_ms` milliseconds after the execution.
pub const KVC_EXPIRY_KEEP_OR_AFTER: u32 = 5;

/// kvc_update.flags: the update returns the value before a put or a delete, and the value of the entry after any action
/// that has no result of its own. It also returns the deadline of the entry after the update. After KVC_CONFLICT of a
/// request with one update, the value is the current one.
pub const KVC_RETURN_VALUE: u32 = 1;
/// kvc_update.flags: the other updates of the request are executed even if this one cannot be.
pub const KVC_OPTIONAL: u32 = 2;

/// The maximum number of updates of a request.
const MAX_UPDATES: usize = 1_024;

/// One update of a key. Call kvc_update_init() before setting fields. Unused fields are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_update {
    /// sizeof(kvc_update)
    pub size: u32,
    /// KVC_ACTION_...
    pub action: u32,
    /// KVC_IF_..., or zero for no condition.
    pub condition: u32,
    /// KVC_EXPIRY_... Zero means KVC_EXPIRY_NEVER for a put, else KVC_EXPIRY_KEEP. The actions CHECK, DELETE, RENAME
    /// and COPY cannot change a deadline.
    pub expiry: u32,
    /// KVC_RETURN_VALUE and KVC_OPTIONAL, or zero.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// The amount of KVC_ACTION_ADD, or the offset of KVC_ACTION_SET_RANGE.
    pub number: i64,
    /// The version of KVC_IF_VERSION.
    pub version: u64,
    /// The time of the expiry: a duration or a time since 1970, in milliseconds. The resulting deadline is at most
    /// 2^48 - 1.
    pub time_ms: u64,
    /// The key: 1 to 65,535 bytes. If it is empty, the update is of the key of the request.
    pub key: kvc_slice,
    /// The value, the amount or the other key of the action.
    pub value: kvc_slice,
    /// The value of KVC_IF_VALUE.
    pub if_value: kvc_slice,
}

const NOTHING: kvc_slice = kvc_slice { data: ptr::null(), len: 0 };

impl Default for kvc_update {
    fn default() -> kvc_update {
        kvc_update {
            size: 0,
            action: 0,
            condition: 0,
            expiry: 0,
            flags: 0,
            reserved: 0,
            number: 0,
            version: 0,
            time_ms: 0,
            key: NOTHING,
            value: NOTHING,
            if_value: NOTHING,
        }
    }
}

/// The result of one update. Free its value with kvc_buf_free().
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_updated {
    /// KVC_OK, KVC_NOT_FOUND, or the status with which an optional update was skipped. If the request failed, the
    /// status of the update that failed, and KVC_NOT_DONE for the others; or for all, the status of the request.
    pub status: c_int,
    /// The number of servers that hold the write: 2, or 1 while the group has no second replica. Zero if the request
    /// failed.
    pub copies: u32,
    /// The version of the entries that the request has changed. If it changed nothing, the version that its first
    /// update found. After KVC_CONFLICT, the current version of the entry. Zero if there is no entry, and after any
    /// other failure.
    pub version: u64,
    /// The value that the update returns, the sum or the length as a decimal text; data is NULL if there is none.
    pub value: kvc_buf,
    /// The deadline of the entry after an update with KVC_RETURN_VALUE, in milliseconds since 1970; zero if there is
    /// none.
    pub deadline_ms: u64,
    /// The name of the request after KVC_IN_DOUBT, for kvc_resolve_update() and kvc_resolve(); else all zero.
    pub doubt: kvc_doubt,
    /// Zero.
    pub reserved: [u64; 2],
}

impl kvc_updated {
    /// The result of an update that a panic has ended.
    pub(crate) const EMPTY: kvc_updated = kvc_updated {
        status: KVC_PANIC,
        copies: 0,
        version: 0,
        value: kvc_buf::EMPTY,
        deadline_ms: 0,
        doubt: kvc_doubt { opaque: [0; 2] },
        reserved: [0; 2],
    };
}

/// Sets all fields of `update` to zero, except `size`. `sizeof_update` is sizeof(kvc_update).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_update_init(update: *mut kvc_update, sizeof_update: usize) -> c_int {
    guard(|| {
        if update.is_null() {
            return Err(Failure::invalid("kvc_update_init: update is NULL"));
        }
        if !(size_of::<u32>()..=MAX_STRUCT_BYTES).contains(&sizeof_update) {
            return Err(Failure::invalid(format!(
                "kvc_update_init: sizeof_update is {sizeof_update}; pass sizeof(kvc_update)"
            )));
        }
        let size = u32::try_from(sizeof_update).unwrap_or(u32::MAX);
        // SAFETY: the caller guarantees that `sizeof_update` bytes may be written.
        unsafe {
            ptr::write_bytes(update.cast::<u8>(), 0, sizeof_update);
            update.cast::<u32>().write_unaligned(size);
        }
        Ok(KVC_OK)
    })
}

/// Executes one update of `key`, or of a key of the same group and shard in `update`. `options` may be NULL; its
/// condition must be zero, because the update has its own. `out` may be NULL. *out is written whatever the status, and
/// its value may always be freed with kvc_buf_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_update_one(
    client: *mut kvc_client,
    key: kvc_slice,
    update: *const kvc_update,
    options: *const kvc_op_options,
    out: *mut kvc_updated,
) -> c_int {
    // SAFETY: passed on.
    unsafe { kvc_update_many(client, key, update, 1, options, out) }
}

/// Executes `n` updates (1 to 1,024) at once: all of them, or none. Each is evaluated against the state that the ones
/// before it leave. Their keys must be of the group and shard of `key`; without a key, an update is of `key`. An
/// optional update that cannot be executed is skipped; any other one then ends the request without effect. An update of
/// a key that does not exist, such as a delete, does not end a request with several updates.
///
/// `options` may be NULL; its condition must be zero. `out` may be NULL, else it has room for `n` results. `out[i]` is
/// written whatever the status, and its value may always be freed with kvc_buf_free(). The only exception is a call
/// that is rejected because `n` is 0 (KVC_INVALID) or above 1,024 (KVC_TOO_BIG): it writes nothing. The status of the
/// call is KVC_OK if the request was executed, even if optional updates were skipped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_update_many(
    client: *mut kvc_client,
    key: kvc_slice,
    updates: *const kvc_update,
    n: usize,
    options: *const kvc_op_options,
    out: *mut kvc_updated,
) -> c_int {
    guard(|| {
        check_count(n)?;
        // SAFETY: the caller passes NULL or room for `n` results.
        let results = unsafe { Results::emptied(out, n) };
        // SAFETY: the caller passes NULL or an open handle, and arrays and structs as the header requires.
        let done = unsafe { execute(client, key, updates, options, results) };
        // SAFETY: as above.
        unsafe { results.tell(client, done) }
    })
}

/// Settles, like kvc_resolve(), a request with `n` updates that ended with KVC_IN_DOUBT, and writes to `out` the
/// results of its updates, as kvc_update_many() would have. `n` is the number of updates of the request. `out` may be
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_resolve_update(
    client: *mut kvc_client,
    doubt: kvc_doubt,
    timeout_ms: u32,
    n: usize,
    out: *mut kvc_updated,
) -> c_int {
    guard(|| {
        check_count(n)?;
        // SAFETY: the caller passes NULL or room for `n` results.
        let results = unsafe { Results::emptied(out, n) };
        let resolve = || {
            // SAFETY: the caller passes NULL or an open handle.
            let handle = unsafe { open_here(client) }?;
            let options = OpOptions { deadline: millis(timeout_ms), ..OpOptions::default() };
            let doubt = handle.doubts.find(doubt)?;
            // SAFETY: as above.
            let take = move |reply: Reply<'_>| unsafe { results.succeed(reply) };
            handle.shared.call(Op::Resolve { doubt: &doubt }, &options, take)?.map(|_| ())
        };
        // SAFETY: as above.
        unsafe { results.tell(client, resolve()) }
    })
}

/// # Safety
/// `client` is NULL or an open handle, `key` is readable, `updates` is NULL or an array for `results`, and `options` is
/// NULL or a struct of the size that it states.
unsafe fn execute(
    client: *mut kvc_client,
    key: kvc_slice,
    updates: *const kvc_update,
    options: *const kvc_op_options,
    results: Results,
) -> Result<(), Failure> {
    // SAFETY: passed on.
    let (handle, key, options) =
        unsafe { (open_here(client)?, key.bytes("key")?, read_op_options(options)?) };
    if updates.is_null() {
        return Err(Failure::invalid("the update is NULL"));
    }
    // SAFETY: the caller passes NULL or room for the results.
    let take = move |reply: Reply<'_>| unsafe { results.succeed(reply) };
    let op = |updates| Op::Update { key, updates };
    if results.n == 1 {
        // SAFETY: passed on.
        let update = unsafe { sized(updates, "kvc_update")?.read() }?;
        return handle.shared.call(op(slice::from_ref(&update)), &options, take)?.map(|_| ());
    }
    let mut all = Vec::with_capacity(results.n);
    // SAFETY: passed on.
    unsafe { read_updates(updates, results.n, &mut all) }?;
    handle.shared.call(op(&all), &options, take)?.map(|_| ())
}

/// Checks the number of updates of a request.
pub(crate) fn check_count(n: usize) -> Result<(), Failure> {
    match n {
        0 => Err(Failure::invalid("the number of updates is 0; a request has 1 to 1,024")),
        n if n > MAX_UPDATES => {
            let words = format!("the number of updates is {n}; a request has 1 to {MAX_UPDATES}");
            Err(Failure::new(KVC_TOO_BIG, words))
        }
        _ => Ok(()),
    }
}

/// Appends `n` updates, each of the size that it states itself, to `into`.
///
/// # Safety
/// `n` updates are readable at `from`. Their slices are readable and do not change while the results live.
pub(crate) unsafe fn read_updates<'a>(
    from: *const kvc_update,
    n: usize,
    into: &mut Vec<Update<'a>>,
) -> Result<(), Failure> {
    let mut at = from.cast::<u8>();
    for index in 0..n {
        // SAFETY: passed on.
        let update = unsafe { sized(at.cast::<kvc_update>(), "kvc_update") }?;
        // SAFETY: the next update, if there is one, follows directly.
        at = unsafe { at.add(update.size as usize) };
        // SAFETY: passed on.
        let read = unsafe { update.read() };
        into.push(
            read.map_err(|failure| {
                Failure::invalid(format!("updates[{index}]: {}", failure.words))
            })?,
        );
    }
    Ok(())
}

impl kvc_update {
    /// Converts the update into one of the client.
    ///
    /// # Safety
    /// The slices are readable and do not change while the result lives.
    unsafe fn read<'a>(&self) -> Result<Update<'a>, Failure> {
        // SAFETY: passed on.
        let (key, value, if_value) = unsafe {
            let key: &[u8] = self.key.bytes("kvc_update.key")?;
            (
                key,
                self.value.bytes("kvc_update.value")?,
                self.if_value.bytes("kvc_update.if_value")?,
            )
        };
        if self.flags & !(KVC_RETURN_VALUE | KVC_OPTIONAL) != 0 {
            let words = format!("kvc_update.flags is {:#x}; unknown flag", self.flags);
            return Err(Failure::invalid(words));
        }
        if self.reserved != 0 {
            let words = format!("kvc_update.reserved is {}; it must be 0", self.reserved);
            return Err(Failure::invalid(words));
        }
        let action = self.read_action(value)?;
        let expiry = match self.expiry {
            0 => Update::new(action).expiry,
            expiry => read_expiry(expiry, self.time_ms, "kvc_update.time_ms")?,
        };
        if self.expiry == 0 {
            unused("kvc_update.time_ms", "the expiry", self.time_ms == 0)?;
        }
        let names = ["kvc_update.version", "kvc_update.if_value"];
        Ok(Update {
            key: (!key.is_empty()).then_some(key),
            action,
            condition: read_condition(self.condition, self.version, if_value, names)?,
            expiry,
            returns_value: self.flags & KVC_RETURN_VALUE != 0,
            is_optional: self.flags & KVC_OPTIONAL != 0,
        })
    }

    fn read_action<'a>(&self, value: &'a [u8]) -> Result<Action<'a>, Failure> {
        let takes_number = matches!(self.action, KVC_ACTION_ADD | KVC_ACTION_SET_RANGE);
        unused("kvc_update.number", "the action", takes_number || self.number == 0)?;
        Ok(match self.action {
            KVC_ACTION_PUT => Action::Put(value),
            KVC_ACTION_ADD_FLOAT => Action::AddFloat(value),
            KVC_ACTION_APPEND => Action::Append(value),
            KVC_ACTION_SET_RANGE => match u32::try_from(self.number) {
                Ok(offset) => Action::SetRange { offset, bytes: value },
                Err(_) => return Err(bad_offset(self.number)),
            },
            KVC_ACTION_RENAME => Action::Rename(value),
            KVC_ACTION_COPY => Action::Copy(value),
            action => {
                let action = match action {
                    KVC_ACTION_CHECK => Action::Check,
                    KVC_ACTION_DELETE => Action::Delete,
                    KVC_ACTION_ADD => Action::Add(self.number),
                    KVC_ACTION_SET_EXPIRY => Action::SetExpiry,
                    _ => {
                        let words = format!("kvc_update.action is {action}; use KVC_ACTION_...");
                        return Err(Failure::invalid(words));
                    }
                };
                unused("kvc_update.value", "the action", value.is_empty())?;
                action
            }
        })
    }
}

/// Rejects an offset that no value has.
pub(crate) fn bad_offset(offset: impl std::fmt::Display) -> Failure {
    Failure::invalid(format!("the offset is {offset}; it must be 0 to 16,777,216"))
}

/// Rejects a field or parameter that is set although its `user` (the action, the condition or the expiry) has no use
/// for it.
fn unused(field: &str, user: &str, is_unused: bool) -> Result<(), Failure> {
    match is_unused {
        true => Ok(()),
        false => Err(Failure::invalid(format!("{field} is set, but {user} does not use it"))),
    }
}

/// Reads a condition and its version or value. `names` are the caller's fields for these two.
pub(crate) fn read_condition<'a>(
    kind: u32,
    version: u64,
    value: &'a [u8],
    names: [&str; 2],
) -> Result<Precondition<'a>, Failure> {
    unused(names[0], "the condition", kind == KVC_IF_VERSION || version == 0)?;
    unused(names[1], "the condition", kind == KVC_IF_VALUE || value.is_empty())?;
    Ok(match kind {
        0 => Precondition::None,
        KVC_IF_ABSENT => Precondition::Absent,
        KVC_IF_PRESENT => Precondition::Present,
        KVC_IF_VERSION => Precondition::Version(SequenceNumber(version)),
        KVC_IF_VALUE => Precondition::Value(value),
        KVC_IF_NO_DEADLINE => Precondition::NoDeadline,
        KVC_IF_DEADLINE => Precondition::HasDeadline,
        KVC_IF_LATER => Precondition::Later,
        KVC_IF_EARLIER => Precondition::Earlier,
        kind => {
            return Err(Failure::invalid(format!("the condition is {kind}; use KVC_IF_... or 0")));
        }
    })
}

/// Reads an expiry and its time. `name` is the caller's field or parameter for the time.
pub(crate) fn read_expiry(kind: u32, time_ms: u64, name: &str) -> Result<Expiry, Failure> {
    let is_timeless = matches!(kind, KVC_EXPIRY_NEVER | KVC_EXPIRY_KEEP);
    unused(name, "the expiry", !is_timeless || time_ms == 0)?;
    let since = if kind == KVC_EXPIRY_AT { 0 } else { wall_ms() };
    let latest = WallTime::MAX.millis();
    if !is_timeless && time_ms > latest.saturating_sub(since) {
        let words = format!(
            "{name} is {time_ms}, but no deadline may be later than {latest} (2^48 - 1) milliseconds since 1970; for no deadline, use KVC_EXPIRY_NEVER"
        );
        return Err(Failure::invalid(words));
    }
    Ok(match kind {
        KVC_EXPIRY_NEVER => Expiry::Never,
        KVC_EXPIRY_KEEP => Expiry::Keep,
        KVC_EXPIRY_AFTER => Expiry::After(time_ms),
        KVC_EXPIRY_AT => Expiry::At(WallTime::from_millis(time_ms)),
        KVC_EXPIRY_KEEP_OR_AFTER => Expiry::KeepOrAfter(time_ms),
        kind => return Err(Failure::invalid(format!("the expiry is {kind}; use KVC_EXPIRY_..."))),
    })
}

/// Returns the wall time in milliseconds since 1970.
fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Returns a deadline in its C form: zero if there is none.
pub(crate) fn deadline_ms(deadline: Option<WallTime>) -> u64 {
    deadline.map_or(0, WallTime::millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(action: u32) -> kvc_update {
        let size = u32::try_from(size_of::<kvc_update>()).unwrap();
        kvc_update { size, action, ..kvc_update::default() }
    }

    fn bytes(bytes: &'static [u8]) -> kvc_slice {
        kvc_slice { data: bytes.as_ptr().cast(), len: bytes.len() }
    }

    fn read(update: kvc_update) -> Result<Update<'static>, String> {
        // SAFETY: the slices are static.
        unsafe { update.read() }.map_err(|failure| failure.words)
    }

    #[test]
    fn the_limit_is_that_of_the_protocol() {
        assert_eq!(MAX_UPDATES, kv_protocol::limits::MAX_UPDATES);
    }

    #[test]
    fn a_zeroed_update_has_the_expiry_of_its_action() {
        let put = read(kvc_update { value: bytes(b"v"), ..update(KVC_ACTION_PUT) });
        assert_eq!(put, Ok(Update::new(Action::Put(b"v"))));
        let add = read(kvc_update { number: -3, ..update(KVC_ACTION_ADD) });
        assert_eq!(add, Ok(Update::new(Action::Add(-3))));
    }

    #[test]
    fn every_field_is_read() {
        let given = kvc_update {
            condition: KVC_IF_VALUE,
            expiry: KVC_EXPIRY_KEEP_OR_AFTER,
            flags: KVC_RETURN_VALUE | KVC_OPTIONAL,
            number: 9,
            time_ms: 7,
            key: bytes(b"k"),
            value: bytes(b"v"),
            if_value: bytes(b"old"),
            ..update(KVC_ACTION_SET_RANGE)
        };
        let expected = Update {
            key: Some(b"k"),
            action: Action::SetRange { offset: 9, bytes: b"v" },
            condition: Precondition::Value(b"old"),
            expiry: Expiry::KeepOrAfter(7),
            returns_value: true,
            is_optional: true,
        };
        assert_eq!(read(given), Ok(expected));
    }

    #[test]
    fn a_field_without_use_is_rejected_with_its_name() {
        let check = update(KVC_ACTION_CHECK);
        for (given, field) in [
            (kvc_update { number: 1, ..check }, "number"),
            (kvc_update { version: 1, ..check }, "version"),
            (kvc_update { time_ms: 1, ..check }, "time_ms"),
            (kvc_update { value: bytes(b"v"), ..check }, "value"),
            (kvc_update { if_value: bytes(b"v"), ..check }, "if_value"),
            (kvc_update { flags: 4, ..check }, "flags is 0x4"),
            (kvc_update { reserved: 1, ..check }, "reserved is 1"),
            (kvc_update { condition: 9, ..check }, "condition"),
            (kvc_update { expiry: 6, ..check }, "expiry"),
            (update(0), "action"),
            (kvc_update { number: -1, ..update(KVC_ACTION_SET_RANGE) }, "offset"),
        ] {
            let words = read(given).unwrap_err();
            assert!(words.contains(field), "{words}");
        }
    }

    #[test]
    fn a_deadline_beyond_the_limit_is_rejected() {
        const LATEST: u64 = (1 << 48) - 1;
        let read = |kind, time_ms| read_expiry(kind, time_ms, "time_ms").map_err(|no| no.words);
        assert_eq!(read(KVC_EXPIRY_AT, LATEST), Ok(Expiry::At(WallTime::MAX)));
        let year = 365 * 24 * 3_600_000;
        for (kind, allowed) in
            [(KVC_EXPIRY_AFTER, 8_000 * year), (KVC_EXPIRY_KEEP_OR_AFTER, 8_000 * year)]
        {
            assert!(read(kind, allowed).is_ok());
            // The duration alone is within the limit, but not the time after it.
            assert!(read(kind, LATEST).unwrap_err().contains("281474976710655 (2^48 - 1)"));
        }
        for kind in [KVC_EXPIRY_AT, KVC_EXPIRY_AFTER, KVC_EXPIRY_KEEP_OR_AFTER] {
            for beyond in [LATEST + 1, u64::MAX] {
                assert!(read(kind, beyond).unwrap_err().contains("time_ms is"));
            }
        }
    }

    #[test]
    fn updates_of_another_size_follow_each_other() {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Newer {
            update: kvc_update,
            more: u64,
        }
        let size = u32::try_from(size_of::<Newer>()).unwrap();
        let newer = |action| Newer { update: kvc_update { size, ..update(action) }, more: 0 };
        let mut two = [newer(KVC_ACTION_CHECK), newer(KVC_ACTION_DELETE)];
        let mut all = Vec::new();
        // SAFETY: there are two updates of the size that they state.
        unsafe { read_updates(two.as_ptr().cast(), 2, &mut all) }.unwrap();
        assert_eq!(all, [Update::new(Action::Check), Update::new(Action::Delete)]);
        two[1].more = 1;
        // SAFETY: as above.
        let failure = unsafe { read_updates(two.as_ptr().cast(), 2, &mut all) }.unwrap_err();
        assert!(failure.words.contains("older than the header"), "{}", failure.words);
    }
}
