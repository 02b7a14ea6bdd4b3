//! The server: its clock, its role, and what it has no use for.

use kv_protocol::client_message::Part;

use super::{Command, Context, Keys, Perform, READ, integer, subcommands};
use crate::ask::Ask;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("time", 1, ALWAYS, "2.6.0", "Returns the wall clock.", time),
    of("lastsave", 1, ALWAYS, "1.0.0", "Returns the start of the server, in seconds.", lastsave),
    of("role", 1, ROLE, "2.8.12", "Returns the role: every server takes writes.", role),
    Command {
        group: "generic",
        ..of("wait", 3, &["noscript"], "3.0.0", "Returns the copies of the last write.", wait)
    },
    Command {
        group: "cluster",
        ..of("readonly", 1, ALWAYS, "3.0.0", "Fails: this is no Redis Cluster.", no_cluster)
    },
    Command {
        group: "cluster",
        ..of("readwrite", 1, ALWAYS, "3.0.0", "Fails: this is no Redis Cluster.", no_cluster)
    },
    Command {
        group: "cluster",
        ..of("cluster", -2, &[], "3.0.0", "Fails: this is no Redis Cluster.", no_cluster)
    },
    of("debug", -2, ADMIN, "1.0.0", "Fails: it is not allowed.", debug),
    container("slowlog", "2.2.12", "Shows slow commands: none are recorded.", SLOWLOG),
    container("latency", "2.8.13", "Shows delays: none are recorded.", LATENCY),
    container("memory", "4.0.0", "Shows the memory of keys.", MEMORY),
    Command {
        group: "scripting",
        ..container("function", "7.0.0", "Manages functions: there are none.", FUNCTION)
    },
    Command {
        group: "scripting",
        ..container("script", "2.6.0", "Manages scripts: there are none.", SCRIPT)
    },
];

const SLOWLOG: &[Command] = &[
    of("slowlog|get", -2, SHOWN, "2.2.12", "Returns the slow commands: none.", slowlog_get),
    of("slowlog|len", 2, SHOWN, "2.2.12", "Returns their number: 0.", zero),
    of("slowlog|reset", 2, SHOWN, "2.2.12", "Forgets them.", ok),
    of("slowlog|help", 2, HELP, "6.2.0", "Lists the subcommands.", subcommands::help),
];

const LATENCY: &[Command] = &[
    of("latency|doctor", 2, ADMIN, "2.8.13", "Says that delays are not recorded.", doctor),
    of("latency|graph", 3, ADMIN, "2.8.13", "Fails: delays are not recorded.", graph),
    of("latency|histogram", -2, ADMIN, "7.0.0", "Returns no histograms.", no_pairs),
    of("latency|history", 3, ADMIN, "2.8.13", "Returns the delays of an event: none.", nothing),
    of("latency|latest", 2, ADMIN, "2.8.13", "Returns the latest delays: none.", nothing),
    of("latency|reset", -2, ADMIN, "2.8.13", "Forgets the delays.", zero),
    of("latency|help", 2, HELP, "2.8.13", "Lists the subcommands.", subcommands::help),
];

const MEMORY: &[Command] = &[
    Command {
        keys: Keys::AFTER_SUBCOMMAND,
        ..of("memory|usage", -3, READ, "4.0.0", "Returns the memory of an entry.", memory_usage)
    },
    of("memory|help", 2, HELP, "4.0.0", "Lists the subcommands.", subcommands::help),
];

const FUNCTION: &[Command] = &[
    Command {
        group: "scripting",
        ..of("function|flush", -2, &["write", "noscript"], "7.0.0", "Does nothing.", function_flush)
    },
    of("function|help", 2, HELP, "7.0.0", "Lists the subcommands.", subcommands::help),
];

const SCRIPT: &[Command] = &[
    Command {
        group: "scripting",
        ..of("script|flush", -2, &["noscript"], "2.6.0", "Does nothing.", script_flush)
    },
    of("script|help", 2, HELP, "5.0.0", "Lists the subcommands.", subcommands::help),
];

const ALWAYS: &[&str] = &["loading", "stale", "fast"];
const ROLE: &[&str] = &["noscript", "loading", "stale", "fast"];
const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];
const SHOWN: &[&str] = &["admin", "loading", "stale"];
const HELP: &[&str] = &["loading", "stale"];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (keys, group) = (Keys::NONE, "server");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

const fn container(
    name: &'static str,
    since: &'static str,
    summary: &'static str,
    subcommands: &'static [Command],
) -> Command {
    Command { subcommands, ..of(name, -2, &[], since, summary, subcommands::none) }
}

fn ok(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.ok();
    Ok(Plan::Replied)
}

fn zero(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.integer(0);
    Ok(Plan::Replied)
}

fn nothing(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.array(0);
    Ok(Plan::Replied)
}

fn no_pairs(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.map(0);
    Ok(Plan::Replied)
}

fn time(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let millis = context.wall().millis();
    reply.array(2);
    reply.bulk((millis / 1_000).to_string().as_bytes());
    reply.bulk((millis % 1_000 * 1_000).to_string().as_bytes());
    Ok(Plan::Replied)
}

fn lastsave(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let seconds = context.server.facts().started.millis() / 1_000;
    reply.integer(i64::try_from(seconds).unwrap_or(i64::MAX));
    Ok(Plan::Replied)
}

