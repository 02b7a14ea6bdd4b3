//! COMMAND: the table of commands, as clients read it.

use kv_protocol::glob::{self, Steps};

use super::{Command, Context, Keys, Perform, all, find, subcommands};
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The command.
pub(super) const COMMANDS: &[Command] = &[Command {
    subcommands: COMMAND,
    ..of("command", -1, "2.8.13", "Describes all commands.", describe_all)
}];

const COMMAND: &[Command] = &[
    of("command|count", 2, "2.8.13", "Returns the number of commands.", count),
    of("command|docs", -2, "7.0.0", "Returns the documentation of commands.", docs),
    of("command|getkeys", -3, "2.8.13", "Returns the keys of a call.", getkeys),
    of("command|info", -2, "2.8.13", "Describes commands.", info),
    of("command|list", -2, "7.0.0", "Returns the names of commands.", list),
    of("command|help", 2, "5.0.0", "Lists the subcommands.", subcommands::help),
];

const fn of(
    name: &'static str,
    arity: i32,
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (flags, keys, group) = (&["loading", "stale"], Keys::NONE, "server");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

/// The number of steps in which names are compared with a pattern.
const STEPS: Steps = Steps(1_000_000);

fn describe_all(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    if context.args.len() > 1 {
        return subcommands::none(context, reply);
    }
    reply.array(all().len());
    all().for_each(|command| describe(command, reply));
    Ok(Plan::Replied)
}

fn info(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    if context.args.len() == 2 {
        reply.array(all().len());
        all().for_each(|command| describe(command, reply));
        return Ok(Plan::Replied);
    }
    let names = names(context)?;
    reply.array(names.len());
    for name in names {
        match named(name) {
            Some(command) => describe(command, reply),
            None => reply.null(),
        }
    }
    Ok(Plan::Replied)
}

/// The maximum number of names in a call, which limits the reply.
const NAMES_MAX: usize = 1_024;

/// Returns the names of commands in a call.
fn names<'a>(context: &Context<'a>) -> Result<&'a [&'a [u8]], Error> {
    match &context.args[2..] {
        names if names.len() <= NAMES_MAX => Ok(names),
        _ => Err(Error::Stated("ERR COMMAND takes at most 1,024 names in this store")),
    }
}

/// Returns the command, or the subcommand in the form `command|name`.
fn named(name: &[u8]) -> Option<&'static Command> {
    let mut parts = name.splitn(2, |byte| *byte == b'|');
    let command = find(parts.next()?)?;
    match parts.next() {
        Some(name) => command.subcommand(name),
        None => Some(command),
    }
}

/// Writes the description of a command.
fn describe(command: &Command, reply: &mut Reply<'_>) {
    let Keys { first, last, step } = command.keys;
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.integer(command.arity.into());
    write_names(command.flags.iter().copied(), reply);
    [first, last, step].iter().for_each(|number| reply.integer((*number).into()));
    write_names(categories(command), reply);
    // Tips.
    reply.set(0);
    write_key_specification(command, reply);
    reply.set(command.subcommands.len());
    command.subcommands.iter().for_each(|subcommand| describe(subcommand, reply));
}

fn write_names(names: impl Iterator<Item = &'static str> + Clone, reply: &mut Reply<'_>) {
    reply.set(names.clone().count());
    names.for_each(|name| reply.simple(name));
}

/// Returns the categories of access control.
fn categories(command: &Command) -> impl Iterator<Item = &'static str> + Clone {
    let has = |flag| command.flags.contains(&flag);
    let is_dangerous = has("admin") || ["keys", "flushdb", "flushall"].contains(&command.name);
    let of_group = match (command.name, command.group) {
        _ if !command.subcommands.is_empty() => None,
        ("wait" | "readonly" | "readwrite", _) | (_, "connection") => Some("@connection"),
        ("dbsize" | "flushdb" | "flushall", _) | (_, "generic") => Some("@keyspace"),
        (_, "string") => Some("@string"),
        (_, "scripting") => Some("@scripting"),
        _ => None,
    };
    [
        of_group,
        has("write").then_some("@write"),
        has("readonly").then_some("@read"),
        Some(if has("fast") { "@fast" } else { "@slow" }),
        has("admin").then_some("@admin"),
        is_dangerous.then_some("@dangerous"),
    ]
    .into_iter()
    .flatten()
}

/// Writes where the keys are, in the form of Redis 7.
fn write_key_specification(command: &Command, reply: &mut Reply<'_>) {
    let Keys { first, last, step } = command.keys;
    if command.keys == Keys::NONE {
        reply.set(0);
        return;
    }
    let flags = match command.flags.contains(&"write") {
        true => ["RW", "update"],
        false => ["RO", "access"],
    };
    reply.set(1);
    reply.map(3);
    reply.bulk(b"flags");
    write_names(flags.into_iter(), reply);
    let last = if last < 0 { last } else { last - first };
    let (begin, end) = ([("index", first)], [("lastkey", last), ("keystep", step), ("limit", 0)]);
    for (name, kind, fields) in
        [("begin_search", "index", &begin[..]), ("find_keys", "range", &end[..])]
    {
        reply.bulk(name.as_bytes());
        reply.map(2);
        reply.bulk(b"type");
        reply.bulk(kind.as_bytes());
        reply.bulk(b"spec");
        reply.map(fields.len());
        for (field, number) in fields {
            reply.bulk(field.as_bytes());
            reply.integer((*number).into());
        }
    }
}

