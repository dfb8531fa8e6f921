//! Products of packed weights with activations (quantized GEMM and GEMV), `y = W·x` for each
//! row.
//!
//! Quantized weights are multiplied in integers: activations are rounded to 16 bits with a
//! scale for every 32 of them, and the sum over a group of columns is exact. A block of weights
//! is unpacked once, into 1 KiB that stays in the L1 cache, and then serves all rows. So the
//! cost of one row is that of reading the weights, a few rows cost hardly more, and the cost of
//! many rows is that of the multiplications.
//!
//! The result of a row does not depend on the other rows.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
#[cfg(test)]
mod tests;
mod tile;
mod words;

pub use activations::{ActivationForms, Activations, Writer};

#[cfg(target_arch = "x86_64")]
use std::cell::RefCell;
use std::ops::Range;

use backward::QuantizedGradients;

use super::isa::{Isa, Tier};
use super::math::dispatch;
use super::matrix::{COLUMNS_PER_BLOCK, LANES, Matrix};
#[cfg(target_arch = "x86_64")]
use super::matrix::{Codes, Format};

/// Pairs of columns per block.
const PAIRS: usize = COLUMNS_PER_BLOCK / 2;

/// Rounds to the nearest integer, which must fit in 16 bits.
#[inline(always)]
fn rounded(number: f32) -> u16 {
    /// A sum with this constant has no fractional bits, and its lowest bits are the integer.
    const ROUNDER: f32 = 12_582_912.0;
    (number + ROUNDER).to_bits() as u16
}

/// Sums over each 16-column half of a block of one row.
#[derive(Clone, Copy, Debug, Default)]
struct BlockHalfSums {
    /// The sums of the codes.
    codes: [i32; 2],
    /// The sums of the values the codes stand for.
    values: [f32; 2],
}

/// The activations of some rows for one block.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// `[pair][row]`: two codes per word.
    codes: &'a [u32],
    /// `[row]`.
    scales: &'a [f32],
    /// `[row]`.
    sums: &'a [BlockHalfSums],
}

/// The size in bytes of the activations that are multiplied with one panel after the other:
/// chosen to fit in the L2 cache. (Processors with AMX have a larger one.)
const MAX_L2_BYTES: usize = 256 << 10;

#[cfg(target_arch = "x86_64")]
thread_local! {
    /// The gradients of the outputs, as activations for AMX.
    static GRADIENTS: RefCell<Option<Activations>> = const { RefCell::new(None) };
}

/// The maximum number of rows that AMX processes together.
const MAX_AMX_ROWS: usize = 512;

/// Input rows of matrices of the same width, prepared on this thread and treated like prompt
/// rows.
#[derive(Debug)]
pub struct Inputs {
    isa: Isa,
    rows: usize,
    /// The rows, in parts that are multiplied together.
    parts: Vec<Activations>,
}

