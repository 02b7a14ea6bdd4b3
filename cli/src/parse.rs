//! One line of input as an operation.
//!
//! ```text
//!   P "<key>" "<value>" [count]    G "<key>"    D "<key>"    0 "<key>"
//!   V "<key>" "<expected>"         V "<key>" absent
//! ```
//!
//! Strings have the notation of [`kv_protocol::escape`], so the client can parse its own output.

use kv_protocol::escape::{self, UnescapeError};
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// The keyword with which `V` checks that a key does not exist. It is unquoted, so it cannot be a value.
const ABSENT: &[u8] = b"absent";
/// The older spelling of [`ABSENT`], exactly these bytes: an escaped blank is a value
/// (docs/decisions/2026-11-29-absent-is-a-word.md).
const ABSENT_BEFORE: &[u8] = b"\" \"";
/// The largest repeat count of a put.
pub(crate) const MAX_COUNT: u32 = 1_000_000;
/// The length of the longest valid line: key and value with every byte as `\xHH`, plus 64 bytes for the rest.
pub(crate) const MAX_LINE_BYTES: usize = 4 * (MAX_KEY_BYTES + MAX_VALUE_BYTES) + 64;

/// An operation of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Sets a key, `count` times in sequence.
    Put { key: Vec<u8>, value: Vec<u8>, count: u32 },
    /// Reads a key.
    Get { key: Vec<u8> },
    /// Removes a key.
    Delete { key: Vec<u8> },
    /// Compares both replicas with a value; `None`: the key must not exist.
    Verify { key: Vec<u8>, expected: Option<Vec<u8>> },
    /// Checks that the key's server responds.
    Noop { key: Vec<u8> },
    /// Lists the operations.
    Help,
}

impl Command {
    /// Returns the key of the operation; `None` for `help`.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Command::Put { key, .. }
            | Command::Get { key }
            | Command::Delete { key }
            | Command::Verify { key, .. }
            | Command::Noop { key } => Some(key),
            Command::Help => None,
        }
    }

    /// Returns the number of bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Command::Put { key, value, .. } => key.len() + value.len(),
            Command::Verify { key, expected } => key.len() + expected.as_ref().map_or(0, Vec::len),
            _ => self.key().map_or(0, <[u8]>::len),
        }
    }
}

