//! Ctrl-C and a polite request to end, which let a run save before it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, thread};

use anyhow::Context;

/// How a shell knows that a process was interrupted, or told to end.
const INTERRUPTED: i32 = 130;
#[cfg(unix)]
const TERMINATED: i32 = 143;

/// A flag that the first Ctrl-C or SIGTERM sets. The second ends the process.
pub(super) fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot listen for Ctrl-C")?;
    thread::spawn(move || {
        runtime.block_on(async {
            // Where there is no listening, it ends the process as ever.
            let Ok(mut requests) = Requests::listen() else {
                return;
            };
            if requests.next().await.is_ok() {
                shared.store(true, Ordering::Relaxed);
                eprintln!("Saving; once more ends at once.");
                if let Ok(code) = requests.next().await {
                    std::process::exit(code);
                }
            }
        });
    });
    Ok(flag)
}

/// Requests to end.
#[cfg(unix)]
struct Requests {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Requests {
    fn listen() -> io::Result<Requests> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Requests {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one: how the process ends if it ends by it.
    async fn next(&mut self) -> io::Result<i32> {
        tokio::select! {
            _ = self.interrupt.recv() => Ok(INTERRUPTED),
            _ = self.terminate.recv() => Ok(TERMINATED),
        }
    }
}

#[cfg(not(unix))]
struct Requests;

#[cfg(not(unix))]
impl Requests {
    fn listen() -> io::Result<Requests> {
        Ok(Requests)
    }

    async fn next(&mut self) -> io::Result<i32> {
        tokio::signal::ctrl_c().await.map(|()| INTERRUPTED)
    }
}
