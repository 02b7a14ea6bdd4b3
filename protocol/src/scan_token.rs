//! The position of a scan of a whole cluster in one number below 2^53, which JavaScript represents exactly.
//!
//! ```text
//!   bit   0                     32                     32 + p        53
//!         +----------------------+----------------------+-------------+
//!         | cursor in the shard  | place                | check       |
//!         +----------------------+----------------------+-------------+
//!                                  p bits: enough for all places
//! ```
//!
//! A place is a group and a shard: `group + N × shard`, for N servers. The check bits depend on all other bits, on the
//! cluster and on its numbers of servers and shards. So a number that is no token of this cluster is usually detected:
//! with probability 1 - 2^-18 in a cluster of 3 servers with 1 shard, and 7/8 in the largest cluster.
//!
//! Zero is both the start of a scan and its end.

use crate::ids::{ClusterId, GroupId, ShardId};
use crate::placement::Placement;

/// The number of bits of a token.
const TOKEN_BITS: u32 = 53;
/// The number of bits of the cursor in a shard.
const CURSOR_BITS: u32 = 32;
/// The number of bits of the place and of the check together.
const PLACE_AND_CHECK_BITS: u32 = TOKEN_BITS - CURSOR_BITS;

/// A position of a scan: a place, and the cursor in its shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScanPosition {
    /// The index of the place.
    pub place: u32,
    /// The cursor in the shard; zero at its start.
    pub cursor: u32,
}

/// The encoding of the tokens of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanTokens {
    cluster: ClusterId,
    placement: Placement,
}

/// A number that is no token of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{token} is no position of a scan of this cluster; begin again with 0, and pass on only the numbers that the scan \
     of this cluster returns"
)]
pub struct InvalidToken {
    /// The number.
    pub token: u64,
}

impl ScanTokens {
    /// Creates the encoding for a cluster.
    ///
    /// # Panics
    /// If the cluster has more places than the limits allow.
    pub fn new(cluster: ClusterId, placement: Placement) -> ScanTokens {
        let tokens = ScanTokens { cluster, placement };
        assert!(tokens.place_bits() < PLACE_AND_CHECK_BITS, "too many places for a token");
        tokens
    }

    /// Returns the placement of the cluster.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Returns the number of places.
    pub fn places(&self) -> u32 {
        u32::from(self.placement.servers()) * u32::from(self.placement.shards())
    }

    fn place_bits(&self) -> u32 {
        u32::BITS - (self.places() - 1).leading_zeros()
    }

    /// Returns the group and the shard of a place.
    pub fn place(&self, place: u32) -> (GroupId, ShardId) {
        let servers = u32::from(self.placement.servers());
        let low = |number: u32| u16::try_from(number).expect("a place of the cluster");
        (GroupId(low(place % servers)), ShardId(low(place / servers)))
    }

    /// Returns the token of a position, or zero after the last place.
    pub fn encode(&self, position: ScanPosition) -> u64 {
        if position.place >= self.places() || position == ScanPosition::default() {
            return 0;
        }
        let shift = CURSOR_BITS + self.place_bits();
        u64::from(position.cursor)
            | u64::from(position.place) << CURSOR_BITS
            | self.check(position) << shift
    }

    /// Returns the position of a token.
    ///
    /// # Errors
    /// If the number is no token of this cluster.
    pub fn decode(&self, token: u64) -> Result<ScanPosition, InvalidToken> {
        if token == 0 {
            return Ok(ScanPosition::default());
        }
        let low = |bits: u32| token & ((1 << bits) - 1);
        let cursor = u32::try_from(low(CURSOR_BITS)).expect("32 bits");
        let shift = CURSOR_BITS + self.place_bits();
        let place = low(shift) >> CURSOR_BITS;
        let position = u32::try_from(place).ok().map(|place| ScanPosition { place, cursor });
        match position.filter(|position| self.encode(*position) == token) {
            Some(position) => Ok(position),
            None => Err(InvalidToken { token }),
        }
    }

    /// Returns the check bits of a position.
    fn check(&self, position: ScanPosition) -> u64 {
        let [high, low] = [64, 0].map(|shift| {
            u64::try_from(self.cluster.0 >> shift & u128::from(u64::MAX)).expect("64 bits")
        });
        let shape = u64::from(self.placement.servers()) << 16 | u64::from(self.placement.shards());
        let at = u64::from(position.place) << 32 | u64::from(position.cursor);
        let mixed = [high, low, shape, at].iter().fold(1, |mixed, &number| mix(mixed ^ number));
        mixed >> (u64::BITS - (PLACE_AND_CHECK_BITS - self.place_bits()))
    }
}

/// Mixes 64 bits with the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_SERVERS, MAX_SHARDS};
    use proptest::prelude::*;

    fn tokens(cluster: u128, servers: u16, shards: u16) -> ScanTokens {
        ScanTokens::new(ClusterId(cluster), Placement::new(servers, shards))
    }

    #[test]
    fn zero_is_the_start_and_the_end() {
        let tokens = tokens(7, 3, 2);
        assert_eq!(tokens.decode(0), Ok(ScanPosition::default()));
        assert_eq!(tokens.encode(ScanPosition { place: 6, cursor: 0 }), 0);
        assert_ne!(tokens.encode(ScanPosition { place: 0, cursor: 1 }), 0);
        assert_ne!(tokens.encode(ScanPosition { place: 5, cursor: 0 }), 0);
    }

    #[test]
    fn the_places_of_tokens_are_those_of_digests() {
        let placement = Placement::new(5, 3);
        let tokens = ScanTokens::new(ClusterId(1), placement);
        for place in 0..15 {
            let at = tokens.place(place);
            assert_eq!(placement.place_of(placement.digest_at(at)), at);
        }
    }

    #[test]
    fn most_numbers_of_other_clusters_are_detected() {
        let own = tokens(7, 3, 2);
        for other in [tokens(8, 3, 2), tokens(7, 3, 4), tokens(7, 4, 2)] {
            let accepted = (1..=1_000)
                .map(|cursor| other.encode(ScanPosition { place: 1, cursor: cursor << 20 }))
                .filter(|token| own.decode(*token).is_ok())
                .count();
            assert!(accepted <= 2, "{accepted}");
        }
        let error = own.decode(1 << 60).unwrap_err().to_string();
        assert!(error.contains("begin again with 0"), "{error}");
    }

    proptest! {
        #[test]
        fn tokens_come_back(
            cluster: u128, servers in 1..=MAX_SERVERS, shards in 1..=MAX_SHARDS, place: u32, cursor: u32,
        ) {
            let tokens = tokens(cluster, servers, shards);
            let position = ScanPosition { place: place % tokens.places(), cursor };
            let token = tokens.encode(position);
            prop_assert!(token < 1 << TOKEN_BITS);
            prop_assert_eq!(tokens.decode(token), Ok(position));
        }

        #[test]
        fn a_number_is_a_token_only_if_it_is_the_one_of_its_position(token: u64) {
            let tokens = tokens(9, 3, 4);
            if let Ok(position) = tokens.decode(token) {
                prop_assert_eq!(tokens.encode(position), token);
            }
        }
    }
}
