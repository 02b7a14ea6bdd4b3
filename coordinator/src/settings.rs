//! Settings that apply for the life of the cluster. They are stored with its state, so that a later coordinator needs
//! no flags for them. A flag that is given again overrides the stored setting.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_protocol::cluster_file::{ClusterFile, Host};
use kv_protocol::limits::DEFAULT_DEADLINE;
use kv_protocol::unix::{MAX_SOCKET_PATH, socket_name};
use kv_protocol::{Eviction, FailureTimeout, RedisMulti, ServerId};
use serde::{Deserialize, Serialize};

use crate::args::{Args, NetEngine, OnDoubleFault};

/// The default of `--orphan-timeout`.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(3_600);
/// The default of `--remote-dir`; scripts/launch-cluster.sh relies on it.
pub(crate) const REMOTE_DIR: &str = "ftkv";

/// The settings, given or default. A setting that is missing in a stored state gets its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) on_double_fault: OnDoubleFault,
    /// The memory limit of one server's tables, as written.
    pub(crate) memory_limit: Option<String>,
    pub(crate) eviction: Eviction,
    /// The memory limit of one server's connections, as written.
    pub(crate) connection_memory: Option<String>,
    /// The time without a coordinator after which a server dumps and exits; zero for never.
    pub(crate) orphan_timeout: Duration,
    /// The ports for Redis clients only, as written.
    pub(crate) redis_port: Option<String>,
    /// The time after which a server gives up the request of a Redis client.
    pub(crate) redis_deadline: Duration,
    /// The treatment of transactions of Redis clients with keys of several shards.
    pub(crate) redis_multi: RedisMulti,
    /// The directory of the servers' Unix-domain sockets, or `none`, as written.
    pub(crate) unix: Option<String>,
    pub(crate) net: NetEngine,
    /// The silence after which a server is suspected. The duration of leases depends on this setting, so all processes
    /// must use the same value.
    pub(crate) failure_timeout: Duration,
    /// The servers' directory on ssh hosts, relative to the login's home directory.
    pub(crate) remote_dir: String,
    /// The file for `ssh -F`, absolute because a later coordinator may start in another directory.
    pub(crate) ssh_config: Option<PathBuf>,
    /// The address by which the other hosts reach the coordinator's machine.
    pub(crate) advertise: Option<IpAddr>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            on_double_fault: OnDoubleFault::default(),
            memory_limit: None,
            eviction: Eviction::default(),
            connection_memory: None,
            orphan_timeout: ORPHAN_TIMEOUT,
            redis_port: None,
            redis_deadline: DEFAULT_DEADLINE,
            redis_multi: RedisMulti::default(),
            unix: None,
            net: NetEngine::default(),
            failure_timeout: FailureTimeout::DEFAULT.timeout(),
            remote_dir: REMOTE_DIR.to_owned(),
            ssh_config: None,
            advertise: None,
        }
    }
}

impl Settings {
    /// Returns these settings with the flags applied.
    pub(crate) fn with(&self, args: &Args) -> Settings {
        Settings {
            on_double_fault: args.on_double_fault.unwrap_or(self.on_double_fault),
            memory_limit: args.memory_limit.clone().or_else(|| self.memory_limit.clone()),
            eviction: args.eviction.unwrap_or(self.eviction),
            connection_memory: args
                .connection_memory
                .clone()
                .or_else(|| self.connection_memory.clone()),
            orphan_timeout: args.orphan_timeout.unwrap_or(self.orphan_timeout),
            redis_port: args.redis_port.clone().or_else(|| self.redis_port.clone()),
            redis_deadline: args.redis_deadline.unwrap_or(self.redis_deadline),
            redis_multi: args.redis_multi.unwrap_or(self.redis_multi),
            unix: args.unix.clone().or_else(|| self.unix.clone()),
            net: args.net.unwrap_or(self.net),
            failure_timeout: args.failure_timeout.unwrap_or(self.failure_timeout),
            remote_dir: args.remote_dir.clone().unwrap_or_else(|| self.remote_dir.clone()),
            ssh_config: args.ssh_config.clone().or_else(|| self.ssh_config.clone()),
            advertise: args.advertise.or(self.advertise),
        }
    }

    /// Returns these settings with the flags applied, for a cluster with running servers. The failure timeout is kept,
    /// because the leases of these servers depend on it.
    pub(crate) fn with_running(&self, args: &Args) -> Settings {
        Settings { failure_timeout: self.failure_timeout, ..self.with(args) }
    }

