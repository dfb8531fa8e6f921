//! The LM head fused with the losses over its logits: log-probabilities, KL divergences.
//!
//! No row of logits is ever stored as a whole: a vocabulary has hundreds of thousands of
//! tokens, and a batch thousands of rows. The vocabulary is processed in parts with an online
//! softmax, as in FlashAttention: the largest logit, the sum of weights, and the sum of weights
//! times rows of the matrix are carried along. The last of these is all that the backward pass
//! needs, so logits are computed once.
//!
//! Log-probabilities are here, KL divergences from dense and from sparse targets in files of
//! their own.

mod dense;
mod sparse;

use std::ops::Range;

use rayon::prelude::*;

use super::decoder::part_rows;
use incant_kernels::product::Inputs;
use incant_kernels::{Isa, LANES, Matrix, gradients, math, product};

/// If the probabilities of all tokens of a panel are below this, their rows of the matrix are
/// left out of the gradient (the probability itself still counts). On ordinary text this saves
/// seven eighths of the work and loses about a thousandth of the probability.
const NEGLIGIBLE: f32 = 1.0 / (1 << 20) as f32;

/// Panels of the matrix per part of the vocabulary.
const PANELS: usize = 32;

/// The LM head of a decoder: `cap(scale · x·Wᵀ)`.
#[derive(Clone, Copy)]
pub(super) struct LmHead<'a> {
    pub(super) isa: Isa,
    pub(super) matrix: &'a Matrix,
    pub(super) scale: f32,
    pub(super) cap: Option<f32>,
}

/// An online softmax for some rows, whose logits come in parts.
struct Softmax {
    largest: Vec<f32>,
    sums: Vec<f32>,
    /// Σ weight · slope · W over all tokens so far: `[row][hidden]`, if gradients are needed.
    weighted_rows: Option<Vec<f32>>,
}

impl Softmax {
    fn new(rows: usize, hidden: Option<usize>) -> Softmax {
        Softmax {
            largest: vec![f32::NEG_INFINITY; rows],
            sums: vec![0.0; rows],
            weighted_rows: hidden.map(|hidden| vec![0.0; rows * hidden]),
        }
    }

    /// Adds a part of a row's logits and replaces them by their weights. Returns the factor by
    /// which all earlier weights have to be multiplied.
    fn update(&mut self, isa: Isa, row: usize, logits: &mut [f32]) -> f32 {
        let largest = self.largest[row].max(math::largest(isa, logits));
        let before = if largest == self.largest[row] {
            1.0
        } else {
            (self.largest[row] - largest).exp()
        };
        self.largest[row] = largest;
        let sum = gradients::exponentials(isa, logits, largest);
        self.sums[row] = self.sums[row].mul_add(before, sum);
        if let Some(weighted_rows) = &mut self.weighted_rows
            && before != 1.0
        {
            let hidden = weighted_rows.len() / self.sums.len();
            math::scale(isa, &mut weighted_rows[row * hidden..][..hidden], before);
        }
        before
    }

    /// The logarithm of the sum of all exponentials.
    fn normalizer(&self, row: usize) -> f32 {
        self.largest[row] + self.sums[row].ln()
    }
}

/// A value for each row, and its gradient with respect to the row, if requested.
pub(super) type Scored = (Vec<f32>, Option<Vec<f32>>);

