//! Memory: who gives way when it runs out, and who comes back.

use std::sync::atomic::Ordering;

use super::super::cache::LEAST;
use super::super::sequence::Sequence;
use super::super::swap::Swapped;
use super::Worker;
use crate::exec::{Executor, SequenceId, SwapOut};

/// What a client is told whose answer cannot be put aside or brought back. The cause may
/// name a folder, and is in the log.
const LOST: &str = "the server could not put the answer aside while memory was short";

impl Worker {
    /// The first of those that are swapped out that can go on.
    pub(super) fn to_bring_back(&self) -> Option<usize> {
        let mut swapped = self.swapped.iter();
        swapped.position(|swapped| !swapped.sequence().is_paused())
    }

    /// Brings back what was swapped out, as far as there is room: the one first that
    /// has waited longest.
    pub(super) fn swap_in(&mut self) {
        while self.taken() < self.slots
            && let Some(next) = self.to_bring_back()
        {
            let swapped = &self.swapped[next];
            // With room to go on for a while, or it would be out again at once.
            let budget = self.pace.budget(true);
            let more = |sequence: &Sequence| match sequence.is_paused() {
                true => 0,
                false => sequence.remaining().clamp(LEAST, budget.max(LEAST)),
            };
            let mut growth = vec![(swapped.sequence().id, more(swapped.sequence()))];
            growth.extend(self.running.iter().map(|other| (other.id, more(other))));
            let alone = self.running.is_empty();
            if !self.make_room(&growth, alone) && !alone {
                // Those that pause may do so until it is back.
                if !self.running.iter().all(Sequence::is_paused) {
                    return;
                }
                let youngest = self.running.len() - 1;
                self.swap_out(youngest);
                continue;
            }
            let Some(swapped) = self.swapped.remove(next) else {
                return;
            };
            match swapped.back(self.executor.as_mut()) {
                Ok(sequence) => {
                    let before = |other: &Sequence| other.began < sequence.began;
                    let place = self.running.partition_point(before);
                    self.running.insert(place, sequence);
                }
                Err(lost) => {
                    tracing::error!("a sequence cannot be brought back: {}", lost.why);
                    lost.sequence.fail(LOST);
                    self.lose(&lost.sequence);
                }
            }
        }
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
        // Whoever pauses needs its memory least; then the one that was let in last has the
        // least to lose.
        let paused = self.running.iter().rposition(Sequence::is_paused);
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
        self.swap_out(paused.unwrap_or(last));
        false
    }

    /// Has running sequence number `index` give up its memory for a while.
    pub(super) fn swap_out(&mut self, index: usize) {
        let sequence = self.running.remove(index);
        match Swapped::out(sequence, self.executor.as_mut(), &self.swap_folder) {
            Ok(swapped) => {
                self.shared.preemptions.fetch_add(1, Ordering::AcqRel);
                self.swapped.push_back(swapped);
            }
            Err(lost) => {
                tracing::error!("a sequence cannot be swapped out: {}", lost.why);
                lost.sequence.fail(LOST);
                self.lose(&lost.sequence);
            }
        }
    }
}
