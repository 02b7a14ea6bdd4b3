//! The parser of commands.
//!
//! ```text
//!   *2\r\n  $4\r\n  ECHO\r\n  $5\r\n  he        the bytes received so far
//!                             ^     ^
//!                             at    end         missing: the rest of "hello" and its line end, 5 bytes
//! ```
//!
//! A command is an array of bulk strings, or a line of words (`inline`). The bytes of a command may arrive in any parts.
//! The parser is called with all bytes of the command so far, and continues where it stopped. So each byte of a line is
//! examined at most three times, and the bytes of a bulk string never. The arguments of an array are ranges of the
//! received bytes. The arguments of a line are decoded into a buffer of the parser.
//!
//! As in Redis, the line end after a bulk string and the second byte of the line end after a number are not checked.
//! Two differences from Redis: an array has at most [`MAX_ARGS`] elements, as in Redis 6, and zero bytes have no meaning
//! outside of bulk strings, while Redis finds no line end behind them.

use kv_protocol::limits::MAX_VALUE_BYTES;

mod inline;
mod parse_error;
#[cfg(test)]
mod tests;

pub use parse_error::ParseError;

/// The maximum length of a line, without its end.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// The maximum number of arguments of a command, its name included.
pub const MAX_ARGS: usize = 1 << 20;
/// The maximum length of a bulk string.
pub const MAX_BULK_BYTES: usize = MAX_VALUE_BYTES;
/// The usual bound of the bytes of a command as it is encoded: one value of maximum length, and 1 MiB for names, keys
/// and lengths. An MSET of 150,000 pairs with values of 64 bytes fits too. Each connection can make the server hold this
/// much, so the bound is not higher.
pub const MAX_COMMAND_BYTES: usize = MAX_BULK_BYTES + (1 << 20);

/// The numbers of arguments and of bytes of a line for which a parser always keeps memory.
const KEPT_ARGS: usize = 8;
const KEPT_BYTES: usize = 256;
/// The maximum number of digits that [`plain_number`] reads.
const PLAIN_DIGITS: usize = 8;

/// A parser of the commands of one connection.
#[derive(Debug)]
pub struct CommandParser {
    /// The maximum number of bytes of a command.
    limit: usize,
    /// The number of arguments that are still incomplete. It is 0 until the first line of a command is complete.
    remaining: usize,
    /// The start of the line or bulk string that comes next.
    at: usize,
    /// The number of bytes of the line at `at` that were searched and do not end it.
    searched: usize,
    /// The length of the bulk string at `at`, once its line is complete.
    length: Option<usize>,
    /// The complete arguments.
    spans: Vec<Span>,
    /// The arguments of a line, one after the other.
    decoded: Vec<u8>,
    /// The number of bytes that were examined.
    #[cfg(test)]
    examined: usize,
}

/// The place of an argument.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Creates the place of an argument. No command is longer than 4 GiB ([`CommandParser::new`]).
    fn new(start: usize, end: usize) -> Span {
        let narrow = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Span { start: narrow(start), end: narrow(end) }
    }
}

/// The arguments of a command, its name first. There is at least one.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    spans: &'a [Span],
    source: &'a [u8],
}

impl<'a> Args<'a> {
    /// Returns the number of arguments.
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// Returns an argument.
    pub fn get(&self, at: usize) -> Option<&'a [u8]> {
        self.spans.get(at).map(|span| slice(self.source, *span))
    }

    /// Returns all arguments in order. They are in `short` if it is long enough.
    pub fn collect_into<'b>(
        &self,
        short: &'b mut [&'a [u8]],
        long: &'b mut Vec<&'a [u8]>,
    ) -> &'b [&'a [u8]] {
        match short.get_mut(..self.count()) {
            Some(short) => {
                short.iter_mut().zip(self.iter()).for_each(|(slot, arg)| *slot = arg);
                short
            }
            None => {
                long.extend(self.iter());
                long
            }
        }
    }

    /// Returns all arguments in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let source = self.source;
        self.spans.iter().map(move |span| slice(source, *span))
    }
}

fn slice(source: &[u8], span: Span) -> &[u8] {
    &source[span.start as usize..span.end as usize]
}

/// The result of parsing.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'a> {
    /// A command.
    Command {
        /// Its arguments.
        args: Args<'a>,
        /// The number of its bytes. The next command begins after them.
        consumed: usize,
    },
    /// An empty line or an empty array, which has no reply.
    Nothing {
        /// The number of its bytes. The next command begins after them.
        consumed: usize,
    },
    /// The beginning of a command, or no bytes at all. The next call passes the same bytes again, and those after them.
    Incomplete {
        /// The least number of bytes with which the next call has a chance to get further. It is the rest of a bulk
        /// string whose length is known, and otherwise 1.
        missing: usize,
    },
}

