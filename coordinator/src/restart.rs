//! The state that an earlier coordinator has left in the directory, and how a start continues from it.
//!
//! | stored state                    | recorded processes     | result                                          |
//! |---------------------------------|------------------------|-------------------------------------------------|
//! | none                            |                        | new cluster *                                   |
//! | of an unfinished restore        |                        | rejected unless all had loaded: use --restore   |
//! | any                             | one is running         | takeover with the next epoch                    |
//! | has never served                | none is running        | set aside as *.old; new cluster                 |
//! | stopped, all groups dumped      | all have exited        | set aside as *.old; new cluster                 |
//! | has served                      | none is running        | rejected: its data is no longer in memory       |
//! | any                             | a host is unreachable  | rejected, unless a process is found running     |
//! | of another machine              | some ran on localhost  | rejected unless the cluster file moves them     |
//! | damaged                         |                        | rejected                                        |
//!
//! With `--resume`, a cluster without running processes is restored where this table founds a new cluster or rejects
//! for lack of running processes. The exception is a cluster that has never served, without the state of an earlier one
//! beside it: a new cluster is founded. * If there are dumps but no state, `--resume` rejects the start.

use std::path::Path;

use kv_protocol::aside;
use kv_protocol::cluster_file::{ClusterFile, Host};
use kv_protocol::{Incarnation, Member, ServerId, ViewVersion};

use crate::args::Args;
use crate::failure::Failure;
use crate::logs::Console;
use crate::machine::{Boot, Place};
use crate::restore::{alive, gather, last_record};
use crate::settings::Settings;
use crate::spawn::adopted;
use crate::spawn::ssh::Ssh;
use crate::store::{self, FILE_NAME, OLD_NAME, Record};
use crate::{moves, quote};

/// The maximum number of dumps listed by name. Further dumps are only counted.
const MAX_NAMED: usize = 12;

/// The kind of start that the contents of the directory require.
#[derive(Debug)]
pub(crate) enum Found {
    /// A new cluster is to be founded.
    Nothing,
    /// The cluster of this state is running and is to be taken over.
    Running(Box<Record>),
    /// The cluster of this directory was stopped and is to be restored (`--resume`).
    Stopped,
}

/// Inspects the directory and decides how to start. If it continues or replaces an earlier cluster, kills processes
/// that have not reported; before a new cluster, also sets the state of the earlier one aside.
///
/// # Errors
/// The start is rejected; the message has the reason and what to do.
pub(crate) async fn look(
    args: &Args,
    file: &ClusterFile,
    console: Console,
) -> Result<Found, Failure> {
    let loaded = store::load(&args.dir).map_err(|error| Failure::Failed(error.to_string()))?;
    let Some(record) = loaded else {
        let servers = file.servers.len();
        let found = match args.resume && !args.dir.join(OLD_NAME).exists() {
            true if has_dumps(servers, &args.dir) => Err(Failure::Failed(no_state(&args.dir))),
            true => Ok(Found::Nothing),
            false if args.resume => Ok(Found::Stopped),
            false => Ok(Found::Nothing),
        };
        if matches!(found, Ok(Found::Nothing)) {
            tell_left_aside(&args.dir, console);
        }
        return found;
    };
    let ssh = Ssh::new(&record.settings.with(args));
    if args.resume && is_half_restored(&record) && !lives(&record, &ssh, &args.dir, file).await? {
        return Ok(Found::Stopped);
    }
    if is_half_restored(&record) {
        return Err(Failure::Failed(format!(
            "{} belongs to a cluster whose restore did not finish: its coordinator ended before every server \
             had loaded its dumps, and a new one would start with empty tables. Nothing was started; give \
             --restore DIR again",
            args.dir.join(FILE_NAME).display()
        )));
    }
    // After an orderly stop, every process is known to have exited, so none is looked up.
    if !record.has_ended_well && lives(&record, &ssh, &args.dir, file).await? {
        check_flags(&record, args, file)?;
        end_strays(&record, &ssh).await;
        return Ok(Found::Running(Box::new(record)));
    }
    if args.resume && (record.state.has_served || args.dir.join(OLD_NAME).exists()) {
        return Ok(Found::Stopped);
    }
    if record.state.has_served && !record.has_ended_well {
        return Err(Failure::Failed(refusal(&record, &args.dir)));
    }
    end_strays(&record, &ssh).await;
    store::set_aside(&args.dir, &record).map_err(|error| Failure::Failed(error.to_string()))?;
    let dir = args.dir.display();
    console.say(&format!(
        "the cluster {} of the last run has ended: its {FILE_NAME} in {dir} is renamed to {OLD_NAME}, and a \
         new, empty cluster is founded",
        record.state.cluster
    ));
    tell_left_aside(&args.dir, console);
    let servers = record.place.hosts.len();
    if record.state.has_served && (has_dumps(servers, &args.dir) || has_remote(&record)) {
        console.say(
            "the dumps of that run are kept as *.old beside the servers' logs; to restore them, copy them \
             elsewhere under their plain names, with the state, and give --restore DIR",
        );
    }
    Ok(Found::Nothing)
}

