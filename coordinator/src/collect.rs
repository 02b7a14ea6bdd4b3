//! `coord collect`: fetches the dumps of a stopped cluster from its ssh hosts.
//!
//! ```text
//!   coordinator.state -> the host of each server, and the directory of its dumps
//!   ssh: sizes of the dumps there -> ssh: cat DUMP -> INTO/.NAME.PID, fsync -> INTO/NAME, unless that exists
//! ```

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kv_daemon::files;
use kv_protocol::ServerId;
use kv_protocol::cluster_file::Host;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use crate::args::CollectArgs;
use crate::failure::Failure;
use crate::ls::{self, State};
use crate::printable::{last_lines, printable};
use crate::spawn::ssh::Ssh;
use crate::store::{self, Record};
use crate::{lock, quote, units};

/// The timeout for the next bytes of a dump, and for the exit of ssh after the last ones.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The interval at which the progress of a long dump is reported.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
const ROLES: [&str; 2] = ["primary", "secondary"];

/// A dump on an ssh host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dump {
    name: String,
    directory: String,
    bytes: u64,
}

/// Fetches the dumps, or prints their directories (`--list`).
///
/// # Errors
/// The cluster is running, its state cannot be read, or a dump is missing or could not be fetched. The message lists
/// these dumps.
pub(crate) async fn run(args: &CollectArgs) -> Result<(), Failure> {
    let dir = args.dir.display();
    let loaded = store::load(&args.dir).map_err(|error| Failure::Failed(error.to_string()))?;
    let Some(record) = loaded else {
        return Err(Failure::Failed(format!(
            "{dir} has no file {}, which records where the dumps are; give the directory of the cluster with \
             --dir",
            store::FILE_NAME
        )));
    };
    let mut ssh = Ssh::new(&record.settings);
    ssh.config = args.ssh_config.clone().or(ssh.config);
    ssh.remote_dir = args.remote_dir.clone().unwrap_or(ssh.remote_dir);
    if args.list {
        for (host, _) in hosts(&record) {
            let _ = writeln!(std::io::stdout(), "{host}\t{}", directories(&record, &ssh)[0]);
        }
        return Ok(());
    }
    refuse_if_it_runs(&record, &ssh, &args.dir).await?;
    let into = args.into.as_ref().unwrap_or(&args.dir);
    let wrong = fetch_all(&record, &ssh, into, say).await?;
    if wrong.is_empty() {
        let (dir, into) = (quoted(&args.dir), quoted(into));
        let dirs = if dir == into { dir.clone() } else { format!("{dir} {into}") };
        say(&format!("all dumps are here; to restore: coord -C FILE --dir {dir} --restore {dirs}"));
        return Ok(());
    }
    Err(Failure::Failed(format!("not every dump was fetched:\n  {}", wrong.join("\n  "))))
}

/// Fetches the dumps of a stopped cluster from all its ssh hosts into a directory. Returns the reasons for dumps that
/// were not fetched: one for each dump, or one for a host that cannot be reached.
///
/// # Errors
/// The directory cannot be created.
pub(crate) async fn fetch_all(
    record: &Record,
    ssh: &Ssh,
    into: &Path,
    say: impl Fn(&str),
) -> Result<Vec<String>, Failure> {
    fs::create_dir_all(into).map_err(|error| {
        Failure::Failed(format!(
            "cannot create the directory {}: {error}; check its path and permissions",
            into.display()
        ))
    })?;
    let directories = directories(record, ssh);
    let mut wrong = Vec::new();
    for (host, servers) in hosts(record) {
        let names =
            servers.iter().flat_map(|server| ROLES.map(|role| format!("server_{server}.{role}")));
        let names: Vec<String> = names.collect();
        let found = match ssh.run(host, &list_script(&directories, &names)).await {
            Ok(said) => parse(&said, &directories, &names),
            Err(error) => {
                wrong.push(format!("{host}: {error}"));
                continue;
            }
        };
        for name in &names {
            // The first directory with the dump counts. It is the directory of `coord stop --dump-dir`, if the last
            // stop had one.
            let fetched = match found.iter().find(|dump| dump.name == *name) {
                Some(dump) => fetch(ssh, host, dump, into).await,
                None => Err(format!("not found in {}", directories.join(" or "))),
            };
            match fetched {
                Ok(words) => say(&format!("{name}: {words}, from {host}")),
                Err(reason) => wrong.push(format!("{name} on {host}: {reason}")),
            }
        }
    }
    Ok(wrong)
}

/// Returns the directories of the dumps on every host, the preferred one first.
fn directories(record: &Record, ssh: &Ssh) -> Vec<String> {
    record.dump_dir.clone().into_iter().chain([ssh.remote_dir.clone()]).collect()
}

/// Returns whether the dumps of some servers are on ssh hosts.
pub(crate) fn has_hosts(record: &Record) -> bool {
    record.place.hosts.iter().any(|host| *host != Host::Local)
}

fn quoted(path: &Path) -> String {
    quote::word(&path.to_string_lossy())
}

fn say(text: &str) {
    // A closed standard output is not a failure.
    let _ = writeln!(std::io::stdout(), "{}", printable(text));
}

/// Returns each ssh host of a cluster once, with its servers.
fn hosts(record: &Record) -> Vec<(&Host, Vec<ServerId>)> {
    let mut hosts: Vec<(&Host, Vec<ServerId>)> = Vec::new();
    for (host, n) in record.place.hosts.iter().zip(0..).filter(|(host, _)| **host != Host::Local) {
        match hosts.iter_mut().find(|(known, _)| *known == host) {
            Some((_, servers)) => servers.push(ServerId(n)),
            None => hosts.push((host, vec![ServerId(n)])),
        }
    }
    hosts
}

