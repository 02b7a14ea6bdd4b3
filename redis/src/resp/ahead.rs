//! The keys of the next commands of a pipeline, which are read ahead so that their digests are computed together.
//!
//! ```text
//!   received bytes   [ GET a | SET b 1 | PING | GET c | ... ]
//!                          a       b             c            digests computed at once, before GET a is performed
//! ```

use kv_protocol::placement::Digest;

use super::parser::plain_number;

/// The maximum number of arguments of a command that is read ahead. While a longer one arrives, it would be read again
/// from its beginning with each of its pieces.
const MAX_ARGS_AHEAD: usize = 16;

/// The digests of the keys of the next commands. They are only a saving: a key without one is digested by itself.
#[derive(Debug)]
pub struct KeysAhead<'a> {
    keys: [&'a [u8]; Digest::TOGETHER],
    digests: [Digest; Digest::TOGETHER],
    count: usize,
    /// The number of commands that were read.
    commands: usize,
}

impl<'a> KeysAhead<'a> {
    /// Creates an empty value, which is to be read again at once.
    pub fn empty() -> KeysAhead<'a> {
        let digests = [Digest([0; 16]); Digest::TOGETHER];
        KeysAhead { keys: [&[]; Digest::TOGETHER], digests, count: 0, commands: 0 }
    }

    /// Reads the first keys of the commands at the beginning of `bytes`. It stops at a command that is incomplete, has
    /// more than 16 arguments or is in an uncommon form. So it examines a bounded number of bytes.
    pub fn read(bytes: &'a [u8]) -> KeysAhead<'a> {
        let (mut ahead, mut rest) = (KeysAhead::empty(), bytes);
        while ahead.commands < Digest::TOGETHER
            && let Some((key, consumed)) = first_key(rest)
        {
            ahead.commands += 1;
            if (1..=Digest::MAX_TOGETHER_BYTES).contains(&key.len()) {
                ahead.keys[ahead.count] = key;
                ahead.count += 1;
            }
            rest = &rest[consumed..];
        }
        // One alone is not digested faster.
        if ahead.count > 1 {
            ahead.digests = Digest::of_several(&ahead.keys[..ahead.count]);
        } else {
            ahead.count = 0;
        }
        // The command in an uncommon form counts too.
        ahead.commands = ahead.commands.max(1);
        ahead
    }

    /// Returns whether all commands that were read have been passed.
    pub fn is_over(&self) -> bool {
        self.commands == 0
    }

    /// Passes a command.
    pub fn pass(&mut self) {
        self.commands = self.commands.saturating_sub(1);
    }

    /// Returns the digest of a key, which is that part of the bytes that were read.
    pub fn digest_of(&self, key: &[u8]) -> Option<Digest> {
        let keys = self.keys[..self.count].iter();
        keys.zip(&self.digests)
            .find(|(other, _)| std::ptr::eq(**other, key))
            .map(|(_, digest)| *digest)
    }
}

/// Returns the second argument of the command at the beginning of `bytes`, and the length of the command. The argument
/// of a command without one is empty.
fn first_key(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (count, length) = plain_number(bytes.strip_prefix(b"*")?)?;
    if count > MAX_ARGS_AHEAD {
        return None;
    }
    let (mut key, mut at) = (&[][..], 1 + length);
    for argument in 0..count {
        let (length, size) = plain_number(bytes.get(at..)?.strip_prefix(b"$")?)?;
        let start = at + 1 + size;
        let found = bytes.get(start..)?.get(..length)?;
        if argument == 1 {
            key = found;
        }
        at = start + length + b"\r\n".len();
    }
    (count > 0 && at <= bytes.len()).then_some((key, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
        }
        bytes
    }

    /// Returns the second arguments that have a digest, as they are in `bytes`.
    fn digested<'a>(bytes: &'a [u8], words: &[&str]) -> Vec<&'a [u8]> {
        let ahead = KeysAhead::read(bytes);
        let at = |word: &&str| bytes.windows(word.len()).position(|part| part == word.as_bytes());
        let all = words.iter().map(|word| &bytes[at(word).unwrap()..][..word.len()]);
        all.filter(|key| ahead.digest_of(key).is_some_and(|digest| digest == Digest::of(key)))
            .collect()
    }

    #[test]
    fn the_digests_are_those_of_the_keys_of_a_pipeline() {
        let long = "long".repeat(20);
        let commands = [
            &["GET", "one"][..],
            &["SET", "two", "2"],
            &["PING"],
            &["GET", &long],
            &["GET", "last"],
        ];
        let bytes: Vec<u8> = commands.iter().flat_map(|words| command(words)).collect();
        let keys = ["one", "two", &long, "last"];
        assert_eq!(digested(&bytes, &keys), [&b"one"[..], b"two", b"last"]);
        let cut = &bytes[..bytes.len() - 1];
        assert_eq!(digested(cut, &keys), [&b"one"[..], b"two"], "the last command is incomplete");
        assert!(KeysAhead::read(cut).digest_of(b"one").is_none(), "an equal key elsewhere");
    }

    #[test]
    fn a_command_with_many_arguments_is_not_read_ahead() {
        let get = command(&["GET", "key"]);
        for (arguments, commands) in [(MAX_ARGS_AHEAD, 4), (MAX_ARGS_AHEAD + 1, 2)] {
            let mget = command(&vec!["MGET"; arguments]);
            let bytes = [&get[..], &get, &mget, &get].concat();
            assert_eq!(KeysAhead::read(&bytes).commands, commands, "{arguments}");
        }
    }

    #[test]
    fn it_is_read_again_after_as_many_commands_as_were_read() {
        let one = command(&["GET", "key"]);
        let mut ahead = KeysAhead::empty();
        assert!(ahead.is_over());
        for (bytes, commands) in [
            (&b"PING\r\n"[..], 1),
            (&one, 1),
            (&one.repeat(3), 3),
            (&one.repeat(30), 8),
            (b"*9", 1),
        ] {
            ahead = KeysAhead::read(bytes);
            let read = std::iter::from_fn(|| (!ahead.is_over()).then(|| ahead.pass())).count();
            assert_eq!(read, commands);
        }
    }
}