/// Returns the stored settings with which a start with these flags continues, or the settings of a new cluster if there
/// is no readable state. The start itself reports a damaged state.
pub(crate) fn stored_settings(args: &Args) -> Settings {
    let in_dir = || store::load(&args.dir).ok().flatten();
    let dirs = match args.restore.as_slice() {
        [] => match in_dir() {
            Some(record) if args.resume || !record.has_ended_well => return record.settings,
            _ if args.resume => std::slice::from_ref(&args.dir),
            _ => return Settings::default(),
        },
        dirs => dirs,
    };
    last_record(dirs, &args.dir).map(|last| last.settings).unwrap_or_default()
}

fn no_state(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "there are dumps of servers in {dir}, but no {FILE_NAME}, which records which of them count; nothing \
         was started. Put the state back: without the state, servers that may still run are not found. If \
         every copy of the state is lost, end every server of that cluster, and give --restore DIR \
         --without-state, which rebuilds the state from the dumps. Only if the data is not needed, move the \
         dumps away to found a new, empty cluster"
    )
}

/// Warns about dumps in the directory that a start without `--restore` does not load.
fn tell_left_aside(dir: &Path, console: Console) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| gather::is_dump_name(name)).collect();
    names.sort();
    let (last, older): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| aside::plain(name) == name);
    if last.is_empty() && older.is_empty() {
        return;
    }
    let list = |names: &[String]| match names.len() {
        0..=MAX_NAMED => names.join(", "),
        many => format!("{}, and {} more", names[..MAX_NAMED].join(", "), many - MAX_NAMED),
    };
    let mut text = format!("the new cluster starts EMPTY; not loaded, in {}:", dir.display());
    if !last.is_empty() {
        text += &format!(
            "\n  {} dump{} of the last run, which the servers rename to *.old: {}",
            last.len(),
            if last.len() == 1 { "" } else { "s" },
            list(&last)
        );
    }
    if !older.is_empty() {
        let count = older.len();
        text += &format!("\n  {count} of earlier runs, which keep their names: {}", list(&older));
    }
    text += "\n  to use their data, stop this cluster and start with --restore DIR";
    console.warn(&text);
}

/// Returns whether the state belongs to a restored cluster whose first processes have not all loaded their dumps. Only
/// a coordinator that reads the dumps can assign dumps to new processes.
fn is_half_restored(record: &Record) -> bool {
    let is_founding = record.state.views.iter().all(|view| view.version == ViewVersion(0));
    is_founding && !record.state.foundings.is_empty()
}

