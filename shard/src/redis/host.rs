//! What commands of Redis clients know of this shard's server.

use kv_protocol::ids::{ClusterId, Time, WallTime};
use kv_protocol::limits::MAX_CLIENT_CONNECTIONS;
use kv_protocol::placement::Placement;
use kv_redis::client::{Facts, Load, Server};

use crate::service::Service;

/// The server of a command that is performed at `now`.
pub(super) struct Host<'a> {
    pub(super) service: &'a Service,
    pub(super) now: Time,
}

impl Server for Host<'_> {
    fn placement(&self) -> Placement {
        self.service.identity.placement
    }

    fn wall(&self) -> WallTime {
        self.service.wall(self.now)
    }

    fn cluster(&self) -> ClusterId {
        self.service.identity.cluster
    }

    fn random(&self) -> u64 {
        self.service.gateway.random(self.service.hash_secret)
    }

    fn load(&self) -> Load {
        let counters = self.service.counters();
        Load {
            connections: self.service.outputs.clients(),
            accepted: self.service.outputs.clients_so_far(),
            memory: self.service.replicas().map(|replica| replica.reserved_bytes()).sum(),
            commands: counters.requests,
            expired: counters.removals.expired,
            evicted: counters.removals.evicted,
            rejected: counters.refused,
        }
    }

    fn facts(&self) -> Facts {
        let memory = self.service.outputs.memory();
        Facts {
            memory_limit: memory.memory_limit().unwrap_or(0),
            eviction: memory.eviction(),
            connections: MAX_CLIENT_CONNECTIONS,
            port: self.service.clients_port().unwrap_or(0),
            started: self.service.started(),
            multi: self.service.redis_multi,
        }
    }
}
