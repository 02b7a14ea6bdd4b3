//! The protocols that the generator speaks over plain sockets, as encoders and decoders without I/O.

pub(crate) mod echo;
pub(crate) mod kv;
pub(crate) mod memcached;
pub(crate) mod resp;

use crate::driver::{Outcome, Request};

/// One connection's protocol.
pub(crate) trait Wire {
    /// Whether one more request may be written now.
    fn has_room(&self) -> bool {
        true
    }

    /// Appends a request.
    fn request(&mut self, request: &Request<'_>, output: &mut Vec<u8>);

    /// What was written since the last call is about to be sent.
    fn end_batch(&mut self, output: &mut Vec<u8>) {
        let _ = output;
    }

    /// Takes the next reply from the front of what was received; `None`: more bytes are needed.
    ///
    /// # Errors
    /// What makes the connection of no further use, in words.
    fn reply<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, String>;
}

/// What stood at the front of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply<'a> {
    /// How many bytes of the input it took; zero when one reply ends several requests.
    pub(crate) consumed: usize,
    /// The request that ended with it, if one did.
    pub(crate) ended: Option<(u32, Outcome<'a>)>,
}

/// The first line of the input, which ends with CR LF, and its bytes with those; `None`: its end has not
/// come.
fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
    /// Longer than any line that a server answers with.
    const LONGEST_LINE: usize = 64 << 10;
    match input.iter().position(|byte| *byte == b'\n') {
        Some(end) if end > 0 && input[end - 1] == b'\r' => Ok(Some((&input[..end - 1], end + 1))),
        Some(_) => Err("a line that does not end with CR LF".to_owned()),
        None if input.len() > LONGEST_LINE => Err("a line without an end".to_owned()),
        None => Ok(None),
    }
}

/// A length that a server announces.
fn length(digits: &[u8]) -> Result<usize, String> {
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let length = text.parse().ok().filter(|length| *length <= kv_protocol::limits::MAX_VALUE_BYTES);
    length.ok_or_else(|| format!("a value of \"{}\" bytes", digits.escape_ascii()))
}
