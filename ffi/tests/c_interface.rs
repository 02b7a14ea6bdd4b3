//! Tests of the C interface: the header, the soname and the exports of the library, and the calls against a fake
//! cluster in this process.

#[path = "../../client/tests/common/mod.rs"]
mod common;

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use common::{Act, Fake};
use kv_protocol::client_message::Status;
use kv_testkit::silent::Silent;
use kvclient::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    output
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).unwrap()
}

/// Returns the path of a library that was built with this test, in the directory of the test's executable.
fn library(file: &str) -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name(file);
    assert!(beside.is_file(), "{} was not built", beside.display());
    beside
}

fn last_error() -> String {
    // SAFETY: this thread makes no call while the text is read.
    unsafe { CStr::from_ptr(kvc_last_error()) }.to_str().unwrap().to_owned()
}

fn slice(bytes: &[u8]) -> kvc_slice {
    kvc_slice { data: bytes.as_ptr().cast(), len: bytes.len() }
}

/// A handle that can be passed to threads, as in C.
#[derive(Clone, Copy)]
struct Handle(*mut kvc_client);

// SAFETY: the interface allows many threads to use a handle.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn open(fake: &Fake) -> Handle {
        let endpoint = CString::new(fake.endpoint()).unwrap();
        let mut client = null_mut();
        // SAFETY: all arguments are valid.
        assert_eq!(unsafe { kvc_open(endpoint.as_ptr(), null(), &mut client) }, KVC_OK);
        Handle(client)
    }

    fn put(self, key: &[u8], value: &[u8], options: Option<kvc_op_options>) -> c_int {
        let options = options.as_ref().map_or(null(), std::ptr::from_ref);
        // SAFETY: all arguments are valid.
        unsafe { kvc_put(self.0, slice(key), slice(value), options, null_mut()) }
    }

    fn get(self, key: &[u8]) -> Result<Vec<u8>, c_int> {
        let mut buffer = kvc_buf { data: null_mut(), len: 0, version: 0 };
        // SAFETY: all arguments are valid; on success the buffer has `len` bytes and a NUL.
        unsafe {
            match kvc_get(self.0, slice(key), null(), &mut buffer) {
                KVC_OK => {}
                status => return Err(status),
            }
            let data = buffer.data.cast::<u8>();
            let value = std::slice::from_raw_parts(data, buffer.len).to_vec();
            assert_eq!(*data.add(buffer.len), 0);
            kvc_buf_free(&mut buffer);
            kvc_buf_free(&mut buffer);
            assert!(buffer.data.is_null());
            Ok(value)
        }
    }

    fn close(self) {
        // SAFETY: the handle is open and not used again.
        assert_eq!(unsafe { kvc_close(self.0) }, KVC_OK);
    }
}

fn options(timeout_ms: u32, if_version: u64) -> Option<kvc_op_options> {
    let size = u32::try_from(size_of::<kvc_op_options>()).unwrap();
    Some(kvc_op_options { size, timeout_ms, if_version })
}

#[test]
fn silent_endpoints_do_not_block_the_one_that_responds() {
    let (fake, silent) = (Fake::start(3, 1), Silent::all_kinds());
    let mut endpoints: Vec<String> = silent.iter().map(Silent::endpoint).collect();
    endpoints.push(fake.endpoint());
    let endpoints = CString::new(endpoints.join(",")).unwrap();
    let mut client = null_mut();
    // SAFETY: all arguments are valid.
    assert_eq!(unsafe { kvc_open(endpoints.as_ptr(), null(), &mut client) }, KVC_OK);
    let handle = Handle(client);
    assert_eq!(handle.put(b"k", b"v", None), KVC_OK, "{}", last_error());
    handle.close();
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let generated = std::fs::read_to_string(concat!(env!("OUT_DIR"), "/kvclient.h")).unwrap();
    let committed = std::fs::read_to_string(root().join("include/kvclient.h")).unwrap();
    assert!(
        generated == committed,
        "include/kvclient.h differs from the header generated from ffi/: run make header"
    );
}

