//! A client that many threads use at once, over few connections.
//!
//! ```text
//!   thread A  call --> lane: engine, calls under way        one lane, and so one connection to each shard
//!   thread B  call -->   |
//!                        +-- A leads: waits on epoll without the lock, takes what comes, for all
//!                        +-- B follows: sends its own request, then waits to be told
//!   A's call ends --> B leads
//! ```
//!
//! There is no thread of the library's own: of the threads in calls, one at a time *leads*. A request is sent by its
//! own thread at once. Responses are taken by the leader, which runs what the other calls do with their values, and
//! wakes them. A follower runs the timers itself if the leader is late, so every call ends at its deadline.
//!
//! A key has always the same lane, so the operations of all threads on one key go through one session.

use std::collections::VecDeque;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use kv_protocol::client_message::Condition;
use kv_protocol::placement::Digest;
use slab::Slab;

use crate::client::{Written, written};
use crate::completion::{Answered, Ends};
use crate::doubt::Doubt;
use crate::engine::{Early, Engine};
use crate::error::{Action, Error, OpenError};
use crate::events::is_in_callback;
use crate::inherited::Descriptors;
use crate::operation::{Notify, Op, OpId, Operation};
use crate::options::{Endpoints, OpOptions, Options};
use crate::poller::{Readiness, Waiter};
use crate::statistics::Statistics;

/// So many bytes of values taken, and the rest of what a connection has brought waits for the next turn: other
/// threads want the lane.
const BYTES_A_TURN: usize = 512 << 10;
/// How late the leader may be before a follower runs the timers.
const LEADER_IS_LATE: Duration = Duration::from_millis(2);
/// Most operations of one batch that are under way at once.
const BATCH_IN_FLIGHT: usize = 1_024;
/// Most bytes of keys and values of one batch that are under way at once; a single operation may always be.
const BATCH_BYTES_IN_FLIGHT: usize = 64 << 20;

/// Most turns that a lane keeps for calls to come.
const TURNS_KEPT: usize = 64;

/// What is done at the end of each operation, by its place in the call. Any thread may run it.
type OnEach<'a> = dyn FnMut(usize, Result<Answered<'_>, Error>) + Send + 'a;

