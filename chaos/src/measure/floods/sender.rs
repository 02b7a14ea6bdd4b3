//! The sender of one flood: up to two threads, each with a part of the connections.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kv_protocol::client_message::{
    Condition, Hello, Operation, Question, Request, Scan, WriteHeader,
};
use kv_protocol::ids::{
    ClientId, ClusterId, RequestId, RequestSeq, SequenceNumber, ShardId, ViewVersion,
};
use kv_protocol::limits::{MAX_FLOAT_UPDATES, MAX_UPDATES, SESSION_WINDOW};
use kv_protocol::placement::Digest;
use kv_protocol::update::{Action, Expiry, Update, Updates};
use kv_testkit::random::Random;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use super::shape::{Kind, Manner, Shape};

/// The number of sending threads.
const THREADS: usize = 2;
/// The size in bytes from which a block of requests is complete.
const BLOCK_BYTES: usize = 128 << 10;
/// The maximum number of bytes of one read. The bytes are discarded.
const READ_BYTES: usize = 256 << 10;
/// The timeout of one poll(2), and of one attempt to connect.
const WAIT: Duration = Duration::from_millis(10);
/// The length of a frame's header in bytes. The header begins with the length of the body.
const HEADER: usize = 8;

/// A pattern that matches no key and needs many steps of comparison.
const NO_MATCH: &[u8] = b"*f*l*o*o*d*!";
/// The largest power of ten that a number with a fraction can be, which has the longest text.
const LARGEST_FLOAT: &[u8] = b"1e4931";
/// The maximum number of requests between the write of a brief key and its read.
const READ_AFTER: u64 = 256;

/// The target of the flood.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    pub(crate) clients: SocketAddr,
    pub(crate) servers: SocketAddr,
    pub(crate) view: ViewVersion,
    /// A key of the flooded shard.
    pub(crate) key: Vec<u8>,
    /// Further keys of the shard.
    pub(crate) keys: Vec<Vec<u8>>,
    /// The digest that locates the shard.
    pub(crate) digest: Digest,
}

/// Sends a flood for the time `lasts`. Returns the number of received frames, or the number of connections if the shape
/// only connects.
pub(crate) fn flood(aim: &Aim, shape: &Shape, lasts: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + lasts;
    let threads = THREADS.min(shape.connections);
    std::thread::scope(|scope| {
        let part = |thread: usize| {
            let count =
                shape.connections / threads + usize::from(thread < shape.connections % threads);
            let part = Shape { connections: count, ..*shape };
            scope.spawn(move || match shape.kind {
                Kind::Hellos | Kind::Silent => knock(aim, &part, until),
                _ => converse(aim, &part, thread as u64, until),
            })
        };
        let parts: Vec<_> = (0..threads).map(part).collect();
        let mut responses = 0;
        for part in parts {
            responses += part.join().expect("a thread does not panic")?;
        }
        Ok(responses)
    })
}

/// Opens one connection after the other, and keeps the latest `shape.connections` of them open. Closing a connection
/// resets it.
fn knock(aim: &Aim, shape: &Shape, until: Instant) -> anyhow::Result<u64> {
    let mut open = std::collections::VecDeque::new();
    let mut count = 0;
    while Instant::now() < until {
        // A rejected connection is a part of the flood too.
        let Ok(mut stream) = TcpStream::connect_timeout(&aim.clients, WAIT) else { continue };
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).context("set SO_LINGER")?;
        if shape.kind == Kind::Hellos {
            let _ = stream.write_all(&hello(count));
        }
        count += 1;
        open.push_back(stream);
        if open.len() > shape.connections {
            open.pop_front();
        }
    }
    Ok(count)
}

fn converse(aim: &Aim, shape: &Shape, thread: u64, until: Instant) -> anyhow::Result<u64> {
    let mut talkers = Vec::new();
    for number in 0..shape.connections {
        talkers.push(Talker::connect(aim, shape, thread << 32 | number as u64)?);
    }
    let mut scratch = vec![0; READ_BYTES];
    while Instant::now() < until {
        let mut waits: Vec<PollFd<'_>> = talkers.iter().map(Talker::wait).collect();
        let longest = Timespec::try_from(WAIT).context("wait")?;
        poll(&mut waits, Some(&longest)).context("poll the connections of a flood")?;
        let ready: Vec<PollFlags> = waits.iter().map(PollFd::revents).collect();
        for (talker, ready) in talkers.iter_mut().zip(ready) {
            if !ready.is_empty() && !talker.work(aim, ready, &mut scratch) && Instant::now() < until
            {
                // The server may close a connection. A new one replaces it.
                talker.reconnect(aim)?;
            }
        }
    }
    Ok(talkers.iter().map(|talker| talker.responses).sum())
}

