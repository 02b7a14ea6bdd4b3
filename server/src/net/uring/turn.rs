//! One wake-up: serves completions, in the order of [`kv_shard::turn`], and queues the resulting requests in the ring.
//!
//! Streams have receive buffers of their own. If the kernel is behind with the completions of many clients, the engine
//! reads the sockets of the streams directly, without the ring.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;
use kv_shard::turn::{self, Waiting};
use kv_shard::{Fate, Port, Shard, Transmit};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv};
use rustix::process::{Resource, getrlimit};

use super::buffers::{Group, Lent};
use super::ring::{Completion, Event, Request, SlotId, WhenFull};
use super::sockets::{Class, Connection, Receiving, Socket, Stage};
use super::{Engine, Net};
use crate::clock;
use crate::fatal::Fatal;
use crate::message::HandedOver;
use crate::net::context::ShardContext;
use crate::net::socket::{
    ACCEPT_PAUSE, HELLO_BYTES, LONG_FRAME, MOST_SENT, log_failed_accept, next_of_long_frame,
    reject, send_now,
};

/// The maximum number of connections per turn that resume receiving once buffers are free again.
const MOST_FED: usize = 16;
/// The minimum time between two direct reads of the streams' sockets while the kernel is behind.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// The maximum number of direct receives from one stream in one pass.
const MOST_LOOKED_AT: usize = 4;
/// The maximum number of bytes of one direct receive.
const LOOKED_AT_BYTES: usize = 128 << 10;

impl Engine {
    /// Runs a turn if there is any work; returns whether there was.
    pub(super) fn turn(self: &Rc<Engine>) -> bool {
        let mut net = self.net.borrow_mut();
        net.reap();
        if net.done.is_empty() || net.has_waiting() {
            net.enter();
            net.reap();
        }
        let is_wanted = self.context.take_flush();
        if !is_wanted && net.done.is_empty() && !net.has_waiting() {
            return false;
        }
        let mut shard = self.context.shard.borrow_mut();
        // The clock is read after the bytes were received, because a lease check may rely on that order.
        let now = clock::now();
        self.context.begin_wake_up(&mut shard, now);
        let mut turn = Turn { net: &mut net, context: &self.context, now };
        turn::run(&mut turn, &mut shard, now, is_wanted);
        if net.has_waiting() || shard.has_dirty() || shard.has_readers() || shard.postponed() > 0 {
            self.context.want_flush();
        }
        self.context.log_events(&mut shard);
        let has_news = shard.service.take_news();
        if has_news {
            // All responses are submitted first, because a thread that reads the published state may end the process.
            net.enter();
        }
        drop((net, shard));
        if has_news {
            self.on_news(now);
        }
        true
    }
}

/// A turn in progress.
struct Turn<'a> {
    net: &'a mut Net,
    context: &'a ShardContext,
    /// The time at which the completions were reaped.
    now: Time,
}

impl turn::Engine for Turn<'_> {
    const SENDS_AT_ONCE: bool = false;

    fn now(&mut self) -> Time {
        clock::now()
    }

    fn look_again(&mut self, _: &mut Shard) {
        self.net.enter();
        self.net.reap();
        self.now = clock::now();
    }

    fn serve_streams(&mut self, shard: &mut Shard) -> bool {
        let had_streams = self.net.serve_streams(shard, self.context, self.now);
        let is_due = self.now.since(self.net.looked_at) >= LOOK_INTERVAL;
        if is_due && self.net.ring.has_deferred() {
            self.now = self.net.look_at_streams(shard, self.context);
            return true;
        }
        had_streams
    }

    fn waiting(&mut self) -> Waiting {
        Waiting { strangers: self.net.knocking.len(), clients: self.net.clients.len() }
    }

    fn serve_stranger(&mut self, shard: &mut Shard) {
        if let Some(completion) = self.net.knocking.pop_front() {
            self.net.serve(shard, self.context, self.now, completion);
        }
    }

    fn serve_client(&mut self, shard: &mut Shard) -> Option<Time> {
        let completion = self.net.clients.pop_front()?;
        self.net.serve(shard, self.context, self.now, completion);
        Some(clock::now())
    }

    fn end_clients(&mut self, shard: &mut Shard) {
        self.net.feed(shard);
    }

    fn see_to(&mut self, shard: &mut Shard, now: Time, id: ConnectionId) -> usize {
        self.net.see_to(shard, self.context, now, id)
    }

    fn submit(&mut self) {
        self.net.enter();
    }

    fn send(&mut self, transmit: &Transmit<'_>) -> usize {
        let slot = self.net.slots.get(transmit.id).copied();
        let connection = slot.and_then(|slot| self.net.sockets.connection(slot));
        let connection = connection.filter(|connection| connection.id == Some(transmit.id));
        connection.map_or(0, |connection| send_now(&connection.fd, &transmit.parts))
    }
}

