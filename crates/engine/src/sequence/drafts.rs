//! The drafts of a sequence that generates (speculative decoding).

use super::Sequence;
use crate::speculation::recent::RecentAnswers;
use crate::speculation::{CONTEXT, Drafter};
use crate::task::Task;

impl Sequence {
    /// Looks up which tokens may follow. Returns the probability that each of them is accepted,
    /// with all before it; `None` if the sequence cannot have drafts now.
    pub(crate) fn look_up(&mut self) -> Option<Vec<f32>> {
        if !self.is_decoding() || self.remaining() != 1 {
            return None;
        }
        match &mut self.task {
            Task::Answer(answer) => Some(answer.look_up(&self.tokens)),
            Task::Follow(_) | Task::Join { .. } => None,
        }
    }

    /// Its answer with a few tokens before it, if later answers to the same client may resemble
    /// it.
    pub(crate) fn recent_answer(&self) -> Option<&[u32]> {
        let is_open = self.generated().is_some() && !self.isolated;
        let answer = &self.tokens[self.prompt.saturating_sub(CONTEXT)..];
        (is_open && self.tokens.len() > self.prompt).then_some(answer)
    }

    /// Adds recent answers to the same client to the texts in which drafts are looked for.
    pub(crate) fn add_recent_answers(&mut self, recent: &RecentAnswers) {
        if let Task::Answer(answer) = &mut self.task
            && let Some(drafter) = &mut answer.drafter
            && !self.isolated
        {
            for text in recent.of(self.owner.client) {
                drafter.add(text);
            }
        }
    }

    /// Whether as many tokens as possible are drafted, whatever they are worth.
    pub(crate) fn has_fixed_drafts(&self) -> bool {
        match &self.task {
            Task::Answer(answer) => answer.drafter.as_ref().is_some_and(Drafter::is_fixed),
            Task::Follow(_) | Task::Join { .. } => false,
        }
    }

    /// Drafts the first `count` of the tokens that may follow.
    pub(crate) fn draft(&mut self, count: usize) {
        if let Task::Answer(answer) = &mut self.task
            && let Some(drafter) = &mut answer.drafter
        {
            drafter.draft(count);
        }
    }

    /// Drops the draft; returns the number of its tokens.
    pub(crate) fn drop_draft(&mut self) -> usize {
        let drafted = self.drafted().map_or(0, |drafted| drafted.len() - 1);
        self.draft(0);
        drafted
    }

    /// The last token and the drafted ones, if there is a draft.
    pub(crate) fn drafted(&self) -> Option<&[u32]> {
        match &self.task {
            Task::Answer(answer) => {
                let drafted = answer.drafter.as_ref()?.chunk();
                (!drafted.is_empty()).then_some(drafted)
            }
            Task::Follow(_) | Task::Join { .. } => None,
        }
    }
}
