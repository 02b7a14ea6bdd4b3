//! Transactions that are executed in several steps (`--redis-multi ordered`), because their keys are of several shards.
//!
//! ```text
//!   EXEC --> [ reads of the watched keys of other shards ] --changed--> null
//!                 |
//!                 +--> all commands of one shard: one request, as without other shards
//!                 +--> command 1 --> command 2 --> ...  each as outside of a transaction
//!                          |             |
//!                          +- reply      +- reply  -->  the array of them
//! ```
//!
//! The steps are not isolated: commands of other connections may take effect between them. The connection begins no
//! other command before the last step. A command that fails does not prevent those after it, with two exceptions. After
//! a write in doubt the transaction ends, because the connection does. After a command that no server could serve before
//! its deadline, no further command begins, and each has the same error. So a transaction does not wait for the
//! deadlines of all of its commands, and no command takes effect after an earlier one has not had its time.

use kv_protocol::client_message::{Part, Status};

use super::{Transaction, Watched, at_once};
use crate::answer::Answer;
use crate::ask::Ask;
use crate::client::Client;
use crate::command::{Command, Context};
use crate::error::{self, Error};
use crate::plan::{Asks, Finish, Plan};
use crate::resp::{Reply, Version};

/// The maximum number of bytes of all replies of a transaction.
const REPLIES_MAX: usize = 64 << 20;
/// The reply of a command whose own one finds no room.
const TOO_MUCH: Error = Error::Stated(
    "ERR the replies of this transaction are longer than 64 MiB together; the command was executed",
);

/// A transaction that is executed in several steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    transaction: Transaction,
    /// The watched keys that the request of the commands checks; none if the commands are not one request.
    watched: Vec<Watched>,
    /// The number of commands that have begun.
    begun: usize,
    /// The replies so far.
    replies: Vec<u8>,
    /// The error of all further commands.
    stop: Option<Error>,
    /// The state of the connection before commands that are one request.
    before: Option<Box<Client>>,
}

/// The end of a step.
pub enum Ended {
    /// The watched keys were read.
    Checked {
        /// True if one of them has changed since WATCH.
        is_changed: bool,
    },
    /// A command has this reply.
    Replied(Vec<u8>),
    /// A command has failed.
    Failed(Error),
    /// The transaction ends with this error.
    Abandoned(Error),
    /// The request of all commands has this reply.
    Requested {
        /// True if the commands were executed.
        is_done: bool,
        /// The reply to EXEC.
        reply: Result<Vec<u8>, Error>,
    },
}

/// Begins a transaction. First the keys `elsewhere` are read, if there are any. The request of the commands checks the
/// other watched keys.
pub(super) fn begin(
    context: &mut Context<'_>,
    transaction: Transaction,
    watched: Vec<Watched>,
    elsewhere: Vec<Watched>,
    reply: &mut Reply<'_>,
) -> Result<Plan, Error> {
    let running = Running { watched, ..Running::of(transaction) };
    if elsewhere.is_empty() {
        return running.next(context, reply);
    }
    context.client.running = Some(Box::new(running));
    let asks = elsewhere.iter().map(|watched| Ask::part(&watched.key, Part::new(0, 0))).collect();
    let finish: Finish = Box::new(move |answers, _| {
        Ok(Plan::GoOn(match answers {
            Ok(answers) => {
                let version = |answer: &Answer<'_>| answer.is_done().then_some(answer.version);
                let mut pairs = answers.iter().zip(&elsewhere);
                let is_changed = pairs.any(|(answer, watched)| version(answer) != watched.version);
                Ended::Checked { is_changed }
            }
            Err(error) => Ended::Abandoned(error),
        }))
    });
    Ok(Plan::Ask { asks, finish })
}

/// Returns the plan of commands that are one request and change the state of the connection. If a watched key has changed,
/// none of them is executed, and the connection gets back its state `before`. No later command must begin meanwhile.
pub(super) fn with_undo(
    context: &mut Context<'_>,
    transaction: Transaction,
    before: Client,
    asks: Asks,
    finish: Finish,
) -> Plan {
    let version = before.version;
    let before = Some(Box::new(before));
    context.client.running = Some(Box::new(Running { before, ..Running::of(transaction) }));
    let finish: Finish = Box::new(move |answers, _| {
        let is_done = matches!(&answers, Ok([answer]) if answer.status != Status::Conflict);
        let mut bytes = Vec::new();
        let plan = finish(answers, &mut Reply::new(&mut bytes, version));
        Ok(Plan::GoOn(Ended::Requested { is_done, reply: plan.map(|_| bytes) }))
    });
    Plan::Ask { asks, finish }
}

