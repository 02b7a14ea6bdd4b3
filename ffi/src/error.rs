//! Statuses, their names, and this thread's last failure in words.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};

use kv_client::{Doubt, Error, OpenError};

/// Done.
pub const KVC_OK: c_int = 0;
/// The key does not exist.
pub const KVC_NOT_FOUND: c_int = -1;
/// A read was sent and got no answer before its deadline. A program treats it as KVC_UNAVAILABLE: the value
/// was not read, and whether the request reached a server tells it nothing more.
pub const KVC_TIMEOUT: c_int = -2;
/// A write was sent and may have been done or not; kvc_resolve() finds out.
pub const KVC_IN_DOUBT: c_int = -3;
/// Not served before the deadline; a write was not done. Of a read it means the same to a program as
/// KVC_TIMEOUT: treat the two alike. Of kvc_open() and kvc_cq_new(): a name is
/// unknown, or the system gives no descriptor.
pub const KVC_UNAVAILABLE: c_int = -4;
/// No server holds the key any more; an operator has to restore it.
pub const KVC_LOST: c_int = -5;
/// The condition of a write does not hold; nothing was changed. The version that the entry has, zero if
/// there is none, is in kvc_result.version, and in the version of a completion's value.
pub const KVC_CONFLICT: c_int = -6;
/// Key or value is longer than allowed, and nothing was changed; or a value is longer than the room
/// for it.
pub const KVC_TOO_BIG: c_int = -7;
/// The servers' memory limit is reached; nothing was changed.
pub const KVC_OUT_OF_SPACE: c_int = -8;
/// Too much load until the deadline; a write was not done.
pub const KVC_BUSY: c_int = -9;
/// The queue is full, and did not take the operation. Call kvc_cq_poll() until it has given a completion,
/// then submit the operation again.
pub const KVC_FULL: c_int = -10;
/// The handle was opened before a fork(); open another in the child.
pub const KVC_FORKED: c_int = -11;
/// An argument is wrong; nothing was done.
pub const KVC_INVALID: c_int = -12;
/// This process has no memory for the request or the value; a write was not done.
pub const KVC_NO_MEMORY: c_int = -13;
/// Client and server do not understand each other. An endpoint that is another kind of server (HTTP, SSH)
/// is as one that does not serve: KVC_UNAVAILABLE at the deadline, and the words say what it sent.
pub const KVC_PROTOCOL: c_int = -14;
/// A defect in the library; the handle or queue can only be closed. Its words, and where it is, go to
/// standard error as well.
pub const KVC_PANIC: c_int = -15;
/// Another process uses this handle's client id, as the clone of a virtual machine does, and has used the number of
/// this write. The write was not done. The next write uses another id.
pub const KVC_SHARED_IDENTITY: c_int = -16;
/// Another cluster, not restored from the handle's cluster, has taken its place; nothing was done. Open a new handle.
pub const KVC_OTHER_CLUSTER: c_int = -17;

/// A write in doubt was settled: it was not done, and never will be.
pub const KVC_NOT_DONE: c_int = -18;

/// The program has interrupted the handle (kvc_interrupt()); a write was not done.
pub const KVC_INTERRUPTED: c_int = -19;
/// The program has cancelled the operation (kvc_cq_cancel()); a write was not done.
pub const KVC_CANCELLED: c_int = -20;

/// A status, and why in words.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: c_int,
    pub(crate) words: String,
    /// Of KVC_CONFLICT: the version that the entry has; zero if there is none.
    pub(crate) version: u64,
    /// Of KVC_IN_DOUBT: the write.
    pub(crate) doubt: Option<Doubt>,
}

/// How serious a status is, for a call that has several: the higher, the more.
pub(crate) fn severity(status: c_int) -> usize {
    const ORDER: [c_int; 16] = [
        KVC_NOT_FOUND,
        KVC_CONFLICT,
        KVC_INVALID,
        KVC_TOO_BIG,
        KVC_BUSY,
        KVC_UNAVAILABLE,
        KVC_TIMEOUT,
        KVC_INTERRUPTED,
        KVC_OUT_OF_SPACE,
        KVC_NO_MEMORY,
        KVC_IN_DOUBT,
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
        Failure { status, words: words.into(), version: 0, doubt: None }
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
            Error::WithinCallback => KVC_INVALID,
            Error::Defect => KVC_PANIC,
            _ => KVC_PROTOCOL,
        };
        let words = error.to_string();
        let doubt = match error {
            Error::InDoubt { doubt, .. } => doubt,
            _ => None,
        };
        Failure { version, doubt, ..Failure::new(status, words) }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        let status = match error {
            OpenError::Resolve { .. } | OpenError::System { .. } => KVC_UNAVAILABLE,
            _ => KVC_INVALID,
        };
        Failure::new(status, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Remembers a failure for [`kvc_last_error`] and returns its status.
pub(crate) fn fail(failure: Failure) -> c_int {
    let words = c_text(failure.words);
    // A thread that is ending has no memory of errors any more.
    let _ = LAST_ERROR.try_with(|last| last.replace(Some(words)));
    failure.status
}

/// Words as C takes them.
pub(crate) fn c_text(words: impl Into<Vec<u8>>) -> CString {
    let mut words = words.into();
    words.retain(|&byte| byte != 0);
    CString::new(words).unwrap_or_default()
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(KVC_UNAVAILABLE, format!("asking the system: {error}"))
    }
}

/// The name of a status, such as "KVC_NOT_FOUND"; "KVC_UNKNOWN" for a number that is none. The text
/// is static.
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

/// What went wrong in this thread's last call that failed, in words; "" if none has. The text belongs
/// to the library and lives until the thread's next failure.
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
    fn statuses_never_change_their_numbers() {
        let names: Vec<&str> = (0..=20).map(|n| name(-n)).collect();
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
            ]
        );
        assert_eq!((name(1), name(-21)), ("KVC_UNKNOWN", "KVC_UNKNOWN"));
    }

    #[test]
    fn words_with_nul_bytes_are_still_told() {
        assert_eq!(fail(Failure::invalid("a\0b")), KVC_INVALID);
        // SAFETY: this thread has not failed since.
        assert_eq!(unsafe { CStr::from_ptr(kvc_last_error()) }, c"ab");
    }
}
