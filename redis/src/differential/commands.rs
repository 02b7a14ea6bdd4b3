//! Random commands.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use kv_testkit::random::Random;

/// The forms of commands. A word in capitals stands for random arguments, see [`push`].
const FORMS: &[&str] = &[
    "set KEY VALUE",
    "set KEY VALUE",
    "SET KEY VALUE SETOPTION",
    "set KEY VALUE SETOPTION SETOPTION",
    "set KEY VALUE SETOPTION SETOPTION SETOPTION",
    "get KEY",
    "GET KEY",
    "getex KEY GETEXOPTION",
    "getex KEY GETEXOPTION GETEXOPTION",
    "getdel KEY",
    "getset KEY VALUE",
    "setnx KEY VALUE",
    "setex KEY TIME VALUE",
    "psetex KEY TIME VALUE",
    "mget KEYS",
    "mset PAIRS",
    "msetnx PAIRS",
    "append KEY VALUE",
    "strlen KEY",
    "getrange KEY NUMBER NUMBER",
    "substr KEY NUMBER NUMBER",
    "setrange KEY NUMBER VALUE",
    "incr KEY",
    "decr KEY",
    "incrby KEY NUMBER",
    "decrby KEY NUMBER",
    "incrbyfloat KEY FLOAT",
    "lcs KEY KEY LCSOPTION LCSOPTION",
    "del KEYS",
    "unlink KEYS",
    "exists KEYS",
    "touch KEYS",
    "type KEY",
    "expire KEY TIME EXPIREOPTION EXPIREOPTION",
    "pexpire KEY TIME EXPIREOPTION",
    "expireat KEY SECONDS EXPIREOPTION",
    "pexpireat KEY MILLIS EXPIREOPTION EXPIREOPTION",
    "ttl KEY",
    "pttl KEY",
    "expiretime KEY",
    "pexpiretime KEY",
    "persist KEY",
    "rename KEY KEY",
    "renamenx KEY KEY",
    "copy KEY KEY COPYOPTION COPYOPTION",
    "object encoding KEY",
    "object refcount KEY",
    "object freq KEY",
    "object idletime KEY",
    "object foo KEY",
    "memory usage KEY",
    "keys PATTERN",
    "randomkey",
    "dbsize",
    "select DATABASE",
    "RARELY flushdb",
    "RARELY flushall",
    "ping",
    "echo VALUE",
    "hello PROTOCOL",
    "client setname KEY",
    "client getname",
    "client no-evict on",
    "client foo",
    "reset",
    "auth default VALUE",
    "auth VALUE KEY",
    "readonly",
    "cluster info",
    "debug sleep 0",
    "slowlog get NUMBER",
    "slowlog len",
    "latency latest",
    "function flush",
    "script flush KEY",
    "command getkeys mset PAIRS",
    "command getkeys get KEY KEY",
    "config get databases",
    "config set databases 16",
    "config set KEY VALUE",
    "config rewrite",
    "wait NUMBER -1",
    "unknown KEYS",
];

/// The forms of commands whose replies differ from those of Redis.
const OWN_FORMS: &[&str] = &[
    "set KEY VALUE ifeq VALUE SETOPTION",
    "delifeq KEY VALUE",
    "scan NUMBER",
    "scan 0 count NUMBER match PATTERN",
    "time",
    "role",
    "lastsave",
    "wait NUMBER NUMBER",
    "command",
    "command count",
    "command docs",
    "command info get KEY",
    "command list",
    "command list filterby pattern PATTERN",
    "command help",
    "client id",
    "client info",
    "client list",
    "client setinfo lib-name VALUE",
    "client no-touch on",
    "client kill id NUMBER skipme no",
    "client help",
    "config get PATTERN",
    "config help",
    "memory help",
    "latency doctor",
    "latency histogram",
    "latency graph KEY",
    "quit",
];

/// The forms of commands that control transactions, at any time.
const CONTROL: &[&str] =
    &["multi", "exec", "discard", "unwatch", "watch KEYS", "multi KEY", "watch", "exec KEY"];
/// The forms of commands in transactions that outside of them seldom have keys of one shard.
const TAGGED_FORMS: &[&str] = &[
    "rename TAGGED TAGGED",
    "renamenx TAGGED TAGGED",
    "copy TAGGED TAGGED COPYOPTION COPYOPTION",
    "msetnx TAGGED VALUE TAGGED VALUE",
    "del TAGGED TAGGED",
    "mget TAGGED TAGGED KEY",
    "incr TAGGED",
];
/// The commands that are not compared in transactions: Redis rejects calls of them when they are queued.
const NOT_QUEUED: &[&[u8]] = &[b"cluster", b"debug"];
/// The commands whose keys must be of one shard.
const OF_ONE_SHARD: &[&[u8]] = &[b"rename", b"renamenx", b"copy", b"msetnx"];
/// The probability, per mille, that a transaction begins.
const TRANSACTION_PER_MILLE: u64 = 30;

