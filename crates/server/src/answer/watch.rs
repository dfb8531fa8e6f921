//! Measures each request where its events arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Usage;
use crate::log::{AnswerStats, Trace};
use crate::metrics::{ArmMetrics, Outcome};
use incant_engine::Event;

/// Measures a request's answers for the metrics and the log.
pub(crate) struct Watch {
    metrics: ArmMetrics,
    trace: Arc<Trace>,
    arrived: Instant,
    submitted: Instant,
    /// The number of tokens of each prompt.
    prompts: Vec<usize>,
    answers_per_prompt: usize,
    /// When each answer's last token arrived.
    last_token: Vec<Option<Instant>>,
    /// How long the first answer that got a slot had waited for it.
    queued: Option<Duration>,
    /// Time to first token: from the request's arrival to the first token of any answer.
    first_token: Option<Duration>,
    outcome: Outcome,
}

impl Watch {
    /// Starts to measure the answers to prompts with these numbers of tokens, which are queued now.
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
            // Stays so if no other outcome is noted.
            outcome: Outcome::Disconnected,
        }
    }

    /// Records an event of answer number `index`.
    pub(crate) fn note(&mut self, index: usize, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Started { cached_tokens, .. } => {
                let queued = now - self.submitted;
                self.queued.get_or_insert(queued);
                self.metrics.queued.observe(queued.as_secs_f64());
                // As in the usage, a prompt is counted with its first answer.
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
            Event::Drafted { drafted, accepted } => {
                self.metrics.drafted_tokens.inc_by(*drafted as u64);
                self.metrics.accepted_tokens.inc_by(*accepted as u64);
            }
            Event::Failed(_) => self.outcome = Outcome::Failed,
            Event::Prompt(_) | Event::Scored(_) | Event::Finished(_) => {}
        }
    }

    /// Records that all answers are complete, or that the deadline passed.
    pub(crate) fn note_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Returns the number of tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().sum()
    }

    /// Counts the request in the metrics and adds the measurements to its log line.
    pub(crate) fn end(&self, usage: Usage) {
        self.metrics.ended(self.outcome);
        self.trace.note_answer(AnswerStats {
            outcome: self.outcome,
            usage,
            queued: self.queued,
            first_token: self.first_token,
        });
    }
}
