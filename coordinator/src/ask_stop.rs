//! `coord stop`, `detach`, `replace` and `set`: each sends a request to the running coordinator, prints its
//! messages, and exits with its result.
//!
//! If the coordinator has died, `coord stop` takes over its servers in this process and stops them.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser as _;

use crate::args::{Args, DetachArgs, ReplaceArgs, SetArgs, StopArgs};
use crate::failure::Failure;
use crate::ls::{self, State};
use crate::printable::printable;
use crate::spawn::ssh::Ssh;
use crate::stop_port::{Call, Line, Replacement, Request, Setting, path_in};
use crate::{driver, lock, store};

/// The timeout for the exit of a coordinator that has sent its last message.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which the exit of that coordinator is polled.
const END_LOOK: Duration = Duration::from_millis(10);

/// The outcome of a request to a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Done,
    /// No coordinator is running in the directory.
    NoCoordinator,
}

/// Requests a stop, and waits for the end of the stop.
///
/// # Errors
/// The stop failed, or the coordinator cannot be reached.
pub(crate) fn stop(args: &StopArgs) -> Result<Asked, Failure> {
    ask(&args.dir, &call_of(args), "to stop")
}

fn call_of(args: &StopArgs) -> Call {
    Call::Stop(Request { dump_dir: args.dump_dir.clone(), force: args.force })
}

/// Requests that a coordinator exits and leaves its servers running.
///
/// # Errors
/// The coordinator rejects the request, or none is running in the directory.
pub(crate) fn detach(args: &DetachArgs) -> Result<(), Failure> {
    ask_running(&args.dir, &Call::Detach { detach: () }, "to detach")
}

/// Requests that a coordinator moves a place to a new process.
///
/// # Errors
/// The coordinator rejects the request, or none is running in the directory.
pub(crate) fn replace(args: &ReplaceArgs) -> Result<(), Failure> {
    let ports = args.ports.as_slice().try_into().unwrap_or([0; 3]);
    let wanted = Replacement { server: args.server, host: args.host.clone(), ports };
    ask_running(&args.dir, &Call::Replace(wanted), "to replace a server")
}

/// Requests a change of settings.
///
/// # Errors
/// The coordinator rejects the request, or none is running in the directory.
pub(crate) fn set(args: &SetArgs) -> Result<(), Failure> {
    let setting = Setting { memory_limit: args.memory_limit.clone(), eviction: args.eviction };
    ask_running(&args.dir, &Call::Set { set: setting }, "to change its settings")
}

/// Sends a request like [`ask`], but fails if no coordinator is running.
fn ask_running(dir: &Path, call: &Call, what: &str) -> Result<(), Failure> {
    match ask(dir, call, what)? {
        Asked::Done => Ok(()),
        Asked::NoCoordinator => Err(Failure::Failed(format!(
            "no coordinator runs in {}; give the directory of the cluster with --dir (coord ls lists the \
             servers that run)",
            dir.display()
        ))),
    }
}

/// Sends a request, and prints each line of the response until the last one. After a successful stop or detach, also
/// waits for the exit of the coordinator.
fn ask(dir: &Path, call: &Call, what: &str) -> Result<Asked, Failure> {
    let shown = dir.display();
    let failed = |error: io::Error| {
        Failure::Failed(format!(
            "the request to the coordinator in {shown} {what} has failed: {error}; check --dir, and run this \
             command as the coordinator's user"
        ))
    };
    let connected = File::open(dir).and_then(|dir| UnixStream::connect(path_in(&dir)));
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error)
            if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind())
                && lock::holder_of(dir).is_none() =>
        {
            return Ok(Asked::NoCoordinator);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut text = serde_json::to_string(call)
        .map_err(|error| Failure::Failed(format!("cannot encode the request as JSON: {error}")))?;
    text.push('\n');
    stream.write_all(text.as_bytes()).map_err(failed)?;
    for line in BufReader::new(stream).lines() {
        let line: Line = serde_json::from_str(&line.map_err(failed)?).map_err(|error| {
            Failure::Failed(format!(
                "cannot parse the coordinator's response: {error}; use the same version of coord as the running \
                 coordinator"
            ))
        })?;
        if line.ended == Some(false) {
            return Err(Failure::Failed(printable_lines(&line.say)));
        }
        // A closed standard output is not a failure.
        let _ = writeln!(io::stdout(), "{}", printable_lines(&line.say));
        if line.ended.is_some() {
            if matches!(call, Call::Stop(_) | Call::Detach { .. }) {
                await_end(dir);
            }
            return Ok(Asked::Done);
        }
    }
    Err(Failure::Failed(format!(
        "the coordinator in {shown} ended before it reported the outcome; see its log, and coord ls for the \
         servers that run"
    )))
}

/// Waits until a coordinator that has sent its last message has exited, so that another coordinator can start in its
/// directory. Returns after [`END_TIMEOUT`] in any case.
fn await_end(dir: &Path) {
    let deadline = Instant::now() + END_TIMEOUT;
    let mut process = None;
    while Instant::now() < deadline {
        match lock::holder_of(dir) {
            Some(pid) => process = Some(pid),
            // The kernel releases the lock before the process has ended completely.
            None if process.is_none_or(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists()) => {
                return;
            }
            None => {}
        }
        std::thread::sleep(END_LOOK);
    }
}

/// Stops a cluster whose coordinator has died: takes its servers over and orders them to drain, dump and exit.
///
/// # Errors
/// The state in the directory cannot be read, no server is known to be running, or the stop failed.
pub(crate) async fn stop_alone(args: &StopArgs) -> Result<(), Failure> {
    let dir = args.dir.display();
    let nothing_to_stop = |what: &str| {
        Err(Failure::Failed(format!(
            "cannot ask the coordinator in {dir} to stop: no coordinator runs there, and {what}; give the \
             directory of the cluster with --dir"
        )))
    };
    let loaded = store::load(&args.dir).map_err(|error| Failure::Failed(error.to_string()))?;
    let Some(record) = loaded else {
        return nothing_to_stop("the directory has no state of a cluster");
    };
    let servers = ls::look(&record, &Ssh::new(&record.settings)).await;
    let living = servers.iter().filter(|server| server.state == State::Lives).count();
    if living == 0 {
        let unknown = servers.iter().find(|server| server.state == State::Unknown);
        return match unknown {
            None => nothing_to_stop("no server of its cluster runs"),
            Some(server) => nothing_to_stop(&format!(
                "it is not known whether server {} on {} runs: {}; bring that host back",
                server.id,
                server.host,
                printable(server.reason.as_deref().unwrap_or("no reason given"))
            )),
        };
    }
    let count = servers.len();
    let _ = writeln!(
        io::stderr(),
        "coord: no coordinator runs in {dir}: taking over its servers ({living} of {count} are known to run) \
         to stop them in an orderly way"
    );
    let file = record.cluster_file();
    let mut own = Args::try_parse_from(["coord", "--daemon", "--cluster-file", store::FILE_NAME])
        .map_err(|error| Failure::Usage(error.to_string()))?;
    own.dir.clone_from(&args.dir);
    own.only_stops = true;
    driver::serve(own, file, Some(call_of(args))).await
}

/// Escapes text for a terminal, except for line ends.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}
