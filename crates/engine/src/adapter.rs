//! Adapters of an engine, as other threads hold them, and the memory that they take.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::handle::Mail;
use crate::exec::{AdapterId, ExecError};
use incant_model::lora::{self, Linear};

/// An adapter that an engine has taken in. It stays for as long as someone holds it:
/// a request that has it can still begin, whatever became of the adapter's name.
#[derive(Clone, Debug)]
pub struct Adapter(Arc<Held>);

#[derive(Debug)]
struct Held {
    id: AdapterId,
    fingerprint: [u8; 32],
    room: Reserved,
    mail: mpsc::Sender<Mail>,
}

impl Adapter {
    pub(super) fn new(added: Added, fingerprint: [u8; 32], mail: mpsc::Sender<Mail>) -> Adapter {
        Adapter(Arc::new(Held {
            id: added.id,
            fingerprint,
            room: added.room,
            mail,
        }))
    }

    /// The bytes that it takes, once for all that hold it.
    pub fn bytes(&self) -> usize {
        self.0.room.bytes
    }

    /// What the executor knows it by.
    pub(super) fn id(&self) -> AdapterId {
        self.0.id
    }

    /// [`Lora::fingerprint`](incant_model::lora::Lora::fingerprint).
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.0.fingerprint
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // An engine that is gone has let go of it.
        _ = self.mail.send(Mail::RemoveAdapter(self.id));
    }
}

/// An adapter that an executor has taken in.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) id: AdapterId,
    pub(super) room: Reserved,
}

/// Why an engine does not take an adapter.
#[derive(Debug, thiserror::Error)]
pub enum AddAdapterError {
    /// The memory for adapters is used up.
    #[error(
        "it takes {needed} bytes, and of the {budget} for adapters (--adapter-memory) {used} are used"
    )]
    NoRoom {
        /// Bytes that the adapter would take.
        needed: usize,
        /// Bytes that others take.
        used: usize,
        /// Bytes that all may take.
        budget: usize,
    },
    /// Under it the model computes no probabilities.
    #[error(
        "under it the model computes numbers that are not finite; the largest ones are added to {}",
        lora::place(*.0, *.1)
    )]
    NotFinite(usize, Linear),
    /// The executor failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The engine's thread has ended by a panic.
    #[error("the engine's thread has died")]
    Died,
}

/// The memory that the adapters of all engines with the same one may take. Clones are the
/// same memory.
#[derive(Clone, Debug)]
pub struct AdapterMemory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    /// In bytes.
    most: usize,
    used: Mutex<usize>,
}

impl AdapterMemory {
    /// Memory of so many bytes.
    pub fn new(most: usize) -> AdapterMemory {
        let used = Mutex::new(0);
        AdapterMemory(Arc::new(Budget { most, used }))
    }

    /// The bytes that all adapters may take.
    pub fn most(&self) -> usize {
        self.0.most
    }

    pub(super) fn reserve(&self, bytes: usize) -> Result<Reserved, AddAdapterError> {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > self.0.most - *used {
            return Err(AddAdapterError::NoRoom {
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

/// A part of the memory for adapters, given back when this is dropped.
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

/// The adapters that somebody holds, so that the same one is taken in once.
#[derive(Debug, Default)]
pub(super) struct Known(Vec<Weak<Held>>);

impl Known {
    /// The adapter with this fingerprint.
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
