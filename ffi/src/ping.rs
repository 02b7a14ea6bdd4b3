//! Pings, which measure the round trip to a server.

use std::ffi::c_int;
use std::time::Duration;

use kv_client::OpOptions;

use crate::batch::Worst;
use crate::buffer::kvc_slice;
use crate::error::{Failure, KVC_OK};
use crate::handle::{kvc_client, open_here};
use crate::options::millis;
use crate::panic::guard;

/// Sends a no-op request to the server that now serves a key, and waits for the response. With an empty key (len 0), a
/// first request fetches the map; then one goes to the current server of every group of keys, in parallel. A cluster
/// has as many groups as servers. The function opens missing connections, so a program can use it to connect before its
/// first call.
///
/// `timeout_ms`: as in kvc_op_options. On success, *nanoseconds (unless `nanoseconds` is NULL) is set to the time of
/// the slowest response, including connecting and retries, but without the request that fetches the map for an empty
/// key. To measure only a round trip, call the function twice. Returns KVC_OK if all servers responded, else the most
/// serious status, in the order of kvc_mput().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_ping(
    client: *mut kvc_client,
    key: kvc_slice,
    timeout_ms: u32,
    nanoseconds: *mut u64,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle, and a key that is readable.
        let (handle, key) = unsafe { (open_here(client)?, key.bytes("key")?) };
        let options = OpOptions { deadline: millis(timeout_ms), ..OpOptions::default() };
        let took = match key {
            [] => {
                let (mut slowest, mut asked, mut worst) = (Duration::ZERO, 0, Worst::default());
                handle.shared.ping_all(&options, &mut |part, result| {
                    asked += 1;
                    match result {
                        Ok(took) => slowest = slowest.max(took),
                        Err(error) => worst.note(part, Failure::from(error)),
                    }
                })?;
                worst.tell(asked)?;
                slowest
            }
            key => handle.shared.ping(key, &options)?,
        };
        if !nanoseconds.is_null() {
            let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            // SAFETY: not NULL; the caller passes a pointer that is valid for writing a number.
            unsafe { nanoseconds.write(took) };
        }
        Ok(KVC_OK)
    })
}
