//! The prefixes that are resident, and the one that is being computed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Prefix;
use crate::exec::{Chunk, ExecError, Executor, SegmentId, SequenceId, Wanted};
use crate::kv::PrefixStore;

/// Where a prefix's KV came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was resident already.
    Memory,
    /// It was read from disk.
    Disk,
    /// It was computed.
    Computed,
}

/// How a prefix became resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// Where its KV came from.
    pub origin: Origin,
    /// How many tokens it shares.
    pub tokens: usize,
    /// How long that took.
    pub took: Duration,
}

type Waiter = oneshot::Sender<Result<Warmed, String>>;

/// Resident prefixes by their ids.
pub(super) struct Prefixes {
    store: Option<PrefixStore>,
    resident: HashMap<Arc<Prefix>, SegmentId>,
    building: Vec<Build>,
}

/// A prefix that is being computed, a chunk per step.
struct Build {
    prefix: Arc<Prefix>,
    sequence: SequenceId,
    done: usize,
    began: Instant,
    waiters: Vec<Waiter>,
}

/// The part of a prefix that sequences share.
pub(super) fn shared(prefix: &Prefix) -> &[u32] {
    &prefix.ids[..prefix.ids.len().saturating_sub(1)]
}

impl Prefixes {
    pub(super) fn new(store: Option<PrefixStore>) -> Prefixes {
        Prefixes {
            store,
            resident: HashMap::new(),
            building: Vec::new(),
        }
    }

    pub(super) fn resident(&self, prefix: &Arc<Prefix>) -> Option<SegmentId> {
        self.resident.get(prefix).copied()
    }

    pub(super) fn is_building(&self) -> bool {
        !self.building.is_empty()
    }

    /// Sees to it that `prefix` becomes resident: reads it from disk now, or
    /// begins to compute it.
    pub(super) fn request(
        &mut self,
        prefix: &Arc<Prefix>,
        executor: &mut dyn Executor,
        waiter: Option<Waiter>,
    ) -> Result<(), ExecError> {
        let began = Instant::now();
        let tokens = shared(prefix).len();
        let ready = |origin| Warmed {
            origin,
            tokens,
            took: began.elapsed(),
        };
        let answer = |waiter: Option<Waiter>, warmed| {
            // Whoever asked may have stopped waiting.
            waiter.map(|waiter| waiter.send(Ok(warmed)));
        };
        if self.resident.contains_key(prefix) || tokens == 0 {
            answer(waiter, ready(Origin::Memory));
            return Ok(());
        }
        if let Some(build) = self.building.iter_mut().find(|b| b.prefix == *prefix) {
            build.waiters.extend(waiter);
            return Ok(());
        }
        if let Some(store) = &self.store
            && let Some(segment) = store.load(shared(prefix), executor)
        {
            self.resident.insert(Arc::clone(prefix), segment);
            answer(waiter, ready(Origin::Disk));
            return Ok(());
        }
        self.building.push(Build {
            prefix: Arc::clone(prefix),
            sequence: executor.begin(&[])?,
            done: 0,
            began,
            waiters: waiter.into_iter().collect(),
        });
        Ok(())
    }

    /// The next tokens of the oldest build, `most` at the most.
    pub(super) fn chunk(&self, most: usize) -> Option<Chunk<'_>> {
        let build = self.building.first()?;
        let rest = &shared(&build.prefix)[build.done..];
        Some(Chunk {
            sequence: build.sequence,
            tokens: &rest[..rest.len().min(most)],
            wanted: Wanted::None,
        })
    }

    /// Notes that `tokens` tokens of the oldest build were computed; after the
    /// last one the prefix is resident, and on its way to the disk.
    pub(super) fn advance(
        &mut self,
        tokens: usize,
        executor: &mut dyn Executor,
    ) -> Result<(), ExecError> {
        let Some(build) = self.building.first_mut() else {
            return Ok(());
        };
        build.done += tokens;
        let length = shared(&build.prefix).len();
        if build.done < length {
            return Ok(());
        }
        let segment = executor.freeze(build.sequence)?;
        let build = self.building.remove(0);
        if let Some(store) = &self.store {
            match executor.save(segment) {
                Ok(tensors) => store.save_later(shared(&build.prefix), tensors),
                Err(error) => tracing::warn!("a prefix is not kept on disk: {error}"),
            }
        }
        let warmed = Warmed {
            origin: Origin::Computed,
            tokens: length,
            took: build.began.elapsed(),
        };
        tracing::debug!(tokens = length, took = ?warmed.took, "computed a prefix");
        for waiter in build.waiters {
            // Whoever asked may have stopped waiting.
            _ = waiter.send(Ok(warmed));
        }
        self.resident.insert(build.prefix, segment);
        Ok(())
    }

    /// Gives up what is being computed; whoever waits is told why.
    pub(super) fn fail(&mut self, executor: &mut dyn Executor, why: &str) -> Vec<Arc<Prefix>> {
        let failed = self.building.drain(..).map(|build| {
            executor.end(build.sequence);
            for waiter in build.waiters {
                _ = waiter.send(Err(why.to_owned()));
            }
            build.prefix
        });
        failed.collect()
    }
}
