//! Reads the rest of the bodies of requests that were refused early (lingering close).
//!
//! A connection that closes while its client still sends is reset, and the client may never see why
//! its request was refused. So an unread body is read and discarded beside the answer, for a while:
//! the connection can then even serve the next request.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::runtime::Handle;

/// The maximum time for which an unread body is read.
const LINGER: Duration = Duration::from_secs(2);

/// Makes sure that the body of `request` is read to its end, even if it is dropped before.
pub(crate) async fn request(request: Request) -> Request {
    request.map(|body| Body::new(Lingering { body, ended: false }))
}

/// A body that is read to its end after it is dropped.
struct Lingering {
    body: Body,
    ended: bool,
}

impl http_body::Body for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.ended || self.body.is_end_stream() {
            return;
        }
        // Without a runtime the program is about to end.
        if let Ok(threads) = Handle::try_current() {
            let mut body = std::mem::take(&mut self.body);
            threads.spawn(async move {
                let rest = async { while let Some(Ok(_)) = body.frame().await {} };
                // The rest of a longer body is cut off.
                _ = tokio::time::timeout(LINGER, rest).await;
            });
        }
    }
}
