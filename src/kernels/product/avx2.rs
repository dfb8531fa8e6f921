//! The inner loops for AVX2: a lane vector is two registers of eight rows.

use std::arch::x86_64::*;

use super::super::matrix::{BLOCK, Bits, Codes, Dense, LANES, Matrix};
use super::{Activations, Ops, PAIRS, Tile, Unpacked, UnpackedDense, run};

/// How far ahead of the block at hand memory is asked for.
const AHEAD: usize = 4096;

pub(super) struct Avx2;

/// [`super::panel`] with AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn panel(matrix: &Matrix, panel: usize, rows: &Activations, out: &mut [[f32; LANES]]) {
    // SAFETY: the instructions are enabled here.
    unsafe { run::<Avx2>(matrix, panel, rows, out) }
}

/// Eight words of a block: `row` is 0 or 1, for the lower or the upper eight rows.
#[inline(always)]
unsafe fn words(block: &[u8], index: usize, half: usize) -> __m256i {
    let at = 4 * LANES * index + 32 * half;
    debug_assert!(at + 32 <= block.len());
    // SAFETY: blocks are as long as their format says.
    unsafe { _mm256_loadu_si256(block.as_ptr().add(at).cast()) }
}

/// Stores eight rows' codes of one pair of columns, less `zero`.
#[inline(always)]
unsafe fn put(out: &mut Unpacked, pair: usize, half: usize, codes: __m256i, zero: __m256i) {
    let to = &mut out.0[pair][8 * half];
    // SAFETY: eight pairs of i16 follow in the row.
    unsafe { _mm256_store_si256((&raw mut *to).cast(), _mm256_sub_epi16(codes, zero)) }
}

/// The four pairs of eight columns' lower four bits.
#[inline(always)]
unsafe fn nibbles(block: &[u8], index: usize, half: usize) -> [__m256i; 4] {
    // SAFETY: the caller has AVX2 enabled.
    unsafe {
        let mask = _mm256_set1_epi16(0xF);
        let words = words(block, index, half);
        [
            _mm256_and_si256(words, mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(words), mask),
            _mm256_and_si256(_mm256_srli_epi16::<8>(words), mask),
            _mm256_srli_epi16::<12>(words),
        ]
    }
}

impl Ops for Avx2 {
    const TALLEST: usize = 6;

