//! The way back with AMX: `dX += dY·W`.
//!
//! Sums are over outputs, two panels of which make the depth of a tile. Their weights
//! are turned as they are expanded, so that rows and results lie as they do on the way
//! forward.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::super::matrix::{BLOCK, Codes, LANES, Matrix, UnitScales};
use super::super::activations::{self, TILE_ROWS};
use super::super::back::largest;
use super::super::{Activations, PAIRS, width};
use super::{Block, EXPANDED, Grid, HIGH, Panel, Registers, Square, TILE, Tiles, WIDE, ZERO};
use super::{depth, halves, square};

/// [`super::super::back`] with AMX, of what comes back as rows of bf16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(in super::super) fn back(
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
            for block in 0..matrix.columns().div_ceil(BLOCK) {
                expand(matrix, codes, panels.clone(), block, weights);
                let weights = weights.split_at(pairs.len());
                grid.sum(&registers, block * BLOCK, &tiles, &pairs, weights, false);
            }
        }
    });
}

/// A block of columns of some panels' weights: two panels after the other, first for the
/// columns of the first half of the block, then for those of the second.
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
        let mut columns = columns.map(|(first, second)| halves(*first, *second));
        for tile in [left, right] {
            let lines = std::array::from_fn(|_| columns.next().expect("as many as a block has"));
            for (pairs, line) in tile.0.iter_mut().zip(transposed(lines)) {
                // SAFETY: 16 pairs of 16 bits.
                unsafe { _mm512_store_si512(pairs.as_mut_ptr().cast(), line) };
            }
        }
    }
}

/// Lines of 16 words as columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(lines: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut a = lines;
    let mut b = lines;
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    // Of four lines: in each quarter of a register, the words of one column.
    for i in 0..4 {
        let four: [__m512i; 4] = std::array::from_fn(|line| b[4 * i + line]);
        a[4 * i] = _mm512_unpacklo_epi64(four[0], four[2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(four[0], four[2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(four[1], four[3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(four[1], four[3]);
    }
    // Column c of quarter q is in a[c], a[4 + c], a[8 + c] and a[12 + c], at place q.
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

/// Panels whose products are added before they are added to the rows.
const FEW: usize = 4;

/// [`super::super::back_of_few`] with AMX: rows to which something comes back from some
/// panels are gathered to tiles.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(in super::super) fn back_of_few(
    matrix: &Matrix,
    codes: Codes,
    panels: Range<usize>,
    (dy, least): (&[f32], &[f32]),
    dx: &mut [f32],
) {
    let (columns, all) = (matrix.columns(), width(matrix, &panels));
    let registers = Registers::take();
    let (mut rows, mut gathered) = (Vec::new(), Vec::new());
    let mut sums = Square([[0.0; WIDE]; HIGH]);
    EXPANDED.with_borrow_mut(|weights| {
        for start in panels.clone().step_by(FEW) {
            let few = start..panels.end.min(start + FEW);
            let first = (start - panels.start) * LANES;
            let outputs = first..all.min(first + FEW * LANES);
            gather(dy, all, outputs, least, &mut rows, &mut gathered);
            if rows.is_empty() {
                continue;
            }
            let pairs = 0..few.len().div_ceil(2);
            let tiles = Tiles {
                tiles: &gathered,
                blocks: pairs.len(),
            };
            for block in 0..columns.div_ceil(BLOCK) {
                expand(matrix, codes, few.clone(), block, weights);
                let weights = weights.split_at(pairs.len());
                let own = block * BLOCK..columns.min((block + 1) * BLOCK);
                for (tile, rows) in rows.chunks(HIGH).enumerate() {
                    let other = (2 * tile + 1).min(tiles.count() - 1);
                    let tiles = (tiles.get(2 * tile, &pairs), tiles.get(other, &pairs));
                    let out = sums.0.as_flattened_mut();
                    square(&registers, tiles, weights, (out, WIDE), true);
                    for (&row, sums) in rows.iter().zip(&sums.0) {
                        let dx = &mut dx[row * columns..][own.clone()];
                        for (dx, sum) in dx.iter_mut().zip(sums) {
                            *dx += sum;
                        }
                    }
                }
            }
        }
    });
}

/// The rows that have more than their `least` in some outputs, and these outputs of them
/// as tiles.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn gather(
    dy: &[f32],
    width: usize,
    outputs: Range<usize>,
    least: &[f32],
    rows: &mut Vec<usize>,
    tiles: &mut Vec<u16>,
) {
    rows.clear();
    tiles.clear();
    let deep = outputs.len().div_ceil(BLOCK);
    for (row, (dy, &least)) in dy.chunks_exact(width).zip(least).enumerate() {
        let dy = &dy[outputs.clone()];
        let largest = largest(dy);
        if largest == 0.0 || largest < least {
            continue;
        }
        let (tile, place) = (rows.len() / TILE_ROWS, rows.len() % TILE_ROWS);
        tiles.resize((tile + 1) * deep * TILE, 0);
        for (block, dy) in dy.chunks(BLOCK).enumerate() {
            let at = (tile * deep + block) * TILE + place * BLOCK;
            for (half, number) in tiles[at..].iter_mut().zip(dy) {
                *half = activations::half(*number);
            }
        }
        rows.push(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Isa, isa::Tier};

    #[test]
    fn lines_become_columns() {
        if Isa::best().tier() != Tier::Amx {
            return;
        }
        let lines: [[u32; LANES]; LANES] =
            std::array::from_fn(|line| std::array::from_fn(|at| (line * LANES + at) as u32));
        // SAFETY: AMX implies AVX-512; arrays of words are registers.
        let columns: [[u32; LANES]; LANES] = unsafe {
            std::mem::transmute(transposed(std::mem::transmute::<_, [__m512i; LANES]>(
                lines,
            )))
        };
        for (line, words) in lines.iter().enumerate() {
            for (column, word) in words.iter().enumerate() {
                assert_eq!(columns[column][line], *word);
            }
        }
    }
}
