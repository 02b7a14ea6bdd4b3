//! The connections, and the pending output of each.
//!
//! ```text
//!   received -> input -> whole requests --> output ----------------------> one send in flight
//!                                      \-> batch of this wake-up -> next   (in a chain; the reply
//!                                          to the batch appends its replies to their outputs)
//! ```

use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::bail;

use super::ring::{Done, Kind, Uring};
use crate::wire::echo::{Head, LONGEST, REPLY_HEAD, REQUEST_HEAD};

/// The maximum number of connections.
const MAX_CONNECTIONS: usize = 16_384;
/// The maximum pending output of a connection. A peer that exceeds it has stopped reading, and is disconnected.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// The size of the reply to a batch in bytes.
const BATCH_REPLY: usize = 16;

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// Received bytes of an incomplete request.
    input: Vec<u8>,
    /// Bytes to be sent next.
    output: Vec<u8>,
    /// Bytes that are being sent. They are not changed until the send completes.
    sending: Vec<u8>,
    sent: usize,
    is_sending: bool,
    /// True while a receive is armed.
    is_receiving: bool,
    is_closing: bool,
    is_dirty: bool,
}

/// The second process of a chain, and the requests that wait for it.
#[derive(Debug)]
struct Next {
    connection: u32,
    /// The requests of this wake-up.
    bytes: Vec<u8>,
    owed: Vec<(u32, Head)>,
    /// The batches in flight, in order.
    batches: VecDeque<Vec<(u32, Head)>>,
    number: u64,
}

/// The echo server. See the module.
pub(super) struct Server {
    ring: Uring,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    dirty: Vec<u32>,
    next: Option<Next>,
}

impl Connection {
    fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            sending: Vec::new(),
            sent: 0,
            is_sending: false,
            is_receiving: true,
            is_closing: false,
            is_dirty: false,
        }
    }
}

