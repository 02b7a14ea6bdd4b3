//! Many keys in one command.

use std::collections::BTreeMap;

use kv_protocol::client_message::Part;
use kv_protocol::limits::MAX_UPDATES;
use kv_protocol::update::{Action, Precondition, Update};

use super::{Command, Context, FAST_READ, GROWING, Keys, batch};
use crate::answer::Answer;
use crate::ask::Ask;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "mget",
        arity: -2,
        flags: FAST_READ,
        keys: Keys::ALL,
        group: "string",
        since: "1.0.0",
        summary: "Returns the values of many keys. Each is read by itself.",
        perform: mget,
        subcommands: &[],
    },
    Command {
        name: "mset",
        arity: -3,
        flags: GROWING,
        keys: Keys::PAIRS,
        group: "string",
        since: "1.0.1",
        summary: "Sets many keys. Up to 1,024 keys of one shard are set at once, others one after the other.",
        perform: mset,
        subcommands: &[],
    },
    Command {
        name: "msetnx",
        arity: -3,
        flags: GROWING,
        keys: Keys::PAIRS,
        group: "string",
        since: "1.0.1",
        summary: "Sets many keys of one shard, at most 1,024, if none of them exists.",
        perform: msetnx,
        subcommands: &[],
    },
];

/// The number of bytes of values that an MGET reads at first. Each key has the same share.
const BYTES_AT_FIRST: usize = 16 << 20;
/// The maximum of the share of a key.
const SHORT: usize = 64 << 10;
/// The number of longer values that are read at once.
const LONG_AT_ONCE: usize = 4;
/// The maximum number of bytes of the values in a reply.
const REPLY_BYTES_MAX: usize = 64 << 20;
const TOO_MUCH: Error =
    Error::Stated("ERR the values are longer than 64 MiB together; ask for fewer keys at once");

/// Reads the short values at once, and then the long ones, some at a time.
fn mget(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let keys = (1..context.args.len()).map(|at| Ok(context.key(at)?.into_owned()));
    let keys = keys.collect::<Result<Vec<_>, Error>>()?;
    let share = u32::try_from(SHORT.min(BYTES_AT_FIRST / keys.len())).unwrap_or(0);
    let short = Part { all_or_nothing: true, ..Part::new(0, share) };
    let asks = keys.iter().map(|key| Ask::part(key, short)).collect();
    Ok(Plan::all(asks, move |answers, reply| {
        if answers.iter().all(is_complete) {
            reply.array(answers.len());
            answers.iter().for_each(|answer| reply.bulk_or_null(answer.value));
            return Ok(Plan::Replied);
        }
        let lengths = answers.iter().map(|answer| answer.whole as usize);
        if lengths.sum::<usize>() > REPLY_BYTES_MAX {
            return Err(TOO_MUCH);
        }
        let values = answers.iter().map(|answer| match answer.value {
            _ if !is_complete(answer) => Value::Long,
            Some(value) => Value::Read(value.to_vec()),
            None => Value::Absent,
        });
        Gathered { values: values.collect(), keys, bytes: 0 }.read_more(reply)
    }))
}

/// The values that an MGET has read.
struct Gathered {
    keys: Vec<Vec<u8>>,
    values: Vec<Value>,
    /// The number of bytes of the long values.
    bytes: usize,
}

enum Value {
    Absent,
    Read(Vec<u8>),
    /// The value is not read yet.
    Long,
}

impl Gathered {
    /// Reads the next long values, or replies after the last ones.
    fn read_more(mut self, reply: &mut Reply<'_>) -> Result<Plan, Error> {
        let is_long = |index: &usize| matches!(self.values[*index], Value::Long);
        let indexes: Vec<usize> = (0..self.values.len()).filter(is_long).collect();
        if indexes.is_empty() {
            reply.array(self.values.len());
            for value in &self.values {
                match value {
                    Value::Read(value) => reply.bulk(value),
                    Value::Absent | Value::Long => reply.null(),
                }
            }
            return Ok(Plan::Replied);
        }
        let (now, later) = indexes.split_at(indexes.len().min(LONG_AT_ONCE));
        // Reads of the keys whose turn comes later, because a later command of the connection that writes such a key must
        // wait.
        let guards = later.iter().map(|index| Ask::part(&self.keys[*index], Part::new(0, 0)));
        let asks = now.iter().map(|index| Ask::get(&self.keys[*index])).chain(guards).collect();
        let now = now.to_vec();
        Ok(Plan::all(asks, move |answers, reply| {
            for (index, answer) in now.into_iter().zip(answers) {
                self.bytes += answer.value.map_or(0, <[u8]>::len);
                self.values[index] = match answer.value {
                    Some(value) => Value::Read(value.to_vec()),
                    None => Value::Absent,
                };
            }
            // Values may have grown since their lengths were counted.
            match self.bytes > 2 * REPLY_BYTES_MAX {
                true => Err(TOO_MUCH),
                false => self.read_more(reply),
            }
        }))
    }
}

