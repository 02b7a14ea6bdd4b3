//! The start of a server, from the command line to the running process.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use kv_core::hash::HashSecret;
use kv_protocol::Eviction;
use kv_protocol::exit_code::ServerExit;
use kv_protocol::ids::{Incarnation, Member, ServerId, ShardId};
use kv_protocol::limits::SESSION_IDLE;
use kv_protocol::placement::Placement;
use kv_protocol::unix::{UNIX_PREFIX, socket_name};
use kv_shard::{ConnectionMemory, Identity, Port};
use rustix::process::DumpableBehavior;

use crate::args::{Args, Invocation, NetEngine};
use crate::control::link::{self, LinkConfig};
use crate::control::operation::ServerProcess;
use crate::control::orders;
use crate::descriptors::ConnectionBounds;
use crate::executor::{self, ExecutorConfig};
use crate::fatal::{self, Fatal};
use crate::known_map::KnownMap;
use crate::memory::limit::{self, MemoryLimit};
use crate::message::ShardMessage;
use crate::net::engine::EngineKind;
use crate::statistics::Statistics;
use crate::{
    aside, key_file, load, log, mailbox, memory, probe, slice, statistics, supervisor, unix_socket,
    watch,
};

/// The number of tables of a shard, all of which share the memory limit: the primary table and the secondary table.
const TABLES: u64 = 2;

/// Parses the command line and runs the requested mode. As a server, returns only if the start fails.
pub fn main() -> ExitCode {
    // This comes first, so that no stray signal ends a process with data.
    kv_daemon::signals::ignore();
    let args = match Invocation::read(std::env::args_os()) {
        Ok(Invocation::Serve(args)) => args,
        Ok(Invocation::Ask(question)) => return watch::main(question),
        Ok(Invocation::ShowMemoryLimit(share)) => return limit::show(share),
        Err(error) => {
            let exit = if error.use_stderr() { ServerExit::Usage } else { ServerExit::Stopped };
            // A failed write to a closed terminal does not change the exit code.
            let _ = error.print();
            return ExitCode::from(exit.code());
        }
    };
    match start(&args) {
        Ok(node) => supervisor::run(&node),
        Err(error) => {
            tracing::error!("{error}");
            if args.log.is_some() {
                // If this process ends at once, the process that started it reads the reason from standard error.
                let _ = writeln!(io::stderr(), "server {}: {error}", args.id);
            }
            unix_socket::remove();
            log::flush(fatal::LAST_LINE);
            ExitCode::from(error.exit().code())
        }
    }
}

/// The sockets on which a server listens.
struct Listeners {
    clients: TcpListener,
    servers: TcpListener,
    coord: TcpListener,
    /// The one for Redis clients only, if there is one.
    redis: Option<TcpListener>,
    /// The Unix-domain socket for clients, if there is one, and its path.
    unix: Option<(OwnedFd, PathBuf)>,
}

