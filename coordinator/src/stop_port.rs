//! The requests of `coord stop`, `detach`, `replace`, `set` and `flush`, over a socket in the directory of the cluster. The
//! coordinator's end is `driver/requests.rs`.
//!
//! ```text
//!   coord stop --dir DIR  ->  DIR/coord.sock (0600; peers of another user are rejected)
//!      {"dump_dir":"/mnt/other","force":false}\n   ->  main loop: begins the stop, or changes one in progress
//!      <-  {"say":"stop, 2 of 3: ..."}\n ...  {"ended":true,"say":"stopped"}\n
//!
//!   coord detach --dir DIR  ->  {"detach":null}\n  <-  {"ended":true,"say":"..."}\n
//!   coord replace 1 HOST, coord set --memory-limit SIZE --eviction POLICY: the same, without the main loop
//!
//!   coord flush --yes --dir DIR  ->  {"flush":{"yes":true,"timeout_ms":60000}}\n
//!      <-  {"say":"...","flush":{...}}\n on every change  ...  {"ended":true,"say":"...","flush":{...}}\n
//! ```
//!
//! Only the user that runs the coordinator, and root, are accepted. The mode of the socket and the credentials of the
//! peer enforce this; a network port would need a secret.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::limits::MAX_DUMP_DIRECTORY_BYTES;
use kv_protocol::{Eviction, ServerId};
use serde::{Deserialize, Serialize};

/// The name of the socket.
pub(crate) const NAME: &str = "coord.sock";
/// The maximum length of a request: a path in which every byte may be escaped, and a few keywords.
pub(crate) const MAX_REQUEST_BYTES: u64 = MAX_DUMP_DIRECTORY_BYTES as u64 * 6 + 256;

/// The request of `coord stop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The directory for dumps on every server's host.
    pub(crate) dump_dir: Option<String>,
    /// True to abandon tables that cannot be dumped.
    pub(crate) force: bool,
}

/// A request on the socket. A coordinator of a version without `coord detach` rejects a detach request, because it does
/// not have the fields of a request to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Call {
    /// `coord stop`.
    Stop(Request),
    /// `coord detach`.
    Detach { detach: () },
    /// `coord replace`.
    Replace(Replacement),
    /// `coord set`.
    Set { set: Setting },
    /// `coord flush`.
    Flush { flush: FlushRequest },
}

/// The request of `coord replace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replacement {
    /// The place of the ring.
    pub(crate) server: u16,
    /// The new host, as in a cluster file; `None` for the current host with its ports.
    pub(crate) host: Option<String>,
    /// The ports for clients, servers and the coordinator; 0 selects any free port.
    pub(crate) ports: [u16; 3],
}

impl Replacement {
    /// Returns the line of the cluster file after the replacement. `now` is its current line.
    ///
    /// # Errors
    /// The host is invalid; the message has the reason.
    pub(crate) fn line(&self, now: &ServerLine) -> Result<ServerLine, String> {
        let Some(host) = &self.host else { return Ok(now.clone()) };
        let host = Host::parse(host)?;
        let [clients_port, servers_port, coord_port] = self.ports;
        Ok(ServerLine { id: ServerId(self.server), host, clients_port, servers_port, coord_port })
    }
}

/// The request of `coord set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setting {
    /// The memory limit of each server, as written on the command line; `None` keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory_limit: Option<String>,
    /// The policy of eviction; `None` keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eviction: Option<Eviction>,
}

/// The request of `coord flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlushRequest {
    /// True if the operator has confirmed the removal of all keys.
    pub(crate) yes: bool,
    /// The time without progress after which the flush fails, in milliseconds.
    pub(crate) timeout_ms: u64,
}

/// The progress of a flush.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flushed {
    /// The number of keys at the beginning, by the last heartbeats.
    pub(crate) keys: u64,
    /// The number of servers.
    pub(crate) servers: usize,
    /// The number of keys that were removed.
    pub(crate) removed: u64,
    /// False if more keys may have been removed, because a server failed meanwhile.
    pub(crate) is_exact: bool,
    /// The number of shards of all groups.
    pub(crate) shards: usize,
    /// The groups that are not done, each with its shards that are not done.
    pub(crate) left: Vec<(u16, Vec<u16>)>,
}

impl Flushed {
    /// Returns the number of shards that are done.
    pub(crate) fn done(&self) -> usize {
        self.shards
            - self.left.iter().map(|(_, shards)| shards.len()).sum::<usize>().min(self.shards)
    }
}

/// A line sent to a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The text for the operator.
    pub(crate) say: String,
    /// In the last line: true if the request succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<bool>,
    /// The progress of a flush.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flush: Option<Flushed>,
}

impl Line {
    /// Returns a line that is not the last one.
    pub(crate) fn saying(say: String) -> Line {
        Line { say, ended: None, flush: None }
    }

    /// Returns the last line.
    pub(crate) fn last(say: String, is_well: bool) -> Line {
        Line { say, ended: Some(is_well), flush: None }
    }
}

/// Returns the path for binding or connecting to a socket in a directory. The path of a socket has at most 108 bytes
/// (unix(7)), but the path of the directory may be longer. The returned path is valid while `directory` is open.
pub(crate) fn path_in(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_directory_fits_into_a_request() {
        let longest = "\u{1}".repeat(MAX_DUMP_DIRECTORY_BYTES);
        let request = Request { dump_dir: Some(longest), force: true };
        let call = Call::Stop(request);
        let text = serde_json::to_string(&call).unwrap();
        assert!(text.len() as u64 <= MAX_REQUEST_BYTES, "{}", text.len());
        assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), call);
    }

    #[test]
    fn a_detach_request_is_never_mistaken_for_a_stop_request() {
        let call = Call::Detach { detach: () };
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), call);
        serde_json::from_str::<Request>(&text).unwrap_err();
        for neither in ["{}", r#"{"force":1}"#, r#"{"dump_dir":"/x"}"#, "null"] {
            serde_json::from_str::<Call>(neither).unwrap_err();
        }
    }
}
