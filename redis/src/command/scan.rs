//! The keys of a database.

use kv_protocol::scan_token::{ScanPosition, ScanTokens};

use super::pages::{self, Selection, Walk};
use super::{Command, Context, FAST_READ, Keys, Perform, READ};
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("scan", -2, READ, "2.8.0", "Returns the keys of a database, some at a time.", scan),
    of("keys", 2, READ, "1.0.0", "Returns all keys that match a pattern, up to 16 MiB.", keys),
    of("randomkey", 1, READ, "1.0.0", "Returns a random key.", randomkey),
    Command {
        group: "server",
        ..of("dbsize", 1, FAST_READ, "1.0.0", "Counts the keys by a read of all shards.", dbsize)
    },
];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (keys, group) = (Keys::NONE, "generic");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

/// The number of entries that a page covers at most. A shard with fewer has one page.
const PAGE_ENTRIES: u64 = 1_024;
/// The maximum number of pages that one SCAN reads.
const SCAN_PAGES_MAX: usize = 64;
/// The number of bytes of keys after which a SCAN ends.
const SCAN_BYTES: usize = 1 << 20;
/// The maximum number of bytes of keys in the reply to KEYS.
const KEYS_BYTES_MAX: usize = 16 << 20;

/// A list of keys that is being written.
#[derive(Default)]
struct List {
    bytes: Vec<u8>,
    length: usize,
}

impl List {
    fn push(&mut self, key: &[u8], reply: &Reply<'_>) {
        Reply::new(&mut self.bytes, reply.version()).bulk(key);
        self.length += 1;
    }

    fn write(&self, reply: &mut Reply<'_>) {
        reply.array(self.length);
        reply.written(&self.bytes);
    }
}

/// A SCAN.
struct Scanning {
    tokens: ScanTokens,
    selection: Selection,
    position: ScanPosition,
    /// The number of entries to examine.
    count: u64,
    pages: usize,
    list: List,
}

fn scan(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let invalid = Error::Stated("ERR invalid cursor");
    let text = str::from_utf8(context.args[1]).ok();
    let cursor: u64 = text.and_then(|text| text.parse().ok()).ok_or(invalid.clone())?;
    let (mut count, mut pattern, mut is_empty) = (10, &b"*"[..], false);
    for at in (2..context.args.len()).step_by(2) {
        let Some(value) = context.args.get(at + 1) else { return Err(error::SYNTAX) };
        if context.is(at, "count") {
            count = u64::try_from(context.integer(at + 1)?).unwrap_or(0);
            if count == 0 {
                return Err(error::SYNTAX);
            }
        } else if context.is(at, "match") {
            pattern = value;
        } else if context.is(at, "type") {
            // There are no values of other types.
            is_empty = !value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(error::SYNTAX);
        }
    }
    // No key is empty.
    if is_empty || pattern.is_empty() {
        reply.array(2);
        reply.bulk(b"0");
        reply.array(0);
        return Ok(Plan::Replied);
    }
    let tokens = pages::tokens(context);
    let position = tokens.decode(cursor).map_err(|_| invalid)?;
    let selection = Selection::new(context.client.database, pattern)?;
    let list = List::default();
    Ok(Scanning { tokens, selection, position, count, pages: 0, list }.next())
}

impl Scanning {
    fn next(mut self) -> Plan {
        let ScanPosition { place, cursor } = self.position;
        let ask = self.selection.page(&self.tokens, place, cursor.into());
        Plan::one(ask, move |answer, reply| {
            let page = pages::read(answer)?;
            for key in self.selection.keys(&page)? {
                self.list.push(key, reply);
            }
            self.position = match u32::try_from(page.next) {
                Ok(0) => ScanPosition { place: place + 1, cursor: 0 },
                Ok(cursor) => ScanPosition { place, cursor },
                Err(_) => return Err(Error::Stated("ERR malformed page: its cursor is too large")),
            };
            self.pages += 1;
            self.count = self.count.saturating_sub(page.entries.clamp(1, PAGE_ENTRIES));
            let is_over = self.count == 0
                || place < self.position.place && self.position.place == self.tokens.places()
                || self.pages == SCAN_PAGES_MAX
                || self.list.bytes.len() >= SCAN_BYTES;
            if !is_over {
                return Ok(self.next());
            }
            reply.array(2);
            reply.bulk(self.tokens.encode(self.position).to_string().as_bytes());
            self.list.write(reply);
            Ok(Plan::Replied)
        })
    }
}

