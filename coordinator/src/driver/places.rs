//! The places of the ring: the plan, the places that moved, and the processes that run on hosts other than those of
//! their places.

use std::cell::RefCell;
use std::rc::Rc;

use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::control_message::Started;
use kv_protocol::{Member, ServerId};

use crate::machine::Boot;
use crate::place::{Elsewhere, Moved, Place, Ports};
use crate::plan::Plan;

/// The hosts of the places of the ring, and those where their processes may run.
#[derive(Debug)]
pub(super) struct Places {
    plan: RefCell<Rc<Plan>>,
    /// The places that `coord replace` moved to other hosts.
    moved: RefCell<Vec<Moved>>,
    /// The processes that may run on hosts other than those of their places.
    elsewhere: RefCell<Vec<Elsewhere>>,
}

impl Places {
    /// Returns the places of a plan.
    pub(super) fn new(plan: Plan, moved: Vec<Moved>, elsewhere: Vec<Elsewhere>) -> Places {
        Places {
            plan: RefCell::new(Rc::new(plan)),
            moved: RefCell::new(moved),
            elsewhere: RefCell::new(elsewhere),
        }
    }

    /// Returns the current plan. The plan changes when a place moves to another host, and with `coord set`.
    pub(super) fn plan(&self) -> Rc<Plan> {
        Rc::clone(&self.plan.borrow())
    }

    /// Replaces the plan.
    pub(super) fn set_plan(&self, plan: Plan) {
        *self.plan.borrow_mut() = Rc::new(plan);
    }

    /// Returns the servers' hosts in ring order, as the cluster file spells them.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.plan().file.servers.iter().map(|line| line.host.to_string()).collect()
    }

    /// Returns the current line of a server.
    pub(super) fn line(&self, server: ServerId) -> ServerLine {
        self.plan().file.servers[index(server)].clone()
    }

    /// Returns the line of the host on which a process runs, which may differ from the host of its place.
    pub(super) fn line_of(&self, member: Member) -> ServerLine {
        let line = self.line(member.server);
        let elsewhere = self.elsewhere.borrow();
        let other = elsewhere.iter().find(|other| other.started.member == member);
        match other {
            Some(other) => ServerLine { host: other.host.clone(), ..line },
            None => line,
        }
    }

    /// Returns the hosts, ports and addresses of the coordinator and of the servers, for the stored record.
    pub(super) fn stored(&self, ports: Ports) -> Place {
        let plan = self.plan();
        Place {
            ports,
            listen: plan.listen,
            machine: Some(Boot::this()),
            hosts: plan.file.servers.iter().map(|line| line.host.clone()).collect(),
            routes: plan.routes.clone(),
            moved: self.moved.borrow().clone(),
            elsewhere: self.elsewhere.borrow().clone(),
        }
    }

    /// Returns the host that the cluster file names for a place.
    pub(super) fn host_in_file(&self, line: &ServerLine) -> Host {
        let moved = self.moved.borrow();
        let known = moved.iter().find(|moved| moved.server == line.id);
        known.map_or_else(|| line.host.clone(), |moved| moved.from.clone())
    }

    /// Records that `coord replace` moved a place.
    pub(super) fn note_moved(&self, moved: Moved) {
        let mut all = self.moved.borrow_mut();
        all.retain(|other| other.server != moved.server);
        all.push(moved);
    }

    /// Returns the processes that may run on hosts other than those of their places.
    pub(super) fn elsewhere(&self) -> Vec<Elsewhere> {
        self.elsewhere.borrow().clone()
    }

    /// Records the host on which a process runs or may run.
    pub(super) fn note_elsewhere(&self, started: Started, host: &Host) {
        let mut elsewhere = self.elsewhere.borrow_mut();
        if elsewhere.iter().all(|known| known.started.member != started.member) {
            let host = host.clone();
            elsewhere.push(Elsewhere { host, started, is_out_of_reach: false });
        }
    }

    /// Removes the record of a process's host. Returns whether there was one.
    pub(super) fn forget_elsewhere(&self, member: Member) -> bool {
        let mut elsewhere = self.elsewhere.borrow_mut();
        let known = elsewhere.len();
        elsewhere.retain(|other| other.started.member != member);
        elsewhere.len() != known
    }
}

/// Returns the index of a place in lists by server.
pub(super) fn index(server: ServerId) -> usize {
    usize::from(server.0)
}
