//! The LM head fused with the losses over its logits: log-probabilities, KL divergences.
//!
//! No row of logits is ever stored as a whole: a vocabulary has hundreds of thousands of
//! tokens, and a batch thousands of rows. The vocabulary is processed in parts with an online
//! softmax, as in FlashAttention: the largest logit, the sum of weights, and the sum of weights
//! times rows of the matrix are carried along. The last of these is all that the backward pass
//! needs, so logits are computed once.

use std::ops::Range;

use rayon::prelude::*;

use super::decoder::part_rows;
use crate::Target;
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
pub(super) struct Head<'a> {
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

    /// Adds a part of a row's logits and replaces them by their weights. Returns the factor by
    /// which all earlier weights have to be multiplied.
    fn take_in(&mut self, isa: Isa, row: usize, logits: &mut [f32]) -> f32 {
        let largest = self.largest[row].max(math::largest(isa, logits));
        let before = match largest == self.largest[row] {
            true => 1.0,
            false => (self.largest[row] - largest).exp(),
        };
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

    /// The logarithm of the sum of all exponentials.
    fn normalizer(&self, row: usize) -> f32 {
        self.largest[row] + self.sums[row].ln()
    }
}

/// A value for each row, and its gradient with respect to the row, if requested.
pub(super) type Scored = (Vec<f32>, Option<Vec<f32>>);

