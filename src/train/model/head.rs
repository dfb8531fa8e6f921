//! The head, and what is made of its logits: log-probabilities, divergences.
//!
//! No row of logits is ever held, nor any part of a row for longer than it takes to sum
//! it up: a vocabulary has hundreds of thousands of tokens, and a batch thousands of
//! rows. The vocabulary is gone through in parts, and the softmax's largest logit, its
//! sum and the sum of weights times rows of the matrix are carried along, as attention
//! does it. The last of these is all that the way back needs, so that logits are
//! computed once.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::node::{of_one, with};
use super::ops::{Frozen, part};
use crate::kernels::{Isa, LANES, Matrix, gradients, math, product};

/// Where all of [`product::TOGETHER`] tokens have a probability below this, their rows of
/// the matrix do not count on the way back (the probability itself does). On ordinary
/// text that leaves out three quarters of the work, and less than a thousandth of the
/// probability.
const NEGLIGIBLE: f32 = 1.0 / (1 << 20) as f32;

/// Panels of the matrix whose logits are there at the same time.
const PANELS: usize = 64;

/// The head of a decoder: `cap(scale · x·Wᵀ)`.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) isa: Isa,
    pub(super) weight: Frozen,
    pub(super) scale: f32,
    pub(super) cap: Option<f32>,
}

/// A softmax over logits that come in parts, for some rows.
struct Softmax {
    largest: Vec<f32>,
    sums: Vec<f32>,
    /// The weights times the slope of each logit times its row of the matrix, summed:
    /// `[row][hidden]`, if it is wanted.
    along: Option<Vec<f32>>,
}

impl Softmax {
    fn new(rows: usize, hidden: Option<usize>) -> Softmax {
        Softmax {
            largest: vec![f32::NEG_INFINITY; rows],
            sums: vec![0.0; rows],
            along: hidden.map(|hidden| vec![0.0; rows * hidden]),
        }
    }

    /// Takes in a part of a row's logits, in whose place their weights are then. Returns
    /// what weighs less by now: everything before is to be multiplied by it.
    fn take_in(&mut self, isa: Isa, row: usize, logits: &mut [f32]) -> f32 {
        let largest = logits.iter().copied().fold(self.largest[row], f32::max);
        let before = (self.largest[row] - largest).exp();
        self.largest[row] = largest;
        let sum = gradients::exponentials(isa, logits, largest);
        self.sums[row] = self.sums[row].mul_add(before, sum);
        if let Some(along) = &mut self.along
            && before != 1.0
        {
            let hidden = along.len() / self.sums.len();
            math::scale(isa, &mut along[row * hidden..][..hidden], before);
        }
        before
    }

    /// Sets weights to 0 that add next to nothing to what is along: see [`NEGLIGIBLE`].
    fn forget(&self, row: usize, weights: &mut [f32]) {
        if self.along.is_none() {
            return;
        }
        let least = NEGLIGIBLE * self.sums[row];
        for weights in weights.chunks_mut(product::TOGETHER) {
            if weights.iter().all(|weight| *weight < least) {
                weights.fill(0.0);
            }
        }
    }

    /// The logarithm of the sum of all weights.
    fn normalizer(&self, row: usize) -> f32 {
        self.largest[row] + self.sums[row].ln()
    }
}

impl Head {
    fn matrix(&self) -> &Matrix {
        (*self.weight).as_ref()
    }

