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
mod back;
#[cfg(test)]
mod tests;
mod tile;
mod words;

pub use activations::{Activations, Kind, Writer};
pub use back::TOGETHER;

use std::ops::Range;

use super::isa::{Isa, Tier};
use super::math::dispatch;
use super::matrix::{BLOCK, LANES, Matrix};

/// Pairs of columns in a block.
const PAIRS: usize = BLOCK / 2;

/// Sums over the halves of a block of a row.
#[derive(Clone, Copy, Debug, Default)]
struct HalfSums {
    /// Of its codes.
    codes: [i32; 2],
    /// Of what they stand for.
    values: [f32; 2],
}

/// Some rows' activations of one block.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// `[pair][row]`: two codes, side by side.
    codes: &'a [u32],
    /// `[row]`.
    scales: &'a [f32],
    /// `[row]`.
    sums: &'a [HalfSums],
}

/// `y = x·Wᵀ` for some rows, on this thread. As rows that decode: in the most exact way
/// there is.
///
/// # Panics
/// The lengths do not fit.
pub fn rows(isa: Isa, matrix: &Matrix, x: &[f32], y: &mut [f32]) {
    outputs(isa, matrix, 0..matrix.panels(), x, y);
}

/// The same for the outputs of some panels.
///
/// # Panics
/// The lengths do not fit.
pub fn outputs(isa: Isa, matrix: &Matrix, panels: Range<usize>, x: &[f32], y: &mut [f32]) {
    let count = x.len() / matrix.columns();
    let width = width(matrix, &panels);
    assert!(x.len() == count * matrix.columns() && y.len() == count * width);
    let mut activations = Activations::new(isa);
    activations.reset(count, count, matrix.columns(), Kind::of([matrix]));
    let writer = activations.writer();
    for (row, x) in x.chunks_exact(matrix.columns()).enumerate() {
        // SAFETY: no other thread knows of it.
        unsafe { writer.write(row, x) };
    }
    let mut out = vec![[0.0; LANES]; count];
    for (index, number) in panels.enumerate() {
        panel(isa, matrix, number, &activations, &mut out);
        let at = index * LANES;
        let lanes = LANES.min(width - at);
        for (y, out) in y.chunks_exact_mut(width).zip(&out) {
            y[at..at + lanes].copy_from_slice(&out[..lanes]);
        }
    }
}

/// `dX += dY·W` for some rows, on this thread, where `dy` has the outputs of some panels.
/// Rows to which nothing comes back from [`TOGETHER`] outputs cost nothing there.
///
/// # Panics
/// The lengths do not fit.
pub fn back(isa: Isa, matrix: &Matrix, panels: Range<usize>, dy: &[f32], dx: &mut [f32]) {
    let count = dx.len() / matrix.columns();
    let width = width(matrix, &panels);
    assert!(dx.len() == count * matrix.columns() && dy.len() == count * width);
    dispatch!(isa, |lanes,
                    matrix: &Matrix,
                    panels: Range<usize>,
                    dy: &[f32],
                    width: usize,
                    dx: &mut [f32]| {
        let mut factors = back::Factors::default();
        factors.take(dy, width);
        back::back(lanes, matrix, panels, &factors, dx)
    });
}

/// How many outputs some panels have.
fn width(matrix: &Matrix, panels: &Range<usize>) -> usize {
    matrix.rows().min(panels.end * LANES) - panels.start * LANES
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
    #[cfg(target_arch = "x86_64")]
    if isa.tier() == Tier::Amx {
        // SAFETY: an `Isa` is proof that its instructions are there.
        return unsafe { amx::panel(matrix, panel, rows, out) };
    }
    dispatch!(isa, |lanes,
                    matrix: &Matrix,
                    panel: usize,
                    rows: &Activations,
                    out: &mut [[f32; LANES]]| {
        tile::panel(lanes, matrix, panel, rows, out)
    });
}
