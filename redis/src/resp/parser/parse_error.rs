//! The errors of the parser, with the texts of Redis.

use std::borrow::Cow;

/// The reason why bytes are not a command. The connection cannot continue after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// A line of words is longer than [`MAX_LINE_BYTES`](super::MAX_LINE_BYTES).
    TooBigLine,
    /// The line with the number of arguments is longer than that.
    TooBigCount,
    /// The line with the length of an argument is longer than that.
    TooBigLength,
    /// The number of arguments is malformed, or exceeds [`MAX_ARGS`](super::MAX_ARGS).
    InvalidCount,
    /// The length of an argument is malformed or negative, or exceeds [`MAX_BULK_BYTES`](super::MAX_BULK_BYTES).
    InvalidLength,
    /// An argument of an array begins with this byte instead of `$`.
    Unexpected(u8),
    /// A quote in a line is not closed, or is followed by something other than a space.
    UnbalancedQuotes,
    /// A command has more bytes than this limit. Redis has no such text, because it closes the connection without one.
    TooBigCommand(usize),
}

impl ParseError {
    /// Returns the text of the error reply, which begins with its code. It has no line breaks, and need not be UTF-8.
    pub fn text(self) -> Cow<'static, [u8]> {
        Cow::Borrowed(match self {
            ParseError::TooBigLine => b"ERR Protocol error: too big inline request",
            ParseError::TooBigCount => b"ERR Protocol error: too big mbulk count string",
            ParseError::TooBigLength => b"ERR Protocol error: too big bulk count string",
            ParseError::InvalidCount => b"ERR Protocol error: invalid multibulk length",
            ParseError::InvalidLength => b"ERR Protocol error: invalid bulk length",
            ParseError::UnbalancedQuotes => b"ERR Protocol error: unbalanced quotes in request",
            ParseError::Unexpected(byte) => {
                let shown = if matches!(byte, b'\r' | b'\n') { b' ' } else { byte };
                let mut text = b"ERR Protocol error: expected '$', got '".to_vec();
                text.extend_from_slice(&[shown, b'\'']);
                return Cow::Owned(text);
            }
            ParseError::TooBigCommand(limit) => {
                let text = format!("ERR Protocol error: command longer than {limit} bytes");
                return Cow::Owned(text.into_bytes());
            }
        })
    }
}
