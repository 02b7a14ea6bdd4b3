//! The addresses of peers, and the directory of the servers' Unix-domain sockets.
//!
//! ```text
//!   unix:DIR  -->  a server's socket in DIR, if it accepts
//!                    | no socket, or no listener: the server is on another host
//!                    +--> the address of the map
//! ```

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use kv_protocol::ids::{Member, ServerId};
use kv_protocol::unix::{UNIX_PREFIX, socket_name};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// The address of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix-domain socket.
    Unix(Arc<Path>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

/// A peer, as an endpoint or the map names it. A peer with a server may be reached by that server's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) server: Option<ServerId>,
    /// The TCP address; `None` if only a socket leads to the server.
    pub(crate) address: Option<SocketAddr>,
}

impl Place {
    /// Returns a place of which only the address is known.
    pub(crate) fn at(address: SocketAddr) -> Place {
        Place { server: None, address: Some(address) }
    }
}

/// The directory of the sockets, if there is one.
#[derive(Debug)]
pub(crate) struct Sockets {
    dir: Option<Arc<Path>>,
    /// The processes whose sockets lead to another process, at most one for each server of the map.
    misled: Vec<Member>,
}

impl Sockets {
    pub(crate) fn new(dir: Option<Arc<Path>>) -> Sockets {
        Sockets { dir, misled: Vec::new() }
    }

    /// Returns the path of a server's socket; `None` without a directory.
    pub(crate) fn of_server(&self, server: ServerId) -> Option<Arc<Path>> {
        self.dir.as_ref().map(|dir| dir.join(socket_name(server)).into())
    }

    /// Returns the path of the socket of a process; `None` without a directory, or if another process listens on it.
    pub(crate) fn of_process(&self, member: Member) -> Option<Arc<Path>> {
        self.of_server(member.server).filter(|_| !self.misled.contains(&member))
    }

    /// Records that another process listens on the socket of this one.
    pub(crate) fn note_misled(&mut self, member: Member) {
        if !self.misled.contains(&member) {
            self.misled.push(member);
        }
    }

    /// Keeps the records of the processes that the map has.
    pub(crate) fn retain(&mut self, knows: impl Fn(Member) -> bool) {
        self.misled.retain(|member| knows(*member));
    }
}

/// Starts to connect to the socket at `path` or else to `address`. Returns the socket and the address that was chosen.
pub(crate) fn dial(
    path: Option<Arc<Path>>,
    address: Option<SocketAddr>,
) -> io::Result<(OwnedFd, Address)> {
    if let Some(path) = path {
        match dial_unix(&path) {
            Ok(socket) => return Ok((socket, Address::Unix(path))),
            Err(error) if address.is_none() || !has_no_listener(error) => return Err(error.into()),
            Err(_) => {}
        }
    }
    let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, FLAGS, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok((socket, Address::Tcp(address))),
        Err(error) => Err(error.into()),
    }
}

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn dial_unix(path: &Path) -> rustix::io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    net::connect(&socket, &address)?;
    Ok(socket)
}

/// Returns whether a connect failed because no process listens on the socket, or because too many connections wait for
/// the process. The TCP address may then work.
fn has_no_listener(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use kv_protocol::ids::Incarnation;

    use super::*;

    #[test]
    fn a_server_without_a_listening_socket_is_reached_by_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let path: Arc<Path> = dir.path().join("server_0.sock").into();
        let dialled = |address| dial(Some(Arc::clone(&path)), address).map(|(_, address)| address);
        assert_eq!(dialled(Some(address)).unwrap(), Address::Tcp(address), "there is no socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(dialled(Some(address)).unwrap(), Address::Unix(Arc::clone(&path)));
        drop(listener);
        assert_eq!(dialled(Some(address)).unwrap(), Address::Tcp(address), "nothing listens");
        assert_eq!(dialled(None).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_socket_of_another_process_is_not_used_while_the_map_has_the_process() {
        let member = Member { server: ServerId(1), incarnation: Incarnation(7) };
        let next = Member { incarnation: Incarnation(8), ..member };
        let mut sockets = Sockets::new(Some(Path::new("/run/kv").into()));
        let path = || Some(Path::new("/run/kv/server_1.sock").into());
        assert_eq!(sockets.of_process(member), path());
        sockets.note_misled(member);
        assert_eq!((sockets.of_process(member), sockets.of_process(next)), (None, path()));
        sockets.retain(|known| known == next);
        assert_eq!(sockets.of_process(member), path());
        assert_eq!(Sockets::new(None).of_process(member), None);
    }
}
