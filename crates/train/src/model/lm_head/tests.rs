use half::{bf16, f16};

use super::*;
use crate::Target;
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

    fn lm_head(&self) -> LmHead<'_> {
        LmHead {
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
    fn element(&self, element: f32) -> f64 {
        if self.rounds() {
            bf16::from_f32(element).into()
        } else {
            element.into()
        }
    }

    /// The log-probability of each token after a row, and the slope of its logit.
    fn logprobs(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let scale = f64::from(self.scale);
        let logits = (0..TOKENS).map(|token| {
            let pairs = self.row(token).iter().zip(x);
            let product = pairs.map(|(w, x)| self.element(*w) * self.element(*x));
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
        let limit = if self.rounds() { 1e-2 } else { 5e-4 };
        for (found, expected) in found.iter().zip(expected) {
            let apart = (f64::from(*found) - expected).abs();
            let isa = self.isa;
            assert!(apart <= limit * sum + 1e-6, "{isa}: {found} and {expected}");
        }
    }
}

/// Weights between −1 and 1.
fn matrix(kind: TensorType) -> Matrix {
    let element = |i: u32| (i.wrapping_add(9).wrapping_mul(2_654_435_761) >> 8) as f32;
    let weights = (0..(TOKENS * HIDDEN) as u32).map(|i| element(i) / 8_388_608.0 - 1.0);
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
        let lm_head = subject.lm_head();
        let x = cases.iter();
        let x = x.flat_map(|&(peak, _, size)| subject.towards(peak, size));
        let x: Vec<f32> = x.collect();
        let targets: Vec<u32> = cases.iter().map(|&(_, target, _)| target as u32).collect();
        let (found, gradients) = lm_head.logprobs(&x, &targets, true);
        assert_eq!(lm_head.logprobs(&x, &targets, false), (found.clone(), None));
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
        let lm_head = subject.lm_head();
        let x = cases.iter();
        let x = x.flat_map(|&(peak, size, _)| subject.towards(peak, size));
        let x: Vec<f32> = x.collect();
        let targets: Vec<&Target> = cases.iter().map(|(_, _, target)| target).collect();
        let (found, gradients) = lm_head.sparse_divergences(&x, &targets, true);
        let without_gradients = lm_head.sparse_divergences(&x, &targets, false);
        assert_eq!(without_gradients, (found.clone(), None));
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
        let lm_head = subject.lm_head();
        let x = [(5, 3.0), (7, 0.5), (TOKENS - 1, 1.0), (80, 0.1)];
        let x: Vec<f32> = x
            .into_iter()
            .flat_map(|(peak, size)| subject.towards(peak, size))
            .collect();
        let tokens = tokens.map(|token| token as u32);
        let targets = tokens.map(|token| vec![(token, 1.0)]);
        let negated = |elements: Vec<f32>| -> Vec<f32> {
            elements.into_iter().map(|element| -element).collect()
        };
        let (logprobs, gradients) = lm_head.logprobs(&x, &tokens, true);
        let expected = (negated(logprobs), gradients.map(negated));
        let found = lm_head.sparse_divergences(&x, &targets.each_ref(), true);
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
        let lm_head = subject.lm_head();
        let ours = cases.iter().map(|&(ours, _, size)| (ours, size));
        let theirs = cases.iter().map(|&(_, theirs, _)| (theirs, 0.5));
        let rows = |(token, size)| subject.towards(token, size);
        let (x, teacher): (Vec<f32>, Vec<f32>) = (
            ours.flat_map(rows).collect(),
            theirs.flat_map(rows).collect(),
        );
        let (found, gradients) = lm_head.divergences(&x, &teacher, true);
        assert_eq!(
            lm_head.divergences(&x, &teacher, false),
            (found.clone(), None)
        );
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
