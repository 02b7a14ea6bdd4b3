//! The resources that a start needs on a machine in addition to programs and ports: a directory, threads and memory.

use std::fs;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::args::NetEngine;
use crate::survey::Limits;
use crate::units;

/// An upper estimate of the threads of a server in addition to its executors, and of the threads of the coordinator.
const THREADS_BESIDE: u64 = 24;
/// Memory that each executor of a server must be able to lock.
const MEMLOCK_BYTES: u64 = 512 << 10;
/// Memory that an empty server needs. It is a lower estimate, because a start is rejected if less is available.
const SERVER_BYTES: u64 = 24 << 20;
/// Space in the directory for the state and the logs of a start.
const ROOM_BYTES: u64 = 4 << 20;

type Found = Result<String, String>;

/// Returns the finding for a requirement of io_uring. A missing requirement is an error only for `uring`: `auto` then
/// uses epoll, and `epoll` never needs io_uring.
pub(super) fn only_for_uring(net: NetEngine, found: Found) -> Found {
    match (net, found) {
        (NetEngine::Epoll, _) => Ok("not needed with --net epoll".into()),
        (NetEngine::Auto, Err(reason)) => Ok(format!(
            "not available, so servers use the engine epoll, which needs more CPU time for each request: {reason}"
        )),
        (NetEngine::Auto | NetEngine::Uring, found) => found,
    }
}

/// Checks that the files of a cluster can be created in a directory, and that the disk has room for them.
pub(super) fn dir(dir: &Path) -> Found {
    let found = match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => "a writable directory",
        Ok(_) => {
            return Err("a file has this name; give another --dir, or move the file away".into());
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "will be created",
        Err(error) => return Err(format!("{error}; check --dir")),
    };
    // A missing directory is created in the nearest existing directory above it.
    let absolute = std::path::absolute(dir).map_err(|error| error.to_string())?;
    let there = absolute.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        format!(
            "cannot write to {}: {error}; change its mode or owner, or give another --dir",
            there.display()
        )
    })?;
    match rustix::fs::statvfs(there) {
        Ok(space) if space.f_bavail.saturating_mul(space.f_frsize) < ROOM_BYTES => Err(format!(
            "less than {} of disk space is free; free some space",
            units::bytes(ROOM_BYTES)
        )),
        _ => Ok(found.into()),
    }
}

/// The resources that a start needs, compared with the limits.
impl Limits {
    /// Returns the findings for this many servers and shards and this network engine, each with its name.
    pub(super) fn findings(
        &self,
        servers: usize,
        shards: u16,
        net: NetEngine,
    ) -> [(&'static str, Found); 3] {
        [
            ("threads (ulimit -u)", self.threads(servers, shards)),
            ("locked memory (ulimit -l)", only_for_uring(net, self.memlock(shards))),
            ("memory", self.memory(servers)),
        ]
    }

    fn threads(&self, servers: usize, shards: u16) -> Found {
        let need = (servers as u64 + 1) * THREADS_BESIDE + servers as u64 * u64::from(shards);
        let Some(limit) = self.threads.filter(|_| !self.is_root) else {
            return Ok(format!("no limit, about {need} are needed"));
        };
        let used = self.threads_used;
        match limit.saturating_sub(used) {
            free if free < need => Err(format!(
                "this user has {used} threads of at most {limit}, but about {need} more are needed; raise \
                 the limit (ulimit -u, TasksMax=), or give fewer --shards"
            )),
            free => Ok(format!("{free} more are allowed, about {need} are needed")),
        }
    }

    fn memlock(&self, shards: u16) -> Found {
        let need = MEMLOCK_BYTES * u64::from(shards);
        match self.locked {
            Some(most) if most < need && !self.is_root => Err(format!(
                "the limit is {}, but a server with --shards {shards} needs {}; raise the limit (ulimit -l, \
                 LimitMEMLOCK=), or give fewer --shards",
                units::bytes(most),
                units::bytes(need)
            )),
            Some(most) if most < need => Ok(format!("{}; root can raise it", units::bytes(most))),
            Some(most) => Ok(units::bytes(most)),
            None => Ok("no limit".into()),
        }
    }

    fn memory(&self, servers: usize) -> Found {
        let need = servers as u64 * SERVER_BYTES;
        let Some(free) = self.free else {
            return Ok("the system does not report its free memory".into());
        };
        match free < need {
            true => Err(format!(
                "only {} are free, but {servers} empty servers need about {}; stop other programs, or use \
                 fewer servers",
                units::bytes(free),
                units::bytes(need)
            )),
            false => Ok(format!("{} are free", units::bytes(free))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_accepted_if_it_is_writable_or_can_be_created() {
        let there = tempfile::tempdir().unwrap();
        assert!(dir(there.path()).unwrap().contains("writable"));
        assert_eq!(dir(&there.path().join("a/b")).unwrap(), "will be created");
        let file = there.path().join("file");
        fs::write(&file, "").unwrap();
        dir(&file).unwrap_err();
        dir(&file.join("below")).unwrap_err();
        // No user can write to this directory.
        let error = dir(Path::new("/proc/self/fdinfo")).unwrap_err();
        assert!(error.contains("cannot write to") || error.contains("free"), "{error}");
    }

    #[test]
    fn limits_that_a_start_would_exceed_are_found_and_some_do_not_apply_to_root() {
        let here = Limits::here();
        assert!(here.threads_used > 0 && here.free.unwrap() > 0);
        let tight = Limits {
            threads: Some(100),
            threads_used: 50,
            locked: Some(0),
            free: Some(1 << 20),
            is_root: false,
        };
        let bad = |limits: Limits| {
            let findings = limits.findings(3, 2, NetEngine::Uring);
            let bad = findings.into_iter().filter_map(|(name, found)| found.err().map(|_| name));
            bad.collect::<Vec<_>>()
        };
        assert_eq!(bad(tight), ["threads (ulimit -u)", "locked memory (ulimit -l)", "memory"]);
        assert_eq!(bad(Limits { is_root: true, ..tight }), ["memory"]);
        let none = Limits { threads: None, locked: None, free: Some(1 << 40), ..tight };
        assert!(bad(none).is_empty());
        assert!(tight.memlock(2).unwrap_err().contains("ulimit -l"));
    }

    #[test]
    fn a_missing_requirement_of_uring_is_an_error_for_uring_and_a_note_for_auto() {
        let lack = || Err("not allowed; allow it".to_owned());
        assert_eq!(only_for_uring(NetEngine::Uring, lack()), lack());
        let note = only_for_uring(NetEngine::Auto, lack()).unwrap();
        assert!(note.contains("epoll") && note.contains("allow it"), "{note}");
        assert!(only_for_uring(NetEngine::Epoll, lack()).unwrap().contains("not needed"));
        let works = || Ok("works".to_owned());
        for net in [NetEngine::Auto, NetEngine::Uring] {
            assert_eq!(only_for_uring(net, works()), works());
        }
    }
}
