//! Pairs of characters that can be adjacent within a token.
//!
//! If two adjacent characters of a text are adjacent in no piece of the vocabulary, no token
//! spans the place between them, whatever is merged before: the text can be split there, and
//! its parts encoded one after the other, to the same tokens. In ordinary text there is such a
//! place every few characters.

use super::vocabulary::Vocabulary;

/// The size of the filter in bits, as a power of two: some thirty for each pair of the largest
/// vocabularies.
const BITS: u32 = 20;

/// The pairs of characters that are adjacent in any piece, as a Bloom filter with one hash: a
/// false positive merely joins parts that could have been separate.
#[derive(Debug)]
pub(super) struct AdjacentPairs(Box<[u64]>);

impl AdjacentPairs {
    /// The pairs in all pieces that merging can produce.
    pub(super) fn new(vocabulary: &Vocabulary) -> AdjacentPairs {
        let mut filter = vec![0; 1 << (BITS - 6)].into_boxed_slice();
        let pieces = vocabulary.iter().filter(|(_, kind, _)| kind.is_text());
        for (_, _, piece) in pieces {
            for (first, second) in piece.chars().zip(piece.chars().skip(1)) {
                let (word, bit) = place(first, second);
                filter[word] |= bit;
            }
        }
        AdjacentPairs(filter)
    }

    /// Whether a token may contain `first` directly followed by `second`.
    pub(super) fn contains(&self, first: char, second: char) -> bool {
        let (word, bit) = place(first, second);
        self.0[word] & bit != 0
    }
}

/// The index of the filter's word that has a pair's bit, and the bit.
fn place(first: char, second: char) -> (usize, u64) {
    // Fibonacci hashing: the upper bits of a product depend on all of the key.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = u64::from(u32::from(first)) << 32 | u64::from(u32::from(second));
    let hash = key.wrapping_mul(GOLDEN) ^ (key >> 32).wrapping_mul(GOLDEN << 1);
    let at = hash >> (64 - BITS);
    ((at >> 6) as usize, 1 << (at & 63))
}
