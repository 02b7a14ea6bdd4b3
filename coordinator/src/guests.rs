//! The connections to the clients port. They are counted by address, so that no address can displace others.
//!
//! ```text
//!   accept -> admit -> Guest: idle (may be closed) <-> request (limited rate per address)
//!               | the port, or the share of its address, is full:
//!               +-> closes the longest-idle connection of the address with the most connections
//! ```
//!
//! Requests above the rate of an address are delayed, not rejected. MAP, which clients need after a failover, has a
//! rate of its own, so that STATUS never delays it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use kv_protocol::client_message::Question;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The maximum rate of MAP requests per second, for all connections of one address together. After an idle second, as
/// many requests as the rate allows in one second are served at once.
const MAPS_PER_SECOND: u32 = 20_000;
/// The maximum rate of STATUS requests per second, counted in the same way.
const STATUSES_PER_SECOND: u32 = 500;

/// The connections of a port. An address may open at most three quarters of them, so that no single address can take
/// all.
#[derive(Debug)]
pub(crate) struct Guests {
    most: usize,
    most_of_one: usize,
    parties: RefCell<HashMap<IpAddr, Party>>,
    total: Cell<usize>,
    closed_for_others: Cell<u64>,
}

/// All connections of one address.
#[derive(Debug, Default)]
struct Party {
    connections: usize,
    /// The idle connections, the longest idle first.
    idle: VecDeque<Rc<Place>>,
    maps: Meter,
    statuses: Meter,
}

/// The rate limiter for one kind of request.
#[derive(Debug, Default)]
struct Meter {
    /// The time until which the served requests use up the rate. A time in the past is unused rate, which allows a
    /// burst.
    paid_until: Option<Instant>,
}

/// The entry of one connection, counted for its address.
#[derive(Debug)]
struct Place {
    address: IpAddr,
    has_left: Cell<bool>,
    must_leave: Notify,
}

/// An admitted connection; its place is released when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    guests: Rc<Guests>,
    place: Rc<Place>,
}

impl Guests {
    /// Creates the state of a port for at most `most` connections.
    pub(crate) fn new(most: usize) -> Rc<Guests> {
        Rc::new(Guests {
            most,
            most_of_one: most - most / 4,
            parties: RefCell::default(),
            total: Cell::new(0),
            closed_for_others: Cell::new(0),
        })
    }

    /// Admits a connection from this address, and closes an idle connection if necessary. Returns `None` if every
    /// connection that could be closed has a request in progress.
    pub(crate) fn admit(self: &Rc<Guests>, address: IpAddr) -> Option<Guest> {
        let address = party_of(address);
        let own = self.parties.borrow().get(&address).map_or(0, |party| party.connections);
        if own >= self.most_of_one {
            self.close_idle_of(address)?;
        } else if self.total.get() >= self.most {
            let crowd = self.largest_idle()?;
            self.close_idle_of(crowd)?;
        }
        self.parties.borrow_mut().entry(address).or_default().connections += 1;
        self.total.set(self.total.get() + 1);
        let place = Place { address, has_left: Cell::new(false), must_leave: Notify::new() };
        Some(Guest { guests: Rc::clone(self), place: Rc::new(place) })
    }

    /// Returns the number of idle connections closed for others so far.
    pub(crate) fn closed_for_others(&self) -> u64 {
        self.closed_for_others.get()
    }

    /// Returns the address with the most connections among those that have an idle one.
    fn largest_idle(&self) -> Option<IpAddr> {
        let parties = self.parties.borrow();
        let with_idle = parties.iter().filter(|(_, party)| !party.idle.is_empty());
        with_idle.max_by_key(|(_, party)| party.connections).map(|(address, _)| *address)
    }

    fn close_idle_of(&self, address: IpAddr) -> Option<()> {
        let oldest = self.parties.borrow_mut().get_mut(&address)?.idle.pop_front()?;
        self.closed_for_others.set(self.closed_for_others.get() + 1);
        oldest.must_leave.notify_one();
        // The place is free from now on, although the connection is closed a moment later.
        self.leave(&oldest);
        Some(())
    }

    fn leave(&self, place: &Rc<Place>) {
        if place.has_left.replace(true) {
            return;
        }
        self.total.set(self.total.get() - 1);
        let mut parties = self.parties.borrow_mut();
        if let Some(party) = parties.get_mut(&place.address) {
            party.connections -= 1;
            party.idle.retain(|idle| !Rc::ptr_eq(idle, place));
            if party.connections == 0 {
                parties.remove(&place.address);
            }
        }
    }
}

impl Guest {
    /// Waits for a request. Returns `None` if the connection must make room for a new one.
    pub(crate) async fn await_request<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        let _idle = Idle::enter(self);
        tokio::select! {
            biased;
            () = self.place.must_leave.notified() => None,
            request = request => Some(request),
        }
    }

    /// Waits until the rate of this address allows this request.
    pub(crate) async fn take_turn(&self, question: Question) {
        let now = Instant::now();
        let due = {
            let mut parties = self.guests.parties.borrow_mut();
            parties.get_mut(&self.place.address).map_or(now, |party| match question {
                Question::Map => party.maps.pay(now, MAPS_PER_SECOND),
                Question::Status => party.statuses.pay(now, STATUSES_PER_SECOND),
            })
        };
        if due > now {
            sleep_until(due).await;
        }
    }
}