#[test]
fn the_header_is_clean_c99_c11_and_cpp17() {
    let directory = tempfile::tempdir().unwrap();
    let strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"];
    for (compiler, standard, file) in [
        ("gcc", "-std=c99", "use.c"),
        ("gcc", "-std=c11", "use.c"),
        ("g++", "-std=c++17", "use.cpp"),
    ] {
        let source = directory.path().join(file);
        let text =
            "#include <kvclient.h>\nint main(void) { return kvc_close(0) + KVC_NOT_FOUND; }\n";
        std::fs::write(&source, text).unwrap();
        let include = root().join("include");
        run(Command::new(compiler).args(strict).arg(standard).arg("-I").arg(include).arg(source));
    }
}

#[test]
fn the_library_exports_exactly_what_the_header_declares() {
    let header = std::fs::read_to_string(root().join("include/kvclient.h")).unwrap();
    let mut declared: Vec<&str> = header
        .lines()
        .filter(|line| line.contains('(') && !line.starts_with([' ', '/', '#', 't'])) // no typedef
        .map(|line| {
            let name = line.split('(').next().unwrap_or_default();
            name.rsplit([' ', '*']).next().unwrap_or_default()
        })
        .collect();
    declared.sort_unstable();
    let symbols =
        stdout(Command::new("nm").args(["-D", "--defined-only"]).arg(library("libkvclient.so")));
    let mut exported: Vec<&str> =
        symbols.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    exported.sort_unstable();
    assert_eq!(exported, declared);
    assert!(declared.contains(&"kvc_put"), "{declared:?}");
}

