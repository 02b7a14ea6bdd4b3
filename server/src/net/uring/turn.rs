//! One wake-up: everything that has completed is served, and what comes of it is asked of the ring.
//!
//! ```text
//!   enter, reap -> bytes of other servers -> pump, send --+ (submitted at once, if clients are next)
//!                                                         v
//!                  bytes of clients, all else -> pump, send        (submitted by the next turn)
//! ```
//!
//! An ack therefore never waits for the requests of this server's own clients, and all PREPAREs and all
//! ACKs of a wake-up leave in one batch each. The work of a turn is bounded: by the completions that are
//! reaped, each with at most a buffer of bytes, and by what a connection may have unsent or is sent directly.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::process::{Resource, getrlimit};

use super::ring::{Completion, Event, Request, SlotId, WhenFull};
use super::sockets::{Connection, Receiving, Socket, Stage};
use super::{Engine, Net};
use crate::clock;
use crate::fatal::Fatal;
use crate::message::HandedOver;
use crate::net::hub::{ACCEPT_PAUSE, Hub, turn_away};
use crate::net::listener::Port;
use crate::net::output::slot_of;
use crate::shard::{Fate, Shard};

/// Most completions that one turn serves.
const MOST_COMPLETIONS: usize = 512;
/// Most bytes of one send: a socket with room for megabytes would have the kernel copy them all at once.
const MOST_SENT: usize = 256 << 10;
/// A frame that lacks so many bytes is received straight into its own buffer, this much at a time.
const LONG_FRAME: usize = 64 << 10;
const MOST_RECEIVED: usize = 256 << 10;
/// So much is received with a hello, whatever its sender sent behind it.
const HELLO_BYTES: usize = 1 << 10;

impl Engine {
    /// Serves what has completed; whether there was anything to do.
    pub(super) fn turn(self: &Rc<Engine>) -> bool {
        let mut net = self.net.borrow_mut();
        net.reap();
        if net.done.is_empty() {
            net.enter();
            net.reap();
        }
        if !self.hub.take_flush() && net.done.is_empty() {
            return false;
        }
        let mut shard = self.hub.shard.borrow_mut();
        // Read after the bytes were received: a lease check may rely on it.
        let now = clock::now();
        shard.service.outputs.set_now(now);
        net.serve_all(&mut shard, &self.hub, now);
        let has_news = shard.service.take_news();
        if has_news {
            // Who hears that all is answered may end the process.
            net.enter();
        }
        drop((net, shard));
        if has_news {
            self.on_news(now);
        }
        true
    }
}

impl Net {
    fn enter(&mut self) {
        if let Err(error) = self.ring.enter() {
            Fatal::System { doing: "enter the ring of the network engine", error }.end_process();
        }
    }

    fn reap(&mut self) {
        self.ring.reap(&mut self.done, MOST_COMPLETIONS);
    }

    fn serve_all(&mut self, shard: &mut Shard, hub: &Hub, now: Time) {
        if self.serve_peers(shard, hub, now) {
            self.settle(shard, hub, now);
            self.enter();
        }
        let mut others = std::mem::take(&mut self.others);
        for completion in others.drain(..) {
            self.serve(shard, hub, now, completion);
        }
        self.others = others;
        self.settle(shard, hub, now);
    }

    /// Serves the completions of streams, and leaves the others; whether both had bytes.
    fn serve_peers(&mut self, shard: &mut Shard, hub: &Hub, now: Time) -> bool {
        let (mut had_bytes, mut have_bytes) = (false, false);
        let mut done = std::mem::take(&mut self.done);
        for completion in done.drain(..) {
            let is_receive =
                matches!(completion.event, Event::Received(_) | Event::ReceivedInto(..));
            if self.sockets.is_peer(completion.slot) {
                had_bytes |= is_receive;
                self.serve(shard, hub, now, completion);
            } else {
                have_bytes |= is_receive;
                self.others.push(completion);
            }
        }
        self.done = done;
        had_bytes && have_bytes
    }

    fn serve(&mut self, shard: &mut Shard, hub: &Hub, now: Time, completion: Completion) {
        let Completion { slot, has_more, event } = completion;
        match event {
            Event::Accepted(accepted) => {
                self.on_accepted(shard, hub, now, slot, accepted, has_more)
            }
            Event::Connected(connected) => self.on_connected(shard, now, slot, connected),
            Event::Received(received) => {
                let id = self.sockets.connection(slot).and_then(|connection| {
                    if !has_more {
                        connection.receiving = Receiving::Nothing;
                    }
                    connection.id
                });
                match received {
                    Ok(Some(lent)) => {
                        if let Some(id) = id {
                            hub.note_activity();
                            shard.on_bytes(now, id, self.ring.bytes(&lent));
                        }
                        self.ring.give_back(lent);
                    }
                    Ok(None) => on_end(shard, now, id),
                    Err(error) => on_receive_failed(shard, id, &error),
                }
                self.look_after(shard, slot, id, !has_more);
            }
            Event::ReceivedInto(received, buffer) => {
                let Some(connection) = self.sockets.connection(slot) else { return };
                let was = std::mem::replace(&mut connection.receiving, Receiving::Nothing);
                let id = connection.id;
                if let Some(id) = id {
                    match was {
                        Receiving::Frame => shard.take_input_back(now, id, buffer),
                        _ => shard.on_bytes(now, id, &buffer),
                    }
                }
                match received {
                    Ok(1..) => hub.note_activity(),
                    Ok(0) => on_end(shard, now, id),
                    Err(error) => on_receive_failed(shard, id, &error),
                }
                self.look_after(shard, slot, id, true);
            }
            Event::Sent(sent, buffer, from) => self.on_sent(shard, now, slot, sent, (buffer, from)),
            Event::Cancelled => self.on_cancelled(slot),
        }
    }

