//! Ordinary days: orderly exits, suspensions, stalls, full and frozen disks, floods, long reads, and little memory.
//!
//! ```text
//!   Day       the kinds, by name
//!     round     one cluster under load: one event after the other, then its verdict
//!     strike    injects one event, and checks what must not have changed
//!       writes    the long value, and the filling of memory
//!       places    servers that lost their place in a group, according to the coordinator's log
//!     ground    the file system and the limits of a cluster: a disk, a small tmpfs, a cgroup
//! ```

pub(crate) mod ground;
mod places;
pub(crate) mod round;
mod strike;
pub(crate) mod writes;

use std::fmt;

use ground::Ground;

/// A kind of event of an ordinary day. No event may lose an acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Day {
    /// SIGTERM to one server.
    Leave,
    /// Two SIGTERM signals to one server. After the second, the server leaves without waiting for the coordinator's
    /// orders.
    LeaveTwice,
    /// SIGTERM to two neighbours in quick succession.
    LeaveTwo,
    /// SIGTERM to all servers in quick succession. Then the cluster is restarted with `--resume`.
    LeaveAll,
    /// SIGSTOP to all servers and the coordinator, for up to several failure timeouts.
    Suspend,
    /// SIGSTOP to all servers and the coordinator, during the recovery of a killed server.
    SuspendRecovery,
    /// SIGSTOP to all servers and the coordinator, while a server that received SIGTERM is leaving.
    SuspendLeave,
    /// SIGSTOP to all servers and the coordinator, during a stop. Then the cluster is restarted with `--restore`.
    SuspendStop,
    /// SIGSTOP to all servers and the coordinator, while the cluster is being restarted with `--resume`.
    SuspendRestore,
    /// One executor of one server is stopped with ptrace(2).
    Stall,
    /// Clients send requests to one server as fast as it accepts them.
    Flood,
    /// Clients read values of 16 MiB, and others request them without reading the responses.
    LongReaders,
    /// The file system is frozen (fsfreeze).
    Freeze,
    /// The file system is frozen, and a server is killed meanwhile.
    FreezeKill,
    /// The file system is frozen, and the cluster is stopped meanwhile. Then the cluster is restarted with
    /// `--resume`.
    FreezeStop,
    /// The file system is full, and a server receives SIGTERM.
    FullLeave,
    /// The file system is full, and a server is killed.
    FullKill,
    /// The file system is full, and the cluster is stopped. The stop ends when there is room. Then the cluster is
    /// restarted with `--resume`.
    FullStop,
    /// Memory is filled up to `--memory-limit`.
    FillLimit,
    /// Memory is filled up to the limit that the servers derive from their cgroup.
    FillCgroup,
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Day::Leave => "one server stopped by a signal (SIGTERM)",
            Day::LeaveTwice => "one server stopped by two signals (SIGTERM)",
            Day::LeaveTwo => "two neighbours stopped by signals (SIGTERM)",
            Day::LeaveAll => "all servers stopped by signals (SIGTERM), then --resume",
            Day::Suspend => "all processes suspended (SIGSTOP)",
            Day::SuspendRecovery => "all processes suspended during a recovery",
            Day::SuspendLeave => "all processes suspended while a server leaves",
            Day::SuspendStop => "all processes suspended during a stop, then --restore",
            Day::SuspendRestore => "all processes suspended during a --resume",
            Day::Stall => "one executor stalled (ptrace)",
            Day::Flood => "one server flooded",
            Day::LongReaders => "long values read by many clients, or never read",
            Day::Freeze => "file system frozen (fsfreeze)",
            Day::FreezeKill => "file system frozen, a server killed",
            Day::FreezeStop => "file system frozen, cluster stopped, then --resume",
            Day::FullLeave => "file system full, one server stopped by a signal",
            Day::FullKill => "file system full, a server killed",
            Day::FullStop => "file system full, cluster stopped, then --resume",
            Day::FillLimit => "memory filled up to --memory-limit",
            Day::FillCgroup => "memory filled up in a cgroup",
        })
    }
}

/// The kinds in the slice (`--slice`). They take little time and do not need root.
pub(crate) const SLICE: [Day; 4] = [Day::Leave, Day::Suspend, Day::Stall, Day::LongReaders];

impl Ground {
    /// Returns the kinds of events that a cluster in this environment can have.
    pub(crate) fn days(self) -> &'static [Day] {
        match self {
            Ground::Plain => &[
                Day::Leave,
                Day::LeaveTwice,
                Day::LeaveTwo,
                Day::LeaveAll,
                Day::Suspend,
                Day::SuspendRecovery,
                Day::SuspendLeave,
                Day::SuspendStop,
                Day::SuspendRestore,
                Day::Stall,
                Day::Flood,
                Day::LongReaders,
            ],
            Ground::Disk => &[Day::Freeze, Day::FreezeKill, Day::FreezeStop],
            Ground::Tmpfs => &[Day::FullLeave, Day::FullKill, Day::FullStop],
            Ground::Limit => &[Day::FillLimit],
            Ground::Cgroup => &[Day::FillCgroup],
        }
    }
}

/// The plan for the ordinary days of one round.
#[derive(Clone, Debug)]
pub(crate) struct Days {
    pub(crate) ground: Ground,
    pub(crate) kinds: Vec<Day>,
    pub(crate) count: u32,
}

/// The planned number of events of each kind in one round.
const TURNS_A_ROUND: usize = 2;

/// Plans rounds with a total of `count` ordinary days. The possible environments alternate. Returns no rounds if no
/// kind is possible.
pub(crate) fn plan(possible: &[(Ground, Vec<Day>)], count: u32) -> Vec<Days> {
    let mut left = count;
    let mut grounds = possible.iter().filter(|(_, kinds)| !kinds.is_empty()).cycle();
    std::iter::from_fn(|| {
        if left == 0 {
            return None;
        }
        let (ground, kinds) = grounds.next()?;
        let turns = u32::try_from(TURNS_A_ROUND * kinds.len()).unwrap_or(u32::MAX);
        let count = turns.min(left);
        left -= count;
        Some(Days { ground: *ground, kinds: kinds.clone(), count })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Vec<(Ground, Vec<Day>)> {
        Ground::ALL.map(|ground| (ground, ground.days().to_vec())).into()
    }

    #[test]
    fn every_kind_has_a_unique_name_and_one_ground() {
        let mut names: Vec<String> =
            everything().iter().flat_map(|(_, kinds)| kinds).map(Day::to_string).collect();
        assert_eq!(names.len(), 20);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 20);
        assert!(SLICE.iter().all(|day| Ground::Plain.days().contains(day)));
    }

    #[test]
    fn a_run_has_as_many_ordinary_days_as_requested_and_every_kind_of_them() {
        let rounds = plan(&everything(), 100);
        assert_eq!(rounds.iter().map(|days| days.count).sum::<u32>(), 100);
        for ground in Ground::ALL {
            let count = rounds.iter().filter(|days| days.ground == ground).count();
            assert!(count >= 2, "{ground:?}: {count} rounds");
        }
        let only_plain = [(Ground::Plain, vec![Day::Leave]), (Ground::Disk, Vec::new())];
        assert_eq!(plan(&only_plain, 5).len(), 3);
        assert!(plan(&[], 5).is_empty());
    }
}
