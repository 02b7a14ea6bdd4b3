//! One server process: its link to the coordinator, and an executor for each shard with the replicas of its two
//! groups, driven as by the real server.
//!
//! ```text
//!   a wake-up of a shard:  take all inputs -> read the clock -> (a pause may strike here)
//!                          -> serve -> timeouts -> pump every stream -> dial what is needed
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kv_core::replica::{InstallError, NoFullCopy};
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::ids::{ClusterId, GroupId, Member, OrderId, ServerId, ShardId, Time};
use kv_protocol::placement::Placement;
use kv_protocol::view::View;

use crate::dump::Part;
use crate::invariants::{Violation, one_view};
use crate::network::ConnectionNumber;

mod answers;
mod connection;
mod dial;
mod hosted;
mod process;
mod reading;
mod stream;

pub use answers::Answered;
use answers::collected;
use connection::Peer;
pub use hosted::{Bounds, Hosted, MEMORY};
pub use process::Process;
use reading::Reading;

/// The interval at which a shard publishes its reports to the node, in nanoseconds of true time. Changes are
/// published at once.
const PUBLISH_EVERY: u64 = 100_000_000;

/// An input of a shard.
#[derive(Debug)]
pub enum Input {
    /// Bytes on a connection that was accepted or dialled.
    Bytes(ConnectionNumber, Vec<u8>),
    /// The end of a connection.
    Closed(ConnectionNumber),
    /// The stream dialled for this group is connected.
    Dialled(ConnectionNumber, GroupId),
    /// The dial for this group's stream has failed.
    DialFailed(GroupId),
    /// An order to install a view, with the address of the other member.
    Install(OrderId, View, Option<SocketAddr>),
    /// A probe to respond to.
    Probe(OrderId),
    /// A proof of death.
    Exited(Member),
    /// An order to accept no new writes; pending ones still commit.
    Drain,
    /// The dump of this number begins, or continues at this shard. The replicas freeze: they take, apply, send
    /// and commit no write any more.
    Dump(GroupId, u64),
}

/// An effect of a shard's wake-up.
#[derive(Debug)]
pub enum Output {
    /// Send these bytes.
    Send(ConnectionNumber, Vec<u8>),
    /// Close this connection.
    Close(ConnectionNumber),
    /// Dial this address for this group's stream.
    Dial(GroupId, SocketAddr),
    /// The view of this order could not be installed.
    Refused(OrderId, String),
    /// A probe was responded to.
    Probed(OrderId),
    /// The current reports on the replicas, for the node.
    Published(Vec<ReplicaReport>),
    /// A request got its response.
    Answered(Answered),
    /// A shard's part of the dump of this number, or the reason why there must be none.
    Dumped(u64, Result<Box<Part>, NoFullCopy>),
    /// A promise was broken.
    Broken(Violation),
}

/// One executor.
#[derive(Debug)]
pub struct Shard {
    /// Its replicas: of its own group, and of its predecessor's.
    pub hosted: Vec<Hosted>,
    /// The inputs since the last wake-up.
    pub inbox: VecDeque<Input>,
    /// The clock reading and the inputs of a wake-up that a pause interrupted.
    pub stalled: Option<(Time, VecDeque<Input>)>,
    /// The true time at which it read the clock for its last wake-up.
    pub read_at: u64,
    /// The true time until which a fault stops this executor.
    pub stopped_until: u64,
    /// The true time until which this executor is busy with its last wake-up.
    pub busy_until: u64,
    /// The true time until which it reads nothing from other servers; it still serves clients and responds to
    /// probes.
    pub deaf_until: u64,
    unread: VecDeque<Input>,
    /// The true time of the next wake-up, if one is due.
    pub wake_at: Option<u64>,
    connections: Vec<(ConnectionNumber, Peer)>,
    /// The connections closed from this side.
    ended: BTreeSet<ConnectionNumber>,
    /// The processes of whose deaths it was informed.
    pub told_dead: BTreeSet<Member>,
    identity: Identity,
    published_at: u64,
    readings: Vec<Reading>,
}

/// The identity and parameters of an executor.
#[derive(Clone, Copy, Debug)]
struct Identity {
    cluster: ClusterId,
    shard: ShardId,
    placement: Placement,
    bounds: Bounds,
}

impl Shard {
    /// Creates an executor of a process, with empty tables.
    fn new(me: Member, identity: Identity, seed: u64, is_exhausted: &Arc<AtomicBool>) -> Shard {
        let servers = identity.placement.servers();
        let own = me.server.home_group();
        let before = ServerId((me.server.0 + servers - 1) % servers).home_group();
        Shard {
            hosted: [own, before]
                .map(|group| Hosted::new(me, group, identity, seed, is_exhausted))
                .into(),
            inbox: VecDeque::new(),
            stalled: None,
            read_at: 0,
            stopped_until: 0,
            busy_until: 0,
            deaf_until: 0,
            unread: VecDeque::new(),
            wake_at: None,
            connections: Vec::new(),
            ended: BTreeSet::new(),
            told_dead: BTreeSet::new(),
            identity,
            published_at: 0,
            readings: Vec::new(),
        }
    }

