//! The tests in C (`tests/c/`, with cmocka) against real clusters: as plain builds, with the
//! compiler's sanitizers, and under valgrind.

use std::fmt::Write;
use std::path::PathBuf;

use crate::common::Cluster;
use crate::common::workshop::{Workshop, root};

/// The compiler flags of a build, and the tool that runs the program.
struct Manner {
    flags: &'static [&'static str],
    tool: &'static [&'static str],
}

/// A plain build, without libc's caches of freed memory, which would count as memory in use.
const PLAIN: Manner =
    Manner { flags: &["-O2"], tool: &["GLIBC_TUNABLES=glibc.malloc.tcache_count=0"] };
/// A build with the address and the undefined-behaviour sanitizer. A report of either fails the program, and leaks are
/// checked at its exit.
const SANITIZED: Manner = Manner {
    flags: &["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    tool: &["ASAN_OPTIONS=detect_stack_use_after_return=1"],
};
/// A build with the thread sanitizer. A data race fails the program, unless the installed suppressions file covers it.
const THREADS: Manner = Manner {
    flags: &["-g", "-O1", "-fsanitize=thread"],
    tool: &[concat!("TSAN_OPTIONS=suppressions=", env!("CARGO_MANIFEST_DIR"), "/ffi/tsan.supp")],
};
const VALGRIND: Manner = Manner {
    flags: &["-g", "-O1"],
    tool: &[
        "valgrind",
        "--quiet",
        "--error-exitcode=99",
        "--leak-check=full",
        "--show-leak-kinds=definite,indirect,possible",
        "--errors-for-leak-kinds=definite,indirect,possible",
        // Under valgrind, one thread runs at a time. Without fair scheduling, one thread could starve the others.
        "--fair-sched=yes",
    ],
};

/// Compiles and runs a test of `tests/c/`; fails if the compiler or the test fails.
#[track_caller]
fn check(name: &str, manner: &Manner, arguments: &[String]) {
    check_in(&Workshop::open(), name, manner, &[], arguments);
}

/// Does the same as [`check`] in this workshop, with further environment variables for the program.
#[track_caller]
fn check_in(
    workshop: &Workshop,
    name: &str,
    manner: &Manner,
    variable: &[&str],
    arguments: &[String],
) {
    let source: PathBuf = root().join("tests/c").join(name);
    let mut words = vec!["-std=c11", "-D_GNU_SOURCE", "-lcmocka", "-lpthread"];
    words.extend(manner.flags);
    let program = workshop.compile_shared(&source, &words);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = workshop.run_under(&[variable, manner.tool].concat(), &program, &arguments);
    let mut shown = String::new();
    let _ = write!(shown, "{name}: {:?}\n{}\n{}", ended.code, ended.stdout, ended.stderr);
    assert_eq!(ended.code, Some(0), "{shown}");
}

/// Tests the blocking calls and the arguments that they reject, on a cluster whose memory can be filled.
#[track_caller]
fn calls(manner: &Manner) {
    let cluster = Cluster::builder().flag("--memory-limit").flag("128MiB").start();
    check("calls.c", manner, &[cluster.endpoint()]);
    cluster.stop().assert_copies_agree();
}

/// Tests the example with threads.
#[track_caller]
fn threads(manner: &Manner) {
    let cluster = Cluster::start();
    check("../../examples/c/threads.c", manner, &[cluster.endpoint()]);
}

#[track_caller]
fn batch(manner: &Manner) {
    let cluster = Cluster::builder().shards(2).start();
    check("batch.c", manner, &[cluster.endpoint()]);
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    assert!(dumps.entries().is_empty());
}

/// Tests updates and deadlines, in calls, batches and queues.
#[track_caller]
fn updates(manner: &Manner) {
    let cluster = Cluster::builder().shards(2).start();
    check("updates.c", manner, &[cluster.endpoint()]);
    cluster.stop().assert_copies_agree();
}

/// Tests scans by calls, in queues and in batches.
#[track_caller]
fn scan(manner: &Manner) {
    let cluster = Cluster::builder().shards(2).start();
    check("scan.c", manner, &[cluster.endpoint()]);
    cluster.stop().assert_copies_agree();
}

#[track_caller]
fn queue(manner: &Manner) {
    let cluster = Cluster::builder().shards(2).start();
    check("queue.c", manner, &[cluster.endpoint()]);
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    // A put that was sent completely before its queue was freed may be done after all other operations.
    dumps.entries().keys().for_each(|key| assert_eq!(*key, b"given up"));
}

#[track_caller]
fn shared(manner: &Manner) {
    let cluster = Cluster::builder().shards(8).start();
    check("shared.c", manner, &[cluster.endpoint()]);
    cluster.stop().assert_copies_agree();
}

/// Tests a queue of the maximum depth. It runs only as a plain build, because it measures time.
#[track_caller]
fn deep_queue(manner: &Manner) {
    let cluster = Cluster::start();
    check("deep_queue.c", manner, &[cluster.endpoint()]);
    cluster.stop().assert_copies_agree();
}

/// Tests calls without memory. It runs only as a plain build, because the tools need additional memory.
#[track_caller]
fn memory(manner: &Manner) {
    let cluster = Cluster::start();
    let pids = cluster.server_pids().into_iter().map(|pid| pid.to_string());
    let arguments: Vec<String> = [cluster.endpoint()].into_iter().chain(pids).collect();
    check("memory.c", manner, &arguments);
}

#[track_caller]
fn reload(manner: &Manner) {
    let cluster = Cluster::start();
    check("reload.c", manner, &[cluster.endpoint()]);
}

#[track_caller]
fn doubt(manner: &Manner) {
    let cluster = Cluster::start();
    check("doubt.c", manner, &endpoint_and_processes(&cluster));
}

#[track_caller]
fn stopped_server(manner: &Manner) {
    let cluster = Cluster::start();
    check("stopped_server.c", manner, &[cluster.endpoint(), cluster.server_pid(1).to_string()]);
    cluster.await_whole();
    cluster.stop().assert_copies_agree();
}

#[track_caller]
fn statistics(manner: &Manner) {
    let cluster = Cluster::builder().shards(2).start();
    check("statistics.c", manner, &[cluster.endpoint()]);
}

#[track_caller]
fn events(manner: &Manner) {
    let cluster = Cluster::start();
    check("events.c", manner, &[cluster.endpoint(), cluster.server_pid(0).to_string()]);
    cluster.await_whole();
    check("events.c", manner, &endpoint_and_processes(&cluster));
}

#[track_caller]
fn interrupt(manner: &Manner) {
    let cluster = Cluster::start();
    check("interrupt.c", manner, &endpoint_and_processes(&cluster));
}

#[track_caller]
fn forked(manner: &Manner) {
    let cluster = Cluster::start();
    check("forked.c", manner, &[cluster.endpoint()]);
}

fn endpoint_and_processes(cluster: &Cluster) -> Vec<String> {
    let pids = [cluster.coord_pid()].into_iter().chain(cluster.server_pids());
    [cluster.endpoint()].into_iter().chain(pids.map(|pid| pid.to_string())).collect()
}

#[test]
fn a_wall_clock_that_jumps_moves_no_deadline() {
    let cluster = Cluster::start();
    let workshop = Workshop::open();
    let source = root().join("tests/c/jumping_clock.c");
    let clock = workshop.compile(&source, &["-D_GNU_SOURCE", "-shared", "-fPIC"]);
    let preloaded = format!("LD_PRELOAD={}", clock.display());
    let arguments = endpoint_and_processes(&cluster);
    check_in(&workshop, "doubt.c", &PLAIN, &[&preloaded], &arguments);
}

#[track_caller]
fn failover(manner: &Manner) {
    let cluster = Cluster::builder().flag("--on-double-fault").flag("isolate").start();
    check("failover.c", manner, &[cluster.endpoint(), cluster.server_pid(0).to_string()]);
    cluster.await_whole();
    check("takeover.c", manner, &[cluster.endpoint(), cluster.server_pid(0).to_string()]);
    // The next program kills both holders of group 1, so server 0 must first hold its two groups again.
    cluster.await_whole();
    let holders = [1, 2].map(|id| cluster.server_pid(id).to_string());
    check("lost.c", manner, &[&[cluster.endpoint()][..], &holders].concat());
}

macro_rules! in_every_manner {
    ($($name:ident: $run:ident in $manner:ident;)*) => {
        $(#[test]
        fn $name() {
            $run(&$manner);
        })*
    };
}

in_every_manner! {
    every_function_does_what_the_header_says: calls in PLAIN;
    every_function_passes_the_sanitizers: calls in SANITIZED;
    every_function_passes_valgrind: calls in VALGRIND;
    every_function_passes_the_thread_sanitizer: calls in THREADS;
    threads_pass_the_thread_sanitizer: threads in THREADS;
    a_batch_does_what_the_header_says: batch in PLAIN;
    a_batch_passes_the_sanitizers: batch in SANITIZED;
    a_batch_passes_the_thread_sanitizer: batch in THREADS;
    a_batch_passes_valgrind: batch in VALGRIND;
    a_queue_does_what_the_header_says: queue in PLAIN;
    a_queue_passes_the_sanitizers: queue in SANITIZED;
    a_queue_passes_the_thread_sanitizer: queue in THREADS;
    a_queue_passes_valgrind: queue in VALGRIND;
    updates_do_what_the_header_says: updates in PLAIN;
    updates_pass_the_sanitizers: updates in SANITIZED;
    updates_pass_the_thread_sanitizer: updates in THREADS;
    updates_pass_valgrind: updates in VALGRIND;
    scans_do_what_the_header_says: scan in PLAIN;
    scans_pass_the_sanitizers: scan in SANITIZED;
    scans_pass_valgrind: scan in VALGRIND;
    threads_share_a_handle: shared in PLAIN;
    threads_share_a_handle_and_pass_the_sanitizers: shared in SANITIZED;
    the_deepest_queue_passes_no_write_over: deep_queue in PLAIN;
    without_memory_a_call_says_so_and_the_handle_goes_on: memory in PLAIN;
    loading_the_library_again_leaves_nothing: reload in PLAIN;
    loading_the_library_again_passes_the_sanitizers: reload in SANITIZED;
    loading_the_library_again_passes_valgrind: reload in VALGRIND;
    a_cluster_that_stands_holds_no_call_beyond_its_deadline: doubt in PLAIN;
    a_cluster_that_stands_passes_the_sanitizers: doubt in SANITIZED;
    a_cluster_that_stands_passes_valgrind: doubt in VALGRIND;
    writes_to_a_stopped_server_are_settled: stopped_server in PLAIN;
    writes_to_a_stopped_server_pass_the_sanitizers: stopped_server in SANITIZED;
    counters_say_what_was_done: statistics in PLAIN;
    counters_pass_the_sanitizers: statistics in SANITIZED;
    counters_pass_valgrind: statistics in VALGRIND;
    events_say_what_happened: events in PLAIN;
    events_pass_the_sanitizers: events in SANITIZED;
    interrupted_and_cancelled_operations_end_as_the_header_says: interrupt in PLAIN;
    interrupted_and_cancelled_operations_pass_the_sanitizers: interrupt in SANITIZED;
    interrupted_and_cancelled_operations_pass_the_thread_sanitizer: interrupt in THREADS;
    interrupted_and_cancelled_operations_pass_valgrind: interrupt in VALGRIND;
    a_child_gives_back_what_it_inherited: forked in PLAIN;
    a_child_gives_back_what_it_inherited_and_passes_the_sanitizers: forked in SANITIZED;
    a_child_gives_back_what_it_inherited_and_passes_valgrind: forked in VALGRIND;
    a_killed_server_costs_no_write: failover in PLAIN;
    a_killed_server_passes_the_sanitizers: failover in SANITIZED;
    a_killed_server_passes_valgrind: failover in VALGRIND;
}
