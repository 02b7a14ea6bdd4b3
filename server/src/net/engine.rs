//! The engines, one of which moves the bytes of a process.

use std::net::TcpListener;
use std::rc::Rc;

use kv_protocol::ids::Time;

use super::hub::Hub;
use super::listener::Port;
use super::{tcpstream, uring};
use crate::message::HandedOver;

/// Which engine; all executors of a process have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// A ring of its own, with what Linux 6.1 and later offer.
    Uring,
    /// glommio's sockets.
    TcpStream,
}

impl EngineKind {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EngineKind::Uring => "uring",
            EngineKind::TcpStream => "tcpstream",
        }
    }
}

/// The engine of one executor.
#[derive(Clone)]
pub(crate) enum Engine {
    Uring(Rc<uring::Engine>),
    TcpStream(Rc<tcpstream::Engine>),
}

impl Engine {
    /// Starts its tasks on this executor, and accepts from the listeners.
    pub(crate) fn start(
        kind: EngineKind,
        hub: Rc<Hub>,
        listeners: Vec<(TcpListener, Port)>,
    ) -> Engine {
        match kind {
            EngineKind::Uring => Engine::Uring(uring::Engine::start(hub, listeners)),
            EngineKind::TcpStream => Engine::TcpStream(tcpstream::Engine::start(hub, listeners)),
        }
    }

    /// What it stands around.
    pub(crate) fn hub(&self) -> &Rc<Hub> {
        match self {
            Engine::Uring(engine) => &engine.hub,
            Engine::TcpStream(engine) => &engine.hub,
        }
    }

    /// Takes in a socket that another executor accepted.
    pub(crate) fn adopt(&self, handed: HandedOver) {
        match self {
            Engine::Uring(engine) => engine.adopt(handed),
            Engine::TcpStream(engine) => engine.adopt(handed),
        }
    }

    /// Dials the streams that are due.
    pub(crate) fn dial_due(&self, now: Time) {
        match self {
            Engine::Uring(engine) => engine.dial_due(now),
            Engine::TcpStream(engine) => engine.dial_due(now),
        }
    }

    /// Closes the connections that missed a deadline; to be called a few times a second.
    pub(crate) fn enforce_deadlines(&self, now: Time) {
        match self {
            Engine::Uring(engine) => engine.enforce_deadlines(now),
            Engine::TcpStream(engine) => engine.enforce_deadlines(now),
        }
    }
}
