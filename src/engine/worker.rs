//! The thread that owns the executor: admits, batches, steps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::handle::{Mail, Shared};
use super::prefixes::{self, Prefixes};
use super::sequence::{Sequence, Waiting, cached_tokens};
use super::{EngineOptions, Event};
use crate::exec::{Chunk, ExecError, Executor};

pub(super) struct Worker {
    executor: Box<dyn Executor>,
    options: EngineOptions,
    inbox: Receiver<Mail>,
    shared: Arc<Shared>,
    prefixes: Prefixes,
    /// First come, first served.
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
}

impl Worker {
    pub(super) fn new(
        executor: Box<dyn Executor>,
        mut options: EngineOptions,
        inbox: Receiver<Mail>,
        shared: Arc<Shared>,
    ) -> Worker {
        let prefixes = Prefixes::new(options.prefixes.take());
        Worker {
            executor,
            options,
            inbox,
            shared,
            prefixes,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Runs until every handle is dropped and every sequence has ended.
    pub(super) fn run(mut self) {
        while self.read_mail() {
            self.drop_abandoned();
            self.admit();
            if !self.running.is_empty() || self.prefixes.is_building() {
                self.step();
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && !self.prefixes.is_building()
    }

    /// Takes in all mail; waits for some if there is nothing else to do.
    /// Returns whether there is, or will be, anything to do.
    fn read_mail(&mut self) -> bool {
        if self.is_idle() {
            match self.inbox.recv() {
                Ok(mail) => self.open(mail),
                Err(_) => return false,
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

    fn open(&mut self, mail: Mail) {
        match mail {
            Mail::Submit(requests) => {
                for (request, events) in requests {
                    let found_prefix = request
                        .prefix
                        .as_ref()
                        .is_some_and(|prefix| self.prefixes.resident(prefix).is_some());
                    self.waiting.push_back(Waiting {
                        request,
                        events,
                        found_prefix,
                    });
                }
            }
            Mail::Warm(prefix, waiter) => {
                let executor = self.executor.as_mut();
                if let Err(error) = self.prefixes.request(&prefix, executor, Some(waiter)) {
                    // The waiter was dropped with the request, which tells it.
                    tracing::error!("a prefix cannot be computed: {error}");
                }
            }
        }
    }

    /// Frees what belongs to clients that have gone.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|waiting| {
            let stays = !waiting.events.is_closed();
            if !stays {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            stays
        });
        self.retain_running(|sequence| !sequence.is_abandoned());
    }

    /// Ends every running sequence that `stays` turns down.
    fn retain_running(&mut self, mut stays: impl FnMut(&Sequence) -> bool) {
        let (executor, shared) = (self.executor.as_mut(), &self.shared);
        self.running.retain(|sequence| {
            let stays = stays(sequence);
            if !stays {
                executor.end(sequence.id);
                shared.ended(sequence.began.elapsed());
                shared.running.fetch_sub(1, Ordering::AcqRel);
            }
            stays
        });
    }

    /// Gives free slots to whoever has waited longest. One whose prefix is still
    /// being computed lets others pass.
    fn admit(&mut self) {
        let mut next = 0;
        while self.running.len() < self.options.slots && next < self.waiting.len() {
            match self.chain(next) {
                Ok(None) => next += 1,
                Ok(Some(chain)) => {
                    let begun = self.executor.begin(&chain);
                    let Some(waiting) = self.waiting.remove(next) else {
                        return;
                    };
                    match begun {
                        Ok(id) => {
                            self.shared.running.fetch_add(1, Ordering::AcqRel);
                            let cached = cached_tokens(&waiting);
                            let sequence = Sequence::new(id, waiting);
                            sequence.started(cached);
                            self.running.push(sequence);
                        }
                        Err(error) => refuse(&waiting, &error),
                    }
                    self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                }
                Err(error) => {
                    if let Some(waiting) = self.waiting.remove(next) {
                        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                        refuse(&waiting, &error);
                    }
                }
            }
        }
    }

    /// The segments that waiting request number `index` stands on; `None` while
    /// its prefix is being computed.
    fn chain(&mut self, index: usize) -> Result<Option<Vec<crate::exec::SegmentId>>, ExecError> {
        let Some(prefix) = self.waiting[index].request.prefix.clone() else {
            return Ok(Some(Vec::new()));
        };
        if prefixes::shared(&prefix).is_empty() {
            return Ok(Some(Vec::new()));
        }
        if self.prefixes.resident(&prefix).is_none() {
            let executor = self.executor.as_mut();
            self.prefixes.request(&prefix, executor, None)?;
            // What was read from disk was found as much as what was in memory.
            self.waiting[index].found_prefix = self.prefixes.resident(&prefix).is_some();
        }
        Ok(self.prefixes.resident(&prefix).map(|segment| vec![segment]))
    }

    /// One forward pass over a mixed batch: a token of each sequence that
    /// decodes, and chunks of prompts up to the budget, oldest first.
    fn step(&mut self) {
        let mut budget = self.options.chunk;
        let mut batch: Vec<Chunk<'_>> = Vec::new();
        // Which running sequence each chunk belongs to; `None` is a prefix's.
        let mut owners: Vec<Option<usize>> = Vec::new();
        for (index, sequence) in self.running.iter().enumerate() {
            if sequence.is_decoding() {
                batch.push(sequence.chunk(1));
                owners.push(Some(index));
            }
        }
        if let Some(chunk) = self.prefixes.chunk(budget) {
            budget -= chunk.tokens.len();
            batch.push(chunk);
            owners.push(None);
        }
        for (index, sequence) in self.running.iter().enumerate() {
            if budget > 0 && !sequence.is_decoding() {
                let chunk = sequence.chunk(budget);
                budget -= chunk.tokens.len();
                batch.push(chunk);
                owners.push(Some(index));
            }
        }
        let counts: Vec<(usize, usize)> = batch
            .iter()
            .map(|chunk| (chunk.tokens.len(), chunk.wanted_rows()))
            .collect();

        let mut logits = match self.executor.forward(&batch) {
            Ok(logits) => logits,
            Err(error) => return self.fail(&error),
        };

        let mut ended = vec![false; self.running.len()];
        let mut row = 0;
        for (owner, (tokens, rows)) in owners.into_iter().zip(counts) {
            match owner {
                Some(index) => {
                    ended[index] = !self.running[index].advance(tokens, &mut logits, row);
                }
                None => {
                    let executor = self.executor.as_mut();
                    if let Err(error) = self.prefixes.advance(tokens, executor) {
                        return self.fail(&error);
                    }
                }
            }
            row += rows;
        }
        let mut ended = ended.into_iter();
        self.retain_running(|_| !ended.next().unwrap_or(false));
    }

    /// The executor failed: everything that was in the batch ends.
    fn fail(&mut self, error: &ExecError) {
        tracing::error!("a step failed: {error}");
        let why = error.to_string();
        for sequence in &self.running {
            sequence.fail(&why);
        }
        self.retain_running(|_| false);
        let failed = self.prefixes.fail(self.executor.as_mut(), &why);
        let shared = &self.shared;
        self.waiting.retain(|waiting| {
            let hit = waiting
                .request
                .prefix
                .as_ref()
                .is_some_and(|prefix| failed.contains(prefix));
            if hit {
                refuse(waiting, error);
                shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            !hit
        });
    }
}

fn refuse(waiting: &Waiting, error: &ExecError) {
    // A client that has gone needs no answer.
    _ = waiting.events.send(Event::Failed(error.to_string()));
}
