//! Finds where the last tokens of a text occurred before.

use std::collections::HashMap;

/// The maximum number of equal tokens that are counted.
const MAX_LENGTH: usize = 32;

/// The maximum number of earlier occurrences that are compared, the most recent first.
const MAX_OCCURRENCES: usize = 64;

/// A growing text, indexed by its pairs of tokens.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    tokens: Vec<u32>,
    /// The position after the most recent occurrence of each pair.
    recent: HashMap<[u32; 2], u32>,
    /// For each token the position after the previous occurrence of the pair that it ends, or 0.
    previous: Vec<u32>,
}

/// An earlier occurrence of the last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// The position after it.
    pub(super) end: usize,
    /// The number of equal tokens, at least two.
    pub(super) length: usize,
}

impl Lookup {
    /// Appends tokens.
    pub(super) fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            let end = self.tokens.len() as u32 + 1;
            let before = self.tokens.last().copied();
            let previous = before.and_then(|before| self.recent.insert([before, token], end));
            self.previous.push(previous.unwrap_or(0));
            self.tokens.push(token);
        }
    }

    /// Returns the longest earlier occurrence of the last tokens, of equally long ones the most
    /// recent.
    pub(super) fn longest(&self) -> Option<Match> {
        let earlier = |end: usize| Some(self.previous[end.checked_sub(1)?] as usize);
        let follow = |end: &usize| earlier(*end).filter(|&end| end > 0);
        let ends = std::iter::successors(follow(&self.tokens.len()), follow);
        let mut best: Option<Match> = None;
        for end in ends.take(MAX_OCCURRENCES) {
            let earlier = self.tokens[..end].iter().rev();
            let same = earlier.zip(self.tokens.iter().rev()).take(MAX_LENGTH);
            let length = same.take_while(|(a, b)| a == b).count();
            if best.is_none_or(|best| length > best.length) {
                best = Some(Match { end, length });
            }
            if length == MAX_LENGTH {
                break;
            }
        }
        best
    }

    /// Iterates over the tokens that followed an occurrence. Where it reaches into the last
    /// tokens, the text is continued as if it repeated itself, without an end.
    pub(super) fn continuation(&self, found: Match) -> impl Iterator<Item = u32> {
        let following = self.tokens[found.end..].iter().cycle().copied();
        following.take_while(|&token| token != super::GAP)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plainest search.
    fn longest(tokens: &[u32]) -> Option<Match> {
        let mut best: Option<Match> = None;
        for end in (0..tokens.len()).rev() {
            let same = |length: &usize| tokens[..end].ends_with(&tokens[tokens.len() - length..]);
            let length = (0..=end.min(MAX_LENGTH))
                .take_while(same)
                .last()
                .unwrap_or(0);
            if length >= 2 && best.is_none_or(|best| length > best.length) {
                best = Some(Match { end, length });
            }
        }
        best
    }

    proptest! {
        #[test]
        fn the_longest_and_most_recent_occurrence_is_found(
            tokens in prop::collection::vec(0..4_u32, 0..100),
        ) {
            let mut lookup = Lookup::default();
            for part in tokens.chunks(7) {
                lookup.extend(part);
            }
            prop_assert_eq!(lookup.longest(), longest(&tokens));
        }
    }

    #[test]
    fn a_repetition_goes_on() {
        let mut lookup = Lookup::default();
        lookup.extend(&[5, 1, 2, 1, 2, 1]);
        let found = lookup.longest().expect("it occurred");
        assert_eq!((found.end, found.length), (4, 3));
        let continued: Vec<u32> = lookup.continuation(found).take(5).collect();
        assert_eq!(continued, [2, 1, 2, 1, 2]);
    }
}
