//! The command line of a server's process, as the plan specifies it.

use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::limits::DEFAULT_DEADLINE;
use kv_protocol::{ClusterId, Eviction, Member, RedisMulti};

use super::Plan;
use crate::quote;
use crate::spawn::log_name;
use crate::spawn::ssh::plain_command;
use crate::survey;

impl Plan {
    /// Returns the arguments with which a server is started.
    pub(crate) fn server_arguments(
        &self,
        line: &ServerLine,
        cluster: ClusterId,
        member: Member,
        servers_port: u16,
    ) -> Vec<String> {
        let route = &self.routes[usize::from(line.id.0)];
        let mut arguments: Vec<String> = Vec::new();
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("-h", route.coordinator.to_string());
        flag("-m", servers_port.to_string());
        flag("-c", line.clients_port.to_string());
        flag("-s", line.servers_port.to_string());
        flag("-M", line.coord_port.to_string());
        flag("-S", line.id.to_string());
        flag("-n", self.file.count().to_string());
        flag("-l", log_name(line));
        flag("--shards", self.shards.to_string());
        flag("--cluster-id", cluster.to_string());
        flag("--incarnation", member.incarnation.to_string());
        flag("--bind", route.bind.to_string());
        flag("--advertise", route.advertise.to_string());
        flag("--orphan-timeout", self.settings.orphan_timeout.as_secs_f64().to_string());
        flag("--net", self.settings.net.to_string());
        flag("--failure-timeout", self.settings.failure_timeout.as_secs_f64().to_string());
        flag("--share", survey::servers_on(&self.file, &line.host).to_string());
        if let Some(limit) = &self.settings.memory_limit {
            flag("--memory-limit", limit.clone());
        }
        if self.settings.eviction != Eviction::None {
            flag("--eviction", self.settings.eviction.to_string());
        }
        if let Some(bytes) = &self.settings.connection_memory {
            flag("--connection-memory", bytes.clone());
        }
        if let Some(port) = self.settings.redis_port_of(line.id) {
            flag("--redis-port", port.to_string());
        }
        if self.settings.redis_deadline != DEFAULT_DEADLINE {
            flag("--redis-deadline", self.settings.redis_deadline.as_secs_f64().to_string());
        }
        if self.settings.redis_multi != RedisMulti::default() {
            flag("--redis-multi", self.settings.redis_multi.to_string());
        }
        if let Some(dir) = self.settings.unix_dir() {
            flag("--unix", dir.display().to_string());
        }
        if self.hash_tags {
            arguments.push("--hash-tags".to_owned());
        }
        if self.core_dumps {
            arguments.push("--core-dumps".to_owned());
        }
        arguments
    }

    /// Returns the command that starts a server, in a form that an operator can repeat.
    pub(crate) fn command_line(&self, line: &ServerLine, arguments: &[String]) -> String {
        match &line.host {
            Host::Local => {
                let words = std::iter::once(self.binary.to_string_lossy().into_owned());
                let words: Vec<String> = words.chain(arguments.iter().cloned()).collect();
                format!(
                    "cd {} && {}",
                    quote::word(&self.dir.to_string_lossy()),
                    quote::words(&words)
                )
            }
            Host::Ssh { .. } => {
                let there = plain_command(&self.ssh.remote_dir, arguments);
                format!("ssh {} {}", line.host, quote::word(&there))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use kv_protocol::cluster_file::ClusterFile;
    use kv_protocol::{Incarnation, ServerId};

    use super::*;
    use crate::place::Route;
    use crate::settings::Settings;
    use crate::spawn::ssh::Ssh;

    fn plan() -> Plan {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let route = Route { coordinator: local, bind: local, advertise: local };
        Plan {
            file: ClusterFile::parse("3\nlocalhost 0 0 0\nkv@db 7 8 9\nlocalhost 0 0 0\n").unwrap(),
            dir: "/tmp/it is".into(),
            binary: "/opt/server".into(),
            ssh: Ssh { config: None, remote_dir: "kv dir".into() },
            shards: 2,
            hash_tags: false,
            settings: Settings {
                memory_limit: Some("1G".into()),
                eviction: Eviction::Ttl,
                connection_memory: Some("64M".into()),
                orphan_timeout: Duration::from_millis(500),
                ..Settings::default()
            },
            core_dumps: false,
            listen: local,
            routes: vec![route; 3],
        }
    }

    fn arguments(plan: &Plan, n: u16) -> Vec<String> {
        let member = Member { server: ServerId(n), incarnation: Incarnation(0xbeef) };
        plan.server_arguments(&plan.file.servers[usize::from(n)], ClusterId(0xc), member, 4_000)
    }

    #[test]
    fn a_server_gets_all_arguments_that_it_needs() {
        let words = arguments(&plan(), 1).join(" ");
        assert_eq!(
            words,
            "-h 127.0.0.1 -m 4000 -c 7 -s 8 -M 9 -S 1 -n 3 -l server_1.log --shards 2 \
             --cluster-id 0000000000000000000000000000000c --incarnation 000000000000beef \
             --bind 127.0.0.1 --advertise 127.0.0.1 --orphan-timeout 0.5 --net auto \
             --failure-timeout 0.5 --share 1 --memory-limit 1G --eviction ttl --connection-memory 64M"
        );
    }

    #[test]
    fn every_server_gets_the_settings_of_redis_clients_that_are_not_the_default() {
        let mut plan = plan();
        plan.settings.redis_deadline = Duration::from_millis(500);
        plan.settings.redis_multi = RedisMulti::Ordered;
        for n in 0..3 {
            let words = arguments(&plan, n).join(" ");
            assert!(words.ends_with("--redis-deadline 0.5 --redis-multi ordered"), "{words}");
        }
    }

    #[test]
    fn every_server_of_a_cluster_with_hash_tags_gets_the_flag() {
        assert!(!arguments(&plan(), 0).contains(&"--hash-tags".to_owned()));
        let tagged = Plan { hash_tags: true, ..plan() };
        assert!((0..3).all(|n| arguments(&tagged, n).contains(&"--hash-tags".to_owned())));
    }

    #[test]
    fn the_command_shown_can_be_pasted_into_a_shell() {
        let plan = plan();
        let local = plan.command_line(&plan.file.servers[0], &arguments(&plan, 0));
        assert!(local.starts_with("cd '/tmp/it is' && /opt/server -h 127.0.0.1 -m"), "{local}");
        let remote = plan.command_line(&plan.file.servers[1], &arguments(&plan, 1));
        assert!(remote.starts_with("ssh kv@db 'cd '\\''kv dir'\\'' && ./server -h"), "{remote}");
    }
}
