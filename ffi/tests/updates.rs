//! Tests of updates against a fake cluster: doubts and their settlement, and servers without support for updates.

#[path = "../../client/tests/common/mod.rs"]
mod common;

use std::ffi::{CStr, CString, c_int};
use std::ptr::{null, null_mut};

use common::{Act, Fake};
use kv_protocol::client_message::{Status, opcode};
use kvclient::*;

fn slice(bytes: &[u8]) -> kvc_slice {
    kvc_slice { data: bytes.as_ptr().cast(), len: bytes.len() }
}

fn open(fake: &Fake) -> *mut kvc_client {
    let endpoint = CString::new(fake.endpoint()).unwrap();
    let mut client = null_mut();
    // SAFETY: all arguments are valid.
    assert_eq!(unsafe { kvc_open(endpoint.as_ptr(), null(), &raw mut client) }, KVC_OK);
    client
}

fn close(client: *mut kvc_client) {
    // SAFETY: the handle is open and not used again.
    assert_eq!(unsafe { kvc_close(client) }, KVC_OK);
}

fn last_error() -> String {
    // SAFETY: this thread makes no call while the text is read.
    unsafe { CStr::from_ptr(kvc_last_error()) }.to_str().unwrap().to_owned()
}

fn within(timeout_ms: u32) -> kvc_op_options {
    let size = u32::try_from(size_of::<kvc_op_options>()).unwrap();
    kvc_op_options { size, timeout_ms, if_version: 0 }
}

fn add(number: i64) -> kvc_update {
    let size = u32::try_from(size_of::<kvc_update>()).unwrap();
    kvc_update { size, action: KVC_ACTION_ADD, number, ..kvc_update::default() }
}

fn junk() -> kvc_updated {
    let value = kvc_buf { data: null_mut(), len: 7, version: 7 };
    let doubt = kvc_doubt { opaque: [7; 2] };
    kvc_updated { status: 7, copies: 7, version: 7, value, deadline_ms: 7, doubt, reserved: [7; 2] }
}

/// Returns the value of a result, and frees it.
fn take(updated: &mut kvc_updated) -> Option<Vec<u8>> {
    let buf = &mut updated.value;
    // SAFETY: the library has filled the buffer.
    unsafe {
        let value = (!buf.data.is_null())
            .then(|| std::slice::from_raw_parts(buf.data.cast::<u8>(), buf.len).to_vec());
        kvc_buf_free(buf);
        value
    }
}

/// Sets a script that never responds to updates, whether or not it executes them.
fn ignore_updates(fake: &Fake, are_done: bool) {
    fake.script(move |seen| match seen.opcode {
        opcode::UPDATE if are_done => Act::ServeThenCut,
        opcode::UPDATE => Act::Ignore,
        _ => Act::Serve,
    });
}

fn update(client: *mut kvc_client, updates: &[kvc_update], out: &mut [kvc_updated]) -> c_int {
    let (n, options) = (updates.len(), within(200));
    assert_eq!(out.len(), n);
    // SAFETY: all arguments are valid.
    unsafe {
        let (updates, out) = (updates.as_ptr(), out.as_mut_ptr());
        kvc_update_many(client, slice(b"k"), updates, n, &raw const options, out)
    }
}

fn resolve(client: *mut kvc_client, doubt: kvc_doubt, out: &mut [kvc_updated]) -> c_int {
    // SAFETY: all arguments are valid.
    unsafe { kvc_resolve_update(client, doubt, 0, out.len(), out.as_mut_ptr()) }
}

#[test]
fn an_executed_update_in_doubt_is_settled_with_its_own_results() {
    for n in [1, 3] {
        let fake = Fake::start(3, 1);
        let client = open(&fake);
        ignore_updates(&fake, true);
        let (updates, mut out) = (vec![add(5); n], vec![junk(); n]);
        assert_eq!(update(client, &updates, &mut out), KVC_IN_DOUBT, "{}", last_error());
        for updated in &out {
            assert_eq!((updated.status, updated.version, updated.copies), (KVC_IN_DOUBT, 0, 0));
            assert!(updated.doubt == out[0].doubt && updated.doubt.opaque[0] != 0);
            assert!(updated.value.data.is_null());
        }
        let doubt = out[0].doubt;
        for _ in 0..2 {
            out.fill(junk());
            assert_eq!(resolve(client, doubt, &mut out), KVC_OK, "{}", last_error());
            for (at, updated) in out.iter_mut().enumerate() {
                assert_eq!((updated.status, updated.copies), (KVC_OK, 2));
                assert_eq!(take(updated), Some(((at + 1) * 5).to_string().into_bytes()));
                assert_eq!(updated.doubt, kvc_doubt::default());
            }
        }
        // The function for every write returns the version only.
        let mut result =
            kvc_result { version: 0, copies: 0, reserved: 0, doubt: kvc_doubt::default() };
        // SAFETY: all arguments are valid.
        assert_eq!(unsafe { kvc_resolve(client, doubt, 0, &raw mut result) }, KVC_OK);
        assert_eq!((result.version, result.copies), (out[0].version, 2));
        let mut wrong = vec![junk(); n + 1];
        if n > 1 {
            assert_eq!(resolve(client, doubt, &mut wrong), KVC_INVALID);
            assert!(last_error().contains("3 updates"), "{}", last_error());
            assert!(wrong.iter().all(|updated| updated.status == KVC_INVALID));
        }
        close(client);
    }
}

