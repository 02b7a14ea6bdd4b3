//! Tests of clusters from their start to their end: placement, restarts, replacements, restores, orderly ends and their
//! dumps.

#[path = "../common/mod.rs"]
mod common;

mod coordinator_restart;
mod dumps;
mod eviction;
mod flushing;
mod hash_tags;
mod hostile_start;
mod leaving;
mod log_files;
mod map_from_servers;
mod orphans;
mod placement;
mod previous_client;
mod replacing;
mod restore;
mod scanning;
mod seven_servers;
mod slow_server;
mod ssh;
mod state_not_stored;
mod stop_dumps;
mod stop_signals;
mod strangers;
