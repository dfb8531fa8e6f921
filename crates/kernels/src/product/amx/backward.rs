//! The backward pass of a product with AMX: `dX += dY·W`.
//!
//! Sums run over outputs; two panels of outputs fill the depth of a tile. Weights are
//! transposed as they are dequantized, so that rows and results have the same layout as in the
//! forward pass.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::super::matrix::{COLUMNS_PER_BLOCK, Codes, LANES, Matrix, UnitScales};
use super::super::{Activations, PAIRS};
use super::{Block, EXPANDED, Grid, Panel, Registers, Tiles, ZERO, depth, to_bf16};

/// Computes [`super::super::backward()`] with AMX, for gradients as rows of bf16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(in super::super) fn backward(
    matrix: &Matrix,
    codes: Codes,
    panels: Range<usize>,
    dy: &Activations,
    dx: &mut [f32],
) {
    let mut grid = Grid::new(dx, dy.rows(), matrix.columns());
    let tiles = Tiles::of(dy);
    let all = panels.len().div_ceil(2);
    let deep = depth(dy.rows());
    let registers = Registers::take();
    EXPANDED.with_borrow_mut(|weights| {
        for start in (0..all).step_by(deep) {
            let pairs = start..all.min(start + deep);
            let panels =
                panels.start + 2 * pairs.start..panels.end.min(panels.start + 2 * pairs.end);
            for block in 0..matrix.columns().div_ceil(COLUMNS_PER_BLOCK) {
                expand(matrix, codes, panels.clone(), block, weights);
                let weights = weights.split_at(pairs.len());
                grid.sum(
                    &registers,
                    block * COLUMNS_PER_BLOCK,
                    &tiles,
                    &pairs,
                    weights,
                    false,
                );
            }
        }
    });
}

/// Dequantizes and transposes one block of columns of some panels: two panels at a time, first
/// the columns of the first half of the block, then those of the second.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn expand(matrix: &Matrix, codes: Codes, panels: Range<usize>, block: usize, out: &mut Vec<Block>) {
    let pairs = panels.len().div_ceil(2);
    out.resize(2 * pairs, ZERO);
    let (left, right) = out.split_at_mut(pairs);
    let mut scales = UnitScales::new();
    let starts = panels.clone().step_by(2);
    for (first, (left, right)) in starts.zip(left.iter_mut().zip(right)) {
        let mut numbers = [[[_mm512_setzero_ps(); 2]; PAIRS]; 2];
        for (panel, numbers) in (first..panels.end).zip(&mut numbers) {
            let panel = Panel::new(matrix, codes, panel);
            panel.read_scales(block, true, &mut scales);
            *numbers = panel.numbers(block, &scales);
        }
        let [first, second] = &numbers;
        let columns = first.as_flattened().iter().zip(second.as_flattened());
        let mut columns = columns.map(|(first, second)| to_bf16(*first, *second));
        for tile in [left, right] {
            let lines = std::array::from_fn(|_| columns.next().expect("as many as a block has"));
            for (pairs, line) in tile.0.iter_mut().zip(transposed(lines)) {
                // SAFETY: 16 pairs of 16 bits.
                unsafe { _mm512_store_si512(pairs.as_mut_ptr().cast(), line) };
            }
        }
    }
}

/// Transposes 16 lines of 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut a = lines;
    let mut b = lines;
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    // Of each four lines: every quarter of a register holds the words of one column.
    for i in 0..4 {
        let four: [__m512i; 4] = std::array::from_fn(|line| b[4 * i + line]);
        a[4 * i] = _mm512_unpacklo_epi64(four[0], four[2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(four[0], four[2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(four[1], four[3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(four[1], four[3]);
    }
    // Column c of quarter q is in quarter q of a[c], a[4 + c], a[8 + c] and a[12 + c].
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(a[c], a[4 + c]);
        let odd = _mm512_shuffle_i32x4::<0xDD>(a[c], a[4 + c]);
        let lower_even = _mm512_shuffle_i32x4::<0x88>(a[8 + c], a[12 + c]);
        let lower_odd = _mm512_shuffle_i32x4::<0xDD>(a[8 + c], a[12 + c]);
        b[c] = _mm512_shuffle_i32x4::<0x88>(even, lower_even);
        b[8 + c] = _mm512_shuffle_i32x4::<0xDD>(even, lower_even);
        b[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, lower_odd);
        b[12 + c] = _mm512_shuffle_i32x4::<0xDD>(odd, lower_odd);
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Tier};

    #[test]
    fn lines_become_columns() {
        if Isa::best().tier() < Tier::Avx512 {
            println!("NOT RUN: there is no AVX-512");
            return;
        }
        let lines: [[u32; LANES]; LANES] =
            std::array::from_fn(|line| std::array::from_fn(|at| (line * LANES + at) as u32));
        // SAFETY: the processor has AVX-512; the arrays have the layout of registers.
        let columns: [[u32; LANES]; LANES] = unsafe {
            let lines = std::mem::transmute::<[[u32; LANES]; LANES], [__m512i; LANES]>(lines);
            std::mem::transmute(transposed(lines))
        };
        for (line, words) in lines.iter().enumerate() {
            for (column, word) in words.iter().enumerate() {
                assert_eq!(columns[column][line], *word);
            }
        }
    }
}
