//! The port for the coordinator's orders, which has its own thread.
//!
//! ```text
//!   listener -> connections (a few without a hello) -> CHALLENGE, PROOF: both have the cluster's key
//!                                                      ORDERS-HELLO: cluster, epoch, incarnation
//!                                                        | not accepted: REFUSED with the reason
//!   orders -> kv_core::node -> views, probes, proofs of death: sent to every shard's mailbox
//!                              drains, dumps: a thread for each carries them out
//!   statistics, replies, outcomes -> kv_core::node -> reports, to the connected coordinator
//! ```

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use kv_core::node::{MAX_RUNNING, NodeEffect};
use kv_protocol::control_message::{Order, OrderFailure, Report};
use kv_protocol::ids::{Epoch, OrderId, ShardId, Time, ViewVersion};
use kv_shard::LogLimit;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::operation::{ServerProcess, Work};
use super::orders_link::OrdersLink;
use crate::descriptors::MAX_ORDERS_CONNECTIONS;
use crate::fatal::Fatal;
use crate::message::{Replies, ShardMessage, ShardReply};
use crate::nonce;
use crate::watchdog::Activity;
use crate::{clock, fatal};

/// The maximum number of queued replies of shards, and of queued outcomes of threads.
const MAX_WAITING: usize = 1_024;
/// The maximum size of a connection's unsent reports. A connection with more is closed, because the coordinator does
/// not read them.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// The number of descriptors that are polled in addition to the connections: the listener and the eventfd.
const ALWAYS_POLLED: usize = 2;
/// The interval at which deadlines are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The pause of the thread after a failed accept, such as a lack of descriptors; also the timeout for sending the last
/// report.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An order that a thread has carried out.
#[derive(Debug)]
struct Done {
    epoch: Epoch,
    id: OrderId,
    outcome: Result<u64, OrderFailure>,
}

/// An order for a worker thread.
#[derive(Debug)]
struct Job {
    epoch: Epoch,
    id: OrderId,
    work: Work,
}

