//! One epoll descriptor: which connections can be read from or written to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::alarm::Alarm;
use crate::inherited::Descriptors;
use crate::interrupt::Interrupt;

/// Most events taken from the kernel at once.
const MAX_EVENTS: libc::c_int = 64;

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

/// The tokens of the alarm and of the interrupt; connections have others.
const ALARM: u64 = 0;
const INTERRUPT: u64 = 1;

/// See the module.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: Arc<OwnedFd>,
    /// For whoever waits on the descriptor elsewhere.
    alarm: Option<Alarm>,
    /// All that this engine has, but for that of the interrupt, which is shared.
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
        Ok(Poller { epoll: Arc::new(epoll), alarm: None, descriptors })
    }

    /// Puts an alarm among the descriptors, unless there is one.
    pub(crate) fn add_alarm(&mut self) -> io::Result<()> {
        if self.alarm.is_none() {
            let alarm = Alarm::new()?;
            let data = EventData::new_u64(ALARM);
            epoll::add(&self.epoll, alarm.descriptor(), data, EventFlags::IN)?;
            self.descriptors.add(alarm.descriptor());
            self.alarm = Some(alarm);
        }
        Ok(())
    }

    /// Puts the descriptor of an interrupt among the others: it ends waits, and is readable until the program resumes.
    pub(crate) fn add_interrupt(&self, interrupt: &Interrupt) -> io::Result<()> {
        let data = EventData::new_u64(INTERRUPT);
        Ok(epoll::add(&self.epoll, interrupt.descriptor(), data, EventFlags::IN)?)
    }

    /// All descriptors of the engine, by their numbers.
    pub(crate) fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// Sets the alarm, if there is one.
    pub(crate) fn set_alarm(&mut self, due: Instant, now: Instant) -> io::Result<()> {
        self.alarm.as_mut().map_or(Ok(()), |alarm| alarm.set(due, now))
    }

    /// The epoll descriptor: readable when any connection has something, or the alarm has gone off.
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

    /// Forgets a connection. Needed although its descriptor is closed: a forked child may hold a
    /// copy, and then the kernel would go on reporting it.
    pub(crate) fn remove(&self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, socket);
        self.descriptors.remove(socket);
    }

    /// The part that waits, for a thread that does so without the rest.
    pub(crate) fn waiter(&self) -> Waiter {
        Waiter { epoll: Arc::clone(&self.epoll) }
    }

    /// As [`Waiter::wait`].
    pub(crate) fn wait(&self, timeout: Duration, found: &mut Vec<Readiness>) -> io::Result<()> {
        wait(&self.epoll, timeout, found)
    }
}

/// Waits on a poller's descriptor while other threads change what it watches.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: Arc<OwnedFd>,
}

impl Waiter {
    /// Waits up to `timeout` (rounded up to a millisecond) for readiness and appends it to `found`;
    /// a signal ends the wait early.
    pub(crate) fn wait(&self, timeout: Duration, found: &mut Vec<Readiness>) -> io::Result<()> {
        wait(&self.epoll, timeout, found)
    }
}

fn wait(epoll: &OwnedFd, timeout: Duration, found: &mut Vec<Readiness>) -> io::Result<()> {
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    let millis = libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX);
    let mut room = [libc::epoll_event { events: 0, u64: 0 }; MAX_EVENTS as usize];
    // Not rustix's call: that leaves the size of the signal set undefined, of which valgrind warns in
    // every program that uses the library.
    // SAFETY: the descriptor is open, and there is room for as many events as are asked for.
    let count =
        unsafe { libc::epoll_wait(epoll.as_raw_fd(), room.as_mut_ptr(), MAX_EVENTS, millis) };
    let Ok(count) = usize::try_from(count) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    };
    for event in &room[..count] {
        // The struct is packed; its fields are copied out before use.
        let (flags, token) = (EventFlags::from_bits_retain(event.events), event.u64);
        if token == ALARM || token == INTERRUPT {
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
