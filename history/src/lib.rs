//! What clients saw of a cluster, and whether a store that keeps its promises explains it: the one
//! checker of the simulator and of the runs over real processes.
//!
//! ```text
//!   simulator ------------------------> Entry --+--> judge: one register for each key (porcupine-rs)
//!                                               |
//!   JSON lines -> Record -> Operations ---------+--> effects: each write once, each version one write
//!                                 |
//!                                 +-> corrupted: the same history with one answer that cannot be
//! ```

mod corrupt;
mod effects;
mod operations;
mod record;
mod register;

pub use corrupt::corrupted;
pub use effects::{Effects, Twice, effects};
pub use operations::{HistoryError, Operation, Operations};
pub use record::{Function, Kind, Payload, Reason, Record, RecordError};
pub use register::{Answered, Asked, Entry, Value, Verdict, judge};
