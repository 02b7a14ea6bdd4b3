//! The client that callers hold: blocking calls, and submit and poll, over one engine.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use kv_protocol::client_message::{Part, ReplicaRole};
use kv_protocol::ids::SequenceNumber;
use kv_protocol::limits::MAX_DEADLINE;

use crate::completion::{Answered, Completion, Ends, OnEnd, SubmitError};
use crate::doubt::Doubt;
use crate::engine::{Early, Engine};
use crate::error::{Action, Error, OpenError};
use crate::inherited::Descriptors;
use crate::landing::Landing;
use crate::operation::{Notify, Op, OpId, Operation};
use crate::options::{Endpoints, OpOptions, Options};
use crate::statistics::Statistics;

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub bytes: Vec<u8>,
    /// The entry's version, for [`crate::Condition::IfVersion`].
    pub version: SequenceNumber,
}

/// A part of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValuePart {
    /// The bytes of the part.
    pub bytes: Vec<u8>,
    /// The length of the whole value.
    pub length: usize,
    /// The entry's version: the same for all parts of one value.
    pub version: SequenceNumber,
}

/// A write that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version of the entry now; of a delete, the number of the delete itself.
    pub version: SequenceNumber,
    /// How many tables hold it: 2, or 1 while the key's group is degraded.
    pub copies: u8,
}

/// A client of one cluster. See the crate's description.
#[derive(Debug)]
pub struct Client {
    engine: Engine,
    /// Ends of submitted operations that happened while a call waited for its own.
    uncollected: VecDeque<Completion>,
}

/// What a call hears: its own end, while those of submitted operations are kept for later.
struct CallEnds<'a, T, F> {
    take: Option<F>,
    result: Option<Result<T, Error>>,
    uncollected: &'a mut VecDeque<Completion>,
}

impl<T, F: FnOnce(Answered<'_>) -> T> Ends for CallEnds<'_, T, F> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Answered<'_>, Error>) {
        match (notify, self.take.take()) {
            (Notify::Caller, Some(take)) => self.result = Some(result.map(take)),
            (Notify::Caller, None) => {}
            (Notify::Nobody, take) => self.take = take,
            (Notify::Queue(tag), take) => {
                self.take = take;
                let result = result.map(Into::into);
                self.uncollected.push_back(Completion { tag, result });
            }
        }
    }
}

/// Names an operation that was submitted, for [`Client::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(OpId);

/// Keeps the ends of submitted operations for the next poll.
struct KeptEnds<'a>(&'a mut VecDeque<Completion>);

impl Ends for KeptEnds<'_> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Answered<'_>, Error>) {
        if let Notify::Queue(tag) = notify {
            self.0.push_back(Completion { tag, result: result.map(Into::into) });
        }
    }
}

/// What a poll hears.
struct PolledEnds<'a, E> {
    each: &'a mut E,
    count: usize,
    is_enough: bool,
}

