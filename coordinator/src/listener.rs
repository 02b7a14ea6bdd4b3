//! Listening sockets that accept a bounded number of connections and survive a lack of descriptors.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use kv_daemon::port_owner;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::logs::Refusals;

/// The pause before the next accept if the system has no free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The timeout for binding a port of an earlier coordinator. A server that tries to connect to this port may briefly
/// occupy it as the local port of its own socket.
const PORT_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval between two attempts to bind such a port.
const PORT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on a port of this machine.
///
/// # Errors
/// The port cannot be bound; the message has the address and what to do.
pub(crate) async fn bind(
    address: IpAddr,
    port: u16,
    purpose: &str,
    flag: &str,
) -> Result<TcpListener, Failure> {
    TcpListener::bind(SocketAddr::new(address, port)).await.map_err(|error| {
        if let Some(user) = other_user(&error, address, port) {
            return Failure::Failed(format!(
                "cannot bind {purpose} port {address}:{port} ({flag}): {error}; a process of another user (id \
                 {user}) listens there; stop it, or choose another port, or 0 for any free one"
            ));
        }
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "stop the other process, or choose another port, or 0 for any \
                                              free one",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose another port",
            std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address; check --bind",
            _ => "choose another port, or 0 for any free one",
        };
        Failure::Failed(format!(
            "cannot bind {purpose} port {address}:{port} ({flag}): {error}; {advice}"
        ))
    })
}

/// Returns the id of the user whose process listens on the port, if `error` is a port in use and the process belongs to
/// another user.
fn other_user(error: &std::io::Error, address: IpAddr, port: u16) -> Option<u32> {
    (error.kind() == std::io::ErrorKind::AddrInUse)
        .then(|| port_owner::of_another_user(SocketAddr::new(address, port)))?
}

/// Listens on a port of a coordinator that takes a cluster over. Retries, because the port is usually that of the
/// earlier coordinator and may be occupied for a moment.
///
/// # Errors
/// The port cannot be bound within [`PORT_TIMEOUT`]. A process of another user on the port is an error at once.
pub(crate) async fn bind_again(
    address: IpAddr,
    port: u16,
    purpose: &str,
) -> Result<TcpListener, Failure> {
    let deadline = Instant::now() + PORT_TIMEOUT;
    loop {
        let error = match TcpListener::bind(SocketAddr::new(address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        if let Some(user) = other_user(&error, address, port) {
            return Err(Failure::Failed(format!(
                "cannot bind {purpose} port {address}:{port}: a process of another user (id {user}) listens \
                 there; nothing was started or changed. Servers of this cluster may connect to that process, but \
                 never send it the key. Find the process (ss -ltnp 'sport = :{port}'), stop it, and start again"
            )));
        }
        if Instant::now() >= deadline {
            return Err(Failure::Failed(format!(
                "cannot bind {purpose} port {address}:{port} within {} s: {error}; nothing was started or \
                 changed. Find the process that uses the port (ss -ltnp 'sport = :{port}'), stop it, and start \
                 again",
                PORT_TIMEOUT.as_secs()
            )));
        }
        sleep(PORT_PAUSE).await;
    }
}

/// A slot among a bounded number of connections, released when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    taken: Rc<Cell<usize>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - 1);
    }
}

/// The connections that a port may serve at once.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    taken: Rc<Cell<usize>>,
    most: usize,
}

impl Slots {
    /// Creates `most` free slots.
    pub(crate) fn new(most: usize) -> Slots {
        Slots { taken: Rc::default(), most }
    }

    /// Takes a slot, if one is free.
    pub(crate) fn take(&self) -> Option<Slot> {
        if self.taken.get() >= self.most {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Slot { taken: Rc::clone(&self.taken) })
    }
}

/// A bounded set of connections from which input is expected. If the set is full, the longest-waiting connection of the
/// address with the most connections is closed. So silent peers cannot displace active ones, and no address can
/// displace another.
#[derive(Debug)]
pub(crate) struct WaitingRoom {
    waiting: RefCell<VecDeque<(IpAddr, Rc<Notify>)>>,
    most: usize,
}

/// A place in a [`WaitingRoom`], released when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Rc<WaitingRoom>,
    must_go: Rc<Notify>,
}

impl WaitingRoom {
    /// Creates an empty room for at most `most` connections.
    pub(crate) fn new(most: usize) -> Rc<WaitingRoom> {
        Rc::new(WaitingRoom { waiting: RefCell::default(), most })
    }

    /// Admits a connection, and closes another one if the room is full.
    pub(crate) fn enter(self: &Rc<WaitingRoom>, address: IpAddr) -> Place {
        let must_go = Rc::new(Notify::new());
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back((address, Rc::clone(&must_go)));
        if waiting.len() > self.most
            && let Some((_, oldest)) = oldest_of_crowd(&waiting).and_then(|at| waiting.remove(at))
        {
            oldest.notify_one();
        }
        Place { room: Rc::clone(self), must_go }
    }
}

/// Returns the index of the oldest connection of the address that has the most.
fn oldest_of_crowd<T>(waiting: &VecDeque<(IpAddr, T)>) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for (address, _) in waiting {
        *counts.entry(*address).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    waiting.iter().position(|(address, _)| counts[address] == most)
}

impl Place {
    /// Waits until this connection must make room for another.
    pub(crate) async fn must_go(&self) {
        self.must_go.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.waiting.borrow_mut().retain(|(_, waiting)| !Rc::ptr_eq(waiting, &self.must_go));
    }
}

/// Accepts connections forever and passes each to `serve`, which must not block.
pub(crate) async fn accept(
    listener: TcpListener,
    refusals: Rc<Refusals>,
    serve: impl Fn(TcpStream, SocketAddr),
) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => serve(stream, address),
            Err(error) => {
                // Usually the process has no descriptor left. Open links continue, and each link that ends frees its
                // descriptor.
                refusals.note("any address", format_args!("cannot accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_reusable() {
        let slots = Slots::new(2);
        let first = slots.take();
        let second = slots.take();
        assert!(first.is_some() && second.is_some());
        assert!(slots.take().is_none());
        drop(first);
        assert!(slots.take().is_some());
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

    async fn has_to_go(place: &Place) -> bool {
        tokio::time::timeout(Duration::from_millis(1), place.must_go()).await.is_ok()
    }

    #[tokio::test]
    async fn a_full_waiting_room_closes_only_the_oldest_connection() {
        let room = WaitingRoom::new(2);
        let (first, second) = (room.enter(HERE), room.enter(HERE));
        let third = room.enter(HERE);
        first.must_go().await;
        drop(first);
        drop(second);
        // The second's place is free, so the fourth displaces none.
        let fourth = room.enter(HERE);
        for stays in [third, fourth] {
            assert!(!has_to_go(&stays).await);
        }
        assert!(room.waiting.borrow().is_empty());
    }

    #[tokio::test]
    async fn an_address_that_floods_the_waiting_room_displaces_only_its_own_connections() {
        let room = WaitingRoom::new(3);
        let server = room.enter(THERE);
        let strangers: Vec<Place> = (0..20).map(|_| room.enter(HERE)).collect();
        assert!(!has_to_go(&server).await);
        let mut gone = 0;
        for stranger in &strangers {
            gone += usize::from(has_to_go(stranger).await);
        }
        assert_eq!(gone, 18, "two connections of the address remain");
    }
}
