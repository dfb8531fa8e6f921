//! The attention kernel: a tile of a few rows over all keys of a chunk.

use std::ops::Range;

use super::{CHUNK, KvChunk, Partials, TOKENS_PER_BLOCK, key_block_len, value_block_len};
use crate::math::{LANES, Lanes, exp, soft_cap_one, sum_lanes};

/// Blocks per chunk.
const BLOCKS_PER_CHUNK: usize = CHUNK / TOKENS_PER_BLOCK;

/// Dimensions between two prefetches.
const DIMS_PER_PREFETCH: usize = 16;

/// f16 elements per cache line.
const ELEMENTS_PER_CACHE_LINE: usize = 32;

/// The scores of one row, later replaced by their weights: `[block][key]`.
type Scores = [[f32; LANES]; BLOCKS_PER_CHUNK];

/// [`super::attend`] with the given instructions.
#[inline(always)]
pub(super) fn attend<L: Lanes>(
    lanes: L,
    chunk: &KvChunk<'_>,
    queries: &[f32],
    visible: &[Range<u32>],
    cap: Option<f32>,
    out: &mut Partials<'_>,
) {
    let rows = visible.len();
    let tiles = rows.div_ceil(L::MAX_TILE_ROWS);
    let mut start = 0;
    for index in 0..tiles {
        // Tiles are as even in height as possible.
        let end = rows * (index + 1) / tiles;
        let tile = Tile {
            lanes,
            chunk: *chunk,
            queries: &queries[start * chunk.head_dim..end * chunk.head_dim],
            visible: &visible[start..end],
            cap,
            prefetch: index == 0,
        };
        let out = out.rows(start..end);
        let height = end - start;
        // Lets the compiler drop the arms of taller tiles.
        assert!(height <= L::MAX_TILE_ROWS);
        // With few rows, several vectors of keys or values are processed side by side, so that
        // there are enough independent sums to hide the latency of additions.
        match (height, L::WIDE) {
            (1, false) => tile.run::<1, 4>(out),
            (2, false) => tile.run::<2, 2>(out),
            (3, false) => tile.run::<3, 1>(out),
            (4, false) => tile.run::<4, 1>(out),
            (5, false) => tile.run::<5, 1>(out),
            (6, false) => tile.run::<6, 1>(out),
            (1, true) => tile.run::<1, 8>(out),
            (2, true) => tile.run::<2, 4>(out),
            (3, true) => tile.run::<3, 4>(out),
            (4, true) => tile.run::<4, 2>(out),
            (5, true) => tile.run::<5, 2>(out),
            (6, true) => tile.run::<6, 2>(out),
            _ => unreachable!("a tile has from 1 to 6 rows"),
        }
        start = end;
    }
}

/// Rows whose sums share the registers.
struct Tile<'a, L> {
    lanes: L,
    chunk: KvChunk<'a>,
    queries: &'a [f32],
    visible: &'a [Range<u32>],
    /// The soft cap of the scores.
    cap: Option<f32>,
    /// Whether keys and values should be prefetched.
    prefetch: bool,
}

