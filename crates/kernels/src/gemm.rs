//! Products of small f32 matrices of any layout (strided GEMM) by the `gemm` crate, for
//! training, where both operands change.

use gemm::Parallelism;

/// The layout of a matrix in a slice: element (i, j) is at `start + i · row + j · column`.
#[derive(Clone, Copy, Debug)]
pub struct StridedLayout {
    /// The index of the first element.
    pub start: usize,
    /// The stride from one row to the next.
    pub row: usize,
    /// The stride from one column to the next.
    pub column: usize,
}

impl StridedLayout {
    /// The layout of consecutive rows, `width` elements apart.
    pub fn rows(start: usize, width: usize) -> StridedLayout {
        StridedLayout {
            start,
            row: width,
            column: 1,
        }
    }

    /// The layout of the transposed matrix.
    pub fn transposed(self) -> StridedLayout {
        StridedLayout {
            start: self.start,
            row: self.column,
            column: self.row,
        }
    }

    /// Whether a matrix of this shape lies within `len` elements.
    fn fits(self, rows: usize, columns: usize, len: usize) -> bool {
        let last = |count: usize, step: usize| count.checked_sub(1).map(|last| last * step);
        match (last(rows, self.row), last(columns, self.column)) {
            (Some(row), Some(column)) => self.start + row + column < len,
            _ => true,
        }
    }
}

/// Computes `out = before · out + factor · a·b` on this thread, where `a` is `[m, k]`, `b` is
/// `[k, n]` and `out` is `[m, n]`. If `before` is 0, the previous contents of `out` are
/// ignored.
///
/// # Panics
/// A matrix does not lie within its slice.
pub fn multiply(
    [m, k, n]: [usize; 3],
    (a, a_layout): (&[f32], StridedLayout),
    (b, b_layout): (&[f32], StridedLayout),
    factor: f32,
    before: f32,
    (out, out_layout): (&mut [f32], StridedLayout),
) {
    assert!(a_layout.fits(m, k, a.len()) && b_layout.fits(k, n, b.len()));
    assert!(out_layout.fits(m, n, out.len()));
    if m == 0 || n == 0 {
        return;
    }
    let step = |step: usize| step as isize;
    // SAFETY: all elements are within the slices, by the assertions above; `out` is borrowed
    // mutably, so it overlaps neither of the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr().wrapping_add(out_layout.start),
            step(out_layout.column),
            step(out_layout.row),
            before != 0.0,
            a.as_ptr().wrapping_add(a_layout.start),
            step(a_layout.column),
            step(a_layout.row),
            b.as_ptr().wrapping_add(b_layout.start),
            step(b_layout.column),
            step(b_layout.row),
            before,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_whatever_lies_in_whatever_order() {
        // a = [1 2 3; 4 5 6], after one element; b is its transpose.
        let a = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let layout = StridedLayout::rows(1, 3);
        let mut out = [f32::NAN, 1.0, 1.0, 1.0, 1.0];
        let b = (&a[..], layout.transposed());
        multiply(
            [2, 3, 2],
            (&a, layout),
            b,
            2.0,
            1.0,
            (&mut out, StridedLayout::rows(1, 2)),
        );
        assert_eq!(out[1..], [29.0, 65.0, 65.0, 155.0]);
        multiply(
            [2, 3, 2],
            (&a, layout),
            b,
            1.0,
            0.0,
            (&mut out, StridedLayout::rows(1, 2)),
        );
        assert_eq!(out[1..], [14.0, 32.0, 32.0, 77.0]);
    }

    #[test]
    #[should_panic(expected = "fits")]
    fn refuses_what_is_beyond_a_slice() {
        let (a, mut out) = ([0.0; 6], [0.0; 3]);
        let layout = StridedLayout::rows(0, 3);
        let b = (&a[..], layout.transposed());
        multiply(
            [2, 3, 2],
            (&a, layout),
            b,
            1.0,
            0.0,
            (&mut out, StridedLayout::rows(0, 2)),
        );
    }
}
