//! One step of continuous batching: a forward pass over a mixed batch of answers (decode) and
//! prompts (prefill).

use std::time::Instant;

use super::super::sequence::{Advance, ComputedChunk};
use super::super::step_budget::{Demand, divide_step};
use super::super::wait_estimate::WaitEstimate;
use super::Worker;
use crate::exec::{Chunk, ExecError, Wanted};

/// The numbers of rows of a step.
#[derive(Clone, Copy, Debug, Default)]
struct Rows {
    answers: usize,
    prompts: usize,
    /// Prompt rows whose logits are wanted.
    scored: usize,
}

impl Worker {
    /// Returns the number of tokens of each running sequence that the next step computes.
    fn divide_step(&self) -> Vec<usize> {
        let demands: Vec<Demand> = self.running.iter().map(|one| one.demand()).collect();
        let answers = demands.iter().any(|one| one.is_answer && one.tokens > 0);
        divide_step(&demands, self.prefill_budget.budget(answers))
    }

    /// Runs one forward pass over a mixed batch of answers and prompts. Returns whether there
    /// was anything to compute.
    pub(super) fn step(&mut self) -> bool {
        let scored_row = self.prefill_budget.budget(true).scored_row;
        let counts = loop {
            let mut counts = self.divide_step();
            if counts.iter().all(|&count| count == 0) {
                return false;
            }
            self.draft(&mut counts);
            if self.fit_step(&mut counts) {
                break counts;
            }
        };
        let mut batch: Vec<Chunk<'_>> = Vec::new();
        // The running sequence of each chunk.
        let mut owners: Vec<(usize, ComputedChunk)> = Vec::new();
        let mut computed = Rows::default();
        let has_fast = self.executor.has_fast_precision();
        for (index, (sequence, &count)) in self.running.iter().zip(&counts).enumerate() {
            if count == 0 {
                continue;
            }
            let chunk = sequence.chunk(count, has_fast);
            let (tokens, wanted) = (chunk.tokens.len(), chunk.wanted);
            match wanted {
                _ if sequence.is_decoding() => computed.answers += tokens,
                Wanted::All => computed.scored += tokens,
                _ => computed.prompts += tokens,
            }
            let cost = match wanted {
                Wanted::All if sequence.generated().is_none() || !sequence.is_decoding() => {
                    tokens * scored_row
                }
                _ => tokens,
            };
            self.fairness.charge(sequence.owner(), cost);
            owners.push((index, ComputedChunk { tokens, wanted }));
            batch.push(chunk);
        }
        let wanted = batch.iter();
        let wanted = wanted.map(|chunk| (chunk.wanted_rows(), chunk.wanted_states()));
        let wanted: Vec<(usize, usize)> = wanted.collect();

        #[cfg(debug_assertions)]
        if let Some(fault) = &mut self.fault {
            fault.strike();
        }
        let began = Instant::now();
        if let Err(error) = self.executor.forward_into(&batch, &mut self.logits) {
            self.fail(&error, &owners);
            return true;
        }
        let mut ended = vec![false; self.running.len()];
        let mut choosing = Vec::new();
        let (mut row, mut state) = (0, 0);
        for ((index, computed), (rows, states)) in owners.into_iter().zip(wanted) {
            let sequence = &mut self.running[index];
            let first = if states > 0 { state } else { row };
            match sequence.advance(computed, &self.logits, first) {
                Advance::On => {}
                Advance::Over => ended[index] = true,
                Advance::Chooses(rows) => choosing.push((index, rows)),
            }
            row += rows;
            state += states;
            if let Some(prefix) = sequence.prefix_to_keep() {
                let executor = self.executor.as_mut();
                let pinned = self
                    .cache
                    .pin(sequence.adapter(), &prefix, sequence.id, executor);
                if let Err(error) = pinned {
                    tracing::warn!("a prefix is not kept: {error}");
                }
            }
        }
        // Only now, because other members of the ensemble may come later in the batch.
        let mut chosen = (0, 0);
        for (index, rows) in choosing {
            let sequence = &mut self.running[index];
            let before = sequence.generated().unwrap_or(0);
            let executor = self.executor.as_mut();
            ended[index] = !sequence.choose_or_hold(&mut self.logits, rows, executor);
            let after = sequence.generated().unwrap_or(0);
            chosen = (chosen.0 + 1, chosen.1 + after - before);
        }
        for (sequence, ended) in self.running.iter_mut().zip(&mut ended) {
            if let Err(error) = sequence.settle_draft(self.executor.as_mut()) {
                sequence.fail(&error.to_string());
                *ended = true;
            }
        }
        // The time includes sampling, which is slow with a large vocabulary.
        let took = began.elapsed();
        self.prefill_budget
            .note(computed.prompts, computed.scored, took);
        if computed.answers > 0 {
            // An answer with accepted drafts has several steps' tokens in one.
            let (answers, tokens) = chosen;
            let tokens_each = (tokens as f64 / answers.max(1) as f64).max(1.0);
            self.statistics.note_step(took.div_f64(tokens_each));
            if computed.prompts == 0 && computed.scored == 0 {
                self.step_cost.note(computed.answers, took);
            }
        }
        let mut ended = ended.into_iter();
        self.retain_running(|_| !ended.next().unwrap_or(false));
        true
    }

    /// Publishes the estimate of how long the current sequences will take.
    pub(super) fn update_wait_estimate(&self) {
        let per_token = self.prefill_budget.per_token();
        let takes = |left| self.statistics.estimate(left, per_token);
        let slots = self.running.iter().filter(|one| one.holds_slot());
        let swapped = self.swapped.iter().map(|one| one.sequence());
        let parked = self.running.iter().filter(|one| !one.holds_slot());
        let begun = parked.chain(swapped).map(|one| takes(one.remaining_work()));
        let waiting = self.waiting.iter().map(|one| takes(one.remaining_work()));
        let wait_estimate = WaitEstimate {
            running: slots.map(|one| takes(one.remaining_work())).collect(),
            waiting: begun.chain(waiting).collect(),
        };
        self.shared.set_wait_estimate(wait_estimate);
    }

    /// Fails all sequences of the batch after an error of the executor.
    fn fail(&mut self, error: &ExecError, batch: &[(usize, ComputedChunk)]) {
        tracing::error!("a step failed: {error}");
        let why = error.to_string();
        for (at, sequence) in std::mem::take(&mut self.running).into_iter().enumerate() {
            if batch.iter().all(|(index, _)| *index != at) {
                self.running.push(sequence);
                continue;
            }
            sequence.fail(&why);
            self.lose(&sequence);
        }
    }
}
