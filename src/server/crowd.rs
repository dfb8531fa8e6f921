//! When all places for connections are taken.
//!
//! A further connection gets a spare place for a moment, and one answer: that the
//! server lives, if it asks for that, or else that there is no place. The oldest
//! connection in a spare place is closed for the next one. So a crowd, or someone
//! who holds connections open, never makes a server look dead.

use std::collections::VecDeque;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::errors::ApiError;
use super::routes::health;

/// Connections that can wait for such an answer at once.
pub const SPARE_PLACES: usize = 256;

/// How long they may take to ask.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long a spare connection is kept at least, even when others come. What checks a server's health asks as
/// soon as it is connected.
const LEAST: Duration = Duration::from_millis(50);

/// The connections in spare places, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Spares(VecDeque<(Instant, AbortHandle)>);

impl Spares {
    /// Gives a connection a spare place, from now on.
    pub(crate) fn push(&mut self, connection: AbortHandle) {
        self.0.push_back((Instant::now(), connection));
    }

    /// Sees to it that there is a spare place, if need be by closing the connection that has
    /// had one for longest. May be dropped while it waits.
    pub(crate) async fn make_room(&mut self) {
        if self.0.len() >= SPARE_PLACES {
            self.0.retain(|(_, connection)| !connection.is_finished());
        }
        if self.0.len() >= SPARE_PLACES
            && let Some((since, _)) = self.0.front()
        {
            sleep_until(*since + LEAST).await;
            if let Some((_, oldest)) = self.0.pop_front() {
                oldest.abort();
            }
        }
    }
}

/// Marks requests of a connection that found no place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowded;

/// Turns requests without a place away.
pub(crate) async fn check(request: Request, next: Next) -> Response {
    let crowded = request.extensions().get::<Crowded>().is_some();
    if crowded && request.uri().path() != health::PATH {
        ApiError::Crowded.into_response()
    } else {
        next.run(request).await
    }
}