/// Returns whether any process of the state is running. It is an error if none is known to run, and the state of one is
/// unknown.
async fn lives(
    record: &Record,
    ssh: &Ssh,
    dir: &Path,
    file: &ClusterFile,
) -> Result<bool, Failure> {
    let hosts = alive::hosts(record);
    let here = hosts.iter().find(|(host, _)| **host == Host::Local);
    let mut here = here.map_or_else(Vec::new, |(_, processes)| processes.clone());
    if Boot::place(record.place.machine.as_ref()) == Place::Elsewhere {
        // A server that the cluster file moves to another host is not looked up here, whether it is running or not.
        let moves = moves::read(file.clone(), &record.place).moves;
        here.retain(|started| !moves.contains(&started.member.server));
    }
    let here = match Boot::place(record.place.machine.as_ref()) {
        Place::Here => here,
        Place::Past => Vec::new(),
        Place::Elsewhere if here.is_empty() => here,
        Place::Elsewhere => {
            let path = dir.join(FILE_NAME);
            return Err(Failure::Failed(format!(
                "{} was written on another machine, and server {} of the last run may still run there; \
                 nothing was started. Start coord on that machine: it takes over the servers that run. If \
                 that machine is lost for good, name another host for that server in the cluster file; then \
                 the server is started on that host. {}",
                path.display(),
                here[0].member.server,
                if_all_are_gone(&path)
            )));
        }
    };
    let mut unknown = None;
    for started in here {
        match adopted::open(&started) {
            Ok(Some(_)) => return Ok(true),
            Ok(None) => {}
            Err(error) => {
                let (id, pid) = (started.member.server, started.pid);
                unknown.get_or_insert(format!(
                    "server {id} (pid {pid}) of the last run may still run: {error}; nothing was started. \
                     Start coord on the machine, in the container and as the user of the last start: it takes \
                     over the servers that run. {}",
                    if_all_are_gone(&dir.join(FILE_NAME))
                ));
            }
        }
    }
    for (host, processes) in hosts {
        if *host == Host::Local {
            continue;
        }
        match ssh.living(host, &processes).await {
            Ok(living) if !living.is_empty() => return Ok(true),
            Ok(_) => {}
            Err(error) => {
                let id = processes[0].member.server;
                unknown.get_or_insert(format!(
                    "server {id} of the last run may still run on {host}, which cannot be checked by ssh: \
                     {error}; nothing was started. Bring the host back, or correct how ssh reaches it \
                     (--ssh-config, --remote-dir; now {}), and start again. {}",
                    quote::word(&ssh.remote_dir),
                    if_all_are_gone(&dir.join(FILE_NAME))
                ));
            }
        }
    }
    unknown.map_or(Ok(false), |reason| Err(Failure::Failed(reason)))
}

/// Returns the advice for a start that cannot find out which servers run. The safe option comes first, because the
/// state is the only way back to running servers.
fn if_all_are_gone(state: &Path) -> String {
    format!(
        "Leave {} where it is: running servers hold all data, and coord finds them by this file. Only if it \
         is certain that all servers have ended, --restore DIR --force restores the data of the dumps",
        state.display()
    )
}

/// Checks that the flags and the cluster file match the recorded cluster.
fn check_flags(record: &Record, args: &Args, file: &ClusterFile) -> Result<(), Failure> {
    let place = &record.place;
    let runs = format!("{} belongs to a running cluster", args.dir.join(FILE_NAME).display());
    let usage = |what: String| Err(Failure::Usage(format!("{runs}{what}")));
    let (has, servers) = (place.hosts.len(), file.servers.len());
    if has != servers {
        return usage(format!(" with {has} servers, but the cluster file names {servers}"));
    }
    let shards = record.state.shards;
    if let Some(other) = args.shards.filter(|other| *other != shards) {
        return usage(format!(" with --shards {shards}, not {other}"));
    }
    if args.hash_tags && !record.state.hash_tags {
        return usage(
            " without hash tags; omit --hash-tags, which only a new cluster can have".into(),
        );
    }
    Ok(())
}

/// Kills processes that were started and have not reported. This coordinator would reject their reports anyway, but
/// they may hold the ports of their successors.
async fn end_strays(record: &Record, ssh: &Ssh) {
    let state = &record.state;
    let unknown = |host: &Host| -> Vec<Member> {
        let places = record.place.hosts.iter().zip(0..).filter(|(its, _)| *its == host);
        let silent = places.filter(|(_, n)| state.servers[usize::from(*n)].started.is_none());
        silent.map(|(_, n)| state.member(ServerId(n))).collect()
    };
    match adopted::end_strays(&unknown(&Host::Local)) {
        Ok(0) => {}
        Ok(ended) => {
            tracing::info!("killed {ended} server processes that had not reported their start");
        }
        Err(error) => tracing::warn!(
            "cannot kill server processes that had not reported their start: {error}; they may hold the ports of \
             new servers"
        ),
    }
    for (n, host) in record.place.hosts.iter().enumerate() {
        let names: Vec<Incarnation> =
            unknown(host).iter().map(|member| member.incarnation).collect();
        let is_first = record.place.hosts[..n].iter().all(|before| before != host);
        if *host == Host::Local || !is_first || names.is_empty() {
            continue;
        }
        if let Err(error) = ssh.end_strays(host, &names).await {
            tracing::warn!(
                "cannot kill server processes on {host} that had not reported their start: {error}; they may \
                 hold the ports of new servers"
            );
        }
    }
}

