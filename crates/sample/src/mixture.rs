//! Mixtures of several rows of logits for the same position (classifier-free guidance,
//! contrastive decoding, ensembles).
//!
//! The first arm's row is *A*; each other row *i* has a weight *wᵢ*.
//!
//! - If no weight is negative, every token gets `A + Σ wᵢ·(lᵢ − A)`, with *l* the raw logits.
//!   This equals `A + Σ wᵢ·(lsmᵢ − lsmA)` (*lsm*: log-softmax) up to a constant, on which no
//!   probability depends; so a weight of 1 gives the other arm's own logits, in whose scale
//!   penalties then apply, and a row mixed with itself stays the same.
//! - If a weight is negative, a token that both arms find unlikely could win by being the least
//!   unlikely one. So only the *plausible* tokens remain, `{ t : p(t) ≥ α·max p }` of A (Li et
//!   al. 2022, arXiv 2210.15097), and they get `A + Σ wᵢ·(lsmᵢ − lsmA)` with log-softmaxes over
//!   these tokens: only their logits are needed from the other rows. The most likely token is
//!   always plausible, so at least one remains.
//!
//! Classifier-free guidance (Sanchez et al. 2023, arXiv 2306.17806) is the second case with a
//! single other row, of weight −γ.
//!
//! A token whose logit in A is −∞ or NaN is excluded.

use super::blocks::{Blocks, Scale};
use super::rank::{Ranked, not_nan};
use super::{TokenLogprobs, logprobs};

/// The default plausibility threshold: the minimum probability of a plausible token, relative
/// to that of the most likely token.
pub const DEFAULT_PLAUSIBILITY: f32 = 0.1;

/// The maximum weight of guidance, and of an arm of a mix in either direction.
pub const MAX_WEIGHT: f32 = 10.0;

/// The minimum log-probability over plausible tokens in another row: otherwise a token that is
/// impossible there would be certain under a negative weight.
const MIN_LOGPROB: f64 = -1e4;

/// The tokens that may be chosen, and their scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// The tokens, sorted by id; `None` if they are the whole vocabulary.
    ids: Option<Vec<u32>>,
    scores: Vec<f32>,
}

/// Returns the tokens of a row that are at least `share` (above 0, at most 1) times as likely
/// as the most likely one, sorted by id; empty only if no logit is above −∞.
pub fn plausible(logits: &[f32], share: f32) -> Vec<u32> {
    let mut blocks = Blocks::default();
    let largest = blocks.survey(logits);
    if largest == f32::NEG_INFINITY {
        return Vec::new();
    }
    let mut found: Vec<Ranked> = Vec::new();
    if largest == f32::INFINITY {
        blocks.at_least(logits, largest, &mut found);
    } else {
        let exponent = f64::from(share).ln();
        let scale = Scale::new(largest, 1.0);
        blocks.at_least(logits, scale.logit_of(exponent), &mut found);
        found.retain(|token| {
            let below = f64::from(token.logit()) - f64::from(largest);
            below >= exponent
        });
    }
    found.iter().map(|token| token.id()).collect()
}

impl Mixture {
    /// Mixes whole rows; no weight may be negative.
    ///
    /// # Panics
    /// The length of a row differs from that of `first`.
    pub fn of_rows(first: &[f32], others: &[(f32, &[f32])]) -> Mixture {
        let mut scores = first.to_vec();
        // One pass for each row except the first; with two rows a single pass.
        let mut sums: Vec<f64> = match others {
            [_] => Vec::new(),
            _ => vec![0.0; first.len()],
        };
        for &(weight, row) in others {
            assert_eq!(row.len(), first.len(), "rows of one vocabulary");
            let weight = f64::from(weight);
            let step = |own: f32, other: f32| weight * (f64::from(other) - f64::from(own));
            if let [_] = others {
                for ((score, &own), &other) in scores.iter_mut().zip(first).zip(row) {
                    *score = (f64::from(own) + step(own, other)) as f32;
                }
            } else {
                for ((sum, &own), &other) in sums.iter_mut().zip(first).zip(row) {
                    *sum += step(own, other);
                }
            }
        }
        for ((score, &own), &sum) in scores.iter_mut().zip(first).zip(&sums) {
            *score = (f64::from(own) + sum) as f32;
        }
        // Tokens that A rules out stay excluded: their difference was NaN.
        for (score, &own) in scores.iter_mut().zip(first) {
            if not_nan(own) == f32::NEG_INFINITY {
                *score = f32::NEG_INFINITY;
            }
        }
        Mixture { ids: None, scores }
    }

