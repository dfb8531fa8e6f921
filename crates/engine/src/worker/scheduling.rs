//! Slots: which sequences get one.
//!
//! All sequences that want a slot have a [`Rank`]: those that wait for their first slot, those
//! that gave theirs to another (*parked*, with their KV in memory), and those that are swapped
//! out. While all slots are taken, a slot can move from an owner that holds more than others:
//! then its sequence is parked. So a client with many sequences has all slots as long as it is
//! alone, and others get slots at once.

use super::super::Adapter;
use super::super::cache::{MIN_SHARED_TOKENS, Start};
use super::super::client::Owner;
use super::super::fairness::{Holders, Rank};
use super::super::sequence::Sequence;
use super::Worker;
use crate::exec::ExecError;

/// Memory moves only to an owner that was served this number of rows less: swapping takes time,
/// and sequences of one ensemble need each other in memory.
pub(super) const QUANTUM: u64 = 512;

/// A sequence that wants a slot, by its index among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    Parked(usize),
    Swapped(usize),
    Waiting(usize),
}

impl Candidate {
    /// The number of rows by which it must have been served less than the sequence that gives
    /// way.
    fn quantum(self) -> u64 {
        match self {
            Candidate::Swapped(_) => QUANTUM,
            Candidate::Parked(_) | Candidate::Waiting(_) => 0,
        }
    }
}

/// The next action for a waiting request.
enum Next {
    /// Begin, possibly with cached KV.
    Begin(Option<Start>),
    /// Wait: KV that it needs is being computed for another sequence.
    Wait,
}

impl Worker {
    /// Counts the owners of the sequences that hold slots.
    pub(super) fn holders(&self) -> Holders {
        let running = self.running.iter();
        let holding = running.filter(|sequence| sequence.holds_slot());
        Holders::count(holding.map(Sequence::owner))
    }

    /// The number of taken slots: a paused sequence does not hold its slot.
    fn taken(&self) -> usize {
        let running = self.running.iter();
        running.filter(|sequence| sequence.holds_slot()).count()
    }

    /// Assigns free slots, and moves others.
    pub(super) fn fill_slots(&mut self) {
        for waiting in &mut self.waiting {
            waiting.lets_pass = false;
        }
        while let Some((candidate, owner)) = self.next_candidate() {
            let continues = match candidate {
                Candidate::Parked(index) => {
                    self.free_slot(owner, candidate.quantum());
                    self.running[index].is_parked = false;
                    true
                }
                // A later sequence would take the memory that it waits for.
                Candidate::Swapped(index) => {
                    self.free_slot(owner, candidate.quantum());
                    self.swap_in(index)
                }
                Candidate::Waiting(index) => {
                    match self.next(index) {
                        Ok(Next::Wait) => self.waiting[index].lets_pass = true,
                        Ok(Next::Begin(start)) => {
                            self.free_slot(owner, candidate.quantum());
                            self.begin(index, start);
                        }
                        Err(error) => self.refuse(index, &error),
                    }
                    true
                }
            };
            if !continues {
                return;
            }
        }
    }

    /// Returns the first sequence in rank order for which there is a free slot, or which may
    /// take another's; with its owner.
    fn next_candidate(&self) -> Option<(Candidate, Owner)> {
        let holders = self.holders();
        let is_free = self.taken() < self.slots;
        let parked = self.running.iter().enumerate();
        let parked = parked.filter(|(_, one)| one.is_parked && !one.is_paused());
        let parked = parked.map(|(at, one)| (Candidate::Parked(at), one.owner(), false));
        let swapped = self.swapped.iter().map(|one| one.sequence()).enumerate();
        let swapped = swapped.filter(|(_, one)| !one.is_paused());
        let swapped = swapped.map(|(at, one)| (Candidate::Swapped(at), one.owner(), false));
        let waiting = self.waiting.iter().enumerate();
        let waiting = waiting.filter(|(_, one)| !one.lets_pass);
        let waiting = waiting.map(|(at, one)| (Candidate::Waiting(at), one.owner, true));
        let all = parked.chain(swapped).chain(waiting);
        let may = all.filter(|(candidate, owner, _)| {
            let victim = || self.preemption_victim(&holders, *owner, candidate.quantum());
            is_free || holders.may_move_to(*owner) && victim().is_some()
        });
        let rank = |(_, owner, is_new): &(Candidate, Owner, bool)| -> Rank {
            self.fairness.rank(&holders, *owner, *is_new)
        };
        let first = may.min_by_key(rank);
        first.map(|(candidate, owner, _)| (candidate, owner))
    }

