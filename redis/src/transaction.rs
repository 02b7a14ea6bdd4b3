//! Transactions: the commands between MULTI and EXEC, and their execution as one request, or in several steps.
//!
//! ```text
//!   WATCH k          client.watched: k, version
//!   MULTI            client.transaction
//!   INCR k, GET j    queued                           all keys of one shard
//!   EXEC             UPDATE [ k has the version | k ADD 1 | j CHECK ]   all at once, or nothing
//!                           |                   |         |
//!                           +- else null        +- reply  +- reply
//! ```
//!
//! Each command makes its requests as outside of a transaction. The updates in them become one UPDATE, and each command
//! makes its reply from the results of its own. A command that fails changes nothing, and the others take effect, as in
//! Redis.
//!
//! With `--redis-multi ordered`, a transaction with keys of several shards has several steps ([`Running`]).

use kv_protocol::RedisMulti;
use kv_protocol::client_message::{Condition, Operation, Part, Status};
use kv_protocol::ids::{GroupId, SequenceNumber, ShardId};
use kv_protocol::limits::MAX_UPDATES;
use kv_protocol::placement::Placement;
use kv_protocol::update::{Action, Precondition, Update, UpdateResult};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::command::{Command, Context};
use crate::database;
use crate::error::{self, Error};
use crate::plan::{Finish, Plan};
use crate::resp::{MAX_COMMAND_BYTES, Reply, Version};

mod running;

pub use running::{Ended, Running, go_on};

/// A key whose change makes EXEC fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The stored key.
    pub key: Vec<u8>,
    /// Its version at WATCH; `None` if it did not exist.
    pub version: Option<SequenceNumber>,
}

/// The commands since MULTI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    calls: Vec<Vec<Vec<u8>>>,
    bytes: usize,
    /// The place of all keys so far.
    place: Option<(GroupId, ShardId)>,
    /// The database that the next command will find selected.
    database: u8,
    /// The number of commands that take long.
    costly: usize,
    /// True if a command was rejected. EXEC then fails.
    is_aborted: bool,
    /// True if the commands are executed one after the other, because they cannot be one request.
    is_in_order: bool,
}

/// The commands that are refused unless transactions may be executed in order: those that concern all shards, and MSETNX,
/// whose conditions would prevent the other commands of the request.
const ACROSS_SHARDS: &[&str] =
    &["keys", "scan", "dbsize", "randomkey", "flushdb", "flushall", "swapdb", "msetnx"];

impl Transaction {
    /// Creates an empty transaction of a connection that has selected this database.
    pub fn new(database: u8) -> Transaction {
        Transaction { database, ..Transaction::default() }
    }

    /// Returns the memory of the queued commands, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn queue(
        &mut self,
        command: &Command,
        args: &[&[u8]],
        placement: Placement,
        multi: RedisMulti,
    ) -> Result<(), Error> {
        let top = command.name.split('|').next().unwrap_or(command.name);
        if command.flags.contains(&"no_multi") {
            return Err(Error::Stated("ERR Command not allowed inside a transaction"));
        }
        if ACROSS_SHARDS.contains(&top) && multi == RedisMulti::Refuse {
            let name = top.to_uppercase();
            let text = format!("ERR {name} is not possible inside a transaction of this store");
            return Err(Error::Text(text));
        }
        self.bytes += args.iter().map(|arg| arg.len() + size_of::<Vec<u8>>()).sum::<usize>();
        if self.bytes > MAX_COMMAND_BYTES || self.calls.len() >= MAX_UPDATES {
            return Err(TOO_LONG);
        }
        if command.name == "lcs" {
            self.costly += 1;
            if self.costly > COSTLY_MAX {
                return Err(TOO_COSTLY);
            }
        }
        for at in command.keys.positions(args.len()) {
            let key = database::stored(self.database, args[at])?;
            let place = placement.locate(&key);
            if *self.place.get_or_insert(place) != place {
                match multi {
                    RedisMulti::Refuse => return Err(error::CROSS_SLOT),
                    RedisMulti::Ordered => self.is_in_order = true,
                }
            }
        }
        if command.name == "select"
            && let Ok(number) = database::number(args[1])
        {
            self.database = number;
        }
        self.calls.push(args.iter().map(|arg| arg.to_vec()).collect());
        Ok(())
    }
}

