//! A limit on the number of sessions that clients of one address begin. It is needed because a shard with too many
//! sessions expires the oldest ones.
//!
//! ```text
//!   credit of an address   16,384 sessions at once, 512 more a second
//!   without credit         a client without a session gets BUSY and retries; the others are served
//! ```
//!
//! So an address cannot begin so many sessions that the shard drops completion records of other addresses within a
//! minute, the longest time for which a client retries a write.

use std::collections::HashMap;
use std::time::Duration;

use kv_protocol::ids::Time;
use kv_protocol::limits::{MAX_SESSIONS, SESSIONS_FORGOTTEN_AT_ONCE};

use crate::address::Address;

/// The number of sessions that an address may begin at once.
const AT_ONCE: u32 = 16_384;
/// The number of further sessions that an address may begin per second.
const A_SECOND: u32 = 512;
/// The longest deadline of an operation of the client library, in seconds.
const LONGEST_RETRY: u32 = 60;
const _: () = assert!(
    (AT_ONCE + LONGEST_RETRY * A_SECOND) as usize <= MAX_SESSIONS - SESSIONS_FORGOTTEN_AT_ONCE
);

/// The number of addresses with a separate credit; all further addresses share one credit.
const MAX_ADDRESSES: usize = 4_096;

const PAYS: Duration = Duration::from_nanos(1_000_000_000 / A_SECOND as u64);
const CREDIT: Duration = PAYS.checked_mul(AT_ONCE).expect("it is about half a minute");

/// The session credits of a shard.
#[derive(Debug, Default)]
pub(crate) struct NewSessions {
    /// The time at which the debt of each address is paid off. Each session that begins adds [`PAYS`].
    paid_at: HashMap<Address, Time>,
    /// The time until which an address may be without credit. Sessions that begin later need no check.
    looks_until: Time,
}

impl NewSessions {
    /// Returns whether a client of this address may begin a session.
    pub(crate) fn may_begin(&self, now: Time, from: Address) -> bool {
        now >= self.looks_until || self.debt(now, self.account(from)) < CREDIT
    }

    /// Records that a client of this address has begun a session.
    pub(crate) fn note(&mut self, now: Time, from: Address) {
        if self.paid_at.len() >= MAX_ADDRESSES && !self.paid_at.contains_key(&from) {
            self.paid_at.retain(|_, paid_at| *paid_at > now);
        }
        let account = self.account(from);
        let debt = self.debt(now, account) + PAYS;
        self.paid_at.insert(account, now + debt);
        if debt >= CREDIT {
            self.looks_until = self.looks_until.max(now + (debt - CREDIT) + PAYS);
        }
    }

    fn debt(&self, now: Time, account: Address) -> Duration {
        self.paid_at.get(&account).map_or(Duration::ZERO, |paid_at| paid_at.since(now))
    }

    fn account(&self, from: Address) -> Address {
        match self.paid_at.len() < MAX_ADDRESSES || self.paid_at.contains_key(&from) {
            true => from,
            false => Address::UNKNOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_nanos(77_000_000_000);

    #[test]
    fn an_address_has_a_credit_that_is_restored_over_time() {
        let mut sessions = NewSessions::default();
        let (crowd, other) = (Address::LOOPBACK, Address::numbered(7));
        let begin = |sessions: &mut NewSessions, now, from| {
            let may = sessions.may_begin(now, from);
            if may {
                sessions.note(now, from);
            }
            may
        };
        for n in 0..AT_ONCE {
            assert!(begin(&mut sessions, NOW, crowd), "{n}");
        }
        assert!(!begin(&mut sessions, NOW, crowd));
        assert!(begin(&mut sessions, NOW, other));
        let later = NOW + Duration::from_secs(1);
        let begun = (0..2 * A_SECOND).filter(|_| begin(&mut sessions, later, crowd)).count();
        assert!(begun.abs_diff(A_SECOND as usize) <= 1, "{begun}");
        let rested = later + CREDIT;
        let begun = (0..2 * AT_ONCE).filter(|_| begin(&mut sessions, rested, crowd)).count();
        assert_eq!(begun, AT_ONCE as usize);
    }

    #[test]
    fn addresses_are_bounded_and_those_without_debt_make_room() {
        let mut sessions = NewSessions::default();
        for n in 0..3 * MAX_ADDRESSES {
            sessions.note(NOW, Address::numbered(u32::try_from(n).unwrap() + 1));
        }
        assert!(sessions.paid_at.len() <= MAX_ADDRESSES + 1);
        let later = NOW + Duration::from_secs(60);
        sessions.note(later, Address::LOOPBACK);
        assert_eq!(sessions.paid_at.len(), 1);
    }
}
