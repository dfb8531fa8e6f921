//! The thread that owns the executor: takes requests in, and steps.

mod room;
mod trial;

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::{Cache, LEAST, Start};
use super::handle::{Mail, Shared};
use super::pace::Pace;
use super::sequence::{Advance, Computed, SCORED_ROWS, Sequence, Waiting};
use super::swap::Swapped;
use super::{Adapter, AdapterMemory, EngineOptions};
use crate::exec::{Chunk, ExecError, Executor, Logits, Wanted};

/// How often sequences that wait for another engine look whether they can go on.
const NAP: Duration = Duration::from_millis(2);

/// What clients are told after a panic.
const PANICKED: &str = "the engine has failed";

pub(super) struct Worker {
    executor: Box<dyn Executor>,
    slots: usize,
    inbox: Receiver<Mail>,
    shared: Arc<Shared>,
    cache: Cache,
    pace: Pace,
    adapter_memory: AdapterMemory,
    /// First come, first served.
    waiting: VecDeque<Waiting>,
    /// In the order in which they were let in.
    running: Vec<Sequence>,
    /// Those that ran before memory ran out; they come before any that wait.
    swapped: VecDeque<Swapped>,
    swap_folder: PathBuf,
    /// What the last step gave.
    logits: Logits,
    /// Whether there was nothing to do in the last step.
    waits: bool,
    #[cfg(debug_assertions)]
    fault: Option<super::Fault>,
}

