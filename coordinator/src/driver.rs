//! The coordinator of a running cluster: the driver of [`kv_core::cluster::Cluster`]. It passes inputs to the cluster
//! and carries out its effects.
//!
//! ```text
//!   links (servers, orders), processes, requests, timers, signals
//!        |  input(...)                                        one thread, no await inside
//!        v
//!   kv_core::cluster -> effects -> persistence:   store the state; its completion is an input, too
//!                               -> processes:     spawn, adopt, kill
//!                               -> links:         connect to a server, send it an order
//!                               -> announcements: the log, the terminal, callers
//! ```
//!
//! `beginning` determines the kind of the start, and `founding` creates the driver. The main loop is in this file.
//! `ending`, `detach` or, for an outdated coordinator, `takeover` ends the loop. `context` has the state that all of
//! these modules share.

mod announcements;
mod beginning;
mod callers;
mod context;
mod detach;
mod display;
mod effects;
mod ending;
mod flush;
mod founding;
mod links;
mod persistence;
mod places;
mod process_table;
mod processes;
mod repeats;
mod requests;
mod set;
mod takeover;

use std::net::SocketAddr;
use std::rc::Rc;

use kv_protocol::Time;
use kv_protocol::cluster_file::ClusterFile;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use beginning::{listen, make_plan};
use context::Driver;

use crate::args::Args;
use crate::failure::Failure;
use crate::lock::DirectoryLock;
use crate::place::Ports;
use crate::ready::Ready;
use crate::stop_port::Call;
use crate::{clock, cluster_file, logs, own_limits, screen, stop};

/// The maximum number of queued requests from the socket in the directory of the cluster.
const MAX_REQUESTS: usize = 8;

/// Runs a cluster from start to stop.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let file = cluster_file::read(&args)?;
    if !args.daemon && stop::input_is_null() {
        return Err(Failure::Usage(
            "cannot use /dev/null as standard input: the end of input stops the cluster; nothing was started; \
             give --daemon to ignore standard input"
                .to_owned(),
        ));
    }
    serve(args, file, None).await
}

/// Runs a cluster like [`run`], from a parsed cluster file. If there is a `call`, the start must be a takeover, and the
/// call is carried out after it.
pub(crate) async fn serve(
    args: Args,
    file: ClusterFile,
    call: Option<Call>,
) -> Result<(), Failure> {
    if !args.core_dumps {
        own_limits::forbid_core_dumps()?;
    }
    let ready = args.ready_fd.map(Ready::take).transpose()?;
    std::fs::create_dir_all(&args.dir).map_err(|error| {
        let dir = args.dir.display();
        Failure::Failed(format!("cannot create the directory {dir}: {error}; check --dir"))
    })?;
    let console = logs::start(&args)?;
    let log = |failure: &Failure| console.log(failure);
    let _lock = DirectoryLock::take(&args.dir)?;
    let mut reasons = stop::listen(args.daemon)?;
    let (plan, beginning) = tokio::select! {
        // A failure of the plan is reported even if a trigger of a stop has already arrived.
        biased;
        plan = make_plan(&args, file, console) => plan.inspect_err(log)?,
        reason = reasons.recv() => {
            console.say(&format!("{}: nothing was started yet", name_of(reason)));
            return Ok(());
        }
    };
    if call.is_some() && beginning.earlier().is_none() {
        return Err(Failure::Failed(
            "no server of the cluster runs any more; there is nothing to stop".to_owned(),
        ));
    }
    plan.settings.useless_eviction().iter().for_each(|line| console.warn(line));
    let (clients, servers) = listen(&args, &plan, &beginning).await.inspect_err(log)?;
    let ports = Ports { clients: port_of(&clients)?, servers: port_of(&servers)? };
    let (driver, first) = Driver::new(&args, plan, beginning, console, ready, ports)?;
    let driver = Rc::new(driver);
    let (requests_to, mut requests) = mpsc::channel(MAX_REQUESTS);
    if let Some(call) = call {
        // The channel is empty, so this send succeeds.
        let _ = requests_to.try_send(call);
    }
    tokio::task::spawn_local(links::serve(Rc::clone(&driver), clients, servers));
    tokio::task::spawn_local(display::keep(Rc::clone(&driver)));
    tokio::task::spawn_local(requests::serve(Rc::clone(&driver), args.dir.clone(), requests_to));
    driver.begin(first);
    let ended = main_loop(&driver, &mut reasons, &mut requests, args.only_stops).await;
    let ended = ended.inspect_err(log);
    match &ended {
        Ok(words) => driver.callers.end(true, words).await,
        Err(Failure::Usage(message) | Failure::Failed(message)) => {
            driver.callers.end(false, message).await;
        }
    }
    requests::remove(&args.dir);
    screen::show(&[]);
    ended.map(drop)
}

/// Handles timers, signals and requests until the end, and returns the outcome as text. If this coordinator
/// `only_stops` the cluster, a second Ctrl+C abandons no tables and kills no servers.
async fn main_loop(
    driver: &Rc<Driver>,
    reasons: &mut mpsc::Receiver<stop::Reason>,
    requests: &mut mpsc::Receiver<Call>,
    only_stops: bool,
) -> Result<String, Failure> {
    let mut stopping = stop::Stopping::default();
    loop {
        if let Some(outcome) = driver.outcome.take() {
            return driver.end_stopped(outcome).await.map(|()| "stopped".to_owned());
        }
        if let Some(reason) = driver.outdated.take() {
            return Err(Failure::Failed(reason));
        }
        if driver.failure.borrow().is_some() && !stopping.has_begun() {
            stopping.begin(clock::now());
            driver.input(|cluster, now, sink| cluster.on_stop_now(now, sink));
            continue;
        }
        let timeout = driver.cluster().next_timeout();
        tokio::select! {
            () = until(timeout) => {
                driver.input(|cluster, now, sink| cluster.on_timeout(now, sink));
            }
            () = driver.changed.notified() => {}
            Some(call) = requests.recv() => match call {
                Call::Stop(request) => driver.stop_as_asked(&request, &mut stopping),
                // The task of the connection carries these requests out.
                Call::Replace(_) | Call::Set { .. } | Call::Flush { .. } => {}
                Call::Detach { .. } => match driver.may_detach() {
                    Ok(()) => {
                        let words = driver.detached();
                        driver.console.say(&words);
                        return Ok(words);
                    }
                    Err(reason) => driver.warn(&format!("coord detach: {reason}")),
                },
            },
            Some(reason) = reasons.recv() => {
                driver.stop_as_signaled(reason, &mut stopping, only_stops);
            }
        }
    }
}

async fn until(deadline: Option<Time>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

fn name_of(reason: Option<stop::Reason>) -> String {
    reason.map_or_else(|| "no reason".into(), |reason| reason.to_string())
}

fn port_of(listener: &TcpListener) -> Result<u16, Failure> {
    listener.local_addr().map(|address: SocketAddr| address.port()).map_err(|error| {
        Failure::Failed(format!("cannot get the port of a listening socket: {error}"))
    })
}
