//! The backward pass of a product with packed weights: `dX += dY·W`.
//!
//! Sums run over outputs here, and every output has a scale of its own. So weights are
//! requantized: some panels of outputs by one block of columns to 13 bits with a single scale;
//! gradients to 14 bits, with one scale for these outputs of a row. Products are then summed
//! exactly, in integers, as in the forward pass. Prepared weights serve all rows, so the cost
//! of preparing them is small if there are many rows; rows whose gradients of these outputs are
//! zero are skipped.
//!
//! Results are the same on all instruction sets, except for codes with AMX.

use std::ops::Range;

use super::super::matrix::{COLUMNS_PER_BLOCK, Codes, Format, LANES, Matrix, UnitScales};
use super::rounded;
use super::tile::{Unpacked, UnpackedDense, unpack, unpack_dense};
use super::words::Words;

/// Panels whose products are summed in integers, for gradients that are dense.
pub(super) const DENSE_PANELS: usize = 4;

/// Panels whose products are summed in integers, for gradients that are sparse.
pub(super) const SPARSE_PANELS: usize = 1;

/// Pairs of outputs per panel: a word holds two.
const PAIRS: usize = LANES / 2;

/// Blocks of columns that are prepared together: the gradients are read once for all of them.
const BLOCKS_PER_STEP: usize = 4;

/// Rows whose sums are in registers together.
const ROWS_PER_GROUP: usize = 6;

/// Vectors per row of a block.
const VECTORS_PER_BLOCK: usize = COLUMNS_PER_BLOCK / LANES;

/// The limits that weights and gradients are rounded to: sums of their products stay below 2³¹.
const MAX_WEIGHT_CODE: f32 = 4095.0;
const MAX_GRADIENT_CODE: f32 = 8191.0;

/// Smaller values are treated as 0.
const MIN_MAGNITUDE: f32 = 1e-30;

/// Returns the largest magnitude, or NaN if an element is NaN.
#[inline(always)]
fn largest(numbers: &[f32]) -> f32 {
    // Without the sign bit, floats are ordered like their bits, and NaN is above all of them.
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
        least if least < MIN_MAGNITUDE => 0.0,
        infinite if infinite.is_infinite() => f32::NAN,
        largest => largest,
    }
}

/// Returns the factor that scales values up to `largest` to integers up to `limit`, and its
/// inverse.
#[inline(always)]
fn scale(largest: f32, limit: f32) -> (f32, f32) {
    match largest {
        0.0 => (0.0, 0.0),
        _ => (limit / largest, largest / limit),
    }
}

/// Pairs of outputs of a part: `[panel][pair][row]`.
type Group<const PANELS: usize> = [[[u32; ROWS_PER_GROUP]; PAIRS]; PANELS];

/// Quantized gradients of the outputs; a part is `PANELS` panels of outputs.
pub(super) struct QuantizedGradients<const PANELS: usize> {
    /// For each part, the range in `rows` of its rows with gradients.
    parts: Vec<Range<usize>>,
    /// The index of each row, and the inverse of its scale factor.
    rows: Vec<(u32, f32)>,
    /// One group for each [`ROWS_PER_GROUP`] rows. Every part begins a new group.
    codes: Vec<Group<PANELS>>,
}

impl<const PANELS: usize> QuantizedGradients<PANELS> {
    /// Quantizes rows of `width` outputs. A row is left out of a part if all its magnitudes
    /// there are zero or below `least` of the row.
    #[inline(always)]
    pub(super) fn new(
        dy: &[f32],
        width: usize,
        least: impl Fn(usize) -> f32,
    ) -> QuantizedGradients<PANELS> {
        let mut factors = QuantizedGradients {
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
                let (factor, undo) = scale(largest, MAX_GRADIENT_CODE);
                let place = (factors.rows.len() - first) % ROWS_PER_GROUP;
                if place == 0 {
                    factors.codes.push([[[0; ROWS_PER_GROUP]; PAIRS]; PANELS]);
                }
                factors.rows.push((row as u32, undo));
                let mut codes = [[0; LANES]; PANELS];
                for (code, dy) in codes.as_flattened_mut().iter_mut().zip(dy) {
                    *code = rounded(dy * factor);
                }
                let group = factors.codes.last_mut().into_iter().flatten().flatten();
                for (word, [low, high]) in group.zip(codes.as_flattened().as_chunks::<2>().0) {
                    word[place] = u32::from(*low) | u32::from(*high) << 16;
                }
            }
            factors.parts.push(first..factors.rows.len());
        }
        factors
    }
}

/// Quantized weights of some outputs and columns.
#[repr(align(64))]
struct Prepared<const PANELS: usize> {
    /// Pairs of outputs: `[vector of columns][panel][pair][column]`.
    codes: [[[[u32; LANES]; PAIRS]; PANELS]; BLOCKS_PER_STEP * VECTORS_PER_BLOCK],
    /// The inverse of the scale factor of each block.
    undo: [f32; BLOCKS_PER_STEP],
}

