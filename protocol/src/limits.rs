//! All limits in one place: the bounds that the programs enforce, and the times after which they close a connection.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The version in the header of every frame.
pub const FRAME_VERSION: u8 = 1;
/// The version of the protocol between clients and servers. Both sides name theirs in the handshake, and the lower one
/// applies to the connection.
pub const PROTOCOL_VERSION: u16 = 2;
/// The lowest version of that protocol that is still supported. A client of this version does not name it.
pub const PROTOCOL_VERSION_MIN: u16 = 1;

// --- Keys and values -----------------------------------------------------------------------------

/// The maximum length of a key, in bytes. A key has at least one byte.
pub const MAX_KEY_BYTES: usize = 65_535;
/// The maximum length of a value, in bytes. A value may be empty.
pub const MAX_VALUE_BYTES: usize = 16 << 20;

/// The maximum number of updates in one request.
pub const MAX_UPDATES: usize = 1_024;
/// The maximum number of additions of floating-point numbers in one request. One takes up to 0.3 ms, if the texts have
/// thousands of digits.
pub const MAX_FLOAT_UPDATES: u16 = 32;
/// The maximum number of bytes of the changes that one write makes, as they travel between servers: an entry of maximum
/// size that moves to another key, and the heads of as many changes as a request may have.
pub const MAX_CHANGES_BYTES: usize = MAX_VALUE_BYTES + 4 * MAX_KEY_BYTES;
/// The maximum number of bytes of a response that is kept for retries, besides its record.
pub const MAX_RETAINED_RESPONSE: usize = MAX_VALUE_BYTES + 16;
/// The maximum number of bytes of values in the responses of one (group, shard) that are kept for retries. A write
/// whose value does not fit is rejected with BUSY. Before that, old sessions expire (`core/src/replica/forgetting.rs`).
/// Values of up to 30 bytes do not count.
pub const MAX_RETAINED_BYTES: usize = 64 << 20;

// --- Frames --------------------------------------------------------------------------------------

/// The maximum number of bytes of a request or response besides its key and value.
pub const MAX_FIXED_BYTES: usize = 160;
/// The maximum body of a frame on a client's connection to a server or the coordinator.
pub const MAX_CLIENT_BODY: usize = MAX_FIXED_BYTES + MAX_KEY_BYTES + MAX_VALUE_BYTES;
/// The maximum body of a response: the value, or the map or status of the largest cluster.
pub const MAX_RESPONSE_BODY: usize = MAX_FIXED_BYTES + MAX_VALUE_BYTES;
/// The maximum body of a hello, on any port. An unauthenticated peer may send nothing longer.
pub const MAX_HELLO_BODY: usize = 512;
/// The maximum number of bytes of a value in one peer message; longer values travel in fragments.
pub const FRAGMENT_BYTES: usize = 64 << 10;
/// The size at which a batch is complete and is sent. The last message may begin just below this size and extend
/// beyond it.
pub const BATCH_TARGET_BYTES: usize = 128 << 10;
/// The maximum number of messages in one batch between servers.
pub const MAX_BATCH_MESSAGES: usize = 4_096;
/// The maximum body of a frame between servers: a batch just below its target, and one more message with the longest
/// key and two full fragments, one of the value and one of the response.
pub const MAX_PEER_BODY: usize = BATCH_TARGET_BYTES + MAX_KEY_BYTES + 2 * FRAGMENT_BYTES + 512;
/// The maximum body of a frame between coordinator and server.
pub const MAX_CONTROL_BODY: usize = 256 << 10;

/// The maximum length of the path of a dump directory: PATH_MAX of Linux.
pub const MAX_DUMP_DIRECTORY_BYTES: usize = 4_096;

// --- The cluster ---------------------------------------------------------------------------------

/// The minimum number of servers: each has a predecessor and a successor in the ring, which must differ.
pub const MIN_SERVERS: u16 = 3;
/// The maximum number of servers.
pub const MAX_SERVERS: u16 = 1_024;
/// The maximum number of ancestors in the map: the clusters from which this one was restored, the latest first.
pub const MAX_ANCESTORS: usize = 16;
/// The maximum number of shards of a group.
pub const MAX_SHARDS: u16 = 256;
/// The maximum by which the version of a view offered by a peer may exceed the installed version. No group makes this
/// many views. Without the limit, a forged version near the end of the range would exclude every genuine view.
pub const MAX_VIEW_STEP: u64 = 1 << 32;
/// The maximum by which a coordinator's epoch may exceed the highest one that a server has accepted. No server misses
/// this many consecutive starts of a coordinator. Without the limit, a forged epoch near the end of the range would
/// exclude every genuine coordinator.
pub const MAX_EPOCH_STEP: u64 = 1 << 20;
/// The maximum number of replicas (one shard of a group each) in one heartbeat: four times the maximum that a server
/// hosts.
pub const MAX_HEARTBEAT_REPLICAS: usize = 2_048;

// --- Connections ---------------------------------------------------------------------------------

