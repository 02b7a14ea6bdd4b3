//! One executor: a thread, its shard, and the tasks that drive it.

use std::cell::Cell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use kv_core::hash::HashSecret;
use kv_core::table::{WalkBudget, WalkCursor};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{GroupId, Time};

use crate::clock;
use crate::fatal::Fatal;
use crate::known_map::KnownMap;
use crate::log_limit::LogLimit;
use crate::mailbox;
use crate::memory::HugePages;
use crate::message::{DumpPiece, DumpedEntries, LoadPiece, ShardMessage, ShardReply};
use crate::net::engine::{Engine, EngineKind};
use crate::net::hub::Hub;
use crate::net::listener::Port;
use crate::service::{Identity, Service};
use crate::shard::Shard;
use crate::slice;
use crate::stats::Board;
use crate::watchdog::Activity;

/// Memory that glommio registers for files; no files are used.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// An executor always has a timer armed (it may otherwise park with tasks that can run); this is
/// how far ahead while bytes come in, and while none do.
const TICK_ACTIVE: Duration = Duration::from_millis(10);
const TICK_IDLE: Duration = Duration::from_millis(100);
/// How long tasks run before others have their turn: ticks, orders and streams before clients, where those have tasks
/// of their own (`--net tcpstream`). An executor that is preempted before its first task has run parks for ever, because
/// no timer is armed yet, so this is longer than a thread that has just started waits for a processor.
const PREEMPT_CLIENT_TASKS: Duration = Duration::from_millis(10);
const PREEMPT_TASKS: Duration = Duration::from_millis(100);
/// How often connections that are closed to make room are told of.
const CROWD_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest pause between two ticks.
const TICK_SHORTEST: Duration = Duration::from_millis(1);
/// How often deadlines are enforced and the board is written.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// What one step of a dump takes from the table.
const DUMP_STEP: WalkBudget = WalkBudget { entries: 4_096, bytes: 256 << 10 };
/// Sessions whose completion records one step of a dump takes.
pub(crate) const DUMP_SESSIONS: usize = 256;
/// How long a dump waits when its reader is behind.
const DUMP_PAUSE: Duration = Duration::from_millis(1);
/// How long a load waits when the reader of the file is behind.
const LOAD_PAUSE: Duration = Duration::from_millis(1);

/// What an executor is started with.
pub(crate) struct ExecutorConfig {
    pub(crate) identity: Identity,
    pub(crate) hash_secret: HashSecret,
    pub(crate) board: Arc<Board>,
    pub(crate) map: Arc<KnownMap>,
    /// Of all shards, in order.
    pub(crate) mailboxes: Vec<mailbox::Sender<ShardMessage>>,
    pub(crate) inbox: mailbox::Receiver<ShardMessage>,
    pub(crate) engine: EngineKind,
    /// The sockets that this executor accepts from.
    pub(crate) listeners: Vec<(TcpListener, Port)>,
}

/// Starts the thread of a shard; it ends with the process.
pub(crate) fn start(config: ExecutorConfig) -> Result<ExecutorJoinHandle<()>, Fatal> {
    let shard = config.identity.shard.0;
    let preempt_timer = match config.engine {
        EngineKind::Uring => PREEMPT_TASKS,
        EngineKind::TcpStream => PREEMPT_CLIENT_TASKS,
    };
    LocalExecutorBuilder::new(Placement::Unbound)
        .name(&format!("shard-{shard}"))
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(preempt_timer)
        .spawn(move || run(config))
        .map_err(|error| Fatal::Executor { shard, reason: error.to_string() })
}

async fn run(config: ExecutorConfig) {
    slice::shorten();
    let ExecutorConfig { identity, hash_secret, board, map, mailboxes, .. } = config;
    let ExecutorConfig { inbox, listeners, engine, .. } = config;
    let memory = Arc::clone(board.memory());
    let chunks = || Box::new(HugePages) as _;
    let service = Service::new(identity, map, memory, hash_secret, chunks);
    let hub = Hub::new(Shard::new(service, board.bounds()), board, mailboxes);
    let engine = Engine::start(engine, hub, listeners);
    let receiver = engine.clone();
    glommio::spawn_local(async move {
        let result = inbox.serve(|message| take(&receiver, message)).await;
        panic!("the mailbox of a shard cannot be read: {result:?}");
    })
    .detach();
    tick_for_ever(engine).await;
}

async fn tick_for_ever(engine: Engine) {
    let hub = Rc::clone(engine.hub());
    let place = usize::from(hub.here.0);
    hub.board.own(place);
    let housekeeping_at = Cell::new(Time::default());
    let mut crowd_log = LogLimit::every(CROWD_LOG_INTERVAL);
    loop {
        let now = clock::now();
        hub.board.tick(place);
        hub.board.begin(place, Activity::Timers);
        hub.shard.borrow_mut().on_tick(now);
        engine.dial_due(now);
        hub.want_flush();
        make_room(&hub, now, &mut crowd_log);
        if housekeeping_at.get() <= now {
            housekeeping_at.set(now + HOUSEKEEPING);
            engine.enforce_deadlines(now);
            hub.publish();
        }
        let longest = if hub.take_activity() { TICK_ACTIVE } else { TICK_IDLE };
        let due = hub.shard.borrow().service.next_timeout();
        let pause = due.map_or(longest, |due| due.since(now).min(longest));
        hub.board.begin(place, Activity::Connections);
        glommio::timer::sleep(pause.max(TICK_SHORTEST)).await;
    }
}

