//! Truncation samplers: top-n-sigma, then top-k, typical-p, top-p (nucleus), min-p.
//!
//! - **top-n-sigma** keeps the tokens whose logit is at least `max − n · σ`, where σ is the
//!   standard deviation of the logits above −∞ (Tang et al. 2024).
//! - **top-k** keeps the k most likely tokens.
//! - **typical-p** keeps, of these, those whose surprise `−ln p` is nearest its expectation,
//!   the entropy (Meister et al. 2022): the smallest number whose share of the mass is above p.
//!   Of equally near tokens, the more likely come first.
//! - **top-p** keeps, of these, the smallest set of the most likely tokens whose share of their
//!   mass is at least p; the token that crosses p is kept. At least one token is kept.
//! - **min-p** keeps, of these, the tokens at least p times as likely as the most likely one.
//!
//! The result is that of sorting the whole vocabulary, which is never done. If a token is in
//! the nucleus, the tokens before it hold less than p of the mass, so it and those after it
//! hold more than 1 − p; these are at most V and none is more likely than it. A token whose
//! share is below (1 − p) / V is therefore not in the nucleus. The tokens above this bound are
//! selected and sorted piece by piece, most likely first, until p is reached.
//!
//! With w a token's weight relative to the most likely one, its surprise minus the entropy is
//! `c − ln w`, where c is the mean of ln w. So typical-p keeps the tokens nearest c. A token
//! that is farther from c than the most likely one (`ln w < 2c`) is also at least as likely as
//! all that are farther still, so the bound of top-p holds for it; the others are above `2c`.

use super::blocks::{Blocks, Moments, Scale, deviation};
use super::rank::Ranked;

/// The number of candidates that are sorted first; then four times as many each time.
const FIRST_PIECE: usize = 128;

/// The truncation parameters, in the form in which they are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truncation {
    /// Values up to 0 keep all.
    top_n_sigma: f64,
    /// 0 keeps all.
    top_k: usize,
    /// Values from 1 on keep all.
    typical_p: f64,
    /// Values from 1 on keep all.
    top_p: f64,
    /// 0 keeps all.
    min_p: f64,
}

impl Truncation {
    /// Interprets the numbers as the client wrote them: a top-p of 0.6 means six of ten equal
    /// tokens, although the nearest `f32` is slightly more than 0.6.
    pub(super) fn new(top_k: usize, top_p: f32, min_p: f32) -> Truncation {
        Truncation {
            top_n_sigma: 0.0,
            top_k,
            typical_p: 1.0,
            top_p: as_written(top_p),
            min_p: as_written(min_p),
        }
    }

    pub(super) fn with_top_n_sigma(self, top_n_sigma: f32) -> Truncation {
        Truncation {
            top_n_sigma: as_written(top_n_sigma),
            ..self
        }
    }

    pub(super) fn with_typical_p(self, typical_p: f32) -> Truncation {
        Truncation {
            typical_p: as_written(typical_p),
            ..self
        }
    }

    /// Whether a row of `vocabulary` logits is not truncated.
    pub(super) fn keeps_all(&self, vocabulary: usize) -> bool {
        !self.limits_count(vocabulary)
            && self.top_n_sigma <= 0.0
            && self.typical_p >= 1.0
            && self.top_p >= 1.0
            && self.min_p <= 0.0
    }

