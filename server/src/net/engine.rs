//! The choice of the network engine, and the interface that both engines implement.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use kv_protocol::ids::Time;
use kv_shard::Port;

use super::context::ShardContext;
use super::jobs::Job;
use crate::mailbox;
use crate::message::{HandedOver, ShardMessage};

/// The engine of a process; all its executors use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// A separate io_uring inside a glommio executor, for Linux 6.1 and later.
    Uring,
    /// A plain thread over epoll, for older kernels and systems that deny io_uring.
    Epoll,
}

impl EngineKind {
    /// Returns the name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EngineKind::Uring => "uring",
            EngineKind::Epoll => "epoll",
        }
    }
}

/// The parts with which an engine starts on its thread.
pub(crate) struct Prepared {
    pub(crate) context: Rc<ShardContext>,
    pub(crate) inbox: mailbox::Receiver<ShardMessage>,
    pub(crate) listeners: Vec<(OwnedFd, Port)>,
}

/// The interface through which the periodic work of an executor (duties.rs) uses its engine.
pub(crate) trait Engine {
    /// Returns the context of the shard that the engine serves.
    fn context(&self) -> &Rc<ShardContext>;

    /// Adopts a socket that another executor accepted.
    fn adopt(&self, handed: HandedOver);

    /// Starts to connect the streams whose dial is due.
    fn dial_due(&self, now: Time);

    /// Closes the connections and dials whose deadline has passed, and resumes accepting after a pause. The duties call
    /// it every 100 ms.
    fn enforce_deadlines(&self, now: Time);

    /// Begins a job. Its steps alternate with all other work.
    fn begin(&self, job: Job);
}
