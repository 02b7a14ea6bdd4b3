//! The handle and the calls on it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use kv_client::{
    Client, Endpoints, Interrupt, Op, OpOptions, Options, Reply, SharedClient, Written,
    is_in_callback,
};

use crate::buffer::{kvc_buf, kvc_slice, value_of};
use crate::doubt::{Doubts, kvc_doubt};
use crate::error::{Failure, KVC_CONFLICT, KVC_FORKED, KVC_IN_DOUBT, KVC_OK};
use crate::fork::Process;
use crate::options::{kvc_op_options, kvc_options, read_op_options, read_options};
use crate::panic::guard;
use crate::target::Target;

/// A client of one cluster; opaque. Many threads may use it at once. Open one handle for the whole program, not one for
/// each call.
#[derive(Debug)]
pub struct kvc_client {
    /// The process that opened the handle. After a fork, the child shares the descriptors with its parent and must not
    /// use them.
    pub(crate) process: Process,
    pub(crate) shared: SharedClient,
    /// The list of writes in doubt, which the queues share.
    pub(crate) doubts: Doubts,
    /// The resolved endpoints, for the clients of the queues.
    endpoints: Endpoints,
    options: Options,
    /// The interrupt of all clients of the handle; `options` has a clone.
    pub(crate) interrupt: Interrupt,
}

impl kvc_client {
    /// Returns whether a log or event function of the program is set.
    pub(crate) fn calls_back(&self) -> bool {
        self.options.log.is_set() || self.options.events.is_set()
    }

    /// Releases this process's copy in the child of a fork.
    pub(crate) fn close_inherited(self) {
        let kvc_client { shared, doubts, interrupt, .. } = self;
        shared.close_inherited();
        doubts.close_inherited();
        // SAFETY: no call of this process on the handle or its queues uses the interrupt any more.
        unsafe { interrupt.close_inherited() };
    }

    /// Opens one more client of the same cluster, with its own connections.
    pub(crate) fn open(&self, window: usize) -> Result<Client, Failure> {
        let options = Options { window, ..self.options.clone() };
        Ok(Client::with_endpoints(&self.endpoints, options)?)
    }
}

/// A pointer that the program has passed to a call. Any thread that receives responses may use it until that call
/// returns.
pub(crate) struct Pointer<T>(*mut T);

impl<T> Clone for Pointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Pointer<T> {}

// SAFETY: the program allows the library to write to the memory during the call, on any thread.
unsafe impl<T> Send for Pointer<T> {}

impl<T> Pointer<T> {
    pub(crate) fn new(pointer: *mut T) -> Pointer<T> {
        Pointer(pointer)
    }

    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

/// The minimum length of a value that is sent from the program's memory. It is faster to copy a shorter value and to
/// send it in one piece with its key.
const KEPT_BYTES: usize = 4 << 10;

/// The result of a write (after KVC_OK, KVC_CONFLICT and KVC_IN_DOUBT) or of a read into the program's memory (after
/// KVC_OK). Pass NULL if it is not needed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_result {
    /// The current version of the entry, for if_version. For a delete, the sequence number of the delete itself. Zero
    /// after KVC_IN_DOUBT, and after KVC_CONFLICT if there is no entry.
    pub version: u64,
    /// The number of servers that hold the write: 2, or 1 while the group has no second replica. Zero for a read, and
    /// after KVC_CONFLICT and KVC_IN_DOUBT.
    pub copies: u32,
    /// Zero.
    pub reserved: u32,
    /// The name of the write after KVC_IN_DOUBT, for kvc_resolve(). All zero after any other status, and if the servers
    /// have expired the session of the write.
    pub doubt: kvc_doubt,
}

