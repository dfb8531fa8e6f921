//! Memory: who gives way when it runs out, and who comes back.

use std::sync::atomic::Ordering;

use super::super::cache::LEAST;
use super::super::sequence::Sequence;
use super::Worker;
use super::slots::QUANTUM;
use crate::exec::{Executor, SequenceId, SwapOut};

impl Worker {
    /// Brings back sequence number `index` of those that are swapped out, if there is room.
    /// Whoever rests gives way to it, and whose slot it may have.
    pub(super) fn bring_back(&mut self, index: usize) -> bool {
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
        // With room to go on for a while, or it would be out again at once.
        let budget = self.pace.budget(true).rows;
        let more = |sequence: &Sequence| match sequence.holds_slot() {
            true => sequence.remaining().clamp(LEAST, budget.max(LEAST)),
            false => 0,
        };
        // What was lost has to come back whole.
        let own = swapped.sequence();
        let own = more(own).max(own.lost());
        loop {
            let mut growth = vec![(id, own)];
            growth.extend(self.running.iter().map(|other| (other.id, more(other))));
            let alone = self.running.is_empty();
            if self.make_room(&growth, alone) || alone {
                break;
            }
            let parked = self.running.iter().rposition(|one| one.is_parked);
            let all_pause = !self.running.iter().any(Sequence::holds_slot);
            let youngest = all_pause.then(|| self.running.len() - 1);
            let other = || self.who_gives_way(&self.holders(), owner, QUANTUM);
            match parked.or(youngest).or_else(other) {
                Some(gives_way) => self.swap_out(gives_way),
                None => {
                    swapped.unprepare(self.executor.as_mut());
                    self.swapped.insert(index, swapped);
                    return false;
                }
            }
        }
        match swapped.back(self.executor.as_mut()) {
            Ok(sequence) => {
                let before = |other: &Sequence| other.began < sequence.began;
                let place = self.running.partition_point(before);
                self.running.insert(place, sequence);
            }
            Err(swapped) => self.swapped.insert(index, *swapped),
        }
        true
    }

    /// Frees what nobody runs until there is room: as a last resort, even what
    /// profiles begin with. Returns whether there is.
    pub(super) fn make_room(&mut self, growth: &[(SequenceId, usize)], last_resort: bool) -> bool {
        let executor = self.executor.as_mut();
        while !executor.has_room(growth) {
            if self.cache.reclaim(executor) {
                continue;
            }
            if !last_resort {
                return false;
            }
            // What those that are swapped out shared may be theirs alone by now; or
            // nobody else's but theirs, and then it has to go once for each. The one
            // that comes back last gives first.
            let swapped = &mut self.swapped;
            let mut give = |part, executor: &mut dyn Executor| {
                let mut swapped = swapped.iter_mut().rev();
                swapped.any(|swapped| swapped.give_more(part, executor))
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

    /// Makes room for a step, or makes the step smaller. If that does not do, someone
    /// has to give way: then the step is to be shared out again.
    pub(super) fn find_room(&mut self, counts: &mut [usize]) -> bool {
        let alone = self.running.len() == 1;
        loop {
            let ids = self.running.iter().map(|sequence| sequence.id);
            let growth: Vec<_> = ids.zip(counts.iter().copied()).collect();
            if self.make_room(&growth, false) {
                return true;
            }
            for sequence in &self.running {
                self.executor.trim(sequence.id);
            }
            // With nobody left to give way, prefixes have to.
            if self.make_room(&growth, alone) {
                return true;
            }
            let Some(largest) = counts.iter().copied().max().filter(|&most| most > LEAST) else {
                break;
            };
            counts
                .iter_mut()
                .for_each(|count| *count = (*count).min(largest / 2));
        }
        // Whoever rests needs its memory least; then the one that was let in last of those
        // who hold most.
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

    /// Has running sequence number `index` give up its memory for a while.
    pub(super) fn swap_out(&mut self, index: usize) {
        let sequence = self.running.remove(index);
        let swapped = self.swap.out(sequence, self.executor.as_mut());
        self.shared.preemptions.fetch_add(1, Ordering::AcqRel);
        self.swapped.push_back(swapped);
    }
}
