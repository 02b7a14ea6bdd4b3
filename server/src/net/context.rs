//! State of one shard, shared by both engines: the shard, the statistics that it publishes, the mailboxes through which
//! sockets are handed over, and the request for a flush.
//!
//! ```text
//!   tick, mailbox, jobs --> shard --- want_flush ---> the engine's next turn
//! ```

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use kv_core::replica::ConnectionId;
use kv_protocol::ids::{ShardId, Time};
use kv_shard::{Event, Port, Shard};

use super::socket::{address_of_peer, ends_of, reject};
use crate::admission::Permit;
use crate::clock;
use crate::known_map::KnownMap;
use crate::mailbox;
use crate::message::{HandedOver, ShardMessage};
use crate::statistics::{Condition, Statistics};
use crate::watchdog::Activity;

/// One shard, with the channels and the shared state that connect it to other threads.
pub(crate) struct ShardContext {
    pub(crate) shard: RefCell<Shard>,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) here: ShardId,
    mailboxes: Vec<mailbox::Sender<ShardMessage>>,
    is_flush_wanted: Cell<bool>,
    flusher: RefCell<Option<Waker>>,
    /// True if any byte was received since the last tick.
    is_active: Cell<bool>,
    map: Arc<KnownMap>,
    /// The counter for [`KnownMap::newer_than`] of the map that the shard has.
    maps_had: Cell<u64>,
}

impl ShardContext {
    /// Creates the context of a shard. `mailboxes` are those of all shards, in order.
    pub(crate) fn new(
        shard: Shard,
        statistics: Arc<Statistics>,
        map: Arc<KnownMap>,
        mailboxes: Vec<mailbox::Sender<ShardMessage>>,
    ) -> Rc<ShardContext> {
        Rc::new(ShardContext {
            here: shard.service.identity.shard,
            shard: RefCell::new(shard),
            statistics,
            mailboxes,
            is_flush_wanted: Cell::new(false),
            flusher: RefCell::default(),
            is_active: Cell::new(false),
            map,
            maps_had: Cell::new(0),
        })
    }

    /// Requests another turn of the engine, which sends all pending output.
    pub(crate) fn want_flush(&self) {
        if !self.is_flush_wanted.replace(true)
            && let Some(waker) = self.flusher.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Polls whether a flush is requested, for an engine that runs as a task. The request is not cleared.
    pub(crate) fn poll_wish(&self, task: &mut Context<'_>) -> Poll<()> {
        if self.has_wish() {
            return Poll::Ready(());
        }
        *self.flusher.borrow_mut() = Some(task.waker().clone());
        Poll::Pending
    }

    /// Returns whether a flush is requested. The request is not cleared.
    pub(crate) fn has_wish(&self) -> bool {
        self.is_flush_wanted.get()
    }

    /// Returns whether a flush is requested, and clears the request.
    pub(crate) fn take_flush(&self) -> bool {
        self.is_flush_wanted.replace(false)
    }

    /// Records that bytes were received.
    pub(crate) fn note_activity(&self) {
        self.is_active.set(true);
    }

    /// Returns whether bytes were received since the last call.
    pub(crate) fn take_activity(&self) -> bool {
        self.is_active.replace(false)
    }

    /// Runs a step, and records its activity so that the watchdog can report it.
    pub(crate) fn during<R>(&self, activity: Activity, step: impl FnOnce() -> R) -> R {
        let place = usize::from(self.here.0);
        let before = self.statistics.begin(place, activity);
        let result = step();
        self.statistics.begin(place, before);
        result
    }

    /// Begins a wake-up of the shard at `now`, with the newest map.
    pub(crate) fn begin_wake_up(&self, shard: &mut Shard, now: Time) {
        shard.begin_wake_up(now);
        if let Some(map) = self.map.newer_than(&self.maps_had) {
            shard.service.set_map(map);
        }
    }

    /// Logs the shard's events since the last call, except those that its rate limits suppress.
    pub(crate) fn log_events(&self, shard: &mut Shard) {
        for Event { kind, to_log } in shard.service.take_events() {
            let (shard, Some(suppressed)) = (self.here.0, to_log) else { continue };
            match kind.is_warning() {
                true => tracing::warn!(shard, suppressed, "{kind}"),
                false => tracing::info!(shard, suppressed, "{kind}"),
            }
        }
    }

    /// Publishes the shard's state.
    pub(crate) fn publish(&self) {
        let shard = self.shard.borrow();
        let service = &shard.service;
        let place = usize::from(self.here.0);
        let now = clock::now();
        let reports = service.reports(now);
        let condition =
            Condition { is_drained: service.is_drained(), is_sole: service.is_sole_primary() };
        self.statistics.publish(place, now, service.counters(), condition, reports);
    }

    /// Publishes the shard's state, and wakes the threads that wait for a change of it.
    pub(crate) fn announce(&self) {
        self.publish();
        self.statistics.announce();
    }

    /// Registers a connection that was just accepted. If the connection limit is reached, rejects the connection and
    /// returns `None`.
    pub(crate) fn admit(
        &self,
        shard: &mut Shard,
        now: Time,
        port: Port,
        socket: &OwnedFd,
    ) -> Option<(ConnectionId, Permit)> {
        let Some(permit) = self.statistics.admit(port, address_of_peer(socket)) else {
            reject(socket, port);
            return None;
        };
        let id = shard.open_accepted(now, port);
        shard.set_address(id, permit.from());
        Some((id, permit))
    }

    /// Adopts a connection that another executor accepted, with the bytes received so far.
    pub(crate) fn adopt(
        &self,
        shard: &mut Shard,
        handed: HandedOver,
    ) -> (ConnectionId, OwnedFd, Port, Permit) {
        let HandedOver { socket, port, received, permit } = handed;
        let now = clock::now();
        self.begin_wake_up(shard, now);
        let id = shard.adopt(now, port, &[]);
        shard.set_address(id, permit.from());
        self.name_ends(shard, now, id, &socket);
        shard.handle_bytes(now, id, &received);
        self.want_flush();
        (id, socket, port, permit)
    }

    /// Sets the addresses of both ends of a connection, if its client can ask for them.
    pub(crate) fn name_ends(
        &self,
        shard: &mut Shard,
        now: Time,
        id: ConnectionId,
        socket: &OwnedFd,
    ) {
        if shard.shows_ends(id) {
            shard.set_ends(now, id, ends_of(socket));
        }
    }

    /// Hands a socket over to the executor of the requested shard, or rejects it if that mailbox is full.
    pub(crate) fn hand_over(&self, shard: ShardId, handed: HandedOver) {
        let mailbox = &self.mailboxes[usize::from(shard.0)];
        let pushed = mailbox.push(ShardMessage::Connection(handed));
        if let Err(ShardMessage::Connection(handed)) = pushed {
            self.statistics.reject();
            reject(&handed.socket, handed.port);
        }
    }
}