/// A kind of line with a number.
struct NumberLine {
    marker: u8,
    least: i64,
    most: usize,
    invalid: ParseError,
    too_big: ParseError,
}

const COUNT: NumberLine = NumberLine {
    marker: b'*',
    least: i64::MIN,
    most: MAX_ARGS,
    invalid: ParseError::InvalidCount,
    too_big: ParseError::TooBigCount,
};
const LENGTH: NumberLine = NumberLine {
    marker: b'$',
    least: 0,
    most: MAX_BULK_BYTES,
    invalid: ParseError::InvalidLength,
    too_big: ParseError::TooBigLength,
};

impl CommandParser {
    /// Creates a parser that accepts arrays of up to this number of encoded bytes, usually [`MAX_COMMAND_BYTES`]. It is
    /// at most 4 GiB. Lines have their own bound.
    pub fn new(limit: usize) -> CommandParser {
        CommandParser {
            limit: limit.min(u32::MAX as usize),
            remaining: 0,
            at: 0,
            searched: 0,
            length: None,
            spans: Vec::new(),
            decoded: Vec::new(),
            #[cfg(test)]
            examined: 0,
        }
    }

    /// Parses one command. `bytes` begins where the previous command ended, and has all bytes of previous calls that were
    /// incomplete.
    ///
    /// The parser holds at most 32 bytes for each argument that has arrived, and the decoded arguments of a line. The
    /// next call that is incomplete, even one without bytes, releases what exceeds a common command.
    ///
    /// # Errors
    /// If the bytes are not a command. The caller sends the error and closes the connection. Until then, every call
    /// returns the error again.
    pub fn parse<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Parsed<'a>, ParseError> {
        if self.remaining == 0 {
            self.spans.clear();
            self.decoded.clear();
            match bytes.first() {
                None => return Ok(self.incomplete(1)),
                Some(&marker) if marker == COUNT.marker => {}
                Some(_) => return self.line(bytes),
            }
            match self.count(bytes)? {
                None => return Ok(self.incomplete(1)),
                Some(0) => return Ok(Parsed::Nothing { consumed: self.finish() }),
                Some(count) => self.remaining = count,
            }
        }
        loop {
            if self.length.is_none() && self.searched == 0 {
                self.plain_arguments(bytes);
            }
            if self.remaining == 0 {
                break;
            }
            if let Some(missing) = self.argument(bytes)? {
                return Ok(self.incomplete(missing));
            }
        }
        let consumed = self.finish();
        Ok(Parsed::Command { args: Args { spans: &self.spans, source: bytes }, consumed })
    }

    /// Parses the number of arguments. Returns None if its line is incomplete.
    #[inline]
    fn count(&mut self, bytes: &[u8]) -> Result<Option<usize>, ParseError> {
        if self.searched == 0 {
            let digits = &bytes[1..];
            self.examine(digits.len().min(PLAIN_DIGITS + 1));
            if let Some((count, length)) = plain_number(digits)
                && count <= MAX_ARGS
            {
                self.at = 1 + length;
                return Ok(Some(count));
            }
        }
        self.number(bytes, &COUNT)
    }

    /// Parses the next arguments as far as they are complete and their lengths plain. This is all of a usual command.
    #[inline]
    fn plain_arguments(&mut self, bytes: &[u8]) {
        let limit = bytes.len().min(self.limit);
        let mut at = self.at;
        while self.remaining > 0 {
            let Some([b'$', digits @ ..]) = bytes.get(at..) else { break };
            self.examine(digits.len().min(PLAIN_DIGITS + 1));
            let Some((length, size)) = plain_number(digits) else { break };
            if length > MAX_BULK_BYTES {
                break;
            }
            at += 1 + size;
            let end = at + length;
            let next = end + b"\r\n".len();
            if next > limit {
                self.length = Some(length);
                break;
            }
            self.spans.push(Span::new(at, end));
            at = next;
            self.remaining -= 1;
        }
        self.at = at;
    }

    /// Parses the next argument of an array. Returns the number of missing bytes if it is incomplete.
    fn argument(&mut self, bytes: &[u8]) -> Result<Option<usize>, ParseError> {
        let length = match self.length {
            Some(length) => length,
            None => match self.number(bytes, &LENGTH)? {
                Some(length) => length,
                None => return Ok(Some(1)),
            },
        };
        let end = self.at + length;
        let next = end + b"\r\n".len();
        if next > bytes.len().min(self.limit) {
            self.length = Some(length);
            if next > self.limit {
                return Err(ParseError::TooBigCommand(self.limit));
            }
            return Ok(Some(next - bytes.len()));
        }
        self.spans.push(Span::new(self.at, end));
        self.length = None;
        self.at = next;
        self.remaining -= 1;
        Ok(None)
    }

    /// Parses the number in the line at `at`, in any form, and moves behind the line. Returns None if the line is
    /// incomplete. A negative number, if it is valid, counts as 0.
    #[cold]
    fn number(&mut self, bytes: &[u8], line: &NumberLine) -> Result<Option<usize>, ParseError> {
        let rest = bytes.get(self.at..).unwrap_or_default();
        let Some(end) = self.line_end(rest, b'\r', line.too_big)? else { return Ok(None) };
        if rest.len() < end + b"\r\n".len() {
            return Ok(None);
        }
        if rest[0] != line.marker {
            return Err(ParseError::Unexpected(rest[0]));
        }
        let number = crate::command::integer(&rest[1..end]).filter(|number| *number >= line.least);
        let number = number.ok_or(line.invalid)?;
        let number = usize::try_from(number).unwrap_or(0);
        if number > line.most {
            return Err(line.invalid);
        }
        self.at += end + b"\r\n".len();
        self.searched = 0;
        Ok(Some(number))
    }

    /// Parses a command that is a line of words.
    fn line<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Parsed<'a>, ParseError> {
        let Some(end) = self.line_end(bytes, b'\n', ParseError::TooBigLine)? else {
            return Ok(self.incomplete(1));
        };
        let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
        self.examine(line.len());
        inline::split(line, &mut self.decoded, &mut self.spans)?;
        self.finish();
        let consumed = end + 1;
        if self.spans.is_empty() {
            return Ok(Parsed::Nothing { consumed });
        }
        Ok(Parsed::Command { args: Args { spans: &self.spans, source: &self.decoded }, consumed })
    }

    /// Returns the position of the byte that ends a line. The next call, with more bytes, does not search what was
    /// searched.
    fn line_end(
        &mut self,
        rest: &[u8],
        ending: u8,
        too_big: ParseError,
    ) -> Result<Option<usize>, ParseError> {
        let window = &rest[..rest.len().min(MAX_LINE_BYTES + 1)];
        let fresh = window.get(self.searched..).unwrap_or_default();
        let found = fresh.iter().position(|byte| *byte == ending);
        self.examine(found.map_or(fresh.len(), |found| found + 1));
        self.searched = found.map_or(window.len(), |found| self.searched + found);
        match found {
            Some(_) => Ok(Some(self.searched)),
            None if window.len() > MAX_LINE_BYTES => Err(too_big),
            None => Ok(None),
        }
    }

    /// Prepares for the next command, and returns the number of bytes of this one. The arguments stay until then.
    fn finish(&mut self) -> usize {
        self.searched = 0;
        std::mem::take(&mut self.at)
    }

    /// Returns that bytes are missing. Releases the memory that a previous, longer command needed.
    fn incomplete<'a>(&mut self, missing: usize) -> Parsed<'a> {
        let needed = self.spans.len().max(KEPT_ARGS);
        if self.spans.capacity() > 4 * needed {
            self.spans.shrink_to(needed);
        }
        if self.decoded.capacity() > KEPT_BYTES {
            self.decoded = Vec::new();
        }
        Parsed::Incomplete { missing }
    }

    /// Counts examined bytes, in unit tests only.
    #[inline]
    fn examine(&mut self, _bytes: usize) {
        #[cfg(test)]
        {
            self.examined += _bytes;
        }
    }
}

/// Returns the number with which a text begins, and the length of the number and its line end. Returns None if the line
/// is incomplete, or if the number is longer than [`PLAIN_DIGITS`], negative or malformed.
#[inline(always)]
pub(super) fn plain_number(text: &[u8]) -> Option<(usize, usize)> {
    match text {
        [one @ b'0'..=b'9', b'\r', _, ..] => Some((digit(*one), 3)),
        [ten @ b'1'..=b'9', one @ b'0'..=b'9', b'\r', _, ..] => {
            Some((10 * digit(*ten) + digit(*one), 4))
        }
        [b'1'..=b'9', ..] => long_number(text),
        _ => None,
    }
}

/// Does what [`plain_number`] does, for a number without leading zeros.
fn long_number(text: &[u8]) -> Option<(usize, usize)> {
    let mut number = 0;
    for (at, byte) in text.iter().take(PLAIN_DIGITS + 1).enumerate() {
        match byte {
            b'0'..=b'9' => number = 10 * number + digit(*byte),
            b'\r' if at + 1 < text.len() => return Some((number, at + b"\r\n".len())),
            _ => return None,
        }
    }
    None
}

fn digit(byte: u8) -> usize {
    usize::from(byte - b'0')
}