/// A sequence of random commands, some of them in transactions.
#[derive(Default)]
pub(super) struct Commands {
    /// The commands of a transaction that has begun.
    rest: VecDeque<Vec<Vec<u8>>>,
}

impl Commands {
    /// Returns the words of the next command.
    pub(super) fn next(&mut self, random: &mut Random) -> Vec<Vec<u8>> {
        if self.rest.is_empty() && random.per_mille(TRANSACTION_PER_MILLE) {
            self.begin_transaction(random);
        }
        self.rest.pop_front().unwrap_or_else(|| self::random(random))
    }

    /// Ends a transaction of which the store has refused a command.
    pub(super) fn discard(&mut self) {
        self.rest = [vec![b"discard".to_vec()], vec![b"unwatch".to_vec()]].into();
    }

    fn begin_transaction(&mut self, random: &mut Random) {
        let is_tagged = random.per_mille(400);
        if random.per_mille(400) {
            self.rest.push_back(of_form("watch KEYS", random));
            // One command that may change a watched key.
            if random.per_mille(400) {
                self.rest.push_back(self::random(random));
            }
        }
        self.rest.push_back(vec![b"multi".to_vec()]);
        for _ in 0..random.below(7) {
            let mut words = match random.below(10) {
                0 => of_form(CONTROL[random.index(CONTROL.len())], random),
                1..4 => of_form(TAGGED_FORMS[random.index(TAGGED_FORMS.len())], random),
                _ => self::random(random),
            };
            if is_tagged {
                let keys = words[1..].iter_mut().filter(|word| KEYS.contains(&&word[..]));
                keys.for_each(|key| *key = tagged(random));
            }
            if !NOT_QUEUED.contains(&&words[0][..]) && !may_cross(&words) {
                self.rest.push_back(words);
            }
        }
        let end = if random.per_mille(900) { "exec" } else { "discard" };
        self.rest.push_back(vec![end.into()]);
        // The transaction may have ended earlier, and a WATCH after that. A missing key that is created and removed again
        // while it is watched counts as unchanged in the store.
        self.rest.push_back(vec![b"unwatch".to_vec()]);
    }
}

/// Returns whether a command may have keys of several shards, where this is an error.
fn may_cross(words: &[Vec<u8>]) -> bool {
    let step = if words[0] == b"msetnx" { 2 } else { 1 };
    let keys = if words[0] == b"copy" { 2 } else { words.len() };
    OF_ONE_SHARD.contains(&&words[0][..])
        && words[1..].iter().step_by(step).take(keys).any(|key| !key.starts_with(b"{t}"))
}

/// Returns the words of a random command whose reply differs from that of Redis.
pub(super) fn random_of_own(random: &mut Random) -> Vec<Vec<u8>> {
    of_form(OWN_FORMS[random.index(OWN_FORMS.len())], random)
}

/// Returns the words of a random command.
pub(super) fn random(random: &mut Random) -> Vec<Vec<u8>> {
    of_form(FORMS[random.index(FORMS.len())], random)
}

fn of_form(form: &str, random: &mut Random) -> Vec<Vec<u8>> {
    if let Some(form) = form.strip_prefix("RARELY ") {
        return if random.per_mille(50) { vec![form.into()] } else { vec![b"dbsize".to_vec()] };
    }
    let mut words = Vec::new();
    form.split(' ').for_each(|word| push(word, random, &mut words));
    match random.below(100) {
        0 if words.len() > 1 => drop(words.pop()),
        1 => words.push(value(random)),
        _ => {}
    }
    words
}

fn pick<'a, T: ?Sized>(random: &mut Random, list: &[&'a T]) -> &'a T {
    list[random.index(list.len())]
}