/// The same while the call is under way, which owns it.
#[derive(Clone, Copy)]
struct EachOfCall(NonNull<OnEach<'static>>);

// SAFETY: it may be run by any thread, and by one at a time: whoever has the lock of the lane.
unsafe impl Send for EachOfCall {}

impl EachOfCall {
    fn of(each: &mut OnEach<'_>) -> EachOfCall {
        // SAFETY: only the lifetime changes. A call returns when all of its operations have ended, and each runs this
        // at its end at the latest. If the call returns early, the lane is poisoned: nobody gets its lock any more.
        let each: &mut OnEach<'static> = unsafe { std::mem::transmute(each) };
        EachOfCall(NonNull::from(each))
    }

    /// Runs it, under the lock of the lane.
    fn run(mut self, at: usize, result: Result<Answered<'_>, Error>) {
        // SAFETY: as above.
        (unsafe { self.0.as_mut() })(at, result);
    }
}

/// See the module.
#[derive(Debug)]
pub struct SharedClient {
    lanes: Box<[Lane]>,
    deadline: Duration,
    /// It calls functions of the program, from which no call may come.
    calls_back: bool,
}

impl SharedClient {
    /// Opens a client whose calls share up to `connections` connections to each shard of a server.
    ///
    /// # Errors
    /// [`OpenError`]: a setting is out of its bounds, or the system gives no descriptor.
    pub fn with_endpoints(
        endpoints: &Endpoints,
        options: &Options,
        connections: usize,
    ) -> Result<SharedClient, OpenError> {
        options.check()?;
        let lanes = (0..connections.max(1)).map(|_| Lane::new(endpoints, options));
        let calls_back = options.log.is_set() || options.events.is_set();
        let lanes = lanes.collect::<Result<_, _>>()?;
        Ok(SharedClient { lanes, deadline: options.deadline, calls_back })
    }

    /// Sets a key; as [`crate::Client::put`].
    ///
    /// # Errors
    /// As there.
    pub fn put(&self, key: &[u8], value: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Put { key, value }, options, written)
    }

    /// Removes a key; as [`crate::Client::delete`].
    ///
    /// # Errors
    /// As there.
    pub fn delete(&self, key: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Delete { key }, options, written)
    }

    /// Settles a write that ended in doubt; as [`crate::Client::resolve`].
    ///
    /// # Errors
    /// As there.
    pub fn resolve(&self, doubt: &Doubt, options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Resolve { doubt }, options, written)
    }

    /// Runs one operation to its end. `take` sees the value where it was received; it is run while other threads
    /// wait for their turn, perhaps by another thread.
    ///
    /// # Errors
    /// Those of the operation; [`Error::Defect`] if an earlier call panicked.
    pub fn call<T: Send>(
        &self,
        op: Op<'_>,
        options: &OpOptions,
        take: impl FnOnce(Answered<'_>) -> T + Send,
    ) -> Result<T, Error> {
        self.check_caller()?;
        let (mut ended, mut take) = (None, Some(take));
        let mut each = |_: usize, result: Result<Answered<'_>, Error>| {
            ended = take.take().map(|take| result.map(take));
        };
        let digest = op.digest();
        let call = Call::new(self.deadline, options, &mut each);
        let asked = Asked { at: 0, op, digest, condition: options.condition };
        self.lane(digest).run(&call, &mut std::iter::once(asked))?;
        ended.expect("every operation of a call has an end")
    }

    /// Runs many operations, each under its own condition, those of all servers at once. `each` gets the end of each by
    /// its place, as it happens.
    ///
    /// # Errors
    /// [`Error::Defect`] if an earlier call panicked. Those of the operations go to `each`.
    pub fn batch<'a>(
        &self,
        ops: impl Iterator<Item = (Op<'a>, Condition)>,
        options: &OpOptions,
        each: &mut OnEach<'_>,
    ) -> Result<(), Error> {
        self.check_caller()?;
        let call = Call::new(self.deadline, options, each);
        let mut by_lane: Vec<Vec<Asked<'a>>> = vec![Vec::new(); self.lanes.len()];
        for (at, (op, condition)) in ops.enumerate() {
            let digest = op.digest();
            by_lane[self.lane_number(digest)].push(Asked { at, op, digest, condition });
        }
        for (lane, ops) in self.lanes.iter().zip(by_lane) {
            lane.run(&call, &mut ops.into_iter())?;
        }
        Ok(())
    }

    /// Asks the server of a key for a response and nothing else. Returns the time that it took, with connecting and
    /// retries if there were any.
    ///
    /// # Errors
    /// As [`crate::Client::noop`].
    pub fn ping(&self, key: &[u8], options: &OpOptions) -> Result<Duration, Error> {
        let begun = Instant::now();
        self.call(Op::Noop { key }, options, |_| begun.elapsed())
    }

    /// Asks the servers of all keys for a response, all at once: for each part of the keys, the server that serves it
    /// now. `each` gets the time that each took, by the number of the part, which is that of the server whose part it
    /// is while all are well.
    ///
    /// # Errors
    /// Those of the first request, which also brings the map; then nothing else was asked. Those of the others go to
    /// `each`.
    pub fn ping_all(
        &self,
        options: &OpOptions,
        each: &mut (dyn FnMut(usize, Result<Duration, Error>) + Send),
    ) -> Result<(), Error> {
        const ANY_KEY: &[u8] = b"0";
        let allowed = options.deadline.unwrap_or(self.deadline);
        let took = self.ping(ANY_KEY, options)?;
        let keys = self.lane(Digest::of(ANY_KEY)).lock()?.engine.key_of_each_group();
        let left = allowed.saturating_sub(took).max(Duration::from_millis(1));
        let options = OpOptions { deadline: Some(left), ..*options };
        let begun = Instant::now();
        let asked = || keys.iter().enumerate().filter(|(_, key)| !key.is_empty());
        let groups: Vec<usize> = asked().map(|(group, _)| group).collect();
        let ops = asked().map(|(_, key)| (Op::Noop { key }, Condition::Always));
        self.batch(ops, &options, &mut |at: usize, result: Result<Answered<'_>, Error>| {
            each(groups[at], result.map(|_| begun.elapsed()));
        })
    }

    /// Returns the counters of this client since it was opened.
    ///
    /// # Errors
    /// [`Error::Defect`] if an earlier call panicked; [`Error::WithinCallback`].
    pub fn statistics(&self) -> Result<Statistics, Error> {
        self.check_caller()?;
        let mut sum = Statistics::default();
        for lane in &self.lanes {
            sum.add(&lane.lock()?.engine.statistics());
        }
        Ok(sum)
    }

    /// Gives back what the child of a fork has inherited: its copies of the descriptors, and the memory. The parent's
    /// connections are not affected. Where another thread of the parent was changing the client at the moment of the
    /// fork, the memory of that part stays.
    pub fn close_inherited(self) {
        for lane in self.lanes {
            lane.close_inherited();
        }
    }

    /// A function of the log or of the events runs under a lane's lock, for which a call from there would wait for ever.
    fn check_caller(&self) -> Result<(), Error> {
        if self.calls_back && is_in_callback() { Err(Error::WithinCallback) } else { Ok(()) }
    }

    fn lane(&self, digest: Digest) -> &Lane {
        &self.lanes[self.lane_number(digest)]
    }

    /// Not by the bits that place a key, which are those of the remainder.
    fn lane_number(&self, digest: Digest) -> usize {
        digest.0.into_iter().map(usize::from).sum::<usize>() % self.lanes.len()
    }
}