impl Net {
    fn enter(&mut self) {
        if let Err(error) = self.ring.enter() {
            Fatal::System { doing: "enter the io_uring of the network engine", error }
                .end_process();
        }
    }

    /// Takes all completions, because even the last one may belong to a stream.
    fn reap(&mut self) {
        self.ring.reap(&mut self.done, usize::MAX);
    }

    /// Returns whether the last turn left work.
    fn has_waiting(&self) -> bool {
        !self.knocking.is_empty() || !self.clients.is_empty() || self.has_hungry()
    }

    fn has_hungry(&self) -> bool {
        !self.starved.is_empty() || !self.hungry.is_empty()
    }

    /// Serves the completions of streams, and queues the others; returns whether a receive of a stream has completed.
    fn serve_streams(&mut self, shard: &mut Shard, context: &ShardContext, now: Time) -> bool {
        let mut had_bytes = false;
        let mut done = std::mem::take(&mut self.done);
        for completion in done.drain(..) {
            match self.sockets.class(completion.slot) {
                Class::Streams => {
                    had_bytes |=
                        matches!(completion.event, Event::Received(_) | Event::ReceivedInto(..));
                    self.serve(shard, context, now, completion);
                }
                Class::Knocking => self.knocking.push_back(completion),
                Class::Clients => self.clients.push_back(completion),
            }
        }
        self.done = done;
        had_bytes
    }

    /// Reads the streams' sockets directly. All bytes that the ring has received from these sockets must be served
    /// already; bytes that the ring receives later follow in the stream. Returns the time at which the last bytes were
    /// read, or the current time if there were none.
    fn look_at_streams(&mut self, shard: &mut Shard, context: &ShardContext) -> Time {
        let mut now = clock::now();
        self.looked_at = now;
        let Net { sockets, streams, scratch, .. } = self;
        scratch.resize(LOOKED_AT_BYTES, 0);
        for &slot in streams.iter() {
            let Some(connection) = sockets.connection(slot) else { continue };
            let Some(id) = connection.id else { continue };
            for _ in 0..MOST_LOOKED_AT {
                // The armed receive reports the end or the error.
                let Ok((count @ 1.., _)) =
                    recv(&connection.fd, &mut scratch[..], RecvFlags::DONTWAIT)
                else {
                    break;
                };
                now = clock::now();
                context.note_activity();
                shard.handle_bytes(now, id, &scratch[..count]);
                shard.mark_dirty(id);
                if count < LOOKED_AT_BYTES {
                    break;
                }
            }
        }
        now
    }

    /// Rearms the receives of some connections for which no buffer was free, starved ones first. Does nothing while
    /// completions of clients wait. Otherwise all buffers are free, except those whose completions the ring has not yet
    /// returned.
    fn feed(&mut self, shard: &mut Shard) {
        let mut left = if self.clients.is_empty() { MOST_FED } else { 0 };
        while left > 0
            && let Some((slot, id)) = self.starved.pop_front().or_else(|| self.hungry.pop_front())
        {
            let Some(connection) = self.sockets.connection(slot) else { continue };
            if connection.id == Some(id) && connection.receiving == Receiving::Hungry {
                connection.receiving = Receiving::Nothing;
                shard.mark_dirty(id);
                left -= 1;
            }
        }
    }

