//! Memcached's text protocol: set and get.

use std::collections::VecDeque;
use std::io::Write as _;

use super::{Reply, Wire, length, line};
use crate::driver::{Outcome, Request};

/// One connection to memcached. See the module.
#[derive(Debug, Default)]
pub(crate) struct Memcached {
    /// Slots in the order of their requests, each with true for a write.
    expected: VecDeque<(u32, bool)>,
}

impl Wire for Memcached {
    fn request(&mut self, request: &Request<'_>, output: &mut Vec<u8>) {
        let Request { slot, key, value } = *request;
        output.extend_from_slice(if value.is_some() { b"set " } else { b"get " });
        output.extend_from_slice(key);
        if let Some(value) = value {
            // Writing to a vector does not fail.
            let _ = write!(output, " 0 0 {}\r\n", value.len());
            output.extend_from_slice(value);
        }
        output.extend_from_slice(b"\r\n");
        self.expected.push_back((slot, value.is_some()));
    }

    fn reply<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, String> {
        let Some((head, consumed)) = line(input)? else { return Ok(None) };
        let unexpected = || format!("an unexpected reply: \"{}\"", head.escape_ascii());
        let (slot, is_write) = *self.expected.front().ok_or_else(unexpected)?;
        let (consumed, outcome) = if head == b"STORED" && is_write {
            (consumed, Outcome::Done(&[][..]))
        } else if head == b"END" && !is_write {
            (consumed, Outcome::Missing)
        } else if head.starts_with(b"VALUE ") && !is_write {
            let digits = head.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
            let end = consumed + length(digits)?;
            match input.get(end..end + b"\r\nEND\r\n".len()) {
                None => return Ok(None),
                Some(b"\r\nEND\r\n") => {}
                Some(_) => return Err("a value that does not have the announced length".to_owned()),
            }
            (end + b"\r\nEND\r\n".len(), Outcome::Done(&input[consumed..end]))
        } else if is_write || head.starts_with(b"SERVER_ERROR") {
            (consumed, Outcome::Failed(std::str::from_utf8(head).unwrap_or("(unreadable)")))
        } else {
            return Err(unexpected());
        };
        self.expected.pop_front();
        Ok(Some(Reply { consumed, ended: Some((slot, outcome)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_interpreted_by_the_kind_of_their_request() {
        let (mut wire, mut output) = (Memcached::default(), Vec::new());
        wire.request(&Request { slot: 0, key: b"k", value: Some(b"vv") }, &mut output);
        wire.request(&Request { slot: 1, key: b"k", value: None }, &mut output);
        wire.request(&Request { slot: 2, key: b"k", value: None }, &mut output);
        assert_eq!(output, b"set k 0 0 2\r\nvv\r\nget k\r\nget k\r\n");
        let mut input: &[u8] = b"STORED\r\nVALUE k 0 2\r\nvv\r\nEND\r\nEND\r\n";
        for outcome in [Outcome::Done(b""), Outcome::Done(b"vv"), Outcome::Missing] {
            let reply = wire.reply(input).unwrap().unwrap();
            assert_eq!(reply.ended.unwrap().1, outcome);
            input = &input[reply.consumed..];
        }
        assert!(wire.reply(b"END\r\n").is_err(), "no request is open");
    }

    #[test]
    fn hostile_replies_are_rejected() {
        for bad in [&b"STORED\r\n"[..], b"VALUE k 0 x\r\n", b"VALUE k 0 1\r\nabcdefgh", b"END\n"] {
            let mut wire = Memcached::default();
            wire.request(&Request { slot: 0, key: b"k", value: None }, &mut Vec::new());
            assert!(wire.reply(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
