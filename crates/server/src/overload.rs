//! Overload: connections over the connection limit.
//!
//! A connection over the limit gets a spare place for a moment, and one answer: the health check,
//! if it asks for that, or else an error that says that the server is overloaded. The oldest
//! connection in a spare place is closed for the next one. So neither overload nor a client that
//! holds connections open makes the server look dead.

use std::collections::VecDeque;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::errors::ApiError;
use super::routes::health;

/// The number of connections over the limit that can wait for an answer at once.
pub const SPARE_PLACES: usize = 256;

/// How long such a connection may take to send a request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The minimum time that such a connection is kept, even when others arrive. A health checker sends
/// its request as soon as it is connected.
const MIN_KEPT: Duration = Duration::from_millis(50);

/// The connections in spare places, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Spares(VecDeque<(Instant, AbortHandle)>);

impl Spares {
    /// Adds a connection, which has a spare place from now on.
    pub(crate) fn push(&mut self, connection: AbortHandle) {
        self.0.push_back((Instant::now(), connection));
    }

    /// Makes sure that a spare place is free, if need be by closing the connection that has had one
    /// for longest. Cancel safe.
    pub(crate) async fn free_spare_place(&mut self) {
        if self.0.len() >= SPARE_PLACES {
            self.0.retain(|(_, connection)| !connection.is_finished());
        }
        if self.0.len() >= SPARE_PLACES
            && let Some((since, _)) = self.0.front()
        {
            sleep_until(*since + MIN_KEPT).await;
            if let Some((_, oldest)) = self.0.pop_front() {
                oldest.abort();
            }
        }
    }
}

/// Marks requests of a connection over the limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimit;

/// Refuses requests of connections over the limit, except health checks.
pub(crate) async fn check(request: Request, next: Next) -> Response {
    let is_over_limit = request.extensions().get::<ConnectionLimit>().is_some();
    if is_over_limit && request.uri().path() != health::PATH {
        ApiError::OverLimit.into_response()
    } else {
        next.run(request).await
    }
}