/// What a request that waits can do.
enum Next {
    /// Begin, with what was computed already.
    Begin(Option<Start>),
    /// Wait: what it needs is being computed for another.
    Wait,
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
            waiting: VecDeque::new(),
            running: Vec::new(),
            swapped: VecDeque::new(),
            swap_folder: options.swap_folder,
            logits: Logits::default(),
            waits: false,
            #[cfg(debug_assertions)]
            fault: options.fault,
        }
    }

    /// Runs until every handle is dropped and every sequence has ended, or something has
    /// panicked.
    pub(super) fn run(mut self) {
        if panic::catch_unwind(AssertUnwindSafe(|| self.live())).is_err() {
            self.die();
        }
    }

    /// Has all that was accepted fail after a panic.
    fn die(self) {
        tracing::error!("the engine's thread has panicked and ends");
        // From here on nothing new is queued.
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
            // Who waits for other mail to be answered sees that nobody does.
            if let Mail::Requests(requests) = mail {
                for (request, events) in requests {
                    Waiting::new(request, events).fail(PANICKED);
                }
            }
        }
        self.shared.running.store(0, Ordering::Release);
        self.shared.waiting.store(0, Ordering::Release);
        // Whatever the panic has left there is not to be touched again, not even to free it.
        std::mem::forget(self.executor);
    }

    /// Does what there is to do.
    fn live(&mut self) {
        while self.read_mail() {
            self.shared.pulse.beat();
            self.drop_abandoned();
            self.choose_held();
            self.listen();
            self.swap_in();
            self.admit();
            self.waits = !self.step();
            let used = self.executor.kv_memory().used;
            self.shared.kv_used.store(used, Ordering::Release);
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.swapped.is_empty()
    }

    /// Takes in all mail; waits for some if there is nothing else to do.
    /// Returns whether there is, or will be, anything to do.
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
            // Whatever runs here waits for sequences of another engine.
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

    /// How many sequences hold a slot: one that pauses gives way to whoever it waits for.
    fn taken(&self) -> usize {
        let running = self.running.iter();
        running.filter(|sequence| !sequence.is_paused()).count()
    }

    /// Has those choose their next token that waited for others, in this engine or in
    /// another, to compute theirs: also while they are swapped out.
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

    /// Lets followers hear what those they follow have said, and ends those that have
    /// heard all.
    fn listen(&mut self) {
        let on: Vec<bool> = self.running.iter_mut().map(Sequence::listen).collect();
        let mut on = on.into_iter();
        self.retain_running(|_| on.next().unwrap_or(true));
        self.retain_swapped(Sequence::listen);
    }

    /// Ends every sequence that is swapped out and that `stays` turns down.
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
                let waiting = requests.into_iter();
                let waiting = waiting.map(|(request, events)| Waiting::new(request, events));
                self.waiting.extend(waiting);
            }
            Mail::AddAdapter(lora, reply) => {
                if let Err(mpsc::SendError(Ok(added))) = reply.send(self.add_adapter(&lora)) {
                    // Whoever wanted it has gone.
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

    /// Ends what belongs to clients that have gone.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|waiting| {
            let stays = !waiting.is_abandoned();
            if !stays {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            stays
        });
        self.retain_running(|sequence| !sequence.is_abandoned());
        self.retain_swapped(|sequence| !sequence.is_abandoned());
    }

    /// Ends every running sequence that `stays` turns down. What they computed is
    /// kept.
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

    /// Ends a sequence of which nothing is kept.
    fn lose(&mut self, sequence: &Sequence) {
        self.executor.end(sequence.id);
        self.count_ended(sequence);
    }

    fn count_ended(&self, sequence: &Sequence) {
        self.shared.ended(sequence.began.elapsed());
        self.shared.running.fetch_sub(1, Ordering::AcqRel);
    }

    /// Gives free slots to whoever has waited longest. One for whom another is
    /// computing something lets others pass.
    fn admit(&mut self) {
        let mut next = 0;
        // Whoever was swapped out comes first.
        while self.to_bring_back().is_none()
            && self.taken() < self.slots
            && next < self.waiting.len()
        {
            match self.next(next) {
                Ok(Next::Wait) => next += 1,
                Ok(Next::Begin(start)) => self.begin(next, start),
                Err(error) => self.refuse(next, &error),
            }
        }
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
            if leader.is_some_and(|leader| leader.computed().len() < common) {
                waiting.waits_for = leader.map(|leader| (leader.id, common));
                return Ok(Next::Wait);
            }
        }
        let tokens = waiting.shareable();
        let mut start = self.cache.find(adapter, tokens, executor)?;
        let mut found = start.map_or(0, |start| start.tokens);
        // Whoever runs may have more in common with it, or be about to.
        let mut leader = None;
        let mut most = 0;
        let same = |other: &&Sequence| other.adapter_id() == adapter && !other.is_isolated();
        for other in self.running.iter().filter(same) {
            let common = other.common(tokens);
            if common > other.computed().len() {
                if common > most {
                    most = common;
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
        // In this order: nobody is to see it nowhere.
        self.shared.running.fetch_add(1, Ordering::AcqRel);
        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        sequence.started(cached, from_disk);
        self.running.push(sequence);
    }

    /// Turns waiting request number `index` away.
    fn refuse(&mut self, index: usize, error: &ExecError) {
        if let Some(waiting) = self.waiting.remove(index) {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            waiting.fail(&error.to_string());
        }
    }

    /// How many tokens of each running sequence the next step computes: one of each
    /// that decodes, and of prompts what the pace allows. Half of that is the
    /// oldest's; of the rest most goes to whoever needs least, so that a short prompt
    /// does not wait for a long one.
    fn share_out(&self) -> Vec<usize> {
        let mut counts = vec![0; self.running.len()];
        let mut prompts = Vec::new();
        let mut answers = false;
        let going = self.running.iter().enumerate();
        for (index, sequence) in going.filter(|(_, sequence)| !sequence.is_paused()) {
            if sequence.is_decoding() {
                answers = true;
                counts[index] = sequence.remaining();
            } else {
                prompts.push(index);
            }
        }
        let mut left = self.pace.budget(answers);
        let mut give = |index: usize, most: usize| {
            let remaining = self.running[index].remaining() - counts[index];
            let given = remaining.min(most);
            counts[index] += given;
            given
        };
        if let Some(&oldest) = prompts.first() {
            left -= give(oldest, left.div_ceil(2));
        }
        prompts.sort_by_key(|&index| self.running[index].remaining());
        // At first none takes all that is left: whoever is in no hurry gets on too.
        for &index in &prompts {
            left -= give(index, left.div_ceil(2));
        }
        for index in prompts {
            left -= give(index, left);
        }
        let mut rows = SCORED_ROWS;
        for (sequence, count) in self.running.iter().zip(&mut counts) {
            if sequence.is_scored() {
                *count = rows.min(*count);
                rows -= *count;
            }
        }
        counts
    }

    /// One forward pass over a mixed batch of answers and prompts. Returns whether there
    /// was anything to do.
    fn step(&mut self) -> bool {
        let counts = loop {
            let mut counts = self.share_out();
            if counts.iter().all(|&count| count == 0) {
                return false;
            }
            if self.find_room(&mut counts) {
                break counts;
            }
        };
        let mut batch: Vec<Chunk<'_>> = Vec::new();
        // Which running sequence each chunk belongs to.
        let mut owners: Vec<(usize, Computed)> = Vec::new();
        let mut prompt_tokens = 0;
        for (index, (sequence, &count)) in self.running.iter().zip(&counts).enumerate() {
            if count == 0 {
                continue;
            }
            let chunk = sequence.chunk(count);
            let (tokens, wanted) = (chunk.tokens.len(), chunk.wanted);
            if !sequence.is_decoding() {
                prompt_tokens += tokens;
            }
            owners.push((index, Computed { tokens, wanted }));
            batch.push(chunk);
        }
        let rows: Vec<usize> = batch.iter().map(Chunk::wanted_rows).collect();

        #[cfg(debug_assertions)]
        if let Some(fault) = &mut self.fault {
            fault.strike();
        }
        let began = Instant::now();
        if let Err(error) = self.executor.forward_into(&batch, &mut self.logits) {
            self.fail(&error);
            return true;
        }
        self.pace.note(prompt_tokens, began.elapsed());

        let mut ended = vec![false; self.running.len()];
        let mut choosing = Vec::new();
        let (mut row, mut state) = (0, 0);
        for ((index, computed), rows) in owners.into_iter().zip(rows) {
            let sequence = &mut self.running[index];
            let is_state = computed.wanted == Wanted::State;
            let first = if is_state { state } else { row };
            match sequence.advance(computed, &self.logits, first) {
                Advance::On => {}
                Advance::Over => ended[index] = true,
                Advance::Chooses(row) => choosing.push((index, row)),
            }
            row += rows;
            state += usize::from(is_state);
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
        // Only now: whom they choose with may have come later in the batch.
        for (index, row) in choosing {
            let logits = self.logits.row_mut(row);
            let executor = self.executor.as_mut();
            ended[index] = !self.running[index].choose_or_hold(logits, executor);
        }
        let mut ended = ended.into_iter();
        self.retain_running(|_| !ended.next().unwrap_or(false));
        true
    }

    /// The executor failed: everything that was in the batch ends.
    fn fail(&mut self, error: &ExecError) {
        tracing::error!("a step failed: {error}");
        let why = error.to_string();
        for sequence in std::mem::take(&mut self.running) {
            sequence.fail(&why);
            self.lose(&sequence);
        }
    }
}
