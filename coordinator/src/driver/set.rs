//! `coord set`: changes settings of a running cluster and of its servers.

use std::rc::Rc;

use kv_protocol::Eviction;
use kv_protocol::size;

use super::context::Driver;
use crate::clock;
use crate::stop_port::Setting;

impl Driver {
    /// Changes settings of a running cluster, and returns the message for the caller.
    pub(super) fn set(self: &Rc<Driver>, setting: &Setting) -> String {
        let mut plan = (*self.plan()).clone();
        let mut changes = Vec::new();
        if let Some(limit) = &setting.memory_limit {
            plan.settings.memory_limit = Some(limit.clone());
            changes.push(format!("--memory-limit is {limit}"));
        }
        if let Some(policy) = setting.eviction {
            plan.settings.eviction = policy;
            changes.push(format!("--eviction is {policy}"));
        }
        let eviction = plan.settings.eviction;
        let useless = plan.settings.useless_eviction();
        self.places.set_plan(plan);
        self.input(|cluster, now, sink| cluster.store_again(now, sink));
        self.settings_told.send_modify(|number| *number += 1);
        let mut said = format!(
            "{} from now on, also for the running servers; coord status shows it",
            changes.join(", ")
        );
        if let Some(limit) = &setting.memory_limit {
            said += &self.fuller_than(limit, eviction);
        }
        if let Some(warning) = useless {
            said += &format!(". WARNING: {warning}");
        }
        self.console.say(&said);
        said
    }

    /// Returns a warning, as the end of a message, if servers hold more than this memory limit.
    fn fuller_than(&self, limit: &str, eviction: Eviction) -> String {
        let status = self.cluster().status(clock::now(), &self.places.hosts());
        let limit = size::parse(limit).unwrap_or(u64::MAX);
        let fuller = status.servers.iter().filter(|server| server.table_bytes > limit).count();
        let effect = match eviction {
            Eviction::None => {
                "they reject writes, and a server that replaces one has no room for its copies, until entries are \
                 deleted or the limit is raised"
            }
            _ => "they evict entries until the tables fit",
        };
        match fuller {
            0 => String::new(),
            _ => format!(
                ". WARNING: {fuller} of {} servers hold more than that: {effect}",
                status.servers.len()
            ),
        }
    }
}
