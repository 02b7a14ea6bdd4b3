//! Deadlines of keys.

use kv_protocol::client_message::Part;
use kv_protocol::ids::WallTime;
use kv_protocol::update::{Action, Expiry, Precondition, Update};

use super::options::Unit;
use super::{Command, Context, FAST_READ, FAST_WRITE, Keys, Perform};
use crate::ask::Ask;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("expire", -3, FAST_WRITE, "1.0.0", "Sets a deadline in seconds from now.", expire),
    of("pexpire", -3, FAST_WRITE, "2.6.0", "Sets a deadline in milliseconds from now.", pexpire),
    of("expireat", -3, FAST_WRITE, "1.2.0", "Sets a deadline in seconds since 1970.", expireat),
    of("pexpireat", -3, FAST_WRITE, "2.6.0", "Sets one in milliseconds since 1970.", pexpireat),
    of("persist", 2, FAST_WRITE, "2.2.0", "Removes the deadline of a key.", persist),
    of("ttl", 2, FAST_READ, "1.0.0", "Returns the seconds to the deadline.", ttl),
    of("pttl", 2, FAST_READ, "2.6.0", "Returns the milliseconds to the deadline.", pttl),
    of("expiretime", 2, FAST_READ, "7.0.0", "Returns the deadline in seconds.", expiretime),
    of("pexpiretime", 2, FAST_READ, "7.0.0", "Returns it in milliseconds.", pexpiretime),
];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (keys, group) = (Keys::ONE, "generic");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

fn expire(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    set_deadline(context, Unit::EX, "expire")
}

fn pexpire(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    set_deadline(context, Unit::PX, "pexpire")
}

fn expireat(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    set_deadline(context, Unit::EXAT, "expireat")
}

fn pexpireat(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    set_deadline(context, Unit::PXAT, "pexpireat")
}

fn set_deadline(context: &Context<'_>, unit: Unit, command: &str) -> Result<Plan, Error> {
    let conditions = conditions(context)?;
    let number = context.integer(2)?;
    let millis = unit.millis(number, context.wall()).ok_or_else(|| error::expire_time(command))?;
    let expiry = unit.expiry(millis);
    let check = |condition| Update { condition, ..Update::new(Action::Check) };
    let set = |condition| Update { condition, expiry, ..Update::new(Action::SetExpiry) };
    let key = context.key(1)?;
    let ask = match conditions[..] {
        [] => Ask::update(&key, &[set(Precondition::None)]),
        [condition] => Ask::update(&key, &[set(condition)]),
        // An update has one condition.
        [first, second, ..] => Ask::update(&key, &[check(first), set(second)]),
    };
    Ok(Plan::one(ask, |answer, reply| {
        reply.integer(answer.is_done().into());
        Ok(Plan::Replied)
    }))
}

