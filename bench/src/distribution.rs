//! The distribution of the next key: uniform, or by Zipf's law.

use rand::RngExt as _;
use rand_distr::{Distribution as _, Zipf};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The distribution of operations over keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Popularity {
    /// All keys with equal probability.
    Uniform,
    /// The key of rank k with a probability proportional to `1 / k^theta`.
    Zipf(f64),
}

impl Popularity {
    /// Parses `uniform`, `zipf` or `zipf:THETA`.
    pub(crate) fn parse(text: &str) -> Result<Popularity, String> {
        /// The default of YCSB.
        const THETA: f64 = 0.99;
        match text.split_once(':').unwrap_or((text, "")) {
            ("uniform", "") => Ok(Popularity::Uniform),
            ("zipf", "") => Ok(Popularity::Zipf(THETA)),
            ("zipf", theta) => theta
                .parse()
                .ok()
                .filter(|theta| (0.01..=10.0).contains(theta))
                .map(Popularity::Zipf)
                .ok_or_else(|| format!("`{theta}` is not a theta from 0.01 to 10")),
            _ => {
                Err(format!("unknown distribution `{text}` (expected uniform, zipf or zipf:THETA)"))
            }
        }
    }
}

/// A distribution over the indices of a list of given length.
#[derive(Clone, Debug)]
pub(crate) enum KeyDistribution {
    Uniform(u64),
    /// Zipf's law, sampled by rejection-inversion (Hörmann and Derflinger, 1996), which needs no table.
    Zipf(Zipf<f64>),
}

impl KeyDistribution {
    /// Creates a distribution over a list of `length` elements, which must not be zero.
    pub(crate) fn new(popularity: Popularity, length: u64) -> KeyDistribution {
        match popularity {
            Popularity::Uniform => KeyDistribution::Uniform(length),
            #[allow(clippy::cast_precision_loss)] // Lists have fewer than 2^32 entries.
            Popularity::Zipf(theta) => KeyDistribution::Zipf(
                Zipf::new(length as f64, theta).expect("the length and theta are positive"),
            ),
        }
    }

    /// Draws the next index, from zero.
    pub(crate) fn draw(&self, random: &mut Xoshiro256PlusPlus) -> u64 {
        match self {
            KeyDistribution::Uniform(length) => random.random_range(0..*length),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // Ranks are whole numbers from 1 to the length.
            KeyDistribution::Zipf(zipf) => zipf.sample(random) as u64 - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn counts(distribution: &KeyDistribution, length: usize, draws: usize) -> Vec<u32> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut counts = vec![0; length];
        for _ in 0..draws {
            counts[crate::numbers::index(distribution.draw(&mut random))] += 1;
        }
        counts
    }

    #[test]
    fn zipf_draws_each_rank_with_the_expected_frequency() {
        let (length, draws, theta) = (1_000, 2_000_000, 0.99);
        let counts = counts(&KeyDistribution::new(Popularity::Zipf(theta), 1_000), length, draws);
        let weight = |rank: usize| (rank as f64).powf(-theta);
        let total: f64 = (1..=length).map(weight).sum();
        for rank in [1, 2, 3, 10, 100, 1_000] {
            let expected = draws as f64 * weight(rank) / total;
            let got = f64::from(counts[rank - 1]);
            // The tolerance is six standard deviations of a count.
            assert!((got - expected).abs() < 6.0 * expected.sqrt(), "{rank}: {got}, {expected}");
        }
    }

    #[test]
    fn uniform_draws_every_key_about_equally_often() {
        let counts = counts(&KeyDistribution::new(Popularity::Uniform, 100), 100, 1_000_000);
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 600), "{counts:?}");
    }

    #[test]
    fn popularities_are_parsed_by_name() {
        assert_eq!(Popularity::parse("uniform"), Ok(Popularity::Uniform));
        assert_eq!(Popularity::parse("zipf"), Ok(Popularity::Zipf(0.99)));
        assert_eq!(Popularity::parse("zipf:1.2"), Ok(Popularity::Zipf(1.2)));
        for bad in ["", "zipf:0", "zipf:nan", "uniform:1", "normal"] {
            assert!(Popularity::parse(bad).is_err(), "{bad}");
        }
    }
}
