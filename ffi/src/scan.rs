//! Scans: all keys of the cluster, or those that match a pattern, page by page.

use std::ffi::c_int;
use std::ptr;

use kv_client::{OpOptions, Page, Reply, ScanEntry, ScanOptions};

use crate::buffer::kvc_slice;
use crate::error::{Failure, KVC_OK};
use crate::handle::{Pointer, kvc_client, open_to_call};
use crate::options::{millis, sized};
use crate::panic::guard;
use crate::update::deadline_ms;

/// For kvc_scan_options.flags: entries have their values.
pub const KVC_SCAN_VALUES: u32 = 1;
/// For kvc_scan_options.flags: entries have their deadlines.
pub const KVC_SCAN_DEADLINES: u32 = 2;

/// The settings of a scan. Set `size` to sizeof(kvc_scan_options) and unused fields to zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_scan_options {
    /// sizeof(kvc_scan_options).
    pub size: u32,
    /// KVC_SCAN_VALUES, KVC_SCAN_DEADLINES, both, or zero.
    pub flags: u32,
    /// The pattern of the keys, at most 65,535 bytes; empty for all keys. `*` stands for any bytes, `?` for one byte,
    /// `[a-z]` for one of these bytes, `[^a]` for any other byte; a backslash is before a literal byte.
    pub pattern: kvc_slice,
    /// The timeout of each request of kvc_scan(), in milliseconds: one for the page, and one for each value above 64
    /// KiB. Zero means the timeout of the handle. For KVC_OP_SCAN it must be zero, because kvc_op has the timeout.
    pub timeout_ms: u32,
    /// Zero.
    pub reserved: u32,
}

impl Default for kvc_scan_options {
    fn default() -> Self {
        let pattern = kvc_slice { data: ptr::null(), len: 0 };
        kvc_scan_options { size: 0, flags: 0, pattern, timeout_ms: 0, reserved: 0 }
    }
}

/// An entry that a scan has found. Its bytes belong to the page.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_entry {
    /// The key.
    pub key: kvc_slice,
    /// The value. Without KVC_SCAN_VALUES, data is NULL, and len is the length of the value. With KVC_SCAN_VALUES, this
    /// is also so for a value above 64 KiB in a page of KVC_OP_SCAN; a get reads the value.
    pub value: kvc_slice,
    /// The version of the entry.
    pub version: u64,
    /// The time at which the entry expires, in milliseconds since 1970; zero if there is none, and without
    /// KVC_SCAN_DEADLINES.
    pub deadline_ms: u64,
}

/// A page of a scan. The library allocates it; the program frees it with kvc_page_free().
#[repr(C)]
#[derive(Debug)]
pub struct kvc_page {
    /// The token of the next page, below 2^53; zero after the last page.
    pub next: u64,
    /// The entries; not NULL, even if there are none.
    pub entries: *const kvc_entry,
    /// The number of entries. It may be zero although more pages follow.
    pub count: usize,
    /// The number of places (shards of groups) that are completed with this page.
    pub places_done: u32,
    /// The number of places.
    pub places: u32,
}

/// A page with the memory to which it points. The page is the first field, so both have the same address.
#[repr(C)]
struct OwnedPage {
    page: kvc_page,
    entries: Vec<kvc_entry>,
    /// The entries of the library, which own keys and values.
    owner: Vec<ScanEntry>,
}

/// Returns a page of a scan of all keys. `token` is 0 for the first page, then kvc_page.next of the page before, until
/// that is 0. `options` may be NULL; all pages of a scan must have the same pattern. On success, *out is a page that
/// the caller frees with kvc_page_free().
///
/// Every key that exists from the first page to the last comes exactly once, also if servers fail meanwhile. A key that
/// is written or removed meanwhile may come or not. After KVC_TIMEOUT, KVC_UNAVAILABLE or KVC_BUSY, repeat the call
/// with the same token. A token is valid for every handle of the cluster, for as long as the cluster exists. A number
/// that is no token of the cluster is rejected (KVC_INVALID).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_scan(
    client: *mut kvc_client,
    token: u64,
    options: *const kvc_scan_options,
    out: *mut *mut kvc_page,
) -> c_int {
    guard(|| {
        if out.is_null() {
            return Err(Failure::invalid("kvc_scan: out is NULL"));
        }
        // SAFETY: the caller passes NULL or an open handle, and NULL or a struct of the size that it states.
        let (handle, (scan, timeout_ms)) =
            unsafe { (open_to_call(client)?, read_scan_options(options)?) };
        let options = OpOptions { deadline: millis(timeout_ms), ..OpOptions::default() };
        let page = handle.shared.scan(token, &scan, &options)?;
        // SAFETY: not NULL; the caller passes a pointer that is valid for writing a pointer.
        unsafe { out.write(own_page(page)) };
        Ok(KVC_OK)
    })
}

/// Reads the settings of a scan and their timeout; NULL gives the defaults.
///
/// # Safety
/// The requirements of [`sized`]. The pattern is readable and does not change while the result lives.
pub(crate) unsafe fn read_scan_options<'a>(
    from: *const kvc_scan_options,
) -> Result<(ScanOptions<'a>, u32), Failure> {
    // SAFETY: passed on.
    let given = unsafe { sized(from, "kvc_scan_options") }?;
    if given.flags & !(KVC_SCAN_VALUES | KVC_SCAN_DEADLINES) != 0 {
        let words = format!("kvc_scan_options.flags is {:#x}; unknown flag", given.flags);
        return Err(Failure::invalid(words));
    }
    if given.reserved != 0 {
        let words = format!("kvc_scan_options.reserved is {}; it must be 0", given.reserved);
        return Err(Failure::invalid(words));
    }
    let scan = ScanOptions {
        // SAFETY: passed on.
        pattern: unsafe { given.pattern.bytes("kvc_scan_options.pattern") }?,
        values: given.flags & KVC_SCAN_VALUES != 0,
        deadlines: given.flags & KVC_SCAN_DEADLINES != 0,
    };
    Ok((scan, given.timeout_ms))
}

