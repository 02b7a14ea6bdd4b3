//! Tests of the destination of a value's bytes: the caller's memory, separate memory, or none.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Act, Fake, SOON, anytime, key_of, open, within};
use kv_client::{Client, Error, Landing, Op, OpOptions, Part, Reply, Room, SequenceNumber};

const LONG: usize = 1 << 20;

/// Returns a value that differs at every position between seeds.
fn value(seed: u8) -> Vec<u8> {
    (0..LONG)
        .map(|at| u8::try_from(at % 251).unwrap().wrapping_mul(31).wrapping_add(seed))
        .collect()
}

/// Reads a whole value into `room`. Returns its length, and whether it was received directly into `room`.
fn read_into(
    client: &mut Client,
    key: &[u8],
    room: &mut [u8],
    options: &OpOptions,
) -> Result<(usize, bool), Error> {
    let (at, bytes) = (NonNull::new(room.as_mut_ptr()).unwrap(), room.len());
    let part = Part { all_or_nothing: true, ..Part::new(0, u32::try_from(bytes).unwrap()) };
    // SAFETY: `room` outlives the call.
    let landing = Landing::At(unsafe { Room::new(at, bytes) });
    client.call(Op::Read { key, part: Some(part), landing }, options, |responded| {
        (responded.length, responded.value.as_ptr() == at.as_ptr())
    })
}

#[test]
fn a_long_value_is_received_in_the_memory_of_the_caller() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", &value(1), &anytime()).unwrap();
    let mut room = vec![0; LONG + 10];
    assert_eq!(read_into(&mut client, b"k", &mut room, &anytime()).unwrap(), (LONG, true));
    assert!(room[..LONG] == value(1) && room[LONG..] == [0; 10]);
    // The next responses on the same connection are intact.
    client.put(b"k", b"short", &anytime()).unwrap();
    assert_eq!(client.get(b"k", &anytime()).unwrap().bytes, b"short");
    assert_eq!(read_into(&mut client, b"k", &mut room, &anytime()).unwrap(), (5, false));
}

#[test]
fn a_long_value_arrives_in_separate_memory_and_a_short_one_does_not() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let take = |responded: Reply<'_>| {
        assert_eq!(responded.value, value(2));
        responded.take_memory().unwrap()
    };
    client.put(b"k", &value(2), &anytime()).unwrap();
    let memory = client.get_with(b"k", &anytime(), take).unwrap();
    let (at, bytes) = memory.into_raw();
    // SAFETY: the memory has `bytes` bytes and a NUL after them, and is freed once.
    unsafe {
        let got = std::slice::from_raw_parts(at.as_ptr(), bytes + 1);
        assert!(got[..bytes] == value(2) && got[bytes] == 0);
        libc::free(at.as_ptr().cast());
    }
    client.put(b"k", b"short", &anytime()).unwrap();
    assert!(client.get_with(b"k", &anytime(), |a| a.take_memory().is_none()).unwrap());
}

#[test]
fn only_the_requested_part_of_a_value_is_sent_and_its_length_can_be_read_alone() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let whole = value(3);
    let version = client.put(b"k", &whole, &anytime()).unwrap().version;
    for served in [Act::Serve, Act::ServeWhole] {
        fake.script(move |_| served.clone());
        let far = u32::try_from(LONG).unwrap();
        for (from, most) in [(0, 0), (0, 7), (100, 200_000), (far - 3, 9), (far, 1), (u32::MAX, 5)]
        {
            let part = client.get_part(b"k", (from, most), &anytime()).unwrap();
            let begin = LONG.min(from as usize);
            let end = LONG.min(begin + most as usize);
            assert!(part.bytes == whole[begin..end], "{most} from {from}");
            assert_eq!((part.length, part.version), (LONG, version));
        }
        assert_eq!(client.length(b"k", &anytime()).unwrap(), (LONG, version));
        let mut room = vec![7; LONG - 1];
        assert_eq!(read_into(&mut client, b"k", &mut room, &anytime()).unwrap(), (LONG, false));
        assert!(room == vec![7; LONG - 1], "nothing of a value that does not fit is copied");
    }
    let missing = client.get_part(b"absent", (0, 9), &anytime());
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    assert_ne!(version, SequenceNumber::ZERO);
}