impl Meter {
    /// Counts one request at this rate, and returns the time at which it may be served.
    fn pay(&mut self, now: Instant, per_second: u32) -> Instant {
        const CREDIT: Duration = Duration::from_secs(1);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let paid = self.paid_until.map_or(earliest, |paid| paid.max(earliest));
        let due = paid + Duration::from_secs(1) / per_second;
        self.paid_until = Some(due);
        due
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.leave(&self.place);
    }
}

/// Marks a guest as idle while this value exists.
struct Idle<'a>(&'a Guest);

impl Idle<'_> {
    fn enter(guest: &Guest) -> Idle<'_> {
        if !guest.place.has_left.get()
            && let Some(party) = guest.guests.parties.borrow_mut().get_mut(&guest.place.address)
        {
            party.idle.push_back(Rc::clone(&guest.place));
        }
        Idle(guest)
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        let Guest { guests, place } = self.0;
        if let Some(party) = guests.parties.borrow_mut().get_mut(&place.address) {
            party.idle.retain(|idle| !Rc::ptr_eq(idle, place));
        }
    }
}

/// Returns the address under which a connection is counted: for IPv6 only the first 64 bits, because one host may use
/// all addresses that share them.
fn party_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const CROWD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const MOMENT: Duration = Duration::from_millis(1);

    /// Returns whether a guest that waits for a request has to leave.
    async fn has_to_leave(guest: &Guest) -> bool {
        matches!(timeout(MOMENT, guest.await_request(std::future::pending::<()>())).await, Ok(None))
    }

    /// Returns guests that wait for a request, each in a separate task.
    async fn idle(guests: &Rc<Guests>, address: IpAddr, count: usize) -> Vec<Rc<Guest>> {
        let mut all = Vec::new();
        for _ in 0..count {
            let guest = Rc::new(guests.admit(address).expect("a place"));
            let waiting = Rc::clone(&guest);
            tokio::task::spawn_local(async move {
                waiting.await_request(std::future::pending::<()>()).await;
            });
            all.push(guest);
            tokio::task::yield_now().await;
        }
        all
    }

    fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio::task::LocalSet::new().block_on(&runtime.unwrap(), test());
    }

    #[test]
    fn an_address_never_takes_all_places_and_its_own_idle_connections_make_room() {
        run(|| async {
            let guests = Guests::new(8);
            let crowd = idle(&guests, CROWD, 6).await;
            let seventh = guests.admit(CROWD).unwrap();
            assert!(crowd[0].place.has_left.get() && !crowd[1].place.has_left.get());
            assert_eq!(guests.closed_for_others(), 1);
            assert_eq!((guests.total.get(), guests.parties.borrow()[&CROWD].connections), (6, 6));
            assert!(guests.admit(OTHER).is_some(), "other addresses still have places");
            drop((crowd, seventh));
            tokio::task::yield_now().await;
        });
    }

    #[test]
    fn a_full_port_closes_the_longest_idle_connection_of_the_largest_address() {
        run(|| async {
            let guests = Guests::new(4);
            let crowd = idle(&guests, CROWD, 3).await;
            let one = idle(&guests, OTHER, 1).await;
            let newcomer = guests.admit(OTHER).unwrap();
            assert!(crowd[0].place.has_left.get());
            assert!(!one[0].place.has_left.get() && !crowd[1].place.has_left.get());
            assert!(!has_to_leave(&newcomer).await);
            assert_eq!(guests.total.get(), 4);
        });
    }

    #[test]
    fn connections_with_requests_are_never_closed_for_others() {
        run(|| async {
            let guests = Guests::new(4);
            let busy: Vec<Guest> = (0..3).map(|_| guests.admit(CROWD).unwrap()).collect();
            let last = guests.admit(OTHER).unwrap();
            assert!(guests.admit(OTHER).is_none());
            assert!(!has_to_leave(&busy[0]).await && !has_to_leave(&last).await);
            drop(busy);
            assert!(guests.admit(OTHER).is_some());
        });
    }

    #[test]
    fn requests_above_the_rate_of_an_address_are_delayed() {
        let now = Instant::now();
        let mut meter = Meter::default();
        assert!((0..100).all(|_| meter.pay(now, 100) <= now), "a burst is served at once");
        let second = (0..100).map(|_| meter.pay(now, 100)).last().unwrap();
        assert_eq!(second, now + Duration::from_secs(1));
        let later = second + Duration::from_secs(10);
        assert!((0..100).all(|_| meter.pay(later, 100) <= later), "a burst is allowed again");
        assert!(meter.pay(later, 100) > later, "the burst is bounded");
    }

    #[test]
    fn hosts_are_distinguished_by_ipv4_address_or_ipv6_network() {
        let of = |text: &str| party_of(text.parse().unwrap());
        assert_eq!(of("::ffff:10.0.0.1"), CROWD);
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("::1"), of("2001:db8::1"));
    }
}
