//! The protocols of the generator over plain sockets, as encoders and decoders without I/O.

pub(crate) mod echo;
pub(crate) mod kv;
pub(crate) mod memcached;
pub(crate) mod resp;

use crate::driver::{Outcome, Request};

/// One connection's protocol.
pub(crate) trait Wire {
    /// Returns whether another request may be written now.
    fn has_room(&self) -> bool {
        true
    }

    /// Appends a request to the output.
    fn request(&mut self, request: &Request<'_>, output: &mut Vec<u8>);

    /// Ends a batch: the output since the last call will now be sent. A protocol may append to it.
    fn end_batch(&mut self, output: &mut Vec<u8>) {
        let _ = output;
    }

    /// Takes the next reply from the front of the input. Returns `None` if more bytes are needed.
    ///
    /// # Errors
    /// The reason why the connection is unusable.
    fn reply<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, String>;
}

/// A reply at the front of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply<'a> {
    /// The number of bytes of the input that the reply uses. Zero if an earlier reply has ended this request too.
    pub(crate) consumed: usize,
    /// The slot and the result of the request that the reply ends, or `None`.
    pub(crate) ended: Option<(u32, Outcome<'a>)>,
}

/// Returns the first line of the input without its CR LF, and its length including CR LF. Returns `None` if more bytes
/// are needed.
fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
    /// The maximum length of an incomplete line. It exceeds the length of any line that a server sends.
    const LONGEST_LINE: usize = 64 << 10;
    match input.iter().position(|byte| *byte == b'\n') {
        Some(end) if end > 0 && input[end - 1] == b'\r' => Ok(Some((&input[..end - 1], end + 1))),
        Some(_) => Err("a line that does not end with CR LF".to_owned()),
        None if input.len() > LONGEST_LINE => Err("a line without an end".to_owned()),
        None => Ok(None),
    }
}

/// Parses a length announced by a server.
fn length(digits: &[u8]) -> Result<usize, String> {
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let length = text.parse().ok().filter(|length| *length <= kv_protocol::limits::MAX_VALUE_BYTES);
    length.ok_or_else(|| format!("a value of \"{}\" bytes", digits.escape_ascii()))
}
