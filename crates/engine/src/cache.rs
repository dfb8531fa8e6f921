//! What sequences begin with that was computed before.
//!
//! Whatever was computed stays, as a sequence of the executor that nobody runs,
//! until its memory is needed: prompts, answers, and *branching points*, where
//! two prompts went different ways. A new sequence is a fork of the one with which
//! it has most in common. The constant prefixes of profiles stay as long as anyone
//! holds them, and on disk.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::{Adapter, Prefix};
use crate::exec::{AdapterId, ExecError, Executor, SequenceId};
use crate::kv::{Found, Handle, PrefixStore, Tree};

/// Fewer common tokens than this are computed again: a sequence that is kept for
/// each would cost more.
pub(super) const LEAST: usize = 16;

/// All that is kept. What was computed under one adapter is found under no other.
pub(super) struct Cache {
    kept: Tree<Option<AdapterId>, Kept>,
    /// How many of them are not trimmed.
    untrimmed: usize,
    store: Option<PrefixStore>,
    /// Prefixes that are not on disk, nor in memory yet.
    absent: HashSet<(Option<AdapterId>, Arc<Prefix>)>,
    /// Prefixes that were asked for. What is kept of one is pinned while a profile or a
    /// request still holds it.
    held: Vec<(Option<AdapterId>, Weak<Prefix>)>,
}

struct Kept {
    sequence: SequenceId,
    /// Whether its windows' KV was let go already.
    trimmed: bool,
}

/// Where a sequence can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// What to fork.
    pub(super) from: SequenceId,
    /// How many of its tokens are shared.
    pub(super) tokens: usize,
}

/// The part of a prefix that sequences share: see [`Prefix`].
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

    /// What begins like `tokens`, as far as possible.
    pub(super) fn find(
        &mut self,
        adapter: Option<AdapterId>,
        tokens: &[u32],
        executor: &mut dyn Executor,
    ) -> Result<Option<Start>, ExecError> {
        let whole = |found: &Found| {
            let kept = self.kept.get(found.handle);
            found.shared >= LEAST && executor.can_fork(kept.sequence, found.shared)
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

    /// Keeps the point where something new goes another way than `from`: what one
    /// prompt has in common with another, the next is likely to have too.
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
        if tokens.len() < LEAST && !pinned {
            executor.end(sequence);
        } else {
            self.untrimmed += 1;
            if let Err((handle, mut other)) = self.kept.insert(adapter, tokens, kept, pinned) {
                // The one that has let go of something is the one to go.
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

    /// Whether a prefix is in memory. From now on it stays there, once it is, until
    /// nobody holds it any more.
    pub(super) fn has(&mut self, adapter: Option<AdapterId>, prefix: &Arc<Prefix>) -> bool {
        let known = |(under, held): &(Option<AdapterId>, Weak<Prefix>)| {
            *under == adapter && held.as_ptr() == Arc::as_ptr(prefix)
        };
        if !self.held.iter().any(known) {
            self.held.push((adapter, Arc::downgrade(prefix)));
        }
        self.pinned(adapter, prefix).is_some()
    }

    /// What is kept of a prefix.
    fn pinned(&self, adapter: Option<AdapterId>, prefix: &Prefix) -> Option<Handle> {
        let tokens = shared(prefix);
        let found = self.kept.find(adapter, tokens).into_iter();
        let mut exact = found.filter(|f| f.shared == tokens.len() && f.tokens == tokens.len());
        let pinned = exact.find(|found| self.kept.is_pinned(found.handle));
        pinned.map(|found| found.handle)
    }

    /// Lets prefixes that nobody holds any more go with all the rest: those of profiles
    /// that were changed or removed.
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

    /// Reads a prefix from disk, if it is there. Returns whether it is in memory now.
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
        if stored.is_some() && !self.make_room(tokens.len(), executor) {
            // Perhaps the next time.
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

    /// Where prefixes are kept that were computed under an adapter.
    fn store(&self, adapter: Option<&Adapter>) -> Option<PrefixStore> {
        let store = self.store.as_ref()?;
        Some(match adapter {
            Some(adapter) => store.under(adapter.fingerprint()),
            None => store.clone(),
        })
    }

    /// Lets go of all that was computed under an adapter.
    pub(super) fn forget(&mut self, adapter: AdapterId, executor: &mut dyn Executor) {
        for kept in self.kept.remove_root(Some(adapter)) {
            self.untrimmed -= usize::from(!kept.trimmed);
            executor.end(kept.sequence);
        }
        self.absent.retain(|(of, _)| *of != Some(adapter));
        self.held.retain(|(of, _)| *of != Some(adapter));
    }

    /// Frees memory until there is room for so many tokens. Returns whether there is.
    fn make_room(&mut self, tokens: usize, executor: &mut dyn Executor) -> bool {
        let empty = executor.begin();
        let mut room = executor.has_room(&[(empty, tokens)]);
        while !room && self.reclaim(executor) {
            room = executor.has_room(&[(empty, tokens)]);
        }
        executor.end(empty);
        room
    }

    /// Keeps a prefix that `from` begins with, in memory and on disk.
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

    /// Frees some memory: first what windows left behind, then whatever was used
    /// least recently. Returns whether there was anything to free.
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
        self.let_go(oldest, executor)
    }

    /// Frees the prefix that was used least recently, which is better than to fail.
    pub(super) fn reclaim_prefix(&mut self, executor: &mut dyn Executor) -> bool {
        let oldest = self.kept.oldest_pinned();
        self.let_go(oldest, executor)
    }

    fn let_go(&mut self, handle: Option<Handle>, executor: &mut dyn Executor) -> bool {
        if let Some(handle) = handle {
            let kept = self.kept.remove(handle);
            self.untrimmed -= usize::from(!kept.trimmed);
            executor.end(kept.sequence);
        }
        handle.is_some()
    }
}