    /// The parts of the vocabulary, as panels.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let panels = self.matrix().panels();
        let starts = (0..panels).step_by(PANELS);
        starts.map(move |start| start..panels.min(start + PANELS))
    }

    /// The logits of some panels, and their slopes: what a change of the matrix's product
    /// changes them by.
    fn logits(&self, panels: Range<usize>, x: &[f32], slopes: &mut Vec<f32>) -> Vec<f32> {
        let rows = x.len() / self.matrix().columns();
        let outputs = self.matrix().rows().min(panels.end * LANES) - panels.start * LANES;
        let mut logits = vec![0.0; rows * outputs];
        product::outputs(self.isa, self.matrix(), panels, x, &mut logits);
        if self.scale != 1.0 {
            math::scale(self.isa, &mut logits, self.scale);
        }
        slopes.clear();
        if let Some(cap) = self.cap {
            math::soft_cap(self.isa, &mut logits, cap);
            let slope = |logit: &f32| self.scale * (1.0 - (logit / cap) * (logit / cap));
            slopes.extend(logits.iter().map(slope));
        }
        logits
    }

    /// Adds weights, each times its slope and its row of the matrix.
    fn add_along(
        &self,
        panels: Range<usize>,
        weights: &mut [f32],
        slopes: &[f32],
        along: &mut [f32],
    ) {
        match slopes {
            [] if self.scale == 1.0 => {}
            [] => math::scale(self.isa, weights, self.scale),
            slopes => {
                for (weight, slope) in weights.iter_mut().zip(slopes) {
                    *weight *= slope;
                }
            }
        }
        product::back(self.isa, self.matrix(), panels, weights, along);
    }

    /// The log-probability of one token after each row of `x`, `[rows, hidden]`: `[rows]`.
    /// `differentiable` has the way back prepared.
    pub(super) fn logprobs(
        &self,
        x: &Tensor,
        targets: &[u32],
        differentiable: bool,
    ) -> Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let part = part(rows);
        let parts: Vec<(Vec<f32>, Option<Vec<f32>>)> = with(x, |x| {
            let parts = x.par_chunks(part * hidden).zip(targets.par_chunks(part));
            let parts = parts.map(|(x, targets)| self.part_logprobs(x, targets, differentiable));
            parts.collect()
        })?;
        rejoin("log-probabilities", x, parts)
    }

    fn part_logprobs(
        &self,
        x: &[f32],
        targets: &[u32],
        differentiable: bool,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let hidden = self.matrix().columns();
        let mut softmax = Softmax::new(targets.len(), differentiable.then_some(hidden));
        let mut chosen = vec![0.0; targets.len()];
        let mut chosen_slopes = vec![self.scale; targets.len()];
        let mut slopes = Vec::new();
        for panels in self.parts() {
            let mut logits = self.logits(panels.clone(), x, &mut slopes);
            let first = panels.start * LANES;
            let outputs = logits.len() / targets.len();
            for (row, logits) in logits.chunks_exact_mut(outputs).enumerate() {
                let target = (targets[row] as usize).wrapping_sub(first);
                if let Some(&logit) = logits.get(target) {
                    chosen[row] = logit;
                    if let Some(&slope) = slopes.get(row * outputs + target) {
                        chosen_slopes[row] = slope;
                    }
                }
                softmax.take_in(self.isa, row, logits);
                if let Some(weight) = logits.get_mut(target) {
                    // It is added at the end, where it cancels to the last bit.
                    *weight = 0.0;
                }
                softmax.forget(row, logits);
            }
            if let Some(along) = &mut softmax.along {
                self.add_along(panels, &mut logits, &slopes, along);
            }
        }
        for (row, chosen) in chosen.iter_mut().enumerate() {
            *chosen -= softmax.normalizer(row);
        }
        // d logp / dx = slope · (1 − p[target]) · W[target] − Σ p · slope · W of the others.
        let gradient = softmax.along.take().map(|mut along| {
            let mut own = vec![0.0; hidden];
            for (row, along) in along.chunks_exact_mut(hidden).enumerate() {
                self.matrix().row(targets[row] as usize, &mut own);
                let weight = -chosen_slopes[row] * chosen[row].exp_m1();
                for (along, own) in along.iter_mut().zip(&own) {
                    *along = own.mul_add(weight, -*along / softmax.sums[row]);
                }
            }
            along
        });
        (chosen, gradient)
    }

    /// KL(teacher ‖ student) over the vocabulary, where `x` are the student's rows and
    /// `teacher` the teacher's: `[rows]`.
    pub(super) fn divergences(
        &self,
        x: &Tensor,
        teacher: &Tensor,
        differentiable: bool,
    ) -> Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let part = part(rows);
        let parts: Vec<(Vec<f32>, Option<Vec<f32>>)> = with(x, |x| {
            with(teacher, |teacher| {
                let parts = x.par_chunks(part * hidden);
                let parts = parts.zip(teacher.par_chunks(part * hidden));
                let parts = parts.map(|(x, t)| self.part_divergences(x, t, differentiable));
                parts.collect()
            })
        })??;
        rejoin("divergences", x, parts)
    }

    fn part_divergences(
        &self,
        x: &[f32],
        teacher: &[f32],
        differentiable: bool,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let hidden = self.matrix().columns();
        let rows = x.len() / hidden;
        let wanted = differentiable.then_some(hidden);
        let (mut ours, mut theirs) = (Softmax::new(rows, wanted), Softmax::new(rows, wanted));
        // The teacher's weights times how far its logits are above the student's.
        let mut above = vec![0.0f64; rows];
        let (mut slopes, mut unused) = (Vec::new(), Vec::new());
        for panels in self.parts() {
            let mut logits = self.logits(panels.clone(), x, &mut slopes);
            let mut weights = self.logits(panels.clone(), teacher, &mut unused);
            let outputs = logits.len() / rows;
            let pairs = logits
                .chunks_exact_mut(outputs)
                .zip(weights.chunks_exact_mut(outputs));
            for (row, (logits, weights)) in pairs.enumerate() {
                let apart: Vec<f32> = weights.iter().zip(&*logits).map(|(t, s)| t - s).collect();
                let before = theirs.take_in(self.isa, row, weights);
                let terms = weights.iter().zip(apart);
                let terms = terms.map(|(weight, apart)| f64::from(*weight) * f64::from(apart));
                above[row] = above[row] * f64::from(before) + terms.sum::<f64>();
                ours.take_in(self.isa, row, logits);
                ours.forget(row, logits);
                theirs.forget(row, weights);
            }
            if let (Some(ours), Some(theirs)) = (&mut ours.along, &mut theirs.along) {
                // By the student's slopes, both: it is its logits that change.
                self.add_along(panels.clone(), &mut logits, &slopes, ours);
                self.add_along(panels, &mut weights, &slopes, theirs);
            }
        }
        let values = above.iter().enumerate().map(|(row, above)| {
            let apart = ours.normalizer(row) - theirs.normalizer(row);
            (above / f64::from(theirs.sums[row])) as f32 + apart
        });
        let values = values.collect();
        // d KL / dx = Σ (q − p) · slope · W.
        let gradient = ours.along.take().zip(theirs.along.take());
        let gradient = gradient.map(|(mut ours_along, theirs_along)| {
            let both = ours_along.chunks_exact_mut(hidden);
            let both = both.zip(theirs_along.chunks_exact(hidden));
            for (row, (along, theirs_along)) in both.enumerate() {
                for (along, other) in along.iter_mut().zip(theirs_along) {
                    *along = *along / ours.sums[row] - other / theirs.sums[row];
                }
            }
            ours_along
        });
        (values, gradient)
    }
}

