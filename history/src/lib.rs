//! Histories of client operations, and a checker of the store's guarantees. The simulator and the runs with real
//! processes (`chaos/`) share the checker.
//!
//! ```text
//!   simulator -> ObjectEntry --+-> judge_object: keys with deadlines, numbers, texts, batches (porcupine-rs)
//!             |                |
//!             |   JSON lines -> ObjectRecord ---+
//!             |                                 |
//!             +-----------------------> Entry --+--> judge: one register for each key (porcupine-rs)
//!                                               |
//!   JSON lines -> Record -> Operations ---------+--> effects: each write once, each version one write
//!                                 |
//!                                 +-> corrupted: the same history with one impossible response
//!
//!   scans: the keys that a scan must return, and those that it may return
//! ```

mod corrupt;
mod effects;
pub mod object;
mod operations;
mod record;
mod register;
mod scans;

pub use corrupt::corrupted;
pub use effects::{Effects, Twice, effects};
pub use operations::{HistoryError, Operation, Operations};
pub use record::{Function, Kind, Payload, Reason, Record, RecordError};
pub use register::{Asked, Entry, Returned, Value, Verdict, judge};
pub use scans::{existed_throughout, may_have_existed};
