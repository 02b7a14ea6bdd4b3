//! Error replies, with the texts of Redis.

use std::borrow::Cow;

use kv_protocol::client_message::Status;
use kv_protocol::escape::readable;

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// An error with this text, which begins with its code.
    Stated(&'static str),
    /// An error with this text, which begins with its code.
    Text(String),
}

impl Error {
    /// Returns the text. It has no line breaks.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Error::Stated(text) => Cow::Borrowed(text),
            Error::Text(text) if text.contains(['\r', '\n']) => {
                Cow::Owned(text.trim_end_matches(['\r', '\n']).replace(['\r', '\n'], " "))
            }
            Error::Text(text) => Cow::Borrowed(text),
        }
    }
}

/// The argument is not valid in its place.
pub const SYNTAX: Error = Error::Stated("ERR syntax error");
/// A number is malformed or too large.
pub const NOT_AN_INTEGER: Error = Error::Stated("ERR value is not an integer or out of range");
/// A number is malformed.
pub const NOT_A_FLOAT: Error = Error::Stated("ERR value is not a valid float");
/// A value would be too long.
pub const TOO_LONG: Error =
    Error::Stated("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
/// The keys are not all of one shard.
pub const CROSS_SLOT: Error =
    Error::Stated("CROSSSLOT Keys in request don't hash to the same slot");

/// The effect of a write is unknown. The connection ends after this error.
pub const IN_DOUBT: Error = Error::Stated(
    "ERR outcome unknown: no server responded before the deadline, and the write may still take effect",
);
/// No server could serve a request of the command.
pub const NOT_SERVED: Error = Error::Stated(
    "TRYAGAIN no server could serve the key before the deadline; nothing was changed by this command",
);
/// Only some requests of the command could be served.
pub const SERVED_IN_PART: Error = Error::Stated(
    "TRYAGAIN no server could serve some of the keys before the deadline; the other keys were changed by this command",
);
/// No server is left that holds a key of the command. Its data is lost.
pub const LOST: Error = Error::Stated("CLUSTERDOWN Hash slot not served");

/// The index of a database is not one.
pub const NO_SUCH_DATABASE: Error = Error::Stated("ERR DB index is out of range");
/// The key to move does not exist.
pub const NO_SUCH_KEY: Error = Error::Stated("ERR no such key");
/// Commands of Redis Cluster.
pub const NO_CLUSTER: Error = Error::Stated("ERR This instance has cluster support disabled");

/// Returns the error of a command whose time is not positive, or too large.
pub fn expire_time(command: &str) -> Error {
    Error::Text(format!("ERR invalid expire time in '{command}' command"))
}

/// Returns the error of a command with subcommands for one that does not exist.
pub fn subcommand(command: &str, name: &[u8]) -> Error {
    let name = shown(name);
    let command = command.to_ascii_uppercase();
    Error::Text(format!("ERR unknown subcommand '{name}'. Try {command} HELP."))
}

/// Returns the error of a command with a wrong number of arguments.
pub fn arity(command: &str) -> Error {
    Error::Text(format!("ERR wrong number of arguments for '{command}' command"))
}

/// Returns the error for a status that no command expects, with the reason in the response.
pub fn of_status(status: Status, reason: &[u8]) -> Error {
    match status {
        Status::TooBig => TOO_LONG,
        Status::OutOfSpace => {
            Error::Stated("OOM command not allowed when used memory > 'maxmemory'.")
        }
        Status::CrossShard => CROSS_SLOT,
        Status::Lost => LOST,
        other => Error::Text(format!("ERR {other:?}: {}", readable(reason))),
    }
}

/// The number of bytes of an unknown command, and of its arguments together, that an error repeats.
const REPEATED: usize = 128;

/// Returns the beginning of an argument as an error repeats it. Redis repeats C strings, which end before a zero byte.
pub fn shown(argument: &[u8]) -> Cow<'_, str> {
    beginning(argument, REPEATED)
}

fn beginning(argument: &[u8], most: usize) -> Cow<'_, str> {
    let length = argument.iter().position(|byte| *byte == 0).unwrap_or(argument.len());
    String::from_utf8_lossy(&argument[..length.min(most)])
}

/// Returns the error for a command that does not exist.
pub fn unknown(args: &[&[u8]]) -> Error {
    let mut text = format!(
        "ERR unknown command '{}', with args beginning with: ",
        shown(args.first().unwrap_or(&&[][..]))
    );
    let begin = text.len();
    for arg in args.iter().skip(1) {
        let left = REPEATED.saturating_sub(text.len() - begin);
        if left == 0 {
            break;
        }
        text.push_str(&format!("'{}' ", beginning(arg, left)));
    }
    Error::Text(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_arguments_of_an_unknown_command_together_are_repeated_up_to_a_bound() {
        let (first, second, third) = ("a".repeat(108), "b".repeat(72), "c");
        let args = [b"foo", first.as_bytes(), second.as_bytes(), third.as_bytes()];
        // What Redis 7.0 replies.
        let expected = format!(
            "ERR unknown command 'foo', with args beginning with: '{first}' '{}' ",
            "b".repeat(17)
        );
        assert_eq!(unknown(&args).text(), expected);
    }
}
