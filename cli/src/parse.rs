//! One line of input as an operation.
//!
//! ```text
//!   P "<key>" "<value>" [count]    G "<key>"    D "<key>"    0 "<key>"
//!   V "<key>" "<expected>"         V "<key>" absent
//!   a word of the table in `help`, and its arguments
//! ```
//!
//! Strings have the notation of [`kv_protocol::escape`], so the client can parse its own output.

use kv_protocol::escape::UnescapeError;
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

use super::command::Command;
use super::cursor::{Cursor, shown};
use super::{help, words};

/// The largest repeat count of a put.
pub(crate) const MAX_COUNT: u32 = 1_000_000;
/// The length of the longest valid line: key and value with every byte as `\xHH`, plus 64 bytes for the rest.
pub(crate) const MAX_LINE_BYTES: usize = 4 * (MAX_KEY_BYTES + MAX_VALUE_BYTES) + 64;

/// A syntax error in a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("unknown operation \"{word}\" (help lists the operations)")]
    UnknownOperation { word: String },
    #[error("\"{word}\" is not a word; help lists the words")]
    UnknownWord { word: String },
    #[error("\"{word}\" cannot be an item of a batch; help batch lists the items")]
    NoItem { word: String },
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
    #[error("invalid {} \"{text}\" (expected {expected})", what.trim_start_matches("the "))]
    BadNumber { what: &'static str, text: String, expected: &'static str },
    #[error("unexpected \"{text}\" at column {column}; write {form}")]
    Trailing { text: String, column: usize, form: &'static str },
    #[error("the line is longer than {MAX_LINE_BYTES} bytes, the maximum for a key and a value")]
    LineTooLong,
}

const PUT: &str = "P \"<key>\" \"<value>\" [count]";
const GET: &str = "G \"<key>\"";
const DELETE: &str = "D \"<key>\"";
pub(super) const VERIFY: &str = "V \"<key>\" \"<expected>\" or V \"<key>\" absent";
const NOOP: &str = "0 \"<key>\"";

/// Parses one line without its line end. Returns `None` for an empty line or a comment.
pub(crate) fn parse(line: &[u8]) -> Result<Option<Command>, ParseError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(ParseError::LineTooLong);
    }
    let mut cursor = Cursor::new(line);
    let word = cursor.bare();
    let command = match word {
        b"" if cursor.rest().is_empty() => return Ok(None),
        [b'#', ..] => return Ok(None),
        b"P" => {
            let (key, value) = (cursor.key(PUT)?, cursor.value("the value", PUT)?);
            let command = Command::Put { key, value, count: cursor.count()? };
            cursor.end(PUT)?;
            command
        }
        b"G" => cursor.only_key(GET).map(|key| Command::Get { key })?,
        b"D" => cursor.only_key(DELETE).map(|key| Command::Delete { key })?,
        b"0" => cursor.only_key(NOOP).map(|key| Command::Noop { key })?,
        b"V" => {
            let (key, expected) = (cursor.key(VERIFY)?, cursor.expected()?);
            cursor.end(VERIFY)?;
            Command::Verify { key, expected }
        }
        _ => match help::word(word) {
            Some(found) => words::parse(found, &mut cursor)?,
            None => {
                let word = if word.is_empty() { cursor.rest() } else { word };
                return Err(ParseError::UnknownOperation { word: shown(word) });
            }
        },
    };
    Ok(Some(command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::escape;
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
        assert_eq!(parsed("help"), Command::Help(None));
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
    fn empty_lines_and_comments_are_no_operations() {
        for line in ["", "   ", "\t\r", "# P \"a\"", "  #"] {
            assert_eq!(parse(line.as_bytes()), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn every_invalid_line_is_rejected_with_the_correct_form() {
        for (line, words) in [
            ("X", "unknown operation \"X\" (help lists the operations)"),
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
            ("help me", "\"me\" is not a word"),
            ("P \"a\" \"b\"; G \"a\"", "unexpected \"; G \\\"a\\\"\" at column 10"),
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
                prop_oneof![Just(b'"'), Just(b'\\'), Just(b' '), Just(b';'), Just(b'x'), any::<u8>()],
                0..64,
            ),
            word in prop::sample::select(vec!["", "P ", "put k ", "batch put k ", "mput ", "expire "]),
        ) {
            let line = [word.as_bytes(), &line].concat();
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
