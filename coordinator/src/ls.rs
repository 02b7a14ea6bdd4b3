//! `coord ls`: the servers of the cluster in a directory, and whether they are running, with or without a
//! coordinator.
//!
//! ```text
//!   DIR/coord.lock         -> the coordinator, if one is running
//!   DIR/coordinator.state  -> each server's host and process
//!        here: pidfd, start time      ssh hosts: `server --look`, a few hosts at a time
//! ```

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use kv_core::cluster::DurableServer;
use kv_protocol::ServerId;
use kv_protocol::cluster_file::Host;
use kv_protocol::control_message::Started;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::args::LsArgs;
use crate::failure::Failure;
use crate::lock;
use crate::machine::{Boot, Place};
use crate::printable::printable;
use crate::restore::alive::hosts;
use crate::spawn::adopted;
use crate::spawn::ssh::Ssh;
use crate::store::{self, Record};
use crate::survey::MAX_SSH_AT_ONCE;

/// The exit status if neither a coordinator nor a server is running.
const NOTHING: u8 = 3;
/// The exit status if no server is known to be running, and the state of some is unknown.
const UNKNOWN: u8 = 4;

/// The state of a server's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Lives,
    Gone,
    /// The state of the process cannot be determined.
    Unknown,
    /// No process has reported so far.
    Unstarted,
}

/// A server of the stored state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Seen {
    pub(crate) id: ServerId,
    pub(crate) host: String,
    pub(crate) pid: Option<u32>,
    pub(crate) state: State,
    /// The reason why its state is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Listing {
    cluster: String,
    /// The process id of the running coordinator: 0 if it is unknown, `None` if no coordinator is running.
    coordinator: Option<u32>,
    clients_port: u16,
    servers: Vec<Seen>,
}

/// Prints the servers. The exit status shows whether any server or a coordinator is running.
///
/// # Errors
/// The state cannot be read.
pub(crate) async fn run(args: &LsArgs) -> Result<ExitCode, Failure> {
    let loaded = store::load(&args.dir).map_err(|error| Failure::Failed(error.to_string()))?;
    let coordinator = lock::holder_of(&args.dir);
    let Some(record) = loaded else {
        let dir = args.dir.display();
        let words = match coordinator {
            Some(pid) => format!("no state in {dir} yet; a coordinator runs there (pid {pid})"),
            None => format!("no cluster in {dir}: there is no {}", store::FILE_NAME),
        };
        print(&(if args.json { "null".to_owned() } else { words }));
        return Ok(coordinator.map_or(ExitCode::from(NOTHING), |_| ExitCode::SUCCESS));
    };
    let mut ssh = Ssh::new(&record.settings);
    ssh.config = args.ssh_config.clone().or(ssh.config);
    ssh.remote_dir = args.remote_dir.clone().unwrap_or(ssh.remote_dir);
    let servers = look(&record, &ssh).await;
    let code = exit_code(coordinator.is_some(), &servers);
    let cluster = record.state.cluster.to_string();
    let clients_port = record.place.ports.clients;
    let listing = Listing { cluster, coordinator, clients_port, servers };
    let text = match args.json {
        true => serde_json::to_string(&listing)
            .map_err(|error| Failure::Failed(format!("cannot encode the list as JSON: {error}")))?,
        false => render(&listing, &args.dir),
    };
    print(&text);
    Ok(ExitCode::from(code))
}

fn print(text: &str) {
    // A closed standard output is no failure, because the exit status has the result.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn exit_code(is_watched: bool, servers: &[Seen]) -> u8 {
    let has = |state: State| servers.iter().any(|server| server.state == state);
    match () {
        () if is_watched || has(State::Lives) => 0,
        () if has(State::Unknown) => UNKNOWN,
        () => NOTHING,
    }
}

fn render(listing: &Listing, dir: &Path) -> String {
    let living = listing.servers.iter().filter(|server| server.state == State::Lives).count();
    let coordinator = match listing.coordinator {
        Some(0) => "a coordinator runs".to_owned(),
        Some(pid) => format!("its coordinator runs (pid {pid})"),
        None => "no coordinator runs".to_owned(),
    };
    let mut text = format!(
        "cluster {} in {}: {coordinator}; {living} of {} servers are known to run",
        listing.cluster,
        dir.display(),
        listing.servers.len()
    );
    for server in &listing.servers {
        let pid = server.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        let state = match (&server.state, &server.reason) {
            (State::Lives, _) => format!("lives{pid}"),
            (State::Gone, _) => format!("gone{pid}"),
            (State::Unstarted, _) => "has not reported".to_owned(),
            (State::Unknown, reason) => {
                format!(
                    "NOT KNOWN{pid}: {}",
                    printable(reason.as_deref().unwrap_or("no reason given"))
                )
            }
        };
        text += &format!("\n  server {} on {}: {state}", server.id, printable(&server.host));
    }
    text
}