fn start(args: &Args) -> Result<Arc<ServerProcess>, Fatal> {
    // This comes before any thread is started: each new thread inherits the mask, and a signal to an unmasked thread
    // ends the process.
    supervisor::block_signals()?;
    log::start(args.log.as_deref())?;
    fatal::end_process_on_panic();
    if !args.core_dumps {
        forbid_core_dumps()?;
    }
    memory::give_freed_memory_back();
    let engine = choose_engine(args.net, args.shards)?;
    let open_files = probe::raise_open_files();
    let bounds = ConnectionBounds::within(open_files, args.shards)?;
    let listeners = listen(args)?;
    let coordinator = resolve(&args.coordinator_host, args.coordinator_port)?;
    let link = link_config(args, coordinator, &listeners)?;
    let identity = identity(args)?;
    tracing::info!(
        "server {} of {}, {} shard{}, clients on port {}, servers on {}, orders on {}, \
         {open_files} descriptors: at most {} clients, network engine {}",
        identity.me,
        args.servers,
        args.shards,
        if args.shards == 1 { "" } else { "s" },
        link.clients_port,
        link.servers_port,
        link.coord_port,
        bounds.clients,
        engine.name()
    );
    let directory = PathBuf::from(".");
    let memory_limit = memory_limit(args);
    let tables = TABLES * u64::from(args.shards);
    let connection_memory = ConnectionMemory::new(args.connection_memory, memory_limit, tables);
    connection_memory.set_eviction(args.eviction);
    if args.eviction != Eviction::None {
        tracing::info!("eviction: {}, by --eviction", args.eviction);
    }
    let statistics = Statistics::new(args.shards, bounds, connection_memory);
    statistics.set_failure_timeout(args.failure_timeout);
    let map = Arc::default();
    let Listeners { clients, servers, coord, redis, unix } = listeners;
    let mut listeners = vec![(clients.into(), Port::Clients), (servers.into(), Port::Servers)];
    if let Some(redis) = redis {
        tracing::info!("Redis clients only on port {}", port_of(&redis)?);
        listeners.push((redis.into(), Port::Redis));
    }
    if let Some((unix, path)) = unix {
        tracing::info!("clients also on {UNIX_PREFIX}{}", path.display());
        listeners.push((unix, Port::Clients));
    }
    let shards = start_executors(args, engine, identity, &statistics, &map, listeners)?;
    // This comes before the server reports its start: a server that a view names must have the data.
    load::run(&args.load, identity.placement, &shards)?;
    // This comes after the ports are bound and the dumps loaded: a server that fails to do either must not rename the
    // dumps of another server.
    aside::set_aside(&directory, identity.me.server);
    let node = ServerProcess::new(identity, statistics, map, shards, directory);
    node.dumps
        .fill_reserve()
        .map_err(|error| Fatal::System { doing: "reserve descriptors for dumps", error })?;
    let for_control = Arc::clone(&node);
    start_thread("control", move || link::run(&for_control, &link))?;
    let for_samples = Arc::clone(&node.statistics);
    start_thread("samples", move || statistics::sample(&for_samples))?;
    let for_orders = Arc::clone(&node);
    start_thread("orders", move || orders::run(&for_orders, coord))?;
    Ok(node)
}

fn identity(args: &Args) -> Result<Identity, Fatal> {
    let incarnation = match args.incarnation {
        Some(incarnation) => incarnation,
        None => Incarnation(random()?),
    };
    Ok(Identity {
        cluster: args.cluster_id,
        key: key_file::read(args.key_file.as_deref())?,
        me: Member { server: ServerId(args.id), incarnation },
        shard: ShardId(0),
        placement: Placement::new(args.servers, args.shards).with_hash_tags(args.hash_tags),
        failure_timeout: args.failure_timeout,
        session_idle: SESSION_IDLE,
        long_value: kv_shard::LONG_VALUE,
    })
}

/// Returns the requested engine; for `auto`, uring if it is available, else epoll.
fn choose_engine(asked: NetEngine, shards: u16) -> Result<EngineKind, Fatal> {
    if asked == NetEngine::Epoll {
        return Ok(EngineKind::Epoll);
    }
    match probe::uring(shards) {
        Ok(()) => Ok(EngineKind::Uring),
        Err(reason) if asked == NetEngine::Auto => {
            tracing::warn!(
                "using the network engine epoll, which needs more CPU time for each request, because uring is not \
                 available: {reason}"
            );
            Ok(EngineKind::Epoll)
        }
        Err(reason) => Err(Fatal::Uring(reason)),
    }
}

/// Returns the limit of all tables together: the given one, or the machine's default. `None` means no limit.
fn memory_limit(args: &Args) -> Option<u64> {
    match args.memory_limit {
        Some(MemoryLimit::Bytes(bytes)) => {
            tracing::info!("memory limit: {} MiB by --memory-limit", bytes >> 20);
            Some(bytes)
        }
        Some(MemoryLimit::None) => {
            tracing::info!("memory limit: none, by --memory-limit");
            None
        }
        None => match limit::default_limit(Path::new("/"), args.share) {
            Some(limit) => {
                tracing::info!("memory limit: {limit}");
                Some(limit.bytes)
            }
            None => {
                tracing::warn!(
                    "memory limit: none, because neither a cgroup nor /proc/meminfo reports the available memory; give \
                     --memory-limit"
                );
                None
            }
        },
    }
}

