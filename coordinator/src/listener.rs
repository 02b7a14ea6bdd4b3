//! Listening and accepting: bounded, and alive when descriptors run out.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use kv_daemon::port_owner;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::logs::Refusals;

/// How long accepting pauses when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a port that an earlier coordinator had is waited for: a server that dialled it in vain may
/// have it as its own end of a connection for a moment.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries.
const PORT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on a port of this machine.
///
/// # Errors
/// The port, the address, and what to do about it.
pub(crate) async fn bind(
    address: IpAddr,
    port: u16,
    purpose: &str,
    flag: &str,
) -> Result<TcpListener, Failure> {
    TcpListener::bind(SocketAddr::new(address, port)).await.map_err(|error| {
        if let Some(user) = other_user(&error, address, port) {
            return Failure::Failed(format!(
                "listen on {address}:{port} for {purpose} ({flag}): {error}; a process of another user \
                 (id {user}) listens there; end it, or choose another port, or 0"
            ));
        }
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program has it; choose another, or 0",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges",
            std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            _ => "choose another port, or 0 for a free one",
        };
        Failure::Failed(format!(
            "listen on {address}:{port} for {purpose} ({flag}): {error}; {advice}"
        ))
    })
}

/// The id of another user whose process has the port.
fn other_user(error: &std::io::Error, address: IpAddr, port: u16) -> Option<u32> {
    (error.kind() == std::io::ErrorKind::AddrInUse)
        .then(|| port_owner::of_another_user(SocketAddr::new(address, port)))?
}

/// Listens again on a port that an earlier coordinator of this cluster had.
///
/// # Errors
/// Fails if another process keeps the port. A process of another user is not waited for.
pub(crate) async fn bind_again(
    address: IpAddr,
    port: u16,
    purpose: &str,
) -> Result<TcpListener, Failure> {
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        let error = match TcpListener::bind(SocketAddr::new(address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        if let Some(user) = other_user(&error, address, port) {
            return Err(Failure::Failed(format!(
                "a process of another user (id {user}) listens on {address}:{port}, where servers \
                 look for their coordinator ({purpose}); nothing was started or changed, and servers \
                 tell it no key. Find it (ss -ltnp 'sport = :{port}'), end it, and start again"
            )));
        }
        if Instant::now() >= deadline {
            return Err(Failure::Failed(format!(
                "listen on {address}:{port} for {purpose}, as the last coordinator of this \
                 cluster did: {error}; nothing was started or changed. Find who has the port (ss \
                 -ltnp 'sport = :{port}'), end it, and start again"
            )));
        }
        sleep(PORT_PAUSE).await;
    }
}

/// A place among a bounded number of connections; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    taken: Rc<Cell<usize>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - 1);
    }
}

/// How many connections a port serves at once.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    taken: Rc<Cell<usize>>,
    most: usize,
}

impl Slots {
    /// At most `most`.
    pub(crate) fn new(most: usize) -> Slots {
        Slots { taken: Rc::default(), most }
    }

    /// One of them, if one is free.
    pub(crate) fn take(&self) -> Option<Slot> {
        if self.taken.get() >= self.most {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Slot { taken: Rc::clone(&self.taken) })
    }
}

/// Connections from which something is expected. If there is one too many, the address with the most connections loses
/// the one that has waited longest. So silent peers never keep out those that send, and no address keeps out another.
#[derive(Debug)]
pub(crate) struct WaitingRoom {
    waiting: RefCell<VecDeque<(IpAddr, Rc<Notify>)>>,
    most: usize,
}

/// A place in a [`WaitingRoom`]; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Rc<WaitingRoom>,
    must_go: Rc<Notify>,
}

impl WaitingRoom {
    /// For at most `most`.
    pub(crate) fn new(most: usize) -> Rc<WaitingRoom> {
        Rc::new(WaitingRoom { waiting: RefCell::default(), most })
    }

    /// Admits one more connection, and closes another if there are too many then.
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

/// The first connection of the address that has the most.
fn oldest_of_crowd<T>(waiting: &VecDeque<(IpAddr, T)>) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for (address, _) in waiting {
        *counts.entry(*address).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    waiting.iter().position(|(address, _)| counts[address] == most)
}

impl Place {
    /// Ends when this one has to go.
    pub(crate) async fn must_go(&self) {
        self.must_go.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.waiting.borrow_mut().retain(|(_, waiting)| !Rc::ptr_eq(waiting, &self.must_go));
    }
}

/// Accepts for ever and hands every connection to `serve`, which must not block.
pub(crate) async fn accept(
    listener: TcpListener,
    refusals: Rc<Refusals>,
    serve: impl Fn(TcpStream, SocketAddr),
) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => serve(stream, address),
            Err(error) => {
                // Most often no descriptor is left. The links that stand live on; those that end
                // give theirs back.
                refusals.note("anyone", format_args!("accept: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_come_back() {
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
    async fn one_too_many_in_the_waiting_room_sends_the_oldest_away_and_nobody_else() {
        let room = WaitingRoom::new(2);
        let (first, second) = (room.enter(HERE), room.enter(HERE));
        let third = room.enter(HERE);
        first.must_go().await;
        drop(first);
        drop(second);
        // The second's place is free: nobody has to go for the fourth.
        let fourth = room.enter(HERE);
        for stays in [third, fourth] {
            assert!(!has_to_go(&stays).await);
        }
        assert!(room.waiting.borrow().is_empty());
    }

    #[tokio::test]
    async fn an_address_that_floods_the_waiting_room_sends_away_its_own() {
        let room = WaitingRoom::new(3);
        let server = room.enter(THERE);
        let strangers: Vec<Place> = (0..20).map(|_| room.enter(HERE)).collect();
        assert!(!has_to_go(&server).await);
        let mut gone = 0;
        for stranger in &strangers {
            gone += usize::from(has_to_go(stranger).await);
        }
        assert_eq!(gone, 18, "two places are left to them");
    }
}
