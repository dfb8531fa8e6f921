//! Ctrl-C, which lets a run save before it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;

/// How a shell knows that a process was interrupted.
const INTERRUPTED: i32 = 130;

/// A flag that the first Ctrl-C sets. The second ends the process.
pub(super) fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot listen for Ctrl-C")?;
    thread::spawn(move || {
        runtime.block_on(async {
            // Where there is no listening, Ctrl-C ends the process as ever.
            if tokio::signal::ctrl_c().await.is_ok() {
                shared.store(true, Ordering::Relaxed);
                eprintln!("Saving; Ctrl-C again ends at once.");
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
    });
    Ok(flag)
}