/// Replies as a master whose replicas take no connections of clients.
fn role(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.array(3);
    reply.bulk(b"master");
    reply.integer(0);
    reply.array(0);
    Ok(Plan::Replied)
}

fn wait(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    context.integer(1)?;
    match integer(context.args[2]) {
        None => return Err(Error::Stated("ERR timeout is not an integer or out of range")),
        Some(..0) => return Err(Error::Stated("ERR timeout is negative")),
        // A write is acknowledged after its copies are made, so there is nothing to wait for.
        Some(_) => reply.integer(context.client.copies.saturating_sub(1).into()),
    }
    Ok(Plan::Replied)
}

fn no_cluster(_: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    Err(error::NO_CLUSTER)
}

fn debug(_: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    Err(Error::Stated(
        "ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\", you can run it from a \
         local connection, otherwise you need to set this option in the configuration file, and then restart the \
         server.",
    ))
}

fn slowlog_get(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    match context.args {
        [_, _] => {}
        [_, _, count] if integer(count).is_some_and(|count| count >= -1) => {}
        [_, _, _] => {
            return Err(Error::Stated("ERR count should be greater than or equal to -1"));
        }
        _ => {
            return Err(Error::Stated(
                "ERR unknown subcommand or wrong number of arguments for 'get'. Try SLOWLOG HELP.",
            ));
        }
    }
    nothing(context, reply)
}

fn doctor(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.verbatim(
        "Delays are not recorded by event. The status of the cluster shows its delays.\n",
    );
    Ok(Plan::Replied)
}

fn graph(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let event = error::shown(context.args[2]);
    Err(Error::Text(format!("ERR No samples available for event '{event}'")))
}

/// The bytes of a short entry besides its key and its value (P6 in docs/performance.md).
const ENTRY_BYTES: i64 = 32;

fn memory_usage(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    match context.args.len() {
        3 => {}
        5 if context.is(3, "samples") => {
            if context.integer(4)? < 0 {
                return Err(error::SYNTAX);
            }
        }
        _ => return Err(error::SYNTAX),
    }
    let key = context.key(2)?;
    let bytes = i64::try_from(key.len()).unwrap_or(i64::MAX).saturating_add(ENTRY_BYTES);
    Ok(Plan::one(Ask::part(&key, Part::new(0, 0)), move |answer, reply| {
        match answer.is_done() {
            true => reply.integer(bytes.saturating_add(answer.whole.into())),
            false => reply.null(),
        }
        Ok(Plan::Replied)
    }))
}

fn function_flush(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    flush_nothing(
        context,
        reply,
        Error::Stated("ERR FUNCTION FLUSH only supports SYNC|ASYNC option"),
    )
}

fn script_flush(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    flush_nothing(context, reply, Error::Stated("ERR SCRIPT FLUSH only support SYNC|ASYNC option"))
}

fn flush_nothing(
    context: &mut Context<'_>,
    reply: &mut Reply<'_>,
    error: Error,
) -> Result<Plan, Error> {
    match context.args.len() {
        2 => ok(context, reply),
        3 if context.is(2, "sync") || context.is(2, "async") => ok(context, reply),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;

    #[test]
    fn the_server_replies_as_redis() {
        let mut door = Door::new();
        let no_cluster = "-ERR This instance has cluster support disabled";
        for (command, reply) in [
            ("time", "*2 $10 1700000000 $1 0"),
            ("lastsave", ":1600000000"),
            ("role", "*3 $6 master :0 *0"),
            ("wait 1 0", ":0"),
            ("set key value", "+OK"),
            ("wait 1 0", ":1"),
            ("get key", "$5 value"),
            ("wait 1 100", ":1"),
            ("wait x 0", "-ERR value is not an integer or out of range"),
            ("wait 1 x", "-ERR timeout is not an integer or out of range"),
            ("wait 1 -1", "-ERR timeout is negative"),
            ("readonly", no_cluster),
            ("readwrite", no_cluster),
            ("cluster info", no_cluster),
            ("cluster", "-ERR wrong number of arguments for 'cluster' command"),
            ("slowlog get", "*0"),
            ("slowlog get -1", "*0"),
            ("slowlog get -2", "-ERR count should be greater than or equal to -1"),
            ("slowlog len", ":0"),
            ("slowlog reset", "+OK"),
            ("latency latest", "*0"),
            ("latency history x", "*0"),
            ("latency reset", ":0"),
            ("latency histogram get", "*0"),
            ("latency graph x", "-ERR No samples available for event 'x'"),
            ("memory usage key", ":40"),
            ("memory usage key samples 5", ":40"),
            ("memory usage key samples", "-ERR syntax error"),
            ("memory usage key samples -1", "-ERR syntax error"),
            ("memory usage absent", "$-1"),
            ("function flush", "+OK"),
            ("function flush sync", "+OK"),
            ("function flush x", "-ERR FUNCTION FLUSH only supports SYNC|ASYNC option"),
            ("script flush async", "+OK"),
            ("script flush x", "-ERR SCRIPT FLUSH only support SYNC|ASYNC option"),
            ("script load x", "-ERR unknown subcommand 'load'. Try SCRIPT HELP."),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        assert!(door.say("debug sleep 5").starts_with("-ERR DEBUG command not allowed."));
    }
}
