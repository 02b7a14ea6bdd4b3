//! The errors of operations and of opening a client. Each message states what was attempted, with which values, and how
//! to continue if the caller can do anything.

use std::fmt;
use std::time::Duration;

use kv_protocol::ids::{ClusterId, SequenceNumber, ServerId};
use kv_protocol::{escape, limits};

use crate::doubt::Doubt;
use crate::operation::Kind;
use crate::verbs::UPDATE_VERBS;

/// The maximum number of bytes of a key in a message.
const SHOWN_KEY_BYTES: usize = 64;

/// The operation that failed and its key, shortened for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    verb: &'static str,
    key: Box<[u8]>,
    key_bytes: usize,
    /// The place of the update in its batch.
    place: Option<BatchPlace>,
}

/// The place of an update in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BatchPlace {
    /// The index, from 0.
    index: usize,
    /// The number of updates of the batch.
    count: usize,
}

impl Action {
    /// Creates the description of an operation: its verb, such as "get", and its key.
    pub fn new(verb: &'static str, key: &[u8]) -> Action {
        let shown = key[..key.len().min(SHOWN_KEY_BYTES)].into();
        Action { verb, key: shown, key_bytes: key.len(), place: None }
    }

    /// Creates the description of one update of a batch.
    pub(crate) fn in_batch(self, index: usize, count: usize) -> Action {
        Action { place: Some(BatchPlace { index, count }), ..self }
    }

    /// Returns the approximate size of this value in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Action>() + self.key.len()
    }

    /// Returns the index, from 0, of the update of a batch that failed. `None` for other operations, and if the batch
    /// failed as a whole.
    pub fn index_in_batch(&self) -> Option<usize> {
        self.place.map(|place| place.index)
    }

    fn is_write(&self) -> bool {
        let verbs = [Kind::Put.verb(), Kind::Delete.verb()];
        verbs.contains(&self.verb) || UPDATE_VERBS.contains(&self.verb)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.verb, escape::readable(&self.key))?;
        if self.key.len() < self.key_bytes {
            write!(f, "… ({} bytes)", self.key_bytes)?;
        }
        if let Some(BatchPlace { index, count }) = self.place {
            write!(f, " (update {} of {count})", index + 1)?;
        }
        Ok(())
    }
}

