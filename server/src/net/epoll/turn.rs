//! One wake-up: receives from the ready sockets, and sends the output, in the order of [`kv_shard::turn`].

use kv_core::replica::ConnectionId;
use kv_protocol::ids::{ShardId, Time};
use kv_shard::turn::{self, Waiting};
use kv_shard::{Fate, Shard, Transmit};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, shutdown};

use super::poller::Source;
use super::sockets::{Connection, Dialling};
use super::{Engine, Net};
use crate::clock;
use crate::descriptors::ACCEPTS_AT_ONCE;
use crate::fatal::Fatal;
use crate::message::HandedOver;
use crate::net::context::ShardContext;
use crate::net::engine::Engine as _;
use crate::net::socket::{
    ACCEPT_PAUSE, HELLO_BYTES, LONG_FRAME, MOST_SENT, log_failed_accept, next_of_long_frame,
    receive_behind, send_now,
};

/// The maximum number of receives from a stream in one turn.
const RECEIVES_OF_A_STREAM: usize = 4;

impl Engine {
    /// Runs a turn if a flush is requested or a socket is ready.
    pub(super) fn turn(&self) {
        let mut net = self.net.borrow_mut();
        let is_wanted = self.context.take_flush();
        if !is_wanted && !net.sockets.have_work() {
            return;
        }
        let mut shard = self.context.shard.borrow_mut();
        let now = clock::now();
        self.context.begin_wake_up(&mut shard, now);
        let mut turn = Turn { net: &mut net, context: &self.context, has_accepted: false };
        turn::run(&mut turn, &mut shard, now, is_wanted);
        for id in std::mem::take(&mut net.unfinished) {
            shard.mark_dirty(id);
        }
        if shard.has_dirty() || shard.has_readers() || shard.postponed() > 0 {
            self.context.want_flush();
        }
        self.context.log_events(&mut shard);
        let has_news = shard.service.take_news();
        drop((net, shard));
        if has_news {
            self.context.announce();
            self.dial_due(now);
        }
    }
}

/// A turn in progress.
struct Turn<'a> {
    net: &'a mut Net,
    context: &'a ShardContext,
    has_accepted: bool,
}

impl turn::Engine for Turn<'_> {
    const SENDS_AT_ONCE: bool = true;

    fn now(&mut self) -> Time {
        clock::now()
    }

    fn look_again(&mut self, shard: &mut Shard) {
        self.net.look(shard, false);
    }

    fn serve_streams(&mut self, shard: &mut Shard) -> bool {
        self.net.serve_streams(shard, self.context)
    }

    fn waiting(&mut self) -> Waiting {
        let sockets = &self.net.sockets;
        let strangers = sockets.knocking.len() + usize::from(sockets.may_accept());
        Waiting { strangers, clients: sockets.clients.len() }
    }

    fn serve_stranger(&mut self, shard: &mut Shard) {
        if !self.has_accepted && self.net.sockets.may_accept() {
            self.has_accepted = true;
            self.net.accept_all(shard, self.context);
        } else if let Some(id) = self.net.sockets.knocking.pop_front() {
            self.net.receive(shard, self.context, id);
        }
    }

    fn serve_client(&mut self, shard: &mut Shard) -> Option<Time> {
        let id = self.net.sockets.clients.pop_front()?;
        self.net.receive(shard, self.context, id)
    }

    fn see_to(&mut self, shard: &mut Shard, now: Time, id: ConnectionId) -> usize {
        self.net.see_to(shard, self.context, now, id)
    }

    fn send(&mut self, transmit: &Transmit<'_>) -> usize {
        let connection = self.net.sockets.get(transmit.id);
        connection.map_or(0, |connection| send_now(&connection.fd, &transmit.parts))
    }
}

impl Net {
    /// Collects events and records them. If there are none and `may_sleep` is true, waits for one.
    pub(super) fn look(&mut self, shard: &mut Shard, may_sleep: bool) {
        if let Err(error) = self.poller.wait(may_sleep, &mut self.events) {
            Fatal::System { doing: "wait for the sockets of a shard", error }.end_process();
        }
        self.note_events(shard);
    }