/// One operation of a call.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// Its place.
    at: usize,
    op: Op<'a>,
    /// Of its key.
    digest: Digest,
    condition: Condition,
}

/// A call of one thread, with what it asks and who is told.
struct Call {
    options: OpOptions,
    allowed: Duration,
    deadline: Instant,
    each: EachOfCall,
}

impl Call {
    fn new(default: Duration, options: &OpOptions, each: &mut OnEach<'_>) -> Call {
        let allowed = options.deadline.unwrap_or(default);
        let deadline = Instant::now() + allowed;
        Call { options: *options, allowed, deadline, each: EachOfCall::of(each) }
    }
}

/// A thread in a call: what it waits for.
#[derive(Debug, Default)]
struct Turn {
    gate: Mutex<Gate>,
    told: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    /// Operations of the call that have not ended.
    pending: usize,
    /// The thread goes on when no more than so many are pending.
    enough: usize,
    /// It has to lead.
    leads: bool,
}

impl Turn {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Nothing that can panic is done behind it.
        self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn pending(&self) -> usize {
        self.gate().pending
    }

    /// Whether the thread may go on.
    fn is_done(&self) -> bool {
        let gate = self.gate();
        gate.pending <= gate.enough
    }

    fn wake_all(woken: &mut Vec<Arc<Turn>>) {
        for turn in woken.drain(..) {
            turn.told.notify_one();
        }
    }

    /// Notes an end. Returns whether the thread may go on.
    fn note_end(&self) -> bool {
        let mut gate = self.gate();
        gate.pending -= 1;
        gate.pending == gate.enough
    }

