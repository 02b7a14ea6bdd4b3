//! What `server` and `coord` share as processes that run for months: logging, signals, and knowing other
//! processes.

pub mod identity;
pub mod queue;
pub mod signals;
