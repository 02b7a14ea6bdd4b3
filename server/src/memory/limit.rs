//! The memory limit of a server. The default is:
//!
//! ```text
//!   memory.max, memory.high         of the process's cgroup and its ancestors (v2)
//!   memory.limit_in_bytes           the same (v1)
//!   MemAvailable                    of the machine, plus the memory of other servers of this executable
//!        |
//!   the least of these * 4/5 / servers here - the process's own
//! ```
//!
//! The memory of other servers counts as available. So a server that replaces another one gets the same limit, even if
//! the tables of other servers on the machine have grown. For the same reason, the usage of a cgroup is not subtracted
//! from its limit.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use kv_protocol::size;

/// The share of memory that the default limits of the servers use, in fifths. The rest is for the system, for chunks
/// kept ready, and for the memory beyond their limit that tables hold during compaction.
const PLANNED_FIFTHS: u64 = 4;
/// The memory that a server process needs in addition to its tables.
pub(crate) const OWN_BYTES: u64 = 24 << 20;
/// The minimum default limit: a few chunks for each table.
pub(crate) const LIMIT_BYTES_LEAST: u64 = 16 << 20;
/// The value at and above which a limit of a cgroup means no limit.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// The memory limit of all tables of a server together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// A limit of this number of bytes.
    Bytes(u64),
    /// No limit.
    None,
}

/// Parses a limit with its unit, or `none`.
pub(crate) fn parse_memory_limit(text: &str) -> Result<MemoryLimit, String> {
    match text {
        "none" => Ok(MemoryLimit::None),
        bytes => parse_bytes(bytes).map(MemoryLimit::Bytes),
    }
}

/// Parses a limit of at least one byte.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        0 => Err("0 bytes is too little; --memory-limit accepts `none` for no limit".into()),
        bytes => Ok(bytes),
    }
}

/// A limit and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DefaultLimit {
    /// The limit of all tables of one server together.
    pub(crate) bytes: u64,
    capacity: Capacity,
    share: u16,
}

/// The memory that all servers of this machine can use together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Capacity {
    bytes: u64,
    /// The source of the number, for messages.
    from: String,
}

impl fmt::Display for DefaultLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{} MiB for the tables of one server: four fifths of {} MiB (from {}), shared by {} server{}, less {} MiB \
             for the process",
            mib(self.bytes),
            mib(self.capacity.bytes),
            self.capacity.from,
            self.share,
            if self.share == 1 { "" } else { "s" },
            mib(OWN_BYTES),
        )
    }
}

/// Returns the limit for one of `share` servers of this machine; `None` if the available memory is unknown. `root` is
/// `/`, except in tests.
pub(crate) fn default_limit(root: &Path, share: u16) -> Option<DefaultLimit> {
    let capacity = cgroup_limits(root).chain(available(root)).min_by_key(|found| found.bytes)?;
    let planned = capacity.bytes / (PLANNED_FIFTHS + 1) * PLANNED_FIFTHS / u64::from(share.max(1));
    // The limit is rounded to whole MiB, so that servers that compute it at slightly different times get the same
    // limit.
    let bytes = planned.saturating_sub(OWN_BYTES).max(LIMIT_BYTES_LEAST) >> 20 << 20;
    Some(DefaultLimit { bytes, capacity, share })
}

/// Prints the default for one of `share` servers, for `coord --check`. Returns a failure only if the output cannot be
/// written.
pub(crate) fn show(share: u16) -> ExitCode {
    let told = match default_limit(Path::new("/"), share) {
        Some(limit) => limit.to_string(),
        None => "none: neither a cgroup nor /proc/meminfo reports the available memory".to_owned(),
    };
    match writeln!(std::io::stdout(), "{told}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Returns the limits of the process's cgroups and of their ancestors, in both versions of the interface
/// (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).
fn cgroup_limits(root: &Path) -> impl Iterator<Item = Capacity> {
    let memberships = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mounts, files): (&[&str], &[&str]) = match controllers {
            "" => (&["sys/fs/cgroup", "sys/fs/cgroup/unified"], &["memory.max", "memory.high"]),
            names if names.split(',').any(|name| name == "memory") => {
                (&["sys/fs/cgroup/memory"], &["memory.limit_in_bytes"])
            }
            _ => continue,
        };
        for (mount, file) in mounts.iter().flat_map(|mount| files.iter().map(move |f| (mount, f))) {
            for group in self_and_ancestors(path) {
                let path = Path::new(mount).join(&group).join(file);
                let limit = fs::read_to_string(root.join(&path)).ok();
                let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
                if let Some(bytes) = limit.filter(|bytes| *bytes < UNLIMITED_BYTES) {
                    found.push(Capacity { bytes, from: format!("/{}", path.display()) });
                }
            }
        }
    }
    found.into_iter()
}

/// Returns a cgroup's path relative to its mount, then those of its ancestors; the mount itself is last.
fn self_and_ancestors(path: &str) -> Vec<PathBuf> {
    let normal = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
    let relative: PathBuf = normal.collect();
    relative.ancestors().map(Path::to_path_buf).collect()
}

