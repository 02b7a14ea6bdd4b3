//! The engine over glommio's `TcpStream`: one task a connection reads, one task sends.
//!
//! ```text
//!   accept task --> connection task: wait for bytes -> Shard::on_bytes --+
//!   dial task ----> connection task: ...                                 +-> ask for a flush
//!   mailbox task -> orders, handed-over sockets                          |
//!   tick task ----> time, deadlines, the board --------------------------+
//!                                                                        v
//!   flush task:  after all tasks that were ready: Shard::finish_wake_up, one send a dirty
//!                connection; a full socket is left to its connection task
//! ```
//!
//! The flush task is woken by the first task that has something to send and runs behind all that
//! were ready with it, so what one turn of the executor produced for a connection leaves in one
//! send, and PREPAREs and ACKs leave in one batch.
//!
//! The tasks of clients are in a queue of their own, which the executor leaves every few milliseconds: no load of
//! clients keeps ticks, orders or the streams of other servers waiting for longer.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use glommio::{GlommioError, Latency, Shares, TaskQueueHandle};
use kv_core::replica::ConnectionId;
use kv_protocol::ids::{GroupId, ShardId, Time};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::hub::{ACCEPT_PAUSE, CONNECT_TIMEOUT, Hub, set_options, turn_away};
use super::listener::Port;
use super::output::{SendNow, slot_of};
use crate::clock;
use crate::crowd::Address;
use crate::log_limit::LogLimit;
use crate::message::HandedOver;
use crate::shard::{Fate, Shard};
use crate::stats::Permit;

/// Most bytes taken from a socket at once.
const RECEIVE_BYTES: usize = 128 << 10;
/// A connection task that found bytes this often in a row lets the others run.
const READS_IN_A_ROW: usize = 8;

/// How long the answers of a wake-up are sent to clients before the others have their turn.
const FLUSH_TIME: Duration = Duration::from_millis(1);

/// The sockets of one shard, and who is to be woken.
pub(crate) struct Engine {
    pub(crate) hub: Rc<Hub>,
    /// Where the tasks of clients run. Whatever they do, the executor goes on with the tasks of its own queue (ticks,
    /// orders, streams, sending) when its preemption timer says so.
    clients: TaskQueueHandle,
    endpoints: RefCell<Vec<Option<Endpoint>>>,
    scratch: RefCell<Vec<u8>>,
}

/// What the engine keeps of a connection, by its slot.
struct Endpoint {
    id: ConnectionId,
    fd: i32,
    waker: Option<Waker>,
    /// The socket took no more bytes: its task waits for room and sends.
    is_blocked: bool,
    /// Its task does not read, until it is woken.
    is_paused: bool,
    is_shut: bool,
}

/// Why a connection task ends.
enum End {
    Close,
    HandOver(ShardId),
}

impl Engine {
    fn new(hub: Rc<Hub>) -> Rc<Engine> {
        let clients = glommio::executor().create_task_queue(
            Shares::default(),
            Latency::NotImportant,
            "clients",
        );
        Rc::new(Engine {
            hub,
            clients,
            endpoints: RefCell::default(),
            scratch: RefCell::new(vec![0; RECEIVE_BYTES]),
        })
    }

    /// The engine of a shard, with its tasks.
    pub(crate) fn start(hub: Rc<Hub>, listeners: Vec<(std::net::TcpListener, Port)>) -> Rc<Engine> {
        let engine = Engine::new(hub);
        for (listener, port) in listeners {
            engine.spawn(port, Rc::clone(&engine).accept(listener, port));
        }
        glommio::spawn_local(Rc::clone(&engine).flush_for_ever()).detach();
        engine
    }

