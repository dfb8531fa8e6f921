//! One running sequence.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::follow::{Followers, Following};
use super::group::{ChooseError, Seat};
use super::{Adapter, Event, FinishReason, Prefix, Request, Together, cache};
use crate::exec::{AdapterId, Chunk, Executor, Logits, SequenceId, Wanted};
use crate::sample::{Mixture, SampleError, Sampler, TokenLogprobs, fresh_seed, logprobs};

/// Scoring holds a row of logits for each token of a chunk; this bounds those of a
/// step (64 rows of gemma's 262,144 logits are 64 MiB).
pub(super) const SCORED_ROWS: usize = 64;

/// A request that waits for a slot.
pub(super) struct Waiting {
    adapter: Option<Adapter>,
    prefix: Option<Arc<Prefix>>,
    events: UnboundedSender<Event>,
    /// The prefix's tokens and the prompt's.
    tokens: Vec<u32>,
    work: Work,
    isolated: bool,
    /// Whether its prefix was read from disk for it.
    pub(super) read_from_disk: bool,
    /// Who is computing tokens for it, and how many they have in common.
    pub(super) waits_for: Option<(SequenceId, usize)>,
}

impl Waiting {
    pub(super) fn new(request: Request, events: UnboundedSender<Event>) -> Waiting {
        let join = |prefix: &Option<Arc<Prefix>>, prompt: &[u32]| {
            let prefix: &[u32] = prefix.as_ref().map_or(&[], |prefix| &prefix.ids);
            [prefix, prompt].concat()
        };
        let isolated = match &request {
            Request::Generate(request) => request.isolated,
            Request::Join(request) => request.isolated,
            Request::Follow(_) => false,
        };
        let (adapter, prefix, tokens, work) = match request {
            Request::Generate(request) => {
                let tokens = join(&request.prefix, &request.prompt);
                let sampling = &request.sampling;
                let seed = sampling.seed.unwrap_or_else(fresh_seed);
                let first = tokens.len() - request.prompt.len();
                let work = Work::Answer(Box::new(Answering {
                    sampler: Sampler::new(sampling, seed, request.index, &request.prompt),
                    end_tokens: request.end_tokens,
                    max_tokens: request.max_tokens,
                    logprobs: request.logprobs,
                    generated: 0,
                    scoring: request.prompt_logprobs.map(|top| Scoring {
                        top,
                        first: first.max(1),
                        // Nothing precedes the first token of all.
                        entries: vec![None; usize::from(first == 0 && !request.prompt.is_empty())],
                    }),
                    followers: Followers::new(request.feeds),
                    together: request.together,
                    held: None,
                }));
                (request.adapter, request.prefix, tokens, work)
            }
            Request::Follow(request) => {
                let tokens = join(&request.prefix, &request.prompt);
                let following = Following::new(request.follow, request.top);
                let work = Work::Follow(following);
                (request.adapter, request.prefix, tokens, work)
            }
            Request::Join(request) => {
                let tokens = join(&request.prefix, &request.prompt);
                let work = Work::Join {
                    seat: request.seat,
                    keep: request.keep,
                };
                (request.adapter, request.prefix, tokens, work)
            }
        };
        Waiting {
            adapter,
            prefix,
            events,
            tokens,
            work,
            isolated,
            read_from_disk: false,
            waits_for: None,
        }
    }

    /// Its tokens, as far as others may have computed them for it: at least one is
    /// left, whose logits tell how it goes on.
    pub(super) fn shareable(&self) -> &[u32] {
        let most = match &self.work {
            // Whoever is scored needs the logits before each of the prompt's tokens.
            Work::Answer(answer) if let Some(scoring) = &answer.scoring => scoring.first - 1,
            _ => self.tokens.len().saturating_sub(1),
        };
        let most = match self.isolated {
            true => most.min(
                self.prefix()
                    .map_or(0, |prefix| cache::shared(prefix).len()),
            ),
            false => most,
        };
        &self.tokens[..most]
    }

    /// The adapter to compute it under.
    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The constant tokens that come first, if sequences share any.
    pub(super) fn prefix(&self) -> Option<&Arc<Prefix>> {
        let prefix = self.prefix.as_ref();
        prefix.filter(|prefix| !cache::shared(prefix).is_empty())
    }

    /// Whether the client has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Tells the client that the request failed.
    pub(super) fn fail(&self, why: &str) {
        if let Work::Join { seat, .. } = &self.work {
            seat.fail(why);
        }
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
    /// Prefix, prompt and answer.
    tokens: Vec<u32>,
    /// How many of them are of the prefix and the prompt.
    prompt: usize,
    /// How many of them are computed.
    done: usize,
    /// The prefix, while it is not yet kept.
    prefix: Option<Arc<Prefix>>,
    work: Work,
    isolated: bool,
}

/// What a sequence is for.
enum Work {
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

/// An answer's own state, beside its tokens.
struct Answering {
    sampler: Sampler,
    end_tokens: Arc<[u32]>,
    max_tokens: usize,
    logprobs: Option<usize>,
    generated: usize,
    scoring: Option<Scoring>,
    followers: Followers,
    together: Option<Together>,
    /// Its row of logits for the next token, while those who choose with it have not all
    /// computed theirs.
    held: Option<Vec<f32>>,
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
        Sequence {
            id,
            began: Instant::now(),
            adapter: waiting.adapter,
            events: waiting.events,
            prompt: waiting.tokens.len(),
            tokens: waiting.tokens,
            done,
            prefix: waiting.prefix.filter(|_| keep_prefix),
            work: waiting.work,
            isolated: waiting.isolated,
        }
    }

