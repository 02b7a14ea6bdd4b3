//! Places that go to new processes while the cluster serves, most often on other hosts: `coord replace`, and a cluster
//! file that was changed while no coordinator ran.
//!
//! ```text
//!   new host asked (ssh) -> plan, `elsewhere`  --+ one store: where the place is, and where its process still runs
//!                           Cluster::on_replace -+
//!   Effect::Spawn: on the new host; whoever had the place and is not proven dead is killed until it is
//! ```

use super::*;
use crate::stop_port::Replacement;

/// How often it is looked whether a place that was given away is filled.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Driver {
    /// What is decided before a server is started; it changes when a place goes to another host, and with
    /// `coord set`.
    pub(crate) fn plan(&self) -> Rc<Plan> {
        Rc::clone(&self.plan.borrow())
    }

    /// The servers' hosts, as the cluster file writes them, in ring order.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.plan().file.servers.iter().map(|line| line.host.to_string()).collect()
    }

    /// Where everybody is found.
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

    /// The line of the host that a process runs on; that of its place may be another one by now.
    pub(super) fn line_of(&self, member: Member) -> ServerLine {
        let line = self.plan().file.servers[index(member)].clone();
        let elsewhere = self.elsewhere.borrow();
        let other = elsewhere.iter().find(|other| other.started.member == member);
        match other {
            Some(other) => ServerLine { host: other.host.clone(), ..line },
            None => line,
        }
    }

    /// Gives a place to another process, perhaps on another host; what a person should know then, and the process
    /// that had the place.
    ///
    /// # Errors
    /// Nothing is changed; with the reason.
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
        // Others may have asked for something meanwhile: what follows is done in one go, on the plan of now.
        self.cluster().may_replace(id).map_err(refused)?;
        if self.plan().file.servers[usize::from(id.0)] != before {
            return Err("somebody else moves this server at the moment".to_owned());
        }
        let plan = self.plan().with_line(to.clone(), route);
        let old = self.cluster().member(id);
        self.note_elsewhere(id, &before.host);
        let (mut said, mut advice) =
            (format!("server {id} is started anew on {}", to.host), String::new());
        if to != before {
            said = format!("server {id} goes from {} to {}", before.host, to.host);
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
        Ok((format!("{said}; coord status shows how far it is{advice}"), old))
    }

    /// Waits until another process than this one has its place and holds all that belongs there; says so.
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

    /// The host that the cluster file names for a place.
    fn host_in_file(&self, line: &ServerLine) -> Host {
        let moved = self.moved.borrow();
        let known = moved.iter().find(|moved| moved.server == line.id);
        known.map_or_else(|| line.host.clone(), |moved| moved.from.clone())
    }

    /// Notes where the process of a place still runs, or may run.
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

    /// Goes on with what an earlier coordinator, or a changed cluster file, has begun: places whose processes run on
    /// other hosts go to their new ones, and whoever has lost its place is killed.
    pub(super) fn go_on_moving(self: &Rc<Driver>) {
        for Elsewhere { started, is_out_of_reach, .. } in self.elsewhere.borrow().clone() {
            let member = started.member;
            let id = member.server;
            if self.cluster().member(id) != member {
                if is_out_of_reach {
                    // Nobody can end it; it is refused wherever it reports.
                    self.forget_elsewhere(member);
                    continue;
                }
                self.watch_given_up(started);
                continue;
            }
            let given = self.input(|cluster, now, sink| cluster.on_replace(now, id, sink));
            if let Err(refused) = given {
                self.console.warn(&format!(
                    "server {id} cannot go to {} now: {refused}; it does when its process has ended",
                    self.plan().file.servers[usize::from(id.0)].host
                ));
            }
        }
    }

    /// Has a process of an earlier coordinator killed that has lost its place. Whoever has the place has the killer's.
    fn watch_given_up(self: &Rc<Driver>, started: Started) {
        let (killer, kill) = mpsc::channel(1);
        let _ = killer.try_send(());
        self.given_up.borrow_mut().push((started.member, killer));
        self.watch(started, kill);
    }

    /// Has a process killed that has lost its place, until it is proven dead. Called before another one has its
    /// killer's place.
    fn give_up(&self, member: Member) {
        if let Some(killer) = self.killers.borrow_mut()[index(member)].take() {
            let _ = killer.try_send(());
            self.given_up.borrow_mut().push((member, killer));
        }
    }

    /// Before a process is spawned: has whoever had its place killed, if it runs elsewhere.
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

    /// A process has ended: nothing needs to be remembered of where it ran.
    pub(super) fn forget_elsewhere(self: &Rc<Driver>, member: Member) {
        self.given_up.borrow_mut().retain(|(of, _)| *of != member);
        let known = self.elsewhere.borrow().len();
        self.elsewhere.borrow_mut().retain(|other| other.started.member != member);
        if self.elsewhere.borrow().len() != known {
            self.input(|cluster, now, sink| cluster.store_again(now, sink));
        }
    }

    /// Changes settings of a cluster that runs; what a person should know then.
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
            "--memory-limit is {memory_limit} from now on, also of the servers that run; coord status shows it"
        );
        let limit = size::parse(memory_limit).unwrap_or(u64::MAX);
        let fuller = before.iter().filter(|bytes| **bytes > limit).count();
        if fuller > 0 {
            said += &format!(
                ". WARNING: {fuller} of {} servers hold more than that: they refuse writes, and whoever replaces one \
                 has no room for its copies, until entries are deleted or the limit is raised",
                before.len()
            );
        }
        self.console.say(&said);
        said
    }
}
