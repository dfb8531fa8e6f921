//! When all places for connections are taken.
//!
//! Whoever comes then gets a spare place for a moment, and one answer: that the
//! server lives, to who asks for that, or else that there is no place. So a
//! crowd, or someone who holds connections open, never makes a server look dead.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::errors::ApiError;
use super::routes::health;

/// Connections that can wait for such an answer at once; more are not accepted yet.
pub const SPARE_PLACES: usize = 64;

/// How long they may take to ask.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

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
