//! Ends before the deadline: of all calls by an interrupt, of one operation of a queue by its tag.

use std::ffi::c_int;

use crate::cq::{kvc_cq, with_queue};
use crate::error::{Failure, KVC_INTERRUPTED, KVC_OK};
use crate::handle::{kvc_client, open_here};
use crate::panic::guard;

/// Wakes all threads that wait in calls on the handle or in kvc_cq_poll() on its queues, for shutdown. Any thread may
/// call it, also within a function for the log or for events, but not a signal handler. It does not wait for the calls
/// to end. Until kvc_resume():
///
/// - Calls under way end KVC_INTERRUPTED. A write that was sent ends KVC_IN_DOUBT instead, with its doubt: it may have
///   been done. A response that is there already counts. In a batch each key ends so.
/// - Calls that begin end KVC_INTERRUPTED, and do nothing. So does kvc_cq_submit().
/// - kvc_cq_poll() does not wait. It hands out the completions that are there, or returns KVC_INTERRUPTED. What was
///   submitted stays in the queue: kvc_cq_cancel() ends it, and kvc_cq_free() gives it up. kvc_cq_fd() stays readable.
///   A queue that outlives its handle stays interrupted.
///
/// To shut down: interrupt, join the threads, free the queues, close the handle. Calls that ask nothing of the servers
/// (kvc_statistics(), kvc_cq_new(), kvc_cq_cancel()) work as before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_interrupt(client: *mut kvc_client) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle.
        unsafe { open_here(client) }?.interrupt.interrupt()?;
        Ok(KVC_OK)
    })
}

/// Ends what kvc_interrupt() began: calls may begin again, and polls wait. A call that has not yet ended by the
/// interrupt may go on to its own end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_resume(client: *mut kvc_client) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle.
        unsafe { open_here(client) }?.interrupt.resume()?;
        Ok(KVC_OK)
    })
}

/// The end of a poll or a submission on a queue that was interrupted.
pub(crate) fn interrupted(what: &str) -> Failure {
    let words =
        format!("{what}: interrupted by the program (kvc_interrupt); kvc_resume() ends that");
    Failure::new(KVC_INTERRUPTED, words)
}

/// Ends the operations of a queue that were submitted under `tag`, before their deadlines. Each completion comes from
/// the next kvc_cq_poll(): KVC_CANCELLED, or KVC_IN_DOUBT for a write that was sent, or the real end of an operation
/// that had ended. Memory of the program at dst, and a value that it keeps (KVC_KEEP), is its own again once the
/// completion was polled. KVC_NOT_FOUND: the queue has no operation under this tag.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_cancel(cq: *mut kvc_cq, tag: u64) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a queue that is not freed.
        unsafe { with_queue(cq, |queue, _| queue.cancel(tag)) }?;
        Ok(KVC_OK)
    })
}
