//! Addresses that do not respond, like those of a host that is down or behind a firewall.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// The maximum number of connections that are opened to fill a queue. The standard library requests a backlog
/// of 128.
const MOST: usize = 1_000;

/// An unresponsive address on the loopback interface.
#[derive(Debug)]
pub struct Silent {
    address: SocketAddr,
    /// The listener stays open so that no other program gets the port.
    _listener: TcpListener,
    /// Connections that fill the listener's queue, so that no other connection is accepted.
    queue: Vec<TcpStream>,
}

impl Silent {
    /// Returns an address that accepts connections and sends nothing.
    pub fn mute() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        Silent { address, _listener: listener, queue: Vec::new() }
    }

    /// Returns an address that refuses connections. It is the local port of a connection, on which no program listens.
    pub fn refusing() -> Silent {
        let mut silent = Silent::mute();
        let stream = TcpStream::connect(silent.address).expect("connect");
        silent.address = stream.local_addr().expect("an address");
        silent.queue.push(stream);
        silent
    }

    /// Returns an address to which no connection completes: packets to it are dropped.
    pub fn unreachable() -> Silent {
        let mut silent = Silent::mute();
        let at_most = Duration::from_millis(200);
        while let Ok(stream) = TcpStream::connect_timeout(&silent.address, at_most) {
            silent.queue.push(stream);
            assert!(silent.queue.len() < MOST, "the queue of the listener does not fill up");
        }
        silent
    }

    /// Returns one address that refuses connections, one that is unreachable, and five that send nothing. Tried in
    /// sequence, with a connect timeout of one second each, the last six would exceed the default deadline of an
    /// operation.
    pub fn all_kinds() -> Vec<Silent> {
        let mut kinds = vec![Silent::refusing(), Silent::unreachable()];
        kinds.extend((0..5).map(|_| Silent::mute()));
        kinds
    }

    /// Returns the address as `host:port`.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }
}