/// Opens a handle for the cluster whose coordinator is at `endpoints` ("host:port[,host:port...]"). An endpoint may
/// also be the clients port of a server, which provides the map when the coordinator is unavailable. Each dead endpoint
/// delays a call by at most 250 ms: after that time of silence, the next endpoint is tried as well. Only this function
/// resolves names; the system's resolver has no deadline. A name that cannot be resolved is skipped with a warning in
/// the log. If no name can be resolved, the status is KVC_UNAVAILABLE. The first call on the handle opens the first
/// connection. `options` may be NULL. On success, *out is a handle that the caller closes with kvc_close().
///
/// One of the endpoints may be "unix:DIR", a directory with the Unix-domain sockets of servers on this host (coord --unix).
/// It stands for the servers that have a socket in it now, in place of a coordinator. Each server is then reached by its
/// socket in DIR, or by TCP if no process listens on one there, because the server is on another host. A directory without
/// sockets is treated like a name that cannot be resolved.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_open(
    endpoints: *const c_char,
    options: *const kvc_options,
    out: *mut *mut kvc_client,
) -> c_int {
    guard(|| {
        if endpoints.is_null() || out.is_null() {
            return Err(Failure::invalid("kvc_open: endpoints or out is NULL"));
        }
        // SAFETY: the caller passes a NUL-terminated string.
        let endpoints = unsafe { CStr::from_ptr(endpoints) }
            .to_str()
            .map_err(|_| Failure::invalid("kvc_open: endpoints is not UTF-8"))?;
        // SAFETY: the caller passes NULL or a struct of the size that it states.
        let (mut options, connections) = unsafe { read_options(options) }?;
        let interrupt = Interrupt::new()?;
        options.interrupt = Some(interrupt.clone());
        let endpoints = Endpoints::resolve(endpoints, &options.log)?;
        let shared = SharedClient::with_endpoints(&endpoints, &options, connections)?;
        let process = Process::current();
        let doubts = Doubts::default();
        let handle =
            Box::new(kvc_client { process, shared, doubts, endpoints, options, interrupt });
        // SAFETY: not NULL; the caller passes a pointer that is valid for writing a pointer.
        unsafe { out.write(Box::into_raw(handle)) };
        Ok(KVC_OK)
    })
}

/// Closes a handle and its connections. NULL is allowed. No other call on the handle may be in progress or follow. In
/// the child of a fork, an inherited handle is not closed (KVC_FORKED): see kvc_close_forked().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_close(client: *mut kvc_client) -> c_int {
    guard(|| {
        if client.is_null() {
            return Ok(KVC_OK);
        }
        // SAFETY: the caller passes a handle that is not closed.
        unsafe { open_here(client) }?;
        refuse_callback()?;
        // SAFETY: it came from Box::into_raw in kvc_open, and the caller transfers it back.
        drop(unsafe { Box::from_raw(client) });
        Ok(KVC_OK)
    })
}

/// Sets a key (1 to 65,535 bytes) to a value (up to 16 MiB). `options` and `result` may be NULL. *result is written on
/// success, after KVC_CONFLICT and after KVC_IN_DOUBT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_put(
    client: *mut kvc_client,
    key: kvc_slice,
    value: kvc_slice,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: the caller guarantees the requirements of `call` and `bytes`.
        let written = unsafe {
            // The value is not accessed after the call has returned.
            let value: &'static [u8] = value.bytes("value")?;
            call(
                client,
                key,
                options,
                |key| Op::put(key, value, value.len() >= KEPT_BYTES),
                written,
            )
        };
        // SAFETY: the caller passes NULL or room for a result.
        unsafe { tell(open_here(client)?, result, written) }
    })
}

/// Reads a key. `options` may be NULL. On success, *out owns the value; free it with kvc_buf_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    out: *mut kvc_buf,
) -> c_int {
    guard(|| {
        if out.is_null() {
            return Err(Failure::invalid("kvc_get: out is NULL"));
        }
        // SAFETY: the caller guarantees the requirements of `call`.
        let owned = unsafe {
            call(client, key, options, get, |responded| value_of(responded).map(Owned))
        }??;
        // SAFETY: not NULL; the caller passes room for a buffer.
        unsafe { out.write(owned.0) };
        Ok(KVC_OK)
    })
}

