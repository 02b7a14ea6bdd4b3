//! Counters: values that are numbers.

use kv_protocol::client_message::Status;
use kv_protocol::update::{Action, Update};

use super::{Command, Context, FAST_GROWING, Keys, Perform, integer};
use crate::answer::Answer;
use crate::ask::Ask;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("incr", 2, "1.0.0", "Adds one to an integer.", incr),
    of("decr", 2, "1.0.0", "Subtracts one from an integer.", decr),
    of("incrby", 3, "1.0.0", "Adds to an integer.", incrby),
    of("decrby", 3, "1.0.0", "Subtracts from an integer.", decrby),
    of("incrbyfloat", 3, "2.6.0", "Adds to a floating-point number.", incrbyfloat),
];

const fn of(
    name: &'static str,
    arity: i32,
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (flags, keys, group) = (FAST_GROWING, Keys::ONE, "string");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

fn incr(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    add(context, 1)
}

fn decr(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    add(context, -1)
}

fn incrby(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    add(context, context.integer(2)?)
}

fn decrby(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let amount = context.integer(2)?;
    let amount = amount.checked_neg().ok_or(Error::Stated("ERR decrement would overflow"))?;
    add(context, amount)
}

fn add(context: &Context<'_>, amount: i64) -> Result<Plan, Error> {
    let update = Update::new(Action::Add(amount));
    Ok(Plan::one(Ask::update(&context.key(1)?, &[update]), |answer, reply| match answer.status {
        Status::Overflow => Err(Error::Stated("ERR increment or decrement would overflow")),
        _ => number(answer, reply),
    }))
}

/// Replies with the result of an update, which is an integer.
pub(super) fn number(answer: &Answer<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    match answer.value.filter(|_| answer.is_done()).and_then(integer) {
        Some(number) => reply.integer(number),
        None => return Err(error::NOT_AN_INTEGER),
    }
    Ok(Plan::Replied)
}

fn incrbyfloat(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let update = Update::new(Action::AddFloat(context.args[2]));
    let ask = Ask::try_update(&context.key(1)?, &[update])?;
    Ok(Plan::one(ask, |answer, reply| match (answer.status, answer.value) {
        (Status::Ok, Some(sum)) => {
            reply.bulk(sum);
            Ok(Plan::Replied)
        }
        (Status::Overflow, _) => Err(Error::Stated("ERR increment would produce NaN or Infinity")),
        _ => Err(error::NOT_A_FLOAT),
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;

    #[test]
    fn counters_reply_as_those_of_redis() {
        let mut door = Door::new();
        let overflow = "-ERR increment or decrement would overflow";
        for (command, reply) in [
            ("incr n", ":1"),
            ("incrby n 41", ":42"),
            ("decr n", ":41"),
            ("decrby n -1", ":42"),
            ("decrby n -9223372036854775808", "-ERR decrement would overflow"),
            ("incrby n 9223372036854775807", overflow),
            ("incrby n 1.5", "-ERR value is not an integer or out of range"),
            ("set s abc", "+OK"),
            ("incr s", "-ERR value is not an integer or out of range"),
            ("incrbyfloat s 1", "-ERR value is not a valid float"),
            ("incrbyfloat n x", "-ERR value is not a valid float"),
            ("incrbyfloat n 1.5", "$4 43.5"),
            ("incrbyfloat n inf", "-ERR increment would produce NaN or Infinity"),
            ("incr n", "-ERR value is not an integer or out of range"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
    }
}
