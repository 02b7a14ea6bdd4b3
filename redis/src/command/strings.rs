//! Strings: values as such.

use kv_protocol::client_message::{Condition, Part};
use kv_protocol::limits::MAX_VALUE_BYTES;
use kv_protocol::update::{Action, Expiry, Precondition, Update};

use super::options::{Options, Unit};
use super::{Command, Context, FAST_GROWING, FAST_READ, FAST_WRITE, GROWING, Keys, Perform};
use crate::answer::Answer;
use crate::ask::Ask;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("get", 2, FAST_READ, "1.0.0", "Returns the value of a key.", get),
    of(
        "set",
        -3,
        GROWING,
        "1.0.0",
        "Sets the value of a key, with conditions and a deadline.",
        set,
    ),
    of("getex", -2, FAST_WRITE, "6.2.0", "Returns the value and changes its deadline.", getex),
    of("getdel", 2, FAST_WRITE, "6.2.0", "Returns the value and removes the key.", getdel),
    of("getset", 3, FAST_GROWING, "1.0.0", "Sets the value and returns the old one.", getset),
    of("setnx", 3, FAST_GROWING, "1.0.0", "Sets the value if the key does not exist.", setnx),
    of("setex", 4, GROWING, "2.0.0", "Sets the value and a deadline in seconds.", setex),
    of("psetex", 4, GROWING, "2.6.0", "Sets the value and a deadline in milliseconds.", psetex),
    of("delifeq", 3, FAST_WRITE, "9.0.0", "Removes the key if it has this value.", delifeq),
];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (keys, group) = (Keys::ONE, "string");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

fn get(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let (key, digest) = context.first_key()?;
    Ok(Plan::one(Ask::get_in(context.frames, (&key, digest)), value))
}

/// Replies with the value, or null.
fn value(answer: &Answer<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.bulk_or_null(answer.value);
    Ok(Plan::Replied)
}

/// Replies OK.
fn ok(_: &Answer<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.ok();
    Ok(Plan::Replied)
}

/// Replies OK, or null if the condition does not hold.
fn ok_or_null(answer: &Answer<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    if answer.is_done() {
        reply.ok()
    } else {
        reply.null()
    }
    Ok(Plan::Replied)
}

/// Replies 1, or 0 if nothing was changed.
fn is_done(answer: &Answer<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.integer(answer.is_done().into());
    Ok(Plan::Replied)
}

fn set(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let ((key, digest), new) = (context.first_key()?, context.args[2]);
    if new.len() > MAX_VALUE_BYTES {
        return Err(error::TOO_LONG);
    }
    if context.args.len() == 3 {
        return Ok(Plan::one(
            Ask::put_in(context.frames, (&key, digest), new, Condition::Always),
            ok,
        ));
    }
    let Options { condition, returns_old, expiry } = Options::of_set(context)?;
    let put = Update::new(Action::Put(new));
    let update = Update {
        condition: condition.unwrap_or(Precondition::None),
        expiry: expiry.unwrap_or(put.expiry),
        returns_value: returns_old,
        ..put
    };
    let ask = match update {
        Update { condition: Precondition::Absent, expiry: Expiry::Never, .. } if !returns_old => {
            Ask::put_in(context.frames, (&key, digest), new, Condition::IfAbsent)
        }
        update => Ask::try_update(&key, &[update])?,
    };
    Ok(match returns_old {
        true => Plan::one(ask, value),
        false => Plan::one(ask, ok_or_null),
    })
}

fn getex(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let key = context.key(1)?;
    let expiry = match Options::of_getex(context)? {
        Ok(Some(expiry)) => expiry,
        Ok(None) => return Ok(Plan::one(Ask::get(&key), value)),
        Err(error) => {
            return Ok(Plan::one(Ask::part(&key, Part::new(0, 0)), |answer, reply| {
                if answer.is_done() { Err(error) } else { value(answer, reply) }
            }));
        }
    };
    let condition = match expiry {
        Expiry::Never => Precondition::HasDeadline,
        _ => Precondition::None,
    };
    let update = Update::new(Action::SetExpiry);
    let update = Update { condition, expiry, returns_value: true, ..update };
    Ok(Plan::one(Ask::update(&key, &[update]), value))
}

fn getdel(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let update = Update { returns_value: true, ..Update::new(Action::Delete) };
    Ok(Plan::one(Ask::update(&context.key(1)?, &[update]), value))
}

