//! The state of a sequence that has begun.

mod choose;
mod drafts;

pub(super) use drafts::DraftRole;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::admission::Permit;
use super::client::Owner;
use super::step_budget::Demand;
use super::task::Task;
use super::wait_estimate::RemainingWork;
use super::waiting::Waiting;
use super::{Adapter, Event, FinishReason, Prefix, cache};
use crate::exec::{AdapterId, Chunk, Logits, Precision, SequenceId, Wanted};
use incant_sample::logprobs;

/// A sequence that has begun: first its prompt is computed in chunks (prefill), then one token
/// per step (decode).
///
/// Its KV can be lost. Then it is recomputed, without effect on the results: until everything
/// *processed* is *computed* again, its logits are ignored.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) began: Instant,
    /// Held so that the adapter stays loaded.
    adapter: Option<Adapter>,
    events: UnboundedSender<Event>,
    /// The tokens of prefix, prompt and answer.
    tokens: Vec<u32>,
    /// The number of tokens of prefix and prompt.
    prompt: usize,
    /// The number of tokens that were computed and whose logits were processed.
    processed: usize,
    /// The number of tokens whose KV exists: fewer than `processed` if KV was lost.
    computed: usize,
    /// Whether it has temporarily given its slot to another sequence.
    pub(super) is_parked: bool,
    owner: Owner,
    /// Held until the sequence ends.
    #[expect(dead_code, reason = "held, not read")]
    permit: Permit,
    /// The prefix, until it is kept.
    prefix: Option<Arc<Prefix>>,
    task: Task,
    isolated: bool,
    /// The last token and the drafted ones that the next step computes; empty without a draft.
    draft: Vec<u32>,
}

impl Sequence {
    /// Creates a sequence with `processed` computed tokens. With `keep_prefix`, its prefix will be
    /// kept as soon as it is computed.
    pub(super) fn new(
        id: SequenceId,
        mut waiting: Waiting,
        processed: usize,
        keep_prefix: bool,
    ) -> Sequence {
        waiting.permit.run();
        Sequence {
            id,
            began: Instant::now(),
            adapter: waiting.adapter,
            events: waiting.events,
            prompt: waiting.tokens.len(),
            tokens: waiting.tokens,
            processed,
            computed: processed,
            is_parked: false,
            owner: waiting.owner,
            permit: waiting.permit,
            prefix: waiting.prefix.filter(|_| keep_prefix),
            task: waiting.task,
            isolated: waiting.isolated,
            draft: Vec::new(),
        }
    }

    pub(super) fn owner(&self) -> Owner {
        self.owner
    }

    /// Whether other sequences must not share its KV, except that of the prefix.
    pub(super) fn is_isolated(&self) -> bool {
        self.isolated
    }

    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The id of its adapter in the executor.
    pub(super) fn adapter_id(&self) -> Option<AdapterId> {
        self.adapter().map(Adapter::id)
    }

    /// Reports that the sequence has started.
    pub(super) fn started(&self, cached_tokens: usize, from_disk: bool) {
        self.send(Event::Started {
            cached_tokens,
            from_disk,
        });
    }

    /// Whether the client has disconnected.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Receives the tokens of the sequence that it follows, or whose ensemble it is in.
    /// Returns whether the sequence continues: a follower ends when its leader has ended and
    /// all tokens are scored; a member of an ensemble ends when its lead has ended.
    pub(super) fn receive(&mut self) -> bool {
        match &mut self.task {
            Task::Answer(answer) => {
                let together = answer.together.as_ref();
                let failure = together.and_then(|together| together.lead.failure());
                if let Some(why) = &failure {
                    self.fail(why);
                }
                failure.is_none()
            }
            Task::Follow(following) => {
                following.receive(&mut self.tokens);
                let is_done = following.is_done();
                if is_done {
                    self.send(Event::Finished(FinishReason::Stop));
                }
                !is_done
            }
            Task::Join { member, .. } => {
                self.tokens.extend(member.take_chosen());
                let is_over = member.is_over();
                if is_over {
                    self.send(Event::Finished(FinishReason::Stop));
                }
                !is_over
            }
        }
    }

    /// Whether the prompt is computed, and no KV is lost.
    pub(super) fn is_decoding(&self) -> bool {
        self.lost() == 0 && self.has_answer()
    }

    /// Whether the prompt has been computed, even if its KV was lost since.
    fn has_answer(&self) -> bool {
        match &self.task {
            Task::Answer(answer) => answer.generated > 0,
            Task::Follow(_) => self.processed + 1 >= self.prompt,
            Task::Join { .. } => self.processed >= self.prompt,
        }
    }