/// Returns the memory that the machine can give to servers; `None` if /proc/meminfo does not report it.
fn available(root: &Path) -> Option<Capacity> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let bytes = kib.saturating_mul(1 << 10).saturating_add(held_by_others(root));
    Some(Capacity { bytes, from: "/proc/meminfo plus the memory of running servers".to_owned() })
}

/// Returns the resident memory of the other processes of this executable in bytes, as far as it can be read.
fn held_by_others(root: &Path) -> u64 {
    let processes = root.join("proc");
    let (Ok(own), Ok(entries)) =
        (fs::read_link(processes.join("self/exe")), fs::read_dir(&processes))
    else {
        return 0;
    };
    let me = std::process::id().to_string();
    let others = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let is_other = is_process && *name != *me;
        is_other && fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == own)
    });
    let resident = others.filter_map(|entry| {
        // The second field of proc_pid_statm(5).
        let pages = fs::read_to_string(entry.path().join("statm")).ok()?;
        pages.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let pages: u64 = resident.fold(0, u64::saturating_add);
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_limits_take_units() {
        assert!(parse_bytes("0").is_err() && parse_bytes("1X").is_err());
        assert_eq!(parse_memory_limit("none"), Ok(MemoryLimit::None));
        assert_eq!(parse_memory_limit("1M"), Ok(MemoryLimit::Bytes(1 << 20)));
    }

    /// Creates the files of a machine by their paths below the root.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const PLENTY: (&str, &str) =
        ("proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable:   10240000 kB\n");

    fn bytes(files: &[(&str, &str)], share: u16) -> u64 {
        default_limit(machine(files).path(), share).unwrap().bytes
    }

    #[test]
    fn without_cgroups_the_servers_share_what_the_machine_has_available() {
        assert_eq!(bytes(&[PLENTY], 1), (10_000 * MIB / 5 * 4 - OWN_BYTES) / MIB * MIB);
        assert_eq!(bytes(&[PLENTY], 4), 2_000 * MIB - OWN_BYTES);
        assert_eq!(default_limit(machine(&[]).path(), 1), None);
        for broken in ["", "MemAvailable: x kB\n", "MemAvailable: 5\n"] {
            assert_eq!(default_limit(machine(&[("proc/meminfo", broken)]).path(), 1), None);
        }
    }

    #[test]
    fn the_least_limit_of_a_group_and_its_ancestors_counts_in_version_2() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let own = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        let parent = ("sys/fs/cgroup/a/memory.max", "262144000\n");
        let limit = default_limit(machine(&[PLENTY, group, own, parent]).path(), 2).unwrap();
        assert_eq!(limit.bytes, 100 * MIB - OWN_BYTES);
        let told = limit.to_string();
        assert!(told.starts_with("76 MiB for the tables"), "{told}");
        assert!(told.contains("250 MiB (from /sys/fs/cgroup/a/memory.max)"), "{told}");
        assert!(told.contains("shared by 2 servers"), "{told}");

        let own = ("sys/fs/cgroup/a/b/memory.high", "131072000\n");
        assert_eq!(bytes(&[PLENTY, group, own, parent], 1), 100 * MIB - OWN_BYTES);
        // Inside a container, the container's own group appears as the root.
        let inside = ("proc/self/cgroup", "0::/\n");
        let root = ("sys/fs/cgroup/memory.max", "262144000");
        assert_eq!(bytes(&[PLENTY, inside, root], 2), 100 * MIB - OWN_BYTES);
    }

    #[test]
    fn the_least_limit_counts_in_version_1_even_with_a_path_of_the_host() {
        let group = ("proc/self/cgroup", "11:cpu,memory:/docker/x\n0::/else\n3:pids:/y\n");
        let own = ("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "262144000\n");
        let none = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(bytes(&[PLENTY, group, own, none], 2), 100 * MIB - OWN_BYTES);
        assert_eq!(bytes(&[PLENTY, group, none], 4), 2_000 * MIB - OWN_BYTES);
        let mounted = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "262144000\n");
        assert_eq!(bytes(&[PLENTY, group, mounted], 2), 100 * MIB - OWN_BYTES);
    }

    #[test]
    fn a_machine_that_is_too_small_gets_the_least_limit() {
        let little = ("proc/meminfo", "MemAvailable: 100000 kB\n");
        assert_eq!(bytes(&[little], 50), LIMIT_BYTES_LEAST);
    }

    #[test]
    fn memory_held_by_other_servers_counts_as_available() {
        let pages = |mib: u64| format!("9 {} 1\n", mib * MIB / rustix::param::page_size() as u64);
        let (held, else_held) = (pages(2_000), pages(5_000));
        let root = machine(&[
            ("proc/meminfo", "MemAvailable: 8192000 kB\n"),
            ("proc/self/statm", "1 1 1\n"),
            ("proc/4000001/statm", &held),
            ("proc/4000002/statm", &else_held),
        ]);
        let exe = |process: &str, target: &str| {
            symlink(target, root.path().join("proc").join(process).join("exe")).unwrap();
        };
        exe("self", "/bin/server");
        exe("4000001", "/bin/server");
        exe("4000002", "/bin/other");
        assert_eq!(default_limit(root.path(), 4).unwrap().bytes, 2_000 * MIB - OWN_BYTES);
    }
}
