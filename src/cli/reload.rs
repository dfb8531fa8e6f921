//! Reloads the folder of profiles while a server runs.
//!
//! The folder is polled rather than watched: that works on every file system, including network
//! file systems, and costs next to nothing.

use std::sync::Arc;
use std::time::Duration;

use incant::profile::Library;
use incant::runtime::Runtime;

use super::serve::warm;
use super::signals::Sighups;

/// The polling interval. A change is applied at the second poll that sees it.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Serves the current contents of the folder, if there is one, for as long as the process lives. On
/// SIGHUP all its files are read at once.
pub(super) fn follow(library: Library, runtime: Arc<Runtime>, mut sighups: Option<Sighups>) {
    if library.folder().is_none() {
        return;
    }
    tokio::spawn(async move {
        let mut follower = Follower {
            library,
            runtime,
            unreadable: None,
        };
        loop {
            let again = tokio::select! {
                () = next(&mut sighups) => true,
                () = tokio::time::sleep(POLL_INTERVAL) => false,
            };
            let looked = tokio::task::spawn_blocking(move || {
                follower.look(again);
                follower
            });
            match looked.await {
                Ok(it) => follower = it,
                Err(error) => {
                    tracing::error!("profiles are no longer reloaded: {error}");
                    return;
                }
            }
        }
    });
}

/// Logs at each SIGHUP that there is nothing to reload.
pub(super) async fn log_nothing_to_reload(mut sighups: Sighups) {
    loop {
        sighups.next().await;
        tracing::info!("SIGHUP: nothing to reload, there is neither --profile-dir nor --tls-cert");
    }
}

/// Waits for the next SIGHUP, if they are handled at all.
async fn next(sighups: &mut Option<Sighups>) {
    match sighups {
        Some(sighups) => sighups.next().await,
        None => std::future::pending().await,
    }
}

struct Follower {
    library: Library,
    runtime: Arc<Runtime>,
    /// The reason why the folder could not be read the last time.
    unreadable: Option<String>,
}

impl Follower {
    /// Checks the folder for changes; with `again`, reads all of it.
    fn look(&mut self, again: bool) {
        let looked = if again {
            self.library.read()
        } else {
            self.library.follow()
        };
        let unreadable = looked.as_ref().err().map(ToString::to_string);
        if let Some(why) = unreadable
            .as_ref()
            .filter(|_| unreadable != self.unreadable)
        {
            tracing::warn!("profiles stay as they are: {why}");
        }
        self.unreadable = unreadable;
        let changed = looked.unwrap_or(false);
        if again {
            tracing::info!(changed, "profiles were read again");
        }
        if changed {
            self.runtime.update_profiles(&self.library);
            for model in self.runtime.models() {
                if let Err(error) = warm(model) {
                    tracing::warn!(model = model.id(), "a prefix is not ready: {error}");
                }
            }
        }
    }
}
