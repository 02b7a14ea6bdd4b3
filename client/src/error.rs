//! How operations fail, in words that say what was being done, with which values, and what to check.

use std::fmt;
use std::time::Duration;

use kv_protocol::ids::{ClusterId, SequenceNumber};
use kv_protocol::{escape, limits};

use crate::doubt::Doubt;

/// Most bytes of a key that a message shows.
const SHOWN_KEY_BYTES: usize = 64;

/// What was being done when something failed: the operation and its key, shortened to what a message
/// can show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    verb: &'static str,
    key: Box<[u8]>,
    key_bytes: usize,
}

impl Action {
    /// What is done to a key, as "get".
    pub fn new(verb: &'static str, key: &[u8]) -> Action {
        Action { verb, key: key[..key.len().min(SHOWN_KEY_BYTES)].into(), key_bytes: key.len() }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.verb, escape::readable(&self.key))?;
        if self.key.len() < self.key_bytes {
            write!(f, "… ({} bytes)", self.key_bytes)?;
        }
        Ok(())
    }
}

/// How an operation fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key does not exist.
    #[error("{action}: the key does not exist")]
    NotFound {
        /// What was being done.
        action: Action,
    },
    /// The condition of a write does not hold; nothing was changed.
    #[error("{action}: the condition does not hold ({}); nothing was changed: read the key and decide again", found(*version))]
    Conflict {
        /// What was being done.
        action: Action,
        /// The version that the entry has; zero if the key does not exist.
        version: SequenceNumber,
    },
    /// A read was asked, and no answer came before the deadline.
    #[error("{action}: no answer within {waited:?} ({cause}); a longer deadline may help")]
    Timeout {
        /// What was being done.
        action: Action,
        /// The deadline.
        waited: Duration,
        /// What was last heard, and where to look.
        cause: String,
    },
    /// The write was sent, and it is not known whether it was done.
    #[error(
        "{action}: in doubt, the write may have been done or not: {cause}{}",
        if doubt.is_some() { "; resolving it finds out" } else { "" }
    )]
    InDoubt {
        /// What was being done.
        action: Action,
        /// Why it is not known.
        cause: String,
        /// The write, for [`crate::Client::resolve`]; `None` if the servers have forgotten it. Then it will not
        /// be done any more, but nobody knows whether it was.
        doubt: Option<Doubt>,
    },
    /// A write in doubt was settled: it was not done, and never will be.
    #[error("{action}: the write was not done, and never will be")]
    NotDone {
        /// What was being done.
        action: Action,
    },
    /// The operation could not be served before the deadline; a write was not done.
    #[error("{action}: not served within {waited:?}: {cause}")]
    Unavailable {
        /// What was being done.
        action: Action,
        /// The deadline.
        waited: Duration,
        /// What was last in the way, and where to look.
        cause: String,
    },
    /// Every holder of the key's group is dead; trying again does not help until an operator acts.
    #[error(
        "{action}: no server holds this key's group any more ({cause}); it has to be restored from dumps"
    )]
    Lost {
        /// What was being done.
        action: Action,
        /// Which group, and who says so.
        cause: String,
    },
    /// Another process uses this client's id, as the clone of a virtual machine does. The write was not done. The next
    /// write uses another id.
    #[error(
        "{action}: another process writes under this client's id, and has used the number of this write: it was not done; open a new client in each copy of a process or machine"
    )]
    SharedIdentity {
        /// The operation.
        action: Action,
    },
    /// Another cluster, not restored from the client's cluster, has taken its place; nothing was done.
    #[error(
        "{action}: cluster {known}, for which this client was opened, is not there any more; cluster {got} is, and was not restored from it: open a new client"
    )]
    OtherCluster {
        /// The operation.
        action: Action,
        /// The client's cluster.
        known: ClusterId,
        /// The cluster that answers.
        got: ClusterId,
    },
    /// Key or value is longer than allowed; nothing was changed.
    #[error("{action}: {reason}")]
    TooBig {
        /// What was being done.
        action: Action,
        /// What is too long, and what is allowed.
        reason: String,
    },
    /// This process has no memory for the request or its answer; a write was not done.
    #[error("{action}: no memory for {bytes} bytes in this process")]
    NoMemory {
        /// What was being done.
        action: Action,
        /// How many were needed.
        bytes: usize,
    },
    /// The server's memory limit is reached; nothing was changed.
    #[error("{action}: the server is out of space ({reason})")]
    OutOfSpace {
        /// What was being done.
        action: Action,
        /// What the server says, with what can be done about it.
        reason: String,
    },
    /// The server refused for too much load until the deadline; a write was not done.
    #[error(
        "{action}: the server was too busy for {waited:?}: {cause}; send less at once, or later"
    )]
    Busy {
        /// What was being done.
        action: Action,
        /// The deadline.
        waited: Duration,
        /// What the server said.
        cause: String,
    },
    /// The call contradicts itself; nothing was sent or nothing was done.
    #[error("{action}: {reason}")]
    Invalid {
        /// What was being done.
        action: Action,
        /// What is wrong.
        reason: String,
    },
    /// The program has interrupted the client ([`crate::Interrupt`]); a write was not done.
    #[error("{action}: interrupted by the program; it was not done")]
    Interrupted {
        /// What was being done.
        action: Action,
    },
    /// The program has cancelled the operation ([`crate::Client::cancel`]); a write was not done.
    #[error("{action}: cancelled by the program; it was not done")]
    Cancelled {
        /// What was being done.
        action: Action,
    },
    /// A call from within a function that a client has called (its log, or the one for its events); nothing was done.
    #[error(
        "a function for the log or the events of a client calls a client; make the call when the function has returned"
    )]
    WithinCallback,
    /// An earlier call on a shared client panicked, so nobody knows its state.
    #[error("an earlier call on this client met a defect; close it and open another")]
    Defect,
    /// The server does not serve this kind of request; nothing was done.
    #[error(
        "{action}: client and server do not understand each other: {reason}; are both of the same version?"
    )]
    Protocol {
        /// What was being done.
        action: Action,
        /// What the server says.
        reason: String,
    },
}

