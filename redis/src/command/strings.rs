//! Strings: values as such, and as counters.

use kv_protocol::client_message::Condition;

use super::{Command, Context, Keys};
use crate::ask::Ask;
use crate::error::Error;
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "get",
        arity: 2,
        flags: &["readonly", "fast"],
        keys: Keys::ONE,
        group: "string",
        summary: "Returns the value of a key.",
        perform: get,
    },
    Command {
        name: "set",
        arity: -3,
        flags: &["write", "denyoom"],
        keys: Keys::ONE,
        group: "string",
        summary: "Sets the value of a key.",
        perform: set,
    },
];

fn get(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    Ok(Plan::one(Ask::get(&context.key(1)?), |answer, reply| {
        reply.bulk_or_null(answer.value);
        Ok(Plan::Replied)
    }))
}

fn set(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let ask = Ask::put(&context.key(1)?, context.args[2], Condition::Always);
    Ok(Plan::one(ask, |_, reply| {
        reply.ok();
        Ok(Plan::Replied)
    }))
}
