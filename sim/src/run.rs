//! The run of one seed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::counts::Counts;
use crate::invariants::Violation;
use crate::world::{Config, World};

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The statistics.
    pub counts: Counts,
    /// The broken promise, if any.
    pub failure: Option<Violation>,
    /// The last lines of the trace, only those of the failure's group if there is one.
    pub trace: Vec<String>,
}

/// Runs a seed. A panic of a machine counts as a broken promise: number 0.
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
    world.counts.digests_compared = world.checks.compared.digests;
    world.counts.copies_compared = world.checks.compared.contents;
    let shards = world.processes.iter().flat_map(|process| &process.shards);
    let replicas = shards.flat_map(|executor| executor.replicas());
    world.counts.emptied_chunks =
        replicas.map(|replica| replica.compaction_counts().emptied_chunks).sum();
    let group = result.as_ref().err().and_then(|violation| violation.group);
    let trace = world.trace.lines(group).map(str::to_owned).collect();
    Outcome { seed: config.seed, counts: world.counts.clone(), failure: result.err(), trace }
}
