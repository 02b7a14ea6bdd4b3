//! Addresses at which nobody answers, as those of a host that is down or behind a firewall.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Most connections that are tried to fill a queue; the standard library asks for 128 places.
const MOST: usize = 1_000;

/// An address on the loopback interface; see the module.
#[derive(Debug)]
pub struct Silent {
    address: SocketAddr,
    /// Kept so that nobody else gets the port.
    _listener: TcpListener,
    /// What fills the queue of the listener, so that it has no place for one more.
    queue: Vec<TcpStream>,
}

impl Silent {
    /// One that takes connections and sends nothing.
    pub fn mute() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        Silent { address, _listener: listener, queue: Vec::new() }
    }

    /// One that refuses connections: the port of a connection's near end, at which nobody listens.
    pub fn refusing() -> Silent {
        let mut silent = Silent::mute();
        let stream = TcpStream::connect(silent.address).expect("connect");
        silent.address = stream.local_addr().expect("an address");
        silent.queue.push(stream);
        silent
    }

    /// One to which no connection comes about: packets to it are dropped.
    pub fn unreachable() -> Silent {
        let mut silent = Silent::mute();
        let at_most = Duration::from_millis(200);
        while let Ok(stream) = TcpStream::connect_timeout(&silent.address, at_most) {
            silent.queue.push(stream);
            assert!(silent.queue.len() < MOST, "the queue of a listener has no end");
        }
        silent
    }

    /// Six that keep a client waiting in all ways, behind one that refuses it. One after the other, each within
    /// a connect timeout of a second, they would take longer than an operation has by default.
    pub fn all_kinds() -> Vec<Silent> {
        let mut kinds = vec![Silent::refusing(), Silent::unreachable()];
        kinds.extend((0..5).map(|_| Silent::mute()));
        kinds
    }

    /// `host:port` of it.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }
}
