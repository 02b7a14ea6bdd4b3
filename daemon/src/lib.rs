//! The parts that `server` and `coord` share as processes that run for months: logging, signals, files that must be
//! their own, and recognizing other processes.

pub mod files;
pub mod identity;
pub mod port_owner;
pub mod queue;
pub mod signals;