/// The maximum number of commands whose replies take up to a millisecond to make.
const COSTLY_MAX: usize = 8;
const TOO_COSTLY: Error = Error::Stated("ERR a transaction has at most 8 LCS in this store");
const TOO_LONG: Error =
    Error::Stated("ERR a transaction has at most 1,024 commands and 17 MiB in this store");
/// The error of an EXEC without a transaction.
const NONE: Error = Error::Stated("ERR EXEC without MULTI");
/// The error of a transaction with a rejected command.
const ABORTED: Error = Error::Stated("EXECABORT Transaction discarded because of previous errors.");
/// The error of a transaction with a command that cannot be part of one request.
const IMPOSSIBLE: Error = Error::Stated(
    "EXECABORT Transaction discarded because a command of it needs several requests to this store.",
);

/// Makes EXEC fail after a call that is no command. Returns the error of the call: an EXEC with arguments ends the
/// transaction.
pub(crate) fn abort(context: &mut Context<'_>, error: Error) -> Error {
    if context.args.first().is_some_and(|name| name.eq_ignore_ascii_case(b"exec")) {
        context.client.transaction = None;
        context.client.watched.clear();
        let text = error.text();
        let reason = text.strip_prefix("ERR ").unwrap_or(&text);
        return Error::Text(format!("EXECABORT Transaction discarded because of: {reason}"));
    }
    if let Some(transaction) = &mut context.client.transaction {
        transaction.is_aborted = true;
    }
    error
}

/// Queues a command if the connection is in a transaction. Returns whether it did.
///
/// # Errors
/// If the command cannot be part of the transaction, which then fails at EXEC.
pub(crate) fn queue(context: &mut Context<'_>, command: &Command) -> Result<bool, Error> {
    let Some(transaction) = &mut context.client.transaction else { return Ok(false) };
    if matches!(command.name, "exec" | "discard" | "multi" | "watch" | "quit" | "reset") {
        return Ok(false);
    }
    let (placement, multi) = (context.server.placement(), context.server.facts().multi);
    let queued = transaction.queue(command, context.args, placement, multi);
    transaction.is_aborted |= queued.is_err();
    queued.map(|()| true)
}

/// A command of a transaction that is being executed.
enum Call {
    /// Its reply is known.
    Replied(Vec<u8>),
    /// Its reply is made of the results of these requests, in this version of the protocol.
    Asked(Vec<Asked>, Finish, Version),
}

/// A request of a command, in terms of the updates of the transaction.
struct Asked {
    updates: usize,
    shape: Shape,
}

/// The form of a response that a command expects.
enum Shape {
    /// That of a GET, or of a part of the value.
    Read(Option<Part>),
    /// That of one update.
    Single,
    /// That of several updates.
    Several,
}

/// Executes the transaction of a connection.
///
/// # Errors
/// If the transaction cannot be executed. Then nothing is.
pub(crate) fn execute(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let Some(transaction) = context.client.transaction.take() else {
        return Err(NONE);
    };
    let transaction = *transaction;
    let watched = std::mem::take(&mut context.client.watched);
    if transaction.is_aborted {
        return Err(ABORTED);
    }
    let placement = context.placement();
    let place_of = |watched: &Watched| placement.locate(&watched.key);
    let place = transaction.place.or_else(|| watched.first().map(place_of));
    let is_here = |watched: &Watched| Some(place_of(watched)) == place && !transaction.is_in_order;
    let (here, elsewhere): (Vec<_>, Vec<_>) = watched.into_iter().partition(is_here);
    if context.server.facts().multi == RedisMulti::Refuse && !elsewhere.is_empty() {
        return Err(error::CROSS_SLOT);
    }
    match transaction.is_in_order || !elsewhere.is_empty() {
        true => running::begin(context, transaction, here, elsewhere, reply),
        false => at_once(context, transaction, here, reply),
    }
}

