//! The admission of connections: the limits on their number and memory, and the permits of those that are open.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kv_protocol::control_message::CrowdReport;
use kv_protocol::ids::Time;
use kv_shard::{Address, ConnectionMemory, Port};

use crate::clock;
use crate::crowd::Crowd;
use crate::descriptors::ConnectionBounds;
use crate::mutex::lock;

/// The numbers of open connections, and the limits on connections.
#[derive(Debug)]
pub(crate) struct Admission {
    bounds: ConnectionBounds,
    memory: Arc<ConnectionMemory>,
    clients: AtomicUsize,
    /// The client connections by address.
    crowd: Mutex<Crowd>,
    peers: AtomicUsize,
}

impl Admission {
    /// Creates the admission of a server without connections.
    pub(crate) fn new(bounds: ConnectionBounds, memory: Arc<ConnectionMemory>) -> Arc<Admission> {
        Arc::new(Admission {
            bounds,
            memory,
            clients: AtomicUsize::new(0),
            crowd: Mutex::default(),
            peers: AtomicUsize::new(0),
        })
    }

    /// Returns the number of open client connections.
    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Returns the limits on connections.
    pub(crate) fn bounds(&self) -> ConnectionBounds {
        self.bounds
    }

    /// Returns the memory budget of the connections.
    pub(crate) fn memory(&self) -> &Arc<ConnectionMemory> {
        &self.memory
    }

    /// Admits a connection and counts it; returns `None` if its port has reached the limit. A few clients over the
    /// limit are still admitted if another address keeps more connections than theirs. Then idle connections of the
    /// address with the most connections are to be closed ([`Admission::crowding`]).
    pub(crate) fn admit(self: &Arc<Admission>, port: Port, from: Address) -> Option<Permit> {
        let is_admitted = match port {
            Port::Clients | Port::Redis => self.admit_client(from),
            Port::Servers => {
                let is_admitted = self.peers.fetch_add(1, Ordering::Relaxed) < self.bounds.peers;
                if !is_admitted {
                    self.peers.fetch_sub(1, Ordering::Relaxed);
                }
                is_admitted
            }
        };
        is_admitted.then(|| Permit { admission: Arc::clone(self), port, from })
    }

    fn admit_client(&self, from: Address) -> bool {
        let mut crowd = lock(&self.crowd);
        // Only this function, which holds the lock, increments the count.
        let clients = self.clients();
        let is_full = clients >= self.bounds.clients;
        let has_spare = clients < self.bounds.clients + self.bounds.spare_clients;
        if is_full && !(has_spare && crowd.is_smaller(from)) {
            crowd.note(clock::now(), 0);
            return false;
        }
        crowd.enter(from);
        self.clients.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Returns the address with the most clients, and the number of its idle connections that are to be closed. Returns
    /// `None` unless there are more clients than the limit.
    pub(crate) fn crowding(&self) -> Option<(Address, usize)> {
        let excess =
            self.clients().checked_sub(self.bounds.clients).filter(|excess| *excess > 0)?;
        let (address, _) = lock(&self.crowd).largest()?;
        Some((address, excess))
    }

    /// Records that `closed` connections were closed to make room.
    pub(crate) fn note_closed(&self, now: Time, closed: usize) {
        lock(&self.crowd).note(now, closed);
    }

    /// Returns the heartbeat's report about the address with the most connections; `None` if the limit caused no recent
    /// rejection or close.
    pub(crate) fn crowd_report(&self, now: Time) -> Option<CrowdReport> {
        lock(&self.crowd).report(now)
    }
}

/// The permit of one open connection. Dropping it frees the slot of the connection.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    port: Port,
    from: Address,
}

impl Permit {
    /// Returns the address from which the connection comes.
    pub(crate) fn from(&self) -> Address {
        self.from
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.port {
            Port::Clients | Port::Redis => {
                lock(&self.admission.crowd).leave(self.from);
                self.admission.clients.fetch_sub(1, Ordering::Relaxed);
            }
            Port::Servers => {
                self.admission.peers.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Address = Address::LOOPBACK;

    #[test]
    fn at_the_limit_a_smaller_address_is_admitted_and_the_largest_makes_room() {
        let bounds = ConnectionBounds { clients: 10, spare_clients: 2, ..ConnectionBounds::WIDEST };
        let admission = Admission::new(bounds, ConnectionMemory::new(None, None, 2));
        let other = Address::UNKNOWN;
        let mut crowd: Vec<Permit> =
            (0..10).map(|_| admission.admit(Port::Clients, HERE).unwrap()).collect();
        assert_eq!(admission.crowding(), None);
        assert!(admission.admit(Port::Clients, HERE).is_none(), "the limit is reached");
        let _first = admission.admit(Port::Clients, other).unwrap();
        let _second = admission.admit(Port::Clients, other).unwrap();
        assert!(admission.admit(Port::Clients, other).is_none(), "the spare places are taken");
        assert_eq!(admission.crowding(), Some((HERE, 2)));
        crowd.truncate(8);
        assert_eq!(admission.crowding(), None);
        assert!(admission.admit(Port::Clients, HERE).is_none());
        assert!(admission.admit(Port::Clients, other).is_some());
        assert_eq!(admission.crowd_report(clock::now()).unwrap().connections, 8);
    }
}