impl<E: OnEnd> Ends for PolledEnds<'_, E> {
    fn end(&mut self, _: OpId, notify: Notify, result: Result<Answered<'_>, Error>) {
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
    /// Opens a client for the cluster whose coordinator is at `endpoints`
    /// (`host:port[,host:port…]`). Servers may be named too, by their ports for clients: they give
    /// the map as well, also while the coordinator is away. The client finds the other servers by
    /// itself. An address that does not respond delays an operation by 250 ms: then the next one is asked too. Names
    /// are resolved here and never again; nothing is connected before the first operation.
    ///
    /// # Errors
    /// [`OpenError`]: an endpoint is malformed or unknown, a setting is out of its bounds, or the
    /// system gives no descriptor.
    pub fn open(endpoints: &str, options: Options) -> Result<Client, OpenError> {
        Client::with_endpoints(&Endpoints::resolve(endpoints, &options.log)?, options)
    }

    /// Opens one more client of the same cluster, without asking for names again.
    ///
    /// # Errors
    /// [`OpenError`]: a setting is out of its bounds, or the system gives no descriptor.
    pub fn with_endpoints(endpoints: &Endpoints, options: Options) -> Result<Client, OpenError> {
        options.check()?;
        let engine = Engine::new(endpoints.clone(), options)?;
        Ok(Client { engine, uncollected: VecDeque::new() })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the condition of `options` does not hold; [`Error::InDoubt`] if the
    /// write was sent and no definite answer came; the others mean that nothing was done.
    pub fn put(&mut self, key: &[u8], value: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Put { key, value }, options, written)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Client::put`]; [`Error::NotFound`] if there was nothing to remove.
    pub fn delete(&mut self, key: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Delete { key }, options, written)
    }

    /// Settles a write that ended in doubt. It ends as the write would have ended. Any client of the cluster may ask,
    /// as often as it likes: the response is always the same.
    ///
    /// # Errors
    /// [`Error::NotDone`]: the write was not done, and never will be. [`Error::InDoubt`]: the servers have forgotten
    /// it, so its end stays unknown. [`Error::Conflict`] and [`Error::NotFound`] as the write itself. Others: it could
    /// not be settled now; ask again.
    pub fn resolve(&mut self, doubt: &Doubt, options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Resolve { doubt }, options, written)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the key does not exist; [`Error::Timeout`] and [`Error::Unavailable`]
    /// at the deadline; [`Error::Lost`] if nobody holds the key's group any more.
    pub fn get(&mut self, key: &[u8], options: &OpOptions) -> Result<Value, Error> {
        self.get_with(key, options, value)
    }

    /// Reads a key; `take` sees the value where it was received.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_with<T>(
        &mut self,
        key: &[u8],
        options: &OpOptions,
        take: impl FnOnce(Answered<'_>) -> T,
    ) -> Result<T, Error> {
        self.call(Op::Get { key }, options, take)
    }

    /// Reads a part of a value: at most `most` bytes from byte `from` on. Beyond the end of the value there are none.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_part(
        &mut self,
        key: &[u8],
        (from, most): (u32, u32),
        options: &OpOptions,
    ) -> Result<ValuePart, Error> {
        let part = Some(Part { from, most, all_or_nothing: false });
        self.call(Op::Read { key, part, landing: Landing::Memory }, options, |answered| {
            let Answered { value, length, version, .. } = answered;
            ValuePart { bytes: value.to_vec(), length, version }
        })
    }

    /// The length of a value, which is not fetched for it, and the version of the entry.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn length(
        &mut self,
        key: &[u8],
        options: &OpOptions,
    ) -> Result<(usize, SequenceNumber), Error> {
        let part = Some(Part { from: 0, most: 0, all_or_nothing: true });
        self.call(Op::Read { key, part, landing: Landing::Buffer }, options, |answered| {
            (answered.length, answered.version)
        })
    }

    /// Sets a key to a value that is sent from where it is; see [`Op::PutKept`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn put_kept(
        &mut self,
        key: &[u8],
        value: &'static [u8],
        options: &OpOptions,
    ) -> Result<Written, Error> {
        self.call(Op::PutKept { key, value }, options, written)
    }

    /// Reads a key into a buffer whose memory is used again; it is changed only on success.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_into(
        &mut self,
        key: &[u8],
        buffer: &mut Vec<u8>,
        options: &OpOptions,
    ) -> Result<SequenceNumber, Error> {
        self.get_with(key, options, |answered| {
            buffer.clear();
            buffer.extend_from_slice(answered.value);
            answered.version
        })
    }

    /// Asks the server of a key for an answer and nothing else.
    ///
    /// # Errors
    /// As [`Client::get`], without [`Error::NotFound`].
    pub fn noop(&mut self, key: &[u8], options: &OpOptions) -> Result<(), Error> {
        self.call(Op::Noop { key }, options, |_| ())
    }

    /// Reads a key from one replica's table; `None` if it is not there. For checks: the secondary's
    /// table may be ahead of what readers are shown.
    ///
    /// # Errors
    /// As [`Client::get`], without [`Error::NotFound`]; [`Error::Unavailable`] if the group has no
    /// such replica until the deadline.
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

    /// Takes an operation and returns at once; its end comes from [`Client::poll`] under `tag`. Key
    /// and value are copied. Two operations on one key that are in flight together may be executed
    /// in either order; wait for the first where that matters.
    ///
    /// # Errors
    /// [`SubmitError::Full`]: collect completions first. [`SubmitError::Refused`]: it can never be
    /// done, or the program has interrupted the client.
    pub fn submit(&mut self, op: Op<'_>, options: &OpOptions, tag: u64) -> Result<(), SubmitError> {
        self.submit_to_cancel(op, options, tag).map(|_| ())
    }

    /// As [`Client::submit`]; the ticket names the operation for [`Client::cancel`].
    ///
    /// # Errors
    /// As there.
    pub fn submit_to_cancel(
        &mut self,
        op: Op<'_>,
        options: &OpOptions,
        tag: u64,
    ) -> Result<Ticket, SubmitError> {
        self.check_interrupt(&op)?;
        // Before anything is copied.
        self.engine.check_room(op.bytes(), self.uncollected.len())?;
        let now = Instant::now();
        let operation = self.operation(op, options, Notify::Queue(tag), now)?;
        let id = self.engine.start(operation);
        // Sent by the next poll, which whoever waits on the descriptor is to call.
        let _ = self.engine.set_alarm(now);
        Ok(Ticket(id))
    }

    /// Ends a submitted operation early. Its completion comes from the next poll, as
    /// [`Error::Cancelled`], or as [`Error::InDoubt`] if it is a write that was sent. Returns false if it has ended
    /// before: then its completion, unless it was collected, is the real one.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Client { engine, uncollected } = self;
        let was_under_way =
            engine.end_early(ticket.0, Early::Cancelled, &mut KeptEnds(uncollected));
        self.wake_if_uncollected();
        was_under_way
    }

    /// Sends what was submitted, waits up to `timeout` for the first completion, and appends all
    /// that there are to `into`. Returns how many; zero at the timeout, and at once when nothing is
    /// in flight or the program has interrupted the client.
    ///
    /// # Errors
    /// If the epoll descriptor itself fails.
    pub fn poll(&mut self, timeout: Duration, into: &mut Vec<Completion>) -> io::Result<usize> {
        self.poll_each(timeout, &mut |tag, result| {
            into.push(Completion { tag, result: result.map(Into::into) });
            ControlFlow::Continue(())
        })
    }

    /// As [`Client::poll`]; `each` is called with every end as it happens, and sees values where they
    /// were received. When it breaks, nothing more is read from the servers by this poll, but what has
    /// been read, up to 17 MiB, still ends.
    ///
    /// # Errors
    /// As [`Client::poll`]; `each` may have been called before.
    pub fn poll_each(&mut self, timeout: Duration, each: &mut impl OnEnd) -> io::Result<usize> {
        let until = Instant::now() + timeout.min(MAX_DEADLINE);
        let mut ends = PolledEnds { each, count: 0, is_enough: false };
        while let Some(Completion { tag, result }) = self.uncollected.pop_front() {
            let result = match &result {
                Ok(outcome) => Ok(outcome.answered()),
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

    /// Sends what was submitted, and ends what is over its deadline, but takes no answers: for those who
    /// have enough of them for the moment. `each` is as for [`Client::poll_each`].
    ///
    /// # Errors
    /// If the system's timer fails.
    pub fn send_each(&mut self, each: &mut impl OnEnd) -> io::Result<()> {
        let sent = self.engine.send(&mut PolledEnds { each, count: 0, is_enough: false });
        self.wake_if_uncollected();
        sent
    }

    /// A descriptor that is readable when [`Client::poll`] would do something; for loops that wait for
    /// other things too. It stays the client's, and is the same each time.
    ///
    /// # Errors
    /// If the system gives no timer.
    pub fn descriptor(&mut self) -> io::Result<BorrowedFd<'_>> {
        self.engine.add_alarm()?;
        self.wake_if_uncollected();
        Ok(self.engine.descriptor())
    }

    /// Makes the descriptor readable until the next poll.
    pub fn wake(&mut self) {
        // Who cannot set the timer has no descriptor, or one that the system has broken.
        let _ = self.engine.wake(Instant::now());
    }

    /// What has ended while a call waited is told by no socket.
    fn wake_if_uncollected(&mut self) {
        if !self.uncollected.is_empty() {
            self.wake();
        }
    }

    /// Operations submitted and not collected.
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

    /// When bytes last came from any server or coordinator, whatever they said; `None`: never. Together with an
    /// operation that has timed out it tells a cluster that cannot be reached from one that is slow in part.
    pub fn heard_at(&self) -> Option<Instant> {
        self.engine.heard_at()
    }

    /// Whether any coordinator has ever told this client where the servers are.
    pub fn has_map(&self) -> bool {
        self.engine.has_map()
    }

    /// The coordinators' addresses as given to [`Client::open`].
    pub fn coordinators(&self) -> String {
        self.engine.coordinators()
    }

    /// Asks the server of a key for a response and nothing else. Returns the time that it took, with connecting and
    /// retries if there were any.
    ///
    /// # Errors
    /// As [`Client::noop`].
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
        Operation::new(op, options, deadline, notify, now, &mut self.engine.spares)
    }

    /// Runs one operation to its end; `take` sees a value where it was received.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn call<T>(
        &mut self,
        op: Op<'_>,
        options: &OpOptions,
        take: impl FnOnce(Answered<'_>) -> T,
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
        take: impl FnOnce(Answered<'_>) -> T,
        mut now: Instant,
    ) -> Result<T, Error> {
        let Client { engine, uncollected } = self;
        let mut ends = CallEnds { take: Some(take), result: None, uncollected };
        if engine.in_flight() == 0 {
            // A server may have ended since the last call. To notice that before the request is
            // sent is the difference between UNAVAILABLE and IN_DOUBT.
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

pub(crate) fn written(answered: Answered<'_>) -> Written {
    Written { version: answered.version, copies: answered.copies }
}

fn value(answered: Answered<'_>) -> Value {
    Value { bytes: answered.value.to_vec(), version: answered.version }
}

const _: () = {
    const fn may_move_between_threads<T: Send>() {}
    may_move_between_threads::<Client>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_of_nothing_does_not_wait() {
        let mut client = Client::open("127.0.0.1:1", Options::default()).unwrap();
        let (begun, mut found) = (Instant::now(), Vec::new());
        assert_eq!(client.poll(MAX_DEADLINE, &mut found).unwrap(), 0);
        assert!(begun.elapsed() < MAX_DEADLINE / 2);
    }
}