    fn serve(
        &mut self,
        shard: &mut Shard,
        context: &ShardContext,
        now: Time,
        completion: Completion,
    ) {
        let Completion { slot, has_more, event } = completion;
        match event {
            Event::Accepted(accepted) => self.on_accepted(shard, context, now, slot, accepted),
            Event::Connected(connected) => self.on_connected(shard, now, slot, connected),
            Event::Received(received) => {
                let id = self.sockets.connection(slot).and_then(|connection| {
                    connection.was_fed |= matches!(received, Ok(Some(_)));
                    connection.id
                });
                let is_hungry = !has_more && self.is_hungry(shard, slot, &received);
                match received {
                    Ok(Some(lent)) => {
                        if let Some(id) = id {
                            context.note_activity();
                            shard.handle_bytes(now, id, self.ring.bytes(&lent));
                        }
                        self.ring.give_back(lent);
                    }
                    Ok(None) => on_end(shard, now, id),
                    Err(error) => on_receive_failed(shard, id, &error),
                }
                self.look_after(shard, slot, id, !has_more && !is_hungry);
            }
            Event::ReceivedInto(received, buffer) => {
                let Some(connection) = self.sockets.connection(slot) else { return };
                let was = std::mem::replace(&mut connection.receiving, Receiving::Nothing);
                let id = connection.id;
                if let Some(id) = id {
                    match was {
                        Receiving::Frame => shard.take_input_back(now, id, buffer),
                        _ => shard.handle_bytes(now, id, &buffer),
                    }
                }
                match received {
                    Ok(1..) => context.note_activity(),
                    Ok(0) => on_end(shard, now, id),
                    Err(error) => on_receive_failed(shard, id, &error),
                }
                self.look_after(shard, slot, id, true);
            }
            Event::Sent(sent, buffer, from) => {
                self.handle_sent(shard, now, slot, sent, (buffer, from))
            }
            Event::Cancelled => self.on_cancelled(slot),
        }
    }

