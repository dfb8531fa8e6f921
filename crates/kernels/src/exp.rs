//! `e^x` for `x ≤ 0`, written so that a loop over it becomes vector code.
//!
//! The standard library's `exp` is a call per element and differs between
//! platforms in the last bit. This one is some thirty multiplications and additions
//! without a branch, in an order that is fixed, so that it gives the same bits
//! wherever IEEE 754 holds: a seed then gives the same answer everywhere.

/// Here `2^n` has the exponent bits of zero, so the result is 0: what is below is
/// raised to it. No sum over a vocabulary can see what is lost (1e-308).
const UNDERFLOW: f64 = -709.2;

/// Adding and subtracting it rounds to the nearest integer, and leaves that
/// integer in the low bits in between.
const ROUND: f64 = 1.5 * (1u64 << 52) as f64;

/// ln 2 in two parts: the first has so many trailing zero bits that its product
/// with any exponent is exact, the second is the rest.
const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);

/// `1/k!`, k = 0 to 12. The first term left out is below 2e-16 of the sum on the
/// reduced range |r| ≤ ln 2 / 2.
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

/// `e^x` for `x ≤ 0` within 5e-16 of the true value, relatively; exactly 1 at 0,
/// and exactly 0 from −709 down, at −∞ and for NaN.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    // The comparison is false for NaN, so that NaN weighs nothing.
    let x = if x > UNDERFLOW { x } else { UNDERFLOW };

    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;

    // Estrin's scheme: a tree instead of Horner's chain, whose thirteen
    // dependent steps would leave the processor waiting.
    let r2 = r * r;
    let r4 = r2 * r2;
    let pair = |k: usize| TAYLOR[k] + TAYLOR[k + 1] * r;
    let quad = |k: usize| pair(k) + pair(k + 2) * r2;
    let sum = (quad(0) + quad(4) * r4) + (quad(8) + TAYLOR[12] * r4) * (r4 * r4);

    // The low bits of `shifted` are n; moved into the exponent and biased: 2^n.
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
        // Both sides may be half a unit in the last place off by themselves.
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
