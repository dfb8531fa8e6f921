//! The random stream of one sequence.
//!
//! Random numbers come from ChaCha8, derived from the seed and the stream number as specified
//! here, stable across releases: the same seed gives the same answer from the same logits. (The
//! generators and distributions that `rand` recommends may change between its versions.)

use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// A stream of uniform random numbers.
#[derive(Clone, Debug)]
pub(super) struct RandomStream(ChaCha8Rng);

impl RandomStream {
    /// Creates stream number `stream` of `seed`. Streams of one seed are independent.
    ///
    /// The key is the seed in little-endian order followed by zeros; the stream is ChaCha's
    /// nonce.
    pub(super) fn new(seed: u64, stream: u64) -> RandomStream {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(stream);
        RandomStream(generator)
    }

    /// Returns the next number in `[0, 1)`: the upper 53 of the next 64 bits.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Returns a seed from the system's entropy, for a request without one.
pub fn fresh_seed() -> u64 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| RandomStream::new(seed, stream).uniform();
        assert_eq!(first(1, 0), first(1, 0));
        assert_ne!(first(1, 0), first(1, 1));
        assert_ne!(first(1, 0), first(2, 0));
        assert_ne!(first(1, 2), first(2, 1));
    }

    #[test]
    fn numbers_are_uniform_in_the_unit_interval() {
        let mut stream = RandomStream::new(42, 0);
        let mut tenths = [0u32; 10];
        for _ in 0..10_000 {
            let number = stream.uniform();
            assert!((0.0..1.0).contains(&number));
            tenths[(number * 10.0) as usize] += 1;
        }
        // Five standard deviations of a count of 1,000.
        assert!(tenths.iter().all(|&n| n.abs_diff(1000) < 150), "{tenths:?}");
    }
}
