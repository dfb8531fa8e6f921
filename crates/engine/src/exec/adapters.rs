//! The LoRA adapters of an executor, each in the representation `A` of that executor.

use std::collections::HashMap;
use std::sync::Arc;

use super::{AdapterId, ExecError};

/// Adapters by id; ids are never reused.
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

    /// Adds an adapter and returns its id.
    pub(super) fn add(&mut self, adapter: A) -> AdapterId {
        self.next_id += 1;
        let id = AdapterId(self.next_id);
        self.held.insert(id, Arc::new(adapter));
        id
    }

    /// Removes an adapter. References obtained before stay valid.
    pub(super) fn remove(&mut self, id: AdapterId) {
        self.held.remove(&id);
    }

    /// Returns the adapter with this id; `None` for no id.
    ///
    /// # Errors
    /// The adapter was never added, or has been removed.
    pub(super) fn get(&self, id: Option<AdapterId>) -> Result<Option<Arc<A>>, ExecError> {
        id.map(|id| {
            let adapter = self.held.get(&id).cloned();
            adapter.ok_or_else(|| ExecError::Unknown(format!("adapter {}", id.0)))
        })
        .transpose()
    }
}
