//! CONFIG: the parameters of Redis that have a meaning here. None can be changed.

use kv_protocol::eviction::Eviction;
use kv_protocol::glob::{self, Steps};
use kv_protocol::limits::MAX_VALUE_BYTES;

use super::{Command, Context, Keys, Perform, subcommands};
use crate::client::Facts;
use crate::database::DATABASES;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The command.
pub(super) const COMMANDS: &[Command] = &[Command {
    flags: &[],
    subcommands: CONFIG,
    ..of("config", -2, "2.0.0", "Shows parameters.", subcommands::none)
}];

const CONFIG: &[Command] = &[
    of("config|get", -3, "2.0.0", "Returns the parameters whose names match patterns.", get),
    of("config|set", -4, "2.0.0", "Accepts the values that parameters have, and no others.", set),
    of(
        "config|resetstat",
        2,
        "2.0.0",
        "Does nothing: statistics are those of the server.",
        resetstat,
    ),
    of("config|rewrite", 2, "2.8.0", "Fails: there is no configuration file.", rewrite),
    Command {
        flags: &["loading", "stale"],
        ..of("config|help", 2, "5.0.0", "Lists the subcommands.", subcommands::help)
    },
];

const fn of(
    name: &'static str,
    arity: i32,
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let flags = &["admin", "noscript", "loading", "stale"];
    let (keys, group) = (Keys::NONE, "server");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

/// The number of parameters.
const COUNT: usize = 14;
/// The parameters that Redis never changes.
const FIXED: [&str; 3] = ["cluster-enabled", "databases", "port"];
/// The number of steps in which names are compared with the patterns of a call.
const STEPS: Steps = Steps(1_000_000);

/// Returns the name that Redis has for a policy.
pub(super) fn policy(eviction: Eviction) -> &'static str {
    match eviction {
        Eviction::None => "noeviction",
        Eviction::Lfu => "allkeys-lfu",
        Eviction::Ttl => "volatile-ttl",
    }
}

/// Returns the parameters.
fn parameters(facts: &Facts) -> [(&'static str, String); COUNT] {
    let policy = policy(facts.eviction);
    [
        ("appendonly", "no".to_owned()),
        ("cluster-enabled", "no".to_owned()),
        ("databases", DATABASES.to_string()),
        ("latency-monitor-threshold", "0".to_owned()),
        ("maxclients", facts.connections.to_string()),
        ("maxmemory", facts.memory_limit.to_string()),
        ("maxmemory-policy", policy.to_owned()),
        ("notify-keyspace-events", String::new()),
        ("port", facts.port.to_string()),
        ("proto-max-bulk-len", MAX_VALUE_BYTES.to_string()),
        ("requirepass", String::new()),
        ("save", String::new()),
        ("slowlog-max-len", "0".to_owned()),
        ("timeout", "0".to_owned()),
    ]
}

fn get(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let parameters = parameters(&context.server.facts());
    let (mut is_shown, mut steps) = ([false; COUNT], STEPS);
    for pattern in &context.args[2..] {
        let pattern = pattern.to_ascii_lowercase();
        for (shown, (name, _)) in is_shown.iter_mut().zip(&parameters) {
            let is_match = glob::matches(&pattern, name.as_bytes(), &mut steps);
            *shown |= is_match.ok_or(Error::Stated("ERR the patterns are too long"))?;
        }
    }
    reply.map(is_shown.iter().filter(|shown| **shown).count());
    for ((name, value), _) in parameters.iter().zip(is_shown).filter(|(_, shown)| *shown) {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    Ok(Plan::Replied)
}

fn set(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let args = context.args;
    if args.len() % 2 == 1 {
        return Err(error::SYNTAX);
    }
    let parameters = parameters(&context.server.facts());
    let mut seen = [false; COUNT];
    let failed = |name: &str, reason: &str| {
        let failed = "ERR CONFIG SET failed (possibly related to argument";
        Err(Error::Text(format!("{failed} '{name}') - {reason}")))
    };
    for pair in args[2..].chunks(2) {
        let find = |(name, _): &(&str, String)| pair[0].eq_ignore_ascii_case(name.as_bytes());
        let Some(index) = parameters.iter().position(find) else {
            let name = error::shown(pair[0]);
            let unknown = "ERR Unknown option or number of arguments for CONFIG SET -";
            return Err(Error::Text(format!("{unknown} '{name}'")));
        };
        let (name, value) = &parameters[index];
        if std::mem::replace(&mut seen[index], true) {
            return failed(name, "duplicate parameter");
        }
        if pair[1] != value.as_bytes() || FIXED.contains(name) {
            return failed(name, "can't set immutable config");
        }
    }
    reply.ok();
    Ok(Plan::Replied)
}

fn resetstat(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.ok();
    Ok(Plan::Replied)
}

fn rewrite(_: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    Err(Error::Stated("ERR The server is running without a config file"))
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;

    #[test]
    fn parameters_are_shown_and_not_changed() {
        let mut door = Door::new();
        let immutable = |name| {
            let failed = "-ERR CONFIG SET failed (possibly related to argument";
            format!("{failed} '{name}') - can't set immutable config")
        };
        assert_eq!(door.run(&[b"config", b"set", b"save", b""]), b"+OK\r\n");
        for (command, reply) in [
            ("config get databases", "*2 $9 databases $2 16"),
            ("config get SAVE appendonly", "*4 $10 appendonly $2 no $4 save $0 "),
            (
                "config get maxmemory*",
                "*4 $9 maxmemory $10 1073741824 $16 maxmemory-policy $10 noeviction",
            ),
            ("config get proto-max-bulk-len", "*2 $18 proto-max-bulk-len $8 16777216"),
            ("config get nothing", "*0"),
            ("config set appendonly no maxmemory 1073741824", "+OK"),
            ("config set maxmemory 5", &immutable("maxmemory")),
            ("config set databases 16", &immutable("databases")),
            (
                "config set foo 3",
                "-ERR Unknown option or number of arguments for CONFIG SET - 'foo'",
            ),
            ("config set maxmemory", "-ERR wrong number of arguments for 'config|set' command"),
            ("config set timeout 0 save", "-ERR syntax error"),
            (
                "config set timeout 0 timeout 0",
                "-ERR CONFIG SET failed (possibly related to argument 'timeout') - duplicate parameter",
            ),
            ("config rewrite", "-ERR The server is running without a config file"),
            ("config resetstat", "+OK"),
            ("config foo", "-ERR unknown subcommand 'foo'. Try CONFIG HELP."),
        ] {
            assert_eq!(door.say(command), reply.trim_end(), "{command}");
        }
    }
}
