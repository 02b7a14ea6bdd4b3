//! 16 (and with it 13 and 17): every key behaves as one register for all clients together.

use kv_protocol::placement::{Digest, Placement};

use crate::invariants::Violation;
use crate::world::World;
use kv_history::{Verdict, judge};

/// Checks the history of every key.
pub fn check(world: &World) -> Result<(), Violation> {
    let placement = Placement::new(world.config.servers, world.config.shards);
    for (key, history) in &world.workload.histories {
        let verdict = judge(history);
        if verdict != Verdict::Linearizable {
            let mut words = format!("key {:?} is {verdict:?}:", String::from_utf8_lossy(key));
            let mut history = history.clone();
            history.sort_by_key(|entry| entry.start);
            for entry in &history {
                words += &format!("\n    {entry:?}");
            }
            let (group, _) = placement.locate(Digest::of(key));
            return Err(Violation::of(group, 16, format_args!("{words}")));
        }
    }
    Ok(())
}
