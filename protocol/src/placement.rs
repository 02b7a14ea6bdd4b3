//! Placement: MD5(key), read as a big-endian 128-bit number, determines group and shard.
//!
//! ```text
//!   without hash tags   user:{1}:name   MD5 of the whole key -> place
//!   with hash tags      user:{1}:name   MD5 of `1`           -> place
//! ```
//!
//! Hash tags change only the place. The digest of a key in requests, streams and dumps is always that of the whole key.
//!
//! MD5 spreads keys evenly. A digest never identifies a key, because collisions can be constructed: tables hold and
//! compare whole keys.

use std::fmt;

use md5::{Digest as _, Md5};

use crate::ids::{GroupId, ShardId};
use crate::md5_lanes;

/// The MD5 of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Computes the digest of a key.
    pub fn of(key: &[u8]) -> Digest {
        Digest(Md5::digest(key).into())
    }

    /// Computes the digests of up to [`Digest::TOGETHER`] keys of at most [`Digest::MAX_TOGETHER_BYTES`] each. This
    /// takes little longer than one digest. Elements after those of the keys are meaningless.
    ///
    /// # Panics
    /// If there are more keys, or longer ones.
    pub fn of_several(keys: &[&[u8]]) -> [Digest; Digest::TOGETHER] {
        md5_lanes::several(keys).map(Digest)
    }

    /// The maximum number of keys whose digests are computed at once.
    pub const TOGETHER: usize = md5_lanes::LANES;
    /// The maximum length of a key that can be digested together with others.
    pub const MAX_TOGETHER_BYTES: usize = md5_lanes::MAX_BYTES;

    /// Returns the digest as the number that placement divides.
    pub fn number(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.number())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Returns the bytes of a key that place it in a cluster with hash tags: those between the first `{` and the next `}`
/// after it, or the whole key if there are none. Redis Cluster has the same rule.
pub fn placed_bytes(key: &[u8]) -> &[u8] {
    hash_tag(key).unwrap_or(key)
}

/// Returns the hash tag of a key, if it has one.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let after = &key[open + 1..];
    let length = after.iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &after[..length])
}

/// The rule that gives each key its group and shard. It depends on the numbers of servers and shards, and on whether
/// the cluster has hash tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    servers: u16,
    shards: u16,
    by_servers: Divisor,
    /// The divisor servers times shards.
    by_places: Divisor,
    /// 2^64 modulo servers times shards.
    wrap: u64,
    hash_tags: bool,
}

impl Placement {
    /// Creates the placement of a ring of `servers` servers with `shards` shards per group, without hash tags. Neither
    /// number may be zero.
    pub fn new(servers: u16, shards: u16) -> Placement {
        assert!(servers > 0 && shards > 0, "{servers} servers and {shards} shards place no key");
        let places = u32::from(servers) * u32::from(shards);
        let (by_servers, by_places) = (Divisor::new(servers.into()), Divisor::new(places));
        let wrap = by_places.divide(by_places.divide(u64::MAX).1 + 1).1;
        Placement { servers, shards, by_servers, by_places, wrap, hash_tags: false }
    }

    /// Returns the placement with or without hash tags.
    #[must_use]
    pub fn with_hash_tags(self, hash_tags: bool) -> Placement {
        Placement { hash_tags, ..self }
    }

    /// Returns whether only the hash tag of a key determines its place, if the key has one.
    #[inline]
    pub fn hash_tags(self) -> bool {
        self.hash_tags
    }

    /// Returns the number of servers, which is also the number of groups.
    pub fn servers(self) -> u16 {
        self.servers
    }

    /// Returns the number of shards of a group.
    pub fn shards(self) -> u16 {
        self.shards
    }

    /// Returns the group and shard of a key.
    pub fn locate(&self, key: &[u8]) -> (GroupId, ShardId) {
        self.place_of(Digest::of(if self.hash_tags { placed_bytes(key) } else { key }))
    }

    /// Returns the group and shard of a key whose digest is known.
    #[inline]
    pub fn locate_digested(&self, digest: Digest, key: &[u8]) -> (GroupId, ShardId) {
        match self.hash_tags {
            false => self.place_of(digest),
            true => self.locate_by_tag(digest, key),
        }
    }

    #[inline(never)] // A cluster without hash tags pays only for the branch.
    fn locate_by_tag(&self, digest: Digest, key: &[u8]) -> (GroupId, ShardId) {
        self.place_of(hash_tag(key).map_or(digest, Digest::of))
    }

    /// Returns the group and shard of a digest: `number mod N` and `(number / N) mod S`.
    #[inline(always)]
    pub fn place_of(&self, digest: Digest) -> (GroupId, ShardId) {
        // Group and shard follow from `number mod (N S)`, which fits in 32 bits. So every step fits in 64 bits. This
        // avoids 128-bit divisions, which are library calls of about 20 ns.
        let number = digest.number();
        let modulo = |number| self.by_places.divide(number).1;
        let (high, low) = (modulo(low_64(number >> 64)), modulo(low_64(number)));
        let (shard, group) = self.by_servers.divide(modulo(high * self.wrap + low));
        (GroupId(low_16(group)), ShardId(low_16(shard)))
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tags = if self.hash_tags { " and hash tags" } else { "" };
        write!(f, "{} servers with {} shards each{tags}", self.servers, self.shards)
    }
}

