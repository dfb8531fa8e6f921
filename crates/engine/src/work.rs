//! What a sequence is for.

use std::sync::Arc;

use super::follow::{Followers, Following};
use super::group::{ChooseError, Seat};
use super::{GenerateRequest, Together};
use crate::exec::Executor;
use incant_sample::{Mixture, Sampler, TokenLogprobs, fresh_seed};

/// What a sequence is for.
pub(super) enum Work {
    /// An answer is generated.
    Answer(Box<Answering>),
    /// Another's answer is scored.
    Follow(Following),
    /// Another's tokens are chosen with it.
    Join {
        seat: Seat,
        /// Whether what it computed is likely to be used again.
        keep: bool,
    },
}

impl Work {
    /// The most tokens that are still to be generated, if that is what it is for, and whether
    /// the answer may end before.
    pub(super) fn left(&self) -> (Option<usize>, bool) {
        match self {
            Work::Answer(answer) => {
                let most = answer.max_tokens - answer.generated;
                (Some(most), !answer.end_tokens.is_empty())
            }
            Work::Follow(_) | Work::Join { .. } => (None, true),
        }
    }

    /// Tells whom it chooses with that it failed.
    pub(super) fn fail(&self, why: &str) {
        if let Work::Join { seat, .. } = self {
            seat.fail(why);
        }
    }
}

/// An answer's own state, beside its tokens.
pub(super) struct Answering {
    pub(super) sampler: Sampler,
    pub(super) end_tokens: Arc<[u32]>,
    pub(super) max_tokens: usize,
    pub(super) logprobs: Option<usize>,
    pub(super) generated: usize,
    pub(super) scoring: Option<Scoring>,
    pub(super) followers: Followers,
    pub(super) together: Option<Together>,
    /// Its row of logits for the next token, while those who choose with it have not all
    /// computed theirs.
    pub(super) held: Option<Vec<f32>>,
}

/// Log-probabilities of a prompt, as they come in.
pub(super) struct Scoring {
    pub(super) top: usize,
    /// The first token whose log-probability is wanted.
    pub(super) first: usize,
    pub(super) entries: Vec<Option<TokenLogprobs>>,
}

impl Answering {
    /// The work of a request whose prefix has so many tokens.
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
                // Nothing precedes the first token of all.
                entries: vec![None; usize::from(prefix == 0 && !request.prompt.is_empty())],
            }),
            followers: Followers::new(request.feeds),
            together: request.together,
            held: None,
        }
    }

    /// Whether all rows are there that its next token is chosen from, but for its own.
    pub(super) fn can_choose(&self) -> bool {
        let together = self.together.as_ref();
        together.is_none_or(|together| together.lead.can_choose())
    }

    /// The next token; and the mixture that it was chosen from, if that is to be reported.
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
