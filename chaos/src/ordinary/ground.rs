//! The file system and the limits of a cluster.
//!
//! ```text
//!   Plain     the directory of the round
//!   Disk      ext4 on a loop device: can be frozen
//!   Tmpfs     small: can be filled
//!   Limit     the directory of the round, and `--memory-limit`
//!   Cgroup    the directory of the round, and each server in a separate cgroup (v1 or v2)
//! ```
//!
//! Mounts are made in a mount namespace of this program, so they end with the program.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use kv_testkit::programs::check;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::cluster::Programs;

/// The size of the disk in bytes. The image file is sparse, so it occupies only the written bytes.
const DISK_BYTES: u64 = 1 << 30;
/// The options of the small tmpfs.
const TMPFS: &str = "size=384m";
/// The memory limit of a server.
const MEMORY_LIMIT: &str = "96M";
/// The memory limit of the cgroup of one server. A server derives its own limit from it as if all servers of the
/// machine shared the cgroup.
const CGROUP_BYTES: u64 = 512 << 20;

/// The environment in which a cluster runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    Plain,
    Disk,
    Tmpfs,
    Limit,
    Cgroup,
}

impl Ground {
    pub(crate) const ALL: [Ground; 5] =
        [Ground::Plain, Ground::Disk, Ground::Tmpfs, Ground::Limit, Ground::Cgroup];

    /// Returns the reason why this environment is not available on this machine; `None` if it is available. `no_mounts`
    /// is the reason why nothing can be mounted; `None` if mounting is possible.
    pub(crate) fn missing(self, no_mounts: Option<&str>) -> Option<String> {
        let tried = match self {
            Ground::Plain | Ground::Limit => return None,
            Ground::Disk | Ground::Tmpfs if no_mounts.is_some() => {
                return no_mounts.map(str::to_owned);
            }
            Ground::Disk => try_in_temporary(|dir| {
                let made = Made::of(self, dir)?;
                made.freeze(Duration::ZERO)?.wait().context("wait for fsfreeze").map(|_| ())
            }),
            Ground::Tmpfs => try_in_temporary(|dir| Made::of(self, dir).map(|_| ())),
            Ground::Cgroup => Cgroups::make().map(|_| ()),
        };
        tried.err().map(|error| format!("{error:#}"))
    }
}

fn try_in_temporary(attempt: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    attempt(tempfile::tempdir().context("make a directory")?.path())
}

/// Moves this program into a new mount namespace. The main thread must call it before it starts other threads.
pub(crate) fn leave_mounts() -> anyhow::Result<()> {
    // SAFETY: a change of the mount namespace does not affect memory or open files.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("make a mount namespace")?;
    check(Command::new("mount").args(["--make-rprivate", "/"]), "").map(drop)
}

/// An environment that was made for one round. On drop, its file system is unmounted, and its cgroups are removed.
#[derive(Debug)]
pub(crate) struct Made {
    ground: Ground,
    /// The directory of the round.
    round: PathBuf,
    cgroups: Option<Cgroups>,
    is_mounted: bool,
}

