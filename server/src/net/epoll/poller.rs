//! The epoll instance of an engine, and its timer.
//!
//! Every descriptor is registered once, edge-triggered: the kernel reports what has become ready since the last call
//! (epoll(7)). The engine treats a reported socket as ready until a call on it returns EAGAIN, or fewer bytes than
//! requested.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// The maximum number of events of one call.
const EVENTS_AT_ONCE: usize = 512;
/// The maximum number of calls of one poll. It is limited because a socket may be reported again in the meantime.
const MOST_CALLS: usize = 64;

/// The source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The eventfd of the mailbox.
    Bell,
    /// The timer.
    Timer,
    /// The listening socket at this place.
    Listener(u32),
    /// The dial with this number.
    Dial(u32),
    /// A connection.
    Connection(ConnectionId),
}

impl Source {
    /// A bit that is never set in the id of a connection, because it is above all slots.
    const NO_CONNECTION: u64 = 1 << 31;

    fn token(self) -> u64 {
        let other = |kind: u64, number: u32| u64::from(number) << 32 | Source::NO_CONNECTION | kind;
        match self {
            Source::Bell => other(0, 0),
            Source::Timer => other(1, 0),
            Source::Listener(place) => other(2, place),
            Source::Dial(number) => other(3, number),
            Source::Connection(id) => {
                debug_assert_eq!(id.0 & Source::NO_CONNECTION, 0, "connections are bounded");
                id.0
            }
        }
    }

    fn of(token: u64) -> Source {
        if token & Source::NO_CONNECTION == 0 {
            return Source::Connection(ConnectionId(token));
        }
        let [a, b, c, d, .., kind] = token.to_be_bytes();
        let number = u32::from_be_bytes([a, b, c, d]);
        match kind {
            0 => Source::Bell,
            1 => Source::Timer,
            2 => Source::Listener(number),
            3 => Source::Dial(number),
            _ => unreachable!("a source that was never registered"),
        }
    }
}

/// An event: a source, and what it is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) source: Source,
    /// Bytes, an end or an error can be received, or a connection accepted.
    pub(super) is_readable: bool,
    /// Bytes can be sent, or sending fails.
    pub(super) is_writable: bool,
    /// An end or an error follows the bytes, so a short receive does not mean that the socket is empty.
    pub(super) has_ended: bool,
}

impl Event {
    fn new(event: epoll::Event) -> Event {
        let (flags, data) = (event.flags, event.data);
        let has_ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        Event {
            source: Source::of(data.u64()),
            is_readable: has_ended || flags.contains(EventFlags::IN),
            is_writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
            has_ended,
        }
    }
}

/// The descriptors of a poller. They may be opened by a thread other than the one that polls.
pub(super) struct Descriptors {
    epoll: OwnedFd,
    timer: OwnedFd,
}

impl Descriptors {
    /// Opens the descriptors and registers the timer.
    pub(super) fn open() -> io::Result<Descriptors> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // The timer is edge-triggered like all other sources, so it need not be read after it has expired.
        let data = EventData::new_u64(Source::Timer.token());
        epoll::add(&epoll, &timer, data, EventFlags::IN | EventFlags::ET)?;
        Ok(Descriptors { epoll, timer })
    }
}

/// The epoll instance and its timer; see the module documentation.
pub(super) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// The time to which the timer was last set.
    set_to: Option<Time>,
    taken: Vec<epoll::Event>,
}

impl Poller {
    /// Creates a poller for the calling thread.
    pub(super) fn new(descriptors: Descriptors) -> Poller {
        let Descriptors { epoll, timer } = descriptors;
        Poller { epoll, timer, set_to: None, taken: Vec::with_capacity(EVENTS_AT_ONCE) }
    }

    /// Registers a descriptor. If the descriptor is already ready, that is reported once.
    pub(super) fn add(&self, fd: &impl AsFd, source: Source) -> io::Result<()> {
        let flags = match source {
            Source::Bell | Source::Timer | Source::Listener(_) => EventFlags::IN,
            Source::Dial(_) => EventFlags::OUT,
            Source::Connection(_) => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP,
        };
        let data = EventData::new_u64(source.token());
        Ok(epoll::add(&self.epoll, fd, data, flags | EventFlags::ET)?)
    }

