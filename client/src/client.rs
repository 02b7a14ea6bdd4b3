//! The public client: blocking calls, `submit` and `poll`, over one engine.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use kv_protocol::client_message::{Part, ReplicaRole};
use kv_protocol::ids::SequenceNumber;
use kv_protocol::limits::MAX_DEADLINE;

use crate::completion::{Completion, Ends, OnEnd, Reply, SubmitError};
use crate::doubt::Doubt;
use crate::engine::{Early, Engine};
use crate::error::{Action, Error, OpenError};
use crate::inherited::Descriptors;
use crate::landing::Landing;
use crate::operation::{Notify, Op, OpId, Operation};
use crate::options::{Endpoints, OpOptions, Options};
use crate::statistics::Statistics;

/// The result of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub bytes: Vec<u8>,
    /// The entry's version, for [`crate::Condition::IfVersion`].
    pub version: SequenceNumber,
}

/// A part of a value, as returned by [`Client::get_part`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValuePart {
    /// The bytes of the part.
    pub bytes: Vec<u8>,
    /// The length of the whole value.
    pub length: usize,
    /// The entry's version. Parts with equal versions belong to the same value.
    pub version: SequenceNumber,
}

/// The result of a completed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version of the entry after the write. For a delete: the sequence number of the delete itself.
    pub version: SequenceNumber,
    /// The number of replicas that hold the write: 2, or 1 while the key's group is degraded.
    pub copies: u8,
}

/// A client of one cluster; see the crate documentation.
#[derive(Debug)]
pub struct Client {
    engine: Engine,
    /// Completions of submitted operations that ended during a blocking call or [`Client::cancel`].
    uncollected: VecDeque<Completion>,
}

/// The receiver of completions during a blocking call. It takes the call's own completion, and keeps the completions of
/// submitted operations for the next poll.
struct CallEnds<'a, T, F> {
    take: Option<F>,
    result: Option<Result<T, Error>>,
    uncollected: &'a mut VecDeque<Completion>,
}

impl<T, F: FnOnce(Reply<'_>) -> T> Ends for CallEnds<'_, T, F> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Reply<'_>, Error>) {
        match (notify, self.take.take()) {
            (Notify::Caller, Some(take)) => self.result = Some(result.map(take)),
            (Notify::Caller, None) => {}
            (Notify::None, take) => self.take = take,
            (Notify::Queue(tag), take) => {
                self.take = take;
                let result = result.map(Into::into);
                self.uncollected.push_back(Completion { tag, result });
            }
        }
    }
}

/// The handle of a submitted operation, for [`Client::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(OpId);

/// The receiver of completions outside calls and polls. It keeps them for the next poll.
struct KeptEnds<'a>(&'a mut VecDeque<Completion>);

impl Ends for KeptEnds<'_> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Reply<'_>, Error>) {
        if let Notify::Queue(tag) = notify {
            self.0.push_back(Completion { tag, result: result.map(Into::into) });
        }
    }
}

/// The receiver of completions during a poll.
struct PolledEnds<'a, E> {
    each: &'a mut E,
    count: usize,
    is_enough: bool,
}

impl<E: OnEnd> Ends for PolledEnds<'_, E> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Reply<'_>, Error>) {
        if let Notify::Queue(tag) = notify {
            self.count += 1;
            self.is_enough |= (self.each)(tag, result).is_break();
        }
    }

    fn is_enough(&self) -> bool {
        self.is_enough
    }
}

impl Client {
    /// Opens a client for the cluster whose coordinator is at `endpoints` (`host:port[,host:port…]`). An endpoint may
    /// also be a server's clients port: servers provide the map too, even while the coordinator is unavailable. The
    /// client takes the addresses of the servers from the map. If an address does not respond within 250 ms, the client
    /// sends the request for the map to the next one as well. Names are resolved once, in this call. The first
    /// operation opens the first connection. An endpoint may also be `unix:DIR`, see [`Endpoints::resolve`].
    ///
    /// # Errors
    /// [`OpenError`]: an endpoint is malformed, no endpoint can be resolved, a setting is out of bounds, or the system
    /// provides no descriptor or random number.
    pub fn open(endpoints: &str, options: Options) -> Result<Client, OpenError> {
        Client::with_endpoints(&Endpoints::resolve(endpoints, &options.log)?, options)
    }

    /// Opens a client for the cluster of these endpoints, without resolving names.
    ///
    /// # Errors
    /// [`OpenError`]: a setting is out of bounds, or the system provides no descriptor or random number.
    pub fn with_endpoints(endpoints: &Endpoints, options: Options) -> Result<Client, OpenError> {
        options.check()?;
        let engine = Engine::new(endpoints.clone(), options)?;
        Ok(Client { engine, uncollected: VecDeque::new() })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the condition of `options` does not hold. [`Error::InDoubt`] if the write was sent and no
    /// definite response arrived. With any other error, nothing was changed.
    pub fn put(&mut self, key: &[u8], value: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Put { key, value }, options, written)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// The errors of [`Client::put`], and [`Error::NotFound`] if the key does not exist.
    pub fn delete(&mut self, key: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Delete { key }, options, written)
    }

