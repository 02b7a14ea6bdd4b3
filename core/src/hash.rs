//! Keyed hashing of input that clients choose. Without the key no client can construct collisions.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;
use kv_protocol::ids::{ClientId, ClusterKey};
use kv_protocol::key::table_secret;
use kv_protocol::placement::Digest;

use crate::table::TableHash;

/// The secret of the hash functions of all tables of a cluster. It is the same at all its servers, so that their tables
/// have the same order, and follows from the cluster's key.
#[derive(Clone, Copy)]
pub struct HashSecret {
    low: u64,
    high: u64,
}

impl HashSecret {
    /// Returns the secret of the cluster with this key.
    #[allow(clippy::cast_possible_truncation)] // Both halves are used.
    pub fn of_cluster(key: ClusterKey) -> HashSecret {
        let secret = table_secret(key);
        HashSecret { low: secret as u64, high: (secret >> 64) as u64 }
    }

    /// Creates a secret from a 64-bit seed, which is spread over both halves.
    pub fn new(seed: u64) -> HashSecret {
        // Two odd constants with about half their bits set (fractions of e and of the golden ratio).
        let low = fold(seed ^ 0xb7e1_5162_8aed_2a6b, 0x9e37_79b9_7f4a_7c15);
        HashSecret { low, high: fold(low ^ seed, 0xb7e1_5162_8aed_2a6b) }
    }

    /// Returns the hash of a key. The MD5 digest alone is not enough: it is not secret, and keys with equal digests
    /// can be constructed. So the digest is mixed with the secret, and the result seeds a second hash of the key.
    pub fn of_key(self, digest: Digest, key: &[u8]) -> TableHash {
        let mut hasher = FixedState::with_seed(self.mix(digest.number())).build_hasher();
        hasher.write(key);
        TableHash(hasher.finish())
    }

    /// Returns the hash of a client's id.
    pub fn of_client(self, client: ClientId) -> u64 {
        self.mix(client.0)
    }

    #[allow(clippy::cast_possible_truncation)] // Both halves are used.
    fn mix(self, number: u128) -> u64 {
        fold(number as u64 ^ self.low, (number >> 64) as u64 ^ self.high)
    }
}

impl std::fmt::Debug for HashSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashSecret(..)")
    }
}

/// Multiplies two numbers to 128 bits and combines the halves with XOR, which spreads the input bits over the whole
/// output.
#[allow(clippy::cast_possible_truncation)] // Both halves are used.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Mixes 64 bits so that each output bit depends on all input bits, with the finalizer of SplitMix64 (Steele, Lea and
/// Flood, OOPSLA 2014). It is not keyed, so it suits digests that two servers compare, but not tables.
pub(crate) fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_equal_digest_have_different_hashes() {
        let secret = HashSecret::new(1);
        let digest = Digest::of(b"one of the two");
        assert_ne!(secret.of_key(digest, b"a").0 >> 32, secret.of_key(digest, b"b").0 >> 32);
    }

    #[test]
    fn the_secret_follows_from_the_key_of_the_cluster() {
        let digest = Digest::of(b"key");
        let hash = |key| HashSecret::of_cluster(ClusterKey(key)).of_key(digest, b"key").0;
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1) >> 32, hash(2) >> 32);
    }

    #[test]
    fn different_secrets_give_different_hashes_and_equal_secrets_equal_ones() {
        let digest = Digest::of(b"key");
        let hash = |seed| HashSecret::new(seed).of_key(digest, b"key").0;
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1) >> 32, hash(2) >> 32);
    }
}
