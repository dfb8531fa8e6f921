//! Limits the prompt tokens per step (chunked prefill).
//!
//! Every client waits for the whole step: a running answer for its next token, a disconnected
//! client for its place to be freed. So steps are kept short, based on the duration of previous
//! ones.

use std::time::Duration;

use super::share::Budget;

/// The maximum delay of running answers by prompts.
const WITH_ANSWERS: Duration = Duration::from_millis(100);

/// The maximum duration of a step without running answers.
const ALONE: Duration = Duration::from_millis(400);

/// The minimum number of prompt tokens per step; with fewer, reading the weights would
/// dominate.
const LEAST: usize = 32;

/// The minimum number of scored prompt tokens per step.
const LEAST_SCORED: usize = 4;

/// The assumed cost of a scored token, in prompt tokens, before any was measured: with a large
/// vocabulary, the LM head is the largest part of a small model.
const SCORED_COST: usize = 4;

/// The maximum cost of a scored token, in prompt tokens; a measurement may be an outlier.
const MOST_SCORED_COST: usize = 64;

/// The durations of previous steps.
#[derive(Debug)]
pub(super) struct Pace {
    /// The configured maximum number of prompt tokens per step.
    most: usize,
    /// The mean seconds per prompt token, once measured.
    per_token: Option<f64>,
    /// The mean seconds per prompt token whose logits are wanted, once measured.
    per_scored: Option<f64>,
}

impl Pace {
    pub(super) fn new(most: usize) -> Pace {
        Pace {
            most,
            per_token: None,
            per_scored: None,
        }
    }

    /// Returns the prompt budget of the next step.
    pub(super) fn budget(&self, beside_answers: bool) -> Budget {
        let limit = match beside_answers {
            true => WITH_ANSWERS,
            false => ALONE,
        };
        // A token that is not scored takes no longer than one that is.
        let fitting = match self.per_token.or(self.per_scored) {
            Some(per_token) => (limit.as_secs_f64() / per_token) as usize,
            None => LEAST,
        };
        let scored_row = match (self.per_token, self.per_scored) {
            (Some(token), Some(scored)) => (scored / token).ceil() as usize,
            (None, Some(_)) => 1,
            (_, None) => SCORED_COST,
        };
        let scored_row = scored_row.clamp(1, MOST_SCORED_COST);
        let least = LEAST.max(LEAST_SCORED * scored_row);
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
            0 if tokens < LEAST.min(self.most) => return,
            0 => (tokens, &mut self.per_token, took),
            1..LEAST_SCORED => return,
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

    use super::{LEAST, LEAST_SCORED, Pace, SCORED_COST};

    fn rows(pace: &Pace, beside_answers: bool) -> usize {
        pace.budget(beside_answers).rows
    }

    #[test]
    fn a_step_is_as_long_as_the_last_ones_allow() {
        let mut pace = Pace::new(256);
        assert_eq!(rows(&pace, false), LEAST, "nothing is known yet");
        for _ in 0..20 {
            pace.note(50, 0, Duration::from_millis(50));
        }
        assert_eq!((rows(&pace, true), rows(&pace, false)), (100, 256));
        for _ in 0..20 {
            pace.note(50, 0, Duration::from_millis(500));
        }
        assert_eq!((rows(&pace, true), rows(&pace, false)), (LEAST, 40));
        // A short remainder of a prompt is ignored.
        pace.note(1, 0, Duration::from_secs(1));
        assert_eq!(rows(&pace, false), 40);
    }

    #[test]
    fn scored_tokens_count_for_what_they_take() {
        let mut pace = Pace::new(256);
        assert_eq!(
            pace.budget(true).scored_row,
            SCORED_COST,
            "nothing is known"
        );
        for _ in 0..40 {
            pace.note(0, 8, Duration::from_millis(40));
        }
        let known = pace.budget(true);
        assert_eq!((known.rows, known.scored_row), (LEAST, 1), "none but these");
        for _ in 0..40 {
            pace.note(50, 0, Duration::from_millis(50));
            pace.note(50, 8, Duration::from_millis(50 + 76));
        }
        let known = pace.budget(true);
        assert_eq!((known.rows, known.scored_row), (100, 10));
        // A minimum is computed in every step, however long it takes.
        for _ in 0..40 {
            pace.note(50, 0, Duration::from_millis(500));
            pace.note(0, 8, Duration::from_secs(3));
        }
        let known = pace.budget(true);
        assert_eq!(known.rows / known.scored_row, LEAST_SCORED);
    }

    #[test]
    fn what_is_allowed_at_most_is_never_exceeded() {
        let mut pace = Pace::new(3);
        assert_eq!(rows(&pace, true), 3);
        pace.note(3, 0, Duration::ZERO);
        assert_eq!(rows(&pace, true), 3);
    }
}
