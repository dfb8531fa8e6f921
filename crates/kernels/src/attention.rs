//! Attention kernels: many query rows over a chunk of the keys, with online softmax.
//!
//! A chunk yields a *partial* result for each row, and partial results over different keys are
//! merged by log-sum-exp, as in flash attention. So rows of many sequences attend to the keys
//! of a shared prefix together, each sequence attends to its own keys alone, and several
//! threads can share the chunks of one row (split-KV decoding).
//!
//! The result of a row depends on its query, its visible keys and the bounds of the chunk,
//! never on the other rows of the call. All instruction sets compute the same bits.

mod blocks;
#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

pub use blocks::{
    TOKENS_PER_BLOCK, key_block_len, read_key, read_value, value_block_len, write_key, write_value,
};

use super::isa::{Isa, Tier};
use super::math::{dispatch, exp};

/// Keys per chunk: the keys that one partial result covers.
pub const CHUNK: usize = 128;

/// Keys and values of one head for a block of [`TOKENS_PER_BLOCK`] tokens, as f16.
///
/// Keys are `[head_dim][TOKENS_PER_BLOCK]`, values are
/// `[head_dim / 16, rounded up][TOKENS_PER_BLOCK][16]`. Data of tokens that no row sees is never
/// used, so a block need not be filled. Data of visible tokens must be finite; [`write_key`] and
/// [`write_value`] ensure this for every input except NaN.
#[derive(Clone, Copy, Debug, Default)]
pub struct Block<'a> {
    /// The keys: at least [`key_block_len`] elements.
    pub keys: &'a [u16],
    /// The values: at least [`value_block_len`] elements.
    pub values: &'a [u16],
}

/// Keys and values of one head for the [`CHUNK`] tokens of a chunk. The blocks may lie anywhere
/// in memory; blocks that no row sees may be empty.
#[derive(Clone, Copy, Debug)]
pub struct KvChunk<'a> {
    /// The blocks, in the order of their tokens.
    pub blocks: [Block<'a>; CHUNK / TOKENS_PER_BLOCK],
    /// Elements of a key and of a value; even.
    pub head_dim: usize,
}

/// The online-softmax state of some rows after some of their keys.
///
/// A row that has seen no keys has the maximum -∞, the sum 0 and zeros as values.
#[derive(Debug)]
pub struct Partials<'a> {
    /// The largest score of each row.
    pub maxima: &'a mut [f32],
    /// The sum of `exp(score − maximum)` of each row.
    pub sums: &'a mut [f32],
    /// The sum of `exp(score − maximum) · value` of each row: rows × head_dim.
    pub values: &'a mut [f32],
}

impl Partials<'_> {
    /// Returns the partial results of a range of the rows.
    pub fn rows(&mut self, rows: Range<usize>) -> Partials<'_> {
        let head_dim = self.values.len().checked_div(self.sums.len()).unwrap_or(0);
        Partials {
            maxima: &mut self.maxima[rows.clone()],
            sums: &mut self.sums[rows.clone()],
            values: &mut self.values[rows.start * head_dim..rows.end * head_dim],
        }
    }
}

/// Computes the partial results of all rows over a chunk of the keys and overwrites `out` with
/// them.
///
/// `queries` is rows × head_dim, already scaled. Row `r` sees the keys `visible[r]`, counted
/// from the first of the chunk. With a `cap`, each score becomes `cap · tanh(score / cap)`.
///
/// # Panics
/// The lengths do not match, or a block that some row sees is too short.
pub fn attend(
    isa: Isa,
    chunk: &KvChunk<'_>,
    queries: &[f32],
    visible: &[Range<u32>],
    cap: Option<f32>,
    out: &mut Partials<'_>,
) {
    let (rows, head_dim) = (visible.len(), chunk.head_dim);
    assert!(head_dim > 0 && queries.len() == rows * head_dim);
    assert!(out.maxima.len() == rows && out.sums.len() == rows);
    assert_eq!(out.values.len(), queries.len());
    dispatch!(isa, |lanes,
                    chunk: &KvChunk<'_>,
                    queries: &[f32],
                    visible: &[Range<u32>],
                    cap: Option<f32>,
                    out: &mut Partials<'_>| {
        tile::attend(lanes, chunk, queries, visible, cap, out)
    });
}

/// Merges the partial results `other` into `into`, row by row. The two must cover different
/// keys.
///
/// # Panics
/// Their shapes differ.
pub fn merge(isa: Isa, into: &mut Partials<'_>, other: &Partials<'_>) {
    let rows = into.sums.len();
    assert!(into.maxima.len() == rows && other.maxima.len() == rows && other.sums.len() == rows);
    assert_eq!(into.values.len(), other.values.len());
    if rows == 0 {
        return;
    }
    dispatch!(isa, |_, into: &mut Partials<'_>, other: &Partials<'_>| {
        let head_dim = into.values.len() / into.sums.len();
        for row in 0..into.sums.len() {
            let (old, new) = (into.maxima[row], other.maxima[row]);
            let values = &mut into.values[row * head_dim..][..head_dim];
            let others = &other.values[row * head_dim..][..head_dim];
            // Avoid -∞ − -∞, which is NaN; a row that has seen no keys must not change any bit
            // of the other.
            if new == f32::NEG_INFINITY {
                continue;
            }
            if old == f32::NEG_INFINITY {
                into.maxima[row] = new;
                into.sums[row] = other.sums[row];
                values.copy_from_slice(others);
                continue;
            }
            let maximum = if new > old { new } else { old };
            let (keep, take) = (exp(old - maximum), exp(new - maximum));
            into.maxima[row] = maximum;
            into.sums[row] = other.sums[row].mul_add(take, into.sums[row] * keep);
            for (value, other) in values.iter_mut().zip(others) {
                *value = other.mul_add(take, *value * keep);
            }
        }
    });
}

/// Finishes the attention of one row after all its keys: `out = values / sum`, or zeros for a
/// row that has seen no keys.
pub fn finish(isa: Isa, sum: f32, values: &[f32], out: &mut [f32]) {
    assert_eq!(values.len(), out.len());
    dispatch!(isa, |_, sum: f32, values: &[f32], out: &mut [f32]| {
        let divisor = if sum == 0.0 { 1.0 } else { sum };
        for (out, value) in out.iter_mut().zip(values) {
            *out = value / divisor;
        }
    });
}