    /// Returns a message if the flags request a failure timeout other than the one that is kept.
    pub(crate) fn kept_timeout(&self, args: &Args) -> Option<String> {
        let asked = args.failure_timeout.filter(|asked| *asked != self.failure_timeout)?;
        Some(format!(
            "--failure-timeout stays {} s, not {} s: the leases of running servers depend on it; to change it, \
             stop the cluster and restore it",
            self.failure_timeout.as_secs_f64(),
            asked.as_secs_f64()
        ))
    }

    /// Returns the port for Redis clients of the server at this place, if there is one.
    pub(crate) fn redis_port_of(&self, server: ServerId) -> Option<u16> {
        let ports: Vec<&str> = self.redis_port.as_deref()?.split(',').collect();
        let port = if ports == ["0"] { ports[0] } else { *ports.get(usize::from(server.0))? };
        port.parse().ok()
    }

    /// Checks that there is a port for Redis clients for each of this number of servers, or for none.
    ///
    /// # Errors
    /// The words for the user if there are more or fewer.
    pub(crate) fn check_redis_ports(&self, servers: usize) -> Result<(), String> {
        let Some(ports) =
            self.redis_port.as_deref().filter(|ports| !matches!(*ports, "0" | "none"))
        else {
            return Ok(());
        };
        let given = ports.split(',').count();
        match given == servers {
            true => Ok(()),
            false => Err(format!(
                "--redis-port {ports} has {given} ports, but the cluster file has {servers} servers; give one for each, or 0"
            )),
        }
    }

    /// Returns the directory of the servers' sockets, if they have any.
    pub(crate) fn unix_dir(&self) -> Option<&Path> {
        self.unix.as_deref().filter(|dir| *dir != "none").map(Path::new)
    }

    /// Checks that the path of every server's socket is short enough, and that the directory exists if servers run on
    /// this machine. The servers on other hosts check theirs.
    ///
    /// # Errors
    /// The words for the user.
    pub(crate) fn check_unix(&self, file: &ClusterFile) -> Result<(), String> {
        let Some(dir) = self.unix_dir() else { return Ok(()) };
        let shown = dir.display();
        let last = file.servers.iter().map(|line| line.id).max().unwrap_or_default();
        let path = dir.join(socket_name(last));
        let bytes = path.as_os_str().len();
        if bytes > MAX_SOCKET_PATH {
            return Err(format!(
                "--unix {shown}: the path {} has {bytes} bytes, and the path of a socket has at most \
                 {MAX_SOCKET_PATH}; choose a directory with a shorter path",
                path.display()
            ));
        }
        let is_here = file.servers.iter().any(|line| line.host == Host::Local);
        match is_here && !dir.is_dir() {
            true => Err(format!("--unix {shown} is not a directory; create it first")),
            false => Ok(()),
        }
    }

    /// Returns a warning if the policy of eviction has no effect.
    pub(crate) fn useless_eviction(&self) -> Option<String> {
        let is_useless =
            self.eviction != Eviction::None && self.memory_limit.as_deref() == Some("none");
        is_useless.then(|| {
            format!(
                "--eviction {} has no effect with --memory-limit none: nothing is ever evicted; set a memory limit, or \
                 --eviction none",
                self.eviction
            )
        })
    }

