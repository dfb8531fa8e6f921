//! SIGHUP, by which a daemon is told to read its files again.

#[cfg(unix)]
use anyhow::Context;

/// The hangups since it was made. Without one, a hangup ends the process; where there
/// are no signals, none comes.
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