#[test]
fn the_library_has_a_soname_and_stays_loaded() {
    let dynamic = stdout(Command::new("readelf").arg("-d").arg(library("libkvclient.so")));
    assert!(dynamic.contains("soname: [libkvclient.so.1]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}

#[test]
fn the_example_compiles_and_runs_with_the_shared_and_the_static_library() {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("libkvclient.so.1");
    std::os::unix::fs::symlink(library("libkvclient.so"), &shared).unwrap();
    for (name, library) in [("shared", shared), ("static", library("libkvclient.a"))] {
        let program = directory.path().join(name);
        run(Command::new("gcc")
            .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
            .arg(root().join("include"))
            .arg(root().join("examples/c/hello.c"))
            .arg(library)
            .args(["-lpthread", "-ldl", "-lm", "-o"])
            .arg(&program));
        let fake = Fake::start(3, 1);
        let mut hello = Command::new(&program);
        hello.arg(fake.endpoint()).env("LD_LIBRARY_PATH", directory.path());
        assert_eq!(
            stdout(&mut hello),
            "stored on 2 servers\nread: hello (5 bytes)\nchanged\ndeleted\n"
        );
    }
    let source = std::fs::read_to_string(root().join("examples/c/hello.c")).unwrap();
    assert!(source.lines().count() < 120, "a first program is short");
}

#[test]
fn values_and_versions_cross_the_boundary() {
    let fake = Fake::start(3, 2);
    let handle = Handle::open(&fake);
    assert_eq!(handle.get(b"k"), Err(KVC_NOT_FOUND));
    assert!(last_error().contains("get \"k\": the key does not exist"), "{}", last_error());
    assert_eq!(handle.put(b"k", b"a\0b", options(0, KVC_ABSENT)), KVC_OK);
    assert_eq!(handle.put(b"k", b"c", options(0, KVC_ABSENT)), KVC_CONFLICT);
    assert_eq!(handle.get(b"k"), Ok(b"a\0b".to_vec()));
    assert_eq!(handle.put(b"empty", b"", None), KVC_OK);
    assert_eq!(handle.get(b"empty"), Ok(Vec::new()));
    let mut result =
        kvc_result { version: 0, copies: 0, reserved: 9, doubt: kvc_doubt { opaque: [9; 2] } };
    // SAFETY: all arguments are valid.
    let status = unsafe { kvc_delete(handle.0, slice(b"k"), null(), &mut result) };
    assert_eq!(
        (status, result.copies, result.reserved, result.doubt),
        (KVC_OK, 2, 0, kvc_doubt::default())
    );
    assert!(result.version > 0);
    handle.close();
}

#[test]
fn a_value_is_read_into_memory_of_the_program_if_it_fits() {
    let fake = Fake::start(3, 2);
    let handle = Handle::open(&fake);
    assert_eq!(handle.put(b"k", b"value", None), KVC_OK);
    assert_eq!(handle.put(b"empty", b"", None), KVC_OK);
    let mut room = *b"------";
    let mut result =
        kvc_result { version: 0, copies: 9, reserved: 9, doubt: kvc_doubt { opaque: [9; 2] } };
    let mut read = |key: &[u8], cap: usize, result: *mut kvc_result| {
        let (mut len, dst) = (77, if cap == 0 { null_mut() } else { room.as_mut_ptr() });
        // SAFETY: `dst` has room for `cap` bytes or is NULL.
        let status = unsafe {
            kvc_get_into(handle.0, slice(key), dst.cast(), cap, &mut len, null(), result)
        };
        (status, len, room)
    };
    assert_eq!(read(b"absent", 6, null_mut()), (KVC_NOT_FOUND, 77, *b"------"));
    assert_eq!(read(b"k", 4, null_mut()), (KVC_TOO_BIG, 5, *b"------"));
    assert_eq!(read(b"k", 0, null_mut()), (KVC_TOO_BIG, 5, *b"------"));
    assert_eq!(read(b"empty", 0, null_mut()), (KVC_OK, 0, *b"------"));
    assert_eq!(read(b"k", 5, &mut result), (KVC_OK, 5, *b"value-"));
    assert!(
        result.version > 0
            && (result.copies, result.reserved, result.doubt) == (0, 0, kvc_doubt::default())
    );
    // SAFETY: the calls have to reject NULL.
    unsafe {
        let (into, key) = (room.as_mut_ptr().cast(), slice(b"k"));
        let status = kvc_get_into(handle.0, key, into, 6, null_mut(), null(), null_mut());
        assert_eq!(status, KVC_INVALID);
        let mut len = 0;
        let status = kvc_get_into(handle.0, key, null_mut(), 6, &mut len, null(), null_mut());
        assert_eq!(status, KVC_INVALID);
    }
    handle.close();
}

#[test]
fn invalid_arguments_are_rejected_with_a_message() {
    let fake = Fake::start(3, 1);
    let handle = Handle::open(&fake);
    let nothing = kvc_slice { data: null(), len: 3 };
    let mut buffer = kvc_buf { data: null_mut(), len: 7, version: 7 };
    // SAFETY: every function has to reject or accept NULL.
    unsafe {
        let key = slice(b"k");
        assert_eq!(kvc_put(null_mut(), key, key, null(), null_mut()), KVC_INVALID);
        assert!(last_error().contains("NULL"), "{}", last_error());
        assert_eq!(kvc_put(handle.0, nothing, key, null(), null_mut()), KVC_INVALID);
        assert!(last_error().contains("key.data"), "{}", last_error());
        assert_eq!(kvc_put(handle.0, key, nothing, null(), null_mut()), KVC_INVALID);
        assert_eq!(kvc_get(handle.0, key, null(), null_mut()), KVC_INVALID);
        assert_eq!(kvc_get(handle.0, slice(b""), null(), &mut buffer), KVC_INVALID);
        assert_eq!(kvc_get(handle.0, slice(&[b'k'; 65_536]), null(), &mut buffer), KVC_TOO_BIG);
        assert_eq!((buffer.len, buffer.version), (7, 7), "written on success only");
        let mut client = null_mut();
        assert_eq!(kvc_open(null(), null(), &mut client), KVC_INVALID);
        assert_eq!(kvc_open(c"nonsense".as_ptr(), null(), &mut client), KVC_INVALID);
        assert!(last_error().contains("host:port"), "{}", last_error());
        assert_eq!(kvc_open(c"localhost:99999".as_ptr(), null(), &mut client), KVC_INVALID);
        assert!(last_error().contains("above 65535"), "{}", last_error());
        assert!(client.is_null());
        assert_eq!(kvc_options_init(null_mut(), 16), KVC_INVALID);
        assert_eq!(kvc_close(null_mut()), KVC_OK);
        kvc_buf_free(null_mut());
        kvc_free(null_mut::<c_void>());
    }
    assert_eq!(handle.put(b"k", b"v", options(60_001, 0)), KVC_INVALID);
    assert!(fake.seen().is_empty(), "no request was sent");
    handle.close();
}

#[test]
fn a_scan_returns_pages_and_a_count_their_sum() {
    let fake = Fake::start(3, 2);
    let handle = Handle::open(&fake);
    for n in 0..60 {
        assert_eq!(handle.put(format!("key:{n:02}").as_bytes(), b"value", None), KVC_OK);
    }
    let size = u32::try_from(size_of::<kvc_scan_options>()).unwrap();
    let mut options = kvc_scan_options {
        size,
        flags: KVC_SCAN_VALUES,
        pattern: slice(b"key:?[0-4]"),
        ..kvc_scan_options::default()
    };
    let (mut found, mut token) = (Vec::new(), 0);
    loop {
        let mut page = null_mut();
        // SAFETY: an open handle, a struct of its size, and room for a pointer.
        assert_eq!(unsafe { kvc_scan(handle.0, token, &raw const options, &raw mut page) }, KVC_OK);
        // SAFETY: the page is freed below.
        let kvc_page { next, entries, count, .. } = unsafe { &*page };
        // SAFETY: the page has this many entries.
        for entry in unsafe { std::slice::from_raw_parts(*entries, *count) } {
            // SAFETY: keys and values are readable until the page is freed.
            let bytes = |bytes: kvc_slice| unsafe {
                std::slice::from_raw_parts(bytes.data.cast::<u8>(), bytes.len).to_vec()
            };
            assert_eq!(bytes(entry.value), b"value");
            found.push(bytes(entry.key));
        }
        token = *next;
        // SAFETY: freed once.
        unsafe { kvc_page_free(page) };
        if token == 0 {
            break;
        }
    }
    found.sort();
    assert_eq!(found.len(), 30);
    assert_eq!((&found[0][..], &found[29][..]), (&b"key:00"[..], &b"key:54"[..]));
    let mut count = 0;
    // SAFETY: an open handle and room for a number.
    assert_eq!(unsafe { kvc_count(handle.0, 0, &raw mut count) }, KVC_OK);
    assert_eq!(count, 60);

    let mut page = null_mut();
    // SAFETY: as above.
    let status = unsafe { kvc_scan(handle.0, 1 << 60, null(), &raw mut page) };
    assert_eq!(status, KVC_INVALID);
    assert!(last_error().contains("begin again with 0"), "{}", last_error());
    options.flags = 8;
    // SAFETY: as above.
    let status = unsafe { kvc_scan(handle.0, 0, &raw const options, &raw mut page) };
    assert_eq!(status, KVC_INVALID);
    handle.close();
}

/// Returns the keys of a page and the token of the next one, and frees the page.
fn take_page(page: *mut kvc_page) -> (Vec<Vec<u8>>, u64) {
    // SAFETY: the library has written the page, and it is freed once.
    unsafe {
        let kvc_page { next, entries, count, .. } = *page;
        let bytes =
            |bytes: kvc_slice| std::slice::from_raw_parts(bytes.data.cast::<u8>(), bytes.len);
        let entries = std::slice::from_raw_parts(entries, count);
        let keys = entries.iter().map(|entry| {
            assert_eq!((bytes(entry.value), entry.deadline_ms), (&b"value"[..], 0));
            bytes(entry.key).to_vec()
        });
        let keys = keys.collect();
        kvc_page_free(page);
        (keys, next)
    }
}

#[test]
fn a_queue_and_a_batch_return_the_pages_of_a_scan() {
    let fake = Fake::start(3, 2);
    let handle = Handle::open(&fake);
    for n in 0..60 {
        assert_eq!(handle.put(format!("key:{n:02}").as_bytes(), b"value", None), KVC_OK);
    }
    let mut queue = null_mut();
    // SAFETY: the handle is open.
    assert_eq!(unsafe { kvc_cq_new(handle.0, 1, &raw mut queue) }, KVC_OK);
    let size = |bytes: usize| u32::try_from(bytes).unwrap();
    let pattern = || Box::new(*b"key:?[0-4]");
    let settings = |pattern: &[u8]| {
        Box::new(kvc_scan_options {
            size: size(size_of::<kvc_scan_options>()),
            flags: KVC_SCAN_VALUES | KVC_SCAN_DEADLINES,
            pattern: slice(pattern),
            ..kvc_scan_options::default()
        })
    };
    let mut page: *mut kvc_page = null_mut();
    let op = kvc_op {
        size: size(size_of::<kvc_op>()),
        kind: KVC_OP_SCAN,
        page: &raw mut page,
        ..kvc_op::default()
    };
    let poll = || {
        let mut done = std::mem::MaybeUninit::<kvc_completion>::uninit();
        // SAFETY: the queue is open, and there is room for a completion.
        unsafe {
            assert_eq!(kvc_cq_poll(queue, done.as_mut_ptr(), 1, -1), 1);
            done.assume_init()
        }
    };
    let (mut in_queue, mut in_batches, mut token) = (Vec::new(), Vec::new(), 0);
    loop {
        let pattern = pattern();
        let scan = settings(&*pattern);
        let op = kvc_op { token, scan: &raw const *scan, ..op };
        let mut done = std::mem::MaybeUninit::<kvc_completion>::uninit();
        // SAFETY: all arguments are valid.
        let status = unsafe { kvc_batch(handle.0, &raw const op, 1, done.as_mut_ptr(), null()) };
        assert_eq!(status, KVC_OK, "{}", last_error());
        // SAFETY: the page was just written.
        let (keys, next) = take_page(unsafe { op.page.read() });
        in_batches.extend(keys);

        // SAFETY: all arguments are valid.
        unsafe {
            op.page.write(std::ptr::dangling_mut());
            assert_eq!(kvc_cq_submit(queue, &raw const op, 7), KVC_OK, "{}", last_error());
            assert!(op.page.read().is_null(), "it may be freed even if the queue is freed now");
        }
        // The settings and the pattern are copied.
        drop((scan, pattern));
        let done = poll();
        assert_eq!((done.tag, done.status, done.copies), (7, KVC_OK, 0));
        assert!(done.value.data.is_null() && done.value.version == 0);
        // SAFETY: as above.
        let (keys, same) = take_page(unsafe { op.page.read() });
        in_queue.extend(keys);
        assert_eq!(next, same);
        token = next;
        if token == 0 {
            break;
        }
    }
    for mut found in [in_queue, in_batches] {
        found.sort();
        assert_eq!(found.len(), 30);
        assert_eq!((&found[0][..], &found[29][..]), (&b"key:00"[..], &b"key:54"[..]));
    }
    // A token of no cluster fails, without a page.
    let wrong = kvc_op { token: 1 << 60, ..op };
    // SAFETY: all arguments are valid.
    assert_eq!(unsafe { kvc_cq_submit(queue, &raw const wrong, 8) }, KVC_OK);
    let status = poll().status;
    // SAFETY: the variable is valid.
    assert_eq!((status, unsafe { op.page.read() }.is_null()), (KVC_INVALID, true));
    // SAFETY: the queue is open.
    assert_eq!(unsafe { kvc_cq_free(queue) }, KVC_OK);
    handle.close();
}

#[test]
fn an_operation_with_a_field_of_another_kind_is_rejected_with_its_name() {
    let fake = Fake::start(3, 1);
    let handle = Handle::open(&fake);
    let mut queue = null_mut();
    // SAFETY: the handle is open.
    assert_eq!(unsafe { kvc_cq_new(handle.0, 1, &raw mut queue) }, KVC_OK);
    let size = u32::try_from(size_of::<kvc_op>()).unwrap();
    let (mut page, mut room) = (null_mut(), 0_u64);
    let of = |kind| kvc_op { size, kind, key: slice(b"k"), ..kvc_op::default() };
    let scan = kvc_op { key: slice(b""), page: &raw mut page, ..of(KVC_OP_SCAN) };
    let update = kvc_update {
        size: u32::try_from(size_of::<kvc_update>()).unwrap(),
        action: KVC_ACTION_DELETE,
        ..kvc_update::default()
    };
    let update = kvc_op { updates: &raw const update, n: 1, ..of(KVC_OP_UPDATE) };
    let size = u32::try_from(size_of::<kvc_scan_options>()).unwrap();
    let timed = kvc_scan_options { size, timeout_ms: 1, ..kvc_scan_options::default() };
    let reserved = kvc_scan_options { size, reserved: 1, ..kvc_scan_options::default() };
    let dst = (&raw mut room).cast();
    for (op, field) in [
        (kvc_op { token: 1, ..of(KVC_OP_GET) }, "kvc_op.token"),
        (kvc_op { page: &raw mut page, ..of(KVC_OP_DELETE) }, "page"),
        (kvc_op { scan: &raw const timed, ..update }, "scan"),
        (kvc_op { value: slice(b"v"), ..update }, "kvc_op.value"),
        (kvc_op { dst, cap: 8, ..update }, "kvc_op.dst"),
        (kvc_op { page: null_mut(), ..scan }, "kvc_op.page is NULL"),
        (kvc_op { key: slice(b"k"), ..scan }, "kvc_op.key"),
        (kvc_op { value: slice(b"v"), ..scan }, "kvc_op.value"),
        (kvc_op { dst, cap: 8, ..scan }, "kvc_op.dst"),
        (kvc_op { if_version: 1, ..scan }, "kvc_op.if_version"),
        (kvc_op { deadline_ms: &raw mut room, ..scan }, "kvc_op.deadline_ms"),
        (kvc_op { scan: &raw const timed, ..scan }, "kvc_scan_options.timeout_ms"),
        (kvc_op { scan: &raw const reserved, ..scan }, "kvc_scan_options.reserved is 1"),
    ] {
        // SAFETY: all arguments are valid.
        assert_eq!(unsafe { kvc_cq_submit(queue, &raw const op, 7) }, KVC_INVALID, "{field}");
        assert!(last_error().contains(field), "{field}: {}", last_error());
    }
    let version = kvc_condition {
        size: u32::try_from(size_of::<kvc_condition>()).unwrap(),
        kind: KVC_IF_ABSENT,
        version: 1,
        ..kvc_condition::default()
    };
    let key = slice(b"k");
    // SAFETY: all arguments are valid; the queue is open.
    unsafe {
        let done = kvc_put_if(handle.0, key, key, &raw const version, null(), null_mut());
        assert_eq!(done, KVC_INVALID);
        assert!(last_error().contains("kvc_condition.version is set"), "{}", last_error());
        assert_eq!(kvc_cq_free(queue), KVC_OK);
    }
    assert!(fake.seen().is_empty(), "no request was sent");
    handle.close();
}

#[test]
fn statuses_of_servers_have_their_numbers() {
    let fake = Fake::start(3, 1);
    let handle = Handle::open(&fake);
    for (responded, status) in [
        (Status::OutOfSpace, KVC_OUT_OF_SPACE),
        (Status::Busy, KVC_BUSY),
        (Status::WrongView, KVC_IN_DOUBT),
        (Status::Unsupported, KVC_PROTOCOL),
    ] {
        fake.script(move |_| Act::Response(responded));
        assert_eq!(handle.put(b"k", b"v", options(60, 0)), status, "{responded:?}");
    }
    fake.script(|_| Act::Response(Status::Lost));
    assert_eq!(handle.get(b"k"), Err(KVC_LOST));
    // The rejection leads to a map without addresses, so there is only one transmission.
    fake.change_map(|map| map.servers.iter_mut().for_each(|server| server.clients = None));
    fake.script(|_| Act::Response(Status::Unavailable));
    assert_eq!(handle.put(b"k", b"v", options(400, 0)), KVC_UNAVAILABLE);
    handle.close();
}

#[test]
fn a_map_that_never_converges_ends_a_call_at_its_deadline() {
    let fake = Fake::start(3, 1);
    let handle = Handle::open(&fake);
    // Every server responds that another server serves the key, whatever map is fetched.
    fake.script(|_| Act::Response(Status::WrongView));
    let (deadline, slack) = (Duration::from_millis(300), Duration::from_secs(2));
    let start = Instant::now();
    assert_eq!(handle.put(b"k", b"v", options(300, 0)), KVC_IN_DOUBT, "{}", last_error());
    let taken = start.elapsed();
    assert!((deadline..deadline + slack).contains(&taken), "it took {taken:?}");
    handle.close();
}

#[test]
fn many_threads_use_one_handle_at_once() {
    let fake = Fake::start(3, 2);
    let handle = Handle::open(&fake);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                let handle: Handle = handle;
                for n in 0..100 {
                    let key = format!("{thread}-{n}").into_bytes();
                    assert_eq!(handle.put(&key, &key, None), KVC_OK, "{}", last_error());
                    assert_eq!(handle.get(&key), Ok(key));
                }
            });
        }
    });
    assert_eq!(fake.executed().len(), 800);
    handle.close();
}