#[test]
fn a_server_that_sends_more_than_requested_loses_its_connection_and_writes_nothing() {
    for length in [100, LONG] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        client.put(b"k", &value(7)[..length], &anytime()).unwrap();
        fake.script(common::first(Act::ServeTooMuch));
        let mut room = vec![9; length];
        let (at, part) = (NonNull::new(room.as_mut_ptr()).unwrap(), Some(Part::new(0, 8)));
        // SAFETY: `room` outlives the call.
        let landing = Landing::At(unsafe { Room::new(at, 8) });
        let read = Op::Read { key: b"k", part, landing };
        let got = client.call(read, &anytime(), |responded| responded.value.to_vec()).unwrap();
        assert_eq!(got, value(7)[..8]);
        assert!(room[8..].iter().all(|&byte| byte == 9), "bytes behind the room were written");
        assert_eq!(client.statistics().connections_lost, 1);
    }
}

#[test]
fn a_later_part_is_correct_when_a_server_sends_the_whole_value() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", &value(8), &anytime()).unwrap();
    fake.script(|_| Act::ServeWhole);
    // The whole value would fit the room.
    let mut room = vec![0; 2 * LONG];
    let at = NonNull::new(room.as_mut_ptr()).unwrap();
    let part = Part::new(100, u32::try_from(room.len()).unwrap());
    // SAFETY: `room` outlives the call.
    let landing = Landing::At(unsafe { Room::new(at, room.len()) });
    let read = Op::Read { key: b"k", part: Some(part), landing };
    let is_there = client.call(read, &anytime(), |responded| {
        assert!(responded.value == &value(8)[100..]);
        responded.value.as_ptr() == at.as_ptr()
    });
    assert!(!is_there.unwrap(), "the part does not begin where the value was received");
    assert_eq!(room[0], 0);
}

/// A server stalls after half of a value, and the group moves. Whichever response is complete first, its bytes must not
/// be mixed with those of the other one.
#[test]
fn one_connection_at_a_time_writes_into_the_callers_memory() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, &value(4), &anytime()).unwrap();
    let is_open = Arc::new(AtomicBool::new(false));
    let (halved, newer) = (Arc::clone(&is_open), Arc::new(AtomicBool::new(false)));
    let second = Arc::clone(&newer);
    fake.script(move |seen| match seen.server {
        0 => Act::Halve(Arc::clone(&halved)),
        _ => Act::Halve(Arc::clone(&second)),
    });
    let mut room = vec![0; LONG];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let got = read_into(&mut client, &key, &mut room, &anytime());
            (got, client)
        });
        common::wait_until(|| fake.seen().iter().any(|seen| seen.server == 0 && seen.seq == 0));
        // The value is different, so that a mixture of both would be visible.
        fake.replace(&key, &value(5));
        fake.promote(0, 1);
        common::wait_until(|| fake.seen().iter().any(|seen| seen.server == 1));
        // Both servers have sent half of their responses. The old server continues first.
        is_open.store(true, Ordering::SeqCst);
        common::wait_until(|| fake.finished_halves() == 1);
        newer.store(true, Ordering::SeqCst);
        let (got, _) = reader.join().unwrap();
        assert_eq!(got.unwrap(), (LONG, true));
    });
    // If the rest of the old response arrives before the new one begins, the old value is the result.
    assert!(room == value(5) || room == value(4), "a mixture of two values");
}

#[test]
fn memory_is_not_written_after_the_operation_has_ended() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, &value(6), &anytime()).unwrap();
    let is_open = Arc::new(AtomicBool::new(false));
    fake.script(common::first(Act::Halve(Arc::clone(&is_open))));
    let mut room = vec![0; LONG];
    let ended = read_into(&mut client, &key, &mut room, &within(SOON));
    assert!(matches!(ended, Err(Error::Timeout { .. })), "{ended:?}");
    room.fill(9);
    is_open.store(true, Ordering::SeqCst);
    // The connection stays usable after the rest of the old response.
    assert_eq!(client.get(&key, &anytime()).unwrap().bytes, value(6));
    assert!(room == vec![9; LONG]);
    assert_eq!(client.statistics().connections_lost, 0);
}
