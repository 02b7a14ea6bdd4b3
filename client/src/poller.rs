//! One epoll descriptor, which reports the connections that can be read or written.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::inherited::Descriptors;
use crate::interrupt::Interrupt;
use crate::timer::Timer;

/// The maximum number of events per call of `epoll_wait`.
const MAX_EVENTS: libc::c_int = 64;

/// The readiness of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    /// The token of the connection.
    pub(crate) token: u64,
    /// True if it can be written, or a connect has succeeded or failed.
    pub(crate) writable: bool,
    /// True if it can be read, which includes a closed or reset connection.
    pub(crate) readable: bool,
}

/// The token of the timer. Connections have other tokens.
const TIMER: u64 = 0;
/// The token of the interrupt.
const INTERRUPT: u64 = 1;

/// The epoll set of one engine; see the module documentation.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: Arc<OwnedFd>,
    /// The timer for a program that waits on the epoll descriptor in its own event loop.
    timer: Option<Timer>,
    /// All descriptors of this engine except the shared one of the interrupt.
    descriptors: Descriptors,
}

fn flags(wants_write: bool) -> EventFlags {
    let read = EventFlags::IN | EventFlags::RDHUP;
    if wants_write { read | EventFlags::OUT } else { read }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let descriptors = Descriptors::default();
        descriptors.add(epoll.as_fd());
        Ok(Poller { epoll: Arc::new(epoll), timer: None, descriptors })
    }

    /// Adds a timer to the epoll set, unless it has one.
    pub(crate) fn add_timer(&mut self) -> io::Result<()> {
        if self.timer.is_none() {
            let timer = Timer::new()?;
            let data = EventData::new_u64(TIMER);
            epoll::add(&self.epoll, timer.descriptor(), data, EventFlags::IN)?;
            self.descriptors.add(timer.descriptor());
            self.timer = Some(timer);
        }
        Ok(())
    }

    /// Adds the descriptor of an interrupt to the epoll set. From [`Interrupt::interrupt`] to [`Interrupt::resume`],
    /// every wait returns at once.
    pub(crate) fn add_interrupt(&self, interrupt: &Interrupt) -> io::Result<()> {
        let data = EventData::new_u64(INTERRUPT);
        Ok(epoll::add(&self.epoll, interrupt.descriptor(), data, EventFlags::IN)?)
    }

    /// Returns the list of the engine's descriptors.
    pub(crate) fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// Sets the timer, if there is one.
    pub(crate) fn set_timer(&mut self, due: Instant, now: Instant) -> io::Result<()> {
        self.timer.as_mut().map_or(Ok(()), |timer| timer.set(due, now))
    }

    /// Returns the epoll descriptor. It is readable when a connection is ready, the timer has fired or the program has
    /// interrupted the client.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(crate) fn add(
        &self,
        socket: BorrowedFd<'_>,
        token: u64,
        wants_write: bool,
    ) -> io::Result<()> {
        epoll::add(&self.epoll, socket, EventData::new_u64(token), flags(wants_write))?;
        self.descriptors.add(socket);
        Ok(())
    }

    pub(crate) fn change(
        &self,
        socket: BorrowedFd<'_>,
        token: u64,
        wants_write: bool,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(token), flags(wants_write))?)
    }

    /// Removes a connection. This is necessary although the descriptor is about to be closed: if a forked child holds a
    /// copy, the kernel continues to report a connection that was not removed.
    pub(crate) fn remove(&self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, socket);
        self.descriptors.remove(socket);
    }

    /// Returns a handle with which a thread waits without access to the poller.
    pub(crate) fn waiter(&self) -> Waiter {
        Waiter { epoll: Arc::clone(&self.epoll) }
    }

    /// Waits like [`Waiter::wait`].
    pub(crate) fn wait(&self, timeout: Duration, found: &mut Vec<Readiness>) -> io::Result<()> {
        wait(&self.epoll, timeout, found)
    }
}

/// A handle that waits on a poller's descriptor while other threads change the set.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: Arc<OwnedFd>,
}

impl Waiter {
    /// Waits up to `timeout` (rounded up to a millisecond) for readiness, and appends it to `found`. A signal, the
    /// timer or an interrupt ends the wait early.
    pub(crate) fn wait(&self, timeout: Duration, found: &mut Vec<Readiness>) -> io::Result<()> {
        wait(&self.epoll, timeout, found)
    }
}

fn wait(epoll: &OwnedFd, timeout: Duration, found: &mut Vec<Readiness>) -> io::Result<()> {
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    let millis = libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX);
    let mut room = [libc::epoll_event { events: 0, u64: 0 }; MAX_EVENTS as usize];
    // The function of libc is used, because that of rustix leaves the size of the signal set undefined, and valgrind
    // would warn in every program that uses the library. SAFETY: the descriptor is open, and `room` has space for
    // MAX_EVENTS events.
    let count =
        unsafe { libc::epoll_wait(epoll.as_raw_fd(), room.as_mut_ptr(), MAX_EVENTS, millis) };
    let Ok(count) = usize::try_from(count) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    };
    for event in &room[..count] {
        // The struct is packed, so its fields are copied out before use.
        let (flags, token) = (EventFlags::from_bits_retain(event.events), event.u64);
        if token == TIMER || token == INTERRUPT {
            continue;
        }
        let ended = EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
        found.push(Readiness {
            token,
            writable: flags.intersects(EventFlags::OUT | EventFlags::ERR),
            readable: flags.intersects(EventFlags::IN | ended),
        });
    }
    Ok(())
}