    /// Accepts for ever; to be run as a task of its own.
    async fn accept(self: Rc<Engine>, listener: std::net::TcpListener, port: Port) {
        // SAFETY: the descriptor is given away and has no other owner.
        let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
        let mut log = LogLimit::default();
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    match self.hub.board.admit(port, Address::of_peer(&borrowed(&stream))) {
                        Some(permit) => self.welcome(stream, port, permit),
                        None => turn_away(&borrowed(&stream), port),
                    }
                }
                Err(error) => {
                    if let Some(suppressed) = log.admit(clock::now()) {
                        tracing::error!(
                            suppressed,
                            "accept a connection for {port:?}: {error}; accepting pauses for \
                             {ACCEPT_PAUSE:?} (too few descriptors? see `ulimit -n`)"
                        );
                    }
                    glommio::timer::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn welcome(self: &Rc<Engine>, stream: TcpStream, port: Port, permit: Permit) {
        let id = self.hub.shard.borrow_mut().open_greeting(clock::now(), port);
        self.hub.shard.borrow_mut().set_address(id, permit.from());
        self.open(id, stream, port, Some(permit));
    }

    /// Takes in a socket that another executor accepted.
    pub(crate) fn adopt(self: &Rc<Engine>, handed: HandedOver) {
        let HandedOver { socket, port, received, permit } = handed;
        // SAFETY: the descriptor is given away and has no other owner.
        let stream = unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) };
        let id = self.hub.shard.borrow_mut().adopt(clock::now(), port, &[]);
        self.hub.shard.borrow_mut().set_address(id, permit.from());
        self.hub.shard.borrow_mut().on_bytes(clock::now(), id, &received);
        self.open(id, stream, port, Some(permit));
        self.hub.want_flush();
    }

    /// Dials the streams that are due.
    pub(crate) fn dial_due(self: &Rc<Engine>, now: Time) {
        let due = self.hub.shard.borrow_mut().due_dials(now);
        for (group, address) in due {
            let engine = Rc::clone(self);
            glommio::spawn_local(async move { engine.dial(group, address).await }).detach();
        }
    }

    /// Dials what is due next, as soon as it is.
    fn dial_when_due(self: &Rc<Engine>, now: Time) {
        let engine = Rc::clone(self);
        self.hub.when_dial_is_due(now, move |now| engine.dial_due(now));
    }

    async fn dial(self: Rc<Engine>, group: GroupId, address: SocketAddr) {
        match TcpStream::connect_timeout(address, CONNECT_TIMEOUT).await {
            Ok(stream) => {
                let id = self.hub.shard.borrow_mut().open_stream(clock::now(), group);
                self.open(id, stream, Port::Servers, None);
                self.hub.want_flush();
            }
            Err(error) => {
                let error = io_error(error).to_string();
                let now = clock::now();
                self.hub.shard.borrow_mut().service.on_dial_failed(now, group, &error);
                self.dial_when_due(now);
            }
        }
    }

    /// Starts the task of a connection.
    fn open(
        self: &Rc<Engine>,
        id: ConnectionId,
        stream: TcpStream,
        port: Port,
        permit: Option<Permit>,
    ) {
        set_options(&borrowed(&stream), port);
        let fd = stream.as_raw_fd();
        if port == Port::Clients {
            let socket = Rc::new(OpenSocket(fd));
            self.hub.shard.borrow_mut().service.outputs.set_socket(id, socket);
        }
        let (waker, is_blocked, is_paused, is_shut) = (None, false, false, false);
        let endpoint = Endpoint { id, fd, waker, is_blocked, is_paused, is_shut };
        let mut endpoints = self.endpoints.borrow_mut();
        if slot_of(id) >= endpoints.len() {
            endpoints.resize_with(slot_of(id) + 1, || None);
        }
        endpoints[slot_of(id)] = Some(endpoint);
        drop(endpoints);
        self.spawn(port, Rc::clone(self).run(id, stream, port, permit));
    }

    /// Runs a task of a connection, or of all of a port.
    fn spawn(&self, port: Port, task: impl Future<Output = ()> + 'static) {
        match port {
            Port::Servers => glommio::spawn_local(task).detach(),
            Port::Clients => glommio::spawn_local_into(task, self.clients)
                .expect("the queue lives as long as its executor")
                .detach(),
        };
    }

    async fn run(
        self: Rc<Engine>,
        id: ConnectionId,
        mut stream: TcpStream,
        port: Port,
        permit: Option<Permit>,
    ) {
        let end = poll_fn(|context| self.poll_connection(context, id, &mut stream)).await;
        self.endpoints.borrow_mut()[slot_of(id)] = None;
        let greeting = self.hub.shard.borrow_mut().take_greeting(id);
        self.hub.shard.borrow_mut().close(clock::now(), id);
        self.hub.want_flush();
        if let (End::HandOver(shard), Some((_, received)), Some(permit)) = (end, greeting, permit) {
            self.hand_over(shard, stream, port, received, permit);
        }
    }

    /// Gives a socket to the executor of the shard it asks for.
    fn hand_over(
        &self,
        shard: ShardId,
        stream: TcpStream,
        port: Port,
        received: Vec<u8>,
        permit: Permit,
    ) {
        // glommio's streams cannot be taken apart: the other executor gets a descriptor of its own.
        let socket: OwnedFd = match rustix::io::fcntl_dupfd_cloexec(borrowed(&stream), 0) {
            Ok(socket) => socket,
            Err(_) => return turn_away(&borrowed(&stream), port),
        };
        self.hub.hand_over(shard, HandedOver { socket, port, received, permit });
    }

    /// Moves bytes of one connection until there is nothing to do but wait.
    fn poll_connection(
        self: &Rc<Engine>,
        context: &mut Context<'_>,
        id: ConnectionId,
        stream: &mut TcpStream,
    ) -> Poll<End> {
        self.remember_waker(id, context.waker());
        for _ in 0..READS_IN_A_ROW {
            if self.is_blocked(id) && self.poll_send(context, id, stream).is_err() {
                return Poll::Ready(End::Close);
            }
            let fate = self.hub.shard.borrow_mut().fate(id);
            match fate {
                Fate::Close => return Poll::Ready(End::Close),
                Fate::HandOver(shard) if shard == self.hub.here => {
                    self.hub.shard.borrow_mut().adopt_greeting(clock::now(), id);
                    self.hub.want_flush();
                    continue;
                }
                Fate::HandOver(shard) => return Poll::Ready(End::HandOver(shard)),
                Fate::Wait => {
                    self.with_endpoint(id, |endpoint| endpoint.is_paused = true);
                    return Poll::Pending;
                }
                Fate::Shut => self.shut_once(id),
                Fate::Read => {}
            }
            match self.poll_receive(context, id, stream) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(End::Close),
                Poll::Pending => return Poll::Pending,
            }
            if glommio::executor().need_preempt() {
                break;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_receive(
        &self,
        context: &mut Context<'_>,
        id: ConnectionId,
        stream: &mut TcpStream,
    ) -> Poll<io::Result<()>> {
        let mut scratch = self.scratch.borrow_mut();
        let received = match Pin::new(stream).poll_read(context, &mut scratch) {
            Poll::Ready(received) => received?,
            Poll::Pending => return Poll::Pending,
        };
        // Read after the bytes were received: a lease check may rely on it.
        let now = clock::now();
        let mut shard = self.hub.shard.borrow_mut();
        if received == 0 {
            shard.on_end_of_input(now, id);
        } else {
            self.hub.note_activity();
            shard.on_bytes(now, id, &scratch[..received]);
        }
        drop(shard);
        self.hub.want_flush();
        Poll::Ready(Ok(()))
    }

    /// Sends what the flush could not, as the socket has room again.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        id: ConnectionId,
        stream: &mut TcpStream,
    ) -> io::Result<()> {
        let mut shard = self.hub.shard.borrow_mut();
        loop {
            let unsent = shard.unsent(id);
            if unsent.is_empty() {
                drop(shard);
                self.set_blocked(id, false);
                self.hub.want_flush();
                return Ok(());
            }
            match Pin::new(&mut *stream).poll_write(context, unsent) {
                Poll::Ready(count) => shard.on_sent(clock::now(), id, count?),
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Sends for ever: after every wake-up, what it produced. To be run as a task of its own.
    async fn flush_for_ever(self: Rc<Engine>) {
        loop {
            poll_fn(|context| self.hub.poll_flush(context)).await;
            if self.flush_now() {
                // Whatever has come meanwhile is served before the next pieces.
                glommio::executor().yield_task_queue_now().await;
                self.hub.want_flush();
            }
        }
    }

    /// Sends what the wake-up produced; whether readers of long values wait for their next turn.
    fn flush_now(self: &Rc<Engine>) -> bool {
        let now = clock::now();
        let mut shard = self.hub.shard.borrow_mut();
        shard.finish_wake_up(now);
        self.send_dirty(&mut shard, now);
        let mut has_readers = shard.service.outputs.has_readers();
        if has_readers {
            has_readers = shard.serve_readers(now);
            self.send_dirty(&mut shard, now);
        }
        // What is sent may have made room for more of a stream.
        shard.finish_wake_up(now);
        if shard.service.outputs.has_dirty() {
            self.hub.want_flush();
        }
        let has_news = shard.service.take_news();
        drop(shard);
        if has_news {
            self.hub.publish();
            self.hub.board.announce();
            self.dial_due(now);
            self.dial_when_due(now);
        }
        has_readers
    }

    fn send_dirty(&self, shard: &mut Shard, now: Time) {
        while let Some(id) = shard.service.outputs.next_dirty() {
            let is_stream = shard.service.outputs.is_stream(id);
            self.send(shard, now, id);
            let is_paused =
                self.with_endpoint(id, |endpoint| std::mem::take(&mut endpoint.is_paused));
            let fate = shard.fate(id);
            if !matches!(fate, Fate::Read)
                || !shard.unsent(id).is_empty()
                || is_paused == Some(true)
            {
                self.wake(id);
            }
            // What is left is flushed when the tasks that are ready now have run.
            if !is_stream && clock::now() >= now + FLUSH_TIME {
                return;
            }
        }
    }

    /// Sends a connection's bytes until they are gone or the socket is full.
    fn send(&self, shard: &mut Shard, now: Time, id: ConnectionId) {
        let endpoints = self.endpoints.borrow();
        let Some(endpoint) = endpoints.get(slot_of(id)).and_then(Option::as_ref) else { return };
        if endpoint.id != id || endpoint.is_blocked {
            return;
        }
        // SAFETY: the endpoint is removed before its stream is dropped, so the socket is open.
        let socket = unsafe { BorrowedFd::borrow_raw(endpoint.fd) };
        drop(endpoints);
        loop {
            let unsent = shard.unsent(id);
            if unsent.is_empty() {
                return;
            }
            match rustix::net::send(socket, unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => shard.on_sent(now, id, count),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.set_blocked(id, true);
                    return self.wake(id);
                }
                Err(_) => {
                    shard.service.outputs.kill(id);
                    return self.wake(id);
                }
            }
        }
    }

    /// Closes the connections that missed a deadline.
    pub(crate) fn enforce_deadlines(&self, now: Time) {
        let ids: Vec<ConnectionId> =
            self.endpoints.borrow().iter().flatten().map(|endpoint| endpoint.id).collect();
        self.hub.shard.borrow_mut().enforce_deadlines(now, ids.into_iter());
        self.hub.want_flush();
    }

    fn with_endpoint<T>(
        &self,
        id: ConnectionId,
        look: impl FnOnce(&mut Endpoint) -> T,
    ) -> Option<T> {
        let mut endpoints = self.endpoints.borrow_mut();
        let endpoint = endpoints.get_mut(slot_of(id))?.as_mut()?;
        (endpoint.id == id).then(|| look(endpoint))
    }

    fn remember_waker(&self, id: ConnectionId, waker: &Waker) {
        self.with_endpoint(id, |endpoint| match &mut endpoint.waker {
            Some(known) => known.clone_from(waker),
            None => endpoint.waker = Some(waker.clone()),
        });
    }

    fn wake(&self, id: ConnectionId) {
        if let Some(Some(waker)) = self.with_endpoint(id, |endpoint| endpoint.waker.take()) {
            waker.wake();
        }
    }

    fn is_blocked(&self, id: ConnectionId) -> bool {
        self.with_endpoint(id, |endpoint| endpoint.is_blocked).unwrap_or(false)
    }

    fn set_blocked(&self, id: ConnectionId, is_blocked: bool) {
        self.with_endpoint(id, |endpoint| endpoint.is_blocked = is_blocked);
    }

    /// Tells the other side that nothing more comes.
    fn shut_once(&self, id: ConnectionId) {
        self.with_endpoint(id, |endpoint| {
            if !std::mem::replace(&mut endpoint.is_shut, true) {
                // SAFETY: the endpoint is removed before its stream is dropped.
                let socket = unsafe { BorrowedFd::borrow_raw(endpoint.fd) };
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
            }
        });
    }
}

/// The socket of a connection's stream, for what its output sends at once.
struct OpenSocket(i32);

impl SendNow for OpenSocket {
    fn send_now(&self, parts: &[IoSlice<'_>]) -> usize {
        // SAFETY: the connection's output, and this with it, is closed before the stream is dropped.
        let socket = unsafe { BorrowedFd::borrow_raw(self.0) };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags).unwrap_or(0)
    }
}

/// The socket of a stream, for calls that glommio has not.
fn borrowed(stream: &TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream is open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

fn io_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
