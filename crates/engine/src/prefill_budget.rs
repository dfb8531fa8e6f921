//! Limits the prompt tokens per step (chunked prefill).
//!
//! Every client waits for the whole step: a running answer for its next token, a disconnected
//! client for its place to be freed. So steps are kept short, based on the duration of previous
//! ones.

use std::time::Duration;

use super::step_budget::Budget;

/// The maximum delay of running answers by prompts.
const MAX_STEP_WITH_ANSWERS: Duration = Duration::from_millis(100);

/// The maximum duration of a step without running answers.
const MAX_STEP_ALONE: Duration = Duration::from_millis(400);

/// The minimum number of prompt tokens per step; with fewer, reading the weights would
/// dominate.
const MIN_PROMPT_TOKENS: usize = 32;

/// The minimum number of scored prompt tokens per step.
const MIN_SCORED_TOKENS: usize = 4;

/// The assumed cost of a scored token, in prompt tokens, before any was measured: with a large
/// vocabulary, the LM head is the largest part of a small model.
const DEFAULT_SCORED_COST: usize = 4;

/// The maximum cost of a scored token, in prompt tokens; a measurement may be an outlier.
const MAX_SCORED_COST: usize = 64;

/// The durations of previous steps.
#[derive(Debug)]
pub(super) struct PrefillBudget {
    /// The configured maximum number of prompt tokens per step.
    most: usize,
    /// The mean seconds per prompt token, once measured.
    per_token: Option<f64>,
    /// The mean seconds per prompt token whose logits are wanted, once measured.
    per_scored: Option<f64>,
}

impl PrefillBudget {
    pub(super) fn new(most: usize) -> PrefillBudget {
        PrefillBudget {
            most,
            per_token: None,
            per_scored: None,
        }
    }

    /// Returns the prompt budget of the next step.
    pub(super) fn budget(&self, beside_answers: bool) -> Budget {
        let limit = if beside_answers {
            MAX_STEP_WITH_ANSWERS
        } else {
            MAX_STEP_ALONE
        };
        // A token that is not scored takes no longer than one that is.
        let fitting = match self.per_token.or(self.per_scored) {
            Some(per_token) => (limit.as_secs_f64() / per_token) as usize,
            None => MIN_PROMPT_TOKENS,
        };
        let scored_row = match (self.per_token, self.per_scored) {
            (Some(token), Some(scored)) => (scored / token).ceil() as usize,
            (None, Some(_)) => 1,
            (_, None) => DEFAULT_SCORED_COST,
        };
        let scored_row = scored_row.clamp(1, MAX_SCORED_COST);
        let least = MIN_PROMPT_TOKENS.max(MIN_SCORED_TOKENS * scored_row);
        Budget {
            rows: fitting.max(least).min(self.most),
            scored_row,
        }
    }

    /// The seconds per prompt token, as far as measured; else 0.
    pub(super) fn per_token(&self) -> f64 {
        self.per_token.or(self.per_scored).unwrap_or(0.0)
    }

    /// Records the duration of a step with `tokens` prompt tokens and `scored` additional
    /// scored ones.
    pub(super) fn note(&mut self, tokens: usize, scored: usize, took: Duration) {
        let took = took.as_secs_f64();
        let (count, mean, took) = match scored {
            // With a short remainder of a prompt, the duration is dominated by other work.
            0 if tokens < MIN_PROMPT_TOKENS.min(self.most) => return,
            0 => (tokens, &mut self.per_token, took),
            1..MIN_SCORED_TOKENS => return,
            _ => {
                let others = tokens as f64 * self.per_token.unwrap_or(0.0);
                (scored, &mut self.per_scored, (took - others).max(0.0))
            }
        };
        let now = took / count as f64;
        let next = mean.map_or(now, |before| 0.5 * before + 0.5 * now);
        // A clock that did not advance must not cause a division by zero.
        *mean = Some(next.max(1e-9));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{DEFAULT_SCORED_COST, MIN_PROMPT_TOKENS, MIN_SCORED_TOKENS, PrefillBudget};

    fn rows(prefill_budget: &PrefillBudget, beside_answers: bool) -> usize {
        prefill_budget.budget(beside_answers).rows
    }

    #[test]
    fn a_step_is_as_long_as_the_last_ones_allow() {
        let mut prefill_budget = PrefillBudget::new(256);
        assert_eq!(
            rows(&prefill_budget, false),
            MIN_PROMPT_TOKENS,
            "nothing is known yet"
        );
        for _ in 0..20 {
            prefill_budget.note(50, 0, Duration::from_millis(50));
        }
        assert_eq!(
            (rows(&prefill_budget, true), rows(&prefill_budget, false)),
            (100, 256)
        );
        for _ in 0..20 {
            prefill_budget.note(50, 0, Duration::from_millis(500));
        }
        assert_eq!(
            (rows(&prefill_budget, true), rows(&prefill_budget, false)),
            (MIN_PROMPT_TOKENS, 40)
        );
        // A short remainder of a prompt is ignored.
        prefill_budget.note(1, 0, Duration::from_secs(1));
        assert_eq!(rows(&prefill_budget, false), 40);
    }

    #[test]
    fn scored_tokens_count_for_what_they_take() {
        let mut prefill_budget = PrefillBudget::new(256);
        assert_eq!(
            prefill_budget.budget(true).scored_row,
            DEFAULT_SCORED_COST,
            "nothing is known"
        );
        for _ in 0..40 {
            prefill_budget.note(0, 8, Duration::from_millis(40));
        }
        let known = prefill_budget.budget(true);
        assert_eq!(
            (known.rows, known.scored_row),
            (MIN_PROMPT_TOKENS, 1),
            "none but these"
        );
        for _ in 0..40 {
            prefill_budget.note(50, 0, Duration::from_millis(50));
            prefill_budget.note(50, 8, Duration::from_millis(50 + 76));
        }
        let known = prefill_budget.budget(true);
        assert_eq!((known.rows, known.scored_row), (100, 10));
        // A minimum is computed in every step, however long it takes.
        for _ in 0..40 {
            prefill_budget.note(50, 0, Duration::from_millis(500));
            prefill_budget.note(0, 8, Duration::from_secs(3));
        }
        let known = prefill_budget.budget(true);
        assert_eq!(known.rows / known.scored_row, MIN_SCORED_TOKENS);
    }

    #[test]
    fn what_is_allowed_at_most_is_never_exceeded() {
        let mut prefill_budget = PrefillBudget::new(3);
        assert_eq!(rows(&prefill_budget, true), 3);
        prefill_budget.note(3, 0, Duration::ZERO);
        assert_eq!(rows(&prefill_budget, true), 3);
    }
}
