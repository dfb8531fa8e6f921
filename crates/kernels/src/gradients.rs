//! Backward passes of element-wise kernels (RMS norm, gated activations, softmax), for
//! training.

use super::isa::{Isa, Tier};
use super::math::{LANES, dispatch, exp, sum_lanes};
use crate::math::Activation;

/// Backward pass of the RMS norm: replaces the gradient of its output in `dy` with that of its
/// input.
///
/// With `f = 1 / sqrt(mean(x²) + eps)` the gradient is
/// `f · (dy ⊙ weight) − x · f³ · mean(dy ⊙ weight ⊙ x)`.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, dy: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == dy.len());
    dispatch!(isa, |_,
                    x: &[f32],
                    weight: &[f32],
                    eps: f32,
                    dy: &mut [f32]| {
        let (mut squares, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (whole, rest) = x.as_chunks::<LANES>();
        let (weights, weight_rest) = weight.as_chunks::<LANES>();
        let (dys, dy_rest) = dy.as_chunks::<LANES>();
        for ((x, weight), dy) in whole.iter().zip(weights).zip(dys) {
            for lane in 0..LANES {
                squares[lane] = x[lane].mul_add(x[lane], squares[lane]);
                products[lane] = (dy[lane] * weight[lane]).mul_add(x[lane], products[lane]);
            }
        }
        for (lane, ((x, weight), dy)) in rest.iter().zip(weight_rest).zip(dy_rest).enumerate() {
            squares[lane] = x.mul_add(*x, squares[lane]);
            products[lane] = (dy * weight).mul_add(*x, products[lane]);
        }
        let count = x.len() as f32;
        let factor = 1.0 / (sum_lanes(squares) / count + eps).sqrt();
        let along = sum_lanes(products) / count * factor * factor * factor;
        for ((dy, x), weight) in dy.iter_mut().zip(x).zip(weight) {
            *dy = (*dy * weight).mul_add(factor, -(x * along));
        }
    });
}

/// Backward pass of `activation(gate) · up`: given the gradient of the output in `dy`, writes
/// the gradient of `gate` to `d_gate` and replaces `dy` with the gradient of `up`.
pub fn gated(
    isa: Isa,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    dy: &mut [f32],
    d_gate: &mut [f32],
) {
    assert!(gate.len() == up.len() && up.len() == dy.len() && dy.len() == d_gate.len());
    match activation {
        Activation::Silu => {
            dispatch!(isa, |_,
                            gate: &[f32],
                            up: &[f32],
                            dy: &mut [f32],
                            d_gate: &mut [f32]| {
                both(gate, up, dy, d_gate, silu);
            })
        }
        Activation::GeluTanh => {
            dispatch!(isa, |_,
                            gate: &[f32],
                            up: &[f32],
                            dy: &mut [f32],
                            d_gate: &mut [f32]| {
                both(gate, up, dy, d_gate, gelu_tanh);
            })
        }
    }
}

#[inline(always)]
fn both(
    gate: &[f32],
    up: &[f32],
    dy: &mut [f32],
    d_gate: &mut [f32],
    activation: impl Fn(f32) -> (f32, f32),
) {
    let inputs = gate.iter().zip(up);
    for ((gate, up), (dy, d_gate)) in inputs.zip(dy.iter_mut().zip(d_gate)) {
        let (value, slope) = activation(*gate);
        *d_gate = *dy * up * slope;
        *dy *= value;
    }
}

/// Returns `x · σ(x)` and its derivative, `σ(x) · (1 + x · (1 − σ(x)))`.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    (x * sigmoid, sigmoid * x.mul_add(1.0 - sigmoid, 1.0))
}

/// Returns `x · σ(2u)` with `u = √(2/π) · (x + 0.044715 x³)`, and its derivative,
/// `σ(2u) + x · σ(2u) · (1 − σ(2u)) · 2u'`.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = LINEAR * 0.044_715;
    let square = x * x;
    let sigmoid = 1.0 / (1.0 + exp(-square.mul_add(CUBIC, LINEAR) * x));
    let inner = square.mul_add(3.0 * CUBIC, LINEAR);
    let slope = (x * (1.0 - sigmoid)).mul_add(inner, 1.0) * sigmoid;
    (x * sigmoid, slope)
}

/// Replaces `logits` with the weights `e^(logit − largest)` and returns the sum of the weights.
pub fn exponentials(isa: Isa, logits: &mut [f32], largest: f32) -> f32 {
    let mut sum = 0.0;
    let out = &mut sum;
    dispatch!(isa, |_, logits: &mut [f32], largest: f32, out: &mut f32| {
        let mut sums = [0.0f32; LANES];
        let (whole, rest) = logits.as_chunks_mut::<LANES>();
        for logits in whole {
            for (logit, sum) in logits.iter_mut().zip(&mut sums) {
                *logit = exp(*logit - largest);
                *sum += *logit;
            }
        }
        for (logit, sum) in rest.iter_mut().zip(&mut sums) {
            *logit = exp(*logit - largest);
            *sum += *logit;
        }
        *out = sum_lanes(sums);
    });
    sum
}

