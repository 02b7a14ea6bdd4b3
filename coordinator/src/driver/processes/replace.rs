//! Places that move to new processes while the cluster serves, usually on other hosts. The cause is
//! `coord replace`, or a cluster file that was edited while no coordinator ran.
//!
//! ```text
//!   query the new host (ssh) -> plan, `elsewhere`   --+ one store: the place's host, and the old process's host
//!                               Cluster::on_replace --+
//!   Effect::Spawn: on the new host; the old process is killed until it is proven dead
//! ```

use std::rc::Rc;
use std::time::Duration;

use kv_core::cluster::ReplaceRefused;
use kv_protocol::cluster_file::Host;
use kv_protocol::{Member, ServerId};

use crate::driver::context::Driver;
use crate::place::{Elsewhere, Moved};
use crate::stop_port::Replacement;

/// The polling interval of [`Driver::await_replaced`].
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Driver {
    /// Moves a place to a new process, perhaps on another host. Returns the message for the caller, and the process
    /// that had the place.
    ///
    /// # Errors
    /// Nothing is changed; the message has the reason.
    pub(in crate::driver) async fn replace(
        self: &Rc<Driver>,
        wanted: &Replacement,
    ) -> Result<(String, Member), String> {
        let id = ServerId(wanted.server);
        let refused = |refused: ReplaceRefused| refused.to_string();
        self.cluster().may_replace(id).map_err(refused)?;
        let before = self.places.line(id);
        let to = wanted.line(&before)?;
        let route = self.plan().ask_for_route(&to).await?;
        // Another request may have changed the plan meanwhile. From here on, the function uses the current plan and
        // does not await.
        self.cluster().may_replace(id).map_err(refused)?;
        if self.places.line(id) != before {
            return Err(
                "another command is moving this server; wait until it has finished".to_owned()
            );
        }
        let plan = self.plan().with_line(to.clone(), route);
        let old = self.cluster().member(id);
        self.note_elsewhere(id, &before.host);
        let (mut said, mut advice) =
            (format!("restarting server {id} on {}", to.host), String::new());
        if to != before {
            said = format!("moving server {id} from {} to {}", before.host, to.host);
            let ports = [to.clients_port, to.servers_port, to.coord_port];
            let moved =
                Moved { server: id, from: self.places.host_in_file(&before), host: to.host, ports };
            advice = format!(". Write its new line into the cluster file: {}", moved.words());
            self.places.note_moved(moved);
        }
        self.places.set_plan(plan);
        let given = self.input(|cluster, now, sink| cluster.on_replace(now, id, sink));
        given.map_err(refused)?;
        self.console.say(&said);
        Ok((format!("{said}; coord status shows the progress{advice}"), old))
    }

    /// Waits until another process has the place of `old` and holds all its replicas. Returns the message about the
    /// replacement.
    pub(in crate::driver) async fn await_replaced(&self, old: Member) -> String {
        let id = old.server;
        let is_home = || {
            let cluster = self.cluster();
            cluster.member(id) != old && cluster.recovery_step(id).is_none()
        };
        while !is_home() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        format!("server {id} is back, with copies of all its groups")
    }

    /// Records the host on which the process of a place runs or may run.
    fn note_elsewhere(&self, id: ServerId, host: &Host) {
        let cluster = self.cluster();
        let is_over = cluster.has_exited(id);
        if let Some(started) = cluster.started(id).copied().filter(|_| !is_over) {
            self.places.note_elsewhere(started, host);
        }
    }

    /// Continues moves that an earlier coordinator or an edited cluster file has begun. Places whose processes run
    /// on other hosts move to their new hosts. Processes that have lost their places are killed.
    pub(in crate::driver) fn go_on_moving(self: &Rc<Driver>) {
        for Elsewhere { started, is_out_of_reach, .. } in self.places.elsewhere() {
            let member = started.member;
            let id = member.server;
            if self.cluster().member(id) != member {
                if is_out_of_reach {
                    // The process cannot be killed from here, but it is rejected if it reports.
                    self.forget_elsewhere(member);
                    continue;
                }
                self.watch(started, self.processes.killer_of_given_up(member));
                continue;
            }
            let given = self.input(|cluster, now, sink| cluster.on_replace(now, id, sink));
            if let Err(refused) = given {
                self.console.warn(&format!(
                    "server {id} cannot move to {} now: {refused}; it moves when its process has ended",
                    self.places.line(id).host
                ));
            }
        }
    }

    /// Kills the previous processes of a place that run on other hosts. Called before a process is spawned.
    pub(super) fn give_up_before(&self, member: Member) {
        let before = self.places.elsewhere().into_iter().map(|other| other.started.member);
        for other in before.filter(|other| other.server == member.server && *other != member) {
            self.processes.give_up(other);
        }
    }

    /// Removes the record of the host of a process that has ended or is out of reach.
    pub(super) fn forget_elsewhere(self: &Rc<Driver>, member: Member) {
        self.processes.forget_given_up(member);
        if self.places.forget_elsewhere(member) {
            self.input(|cluster, now, sink| cluster.store_again(now, sink));
        }
    }
}
