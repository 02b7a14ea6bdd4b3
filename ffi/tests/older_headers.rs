//! Programs that were compiled with the header of version 1 (`ffi/abi/1/`): their structs are smaller, and the library
//! treats the missing fields as zero.

#[path = "../../client/tests/common/mod.rs"]
mod common;

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

use common::Fake;
use kvclient::*;

/// `kvc_op` of version 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct OldOp {
    size: u32,
    kind: u32,
    key: kvc_slice,
    value: kvc_slice,
    dst: *mut c_void,
    cap: usize,
    if_version: u64,
    timeout_ms: u32,
    flags: u32,
    offset: u64,
}

/// `kvc_op_options` of version 1.
#[repr(C)]
struct OldOpOptions {
    size: u32,
    timeout_ms: u32,
    if_version: u64,
}

/// The sizes of all structs of version 1 that state their size.
const OLD_OP: u32 = 80;
const OLD_OP_OPTIONS: u32 = 16;
const OLD_OPTIONS: u32 = 48;
const OLD_COUNTERS: u32 = 160;
const OLD_SERVER_COUNTERS: u32 = 160;

/// Bytes that follow a struct of version 1 in the memory of the program. The library must not read or change them.
const FOREIGN: u64 = 0x5a5a_5a5a_5a5a_5a5a;

/// A struct of version 1 with other memory of the program behind it.
#[repr(C)]
struct Followed<T> {
    old: T,
    foreign: [u64; 16],
}

impl<T> Followed<T> {
    fn new(old: T) -> Followed<T> {
        Followed { old, foreign: [FOREIGN; 16] }
    }
}

fn slice(bytes: &[u8]) -> kvc_slice {
    kvc_slice { data: bytes.as_ptr().cast(), len: bytes.len() }
}

fn op(kind: u32, key: &'static [u8], value: &'static [u8]) -> OldOp {
    let (dst, cap, if_version, timeout_ms, flags, offset) = (null_mut(), 0, 0, 0, 0, 0);
    let (key, value) = (slice(key), slice(value));
    OldOp { size: OLD_OP, kind, key, value, dst, cap, if_version, timeout_ms, flags, offset }
}

fn open(fake: &Fake) -> *mut kvc_client {
    let endpoint = CString::new(fake.endpoint()).unwrap();
    let mut client = null_mut();
    // SAFETY: all arguments are valid.
    assert_eq!(unsafe { kvc_open(endpoint.as_ptr(), null(), &raw mut client) }, KVC_OK);
    client
}

fn nothing() -> kvc_completion {
    let value = kvc_buf { data: null_mut(), len: 0, version: 0 };
    let doubt = kvc_doubt::default();
    kvc_completion { tag: 0, status: 7, copies: 0, value, words: null(), doubt }
}

/// Returns the value of a completion, and frees it.
fn take(done: &mut kvc_completion) -> Vec<u8> {
    // SAFETY: the library has filled the buffer.
    unsafe {
        let value = std::slice::from_raw_parts(done.value.data.cast::<u8>(), done.value.len);
        let value = value.to_vec();
        kvc_buf_free(&raw mut done.value);
        value
    }
}

#[test]
fn the_structs_of_version_1_have_their_recorded_sizes() {
    assert_eq!(size_of::<OldOp>(), OLD_OP as usize);
    assert_eq!(size_of::<OldOpOptions>(), OLD_OP_OPTIONS as usize);
    let recorded = include_str!("../abi/1/kvclient.xml");
    for (name, size) in [
        ("kvc_op", OLD_OP),
        ("kvc_op_options", OLD_OP_OPTIONS),
        ("kvc_options", OLD_OPTIONS),
        ("kvc_counters", OLD_COUNTERS),
        ("kvc_server_counters", OLD_SERVER_COUNTERS),
    ] {
        let class = format!("<class-decl name='{name}' size-in-bits='{}'", size * 8);
        assert!(recorded.contains(&class), "{class}");
    }
}

