//! The driver: feeds the cluster's brain and carries out what it decides.
//!
//! ```text
//!   links, clients, orders, process tasks, timers, signals
//!        |  input(...)                                        one thread, no await inside
//!        v
//!   kv_core::cluster  -> effects -> carry_out: spawn a dialler, queue an order, kill, say
//! ```

mod adopt;

use std::cell::{Cell, Ref, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kv_core::cluster::{
    Cluster, ClusterConfig, DownCause, DurableState, Effect, KillReason, LinkId, StopOutcome,
    StopPhase,
};
use kv_protocol::cluster_file::{ClusterFile, Host, ServerLine};
use kv_protocol::control_message::{Order, Started};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::status::ClusterState;
use kv_protocol::{BootId, ClusterId, ClusterKey, Epoch, Member, Peer, ServerId, Time, View};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::args::Args;
use crate::lock::DirectoryLock;
use crate::logs::{self, Console};
use crate::machine::Machine;
use crate::plan::{self, Plan};
use crate::ready::{Ports, Ready};
use crate::restore::{self, Load, Restoration, send, written};
use crate::spawn::local::LocalServer;
use crate::spawn::ssh::RemoteServer;
use crate::spawn::{Exit, command_line, printable, quote, server_arguments};
use crate::store::{self, Place, Record};
use crate::survey::MAX_SSH_AT_ONCE;
use crate::{
    Failure, clients, clock, links, listener, orders, progress, random, restart, screen, stop,
};

/// How long the whole start may take, from the first process to the last stream.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Descriptors that the process needs beside connections.
const RESERVED_DESCRIPTORS: u64 = 256;

/// How long a store that failed waits before it is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What all tasks share.
pub(crate) struct Driver {
    cluster: RefCell<Cluster>,
    /// What the brain wants done before any input.
    first: RefCell<Vec<Effect>>,
    /// Where the brain's memory is stored, and what is stored with it.
    dir: PathBuf,
    key: ClusterKey,
    place: Place,
    /// A store is done.
    stored: Notify,
    /// The cluster was found as an earlier coordinator has left it, and this was not yet told.
    takes_over: Cell<bool>,
    /// How many ssh there may be at once.
    turn: Rc<Semaphore>,
    plan: Plan,
    console: Console,
    /// The servers' hosts as the cluster file writes them, in ring order.
    pub(crate) hosts: Vec<String>,
    /// Descriptors that this process may have open.
    pub(crate) descriptors: usize,
    /// By server: where its orders go while the connection stands.
    orders: RefCell<Vec<Option<mpsc::Sender<Order>>>>,
    /// By server: whoever waits for its process, and may kill it.
    killers: RefCell<Vec<Option<mpsc::Sender<()>>>>,
    /// By server: the command it was started with, and how it ended.
    commands: RefCell<Vec<String>>,
    exits: RefCell<Vec<Option<Exit>>>,
    next_link: Cell<u64>,
    ready: RefCell<Option<Ready>>,
    ports: Ports,
    failure: RefCell<Option<(ServerId, String)>>,
    /// Why this coordinator must end and leave the servers as they are.
    outdated: RefCell<Option<String>>,
    outcome: RefCell<Option<StopOutcome>>,
    /// What founders begin with, where the cluster is restored.
    restoration: Option<Restoration>,
    /// The command that brings this cluster back after its stop.
    restore_command: String,
    /// Something changed that the main loop must look at.
    changed: Notify,
    /// Some recovery is in another step, or all servers load or dump.
    pub(crate) recovering: Notify,
}

/// Runs a cluster from start to stop.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let ready = args.ready_fd.map(Ready::take).transpose()?;
    let file = plan::read_file(&args)?;
    std::fs::create_dir_all(&args.dir).map_err(|error| {
        let dir = args.dir.display();
        Failure::Failed(format!("make the directory {dir}: {error}; check --dir"))
    })?;
    let console = logs::start(&args)?;
    let _lock = DirectoryLock::take(&args.dir)?;
    let mut reasons = stop::listen(args.daemon)?;
    let (plan, beginning) = tokio::select! {
        // What is wrong with the plan is said even to someone who leaves at once.
        biased;
        plan = make_plan(&args, file, console) => {
            plan.inspect_err(|failure| console.log(failure))?
        }
        reason = reasons.recv() => {
            console.say(&format!("{}: nothing was started yet", name_of(reason)));
            return Ok(());
        }
    };
    let log = |failure: &Failure| console.log(failure);
    let (clients, servers) = listen(&args, &plan, beginning.earlier()).await.inspect_err(log)?;
    let port = |listener: &TcpListener| {
        listener.local_addr().map(|address: SocketAddr| address.port()).map_err(|error| {
            Failure::Failed(format!("ask the system for the port that was taken: {error}"))
        })
    };
    let ports = Ports { clients: port(&clients)?, servers: port(&servers)? };
    let driver = Rc::new(Driver::new(&args, plan, beginning, console, ready, ports)?);
    let told = Rc::clone(&driver);
    tokio::task::spawn_local(async move {
        // An epoch that a crash could take back must not be told: its successor would have the same
        // number, and the servers would refuse it.
        told.until_durable().await;
        tokio::task::spawn_local(clients::serve(Rc::clone(&told), clients));
        links::serve(told, servers).await;
    });
    tokio::task::spawn_local(progress::keep(Rc::clone(&driver)));
    driver.begin();
    let ended = main_loop(&driver, &mut reasons).await.inspect_err(log);
    screen::show(&[]);
    ended
}

