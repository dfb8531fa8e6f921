//! How much of prompts a step computes.
//!
//! Whoever waits for a step waits for all of it: a running answer for its next
//! token, a client that has left for its place to be free. So a step is kept
//! short, by what the last ones took.

use std::time::Duration;

/// How long prompts may hold up running answers.
const WITH_ANSWERS: Duration = Duration::from_millis(100);

/// How long a step may take where only prompts wait.
const ALONE: Duration = Duration::from_millis(400);

/// A step computes at least so many prompt tokens; with fewer, the weights would
/// be read for too little work.
const LEAST: usize = 32;

/// The pace of the last steps.
#[derive(Debug)]
pub(super) struct Pace {
    /// The most prompt tokens of a step.
    most: usize,
    /// Seconds that a prompt token takes, once that is known.
    per_token: Option<f64>,
}

impl Pace {
    pub(super) fn new(most: usize) -> Pace {
        Pace {
            most,
            per_token: None,
        }
    }

    /// How many prompt tokens the next step may compute.
    pub(super) fn budget(&self, beside_answers: bool) -> usize {
        let limit = match beside_answers {
            true => WITH_ANSWERS,
            false => ALONE,
        };
        let fitting = match self.per_token {
            Some(per_token) => (limit.as_secs_f64() / per_token) as usize,
            None => LEAST,
        };
        fitting.max(LEAST).min(self.most)
    }

    /// Takes in that a step with so many prompt tokens took so long.
    pub(super) fn note(&mut self, tokens: usize, took: Duration) {
        if tokens < LEAST.min(self.most) {
            // It tells more about everything else.
            return;
        }
        let now = took.as_secs_f64() / tokens as f64;
        let mean = self
            .per_token
            .map_or(now, |before| 0.5 * before + 0.5 * now);
        // A clock that stood still must not divide by zero.
        self.per_token = Some(mean.max(1e-9));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LEAST, Pace};

    #[test]
    fn a_step_is_as_long_as_the_last_ones_allow() {
        let mut pace = Pace::new(256);
        assert_eq!(pace.budget(false), LEAST, "nothing is known yet");
        for _ in 0..20 {
            pace.note(50, Duration::from_millis(50));
        }
        assert_eq!((pace.budget(true), pace.budget(false)), (100, 256));
        for _ in 0..20 {
            pace.note(50, Duration::from_millis(500));
        }
        assert_eq!((pace.budget(true), pace.budget(false)), (LEAST, 40));
        // A short rest of a prompt says nothing.
        pace.note(1, Duration::from_secs(1));
        assert_eq!(pace.budget(false), 40);
    }

    #[test]
    fn what_is_allowed_at_most_is_never_exceeded() {
        let mut pace = Pace::new(3);
        assert_eq!(pace.budget(true), 3);
        pace.note(3, Duration::ZERO);
        assert_eq!(pace.budget(true), 3);
    }
}
