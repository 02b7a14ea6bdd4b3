//! Statuses, their names, and the message of this thread's last failure.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};

use kv_client::{Doubt, Error, OpenError};

/// Success.
pub const KVC_OK: c_int = 0;
/// The key does not exist.
pub const KVC_NOT_FOUND: c_int = -1;
/// A read was sent and got no response before its deadline. Treat this status like KVC_UNAVAILABLE: the value was not
/// read, and it makes no difference whether the request reached a server.
pub const KVC_TIMEOUT: c_int = -2;
/// A write was sent and may or may not have been executed; kvc_resolve() returns the outcome.
pub const KVC_IN_DOUBT: c_int = -3;
/// The operation was not served before the deadline; a write was not executed. For a read, treat this status like
/// KVC_TIMEOUT. From kvc_open(), kvc_interrupt(), kvc_resume() and the functions of a queue: a name cannot be resolved,
/// the system provides no descriptor, or a system call failed.
pub const KVC_UNAVAILABLE: c_int = -4;
/// No server holds the group of the key any more; an operator has to restore the group.
pub const KVC_LOST: c_int = -5;
/// The condition of a write does not hold; nothing was changed. The current version of the entry, zero if there is
/// none, is in kvc_result.version and in the version of a completion's value.
pub const KVC_CONFLICT: c_int = -6;
/// The key or the value is too long, and nothing was changed; or a value read is longer than the buffer for it.
pub const KVC_TOO_BIG: c_int = -7;
/// The servers' memory limit is reached; nothing was changed.
pub const KVC_OUT_OF_SPACE: c_int = -8;
/// The servers were overloaded until the deadline; a write was not executed.
pub const KVC_BUSY: c_int = -9;
/// The queue is full, and the operation was not submitted. Call kvc_cq_poll() until it returns a completion, then
/// submit the operation again.
pub const KVC_FULL: c_int = -10;
/// The handle or the queue was opened before a fork(); open another in the child.
pub const KVC_FORKED: c_int = -11;
/// An argument is invalid, or the call is not allowed now: within a log or event function, or while another thread uses
/// the queue. Nothing was executed.
pub const KVC_INVALID: c_int = -12;
/// This process has no memory for the request or the value. A write was not executed, with one exception: if the
/// message says so, an update was executed, but there is no memory for the value that it returns.
pub const KVC_NO_MEMORY: c_int = -13;
/// A protocol error between client and server. If an endpoint belongs to another kind of server (HTTP, SSH), the status
/// is KVC_UNAVAILABLE at the deadline, and the message describes the invalid bytes.
pub const KVC_PROTOCOL: c_int = -14;
/// A defect in the library. Close the handle, or free the queue. The message and the source location of the defect are
/// also printed to standard error.
pub const KVC_PANIC: c_int = -15;
/// Another process, such as the clone of a virtual machine, uses this handle's client id and has used the number of
/// this write. The write was not executed. The next write uses another id.
pub const KVC_SHARED_IDENTITY: c_int = -16;
/// Another cluster, not restored from the handle's cluster, has replaced it; nothing was executed. Open a new handle.
pub const KVC_OTHER_CLUSTER: c_int = -17;

/// The write in doubt was settled: it was not executed and never will be. In kvc_updated: the update was not executed,
/// because another update of the request failed.
pub const KVC_NOT_DONE: c_int = -18;

/// The program has interrupted the handle (kvc_interrupt()); a write was not executed.
pub const KVC_INTERRUPTED: c_int = -19;
/// The program has cancelled the operation (kvc_cq_cancel()); a write was not executed.
pub const KVC_CANCELLED: c_int = -20;

/// The value of the entry, or the amount to add, is not a decimal number of the kind that the update adds to; nothing
/// was changed.
pub const KVC_NOT_A_NUMBER: c_int = -21;
/// The sum is out of range; nothing was changed. An integer has 64 bits; other numbers are finite.
pub const KVC_OVERFLOW: c_int = -22;
/// The keys of a request are not all of one group and shard; nothing was changed. Send several requests, or give the
/// keys the same hash tag, as in {user:1}:name, in a cluster that was created with coord --hash-tags.
pub const KVC_CROSS_SHARD: c_int = -23;
/// The server runs an older version, which does not support the operation; nothing was changed. Upgrade the servers.
pub const KVC_UNSUPPORTED: c_int = -24;

/// A status with its message.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: c_int,
    pub(crate) words: String,
    /// The current version of the entry after KVC_CONFLICT; zero if there is none.
    pub(crate) version: u64,
    /// The write after KVC_IN_DOUBT.
    pub(crate) doubt: Option<Doubt>,
    /// The current value of the entry after KVC_CONFLICT, if an update requests it.
    pub(crate) value: Option<Box<[u8]>>,
    /// The index of the update that failed, in a request with several of them.
    pub(crate) index: Option<usize>,
    /// True if the write was executed all the same, and only its value could not be returned.
    pub(crate) was_executed: bool,
}

