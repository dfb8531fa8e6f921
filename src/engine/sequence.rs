//! One running sequence.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::{Adapter, Event, FinishReason, GenerateRequest, Prefix, cache};
use crate::exec::{AdapterId, Chunk, Logits, SequenceId, Wanted};
use crate::sample::{LogSoftmax, Sampler, TokenLogprobs, fresh_seed, logprobs};

/// Scoring holds a row of logits for each token of a chunk; this bounds those of a
/// step (64 rows of gemma's 262,144 logits are 64 MiB).
pub(super) const SCORED_ROWS: usize = 64;

/// A request that waits for a slot.
pub(super) struct Waiting {
    request: GenerateRequest,
    events: UnboundedSender<Event>,
    /// The prefix's tokens and the prompt's.
    tokens: Vec<u32>,
    /// Whether its prefix was read from disk for it.
    pub(super) read_from_disk: bool,
    /// Who is computing tokens for it, and how many they have in common.
    pub(super) waits_for: Option<(SequenceId, usize)>,
}

impl Waiting {
    pub(super) fn new(request: GenerateRequest, events: UnboundedSender<Event>) -> Waiting {
        let prefix: &[u32] = request.prefix.as_ref().map_or(&[], |prefix| &prefix.ids);
        Waiting {
            tokens: prefix.iter().chain(&request.prompt).copied().collect(),
            request,
            events,
            read_from_disk: false,
            waits_for: None,
        }
    }

    /// Its tokens, as far as others may have computed them for it: at least one is
    /// left, whose logits tell how it goes on.
    pub(super) fn shareable(&self) -> &[u32] {
        let most = match self.request.prompt_logprobs {
            // Whoever is scored needs the logits before each of the prompt's tokens.
            Some(_) => self.tokens.len() - self.request.prompt.len(),
            None => self.tokens.len(),
        };
        &self.tokens[..most.saturating_sub(1)]
    }

    /// The adapter to compute it under.
    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.request.adapter.as_ref()
    }

    /// The constant tokens that come first, if sequences share any.
    pub(super) fn prefix(&self) -> Option<&Arc<Prefix>> {
        let prefix = self.request.prefix.as_ref();
        prefix.filter(|prefix| !cache::shared(prefix).is_empty())
    }

    /// Whether the client has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Tells the client that the request failed.
    pub(super) fn fail(&self, why: &str) {
        // A client that has gone needs no answer.
        _ = self.events.send(Event::Failed(why.to_owned()));
    }
}

/// A sequence in a slot: first its prompt is computed, chunk by chunk, then a
/// token per step.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) began: Instant,
    /// Held so that it stays.
    adapter: Option<Adapter>,
    events: UnboundedSender<Event>,
    sampler: Sampler,
    end_tokens: Arc<[u32]>,
    max_tokens: usize,
    logprobs: Option<usize>,
    /// Prefix, prompt and answer.
    tokens: Vec<u32>,
    /// How many of them are computed.
    done: usize,
    generated: usize,
    scoring: Option<Scoring>,
    /// The prefix, while it is not yet kept.
    prefix: Option<Arc<Prefix>>,
}

/// Log-probabilities of a prompt, as they come in.
struct Scoring {
    top: usize,
    /// The first token whose log-probability is wanted.
    first: usize,
    entries: Vec<Option<TokenLogprobs>>,
}

impl Sequence {
    /// A sequence of which `done` tokens are computed. Its prefix is to be kept as
    /// soon as it is, if `keep_prefix`.
    pub(super) fn new(
        id: SequenceId,
        waiting: Waiting,
        done: usize,
        keep_prefix: bool,
    ) -> Sequence {
        let Waiting {
            request,
            events,
            tokens,
            ..
        } = waiting;
        let sampling = &request.sampling;
        let seed = sampling.seed.unwrap_or_else(fresh_seed);
        let first = tokens.len() - request.prompt.len();
        Sequence {
            id,
            began: Instant::now(),
            adapter: request.adapter,
            events,
            sampler: Sampler::new(sampling, seed, request.index, &tokens),
            end_tokens: request.end_tokens,
            max_tokens: request.max_tokens,
            logprobs: request.logprobs,
            tokens,
            done,
            generated: 0,
            scoring: request.prompt_logprobs.map(|top| Scoring {
                top,
                first: first.max(1),
                // Nothing precedes the first token of all.
                entries: vec![None; usize::from(first == 0 && !request.prompt.is_empty())],
            }),
            prefix: request.prefix.filter(|_| keep_prefix),
        }
    }

