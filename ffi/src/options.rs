//! Settings in their C form: structs that begin with their size, so that later versions can add fields.

use std::ffi::{c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::time::Duration;

use kv_client::{Condition, Level, Log, OpOptions, Options, SequenceNumber};

use crate::error::{Failure, KVC_OK, c_text};
use crate::events::{events, kvc_event_fn};
use crate::panic::guard;

/// if_version: the key must not exist.
pub const KVC_ABSENT: u64 = 0xffff_ffff_ffff_ffff;

/// kvc_log_fn: a fault that needs an operator's attention.
pub const KVC_LOG_WARNING: c_int = 1;
/// kvc_log_fn: an infrequent event of normal operation.
pub const KVC_LOG_INFO: c_int = 2;
/// kvc_log_fn: a detail for diagnosis.
pub const KVC_LOG_DEBUG: c_int = 3;

/// Receives the log messages of a handle (lost connections, new maps), one line each, without a line end. The library
/// calls this function within kvc_open() and within calls on the handle and its queues. It runs on the threads of these
/// calls, possibly on several threads at once. The function must return normally, without longjmp and without a C++
/// exception. If it forks, it must not return in the child. On handles and queues, it may call only kvc_interrupt() and
/// kvc_resume(); any other call returns KVC_INVALID. `words` is valid until the function returns.
pub type kvc_log_fn =
    Option<unsafe extern "C" fn(log_arg: *mut c_void, level: c_int, words: *const c_char)>;

/// The settings of a handle. Call kvc_options_init() before setting fields. A field that is zero has its default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_options {
    /// sizeof(kvc_options)
    pub size: u32,
    /// The deadline of a call in milliseconds, including connecting and retries. Default 5,000, at most 60,000.
    pub timeout_ms: u32,
    /// The timeout in milliseconds of a connection attempt to a server, and of a request for the map to an endpoint.
    /// After only 250 ms of silence, the map is requested from the next endpoint as well. Default 1,000, at most
    /// 60,000.
    pub connect_timeout_ms: u32,
    /// The maximum number of connections of the handle to each shard of a server. A shard in which the handle's session
    /// was replaced (KVC_EVENT_SESSION_BEGUN) has one more. All threads share the connections, and no call waits until
    /// another has ended. More connections may help if many large values are in transfer at once. Queues have their own
    /// connections, which do not count. Default 1, at most 64.
    pub connections_per_shard: u32,
    /// The function that receives log messages, or NULL. It may be called until the handle is closed and its queues are
    /// freed.
    pub log: kvc_log_fn,
    /// The argument that is passed to `log` with every message. It must stay valid while `log` may be called.
    pub log_arg: *mut c_void,
    /// The function that receives events (connections, the map, writes in doubt), or NULL. It may be called until the
    /// handle is closed and its queues are freed.
    pub on_event: kvc_event_fn,
    /// The argument that is passed to `on_event` with every event. It must stay valid while `on_event` may be called.
    pub event_context: *mut c_void,
}

impl Default for kvc_options {
    fn default() -> kvc_options {
        kvc_options {
            size: 0,
            timeout_ms: 0,
            connect_timeout_ms: 0,
            connections_per_shard: 0,
            log: None,
            log_arg: ptr::null_mut(),
            on_event: None,
            event_context: ptr::null_mut(),
        }
    }
}

/// The settings of one call; NULL means the defaults. First set size to sizeof(kvc_op_options) and all other fields to
/// zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kvc_op_options {
    /// sizeof(kvc_op_options)
    pub size: u32,
    /// The deadline of the call in milliseconds, at most 60,000. Zero means the deadline of the handle.
    pub timeout_ms: u32,
    /// The condition of a write. Zero: no condition; KVC_ABSENT: the key must not exist; any other value: the entry
    /// must have this version. Reads ignore the condition.
    pub if_version: u64,
}

/// The maximum deadline of a call in milliseconds.
const MAX_TIMEOUT_MS: u32 = 60_000;
/// The default number of connections to each shard.
const DEFAULT_CONNECTIONS: u32 = 1;
/// The maximum number of connections to each shard.
const MAX_CONNECTIONS: u32 = 64;
/// The maximum size that a struct of the program may state.
pub(crate) const MAX_STRUCT_BYTES: usize = 4_096;