    /// Records the collected events in the sockets.
    fn note_events(&mut self, shard: &mut Shard) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event.source {
                // The mailbox and the timers are checked after every wake-up in any case.
                Source::Bell | Source::Timer => {}
                Source::Listener(place) => self.sockets.note_knock(place),
                Source::Dial(number) => self.sockets.note_dialled(number),
                Source::Connection(id) => {
                    let Some(connection) = self.sockets.get(id) else { continue };
                    connection.has_ended |= event.has_ended;
                    connection.is_readable |= event.is_readable;
                    let has_room = event.is_writable && connection.is_blocked;
                    connection.is_blocked &= !event.is_writable;
                    if event.is_readable {
                        self.sockets.queue_readable(id);
                    }
                    if has_room {
                        shard.mark_dirty(id);
                    }
                }
            }
        }
        self.events = events;
    }

    /// Receives from the streams, and handles the dials that have ended. Returns whether there was any such work.
    fn serve_streams(&mut self, shard: &mut Shard, context: &ShardContext) -> bool {
        let mut had_any = false;
        for _ in 0..RECEIVES_OF_A_STREAM {
            for _ in 0..self.sockets.streams.len() {
                let Some(id) = self.sockets.streams.pop_front() else { break };
                had_any |= self.receive(shard, context, id).is_some();
            }
        }
        for dial in self.sockets.take_dialled() {
            had_any = true;
            self.handle_dialled(shard, dial);
        }
        had_any
    }

    fn handle_dialled(&mut self, shard: &mut Shard, dial: Dialling) {
        let Dialling { fd, target, .. } = dial;
        let now = clock::now();
        let connected = socket_error(&fd).and_then(|error| error);
        let opened = connected.map_err(Into::into).and_then(|()| {
            // The socket is registered again under its connection id.
            self.poller.remove(&fd)?;
            let id = shard.open_dialled(now, target);
            self.open(shard, id, fd, target.port(), None).map_err(|(error, _)| {
                shard.close(now, id);
                error
            })
        });
        if let Err(error) = opened {
            shard.handle_dial_failed(now, target, &error.to_string());
        }
        shard.service.note_news();
    }

    /// Accepts a few connections of each port.
    fn accept_all(&mut self, shard: &mut Shard, context: &ShardContext) {
        for place in 0..self.sockets.listeners.len() {
            for _ in 0..ACCEPTS_AT_ONCE {
                let listener = &mut self.sockets.listeners[place];
                if !listener.is_ready || listener.resume_at.is_some() {
                    break;
                }
                let port = listener.port;
                let now = clock::now();
                match accept_with(&listener.fd, SocketFlags::CLOEXEC) {
                    Ok(socket) => {
                        if let Some((id, permit)) = context.admit(shard, now, port, &socket) {
                            self.open_accepted(shard, id, socket, port, permit);
                        }
                    }
                    Err(Errno::AGAIN) => listener.is_ready = false,
                    // The peer closed the connection before it was accepted.
                    Err(Errno::INTR | Errno::CONNABORTED) => {}
                    Err(error) => {
                        listener.resume_at = Some(now + ACCEPT_PAUSE);
                        log_failed_accept(&mut listener.log, now, port, &error.into());
                    }
                }
            }
        }
    }

    /// Receives once from a connection that was taken out of its queue, and serves the bytes. It is queued again if
    /// there may be more. Returns the time of the receive if bytes were received.
    fn receive(
        &mut self,
        shard: &mut Shard,
        context: &ShardContext,
        id: ConnectionId,
    ) -> Option<Time> {
        let Net { sockets, scratch, .. } = self;
        let connection = sockets.get(id)?;
        connection.is_queued = false;
        if !connection.is_readable {
            return None;
        }
        match shard.fate(id) {
            Fate::Read | Fate::Shut => {}
            // The connection is queued again when it is to be read.
            Fate::Wait => return None,
            Fate::Close | Fate::HandOver(_) => {
                shard.mark_dirty(id);
                return None;
            }
        }
        let (received, room, now) = match shard.lend_input(id, LONG_FRAME) {
            Some((mut buffer, missing)) => {
                let most = next_of_long_frame(buffer.len(), missing);
                let received = receive_behind(&connection.fd, &mut buffer, most);
                // The clock is read after the receive, because a lease check may rely on that order.
                let now = clock::now();
                shard.take_input_back(now, id, buffer);
                (received, most, now)
            }
            None => {
                let is_hello = connection.is_knocking() || shard.is_in_handshake(id);
                let most = if is_hello { HELLO_BYTES } else { scratch.len() };
                let received =
                    recv(&connection.fd, &mut scratch[..most], RecvFlags::DONTWAIT).map(|(_, n)| n);
                let now = clock::now();
                if let Ok(count @ 1..) = received {
                    shard.handle_bytes(now, id, &scratch[..count]);
                }
                (received, most, now)
            }
        };
        let came = match received {
            Ok(0) => {
                connection.is_readable = false;
                shard.handle_end_of_input(now, id);
                shard.mark_dirty(id);
                return None;
            }
            Ok(count) => {
                context.note_activity();
                // A short receive empties the socket, unless an end follows.
                connection.is_readable = count == room || connection.has_ended;
                Some(now)
            }
            Err(Errno::INTR) => None,
            Err(Errno::AGAIN) => {
                connection.is_readable = false;
                return None;
            }
            Err(_) => {
                connection.is_readable = false;
                shard.handle_failure(id);
                return None;
            }
        };
        match shard.fate(id) {
            Fate::Read => sockets.queue_readable(id),
            Fate::Wait | Fate::Shut | Fate::HandOver(_) | Fate::Close => {
                shard.mark_dirty(id);
            }
        }
        came
    }

    /// Sends a dirty connection's bytes, and carries out its [`Fate`]. Returns the number of bytes sent to a client.
    fn see_to(
        &mut self,
        shard: &mut Shard,
        context: &ShardContext,
        now: Time,
        id: ConnectionId,
    ) -> usize {
        let Net { sockets, unfinished, .. } = self;
        let Some(connection) = sockets.get(id) else { return 0 };
        if !connection.is_stream && shard.is_stream(id) {
            connection.is_stream = true;
        }
        let mut sent = 0;
        if !connection.is_blocked {
            let (count, is_unfinished) = send_unsent(connection, shard, now);
            if !connection.is_stream {
                sent = count;
            }
            if is_unfinished {
                unfinished.push(id);
            }
        }
        match shard.fate(id) {
            Fate::Close => {
                self.close(shard, now, id);
                return sent;
            }
            Fate::HandOver(wanted) if wanted == context.here => {
                // The connection becomes a client or a peer.
                context.name_ends(shard, now, id, &connection.fd);
                shard.adopt_accepted(now, id);
                shard.mark_dirty(id);
                return sent;
            }
            Fate::HandOver(wanted) => {
                self.hand_over(shard, context, now, id, wanted);
                return sent;
            }
            Fate::Shut => {
                if !std::mem::replace(&mut connection.is_shut, true) {
                    let _ = shutdown(&connection.fd, Shutdown::Write);
                }
            }
            Fate::Wait => return sent,
            Fate::Read => {}
        }
        sockets.queue_readable(id);
        sent
    }

    fn close(&mut self, shard: &mut Shard, now: Time, id: ConnectionId) {
        shard.close(now, id);
        // Dropping the socket closes its descriptor and ends its registration.
        self.sockets.remove(id);
    }

    fn hand_over(
        &mut self,
        shard: &mut Shard,
        context: &ShardContext,
        now: Time,
        id: ConnectionId,
        wanted: ShardId,
    ) {
        let handshake = shard.take_handshake(id);
        shard.close(now, id);
        let Some(Connection { fd, permit, .. }) = self.sockets.remove(id) else { return };
        if let Err(error) = self.poller.remove(&fd) {
            // The socket is closed instead of handed over, because its events would continue to wake this thread.
            if let Some(suppressed) = self.log.admit(now) {
                tracing::error!(
                    suppressed,
                    "cannot hand a connection over to shard {wanted}: {error}; it was closed"
                );
            }
            return;
        }
        if let (Some((port, received)), Some(permit)) = (handshake, permit) {
            context.hand_over(wanted, HandedOver { socket: fd, port, received, permit });
        }
    }
}

/// Sends a connection's bytes until none are left, the socket is full, or the limit of a turn is reached. Returns the
/// number of bytes sent, and whether the limit has ended the sending.
fn send_unsent(connection: &mut Connection, shard: &mut Shard, now: Time) -> (usize, bool) {
    let (id, mut sent) = (connection.id, 0);
    loop {
        let unsent = shard.unsent(id);
        if unsent.is_empty() {
            return (sent, false);
        }
        if sent >= MOST_SENT {
            return (sent, true);
        }
        let offered = &unsent[..unsent.len().min(MOST_SENT - sent)];
        let length = offered.len();
        match send(&connection.fd, offered, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => {
                sent += count;
                shard.handle_sent(now, id, count);
                if count < length {
                    connection.is_blocked = true;
                    return (sent, false);
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                connection.is_blocked = true;
                return (sent, false);
            }
            Err(_) => {
                shard.handle_failure(id);
                return (sent, false);
            }
        }
    }
}
