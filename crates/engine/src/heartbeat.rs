//! Liveness of the engine's thread (heartbeat, watchdog).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// The value of [`Heartbeat::last`] while the thread is idle.
const IDLE: u64 = 0;

/// The heartbeat of an engine's thread: it beats with each step, and rests while the thread is
/// idle.
#[derive(Debug)]
pub(super) struct Heartbeat {
    began: Instant,
    /// The time of the last beat: milliseconds since `began` plus one, so that it never equals
    /// [`IDLE`].
    last: AtomicU64,
    has_died: watch::Sender<bool>,
}

impl Heartbeat {
    pub(super) fn new() -> Heartbeat {
        Heartbeat {
            began: Instant::now(),
            last: AtomicU64::new(IDLE),
            has_died: watch::Sender::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    /// Records that the thread makes progress.
    pub(super) fn beat(&self) {
        self.last.store(self.now(), Ordering::Release);
    }

    /// Records that the thread is idle.
    pub(super) fn idle(&self) {
        self.last.store(IDLE, Ordering::Release);
    }

    /// Records that the thread was sent work: if it rests, the time counts from now.
    pub(super) fn expect_progress(&self) {
        let last = &self.last;
        // A thread that does not rest beats by itself.
        _ = last.compare_exchange(IDLE, self.now(), Ordering::AcqRel, Ordering::Acquire);
    }

    /// The time that the thread has been stuck with work to do.
    pub(super) fn stalled_for(&self) -> Duration {
        match self.last.load(Ordering::Acquire) {
            IDLE => Duration::ZERO,
            last => Duration::from_millis(self.now().saturating_sub(last)),
        }
    }

    /// Records that the thread has panicked.
    pub(super) fn die(&self) {
        self.has_died.send_replace(true);
    }

    pub(super) fn has_died(&self) -> bool {
        *self.has_died.borrow()
    }

    /// Resolves when the thread has panicked.
    pub(super) async fn died(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        _ = self.has_died.subscribe().wait_for(|died| *died).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_something_to_do_stands_still() {
        let heartbeat = Heartbeat::new();
        let pause = || std::thread::sleep(Duration::from_millis(20));
        pause();
        assert_eq!(heartbeat.stalled_for(), Duration::ZERO, "it rests");
        heartbeat.expect_progress();
        pause();
        let still = heartbeat.stalled_for();
        assert!(still >= Duration::from_millis(15), "{still:?}");
        // Additional work is no sign of life.
        heartbeat.expect_progress();
        assert!(heartbeat.stalled_for() >= still);
        let before = Instant::now();
        heartbeat.beat();
        let still = heartbeat.stalled_for();
        // The heartbeat counts whole milliseconds.
        assert!(still <= before.elapsed() + Duration::from_millis(1));
        heartbeat.idle();
        pause();
        assert_eq!(heartbeat.stalled_for(), Duration::ZERO);
        assert!(!heartbeat.has_died());
        heartbeat.die();
        assert!(heartbeat.has_died());
    }
}
