//! The removal of all keys.

use kv_protocol::placement::Placement;
use kv_protocol::update::Action;

use super::pages::{self, Selection, Walk};
use super::{Command, Context, Keys, Perform, WRITE, batch};
use crate::ask::Ask;
use crate::database;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("flushdb", "Removes all keys of the database, a page of each shard at a time.", flushdb),
    of("flushall", "Removes all keys of all databases, also those of native clients.", flushall),
];

const fn of(name: &'static str, summary: &'static str, perform: Perform) -> Command {
    let (arity, flags, keys, group) = (-1, WRITE, Keys::NONE, "server");
    Command { name, arity, flags, keys, group, since: "1.0.0", summary, perform, subcommands: &[] }
}

fn flushdb(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    check(context)?;
    let database = context.client.database;
    let walk = Walk::new(pages::tokens(context), Selection::new(database, b"*")?);
    Flush { walk, placement: context.placement(), prefix: database::prefix(database) }
        .next(Vec::new(), reply)
}

fn flushall(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    check(context)?;
    let walk = Walk::new(pages::tokens(context), Selection::of_all_databases());
    Flush { walk, placement: context.placement(), prefix: Vec::new() }.next(Vec::new(), reply)
}

/// Checks the option, which changes nothing: the reply always comes after the removal.
fn check(context: &Context<'_>) -> Result<(), Error> {
    match context.args.len() {
        1 => Ok(()),
        2 if context.is(1, "async") || context.is(1, "sync") => Ok(()),
        _ => Err(error::SYNTAX),
    }
}

/// A removal in progress.
struct Flush {
    walk: Walk,
    placement: Placement,
    /// The bytes of the stored keys before the selected ones.
    prefix: Vec<u8>,
}

impl Flush {
    /// Reads the next pages, and at the same time removes the keys of the last ones. So the connection has a request in
    /// flight that concerns all keys as long as more keys may be removed, and no later command of it begins.
    fn next(mut self, removals: Vec<Ask>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
        let mut asks = self.walk.next();
        let pages = asks.len();
        asks.extend(removals);
        if asks.is_empty() {
            reply.ok();
            return Ok(Plan::Replied);
        }
        Ok(Plan::all(asks, move |answers, reply| {
            let mut items = Vec::new();
            for page in self.walk.take(&answers[..pages])? {
                let keys = self.walk.selection().keys(&page)?.into_iter();
                let stored = |key: &[u8]| [&self.prefix, key].concat().into();
                items.extend(keys.map(|key| (stored(key), Action::Delete)));
            }
            let removals = batch::requests(self.placement, &items);
            self.next(removals, reply)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Door;
    use kv_protocol::client_message::Operation;

    #[test]
    fn a_flush_removes_the_keys_of_one_database_or_of_all() {
        let mut door = Door::with(Placement::new(3, 2));
        let fill = |door: &mut Door| {
            for database in [0, 1, 15] {
                door.client.database = database;
                for key in 0..50 {
                    door.say(&format!("set key{key}? {database}"));
                }
            }
        };
        let sizes = |door: &mut Door| {
            [0, 1, 15].map(|database| {
                door.client.database = database;
                door.say("dbsize")
            })
        };
        fill(&mut door);
        assert_eq!(sizes(&mut door), [":50", ":50", ":50"]);
        door.client.database = 1;
        assert_eq!(door.say("flushdb async"), "+OK");
        assert_eq!(sizes(&mut door), [":50", ":0", ":50"]);
        door.client.database = 0;
        assert_eq!(door.say("flushdb"), "+OK");
        // A request that concerns all keys is in flight until no more keys are removed. So no later command of the
        // connection begins, whose keys might be removed too.
        let is_scan = |ask: &Ask| matches!(ask.request().operation, Operation::Scan(_));
        let (_, steps) = door.steps.split_last().unwrap();
        assert!(steps.len() > 3 && steps.iter().all(|asks| asks.iter().any(is_scan)));
        assert_eq!(sizes(&mut door), [":0", ":0", ":50"]);
        fill(&mut door);
        assert_eq!(door.say("flushall SYNC"), "+OK");
        assert_eq!(sizes(&mut door), [":0", ":0", ":0"]);
        assert_eq!(door.say("flushall now"), "-ERR syntax error");
        assert_eq!(door.say("flushdb sync async"), "-ERR syntax error");
    }
}