/// Sets all fields of `options` to their defaults. `sizeof_options` is sizeof(kvc_options).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_options_init(
    options: *mut kvc_options,
    sizeof_options: usize,
) -> c_int {
    guard(|| {
        if options.is_null() {
            return Err(Failure::invalid("kvc_options_init: options is NULL"));
        }
        if !(size_of::<u32>()..=MAX_STRUCT_BYTES).contains(&sizeof_options) {
            return Err(Failure::invalid(format!(
                "kvc_options_init: sizeof_options is {sizeof_options}; pass sizeof(kvc_options)"
            )));
        }
        let size = u32::try_from(sizeof_options).unwrap_or(u32::MAX);
        // SAFETY: the caller guarantees that `sizeof_options` bytes may be written.
        unsafe {
            ptr::write_bytes(options.cast::<u8>(), 0, sizeof_options);
            options.cast::<u32>().write_unaligned(size);
        }
        Ok(KVC_OK)
    })
}

/// Copies a struct that begins with its size; NULL gives the defaults. Fields that are missing in a smaller struct are
/// set to zero. A larger struct, from a newer header, is accepted if the fields that this library does not know are
/// zero.
///
/// # Safety
/// `from` is NULL, or points to a struct with as many readable bytes as its first four bytes state.
#[inline]
pub(crate) unsafe fn sized<T: Copy + Default>(from: *const T, what: &str) -> Result<T, Failure> {
    if from.is_null() {
        return Ok(T::default());
    }
    // SAFETY: every such struct begins with a u32.
    let size = unsafe { from.cast::<u32>().read_unaligned() } as usize;
    if size == size_of::<T>() {
        // SAFETY: `size` bytes are readable by contract. The fields are integers and pointers, for which every bit
        // pattern is valid.
        return Ok(unsafe { from.read_unaligned() });
    }
    // SAFETY: passed on.
    unsafe { of_other_size(from, size, what) }
}

/// Copies, like [`sized`], a struct of a program that was compiled with another version of the header.
///
/// # Safety
/// `size` bytes are readable.
#[cold]
unsafe fn of_other_size<T: Copy + Default>(
    from: *const T,
    size: usize,
    what: &str,
) -> Result<T, Failure> {
    let mut copy = T::default();
    if !(size_of::<u32>()..=MAX_STRUCT_BYTES).contains(&size) {
        return Err(Failure::invalid(format!(
            "{what}.size is {size}; set it to sizeof({what}) and the other fields to zero"
        )));
    }
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are readable by contract, and T has room for `known` of them. Its fields are integers and
    // pointers, for which every bit pattern is valid.
    unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut copy).cast::<u8>(), known) };
    for offset in known..size {
        // SAFETY: as above.
        if unsafe { from.cast::<u8>().add(offset).read() } != 0 {
            return Err(Failure::invalid(format!(
                "{what} sets an unknown field at byte {offset}; the library is older than the header; install a newer library"
            )));
        }
    }
    Ok(copy)
}

pub(crate) fn millis(value: u32) -> Option<Duration> {
    (value > 0).then(|| Duration::from_millis(value.into()))
}

/// Reads the settings of a handle, and its number of connections to each shard. NULL gives the defaults.
///
/// # Safety
/// The requirements of [`sized`].
pub(crate) unsafe fn read_options(from: *const kvc_options) -> Result<(Options, usize), Failure> {
    // SAFETY: passed on.
    let given = unsafe { sized(from, "kvc_options") }?;
    let mut options = Options::default();
    options.deadline = millis(given.timeout_ms).unwrap_or(options.deadline);
    options.connect_timeout = millis(given.connect_timeout_ms).unwrap_or(options.connect_timeout);
    options.log = log(given.log, given.log_arg);
    options.events = events(given.on_event, given.event_context);
    let connections = match given.connections_per_shard {
        0 => DEFAULT_CONNECTIONS,
        connections if connections <= MAX_CONNECTIONS => connections,
        connections => {
            return Err(Failure::invalid(format!(
                "kvc_options.connections_per_shard is {connections}; at most {MAX_CONNECTIONS} are allowed"
            )));
        }
    };
    Ok((options, connections as usize))
}

