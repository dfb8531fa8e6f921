//! The drafts of a sequence (speculative decoding).

use super::Sequence;
use crate::ensemble::EnsembleId;
use crate::exec::{ExecError, Executor};
use crate::speculation::CONTEXT;
use crate::speculation::recent::RecentAnswers;
use crate::task::Task;

/// The part of a sequence in the drafts of a step.
#[derive(Debug, PartialEq)]
pub(crate) enum DraftRole {
    /// It generates, by itself or as the lead of an ensemble with this number of members.
    Generates {
        /// The probabilities that its next tokens are accepted, each with all before it.
        chances: Vec<f32>,
        /// Whether as many tokens as possible are drafted, whatever they are worth.
        fixed: bool,
        ensemble: Option<(EnsembleId, usize)>,
    },
    /// It is a member of an ensemble, ready for a draft.
    Joins(EnsembleId),
    /// It cannot have a draft.
    None,
}

impl Sequence {
    /// Looks up which tokens may follow.
    pub(crate) fn look_up(&mut self) -> DraftRole {
        if !self.is_decoding() || self.remaining() != 1 {
            return DraftRole::None;
        }
        match &mut self.task {
            Task::Answer(answer) => {
                let ensemble = match &answer.together {
                    None => None,
                    Some(together) => match together.lead.members_here() {
                        Some(members) => Some((together.lead.id(), members)),
                        None => return DraftRole::None,
                    },
                };
                DraftRole::Generates {
                    chances: answer.look_up(&self.tokens),
                    fixed: answer.drafter.is_fixed(),
                    ensemble,
                }
            }
            Task::Join { member, .. } => DraftRole::Joins(member.id()),
            Task::Follow(_) => DraftRole::None,
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
            && !self.isolated
        {
            for text in recent.of(self.owner.client) {
                answer.drafter.add(text);
            }
        }
    }

    /// Drafts the first `count` of the tokens that may follow; returns them after the last token,
    /// and nothing if `count` is 0.
    pub(crate) fn draft(&mut self, count: usize) -> &[u32] {
        self.draft.clear();
        if let Task::Answer(answer) = &self.task
            && count > 0
        {
            self.draft.extend(self.tokens.last());
            self.draft.extend(answer.drafter.draft(count));
        }
        &self.draft
    }

    /// Takes over the draft of the lead of its ensemble, whose last token is its own.
    pub(crate) fn join_draft(&mut self, draft: &[u32]) {
        self.draft = draft.to_vec();
    }

    /// Drops the draft; returns the number of its tokens.
    pub(crate) fn drop_draft(&mut self) -> usize {
        let drafted = self.draft.len().saturating_sub(1);
        self.draft.clear();
        drafted
    }

    /// Ends the draft of a member of an ensemble whose lead has chosen tokens: takes over those,
    /// and takes back the rows of drafted tokens that were not chosen.
    ///
    /// # Errors
    /// The executor cannot take them back.
    pub(crate) fn settle_draft(&mut self, executor: &mut dyn Executor) -> Result<(), ExecError> {
        let Task::Join { member, .. } = &self.task else {
            return Ok(());
        };
        if self.draft.is_empty() {
            return Ok(());
        }
        let chosen = member.take_chosen();
        let drafted = self.draft[1..].iter().zip(&chosen);
        let accepted = drafted
            .take_while(|(drafted, chosen)| drafted == chosen)
            .count();
        self.draft.clear();
        self.tokens.extend(chosen);
        self.computed += accepted;
        self.processed += accepted;
        executor.truncate(self.id, self.computed)
    }
}
