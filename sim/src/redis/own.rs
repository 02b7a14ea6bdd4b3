//! Keys that one Redis client alone uses, each through one connection at a time. The client knows their values, so it
//! expects one exact reply to each command. A command that is executed before an earlier one of the same key, or
//! twice, has another reply.

use std::collections::VecDeque;

use kv_protocol::RedisMulti;
use kv_testkit::random::Random;
use kv_testkit::resp::Reply;

/// The number of keys of a client.
const KEYS: usize = 3;
/// The probability, per mille, that a command concerns all of them.
const ALL_PER_MILLE: u64 = 150;
/// The probability, per mille, that a command begins a transaction.
const TRANSACTION_PER_MILLE: u64 = 60;
/// The probability, per mille, that a transaction has several keys, where these are permitted.
const SEVERAL_KEYS_PER_MILLE: u64 = 700;

/// The keys of a client.
#[derive(Debug)]
pub struct OwnKeys {
    client: usize,
    keys: [Own; KEYS],
    /// The rest of a transaction that has begun.
    rest: VecDeque<OwnCommand>,
    multi: RedisMulti,
}

/// A key, of which the name changes when its value is no longer known.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    generation: u64,
    /// The value after all commands so far.
    value: Option<i64>,
}

/// A command on an own key.
#[derive(Clone, Debug)]
pub struct OwnCommand {
    /// The keys, each with the number of its name.
    keys: Vec<(usize, u64)>,
    /// The arguments.
    pub args: Vec<Vec<u8>>,
    /// The reply.
    pub expected: Reply,
    /// The number of commands that may wait one after the other before the reply.
    pub commands: usize,
}

impl OwnKeys {
    /// Creates the keys of a client of servers with this setting.
    pub fn new(client: usize, multi: RedisMulti) -> OwnKeys {
        OwnKeys { client, keys: [Own::default(); KEYS], rest: VecDeque::new(), multi }
    }

    /// Chooses a command on one of the keys.
    pub fn choose(&mut self, random: &mut Random) -> OwnCommand {
        if let Some(next) = self.rest.pop_front() {
            return next;
        }
        if random.per_mille(TRANSACTION_PER_MILLE) {
            return self.begin_transaction(random);
        }
        if random.per_mille(ALL_PER_MILLE) {
            return self.command_on_all(random.index(3), random.below(1_000).cast_signed());
        }
        let at = random.index(KEYS);
        let kind = random.below(100);
        let amount = i64::try_from(random.below(1_000)).expect("a small number") + 1;
        self.command(at, kind, amount)
    }

