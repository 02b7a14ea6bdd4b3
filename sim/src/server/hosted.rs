//! A replica, and the driver's state of its stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kv_core::arena::SwitchedChunks;
use kv_core::hash::HashSecret;
use kv_core::replica::{Replica, ReplicaConfig};
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::{GroupId, Member, ViewVersion};
use kv_protocol::peer_message::PeerHello;

use super::Identity;
use super::dial::Dial;
use crate::network::ConnectionNumber;

/// Enough memory for everything that a run writes.
pub const MEMORY: u64 = 64 << 20;

/// The limits of a replica.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The bytes that a table may occupy before writes are rejected.
    pub memory: u64,
    /// The idle time after which a session expires.
    pub session_idle: Duration,
    /// True if values that are read stay pinned for a while.
    pub has_slow_readers: bool,
}

/// Small chunks, because a run creates many tables.
const CHUNK_BYTES: usize = 64 << 10;

impl Bounds {
    /// Returns whether writes may be rejected for lack of memory.
    pub fn has_little_memory(&self) -> bool {
        self.memory < MEMORY
    }
}

/// A replica and its stream.
#[derive(Debug)]
pub struct Hosted {
    /// The replica that ships.
    pub replica: Replica,
    pub(super) stream: Option<ConnectionNumber>,
    pub(super) dialled: Option<PeerHello>,
    pub(super) partner: Option<(ViewVersion, SocketAddr)>,
    pub(super) dial: Option<Dial>,
    pub(super) shown: Option<(ReplicaState, ViewVersion, bool)>,
    noted: Option<(ReplicaState, ViewVersion)>,
}

impl Hosted {
    /// Creates an empty replica without a stream.
    pub(super) fn new(
        me: Member,
        group: GroupId,
        identity: Identity,
        seed: u64,
        is_exhausted: &Arc<AtomicBool>,
    ) -> Hosted {
        let chunks = SwitchedChunks::new(CHUNK_BYTES, Arc::clone(is_exhausted));
        let config = ReplicaConfig {
            me,
            group,
            shard: identity.shard,
            placement: identity.placement,
            memory_limit: Some(identity.bounds.memory),
            session_idle: identity.bounds.session_idle,
            hash_secret: HashSecret::new(seed),
            failure_timeout: kv_protocol::FailureTimeout::DEFAULT,
        };
        Hosted {
            replica: Replica::new(config, Box::new(chunks)),
            stream: None,
            dialled: None,
            partner: None,
            dial: None,
            shown: None,
            noted: None,
        }
    }

    /// Returns its role, if that has changed since the last call.
    pub fn role_if_new(&mut self) -> Option<(ReplicaState, ViewVersion)> {
        let role = (self.replica.state(), self.replica.view_version());
        (self.noted.replace(role) != Some(role)).then_some(role)
    }
}
