//! Tests of the ring on pairs of sockets: nothing is lost when buffers run out, and every buffer comes back.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

use super::*;

const SIZES: Sizes = Sizes { requests: 4, completions: 64, in_pieces: SHAPE, at_once: SHAPE };
const SHAPE: Shape = Shape { count: 2, bytes_each: 64 };
const SLOT: SlotId = SlotId(3);
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of bytes of a send.
const MOST: usize = usize::MAX >> 33;

fn ring() -> Uring {
    let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    Uring::new(SIZES, bell.as_fd()).unwrap()
}

fn filled(filling: Filling) -> Uring {
    let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    Uring::with(SIZES, bell.as_fd(), filling).unwrap()
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
}

/// Returns the next completion, or several if they arrive together.
fn next(ring: &mut Uring) -> Vec<Completion> {
    let mut done = Vec::new();
    ring.enter().unwrap();
    ring.reap(&mut done, usize::MAX);
    if done.is_empty() {
        ring.enter_and_sleep(TIMEOUT).unwrap();
        ring.reap(&mut done, usize::MAX);
    }
    assert!(!done.is_empty(), "nothing completed in {TIMEOUT:?}");
    done
}

#[test]
fn every_token_names_its_owner() {
    for request in [
        Request::Accept,
        Request::Connect,
        Request::Receive,
        Request::ReceiveInto,
        Request::Send,
        Request::Cancel,
    ] {
        for slot in [0, 1, 0x8000_0001, u32::MAX] {
            assert_eq!(owner(token(SlotId(slot), request)), (SlotId(slot), request));
        }
    }
}

#[test]
fn nothing_is_lost_when_all_buffers_are_in_use_and_receiving_is_armed_again() {
    for filling in [Filling::Pieces, Filling::Once] {
        nothing_is_lost(filling);
    }
}

