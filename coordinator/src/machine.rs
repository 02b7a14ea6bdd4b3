//! The identity of this machine and of its current boot. A process id is meaningful only on its machine, and only
//! until the machine reboots.

use std::fs;

use serde::{Deserialize, Serialize};

/// A machine during one boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boot {
    /// machine-id(5); empty if there is none, as in many containers.
    id: String,
    /// The kernel's id of the current boot.
    boot: String,
}

/// The machine on which the processes that a record calls local can be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// This machine, not rebooted since the record was written.
    Here,
    /// This machine, rebooted since the record was written: the processes have ended.
    Past,
    /// Another machine, which cannot be queried from here.
    Elsewhere,
}

impl Boot {
    /// Returns the machine on which this process runs.
    pub(crate) fn this() -> Boot {
        let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Boot { id: read("/etc/machine-id"), boot: read("/proc/sys/kernel/random/boot_id") }
    }

    /// Returns where the local processes of a record can be looked up. A record without a machine counts as written on
    /// this machine.
    pub(crate) fn place(written_on: Option<&Boot>) -> Place {
        written_on.map_or(Place::Here, |machine| machine.seen_from(&Boot::this()))
    }

    fn seen_from(&self, this: &Boot) -> Place {
        match (self.id == this.id, self.boot == this.boot) {
            (false, _) => Place::Elsewhere,
            (true, false) => Place::Past,
            (true, true) => Place::Here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_looked_up_only_on_their_machine_and_within_its_boot() {
        let machine = |id: &str, boot: &str| Boot { id: id.into(), boot: boot.into() };
        let this = machine("a", "1");
        assert_eq!(machine("a", "1").seen_from(&this), Place::Here);
        assert_eq!(machine("a", "0").seen_from(&this), Place::Past);
        assert_eq!(machine("b", "0").seen_from(&this), Place::Elsewhere);
        assert_eq!(machine("b", "1").seen_from(&this), Place::Elsewhere, "two containers");
        assert_eq!(
            machine("", "0").seen_from(&machine("", "1")),
            Place::Past,
            "no machine has an id"
        );
        assert_eq!(Boot::place(None), Place::Here);
        assert_eq!(Boot::place(Some(&Boot::this())), Place::Here);
    }
}
