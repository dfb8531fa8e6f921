//! Products of packed weights with activations, `y = W·x` for each row.
//!
//! Weights of codes are multiplied in whole numbers: activations are rounded to
//! 16 bits with a scale for every 32 of them, and the sum over a group of
//! columns is exact. A block of weights is unpacked once, into 1 KiB that stays
//! in the first-level cache, and then serves all rows. So one row costs what
//! reading the weights costs, a few rows hardly more, and many rows what the
//! multiplications cost.
//!
//! A row's result does not depend on the rows beside it.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
#[cfg(test)]
mod tests;

pub use activations::{Activations, Kind, Writer};

use super::isa::{Isa, Tier};
use super::matrix::{BLOCK, Codes, Dense, Format, LANES, Matrix, UnitScales};

/// Pairs of columns in a block.
const PAIRS: usize = BLOCK / 2;

/// A block's codes as numbers, pairs of columns side by side.
#[repr(align(64))]
struct Unpacked([[[i16; 2]; LANES]; PAIRS]);

/// A block's dense weights.
#[repr(align(64))]
struct UnpackedDense([[f32; LANES]; BLOCK]);

/// Some rows' activations of one block.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// `[pair][row][2]`.
    codes: &'a [i16],
    /// `[row]`.
    scales: &'a [f32],
    /// `[row][half of the block]`: scale · sum of codes.
    sums: &'a [[f32; 2]],
}

/// The innermost loops, for one instruction set.
///
/// # Safety
/// Functions may be called only where the instruction set is present, and from
/// a function that has it enabled (or they will not be inlined).
trait Ops {
    /// Rows of the largest tile: what registers can hold the sums of.
    const TALLEST: usize;

    /// 16 half-precision numbers.
    unsafe fn halves(bytes: &[u8; 2 * LANES]) -> [f32; LANES];

    /// Asks for the bytes at `ahead` bytes past a block of `len` bytes.
    unsafe fn prefetch(block: &[u8]);

    /// Unpacks a block of codes and subtracts `zero`.
    unsafe fn unpack(codes: Codes, block: &[u8], out: &mut Unpacked);

    /// Unpacks a block of dense weights.
    unsafe fn unpack_dense(dense: Dense, block: &[u8], out: &mut UnpackedDense);

    /// Adds a block's product with `R` rows to `out`. The block has one group
    /// of 32 columns or two of 16, with their scales and minima.
    unsafe fn tile<const R: usize, const GROUPS: usize, const MINIMUM: bool>(
        weights: &Unpacked,
        scales: &[[f32; LANES]],
        minima: &[[f32; LANES]],
        tile: Tile<'_>,
        out: &mut [[f32; LANES]],
    );

    /// Adds a dense block's product with `R` rows, `[column][row]`, to `out`.
    unsafe fn tile_dense<const R: usize>(
        weights: &UnpackedDense,
        tile: &[f32],
        out: &mut [[f32; LANES]],
    );
}

/// Computes the outputs of panel `panel` for all rows: `out[row][lane]`.
///
/// # Panics
/// The matrix and the activations do not fit, or `out` has another length than
/// there are rows.
pub fn panel(
    isa: Isa,
    matrix: &Matrix,
    panel: usize,
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    assert_eq!(matrix.columns(), rows.columns(), "the shapes fit");
    assert_eq!(out.len(), rows.rows(), "a result for each row");
    match isa.tier() {
        // SAFETY: plain Rust.
        Tier::Scalar => unsafe { run::<scalar::Scalar>(matrix, panel, rows, out) },
        // SAFETY: an `Isa` is proof that its instructions are there.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => unsafe { avx2::panel(matrix, panel, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 => unsafe { avx512::panel(matrix, panel, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Tier::Amx => unsafe { amx::panel(matrix, panel, rows, out) },
        #[cfg(not(target_arch = "x86_64"))]
        tier => unreachable!("{tier} does not exist here"),
    }
}