/// Returns whether the answer has the whole value, or there is none.
fn is_complete(answer: &Answer<'_>) -> bool {
    answer.value.is_none_or(|value| value.len() == answer.whole as usize)
}

fn mset(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let pairs = pairs(context, "mset")?;
    let asks = batch::requests(context.placement(), &pairs);
    Ok(Plan::all(asks, |_, reply| {
        reply.ok();
        Ok(Plan::Replied)
    }))
}

fn msetnx(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let pairs = pairs(context, "msetnx")?;
    if pairs.len() > MAX_UPDATES {
        return Err(Error::Stated("ERR MSETNX takes at most 1,024 keys in this store"));
    }
    let placement = context.placement();
    let place = placement.locate(&pairs[0].0);
    if pairs.iter().any(|(key, _)| placement.locate(key) != place) {
        return Err(error::CROSS_SLOT);
    }
    let updates: Vec<Update<'_>> = pairs
        .iter()
        .enumerate()
        .map(|(index, (key, action))| Update {
            key: (index > 0).then_some(&key[..]),
            condition: Precondition::Absent,
            ..Update::new(*action)
        })
        .collect();
    Ok(Plan::one(Ask::try_update(&pairs[0].0, &updates)?, |answer, reply| {
        reply.integer(answer.is_done().into());
        Ok(Plan::Replied)
    }))
}

/// Returns the stored keys with their new values. Of a key that occurs several times, the last value counts.
fn pairs<'a>(context: &Context<'a>, command: &str) -> Result<Vec<batch::Item<'a>>, Error> {
    if context.args.len().is_multiple_of(2) {
        return Err(error::arity(command));
    }
    let mut pairs = BTreeMap::new();
    for at in (1..context.args.len()).step_by(2) {
        pairs.insert(context.key(at)?, Action::Put(context.args[at + 1]));
    }
    Ok(pairs.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;
    use kv_protocol::placement::Placement;

    #[test]
    fn many_keys_of_all_shards_are_set_and_read() {
        let mut door = Door::with(Placement::new(3, 2));
        let keys: Vec<Vec<u8>> = (0..3_000u32).map(|n| n.to_string().into_bytes()).collect();
        let mut set: Vec<&[u8]> = vec![b"mset"];
        keys.iter().for_each(|key| set.extend([&key[..], key]));
        // The last value of a key counts.
        set.extend([&b"5"[..], b"five"]);
        assert_eq!(door.run(&set), b"+OK\r\n");
        let mut get: Vec<&[u8]> = vec![b"mget", b"absent"];
        get.extend(keys.iter().map(Vec::as_slice));
        let reply = String::from_utf8(door.run(&get)).unwrap();
        assert!(reply.starts_with("*3001\r\n$-1\r\n$1\r\n0\r\n"), "{}", &reply[..30]);
        assert!(reply.contains("$1\r\n4\r\n$4\r\nfive\r\n$1\r\n6\r\n"));
        assert!(reply.ends_with("$4\r\n2999\r\n"));
    }

    #[test]
    fn long_values_come_in_their_places_up_to_a_bound() {
        let mut door = Door::new();
        let long = vec![b'x'; 1 << 20];
        for key in [b"a", b"b", b"c", b"d", b"e", b"f"] {
            door.run(&[b"set", key, &long]);
        }
        door.say("set short 1");
        let args: [&[u8]; 10] =
            [b"mget", b"a", b"short", b"b", b"absent", b"c", b"d", b"e", b"f", b"short"];
        let reply = door.run(&args);
        // A request for each value that is still missing is in flight, so a later command of the connection that writes
        // it waits.
        let counts: Vec<usize> = door.steps.iter().map(Vec::len).collect();
        assert_eq!(counts, [9, 6, 2]);
        let mut expected = b"*9\r\n".to_vec();
        for arg in &args[1..] {
            expected.extend(door.run(&[b"get", arg]));
        }
        assert_eq!(reply, expected);
        let mut args = vec![&b"mget"[..]];
        args.resize(66, b"a");
        assert!(door.run(&args).starts_with(b"-ERR the values are longer than 64 MiB"));
        args.truncate(64);
        assert!(door.run(&args).starts_with(b"*63\r\n$1048576\r\n"));
    }

    #[test]
    fn msetnx_sets_all_or_none() {
        let mut door = Door::new();
        assert_eq!(door.say("msetnx a 1 b 2 a 3"), ":1");
        assert_eq!(door.say("msetnx c 1 b 2"), ":0");
        assert_eq!(door.say("mget a b c"), "*3 $1 3 $1 2 $-1");
        assert_eq!(door.say("msetnx a"), "-ERR wrong number of arguments for 'msetnx' command");
        assert_eq!(door.say("mset a 1 b"), "-ERR wrong number of arguments for 'mset' command");
        let mut door = Door::with(Placement::new(64, 1));
        let reply = door.say("msetnx a 1 b 2");
        assert_eq!(reply, "-CROSSSLOT Keys in request don't hash to the same slot");
    }
}
