//! The writer of replies, in both versions of RESP.

use super::double;
use super::parser::ParseError;
use crate::error::Error;

/// A version of RESP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// RESP2, with which every connection begins.
    #[default]
    Two,
    /// RESP3.
    Three,
}

/// A writer of replies to one connection.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    version: Version,
}

impl<'a> Reply<'a> {
    /// Creates a writer that appends to `out`.
    pub fn new(out: &'a mut Vec<u8>, version: Version) -> Reply<'a> {
        Reply { out, version }
    }

    /// Returns the version of the protocol.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Changes the version of the protocol for what follows.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// Returns the number of bytes written so far, those before this writer included.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Returns whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Removes all bytes but the first `length`.
    pub fn truncate(&mut self, length: usize) {
        self.out.truncate(length);
    }

    /// Writes a part of a reply that another writer of the same version has made.
    pub fn written(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Writes a reply that is already encoded.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Writes a simple string. It must have no line breaks.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// Writes `OK`.
    pub fn ok(&mut self) {
        self.simple("OK");
    }

    /// Writes an error.
    pub fn error(&mut self, error: &Error) {
        self.line(b'-', error.text().as_bytes());
    }

    /// Writes the error of a connection whose bytes are not a command.
    pub fn protocol_error(&mut self, error: ParseError) {
        self.line(b'-', &error.text());
    }

    /// Writes an integer.
    pub fn integer(&mut self, number: i64) {
        self.number(b':', number);
    }

    /// Writes a floating-point number.
    pub fn double(&mut self, number: f64) {
        let text = double::text(number);
        match self.version {
            Version::Two => self.bulk(text.as_bytes()),
            Version::Three => self.line(b',', text.as_bytes()),
        }
    }

    /// Writes a truth value.
    pub fn boolean(&mut self, is_true: bool) {
        match self.version {
            Version::Two => self.integer(i64::from(is_true)),
            Version::Three => self.line(b'#', if is_true { b"t" } else { b"f" }),
        }
    }

    /// Writes an integer of any size, which is passed as decimal digits with an optional minus sign.
    pub fn big_number(&mut self, digits: &str) {
        match self.version {
            Version::Two => self.bulk(digits.as_bytes()),
            Version::Three => self.line(b'(', digits.as_bytes()),
        }
    }

    /// Writes a bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.length(b'$', bytes.len());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Writes a bulk string, or null.
    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// Writes null in place of a bulk string.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.version {
            Version::Two => b"$-1\r\n",
            Version::Three => b"_\r\n",
        });
    }

    /// Writes null in place of an array.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.version {
            Version::Two => b"*-1\r\n",
            Version::Three => b"_\r\n",
        });
    }

    /// Begins an array of `length` elements, which follow.
    pub fn array(&mut self, length: usize) {
        self.length(b'*', length);
    }

    /// Begins a map of `pairs` keys and values, which follow.
    pub fn map(&mut self, pairs: usize) {
        match self.version {
            Version::Two => self.length(b'*', 2 * pairs),
            Version::Three => self.length(b'%', pairs),
        }
    }

    /// Begins a set of `length` elements, which follow.
    pub fn set(&mut self, length: usize) {
        match self.version {
            Version::Two => self.length(b'*', length),
            Version::Three => self.length(b'~', length),
        }
    }

    /// Begins a push message of `length` elements, which follow.
    pub fn push(&mut self, length: usize) {
        match self.version {
            Version::Two => self.length(b'*', length),
            Version::Three => self.length(b'>', length),
        }
    }

    /// Writes a text that is meant for people.
    pub fn verbatim(&mut self, text: &str) {
        match self.version {
            Version::Two => self.bulk(text.as_bytes()),
            Version::Three => {
                self.length(b'=', text.len() + 4);
                self.out.extend_from_slice(b"txt:");
                self.out.extend_from_slice(text.as_bytes());
                self.out.extend_from_slice(b"\r\n");
            }
        }
    }

    fn length(&mut self, kind: u8, length: usize) {
        self.number(kind, i64::try_from(length).unwrap_or(i64::MAX));
    }

    fn number(&mut self, kind: u8, number: i64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = number.unsigned_abs();
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.out.push(kind);
        if number < 0 {
            self.out.push(b'-');
        }
        self.out.extend_from_slice(&digits[at..]);
        self.out.extend_from_slice(b"\r\n");
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(text);
        self.out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Write = fn(&mut Reply<'_>);

    fn written(version: Version, write: impl FnOnce(&mut Reply<'_>)) -> String {
        let mut out = Vec::new();
        write(&mut Reply::new(&mut out, version));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_have_all_their_digits() {
        for number in [0, 7, -1, 10, 1_000_000, i64::MAX, i64::MIN] {
            assert_eq!(
                written(Version::Two, |reply| reply.integer(number)),
                format!(":{number}\r\n")
            );
        }
    }

    #[test]
    fn the_versions_differ_where_redis_has_them_differ() {
        let both = |write: Write| (written(Version::Two, write), written(Version::Three, write));
        let cases: [(Write, &str, &str); 13] = [
            (|reply| reply.null(), "$-1\r\n", "_\r\n"),
            (|reply| reply.null_array(), "*-1\r\n", "_\r\n"),
            (|reply| reply.map(2), "*4\r\n", "%2\r\n"),
            (|reply| reply.set(2), "*2\r\n", "~2\r\n"),
            (|reply| reply.push(2), "*2\r\n", ">2\r\n"),
            (|reply| reply.verbatim("a"), "$1\r\na\r\n", "=5\r\ntxt:a\r\n"),
            (|reply| reply.double(-0.5), "$4\r\n-0.5\r\n", ",-0.5\r\n"),
            (|reply| reply.double(f64::INFINITY), "$3\r\ninf\r\n", ",inf\r\n"),
            (|reply| reply.double(f64::NEG_INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n"),
            (|reply| reply.double(f64::NAN), "$3\r\nnan\r\n", ",nan\r\n"),
            (|reply| reply.boolean(true), ":1\r\n", "#t\r\n"),
            (|reply| reply.boolean(false), ":0\r\n", "#f\r\n"),
            (|reply| reply.big_number("-12"), "$3\r\n-12\r\n", "(-12\r\n"),
        ];
        for (write, two, three) in cases {
            assert_eq!(both(write), (two.into(), three.into()));
        }
    }

    #[test]
    fn protocol_errors_are_written_byte_by_byte() {
        let mut out = Vec::new();
        Reply::new(&mut out, Version::Two).protocol_error(ParseError::Unexpected(0xff));
        assert_eq!(out, b"-ERR Protocol error: expected '$', got '\xff'\r\n");
    }

    /// The parser of another author.
    #[test]
    fn replies_are_what_a_client_parses() {
        use redis_protocol::resp3::decode::complete::decode;
        use redis_protocol::resp3::types::{OwnedFrame, VerbatimStringFormat};

        let attributes = None;
        let number = |data| OwnedFrame::Number { data, attributes: None };
        let cases: [(Write, OwnedFrame); 9] = [
            (|reply| reply.null(), OwnedFrame::Null),
            (|reply| reply.null_array(), OwnedFrame::Null),
            (|reply| reply.boolean(true), OwnedFrame::Boolean { data: true, attributes: None }),
            (|reply| reply.double(1e-9), OwnedFrame::Double { data: 1e-9, attributes: None }),
            (
                |reply| reply.big_number("-12"),
                OwnedFrame::BigNumber { data: b"-12".to_vec(), attributes: None },
            ),
            (
                |reply| reply.verbatim("a"),
                OwnedFrame::VerbatimString {
                    data: b"a".to_vec(),
                    format: VerbatimStringFormat::Text,
                    attributes: None,
                },
            ),
            (
                |reply| {
                    reply.map(1);
                    reply.integer(1);
                    reply.integer(2);
                },
                OwnedFrame::Map { data: [(number(1), number(2))].into(), attributes: None },
            ),
            (
                |reply| {
                    reply.set(1);
                    reply.integer(1);
                },
                OwnedFrame::Set { data: [number(1)].into(), attributes: None },
            ),
            (
                |reply| {
                    reply.push(1);
                    reply.integer(1);
                },
                OwnedFrame::Push { data: vec![number(1)], attributes },
            ),
        ];
        for (write, expected) in cases {
            let bytes = written(Version::Three, write);
            let (frame, consumed) = decode(bytes.as_bytes()).unwrap().unwrap();
            assert_eq!((frame, consumed), (expected, bytes.len()));
        }
    }
}
