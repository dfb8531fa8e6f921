//! Waiting and waking between the threads of the pool.

use std::hint;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The number of checks of a spinning thread between two reads of the clock.
const LOOKS_PER_CLOCK: u32 = 32;

/// Lets threads sleep until an atomic has changed, at no cost to the thread that changes it
/// while no thread sleeps.
///
/// The change and the read of the condition must use `SeqCst`. All such accesses have a single
/// order. A sleeper first sets `asleep`, then reads the condition; a notifier first makes the
/// change, then reads `asleep`. So if the notifier does not see the sleeper's flag, the sleeper
/// sees the change and does not sleep. If the notifier sees the flag, it takes the mutex, which
/// the sleeper holds from before it sets the flag until it sleeps: the wake-up cannot come too
/// early. If another notifier has already cleared the flag, that one is about to wake the
/// sleeper, which then starts over by setting the flag after it was read, and hence sees the
/// change.
#[derive(Debug, Default)]
pub(super) struct Signal {
    asleep: AtomicBool,
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Signal {
    /// Returns once the condition holds: spins for a while, then sleeps. After a spurious
    /// wake-up it spins again; otherwise a worker that wakes too late for one short program
    /// would sleep again just before the next.
    pub(super) fn wait_until(&self, spin: Duration, condition: impl Fn() -> bool) {
        while !spin_until(spin, &condition) {
            let guard = lock(&self.mutex);
            self.asleep.store(true, SeqCst);
            if !condition() {
                drop(self.condvar.wait(guard));
            }
        }
    }

    /// Wakes all sleeping threads.
    pub(super) fn notify(&self) {
        if self.asleep.load(SeqCst) {
            let guard = lock(&self.mutex);
            self.asleep.store(false, SeqCst);
            drop(guard);
            self.condvar.notify_all();
        }
    }
}

/// Spins until the condition holds; returns false if that takes too long.
fn spin_until(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let mut start = None;
    loop {
        for _ in 0..LOOKS_PER_CLOCK {
            if condition() {
                return true;
            }
            hint::spin_loop();
        }
        // Short waits never read the clock.
        if start.get_or_insert_with(Instant::now).elapsed() > limit {
            return false;
        }
    }
}

/// Locks a mutex, ignoring poisoning: no panic here leaves guarded data inconsistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
