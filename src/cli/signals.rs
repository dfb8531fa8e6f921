//! Signals: Ctrl-C and SIGTERM for shutdown, SIGHUP for reload.

#[cfg(unix)]
use std::io::{self, IsTerminal};

#[cfg(unix)]
use anyhow::Context;

/// The exit codes by which a shell recognises that a process was interrupted or terminated.
const INTERRUPTED: i32 = 130;
pub(super) const TERMINATED: i32 = 143;

/// Shutdown requests: Ctrl-C and SIGTERM. From its creation until the process ends, these signals
/// no longer end the process by themselves.
#[cfg(unix)]
pub(super) struct ShutdownSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl ShutdownSignals {
    pub(super) fn listen() -> io::Result<ShutdownSignals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(ShutdownSignals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next request; returns the exit code for it.
    pub(super) async fn next(&mut self) -> io::Result<i32> {
        tokio::select! {
            _ = self.interrupt.recv() => Ok(INTERRUPTED),
            _ = self.terminate.recv() => Ok(TERMINATED),
        }
    }
}

/// Shutdown requests: Ctrl-C.
#[cfg(not(unix))]
pub(super) struct ShutdownSignals;

#[cfg(not(unix))]
impl ShutdownSignals {
    pub(super) fn listen() -> std::io::Result<ShutdownSignals> {
        Ok(ShutdownSignals)
    }

    /// Waits for the next request; returns the exit code for it.
    pub(super) async fn next(&mut self) -> std::io::Result<i32> {
        tokio::signal::ctrl_c().await.map(|()| INTERRUPTED)
    }
}

/// The SIGHUP signals since its creation, by which a daemon reloads its files. While no instance
/// exists, SIGHUP ends the process. On systems without signals none arrive.
pub(super) struct Sighups {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Sighups {
    /// Handles signals from now on, even before the first wait.
    #[cfg(unix)]
    pub(super) fn listen() -> anyhow::Result<Sighups> {
        use tokio::signal::unix::{SignalKind, signal};
        let signal = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        Ok(Sighups { signal })
    }

    /// Handles signals from now on, even before the first wait.
    #[cfg(not(unix))]
    pub(super) fn listen() -> anyhow::Result<Sighups> {
        Ok(Sighups {})
    }

    /// Waits for the next signal; several unobserved ones count as one.
    pub(super) async fn next(&mut self) {
        #[cfg(unix)]
        if self.signal.recv().await.is_some() {
            return;
        }
        std::future::pending().await
    }
}

/// The terminal that the process was started in, if any.
pub(super) struct Terminal {
    #[cfg(unix)]
    sighups: Option<Sighups>,
}

impl Terminal {
    pub(super) fn new() -> anyhow::Result<Terminal> {
        Ok(Terminal {
            #[cfg(unix)]
            sighups: if io::stderr().is_terminal() {
                Some(Sighups::listen()?)
            } else {
                None
            },
        })
    }

    /// Resolves when the terminal was closed, which SIGHUP reports too.
    pub(super) async fn closed(&mut self) {
        #[cfg(unix)]
        if let Some(sighups) = &mut self.sighups {
            loop {
                sighups.next().await;
                if !io::stderr().is_terminal() {
                    return;
                }
            }
        }
        std::future::pending().await
    }
}