    /// Settles a write that ended in doubt, and returns the result of the write itself. Any client of the cluster may
    /// call this, any number of times, and gets the same result.
    ///
    /// # Errors
    /// [`Error::NotDone`]: the write was not executed and never will be. [`Error::InDoubt`]: the servers have expired
    /// the write's session or another process uses its client id, so the outcome stays unknown. [`Error::Conflict`] and
    /// [`Error::NotFound`]: the outcome of the write itself. [`Error::Invalid`]: the write belongs to another cluster.
    /// After any other error, the outcome is still unknown; retry later.
    pub fn resolve(&mut self, doubt: &Doubt, options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Resolve { doubt }, options, written)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the key does not exist; [`Error::Timeout`], [`Error::Unavailable`] or [`Error::Busy`] at
    /// the deadline; [`Error::Lost`] if the key's group has no replica left.
    pub fn get(&mut self, key: &[u8], options: &OpOptions) -> Result<Value, Error> {
        self.get_with(key, options, value)
    }

    /// Reads a key and passes the value to `take` in the buffer in which it was received.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    pub fn get_with<T>(
        &mut self,
        key: &[u8],
        options: &OpOptions,
        take: impl FnOnce(Reply<'_>) -> T,
    ) -> Result<T, Error> {
        self.call(Op::Get { key }, options, take)
    }

