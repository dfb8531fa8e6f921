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

#[cfg(target_arch = "x86_64")]
use std::cell::RefCell;
use std::ops::Range;

use back::Factors;

use super::isa::{Isa, Tier};
use super::math::dispatch;
use super::matrix::{BLOCK, LANES, Matrix};
#[cfg(target_arch = "x86_64")]
use super::matrix::{Codes, Format};

/// Pairs of columns in a block.
const PAIRS: usize = BLOCK / 2;

/// The nearest whole number, as a half of a word: of one that fits in it.
#[inline(always)]
fn rounded(number: f32) -> u16 {
    /// A sum with it has no place for what is behind the point, and the whole number in its
    /// lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    (number + ROUNDER).to_bits() as u16
}

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

/// Bytes of activations that are multiplied with one panel after the other: they are to
/// stay in the second-level cache. (Processors with AMX have a larger one.)
const IN_CACHE: usize = 256 << 10;

#[cfg(target_arch = "x86_64")]
thread_local! {
    /// What comes back to rows, for AMX.
    static COMING_BACK: RefCell<Option<Activations>> = const { RefCell::new(None) };
}

/// Rows that AMX takes together.
const TALLEST: usize = 512;

/// Rows that matrices of the same width are multiplied with, on this thread: as rows of
/// prompts.
#[derive(Debug)]
pub struct Inputs {
    isa: Isa,
    rows: usize,
    /// The rows, as many at a time as are multiplied together.
    parts: Vec<Activations>,
}

impl Inputs {
    /// Prepares rows of some matrices' inputs.
    ///
    /// # Panics
    /// There is no matrix, they differ in width, or `x` is no rows of that width.
    pub fn new<'a>(
        isa: Isa,
        matrices: impl IntoIterator<Item = &'a Matrix> + Clone,
        x: &[f32],
    ) -> Inputs {
        let mut widths = matrices.clone().into_iter().map(Matrix::columns);
        let columns = widths.next().expect("rows are for a matrix");
        assert!(widths.all(|width| width == columns) && x.len().is_multiple_of(columns));
        let kind = Kind::of(matrices);
        let height = match isa.tier() {
            // It cuts them by columns.
            Tier::Amx if !kind.dense() => TALLEST,
            _ => {
                let tall = activations::tallest(isa);
                (IN_CACHE / (size_of::<u16>() * columns) / tall).max(1) * tall
            }
        };
        let parts = x.chunks(height * columns);
        let parts = parts.map(|x| {
            let mut part = Activations::new(isa);
            part.reset(x.len() / columns, 0, columns, kind);
            part.fill(x);
            part
        });
        Inputs {
            isa,
            rows: x.len() / columns,
            parts: parts.collect(),
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `y = x·Wᵀ`, the outputs of some panels only.
    ///
    /// # Panics
    /// The matrix has another width than the rows, or `y` is not as long as there are
    /// outputs of all rows.
    pub fn multiply(&self, matrix: &Matrix, panels: Range<usize>, y: &mut [f32]) {
        let width = width(matrix, &panels);
        let fits = |part: &Activations| part.columns() == matrix.columns();
        assert!(self.parts.iter().all(fits), "the shapes fit");
        assert_eq!(y.len(), self.rows * width, "the lengths fit");
        let mut out = Vec::new();
        let mut rest = y;
        for part in &self.parts {
            let (y, after) = rest.split_at_mut(part.rows() * width);
            rest = after;
            #[cfg(target_arch = "x86_64")]
            if let Some(codes) = for_amx(self.isa, matrix) {
                // SAFETY: an `Isa` is proof that its instructions are there.
                unsafe { amx::multiply(matrix, codes, panels.clone(), part, y) };
                continue;
            }
            out.resize(part.rows(), [0.0; LANES]);
            for (index, number) in panels.clone().enumerate() {
                panel(self.isa, matrix, number, part, &mut out);
                let at = index * LANES;
                let lanes = LANES.min(width - at);
                for (y, out) in y.chunks_exact_mut(width).zip(&out) {
                    y[at..at + lanes].copy_from_slice(&out[..lanes]);
                }
            }
        }
    }
}

/// `dX += dY·W` for some rows, on this thread, where `dy` has the outputs of some panels.
///
/// # Panics
/// The lengths do not fit.
pub fn back(isa: Isa, matrix: &Matrix, panels: Range<usize>, dy: &[f32], dx: &mut [f32]) {
    let width = check_back(matrix, &panels, dy, dx);
    #[cfg(target_arch = "x86_64")]
    if let Some(codes) = for_amx(isa, matrix)
        && width > 0
    {
        let parts = dx.chunks_mut(TALLEST * matrix.columns());
        COMING_BACK.with_borrow_mut(|rows| {
            let rows = rows.get_or_insert_with(|| Activations::new(isa));
            for (dx, dy) in parts.zip(dy.chunks(TALLEST * width)) {
                rows.reset(dy.len() / width, 0, width, Kind::of([matrix]));
                rows.fill(dy);
                // SAFETY: an `Isa` is proof that its instructions are there.
                unsafe { amx::back(matrix, codes, panels.clone(), rows, dx) };
            }
        });
        return;
    }
    dispatch!(isa, |lanes,
                    matrix: &Matrix,
                    panels: Range<usize>,
                    dy: &[f32],
                    width: usize,
                    dx: &mut [f32]| {
        let factors = Factors::<{ back::ALL }>::new(dy, width, |_| 0.0);
        back::back(lanes, matrix, panels, &factors, dx)
    });
}

/// The same where next to nothing comes back from most outputs: in a panel where all of a
/// row's outputs are below its `least`, they are left out and cost nothing. (AMX leaves out
/// nothing: that would take as long.)
///
/// # Panics
/// The lengths do not fit.
pub fn back_of_few(
    isa: Isa,
    matrix: &Matrix,
    panels: Range<usize>,
    (dy, least): (&[f32], &[f32]),
    dx: &mut [f32],
) {
    let width = check_back(matrix, &panels, dy, dx);
    assert_eq!(dy.len(), least.len() * width, "the lengths fit");
    #[cfg(target_arch = "x86_64")]
    if for_amx(isa, matrix).is_some() {
        return back(isa, matrix, panels, dy, dx);
    }
    dispatch!(isa, |lanes,
                    matrix: &Matrix,
                    panels: Range<usize>,
                    dy: &[f32],
                    least: &[f32],
                    width: usize,
                    dx: &mut [f32]| {
        let factors = Factors::<{ back::FEW }>::new(dy, width, |row| least[row]);
        back::back(lanes, matrix, panels, &factors, dx)
    });
}

/// A matrix's codes, if AMX takes rows of prompts and of training through it.
#[cfg(target_arch = "x86_64")]
fn for_amx(isa: Isa, matrix: &Matrix) -> Option<Codes> {
    match matrix.format() {
        Format::Codes(codes) if isa.tier() == Tier::Amx => Some(codes),
        _ => None,
    }
}

/// How many outputs come back, if the lengths fit.
fn check_back(matrix: &Matrix, panels: &Range<usize>, dy: &[f32], dx: &[f32]) -> usize {
    let count = dx.len() / matrix.columns();
    let width = width(matrix, panels);
    assert!(dx.len() == count * matrix.columns() && dy.len() == count * width);
    width
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
