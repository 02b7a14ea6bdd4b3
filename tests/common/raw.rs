//! A connection that sends arbitrary bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use kv_protocol::client_message::{
    Hello, Operation, Refusal, Request, Response, Status, Welcome, WriteHeader, opcode,
};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClientId, ClusterId, RequestId, SequenceNumber, ShardId, ViewVersion};
use kv_protocol::limits::{MAX_CONTROL_BODY, MAX_PEER_BODY, MAX_RESPONSE_BODY};
use kv_protocol::placement::Digest;
use socket2::{Domain, Socket, Type};

/// Time limit for receiving bytes or the end of a connection.
const LIMIT: Duration = Duration::from_secs(15);

/// One connection.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    input: FrameBuffer,
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) opcode: u8,
    pub(crate) body: Vec<u8>,
}

/// A response with a copy of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawResponse {
    pub(crate) id: RequestId,
    pub(crate) status: Status,
    pub(crate) copies: u8,
    pub(crate) version: SequenceNumber,
    pub(crate) value: Vec<u8>,
}

impl Raw {
    /// Connects to a clients port: frames have no checksums.
    #[track_caller]
    pub(crate) fn to_clients_port(address: SocketAddr) -> Raw {
        Raw::connect(address, FrameRules::unchecked(MAX_RESPONSE_BODY))
    }

    /// Connects to a cluster-internal port: frames have checksums.
    #[track_caller]
    pub(crate) fn to_cluster_port(address: SocketAddr) -> Raw {
        Raw::connect(address, FrameRules::checked(MAX_PEER_BODY))
    }

    /// Wraps a connection that a server opened to a cluster-internal port: frames have checksums.
    pub(crate) fn on_cluster_port(stream: TcpStream) -> Raw {
        stream.set_write_timeout(Some(LIMIT)).expect("set a time limit");
        Raw { stream, input: FrameBuffer::new(FrameRules::checked(MAX_CONTROL_BODY)) }
    }

