//! Keyed hashing of what clients choose, so that nobody can choose collisions.

use kv_protocol::ids::ClientId;
use kv_protocol::placement::Digest;

use crate::table::TableHash;

/// A process's own secret: drawn at its start by the driver, given by hand in the simulator.
#[derive(Clone, Copy)]
pub struct HashSecret {
    low: u64,
    high: u64,
}

impl HashSecret {
    /// Spreads a 64-bit seed over both halves.
    pub fn new(seed: u64) -> HashSecret {
        // Two odd constants with about half their bits set (fractions of e and of the golden ratio).
        let low = fold(seed ^ 0xb7e1_5162_8aed_2a6b, 0x9e37_79b9_7f4a_7c15);
        HashSecret { low, high: fold(low ^ seed, 0xb7e1_5162_8aed_2a6b) }
    }

    /// The hash of a key by its digest. MD5 has spread the key already, but in a way that everybody
    /// can compute; this step is what makes it private.
    pub fn of_digest(self, digest: Digest) -> TableHash {
        TableHash(self.mix(digest.number()))
    }

    /// The hash of a client's id.
    pub fn of_client(self, client: ClientId) -> u64 {
        self.mix(client.0)
    }

    #[allow(clippy::cast_possible_truncation)] // The halves are what is wanted.
    fn mix(self, number: u128) -> u64 {
        fold(number as u64 ^ self.low, (number >> 64) as u64 ^ self.high)
    }
}

impl std::fmt::Debug for HashSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashSecret(..)")
    }
}

/// Multiplies to 128 bits and folds the halves: every input bit reaches every output bit.
#[allow(clippy::cast_possible_truncation)] // The halves are what is wanted.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