fn getset(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let update = Update { returns_value: true, ..Update::new(Action::Put(context.args[2])) };
    Ok(Plan::one(Ask::try_update(&context.key(1)?, &[update])?, value))
}

fn setnx(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let ((key, digest), new) = (context.first_key()?, context.args[2]);
    if new.len() > MAX_VALUE_BYTES {
        return Err(error::TOO_LONG);
    }
    Ok(Plan::one(Ask::put_in(context.frames, (&key, digest), new, Condition::IfAbsent), is_done))
}

fn setex(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    set_until(context, Unit::EX, "setex")
}

fn psetex(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    set_until(context, Unit::PX, "psetex")
}

fn set_until(context: &Context<'_>, unit: Unit, command: &str) -> Result<Plan, Error> {
    let expiry = unit.parse(context.args[2], context.wall(), command)?;
    let update = Update { expiry, ..Update::new(Action::Put(context.args[3])) };
    Ok(Plan::one(Ask::try_update(&context.key(1)?, &[update])?, ok))
}

fn delifeq(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let condition = Precondition::Value(context.args[2]);
    let update = Update { condition, ..Update::new(Action::Delete) };
    Ok(Plan::one(Ask::try_update(&context.key(1)?, &[update])?, is_done))
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;

    #[test]
    fn set_executes_under_each_condition_and_replies_as_redis() {
        let mut door = Door::new();
        for (command, reply) in [
            ("set k 1 xx", "$-1"),
            ("set k 1 nx get", "$-1"),
            ("set k 2 nx get", "$1 1"),
            ("set k 2 nx", "$-1"),
            ("set k 2 xx get", "$1 1"),
            ("set k 3 ifeq 1", "$-1"),
            ("set k 3 ifeq 2", "+OK"),
            ("set k 4 ifeq 9 get", "$1 3"),
            ("set absent 4 ifeq 9", "$-1"),
            ("set k 4 IFEQ 3 EX 100", "+OK"),
            ("get k", "$1 4"),
            ("setnx k 5", ":0"),
            ("setnx other 5", ":1"),
            ("getset k 6", "$1 4"),
            ("getset third 6", "$-1"),
            ("getdel third", "$1 6"),
            ("getdel third", "$-1"),
            ("delifeq k 5", ":0"),
            ("delifeq k 6", ":1"),
            ("delifeq k 6", ":0"),
            ("get k", "$-1"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
    }

    #[test]
    fn malformed_options_have_the_errors_of_redis() {
        let mut door = Door::new();
        let syntax = "-ERR syntax error";
        let integer = "-ERR value is not an integer or out of range";
        for (command, reply) in [
            ("set k v nx xx", syntax),
            ("set k v nx ifeq 1", syntax),
            ("set k v ifeq 1 ifeq 1", syntax),
            ("set k v ifeq", syntax),
            ("set k v ex", syntax),
            ("set k v ex 1 px 1", syntax),
            ("set k v ex 1 keepttl", syntax),
            ("set k v persist", syntax),
            ("set k v foo", syntax),
            ("set k v ex x", integer),
            ("set k v ex 0", "-ERR invalid expire time in 'set' command"),
            ("set k v ex 9223372036854775807", "-ERR invalid expire time in 'set' command"),
            ("set k v px 9223372036854775807", "-ERR invalid expire time in 'set' command"),
            ("getex k keepttl", syntax),
            ("getex k ex 1 persist", syntax),
            ("getex k ex -1", "$-1"),
            ("set k v", "+OK"),
            ("getex k ex -1", "-ERR invalid expire time in 'getex' command"),
            ("del k", ":1"),
            ("setex k x v", integer),
            ("setex k 0 v", "-ERR invalid expire time in 'setex' command"),
            ("psetex k -1 v", "-ERR invalid expire time in 'psetex' command"),
            ("get", "-ERR wrong number of arguments for 'get' command"),
            ("get k", "$-1"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
    }

    #[test]
    fn a_request_that_the_store_cannot_have_is_an_error() {
        let mut door = Door::new();
        let (half, long) = (vec![0; 9 << 20], vec![0; (16 << 20) + 1]);
        let error = b"-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n";
        assert_eq!(door.run(&[b"set", b"k", &half, b"ifeq", &half]), error);
        assert_eq!(door.run(&[b"set", b"k", &long]), error);
        assert_eq!(door.run(&[b"setnx", b"k", &long]), error);
        let key = vec![1; 65_536];
        assert!(door.run(&[b"get", &key]).starts_with(b"-ERR a key has 1 to"));
    }
}
