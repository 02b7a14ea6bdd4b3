//! Everything that is done to a cluster, by name, and what comes next.

use std::collections::BTreeMap;
use std::fmt;

use crate::random::Random;

/// Which packets do not arrive, seen from the victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Both,
    /// What it sends.
    Out,
    /// What it is sent.
    In,
}

/// Whom the victim is cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Far {
    /// The next server, which holds its copies.
    Next,
    Coordinator,
    Clients,
    /// All of these, and all other servers.
    Everybody,
}

/// Two things at once, to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Two {
    HangAndKill,
    CutAndHang,
    CutAndKill,
    KillAndCoordinator,
}

/// What is done to one server, or to the coordinator, or to both; to be survived without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Kill,
    /// Longer than the grace.
    Hang,
    /// The process that replaces a server that was killed, in this step of the recovery; in step 0 what
    /// is left of the one before.
    Replacement(u8),
    /// The coordinator, when all is well or in this step of a recovery.
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
                    Far::Everybody => "everybody",
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

/// All that can be done here.
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

/// A kind that has struck counts for so many that were planned and came too late for their step.
const STRUCK: u32 = 3;

/// What has struck so far, by name, so that every kind gets its turn. A short step is often over before
/// it is struck; that counts a little too, or such a step would take all turns.
#[derive(Debug, Default)]
pub(crate) struct Turns(BTreeMap<String, u32>);

impl Turns {
    /// One of the kinds that had the fewest turns.
    pub(crate) fn next<F: Copy + fmt::Display>(&self, possible: &[F], random: &mut Random) -> F {
        let had = |fault: &F| self.0.get(&fault.to_string()).copied().unwrap_or(0);
        let fewest = possible.iter().map(had).min().unwrap_or(0);
        let due: Vec<F> = possible.iter().copied().filter(|f| had(f) == fewest).collect();
        due[random.index(due.len())]
    }

    /// This was planned, and that has struck.
    pub(crate) fn count(&mut self, planned: impl fmt::Display, struck: &str) {
        let planned = planned.to_string();
        if planned != struck {
            *self.0.entry(planned).or_default() += 1;
        }
        *self.0.entry(struck.to_owned()).or_default() += STRUCK;
    }
}

/// What is done about the second of two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Shutdown,
    Isolate,
}

impl Policy {
    /// As `coord --on-double-fault` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Policy::Shutdown => "shutdown",
            Policy::Isolate => "isolate",
        }
    }
}

/// A server that dies while its neighbour is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Double {
    pub(crate) policy: Policy,
    /// The next server (B) dies; otherwise the one before (C).
    pub(crate) next: bool,
    /// In this step.
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
    fn every_kind_gets_its_turn_and_has_a_name_of_its_own() {
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
    fn a_step_that_was_missed_is_tried_again_and_does_not_take_all_turns() {
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
    fn without_root_nothing_is_cut() {
        let possible = all(false);
        assert!(!possible.iter().any(|fault| fault.to_string().contains("cut")));
        assert_eq!(possible.len(), 17);
    }
}
