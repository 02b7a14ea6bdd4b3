//! A client that many threads use concurrently over few connections.
//!
//! ```text
//!   thread A  call --> lane: engine, calls in progress      one lane, so one connection to each shard
//!   thread B  call -->   |
//!                        +-- A leads: waits on epoll without the lock, receives for all
//!                        +-- B follows: sends its own request, then waits to be woken
//!   A's call ends --> B leads
//! ```
//!
//! The library starts no thread. Instead, at any time one of the threads in calls is the *leader*. Each thread sends
//! its own request at once. The leader receives the responses, passes their values to the functions of the other calls,
//! and wakes the threads of these calls. A follower runs the timers itself if the leader is late, so every call ends at
//! its deadline.
//!
//! A key always maps to the same lane, so the operations of all threads on one key use one session.

use std::collections::VecDeque;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use kv_protocol::client_message::Condition;
use kv_protocol::placement::Digest;
use slab::Slab;

use crate::client::{Written, written};
use crate::completion::{Ends, Reply};
use crate::doubt::Doubt;
use crate::engine::{Early, Engine};
use crate::error::{Action, Error, OpenError};
use crate::events::is_in_callback;
use crate::inherited::Descriptors;
use crate::operation::{Notify, Op, OpId, Operation};
use crate::options::{Endpoints, OpOptions, Options};
use crate::poller::{Readiness, Waiter};
use crate::statistics::Statistics;

/// The number of bytes of values after which a turn stops reading, so that other threads get the lane.
const BYTES_A_TURN: usize = 512 << 10;
/// The time after a timer is due at which a follower runs the timers instead of the leader.
const LEADER_IS_LATE: Duration = Duration::from_millis(2);
/// The maximum number of operations of one batch in flight.
const BATCH_IN_FLIGHT: usize = 1_024;
/// The maximum number of bytes of keys and values of one batch in flight; a single operation is always allowed.
const BATCH_BYTES_IN_FLIGHT: usize = 64 << 20;

/// The maximum number of [`Turn`]s in a lane's free list.
const TURNS_KEPT: usize = 64;

/// The function that receives the result of each operation, by its index in the call. Any thread may run it.
type OnEach<'a> = dyn FnMut(usize, Result<Reply<'_>, Error>) + Send + 'a;

