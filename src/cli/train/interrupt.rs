//! Handles Ctrl-C and SIGTERM, so that a run saves a checkpoint before it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;

use crate::cli::signals::ShutdownSignals;

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
            // If signals cannot be handled, they end the process as usual.
            let Ok(mut signals) = ShutdownSignals::listen() else {
                return;
            };
            if signals.next().await.is_ok() {
                shared.store(true, Ordering::Relaxed);
                eprintln!("Stopping after this step; press Ctrl-C again to stop at once.");
                if let Ok(code) = signals.next().await {
                    std::process::exit(code);
                }
            }
        });
    });
    Ok(flag)
}
