//! Clients whose responses are ignored. In some runs they are the only fault: they send more requests than the
//! executors can serve, or read no response. In runs with waves, some receive a value slowly, so that its
//! entry stays pinned while the table is compacted.
//!
//! ```text
//!   each executor:  clients with thousands of outstanding requests, which take longer than half a lease to serve
//!                   clients that send without reading a response
//! ```

use std::collections::BTreeMap;

use kv_protocol::client_message::{Hello, Operation, Request};
use kv_protocol::ids::{ClientId, RequestId, ShardId, ViewVersion};
use kv_protocol::placement::Digest;
use kv_shard::Port;

use super::*;
use crate::invariants::slowness;
use crate::server::Reader;

/// The time of the first attempt to begin the load, in nanoseconds.
const BEGINS: u64 = 500_000_000;
/// The interval between attempts while the cluster is not whole, in nanoseconds.
const LOOK_AGAIN: u64 = 50_000_000;
/// The number of flooding clients of each executor.
const FLOODERS: usize = 3;
/// The number of requests that each of them keeps outstanding.
const OUTSTANDING: usize = 9_000;
/// The number of clients of each executor that read no response.
const NEVER_READERS: usize = 2;
/// The number of requests that each of them sends.
const UNREAD: usize = 60_000;
/// The kind of a client that sends reads and receives the responses slowly.
const PINNER: usize = FLOODERS + NEVER_READERS;
/// The number of reads that such a client sends.
const PINS: u64 = 150;
/// The longest time for which such a client stays connected, in nanoseconds.
const PINS_FOR: u64 = 3_000_000_000;

/// The load in progress.
#[derive(Debug, Default)]
pub struct Floods {
    flooders: Vec<Flooder>,
    /// The version of each group's view when the load began.
    pub views: BTreeMap<GroupId, ViewVersion>,
}

/// A client that only produces load.
#[derive(Debug)]
struct Flooder {
    number: ConnectionNumber,
    kind: usize,
    outstanding: usize,
    next: u64,
}

impl World {
    /// Plans the load of a run.
    pub(super) fn plan_flood(&mut self) {
        if self.config.floods {
            self.after(BEGINS, Happening::Flood);
        }
    }

    /// Begins the load once the cluster is whole.
    pub(super) fn begin_flood(&mut self) {
        if self.is_healing {
            return;
        }
        let cluster = self.coordinator.cluster.as_ref().filter(|cluster| cluster.is_whole());
        let Some(cluster) = cluster else { return self.after(LOOK_AGAIN, Happening::Flood) };
        self.floods.views = cluster.views().iter().map(|view| (view.group, view.version)).collect();
        for process in 0..self.processes.len() {
            for shard in 0..self.config.shards {
                for kind in 0..FLOODERS + NEVER_READERS {
                    self.add_flooder(process, ShardId(shard), kind);
                }
            }
        }
    }

    fn add_flooder(&mut self, process: usize, shard: ShardId, kind: usize) {
        let flooder = self.connect_flooder(process, shard, kind);
        self.flood(flooder, if kind < FLOODERS { OUTSTANDING } else { UNREAD });
    }

    /// Repeats a read many times from a client that receives slowly and closes the connection after a while. The first
    /// responses fill the buffers of the socket, so the others keep the entry pinned.
    pub(super) fn pin_for_a_while(
        &mut self,
        process: usize,
        shard: ShardId,
        request: &Request<'_>,
    ) {
        let flooder = self.connect_flooder(process, shard, PINNER);
        let number = self.floods.flooders[flooder].number;
        let mut bytes = Vec::new();
        for id in 0..PINS {
            Request { id: RequestId(id), ..*request }.write(&mut bytes);
        }
        self.send(number, 0, bytes);
        let lasts = self.random.between(PINS_FOR / 10, PINS_FOR);
        self.after(lasts, Happening::EndOfInput(number, 0));
    }

    /// Connects a client of this kind to a shard, and returns its index.
    fn connect_flooder(&mut self, process: usize, shard: ShardId, kind: usize) -> usize {
        let flooder = self.floods.flooders.len();
        let ends = [Actor::Flooder { flooder }, self.any_executor(process)];
        let hosts = ends.map(|end| self.host_of(end));
        let number = self.network.connect(&mut self.random, ends, hosts);
        if let Actor::Shard { process, shard } = ends[1] {
            let reader = match kind {
                0..FLOODERS => Reader::Fast,
                PINNER => Reader::Slow,
                _ => Reader::Never,
            };
            self.give(process, shard, Input::Accepted(number, Port::Clients, reader));
        }
        let (cluster, client) = (self.cluster(), ClientId(1 << 120 | flooder as u128));
        let mut bytes = Vec::new();
        Hello::new(cluster, client, shard).write(&mut bytes);
        self.send(number, 0, bytes);
        self.floods.flooders.push(Flooder { number, kind, outstanding: 0, next: 1 });
        flooder
    }

    /// Sends requests until `most` are outstanding.
    fn flood(&mut self, flooder: usize, most: usize) {
        let state = &mut self.floods.flooders[flooder];
        let mut bytes = Vec::new();
        while state.outstanding < most {
            let key = b"no such key";
            // The GETs of this client get WRONG_VIEW from servers that do not hold the group of the key.
            let operation = if state.kind == 1 { Operation::Get } else { Operation::Noop };
            let (id, view, digest) = (RequestId(state.next), ViewVersion(0), Digest::of(key));
            Request { id, view, digest, key, operation }.write(&mut bytes);
            state.next += 1;
            state.outstanding += 1;
        }
        let number = state.number;
        self.send(number, 0, bytes);
    }

    /// Handles responses: a client that reads sends new requests once fewer than half of its requests are outstanding.
    pub(super) fn on_flooder_bytes(
        &mut self,
        flooder: usize,
        number: ConnectionNumber,
        bytes: &[u8],
    ) {
        let rules = FrameRules::unchecked(MAX_RESPONSE_BODY);
        let input = self.inputs.entry((number, 0)).or_insert_with(|| FrameBuffer::new(rules));
        input.extend(bytes);
        let mut responses = 0;
        while let Some(frame) = input.next_frame().expect("it is well formed") {
            responses += usize::from(frame.opcode == client_opcode::RESPONSE);
        }
        let Some(state) = self.floods.flooders.get_mut(flooder) else { return };
        if state.kind != PINNER {
            self.counts.load += responses as u64;
        }
        state.outstanding = state.outstanding.saturating_sub(responses);
        if state.outstanding < OUTSTANDING / 2 && state.kind < FLOODERS && !self.is_healing {
            self.flood(flooder, OUTSTANDING);
        }
    }

    /// Handles a connection that a server has closed. This is a violation if the client reads responses.
    pub(super) fn on_flooder_end(&mut self, flooder: usize) {
        let reads = self.floods.flooders.get(flooder).is_some_and(|state| state.kind < FLOODERS);
        if reads && !self.is_healing {
            self.check(|_, _| Err(slowness::reader_is_closed()));
        }
    }

    /// Ends the load.
    pub(crate) fn end_floods(&mut self) {
        for flooder in std::mem::take(&mut self.floods.flooders) {
            self.close(flooder.number, 0);
        }
        self.floods.views.clear();
    }
}
