//! A small program that is built with the feature `mutations` but disables no rule. A test finds the marker of
//! mutations in it, which shows that the same search would find the marker in other programs too.

use kv_core::arena::HeapChunks;
use kv_core::hash::HashSecret;
use kv_core::replica::{ConnectionId, Replica, ReplicaConfig, Responses};
use kv_protocol::client_message::{Operation, Request, Response};
use kv_protocol::limits::SESSION_IDLE;
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::{
    ClientId, GroupId, Incarnation, Member, RequestId, ServerId, ShardId, Time, ViewVersion,
};

/// A sink that ignores all responses.
struct Discard;

impl Responses for Discard {
    fn respond(&mut self, _: ConnectionId, _: &Response<'_>) {}
}

fn main() {
    let config = ReplicaConfig {
        me: Member { server: ServerId(0), incarnation: Incarnation(1) },
        group: GroupId(0),
        shard: ShardId(0),
        placement: Placement::new(1, 1),
        memory_limit: None,
        session_idle: SESSION_IDLE,
        hash_secret: HashSecret::new(1),
        failure_timeout: kv_protocol::FailureTimeout::DEFAULT,
    };
    let mut replica = Replica::new(config, Box::new(HeapChunks::default()));
    let key = b"key";
    let request = Request {
        id: RequestId(1),
        view: ViewVersion(0),
        digest: Digest::of(key),
        key,
        operation: Operation::Get,
    };
    let now = Time::from_nanos(1);
    let hash = replica.hash_of(request.digest, request.key);
    replica.on_request(now, (ConnectionId(1), ClientId(1)), &request, hash, &mut Discard);
    replica.on_timeout(now, &mut Discard);
}