impl Server {
    pub(super) fn new(listener: TcpListener, next: Option<TcpStream>) -> anyhow::Result<Server> {
        let mut ring = Uring::new()?;
        ring.accept(listener.as_raw_fd())?;
        let (connections, free, dirty) = (Vec::new(), Vec::new(), Vec::new());
        let mut server = Server { ring, listener, connections, free, dirty, next: None };
        if let Some(stream) = next {
            let connection = server.add(stream.into())?;
            let (bytes, owed, batches) = (Vec::new(), Vec::new(), VecDeque::new());
            server.next = Some(Next { connection, bytes, owed, batches, number: 0 });
        }
        Ok(server)
    }

    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let mut done = Vec::new();
        loop {
            self.ring.wait(&mut done)?;
            for done in &done {
                match done.kind {
                    Kind::Accept => self.accepted(done)?,
                    Kind::Receive => self.received(done)?,
                    Kind::Send => self.has_sent(done)?,
                }
            }
            self.forward();
            while let Some(number) = self.dirty.pop() {
                self.send(number)?;
            }
        }
    }

    fn add(&mut self, socket: OwnedFd) -> anyhow::Result<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.connections.push(None);
                u32::try_from(self.connections.len() - 1)?
            }
        };
        self.ring.receive(socket.as_raw_fd(), number)?;
        self.connections[number as usize] = Some(Connection::new(socket));
        Ok(number)
    }

    fn accepted(&mut self, done: &Done) -> anyhow::Result<()> {
        if done.result >= 0 {
            // SAFETY: the kernel has just handed over this descriptor, which nothing else owns.
            let socket = unsafe { OwnedFd::from_raw_fd(done.result) };
            let stream = TcpStream::from(socket);
            // A failure has no effect other than slower responses.
            let _ = stream.set_nodelay(true);
            if self.connections.len() - self.free.len() < MAX_CONNECTIONS {
                self.add(stream.into())?;
            }
        }
        if !done.goes_on {
            self.ring.accept(self.listener.as_raw_fd())?;
        }
        Ok(())
    }

    fn received(&mut self, done: &Done) -> anyhow::Result<()> {
        let number = done.connection;
        let Some(connection) = &mut self.connections[number as usize] else { return Ok(()) };
        let mut is_over = done.result <= 0 && done.result != -libc::ENOBUFS;
        if let Some(buffer) = done.buffer {
            let length = usize::try_from(done.result).unwrap_or(0);
            connection.input.extend_from_slice(self.ring.buffers.filled(buffer, length));
            self.ring.buffers.put_back(buffer);
            is_over |= !self.serve(number);
        }
        let Some(connection) = &mut self.connections[number as usize] else { return Ok(()) };
        connection.is_receiving = done.goes_on;
        connection.is_closing |= is_over;
        if connection.is_closing {
            return self.close(number);
        }
        if !done.goes_on {
            connection.is_receiving = true;
            let socket = connection.socket.as_raw_fd();
            self.ring.receive(socket, number)?;
        }
        Ok(())
    }

    /// Handles the complete requests, or the replies of the next process in the chain. Returns false if the connection
    /// must be closed: the input is malformed, or too much output is pending.
    fn serve(&mut self, number: u32) -> bool {
        let Some(connection) = &mut self.connections[number as usize] else { return true };
        let input = std::mem::take(&mut connection.input);
        let mut rest = input.as_slice();
        let is_right = match &mut self.next {
            Some(next) if next.connection == number => self.take_replies(&mut rest),
            next => {
                let mut is_right = true;
                loop {
                    let head = match Head::read(rest) {
                        Ok(Some(head)) if rest.len() >= head.length => head,
                        Ok(_) => break,
                        Err(_) => {
                            is_right = false;
                            break;
                        }
                    };
                    match next {
                        Some(next) => {
                            next.bytes.extend_from_slice(&rest[..head.length]);
                            next.owed.push((number, head));
                        }
                        None => head.write_reply(&mut connection.output),
                    }
                    rest = &rest[head.length..];
                }
                is_right && connection.output.len() <= MAX_OUTPUT_BYTES
            }
        };
        let taken = input.len() - rest.len();
        if let Some(connection) = &mut self.connections[number as usize] {
            connection.input = input;
            connection.input.drain(..taken);
        }
        self.mark(number);
        is_right
    }

    /// Handles replies from the next process in the chain: writes the reply to every request of each batch.
    fn take_replies(&mut self, rest: &mut &[u8]) -> bool {
        while rest.len() >= BATCH_REPLY {
            *rest = &rest[BATCH_REPLY..];
            let Some(batch) = self.next.as_mut().and_then(|next| next.batches.pop_front()) else {
                return false;
            };
            for (number, head) in batch {
                if let Some(connection) = &mut self.connections[number as usize] {
                    head.write_reply(&mut connection.output);
                    self.mark(number);
                }
            }
        }
        true
    }

    fn mark(&mut self, number: u32) {
        if let Some(connection) = &mut self.connections[number as usize]
            && !connection.is_dirty
        {
            connection.is_dirty = true;
            self.dirty.push(number);
        }
    }

    /// Sends the requests of this wake-up to the next process in the chain, as one request.
    fn forward(&mut self) {
        let Some(next) = &mut self.next else { return };
        if next.owed.is_empty() {
            return;
        }
        let Some(connection) = &mut self.connections[next.connection as usize] else { return };
        next.number += 1;
        let length = (REQUEST_HEAD + next.bytes.len()).min(LONGEST);
        let head = Head { length, reply: BATCH_REPLY.max(REPLY_HEAD), tag: next.number };
        let start = connection.output.len();
        head.write(&mut connection.output);
        let room = length - REQUEST_HEAD;
        connection.output[start + REQUEST_HEAD..].copy_from_slice(&next.bytes[..room]);
        next.bytes.clear();
        next.batches.push_back(std::mem::take(&mut next.owed));
        let number = next.connection;
        self.mark(number);
    }

    /// Starts a send of the pending output. If a send is in flight, its completion leads to the next one.
    fn send(&mut self, number: u32) -> anyhow::Result<()> {
        let Some(connection) = &mut self.connections[number as usize] else { return Ok(()) };
        connection.is_dirty = false;
        if connection.is_sending || connection.is_closing || connection.output.is_empty() {
            return Ok(());
        }
        std::mem::swap(&mut connection.sending, &mut connection.output);
        connection.output.clear();
        connection.sent = 0;
        connection.is_sending = true;
        // `sending` is neither changed nor freed before the completion: the connection stays in its place until
        // then.
        let socket = connection.socket.as_raw_fd();
        self.ring.send(socket, number, &connection.sending)
    }

    fn has_sent(&mut self, done: &Done) -> anyhow::Result<()> {
        let number = done.connection;
        let Some(connection) = &mut self.connections[number as usize] else { return Ok(()) };
        connection.is_sending = false;
        match usize::try_from(done.result) {
            Ok(sent) if !connection.is_closing => connection.sent += sent,
            _ => {
                connection.is_closing = true;
                return self.close(number);
            }
        }
        if connection.sent < connection.sending.len() {
            connection.is_sending = true;
            let socket = connection.socket.as_raw_fd();
            return self.ring.send(socket, number, &connection.sending[connection.sent..]);
        }
        self.mark(number);
        Ok(())
    }

    /// Closes a connection as soon as it has no operation in flight.
    fn close(&mut self, number: u32) -> anyhow::Result<()> {
        if self.next.as_ref().is_some_and(|next| next.connection == number) {
            bail!("the next kv-echo of the chain closed the connection");
        }
        let Some(connection) = &self.connections[number as usize] else { return Ok(()) };
        if connection.is_sending || connection.is_receiving {
            // Shutting down ends both operations; the last completion calls this function again.
            let _ = rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Both);
            return Ok(());
        }
        self.connections[number as usize] = None;
        // In a chain, a batch may still contain the number. So the number is reused only without a chain.
        if self.next.is_none() {
            self.free.push(number);
        }
        Ok(())
    }
}
