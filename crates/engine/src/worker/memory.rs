//! Memory management: which sequences are preempted when the KV cache is full, and which
//! return.

use std::sync::atomic::Ordering;

use super::super::cache::MIN_SHARED_TOKENS;
use super::super::sequence::Sequence;
use super::Worker;
use super::scheduling::QUANTUM;
use crate::exec::{Executor, SequenceId, SwapOut};

impl Worker {
    /// Swaps in sequence number `index` of those that are swapped out, if there is room. Idle
    /// sequences give way to it, and so does the sequence whose slot it may take.
    pub(super) fn swap_in(&mut self, index: usize) -> bool {
        let Some(mut swapped) = self.swapped.remove(index) else {
            return false;
        };
        let owner = swapped.sequence().owner();
        let id = match swapped.prepare(&mut self.cache, self.executor.as_mut()) {
            Ok(id) => id,
            Err(error) => {
                let sequence = swapped.into_sequence();
                sequence.fail(&error.to_string());
                self.lose(&sequence);
                return true;
            }
        };
        // Requires room to continue for a while; otherwise it would soon be swapped out again.
        let budget = self.prefill_budget.budget(true).rows;
        let more = |sequence: &Sequence| {
            if sequence.holds_slot() {
                sequence
                    .remaining()
                    .clamp(MIN_SHARED_TOKENS, budget.max(MIN_SHARED_TOKENS))
            } else {
                0
            }
        };
        // Lost KV has to be recomputed as a whole.
        let own = swapped.sequence();
        let own = more(own).max(own.lost());
        loop {
            let mut growth = vec![(id, own)];
            growth.extend(self.running.iter().map(|other| (other.id, more(other))));
            let alone = self.running.is_empty();
            if self.free_memory(&growth, alone) || alone {
                break;
            }
            let parked = self.running.iter().rposition(|one| one.is_parked);
            let all_pause = !self.running.iter().any(Sequence::holds_slot);
            let youngest = all_pause.then(|| self.running.len() - 1);
            let other = || self.preemption_victim(&self.holders(), owner, QUANTUM);
            match parked.or(youngest).or_else(other) {
                Some(victim) => self.swap_out(victim),
                None => {
                    swapped.revert_preparation(self.executor.as_mut());
                    self.swapped.insert(index, swapped);
                    return false;
                }
            }
        }
        match swapped.swap_in(self.executor.as_mut()) {
            Ok(sequence) => {
                let before = |other: &Sequence| other.began < sequence.began;
                let place = self.running.partition_point(before);
                self.running.insert(place, sequence);
            }
            Err(swapped) => self.swapped.insert(index, *swapped),
        }
        true
    }

    /// Frees the KV of idle sequences until there is room; as a last resort, even the prefixes
    /// of profiles. Returns whether there is room.
    pub(super) fn free_memory(
        &mut self,
        growth: &[(SequenceId, usize)],
        last_resort: bool,
    ) -> bool {
        let executor = self.executor.as_mut();
        while !executor.fits(growth) {
            if self.cache.reclaim(executor) {
                continue;
            }
            if !last_resort {
                return false;
            }
            // KV that swapped-out sequences shared may by now belong to one of them alone; or
            // be shared only among themselves, and then each has to swap it out. The one that
            // returns last is first.
            let swapped = &mut self.swapped;
            let mut give = |part, executor: &mut dyn Executor| {
                let mut swapped = swapped.iter_mut().rev();
                swapped.any(|swapped| swapped.swap_out_more(part, executor))
            };
            if !give(SwapOut::Own, executor)
                && !self.cache.reclaim_prefix(executor)
                && !give(SwapOut::All, executor)
            {
                return false;
            }
        }
        true
    }

    /// Makes room for a step, or reduces the step. If that does not suffice, preempts a
    /// sequence: then it returns false, and the step has to be divided again.
    pub(super) fn fit_step(&mut self, counts: &mut [usize]) -> bool {
        let alone = self.running.len() == 1;
        loop {
            let ids = self.running.iter().map(|sequence| sequence.id);
            let growth: Vec<_> = ids.zip(counts.iter().copied()).collect();
            if self.free_memory(&growth, false) {
                return true;
            }
            for sequence in &self.running {
                self.executor.trim(sequence.id);
            }
            // Prefixes are the last resort if no other sequence can give way.
            if self.free_memory(&growth, alone) {
                return true;
            }
            let Some(largest) = counts
                .iter()
                .copied()
                .max()
                .filter(|&most| most > MIN_SHARED_TOKENS)
            else {
                break;
            };
            counts
                .iter_mut()
                .for_each(|count| *count = (*count).min(largest / 2));
        }
        // Prefers an idle sequence; else preempts the youngest sequence of an owner that holds
        // most.
        let holders = self.holders();
        let running = self.running.iter();
        let resting = running.clone().rposition(|one| !one.holds_slot());
        let most = running.enumerate();
        let most = most.max_by_key(|(_, one)| holders.excess(one.owner()));
        let Some(last) = self.running.len().checked_sub(1) else {
            return false;
        };
        if last == 0 {
            let why = "this server has too little memory for KV for this request (--kv-memory)";
            tracing::error!("{why}");
            let only = self.running.remove(last);
            only.fail(why);
            self.lose(&only);
            return false;
        }
        let most = most.map_or(last, |(index, _)| index);
        self.swap_out(resting.unwrap_or(most));
        false
    }

    /// Swaps out running sequence number `index`.
    pub(super) fn swap_out(&mut self, index: usize) {
        let sequence = self.running.remove(index);
        let swapped = self.swap.swap_out(sequence, self.executor.as_mut());
        self.shared.preemptions.fetch_add(1, Ordering::AcqRel);
        self.swapped.push_back(swapped);
    }
}
