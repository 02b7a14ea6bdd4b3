//! The counters of a handle and of a queue.

use std::ffi::{c_char, c_int};
use std::ptr;
use std::time::Instant;

use kv_client::{ServerStatistics, Statistics};

use crate::cq::{kvc_cq, with_queue};
use crate::error::{Failure, KVC_OK};
use crate::handle::{kvc_client, open_here};
use crate::options::MAX_STRUCT_BYTES;
use crate::panic::guard;

/// heard_ms: nothing was ever received.
pub const KVC_NEVER: u64 = 0xffff_ffff_ffff_ffff;

/// The size of an address as text, with its NUL. The longest address is IPv6 with a scope and a port.
const ADDRESS_BYTES: usize = 64; // The struct repeats the number, because the header would not show the constant.

/// The counters of a handle or of a queue since it was opened. Values described as "current" may decrease; all others
/// only grow. Set size to sizeof(kvc_counters); the library writes as many of the other fields as fit into that size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_counters {
    /// sizeof(kvc_counters)
    pub size: u32,
    /// The number of servers in the map; zero before the first map.
    pub servers: u32,
    /// Operations submitted by the program; each key of a batch counts.
    pub operations: u64,
    /// Current number of operations that have not ended.
    pub in_flight: u64,
    /// Current bytes of keys and values of operations in flight.
    pub bytes_in_flight: u64,
    /// Operations that ended with KVC_TIMEOUT, KVC_UNAVAILABLE or KVC_BUSY.
    pub unserved: u64,
    /// Writes that ended with KVC_IN_DOUBT.
    pub in_doubt: u64,
    /// Current number of writes in doubt that are not settled.
    pub unsettled: u64,
    /// Submitted operations that ended with KVC_INTERRUPTED or KVC_CANCELLED.
    pub given_up: u64,
    /// Retries of operations.
    pub retries: u64,
    /// Requests to servers; a retry adds another request.
    pub requests: u64,
    /// Responses to requests.
    pub responses: u64,
    /// Bytes sent, including requests for the map.
    pub bytes_sent: u64,
    /// Bytes received, including maps.
    pub bytes_received: u64,
    /// Connections to servers that were opened.
    pub connections_opened: u64,
    /// Connections to servers that were lost, or could not be opened.
    pub connections_lost: u64,
    /// Current number of open connections to servers.
    pub connections_open: u64,
    /// Maps received.
    pub maps: u64,
    /// The revision of the newest map; zero before the first.
    pub map_revision: u64,
    /// Sessions that replaced an earlier one, which had expired or whose client id another process uses.
    pub sessions_begun: u64,
    /// Milliseconds since bytes last arrived from any server or coordinator, or KVC_NEVER.
    pub heard_ms: u64,
}

/// The counters of one server, for a handle or a queue. A restart of the server does not reset them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_server_counters {
    /// sizeof(kvc_server_counters)
    pub size: u32,
    /// The number of the server in the ring.
    pub server: u32,
    /// 1 if the server is up according to the newest map, else 0.
    pub is_up: u32,
    /// Zero.
    pub reserved: u32,
    /// Retries of operations that were routed to this server.
    pub retries: u64,
    /// See the field in kvc_counters.
    pub requests: u64,
    /// See the field in kvc_counters.
    pub responses: u64,
    /// Current number of requests without a response, including those whose operations have ended.
    pub outstanding: u64,
    /// See the field in kvc_counters; without requests for the map.
    pub bytes_sent: u64,
    /// See the field in kvc_counters; without maps.
    pub bytes_received: u64,
    /// See the field in kvc_counters.
    pub connections_opened: u64,
    /// See the field in kvc_counters.
    pub connections_lost: u64,
    /// See the field in kvc_counters.
    pub connections_open: u64,
    /// Milliseconds since bytes last arrived over a connection to the server, or KVC_NEVER.
    pub heard_ms: u64,
    /// The address of the server's clients port, as "host:port"; "" while the map has no address of the server.
    pub address: [c_char; 64],
}

/// Writes the counters of a handle to *out, and the counters of up to `max` servers to `servers`, in the order of the
/// ring. `servers` may be NULL if `max` is 0. Set `out->size` first, and `servers[0].size`, which applies to all
/// elements. The call sets out->servers to the number of servers in the map, which may exceed `max`. The call sends no
/// request and does not wait for other calls. Queues have their own counters: kvc_cq_statistics().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_statistics(
    client: *mut kvc_client,
    out: *mut kvc_counters,
    servers: *mut kvc_server_counters,
    max: usize,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or an open handle.
        let statistics = unsafe { open_here(client) }?.shared.statistics()?;
        // SAFETY: the caller passes NULL or structs of the sizes that they state.
        unsafe { tell(&statistics, out, servers, max) }
    })
}

