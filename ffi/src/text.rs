//! Keys and values that are texts, for the simplest programs.

use std::ffi::{CStr, c_char, c_int};

use kv_client::Op;

use crate::buffer::{kvc_slice, own};
use crate::error::{Failure, KVC_OK};
use crate::handle::{Owned, call, get, kvc_client};
use crate::panic::guard;

/// Sets a key to a value; both are texts that end with NUL, which is not stored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put_str(
    client: *mut kvc_client,
    key: *const c_char,
    value: *const c_char,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or texts that end with NUL.
        let (key, value) = unsafe { (text(key, "key")?, text(value, "value")?.bytes("value")?) };
        // SAFETY: the caller passes NULL or an open handle. Nothing of the value is looked at once the call has returned.
        unsafe { call(client, key, std::ptr::null(), |key| Op::put(key, value, true), |_| ()) }?;
        Ok(KVC_OK)
    })
}

/// Reads the value of a key. On success *value is a text that ends with NUL and belongs to the caller,
/// who frees it with kvc_free(). If the value was not stored as a text, it may have NUL bytes inside.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_str(
    client: *mut kvc_client,
    key: *const c_char,
    value: *mut *mut c_char,
) -> c_int {
    guard(|| {
        if value.is_null() {
            return Err(Failure::invalid("kvc_get_str: value is NULL"));
        }
        // SAFETY: the caller passes NULL or a text that ends with NUL, and NULL or an open handle.
        let owned = unsafe {
            let key = text(key, "key")?;
            call(client, key, std::ptr::null(), get, |answered| {
                own(answered.value, answered.version.0).map(Owned)
            })
        }??;
        // SAFETY: not NULL; the caller lets us write a pointer there.
        unsafe { value.write(owned.0.data.cast()) };
        Ok(KVC_OK)
    })
}

/// # Safety
/// `from` is NULL or ends with NUL, and does not change during the call.
unsafe fn text(from: *const c_char, what: &str) -> Result<kvc_slice, Failure> {
    if from.is_null() {
        return Err(Failure::invalid(format!("{what} is NULL")));
    }
    // SAFETY: not NULL, and the caller's promise.
    let len = unsafe { CStr::from_ptr(from) }.count_bytes();
    Ok(kvc_slice { data: from.cast(), len })
}
