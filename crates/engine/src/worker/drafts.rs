//! Drafts of a step (speculative decoding).

use std::collections::HashMap;
use std::time::Duration;

use super::super::ensemble::EnsembleId;
use super::super::sequence::DraftRole;
use super::super::speculation::cost::Candidate;
use super::super::step_budget::MAX_SCORED_ROWS;
use super::Worker;

impl Worker {
    /// Drafts tokens of answers, and adds their rows to the step, which computes `counts` tokens
    /// of each running sequence.
    pub(super) fn draft(&mut self, counts: &mut [usize]) {
        let mut roles = Vec::with_capacity(counts.len());
        let mut members: HashMap<EnsembleId, Vec<usize>> = HashMap::new();
        // Rows of answers and of the other sequences of ensembles, and rows of prompts.
        let (mut rows, mut prompts) = (0, 0);
        for (index, (sequence, &count)) in self.running.iter_mut().zip(&*counts).enumerate() {
            sequence.drop_draft();
            if count == 0 {
                continue;
            }
            if sequence.is_decoding() {
                rows += count;
            } else {
                prompts += count;
            }
            match sequence.look_up() {
                DraftRole::Joins(ensemble) => members.entry(ensemble).or_default().push(index),
                role => roles.push((index, role)),
            }
        }
        let mut candidates = Vec::new();
        let mut auto = Vec::new();
        for (index, role) in roles {
            let DraftRole::Generates {
                chances,
                fixed,
                ensemble,
            } = role
            else {
                continue;
            };
            let joining = match ensemble {
                None => Vec::new(),
                Some((ensemble, count)) => {
                    let joining = members.remove(&ensemble).unwrap_or_default();
                    // A member that is not in this step has no rows for drafted tokens.
                    if joining.len() < count {
                        continue;
                    }
                    joining
                }
            };
            let rows_each = 1 + joining.len();
            if fixed {
                let fitting = MAX_SCORED_ROWS.saturating_sub(rows) / rows_each;
                let drafted = chances.len().min(fitting);
                rows += drafted * rows_each;
                self.draft_together(index, &joining, drafted, counts);
            } else {
                candidates.push(Candidate { chances, rows_each });
                auto.push((index, joining));
            }
        }
        let beside = Duration::from_secs_f64(self.prefill_budget.per_token() * prompts as f64);
        let most = MAX_SCORED_ROWS.saturating_sub(rows);
        let others = rows.saturating_sub(candidates.len());
        let drafts = self.step_cost.drafts(&candidates, others, beside, most);
        for ((index, joining), drafted) in auto.into_iter().zip(drafts) {
            self.draft_together(index, &joining, drafted, counts);
        }
        // Drafts are not worth the KV that is kept for later requests.
        let ids = self.running.iter().map(|sequence| sequence.id);
        let growth: Vec<_> = ids.zip(counts.iter().copied()).collect();
        if !self.executor.fits(&growth) {
            for (sequence, count) in self.running.iter_mut().zip(counts) {
                *count -= sequence.drop_draft();
            }
        }
    }

    /// Drafts `count` tokens of a sequence, also for the members of its ensemble.
    fn draft_together(
        &mut self,
        index: usize,
        joining: &[usize],
        count: usize,
        counts: &mut [usize],
    ) {
        if count == 0 {
            return;
        }
        let draft = self.running[index].draft(count).to_vec();
        counts[index] += count;
        for &member in joining {
            self.running[member].join_draft(&draft);
            counts[member] += count;
        }
    }
}