/// Executes all commands as one request, which also checks the watched keys. If they cannot be one request, they are
/// executed in order where this is permitted.
fn at_once(
    context: &mut Context<'_>,
    mut transaction: Transaction,
    watched: Vec<Watched>,
    reply: &mut Reply<'_>,
) -> Result<Plan, Error> {
    let before = context.client.clone();
    let plan = as_one(context, &transaction, &watched, reply);
    match plan {
        Err(_) => *context.client = before,
        Ok(Plan::Ask { asks, finish }) if !watched.is_empty() && *context.client != before => {
            return Ok(running::with_undo(context, transaction, before, asks, finish));
        }
        _ => {}
    }
    match plan {
        Err(error)
            if error == IMPOSSIBLE && context.server.facts().multi == RedisMulti::Ordered =>
        {
            transaction.is_in_order = true;
            running::begin(context, transaction, Vec::new(), watched, reply)
        }
        plan => plan,
    }
}

/// Makes the request of all commands. If it cannot be made, the state of the connection may be that after some of them.
fn as_one(
    context: &mut Context<'_>,
    transaction: &Transaction,
    watched: &[Watched],
    reply: &mut Reply<'_>,
) -> Result<Plan, Error> {
    let (calls, asks) = make_calls(context, transaction)?;
    let mut updates: Vec<Update<'_>> = watched.iter().map(check_of).collect();
    for ask in &asks {
        add_updates(ask, &mut updates)?;
    }
    if updates.len() > MAX_UPDATES {
        return Err(TOO_LONG);
    }
    let Some(first) = updates.first().and_then(|update| update.key).map(<[u8]>::to_vec) else {
        return reply_of(calls, &[], 0, reply).map(|()| Plan::Replied);
    };
    let ask = Ask::try_update(&first, &updates)?;
    let (checks, total) = (watched.len(), updates.len());
    Ok(Plan::one(ask, move |answer, reply| {
        // The updates of commands are optional, so only a check ends the request.
        if answer.status == Status::Conflict && checks > 0 {
            reply.null_array();
            return Ok(Plan::Replied);
        }
        let single =
            UpdateResult { status: answer.status, value: answer.value, deadline: answer.deadline };
        let results = if total == 1 { vec![single] } else { answer.results() };
        let results = results.get(checks..).unwrap_or_default();
        reply_of(calls, results, answer.copies, reply)?;
        Ok(Plan::Replied)
    }))
}

fn check_of(watched: &Watched) -> Update<'_> {
    let condition = watched.version.map_or(Precondition::Absent, Precondition::Version);
    Update { key: Some(&watched.key), condition, ..Update::new(Action::Check) }
}

/// Begins all commands, without asking the store.
fn make_calls(
    context: &mut Context<'_>,
    transaction: &Transaction,
) -> Result<(Vec<Call>, Vec<Ask>), Error> {
    let (mut calls, mut all) = (Vec::new(), Vec::new());
    for args in &transaction.calls {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let mut bytes = Vec::new();
        let version = context.client.version;
        let mut reply = Reply::new(&mut bytes, version);
        let Context { client, server, frames, .. } = context;
        let mut inner = Context { args: &args, client, server: *server, digest: None, frames };
        let plan = Command::of(&args).and_then(|command| (command.perform)(&mut inner, &mut reply));
        calls.push(match plan {
            Ok(Plan::Ask { asks, finish }) => {
                let asked = asks.iter().map(asked_of).collect::<Result<_, Error>>()?;
                all.extend(asks);
                Call::Asked(asked, finish, version)
            }
            Ok(_) => Call::Replied(bytes),
            Err(error) => {
                bytes.clear();
                Reply::new(&mut bytes, context.client.version).error(&error);
                Call::Replied(bytes)
            }
        });
    }
    Ok((calls, all))
}

