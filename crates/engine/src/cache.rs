//! The prefix cache (prompt cache): reuse of KV computed for earlier requests.
//!
//! All computed KV is kept, as idle sequences of the executor, until its memory is needed:
//! prompts, answers, and *branching points*, where two prompts diverged. A new sequence is a
//! fork of the kept sequence with the longest common prefix. The constant prefixes of profiles
//! are pinned as long as they are held, and saved to disk.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::{Adapter, Prefix};
use crate::exec::{AdapterId, ExecError, Executor, SequenceId};
use crate::kv::{Found, Handle, PrefixStore, Tree};

/// The minimum number of common tokens to reuse KV: recomputing fewer tokens costs less than
/// keeping a sequence for them.
pub(super) const MIN_SHARED_TOKENS: usize = 16;

/// All kept sequences. KV computed with one adapter is never found for another.
pub(super) struct Cache {
    kept: Tree<Option<AdapterId>, Kept>,
    /// The number of kept sequences that are not trimmed.
    untrimmed: usize,
    store: Option<PrefixStore>,
    /// Prefixes that are neither on disk nor in memory.
    absent: HashSet<(Option<AdapterId>, Arc<Prefix>)>,
    /// The prefixes that were requested. Their kept sequences are pinned while a profile or a
    /// request still holds the prefix.
    held: Vec<(Option<AdapterId>, Weak<Prefix>)>,
}

struct Kept {
    sequence: SequenceId,
    /// Whether the KV outside its sliding windows was already released.
    trimmed: bool,
}

/// The kept sequence from which a new sequence begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The sequence to fork.
    pub(super) from: SequenceId,
    /// The number of shared tokens.
    pub(super) tokens: usize,
}

/// The part of a prefix that sequences share; see [`Prefix`].
pub(super) fn shared(prefix: &Prefix) -> &[u32] {
    &prefix.ids[..prefix.ids.len().saturating_sub(1)]
}

impl Cache {
    pub(super) fn new(store: Option<PrefixStore>) -> Cache {
        Cache {
            kept: Tree::new(),
            untrimmed: 0,
            store,
            absent: HashSet::new(),
            held: Vec::new(),
        }
    }

    /// Finds the kept sequence with the longest common prefix with `tokens`.
    pub(super) fn find(
        &mut self,
        adapter: Option<AdapterId>,
        tokens: &[u32],
        executor: &mut dyn Executor,
    ) -> Result<Option<Start>, ExecError> {
        let whole = |found: &Found| {
            let kept = self.kept.get(found.handle);
            found.shared >= MIN_SHARED_TOKENS && executor.can_fork(kept.sequence, found.shared)
        };
        let Some(found) = self.kept.find(adapter, tokens).into_iter().find(whole) else {
            return Ok(None);
        };
        self.kept.touch(found.handle);
        let from = self.kept.get(found.handle).sequence;
        let tokens = &tokens[..found.shared];
        if found.tokens > found.shared {
            self.branch(from, adapter, tokens, executor)?;
        }
        Ok(Some(Start {
            from,
            tokens: tokens.len(),
        }))
    }

    /// Keeps the point where a new sequence diverges from `from`: the common prefix of two
    /// prompts is likely to be that of later prompts too.
    pub(super) fn branch(
        &mut self,
        from: SequenceId,
        adapter: Option<AdapterId>,
        tokens: &[u32],
        executor: &mut dyn Executor,
    ) -> Result<(), ExecError> {
        let sequence = executor.fork(from, tokens.len())?;
        self.keep(sequence, adapter, tokens, false, executor);
        Ok(())
    }

    /// Keeps a sequence of these tokens, unless there is one already.
    pub(super) fn keep(
        &mut self,
        sequence: SequenceId,
        adapter: Option<AdapterId>,
        tokens: &[u32],
        pinned: bool,
        executor: &mut dyn Executor,
    ) {
        let kept = Kept {
            sequence,
            trimmed: false,
        };
        if tokens.len() < MIN_SHARED_TOKENS && !pinned {
            executor.end(sequence);
        } else {
            self.untrimmed += 1;
            if let Err((handle, mut other)) = self.kept.insert(adapter, tokens, kept, pinned) {
                // Of two sequences with the same tokens, drop the trimmed one.
                let before = self.kept.get_mut(handle);
                if before.trimmed {
                    std::mem::swap(before, &mut other);
                } else {
                    self.untrimmed -= 1;
                }
                executor.end(other.sequence);
            }
        }
    }

    /// Whether a prefix is in memory. From now on the prefix is pinned, once it is in memory,
    /// until it is no longer held.
    pub(super) fn has(&mut self, adapter: Option<AdapterId>, prefix: &Arc<Prefix>) -> bool {
        let known = |(under, held): &(Option<AdapterId>, Weak<Prefix>)| {
            *under == adapter && held.as_ptr() == Arc::as_ptr(prefix)
        };
        if !self.held.iter().any(known) {
            self.held.push((adapter, Arc::downgrade(prefix)));
        }
        self.pinned(adapter, prefix).is_some()
    }

