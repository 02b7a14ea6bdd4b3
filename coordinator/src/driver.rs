//! The driver of [`Cluster`]: passes inputs to it and carries out its effects.
//!
//! ```text
//!   links, clients, orders, process tasks, timers, signals
//!        |  input(...)                                        one thread, no await inside
//!        v
//!   kv_core::cluster  -> effects -> carry_out: open a connection, queue an order, spawn, kill, store, log
//! ```

mod adopt;
mod beginning;
mod detach;
mod ending;
mod processes;
mod replace;
mod storing;
mod tell;

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kv_core::cluster::{
    Cluster, ClusterConfig, DUMP_ADVICE, DownCause, DurableState, Effect, KillReason, LinkId,
    NO_PROGRESS, ReplaceRefused, StopOutcome, StopPhase, StopWait,
};
use kv_protocol::cluster_file::{ClusterFile, Host, ServerLine};
use kv_protocol::control_message::{self, Order, Started};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::status::ClusterState;
use kv_protocol::{
    BootId, ClusterId, ClusterKey, Epoch, FailureTimeout, GroupId, Member, Peer, ServerId, Time,
    View, size,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use beginning::{Beginning, listen, make_plan};

use crate::args::Args;
use crate::cluster_file;
use crate::failure::Failure;
use crate::lock::DirectoryLock;
use crate::logs::{self, Console};
use crate::machine::{self, Machine};
use crate::place::{Elsewhere, Moved, Place, Ports};
use crate::plan::Plan;
use crate::printable::printable;
use crate::ready::Ready;
use crate::restart::{self, Found};
use crate::restore::{self, Load, Restoration, send, written};
use crate::settings::Settings;
use crate::snapshot::Snapshots;
use crate::spawn::Exit;
use crate::spawn::local::Launch;
use crate::spawn::remote::RemoteServer;
use crate::stop_port::{self, Call, Callers};
use crate::store::{self, Record, StateFile};
use crate::survey::MAX_SSH_AT_ONCE;
use crate::{
    clients, clock, links, listener, moves, orders, progress, quote, random, screen, stop,
};

/// The timeout of the whole start, from the first process to the last stream.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Descriptors reserved for other uses than connections.
const RESERVED_DESCRIPTORS: u64 = 256;

/// The duration after which an unfinished store raises an alarm.
const STORE_LATE: Duration = Duration::from_secs(1);
/// The interval at which a failed store with the same reason is logged again.
const STORE_WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// The maximum number of queued requests from the socket in the directory.
const MAX_STOP_REQUESTS: usize = 8;
/// The interval at which a failed order with the same reason is reported again.
const FAILURE_TOLD_EVERY: Duration = Duration::from_secs(60);
/// The interval at which a failure to start a process for the same reason is reported again.
const START_TOLD_EVERY: Duration = Duration::from_secs(600);

/// The time and the reason of the last report of a failed order, by server and order.
type ToldFailures = HashMap<(ServerId, &'static str), (Time, String)>;

/// The state that all tasks share.
pub(crate) struct Driver {
    cluster: RefCell<Cluster>,
    /// The map and the status for clients.
    snapshots: Arc<Snapshots>,
    /// The effects of the cluster's creation, carried out before any input.
    first: RefCell<Vec<Effect>>,
    /// The directory of the coordinator's files, and the state file in it.
    dir: PathBuf,
    state_file: Arc<StateFile>,
    /// The reason and the time of the last warning about a store.
    store_warning: RefCell<Option<(String, Time)>>,
    key: ClusterKey,
    /// Notified when a store has completed.
    stored: Notify,
    /// True until the first store completes, if this coordinator takes over the cluster of an earlier one.
    takes_over: Cell<bool>,
    /// Limits the number of concurrent ssh processes.
    turn: Rc<Semaphore>,
    plan: RefCell<Rc<Plan>>,
    /// The places that `coord replace` moved to other hosts.
    moved: RefCell<Vec<Moved>>,
    /// The processes that may run on hosts other than those of their places.
    elsewhere: RefCell<Vec<Elsewhere>>,
    /// The kill channels of processes that have lost their places.
    given_up: RefCell<Vec<(Member, mpsc::Sender<()>)>>,
    console: Console,
    /// The number of descriptors available for connections.
    pub(crate) descriptors: usize,
    /// By server: the channel for its orders while its connection is open.
    orders: RefCell<Vec<Option<mpsc::Sender<Order>>>>,
    /// By server: the kill channel of its process.
    killers: RefCell<Vec<Option<mpsc::Sender<()>>>>,
    /// By server: the command line of its process, and the exit of that process.
    commands: RefCell<Vec<String>>,
    exits: RefCell<Vec<Option<Exit>>>,
    next_link: Cell<u64>,
    ready: RefCell<Option<Ready>>,
    ports: Ports,
    failure: RefCell<Option<(ServerId, String)>>,
    /// The reason for which this coordinator must end and leave the servers running.
    outdated: RefCell<Option<String>>,
    outcome: RefCell<Option<StopOutcome>>,
    /// Counts the changes of the settings that running servers receive, and notifies their connections.
    settings_told: watch::Sender<u64>,
    /// The directory for dumps, if it differs from the servers' own directories.
    dump_dir: RefCell<Option<String>>,
    /// True in a `coord stop` that runs the stop itself: a second signal does not abandon groups that are not
    /// dumped.
    only_stops: bool,
    /// The callers that wait for the end of the stop.
    pub(crate) callers: Callers,
    /// The last report of each failed order.
    told_failures: RefCell<ToldFailures>,
    /// By server: the time and the reason of the last reported failure to start a process.
    told_starts: RefCell<HashMap<ServerId, (Time, String)>>,
    /// The dumps that the founders load, if the cluster is restored.
    restoration: Option<Restoration>,
    /// The command that restores this cluster after its stop.
    restore_command: String,
    /// Notified when the main loop has something to check.
    changed: Notify,
    /// Notified when a recovery reaches another step, or when all servers load or dump.
    pub(crate) recovering: Notify,
}

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

/// Runs a cluster like [`run`], from a parsed cluster file. A `call` is carried out on a cluster that is taken
/// over; otherwise it is an error.
pub(crate) async fn serve(
    args: Args,
    file: ClusterFile,
    call: Option<Call>,
) -> Result<(), Failure> {
    if !args.core_dumps {
        forbid_core_dumps()?;
    }
    let ready = args.ready_fd.map(Ready::take).transpose()?;
    std::fs::create_dir_all(&args.dir).map_err(|error| {
        let dir = args.dir.display();
        Failure::Failed(format!("cannot create the directory {dir}: {error}; check --dir"))
    })?;
    let console = logs::start(&args)?;
    let _lock = DirectoryLock::take(&args.dir)?;
    let mut reasons = stop::listen(args.daemon)?;
    let (plan, beginning) = tokio::select! {
        // A failure of the plan is reported even if a reason to stop has already arrived.
        biased;
        plan = make_plan(&args, file, console) => {
            plan.inspect_err(|failure| console.log(failure))?
        }
        reason = reasons.recv() => {
            console.say(&format!("{}: nothing was started yet", name_of(reason)));
            return Ok(());
        }
    };
    if call.is_some() && beginning.earlier().is_none() {
        return Err(Failure::Failed("no server of the cluster runs any more".to_owned()));
    }
    let log = |failure: &Failure| console.log(failure);
    let (clients, servers) = listen(&args, &plan, &beginning).await.inspect_err(log)?;
    let port = |listener: &TcpListener| {
        listener.local_addr().map(|address: SocketAddr| address.port()).map_err(|error| {
            Failure::Failed(format!("cannot read the number of the port from the system: {error}"))
        })
    };
    let ports = Ports { clients: port(&clients)?, servers: port(&servers)? };
    let driver = Rc::new(Driver::new(&args, plan, beginning, console, ready, ports)?);
    let told = Rc::clone(&driver);
    tokio::task::spawn_local(async move {
        // The epoch must be durable before any server receives it. Otherwise the next coordinator after a crash
        // would use the same number, and the servers would reject it.
        told.until_durable().await;
        tokio::task::spawn_local(show_status(Rc::clone(&told)));
        let served = clients.into_std().and_then(|clients| {
            let snapshots = Arc::clone(&told.snapshots);
            clients::start(snapshots, clients, told.descriptors / 2)
        });
        if let Err(error) = served {
            told.end(format!("cannot serve the clients port: {error}"));
        }
        links::serve(told, servers).await;
    });
    tokio::task::spawn_local(progress::keep(Rc::clone(&driver)));
    let (requests_to, mut requests) = mpsc::channel(MAX_STOP_REQUESTS);
    if let Some(call) = call {
        // The channel is empty, so this send succeeds.
        let _ = requests_to.try_send(call);
    }
    let port = stop_port::serve(Rc::clone(&driver), args.dir.clone(), requests_to);
    tokio::task::spawn_local(port);
    driver.begin();
    let ended = main_loop(&driver, &mut reasons, &mut requests).await.inspect_err(log);
    match &ended {
        Ok(words) => driver.callers.end(true, words).await,
        Err(Failure::Usage(message) | Failure::Failed(message)) => {
            driver.callers.end(false, message).await;
        }
    }
    stop_port::remove(&args.dir);
    screen::show(&[]);
    ended.map(drop)
}

/// Keeps the cluster's key out of core dumps, and prevents debuggers of the same user from attaching.
fn forbid_core_dumps() -> Result<(), Failure> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| {
        Failure::Failed(format!(
            "cannot disable core dumps: {error}; give --core-dumps to allow them"
        ))
    })
}