    /// Connects from 127.0.0.2 to a clients port of this machine.
    #[track_caller]
    pub(crate) fn from_another_address(to: SocketAddr) -> Raw {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).expect("bind to 127.0.0.2");
        socket.connect(&to.into()).unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        Raw::over(socket.into(), FrameRules::unchecked(MAX_RESPONSE_BODY))
    }

    #[track_caller]
    fn connect(address: SocketAddr, rules: FrameRules) -> Raw {
        let stream = TcpStream::connect(address)
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Raw::over(stream, rules)
    }

    fn over(stream: TcpStream, rules: FrameRules) -> Raw {
        stream.set_nodelay(true).expect("set TCP_NODELAY");
        stream.set_write_timeout(Some(LIMIT)).expect("set a time limit");
        Raw { stream, input: FrameBuffer::new(rules) }
    }

    /// Connects to a shard of a server and receives its WELCOME.
    #[track_caller]
    pub(crate) fn welcomed(address: SocketAddr, client: ClientId, shard: ShardId) -> Raw {
        let mut raw = Raw::to_clients_port(address);
        raw.send(&hello(ClusterId(0), client, shard));
        let frame = raw.frame();
        assert_eq!(frame.opcode, opcode::WELCOME, "{frame:?}");
        Welcome::read(&frame.body).expect("a welcome");
        raw
    }

    /// Sends all of the bytes.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send");
    }

    /// Sends bytes; ignores an error if the other end has closed the connection.
    pub(crate) fn send_if_open(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Shuts down the sending direction.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Returns the next frame, or `None` at the end of the connection.
    #[track_caller]
    pub(crate) fn next_frame(&mut self) -> Option<Received> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let frame = self.input.next_frame().expect("a well-formed frame");
            if let Some(frame) = frame {
                return Some(Received { opcode: frame.opcode, body: frame.body.to_vec() });
            }
            if !self.receive(deadline) {
                return None;
            }
        }
    }

    /// Receives bytes; returns false at the end of the connection.
    #[track_caller]
    fn receive(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "neither a frame nor the end of the connection in {LIMIT:?}");
        self.stream.set_read_timeout(Some(left)).expect("set a time limit");
        let mut bytes = [0; 64 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.input.extend(&bytes[..count]);
                true
            }
            Err(error) if is_gone(&error) => false,
            Err(error) => panic!("receive: {error}"),
        }
    }

    /// Returns the next frame; fails at the end of the connection.
    #[track_caller]
    pub(crate) fn frame(&mut self) -> Received {
        self.next_frame().expect("a frame, not the end of the connection")
    }

    /// Returns the next frame, which must be a response.
    #[track_caller]
    pub(crate) fn response(&mut self) -> RawResponse {
        let frame = self.frame();
        assert_eq!(frame.opcode, opcode::RESPONSE, "{frame:?}");
        let response = Response::read(&frame.body).expect("a response");
        RawResponse {
            id: response.id,
            status: response.status,
            copies: response.copies,
            version: response.version,
            value: response.value.to_vec(),
        }
    }

    /// Returns the status and reason of the next frame, which must be an ERROR.
    #[track_caller]
    pub(crate) fn refusal(&mut self) -> (Status, String) {
        let frame = self.frame();
        assert_eq!(frame.opcode, opcode::ERROR, "{frame:?}");
        let refusal = Refusal::read(&frame.body).expect("a refusal");
        (refusal.status, refusal.reason.to_owned())
    }

    /// Sends a request and returns its response.
    #[track_caller]
    pub(crate) fn ask(&mut self, key: &[u8], operation: Operation<'_>) -> RawResponse {
        self.send(&request(RequestId(77), key, operation));
        let response = self.response();
        assert_eq!(response.id, RequestId(77));
        response
    }

    /// Waits for the end of the connection and returns the frames before it; fails if it does not
    /// end.
    #[track_caller]
    pub(crate) fn await_close(&mut self) -> Vec<Received> {
        let mut said = Vec::new();
        while let Some(frame) = self.next_frame() {
            said.push(frame);
        }
        said
    }

    /// Receives and discards everything until the other end closes the connection.
    #[track_caller]
    pub(crate) fn drain(&mut self) {
        self.stream.set_read_timeout(Some(LIMIT)).expect("set a time limit");
        match std::io::copy(&mut &self.stream, &mut std::io::sink()) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                panic!("the connection did not end: {error}")
            }
            _ => {}
        }
    }

    /// Receives and discards `count` bytes.
    #[track_caller]
    pub(crate) fn drop_bytes(&mut self, count: usize) {
        self.stream.set_read_timeout(Some(LIMIT)).expect("set a time limit");
        let mut rest = (&self.stream).take(count as u64);
        let gone = std::io::copy(&mut rest, &mut std::io::sink()).expect("receive");
        assert_eq!(gone, count as u64, "the connection ended early");
    }

    /// Returns true if received bytes are waiting.
    pub(crate) fn has_input(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("make it non-blocking");
        let has_input = matches!(self.stream.peek(&mut [0]), Ok(1..));
        self.stream.set_nonblocking(false).expect("make it blocking");
        has_input
    }

    /// Returns true if the other end has closed the connection. Discards received bytes.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("make it non-blocking");
        let mut bytes = [0; 64 << 10];
        let closed = loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).expect("make it blocking");
        closed
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe
    )
}

/// Returns the bytes of a HELLO.
pub(crate) fn hello(cluster: ClusterId, client: ClientId, shard: ShardId) -> Vec<u8> {
    let mut bytes = Vec::new();
    Hello::new(cluster, client, shard).write(&mut bytes);
    bytes
}

/// Returns the bytes of a request under view 1, the view of every group of a new cluster.
pub(crate) fn request(id: RequestId, key: &[u8], operation: Operation<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let digest = Digest::of(key);
    Request { id, view: ViewVersion(1), digest, key, operation }.write(&mut bytes);
    bytes
}

/// Returns the header of the write with this number, whose predecessors have all completed.
pub(crate) fn write_number(seq: u64) -> WriteHeader {
    use kv_protocol::client_message::Condition;
    use kv_protocol::ids::RequestSeq;
    WriteHeader {
        seq: RequestSeq(seq),
        first_incomplete: RequestSeq(seq),
        begun: Default::default(),
        condition: Condition::Always,
    }
}
