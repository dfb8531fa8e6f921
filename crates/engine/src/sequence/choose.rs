//! The choice of a sequence's next tokens.

use std::ops::{ControlFlow, Range};

use incant_sample::{SampleError, logprobs};

use super::Sequence;
use crate::ensemble::ChooseError;
use crate::exec::{Executor, Logits};
use crate::task::Task;
use crate::{Event, FinishReason};

impl Sequence {
    /// Whether it holds its row of logits, and all members of its ensemble have stored theirs.
    pub(crate) fn can_choose_now(&self) -> bool {
        match &self.task {
            Task::Answer(answer) if answer.held.is_some() => answer.can_choose(),
            _ => false,
        }
    }

    /// Chooses the next token from the held row. Returns whether the sequence continues.
    pub(crate) fn choose_from_held(&mut self, executor: &mut dyn Executor) -> bool {
        let Task::Answer(answer) = &mut self.task else {
            return true;
        };
        match answer.held.take() {
            Some(mut row) => {
                let (token, next) = self.choose(&mut row, executor);
                self.send_all(token);
                self.continues(next)
            }
            None => true,
        }
    }

    /// Reports the end of the answer if it has ended. Returns whether the sequence continues.
    fn continues(&self, next: ControlFlow<Option<FinishReason>>) -> bool {
        match next {
            ControlFlow::Continue(()) => true,
            ControlFlow::Break(reason) => {
                if let Some(reason) = reason {
                    self.send(Event::Finished(reason));
                }
                false
            }
        }
    }

    /// Chooses the next token from row `rows.start`, or holds the row until all members of the
    /// ensemble have stored theirs; then chooses further tokens from the other rows, as long as
    /// the drafted tokens are chosen. Returns whether the sequence continues.
    pub(crate) fn choose_or_hold(
        &mut self,
        logits: &mut Logits,
        rows: Range<usize>,
        executor: &mut dyn Executor,
    ) -> bool {
        if let Task::Answer(answer) = &mut self.task
            && !answer.can_choose()
        {
            answer.held = Some(logits.row(rows.start).to_vec());
            return true;
        }
        let drafted = std::mem::take(&mut self.draft);
        let drafted = drafted.get(1..).unwrap_or_default();
        let mut accepted = 0;
        let mut tokens = Vec::with_capacity(rows.len());
        let next = loop {
            let row = logits.row_mut(rows.start + accepted);
            let (token, next) = self.choose(row, executor);
            tokens.extend(token);
            match drafted.get(accepted) {
                Some(drafted) if next.is_continue() && self.tokens.last() == Some(drafted) => {
                    accepted += 1;
                }
                _ => break next,
            }
        };
        if !drafted.is_empty() {
            if let Task::Answer(answer) = &self.task
                && let Some(together) = &answer.together
            {
                together.lead.drop_rows();
            }
            self.computed += accepted;
            self.processed += accepted;
            // Comes first, because the receiver may leave at any of the tokens (stop strings).
            self.send(Event::Drafted {
                drafted: drafted.len(),
                accepted,
            });
            if let Err(error) = executor.truncate(self.id, self.computed) {
                self.fail(&error.to_string());
                return false;
            }
        }
        self.send_all(tokens);
        self.continues(next)
    }

    fn send_all(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.send(event);
        }
    }

    /// Chooses the next token; returns its event. If it is the last one, also returns why the
    /// answer ends; `None` if that was reported as a failure.
    fn choose(
        &mut self,
        logits: &mut [f32],
        executor: &mut dyn Executor,
    ) -> (Option<Event>, ControlFlow<Option<FinishReason>>) {
        let Task::Answer(answer) = &mut self.task else {
            return (None, ControlFlow::Continue(()));
        };
        let (id, mixture) = match answer.next(logits, executor) {
            Ok(next) => next,
            // The client's restrictions allow no further token, which ends the answer.
            Err(ChooseError::Sample(SampleError::NothingAllowed)) => {
                return (None, ControlFlow::Break(Some(FinishReason::Stop)));
            }
            Err(error) => {
                self.fail(&error.to_string());
                return (None, ControlFlow::Break(None));
            }
        };
        answer.sampler.accept(id);
        answer.generated += 1;
        answer.drafter.note(id);
        let logprobs = answer.logprobs.map(|top| match &mixture {
            Some(mixture) => mixture.logprobs(id, top),
            None => logprobs(logits, id, top),
        });
        answer.followers.send(id, logits);
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
            together.lead.send_chosen(id);
        }
        let token = Some(Event::Token { id, logprobs });
        if finish.is_some() {
            return (token, ControlFlow::Break(finish));
        }
        self.tokens.push(id);
        (token, ControlFlow::Continue(()))
    }
}
