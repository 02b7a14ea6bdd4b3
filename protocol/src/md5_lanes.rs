//! MD5 of several short keys at once, one in each lane of a vector (RFC 1321).
//!
//! ```text
//!              lane 0   lane 1   lane 2   lane 3   ...
//!   word i  [ key 0's | key 1's | key 2's | key 3's | ... ]     64 steps for all of them
//! ```
//!
//! Each step of MD5 depends on the one before, so a single digest leaves most execution units of a processor idle.
//! Several keys together take little longer than one. Four lanes need SSE2, which is part of every x86-64 processor.
//! Eight lanes need AVX2, which is detected at run time. On other architectures each key is digested separately.

/// The maximum length of a key that fits in one block, with its padding.
pub(crate) const MAX_BYTES: usize = 55;
/// The maximum number of keys that are digested at once.
pub(crate) const LANES: usize = 8;

/// Returns the MD5 of up to [`LANES`] keys of up to [`MAX_BYTES`] each.
pub(crate) fn several(keys: &[&[u8]]) -> [[u8; 16]; LANES] {
    assert!(keys.len() <= LANES, "{} keys are more than the lanes", keys.len());
    #[cfg(target_arch = "x86_64")]
    if keys.len() > 1 {
        return x86_64::several(keys);
    }
    let mut digests = [[0; 16]; LANES];
    for (digest, key) in digests.iter_mut().zip(keys) {
        use md5::{Digest as _, Md5};
        *digest = Md5::digest(key).into();
    }
    digests
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{LANES, MAX_BYTES};

    pub(super) fn several(keys: &[&[u8]]) -> [[u8; 16]; LANES] {
        let mut blocks = [[0; 64]; LANES];
        for (block, key) in blocks.iter_mut().zip(keys) {
            pad(block, key);
        }
        if keys.len() > 4 && is_x86_feature_detected!("avx2") {
            // SAFETY: this processor has AVX2.
            return unsafe { avx2::digests(&blocks) };
        }
        let mut digests = [[0; 16]; LANES];
        let (blocks, _) = blocks.as_chunks::<4>();
        for (four, blocks) in digests.chunks_exact_mut(4).zip(blocks).take(keys.len().div_ceil(4)) {
            // SAFETY: the function needs only SSE2, which is part of every x86-64 processor.
            four.copy_from_slice(&unsafe { sse2::digests(blocks) });
        }
        digests
    }

    /// Writes a key and its padding into a block of zeros. The padding is a one bit, and the key's
    /// length in bits at the end.
    fn pad(block: &mut [u8; 64], key: &[u8]) {
        debug_assert!(key.len() <= MAX_BYTES, "the key takes more than one block");
        block[..key.len()].copy_from_slice(key);
        block[key.len()] = 0x80;
        block[56..].copy_from_slice(&(key.len() as u64 * 8).to_le_bytes());
    }

    /// The initial state of every digest.
    const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

    /// The constant added in each step: the sine of its number, in units of 2^-32.
    #[rustfmt::skip]
    const SINES: [u32; 64] = [
        0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a,
        0xa830_4613, 0xfd46_9501, 0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be,
        0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821, 0xf61e_2562, 0xc040_b340,
        0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
        0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8,
        0x676f_02d9, 0x8d2a_4c8a, 0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c,
        0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70, 0x289b_7ec6, 0xeaa1_27fa,
        0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
        0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92,
        0xffef_f47d, 0x8584_5dd1, 0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1,
        0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
    ];

    /// Defines the algorithm for one kind of vector, in terms of `Vector`, `BLOCKS`, `all`, `add`, `and`, `or`, `xor`,
    /// `left`, `right`, `low_32` and so on, `row` and `rows` of the module that invokes it.
    macro_rules! md5_of_lanes {
        ($feature:literal) => {
            #[target_feature(enable = $feature)]
            pub(super) fn digests(blocks: &[[u8; 64]; BLOCKS]) -> [[u8; 16]; BLOCKS] {
                let words = words(blocks);
                let start = START.map(|word| all(word.cast_signed()));
                let mut state = start;
                for at in 0..4 {
                    let mix = |[b, c, d]: [Vector; 3]| xor(d, and(b, xor(c, d)));
                    state = steps::<7, 12, 17, 22>(state, &words, 4 * at, |i| i, mix);
                }
                for at in 4..8 {
                    let mix = |[b, c, d]: [Vector; 3]| xor(c, and(d, xor(b, c)));
                    state = steps::<5, 9, 14, 20>(state, &words, 4 * at, |i| 5 * i + 1, mix);
                }
                for at in 8..12 {
                    let mix = |[b, c, d]: [Vector; 3]| xor(b, xor(c, d));
                    state = steps::<4, 11, 16, 23>(state, &words, 4 * at, |i| 3 * i + 5, mix);
                }
                for at in 12..16 {
                    let mix = |[b, c, d]: [Vector; 3]| xor(c, or(b, xor(d, all(-1))));
                    state = steps::<6, 10, 15, 21>(state, &words, 4 * at, |i| 7 * i, mix);
                }
                let [a, b, c, d] = state;
                let [s, t, u, v] = start;
                rows(transposed([add(a, s), add(b, t), add(c, u), add(d, v)]))
            }

            /// Runs four steps, after which each word of the state is in its place again.
            #[inline]
            #[target_feature(enable = $feature)]
            fn steps<const R: i32, const S: i32, const T: i32, const U: i32>(
                [a, b, c, d]: [Vector; 4],
                words: &[Vector; 16],
                first: usize,
                word: impl Fn(usize) -> usize,
                mix: impl Fn([Vector; 3]) -> Vector,
            ) -> [Vector; 4] {
                let sum = |at: usize, to, mixed| {
                    let sine = all(SINES[at].cast_signed());
                    add(add(to, mixed), add(words[word(at) % 16], sine))
                };
                let a = add(b, rotated::<R>(sum(first, a, mix([b, c, d]))));
                let d = add(a, rotated::<S>(sum(first + 1, d, mix([a, b, c]))));
                let c = add(d, rotated::<T>(sum(first + 2, c, mix([d, a, b]))));
                let b = add(c, rotated::<U>(sum(first + 3, b, mix([c, d, a]))));
                [a, b, c, d]
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn rotated<const BY: i32>(of: Vector) -> Vector {
                or(left(of, _mm_cvtsi32_si128(BY)), right(of, _mm_cvtsi32_si128(32 - BY)))
            }

            /// Returns the words of the blocks, one block in each lane.
            #[inline]
            #[target_feature(enable = $feature)]
            fn words(blocks: &[[u8; 64]; BLOCKS]) -> [Vector; 16] {
                let mut words = [all(0); 16];
                for (at, four) in words.chunks_exact_mut(4).enumerate() {
                    let row = |lane| row(blocks, lane, 16 * at);
                    four.copy_from_slice(&transposed([row(0), row(1), row(2), row(3)]));
                }
                words
            }

            /// Transposes rows and columns within each 128-bit lane.
            #[inline]
            #[target_feature(enable = $feature)]
            fn transposed([a, b, c, d]: [Vector; 4]) -> [Vector; 4] {
                let (ab, cd) = (low_32(a, b), low_32(c, d));
                let (ef, gh) = (high_32(a, b), high_32(c, d));
                [low_64(ab, cd), high_64(ab, cd), low_64(ef, gh), high_64(ef, gh)]
            }
        };
    }

    /// Digests of four keys.
    mod sse2 {
        use std::arch::x86_64::{
            __m128i as Vector, _mm_add_epi32 as add, _mm_and_si128 as and, _mm_cvtsi32_si128,
            _mm_cvtsi128_si64, _mm_or_si128 as or, _mm_set_epi64x, _mm_set1_epi32 as all,
            _mm_sll_epi32 as left, _mm_srl_epi32 as right, _mm_unpackhi_epi32 as high_32,
            _mm_unpackhi_epi64 as high_64, _mm_unpacklo_epi32 as low_32,
            _mm_unpacklo_epi64 as low_64, _mm_xor_si128 as xor,
        };

        use super::{SINES, START};

        const BLOCKS: usize = 4;
        md5_of_lanes!("sse2");

        #[inline]
        #[target_feature(enable = "sse2")]
        fn row(blocks: &[[u8; 64]; BLOCKS], lane: usize, from: usize) -> Vector {
            of_bytes(&blocks[lane], from)
        }

        #[inline]
        #[target_feature(enable = "sse2")]
        fn rows(of: [Vector; 4]) -> [[u8; 16]; BLOCKS] {
            of.map(|row| to_bytes(row))
        }

        /// Returns 16 bytes of a block as a vector.
        #[inline]
        #[target_feature(enable = "sse2")]
        pub(super) fn of_bytes(block: &[u8; 64], from: usize) -> Vector {
            let half = |from: usize| {
                i64::from_le_bytes(block[from..][..8].try_into().expect("eight bytes"))
            };
            _mm_set_epi64x(half(from + 8), half(from))
        }

        #[inline]
        #[target_feature(enable = "sse2")]
        pub(super) fn to_bytes(of: Vector) -> [u8; 16] {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&_mm_cvtsi128_si64(of).to_le_bytes());
            bytes[8..].copy_from_slice(&_mm_cvtsi128_si64(high_64(of, of)).to_le_bytes());
            bytes
        }
    }

    /// Digests of eight keys, four in each half.
    mod avx2 {
        use std::arch::x86_64::{
            __m256i as Vector, _mm_cvtsi32_si128, _mm256_add_epi32 as add, _mm256_and_si256 as and,
            _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_or_si256 as or,
            _mm256_set_m128i, _mm256_set1_epi32 as all, _mm256_sll_epi32 as left,
            _mm256_srl_epi32 as right, _mm256_unpackhi_epi32 as high_32,
            _mm256_unpackhi_epi64 as high_64, _mm256_unpacklo_epi32 as low_32,
            _mm256_unpacklo_epi64 as low_64, _mm256_xor_si256 as xor,
        };

        use super::sse2::{of_bytes, to_bytes};
        use super::{SINES, START};

        const BLOCKS: usize = super::LANES;
        md5_of_lanes!("avx2");

        #[inline]
        #[target_feature(enable = "avx2")]
        fn row(blocks: &[[u8; 64]; BLOCKS], lane: usize, from: usize) -> Vector {
            let half = |lane: usize| of_bytes(&blocks[lane], from);
            _mm256_set_m128i(half(lane + 4), half(lane))
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn rows(of: [Vector; 4]) -> [[u8; 16]; BLOCKS] {
            let [a, b, c, d] = of.map(|row| to_bytes(_mm256_castsi256_si128(row)));
            let [e, f, g, h] = of.map(|row| to_bytes(_mm256_extracti128_si256::<1>(row)));
            [a, b, c, d, e, f, g, h]
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn eight_lanes_and_four_lanes_give_the_same_digests() {
            if !is_x86_feature_detected!("avx2") {
                return;
            }
            let mut key = [0; 64];
            let mut eight = [[0; 64]; LANES];
            for (length, block) in (0u8..).zip(&mut eight) {
                for (byte, to) in (length..).zip(&mut key) {
                    *to = byte.wrapping_mul(37);
                }
                pad(block, &key[..usize::from(7 * length)]);
            }
            let (fours, _) = eight.as_chunks::<4>();
            // SAFETY: SSE2 is part of every x86-64 processor, and this processor has AVX2.
            let (at_once, four_and_four) = unsafe {
                (avx2::digests(&eight), [sse2::digests(&fours[0]), sse2::digests(&fours[1])])
            };
            assert_eq!(at_once, four_and_four.concat()[..]);
        }
    }
}
