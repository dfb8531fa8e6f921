//! Ctrl-C and a polite request to end, which let a run save before it does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;

/// How a shell knows that a process was interrupted.
const INTERRUPTED: i32 = 130;

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
            if told_to_end().await.is_ok() {
                shared.store(true, Ordering::Relaxed);
                eprintln!("Saving; Ctrl-C again ends at once.");
                if told_to_end().await.is_ok() {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
    });
    Ok(flag)
}

#[cfg(unix)]
async fn told_to_end() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        told = tokio::signal::ctrl_c() => told,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn told_to_end() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
