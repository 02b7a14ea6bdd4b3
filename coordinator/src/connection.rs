//! A connection that exchanges frames, with deadlines for both directions.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use kv_protocol::FrameError;
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::limits::{FRAME_DEADLINE, STALL_DEADLINE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// The maximum number of bytes read from a socket at once. Each open connection has a buffer of this size.
const READ_BYTES: usize = 4 << 10;

/// The reason for the end of a connection, other than a close between two frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("the connection was closed in the middle of a frame")]
    CutShort,
    #[error("no complete frame within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("a frame took longer than {} s", FRAME_DEADLINE.as_secs())]
    SlowFrame,
    #[error("the peer accepted too little data within {} s", STALL_DEADLINE.as_secs())]
    Stalled,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A frame, separate from the receive buffer.
#[derive(Debug)]
pub(crate) struct OwnedFrame {
    pub(crate) opcode: u8,
    pub(crate) body: Vec<u8>,
}

/// A connection that exchanges frames, with deadlines in both directions.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: FrameBuffer,
    /// The time at which the incomplete frame began; `None` if there is no incomplete frame.
    frame_began: Option<Instant>,
    /// The time since which a frame is expected from the peer.
    waiting_since: Instant,
    /// Bytes that are sent while the next frame is awaited.
    output: Vec<u8>,
    /// The number of those bytes already sent.
    sent: usize,
    /// The time at which the number of sent bytes last grew.
    last_progress: Instant,
}