    /// Has a connection looked at again if its request has ended or it is not to be read from; what is
    /// left of a closed one goes with its last request.
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
                shard.service.outputs.mark_dirty(id);
            }
            Some(_) => {}
            None => self.release_if_quiet(slot),
        }
    }

    fn on_accepted(
        &mut self,
        shard: &mut Shard,
        hub: &Hub,
        now: Time,
        slot: SlotId,
        accepted: std::io::Result<OwnedFd>,
        has_more: bool,
    ) {
        let Some(Socket::Listener(listener)) = self.sockets.get(slot) else { return };
        let port = listener.port;
        let accepted = accepted.and_then(|socket| match is_within_limit(&socket) {
            true => Ok(socket),
            false => {
                turn_away(&socket, port);
                Err(Errno::MFILE.into())
            }
        });
        if let Err(error) = &accepted {
            if has_more {
                self.ring.cancel(slot, Request::Accept);
            }
            listener.resume_at = Some(now + ACCEPT_PAUSE);
            if error.raw_os_error() != Some(libc::ECANCELED)
                && let Some(suppressed) = listener.log.admit(now)
            {
                tracing::error!(
                    suppressed,
                    "accept a connection for {port:?}: {error}; accepting pauses for \
                     {ACCEPT_PAUSE:?} (too few descriptors? see `ulimit -n`)"
                );
            }
        } else if !has_more && listener.resume_at.is_none() {
            self.ring.accept(slot, &listener.fd);
        }
        let Ok(socket) = accepted else { return };
        match hub.board.admit(port) {
            Some(permit) => {
                let id = shard.open_greeting(now, port);
                self.open(shard, id, socket, port, Some(permit));
            }
            None => turn_away(&socket, port),
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
        let (group, stage) = (dialling.group, dialling.stage);
        if stage == Stage::Connecting {
            let Some(Socket::Dialling(dialling)) = self.sockets.remove(slot) else { return };
            match connected {
                Ok(()) => {
                    let id = shard.open_stream(now, group);
                    self.open(shard, id, dialling.fd, Port::Servers, None);
                }
                Err(error) => shard.service.on_dial_failed(now, group, &error.to_string()),
            }
        } else {
            self.end_dial(slot);
            shard.service.on_dial_failed(now, group, "it took too long");
        }
        shard.service.note_news();
    }

    /// One of the two last completions of a dial that was given up has come.
    fn end_dial(&mut self, slot: SlotId) {
        let Some(Socket::Dialling(dialling)) = self.sockets.get(slot) else { return };
        match dialling.stage {
            Stage::Connecting | Stage::GivenUp => dialling.stage = Stage::Ending,
            Stage::Ending => drop(self.sockets.remove(slot)),
        }
    }

    fn on_sent(
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
            shard.service.outputs.recycle(buffer);
            return self.release_if_quiet(slot);
        };
        let next = match sent {
            Ok(count) => {
                shard.on_sent(now, id, count);
                from + count
            }
            Err(error) if is_passing(&error) => from,
            Err(_) => {
                shard.service.outputs.kill(id);
                buffer.len()
            }
        };
        let is_dead = shard.service.outputs.get(id).is_none_or(|output| output.is_over());
        if next < buffer.len() && !is_dead {
            connection.is_sending = true;
            self.ring.send(slot, &connection.fd, buffer, next, MOST_SENT, WhenFull::Wait);
        } else {
            shard.service.outputs.recycle(buffer);
        }
        shard.service.outputs.mark_dirty(id);
    }

    fn on_cancelled(&mut self, slot: SlotId) {
        match self.sockets.get(slot) {
            Some(Socket::Connection(connection)) => {
                connection.cancels -= 1;
                if connection.id.is_none() && connection.cancels == 0 && !connection.is_quiet() {
                    // What was not found to be cancelled ends by this.
                    let _ = rustix::net::shutdown(&connection.fd, Shutdown::Both);
                }
                self.release_if_quiet(slot);
            }
            Some(Socket::Dialling(_)) => self.end_dial(slot),
            Some(Socket::Listener(_)) | None => {}
        }
    }

    /// The end of a wake-up, or of the peers' part of it: streams get what they have to say, and every
    /// connection about which something is to be done is seen to.
    fn settle(&mut self, shard: &mut Shard, hub: &Hub, now: Time) {
        shard.finish_wake_up(now);
        while let Some(id) = shard.service.outputs.next_dirty() {
            self.see_to(shard, hub, now, id);
        }
    }

    fn see_to(&mut self, shard: &mut Shard, hub: &Hub, now: Time, id: ConnectionId) {
        let Some(slot) = self.slots.get(slot_of(id)).copied().flatten() else { return };
        let Some(connection) = self.sockets.connection(slot) else { return };
        if connection.id != Some(id) {
            return;
        }
        if !connection.is_sending
            && let Some((buffer, from)) =
                shard.service.outputs.get(id).and_then(|output| output.take())
        {
            connection.is_sending = true;
            self.ring.send(slot, &connection.fd, buffer, from, MOST_SENT, WhenFull::Fail);
        }
        let fate = shard.fate(id);
        match fate {
            Fate::Close => return self.close(shard, now, slot, id),
            Fate::HandOver(wanted) if wanted == hub.here => {
                // It becomes a client or a peer, and is looked at as such.
                shard.adopt_greeting(now, id);
                return shard.service.outputs.mark_dirty(id);
            }
            Fate::HandOver(wanted) => {
                if connection.receiving == Receiving::Nothing {
                    return self.hand_over(shard, hub, now, slot, id, wanted);
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
    }

    /// Receives, or ends receiving, as a connection needs it.
    fn keep_receiving(&mut self, shard: &mut Shard, slot: SlotId, id: ConnectionId, is_read: bool) {
        let Some(connection) = self.sockets.connection(slot) else { return };
        match connection.receiving {
            Receiving::Nothing if is_read => {
                if let Some((buffer, missing)) = shard.lend_input(id, LONG_FRAME) {
                    connection.receiving = Receiving::Frame;
                    // Never more memory than twice of what has come: a header can say anything.
                    let most = missing.min(buffer.len().max(LONG_FRAME)).min(MOST_RECEIVED);
                    self.ring.receive_into(slot, &connection.fd, buffer, most);
                } else if shard.is_greeting(id) {
                    connection.receiving = Receiving::Hello;
                    self.ring.receive_into(slot, &connection.fd, Vec::new(), HELLO_BYTES);
                } else {
                    connection.receiving = Receiving::All;
                    self.ring.receive(slot, &connection.fd);
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
            // What is lent is taken back when some of it has come.
            Receiving::Nothing
            | Receiving::Hello
            | Receiving::All
            | Receiving::Frame
            | Receiving::Ending => {}
        }
    }

    /// Closes a connection; what is left of it goes with its last request.
    fn close(&mut self, shard: &mut Shard, now: Time, slot: SlotId, id: ConnectionId) {
        shard.close(now, id);
        self.slots[slot_of(id)] = None;
        let Some(connection) = self.sockets.connection(slot) else { return };
        connection.id = None;
        let receive = match connection.receiving {
            Receiving::All => Some(Request::Receive),
            Receiving::Hello | Receiving::Frame => Some(Request::ReceiveInto),
            Receiving::Nothing | Receiving::Ending => None,
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
        hub: &Hub,
        now: Time,
        slot: SlotId,
        id: ConnectionId,
        wanted: kv_protocol::ids::ShardId,
    ) {
        let greeting = shard.take_greeting(id);
        shard.close(now, id);
        self.slots[slot_of(id)] = None;
        let Some(Socket::Connection(connection)) = self.sockets.remove(slot) else { return };
        let Connection { fd, permit, .. } = connection;
        // Its output is closed: there is no other.
        let socket = Rc::into_inner(fd);
        if let (Some(socket), Some((port, received)), Some(permit)) = (socket, greeting, permit) {
            hub.hand_over(wanted, HandedOver { socket, port, received, permit });
        }
    }

    /// Lets go of a closed connection of which the kernel has no request any more.
    fn release_if_quiet(&mut self, slot: SlotId) {
        if let Some(connection) = self.sockets.connection(slot)
            && connection.id.is_none()
            && connection.is_quiet()
        {
            self.sockets.remove(slot);
        }
    }
}

/// Whether a descriptor may be open by the limit that holds now: an accept that stays armed goes on by the
/// one that held when it was armed.
fn is_within_limit(socket: &OwnedFd) -> bool {
    let limit = getrlimit(Resource::Nofile).current;
    limit.is_none_or(|limit| {
        i64::from(socket.as_raw_fd()) < i64::try_from(limit).unwrap_or(i64::MAX)
    })
}

/// The other side has sent all it will.
fn on_end(shard: &mut Shard, now: Time, id: Option<ConnectionId>) {
    if let Some(id) = id {
        shard.on_end_of_input(now, id);
    }
}

/// A receive ended for a reason that passes (no buffer was free, it was cancelled), or the connection is
/// gone.
fn on_receive_failed(shard: &mut Shard, id: Option<ConnectionId>, error: &std::io::Error) {
    let is_buffer = error.raw_os_error() == Some(libc::ENOBUFS);
    if let Some(id) = id
        && !is_buffer
        && !is_passing(error)
    {
        shard.service.outputs.kill(id);
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECANCELED | libc::EINTR | libc::EAGAIN))
}
