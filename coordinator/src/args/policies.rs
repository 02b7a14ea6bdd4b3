//! Settings with a few named values, with their names on the command line and in the stored state.

use kv_core::cluster::DoubleFault;
use serde::{Deserialize, Serialize};

/// The policy for a second fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnDoubleFault {
    /// Every remaining server dumps its tables and exits.
    #[default]
    Shutdown,
    /// Every group continues on its own; groups without a holder are LOST.
    Isolate,
}

impl From<OnDoubleFault> for DoubleFault {
    fn from(policy: OnDoubleFault) -> DoubleFault {
        match policy {
            OnDoubleFault::Shutdown => DoubleFault::Shutdown,
            OnDoubleFault::Isolate => DoubleFault::Isolate,
        }
    }
}

impl std::fmt::Display for OnDoubleFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OnDoubleFault::Shutdown => "shutdown",
            OnDoubleFault::Isolate => "isolate",
        })
    }
}

/// The network engine of the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetEngine {
    /// uring where it works, else epoll.
    #[default]
    Auto,
    /// io_uring; the server does not start without it.
    Uring,
    /// epoll, without any io_uring. Earlier versions stored `tcpstream`, the engine that epoll has replaced.
    #[serde(alias = "tcpstream")]
    Epoll,
}

impl std::fmt::Display for NetEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NetEngine::Auto => "auto",
            NetEngine::Uring => "uring",
            NetEngine::Epoll => "epoll",
        })
    }
}
