//! The protocol of `kv-echo`: a request contains its own length and the length of the reply. Requests and replies are
//! as long as this store's requests and responses.
//!
//! ```text
//!   0        4         8       16
//!   | length | reply   | tag   | filler …  ->
//!                              <-  | tag | filler …
//! ```

use std::collections::VecDeque;

use kv_protocol::client_message::{REQUEST_FIXED_BYTES, RESPONSE_FIXED_BYTES};
use kv_protocol::frame::HEADER_BYTES;
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_RESPONSE_BODY};

use super::{Reply, Wire};
use crate::driver::{Outcome, Request};

/// The number of bytes before the filler of a request.
pub(crate) const REQUEST_HEAD: usize = 16;
/// The number of bytes before the filler of a reply.
pub(crate) const REPLY_HEAD: usize = 8;
/// The maximum size of a request, and of a reply, in bytes.
pub(crate) const LONGEST: usize = HEADER_BYTES
    + if MAX_CLIENT_BODY > MAX_RESPONSE_BODY { MAX_CLIENT_BODY } else { MAX_RESPONSE_BODY };

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The size of the request in bytes.
    pub(crate) length: usize,
    /// The size of the reply in bytes.
    pub(crate) reply: usize,
    /// A tag that the reply repeats.
    pub(crate) tag: u64,
}

impl Head {
    /// Appends a request.
    pub(crate) fn write(self, output: &mut Vec<u8>) {
        let start = output.len();
        for length in [self.length, self.reply] {
            let length = u32::try_from(length).expect("frames are short");
            output.extend_from_slice(&length.to_le_bytes());
        }
        output.extend_from_slice(&self.tag.to_le_bytes());
        output.resize(start + self.length, 0);
    }

    /// Reads the head of the request at the front of the input. Returns `None` if more bytes are needed.
    ///
    /// # Errors
    /// A length is out of bounds.
    pub(crate) fn read(input: &[u8]) -> Result<Option<Head>, String> {
        let Some(head) = input.first_chunk::<REQUEST_HEAD>() else { return Ok(None) };
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (length, reply) = (word(0) as usize, word(4) as usize);
        if !(REQUEST_HEAD..=LONGEST).contains(&length) || !(REPLY_HEAD..=LONGEST).contains(&reply) {
            return Err(format!("lengths out of bounds: request {length}, reply {reply}"));
        }
        let tag = u64::from(word(8)) | u64::from(word(12)) << 32;
        Ok(Some(Head { length, reply, tag }))
    }

    /// Appends the reply.
    pub(crate) fn write_reply(self, output: &mut Vec<u8>) {
        let start = output.len();
        output.extend_from_slice(&self.tag.to_le_bytes());
        output.resize(start + self.reply, 0);
    }
}

/// The generator's end of a connection.
#[derive(Debug)]
pub(crate) struct Echo {
    /// The slots of the requests without a reply, with the lengths of the replies, in the order of the requests.
    expected: VecDeque<(u32, usize)>,
    value_bytes: usize,
}

impl Echo {
    /// Creates a connection on which replies to reads carry this many bytes of value.
    pub(crate) fn new(value_bytes: usize) -> Echo {
        Echo { expected: VecDeque::new(), value_bytes }
    }
}

impl Wire for Echo {
    fn request(&mut self, request: &Request<'_>, output: &mut Vec<u8>) {
        let written = request.value.map_or(0, <[u8]>::len);
        let read = if request.value.is_some() { 0 } else { self.value_bytes };
        let head = Head {
            length: HEADER_BYTES + REQUEST_FIXED_BYTES + request.key.len() + written,
            reply: HEADER_BYTES + RESPONSE_FIXED_BYTES + read,
            tag: request.slot.into(),
        };
        head.write(output);
        self.expected.push_back((request.slot, head.reply));
    }

    fn reply<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, String> {
        let Some(tag) = input.first_chunk::<REPLY_HEAD>() else { return Ok(None) };
        let &(slot, consumed) = self.expected.front().ok_or("a reply without a request")?;
        if u64::from_le_bytes(*tag) != u64::from(slot) {
            return Err(format!("a reply to slot {} instead of {slot}", u64::from_le_bytes(*tag)));
        }
        if input.len() < consumed {
            return Ok(None);
        }
        self.expected.pop_front();
        Ok(Some(Reply { consumed, ended: Some((slot, Outcome::Echoed)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_have_the_lengths_of_the_stores_frames() {
        let (mut echo, mut output) = (Echo::new(64), Vec::new());
        echo.request(&Request { slot: 5, key: &[b'k'; 16], value: None }, &mut output);
        let head = Head::read(&output).unwrap().unwrap();
        assert_eq!(head, Head { length: 8 + 68 + 16, reply: 8 + 28 + 64, tag: 5 });
        assert_eq!(output.len(), head.length);
        let mut reply = Vec::new();
        head.write_reply(&mut reply);
        assert_eq!(echo.reply(&reply[..20]), Ok(None));
        let ended = Some((5, Outcome::Echoed));
        assert_eq!(echo.reply(&reply), Ok(Some(Reply { consumed: reply.len(), ended })));
        assert!(echo.reply(&reply).is_err(), "no request is open");
    }

    #[test]
    fn lengths_out_of_bounds_are_rejected() {
        for (length, reply) in [(15u32, 8u32), (16, 7), (u32::MAX, 8), (16, u32::MAX)] {
            let head = [length.to_le_bytes(), reply.to_le_bytes()].concat();
            assert!(Head::read(&[&head[..], &[0; 8]].concat()).is_err());
        }
    }
}
