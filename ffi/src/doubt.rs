//! The list of writes in doubt, with the names under which the program refers to them.
//!
//! A handle and its queues share one list. The list keeps the most recent writes. The library still settles an older
//! write when its key is used again.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use kv_client::{Doubt, OpOptions};

use crate::error::{Failure, KVC_INVALID};
use crate::handle::{kvc_client, kvc_result, open_here, tell};
use crate::panic::guard;

/// The maximum number of writes in doubt in the list.
const MAX_KEPT: usize = 65_536;
/// The maximum size in memory of the writes in the list.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// The name of a write that ended with KVC_IN_DOUBT, for kvc_resolve(); all zero if there is none. Opaque; it may be
/// copied. It is valid while the handle is open, until 65,536 more writes, or writes that need 16 MiB of memory, have
/// ended in doubt. After that, kvc_resolve() returns KVC_INVALID. This struct never gets another field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvc_doubt {
    /// The library's data; not for use by the program.
    pub opaque: [u64; 2],
}

/// The list of writes in doubt; see the module documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubts {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The number of writes that were removed before the first of `doubts`.
    before: u64,
    doubts: VecDeque<Doubt>,
    /// The size in memory of `doubts`.
    bytes: usize,
}

impl Kept {
    fn push(&mut self, doubt: Doubt) {
        self.bytes += doubt.bytes();
        self.doubts.push_back(doubt);
        while self.doubts.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES {
            let Some(oldest) = self.doubts.pop_front() else { return };
            self.bytes -= oldest.bytes();
            self.before += 1;
        }
    }
}

impl Doubts {
    /// Adds a write in doubt to the list and returns its name; for `None`, all zero.
    pub(crate) fn name(&self, doubt: Option<Doubt>) -> kvc_doubt {
        let Some(doubt) = doubt else { return kvc_doubt::default() };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(doubt);
        kvc_doubt { opaque: [kept.before + kept.doubts.len() as u64, self.book()] }
    }

    /// Releases the memory in the child of a fork. If another thread of the parent was changing the list at the moment
    /// of the fork, the memory leaks.
    pub(crate) fn close_inherited(self) {
        if matches!(self.kept.try_lock(), Err(TryLockError::WouldBlock)) {
            std::mem::forget(self);
        }
    }

    /// Returns an id of this list, which distinguishes the names of different handles.
    fn book(&self) -> u64 {
        Arc::as_ptr(&self.kept) as u64
    }

    pub(crate) fn find(&self, name: kvc_doubt) -> Result<Doubt, Failure> {
        let [number, book] = name.opaque;
        let words = match (number, book == self.book()) {
            (0, _) => {
                "kvc_resolve: the doubt names no write: the session of the write has expired, or no write \
                 was in doubt"
            }
            (_, false) => "kvc_resolve: the doubt belongs to another handle",
            _ => {
                let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                let at =
                    number.checked_sub(kept.before + 1).and_then(|at| usize::try_from(at).ok());
                if let Some(doubt) = at.and_then(|at| kept.doubts.get(at)) {
                    return Ok(doubt.clone());
                }
                "kvc_resolve: the doubt is too old: 65,536 writes, or 16 MiB in total, have ended in doubt since"
            }
        };
        Err(Failure::new(KVC_INVALID, words))
    }
}

/// Settles a write that ended with KVC_IN_DOUBT in a call, a batch or a queue of this handle. KVC_OK: the write was
/// executed; *result is set to the version and the copies of its own response. KVC_NOT_DONE: the write was not executed
/// and never will be. For a conditional write or a delete, the status may also be the write's own KVC_CONFLICT or
/// KVC_NOT_FOUND. These results are the same for every call. KVC_IN_DOUBT: the outcome stays unknown. Usually the
/// servers have expired the write's session, and the write will not be executed any more. Only if another process uses
/// the client id of the handle (see KVC_SHARED_IDENTITY), the write may even be executed later. KVC_INVALID: the doubt
/// names no write of this handle. After any other status, such as KVC_TIMEOUT or KVC_UNAVAILABLE, the write is not
/// settled; call again later.
///
/// If the program does not settle a write, the library settles it before it sends the next operation on the same key.
/// So, with the same exception, an earlier write in doubt never takes effect after the response to a later operation.
/// `timeout_ms`: as in kvc_op_options. `result` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_resolve(
    client: *mut kvc_client,
    doubt: kvc_doubt,
    timeout_ms: u32,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle.
        let handle = unsafe { open_here(client) }?;
        let deadline = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into()));
        let options = OpOptions { deadline, ..OpOptions::default() };
        let doubt = handle.doubts.find(doubt)?;
        let settled = handle.shared.resolve(&doubt, &options);
        // SAFETY: the caller passes NULL or room for a result.
        unsafe { tell(handle, result, settled.map_err(Failure::from)) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_doubt_and_one_of_another_handle_are_rejected() {
        let (own, other) = (Doubts::default(), Doubts::default());
        assert_eq!(own.name(None), kvc_doubt::default());
        let words = |name| own.find(name).unwrap_err().words;
        assert!(words(kvc_doubt::default()).contains("names no write"));
        assert!(words(kvc_doubt { opaque: [1, other.book()] }).contains("another handle"));
        assert!(words(kvc_doubt { opaque: [1, own.book()] }).contains("65,536"));
    }
}
