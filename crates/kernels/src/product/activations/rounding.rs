//! Rounds activations to 16-bit codes and to bf16.

use super::super::{BlockHalfSums, PAIRS, rounded};
use crate::isa::{Isa, Tier};
use crate::math::dispatch;
use crate::matrix::COLUMNS_PER_BLOCK;

/// The largest code. The sum of 32 products with 8-bit codes fits in 32 bits.
const MAX_CODE: f32 = 32767.0;

/// Converts to bf16, rounding to nearest even.
#[inline(always)]
pub(super) fn to_bf16(number: f32) -> u16 {
    let bits = number.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    // NaN stays NaN.
    let kept = bits | 0x40_0000;
    (if number.is_nan() { kept } else { nearest } >> 16) as u16
}

/// Rounds 32 elements to 16-bit codes, two per word. Returns their scale and the sums of each
/// half of the block.
pub(super) fn round(
    isa: Isa,
    values: &[f32; COLUMNS_PER_BLOCK],
    codes: &mut [u32; PAIRS],
) -> (f32, BlockHalfSums) {
    let (mut scale, mut sums) = (0.0, BlockHalfSums::default());
    let (to_scale, to_sums) = (&mut scale, &mut sums);
    dispatch!(isa, |_,
                    values: &[f32; COLUMNS_PER_BLOCK],
                    codes: &mut [u32; PAIRS],
                    to_scale: &mut f32,
                    to_sums: &mut BlockHalfSums| {
        (*to_scale, *to_sums) = round_body(values, codes);
    });
    (scale, sums)
}

#[inline(always)]
pub(super) fn round_body(
    values: &[f32; COLUMNS_PER_BLOCK],
    codes: &mut [u32; PAIRS],
) -> (f32, BlockHalfSums) {
    // Without the sign bit, floats are ordered like their bits, and NaN is above all of them:
    // so NaN becomes the scale.
    let mut greatest = [0u32; 8];
    for eight in values.chunks_exact(8) {
        for (greatest, value) in greatest.iter_mut().zip(eight) {
            *greatest = (*greatest).max(value.to_bits() & 0x7FFF_FFFF);
        }
    }
    let greatest = f32::from_bits(greatest.into_iter().fold(0, u32::max));
    let scale = greatest / MAX_CODE;
    let inverse = if scale > 0.0 {
        MAX_CODE / greatest
    } else {
        0.0
    };
    let mut whole = [0i32; COLUMNS_PER_BLOCK];
    for (whole, value) in whole.iter_mut().zip(values) {
        *whole = rounded(value * inverse).cast_signed().into();
    }
    let mut sums = [0i32; 2];
    for (sum, half) in sums
        .iter_mut()
        .zip(whole.chunks_exact(COLUMNS_PER_BLOCK / 2))
    {
        *sum = half.iter().sum();
    }
    for (pair, whole) in codes.iter_mut().zip(whole.chunks_exact(2)) {
        *pair = whole[0].cast_unsigned() & 0xFFFF | whole[1].cast_unsigned() << 16;
    }
    let values = sums.map(|sum| sum as f32 * scale);
    (
        scale,
        BlockHalfSums {
            codes: sums,
            values,
        },
    )
}

#[cfg(test)]
mod tests {
    use half::bf16;

    #[test]
    fn rounding_gives_bf16() {
        for high in 0..=u16::MAX {
            // At, below and above the midpoint between two bf16 values.
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let number = f32::from_bits(u32::from(high) << 16 | low);
                let (found, expected) = (super::to_bf16(number), bf16::from_f32(number));
                if number.is_nan() {
                    assert!(bf16::from_bits(found).is_nan());
                } else {
                    assert_eq!(found, expected.to_bits(), "{number:e}");
                }
            }
        }
    }
}
