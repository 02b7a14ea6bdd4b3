//! `coord detach`: this coordinator exits, and its servers keep serving.

use std::time::Duration;

use kv_protocol::status::ClusterState;

use super::context::Driver;
use crate::quote;

impl Driver {
    /// Checks that this coordinator may leave its servers now.
    ///
    /// # Errors
    /// The cluster is starting or stopping, which only a coordinator can complete. The message has the remedy.
    pub(super) fn may_detach(&self) -> Result<(), String> {
        match self.cluster().state() {
            ClusterState::Starting => {
                Err("the cluster does not serve yet; wait until it serves, or stop it (coord stop)"
                    .to_owned())
            }
            ClusterState::Stopping => {
                Err("the cluster is stopping, and only its coordinator can complete the stop; wait until the \
                     stop has ended"
                    .to_owned())
            }
            ClusterState::Serving | ClusterState::Degraded => Ok(()),
        }
    }

    /// Returns the message for the operator about servers without a coordinator.
    pub(super) fn detached(&self) -> String {
        let count = self.cluster().count();
        let orphaned = match self.plan().settings.orphan_timeout {
            Duration::ZERO => {
                "without a coordinator, the servers continue without a time limit (--orphan-timeout 0)"
                .to_owned()
            }
            time => format!(
                "without a coordinator, each server that does not hold the only copy of a group dumps its \
                 tables and exits after {} s (--orphan-timeout)",
                time.as_secs_f64()
            ),
        };
        format!(
            "detached: the {count} servers continue to serve, and a server that fails is not replaced. To take \
             them over, start coord with --dir {} again; {orphaned}",
            quote::word(&self.plan().dir.to_string_lossy())
        )
    }
}
