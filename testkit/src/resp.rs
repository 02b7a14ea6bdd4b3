//! Commands and replies of the Redis protocol, from the side of a client.

use std::fmt;

/// The maximum depth of arrays within arrays.
const DEPTH_MAX: usize = 8;

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple string.
    Simple(String),
    /// An error, with its code.
    Error(String),
    /// An integer.
    Integer(i64),
    /// A bulk string.
    Bulk(Vec<u8>),
    /// Null, in any of its forms.
    Null,
    /// An array.
    Array(Vec<Reply>),
}

/// Bytes that are no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Encodes a command.
pub fn command<'a>(args: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The replies of a connection, from received bytes.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    received: Vec<u8>,
}

impl Replies {
    /// Appends received bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Takes the next complete reply.
    ///
    /// # Errors
    /// The bytes are no reply.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, Malformed> {
        let mut rest = &self.received[..];
        let reply = parse(&mut rest, DEPTH_MAX)?;
        if reply.is_some() {
            let consumed = self.received.len() - rest.len();
            self.received.drain(..consumed);
        }
        Ok(reply)
    }

    /// Returns whether no incomplete reply was received.
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }
}

/// Parses the reply at the beginning of `rest`, and removes it; `None` if it is incomplete.
fn parse(rest: &mut &[u8], depth: usize) -> Result<Option<Reply>, Malformed> {
    let Some(line) = take_line(rest) else { return Ok(None) };
    let malformed = || Malformed(format!("{:?} begins no reply", String::from_utf8_lossy(line)));
    let (kind, text) = line.split_first().ok_or_else(malformed)?;
    let text = str::from_utf8(text).map_err(|_| malformed())?;
    let number = || text.parse::<i64>().map_err(|_| malformed());
    Ok(Some(match kind {
        b'+' => Reply::Simple(text.to_owned()),
        b'-' => Reply::Error(text.to_owned()),
        b':' => Reply::Integer(number()?),
        b'_' if text.is_empty() => Reply::Null,
        b'$' | b'*' if number()? == -1 => Reply::Null,
        b'$' => {
            let length = usize::try_from(number()?).map_err(|_| malformed())?;
            if rest.len() < length.saturating_add(2) {
                return Ok(None);
            }
            let (bulk, after) = rest.split_at(length);
            *rest = after.strip_prefix(b"\r\n").ok_or_else(malformed)?;
            Reply::Bulk(bulk.to_vec())
        }
        b'*' => {
            let depth = depth.checked_sub(1).ok_or_else(malformed)?;
            let mut items = Vec::new();
            for _ in 0..number()? {
                match parse(rest, depth)? {
                    Some(item) => items.push(item),
                    None => return Ok(None),
                }
            }
            Reply::Array(items)
        }
        _ => return Err(malformed()),
    }))
}

fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_in_single_bytes_are_those_that_came_at_once() {
        let bytes = b"+OK\r\n-ERR no\r\n:-3\r\n$2\r\n\r\n\r\n$-1\r\n*2\r\n$1\r\na\r\n*-1\r\n_\r\n";
        let expected = [
            Reply::Simple("OK".to_owned()),
            Reply::Error("ERR no".to_owned()),
            Reply::Integer(-3),
            Reply::Bulk(b"\r\n".to_vec()),
            Reply::Null,
            Reply::Array(vec![Reply::Bulk(b"a".to_vec()), Reply::Null]),
            Reply::Null,
        ];
        let (mut replies, mut found) = (Replies::default(), Vec::new());
        for byte in bytes {
            replies.extend(&[*byte]);
            while let Some(reply) = replies.next_reply().unwrap() {
                found.push(reply);
            }
        }
        assert_eq!(found, expected);
        assert!(replies.is_empty());
    }

    #[test]
    fn other_bytes_are_malformed() {
        for bytes in [&b"hello\r\n"[..], b"\r\n", b":x\r\n", b"$1\r\nab\r\n", b"$-2\r\n"] {
            let mut replies = Replies::default();
            replies.extend(bytes);
            assert!(replies.next_reply().is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_command_is_an_array_of_its_arguments() {
        let args: [&[u8]; 2] = [b"GET", b"\r\n"];
        assert_eq!(command(args.into_iter()), b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n");
    }
}