fn nothing_is_lost(filling: Filling) {
    let mut ring = filled(filling);
    let (ours, theirs) = pair();
    let sent: Vec<u8> = (0..1_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let count = rustix::net::send(&theirs, &sent, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(count, sent.len());
    let (mut received, mut lent_out, mut exhausted) = (Vec::new(), Vec::new(), 0);
    ring.receive(SLOT, &ours, Group::Clients);
    while received.len() < sent.len() {
        for Completion { has_more, event, .. } in next(&mut ring) {
            match event {
                Event::Received(Ok(Some(lent))) => {
                    received.extend_from_slice(ring.bytes(&lent));
                    // The piece is kept, as in a wake-up that serves many connections.
                    lent_out.push(lent);
                }
                Event::Received(Err(error)) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
                    exhausted += 1;
                }
                other => panic!("{other:?}"),
            }
            if !has_more {
                lent_out.drain(..).for_each(|lent| ring.give_back(lent));
                ring.receive(SLOT, &ours, Group::Clients);
            }
        }
        if received.len() == sent.len() {
            break;
        }
    }
    assert_eq!(received, sent);
    assert!(exhausted > 0, "2 buffers of 64 bytes were enough for {} bytes", sent.len());
}

/// Returns the pieces that are received next.
fn pieces(ring: &mut Uring) -> Vec<Lent> {
    let piece = |completion| match completion {
        Completion { has_more: true, event: Event::Received(Ok(Some(lent))), .. } => lent,
        other => panic!("{other:?}"),
    };
    next(ring).into_iter().map(piece).collect()
}

#[test]
fn a_shared_buffer_is_refilled_only_after_all_its_pieces_are_returned() {
    let mut ring = filled(Filling::Pieces);
    let sockets = [pair(), pair()];
    for (slot, (ours, _)) in (0..).map(SlotId).zip(&sockets) {
        ring.receive(slot, ours, Group::Clients);
    }
    let mut lent = Vec::new();
    for turn in 0..200usize {
        // Each word has seven bytes, so the end of a buffer splits one of the words.
        let word: Vec<u8> = (0..7).map(|n| (turn * 7 + n).to_le_bytes()[0]).collect();
        rustix::net::send(&sockets[turn % 2].1, &word, SendFlags::NOSIGNAL).unwrap();
        let mut came = Vec::new();
        while came.len() < word.len() {
            for piece in pieces(&mut ring) {
                came.extend_from_slice(ring.bytes(&piece));
                lent.push((piece, came.clone()));
            }
        }
        assert_eq!(came, word, "turn {turn}");
        // Pieces are returned out of order, and up to three stay lent.
        while lent.len() > 3 {
            ring.give_back(lent.remove(turn % 2).0);
        }
        for (piece, came) in &lent {
            assert!(came.ends_with(ring.bytes(piece)), "a lent piece was overwritten");
        }
    }
}

#[test]
fn the_end_of_the_input_uses_no_buffer() {
    for filling in [Filling::Pieces, Filling::Once] {
        let mut ring = filled(filling);
        for _ in 0..5 {
            let (ours, theirs) = pair();
            ring.receive(SLOT, &ours, Group::Clients);
            drop(theirs);
            assert!(matches!(
                next(&mut ring)[..],
                [Completion { has_more: false, event: Event::Received(Ok(None)), .. }]
            ));
            let (ours, theirs) = pair();
            ring.receive(SLOT, &ours, Group::Clients);
            rustix::net::send(&theirs, b"a word", SendFlags::NOSIGNAL).unwrap();
            let mut came = Vec::new();
            while came.len() < b"a word".len() {
                for piece in pieces(&mut ring) {
                    came.extend_from_slice(ring.bytes(&piece));
                    ring.give_back(piece);
                }
            }
            assert_eq!(came, b"a word", "{filling:?}");
            ring.cancel(SLOT, Request::Receive);
            let mut left = 2;
            while left > 0 {
                left -= next(&mut ring).len();
            }
        }
    }
}

#[test]
fn a_receive_appends_to_its_buffer_and_returns_it() {
    let mut ring = ring();
    let (ours, theirs) = pair();
    ring.receive_into(SLOT, &ours, b"begin".to_vec(), 100);
    rustix::net::send(&theirs, b" and end", SendFlags::NOSIGNAL).unwrap();
    match next(&mut ring).pop().unwrap().event {
        Event::ReceivedInto(Ok(8), buffer) => assert_eq!(buffer, b"begin and end"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_send_returns_its_buffer_after_a_cancellation_and_after_a_failure() {
    let mut ring = ring();
    let (ours, theirs) = pair();
    // The message exceeds the free space of the socket: a part is sent, and then nothing until the other end reads.
    let long = vec![7; 8 << 20];
    ring.send(SLOT, &ours, long.clone(), 0, long.len(), WhenFull::Fail);
    let Some(Completion { event: Event::Sent(Ok(count), long, 0), .. }) = next(&mut ring).pop()
    else {
        panic!("the first part was not sent");
    };
    assert!(count < long.len());
    ring.send(SLOT, &ours, long, count, MOST, WhenFull::Wait);
    ring.enter().unwrap();
    ring.cancel(SLOT, Request::Send);
    let mut back = None;
    let mut is_cancelled = false;
    while back.is_none() || !is_cancelled {
        for completion in next(&mut ring) {
            match completion.event {
                Event::Sent(Err(error), long, from) => {
                    assert_eq!((error.raw_os_error(), from), (Some(libc::ECANCELED), count));
                    back = Some(long);
                }
                Event::Cancelled => is_cancelled = true,
                other => panic!("{other:?}"),
            }
        }
    }
    drop(theirs);
    let long = back.unwrap();
    ring.send(SLOT, &ours, long, count, MOST, WhenFull::Wait);
    match next(&mut ring).pop().unwrap().event {
        Event::Sent(Err(error), long, _) => {
            assert_eq!((error.raw_os_error(), long.len()), (Some(libc::EPIPE), 8 << 20));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_enabled_bell_signals_new_work_and_enabling_it_reports_pending_work() {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let mut ring = Uring::new(SIZES, bell.as_fd()).unwrap();
    let (ours, theirs) = pair();
    let is_rung = || rustix::io::read(&bell, &mut [0; 8]).is_ok();
    ring.receive(SLOT, &ours, Group::Clients);
    ring.enter().unwrap();
    rustix::net::send(&theirs, b"1", SendFlags::NOSIGNAL).unwrap();
    assert!(!is_rung(), "the bell is disabled");
    assert!(!ring.listen_for_bell(), "there is work");
    ring.ignore_bell();
    for completion in next(&mut ring) {
        let Event::Received(Ok(Some(lent))) = completion.event else { panic!() };
        ring.give_back(lent);
    }
    assert!(ring.listen_for_bell());
    assert!(!is_rung());
    rustix::net::send(&theirs, b"2", SendFlags::NOSIGNAL).unwrap();
    assert!(is_rung());
}

#[test]
fn a_send_ends_no_wait_and_a_blocked_send_hides_no_event() {
    let mut ring = ring();
    let (ours, theirs) = pair();
    let (heard, speaker) = pair();
    ring.receive(SLOT, &heard, Group::Clients);
    ring.enter().unwrap();
    // The send completes during submission, and yet the wait lasts until its limit.
    ring.send(SLOT, &ours, b"short".to_vec(), 0, MOST, WhenFull::Fail);
    let start = std::time::Instant::now();
    ring.enter_and_sleep(Duration::from_micros(50)).unwrap();
    assert!(start.elapsed() >= Duration::from_micros(50));
    let mut done = Vec::new();
    ring.reap(&mut done, usize::MAX);
    assert!(matches!(done[..], [Completion { event: Event::Sent(Ok(5), ..), .. }]), "{done:?}");
    // The socket is full: the send waits, and other events are still received.
    let long = vec![7; 8 << 20];
    ring.send(SLOT, &ours, long.clone(), 0, long.len(), WhenFull::Fail);
    let Some(Completion { event: Event::Sent(Ok(count), long, 0), .. }) = next(&mut ring).pop()
    else {
        panic!("the first part was not sent");
    };
    ring.send(SLOT, &ours, long, count, MOST, WhenFull::Fail);
    let Some(Completion { event: Event::Sent(Err(error), long, from), .. }) = next(&mut ring).pop()
    else {
        panic!("a send to a full socket that was not to wait");
    };
    assert_eq!((error.raw_os_error(), from), (Some(libc::EAGAIN), count));
    ring.send(SLOT, &ours, long, count, MOST, WhenFull::Wait);
    rustix::net::send(&speaker, b"word", SendFlags::NOSIGNAL).unwrap();
    let start = std::time::Instant::now();
    ring.enter_and_sleep(TIMEOUT).unwrap();
    assert!(start.elapsed() < TIMEOUT, "the wait did not end");
    done.clear();
    ring.reap(&mut done, usize::MAX);
    assert!(
        matches!(done[..], [Completion { event: Event::Received(Ok(Some(_))), .. }]),
        "{done:?}"
    );
    drop(theirs);
}

#[test]
fn waits_share_one_alarm_that_ends_each_of_them() {
    const LONGEST: Duration = Duration::from_millis(20);
    let mut ring = ring();
    let (ours, theirs) = pair();
    ring.receive(SLOT, &ours, Group::Clients);
    let start = std::time::Instant::now();
    rustix::net::send(&theirs, b"word", SendFlags::NOSIGNAL).unwrap();
    ring.enter_and_sleep(LONGEST).unwrap();
    assert!(start.elapsed() < LONGEST, "bytes end a wait");
    let mut done = Vec::new();
    ring.reap(&mut done, usize::MAX);
    assert_eq!(done.len(), 1);
    // This wait does not set the timer, because it is set already.
    ring.enter_and_sleep(TIMEOUT).unwrap();
    assert!((LONGEST..TIMEOUT).contains(&start.elapsed()), "{:?}", start.elapsed());
    done.clear();
    ring.reap(&mut done, usize::MAX);
    assert!(done.is_empty(), "an alarm posts no completion: {done:?}");
    // The next wait sets one.
    let again = std::time::Instant::now();
    ring.enter_and_sleep(LONGEST).unwrap();
    assert!((LONGEST..TIMEOUT).contains(&again.elapsed()), "{:?}", again.elapsed());
}

#[test]
fn clients_that_fill_all_their_buffers_take_none_from_the_streams() {
    for filling in [Filling::Pieces, Filling::Once] {
        let mut ring = filled(filling);
        let [(ours, theirs), (stream, peer)] = [pair(), pair()];
        let other = SlotId(4);
        ring.receive(SLOT, &ours, Group::Clients);
        ring.receive(other, &stream, Group::Streams);
        rustix::net::send(&theirs, &[7; 1_000], SendFlags::NOSIGNAL).unwrap();
        let (mut kept, mut is_exhausted) = (Vec::new(), false);
        while !is_exhausted {
            for completion in next(&mut ring) {
                match completion.event {
                    Event::Received(Ok(Some(lent))) => kept.push(lent),
                    Event::Received(Err(error)) => {
                        is_exhausted = error.raw_os_error() == Some(libc::ENOBUFS);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        for word in [b"one", b"two"] {
            rustix::net::send(&peer, word, SendFlags::NOSIGNAL).unwrap();
            match &mut next(&mut ring)[..] {
                [Completion { slot, has_more: true, event: Event::Received(Ok(Some(lent))) }] => {
                    assert_eq!((*slot, ring.bytes(lent)), (other, &word[..]));
                }
                completions => panic!("{completions:?}"),
            }
        }
        kept.into_iter().for_each(|lent| ring.give_back(lent));
    }
}
