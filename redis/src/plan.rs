//! The plan of a command: what the store is asked, and how the reply is made of the responses.

use smallvec::{SmallVec, smallvec};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::error::Error;
use crate::resp::Reply;
use crate::transaction::{Ended, Watched};

/// The result of a command, or of a step of it.
pub enum Plan {
    /// The reply is complete.
    Replied,
    /// The reply is complete, and the connection ends after it.
    Close,
    /// The reply is complete, and the connection watches these keys.
    Watched(Vec<Watched>),
    /// The store is asked. When all responses have arrived, `finish` continues. A step with this result has written
    /// nothing.
    Ask {
        /// The requests. They are independent of each other, and may be executed in any order.
        asks: Asks,
        /// The next step.
        finish: Finish,
    },
    /// A step of the [running transaction](crate::client::Client::running) has ended.
    /// [`transaction::go_on`](crate::transaction::go_on) continues. This step has written nothing.
    GoOn(Ended),
}

/// The requests of a step. One request needs no allocation.
pub type Asks = SmallVec<[Ask; 1]>;

/// The next step of a command. It gets the responses in the order of the requests, or the error if one of them has none.
/// A function that captures nothing needs no allocation.
pub type Finish =
    Box<dyn FnOnce(Result<&[Answer<'_>], Error>, &mut Reply<'_>) -> Result<Plan, Error> + Send>;

impl Plan {
    /// Creates the plan of one request.
    pub fn one(
        ask: Ask,
        finish: impl FnOnce(&Answer<'_>, &mut Reply<'_>) -> Result<Plan, Error> + Send + 'static,
    ) -> Plan {
        let finish: Finish = Box::new(move |answers, reply| finish(&answers?[0], reply));
        Plan::Ask { asks: smallvec![ask], finish }
    }

    /// Creates the plan of several requests.
    pub fn all(
        asks: Vec<Ask>,
        finish: impl FnOnce(&[Answer<'_>], &mut Reply<'_>) -> Result<Plan, Error> + Send + 'static,
    ) -> Plan {
        let finish: Finish = Box::new(move |answers, reply| finish(answers?, reply));
        Plan::Ask { asks: asks.into(), finish }
    }
}