/// Appends the random words that a word of a form stands for.
fn push(word: &str, random: &mut Random, words: &mut Vec<Vec<u8>>) {
    let often = |random: &mut Random| random.per_mille(500);
    let text = |word: &str| word.as_bytes().to_vec();
    match word {
        "KEY" => words.push(key(random)),
        "TAGGED" => words.push(tagged(random)),
        "KEYS" => (0..random.between(1, 5)).for_each(|_| words.push(key(random))),
        "PAIRS" => {
            for _ in 0..random.between(1, 4) {
                words.extend([key(random), value(random)]);
            }
        }
        "VALUE" => words.push(value(random)),
        "NUMBER" => words.push(number(random)),
        "FLOAT" => {
            let floats = ["1", "-0.5", "3.0e3", "1e-3", "0.1", "abc", "inf", "nan", " 1", "1e5000"];
            words.push(text(pick(random, &floats)));
        }
        "TIME" => words.push(time(random)),
        "SECONDS" => words.push(absolute(random, 1)),
        "MILLIS" => words.push(absolute(random, 1_000)),
        "PATTERN" => {
            let patterns = ["*", "k*", "?", "*{t}*", "[a-k]*", "\\*", "", "[^k]*", "k[", "nothing"];
            words.push(text(pick(random, &patterns)));
        }
        "DATABASE" => words.push(text(pick(random, &["0", "0", "1", "2", "16", "-1", "x"]))),
        "PROTOCOL" => words.push(text(pick(random, &["2", "3", "3", "4", "x"]))),
        "EXPIREOPTION" if often(random) => {
            words.push(text(pick(random, &["nx", "XX", "gt", "lt", "xx", "foo"])));
        }
        "COPYOPTION" if often(random) => match random.below(4) {
            0 => {
                words.push(text("db"));
                push("DATABASE", random, words);
            }
            1 => words.push(text("foo")),
            _ => words.push(text("replace")),
        },
        "LCSOPTION" if often(random) => match random.below(4) {
            0 => words.extend([text("minmatchlen"), number(random)]),
            _ => words.push(text(pick(random, &["LEN", "idx", "withmatchlen", "idx", "foo"]))),
        },
        "SETOPTION" | "GETEXOPTION" => match random.below(10) {
            0 => words.extend([text("ex"), time(random)]),
            1 => words.extend([text("PX"), time(random)]),
            2 => words.extend([text("exat"), absolute(random, 1)]),
            3 => words.extend([text("pxat"), absolute(random, 1_000)]),
            4 => words.push(text("foo")),
            5 => words.push(text("persist")),
            _ => words.push(text(pick(random, &["nx", "XX", "get", "keepttl"]))),
        },
        "EXPIREOPTION" | "COPYOPTION" | "LCSOPTION" => {}
        literal => words.push(text(literal)),
    }
}

const KEYS: &[&[u8]] =
    &[b"k", b"key", b"{t}1", b"{t}2", b"{t}3", b"*", b"k\0\xff", b"\r\n", b"kk", b"a b?"];

fn key(random: &mut Random) -> Vec<u8> {
    pick(random, KEYS).to_vec()
}

/// Returns one of the keys with the same hash tag.
fn tagged(random: &mut Random) -> Vec<u8> {
    let keys: [&[u8]; 3] = [b"{t}1", b"{t}2", b"{t}3"];
    pick(random, &keys).to_vec()
}

fn value(random: &mut Random) -> Vec<u8> {
    let texts: [&[u8]; 14] = [
        b"",
        b"0",
        b"10",
        b"-7",
        b"9223372036854775807",
        b"-9223372036854775808",
        b"10000",
        b"1.5",
        b"+1",
        b"text",
        b"ohmytext",
        b"mynewtext",
        b"\0\r\n\xff",
        b"$-1\r\n",
    ];
    match random.below(8) {
        0 => vec![b'x'; random.length(40, 50)],
        1 => (0..random.length(0, 20)).map(|_| b"ab"[random.index(2)]).collect(),
        _ => pick(random, &texts).to_vec(),
    }
}

fn number(random: &mut Random) -> Vec<u8> {
    let bad = ["x", "1.5", "+1", "01", "-0", " 1", "", "9223372036854775808"];
    match random.below(12) {
        0 => pick(random, &bad).into(),
        1 => i64::MAX.to_string().into_bytes(),
        2 => i64::MIN.to_string().into_bytes(),
        _ => (i64::try_from(random.below(60)).unwrap() - 20).to_string().into_bytes(),
    }
}

/// Returns a time from now that ends long after the test, or has passed, or is malformed.
fn time(random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0 => number_that_passes_at_once(random),
        1 => pick(random, &["x", "9223372036854775807", "-9223372036854775808", ""]).into(),
        _ => random.between(1_000_000, 9_000_000).to_string().into_bytes(),
    }
}

fn number_that_passes_at_once(random: &mut Random) -> Vec<u8> {
    pick(random, &["0", "-1", "-100"]).into()
}

/// Returns a time since 1970, in parts of a second.
fn absolute(random: &mut Random, parts: u64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    match random.below(8) {
        0 => number_that_passes_at_once(random),
        1 => pick(random, &["x", "1", ""]).into(),
        2 => ((now - 1_000) * parts).to_string().into_bytes(),
        _ => ((now + random.between(10_000, 90_000)) * parts).to_string().into_bytes(),
    }
}
