//! Sums over the softmaxes of rows of logits: of one row, or of two rows in a single pass.

use super::exp::exp as exp_f64;
use super::isa::{Isa, Tier};
use super::math::{LANES, dispatch, exp};

/// The number of logits whose weights are computed before they are summed: one long loop that
/// only computes `exp` keeps the processor busier than two alternating ones.
const LOGITS_PER_BATCH: usize = 64;

/// Returns the largest logit, or `None` if a logit is infinite or NaN, or if there are no
/// logits.
pub fn largest_if_finite(isa: Isa, logits: &[f32]) -> Option<f32> {
    let (mut largest, mut finite) = (f32::MIN, true);
    let (out_largest, out_finite) = (&mut largest, &mut finite);
    dispatch!(isa, |_,
                    logits: &[f32],
                    out_largest: &mut f32,
                    out_finite: &mut bool| {
        let mut lanes = [f32::MIN; LANES];
        // Zero times an infinity or NaN is NaN, and a sum with it stays NaN.
        let mut zeros = [0.0f32; LANES];
        let (groups, rest) = logits.as_chunks::<LANES>();
        for group in groups {
            for ((lane, zero), &logit) in lanes.iter_mut().zip(&mut zeros).zip(group) {
                *lane = if logit > *lane { logit } else { *lane };
                *zero = logit.mul_add(0.0, *zero);
            }
        }
        *out_largest = lanes.iter().chain(rest).fold(f32::MIN, |a, &b| a.max(b));
        *out_finite = zeros.iter().all(|&zero| zero == 0.0) && rest.iter().all(|l| l.is_finite());
    });
    (finite && !logits.is_empty()).then_some(largest)
}

/// Computes Σ `e^((logit − largest) · factor)` over some logits, in double precision. NaN has
/// the weight 0. The sum runs lane by lane, in the same order on all instruction sets.
pub fn weight(isa: Isa, logits: &[f32], largest: f64, factor: f64) -> f64 {
    const DOUBLES: usize = 8;
    let mut sum = 0.0;
    let out = &mut sum;
    dispatch!(isa, |_,
                    logits: &[f32],
                    largest: f64,
                    factor: f64,
                    out: &mut f64| {
        let mut lanes = [0.0; DOUBLES];
        let (groups, rest) = logits.as_chunks::<DOUBLES>();
        for group in groups {
            for (lane, &logit) in lanes.iter_mut().zip(group) {
                *lane += exp_f64((f64::from(logit) - largest) * factor);
            }
        }
        for (lane, &logit) in lanes.iter_mut().zip(rest) {
            *lane += exp_f64((f64::from(logit) - largest) * factor);
        }
        *out = lanes.iter().sum();
    });
    sum
}

/// Computes Σ w and Σ w · ln w over some logits, w = `e^((logit − largest) · factor)`, in
/// double precision. NaN and −∞ add nothing. Both sums run lane by lane, in the same order on
/// all instruction sets.
pub fn moments(isa: Isa, logits: &[f32], largest: f64, factor: f64) -> (f64, f64) {
    const DOUBLES: usize = 8;
    let mut sums = (0.0, 0.0);
    let out = &mut sums;
    dispatch!(isa, |_,
                    logits: &[f32],
                    largest: f64,
                    factor: f64,
                    out: &mut (f64, f64)| {
        // At and below this value a weight is 0; zero times an infinity or NaN would be NaN.
        const MIN_LOGARITHM: f64 = -1e4;
        let logarithm = |logit: f32| {
            let logarithm = (f64::from(logit) - largest) * factor;
            if logarithm > MIN_LOGARITHM {
                logarithm
            } else {
                MIN_LOGARITHM
            }
        };
        let (mut mass, mut product) = ([0.0; DOUBLES], [0.0; DOUBLES]);
        let (groups, rest) = logits.as_chunks::<DOUBLES>();
        for group in groups {
            for ((mass, product), &logit) in mass.iter_mut().zip(&mut product).zip(group) {
                let logarithm = logarithm(logit);
                let weight = exp_f64(logarithm);
                *mass += weight;
                *product += weight * logarithm;
            }
        }
        for ((mass, product), &logit) in mass.iter_mut().zip(&mut product).zip(rest) {
            let logarithm = logarithm(logit);
            let weight = exp_f64(logarithm);
            *mass += weight;
            *product += weight * logarithm;
        }
        *out = (mass.iter().sum(), product.iter().sum());
    });
    sums
}

/// Computes the standard deviation of the logits above −∞, in double precision; NaN is treated
/// like −∞, and the result without any such logit is NaN. The sums run lane by lane, in the
/// same order on all instruction sets.
pub fn deviation(isa: Isa, logits: &[f32]) -> f64 {
    const DOUBLES: usize = 8;
    let mut deviation = 0.0;
    let out = &mut deviation;
    dispatch!(isa, |_, logits: &[f32], out: &mut f64| {
        let (groups, rest) = logits.as_chunks::<DOUBLES>();
        let (mut sum, mut count) = ([0.0; DOUBLES], [0.0; DOUBLES]);
        for group in groups.iter().map(|group| &group[..]).chain([rest]) {
            for ((sum, count), &logit) in sum.iter_mut().zip(&mut count).zip(group) {
                let counts = logit > f32::NEG_INFINITY;
                *sum += if counts { f64::from(logit) } else { 0.0 };
                *count += if counts { 1.0 } else { 0.0 };
            }
        }
        let count: f64 = count.iter().sum();
        let mean = sum.iter().sum::<f64>() / count;
        let mut squares = [0.0; DOUBLES];
        for group in groups.iter().map(|group| &group[..]).chain([rest]) {
            for (squares, &logit) in squares.iter_mut().zip(group) {
                let counts = logit > f32::NEG_INFINITY;
                let apart = if counts { f64::from(logit) - mean } else { 0.0 };
                *squares += apart * apart;
            }
        }
        *out = (squares.iter().sum::<f64>() / count).sqrt();
    });
    deviation
}

