//! A reader of the coordinator's log that follows its growth. It extracts the steps of recoveries, and the starts and
//! ends of server processes.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// An event of a server in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// A process was started at the server's place in the ring.
    Started {
        /// The pid of the new process.
        pid: u32,
    },
    /// The server's recovery has entered this step.
    Step(u8),
    /// The server is down, or its process has exited.
    Down,
    /// The server's recovery is complete.
    Back,
}

/// A log that is read while it grows.
#[derive(Debug)]
pub(crate) struct Steps {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Steps {
    /// Opens the log at its current end.
    pub(crate) fn from_now(path: &Path) -> Steps {
        let mut steps = Steps { path: path.to_owned(), file: None, rest: Vec::new() };
        steps.read();
        steps.rest.clear();
        steps
    }

    /// Returns the events in the log lines since the last call, each with its server.
    pub(crate) fn news(&mut self) -> Vec<(u16, Told)> {
        self.read();
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..end).collect();
        String::from_utf8_lossy(&lines).lines().filter_map(parse).collect()
    }

    fn read(&mut self) {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            let _ = file.read_to_end(&mut self.rest);
        }
    }
}

/// Parses `… server 1, step 3: …`, `… server 1 started on localhost, pid 71`, `… server 1 is down: …`, `…
/// server 1: ended by signal 9 …`, `… server 1 is back: …`.
fn parse(line: &str) -> Option<(u16, Told)> {
    let (_, said) = line.split_once("server ")?;
    let digits = said.bytes().take_while(u8::is_ascii_digit).count();
    let (id, said) = said.split_at(digits);
    let id = id.parse().ok()?;
    let told = if let Some(step) = said.strip_prefix(", step ") {
        Told::Step(step.get(..1)?.parse().ok()?)
    } else if said.starts_with(" started on ") {
        Told::Started { pid: said.rsplit_once("pid ")?.1.trim().parse().ok()? }
    } else if said.starts_with(" is down") || said.starts_with(": ") {
        Told::Down
    } else if said.starts_with(" is back") {
        Told::Back
    } else {
        return None;
    };
    Some((id, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_lines_of_a_recovery_are_parsed() {
        let date = "2026-11-25T18:00:00Z  INFO ";
        for (line, told) in [
            ("server 1 is down: its process has ended", (1, Told::Down)),
            ("server 1, step 3: its primary table is copied", (1, Told::Step(3))),
            ("server 12 started on localhost, pid 4711", (12, Told::Started { pid: 4_711 })),
            (
                "server 0 is back: its groups have two copies again, on their home servers",
                (0, Told::Back),
            ),
        ] {
            assert_eq!(parse(&format!("{date}{line}")), Some(told), "{line}");
        }
        for other in ["group 1: view 3 -> 4: server 2 alone", "serving; clients connect with"] {
            assert_eq!(parse(&format!("{date}{other}")), None, "{other}");
        }
    }

    #[test]
    fn a_line_is_parsed_only_once_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "server 1, step 0: before\n").unwrap();
        let mut steps = Steps::from_now(&path);
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        use std::io::Write as _;
        file.write_all(b"server 2, step 1: x").unwrap();
        assert_eq!(steps.news(), []);
        file.write_all(b"\n").unwrap();
        assert_eq!(steps.news(), [(2, Told::Step(1))]);
    }
}