fn name_of(reason: Option<stop::Reason>) -> String {
    reason.map_or_else(|| "no reason".into(), |reason| reason.to_string())
}

/// Publishes the status whenever the clients' thread requests a newer one.
async fn show_status(driver: Rc<Driver>) {
    loop {
        driver.snapshots.status_is_wanted().await;
        let mut settings = driver.plan().settings.shown();
        settings.extend(driver.dump_dir().map(|dir| ("dump-dir".to_owned(), dir)));
        driver.snapshots.publish_status(&driver.cluster(), &driver.hosts(), settings);
    }
}

/// Handles timers, signals and requests until the end, and returns the outcome in words.
async fn main_loop(
    driver: &Rc<Driver>,
    reasons: &mut mpsc::Receiver<stop::Reason>,
    requests: &mut mpsc::Receiver<Call>,
) -> Result<String, Failure> {
    let mut stopping = stop::Stopping::default();
    loop {
        if let Some(mut outcome) = driver.outcome.take() {
            let state = driver.cluster().durable().clone();
            let dump_dir = driver.dump_dir();
            let dirs = [Some(&*driver.dir), dump_dir.as_deref().map(Path::new)];
            let dirs: Vec<&Path> = dirs.into_iter().flatten().collect();
            outcome.undumped = written::not_in_any(&dirs, &state, &outcome.undumped).await;
            let concluded = driver.conclude(&outcome);
            if state.has_served {
                driver.note_end(state, concluded.is_ok());
            }
            return concluded.map(|()| "stopped".to_owned());
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
                // The socket's task carries these out itself.
                Call::Replace(_) | Call::Set(_) => {}
                Call::Detach { .. } => match driver.may_detach() {
                    Ok(()) => {
                        let words = driver.detached();
                        driver.console.say(&words);
                        return Ok(words);
                    }
                    Err(reason) => driver.warn(&format!("coord detach: {reason}")),
                },
            },
            Some(reason) = reasons.recv() => match stopping.wish(reason, clock::now()) {
                stop::Wish::Stop => {
                    driver.console.say(&format!("{reason}: stopping the cluster"));
                    driver.input(|cluster, now, sink| cluster.on_stop(now, sink));
                }
                stop::Wish::DoNotWait if driver.only_stops => driver.say(&format!(
                    "{reason}: the stop continues; coord stop --force gives up what cannot be dumped"
                )),
                stop::Wish::DoNotWait => {
                    driver.warn(&format!("{reason} again: not waiting any longer"));
                    driver.input(|cluster, now, sink| cluster.on_stop_now(now, sink));
                }
                stop::Wish::GoOn => tracing::info!("{reason} too: the stop continues"),
            },
        }
    }
}