/// Places that no key determines.
impl Placement {
    /// Returns a digest that [`Placement::place_of`] maps to this group and shard, for requests about a whole shard.
    pub fn digest_at(self, (group, shard): (GroupId, ShardId)) -> Digest {
        let number = u32::from(group.0) + u32::from(self.servers) * u32::from(shard.0);
        Digest(u128::from(number).to_be_bytes())
    }
}

/// A divisor with its precomputed reciprocal. Multiplication by the reciprocal replaces the hardware division, which
/// takes about ten times as long (Granlund and Montgomery, PLDI 1994).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Divisor {
    divisor: u64,
    /// (2^64 - 1) / divisor, rounded down.
    reciprocal: u64,
}

impl Divisor {
    fn new(divisor: u32) -> Divisor {
        let divisor = u64::from(divisor);
        Divisor { divisor, reciprocal: u64::MAX / divisor }
    }

    /// Returns the quotient and the remainder of `number`.
    #[inline(always)]
    fn divide(self, number: u64) -> (u64, u64) {
        // The reciprocal is too small by less than 1 + 1/divisor, so this quotient is too small by at most 2.
        let mut quotient = low_64((u128::from(number) * u128::from(self.reciprocal)) >> 64);
        let mut remainder = number - quotient * self.divisor;
        for _ in 0..2 {
            if remainder >= self.divisor {
                (quotient, remainder) = (quotient + 1, remainder - self.divisor);
            }
        }
        (quotient, remainder)
    }
}

#[allow(clippy::cast_possible_truncation)] // Takes the low bits.
fn low_64(number: u128) -> u64 {
    number as u64
}

