//! The commands: their table, and one module for each family.
//!
//! A family has a constant array of its [`Command`]s. [`find`] looks them up, [`perform`] checks the number of arguments
//! and calls the command.

use std::borrow::Cow;

use kv_protocol::ids::WallTime;
use kv_protocol::placement::{Digest, Placement};

use crate::ask::FreeFrames;
use crate::client::{Client, Server};
use crate::database::{self, StoredKey};
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;
use crate::transaction;

mod batch;
mod clients;
mod config;
mod connection;
mod counters;
mod differences;
mod expiry;
mod flush;
mod info;
mod introspection;
mod keys;
mod lcs;
mod many;
mod options;
mod pages;
mod ranges;
mod scan;
mod server;
mod strings;
mod subcommands;
mod table;
mod transactions;

pub use differences::{DIFFERENCES, differences};
pub use table::{all, find};

/// The families, in the order of the documentation.
const FAMILIES: &[&[Command]] = &[
    strings::COMMANDS,
    many::COMMANDS,
    ranges::COMMANDS,
    counters::COMMANDS,
    lcs::COMMANDS,
    keys::COMMANDS,
    expiry::COMMANDS,
    scan::COMMANDS,
    flush::COMMANDS,
    transactions::COMMANDS,
    connection::COMMANDS,
    clients::COMMANDS,
    server::COMMANDS,
    info::COMMANDS,
    config::COMMANDS,
    introspection::COMMANDS,
];

/// A command.
pub struct Command {
    /// The name, in lower case. That of a subcommand is `command|name`.
    pub name: &'static str,
    /// The number of arguments, the name included; a negative number is a minimum.
    pub arity: i32,
    /// The properties, as COMMAND shows them.
    pub flags: &'static [&'static str],
    /// The positions of its keys.
    pub keys: Keys,
    /// The group of the documentation of Redis.
    pub group: &'static str,
    /// The version of Redis that has it first.
    pub since: &'static str,
    /// The purpose, in one line.
    pub summary: &'static str,
    /// The translation. A command with subcommands gets only the calls that none of them takes.
    pub perform: Perform,
    /// The subcommands.
    pub subcommands: &'static [Command],
}

/// The translation of a command.
pub type Perform = fn(&mut Context<'_>, &mut Reply<'_>) -> Result<Plan, Error>;

/// Frequent sets of properties.
const READ: &[&str] = &["readonly"];
const FAST_READ: &[&str] = &["readonly", "fast"];
const WRITE: &[&str] = &["write"];
const FAST_WRITE: &[&str] = &["write", "fast"];
const GROWING: &[&str] = &["write", "denyoom"];
const FAST_GROWING: &[&str] = &["write", "denyoom", "fast"];

/// The positions of the keys of a command among its arguments, as COMMAND shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The first key; 0 if there is none.
    pub first: i32,
    /// The last key; a negative number counts from the end.
    pub last: i32,
    /// The distance between two keys.
    pub step: i32,
}

impl Keys {
    /// No keys.
    pub const NONE: Keys = Keys { first: 0, last: 0, step: 0 };
    /// One key after the name.
    pub const ONE: Keys = Keys { first: 1, last: 1, step: 1 };
    /// Two keys after the name.
    pub const TWO: Keys = Keys { first: 1, last: 2, step: 1 };
    /// Keys to the end.
    pub const ALL: Keys = Keys { first: 1, last: -1, step: 1 };
    /// Keys and values in turn, to the end.
    pub const PAIRS: Keys = Keys { first: 1, last: -1, step: 2 };
    /// One key after the name of a subcommand.
    pub const AFTER_SUBCOMMAND: Keys = Keys { first: 2, last: 2, step: 1 };

    /// Returns the positions of the keys in a call with this number of arguments.
    pub fn positions(self, arguments: usize) -> impl Iterator<Item = usize> {
        let at = |position: i32| match usize::try_from(position) {
            Ok(position) => position,
            Err(_) => arguments.saturating_sub(position.unsigned_abs() as usize),
        };
        let (first, last) = (at(self.first), at(self.last).min(arguments.saturating_sub(1)));
        let end = if first == 0 { 0 } else { last + 1 };
        (first..end.max(first)).step_by(at(self.step).max(1))
    }
}

/// A call of a command.
pub struct Context<'a> {
    /// The arguments, the name of the command first.
    pub args: &'a [&'a [u8]],
    /// The connection.
    pub client: &'a mut Client,
    /// The server.
    pub server: &'a dyn Server,
    /// The digest of the second argument, if it is known.
    pub digest: Option<Digest>,
    /// The buffers of past requests.
    pub frames: &'a mut FreeFrames,
}