fn found(version: SequenceNumber) -> String {
    match version {
        SequenceNumber::ZERO => "the key does not exist".to_owned(),
        version => format!("the entry has version {version}"),
    }
}

impl Error {
    pub(crate) fn key_too_long(action: Action) -> Error {
        let reason = format!(
            "a key of {} bytes; it may have up to {}",
            action.key_bytes,
            limits::MAX_KEY_BYTES
        );
        Error::TooBig { action, reason }
    }

    pub(crate) fn value_too_long(action: Action, bytes: usize) -> Error {
        let reason =
            format!("a value of {bytes} bytes; it may have up to {}", limits::MAX_VALUE_BYTES);
        Error::TooBig { action, reason }
    }
}

/// How opening a client fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An endpoint is not written as one.
    #[error(
        "the coordinator's address \"{name}\" is not host:port (several are separated by commas)"
    )]
    Endpoint {
        /// As given.
        name: String,
    },
    /// The port of an endpoint is a number that no port can be.
    #[error("the port of the coordinator's address \"{name}\" is {what}")]
    Port {
        /// The endpoint, as given.
        name: String,
        /// What is wrong with the number.
        what: &'static str,
    },
    /// A name cannot be resolved.
    #[error("looking up the coordinator's address \"{name}\": {reason}; check {}", suspect(reason))]
    Resolve {
        /// As given.
        name: String,
        /// What the system's resolver says. Not the error's source: who prints those as well would
        /// print it twice.
        reason: std::io::Error,
    },
    /// The resolver knows the names, but no address.
    #[error("\"{endpoints}\" has no address; host:port is needed")]
    NoAddress {
        /// As given.
        endpoints: String,
    },
    /// A setting is out of its bounds.
    #[error("opening a client with {what}")]
    Options {
        /// Which, and its bounds.
        what: String,
    },
    /// The system gives no epoll descriptor or no random number.
    #[error("{what} for a client: {reason}; check the limit of open files (ulimit -n)")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system says.
        reason: std::io::Error,
    },
}

/// What to look at when a name was not resolved.
fn suspect(reason: &std::io::Error) -> &'static str {
    let out_of_files = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    match rustix::io::Errno::from_io_error(reason) {
        Some(errno) if out_of_files.contains(&errno) => "the limit of open files (ulimit -n)",
        _ => "the host name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_looked_up_for_want_of_descriptors_is_not_to_blame() {
        let resolve = |errno: rustix::io::Errno| {
            let name = "example:7000".to_owned();
            OpenError::Resolve { name, reason: errno.into() }.to_string()
        };
        let text = resolve(rustix::io::Errno::MFILE);
        assert!(text.ends_with("check the limit of open files (ulimit -n)"), "{text}");
        let text = resolve(rustix::io::Errno::IO);
        assert!(text.ends_with("check the host name"), "{text}");
    }

    #[test]
    fn a_long_binary_key_is_shown_escaped_and_shortened() {
        let action = Action::new("put", &[b"\x1b[2Jabc".as_slice(), &[b'k'; 100]].concat());
        let shown = action.to_string();
        assert!(shown.starts_with("put \"\\x1b[2Jabckkk"), "{shown}");
        assert!(shown.ends_with("k\"… (107 bytes)"), "{shown}");
    }

    #[test]
    fn a_full_server_gives_its_advice_once() {
        let reason = "the memory limit is reached; delete entries or raise --memory-limit";
        let action = Action::new("put", b"k");
        let text = Error::OutOfSpace { action, reason: reason.to_owned() }.to_string();
        assert_eq!(text.matches("--memory-limit").count(), 1, "{text}");
        assert_eq!(text.matches("delete").count(), 1, "{text}");
    }

    #[test]
    fn what_the_system_says_is_printed_once_with_all_sources() {
        let reason = || std::io::Error::other("no such thing");
        for error in [
            OpenError::Resolve { name: "a:1".to_owned(), reason: reason() },
            OpenError::System { what: "an epoll descriptor", reason: reason() },
        ] {
            let printed = format!("{:#}", anyhow::Error::from(error));
            assert_eq!(printed.matches("no such thing").count(), 1, "{printed}");
        }
    }
}