/// Starts a thread that carries out orders one after the other; returns the channel for its orders. The thread is
/// created when the server starts, because the system may be unable to create a thread when the cluster is stopped.
fn start_worker(
    name: &'static str,
    node: &Arc<ServerProcess>,
    done_to: &Sender<Done>,
    bell: &Arc<OwnedFd>,
) -> Result<Sender<Job>, Fatal> {
    let (jobs_to, jobs) = bounded::<Job>(MAX_RUNNING);
    let (node, done_to, bell) = (Arc::clone(node), done_to.clone(), Arc::clone(bell));
    let work = move || {
        while let Ok(Job { epoch, id, work }) = jobs.recv() {
            let outcome = node.carry_out(work);
            // The channel has room for far more outcomes than there can be orders.
            let _ = done_to.send(Done { epoch, id, outcome });
            let _ = rustix::io::write(&bell, &1u64.to_ne_bytes());
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(|_| jobs_to).map_err(|error| Fatal::System { doing: "start a thread", error })
}

/// Serves the orders' port for the life of the process.
pub(crate) fn run(node: &Arc<ServerProcess>, listener: TcpListener) -> ! {
    let (done_to, done_from) = bounded(MAX_WAITING);
    let (replies_to, replies_from) = bounded(MAX_WAITING);
    let bell = listener
        .set_nonblocking(true)
        .and_then(|()| Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
    let bell = bell
        .unwrap_or_else(|error| Fatal::System { doing: "listen for orders", error }.end_process());
    let bell = Arc::new(bell);
    node.statistics.set_bell(Arc::clone(&bell));
    node.statistics.orders.own();
    node.statistics.orders.begin(Activity::Orders);
    let worker = |name| {
        let started = start_worker(name, node, &done_to, &bell);
        started.unwrap_or_else(|fatal| fatal.end_process())
    };
    let (drains, dumps) = (worker("drain"), worker("dump"));
    let mut port = OrdersPort {
        node: Arc::clone(node),
        replies: Replies::new(replies_to, Arc::clone(&bell)),
        replies_from,
        listener,
        connections: Vec::new(),
        bell,
        drains,
        dumps,
        done_from,
        accept_log: LogLimit::default(),
        refusal_log: LogLimit::default(),
    };
    loop {
        port.turn();
    }
}

struct OrdersPort {
    node: Arc<ServerProcess>,
    listener: TcpListener,
    connections: Vec<(TcpStream, OrdersLink)>,
    /// The eventfd that is signalled when a thread has carried out an order, or when a shard has replied or published a
    /// change.
    bell: Arc<OwnedFd>,
    replies: Replies,
    replies_from: Receiver<ShardReply>,
    /// The channels to the threads that drain and dump.
    drains: Sender<Job>,
    dumps: Sender<Job>,
    done_from: Receiver<Done>,
    accept_log: LogLimit,
    refusal_log: LogLimit,
}

impl OrdersPort {
    fn turn(&mut self) {
        let pulse = &self.node.statistics.orders;
        pulse.beat_before(POLL_INTERVAL);
        let ready = self.wait();
        pulse.beat();
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        self.take_news();
        let now = clock::now();
        for at in (0..self.connections.len()).rev() {
            if ready.get(at + ALWAYS_POLLED).copied().unwrap_or(false) && !self.receive(now, at) {
                self.connections.remove(at);
            }
        }
        if ready[0] {
            self.accept(now);
        }
        self.connections.retain_mut(|(stream, link)| {
            let sent = send(stream, &mut link.output);
            let is_late = link.deadline.is_some_and(|due| due <= now);
            let is_said = link.is_closing && link.output.is_empty();
            sent.is_ok() && !is_late && !is_said && link.output.len() <= MAX_OUTPUT_BYTES
        });
    }

    /// Waits for an event, at most for [`POLL_INTERVAL`]. Returns whether the listener, the eventfd and each connection
    /// can be read, in this order.
    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&*self.bell, PollFlags::IN),
        ];
        for (stream, link) in &self.connections {
            let mut wanted = PollFlags::IN;
            if !link.output.is_empty() {
                wanted |= PollFlags::OUT;
            }
            fds.push(PollFd::new(stream, wanted));
        }
        // An interrupted wait finds nothing ready and returns.
        let timeout = Timespec { tv_sec: 0, tv_nsec: POLL_INTERVAL.subsec_nanos().into() };
        let _ = poll(&mut fds, Some(&timeout));
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        fds.iter().map(|fd| fd.revents().intersects(readable)).collect()
    }

    fn accept(&mut self, now: Time) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
                    return;
                }
                if self.connections.len() >= MAX_ORDERS_CONNECTIONS {
                    // The oldest connection without a hello is closed, or the oldest of all if every connection has
                    // sent one.
                    let silent = self.connections.iter().position(|(_, link)| !link.is_accepted);
                    self.connections.remove(silent.unwrap_or(0));
                }
                match nonce::draw() {
                    Ok(nonce) => self.connections.push((stream, OrdersLink::new(now, nonce))),
                    Err(error) => self.note_failed_accept(now, &error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                self.note_failed_accept(now, &error);
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    fn note_failed_accept(&mut self, now: Time, error: &io::Error) {
        if let Some(suppressed) = self.accept_log.admit(now) {
            tracing::error!(suppressed, "cannot accept a connection for orders: {error}");
        }
    }

    /// Reads one connection; returns `false` if it has ended.
    fn receive(&mut self, now: Time, at: usize) -> bool {
        let mut bytes = [0; 16 << 10];
        let (stream, link) = &mut self.connections[at];
        let received = match stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        };
        let was_accepted = link.is_accepted;
        let orders = link.on_bytes(now, &self.node, &bytes[..received]);
        if let Some(reason) = link.refused.take() {
            self.node.statistics.reject();
            if let Some(suppressed) = self.refusal_log.admit(now) {
                let reason = kv_protocol::escape::readable(reason.as_bytes());
                tracing::warn!(suppressed, "rejected a connection to the orders' port: {reason}");
            }
        }
        if link.is_accepted && !was_accepted {
            // The coordinator has connected again, so its earlier connection is obsolete.
            for (other, (_, link)) in self.connections.iter_mut().enumerate() {
                link.is_closing |= other != at && link.is_accepted;
            }
        }
        for order in orders {
            self.on_order(order);
        }
        true
    }

    /// Processes the outcomes of threads and the replies of shards since the last turn, and the published state of
    /// every shard.
    fn take_news(&mut self) {
        let mut effects = Vec::new();
        while let Ok(done) = self.done_from.try_recv() {
            if done.epoch == self.node.epoch() {
                effects.extend(self.node.input(|node, sink| {
                    node.on_outcome(done.id, done.outcome, sink);
                }));
            }
        }
        while let Ok(reply) = self.replies_from.try_recv() {
            effects.extend(self.node.input(|node, sink| match reply {
                ShardReply::Refused { order, shard, reason } => {
                    node.on_refused(order, shard, &reason, sink);
                }
                ShardReply::Probed { order, shard } => node.on_probed(order, shard, sink),
            }));
        }
        for shard in (0..self.node.placement.shards()).map(ShardId) {
            let reports = self.node.statistics.replicas_of(shard, self.node.failure_timeout);
            effects.extend(self.node.input(|node, sink| node.on_shard(shard, reports, sink)));
        }
        self.carry_out_all(effects);
    }

    fn on_order(&mut self, order: Order) {
        tracing::info!("{} (order {})", order.name(), order.id);
        self.node.note_order();
        let effects = self.node.input(|node, sink| node.on_order(order, sink));
        self.carry_out_all(effects);
    }

    fn carry_out_all(&mut self, effects: Vec<NodeEffect>) {
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: NodeEffect) {
        let replies = self.replies.clone();
        // A shard whose mailbox is full does not report the order as done, so the coordinator repeats it.
        let told = match effect {
            NodeEffect::Install { order, view, other } => {
                self.node.statistics.note_ordered(self.node.me, &view);
                self.node.tell_all(|| {
                    let replies = replies.clone();
                    ShardMessage::Install { order, view, other, replies }
                })
            }
            NodeEffect::Probe { order } => {
                self.node.tell_all(|| ShardMessage::Probe { order, replies: replies.clone() })
            }
            NodeEffect::Exited { member } => self.node.tell_all(|| ShardMessage::Exited { member }),
            NodeEffect::Drain { order } => return self.start(order, Work::Drain),
            NodeEffect::Flush { order, group, view } => {
                self.node.tell_all(|| ShardMessage::Flush { order, group, view })
            }
            NodeEffect::Dump { order, role } => return self.start(order, Work::Dump(role)),
            NodeEffect::Shutdown { order } => self.shut_down(order),
            NodeEffect::Report(report) => {
                let name = self.node.report_name(&report);
                match &report.outcome {
                    Ok(_) => tracing::info!("{name} (order {})", report.id),
                    Err(failure) => {
                        tracing::error!("{name} (order {}): {}", report.id, failure.reason);
                    }
                }
                self.report(&report);
                Ok(())
            }
        };
        if let Err(reason) = told {
            tracing::error!("cannot pass an order to every shard: {reason}");
        }
    }

    /// Passes a long order to the thread for it. Drains and dumps have separate threads, so a drain does not delay a
    /// dump.
    fn start(&mut self, id: OrderId, work: Work) {
        let jobs = match work {
            Work::Drain => &self.drains,
            Work::Dump(_) => &self.dumps,
        };
        if jobs.try_send(Job { epoch: self.node.epoch(), id, work }).is_err() {
            let reason = format!("{MAX_RUNNING} orders of this kind already wait");
            let outcome = Err(OrderFailure::from(reason));
            let effects = self.node.input(|node, sink| node.on_outcome(id, outcome, sink));
            self.carry_out_all(effects);
        }
    }

    fn report(&mut self, report: &Report) {
        for (_, link) in self.connections.iter_mut().filter(|(_, link)| link.is_accepted) {
            report.write(&mut link.output);
        }
    }

    /// Reports that the order is done, then ends the process.
    fn shut_down(&mut self, id: OrderId) -> ! {
        tracing::info!("SHUTDOWN (order {id}): exiting");
        self.report(&Report { id, view: ViewVersion(0), outcome: Ok(0) });
        for (stream, link) in &mut self.connections {
            // Best effort: the coordinator detects the end of the process anyway.
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_write_timeout(Some(ACCEPT_PAUSE));
            let _ = stream.write_all(&link.output);
        }
        fatal::end(self.node.exit());
    }
}

/// Sends as many bytes as the socket accepts.
fn send(stream: &mut TcpStream, output: &mut Vec<u8>) -> io::Result<()> {
    while !output.is_empty() {
        match stream.write(output) {
            Ok(count) => drop(output.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
