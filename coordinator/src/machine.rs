//! Which machine this is, and since when: the number of a process means something only there, and only
//! until the machine starts again.

use std::fs;

use serde::{Deserialize, Serialize};

/// A machine, between two starts of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// machine-id(5); empty where there is none, as in many containers.
    id: String,
    /// Its kernel's name for the time since its last start.
    boot: String,
}

/// Where those who called a machine `localhost` are to be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Among the processes of this one.
    Here,
    /// Nowhere: it has started again since.
    Past,
    /// On another one, where nobody can be asked.
    Elsewhere,
}

impl Machine {
    /// The one this process runs on.
    pub(crate) fn this() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Machine { id: read("/etc/machine-id"), boot: read("/proc/sys/kernel/random/boot_id") }
    }

    /// Where this one is, if it was `localhost` to whoever wrote a record. A record that does not say is
    /// taken for one of this machine.
    pub(crate) fn place(written_on: Option<&Machine>) -> Place {
        written_on.map_or(Place::Here, |machine| machine.seen_from(&Machine::this()))
    }

    fn seen_from(&self, this: &Machine) -> Place {
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
    fn processes_are_looked_for_on_their_machine_since_its_last_start_and_nowhere_else() {
        let machine = |id: &str, boot: &str| Machine { id: id.into(), boot: boot.into() };
        let this = machine("a", "1");
        assert_eq!(machine("a", "1").seen_from(&this), Place::Here);
        assert_eq!(machine("a", "0").seen_from(&this), Place::Past);
        assert_eq!(machine("b", "0").seen_from(&this), Place::Elsewhere);
        assert_eq!(machine("b", "1").seen_from(&this), Place::Elsewhere, "two containers");
        assert_eq!(machine("", "0").seen_from(&machine("", "1")), Place::Past, "nobody has a name");
        assert_eq!(Machine::place(None), Place::Here);
        assert_eq!(Machine::place(Some(&Machine::this())), Place::Here);
    }
}