fn keys(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let pattern = context.args[1];
    if pattern.is_empty() {
        reply.array(0);
        return Ok(Plan::Replied);
    }
    let selection = Selection::new(context.client.database, pattern)?;
    collect(Walk::new(pages::tokens(context), selection), List::default(), reply)
}

/// Reads the next pages of KEYS, or replies after the last ones.
fn collect(mut walk: Walk, mut list: List, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let asks = walk.next();
    if asks.is_empty() {
        list.write(reply);
        return Ok(Plan::Replied);
    }
    Ok(Plan::all(asks, move |answers, reply| {
        for page in walk.take(answers)? {
            for key in walk.selection().keys(&page)? {
                list.push(key, reply);
            }
        }
        match list.bytes.len() > KEYS_BYTES_MAX {
            true => Err(Error::Stated("ERR the reply to KEYS is longer than 16 MiB; use SCAN")),
            false => collect(walk, list, reply),
        }
    }))
}

fn randomkey(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let tokens = pages::tokens(context);
    let random = context.server.random();
    let [low, high] = [random & u64::from(u32::MAX), random >> 32];
    // Three independent parts of the number determine the place, the position in it, and the key of the page.
    let place = u32::try_from((low * u64::from(tokens.places())) >> 32).unwrap_or(0);
    let selection = Selection::new(context.client.database, b"*")?;
    // The first place is read from a random position to its end, and at last from its start.
    let left = tokens.places() + 1;
    pick(RandomKey { tokens, selection, random, left, place, cursor: high }, reply)
}

/// A search for a random key.
struct RandomKey {
    tokens: ScanTokens,
    selection: Selection,
    random: u64,
    /// The number of shards to read, the current one included.
    left: u32,
    place: u32,
    cursor: u64,
}

fn pick(mut search: RandomKey, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    if search.left == 0 {
        reply.null();
        return Ok(Plan::Replied);
    }
    let ask = search.selection.page(&search.tokens, search.place, search.cursor);
    Ok(Plan::one(ask, move |answer, reply| {
        let page = pages::read(answer)?;
        let keys = search.selection.keys(&page)?;
        if !keys.is_empty() {
            let index = search.random % keys.len() as u64;
            reply.bulk(keys[usize::try_from(index).unwrap_or(0)]);
            return Ok(Plan::Replied);
        }
        search.cursor = page.next;
        if page.next == 0 {
            search.left -= 1;
            search.place = (search.place + 1) % search.tokens.places();
        }
        pick(search, reply)
    }))
}

/// Counts the keys. The store has one number of entries for each shard, of all databases together. So this reads all
/// pages, without the keys of database 0: one request for 1,024 entries.
fn dbsize(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let selection = match context.client.database {
        0 => Selection::of_other_databases(),
        number => Selection::new(number, b"*")?,
    };
    count(Walk::new(pages::tokens(context), selection), 0, reply)
}

