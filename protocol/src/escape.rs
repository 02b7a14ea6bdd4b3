//! Conversion of arbitrary bytes to printable text and back: one notation for dumps, logs, terminals and the operations
//! of the command line.
//!
//! Printable ASCII stays as it is, except `\` and `"`, which are written `\\` and `\"`; every other byte is `\xHH`. The
//! parser also accepts `\n`, `\r`, `\t` and `\0`. With [`Style::Readable`], printable characters of valid UTF-8 stay
//! too; dumps are pure ASCII.

use std::fmt::{self, Write as _};

/// The set of bytes that are escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Everything except printable ASCII; for files.
    Ascii,
    /// Everything except printable characters in valid UTF-8; for terminals.
    Readable,
}

/// A wrapper that displays bytes escaped, without quotes around them.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a> {
    bytes: &'a [u8],
    style: Style,
}

/// Escapes everything except printable ASCII.
pub fn ascii(bytes: &[u8]) -> Escaped<'_> {
    Escaped { bytes, style: Style::Ascii }
}

/// Escapes everything that is unsafe for a terminal.
pub fn readable(bytes: &[u8]) -> Escaped<'_> {
    Escaped { bytes, style: Style::Readable }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.style {
            Style::Ascii => write_ascii(f, self.bytes),
            Style::Readable => {
                for chunk in self.bytes.utf8_chunks() {
                    for character in chunk.valid().chars() {
                        write_character(f, character)?;
                    }
                    write_ascii(f, chunk.invalid())?;
                }
                Ok(())
            }
        }
    }
}

fn write_character(f: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    let printable = !character.is_ascii() && !is_unprintable(character);
    if printable {
        return f.write_char(character);
    }
    write_ascii(f, character.encode_utf8(&mut [0; 4]).as_bytes())
}

/// Returns whether a character may change the display or is invisible: control characters, bidirectional controls,
/// zero-width characters, whitespace except a space, tags, and characters for private use.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || (character.is_whitespace() && character != ' ')
        || matches!(character,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}' | '\u{e000}'..='\u{f8ff}')
}

fn write_ascii(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for &byte in bytes {
        match byte {
            b'\\' => f.write_str("\\\\")?,
            b'"' => f.write_str("\\\"")?,
            b' '..=b'~' => f.write_char(char::from(byte))?,
            _ => write!(f, "\\x{byte:02x}")?,
        }
    }
    Ok(())
}

/// An error in escaped text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`\\` at byte {at} starts no known escape; write \\\\ \\\" \\n \\r \\t \\0 or \\xHH with two hex digits"
)]
pub struct UnescapeError {
    /// The byte offset of the invalid escape.
    pub at: usize,
}

/// Parses escaped text into the bytes that it stands for. Bytes that are not part of an escape are
/// copied unchanged.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>, UnescapeError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        if byte != b'\\' {
            bytes.push(byte);
            at += 1;
            continue;
        }
        let (value, length) = match text.get(at + 1) {
            Some(b'\\') => (b'\\', 2),
            Some(b'"') => (b'"', 2),
            Some(b'n') => (b'\n', 2),
            Some(b'r') => (b'\r', 2),
            Some(b't') => (b'\t', 2),
            Some(b'0') => (0, 2),
            Some(b'x') => {
                let digit = |n: usize| text.get(at + n).and_then(|&d| char::from(d).to_digit(16));
                let (Some(high), Some(low)) = (digit(2), digit(3)) else {
                    return Err(UnescapeError { at });
                };
                (u8::try_from(high * 16 + low).expect("two hex digits fit a byte"), 4)
            }
            _ => return Err(UnescapeError { at }),
        };
        bytes.push(value);
        at += length;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn terminals_are_sent_no_control_characters() {
        let nasty = "a\x1b[31m\u{202e}é\u{7}\u{9b}".as_bytes();
        assert_eq!(readable(nasty).to_string(), "a\\x1b[31m\\xe2\\x80\\xaeé\\x07\\xc2\\x9b");
    }

    #[test]
    fn an_invalid_escape_is_reported_with_its_position() {
        for (text, at) in [("a\\q", 1), ("\\x2", 0), ("ab\\", 2), ("\\xg0", 0)] {
            assert_eq!(unescape(text.as_bytes()), Err(UnescapeError { at }), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let dumped = ascii(&bytes).to_string();
            prop_assert!(dumped.bytes().all(|b| (b' '..=b'~').contains(&b)));
            prop_assert_eq!(unescape(dumped.as_bytes()).unwrap(), bytes.clone());
            let shown = readable(&bytes).to_string();
            prop_assert_eq!(unescape(shown.as_bytes()).unwrap(), bytes);
        }
    }
}
