//! Socket operations that both engines share: options, limits, and calls that never block.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use kv_protocol::client_message::{Refusal, Status};
use kv_protocol::ids::Time;
use kv_protocol::peer_message::{PeerRefusal, PeerRefusalReason};
use kv_shard::{Address, End, LogLimit, Port};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrAny,
    SocketAddrUnix, getpeername, getsockname, recv, send, sendmsg, shutdown,
};
use socket2::SockRef;

/// The pause in accepting after a failure, such as a lack of descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The time within which a dialled server must accept the connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of bytes of one send. Without this limit, the kernel could copy megabytes at once into a socket
/// with enough free space.
pub(crate) const MOST_SENT: usize = 256 << 10;
/// The number of missing bytes of a frame at and above which the rest is received directly into the frame's own buffer.
pub(crate) const LONG_FRAME: usize = 64 << 10;
/// The maximum number of bytes of one receive into the buffer of a frame.
const MOST_RECEIVED: usize = 256 << 10;
/// The maximum number of bytes of one receive before the handshake of a connection is complete.
pub(crate) const HELLO_BYTES: usize = 1 << 10;
/// The age of unacknowledged bytes at which the peer's host counts as dead.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit on the unsent bytes that the kernel buffers for a stream (TCP_NOTSENT_LOWAT). Every later beacon has to
/// wait for these bytes. Without this limit they could reach megabytes, and a slow link would need longer than a lease
/// to carry them.
const UNSENT_BYTES: u32 = 128 << 10;
/// The idle time after which the kernel begins to probe whether a client's host is alive.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Rejects a connection over the limit with a best-effort BUSY reply, and shuts down its sending side.
pub(crate) fn reject(socket: &impl AsFd, port: Port) {
    let mut words = Vec::new();
    match port {
        Port::Redis => words.extend_from_slice(b"-ERR max number of clients reached\r\n"),
        Port::Clients => {
            let reason = "this server has reached its connection limit; retry later";
            Refusal { status: Status::Busy, reason }.write(&mut words);
        }
        Port::Servers => {
            PeerRefusal { reason: PeerRefusalReason::Busy, view: None }.write(&mut words);
        }
    }
    let _ = send(socket, &words, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = shutdown(socket, Shutdown::Write);
}

/// Sets socket options that are not essential: a socket that rejects an option works without it.
pub(crate) fn set_options(socket: &impl AsFd, port: Port) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let _ = match port {
        Port::Clients | Port::Redis => {
            socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))
        }
        Port::Servers => socket
            .set_tcp_user_timeout(Some(PEER_TIMEOUT))
            .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT_BYTES)),
    };
}

/// Logs that accepting a connection has failed, and that accepting pauses.
pub(crate) fn log_failed_accept(log: &mut LogLimit, now: Time, port: Port, error: &io::Error) {
    if let Some(suppressed) = log.admit(now) {
        tracing::error!(
            suppressed,
            "cannot accept a connection to {port}: {error}; accepting pauses for {ACCEPT_PAUSE:?}; check \
             `ulimit -n`"
        );
    }
}

/// Returns how many bytes of a long frame to receive next, if `came` bytes have arrived and `missing` are missing. The
/// buffer at most doubles or grows by [`LONG_FRAME`] at a time, because the length in the header is not trustworthy.
pub(crate) fn next_of_long_frame(came: usize, missing: usize) -> usize {
    missing.min(came.max(LONG_FRAME)).min(MOST_RECEIVED)
}

/// Receives once without blocking, and appends at most `most` bytes to the buffer; returns their number.
pub(crate) fn receive_behind(
    socket: &OwnedFd,
    buffer: &mut Vec<u8>,
    most: usize,
) -> rustix::io::Result<usize> {
    buffer.reserve(most);
    let room = &mut buffer.spare_capacity_mut()[..most];
    let ((received, _), _) = recv(socket, room, RecvFlags::DONTWAIT)?;
    let count = received.len();
    // SAFETY: `recv` has initialised `count` bytes after the others, and the capacity has room for them.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

/// Sends as many bytes of `parts`, in order, as the socket has room for, and returns their number. An error counts as 0
/// bytes, because the next ordinary send returns the error again.
pub(crate) fn send_now(socket: &impl AsFd, parts: &[IoSlice<'_>]) -> usize {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags).unwrap_or(0)
}

/// Returns the address of a connection's peer; [`Address::UNKNOWN`] if the system does not report it. The peer of a
/// Unix-domain socket is on this machine.
pub(crate) fn address_of_peer(socket: &impl AsFd) -> Address {
    let peer = getpeername(socket).ok().flatten();
    match peer.map(|peer| (peer.address_family(), SocketAddr::try_from(peer))) {
        Some((_, Ok(peer))) => Address::of(peer.ip()),
        Some((AddressFamily::UNIX, _)) => Address::LOOPBACK,
        _ => Address::UNKNOWN,
    }
}

/// Returns the addresses of both ends of a connection, the peer's first; `None` if the system does not report one. Both
/// ends of a Unix-domain socket have its path.
pub(crate) fn ends_of(socket: &impl AsFd) -> (Option<End>, Option<End>) {
    let Ok(local) = getsockname(socket) else { return (None, None) };
    if let Ok(unix) = SocketAddrUnix::try_from(local.clone()) {
        let path = unix.path_bytes().map(|path| String::from_utf8_lossy(path).into());
        let end = path.map(End::Unix);
        return (end.clone(), end);
    }
    let ip = |address: SocketAddrAny| SocketAddr::try_from(address).ok().map(End::Ip);
    (getpeername(socket).ok().flatten().and_then(ip), ip(local))
}
