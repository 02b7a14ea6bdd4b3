//! The connection itself: its protocol, its database, its end.

use super::clients::check_name;
use super::{Command, Context, Keys, Perform, integer};
use crate::client::REDIS_VERSION;
use crate::database;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::{Reply, Version};

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("hello", -1, FIRST, "6.0.0", "Selects the version of the protocol.", hello),
    of("auth", -2, FIRST, "1.0.0", "Authenticates the connection. No password is needed.", auth),
    of("ping", -1, &["fast"], "1.0.0", "Responds with PONG, or with the argument.", ping),
    of("echo", 2, ALWAYS, "1.0.0", "Returns the argument.", echo),
    of("select", 2, ALWAYS, "1.0.0", "Selects the database of the connection.", select),
    of("reset", 1, FIRST, "6.2.0", "Returns the connection to its initial state.", reset),
    of("quit", -1, FIRST, "1.0.0", "Closes the connection.", quit),
];

const ALWAYS: &[&str] = &["loading", "stale", "fast"];
const FIRST: &[&str] = &["noscript", "loading", "stale", "fast", "no_auth", "allow_busy"];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (keys, group) = (Keys::NONE, "connection");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

const WRONG_PASS: Error =
    Error::Stated("WRONGPASS invalid username-password pair or user is disabled.");

fn hello(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let args = context.args;
    let version = match args.get(1).map(|text| integer(text)) {
        None => context.client.version,
        Some(Some(2)) => Version::Two,
        Some(Some(3)) => Version::Three,
        Some(Some(_)) => return Err(Error::Stated("NOPROTO unsupported protocol version")),
        Some(None) => {
            return Err(Error::Stated("ERR Protocol version is not an integer or out of range"));
        }
    };
    let (mut name, mut user, mut at) = (None, None, 2);
    while at < args.len() {
        let left = args.len() - at - 1;
        if context.is(at, "auth") && left >= 2 {
            user = Some(args[at + 1]);
            at += 3;
        } else if context.is(at, "setname") && left >= 1 {
            check_name(args[at + 1])?;
            name = Some(args[at + 1]);
            at += 2;
        } else {
            let option = error::shown(args[at]);
            return Err(Error::Text(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    if user.is_some_and(|user| user != b"default") {
        return Err(WRONG_PASS);
    }
    if let Some(name) = name {
        context.client.name = name.to_vec();
    }
    context.client.version = version;
    reply.set_version(version);
    reply.map(7);
    let proto = if version == Version::Two { 2 } else { 3 };
    let id = i64::try_from(context.client.id).unwrap_or(i64::MAX);
    for (field, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply.bulk(field.as_bytes());
        reply.bulk(value.as_bytes());
    }
    for (field, value) in [("proto", proto), ("id", id)] {
        reply.bulk(field.as_bytes());
        reply.integer(value);
    }
    for (field, value) in [("mode", "standalone"), ("role", "master")] {
        reply.bulk(field.as_bytes());
        reply.bulk(value.as_bytes());
    }
    reply.bulk(b"modules");
    reply.array(0);
    Ok(Plan::Replied)
}

fn auth(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    match context.args {
        [_, _] => Err(Error::Stated(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
             configuration is correct?",
        )),
        // The default user needs no password, so every password is right.
        [_, b"default", _] => {
            reply.ok();
            Ok(Plan::Replied)
        }
        [_, _, _] => Err(WRONG_PASS),
        _ => Err(error::SYNTAX),
    }
}

fn ping(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    match context.args {
        [_] => reply.simple("PONG"),
        [_, text] => reply.bulk(text),
        _ => return Err(error::arity("ping")),
    }
    Ok(Plan::Replied)
}

fn echo(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.bulk(context.args[1]);
    Ok(Plan::Replied)
}

fn select(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    context.client.database = database::number(context.args[1])?;
    reply.ok();
    Ok(Plan::Replied)
}

fn reset(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    context.client.reset();
    reply.set_version(context.client.version);
    reply.simple("RESET");
    Ok(Plan::Replied)
}

fn quit(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.ok();
    Ok(Plan::Close)
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;

    #[test]
    fn hello_selects_the_version_and_describes_the_server() {
        let mut door = Door::new();
        let map = |proto| {
            format!(
                "$6 server $5 redis $7 version $5 7.2.4 $5 proto :{proto} $2 id :7 $4 mode $10 standalone $4 role \
                 $6 master $7 modules *0"
            )
        };
        assert_eq!(door.say("hello"), format!("*14 {}", map(2)));
        assert_eq!(door.say("hello 3 AUTH default x SETNAME me"), format!("%7 {}", map(3)));
        assert_eq!(door.say("get absent"), "_");
        assert_eq!(door.say("client getname"), "$2 me");
        assert_eq!(door.say("hello"), format!("%7 {}", map(3)));
        assert_eq!(door.say("hello 2"), format!("*14 {}", map(2)));
        for (command, reply) in [
            ("hello 4", "-NOPROTO unsupported protocol version"),
            ("hello x", "-ERR Protocol version is not an integer or out of range"),
            ("hello 3 x", "-ERR Syntax error in HELLO option 'x'"),
            ("hello 3 setname", "-ERR Syntax error in HELLO option 'setname'"),
            ("hello 3 auth a b", "-WRONGPASS invalid username-password pair or user is disabled."),
            ("get absent", "$-1"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
    }

    #[test]
    fn the_connection_is_changed_and_reset() {
        let mut door = Door::new();
        for (command, reply) in [
            ("ping", "+PONG"),
            ("ping x", "$1 x"),
            ("ping x y", "-ERR wrong number of arguments for 'ping' command"),
            ("echo x", "$1 x"),
            ("set k 0", "+OK"),
            ("select 15", "+OK"),
            ("get k", "$-1"),
            ("select 16", "-ERR DB index is out of range"),
            ("select -1", "-ERR DB index is out of range"),
            ("select x", "-ERR value is not an integer or out of range"),
            ("select 4294967296", "-ERR value is not an integer or out of range"),
            ("client setname me", "+OK"),
            ("client reply skip", ""),
            ("get k", ""),
            ("get k", "$-1"),
            ("client reply off", ""),
            ("get k", ""),
            ("reset", "+RESET"),
            ("client getname", "$-1"),
            ("get k", "$1 0"),
            ("auth default x", "+OK"),
            ("auth me x", "-WRONGPASS invalid username-password pair or user is disabled."),
            ("auth a b c", "-ERR syntax error"),
            ("quit", "+OK"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        assert!(door.is_closed);
        assert!(door.say("auth x").starts_with("-ERR AUTH <password> called without any password"));
    }
}
