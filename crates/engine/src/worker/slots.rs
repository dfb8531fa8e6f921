//! Slots: who gets one.
//!
//! All who want a slot have a [`Rank`]: those that wait for their first, those that gave
//! theirs to another (they are *parked*, with their KV in memory), and those that are swapped
//! out. While all slots are taken, one of somebody who holds more than others can move: then
//! the sequence that had it is parked. So a client with many sequences has all slots as long as
//! nobody else is there, and others get in at once.

use super::super::Adapter;
use super::super::cache::{LEAST, Start};
use super::super::client::Owner;
use super::super::fair::{Holders, Rank};
use super::super::sequence::Sequence;
use super::Worker;
use crate::exec::ExecError;

/// Memory moves to whoever was served so many rows less, and no sooner: to swap takes time,
/// and those that choose their tokens together need each other in memory.
pub(super) const QUANTUM: u64 = 512;

/// A sequence that wants a slot, by its place among others of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    Parked(usize),
    Swapped(usize),
    Waiting(usize),
}

impl Candidate {
    /// How many rows less it must have been served than whoever gives way to it.
    fn quantum(self) -> u64 {
        match self {
            Candidate::Swapped(_) => QUANTUM,
            Candidate::Parked(_) | Candidate::Waiting(_) => 0,
        }
    }
}

/// What a request that waits can do.
enum Next {
    /// Begin, with what was computed already.
    Begin(Option<Start>),
    /// Wait: what it needs is being computed for another.
    Wait,
}

impl Worker {
    /// Those who hold slots.
    pub(super) fn holders(&self) -> Holders {
        let running = self.running.iter();
        let holding = running.filter(|sequence| sequence.holds_slot());
        Holders::count(holding.map(Sequence::owner))
    }

    /// How many sequences hold a slot: one that pauses gives way to whoever it waits for.
    fn taken(&self) -> usize {
        let running = self.running.iter();
        running.filter(|sequence| sequence.holds_slot()).count()
    }

    /// Gives out slots: free ones, and those that have to move.
    pub(super) fn fill_slots(&mut self) {
        for waiting in &mut self.waiting {
            waiting.lets_pass = false;
        }
        while let Some((candidate, owner)) = self.next_candidate() {
            let goes_on = match candidate {
                Candidate::Parked(index) => {
                    self.free_slot(owner, candidate.quantum());
                    self.running[index].is_parked = false;
                    true
                }
                // A later sequence would take the memory that it waits for.
                Candidate::Swapped(index) => {
                    self.free_slot(owner, candidate.quantum());
                    self.bring_back(index)
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
            if !goes_on {
                return;
            }
        }
    }

    /// The first of those who want a slot for whom there is one, or who may have somebody
    /// else's; and whose it is.
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
            let gives_way = || self.who_gives_way(&holders, *owner, candidate.quantum());
            is_free || holders.may_move_to(*owner) && gives_way().is_some()
        });
        let rank = |(_, owner, is_new): &(Candidate, Owner, bool)| -> Rank {
            self.fairness.rank(&holders, *owner, *is_new)
        };
        let first = may.min_by_key(rank);
        first.map(|(candidate, owner, _)| (candidate, owner))
    }

    /// Sees to it that there is a slot for a candidate.
    fn free_slot(&mut self, candidate: Owner, quantum: u64) {
        if self.taken() < self.slots {
            return;
        }
        if let Some(index) = self.who_gives_way(&self.holders(), candidate, quantum) {
            self.running[index].is_parked = true;
        }
    }

    /// Who has to give way to a candidate: the youngest sequence of those who hold most, if
    /// they were served so many rows more.
    pub(super) fn who_gives_way(
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

    /// Where waiting request number `index` can begin.
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
            let goes_on = |leader: &&Sequence| !leader.is_parked;
            if leader
                .filter(goes_on)
                .is_some_and(|leader| leader.computed().len() < common)
            {
                waiting.waits_for = leader.map(|leader| (leader.id, common));
                return Ok(Next::Wait);
            }
        }
        let tokens = waiting.shareable();
        let mut start = self.cache.find(adapter, tokens, executor)?;
        let mut found = start.map_or(0, |start| start.tokens);
        // A running sequence may share more with it, or be about to.
        let mut leader = None;
        let mut most = 0;
        let same = |other: &&Sequence| other.adapter_id() == adapter && !other.is_isolated();
        for other in self.running.iter().filter(same) {
            let computed = other.computed().len();
            let common = other.common(tokens);
            // Who gives its slot to others, or is scored, would keep it waiting for long.
            let soon = match other.is_parked {
                true => computed,
                false => common.min(other.unscored().max(computed)),
            };
            let common = common.min(computed);
            if soon > computed {
                if soon > most {
                    most = soon;
                    leader = Some(other.id);
                }
            } else if common >= found + LEAST && executor.can_fork(other.id, common) {
                self.cache
                    .branch(other.id, adapter, &tokens[..common], executor)?;
                start = self.cache.find(adapter, tokens, executor)?;
                found = start.map_or(0, |start| start.tokens);
            }
        }
        // What waiting saves must be a good part of what is left to do: who knows when
        // the other one gets there.
        let saved = most.saturating_sub(found);
        if saved >= LEAST && 4 * saved >= tokens.len() - found {
            waiting.waits_for = leader.map(|leader| (leader, most));
            return Ok(Next::Wait);
        }
        Ok(Next::Begin(start))
    }

    /// Lets waiting request number `index` in.
    fn begin(&mut self, index: usize, start: Option<Start>) {
        let adapter = self.waiting[index].adapter().map(Adapter::id);
        let begun = match start {
            Some(start) => self.executor.fork(start.from, start.tokens),
            None => self.executor.begin_under(adapter),
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
        let sequence = Sequence::new(id, waiting, cached, keep_prefix);
        sequence.started(cached, from_disk);
        self.running.push(sequence);
    }

    /// Turns waiting request number `index` away.
    fn refuse(&mut self, index: usize, error: &ExecError) {
        if let Some(waiting) = self.waiting.remove(index) {
            self.fairness.leave(waiting.owner);
            waiting.fail(&error.to_string());
        }
    }
}