fn asked_of(ask: &Ask) -> Result<Asked, Error> {
    let (updates, shape) = match ask.request().operation {
        Operation::Get => (1, Shape::Read(None)),
        Operation::GetPart(part) => (1, Shape::Read(Some(part))),
        Operation::Put(..) | Operation::Delete(_) => (1, Shape::Single),
        Operation::Update(_, updates) if updates.count() == 1 => (1, Shape::Single),
        Operation::Update(_, updates) => (updates.count(), Shape::Several),
        _ => return Err(IMPOSSIBLE),
    };
    Ok(Asked { updates, shape })
}

/// Adds the updates of a request. None of them prevents those of other commands.
fn add_updates<'a>(ask: &'a Ask, updates: &mut Vec<Update<'a>>) -> Result<(), Error> {
    let request = ask.request();
    let of_request = |update: Update<'a>| Update {
        key: Some(update.key.unwrap_or(request.key)),
        is_optional: true,
        ..update
    };
    let conditional = |condition| match condition {
        Condition::Always => Precondition::None,
        Condition::IfAbsent => Precondition::Absent,
        Condition::IfVersion(version) => Precondition::Version(version),
    };
    match request.operation {
        Operation::Get | Operation::GetPart(_) => {
            let read = Update { returns_value: true, ..Update::new(Action::Check) };
            updates.push(of_request(read));
        }
        Operation::Put(header, value) => {
            let condition = conditional(header.condition);
            updates.push(of_request(Update { condition, ..Update::new(Action::Put(value)) }));
        }
        Operation::Delete(_) => updates.push(of_request(Update::new(Action::Delete))),
        Operation::Update(_, several) => {
            let may_fail = several.iter().any(|update| {
                update.condition != Precondition::None
                    || matches!(update.action, Action::Add(_) | Action::AddFloat(_))
            });
            if several.count() > 1 && may_fail {
                return Err(IMPOSSIBLE);
            }
            updates.extend(several.iter().map(of_request));
        }
        _ => return Err(IMPOSSIBLE),
    }
    Ok(())
}

