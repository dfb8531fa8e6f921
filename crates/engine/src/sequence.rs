//! One sequence that has begun.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::client::Owner;
use super::group::ChooseError;
use super::outlook::Left;
use super::places::Place;
use super::share::Demand;
use super::waiting::Waiting;
use super::work::Work;
use super::{Adapter, Event, FinishReason, Prefix, cache};
use crate::exec::{AdapterId, Chunk, Executor, Logits, SequenceId, Wanted};
use incant_sample::{SampleError, logprobs};

/// A sequence that has begun: first its prompt is computed, chunk by chunk, then a token
/// per step.
///
/// Its KV can be lost on the way. Then it is computed again, which changes nothing: until all
/// that was *done* is *present* again, nobody looks at its logits.
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
    /// How many of them are computed, and what their logits tell was taken in.
    done: usize,
    /// How many of them have their KV: fewer, where it was lost.
    present: usize,
    /// Whether it has given its slot to another, for now.
    pub(super) is_parked: bool,
    owner: Owner,
    /// Held until it ends.
    #[expect(dead_code, reason = "held, not read")]
    place: Place,
    /// The prefix, while it is not yet kept.
    prefix: Option<Arc<Prefix>>,
    work: Work,
    isolated: bool,
}

impl Sequence {
    /// A sequence of which `done` tokens are computed. Its prefix is to be kept as
    /// soon as it is, if `keep_prefix`.
    pub(super) fn new(
        id: SequenceId,
        mut waiting: Waiting,
        done: usize,
        keep_prefix: bool,
    ) -> Sequence {
        waiting.place.run();
        Sequence {
            id,
            began: Instant::now(),
            adapter: waiting.adapter,
            events: waiting.events,
            prompt: waiting.tokens.len(),
            tokens: waiting.tokens,
            done,
            present: done,
            is_parked: false,
            owner: waiting.owner,
            place: waiting.place,
            prefix: waiting.prefix.filter(|_| keep_prefix),
            work: waiting.work,
            isolated: waiting.isolated,
        }
    }

    /// Whose it is.
    pub(super) fn owner(&self) -> Owner {
        self.owner
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

    /// Whether the prompt is computed, and all KV is there.
    pub(super) fn is_decoding(&self) -> bool {
        self.lost() == 0 && self.has_answer()
    }

    /// Whether the prompt is computed, or was before its KV was lost.
    fn has_answer(&self) -> bool {
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
            Work::Follow(_) | Work::Join { .. } => self.end() == self.done,
        }
    }

    /// Whether it takes part in steps.
    pub(super) fn holds_slot(&self) -> bool {
        !self.is_parked && !self.is_paused()
    }

    /// Whether all logits of the next tokens are wanted.
    fn is_scored(&self) -> bool {
        self.lost() == 0 && self.unscored() <= self.done
    }

    /// How many of its tokens come before those whose logits are all wanted, which take
    /// their time.
    pub(super) fn unscored(&self) -> usize {
        self.first_scored().map_or(usize::MAX, |first| first - 1)
    }

    /// The tokens that are computed, as far as another is likely to begin with them.
    pub(super) fn computed(&self) -> &[u32] {
        &self.tokens[..self.present]
    }

    /// What it wants of a step, if it holds a slot.
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

    /// What is left of it, if all goes as it seems.
    pub(super) fn left(&self) -> Left {
        let (answer, may_end) = self.work.left();
        let prompt = match self.is_decoding() {
            true => 0,
            false => self.remaining(),
        };
        Left {
            prompt,
            answer,
            may_end,
        }
    }

    /// How many tokens it generated, if that is what it is for.
    pub(super) fn generated(&self) -> Option<usize> {
        match &self.work {
            Work::Answer(answer) if answer.max_tokens > 0 => Some(answer.generated),
            _ => None,
        }
    }

    /// Whether another may go on where this one ends.
    pub(super) fn is_worth_keeping(&self) -> bool {
        match self.work {
            Work::Answer(_) => !self.isolated,
            Work::Follow(_) => false,
            Work::Join { keep, .. } => keep && !self.isolated,
        }
    }

    /// How many tokens are to be computed in the end, as far as they are known.
    fn end(&self) -> usize {
        match self.work {
            Work::Answer(_) | Work::Join { .. } => self.tokens.len(),
            // The last one's logits are for the one that follows it.
            Work::Follow(_) => self.tokens.len() - 1,
        }
    }

    /// How many tokens are still to be computed before the next one is chosen.
    pub(super) fn remaining(&self) -> usize {
        self.end() - self.present
    }

    /// How many tokens have to be computed again.
    pub(super) fn lost(&self) -> usize {
        self.done - self.present
    }

    /// Its tokens, as far as KV that was computed for others may stand in for what it has
    /// lost. With `prompt_only` that is not the answer's.
    pub(super) fn replaceable(&self, prompt_only: bool) -> &[u32] {
        let most = match (self.isolated, prompt_only) {
            (true, _) => 0,
            (false, true) => self.prompt.min(self.done),
            (false, false) => self.done,
        };
        &self.tokens[..most]
    }

    /// Takes in that its KV is lost but for that of the first `present` tokens, which an
    /// executor's sequence has.
    pub(super) fn restart(&mut self, id: SequenceId, present: usize) {
        self.id = id;
        self.present = present;
    }

    /// How many tokens it begins like `tokens`, computed or not.
    pub(super) fn common(&self, tokens: &[u32]) -> usize {
        let both = self.tokens.iter().zip(tokens);
        both.take_while(|(mine, other)| mine == other).count()
    }

    /// Its prefix, once it is computed and to be kept; told once.
    pub(super) fn prefix_to_keep(&mut self) -> Option<Arc<Prefix>> {
        self.prefix
            .take_if(|prefix| cache::shared(prefix).len() <= self.present)
    }

    /// The first token that is scored by the logits before it, if any is.
    fn first_scored(&self) -> Option<usize> {
        match &self.work {
            Work::Answer(answer) => answer.scoring.as_ref().map(|scoring| scoring.first),
            Work::Follow(_) => Some(self.prompt),
            Work::Join { .. } => None,
        }
    }

    /// The next tokens to compute, `most` at the most. Where the executor computes prompts
    /// otherwise than answers, an answer that was lost is computed token by token, as it was
    /// (`as_before`).
    pub(super) fn chunk(&self, most: usize, as_before: bool) -> Chunk<'_> {
        if self.lost() > 0 {
            let lost = &self.tokens[self.present..self.done];
            let most = match self.prompt.checked_sub(self.present) {
                _ if !as_before => most,
                None | Some(0) => 1,
                Some(prompt) => most.min(prompt),
            };
            return Chunk {
                sequence: self.id,
                tokens: &lost[..lost.len().min(most)],
                wanted: Wanted::None,
            };
        }
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
        self.present += tokens;
        if self.present <= self.done {
            // All that its logits tell was taken in before they were lost.
            return Advance::On;
        }
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
        self.work.fail(why);
        self.send(Event::Failed(why.to_owned()));
    }

    fn send(&self, event: Event) {
        // A client that has gone is noticed before the next step.
        _ = self.events.send(event);
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
