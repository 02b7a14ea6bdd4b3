//! The exit codes of a server. The help text of the server and `docs/exit-codes.md` list them. The coordinator
//! translates them into text.

/// The reason for a server's exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum ServerExit {
    /// An orderly stop: everything the server held is in complete dumps.
    Stopped = 0,
    /// A stop in which a dump could not be written.
    NotDumped = 1,
    /// A wrong command line; nothing was started.
    Usage = 2,
    /// A log that cannot be opened.
    Log = 10,
    /// An unusable io_uring.
    IoUring = 11,
    /// A limit on locked memory that is too low.
    Memlock = 12,
    /// A port that is in use or not permitted.
    Listen = 13,
    /// A host name of the coordinator that cannot be resolved.
    CoordinatorHost = 14,
    /// An executor that did not start.
    Executor = 15,
    /// Another failed system call, such as the start of a thread.
    System = 16,
    /// A rejection by the coordinator.
    Refused = 17,
    /// No response from any coordinator since the start.
    NoCoordinator = 18,
    /// A limit on open files that is too low.
    OpenFiles = 19,
    /// No coordinator for longer than `--orphan-timeout`.
    Orphaned = 20,
    /// A dump that the server must load at the start, and cannot.
    Load = 21,
    /// A cluster key that cannot be read.
    Key = 25,
    /// A broken invariant.
    Panicked = 70,
    /// An exit forced by the watchdog because a thread was hung.
    Stalled = 71,
}

impl ServerExit {
    /// All exits, by code.
    pub const ALL: [ServerExit; 18] = [
        ServerExit::Stopped,
        ServerExit::NotDumped,
        ServerExit::Usage,
        ServerExit::Log,
        ServerExit::IoUring,
        ServerExit::Memlock,
        ServerExit::Listen,
        ServerExit::CoordinatorHost,
        ServerExit::Executor,
        ServerExit::System,
        ServerExit::Refused,
        ServerExit::NoCoordinator,
        ServerExit::OpenFiles,
        ServerExit::Orphaned,
        ServerExit::Load,
        ServerExit::Key,
        ServerExit::Panicked,
        ServerExit::Stalled,
    ];

    /// Returns the exit code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the exit with this code.
    pub fn from_code(code: i32) -> Option<ServerExit> {
        ServerExit::ALL.into_iter().find(|exit| i32::from(exit.code()) == code)
    }

    /// Returns whether the exit is orderly: no data is lost, because complete dumps hold everything
    /// that the process held.
    pub fn is_in_order(self) -> bool {
        matches!(self, ServerExit::Stopped | ServerExit::Orphaned)
    }

    /// Returns the meaning of the exit, as in messages and in the manual.
    pub fn meaning(self) -> &'static str {
        match self {
            ServerExit::Stopped => "it received a stop order or signal",
            ServerExit::NotDumped => "it stopped, but could not write a dump",
            ServerExit::Usage => "its command line is invalid",
            ServerExit::Log => "its log cannot be opened",
            ServerExit::IoUring => "io_uring cannot be used",
            ServerExit::Memlock => "its limit on locked memory is too low",
            ServerExit::Listen => "it cannot listen on a port",
            ServerExit::CoordinatorHost => "the coordinator's host name does not resolve",
            ServerExit::Executor => "an executor did not start",
            ServerExit::System => "a system call failed",
            ServerExit::Refused => "the coordinator rejected it, or did not prove the cluster key",
            ServerExit::NoCoordinator => "it found no coordinator",
            ServerExit::OpenFiles => "its limit on open files is too low",
            ServerExit::Orphaned => "it had no coordinator for too long; its dumps are complete",
            ServerExit::Load => "it cannot load a dump at the start",
            ServerExit::Key => "the cluster key cannot be read",
            ServerExit::Panicked => "it panicked",
            ServerExit::Stalled => "a thread was hung for too long (watchdog)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_has_a_code_and_a_meaning_of_its_own() {
        let mut codes: Vec<u8> = ServerExit::ALL.map(ServerExit::code).to_vec();
        let mut meanings: Vec<&str> = ServerExit::ALL.map(ServerExit::meaning).to_vec();
        assert!(codes.is_sorted());
        codes.dedup();
        meanings.sort_unstable();
        meanings.dedup();
        assert_eq!((codes.len(), meanings.len()), (ServerExit::ALL.len(), ServerExit::ALL.len()));
        for exit in ServerExit::ALL {
            assert_eq!(ServerExit::from_code(exit.code().into()), Some(exit));
        }
        // The codes from 126 on are reserved for shells and signals.
        assert!(codes.iter().all(|&code| code < 126));
        assert_eq!(ServerExit::from_code(300), None);
    }

    #[test]
    fn the_manual_lists_every_exit() {
        let manual = include_str!("../../docs/exit-codes.md");
        let rows: Vec<(&str, &str)> = manual
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
                let (code, meaning) = (cells.next()?, cells.next()?);
                code.parse::<u8>().is_ok().then_some((code, meaning))
            })
            .collect();
        let codes = ServerExit::ALL.map(|exit| exit.code().to_string());
        let expected: Vec<(&str, &str)> = codes
            .iter()
            .zip(ServerExit::ALL)
            .map(|(code, exit)| (&**code, exit.meaning()))
            .collect();
        assert_eq!(rows, expected);
    }
}
