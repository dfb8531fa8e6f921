//! The engine's thread, which owns the executor: accepts requests and runs steps.

mod room;
mod slots;
mod step;
#[cfg(test)]
mod tests;
mod trial;

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Duration;

use super::EngineOptions;
use super::adapter::AdapterMemory;
use super::cache::Cache;
use super::fair::Fairness;
use super::handle::{Mail, Shared};
use super::outlook::Experience;
use super::pace::Pace;
use super::sequence::Sequence;
use super::swap::{Swap, Swapped};
use super::waiting::Waiting;
use crate::exec::{Executor, Logits};

/// How often sequences that wait for another engine are checked.
const NAP: Duration = Duration::from_millis(2);

/// The error message of all requests after a panic.
const PANICKED: &str = "the engine has failed";

pub(super) struct Worker {
    executor: Box<dyn Executor>,
    slots: usize,
    inbox: Receiver<Mail>,
    shared: Arc<Shared>,
    cache: Cache,
    pace: Pace,
    adapter_memory: AdapterMemory,
    fairness: Fairness,
    experience: Experience,
    /// In order of arrival.
    waiting: VecDeque<Waiting>,
    /// In the order in which they began.
    running: Vec<Sequence>,
    /// Sequences that were preempted because memory ran out.
    swapped: VecDeque<Swapped>,
    swap: Swap,
    /// The output of the last step.
    logits: Logits,
    /// Whether the last step had nothing to compute.
    waits: bool,
    #[cfg(debug_assertions)]
    fault: Option<super::Fault>,
}

impl Worker {
    pub(super) fn new(
        executor: Box<dyn Executor>,
        options: EngineOptions,
        inbox: Receiver<Mail>,
        shared: Arc<Shared>,
    ) -> Worker {
        Worker {
            executor,
            slots: options.slots,
            inbox,
            shared,
            cache: Cache::new(options.prefixes),
            adapter_memory: options.adapter_memory,
            pace: Pace::new(options.chunk),
            fairness: Fairness::default(),
            experience: Experience::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            swapped: VecDeque::new(),
            swap: Swap::new(options.swap_folder),
            logits: Logits::default(),
            waits: false,
            #[cfg(debug_assertions)]
            fault: options.fault,
        }
    }

    /// Runs until all handles are dropped and all sequences have ended, or until a panic.
    pub(super) fn run(mut self) {
        if panic::catch_unwind(AssertUnwindSafe(|| self.live())).is_err() {
            self.die();
        }
    }

    /// Fails all accepted requests after a panic.
    fn die(self) {
        tracing::error!("the engine's thread has panicked and ends");
        // From here on no request is queued.
        self.shared.pulse.die();
        for waiting in &self.waiting {
            waiting.fail(PANICKED);
        }
        for sequence in &self.running {
            sequence.fail(PANICKED);
        }
        for swapped in &self.swapped {
            swapped.sequence().fail(PANICKED);
        }
        while let Ok(mail) = self.inbox.try_recv() {
            // The senders of other mail notice that their channel is closed.
            if let Mail::Requests(requests) = mail {
                for submitted in requests {
                    Waiting::new(submitted).fail(PANICKED);
                }
            }
        }
        // The executor's state after the panic must not be touched, not even to free it.
        std::mem::forget(self.executor);
    }

    /// The main loop.
    fn live(&mut self) {
        while self.read_mail() {
            self.turn();
        }
    }

    /// Drops ended sequences, starts waiting ones, and runs a step.
    fn turn(&mut self) {
        self.shared.pulse.beat();
        self.drop_abandoned();
        self.choose_held();
        self.listen();
        self.fill_slots();
        self.waits = !self.step();
        self.look_ahead();
        let used = self.executor.kv_memory().used;
        self.shared.kv_used.store(used, Ordering::Release);
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.swapped.is_empty()
    }