/// What a coordinator begins with.
enum Beginning {
    /// Nothing.
    New,
    /// What an earlier one has left.
    Earlier(Box<Record>),
    /// Dumps.
    Restored(Restoration),
}

impl Beginning {
    fn earlier(&self) -> Option<&Record> {
        match self {
            Beginning::Earlier(earlier) => Some(earlier),
            Beginning::New | Beginning::Restored(_) => None,
        }
    }
}

/// What is to be done: a new cluster, the one that an earlier coordinator has left, or one from dumps.
async fn make_plan(
    args: &Args,
    file: ClusterFile,
    console: Console,
) -> Result<(Plan, Beginning), Failure> {
    if !args.restore.is_empty() {
        let mut plan = Plan::make(args, file).await?;
        let restoration = restore::prepare(args, &mut plan, console).await?;
        return Ok((plan, Beginning::Restored(restoration)));
    }
    match restart::look(args, &file, console).await? {
        Some(earlier) => {
            let plan = Plan::again(args, file, &earlier)?;
            let changes = plan.settings.changes_since(&earlier.settings, true);
            changes.iter().for_each(|line| console.say(line));
            Ok((plan, Beginning::Earlier(Box::new(earlier))))
        }
        None => Ok((Plan::make(args, file).await?, Beginning::New)),
    }
}

/// Listens on both ports: those of the flags, or those that an earlier coordinator had.
async fn listen(
    args: &Args,
    plan: &Plan,
    earlier: Option<&Record>,
) -> Result<(TcpListener, TcpListener), Failure> {
    let Some(earlier) = earlier else {
        let clients = listener::bind(plan.listen, args.clients_port, "clients", "-c").await?;
        return Ok((
            clients,
            listener::bind(plan.listen, args.servers_port, "servers", "-s").await?,
        ));
    };
    let ports = earlier.place.ports;
    let clients = if args.clients_port == 0 { ports.clients } else { args.clients_port };
    let clients = listener::bind_again(plan.listen, clients, "clients").await?;
    Ok((clients, listener::bind_again(plan.listen, ports.servers, "servers").await?))
}

fn name_of(reason: Option<stop::Reason>) -> String {
    reason.map_or_else(|| "no reason".into(), |reason| reason.to_string())
}

