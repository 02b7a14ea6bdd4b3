//! New processes: children on this machine, and servers on ssh hosts. The dumps that a server loads are sent to its
//! host first.

use std::rc::Rc;

use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::control_message::Started;
use kv_protocol::{Member, ServerId};
use tokio::sync::{Semaphore, mpsc};

use crate::driver::context::Driver;
use crate::driver::places::index;
use crate::restore::{Load, send};
use crate::spawn::Exit;
use crate::spawn::local::Launch;
use crate::spawn::remote::RemoteServer;

impl Driver {
    /// Starts a process for a place of the ring.
    pub(in crate::driver) fn spawn(self: &Rc<Driver>, member: Member) {
        self.give_up_before(member);
        let plan = self.plan();
        let line = &plan.file.servers[index(member.server)];
        let cluster = self.cluster().config().cluster;
        let mut arguments = plan.server_arguments(line, cluster, member, self.ports.servers);
        let loads = self.loads(line.id);
        for (n, load) in loads.iter().enumerate() {
            let path = match line.host {
                Host::Local => load.file.to_string_lossy().into_owned(),
                Host::Ssh { .. } => send::name(line.id, n),
            };
            arguments.extend(["--load".to_owned(), load.argument(&path)]);
        }
        self.processes.note_command(line.id, plan.command_line(line, &arguments));
        match line.host {
            Host::Local => self.spawn_local(line, member, &arguments),
            Host::Ssh { .. } => {
                self.spawn_remote(line, member, arguments, loads, Rc::clone(&self.turn));
            }
        }
    }

    fn spawn_local(self: &Rc<Driver>, line: &ServerLine, member: Member, arguments: &[String]) {
        let (binary, directory) = (self.plan().binary.clone(), self.state_file.directory());
        let launch = Launch::new(binary, directory, line, arguments, self.key);
        let (driver, kill, line) =
            (Rc::clone(self), self.processes.killer(member.server), line.clone());
        tokio::task::spawn_local(async move {
            // After the first failure to start a server, no other server is started.
            let begun = driver.failure.borrow().is_none();
            let started = match begun {
                true => launch.start().await,
                false => Err("not started, because another server could not be started".into()),
            };
            let exit = match started {
                Ok(server) => {
                    driver.tell_spawned(&line, server.pid());
                    let exit = server.wait(kill).await;
                    driver.look_for_dumps(member, exit).await
                }
                Err(reason) => {
                    tracing::error!("server {}: {reason}", line.id);
                    if !driver.cluster().has_served() {
                        driver.fail(line.id, reason.clone());
                    }
                    Exit::without_dumps(reason, None)
                }
            };
            driver.exited(member, exit);
        });
    }

    fn spawn_remote(
        self: &Rc<Driver>,
        line: &ServerLine,
        member: Member,
        arguments: Vec<String>,
        loads: Vec<Load>,
        turn: Rc<Semaphore>,
    ) {
        let ssh = self.plan().ssh.clone();
        let server = RemoteServer::new(ssh, line.clone(), member, arguments, self.key);
        let (driver, mut kill, line) =
            (Rc::clone(self), self.processes.killer(member.server), line.clone());
        tokio::task::spawn_local(async move {
            if let Err(how) = driver.bring(&line, &loads, &turn, &mut kill).await {
                return driver.exited(member, Exit::without_dumps(how, None));
            }
            let tell = |pid| driver.tell_spawned(&line, Some(pid));
            let host = |trouble: Option<&str>| driver.note_host(member, trouble);
            let exit = server.run(turn, kill, tell, || driver.reported(member), host).await;
            let exit = driver.look_for_dumps_on_host(&line, member, exit).await;
            driver.exited(member, exit);
        });
    }

    /// Sends a server's dumps to its host, unless the server is killed meanwhile.
    async fn bring(
        &self,
        line: &ServerLine,
        loads: &[Load],
        turn: &Semaphore,
        kill: &mut mpsc::Receiver<()>,
    ) -> Result<(), String> {
        if loads.is_empty() {
            return Ok(());
        }
        let brought = async {
            let _permit = turn.acquire().await;
            send::all(&self.plan().ssh, &line.host, line.id, loads).await
        };
        tokio::select! {
            brought = brought => brought,
            Some(()) = kill.recv() => Err("canceled before it had started".to_owned()),
        }
    }

    /// Returns the dumps that a process of this server loads if it is spawned now. Only the first processes of a
    /// restored cluster load dumps; later processes copy from another replica.
    fn loads(&self, server: ServerId) -> Vec<Load> {
        let restored = self.restoration.as_ref().filter(|_| self.cluster().is_founding());
        restored.map_or_else(Vec::new, |restored| restored.of(server).to_vec())
    }

    /// Returns the STARTED report of a process, if it has sent one.
    fn reported(&self, member: Member) -> Option<Started> {
        let cluster = self.cluster();
        cluster.started(member.server).copied().filter(|started| started.member == member)
    }
}
