//! Tests of memory. The status matches the processes' memory, the limit is kept, and the memory of deleted data is
//! released.

use crate::common::load::{put_all, run_all};
use crate::common::{Cluster, TIMEOUT, process, wait_until};
use kv_client::{Error, Op, OpOptions};

/// The minimum number of bytes of entries for each server in either role. The few megabytes of the process itself are
/// negligible compared with that.
const LOADED: usize = 64 << 20;

/// The memory of a process under load in addition to its tables: receive buffers, and chunks that are kept ready.
const OWN: u64 = 8 << 20;

fn pairs(count: usize, value_bytes: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let byte = |n: usize| n.to_le_bytes()[0];
    (0..count).map(|n| (format!("key {n}").into_bytes(), vec![byte(n); value_bytes])).collect()
}

fn delete_all(cluster: &Cluster, pairs: &[(Vec<u8>, Vec<u8>)]) {
    let deletes = pairs.iter().map(|(key, _)| Op::Delete { key });
    run_all(&mut cluster.open(), deletes, |place, result| {
        result.unwrap_or_else(|error| panic!("delete {place}: {error}"));
    });
}

/// Returns true if two numbers differ by at most a tenth of the second.
fn agree(one: u64, other: u64) -> bool {
    one.abs_diff(other) <= other / 10
}

#[test]
fn the_status_reports_the_memory_of_tables_and_deleted_data_is_released() {
    for value_bytes in [64, 100_000] {
        let cluster = Cluster::start();
        let pids = cluster.server_pids();
        let before: Vec<u64> = pids.iter().map(|pid| process::resident_bytes(*pid)).collect();
        let pairs = pairs(3 * LOADED / (value_bytes + 40), value_bytes);
        put_all(&mut cluster.open(), &pairs);
        let mut taken = Vec::new();
        wait_until("the status to report the memory of the processes", TIMEOUT, || {
            taken = pids
                .iter()
                .zip(&before)
                .map(|(pid, before)| process::resident_bytes(*pid).saturating_sub(*before))
                .collect();
            let status = cluster.status();
            let said: Vec<u64> = status.servers.iter().map(|server| server.table_bytes).collect();
            said.iter().all(|said| *said > LOADED as u64)
                && taken.iter().zip(&said).all(|(taken, said)| agree(*taken, *said))
        });
        delete_all(&cluster, &pairs);
        wait_until("nine tenths of it to be released", TIMEOUT, || {
            let status = cluster.status();
            let left = status.servers.iter().map(|server| server.table_bytes);
            let resident = pids.iter().map(|pid| process::resident_bytes(*pid));
            left.zip(resident).zip(before.iter().zip(&taken)).all(
                |((left, resident), (before, taken))| {
                    left < taken / 10 && resident < before + taken / 10 + OWN
                },
            )
        });
    }
}

#[test]
fn the_memory_limit_is_exact_within_two_percent() {
    const LIMIT: u64 = 128 << 20;
    const VALUE_BYTES: usize = 10_000;
    let cluster = Cluster::builder().flag("--memory-limit").flag("128M").start();
    let mut client = cluster.open();
    let pairs = pairs(3 * LOADED / VALUE_BYTES * 12 / 10, VALUE_BYTES);
    let mut refused = 0;
    let puts = pairs.iter().map(|(key, value)| Op::Put { key, value });
    run_all(&mut client, puts, |place, result| match result {
        Ok(_) => {}
        Err(Error::OutOfSpace { .. }) => refused += 1,
        Err(error) => panic!("put {place}: {error}"),
    });
    assert!(refused > pairs.len() / 20, "{refused} of {} writes were rejected", pairs.len());
    wait_until("tables within two percent of the limit", TIMEOUT, || {
        let status = cluster.status();
        let said = status.servers.iter().map(|server| server.table_bytes);
        said.into_iter().all(|said| said.abs_diff(LIMIT) <= LIMIT / 50)
    });
    let key = &pairs[0].0;
    assert_eq!(client.get(key, &OpOptions::default()).expect("a get").bytes, pairs[0].1);
}

/// Returns a pseudo-random number for each input, evenly spread.
fn spread(number: usize) -> usize {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

#[test]
fn deleted_entries_leave_room_for_larger_ones() {
    const LIMIT: u64 = 140 << 20;
    const SMALL: usize = 300_000;
    const LARGE: usize = 125_000;
    let cluster = Cluster::builder().flag("--memory-limit").flag("140MiB").start();
    let mut client = cluster.open();
    let keys: Vec<Vec<u8>> = (0..SMALL + LARGE).map(|n| format!("key {n}").into_bytes()).collect();
    let bytes: Vec<u8> = (0..4_096usize).map(|n| spread(n).to_le_bytes()[0]).collect();
    let small = |n: usize| &bytes[n % 1_000..][..200 + spread(n) % 800];
    let large = |n: usize| &bytes[n % 1_000..][..1_100 + spread(n) % 1_500];
    let puts = (0..SMALL).map(|n| Op::Put { key: &keys[n], value: small(n) });
    run_all(&mut client, puts, |n, result| {
        result.unwrap_or_else(|error| panic!("put {n}: {error}"));
    });
    let stays = |n: &usize| spread(*n + SMALL).is_multiple_of(10);
    let gone = (0..SMALL).filter(|n| !stays(n)).map(|n| Op::Delete { key: &keys[n] });
    run_all(&mut client, gone, |place, result| {
        result.unwrap_or_else(|error| panic!("delete {place}: {error}"));
    });
    let mut done = vec![false; LARGE];
    let puts = (0..LARGE).map(|n| Op::Put { key: &keys[SMALL + n], value: large(n) });
    run_all(&mut client, puts, |n, result| match result {
        Ok(_) => done[n] = true,
        Err(Error::OutOfSpace { .. }) => {}
        Err(error) => panic!("put {n}: {error}"),
    });
    assert!(done.contains(&false), "the limit was not reached");
    wait_until(
        "primary tables filled to 85 %, and tables of at most 105 % of the limit",
        TIMEOUT,
        || {
            let status = cluster.status();
            status.servers.iter().all(|server| {
                server.primary_used_bytes >= LIMIT / 2 / 100 * 85
                    && server.table_bytes <= LIMIT + LIMIT / 20
            })
        },
    );
    let kept = (0..SMALL).filter(stays).map(|n| (n, small(n)));
    let new = (0..LARGE).filter(|n| done[*n] && n % 8 == 0).map(|n| (SMALL + n, large(n)));
    let expected: Vec<(usize, &[u8])> = kept.chain(new).collect();
    let gets = expected.iter().map(|(n, _)| Op::Get { key: &keys[*n] });
    run_all(&mut client, gets, |place, result| {
        let outcome = result.unwrap_or_else(|error| panic!("get {place}: {error}"));
        assert!(outcome.value == expected[place].1, "get {place} returned another value");
    });
}
