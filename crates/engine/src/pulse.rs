//! Whether an engine's thread gets on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// What [`Pulse::last`] is while there is nothing to do.
const REST: u64 = 0;

/// The heartbeat of an engine's thread: it beats with each step, and rests while there is
/// nothing to do.
#[derive(Debug)]
pub(super) struct Pulse {
    began: Instant,
    /// When it last beat: milliseconds after `began`, and one more, so that none is [`REST`].
    last: AtomicU64,
    has_died: watch::Sender<bool>,
}

impl Pulse {
    pub(super) fn new() -> Pulse {
        Pulse {
            began: Instant::now(),
            last: AtomicU64::new(REST),
            has_died: watch::Sender::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    /// The thread gets on.
    pub(super) fn beat(&self) {
        self.last.store(self.now(), Ordering::Release);
    }

    /// The thread has nothing to do, and waits.
    pub(super) fn rest(&self) {
        self.last.store(REST, Ordering::Release);
    }

    /// The thread was sent something to do: if it rests, it is to wake up.
    pub(super) fn expect(&self) {
        let last = &self.last;
        // A thread that does not rest beats by itself.
        _ = last.compare_exchange(REST, self.now(), Ordering::AcqRel, Ordering::Acquire);
    }

    /// How long the thread has stood still with something to do.
    pub(super) fn still(&self) -> Duration {
        match self.last.load(Ordering::Acquire) {
            REST => Duration::ZERO,
            last => Duration::from_millis(self.now().saturating_sub(last)),
        }
    }

    /// The thread has ended before its time.
    pub(super) fn die(&self) {
        self.has_died.send_replace(true);
    }

    pub(super) fn has_died(&self) -> bool {
        *self.has_died.borrow()
    }

    /// Resolves when the thread has ended before its time.
    pub(super) async fn died(&self) {
        // The sender lives as long as this.
        _ = self.has_died.subscribe().wait_for(|died| *died).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_something_to_do_stands_still() {
        let pulse = Pulse::new();
        let pause = || std::thread::sleep(Duration::from_millis(20));
        pause();
        assert_eq!(pulse.still(), Duration::ZERO, "it rests");
        pulse.expect();
        pause();
        let still = pulse.still();
        assert!(still >= Duration::from_millis(15), "{still:?}");
        // More to do is no sign of life.
        pulse.expect();
        assert!(pulse.still() >= still);
        let before = Instant::now();
        pulse.beat();
        let still = pulse.still();
        // It counts whole milliseconds.
        assert!(still <= before.elapsed() + Duration::from_millis(1));
        pulse.rest();
        pause();
        assert_eq!(pulse.still(), Duration::ZERO);
        assert!(!pulse.has_died());
        pulse.die();
        assert!(pulse.has_died());
    }
}
