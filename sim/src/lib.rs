//! A deterministic simulator of a whole cluster. It runs the shipped shards and state machines ([`kv_shard`],
//! [`kv_core`]), which exchange bytes in the real wire format ([`kv_protocol`]). One seed determines time, network,
//! disks and processes.
//!
//! ```text
//!   run          one seed, to its end
//!   world        true time, a heap of events, dispatch
//!     server       a process: a node, and executors that drive shards as an engine does
//!     dump         dumps on a host's disk, and their loading into a new process
//!     coordinator  its state machine (the brain) and its disk
//!     client       operations, sessions, retries       workload: their choice     object: their encoding
//!     redis        Redis clients, at any server: pipelines, replies in order
//!     network      ordered bytes, cuts, breaks         clock: drift, wall clocks
//!     nemesis      faults
//!   checks       invariants (by theme); kv_history: linearizability of each key or object
//!   counts, trace
//! ```
//!
//! The same seed gives the same run, so a seed reproduces a failure.

use std::panic::{AssertUnwindSafe, catch_unwind};

use counts::Counts;
use invariants::Violation;
use world::{Config, World};

pub mod checks;
pub mod client;
pub mod clock;
pub mod coordinator;
pub mod counts;
pub mod dump;
pub mod event;
pub mod exhaustive;
pub mod invariants;
pub mod nemesis;
pub mod network;
pub mod object;
pub mod redis;
pub mod server;
pub mod trace;
pub mod workload;
pub mod world;

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The statistics.
    pub counts: Counts,
    /// The violated invariant; `None` if the run passed.
    pub failure: Option<Violation>,
    /// The last lines of the trace. If the failure concerns one group, only the lines of this group.
    pub trace: Vec<String>,
}

/// Runs a seed. A panic of a state machine counts as a violation with number 0.
pub fn run(config: Config) -> Outcome {
    let mut world = World::new(config);
    let result = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
        let words = words.unwrap_or_else(|| "a panic without a message".to_owned());
        Err(Violation::new(0, words))
    });
    world.counts.runs = 1;
    world.counts.simulated = world.now;
    world.counts.fresh_sessions = world.clients.iter().map(|client| client.fresh_sessions).sum();
    world.counts.objects = world.workload.objects.counts.clone();
    world.counts.digests_compared = world.checks.compared.digests;
    world.counts.copies_compared = world.checks.compared.contents;
    let shards = world.processes.iter().flat_map(|process| &process.shards);
    for replica in shards.flat_map(|executor| executor.replicas()) {
        world.counts.emptied_chunks += replica.compaction_counts().emptied_chunks;
        world.counts.evicted += replica.removal_counts().evicted;
    }
    let group = result.as_ref().err().and_then(|violation| violation.group);
    let trace = world.trace.lines(group).map(str::to_owned).collect();
    Outcome { seed: config.seed, counts: world.counts.clone(), failure: result.err(), trace }
}
