//! The way back through a product: `dX += dY·W`, for packed weights.
//!
//! Sums are over outputs here, each of which has a scale of its own: so weights are
//! rounded anew, some panels of outputs by a block of columns to 13 bits with one scale,
//! and what comes back to 14 bits, a scale for as many outputs of a row. Products are
//! added in whole numbers then, exactly, as on the way forward. Weights that were
//! prepared serve all rows, so that preparing them hardly counts where there are many;
//! rows to which nothing comes back from these outputs are left out.
//!
//! Results are the same on all instruction sets, but for codes with AMX.

use std::ops::Range;

use super::super::matrix::{BLOCK, Codes, Format, LANES, Matrix, UnitScales};
use super::rounded;
use super::tile::{Unpacked, UnpackedDense, unpack, unpack_dense};
use super::words::Words;

/// Panels whose products are added in whole numbers, where something comes back from all
/// outputs.
pub(super) const ALL: usize = 4;

/// The same where nothing comes back from most of them.
pub(super) const FEW: usize = 1;

/// Pairs of outputs of a panel: a word has two.
const PAIRS: usize = LANES / 2;

/// Blocks of columns that are prepared together: what comes back is read once for them.
const BLOCKS: usize = 4;

/// Rows whose sums are in registers together.
const ROWS: usize = 6;

/// Vectors in a block's row.
const VECTORS: usize = BLOCK / LANES;

/// What weights, and what comes back, are rounded to: their products' sums are below 2³¹.
const LARGEST_WEIGHT: f32 = 4095.0;
const LARGEST_FACTOR: f32 = 8191.0;

/// Below this, numbers are 0.
const LEAST: f32 = 1e-30;

/// The largest magnitude, or NaN if one is no number.
#[inline(always)]
fn largest(numbers: &[f32]) -> f32 {
    // By their bits, numbers without sign are in order, and what is none is above them.
    let mut largest = [0u32; LANES];
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    for chunk in chunks {
        for (largest, number) in largest.iter_mut().zip(chunk) {
            *largest = (*largest).max(number.to_bits() & 0x7FFF_FFFF);
        }
    }
    let rest = rest.iter().map(|number| number.to_bits() & 0x7FFF_FFFF);
    let largest = largest.into_iter().chain(rest).fold(0, u32::max);
    match f32::from_bits(largest) {
        least if least < LEAST => 0.0,
        infinite if infinite.is_infinite() => f32::NAN,
        largest => largest,
    }
}

/// A scale by which numbers no larger than `largest` become whole ones no larger than
/// `limit`, and what undoes it.
#[inline(always)]
fn scale(largest: f32, limit: f32) -> (f32, f32) {
    match largest {
        0.0 => (0.0, 0.0),
        _ => (limit / largest, largest / limit),
    }
}

/// Pairs of outputs of a part, side by side, `[panel][pair][row]`.
type Group<const PANELS: usize> = [[[u32; ROWS]; PAIRS]; PANELS];

/// What comes back, in whole numbers: `PANELS` panels of outputs are one part.
pub(super) struct Factors<const PANELS: usize> {
    /// The rows that have something, of each part.
    parts: Vec<Range<usize>>,
    /// Which rows these are, and what undoes their scale.
    rows: Vec<(u32, f32)>,
    /// For [`ROWS`] rows each. Each part begins with a group of its own.
    codes: Vec<Group<PANELS>>,
}

