//! A cursor over a line, which takes its words one by one.

use kv_protocol::escape;
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

use super::parse::{MAX_COUNT, ParseError, VERIFY};

/// The keyword with which `V` checks that a key does not exist. It is unquoted, so it cannot be a value.
const ABSENT: &[u8] = b"absent";
/// The older spelling of [`ABSENT`], exactly these bytes: an escaped blank is a value
/// (docs/decisions/2026-11-29-absent-is-a-word.md).
const ABSENT_BEFORE: &[u8] = b"\" \"";

/// The word that lets a batch skip an item.
pub(super) const OPTIONAL: &[u8] = b"optional";

/// A cursor over a line.
pub(super) struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Creates a cursor at the first word of a line.
    pub(super) fn new(line: &'a [u8]) -> Cursor<'a> {
        let mut cursor = Cursor { line, at: 0 };
        cursor.skip_blanks();
        cursor
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        &self.line[self.at..]
    }

    /// Returns the column of the cursor, from 1, in bytes.
    fn column(&self) -> usize {
        self.at + 1
    }

    pub(super) fn skip_blanks(&mut self) {
        let blanks = self.rest().iter().take_while(|byte| b" \t\r".contains(byte)).count();
        self.at += blanks;
    }

    /// Takes an unquoted word, which ends at a blank, a quote or a semicolon.
    pub(super) fn bare(&mut self) -> &'a [u8] {
        let rest = self.rest();
        let length = rest.iter().take_while(|byte| !b" \t\r\";".contains(byte)).count();
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

    pub(super) fn key(&mut self, form: &'static str) -> Result<Vec<u8>, ParseError> {
        let key = self.quoted("the key", form)?;
        if key.is_empty() {
            return Err(ParseError::EmptyKey);
        }
        check_length("the key", &key, MAX_KEY_BYTES)?;
        Ok(key)
    }

    pub(super) fn value(
        &mut self,
        what: &'static str,
        form: &'static str,
    ) -> Result<Vec<u8>, ParseError> {
        let value = self.quoted(what, form)?;
        check_length(what, &value, MAX_VALUE_BYTES)?;
        Ok(value)
    }

    /// Takes the expected value of `V`. Returns `None` if the key must not exist.
    pub(super) fn expected(&mut self) -> Result<Option<Vec<u8>>, ParseError> {
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

    /// Takes the next word if it is this unquoted one.
    pub(super) fn takes(&mut self, word: &[u8]) -> bool {
        self.skip_blanks();
        let start = self.at;
        let is_it = self.bare() == word;
        if !is_it {
            self.at = start;
        }
        is_it
    }

    /// Takes a semicolon.
    pub(super) fn takes_semicolon(&mut self) -> bool {
        self.skip_blanks();
        let is_it = self.rest().first() == Some(&b';');
        self.at += usize::from(is_it);
        is_it
    }

    /// Returns whether the line has ended, apart from blanks.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest().is_empty()
    }

    /// Returns whether the arguments of an item of a batch have ended.
    pub(super) fn is_at_item_end(&mut self) -> bool {
        let is_end = self.is_at_end() || self.rest().first() == Some(&b';');
        let start = self.at;
        let is_optional = self.takes(OPTIONAL);
        self.at = start;
        is_end || is_optional
    }

    /// Takes an argument of a word: a quoted string, or characters without blanks, quotes, backslashes and semicolons.
    fn argument(&mut self, what: &'static str, form: &'static str) -> Result<Vec<u8>, ParseError> {
        self.skip_blanks();
        if self.rest().first() == Some(&b'"') {
            return self.quoted(what, form);
        }
        let column = self.column();
        let bare = self.bare();
        match bare {
            b"" => Err(ParseError::Missing { what, form }),
            _ if bare.contains(&b'\\') => Err(ParseError::NotQuoted { what, column, form }),
            _ => Ok(bare.to_vec()),
        }
    }

    /// Takes the key of a word.
    pub(super) fn key_argument(
        &mut self,
        what: &'static str,
        form: &'static str,
    ) -> Result<Vec<u8>, ParseError> {
        let key = self.argument(what, form)?;
        if key.is_empty() {
            return Err(ParseError::EmptyKey);
        }
        check_length(what, &key, MAX_KEY_BYTES)?;
        Ok(key)
    }

    /// Takes the pattern of a word, which may be empty.
    pub(super) fn pattern_argument(&mut self, form: &'static str) -> Result<Vec<u8>, ParseError> {
        let pattern = self.argument("the pattern", form)?;
        check_length("the pattern", &pattern, MAX_KEY_BYTES)?;
        Ok(pattern)
    }

    /// Takes the value of a word.
    pub(super) fn value_argument(
        &mut self,
        what: &'static str,
        form: &'static str,
    ) -> Result<Vec<u8>, ParseError> {
        let value = self.argument(what, form)?;
        check_length(what, &value, MAX_VALUE_BYTES)?;
        Ok(value)
    }

    /// Takes a number of a word, which `convert` parses. `expected` describes a valid one.
    pub(super) fn number<T>(
        &mut self,
        (what, expected): (&'static str, &'static str),
        form: &'static str,
        convert: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ParseError> {
        let text = self.argument(what, form)?;
        let number = std::str::from_utf8(&text).ok().and_then(convert);
        number.ok_or_else(|| ParseError::BadNumber { what, text: shown(&text), expected })
    }

    pub(super) fn only_key(&mut self, form: &'static str) -> Result<Vec<u8>, ParseError> {
        let key = self.key(form)?;
        self.end(form)?;
        Ok(key)
    }

    pub(super) fn count(&mut self) -> Result<u32, ParseError> {
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

    pub(super) fn end(&mut self, form: &'static str) -> Result<(), ParseError> {
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
pub(super) fn shown(text: &[u8]) -> String {
    escape::readable(&text[..text.len().min(40)]).to_string()
}