/// Continues the running transaction of a connection after a step of it.
///
/// # Errors
/// If the transaction ends without the replies of its commands.
pub fn go_on(
    context: &mut Context<'_>,
    ended: Ended,
    reply: &mut Reply<'_>,
) -> Result<Plan, Error> {
    let Some(running) = context.client.running.take() else { return Err(super::NONE) };
    let mut running = *running;
    match ended {
        Ended::Checked { is_changed: true } => {
            reply.null_array();
            return Ok(Plan::Replied);
        }
        Ended::Checked { is_changed: false } if !running.transaction.is_in_order => {
            return at_once(context, running.transaction, running.watched, reply);
        }
        Ended::Checked { is_changed: false } => {}
        Ended::Replied(bytes) => running.add(&bytes, context.client.version),
        Ended::Failed(error) => running.fail(error, context.client.version),
        Ended::Abandoned(error) => return Err(error),
        Ended::Requested { is_done, reply: bytes } => {
            if let Some(before) = running.before.filter(|_| !is_done) {
                let copies = context.client.copies;
                *context.client = Client { copies, ..*before };
            }
            reply.raw(&bytes?);
            return Ok(Plan::Replied);
        }
    }
    running.next(context, reply)
}

impl Running {
    fn of(transaction: Transaction) -> Running {
        let (watched, replies) = (Vec::new(), Vec::new());
        Running { transaction, watched, begun: 0, replies, stop: None, before: None }
    }

    /// Returns the memory of the commands and of the replies so far, in bytes.
    pub fn bytes(&self) -> usize {
        self.transaction.bytes() + self.replies.capacity()
    }

    /// Executes commands up to the next one that asks the store.
    fn next(mut self, context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
        while let Some(args) = self.transaction.calls.get(self.begun) {
            self.begun += 1;
            let version = context.client.version;
            if let Some(error) = self.stop.clone() {
                self.fail(error, version);
                continue;
            }
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            let mut bytes = Vec::new();
            let Context { client, server, frames, .. } = context;
            let mut inner = Context { args: &args, client, server: *server, digest: None, frames };
            let mut writer = Reply::new(&mut bytes, version);
            let plan =
                Command::of(&args).and_then(|command| (command.perform)(&mut inner, &mut writer));
            match plan {
                Ok(Plan::Ask { asks, finish }) => {
                    context.client.running = Some(Box::new(self));
                    return Ok(step(asks, finish, version));
                }
                Ok(_) => self.add(&bytes, version),
                Err(error) => self.fail(error, version),
            }
        }
        reply.array(self.transaction.calls.len());
        reply.raw(&self.replies);
        Ok(Plan::Replied)
    }

    /// Adds the reply of a command.
    fn add(&mut self, bytes: &[u8], version: Version) {
        match self.replies.len() + bytes.len() <= REPLIES_MAX {
            true => self.replies.extend_from_slice(bytes),
            false => Reply::new(&mut self.replies, version).error(&TOO_MUCH),
        }
    }

    /// Adds the error of a command.
    fn fail(&mut self, error: Error, version: Version) {
        Reply::new(&mut self.replies, version).error(&error);
        if error == error::NOT_SERVED || error == error::SERVED_IN_PART {
            self.stop = Some(error::NOT_SERVED);
        }
    }
}

