//! The engine's thread, which owns the executor: accepts requests and runs steps.

mod drafts;
mod memory;
mod scheduling;
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
use super::fairness::Fairness;
use super::handle::{Message, Shared};
use super::prefill_budget::PrefillBudget;
use super::sequence::Sequence;
use super::speculation::cost::StepCost;
use super::speculation::recent::RecentAnswers;
use super::swap::{Swap, Swapped};
use super::wait_estimate::StepStatistics;
use super::waiting::Waiting;
use crate::exec::{Executor, Logits};

/// How often sequences that wait for another engine are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The error message of all requests after a panic.
const PANICKED: &str = "the engine has failed";

pub(super) struct Worker {
    executor: Box<dyn Executor>,
    slots: usize,
    inbox: Receiver<Message>,
    shared: Arc<Shared>,
    cache: Cache,
    prefill_budget: PrefillBudget,
    adapter_memory: AdapterMemory,
    fairness: Fairness,
    statistics: StepStatistics,
    step_cost: StepCost,
    recent_answers: RecentAnswers,
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
        inbox: Receiver<Message>,
        shared: Arc<Shared>,
    ) -> Worker {
        Worker {
            executor,
            slots: options.slots,
            inbox,
            shared,
            cache: Cache::new(options.prefixes),
            adapter_memory: options.adapter_memory,
            prefill_budget: PrefillBudget::new(options.chunk),
            fairness: Fairness::default(),
            statistics: StepStatistics::default(),
            step_cost: StepCost::default(),
            recent_answers: RecentAnswers::default(),
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
        if panic::catch_unwind(AssertUnwindSafe(|| self.run_until_idle())).is_err() {
            self.fail_all();
        }
    }

    /// Fails all accepted requests after a panic.
    fn fail_all(self) {
        tracing::error!("the engine's thread has panicked and ends");
        // From here on no request is queued.
        self.shared.heartbeat.die();
        for waiting in &self.waiting {
            waiting.fail(PANICKED);
        }
        for sequence in &self.running {
            sequence.fail(PANICKED);
        }
        for swapped in &self.swapped {
            swapped.sequence().fail(PANICKED);
        }
        while let Ok(message) = self.inbox.try_recv() {
            // The senders of other messages notice that their channel is closed.
            if let Message::Requests(requests) = message {
                for submitted in requests {
                    Waiting::new(submitted).fail(PANICKED);
                }
            }
        }
        // The executor's state after the panic must not be touched, not even to free it.
        std::mem::forget(self.executor);
    }

    /// The main loop.
    fn run_until_idle(&mut self) {
        while self.read_messages() {
            self.turn();
        }
    }

    /// Drops ended sequences, starts waiting ones, and runs a step.
    fn turn(&mut self) {
        self.shared.heartbeat.beat();
        self.drop_abandoned();
        self.choose_held();
        self.receive();
        self.fill_slots();
        self.waits = !self.step();
        self.update_wait_estimate();
        let used = self.executor.kv_memory().used;
        self.shared.kv_used.store(used, Ordering::Release);
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.swapped.is_empty()
    }

    /// Reads all messages; blocks if there is nothing else to do. Returns false when the thread
    /// should end.
    fn read_messages(&mut self) -> bool {
        if self.is_idle() {
            self.shared.heartbeat.idle();
            match self.inbox.recv() {
                Ok(message) => {
                    self.shared.heartbeat.beat();
                    self.handle(message);
                }
                Err(_) => return false,
            }
        } else if self.waits {
            // All running sequences wait for sequences of another engine.
            match self.inbox.recv_timeout(POLL_INTERVAL) {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL_INTERVAL),
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(message) => self.handle(message),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !self.is_idle(),
            }
        }
    }

    /// Chooses the next token of sequences whose ensemble, in this engine or others, has computed
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
    fn receive(&mut self) {
        let on: Vec<bool> = self.running.iter_mut().map(Sequence::receive).collect();
        let mut on = on.into_iter();
        self.retain_running(|_| on.next().unwrap_or(true));
        self.retain_swapped(Sequence::receive);
    }

    /// Ends every swapped-out sequence for which `stays` returns false.
    fn retain_swapped(&mut self, mut stays: impl FnMut(&mut Sequence) -> bool) {
        for mut swapped in std::mem::take(&mut self.swapped) {
            if stays(swapped.sequence_mut()) {
                self.swapped.push_back(swapped);
            } else {
                self.lose(swapped.sequence());
            }
        }
    }

    fn handle(&mut self, message: Message) {
        let executor = self.executor.as_mut();
        match message {
            Message::Requests(requests) => {
                let waiting: Vec<_> = requests.into_iter().map(Waiting::new).collect();
                for one in &waiting {
                    self.fairness.enter(one.owner);
                }
                self.waiting.extend(waiting);
            }
            Message::AddAdapter(lora, reply) => {
                if let Err(mpsc::SendError(Ok(added))) = reply.send(self.add_adapter(&lora)) {
                    // The requester has gone.
                    self.executor.remove_adapter(added.id);
                }
            }
            Message::Wake => {}
            Message::RemoveAdapter(id) => {
                self.cache.remove_adapter(id, executor);
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
            if let Some(answer) = ended.recent_answer() {
                self.recent_answers.add(ended.owner().client, answer);
            }
            if !ended.is_worth_keeping() {
                self.lose(&ended);
                continue;
            }
            let executor = self.executor.as_mut();
            let (adapter, tokens) = (ended.adapter_id(), ended.computed_tokens());
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
            self.statistics.note_answer(tokens);
        }
    }
}
