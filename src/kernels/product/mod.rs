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

/// Columns that [`back`] adds to at once.
pub const BACK_COLUMNS: usize = back::BLOCKS * BLOCK;

/// Adds `dY·W` to some columns of dX: to [`BACK_COLUMNS`] from the first of block
/// `block` on, of which those beyond the matrix stay as they are. `dy` has a row as long
/// as the matrix has for each row of `dx`.
///
/// # Panics
/// The lengths do not fit, or there is no such block.
pub fn back(isa: Isa, matrix: &Matrix, dy: &[f32], block: usize, dx: &mut [[f32; BACK_COLUMNS]]) {
    assert_eq!(dy.len(), dx.len() * matrix.rows(), "a row for each row");
    assert!(block * BLOCK < matrix.columns(), "the block is there");
    dispatch!(isa, |lanes,
                    matrix: &Matrix,
                    dy: &[f32],
                    block: usize,
                    dx: &mut [[f32; BACK_COLUMNS]]| {
        back::back(lanes, matrix, dy, block, dx)
    });
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
