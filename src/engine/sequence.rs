//! One running sequence.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::{Event, FinishReason, GenerateRequest, prefixes};
use crate::exec::{Chunk, Logits, SequenceId, Wanted};
use crate::sample::{LogSoftmax, Sampler, TokenLogprobs, fresh_seed, logprobs};

/// Scoring holds a row of logits for each token of a chunk; this bounds them
/// (64 rows of gemma's 262,144 logits are 64 MiB).
const SCORED_ROWS: usize = 64;

/// A request that waits for a slot.
pub(super) struct Waiting {
    pub(super) request: GenerateRequest,
    pub(super) events: UnboundedSender<Event>,
    /// Whether its prefix was resident when it came, or was read from disk for it.
    pub(super) found_prefix: bool,
}

/// A sequence in a slot: first its prompt is computed, chunk by chunk, then a
/// token per step.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) began: Instant,
    events: UnboundedSender<Event>,
    sampler: Sampler,
    end_tokens: Arc<[u32]>,
    max_tokens: usize,
    logprobs: Option<usize>,
    /// What is still to be computed: the prompt, then the last generated token.
    tokens: Vec<u32>,
    /// How many of `tokens` are computed.
    done: usize,
    generated: usize,
    scoring: Option<Scoring>,
}

/// Log-probabilities of a prompt, as they come in.
struct Scoring {
    top: usize,
    entries: Vec<Option<TokenLogprobs>>,
}

impl Sequence {
    /// A sequence that stands on its prefix's segment, if it has one.
    pub(super) fn new(id: SequenceId, waiting: Waiting) -> Sequence {
        let Waiting {
            request, events, ..
        } = waiting;
        let prefix: &[u32] = request.prefix.as_ref().map_or(&[], |prefix| &prefix.ids);
        // All but the prefix's last token are shared; see `Prefix`.
        let mut tokens: Vec<u32> = prefix.last().copied().into_iter().collect();
        let precedes = tokens.len();
        tokens.extend(&request.prompt);
        let sampling = &request.sampling;
        let seed = sampling.seed.unwrap_or_else(fresh_seed);
        let all: Vec<u32> = prefix.iter().chain(&request.prompt).copied().collect();
        Sequence {
            id,
            began: Instant::now(),
            events,
            sampler: Sampler::new(sampling, seed, request.index, &all),
            end_tokens: request.end_tokens,
            max_tokens: request.max_tokens,
            logprobs: request.logprobs,
            tokens,
            done: 0,
            generated: 0,
            scoring: request.prompt_logprobs.map(|top| Scoring {
                top,
                // Nothing precedes the first token of all.
                entries: vec![None; usize::from(precedes == 0 && !request.prompt.is_empty())],
            }),
        }
    }

    /// Tells the client that the sequence runs.
    pub(super) fn started(&self, cached_tokens: usize) {
        self.send(Event::Started { cached_tokens });
    }

    /// Whether the client has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether the prompt is computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.generated > 0
    }

    /// The next tokens to compute, `most` at the most.
    pub(super) fn chunk(&self, most: usize) -> Chunk<'_> {
        let most = match self.scoring {
            Some(_) => most.min(SCORED_ROWS),
            None => most,
        };
        let rest = &self.tokens[self.done..];
        let count = rest.len().min(most);
        let wanted = match self.scoring {
            Some(_) => Wanted::All,
            None if count == rest.len() => Wanted::Last,
            None => Wanted::None,
        };
        Chunk {
            sequence: self.id,
            tokens: &rest[..count],
            wanted,
        }
    }

    /// Takes in that `count` tokens were computed, whose wanted logits begin at
    /// row `first`. Returns whether the sequence goes on.
    pub(super) fn advance(&mut self, count: usize, logits: &mut Logits, first: usize) -> bool {
        if let Some(scoring) = &mut self.scoring {
            let next = &self.tokens[self.done + 1..];
            for (row, &token) in next.iter().take(count).enumerate() {
                let entry = logprobs(logits.row(first + row), token, scoring.top);
                scoring.entries.push(Some(entry));
            }
        }
        self.done += count;
        if self.done < self.tokens.len() {
            return true;
        }
        let row = match self.scoring.take() {
            Some(scoring) => {
                self.send(Event::Prompt(scoring.entries));
                first + count - 1
            }
            None => first,
        };
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
        self.tokens.clear();
        self.tokens.push(id);
        self.done = 0;
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

/// How many tokens a sequence finds computed.
pub(super) fn cached_tokens(waiting: &Waiting) -> usize {
    match &waiting.request.prefix {
        Some(prefix) if waiting.found_prefix => prefixes::shared(prefix).len(),
        _ => 0,
    }
}