impl Made {
    /// Sets up the environment of a round: its file system and limits. Files are created in the round's directory.
    pub(crate) fn of(ground: Ground, round: &Path) -> anyhow::Result<Made> {
        let mut made = Made { ground, round: round.to_owned(), cgroups: None, is_mounted: false };
        match ground {
            Ground::Plain | Ground::Limit => {}
            Ground::Disk => {
                let image = round.join("disk.img");
                let file = File::create(&image).context("make the image of a disk")?;
                file.set_len(DISK_BYTES).context("set the length of the image of a disk")?;
                check(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image), "")?;
                made.mount(Command::new("mount").args(["-o", "loop"]).arg(&image))?;
            }
            Ground::Tmpfs => {
                made.mount(Command::new("mount").args(["-t", "tmpfs", "-o", TMPFS, "chaos"]))?;
            }
            Ground::Cgroup => made.cgroups = Some(Cgroups::make()?),
        }
        Ok(made)
    }

    fn mount(&mut self, command: &mut Command) -> anyhow::Result<()> {
        fs::create_dir_all(self.root()).context("make a mount point")?;
        check(command.arg(self.root()), "")?;
        self.is_mounted = true;
        Ok(())
    }

    fn root(&self) -> PathBuf {
        self.round.join("mounted")
    }

    /// Returns the directory of the cluster.
    pub(crate) fn cluster_dir(&self) -> PathBuf {
        if self.is_mounted { self.root().join("cluster") } else { self.round.clone() }
    }

    /// Returns the additional arguments of `coord` for this environment.
    pub(crate) fn flags(&self) -> Vec<String> {
        match self.ground {
            Ground::Limit => vec!["--memory-limit".into(), MEMORY_LIMIT.into()],
            _ => Vec::new(),
        }
    }

    /// Returns the executables for this environment. In the environment `Cgroup`, the server is a script that starts
    /// the real server in its own cgroup.
    pub(crate) fn programs(&self, programs: &Programs) -> anyhow::Result<Programs> {
        let mut programs = programs.clone();
        if let Some(cgroups) = &self.cgroups {
            programs.server = cgroups.write_wrapper(&self.round, &programs.server)?;
        }
        Ok(programs)
    }

    /// Starts a child process that freezes the disk for the given time. The child thaws the disk even if this program
    /// is interrupted or killed.
    pub(crate) fn freeze(&self, lasts: Duration) -> anyhow::Result<Child> {
        let script = format!(
            "trap '' HUP INT TERM; fsfreeze --freeze \"$1\" && sleep {} && fsfreeze --unfreeze \"$1\"",
            lasts.as_secs_f64()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(self.root()).stdin(Stdio::null());
        command.spawn().context("run fsfreeze")
    }

    /// Fills the file system until no byte is free. [`Made::empty`] frees the space again.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let file = File::create(self.root().join("filler"))
            .context("create the file that fills the file system")?;
        let (mut at, mut piece) = (0, 64 << 20);
        while piece > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), at, piece) {
                Ok(()) => at += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("fill the file system"),
            }
        }
        Ok(())
    }

    /// Frees the space that [`Made::fill`] has taken.
    pub(crate) fn empty(&self) -> anyhow::Result<()> {
        fs::remove_file(self.root().join("filler"))
            .context("remove the file that fills the file system")
    }

    /// Returns the number of processes in the cgroups that the kernel has killed because of a lack of memory; zero in
    /// an environment without cgroups.
    pub(crate) fn oom_kills(&self) -> anyhow::Result<u64> {
        self.cgroups.as_ref().map_or(Ok(0), Cgroups::oom_kills)
    }

    /// Copies the files of the cluster's directory (logs, state, dumps) to the directory of the round, because the file
    /// system will be unmounted. Does nothing if no file system is mounted.
    pub(crate) fn keep_files(&self) -> anyhow::Result<()> {
        if !self.is_mounted {
            return Ok(());
        }
        for file in fs::read_dir(self.cluster_dir()).context("read the cluster's directory")? {
            let path = file?.path();
            if path.is_file() {
                let to = self.round.join(path.file_name().context("a file has a name")?);
                fs::copy(&path, to).with_context(|| format!("keep {}", path.display()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = check(Command::new("umount").arg("--lazy").arg(self.root()), "")
        {
            eprintln!("{error:#}");
        }
        // The image of the disk has a large nominal size and is no longer needed.
        let _ = fs::remove_file(self.round.join("disk.img"));
    }
}

/// A cgroup with one child for each server process.
#[derive(Debug)]
struct Cgroups {
    path: PathBuf,
    version: CgroupVersion,
}

/// The version of a cgroup hierarchy, which determines the names of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CgroupVersion {
    V1,
    V2,
}

impl CgroupVersion {
    fn limit(self) -> &'static str {
        match self {
            CgroupVersion::V1 => "memory.limit_in_bytes",
            CgroupVersion::V2 => "memory.max",
        }
    }

    fn events(self) -> &'static str {
        match self {
            CgroupVersion::V1 => "memory.oom_control",
            CgroupVersion::V2 => "memory.events",
        }
    }
}