#[test]
fn an_update_in_doubt_that_was_not_executed_never_will_be() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    ignore_updates(&fake, false);
    let mut out = [junk(), junk()];
    assert_eq!(update(client, &[add(1), add(2)], &mut out), KVC_IN_DOUBT);
    let doubt = out[1].doubt;
    assert_eq!(resolve(client, doubt, &mut out), KVC_NOT_DONE);
    assert!(out.iter().all(|updated| updated.status == KVC_NOT_DONE));
    fake.script(|_| Act::Serve);
    // SAFETY: all arguments are valid.
    unsafe {
        let mut sum = 0;
        let status = kvc_add(client, slice(b"k"), 1, null(), &raw mut sum, null_mut());
        assert_eq!((status, sum), (KVC_OK, 1));
    }
    close(client);
}

#[test]
fn a_value_that_was_taken_in_doubt_is_not_lost() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    fake.replace(b"k", b"precious");
    ignore_updates(&fake, true);
    let mut result = kvc_result { version: 0, copies: 0, reserved: 0, doubt: kvc_doubt::default() };
    let mut buf = kvc_buf { data: null_mut(), len: 7, version: 7 };
    let options = within(200);
    // SAFETY: all arguments are valid.
    unsafe {
        let (to, result) = (&raw mut buf, &raw mut result);
        let status = kvc_take(client, slice(b"k"), &raw const options, to, result);
        assert_eq!((status, buf.len), (KVC_IN_DOUBT, 7), "{}", last_error());
    }
    let mut out = [junk()];
    assert_eq!(resolve(client, result.doubt, &mut out), KVC_OK);
    assert_eq!(take(&mut out[0]), Some(b"precious".to_vec()));
    close(client);
}

#[test]
fn a_conflict_in_doubt_is_settled_as_a_conflict_of_its_update() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    fake.replace(b"k", b"7");
    ignore_updates(&fake, true);
    let absent = kvc_update { condition: KVC_IF_ABSENT, ..add(1) };
    let mut out = [junk(), junk()];
    assert_eq!(update(client, &[add(1), absent], &mut out), KVC_IN_DOUBT);
    let doubt = out[0].doubt;
    assert_eq!(resolve(client, doubt, &mut out), KVC_CONFLICT, "{}", last_error());
    assert_eq!(out.map(|updated| updated.status), [KVC_NOT_DONE, KVC_CONFLICT]);
    close(client);
}

#[test]
fn a_server_of_an_older_version_does_not_support_updates_and_deadlines() {
    let fake = Fake::start(3, 1);
    fake.support_version(1);
    let client = open(&fake);
    let mut out = [junk()];
    assert_eq!(update(client, &[add(1)], &mut out), KVC_UNSUPPORTED);
    assert_eq!(out[0].status, KVC_UNSUPPORTED);
    assert!(last_error().contains("upgrade the servers"), "{}", last_error());
    let (mut deadline, mut exists) = (7, 7);
    // SAFETY: all arguments are valid.
    unsafe {
        let status = kvc_get_deadline(client, slice(b"k"), null(), &raw mut deadline, null_mut());
        assert_eq!((status, deadline), (KVC_UNSUPPORTED, 7));
        let status = kvc_exists(client, slice(b"k"), null(), &raw mut exists);
        assert_eq!((status, exists), (KVC_OK, 0));
    }
    close(client);
}

#[test]
fn a_queue_names_the_doubt_in_the_completion_and_in_the_results() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    ignore_updates(&fake, true);
    let (updates, mut out) = ([add(2), add(3)], [junk(), junk()]);
    let op = kvc_op {
        size: u32::try_from(size_of::<kvc_op>()).unwrap(),
        kind: KVC_OP_UPDATE,
        key: slice(b"k"),
        timeout_ms: 200,
        updates: updates.as_ptr(),
        n: 2,
        results: out.as_mut_ptr(),
        ..kvc_op::default()
    };
    let mut cq = null_mut();
    let mut done = std::mem::MaybeUninit::uninit();
    // SAFETY: all arguments are valid.
    let done = unsafe {
        assert_eq!(kvc_cq_new(client, 1, &raw mut cq), KVC_OK);
        assert_eq!(kvc_cq_submit(cq, &raw const op, 1), KVC_OK);
        assert_eq!(kvc_cq_poll(cq, done.as_mut_ptr(), 1, -1), 1);
        let done: kvc_completion = done.assume_init();
        assert_eq!(kvc_cq_free(cq), KVC_OK);
        done
    };
    assert_eq!(done.status, KVC_IN_DOUBT);
    assert!(
        out.iter().all(|updated| updated.status == KVC_IN_DOUBT && updated.doubt == done.doubt)
    );
    assert_eq!(resolve(client, done.doubt, &mut out), KVC_OK, "{}", last_error());
    assert_eq!(out.each_mut().map(take), [Some(b"2".to_vec()), Some(b"5".to_vec())]);
    close(client);
}

#[test]
fn a_rejected_request_has_one_status_for_all_updates() {
    let fake = Fake::start(3, 1);
    let client = open(&fake);
    fake.script(|_| Act::Response(Status::OutOfSpace));
    let mut out = [junk(), junk()];
    assert_eq!(update(client, &[add(1), add(2)], &mut out), KVC_OUT_OF_SPACE);
    assert_eq!(out.map(|updated| updated.status), [KVC_OUT_OF_SPACE; 2]);
    close(client);
}