    /// Replaces `kept` with the tokens that may be drawn, most likely first, and returns the
    /// sum of their weights. `blocks` must have surveyed this row, which must have a finite
    /// logit.
    pub(super) fn keep(
        &self,
        logits: &[f32],
        scale: Scale,
        blocks: &mut Blocks,
        kept: &mut Vec<Ranked>,
    ) -> f64 {
        let selected = self.select(logits, scale, blocks, kept);
        let total = if selected {
            kept.iter().map(|token| scale.weight(token.logit())).sum()
        } else {
            let mut bound = scale.logit_of(self.min_p.ln());
            let mut total = f64::INFINITY;
            if self.top_p < 1.0 {
                total = blocks.weigh(logits, scale);
                let smallest = (1.0 - self.top_p) * total / logits.len() as f64;
                bound = bound.max(scale.logit_of(smallest.ln()));
            }
            kept.clear();
            blocks.at_least(logits, bound, kept);
            total
        };
        let enough = if self.top_p < 1.0 {
            self.top_p * total
        } else {
            f64::INFINITY
        };

        let mut mass = 0.0;
        let mut least = 0.0;
        let count = count_sorted(kept, |token| {
            let weight = scale.weight(token.logit());
            if mass == 0.0 {
                // The most likely token is always kept; its weight is above 0.
                least = self.min_p * weight;
            } else if mass >= enough || weight < least {
                return false;
            }
            mass += weight;
            true
        });
        kept.truncate(count);
        mass
    }

    /// Replaces `kept` with the tokens that top-n-sigma, top-k and typical-p keep, unordered,
    /// and returns true; returns false if all three keep everything.
    fn select(
        &self,
        logits: &[f32],
        scale: Scale,
        blocks: &mut Blocks,
        kept: &mut Vec<Ranked>,
    ) -> bool {
        let by_sigma = self.top_n_sigma > 0.0;
        let mut selected = true;
        if self.limits_count(logits.len()) {
            blocks.most_likely(logits, self.top_k, kept);
            if by_sigma {
                let floor = scale.floor(self.top_n_sigma * deviation(logits));
                kept.truncate(kept.partition_point(|token| token.logit() >= floor));
            }
        } else if by_sigma {
            let floor = scale.floor(self.top_n_sigma * deviation(logits));
            kept.clear();
            blocks.at_least(logits, floor, kept);
        } else {
            selected = false;
        }
        if self.typical_p >= 1.0 {
            return selected;
        }
        let moments = if selected {
            moments(kept, scale)
        } else {
            let moments = blocks.moments(logits, scale);
            let rest = (1.0 - self.typical_p) * moments.mass / logits.len() as f64;
            let bound = scale.logit_of(rest.ln().min(2.0 * moments.logarithms / moments.mass));
            kept.clear();
            blocks.at_least(logits, bound, kept);
            moments
        };
        keep_typical(self.typical_p, moments, scale, kept);
        true
    }

    fn limits_count(&self, vocabulary: usize) -> bool {
        (1..vocabulary).contains(&self.top_k)
    }
}

/// Computes the sums over some tokens' weights.
fn moments(tokens: &[Ranked], scale: Scale) -> Moments {
    let mut moments = Moments::default();
    for token in tokens {
        let weight = scale.weight(token.logit());
        // Zero times the logarithm of zero is defined as zero.
        if weight > 0.0 {
            moments.mass += weight;
            moments.logarithms += weight * scale.logarithm(token.logit());
        }
    }
    moments
}

/// A token, ordered by the distance of its surprise from the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Typical {
    /// The bits of the distance, which is not negative, so its bits have the same order.
    distance: u64,
    token: Ranked,
}

/// Keeps the most typical of `tokens`, which must include all candidates. `moments` are those
/// of all tokens.
fn keep_typical(typical_p: f64, moments: Moments, scale: Scale, tokens: &mut Vec<Ranked>) {
    let center = moments.logarithms / moments.mass;
    let apart = |&token: &Ranked| Typical {
        distance: (scale.logarithm(token.logit()) - center).abs().to_bits(),
        token,
    };
    let mut typical: Vec<Typical> = tokens.iter().map(apart).collect();
    let enough = typical_p * moments.mass;
    let mut mass = 0.0;
    let count = count_sorted(&mut typical, |typical| {
        if mass > enough {
            return false;
        }
        mass += scale.weight(typical.token.logit());
        true
    });
    tokens.clear();
    tokens.extend(typical[..count].iter().map(|typical| typical.token));
}

/// Returns, in double precision, the decimal number that is written for `value`.
pub(super) fn as_written(value: f32) -> f64 {
    // The shortest text that parses to this f32 is what the client wrote, unless it wrote more
    // than seven digits. The text of an f32 always parses as an f64.
    value
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(value))
}

