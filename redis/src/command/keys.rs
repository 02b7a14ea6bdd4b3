//! Keys: whether they exist, their names, and what Redis shows of their values.

use kv_protocol::client_message::{Part, Status};
use kv_protocol::eviction::Eviction;
use kv_protocol::update::{Action, Precondition, Update};

use super::{
    Command, Context, FAST_READ, FAST_WRITE, GROWING, Keys, Perform, READ, WRITE, batch, integer,
    subcommands,
};
use crate::answer::Answer;
use crate::ask::Ask;
use crate::database::{self, DATABASES, StoredKey};
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("del", -2, WRITE, Keys::ALL, "1.0.0", "Removes keys, those of one shard at once.", del),
    of("unlink", -2, FAST_WRITE, Keys::ALL, "4.0.0", "Removes keys, as DEL.", del),
    of("exists", -2, FAST_READ, Keys::ALL, "1.0.0", "Counts the keys that exist.", exists),
    of("touch", -2, FAST_READ, Keys::ALL, "3.2.1", "Marks keys as used.", exists),
    of("type", 2, FAST_READ, Keys::ONE, "1.0.0", "Returns the type of a value.", type_of),
    of("rename", 3, WRITE, Keys::TWO, "1.0.0", "Renames a key within its shard.", rename),
    of("renamenx", 3, FAST_WRITE, Keys::TWO, "1.0.0", "Renames to a key that is free.", renamenx),
    of("copy", -3, GROWING, Keys::TWO, "6.2.0", "Copies a value within its shard.", copy),
    Command {
        subcommands: OBJECT,
        ..of(
            "object",
            -2,
            &[],
            Keys::NONE,
            "2.2.3",
            "Shows properties of values.",
            subcommands::none,
        )
    },
];

const OBJECT: &[Command] = &[
    object("object|encoding", "2.2.3", "Returns how Redis would hold the value.", encoding),
    object("object|freq", "4.0.0", "Returns how often the value is used.", freq),
    object("object|idletime", "2.2.3", "Returns the time since the last use.", idletime),
    object("object|refcount", "2.2.3", "Returns the number of references to the value.", refcount),
    Command {
        arity: 2,
        flags: &["loading", "stale"],
        keys: Keys::NONE,
        ..object("object|help", "6.2.0", "Lists the subcommands.", subcommands::help)
    },
];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    keys: Keys,
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let group = "generic";
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

const fn object(
    name: &'static str,
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    of(name, 3, READ, Keys::AFTER_SUBCOMMAND, since, summary, perform)
}

/// The part of a value without bytes. A read of it marks the entry as used.
const NOTHING: Part = Part::new(0, 0);

fn del(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let items = (1..context.args.len())
        .map(|at| Ok((context.key(at)?, Action::Delete)))
        .collect::<Result<Vec<_>, Error>>()?;
    let asks = batch::requests(context.placement(), &items);
    Ok(Plan::all(asks, |answers, reply| {
        reply.integer(answers.iter().map(batch::executed).sum());
        Ok(Plan::Replied)
    }))
}

fn exists(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let asks = (1..context.args.len())
        .map(|at| Ok(Ask::part(&context.key(at)?, NOTHING)))
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(Plan::all(asks, |answers, reply| {
        reply.integer(answers.iter().map(|answer| i64::from(answer.is_done())).sum());
        Ok(Plan::Replied)
    }))
}

fn type_of(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    Ok(Plan::one(Ask::part(&context.key(1)?, NOTHING), |answer, reply| {
        reply.simple(if answer.is_done() { "string" } else { "none" });
        Ok(Plan::Replied)
    }))
}

/// Returns the stored keys of a command with a source and a destination in this database.
fn ends<'a>(context: &Context<'a>, database: u8) -> Result<(StoredKey<'a>, StoredKey<'a>), Error> {
    Ok((context.key(1)?, database::stored(database, context.args[2])?))
}

/// Checks that two keys are of one shard.
fn check_shard(context: &Context<'_>, from: &[u8], to: &[u8]) -> Result<(), Error> {
    let placement = context.placement();
    match placement.locate(from) == placement.locate(to) {
        true => Ok(()),
        false => Err(error::CROSS_SLOT),
    }
}