/// A syntax error in a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("unknown operation \"{letter}\" (expected P, G, D, V, 0 or help)")]
    UnknownOperation { letter: String },
    #[error("{what} is missing; write {form}")]
    Missing { what: &'static str, form: &'static str },
    #[error("{what} at column {column} must be in double quotes; write {form}")]
    NotQuoted { what: &'static str, column: usize, form: &'static str },
    #[error(
        "the quote opened at column {column} is not closed; write \\\" for a quote inside the string"
    )]
    Unclosed { column: usize },
    #[error("{what}, column {column}: {source}")]
    Escape { what: &'static str, column: usize, source: UnescapeError },
    #[error("the key is empty; it needs 1 to 65,535 bytes")]
    EmptyKey,
    #[error("the length of {what} is {bytes} bytes; at most {most} are allowed")]
    TooLong { what: &'static str, bytes: usize, most: usize },
    #[error("invalid count \"{text}\" (expected a number from 1 to {MAX_COUNT})")]
    BadCount { text: String },
    #[error("unexpected \"{text}\" at column {column}; write {form}")]
    Trailing { text: String, column: usize, form: &'static str },
    #[error("the line is longer than {MAX_LINE_BYTES} bytes, the maximum for a key and a value")]
    LineTooLong,
}

const PUT: &str = "P \"<key>\" \"<value>\" [count]";
const GET: &str = "G \"<key>\"";
const DELETE: &str = "D \"<key>\"";
const VERIFY: &str = "V \"<key>\" \"<expected>\" or V \"<key>\" absent";
const NOOP: &str = "0 \"<key>\"";
const HELP: &str = "help";

/// The text of `help`.
pub(crate) const HELP_TEXT: &str = r#"P "<key>" "<value>" [count]   put the value under the key (count times)
G "<key>"                     get the key's value
D "<key>"                     delete the key
V "<key>" "<expected>"        check that both copies of the key hold this value
V "<key>" absent              check that the key exists in neither copy
                              (so does " "; a value of one blank is "\x20")
0 "<key>"                     check that the key's server responds
help                          show this
Escapes inside quotes: \" \\ \n \r \t \0, and \xHH for any byte in hexadecimal.
Empty lines and lines starting with # are ignored.
Ctrl+D ends the client; at the prompt quit does too."#;

/// Parses one line without its line end. Returns `None` for an empty line or a comment.
pub(crate) fn parse(line: &[u8]) -> Result<Option<Command>, ParseError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(ParseError::LineTooLong);
    }
    let mut words = Words { line, at: 0 };
    words.skip_blanks();
    let letter = words.bare();
    let command = match letter {
        b"" if words.rest().is_empty() => return Ok(None),
        [b'#', ..] => return Ok(None),
        b"P" => {
            let (key, value) = (words.key(PUT)?, words.value("the value", PUT)?);
            let command = Command::Put { key, value, count: words.count()? };
            words.end(PUT)?;
            command
        }
        b"G" => words.only_key(GET).map(|key| Command::Get { key })?,
        b"D" => words.only_key(DELETE).map(|key| Command::Delete { key })?,
        b"0" => words.only_key(NOOP).map(|key| Command::Noop { key })?,
        b"V" => {
            let (key, expected) = (words.key(VERIFY)?, words.expected()?);
            words.end(VERIFY)?;
            Command::Verify { key, expected }
        }
        b"help" => {
            words.end(HELP)?;
            Command::Help
        }
        _ => {
            let letter = if letter.is_empty() { words.rest() } else { letter };
            return Err(ParseError::UnknownOperation { letter: shown(letter) });
        }
    };
    Ok(Some(command))
}

/// A cursor over a line.
struct Words<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Words<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.line[self.at..]
    }

    /// Returns the column of the cursor, from 1, in bytes.
    fn column(&self) -> usize {
        self.at + 1
    }

    fn skip_blanks(&mut self) {
        let blanks = self.rest().iter().take_while(|byte| b" \t\r".contains(byte)).count();
        self.at += blanks;
    }

    /// Takes an unquoted word, which ends at a blank or a quote.
    fn bare(&mut self) -> &'a [u8] {
        let rest = self.rest();
        let length = rest.iter().take_while(|byte| !b" \t\r\"".contains(byte)).count();
        self.at += length;
        &rest[..length]
    }

    fn quoted(&mut self, what: &'static str, form: &'static str) -> Result<Vec<u8>, ParseError> {
        self.skip_blanks();
        let column = self.column();
        let Some((&first, text)) = self.rest().split_first() else {
            return Err(ParseError::Missing { what, form });
        };
        if first != b'"' {
            return Err(ParseError::NotQuoted { what, column, form });
        }
        let mut length = 0;
        loop {
            match text.get(length) {
                None => return Err(ParseError::Unclosed { column }),
                Some(b'"') => break,
                Some(b'\\') => length += 2,
                Some(_) => length += 1,
            }
        }
        self.at += length + 2;
        escape::unescape(&text[..length]).map_err(|source| ParseError::Escape {
            what,
            column: column + 1 + source.at,
            source,
        })
    }

    fn key(&mut self, form: &'static str) -> Result<Vec<u8>, ParseError> {
        let key = self.quoted("the key", form)?;
        if key.is_empty() {
            return Err(ParseError::EmptyKey);
        }
        check_length("the key", &key, MAX_KEY_BYTES)?;
        Ok(key)
    }

    fn value(&mut self, what: &'static str, form: &'static str) -> Result<Vec<u8>, ParseError> {
        let value = self.quoted(what, form)?;
        check_length(what, &value, MAX_VALUE_BYTES)?;
        Ok(value)
    }

    /// Takes the expected value of `V`. Returns `None` if the key must not exist.
    fn expected(&mut self) -> Result<Option<Vec<u8>>, ParseError> {
        self.skip_blanks();
        let start = self.at;
        if self.bare() == ABSENT {
            return Ok(None);
        }
        self.at = start;
        let value = self.value("the expected value", VERIFY)?;
        let written = &self.line[start..self.at];
        Ok((written != ABSENT_BEFORE).then_some(value))
    }

    fn only_key(&mut self, form: &'static str) -> Result<Vec<u8>, ParseError> {
        let key = self.key(form)?;
        self.end(form)?;
        Ok(key)
    }

    fn count(&mut self) -> Result<u32, ParseError> {
        self.skip_blanks();
        let text = self.bare();
        if text.is_empty() {
            return Ok(1);
        }
        std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|count| (1..=MAX_COUNT).contains(count))
            .ok_or_else(|| ParseError::BadCount { text: shown(text) })
    }

    fn end(&mut self, form: &'static str) -> Result<(), ParseError> {
        self.skip_blanks();
        if self.rest().is_empty() {
            return Ok(());
        }
        Err(ParseError::Trailing { text: shown(self.rest()), column: self.column(), form })
    }
}