    /// Returns the pinned sequence of a prefix.
    fn pinned(&self, adapter: Option<AdapterId>, prefix: &Prefix) -> Option<Handle> {
        let tokens = shared(prefix);
        let found = self.kept.find(adapter, tokens).into_iter();
        let mut exact = found.filter(|f| f.shared == tokens.len() && f.tokens == tokens.len());
        let pinned = exact.find(|found| self.kept.is_pinned(found.handle));
        pinned.map(|found| found.handle)
    }

    /// Unpins prefixes that are no longer held: those of profiles that were changed or removed.
    fn unpin(&mut self) {
        let before = self.held.len();
        self.held.retain(|(_, held)| held.strong_count() > 0);
        if self.held.len() == before {
            return;
        }
        // Another prefix may have the same tokens.
        let held = self.held.iter();
        let stay = held.filter_map(|(adapter, prefix)| self.pinned(*adapter, &*prefix.upgrade()?));
        let stay: HashSet<Handle> = stay.collect();
        let handles = self.kept.handles();
        let pinned = handles.filter(|&handle| self.kept.is_pinned(handle));
        let gone: Vec<Handle> = pinned.filter(|handle| !stay.contains(handle)).collect();
        for handle in gone {
            self.kept.unpin(handle);
        }
    }

    /// Reads a prefix from disk, if it is saved there. Returns whether it is in memory now.
    pub(super) fn read(
        &mut self,
        adapter: Option<&Adapter>,
        prefix: &Arc<Prefix>,
        executor: &mut dyn Executor,
    ) -> bool {
        let id = adapter.map(Adapter::id);
        let absent = (id, Arc::clone(prefix));
        if self.absent.contains(&absent) {
            return false;
        }
        let tokens = shared(prefix);
        let stored = self.store(adapter).filter(|store| store.has(tokens));
        if stored.is_some() && !self.free_memory(tokens.len(), executor) {
            // A later attempt may succeed.
            return false;
        }
        match stored.and_then(|store| store.load(tokens, id, executor)) {
            Some(sequence) => {
                self.keep(sequence, id, tokens, true, executor);
                true
            }
            None => {
                self.absent.insert(absent);
                false
            }
        }
    }

    /// Returns the store for prefixes computed with an adapter.
    fn store(&self, adapter: Option<&Adapter>) -> Option<PrefixStore> {
        let store = self.store.as_ref()?;
        Some(match adapter {
            Some(adapter) => store.under(adapter.fingerprint()),
            None => store.clone(),
        })
    }

    /// Ends all sequences that were computed with an adapter.
    pub(super) fn remove_adapter(&mut self, adapter: AdapterId, executor: &mut dyn Executor) {
        for kept in self.kept.remove_root(Some(adapter)) {
            self.untrimmed -= usize::from(!kept.trimmed);
            executor.end(kept.sequence);
        }
        self.absent.retain(|(of, _)| *of != Some(adapter));
        self.held.retain(|(of, _)| *of != Some(adapter));
    }

    /// Frees memory until `tokens` tokens fit. Returns whether they do.
    fn free_memory(&mut self, tokens: usize, executor: &mut dyn Executor) -> bool {
        let empty = executor.begin();
        let mut room = executor.fits(&[(empty, tokens)]);
        while !room && self.reclaim(executor) {
            room = executor.fits(&[(empty, tokens)]);
        }
        executor.end(empty);
        room
    }

    /// Pins a prefix that `from` begins with, and saves it to disk.
    pub(super) fn pin(
        &mut self,
        adapter: Option<&Adapter>,
        prefix: &Arc<Prefix>,
        from: SequenceId,
        executor: &mut dyn Executor,
    ) -> Result<(), ExecError> {
        let tokens = shared(prefix);
        let sequence = executor.fork(from, tokens.len())?;
        let id = adapter.map(Adapter::id);
        if let Some(store) = self.store(adapter) {
            match executor.save(sequence) {
                Ok(tensors) => store.save_later(tokens, tensors),
                Err(error) => tracing::warn!("a prefix is not kept on disk: {error}"),
            }
        }
        self.keep(sequence, id, tokens, true, executor);
        self.absent.remove(&(id, Arc::clone(prefix)));
        Ok(())
    }

    /// Frees some memory: first KV outside sliding windows, then the least recently used
    /// sequence (LRU eviction). Returns whether there was anything to free.
    pub(super) fn reclaim(&mut self, executor: &mut dyn Executor) -> bool {
        self.unpin();
        let handles: Vec<_> = match self.untrimmed {
            0 => Vec::new(),
            _ => self.kept.handles().collect(),
        };
        for handle in handles {
            let kept = self.kept.get_mut(handle);
            if !kept.trimmed {
                kept.trimmed = true;
                self.untrimmed -= 1;
                if executor.trim(kept.sequence) {
                    return true;
                }
            }
        }
        let oldest = self.kept.by_use().next();
        self.evict(oldest, executor)
    }

    /// Frees the least recently used prefix, as a last resort before a request fails.
    pub(super) fn reclaim_prefix(&mut self, executor: &mut dyn Executor) -> bool {
        let oldest = self.kept.oldest_pinned();
        self.evict(oldest, executor)
    }

    fn evict(&mut self, handle: Option<Handle>, executor: &mut dyn Executor) -> bool {
        if let Some(handle) = handle {
            let kept = self.kept.remove(handle);
            self.untrimmed -= usize::from(!kept.trimmed);
            executor.end(kept.sequence);
        }
        handle.is_some()
    }
}