/// Sorts `tokens` as far as necessary and counts the leading ones that `keep` accepts, calling
/// it in order until it refuses one.
fn count_sorted<T: Copy + Ord>(tokens: &mut [T], mut keep: impl FnMut(T) -> bool) -> usize {
    let mut sorted = 0;
    let mut piece = FIRST_PIECE;
    while sorted < tokens.len() {
        let rest = &mut tokens[sorted..];
        // Near the end, selecting first costs more than it saves.
        if piece < rest.len() / 4 {
            rest.select_nth_unstable(piece - 1);
        } else {
            piece = rest.len();
        }
        let next = &mut rest[..piece];
        next.sort_unstable();
        if let Some(refused) = next.iter().position(|&token| !keep(token)) {
            return sorted + refused;
        }
        sorted += piece;
        piece *= 4;
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(truncation: Truncation, logits: &[f32], temperature: f32) -> (Vec<u32>, f64) {
        let mut blocks = Blocks::default();
        let scale = Scale::new(blocks.survey(logits), temperature);
        let mut kept = Vec::new();
        let mass = truncation.keep(logits, scale, &mut blocks, &mut kept);
        (kept.iter().map(|token| token.id()).collect(), mass)
    }

    fn ids(truncation: Truncation, logits: &[f32]) -> Vec<u32> {
        kept(truncation, logits, 1.0).0
    }

    /// Logits whose probabilities are 0.5, 0.25, 0.125, 0.125.
    fn halves() -> Vec<f32> {
        [0.25f32, 0.125, 0.5, 0.125].map(f32::ln).to_vec()
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses() {
        assert_eq!(ids(Truncation::new(0, 0.4, 0.0), &halves()), [2]);
        assert_eq!(ids(Truncation::new(0, 0.6, 0.0), &halves()), [2, 0]);
        assert_eq!(ids(Truncation::new(0, 0.8, 0.0), &halves()), [2, 0, 1]);
        assert_eq!(ids(Truncation::new(0, 0.9, 0.0), &halves()), [2, 0, 1, 3]);
    }

    #[test]
    fn top_p_counts_equal_tokens_as_the_client_wrote_it() {
        for tenths in 1..10u32 {
            let top_p = tenths as f32 / 10.0;
            let expected: Vec<u32> = (0..tenths).collect();
            assert_eq!(ids(Truncation::new(0, top_p, 0.0), &[1.0; 10]), expected);
        }
    }

    #[test]
    fn top_p_zero_keeps_only_the_top_token() {
        assert_eq!(ids(Truncation::new(0, 0.0, 0.0), &halves()), [2]);
        assert_eq!(ids(Truncation::new(0, 0.0, 0.0), &[1.0; 4]), [0]);
    }

    #[test]
    fn top_p_is_a_share_of_what_top_k_left() {
        // 0.5 and 0.25 remain: two thirds and one third.
        assert_eq!(ids(Truncation::new(2, 0.66, 0.0), &halves()), [2]);
        assert_eq!(ids(Truncation::new(2, 0.67, 0.0), &halves()), [2, 0]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        assert_eq!(ids(Truncation::new(0, 1.0, 0.51), &halves()), [2]);
        assert_eq!(ids(Truncation::new(0, 1.0, 0.49), &halves()), [2, 0]);
        assert_eq!(ids(Truncation::new(0, 1.0, 1.0), &halves()), [2]);
        assert_eq!(ids(Truncation::new(0, 1.0, 1.0), &[1.0; 4]), [0, 1, 2, 3]);
    }

    #[test]
    fn top_n_sigma_counts_deviations_from_the_largest() {
        // The mean is 2 and the deviation 2, with or without the banned tokens.
        let logits = [0.0, f32::NEG_INFINITY, 4.0, f32::NAN, 0.0, 4.0];
        let sigma = |n: f32| Truncation::new(0, 1.0, 0.0).with_top_n_sigma(n);
        assert_eq!(ids(sigma(1.9), &logits), [2, 5]);
        assert_eq!(ids(sigma(2.0), &logits), [2, 5, 0, 4]);
        assert_eq!(ids(sigma(0.01), &[1.0; 4]), [0, 1, 2, 3]);
        // The deviation is that of all logits, even if top-k keeps few.
        let both = Truncation::new(3, 1.0, 0.0).with_top_n_sigma(1.9);
        assert_eq!(ids(both, &logits), [2, 5]);
        // The remaining tokens are the whole mass for top-p.
        let both = Truncation::new(0, 0.5, 0.0).with_top_n_sigma(1.9);
        assert_eq!(ids(both, &logits), [2]);
    }

    #[test]
    fn typical_p_keeps_what_is_nearest_the_entropy() {
        // The entropy is 1.21: a surprise of 1.39 (0.25) is nearer than 0.69 (0.5), which is
        // nearer than 2.08 (0.125).
        let typical = |p: f32| Truncation::new(0, 1.0, 0.0).with_typical_p(p);
        assert_eq!(ids(typical(0.0), &halves()), [0]);
        assert_eq!(ids(typical(0.2), &halves()), [0]);
        assert_eq!(ids(typical(0.3), &halves()), [2, 0]);
        assert_eq!(ids(typical(0.74), &halves()), [2, 0]);
        assert_eq!(ids(typical(0.76), &halves()), [2, 0, 1]);
        assert_eq!(ids(typical(0.9), &halves()), [2, 0, 1, 3]);
        // Five of ten equal tokens are not more than a half.
        assert_eq!(ids(typical(0.5), &[1.0; 10]), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely_that_is_left() {
        let truncation = Truncation::new(0, 1.0, 0.6).with_typical_p(0.2);
        assert_eq!(ids(truncation, &halves()), [0]);
        // Without the most likely token, min-p is relative to 0.25.
        let logits = [0.25f32, 0.2, 0.5, 0.05].map(f32::ln);
        let typical = Truncation::new(0, 1.0, 0.0).with_typical_p(0.4);
        assert_eq!(ids(typical, &logits), [0, 1]);
        assert_eq!(
            ids(
                Truncation {
                    min_p: 0.7,
                    ..typical
                },
                &logits
            ),
            [0, 1]
        );
        assert_eq!(
            ids(
                Truncation {
                    min_p: 0.9,
                    ..typical
                },
                &logits
            ),
            [0]
        );
    }

    #[test]
    fn temperature_flattens_before_top_p() {
        // At temperature 2 the probabilities are proportional to the square roots.
        let (ids, mass) = kept(Truncation::new(0, 0.6, 0.0), &halves(), 2.0);
        assert_eq!(ids, [2, 0, 1][..2]);
        assert!((mass - (1.0 + 0.5f64.sqrt())).abs() < 1e-7);
    }

    #[test]
    fn a_banned_token_has_no_mass() {
        let mut logits = vec![f32::NEG_INFINITY; 300];
        logits[200] = 1.0;
        logits[100] = 1.0;
        assert_eq!(ids(Truncation::new(0, 0.99, 0.0), &logits), [100, 200]);
        assert_eq!(ids(Truncation::new(0, 1.0, 0.001), &logits), [100, 200]);
    }

    #[test]
    fn tells_when_it_is_off() {
        assert!(Truncation::new(0, 1.0, 0.0).keeps_all(100));
        assert!(Truncation::new(100, 1.0, 0.0).keeps_all(100));
        assert!(!Truncation::new(99, 1.0, 0.0).keeps_all(100));
        assert!(!Truncation::new(0, 0.99, 0.0).keeps_all(100));
        assert!(!Truncation::new(0, 1.0, 0.01).keeps_all(100));
        let all = Truncation::new(0, 1.0, 0.0);
        assert!(all.with_top_n_sigma(-1.0).with_typical_p(1.0).keeps_all(9));
        assert!(!all.with_top_n_sigma(0.1).keeps_all(9));
        assert!(!all.with_typical_p(0.99).keeps_all(9));
    }
}
