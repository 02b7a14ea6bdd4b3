//! The start of servers, and the proof that they have ended.
//!
//! ```text
//!   plan -> arguments --+-> local: a child of this process, waited for
//!                       +-> adopted: a process that an earlier coordinator has started, by its pidfd
//!                       +-> remote: a script that ssh runs: it starts the server, waits for it, and prints
//!                                   `started <pid>` and `exited <pid> <status>`
//! ```

pub(crate) mod adopted;
mod exit;
pub(crate) mod local;
mod names;
pub(crate) mod remote;
pub(crate) mod ssh;

pub(crate) use exit::Exit;
pub(crate) use names::{error_name, log_name};
