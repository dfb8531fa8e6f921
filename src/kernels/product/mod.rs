//! Products of packed weights with activations, `y = W·x` for each row.
//!
//! Weights of codes are multiplied in whole numbers: activations are rounded to
//! 16 bits with a scale for every 32 of them, and the sum over a group of
//! columns is exact. A few blocks of weights are unpacked at a time, into some KiB
//! that stay in the first-level cache, and then serve all rows. So one row costs what
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

use std::ops::Range;

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

impl Tile<'_> {
    /// Scale · sum of a row's codes in a group.
    #[inline(always)]
    fn sum<const GROUPS: usize>(&self, row: usize, group: usize) -> f32 {
        match GROUPS {
            1 => self.sums[row][0] + self.sums[row][1],
            _ => self.sums[row][group],
        }
    }
}

/// The innermost loops, for one instruction set.
///
/// # Safety
/// Functions may be called only where the instruction set is present, and those
/// that are marked so from a function that has it enabled (or they will not be
/// inlined). Tiles are functions of their own: their sums need all registers
/// there are.
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

    /// Adds the product of some staged blocks with the `R` rows from `first` on
    /// to `out`. A block has one group of 32 columns or two of 16.
    unsafe fn tile<const R: usize, const GROUPS: usize, const MINIMUM: bool>(
        stage: &Stage,
        blocks: Range<usize>,
        rows: &Activations,
        first: usize,
        out: &mut [[f32; LANES]],
    );

    /// Adds a dense block's product with `R` rows, `[column][row]`, to `out`.
    unsafe fn tile_dense<const R: usize>(
        weights: &UnpackedDense,
        tile: &[f32],
        out: &mut [[f32; LANES]],
    );
}

/// The most panels that one call computes.
pub const PANELS: usize = 2;

/// Computes the outputs of some panels for all rows: `out[panel][row][lane]`,
/// without gaps. Two panels at once read activations half as often: worth it
/// for many rows.
///
/// # Panics
/// The matrix and the activations do not fit, there are more than [`PANELS`]
/// panels, or `out` has another length than the panels have rows.
pub fn panels(
    isa: Isa,
    matrix: &Matrix,
    panels: Range<usize>,
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    assert_eq!(matrix.columns(), rows.columns(), "the shapes fit");
    assert!(panels.len() <= PANELS, "not too many at once");
    assert_eq!(
        out.len(),
        panels.len() * rows.rows(),
        "a result for each row"
    );
    match isa.tier() {
        // SAFETY: plain Rust.
        Tier::Scalar => unsafe { run::<scalar::Scalar>(matrix, panels, rows, out) },
        // SAFETY: an `Isa` is proof that its instructions are there.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => unsafe { avx2::panels(matrix, panels, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 => unsafe { avx512::panels(matrix, panels, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Tier::Amx => unsafe { amx::panels(matrix, panels, rows, out) },
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

/// [`panels`] with the given inner loops. Rows that are left to AMX are not
/// computed: `out` has none of them.
#[inline(always)]
unsafe fn run<O: Ops>(
    matrix: &Matrix,
    panels: Range<usize>,
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    out.fill([0.0; LANES]);
    // SAFETY: passed on to the caller.
    unsafe {
        match matrix.format() {
            Format::Codes(codes) => match (codes.group, codes.has_minimum()) {
                (16, false) => run_codes::<O, 2, false>(codes, matrix, panels, rows, out),
                (16, true) => run_codes::<O, 2, true>(codes, matrix, panels, rows, out),
                (_, false) => run_codes::<O, 1, false>(codes, matrix, panels, rows, out),
                (_, true) => run_codes::<O, 1, true>(codes, matrix, panels, rows, out),
            },
            Format::Dense(dense) => {
                for (panel, out) in panels.zip(out.chunks_exact_mut(rows.rows().max(1))) {
                    run_dense::<O>(dense, matrix.panel(panel), rows, out);
                }
            }
        }
    }
}

/// Blocks that are unpacked together: a tile of rows goes over all of them
/// while its results are in the first-level cache.
const STAGED: usize = 4;

/// Some blocks of a panel, unpacked.
struct Stage {
    weights: [Unpacked; STAGED],
    /// Per block and group.
    scales: [[[f32; LANES]; 2]; STAGED],
    minima: [[[f32; LANES]; 2]; STAGED],
    /// Of the unit at hand.
    unit: UnitScales,
}

impl Stage {
    const EMPTY: Stage = Stage {
        weights: [const { Unpacked([[[0; 2]; LANES]; PAIRS]) }; STAGED],
        scales: [[[0.0; LANES]; 2]; STAGED],
        minima: [[[0.0; LANES]; 2]; STAGED],
        unit: UnitScales::new(),
    };

    /// Unpacks some blocks of a panel of `columns` columns. Panels are staged
    /// from their first block on.
    #[inline(always)]
    unsafe fn fill<O: Ops, const GROUPS: usize>(
        &mut self,
        codes: Codes,
        panel: &[u8],
        columns: usize,
        blocks: Range<usize>,
    ) {
        let (headers, code_bytes) = panel.split_at(codes.codes_at(columns));
        let per_unit = codes.unit() / BLOCK;
        for (place, block) in blocks.enumerate() {
            let (unit, within) = (block / per_unit, block % per_unit);
            let bytes = &code_bytes[block * codes.code_bytes()..][..codes.code_bytes()];
            // SAFETY: passed on to the caller.
            unsafe {
                if within == 0 {
                    let header = &headers[unit * codes.header_bytes()..];
                    self.unit.read_with(codes, header, |bytes| O::halves(bytes));
                }
                O::prefetch(bytes);
                O::unpack(codes, bytes, &mut self.weights[place]);
            }
            for group in 0..GROUPS {
                let of_unit = within * GROUPS + group;
                self.scales[place][group] = self.unit.scales[of_unit];
                self.minima[place][group] = self.unit.minima[of_unit];
            }
        }
    }
}

#[inline(always)]
unsafe fn run_codes<O: Ops, const GROUPS: usize, const MINIMUM: bool>(
    codes: Codes,
    matrix: &Matrix,
    panels: Range<usize>,
    rows: &Activations,
    out: &mut [[f32; LANES]],
) {
    let mut stages = [Stage::EMPTY; PANELS];
    let blocks = matrix.padded() / BLOCK;
    let height_of_panel = out.len() / panels.len().max(1);
    for first_block in (0..blocks).step_by(STAGED) {
        let staged = first_block..blocks.min(first_block + STAGED);
        for (panel, stage) in panels.clone().zip(&mut stages) {
            let panel = matrix.panel(panel);
            // SAFETY: passed on to the caller.
            unsafe { stage.fill::<O, GROUPS>(codes, panel, matrix.padded(), staged.clone()) };
        }
        for &(first, height) in rows.tiles() {
            for (panel, stage) in stages[..panels.len()].iter().enumerate() {
                let out = &mut out[panel * height_of_panel + first..][..height];
                let blocks = staged.clone();
                // SAFETY: passed on to the caller.
                by_height!(height, O, R => unsafe {
                    O::tile::<R, GROUPS, MINIMUM>(stage, blocks, rows, first, out)
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