impl Head<'_> {
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

    /// Adds Σ weight · slope · W over a part of the vocabulary to `softmax.along`.
    fn add_along(
        &self,
        panels: Range<usize>,
        weights: &mut [f32],
        slopes: &[f32],
        softmax: &mut Softmax,
    ) {
        let Softmax { sums, along, .. } = softmax;
        let Some(along) = along else {
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
        product::backward_sparse(self.isa, self.matrix, panels, (weights, &least), along);
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
                softmax.take_in(self.isa, row, logits);
                if let Some(weight) = logits.get_mut(target) {
                    // The target is added at the end, in a form without cancellation.
                    *weight = 0.0;
                }
            }
            self.add_along(panels, &mut logits, &slopes, &mut softmax);
        }
        for (row, chosen) in chosen.iter_mut().enumerate() {
            *chosen -= softmax.normalizer(row);
        }
        // d logp / dx = slope · (1 − p[target]) · W[target] − Σ p · slope · W of the others.
        let gradient = softmax.along.take().map(|mut along| {
            let mut own = vec![0.0; hidden];
            for (row, along) in along.chunks_exact_mut(hidden).enumerate() {
                self.matrix.row(targets[row] as usize, &mut own);
                let weight = -chosen_slopes[row] * chosen[row].exp_m1();
                for (along, own) in along.iter_mut().zip(&own) {
                    *along = own.mul_add(weight, -*along / softmax.sums[row]);
                }
            }
            along
        });
        (chosen, gradient)
    }

    /// KL(target ‖ student) after each row of `x`, each of which has a target.
    pub(super) fn sparse_divergences(
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
                softmax.take_in(self.isa, row, logits);
                for &(token, _) in targets[row] {
                    if let Some(weight) = logits.get_mut(place(token)) {
                        // The target's tokens are added at the end, in a form without
                        // cancellation.
                        *weight = 0.0;
                    }
                }
            }
            self.add_along(panels, &mut logits, &slopes, &mut softmax);
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
        let gradient = softmax.along.take().map(|mut along| {
            let mut own = vec![0.0; hidden];
            let alongs = along.chunks_exact_mut(hidden);
            for ((along, (target, found)), sum) in alongs.zip(rows()).zip(&softmax.sums) {
                for along in &mut *along {
                    *along /= sum;
                }
                for (&(token, q), (logprob, slope)) in target.iter().zip(found) {
                    self.matrix.row(token as usize, &mut own);
                    // This is p − q, precise even where both are near 1.
                    let weight = slope * (logprob.exp_m1() + (1.0 - q));
                    for (along, own) in along.iter_mut().zip(&own) {
                        *along = own.mul_add(weight, *along);
                    }
                }
            }
            along
        });
        (values, gradient)
    }

    /// KL(teacher ‖ student) over the vocabulary, where `x` are the student's rows and
    /// `teacher` the teacher's.
    pub(super) fn divergences(&self, x: &[f32], teacher: &[f32], differentiable: bool) -> Scored {
        let hidden = self.matrix.columns();
        let part = part_rows(x.len() / hidden) * hidden;
        let parts = x.par_chunks(part).zip(teacher.par_chunks(part));
        let parts = parts.map(|(x, teacher)| self.part_divergences(x, teacher, differentiable));
        joined(parts.collect())
    }

    fn part_divergences(&self, x: &[f32], teacher: &[f32], differentiable: bool) -> Scored {
        let hidden = self.matrix.columns();
        let rows = x.len() / hidden;
        let [x, teacher] = [x, teacher].map(|x| Inputs::new(self.isa, [self.matrix], x));
        let wanted = differentiable.then_some(hidden);
        let (mut ours, mut theirs) = (Softmax::new(rows, wanted), Softmax::new(rows, wanted));
        // Σ teacher's weight · (teacher's logit − student's logit), for each row.
        let mut above = vec![0.0f64; rows];
        let (mut logits, mut weights, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for panels in self.parts() {
            self.logits(panels.clone(), &x, &mut logits);
            self.logits(panels.clone(), &teacher, &mut weights);
            if differentiable {
                self.slopes(&logits, &mut slopes);
            }
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
            }
            // Both use the student's slopes, because only its logits change.
            self.add_along(panels.clone(), &mut logits, &slopes, &mut ours);
            self.add_along(panels, &mut weights, &slopes, &mut theirs);
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

/// Concatenates the results of consecutive parts.
fn joined(parts: Vec<Scored>) -> Scored {
    let (values, gradients): (Vec<_>, Vec<Option<Vec<f32>>>) = parts.into_iter().unzip();
    let gradients: Option<Vec<_>> = gradients.into_iter().collect();
    (values.concat(), gradients.map(|parts| parts.concat()))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use incant_gguf::TensorType;
    use incant_kernels::Tier;

    /// Tokens per part of the vocabulary.
    const PART: usize = PANELS * LANES;

    /// Three parts of the vocabulary and some of a fourth, whose last panel is not full.
    const TOKENS: usize = 3 * PART + LANES + 4;
    const HIDDEN: usize = 32;

    /// A matrix, its elements, and the parameters of an LM head that uses it.
    struct Subject {
        isa: Isa,
        matrix: Matrix,
        weights: Vec<f32>,
        scale: f32,
        cap: Option<f32>,
    }

    impl Subject {
        /// All cases, in f32 and in 8 bits, which AMX tiles take as bf16.
        fn all() -> impl Iterator<Item = Subject> {
            let heads = [(1.0, None), (0.75, None), (1.5, Some(30.0))];
            let kinds = [TensorType::F32, TensorType::Q8_0];
            let kinds = Isa::all()
                .into_iter()
                .flat_map(move |isa| kinds.map(|kind| (isa, kind)));
            kinds.flat_map(move |(isa, kind)| {
                heads.map(|(scale, cap)| {
                    let matrix = matrix(kind);
                    let mut weights = vec![0.0; TOKENS * HIDDEN];
                    for (token, weights) in weights.chunks_exact_mut(HIDDEN).enumerate() {
                        matrix.row(token, weights);
                    }
                    Subject {
                        isa,
                        matrix,
                        weights,
                        scale,
                        cap,
                    }
                })
            })
        }

        fn head(&self) -> Head<'_> {
            Head {
                isa: self.isa,
                matrix: &self.matrix,
                scale: self.scale,
                cap: self.cap,
            }
        }

        fn row(&self, token: usize) -> &[f32] {
            &self.weights[token * HIDDEN..][..HIDDEN]
        }

        /// A row that makes a token the likelier the larger `size` is.
        fn towards(&self, token: usize, size: f32) -> impl Iterator<Item = f32> {
            self.row(token).iter().map(move |weight| weight * size)
        }

        /// Whether AMX tiles compute its products, in bf16.
        fn rounds(&self) -> bool {
            let codes = matches!(self.matrix.format(), incant_kernels::Format::Codes(_));
            codes && self.isa.tier() == Tier::Amx
        }

        /// An element as products see it.
        fn number(&self, number: f32) -> f64 {
            match self.rounds() {
                true => bf16::from_f32(number).into(),
                false => number.into(),
            }
        }

        /// The log-probability of each token after a row, and the slope of its logit.
        fn logprobs(&self, x: &[f32]) -> Vec<(f64, f64)> {
            let scale = f64::from(self.scale);
            let logits = (0..TOKENS).map(|token| {
                let pairs = self.row(token).iter().zip(x);
                let product = pairs.map(|(w, x)| self.number(*w) * self.number(*x));
                let product = product.sum::<f64>() * scale;
                match self.cap.map(f64::from) {
                    None => (product, scale),
                    Some(cap) => {
                        let bent = (product / cap).tanh();
                        (cap * bent, scale * (1.0 - bent * bent))
                    }
                }
            });
            let logits: Vec<(f64, f64)> = logits.collect();
            let sum: f64 = logits.iter().map(|(logit, _)| logit.exp()).sum();
            let normal = |(logit, slope)| (logit - sum.ln(), slope);
            logits.into_iter().map(normal).collect()
        }

        /// Adds a token's row of the matrix to a gradient.
        fn add(&self, token: usize, weight: f64, gradient: &mut [f64]) {
            for (gradient, own) in gradient.iter_mut().zip(self.row(token)) {
                *gradient += weight * f64::from(*own);
            }
        }

        /// `sum` is the total weight of the rows that were added up.
        #[track_caller]
        fn assert_gradient(&self, found: &[f32], expected: &[f64], sum: f64) {
            // Rows are rounded to 13 bits, or to 8.
            let limit = match self.rounds() {
                true => 1e-2,
                false => 5e-4,
            };
            for (found, expected) in found.iter().zip(expected) {
                let apart = (f64::from(*found) - expected).abs();
                let isa = self.isa;
                assert!(apart <= limit * sum + 1e-6, "{isa}: {found} and {expected}");
            }
        }
    }

    /// Weights between −1 and 1.
    fn matrix(kind: TensorType) -> Matrix {
        let number = |i: u32| (i.wrapping_add(9).wrapping_mul(2_654_435_761) >> 8) as f32;
        let weights = (0..(TOKENS * HIDDEN) as u32).map(|i| number(i) / 8_388_608.0 - 1.0);
        let weights: Vec<f32> = weights.collect();
        let bytes: Vec<u8> = match kind {
            TensorType::F32 => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
            // Blocks of 32, with a scale.
            _ => {
                let block = |weights: &[f32]| {
                    let codes = weights.iter().map(|weight| (weight * 127.0) as i8 as u8);
                    let scale = f16::from_f32(1.0 / 127.0).to_le_bytes();
                    scale.into_iter().chain(codes).collect::<Vec<u8>>()
                };
                weights.chunks(32).flat_map(block).collect()
            }
        };
        let packed = Matrix::pack(kind, TOKENS, HIDDEN, &bytes);
        packed.unwrap().unwrap()
    }

    #[test]
    fn leaving_out_what_has_no_probability_changes_nothing() {
        // Rows that are nearly certain of a token of the first, a middle or the last part,
        // followed by that token or another; then rows without a likely token.
        let cases = [
            (5, 5, 3.0),
            (5, 2 * PART + 60, 3.0),
            (PART + 144, 3, 3.0),
            (TOKENS - 1, 70, 3.0),
            (TOKENS - 1, TOKENS - 1, 3.0),
            (9, 9, 0.1),
            (80, PART + 88, 0.2),
        ];
        for subject in Subject::all() {
            let head = subject.head();
            let x = cases.iter();
            let x = x.flat_map(|&(peak, _, size)| subject.towards(peak, size));
            let x: Vec<f32> = x.collect();
            let targets: Vec<u32> = cases.iter().map(|&(_, target, _)| target as u32).collect();
            let (found, gradients) = head.logprobs(&x, &targets, true);
            assert_eq!(head.logprobs(&x, &targets, false), (found.clone(), None));
            let gradients = gradients.unwrap();
            let rows = x.chunks_exact(HIDDEN).zip(gradients.chunks_exact(HIDDEN));
            for (row, (x, gradient)) in rows.enumerate() {
                let logprobs = subject.logprobs(x);
                let target = targets[row] as usize;
                let (logprob, slope) = logprobs[target];
                let apart = (f64::from(found[row]) - logprob).abs();
                let limit = 1e-4 + 1e-5 * logprob.abs();
                assert!(apart < limit, "{row}: {} and {logprob}", found[row]);
                let mut expected = vec![0.0; HIDDEN];
                subject.add(target, slope, &mut expected);
                for (token, (logprob, slope)) in logprobs.iter().enumerate() {
                    subject.add(token, -logprob.exp() * slope, &mut expected);
                }
                // The target's own row is not rounded.
                subject.assert_gradient(gradient, &expected, 1.0 - logprob.exp());
            }
        }
    }

    #[test]
    fn sparse_divergences_are_those_of_the_whole_vocabulary() {
        let last = TOKENS as u32 - 1;
        let part = PART as u32;
        // The student's likeliest token, and how likely it is; then targets in the first part
        // of the vocabulary, or in several parts in any order, which agree with the student or
        // not.
        let cases: [(usize, f32, Target); 6] = [
            (5, 3.0, vec![(5, 0.75), (2, 0.25)]),
            (5, 3.0, vec![(last, 0.5), (2 * part + 60, 0.25), (7, 0.25)]),
            (PART + 144, 0.4, vec![(part + 144, 0.9), (part + 143, 0.1)]),
            (TOKENS - 1, 3.0, vec![(last, 1.0)]),
            (9, 0.1, vec![(0, 1e-6), (80, 1.0 - 1e-6)]),
            (70, 0.2, (0..64).map(|at| (at * 17, 1.0 / 64.0)).collect()),
        ];
        for subject in Subject::all() {
            let head = subject.head();
            let x = cases.iter();
            let x = x.flat_map(|&(peak, size, _)| subject.towards(peak, size));
            let x: Vec<f32> = x.collect();
            let targets: Vec<&Target> = cases.iter().map(|(_, _, target)| target).collect();
            let (found, gradients) = head.sparse_divergences(&x, &targets, true);
            let observed = head.sparse_divergences(&x, &targets, false);
            assert_eq!(observed, (found.clone(), None));
            let gradients = gradients.unwrap();
            let rows = x.chunks_exact(HIDDEN).zip(gradients.chunks_exact(HIDDEN));
            for (row, (x, gradient)) in rows.enumerate() {
                let logprobs = subject.logprobs(x);
                let mut weights: Vec<f64> = logprobs.iter().map(|(p, _)| p.exp()).collect();
                let mut divergence = 0.0;
                for &(token, q) in targets[row] {
                    let q = f64::from(q);
                    divergence += q * (q.ln() - logprobs[token as usize].0);
                    weights[token as usize] -= q;
                }
                let apart = (f64::from(found[row]) - divergence).abs();
                let limit = 1e-4 + 1e-5 * divergence;
                assert!(apart < limit, "{row}: {} and {divergence}", found[row]);
                let mut expected = vec![0.0; HIDDEN];
                for (token, (weight, (_, slope))) in weights.iter().zip(&logprobs).enumerate() {
                    subject.add(token, weight * slope, &mut expected);
                }
                // The rows of the target's own tokens are not rounded.
                for &(token, _) in targets[row] {
                    weights[token as usize] = 0.0;
                }
                subject.assert_gradient(gradient, &expected, weights.iter().sum());
            }
        }
    }

    #[test]
    fn the_divergence_from_one_certain_token_is_what_its_log_probability_lacks() {
        let tokens = [5, 2 * PART + 60, TOKENS - 1, 9];
        for subject in Subject::all() {
            let head = subject.head();
            let x = [(5, 3.0), (7, 0.5), (TOKENS - 1, 1.0), (80, 0.1)];
            let x: Vec<f32> = x
                .into_iter()
                .flat_map(|(peak, size)| subject.towards(peak, size))
                .collect();
            let tokens = tokens.map(|token| token as u32);
            let targets = tokens.map(|token| vec![(token, 1.0)]);
            let negated = |numbers: Vec<f32>| -> Vec<f32> {
                numbers.into_iter().map(|number| -number).collect()
            };
            let (logprobs, gradients) = head.logprobs(&x, &tokens, true);
            let expected = (negated(logprobs), gradients.map(negated));
            let found = head.sparse_divergences(&x, &targets.each_ref(), true);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn divergences_are_those_of_all_parts_of_the_vocabulary() {
        // The likeliest tokens of student and teacher, in one part of the vocabulary or
        // several.
        let cases = [
            (5, 5, 0.5),
            (5, 2 * PART + 60, 0.6),
            (PART + 144, 3, 0.7),
            (TOKENS - 1, 70, 0.4),
        ];
        for subject in Subject::all() {
            let head = subject.head();
            let ours = cases.iter().map(|&(ours, _, size)| (ours, size));
            let theirs = cases.iter().map(|&(_, theirs, _)| (theirs, 0.5));
            let rows = |(token, size)| subject.towards(token, size);
            let (x, teacher): (Vec<f32>, Vec<f32>) = (
                ours.flat_map(rows).collect(),
                theirs.flat_map(rows).collect(),
            );
            let (found, gradients) = head.divergences(&x, &teacher, true);
            assert_eq!(head.divergences(&x, &teacher, false), (found.clone(), None));
            let gradients = gradients.unwrap();
            let rows = x.chunks_exact(HIDDEN).zip(teacher.chunks_exact(HIDDEN));
            for (row, (x, teacher)) in rows.enumerate() {
                let (ours, theirs) = (subject.logprobs(x), subject.logprobs(teacher));
                let pairs = || ours.iter().zip(&theirs);
                let terms = pairs().map(|((q, _), (p, _))| p.exp() * (p - q));
                let divergence: f64 = terms.sum();
                let apart = (f64::from(found[row]) - divergence).abs();
                assert!(apart < 1e-4, "{row}: {} and {divergence}", found[row]);
                let mut expected = vec![0.0; HIDDEN];
                for (token, ((q, slope), (p, _))) in pairs().enumerate() {
                    subject.add(token, (q.exp() - p.exp()) * slope, &mut expected);
                }
                let gradient = &gradients[row * HIDDEN..][..HIDDEN];
                subject.assert_gradient(gradient, &expected, 2.0);
            }
        }
    }
}