impl Inputs {
    /// Prepares the input rows of some matrices.
    ///
    /// # Panics
    /// There are no matrices, their widths differ, or the length of `x` is not a multiple of
    /// the width.
    pub fn new<'a>(
        isa: Isa,
        matrices: impl IntoIterator<Item = &'a Matrix> + Clone,
        x: &[f32],
    ) -> Inputs {
        let mut widths = matrices.clone().into_iter().map(Matrix::columns);
        let columns = widths.next().expect("rows are for a matrix");
        assert!(widths.all(|width| width == columns) && x.len().is_multiple_of(columns));
        let forms = ActivationForms::of(matrices);
        let height = match isa.tier() {
            // AMX splits the rows along the columns by itself.
            Tier::Amx if !forms.dense() => MAX_AMX_ROWS,
            _ => {
                let tall = activations::max_tile_rows(isa);
                (MAX_L2_BYTES / (size_of::<u16>() * columns) / tall).max(1) * tall
            }
        };
        let parts = x.chunks(height * columns);
        let parts = parts.map(|x| {
            let mut part = Activations::new(isa);
            part.reset(x.len() / columns, 0, columns, forms);
            part.fill(x);
            part
        });
        Inputs {
            isa,
            rows: x.len() / columns,
            parts: parts.collect(),
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Computes `y = x·Wᵀ` for the outputs of some panels.
    ///
    /// # Panics
    /// The width of the matrix differs from that of the rows, or the length of `y` is not the
    /// number of outputs of all rows.
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

/// Backward pass: adds `dY·W` to `dX` for some rows, on this thread. `dy` holds the gradients
/// of the outputs of some panels.
///
/// # Panics
/// The lengths do not match.
pub fn backward(isa: Isa, matrix: &Matrix, panels: Range<usize>, dy: &[f32], dx: &mut [f32]) {
    let width = check_backward(matrix, &panels, dy, dx);
    #[cfg(target_arch = "x86_64")]
    if let Some(codes) = for_amx(isa, matrix)
        && width > 0
    {
        let parts = dx.chunks_mut(MAX_AMX_ROWS * matrix.columns());
        GRADIENTS.with_borrow_mut(|rows| {
            let rows = rows.get_or_insert_with(|| Activations::new(isa));
            for (dx, dy) in parts.zip(dy.chunks(MAX_AMX_ROWS * width)) {
                rows.reset(dy.len() / width, 0, width, ActivationForms::of([matrix]));
                rows.fill(dy);
                // SAFETY: an `Isa` is proof that its instructions are there.
                unsafe { amx::backward(matrix, codes, panels.clone(), rows, dx) };
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
        let factors = QuantizedGradients::<{ backward::DENSE_PANELS }>::new(dy, width, |_| 0.0);
        backward::backward(lanes, matrix, panels, &factors, dx)
    });
}

/// Like [`backward()`], for gradients that are near zero for most outputs: a panel in which all
/// gradients of a row are below its `least` is skipped and costs nothing. (AMX skips nothing,
/// because that would take as long.)
///
/// # Panics
/// The lengths do not match.
pub fn backward_sparse(
    isa: Isa,
    matrix: &Matrix,
    panels: Range<usize>,
    (dy, least): (&[f32], &[f32]),
    dx: &mut [f32],
) {
    let width = check_backward(matrix, &panels, dy, dx);
    assert_eq!(dy.len(), least.len() * width, "the lengths fit");
    #[cfg(target_arch = "x86_64")]
    if for_amx(isa, matrix).is_some() {
        return backward(isa, matrix, panels, dy, dx);
    }
    dispatch!(isa, |lanes,
                    matrix: &Matrix,
                    panels: Range<usize>,
                    dy: &[f32],
                    least: &[f32],
                    width: usize,
                    dx: &mut [f32]| {
        let factors =
            QuantizedGradients::<{ backward::SPARSE_PANELS }>::new(dy, width, |row| least[row]);
        backward::backward(lanes, matrix, panels, &factors, dx)
    });
}

/// Returns the codes of a matrix if AMX computes prompt and training rows through it.
#[cfg(target_arch = "x86_64")]
fn for_amx(isa: Isa, matrix: &Matrix) -> Option<Codes> {
    match matrix.format() {
        Format::Codes(codes) if isa.tier() == Tier::Amx => Some(codes),
        _ => None,
    }
}

/// Checks the lengths, and returns the number of outputs per row.
fn check_backward(matrix: &Matrix, panels: &Range<usize>, dy: &[f32], dx: &[f32]) -> usize {
    let count = dx.len() / matrix.columns();
    let width = width(matrix, panels);
    assert!(dx.len() == count * matrix.columns() && dy.len() == count * width);
    width
}

/// Returns the number of outputs of some panels.
fn width(matrix: &Matrix, panels: &Range<usize>) -> usize {
    matrix.rows().min(panels.end * LANES) - panels.start * LANES
}

/// Computes the outputs of panel `panel` for all rows: `out[row][lane]`.
///
/// # Panics
/// The widths of the matrix and the activations differ, or the length of `out` is not the
/// number of rows.
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
