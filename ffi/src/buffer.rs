//! Bytes that cross the C boundary: borrowed slices as arguments, owned buffers as results.

use std::ffi::c_void;
use std::{ptr, slice};

use kv_client::Reply;

use crate::error::{Failure, KVC_NO_MEMORY};

/// Borrowed bytes; data may be NULL if len is 0. This struct never gets another field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_slice {
    /// The first byte.
    pub data: *const c_void,
    /// The number of bytes.
    pub len: usize,
}

/// Bytes that the caller owns and frees with kvc_buf_free(). This struct never gets another field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_buf {
    /// The first byte. A NUL byte, which is not counted in len, follows the value. So data is never NULL after a
    /// successful read that returns a kvc_buf, even if the value is empty.
    pub data: *mut c_void,
    /// The number of bytes.
    pub len: usize,
    /// The version of the entry.
    pub version: u64,
}

impl kvc_buf {
    /// A buffer without a value; data is NULL.
    pub(crate) const EMPTY: kvc_buf = kvc_buf { data: ptr::null_mut(), len: 0, version: 0 };
}

/// Frees the bytes of a buffer and empties it. NULL and a buffer that was already freed are allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_buf_free(buf: *mut kvc_buf) {
    // SAFETY: the caller passes NULL or a buffer that the library has filled or emptied.
    let Some(buf) = (unsafe { buf.as_mut() }) else { return };
    // SAFETY: data is NULL or came from malloc, in `own` or in the client library.
    unsafe { libc::free(buf.data) };
    *buf = kvc_buf::EMPTY;
}

/// Frees memory that this library allocated for the program: the string of kvc_get_str(), or the data of a kvc_buf.
/// NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_free(memory: *mut c_void) {
    // SAFETY: the caller passes NULL or memory that the library allocated by malloc.
    unsafe { libc::free(memory) }
}

/// Returns the value of a read as a buffer that the program owns: the memory into which it was received, or a copy.
pub(crate) fn value_of(responded: Reply<'_>) -> Result<kvc_buf, Failure> {
    let version = responded.version.0;
    match responded.take_memory() {
        Some(memory) => {
            let (data, len) = memory.into_raw();
            Ok(kvc_buf { data: data.as_ptr().cast(), len, version })
        }
        None => own(responded.value, version),
    }
}

/// Copies bytes and a final NUL into memory from `malloc`. Fails with KVC_NO_MEMORY if there is none.
pub(crate) fn own(bytes: &[u8], version: u64) -> Result<kvc_buf, Failure> {
    // SAFETY: the size is at least one byte.
    let data = unsafe { libc::malloc(bytes.len() + 1) };
    if data.is_null() {
        let words = format!("no memory for a value of {} bytes", bytes.len());
        return Err(Failure::new(KVC_NO_MEMORY, words));
    }
    // SAFETY: `data` has room for the bytes and a NUL, and does not overlap `bytes`.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast::<u8>(), bytes.len());
        data.cast::<u8>().add(bytes.len()).write(0);
    }
    Ok(kvc_buf { data, len: bytes.len(), version })
}

impl kvc_slice {
    /// Borrows the bytes.
    ///
    /// # Safety
    /// While the result lives, `len` bytes at `data` are readable and do not change.
    pub(crate) unsafe fn bytes<'a>(self, what: &str) -> Result<&'a [u8], Failure> {
        if self.len == 0 {
            return Ok(&[]);
        }
        if self.data.is_null() {
            return Err(Failure::invalid(format!("{what}.data is NULL, but len is {}", self.len)));
        }
        if isize::try_from(self.len).is_err() {
            return Err(Failure::invalid(format!("{what}.len is {}; too large", self.len)));
        }
        // SAFETY: not NULL, and within the size limit of an object; the caller guarantees the rest.
        Ok(unsafe { slice::from_raw_parts(self.data.cast::<u8>(), self.len) })
    }
}
