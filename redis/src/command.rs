//! The commands: their table, and one module for each family.
//!
//! A family has a constant array of its [`Command`]s. [`find`] looks them up, [`perform`] checks the number of arguments
//! and calls the command.

use kv_protocol::ids::WallTime;
use kv_protocol::placement::Placement;

use crate::client::{Client, Server};
use crate::database;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

mod connection;
mod strings;

/// The families, in the order of the documentation.
const FAMILIES: [&[Command]; 2] = [strings::COMMANDS, connection::COMMANDS];

/// A command.
pub struct Command {
    /// The name, in lower case.
    pub name: &'static str,
    /// The number of arguments, the name included; a negative number is a minimum.
    pub arity: i32,
    /// The properties, as COMMAND shows them.
    pub flags: &'static [&'static str],
    /// The positions of its keys.
    pub keys: Keys,
    /// The group of the documentation of Redis.
    pub group: &'static str,
    /// The purpose, in one line.
    pub summary: &'static str,
    /// The translation.
    pub perform: fn(&mut Context<'_>, &mut Reply<'_>) -> Result<Plan, Error>,
}

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
}

/// A call of a command.
pub struct Context<'a> {
    /// The arguments, the name of the command first.
    pub args: &'a [&'a [u8]],
    /// The connection.
    pub client: &'a mut Client,
    /// The server.
    pub server: &'a dyn Server,
}

impl Context<'_> {
    /// Returns the stored form of an argument that is a key.
    ///
    /// # Errors
    /// If the store cannot have such a key.
    pub fn key(&self, at: usize) -> Result<Vec<u8>, Error> {
        database::stored(self.client.database, self.args[at])
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
    let number: i64 = str::from_utf8(text).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}

/// Returns all commands.
pub fn all() -> impl Iterator<Item = &'static Command> {
    FAMILIES.into_iter().flatten()
}

/// Returns the command with this name, in any case.
pub fn find(name: &[u8]) -> Option<&'static Command> {
    all().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name))
}

impl Command {
    /// Returns whether this number of arguments, the name included, is possible.
    pub fn admits(&self, count: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= least } else { count == least }
    }
}

/// Begins the command in the arguments of a call, which are not empty.
///
/// # Errors
/// If there is no such command, if it does not admit the number of arguments, or if the command fails.
pub fn perform(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let Some(command) = find(context.args[0]) else { return Err(error::unknown(context.args)) };
    if !command.admits(context.args.len()) {
        return Err(error::arity(command.name));
    }
    (command.perform)(context, reply)
}
