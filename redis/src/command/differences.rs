//! The differences of commands from those of Redis 7.2, for the table in `docs/redis.md`.

/// The differences, by command. All commands share those that the page states for itself.
pub const DIFFERENCES: &[(&str, &str)] = &[
    (
        "client",
        "LIST, INFO and KILL know only their own connection. PAUSE, TRACKING, CACHING, UNBLOCK are missing.",
    ),
    ("cluster", "The error of a server without cluster support."),
    ("readonly", "The error of a server without cluster support."),
    ("readwrite", "The error of a server without cluster support."),
    ("command", "No tips and no descriptions of arguments. GETKEYSANDFLAGS is missing."),
    (
        "config",
        "GET shows what exists. SET accepts only the value that a parameter has. RESETSTAT resets nothing.",
    ),
    ("copy", "CROSSSLOT unless both keys are of one shard."),
    ("rename", "CROSSSLOT unless both keys are of one shard."),
    ("renamenx", "CROSSSLOT unless both keys are of one shard."),
    ("dbsize", "Exact. It reads every shard page by page, without keys in database 0."),
    ("debug", "Refused."),
    ("delifeq", "A command of Valkey 9.0."),
    (
        "exec",
        "Atomic if all keys are of one shard. In order without isolation for several shards with `--redis-multi ordered`. At most 64 MiB of replies then.",
    ),
    (
        "multi",
        "All keys must be of one shard (a hash tag in a cluster with `--hash-tags`), or `--redis-multi ordered` set. At most 1,024 commands and 17 MiB.",
    ),
    (
        "flushall",
        "Not atomic: a key that is written meanwhile may stay. It removes the keys of native clients too.",
    ),
    ("flushdb", "Not atomic: a key that is written meanwhile may stay."),
    ("function", "There are none to flush or list."),
    ("script", "There are none to flush or list."),
    (
        "info",
        "The numbers are those of the shard that serves the connection. `db0` counts the keys of all databases.",
    ),
    ("keys", "At most 16 MiB of keys; use SCAN for more."),
    ("lastsave", "The start of the server."),
    ("latency", "Nothing is recorded."),
    ("slowlog", "Nothing is recorded."),
    ("lcs", "The table has at most 16 MiB, and each value 128 KiB."),
    ("memory", "USAGE is the length of key and value, and 32. STATS and DOCTOR are missing."),
    ("mget", "At most 64 MiB of values. Keys of several shards are read one after the other."),
    ("mset", "Atomic for the keys of each shard, not for all together."),
    (
        "msetnx",
        "CROSSSLOT unless all keys are of one shard. At most 1,024 keys. In a transaction only with `--redis-multi ordered`.",
    ),
    (
        "object",
        "IDLETIME is 0, and FREQ is 0 under `--eviction lfu`. A short value never has the encoding `raw`.",
    ),
    ("randomkey", "Only roughly uniform."),
    ("role", "Lists no replicas."),
    ("scan", "Cursors are below 2^53. COUNT is a hint. After a failover, keys may come twice."),
    ("set", "IFEQ is an option of Valkey 8.1."),
    (
        "wait",
        "The number of servers that hold the last write besides the primary, at once: a write waits for its second copy before it has its reply.",
    ),
    (
        "watch",
        "All keys must be of the shard of the transaction. With `--redis-multi ordered`, others are compared before the first command. A missing key that is created and removed again counts as unchanged.",
    ),
];

/// Returns the differences of a command; empty if there are none.
pub fn differences(name: &str) -> &'static str {
    DIFFERENCES.iter().find(|(command, _)| *command == name).map_or("", |(_, text)| text)
}