    /// Makes sure that there is a slot for a candidate.
    fn free_slot(&mut self, candidate: Owner, quantum: u64) {
        if self.taken() < self.slots {
            return;
        }
        if let Some(index) = self.preemption_victim(&self.holders(), candidate, quantum) {
            self.running[index].is_parked = true;
        }
    }

    /// Returns the index of the sequence that must give way to a candidate: the youngest one of
    /// the owner that holds most, if it was served at least `quantum` rows more.
    pub(super) fn preemption_victim(
        &self,
        holders: &Holders,
        candidate: Owner,
        quantum: u64,
    ) -> Option<usize> {
        let running = self.running.iter().enumerate();
        let may = running.filter(|(_, one)| {
            let owner = one.owner();
            one.holds_slot()
                && holders.may_move(owner, candidate)
                && self.fairness.is_ahead(owner, candidate, quantum)
        });
        let most = may.max_by_key(|(_, one)| holders.excess(one.owner()));
        most.map(|(index, _)| index)
    }

    /// Decides how waiting request number `index` can begin.
    fn next(&mut self, index: usize) -> Result<Next, ExecError> {
        let executor = self.executor.as_mut();
        let waiting = &mut self.waiting[index];
        let adapter = waiting.adapter().map(Adapter::id);
        if let Some(prefix) = waiting.prefix()
            && !self.cache.has(adapter, prefix)
        {
            waiting.read_from_disk = self.cache.read(waiting.adapter(), prefix, executor);
        }
        if let Some((leader, common)) = waiting.waits_for.take() {
            let leader = self.running.iter().find(|other| other.id == leader);
            let continues = |leader: &&Sequence| !leader.is_parked;
            if leader
                .filter(continues)
                .is_some_and(|leader| leader.computed_tokens().len() < common)
            {
                waiting.waits_for = leader.map(|leader| (leader.id, common));
                return Ok(Next::Wait);
            }
        }
        let tokens = waiting.shareable();
        let mut start = self.cache.find(adapter, tokens, executor)?;
        let mut found = start.map_or(0, |start| start.tokens);
        // A running sequence may share more tokens with it, or will soon.
        let mut leader = None;
        let mut most = 0;
        let same = |other: &&Sequence| other.adapter_id() == adapter && !other.is_isolated();
        for other in self.running.iter().filter(same) {
            let computed = other.computed_tokens().len();
            let common = other.common(tokens);
            // Waiting for a sequence that is parked or scored would take long.
            let soon = if other.is_parked {
                computed
            } else {
                common.min(other.unscored().max(computed))
            };
            let common = common.min(computed);
            if soon > computed {
                if soon > most {
                    most = soon;
                    leader = Some(other.id);
                }
            } else if common >= found + MIN_SHARED_TOKENS && executor.can_fork(other.id, common) {
                self.cache
                    .branch(other.id, adapter, &tokens[..common], executor)?;
                start = self.cache.find(adapter, tokens, executor)?;
                found = start.map_or(0, |start| start.tokens);
            }
        }
        // Waiting must save a substantial part of the remaining work, because it is unknown how
        // long the other sequence will take.
        let saved = most.saturating_sub(found);
        if saved >= MIN_SHARED_TOKENS && 4 * saved >= tokens.len() - found {
            waiting.waits_for = leader.map(|leader| (leader, most));
            return Ok(Next::Wait);
        }
        Ok(Next::Begin(start))
    }

    /// Starts waiting request number `index`.
    fn begin(&mut self, index: usize, start: Option<Start>) {
        let adapter = self.waiting[index].adapter().map(Adapter::id);
        let begun = match start {
            Some(start) => self.executor.fork(start.from, start.tokens),
            None => self.executor.begin_with_adapter(adapter),
        };
        let id = match begun {
            Ok(id) => id,
            Err(error) => return self.refuse(index, &error),
        };
        let Some(waiting) = self.waiting.remove(index) else {
            return;
        };
        let keep_prefix = waiting
            .prefix()
            .is_some_and(|prefix| !self.cache.has(adapter, prefix));
        let from_disk = waiting.read_from_disk;
        let cached = start.map_or(0, |start| start.tokens);
        let mut sequence = Sequence::new(id, waiting, cached, keep_prefix);
        sequence.add_recent_answers(&self.recent_answers);
        sequence.started(cached, from_disk);
        self.running.push(sequence);
    }

    /// Fails waiting request number `index`.
    fn refuse(&mut self, index: usize, error: &ExecError) {
        if let Some(waiting) = self.waiting.remove(index) {
            self.fairness.leave(waiting.owner);
            waiting.fail(&error.to_string());
        }
    }
}