fn count(mut walk: Walk, mut keys: i64, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let asks = walk.next();
    if asks.is_empty() {
        reply.integer(keys.max(0));
        return Ok(Plan::Replied);
    }
    Ok(Plan::all(asks, move |answers, reply| {
        for page in walk.take(answers)? {
            let found = i64::try_from(walk.selection().keys(&page)?.len()).unwrap_or(i64::MAX);
            let entries = i64::try_from(page.entries).unwrap_or(i64::MAX);
            keys += match walk.selection().is_complement() {
                true if page.next == 0 => entries - found,
                true => -found,
                false => found,
            };
        }
        count(walk, keys, reply)
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;
    use kv_protocol::placement::Placement;
    use std::collections::BTreeSet;

    /// Returns a store of six shards with keys in the databases 0 and 3, connected to one of them.
    fn door(database: u8) -> Door {
        let mut door = Door::with(Placement::new(3, 2));
        for number in [0, 3] {
            door.client.database = number;
            for key in 0..60 {
                door.say(&format!("set db{number}:key{key} 1"));
                // Keys that the fake store does not compare with patterns.
                door.say(&format!("set db{number}:key{key}? 1"));
            }
        }
        door.client.database = database;
        door
    }

    fn keys_of(reply: &str) -> BTreeSet<String> {
        let words = reply.split(' ').filter(|word| word.starts_with("db"));
        words.map(ToOwned::to_owned).collect()
    }

    /// Returns the keys that a complete SCAN returns, and the number of calls.
    fn scanned(door: &mut Door, options: &str) -> (BTreeSet<String>, usize) {
        let (mut keys, mut calls, mut cursor) = (BTreeSet::new(), 0, "0".to_owned());
        loop {
            let reply = door.say(&format!("scan {cursor}{options}"));
            calls += 1;
            cursor = reply.split(' ').nth(2).unwrap().to_owned();
            for key in keys_of(&reply) {
                assert!(keys.insert(key), "a key came twice");
            }
            if cursor == "0" {
                return (keys, calls);
            }
        }
    }

    #[test]
    fn scan_and_keys_return_the_keys_of_their_database() {
        for database in [0, 3] {
            let mut door = door(database);
            let (all, calls) = scanned(&mut door, "");
            assert_eq!(all.len(), 120);
            assert!(all.iter().all(|key| key.starts_with(&format!("db{database}:"))));
            assert!(calls > 2, "the work of a call is not bounded");
            assert_eq!(keys_of(&door.say("keys *")), all);
            assert_eq!(scanned(&mut door, " COUNT 1000").0, all);
            assert_eq!(scanned(&mut door, " TYPE string").0, all);
            assert_eq!(scanned(&mut door, " TYPE hash").0.len(), 0);
            assert_eq!(scanned(&mut door, " MATCH *key1*").0.len(), 22);
            assert_eq!(
                scanned(&mut door, " MATCH db3:*").0.len(),
                if database == 3 { 120 } else { 0 }
            );
            assert_eq!(keys_of(&door.say("keys db?:key1[0-9]\\?")).len(), 10);
            assert_eq!(door.run(&[b"keys", b""]), b"*0\r\n");
            assert_eq!(door.run(&[b"scan", b"0", b"match", b""]), b"*2\r\n$1\r\n0\r\n*0\r\n");
        }
        let mut door = door(1);
        assert_eq!(door.say("keys *"), "*0");
        assert_eq!(door.say("randomkey"), "$-1");
        assert_eq!(door.say("dbsize"), ":0");
    }

    #[test]
    fn a_small_database_is_scanned_in_one_call() {
        let mut door = Door::with(Placement::new(3, 2));
        door.say("mset db:a 1 db:b 2 db:c 3");
        assert_eq!(scanned(&mut door, "").1, 1);
    }

    #[test]
    fn the_size_of_a_database_is_exact() {
        for database in [0, 3] {
            let mut door = door(database);
            assert_eq!(door.say("dbsize"), ":120");
            door.say("del db0:key1 db3:key1");
            assert_eq!(door.say("dbsize"), ":119");
        }
    }

    #[test]
    fn every_key_may_be_the_random_one() {
        let mut door = door(3);
        let keys: BTreeSet<String> = (0..5_000).map(|_| door.say("randomkey")).collect();
        assert_eq!(keys.len(), 120);
        assert!(keys.iter().all(|key| key.contains(" db3:")));
    }

    #[test]
    fn malformed_options_have_the_errors_of_redis() {
        let mut door = Door::with(Placement::new(3, 2));
        for (command, reply) in [
            ("scan x", "-ERR invalid cursor"),
            ("scan -1", "-ERR invalid cursor"),
            ("scan 18446744073709551616", "-ERR invalid cursor"),
            ("scan 12345", "-ERR invalid cursor"),
            ("scan 0 count", "-ERR syntax error"),
            ("scan 0 count 0", "-ERR syntax error"),
            ("scan 0 count x", "-ERR value is not an integer or out of range"),
            ("scan 0 foo bar", "-ERR syntax error"),
            ("scan 0", "*2 $1 0 *0"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        let long = vec![b'a'; 65_536];
        assert!(door.run(&[b"keys", &long]).starts_with(b"-ERR a pattern has at most"));
    }

    #[test]
    fn a_reply_of_keys_that_is_too_long_is_refused() {
        let mut door = Door::new();
        door.store.page = 1_000;
        let mut key = vec![b'x'; 60_000];
        for number in 0..300u16 {
            key[..2].copy_from_slice(&number.to_be_bytes());
            door.run(&[b"set", &key, b""]);
        }
        assert_eq!(door.say("keys *"), "-ERR the reply to KEYS is longer than 16 MiB; use SCAN");
    }
}
