//! The kind of a start (found, take over or restore a cluster), and the listening sockets.

use std::path::PathBuf;

use kv_protocol::ServerId;
use kv_protocol::cluster_file::{ClusterFile, Host};
use kv_protocol::control_message::Started;
use tokio::net::TcpListener;

use crate::args::Args;
use crate::collect;
use crate::failure::Failure;
use crate::listener;
use crate::logs::Console;
use crate::machine::{self, Boot};
use crate::moves;
use crate::place::{Elsewhere, Moved};
use crate::plan::Plan;
use crate::restart::{self, Found};
use crate::restore::{self, Restoration};
use crate::settings::Settings;
use crate::spawn::ssh::Ssh;
use crate::store::Record;

/// The state that a coordinator begins with.
pub(super) enum Beginning {
    /// No earlier state: the cluster is new.
    New,
    /// The state that an earlier coordinator has stored.
    Earlier(Box<Record>),
    /// Dumps to be restored.
    Restored(Restoration),
}

impl Beginning {
    pub(super) fn earlier(&self) -> Option<&Record> {
        match self {
            Beginning::Earlier(earlier) => Some(earlier),
            Beginning::New | Beginning::Restored(_) => None,
        }
    }
}

/// Determines the kind of the start and makes the plan for it.
pub(super) async fn make_plan(
    args: &Args,
    file: ClusterFile,
    console: Console,
) -> Result<(Plan, Beginning), Failure> {
    if !args.restore.is_empty() {
        return restored(args, &args.restore, file, console).await;
    }
    match restart::look(args, &file, console).await? {
        Found::Running(mut earlier) => {
            let (file, moves) = take_moves(file, &mut earlier, console);
            let plan = Plan::again(args, file, &earlier, &moves).await?;
            let changes = plan.settings.changes_since(&earlier.settings, true);
            changes.iter().for_each(|line| console.say(line));
            plan.settings.kept_timeout(args).iter().for_each(|line| console.warn(line));
            Ok((plan, Beginning::Earlier(earlier)))
        }
        Found::Stopped => {
            let mut dirs = vec![args.dir.clone()];
            dirs.extend(fetched(args, console).await?);
            restored(args, &dirs, file, console).await
        }
        Found::Nothing => Ok((Plan::make(args, file, &Settings::default()).await?, Beginning::New)),
    }
}

/// Fetches the dumps that a stop has left on ssh hosts, and returns their directory. A dump that cannot be fetched is
/// reported; the restore decides whether the others suffice. Returns `None` if no state can be read, or if no server
/// was on an ssh host.
async fn fetched(args: &Args, console: Console) -> Result<Option<PathBuf>, Failure> {
    let last = restore::last_record(std::slice::from_ref(&args.dir), &args.dir);
    let Some(record) = last.filter(collect::has_hosts) else { return Ok(None) };
    let into = restore::fetched::directory(&args.dir, record.state.cluster);
    let ssh = Ssh::new(&record.settings.with(args));
    console.say(&format!("fetching the dumps on the ssh hosts into {}", into.display()));
    let wrong = collect::fetch_all(&record, &ssh, &into, |line| console.say(line)).await?;
    wrong.iter().for_each(|reason| console.warn(&format!("not fetched: {reason}")));
    Ok(Some(into))
}

/// Compares the cluster file with the state and records the moves. Returns the effective file and the places that
/// move to other hosts now.
fn take_moves(
    file: ClusterFile,
    earlier: &mut Record,
    console: Console,
) -> (ClusterFile, Vec<ServerId>) {
    let reading = moves::read(file, &earlier.place);
    for id in &reading.moves {
        let at = usize::from(id.0);
        let (before, line) = (&earlier.place.hosts[at], &reading.file.servers[at]);
        console.say(&format!(
            "server {id} moves from {before} to {}, as the cluster file specifies",
            line.host
        ));
        let known = |started: &Started| {
            earlier.place.elsewhere.iter().any(|other| other.started.member == started.member)
        };
        if let Some(started) = earlier.state.servers[at].started.filter(|started| !known(started)) {
            let is_out_of_reach = *before == Host::Local
                && Boot::place(earlier.place.machine.as_ref()) == machine::Place::Elsewhere;
            let host = before.clone();
            earlier.place.elsewhere.push(Elsewhere { host, started, is_out_of_reach });
        }
    }
    tell_moved(&reading.moved, console);
    earlier.place.moved = reading.moved;
    (reading.file, reading.moves)
}

/// Warns about the outdated lines of the cluster file.
fn tell_moved(moved: &[Moved], console: Console) {
    for moved in moved {
        console.warn(&format!(
            "the cluster file still names {} for server {}, which coord replace moved to another host; \
             replace the line by: {}",
            moved.from,
            moved.server,
            moved.words()
        ));
    }
}

async fn restored(
    args: &Args,
    dirs: &[PathBuf],
    file: ClusterFile,
    console: Console,
) -> Result<(Plan, Beginning), Failure> {
    let last = restore::last_record(dirs, &args.dir);
    let reading = last.as_ref().map(|last| moves::read(file.clone(), &last.place));
    // A restore spawns every process anew, so the moves in the file need no action.
    let (file, moved) = reading.map_or((file, Vec::new()), |reading| (reading.file, reading.moved));
    tell_moved(&moved, console);
    let earlier = last.map(|last| last.settings).unwrap_or_default();
    let mut plan = Plan::make(args, file, &earlier).await?;
    let mut restoration = restore::prepare(args, dirs, &mut plan, console).await?;
    restoration.moved = moved;
    Ok((plan, Beginning::Restored(restoration)))
}

/// Binds both ports: those of the flags, else those of the earlier coordinator, else any free ones. A restored cluster
/// keeps its previous clients port if that port is free, because clients still connect to that port.
pub(super) async fn listen(
    args: &Args,
    plan: &Plan,
    beginning: &Beginning,
) -> Result<(TcpListener, TcpListener), Failure> {
    let Some(earlier) = beginning.earlier() else {
        let before = match beginning {
            Beginning::Restored(restoration) if args.clients_port == 0 => restoration.clients_port,
            _ => 0,
        };
        let again = match before {
            0 => None,
            port => listener::bind(plan.listen, port, "clients", "-c").await.ok(),
        };
        let clients = match again {
            Some(clients) => clients,
            None => listener::bind(plan.listen, args.clients_port, "clients", "-c").await?,
        };
        return Ok((
            clients,
            listener::bind(plan.listen, args.servers_port, "servers", "-s").await?,
        ));
    };
    let ports = earlier.place.ports;
    let given = |port: u16, before: u16| if port == 0 { before } else { port };
    let clients = given(args.clients_port, ports.clients);
    let servers = given(args.servers_port, ports.servers);
    let clients = listener::bind_again(plan.listen, clients, "clients").await?;
    Ok((clients, listener::bind_again(plan.listen, servers, "servers").await?))
}