impl<const PANELS: usize> Factors<PANELS> {
    /// Rounds rows of `width` outputs. A row whose magnitudes in a part are all below its
    /// `least` has nothing there.
    #[inline(always)]
    pub(super) fn new(dy: &[f32], width: usize, least: impl Fn(usize) -> f32) -> Factors<PANELS> {
        let mut factors = Factors {
            parts: Vec::new(),
            rows: Vec::new(),
            codes: Vec::new(),
        };
        for start in (0..width).step_by(PANELS * LANES) {
            let outputs = start..width.min(start + PANELS * LANES);
            let first = factors.rows.len();
            for (row, dy) in dy.chunks_exact(width).enumerate() {
                let dy = &dy[outputs.clone()];
                let largest = largest(dy);
                if largest == 0.0 || largest < least(row) {
                    continue;
                }
                let (factor, undo) = scale(largest, LARGEST_FACTOR);
                let place = (factors.rows.len() - first) % ROWS;
                if place == 0 {
                    factors.codes.push([[[0; ROWS]; PAIRS]; PANELS]);
                }
                factors.rows.push((row as u32, undo));
                let mut halves = [[0; LANES]; PANELS];
                for (half, dy) in halves.as_flattened_mut().iter_mut().zip(dy) {
                    *half = rounded(dy * factor);
                }
                let group = factors.codes.last_mut().into_iter().flatten().flatten();
                for (word, [low, high]) in group.zip(halves.as_flattened().as_chunks::<2>().0) {
                    word[place] = u32::from(*low) | u32::from(*high) << 16;
                }
            }
            factors.parts.push(first..factors.rows.len());
        }
        factors
    }
}

/// Weights of some outputs and columns, in whole numbers.
#[repr(align(64))]
struct Prepared<const PANELS: usize> {
    /// Two outputs side by side, `[vector of columns][panel][pair][column]`.
    codes: [[[[u32; LANES]; PAIRS]; PANELS]; BLOCKS * VECTORS],
    /// What undoes the scale of each block.
    undo: [f32; BLOCKS],
}

/// Adds what some panels have to all rows of `dx`.
#[inline(always)]
pub(super) fn back<L: Words, const PANELS: usize>(
    lanes: L,
    matrix: &Matrix,
    panels: Range<usize>,
    factors: &Factors<PANELS>,
    dx: &mut [f32],
) {
    let columns = matrix.columns();
    let blocks = columns.div_ceil(BLOCK);
    let mut weights = Prepared {
        codes: [[[[0; LANES]; PAIRS]; PANELS]; BLOCKS * VECTORS],
        undo: [0.0; BLOCKS],
    };
    for first in (0..blocks).step_by(BLOCKS) {
        let blocks = first..blocks.min(first + BLOCKS);
        let mut codes = &factors.codes[..];
        for (part, rows) in factors.parts.iter().enumerate() {
            if rows.is_empty() {
                continue;
            }
            let start = panels.start + part * PANELS;
            let panels = start..panels.end.min(start + PANELS);
            prepare(lanes, matrix, panels, blocks.clone(), &mut weights);
            let groups = factors.rows[rows.clone()].chunks(ROWS);
            let (own, rest) = codes.split_at(groups.len());
            codes = rest;
            for (rows, codes) in groups.zip(own) {
                for vector in 0..blocks.len() * VECTORS {
                    let at = first * BLOCK + vector * LANES;
                    if at < columns {
                        add(lanes, &weights, vector, (rows, codes), (dx, columns, at));
                    }
                }
            }
        }
    }
}

/// Adds a vector of columns to some rows.
#[inline(always)]
fn add<L: Words, const PANELS: usize>(
    lanes: L,
    weights: &Prepared<PANELS>,
    vector: usize,
    (rows, codes): (&[(u32, f32)], &Group<PANELS>),
    (dx, columns, at): (&mut [f32], usize, usize),
) {
    let mut sums = [lanes.same(0); ROWS];
    let pairs = weights.codes[vector].as_flattened().iter();
    for (weights, codes) in pairs.zip(codes.as_flattened()) {
        let weights = lanes.words(weights);
        for (sum, &code) in sums.iter_mut().zip(codes) {
            *sum = lanes.add_products(*sum, weights, lanes.same(code));
        }
    }
    let undo = weights.undo[vector / VECTORS];
    let width = LANES.min(columns - at);
    for (&(row, factor), sum) in rows.iter().zip(sums) {
        let (sum, scale) = (lanes.numbers(sum), lanes.splat(factor * undo));
        let start = row as usize * columns + at;
        let dx = &mut dx[start..start + width];
        match dx.as_mut_array() {
            Some(dx) => lanes.store(lanes.mul_add(sum, scale, lanes.load(dx)), dx),
            None => {
                let mut whole = [0.0; LANES];
                whole[..width].copy_from_slice(dx);
                lanes.store(lanes.mul_add(sum, scale, lanes.load(&whole)), &mut whole);
                dx.copy_from_slice(&whole[..width]);
            }
        }
    }
}