#[allow(clippy::cast_possible_truncation)] // The number is less than a 16-bit divisor.
fn low_16(number: u64) -> u16 {
    number as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Checks the vectors of RFC 1321, appendix A.5.
    #[test]
    fn md5_gives_the_vectors_of_its_rfc() {
        for (key, hex) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            ("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"),
        ] {
            assert_eq!(Digest::of(key.as_bytes()).to_string(), hex);
        }
    }

    proptest! {
        #[test]
        fn digests_computed_together_match_those_computed_alone(
            keys in prop::collection::vec(
                prop::collection::vec(any::<u8>(), 0..=Digest::MAX_TOGETHER_BYTES),
                0..=Digest::TOGETHER,
            ),
        ) {
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let digests: Vec<Digest> = keys.iter().map(|key| Digest::of(key)).collect();
            prop_assert_eq!(&Digest::of_several(&keys)[..keys.len()], digests);
        }
    }

    #[test]
    fn digests_computed_together_match_at_every_length_and_number_of_keys() {
        let bytes: Vec<u8> = (0..80).collect();
        for length in 0..=Digest::MAX_TOGETHER_BYTES {
            for count in 0..=Digest::TOGETHER {
                let keys: Vec<&[u8]> = (0..count).map(|from| &bytes[from..][..length]).collect();
                let digests: Vec<Digest> = keys.iter().map(|key| Digest::of(key)).collect();
                let got = &Digest::of_several(&keys)[..count];
                assert_eq!(got, digests, "{count} of {length} bytes");
            }
        }
    }

    /// Checks places computed independently: `python3 -c 'import hashlib; n=int(hashlib.md5(b"a").hexdigest(),16);
    /// print(n%3, n//3%2, n%7, n//7%4)'`, and so on.
    #[test]
    fn placement_agrees_with_an_independent_computation() {
        for (key, servers, shards, group, shard) in PLACES {
            let at = Placement::new(servers, shards).locate(key.as_bytes());
            assert_eq!(at, (GroupId(group), ShardId(shard)), "{key} of {servers} x {shards}");
        }
    }

    const PLACES: [(&str, u16, u16, u16, u16); 8] = [
        ("a", 3, 2, 1, 0),
        ("a", 7, 4, 0, 3),
        ("abc", 3, 1, 1, 0),
        ("abc", 5, 2, 0, 0),
        ("hello", 3, 4, 1, 3),
        ("key", 3, 2, 2, 1),
        ("Zürich", 3, 2, 2, 1),
        ("kv", 1024, 256, 250, 139),
    ];

    /// Checks the examples of the specification of Redis Cluster, and keys that are not valid text.
    #[test]
    fn a_hash_tag_is_what_stands_between_the_first_brace_and_the_next_closing_one() {
        for (key, placed) in [
            (&b"{user1000}.following"[..], &b"user1000"[..]),
            (b"foo{}{bar}", b"foo{}{bar}"),
            (b"foo{{bar}}zap", b"{bar"),
            (b"foo{bar}{zap}", b"bar"),
            (b"", b""),
            (b"key", b"key"),
            (b"{", b"{"),
            (b"}", b"}"),
            (b"}{", b"}{"),
            (b"{}", b"{}"),
            (b"{{}", b"{"),
            (b"{{a}}", b"{a"),
            (b"}{a}", b"a"),
            (b"a}b{c", b"a}b{c"),
            (b"{a", b"{a"),
            (b"{\xff\0\xfe}\x80", b"\xff\0\xfe"),
        ] {
            assert_eq!(placed_bytes(key), placed, "{}", key.escape_ascii());
        }
    }

    /// Returns bytes in which braces are frequent.
    fn braced() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(b'{'), Just(b'}'), any::<u8>()];
        prop::collection::vec(byte, 0..=12)
    }

    proptest! {
        #[test]
        fn a_hash_tag_is_what_a_pattern_with_the_least_repetition_matches(key in braced()) {
            // The pattern `{([^}]+)}` at the first brace, by comparison of every end.
            let first = (0..key.len()).find(|at| key[*at] == b'{');
            let ends = |from: usize| (from..key.len()).find(|at| key[*at] == b'}');
            let tag = first.and_then(|first| Some(&key[first + 1..ends(first + 1)?]));
            let expected = tag.filter(|tag| !tag.is_empty()).unwrap_or(&key);
            prop_assert_eq!(placed_bytes(&key), expected);
        }

        #[test]
        fn keys_of_one_tag_share_a_place_with_the_tag_itself(
            tag in prop::collection::vec(any::<u8>().prop_filter("a brace", |b| *b != b'}'), 1..=9),
            before in prop::collection::vec(any::<u8>().prop_filter("a brace", |b| *b != b'{'), 0..=9),
            after in braced(), servers in 1u16..=1_024, shards in 1u16..=256,
        ) {
            let plain = Placement::new(servers, shards);
            let key = [&before[..], b"{", &tag[..], b"}", &after[..]].concat();
            let place = plain.with_hash_tags(true).locate(&key);
            prop_assert_eq!(place, plain.locate(&tag));
        }

        #[test]
        fn a_key_has_the_same_place_whether_its_digest_is_known_or_not(
            key in braced(), servers in 1u16..=1_024, shards in 1u16..=256, hash_tags in any::<bool>(),
        ) {
            let placement = Placement::new(servers, shards).with_hash_tags(hash_tags);
            prop_assert_eq!(
                placement.locate_digested(Digest::of(&key), &key),
                placement.locate(&key)
            );
        }

        #[test]
        fn without_hash_tags_the_whole_key_is_placed(
            key in braced(), servers in 1u16..=1_024, shards in 1u16..=256,
        ) {
            let placement = Placement::new(servers, shards);
            prop_assert_eq!(placement.locate(&key), placement.place_of(Digest::of(&key)));
        }
    }

    #[test]
    fn the_digest_of_a_place_locates_it() {
        for (servers, shards) in [(1, 1), (3, 1), (3, 4), (1_024, 256)] {
            let placement = Placement::new(servers, shards);
            for place in [(0, 0), (servers - 1, 0), (0, shards - 1), (servers - 1, shards - 1)] {
                let place = (GroupId(place.0), ShardId(place.1));
                assert_eq!(placement.place_of(placement.digest_at(place)), place);
            }
        }
    }

    #[test]
    fn a_million_keys_spread_evenly_within_two_percent() {
        let placement = Placement::new(5, 2);
        let mut counts = [0u32; 10];
        for n in 0..1_000_000u32 {
            let (group, shard) = placement.locate(format!("key-{n}").as_bytes());
            counts[usize::from(group.0) * 2 + usize::from(shard.0)] += 1;
        }
        for count in counts {
            assert!(count.abs_diff(100_000) <= 2_000, "uneven: {counts:?}");
        }
    }

    #[test]
    fn numbers_next_to_a_multiple_of_the_divisor_are_divided_correctly() {
        for divisor in [1, 2, 3, 7, 1 << 16, (1 << 31) + 1, u32::MAX - 1, u32::MAX] {
            let (by, divisor) = (Divisor::new(divisor), u64::from(divisor));
            for quotient in [0, 1, 2, 1 << 31, u64::MAX / divisor] {
                let multiple = quotient * divisor;
                for number in [multiple.wrapping_sub(1), multiple, multiple.wrapping_add(1)] {
                    assert_eq!(by.divide(number), (number / divisor, number % divisor));
                }
            }
            assert_eq!(by.divide(u64::MAX), (u64::MAX / divisor, u64::MAX % divisor));
        }
    }

    proptest! {
        #[test]
        fn division_by_multiplication_agrees_with_hardware_division(
            number in any::<u64>(), divisor in 1u32..,
        ) {
            let got = Divisor::new(divisor).divide(number);
            let divisor = u64::from(divisor);
            prop_assert_eq!(got, (number / divisor, number % divisor));
        }

        #[test]
        fn the_long_division_agrees_with_128_bit_arithmetic(
            bytes in any::<[u8; 16]>(), servers in 1u16.., shards in 1u16..,
        ) {
            let (group, shard) = Placement::new(servers, shards).place_of(Digest(bytes));
            let number = u128::from_be_bytes(bytes);
            prop_assert_eq!(u128::from(group.0), number % u128::from(servers));
            prop_assert_eq!(u128::from(shard.0), number / u128::from(servers) % u128::from(shards));
        }
    }
}