    /// Mixes only the logits of the tokens `ids`, of the first row and the others.
    ///
    /// # Panics
    /// The number of logits is not the number of tokens.
    pub fn of_tokens(ids: Vec<u32>, first: &[f32], others: &[(f32, &[f32])]) -> Mixture {
        assert_eq!(first.len(), ids.len(), "a logit for each token");
        let mut sums = vec![0.0; ids.len()];
        let own = log_softmax(first);
        for &(weight, row) in others {
            assert_eq!(row.len(), ids.len(), "a logit for each token");
            for ((sum, own), other) in sums.iter_mut().zip(&own).zip(log_softmax(row)) {
                *sum += f64::from(weight) * (other - own);
            }
        }
        let scores = first.iter().zip(&sums);
        let scores = scores.map(|(&own, sum)| (f64::from(own) + sum) as f32);
        Mixture {
            scores: scores.collect(),
            ids: Some(ids),
        }
    }

    /// Returns the log-probability of a chosen token, its rank, and the `top` most likely
    /// tokens, among the tokens that may be chosen and before penalties.
    pub fn logprobs(&self, chosen: u32, top: usize) -> TokenLogprobs {
        let Some(ids) = &self.ids else {
            return logprobs(&self.scores, chosen, top);
        };
        let place = ids.binary_search(&chosen).unwrap_or(0);
        let mut found = logprobs(&self.scores, place as u32, top);
        for (id, _) in &mut found.top {
            *id = ids[*id as usize];
        }
        found
    }

    /// The tokens, unless they are the whole vocabulary.
    pub(super) fn ids(&self) -> Option<&[u32]> {
        self.ids.as_deref()
    }

    pub(super) fn scores(&self) -> &[f32] {
        &self.scores
    }
}

