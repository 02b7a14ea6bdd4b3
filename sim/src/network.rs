//! Connections as ordered streams of bytes, and the network's effects on them.
//!
//! ```text
//!   send -> delay -> cut? held until it is healed, as by retransmission
//!                 -> arrives, in order, possibly in pieces
//!   shut down -> after the last bytes, the other side observes the end of input; it may still send
//!   break -> each side observes it at its own time; bytes that arrive later are lost
//! ```
//!
//! Bytes of one connection are never reordered. Bytes of different connections may arrive in any order.

use std::collections::VecDeque;

use kv_testkit::random::Random;

/// A host of the network. The hosts of the servers are numbered by place; the coordinator's host and the clients' hosts
/// follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(pub usize);

/// The owner of one side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Actor {
    /// An executor of a server process.
    Shard {
        /// The process's index in the world's list.
        process: usize,
        /// The executor.
        shard: usize,
    },
    /// A process's link to the coordinator, or its order port.
    Node {
        /// The process.
        process: usize,
    },
    /// The coordinator; the term distinguishes a dead process from its successor.
    Coordinator {
        /// The term.
        term: u64,
    },
    /// A client.
    Client {
        /// The client's index.
        client: usize,
    },
    /// A Redis client.
    Redis {
        /// The client's index among the Redis clients.
        client: usize,
    },
    /// The client that scans the cluster.
    Scanner,
    /// A client that only produces load.
    Flooder {
        /// The client's index among the load clients.
        flooder: usize,
    },
}

/// The number of a connection. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionNumber(pub usize);

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    last_arrival: u64,
    /// The bytes that a cut holds back.
    held: VecDeque<Vec<u8>>,
}

/// A connection between the actor that dialled it (side 0) and the one that accepted it (side 1).
#[derive(Debug)]
pub struct Connection {
    /// The owners of the two sides.
    pub ends: [Actor; 2],
    hosts: [Host; 2],
    /// The extra delay of all bytes on this connection, in nanoseconds.
    lag: u64,
    /// True for each side that is open.
    pub open: [bool; 2],
    /// True for each side that has shut down its sending direction.
    shut: [bool; 2],
    /// The time at which each side has received the end of input of a connection that stays open.
    input_ended: [Option<u64>; 2],
    /// True if a fault has broken the connection, so that bytes may be lost.
    is_broken: bool,
    /// True for each side that receives nothing more, except the end of the connection.
    deaf: [bool; 2],
    directions: [Direction; 2],
}

/// All connections, and the cuts between hosts.
#[derive(Debug)]
pub struct Network {
    connections: Vec<Connection>,
    /// The cut directions, by sending and receiving host.
    cuts: Vec<Vec<bool>>,
    /// Connections with at least one open side.
    live: Vec<ConnectionNumber>,
    is_local: bool,
}

impl Network {
    /// Creates a network of this many hosts, without connections. If `is_local` is true, connections to the
    /// coordinator get no extra delay.
    pub fn new(hosts: usize, is_local: bool) -> Network {
        let cuts = vec![vec![false; hosts]; hosts];
        Network { connections: Vec::new(), cuts, live: Vec::new(), is_local }
    }

    /// Creates a connection.
    ///
    /// Unless the network is local, a connection to the coordinator may have an extra delay: its bytes arrive late,
    /// even after bytes sent later on other connections.
    pub fn connect(
        &mut self,
        random: &mut Random,
        ends: [Actor; 2],
        hosts: [Host; 2],
    ) -> ConnectionNumber {
        let mut to_coordinator = ends.iter().map(|end| matches!(end, Actor::Coordinator { .. }));
        let is_control = !self.is_local && to_coordinator.any(|is_so| is_so);
        let lag = match random.below(100) {
            0..=9 if is_control => random.between(1_000_000, 60_000_000),
            10..=21 if is_control => random.between(60_000_000, 400_000_000),
            _ => 0,
        };
        let number = ConnectionNumber(self.connections.len());
        let directions = Default::default();
        let (open, shut, deaf, is_broken) = ([true; 2], [false; 2], [false; 2], false);
        let input_ended = [None; 2];
        let connection =
            Connection { ends, hosts, lag, open, shut, is_broken, input_ended, deaf, directions };
        self.connections.push(connection);
        self.live.push(number);
        number
    }

    /// Adds a delay to everything on a connection.
    pub fn delay(&mut self, number: ConnectionNumber, lag: u64) {
        self.connections[number.0].lag += lag;
    }

    /// Returns a connection.
    pub fn get(&self, number: ConnectionNumber) -> &Connection {
        &self.connections[number.0]
    }

    /// Returns whether a side is open.
    pub fn is_open(&self, number: ConnectionNumber, end: usize) -> bool {
        self.connections[number.0].open[end]
    }

    /// Returns whether a side may send bytes: it is open, and its sending direction is not shut down.
    pub fn may_send(&self, number: ConnectionNumber, end: usize) -> bool {
        self.is_open(number, end) && !self.connections[number.0].shut[end]
    }

    /// Shuts down the sending direction of one side.
    pub fn shut_down(&mut self, number: ConnectionNumber, end: usize) {
        self.connections[number.0].shut[end] = true;
    }