#[test]
fn a_batch_steps_by_the_size_of_its_operations() {
    let fake = Fake::start(3, 2);
    let client = open(&fake);
    let ops = [
        op(KVC_OP_PUT, b"a", b"first"),
        op(KVC_OP_PUT, b"b", b"second"),
        op(KVC_OP_DELETE, b"c", b""),
    ];
    let ops = Followed::new(ops);
    let mut out = [nothing(); 3];
    let at = (&raw const ops).cast::<kvc_op>();
    // SAFETY: the operations have the size that they state.
    assert_eq!(unsafe { kvc_batch(client, at, 2, out.as_mut_ptr(), null()) }, KVC_OK);
    // SAFETY: as above.
    assert_eq!(unsafe { kvc_batch(client, at, 3, out.as_mut_ptr(), null()) }, KVC_NOT_FOUND);
    assert_eq!(out.map(|done| done.status), [KVC_OK, KVC_OK, KVC_NOT_FOUND]);
    let gets = Followed::new([op(KVC_OP_GET, b"a", b""), op(KVC_OP_GET, b"b", b"")]);
    let at = (&raw const gets).cast::<kvc_op>();
    // SAFETY: as above.
    assert_eq!(unsafe { kvc_batch(client, at, 2, out.as_mut_ptr(), null()) }, KVC_OK);
    assert_eq!((take(&mut out[0]), take(&mut out[1])), (b"first".to_vec(), b"second".to_vec()));
    // SAFETY: the handle is open.
    assert_eq!(unsafe { kvc_close(client) }, KVC_OK);
}

#[test]
fn a_queue_takes_operations_of_version_1() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    let mut queue = null_mut();
    // SAFETY: the handle is open.
    assert_eq!(unsafe { kvc_cq_new(client, 4, &raw mut queue) }, KVC_OK);
    let run = |op: OldOp| {
        let (op, mut done) = (Followed::new(op), nothing());
        // SAFETY: the queue is open, and the operation has the size that it states.
        unsafe {
            assert_eq!(kvc_cq_submit(queue, (&raw const op).cast(), 7), KVC_OK);
            assert_eq!(kvc_cq_poll(queue, &raw mut done, 1, -1), 1);
        }
        assert_eq!((done.tag, done.status), (7, KVC_OK));
        done
    };
    assert_eq!(run(op(KVC_OP_PUT, b"k", b"value")).copies, 2);
    assert_eq!(take(&mut run(op(KVC_OP_GET, b"k", b""))), b"value");
    let mut part = *b"......";
    let range = OldOp {
        dst: part.as_mut_ptr().cast(),
        cap: 3,
        flags: KVC_RANGE,
        offset: 1,
        ..op(KVC_OP_GET, b"k", b"")
    };
    run(range);
    assert_eq!(&part, b"alu...");
    // An update and a scan need fields that version 1 does not have.
    for (kind, key) in [(KVC_OP_UPDATE, &b"k"[..]), (KVC_OP_SCAN, b"")] {
        let op = Followed::new(op(kind, key, b""));
        // SAFETY: as above.
        assert_eq!(unsafe { kvc_cq_submit(queue, (&raw const op).cast(), 7) }, KVC_INVALID);
    }
    // SAFETY: both are open.
    unsafe {
        assert_eq!(kvc_cq_free(queue), KVC_OK);
        assert_eq!(kvc_close(client), KVC_OK);
    }
}

#[test]
fn options_and_counters_of_version_1_are_accepted() {
    let fake = Fake::start(3, 1);
    let endpoint = CString::new(fake.endpoint()).unwrap();
    let mut client = null_mut();
    let mut settings = Followed::new([0_u32; OLD_OPTIONS as usize / 4]);
    let at = (&raw mut settings).cast::<kvc_options>();
    let options =
        Followed::new(OldOpOptions { size: OLD_OP_OPTIONS, timeout_ms: 0, if_version: KVC_ABSENT });
    let mut all = Followed::new([0_u32; OLD_COUNTERS as usize / 4]);
    let mut servers = Followed::new([[0_u32; OLD_SERVER_COUNTERS as usize / 4]; 2]);
    (all.old[0], servers.old[0][0], servers.old[1][0]) =
        (OLD_COUNTERS, OLD_SERVER_COUNTERS, OLD_SERVER_COUNTERS);
    // SAFETY: every struct has the size that it states.
    unsafe {
        assert_eq!(kvc_options_init(at, OLD_OPTIONS as usize), KVC_OK);
        assert_eq!(kvc_open(endpoint.as_ptr(), at, &raw mut client), KVC_OK);
        let (key, options) = (slice(b"k"), (&raw const options).cast());
        assert_eq!(kvc_put(client, key, key, options, null_mut()), KVC_OK);
        assert_eq!(kvc_put(client, key, key, options, null_mut()), KVC_CONFLICT);
        let (all, servers) = ((&raw mut all).cast(), (&raw mut servers).cast());
        assert_eq!(kvc_statistics(client, all, servers, 2), KVC_OK);
        assert_eq!(kvc_close(client), KVC_OK);
    }
    assert_eq!(settings.old[0], OLD_OPTIONS);
    assert_eq!(servers.old[1][0], OLD_SERVER_COUNTERS, "the second element is at its place");
    for foreign in [settings.foreign, all.foreign, servers.foreign] {
        assert_eq!(foreign, [FOREIGN; 16]);
    }
}
