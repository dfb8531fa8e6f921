//! Signals by which a person or a supervisor asks the process to do something.

#[cfg(unix)]
use std::io::{self, IsTerminal};

#[cfg(unix)]
use anyhow::Context;

/// How a shell knows that a process was interrupted, or told to end.
const INTERRUPTED: i32 = 130;
pub(super) const TERMINATED: i32 = 143;

/// Requests to end: Ctrl-C and SIGTERM. From when it is made until the process ends, they
/// no longer end it by themselves.
#[cfg(unix)]
pub(super) struct Requests {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Requests {
    pub(super) fn listen() -> io::Result<Requests> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Requests {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one: how the process ends if it ends by it.
    pub(super) async fn next(&mut self) -> io::Result<i32> {
        tokio::select! {
            _ = self.interrupt.recv() => Ok(INTERRUPTED),
            _ = self.terminate.recv() => Ok(TERMINATED),
        }
    }
}

/// Requests to end: Ctrl-C.
#[cfg(not(unix))]
pub(super) struct Requests;

#[cfg(not(unix))]
impl Requests {
    pub(super) fn listen() -> std::io::Result<Requests> {
        Ok(Requests)
    }

    /// Waits for the next one: how the process ends if it ends by it.
    pub(super) async fn next(&mut self) -> std::io::Result<i32> {
        tokio::signal::ctrl_c().await.map(|()| INTERRUPTED)
    }
}

/// The hangups (SIGHUP) since it was made, by which a daemon is told to read its files
/// again. While there is none, a hangup ends the process; where there are no signals, none
/// comes.
pub(super) struct Hangups {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Hangups {
    /// Listens from now on, not only once someone waits.
    #[cfg(unix)]
    pub(super) fn listen() -> anyhow::Result<Hangups> {
        use tokio::signal::unix::{SignalKind, signal};
        let signal = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        Ok(Hangups { signal })
    }

    /// Listens from now on, not only once someone waits.
    #[cfg(not(unix))]
    pub(super) fn listen() -> anyhow::Result<Hangups> {
        Ok(Hangups {})
    }

    /// Waits for the next one; several that nobody waited for are one.
    pub(super) async fn next(&mut self) {
        #[cfg(unix)]
        if self.signal.recv().await.is_some() {
            return;
        }
        std::future::pending().await
    }
}

/// The terminal that the process was started in, if there is one.
pub(super) struct Terminal {
    #[cfg(unix)]
    hangups: Option<Hangups>,
}

impl Terminal {
    pub(super) fn new() -> anyhow::Result<Terminal> {
        Ok(Terminal {
            #[cfg(unix)]
            hangups: match io::stderr().is_terminal() {
                true => Some(Hangups::listen()?),
                false => None,
            },
        })
    }

    /// Resolves when it was closed, which is told by a hangup too.
    pub(super) async fn closed(&mut self) {
        #[cfg(unix)]
        if let Some(hangups) = &mut self.hangups {
            loop {
                hangups.next().await;
                if !io::stderr().is_terminal() {
                    return;
                }
            }
        }
        std::future::pending().await
    }
}
