//! What all servers do at the same time, each by itself: load the dumps of a restore, or write those of a
//! stop. Which of them are done is known, and how large what they have is.

use super::{percent_of_bytes, with_bar};
use crate::driver::Driver;
use crate::units;

/// How far they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct All {
    what: &'static str,
    /// By server: whether it is done, and how many bytes it has to go through.
    servers: Vec<(bool, u64)>,
}

impl All {
    /// What they do now, if it is that.
    pub(super) fn now(driver: &Driver) -> Option<All> {
        let loading = driver.loading().map(|servers| All { what: "loading", servers });
        let dumping = || driver.cluster().dumping();
        loading.or_else(|| dumping().map(|servers| All { what: "dumping", servers }))
    }

    fn sum(&self, counts: impl Fn(bool) -> bool) -> u64 {
        self.servers.iter().filter(|(done, _)| counts(*done)).map(|(_, bytes)| bytes).sum()
    }

    fn percent(&self) -> u64 {
        percent_of_bytes(self.sum(|done| done), self.sum(|_| true), self.done(), self.count())
    }

    fn done(&self) -> u64 {
        self.servers.iter().filter(|(done, _)| *done).count() as u64
    }

    fn count(&self) -> u64 {
        self.servers.len() as u64
    }

    fn servers(&self) -> String {
        format!("{} of {} servers", self.done(), self.count())
    }

    fn bytes(&self) -> String {
        units::bytes_of(self.sum(|done| done), self.sum(|_| true))
    }

    /// The line at the bottom of a terminal with so many columns.
    pub(super) fn line(&self, width: usize) -> String {
        let percent = self.percent();
        let parts = vec![(1, format!("{percent:>3} %")), (3, self.servers()), (2, self.bytes())];
        with_bar(self.what, percent, parts, width)
    }

    pub(super) fn log_line(&self) -> String {
        format!("{}: {} % is done, {}, {}", self.what, self.percent(), self.servers(), self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;

    use super::*;

    #[test]
    fn a_line_tells_what_is_done_bar_servers_and_bytes_and_fits() {
        let servers = vec![(true, 3 << 20), (false, 1 << 20), (true, 0)];
        let all = All { what: "dumping", servers };
        let bar = format!("[{}{}]", "#".repeat(22), "-".repeat(8));
        assert_eq!(all.line(200), format!("dumping {bar}  75 %, 2 of 3 servers, 3.0 of 4.0 MiB"));
        assert_eq!(all.log_line(), "dumping: 75 % is done, 2 of 3 servers, 3.0 of 4.0 MiB");
        for width in 2..100 {
            assert!(measure_text_width(&all.line(width)) < width, "{width}: {}", all.line(width));
        }
        let empty = All { what: "loading", servers: vec![(false, 0), (true, 0)] };
        assert!(empty.line(80).contains(" 50 %, 1 of 2 servers"), "{}", empty.line(80));
    }
}