impl<L: Lanes> Tile<'_, L> {
    /// Computes the `ROWS` rows of the tile, with up to `SIDE` vectors side by side.
    #[inline(always)]
    fn run<const ROWS: usize, const SIDE: usize>(&self, out: Partials<'_>) {
        let head_dim = self.chunk.head_dim;
        let seen: [Range<usize>; ROWS] = std::array::from_fn(|row| self.seen(row));
        let some = || seen.iter().filter(|seen| !seen.is_empty());
        // All keys that any row sees.
        let first = some().map(|seen| seen.start).min().unwrap_or(0);
        let end = some().map(|seen| seen.end).max().unwrap_or(0);
        let blocks = first / TOKENS_PER_BLOCK..end.div_ceil(TOKENS_PER_BLOCK);

        let mut scores: [Scores; ROWS] = [[[0.0; LANES]; BLOCKS_PER_CHUNK]; ROWS];
        let whole = blocks.len() - blocks.len() % SIDE;
        for at in (0..whole).step_by(SIDE) {
            self.scores::<ROWS, SIDE>(blocks.start + at, at, &mut scores);
        }
        for at in whole..blocks.len() {
            self.scores::<ROWS, 1>(blocks.start + at, at, &mut scores);
        }
        for row in 0..ROWS {
            let scores = &mut scores[row][..blocks.len()];
            if let Some(cap) = self.cap {
                let all = scores.as_flattened_mut().iter_mut();
                all.for_each(|score| *score = soft_cap_one(*score, cap));
            }
            (out.maxima[row], out.sums[row]) =
                softmax(scores, blocks.start * TOKENS_PER_BLOCK, &seen[row]);
        }
        let groups = head_dim.div_ceil(LANES);
        let whole = groups - groups % SIDE;
        for group in (0..whole).step_by(SIDE) {
            self.values::<ROWS, SIDE>(first..end, &scores, group, out.values);
        }
        for group in whole..groups {
            self.values::<ROWS, 1>(first..end, &scores, group, out.values);
        }
    }

    /// Returns the keys of the chunk that a row sees.
    #[inline(always)]
    fn seen(&self, row: usize) -> Range<usize> {
        let visible = &self.visible[row];
        visible.start as usize..CHUNK.min(visible.end as usize)
    }

    /// Computes the dot products of all rows with the keys of `SIDE` blocks, from `block` on.
    #[inline(always)]
    fn scores<const ROWS: usize, const SIDE: usize>(
        &self,
        block: usize,
        at: usize,
        scores: &mut [Scores; ROWS],
    ) {
        let (lanes, head_dim) = (self.lanes, self.chunk.head_dim);
        let keys: [&[[u16; LANES]]; SIDE] = std::array::from_fn(|side| {
            let keys = self.chunk.blocks[block + side].keys;
            &keys[..key_block_len(head_dim)].as_chunks().0[..head_dim]
        });
        let queries: [&[f32]; ROWS] =
            std::array::from_fn(|row| &self.queries[row * head_dim..][..head_dim]);
        let mut sums = [[lanes.zero(); SIDE]; ROWS];
        for first in (0..head_dim).step_by(DIMS_PER_PREFETCH) {
            if self.prefetch {
                self.prefetch(block..block + SIDE, first);
            }
            for dim in first..head_dim.min(first + DIMS_PER_PREFETCH) {
                let mut vectors = [lanes.zero(); SIDE];
                for side in 0..SIDE {
                    vectors[side] = lanes.load_f16(&keys[side][dim]);
                }
                for row in 0..ROWS {
                    let query = lanes.splat(queries[row][dim]);
                    for side in 0..SIDE {
                        sums[row][side] = lanes.mul_add(query, vectors[side], sums[row][side]);
                    }
                }
            }
        }
        for row in 0..ROWS {
            for side in 0..SIDE {
                lanes.store(sums[row][side], &mut scores[row][at + side]);
            }
        }
    }

    /// At dimension `dim` of some blocks of keys, prefetches the values of these blocks and the
    /// same share of the keys of the following blocks. The hardware prefetcher cannot predict
    /// these accesses: blocks are far apart, and values are not read in order.
    #[inline(always)]
    fn prefetch(&self, blocks: Range<usize>, dim: usize) {
        let ahead = blocks.len();
        for block in blocks {
            let values = self.chunk.blocks[block].values.as_ptr();
            // After the last block, the choice does not matter.
            let next = (block + ahead).min(BLOCKS_PER_CHUNK - 1);
            let keys = self.chunk.blocks[next].keys.as_ptr();
            for line in (dim * TOKENS_PER_BLOCK..(dim + DIMS_PER_PREFETCH) * TOKENS_PER_BLOCK)
                .step_by(ELEMENTS_PER_CACHE_LINE)
            {
                self.lanes.prefetch(values.wrapping_add(line));
                self.lanes.prefetch(keys.wrapping_add(line));
            }
        }
    }

    /// Sums the values of `keys`, weighted by `weights`, for `SIDE` groups of 16 dimensions
    /// from `group` on. The first element of `weights` belongs to the first key of the block
    /// that holds `keys.start`.
    #[inline(always)]
    fn values<const ROWS: usize, const SIDE: usize>(
        &self,
        keys: Range<usize>,
        weights: &[Scores; ROWS],
        group: usize,
        out: &mut [f32],
    ) {
        let (lanes, head_dim) = (self.lanes, self.chunk.head_dim);
        let mut sums = [[lanes.zero(); SIDE]; ROWS];
        let first_block = keys.start / TOKENS_PER_BLOCK;
        for block in first_block..keys.end.div_ceil(TOKENS_PER_BLOCK) {
            let values = &self.chunk.blocks[block].values[..value_block_len(head_dim)];
            let values = values.as_chunks::<LANES>().0;
            let values: [&[[u16; LANES]; TOKENS_PER_BLOCK]; SIDE] =
                std::array::from_fn(|side| &values.as_chunks().0[group + side]);
            let weights: [&[f32; TOKENS_PER_BLOCK]; ROWS] =
                std::array::from_fn(|row| &weights[row][block - first_block]);
            // Values that no row sees may be NaN, which a weight of 0 would not remove.
            let start = keys.start.saturating_sub(block * TOKENS_PER_BLOCK);
            let end = (keys.end - block * TOKENS_PER_BLOCK).min(TOKENS_PER_BLOCK);
            for key in start..end {
                let mut vectors = [lanes.zero(); SIDE];
                for side in 0..SIDE {
                    vectors[side] = lanes.load_f16(&values[side][key]);
                }
                for row in 0..ROWS {
                    let weight = lanes.splat(weights[row][key]);
                    for side in 0..SIDE {
                        sums[row][side] = lanes.mul_add(weight, vectors[side], sums[row][side]);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (side, sum) in sums.into_iter().enumerate() {
                // Keys that only other rows see add 0, which may or may not turn a sum of -0
                // into +0. Normalize all such sums to +0.
                let sum = lanes.mul_add(sum, lanes.splat(1.0), lanes.zero());
                let dim = (group + side) * LANES;
                let out = &mut out[row * head_dim..][..head_dim][dim..];
                if let Some(out) = out.first_chunk_mut() {
                    lanes.store(sum, out);
                } else {
                    let mut padded = [0.0; LANES];
                    lanes.store(sum, &mut padded);
                    out.copy_from_slice(&padded[..out.len()]);
                }
            }
        }
    }
}

/// Converts the scores of one row to weights, `exp(score − maximum)`, and returns the maximum
/// and the sum of the weights. The scores belong to the keys from `first` on; keys that the row
/// does not see get the weight 0, whatever their score.
#[inline(always)]
fn softmax(scores: &mut [[f32; LANES]], first: usize, seen: &Range<usize>) -> (f32, f32) {
    let (start, end) = (seen.start as u32, seen.end as u32);
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for (block, scores) in scores.iter_mut().enumerate() {
        let first = (first + block * TOKENS_PER_BLOCK) as u32;
        for lane in 0..LANES {
            let key = first + lane as u32;
            let seen = (start <= key) & (key < end);
            let score = if seen {
                scores[lane]
            } else {
                f32::NEG_INFINITY
            };
            scores[lane] = score;
            maxima[lane] = if score > maxima[lane] {
                score
            } else {
                maxima[lane]
            };
        }
    }
    let larger = |a, b| if a > b { a } else { b };
    let maximum = maxima.into_iter().fold(f32::NEG_INFINITY, larger);
    // A row that sees no keys must not compute -∞ − -∞.
    let base = if maximum == f32::NEG_INFINITY {
        0.0
    } else {
        maximum
    };
    let mut sums = [0.0; LANES];
    for scores in scores {
        for lane in 0..LANES {
            let weight = exp(scores[lane] - base);
            scores[lane] = weight;
            sums[lane] += weight;
        }
    }
    (maximum, sum_lanes(sums))
}