/// One connection.
struct Talker {
    stream: TcpStream,
    shape: Shape,
    number: u64,
    random: Random,
    /// The block of bytes that is being sent.
    block: Vec<u8>,
    /// The number of bytes of the block that are already sent.
    sent: usize,
    /// The encoded updates of each request, if all requests have the same.
    updates: Vec<u8>,
    asked: u64,
    /// The number of writes among the requests.
    written: u64,
    /// The number of requests of this connection without a response.
    in_flight: u64,
    responses: u64,
    /// The header of the frame that is being received.
    header: [u8; HEADER],
    has: usize,
    skip: usize,
}

impl Talker {
    fn connect(aim: &Aim, shape: &Shape, number: u64) -> anyhow::Result<Talker> {
        let mut talker = Talker {
            stream: open(aim, shape)?,
            shape: *shape,
            number,
            random: Random::new(number + 1),
            block: Vec::new(),
            sent: 0,
            updates: updates(aim, shape.kind),
            asked: 0,
            written: 0,
            in_flight: 0,
            responses: 0,
            header: [0; HEADER],
            has: 0,
            skip: 0,
        };
        talker.send_hello();
        Ok(talker)
    }

    fn reconnect(&mut self, aim: &Aim) -> anyhow::Result<()> {
        self.stream = open(aim, &self.shape)?;
        self.number += 1 << 20;
        (self.asked, self.written, self.has, self.skip) = (0, 0, 0, 0);
        self.send_hello();
        Ok(())
    }

    fn send_hello(&mut self) {
        (self.block, self.sent, self.in_flight) = (Vec::new(), 0, 0);
        if self.shape.kind != Kind::GarbageToServers {
            self.block = hello(self.number);
            self.in_flight = 1;
        }
    }