/// Looks up every process of a state, and returns the servers in ring order. After an orderly stop every process is
/// known to have ended, so none is looked up.
pub(crate) async fn look(record: &Record, ssh: &Ssh) -> Vec<Seen> {
    if record.has_ended_well {
        return seen(record, &[], true);
    }
    let turn = Rc::new(Semaphore::new(MAX_SSH_AT_ONCE));
    let mut asking = JoinSet::new();
    let mut responses: Vec<(Started, Result<bool, String>)> = Vec::new();
    for (host, processes) in hosts(record) {
        if *host == Host::Local {
            responses
                .extend(processes.iter().map(|started| (*started, look_here(record, started))));
            continue;
        }
        let (host, ssh, turn) = (host.clone(), ssh.clone(), Rc::clone(&turn));
        asking.spawn_local(async move {
            let _permit = turn.acquire().await;
            let responses = ssh.ask_after(&host, &processes).await;
            let responses: Vec<Result<bool, String>> = match responses {
                Ok(responses) => responses
                    .into_iter()
                    .map(|one| one.map_err(|error| error.to_string()))
                    .collect(),
                Err(error) => vec![Err(error.to_string()); processes.len()],
            };
            processes.into_iter().zip(responses).collect::<Vec<_>>()
        });
    }
    while let Some(asked) = asking.join_next().await {
        responses.extend(asked.into_iter().flatten());
    }
    seen(record, &responses, false)
}

/// Returns the state of each server according to the results of the look-ups. If `all_gone` is true, every process is
/// known to have ended, and there are no results.
fn seen(
    record: &Record,
    responses: &[(Started, Result<bool, String>)],
    all_gone: bool,
) -> Vec<Seen> {
    let places = record.place.hosts.iter().zip(&record.state.servers).zip(0..);
    let seen = |((host, server), n): ((&Host, &DurableServer), u16)| {
        let pid = server.started.map(|started| started.pid);
        let response = server.started.and_then(|started| {
            responses
                .iter()
                .find(|(of, _)| of.member == started.member)
                .map(|(_, response)| response)
        });
        let (state, reason) = match (pid, response) {
            (None, _) => (State::Unstarted, None),
            (Some(_), _) if all_gone => (State::Gone, None),
            (_, Some(Ok(true))) => (State::Lives, None),
            (_, Some(Ok(false))) => (State::Gone, None),
            (_, Some(Err(reason))) => (State::Unknown, Some(reason.clone())),
            (_, None) => (State::Unknown, None),
        };
        Seen { id: ServerId(n), host: Host::to_string(host), pid, state, reason }
    };
    places.map(seen).collect()
}

/// Returns whether a process that the state calls local is running.
fn look_here(record: &Record, started: &Started) -> Result<bool, String> {
    match Boot::place(record.place.machine.as_ref()) {
        Place::Past => Ok(false),
        Place::Elsewhere => {
            Err("the state was written on another machine; run coord ls there".to_owned())
        }
        Place::Here => match adopted::open(started) {
            Ok(found) => Ok(found.is_some()),
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(states: &[State]) -> Vec<Seen> {
        let server = |(n, state): (u16, &State)| Seen {
            id: ServerId(n),
            host: "ssh://d\x1bb".into(),
            pid: Some(7),
            state: state.clone(),
            reason: (*state == State::Unknown).then(|| "Connection refused\x1b".into()),
        };
        (0..).zip(states).map(server).collect()
    }

    #[test]
    fn the_exit_status_shows_whether_a_process_runs_or_its_state_is_unknown() {
        use State::{Gone, Lives, Unknown, Unstarted};
        assert_eq!(exit_code(false, &seen(&[Gone, Lives, Unknown])), 0);
        assert_eq!(exit_code(false, &seen(&[Gone, Unknown, Unstarted])), UNKNOWN);
        assert_eq!(exit_code(false, &seen(&[Gone, Gone, Unstarted])), NOTHING);
        assert_eq!(exit_code(true, &seen(&[Gone, Gone, Gone])), 0);
    }

    #[test]
    fn each_server_has_a_line_and_a_host_cannot_send_escapes() {
        use State::{Gone, Lives, Unknown};
        let servers = seen(&[Lives, Unknown, Gone]);
        let listing = Listing { cluster: "c".into(), coordinator: None, clients_port: 1, servers };
        let text = render(&listing, Path::new("/run"));
        assert_eq!(text.lines().count(), 4, "{text}");
        for words in
            ["no coordinator runs; 1 of 3", "lives (pid 7)", "NOT KNOWN (pid 7): Conn", "gone"]
        {
            assert!(text.contains(words), "no {words:?} in {text}");
        }
        assert!(!text.contains('\x1b'));
    }
}
