//! Reads the rest of the bodies of requests that were refused early (lingering close).
//!
//! A connection that closes while its client still sends is reset, and the client may never see why
//! its request was refused. So an unread body is read and discarded beside the answer, for a while:
//! the connection can then even serve the next request.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tracing::Span;

use super::observed_body::{End, observe};

/// The maximum time for which an unread body is read.
const LINGER: Duration = Duration::from_secs(2);

/// Makes sure that the body of `request` is read to its end, even if it is dropped before.
pub(crate) async fn request(request: Request) -> Request {
    request.map(|body| observe(body, Span::none(), read_rest))
}

/// Reads and discards the rest of a body that was dropped.
fn read_rest(mut body: Body, end: End) {
    if end != End::Unread {
        return;
    }
    // Without a runtime the program is about to end.
    if let Ok(threads) = Handle::try_current() {
        threads.spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            // The rest of a longer body is cut off.
            _ = tokio::time::timeout(LINGER, rest).await;
        });
    }
}
