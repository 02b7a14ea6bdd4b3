//! Leases and graces: they stop a primary from serving without killing it (consistency.md §4).
//!
//! ```text
//!   primary   |t_send| ------------- LEASE -------------> |until
//!                 \   PREPARE or BEACON      ^ ACK, echo t_send
//!                  v                        /
//!   follower     receives, reads its clock, acks |now| ------------ GRACE ---------------> |until
//! ```
//!
//! Each end measures from a reading of its own clock. The primary reads its clock before it sends, the follower after
//! it has received. So in true time the lease begins no later than the grace. The grace is so much longer that it ends
//! after the lease at every permitted clock drift.

use kv_protocol::FailureTimeout;
use kv_protocol::ids::{Member, Time};

/// The permission of a primary to serve reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lease {
    until: Option<Time>,
}

impl Lease {
    /// Extends the lease on an ack. The lease counts from the clock reading that the ack echoes.
    pub(super) fn renew(&mut self, t_send: Time, times: FailureTimeout) {
        let until = t_send + times.lease();
        self.until = Some(self.until.map_or(until, |earlier| earlier.max(until)));
    }

    /// Returns whether the lease holds at this reading.
    pub(super) fn holds(&self, now: Time) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(super) fn until(&self) -> Option<Time> {
        self.until
    }
}

/// The last ack that this replica sent, and the grace that the ack implies. If this replica becomes primary, it serves
/// nothing until the grace ends or the receiver of the ack is proven dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) to: Member,
    pub(super) until: Time,
}

impl Acked {
    /// Creates the record of an ack to `to` that is about to be sent. `now` was read after the acked messages arrived.
    pub(super) fn new(to: Member, now: Time, times: FailureTimeout) -> Acked {
        Acked { to, until: now + times.grace() }
    }
}

/// The permission of a primary to serve requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Serves.
    Active,
    /// Serves nothing before the end of its grace.
    InGrace(Acked),
}

impl Standing {
    /// Returns the standing of a member that becomes a primary, given its last ack and the last proven death.
    pub(super) fn on_promotion(acked: Option<Acked>, proven: Option<Member>) -> Standing {
        match acked {
            Some(acked) if proven != Some(acked.to) => Standing::InGrace(acked),
            _ => Standing::Active,
        }
    }

    /// Ends the grace if its time has passed.
    pub(super) fn advance(&mut self, now: Time) {
        if let Standing::InGrace(acked) = *self
            && now >= acked.until
        {
            *self = Standing::Active;
        }
    }

    /// Ends the grace if the process proven dead is the one that was acked last.
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

    /// Returns the time that a clock running at `percent` of true speed shows for a duration of true time.
    fn on_a_clock_of(percent: u64, true_time: Duration) -> Duration {
        Duration::from_nanos(u64::try_from(true_time.as_nanos()).unwrap() * percent / 100)
    }

    #[test]
    fn a_lease_ends_before_the_grace_of_its_ack_at_any_permitted_clock_drift() {
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
    fn an_older_echo_does_not_shorten_the_lease() {
        let mut lease = Lease::default();
        lease.renew(Time::from_nanos(100), TIMES);
        lease.renew(Time::from_nanos(50), TIMES);
        assert_eq!(lease.until(), Some(Time::from_nanos(100) + TIMES.lease()));
    }

    #[test]
    fn only_the_death_of_the_member_acked_last_ends_a_grace() {
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
