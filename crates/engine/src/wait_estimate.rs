//! Estimates when the engine will have room for more sequences (`Retry-After`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// The estimated durations of running and waiting sequences, based on previous steps and
/// answers.
#[derive(Clone, Debug, Default)]
pub(super) struct WaitEstimate {
    /// The remaining time of each sequence that holds a slot.
    pub(super) running: Vec<Duration>,
    /// The time that each waiting sequence will hold a slot, in order of arrival.
    pub(super) waiting: Vec<Duration>,
}

impl WaitEstimate {
    /// The time until `count` of the sequences will have ended, if each waiting sequence takes
    /// the first free slot.
    pub(super) fn until_ended(&self, count: usize) -> Duration {
        let slots = self.running.iter().copied().map(Reverse);
        let mut slots: BinaryHeap<Reverse<Duration>> = slots.collect();
        if slots.is_empty() {
            slots.push(Reverse(Duration::ZERO));
        }
        let mut ends = self.running.clone();
        for &takes in &self.waiting {
            if let Some(Reverse(free)) = slots.pop() {
                let end = free.saturating_add(takes);
                slots.push(Reverse(end));
                ends.push(end);
            }
        }
        ends.sort_unstable();
        let of_count = ends.get(count.saturating_sub(1)).or(ends.last());
        of_count.copied().unwrap_or_default()
    }

    /// The time after which a client that lacks `places` places should retry, in whole seconds,
    /// from 1 to 60.
    pub(super) fn retry_after(&self, places: usize) -> u64 {
        let wait = self.until_ended(places);
        (wait.as_millis().div_ceil(1000) as u64).clamp(1, 60)
    }
}

/// Statistics of previous steps and answers.
#[derive(Debug, Default)]
pub(super) struct StepStatistics {
    /// The mean duration of a decode step in seconds.
    step: Option<f64>,
    /// The mean number of tokens of an answer.
    tokens: Option<f64>,
}

/// The remaining work of one sequence, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RemainingWork {
    /// The tokens to compute before its next token.
    pub(super) prompt: usize,
    /// The maximum number of tokens to generate, if it generates.
    pub(super) answer: Option<usize>,
    /// Whether the answer may end earlier.
    pub(super) may_end: bool,
}

impl StepStatistics {
    /// Records the duration of a decode step.
    pub(super) fn note_step(&mut self, took: Duration) {
        note(&mut self.step, took.as_secs_f64(), 0.1);
    }

    /// Records the number of tokens of an answer that has ended.
    pub(super) fn note_answer(&mut self, tokens: usize) {
        note(&mut self.tokens, tokens as f64, 0.125);
    }

    /// Estimates the remaining time of a sequence, given the seconds per prompt token.
    pub(super) fn estimate(&self, left: RemainingWork, per_prompt_token: f64) -> Duration {
        let answer = match (left.answer, self.tokens) {
            // The age of an answer says nothing about its remaining length.
            (Some(most), Some(mean)) if left.may_end => mean.min(most as f64),
            (Some(most), _) => most as f64,
            (None, mean) => mean.unwrap_or(0.0),
        };
        let seconds = left.prompt as f64 * per_prompt_token + answer * self.step.unwrap_or(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

fn note(mean: &mut Option<f64>, now: f64, weight: f64) {
    let before = mean.unwrap_or(now);
    *mean = Some((1.0 - weight) * before + weight * now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(of: &[u64]) -> Vec<Duration> {
        of.iter().map(|&of| Duration::from_secs(of)).collect()
    }

    #[test]
    fn a_refused_client_comes_back_when_enough_of_those_before_it_have_ended() {
        let table: [(&[u64], &[u64], usize, u64); 9] = [
            // Running, waiting, missing places, seconds.
            (&[], &[], 1, 1),
            (&[0, 0], &[], 1, 1),
            (&[20, 30], &[5, 5], 1, 20),
            (&[20, 30], &[5, 5], 2, 25),
            (&[20, 30], &[5, 5], 3, 30),
            (&[20, 30], &[5, 5], 4, 30),
            (&[7], &[9, 9, 9], 3, 25),
            (&[7], &[9, 9, 9], 99, 34),
            (&[500], &[500], 1, 60),
        ];
        for (running, waiting, places, expected) in table {
            let wait_estimate = WaitEstimate {
                running: seconds(running),
                waiting: seconds(waiting),
            };
            let told = wait_estimate.retry_after(places);
            assert_eq!(told, expected, "{running:?}, {waiting:?}, {places}");
        }
        let part = WaitEstimate {
            running: vec![Duration::from_millis(2001)],
            waiting: Vec::new(),
        };
        assert_eq!(part.retry_after(1), 3);
    }

    #[test]
    fn a_sequence_takes_its_prompt_and_as_many_steps_as_its_answer_is_likely_to_have() {
        let left = |prompt, answer, may_end| RemainingWork {
            prompt,
            answer,
            may_end,
        };
        let mut statistics = StepStatistics::default();
        let take =
            |statistics: &StepStatistics, left| statistics.estimate(left, 0.01).as_secs_f64();
        assert_eq!(
            take(&statistics, left(100, Some(50), true)),
            1.0,
            "no step yet"
        );
        for _ in 0..3 {
            statistics.note_step(Duration::from_millis(500));
        }
        assert_eq!(take(&statistics, left(0, Some(40), true)), 20.0);
        assert_eq!(take(&statistics, left(100, Some(40), false)), 21.0);
        for _ in 0..3 {
            statistics.note_answer(10);
        }
        assert_eq!(take(&statistics, left(0, Some(40), true)), 5.0, "as others");
        assert_eq!(
            take(&statistics, left(0, Some(4), true)),
            2.0,
            "at the most"
        );
        assert_eq!(
            take(&statistics, left(0, Some(40), false)),
            20.0,
            "all of it"
        );
        assert_eq!(take(&statistics, left(0, None, false)), 5.0, "unknown");
        // A longer step has an effect, but only a partial one.
        statistics.note_step(Duration::from_millis(1500));
        assert_eq!(take(&statistics, left(0, Some(10), false)), 6.0);
    }
}