    /// Records that one side has received the end of input.
    pub fn note_end_of_input(&mut self, now: u64, number: ConnectionNumber, end: usize) {
        self.connections[number.0].input_ended[end] = Some(now);
    }

    /// Returns the time at which one side received the end of input; `None` if it has not, or if a fault has broken the
    /// connection.
    pub fn end_of_input_at(&self, number: ConnectionNumber, end: usize) -> Option<u64> {
        let connection = &self.connections[number.0];
        connection.input_ended[end].filter(|_| !connection.is_broken)
    }

    /// Records that a fault has broken a connection.
    pub fn note_broken(&mut self, number: ConnectionNumber) {
        self.connections[number.0].is_broken = true;
    }

    /// Returns whether a fault has broken a connection.
    pub fn is_broken(&self, number: ConnectionNumber) -> bool {
        self.connections[number.0].is_broken
    }

    /// Returns whether bytes from one host to another are held back.
    pub fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cuts[from.0][to.0]
    }

    /// Cuts one direction between two hosts.
    pub fn cut(&mut self, from: Host, to: Host) {
        self.cuts[from.0][to.0] = true;
    }

    /// Returns the time at which bytes sent now arrive at the other side, in order.
    pub fn arrival(
        &mut self,
        random: &mut Random,
        now: u64,
        number: ConnectionNumber,
        from: usize,
    ) -> u64 {
        let delay = match random.below(1_000) {
            0..=1 => random.between(1_000_000, 80_000_000),
            2..=20 => random.between(200_000, 3_000_000),
            _ => random.between(15_000, 150_000),
        };
        let connection = &mut self.connections[number.0];
        let direction = &mut connection.directions[from];
        let at = now + connection.lag + delay;
        direction.last_arrival = direction.last_arrival.max(at) + 1;
        direction.last_arrival
    }

    /// Handles the arrival of bytes at one side. Returns them, unless the side is closed or deaf, or the bytes are held
    /// back by a cut or behind earlier bytes.
    pub fn arrive(
        &mut self,
        number: ConnectionNumber,
        to: usize,
        bytes: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let connection = &mut self.connections[number.0];
        if !connection.open[to] || connection.deaf[to] {
            return None;
        }
        let from = 1 - to;
        let held = &mut connection.directions[from].held;
        if self.cuts[connection.hosts[from].0][connection.hosts[to].0] || !held.is_empty() {
            held.push_back(bytes);
            return None;
        }
        Some(bytes)
    }

    /// Returns whether a cut holds back what is sent to one side.
    pub fn is_held_back(&self, number: ConnectionNumber, to: usize) -> bool {
        let connection = &self.connections[number.0];
        let [from, host] = [1 - to, to].map(|end| connection.hosts[end]);
        self.is_cut(from, host) || !connection.directions[1 - to].held.is_empty()
    }

    /// Heals every cut. Returns the directions with bytes held back, by connection and receiving side. These bytes
    /// stay until they are taken, and later bytes queue behind them.
    pub fn heal(&mut self) -> Vec<(ConnectionNumber, usize)> {
        for row in &mut self.cuts {
            row.fill(false);
        }
        let held = |number: ConnectionNumber, to: usize| {
            !self.connections[number.0].directions[1 - to].held.is_empty()
        };
        let ends = self.live.iter().flat_map(|number| [(*number, 0), (*number, 1)]);
        ends.filter(|(number, to)| held(*number, *to)).collect()
    }

    /// Takes the bytes held back from one side, in the order in which they were sent. Returns none if there is a cut
    /// again.
    pub fn take_held(&mut self, number: ConnectionNumber, to: usize) -> Vec<u8> {
        let connection = &mut self.connections[number.0];
        let [from, host] = [1 - to, to].map(|end| connection.hosts[end]);
        if self.cuts[from.0][host.0] {
            return Vec::new();
        }
        connection.directions[1 - to].held.drain(..).flatten().collect()
    }

    /// Makes one side deaf: it receives nothing more, except the end of the connection.
    pub fn deafen(&mut self, number: ConnectionNumber, end: usize) {
        self.connections[number.0].deaf[end] = true;
    }

    /// Gives one side to another actor of the same host.
    pub fn give_end(&mut self, number: ConnectionNumber, end: usize, actor: Actor) {
        self.connections[number.0].ends[end] = actor;
    }

    /// Closes one side.
    pub fn close(&mut self, number: ConnectionNumber, end: usize) {
        let connection = &mut self.connections[number.0];
        connection.open[end] = false;
        connection.directions[1 - end].held = VecDeque::new();
        if connection.open == [false; 2] {
            self.live.retain(|live| *live != number);
        }
    }

    /// Returns the connections with at least one open side that satisfy `matches`.
    pub fn live(&self, matches: impl Fn(&Connection) -> bool) -> Vec<ConnectionNumber> {
        self.live.iter().copied().filter(|number| matches(self.get(*number))).collect()
    }
}

impl Connection {
    /// Returns the side that an actor owns. The actor must own one of the two.
    pub fn end_of(&self, actor: Actor) -> usize {
        usize::from(self.ends[0] != actor)
    }

    /// Returns the hosts at both sides.
    pub fn hosts(&self) -> [Host; 2] {
        self.hosts
    }
}
