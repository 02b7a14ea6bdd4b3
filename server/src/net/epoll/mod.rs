//! The engine over epoll: a plain thread that serves the sockets that are ready.
//!
//! ```text
//!             kernel
//!      ready  |   ^  accept, recv, send, each when it can be done at once
//!             v   |
//!        +--------------+      events       +-------+   bytes    +-------+
//!        | poller       | ----------------> | turn  | ---------> | Shard |
//!        | (and timer)  |                   |       | <--------- |       |
//!        +--------------+                   +-------+   dirty    +-------+
//!             ^                                 ^
//!             +--------- driver: the loop ------+---- tick, mailbox, jobs
//! ```
//!
//! `poller` wraps epoll, `sockets` holds the sockets and the queues of ready ones, `turn` serves one wake-up, and
//! `driver` is the loop of the thread. A dirty connection is one whose output or state has changed.
//!
//! The engine uses neither io_uring nor glommio, so it also runs on systems that deny io_uring. It uses no system call
//! newer than Linux 4.14. It serves in the same order, and within the same bounds, as [`super::uring`].

mod driver;
mod poller;
mod sockets;
mod turn;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;
use kv_shard::{DialTarget, LogLimit, Port, Shard};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use self::poller::{Event, Poller, Source};
use self::sockets::{Connection, Dialling, Listener, Sockets};
use super::context::ShardContext;
use super::engine;
use super::jobs::Job;
use super::socket::{CONNECT_TIMEOUT, reject, set_options};
use crate::admission::Permit;
use crate::clock;
use crate::message::HandedOver;

pub(crate) use driver::start_thread;

/// The maximum number of bytes of one receive.
const RECEIVED_AT_ONCE: usize = 128 << 10;

/// One shard, its sockets and its jobs.
pub(crate) struct Engine {
    context: Rc<ShardContext>,
    net: RefCell<Net>,
    /// Dumps and loads, each with the time of its next step. Their number is bounded by the orders in progress and by
    /// the dumps to load.
    jobs: RefCell<Vec<(Time, Job)>>,
}

/// The state that a turn uses in addition to the shard.
struct Net {
    poller: Poller,
    sockets: Sockets,
    /// The events of one poll, whose number is bounded.
    events: Vec<Event>,
    /// Connections that continue to send in the next turn.
    unfinished: Vec<ConnectionId>,
    scratch: Vec<u8>,
    log: LogLimit,
}

impl Engine {
    /// Creates the engine of a shard.
    fn new(context: Rc<ShardContext>, poller: Poller) -> Engine {
        let net = Net {
            poller,
            sockets: Sockets::default(),
            events: Vec::new(),
            unfinished: Vec::new(),
            scratch: vec![0; RECEIVED_AT_ONCE],
            log: LogLimit::default(),
        };
        Engine { context, net: RefCell::new(net), jobs: RefCell::default() }
    }
}

impl engine::Engine for Engine {
    fn context(&self) -> &Rc<ShardContext> {
        &self.context
    }

    fn adopt(&self, handed: HandedOver) {
        let mut shard = self.context.shard.borrow_mut();
        let (id, socket, port, permit) = self.context.adopt(&mut shard, handed);
        self.net.borrow_mut().open_accepted(&mut shard, id, socket, port, permit);
    }

    fn dial_due(&self, now: Time) {
        let mut shard = self.context.shard.borrow_mut();
        for (target, address) in shard.due_dials(now) {
            if let Err(error) = self.net.borrow_mut().dial(now, target, address) {
                shard.handle_dial_failed(now, target, &error.to_string());
            }
        }
    }

    fn enforce_deadlines(&self, now: Time) {
        let mut shard = self.context.shard.borrow_mut();
        let mut net = self.net.borrow_mut();
        let Net { sockets, .. } = &mut *net;
        sockets.resume_accepting(now);
        for target in sockets.give_up_dials(now) {
            shard.handle_dial_failed(now, target, "the connection attempt timed out");
            shard.service.note_news();
        }
        let ids: Vec<ConnectionId> = sockets.ids().collect();
        shard.enforce_deadlines(now, ids.into_iter());
        self.context.want_flush();
    }

    fn begin(&self, job: Job) {
        self.jobs.borrow_mut().push((clock::now(), job));
    }
}

impl Net {
    fn listen(&mut self, listener: OwnedFd, port: Port) -> io::Result<()> {
        // The peer may close a connection after epoll has reported it and before it is accepted.
        ioctl_fionbio(&listener, true)?;
        let place = self.sockets.next_listener();
        self.poller.add(&listener, Source::Listener(place))?;
        self.sockets.add_listener(Listener::new(listener, port));
        Ok(())
    }

    /// Adds the socket of the connection with this id. If epoll cannot watch the socket, returns it with the error.
    fn open(
        &mut self,
        shard: &mut Shard,
        id: ConnectionId,
        fd: OwnedFd,
        port: Port,
        permit: Option<Permit>,
    ) -> Result<(), (io::Error, OwnedFd)> {
        if let Err(error) = self.poller.add(&fd, Source::Connection(id)) {
            return Err((error, fd));
        }
        set_options(&fd, port);
        self.sockets.insert(Connection::new(id, fd, port, permit));
        // The next turn handles the state of the connection.
        shard.mark_dirty(id);
        Ok(())
    }

    /// Adds an accepted socket, or rejects it if epoll cannot watch another socket.
    fn open_accepted(
        &mut self,
        shard: &mut Shard,
        id: ConnectionId,
        fd: OwnedFd,
        port: Port,
        permit: Permit,
    ) {
        if let Err((error, fd)) = self.open(shard, id, fd, port, Some(permit)) {
            let now = clock::now();
            shard.close(now, id);
            reject(&fd, port);
            if let Some(suppressed) = self.log.admit(now) {
                tracing::error!(
                    suppressed,
                    "cannot watch a connection to {port}: {error}; the connection was rejected; check sysctl \
                     fs.epoll.max_user_watches"
                );
            }
        }
    }

    fn dial(&mut self, now: Time, target: DialTarget, address: SocketAddr) -> io::Result<()> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::STREAM, flags, None)?;
        match connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let number = self.sockets.next_dial();
        // The socket is registered only now, because a socket that was never connected reports a hang-up.
        self.poller.add(&fd, Source::Dial(number))?;
        let deadline = now + CONNECT_TIMEOUT;
        self.sockets.add_dial(Dialling { number, fd, target, deadline, is_ready: false });
        Ok(())
    }
}
