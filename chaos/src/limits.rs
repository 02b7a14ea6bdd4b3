//! How long clients may be kept waiting at most by what is done to one server or to the coordinator.
//!
//! ```text
//!   proof of death      the other holder goes on at once
//!   silence             500 ms silence, 250 ms for the votes, 625 ms grace
//!   a new coordinator   625 ms grace and 500 ms silence until everybody who lives has reported
//! ```
//!
//! To these comes what the machine needs, and as long as the coordinator is dead, or clients are cut off,
//! so long nobody can help: that is added where it was measured.

use std::time::Duration;

use kv_protocol::limits::{GRACE, HEARD_WITHIN};

use crate::faults::{Fault, Two};

/// What a machine with two busy cores needs beyond the times of the design.
const SLACK: Duration = Duration::from_secs(1);
/// `coord -t`.
const SILENCE: Duration = Duration::from_millis(500);

/// By proof of death.
pub(crate) const AFTER_DEATH: Duration = SLACK;
/// By silence.
pub(crate) const AFTER_SILENCE: Duration =
    SLACK.saturating_add(SILENCE).saturating_add(HEARD_WITHIN).saturating_add(GRACE);

/// The longest stall that a fault may cause, beside the time that the coordinator, or the clients' link,
/// is away.
pub(crate) fn of(fault: Fault) -> Duration {
    match fault {
        Fault::Kill | Fault::Replacement(1..) => AFTER_DEATH,
        Fault::Hang | Fault::Replacement(0) | Fault::Two(Two::HangAndKill) => AFTER_SILENCE,
        Fault::Coordinator(_) | Fault::Two(Two::KillAndCoordinator) => SLACK + GRACE + SILENCE,
        Fault::Cut(..) | Fault::Two(Two::CutAndHang | Two::CutAndKill) => AFTER_SILENCE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults;

    #[test]
    fn whoever_must_be_waited_for_has_the_longer_limit() {
        assert_eq!(of(Fault::Kill), AFTER_DEATH);
        assert!(of(Fault::Hang) >= AFTER_DEATH + GRACE + SILENCE);
        assert!(of(Fault::Two(Two::KillAndCoordinator)) >= AFTER_DEATH + GRACE + SILENCE);
        let all = faults::all(true);
        assert!(all.iter().all(|fault| of(*fault) < kv_protocol::limits::DEFAULT_DEADLINE / 2));
    }
}