    /// Removes a descriptor that stays open.
    pub(super) fn remove(&self, fd: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Sets the timer so that a wait ends at this time or earlier. A timer that expires sooner is not changed: on a
    /// virtual machine, setting a timer may need a call to the hypervisor.
    pub(super) fn wake_at(&mut self, now: Time, due: Time) -> io::Result<()> {
        if self.set_to.is_some_and(|set_to| now < set_to && set_to <= due) {
            return Ok(());
        }
        // Zero would disarm the timer.
        let pause = due.since(now).max(Duration::from_nanos(1));
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec::try_from(pause).map_err(io::Error::other)?;
        let setting = Itimerspec { it_interval: none, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
        self.set_to = Some(due);
        Ok(())
    }

    /// Collects the pending events. If there are none and `sleep` is true, waits for one; a signal ends the wait
    /// without an event.
    pub(super) fn wait(&mut self, sleep: bool, into: &mut Vec<Event>) -> io::Result<()> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut timeout = if sleep { None } else { Some(&AT_ONCE) };
        for _ in 0..MOST_CALLS {
            self.taken.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut self.taken), timeout) {
                Ok(_) => {}
                Err(Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            into.extend(self.taken.iter().map(|event| Event::new(*event)));
            if self.taken.len() < self.taken.capacity() {
                break;
            }
            timeout = Some(&AT_ONCE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
    };

    use super::*;
    use crate::clock;

    const ID: ConnectionId = ConnectionId(7 << 32 | 3);
    const TIMEOUT: Duration = Duration::from_secs(10);

    fn poller() -> Poller {
        Poller::new(Descriptors::open().unwrap())
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    }

    /// Returns the next event of a source before the timeout.
    fn next(poller: &mut Poller, source: Source) -> Event {
        let start = Instant::now();
        loop {
            let (mut events, now) = (Vec::new(), clock::now());
            poller.wake_at(now, now + Duration::from_millis(1)).unwrap();
            poller.wait(true, &mut events).unwrap();
            if let Some(event) = events.into_iter().find(|event| event.source == source) {
                return event;
            }
            assert!(start.elapsed() < TIMEOUT, "no event of {source:?}");
        }
    }

    fn now_ready(poller: &mut Poller) -> Vec<Source> {
        let mut events = Vec::new();
        poller.wait(false, &mut events).unwrap();
        events.into_iter().map(|event| event.source).collect()
    }

    #[test]
    fn every_token_names_its_source() {
        for source in [
            Source::Bell,
            Source::Timer,
            Source::Listener(1),
            Source::Dial(u32::MAX),
            Source::Connection(ID),
            Source::Connection(ConnectionId(u64::from(u32::MAX) << 32 | 0x7fff_ffff)),
        ] {
            assert_eq!(Source::of(source.token()), source);
        }
    }

    #[test]
    fn bytes_are_reported_once_and_so_is_an_end_behind_them() {
        let (ours, theirs) = pair();
        let mut poller = poller();
        let source = Source::Connection(ID);
        poller.add(&ours, source).unwrap();
        let event = next(&mut poller, source);
        assert!(event.is_writable && !event.is_readable, "{event:?}");
        send(&theirs, b"one", SendFlags::NOSIGNAL).unwrap();
        let event = next(&mut poller, source);
        assert!(event.is_readable && !event.has_ended, "{event:?}");
        assert_eq!(now_ready(&mut poller), [], "the bytes were reported");
        send(&theirs, b"two", SendFlags::NOSIGNAL).unwrap();
        drop(theirs);
        let event = next(&mut poller, source);
        assert!(event.is_readable && event.has_ended, "{event:?}");
    }

    #[test]
    fn room_is_reported_after_a_send_that_found_none() {
        let (ours, theirs) = pair();
        let mut poller = poller();
        let source = Source::Connection(ID);
        poller.add(&ours, source).unwrap();
        next(&mut poller, source);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while send(&ours, &[0; 4096], flags).is_ok() {}
        assert_eq!(now_ready(&mut poller), []);
        let mut bytes = [0; 4096];
        while recv(&theirs, &mut bytes[..], RecvFlags::DONTWAIT).is_ok() {}
        assert!(next(&mut poller, source).is_writable);
    }

    #[test]
    fn a_bell_that_is_never_read_is_reported_each_time() {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut poller = poller();
        poller.add(&bell, Source::Bell).unwrap();
        for _ in 0..3 {
            assert_eq!(now_ready(&mut poller), []);
            rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
            assert_eq!(now_ready(&mut poller), [Source::Bell]);
        }
    }

    #[test]
    fn a_wait_ends_each_time_the_timer_expires() {
        let mut poller = poller();
        for _ in 0..3 {
            let (start, pause) = (clock::now(), Duration::from_millis(2));
            poller.wake_at(start, start + pause).unwrap();
            // A later time changes nothing.
            poller.wake_at(start, start + TIMEOUT).unwrap();
            let mut events = Vec::new();
            poller.wait(true, &mut events).unwrap();
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].source, Source::Timer);
            assert!(clock::now().since(start) >= pause);
        }
    }

    #[test]
    fn events_beyond_the_limit_of_one_call_are_collected_too() {
        let mut poller = poller();
        let count = EVENTS_AT_ONCE + 1;
        let bells: Vec<OwnedFd> =
            (0..count).map(|_| eventfd(1, EventfdFlags::CLOEXEC).unwrap()).collect();
        for (place, bell) in (0..).zip(&bells) {
            poller.add(bell, Source::Listener(place)).unwrap();
        }
        assert_eq!(now_ready(&mut poller).len(), count);
    }

    #[test]
    fn a_removed_descriptor_is_not_reported_although_it_is_open() {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut poller = poller();
        poller.add(&bell, Source::Dial(1)).unwrap();
        next(&mut poller, Source::Dial(1));
        poller.remove(&bell).unwrap();
        rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(now_ready(&mut poller), []);
    }
}
