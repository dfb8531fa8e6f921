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
pub(crate) struct BlockingPool {
    permits: Arc<Semaphore>,
}

impl BlockingPool {
    /// Allows large work on half of the machine's cores at once.
    pub(crate) fn new() -> BlockingPool {
        let cores = available_parallelism().map_or(1, NonZero::get);
        BlockingPool::with(cores.div_ceil(2))
    }

    /// Allows this number of large jobs at once.
    fn with(permits: usize) -> BlockingPool {
        BlockingPool {
            permits: Arc::new(Semaphore::new(permits)),
        }
    }

    /// Runs work on data from a body of `bytes` bytes; a small one needs no permit. Dropping this
    /// future cancels the work.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Cancel) -> T + Send + 'static,
    ) -> T {
        // The semaphore is never closed; if it were, no permit would be needed.
        let permit = if bytes > SMALL {
            Arc::clone(&self.permits).acquire_owned().await.ok()
        } else {
            None
        };
        let request = Span::current();
        let cancel = Cancel::default();
        let cancelled = cancel.clone();
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            request.in_scope(|| work(&cancelled))
        });
        let _cancel_on_drop = CancelOnDrop {
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
struct CancelOnDrop {
    cancel: Cancel,
    working: AbortHandle,
}

impl Drop for CancelOnDrop {
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
        pool: &BlockingPool,
    ) -> (
        tokio::task::JoinHandle<()>,
        Receiver<()>,
        std::sync::mpsc::Sender<()>,
    ) {
        let (begun, has_begun) = channel();
        let (end, ends) = channel();
        let pool = pool.clone();
        let working = tokio::spawn(async move {
            let work = move |_: &Cancel| {
                begun.send(()).expect("the test listens");
                ends.recv().expect("the test allows the end");
            };
            pool.run(LARGE, work).await;
        });
        (working, has_begun, end)
    }

    fn wait(for_what: &Receiver<()>) {
        let patience = Duration::from_secs(60);
        for_what.recv_timeout(patience).expect("it comes");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_caller_that_leaves_before_there_is_a_permit_has_nothing_run() {
        let pool = BlockingPool::with(1);
        let (working, has_begun, end) = lasting(&pool);
        wait(&has_begun);
        let (did, done) = channel();
        let waiting = pool.run(LARGE, move |_| did.send(()));
        // It is polled once and must wait; then its caller leaves.
        tokio::select! {
            biased;
            _ = waiting => panic!("there is no permit"),
            () = std::future::ready(()) => {}
        }
        // Small work needs no permit.
        assert_eq!(pool.run(SMALL, |_| 7).await, 7);
        end.send(()).expect("it works still");
        working.await.expect("no panic");
        assert_eq!(pool.run(LARGE, |_| 8).await, 8);
        assert!(done.recv().is_err(), "it was never begun");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_is_cancelled_when_its_caller_leaves() {
        let pool = BlockingPool::with(1);
        let (begun, has_begun) = channel();
        let (cancelled, was_cancelled) = channel();
        let worked = pool.clone();
        let working = tokio::spawn(async move {
            let work = move |cancel: &Cancel| {
                begun.send(()).expect("the test listens");
                while !cancel.is_cancelled() {
                    std::thread::yield_now();
                }
                cancelled.send(()).expect("the test listens");
            };
            worked.run(LARGE, work).await;
        });
        wait(&has_begun);
        working.abort();
        wait(&was_cancelled);
        assert_eq!(pool.run(LARGE, |_| 7).await, 7, "its permit is free");
    }

    #[tokio::test]
    async fn a_panic_is_passed_on() {
        let pool = BlockingPool::new();
        let working = tokio::spawn(async move {
            pool.run(0, |_| panic!("as it should")).await;
        });
        assert!(working.await.expect_err("a panic").is_panic());
    }
}