/// Returns the rank of a status, for a call with several results. A higher rank is more serious; a status without a
/// rank has the lowest.
pub(crate) fn severity(status: c_int) -> usize {
    const ORDER: [c_int; 20] = [
        KVC_NOT_FOUND,
        KVC_CONFLICT,
        KVC_NOT_A_NUMBER,
        KVC_OVERFLOW,
        KVC_INVALID,
        KVC_CROSS_SHARD,
        KVC_TOO_BIG,
        KVC_BUSY,
        KVC_UNAVAILABLE,
        KVC_TIMEOUT,
        KVC_INTERRUPTED,
        KVC_OUT_OF_SPACE,
        KVC_NO_MEMORY,
        KVC_IN_DOUBT,
        KVC_UNSUPPORTED,
        KVC_PROTOCOL,
        KVC_SHARED_IDENTITY,
        KVC_OTHER_CLUSTER,
        KVC_LOST,
        KVC_PANIC,
    ];
    ORDER.iter().position(|known| *known == status).unwrap_or(0)
}

impl Failure {
    pub(crate) fn new(status: c_int, words: impl Into<String>) -> Failure {
        let words = words.into();
        let (version, doubt, value, index) = (0, None, None, None);
        Failure { status, words, version, doubt, value, index, was_executed: false }
    }

