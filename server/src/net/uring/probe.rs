//! A test, on a pair of sockets, of all kernel features that the engine needs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

use super::buffers::{Group, Shape};
use super::ring::{Event, Request, Sizes, SlotId, Uring, WhenFull};

/// Sizes sufficient for the test.
const SIZES: Sizes = Sizes { requests: 4, completions: 16, in_pieces: SHAPE, at_once: SHAPE };
const SHAPE: Shape = Shape { count: 2, bytes_each: 64 };
/// The timeout of one step; each takes microseconds.
const TIMEOUT: Duration = Duration::from_secs(2);
const SLOT: SlotId = SlotId(0);

/// Tries every feature.
///
/// # Errors
/// The step that failed and its error, as text.
pub(crate) fn try_out() -> Result<(), String> {
    let failed = |doing: &'static str| move |error: io::Error| format!("{doing}: {error}");
    let bell = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from);
    let bell = bell.map_err(failed("create an eventfd"))?;
    let ring = Uring::new(SIZES, bell.as_fd());
    let mut ring =
        ring.map_err(failed("set up an io_uring with deferred work and a ring of buffers"))?;
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) =
        pair.map_err(io::Error::from).map_err(failed("create a pair of sockets"))?;
    receive(&mut ring, &ours, &theirs)?;
    send(&mut ring, &ours)
}

/// Receives twice with one multishot request, then cancels the request.
fn receive(ring: &mut Uring, ours: &OwnedFd, theirs: &OwnedFd) -> Result<(), String> {
    ring.receive(SLOT, ours, Group::Clients);
    for word in [b"one", b"two"] {
        let sent = rustix::net::send(theirs, word, SendFlags::NOSIGNAL);
        sent.map_err(|error| format!("send to a pair of sockets: {error}"))?;
        match next(ring)? {
            (true, Event::Received(Ok(Some(lent)))) if ring.bytes(&lent) == word => {
                ring.give_back(lent);
            }
            other => {
                let why = unexpected(other);
                return Err(format!("multishot receive into provided buffers: {why}"));
            }
        }
    }
    ring.cancel(SLOT, Request::Receive);
    for _ in 0..2 {
        match next(ring)? {
            (false, Event::Received(Err(error)))
                if error.raw_os_error() == Some(libc::ECANCELED) => {}
            (false, Event::Cancelled) => {}
            other => return Err(format!("cancel a receive: {}", unexpected(other))),
        }
    }
    Ok(())
}

fn send(ring: &mut Uring, ours: &OwnedFd) -> Result<(), String> {
    ring.send(SLOT, ours, b"three".to_vec(), 0, usize::MAX >> 33, WhenFull::Fail);
    match next(ring)? {
        (false, Event::Sent(Ok(5), ..)) => Ok(()),
        other => Err(format!("send: {}", unexpected(other))),
    }
}

/// Returns the reason for which a completion is not the expected one.
fn unexpected((_, event): (bool, Event)) -> String {
    match event {
        Event::Received(Err(error)) | Event::Sent(Err(error), ..) => error.to_string(),
        _ => "the kernel posted an unexpected completion".to_owned(),
    }
}

fn next(ring: &mut Uring) -> Result<(bool, Event), String> {
    let mut done = Vec::new();
    let enter = |error| format!("enter the io_uring: {error}");
    ring.enter().map_err(enter)?;
    ring.reap(&mut done, 1);
    if done.is_empty() {
        ring.enter_and_sleep(TIMEOUT).map_err(enter)?;
        ring.reap(&mut done, 1);
    }
    let completion = done.pop().ok_or("no completion arrived in time")?;
    Ok((completion.has_more, completion.event))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_supports_the_engine() {
        super::try_out().unwrap();
    }
}
