//! Adapters of an engine, as other threads hold them.

use std::sync::Arc;
use std::sync::mpsc;

use super::handle::Mail;
use crate::exec::AdapterId;

/// An adapter that an engine has taken in. It stays for as long as someone holds it:
/// a request that has it can still begin, whatever became of the adapter's name.
#[derive(Clone, Debug)]
pub struct Adapter(Arc<Held>);

#[derive(Debug)]
struct Held {
    id: AdapterId,
    fingerprint: [u8; 32],
    mail: mpsc::Sender<Mail>,
}

impl Adapter {
    pub(super) fn new(id: AdapterId, fingerprint: [u8; 32], mail: mpsc::Sender<Mail>) -> Adapter {
        Adapter(Arc::new(Held {
            id,
            fingerprint,
            mail,
        }))
    }

    /// What the executor knows it by.
    pub(super) fn id(&self) -> AdapterId {
        self.0.id
    }

    /// [`Lora::fingerprint`](crate::lora::Lora::fingerprint).
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
