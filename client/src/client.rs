//! The client that callers hold: blocking calls, and submit and poll, over one engine.

use std::io;
use std::time::{Duration, Instant};

use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::SequenceNumber;

use crate::completion::{Completion, Outcome, SubmitError};
use crate::engine::{Engine, Statistics};
use crate::error::{Error, OpenError};
use crate::operation::{Notify, Op, Operation};
use crate::options::{Endpoints, OpOptions, Options};

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub bytes: Vec<u8>,
    /// The entry's version, for [`crate::Condition::IfVersion`].
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
}

impl Client {
    /// Opens a client for the cluster whose coordinator is at `endpoints`
    /// (`host:port[,host:port…]`). Servers may be named too, by their ports for clients: they give
    /// the map as well, also while the coordinator is away. The client finds the other servers by
    /// itself. Names are resolved here and never again; nothing is connected before the first
    /// operation.
    ///
    /// # Errors
    /// [`OpenError`]: an endpoint is malformed or unknown, a setting is out of its bounds, or the
    /// system gives no descriptor.
    pub fn open(endpoints: &str, options: Options) -> Result<Client, OpenError> {
        Client::with_endpoints(&Endpoints::resolve(endpoints)?, options)
    }

    /// Opens one more client of the same cluster, without asking for names again.
    ///
    /// # Errors
    /// [`OpenError`]: a setting is out of its bounds, or the system gives no descriptor.
    pub fn with_endpoints(endpoints: &Endpoints, options: Options) -> Result<Client, OpenError> {
        options.check()?;
        Ok(Client { engine: Engine::new(endpoints.0.clone(), options)? })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the condition of `options` does not hold; [`Error::InDoubt`] if the
    /// write was sent and no definite answer came; the others mean that nothing was done.
    pub fn put(&mut self, key: &[u8], value: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Put { key, value }, options).map(written)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Client::put`]; [`Error::NotFound`] if there was nothing to remove.
    pub fn delete(&mut self, key: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.call(Op::Delete { key }, options).map(written)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the key does not exist; [`Error::Timeout`] and [`Error::Unavailable`]
    /// at the deadline; [`Error::Lost`] if nobody holds the key's group any more.
    pub fn get(&mut self, key: &[u8], options: &OpOptions) -> Result<Value, Error> {
        let outcome = self.call(Op::Get { key }, options)?;
        Ok(Value { bytes: outcome.value, version: outcome.version })
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
        let outcome = self.call(Op::Get { key }, options)?;
        buffer.clear();
        buffer.extend_from_slice(&outcome.value);
        Ok(outcome.version)
    }

    /// Asks the server of a key for an answer and nothing else.
    ///
    /// # Errors
    /// As [`Client::get`], without [`Error::NotFound`].
    pub fn noop(&mut self, key: &[u8], options: &OpOptions) -> Result<(), Error> {
        self.call(Op::Noop { key }, options).map(|_| ())
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
        match self.call(Op::Verify { key, replica }, options) {
            Ok(outcome) => Ok(Some(Value { bytes: outcome.value, version: outcome.version })),
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
    /// done.
    pub fn submit(&mut self, op: Op<'_>, options: &OpOptions, tag: u64) -> Result<(), SubmitError> {
        let deadline = self.engine.options.deadline;
        let now = Instant::now();
        let operation = Operation::new(op, options, deadline, Notify::Queue(tag), now)?;
        self.engine.check_room(operation.bytes())?;
        self.engine.start(operation);
        Ok(())
    }

    /// Sends what was submitted, waits up to `timeout` for the first completion, and appends all
    /// that there are to `into`. Returns how many; zero at the timeout, and at once when nothing is
    /// in flight.
    ///
    /// # Errors
    /// If the epoll descriptor itself fails.
    pub fn poll(&mut self, timeout: Duration, into: &mut Vec<Completion>) -> io::Result<usize> {
        let until = Instant::now() + timeout;
        loop {
            self.engine.turn(until)?;
            let count = self.engine.collect(into);
            if count > 0 || self.engine.in_flight() == 0 || Instant::now() >= until {
                return Ok(count);
            }
        }
    }

    /// Operations submitted and not collected.
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// What this client has counted since it was opened.
    pub fn statistics(&self) -> Statistics {
        self.engine.statistics()
    }

    /// Whether any coordinator has ever told this client where the servers are.
    pub fn has_map(&self) -> bool {
        self.engine.has_map()
    }

    /// The coordinators' addresses as given to [`Client::open`].
    pub fn coordinators(&self) -> String {
        self.engine.coordinators()
    }

    fn call(&mut self, op: Op<'_>, options: &OpOptions) -> Result<Outcome, Error> {
        let deadline = self.engine.options.deadline;
        let mut now = Instant::now();
        let operation = Operation::new(op, options, deadline, Notify::Caller, now)?;
        if self.engine.in_flight() == 0 {
            // A server may have ended since the last call. To notice that before the request is
            // sent is the difference between UNAVAILABLE and IN_DOUBT.
            let _ = self.engine.turn(now);
        }
        let until = operation.deadline;
        let id = self.engine.start(operation);
        loop {
            let turned = self.engine.turn(until);
            if let Some(result) = self.engine.take_call_result(id) {
                return result;
            }
            if let Err(error) = turned {
                now = now.max(Instant::now());
                self.engine.abandon(id, &error, now);
            }
        }
    }
}

fn written(outcome: Outcome) -> Written {
    Written { version: outcome.version, copies: outcome.copies }
}

const _: () = {
    const fn may_move_between_threads<T: Send>() {}
    may_move_between_threads::<Client>();
};
