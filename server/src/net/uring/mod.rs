//! The engine over a separate io_uring, driven by a task of the shard's glommio executor.
//!
//! ```text
//!             kernel
//!    accept   |   ^  one send a connection, all of a wake-up submitted at once (long values: sooner)
//!    receive  v   |
//!        +--------------+      completions       +-------+   bytes    +-------+
//!        | ring         | ---------------------> | turn  | ---------> | Shard |
//!        | buffers      | <--------------------- |       | <--------- |       |
//!        +--------------+      requests          +-------+   dirty    +-------+
//!             | bell (eventfd)                       ^
//!             v                                      |
//!        driver: one task of glommio's executor -----+   runtime: tick, mailbox, jobs
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `ring`, `buffers` | all calls to io_uring, and nearly all unsafe code |
//! | `sockets` | the sockets, and the requests in progress of each |
//! | `turn` | one wake-up |
//! | `driver` | the schedule of wake-ups |
//! | `runtime` | the glommio executor in which the engine runs |
//! | `probe` | a test of the kernel features that the engine needs |
//!
//! Invariants:
//!
//! - The ring owns every buffer that the kernel may access.
//! - A descriptor is closed only after its last request has completed.
//! - A receive that ended is armed again unless the connection must wait.
//! - The streams of other servers are served, and their output is sent, before the clients of the same wake-up. They
//!   have receive buffers of their own, and clients delay them by at most a few milliseconds.

mod buffers;
mod driver;
mod probe;
mod ring;
mod runtime;
mod sockets;
mod turn;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;
use kv_shard::{ConnectionTable, DialTarget, LogLimit, Port, Shard};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use self::buffers::Shape;
use self::ring::{Completion, Request, Sizes, SlotId, Uring};
use self::sockets::{Connection, Dialling, Listener, Receiving, Socket, Sockets, Stage};
use super::context::ShardContext;
use super::engine;
use super::jobs::Job;
use super::socket::{CONNECT_TIMEOUT, set_options};
use crate::admission::Permit;
use crate::descriptors::ACCEPTS_AT_ONCE;
use crate::fatal::{Fatal, NoUring};
use crate::message::HandedOver;

pub(crate) use probe::try_out;
pub(crate) use runtime::start_thread;

/// The sizes of a shard's ring. It has one set of receive buffers for streams and one for clients, whatever the number
/// of connections. A set takes 512 KiB, which fits a processor's cache, or 2 MiB on a kernel without `Filling::Pieces`.
const SIZES: Sizes = Sizes {
    requests: 1_024,
    completions: 4_096,
    in_pieces: Shape { count: 4, bytes_each: 128 << 10 },
    at_once: Shape { count: 256, bytes_each: 8 << 10 },
};

/// One shard, its ring and its sockets.
pub(crate) struct Engine {
    context: Rc<ShardContext>,
    net: RefCell<Net>,
    /// The number of jobs in progress. While there are any, the thread does not wait in the ring.
    background: Rc<Cell<usize>>,
}

/// The state that a turn uses in addition to the shard.
struct Net {
    ring: Uring,
    sockets: Sockets,
    /// The slot of the socket of each connection.
    slots: ConnectionTable<SlotId>,
    /// Completions that were just taken from the ring.
    done: Vec<Completion>,
    /// Completions that wait for their turn: of connections at the servers' port that carry no stream, and of clients.
    /// Their number is bounded by the requests in progress; completions of receives are also bounded by the buffers.
    knocking: VecDeque<Completion>,
    clients: VecDeque<Completion>,
    /// Clients for which no buffer was free, and whose last receive returned no bytes.
    starved: VecDeque<(SlotId, ConnectionId)>,
    /// Clients for which no buffer was free, and whose last receive returned bytes.
    hungry: VecDeque<(SlotId, ConnectionId)>,
    /// The slots of the streams.
    streams: Vec<SlotId>,
    /// The time at which the sockets of the streams were last read without the ring.
    looked_at: Time,
    scratch: Vec<u8>,
}

