//! Transactions.

use kv_protocol::client_message::Part;
use kv_protocol::limits::MAX_UPDATES;

use super::{Command, Context, Keys};
use crate::ask::Ask;
use crate::error::Error;
use crate::plan::Plan;
use crate::resp::Reply;
use crate::transaction::{self, Transaction, Watched};

const CONTROL: &[&str] = &["noscript", "loading", "stale", "fast", "allow_busy"];

const fn command(name: &'static str, arity: i32, summary: &'static str) -> Command {
    Command {
        name,
        arity,
        flags: CONTROL,
        keys: Keys::NONE,
        group: "transactions",
        since: "1.2.0",
        summary,
        perform: multi,
        subcommands: &[],
    }
}

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    Command { perform: multi, ..command("multi", 1, "Begins a transaction.") },
    Command {
        perform: transaction::execute,
        ..command("exec", 1, "Executes the commands of a transaction.")
    },
    Command {
        since: "2.0.0",
        perform: discard,
        ..command("discard", 1, "Ends a transaction without executing its commands.")
    },
    Command {
        since: "2.2.0",
        keys: Keys::ALL,
        perform: watch,
        ..command("watch", -2, "Makes the next EXEC fail if a key changes before it.")
    },
    Command {
        since: "2.2.0",
        perform: unwatch,
        ..command("unwatch", 1, "Forgets the keys of WATCH.")
    },
];

fn multi(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    if context.client.transaction.is_some() {
        return Err(Error::Stated("ERR MULTI calls can not be nested"));
    }
    context.client.transaction = Some(Box::new(Transaction::new(context.client.database)));
    reply.ok();
    Ok(Plan::Replied)
}

fn discard(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    if context.client.transaction.take().is_none() {
        return Err(Error::Stated("ERR DISCARD without MULTI"));
    }
    context.client.watched.clear();
    reply.ok();
    Ok(Plan::Replied)
}

fn unwatch(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    context.client.watched.clear();
    reply.ok();
    Ok(Plan::Replied)
}

fn watch(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    if context.client.transaction.is_some() {
        return Err(Error::Stated("ERR WATCH inside MULTI is not allowed"));
    }
    // EXEC checks each in its request.
    if context.client.watched.len() + context.args.len() > MAX_UPDATES {
        return Err(Error::Stated("ERR a connection watches less than 1,024 keys in this store"));
    }
    let keys = (1..context.args.len()).map(|at| Ok(context.key(at)?.into_owned()));
    let keys = keys.collect::<Result<Vec<_>, Error>>()?;
    let asks = keys.iter().map(|key| Ask::part(key, Part::new(0, 0))).collect();
    Ok(Plan::all(asks, move |answers, reply| {
        let watched = keys.into_iter().zip(answers).map(|(key, answer)| Watched {
            key,
            version: answer.is_done().then_some(answer.version),
        });
        reply.ok();
        Ok(Plan::Watched(watched.collect()))
    }))
}
