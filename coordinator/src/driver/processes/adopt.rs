//! Processes that an earlier coordinator has started. They are watched like all other processes.

use std::rc::Rc;

use kv_protocol::cluster_file::Host;
use kv_protocol::control_message::Started;
use tokio::sync::mpsc;

use crate::driver::context::Driver;
use crate::place::Elsewhere;
use crate::spawn::remote::RemoteServer;
use crate::spawn::{adopted, error_name};

impl Driver {
    /// Watches a process that an earlier coordinator has started.
    pub(in crate::driver) fn adopt(self: &Rc<Driver>, started: Started) {
        let member = started.member;
        let (plan, line) = (self.plan(), self.places.line_of(member));
        let cluster = self.cluster().config().cluster;
        let arguments = plan.server_arguments(&line, cluster, member, self.ports.servers);
        self.processes.note_command(line.id, plan.command_line(&line, &arguments));
        tracing::info!("server {} on {}: pid {}, already running", line.id, line.host, started.pid);
        let kill = self.processes.killer(member.server);
        self.watch(started, kill);
    }

    /// Waits for the end of a process that an earlier coordinator has started, and kills it on request. If the process
    /// is out of reach, only records this for the status.
    pub(super) fn watch(self: &Rc<Driver>, started: Started, kill: mpsc::Receiver<()>) {
        let member = started.member;
        let is_it = |other: &Elsewhere| other.started.member == member && other.is_out_of_reach;
        if self.places.elsewhere().iter().any(is_it) {
            let trouble = "it ran on the machine of an earlier coordinator, which cannot be checked from here";
            return self.note_host(member, Some(trouble));
        }
        let line = self.places.line_of(member);
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
                    let server = RemoteServer::adopted(ssh, line.clone(), &started);
                    let host = |trouble: Option<&str>| driver.note_host(member, trouble);
                    let exit = server.run(turn, kill, |_| {}, || None, host).await;
                    driver.look_for_dumps_on_host(&line, member, exit).await
                }
            };
            driver.exited(member, exit);
        });
    }
}