async fn until(deadline: Option<Time>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

/// Raises the limit of open descriptors to its maximum, and returns how many are available for connections.
fn raise_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let usable = now.unwrap_or(u64::from(u32::MAX)).saturating_sub(RESERVED_DESCRIPTORS).max(64);
    usize::try_from(usable).unwrap_or(usize::MAX)
}

impl Driver {
    fn new(
        args: &Args,
        plan: Plan,
        beginning: Beginning,
        console: Console,
        ready: Option<Ready>,
        ports: Ports,
    ) -> Result<Driver, Failure> {
        let mut key = ClusterKey(random::nonzero_u128()?);
        let mut dump_dir = None;
        let (mut moved, mut elsewhere) = (Vec::new(), Vec::new());
        let (earlier, restoration) = match beginning {
            Beginning::New => (None, None),
            Beginning::Earlier(earlier) => {
                key = earlier.key;
                (moved, elsewhere) = (earlier.place.moved, earlier.place.elsewhere);
                // Applies only to a stop in progress; otherwise servers dump into their own directories.
                dump_dir = earlier.dump_dir.filter(|_| earlier.state.is_stopping);
                (Some(earlier.state), None)
            }
            Beginning::Restored(restoration) => {
                moved.clone_from(&restoration.moved);
                (None, Some(restoration))
            }
        };
        let count = plan.file.servers.len();
        let servers = plan.file.count();
        let config = ClusterConfig {
            cluster: match &earlier {
                Some(earlier) => earlier.cluster,
                None => ClusterId(random::nonzero_u128()?),
            },
            epoch: Epoch {
                number: earlier.as_ref().map_or(1, |earlier| earlier.epoch.number + 1),
                boot: BootId(random::nonzero_u64()?),
            },
            servers,
            shards: plan.shards,
            seed: random::nonzero_u64()?,
            on_double_fault: plan.settings.on_double_fault.into(),
            failure_timeout: FailureTimeout::new(plan.settings.failure_timeout),
            start_patience: START_PATIENCE
                + restoration.as_ref().map_or(Duration::ZERO, |restored| restored.patience),
            stop_patience: DRAIN_DEADLINE,
        };
        let (mut first, takes_over) = (Vec::new(), earlier.is_some());
        let now = clock::now();
        let cluster = match (earlier, &restoration) {
            (Some(earlier), _) => Cluster::restart(now, config, earlier, &mut first),
            (None, Some(restored)) => {
                Cluster::found_restored(now, config, restored.origin.clone(), &mut first)
            }
            (None, None) => Cluster::found(now, config, &mut first),
        };
        let snapshots = Snapshots::new(&cluster);
        let own = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        Ok(Driver {
            cluster: RefCell::new(cluster),
            snapshots,
            restoration,
            restore_command: quote::words(&restore::command(own, &plan.dir)),
            first: RefCell::new(first),
            dir: args.dir.clone(),
            state_file: Arc::new(
                StateFile::open(&args.dir).map_err(|error| Failure::Failed(error.to_string()))?,
            ),
            store_warning: RefCell::default(),
            key,
            stored: Notify::new(),
            takes_over: Cell::new(takes_over),
            turn: Rc::new(Semaphore::new(MAX_SSH_AT_ONCE)),
            plan: RefCell::new(Rc::new(plan)),
            moved: RefCell::new(moved),
            elsewhere: RefCell::new(elsewhere),
            given_up: RefCell::default(),
            console,
            descriptors: raise_descriptors(),
            orders: RefCell::new((0..count).map(|_| None).collect()),
            killers: RefCell::new((0..count).map(|_| None).collect()),
            commands: RefCell::new(vec![String::new(); count]),
            exits: RefCell::new(vec![None; count]),
            next_link: Cell::new(1),
            ready: RefCell::new(ready),
            ports,
            failure: RefCell::new(None),
            outdated: RefCell::new(None),
            outcome: RefCell::new(None),
            settings_told: watch::Sender::new(0),
            dump_dir: RefCell::new(dump_dir),
            only_stops: args.only_stops,
            callers: Callers::default(),
            told_failures: RefCell::default(),
            told_starts: RefCell::default(),
            changed: Notify::new(),
            recovering: Notify::new(),
        })
    }

