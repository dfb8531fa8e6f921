//! The inner loops for AVX-512 with VNNI: a lane vector is one register.

use std::arch::x86_64::*;

use super::super::matrix::{BLOCK, Bits, Codes, Dense, LANES, Matrix};
use super::{Activations, Ops, PAIRS, Tile, Unpacked, UnpackedDense, run};

/// How far ahead of the block at hand memory is asked for.
const AHEAD: usize = 8192;

pub(super) struct Avx512;

/// [`super::panel`] with AVX-512.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn panel(matrix: &Matrix, panel: usize, rows: &Activations, out: &mut [[f32; LANES]]) {
    // SAFETY: the instructions are enabled here.
    unsafe { run::<Avx512>(matrix, panel, rows, out) }
}

/// 16 words of a block.
#[inline(always)]
unsafe fn words(block: &[u8], index: usize) -> __m512i {
    let at = 4 * LANES * index;
    debug_assert!(at + 64 <= block.len());
    // SAFETY: blocks are as long as their format says.
    unsafe { _mm512_loadu_si512(block.as_ptr().add(at).cast()) }
}

/// Stores one pair of columns' codes, less `zero`.
#[inline(always)]
unsafe fn put(out: &mut Unpacked, pair: usize, codes: __m512i, zero: __m512i) {
    let to = &mut out.0[pair];
    // SAFETY: 16 pairs of i16.
    unsafe { _mm512_store_si512((&raw mut *to).cast(), _mm512_sub_epi16(codes, zero)) }
}

/// The four pairs of eight columns' lower four bits.
#[inline(always)]
unsafe fn nibbles(block: &[u8], index: usize) -> [__m512i; 4] {
    // SAFETY: the caller has AVX-512 enabled.
    unsafe {
        let mask = _mm512_set1_epi16(0xF);
        let words = words(block, index);
        [
            _mm512_and_si512(words, mask),
            _mm512_and_si512(_mm512_srli_epi16::<4>(words), mask),
            _mm512_and_si512(_mm512_srli_epi16::<8>(words), mask),
            _mm512_srli_epi16::<12>(words),
        ]
    }
}

impl Ops for Avx512 {
    const TALLEST: usize = 12;

    #[inline(always)]
    unsafe fn halves(bytes: &[u8; 2 * LANES]) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: 32 bytes in, 16 floats out.
        unsafe {
            let bits = _mm256_loadu_si256(bytes.as_ptr().cast());
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(bits));
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
        // SAFETY: the caller has AVX-512 enabled, and the block has its length.
        unsafe {
            let zero = _mm512_set1_epi16(codes.zero);
            match codes.bits {
                Bits::Four => {
                    for index in 0..4 {
                        let pairs = nibbles(block, index);
                        for (pair, codes) in pairs.into_iter().enumerate() {
                            put(out, 4 * index + pair, codes, zero);
                        }
                    }
                }
                Bits::Five => {
                    let plane = words(block, 4);
                    let bit = _mm512_set1_epi16(0x10);
                    // Pair s has its bits at place s of each half word; they
                    // belong at place 4.
                    let mut fifth = _mm512_slli_epi16::<4>(plane);
                    for index in 0..4 {
                        if index == 3 {
                            fifth = _mm512_srli_epi16::<8>(plane);
                        }
                        let pairs = nibbles(block, index);
                        for (pair, codes) in pairs.into_iter().enumerate() {
                            let codes = _mm512_or_si512(codes, _mm512_and_si512(fifth, bit));
                            put(out, 4 * index + pair, codes, zero);
                            fifth = _mm512_srli_epi16::<1>(fifth);
                        }
                    }
                }
                Bits::Six => {
                    let bits = _mm512_set1_epi16(0x30);
                    let mut plane = words(block, 4);
                    let mut upper = _mm512_slli_epi16::<4>(plane);
                    for index in 0..4 {
                        if index == 2 {
                            plane = words(block, 5);
                            upper = _mm512_slli_epi16::<4>(plane);
                        }
                        let pairs = nibbles(block, index);
                        for (pair, codes) in pairs.into_iter().enumerate() {
                            // Pairs 6 and 7 of a plane were shifted out.
                            if index % 2 == 1 && pair == 2 {
                                upper = _mm512_srli_epi16::<8>(plane);
                            }
                            let codes = _mm512_or_si512(codes, _mm512_and_si512(upper, bits));
                            put(out, 4 * index + pair, codes, zero);
                            upper = _mm512_srli_epi16::<2>(upper);
                        }
                    }
                }
                Bits::Eight => {
                    let mask = _mm512_set1_epi16(0xFF);
                    for index in 0..8 {
                        let words = words(block, index);
                        put(out, 2 * index, _mm512_and_si512(words, mask), zero);
                        put(out, 2 * index + 1, _mm512_srli_epi16::<8>(words), zero);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack_dense(dense: Dense, block: &[u8], out: &mut UnpackedDense) {
        let out = out.0.as_flattened_mut();
        assert_eq!(block.len(), out.len() * dense.width());
        for at in (0..out.len()).step_by(LANES) {
            // SAFETY: the lengths were just compared.
            unsafe {
                let from = block.as_ptr().add(at * dense.width());
                let numbers = match dense {
                    Dense::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                    Dense::BF16 => {
                        let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
                    }
                    Dense::F32 => _mm512_loadu_ps(from.cast()),
                };
                _mm512_storeu_ps(out.as_mut_ptr().add(at), numbers);
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
        // SAFETY: the lengths were just checked, and the caller has AVX-512
        // enabled.
        unsafe {
            let codes = tile.codes.as_ptr();
            for group in 0..GROUPS {
                let mut whole = [_mm512_setzero_si512(); R];
                for pair in group * PAIRS / GROUPS..(group + 1) * PAIRS / GROUPS {
                    let weights = _mm512_load_si512(weights.0.as_ptr().add(pair).cast());
                    for (row, whole) in whole.iter_mut().enumerate() {
                        let two = codes.add(2 * (pair * R + row)).cast::<i32>();
                        let two = _mm512_set1_epi32(two.read_unaligned());
                        *whole = _mm512_dpwssd_epi32(*whole, weights, two);
                    }
                }
                let scales = _mm512_loadu_ps(scales[group].as_ptr());
                for (row, &whole) in whole.iter().enumerate() {
                    let scale = _mm512_set1_ps(tile.scales[row]);
                    let product = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);
                    let out = out[row].as_mut_ptr();
                    let mut total = _mm512_fmadd_ps(product, scales, _mm512_loadu_ps(out));
                    if MINIMUM {
                        let sum = match GROUPS {
                            1 => tile.sums[row][0] + tile.sums[row][1],
                            _ => tile.sums[row][group],
                        };
                        let minima = _mm512_loadu_ps(minima[group].as_ptr());
                        total = _mm512_fmadd_ps(_mm512_set1_ps(sum), minima, total);
                    }
                    _mm512_storeu_ps(out, total);
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
        // SAFETY: the lengths were just checked, and the caller has AVX-512
        // enabled.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); R];
            for (column, weights) in weights.0.iter().enumerate() {
                let weights = _mm512_load_ps(weights.as_ptr());
                for (row, sum) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*tile.as_ptr().add(column * R + row));
                    *sum = _mm512_fmadd_ps(value, weights, *sum);
                }
            }
            for (&sum, out) in sums.iter().zip(out) {
                let out = out.as_mut_ptr();
                _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
            }
        }
    }
}
