//! The LoRA adapters of an engine, as other threads hold them, and their memory budget.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::handle::Message;
use crate::exec::{AdapterId, ExecError};
use incant_model::lora::{self, Linear};

/// An adapter that an engine has loaded. It stays loaded as long as a clone of it exists: a
/// request that holds one can still begin, even if the name of the adapter has been removed.
#[derive(Clone, Debug)]
pub struct Adapter(Arc<Held>);

#[derive(Debug)]
struct Held {
    id: AdapterId,
    fingerprint: [u8; 32],
    reservation: Reserved,
    messages: mpsc::Sender<Message>,
}

impl Adapter {
    pub(super) fn new(
        added: Added,
        fingerprint: [u8; 32],
        messages: mpsc::Sender<Message>,
    ) -> Adapter {
        Adapter(Arc::new(Held {
            id: added.id,
            fingerprint,
            reservation: added.reservation,
            messages,
        }))
    }

    /// The size of the adapter in memory, in bytes, shared by all clones.
    pub fn bytes(&self) -> usize {
        self.0.reservation.bytes
    }

    /// The id of the adapter in the executor.
    pub(super) fn id(&self) -> AdapterId {
        self.0.id
    }

    /// The [`Lora::fingerprint`](incant_model::lora::Lora::fingerprint) of the adapter.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.0.fingerprint
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // An engine that has ended has already released the adapter.
        _ = self.messages.send(Message::RemoveAdapter(self.id));
    }
}

/// An adapter that the executor has loaded.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) id: AdapterId,
    pub(super) reservation: Reserved,
}

/// The reasons why an engine refuses an adapter.
#[derive(Debug, thiserror::Error)]
pub enum AddAdapterError {
    /// The memory for adapters is used up.
    #[error(
        "it takes {needed} bytes, and of the {budget} for adapters (--adapter-memory) {used} are used"
    )]
    OutOfMemory {
        /// The size of the adapter in bytes.
        needed: usize,
        /// The bytes used by other adapters.
        used: usize,
        /// The bytes that all adapters may use.
        budget: usize,
    },
    /// With the adapter, the model computes NaN or infinity.
    #[error(
        "under it the model computes numbers that are not finite; the largest ones are added to {}",
        lora::module_path(*.0, *.1)
    )]
    NotFinite(usize, Linear),
    /// The executor failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The engine's thread has panicked.
    #[error("the engine's thread has died")]
    Died,
}

/// The memory budget of adapters, which several engines may share. Clones refer to the same
/// budget.
#[derive(Clone, Debug)]
pub struct AdapterMemory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    /// In bytes.
    most: usize,
    used: Mutex<usize>,
}

impl AdapterMemory {
    /// Creates a budget of `most` bytes.
    pub fn new(most: usize) -> AdapterMemory {
        let used = Mutex::new(0);
        AdapterMemory(Arc::new(Budget { most, used }))
    }

    /// The bytes that all adapters may use.
    pub fn most(&self) -> usize {
        self.0.most
    }

    pub(super) fn reserve(&self, bytes: usize) -> Result<Reserved, AddAdapterError> {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > self.0.most - *used {
            return Err(AddAdapterError::OutOfMemory {
                needed: bytes,
                used: *used,
                budget: self.0.most,
            });
        }
        *used += bytes;
        Ok(Reserved {
            bytes,
            budget: Arc::clone(&self.0),
        })
    }
}

/// A reserved part of the budget, returned on drop.
#[derive(Debug)]
pub(super) struct Reserved {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let used = &self.budget.used;
        *used.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}

/// The adapters that are held somewhere, so that the same adapter is loaded only once.
#[derive(Debug, Default)]
pub(super) struct Known(Vec<Weak<Held>>);

impl Known {
    /// Returns the adapter with this fingerprint.
    pub(super) fn find(&mut self, fingerprint: [u8; 32]) -> Option<Adapter> {
        self.0.retain(|held| held.strong_count() > 0);
        let mut held = self.0.iter().filter_map(Weak::upgrade);
        held.find(|held| held.fingerprint == fingerprint)
            .map(Adapter)
    }

    pub(super) fn add(&mut self, adapter: &Adapter) {
        self.0.push(Arc::downgrade(&adapter.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_used_up_is_refused_until_some_is_given_back() {
        let memory = AdapterMemory::new(10);
        let first = memory.reserve(6).expect("there is room");
        let error = memory.clone().reserve(5).expect_err("there is none");
        let told = "it takes 5 bytes, and of the 10 for adapters (--adapter-memory) 6 are used";
        assert_eq!(error.to_string(), told);
        let second = memory.reserve(4).expect("it fits exactly");
        drop(first);
        assert!(memory.reserve(7).is_err());
        drop(second);
        assert!(memory.reserve(10).is_ok());
    }
}
