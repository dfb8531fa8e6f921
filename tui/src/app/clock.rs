//! Measures the speed of an answer: time to first token, tokens per second.

use std::time::Duration;

use crate::session::Stats;
use crate::wire::Usage;

/// The times of an answer's chunks, since the program began.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    sent: Duration,
    first: Option<Duration>,
    last: Duration,
    parts: u64,
    /// The server's token counts.
    pub usage: Option<Usage>,
}

impl Clock {
    /// Starts when the question is sent.
    pub fn start(now: Duration) -> Clock {
        Clock {
            sent: now,
            first: None,
            last: now,
            parts: 0,
            usage: None,
        }
    }

    /// Records a chunk of the text.
    pub fn part(&mut self, now: Duration) {
        self.first.get_or_insert(now);
        self.last = now;
        self.parts += 1;
    }

    /// The time since the question.
    pub fn waited(&self, now: Duration) -> Duration {
        now.saturating_sub(self.sent)
    }

    /// Whether no text has arrived yet.
    pub fn is_waiting(&self) -> bool {
        self.first.is_none()
    }

    /// The statistics so far. Servers send about one token per chunk, but only their own count
    /// at the end is exact.
    pub fn stats(&self) -> Stats {
        let tokens = match self.usage {
            Some(usage) => usage.completion_tokens,
            None => self.parts,
        };
        let took = self.first.map(|first| (self.last - first).as_secs_f64());
        Stats {
            to_first: self.first.map(|first| (first - self.sent).as_secs_f64()),
            per_second: took
                .filter(|took| *took > 0.0 && tokens > 1)
                .map(|took| (tokens - 1) as f64 / took),
            usage: self.usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_count_of_tokens_replaces_that_of_parts() {
        let at = Duration::from_millis;
        let mut clock = Clock::start(at(1000));
        clock.part(at(1500));
        clock.part(at(2500));
        assert_eq!(clock.stats().to_first, Some(0.5));
        assert_eq!(clock.stats().per_second, Some(1.0));
        clock.usage = Some(Usage {
            prompt_tokens: 9,
            completion_tokens: 5,
            cached_tokens: None,
        });
        assert_eq!(clock.stats().per_second, Some(4.0));
    }

    #[test]
    fn one_token_has_no_speed() {
        let mut clock = Clock::start(Duration::ZERO);
        clock.part(Duration::from_secs(1));
        assert_eq!(clock.stats().per_second, None);
    }
}
