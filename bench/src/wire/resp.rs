//! The protocol RESP of Redis and Valkey: SET and GET, and WAIT after the writes of a batch.
//!
//! ```text
//!   SET k v, SET k v, GET k, WAIT 1 0  ->
//!                          <-  +OK +OK $64 … :1        the writes end with the last reply
//! ```

use std::collections::VecDeque;
use std::io::Write as _;

use super::{Reply, Wire, length, line};
use crate::driver::{Outcome, Request};

#[derive(Clone, Copy, Debug)]
enum Expected {
    Get(u32),
    Set(u32),
    /// The reply to a WAIT after this number of writes is expected.
    Wait(usize),
}

/// One connection to Redis or Valkey. See the module.
#[derive(Debug)]
pub(crate) struct Resp {
    /// The number of replicas that must have every write before it ends.
    replicas: u32,
    expected: VecDeque<Expected>,
    /// The number of writes since the last WAIT.
    unwaited: usize,
    /// Writes that the primary has executed and that wait for the reply to their WAIT.
    held: VecDeque<u32>,
    /// The number of held writes that the last WAIT has ended and that are not reported yet.
    released: usize,
}

impl Resp {
    /// Creates a connection whose writes wait for this many replicas.
    pub(crate) fn new(replicas: u32) -> Resp {
        Resp {
            replicas,
            expected: VecDeque::new(),
            unwaited: 0,
            held: VecDeque::new(),
            released: 0,
        }
    }
}

impl Wire for Resp {
    fn request(&mut self, request: &Request<'_>, output: &mut Vec<u8>) {
        let Request { slot, key, value } = *request;
        // Writing to a vector does not fail.
        let _ = match value {
            None => write!(output, "*2\r\n$3\r\nGET\r\n${}\r\n", key.len()),
            Some(_) => write!(output, "*3\r\n$3\r\nSET\r\n${}\r\n", key.len()),
        };
        output.extend_from_slice(key);
        if let Some(value) = value {
            let _ = write!(output, "\r\n${}\r\n", value.len());
            output.extend_from_slice(value);
            self.unwaited += 1;
            self.expected.push_back(Expected::Set(slot));
        } else {
            self.expected.push_back(Expected::Get(slot));
        }
        output.extend_from_slice(b"\r\n");
    }

    fn end_batch(&mut self, output: &mut Vec<u8>) {
        let writes = std::mem::take(&mut self.unwaited);
        if self.replicas > 0 && writes > 0 {
            let count = self.replicas.to_string();
            let _ =
                write!(output, "*3\r\n$4\r\nWAIT\r\n${}\r\n{count}\r\n$1\r\n0\r\n", count.len());
            self.expected.push_back(Expected::Wait(writes));
        }
    }

