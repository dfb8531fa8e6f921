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
    /// without any drafts. `chances` has for each answer the probability that each drafted
    /// token is accepted, with all before it. Beside these answers the step has `others` further
    /// rows whose logits are wanted, and takes `beside` for the rest; at most `most` tokens are
    /// drafted.
    pub(crate) fn drafts(
        &self,
        chances: &[Vec<f32>],
        others: usize,
        beside: Duration,
        most: usize,
    ) -> Vec<usize> {
        let answers = chances.len();
        let mut rows: Vec<(usize, f64)> = Vec::new();
        for (answer, chances) in chances.iter().enumerate() {
            let chances = chances.iter().take(MAX_DRAFT);
            rows.extend(chances.map(|&chance| (answer, f64::from(chance))));
        }
        // Chances never increase along a draft, and the sort is stable.
        rows.sort_by(|a, b| b.1.total_cmp(&a.1));
        rows.truncate(most);
        let beside = beside.as_secs_f64();
        let time = |drafted: usize| beside + self.of(answers + others + drafted);
        let mut expected = answers as f64;
        let mut best = (0, expected / time(0));
        for (index, (_, chance)) in rows.iter().enumerate() {
            expected += chance;
            let rate = expected / time(index + 1);
            if rate > best.1 {
                best = (index + 1, rate);
            }
        }
        let mut drafted = best.0;
        let mut counts = vec![0; answers];
        let mut gains = vec![1.0; answers];
        for &(answer, chance) in &rows[..drafted] {
            counts[answer] += 1;
            gains[answer] += chance;
        }
        while drafted > 0 {
            let longer = time(drafted) / time(0);
            let least = gains.iter().copied().fold(f64::INFINITY, f64::min);
            if longer <= least * (1.0 + TOLERANCE) {
                break;
            }
            drafted -= 1;
            let (answer, chance) = rows[drafted];
            counts[answer] -= 1;
            gains[answer] -= chance;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

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
        assert_eq!(cost.drafts(&[vec![1.0; 15]], 0, NONE, 99), [15]);
        // None that is accepted less often than a row costs.
        assert_eq!(cost.drafts(&[vec![0.05, 0.02]], 0, NONE, 99), [0]);
        let chances: Vec<f32> = (1..=15).map(|length| 0.6_f32.powi(length)).collect();
        let [drafted] = cost.drafts(std::slice::from_ref(&chances), 0, NONE, 99)[..] else {
            panic!("one answer");
        };
        assert!((2..=6).contains(&drafted), "{drafted}");
        // Beside a long prompt a drafted row costs relatively less.
        assert!(cost.drafts(&[chances], 0, Duration::from_millis(100), 99)[0] > drafted);
        assert_eq!(cost.drafts(&[], 3, NONE, 99), [0; 0]);
    }

    #[test]
    fn nobody_waits_for_drafts_of_others() {
        let cost = measured(0.01, 0.002);
        let sure = vec![1.0; 15];
        // The other answer would get its tokens later.
        assert_eq!(
            cost.drafts(&[sure.clone(), Vec::new()], 0, NONE, 99),
            [0, 0]
        );
        // Both gain.
        let both = cost.drafts(&[sure.clone(), sure.clone()], 0, NONE, 99);
        assert!(both.iter().all(|&count| count > 10), "{both:?}");
        // Rows that cost nothing delay nobody.
        let free = measured(0.01, 0.0);
        assert!(free.drafts(&[sure, Vec::new()], 0, NONE, 99)[0] > 0);
    }
}