/// Reads the settings of a call; NULL gives the defaults.
///
/// # Safety
/// The requirements of [`sized`].
pub(crate) unsafe fn read_op_options(from: *const kvc_op_options) -> Result<OpOptions, Failure> {
    // SAFETY: passed on.
    let given = unsafe { sized(from, "kvc_op_options") }?;
    if given.timeout_ms > MAX_TIMEOUT_MS {
        let words = format!(
            "kvc_op_options.timeout_ms is {}; at most {MAX_TIMEOUT_MS} are allowed",
            given.timeout_ms
        );
        return Err(Failure::invalid(words));
    }
    Ok(OpOptions { deadline: millis(given.timeout_ms), condition: condition(given.if_version) })
}

pub(crate) fn condition(if_version: u64) -> Condition {
    match if_version {
        0 => Condition::Always,
        KVC_ABSENT => Condition::IfAbsent,
        version => Condition::IfVersion(SequenceNumber(version)),
    }
}

/// The program's argument for its log or event function, which any thread may pass.
pub(crate) struct Argument(pub(crate) *mut c_void);
// SAFETY: the header states that any thread in a call may pass it to the function.
unsafe impl Send for Argument {}
// SAFETY: as above, possibly on several threads at once.
unsafe impl Sync for Argument {}

/// Creates a log that calls a function of the program; without a function, it discards all messages.
fn log(to: kvc_log_fn, log_arg: *mut c_void) -> Log {
    let Some(to) = to else { return Log::default() };
    let argument = Argument(log_arg);
    Log::to(move |level, words| {
        let Argument(argument) = &argument;
        let level = match level {
            Level::Warning => KVC_LOG_WARNING,
            Level::Info => KVC_LOG_INFO,
            Level::Debug => KVC_LOG_DEBUG,
        };
        let words = c_text(words);
        // SAFETY: the program passes a function of this type, which stays valid together with its argument.
        unsafe { to(*argument, level, words.as_ptr()) };
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    struct Newer {
        options: kvc_op_options,
        more: u64,
    }

    fn read(newer: &Newer) -> Result<OpOptions, Failure> {
        // SAFETY: the struct is as large as any size that the tests write into it.
        unsafe { read_op_options((&raw const *newer).cast()) }
    }

    #[test]
    fn structs_of_older_and_newer_headers_are_accepted() {
        let options = kvc_op_options { size: 24, timeout_ms: 7, if_version: KVC_ABSENT };
        let mut newer = Newer { options, more: 0 };
        let options = read(&newer).unwrap();
        assert_eq!(options.deadline, Some(Duration::from_millis(7)));
        assert_eq!(options.condition, Condition::IfAbsent);
        newer.more = 1 << 32;
        assert!(read(&newer).unwrap_err().words.contains("older than the header"));
        newer.options.size = 8;
        assert_eq!(read(&newer).unwrap().condition, Condition::Always);
        newer.options.size = 0;
        assert!(read(&newer).unwrap_err().words.contains("sizeof(kvc_op_options)"));
    }

    #[test]
    fn each_setting_of_a_handle_is_applied() {
        let size = u32::try_from(size_of::<kvc_options>()).unwrap();
        let given =
            kvc_options { size, timeout_ms: 7, connect_timeout_ms: 8, ..kvc_options::default() };
        let given = kvc_options { connections_per_shard: 9, ..given };
        // SAFETY: the struct is as large as its size states.
        let (options, connections) = unsafe { read_options(&raw const given) }.unwrap();
        assert_eq!(options.deadline, Duration::from_millis(7));
        assert_eq!(options.connect_timeout, Duration::from_millis(8));
        assert_eq!(connections, 9);
    }

    #[test]
    fn null_options_give_the_defaults() {
        // SAFETY: NULL is allowed.
        let (options, connections) = unsafe { read_options(ptr::null()) }.unwrap();
        assert_eq!((options.deadline, connections), (Duration::from_secs(5), 1));
    }
}