/// A number for each row of `x`, given part by part with its gradient.
fn rejoin(
    name: &'static str,
    x: &Tensor,
    parts: Vec<(Vec<f32>, Option<Vec<f32>>)>,
) -> Result<Tensor> {
    let (rows, hidden) = x.dims2()?;
    let (values, gradients): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let gradients: Vec<f32> = gradients.into_iter().flatten().flatten().collect();
    let back = move |_: [&[f32]; 1], dy: &[f32]| {
        let mut dx = gradients.clone();
        for (dx, dy) in dx.chunks_exact_mut(hidden).zip(dy) {
            for dx in dx {
                *dx *= dy;
            }
        }
        [dx]
    };
    of_one(name, x, rows, values.concat(), Box::new(back))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::{Device, Var};

    use super::*;
    use crate::gguf::TensorType;

    const TOKENS: usize = 256;
    const HIDDEN: usize = 32;

    struct Words(Matrix);

    impl AsRef<Matrix> for Words {
        fn as_ref(&self) -> &Matrix {
            &self.0
        }
    }

    /// Weights between −1 and 1.
    fn weights() -> Vec<f32> {
        let number = |i: u32| (i.wrapping_add(9).wrapping_mul(2_654_435_761) >> 8) as f32;
        (0..(TOKENS * HIDDEN) as u32)
            .map(|i| number(i) / 8_388_608.0 - 1.0)
            .collect()
    }

    #[test]
    fn what_has_no_probability_is_left_out_and_nothing_else() {
        let weights = weights();
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let matrix = Matrix::pack(TensorType::F32, TOKENS, HIDDEN, &bytes).unwrap();
        let head = Head {
            isa: Isa::best(),
            weight: Arc::new(Words(matrix.unwrap())),
            scale: 1.0,
            cap: None,
        };
        // Rows that are all but sure of a token of the first or the last block, and that
        // or another comes; then rows that are sure of nothing.
        let cases = [
            (5, 5, 3.0),
            (5, 200, 3.0),
            (250, 70, 3.0),
            (250, 250, 3.0),
            (9, 9, 0.1),
            (80, 7, 0.2),
        ];
        let x: Vec<f32> = cases
            .iter()
            .flat_map(|&(peak, _, size)| {
                weights[peak * HIDDEN..][..HIDDEN]
                    .iter()
                    .map(move |w| w * size)
            })
            .collect();
        let targets: Vec<u32> = cases.iter().map(|&(_, target, _)| target as u32).collect();
        let variable = Var::from_vec(x.clone(), (cases.len(), HIDDEN), &Device::Cpu).unwrap();
        let found = head.logprobs(&variable, &targets, true).unwrap();
        let gradients = found.sum_all().unwrap().backward().unwrap();
        let gradients = gradients.get(&variable).unwrap().to_vec2::<f32>().unwrap();
        let found = found.to_vec1::<f32>().unwrap();
        for (row, x) in x.chunks_exact(HIDDEN).enumerate() {
            let of = |token: usize| {
                weights[token * HIDDEN..][..HIDDEN]
                    .iter()
                    .map(|w| f64::from(*w))
            };
            let logit = |token| {
                of(token)
                    .zip(x)
                    .map(|(w, x)| w * f64::from(*x))
                    .sum::<f64>()
            };
            let logits: Vec<f64> = (0..TOKENS).map(logit).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            let target = targets[row] as usize;
            let logprob = logits[target] - sum.ln();
            assert!((f64::from(found[row]) - logprob).abs() < 1e-4, "{row}");
            let mut expected: Vec<f64> = of(target).collect();
            for (token, logit) in logits.iter().enumerate() {
                for (expected, weight) in expected.iter_mut().zip(of(token)) {
                    *expected -= logit.exp() / sum * weight;
                }
            }
            for (found, expected) in gradients[row].iter().zip(&expected) {
                // Weights of the others are rounded to 13 bits; the target's is not.
                let others = 1.0 - logprob.exp();
                let apart = (f64::from(*found) - expected).abs();
                assert!(
                    apart <= 5e-4 * others + 1e-7,
                    "{row}: {found} and {expected}"
                );
            }
        }
    }
}
