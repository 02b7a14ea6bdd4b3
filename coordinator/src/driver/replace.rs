//! Places that move to new processes while the cluster serves, usually on other hosts. The cause is
//! `coord replace`, or a cluster file that was edited while no coordinator ran.
//!
//! ```text
//!   query the new host (ssh) -> plan, `elsewhere`   --+ one store: the place's host, and the old process's host
//!                               Cluster::on_replace --+
//!   Effect::Spawn: on the new host; the old process is killed until it is proven dead
//! ```

use super::*;
use crate::stop_port::Replacement;

/// The polling interval of [`Driver::await_replaced`].
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Driver {
    /// Returns the plan. It changes when a place moves to another host, and with `coord set`.
    pub(crate) fn plan(&self) -> Rc<Plan> {
        Rc::clone(&self.plan.borrow())
    }

    /// Returns the servers' hosts in ring order, as the cluster file spells them.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.plan().file.servers.iter().map(|line| line.host.to_string()).collect()
    }

    /// Returns the addresses of the coordinator and of the servers, for the stored record.
    pub(super) fn place(&self) -> Place {
        let plan = self.plan();
        Place {
            ports: self.ports,
            listen: plan.listen,
            machine: Some(Machine::this()),
            hosts: plan.file.servers.iter().map(|line| line.host.clone()).collect(),
            routes: plan.routes.clone(),
            moved: self.moved.borrow().clone(),
            elsewhere: self.elsewhere.borrow().clone(),
        }
    }

    /// Returns the line of the host on which a process runs, which may differ from the host of its place.
    pub(super) fn line_of(&self, member: Member) -> ServerLine {
        let line = self.plan().file.servers[index(member)].clone();
        let elsewhere = self.elsewhere.borrow();
        let other = elsewhere.iter().find(|other| other.started.member == member);
        match other {
            Some(other) => ServerLine { host: other.host.clone(), ..line },
            None => line,
        }
    }

    /// Moves a place to a new process, perhaps on another host. Returns the message for the caller, and the process
    /// that had the place.
    ///
    /// # Errors
    /// Nothing is changed; the message has the reason.
    pub(crate) async fn replace(
        self: &Rc<Driver>,
        wanted: &Replacement,
    ) -> Result<(String, Member), String> {
        let id = ServerId(wanted.server);
        let refused = |refused: ReplaceRefused| refused.to_string();
        self.cluster().may_replace(id).map_err(refused)?;
        let before = self.plan().file.servers[usize::from(id.0)].clone();
        let to = wanted.line(&before)?;
        let route = self.plan().ask_for_route(&to).await?;
        // Another request may have changed the plan meanwhile. The rest uses the current plan and does not await.
        self.cluster().may_replace(id).map_err(refused)?;
        if self.plan().file.servers[usize::from(id.0)] != before {
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
                Moved { server: id, from: self.host_in_file(&before), host: to.host, ports };
            advice = format!(". Write its new line into the cluster file: {}", moved.words());
            self.moved.borrow_mut().retain(|moved| moved.server != id);
            self.moved.borrow_mut().push(moved);
        }
        *self.plan.borrow_mut() = Rc::new(plan);
        let given = self.input(|cluster, now, sink| cluster.on_replace(now, id, sink));
        given.map_err(refused)?;
        self.console.say(&said);
        Ok((format!("{said}; coord status shows the progress{advice}"), old))
    }

    /// Waits until another process has the place of this one and holds all its replicas. Returns the message about
    /// it.
    pub(crate) async fn await_replaced(&self, old: Member) -> String {
        let id = old.server;
        let is_home = || {
            let cluster = self.cluster();
            cluster.member(id) != old && cluster.recovery_step(id).is_none()
        };
        while !is_home() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        format!("server {id} is back, with all its copies")
    }

    /// Returns the host that the cluster file names for a place.
    fn host_in_file(&self, line: &ServerLine) -> Host {
        let moved = self.moved.borrow();
        let known = moved.iter().find(|moved| moved.server == line.id);
        known.map_or_else(|| line.host.clone(), |moved| moved.from.clone())
    }

    /// Records the host on which the process of a place runs or may run.
    fn note_elsewhere(&self, id: ServerId, host: &Host) {
        let cluster = self.cluster();
        let is_over = cluster.has_exited(id);
        let Some(started) = cluster.started(id).copied().filter(|_| !is_over) else { return };
        let mut elsewhere = self.elsewhere.borrow_mut();
        if elsewhere.iter().all(|known| known.started.member != started.member) {
            let host = host.clone();
            elsewhere.push(Elsewhere { host, started, is_out_of_reach: false });
        }
    }

    /// Continues moves that an earlier coordinator or an edited cluster file has begun. Places whose processes run
    /// on other hosts move to their new hosts. Processes that have lost their places are killed.
    pub(super) fn go_on_moving(self: &Rc<Driver>) {
        for Elsewhere { started, is_out_of_reach, .. } in self.elsewhere.borrow().clone() {
            let member = started.member;
            let id = member.server;
            if self.cluster().member(id) != member {
                if is_out_of_reach {
                    // It cannot be killed from here; it is rejected wherever it reports.
                    self.forget_elsewhere(member);
                    continue;
                }
                self.watch_given_up(started);
                continue;
            }
            let given = self.input(|cluster, now, sink| cluster.on_replace(now, id, sink));
            if let Err(refused) = given {
                self.console.warn(&format!(
                    "server {id} cannot move to {} now: {refused}; it moves when its process has ended",
                    self.plan().file.servers[usize::from(id.0)].host
                ));
            }
        }
    }

    /// Kills a process of an earlier coordinator that has lost its place. The entry in `killers` belongs to the
    /// current process of the place.
    fn watch_given_up(self: &Rc<Driver>, started: Started) {
        let (killer, kill) = mpsc::channel(1);
        let _ = killer.try_send(());
        self.given_up.borrow_mut().push((started.member, killer));
        self.watch(started, kill);
    }

    /// Kills a process that has lost its place, until it is proven dead. Must be called before its entry in
    /// `killers` is replaced.
    fn give_up(&self, member: Member) {
        if let Some(killer) = self.killers.borrow_mut()[index(member)].take() {
            let _ = killer.try_send(());
            self.given_up.borrow_mut().push((member, killer));
        }
    }

    /// Kills the previous processes of a place that run on other hosts. Called before a process is spawned.
    pub(super) fn give_up_before(&self, member: Member) {
        let elsewhere = self.elsewhere.borrow();
        let of_place = |other: &&Elsewhere| other.started.member.server == member.server;
        let before: Vec<Member> =
            elsewhere.iter().filter(of_place).map(|other| other.started.member).collect();
        drop(elsewhere);
        for other in before.into_iter().filter(|other| *other != member) {
            let is_known = self.given_up.borrow().iter().any(|(known, _)| *known == other);
            if !is_known {
                self.give_up(other);
            }
        }
    }

    /// Removes the record of the host of a process that has ended or is out of reach.
    pub(super) fn forget_elsewhere(self: &Rc<Driver>, member: Member) {
        self.given_up.borrow_mut().retain(|(of, _)| *of != member);
        let known = self.elsewhere.borrow().len();
        self.elsewhere.borrow_mut().retain(|other| other.started.member != member);
        if self.elsewhere.borrow().len() != known {
            self.input(|cluster, now, sink| cluster.store_again(now, sink));
        }
    }

    /// Changes the memory limit of a running cluster, and returns the message for the caller.
    pub(crate) fn set(self: &Rc<Driver>, memory_limit: &str) -> String {
        let before: Vec<u64> = {
            let status = self.cluster().status(clock::now(), &self.hosts());
            status.servers.iter().map(|server| server.table_bytes).collect()
        };
        let mut plan = (*self.plan()).clone();
        plan.settings.memory_limit = Some(memory_limit.to_owned());
        *self.plan.borrow_mut() = Rc::new(plan);
        self.input(|cluster, now, sink| cluster.store_again(now, sink));
        self.settings_told.send_modify(|number| *number += 1);
        let mut said = format!(
            "--memory-limit is {memory_limit} from now on, also for the running servers; coord status shows it"
        );
        let limit = size::parse(memory_limit).unwrap_or(u64::MAX);
        let fuller = before.iter().filter(|bytes| **bytes > limit).count();
        if fuller > 0 {
            said += &format!(
                ". WARNING: {fuller} of {} servers hold more than that: they reject writes, and a server that \
                 replaces one has no room for its copies, until entries are deleted or the limit is raised",
                before.len()
            );
        }
        self.console.say(&said);
        said
    }
}