/// A pointer to an [`OnEach`] function. It is valid while the call that owns the function is in progress.
#[derive(Clone, Copy)]
struct EachOfCall(NonNull<OnEach<'static>>);

// SAFETY: the function is `Send`, and only the thread that holds the lock of the lane runs it.
unsafe impl Send for EachOfCall {}

impl EachOfCall {
    fn of(each: &mut OnEach<'_>) -> EachOfCall {
        // SAFETY: only the lifetime changes. A call returns after all of its operations have ended, and no operation
        // uses this pointer after its end. If the call returns early, the lane is poisoned, so no thread gets its lock
        // again.
        let each: &mut OnEach<'static> = unsafe { std::mem::transmute(each) };
        EachOfCall(NonNull::from(each))
    }

    /// Runs the function. The caller holds the lock of the lane.
    fn run(mut self, at: usize, result: Result<Reply<'_>, Error>) {
        // SAFETY: the call has not returned, see `of`; the lock of the lane makes the access exclusive.
        (unsafe { self.0.as_mut() })(at, result);
    }
}

/// A client that many threads share; see the module documentation.
#[derive(Debug)]
pub struct SharedClient {
    lanes: Box<[Lane]>,
    deadline: Duration,
    /// True if a log or event function is set; calls from within it are rejected.
    calls_back: bool,
}

impl SharedClient {
    /// Opens a client whose calls share up to `connections` connections to each shard of a server; zero counts as one.
    ///
    /// # Errors
    /// [`OpenError`]: a setting is out of bounds, or the system provides no descriptor.
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

    /// Sets a key, like [`crate::Client::put`].
    ///
    /// # Errors
    /// The errors of that function, [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn put(&self, key: &[u8], value: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Put { key, value }, options, written)
    }

    /// Removes a key, like [`crate::Client::delete`].
    ///
    /// # Errors
    /// The errors of that function, [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn delete(&self, key: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Delete { key }, options, written)
    }

    /// Settles a write that ended in doubt, like [`crate::Client::resolve`].
    ///
    /// # Errors
    /// The errors of that function, [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn resolve(&self, doubt: &Doubt, options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Resolve { doubt }, options, written)
    }

    /// Runs one operation to its end and passes the result to `take`, with the value in its receive buffer. `take` may
    /// run on another thread, under a lock that delays other threads.
    ///
    /// # Errors
    /// The errors of the operation; [`Error::Defect`] if an earlier call panicked; [`Error::WithinCallback`].
    pub fn call<T: Send>(
        &self,
        op: Op<'_>,
        options: &OpOptions,
        take: impl FnOnce(Reply<'_>) -> T + Send,
    ) -> Result<T, Error> {
        self.check_caller()?;
        let (mut ended, mut take) = (None, Some(take));
        let mut each = |_: usize, result: Result<Reply<'_>, Error>| {
            ended = take.take().map(|take| result.map(take));
        };
        let digest = op.digest();
        let call = Call::new(self.deadline, options, &mut each);
        let asked = Asked { at: 0, op, digest, condition: options.condition };
        self.lane(digest).run(&call, &mut std::iter::once(asked))?;
        ended.expect("every operation of a call has an end")
    }

    /// Runs many operations, each with its own condition, on all servers in parallel. With several connections to each
    /// shard, the operations of different connections run one after the other. `each` receives each result as it
    /// arrives, by the index of the operation.
    ///
    /// # Errors
    /// [`Error::Defect`] if an earlier call panicked; [`Error::WithinCallback`]. The errors of the operations go to
    /// `each`.
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

    /// Sends a no-op request to the primary of a key, and waits for the response. Returns the time it took, including
    /// connecting and retries.
    ///
    /// # Errors
    /// The errors of [`crate::Client::noop`], [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn ping(&self, key: &[u8], options: &OpOptions) -> Result<Duration, Error> {
        let begun = Instant::now();
        self.call(Op::Noop { key }, options, |_| begun.elapsed())
    }

    /// Pings the current primary of every group in parallel. `each` receives the number of each group, and its result:
    /// the time until the response. If every group is at home, the number is also the id of the server that responded.
    ///
    /// # Errors
    /// The errors of the first request, which also fetches the map; then no other request was sent. The errors of the
    /// other requests go to `each`.
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
        self.batch(ops, &options, &mut |at: usize, result: Result<Reply<'_>, Error>| {
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

    /// Releases what the child of a fork has inherited: its copies of the descriptors, and the memory. The parent's
    /// connections are not affected. If another thread of the parent was changing a lane at the moment of the fork, the
    /// memory of that lane is leaked.
    pub fn close_inherited(self) {
        for lane in self.lanes {
            lane.close_inherited();
        }
    }

    /// Rejects a call from within a log or event function. Such a function runs under a lane's lock, so the call would
    /// deadlock.
    fn check_caller(&self) -> Result<(), Error> {
        if self.calls_back && is_in_callback() { Err(Error::WithinCallback) } else { Ok(()) }
    }

    fn lane(&self, digest: Digest) -> &Lane {
        &self.lanes[self.lane_number(digest)]
    }

    fn lane_number(&self, digest: Digest) -> usize {
        lane_of(digest, self.lanes.len())
    }
}

/// Returns the lane of a key. The lane is independent of the key's group and shard, which are remainders of the digest.
/// So the keys of each server use all lanes, for any numbers of servers, shards and lanes.
fn lane_of(digest: Digest, lanes: usize) -> usize {
    // Fibonacci hashing: the upper bits of the product depend on all bits of its factor.
    const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    let mixed = u64::from_le_bytes([a, b, c, d, e, f, g, h]).wrapping_mul(GOLDEN_RATIO) >> 32;
    usize::try_from(mixed).expect("32 bits fit") % lanes
}

/// One operation of a call.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// Its index in the call.
    at: usize,
    op: Op<'a>,
    /// The digest of its key.
    digest: Digest,
    condition: Condition,
}

/// A call of one thread: its options and the function that receives the results.
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

/// The wait state of one thread in a call.
#[derive(Debug, Default)]
struct Turn {
    gate: Mutex<Gate>,
    told: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    /// The number of operations of the call that have not ended.
    pending: usize,
    /// The thread may continue once `pending` is at most this number.
    enough: usize,
    /// True if the thread has to lead.
    leads: bool,
}

impl Turn {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Nothing under this lock can panic.
        self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn pending(&self) -> usize {
        self.gate().pending
    }

    /// Returns whether the thread may continue.
    fn is_done(&self) -> bool {
        let gate = self.gate();
        gate.pending <= gate.enough
    }

    fn wake_all(woken: &mut Vec<Arc<Turn>>) {
        for turn in woken.drain(..) {
            turn.told.notify_one();
        }
    }

    /// Records the end of an operation. Returns true if this end allows the thread to continue.
    fn note_end(&self) -> bool {
        let mut gate = self.gate();
        gate.pending -= 1;
        gate.pending == gate.enough
    }

    /// Waits until the thread may continue or has to lead, or until `at`.
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

/// One engine, its connections, and the calls that use it.
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
    /// The operations in progress, by the tags that the engine uses.
    underway: Slab<Underway>,
    /// True if a thread leads or has been chosen to lead.
    is_led: bool,
    /// The followers, in the order in which they become the leader.
    line: VecDeque<Arc<Turn>>,
    /// The free list of turns of ended calls.
    turns: Vec<Arc<Turn>>,
    /// The memory of the leader's list of ready connections, kept for reuse.
    readiness: Vec<Readiness>,
}

