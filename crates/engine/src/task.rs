//! The purposes of sequences: generate, follow, or join an ensemble.

use std::sync::Arc;

use super::ensemble::{ChooseError, EnsembleMember};
use super::follower::{Followers, Following};
use super::speculation::Drafter;
use super::{GenerateRequest, Together};
use crate::exec::Executor;
use incant_sample::{Mixture, Sampler, TokenLogprobs, fresh_seed};

/// The purpose of a sequence, with its state.
pub(super) enum Task {
    /// Generates an answer.
    Answer(Box<Answering>),
    /// Scores the answer of another sequence.
    Follow(Following),
    /// Contributes to the choice of another sequence's tokens.
    Join {
        member: EnsembleMember,
        /// Whether its KV is likely to be reused.
        keep: bool,
    },
}

impl Task {
    /// The maximum number of tokens that remain to be generated, if it generates, and whether
    /// the answer may end earlier.
    pub(super) fn remaining_work(&self) -> (Option<usize>, bool) {
        match self {
            Task::Answer(answer) => {
                let most = answer.max_tokens - answer.generated;
                (Some(most), !answer.end_tokens.is_empty())
            }
            Task::Follow(_) | Task::Join { .. } => (None, true),
        }
    }

    /// Reports to the ensemble that the sequence failed.
    pub(super) fn fail(&self, why: &str) {
        if let Task::Join { member, .. } = self {
            member.fail(why);
        }
    }
}

/// The state of an answer, in addition to its tokens.
pub(super) struct Answering {
    pub(super) sampler: Sampler,
    pub(super) end_tokens: Arc<[u32]>,
    pub(super) max_tokens: usize,
    pub(super) logprobs: Option<usize>,
    pub(super) generated: usize,
    pub(super) scoring: Option<Scoring>,
    pub(super) followers: Followers,
    pub(super) together: Option<Together>,
    pub(super) drafter: Drafter,
    /// The row of logits for the next token, while members of the ensemble have not all computed
    /// theirs.
    pub(super) held: Option<Vec<f32>>,
}

/// The log-probabilities of a prompt, collected so far.
pub(super) struct Scoring {
    pub(super) top: usize,
    /// The first token whose log-probability is wanted.
    pub(super) first: usize,
    pub(super) entries: Vec<Option<TokenLogprobs>>,
}

impl Answering {
    /// Creates the state for a request whose prefix has `prefix` tokens.
    pub(super) fn new(request: GenerateRequest, prefix: usize) -> Answering {
        let sampling = &request.sampling;
        let seed = sampling.seed.unwrap_or_else(fresh_seed);
        Answering {
            sampler: Sampler::new(sampling, seed, request.index, &request.prompt),
            end_tokens: request.end_tokens,
            max_tokens: request.max_tokens,
            logprobs: request.logprobs,
            generated: 0,
            scoring: request.prompt_logprobs.map(|top| Scoring {
                top,
                first: prefix.max(1),
                // Nothing precedes the very first token.
                entries: vec![None; usize::from(prefix == 0 && !request.prompt.is_empty())],
            }),
            followers: Followers::new(request.feeds),
            drafter: Drafter::new(
                request.speculation.unwrap_or_default(),
                &request.prompt,
                &request.prediction,
            ),
            together: request.together,
            held: None,
        }
    }

    /// The maximum number of tokens to draft: with the one that follows them, no more than the
    /// answer may still have and its followers can take.
    fn max_draft(&self) -> usize {
        let most = (self.max_tokens - self.generated).min(self.followers.room());
        most.saturating_sub(1)
    }

    /// Looks up which tokens may follow, given all tokens of the sequence: see
    /// [`Drafter::look_up`].
    pub(super) fn look_up(&mut self, tokens: &[u32]) -> Vec<f32> {
        let most = self.max_draft();
        self.drafter.look_up(tokens, most)
    }

    /// Whether all rows for its next token are available, except its own.
    pub(super) fn can_choose(&self) -> bool {
        let together = self.together.as_ref();
        together.is_none_or(|together| together.lead.can_choose())
    }

    /// Chooses the next token; also returns the mixture it was chosen from, if that is to be
    /// reported.
    pub(super) fn next(
        &mut self,
        logits: &mut [f32],
        executor: &mut dyn Executor,
    ) -> Result<(u32, Option<Mixture>), ChooseError> {
        match &self.together {
            Some(together) => {
                let chosen = together.lead.choose(logits, &mut self.sampler, executor);
                let (id, mixture) = chosen?;
                Ok((id, Some(mixture).filter(|_| together.report_mixture)))
            }
            None => Ok((self.sampler.sample(logits)?, None)),
        }
    }
}
