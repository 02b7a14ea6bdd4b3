//! Sockets, as both engines treat them: options, limits, and calls that never block.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use kv_protocol::client_message::{Refusal, Status};
use kv_protocol::ids::Time;
use kv_protocol::peer_message::{PeerRefusal, PeerRefusalReason};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown,
};
use socket2::SockRef;

use super::listener::Port;
use super::output::SendNow;
use crate::log_limit::LogLimit;

/// Connections of a port that are accepted at once, and wait to be taken in.
pub(crate) const ACCEPTS_AT_ONCE: usize = 16;
/// How long accepting pauses when there is no descriptor left.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a dialled server may take to accept.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes of one send: a socket with room for megabytes would have the kernel copy them all at once.
pub(crate) const MOST_SENT: usize = 256 << 10;
/// A frame that lacks so many bytes is received straight into its own buffer, this much at a time.
pub(crate) const LONG_FRAME: usize = 64 << 10;
const MOST_RECEIVED: usize = 256 << 10;
/// So much is received with a hello, whatever its sender sent behind it.
pub(crate) const HELLO_BYTES: usize = 1 << 10;
/// Unacknowledged bytes this old mean that the peer's host is gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// So much the kernel takes of a stream ahead of what the network takes. What it has taken goes before every later
/// beacon: left alone it takes megabytes, which a narrow link carries for longer than a lease.
const UNSENT_BYTES: u32 = 128 << 10;
/// A client's host that is gone is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(60);

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
    let _ = send(socket, &words, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = shutdown(socket, Shutdown::Write);
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

/// Logs that accepting failed and pauses.
pub(crate) fn log_failed_accept(log: &mut LogLimit, now: Time, port: Port, error: &io::Error) {
    if let Some(suppressed) = log.admit(now) {
        tracing::error!(
            suppressed,
            "accept a connection for {port:?}: {error}; accepting pauses for {ACCEPT_PAUSE:?} (too few \
             descriptors? see `ulimit -n`)"
        );
    }
}

/// How many bytes of a long frame to receive next: never more memory than twice of what has come, as a header can
/// say anything.
pub(crate) fn next_of_long_frame(came: usize, missing: usize) -> usize {
    missing.min(came.max(LONG_FRAME)).min(MOST_RECEIVED)
}

/// Receives once, at most `most` bytes, behind what the buffer holds, without waiting; how many bytes.
pub(crate) fn receive_behind(
    socket: &OwnedFd,
    buffer: &mut Vec<u8>,
    most: usize,
) -> rustix::io::Result<usize> {
    buffer.reserve(most);
    let room = &mut buffer.spare_capacity_mut()[..most];
    let ((received, _), _) = recv(socket, room, RecvFlags::DONTWAIT)?;
    let count = received.len();
    // SAFETY: so many bytes behind the others were just written, and the capacity has room for them.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

impl SendNow for OwnedFd {
    fn send_now(&self, parts: &[IoSlice<'_>]) -> usize {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(self, parts, &mut SendAncillaryBuffer::default(), flags).unwrap_or(0)
    }
}