/// Writes the counters of a queue, like kvc_statistics().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_cq_statistics(
    cq: *mut kvc_cq,
    out: *mut kvc_counters,
    servers: *mut kvc_server_counters,
    max: usize,
) -> c_int {
    guard(|| {
        // SAFETY: the caller passes NULL or a queue that is not freed.
        let statistics = unsafe { with_queue(cq, |queue, _| Ok(queue.statistics())) }?;
        // SAFETY: the caller passes NULL or structs of the sizes that they state.
        unsafe { tell(&statistics, out, servers, max) }
    })
}

/// Writes as many counters as fit into the structs of the program.
///
/// # Safety
/// `out` is NULL or as large as its size states. `servers` is NULL or has `max` elements, each as large as the first
/// states.
unsafe fn tell(
    statistics: &Statistics,
    out: *mut kvc_counters,
    servers: *mut kvc_server_counters,
    max: usize,
) -> Result<c_int, Failure> {
    let now = Instant::now();
    if out.is_null() || (servers.is_null() && max > 0) {
        return Err(Failure::invalid("out is NULL, or servers is NULL and max is not 0"));
    }
    // SAFETY: not NULL, and the caller guarantees the rest.
    let size = unsafe { size_at(out, "kvc_counters") }?;
    let stride = match max {
        0 => 0,
        // SAFETY: as above.
        _ => unsafe { size_at(servers, "kvc_server_counters") }?,
    };
    // SAFETY: as above.
    unsafe { write_sized(out.cast(), size, &counters(statistics, now)) };
    for (at, server) in statistics.servers.iter().enumerate().take(max) {
        // SAFETY: the caller has `max` of them, each as large as the first.
        unsafe {
            let place = servers.cast::<u8>().add(at * stride);
            write_sized(place, stride, &server_counters(server, now));
        }
    }
    Ok(KVC_OK)
}

fn counters(statistics: &Statistics, now: Instant) -> kvc_counters {
    kvc_counters {
        size: 0,
        servers: u32::try_from(statistics.servers.len()).unwrap_or(u32::MAX),
        operations: statistics.operations,
        in_flight: statistics.in_flight,
        bytes_in_flight: statistics.bytes_in_flight,
        unserved: statistics.unserved,
        in_doubt: statistics.in_doubt,
        unsettled: statistics.unsettled,
        given_up: statistics.given_up,
        retries: statistics.retries,
        requests: statistics.requests,
        responses: statistics.responses,
        bytes_sent: statistics.bytes_sent,
        bytes_received: statistics.bytes_received,
        connections_opened: statistics.connections_opened,
        connections_lost: statistics.connections_lost,
        connections_open: statistics.connections_open,
        maps: statistics.maps,
        map_revision: statistics.map_revision.map_or(0, |revision| revision.0),
        sessions_begun: statistics.sessions_begun_anew,
        heard_ms: millis_since(statistics.heard_at, now),
    }
}

