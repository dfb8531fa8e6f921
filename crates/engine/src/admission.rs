//! Admission control: places for running and waiting sequences.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::client::Client;

/// The places of an engine: one for each slot and each queue entry, and an additional spare
/// place for each slot. Spare places are for clients that have next to no sequences here, so
/// that no client can take all places.
#[derive(Debug)]
pub(super) struct Admission {
    /// The number of places for all clients.
    limit: usize,
    spare: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    waiting: usize,
    running: usize,
    clients: HashMap<Client, usize>,
}

impl Admission {
    pub(super) fn new(slots: usize, queue: usize) -> Admission {
        Admission {
            limit: slots + queue,
            spare: slots,
            taken: Mutex::default(),
        }
    }

    /// The maximum number of places of one client.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes places for all of a client's new sequences, or for none. If there are too few, the
    /// error is the number of missing places.
    pub(super) fn take(
        self: &Arc<Admission>,
        client: Client,
        count: usize,
    ) -> Result<Vec<Permit>, usize> {
        let mut taken = self.taken();
        let all = taken.waiting + taken.running + count;
        let own = taken.clients.get(&client).copied().unwrap_or(0) + count;
        let is_spared = own <= self.spare && all <= self.limit + self.spare;
        if all > self.limit && !is_spared {
            return Err(all - self.limit);
        }
        if count > 0 {
            taken.waiting += count;
            taken.clients.insert(client, own);
        }
        let permit = || Permit {
            admission: Arc::clone(self),
            client,
            runs: false,
        };
        Ok(std::iter::repeat_with(permit).take(count).collect())
    }

    /// The number of waiting sequences.
    pub(super) fn waiting(&self) -> usize {
        self.taken().waiting
    }

    /// The number of sequences that have begun.
    pub(super) fn running(&self) -> usize {
        self.taken().running
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // The counts are consistent even after a panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The permit of one sequence: its place, freed on drop.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    client: Client,
    runs: bool,
}

impl Permit {
    /// Records that the sequence has begun.
    pub(super) fn run(&mut self) {
        if !self.runs {
            self.runs = true;
            let mut taken = self.admission.taken();
            taken.waiting -= 1;
            taken.running += 1;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.admission.taken();
        if self.runs {
            taken.running -= 1;
        } else {
            taken.waiting -= 1;
        }
        if let Some(count) = taken.clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_can_take_all_places() {
        let admission = Arc::new(Admission::new(2, 6));
        let client = |name: &str| Client::named(name.as_bytes());
        let all = admission.take(client("a"), 8).expect("there is room");
        assert_eq!(admission.take(client("a"), 3).expect_err("it has all"), 3);
        // Another client still gets some, but not that number.
        assert_eq!(admission.take(client("b"), 3).expect_err("too many"), 3);
        let few = admission.take(client("b"), 1).expect("a spare place");
        let more = admission.take(client("b"), 1).expect("another");
        assert_eq!(admission.take(client("c"), 1).expect_err("no more"), 3);
        drop(few);
        let other = admission.take(client("c"), 1).expect("that place");
        drop((all, more, other));
        let taken = admission.taken();
        assert_eq!((taken.waiting, taken.running), (0, 0));
        assert!(taken.clients.is_empty());
    }

    #[test]
    fn a_sequence_waits_and_then_runs() {
        let admission = Arc::new(Admission::new(2, 2));
        let mut taken = admission.take(Client::default(), 3).expect("there is room");
        let counts = || (admission.waiting(), admission.running());
        assert_eq!(counts(), (3, 0));
        taken[0].run();
        assert_eq!(counts(), (2, 1));
        drop(taken);
        assert_eq!(counts(), (0, 0));
    }
}
