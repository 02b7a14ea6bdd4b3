//! Commands that concern the connection itself.

use super::{Command, Context, Keys};
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "ping",
        arity: -1,
        flags: &["fast"],
        keys: Keys::NONE,
        group: "connection",
        since: "1.0.0",
        subcommands: &[],
        summary: "Responds with PONG, or with the argument.",
        perform: ping,
    },
    Command {
        name: "quit",
        arity: -1,
        flags: &["noscript", "loading", "stale", "fast", "no_auth", "allow_busy"],
        keys: Keys::NONE,
        group: "connection",
        since: "1.0.0",
        subcommands: &[],
        summary: "Closes the connection.",
        perform: quit,
    },
];

fn ping(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    match context.args {
        [_] => reply.simple("PONG"),
        [_, text] => reply.bulk(text),
        _ => return Err(error::arity("ping")),
    }
    Ok(Plan::Replied)
}

fn quit(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.ok();
    Ok(Plan::Close)
}