/// Backward pass of the softmax: replaces the gradients of the softmax's output, `weights`,
/// with the gradients of its input, times `scale`:
/// `scale · weight · (gradient − Σ weight · gradient)`.
pub fn softmax(isa: Isa, weights: &[f32], scale: f32, gradients: &mut [f32]) {
    assert_eq!(weights.len(), gradients.len());
    dispatch!(isa, |_,
                    weights: &[f32],
                    scale: f32,
                    gradients: &mut [f32]| {
        let mut sums = [0.0f32; LANES];
        for (gradients, weights) in gradients.chunks(LANES).zip(weights.chunks(LANES)) {
            for ((gradient, weight), sum) in gradients.iter().zip(weights).zip(&mut sums) {
                *sum = gradient.mul_add(*weight, *sum);
            }
        }
        let mean = sum_lanes(sums);
        for (gradient, weight) in gradients.iter_mut().zip(weights) {
            *gradient = weight * (*gradient - mean) * scale;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::math;
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32;
        (0..count as u32).map(|i| number(i) / 4e6 - 2.0).collect()
    }

    /// Computes the gradient of `Σ dy · f(x)` by finite differences.
    fn by_differences(x: &[f32], dy: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
        const STEP: f32 = 1e-2;
        let value = |x: &[f32]| -> f64 {
            let terms = f(x).into_iter().zip(dy);
            terms.map(|(y, dy)| f64::from(y) * f64::from(*dy)).sum()
        };
        let at = |index: usize| {
            let moved = |by: f32| {
                let mut x = x.to_vec();
                x[index] += by;
                value(&x)
            };
            ((moved(STEP) - moved(-STEP)) / (2.0 * f64::from(STEP))) as f32
        };
        (0..x.len()).map(at).collect()
    }

    #[track_caller]
    fn assert_near(found: &[f32], expected: &[f32]) {
        for (found, expected) in found.iter().zip(expected) {
            let apart = (found - expected).abs();
            assert!(
                apart <= 2e-3 * expected.abs().max(1.0),
                "{found} is not {expected}"
            );
        }
    }

    #[test]
    fn of_a_norm() {
        for isa in Isa::all() {
            for width in [5, 16, 40] {
                let (x, weight) = (numbers(width, 1), numbers(width, 50));
                let dy = numbers(width, 99);
                let mut found = dy.clone();
                rms_norm(isa, &x, &weight, 1e-6, &mut found);
                let forward = |x: &[f32]| {
                    let mut out = vec![0.0; width];
                    math::rms_norm(isa, x, &weight, 1e-6, &mut out);
                    out
                };
                assert_near(&found, &by_differences(&x, &dy, forward));
            }
        }
    }

    #[test]
    fn of_a_gate() {
        for isa in Isa::all() {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let (gate, up, dy) = (numbers(37, 3), numbers(37, 70), numbers(37, 9));
                let (mut d_up, mut d_gate) = (dy.clone(), vec![0.0; 37]);
                gated(isa, activation, &gate, &up, &mut d_up, &mut d_gate);
                let of_gate = |gate: &[f32]| {
                    let mut out = gate.to_vec();
                    math::gated(isa, activation, &mut out, &up);
                    out
                };
                assert_near(&d_gate, &by_differences(&gate, &dy, of_gate));
                let of_up = |up: &[f32]| {
                    let mut out = gate.clone();
                    math::gated(isa, activation, &mut out, up);
                    out
                };
                assert_near(&d_up, &by_differences(&up, &dy, of_up));
            }
        }
    }

    #[test]
    fn of_a_softmax() {
        for isa in Isa::all() {
            let (scores, dy) = (numbers(37, 3), numbers(37, 9));
            let forward = |scores: &[f32]| {
                let mut weights: Vec<f32> = scores.iter().map(|score| score * 0.5).collect();
                let sum = exponentials(isa, &mut weights, 1.0);
                math::scale(isa, &mut weights, 1.0 / sum);
                weights
            };
            let mut found = dy.clone();
            softmax(isa, &forward(&scores), 0.5, &mut found);
            assert_near(&found, &by_differences(&scores, &dy, forward));
        }
    }

    #[test]
    fn exponentials_are_weights_and_their_sum() {
        for isa in Isa::all() {
            let logits = numbers(37, 3);
            let mut weights = logits.clone();
            let sum = exponentials(isa, &mut weights, 1.5);
            let expected: Vec<f32> = logits.iter().map(|l| (l - 1.5).exp()).collect();
            assert_near(&weights, &expected);
            assert!((sum - expected.iter().sum::<f32>()).abs() < 1e-4);
        }
    }
}