impl LmHead<'_> {
    /// The parts of the vocabulary, in panels.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let panels = self.matrix.panels();
        let starts = (0..panels).step_by(PANELS);
        starts.map(move |start| start..panels.min(start + PANELS))
    }

    fn logits(&self, panels: Range<usize>, x: &Inputs, logits: &mut Vec<f32>) {
        let outputs = self.matrix.rows().min(panels.end * LANES) - panels.start * LANES;
        logits.resize(x.rows() * outputs, 0.0);
        x.multiply(self.matrix, panels, logits);
        if self.scale != 1.0 {
            math::scale(self.isa, logits, self.scale);
        }
        if let Some(cap) = self.cap {
            math::soft_cap(self.isa, logits, cap);
        }
    }

    /// The derivative of each logit by the product of the matrix; empty if it is the scale for
    /// all of them.
    fn slopes(&self, logits: &[f32], slopes: &mut Vec<f32>) {
        slopes.clear();
        if let Some(cap) = self.cap {
            let slope = |logit: &f32| self.scale * (1.0 - (logit / cap) * (logit / cap));
            slopes.extend(logits.iter().map(slope));
        }
    }

    /// Adds Σ weight · slope · W over a part of the vocabulary to `softmax.weighted_rows`.
    fn add_weighted_rows(
        &self,
        panels: Range<usize>,
        weights: &mut [f32],
        slopes: &[f32],
        softmax: &mut Softmax,
    ) {
        let Softmax {
            sums,
            weighted_rows,
            ..
        } = softmax;
        let Some(weighted_rows) = weighted_rows else {
            return;
        };
        // No slope is above the scale.
        let least = sums.iter().map(|sum| NEGLIGIBLE * self.scale.abs() * sum);
        let least: Vec<f32> = least.collect();
        match slopes {
            [] if self.scale == 1.0 => {}
            [] => math::scale(self.isa, weights, self.scale),
            slopes => {
                for (weight, slope) in weights.iter_mut().zip(slopes) {
                    *weight *= slope;
                }
            }
        }
        product::backward_sparse(
            self.isa,
            self.matrix,
            panels,
            (weights, &least),
            weighted_rows,
        );
    }

    /// The log-probability of one token after each row of `x`.
    pub(super) fn logprobs(&self, x: &[f32], targets: &[u32], differentiable: bool) -> Scored {
        let part = part_rows(targets.len());
        let parts = x.par_chunks(part * self.matrix.columns());
        let parts = parts.zip(targets.par_chunks(part));
        let parts = parts.map(|(x, targets)| self.part_logprobs(x, targets, differentiable));
        joined(parts.collect())
    }

    fn part_logprobs(&self, x: &[f32], targets: &[u32], differentiable: bool) -> Scored {
        let hidden = self.matrix.columns();
        let inputs = Inputs::new(self.isa, [self.matrix], x);
        let mut softmax = Softmax::new(targets.len(), differentiable.then_some(hidden));
        let mut chosen = vec![0.0; targets.len()];
        let mut chosen_slopes = vec![self.scale; targets.len()];
        let (mut logits, mut slopes) = (Vec::new(), Vec::new());
        for panels in self.parts() {
            self.logits(panels.clone(), &inputs, &mut logits);
            if differentiable {
                self.slopes(&logits, &mut slopes);
            }
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
                softmax.update(self.isa, row, logits);
                if let Some(weight) = logits.get_mut(target) {
                    // The target is added at the end, in a form without cancellation.
                    *weight = 0.0;
                }
            }
            self.add_weighted_rows(panels, &mut logits, &slopes, &mut softmax);
        }
        for (row, chosen) in chosen.iter_mut().enumerate() {
            *chosen -= softmax.normalizer(row);
        }
        // d logp / dx = slope · (1 − p[target]) · W[target] − Σ p · slope · W of the others.
        let gradient = softmax.weighted_rows.take().map(|mut weighted_rows| {
            let mut own = vec![0.0; hidden];
            for (row, gradient) in weighted_rows.chunks_exact_mut(hidden).enumerate() {
                self.matrix.row(targets[row] as usize, &mut own);
                let weight = -chosen_slopes[row] * chosen[row].exp_m1();
                for (gradient, own) in gradient.iter_mut().zip(&own) {
                    *gradient = own.mul_add(weight, -*gradient / softmax.sums[row]);
                }
            }
            weighted_rows
        });
        (chosen, gradient)
    }
}

/// Concatenates the results of consecutive parts.
fn joined(parts: Vec<Scored>) -> Scored {
    let (values, gradients): (Vec<_>, Vec<Option<Vec<f32>>>) = parts.into_iter().unzip();
    let gradients: Option<Vec<_>> = gradients.into_iter().collect();
    (values.concat(), gradients.map(|parts| parts.concat()))
}

#[cfg(test)]
mod tests;
