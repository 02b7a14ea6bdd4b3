//! What every engine stands around: the shard, where it publishes, whom it hands sockets to, and the wish
//! that what was produced be sent.
//!
//! ```text
//!   tick, mailbox, dumps --> shard --- want_flush ---> whoever sends (a task of the engine)
//! ```

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kv_protocol::client_message::{Refusal, Status};
use kv_protocol::ids::{ShardId, Time};
use kv_protocol::peer_message::{PeerRefusal, PeerRefusalReason};
use rustix::net::{SendFlags, Shutdown};
use socket2::SockRef;

use super::listener::Port;
use crate::clock;
use crate::mailbox;
use crate::message::{HandedOver, ShardMessage};
use crate::shard::Shard;
use crate::stats::{Board, Condition};
use crate::watchdog::Activity;

/// How long accepting pauses when there is no descriptor left.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a dialled server may take to accept.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Unacknowledged bytes this old mean that the peer's host is gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// So much the kernel takes of a stream ahead of what the network takes. What it has taken goes before every later
/// beacon: left alone it takes megabytes, which a narrow link carries for longer than a lease.
const UNSENT_BYTES: u32 = 128 << 10;
/// A client's host that is gone is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// One shard and who is to be told of what.
pub(crate) struct Hub {
    pub(crate) shard: RefCell<Shard>,
    pub(crate) board: Arc<Board>,
    pub(crate) here: ShardId,
    mailboxes: Vec<mailbox::Sender<ShardMessage>>,
    is_flush_wanted: Cell<bool>,
    flusher: RefCell<Option<Waker>>,
    /// Whether any byte came in since the last tick.
    is_active: Cell<bool>,
    /// Tasks that have steps to do whenever nobody else has.
    background_tasks: Cell<usize>,
}

impl Hub {
    /// The hub of a shard. `mailboxes` are those of all shards, in order.
    pub(crate) fn new(
        shard: Shard,
        board: Arc<Board>,
        mailboxes: Vec<mailbox::Sender<ShardMessage>>,
    ) -> Rc<Hub> {
        Rc::new(Hub {
            here: shard.service.identity.shard,
            shard: RefCell::new(shard),
            board,
            mailboxes,
            is_flush_wanted: Cell::new(false),
            flusher: RefCell::default(),
            is_active: Cell::new(false),
            background_tasks: Cell::new(0),
        })
    }

    /// Has the engine's sending task run behind all tasks that are ready now.
    pub(crate) fn want_flush(&self) {
        if !self.is_flush_wanted.replace(true)
            && let Some(waker) = self.flusher.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Ready when a flush is wanted; the wish is fulfilled with that.
    pub(crate) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_wish(context).map(|()| self.is_flush_wanted.set(false))
    }

    /// Ready when a flush is wanted; the wish stays.
    pub(crate) fn poll_wish(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.has_wish() {
            return Poll::Ready(());
        }
        *self.flusher.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whether a flush is wanted; the wish stays.
    pub(crate) fn has_wish(&self) -> bool {
        self.is_flush_wanted.get()
    }

    /// Whether a flush is wanted; the wish is fulfilled with that.
    pub(crate) fn take_flush(&self) -> bool {
        self.is_flush_wanted.replace(false)
    }

    /// Notes that bytes came in.
    pub(crate) fn note_activity(&self) {
        self.is_active.set(true);
    }

    /// Whether bytes came in since the last call.
    pub(crate) fn take_activity(&self) -> bool {
        self.is_active.replace(false)
    }

    /// While the guard lives, the thread must not sleep where glommio's tasks do not wake it.
    pub(crate) fn begin_background(&self) -> Background<'_> {
        self.background_tasks.set(self.background_tasks.get() + 1);
        Background(&self.background_tasks)
    }

    /// Whether there is a task that has steps to do.
    pub(crate) fn has_background(&self) -> bool {
        self.background_tasks.get() > 0
    }

    /// Takes a step that the watchdog shall know by its name.
    pub(crate) fn during<R>(&self, activity: Activity, step: impl FnOnce() -> R) -> R {
        let place = usize::from(self.here.0);
        let before = self.board.begin(place, activity);
        let result = step();
        self.board.begin(place, before);
        result
    }

    /// Publishes the shard's state on the board.
    pub(crate) fn publish(&self) {
        let shard = self.shard.borrow();
        let service = &shard.service;
        let place = usize::from(self.here.0);
        let now = clock::now();
        let reports = service.reports(now);
        let condition =
            Condition { is_drained: service.is_drained(), is_sole: service.is_sole_primary() };
        self.board.publish(place, now, service.counters(), condition, reports);
    }

    /// Has the streams that are to be dialled next dialled as soon as they are due.
    pub(crate) fn when_dial_is_due(&self, now: Time, dial: impl FnOnce(Time) + 'static) {
        let Some(due) = self.shard.borrow().service.next_dial() else { return };
        glommio::spawn_local(async move {
            glommio::timer::sleep(due.since(now)).await;
            dial(clock::now());
        })
        .detach();
    }

    /// Gives a socket to the executor of the shard it asks for, or refuses it in words.
    pub(crate) fn hand_over(&self, shard: ShardId, handed: HandedOver) {
        let mailbox = &self.mailboxes[usize::from(shard.0)];
        let pushed = mailbox.push(ShardMessage::Connection(handed));
        if let Err(ShardMessage::Connection(handed)) = pushed {
            self.board.turn_away();
            turn_away(&handed.socket, handed.port);
        }
    }
}

/// See [`Hub::begin_background`].
pub(crate) struct Background<'a>(&'a Cell<usize>);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Refuses a connection for which there is no room, in words, as far as they fit the socket.
pub(crate) fn turn_away(socket: &impl AsFd, port: Port) {
    let mut words = Vec::new();
    match port {
        Port::Clients => {
            let reason = "this server has as many connections as it may have; try again later";
            Refusal { status: Status::Busy, reason }.write(&mut words);
        }
        Port::Servers => {
            PeerRefusal { reason: PeerRefusalReason::Busy, view: None }.write(&mut words);
        }
    }
    let _ = rustix::net::send(socket, &words, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = rustix::net::shutdown(socket, Shutdown::Write);
}

/// Options that only improve on the defaults; a socket that refuses one is served without.
pub(crate) fn set_options(socket: &impl AsFd, port: Port) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let _ = match port {
        Port::Clients => {
            socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))
        }
        Port::Servers => socket
            .set_tcp_user_timeout(Some(PEER_TIMEOUT))
            .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT_BYTES)),
    };
}