fn check_length(what: &'static str, bytes: &[u8], most: usize) -> Result<(), ParseError> {
    if bytes.len() > most {
        return Err(ParseError::TooLong { what, bytes: bytes.len(), most });
    }
    Ok(())
}

/// Returns the beginning of a text, escaped for a message.
fn shown(text: &[u8]) -> String {
    escape::readable(&text[..text.len().min(40)]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(line: &str) -> Command {
        parse(line.as_bytes()).unwrap().unwrap()
    }

    fn message(line: &str) -> String {
        parse(line.as_bytes()).expect_err(line).to_string()
    }

    #[test]
    fn every_operation_is_parsed() {
        let (key, value) = (b"a b".to_vec(), b"1".to_vec());
        let put = Command::Put { key: key.clone(), value: value.clone(), count: 1 };
        assert_eq!(parsed(r#"P "a b" "1""#), put);
        assert_eq!(parsed("  P\t\"a b\"\"1\" \r"), put);
        let put = Command::Put { key: key.clone(), value: value.clone(), count: 12 };
        assert_eq!(parsed(r#"P "a b" "1" 12"#), put);
        assert_eq!(parsed(r#"G "a b""#), Command::Get { key: key.clone() });
        assert_eq!(parsed(r#"G"a b""#), Command::Get { key: key.clone() });
        assert_eq!(parsed(r#"D "a b""#), Command::Delete { key: key.clone() });
        assert_eq!(parsed(r#"0 "a b""#), Command::Noop { key: key.clone() });
        let expected = Some(value);
        assert_eq!(parsed(r#"V "a b" "1""#), Command::Verify { key: key.clone(), expected });
        assert_eq!(parsed(r#"V "a b" absent"#), Command::Verify { key, expected: None });
        assert_eq!(parsed("help"), Command::Help);
    }

    #[test]
    fn absent_is_a_keyword_and_only_an_unescaped_single_blank_means_the_same() {
        let verify = |expected: Option<&[u8]>| Command::Verify {
            key: b"k".to_vec(),
            expected: expected.map(Vec::from),
        };
        assert_eq!(parsed(r#"V "k" absent"#), verify(None));
        assert_eq!(parsed(r#"V "k"absent "#), verify(None));
        assert_eq!(parsed(r#"V "k" " ""#), verify(None));
        assert_eq!(parsed(r#"V "k"  " "  "#), verify(None));
        assert_eq!(parsed(r#"V "k" "\x20""#), verify(Some(b" ")));
        assert_eq!(parsed(r#"V "k" "absent""#), verify(Some(b"absent")));
        assert_eq!(parsed(r#"V "k" "  ""#), verify(Some(b"  ")));
    }

    #[test]
    fn a_value_of_one_space_can_still_be_put_and_an_empty_one_checked() {
        let expected = Some(Vec::new());
        assert_eq!(parsed(r#"V "k" """#), Command::Verify { key: b"k".to_vec(), expected });
        let put = Command::Put { key: b"k".to_vec(), value: b" ".to_vec(), count: 1 };
        assert_eq!(parsed(r#"P "k" " ""#), put);
    }

    #[test]
    fn escapes_write_any_byte() {
        let key = b"\"\\\n\0\x20\xff".to_vec();
        assert_eq!(parsed(r#"G "\"\\\n\0\x20\xff""#), Command::Get { key });
    }

    #[test]
    fn help_fits_a_terminal_of_80_columns() {
        for line in HELP_TEXT.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn empty_lines_and_comments_are_no_operations() {
        for line in ["", "   ", "\t\r", "# P \"a\"", "  #"] {
            assert_eq!(parse(line.as_bytes()), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn every_invalid_line_is_rejected_with_the_correct_form() {
        for (line, words) in [
            ("X", "unknown operation \"X\" (expected P, G, D, V, 0 or help)"),
            ("p \"a\" \"b\"", "unknown operation \"p\""),
            ("PUT \"a\"", "unknown operation \"PUT\""),
            ("quit", "unknown operation \"quit\""),
            ("\"a\"", "unknown operation"),
            ("\x1b[2J", "unknown operation \"\\x1b[2J\""),
            ("P", "the key is missing; write P \"<key>\" \"<value>\" [count]"),
            ("P \"a\"", "the value is missing; write P \"<key>\" \"<value>\" [count]"),
            ("P a b", "the key at column 3 must be in double quotes"),
            ("P \"a\" b", "the value at column 7 must be in double quotes"),
            ("G \"a", "the quote opened at column 3 is not closed"),
            ("G \"a\\\"", "the quote opened at column 3 is not closed"),
            ("G \"a\\", "the quote opened at column 3 is not closed"),
            ("G \"\"", "the key is empty"),
            ("G \"a\\q\"", "the key, column 5: `\\` at byte 1"),
            ("G \"\\x2\"", "the key, column 4: `\\` at byte 0"),
            ("P \"a\" \"b\" 0", "invalid count \"0\""),
            ("P \"a\" \"b\" x", "invalid count \"x\""),
            ("P \"a\" \"b\" -1", "invalid count \"-1\""),
            ("P \"a\" \"b\" 99999999999", "invalid count"),
            ("P \"a\" \"b\" 2 3", "unexpected \"3\" at column 13"),
            ("G \"a\" \"b\"", "write G \"<key>\""),
            ("V \"a\"", "the expected value is missing"),
            (
                "V \"a\" nothing",
                "at column 7 must be in double quotes; write V \"<key>\" \"<expected>\" or V \"<key>\" absent",
            ),
            ("V \"a\" absent 1", "unexpected \"1\" at column 14"),
            ("help me", "unexpected \"me\" at column 6; write help"),
        ] {
            let message = message(line);
            assert!(message.contains(words), "{line:?} gave {message:?}");
        }
        assert!(message(&format!("G \"{}\"", "k".repeat(65_536))).contains("65536 bytes"));
        assert_eq!(parse(&vec![b' '; MAX_LINE_BYTES + 1]), Err(ParseError::LineTooLong));
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_or_rejected_without_a_panic(
            line in prop::collection::vec(
                prop_oneof![Just(b'"'), Just(b'\\'), Just(b' '), Just(b'P'), Just(b'x'), any::<u8>()],
                0..64,
            ),
        ) {
            let _ = parse(&line);
        }

        #[test]
        fn printed_keys_and_values_can_be_parsed_again(
            key in prop::collection::vec(any::<u8>(), 1..32),
            value in prop::collection::vec(any::<u8>(), 0..32),
        ) {
            let line = format!("P \"{}\" \"{}\"", escape::readable(&key), escape::ascii(&value));
            let put = Command::Put { key, value, count: 1 };
            prop_assert_eq!(parse(line.as_bytes()), Ok(Some(put)));
        }
    }
}