#[test]
fn a_thread_does_not_wait_for_the_slow_call_of_another() {
    let fake = Fake::start(3, 1);
    let handle = Handle::open(&fake);
    fake.script(|seen| if seen.key == b"slow" { Act::Ignore } else { Act::Serve });
    std::thread::scope(|scope| {
        let slow = scope.spawn(move || {
            let handle: Handle = handle;
            handle.put(b"slow", b"", options(3_000, 0))
        });
        while fake.seen().is_empty() {
            std::thread::yield_now();
        }
        let start = std::time::Instant::now();
        assert_eq!(handle.put(b"quick", b"", None), KVC_OK);
        assert!(start.elapsed() < std::time::Duration::from_secs(2) && !slow.is_finished());
        assert_eq!(slow.join().unwrap(), KVC_IN_DOUBT);
    });
    handle.close();
}

#[test]
fn an_inherited_handle_is_rejected_after_a_fork_and_the_parents_stays_usable() {
    let fake = Fake::start(3, 1);
    let handle = Handle::open(&fake);
    assert_eq!(handle.put(b"k", b"v", None), KVC_OK);
    // SAFETY: the child makes three calls that start no thread and take no lock of this process, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let put = handle.put(b"k", b"w", None);
        // SAFETY: the handle is open in this process's memory; _exit runs no code of the test.
        unsafe {
            let close = kvc_close(handle.0);
            libc::_exit(if (put, close) == (KVC_FORKED, KVC_FORKED) { 0 } else { 1 });
        }
    }
    let mut status = -1;
    // SAFETY: `child` is a child of this process, and `status` may be written to.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(handle.get(b"k"), Ok(b"v".to_vec()));
    handle.close();
}