    /// Records the end of a receive. Returns whether the connection is a client without a free buffer, which then waits
    /// for `Net::feed`.
    fn is_hungry(
        &mut self,
        shard: &mut Shard,
        slot: SlotId,
        received: &std::io::Result<Option<Lent>>,
    ) -> bool {
        let Some(connection) = self.sockets.connection(slot) else { return false };
        let was = std::mem::replace(&mut connection.receiving, Receiving::Nothing);
        let lacks_buffer =
            received.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENOBUFS));
        match connection.id {
            Some(id)
                if lacks_buffer
                    && was == Receiving::All
                    && !connection.is_stream
                    && !shard.lacks(id, LONG_FRAME) =>
            {
                connection.receiving = Receiving::Hungry;
                let queue = if connection.was_fed { &mut self.hungry } else { &mut self.starved };
                queue.push_back((slot, id));
                true
            }
            _ => false,
        }
    }

    /// Marks a connection dirty if its request has ended, or if the connection is not to be read. A closed connection
    /// is released with its last request.
    fn look_after(
        &mut self,
        shard: &mut Shard,
        slot: SlotId,
        id: Option<ConnectionId>,
        has_ended: bool,
    ) {
        match id {
            Some(id)
                if has_ended || shard.fate(id) != Fate::Read || shard.lacks(id, LONG_FRAME) =>
            {
                shard.mark_dirty(id);
            }
            Some(_) => {}
            None => self.release_if_quiet(slot),
        }
    }

    fn on_accepted(
        &mut self,
        shard: &mut Shard,
        context: &ShardContext,
        now: Time,
        slot: SlotId,
        accepted: std::io::Result<OwnedFd>,
    ) {
        let Some(Socket::Listener(listener)) = self.sockets.get(slot) else { return };
        let port = listener.port;
        let accepted = accepted.and_then(|socket| match is_within_limit(&socket) {
            true => Ok(socket),
            false => {
                reject(&socket, port);
                Err(Errno::MFILE.into())
            }
        });
        if let Err(error) = &accepted {
            listener.resume_at = Some(now + ACCEPT_PAUSE);
            log_failed_accept(&mut listener.log.borrow_mut(), now, port, error);
        } else if listener.resume_at.is_none() {
            self.ring.accept(slot, &listener.fd);
        }
        let Ok(socket) = accepted else { return };
        if let Some((id, permit)) = context.admit(shard, now, port, &socket) {
            self.open(shard, id, socket, port, Some(permit));
        }
    }

    fn on_connected(
        &mut self,
        shard: &mut Shard,
        now: Time,
        slot: SlotId,
        connected: std::io::Result<()>,
    ) {
        let Some(Socket::Dialling(dialling)) = self.sockets.get(slot) else { return };
        let (target, stage) = (dialling.target, dialling.stage);
        if stage == Stage::Connecting {
            let Some(Socket::Dialling(dialling)) = self.sockets.remove(slot) else { return };
            match connected {
                Ok(()) => {
                    let id = shard.open_dialled(now, target);
                    self.open(shard, id, dialling.fd, target.port(), None);
                }
                Err(error) => shard.handle_dial_failed(now, target, &error.to_string()),
            }
        } else {
            self.end_dial(slot);
            shard.handle_dial_failed(now, target, "the connection attempt timed out");
        }
        shard.service.note_news();
    }

    /// Counts one of the two last completions of an abandoned dial.
    fn end_dial(&mut self, slot: SlotId) {
        let Some(Socket::Dialling(dialling)) = self.sockets.get(slot) else { return };
        match dialling.stage {
            Stage::Connecting | Stage::GivenUp => dialling.stage = Stage::Ending,
            Stage::Ending => drop(self.sockets.remove(slot)),
        }
    }

    fn handle_sent(
        &mut self,
        shard: &mut Shard,
        now: Time,
        slot: SlotId,
        sent: std::io::Result<usize>,
        (buffer, from): (Vec<u8>, usize),
    ) {
        let Some(connection) = self.sockets.connection(slot) else { return };
        connection.is_sending = false;
        let Some(id) = connection.id else {
            shard.recycle(buffer);
            return self.release_if_quiet(slot);
        };
        let next = match sent {
            Ok(count) => {
                shard.handle_sent(now, id, count);
                from + count
            }
            Err(error) if is_passing(&error) => from,
            Err(_) => {
                shard.handle_failure(id);
                buffer.len()
            }
        };
        let is_dead = shard.is_over(id);
        if next < buffer.len() && !is_dead {
            connection.is_sending = true;
            self.ring.send(slot, &connection.fd, buffer, next, MOST_SENT, WhenFull::Wait);
        } else {
            shard.recycle(buffer);
        }
        shard.mark_dirty(id);
    }

    fn on_cancelled(&mut self, slot: SlotId) {
        match self.sockets.get(slot) {
            Some(Socket::Connection(connection)) => {
                connection.cancels -= 1;
                if connection.id.is_none() && connection.cancels == 0 && !connection.is_quiet() {
                    // The shutdown ends the requests that the cancellation did not find.
                    let _ = rustix::net::shutdown(&connection.fd, Shutdown::Both);
                }
                self.release_if_quiet(slot);
            }
            Some(Socket::Dialling(_)) => self.end_dial(slot),
            Some(Socket::Listener(_)) | None => {}
        }
    }

    /// Sends a dirty connection's bytes, and carries out its [`Fate`]. Returns the number of bytes sent to a client.
    fn see_to(
        &mut self,
        shard: &mut Shard,
        context: &ShardContext,
        now: Time,
        id: ConnectionId,
    ) -> usize {
        let Some(slot) = self.slots.get(id).copied() else { return 0 };
        let Some(connection) = self.sockets.connection(slot) else { return 0 };
        if connection.id != Some(id) {
            return 0;
        }
        if !connection.is_stream && shard.is_stream(id) {
            connection.is_stream = true;
            self.note_stream(slot);
        }
        let Some(connection) = self.sockets.connection(slot) else { return 0 };
        let mut sent = 0;
        if !connection.is_sending
            && let Some((buffer, from)) = shard.take_unsent(id)
        {
            connection.is_sending = true;
            if !connection.is_stream {
                sent = (buffer.len() - from).min(MOST_SENT);
            }
            self.ring.send(slot, &connection.fd, buffer, from, MOST_SENT, WhenFull::Fail);
        }
        let fate = shard.fate(id);
        match fate {
            Fate::Close => {
                self.close(shard, now, slot, id);
                return sent;
            }
            Fate::HandOver(wanted) if wanted == context.here => {
                // The connection becomes a client or a peer, and is handled as such in its next turn.
                context.name_ends(shard, now, id, &connection.fd);
                shard.adopt_accepted(now, id);
                shard.mark_dirty(id);
                return sent;
            }
            Fate::HandOver(wanted) => {
                if connection.receiving == Receiving::Nothing {
                    self.hand_over(shard, context, now, slot, id, wanted);
                    return sent;
                }
            }
            Fate::Shut => {
                if !std::mem::replace(&mut connection.is_shut, true) {
                    let _ = rustix::net::shutdown(&connection.fd, Shutdown::Write);
                }
            }
            Fate::Read | Fate::Wait => {}
        }
        self.keep_receiving(shard, slot, id, matches!(fate, Fate::Read | Fate::Shut));
        sent
    }

    /// Adds a stream to those whose sockets are read directly, and removes closed ones.
    fn note_stream(&mut self, slot: SlotId) {
        self.streams.push(slot);
        let Net { sockets, streams, .. } = self;
        streams.retain(|slot| {
            sockets.connection(*slot).is_some_and(|known| known.is_stream && known.id.is_some())
        });
    }

    /// Starts or stops receiving, as the connection's state requires.
    fn keep_receiving(&mut self, shard: &mut Shard, slot: SlotId, id: ConnectionId, is_read: bool) {
        let Some(connection) = self.sockets.connection(slot) else { return };
        match connection.receiving {
            Receiving::Nothing if is_read => {
                if let Some((buffer, missing)) = shard.lend_input(id, LONG_FRAME) {
                    connection.receiving = Receiving::Frame;
                    let most = next_of_long_frame(buffer.len(), missing);
                    self.ring.receive_into(slot, &connection.fd, buffer, most);
                } else if shard.is_in_handshake(id)
                    || (connection.port == Port::Servers && !connection.is_stream)
                {
                    connection.receiving = Receiving::Hello;
                    self.ring.receive_into(slot, &connection.fd, Vec::new(), HELLO_BYTES);
                } else {
                    connection.receiving = Receiving::All;
                    connection.was_fed = false;
                    let group = if connection.is_stream { Group::Streams } else { Group::Clients };
                    self.ring.receive(slot, &connection.fd, group);
                }
            }
            Receiving::All if !is_read || shard.lacks(id, LONG_FRAME) => {
                connection.receiving = Receiving::Ending;
                connection.cancels += 1;
                self.ring.cancel(slot, Request::Receive);
            }
            Receiving::Hello if !is_read => {
                connection.receiving = Receiving::Ending;
                connection.cancels += 1;
                self.ring.cancel(slot, Request::ReceiveInto);
            }
            // A `Frame` receive returns its buffer when some bytes have arrived, so it is not cancelled.
            Receiving::Nothing
            | Receiving::Hungry
            | Receiving::Hello
            | Receiving::All
            | Receiving::Frame
            | Receiving::Ending => {}
        }
    }

    /// Closes a connection; it is released with its last request.
    fn close(&mut self, shard: &mut Shard, now: Time, slot: SlotId, id: ConnectionId) {
        shard.close(now, id);
        self.slots.remove(id);
        let Some(connection) = self.sockets.connection(slot) else { return };
        connection.id = None;
        let receive = match connection.receiving {
            Receiving::All => Some(Request::Receive),
            Receiving::Hello | Receiving::Frame => Some(Request::ReceiveInto),
            Receiving::Nothing | Receiving::Hungry | Receiving::Ending => None,
        };
        let send = connection.is_sending.then_some(Request::Send);
        for request in receive.into_iter().chain(send) {
            connection.cancels += 1;
            self.ring.cancel(slot, request);
        }
        self.release_if_quiet(slot);
    }

    fn hand_over(
        &mut self,
        shard: &mut Shard,
        context: &ShardContext,
        now: Time,
        slot: SlotId,
        id: ConnectionId,
        wanted: kv_protocol::ids::ShardId,
    ) {
        let handshake = shard.take_handshake(id);
        shard.close(now, id);
        self.slots.remove(id);
        let Some(Socket::Connection(connection)) = self.sockets.remove(slot) else { return };
        let Connection { fd, permit, .. } = connection;
        if let (Some((port, received)), Some(permit)) = (handshake, permit) {
            context.hand_over(wanted, HandedOver { socket: fd, port, received, permit });
        }
    }

    /// Releases a closed connection once the kernel has no request of it.
    fn release_if_quiet(&mut self, slot: SlotId) {
        if let Some(connection) = self.sockets.connection(slot)
            && connection.id.is_none()
            && connection.is_quiet()
        {
            self.sockets.remove(slot);
        }
    }
}

/// Returns whether the socket's descriptor is within the current limit. A pending accept still uses the limit that
/// applied when it was armed.
fn is_within_limit(socket: &OwnedFd) -> bool {
    let limit = getrlimit(Resource::Nofile).current;
    limit.is_none_or(|limit| {
        i64::from(socket.as_raw_fd()) < i64::try_from(limit).unwrap_or(i64::MAX)
    })
}

/// Handles the end of the input of a connection; does nothing if the connection is closed.
fn on_end(shard: &mut Shard, now: Time, id: Option<ConnectionId>) {
    if let Some(id) = id {
        shard.handle_end_of_input(now, id);
    }
}

/// Handles a failed receive of an open connection: a transient failure (no free buffer, a cancellation) is ignored, any
/// other closes the connection.
fn on_receive_failed(shard: &mut Shard, id: Option<ConnectionId>, error: &std::io::Error) {
    let is_buffer = error.raw_os_error() == Some(libc::ENOBUFS);
    if let Some(id) = id
        && !is_buffer
        && !is_passing(error)
    {
        shard.handle_failure(id);
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECANCELED | libc::EINTR | libc::EAGAIN))
}