    /// Returns whether the next command must be one of a transaction that has begun.
    pub fn is_in_transaction(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Ends a transaction that has begun, because its connection has ended.
    pub fn end_transaction(&mut self) {
        for command in std::mem::take(&mut self.rest) {
            self.forget(&command);
        }
    }

    /// Begins a transaction. No other client changes its keys, so a WATCH does not make the EXEC fail.
    fn begin_transaction(&mut self, random: &mut Random) -> OwnCommand {
        let at = random.index(KEYS);
        let keys = match self.multi {
            RedisMulti::Ordered if random.per_mille(SEVERAL_KEYS_PER_MILLE) => 0..KEYS,
            _ => at..at + 1,
        };
        let named: Vec<(usize, u64)> =
            keys.clone().map(|at| (at, self.keys[at].generation)).collect();
        let of = |args: Vec<Vec<u8>>, expected: Reply| OwnCommand {
            keys: named.clone(),
            args,
            expected,
            commands: 1,
        };
        let simple = |text: &str| Reply::Simple(text.to_owned());
        let mut script = VecDeque::new();
        if random.per_mille(500) {
            let names = named.iter().map(|(at, generation)| self.key(*at, *generation));
            let args = std::iter::once(b"WATCH".to_vec()).chain(names).collect();
            script.push_back(of(args, simple("OK")));
        }
        script.push_back(of(vec![b"MULTI".to_vec()], simple("OK")));
        let mut replies = Vec::new();
        for _ in 0..=random.index(4) {
            let amount = i64::try_from(random.below(1_000)).expect("a small number") + 1;
            let command = match keys.len() > 1 && random.per_mille(ALL_PER_MILLE) {
                true => self.command_on_all(random.index(3), amount),
                false => {
                    let at = keys.start + random.index(keys.len());
                    self.command(at, random.below(100), amount)
                }
            };
            replies.push(command.expected);
            script.push_back(of(command.args, simple("QUEUED")));
        }
        let commands = if keys.len() > 1 { 1 + replies.len() } else { 1 };
        let exec = of(vec![b"EXEC".to_vec()], Reply::Array(replies));
        script.push_back(OwnCommand { commands, ..exec });
        self.rest = script;
        self.rest.pop_front().expect("a transaction has commands")
    }

    /// Returns a GET of each key.
    pub fn last_reads(&mut self) -> Vec<OwnCommand> {
        (0..KEYS).map(|at| self.command(at, 99, 0)).collect()
    }

    /// Returns whether the client has used this key.
    pub fn has_used(&self, key: &[u8]) -> bool {
        let of = |at: usize| (0..=self.keys[at].generation).map(move |generation| (at, generation));
        (0..KEYS).flat_map(of).any(|(at, generation)| self.key(at, generation) == key)
    }

    fn key(&self, at: usize, generation: u64) -> Vec<u8> {
        format!("own.{}.{at}.{generation}", self.client).into_bytes()
    }

    fn command(&mut self, at: usize, kind: u64, amount: i64) -> OwnCommand {
        let Own { generation, value } = self.keys[at];
        let key = self.key(at, generation);
        let number = amount.to_string().into_bytes();
        let ok = || Reply::Simple("OK".to_owned());
        let old = bulk(value);
        let sum = value.unwrap_or(0) + amount;
        let (name, more, expected, after) = match kind {
            0..15 => ("SET", Some(number), ok(), Some(amount)),
            15..45 => ("INCRBY", Some(number), Reply::Integer(sum), Some(sum)),
            45..52 => ("DEL", None, Reply::Integer(value.is_some().into()), None),
            52..60 => ("GETSET", Some(number), old, Some(amount)),
            _ => ("GET", None, old, value),
        };
        self.keys[at].value = after;
        let name = name.as_bytes().to_vec();
        let args = [name, key].into_iter().chain(more).collect();
        OwnCommand { keys: vec![(at, generation)], args, expected, commands: 1 }
    }

    /// Returns an MGET, MSET or DEL of all keys, which are of several groups.
    fn command_on_all(&mut self, kind: usize, number: i64) -> OwnCommand {
        let keys: Vec<(usize, u64)> =
            self.keys.iter().map(|own| own.generation).enumerate().collect();
        let values = self.keys.map(|own| own.value);
        let (name, after, expected) = match kind {
            0 => ("MSET", Some(number), Reply::Simple("OK".to_owned())),
            1 => {
                let count = values.iter().flatten().count();
                ("DEL", None, Reply::Integer(i64::try_from(count).expect("keys are few")))
            }
            _ => ("MGET", None, Reply::Array(values.map(bulk).into())),
        };
        let mut args = vec![name.as_bytes().to_vec()];
        for (at, generation) in &keys {
            args.push(self.key(*at, *generation));
            args.extend((kind == 0).then(|| number.to_string().into_bytes()));
        }
        if kind < 2 {
            self.keys.iter_mut().for_each(|own| own.value = after);
        }
        OwnCommand { keys, args, expected, commands: 1 }
    }

    /// Returns whether the values of the command's keys were known when the command was chosen, and still are.
    pub fn is_known(&self, command: &OwnCommand) -> bool {
        command.keys.iter().all(|(at, generation)| self.keys[*at].generation == *generation)
    }

    /// Gives the keys of a command other names, because its effect is not known.
    pub fn forget(&mut self, command: &OwnCommand) {
        for (at, generation) in &command.keys {
            let own = &mut self.keys[*at];
            if own.generation == *generation {
                *own = Own { generation: generation + 1, value: None };
            }
        }
    }
}

fn bulk(value: Option<i64>) -> Reply {
    match value {
        Some(value) => Reply::Bulk(value.to_string().into_bytes()),
        None => Reply::Null,
    }
}
