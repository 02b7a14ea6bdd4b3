//! The takeover of an earlier coordinator's cluster: its processes are watched, and an outdated coordinator ends.

use std::rc::Rc;

use kv_protocol::cluster_file::Host;
use kv_protocol::control_message::Started;
use kv_protocol::status::ClusterState;
use kv_protocol::{GroupId, ServerId, ViewVersion};

use tokio::sync::mpsc;

use super::{Driver, index};
use crate::place::Elsewhere;
use crate::spawn::remote::RemoteServer;
use crate::spawn::{adopted, error_name};
use crate::store::FILE_NAME;

impl Driver {
    /// Waits until the epoch of this coordinator is durable.
    pub(super) async fn until_durable(&self) {
        let is_durable = || {
            let cluster = self.cluster();
            cluster.durable().epoch == cluster.config().epoch
        };
        while !is_durable() {
            self.stored.notified().await;
        }
    }

    /// Watches a process that an earlier coordinator has started.
    pub(super) fn adopt(self: &Rc<Driver>, started: Started) {
        let member = started.member;
        let (plan, line) = (self.plan(), self.line_of(member));
        let cluster = self.cluster().config().cluster;
        let arguments = plan.server_arguments(&line, cluster, member, self.ports.servers);
        self.commands.borrow_mut()[index(member)] = plan.command_line(&line, &arguments);
        tracing::info!("server {} on {}: pid {}, already running", line.id, line.host, started.pid);
        let kill = self.killer(member);
        self.watch(started, kill);
    }

    /// Waits for the end of a process that an earlier coordinator has started, and kills it on request.
    pub(super) fn watch(self: &Rc<Driver>, started: Started, kill: mpsc::Receiver<()>) {
        let member = started.member;
        let is_it = |other: &Elsewhere| other.started.member == member && other.is_out_of_reach;
        if self.elsewhere.borrow().iter().any(is_it) {
            let trouble = "it ran on the machine of an earlier coordinator, which cannot be checked from here";
            return self.note_host(member, Some(trouble));
        }
        let line = self.line_of(member);
        let driver = Rc::clone(self);
        let (ssh, turn) = (self.plan().ssh.clone(), Rc::clone(&self.turn));
        let errors = self.plan().dir.join(error_name(&line));
        tokio::task::spawn_local(async move {
            let exit = match line.host {
                Host::Local => {
                    let exit = adopted::wait(started, errors, kill).await;
                    driver.look_for_dumps(member, exit).await
                }
                Host::Ssh { .. } => {
                    let server = RemoteServer::adopted(ssh, line, &started);
                    let host = |trouble: Option<&str>| driver.note_host(member, trouble);
                    server.run(turn, kill, |_| {}, || None, host).await
                }
            };
            driver.exited(member, exit);
        });
    }

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

    /// Rejects a server of this cluster that has obeyed another coordinator of this epoch or a later one. The server
    /// would reject this coordinator for ever, so this coordinator ends.
    pub(crate) fn check_epoch(&self, started: &Started) -> Result<(), String> {
        let (ours, theirs) = (self.cluster().config().epoch, started.epoch);
        let known = self.is_known(started);
        let is_other = theirs.boot != ours.boot && theirs.number >= ours.number;
        if !known || !is_other {
            return Ok(());
        }
        let (id, ours, theirs) = (started.member.server, ours.number, theirs.number);
        *self.outdated.borrow_mut() = Some(format!(
            "cannot take over the cluster: server {id} has followed another coordinator, of epoch {theirs}; \
             this one has epoch {ours}. Nothing was changed, and the servers were left as they are. If no \
             other coordinator of this cluster runs anywhere and {} is its newest state, start again: each \
             start takes the next epoch",
            self.dir.join(FILE_NAME).display()
        ));
        self.changed.notify_one();
        Err(format!("it has followed another coordinator, of epoch {theirs}"))
    }

    /// Returns whether this is the known process of its server.
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
    pub(super) fn tell_outdated(
        &self,
        server: ServerId,
        group: GroupId,
        known: ViewVersion,
        reported: ViewVersion,
    ) {
        let path = self.dir.join(FILE_NAME);
        *self.outdated.borrow_mut() = Some(format!(
            "cannot take over the cluster: {} is older than the cluster: it has view {known} of group {group}, \
             server {server} has view {reported}; nothing was changed, and the servers were left as they are. \
             Put the newest copy of the file there and start again. Meanwhile the servers continue to serve, \
             and hold all data. If there is no newer copy, first end every server with SIGTERM, which makes it \
             dump its tables, and keep the dumps and the file",
            path.display()
        ));
    }
}