fn rename(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let (from, to) = ends(context, context.client.database)?;
    check_shard(context, &from, &to)?;
    let ask = Ask::try_update(&from, &[Update::new(Action::Rename(&to))])?;
    Ok(Plan::one(ask, |answer, reply| match answer.status {
        Status::NotFound => Err(error::NO_SUCH_KEY),
        _ => {
            reply.ok();
            Ok(Plan::Replied)
        }
    }))
}

fn renamenx(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let (from, to) = ends(context, context.client.database)?;
    check_shard(context, &from, &to)?;
    let check = |key, condition| Update { key, condition, ..Update::new(Action::Check) };
    let updates = [
        check(None, Precondition::Present),
        check(Some(&to[..]), Precondition::Absent),
        Update::new(Action::Rename(&to)),
    ];
    Ok(Plan::one(Ask::try_update(&from, &updates)?, |answer, reply| {
        match (answer.status, answer.value) {
            // The index of the condition that does not hold.
            (Status::Conflict, Some(b"0")) => return Err(error::NO_SUCH_KEY),
            _ => reply.integer(answer.is_done().into()),
        }
        Ok(Plan::Replied)
    }))
}

fn copy(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let (mut database, mut replaces, mut at) = (context.client.database, false, 3);
    while at < context.args.len() {
        if context.is(at, "replace") {
            replaces = true;
        } else if context.is(at, "db") && at + 1 < context.args.len() {
            at += 1;
            let number = u8::try_from(context.integer(at)?).ok();
            database =
                number.filter(|number| *number < DATABASES).ok_or(error::NO_SUCH_DATABASE)?;
        } else {
            return Err(error::SYNTAX);
        }
        at += 1;
    }
    let (from, to) = ends(context, database)?;
    if from == to {
        return Err(Error::Stated("ERR source and destination objects are the same"));
    }
    check_shard(context, &from, &to)?;
    let copy = Update::new(Action::Copy(&to));
    let is_free =
        Update { key: Some(&to), condition: Precondition::Absent, ..Update::new(Action::Check) };
    let ask = match replaces {
        true => Ask::try_update(&from, &[copy])?,
        false => Ask::try_update(&from, &[is_free, copy])?,
    };
    Ok(Plan::one(ask, |answer, reply| {
        let is_copied = match answer.value {
            // The check counts too.
            Some(_) => batch::executed(answer) == 2,
            None => answer.is_done(),
        };
        reply.integer(is_copied.into());
        Ok(Plan::Replied)
    }))
}

/// The length of the longest text of an integer.
const INTEGER_BYTES_MAX: u32 = 20;
/// The length of the longest value that Redis holds together with its head.
const EMBEDDED_BYTES_MAX: u32 = 44;
/// The integers below this number are shared by all values of Redis that have them.
const SHARED_INTEGERS: i64 = 10_000;

fn encoding(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    of_value(context, |answer, reply| {
        reply.bulk(match number(answer) {
            Some(_) => b"int",
            None if answer.whole <= EMBEDDED_BYTES_MAX => b"embstr",
            None => b"raw",
        });
        Ok(Plan::Replied)
    })
}

fn refcount(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    of_value(context, |answer, reply| {
        let is_shared = number(answer).is_some_and(|number| (0..SHARED_INTEGERS).contains(&number));
        reply.integer(if is_shared { i32::MAX.into() } else { 1 });
        Ok(Plan::Replied)
    })
}

fn freq(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let eviction = context.server.facts().eviction;
    of_value(context, move |_, reply| match eviction {
        Eviction::Lfu => {
            reply.integer(0);
            Ok(Plan::Replied)
        }
        Eviction::None | Eviction::Ttl => Err(Error::Stated(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching \
             between policies at runtime LRU and LFU data will take some time to adjust.",
        )),
    })
}

fn idletime(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let eviction = context.server.facts().eviction;
    of_value(context, move |_, reply| match eviction {
        Eviction::None | Eviction::Ttl => {
            reply.integer(0);
            Ok(Plan::Replied)
        }
        Eviction::Lfu => Err(Error::Stated(
            "ERR An LFU maxmemory policy is selected, idle time not tracked. Please note that when switching between \
             policies at runtime LRU and LFU data will take some time to adjust.",
        )),
    })
}