/// Frees a page and its entries. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_page_free(page: *mut kvc_page) {
    if !page.is_null() {
        // SAFETY: `own_page` has created it, and the caller transfers it back.
        drop(unsafe { Box::from_raw(page.cast::<OwnedPage>()) });
    }
}

/// Sets *count to the number of entries of the cluster: the sum of the exact number of each shard, at slightly
/// different times. `timeout_ms` applies to the request to each shard; zero means the timeout of the handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_count(
    client: *mut kvc_client,
    timeout_ms: u32,
    count: *mut u64,
) -> c_int {
    guard(|| {
        if count.is_null() {
            return Err(Failure::invalid("kvc_count: count is NULL"));
        }
        // SAFETY: the caller passes NULL or an open handle.
        let handle = unsafe { open_to_call(client) }?;
        let options = OpOptions { deadline: millis(timeout_ms), ..OpOptions::default() };
        let counted = handle.shared.count(&options)?;
        // SAFETY: not NULL; the caller passes a pointer that is valid for writing a number.
        unsafe { count.write(counted) };
        Ok(KVC_OK)
    })
}

/// The page that an operation of a queue or a batch fetches.
pub(crate) struct PendingPage {
    pattern: Vec<u8>,
    values: bool,
    deadlines: bool,
    /// The program's variable for the page.
    out: Pointer<*mut kvc_page>,
}

impl PendingPage {
    /// Keeps what is needed to read the page. Nothing is written yet.
    pub(crate) fn new(scan: &ScanOptions<'_>, out: *mut *mut kvc_page) -> PendingPage {
        let ScanOptions { pattern, values, deadlines } = *scan;
        PendingPage { pattern: pattern.to_vec(), values, deadlines, out: Pointer::new(out) }
    }

    /// Sets the variable to NULL, so that the page may be freed whatever happens.
    ///
    /// # Safety
    /// The variable may be written to.
    pub(crate) unsafe fn empty(&self) {
        // SAFETY: passed on.
        unsafe { self.out.get().write(ptr::null_mut()) };
    }

    /// Writes the page, and returns the number of bytes of its keys and values.
    ///
    /// # Safety
    /// The variable may be written to.
    pub(crate) unsafe fn succeed(&self, reply: Reply<'_>) -> usize {
        let PendingPage { ref pattern, values, deadlines, out } = *self;
        let page = Page::of(reply, &ScanOptions { pattern, values, deadlines });
        let value_bytes = |entry: &ScanEntry| entry.value.as_ref().map_or(0, Vec::len);
        let bytes = page.entries.iter().map(|entry| entry.key.len() + value_bytes(entry)).sum();
        // SAFETY: passed on.
        unsafe { out.get().write(own_page(page)) };
        bytes
    }
}

/// Returns a page that the program owns.
fn own_page(page: Page) -> *mut kvc_page {
    let Page { next, entries: owner, places_done, places, .. } = page;
    let slice = |bytes: &[u8]| kvc_slice { data: bytes.as_ptr().cast(), len: bytes.len() };
    let entry = |entry: &ScanEntry| kvc_entry {
        key: slice(&entry.key),
        value: match &entry.value {
            Some(value) => slice(value),
            None => kvc_slice { data: ptr::null(), len: entry.length },
        },
        version: entry.version.0,
        deadline_ms: deadline_ms(entry.deadline),
    };
    // The bytes of keys and values do not move when `owner` moves.
    let entries: Vec<kvc_entry> = owner.iter().map(entry).collect();
    let (at, count) = (entries.as_ptr(), entries.len());
    let page = kvc_page { next, entries: at, count, places_done, places };
    Box::into_raw(Box::new(OwnedPage { page, entries, owner })).cast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_client::SequenceNumber;

    #[test]
    fn a_page_owns_what_it_points_to() {
        let entry = |key: &[u8], value: Option<&[u8]>| ScanEntry {
            key: key.to_vec(),
            value: value.map(<[u8]>::to_vec),
            length: 5,
            version: SequenceNumber(7),
            deadline: None,
        };
        let entries = vec![entry(b"a", Some(b"value")), entry(b"b", None)];
        let page = own_page(Page { next: 9, entries, places: 3, ..Page::default() });
        // SAFETY: the page was just created, and is freed once.
        unsafe {
            assert_eq!(((*page).next, (*page).count, (*page).places), (9, 2, 3));
            let entries = std::slice::from_raw_parts((*page).entries, (*page).count);
            assert_eq!(entries[0].key.bytes("key").unwrap(), b"a");
            assert_eq!(entries[0].value.bytes("value").unwrap(), b"value");
            assert_eq!((entries[0].version, entries[0].deadline_ms), (7, 0));
            assert!(entries[1].value.data.is_null() && entries[1].value.len == 5);
            kvc_page_free(page);
            kvc_page_free(ptr::null_mut());
        }
    }
}