impl Cgroups {
    /// Creates the cgroup at the root of the hierarchy that is visible to this program. In version 2, a cgroup with
    /// processes cannot enable controllers for its children, unless it is the root.
    fn make() -> anyhow::Result<Cgroups> {
        ensure!(rustix::process::geteuid().is_root(), "cgroups need root (run `sudo make chaos`)");
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let has_memory = |root: &PathBuf| {
            fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|names| names.split_whitespace().any(|name| name == "memory"))
        };
        let first = PathBuf::from("/sys/fs/cgroup/memory");
        let (root, version) = match roots.into_iter().find(has_memory) {
            Some(root) => (root, CgroupVersion::V2),
            None if first.join(CgroupVersion::V1.limit()).exists() => (first, CgroupVersion::V1),
            None => bail!("there is no cgroup with the memory controller"),
        };
        let enable = |directory: &Path| {
            if version == CgroupVersion::V1 {
                return Ok(());
            }
            fs::write(directory.join("cgroup.subtree_control"), "+memory").with_context(|| {
                format!("enable the memory controller below {}", directory.display())
            })
        };
        enable(&root)?;
        let path = root.join(format!("kv-chaos-{}", std::process::id()));
        let made = Cgroups { path, version };
        fs::create_dir(&made.path).with_context(|| format!("make {}", made.path.display()))?;
        enable(&made.path)?;
        Ok(made)
    }

    /// Writes the script that starts each server in its own cgroup, and returns its path.
    fn write_wrapper(&self, dir: &Path, server: &Path) -> anyhow::Result<PathBuf> {
        let script = format!(
            "#!/bin/sh\n\
             # Starts a server in a cgroup of its own, with little memory.\n\
             set -eu\n\
             group={group}/$$\n\
             mkdir \"$group\"\n\
             echo {CGROUP_BYTES} >\"$group/{limit}\"\n\
             echo $$ >\"$group/cgroup.procs\"\n\
             exec '{server}' \"$@\"\n",
            group = self.path.display(),
            limit = self.version.limit(),
            server = server.display()
        );
        let path = dir.join("server-in-its-cgroup");
        fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    fn children(&self) -> anyhow::Result<Vec<PathBuf>> {
        let entries =
            fs::read_dir(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    }

    fn oom_kills(&self) -> anyhow::Result<u64> {
        let mut kills = 0;
        for child in self.children()? {
            let path = child.join(self.version.events());
            let events =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
            kills += line
                .and_then(|count| count.parse::<u64>().ok())
                .with_context(|| format!("{} has no count oom_kill", path.display()))?;
        }
        Ok(kills)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Servers that were just killed may still exist, so the removal may fail. A remaining directory does no
        // harm.
        for child in self.children().unwrap_or_default() {
            let _ = fs::remove_dir(child);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_takes_no_byte_until_its_space_is_freed() {
        // The namespace belongs to this thread and to the processes that it starts.
        if let Err(why) = leave_mounts() {
            eprintln!("NOT TESTED: {why:#}");
            return;
        }
        let round = tempfile::tempdir().unwrap();
        let made = Made::of(Ground::Tmpfs, round.path()).unwrap();
        let file = made.cluster_dir().join("file");
        fs::create_dir(made.cluster_dir()).unwrap();
        made.fill().unwrap();
        let full = fs::write(&file, [1]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        made.empty().unwrap();
        fs::write(&file, [1]).unwrap();
        made.keep_files().unwrap();
        drop(made);
        assert!(round.path().join("file").exists() && !file.exists());
    }

    #[test]
    fn a_frozen_disk_thaws_by_itself() {
        if leave_mounts().is_err() || Ground::Disk.missing(None).is_some() {
            eprintln!("NOT TESTED: mounting and freezing a disk is not possible on this machine");
            return;
        }
        let round = tempfile::tempdir().unwrap();
        let made = Made::of(Ground::Disk, round.path()).unwrap();
        let lasts = Duration::from_millis(300);
        let start = std::time::Instant::now();
        let mut frozen = made.freeze(lasts).unwrap();
        assert!(frozen.wait().unwrap().success());
        assert!(start.elapsed() >= lasts);
        fs::create_dir(made.cluster_dir()).unwrap();
    }

    #[test]
    fn only_grounds_that_mount_need_the_permission_to_mount() {
        for ground in [Ground::Plain, Ground::Limit] {
            assert_eq!(ground.missing(Some("no")), None);
        }
        for ground in [Ground::Disk, Ground::Tmpfs] {
            assert_eq!(ground.missing(Some("no")), Some("no".to_owned()));
        }
    }
}
