//! The progress of work that all servers do at the same time: loading the dumps of a restore, or writing the dumps of a
//! stop. It is measured in finished servers and in bytes.

use kv_core::cluster::{Cluster, DumpProgress};

use super::bar::{percent_of_bytes, with_bar};
use crate::units;

/// The progress of all servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct All {
    what: &'static str,
    servers: Vec<Part>,
}

/// The progress of one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    is_done: bool,
    /// True while its last attempt has failed and is being retried.
    is_failing: bool,
    bytes: u64,
    of_bytes: u64,
}

impl All {
    /// Returns the current progress, if the servers are loading or dumping.
    pub(super) fn now(cluster: &Cluster, loading: Option<Vec<(bool, u64)>>) -> Option<All> {
        let loading = loading.map(|servers| {
            let part = |(is_done, of_bytes)| {
                let bytes = if is_done { of_bytes } else { 0 };
                Part { is_done, is_failing: false, bytes, of_bytes }
            };
            All { what: "loading", servers: servers.into_iter().map(part).collect() }
        });
        loading.or_else(|| {
            let servers = cluster.dumping()?;
            let part = |server: DumpProgress| Part {
                is_done: server.is_done,
                is_failing: server.is_failing,
                bytes: server.bytes,
                of_bytes: server.of_bytes,
            };
            Some(All { what: "dumping", servers: servers.into_iter().map(part).collect() })
        })
    }

    fn sum(&self, bytes: fn(&Part) -> u64) -> u64 {
        self.servers.iter().map(bytes).fold(0, u64::saturating_add)
    }

    fn percent(&self) -> u64 {
        let (bytes, of_bytes) = (self.sum(|part| part.bytes), self.sum(|part| part.of_bytes));
        percent_of_bytes(bytes, of_bytes, self.done(), self.count())
    }

    fn done(&self) -> u64 {
        self.servers.iter().filter(|part| part.is_done).count() as u64
    }

    fn count(&self) -> u64 {
        self.servers.len() as u64
    }

    fn servers(&self) -> String {
        format!("{} of {} servers", self.done(), self.count())
    }

    fn bytes(&self) -> String {
        units::bytes_of(self.sum(|part| part.bytes), self.sum(|part| part.of_bytes))
    }

    /// Returns how many servers are failing now, if any.
    fn failing(&self) -> Option<String> {
        let failing = self.servers.iter().filter(|part| part.is_failing).count();
        (failing > 0).then(|| format!("{failing} failing, retrying"))
    }

    /// Returns the line for the bottom of a terminal with this many columns.
    pub(super) fn line(&self, width: usize) -> String {
        let percent = self.percent();
        let mut parts =
            vec![(1, format!("{percent:>3} %")), (3, self.servers()), (2, self.bytes())];
        parts.extend(self.failing().map(|failing| (4, failing)));
        with_bar(self.what, percent, parts, width)
    }

    pub(super) fn log_line(&self) -> String {
        let (servers, bytes) = (self.servers(), self.bytes());
        let failing = self.failing().map_or_else(String::new, |failing| format!(", {failing}"));
        format!("{}: {} % is done, {servers}, {bytes}{failing}", self.what, self.percent())
    }
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;

    use super::*;

    #[test]
    fn a_line_shows_a_bar_servers_and_bytes_and_fits_the_terminal() {
        let mib = |is_done: bool, bytes: u64, of: u64| Part {
            is_done,
            is_failing: false,
            bytes: bytes << 20,
            of_bytes: of << 20,
        };
        let servers = vec![mib(true, 2, 2), mib(false, 1, 2), mib(true, 0, 0)];
        let all = All { what: "dumping", servers };
        let bar = format!("[{}{}]", "#".repeat(22), "-".repeat(8));
        assert_eq!(all.line(200), format!("dumping {bar}  75 %, 2 of 3 servers, 3.0 of 4.0 MiB"));
        assert_eq!(all.log_line(), "dumping: 75 % is done, 2 of 3 servers, 3.0 of 4.0 MiB");
        for width in 2..100 {
            assert!(measure_text_width(&all.line(width)) < width, "{width}: {}", all.line(width));
        }
        let mut failing = all.clone();
        failing.servers[1].is_failing = true;
        assert!(failing.log_line().ends_with(", 1 failing, retrying"), "{}", failing.log_line());
        assert!(failing.line(60).contains("1 failing"), "{}", failing.line(60));
        let empty = All { what: "loading", servers: vec![mib(false, 0, 0), mib(true, 0, 0)] };
        assert!(empty.line(80).contains(" 50 %, 1 of 2 servers"), "{}", empty.line(80));
    }
}