/// Reads a value into the program's own memory, `cap` bytes at `dst` (which may be NULL if `cap` is 0), and sets *len
/// to the length of the value. If the value is longer than `cap`, returns KVC_TOO_BIG: the value is not fetched, and
/// *len is the required size. A long value is received directly into dst, so the content of dst after a failure is
/// unspecified. `options` and `result` may be NULL. On success, result->version is the version of the entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_get_into(
    client: *mut kvc_client,
    key: kvc_slice,
    dst: *mut c_void,
    cap: usize,
    len: *mut usize,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: `dst` has room for `cap` bytes, and the caller guarantees the other requirements.
        unsafe { read_into(client, key, Target::all(dst, cap), len, options, result) }
    })
}

/// Reads a part of a value into `dst` (which may be NULL if `cap` is 0): up to `cap` bytes, starting at byte `offset`.
/// *len is set to the length of the whole value. The number of bytes read is the smaller of `cap` and *len - `offset`,
/// or zero if `offset` is beyond the end. Only this part is fetched. Parts with the same version belong to the same
/// value. The content of dst after a failure is unspecified. `options` and `result` may be NULL. On success,
/// result->version is the version of the entry.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // The C interface needs all of them.
pub unsafe extern "C" fn kvc_get_range(
    client: *mut kvc_client,
    key: kvc_slice,
    offset: usize,
    dst: *mut c_void,
    cap: usize,
    len: *mut usize,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: `dst` has room for `cap` bytes, and the caller guarantees the other requirements.
        unsafe { read_into(client, key, Target::range(dst, cap, offset), len, options, result) }
    })
}

/// Sets *len to the length of a value, without fetching the value. `options` and `result` may be NULL. On success,
/// result->version is the version of the entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_length(
    client: *mut kvc_client,
    key: kvc_slice,
    len: *mut usize,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    // SAFETY: passed on.
    unsafe { kvc_get_range(client, key, 0, ptr::null_mut(), 0, len, options, result) }
}

/// Removes a key. Returns KVC_NOT_FOUND if the key does not exist. `options` and `result` may be NULL. *result is
/// written on success, after KVC_CONFLICT and after KVC_IN_DOUBT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_delete(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> c_int {
    guard(|| {
        // SAFETY: the caller guarantees the requirements of `call`.
        let written = unsafe { call(client, key, options, |key| Op::Delete { key }, written) };
        // SAFETY: the caller passes NULL or room for a result.
        unsafe { tell(open_here(client)?, result, written) }
    })
}

/// Reads a value into memory of the program, and reports the length of the whole value and its version.
///
/// # Safety
/// The requirements of [`call`]. The memory of `target` is valid for writes; `len` and `result` are NULL or valid for
/// writes.
unsafe fn read_into(
    client: *mut kvc_client,
    key: kvc_slice,
    target: Target,
    len: *mut usize,
    options: *const kvc_op_options,
    result: *mut kvc_result,
) -> Result<c_int, Failure> {
    if len.is_null() || !target.has_memory() {
        return Err(Failure::invalid("len is NULL, or dst is NULL and cap is not 0"));
    }
    let take = move |responded: Reply<'_>| {
        // SAFETY: the caller guarantees it.
        unsafe { target.take(responded) };
        (responded.length, responded.version)
    };
    // SAFETY: passed on.
    let (bytes, version) =
        unsafe { call(client, key, options, |key| target.op(key, false), take) }?;
    // SAFETY: not NULL; the caller passes a pointer that is valid for writing a length.
    unsafe { len.write(bytes) };
    match target.too_small(bytes) {
        Some(too_small) => Err(too_small),
        // SAFETY: passed on.
        None => unsafe { tell(open_here(client)?, result, Ok(Written { version, copies: 0 })) },
    }
}