/// The time within which a connection must send its hello. Otherwise it is closed.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// The time within which the rest of a frame must arrive after its first byte. Otherwise the connection is closed.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(10);
/// The limit on unsent response bytes of a connection. At the limit, the next request of the connection waits until
/// some of these bytes are sent. The last response may begin just below the limit and exceed it by almost its whole
/// length.
pub const MAX_OUTPUT_BYTES: usize = 256 << 10;
/// The minimum limit on the memory of a server's client connections. The longest request fits in half of this memory.
pub const CONNECTION_MEMORY_MIN: u64 = 40 << 20;
/// The time after which a connection is closed if it has unsent bytes and none of them could be
/// sent.
pub const STALL_DEADLINE: Duration = Duration::from_secs(10);
/// The number of consecutive malformed requests after which a connection is closed.
pub const MAX_ERRORS_IN_A_ROW: u32 = 64;
/// The maximum number of client connections of one server process; further ones are rejected with BUSY. Connections
/// inside the cluster are not counted.
pub const MAX_CLIENT_CONNECTIONS: usize = 16_384;
/// The maximum number of peer connections that one server process accepts.
pub const MAX_PEER_CONNECTIONS: usize = 4_096;
/// The maximum number of client connections that the coordinator serves at once.
pub const MAX_COORDINATOR_CONNECTIONS: usize = 4_096;

// --- Writes in flight ----------------------------------------------------------------------------

/// The maximum number of writes in flight of one session (client, group, shard). As many completion records are kept
/// for the session.
pub const SESSION_WINDOW: u64 = 64;
/// The time without a write after which a session expires. Time in which its shard is not scheduled is not counted.
pub const SESSION_IDLE: Duration = Duration::from_secs(600);
/// The maximum number of sessions of one (group, shard). Before another one begins, the [`SESSIONS_FORGOTTEN_AT_ONCE`]
/// sessions with the oldest last writes expire.
pub const MAX_SESSIONS: usize = 65_536;
/// The number of sessions that expire at once when [`MAX_SESSIONS`] is reached.
pub const SESSIONS_FORGOTTEN_AT_ONCE: usize = MAX_SESSIONS / 16;
/// The maximum number of writes of one (group, shard) that wait for the other replica; further ones are rejected with
/// BUSY.
pub const MAX_PENDING_WRITES: usize = 16_384;
/// The maximum number of changed keys of these writes.
pub const MAX_PENDING_CHANGES: usize = 2 * MAX_PENDING_WRITES;
/// The maximum number of bytes of keys and values of one (group, shard) that wait for the other replica.
pub const MAX_PENDING_BYTES: usize = 64 << 20;

/// The maximum number of messages of a copy in flight to a candidate. This is enough to keep the candidate busy, and
/// few enough that a live write never waits long behind them.
pub const COPY_WINDOW_MESSAGES: u64 = 1_024;
/// The maximum number of bytes of keys and values of a copy in flight to a candidate.
pub const COPY_WINDOW_BYTES: usize = 128 << 10;

// --- Time ----------------------------------------------------------------------------------------

/// The interval of a server's heartbeats to the coordinator.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// The lease of a primary (consistency.md §4) at the default failure timeout. No lease is shorter. Processes of a
/// cluster take this and the next four times from their [`FailureTimeout`](crate::failure_timeout::FailureTimeout).
pub const LEASE: Duration = Duration::from_millis(500);
/// The grace, which begins at the sender of an ack; at least 1.25 leases.
pub const GRACE: Duration = Duration::from_millis(625);
/// The interval of beacons of an idle primary.
pub const BEACON_INTERVAL: Duration = Duration::from_millis(100);
/// The maximum age at which a vote counts the last message from the other member as recent, for every shard. A
/// member votes when the coordinator suspects the other one (consistency.md §5).
pub const HEARD_WITHIN: Duration = Duration::from_millis(250);
/// The time without an ACK after which a candidate has failed. It applies if there are messages to acknowledge and the
/// candidate was not reported as caught up.
pub const CANDIDATE_TIMEOUT: Duration = Duration::from_millis(250);
/// The deadline of a client operation if the caller sets none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// The maximum deadline that a caller may set; far below [`SESSION_IDLE`].
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// The permitted range of `--redis-deadline`, in seconds.
pub const REDIS_DEADLINE_SECONDS: RangeInclusive<f64> = 0.1..=60.0;
/// The valid times for which a server may run without a coordinator, in seconds. The value 0, which is outside this
/// range, means no limit.
pub const ORPHAN_SECONDS: RangeInclusive<f64> = 1.0..=31_536_000.0;
/// The timeout of an orderly stop for each server.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

const _: () = {
    assert!(GRACE.as_millis() * 4 >= LEASE.as_millis() * 5, "grace must be at least 1.25 leases");
    assert!(BEACON_INTERVAL.as_millis() * 5 <= LEASE.as_millis());
    assert!(MAX_DEADLINE.as_secs() * 5 < SESSION_IDLE.as_secs());
};