    /// Returns the key with which the cluster's processes authenticate each other.
    pub(crate) fn key(&self) -> ClusterKey {
        self.key
    }

    /// Returns the cluster for reading. The reference must not be held across an await.
    pub(crate) fn cluster(&self) -> Ref<'_, Cluster> {
        self.cluster.borrow()
    }

    /// Passes one input to the cluster, and carries out its effects before the next input.
    pub(crate) fn input<R>(
        self: &Rc<Driver>,
        give: impl FnOnce(&mut Cluster, Time, &mut Vec<Effect>) -> R,
    ) -> R {
        let mut effects = Vec::new();
        let result = give(&mut self.cluster.borrow_mut(), clock::now(), &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
        self.snapshots.publish_map(&self.cluster());
        self.changed.notify_one();
        result
    }

    /// Ends this coordinator and leaves the servers running.
    fn end(&self, reason: String) {
        *self.outdated.borrow_mut() = Some(reason);
        self.changed.notify_one();
    }

    /// Returns whether the log is a file.
    pub(crate) fn has_log_file(&self) -> bool {
        self.console.is_file()
    }

    /// Returns a new id for a server's connection.
    pub(crate) fn next_link(&self) -> LinkId {
        LinkId(self.next_link.replace(self.next_link.get() + 1))
    }

    /// Sets the channel for the orders to a server, unless the process has lost its place.
    pub(crate) fn set_orders(&self, member: Member, sender: Option<mpsc::Sender<Order>>) {
        if self.cluster().member(member.server) != member {
            return;
        }
        self.orders.borrow_mut()[index(member)] = sender;
    }

    /// Logs that a server has reported its start.
    pub(crate) fn note_started(&self, started: &Started) {
        tracing::info!(
            "server {} reports: pid {}, address {}, ports {} (clients), {} (servers), {} (coordinator)",
            started.member.server,
            started.pid,
            started.address,
            started.clients_port,
            started.servers_port,
            started.coord_port
        );
    }

    fn carry_out(self: &Rc<Driver>, effect: Effect) {
        match effect {
            Effect::Dial { member, address } => {
                tokio::task::spawn_local(orders::keep(Rc::clone(self), member, address));
            }
            Effect::Order { to, order } => self.send(to, order),
            Effect::Kill { member, reason } => self.kill(member, reason),
            Effect::Store { number, state } => {
                tokio::task::spawn_local(Rc::clone(self).store(number, state));
            }
            Effect::Spawn { member } => self.spawn(member),
            Effect::Adopt { started } => self.adopt(started),
            Effect::Outdated { server, group, known, reported } => {
                self.tell_outdated(server, group, known, reported);
            }
            Effect::ViewChanged { before, view } => self.tell_view(&before, &view),
            Effect::Recovery { server, step } => {
                self.tell_step(server, step);
                self.recovering.notify_one();
            }
            Effect::KeepsFailing { server } => self.console.warn(&format!(
                "server {server} could not be replaced three times in a row; attempts continue, at most 10 s \
                 apart; see its log"
            )),
            Effect::CannotFollow { server, group, reason } => self.console.warn(&format!(
                "server {server} is removed as secondary of group {group}: {reason}; it is retried after a \
                 back-off; check the memory of its host, and its log"
            )),
            Effect::Unanswered { group } => self.console.warn(&format!(
                "the two holders of group {group} receive nothing from each other, and neither responds to the \
                 coordinator; nothing is changed; check the network between the hosts"
            )),
            Effect::DoubleFault { first, second } => self.console.warn(&format!(
                "server {second} failed before server {first} was back: a second fault"
            )),
            Effect::Serving => self.serve(),
            Effect::StartFailed { server, reason } => self.fail(server, reason.to_string()),
            Effect::Down { member, cause } => self.tell_down(member, cause),
            Effect::Back { member } => {
                self.console.say(&format!("server {} is up again", member.server));
            }
            Effect::OrderFailed { member, order, reason, again } => {
                self.tell_failed(member, order, &reason, again);
            }
            Effect::StopWaits { member, why } => self.tell_wait(member, why),
            Effect::GivenUp { member, group, is_dumped } => {
                self.tell_given_up(member, group, is_dumped);
            }
            Effect::Leaving { member } => {
                let id = member.server;
                self.console.say(&format!(
                    "server {id} received a stop signal: its groups are handed over to the other servers first"
                ));
            }
            Effect::AllLeave => self.console.say(
                "every server with data received a stop signal, or has dumped and exited: stopping the \
                 cluster",
            ),
            Effect::Stopping(phase) => {
                self.tell_phase(phase);
                self.recovering.notify_one();
            }
            Effect::Stopped(outcome) => *self.outcome.borrow_mut() = Some(outcome),
            other => tracing::debug!("{other:?}"),
        }
    }

    /// Carries out a request of `coord stop`.
    fn stop_as_asked(
        self: &Rc<Driver>,
        request: &stop_port::Request,
        stopping: &mut stop::Stopping,
    ) {
        if let Some(directory) = &request.dump_dir {
            self.say(&format!("coord stop: dumps go to {} from now on", printable(directory)));
            *self.dump_dir.borrow_mut() = Some(directory.clone());
            self.input(|cluster, now, sink| cluster.store_again(now, sink));
        }
        if !stopping.has_begun() {
            stopping.begin(clock::now());
            self.say("coord stop: stopping the cluster");
            self.input(|cluster, now, sink| cluster.on_stop(now, sink));
        }
        if request.dump_dir.is_some() {
            self.input(|cluster, now, sink| cluster.on_dump_again(now, sink));
        }
        if request.force {
            self.warn("coord stop --force: giving up what cannot be dumped");
            self.input(|cluster, now, sink| cluster.on_force(now, sink));
        }
    }

    /// Returns the settings that a running server receives: the coordinator's address and the memory limit.
    pub(crate) fn settings_of(&self, server: ServerId) -> control_message::Settings {
        let route = &self.plan().routes[usize::from(server.0)];
        control_message::Settings {
            coordinator: SocketAddr::new(route.coordinator, self.ports.servers),
            memory_limit: self.plan().settings.memory_limit.clone().unwrap_or_default(),
        }
    }

    /// Subscribes to changes of [`Driver::settings_of`].
    pub(crate) fn settings_told(&self) -> watch::Receiver<u64> {
        self.settings_told.subscribe()
    }

    /// Returns the directory for dumps, if it differs from the servers' own directories.
    pub(crate) fn dump_dir(&self) -> Option<String> {
        self.dump_dir.borrow().clone()
    }

    fn send(&self, to: Member, order: Order) {
        let orders = self.orders.borrow();
        let sent = orders[index(to)].as_ref().map(|sender| sender.try_send(order));
        if !matches!(sent, Some(Ok(()))) {
            // The cluster keeps the order and issues it again on the next connection.
            tracing::warn!("{} to server {} waits for its connection", order.name(), to.server);
        }
    }

    fn serve(&self) {
        let host = match self.plan().listen {
            address if address.is_loopback() => "localhost".to_owned(),
            _ => self.plan().routes[0].coordinator.to_string(),
        };
        let port = self.ports.clients;
        self.console.say(&format!("serving; clients connect with: client -h {host} -p {port}"));
        if let Some(restored) = &self.restoration {
            self.tell_restored(restored);
        }
        if let Some(ready) = self.ready.take() {
            ready.announce(self.cluster().config().cluster, self.ports);
        }
    }

    /// Returns, by server, whether it has loaded its dumps, and their size in bytes. Returns `None` unless the
    /// servers of a restored cluster are loading.
    pub(crate) fn loading(&self) -> Option<Vec<(bool, u64)>> {
        let cluster = self.cluster();
        let lasts = cluster.is_founding() && cluster.state() != ClusterState::Stopping;
        let restored = self.restoration.as_ref().filter(|_| lasts)?;
        let server = |id| {
            let bytes = restored.of(id).iter().map(|load| load.bytes).sum();
            (cluster.started(id).is_some(), bytes)
        };
        Some((0..cluster.count()).map(ServerId).map(server).collect())
    }
}

fn index(member: Member) -> usize {
    usize::from(member.server.0)
}

/// Returns how a process ended and the last line of its output, in one line.
fn last_words(exit: &Exit) -> String {
    match exit.last_words.as_deref().and_then(|words| words.lines().last()) {
        Some(words) => format!("{}: {words}", exit.how),
        None => exit.how.clone(),
    }
}

fn with_last_words(exit: &Exit) -> String {
    match &exit.last_words {
        Some(words) => {
            format!("{}; its last output:\n    {}", exit.how, words.replace('\n', "\n    "))
        }
        None => exit.how.clone(),
    }
}
