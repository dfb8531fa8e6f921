//! What is measured of one request, where its events arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Usage;
use crate::server::log::{Learned, Trace};
use crate::server::metrics::{ArmMetrics, Outcome};
use incant_engine::Event;

/// Measures a request's answers for the metrics and the log.
pub(crate) struct Watch {
    metrics: ArmMetrics,
    trace: Arc<Trace>,
    arrived: Instant,
    submitted: Instant,
    /// The tokens of each prompt.
    prompts: Vec<usize>,
    answers_per_prompt: usize,
    /// When each answer's last token came.
    last_token: Vec<Option<Instant>>,
    /// How long the first answer that was given a slot waited for it.
    queued: Option<Duration>,
    /// When the first token of any answer came, after the request's arrival.
    first_token: Option<Duration>,
    outcome: Outcome,
}

impl Watch {
    /// Watches the answers to prompts of so many tokens, which are queued now.
    pub(crate) fn new(
        metrics: ArmMetrics,
        trace: Arc<Trace>,
        arrived: Instant,
        prompts: Vec<usize>,
        answers_per_prompt: usize,
    ) -> Watch {
        Watch {
            metrics,
            trace,
            arrived,
            submitted: Instant::now(),
            last_token: vec![None; prompts.len() * answers_per_prompt],
            prompts,
            answers_per_prompt,
            queued: None,
            first_token: None,
            // What stays so if nothing else is noted.
            outcome: Outcome::Left,
        }
    }

    /// Takes note of an event of answer number `index`.
    pub(crate) fn note(&mut self, index: usize, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Started { cached_tokens, .. } => {
                let queued = now - self.submitted;
                self.queued.get_or_insert(queued);
                self.metrics.queued.observe(queued.as_secs_f64());
                // As in the usage, a prompt counts with its first answer.
                if index.is_multiple_of(self.answers_per_prompt) {
                    let tokens = self.prompts[index / self.answers_per_prompt];
                    self.metrics.prompt_tokens.inc_by(tokens as u64);
                    self.metrics.cached_tokens.inc_by(*cached_tokens as u64);
                }
            }
            Event::Token { .. } => {
                self.metrics.generated_tokens.inc();
                if let Some(last) = self.last_token[index].replace(now) {
                    let since = now - last;
                    self.metrics.between_tokens.observe(since.as_secs_f64());
                }
                if self.first_token.is_none() {
                    let since = now - self.arrived;
                    self.metrics.first_token.observe(since.as_secs_f64());
                    self.first_token = Some(since);
                }
            }
            Event::Failed(_) => self.outcome = Outcome::Failed,
            Event::Prompt(_) | Event::Scored(_) | Event::Finished(_) => {}
        }
    }

    /// Takes note that all answers are there, or that there was no more time.
    pub(crate) fn note_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// The tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().sum()
    }

    /// Counts the request, and gives its line in the log what was learned.
    pub(crate) fn end(&self, usage: Usage) {
        self.metrics.ended(self.outcome);
        self.trace.note_answer(Learned {
            outcome: self.outcome,
            usage,
            queued: self.queued,
            first_token: self.first_token,
        });
    }
}
