//! The coordinator's state on the disk: one file, replaced as a whole.
//!
//! ```text
//!   coordinator.state:  kv-coordinator-state 3 <bytes> <CRC-32C in hex>\n
//!                       <JSON>
//! ```
//!
//! After a crash at any moment the file is completely the previous or the new one. It has the cluster's durable state
//! and the addresses of all processes. Servers reconnect to the same port of the coordinator, so a later coordinator
//! uses that port by default.

mod aside;
mod error;
mod file;
mod format;
mod load;
mod record;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use aside::{rename_aside, set_aside};
pub(crate) use file::{StateFile, store, write};
pub(crate) use format::{FILE_NAME, OLD_NAME};
pub(crate) use load::{load, load_file};
pub(crate) use record::Record;
