//! Log-probabilities: the log-softmax of the raw logits, before bias, penalties and
//! temperature.

use super::TokenLogprobs;
use super::blocks::{Blocks, Scale};
use super::rank::{Ranked, not_nan};

/// Returns the log-probability and rank of `chosen`, and the `top` most likely tokens of a row.
///
/// The list is ordered best first, ties by the lower id, and is shorter than `top` only if the
/// row is; `chosen` has the same bits in the list as by itself. See [`LogSoftmax::logprob`] for
/// infinite logits and NaN.
///
/// # Panics
/// `chosen` is not an index of `logits`.
pub fn logprobs(logits: &[f32], chosen: u32, top: usize) -> TokenLogprobs {
    let mut row = LogSoftmax::new(logits);
    let best = row.top(top);
    // A token in the list need not be counted.
    let place = best.iter().position(|&(id, _)| id == chosen);
    TokenLogprobs {
        chosen: row.logprob(chosen),
        rank: place.map_or_else(|| rank(logits, chosen), |place| place + 1),
        top: best,
    }
}

/// Returns the 1-based rank of a token by likelihood, ties by the lower id: 1 for the token
/// that greedy decoding chooses.
///
/// # Panics
/// `id` is not an index of `logits`.
pub fn rank(logits: &[f32], id: u32) -> usize {
    let at = id as usize;
    let own = not_nan(logits[at]);
    let (before, after) = logits.split_at(at);
    // Counts without branches; NaN is as unlikely as −∞.
    let ahead = before.iter().filter(|&&l| not_nan(l) >= own).count();
    1 + ahead + after.iter().filter(|&&l| l > own).count()
}

/// The log-softmax of one row, of which any number of values can be computed.
#[derive(Debug)]
pub struct LogSoftmax<'a> {
    logits: &'a [f32],
    blocks: Blocks,
    largest: f32,
    /// ln Σ e^(logit − largest): at least 0.
    log_sum: f64,
}

impl<'a> LogSoftmax<'a> {
    /// Sums the row once, in double precision, relative to its largest logit, so that nothing
    /// overflows and the sum is at least 1.
    pub fn new(logits: &'a [f32]) -> LogSoftmax<'a> {
        let mut blocks = Blocks::default();
        let largest = blocks.survey(logits);
        let sum = if largest.is_finite() {
            blocks.weigh(logits, Scale::new(largest, 1.0))
        } else {
            // Logits of +∞ share the whole probability equally.
            logits.iter().filter(|&&l| l == largest).count().max(1) as f64
        };
        LogSoftmax {
            logits,
            blocks,
            largest,
            log_sum: sum.ln(),
        }
    }

    /// Returns the log-probability of a token: at most 0.
    ///
    /// It is −∞ if the logit is −∞ or NaN, and for every token of a row without a logit above
    /// −∞. If a logit is +∞, finite logits get −∞.
    ///
    /// # Panics
    /// `id` is not an index of the row.
    pub fn logprob(&self, id: u32) -> f32 {
        self.logprob_of(self.logits[id as usize])
    }

    /// Returns the `count` most likely tokens and their log-probabilities, best first, ties by
    /// the lower id; fewer if the row is shorter.
    pub fn top(&mut self, count: usize) -> Vec<(u32, f32)> {
        let mut best: Vec<Ranked> = Vec::new();
        self.blocks.most_likely(self.logits, count, &mut best);
        best.iter()
            .map(|token| (token.id(), self.logprob_of(token.logit())))
            .collect()
    }

    fn logprob_of(&self, logit: f32) -> f32 {
        let logit = not_nan(logit);
        if logit == f32::NEG_INFINITY {
            return f32::NEG_INFINITY;
        }
        // The difference of equal infinities would be NaN.
        let below = if logit == self.largest {
            0.0
        } else {
            f64::from(logit) - f64::from(self.largest)
        };
        (below - self.log_sum) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_the_logarithms_of_the_softmax() {
        // e^0 : e^1 : e^1 : 0
        let logits = [0.0, 1.0, 1.0, f32::NEG_INFINITY];
        let e = std::f64::consts::E;
        let sum = 1.0 + 2.0 * e;
        let found = logprobs(&logits, 0, 9);
        assert_eq!(found.chosen, (1.0 / sum).ln() as f32);
        assert_eq!(
            found.top,
            [
                (1, (e / sum).ln() as f32),
                (2, (e / sum).ln() as f32),
                (0, (1.0 / sum).ln() as f32),
                (3, f32::NEG_INFINITY),
            ]
        );
    }

    #[test]
    fn stand_large_logits() {
        assert_eq!(logprobs(&[3e38, -3e38], 0, 0).chosen, 0.0);
        assert_eq!(logprobs(&[-3e38, -3e38], 1, 0).chosen, -(2f64.ln()) as f32);
        assert_eq!(logprobs(&[1e5, 1e5 - 30.0], 1, 0).chosen, -30.0);
    }

    #[test]
    fn of_infinite_logits() {
        let half = -(2f64.ln()) as f32;
        let logits = [f32::INFINITY, 5.0, f32::INFINITY, f32::NAN];
        let found = logprobs(&logits, 3, 4);
        assert_eq!(found.chosen, f32::NEG_INFINITY);
        assert_eq!(
            found.top,
            [
                (0, half),
                (2, half),
                (1, f32::NEG_INFINITY),
                (3, f32::NEG_INFINITY)
            ]
        );
        let found = logprobs(&[f32::NAN, f32::NEG_INFINITY], 1, 2);
        assert_eq!(found.chosen, f32::NEG_INFINITY);
        assert_eq!(found.top, [(0, f32::NEG_INFINITY), (1, f32::NEG_INFINITY)]);
    }

    #[test]
    fn rank_counts_from_one_with_ties_by_id() {
        let logits = [1.0, 3.0, f32::NAN, 3.0, f32::NEG_INFINITY, 0.5];
        let ranks: Vec<usize> = (0..6).map(|id| rank(&logits, id)).collect();
        assert_eq!(ranks, [3, 1, 5, 2, 6, 4]);
        // For any number of listed alternatives.
        for top in 0..=6 {
            let ranks = (0..6).map(|id| logprobs(&logits, id, top).rank);
            assert_eq!(ranks.collect::<Vec<_>>(), [3, 1, 5, 2, 6, 4]);
        }
    }
}
