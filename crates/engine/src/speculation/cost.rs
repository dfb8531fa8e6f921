//! Decides how many drafted rows a step computes.

use std::time::Duration;

use super::MAX_DRAFT;

/// The assumed cost of each further row of a step, relative to the cost of the first, before
/// steps of several numbers of rows were measured.
const ASSUMED_ROW: f64 = 0.2;

/// The assumed duration of a step of one row in seconds, before any was measured.
const ASSUMED_STEP: f64 = 0.01;

/// The number of steps after which the weight of an older one has halved.
const MEMORY: f64 = 64.0;

/// The weight of [`ASSUMED_ROW`], in steps times squared rows.
const ASSUMED_WEIGHT: f64 = 4.0;

/// The part by which a step may become longer for an answer that gains nothing from it.
const TOLERANCE: f64 = 0.05;

/// The duration of a step as a function of the number of rows whose logits are wanted: a
/// straight line through recent steps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepCost {
    /// The sums of weights, rows, squared rows, seconds, and rows times seconds.
    sums: [f64; 5],
}

/// An answer that may have a draft.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// The probability that each of its next tokens is accepted, with all before it.
    pub(crate) chances: Vec<f32>,
    /// The number of rows that each drafted token takes: more than one in an ensemble.
    pub(crate) rows_each: usize,
}

/// One token that may be drafted.
#[derive(Clone, Copy, Debug)]
struct Draft {
    answer: usize,
    chance: f64,
    rows: usize,
}

impl StepCost {
    /// Records a step that computed `rows` such rows and nothing else.
    pub(crate) fn note(&mut self, rows: usize, took: Duration) {
        let (rows, seconds) = (rows as f64, took.as_secs_f64());
        let keep = 0.5_f64.powf(1.0 / MEMORY);
        let of_step = [1.0, rows, rows * rows, seconds, rows * seconds];
        for (sum, of_step) in self.sums.iter_mut().zip(of_step) {
            *sum = keep * *sum + of_step;
        }
    }

    /// Returns the seconds of a step of `rows` rows.
    fn of(&self, rows: usize) -> f64 {
        let (first, further) = self.line();
        first + further * (rows as f64 - 1.0)
    }

    /// Returns the seconds of a step of one row, and those of each further row.
    fn line(&self) -> (f64, f64) {
        let [weight, rows_sum, squares, seconds, products] = self.sums;
        if weight == 0.0 {
            return (ASSUMED_STEP, ASSUMED_ROW * ASSUMED_STEP);
        }
        let (mean_rows, mean_seconds) = (rows_sum / weight, seconds / weight);
        let variance = (squares - rows_sum * mean_rows).max(0.0);
        let covariance = products - rows_sum * mean_seconds;
        // The slope that is assumed while all steps had about as many rows.
        let assumed = ASSUMED_ROW * mean_seconds / (1.0 + ASSUMED_ROW * (mean_rows - 1.0));
        let slope = (covariance + ASSUMED_WEIGHT * assumed) / (variance + ASSUMED_WEIGHT);
        let slope = slope.clamp(0.0, mean_seconds / mean_rows);
        (mean_seconds - slope * (mean_rows - 1.0), slope)
    }