struct Underway {
    turn: Arc<Turn>,
    each: EachOfCall,
    /// The index in its call.
    at: usize,
}

/// A receiver that passes results to their calls.
struct LaneEnds<'a> {
    underway: &'a mut Slab<Underway>,
    /// The turn of the thread that runs the engine. It needs no wake-up.
    own: &'a Arc<Turn>,
    /// The turns of the other threads that may continue and must be woken.
    woken: &'a mut Vec<Arc<Turn>>,
    /// The bytes of values received.
    bytes: usize,
}

impl Ends for LaneEnds<'_> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Reply<'_>, Error>) {
        let Notify::Queue(tag) = notify else { return };
        let tag = usize::try_from(tag).expect("a tag is an index of a slab");
        let Some(Underway { turn, each, at }) = self.underway.try_remove(tag) else { return };
        self.bytes += result.as_ref().map_or(0, |responded| responded.value.len());
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
    /// Runs the engine for the thread whose turn is `own`. Adds the threads that may continue to `woken`.
    fn with(
        &mut self,
        own: &Arc<Turn>,
        woken: &mut Vec<Arc<Turn>>,
        run: impl FnOnce(&mut Engine, &mut LaneEnds<'_>),
    ) {
        let mut ends = LaneEnds { underway: &mut self.underway, own, woken, bytes: 0 };
        run(&mut self.engine, &mut ends);
    }

    /// Returns a turn for a new call.
    fn turn(&mut self) -> Arc<Turn> {
        self.turns.pop().unwrap_or_default()
    }

    /// Adds the turn of an ended call to the free list, unless another reference to it exists.
    fn keep(&mut self, turn: Arc<Turn>) {
        if self.turns.len() < TURNS_KEPT && Arc::strong_count(&turn) == 1 {
            self.turns.push(turn);
        }
    }

    /// Chooses the follower that has waited longest as leader, if there is one.
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

    /// Releases this lane in the child of a fork; see [`SharedClient::close_inherited`].
    fn close_inherited(self) {
        let is_sound = !matches!(self.state.try_lock(), Err(TryLockError::WouldBlock));
        if !is_sound {
            // SAFETY: `forget` ensures that the owner of the descriptors is never dropped.
            unsafe { self.descriptors.close() };
            std::mem::forget(self);
        }
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        // A panicked thread may have left the state inconsistent.
        self.state.lock().map_err(|_| Error::Defect)
    }

    /// Runs the operations of a call that belong to this lane.
    fn run(&self, call: &Call, ops: &mut dyn Iterator<Item = Asked<'_>>) -> Result<(), Error> {
        let mut ops = ops.peekable();
        let mut state = self.lock()?;
        let turn = state.turn();
        let (mut woken, mut bytes) = (Vec::new(), 0);
        loop {
            if state.engine.in_flight() == 0 {
                // A server may have closed its connection since the last call. Detecting that before sending makes the
                // difference between UNAVAILABLE and IN_DOUBT.
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
                // A batch that uses more than half of the limit of bytes waits until all of its operations have ended.
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

    /// Waits until enough operations of the call have ended. The thread leads if no other thread does. The caller wakes
    /// the threads left in `woken`.
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
                        // Only a failing system call can cause this error. Servers and networks cannot.
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
        if is_in_line {
            // The thread leaves the line, so the line holds only threads that wait.
            state.line.retain(|other| !Arc::ptr_eq(other, turn));
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
            let cause =
                "the deadline passed before the operation was sent; use smaller batches".to_owned();
            let action = Action::new(op.verb(), op.key());
            let error = Error::Unavailable { action, waited: call.allowed, cause };
            return call.each.run(at, Err(error));
        }
        let tag = self.underway.vacant_key() as u64;
        let engine = &mut self.engine;
        let (notify, free_list) = (Notify::Queue(tag), &mut engine.free_list);
        let options = OpOptions { condition, ..call.options };
        match Operation::new(op, &options, call.allowed, notify, now, free_list) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::placement::Placement;

    #[test]
    fn the_keys_of_every_group_and_shard_use_all_lanes() {
        for (servers, shards, lanes) in [(3, 1, 3), (5, 2, 5), (3, 4, 2), (17, 1, 17), (7, 3, 21)] {
            let placement = Placement::new(servers, shards);
            let mut used = std::collections::HashSet::new();
            for n in 0..200 * usize::from(servers) * usize::from(shards) * lanes {
                let digest = Digest::of(n.to_string().as_bytes());
                used.insert((placement.place_of(digest), lane_of(digest, lanes)));
            }
            let all = usize::from(servers) * usize::from(shards) * lanes;
            assert_eq!(used.len(), all, "{servers} servers, {shards} shards, {lanes} lanes");
        }
    }
}
