//! What a start needs of this machine beside programs and ports: a directory, threads, memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::process::{Resource, geteuid, getrlimit};

use crate::units;

/// Threads of a server beside its executors, and those of the coordinator; rather too many than too few.
const THREADS_BESIDE: u64 = 24;
/// Memory that the executors of a server must be able to lock, each.
const MEMLOCK_BYTES: u64 = 512 << 10;
/// Memory that an empty server takes; rather too little, as this is what a start fails without.
const SERVER_BYTES: u64 = 24 << 20;
/// Room in the directory for the state and the logs of a start.
const ROOM_BYTES: u64 = 4 << 20;

type Found = Result<String, String>;

/// Whether the files of a cluster can be made in a directory.
pub(super) fn dir(dir: &Path) -> Found {
    let found = match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => "a directory that can be written to",
        Ok(_) => return Err("it is not a directory; give another --dir, or move it away".into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "will be made",
        Err(error) => return Err(format!("{error}; check --dir")),
    };
    // What does not exist is made in the nearest directory above it that does.
    let absolute = std::path::absolute(dir).map_err(|error| error.to_string())?;
    let there = absolute.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        format!(
            "{} cannot be written to: {error}; change its mode or owner, or give another --dir",
            there.display()
        )
    })?;
    match rustix::fs::statvfs(there) {
        Ok(space) if space.f_bavail.saturating_mul(space.f_frsize) < ROOM_BYTES => {
            Err(format!("less than {} are free there; free some space", units::bytes(ROOM_BYTES)))
        }
        _ => Ok(found.into()),
    }
}

/// Whether this user may have as many threads as the servers and the coordinator need.
pub(super) fn threads(servers: usize, shards: u16) -> Found {
    let need = (servers as u64 + 1) * THREADS_BESIDE + servers as u64 * u64::from(shards);
    let Some(limit) = getrlimit(Resource::Nproc).current.filter(|_| !geteuid().is_root()) else {
        return Ok(format!("no limit, about {need} are needed"));
    };
    let used = own_threads();
    match limit.saturating_sub(used) {
        free if free < need => Err(format!(
            "this user may have {limit} and has {used}, about {need} more are needed; raise it (ulimit -u, \
             TasksMax=), or give fewer --shards"
        )),
        free => Ok(format!("{free} more are allowed, about {need} are needed")),
    }
}

/// Threads of all processes of this user.
fn own_threads() -> u64 {
    let own = geteuid().as_raw();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_this_user = processes.filter(|entry| entry.metadata().is_ok_and(|it| it.uid() == own));
    of_this_user
        .map(|entry| fs::read_dir(entry.path().join("task")).map_or(0, |all| all.count() as u64))
        .sum()
}

/// Whether the executors of a server may lock the memory of their rings.
pub(super) fn memlock(shards: u16) -> Found {
    let need = MEMLOCK_BYTES * u64::from(shards);
    match getrlimit(Resource::Memlock).maximum {
        Some(most) if most < need && !geteuid().is_root() => Err(format!(
            "{} are allowed, a server of {shards} shards needs {}; raise it (ulimit -l, LimitMEMLOCK=), or give \
             fewer --shards",
            units::bytes(most),
            units::bytes(need)
        )),
        Some(most) if most < need => Ok(format!("{}; root may raise it", units::bytes(most))),
        Some(most) => Ok(units::bytes(most)),
        None => Ok("no limit".into()),
    }
}

/// Whether empty servers fit into the memory that is free.
pub(super) fn memory(servers: usize) -> Found {
    let need = servers as u64 * SERVER_BYTES;
    let Some(free) = available() else { return Ok("the system does not say what is free".into()) };
    match free < need {
        true => Err(format!(
            "{} are free, {servers} empty servers need about {}; end other programs, or use fewer servers",
            units::bytes(free),
            units::bytes(need)
        )),
        false => Ok(format!("{} are free", units::bytes(free))),
    }
}

/// `MemAvailable` of /proc/meminfo (proc_meminfo(5)), in bytes.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_good_if_it_can_be_written_to_or_made() {
        let there = tempfile::tempdir().unwrap();
        assert!(dir(there.path()).unwrap().contains("can be written"));
        assert_eq!(dir(&there.path().join("a/b")).unwrap(), "will be made");
        let file = there.path().join("file");
        fs::write(&file, "").unwrap();
        dir(&file).unwrap_err();
        dir(&file.join("below")).unwrap_err();
        // No user can write there.
        let error = dir(Path::new("/proc/self/fdinfo")).unwrap_err();
        assert!(error.contains("cannot be written") || error.contains("free"), "{error}");
    }

    #[test]
    fn this_process_has_threads_and_the_machine_has_memory() {
        assert!(own_threads() > 0);
        assert!(available().unwrap() > 0);
        assert!(memory(1 << 30).unwrap_err().contains("are free"));
        memlock(1).unwrap();
    }
}
