//! Every bound in one place: what the programs refuse, and when they close a connection.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The version of the wire protocol that these programs speak; the only one so far.
pub const PROTOCOL_VERSION: u8 = 1;

// --- Keys and values -----------------------------------------------------------------------------

/// Longest key, in bytes. A key has at least one byte.
pub const MAX_KEY_BYTES: usize = 65_535;
/// Longest value, in bytes. A value may be empty.
pub const MAX_VALUE_BYTES: usize = 16 << 20;

// --- Frames --------------------------------------------------------------------------------------

/// Most bytes of a request or answer beside its key and value.
pub const MAX_FIXED_BYTES: usize = 80;
/// Longest body of a frame on a client's connection to a server or the coordinator.
pub const MAX_CLIENT_BODY: usize = MAX_FIXED_BYTES + MAX_KEY_BYTES + MAX_VALUE_BYTES;
/// Longest body of an answer: the value, or the map or status of the largest cluster.
pub const MAX_ANSWER_BODY: usize = MAX_FIXED_BYTES + MAX_VALUE_BYTES;
/// Longest body of a hello, on any port: all that a stranger may send.
pub const MAX_HELLO_BODY: usize = 512;
/// Most bytes of a value that one peer message carries; longer values travel in fragments.
pub const FRAGMENT_BYTES: usize = 64 << 10;
/// Most bytes that a sender puts into one batch before it starts the next: a batch that has reached
/// this is sent. One message more may follow the last byte below it.
pub const BATCH_TARGET_BYTES: usize = 128 << 10;
/// Most messages in one batch between servers.
pub const MAX_BATCH_MESSAGES: usize = 4_096;
/// Longest body of a frame between servers: a batch just below its target and one message with the
/// longest key and a full fragment.
pub const MAX_PEER_BODY: usize = BATCH_TARGET_BYTES + MAX_KEY_BYTES + FRAGMENT_BYTES + 512;
/// Longest body of a frame between coordinator and server.
pub const MAX_CONTROL_BODY: usize = 256 << 10;

/// Longest path of a directory that dumps are sent to: PATH_MAX of Linux.
pub const MAX_DUMP_DIRECTORY_BYTES: usize = 4_096;

// --- The cluster ---------------------------------------------------------------------------------

/// Fewest servers: each needs a primary and a secondary other than itself, and these two must differ.
pub const MIN_SERVERS: u16 = 3;
/// Most servers.
pub const MAX_SERVERS: u16 = 1_024;
/// Maximum number of clusters that one names as those it was restored from, the latest first.
pub const MAX_ANCESTORS: usize = 16;
/// Most shards of a group.
pub const MAX_SHARDS: u16 = 256;
/// How much later a view that a peer offers may be than the installed one. No group lives through so
/// many; a forged version near the end of its range would shut out every view that is true.
pub const MAX_VIEW_STEP: u64 = 1 << 32;
/// How much later the epoch of a coordinator may be than that of the one obeyed. No coordinator is started
/// so often while a server does not hear of it; a forged epoch near the end of its range would shut out
/// every coordinator that is true.
pub const MAX_EPOCH_STEP: u64 = 1 << 20;
/// Most replicas (a group's shard each) that one heartbeat reports on: four times what a server
/// hosts.
pub const MAX_HEARTBEAT_REPLICAS: usize = 2_048;

// --- Connections ---------------------------------------------------------------------------------

/// A connection whose hello has not come by then is closed.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// A frame whose first byte is older than this and whose last has not come closes its connection.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(10);
/// A connection with this many unsent response bytes is served no request until some are sent; one
/// response, however long, may follow the last byte below it.
pub const MAX_OUTPUT_BYTES: usize = 256 << 10;
/// Least memory that the clients' connections of a server may hold: half of it has room for the longest
/// request.
pub const CONNECTION_MEMORY_MIN: u64 = 40 << 20;
/// A connection that takes none of its unsent bytes for this long is closed.
pub const STALL_DEADLINE: Duration = Duration::from_secs(10);
/// A connection is closed after this many requests in a row that were refused as malformed.
pub const MAX_ERRORS_IN_A_ROW: u32 = 64;
/// Most client connections of one server process; more are refused with BUSY. The cluster's own
/// links do not count.
pub const MAX_CLIENT_CONNECTIONS: usize = 16_384;
/// Most peer connections that one server process accepts.
pub const MAX_PEER_CONNECTIONS: usize = 4_096;
/// Most client connections that the coordinator serves at once.
pub const MAX_COORDINATOR_CONNECTIONS: usize = 4_096;

// --- Writes in flight ----------------------------------------------------------------------------

/// Writes in flight of one session (client, group, shard), and the completion records kept for it.
pub const SESSION_WINDOW: u64 = 64;
/// The time, counted while its shard is awake, after which a session that has written nothing is forgotten.
pub const SESSION_IDLE: Duration = Duration::from_secs(600);
/// Maximum number of sessions of one (group, shard). One more makes room for itself: the [`SESSIONS_FORGOTTEN_AT_ONCE`]
/// that have written nothing for longest are forgotten.
pub const MAX_SESSIONS: usize = 65_536;
/// The number of sessions forgotten at once when there are too many.
pub const SESSIONS_FORGOTTEN_AT_ONCE: usize = MAX_SESSIONS / 16;
/// Most writes of one (group, shard) that wait for the other replica; more are refused with BUSY.
pub const MAX_PENDING_WRITES: usize = 16_384;
/// Most bytes of keys and values of one (group, shard) that wait for the other replica.
pub const MAX_PENDING_BYTES: usize = 64 << 20;

/// Messages of a copy that may be on their way to a candidate: enough to keep it busy, few enough that
/// a live write never waits long behind them.
pub const COPY_WINDOW_MESSAGES: u64 = 1_024;
/// Bytes of keys and values of a copy that may be on their way to a candidate.
pub const COPY_WINDOW_BYTES: usize = 128 << 10;

// --- Time ----------------------------------------------------------------------------------------

/// How often a server reports to the coordinator.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// The lease of a primary (consistency.md §4) at the default failure timeout, and the shortest there is. Code
/// that runs in a cluster takes this and the next four from its
/// [`FailureTimeout`](crate::failure_timeout::FailureTimeout).
pub const LEASE: Duration = Duration::from_millis(500);
/// The grace that an ack costs its sender; at least 1.25 leases.
pub const GRACE: Duration = Duration::from_millis(625);
/// How often an idle primary sends a beacon.
pub const BEACON_INTERVAL: Duration = Duration::from_millis(100);
/// A member hears the other one if every shard heard it this recently: its vote, when the
/// coordinator suspects that other (consistency.md §5).
pub const HEARD_WITHIN: Duration = Duration::from_millis(250);
/// A candidate that has something to acknowledge and acknowledges nothing for this long has failed,
/// unless it was reported as caught up.
pub const CANDIDATE_PATIENCE: Duration = Duration::from_millis(250);
/// A client's deadline where the caller gives none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// The longest deadline that a caller may give; far below [`SESSION_IDLE`].
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
/// How long a server without a coordinator may be told to go on, in seconds; 0 stands for ever.
pub const ORPHAN_SECONDS: RangeInclusive<f64> = 1.0..=31_536_000.0;
/// How long an orderly stop waits for each server.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

const _: () = {
    assert!(GRACE.as_millis() * 4 >= LEASE.as_millis() * 5, "grace must be at least 1.25 leases");
    assert!(BEACON_INTERVAL.as_millis() * 5 <= LEASE.as_millis());
    assert!(MAX_DEADLINE.as_secs() * 5 < SESSION_IDLE.as_secs());
};
