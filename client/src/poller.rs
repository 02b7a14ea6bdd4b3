//! One epoll descriptor: which connections can be read from or written to.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

/// Most events taken from the kernel at once.
const MAX_EVENTS: usize = 64;

/// What is known of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    /// The token that the connection was registered under.
    pub(crate) token: u64,
    /// It can be written to, or a connect has ended.
    pub(crate) writable: bool,
    /// It can be read from; a closed or reset connection can be, too.
    pub(crate) readable: bool,
}

/// See the module.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

// SAFETY: an event is plain data; rustix's type could also hold a pointer, which makes it stay on its
// thread, but every event here was registered with a number. A client may move from thread to thread.
unsafe impl Send for Poller {}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Poller").field(&self.epoll).finish()
    }
}

fn flags(wants_write: bool) -> EventFlags {
    let read = EventFlags::IN | EventFlags::RDHUP;
    if wants_write { read | EventFlags::OUT } else { read }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll, events: Vec::with_capacity(MAX_EVENTS) })
    }

    pub(crate) fn add(
        &self,
        socket: BorrowedFd<'_>,
        token: u64,
        wants_write: bool,
    ) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), flags(wants_write))?)
    }

    pub(crate) fn change(
        &self,
        socket: BorrowedFd<'_>,
        token: u64,
        wants_write: bool,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(token), flags(wants_write))?)
    }

    /// Forgets a connection. Needed although its descriptor is closed: a forked child may hold a
    /// copy, and then the kernel would go on reporting it.
    pub(crate) fn remove(&self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Waits up to `timeout` (rounded up to a millisecond) for readiness and appends it to `found`;
    /// a signal ends the wait early.
    pub(crate) fn wait(&mut self, timeout: Duration, found: &mut Vec<Readiness>) -> io::Result<()> {
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        let millis = i64::try_from(millis).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
        let timeout = Timespec { tv_sec: millis / 1_000, tv_nsec: millis % 1_000 * 1_000_000 };
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            // The struct is packed; its fields are copied out before use.
            let (flags, data) = (event.flags, event.data);
            let ended = EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
            found.push(Readiness {
                token: data.u64(),
                writable: flags.intersects(EventFlags::OUT | EventFlags::ERR),
                readable: flags.intersects(EventFlags::IN | ended),
            });
        }
        Ok(())
    }
}