/// Calls a kernel with the height of a tile as a constant.
macro_rules! by_height {
    ($height:expr, $ops:ident, $rows:ident => $call:expr) => {
        by_height!(@ $height, $ops, $rows => $call; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@ $height:expr, $ops:ident, $rows:ident => $call:expr; $($constant:literal)*) => {
        match $height {
            $($constant if $constant <= $ops::TALLEST => {
                const $rows: usize = $constant;
                $call
            })*
            _ => unreachable!("no tile is taller than the tallest"),
        }
    };
}

/// [`panel`] with the given inner loops.
#[inline(always)]
unsafe fn run<O: Ops>(matrix: &Matrix, panel: usize, rows: &Activations, out: &mut [[f32; LANES]]) {
    out.fill([0.0; LANES]);
    let bytes = matrix.panel(panel);
    // SAFETY: passed on to the caller.
    unsafe {
        match matrix.format() {
            Format::Codes(codes) => match (codes.group, codes.has_minimum()) {
                (16, false) => run_codes::<O, 2, false>(codes, matrix, bytes, rows, out),
                (16, true) => run_codes::<O, 2, true>(codes, matrix, bytes, rows, out),
                (_, false) => run_codes::<O, 1, false>(codes, matrix, bytes, rows, out),
                (_, true) => run_codes::<O, 1, true>(codes, matrix, bytes, rows, out),
            },
            Format::Dense(dense) => run_dense::<O>(dense, bytes, rows, out),
        }
    }
}

#[inline(always)]
unsafe fn run_codes<O: Ops, const GROUPS: usize, const MINIMUM: bool>(
    codes: Codes,
    matrix: &Matrix,
    panel: &[u8],
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    let (headers, blocks) = panel.split_at(codes.codes_at(matrix.padded()));
    let mut weights = Unpacked([[[0; 2]; LANES]; PAIRS]);
    let mut scales = UnitScales::new();
    let per_unit = codes.unit() / BLOCK;
    let units = headers
        .chunks_exact(codes.header_bytes())
        .zip(blocks.chunks_exact(per_unit * codes.code_bytes()));
    for (unit, (header, blocks)) in units.enumerate() {
        // SAFETY: passed on to the caller.
        scales.read_with(codes, header, |bytes| unsafe { O::halves(bytes) });
        for (index, block) in blocks.chunks_exact(codes.code_bytes()).enumerate() {
            let groups = index * GROUPS..(index + 1) * GROUPS;
            let (scales, minima) = (&scales.scales[groups.clone()], &scales.minima[groups]);
            // SAFETY: passed on to the caller.
            unsafe {
                O::prefetch(block);
                O::unpack(codes, block, &mut weights);
            }
            let block = unit * per_unit + index;
            for &(first, height) in rows.tiles() {
                let tile = rows.tile(block, first, height);
                let out = &mut out[first..first + height];
                // SAFETY: passed on to the caller.
                by_height!(height, O, R => unsafe {
                    O::tile::<R, GROUPS, MINIMUM>(&weights, scales, minima, tile, out)
                });
            }
        }
    }
}

#[inline(always)]
unsafe fn run_dense<O: Ops>(
    dense: Dense,
    panel: &[u8],
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    let mut weights = UnpackedDense([[0.0; LANES]; BLOCK]);
    for (block, bytes) in panel
        .chunks_exact(dense.width() * LANES * BLOCK)
        .enumerate()
    {
        // SAFETY: passed on to the caller.
        unsafe {
            O::prefetch(bytes);
            O::unpack_dense(dense, bytes, &mut weights);
        }
        for &(first, height) in rows.dense_tiles() {
            let tile = rows.dense_tile(block, first, height);
            let out = &mut out[first..first + height];
            // SAFETY: passed on to the caller.
            by_height!(height, O, R => unsafe {
                O::tile_dense::<R>(&weights, tile, out)
            });
        }
    }
}

/// Rows of the tallest tile that the kernels of `isa` take.
fn tallest(isa: Isa) -> usize {
    match isa.tier() {
        Tier::Scalar => scalar::Scalar::TALLEST,
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => avx2::Avx2::TALLEST,
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 | Tier::Amx => avx512::Avx512::TALLEST,
        #[cfg(not(target_arch = "x86_64"))]
        tier => unreachable!("{tier} does not exist here"),
    }
}