/// Fails if a process of the cluster is known to be running, because any dumps would be incomplete or from an earlier
/// run.
async fn refuse_if_it_runs(record: &Record, ssh: &Ssh, dir: &Path) -> Result<(), Failure> {
    let is_watched = lock::holder_of(dir).is_some();
    let lives =
        is_watched || ls::look(record, ssh).await.iter().any(|server| server.state == State::Lives);
    match lives {
        true => Err(Failure::Failed(format!(
            "cannot fetch dumps: the cluster in {} is running, and its data is in memory; stop the cluster \
             first (coord stop --dir {})",
            dir.display(),
            quoted(dir)
        ))),
        false => Ok(()),
    }
}

/// Returns a script that prints `dump <bytes> <index of the directory> <name>` for each existing dump.
fn list_script(directories: &[String], names: &[String]) -> String {
    let mut script = String::new();
    for (n, directory) in directories.iter().enumerate() {
        for name in names {
            let path = quote::word(&format!("{directory}/{name}"));
            script += &format!("[ -f {path} ] && echo dump $(wc -c <{path}) {n} {name}\n");
        }
    }
    script + "exit 0\n"
}

fn parse(said: &str, directories: &[String], names: &[String]) -> Vec<Dump> {
    let dump = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["dump", bytes, directory, name] = words[..] else { return None };
        let directory = directories.get(directory.parse::<usize>().ok()?)?.clone();
        let name = names.iter().find(|known| *known == name)?.clone();
        Some(Dump { name, directory, bytes: bytes.parse().ok()? })
    };
    said.lines().filter_map(dump).collect()
}

/// Fetches a dump, unless a file with its name and size is already in the directory. Returns a description of the
/// result.
async fn fetch(ssh: &Ssh, host: &Host, dump: &Dump, into: &Path) -> Result<String, String> {
    let target = into.join(&dump.name);
    if let Ok(metadata) = fs::symlink_metadata(&target) {
        let bytes = metadata.len();
        return match bytes == dump.bytes {
            true => Ok(format!("already here, {}", units::bytes(bytes))),
            false => Err(format!(
                "a different file of {bytes} bytes has this name, and no file is overwritten; move {} away, \
                 or collect into another directory",
                target.display()
            )),
        };
    }
    let part = Part(into.join(format!(".{}.{}", dump.name, std::process::id())));
    let path = quote::word(&format!("{}/{}", dump.directory, dump.name));
    let mut child = Command::new("ssh")
        .args(ssh.arguments(host, &format!("exec cat <{path}\n")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            format!("cannot start ssh: {error}; check that the ssh client is installed")
        })?;
    let output = child.stdout.take().expect("standard output is a pipe");
    receive(output, &part.0, dump, host).await?;
    let ended = timeout(STALL_TIMEOUT, child.wait_with_output()).await;
    let ended =
        ended.map_err(|_| "ssh does not exit".to_owned())?.map_err(|error| error.to_string())?;
    let got = fs::metadata(&part.0).map_err(|error| error.to_string())?.len();
    if !ended.status.success() || got != dump.bytes {
        let said = last_lines(&ended.stderr).unwrap_or_else(|| format!("ssh: {}", ended.status));
        return Err(format!("received {got} of {} bytes: {said}", dump.bytes));
    }
    renameat_with(CWD, &part.0, CWD, &target, RenameFlags::NOREPLACE).map_err(|error| {
        format!("cannot rename the received file to {}: {error}", target.display())
    })?;
    Ok(units::bytes(got))
}

/// Writes the received bytes to a file that only its owner can read, and reports the progress at intervals.
async fn receive(
    mut from: impl AsyncRead + Unpin,
    path: &Path,
    dump: &Dump,
    host: &Host,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = files::create(path).map_err(failed)?;
    let mut chunk = vec![0; 256 << 10];
    let (mut got, mut said) = (0, Instant::now());
    loop {
        let read = timeout(STALL_TIMEOUT, from.read(&mut chunk)).await;
        let count = match read {
            Ok(read) => read.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no data for {} s", STALL_TIMEOUT.as_secs())),
        };
        if count == 0 {
            break;
        }
        file.write_all(&chunk[..count]).map_err(failed)?;
        got += count as u64;
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            let done = units::bytes_of(got, dump.bytes);
            let _ = writeln!(std::io::stderr(), "{} from {host}: {done}", dump.name);
        }
    }
    file.sync_all().map_err(failed)
}

/// A temporary file. Dropping this value removes the file, unless it was renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::record;

    #[test]
    fn dumps_are_found_in_directories_whose_names_need_quotes() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("it's there");
        fs::create_dir(&there).unwrap();
        fs::write(there.join("server_1.primary"), "12345").unwrap();
        let directories = ["/nowhere", &*there.to_string_lossy()].map(str::to_owned);
        let names = ROLES.map(|role| format!("server_1.{role}"));
        let script = list_script(&directories, &names);
        let said = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(said.status.success());
        let said = format!("Welcome!\n{}dump 7 9 x\n", String::from_utf8(said.stdout).unwrap());
        let found = parse(&said, &directories, &names);
        let directory = directories[1].clone();
        assert_eq!(found, [Dump { name: names[0].clone(), directory, bytes: 5 }]);
    }

    #[test]
    fn only_ssh_hosts_are_queried_and_each_of_them_once() {
        let mut record = record(1);
        record.place.hosts[2] = record.place.hosts[1].clone();
        let hosts = hosts(&record);
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0].1, [ServerId(1), ServerId(2)]);
    }
}