/// Adds the contribution of some panels to all rows of `dx`.
#[inline(always)]
pub(super) fn backward<L: Words, const PANELS: usize>(
    lanes: L,
    matrix: &Matrix,
    panels: Range<usize>,
    factors: &QuantizedGradients<PANELS>,
    dx: &mut [f32],
) {
    let columns = matrix.columns();
    let blocks = columns.div_ceil(COLUMNS_PER_BLOCK);
    let mut weights = Prepared {
        codes: [[[[0; LANES]; PAIRS]; PANELS]; BLOCKS_PER_STEP * VECTORS_PER_BLOCK],
        undo: [0.0; BLOCKS_PER_STEP],
    };
    for first in (0..blocks).step_by(BLOCKS_PER_STEP) {
        let blocks = first..blocks.min(first + BLOCKS_PER_STEP);
        let mut codes = &factors.codes[..];
        for (part, rows) in factors.parts.iter().enumerate() {
            if rows.is_empty() {
                continue;
            }
            let start = panels.start + part * PANELS;
            let panels = start..panels.end.min(start + PANELS);
            prepare(lanes, matrix, panels, blocks.clone(), &mut weights);
            let groups = factors.rows[rows.clone()].chunks(ROWS_PER_GROUP);
            let (own, rest) = codes.split_at(groups.len());
            codes = rest;
            for (rows, codes) in groups.zip(own) {
                for vector in 0..blocks.len() * VECTORS_PER_BLOCK {
                    let at = first * COLUMNS_PER_BLOCK + vector * LANES;
                    if at < columns {
                        add(lanes, &weights, vector, (rows, codes), (dx, columns, at));
                    }
                }
            }
        }
    }
}

/// Adds the contribution to one vector of columns of some rows.
#[inline(always)]
fn add<L: Words, const PANELS: usize>(
    lanes: L,
    weights: &Prepared<PANELS>,
    vector: usize,
    (rows, codes): (&[(u32, f32)], &Group<PANELS>),
    (dx, columns, at): (&mut [f32], usize, usize),
) {
    let mut sums = [lanes.splat_words(0); ROWS_PER_GROUP];
    let pairs = weights.codes[vector].as_flattened().iter();
    for (weights, codes) in pairs.zip(codes.as_flattened()) {
        let weights = lanes.load_words(weights);
        for (sum, &code) in sums.iter_mut().zip(codes) {
            *sum = lanes.add_products(*sum, weights, lanes.splat_words(code));
        }
    }
    let undo = weights.undo[vector / VECTORS_PER_BLOCK];
    let width = LANES.min(columns - at);
    for (&(row, factor), sum) in rows.iter().zip(sums) {
        let (sum, scale) = (lanes.to_f32(sum), lanes.splat(factor * undo));
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

/// Quantizes the weights of some panels and blocks of columns.
#[inline(always)]
fn prepare<L: Words, const PANELS: usize>(
    lanes: L,
    matrix: &Matrix,
    panels: Range<usize>,
    blocks: Range<usize>,
    out: &mut Prepared<PANELS>,
) {
    let mut values = [const { UnpackedDense([[0.0; LANES]; COLUMNS_PER_BLOCK]) }; PANELS];
    if panels.len() < PANELS {
        // Missing panels contribute nothing.
        out.codes = [[[[0; LANES]; PAIRS]; PANELS]; BLOCKS_PER_STEP * VECTORS_PER_BLOCK];
    }
    let vectors = out.codes.as_chunks_mut::<VECTORS_PER_BLOCK>().0;
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
        let (factor, inverse) = scale(most, MAX_WEIGHT_CODE);
        *undo = inverse;
        for (panel, values) in values[..panels.len()].iter().enumerate() {
            let columns = values.0.as_chunks::<LANES>().0;
            for (vector, columns) in vectors.iter_mut().zip(columns) {
                round(columns, factor, &mut vector[panel]);
            }
        }
    }
}

/// Rounds the weights of a panel for one vector of columns, `[column][output]`, to words of two
/// outputs: `[pair][column]`.
#[inline(always)]
fn round(columns: &[[f32; LANES]; LANES], factor: f32, out: &mut [[u32; LANES]; PAIRS]) {
    for (place, column) in columns.iter().enumerate() {
        let codes: [u16; LANES] = std::array::from_fn(|lane| rounded(column[lane] * factor));
        let pairs = codes.as_chunks::<2>().0;
        for (out, [low, high]) in out.iter_mut().zip(pairs) {
            out[place] = u32::from(*low) | u32::from(*high) << 16;
        }
    }
}

/// Dequantizes a block of a panel, column by column. Elements beyond the matrix are 0.
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
            let size = dense.width() * LANES * COLUMNS_PER_BLOCK;
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
    let per_unit = codes.unit() / COLUMNS_PER_BLOCK;
    let (unit, index) = (block / per_unit, block % per_unit);
    let mut scales = UnitScales::new();
    scales.read(lanes, codes, &headers[unit * codes.header_bytes()..]);
    let mut unpacked = Unpacked::EMPTY;
    let block = &blocks[block * codes.code_bytes()..][..codes.code_bytes()];
    unpack(lanes, codes, block, &mut unpacked);
    let pairs = unpacked.0.iter().zip(out.0.as_chunks_mut::<2>().0);
    for (pair, (words, [even, odd])) in pairs.enumerate() {
        let group = (index * COLUMNS_PER_BLOCK + 2 * pair) / codes.group;
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