impl Engine {
    /// Creates the engine of a shard and spawns its task.
    fn start(context: Rc<ShardContext>, listeners: Vec<(OwnedFd, Port)>) -> Rc<Engine> {
        let failed = |error: std::io::Error| -> ! {
            Fatal::Uring(NoUring::features(format!("set up a ring: {error}"))).end_process()
        };
        // The flag EFD_NONBLOCK is not set, because io_uring returns EAGAIN for a non-blocking file instead of waiting.
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap_or_else(|error| failed(error.into()));
        let mut net = Net {
            ring: Uring::new(SIZES, bell.as_fd()).unwrap_or_else(|error| failed(error)),
            sockets: Sockets::default(),
            slots: ConnectionTable::default(),
            done: Vec::new(),
            knocking: VecDeque::new(),
            clients: VecDeque::new(),
            starved: VecDeque::new(),
            hungry: VecDeque::new(),
            streams: Vec::new(),
            looked_at: Time::default(),
            scratch: Vec::new(),
        };
        for (listener, port) in listeners {
            net.listen(listener, port);
        }
        let engine = Rc::new(Engine { context, net: RefCell::new(net), background: Rc::default() });
        glommio::spawn_local(driver::drive(Rc::clone(&engine), bell)).detach();
        engine.context.want_flush();
        engine
    }

    fn dial_targets(&self, now: Time) {
        let mut shard = self.context.shard.borrow_mut();
        for (target, address) in shard.due_dials(now) {
            if let Err(error) = self.net.borrow_mut().dial(now, target, address) {
                shard.handle_dial_failed(now, target, &error.to_string());
            }
            self.context.want_flush();
        }
    }
}

impl engine::Engine for Engine {
    fn context(&self) -> &Rc<ShardContext> {
        &self.context
    }

    fn adopt(&self, handed: HandedOver) {
        let mut shard = self.context.shard.borrow_mut();
        let (id, socket, port, permit) = self.context.adopt(&mut shard, handed);
        self.net.borrow_mut().open(&mut shard, id, socket, port, Some(permit));
    }

    fn dial_due(&self, now: Time) {
        self.dial_targets(now);
    }

    fn enforce_deadlines(&self, now: Time) {
        let ids = self.net.borrow_mut().enforce_deadlines(now);
        self.context.shard.borrow_mut().enforce_deadlines(now, ids.into_iter());
        self.context.want_flush();
    }

    fn begin(&self, job: Job) {
        self.spawn_job(job);
    }
}

impl Net {
    /// Starts to accept connections, with several requests for one connection each. This bounds the connections that
    /// one turn accepts.
    fn listen(&mut self, fd: OwnedFd, port: Port) {
        let (fd, log) = (Rc::new(fd), Rc::new(RefCell::new(LogLimit::default())));
        for _ in 0..ACCEPTS_AT_ONCE {
            let (fd, log) = (Rc::clone(&fd), Rc::clone(&log));
            let listener = Listener { fd: Rc::clone(&fd), port, resume_at: None, log };
            let slot = self.sockets.insert(Socket::Listener(listener));
            self.ring.accept(slot, &fd);
        }
    }

    /// Registers a socket as the shard's connection `id`.
    fn open(
        &mut self,
        shard: &mut Shard,
        id: ConnectionId,
        fd: OwnedFd,
        port: Port,
        permit: Option<Permit>,
    ) {
        set_options(&fd, port);
        let slot = self.sockets.insert(Socket::Connection(Connection {
            fd,
            port,
            permit,
            id: Some(id),
            receiving: Receiving::Nothing,
            was_fed: false,
            is_stream: false,
            is_sending: false,
            is_shut: false,
            cancels: 0,
        }));
        self.slots.insert(id, slot);
        // The turn then starts the requests that the dirty connection needs.
        shard.mark_dirty(id);
    }

    fn dial(&mut self, now: Time, target: DialTarget, address: SocketAddr) -> std::io::Result<()> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let deadline = now + CONNECT_TIMEOUT;
        let dialling = Dialling { fd, target, deadline, stage: Stage::Connecting };
        let slot = self.sockets.insert(Socket::Dialling(dialling));
        if let Some(Socket::Dialling(dialling)) = self.sockets.get(slot) {
            self.ring.connect(slot, &dialling.fd, address);
        }
        Ok(())
    }

    /// Handles the deadlines of listeners and dials, and returns the ids of all connections.
    fn enforce_deadlines(&mut self, now: Time) -> Vec<ConnectionId> {
        let Net { ring, sockets, .. } = self;
        let mut ids = Vec::new();
        for (slot, socket) in sockets.iter_mut() {
            match socket {
                Socket::Connection(connection) => ids.extend(connection.id),
                Socket::Listener(listener) => {
                    if listener.resume_at.is_some_and(|at| at <= now) {
                        listener.resume_at = None;
                        ring.accept(slot, &listener.fd);
                    }
                }
                Socket::Dialling(dialling) => {
                    if dialling.deadline <= now && dialling.stage == Stage::Connecting {
                        dialling.stage = Stage::GivenUp;
                        ring.cancel(slot, Request::Connect);
                    }
                }
            }
        }
        ids
    }
}