/// The result of a transfer on a socket.
enum Moved {
    In(usize),
    Out(usize),
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, rules: FrameRules) -> Connection {
        // Without this option, a small response may wait for the acknowledgement of an earlier one.
        let _ = stream.set_nodelay(true);
        Connection {
            stream,
            buffer: FrameBuffer::new(rules),
            frame_began: None,
            waiting_since: Instant::now(),
            output: Vec::new(),
            sent: 0,
            last_progress: Instant::now(),
        }
    }

    pub(crate) fn set_rules(&mut self, rules: FrameRules) {
        self.buffer.set_rules(rules);
    }

    pub(crate) fn peer(&self) -> String {
        self.stream
            .peer_addr()
            .map_or_else(|_| "?".into(), |address: SocketAddr| address.to_string())
    }

    /// Queues bytes that [`Connection::next_frame`] sends while it waits. So frames are received even from a peer that
    /// reads slowly.
    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        if self.has_sent_all() {
            self.output.clear();
            self.sent = 0;
            self.last_progress = Instant::now();
        }
        self.output.extend_from_slice(bytes);
    }

    /// Returns whether all queued bytes have been sent.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.sent == self.output.len()
    }

    /// Receives bytes or sends queued bytes, whichever is possible first. Cancel-safe: dropping the future loses no
    /// bytes.
    async fn transfer(
        stream: &mut TcpStream,
        received: &mut [u8],
        queued: &[u8],
    ) -> io::Result<Moved> {
        let (mut reading, mut writing) = stream.split();
        tokio::select! {
            biased;
            count = reading.read(received) => count.map(Moved::In),
            count = writing.write(queued), if !queued.is_empty() => count.map(Moved::Out),
        }
    }

    /// Returns the next frame, or `None` if the peer has closed the connection between two frames. The whole frame must
    /// arrive within `timeout` after the previous frame, or after the creation of the connection; `None` means no such
    /// limit. In any case, the frame must arrive within `FRAME_DEADLINE` after its first byte, and queued bytes must
    /// make progress within `STALL_DEADLINE`. Cancel-safe.
    pub(crate) async fn next_frame(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Option<OwnedFrame>, ConnectionError> {
        loop {
            if let Some(frame) = self.buffer.next_frame()? {
                let frame = OwnedFrame { opcode: frame.opcode, body: frame.body.to_vec() };
                self.waiting_since = Instant::now();
                self.frame_began = self.buffer.is_partial().then_some(self.waiting_since);
                return Ok(Some(frame));
            }
            let mut received = [0; READ_BYTES];
            let silence = timeout.map(|timeout| self.waiting_since + timeout);
            let slow = self.frame_began.map(|began| began + FRAME_DEADLINE);
            let stalled = (!self.has_sent_all()).then(|| self.last_progress + STALL_DEADLINE);
            let queued = &self.output[self.sent..];
            let transfer = Connection::transfer(&mut self.stream, &mut received, queued);
            let moved = match silence.into_iter().chain(slow).chain(stalled).min() {
                None => transfer.await?,
                Some(deadline) => match timeout_at(deadline, transfer).await {
                    Ok(moved) => moved?,
                    Err(_) if slow == Some(deadline) => return Err(ConnectionError::SlowFrame),
                    Err(_) if stalled == Some(deadline) => return Err(ConnectionError::Stalled),
                    Err(_) => {
                        return Err(ConnectionError::Silent(timeout.unwrap_or(FRAME_DEADLINE)));
                    }
                },
            };
            let count = match moved {
                Moved::In(count) => count,
                Moved::Out(count) => {
                    self.sent += count;
                    self.last_progress = Instant::now();
                    continue;
                }
            };
            match received.get(..count) {
                Some([]) | None if self.buffer.is_partial() => {
                    return Err(ConnectionError::CutShort);
                }
                Some([]) | None => return Ok(None),
                Some(bytes) => self.buffer.extend(bytes),
            }
            self.frame_began.get_or_insert_with(Instant::now);
        }
    }

    /// Sends all bytes within `STALL_DEADLINE`. Receives nothing meanwhile, so a peer that does not read its responses
    /// cannot have more requests served.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        match timeout(STALL_DEADLINE, self.stream.write_all(bytes)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ConnectionError::Stalled),
        }
    }

    /// Shuts down the sending side, and discards incoming bytes for at most 500 ms. Closing with unread bytes would
    /// reset the connection, and the peer could lose a final message.
    pub(crate) async fn end(mut self) {
        const LINGER: Duration = Duration::from_millis(500);
        const MAX_ROUNDS: usize = 64;
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let mut ignored = [0; READ_BYTES];
        let drain = async {
            for _ in 0..MAX_ROUNDS {
                if matches!(self.stream.read(&mut ignored).await, Ok(0) | Err(_)) {
                    return;
                }
            }
        };
        let _ = timeout(LINGER, drain).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::frame::{Checksum, write_frame};
    use tokio::net::TcpListener;

    /// Runs a test with a connection and a plain socket as its peer.
    fn converse<F: Future<Output = ()>>(test: impl FnOnce(Connection, TcpStream) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(address));
            let connection = Connection::new(ours.unwrap().0, FrameRules::unchecked(64));
            test(connection, theirs.unwrap()).await;
        });
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Checksum::Absent, 7, |output| output.extend_from_slice(body));
        bytes
    }

    #[test]
    fn a_frame_survives_a_read_that_is_dropped_halfway() {
        converse(|mut connection, mut other| async move {
            let bytes = frame(b"whole");
            other.write_all(&bytes[..9]).await.unwrap();
            let moment = Duration::from_millis(20);
            assert!(timeout(moment, connection.next_frame(None)).await.is_err());
            other.write_all(&bytes[9..]).await.unwrap();
            let frame = connection.next_frame(None).await.unwrap().unwrap();
            assert_eq!((frame.opcode, &frame.body[..]), (7, &b"whole"[..]));
        });
    }

    #[test]
    fn a_close_within_a_frame_is_an_error_and_a_close_between_frames_is_not() {
        converse(|mut connection, mut other| async move {
            other.write_all(&frame(b"one")).await.unwrap();
            other.write_all(&frame(b"two")[..10]).await.unwrap();
            drop(other);
            assert!(connection.next_frame(None).await.unwrap().is_some());
            let error = connection.next_frame(None).await.unwrap_err();
            assert!(matches!(error, ConnectionError::CutShort), "{error}");
        });
        converse(|mut connection, other| async move {
            drop(other);
            assert!(connection.next_frame(None).await.unwrap().is_none());
        });
    }

    #[test]
    fn waiting_for_a_silent_peer_times_out() {
        converse(|mut connection, other| async move {
            let error = connection.next_frame(Some(Duration::from_millis(30))).await.unwrap_err();
            assert!(matches!(error, ConnectionError::Silent(_)), "{error}");
            drop(other);
        });
    }

    #[test]
    fn queued_bytes_are_sent_during_a_receive_and_do_not_block_it() {
        const QUEUED: usize = 32 << 20;
        converse(|mut connection, mut other| async move {
            connection.queue(&vec![7; QUEUED]);
            other.write_all(&frame(b"heard")).await.unwrap();
            let heard = connection.next_frame(None).await.unwrap().unwrap();
            assert_eq!(&heard.body[..], b"heard");
            assert!(!connection.has_sent_all(), "the peer has read nothing yet");
            let taken = async {
                let mut bytes = vec![0; QUEUED];
                other.read_exact(&mut bytes).await.unwrap();
                other.write_all(&frame(b"taken")).await.unwrap();
                bytes
            };
            let (bytes, last) = tokio::join!(taken, connection.next_frame(None));
            assert!(bytes.iter().all(|&byte| byte == 7));
            assert_eq!(&last.unwrap().unwrap().body[..], b"taken");
            assert!(connection.has_sent_all());
        });
    }

    #[test]
    fn single_bytes_do_not_extend_the_deadline_of_a_frame() {
        converse(|mut connection, mut other| async move {
            let timeout = Duration::from_millis(60);
            let trickle = async {
                for byte in frame(b"slow") {
                    other.write_all(&[byte]).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                result = connection.next_frame(Some(timeout)) => assert!(result.is_err()),
                () = trickle => panic!("the deadline did not expire"),
            }
        });
    }
}