/// The error of an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key does not exist.
    #[error("{action}: the key does not exist")]
    NotFound {
        /// The operation and its key.
        action: Action,
    },
    /// The condition of the write does not hold; nothing was changed.
    #[error(
        "{action}: the condition does not hold ({}); nothing was changed: read the key and decide again",
        found(action, *version)
    )]
    Conflict {
        /// The operation and its key.
        action: Action,
        /// The current version of the entry; zero if the key does not exist, or if an earlier update of the batch has
        /// changed the entry.
        version: SequenceNumber,
        /// The current value of the entry, if the update requests the value.
        value: Option<Box<[u8]>>,
    },
    /// The value of the entry, or the amount to add, is no number of the kind that the update adds to; nothing was
    /// changed.
    #[error(
        "{action}: the value or the amount is not a decimal number of this kind; nothing was changed: read the value, or \
         set the key to a number"
    )]
    NotANumber {
        /// The operation and its key.
        action: Action,
    },
    /// The sum is outside the range of its kind of number; nothing was changed.
    #[error(
        "{action}: the sum is out of range; nothing was changed: an integer is from {} to {}, and other numbers are finite",
        i64::MIN,
        i64::MAX
    )]
    Overflow {
        /// The operation and its key.
        action: Action,
    },
    /// The keys of the request are not all of one shard; nothing was changed.
    #[error(
        "{action}: {reason}; nothing was changed: the keys of one request must be of one group and shard. In a cluster \
         created with --hash-tags, give the keys the same hash tag, as in {{user:1}}:name; otherwise send several \
         requests"
    )]
    CrossShard {
        /// The operation and its key.
        action: Action,
        /// Both keys with their places, or the server's text.
        reason: String,
    },
    /// The server runs an older version that does not support the operation; nothing was changed.
    #[error(
        "{action}: server {server} speaks protocol {version}, which does not support this operation; upgrade the servers"
    )]
    Unsupported {
        /// The operation and its key.
        action: Action,
        /// The server.
        server: ServerId,
        /// The version of the protocol that the server supports.
        version: u16,
    },
    /// A request other than a write was sent, and no response arrived before the deadline.
    #[error("{action}: no response within {waited:?} ({cause}); a longer deadline may help")]
    Timeout {
        /// The operation and its key.
        action: Action,
        /// The time allowed for the operation.
        waited: Duration,
        /// The last known obstacle, and what to check.
        cause: String,
    },
    /// The write was sent, and its outcome is unknown.
    #[error(
        "{action}: in doubt (the write may or may not have been done): {cause}{}",
        if doubt.is_some() { "; resolve it to settle the outcome" } else { "" }
    )]
    InDoubt {
        /// The operation and its key.
        action: Action,
        /// The reason why the outcome is unknown.
        cause: String,
        /// The write, for [`crate::Client::resolve`]. `None` if its outcome stays unknown: the servers have expired its
        /// session, so it will not be executed any more, or another process uses its client id, so it may even be
        /// executed later.
        doubt: Option<Doubt>,
    },
    /// The write in doubt was settled: it was not executed and never will be.
    #[error("{action}: the write was not done, and never will be")]
    NotDone {
        /// The operation and its key.
        action: Action,
    },
    /// The operation could not be served before the deadline; a write was not executed.
    #[error("{action}: not served within {waited:?}: {cause}")]
    Unavailable {
        /// The operation and its key.
        action: Action,
        /// The time allowed for the operation.
        waited: Duration,
        /// The last obstacle, and what to check.
        cause: String,
    },
    /// Every holder of the key's group is dead. Retries do not help until an operator restores the cluster.
    #[error(
        "{action}: no server holds this key's group any more ({cause}); restore the cluster from dumps"
    )]
    Lost {
        /// The operation and its key.
        action: Action,
        /// The group, and the source of the report.
        cause: String,
    },
    /// Another process uses this client's id, such as the clone of a virtual machine. The write was not executed. Later
    /// writes to the same shard use another id.
    #[error(
        "{action}: not done: another process uses this client's id and the number of this write; open a new client in \
         each copy of a process or machine"
    )]
    SharedIdentity {
        /// The operation and its key.
        action: Action,
    },
    /// A cluster that was not restored from the client's cluster has replaced it; nothing was changed.
    #[error(
        "{action}: cluster {known}, for which this client was opened, was replaced by cluster {got}, which was \
         not restored from it; open a new client"
    )]
    OtherCluster {
        /// The operation and its key.
        action: Action,
        /// The client's cluster.
        known: ClusterId,
        /// The cluster that responded.
        got: ClusterId,
    },
    /// The key, the value or the request is too long, or a batch writes or returns too much; nothing was changed.
    #[error("{action}: {reason}")]
    TooBig {
        /// The operation and its key.
        action: Action,
        /// The length and the limit, or the server's text.
        reason: String,
    },
    /// This process has no memory for the request or the response; a write was not executed.
    #[error("{action}: no memory for {bytes} bytes in this process")]
    NoMemory {
        /// The operation and its key.
        action: Action,
        /// The number of bytes needed.
        bytes: usize,
    },
    /// The server's memory limit is reached; nothing was changed.
    #[error("{action}: the server is out of space ({reason})")]
    OutOfSpace {
        /// The operation and its key.
        action: Action,
        /// The server's text, with advice.
        reason: String,
    },
    /// At the deadline, the last response was a rejection because of overload; a write was not executed.
    #[error(
        "{action}: the server was still too busy after {waited:?}: {cause}; send fewer requests at once, or retry \
         later"
    )]
    Busy {
        /// The operation and its key.
        action: Action,
        /// The time allowed for the operation.
        waited: Duration,
        /// The rejection, with the server's text.
        cause: String,
    },
    /// An argument of the operation is invalid; nothing was changed.
    #[error("{action}: {reason}")]
    Invalid {
        /// The operation and its key.
        action: Action,
        /// The argument and its fault, or the server's text.
        reason: String,
    },
    /// The program has interrupted the client ([`crate::Interrupt`]); a write was not executed.
    #[error("{action}: interrupted by the program{}", unexecuted(action))]
    Interrupted {
        /// The operation and its key.
        action: Action,
    },
    /// The program has cancelled the operation ([`crate::Client::cancel`]); a write was not executed.
    #[error("{action}: cancelled by the program{}", unexecuted(action))]
    Cancelled {
        /// The operation and its key.
        action: Action,
    },
    /// A call from within a callback of a client (its log or event function); nothing was changed.
    #[error(
        "a log or event function of a client called a client; make the call after the function has returned"
    )]
    WithinCallback,
    /// An earlier call on this shared client panicked, so the state of the client is unreliable.
    #[error("an earlier call on this client panicked; close the client and open another")]
    Defect,
    /// The server does not support this kind of request, or its response is invalid. Nothing was changed, unless the
    /// reason states that a write was done.
    #[error(
        "{action}: client and server are incompatible: {reason}; check that both have the same version"
    )]
    Protocol {
        /// The operation and its key.
        action: Action,
        /// The server's text, or a description of the invalid response.
        reason: String,
    },
}

/// Returns the end of the message about an operation that the program has ended. A write that may have been executed
/// ends in doubt instead. A read or a RESOLVE may have been sent.
fn unexecuted(action: &Action) -> &'static str {
    if action.is_write() { "; the write was not executed" } else { "" }
}

