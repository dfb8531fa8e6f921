//! Runs slow CPU work, such as the tokenization of a large text, where it delays nothing else.
//!
//! The work runs on the runtime's blocking threads. Large work is limited to half as many jobs at
//! once as the machine has cores, so that the models have the rest. A caller that waits for a
//! permit or for the result can leave: then the work is not begun, or is cancelled.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::Span;

use super::body::SMALL;
use incant_prompt::text::Cancel;

/// Runs work on blocking threads.
#[derive(Clone, Debug)]
pub(crate) struct Workshop {
    places: Arc<Semaphore>,
}

impl Workshop {
    /// Allows large work on half of the machine's cores at once.
    pub(crate) fn new() -> Workshop {
        let cores = available_parallelism().map_or(1, NonZero::get);
        Workshop::with(cores.div_ceil(2))
    }

    /// Allows this number of large jobs at once.
    fn with(places: usize) -> Workshop {
        Workshop {
            places: Arc::new(Semaphore::new(places)),
        }
    }

    /// Runs work on data from a body of `bytes` bytes; a small one needs no permit. Dropping this
    /// future cancels the work.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Cancel) -> T + Send + 'static,
    ) -> T {
        // The semaphore is never closed; if it were, no permit would be needed.
        let place = match bytes > SMALL {
            true => Arc::clone(&self.places).acquire_owned().await.ok(),
            false => None,
        };
        let request = Span::current();
        let cancel = Cancel::default();
        let told = cancel.clone();
        let working = tokio::task::spawn_blocking(move || {
            let _place = place;
            request.in_scope(|| work(&told))
        });
        let _leaving = Leaving {
            cancel,
            working: working.abort_handle(),
        };
        match working.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The task is only aborted when nobody waits for it, or when the runtime ends.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// Cancels work when dropped.
struct Leaving {
    cancel: Cancel,
    working: AbortHandle,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.cancel.cancel();
        // This stops only work that has not begun.
        self.working.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;

    const LARGE: usize = SMALL + 1;

    /// Starts work that reports when it has begun and runs until it is allowed to end.
    fn lasting(
        workshop: &Workshop,
    ) -> (
        tokio::task::JoinHandle<()>,
        Receiver<()>,
        std::sync::mpsc::Sender<()>,
    ) {
        let (begun, has_begun) = channel();
        let (end, ends) = channel();
        let workshop = workshop.clone();
        let working = tokio::spawn(async move {
            let work = move |_: &Cancel| {
                begun.send(()).expect("the test listens");
                ends.recv().expect("the test allows the end");
            };
            workshop.work(LARGE, work).await;
        });
        (working, has_begun, end)
    }

    fn wait(for_what: &Receiver<()>) {
        let patience = Duration::from_secs(60);
        for_what.recv_timeout(patience).expect("it comes");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_leaves_before_there_is_a_place_has_nothing_done() {
        let workshop = Workshop::with(1);
        let (working, has_begun, end) = lasting(&workshop);
        wait(&has_begun);
        let (did, done) = channel();
        let waiting = workshop.work(LARGE, move |_| did.send(()));
        // It is polled once and must wait; then its caller leaves.
        tokio::select! {
            biased;
            _ = waiting => panic!("there is no place"),
            () = std::future::ready(()) => {}
        }
        // Small work needs no permit.
        assert_eq!(workshop.work(SMALL, |_| 7).await, 7);
        end.send(()).expect("it works still");
        working.await.expect("no panic");
        assert_eq!(workshop.work(LARGE, |_| 8).await, 8);
        assert!(done.recv().is_err(), "it was never begun");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_is_told_that_nobody_waits_for_it() {
        let workshop = Workshop::with(1);
        let (begun, has_begun) = channel();
        let (told, was_told) = channel();
        let worked = workshop.clone();
        let working = tokio::spawn(async move {
            let work = move |cancel: &Cancel| {
                begun.send(()).expect("the test listens");
                while !cancel.is_cancelled() {
                    std::thread::yield_now();
                }
                told.send(()).expect("the test listens");
            };
            worked.work(LARGE, work).await;
        });
        wait(&has_begun);
        working.abort();
        wait(&was_told);
        assert_eq!(workshop.work(LARGE, |_| 7).await, 7, "its place is free");
    }

    #[tokio::test]
    async fn a_panic_is_passed_on() {
        let workshop = Workshop::new();
        let working = tokio::spawn(async move {
            workshop.work(0, |_| panic!("as it should")).await;
        });
        assert!(working.await.expect_err("a panic").is_panic());
    }
}