/// A buffer that is passed to the thread that requested it.
pub(crate) struct Owned(pub(crate) kvc_buf);

// SAFETY: it owns its bytes.
unsafe impl Send for Owned {}

pub(crate) fn get(key: &[u8]) -> Op<'_> {
    Op::Get { key }
}

pub(crate) fn written(responded: Reply<'_>) -> Written {
    Written { version: responded.version, copies: responded.copies }
}

/// Checks the common arguments of all calls and runs one operation.
///
/// # Safety
/// `client` is NULL or an open handle; `key` is readable; `options` is NULL or a struct of the size that it states.
pub(crate) unsafe fn call<T: Send>(
    client: *mut kvc_client,
    key: kvc_slice,
    options: *const kvc_op_options,
    op: impl FnOnce(&[u8]) -> Op<'_>,
    take: impl FnOnce(Reply<'_>) -> T + Send,
) -> Result<T, Failure> {
    // SAFETY: passed on.
    let (handle, key, options): (_, _, OpOptions) =
        unsafe { (open_here(client)?, key.bytes("key")?, read_op_options(options)?) };
    Ok(handle.shared.call(op(key), &options, take)?)
}

/// Returns the handle. Fails if it is NULL (KVC_INVALID), or if another process opened it (KVC_FORKED).
///
/// # Safety
/// `client` is NULL or an open handle.
pub(crate) unsafe fn open_here<'a>(client: *const kvc_client) -> Result<&'a kvc_client, Failure> {
    // SAFETY: passed on.
    let handle =
        unsafe { client.as_ref() }.ok_or_else(|| Failure::invalid("the client handle is NULL"))?;
    if !handle.process.is_current() {
        let words = "this handle was opened before the fork; open another in this process";
        return Err(Failure::new(KVC_FORKED, words));
    }
    Ok(handle)
}

/// Returns the handle like [`open_here`], but also rejects a call from within a log or event function. A function that
/// writes to several of the program's variables checks this before it writes the first.
///
/// # Safety
/// The requirements of [`open_here`].
pub(crate) unsafe fn open_to_call<'a>(
    client: *const kvc_client,
) -> Result<&'a kvc_client, Failure> {
    // SAFETY: passed on.
    let handle = unsafe { open_here(client) }?;
    if handle.calls_back() {
        refuse_callback()?;
    }
    Ok(handle)
}

/// Rejects a call from within a log or event function (KVC_INVALID).
pub(crate) fn refuse_callback() -> Result<(), Failure> {
    if is_in_callback() { Err(kv_client::Error::WithinCallback.into()) } else { Ok(()) }
}

/// Writes the result of a call unless `result` is NULL: after a success, a conflict, and for a write in doubt. Returns
/// `KVC_OK` or the failure.
///
/// # Safety
/// `result` is NULL or may be written to.
pub(crate) unsafe fn tell(
    handle: &kvc_client,
    result: *mut kvc_result,
    written: Result<Written, Failure>,
) -> Result<c_int, Failure> {
    if result.is_null() {
        return written.map(|_| KVC_OK);
    }
    let nothing = kvc_result { version: 0, copies: 0, reserved: 0, doubt: kvc_doubt::default() };
    let told = match &written {
        Ok(written) => {
            let (version, copies) = (written.version.0, written.copies.into());
            Some(kvc_result { version, copies, ..nothing })
        }
        Err(failure) if failure.status == KVC_CONFLICT => {
            Some(kvc_result { version: failure.version, ..nothing })
        }
        Err(failure) if failure.status == KVC_IN_DOUBT => {
            Some(kvc_result { doubt: handle.doubts.name(failure.doubt.clone()), ..nothing })
        }
        Err(_) => None,
    };
    if let Some(told) = told {
        // SAFETY: not NULL, and the caller guarantees the rest.
        unsafe { result.write(told) };
    }
    written.map(|_| KVC_OK)
}
