//! Databases: the part of the stored key that separates them.
//!
//! ```text
//!   database 0       key                       also the keys of native clients
//!   database 1..15   0x00 'd' 'b' number key
//! ```
//!
//! A key of database 0 that begins with the three bytes of the mark is refused, because it would be one of another
//! database.

use std::borrow::Cow;

use kv_protocol::limits::MAX_KEY_BYTES;

use crate::command::integer;
use crate::error::{self, Error};

/// The number of databases.
pub const DATABASES: u8 = 16;
/// The first bytes of the stored keys of all databases but the first.
pub(crate) const MARK: &[u8; 3] = b"\0db";

/// Returns the database that an argument of SELECT names.
///
/// # Errors
/// If there is no such database.
pub fn number(text: &[u8]) -> Result<u8, Error> {
    let number = integer(text).and_then(|number| i32::try_from(number).ok());
    let number = u8::try_from(number.ok_or(error::NOT_AN_INTEGER)?);
    number.ok().filter(|number| *number < DATABASES).ok_or(error::NO_SUCH_DATABASE)
}

/// The stored form of a key. That of a key of database 0 needs no copy.
pub type StoredKey<'a> = Cow<'a, [u8]>;

/// Returns the stored form of a key.
///
/// # Errors
/// If the key is empty or too long, or if it is one of another database.
pub fn stored(database: u8, key: &[u8]) -> Result<StoredKey<'_>, Error> {
    let stored = match database {
        0 => Cow::Borrowed(key),
        number => Cow::Owned([&prefix(number)[..], key].concat()),
    };
    if stored.len() > MAX_KEY_BYTES || key.is_empty() {
        return Err(Error::Stated("ERR a key has 1 to 65,531 bytes in this store"));
    }
    if database == 0 && key.starts_with(MARK) {
        return Err(Error::Stated("ERR keys that begin with the bytes 00 'd' 'b' are reserved"));
    }
    Ok(stored)
}

/// Returns the first bytes of the stored keys of a database; empty for database 0.
pub fn prefix(database: u8) -> Vec<u8> {
    match database {
        0 => Vec::new(),
        number => [&MARK[..], &[number]].concat(),
    }
}

/// Returns the key of a stored key if it is one of this database.
pub fn key_of(database: u8, stored: &[u8]) -> Option<&[u8]> {
    match database {
        0 => (!stored.starts_with(MARK)).then_some(stored),
        number => stored.strip_prefix(&prefix(number)[..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_share_no_stored_key() {
        for database in 0..DATABASES {
            let stored = stored(database, b"key").unwrap();
            for other in 0..DATABASES {
                let expected = (other == database).then_some(&b"key"[..]);
                assert_eq!(key_of(other, &stored), expected);
            }
        }
        let taken = stored(3, b"key").unwrap();
        assert!(stored(0, &taken).is_err(), "it would be a key of database 3");
        assert!(stored(1, &taken).is_ok());
    }
}
