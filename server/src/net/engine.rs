//! The engines, one of which moves the bytes of a process.

use std::rc::Rc;

use kv_protocol::ids::Time;

use super::hub::Hub;
use crate::jobs::Job;
use crate::message::HandedOver;

/// Which engine; all executors of a process have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// A ring of its own inside a glommio executor, with what Linux 6.1 and later offer.
    Uring,
    /// A plain thread over epoll, for older kernels and wherever io_uring is denied.
    Epoll,
}

impl EngineKind {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EngineKind::Uring => "uring",
            EngineKind::Epoll => "epoll",
        }
    }
}

/// What an executor's duties (executor.rs) ask of the engine that runs them.
pub(crate) trait Engine {
    /// The shard that it serves.
    fn hub(&self) -> &Rc<Hub>;

    /// Takes in a socket that another executor accepted.
    fn adopt(&self, handed: HandedOver);

    /// Dials the streams that are due.
    fn dial_due(&self, now: Time);

    /// Closes the connections, and gives up the dials, that missed a deadline; accepts again after a pause. To be
    /// called a few times a second.
    fn enforce_deadlines(&self, now: Time);

    /// Takes the steps of a job from now on, in turn with everything else.
    fn begin(&self, job: Job);
}
