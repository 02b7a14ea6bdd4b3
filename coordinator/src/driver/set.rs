//! `coord set`: changes settings of a running cluster and of its servers.

use std::rc::Rc;

use kv_protocol::size;

use super::context::Driver;
use crate::clock;

impl Driver {
    /// Changes the memory limit of a running cluster, and returns the message for the caller.
    pub(super) fn set(self: &Rc<Driver>, memory_limit: &str) -> String {
        let before: Vec<u64> = {
            let status = self.cluster().status(clock::now(), &self.places.hosts());
            status.servers.iter().map(|server| server.table_bytes).collect()
        };
        let mut plan = (*self.plan()).clone();
        plan.settings.memory_limit = Some(memory_limit.to_owned());
        self.places.set_plan(plan);
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
