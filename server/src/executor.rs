//! One executor: a thread and its shard. The network engine (net/) serves the shard until the process ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use kv_core::hash::HashSecret;
use kv_protocol::RedisMulti;
use kv_shard::{Identity, Port, Service, Shard};

use crate::clock;
use crate::fatal::Fatal;
use crate::known_map::KnownMap;
use crate::mailbox;
use crate::memory::HugePages;
use crate::message::ShardMessage;
use crate::net::context::ShardContext;
use crate::net::engine::{EngineKind, Prepared};
use crate::net::{epoll, uring};
use crate::nonce;
use crate::slice;
use crate::statistics::Statistics;

/// The parameters of an executor.
pub(crate) struct ExecutorConfig {
    pub(crate) identity: Identity,
    pub(crate) hash_secret: HashSecret,
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) map: Arc<KnownMap>,
    /// The mailboxes of all shards, in order.
    pub(crate) mailboxes: Vec<mailbox::Sender<ShardMessage>>,
    pub(crate) inbox: mailbox::Receiver<ShardMessage>,
    pub(crate) engine: EngineKind,
    /// The time after which a request of a Redis client is given up.
    pub(crate) redis_deadline: Duration,
    /// The treatment of transactions of Redis clients with keys of several shards.
    pub(crate) redis_multi: RedisMulti,
    /// The sockets on which this executor accepts connections.
    pub(crate) listeners: Vec<(OwnedFd, Port)>,
}

/// Starts the thread of a shard. The thread runs until the process ends.
pub(crate) fn start(config: ExecutorConfig) -> Result<(), Fatal> {
    let shard = config.identity.shard.0;
    let name = format!("shard-{shard}");
    let started = match config.engine {
        EngineKind::Uring => uring::start_thread(&name, move || prepare(config)),
        EngineKind::Epoll => epoll::start_thread(name, move || prepare(config)),
    };
    started.map_err(|reason| Fatal::Executor { shard, reason })
}

/// Creates the shard, on the thread that serves it.
fn prepare(config: ExecutorConfig) -> Prepared {
    slice::shorten();
    let ExecutorConfig {
        identity,
        hash_secret,
        statistics,
        map,
        mailboxes,
        inbox,
        listeners,
        redis_deadline,
        redis_multi,
        ..
    } = config;
    let memory = Arc::clone(statistics.admission.memory());
    let chunks = || Box::new(HugePages) as _;
    let nonces = Box::new(|| nonce::draw().map_err(|error| error.to_string()));
    let mut service = Service::new(identity, nonces, memory, hash_secret, chunks);
    service.set_redis_deadline(redis_deadline);
    service.set_redis_multi(redis_multi);
    let bounds = statistics.admission.bounds().hello;
    let (now, wall) = clock::now_and_wall();
    service.note_wall(now, wall);
    let context = ShardContext::new(Shard::new(service, bounds), statistics, map, mailboxes);
    context.statistics.own(usize::from(context.here.0));
    Prepared { context, inbox, listeners }
}