    /// The adapter that it is computed under.
    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The same, as the executor knows it.
    pub(super) fn adapter_id(&self) -> Option<AdapterId> {
        self.adapter().map(Adapter::id)
    }

    /// Tells the client that the sequence runs.
    pub(super) fn started(&self, cached_tokens: usize, from_disk: bool) {
        self.send(Event::Started {
            cached_tokens,
            from_disk,
        });
    }

    /// Whether the client has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether the prompt is computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.generated > 0
    }

    /// Whether all logits of the next tokens are wanted.
    pub(super) fn is_scored(&self) -> bool {
        let scoring = self.scoring.as_ref();
        scoring.is_some_and(|scoring| scoring.first <= self.done + 1)
    }

    /// The tokens that are computed.
    pub(super) fn computed(&self) -> &[u32] {
        &self.tokens[..self.done]
    }

    /// How many tokens are still to be computed before the next one is chosen.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.done
    }

    /// How many tokens it begins like `tokens`, computed or not.
    pub(super) fn common(&self, tokens: &[u32]) -> usize {
        let both = self.tokens.iter().zip(tokens);
        both.take_while(|(mine, other)| mine == other).count()
    }

    /// Its prefix, once it is computed and to be kept; told once.
    pub(super) fn prefix_to_keep(&mut self) -> Option<Arc<Prefix>> {
        self.prefix
            .take_if(|prefix| cache::shared(prefix).len() <= self.done)
    }

    /// The next tokens to compute, `most` at the most.
    pub(super) fn chunk(&self, most: usize) -> Chunk<'_> {
        let rest = &self.tokens[self.done..];
        let scored = self.is_scored();
        let most = match &self.scoring {
            // Up to the first token whose logits are wanted.
            Some(scoring) if !scored => most.min(scoring.first - 1 - self.done),
            _ => most,
        };
        let count = rest.len().min(most);
        let wanted = match scored {
            true => Wanted::All,
            false if count == rest.len() => Wanted::Last,
            false => Wanted::None,
        };
        Chunk {
            sequence: self.id,
            tokens: &rest[..count],
            wanted,
        }
    }

    /// Takes in that a chunk was computed, whose wanted logits begin at row
    /// `first`. Returns whether the sequence goes on.
    pub(super) fn advance(&mut self, chunk: Computed, logits: &mut Logits, first: usize) -> bool {
        let Computed { tokens, wanted } = chunk;
        if let Some(scoring) = &mut self.scoring
            && wanted == Wanted::All
        {
            let next = &self.tokens[self.done + 1..];
            for (row, &token) in next.iter().take(tokens).enumerate() {
                let entry = logprobs(logits.row(first + row), token, scoring.top);
                scoring.entries.push(Some(entry));
            }
        }
        self.done += tokens;
        if self.done < self.tokens.len() {
            return true;
        }
        let row = match wanted {
            Wanted::All => first + tokens - 1,
            Wanted::Last | Wanted::None => first,
        };
        if let Some(scoring) = self.scoring.take() {
            self.send(Event::Prompt(scoring.entries));
        }
        if self.max_tokens == 0 {
            self.send(Event::Finished(FinishReason::Length));
            return false;
        }
        self.choose(logits.row_mut(row))
    }

    /// Chooses the next token. Returns whether the sequence goes on.
    fn choose(&mut self, logits: &mut [f32]) -> bool {
        let id = match self.sampler.sample(logits) {
            Ok(id) => id,
            Err(error) => {
                self.fail(&error.to_string());
                return false;
            }
        };
        self.sampler.accept(id);
        self.generated += 1;
        let logprobs = self.logprobs.map(|top| {
            let mut row = LogSoftmax::new(logits);
            TokenLogprobs {
                chosen: row.logprob(id),
                top: row.top(top),
            }
        });
        self.send(Event::Token { id, logprobs });
        if self.end_tokens.contains(&id) {
            self.send(Event::Finished(FinishReason::Stop));
            return false;
        }
        if self.generated == self.max_tokens {
            self.send(Event::Finished(FinishReason::Length));
            return false;
        }
        self.tokens.push(id);
        true
    }

    /// Tells the client that the sequence failed.
    pub(super) fn fail(&self, why: &str) {
        self.send(Event::Failed(why.to_owned()));
    }

    fn send(&self, event: Event) {
        // A client that has gone is noticed before the next step.
        _ = self.events.send(event);
    }
}

/// A chunk that was computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computed {
    /// How many tokens it had.
    pub(super) tokens: usize,
    pub(super) wanted: Wanted,
}
