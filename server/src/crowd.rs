//! The number of client connections of each address. The counts prevent one address from taking all connections.
//!
//! ```text
//!   0 ............ bounds.clients ............ bounds.clients + bounds.spare_clients
//!     all are accepted |  those from addresses that have fewer    | none
//!                      |  than another; its idle ones are closed  |
//! ```

use std::collections::HashMap;

use kv_protocol::control_message::CrowdReport;
use kv_protocol::ids::Time;
use kv_shard::Address;

/// The time for which a report is sent after the rejection or close that caused it.
const REPORTED_FOR: std::time::Duration = std::time::Duration::from_secs(10);

/// The counts by address. An address without connections is not in the map.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    counts: HashMap<Address, usize>,
    /// The last report and its time. It is about the address that had the most connections at a rejection or a close.
    told: Option<(Time, CrowdReport)>,
    /// The number of connections closed to make room since the start.
    closed: u64,
}

impl Crowd {
    /// Adds a connection to the count of its address.
    pub(crate) fn enter(&mut self, from: Address) {
        *self.counts.entry(from).or_default() += 1;
    }

    /// Removes a connection from the count of its address.
    pub(crate) fn leave(&mut self, from: Address) {
        if let Some(count) = self.counts.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&from);
            }
        }
    }

    /// Returns the address with the most connections, and their number; `None` if there are no connections.
    pub(crate) fn largest(&self) -> Option<(Address, usize)> {
        let largest = self.counts.iter().max_by_key(|(address, count)| (**count, **address));
        largest.map(|(address, count)| (*address, *count))
    }

    /// Returns whether an address would have fewer connections than the address with the most, even with one more.
    pub(crate) fn is_smaller(&self, from: Address) -> bool {
        let mine = self.counts.get(&from).copied().unwrap_or(0);
        self.largest().is_some_and(|(_, most)| mine + 1 < most)
    }

    /// Records that a client was rejected (`closed` is 0), or that `closed` connections of the address with the most
    /// were closed.
    pub(crate) fn note(&mut self, now: Time, closed: usize) {
        self.closed += closed as u64;
        if let Some((address, count)) = self.largest() {
            let connections = u32::try_from(count).unwrap_or(u32::MAX);
            let report = CrowdReport { address: address.ip(), connections, closed: self.closed };
            self.told = Some((now, report));
        }
    }

    /// Returns the last report, for the heartbeat; `None` if it is older than [`REPORTED_FOR`].
    pub(crate) fn report(&self, now: Time) -> Option<CrowdReport> {
        self.told.filter(|(at, _)| now.since(*at) < REPORTED_FOR).map(|(_, report)| report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::of(text.parse().unwrap())
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address_and_mapped_addresses_as_ipv4() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.7"), address("10.0.0.7"));
        assert_ne!(address("10.0.0.7"), address("10.0.0.8"));
    }

    #[test]
    fn an_address_with_fewer_connections_is_smaller_until_it_has_as_many() {
        let (many, few) = (address("10.0.0.1"), address("10.0.0.2"));
        let mut crowd = Crowd::default();
        assert!(!crowd.is_smaller(few), "there is no connection");
        (0..5).for_each(|_| crowd.enter(many));
        for _ in 0..4 {
            assert!(crowd.is_smaller(few) && !crowd.is_smaller(many));
            crowd.enter(few);
        }
        assert!(!crowd.is_smaller(few), "it would have as many");
        assert_eq!(crowd.largest(), Some((many, 5)));
        (0..5).for_each(|_| crowd.leave(many));
        assert_eq!(crowd.largest(), Some((few, 4)));
    }

    #[test]
    fn a_crowd_is_reported_for_a_while() {
        let now = Time::from_nanos(5);
        let mut crowd = Crowd::default();
        crowd.enter(address("10.0.0.1"));
        assert_eq!(crowd.report(now), None);
        crowd.note(now, 3);
        let report = crowd.report(now + REPORTED_FOR / 2).unwrap();
        assert_eq!((report.connections, report.closed), (1, 3));
        assert_eq!(crowd.report(now + REPORTED_FOR), None);
    }
}
