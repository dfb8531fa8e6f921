//! SentencePiece-BPE: characters merged by the score of what they become.

use super::merge::{Chain, Merge};
use super::vocabulary::Vocabulary;

/// SentencePiece writes a space as this character.
pub(super) const SPACE: char = '\u{2581}';

/// How a `llama` vocabulary encodes text.
#[derive(Debug)]
pub(super) struct Spm {
    /// By token: the order of its score among all, the best score lowest.
    priorities: Vec<u32>,
    /// By byte: its `<0xNN>` token.
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    /// Whether a text gets a space before it, also after a special token.
    pub(super) space_prefix: bool,
}

impl Spm {
    /// `scores` holds one number (never NaN) per token.
    pub(super) fn new(
        scores: &[f32],
        bytes: Box<[Option<u32>; 256]>,
        unknown: Option<u32>,
        space_prefix: bool,
    ) -> Spm {
        Spm {
            priorities: scores.iter().map(|&score| priority(score)).collect(),
            bytes,
            unknown,
            space_prefix,
        }
    }

    /// Appends the ids of `text`, in which no special token is left. `first`
    /// says that it begins the whole text or follows a special token.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        first: bool,
        ids: &mut Vec<u32>,
    ) {
        let mut escaped = String::with_capacity(text.len() + text.len() / 4 + 3);
        if first && self.space_prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));

        let escaped = escaped.as_bytes();
        let mut chain = Chain::default();
        let mut at = 0;
        while at < escaped.len() {
            let len = char_len(escaped[at]);
            chain.push(len, vocabulary.find(&escaped[at..at + len]));
            at += len;
        }
        chain.merge(|left, right| {
            let id = vocabulary.find(&escaped[left.start..right.start + right.len])?;
            let priority = self.priorities[id as usize];
            Some(Merge { priority, id })
        });
        for symbol in chain.iter() {
            match symbol.id() {
                Some(id) => ids.push(id),
                None => {
                    let bytes = &escaped[symbol.start..symbol.start + symbol.len];
                    self.fall_back(bytes, ids);
                }
            }
        }
    }

    /// A character without a piece: its bytes, or the unknown token.
    fn fall_back(&self, character: &[u8], ids: &mut Vec<u32>) {
        let tokens = character.iter().map(|&byte| self.bytes[byte as usize]);
        match tokens.collect::<Option<Vec<u32>>>() {
            Some(tokens) => ids.extend(tokens),
            None => ids.extend(self.unknown),
        }
    }
}

/// The bytes of the UTF-8 character that begins with `lead`.
fn char_len(lead: u8) -> usize {
    match lead {
        0x00..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    }
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