    /// Reads all mail; blocks if there is nothing else to do. Returns false when the thread
    /// should end.
    fn read_mail(&mut self) -> bool {
        if self.is_idle() {
            self.shared.pulse.rest();
            match self.inbox.recv() {
                Ok(mail) => {
                    self.shared.pulse.beat();
                    self.open(mail);
                }
                Err(_) => return false,
            }
        } else if self.waits {
            // All running sequences wait for sequences of another engine.
            match self.inbox.recv_timeout(NAP) {
                Ok(mail) => self.open(mail),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(NAP),
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(mail) => self.open(mail),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !self.is_idle(),
            }
        }
    }

    /// Chooses the next token of sequences whose group, in this engine or others, has computed
    /// all rows; also of sequences that are swapped out.
    fn choose_held(&mut self) {
        let executor = self.executor.as_mut();
        let mut choose = |sequence: &mut Sequence| {
            !sequence.can_choose_now() || sequence.choose_from_held(executor)
        };
        let on: Vec<bool> = self.running.iter_mut().map(&mut choose).collect();
        let swapped = self.swapped.iter_mut();
        let swapped_on: Vec<bool> = swapped.map(|one| choose(one.sequence_mut())).collect();
        let (mut on, mut swapped_on) = (on.into_iter(), swapped_on.into_iter());
        self.retain_running(|_| on.next().unwrap_or(true));
        self.retain_swapped(|_| swapped_on.next().unwrap_or(true));
    }

    /// Lets followers receive their leaders' tokens, and ends those that have scored all of
    /// them.
    fn listen(&mut self) {
        let on: Vec<bool> = self.running.iter_mut().map(Sequence::listen).collect();
        let mut on = on.into_iter();
        self.retain_running(|_| on.next().unwrap_or(true));
        self.retain_swapped(Sequence::listen);
    }

    /// Ends every swapped-out sequence for which `stays` returns false.
    fn retain_swapped(&mut self, mut stays: impl FnMut(&mut Sequence) -> bool) {
        for mut swapped in std::mem::take(&mut self.swapped) {
            match stays(swapped.sequence_mut()) {
                true => self.swapped.push_back(swapped),
                false => self.lose(swapped.sequence()),
            }
        }
    }

    fn open(&mut self, mail: Mail) {
        let executor = self.executor.as_mut();
        match mail {
            Mail::Requests(requests) => {
                let waiting: Vec<_> = requests.into_iter().map(Waiting::new).collect();
                for one in &waiting {
                    self.fairness.enter(one.owner);
                }
                self.waiting.extend(waiting);
            }
            Mail::AddAdapter(lora, reply) => {
                if let Err(mpsc::SendError(Ok(added))) = reply.send(self.add_adapter(&lora)) {
                    // The requester has gone.
                    self.executor.remove_adapter(added.id);
                }
            }
            Mail::Wake => {}
            Mail::RemoveAdapter(id) => {
                self.cache.forget(id, executor);
                executor.remove_adapter(id);
            }
        }
    }

    /// Ends the sequences of clients that have disconnected.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|waiting| {
            let stays = !waiting.is_abandoned();
            if !stays {
                self.fairness.leave(waiting.owner);
            }
            stays
        });
        self.retain_running(|sequence| !sequence.is_abandoned());
        self.retain_swapped(|sequence| !sequence.is_abandoned());
    }

    /// Ends every running sequence for which `stays` returns false. Their KV is kept.
    fn retain_running(&mut self, mut stays: impl FnMut(&Sequence) -> bool) {
        let mut index = 0;
        while index < self.running.len() {
            if stays(&self.running[index]) {
                index += 1;
                continue;
            }
            let ended = self.running.remove(index);
            if !ended.is_worth_keeping() {
                self.lose(&ended);
                continue;
            }
            let executor = self.executor.as_mut();
            let (adapter, tokens) = (ended.adapter_id(), ended.computed());
            self.cache.keep(ended.id, adapter, tokens, false, executor);
            self.count_ended(&ended);
        }
    }

    /// Ends a sequence without keeping its KV.
    fn lose(&mut self, sequence: &Sequence) {
        self.executor.end(sequence.id);
        self.count_ended(sequence);
    }

    fn count_ended(&mut self, sequence: &Sequence) {
        self.fairness.leave(sequence.owner());
        if let Some(tokens) = sequence.generated() {
            self.experience.note_answer(tokens);
        }
    }
}
