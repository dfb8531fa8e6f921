//! The adapters of an executor, each in the form `A` that it computes with.

use std::collections::HashMap;
use std::sync::Arc;

use super::{AdapterId, ExecError};

/// Adapters by their ids, which are never given twice.
#[derive(Debug)]
pub(super) struct Adapters<A> {
    held: HashMap<AdapterId, Arc<A>>,
    next_id: u64,
}

impl<A> Adapters<A> {
    pub(super) fn new() -> Adapters<A> {
        Adapters {
            held: HashMap::new(),
            next_id: 0,
        }
    }

    /// Adds an adapter.
    pub(super) fn add(&mut self, adapter: A) -> AdapterId {
        self.next_id += 1;
        let id = AdapterId(self.next_id);
        self.held.insert(id, Arc::new(adapter));
        id
    }

    /// Lets go of an adapter. Whoever got it before still has it.
    pub(super) fn remove(&mut self, id: AdapterId) {
        self.held.remove(&id);
    }

    /// An adapter, if one is named.
    ///
    /// # Errors
    /// It was never added, or has been let go.
    pub(super) fn get(&self, id: Option<AdapterId>) -> Result<Option<Arc<A>>, ExecError> {
        id.map(|id| {
            let adapter = self.held.get(&id).cloned();
            adapter.ok_or_else(|| ExecError::Unknown(format!("adapter {}", id.0)))
        })
        .transpose()
    }
}