impl<'a> Context<'a> {
    /// Returns the stored form of an argument that is a key.
    ///
    /// # Errors
    /// If the store cannot have such a key.
    pub fn key(&self, at: usize) -> Result<StoredKey<'a>, Error> {
        database::stored(self.client.database, self.args[at])
    }

    /// Returns the stored form of the second argument, which is a key, and its digest.
    ///
    /// # Errors
    /// If the store cannot have such a key.
    pub fn first_key(&self) -> Result<(StoredKey<'a>, Digest), Error> {
        let key = self.key(1)?;
        let digest = match (&key, self.digest) {
            (Cow::Borrowed(_), Some(digest)) => digest,
            _ => Digest::of(&key),
        };
        Ok((key, digest))
    }

    /// Returns an argument as an integer.
    ///
    /// # Errors
    /// If it is none.
    pub fn integer(&self, at: usize) -> Result<i64, Error> {
        integer(self.args[at]).ok_or(error::NOT_AN_INTEGER)
    }

    /// Returns whether an argument is this word, which is in lower case.
    pub fn is(&self, at: usize, word: &str) -> bool {
        self.args.get(at).is_some_and(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// Returns the placement of the cluster's keys.
    pub fn placement(&self) -> Placement {
        self.server.placement()
    }

    /// Returns the wall clock.
    pub fn wall(&self) -> WallTime {
        self.server.wall()
    }
}

/// Returns the integer that a text is in the form of Redis: decimal, without leading zeros, plus sign or spaces.
pub fn integer(text: &[u8]) -> Option<i64> {
    let (digits, is_negative) = match text.strip_prefix(b"-") {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    // 19 digits fit in a `u64`.
    let is_canonical = match digits {
        [] => false,
        [b'0'] => !is_negative,
        [first, ..] => *first != b'0' && digits.len() <= 19,
    };
    if !is_canonical || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    match is_negative {
        true => 0i64.checked_sub_unsigned(number),
        false => i64::try_from(number).ok(),
    }
}

impl Command {
    /// Returns whether this number of arguments, the name included, is possible.
    pub fn admits(&self, count: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= least } else { count == least }
    }

    /// Returns whether the command begins only when all earlier ones of its connection have their replies, because it
    /// depends on their results, or forgets the keys that an earlier WATCH may still add.
    pub fn waits(&self) -> bool {
        matches!(self.name, "exec" | "wait" | "unwatch" | "discard" | "reset")
    }

    /// Returns the name without that of the command that it belongs to.
    pub fn own_name(&self) -> &'static str {
        self.name.split_once('|').map_or(self.name, |(_, name)| name)
    }

    /// Returns the subcommand with this name, in any case.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Command> {
        let is_it = |sub: &&Command| sub.own_name().as_bytes().eq_ignore_ascii_case(name);
        self.subcommands.iter().find(is_it)
    }

    /// Returns the command or subcommand that a call means.
    ///
    /// # Errors
    /// If there is none, or if it does not admit the number of arguments.
    pub fn of(args: &[&[u8]]) -> Result<&'static Command, Error> {
        Command::of_found(args.first().and_then(|name| find(name)), args)
    }

    /// Does the same as [`Command::of`], with the command that [`find`] returns for the name.
    fn of_found(
        found: Option<&'static Command>,
        args: &[&[u8]],
    ) -> Result<&'static Command, Error> {
        let command = found.ok_or_else(|| error::unknown(args))?;
        let command = match args.get(1) {
            Some(name) if !command.subcommands.is_empty() => {
                command.subcommand(name).ok_or_else(|| error::subcommand(command.name, name))?
            }
            _ => command,
        };
        match command.admits(args.len()) {
            true => Ok(command),
            false => Err(error::arity(command.name)),
        }
    }
}

/// Begins the command in the arguments of a call, which are not empty. `found` is what [`find`] returns for the name.
///
/// # Errors
/// If there is no such command, if it does not admit the number of arguments, or if the command fails.
pub fn perform(
    context: &mut Context<'_>,
    found: Option<&'static Command>,
    reply: &mut Reply<'_>,
) -> Result<Plan, Error> {
    let command = match Command::of_found(found, context.args) {
        Ok(command) => command,
        Err(error) => return Err(transaction::abort(context, error)),
    };
    if transaction::queue(context, command)? {
        reply.simple("QUEUED");
        return Ok(Plan::Replied);
    }
    (command.perform)(context, reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_one_form() {
        for number in [0, 7, -1, 10, i64::MAX, i64::MIN] {
            assert_eq!(integer(number.to_string().as_bytes()), Some(number));
        }
        for text in ["", "-", "-0", "+1", "01", " 1", "1 ", "1a", "9223372036854775808"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
        assert_eq!(integer(b"-9223372036854775809"), None);
        assert_eq!(integer(b"99999999999999999999"), None);
    }

    #[test]
    fn keys_are_at_their_positions() {
        let positions = |keys: Keys, count| keys.positions(count).collect::<Vec<usize>>();
        assert!(positions(Keys::NONE, 3).is_empty());
        assert_eq!(positions(Keys::ONE, 3), [1]);
        assert_eq!(positions(Keys::TWO, 5), [1, 2]);
        assert_eq!(positions(Keys::ALL, 4), [1, 2, 3]);
        assert_eq!(positions(Keys::PAIRS, 5), [1, 3]);
        assert_eq!(positions(Keys::AFTER_SUBCOMMAND, 3), [2]);
        assert!(positions(Keys::ALL, 1).is_empty());
    }
}
