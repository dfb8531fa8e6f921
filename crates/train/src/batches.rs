//! The order of training examples.
//!
//! Examples of a batch have nearly the same length (length bucketing), so that none waits for a
//! much longer one: an epoch is shuffled and cut into stretches of many batches, each stretch
//! is sorted by length and cut into batches, and the batches are shuffled. The order depends on
//! nothing but the lengths and the seed, so a run's position is a single number.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Batches in a stretch that is sorted by length: enough for a batch's lengths to be alike, few
/// enough for an example's companions to change from epoch to epoch.
const STRETCH: usize = 32;

/// An endless sequence of batches, epoch after epoch.
#[derive(Clone, Debug)]
pub struct Batches {
    lengths: Vec<usize>,
    size: usize,
    seed: u64,
    /// The most recently used epoch.
    epoch: Option<(usize, Vec<Vec<usize>>)>,
}

impl Batches {
    /// Batches of `size` examples of these lengths; an epoch's last may have fewer.
    ///
    /// # Panics
    /// There are no examples, or `size` is 0.
    pub fn new(lengths: Vec<usize>, size: usize, seed: u64) -> Batches {
        assert!(!lengths.is_empty() && size > 0);
        Batches {
            lengths,
            size,
            seed,
            epoch: None,
        }
    }

    /// Batches per epoch.
    pub fn per_epoch(&self) -> usize {
        self.lengths.len().div_ceil(self.size)
    }

    /// The indices of a batch's examples.
    pub fn get(&mut self, number: usize) -> &[usize] {
        let per_epoch = self.per_epoch();
        let wanted = number / per_epoch;
        let known = self.epoch.take().filter(|(epoch, _)| *epoch == wanted);
        let (_, batches) = self.epoch.insert(match known {
            Some(known) => known,
            None => (
                wanted,
                shuffled(&self.lengths, self.size, self.seed, wanted),
            ),
        });
        &batches[number % per_epoch]
    }
}

/// The batches of an epoch.
fn shuffled(lengths: &[usize], size: usize, seed: u64, epoch: usize) -> Vec<Vec<usize>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch as u64);
    let mut places: Vec<usize> = (0..lengths.len()).collect();
    places.shuffle(&mut random);
    for stretch in places.chunks_mut(STRETCH * size) {
        stretch.sort_by_key(|&place| lengths[place]);
    }
    let mut batches: Vec<Vec<usize>> = places.chunks(size).map(<[usize]>::to_vec).collect();
    batches.shuffle(&mut random);
    batches
}

/// Batches for evaluation, where order does not matter: every example once, similar lengths
/// together.
pub fn by_length(lengths: &[usize], size: usize) -> Vec<Vec<usize>> {
    let mut places: Vec<usize> = (0..lengths.len()).collect();
    places.sort_by_key(|&place| lengths[place]);
    places.chunks(size).map(<[usize]>::to_vec).collect()
}

/// Splits the indices of `count` examples into a `share` to hold out and the rest, and returns
/// both in this order, each sorted.
pub fn split(count: usize, share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut places: Vec<usize> = (0..count).collect();
    places.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut rest = places.split_off((count as f64 * share).round() as usize);
    places.sort_unstable();
    rest.sort_unstable();
    (places, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths() -> Vec<usize> {
        (0..1001).map(|at| 10 + at * 7919 % 500).collect()
    }

    #[test]
    fn every_epoch_has_each_example_once() {
        let mut batches = Batches::new(lengths(), 4, 1);
        for epoch in 0..3 {
            let numbers = (0..batches.per_epoch()).map(|at| epoch * batches.per_epoch() + at);
            let mut seen: Vec<usize> = Vec::new();
            for number in numbers.collect::<Vec<_>>() {
                seen.extend(batches.get(number));
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..1001).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_is_the_seeds_wherever_one_begins() {
        let mut whole = Batches::new(lengths(), 4, 1);
        let row: Vec<Vec<usize>> = (0..600).map(|number| whole.get(number).to_vec()).collect();
        let mut resumed = Batches::new(lengths(), 4, 1);
        for number in (300..600).rev() {
            assert_eq!(resumed.get(number), row[number]);
        }
        assert_ne!(row[..251], row[251..502], "epochs differ");
        let mut other = Batches::new(lengths(), 4, 2);
        assert_ne!(other.get(0), row[0]);
    }

    #[test]
    fn a_batchs_examples_are_alike_in_length() {
        let mut batches = Batches::new(lengths(), 8, 1);
        let lengths = lengths();
        let spread = (0..batches.per_epoch()).map(|number| {
            let found = batches.get(number).iter().map(|&at| lengths[at]);
            found.clone().max().unwrap() - found.min().unwrap()
        });
        // Of 500 lengths, eight neighbours among 256 span some 16, and more at the stretches'
        // ends.
        let spread: Vec<usize> = spread.collect();
        let mean = spread.iter().sum::<usize>() as f64 / spread.len() as f64;
        assert!(mean < 40.0, "{mean}");
    }

    #[test]
    fn what_is_held_out_is_not_learnt_from() {
        let (held_out, rest) = split(100, 0.05, 3);
        assert_eq!((held_out.len(), rest.len()), (5, 95));
        assert!(held_out.iter().all(|place| !rest.contains(place)));
        assert_eq!(split(100, 0.05, 3).0, held_out);
        assert_ne!(split(100, 0.05, 4).0, held_out);
    }
}