    pub(crate) fn invalid(words: impl Into<String>) -> Failure {
        Failure::new(KVC_INVALID, words)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let version = match error {
            Error::Conflict { version, .. } => version.0,
            _ => 0,
        };
        let status = match error {
            Error::NotFound { .. } => KVC_NOT_FOUND,
            Error::Conflict { .. } => KVC_CONFLICT,
            Error::Timeout { .. } => KVC_TIMEOUT,
            Error::InDoubt { .. } => KVC_IN_DOUBT,
            Error::Unavailable { .. } => KVC_UNAVAILABLE,
            Error::Lost { .. } => KVC_LOST,
            Error::TooBig { .. } => KVC_TOO_BIG,
            Error::OutOfSpace { .. } => KVC_OUT_OF_SPACE,
            Error::NoMemory { .. } => KVC_NO_MEMORY,
            Error::Busy { .. } => KVC_BUSY,
            Error::Invalid { .. } => KVC_INVALID,
            Error::SharedIdentity { .. } => KVC_SHARED_IDENTITY,
            Error::OtherCluster { .. } => KVC_OTHER_CLUSTER,
            Error::NotDone { .. } => KVC_NOT_DONE,
            Error::Interrupted { .. } => KVC_INTERRUPTED,
            Error::Cancelled { .. } => KVC_CANCELLED,
            Error::NotANumber { .. } => KVC_NOT_A_NUMBER,
            Error::Overflow { .. } => KVC_OVERFLOW,
            Error::CrossShard { .. } => KVC_CROSS_SHARD,
            Error::Unsupported { .. } => KVC_UNSUPPORTED,
            Error::WithinCallback => KVC_INVALID,
            Error::Defect => KVC_PANIC,
            _ => KVC_PROTOCOL,
        };
        let words = error.to_string();
        let index = match &error {
            Error::Conflict { action, .. }
            | Error::NotANumber { action }
            | Error::Overflow { action }
            | Error::TooBig { action, .. }
            | Error::Invalid { action, .. } => action.index_in_batch(),
            _ => None,
        };
        let (doubt, value) = match error {
            Error::InDoubt { doubt, .. } => (doubt, None),
            Error::Conflict { value, .. } => (None, value),
            _ => (None, None),
        };
        Failure { version, doubt, value, index, ..Failure::new(status, words) }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        let status = match error {
            OpenError::Resolve { .. }
            | OpenError::NoAddress { .. }
            | OpenError::Sockets { .. }
            | OpenError::System { .. } => KVC_UNAVAILABLE,
            _ => KVC_INVALID,
        };
        Failure::new(status, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Stores the message of a failure for [`kvc_last_error`], and returns the status of the failure.
pub(crate) fn fail(failure: Failure) -> c_int {
    let words = c_text(failure.words);
    // If the thread is ending, its thread-local storage may already be destroyed.
    let _ = LAST_ERROR.try_with(|last| last.replace(Some(words)));
    failure.status
}

/// Converts a text into a C string; NUL bytes are removed.
pub(crate) fn c_text(words: impl Into<Vec<u8>>) -> CString {
    let mut words = words.into();
    words.retain(|&byte| byte != 0);
    CString::new(words).unwrap_or_default()
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        let words = format!("cannot create or use a descriptor: {error}; check ulimit -n");
        Failure::new(KVC_UNAVAILABLE, words)
    }
}

/// Returns the name of a status, such as "KVC_NOT_FOUND"; "KVC_UNKNOWN" for any other number. The string is static.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_status_name(status: c_int) -> *const c_char {
    let name: &CStr = match status {
        KVC_OK => c"KVC_OK",
        KVC_NOT_FOUND => c"KVC_NOT_FOUND",
        KVC_TIMEOUT => c"KVC_TIMEOUT",
        KVC_IN_DOUBT => c"KVC_IN_DOUBT",
        KVC_UNAVAILABLE => c"KVC_UNAVAILABLE",
        KVC_LOST => c"KVC_LOST",
        KVC_CONFLICT => c"KVC_CONFLICT",
        KVC_TOO_BIG => c"KVC_TOO_BIG",
        KVC_OUT_OF_SPACE => c"KVC_OUT_OF_SPACE",
        KVC_BUSY => c"KVC_BUSY",
        KVC_SHARED_IDENTITY => c"KVC_SHARED_IDENTITY",
        KVC_OTHER_CLUSTER => c"KVC_OTHER_CLUSTER",
        KVC_NOT_DONE => c"KVC_NOT_DONE",
        KVC_INTERRUPTED => c"KVC_INTERRUPTED",
        KVC_CANCELLED => c"KVC_CANCELLED",
        KVC_NOT_A_NUMBER => c"KVC_NOT_A_NUMBER",
        KVC_OVERFLOW => c"KVC_OVERFLOW",
        KVC_CROSS_SHARD => c"KVC_CROSS_SHARD",
        KVC_UNSUPPORTED => c"KVC_UNSUPPORTED",
        KVC_FULL => c"KVC_FULL",
        KVC_FORKED => c"KVC_FORKED",
        KVC_INVALID => c"KVC_INVALID",
        KVC_NO_MEMORY => c"KVC_NO_MEMORY",
        KVC_PROTOCOL => c"KVC_PROTOCOL",
        KVC_PANIC => c"KVC_PANIC",
        _ => c"KVC_UNKNOWN",
    };
    name.as_ptr()
}

/// Returns the message of this thread's last failed call; "" if none has failed. The library owns the string, which is
/// valid until the thread's next failure.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|last| last.borrow().as_ref().map(|words| words.as_ptr()))
        .ok()
        .flatten()
        .unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(status: c_int) -> &'static str {
        // SAFETY: the names are static and end with NUL.
        unsafe { CStr::from_ptr(kvc_status_name(status)) }.to_str().unwrap()
    }

    #[test]
    fn the_numbers_of_statuses_never_change() {
        let names: Vec<&str> = (0..=24).map(|n| name(-n)).collect();
        assert_eq!(
            names,
            [
                "KVC_OK",
                "KVC_NOT_FOUND",
                "KVC_TIMEOUT",
                "KVC_IN_DOUBT",
                "KVC_UNAVAILABLE",
                "KVC_LOST",
                "KVC_CONFLICT",
                "KVC_TOO_BIG",
                "KVC_OUT_OF_SPACE",
                "KVC_BUSY",
                "KVC_FULL",
                "KVC_FORKED",
                "KVC_INVALID",
                "KVC_NO_MEMORY",
                "KVC_PROTOCOL",
                "KVC_PANIC",
                "KVC_SHARED_IDENTITY",
                "KVC_OTHER_CLUSTER",
                "KVC_NOT_DONE",
                "KVC_INTERRUPTED",
                "KVC_CANCELLED",
                "KVC_NOT_A_NUMBER",
                "KVC_OVERFLOW",
                "KVC_CROSS_SHARD",
                "KVC_UNSUPPORTED",
            ]
        );
        assert_eq!((name(1), name(-25)), ("KVC_UNKNOWN", "KVC_UNKNOWN"));
    }

    #[test]
    fn a_name_without_an_address_is_unavailable_and_a_malformed_one_is_invalid() {
        let status = |error: OpenError| Failure::from(error).status;
        let name = || "host:7000".to_owned();
        assert_eq!(status(OpenError::NoAddress { endpoints: name() }), KVC_UNAVAILABLE);
        let reason = std::io::Error::other("unknown");
        assert_eq!(status(OpenError::Resolve { name: name(), reason }), KVC_UNAVAILABLE);
        assert_eq!(status(OpenError::Endpoint { name: name() }), KVC_INVALID);
    }

    #[test]
    fn a_message_with_nul_bytes_is_reported_without_them() {
        assert_eq!(fail(Failure::invalid("a\0b")), KVC_INVALID);
        // SAFETY: this thread has not failed since.
        assert_eq!(unsafe { CStr::from_ptr(kvc_last_error()) }, c"ab");
    }
}