    /// Whether the sequence waits for others: for its followers, its leader, or its ensemble.
    pub(super) fn is_paused(&self) -> bool {
        match &self.task {
            // The step that completes its prompt also chooses a token.
            Task::Answer(answer) => answer.held.is_some() || answer.followers.are_behind(),
            Task::Follow(_) | Task::Join { .. } => self.end() == self.processed,
        }
    }

    /// Whether it takes part in steps.
    pub(super) fn holds_slot(&self) -> bool {
        !self.is_parked && !self.is_paused()
    }

    /// Whether all logits of the next tokens are wanted.
    fn is_scored(&self) -> bool {
        self.lost() == 0 && self.unscored() <= self.processed
    }

    /// The number of its tokens before the first one whose logits are all wanted, which is
    /// slow.
    pub(super) fn unscored(&self) -> usize {
        self.first_scored().map_or(usize::MAX, |first| first - 1)
    }

    /// The computed tokens, with which another sequence may begin.
    pub(super) fn computed_tokens(&self) -> &[u32] {
        &self.tokens[..self.computed]
    }

    /// The demand for rows of a step, which is zero without a slot.
    pub(super) fn demand(&self) -> Demand {
        Demand {
            client: self.owner.client,
            tokens: if self.holds_slot() {
                self.remaining()
            } else {
                0
            },
            is_answer: self.is_decoding(),
            is_scored: self.is_scored(),
        }
    }

    /// The estimated remaining work.
    pub(super) fn remaining_work(&self) -> RemainingWork {
        let (answer, may_end) = self.task.remaining_work();
        let prompt = if self.is_decoding() {
            0
        } else {
            self.remaining()
        };
        RemainingWork {
            prompt,
            answer,
            may_end,
        }
    }

    /// The number of generated tokens, if the sequence generates.
    pub(super) fn generated(&self) -> Option<usize> {
        match &self.task {
            Task::Answer(answer) if answer.max_tokens > 0 => Some(answer.generated),
            _ => None,
        }
    }

    /// Whether another sequence may continue where this one ends.
    pub(super) fn is_worth_keeping(&self) -> bool {
        match self.task {
            Task::Answer(_) => !self.isolated,
            Task::Follow(_) => false,
            Task::Join { keep, .. } => keep && !self.isolated,
        }
    }

    /// The number of known tokens that have to be computed.
    fn end(&self) -> usize {
        match self.task {
            Task::Answer(_) | Task::Join { .. } => self.tokens.len(),
            // The logits of the last token would score a token that is not known yet.
            Task::Follow(_) => self.tokens.len() - 1,
        }
    }

    /// The number of tokens to compute before the next one is chosen.
    pub(super) fn remaining(&self) -> usize {
        self.end() - self.computed
    }

    /// The number of tokens to recompute.
    pub(super) fn lost(&self) -> usize {
        self.processed - self.computed
    }

    /// The tokens whose lost KV may be replaced by KV that was computed for other sequences.
    /// If the executor `has_fast` rows, the others must be recomputed.
    pub(super) fn recoverable(&self, has_fast: bool) -> &[u32] {
        let most = match (self.isolated, has_fast) {
            (true, _) => 0,
            (false, true) => self.fast_tokens().min(self.processed),
            (false, false) => self.processed,
        };
        &self.tokens[..most]
    }

    /// Records that all KV is lost except that of the first `computed` tokens, which the
    /// executor's sequence `id` holds.
    pub(super) fn restart(&mut self, id: SequenceId, computed: usize) {
        self.id = id;
        self.computed = computed;
    }

    /// The number of leading tokens it has in common with `tokens`, computed or not.
    pub(super) fn common(&self, tokens: &[u32]) -> usize {
        let both = self.tokens.iter().zip(tokens);
        both.take_while(|(mine, other)| mine == other).count()
    }

    /// Takes the prefix that is to be kept, once it is computed.
    pub(super) fn prefix_to_keep(&mut self) -> Option<Arc<Prefix>> {
        self.prefix
            .take_if(|prefix| cache::shared(prefix).len() <= self.computed)
    }

    /// The index of the first token that is scored by the logits before it, if any.
    fn first_scored(&self) -> Option<usize> {
        match &self.task {
            Task::Answer(answer) => answer.scoring.as_ref().map(|scoring| scoring.first),
            Task::Follow(_) => Some(self.prompt),
            Task::Join { .. } => None,
        }
    }

