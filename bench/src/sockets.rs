//! Many connections of one thread over one epoll descriptor.
//!
//! ```text
//!   pass:  wait -> for each ready connection: receive, end completed operations, begin new ones, send
//!               -> in an open loop: begin the due operations, on the connections in turn, and send
//! ```

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, bail};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use rustix::time::{timerfd_create, timerfd_settime};

use crate::arrival_rate::ArrivalRate;
use crate::driver::{Driver, Lane};
use crate::stream::Stream;
use crate::wire::Wire;

/// The maximum number of events taken from the kernel at once.
const MAX_EVENTS: usize = 64;
/// The maximum number of bytes received from a socket at once.
const RECEIVE_BYTES: usize = 64 << 10;
/// The number of bytes of output from which a connection takes no further requests.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// The maximum time for which responses are awaited after the end of the phase.
const DRAIN_NS: u64 = 10_000_000_000;
/// The longest wait before the clock is checked again.
const LOOK_EVERY_NS: i64 = 50_000_000;
/// The timer's epoll token.
const TIMER: u64 = u64::MAX;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection<W> {
    pub(crate) stream: Stream,
    pub(crate) wire: W,
    pub(crate) lane: Lane,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The number of bytes of the output already sent.
    sent: usize,
    awaits_writable: bool,
}

impl<W> Connection<W> {
    /// Wraps a connected stream on which the handshake, if any, is complete.
    pub(crate) fn new(stream: Stream, wire: W, lane: Lane) -> io::Result<Connection<W>> {
        stream.begin_load()?;
        let (input, output) = (Vec::new(), Vec::new());
        Ok(Connection { stream, wire, lane, input, output, sent: 0, awaits_writable: false })
    }
}

struct Loop<'a, 'b, W> {
    driver: &'a mut Driver<'b>,
    connections: &'a mut [Connection<W>],
    epoll: OwnedFd,
    scratch: Box<[u8]>,
}

/// Drives the connections until no more operations may begin and all have ended. Returns the final state of the
/// schedule.
pub(crate) fn run<W: Wire>(
    driver: &mut Driver<'_>,
    connections: &mut [Connection<W>],
    mut arrival_rate: ArrivalRate,
) -> anyhow::Result<ArrivalRate> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("get an epoll descriptor")?;
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
    for (token, connection) in (0..).zip(connections.iter()) {
        epoll::add(&epoll, &connection.stream, EventData::new_u64(token), EventFlags::IN)?;
    }
    let scratch = vec![0; RECEIVE_BYTES].into();
    let mut state = Loop { driver, connections, epoll, scratch };
    let mut is_over = false;
    if matches!(arrival_rate, ArrivalRate::Closed) {
        for at in 0..state.connections.len() {
            is_over |= !state.refill(at)?;
        }
    }
    let (mut turn, mut ready) = (0, Vec::new());
    let mut drain_until = u64::MAX;
    loop {
        let now_ns = state.driver.control.now_ns();
        if !matches!(arrival_rate, ArrivalRate::Closed) && !is_over {
            is_over = !state.begin_due(&mut arrival_rate, &mut turn, now_ns)?;
            if !is_over && let Some(next_ns) = arrival_rate.next_ns() {
                set_timer(&timer, next_ns.saturating_sub(state.driver.control.now_ns()).max(1))?;
            }
        }
        is_over |= now_ns >= state.driver.control.end_ns || state.driver.control.is_aborted();
        is_over |= state.driver.is_filled();
        if is_over {
            drain_until = drain_until.min(now_ns.saturating_add(DRAIN_NS));
            if state.connections.iter().all(|connection| connection.lane.is_idle()) {
                return Ok(arrival_rate);
            }
            if now_ns > drain_until || state.driver.control.is_aborted() {
                let left: usize = state.connections.iter().map(|c| c.lane.in_flight()).sum();
                bail!("{left} operations got no response in {} s", DRAIN_NS / 1_000_000_000);
            }
        }
        wait(&state.epoll, &mut ready)?;
        for &(token, flags) in &ready {
            let Ok(at) = usize::try_from(token) else { continue };
            if at >= state.connections.len() {
                let mut expirations = [0; 8];
                // Reading the number of expirations clears the timer's readiness. The number itself is not used.
                let _ = rustix::io::read(&timer, &mut expirations);
                continue;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                state.receive(at)?;
            }
            if matches!(arrival_rate, ArrivalRate::Closed) && !is_over {
                is_over |= !state.refill(at)?;
            } else {
                state.flush(at)?;
            }
        }
    }
}

fn set_timer(timer: &OwnedFd, after_ns: u64) -> io::Result<()> {
    let after_ns = i64::try_from(after_ns).unwrap_or(i64::MAX);
    let second = 1_000_000_000;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec { tv_sec: after_ns / second, tv_nsec: after_ns % second };
    let when = Itimerspec { it_interval: zero, it_value: value };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &when)?;
    Ok(())
}

