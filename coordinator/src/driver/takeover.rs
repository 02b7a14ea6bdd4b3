//! The takeover of an earlier coordinator's cluster, and the end of a coordinator that is outdated.

use kv_protocol::control_message::Started;
use kv_protocol::status::ClusterState;
use kv_protocol::{GroupId, ServerId, ViewVersion};

use super::context::Driver;
use crate::store::FILE_NAME;

impl Driver {
    /// Reports which cluster is taken over.
    pub(super) fn tell_takes_over(&self) {
        let cluster = self.cluster();
        let (id, epoch) = (cluster.config().cluster, cluster.config().epoch.number);
        let (count, port) = (cluster.count(), self.ports.servers);
        self.console.say(&format!(
            "taking over cluster {id} of {count} servers from its last coordinator, as epoch {epoch}; its \
             servers connect to port {port}"
        ));
    }

    /// Announces that clients are served, if the cluster has served and is not stopping.
    pub(super) fn tell_taken_over(&self) {
        let (state, has_served) = {
            let cluster = self.cluster();
            (cluster.state(), cluster.has_served())
        };
        if has_served && state != ClusterState::Stopping {
            self.serve();
        }
    }

    /// Rejects a server of this cluster that has accepted another coordinator of this epoch or a later one. The server
    /// would always reject this coordinator, so this coordinator ends.
    pub(super) fn check_epoch(&self, started: &Started) -> Result<(), String> {
        let (ours, theirs) = (self.cluster().config().epoch, started.epoch);
        let known = self.is_known(started);
        let is_other = theirs.boot != ours.boot && theirs.number >= ours.number;
        if !known || !is_other {
            return Ok(());
        }
        let (id, ours, theirs) = (started.member.server, ours.number, theirs.number);
        self.end(format!(
            "cannot take over the cluster: server {id} has accepted another coordinator, of epoch {theirs}; \
             the epoch of this coordinator is {ours}. Nothing was changed, and the servers were left as they \
             are. If no other coordinator of this cluster runs anywhere and {} is the newest state, start \
             again: each start uses the next epoch",
            self.dir.join(FILE_NAME).display()
        ));
        Err(format!("it has accepted another coordinator, of epoch {theirs}"))
    }

    /// Returns whether this report comes from the known process of its server.
    fn is_known(&self, started: &Started) -> bool {
        let cluster = self.cluster();
        let is_in_ring = started.member.server.0 < cluster.count();
        is_in_ring
            && cluster.started(started.member.server).is_some_and(|known| {
                known.member == started.member
                    && (known.pid, known.start_time) == (started.pid, started.start_time)
            })
    }

    /// Ends this coordinator, because a server has a newer view than the stored state.
    pub(super) fn end_outdated(
        &self,
        server: ServerId,
        group: GroupId,
        known: ViewVersion,
        reported: ViewVersion,
    ) {
        let path = self.dir.join(FILE_NAME);
        self.end(format!(
            "cannot take over the cluster: {} is older than the cluster: it has view {known} of group {group}, \
             server {server} has view {reported}; nothing was changed, and the servers were left as they are. \
             Put the newest copy of the file there and start again. Meanwhile the servers continue to serve, \
             and hold all data. If there is no newer copy, first end every server with SIGTERM, which makes it \
             dump its tables, and keep the dumps and the file",
            path.display()
        ));
    }
}
