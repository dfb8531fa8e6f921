//! How threads of the pool wait for each other.

use std::hint;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a spinning thread looks before it reads the clock.
const LOOKS_PER_CLOCK: u32 = 32;

/// Lets threads sleep until an atomic has changed, at no cost to the one that
/// changes it while nobody sleeps.
///
/// The change must be made, and the condition read, with `SeqCst`. All such
/// accesses have one order. A sleeper first sets `asleep`, then reads the
/// condition; a notifier first makes the change, then reads `asleep`. So if the
/// notifier does not see the sleeper's flag, the sleeper sees the change and
/// does not sleep. If the notifier does see it, it takes the mutex, which the
/// sleeper holds from before setting the flag until it sleeps: the wake-up
/// cannot come too early. And if the notifier sees the flag already cleared by
/// another, that one is about to wake the sleeper, which then starts anew by
/// setting the flag after it was read, and hence sees the change.
#[derive(Debug, Default)]
pub(super) struct Signal {
    asleep: AtomicBool,
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Signal {
    /// Returns once the condition holds: spins for a while, then sleeps. Woken
    /// in vain it spins anew, or a worker that wakes too late for one short
    /// program would sleep again just before the next.
    pub(super) fn wait_until(&self, spin: Duration, condition: impl Fn() -> bool) {
        while !spin_until(spin, &condition) {
            let guard = lock(&self.mutex);
            self.asleep.store(true, SeqCst);
            if !condition() {
                drop(self.condvar.wait(guard));
            }
        }
    }

    /// Wakes all who sleep.
    pub(super) fn notify(&self) {
        if self.asleep.load(SeqCst) {
            let guard = lock(&self.mutex);
            self.asleep.store(false, SeqCst);
            drop(guard);
            self.condvar.notify_all();
        }
    }
}

/// Spins until the condition holds; false when that takes too long.
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

/// Nothing that a mutex guards here is ever left half-done by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
