//! 16 (and with it 13 and 17): every key behaves as one register for all clients together.

use crate::history::{Verdict, judge};
use crate::world::{Violation, World};

/// Judges the history of every key.
pub fn check(world: &World) -> Result<(), Violation> {
    for (key, history) in &world.workload.histories {
        let verdict = judge(history);
        if verdict != Verdict::Linearizable {
            let mut words = format!("key {:?} is {verdict:?}:", String::from_utf8_lossy(key));
            let mut history = history.clone();
            history.sort_by_key(|entry| entry.start);
            for entry in &history {
                words += &format!("\n    {entry:?}");
            }
            return Err(Violation { invariant: 16, words });
        }
    }
    Ok(())
}