fn refusal(record: &Record, dir: &Path) -> String {
    let path = dir.join(FILE_NAME);
    let shown = path.display();
    let restore = match has_dumps(record.place.hosts.len(), dir) {
        true => {
            format!(" There are dumps in {}: --restore DIR restores their data.", dir.display())
        }
        false if has_remote(record) => {
            " If its servers have left dumps on their hosts, --restore DIR restores their data."
                .to_owned()
        }
        false => String::new(),
    };
    let end = match record.state.is_stopping {
        true => "whose stop was interrupted or did not dump every table",
        false => "which has served and was not stopped",
    };
    format!(
        "{shown} belongs to cluster {}, {end}, and none of its processes runs: its data is no longer in \
         memory; nothing was started.{restore} To continue with an empty cluster, without the data of the \
         dumps, move the file away: mv {} {}",
        record.state.cluster,
        quote::word(&path.to_string_lossy()),
        quote::word(&format!("{}.lost", path.to_string_lossy()))
    )
}

fn has_remote(record: &Record) -> bool {
    record.place.hosts.iter().any(|host| *host != Host::Local)
}

fn has_dumps(servers: usize, dir: &Path) -> bool {
    (0..servers).any(|n| {
        ["primary", "secondary"].iter().any(|role| dir.join(format!("server_{n}.{role}")).exists())
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::store::tests::record;

    #[test]
    fn only_a_restore_continues_a_cluster_whose_founders_have_not_loaded() {
        use kv_core::cluster::Founding;
        let mut record = record(0);
        assert!(!is_half_restored(&record), "a new cluster has nothing to load");
        record.state.foundings = vec![Founding { above: ViewVersion(7), is_lost: false }; 3];
        assert!(is_half_restored(&record));
        record.state.views[0].version = ViewVersion(8);
        assert!(
            !is_half_restored(&record),
            "its first processes have reported, so they have loaded"
        );
    }

    #[test]
    fn flags_or_a_cluster_file_of_another_cluster_are_bad_usage() {
        let text = "3\nlocalhost 0 0 0\nssh://db:22 0 0 0\nlocalhost 0 0 0\n";
        let say = |text: &str, flags: &str| {
            let line = format!("coord -C file{flags}");
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            check_flags(&record(1), &args, &ClusterFile::parse(text).unwrap())
        };
        // Addresses and ports may change, because the servers receive them.
        let moved = "3\nlocalhost 0 0 0\nssh://bd:22 0 0 0\nlocalhost 0 0 0\n";
        assert!(say(moved, "").is_ok());
        for good in
            ["", " --shards 2", " -s 4002", " -c 5000", " --advertise 10.0.0.1 --bind 10.0.0.1"]
        {
            assert!(say(text, good).is_ok(), "{good}");
        }
        let line = "coord -C file --advertise 10.0.0.1";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let mut wide = record(1);
        wide.place.listen = "0.0.0.0".parse().unwrap();
        check_flags(&wide, &args, &ClusterFile::parse(text).unwrap()).unwrap();
        let args = Args::try_parse_from("coord -C file --hash-tags".split(' ')).unwrap();
        let mut tagged = record(1);
        tagged.state.hash_tags = true;
        check_flags(&tagged, &args, &ClusterFile::parse(text).unwrap()).unwrap();
        let more = "4\nlocalhost 0 0 0\nssh://db:22 0 0 0\nlocalhost 0 0 0\nlocalhost 0 0 0\n";
        for (text, flags, words) in [
            (text, " --shards 3", "--shards 2, not 3"),
            (text, " --hash-tags", "a running cluster without hash tags; omit --hash-tags"),
            (more, "", "3 servers, but the cluster file names 4"),
        ] {
            let Err(Failure::Usage(said)) = say(text, flags) else { panic!("{flags}") };
            assert!(said.contains(words) && said.contains(FILE_NAME), "{said}");
        }
    }
}