    #[inline(always)]
    unsafe fn halves(bytes: &[u8; 2 * LANES]) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: 32 bytes in, 16 floats out.
        unsafe {
            for half in 0..2 {
                let bits = _mm_loadu_si128(bytes.as_ptr().add(16 * half).cast());
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), _mm256_cvtph_ps(bits));
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn prefetch(block: &[u8]) {
        for line in (0..block.len()).step_by(64) {
            let ahead = block.as_ptr().wrapping_add(line + AHEAD);
            // SAFETY: a prefetch of any address is only a hint.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        }
    }

    #[inline(always)]
    unsafe fn unpack(codes: Codes, block: &[u8], out: &mut Unpacked) {
        // SAFETY: the caller has AVX2 enabled, and the block has its length.
        unsafe {
            let zero = _mm256_set1_epi16(codes.zero);
            for half in 0..2 {
                match codes.bits {
                    Bits::Four => {
                        for index in 0..4 {
                            let pairs = nibbles(block, index, half);
                            for (pair, codes) in pairs.into_iter().enumerate() {
                                put(out, 4 * index + pair, half, codes, zero);
                            }
                        }
                    }
                    Bits::Five => {
                        let plane = words(block, 4, half);
                        let bit = _mm256_set1_epi16(0x10);
                        // Pair s has its bits at place s of each half word;
                        // they belong at place 4.
                        let mut fifth = _mm256_slli_epi16::<4>(plane);
                        for index in 0..4 {
                            if index == 3 {
                                fifth = _mm256_srli_epi16::<8>(plane);
                            }
                            let pairs = nibbles(block, index, half);
                            for (pair, codes) in pairs.into_iter().enumerate() {
                                let codes = _mm256_or_si256(codes, _mm256_and_si256(fifth, bit));
                                put(out, 4 * index + pair, half, codes, zero);
                                fifth = _mm256_srli_epi16::<1>(fifth);
                            }
                        }
                    }
                    Bits::Six => {
                        let bits = _mm256_set1_epi16(0x30);
                        let mut plane = words(block, 4, half);
                        let mut upper = _mm256_slli_epi16::<4>(plane);
                        for index in 0..4 {
                            if index == 2 {
                                plane = words(block, 5, half);
                                upper = _mm256_slli_epi16::<4>(plane);
                            }
                            let pairs = nibbles(block, index, half);
                            for (pair, codes) in pairs.into_iter().enumerate() {
                                // Pairs 6 and 7 of a plane were shifted out.
                                if index % 2 == 1 && pair == 2 {
                                    upper = _mm256_srli_epi16::<8>(plane);
                                }
                                let codes = _mm256_or_si256(codes, _mm256_and_si256(upper, bits));
                                put(out, 4 * index + pair, half, codes, zero);
                                upper = _mm256_srli_epi16::<2>(upper);
                            }
                        }
                    }
                    Bits::Eight => {
                        let mask = _mm256_set1_epi16(0xFF);
                        for index in 0..8 {
                            let words = words(block, index, half);
                            let low = _mm256_and_si256(words, mask);
                            put(out, 2 * index, half, low, zero);
                            put(
                                out,
                                2 * index + 1,
                                half,
                                _mm256_srli_epi16::<8>(words),
                                zero,
                            );
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack_dense(dense: Dense, block: &[u8], out: &mut UnpackedDense) {
        let out = out.0.as_flattened_mut();
        assert_eq!(block.len(), out.len() * dense.width());
        for at in (0..out.len()).step_by(8) {
            // SAFETY: the lengths were just compared.
            unsafe {
                let from = block.as_ptr().add(at * dense.width());
                let numbers = match dense {
                    Dense::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    Dense::BF16 => {
                        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                    }
                    Dense::F32 => _mm256_loadu_ps(from.cast()),
                };
                _mm256_storeu_ps(out.as_mut_ptr().add(at), numbers);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const R: usize, const GROUPS: usize, const MINIMUM: bool>(
        weights: &Unpacked,
        scales: &[[f32; LANES]],
        minima: &[[f32; LANES]],
        tile: Tile<'_>,
        out: &mut [[f32; LANES]],
    ) {
        assert!(scales.len() == GROUPS && minima.len() == GROUPS);
        assert!(tile.codes.len() == R * BLOCK && tile.scales.len() == R && tile.sums.len() == R);
        assert_eq!(out.len(), R);
        // SAFETY: the lengths were just checked, and the caller has AVX2 enabled.
        unsafe {
            let codes = tile.codes.as_ptr();
            for group in 0..GROUPS {
                let mut whole = [[_mm256_setzero_si256(); 2]; R];
                for pair in group * PAIRS / GROUPS..(group + 1) * PAIRS / GROUPS {
                    let weights = weights.0.as_ptr().add(pair).cast::<__m256i>();
                    let weights = [
                        _mm256_load_si256(weights),
                        _mm256_load_si256(weights.add(1)),
                    ];
                    for (row, whole) in whole.iter_mut().enumerate() {
                        let two = codes.add(2 * (pair * R + row)).cast::<i32>();
                        let two = _mm256_set1_epi32(two.read_unaligned());
                        for half in 0..2 {
                            let products = _mm256_madd_epi16(weights[half], two);
                            whole[half] = _mm256_add_epi32(whole[half], products);
                        }
                    }
                }
                for (row, whole) in whole.iter().enumerate() {
                    let scale = _mm256_set1_ps(tile.scales[row]);
                    let sum = match GROUPS {
                        1 => tile.sums[row][0] + tile.sums[row][1],
                        _ => tile.sums[row][group],
                    };
                    for (half, &whole) in whole.iter().enumerate() {
                        let product = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale);
                        let out = out[row].as_mut_ptr().add(8 * half);
                        let scales = _mm256_loadu_ps(scales[group].as_ptr().add(8 * half));
                        let mut total = _mm256_fmadd_ps(product, scales, _mm256_loadu_ps(out));
                        if MINIMUM {
                            let minima = _mm256_loadu_ps(minima[group].as_ptr().add(8 * half));
                            total = _mm256_fmadd_ps(_mm256_set1_ps(sum), minima, total);
                        }
                        _mm256_storeu_ps(out, total);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_dense<const R: usize>(
        weights: &UnpackedDense,
        tile: &[f32],
        out: &mut [[f32; LANES]],
    ) {
        assert!(tile.len() == R * BLOCK && out.len() == R);
        // SAFETY: the lengths were just checked, and the caller has AVX2 enabled.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            for (column, weights) in weights.0.iter().enumerate() {
                let weights = [
                    _mm256_load_ps(weights.as_ptr()),
                    _mm256_load_ps(weights.as_ptr().add(8)),
                ];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*tile.as_ptr().add(column * R + row));
                    for half in 0..2 {
                        sums[half] = _mm256_fmadd_ps(value, weights[half], sums[half]);
                    }
                }
            }
            for (sums, out) in sums.iter().zip(out) {
                for (half, &sum) in sums.iter().enumerate() {
                    let out = out.as_mut_ptr().add(8 * half);
                    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sum));
                }
            }
        }
    }
}
