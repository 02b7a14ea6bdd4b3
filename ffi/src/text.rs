//! Keys and values as C strings, for simple programs.

use std::ffi::{CStr, c_char, c_int};

use kv_client::Op;

use crate::buffer::{kvc_slice, own};
use crate::error::{Failure, KVC_OK};
use crate::handle::{Owned, call, get, kvc_client};
use crate::panic::guard;

/// Sets a key to a value. Both are NUL-terminated strings; the NUL is not stored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put_str(
    client: *mut kvc_client,
    key: *const c_char,
    value: *const c_char,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or NUL-terminated strings.
        let (key, value) = unsafe { (text(key, "key")?, text(value, "value")?.bytes("value")?) };
        // SAFETY: the caller passes NULL or an open handle. The value is not accessed after the call has returned.
        unsafe { call(client, key, std::ptr::null(), |key| Op::put(key, value, true), |_| ()) }?;
        Ok(KVC_OK)
    })
}

/// Reads the value of a key. On success, *value is a NUL-terminated string that the caller owns and frees with
/// kvc_free(). A value that was not stored as a string may contain NUL bytes.
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
        // SAFETY: the caller passes NULL or a NUL-terminated string, and NULL or an open handle.
        let owned = unsafe {
            let key = text(key, "key")?;
            call(client, key, std::ptr::null(), get, |responded| {
                own(responded.value, responded.version.0).map(Owned)
            })
        }??;
        // SAFETY: not NULL; the caller passes a pointer that is valid for writing a pointer.
        unsafe { value.write(owned.0.data.cast()) };
        Ok(KVC_OK)
    })
}

/// # Safety
/// `from` is NULL or NUL-terminated, and does not change during the call.
unsafe fn text(from: *const c_char, what: &str) -> Result<kvc_slice, Failure> {
    if from.is_null() {
        return Err(Failure::invalid(format!("{what} is NULL")));
    }
    // SAFETY: not NULL, and the caller guarantees the rest.
    let len = unsafe { CStr::from_ptr(from) }.count_bytes();
    Ok(kvc_slice { data: from.cast(), len })
}