/// Waits until a connection or the timer is ready, for at most [`LOOK_EVERY_NS`].
fn wait(epoll: &OwnedFd, ready: &mut Vec<(u64, EventFlags)>) -> io::Result<()> {
    ready.clear();
    let mut room = [MaybeUninit::<epoll::Event>::uninit(); MAX_EVENTS];
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY_NS };
    match epoll::wait(epoll, room.as_mut_slice(), Some(&timeout)) {
        Ok((events, _)) => {
            // The struct is packed; its fields are copied out before use.
            ready.extend(events.iter().map(|event| ({ event.data }.u64(), { event.flags })));
            Ok(())
        }
        Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl<W: Wire> Loop<'_, '_, W> {
    /// Begins operations on a connection while it has room, and sends them. Returns false when no more may begin on any
    /// connection.
    fn refill(&mut self, at: usize) -> anyhow::Result<bool> {
        let connection = &mut self.connections[at];
        let mut may_begin = true;
        let now_ns = self.driver.control.now_ns();
        while may_begin
            && connection.lane.has_room()
            && connection.wire.has_room()
            && connection.output.len() < MAX_OUTPUT_BYTES
        {
            match self.driver.begin(&mut connection.lane, now_ns, now_ns) {
                Some(request) => connection.wire.request(&request, &mut connection.output),
                None => may_begin = false,
            }
        }
        self.flush(at)?;
        // In a fill, the keys of other connections may not all be drawn.
        Ok(may_begin || self.driver.is_fill())
    }

    /// Begins the operations that are due, on the connections in turn. Returns false when no more may begin.
    fn begin_due(
        &mut self,
        arrival_rate: &mut ArrivalRate,
        turn: &mut usize,
        now_ns: u64,
    ) -> anyhow::Result<bool> {
        let count = self.connections.len();
        let mut may_begin = true;
        'due: while arrival_rate.next_ns().is_some_and(|due| due <= now_ns) {
            let free = (0..count).map(|step| (*turn + step) % count).find(|at| {
                let connection = &self.connections[*at];
                connection.lane.has_room()
                    && connection.wire.has_room()
                    && connection.output.len() < MAX_OUTPUT_BYTES
            });
            // If no connection has room, the operation is delayed, and its latency includes the delay.
            let Some(at) = free else { break };
            *turn = at + 1;
            let Some(start_ns) = arrival_rate.begin(now_ns) else { break };
            let connection = &mut self.connections[at];
            match self.driver.begin(&mut connection.lane, start_ns, now_ns) {
                Some(request) => connection.wire.request(&request, &mut connection.output),
                None => {
                    may_begin = false;
                    break 'due;
                }
            }
        }
        for at in 0..count {
            if !self.connections[at].output.is_empty() {
                self.flush(at)?;
            }
        }
        Ok(may_begin)
    }

    fn receive(&mut self, at: usize) -> anyhow::Result<()> {
        let connection = &mut self.connections[at];
        let mut is_full = true;
        while is_full {
            let count = match connection.stream.read(&mut self.scratch) {
                Ok(0) => bail!("the server closed connection {at}"),
                Ok(count) => count,
                Err(error) if is_momentary(&error) => break,
                Err(error) => return Err(error).context("receive from the server"),
            };
            is_full = count == self.scratch.len();
            connection.input.extend_from_slice(&self.scratch[..count]);
        }
        let now_ns = self.driver.control.now_ns();
        let mut taken = 0;
        while let Some(reply) = connection
            .wire
            .reply(&connection.input[taken..])
            .map_err(anyhow::Error::msg)
            .context("read a reply of the server")?
        {
            taken += reply.consumed;
            if let Some((slot, outcome)) = reply.ended {
                self.driver.end(&mut connection.lane, slot, outcome, now_ns)?;
            }
        }
        connection.input.drain(..taken);
        Ok(())
    }

    fn flush(&mut self, at: usize) -> anyhow::Result<()> {
        let connection = &mut self.connections[at];
        connection.wire.end_batch(&mut connection.output);
        while connection.sent < connection.output.len() {
            match connection.stream.write(&connection.output[connection.sent..]) {
                Ok(count) => connection.sent += count,
                Err(error) if is_momentary(&error) => break,
                Err(error) => return Err(error).context("send to the server"),
            }
        }
        if connection.sent == connection.output.len() {
            connection.output.clear();
            connection.sent = 0;
        }
        let awaits_writable = !connection.output.is_empty();
        if awaits_writable != connection.awaits_writable {
            connection.awaits_writable = awaits_writable;
            let write = if awaits_writable { EventFlags::OUT } else { EventFlags::empty() };
            let data = EventData::new_u64(at as u64);
            epoll::modify(&self.epoll, &connection.stream, data, EventFlags::IN | write)?;
        }
        Ok(())
    }
}

fn is_momentary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
