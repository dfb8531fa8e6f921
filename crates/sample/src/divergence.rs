//! The KL divergence between two distributions over the vocabulary.

use std::sync::LazyLock;

use super::LogSoftmax;
use incant_kernels::{Isa, softmax};

/// The Kullback-Leibler divergences between p and q, in nats, each at least 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// KL(p ‖ q): how badly q predicts samples of p.
    pub forward: f64,
    /// KL(q ‖ p).
    pub reverse: f64,
}

/// The KL divergences between the softmaxes of two rows of raw logits over the same vocabulary.
///
/// With weights `e^(a − max a)`, whose sum is Z, and the mean of a difference under those
/// weights,
///
/// `KL(p ‖ q) = mean under p of (a − b) + (ln Z_q + max b) − (ln Z_p + max a)`.
///
/// The error is below 1e-6, absolute or relative, whichever is larger. Equal rows give exactly
/// 0. NaN and infinite logits are treated as in [`LogSoftmax`]: NaN counts as −∞, −∞ is a
/// probability of zero, and +∞ leaves no probability to finite ones. Where only one side has
/// zero probability, the divergence is infinite in one direction; a token with zero probability
/// under p adds nothing to KL(p ‖ q).
///
/// # Panics
/// The rows have different lengths, so they are not distributions over the same tokens.
pub fn divergence(p: &[f32], q: &[f32]) -> Divergence {
    static ISA: LazyLock<Isa> = LazyLock::new(Isa::best);
    assert_eq!(p.len(), q.len(), "rows over different vocabularies");
    let largest = |row| softmax::largest_if_finite(*ISA, row);
    let (Some(p_largest), Some(q_largest)) = (largest(p), largest(q)) else {
        return by_definition(p, q);
    };
    let sums = softmax::sums(*ISA, p, p_largest, q, q_largest);
    let normalizer = |sum: f64, largest: f32| sum.ln() + f64::from(largest);
    let shift = normalizer(sums.q, q_largest) - normalizer(sums.p, p_largest);
    // Rounding could bring a tiny value below zero.
    Divergence {
        forward: (sums.p_difference / sums.p + shift).max(0.0),
        reverse: (-sums.q_difference / sums.q - shift).max(0.0),
    }
}

