//! Early ends of operations. An interrupt ends all calls on a handle; a cancellation ends the operations of a queue
//! with one tag.

use std::ffi::c_int;

use crate::cq::{kvc_cq, with_queue};
use crate::error::{Failure, KVC_INTERRUPTED, KVC_OK};
use crate::handle::{kvc_client, open_here};
use crate::panic::guard;

/// Ends the waits of all threads in calls on the handle and in kvc_cq_poll() on its queues, for shutdown. Any thread
/// may call this function, even within a log or event function, but not in a signal handler. The function does not wait
/// for the calls to end. Until kvc_resume(), it has these effects:
///
/// - Calls in progress return KVC_INTERRUPTED. For a write that was sent, and so may have been executed, they return
///   KVC_IN_DOUBT with its doubt. If the response has already arrived, they return its result. In a batch this applies
///   to each key.
/// - New calls return KVC_INTERRUPTED and have no effect. So does kvc_cq_submit().
/// - kvc_cq_poll() does not wait. It returns the available completions, or KVC_INTERRUPTED if there is none. Submitted
///   operations stay in the queue: kvc_cq_cancel() ends them, and kvc_cq_free() abandons them. kvc_cq_fd() stays
///   readable. A queue that outlives its handle stays interrupted.
///
/// To shut down: interrupt, join the threads, free the queues, close the handle. Calls that send no request to servers
/// (kvc_statistics(), kvc_cq_new(), kvc_cq_cancel()) work as usual.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_interrupt(client: *mut kvc_client) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle.
        unsafe { open_here(client) }?.interrupt.interrupt()?;
        Ok(KVC_OK)
    })
}

/// Ends the effect of kvc_interrupt(): new calls are accepted, and polls wait. A call that the interrupt has not ended
/// yet may run to its normal end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_resume(client: *mut kvc_client) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle.
        unsafe { open_here(client) }?.interrupt.resume()?;
        Ok(KVC_OK)
    })
}

/// Returns the failure of a poll or a submission on an interrupted queue.
pub(crate) fn interrupted(what: &str) -> Failure {
    let words =
        format!("{what}: interrupted by the program (kvc_interrupt); call kvc_resume() first");
    Failure::new(KVC_INTERRUPTED, words)
}

/// Ends the operations of a queue that were submitted with `tag`, before their deadlines. kvc_cq_poll() then returns
/// the completion of each: KVC_CANCELLED, KVC_IN_DOUBT for a write that was sent, or the real result of an operation
/// that had already ended. After the completion has been polled, the library no longer uses the memory at dst or a kept
/// value (KVC_KEEP). KVC_NOT_FOUND: the queue has no operation with this tag.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_cancel(cq: *mut kvc_cq, tag: u64) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a queue that is not freed.
        unsafe { with_queue(cq, |queue, _| queue.cancel(tag)) }?;
        Ok(KVC_OK)
    })
}