    /// Whether no other may share its KV, but for the prefix's.
    pub(super) fn is_isolated(&self) -> bool {
        self.isolated
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

    /// Takes in what others say whom it follows, or chooses with. Returns whether it goes
    /// on: one that follows ends when what it follows has, and all of that is scored; one
    /// that chooses with another ends when that has.
    pub(super) fn listen(&mut self) -> bool {
        match &mut self.work {
            Work::Answer(answer) => {
                let together = answer.together.as_ref();
                let failure = together.and_then(|together| together.lead.failure());
                if let Some(why) = &failure {
                    self.fail(why);
                }
                failure.is_none()
            }
            Work::Follow(following) => {
                following.listen(&mut self.tokens);
                let is_done = following.is_done();
                if is_done {
                    self.send(Event::Finished(FinishReason::Stop));
                }
                !is_done
            }
            Work::Join { seat, .. } => {
                self.tokens.extend(seat.told());
                let is_over = seat.is_over();
                if is_over {
                    self.send(Event::Finished(FinishReason::Stop));
                }
                !is_over
            }
        }
    }

    /// Whether the prompt is computed.
    pub(super) fn is_decoding(&self) -> bool {
        match &self.work {
            Work::Answer(answer) => answer.generated > 0,
            Work::Follow(_) => self.done + 1 >= self.prompt,
            Work::Join { .. } => self.done >= self.prompt,
        }
    }

    /// Whether it is for others to go on: for those who follow it, or for the one that
    /// it follows.
    pub(super) fn is_paused(&self) -> bool {
        match &self.work {
            // The step that ends its prompt chooses a token too.
            Work::Answer(answer) => answer.held.is_some() || answer.followers.are_behind(),
            Work::Follow(_) | Work::Join { .. } => self.remaining() == 0,
        }
    }

    /// Whether all logits of the next tokens are wanted.
    pub(super) fn is_scored(&self) -> bool {
        match &self.work {
            Work::Answer(answer) => {
                let scoring = answer.scoring.as_ref();
                scoring.is_some_and(|scoring| scoring.first <= self.done + 1)
            }
            Work::Follow(_) => self.is_decoding(),
            Work::Join { .. } => false,
        }
    }

    /// The tokens that are computed, as far as another is likely to begin with them.
    pub(super) fn computed(&self) -> &[u32] {
        &self.tokens[..self.done]
    }

    /// Whether another may go on where this one ends.
    pub(super) fn is_worth_keeping(&self) -> bool {
        match self.work {
            Work::Answer(_) => !self.isolated,
            Work::Follow(_) => false,
            Work::Join { keep, .. } => keep && !self.isolated,
        }
    }

    /// How many tokens are still to be computed before the next one is chosen.
    pub(super) fn remaining(&self) -> usize {
        let last = match self.work {
            Work::Answer(_) | Work::Join { .. } => self.tokens.len(),
            // The last one's logits are for the one that follows it.
            Work::Follow(_) => self.tokens.len() - 1,
        };
        last - self.done
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

    /// The first token that is scored by the logits before it, if any is.
    fn first_scored(&self) -> Option<usize> {
        match &self.work {
            Work::Answer(answer) => answer.scoring.as_ref().map(|scoring| scoring.first),
            Work::Follow(_) => Some(self.prompt),
            Work::Join { .. } => None,
        }
    }

    /// The next tokens to compute, `most` at the most.
    pub(super) fn chunk(&self, most: usize) -> Chunk<'_> {
        let rest = &self.tokens[self.done..][..self.remaining()];
        let scored = self.is_scored();
        let most = match self.first_scored() {
            // Up to the first token whose logits are wanted.
            Some(first) if !scored => most.min(first - 1 - self.done),
            _ => most,
        };
        let count = rest.len().min(most);
        let wanted = match (scored, &self.work) {
            (true, _) => Wanted::All,
            (false, Work::Answer(_)) if count == rest.len() => Wanted::Last,
            (false, Work::Join { seat, .. }) if count == rest.len() => seat.wanted(),
            (false, _) => Wanted::None,
        };
        Chunk {
            sequence: self.id,
            tokens: &rest[..count],
            wanted,
        }
    }

    /// Takes in that a chunk was computed, whose wanted logits begin at row `first`; its
    /// state, if that was wanted, is number `first`.
    pub(super) fn advance(&mut self, chunk: Computed, logits: &Logits, first: usize) -> Advance {
        let Computed { tokens, wanted } = chunk;
        let before = self.done;
        self.done += tokens;
        let is_whole = self.done == self.tokens.len();
        match &mut self.work {
            Work::Follow(following) => {
                let rows = if wanted == Wanted::All { tokens } else { 0 };
                let scored = (first..first + rows).map(|row| following.score(logits.row(row)));
                for scored in scored.flatten().collect::<Vec<_>>() {
                    self.send(Event::Scored(scored));
                }
                Advance::On
            }
            Work::Join { seat, .. } => {
                if is_whole {
                    seat.leave(logits, first);
                }
                Advance::On
            }
            Work::Answer(answer) => {
                if let Some(scoring) = &mut answer.scoring
                    && wanted == Wanted::All
                {
                    let next = &self.tokens[before + 1..];
                    for (row, &token) in next.iter().take(tokens).enumerate() {
                        let entry = logprobs(logits.row(first + row), token, scoring.top);
                        scoring.entries.push(Some(entry));
                    }
                }
                if !is_whole {
                    return Advance::On;
                }
                let row = match wanted {
                    Wanted::All => first + tokens - 1,
                    Wanted::Last | Wanted::State | Wanted::None => first,
                };
                let scoring = answer.scoring.take();
                let is_over = answer.max_tokens == 0;
                if let Some(scoring) = scoring {
                    self.send(Event::Prompt(scoring.entries));
                }
                if is_over {
                    self.send(Event::Finished(FinishReason::Length));
                    return Advance::Over;
                }
                Advance::Chooses(row)
            }
        }
    }

    /// Whether it holds its row, and all who choose with it have left theirs.
    pub(super) fn can_choose_now(&self) -> bool {
        match &self.work {
            Work::Answer(answer) if answer.held.is_some() => answer.can_choose(),
            _ => false,
        }
    }

    /// Chooses the next token from the row that it holds. Returns whether it goes on.
    pub(super) fn choose_from_held(&mut self, executor: &mut dyn Executor) -> bool {
        let Work::Answer(answer) = &mut self.work else {
            return true;
        };
        match answer.held.take() {
            Some(mut row) => self.choose(&mut row, executor),
            None => true,
        }
    }

    /// Chooses the next token, or holds the row until those who choose with it have left
    /// theirs. Returns whether the sequence goes on.
    pub(super) fn choose_or_hold(
        &mut self,
        logits: &mut [f32],
        executor: &mut dyn Executor,
    ) -> bool {
        if let Work::Answer(answer) = &mut self.work
            && !answer.can_choose()
        {
            answer.held = Some(logits.to_vec());
            return true;
        }
        self.choose(logits, executor)
    }

    /// Chooses the next token. Returns whether the sequence goes on.
    fn choose(&mut self, logits: &mut [f32], executor: &mut dyn Executor) -> bool {
        let Work::Answer(answer) = &mut self.work else {
            return true;
        };
        let (id, mixture) = match answer.next(logits, executor) {
            Ok(next) => next,
            // What the client allows ends here, and with it the answer.
            Err(ChooseError::Sample(SampleError::NothingAllowed)) => {
                self.send(Event::Finished(FinishReason::Stop));
                return false;
            }
            Err(error) => {
                self.fail(&error.to_string());
                return false;
            }
        };
        answer.sampler.accept(id);
        answer.generated += 1;
        let logprobs = answer.logprobs.map(|top| match &mixture {
            Some(mixture) => mixture.logprobs(id, top),
            None => logprobs(logits, id, top),
        });
        answer.followers.tell(id, logits);
        let finish = if answer.end_tokens.contains(&id) {
            Some(FinishReason::Stop)
        } else if answer.generated == answer.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        if finish.is_none()
            && let Some(together) = &answer.together
        {
            together.lead.tell(id);
        }
        self.send(Event::Token { id, logprobs });
        match finish {
            Some(reason) => {
                self.send(Event::Finished(reason));
                false
            }
            None => {
                self.tokens.push(id);
                true
            }
        }
    }

    /// Tells the client that the sequence failed, and whom it chooses with.
    pub(super) fn fail(&self, why: &str) {
        if let Work::Join { seat, .. } = &self.work {
            seat.fail(why);
        }
        self.send(Event::Failed(why.to_owned()));
    }

    fn send(&self, event: Event) {
        // A client that has gone is noticed before the next step.
        _ = self.events.send(event);
    }
}

impl Answering {
    /// Whether all rows are there that its next token is chosen from, but for its own.
    fn can_choose(&self) -> bool {
        let together = self.together.as_ref();
        together.is_none_or(|together| together.lead.can_choose())
    }

    /// The next token; and the mixture that it was chosen from, if that is to be reported.
    fn next(
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

/// What a sequence does after a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advance {
    /// It goes on.
    On,
    /// It has ended.
    Over,
    /// Its next token is to be chosen, from this row.
    Chooses(usize),
}

/// A chunk that was computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Computed {
    /// How many tokens it had.
    pub(super) tokens: usize,
    pub(super) wanted: Wanted,
}
