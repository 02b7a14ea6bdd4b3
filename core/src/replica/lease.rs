//! Leases and graces: fencing without killing (consistency.md §4).
//!
//! ```text
//!   primary   |t_send| ------------- LEASE -------------> |until
//!                 \   PREPARE or BEACON      ^ ACK, echo t_send
//!                  v                        /
//!   follower     receives, reads its clock, acks |now| ------------ GRACE ---------------> |until
//! ```
//!
//! Both ends count from readings of their own clocks. The primary's was taken before sending, the
//! follower's after receiving, so in true time the lease begins no later than the grace; and the
//! grace is long enough that it ends later too, whichever way the clocks drift.

use kv_protocol::FailureTimeout;
use kv_protocol::ids::{Member, Time};

/// A primary's right to answer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lease {
    until: Option<Time>,
}

impl Lease {
    /// An ack came back: the lease counts from the reading that it echoes.
    pub(super) fn renew(&mut self, t_send: Time, times: FailureTimeout) {
        let until = t_send + times.lease();
        self.until = Some(self.until.map_or(until, |earlier| earlier.max(until)));
    }

    /// Whether it holds at this reading.
    pub(super) fn holds(&self, now: Time) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(super) fn until(&self) -> Option<Time> {
        self.until
    }
}

/// The last ack that this replica ever sent, and what it owes for it: until the grace ends, or its
/// receiver is proven dead, this replica serves nothing as a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) to: Member,
    pub(super) until: Time,
}

impl Acked {
    /// An ack to `to`, about to be sent; `now` was read after the messages that it acks came.
    pub(super) fn new(to: Member, now: Time, times: FailureTimeout) -> Acked {
        Acked { to, until: now + times.grace() }
    }
}

/// Whether a primary may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Active,
    /// It waits for the end of its own grace.
    InGrace(Acked),
}

impl Standing {
    /// What a member that acked so, and knows of this death, is when it becomes primary.
    pub(super) fn on_promotion(acked: Option<Acked>, proven: Option<Member>) -> Standing {
        match acked {
            Some(acked) if proven != Some(acked.to) => Standing::InGrace(acked),
            _ => Standing::Active,
        }
    }

    /// Time has passed.
    pub(super) fn advance(&mut self, now: Time) {
        if let Standing::InGrace(acked) = *self
            && now >= acked.until
        {
            *self = Standing::Active;
        }
    }

    /// A process is proven dead; the proof counts only for the very one that was acked last.
    pub(super) fn on_exited(&mut self, member: Member) {
        if matches!(*self, Standing::InGrace(acked) if acked.to == member) {
            *self = Standing::Active;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_protocol::ids::{Incarnation, ServerId};

    use super::*;

    const TIMES: FailureTimeout = FailureTimeout::DEFAULT;

    fn member(incarnation: u64) -> Member {
        Member { server: ServerId(0), incarnation: Incarnation(incarnation) }
    }

    /// The same stretch of true time on a clock that runs `percent` of true speed.
    fn on_a_clock_of(percent: u64, true_time: Duration) -> Duration {
        Duration::from_nanos(u64::try_from(true_time.as_nanos()).unwrap() * percent / 100)
    }

    #[test]
    fn a_lease_ends_before_the_grace_that_was_owed_for_it_whatever_the_clocks_drift() {
        for (primary, follower) in [(90, 110), (110, 90), (100, 100), (90, 90), (110, 110)] {
            // The worst case: no time passes between t_send, receipt and ack.
            let (sent, received) = (Time::from_nanos(7_000), Time::from_nanos(900));
            let mut lease = Lease::default();
            lease.renew(sent, TIMES);
            let acked = Acked::new(member(1), received, TIMES);
            for micros in (0..1_000_000).step_by(50) {
                let elapsed = Duration::from_micros(micros);
                let holds = lease.holds(sent + on_a_clock_of(primary, elapsed));
                let mut standing = Standing::on_promotion(Some(acked), None);
                standing.advance(received + on_a_clock_of(follower, elapsed));
                assert!(!holds || standing != Standing::Active, "{primary} {follower} {micros}");
            }
        }
    }

    #[test]
    fn an_older_echo_takes_no_lease_back() {
        let mut lease = Lease::default();
        lease.renew(Time::from_nanos(100), TIMES);
        lease.renew(Time::from_nanos(50), TIMES);
        assert_eq!(lease.until(), Some(Time::from_nanos(100) + TIMES.lease()));
    }

    #[test]
    fn only_the_death_of_whoever_was_acked_last_ends_a_grace() {
        let acked = Acked::new(member(1), Time::from_nanos(5), TIMES);
        assert_eq!(Standing::on_promotion(None, None), Standing::Active);
        assert_eq!(Standing::on_promotion(Some(acked), Some(member(1))), Standing::Active);
        let mut standing = Standing::on_promotion(Some(acked), Some(member(2)));
        assert_eq!(standing, Standing::InGrace(acked));
        standing.on_exited(member(2));
        assert_eq!(standing, Standing::InGrace(acked));
        standing.on_exited(member(1));
        assert_eq!(standing, Standing::Active);
    }
}