    fn wait(&self) -> PollFd<'_> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.shape.manner != Manner::Unread);
        flags.set(PollFlags::OUT, self.sent < self.block.len() || self.may_ask());
        PollFd::from_borrowed_fd(self.stream.as_fd(), flags)
    }

    fn may_ask(&self) -> bool {
        match self.shape.manner {
            Manner::Closed => self.in_flight == 0,
            _ if self.shape.writes() => self.in_flight < SESSION_WINDOW,
            Manner::Open | Manner::Unread => true,
        }
    }

    /// Reads and sends as far as the socket is ready. Returns false if the connection has ended.
    fn work(&mut self, aim: &Aim, ready: PollFlags, scratch: &mut [u8]) -> bool {
        if ready.contains(PollFlags::IN) && !self.read(scratch) {
            return false;
        }
        if ready.contains(PollFlags::OUT) && !self.write(aim) {
            return false;
        }
        !ready.intersects(PollFlags::ERR | PollFlags::HUP)
    }

    fn read(&mut self, scratch: &mut [u8]) -> bool {
        match self.stream.read(scratch) {
            Ok(0) => false,
            Ok(count) => {
                self.count_frames(&scratch[..count]);
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    fn count_frames(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.has).min(bytes.len());
            if self.skip > 0 || taken == 0 {
                return;
            }
            self.header[self.has..self.has + taken].copy_from_slice(&bytes[..taken]);
            self.has += taken;
            bytes = &bytes[taken..];
            if self.has == HEADER {
                let [a, b, c, d, ..] = self.header;
                self.skip = u32::from_le_bytes([a, b, c, d]) as usize;
                self.has = 0;
                self.responses += 1;
                self.in_flight = self.in_flight.saturating_sub(1);
            }
        }
    }

    fn write(&mut self, aim: &Aim) -> bool {
        if self.sent == self.block.len() {
            self.sent = 0;
            self.fill(aim);
        }
        match self.stream.write(&self.block[self.sent..]) {
            Ok(count) => {
                self.sent += count;
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    /// Fills the block with the next requests.
    fn fill(&mut self, aim: &Aim) {
        let is_repeated = !self.shape.writes() && self.shape.kind != Kind::Garbage;
        if is_repeated && self.shape.manner != Manner::Closed && self.asked > 1 {
            // The requests need not differ, so the same block is sent again.
            return;
        }
        self.block.clear();
        while self.block.len() < BLOCK_BYTES && self.may_ask() {
            self.asked += 1;
            self.in_flight += 1;
            self.ask(aim);
        }
    }

    /// Returns the header of the next write.
    fn next_header(&mut self) -> WriteHeader {
        self.written += 1;
        // Until the WELCOME arrives, the hello is in flight too.
        let first = (self.written + 1).saturating_sub(self.in_flight).max(1);
        WriteHeader {
            seq: RequestSeq(self.written),
            first_incomplete: RequestSeq(first),
            begun: SequenceNumber::ZERO,
            condition: Condition::Always,
        }
    }

    fn ask(&mut self, aim: &Aim) {
        let mut missing = aim.key.clone();
        missing.push(b'?');
        let (value, written);
        // The digest is always that of a key in the flooded shard, so the server looks up a missing key in this shard,
        // too.
        let mut digest = Digest::of(&aim.key);
        let (key, operation) = match self.shape.kind {
            Kind::Noop => (&aim.key[..], Operation::Noop),
            Kind::GetMissing => (&missing[..], Operation::Get),
            Kind::Get(_) => (&aim.key[..], Operation::Get),
            Kind::Put(bytes) => {
                value = vec![7; bytes];
                (&aim.key[..], Operation::Put(self.next_header(), &value))
            }
            Kind::Scan => {
                digest = aim.digest;
                (NO_MATCH, Operation::Scan(Scan { values: true, ..Scan::default() }))
            }
            Kind::Batch | Kind::Floats => {
                let header = self.next_header();
                let updates = Updates::read(&self.updates).expect("they were encoded here");
                (&aim.key[..], Operation::Update(header, updates))
            }
            Kind::Expired => {
                let is_write = self.asked % 2 == 1;
                let back = if is_write { 0 } else { self.random.below(READ_AFTER) };
                let number = usize::try_from(self.asked.saturating_sub(back) / 2).unwrap_or(0);
                let key = &aim.keys[number % aim.keys.len()];
                digest = Digest::of(key);
                if is_write {
                    let header = self.next_header();
                    written = Updates::read(&self.updates).expect("they were encoded here");
                    (&key[..], Operation::Update(header, written))
                } else {
                    (&key[..], Operation::Get)
                }
            }
            Kind::Map => return Question::Map.write(&mut self.block),
            Kind::Garbage | Kind::GarbageToServers | Kind::Hellos | Kind::Silent => {
                let random = &mut self.random;
                let bytes = (0..BLOCK_BYTES / 8).flat_map(|_| random.any().to_le_bytes());
                return self.block.extend(bytes);
            }
        };
        let id = RequestId(self.asked);
        Request { id, view: aim.view, digest, key, operation }.write(&mut self.block);
    }
}

/// Encodes the updates of every request of a flood; none if its requests differ or are no updates.
fn updates(aim: &Aim, kind: Kind) -> Vec<u8> {
    let one = |action| Update::new(action);
    let updates: Vec<Update<'_>> = match kind {
        Kind::Batch => {
            let keys = aim.keys.iter().take(MAX_UPDATES);
            keys.map(|key| Update { key: Some(key), ..one(Action::Add(1)) }).collect()
        }
        Kind::Floats => {
            let sums = std::iter::repeat_n(
                one(Action::AddFloat(b"1")),
                usize::from(MAX_FLOAT_UPDATES) - 1,
            );
            std::iter::once(one(Action::Put(LARGEST_FLOAT))).chain(sums).collect()
        }
        Kind::Expired => vec![Update { expiry: Expiry::After(1), ..one(Action::Put(b"brief")) }],
        _ => Vec::new(),
    };
    let mut bytes = Vec::new();
    updates.iter().for_each(|update| update.write(&mut bytes));
    bytes
}

fn open(aim: &Aim, shape: &Shape) -> anyhow::Result<TcpStream> {
    let to = if shape.kind == Kind::GarbageToServers { aim.servers } else { aim.clients };
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_nonblocking(true).context("make a connection of the flood non-blocking")?;
    Ok(stream)
}

fn hello(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let client = ClientId(0xf100d << 64 | u128::from(number));
    Hello::new(ClusterId(0), client, ShardId(0)).write(&mut bytes);
    bytes
}