/// Timers, signals and the end.
async fn main_loop(
    driver: &Rc<Driver>,
    reasons: &mut mpsc::Receiver<stop::Reason>,
) -> Result<(), Failure> {
    let mut stopping = stop::Stopping::default();
    loop {
        if let Some(mut outcome) = driver.outcome.take() {
            let state = driver.cluster().durable().clone();
            outcome.undumped = written::not_in(&driver.dir, &state, &outcome.undumped).await;
            let concluded = driver.conclude(&outcome);
            if concluded.is_ok() && state.has_served {
                driver.note_good_end(state);
            }
            return concluded;
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
            Some(reason) = reasons.recv() => match stopping.wish(reason, clock::now()) {
                stop::Wish::Stop => {
                    driver.console.say(&format!("{reason}: stopping the cluster"));
                    driver.input(|cluster, now, sink| cluster.on_stop(now, sink));
                }
                stop::Wish::DoNotWait => {
                    driver.console.warn(&format!("{reason} again: not waiting any longer"));
                    driver.input(|cluster, now, sink| cluster.on_stop_now(now, sink));
                }
                stop::Wish::GoOn => tracing::info!("{reason} too: the stop goes on"),
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

/// Raises the bound on open descriptors as far as it may be, and says where it is.
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
        let (earlier, restoration) = match beginning {
            Beginning::New => (None, None),
            Beginning::Earlier(earlier) => {
                key = earlier.key;
                (Some(earlier.state), None)
            }
            Beginning::Restored(restoration) => (None, Some(restoration)),
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
            silence: args.timeout,
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
        let own = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        Ok(Driver {
            cluster: RefCell::new(cluster),
            restoration,
            restore_command: quote::words(&restore::command(own, &plan.dir)),
            first: RefCell::new(first),
            dir: args.dir.clone(),
            key,
            place: Place {
                ports,
                listen: plan.listen,
                machine: Some(Machine::this()),
                hosts: plan.file.servers.iter().map(|line| line.host.clone()).collect(),
                routes: plan.routes.clone(),
            },
            stored: Notify::new(),
            takes_over: Cell::new(takes_over),
            turn: Rc::new(Semaphore::new(MAX_SSH_AT_ONCE)),
            hosts: plan.file.servers.iter().map(|line| line.host.to_string()).collect(),
            plan,
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
            changed: Notify::new(),
            recovering: Notify::new(),
        })
    }

    /// What the cluster's processes know each other by.
    pub(crate) fn key(&self) -> ClusterKey {
        self.key
    }

    /// The cluster, to be looked at; never kept across an await.
    pub(crate) fn cluster(&self) -> Ref<'_, Cluster> {
        self.cluster.borrow()
    }

    /// Gives the cluster one input, and carries out its effects before the next.
    pub(crate) fn input<R>(
        self: &Rc<Driver>,
        give: impl FnOnce(&mut Cluster, Time, &mut Vec<Effect>) -> R,
    ) -> R {
        let mut effects = Vec::new();
        let result = give(&mut self.cluster.borrow_mut(), clock::now(), &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
        self.changed.notify_one();
        result
    }

    /// Whether the log is a file.
    pub(crate) fn has_log_file(&self) -> bool {
        self.console.is_file()
    }

    /// A name for a new connection of a server.
    pub(crate) fn next_link(&self) -> LinkId {
        LinkId(self.next_link.replace(self.next_link.get() + 1))
    }

    /// Where the orders to a server go from now on.
    pub(crate) fn set_orders(&self, member: Member, sender: Option<mpsc::Sender<Order>>) {
        if self.cluster().member(member.server) != member {
            return;
        }
        self.orders.borrow_mut()[index(member)] = sender;
    }

    /// Tells that a server has reported.
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
                "server {server} could not be replaced three times in a row; it is tried on, with \
                 pauses of up to 10 s; see its log"
            )),
            Effect::Unanswered { group } => self.console.warn(&format!(
                "the two holders of group {group} do not hear each other, and neither answers \
                 here; nothing is changed; check the network between the hosts"
            )),
            Effect::DoubleFault { first, second } => self.console.warn(&format!(
                "server {second} is gone before server {first} was back: a second fault"
            )),
            Effect::Serving => self.serve(),
            Effect::StartFailed { server, reason } => self.fail(server, reason.to_string()),
            Effect::Down { member, cause } => self.tell_down(member, cause),
            Effect::Back { member } => {
                self.console.say(&format!("server {} is up again", member.server));
            }
            Effect::OrderFailed { member, order, reason, again } => {
                let (id, reason) = (member.server, printable(&reason));
                let again = if again { "; it is told once more" } else { "" };
                self.console
                    .warn(&format!("server {id} could not carry out {order}: {reason}{again}"));
            }
            Effect::Leaving { member } => {
                let id = member.server;
                self.console.say(&format!("server {id} was told to stop: draining and dumping it"));
            }
            Effect::Stopping(phase) => {
                self.tell_phase(phase);
                self.recovering.notify_one();
            }
            Effect::Stopped(outcome) => *self.outcome.borrow_mut() = Some(outcome),
            other => tracing::debug!("{other:?}"),
        }
    }

    /// Notes that another cluster may follow. Where that fails the next start asks for a word, which is no
    /// harm.
    fn note_good_end(&self, state: DurableState) {
        let record = Record { has_ended_well: true, ..self.record(state) };
        if let Err(error) = store::store(&self.dir, &record) {
            self.console.warn(&format!("store the state: {error}"));
        }
    }

    fn record(&self, state: DurableState) -> Record {
        Record {
            key: self.key,
            place: self.place.clone(),
            settings: self.plan.settings.clone(),
            has_ended_well: false,
            state,
        }
    }

    /// Makes the brain's memory durable, however often it takes; nobody is told meanwhile.
    async fn store(self: Rc<Driver>, number: u64, state: Box<DurableState>) {
        let record = Arc::new(self.record(*state));
        loop {
            let (dir, record) = (self.dir.clone(), Arc::clone(&record));
            let stored = tokio::task::spawn_blocking(move || store::store(&dir, &record)).await;
            match stored {
                Ok(Ok(())) => break,
                Ok(Err(error)) => self.console.warn(&format!("store the state: {error}")),
                Err(error) => self.console.warn(&format!("store the state: {error}")),
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
        self.input(|cluster, now, sink| cluster.on_stored(now, number, sink));
        self.stored.notify_waiters();
        if self.takes_over.replace(false) {
            self.tell_taken_over();
        }
    }

    fn tell_view(&self, before: &View, view: &View) {
        let name = |member: Option<Member>| {
            member.map_or("nobody".to_owned(), |member| format!("server {}", member.server))
        };
        let other = match view.peer {
            Peer::None => "alone".to_owned(),
            Peer::Secondary(member) => format!("with secondary {}", member.server),
            Peer::Candidate(member) => format!("copying to {}", member.server),
        };
        tracing::info!(
            "group {}: view {} -> {}: {} {other}{}",
            view.group,
            before.version,
            view.version,
            name(view.primary),
            if view.handover { ", by hand-over" } else { "" }
        );
        if view.primary.is_none() {
            self.console.warn(&format!(
                "group {} is LOST: no holder is left; its keys are answered LOST",
                view.group
            ));
        }
    }

    fn tell_step(&self, server: ServerId, step: Option<u8>) {
        let Some(step) = step else {
            self.console
                .say(&format!("server {server} is back: its groups have two copies, at home"));
            return;
        };
        let what = progress::step_words(step);
        self.console.say(&format!("server {server}, step {step}: {what}"));
    }

    fn send(&self, to: Member, order: Order) {
        let orders = self.orders.borrow();
        let sent = orders[index(to)].as_ref().map(|sender| sender.try_send(order));
        if !matches!(sent, Some(Ok(()))) {
            // The brain keeps it, and gives it again when the next connection stands.
            tracing::warn!("{} to server {} waits for its connection", order.name(), to.server);
        }
    }

    fn kill(&self, member: Member, reason: KillReason) {
        let id = member.server;
        match reason {
            KillReason::Unanswered(_) => {
                let pid = self.cluster().started(id).map_or(0, |started| started.pid);
                self.console.warn(&format!("server {id} (pid {pid}) is killed: {reason}"));
            }
            _ => tracing::info!("server {id} is killed: {reason}"),
        }
        if let Some(killer) = &self.killers.borrow()[index(member)] {
            // One word that waits is enough.
            let _ = killer.try_send(());
        }
    }

    fn serve(&self) {
        let host = match self.plan.listen {
            address if address.is_loopback() => "localhost".to_owned(),
            _ => self.plan.routes[0].coordinator.to_string(),
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

    /// Every group that is not LOST has two copies: what it was restored from is not needed any more.
    fn tell_restored(&self, restored: &Restoration) {
        let (old, new) = (restored.cluster, self.cluster().config().cluster);
        self.console.say(&format!("restored: cluster {old} goes on as cluster {new}"));
        restored.finish();
        for line in &self.plan.file.servers {
            let count = restored.of(line.id).len();
            if line.host != Host::Local && count > 0 {
                let (ssh, host, id) = (self.plan.ssh.clone(), line.host.clone(), line.id);
                let turn = Rc::clone(&self.turn);
                tokio::task::spawn_local(async move {
                    let _permit = turn.acquire().await;
                    send::remove(&ssh, &host, id, count).await;
                });
            }
        }
    }

    /// What a process begins with that is spawned now: only founders of a restored cluster load, whoever
    /// replaces one later is copied to.
    fn loads(&self, server: ServerId) -> Vec<Load> {
        let restored = self.restoration.as_ref().filter(|_| self.cluster().is_founding());
        restored.map_or_else(Vec::new, |restored| restored.of(server).to_vec())
    }

    /// While the servers load what they were restored from: by server, whether it is done, and the bytes
    /// of its dumps.
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

    fn tell_down(&self, member: Member, cause: DownCause) {
        if self.failure.borrow().is_some() {
            // It is said at the end, with its reason.
            return;
        }
        let id = member.server;
        let how = match cause {
            DownCause::Silent => "no heartbeat came in time".to_owned(),
            DownCause::LinkLost => "its connection to the coordinator ended".to_owned(),
            DownCause::Exited => match &self.exits.borrow()[index(member)] {
                Some(exit) => with_last_words(exit),
                None => "its process has ended".to_owned(),
            },
        };
        self.console.warn(&format!("server {id} is down: {how}"));
    }

    fn tell_phase(&self, phase: StopPhase) {
        if self.failure.borrow().is_some() {
            return;
        }
        self.console.say(match phase {
            StopPhase::Drain => "stop, 1 of 3: no new writes, waiting for the pending ones (DRAIN)",
            StopPhase::Dump => "stop, 2 of 3: every server writes its tables to its dumps",
            StopPhase::Shutdown => "stop, 3 of 3: every server exits (SHUTDOWN)",
        });
    }

    /// The first failure counts; what follows from it does not.
    fn fail(&self, server: ServerId, reason: String) {
        self.failure.borrow_mut().get_or_insert((server, reason));
    }

    /// Does what the brain wants done before any input: the first store, on which all else follows.
    fn begin(self: &Rc<Driver>) {
        let plan = &self.plan;
        let (file, dir) = (&plan.file, plan.dir.display());
        let host = plan.routes[0].coordinator;
        let effects = self.first.take();
        if self.takes_over.get() {
            self.tell_takes_over();
            return effects.into_iter().for_each(|effect| self.carry_out(effect));
        }
        self.console.say(&format!(
            "starting {} servers with {} shard{} each; files in {dir}; servers find this coordinator \
             at {host}, port {}",
            file.count(),
            plan.shards,
            if plan.shards == 1 { "" } else { "s" },
            self.ports.servers
        ));
        for effect in effects {
            self.carry_out(effect);
        }
        self.recovering.notify_one();
    }

    /// Starts a process at its place of the ring. After the first that cannot be started, a start
    /// goes no further.
    fn spawn(self: &Rc<Driver>, member: Member) {
        let line = &self.plan.file.servers[index(member)];
        let cluster = self.cluster().config().cluster;
        let mut arguments = server_arguments(&self.plan, line, cluster, member, self.ports.servers);
        let loads = self.loads(line.id);
        for (n, load) in loads.iter().enumerate() {
            let path = match line.host {
                Host::Local => load.file.to_string_lossy().into_owned(),
                Host::Ssh { .. } => send::name(line.id, n),
            };
            arguments.extend(["--load".to_owned(), load.argument(&path)]);
        }
        self.commands.borrow_mut()[index(member)] = command_line(&self.plan, line, &arguments);
        self.exits.borrow_mut()[index(member)] = None;
        let begun = self.failure.borrow().is_none();
        let spawned = match line.host {
            _ if !begun => Err("not started any more".into()),
            Host::Local => self.spawn_local(line, member, &arguments),
            Host::Ssh { .. } => {
                self.spawn_remote(line, member, arguments, loads, Rc::clone(&self.turn));
                Ok(())
            }
        };
        if let Err(reason) = spawned {
            tracing::error!("server {}: {reason}", line.id);
            if !self.cluster().has_served() {
                self.fail(line.id, reason.clone());
            }
            // The brain hears of it when it has said all it has to say now.
            let (driver, exit) = (Rc::clone(self), Exit { how: reason, last_words: None });
            tokio::task::spawn_local(async move { driver.exited(member, exit) });
        }
    }

    fn spawn_local(
        self: &Rc<Driver>,
        line: &ServerLine,
        member: Member,
        arguments: &[String],
    ) -> Result<(), String> {
        let server = LocalServer::spawn(&self.plan, line, arguments, self.key)?;
        self.tell_spawned(line, server.pid());
        let (driver, kill) = (Rc::clone(self), self.killer(member));
        tokio::task::spawn_local(async move {
            driver.exited(member, server.wait(kill).await);
        });
        Ok(())
    }

    fn spawn_remote(
        self: &Rc<Driver>,
        line: &ServerLine,
        member: Member,
        arguments: Vec<String>,
        loads: Vec<Load>,
        turn: Rc<Semaphore>,
    ) {
        let ssh = self.plan.ssh.clone();
        let server = RemoteServer::new(ssh, line.clone(), member, arguments, self.key);
        let (driver, mut kill, line) = (Rc::clone(self), self.killer(member), line.clone());
        tokio::task::spawn_local(async move {
            if let Err(how) = driver.bring(&line, &loads, &turn, &mut kill).await {
                return driver.exited(member, Exit { how, last_words: None });
            }
            let exit = server.run(turn, kill, |pid| driver.tell_spawned(&line, Some(pid))).await;
            driver.exited(member, exit);
        });
    }

    /// Brings the dumps that a server begins with to its host, unless it is not wanted any more.
    async fn bring(
        &self,
        line: &ServerLine,
        loads: &[Load],
        turn: &Semaphore,
        kill: &mut mpsc::Receiver<()>,
    ) -> Result<(), String> {
        if loads.is_empty() {
            return Ok(());
        }
        let brought = async {
            let _permit = turn.acquire().await;
            send::all(&self.plan.ssh, &line.host, line.id, loads).await
        };
        tokio::select! {
            brought = brought => brought,
            Some(()) = kill.recv() => Err("given up before it had started".to_owned()),
        }
    }

    fn tell_spawned(&self, line: &ServerLine, pid: Option<u32>) {
        let pid = pid.map_or_else(|| "?".into(), |pid| pid.to_string());
        tracing::info!("server {} started on {}, pid {pid}", line.id, line.host);
    }

    /// The other end of a word that kills a server.
    fn killer(&self, member: Member) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel(1);
        self.killers.borrow_mut()[index(member)] = Some(sender);
        receiver
    }

    fn exited(self: &Rc<Driver>, member: Member, exit: Exit) {
        tracing::info!("server {}: {}", member.server, exit.how);
        if self.cluster().member(member.server) == member {
            self.exits.borrow_mut()[index(member)] = Some(exit);
        }
        self.input(|cluster, now, sink| cluster.on_exited(now, member, sink));
    }

    /// What the end of the stop means for the exit status, told.
    fn conclude(&self, outcome: &StopOutcome) -> Result<(), Failure> {
        if let Some((server, reason)) = &*self.failure.borrow() {
            return Err(Failure::Failed(self.start_failure(*server, reason, outcome)));
        }
        let name =
            |ids: &[ServerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !outcome.undrained.is_empty() {
            self.console.warn(&format!(
                "not every pending write could commit in time at: server {} (those that could not \
                 were not acknowledged)",
                name(&outcome.undrained)
            ));
        }
        if !outcome.killed.is_empty() {
            let names = name(&outcome.killed);
            self.console.warn(&format!("killed before it had ended by itself: server {names}"));
        }
        let mut lost = Vec::new();
        if let Some((first, second)) = outcome.double_fault {
            lost.push(format!(
                "because server {second} was gone before server {first} was back; the dumps of the \
                 living servers are in their directories"
            ));
        }
        let mut advice = String::new();
        if outcome.double_fault.is_some() {
            advice = self.restore_advice(outcome);
        }
        if !outcome.unproven.is_empty() {
            lost.push(format!("these servers may still run: {}", name(&outcome.unproven)));
        }
        if !outcome.undumped.is_empty() {
            let groups: Vec<ServerId> = outcome.undumped.iter().map(|g| ServerId(g.0)).collect();
            lost.push(format!("no server reported a complete dump of group {}", name(&groups)));
        }
        if lost.is_empty() {
            self.console.say("stopped");
            return Ok(());
        }
        Err(Failure::Failed(format!("stopped, but {}{advice}", lost.join("; "))))
    }

    /// How to bring the cluster back, to be pasted into a shell.
    fn restore_advice(&self, outcome: &StopOutcome) -> String {
        let mut text = String::new();
        let dir = self.plan.dir.to_string_lossy().into_owned();
        for line in self.plan.file.servers.iter().filter(|line| line.host != Host::Local) {
            let (id, host, there) = (line.id, &line.host, &self.plan.ssh.remote_dir);
            text += &format!(
                "\n  copy here first, from {host}: the files server_{id}.primary and \
                 server_{id}.secondary of {there}, into {dir}"
            );
        }
        text += &format!("\n  restore it with: {}", self.restore_command);
        if !outcome.undumped.is_empty() {
            text += "\n  add --accept-loss to go on without the groups that nobody has dumped";
        }
        text
    }

    fn start_failure(&self, server: ServerId, reason: &str, outcome: &StopOutcome) -> String {
        let n = usize::from(server.0);
        let mut text = format!("server {server} on {}: {}", self.hosts[n], printable(reason));
        if let Some(exit) = &self.exits.borrow()[n] {
            text += &format!(": {}", with_last_words(exit));
        }
        text += &format!("\n  command: {}", self.commands.borrow()[n]);
        text += match outcome.unproven.is_empty() {
            true => "\n  every other server was stopped again",
            false => "\n  some of the other servers may still run, see the log",
        };
        text
    }
}

fn index(member: Member) -> usize {
    usize::from(member.server.0)
}

fn with_last_words(exit: &Exit) -> String {
    match &exit.last_words {
        Some(words) => format!("{}; it said:\n    {}", exit.how, words.replace('\n', "\n    ")),
        None => exit.how.clone(),
    }
}