/// Closes idle connections of the address that has most, if others wait for room.
fn make_room(hub: &Hub, now: Time, log: &mut LogLimit) {
    let Some((address, excess)) = hub.board.crowding() else { return };
    let closed = hub.shard.borrow_mut().close_idle(address, excess);
    if closed == 0 {
        return;
    }
    hub.board.note_closed(now, closed);
    if let Some(suppressed) = log.admit(now) {
        tracing::warn!(
            suppressed,
            "closed {closed} idle connections of {address}, which has more than any other address, to make room \
             for others: this server may have {} client connections",
            hub.board.bounds().clients
        );
    }
}

fn take(engine: &Engine, message: ShardMessage) {
    let activity = match message {
        ShardMessage::Install { .. } => Activity::Install,
        _ => Activity::Message,
    };
    engine.hub().during(activity, || carry_out(engine, message));
}

fn carry_out(engine: &Engine, message: ShardMessage) {
    let hub = engine.hub();
    match message {
        ShardMessage::Connection(handed) => engine.adopt(handed),
        ShardMessage::Install { order, view, other, replies } => {
            let now = clock::now();
            let shard = hub.here;
            let installed = hub.shard.borrow_mut().service.install(now, view, other);
            if let Err(reason) = installed {
                replies.send(ShardReply::Refused { order, shard, reason });
            }
            engine.dial_due(now);
            hub.want_flush();
        }
        ShardMessage::Probe { order, replies } => {
            let shard = hub.here;
            // Nobody may be removed on the word of a server that is about to exit.
            if !hub.shard.borrow().service.is_frozen() {
                replies.send(ShardReply::Probed { order, shard });
            }
        }
        ShardMessage::Exited { member } => {
            let now = clock::now();
            hub.shard.borrow_mut().service.on_exited(now, member);
            engine.dial_due(now);
            hub.want_flush();
        }
        ShardMessage::Drain => {
            hub.shard.borrow_mut().service.drain();
            hub.want_flush();
        }
        ShardMessage::Dump { role, pieces } => {
            // A write that is acknowledged after its table was walked would be in no dump.
            hub.shard.borrow_mut().service.freeze();
            let hub = Rc::clone(hub);
            glommio::spawn_local(async move { dump(&hub, role, pieces).await }).detach();
        }
        ShardMessage::Load { group, pieces, done } => {
            let hub = Rc::clone(hub);
            glommio::spawn_local(async move { load(&hub, group, pieces, done).await }).detach();
        }
    }
}

/// Sends a table in bounded steps; between two steps everything else goes on.
async fn dump(hub: &Hub, role: ReplicaRole, pieces: Sender<DumpPiece>) {
    let _steps = hub.begin_background();
    let dumped = {
        let shard = hub.shard.borrow();
        let group = shard.service.identity.group_of(role);
        shard.service.replica(group).map(|replica| replica.dumped())
    };
    let Some(dumped) = dumped else { return };
    if !send(&pieces, DumpPiece::Shard(dumped)).await || dumped.is_err() {
        return;
    }
    let mut cursor = Some(WalkCursor::START);
    while let Some(from) = cursor {
        let mut entries = DumpedEntries::default();
        let walked = hub.during(Activity::Dump, || {
            let shard = hub.shard.borrow();
            let replica = shard.service.replica(shard.service.identity.group_of(role))?;
            Some(replica.walk(from, DUMP_STEP, |entry| {
                entries.push(entry.key, entry.value, entry.version);
            }))
        });
        let Some(next) = walked else { break };
        cursor = next;
        if !send(&pieces, DumpPiece::Entries(entries)).await {
            return;
        }
    }
    // The replica is frozen, so the sessions keep their places from step to step.
    let mut next = 0;
    loop {
        let records = {
            let shard = hub.shard.borrow();
            let replica = shard.service.replica(shard.service.identity.group_of(role));
            let Some(replica) = replica.filter(|replica| next < replica.session_count()) else {
                break;
            };
            replica.completion_records(next..next + DUMP_SESSIONS).collect()
        };
        next += DUMP_SESSIONS;
        if !send(&pieces, DumpPiece::Records(records)).await {
            return;
        }
    }
    send(&pieces, DumpPiece::End).await;
}

/// Takes a dump into the table of a group; between two pieces everything else goes on.
async fn load(
    hub: &Hub,
    group: GroupId,
    pieces: Receiver<LoadPiece>,
    done: Sender<Result<(), String>>,
) {
    let _steps = hub.begin_background();
    loop {
        let piece = match pieces.try_recv() {
            Ok(piece) => piece,
            Err(TryRecvError::Empty) => {
                glommio::timer::sleep(LOAD_PAUSE).await;
                continue;
            }
            // The rest of the file is no good; whoever reads it ends the process.
            Err(TryRecvError::Disconnected) => return,
        };
        let is_last = matches!(piece, LoadPiece::End(_));
        let loaded =
            hub.during(Activity::Load, || hub.shard.borrow_mut().service.load(group, piece));
        if is_last || loaded.is_err() {
            // There is room for the one answer.
            let _ = done.try_send(loaded);
            return;
        }
        glommio::executor().yield_task_queue_now().await;
    }
}

/// Gives a piece to the writer of the file without ever blocking; `false` if it is gone.
async fn send(pieces: &Sender<DumpPiece>, mut piece: DumpPiece) -> bool {
    loop {
        match pieces.try_send(piece) {
            Ok(()) => {
                glommio::executor().yield_task_queue_now().await;
                return true;
            }
            Err(TrySendError::Disconnected(_)) => return false,
            Err(TrySendError::Full(back)) => {
                piece = back;
                glommio::timer::sleep(DUMP_PAUSE).await;
            }
        }
    }
}
