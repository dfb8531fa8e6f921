//! The sequences of an executor, with their ids and lengths, and the layout of a batch in rows.
//! The representation of the KV is up to the executor.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::{Chunk, ExecError, Precision, SequenceId, Wanted};

/// The sequences of an executor, each with KV of type `K`.
#[derive(Debug)]
pub(super) struct Ledger<K> {
    sequences: HashMap<SequenceId, Sequence<K>>,
    next_id: u64,
}

#[derive(Debug)]
pub(super) struct Sequence<K> {
    /// The number of tokens.
    pub(super) len: usize,
    pub(super) kv: K,
}

impl<K> Ledger<K> {
    pub(super) fn new() -> Ledger<K> {
        Ledger {
            sequences: HashMap::new(),
            next_id: 0,
        }
    }

    /// Adds a sequence of `len` tokens.
    pub(super) fn add(&mut self, len: usize, kv: K) -> SequenceId {
        self.next_id += 1;
        let id = SequenceId(self.next_id);
        self.sequences.insert(id, Sequence { len, kv });
        id
    }

    /// Returns a sequence.
    ///
    /// # Errors
    /// The sequence was never begun, or has ended.
    pub(super) fn sequence(&self, id: SequenceId) -> Result<&Sequence<K>, ExecError> {
        self.sequences.get(&id).ok_or_else(|| unknown(id))
    }

    /// Returns a sequence, mutably.
    pub(super) fn sequence_mut(&mut self, id: SequenceId) -> Result<&mut Sequence<K>, ExecError> {
        self.sequences.get_mut(&id).ok_or_else(|| unknown(id))
    }

    pub(super) fn sequences(&self) -> impl Iterator<Item = &Sequence<K>> {
        self.sequences.values()
    }

    /// Shortens a sequence to its first `tokens` tokens.
    pub(super) fn shorten(&mut self, id: SequenceId, tokens: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.len = sequence.len.min(tokens);
        }
    }

    /// Adds the tokens of a batch, after their KV was written, to the lengths of the sequences.
    pub(super) fn grow(&mut self, batch: &[Chunk<'_>]) {
        for chunk in batch {
            if let Some(sequence) = self.sequences.get_mut(&chunk.sequence) {
                sequence.len += chunk.tokens.len();
            }
        }
    }

    /// Removes a sequence if it exists.
    pub(super) fn end(&mut self, id: SequenceId) -> Option<Sequence<K>> {
        self.sequences.remove(&id)
    }

    /// Checks that a sequence can be forked after `tokens` tokens.
    ///
    /// # Errors
    /// There is no such sequence, or it is shorter.
    pub(super) fn check_fork(&self, id: SequenceId, tokens: usize) -> Result<(), ExecError> {
        if tokens > self.sequence(id)?.len {
            return Err(ExecError::Batch("a fork is longer than what it comes from"));
        }
        Ok(())
    }

    /// Lays out a batch, with its sequences in the order given by `order`. With
    /// `fast_apart`, rows of [`Precision::Fast`] come after all others.
    ///
    /// # Errors
    /// A sequence is unknown or occurs twice, a chunk is empty, or a token is not in the
    /// vocabulary.
    pub(super) fn lay_out(
        &self,
        batch: &[Chunk<'_>],
        vocab: usize,
        fast_apart: bool,
        order: impl Fn(&K, &K) -> Ordering,
    ) -> Result<Rows, ExecError> {
        let mut members = Vec::with_capacity(batch.len());
        let mut seen = HashSet::new();
        for chunk in batch {
            let sequence = self.sequence(chunk.sequence)?;
            if !seen.insert(chunk.sequence) {
                return Err(ExecError::Batch("a sequence occurs twice"));
            }
            if chunk.tokens.is_empty() {
                return Err(ExecError::Batch("a chunk holds no token"));
            }
            if chunk.tokens.iter().any(|&token| token as usize >= vocab) {
                return Err(ExecError::Batch("a token is not in the vocabulary"));
            }
            members.push((sequence, chunk));
        }
        if members.is_empty() {
            return Err(ExecError::Batch("it is empty"));
        }
        let is_fast = |index: usize| fast_apart && members[index].1.precision == Precision::Fast;
        let mut by_row: Vec<usize> = (0..members.len()).collect();
        by_row.sort_by(|&a, &b| {
            let precision = is_fast(a).cmp(&is_fast(b));
            precision.then_with(|| order(&members[a].0.kv, &members[b].0.kv))
        });

        let mut rows = Rows {
            tokens: Vec::new(),
            positions: Vec::new(),
            wanted: Vec::new(),
            states: Vec::new(),
            fast: 0,
            runs: Vec::with_capacity(members.len()),
        };
        let mut first_rows = vec![0; members.len()];
        for &index in &by_row {
            let (sequence, chunk) = members[index];
            let first = rows.tokens.len();
            first_rows[index] = first;
            rows.tokens.extend_from_slice(chunk.tokens);
            let positions = sequence.len..sequence.len + chunk.tokens.len();
            rows.positions.extend(positions);
            rows.runs.push(Run {
                sequence: chunk.sequence,
                rows: first..rows.tokens.len(),
                start: sequence.len,
            });
            if !is_fast(index) {
                rows.fast = rows.tokens.len();
            }
        }
        for (chunk, &first) in batch.iter().zip(&first_rows) {
            let of_chunk = first..first + chunk.tokens.len();
            match chunk.wanted {
                Wanted::None => {}
                Wanted::Last => rows.wanted.push(of_chunk.end - 1),
                Wanted::State => rows.states.push(of_chunk.end - 1),
                Wanted::All => rows.wanted.extend(of_chunk),
                Wanted::States => rows.states.extend(of_chunk),
            }
        }
        Ok(rows)
    }
}

fn unknown(id: SequenceId) -> ExecError {
    ExecError::Unknown(format!("sequence {}", id.0))
}

#[derive(Debug)]
pub(super) struct Rows {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<usize>,
    /// The rows whose logits are wanted, in the order of the batch.
    pub(super) wanted: Vec<usize>,
    /// The rows whose states are wanted, in the order of the batch.
    pub(super) states: Vec<usize>,
    /// The first row of [`Precision::Fast`], if these are laid out apart; else the number of rows.
    pub(super) fast: usize,
    /// The chunks, in row order.
    pub(super) runs: Vec<Run>,
}

/// The rows of one chunk.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) sequence: SequenceId,
    pub(super) rows: Range<usize>,
    /// The position of the first row: the number of earlier tokens of the sequence.
    pub(super) start: usize,
}

impl Run {
    /// The position after the last row.
    pub(super) fn end(&self) -> usize {
        self.start + self.rows.len()
    }
}
