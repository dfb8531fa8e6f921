//! KL divergences from sparse targets: distributions over a few tokens.

use rayon::prelude::*;

use super::{LmHead, Scored, Softmax, joined};
use crate::Target;
use crate::model::decoder::part_rows;
use incant_kernels::LANES;
use incant_kernels::product::Inputs;

impl LmHead<'_> {
    /// KL(target ‖ student) after each row of `x`, each of which has a target.
    pub(in crate::model) fn sparse_divergences(
        &self,
        x: &[f32],
        targets: &[&Target],
        differentiable: bool,
    ) -> Scored {
        let part = part_rows(targets.len());
        let parts = x.par_chunks(part * self.matrix.columns());
        let parts = parts.zip(targets.par_chunks(part));
        let parts =
            parts.map(|(x, targets)| self.part_sparse_divergences(x, targets, differentiable));
        joined(parts.collect())
    }

    fn part_sparse_divergences(
        &self,
        x: &[f32],
        targets: &[&Target],
        differentiable: bool,
    ) -> Scored {
        let hidden = self.matrix.columns();
        let inputs = Inputs::new(self.isa, [self.matrix], x);
        let mut softmax = Softmax::new(targets.len(), differentiable.then_some(hidden));
        // The logit and the slope of each token of a row's target.
        let found = targets
            .iter()
            .map(|target| vec![(0.0, self.scale); target.len()]);
        let mut found: Vec<Vec<(f32, f32)>> = found.collect();
        let (mut logits, mut slopes) = (Vec::new(), Vec::new());
        for panels in self.parts() {
            self.logits(panels.clone(), &inputs, &mut logits);
            if differentiable {
                self.slopes(&logits, &mut slopes);
            }
            let first = panels.start * LANES;
            let outputs = logits.len() / targets.len();
            for (row, logits) in logits.chunks_exact_mut(outputs).enumerate() {
                let place = |token: u32| (token as usize).wrapping_sub(first);
                for (&(token, _), found) in targets[row].iter().zip(&mut found[row]) {
                    if let Some(&logit) = logits.get(place(token)) {
                        found.0 = logit;
                        if let Some(&slope) = slopes.get(row * outputs + place(token)) {
                            found.1 = slope;
                        }
                    }
                }
                softmax.update(self.isa, row, logits);
                for &(token, _) in targets[row] {
                    if let Some(weight) = logits.get_mut(place(token)) {
                        // The target's tokens are added at the end, in a form without
                        // cancellation.
                        *weight = 0.0;
                    }
                }
            }
            self.add_weighted_rows(panels, &mut logits, &slopes, &mut softmax);
        }
        // Logits become log-probabilities.
        for (row, found) in found.iter_mut().enumerate() {
            let normalizer = softmax.normalizer(row);
            for (logit, _) in found {
                *logit -= normalizer;
            }
        }
        let rows = || targets.iter().zip(&found);
        let values = rows().map(|(target, found)| {
            let terms = target.iter().zip(found);
            let terms = terms.map(|((_, q), (logprob, _))| q * (q.ln() - logprob));
            terms.sum()
        });
        let values = values.collect();
        // d KL / dx = Σ (p − q) · slope · W over the target's tokens + Σ p · slope · W of the
        // others.
        let gradient = softmax.weighted_rows.take().map(|mut weighted_rows| {
            let mut own = vec![0.0; hidden];
            let all_rows = weighted_rows.chunks_exact_mut(hidden);
            for ((gradient, (target, found)), sum) in all_rows.zip(rows()).zip(&softmax.sums) {
                for element in &mut *gradient {
                    *element /= sum;
                }
                for (&(token, q), (logprob, slope)) in target.iter().zip(found) {
                    self.matrix.row(token as usize, &mut own);
                    // This is p − q, precise even where both are near 1.
                    let weight = slope * (logprob.exp_m1() + (1.0 - q));
                    for (element, own) in gradient.iter_mut().zip(&own) {
                        *element = own.mul_add(weight, *element);
                    }
                }
            }
            weighted_rows
        });
        (values, gradient)
    }
}
