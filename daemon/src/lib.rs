//! Process-level parts shared by `server` and `coord`: logging, signals, files that must belong to this user, and
//! process identity.

pub mod files;
pub mod identity;
pub mod port_owner;
pub mod queue;
pub mod signals;
