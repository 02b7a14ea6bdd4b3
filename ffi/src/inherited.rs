//! Handles and queues that the child of a fork has inherited, and gives back.

use std::ffi::c_int;

use crate::cq::kvc_cq;
use crate::error::{Failure, KVC_OK};
use crate::handle::kvc_client;
use crate::panic::guard;

/// Gives back, in the child of a fork, the descriptors and the memory of a handle that its parent had opened; NULL is
/// fine. The parent's handle and its connections go on as before. In the process that opened the handle it is
/// KVC_INVALID, and does nothing: kvc_close() is for that. If another thread of the parent was in the middle of a call
/// at the moment of the fork, a part of the memory may stay, and a descriptor that it was opening. Queues have their own: kvc_cq_free_forked(), before or
/// after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_close_forked(client: *mut kvc_client) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a handle that this process has not given back.
        let Some(inherited) = (unsafe { client.as_ref() }) else { return Ok(KVC_OK) };
        if inherited.process.is_current() {
            let words = "kvc_close_forked: this process has opened the handle; use kvc_close()";
            return Err(Failure::invalid(words));
        }
        // SAFETY: it came from Box::into_raw in kvc_open, and the caller gives this process's copy back.
        let inherited = unsafe { *Box::from_raw(client) };
        inherited.close_inherited();
        Ok(KVC_OK)
    })
}

/// Gives back, in the child of a fork, the descriptors and the memory of a queue that its parent had opened; NULL is
/// fine. The parent's queue goes on as before. Values of completions that were not polled are freed with it. In the
/// process that opened the queue it is KVC_INVALID: kvc_cq_free() is for that. If another thread of the parent was in
/// a call on the queue at the moment of the fork, the memory stays, and a descriptor that it was opening; all others are
/// given back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_free_forked(cq: *mut kvc_cq) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a queue that this process has not given back.
        let Some(inherited) = (unsafe { cq.as_ref() }) else { return Ok(KVC_OK) };
        if inherited.is_of_this_process() {
            let words = "kvc_cq_free_forked: this process has opened the queue; use kvc_cq_free()";
            return Err(Failure::invalid(words));
        }
        // SAFETY: it came from Box::into_raw in kvc_cq_new, and the caller gives this process's copy back.
        let inherited = unsafe { Box::from_raw(cq) };
        inherited.close_inherited();
        Ok(KVC_OK)
    })
}
