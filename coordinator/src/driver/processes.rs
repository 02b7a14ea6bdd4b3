//! The servers' processes: how they are spawned, get their dumps, are killed, and exit.

use super::*;

impl Driver {
    pub(super) fn kill(&self, member: Member, reason: KillReason) {
        let id = member.server;
        match reason {
            KillReason::Unanswered(_) => {
                let pid = self.cluster().started(id).map_or(0, |started| started.pid);
                self.warn(&format!("server {id} (pid {pid}) is killed: {reason}"));
            }
            _ => tracing::info!("server {id} is killed: {reason}"),
        }
        if let Some(killer) = &self.killers.borrow()[index(member)] {
            // One queued message is enough.
            let _ = killer.try_send(());
        }
    }

    /// Returns the dumps that a process loads if it is spawned now. Only founders of a restored cluster load dumps;
    /// later processes copy from another replica.
    pub(super) fn loads(&self, server: ServerId) -> Vec<Load> {
        let restored = self.restoration.as_ref().filter(|_| self.cluster().is_founding());
        restored.map_or_else(Vec::new, |restored| restored.of(server).to_vec())
    }

    /// Carries out the first effects, before any input. They include the first store, on which everything else
    /// depends.
    pub(super) fn begin(self: &Rc<Driver>) {
        let plan = self.plan();
        let (file, dir) = (&plan.file, plan.dir.display());
        let host = plan.routes[0].coordinator;
        let effects = self.first.take();
        if self.takes_over.get() {
            self.tell_takes_over();
            return effects.into_iter().for_each(|effect| self.carry_out(effect));
        }
        self.console.say(&format!(
            "starting {} servers with {} shard{} each; files in {dir}; servers connect to this coordinator at \
             {host}, port {}",
            file.count(),
            plan.shards,
            if plan.shards == 1 { "" } else { "s" },
            self.ports.servers
        ));
        for effect in effects {
            self.carry_out(effect);
        }
        self.recovering.notify_one();
    }

    /// Starts a process for a place of the ring.
    pub(super) fn spawn(self: &Rc<Driver>, member: Member) {
        self.give_up_before(member);
        let plan = self.plan();
        let line = &plan.file.servers[index(member)];
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
        self.commands.borrow_mut()[index(member)] = plan.command_line(line, &arguments);
        self.exits.borrow_mut()[index(member)] = None;
        match line.host {
            Host::Local => self.spawn_local(line, member, &arguments),
            Host::Ssh { .. } => {
                self.spawn_remote(line, member, arguments, loads, Rc::clone(&self.turn));
            }
        }
    }

    pub(super) fn spawn_local(
        self: &Rc<Driver>,
        line: &ServerLine,
        member: Member,
        arguments: &[String],
    ) {
        let (binary, directory) = (self.plan().binary.clone(), self.state_file.directory());
        let launch = Launch::new(binary, directory, line, arguments, self.key);
        let (driver, kill, line) = (Rc::clone(self), self.killer(member), line.clone());
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

    pub(super) fn spawn_remote(
        self: &Rc<Driver>,
        line: &ServerLine,
        member: Member,
        arguments: Vec<String>,
        loads: Vec<Load>,
        turn: Rc<Semaphore>,
    ) {
        let ssh = self.plan().ssh.clone();
        let server = RemoteServer::new(ssh, line.clone(), member, arguments, self.key);
        let (driver, mut kill, line) = (Rc::clone(self), self.killer(member), line.clone());
        tokio::task::spawn_local(async move {
            if let Err(how) = driver.bring(&line, &loads, &turn, &mut kill).await {
                return driver.exited(member, Exit::without_dumps(how, None));
            }
            let tell = |pid| driver.tell_spawned(&line, Some(pid));
            let host = |trouble: Option<&str>| driver.note_host(member, trouble);
            let exit = server.run(turn, kill, tell, || driver.reported(member), host).await;
            driver.exited(member, exit);
        });
    }

    /// Sends a server's dumps to its host, unless the server is killed meanwhile.
    pub(super) async fn bring(
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

    /// Records for the status whether the host of a server can be queried about its process.
    pub(super) fn note_host(&self, member: Member, trouble: Option<&str>) {
        self.cluster.borrow_mut().note_host(clock::now(), member, trouble);
    }

    /// Returns the STARTED report of a process, if it has sent one.
    pub(super) fn reported(&self, member: Member) -> Option<Started> {
        let cluster = self.cluster();
        cluster.started(member.server).copied().filter(|started| started.member == member)
    }

    /// Creates the kill channel of a process, and returns its receiver.
    pub(super) fn killer(&self, member: Member) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel(1);
        self.killers.borrow_mut()[index(member)] = Some(sender);
        receiver
    }

    /// Checks the directory for complete dumps if the exit of a local process does not show whether it left them.
    pub(super) async fn look_for_dumps(&self, member: Member, exit: Exit) -> Exit {
        if exit.in_order.is_some() {
            return exit;
        }
        let state = self.cluster().durable().clone();
        let has_left = written::has_left(&self.dir, &state, member).await;
        Exit { in_order: Some(has_left), ..exit }
    }

    pub(super) fn exited(self: &Rc<Driver>, member: Member, exit: Exit) {
        tracing::info!("server {}: {}", member.server, exit.how);
        self.cluster.borrow_mut().note_last_words(member, &last_words(&exit));
        let in_order = exit.in_order == Some(true);
        if self.cluster().member(member.server) == member {
            self.exits.borrow_mut()[index(member)] = Some(exit);
        }
        self.forget_elsewhere(member);
        self.input(|cluster, now, sink| match in_order {
            true => cluster.on_left(now, member, sink),
            false => cluster.on_exited(now, member, sink),
        });
    }
}