/// Computes the log-softmax of some logits in double precision; each value is at least
/// [`MIN_LOGPROB`].
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().map(not_nan);
    let largest = largest.fold(f32::NEG_INFINITY, f32::max);
    let below = |logit: f32| {
        // The difference of equal infinities would be NaN.
        let logit = not_nan(logit);
        if logit == largest {
            0.0
        } else {
            f64::from(logit) - f64::from(largest)
        }
    };
    let sum: f64 = logits.iter().map(|&logit| below(logit).exp()).sum();
    let log_sum = sum.ln();
    let values = logits.iter().map(|&logit| below(logit) - log_sum);
    values.map(|value| value.max(MIN_LOGPROB)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Computes the log-softmax of a whole row by definition.
    fn plain_log_softmax(logits: &[f32]) -> Vec<f64> {
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let exps = logits
            .iter()
            .map(|&l| (f64::from(l) - f64::from(largest)).exp());
        let log_sum = exps.sum::<f64>().ln();
        let values = logits
            .iter()
            .map(|&l| f64::from(l) - f64::from(largest) - log_sum);
        values.collect()
    }

    fn rows() -> impl Strategy<Value = (Vec<f32>, Vec<f32>, Vec<f32>)> {
        (1usize..300).prop_flat_map(|len| {
            let row = || vec(-30.0f32..30.0, len);
            (row(), row(), row())
        })
    }

    proptest! {
        #[test]
        fn whole_rows_are_mixed_as_the_formula_says(
            (a, b, c) in rows(), w in 0.0f32..2.0, v in 0.0f32..2.0,
        ) {
            let mixed = Mixture::of_rows(&a, &[(w, &b), (v, &c)]);
            let [la, lb, lc] = [&a, &b, &c].map(|row| plain_log_softmax(row));
            let expected: Vec<f32> = (0..a.len())
                .map(|t| {
                    let (w, v) = (f64::from(w), f64::from(v));
                    let score = f64::from(a[t]) + w * (lb[t] - la[t]) + v * (lc[t] - la[t]);
                    score as f32
                })
                .collect();
            // They differ by a constant.
            let shift = mixed.scores[0] - expected[0];
            for (mixed, expected) in mixed.scores.iter().zip(&expected) {
                prop_assert!((mixed - expected - shift).abs() < 1e-3);
            }
        }

        #[test]
        fn the_other_arm_alone_and_an_arm_with_itself_are_exact((a, b, _) in rows()) {
            prop_assert_eq!(&Mixture::of_rows(&a, &[(1.0, &b)]).scores, &b);
            prop_assert_eq!(&Mixture::of_rows(&a, &[(0.3, &a)]).scores, &a);
            prop_assert_eq!(&Mixture::of_rows(&a, &[(0.3, &a), (0.4, &a)]).scores, &a);
            let ids: Vec<u32> = (0..a.len() as u32).collect();
            prop_assert_eq!(&Mixture::of_tokens(ids, &a, &[(-0.5, &a)]).scores, &a);
        }

        #[test]
        fn guidance_is_the_formula_over_the_plausible_tokens(
            (a, g, _) in rows(), gamma in 0.0f32..3.0, alpha in 0.01f32..1.0,
        ) {
            let ids = plausible(&a, alpha);
            let la = plain_log_softmax(&a);
            let most = la.iter().copied().fold(f64::MIN, f64::max);
            let expected: Vec<u32> = (0..a.len() as u32)
                .filter(|&t| la[t as usize] - most >= f64::from(alpha).ln())
                .collect();
            prop_assert_eq!(&ids, &expected);
            let at = |row: &[f32]| -> Vec<f32> { ids.iter().map(|&t| row[t as usize]).collect() };
            let mixed = Mixture::of_tokens(ids.clone(), &at(&a), &[(-gamma, &at(&g))]);
            // The log-softmaxes of the whole rows give the same distribution.
            let lg = plain_log_softmax(&g);
            let scores: Vec<f32> = ids
                .iter()
                .map(|&t| {
                    let t = t as usize;
                    (f64::from(a[t]) + f64::from(gamma) * (la[t] - lg[t])) as f32
                })
                .collect();
            let plain = plain_log_softmax(&scores);
            for (&id, plain) in ids.iter().zip(plain) {
                let found = mixed.logprobs(id, 0).chosen;
                prop_assert!((f64::from(found) - plain).abs() < 1e-3, "{found} {plain}");
            }
        }
    }

    #[test]
    fn the_most_likely_token_is_always_plausible() {
        assert_eq!(plausible(&[1.0, 3.0, 3.0, 2.9], 1.0), [1, 2]);
        assert_eq!(plausible(&[f32::NAN, f32::NEG_INFINITY, -70.0], 0.1), [2]);
        assert_eq!(plausible(&[1.0, f32::INFINITY, f32::INFINITY], 0.1), [1, 2]);
        assert!(plausible(&[f32::NAN, f32::NEG_INFINITY], 0.1).is_empty());
    }

    #[test]
    fn infinity_and_nan_never_make_a_score_nan() {
        let odd = [f32::NEG_INFINITY, f32::NAN, f32::INFINITY, 1.0, 2.0];
        for a in odd {
            for b in odd {
                for weight in [0.0, 0.5, 1.0] {
                    let row = Mixture::of_rows(&[a, 0.0], &[(weight, &[b, 0.0])]);
                    let out = not_nan(a) == f32::NEG_INFINITY;
                    assert!(!out || row.scores[0] == f32::NEG_INFINITY, "{a} {b}");
                }
                let guided = Mixture::of_tokens(vec![3, 7], &[1.0, 2.0], &[(-0.5, &[a, b])]);
                assert!(
                    guided.scores.iter().all(|score| score.is_finite()),
                    "{a} {b}"
                );
            }
        }
    }

    #[test]
    fn tokens_are_named_by_their_ids() {
        let mixed = Mixture::of_tokens(vec![5, 9], &[1.0, 2.0], &[(-1.0, &[0.0, 4.0])]);
        // 1 + (ls(1) − ls(0)) against 2 + (ls(2) − ls(4)): guidance moves token 9 down.
        let found = mixed.logprobs(5, 2);
        assert_eq!((found.rank, found.top[0].0, found.top[1].0), (1, 5, 9));
    }
}