/// Sums of the softmax weights of two rows p and q, and of the differences between their
/// logits, weighted by them. A logit `a` of p has the weight `e^(a − p_largest)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// The sum of p's weights.
    pub p: f64,
    /// The sum of q's weights.
    pub q: f64,
    /// The sum of p's weights, each times the difference between p's and q's logit.
    pub p_difference: f64,
    /// The sum of q's weights, each times the difference between p's and q's logit.
    pub q_difference: f64,
}

/// Computes the sums over two rows of finite logits, given the largest logit of each.
///
/// Weights are computed in single precision, with a relative error below 4e-7, and are summed
/// in double precision, lane by lane, in the same order on all instruction sets.
///
/// # Panics
/// The lengths of the rows differ.
pub fn sums(isa: Isa, p: &[f32], p_largest: f32, q: &[f32], q_largest: f32) -> Sums {
    assert_eq!(p.len(), q.len(), "rows over different vocabularies");
    let mut lanes = [[0.0f64; LANES]; 4];
    let out = &mut lanes;
    dispatch!(isa, |_,
                    p: &[f32],
                    p_largest: f32,
                    q: &[f32],
                    q_largest: f32,
                    out: &mut [[f64; LANES]; 4]| {
        let mut lanes = [[0.0; LANES]; 4];
        let (p, p_rest) = p.as_chunks::<LOGITS_PER_BATCH>();
        let (q, q_rest) = q.as_chunks::<LOGITS_PER_BATCH>();
        for (p, q) in p.iter().zip(q) {
            let (mut p_weights, mut q_weights) = ([0.0; LOGITS_PER_BATCH], [0.0; LOGITS_PER_BATCH]);
            for (weight, logit) in p_weights.iter_mut().zip(p) {
                *weight = exp(logit - p_largest);
            }
            for (weight, logit) in q_weights.iter_mut().zip(q) {
                *weight = exp(logit - q_largest);
            }
            for start in (0..LOGITS_PER_BATCH).step_by(LANES) {
                for lane in 0..LANES {
                    let at = start + lane;
                    add(
                        &mut lanes,
                        lane,
                        [p_weights[at], q_weights[at]],
                        p[at],
                        q[at],
                    );
                }
            }
        }
        for (at, (p, q)) in p_rest.iter().zip(q_rest).enumerate() {
            let weights = [exp(p - p_largest), exp(q - q_largest)];
            add(&mut lanes, at % LANES, weights, *p, *q);
        }
        *out = lanes;
    });
    let [p, q, p_difference, q_difference] = lanes.map(|lanes| lanes.iter().sum());
    Sums {
        p,
        q,
        p_difference,
        q_difference,
    }
}

/// Adds the contribution of one token to one lane of the four sums.
#[inline(always)]
fn add(sums: &mut [[f64; LANES]; 4], lane: usize, weights: [f32; 2], p: f32, q: f32) {
    let [p_weight, q_weight] = weights.map(f64::from);
    let difference = f64::from(p) - f64::from(q);
    sums[0][lane] += p_weight;
    sums[1][lane] += q_weight;
    sums[2][lane] = p_weight.mul_add(difference, sums[2][lane]);
    sums[3][lane] = q_weight.mul_add(difference, sums[3][lane]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(length: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32;
        (0..length as u32).map(|i| number(i) / 1e6 - 8.0).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for length in [1, 63, 64, 65, 1000] {
            let (p, q) = (row(length, 1), row(length, 99));
            let all: Vec<_> = Isa::all()
                .into_iter()
                .map(|isa| {
                    let largest = [&p, &q].map(|row| largest_if_finite(isa, row));
                    let [Some(a), Some(b)] = largest else {
                        panic!("the rows are finite")
                    };
                    let weight = weight(isa, &p, f64::from(a), 1.25);
                    (a, b, sums(isa, &p, a, &q, b), weight)
                })
                .collect();
            assert!(all.iter().all(|found| *found == all[0]), "{all:?}");
        }
    }

    #[test]
    fn finds_the_largest_and_anything_not_finite_wherever_it_stands() {
        for isa in Isa::all() {
            assert_eq!(largest_if_finite(isa, &[]), None);
            for at in 0..100 {
                let mut logits = vec![-3.0; 100];
                logits[at] = -1.5;
                assert_eq!(largest_if_finite(isa, &logits), Some(-1.5));
                for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    logits[at] = odd;
                    assert_eq!(largest_if_finite(isa, &logits), None, "{odd} at {at}");
                }
            }
        }
    }
}