/// Returns the conditions of the options, at most two.
fn conditions(context: &Context<'_>) -> Result<Vec<Precondition<'static>>, Error> {
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for at in 3..context.args.len() {
        let options = [("nx", &mut nx), ("xx", &mut xx), ("gt", &mut gt), ("lt", &mut lt)];
        match options.into_iter().find(|(name, _)| context.is(at, name)) {
            Some((_, is_set)) => *is_set = true,
            None => {
                let option = error::shown(context.args[at]);
                return Err(Error::Text(format!("ERR Unsupported option {option}")));
            }
        }
    }
    match (nx, xx, gt, lt) {
        (true, xx, gt, lt) if xx || gt || lt => Err(Error::Stated(
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        )),
        (_, _, true, true) => {
            Err(Error::Stated("ERR GT and LT options at the same time are not compatible"))
        }
        (true, ..) => Ok(vec![Precondition::NoDeadline]),
        // No deadline is earlier than none.
        (_, _, true, _) => Ok(vec![Precondition::Later]),
        (_, true, _, true) => Ok(vec![Precondition::HasDeadline, Precondition::Earlier]),
        (_, _, _, true) => Ok(vec![Precondition::Earlier]),
        (_, true, ..) => Ok(vec![Precondition::HasDeadline]),
        _ => Ok(Vec::new()),
    }
}

fn persist(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let update = Update {
        condition: Precondition::HasDeadline,
        expiry: Expiry::Never,
        ..Update::new(Action::SetExpiry)
    };
    Ok(Plan::one(Ask::update(&context.key(1)?, &[update]), |answer, reply| {
        reply.integer(answer.is_done().into());
        Ok(Plan::Replied)
    }))
}

fn ttl(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    deadline(context, context.wall(), true)
}

fn pttl(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    deadline(context, context.wall(), false)
}

fn expiretime(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    deadline(context, WallTime::from_millis(0), true)
}

fn pexpiretime(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    deadline(context, WallTime::from_millis(0), false)
}

/// Replies with the time from `origin` to the deadline, -1 if there is none, and -2 if there is no entry.
fn deadline(context: &Context<'_>, origin: WallTime, in_seconds: bool) -> Result<Plan, Error> {
    let ask = Ask::part(&context.key(1)?, Part::ONLY_DEADLINE);
    Ok(Plan::one(ask, move |answer, reply| {
        reply.integer(match answer.deadline {
            _ if !answer.is_done() => -2,
            None => -1,
            Some(deadline) => {
                let millis = deadline.millis().saturating_sub(origin.millis());
                let time = if in_seconds { (millis + 500) / 1_000 } else { millis };
                i64::try_from(time).unwrap_or(i64::MAX)
            }
        });
        Ok(Plan::Replied)
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;
    use kv_protocol::ids::WallTime;

    #[test]
    fn deadlines_are_set_under_each_condition_and_shown() {
        let mut door = Door::new();
        door.say("set k v");
        for (command, reply) in [
            ("ttl k", ":-1"),
            ("pexpiretime k", ":-1"),
            ("ttl x", ":-2"),
            ("expire x 10", ":0"),
            ("expire x 10 xx lt", ":0"),
            ("persist x", ":0"),
            ("persist k", ":0"),
            ("expire k 10 xx", ":0"),
            ("expire k 10 gt", ":0"),
            ("expire k 10 xx gt", ":0"),
            ("expire k 10 xx lt", ":0"),
            ("expire k 100 lt", ":1"),
            ("expire k 10 nx", ":0"),
            ("expire k 200 lt", ":0"),
            ("expire k 200 xx lt", ":0"),
            ("expire k 200 GT", ":1"),
            ("expire k 100 xx lt", ":1"),
            ("ttl k", ":100"),
            ("pttl k", ":100000"),
            ("pexpiretime k", ":1700000100000"),
            ("expiretime k", ":1700000100"),
            ("pexpire k 1499", ":1"),
            ("ttl k", ":1"),
            ("persist k", ":1"),
            ("expire k 10 nx", ":1"),
            ("set k v keepttl", "+OK"),
            ("ttl k", ":10"),
            ("getex k persist", "$1 v"),
            ("ttl k", ":-1"),
            ("getex k px 7", "$1 v"),
            ("pttl k", ":7"),
            ("getex k", "$1 v"),
            ("getex x ex 1", "$-1"),
            ("pttl k", ":7"),
            ("set k v exat 1700000005", "+OK"),
            ("pttl k", ":5000"),
            ("getset k v", "$1 v"),
            ("ttl k", ":-1"),
            ("psetex k 3 v", "+OK"),
            ("pttl k", ":3"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        door.store.wall = WallTime::from_millis(1_700_000_000_003);
        assert_eq!(door.say("exists k"), ":0");
        assert_eq!(door.say("ttl k"), ":-2");
    }

    #[test]
    fn a_deadline_in_the_past_removes_the_key() {
        let mut door = Door::new();
        for command in [
            "expire k -1",
            "pexpire k 0",
            "expireat k 1",
            "pexpireat k -5",
            "expire k -1 lt",
            "expire k -9223372036854775",
        ] {
            door.say("set k v");
            assert_eq!(door.say(command), ":1", "{command}");
            assert_eq!(door.say("exists k"), ":0", "{command}");
        }
        door.say("set k v");
        assert_eq!(door.say("getex k exat 1"), "$1 v");
        assert_eq!(door.say("exists k"), ":0");
        assert_eq!(door.say("set k v exat 1"), "+OK");
        assert_eq!(door.say("exists k"), ":0");
    }

    #[test]
    fn malformed_times_and_options_have_the_errors_of_redis() {
        let mut door = Door::new();
        let nx = "-ERR NX and XX, GT or LT options at the same time are not compatible";
        for (command, reply) in [
            ("expire k x", "-ERR value is not an integer or out of range"),
            ("expire k 1 foo", "-ERR Unsupported option foo"),
            ("expire k x foo", "-ERR Unsupported option foo"),
            ("expire k 1 nx xx", nx),
            ("expire k 1 gt nx", nx),
            ("expire k 1 gt lt", "-ERR GT and LT options at the same time are not compatible"),
            ("expire k 9223372036854775807", "-ERR invalid expire time in 'expire' command"),
            ("pexpire k 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"),
            ("pexpireat k 9223372036854775807", ":0"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
    }
}