fn start_executors(
    args: &Args,
    engine: EngineKind,
    identity: Identity,
    statistics: &Arc<Statistics>,
    map: &Arc<KnownMap>,
    mut listeners: Vec<(OwnedFd, Port)>,
) -> Result<Vec<mailbox::Sender<ShardMessage>>, Fatal> {
    let system = |error| Fatal::System { doing: "create the mailboxes of the executors", error };
    let mut mailboxes = Vec::new();
    let mut inboxes = Vec::new();
    for _ in 0..args.shards {
        let (mailbox, inbox) = mailbox::mailbox().map_err(system)?;
        mailboxes.push(mailbox);
        inboxes.push(inbox);
    }
    let hash_secret = HashSecret::of_cluster(identity.key);
    // The first executor gets all listeners, and hands each connection over to the executor of the shard that the
    // connection requests.
    for (shard, inbox) in (0..args.shards).zip(inboxes) {
        executor::start(ExecutorConfig {
            identity: Identity { shard: ShardId(shard), ..identity },
            hash_secret,
            statistics: Arc::clone(statistics),
            map: Arc::clone(map),
            mailboxes: mailboxes.clone(),
            inbox,
            engine,
            redis_deadline: args.redis_deadline,
            redis_multi: args.redis_multi,
            listeners: std::mem::take(&mut listeners),
        })?;
    }
    Ok(mailboxes)
}

fn listen(args: &Args) -> Result<Listeners, Fatal> {
    let ip = args.listen_address();
    let redis = args.redis_port.map(|port| probe::listen(ip, port, "Redis clients")).transpose()?;
    let unix = args.unix.as_ref().map(|dir| dir.join(socket_name(ServerId(args.id))));
    let unix = unix.map(|path| unix_socket::listen(&path).map(|socket| (socket, path)));
    Ok(Listeners {
        redis,
        unix: unix.transpose()?,
        clients: probe::listen(ip, args.clients_port, "clients")?,
        servers: probe::listen(ip, args.servers_port, "servers")?,
        coord: probe::listen(ip, args.coord_port, "the coordinator's orders")?,
    })
}

fn port_of(listener: &TcpListener) -> Result<u16, Fatal> {
    let failed = |error| Fatal::System { doing: "get the port of a listening socket", error };
    listener.local_addr().map(|address| address.port()).map_err(failed)
}

fn link_config(
    args: &Args,
    coordinator: SocketAddr,
    listeners: &Listeners,
) -> Result<LinkConfig, Fatal> {
    let bound = args.listen_address();
    Ok(LinkConfig {
        coordinator,
        orphan_timeout: (!args.orphan_timeout.is_zero()).then_some(args.orphan_timeout),
        advertise: args.advertise.or((!bound.is_unspecified()).then_some(bound)),
        clients_port: port_of(&listeners.clients)?,
        servers_port: port_of(&listeners.servers)?,
        coord_port: port_of(&listeners.coord)?,
        identity: kv_daemon::identity::name(std::process::id()).unwrap_or_else(|error| {
            tracing::warn!(
                "cannot read the identity of this process: {error}; only the coordinator that started the \
                 process can prove its end"
            );
            Default::default()
        }),
    })
}

/// Resolves the coordinator's host once. An IPv4 address is preferred to an IPv6 address, because the default address
/// to listen on is IPv4.
fn resolve(host: &str, port: u16) -> Result<SocketAddr, Fatal> {
    let failed = |error| Fatal::CoordinatorHost { host: host.to_owned(), error };
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(failed)?.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| failed(io::Error::other("it has no address")))
}

/// Keeps the cluster's key and the data out of core dumps, and prevents debuggers of the same user from attaching.
fn forbid_core_dumps() -> Result<(), Fatal> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| Fatal::System { doing: "disable core dumps", error: error.into() })
}

fn random() -> Result<u64, Fatal> {
    getrandom::u64().map_err(|error| Fatal::System {
        doing: "get random numbers from the system",
        error: io::Error::other(error.to_string()),
    })
}

fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Fatal> {
    // The thread gets a short time slice, because heartbeats and orders must be processed even if all processors are
    // busy.
    let body = move || {
        slice::shorten();
        body();
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map(drop).map_err(|error| Fatal::System { doing: "start a thread", error })
}
