//! `e^x` for `x ≤ 0` in double precision, written so that a loop over it vectorizes.
//!
//! The standard library's `exp` is a function call per element and differs between platforms in
//! the last bit. This one consists of about thirty multiplications and additions without
//! branches in a fixed order, so it gives the same bits on every IEEE 754 platform: a seed then
//! gives the same answer everywhere.

/// The lower bound that arguments are clamped to. There `2^n` has the exponent bits of zero, so
/// the result is 0. The lost values (1e-308) are too small to affect a sum over a vocabulary.
const UNDERFLOW: f64 = -709.2;

/// Adding and subtracting this constant rounds to the nearest integer; in between, the integer
/// is in the low bits.
const ROUND: f64 = 1.5 * (1u64 << 52) as f64;

/// ln 2 in two parts: the high part has enough trailing zero bits that its product with any
/// exponent is exact, the low part is the remainder.
const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);

/// The Taylor coefficients `1/k!`, k = 0 to 12. The first omitted term is below 2e-16 of the
/// sum on the reduced range |r| ≤ ln 2 / 2.
const TAYLOR: [f64; 13] = [
    1.0,
    1.0,
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5_040.0,
    1.0 / 40_320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
];

/// Computes `e^x` for `x ≤ 0` with a relative error below 5e-16; exactly 1 at 0, and exactly 0
/// at −709 and below, at −∞ and for NaN.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    // The comparison is false for NaN, so NaN gets the weight 0.
    let x = if x > UNDERFLOW { x } else { UNDERFLOW };

    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;

    // Estrin's scheme: a tree instead of Horner's chain, whose thirteen dependent steps would
    // stall the processor.
    let r2 = r * r;
    let r4 = r2 * r2;
    let pair = |k: usize| TAYLOR[k] + TAYLOR[k + 1] * r;
    let quad = |k: usize| pair(k) + pair(k + 2) * r2;
    let sum = (quad(0) + quad(4) * r4) + (quad(8) + TAYLOR[12] * r4) * (r4 * r4);

    // The low bits of `shifted` are n; shifted into the exponent and biased, they give 2^n.
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    sum * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard_library() {
        let mut worst = 0.0f64;
        for step in 0..=700_000 {
            let x = f64::from(step) * -1e-3 + 1e-7 * f64::from(step % 7) - 7e-7;
            worst = worst.max((exp(x) / x.exp() - 1.0).abs());
        }
        // Both results may be off by half a unit in the last place.
        assert!(worst <= 5e-16, "relative error {worst:e}");
    }

    #[test]
    fn is_exact_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert!(exp(-708.0) > 0.0);
        assert_eq!(exp(-709.0), 0.0);
        assert_eq!(exp(-1e300), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::NAN), 0.0);
    }

    #[test]
    fn never_decreases() {
        let mut previous = 0.0;
        for step in 0..2_000_000 {
            let value = exp(-40.0 + f64::from(step) * 2e-5);
            assert!(value >= previous);
            previous = value;
        }
    }
}
