//! Bulk operations through the client library.

use std::time::Duration;

use kv_client::{Client, Completion, Error, Op, OpOptions, Outcome, SubmitError};

use super::TIMEOUT;

/// Submits all operations, as many at once as the client accepts. Passes each result to `ended`, with the operation's
/// position in the sequence.
#[track_caller]
pub(crate) fn run_all<'a>(
    client: &mut Client,
    operations: impl IntoIterator<Item = Op<'a>>,
    mut ended: impl FnMut(usize, Result<Outcome, Error>),
) {
    let options = OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() };
    let mut completions = Vec::new();
    for (place, operation) in operations.into_iter().enumerate() {
        loop {
            match client.submit(operation, &options, place as u64) {
                Ok(()) => break,
                Err(SubmitError::Full { .. }) => collect(client, &mut completions, &mut ended),
                Err(error) => panic!("submit operation {place}: {error}"),
            }
        }
    }
    while client.in_flight() > 0 {
        collect(client, &mut completions, &mut ended);
    }
}

#[track_caller]
fn collect(
    client: &mut Client,
    completions: &mut Vec<Completion>,
    ended: &mut impl FnMut(usize, Result<Outcome, Error>),
) {
    client.poll(Duration::from_secs(1), completions).expect("poll");
    for completion in completions.drain(..) {
        ended(usize::try_from(completion.tag).expect("a place"), completion.result);
    }
}

/// Puts all pairs. Each must be stored in two copies.
#[track_caller]
pub(crate) fn put_all(client: &mut Client, pairs: &[(Vec<u8>, Vec<u8>)]) {
    let puts = pairs.iter().map(|(key, value)| Op::Put { key, value });
    run_all(client, puts, |place, result| match result {
        Ok(outcome) => assert_eq!(outcome.copies, 2, "copies of put {place}"),
        Err(error) => panic!("put {place}: {error}"),
    });
}

/// Gets all keys and compares their values.
#[track_caller]
pub(crate) fn check_all(client: &mut Client, pairs: &[(Vec<u8>, Vec<u8>)]) {
    let gets = pairs.iter().map(|(key, _)| Op::Get { key });
    run_all(client, gets, |place, result| match result {
        Ok(outcome) => assert!(outcome.value == pairs[place].1, "get {place}: wrong value"),
        Err(error) => panic!("get {place}: {error}"),
    });
}