    /// Reads a part of a value: at most `most` bytes, starting at byte `from`. The result is empty if `from` is at or
    /// beyond the end of the value.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    pub fn get_part(
        &mut self,
        key: &[u8],
        (from, most): (u32, u32),
        options: &OpOptions,
    ) -> Result<ValuePart, Error> {
        let part = Some(Part::new(from, most));
        self.call(Op::Read { key, part, landing: Landing::Memory }, options, |responded| {
            let Reply { value, length, version, .. } = responded;
            ValuePart { bytes: value.to_vec(), length, version }
        })
    }

    /// Returns the length of a value, without fetching the value, and the version of the entry.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    pub fn length(
        &mut self,
        key: &[u8],
        options: &OpOptions,
    ) -> Result<(usize, SequenceNumber), Error> {
        let part = Some(Part { all_or_nothing: true, ..Part::new(0, 0) });
        self.call(Op::Read { key, part, landing: Landing::Buffer }, options, |responded| {
            (responded.length, responded.version)
        })
    }

    /// Sets a key to a value that is sent from the caller's memory, without a copy; see [`Op::PutKept`].
    ///
    /// # Errors
    /// The errors of [`Client::put`].
    pub fn put_kept(
        &mut self,
        key: &[u8],
        value: &'static [u8],
        options: &OpOptions,
    ) -> Result<Written, Error> {
        self.call(Op::PutKept { key, value }, options, written)
    }

    /// Reads a key into `buffer`, reusing its memory. The buffer changes only on success.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    pub fn get_into(
        &mut self,
        key: &[u8],
        buffer: &mut Vec<u8>,
        options: &OpOptions,
    ) -> Result<SequenceNumber, Error> {
        self.get_with(key, options, |responded| {
            buffer.clear();
            buffer.extend_from_slice(responded.value);
            responded.version
        })
    }

    /// Sends a no-op request to the primary of a key, and waits for the response.
    ///
    /// # Errors
    /// The errors of [`Client::get`], except [`Error::NotFound`].
    pub fn noop(&mut self, key: &[u8], options: &OpOptions) -> Result<(), Error> {
        self.call(Op::Noop { key }, options, |_| ())
    }

    /// Reads a key from the table of one replica, for checks. Returns `None` if the table does not contain the key. The
    /// secondary's table may already hold writes that are not committed yet.
    ///
    /// # Errors
    /// The errors of [`Client::get`], except [`Error::NotFound`]. [`Error::Unavailable`] if the group has no replica in
    /// this role before the deadline.
    pub fn verify(
        &mut self,
        key: &[u8],
        replica: ReplicaRole,
        options: &OpOptions,
    ) -> Result<Option<Value>, Error> {
        match self.call(Op::Verify { key, replica }, options, value) {
            Ok(value) => Ok(Some(value)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Submits an operation and returns at once. A later [`Client::poll`] returns the completion with `tag`. Key and
    /// value are copied, except the value of [`Op::PutKept`]. Two operations in flight on one key may execute in either
    /// order. If the order matters, wait for the first completion.
    ///
    /// # Errors
    /// [`SubmitError::Full`]: collect completions first. [`SubmitError::Refused`]: the operation is invalid, there is
    /// no memory for it, or the program has interrupted the client.
    pub fn submit(&mut self, op: Op<'_>, options: &OpOptions, tag: u64) -> Result<(), SubmitError> {
        self.submit_to_cancel(op, options, tag).map(|_| ())
    }

    /// Submits an operation like [`Client::submit`] and returns a ticket for [`Client::cancel`].
    ///
    /// # Errors
    /// The errors of [`Client::submit`].
    pub fn submit_to_cancel(
        &mut self,
        op: Op<'_>,
        options: &OpOptions,
        tag: u64,
    ) -> Result<Ticket, SubmitError> {
        self.check_interrupt(&op)?;
        // The limits are checked before key and value are copied.
        self.engine.check_room(op.bytes(), self.uncollected.len())?;
        let now = Instant::now();
        let operation = self.operation(op, options, Notify::Queue(tag), now)?;
        let id = self.engine.start(operation);
        // The next poll sends the operation. The timer makes the descriptor readable, so that the program polls.
        let _ = self.engine.set_timer(now);
        Ok(Ticket(id))
    }

    /// Ends a submitted operation early. The next poll returns its completion: [`Error::InDoubt`] for a write that was
    /// sent, else [`Error::Cancelled`]. Returns false if the operation has already ended; its completion, unless
    /// already collected, then has the actual result.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Client { engine, uncollected } = self;
        let was_under_way =
            engine.end_early(ticket.0, Early::Cancelled, &mut KeptEnds(uncollected));
        self.wake_if_uncollected();
        was_under_way
    }

    /// Sends submitted operations, waits up to `timeout` (at most 60 s) for the first completion, and appends all
    /// available completions to `into`. Returns their number, which is zero after the timeout. The call returns at once
    /// if nothing is in flight or the program has interrupted the client.
    ///
    /// # Errors
    /// If waiting on epoll or setting the timer fails, which neither servers nor networks can cause.
    pub fn poll(&mut self, timeout: Duration, into: &mut Vec<Completion>) -> io::Result<usize> {
        self.poll_each(timeout, &mut |tag, result| {
            into.push(Completion { tag, result: result.map(Into::into) });
            ControlFlow::Continue(())
        })
    }

    /// Polls like [`Client::poll`], but calls `each` for every completion as it arrives, with the value in its receive
    /// buffer. After `each` breaks, this poll reads nothing more from the servers. Data already read, up to 17 MiB, is
    /// still processed.
    ///
    /// # Errors
    /// The errors of [`Client::poll`]; `each` may have been called before.
    pub fn poll_each(&mut self, timeout: Duration, each: &mut impl OnEnd) -> io::Result<usize> {
        let until = Instant::now() + timeout.min(MAX_DEADLINE);
        let mut ends = PolledEnds { each, count: 0, is_enough: false };
        while let Some(Completion { tag, result }) = self.uncollected.pop_front() {
            let result = match &result {
                Ok(outcome) => Ok(outcome.reply()),
                Err(error) => Err(error.clone()),
            };
            ends.end(0, Notify::Queue(tag), result);
        }
        let is_idle = ends.count > 0 || self.engine.in_flight() == 0;
        let until = if is_idle { Instant::now() } else { until };
        loop {
            self.engine.turn(until, &mut ends)?;
            let is_over = ends.count > 0 || self.engine.in_flight() == 0;
            if is_over || self.engine.is_interrupted() || Instant::now() >= until {
                return Ok(ends.count);
            }
        }
    }

    /// Sends submitted operations and ends those past their deadline, but receives no responses. It is for a caller
    /// that already has enough unprocessed completions. `each` receives the operations that end.
    ///
    /// # Errors
    /// If the timer cannot be set.
    pub fn send_each(&mut self, each: &mut impl OnEnd) -> io::Result<()> {
        let sent = self.engine.send(&mut PolledEnds { each, count: 0, is_enough: false });
        self.wake_if_uncollected();
        sent
    }

    /// Returns a descriptor for event loops. It is readable when [`Client::poll`] has work to do. The client owns the
    /// descriptor, which is the same in every call.
    ///
    /// # Errors
    /// If the system provides no timer.
    pub fn descriptor(&mut self) -> io::Result<BorrowedFd<'_>> {
        self.engine.add_timer()?;
        self.wake_if_uncollected();
        Ok(self.engine.descriptor())
    }

    /// Makes the descriptor readable until the next poll. Has no effect before the first call of
    /// [`Client::descriptor`].
    pub fn wake(&mut self) {
        // An error means that the timer cannot be set. A poll that waits does not need the timer.
        let _ = self.engine.wake(Instant::now());
    }

    /// Makes the descriptor readable if there are uncollected completions, which no socket signals.
    fn wake_if_uncollected(&mut self) {
        if !self.uncollected.is_empty() {
            self.wake();
        }
    }

    /// Returns the number of operations that were submitted and whose completions were not collected.
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight() + self.uncollected.len()
    }

    /// Returns whether the program has interrupted this client ([`crate::Interrupt`]).
    pub fn is_interrupted(&self) -> bool {
        self.engine.is_interrupted()
    }

    /// Returns the descriptors of this client, for the child of a fork that cannot drop its copy of the client.
    pub fn descriptors(&self) -> Descriptors {
        self.engine.descriptors()
    }

    /// Returns the counters of this client since it was opened.
    pub fn statistics(&self) -> Statistics {
        self.engine.statistics()
    }

    /// Returns the time at which bytes last arrived from any server or coordinator, whatever their content; `None` if
    /// none ever did. After a timeout, this distinguishes an unreachable cluster from one in which only some servers
    /// are slow.
    pub fn heard_at(&self) -> Option<Instant> {
        self.engine.heard_at()
    }

    /// Returns whether this client has ever received a map.
    pub fn has_map(&self) -> bool {
        self.engine.has_map()
    }

    /// Returns the resolved endpoints as given to [`Client::open`], separated by commas.
    pub fn coordinators(&self) -> String {
        self.engine.coordinators()
    }

    /// Sends a no-op request to the primary of a key, and waits for the response. Returns the time it took, including
    /// connecting and retries.
    ///
    /// # Errors
    /// The errors of [`Client::noop`].
    pub fn ping(&mut self, key: &[u8], options: &OpOptions) -> Result<Duration, Error> {
        let begun = Instant::now();
        self.call(Op::Noop { key }, options, |_| begun.elapsed())
    }

    fn check_interrupt(&self, op: &Op<'_>) -> Result<(), Error> {
        if self.engine.is_interrupted() {
            return Err(Early::Interrupted.error(Action::new(op.verb(), op.key())));
        }
        Ok(())
    }

    fn operation(
        &mut self,
        op: Op<'_>,
        options: &OpOptions,
        notify: Notify,
        now: Instant,
    ) -> Result<Box<Operation>, Error> {
        let deadline = self.engine.options.deadline;
        Operation::new(op, options, deadline, notify, now, &mut self.engine.free_list)
    }

    /// Runs one operation to its end and passes the result to `take`, with the value in its receive buffer.
    ///
    /// # Errors
    /// The errors of the operation.
    pub fn call<T>(
        &mut self,
        op: Op<'_>,
        options: &OpOptions,
        take: impl FnOnce(Reply<'_>) -> T,
    ) -> Result<T, Error> {
        self.check_interrupt(&op)?;
        let now = Instant::now();
        let operation = self.operation(op, options, Notify::Caller, now)?;
        let result = self.run(operation, take, now);
        self.wake_if_uncollected();
        result
    }

    /// Runs an operation to its end.
    fn run<T>(
        &mut self,
        operation: Box<Operation>,
        take: impl FnOnce(Reply<'_>) -> T,
        mut now: Instant,
    ) -> Result<T, Error> {
        let Client { engine, uncollected } = self;
        let mut ends = CallEnds { take: Some(take), result: None, uncollected };
        if engine.in_flight() == 0 {
            // A server may have closed its connection since the last call. Detecting that before sending makes the
            // difference between UNAVAILABLE and IN_DOUBT.
            let _ = engine.turn(now, &mut ends);
        }
        let until = operation.deadline;
        let id = engine.start(operation);
        loop {
            let turned = engine.turn(until, &mut ends);
            if let Err(error) = turned {
                now = now.max(Instant::now());
                engine.abandon(id, &error, now, &mut ends);
            }
            if engine.is_interrupted() {
                engine.end_early(id, Early::Interrupted, &mut ends);
            }
            if let Some(result) = ends.result.take() {
                return result;
            }
        }
    }
}

pub(crate) fn written(responded: Reply<'_>) -> Written {
    Written { version: responded.version, copies: responded.copies }
}

fn value(responded: Reply<'_>) -> Value {
    Value { bytes: responded.value.to_vec(), version: responded.version }
}

const _: () = {
    const fn may_move_between_threads<T: Send>() {}
    may_move_between_threads::<Client>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_with_nothing_in_flight_does_not_wait() {
        let mut client = Client::open("127.0.0.1:1", Options::default()).unwrap();
        let (begun, mut found) = (Instant::now(), Vec::new());
        assert_eq!(client.poll(MAX_DEADLINE, &mut found).unwrap(), 0);
        assert!(begun.elapsed() < MAX_DEADLINE / 2);
    }
}