    /// Returns every setting as its flag and its value, or `None` if it was not given.
    fn flags(&self) -> [(&'static str, Option<String>); 14] {
        let seconds = |time: Duration| Some(time.as_secs_f64().to_string());
        [
            ("--on-double-fault", Some(self.on_double_fault.to_string())),
            ("--memory-limit", self.memory_limit.clone()),
            ("--eviction", Some(self.eviction.to_string())),
            ("--connection-memory", self.connection_memory.clone()),
            ("--orphan-timeout", seconds(self.orphan_timeout)),
            ("--redis-port", self.redis_port.clone()),
            ("--redis-deadline", seconds(self.redis_deadline)),
            ("--redis-multi", Some(self.redis_multi.to_string())),
            ("--unix", self.unix.clone()),
            ("--net", Some(self.net.to_string())),
            ("--failure-timeout", seconds(self.failure_timeout)),
            ("--remote-dir", Some(self.remote_dir.clone())),
            ("--ssh-config", self.ssh_config.as_ref().map(|path| path.display().to_string())),
            ("--advertise", self.advertise.map(|address| address.to_string())),
        ]
    }

    /// Returns the settings by name, as the status shows them, without those that were not given.
    pub(crate) fn shown(&self) -> BTreeMap<String, String> {
        let name = |flag: &str| flag.trim_start_matches('-').to_owned();
        self.flags().into_iter().filter_map(|(flag, value)| Some((name(flag), value?))).collect()
    }

    /// Returns a message for each changed setting. If `servers_run`, the message about a setting of the servers adds
    /// its effect on running servers.
    pub(crate) fn changes_since(&self, before: &Settings, servers_run: bool) -> Vec<String> {
        let changed = self.flags().into_iter().zip(before.flags()).filter(|(now, was)| now != was);
        changed
            .map(|((flag, now), (_, was))| {
                let effect = if servers_run { effect_on_running_servers(flag) } else { "" };
                let shown = |value: Option<String>| value.unwrap_or("the default".into());
                let (now, was) = (shown(now), shown(was));
                format!("{flag} is {now} from now on, no longer {was}{effect}")
            })
            .collect()
    }
}

/// Returns the effect of a changed setting on running servers, as the end of a message. Running servers receive the
/// memory limit, the policy of eviction and the coordinator's address in the message SETTINGS.
fn effect_on_running_servers(flag: &str) -> &'static str {
    match flag {
        // Settings of the coordinator.
        "--on-double-fault" | "--remote-dir" | "--ssh-config" => "",
        "--memory-limit" | "--eviction" => "; running servers use it too",
        "--advertise" => {
            "; running servers receive it as the coordinator's address, and keep their own addresses"
        }
        _ => "; running servers keep the old value",
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
    fn eviction_without_a_memory_limit_has_a_warning() {
        let warning = |flags| Settings::default().with(&given(flags)).useless_eviction();
        let text = warning(" --eviction lfu --memory-limit none").expect("a warning");
        assert!(
            text.starts_with("--eviction lfu has no effect with --memory-limit none"),
            "{text}"
        );
        assert_eq!(warning(" --eviction lfu --memory-limit 1G"), None);
        assert_eq!(warning(" --eviction lfu"), None);
        assert_eq!(warning(" --memory-limit none"), None);
    }

    #[test]
    fn eviction_is_kept_until_it_is_given_again() {
        let before = Settings::default().with(&given(" --eviction lfu"));
        assert_eq!(before.with(&given("")).eviction, Eviction::Lfu);
        assert_eq!(before.shown()["eviction"], "lfu");
        let told = before.with(&given(" --eviction none")).changes_since(&before, true);
        assert_eq!(
            told,
            ["--eviction is none from now on, no longer lfu; running servers use it too"]
        );
    }

    #[test]
    fn connection_memory_is_kept_until_it_is_given_again() {
        let before = Settings::default().with(&given(" --connection-memory 64M"));
        assert_eq!(before.with(&given("")).connection_memory.as_deref(), Some("64M"));
        let told = before.with(&given(" --connection-memory 80M")).changes_since(&before, false);
        assert_eq!(told, ["--connection-memory is 80M from now on, no longer 64M"]);
    }

    #[test]
    fn omitted_settings_are_kept_and_changed_ones_are_reported() {
        let first = " --on-double-fault isolate --memory-limit 1G --orphan-timeout 0 --net epoll";
        let before = Settings::default().with(&given(first));
        let after = before.with(&given(""));
        assert_eq!(after, before);
        assert!(after.changes_since(&before, true).is_empty());

        let flags = " --on-double-fault shutdown --memory-limit 2G --connection-memory 80M";
        let after = before.with(&given(flags));
        assert_eq!(after.orphan_timeout, Duration::ZERO);
        assert_eq!(after.net, NetEngine::Epoll);
        let told = after.changes_since(&before, true);
        assert_eq!(
            told,
            [
                "--on-double-fault is shutdown from now on, no longer isolate",
                "--memory-limit is 2G from now on, no longer 1G; running servers use it too",
                "--connection-memory is 80M from now on, no longer the default; running servers keep the old value",
            ]
        );
        let told = after.changes_since(&before, false);
        assert!(
            told.iter().all(|line| !line.contains("running servers")),
            "no server runs: {told:?}"
        );
    }

    #[test]
    fn each_server_has_its_port_for_redis_clients() {
        let port = |flags: &str, server| {
            Settings::default().with(&given(flags)).redis_port_of(ServerId(server))
        };
        assert_eq!(port("", 0), None);
        assert_eq!(port(" --redis-port none", 0), None);
        assert_eq!(port(" --redis-port 0", 2), Some(0));
        assert_eq!(port(" --redis-port 7,8,9", 1), Some(8));
        let check = |flags| Settings::default().with(&given(flags)).check_redis_ports(3);
        assert_eq!(check(" --redis-port 7,8,9"), Ok(()));
        assert!(check(" --redis-port 7,8").unwrap_err().contains("2 ports"));
        for wrong in ["x", "7,7", "7,0", "70000", ""] {
            let flag = format!("--redis-port={wrong}");
            assert!(Args::try_parse_from(["coord", "-C", "file", &flag]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_directory_of_sockets_is_absolute_exists_and_has_a_short_path() {
        let file = |host: &str| {
            ClusterFile::parse(&format!("3\n{0} 0 0 0\n{0} 0 0 0\n{0} 0 0 0\n", host)).unwrap()
        };
        let (here, there) = (file("localhost"), file("kv@db"));
        let settings = |dir: &str| Settings::default().with(&given(&format!(" --unix {dir}")));
        let check = |dir: &str, file| settings(dir).check_unix(file);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(check(path, &here), Ok(()));
        let missing = format!("{path}/none");
        assert!(check(&missing, &here).unwrap_err().contains("create it first"));
        assert_eq!(check(&missing, &there), Ok(()), "the servers look for it on their host");
        let longest = format!("/{}", "d".repeat(MAX_SOCKET_PATH - "//server_2.sock".len()));
        assert_eq!(check(&longest, &there), Ok(()));
        assert!(check(&format!("{longest}d"), &there).unwrap_err().contains("at most 107"));
        let kept = settings(path).with(&given(""));
        assert_eq!((kept.unix_dir(), kept.shown()["unix"].as_str()), (Some(dir.path()), path));
        assert_eq!(kept.with(&given(" --unix none")).unix_dir(), None);
        assert!(Args::try_parse_from(["coord", "-C", "file", "--unix=run/kv"]).is_err());
    }

    #[test]
    fn the_treatment_of_transactions_is_kept_until_it_is_given_again() {
        assert_eq!(Settings::default().shown()["redis-multi"], "refuse");
        let before = Settings::default().with(&given(" --redis-multi ordered"));
        assert_eq!(before.with(&given("")).redis_multi, RedisMulti::Ordered);
        let told = before.with(&given(" --redis-multi refuse")).changes_since(&before, true);
        assert_eq!(
            told,
            [
                "--redis-multi is refuse from now on, no longer ordered; running servers keep the old value"
            ]
        );
    }

    #[test]
    fn ssh_settings_are_kept_and_a_relative_path_becomes_absolute() {
        let first = " --remote-dir kv/1 --ssh-config my/config --advertise 10.0.0.7";
        let before = Settings::default().with(&given(first));
        let config = std::env::current_dir().unwrap().join("my/config");
        assert_eq!(before.ssh_config.as_deref(), Some(&*config));
        assert_eq!(before.with(&given("")), before);
        let after = before.with(&given(" --remote-dir kv/2 --advertise 10.0.0.8"));
        assert_eq!(
            after.changes_since(&before, true),
            [
                "--remote-dir is kv/2 from now on, no longer kv/1",
                "--advertise is 10.0.0.8 from now on, no longer 10.0.0.7; running servers receive it as the \
                 coordinator's address, and keep their own addresses",
            ]
        );
        let shown = after.shown();
        assert_eq!(shown["remote-dir"], "kv/2");
        assert_eq!(shown["ssh-config"], config.display().to_string());
        assert_eq!(shown.get("memory-limit"), None);
    }

    #[test]
    fn a_state_stored_without_settings_has_the_defaults() {
        let old = r#"{"on_double_fault":"isolate","net":"auto"}"#;
        let read: Settings = serde_json::from_str(old).unwrap();
        let expected = Settings { on_double_fault: OnDoubleFault::Isolate, ..Settings::default() };
        assert_eq!(read, expected);
        assert_eq!(Settings::default().remote_dir, REMOTE_DIR);
    }

    #[test]
    fn the_former_name_of_an_engine_is_read_and_stored_as_its_current_name() {
        let old: Settings = serde_json::from_str(r#"{"net":"tcpstream"}"#).unwrap();
        assert_eq!(old.net, NetEngine::Epoll);
        let stored = serde_json::to_string(&old).unwrap();
        assert!(stored.contains(r#""net":"epoll""#), "{stored}");
    }

    #[test]
    fn the_failure_timeout_of_running_servers_is_kept_and_a_restore_may_change_it() {
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