    /// The number of first tokens that may be computed with [`Precision::Fast`]: the prompt
    /// without the tokens whose logits are used. It depends on nothing else, so that a token is
    /// always computed alike.
    fn fast_tokens(&self) -> usize {
        self.unscored().min(self.prompt - 1)
    }

    /// Returns a chunk of the next tokens, `tokens`.
    fn chunk_of<'a>(&self, tokens: &'a [u32], wanted: Wanted) -> Chunk<'a> {
        let is_fast = self.computed + tokens.len() <= self.fast_tokens();
        Chunk {
            sequence: self.id,
            tokens,
            wanted,
            precision: if is_fast {
                Precision::Fast
            } else {
                Precision::Exact
            },
        }
    }

    /// Returns the next chunk, of at most `most` tokens. If the executor `has_fast` rows, all of
    /// the chunk have the same precision.
    pub(super) fn chunk(&self, most: usize, has_fast: bool) -> Chunk<'_> {
        if !self.draft.is_empty() {
            let wanted = match &self.task {
                Task::Join { member, .. } => member.wanted(true),
                Task::Answer(_) | Task::Follow(_) => Wanted::All,
            };
            return self.chunk_of(&self.draft[..self.draft.len().min(most)], wanted);
        }
        let most = match self.fast_tokens().checked_sub(self.computed) {
            Some(fast @ 1..) if has_fast => most.min(fast),
            _ => most,
        };
        if self.lost() > 0 {
            let lost = &self.tokens[self.computed..self.processed];
            return self.chunk_of(&lost[..lost.len().min(most)], Wanted::None);
        }
        let rest = &self.tokens[self.processed..][..self.remaining()];
        let scored = self.is_scored();
        let most = match self.first_scored() {
            // Stops before the first row whose logits are wanted.
            Some(first) if !scored => most.min(first - 1 - self.processed),
            _ => most,
        };
        let count = rest.len().min(most);
        let wanted = match (scored, &self.task) {
            (true, _) => Wanted::All,
            (false, Task::Answer(_)) if count == rest.len() => Wanted::Last,
            (false, Task::Join { member, .. }) if count == rest.len() => member.wanted(false),
            (false, _) => Wanted::None,
        };
        self.chunk_of(&rest[..count], wanted)
    }

    /// Records that a chunk was computed. Its wanted logits begin at row `first`; its state, if
    /// wanted, is number `first`.
    pub(super) fn advance(
        &mut self,
        chunk: ComputedChunk,
        logits: &Logits,
        first: usize,
    ) -> Advance {
        let ComputedChunk { tokens, wanted } = chunk;
        if !self.draft.is_empty() {
            // Drafted tokens are none of the sequence's until they are accepted.
            self.draft.truncate(tokens);
            self.computed += 1;
            self.processed += 1;
            let rows = first..first + tokens;
            if let Task::Join { member, .. } = &self.task {
                member.store_logits(logits, rows);
                return Advance::On;
            }
            return Advance::Chooses(rows);
        }
        self.computed += tokens;
        if self.computed <= self.processed {
            // The logits were processed before the KV was lost.
            return Advance::On;
        }
        let before = self.processed;
        self.processed += tokens;
        let is_whole = self.processed == self.tokens.len();
        match &mut self.task {
            Task::Follow(following) => {
                let rows = if wanted == Wanted::All { tokens } else { 0 };
                let scored = (first..first + rows).map(|row| following.score(logits.row(row)));
                for scored in scored.flatten().collect::<Vec<_>>() {
                    self.send(Event::Scored(scored));
                }
                Advance::On
            }
            Task::Join { member, .. } => {
                if is_whole {
                    member.store_logits(logits, first..first + 1);
                }
                Advance::On
            }
            Task::Answer(answer) => {
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
                    Wanted::Last | Wanted::State | Wanted::States | Wanted::None => first,
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
                Advance::Chooses(row..row + 1)
            }
        }
    }

    /// Reports to the client and to the ensemble that the sequence failed.
    pub(super) fn fail(&self, why: &str) {
        self.task.fail(why);
        self.send(Event::Failed(why.to_owned()));
    }

    fn send(&self, event: Event) {
        // A client that has disconnected is noticed before the next step.
        _ = self.events.send(event);
    }
}

/// The result of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Advance {
    /// The sequence continues.
    On,
    /// The sequence has ended.
    Over,
    /// The next token has to be chosen from the first of these rows of logits, and those after
    /// it from the other ones as long as they are the drafted ones.
    Chooses(Range<usize>),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ComputedChunk {
    /// The number of tokens.
    pub(super) tokens: usize,
    pub(super) wanted: Wanted,
}