/// Computes the same token by token, for rows with NaN or infinite logits.
fn by_definition(p: &[f32], q: &[f32]) -> Divergence {
    let ids = 0..p.len() as u32;
    let (p, q) = (LogSoftmax::new(p), LogSoftmax::new(q));
    let term = |p: f32, q: f32| match (p, q) {
        (f32::NEG_INFINITY, _) => 0.0,
        (_, f32::NEG_INFINITY) => f64::INFINITY,
        (p, q) => f64::from(p).exp() * (f64::from(p) - f64::from(q)),
    };
    let (mut forward, mut reverse) = (0.0, 0.0);
    for id in ids {
        let (p, q) = (p.logprob(id), q.logprob(id));
        forward += term(p, q);
        reverse += term(q, p);
    }
    Divergence {
        forward: forward.max(0.0),
        reverse: reverse.max(0.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// By the definition, in double precision.
    fn naive(p: &[f32], q: &[f32]) -> Divergence {
        let log_softmax = |row: &[f32]| -> Vec<f64> {
            let largest = row.iter().fold(f64::MIN, |a, &b| a.max(f64::from(b)));
            let sum: f64 = row.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
            let normalizer = largest + sum.ln();
            row.iter().map(|&l| f64::from(l) - normalizer).collect()
        };
        let (p, q) = (log_softmax(p), log_softmax(q));
        let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
        Divergence {
            forward: kl(&p, &q),
            reverse: kl(&q, &p),
        }
    }

    #[track_caller]
    fn assert_close(found: f64, expected: f64) {
        let error = (found - expected).abs() / expected.max(1.0);
        assert!(error < 1e-6, "{found} is not {expected}");
    }

    #[track_caller]
    fn assert_agrees(p: &[f32], q: &[f32]) {
        let (found, expected) = (divergence(p, q), naive(p, q));
        assert_close(found.forward, expected.forward);
        assert_close(found.reverse, expected.reverse);
    }

    #[test]
    fn of_two_coins_is_what_one_computes_by_hand() {
        // p = (1/2, 1/2), q = (3/4, 1/4).
        let (p, q) = ([5.0f32; 2], [3f32.ln(), 0.0]);
        let found = divergence(&p, &q);
        assert_close(found.forward, 0.5 * (4.0f64 / 3.0).ln());
        let reverse = 0.75 * 1.5f64.ln() - 0.25 * 2f64.ln();
        assert_close(found.reverse, reverse);
    }

    #[test]
    fn stands_large_and_far_apart_logits() {
        assert_agrees(&[1e4, 1e4 - 3.0, -1e4], &[1e4, 1e4 - 3.0, 1e4]);
        assert_agrees(&[-1e4, -1e4 - 1.0], &[1e4, 1e4 + 1.0]);
        assert_agrees(&[0.0, -200.0], &[-200.0, 0.0]);
        assert_eq!(divergence(&[3e38, -3e38], &[3e38, -3e38]).forward, 0.0);
        assert_eq!(divergence(&[7.0], &[-7.0]).forward, 0.0);
    }

    #[test]
    fn what_is_impossible_on_one_side_only_makes_one_direction_infinite() {
        const NONE: f32 = f32::NEG_INFINITY;
        // p = (1/2, 1/2, 0), q = (1/4, 1/4, 1/2).
        let half = 2f32.ln();
        for none in [NONE, f32::NAN] {
            let found = divergence(&[0.0, 0.0, none], &[0.0, 0.0, half]);
            assert_close(found.forward, 2f64.ln());
            assert_eq!(found.reverse, f64::INFINITY);
        }
        // On both sides, it counts for neither.
        let found = divergence(&[0.0, 0.0, NONE], &[3f32.ln(), 0.0, NONE]);
        assert_close(found.forward, 0.5 * (4.0f64 / 3.0).ln());
        // +∞ is certainty.
        let found = divergence(&[f32::INFINITY, 5.0], &[0.0, 0.0]);
        assert_close(found.forward, 2f64.ln());
        assert_eq!(found.reverse, f64::INFINITY);
    }

    #[test]
    #[should_panic(expected = "different vocabularies")]
    fn refuses_rows_of_two_vocabularies() {
        divergence(&[0.0; 3], &[0.0; 4]);
    }

    /// A row as long as a large vocabulary, with a few likely tokens.
    fn vocabulary(seed: u32) -> Vec<f32> {
        (0..262_144u32)
            .map(|i| {
                let mixed = (i ^ seed).wrapping_mul(2_654_435_761) >> 8;
                let logit = f64::from(mixed) / f64::from(1 << 24) * 12.0 - 14.0;
                if i % 40_009 == seed % 7 {
                    9.0
                } else {
                    logit as f32
                }
            })
            .collect()
    }

    #[test]
    fn agrees_over_a_whole_vocabulary() {
        for (a, b) in [(1, 1), (1, 2), (8, 1), (77, 3)] {
            assert_agrees(&vocabulary(a), &vocabulary(b));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_double_precision(
            (p, q) in (1usize..400).prop_flat_map(|n| (vec(-40f32..40.0, n), vec(-40f32..40.0, n))),
        ) {
            assert_agrees(&p, &q);
        }

        #[test]
        fn agrees_with_the_definition_whichever_way_it_takes(
            (p, q) in (1usize..200).prop_flat_map(|n| (vec(-30f32..30.0, n), vec(-30f32..30.0, n))),
        ) {
            let (fast, slow) = (divergence(&p, &q), by_definition(&p, &q));
            assert_close(fast.forward, slow.forward);
            assert_close(fast.reverse, slow.reverse);
        }

        #[test]
        fn is_never_negative_and_nothing_for_the_same_row(
            p in vec(any::<f32>(), 1..200),
            shift in -1e-3f32..1e-3,
        ) {
            let same = divergence(&p, &p);
            prop_assert_eq!(same, Divergence { forward: 0.0, reverse: 0.0 });
            let moved: Vec<f32> = p.iter().map(|logit| logit + shift).collect();
            let found = divergence(&p, &moved);
            prop_assert!(found.forward >= 0.0 && found.reverse >= 0.0, "{found:?}");
        }
    }
}
