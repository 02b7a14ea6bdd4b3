//! The description of the machine, and the cores on which the servers and the generator run.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity};

/// The description of the machine that a report contains.
#[derive(Clone, Debug)]
pub(crate) struct Hardware {
    pub(crate) processor: String,
    pub(crate) kernel: String,
    pub(crate) memory_gib: u64,
    /// The cores that this program may use.
    pub(crate) cores: Vec<usize>,
}

/// The assignment of servers and generator to cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// All servers on the first core, the generator on the others. With a single core, all share it.
    Apart,
    /// All processes on all cores.
    Free,
}

impl Placement {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Placement::Apart => "servers on one core, generator on the others",
            Placement::Free => "free on all cores",
        }
    }
}

fn set(cores: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    set
}

fn line_of(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

impl Hardware {
    pub(crate) fn look() -> anyhow::Result<Hardware> {
        let allowed = sched_getaffinity(None).context("read the permitted cores")?;
        let cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
        let kib = line_of("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap_or(0);
        let unknown = || "unknown".to_owned();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease");
        Ok(Hardware {
            processor: line_of("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            kernel: kernel.map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            memory_gib: kib.div_ceil(1 << 20),
            cores,
        })
    }

    /// Returns the cores of the servers.
    pub(crate) fn servers(&self, placement: Placement) -> CpuSet {
        match placement {
            Placement::Apart => set(&self.cores[..1]),
            Placement::Free => set(&self.cores),
        }
    }

    /// Returns the cores of the generator.
    pub(crate) fn generator(&self, placement: Placement) -> CpuSet {
        match placement {
            Placement::Apart if self.cores.len() > 1 => set(&self.cores[1..]),
            _ => set(&self.cores),
        }
    }
}

/// Returns the current UTC date, such as 2026-01-31.
pub(crate) fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil(now.as_secs() / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Converts days since 1970-01-01 to a date of the Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms", civil_from_days).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_783), (2026, 11, 26));
    }
}
