//! Release of handles and queues that the child of a fork has inherited.

use std::ffi::c_int;

use crate::cq::kvc_cq;
use crate::error::{Failure, KVC_OK};
use crate::handle::kvc_client;
use crate::panic::guard;

/// Releases, in the child of a fork, the descriptors and the memory of a handle that its parent opened. NULL is
/// allowed. The parent's handle and its connections are not affected. In the process that opened the handle, the
/// function returns KVC_INVALID and does nothing; use kvc_close() in that process. If another thread of the parent was
/// in a call at the moment of the fork, part of the memory may leak. Descriptors may leak too if that thread was
/// opening or closing one. Queues are released separately with kvc_cq_free_forked(), before or after the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_close_forked(client: *mut kvc_client) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a handle that this process has not released.
        let Some(inherited) = (unsafe { client.as_ref() }) else { return Ok(KVC_OK) };
        if inherited.process.is_current() {
            let words = "kvc_close_forked: this process has opened the handle; use kvc_close()";
            return Err(Failure::invalid(words));
        }
        // SAFETY: it came from Box::into_raw in kvc_open, and the caller releases this process's copy.
        let inherited = unsafe { *Box::from_raw(client) };
        inherited.close_inherited();
        Ok(KVC_OK)
    })
}

/// Releases, in the child of a fork, the descriptors and the memory of a queue that its parent opened. NULL is allowed.
/// The parent's queue is not affected. Values of completions that were not polled are freed too. In the process that
/// opened the queue, the function returns KVC_INVALID; use kvc_cq_free() in that process. If another thread of the
/// parent was in a call on the queue at the moment of the fork, the memory leaks. Descriptors may leak too if that
/// thread was opening or closing one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_free_forked(cq: *mut kvc_cq) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a queue that this process has not released.
        let Some(inherited) = (unsafe { cq.as_ref() }) else { return Ok(KVC_OK) };
        if inherited.is_of_this_process() {
            let words = "kvc_cq_free_forked: this process has opened the queue; use kvc_cq_free()";
            return Err(Failure::invalid(words));
        }
        // SAFETY: it came from Box::into_raw in kvc_cq_new, and the caller releases this process's copy.
        let inherited = unsafe { Box::from_raw(cq) };
        inherited.close_inherited();
        Ok(KVC_OK)
    })
}