fn count(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.integer(i64::try_from(all().len()).unwrap_or(i64::MAX));
    Ok(Plan::Replied)
}

fn docs(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let commands: Vec<&Command> = match names(context)? {
        [] => all().collect(),
        names => names.iter().filter_map(|name| named(name)).collect(),
    };
    write_docs(&commands, reply);
    Ok(Plan::Replied)
}

fn write_docs(commands: &[&Command], reply: &mut Reply<'_>) {
    reply.map(commands.len());
    for command in commands {
        reply.bulk(command.name.as_bytes());
        let has_subcommands = !command.subcommands.is_empty();
        reply.map(if has_subcommands { 4 } else { 3 });
        for (field, text) in
            [("summary", command.summary), ("since", command.since), ("group", command.group)]
        {
            reply.bulk(field.as_bytes());
            reply.bulk(text.as_bytes());
        }
        if has_subcommands {
            reply.bulk(b"subcommands");
            write_docs(&command.subcommands.iter().collect::<Vec<_>>(), reply);
        }
    }
}

fn list(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let with_subcommands =
        || all().flat_map(|command| std::iter::once(command).chain(command.subcommands));
    let names: Vec<&str> = match context.args.len() {
        2 => all().map(|command| command.name).collect(),
        5 if context.is(2, "filterby") && context.is(3, "module") => Vec::new(),
        5 if context.is(2, "filterby") && context.is(3, "aclcat") => {
            let wanted = format!("@{}", String::from_utf8_lossy(context.args[4])).to_lowercase();
            let is_in = |command: &&Command| categories(command).any(|name| name == wanted);
            with_subcommands().filter(is_in).map(|command| command.name).collect()
        }
        5 if context.is(2, "filterby") && context.is(3, "pattern") => {
            let (pattern, mut steps) = (context.args[4].to_ascii_lowercase(), STEPS);
            let names = with_subcommands().map(|command| command.name);
            names
                .filter(|name| glob::matches(&pattern, name.as_bytes(), &mut steps) == Some(true))
                .collect()
        }
        _ => return Err(error::SYNTAX),
    };
    reply.array(names.len());
    names.iter().for_each(|name| reply.bulk(name.as_bytes()));
    Ok(Plan::Replied)
}

fn getkeys(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let args = &context.args[2..];
    let invalid = Error::Stated("ERR Invalid command specified");
    let command = find(args[0]).ok_or(invalid.clone())?;
    let command = match args.get(1) {
        Some(name) if !command.subcommands.is_empty() => command.subcommand(name).ok_or(invalid)?,
        _ => command,
    };
    if command.keys == Keys::NONE {
        return Err(Error::Stated("ERR The command has no key arguments"));
    }
    if !command.admits(args.len()) {
        return Err(Error::Stated("ERR Invalid number of arguments specified for command"));
    }
    let positions: Vec<usize> = command.keys.positions(args.len()).collect();
    reply.array(positions.len());
    positions.into_iter().for_each(|at| reply.bulk(args[at]));
    Ok(Plan::Replied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Door;

    #[test]
    fn a_command_is_described_in_the_form_of_redis() {
        let mut door = Door::new();
        let get = "*10 $3 get :2 *2 +readonly +fast :1 :1 :1 *3 +@string +@read +@fast *0 *1 *6 $5 flags *2 +RO +access \
                   $12 begin_search *4 $4 type $5 index $4 spec *2 $5 index :1 $9 find_keys *4 $4 type $5 range $4 spec \
                   *6 $7 lastkey :0 $7 keystep :1 $5 limit :0 *0";
        let id = "*10 $9 client|id :2 *3 +noscript +loading +stale :0 :0 :0 *2 +@connection +@slow *0 *0 *0";
        assert_eq!(door.say("command info GET nope client|ID"), format!("*3 {get} $-1 {id}"));
        assert!(door.say("command").starts_with(&format!("*{} *10 ", all().len())));
        assert_eq!(door.say("command count"), format!(":{}", all().len()));
        let docs = door.say("command docs get nope");
        assert!(docs.starts_with("*2 $3 get *6 $7 summary "), "{docs}");
        door.client.version = crate::resp::Version::Three;
        assert!(
            door.say("command docs client").contains("$11 subcommands %12 $14 client|getname %3")
        );
    }

    #[test]
    fn the_keys_of_a_call_are_found() {
        let mut door = Door::new();
        for (command, reply) in [
            ("command getkeys get k", "*1 $1 k"),
            ("command getkeys mset a 1 b 2", "*2 $1 a $1 b"),
            ("command getkeys object encoding k", "*1 $1 k"),
            ("command getkeys nope 1", "-ERR Invalid command specified"),
            ("command getkeys client id", "-ERR The command has no key arguments"),
            ("command getkeys get k x", "-ERR Invalid number of arguments specified for command"),
            ("command list filterby pattern decr*", "*2 $4 decr $6 decrby"),
            ("command list filterby module x", "*0"),
            ("command list filterby aclcat nope", "*0"),
            ("command list filterby x y", "-ERR syntax error"),
            ("command foo", "-ERR unknown subcommand 'foo'. Try COMMAND HELP."),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        assert!(door.say("command list filterby aclcat dangerous").contains("flushall"));
    }
}