fn server_counters(server: &ServerStatistics, now: Instant) -> kvc_server_counters {
    let mut address = [0; ADDRESS_BYTES];
    let text = server.address.map(|address| address.to_string()).unwrap_or_default();
    // The last byte stays NUL.
    for (to, from) in address[..ADDRESS_BYTES - 1].iter_mut().zip(text.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    kvc_server_counters {
        size: 0,
        server: server.server.0.into(),
        is_up: server.is_up.into(),
        reserved: 0,
        retries: server.retries,
        requests: server.requests,
        responses: server.responses,
        outstanding: server.outstanding,
        bytes_sent: server.bytes_sent,
        bytes_received: server.bytes_received,
        connections_opened: server.connections_opened,
        connections_lost: server.connections_lost,
        connections_open: server.connections_open,
        heard_ms: millis_since(server.heard_at, now),
        address,
    }
}

fn millis_since(heard_at: Option<Instant>, now: Instant) -> u64 {
    let Some(heard_at) = heard_at else { return KVC_NEVER };
    u64::try_from(now.saturating_duration_since(heard_at).as_millis()).unwrap_or(KVC_NEVER - 1)
}

/// Reads and checks the size that a struct of the program states.
///
/// # Safety
/// Its first four bytes are readable.
unsafe fn size_at<T>(from: *const T, what: &str) -> Result<usize, Failure> {
    // SAFETY: every such struct begins with a u32.
    let size = unsafe { from.cast::<u32>().read_unaligned() } as usize;
    // In every version, the size of these structs is a multiple of eight bytes.
    if !(size_of::<u64>()..=MAX_STRUCT_BYTES).contains(&size) || !size.is_multiple_of(8) {
        return Err(Failure::invalid(format!("{what}.size is {size}; set it to sizeof({what})")));
    }
    Ok(size)
}

/// Writes a struct that begins with its size into `size` bytes: as much of the struct as fits, then zeros.
///
/// # Safety
/// `to` is valid for writes of `size` bytes, at least four, and T consists of integers without padding.
unsafe fn write_sized<T: Copy>(to: *mut u8, size: usize, value: &T) {
    let known = size.min(size_of::<T>());
    // SAFETY: the caller guarantees `to`; `value` is not in memory of the program.
    unsafe {
        ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), to, known);
        ptr::write_bytes(to.add(known), 0, size - known);
        to.cast::<u32>().write_unaligned(u32::try_from(size).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_client::{MapRevision, ServerId};
    use std::ffi::CStr;

    fn statistics() -> Statistics {
        let server = |id| ServerStatistics {
            server: ServerId(id),
            is_up: true,
            address: Some("[fe80::1%4294967295]:65535".parse().unwrap()),
            retries: 1,
            requests: 2,
            responses: 3,
            outstanding: 4,
            bytes_sent: 5,
            bytes_received: 6,
            connections_opened: 7,
            connections_lost: 8,
            connections_open: 9,
            heard_at: None,
        };
        Statistics {
            operations: 70,
            map_revision: Some(MapRevision(71)),
            servers: vec![server(0), server(1), server(2)],
            ..Statistics::default()
        }
    }

    #[test]
    fn programs_of_older_and_newer_headers_get_the_fields_that_they_know() {
        let size = size_of::<kvc_counters>();
        for claimed in [8, 16, size, size + 16] {
            let mut room = vec![0x5a_u8; size + 32];
            room[..4].copy_from_slice(&u32::try_from(claimed).unwrap().to_ne_bytes());
            // SAFETY: the memory is larger than any size that the struct states.
            let told = unsafe { tell(&statistics(), room.as_mut_ptr().cast(), ptr::null_mut(), 0) };
            assert_eq!(told.unwrap(), KVC_OK);
            assert_eq!(room[..4], u32::try_from(claimed).unwrap().to_ne_bytes());
            assert_eq!(room[4..8], 3_u32.to_ne_bytes());
            if claimed > 8 {
                assert_eq!(room[8..16], 70_u64.to_ne_bytes());
            }
            assert!(room[size.min(claimed)..claimed].iter().all(|&byte| byte == 0));
            assert!(room[claimed..].iter().all(|&byte| byte == 0x5a), "nothing after it");
        }
        for claimed in [0_u32, 4, 12, 8_192] {
            let mut room = vec![0_u8; 8_192];
            room[..4].copy_from_slice(&claimed.to_ne_bytes());
            // SAFETY: as above.
            let told = unsafe { tell(&statistics(), room.as_mut_ptr().cast(), ptr::null_mut(), 0) };
            assert!(told.unwrap_err().words.contains("sizeof(kvc_counters)"), "{claimed}");
        }
    }

    #[test]
    fn servers_are_written_in_order_and_only_as_many_as_there_is_room_for() {
        let mut out = counters(&Statistics::default(), Instant::now());
        out.size = u32::try_from(size_of::<kvc_counters>()).unwrap();
        let blank = server_counters(
            &ServerStatistics { requests: 99, ..statistics().servers[0] },
            Instant::now(),
        );
        let mut servers = [blank; 4];
        servers[0].size = u32::try_from(size_of::<kvc_server_counters>()).unwrap();
        // SAFETY: the structs are as large as their sizes state.
        unsafe { tell(&statistics(), &raw mut out, servers.as_mut_ptr(), 2) }.unwrap();
        assert_eq!((out.servers, out.map_revision, out.heard_ms), (3, 71, KVC_NEVER));
        for (at, server) in servers.iter().enumerate() {
            let is_told = at < 2;
            assert_eq!(server.requests, if is_told { 2 } else { 99 });
            assert_eq!(
                server.size as usize,
                if is_told { size_of::<kvc_server_counters>() } else { 0 }
            );
        }
        // SAFETY: it ends with NUL.
        let address = unsafe { CStr::from_ptr(servers[1].address.as_ptr()) };
        assert_eq!(address, c"[fe80::1%4294967295]:65535");
    }
}
