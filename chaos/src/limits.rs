//! The limits on the stalls of clients that a fault of one server or of the coordinator may cause.
//!
//! ```text
//!   proof of death      the other replica takes over at once
//!   silence             500 ms silence, 250 ms for the votes, 625 ms grace
//!   a new coordinator   625 ms grace and 500 ms silence until every live process has reported
//! ```
//!
//! The delays of a busy machine are added. If the coordinator is dead or clients are cut off, no recovery is
//! possible; this time is measured and added too.

use std::time::Duration;

use kv_protocol::limits::{GRACE, HEARD_WITHIN};

use crate::faults::{Fault, Two};

/// The additional delays of a machine with two busy cores.
const SLACK: Duration = Duration::from_secs(1);
/// The failure timeout (the default of `coord -t`).
const SILENCE: Duration = Duration::from_millis(500);

/// The limit after a proof of death.
pub(crate) const AFTER_DEATH: Duration = SLACK;
/// The limit after silence.
pub(crate) const AFTER_SILENCE: Duration =
    SLACK.saturating_add(SILENCE).saturating_add(HEARD_WITHIN).saturating_add(GRACE);

/// Returns the longest stall that a fault may cause, not counting the time for which the coordinator is dead or clients
/// are cut off.
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
    fn a_fault_without_proof_of_death_has_the_longer_limit() {
        assert_eq!(of(Fault::Kill), AFTER_DEATH);
        assert!(of(Fault::Hang) >= AFTER_DEATH + GRACE + SILENCE);
        assert!(of(Fault::Two(Two::KillAndCoordinator)) >= AFTER_DEATH + GRACE + SILENCE);
        let all = faults::all(true);
        assert!(all.iter().all(|fault| of(*fault) < kv_protocol::limits::DEFAULT_DEADLINE / 2));
    }
}
