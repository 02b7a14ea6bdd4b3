//! MD5 of four short keys at once, one in each lane of a vector (RFC 1321).
//!
//! ```text
//!              lane 0   lane 1   lane 2   lane 3
//!   word i  [ key 0's | key 1's | key 2's | key 3's ]     64 steps for all four
//! ```
//!
//! A step of MD5 waits for the one before, so that a processor has little to do beside it; four keys take
//! little longer than one. SSE2 is part of every x86-64; elsewhere each key is computed by itself.

/// A key that is longer takes more than one block.
pub(crate) const MAX_BYTES: usize = 55;

#[cfg(target_arch = "x86_64")]
pub(crate) use lanes::four;

/// The MD5 of four keys of up to [`MAX_BYTES`] each.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn four(keys: [&[u8]; 4]) -> [[u8; 16]; 4] {
    use md5::{Digest as _, Md5};
    keys.map(|key| Md5::digest(key).into())
}

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_and_si128, _mm_cvtsi128_si64, _mm_or_si128, _mm_set_epi64x,
        _mm_set1_epi32, _mm_slli_epi32, _mm_srli_epi32, _mm_unpackhi_epi32, _mm_unpackhi_epi64,
        _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm_xor_si128,
    };

    /// The words that every digest begins with.
    const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

    /// What is added in each step: the sine of its number, in units of 2^-32.
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

    /// The MD5 of four keys of up to [`super::MAX_BYTES`] each.
    pub(crate) fn four(keys: [&[u8]; 4]) -> [[u8; 16]; 4] {
        // SAFETY: SSE2, the one feature that it needs, is part of every x86-64.
        unsafe { digests(&keys.map(block)) }
    }

    #[target_feature(enable = "sse2")]
    fn digests(blocks: &[[u8; 64]; 4]) -> [[u8; 16]; 4] {
        let words = words(blocks);
        let start = START.map(|word| all(word));
        let mut state = start;
        for at in 0..4 {
            state = steps::<7, 12, 17, 22>(
                state,
                &words,
                4 * at,
                |i| i,
                |[b, c, d]| xor(d, and(b, xor(c, d))),
            );
        }
        for at in 4..8 {
            state = steps::<5, 9, 14, 20>(
                state,
                &words,
                4 * at,
                |i| 5 * i + 1,
                |[b, c, d]| xor(c, and(d, xor(b, c))),
            );
        }
        for at in 8..12 {
            state = steps::<4, 11, 16, 23>(
                state,
                &words,
                4 * at,
                |i| 3 * i + 5,
                |[b, c, d]| xor(b, xor(c, d)),
            );
        }
        for at in 12..16 {
            state = steps::<6, 10, 15, 21>(
                state,
                &words,
                4 * at,
                |i| 7 * i,
                |[b, c, d]| xor(c, _mm_or_si128(b, xor(d, all(u32::MAX)))),
            );
        }
        let [a, b, c, d] = state;
        let [s, t, u, v] = start;
        transposed([add(a, s), add(b, t), add(c, u), add(d, v)]).map(|lane| bytes(lane))
    }

    /// Four steps, after which each word of the state is in its place again.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn steps<const R: i32, const S: i32, const T: i32, const U: i32>(
        [a, b, c, d]: [__m128i; 4],
        words: &[__m128i; 16],
        first: usize,
        word: impl Fn(usize) -> usize,
        mix: impl Fn([__m128i; 3]) -> __m128i,
    ) -> [__m128i; 4] {
        let sum =
            |at: usize, to, mixed| add(add(to, mixed), add(words[word(at) % 16], all(SINES[at])));
        let a = add(b, rotated::<R>(sum(first, a, mix([b, c, d]))));
        let d = add(a, rotated::<S>(sum(first + 1, d, mix([a, b, c]))));
        let c = add(d, rotated::<T>(sum(first + 2, c, mix([d, a, b]))));
        let b = add(c, rotated::<U>(sum(first + 3, b, mix([c, d, a]))));
        [a, b, c, d]
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn rotated<const BY: i32>(of: __m128i) -> __m128i {
        // The other shift takes a constant too, which may not be computed from this one.
        let low = match BY {
            4 => _mm_srli_epi32::<28>(of),
            5 => _mm_srli_epi32::<27>(of),
            6 => _mm_srli_epi32::<26>(of),
            7 => _mm_srli_epi32::<25>(of),
            9 => _mm_srli_epi32::<23>(of),
            10 => _mm_srli_epi32::<22>(of),
            11 => _mm_srli_epi32::<21>(of),
            12 => _mm_srli_epi32::<20>(of),
            14 => _mm_srli_epi32::<18>(of),
            15 => _mm_srli_epi32::<17>(of),
            16 => _mm_srli_epi32::<16>(of),
            17 => _mm_srli_epi32::<15>(of),
            20 => _mm_srli_epi32::<12>(of),
            21 => _mm_srli_epi32::<11>(of),
            22 => _mm_srli_epi32::<10>(of),
            23 => _mm_srli_epi32::<9>(of),
            _ => unreachable!("no shift of MD5's"),
        };
        _mm_or_si128(_mm_slli_epi32::<BY>(of), low)
    }

    /// A key and its padding: a one bit, zeros, and its length in bits.
    fn block(key: &[u8]) -> [u8; 64] {
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(key);
        block[key.len()] = 0x80;
        block[56..].copy_from_slice(&(key.len() as u64 * 8).to_le_bytes());
        block
    }

    /// The words of the blocks, one block in each lane.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn words(blocks: &[[u8; 64]; 4]) -> [__m128i; 16] {
        let mut words = [all(0); 16];
        for (at, four) in words.chunks_exact_mut(4).enumerate() {
            let row = |block: &[u8; 64]| {
                let half = |from: usize| {
                    let bytes = block[16 * at + from..][..8].try_into().expect("eight bytes");
                    i64::from_le_bytes(bytes)
                };
                _mm_set_epi64x(half(8), half(0))
            };
            four.copy_from_slice(&transposed(blocks.each_ref().map(row)));
        }
        words
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn transposed([a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
        let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (ef, gh) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        [
            _mm_unpacklo_epi64(ab, cd),
            _mm_unpackhi_epi64(ab, cd),
            _mm_unpacklo_epi64(ef, gh),
            _mm_unpackhi_epi64(ef, gh),
        ]
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn bytes(of: __m128i) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&_mm_cvtsi128_si64(of).to_le_bytes());
        let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(of, of));
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn all(word: u32) -> __m128i {
        _mm_set1_epi32(word.cast_signed())
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn add(a: __m128i, b: __m128i) -> __m128i {
        _mm_add_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn xor(a: __m128i, b: __m128i) -> __m128i {
        _mm_xor_si128(a, b)
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn and(a: __m128i, b: __m128i) -> __m128i {
        _mm_and_si128(a, b)
    }
}
