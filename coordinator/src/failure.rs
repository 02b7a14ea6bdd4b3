//! The reason for an unsuccessful exit of the coordinator.

/// The reason for an unsuccessful exit of the coordinator.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or the cluster file is invalid; nothing was started.
    Usage(String),
    /// An operation failed. If a start failed, the servers that were already started were stopped again.
    Failed(String),
}