    /// Waits until there is something to do, or until `at`.
    fn wait(&self, at: Instant) {
        let mut gate = self.gate();
        while gate.pending > gate.enough && !gate.leads {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.told.wait_timeout(gate, left);
            gate = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

/// One engine, its connections, and the calls on it.
struct Lane {
    state: Mutex<State>,
    waiter: Waiter,
    descriptors: Descriptors,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

struct State {
    engine: Engine,
    /// Operations under way, by the tags that the engine knows.
    underway: Slab<Underway>,
    /// A thread leads, or has been told to.
    is_led: bool,
    /// Threads that may lead next.
    line: VecDeque<Arc<Turn>>,
    /// Memory that is used again: turns of calls that have ended, and what the leader needs.
    turns: Vec<Arc<Turn>>,
    readiness: Vec<Readiness>,
}

struct Underway {
    turn: Arc<Turn>,
    each: EachOfCall,
    /// Its place in its call.
    at: usize,
}

/// Takes the ends of operations for their calls.
struct LaneEnds<'a> {
    underway: &'a mut Slab<Underway>,
    /// The thread that runs this, which needs nobody to wake it.
    own: &'a Arc<Turn>,
    /// Other threads that may go on.
    woken: &'a mut Vec<Arc<Turn>>,
    /// Of values.
    bytes: usize,
}

impl Ends for LaneEnds<'_> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Answered<'_>, Error>) {
        let Notify::Queue(tag) = notify else { return };
        let tag = usize::try_from(tag).expect("it was a place");
        let Some(Underway { turn, each, at }) = self.underway.try_remove(tag) else { return };
        self.bytes += result.as_ref().map_or(0, |answered| answered.value.len());
        each.run(at, result);
        if turn.note_end() && !Arc::ptr_eq(&turn, self.own) {
            self.woken.push(turn);
        }
    }

    fn is_enough(&self) -> bool {
        self.bytes >= BYTES_A_TURN
    }
}

impl State {
    /// Lets the engine do something for the thread whose turn is `own`. Adds the threads that may go on to `woken`.
    fn with(
        &mut self,
        own: &Arc<Turn>,
        woken: &mut Vec<Arc<Turn>>,
        run: impl FnOnce(&mut Engine, &mut LaneEnds<'_>),
    ) {
        let mut ends = LaneEnds { underway: &mut self.underway, own, woken, bytes: 0 };
        run(&mut self.engine, &mut ends);
    }

    /// A turn for a call that begins.
    fn turn(&mut self) -> Arc<Turn> {
        self.turns.pop().unwrap_or_default()
    }

    /// Keeps the turn of a call that has ended, unless somebody still has it.
    fn keep(&mut self, turn: Arc<Turn>) {
        if self.turns.len() < TURNS_KEPT && Arc::strong_count(&turn) == 1 {
            self.turns.push(turn);
        }
    }

    /// Has the thread that has waited for longest lead, if one waits.
    fn hand_over(&mut self) {
        self.is_led = false;
        while let Some(turn) = self.line.pop_front() {
            let mut gate = turn.gate();
            if gate.pending > gate.enough {
                gate.leads = true;
                self.is_led = true;
                turn.told.notify_one();
                return;
            }
        }
    }
}

impl Lane {
    fn new(endpoints: &Endpoints, options: &Options) -> Result<Lane, OpenError> {
        let engine = Engine::new(endpoints.clone(), options.clone())?;
        let (waiter, descriptors) = (engine.waiter(), engine.descriptors());
        let state = State {
            engine,
            underway: Slab::new(),
            is_led: false,
            line: VecDeque::new(),
            turns: Vec::new(),
            readiness: Vec::new(),
        };
        Ok(Lane { state: Mutex::new(state), waiter, descriptors })
    }

    /// See [`SharedClient::close_inherited`].
    fn close_inherited(self) {
        let is_sound = !matches!(self.state.try_lock(), Err(TryLockError::WouldBlock));
        if !is_sound {
            // SAFETY: what has them is never dropped.
            unsafe { self.descriptors.close() };
            std::mem::forget(self);
        }
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        // The thread that panicked may have left anything behind.
        self.state.lock().map_err(|_| Error::Defect)
    }

    /// Runs the operations of a call that are this lane's.
    fn run(&self, call: &Call, ops: &mut dyn Iterator<Item = Asked<'_>>) -> Result<(), Error> {
        let mut ops = ops.peekable();
        let mut state = self.lock()?;
        let turn = state.turn();
        let (mut woken, mut bytes) = (Vec::new(), 0);
        loop {
            if state.engine.in_flight() == 0 {
                // A server may have ended since the last call. To notice that before the request is
                // sent is the difference between UNAVAILABLE and IN_DOUBT.
                let now = Instant::now();
                state.with(&turn, &mut woken, |engine, ends| {
                    let _ = engine.turn(now, ends);
                });
            }
            let now = Instant::now();
            if turn.pending() == 0 {
                bytes = 0;
            }
            while let Some(asked) = ops.next_if(|asked| {
                let pending = turn.pending();
                let fits = bytes + asked.op.bytes() <= BATCH_BYTES_IN_FLIGHT;
                pending == 0 || (pending < BATCH_IN_FLIGHT && fits)
            }) {
                bytes += asked.op.bytes();
                state.start(call, &turn, &asked, now);
            }
            let is_last = ops.peek().is_none();
            turn.gate().enough = match is_last {
                true => 0,
                // All of a batch at once, where its bytes bound it.
                false if bytes > BATCH_BYTES_IN_FLIGHT / 2 => 0,
                false => turn.pending() / 2,
            };
            state.with(&turn, &mut woken, |engine, ends| engine.begin_turn(now, ends));
            Turn::wake_all(&mut woken);
            state = self.wait(&turn, state, &mut woken)?;
            if is_last {
                state.keep(turn);
                drop(state);
                Turn::wake_all(&mut woken);
                return Ok(());
            }
        }
    }

