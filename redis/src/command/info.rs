//! INFO: the state of the server, in the sections and lines of Redis that tools read.

use std::fmt::Write as _;

use kv_protocol::RedisMulti;

use super::pages::{self, Selection};
use super::{Command, Context, Keys};
use crate::client::{Facts, Load, REDIS_VERSION};
use crate::error::Error;
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[Command {
    name: "info",
    arity: -1,
    flags: &["loading", "stale"],
    keys: Keys::NONE,
    group: "server",
    since: "1.0.0",
    summary: "Returns the state of the server.",
    perform: info,
    subcommands: &[],
}];

/// The sections, in order.
const SECTIONS: [&str; 10] = [
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cpu",
    "modules",
    "cluster",
    "keyspace",
];
/// The words that select all sections.
const ALL: [&str; 3] = ["all", "default", "everything"];

fn info(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let is_wanted = |section: &str| {
        let is_it = |at| context.is(at, section) || ALL.iter().any(|all| context.is(at, all));
        context.args.len() == 1 || (1..context.args.len()).any(is_it)
    };
    let wanted: Vec<&str> = SECTIONS.into_iter().filter(|section| is_wanted(section)).collect();
    let (facts, load) = (context.server.facts(), context.server.load());
    let uptime = context.wall().millis().saturating_sub(facts.started.millis()) / 1_000;
    let mut text = String::new();
    for section in &wanted {
        if *section != "keyspace" {
            write_section(&mut text, section, &facts, &load, (context, uptime));
        }
    }
    if !wanted.contains(&"keyspace") {
        reply.verbatim(&text);
        return Ok(Plan::Replied);
    }
    // The first page of each shard has the number of its entries, of all databases together.
    let (tokens, selection) = (pages::tokens(context), Selection::of_other_databases());
    let asks = (0..tokens.places()).map(|place| selection.page(&tokens, place, 0)).collect();
    Ok(Plan::all(asks, move |answers, reply| {
        let mut entries = 0;
        for answer in answers {
            entries += pages::read(answer)?.entries;
        }
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        text.push_str("# Keyspace\r\n");
        if entries > 0 {
            line(&mut text, "db0", format_args!("keys={entries},expires=0,avg_ttl=0"));
        }
        reply.verbatim(&text);
        Ok(Plan::Replied)
    }))
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = write!(text, "{name}:{value}\r\n");
}