    /// Runs one wake-up: serves the inputs with one reading of the clock.
    pub fn wake(&mut self, true_now: u64, now: Time, inputs: VecDeque<Input>) -> Vec<Output> {
        let mut output = Vec::new();
        let is_deaf = true_now < self.deaf_until;
        if !is_deaf {
            for input in std::mem::take(&mut self.unread) {
                self.take(true_now, now, input, &mut output);
            }
        }
        for input in inputs {
            match input {
                Input::Bytes(number, _) | Input::Closed(number)
                    if is_deaf && self.is_stream(number) =>
                {
                    self.unread.push_back(input);
                }
                _ => self.take(true_now, now, input, &mut output),
            }
        }
        for hosted in &mut self.hosted {
            hosted.replica.look(now);
            if hosted.replica.next_timeout().is_some_and(|due| due <= now) {
                let group = hosted.replica.group();
                hosted.replica.on_timeout(now, &mut collected(&mut output, group));
            }
        }
        self.pump(now, &mut output);
        self.keep_streams(true_now, now, &mut output);
        self.go_on_reading(&mut output);
        self.publish(true_now, now, &mut output);
        output
    }

    fn take(&mut self, true_now: u64, now: Time, input: Input, output: &mut Vec<Output>) {
        match input {
            Input::Bytes(number, bytes) => self.on_bytes(now, number, &bytes, output),
            Input::Closed(number) => {
                self.connections.retain(|(known, _)| *known != number);
                self.drop_stream(now, number, output);
            }
            Input::Dialled(number, group) => self.on_dialled(now, number, group, output),
            Input::DialFailed(group) => {
                let hosted = self.hosted_of(group);
                if let Some(dial) = hosted.and_then(|hosted| hosted.dial.as_mut()) {
                    dial.retry(true_now);
                }
            }
            Input::Install(order, view, other) => self.install(now, order, view, other, output),
            Input::Probe(order) => {
                // No server may be removed because of a process that is about to exit.
                if !self.hosted.iter().any(|hosted| hosted.replica.is_frozen()) {
                    output.push(Output::Probed(order));
                }
            }
            Input::Exited(member) => {
                self.told_dead.insert(member);
                for hosted in &mut self.hosted {
                    hosted.replica.on_exited(now, member);
                }
            }
            Input::Drain => self.hosted.iter_mut().for_each(|hosted| hosted.replica.drain()),
            Input::Dump(group, number) => {
                self.hosted.iter_mut().for_each(|hosted| hosted.replica.freeze());
                let part = self.hosted_of(group).map(|hosted| Part::of(&hosted.replica));
                output.extend(part.map(|part| Output::Dumped(number, part)));
            }
        }
    }

    fn install(
        &mut self,
        now: Time,
        order: OrderId,
        view: View,
        other: Option<SocketAddr>,
        output: &mut Vec<Output>,
    ) {
        let Some(hosted) = self.hosted_of(view.group) else { return };
        match hosted.replica.install(now, view, &mut collected(output, view.group)) {
            Ok(()) | Err(InstallError::Old { .. }) => {}
            Err(error) => {
                if let InstallError::Contradiction { group, version } = error {
                    output.push(Output::Broken(one_view::contradiction(group, version)));
                }
                output.push(Output::Refused(order, error.to_string()));
            }
        }
        if let Some(address) = other
            && hosted.partner.is_none_or(|(version, _)| version <= view.version)
        {
            hosted.partner = Some((view.version, address));
        }
    }

    fn hosted_of(&mut self, group: GroupId) -> Option<&mut Hosted> {
        self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group)
    }

    fn publish(&mut self, true_now: u64, now: Time, output: &mut Vec<Output>) {
        let mut is_news = true_now >= self.published_at + PUBLISH_EVERY;
        for hosted in &mut self.hosted {
            let shown = hosted.replica.report(now).map(|r| (r.state, r.view, r.connected));
            is_news |= std::mem::replace(&mut hosted.shown, shown) != shown;
        }
        if is_news {
            self.published_at = true_now;
            let reports = self.hosted.iter().filter_map(|hosted| hosted.replica.report(now));
            output.push(Output::Published(reports.collect()));
        }
    }

    /// Returns the true time at which it last published.
    pub(crate) fn published_at(&self) -> u64 {
        self.published_at
    }

    /// Returns the true time of its next wake-up; `clock` converts a clock reading to true time.
    pub fn next_wake(&self, clock: impl Fn(Time) -> u64) -> u64 {
        let timeouts = self.hosted.iter().filter_map(|hosted| hosted.replica.next_timeout());
        let dials = self.hosted.iter().filter_map(|hosted| hosted.dial.as_ref()?.due);
        let publish = self.published_at + PUBLISH_EVERY;
        let hears = (!self.unread.is_empty()).then_some(self.deaf_until);
        timeouts.map(clock).chain(dials).chain(hears).chain([publish]).min().unwrap_or(publish)
    }
}