    /// Returns the number of tokens to draft for each answer of a step, so that the step yields
    /// the most tokens per time: none of the answers then gets its tokens notably later than
    /// without any drafts. Beside these answers the step has `others` further rows whose logits or
    /// states are wanted, and takes `beside` for the rest; at most `most` rows are added.
    pub(crate) fn drafts(
        &self,
        candidates: &[Candidate],
        others: usize,
        beside: Duration,
        most: usize,
    ) -> Vec<usize> {
        let answers = candidates.len();
        let mut drafts: Vec<Draft> = Vec::new();
        for (answer, candidate) in candidates.iter().enumerate() {
            let chances = candidate.chances.iter().take(MAX_DRAFT);
            drafts.extend(chances.map(|&chance| Draft {
                answer,
                chance: f64::from(chance),
                rows: candidate.rows_each,
            }));
        }
        // Chances never increase along the draft of an answer, and the sort is stable.
        let worth = |draft: &Draft| draft.chance / draft.rows as f64;
        drafts.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
        let mut rows = 0;
        let fits = drafts.iter().take_while(|draft| {
            rows += draft.rows;
            rows <= most
        });
        let fitting = fits.count();
        drafts.truncate(fitting);
        let beside = beside.as_secs_f64();
        let base = answers + others;
        let time = |rows: usize| beside + self.of(base + rows);
        let mut expected = answers as f64;
        let mut rows = 0;
        let mut best = (0, expected / time(0));
        for (index, draft) in drafts.iter().enumerate() {
            expected += draft.chance;
            rows += draft.rows;
            let rate = expected / time(rows);
            if rate > best.1 {
                best = (index + 1, rate);
            }
        }
        drafts.truncate(best.0);
        let mut counts = vec![0; answers];
        let mut gains = vec![1.0; answers];
        for draft in &drafts {
            counts[draft.answer] += 1;
            gains[draft.answer] += draft.chance;
        }
        let mut rows: usize = drafts.iter().map(|draft| draft.rows).sum();
        while let Some(last) = drafts.last() {
            let longer = time(rows) / time(0);
            let least = gains.iter().copied().fold(f64::INFINITY, f64::min);
            if longer <= least * (1.0 + TOLERANCE) {
                break;
            }
            counts[last.answer] -= 1;
            gains[last.answer] -= last.chance;
            rows -= last.rows;
            drafts.pop();
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    fn alone(chances: &[Vec<f32>]) -> Vec<Candidate> {
        let candidate = |chances: &Vec<f32>| Candidate {
            chances: chances.clone(),
            rows_each: 1,
        };
        chances.iter().map(candidate).collect()
    }

    fn measured(first: f64, row: f64) -> StepCost {
        let mut cost = StepCost::default();
        for step in 0..200 {
            let rows = 1 + step % 8;
            let seconds = first + row * (rows as f64 - 1.0);
            cost.note(rows, Duration::from_secs_f64(seconds));
        }
        cost
    }

    #[test]
    fn the_cost_of_rows_is_learnt() {
        let relative = |cost: &StepCost, rows| cost.of(rows) / cost.of(1);
        assert_eq!(relative(&StepCost::default(), 6), 2.0);
        let cost = measured(0.01, 0.005);
        assert!((cost.of(1) - 0.01).abs() < 5e-4, "{}", cost.of(1));
        assert!((cost.of(9) - 0.05).abs() < 1e-3, "{}", cost.of(9));
        let free = measured(0.01, 0.0);
        assert!(relative(&free, 16) < 1.1, "{}", relative(&free, 16));
        // While all steps are alike, nothing is known of other ones.
        let mut alike = StepCost::default();
        for _ in 0..500 {
            alike.note(1, Duration::from_millis(10));
        }
        assert!((relative(&alike, 6) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn as_much_is_drafted_as_saves_time() {
        let cost = measured(0.01, 0.001);
        // A draft of which each token is accepted.
        assert_eq!(cost.drafts(&alone(&[vec![1.0; 15]]), 0, NONE, 99), [15]);
        // None that is accepted less often than a row costs.
        assert_eq!(cost.drafts(&alone(&[vec![0.05, 0.02]]), 0, NONE, 99), [0]);
        let chances: Vec<f32> = (1..=15).map(|length| 0.6_f32.powi(length)).collect();
        let [drafted] = cost.drafts(&alone(std::slice::from_ref(&chances)), 0, NONE, 99)[..] else {
            panic!("one answer");
        };
        assert!((2..=6).contains(&drafted), "{drafted}");
        // Beside a long prompt a drafted row costs relatively less.
        assert!(cost.drafts(&alone(&[chances]), 0, Duration::from_millis(100), 99)[0] > drafted);
        assert_eq!(cost.drafts(&alone(&[]), 3, NONE, 99), [0; 0]);
    }

    #[test]
    fn a_token_that_takes_more_rows_must_be_worth_more() {
        let cost = measured(0.01, 0.002);
        let guided = |chance| Candidate {
            chances: vec![chance; 4],
            rows_each: 2,
        };
        assert_eq!(cost.drafts(&[guided(0.3)], 1, NONE, 99), [0]);
        assert_eq!(cost.drafts(&[guided(0.95)], 1, NONE, 99), [4]);
        assert_eq!(
            cost.drafts(&[guided(0.95)], 1, NONE, 5),
            [2],
            "more do not fit"
        );
    }

    #[test]
    fn nobody_waits_for_drafts_of_others() {
        let cost = measured(0.01, 0.002);
        let sure = vec![1.0; 15];
        // The other answer would get its tokens later.
        assert_eq!(
            cost.drafts(&alone(&[sure.clone(), Vec::new()]), 0, NONE, 99),
            [0, 0]
        );
        // Both gain.
        let both = cost.drafts(&alone(&[sure.clone(), sure.clone()]), 0, NONE, 99);
        assert!(both.iter().all(|&count| count > 10), "{both:?}");
        // Rows that cost nothing delay nobody.
        let free = measured(0.01, 0.0);
        assert!(free.drafts(&alone(&[sure, Vec::new()]), 0, NONE, 99)[0] > 0);
    }
}