    /// Waits until enough operations of a thread have ended; leads where nobody else does. The caller wakes `woken`.
    fn wait<'a>(
        &'a self,
        turn: &Arc<Turn>,
        mut state: MutexGuard<'a, State>,
        woken: &mut Vec<Arc<Turn>>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let (mut leads, mut is_in_line) = (false, false);
        while !turn.is_done() {
            if std::mem::take(&mut turn.gate().leads) {
                (leads, is_in_line) = (true, false);
            }
            let next = state.engine.next_timer();
            if leads || !state.is_led {
                (leads, state.is_led) = (true, true);
                let mut readiness = std::mem::take(&mut state.readiness);
                drop(state);
                Turn::wake_all(woken);
                readiness.clear();
                let timeout = next.saturating_duration_since(Instant::now());
                let waited = self.waiter.wait(timeout, &mut readiness);
                state = self.lock()?;
                state.with(turn, woken, |engine, ends| {
                    let now = engine.end_turn(&readiness, ends);
                    if let Err(error) = waited {
                        // A program cannot cause it by servers or networks.
                        engine.abandon_all(&error, now, ends);
                    }
                    engine.begin_turn(now, ends);
                    engine.heed_interrupt(ends);
                });
                state.readiness = readiness;
            } else {
                if !is_in_line {
                    state.line.push_back(Arc::clone(turn));
                    is_in_line = true;
                }
                drop(state);
                turn.wait(next + LEADER_IS_LATE);
                state = self.lock()?;
                let now = Instant::now();
                if !turn.is_done() && now >= next + LEADER_IS_LATE {
                    state.with(turn, woken, |engine, ends| engine.begin_turn(now, ends));
                }
            }
        }
        if std::mem::take(&mut turn.gate().leads) || leads {
            state.hand_over();
        }
        Ok(state)
    }
}

impl State {
    /// Starts one operation of a call.
    fn start(&mut self, call: &Call, turn: &Arc<Turn>, asked: &Asked<'_>, now: Instant) {
        let Asked { at, op, digest, condition } = *asked;
        if self.engine.is_interrupted() {
            let action = Action::new(op.verb(), op.key());
            return call.each.run(at, Err(Early::Interrupted.error(action)));
        }
        let left = call.deadline.saturating_duration_since(now);
        if left < Duration::from_millis(1) && at > 0 {
            let cause = "the deadline passed before it was sent; use smaller batches".to_owned();
            let action = Action::new(op.verb(), op.key());
            let error = Error::Unavailable { action, waited: call.allowed, cause };
            return call.each.run(at, Err(error));
        }
        let tag = self.underway.vacant_key() as u64;
        let engine = &mut self.engine;
        let (notify, spares) = (Notify::Queue(tag), &mut engine.spares);
        let options = OpOptions { condition, ..call.options };
        match Operation::new(op, &options, call.allowed, notify, now, spares) {
            Ok(mut operation) => {
                operation.set_digest(digest);
                operation.deadline = call.deadline.max(now);
                turn.gate().pending += 1;
                let (turn, each) = (Arc::clone(turn), call.each);
                self.underway.insert(Underway { turn, each, at });
                engine.start(operation);
            }
            Err(refused) => call.each.run(at, Err(refused)),
        }
    }
}

const _: () = {
    const fn may_be_shared_by_threads<T: Send + Sync>() {}
    may_be_shared_by_threads::<SharedClient>();
};