fn found(action: &Action, version: SequenceNumber) -> String {
    match version {
        SequenceNumber::ZERO if action.index_in_batch().is_some_and(|index| index > 0) => {
            "the key does not exist, or an earlier update of the batch has changed it".to_owned()
        }
        SequenceNumber::ZERO => "the key does not exist".to_owned(),
        version => format!("the entry has version {version}"),
    }
}

impl Error {
    pub(crate) fn key_too_long(action: Action) -> Error {
        let reason = format!(
            "the length of the key is {} bytes; at most {} are allowed",
            action.key_bytes,
            limits::MAX_KEY_BYTES
        );
        Error::TooBig { action, reason }
    }

    pub(crate) fn value_too_long(action: Action, bytes: usize) -> Error {
        let reason = format!(
            "the length of the value is {bytes} bytes; at most {} are allowed",
            limits::MAX_VALUE_BYTES
        );
        Error::TooBig { action, reason }
    }
}

/// The error of opening a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An endpoint is malformed.
    #[error(
        "the coordinator's address \"{name}\" is not of the form host:port or unix:DIR; write several as \
         host:port,host:port"
    )]
    Endpoint {
        /// The malformed endpoint, as given.
        name: String,
    },
    /// The port of an endpoint is not from 1 to 65,535.
    #[error("the port of the coordinator's address \"{name}\" is {what}")]
    Port {
        /// The endpoint, as given.
        name: String,
        /// The fault of the port, as the end of the sentence.
        what: &'static str,
    },
    /// A name cannot be resolved.
    #[error("looking up the coordinator's address \"{name}\": {reason}; check {}", suspect(reason))]
    Resolve {
        /// The endpoint, as given.
        name: String,
        /// The error of the system's resolver. It is part of the message and not the source of this error; otherwise a
        /// caller that prints all sources would print it twice.
        reason: std::io::Error,
    },
    /// The resolver returned no address for the names.
    #[error("looking up \"{endpoints}\": the resolver returned no address; check the host name")]
    NoAddress {
        /// All endpoints, as given.
        endpoints: String,
    },
    /// A directory has no socket of a server.
    #[error("looking for the sockets of servers in \"{dir}\": {reason}")]
    Sockets {
        /// The directory, as given.
        dir: String,
        /// The error of the system or the finding, with advice.
        reason: String,
    },
    /// A setting is out of bounds.
    #[error("opening a client with {what}")]
    Options {
        /// The setting, its value and its bounds.
        what: String,
    },
    /// The system provides no descriptor or no random number, or cannot add a descriptor to an epoll set.
    #[error("{what} for a client: {reason}; check the limit of open files (ulimit -n)")]
    System {
        /// The step that failed, such as the creation of a descriptor.
        what: &'static str,
        /// The error of the system.
        reason: std::io::Error,
    },
}

/// Returns the advice for a name that could not be resolved.
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
    fn a_look_up_without_descriptors_blames_the_limit_and_not_the_name() {
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
    fn only_a_write_that_the_program_has_ended_is_reported_as_not_executed() {
        for (verb, is_write) in [
            (Kind::Put.verb(), true),
            (Kind::Delete.verb(), true),
            ("add to", true),
            ("update", true),
            (Kind::Get.verb(), false),
            (Kind::Resolve.verb(), false),
        ] {
            let action = || Action::new(verb, b"k");
            for error in
                [Error::Interrupted { action: action() }, Error::Cancelled { action: action() }]
            {
                let text = error.to_string();
                assert_eq!(text.contains("not executed"), is_write, "{text}");
            }
        }
    }

    #[test]
    fn an_update_of_a_batch_is_shown_with_its_place() {
        let action = Action::new("add to", b"k").in_batch(1, 3);
        assert_eq!(action.index_in_batch(), Some(1));
        let text = Error::NotANumber { action: action.clone() }.to_string();
        assert!(text.starts_with("add to \"k\" (update 2 of 3): the value"), "{text}");
        let (version, value) = (SequenceNumber::ZERO, None);
        let text = Error::Conflict { action, version, value }.to_string();
        assert!(text.contains("an earlier update of the batch has changed it"), "{text}");
    }

    #[test]
    fn the_advice_of_a_full_server_is_shown_once() {
        let reason = "the memory limit is reached; delete entries or raise --memory-limit";
        let action = Action::new("put", b"k");
        let text = Error::OutOfSpace { action, reason: reason.to_owned() }.to_string();
        assert_eq!(text.matches("--memory-limit").count(), 1, "{text}");
        assert_eq!(text.matches("delete").count(), 1, "{text}");
    }

    #[test]
    fn the_error_of_the_system_is_printed_once_with_all_sources() {
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
