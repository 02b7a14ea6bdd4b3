//! The servers' processes: each runs in a task that starts or adopts it, waits for its end, and reports its exit.
//!
//! ```text
//!   Effect::Spawn, Adopt -> spawn, adopt -> exited -> Cluster::on_exited, on_left
//!   Effect::Kill, coord replace -> a message on its kill channel (process_table.rs)
//! ```

mod adopt;
mod replace;
mod spawn;

use std::rc::Rc;

use kv_core::cluster::KillReason;
use kv_protocol::cluster_file::ServerLine;
use kv_protocol::{GroupId, Member};

use super::context::Driver;
use crate::clock;
use crate::restore::written;
use crate::spawn::Exit;
use crate::spawn::ssh::SshError;

/// The number of attempts to look for dumps on an ssh host.
const LOOKS_FOR_DUMPS: u32 = 3;

impl Driver {
    /// Kills the current process of a place.
    pub(super) fn kill(&self, member: Member, reason: KillReason) {
        let id = member.server;
        match reason {
            KillReason::Unanswered(_) => {
                let pid = self.cluster().started(id).map_or(0, |started| started.pid);
                self.warn(&format!("killing server {id} (pid {pid}), because {reason}"));
            }
            _ => tracing::info!("killing server {id}, because {reason}"),
        }
        self.processes.kill(id);
    }

    /// Records for the status whether the host of a server can be queried about the server's process. `trouble` is the
    /// reason why it cannot, or `None` if it can.
    pub(super) fn note_host(&self, member: Member, trouble: Option<&str>) {
        self.cluster.borrow_mut().note_host(clock::now(), member, trouble);
    }

    /// Returns the exit of a local process. If neither its exit status nor its reports show whether its dumps are
    /// complete, a search for the dumps decides.
    pub(super) async fn look_for_dumps(&self, member: Member, exit: Exit) -> Exit {
        if exit.in_order.is_some() || self.cluster().has_reported_dumps(member) {
            return exit;
        }
        let state = self.cluster().durable().clone();
        let has_left = written::has_left(&self.dir, &state, member).await;
        Exit { in_order: Some(has_left), ..exit }
    }

    /// Does the same as [`Driver::look_for_dumps`] for a process on an ssh host. If the host cannot be queried, the
    /// result stays unknown.
    pub(super) async fn look_for_dumps_on_host(
        &self,
        line: &ServerLine,
        member: Member,
        exit: Exit,
    ) -> Exit {
        if exit.in_order.is_some() || self.cluster().has_reported_dumps(member) {
            return exit;
        }
        let state = self.cluster().durable().clone();
        let (groups, names): (Vec<GroupId>, Vec<String>) =
            written::dumps_of(&state, member).into_iter().unzip();
        if groups.is_empty() {
            return exit;
        }
        let ssh = self.plan().ssh.clone();
        let mut attempts = 0;
        loop {
            attempts += 1;
            // sshd drops connections over its limit.
            let permit = self.turn.acquire().await.ok();
            let dumped = ssh.dumped(&line.host, (state.cluster, member), &names).await;
            drop(permit);
            match dumped {
                Ok(dumped) => {
                    let is_dumped = groups.iter().all(|group| dumped.contains(group));
                    return Exit { in_order: Some(is_dumped), ..exit };
                }
                Err(error)
                    if attempts < LOOKS_FOR_DUMPS && !matches!(error, SshError::TooSlow(_)) => {}
                Err(error) => {
                    tracing::warn!(
                        "cannot look for dumps of server {} on {}: {error}; its exit counts as a crash",
                        line.id,
                        line.host
                    );
                    return exit;
                }
            }
        }
    }

    /// Passes the exit of a process to the cluster.
    pub(super) fn exited(self: &Rc<Driver>, member: Member, exit: Exit) {
        tracing::info!("server {}: {}", member.server, exit.how);
        self.cluster.borrow_mut().note_last_words(member, &exit.summary());
        let in_order = exit.in_order == Some(true);
        if self.cluster().member(member.server) == member {
            self.processes.note_exit(member.server, exit);
        }
        self.forget_elsewhere(member);
        self.input(|cluster, now, sink| match in_order {
            true => cluster.on_left(now, member, sink),
            false => cluster.on_exited(now, member, sink),
        });
    }
}