/// Returns the plan of a step of a command.
fn step(asks: Asks, finish: Finish, version: Version) -> Plan {
    let finish: Finish = Box::new(move |answers, _| {
        let mut bytes = Vec::new();
        let plan = finish(answers, &mut Reply::new(&mut bytes, version));
        Ok(match plan {
            Ok(Plan::Ask { asks, finish }) => step(asks, finish, version),
            Ok(_) => Plan::GoOn(Ended::Replied(bytes)),
            Err(error) if error == error::IN_DOUBT => Plan::GoOn(Ended::Abandoned(error)),
            Err(error) => Plan::GoOn(Ended::Failed(error)),
        })
    });
    Plan::Ask { asks, finish }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::FreeFrames;
    use crate::testing::Door;
    use kv_protocol::RedisMulti;
    use kv_protocol::placement::Placement;

    /// Returns a connection to a store of three groups that executes transactions in order, and keys of two groups.
    fn ordered() -> (Door, String, String) {
        let placement = Placement::new(3, 1).with_hash_tags(true);
        let mut door = Door::with(placement);
        door.store.multi = RedisMulti::Ordered;
        let key = |group: u16| {
            let is_there = |key: &String| placement.locate(key.as_bytes()).0.0 == group;
            (0..).map(|n| format!("{{{n}}}k")).find(is_there).unwrap()
        };
        (door, key(0), key(1))
    }

    /// Queues commands, and returns the reply to EXEC.
    fn execute(door: &mut Door, lines: &[&str]) -> String {
        assert_eq!(door.say("MULTI"), "+OK");
        for line in lines {
            assert_eq!(door.say(line), "+QUEUED", "{line}");
        }
        door.say("EXEC")
    }

    #[test]
    fn commands_on_several_shards_are_executed_in_order_and_an_error_does_not_stop_them() {
        let (mut door, here, there) = ordered();
        let lines = [
            &*format!("SET {here} text"),
            &format!("SET {there} 7"),
            &format!("INCR {here}"),
            &format!("INCR {there}"),
            "SELECT 1",
            &format!("SET {there} one"),
            "SELECT 0",
            &format!("GET {there}"),
            &format!("RENAME {here} {there}"),
        ];
        let crossed = "-CROSSSLOT Keys in request don't hash to the same slot";
        assert_eq!(
            execute(&mut door, &lines),
            format!(
                "*9 +OK +OK -ERR value is not an integer or out of range :8 +OK +OK +OK $1 8 {crossed}"
            )
        );
        assert_eq!(door.client.database, 0);
        assert!(door.client.running.is_none() && door.client.held_bytes() == 0);
    }

    #[test]
    fn every_command_across_shards_works_as_outside_of_a_transaction() {
        let (mut door, here, there) = ordered();
        let lines = [
            &*format!("MSET {here} 1 {there} 2"),
            &format!("MGET {here} {there}"),
            "DBSIZE",
            &format!("MSETNX {here} 3 {here}2 3"),
            &format!("KEYS {here}"),
            &format!("EXISTS {here} {there}"),
            &format!("DEL {here} {there}"),
            "RANDOMKEY",
            "INFO keyspace",
            &format!("SET {there} 2"),
            "FLUSHDB",
            &format!("SET {there} 2"),
            "FLUSHALL",
            "SCAN 0 COUNT 1000",
        ];
        let length = here.len();
        assert_eq!(
            execute(&mut door, &lines),
            format!(
                "*14 +OK *2 $1 1 $1 2 :2 :0 *1 ${length} {here} :2 :2 $-1 $12 # Keyspace  +OK +OK +OK +OK *2 $1 0 *0"
            )
        );
        // A single command that needs several requests.
        assert_eq!(execute(&mut door, &["DBSIZE"]), "*1 :0");
        assert_eq!(execute(&mut door, &["KEYS *"]), "*1 *0");
    }

    #[test]
    fn commands_on_one_shard_are_still_one_request() {
        let (mut door, here, _) = ordered();
        let before = door.store.requests;
        let lines = [&*format!("SET {here} 1"), &format!("INCR {here}"), "PING"];
        assert_eq!(execute(&mut door, &lines), "*3 +OK :2 +PONG");
        assert_eq!(door.store.requests, before + 1);
    }

    #[test]
    fn a_watched_key_of_another_shard_is_compared_before_the_first_command() {
        for is_changed in [false, true] {
            let (mut door, here, there) = ordered();
            for commands in [
                vec![format!("SET {here} 1"), format!("INCR {here}")],
                vec![format!("SET {here} 1"), format!("SET {there}2 1")],
            ] {
                door.say(&format!("DEL {here} {there}2"));
                // One that exists, one that does not, and one of the shard of the first command.
                door.say(&format!("SET {there} 1"));
                door.say(&format!("WATCH {there} {there}3 {here}"));
                if is_changed {
                    door.say(&format!("SET {there}3 1"));
                }
                let before = door.store.requests;
                let lines: Vec<&str> = commands.iter().map(String::as_str).collect();
                let reply = execute(&mut door, &lines);
                assert_eq!(reply == "*-1", is_changed, "{reply}");
                assert_eq!(
                    door.say(&format!("EXISTS {here}")),
                    format!(":{}", u8::from(!is_changed))
                );
                let is_one_shard = !commands[1].contains(&there);
                let requests = match (is_changed, is_one_shard) {
                    (false, true) => 2 + 1,
                    (false, false) => 3 + 2,
                    (true, true) => 2,
                    (true, false) => 3,
                };
                assert_eq!(door.store.requests - before, requests + 1, "{commands:?}");
                door.say(&format!("DEL {there}3"));
            }
        }
    }

    #[test]
    fn a_watched_key_of_the_shard_of_the_commands_is_checked_by_their_request() {
        let (mut door, here, there) = ordered();
        door.say(&format!("WATCH {there} {here}"));
        door.say(&format!("SET {here} 1"));
        assert_eq!(execute(&mut door, &[&format!("SET {here} 2")]), "*-1");
        assert_eq!(door.say(&format!("GET {here}")), "$1 1");
    }

    #[test]
    fn a_write_in_doubt_ends_the_transaction() {
        let (mut door, here, there) = ordered();
        door.store.fault = Some((there.clone().into_bytes(), error::IN_DOUBT));
        let lines = [&*format!("SET {here} 1"), &format!("SET {there} 1"), &format!("INCR {here}")];
        let reply = execute(&mut door, &lines);
        assert!(reply.starts_with("-ERR outcome unknown"), "{reply}");
        assert_eq!(door.say(&format!("GET {here}")), "$1 1", "a later command was executed");
        assert!(door.client.running.is_none());
    }

    #[test]
    fn only_a_deadline_that_has_passed_prevents_the_later_commands() {
        let late = format!("-{}", error::NOT_SERVED.text());
        for (fault, reply, after) in [
            (error::LOST, "*4 +OK -CLUSTERDOWN Hash slot not served :2 +PONG".to_owned(), "$1 2"),
            (error::NOT_SERVED, format!("*4 +OK {late} {late} {late}"), "$1 1"),
        ] {
            let (mut door, here, there) = ordered();
            door.store.fault = Some((there.clone().into_bytes(), fault));
            let [set, incr] = [format!("SET {here} 1"), format!("INCR {here}")];
            let lines = [&*set, &format!("GET {there}"), &incr, "PING"];
            assert_eq!(execute(&mut door, &lines), reply);
            assert_eq!(door.say(&format!("GET {here}")), after);
        }
        // If the watched keys cannot be read, nothing is executed.
        let (mut door, here, there) = ordered();
        door.say(&format!("WATCH {there}"));
        door.store.fault = Some((there.into_bytes(), error::NOT_SERVED));
        assert_eq!(execute(&mut door, &[&format!("SET {here} 1")]), late);
        assert_eq!(door.say(&format!("GET {here}")), "$-1");
        assert!(door.client.running.is_none());
    }

    #[test]
    fn the_replies_of_a_transaction_have_a_bound() {
        let (mut door, here, there) = ordered();
        let value = vec![b'x'; 16 << 20];
        door.run(&[b"SET", here.as_bytes(), &value]);
        let get = format!("GET {here}");
        let set = format!("SET {there} 1");
        let lines = [&*get, &get, &get, &get, &get, &set, &format!("GET {there}")];
        let reply = execute(&mut door, &lines);
        assert!(reply.len() < REPLIES_MAX + 1_000, "{}", reply.len());
        let end = format!("-{0} -{0} +OK $1 1", TOO_MUCH.text());
        assert!(reply.ends_with(&end), "{}", &reply[reply.len() - 300..]);
    }

    #[test]
    fn commands_and_replies_count_as_memory_of_the_connection() {
        let (mut door, here, there) = ordered();
        for line in ["MULTI", &format!("SET {here} 1"), &format!("GET {there}")] {
            door.say(line);
        }
        let queued = door.client.held_bytes();
        let (exec, frames) = (crate::command::find(b"EXEC"), &mut FreeFrames::default());
        let mut context = Context {
            args: &[b"EXEC"],
            client: &mut door.client,
            server: &door.store,
            digest: None,
            frames,
        };
        let mut out = Vec::new();
        let plan =
            crate::command::perform(&mut context, exec, &mut Reply::new(&mut out, Version::Two));
        assert!(matches!(plan, Ok(Plan::Ask { .. })));
        assert_eq!(door.client.held_bytes(), queued);
        let running = door.client.running.as_mut().unwrap();
        running.add(&[0; 5_000], Version::Two);
        assert!(door.client.held_bytes() >= queued + 5_000);
    }
}