/// Rounds the weights of some panels and blocks of columns.
#[inline(always)]
fn prepare<L: Words, const PANELS: usize>(
    lanes: L,
    matrix: &Matrix,
    panels: Range<usize>,
    blocks: Range<usize>,
    out: &mut Prepared<PANELS>,
) {
    let mut values = [const { UnpackedDense([[0.0; LANES]; BLOCK]) }; PANELS];
    if panels.len() < PANELS {
        // What is not there has no part.
        out.codes = [[[[0; LANES]; PAIRS]; PANELS]; BLOCKS * VECTORS];
    }
    let vectors = out.codes.as_chunks_mut::<VECTORS>().0;
    for ((block, vectors), undo) in blocks.zip(vectors).zip(&mut out.undo) {
        let mut most = 0.0f32;
        for (panel, values) in panels.clone().zip(&mut values) {
            expand(lanes, matrix, panel, block, values);
            let largest = largest(values.0.as_flattened());
            most = if most.is_nan() || most >= largest {
                most
            } else {
                largest
            };
        }
        let (factor, back) = scale(most, LARGEST_WEIGHT);
        *undo = back;
        for (panel, values) in values[..panels.len()].iter().enumerate() {
            let columns = values.0.as_chunks::<LANES>().0;
            for (vector, columns) in vectors.iter_mut().zip(columns) {
                round(columns, factor, &mut vector[panel]);
            }
        }
    }
}

/// Rounds a panel's weights of a vector of columns, `[column][output]`, to words of two
/// outputs: `[pair][column]`.
#[inline(always)]
fn round(columns: &[[f32; LANES]; LANES], factor: f32, out: &mut [[u32; LANES]; PAIRS]) {
    for (place, column) in columns.iter().enumerate() {
        let halves: [u16; LANES] = std::array::from_fn(|lane| rounded(column[lane] * factor));
        let pairs = halves.as_chunks::<2>().0;
        for (out, [low, high]) in out.iter_mut().zip(pairs) {
            out[place] = u32::from(*low) | u32::from(*high) << 16;
        }
    }
}

/// The weights of a block of a panel, column by column. What is beyond the matrix is 0.
#[inline(always)]
fn expand<L: Words>(
    lanes: L,
    matrix: &Matrix,
    panel: usize,
    block: usize,
    out: &mut UnpackedDense,
) {
    let bytes = matrix.panel(panel);
    match matrix.format() {
        Format::Codes(codes) => {
            expand_codes(lanes, codes, matrix.padded(), bytes, block, out);
        }
        Format::Dense(dense) => {
            let size = dense.width() * LANES * BLOCK;
            let block = &bytes[block * size..][..size];
            unpack_dense(lanes, dense, block, out);
        }
    }
}

#[inline(always)]
fn expand_codes<L: Words>(
    lanes: L,
    codes: Codes,
    padded: usize,
    panel: &[u8],
    block: usize,
    out: &mut UnpackedDense,
) {
    let (headers, blocks) = panel.split_at(codes.codes_at(padded));
    let per_unit = codes.unit() / BLOCK;
    let (unit, index) = (block / per_unit, block % per_unit);
    let mut scales = UnitScales::new();
    scales.read(lanes, codes, &headers[unit * codes.header_bytes()..]);
    let mut unpacked = Unpacked::EMPTY;
    let block = &blocks[block * codes.code_bytes()..][..codes.code_bytes()];
    unpack(lanes, codes, block, &mut unpacked);
    let pairs = unpacked.0.iter().zip(out.0.as_chunks_mut::<2>().0);
    for (pair, (words, [even, odd])) in pairs.enumerate() {
        let group = (index * BLOCK + 2 * pair) / codes.group;
        let (scale, minimum) = (&scales.scales[group], &scales.minima[group]);
        for lane in 0..LANES {
            let [low, high] = [words[lane] & 0xFFFF, words[lane] >> 16];
            let value = |code: u32| {
                let code = (code.cast_signed() - i32::from(codes.zero)) as f32;
                code.mul_add(scale[lane], minimum[lane])
            };
            even[lane] = value(low);
            odd[lane] = value(high);
        }
    }
}