fn write_section(
    text: &mut String,
    section: &str,
    facts: &Facts,
    load: &Load,
    (context, uptime): (&Context<'_>, u64),
) {
    let title: String = section[..1].to_uppercase() + &section[1..];
    let title = if section == "cpu" { "CPU" } else { &title };
    if !text.is_empty() {
        text.push_str("\r\n");
    }
    let _ = write!(text, "# {title}\r\n");
    let zero =
        |text: &mut String, names: &[&str]| names.iter().for_each(|name| line(text, name, 0));
    match section {
        "server" => {
            line(text, "redis_version", REDIS_VERSION);
            line(text, "server_name", "ftkv");
            line(text, "redis_mode", "standalone");
            line(text, "os", "Linux");
            line(text, "arch_bits", usize::BITS);
            line(text, "run_id", format_args!("{:040x}", context.server.cluster().0));
            line(text, "tcp_port", facts.port);
            line(text, "uptime_in_seconds", uptime);
            line(text, "uptime_in_days", uptime / 86_400);
            line(text, "redis_multi", facts.multi);
            let across = match facts.multi {
                RedisMulti::Refuse => "refused",
                RedisMulti::Ordered => "in order without isolation",
            };
            line(
                text,
                "transactions",
                format_args!("atomic within one shard, {across} across shards"),
            );
            line(text, "pubsub", "none");
        }
        "clients" => {
            line(text, "connected_clients", load.connections);
            line(text, "maxclients", facts.connections);
            zero(text, &["blocked_clients", "tracking_clients"]);
        }
        "memory" => {
            line(text, "used_memory", load.memory);
            line(text, "used_memory_human", human(load.memory));
            line(text, "used_memory_rss", load.memory);
            line(text, "used_memory_peak", load.memory);
            line(text, "used_memory_peak_human", human(load.memory));
            line(text, "maxmemory", facts.memory_limit);
            line(text, "maxmemory_human", human(facts.memory_limit));
            line(text, "maxmemory_policy", super::config::policy(facts.eviction));
            line(text, "mem_fragmentation_ratio", "1.00");
        }
        "persistence" => {
            zero(text, &["loading", "rdb_changes_since_last_save", "rdb_bgsave_in_progress"]);
            line(text, "rdb_last_save_time", facts.started.millis() / 1_000);
            line(text, "rdb_last_bgsave_status", "ok");
            zero(text, &["aof_enabled", "aof_rewrite_in_progress"]);
        }
        "stats" => {
            line(text, "total_connections_received", load.accepted);
            line(text, "total_commands_processed", load.commands);
            line(text, "expired_keys", load.expired);
            line(text, "evicted_keys", load.evicted);
            line(text, "rejected_connections", load.rejected);
        }
        "replication" => {
            line(text, "role", "master");
            line(text, "connected_slaves", 1);
            line(text, "master_failover_state", "no-failover");
            line(text, "master_repl_offset", 0);
        }
        "cluster" => line(text, "cluster_enabled", 0),
        // The sections of CPU time and modules have no lines, because the shard knows neither.
        _ => {}
    }
}

/// Returns a number of bytes with its unit, as Redis shows it.
fn human(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // Two digits after the point are shown.
    let number = bytes as f64;
    for (unit, size) in [("G", 1u64 << 30), ("M", 1 << 20), ("K", 1 << 10)] {
        if bytes >= size {
            #[allow(clippy::cast_precision_loss)]
            return format!("{:.2}{unit}", number / size as f64);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Door;

    #[test]
    fn info_has_the_lines_that_tools_read() {
        let mut door = Door::new();
        door.say("SET k v");
        let all = String::from_utf8(door.run(&[b"INFO"])).unwrap();
        for line in [
            "redis_mode:standalone",
            // redis-cli --stat shows the smallest number for one that is missing.
            "connected_clients:0",
            "blocked_clients:0",
            "used_memory:5000",
            "total_commands_processed:0",
            "total_connections_received:0",
            "used_memory_peak_human:4.88K",
            "cluster_enabled:0",
            "role:master",
            "connected_slaves:1",
            "loading:0",
            "maxmemory:1073741824",
            "maxmemory_human:1.00G",
            "db0:keys=1,expires=0,avg_ttl=0",
        ] {
            assert!(all.contains(&format!("{line}\r\n")), "{line}: {all}");
        }
        let version = all.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap();
        assert!(version.starts_with("7.2") || version > "7.2");
    }

    #[test]
    fn info_states_how_transactions_across_shards_are_treated() {
        for (multi, words) in [
            (RedisMulti::Refuse, "refused across shards"),
            (RedisMulti::Ordered, "in order without isolation across shards"),
        ] {
            let mut door = Door::new();
            door.store.multi = multi;
            let all = String::from_utf8(door.run(&[b"INFO", b"server"])).unwrap();
            assert!(all.contains(&format!("\r\nredis_multi:{multi}\r\n")), "{all}");
            assert!(all.contains(&format!("one shard, {words}\r\n")), "{all}");
        }
    }

    #[test]
    fn a_section_comes_alone_if_it_is_named() {
        let mut door = Door::new();
        let one = String::from_utf8(door.run(&[b"INFO", b"Replication"])).unwrap();
        assert!(one.contains("# Replication\r\nrole:master\r\n") && !one.contains("# Server"));
        let none = door.say("INFO nosuch");
        assert_eq!(none, "$0");
        let last = String::from_utf8(door.run(&[b"INFO", b"keyspace"])).unwrap();
        assert!(last.ends_with("# Keyspace\r\n\r\n"), "{last}");
    }
}