    fn reply<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, String> {
        if self.released > 0 {
            self.released -= 1;
            let slot = self.held.pop_front().ok_or("more writes ended than were sent")?;
            return Ok(Some(Reply { consumed: 0, ended: Some((slot, Outcome::Done(&[]))) }));
        }
        let Some((head, consumed)) = line(input)? else { return Ok(None) };
        let (kind, rest) = head.split_first().ok_or("an empty line")?;
        let unexpected = || format!("an unexpected reply: \"{}\"", head.escape_ascii());
        let expected = *self.expected.front().ok_or_else(unexpected)?;
        let (consumed, ended) = match (kind, expected) {
            (b'-', Expected::Wait(_)) => return Err(String::from_utf8_lossy(rest).into_owned()),
            (b'-', Expected::Get(slot) | Expected::Set(slot)) => {
                // A rejected write is not among the writes that its WAIT ends.
                if let Some(Expected::Wait(writes)) = matches!(expected, Expected::Set(_))
                    .then(|| self.expected.iter_mut().find(|e| matches!(e, Expected::Wait(_))))
                    .flatten()
                {
                    *writes -= 1;
                }
                let why = std::str::from_utf8(rest).unwrap_or("(unreadable)");
                (consumed, Some((slot, Outcome::Failed(why))))
            }
            (b'+', Expected::Set(slot)) if self.replicas > 0 => {
                self.held.push_back(slot);
                (consumed, None)
            }
            (b'+', Expected::Set(slot)) => (consumed, Some((slot, Outcome::Done(&[])))),
            (b':', Expected::Wait(writes)) => {
                let got = std::str::from_utf8(rest).ok().and_then(|n| n.parse().ok());
                if got.is_none_or(|replicas: u32| replicas < self.replicas) {
                    return Err(unexpected());
                }
                self.released = writes;
                (consumed, None)
            }
            (b'$', Expected::Get(slot)) if rest == b"-1" => {
                (consumed, Some((slot, Outcome::Missing)))
            }
            (b'$', Expected::Get(slot)) => {
                let end = consumed + length(rest)?;
                match input.get(end..end + 2) {
                    None => return Ok(None),
                    Some(b"\r\n") => {}
                    Some(_) => {
                        return Err("a value that does not have the announced length".to_owned());
                    }
                }
                (end + 2, Some((slot, Outcome::Done(&input[consumed..end]))))
            }
            _ => return Err(unexpected()),
        };
        self.expected.pop_front();
        Ok(Some(Reply { consumed, ended }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(slot: u32) -> Request<'static> {
        Request { slot, key: b"k", value: None }
    }

    fn set(slot: u32) -> Request<'static> {
        Request { slot, key: b"k", value: Some(b"vv") }
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let (mut resp, mut output) = (Resp::new(1), Vec::new());
        resp.request(&get(0), &mut output);
        resp.end_batch(&mut output);
        resp.request(&set(1), &mut output);
        resp.end_batch(&mut output);
        let expected = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nvv\r\n\
                        *3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n";
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    /// Parses every reply, and returns the slots that ended.
    fn drain(resp: &mut Resp, mut input: &[u8]) -> Result<Vec<(u32, String)>, String> {
        let mut ended = Vec::new();
        while let Some(reply) = resp.reply(input)? {
            if let Some((slot, outcome)) = reply.ended {
                ended.push((slot, format!("{outcome:?}")));
            }
            input = &input[reply.consumed..];
        }
        Ok(ended)
    }

    #[test]
    fn a_write_ends_with_the_reply_to_its_wait() {
        let (mut resp, mut output) = (Resp::new(1), Vec::new());
        for request in [set(0), get(1), set(2)] {
            resp.request(&request, &mut output);
        }
        resp.end_batch(&mut output);
        let slots = |ended: Vec<(u32, String)>| ended.iter().map(|(s, _)| *s).collect::<Vec<_>>();
        assert_eq!(drain(&mut resp, b"+OK\r\n").map(slots), Ok(vec![]));
        assert_eq!(drain(&mut resp, b"$-1\r\n+OK\r\n").map(slots), Ok(vec![1]));
        assert_eq!(drain(&mut resp, b":1\r\n").map(slots), Ok(vec![0, 2]));
    }

    #[test]
    fn a_rejected_write_ends_at_once_and_the_others_with_their_wait() {
        let (mut resp, mut output) = (Resp::new(1), Vec::new());
        resp.request(&set(0), &mut output);
        resp.request(&set(1), &mut output);
        resp.end_batch(&mut output);
        let ended = drain(&mut resp, b"-OOM no room\r\n+OK\r\n:1\r\n").unwrap();
        assert_eq!(ended[0], (0, "Failed(\"OOM no room\")".to_owned()));
        assert_eq!((ended.len(), ended[1].0), (2, 1));
    }

    #[test]
    fn a_value_may_arrive_in_pieces() {
        let (mut resp, mut output) = (Resp::new(0), Vec::new());
        resp.request(&get(3), &mut output);
        let whole = b"$4\r\na\r\nb\r\n";
        for cut in 0..whole.len() {
            assert_eq!(resp.reply(&whole[..cut]), Ok(None), "{cut}");
        }
        let reply = resp.reply(whole).unwrap().unwrap();
        assert_eq!(reply, Reply { consumed: 10, ended: Some((3, Outcome::Done(b"a\r\nb"))) });
    }

    #[test]
    fn hostile_replies_are_rejected() {
        for bad in [
            &b"$99999999999999999999\r\n"[..],
            b"$-2\r\n",
            b"$1\r\nabc",
            b"+OK\r\n",
            b":1\r\n",
            b"\r\n",
            b"$1\n",
            b"?\r\n",
        ] {
            let (mut resp, mut output) = (Resp::new(0), Vec::new());
            resp.request(&get(0), &mut output);
            assert!(resp.reply(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Resp::new(0).reply(b"+OK\r\n").is_err(), "no request is open");
        let mut short = Resp::new(2);
        short.request(&set(0), &mut Vec::new());
        short.end_batch(&mut Vec::new());
        assert!(drain(&mut short, b"+OK\r\n:1\r\n").is_err(), "one replica is not two");
    }
}