/// Reads the value if it is so short that it may be an integer, and replies null if there is none.
fn of_value(
    context: &Context<'_>,
    finish: impl FnOnce(&Answer<'_>, &mut Reply<'_>) -> Result<Plan, Error> + Send + 'static,
) -> Result<Plan, Error> {
    let part = Part { all_or_nothing: true, ..Part::new(0, INTEGER_BYTES_MAX) };
    Ok(Plan::one(Ask::part(&context.key(2)?, part), |answer, reply| match answer.status {
        Status::NotFound => {
            reply.null();
            Ok(Plan::Replied)
        }
        _ => finish(answer, reply),
    }))
}

fn number(answer: &Answer<'_>) -> Option<i64> {
    answer.value.and_then(integer)
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;
    use kv_protocol::placement::Placement;

    #[test]
    fn keys_are_counted_and_removed_in_all_shards() {
        let mut door = Door::with(Placement::new(3, 2));
        door.say("mset a 1 b 2 c 3 d 4 e 5");
        for (command, reply) in [
            ("exists a b a x", ":3"),
            ("touch a x", ":1"),
            ("type a", "+string"),
            ("type x", "+none"),
            ("del a b a x c", ":3"),
            ("unlink d", ":1"),
            ("del d", ":0"),
            ("exists a b c d e", ":1"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
    }

    #[test]
    fn keys_are_renamed_and_copied() {
        let mut door = Door::new();
        door.say("mset a 1 b 2");
        for (command, reply) in [
            ("rename x y", "-ERR no such key"),
            ("renamenx x x", "-ERR no such key"),
            ("renamenx a b", ":0"),
            ("renamenx a a", ":0"),
            ("rename a a", "+OK"),
            ("renamenx a c", ":1"),
            ("rename c b", "+OK"),
            ("mget a b c", "*3 $-1 $1 1 $-1"),
            ("copy b d", ":1"),
            ("copy b d", ":0"),
            ("copy x y", ":0"),
            ("copy x y replace", ":0"),
            ("copy b d REPLACE", ":1"),
            ("copy b b", "-ERR source and destination objects are the same"),
            ("copy b b db 3", ":1"),
            ("copy b b db 3", ":0"),
            ("copy b c db 16", "-ERR DB index is out of range"),
            ("copy b c db x", "-ERR value is not an integer or out of range"),
            ("copy b c db", "-ERR syntax error"),
            ("copy b c foo", "-ERR syntax error"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        door.client.database = 3;
        assert_eq!(door.say("get b"), "$1 1");
        let mut door = Door::with(Placement::new(64, 1));
        for command in ["rename a b", "renamenx a b", "copy a b", "copy a a db 1"] {
            let reply = door.say(command);
            assert_eq!(reply, "-CROSSSLOT Keys in request don't hash to the same slot");
        }
        let mut door = Door::with(Placement::new(64, 1).with_hash_tags(true));
        door.say("set {a} 1");
        assert_eq!(door.say("copy {a} b{a} db 1"), ":1");
    }

    #[test]
    fn values_are_described_as_redis_would_hold_them() {
        let mut door = Door::new();
        let (embedded, raw) = ("x".repeat(44), "x".repeat(45));
        door.say(&format!("mset n -12 e {embedded} r {raw} s 7 f 1.5"));
        for (command, reply) in [
            ("object encoding n", "$3 int"),
            ("object encoding e", "$6 embstr"),
            ("object encoding f", "$6 embstr"),
            ("object encoding r", "$3 raw"),
            ("object encoding x", "$-1"),
            ("object refcount n", ":1"),
            ("object refcount s", ":2147483647"),
            ("object idletime n", ":0"),
            ("object freq x", "$-1"),
            ("object foo n", "-ERR unknown subcommand 'foo'. Try OBJECT HELP."),
            ("object encoding", "-ERR wrong number of arguments for 'object|encoding' command"),
            ("object", "-ERR wrong number of arguments for 'object' command"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        assert!(door.say("object freq n").starts_with("-ERR An LFU maxmemory policy is not"));
    }
}
