//! SentencePiece-BPE: byte-pair encoding of characters, merged by the score of the result, with
//! byte fallback.

use super::adjacent_pairs::AdjacentPairs;
use super::limits::{LimitCheck, Output};
use super::merge::{Chain, Merge, Symbol};
use super::vocabulary::Vocabulary;

/// SentencePiece writes a space as this character.
pub(super) const SPACE: char = '\u{2581}';

/// The encoder of a `llama` vocabulary.
#[derive(Debug)]
pub(super) struct Spm {
    /// The rank of each token's score, the best score lowest.
    priorities: Vec<u32>,
    /// The `<0xNN>` token of each byte.
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    adjacent_pairs: AdjacentPairs,
    /// Whether a text gets a space before it, also after a special token.
    pub(super) space_prefix: bool,
}

impl Spm {
    /// `scores` holds one score (never NaN) per token.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        scores: &[f32],
        bytes: Box<[Option<u32>; 256]>,
        unknown: Option<u32>,
        space_prefix: bool,
    ) -> Spm {
        Spm {
            priorities: scores.iter().map(|&score| priority(score)).collect(),
            bytes,
            unknown,
            adjacent_pairs: AdjacentPairs::new(vocabulary),
            space_prefix,
        }
    }

    /// Appends the ids of `text`, which has no special tokens. `first` tells whether it begins
    /// the whole text or follows a special token.
    pub(super) fn encode<L: LimitCheck>(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        first: bool,
        output: &mut Output<'_, L>,
    ) -> Result<(), L::Error> {
        let prefix = (first && self.space_prefix).then_some(SPACE);
        let mut run = Run::default();
        let mut before = None;
        let mut begins = 0;
        let places = text.char_indices().map(|(at, c)| (at, escaped(c)));
        for (at, c) in prefix.map(|c| (0, c)).into_iter().chain(places) {
            let joined = before.is_none_or(|before| self.adjacent_pairs.contains(before, c));
            if !(joined && run.chain.fits(c.len_utf8())) {
                self.finish(vocabulary, &mut run, output)?;
                output.advance(&text[begins..at])?;
                begins = at;
            }
            run.push(vocabulary, c);
            before = Some(c);
        }
        self.finish(vocabulary, &mut run, output)?;
        output.advance(&text[begins..])
    }

    /// Appends the ids of a run, and empties it.
    fn finish<L: LimitCheck>(
        &self,
        vocabulary: &Vocabulary,
        run: &mut Run,
        output: &mut Output<'_, L>,
    ) -> Result<(), L::Error> {
        let text = run.text.as_bytes();
        let find = |left: &Symbol, right: &Symbol| {
            let id = vocabulary.find(&text[left.range_with(right)])?;
            let priority = self.priorities[id as usize];
            Some(Merge { priority, id })
        };
        run.chain.merge(find, || output.merged())?;
        for symbol in run.chain.iter() {
            match symbol.id() {
                Some(id) => output.ids.push(id),
                None => self.byte_fallback(&text[symbol.range()], &mut output.ids),
            }
        }
        run.text.clear();
        run.chain.clear();
        Ok(())
    }

    /// Byte fallback: the tokens of the bytes of a character without a piece, or the unknown
    /// token.
    fn byte_fallback(&self, character: &[u8], ids: &mut Vec<u32>) {
        let tokens = character.iter().map(|&byte| self.bytes[byte as usize]);
        match tokens.collect::<Option<Vec<u32>>>() {
            Some(tokens) => ids.extend(tokens),
            None => ids.extend(self.unknown),
        }
    }
}

/// Characters that tokens may span.
#[derive(Default)]
struct Run {
    text: String,
    chain: Chain,
}

impl Run {
    fn push(&mut self, vocabulary: &Vocabulary, c: char) {
        let start = self.text.len();
        self.text.push(c);
        let character = &self.text.as_bytes()[start..];
        self.chain.push(character.len(), vocabulary.find(character));
    }
}

/// A character as it is written in pieces.
fn escaped(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

/// Maps scores to integers in the opposite order.
fn priority(score: f32) -> u32 {
    // Adding zero makes -0.0 the equal of 0.0.
    let bits = (score + 0.0).to_bits();
    // The usual order-preserving map of floats to unsigned integers, inverted.
    let ascending = if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_score_comes_first() {
        let scores = [f32::INFINITY, 3.5, 0.0, -1e-20, -1.0, -1000.0];
        let priorities: Vec<u32> = scores.iter().map(|&score| priority(score)).collect();
        assert!(priorities.is_sorted());
        assert!(priorities.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(priority(-0.0), priority(0.0));
    }
}
