//! The rows that a batch is computed as: common prefixes of sequences are computed once.

use std::ops::Range;

use crate::Batch;

/// The tokens of a batch, one per row. A prefix that sequences share is there once: the prompt
/// of a chosen and a rejected answer, or a profile in front of every question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) tokens: Vec<u32>,
    /// The position of each row in its sequence.
    pub(super) positions: Vec<usize>,
    pub(super) sequences: Vec<Sequence>,
    /// The rows before each token that counts, and that token.
    pub(super) counted: Vec<(usize, u32)>,
}

/// The rows of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    /// The row of each token.
    pub(super) rows: Vec<usize>,
    /// The first tokens, whose rows belong to other sequences too.
    pub(super) shared: usize,
}

impl Sequence {
    /// The rows that only this sequence has; they are consecutive.
    pub(super) fn own(&self) -> Range<usize> {
        let first = self.rows.get(self.shared).copied().unwrap_or(0);
        first..first + self.rows.len() - self.shared
    }
}

impl Rows {
    pub(super) fn new(batch: &Batch) -> Rows {
        let mut rows = Rows::default();
        for (number, sample) in batch.sequences.iter().enumerate() {
            let before = batch.sequences[..number].iter().zip(&rows.sequences);
            let alike = before.map(|(other, sequence)| {
                let both = other.tokens.iter().zip(&sample.tokens);
                (both.take_while(|(a, b)| a == b).count(), sequence)
            });
            let longest = alike.max_by_key(|&(length, _)| length);
            let (shared, mut path) = longest.map_or((0, Vec::new()), |(length, sequence)| {
                (length, sequence.rows[..length].to_vec())
            });
            let own = rows.tokens.len()..rows.tokens.len() + sample.tokens.len() - shared;
            path.extend(own);
            rows.tokens.extend(&sample.tokens[shared..]);
            rows.positions.extend(shared..sample.tokens.len());
            let tokens = sample.tokens.iter().zip(&sample.counts).enumerate();
            let counted = tokens.filter(|(_, (_, counts))| **counts);
            let counted = counted.map(|(place, (&token, _))| (path[place - 1], token));
            rows.counted.extend(counted);
            rows.sequences.push(Sequence { rows: path, shared });
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sample;

    #[test]
    fn what_sequences_have_in_common_is_there_once() {
        let sequence = |tokens: &[u32], from: usize| Sample {
            tokens: tokens.to_vec(),
            counts: (0..tokens.len()).map(|place| place >= from).collect(),
        };
        let rows = Rows::new(&Batch {
            sequences: vec![
                sequence(&[1, 2, 3, 4], 3),
                sequence(&[1, 2, 5], 2),
                sequence(&[7, 2], 1),
                sequence(&[1, 2, 5, 6], 3),
                sequence(&[1, 2], 1),
            ],
        });
        assert_eq!(rows.tokens, [1, 2, 3, 4, 5, 7, 2, 6]);
        assert_eq!(rows.positions, [0, 1, 2, 3, 2, 0, 1, 3]);
        let found: Vec<_> = rows
            .sequences
            .iter()
            .map(|s| (&s.rows[..], s.own()))
            .collect();
        assert_eq!(found[0], (&[0, 1, 2, 3][..], 0..4));
        assert_eq!(found[1], (&[0, 1, 4][..], 4..5));
        assert_eq!(found[2], (&[5, 6][..], 5..7));
        assert_eq!(found[3], (&[0, 1, 4, 7][..], 7..8));
        assert!(found[4].0 == [0, 1] && found[4].1.is_empty());
        assert_eq!(rows.counted, [(2, 4), (1, 5), (5, 2), (4, 6), (0, 2)]);
    }
}
