//! Flags that hold for as long as the cluster does: stored with its state, so that a later coordinator
//! need not be given them again. One that is given again counts from then on.

use std::time::Duration;

use kv_protocol::FailureTimeout;
use serde::{Deserialize, Serialize};

use crate::args::{Args, NetEngine, OnDoubleFault};

/// The `--orphan-timeout` of a cluster that was given none.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(3_600);

/// What was said, or holds where nothing was. A state of a coordinator that stored none of it has these
/// defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) on_double_fault: OnDoubleFault,
    /// For the tables of one server, as it was written.
    pub(crate) memory_limit: Option<String>,
    /// For the connections of one server, as it was written.
    pub(crate) connection_memory: Option<String>,
    /// After how long without a coordinator a server gives up; zero for never.
    pub(crate) orphan_timeout: Duration,
    pub(crate) net: NetEngine,
    /// After how long a silence a server is suspected; leases follow from it, so all processes must agree on it.
    pub(crate) failure_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            on_double_fault: OnDoubleFault::default(),
            memory_limit: None,
            connection_memory: None,
            orphan_timeout: ORPHAN_TIMEOUT,
            net: NetEngine::default(),
            failure_timeout: FailureTimeout::DEFAULT.timeout(),
        }
    }
}

impl Settings {
    /// These, but for what the flags say.
    pub(crate) fn with(&self, args: &Args) -> Settings {
        Settings {
            on_double_fault: args.on_double_fault.unwrap_or(self.on_double_fault),
            memory_limit: args.memory_limit.clone().or_else(|| self.memory_limit.clone()),
            connection_memory: args
                .connection_memory
                .clone()
                .or_else(|| self.connection_memory.clone()),
            orphan_timeout: args.orphan_timeout.unwrap_or(self.orphan_timeout),
            net: args.net.unwrap_or(self.net),
            failure_timeout: args.failure_timeout.unwrap_or(self.failure_timeout),
        }
    }

    /// The same for a cluster whose servers run: they hold leases by its failure timeout, so it stays.
    pub(crate) fn with_running(&self, args: &Args) -> Settings {
        Settings { failure_timeout: self.failure_timeout, ..self.with(args) }
    }

    /// A line if the flags ask for another failure timeout than the one that stays.
    pub(crate) fn kept_timeout(&self, args: &Args) -> Option<String> {
        let asked = args.failure_timeout.filter(|asked| *asked != self.failure_timeout)?;
        Some(format!(
            "--failure-timeout stays {} s, not {} s: servers that run hold leases by it; stop the cluster and \
             restore it to change it",
            self.failure_timeout.as_secs_f64(),
            asked.as_secs_f64()
        ))
    }

    /// A line for each that was another one before. What a server is told at its start it keeps.
    pub(crate) fn changes_since(&self, before: &Settings, servers_run: bool) -> Vec<String> {
        let keep = if servers_run { "; servers that run already keep what they have" } else { "" };
        let limit =
            |settings: &Settings| settings.memory_limit.clone().unwrap_or("the default".into());
        let connections = |settings: &Settings| {
            settings.connection_memory.clone().unwrap_or("the default".into())
        };
        let seconds = |settings: &Settings| settings.orphan_timeout.as_secs_f64().to_string();
        let timeout = |settings: &Settings| settings.failure_timeout.as_secs_f64().to_string();
        let net = |settings: &Settings| settings.net.to_string();
        let policy = |settings: &Settings| settings.on_double_fault.to_string();
        let all = [
            ("--on-double-fault", policy(self), policy(before), ""),
            ("--memory-limit", limit(self), limit(before), keep),
            ("--connection-memory", connections(self), connections(before), keep),
            ("--orphan-timeout", seconds(self), seconds(before), keep),
            ("--net", net(self), net(before), keep),
            ("--failure-timeout", timeout(self), timeout(before), keep),
        ];
        let changed = all.into_iter().filter(|(_, now, was, _)| now != was);
        changed
            .map(|(flag, now, was, keep)| {
                format!("{flag} is {now} from now on, no longer {was}{keep}")
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn given(flags: &str) -> Args {
        Args::try_parse_from(format!("coord -C file{flags}").split(' ')).unwrap()
    }

    #[test]
    fn the_memory_of_connections_stays_until_it_is_given_anew() {
        let before = Settings::default().with(&given(" --connection-memory 64M"));
        assert_eq!(before.with(&given("")).connection_memory.as_deref(), Some("64M"));
        let told = before.with(&given(" --connection-memory 80M")).changes_since(&before, false);
        assert_eq!(told, ["--connection-memory is 80M from now on, no longer 64M"]);
    }

    #[test]
    fn what_is_not_said_again_stays_and_what_is_counts_and_is_told() {
        let first =
            " --on-double-fault isolate --memory-limit 1G --orphan-timeout 0 --net tcpstream";
        let before = Settings::default().with(&given(first));
        let after = before.with(&given(""));
        assert_eq!(after, before);
        assert!(after.changes_since(&before, true).is_empty());

        let after = before.with(&given(" --on-double-fault shutdown --memory-limit 2G"));
        assert_eq!(after.orphan_timeout, Duration::ZERO);
        assert_eq!(after.net, NetEngine::TcpStream);
        let told = after.changes_since(&before, true);
        assert_eq!(
            told,
            [
                "--on-double-fault is shutdown from now on, no longer isolate",
                "--memory-limit is 2G from now on, no longer 1G; servers that run already keep what \
                 they have",
            ]
        );
        assert!(!after.changes_since(&before, false)[1].contains("keep"), "nobody runs");
    }

    #[test]
    fn the_failure_timeout_of_servers_that_run_stays_and_a_restore_may_change_it() {
        let before = Settings::default().with(&given(" -t 2"));
        assert_eq!(before.failure_timeout, Duration::from_secs(2));
        let other = given(" --failure-timeout 3");
        assert_eq!(before.with_running(&other), before);
        let told = before.kept_timeout(&other).unwrap();
        assert!(told.contains("stays 2 s, not 3 s"), "{told}");
        assert_eq!(before.kept_timeout(&given("")), None);
        assert_eq!(before.kept_timeout(&given(" -t 2")), None);
        let restored = before.with(&other);
        assert_eq!(
            restored.changes_since(&before, false),
            ["--failure-timeout is 3 from now on, no longer 2"]
        );
    }
}
