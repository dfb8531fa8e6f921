//! The way back through a product: `dX += dY·W`, for packed weights.
//!
//! Some columns of a panel are expanded to numbers, 16 rows of them, and serve all rows
//! of the batch; so what expanding costs hardly counts where there are many. Sums are in
//! single precision, panel by panel, in the same order on all instruction sets.

use std::ops::Range;

use super::super::matrix::{BLOCK, Codes, Format, LANES, Matrix, UnitScales};
use super::tile::{Unpacked, UnpackedDense, unpack, unpack_dense};
use super::words::Words;

/// Blocks of columns that are expanded together: rows of dY are read once for them.
pub(super) const BLOCKS: usize = 4;

/// Rows that take a panel's weights from registers together.
const ROWS: usize = 3;

/// Vectors in a block's row.
const VECTORS: usize = BLOCK / LANES;

/// Weights of a panel: `[block][row][column]`.
#[repr(align(64))]
struct Expanded([[[f32; BLOCK]; LANES]; BLOCKS]);

/// Adds what some panels have to columns `first * BLOCK` and those that follow, as many as
/// the rows of `dx` are wide. `dy` has a row of the panels' outputs for each row of `dx`.
#[inline(always)]
pub(super) fn back<L: Words>(
    lanes: L,
    matrix: &Matrix,
    panels: Range<usize>,
    dy: &[f32],
    first: usize,
    dx: &mut [[f32; BLOCKS * BLOCK]],
) {
    let start = panels.start * LANES;
    let width = matrix.rows().min(panels.end * LANES) - start;
    let blocks = BLOCKS.min((matrix.padded() / BLOCK).saturating_sub(first));
    let mut weights = Expanded([[[0.0; BLOCK]; LANES]; BLOCKS]);
    for panel in panels {
        for (block, weights) in weights.0[..blocks].iter_mut().enumerate() {
            expand(lanes, matrix, panel, first + block, weights);
        }
        let at = panel * LANES - start;
        let outputs = LANES.min(width - at);
        let mut factors = [[0.0; LANES]; ROWS];
        for (group, rows) in dx.chunks_mut(ROWS).enumerate() {
            for (row, factors) in factors.iter_mut().enumerate().take(rows.len()) {
                let dy = &dy[(group * ROWS + row) * width + at..][..outputs];
                factors[..outputs].copy_from_slice(dy);
            }
            for (block, weights) in weights.0[..blocks].iter().enumerate() {
                match &mut *rows {
                    [a, b, c] => add(lanes, weights, &factors, block, [a, b, c]),
                    rows => {
                        for (row, factors) in rows.iter_mut().zip(&factors) {
                            add(lanes, weights, &[*factors], block, [row]);
                        }
                    }
                }
            }
        }
    }
}

/// Adds a panel's block to `R` rows.
#[inline(always)]
fn add<L: Words, const R: usize>(
    lanes: L,
    weights: &[[f32; BLOCK]; LANES],
    factors: &[[f32; LANES]; R],
    block: usize,
    dx: [&mut [f32; BLOCKS * BLOCK]; R],
) {
    let at = block * VECTORS;
    let mut sums = [[lanes.zero(); VECTORS]; R];
    for (sums, dx) in sums.iter_mut().zip(&dx) {
        let vectors = &dx.as_chunks::<LANES>().0[at..at + VECTORS];
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = lanes.load(vector);
        }
    }
    for (output, weights) in weights.iter().enumerate() {
        let weights = weights.as_chunks::<LANES>().0;
        let weights: [L::Vector; VECTORS] = std::array::from_fn(|at| lanes.load(&weights[at]));
        for (sums, factors) in sums.iter_mut().zip(factors) {
            let factor = lanes.splat(factors[output]);
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = lanes.mul_add(factor, weight, *sum);
            }
        }
    }
    for (sums, dx) in sums.into_iter().zip(dx) {
        let vectors = &mut dx.as_chunks_mut::<LANES>().0[at..at + VECTORS];
        for (sum, vector) in sums.into_iter().zip(vectors) {
            lanes.store(sum, vector);
        }
    }
}

/// The weights of a block of a panel, row by row. What is beyond the matrix is 0.
#[inline(always)]
fn expand<L: Words>(
    lanes: L,
    matrix: &Matrix,
    panel: usize,
    block: usize,
    out: &mut [[f32; BLOCK]; LANES],
) {
    let mut columns = UnpackedDense([[0.0; LANES]; BLOCK]);
    let bytes = matrix.panel(panel);
    match matrix.format() {
        Format::Codes(codes) => {
            expand_codes(lanes, codes, matrix.padded(), bytes, block, &mut columns);
        }
        Format::Dense(dense) => {
            let size = dense.width() * LANES * BLOCK;
            let block = &bytes[block * size..][..size];
            unpack_dense(lanes, dense, block, &mut columns);
        }
    }
    for (row, out) in out.iter_mut().enumerate() {
        for (out, column) in out.iter_mut().zip(&columns.0) {
            *out = column[row];
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
    for (pair, (words, out)) in unpacked
        .0
        .iter()
        .zip(out.0.as_chunks_mut::<2>().0)
        .enumerate()
    {
        let group = (index * BLOCK + 2 * pair) / codes.group;
        let (scale, minimum) = (&scales.scales[group], &scales.minima[group]);
        let [even, odd] = out;
        for lane in 0..LANES {
            let [low, high] = [words[lane] as u16, (words[lane] >> 16) as u16];
            let value = |half: u16| {
                let code = f32::from(half.cast_signed() - codes.zero);
                code.mul_add(scale[lane], minimum[lane])
            };
            even[lane] = value(low);
            odd[lane] = value(high);
        }
    }
}