/// Writes the replies of all commands, from the results of their updates.
fn reply_of(
    calls: Vec<Call>,
    results: &[UpdateResult<'_>],
    copies: u8,
    reply: &mut Reply<'_>,
) -> Result<(), Error> {
    reply.array(calls.len());
    let mut rest = results;
    for call in calls {
        let (asked, finish, version) = match call {
            Call::Replied(bytes) => {
                reply.raw(&bytes);
                continue;
            }
            Call::Asked(asked, finish, version) => (asked, finish, version),
        };
        reply.set_version(version);
        let mut lists = Vec::new();
        for one in &asked {
            let (of_it, after) = rest.split_at_checked(one.updates).ok_or(IMPOSSIBLE)?;
            rest = after;
            let mut list = Vec::new();
            of_it.iter().for_each(|result| result.write(&mut list));
            lists.push((one, of_it, list));
        }
        let answers: Vec<Answer<'_>> = lists
            .iter()
            .map(|(one, results, list)| answer_of(one, results, list, copies))
            .collect();
        let begin = reply.len();
        match finish(Ok(&answers), reply) {
            Ok(Plan::Replied | Plan::Close) => {}
            Ok(_) => {
                reply.truncate(begin);
                reply.error(&IMPOSSIBLE);
            }
            Err(error) => {
                reply.truncate(begin);
                reply.error(&error);
            }
        }
    }
    Ok(())
}

/// Returns the answer that a request would have had outside of the transaction.
fn answer_of<'a>(
    asked: &Asked,
    results: &[UpdateResult<'a>],
    list: &'a [u8],
    copies: u8,
) -> Answer<'a> {
    let version = SequenceNumber::ZERO;
    let (status, value, deadline) = match (&asked.shape, results) {
        (Shape::Several, _) => (Status::Ok, Some(list), None),
        (_, [result]) => (result.status, result.value, result.deadline),
        _ => (Status::NotFound, None, None),
    };
    let whole = value.map_or(0, |value| u32::try_from(value.len()).unwrap_or(u32::MAX));
    let value = match &asked.shape {
        Shape::Read(Some(part)) if !part.all_or_nothing => {
            value.map(|value| &value[part.of(value.len())])
        }
        _ => value,
    };
    Answer { status, version, value, whole, deadline, copies }
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;
    use kv_protocol::placement::Placement;

    /// Executes lines, and compares their replies.
    fn check(door: &mut Door, lines: &[(&str, &str)]) {
        for (line, reply) in lines {
            assert_eq!(door.say(line), *reply, "{line}");
        }
    }

    #[test]
    fn the_commands_of_a_transaction_are_one_request() {
        let mut door = Door::new();
        check(&mut door, &[("SET k 5", "+OK"), ("MULTI", "+OK")]);
        let before = door.store.requests;
        check(
            &mut door,
            &[
                ("INCR k", "+QUEUED"),
                ("GET k", "+QUEUED"),
                ("GET absent", "+QUEUED"),
                ("GETRANGE k 0 0", "+QUEUED"),
                ("MSET a 1 b 2", "+QUEUED"),
                ("DEL a absent", "+QUEUED"),
                ("PING", "+QUEUED"),
                ("EXEC", "*7 :6 $1 6 $-1 $1 6 +OK :1 +PONG"),
            ],
        );
        assert_eq!(door.store.requests, before + 1);
    }

    #[test]
    fn a_command_that_fails_does_not_prevent_the_others() {
        let lines = [
            ("SET k text", "+OK"),
            ("MULTI", "+OK"),
            ("SET a 1", "+QUEUED"),
            ("INCR k", "+QUEUED"),
            ("SET b 2", "+QUEUED"),
            ("EXEC", "*3 +OK -ERR value is not an integer or out of range +OK"),
            ("MGET a b k", "*3 $1 1 $1 2 $4 text"),
        ];
        check(&mut Door::new(), &lines);
    }

    #[test]
    fn a_rejected_command_discards_the_transaction() {
        for (line, error) in [
            ("NOSUCH a", "-ERR unknown command 'NOSUCH', with args beginning with: 'a' "),
            ("GET", "-ERR wrong number of arguments for 'get' command"),
            ("KEYS *", "-ERR KEYS is not possible inside a transaction of this store"),
        ] {
            let lines = [
                ("MULTI", "+OK"),
                ("SET a 1", "+QUEUED"),
                (line, error.trim_end()),
                ("EXEC", "-EXECABORT Transaction discarded because of previous errors."),
                ("GET a", "$-1"),
                ("EXEC", "-ERR EXEC without MULTI"),
            ];
            check(&mut Door::new(), &lines);
        }
    }

    #[test]
    fn a_changed_key_that_is_watched_makes_exec_fail() {
        for (change, expected) in
            [("SET k 1", "*-1"), ("DEL k", "*-1"), ("SET other 1", "*1 +OK"), ("UNWATCH", "*1 +OK")]
        {
            let mut door = Door::new();
            check(&mut door, &[("SET k 0", "+OK"), ("WATCH k", "+OK")]);
            door.say(change);
            let lines = [("MULTI", "+OK"), ("SET a 1", "+QUEUED"), ("EXEC", expected)];
            check(&mut door, &lines);
            let is_set = expected != "*-1";
            assert_eq!(door.say("EXISTS a"), format!(":{}", u8::from(is_set)), "{change}");
            check(&mut door, &[("MULTI", "+OK"), ("PING", "+QUEUED"), ("EXEC", "*1 +PONG")]);
        }
    }

    #[test]
    fn an_absent_key_that_is_watched_must_stay_absent() {
        let lines = [
            ("WATCH k", "+OK"),
            ("SET k 1", "+OK"),
            ("MULTI", "+OK"),
            ("GET k", "+QUEUED"),
            ("EXEC", "*-1"),
        ];
        check(&mut Door::new(), &lines);
    }

    #[test]
    fn a_transaction_of_several_shards_is_refused_when_it_is_queued() {
        let mut door = Door::with(Placement::new(3, 1).with_hash_tags(true));
        let keys = |group: u16| {
            let placement = Placement::new(3, 1).with_hash_tags(true);
            let is_there = |key: &String| placement.locate(key.as_bytes()).0.0 == group;
            (0..).map(|n| format!("{{{n}}}k")).find(is_there).unwrap()
        };
        let (here, there) = (keys(0), keys(1));
        let crossed = "-CROSSSLOT Keys in request don't hash to the same slot";
        let lines = [
            ("MULTI", "+OK"),
            (&*format!("SET {here} 1"), "+QUEUED"),
            (&*format!("SET {there} 1"), crossed),
            ("EXEC", "-EXECABORT Transaction discarded because of previous errors."),
            (&*format!("WATCH {here} {there}"), "+OK"),
            ("MULTI", "+OK"),
            (&*format!("SET {here} 1"), "+QUEUED"),
            ("EXEC", crossed),
            (&*format!("EXISTS {here}"), ":0"),
        ];
        check(&mut door, &lines);
    }

    #[test]
    fn a_select_of_a_missing_database_leaves_the_keys_in_their_places() {
        let mut door = Door::with(Placement::new(3, 2));
        let lines = [
            ("MULTI", "+OK"),
            ("SET k 1", "+QUEUED"),
            ("SELECT 16", "+QUEUED"),
            ("SELECT +1", "+QUEUED"),
            ("GET k", "+QUEUED"),
            (
                "EXEC",
                "*4 +OK -ERR DB index is out of range -ERR value is not an integer or out of range $1 1",
            ),
        ];
        check(&mut door, &lines);
    }

    #[test]
    fn a_transaction_that_is_not_executed_leaves_the_state_of_the_connection() {
        for (change, reply, database) in [("SET k 1", "*-1", 0), ("GET k", "*2 +OK +OK", 2)] {
            let mut door = Door::new();
            check(&mut door, &[("WATCH k", "+OK")]);
            door.say(change);
            let lines = [("MULTI", "+OK"), ("SELECT 2", "+QUEUED"), ("SET a 1", "+QUEUED")];
            check(&mut door, &lines);
            assert_eq!(door.say("EXEC"), reply);
            assert_eq!(door.client.database, database);
            assert!(door.client.running.is_none());
        }
        // Neither does one that cannot be made.
        let mut door = Door::new();
        check(&mut door, &[("MULTI", "+OK"), ("SELECT 2", "+QUEUED"), ("RENAMENX a b", "+QUEUED")]);
        assert!(door.say("EXEC").starts_with("-EXECABORT "));
        assert_eq!(door.client.database, 0);
    }

    #[test]
    fn an_exec_with_arguments_ends_the_transaction() {
        let reason = "wrong number of arguments for 'exec' command";
        let error = format!("-EXECABORT Transaction discarded because of: {reason}");
        let lines = [
            ("MULTI", "+OK"),
            ("SET a 1", "+QUEUED"),
            ("EXEC now", &error),
            ("EXEC", "-ERR EXEC without MULTI"),
            ("GET a", "$-1"),
        ];
        check(&mut Door::new(), &lines);
    }

    #[test]
    fn a_change_of_the_protocol_concerns_the_replies_after_it() {
        let lines = [
            ("MULTI", "+OK"),
            ("GET absent", "+QUEUED"),
            ("HELLO 3", "+QUEUED"),
            ("GET absent", "+QUEUED"),
        ];
        let mut door = Door::new();
        check(&mut door, &lines);
        let reply = door.say("EXEC");
        assert!(reply.starts_with("*3 $-1 %") && reply.ends_with(" _"), "{reply}");
    }

    #[test]
    fn multi_does_not_nest_and_discard_ends_it() {
        let lines = [
            ("DISCARD", "-ERR DISCARD without MULTI"),
            ("MULTI", "+OK"),
            ("MULTI", "-ERR MULTI calls can not be nested"),
            ("WATCH k", "-ERR WATCH inside MULTI is not allowed"),
            ("SET a 1", "+QUEUED"),
            ("DISCARD", "+OK"),
            ("GET a", "$-1"),
            ("MULTI", "+OK"),
            ("EXEC", "*0"),
        ];
        check(&mut Door::new(), &lines);
    }
}
