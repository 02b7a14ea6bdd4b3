//! The kinds of faults, and the choice of the next one.

use std::collections::BTreeMap;
use std::fmt;

use kv_testkit::random::Random;

/// The direction of the dropped packets, relative to the victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Both,
    /// Packets from the victim.
    Out,
    /// Packets to the victim.
    In,
}

/// The processes from which the victim is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Far {
    /// The next server, which is the secondary of the victim's own group.
    Next,
    Coordinator,
    Clients,
    /// The coordinator, the clients and all other servers.
    Everybody,
}

/// Two faults in quick succession: of one server, or of a server and the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Two {
    HangAndKill,
    CutAndHang,
    CutAndKill,
    KillAndCoordinator,
}

/// A fault of one server, of the coordinator, or of both, which the cluster must survive without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    /// A suspension (SIGSTOP) that is longer than the grace.
    Hang,
    /// A kill in this step of a recovery: of the process that replaces a killed server, or, in step 0, of the old
    /// process, which is hung.
    Replacement(u8),
    /// A kill of the coordinator: in this step of a recovery, or at rest (`None`).
    Coordinator(Option<u8>),
    Cut(Far, Way),
    Two(Two),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill => f.write_str("server killed"),
            Fault::Hang => f.write_str("server stopped longer than the grace (SIGSTOP, SIGCONT)"),
            Fault::Replacement(step) => write!(f, "replacement killed in step {step}"),
            Fault::Coordinator(None) => f.write_str("coordinator killed and started again"),
            Fault::Coordinator(Some(step)) => {
                write!(f, "coordinator killed in step {step} and started again")
            }
            Fault::Cut(far, way) => {
                let far = match far {
                    Far::Next => "next server",
                    Far::Coordinator => "coordinator",
                    Far::Clients => "clients",
                    Far::Everybody => "all others",
                };
                match way {
                    Way::Both => write!(f, "link cut: server - {far}"),
                    Way::Out => write!(f, "link cut one way: server -> {far}"),
                    Way::In => write!(f, "link cut one way: {far} -> server"),
                }
            }
            Fault::Two(Two::HangAndKill) => f.write_str("two: server stopped, then killed"),
            Fault::Two(Two::CutAndHang) => {
                f.write_str("two: link to the next server cut, server stopped")
            }
            Fault::Two(Two::CutAndKill) => {
                f.write_str("two: link to the next server cut, server killed")
            }
            Fault::Two(Two::KillAndCoordinator) => {
                f.write_str("two: server and coordinator killed")
            }
        }
    }
}

/// Returns all possible faults; those that cut links only if `cuts` is true.
pub(crate) fn all(cuts: bool) -> Vec<Fault> {
    let mut all = vec![Fault::Kill, Fault::Hang, Fault::Two(Two::HangAndKill)];
    all.extend((0..=5).map(Fault::Replacement));
    all.push(Fault::Coordinator(None));
    all.extend((0..=5).map(|step| Fault::Coordinator(Some(step))));
    all.push(Fault::Two(Two::KillAndCoordinator));
    if cuts {
        for far in [Far::Next, Far::Coordinator, Far::Clients, Far::Everybody] {
            all.extend([Way::Both, Way::Out, Way::In].map(|way| Fault::Cut(far, way)));
        }
        all.extend([Fault::Two(Two::CutAndHang), Fault::Two(Two::CutAndKill)]);
    }
    all
}

/// The weight of a fault that was injected. A planned fault that came too late for its step has weight 1.
const STRUCK: u32 = 3;

/// The weighted number of faults of each kind, by name. It lets all kinds occur equally often. A planned fault that
/// came too late for its step also counts, with weight 1. Otherwise a short step would be planned again and again.
#[derive(Debug, Default)]
pub(crate) struct Turns(BTreeMap<String, u32>);

impl Turns {
    /// Returns a random kind among those with the lowest count.
    pub(crate) fn next<F: Copy + fmt::Display>(&self, possible: &[F], random: &mut Random) -> F {
        let had = |fault: &F| self.0.get(&fault.to_string()).copied().unwrap_or(0);
        let fewest = possible.iter().map(had).min().unwrap_or(0);
        let due: Vec<F> = possible.iter().copied().filter(|f| had(f) == fewest).collect();
        due[random.index(due.len())]
    }

    /// Counts a fault, given the planned kind and the name of the kind that was injected.
    pub(crate) fn count(&mut self, planned: impl fmt::Display, struck: &str) {
        let planned = planned.to_string();
        if planned != struck {
            *self.0.entry(planned).or_default() += 1;
        }
        *self.0.entry(struck.to_owned()).or_default() += STRUCK;
    }
}

/// The policy on a double fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Shutdown,
    Isolate,
}

impl Policy {
    /// Returns the value of `--on-double-fault` for `coord`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Policy::Shutdown => "shutdown",
            Policy::Isolate => "isolate",
        }
    }
}

/// A server that is killed during the recovery of its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Double {
    pub(crate) policy: Policy,
    /// True if the next server in the ring is killed; otherwise the previous one.
    pub(crate) next: bool,
    /// The step of the recovery in which the neighbour is killed.
    pub(crate) step: u8,
}

impl fmt::Display for Double {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.next { "next" } else { "previous" };
        write!(f, "{who} server killed during a recovery ({})", self.policy.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_gets_its_turn_and_has_a_unique_name() {
        let possible = all(true);
        let (mut turns, mut random) = (Turns::default(), Random::new(1));
        for _ in 0..2 * possible.len() {
            let fault = turns.next(&possible, &mut random);
            turns.count(fault, &fault.to_string());
        }
        assert!(turns.0.values().all(|had| *had == 2 * STRUCK), "{turns:?}");
        assert_eq!(turns.0.len(), possible.len());
        let mut names: Vec<String> = possible.iter().map(Fault::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), possible.len());
    }

    #[test]
    fn a_missed_step_is_retried_and_does_not_take_all_turns() {
        let (short, long) = (Fault::Replacement(4), Fault::Replacement(5));
        let (mut turns, mut random, mut tried) = (Turns::default(), Random::new(1), 0);
        for _ in 0..40 {
            let fault = turns.next(&[short, long], &mut random);
            tried += u32::from(fault == short);
            turns.count(fault, &long.to_string());
        }
        assert!((30..40).contains(&tried), "{tried}");
    }

    #[test]
    fn without_root_no_link_is_cut() {
        let possible = all(false);
        assert!(!possible.iter().any(|fault| fault.to_string().contains("cut")));
        assert_eq!(possible.len(), 17);
    }
}
